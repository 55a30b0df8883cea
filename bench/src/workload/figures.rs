//! The results of a load: figures one below the other, marks, and what there is to say about whether to believe them.

use std::fmt::Display;

use anyhow::Result;

use crate::report::{STRANGERS, Section, Target};
use crate::scales::Weight;
use crate::stats::{Outcome, Spread};

/// A section in the making.
pub(super) struct Figures {
    name: &'static str,
    section: Section,
}

impl Figures {
    /// `name` is the load's, as in `L4`.
    pub(super) fn new(name: &'static str, title: impl Display) -> Self {
        let section = Section {
            title: format!("{name}: {title}"),
            table: vec![vec![String::new(), "measured".into()]],
            targets: Vec::new(),
            notes: Vec::new(),
            lost: 0,
            troubles: 0,
        };
        Self { name, section }
    }

    /// One figure.
    pub(super) fn row(&mut self, what: impl Display, value: impl Display) {
        self.section.table.push(vec![what.to_string(), value.to_string()]);
    }

    /// A figure that may be at most `mark`.
    pub(super) fn at_most(&mut self, mark: f64, what: impl Display, measured: Option<f64>) {
        let what = format!("{} {what}", self.name);
        let target = Target::at_most(mark, what, measured.and_then(|value| Spread::of([value])));
        self.section.targets.push(target);
    }

    /// A figure that has to be at least `mark`.
    pub(super) fn at_least(&mut self, mark: f64, what: impl Display, measured: Option<f64>) {
        let what = format!("{} {what}", self.name);
        let target = Target::at_least(mark, what, measured.and_then(|value| Spread::of([value])));
        self.section.targets.push(target);
    }

    /// A sentence below the table.
    pub(super) fn note(&mut self, what: impl Display) {
        self.section.notes.push(what.to_string());
    }

    /// Who used the cores meanwhile.
    pub(super) fn weight(&mut self, weight: &Weight) {
        let percent = |share: Option<f64>| share.map_or("–".into(), |share| format!("{:.0}", share * 100.0));
        let shares = [weight.share(), Some(weight.harness), weight.others].map(percent);
        self.row(
            "of a core, %: gateway / client and mock / strangers (the busier core)",
            shares.join(" / "),
        );
        if weight.harness > 0.95 {
            self.note("The harness's core was full; rates and delays here are its limit.");
        }
        if let Some(others) = weight.others.filter(|&others| others > STRANGERS) {
            self.note(format!(
                "Strangers took {:.0} % of a core: measure again in peace.",
                others * 100.0
            ));
        }
    }

    /// What was lost and why; a mark of none.
    pub(super) fn losses(&mut self, what: &str, outcome: &Outcome) {
        self.section.lost += outcome.lost;
        let mark = format!("{what} lost, of {}", outcome.answers + outcome.lost);
        self.at_most(0.0, mark, Some(crate::stats::ratio(outcome.lost, 1)));
        for fault in &outcome.faults {
            self.note(format!("Lost, {what}: {fault}"));
        }
    }

    /// How a child ended.
    pub(super) fn stopped(&mut self, end: Result<()>) {
        if let Err(trouble) = end {
            self.section.troubles += 1;
            self.note(format!("**Trouble**: {trouble:#}"));
        }
    }

    /// The finished section.
    pub(super) fn section(self) -> Section {
        self.section
    }
}

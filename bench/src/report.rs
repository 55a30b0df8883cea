//! What the bench says in the end: Markdown, one section per workload, every number with its range over the rounds.

use std::fmt::{self, Write as _};

use crate::stats::{Outcome, Spread, millis, ratio};
use crate::workload::{Between, DIRECT, NGINX, Rounds, Side, side};

/// One workload's results.
pub struct Section {
    /// `W1p: 64 streams, …`.
    pub title: String,
    /// Head and rows of its table.
    pub table: Vec<Vec<String>>,
    /// What was to be reached.
    pub targets: Vec<Target>,
    /// Sentences below the table.
    pub notes: Vec<String>,
    /// Answers lost on all sides.
    pub lost: u64,
    /// Children that died, or did not end when told to.
    pub troubles: usize,
}

/// One mark and whether it was met.
pub struct Target {
    /// What is measured: "W1p CPU of `/chat/sse`, × nginx".
    pub what: String,
    /// The mark, in the measurement's unit.
    pub mark: f64,
    /// What was measured; nothing when it could not be.
    pub measured: Option<Spread>,
    /// Which side of the mark is good.
    pub good: Good,
}

/// Which side of a mark is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Good {
    /// The measurement may be at most the mark.
    AtMost,
    /// The measurement has to be at least the mark.
    AtLeast,
}

impl Target {
    /// At most `mark`.
    pub fn at_most(mark: f64, what: impl Into<String>, measured: Option<Spread>) -> Self {
        Self {
            what: what.into(),
            mark,
            measured,
            good: Good::AtMost,
        }
    }

    /// At least `mark`.
    pub fn at_least(mark: f64, what: impl Into<String>, measured: Option<Spread>) -> Self {
        Self {
            what: what.into(),
            mark,
            measured,
            good: Good::AtLeast,
        }
    }

    /// Whether the median over the rounds meets the mark; nothing when nothing was measured.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        self.measured.map(|spread| match self.good {
            Good::AtMost => spread.median <= self.mark,
            Good::AtLeast => spread.median >= self.mark,
        })
    }
}

impl fmt::Display for Target {
    /// One row: what, mark, measured, verdict.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.good == Good::AtMost { "≤" } else { "≥" };
        let verdict = match (self.met(), self.measured) {
            (None, _) | (_, None) => "not measured".into(),
            (Some(true), _) => "met".into(),
            (Some(false), Some(spread)) if self.mark > 0.0 => {
                format!("**missed**: {:.2} × the mark", spread.median / self.mark)
            }
            (Some(false), _) => "**missed**".into(),
        };
        write!(
            f,
            "| {} | {sign} {} | {} | {verdict} |",
            self.what,
            self.mark,
            cell::<2>(self.measured)
        )
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}\n", self.title)?;
        for (place, row) in self.table.iter().enumerate() {
            writeln!(f, "| {} |", row.join(" | "))?;
            if place == 0 {
                writeln!(f, "|---|{}", "--:|".repeat(row.len() - 1))?;
            }
        }
        if !self.targets.is_empty() {
            writeln!(f, "\n| target | mark | measured | |\n|---|--:|--:|---|")?;
            for target in &self.targets {
                writeln!(f, "{target}")?;
            }
        }
        for note in &self.notes {
            writeln!(f, "\n{note}")?;
        }
        Ok(())
    }
}

impl Section {
    /// A section about `sides` with their faults as notes and nothing lost as its first target; the title's first
    /// word, up to the colon, is the workload's name.
    #[must_use]
    pub fn new(title: String, rounds: &Rounds, table: Vec<Vec<String>>) -> Self {
        let sides = &rounds.sides;
        let lost = sides
            .iter()
            .flat_map(|side| &side.outcomes)
            .map(|outcome| outcome.lost)
            .sum();
        let mut notes: Vec<String> = rounds
            .troubles
            .iter()
            .map(|what| format!("**Trouble**: {what}"))
            .collect();
        for side in sides {
            let faults = side.outcomes.iter().flat_map(|outcome| outcome.faults.iter());
            let mut faults: Vec<_> = faults
                .map(|fault| format!("Lost, {}: {fault}", side.way.name))
                .collect();
            faults.dedup();
            notes.extend(faults.into_iter().take(3));
        }
        let ours = sides.iter().filter(|side| side.way.between == Between::Gateway);
        let ours_lost = Spread::of(
            ours.flat_map(|side| &side.outcomes)
                .map(|outcome| ratio(outcome.lost, 1)),
        );
        let name = title.split(':').next().unwrap_or_default();
        let what = format!("{name} answers lost by the gateway, most in a round");
        let targets = vec![Target::at_most(0.0, what, ours_lost.map(worst))];
        for side in sides {
            if side.outcomes.iter().any(|outcome| outcome.harness > 0.95) {
                let name = side.way.name;
                notes.push(format!(
                    "{name}: the harness's core was full; rates and delays here are its limit."
                ));
            }
            let others = side
                .spread(|outcome| outcome.others)
                .filter(|spread| spread.max > STRANGERS);
            if let Some(others) = others {
                let (name, most) = (side.way.name, others.max * 100.0);
                notes.push(format!(
                    "{name}: strangers took up to {most:.0} % of a core: measure again in peace."
                ));
            }
        }
        Self {
            title,
            table,
            targets,
            notes,
            lost,
            troubles: rounds.troubles.len(),
        }
    }
}

/// The share of a core above which strangers spoil a row: tokens queue behind them, and queued tokens are cheaper.
pub(crate) const STRANGERS: f64 = 0.1;

/// A spread that stands for its highest value: for promises, where one bad round is a bad round.
#[must_use]
pub fn worst(spread: Spread) -> Spread {
    Spread {
        median: spread.max,
        ..spread
    }
}

/// A spread with so many digits, or a dash.
#[must_use]
pub fn cell<const DIGITS: usize>(spread: Option<Spread>) -> String {
    spread.map_or("–".into(), |spread| format!("{spread:.DIGITS$}"))
}

/// Two spreads in one cell.
fn pair(spreads: [Option<Spread>; 2]) -> String {
    spreads.map(cell::<2>).join(" / ")
}

/// The columns that say whether a row can be believed: harness and strangers in percent (highest of the rounds), lost.
pub const TRUST: [&str; 3] = ["harness busy %", "others %", "lost"];

/// The cells of [`TRUST`].
#[must_use]
pub fn trust(side: &Side) -> [String; 3] {
    let percent = |spread: Option<Spread>| spread.map_or("–".into(), |spread| format!("{:.0}", spread.max * 100.0));
    let lost: u64 = side.outcomes.iter().map(|outcome| outcome.lost).sum();
    [
        percent(side.spread(|outcome| Some(outcome.harness))),
        percent(side.spread(|outcome| outcome.others)),
        lost.to_string(),
    ]
}

/// The table of a workload that relays tokens: what they cost and by how much they are late.
#[must_use]
pub fn relay_table(sides: &[Side]) -> Vec<Vec<String>> {
    let head = [
        "",
        "CPU µs/token",
        "of it user",
        "× nginx",
        "tokens/s",
        "first token added p50 / p99 ms",
        "per token added p50 / p99 ms",
        "tokens/read",
    ];
    let mut table = vec![head.iter().chain(&TRUST).map(ToString::to_string).collect::<Vec<_>>()];
    for one in sides {
        let (first, delay) = match side(sides, &DIRECT) {
            Some(direct) if one.way.between != Between::Nobody => {
                let ([first50, delay50], [first99, delay99]) = (one.added(direct, 50.0), one.added(direct, 99.0));
                (pair([first50, first99]), pair([delay50, delay99]))
            }
            _ => {
                let at = |percentile| one.spread(move |outcome| millis(&outcome.first, percentile));
                let late = |percentile| one.spread(move |outcome| millis(&outcome.delay, percentile));
                (
                    format!("itself {}", pair([at(50.0), at(99.0)])),
                    format!("itself {}", pair([late(50.0), late(99.0)])),
                )
            }
        };
        let mut row = vec![
            one.way.name.to_owned(),
            cell::<1>(one.spread(|outcome| outcome.cpu_per_token().map(|cpu| cpu[2]))),
            cell::<1>(one.spread(|outcome| outcome.cpu_per_token().map(|cpu| cpu[0]))),
            cell::<2>(cpu_beside_nginx(sides, one, Outcome::cpu_per_token)),
            cell::<0>(one.spread(|outcome| outcome.tokens_per_second())),
            first,
            delay,
            cell::<1>(one.spread(|outcome| (outcome.reads > 0).then(|| ratio(outcome.tokens, outcome.reads)))),
        ];
        row.extend(trust(one));
        table.push(row);
    }
    table
}

/// A side's CPU in units of nginx's, round by round.
pub fn cpu_beside_nginx(sides: &[Side], one: &Side, cpu: impl Fn(&Outcome) -> Option<[f64; 3]>) -> Option<Spread> {
    let nginx = side(sides, &NGINX)?;
    one.beside(nginx, |ours, theirs| Some(cpu(ours)?[2] / cpu(theirs)?[2]))
}

/// All targets once more, at the end.
#[must_use]
pub fn summary(sections: &[Section]) -> String {
    let mut text = String::from("### Targets\n\n| target | mark | measured | |\n|---|--:|--:|---|\n");
    for target in sections.iter().flat_map(|section| &section.targets) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{target}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_says_by_how_much_it_was_missed() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        let missed = Target::at_most(1.5, "x", of(&[1.8, 1.7, 2.0]));
        assert_eq!(
            missed.to_string(),
            "| x | ≤ 1.5 | 1.80 (1.70 to 2.00) | **missed**: 1.20 × the mark |"
        );
        let met = Target::at_least(1_000.0, "y", of(&[1_200.0]));
        assert_eq!(met.to_string(), "| y | ≥ 1000 | 1200.00 | met |");
        assert_eq!(
            Target::at_most(1.0, "z", None).to_string(),
            "| z | ≤ 1 | – | not measured |"
        );
    }

    #[test]
    fn one_lost_answer_in_one_round_misses_the_mark() {
        let lost = [0, 0, 1].map(|lost| Outcome {
            lost,
            ..Outcome::default()
        });
        let side = Side {
            way: crate::workload::SSE,
            outcomes: lost.into(),
        };
        let rounds = Rounds {
            sides: vec![side],
            troubles: Vec::new(),
        };
        let section = Section::new("W".into(), &rounds, vec![vec!["a".into(), "b".into()]]);
        assert!(section.targets[0].to_string().starts_with("| W answers lost"));
        assert_eq!((section.lost, section.targets[0].met()), (1, Some(false)));
        assert!(section.to_string().contains("| a | b |\n|---|--:|\n"));
    }
}

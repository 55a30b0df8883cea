//! What a gateway counts, as those read it who run it: `/metrics` of the admin listener.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::Call;

/// What a recipe needs for it.
pub(crate) const WATCHED: &str = "[server]\nadmin_listen = \"127.0.0.1:0\"";

/// What is counted of a provider that did wrong in one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wrong {
    /// Whether a call failed in the end.
    pub(crate) failed: bool,
    /// As what, where that is one word.
    pub(crate) kind: Option<&'static str>,
    /// Why it was asked again, and how often.
    pub(crate) again: Option<(&'static str, u8)>,
    /// What was wrong with an answer that was taken all the same.
    pub(crate) tolerated: Vec<&'static str>,
}

/// The meters at a moment: every series with its value.
#[derive(Debug)]
pub(crate) struct Meters {
    all: BTreeMap<String, f64>,
    text: String,
}

impl Meters {
    /// Asks an admin listener.
    pub(crate) async fn of(admin: &SocketAddr) -> Self {
        let call = Call::get("/metrics").header("accept", "application/openmetrics-text;version=1.0.0");
        let answer = call.to(admin).await.body().await;
        assert_eq!(answer.status, 200);
        Self::read(answer.text())
    }

    fn read(text: &str) -> Self {
        let mut all = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            let before = all.insert(series.to_owned(), value.parse().expect("a number"));
            assert!(before.is_none(), "{series} twice");
        }
        assert!(text.ends_with("# EOF\n"));
        let text = text.to_owned();
        Self { all, text }
    }

    /// The value of a series; 0 if it is not there.
    pub(crate) fn get(&self, series: &str) -> f64 {
        self.all.get(&format!("sluicegate_{series}")).copied().unwrap_or(0.0)
    }

    /// All series of a name together that have this in their labels.
    pub(crate) fn sum_of(&self, name: &str, label: &str) -> f64 {
        let ours = |series: &str| {
            let rest = series
                .strip_prefix("sluicegate_")
                .and_then(|rest| rest.strip_prefix(name));
            rest.is_some_and(|rest| (rest.is_empty() || rest.starts_with('{')) && rest.contains(label))
        };
        let all = self.all.iter().filter(|(series, _)| ours(series));
        all.map(|(_, value)| value).sum()
    }

    /// All series of a name together.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.sum_of(name, "")
    }

    /// All of it, as it was told.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// One run has been counted since then, as one that ended so, and of what providers did wrong in it exactly this.
    pub(crate) fn assert_one_run_since(&self, before: &Self, status: &str, wrong: &Wrong) {
        let more = |name: &str, label: &str| self.sum_of(name, label) - before.sum_of(name, label);
        let label = |name: &str, value: &str| format!("{name}=\"{value}\"");
        let runs = (more("runs_total", ""), more("runs_total", &label("outcome", status)));
        assert_eq!(runs, (1.0, 1.0), "runs in all and {status}\n{}", self.text());
        let errors = "upstream_errors_total";
        assert_eq!(
            more(errors, ""),
            f64::from(u8::from(wrong.failed)),
            "failures\n{}",
            self.text()
        );
        if let Some(kind) = wrong.kind {
            assert_eq!(more(errors, &label("kind", kind)), 1.0, "{kind}\n{}", self.text());
        }
        let (reason, times) = wrong.again.unwrap_or_default();
        let again = "upstream_retries_total";
        assert_eq!(more(again, ""), f64::from(times), "repetitions\n{}", self.text());
        assert_eq!(
            more(again, &label("reason", reason)),
            f64::from(times),
            "{reason}\n{}",
            self.text()
        );
        let tolerated = "upstream_tolerated_total";
        let mut all = 0.0;
        for kind in &wrong.tolerated {
            assert_eq!(more(tolerated, &label("kind", kind)), 1.0, "{kind}\n{}", self.text());
            all += 1.0;
        }
        assert_eq!(more(tolerated, ""), all, "what was tolerated\n{}", self.text());
    }
}

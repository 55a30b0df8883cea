//! What a gateway counts, as those read it who run it: `/metrics` of the admin listener.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{eventually, get};

/// What a recipe needs for it.
pub(crate) const WATCHED: &str = "[server]\nadmin_listen = \"127.0.0.1:0\"";

/// The meters at a moment: every series with its value.
#[derive(Debug)]
pub(crate) struct Meters {
    all: BTreeMap<String, f64>,
    text: String,
}

impl Meters {
    /// Asks an admin listener.
    pub(crate) async fn of(admin: &SocketAddr) -> Self {
        let answer = get(admin, "/metrics").await.body().await;
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

    /// Waits until a series has this value.
    #[track_caller]
    pub(crate) fn reach(admin: SocketAddr, series: &str, value: f64) -> impl Future<Output = ()> {
        eventually(format!("{series} to be {value}"), async move || {
            (Self::of(&admin).await.get(series) == value).then_some(())
        })
    }
}

//! One call to a model, as it is measured: its meters are looked up once, and a piece of an answer costs a look at the clock
//! and two additions.

use std::time::Duration;

use tokio::time::Instant;

use super::{Open, timing::Timing};

/// A call under way.
#[derive(Debug)]
pub struct CallMeter {
    _inflight: Open,
    first: Timing,
    gaps: Timing,
    /// When the last piece came.
    last: Option<Instant>,
}

impl CallMeter {
    pub(super) fn new(inflight: Open, first: Timing, gaps: Timing) -> Self {
        Self {
            _inflight: inflight,
            first,
            gaps,
            last: None,
        }
    }

    /// The first content of the run, so long after its beginning.
    pub fn first_token(&self, since: Duration) {
        self.first.observe(since);
    }

    /// A piece of the answer has come. No label is looked up, and nothing allocated.
    pub fn piece(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.gaps.observe(now - last);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::meters::Meters;

    /// The limit is far above what it costs, for a build that is not optimised on a machine that does much else.
    #[test]
    fn a_piece_costs_next_to_nothing() {
        const PIECES: u32 = 20_000;
        let mut call = Meters::default().call("openai", "model");
        let mut round = || {
            let began = std::time::Instant::now();
            (0..PIECES).for_each(|_| call.piece());
            began.elapsed() / PIECES
        };
        let best = (0..10).map(|_| round()).min().unwrap();
        assert!(best < std::time::Duration::from_micros(2), "{best:?}");
    }
}

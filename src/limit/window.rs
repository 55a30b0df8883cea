//! At most so many within any minute: not a quota that is filled up on the minute, after which twice as many come at once.
//! Pure: it is told what time it is.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// What limits are counted over.
pub const MINUTE: Duration = Duration::from_secs(60);

/// How a caller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How many there may be in a minute.
    pub limit: u32,
    /// How many more there may be at once.
    pub remaining: u32,
    /// When that will be one more; nothing, if all are free.
    pub reset: Duration,
}

/// The times of what was let in, oldest first: as many as a limit admits in a minute, at most.
#[derive(Debug, Default)]
pub(super) struct Window {
    times: VecDeque<Instant>,
}

impl Window {
    /// Lets one more in, and remembers it.
    ///
    /// # Errors
    /// There were `limit` within the last minute: how long until one more is let in. This is not remembered.
    pub(super) fn admit(&mut self, now: Instant, limit: u32) -> Result<(), Duration> {
        self.forget(now);
        let (held, limit) = (self.times.len(), limit.max(1) as usize);
        // Two limits may share a window: two keys of one caller.
        if let Some(due) = held.checked_sub(limit) {
            return Err(self.times[due] + MINUTE - now);
        }
        self.times.push_back(now);
        Ok(())
    }

    /// Forgets the one that was let in then: it came to nothing.
    pub(super) fn take_back(&mut self, then: Instant) {
        if let Some(at) = self.times.iter().rposition(|time| *time == then) {
            self.times.remove(at);
        }
    }

    /// How whoever has this limit stands.
    pub(super) fn standing(&mut self, now: Instant, limit: u32) -> Standing {
        self.forget(now);
        let held = u32::try_from(self.times.len()).unwrap_or(u32::MAX);
        let oldest = held.saturating_sub(limit) as usize;
        Standing {
            limit,
            remaining: limit.saturating_sub(held),
            reset: self
                .times
                .get(oldest)
                .map_or(Duration::ZERO, |time| *time + MINUTE - now),
        }
    }

    /// Whether it remembers nothing.
    pub(super) fn idle(&mut self, now: Instant) -> bool {
        self.forget(now);
        self.times.is_empty()
    }

    fn forget(&mut self, now: Instant) {
        while self
            .times
            .front()
            .is_some_and(|time| now.duration_since(*time) >= MINUTE)
        {
            self.times.pop_front();
        }
        if self.times.is_empty() {
            self.times = VecDeque::new(); // a busy minute is not paid for ever after
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Never more than the limit in any minute; and whoever finds fewer in the last one is let in.
        #[test]
        fn no_minute_has_more_than_the_limit_and_none_has_less_without_need(
            gaps in prop::collection::vec(prop_oneof![Just(0), 0..50_u64, 0..30_000_u64, Just(60_000)], 1..400),
            limit in 1..20_u32,
        ) {
            let (mut now, mut window, mut admitted) = (Instant::now(), Window::default(), Vec::<Instant>::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                let before = admitted.iter().filter(|time| now - **time < MINUTE).count();
                match window.admit(now, limit) {
                    Ok(()) => {
                        prop_assert!(before < limit as usize, "{before} before");
                        admitted.push(now);
                    }
                    Err(wait) => {
                        prop_assert!(before >= limit as usize, "{before} before, and refused");
                        prop_assert!(!wait.is_zero() && wait <= MINUTE);
                        let then = now + wait;
                        let still = |at: Instant| admitted.iter().filter(|time| at - **time < MINUTE).count();
                        prop_assert!(still(then) < limit as usize, "too soon: {wait:?}");
                        prop_assert!(still(then - Duration::from_nanos(1)) >= limit as usize, "too late: {wait:?}");
                    }
                }
                let standing = window.standing(now, limit);
                let held = admitted.iter().filter(|time| now - **time < MINUTE).count();
                prop_assert_eq!(standing.remaining as usize, limit as usize - held);
                prop_assert!(window.times.len() <= limit as usize);
            }
        }
    }

    #[test]
    fn two_limits_share_a_window() {
        let (mut window, start) = (Window::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for second in 0..4 {
            window.admit(at(second), 5).unwrap();
        }
        assert_eq!(
            window.admit(at(4), 2),
            Err(Duration::from_secs(58)),
            "the third of four has to go"
        );
        assert_eq!(window.standing(at(4), 2).remaining, 0);
        window.admit(at(4), 5).unwrap();
        assert_eq!(window.admit(at(4), 5), Err(Duration::from_secs(56)));
    }

    #[test]
    fn what_came_to_nothing_does_not_count() {
        let (mut window, now) = (Window::default(), Instant::now());
        window.admit(now, 1).unwrap();
        window.take_back(now);
        assert!(window.idle(now));
        window.take_back(now);
        window.admit(now, 1).unwrap();
        assert!(!window.idle(now));
        assert!(window.idle(now + MINUTE));
    }
}

//! The lease that a gateway has on its runs.
//!
//! Gateways that share a store believe one of them dead when it has not renewed its row for the length of a lease, and
//! mark its runs interrupted. One that was stopped for a while, or cut off from the store, must know that before they do,
//! without asking anybody: by a clock that never stops. The time that it was without a lease ends a *term*; runs that
//! began in an earlier term are lost for good, also after the lease was renewed.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use super::clock;

/// A lease counts for this part of its length here, because clocks do not all run equally fast.
const COUNTED: (u32, u32) = (9, 10);

type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// A gateway's lease.
pub struct Lease {
    clock: Clock,
    length: Duration,
    term: Mutex<Term>,
}

/// A time in which the lease was always renewed early enough.
#[derive(Clone, Copy, Debug)]
struct Term {
    number: u64,
    /// The moment until which the lease counts; `None`: it was never renewed in this term, or the term is over.
    until: Option<Duration>,
    over: bool,
}

/// A renewal that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Renewal {
    /// The number of the term that it belongs to.
    pub term: u64,
    /// When it was begun, by the lease's clock.
    pub sent: Duration,
    /// Whether it is the first one of its term.
    first: bool,
}

impl Lease {
    /// A lease of this length, which nobody has yet.
    #[must_use]
    pub fn new(length: Duration) -> Arc<Self> {
        Self::by(Arc::new(clock::uptime), length)
    }

    fn by(clock: Clock, length: Duration) -> Arc<Self> {
        let term = Term {
            number: 0,
            until: None,
            over: false,
        };
        Arc::new(Self {
            clock,
            length,
            term: Mutex::new(term),
        })
    }

    fn term(&self) -> MutexGuard<'_, Term> {
        self.term.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of the current term.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.term().number
    }

    /// Begins a renewal; in a new term, if the current one is over.
    #[must_use]
    pub fn renew(&self) -> Renewal {
        let sent = (self.clock)();
        let mut term = self.term();
        if term.over || term.until.is_some_and(|until| sent > until) {
            term.number += 1;
            (term.until, term.over) = (None, false);
        }
        Renewal {
            term: term.number,
            sent,
            first: term.until.is_none(),
        }
    }

    /// Ends a renewal that the store has answered. `continued` is false if the store did not know this gateway any more:
    /// others had believed it dead.
    pub fn renewed(&self, renewal: Renewal, continued: bool) {
        let now = (self.clock)();
        let mut term = self.term();
        if renewal.term != term.number || term.over {
            return;
        }
        let in_time = term.until.is_none_or(|until| now <= until);
        if renewal.first || (continued && in_time) {
            let until = renewal.sent + self.length * COUNTED.0 / COUNTED.1;
            term.until = Some(term.until.map_or(until, |known| known.max(until)));
        } else {
            term.over = true;
        }
    }

    /// Returns the fence of runs that begin now; `None` while there is no lease.
    #[must_use]
    pub fn fence(self: &Arc<Self>) -> Option<Fence> {
        let number = self.number();
        let fence = Fence {
            lease: Some(self.clone()),
            number,
        };
        (!fence.is_lost()).then_some(fence)
    }

    /// For how long a fence of this term still holds.
    fn left(&self, number: u64) -> Option<Duration> {
        let term = *self.term();
        if term.number != number || term.over {
            return None;
        }
        term.until?.checked_sub((self.clock)())
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.term().fmt(f)
    }
}

/// A run's share of its gateway's lease. Once it is lost, another gateway may have declared the run dead, and given its
/// session away: nothing may be appended, asked or called for the run any more.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    /// `None`: no other gateway can declare the run dead.
    lease: Option<Arc<Lease>>,
    number: u64,
}

impl Fence {
    /// Whether it is lost. Costs a look at the clock.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let lease = self.lease.as_ref();
        lease.is_some_and(|lease| lease.left(self.number).is_none())
    }

    /// Whether others may have acted on its loss by now: some time after it, for what was said until then can still be
    /// told to them.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        let Some(lease) = &self.lease else { return false };
        let term = *lease.term();
        let rest = lease.length - lease.length * COUNTED.0 / COUNTED.1;
        let until = term.until.filter(|_| term.number == self.number && !term.over);
        until.is_none_or(|until| (lease.clock)() > until + rest)
    }

    /// Waits until it is lost. Each poll looks at the clock, because a process that was stopped goes on where it was, and
    /// its timers are late.
    pub async fn lost(&self) {
        let Some(lease) = &self.lease else {
            return std::future::pending().await;
        };
        let mut waiting = pin!(async {
            while let Some(left) = lease.left(self.number) {
                tokio::time::sleep(left + Duration::from_millis(1)).await; // the last moment still counts
            }
        });
        std::future::poll_fn(|cx| match self.is_lost() {
            true => Poll::Ready(()),
            false => waiting.as_mut().poll(cx),
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures_util::FutureExt;
    use tokio::time::{Instant, advance};

    use super::*;

    const LENGTH: Duration = Duration::from_secs(10);

    /// A lease by the clock of the test, and what stops while that clock goes on.
    fn lease() -> Arc<Lease> {
        let start = Instant::now();
        Lease::by(Arc::new(move || start.elapsed()), LENGTH)
    }

    async fn renew(lease: &Arc<Lease>, took: u64, continued: bool) -> Option<Fence> {
        let renewal = lease.renew();
        advance(Duration::from_secs(took)).await;
        lease.renewed(renewal, continued);
        lease.fence()
    }

    /// Each step: how long nothing happens, how long the renewal then takes, and whether the store still knew this gateway.
    #[tokio::test(start_paused = true)]
    async fn a_fence_holds_as_long_as_its_lease_was_always_renewed_in_time() {
        for (steps, holds, terms) in [
            (&[(8, 0, true), (8, 0, true), (8, 0, true)][..], true, 0),
            (&[(3, 5, true), (1, 2, true)], true, 0),
            // Too late, although the answer was quick.
            (&[(10, 0, true)], false, 1),
            (&[(10, 0, false)], false, 1),
            // In time, but the answer was late: meanwhile others may have acted. The next renewal opens a new term.
            (&[(5, 6, true), (0, 0, true)], false, 1),
            // The answer came in time, and what was renewed counts from when it was sent.
            (&[(5, 3, true), (4, 0, true)], true, 0),
            (&[(5, 3, true), (7, 0, true)], false, 1),
            // The store had given this gateway up, because its clock was set.
            (&[(1, 0, false), (0, 0, true)], false, 1),
            (&[(10, 0, true), (10, 0, true)], false, 2),
        ] {
            let lease = lease();
            assert!(lease.fence().is_none(), "nobody has it yet");
            let fence = renew(&lease, 0, false).await.expect("a lease");
            for (pause, took, continued) in steps {
                advance(Duration::from_secs(*pause)).await;
                renew(&lease, *took, *continued).await;
            }
            assert_eq!(!fence.is_lost(), holds, "{steps:?}");
            assert_eq!(lease.number(), terms, "{steps:?}");
            let fresh = lease.fence().expect("a lease again");
            assert_eq!(fence.lost().now_or_never().is_none(), holds, "{steps:?}");
            assert!(!fresh.is_lost(), "{steps:?}: a run of the new term goes on");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_learns_of_its_loss_without_being_told() {
        let lease = lease();
        let fence = renew(&lease, 0, false).await.expect("a lease");
        let began = Instant::now();
        let waiting = tokio::spawn({
            let fence = fence.clone();
            async move { fence.lost().await }
        });
        for _ in 0..5 {
            advance(Duration::from_secs(6)).await;
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished());
            renew(&lease, 0, true).await;
        }
        waiting.await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 30 + 9);
        assert!(fence.is_lost() && !fence.is_expired());
        advance(Duration::from_secs(1)).await;
        assert!(fence.is_expired());
        let forever = Fence::default();
        assert!(!forever.is_lost() && forever.lost().now_or_never().is_none());
    }

    /// The clock went on while the process did not: no timer has fired, and yet the next poll knows.
    #[tokio::test]
    async fn what_was_stopped_knows_of_it_in_its_first_step() {
        let time = Arc::new(AtomicU64::new(0));
        let clock = time.clone();
        let lease = Lease::by(
            Arc::new(move || Duration::from_secs(clock.load(Ordering::Relaxed))),
            LENGTH,
        );
        lease.renewed(lease.renew(), false);
        let fence = lease.fence().expect("a lease");
        let mut lost = pin!(fence.lost());
        assert!(lost.as_mut().now_or_never().is_none());
        time.store(11, Ordering::Relaxed);
        assert!(lost.now_or_never().is_some());
    }
}

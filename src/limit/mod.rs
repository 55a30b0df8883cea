//! How often callers may ask. Each gateway counts by itself, exactly; where there is a tally that gateways share, it has a
//! say too. What a caller is, and what it asks for, is not known here. And how much memory their requests take together.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    chat::Principal,
    error::{Error, ErrorCode},
    store::tally::Counted,
};

mod common;
mod memory;
mod window;

pub use common::Common;
pub use memory::{MemoryBudget, MemoryUse, Reservation};
use window::Window;
pub use window::{MINUTE, Standing};

/// The most callers that are counted at a time. Each of them asked for something within the last minute or so.
const CALLERS: usize = 200_000;
/// Who comes back, and who cancels, is not to be kept out: these have a window of their own, which holds ten times the
/// limit, and this many at least. More is no client that reconnects.
const RETURNS: (u32, u32) = (10, 600);

/// What somebody comes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Something new.
    Ask,
    /// To read on, or to cancel: an `EventSource` that is refused gives up for ever, and a run that cannot be cancelled
    /// goes on costing money.
    Return,
}

/// What came of it.
#[derive(Debug)]
pub struct Verdict {
    /// How the caller stands now.
    pub standing: Standing,
    /// Whether it may go on; if not: `rate_limited`, with the time to wait.
    pub outcome: Result<(), Error>,
}

/// Counts what callers ask for.
#[derive(Default)]
pub struct Limiter {
    book: Mutex<Book>,
    common: Option<Arc<Common>>,
}

#[derive(Default)]
struct Book {
    callers: HashMap<Principal, Account>,
    /// All of them once, in the order in which they are looked at, to find those that are idle.
    round: VecDeque<Principal>,
}

#[derive(Default)]
struct Account {
    asked: Window,
    returned: Window,
    /// Who has this limit, or a smaller one, is not let in before then: the other gateways said so.
    shut: Option<(u32, Instant)>,
}

impl Limiter {
    /// Counts by itself, and with the other gateways, if there are any.
    #[must_use]
    pub fn new(common: Option<Arc<Common>>) -> Self {
        let book = Mutex::default();
        Self { book, common }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one errand of a caller who has this limit, which is not 0. What is refused does not count.
    ///
    /// # Errors
    /// `rate_limited`: more callers than can be counted.
    pub async fn admit(&self, who: &Principal, limit: u32, errand: Errand) -> Result<Verdict, Error> {
        let now = Instant::now();
        let mut verdict = self.book().account(who, now)?.admit(now, limit, errand);
        let (Some(common), Errand::Ask, Ok(())) = (&self.common, errand, &verdict.outcome) else {
            return Ok(verdict);
        };
        match common.ask(common.tally().count(who, limit, MINUTE)).await {
            Some(Counted::In { remaining, reset }) => {
                verdict.standing.remaining = remaining.min(verdict.standing.remaining);
                verdict.standing.reset = reset;
            }
            Some(Counted::Out(wait)) => {
                let mut book = self.book();
                let account = book.account(who, Instant::now())?;
                account.asked.take_back(now);
                account.shut = Some((limit, Instant::now() + wait));
                verdict = Verdict::shut(limit, wait);
            }
            None => {}
        }
        Ok(verdict)
    }
}

impl Book {
    /// A caller's account. Those of others who are idle are closed, two for each that is looked up: so their number
    /// follows that of the callers who are not.
    fn account(&mut self, who: &Principal, now: Instant) -> Result<&mut Account, Error> {
        for _ in 0..2 {
            let Some(next) = self.round.pop_front() else { break };
            let Some(account) = self.callers.get_mut(&next) else {
                continue;
            };
            if account.idle(now) {
                self.callers.remove(&next);
            } else {
                self.round.push_back(next);
            }
        }
        if !self.callers.contains_key(who) {
            if self.callers.len() >= CALLERS {
                let crowded = Error::new(ErrorCode::RateLimited, "More callers than this gateway can count.");
                return Err(crowded.retry_after(Duration::from_secs(1)));
            }
            self.round.push_back(who.clone());
        }
        Ok(self.callers.entry(who.clone()).or_default())
    }
}

impl Account {
    /// What this gateway says by itself.
    fn admit(&mut self, now: Instant, limit: u32, errand: Errand) -> Verdict {
        self.shut = self.shut.filter(|(_, end)| *end > now);
        let outcome = match (errand, self.shut) {
            // Nothing that is asked of the others now can be answered otherwise, so a flood of refusals ends here.
            (Errand::Ask, Some((shut, end))) if limit <= shut => return Verdict::shut(limit, end - now),
            (Errand::Ask, _) => self.asked.admit(now, limit),
            (Errand::Return, _) => {
                let bound = limit.saturating_mul(RETURNS.0).max(RETURNS.1);
                self.returned.admit(now, bound)
            }
        };
        Verdict {
            standing: self.asked.standing(now, limit),
            outcome: outcome.map_err(too_often),
        }
    }

    fn idle(&mut self, now: Instant) -> bool {
        self.asked.idle(now) && self.returned.idle(now) && self.shut.is_none_or(|(_, end)| end <= now)
    }
}

impl Verdict {
    /// There were as many as may be, here and elsewhere.
    fn shut(limit: u32, wait: Duration) -> Self {
        let standing = Standing {
            limit,
            remaining: 0,
            reset: wait,
        };
        let outcome = Err(too_often(wait));
        Self { standing, outcome }
    }
}

fn too_often(wait: Duration) -> Error {
    let message = "More requests within a minute than this caller may make.";
    Error::new(ErrorCode::RateLimited, message).retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(limiter: &Limiter, who: &str, limit: u32, errand: Errand) -> Result<u32, Duration> {
        let verdict = limiter.admit(&Principal::named(who), limit, errand).await.unwrap();
        match verdict.outcome {
            Ok(()) => Ok(verdict.standing.remaining),
            Err(error) => Err(error.retry_after.unwrap()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn three_times_the_limit_gets_the_limit() {
        let limiter = Limiter::default();
        let (mut admitted, start) = (0, Instant::now());
        while start.elapsed() < MINUTE * 10 {
            admitted += u32::from(ask(&limiter, "a", 60, Errand::Ask).await.is_ok());
            tokio::time::advance(MINUTE / 180).await;
        }
        assert_eq!(admitted, 600);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_is_told_when_to_come_and_then_let_in() {
        let limiter = Limiter::default();
        for left in (0..5).rev() {
            assert_eq!(ask(&limiter, "a", 5, Errand::Ask).await, Ok(left));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        for _ in 0..1000 {
            assert_eq!(ask(&limiter, "a", 5, Errand::Ask).await, Err(Duration::from_secs(55)));
        }
        assert_eq!(ask(&limiter, "b", 5, Errand::Ask).await, Ok(4), "others do not wait");
        tokio::time::advance(Duration::from_secs(55)).await;
        assert_eq!(
            ask(&limiter, "a", 5, Errand::Ask).await,
            Ok(0),
            "what was refused cost nothing"
        );
        assert_eq!(ask(&limiter, "a", 5, Errand::Ask).await, Err(Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_has_a_window_of_its_own_and_not_an_endless_one() {
        let limiter = Limiter::default();
        assert_eq!(ask(&limiter, "a", 1, Errand::Ask).await, Ok(0));
        for _ in 0..600 {
            assert_eq!(ask(&limiter, "a", 1, Errand::Return).await, Ok(0));
        }
        assert_eq!(ask(&limiter, "a", 1, Errand::Return).await, Err(MINUTE));
        for _ in 0..1000 {
            ask(&limiter, "b", 100, Errand::Return).await.unwrap();
        }
        assert!(ask(&limiter, "b", 100, Errand::Return).await.is_err());
        assert_eq!(
            ask(&limiter, "b", 100, Errand::Ask).await,
            Ok(99),
            "it takes nothing from the other one"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn idle_callers_are_forgotten_and_active_ones_never() {
        let limiter = Limiter::default();
        for at in 0..10_000 {
            assert_eq!(ask(&limiter, &at.to_string(), 2, Errand::Ask).await, Ok(1));
        }
        assert_eq!(limiter.book().callers.len(), 10_000);
        tokio::time::advance(MINUTE / 2).await;
        assert_eq!(ask(&limiter, "active", 20_000, Errand::Ask).await, Ok(19_999));
        tokio::time::advance(MINUTE / 2).await;
        for left in (10_000..19_999).rev() {
            assert_eq!(ask(&limiter, "active", 20_000, Errand::Ask).await, Ok(left));
        }
        assert_eq!(limiter.book().callers.len(), 1);
        assert_eq!(limiter.book().round.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_only_so_many_callers_at_a_time() {
        let limiter = Limiter::default();
        for at in 0..CALLERS {
            ask(&limiter, &at.to_string(), 1, Errand::Ask).await.unwrap();
        }
        let one_more = limiter.admit(&Principal::named("one more"), 1, Errand::Ask).await;
        assert_eq!(one_more.unwrap_err().code, ErrorCode::RateLimited);
        assert!(
            ask(&limiter, "0", 1, Errand::Ask).await.is_err(),
            "who was there is still counted"
        );
        tokio::time::advance(MINUTE).await;
        assert_eq!(ask(&limiter, "one more", 1, Errand::Ask).await, Ok(0));
    }
}

//! A breaker for each provider: when it failed ten times in a row before saying anything, it is left alone for five
//! seconds, and whoever asks is told at once. Then one request tries; if it works, all is as before.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{ProviderError, error::Kind};

/// How many failures in a row open it.
const FAILURES: u32 = 10;
/// For how long.
const OPEN: Duration = Duration::from_secs(5);

/// The breaker.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// Until when nobody is let through; then one, who moves it on for the others.
    closed_again: Option<Instant>,
}

impl Breaker {
    /// Lets a request through, or does not.
    ///
    /// # Errors
    /// `Kind::Resting`, with the time left.
    pub fn admit(&self) -> Result<(), ProviderError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, Some(until)) = (Instant::now(), state.closed_again) else {
            return Ok(());
        };
        if now < until {
            let resting = ProviderError::new(Kind::Resting, "it failed too often in a row");
            return Err(ProviderError {
                retry_after: Some(until - now),
                ..resting
            });
        }
        state.closed_again = Some(now + OPEN); // this one tries
        Ok(())
    }

    /// Takes note of how a request began.
    pub fn note<T>(&self, outcome: &Result<T, ProviderError>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Err(error) if error.is_ours() => {}
            Err(error) if error.is_failure() => {
                state.failures = state.failures.saturating_add(1);
                if state.failures >= FAILURES {
                    state.closed_again = Some(Instant::now() + OPEN);
                }
            }
            // An answer, or a refusal that shows that it is well.
            _ => *state = State::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::error::Exactly;

    #[test]
    fn a_fault_of_ours_says_nothing_of_the_provider() {
        let breaker = Breaker::default();
        let failed = || Err::<(), _>(ProviderError::new(Kind::Connect, ""));
        let ours = || Err::<(), _>(ProviderError::new(Kind::Connect, "").exactly(Exactly::NoFiles));
        for _ in 0..FAILURES {
            breaker.note(&ours());
        }
        breaker.admit().unwrap();
        for _ in 1..FAILURES {
            breaker.note(&failed());
        }
        breaker.note(&ours());
        breaker.admit().unwrap();
        breaker.note(&failed());
        assert!(breaker.admit().is_err(), "nor that it is well");
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_ten_failures_and_lets_one_try_after_five_seconds() {
        let breaker = Breaker::default();
        let failed = || Err::<(), _>(ProviderError::new(Kind::Server, ""));
        for _ in 0..9 {
            breaker.admit().unwrap();
            breaker.note(&failed());
        }
        breaker.note(&Err::<(), _>(ProviderError::new(Kind::RateLimited, "")));
        for _ in 0..9 {
            breaker.note(&failed());
        }
        breaker.admit().unwrap();
        breaker.note(&failed());
        let refused = breaker.admit().unwrap_err();
        assert_eq!((refused.kind, refused.retryable()), (Kind::Resting, false));
        tokio::time::advance(OPEN).await;
        breaker.admit().unwrap();
        assert!(breaker.admit().is_err(), "only one tries");
        breaker.note(&Ok(()));
        breaker.admit().unwrap();
        breaker.admit().unwrap();
    }
}

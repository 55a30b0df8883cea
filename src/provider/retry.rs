//! Asking again, before anything was said.

use std::{future::Future, time::Duration};

use reqwest::header::HeaderMap;

use tokio::time::Instant;

use super::ProviderError;
use crate::chat::Again;

/// The longest time that a provider may make us wait before we ask again; one that wants longer is not asked again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long before the answer is of no use the last wait must be over: sooner than that is a better error than a lost run.
const SPARE: Duration = Duration::from_secs(1);
/// The wait before the first repetition where the provider names none; it doubles each time.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// Asks until it works, the error is one that asking again does not mend, or `max_retries` repetitions are used up, and within
/// what `may` says. `again` is told of each repetition, and why.
///
/// # Errors
/// The last one.
pub async fn ask<T, F>(
    max_retries: u32,
    may: Again,
    mut attempt: impl FnMut() -> F,
    again: impl Fn(&ProviderError),
) -> Result<T, ProviderError>
where
    F: Future<Output = Result<T, ProviderError>>,
{
    let mut retries = 0;
    loop {
        let error = match attempt().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let delay = error.retry_after.unwrap_or_else(|| backoff(retries));
        let late = may
            .until
            .is_some_and(|until| Instant::now() + delay.min(PATIENCE) + SPARE > until);
        let sent = may.unsent_only && !error.unsent();
        if retries >= max_retries || !error.retryable() || delay > PATIENCE || late || sent {
            return Err(error);
        }
        retries += 1;
        again(&error);
        tracing::info!(provider = %error.provider, kind = error.word(), status = error.status, retries, ?delay,
            "asking the provider again");
        tokio::time::sleep(delay).await;
    }
}

/// Why it is asked again, in a word: for meters.
#[must_use]
pub fn reason(error: &ProviderError) -> &'static str {
    match error.status {
        Some(429) => "429",
        Some(500..) => "5xx",
        _ => error.word(),
    }
}

/// Between half and all of a delay that doubles: so that those who failed together do not come back together.
fn backoff(retries: u32) -> Duration {
    FIRST_DELAY
        .saturating_mul(1 << retries.min(5))
        .mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The delay that a provider's header names: `retry-after-ms`, else `retry-after` in seconds or as an HTTP date (which
/// is read as its distance from the answer's own `date`). What is no delay is none.
#[must_use]
pub fn told_delay(headers: &HeaderMap) -> Option<Duration> {
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    let seconds = |text: &str| {
        text.parse::<f64>()
            .ok()
            .and_then(|s| Duration::try_from_secs_f64(s).ok())
    };
    if let Some(delay) = header("retry-after-ms").and_then(seconds) {
        return Some(delay / 1000);
    }
    let told = header("retry-after")?;
    seconds(told).or_else(|| {
        let date = |text: &str| jiff::fmt::rfc2822::parse(text).ok().map(|date| date.timestamp());
        let now = header("date").and_then(date).unwrap_or_else(jiff::Timestamp::now);
        Duration::try_from(date(told)?.duration_since(now)).ok()
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::provider::error::Kind;

    fn told(pairs: &[(&'static str, &str)]) -> Option<Duration> {
        told_delay(
            &pairs
                .iter()
                .map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()))
                .collect(),
        )
    }

    #[test]
    fn a_delay_has_many_spellings() {
        assert_eq!(told(&[("retry-after", "2")]), Some(Duration::from_secs(2)));
        assert_eq!(told(&[("retry-after", "0.5")]), Some(Duration::from_millis(500)));
        assert_eq!(
            told(&[("retry-after-ms", "30"), ("retry-after", "9")]),
            Some(Duration::from_millis(30))
        );
        let dated = [
            ("date", "Sat, 21 Nov 2026 10:00:00 GMT"),
            ("retry-after", "Sat, 21 Nov 2026 10:00:07 GMT"),
        ];
        assert_eq!(told(&dated), Some(Duration::from_secs(7)));
        for none in ["-5", "x", "", "NaN", "inf", "1e300", "Sat, 21 Nov 1970 10:00:07 GMT"] {
            assert_eq!(told(&[("retry-after", none)]), None, "{none}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_help_is_asked_again() {
        for (error, expected) in [
            (ProviderError::new(Kind::Server, ""), 3),
            (ProviderError::new(Kind::Rejected, ""), 1),
            (ProviderError::new(Kind::EmptyReply, ""), 1),
            (
                ProviderError {
                    retry_after: Some(Duration::from_secs(3600)),
                    ..ProviderError::new(Kind::RateLimited, "")
                },
                1,
            ),
            (
                ProviderError {
                    retry_after: Some(Duration::from_secs(1)),
                    ..ProviderError::new(Kind::RateLimited, "")
                },
                3,
            ),
        ] {
            let (mut attempts, again) = (0, Cell::new(0));
            let attempt = || {
                attempts += 1;
                std::future::ready(Err(error.clone()))
            };
            let outcome: Result<(), _> = ask(2, Again::default(), attempt, |_| again.set(again.get() + 1)).await;
            assert!(outcome.is_err());
            assert_eq!((attempts, again.get()), (expected, expected - 1), "{error}");
        }
    }

    /// How often it is asked in all.
    async fn attempts(error: &ProviderError, may: Again) -> u32 {
        let mut attempts = 0;
        let attempt = || {
            attempts += 1;
            std::future::ready(Err(error.clone()))
        };
        let outcome: Result<(), _> = ask(2, may, attempt, |_| ()).await;
        assert!(outcome.is_err());
        attempts
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_waited_for_that_comes_too_late() {
        let busy = ProviderError {
            retry_after: Some(Duration::from_secs(3)),
            ..ProviderError::new(Kind::RateLimited, "")
        };
        for (left, expected) in [(3, 1), (4, 2), (6, 2), (7, 3)] {
            let began = Instant::now();
            let may = Again {
                until: Some(began + Duration::from_secs(left)),
                ..Again::default()
            };
            assert_eq!(attempts(&busy, may).await, expected, "with {left} seconds left");
            assert_eq!(began.elapsed().as_secs(), 3 * u64::from(expected - 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn later_in_a_run_only_what_was_never_sent_is_sent_again() {
        let may = Again {
            unsent_only: true,
            ..Again::default()
        };
        for (kind, expected) in [(Kind::Server, 1), (Kind::RateLimited, 1), (Kind::Connect, 3)] {
            assert_eq!(attempts(&ProviderError::new(kind, ""), may).await, expected, "{kind:?}");
        }
    }
}

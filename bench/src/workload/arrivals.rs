//! Open loop: what is to happen happens when it is due, whether or not what came before is over. A gateway that is slow gets
//! no rest by being slow, and its slowness is counted from the moment at which something was due.

use std::time::Duration;

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::Bench;
use super::crowd::next_stream;
use crate::ask::Ask;
use crate::client::door::Door;
use crate::client::{Answer, Connection, Refused};
use crate::clock::{Pacer, nanos, now};
use crate::stats::{Outcome, histogram};

/// Longest that one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Begins `work` `rate` times a second for `time`, and waits for all of it; `work` is given its place and when it was due.
pub(super) async fn arrivals<T, F>(
    pacer: &Pacer,
    rate: f64,
    time: Duration,
    mut work: impl FnMut(u64, u64) -> F,
) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let step = Duration::from_secs_f64(1.0 / rate);
    let count = nanos(time) / nanos(step).max(1);
    let start = now();
    let (mut under_way, mut results) = (JoinSet::new(), Vec::new());
    for place in 0..count {
        let due = start + place * nanos(step);
        pacer.until(due).await;
        under_way.spawn(work(place, due));
        while let Some(done) = under_way.try_join_next() {
            results.extend(done.ok());
        }
        // The pacer does not yield when it is late already, and late is when others need the thread most.
        tokio::task::yield_now().await;
    }
    while let Some(done) = under_way.join_next().await {
        results.extend(done.ok());
    }
    results
}

/// What is asked for in an open loop.
#[derive(Clone)]
pub(super) struct Flow {
    /// Whom to ask.
    pub port: u16,
    /// How.
    pub door: Door,
    /// For what; its stream number is replaced.
    pub ask: Ask,
    /// More headers, whole lines.
    pub headers: String,
    /// How many a second.
    pub rate: f64,
    /// For how long.
    pub time: Duration,
}

/// What a flow gave.
pub(super) struct Flowed {
    /// The answers, counted from when they were due.
    pub outcome: Outcome,
    /// What was refused, by status.
    pub refused: Vec<(u16, u64)>,
    /// Refusals without `Retry-After`.
    pub without_advice: u64,
    /// Nanoseconds from when it was due to the refusal.
    pub refusals: Histogram<u64>,
    /// When answers ended and refusals came ([`now`]), and which it was.
    pub ends: Vec<(u64, bool)>,
}

impl Flowed {
    /// How much was refused.
    pub(super) fn count_refused(&self) -> u64 {
        self.refused.iter().map(|(_, count)| count).sum()
    }
}

impl Bench {
    /// Lets answers be asked for at a fixed rate, each on a connection of its own.
    pub(super) async fn flow(&self, flow: Flow) -> Flowed {
        let start = now();
        let (rate, time) = (flow.rate, flow.time);
        let results = arrivals(&self.pacer, rate, time, |_, due| {
            let flow = flow.clone();
            async move {
                let answer = tokio::time::timeout(PATIENCE, one(&flow, due)).await;
                let answer = answer.unwrap_or_else(|_| Err(anyhow!("no end after {} s", PATIENCE.as_secs())));
                (due, now(), answer)
            }
        });
        let mut flowed = Flowed {
            outcome: Outcome::default(),
            refused: Vec::new(),
            without_advice: 0,
            refusals: histogram(),
            ends: Vec::new(),
        };
        for (due, ended, result) in results.await {
            match result {
                Ok(answer) => {
                    flowed.outcome.add(&answer);
                    flowed.ends.push((ended, true));
                }
                Err(fault) => match fault.downcast_ref::<Refused>() {
                    Some(refused) if matches!(refused.status, 429 | 503) => {
                        match flowed.refused.iter_mut().find(|(status, _)| *status == refused.status) {
                            Some((_, count)) => *count += 1,
                            None => flowed.refused.push((refused.status, 1)),
                        }
                        flowed.without_advice += u64::from(refused.retry_after.is_none());
                        flowed.refusals.saturating_record(ended - due);
                        flowed.ends.push((ended, false));
                    }
                    _ => flowed.outcome.lose(&fault),
                },
            }
        }
        flowed.outcome.wall = now() - start;
        flowed
    }
}

async fn one(flow: &Flow, due: u64) -> Result<Answer> {
    let ask = Ask {
        stream: next_stream(),
        ..flow.ask
    };
    let mut connection = Connection::open(flow.port).await?;
    let late = now().saturating_sub(due);
    let request = flow.door.request_with(ask, &flow.headers, "");
    let mut answer = connection.exchange(&request, flow.door.body(ask)).await?;
    answer.first += late;
    answer.whole += late;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn what_is_due_happens_although_nothing_has_ended() {
        let barrier = Arc::new(Barrier::new(20));
        let pacer = Pacer::start().unwrap();
        let all = arrivals(&pacer, 1_000.0, Duration::from_millis(20), |place, due| {
            let barrier = Arc::clone(&barrier);
            async move {
                barrier.wait().await;
                (place, due <= now())
            }
        });
        let mut all = tokio::time::timeout(Duration::from_secs(10), all).await.unwrap();
        all.sort_unstable();
        assert_eq!(all, (0..20).map(|place| (place, true)).collect::<Vec<_>>());
    }
}

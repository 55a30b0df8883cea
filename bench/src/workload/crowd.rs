//! Many clients at once: each with one connection, asking one answer after the other, all of it counted.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::ask::Ask;
use crate::client::door::Door;
use crate::client::{Answer, Connection};
use crate::clock::{Pacer, nanos, now};
use crate::machine::Cores;
use crate::scales::Scales;
use crate::stats::Outcome;
use crate::token::LIMIT;

/// Every answer of a process of the driver has a stream number of its own (until they wrap).
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The number of the next stream.
pub(super) fn next_stream() -> u32 {
    NEXT.fetch_add(1, Ordering::Relaxed) % LIMIT
}

/// What each client of a crowd does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wave {
    /// The answer it asks for; its stream number is replaced.
    pub ask: Ask,
    /// How often, one after the other.
    pub times: u32,
    /// The clients' first requests are spread over this time, so that starts do not collide by design.
    pub spread: Duration,
    /// Longest that one answer may take.
    pub patience: Duration,
}

impl Wave {
    /// `times` answers of `tokens` tokens, one per `every`, all clients at once.
    #[must_use]
    pub(super) fn new(tokens: u32, every: Duration, times: u32) -> Self {
        let every_us = nanos(every) / 1_000;
        let patience = Duration::from_secs(30) + every * tokens;
        Self {
            ask: Ask {
                every_us,
                ..Ask::new(0, tokens)
            },
            times,
            spread: Duration::ZERO,
            patience,
        }
    }

    /// The same with the starts spread over `spread`.
    #[must_use]
    pub(super) fn spread(self, spread: Duration) -> Self {
        Self { spread, ..self }
    }
}

/// Clients in front of one port, their connections kept from wave to wave.
pub(super) struct Crowd {
    port: u16,
    door: Door,
    pacer: Pacer,
    connections: Vec<Option<Connection>>,
}

impl Crowd {
    /// `clients` clients; each connects when it first asks.
    #[must_use]
    pub(super) fn new(port: u16, door: Door, clients: usize, pacer: Pacer) -> Self {
        Self {
            port,
            door,
            pacer,
            connections: (0..clients).map(|_| None).collect(),
        }
    }

    /// Lets every client do what `wave` says, without looking at what it costs.
    pub(super) async fn run(&mut self, wave: Wave) -> Outcome {
        let start = now();
        let step = nanos(wave.spread) / self.connections.len() as u64;
        let clients: Vec<_> = (0_u64..)
            .zip(self.connections.drain(..))
            .map(|(place, connection)| {
                let client = Client {
                    port: self.port,
                    door: self.door,
                    connection,
                };
                tokio::spawn(client.run(wave, self.pacer.clone(), start + offset(place, step)))
            })
            .collect();
        let mut outcome = Outcome::default();
        for client in clients {
            match client.await {
                Ok((connection, results)) => {
                    self.connections.push(connection);
                    for result in results {
                        match result {
                            Ok(answer) => outcome.add(&answer),
                            Err(fault) => outcome.lose(&fault),
                        }
                    }
                }
                Err(panic) => {
                    self.connections.push(None);
                    outcome.lose(&anyhow!("a client of the bench failed: {panic}"));
                }
            }
        }
        outcome.wall = now() - start;
        outcome
    }

    /// The same, and what the process `pid`, the harness and strangers on their cores used meanwhile.
    pub(super) async fn measure(&mut self, wave: Wave, pid: Option<u32>, cores: Option<Cores>) -> Outcome {
        let scales = Scales::set(pid, cores);
        let mut outcome = self.run(wave).await;
        let weight = scales.read();
        // A process that is gone has no figures; its answers are lost, and that is counted.
        outcome.cpu = weight.cpu;
        outcome.harness = weight.harness;
        outcome.others = weight.others;
        outcome
    }

    /// A wave whose numbers are dropped: connections open, pools fill, code is paged in. Losses stay losses.
    pub(super) async fn warm_up(&mut self, wave: Wave) -> Outcome {
        let Outcome {
            lost, faults, answers, ..
        } = self.run(wave).await;
        Outcome {
            lost,
            faults,
            useless: lost > answers,
            ..Outcome::default()
        }
    }
}

/// Nanoseconds after which the client at `place` begins: `step` apart on average, off the grid by a fraction that
/// never repeats (the golden ratio's multiples), so that no two streams of one pace tick together.
fn offset(place: u64, step: u64) -> u64 {
    let fraction = place.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let part = (u128::from(fraction) * u128::from(step)) >> 32;
    place * step + u64::try_from(part).unwrap_or(0)
}

/// One client.
struct Client {
    port: u16,
    door: Door,
    connection: Option<Connection>,
}

impl Client {
    async fn run(mut self, wave: Wave, pacer: Pacer, at: u64) -> (Option<Connection>, Vec<Result<Answer>>) {
        let mut results = Vec::with_capacity(wave.times as usize);
        pacer.until(at).await;
        for _ in 0..wave.times {
            let ask = Ask {
                stream: next_stream(),
                ..wave.ask
            };
            if let Ok(result) = tokio::time::timeout(wave.patience, self.one(ask)).await {
                results.push(result);
            } else {
                results.push(Err(anyhow!("no end after {} s", wave.patience.as_secs())));
                // Whoever hangs once would hang every time: the bench is to end.
                break;
            }
        }
        (self.connection, results)
    }

    async fn one(&mut self, ask: Ask) -> Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(self.port).await?,
        };
        let answer = connection.ask(self.door, ask).await?;
        // Kept only after a good answer: what is left in a broken one must not be read as the next.
        self.connection = Some(connection);
        Ok(answer)
    }
}

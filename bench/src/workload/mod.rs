//! The workloads of the bench, one file each, and what they share: the ways to ask, the rounds, the context.

mod arrivals;
mod crowd;
mod figures;
mod l1;
mod l11;
mod l16;
mod l17;
mod l2;
mod l3;
mod l4;
mod l5;
mod l6;
mod l7;
mod l8;
mod large_sessions;
mod w1;
mod w1p;
mod w2;
mod w3;
mod w4;
mod w5;
mod w6;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::client::door::Door;
use crate::clock::Pacer;
use crate::machine::Cores;
use crate::mock::Mock;
use crate::report::Section;
use crate::stats::{Outcome, Spread, millis};
use crate::subject::{Gateway, Nginx, Place, Subject};
use crowd::{Crowd, Wave};

/// The workloads' names, in the order in which they run.
pub const NAMES: [&str; 7] = ["w1", "w1p", "w2", "w3", "w4", "w5", "w6"];

/// The loads' names: what is held under many, slow, leaving and hostile clients.
pub const LOADS: [&str; 12] = [
    "l1",
    "l2",
    "l3",
    "l4",
    "l5",
    "l6",
    "l7",
    "l8",
    "l11",
    "l16",
    "l17",
    "large_sessions",
];

/// What every workload needs.
pub struct Bench {
    /// The upstream, in this process.
    pub mock: Mock,
    /// The one timer.
    pub pacer: Pacer,
    /// Which cores are bound, if there are two.
    pub cores: Option<Cores>,
    /// Where children run.
    pub place: Place,
    /// The gateway; absent, only nginx and the direct way are measured.
    pub gateway: Option<Gateway>,
    /// nginx, where it is installed.
    pub nginx: Option<Nginx>,
    /// The Redis program, for W6.
    pub redis: std::path::PathBuf,
    /// A PostgreSQL database for L16's two gateways.
    pub postgres: Option<String>,
    /// How often each way is measured.
    pub rounds: usize,
    /// Fewer and shorter streams: to see that everything works, not to be quoted.
    pub quick: bool,
    /// The loads for as long as is promised, not for as long as somebody waits.
    pub full: bool,
    /// How long L5 churns, if somebody says so.
    pub churn: Option<Duration>,
    /// With which `replay_window`, if somebody says so.
    pub window: Option<Duration>,
    /// Tokens per write of the mock in W1.
    pub per_write: u32,
    /// What the harness reaches with nobody in between.
    pub alone: Alone,
}

/// What driver and mock reach together with nobody in between, on their one core.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone {
    /// Tokens per second at full speed (W1's streams).
    pub tokens: f64,
    /// One-token answers per second (W4's clients).
    pub answers: f64,
}

/// Who stands between client and mock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// Nobody.
    Nobody,
    /// nginx, copying bytes.
    Nginx,
    /// The gateway.
    Gateway,
}

/// One way to ask, a row of a table.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Its name in the table.
    pub name: &'static str,
    /// Who is asked.
    pub between: Between,
    /// How.
    pub door: Door,
}

/// Straight to the mock.
pub const DIRECT: Way = Way {
    name: "direct to the mock",
    between: Between::Nobody,
    door: Door::OpenAi,
};
/// Through nginx.
pub const NGINX: Way = Way {
    name: "nginx",
    between: Between::Nginx,
    door: Door::OpenAi,
};
/// The gateway's events, nothing stored.
pub const SSE: Way = Way {
    name: "gateway `/chat/sse`",
    between: Between::Gateway,
    door: Door::Sse { store: false },
};
/// The gateway's text, nothing stored.
pub const TEXT: Way = Way {
    name: "gateway `/chat/stream`",
    between: Between::Gateway,
    door: Door::Text { store: false },
};

/// What all rounds of a workload gave.
pub struct Rounds {
    /// The ways that were measured.
    pub sides: Vec<Side>,
    /// What children did wrong beside losing answers: died, or did not end when told to.
    pub troubles: Vec<String>,
}

impl Rounds {
    /// Ends a child and keeps what is to be said about that.
    async fn stop(&mut self, subject: Option<Subject>) {
        if let Some(subject) = subject
            && let Err(trouble) = subject.stop().await
        {
            self.troubles.push(format!("{trouble:#}"));
        }
    }
}

/// A way and what it gave, one outcome per round.
pub struct Side {
    /// The way.
    pub way: Way,
    /// Round by round.
    pub outcomes: Vec<Outcome>,
}

impl Side {
    /// The spread, unless anything was lost: what the survivors took meets no mark.
    pub fn unless_lost(&self, spread: Option<Spread>) -> Option<Spread> {
        spread.filter(|_| self.outcomes.iter().all(|outcome| outcome.lost == 0))
    }

    /// Whether its last round gave no answer at all.
    fn given_up(&self) -> bool {
        self.outcomes
            .last()
            .is_some_and(|outcome| outcome.answers == 0 && outcome.lost > 0)
    }

    /// A number of the outcomes over the rounds.
    pub fn spread(&self, number: impl Fn(&Outcome) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.outcomes.iter().filter_map(number))
    }

    /// A number of this side's and another's outcome of the same round, over the rounds.
    pub fn beside(&self, other: &Self, number: impl Fn(&Outcome, &Outcome) -> Option<f64>) -> Option<Spread> {
        Spread::of(
            self.outcomes
                .iter()
                .zip(&other.outcomes)
                .filter_map(|(ours, theirs)| number(ours, theirs)),
        )
    }

    /// Milliseconds added to the first token and to each token, at a percentile, against the direct way.
    pub fn added(&self, direct: &Self, percentile: f64) -> [Option<Spread>; 2] {
        let first = |one: &Outcome| millis(&one.first, percentile);
        let delay = |one: &Outcome| millis(&one.delay, percentile);
        [
            self.beside(direct, |ours, theirs| Some(first(ours)? - first(theirs)?)),
            self.beside(direct, |ours, theirs| Some(delay(ours)? - delay(theirs)?)),
        ]
    }
}

/// The side of a way, if it was measured.
#[must_use]
pub fn side<'a>(sides: &'a [Side], way: &Way) -> Option<&'a Side> {
    sides.iter().find(|side| side.way.name == way.name)
}

impl Bench {
    /// Runs one workload by its name (see [`NAMES`]).
    ///
    /// # Errors
    /// When the name is unknown or the workload cannot be run at all; lost answers are no error but a result.
    pub async fn run(&self, name: &str) -> Result<Section> {
        match name {
            "w1" => w1::run(self).await,
            "w1p" => w1p::run(self).await,
            "w2" => w2::run(self).await,
            "w3" => w3::run(self).await,
            "w4" => w4::run(self).await,
            "w5" => w5::run(self).await,
            "w6" => w6::run(self).await,
            "l1" => l1::run(self).await,
            "l2" => l2::run(self).await,
            "l3" => l3::run(self).await,
            "l4" => l4::run(self).await,
            "l5" => l5::run(self).await,
            "l6" => l6::run(self).await,
            "l7" => l7::run(self).await,
            "l8" => l8::run(self).await,
            "l11" => l11::run(self).await,
            "l16" => l16::run(self).await,
            "l17" => l17::run(self).await,
            "large_sessions" => large_sessions::run(self).await,
            _ => anyhow::bail!("{name}: no such workload"),
        }
        .with_context(|| name.to_owned())
    }

    /// Measures what the harness reaches alone; to be done first.
    ///
    /// # Errors
    /// When even the direct way loses answers.
    pub async fn measure_alone(&mut self) -> Result<()> {
        let full = |times| Wave::new(200, Duration::ZERO, times);
        let one = |times| Wave::new(1, Duration::ZERO, times);
        self.alone.tokens = self
            .directly(64, full(1), full(20))
            .await?
            .tokens_per_second()
            .unwrap_or_default();
        self.alone.answers = self
            .directly(32, one(10), one(200))
            .await?
            .answers_per_second()
            .unwrap_or_default();
        Ok(())
    }

    async fn directly(&self, clients: usize, warm: Wave, wave: Wave) -> Result<Outcome> {
        let outcome = self.once(DIRECT, None, clients, warm, wave).await;
        ensure!(
            outcome.lost == 0,
            "{} answers lost: {}",
            outcome.lost,
            outcome.faults.join("; ")
        );
        Ok(outcome)
    }

    /// So many seconds: quick, as usual, in full.
    fn seconds(&self, [quick, usual, full]: [u64; 3]) -> Duration {
        Duration::from_secs(if self.quick {
            quick
        } else if self.full {
            full
        } else {
            usual
        })
    }

    /// The gateway, for loads that measure nothing else.
    fn subject(&self) -> Result<&Gateway> {
        self.gateway.as_ref().context("there is no gateway to be measured")
    }

    fn crowd(&self, port: u16, door: Door, clients: usize) -> Crowd {
        Crowd::new(port, door, clients, self.pacer.clone())
    }

    /// Whether somebody of this kind is here to be measured.
    fn present(&self, between: Between) -> bool {
        match between {
            Between::Nobody => true,
            Between::Nginx => self.nginx.is_some(),
            Between::Gateway => self.gateway.is_some(),
        }
    }

    /// A fresh child of this kind; nothing when nobody is to stand between, or it is not here.
    async fn start(&self, between: Between) -> Result<Option<Subject>> {
        match (between, &self.gateway, &self.nginx) {
            (Between::Gateway, Some(gateway), _) => Ok(Some(gateway.start(&self.place).await?)),
            (Between::Nginx, _, Some(nginx)) => Ok(Some(nginx.start(&self.place).await?)),
            _ => Ok(None),
        }
    }

    /// Measures all `ways` that can be had, one after the other, `rounds` times; each round begins with another way,
    /// so that none is always the one after the rest. Every measurement has a process of its own: what an earlier one
    /// left behind (memory, rows, `/proc`'s scaling of user and system over a whole life) is not in it. A way that
    /// gives no answer at all is not tried again.
    async fn interleave(&self, ways: &[Way], clients: usize, warm: Wave, wave: Wave) -> Result<Rounds> {
        let mut rounds = self.rounds_of(ways);
        let count = rounds.sides.len();
        for round in 0..self.rounds {
            for place in 0..count {
                let place = (round + place) % count;
                let way = rounds.sides[place].way;
                if rounds.sides[place].given_up() {
                    continue;
                }
                let subject = self.start(way.between).await?;
                eprintln!("  round {}: {}", round + 1, way.name);
                let outcome = self.once(way, subject.as_ref(), clients, warm, wave).await;
                rounds.sides[place].outcomes.push(outcome);
                rounds.stop(subject).await;
            }
        }
        Ok(rounds)
    }

    /// The ways that can be had here, with nothing measured yet.
    fn rounds_of(&self, ways: &[Way]) -> Rounds {
        let ways = ways.iter().filter(|way| self.present(way.between));
        let sides = ways
            .map(|&way| Side {
                way,
                outcomes: Vec::new(),
            })
            .collect();
        Rounds {
            sides,
            troubles: Vec::new(),
        }
    }

    async fn once(&self, way: Way, subject: Option<&Subject>, clients: usize, warm: Wave, wave: Wave) -> Outcome {
        let port = subject.map_or(self.mock.address().port(), |subject| subject.port);
        let mut crowd = self.crowd(port, way.door, clients);
        let warmed = crowd.warm_up(warm).await;
        if warmed.useless {
            return warmed;
        }
        let mut outcome = crowd
            .measure(wave, subject.map(|subject| subject.pid), self.cores)
            .await;
        outcome.lost += warmed.lost;
        outcome.faults.splice(0..0, warmed.faults);
        outcome
    }
}

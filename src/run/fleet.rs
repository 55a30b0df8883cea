//! A run's log at other gateways: what is added here is mirrored to a relay, off the hot path; a
//! run of another gateway is followed here as a shadow, a run whose log is fed from the relay
//! (`shadow`).
//!
//! The log itself is the buffer: what the relay did not take stays to be said, and nobody waits for
//! it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use self::{
    flight::Flights,
    health::{Direction, Health},
    shadow::Shadow,
};
use super::{Run, Runs};
use crate::{
    chat::{Event, Principal, RunId},
    error::Error,
    store::{
        RunRecord,
        relay::{Batch, Relay},
    },
};

mod flight;
mod health;
mod shadow;
#[cfg(test)]
mod tests;

pub use health::RelayState;

/// How long events gather before they are mirrored together.
const WINDOW: Duration = Duration::from_millis(15);
/// The most bytes of text in one batch, about.
const BATCH: usize = 64 << 10;
/// The most bytes in one go, about.
const ROUND: usize = 1 << 20;
/// How long to wait before a relay that failed is tried again, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How often a relay that is sent nothing is asked whether it would take something.
const CHECK: Duration = Duration::from_secs(2);
/// How often the relay is asked to keep the logs of runs that go on, and how much longer than the
/// replay window it keeps them if their gateway dies.
const REFRESH: Duration = Duration::from_secs(15);
const SURVIVE: Duration = Duration::from_secs(60);
/// How long a run that nobody reads here waits to hear whether it is read elsewhere, at first and
/// once more.
const ASK: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// A run's row as the store has it, for all that ask for it at the same time.
pub(super) type FoundRow = Result<Option<Arc<RunRecord>>, Error>;

/// The other gateways, as seen from here.
pub(super) struct Fleet {
    relay: Arc<dyn Relay>,
    /// Runs with events that have not been mirrored.
    dirty: Mutex<Vec<RunId>>,
    /// Since when there have been some.
    behind: Mutex<Option<Instant>>,
    bell: Notify,
    shadows: Mutex<HashMap<RunId, Shadow>>,
    /// Logs that are being read from the relay.
    loads: Flights<RunId, Result<Arc<Run>, Error>>,
    /// Rows of runs that are being read from the store.
    pub(super) rows: Flights<(Principal, RunId), FoundRow>,
    /// Bytes in all logs of this gateway, those of shadows too.
    held: Arc<AtomicUsize>,
    health: Health,
    /// Held while batches are on their way to the relay.
    publishing: tokio::sync::Mutex<()>,
}

/// Where a run's mirroring is.
#[derive(Debug, Default)]
pub(super) struct Mirrored {
    /// Whether the run is in the list of those with something to say.
    listed: AtomicBool,
    /// The number of the next event to say.
    next: Mutex<u64>,
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    pub(super) fn new(relay: Arc<dyn Relay>, held: Arc<AtomicUsize>) -> Self {
        Self {
            relay,
            held,
            health: Health::default(),
            dirty: Mutex::default(),
            behind: Mutex::default(),
            bell: Notify::new(),
            shadows: Mutex::default(),
            loads: Flights::default(),
            rows: Flights::default(),
            publishing: tokio::sync::Mutex::default(),
        }
    }

    /// A run has something new to say.
    pub(super) fn ring(&self, run: &Run) {
        if !run.mirrored.listed.swap(true, Ordering::AcqRel) {
            held(&self.dirty).push(run.id);
            held(&self.behind).get_or_insert_with(Instant::now);
            self.bell.notify_one();
        }
    }

    pub(super) fn state(&self) -> RelayState {
        self.health.state()
    }

    /// Whether the relay answered when it was asked last.
    pub(super) fn is_up(&self) -> bool {
        self.state() != RelayState::Unreachable
    }

    /// For how long what runs said has waited to be mirrored.
    pub(super) fn lag(&self) -> Duration {
        held(&self.behind).map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) async fn stop(&self, run: RunId) -> Result<(), Error> {
        self.relay.stop(run).await
    }

    /// Whether a run of ours has readers elsewhere. An answer that is late is not a no; but nobody
    /// knows, if the relay is away: then it counts as none.
    pub(super) async fn attended(&self, run: RunId) -> bool {
        for patience in ASK {
            match timeout(patience, self.relay.attended(run)).await {
                Ok(Ok(attended)) => return attended,
                _ if self.is_up() => {}
                _ => return false,
            }
        }
        false
    }

    /// Waits until no batch is on its way to the relay that was made before now.
    pub(super) async fn published(&self) {
        drop(self.publishing.lock().await);
    }

    /// Erases the logs of runs from the relay.
    pub(super) async fn erase_relayed(&self, runs: &[RunId]) -> Result<(), Error> {
        self.relay.erase(runs).await
    }
}

impl Runs {
    /// Adds to a run's log.
    pub(super) fn say(&self, run: &Run, events: impl IntoIterator<Item = Event>) {
        run.log.append(events);
        // A run that is not stored is known to nobody else.
        if let (Some(fleet), Some(_)) = (&self.fleet, &run.session_id) {
            fleet.ring(run);
        }
    }

    /// Mirrors what runs say, and hears what those of other gateways do, for ever. Returns at once
    /// without a fleet.
    pub async fn mirror(&self) {
        let Some(fleet) = &self.fleet else { return };
        tokio::join!(
            self.tell_others(fleet),
            self.listen(fleet),
            self.look_after_shadows(fleet)
        );
    }

    async fn tell_others(&self, fleet: &Fleet) {
        let mut pause = BACK_OFF.0;
        let mut refreshed = Instant::now();
        let (mut well, mut check) = (true, true);
        loop {
            let outcome = match check {
                true => self.check_relay(fleet, &mut refreshed).await,
                false => {
                    sleep(WINDOW).await;
                    self.tell_once(fleet).await
                }
            };
            fleet.health.note(Direction::Write, outcome.as_ref().err());
            match outcome {
                Ok(()) => {
                    // It may have lost what it had: everything is said once more.
                    if !std::mem::replace(&mut well, true) {
                        pause = BACK_OFF.0;
                        for run in self.registry.every() {
                            *held(&run.mirrored.next) = 0;
                            fleet.ring(&run);
                        }
                    }
                    let rung = timeout(CHECK, fleet.bell.notified()).await.is_ok();
                    check = !rung || refreshed.elapsed() >= REFRESH;
                    if rung && check {
                        fleet.bell.notify_one(); // what there is to say comes right after
                    }
                }
                Err(_) => {
                    // A relay that takes nothing is not sent everything again and again.
                    (well, check) = (false, true);
                    sleep(pause).await;
                    pause = (pause * 2).min(BACK_OFF.1);
                }
            }
        }
    }

    /// Asks the relay whether it takes something, and from time to time to keep the logs of runs
    /// that go on. A log that it has lost is said once more.
    async fn check_relay(&self, fleet: &Fleet, refreshed: &mut Instant) -> Result<(), Error> {
        let mut going = Vec::new();
        if refreshed.elapsed() >= REFRESH {
            going = self.registry.every();
            going.retain(|run| !run.log.ended() && *held(&run.mirrored.next) > 0);
        }
        let ids: Vec<RunId> = going.iter().map(|run| run.id).collect();
        let lost = fleet.relay.check(&ids, self.limits.replay_window + SURVIVE).await?;
        if refreshed.elapsed() >= REFRESH {
            *refreshed = Instant::now();
        }
        for run in going.iter().filter(|run| lost.contains(&run.id)) {
            *held(&run.mirrored.next) = 0;
            fleet.ring(run);
        }
        Ok(())
    }

    /// Says what has not been said. What could not be said stays listed.
    async fn tell_once(&self, fleet: &Fleet) -> Result<(), Error> {
        let dirty = std::mem::take(&mut *held(&fleet.dirty));
        let began = Instant::now();
        let mut rest = dirty.into_iter();
        loop {
            let (mut batches, mut told, mut bytes) = (Vec::new(), Vec::new(), 0);
            while bytes < ROUND
                && let Some(id) = rest.next()
            {
                let Some(run) = self.registry.shown(id) else { continue };
                if run.is_taken() {
                    continue; // what others said of it counts
                }
                run.mirrored.listed.store(false, Ordering::Release); // whatever is added from here on lists it again
                let first = *held(&run.mirrored.next);
                let (events, more) = run.log.since(first, BATCH);
                if events.is_empty() {
                    continue;
                }
                let next = first + events.len() as u64;
                let body = serde_json::to_vec(&events).map_err(Error::internal)?;
                bytes += body.len();
                batches.push((Batch { run: id, first, body }, self.keep(&run, &events)));
                told.push((run, first, next, more));
            }
            if batches.is_empty() {
                // What was added meanwhile is as old as this round, at most.
                let more = !held(&fleet.dirty).is_empty();
                *held(&fleet.behind) = Some(began).filter(|_| more);
                return Ok(());
            }
            let outcome = {
                let _publishing = fleet.publishing.lock().await;
                // A run that was erased meanwhile is not published any more.
                batches.retain(|(batch, _)| self.registry.shown(batch.run).is_some());
                fleet.relay.publish(&batches).await
            };
            for (run, first, next, more) in told {
                let mut place = held(&run.mirrored.next);
                // Unless everything is to be said once more.
                if outcome.is_ok() && *place == first {
                    *place = next;
                }
                drop(place);
                if more || outcome.is_err() {
                    fleet.ring(&run);
                }
            }
            if let Err(error) = outcome {
                let left: Vec<RunId> = rest.collect();
                held(&fleet.dirty).extend(left);
                return Err(error);
            }
        }
    }

    /// How long the relay keeps a run's log from now on: until the end of its replay window. While
    /// the run goes on that is put off again and again.
    fn keep(&self, run: &Run, events: &[Event]) -> Duration {
        let window = self.limits.replay_window;
        match run.ended() {
            Some(ended) if events.last().is_some_and(Event::is_last) => {
                let age = self.store.now().saturating_sub(ended.at);
                let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
                window.saturating_sub(age).max(Duration::from_secs(1))
            }
            _ => window + SURVIVE,
        }
    }

    /// Says the last words of the runs that ended, once more, and not for long.
    pub(super) async fn tell_farewell(&self) {
        if let Some(fleet) = &self.fleet {
            let _ = timeout(Duration::from_secs(1), self.tell_once(fleet)).await;
        }
    }
}

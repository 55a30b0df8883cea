//! A run's log at other gateways: what is added here is mirrored to a relay, off the hot path; a run of another gateway
//! is followed here as a shadow, a run whose log is fed from the relay.
//!
//! The log itself is the buffer: what the relay did not take stays to be said, and nobody waits for it.

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
    time::{Instant, sleep},
};

use super::{Run, Runs, elsewhere, follow, log::Log};
use crate::{
    chat::{Event, RunId},
    error::{Error, ErrorCode},
    store::{
        RunRecord, RunStatus,
        relay::{Batch, Place, Relay},
    },
};

/// How long events gather before they are mirrored together.
const WINDOW: Duration = Duration::from_millis(15);
/// The most bytes of text in one batch, about.
const BATCH: usize = 64 << 10;
/// The most bytes in one go, about.
const ROUND: usize = 1 << 20;
/// How long to wait before a relay that failed is tried again, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long one look for news waits.
const LISTEN: Duration = Duration::from_millis(200);
/// How long a shadow without readers is kept.
const LINGER: Duration = Duration::from_secs(5);
/// How often a run's row is looked at while nothing is heard of the run.
const LOOK: Duration = Duration::from_secs(1);
/// How long readers at another gateway are believed to be there.
const ATTENDED: Duration = Duration::from_secs(5);
/// How long a run that nobody reads here waits to hear whether it is read elsewhere, at first and once more.
const ASK: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];
/// How long a reader of an erased run may wait for the run's last event.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long the end of a run may take to be heard after its row said so.
const LAG: Duration = Duration::from_secs(2);

/// The other gateways, as seen from here.
pub(super) struct Fleet {
    relay: Arc<dyn Relay>,
    /// Runs with events that have not been mirrored.
    dirty: Mutex<Vec<RunId>>,
    /// Since when there have been some.
    behind: Mutex<Option<Instant>>,
    bell: Notify,
    shadows: Mutex<HashMap<RunId, Shadow>>,
    /// Bytes in all logs of this gateway, those of shadows too.
    held: Arc<AtomicUsize>,
    /// Whether the relay answered when it was asked last.
    up: AtomicBool,
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

/// A run of another gateway.
struct Shadow {
    run: Arc<Run>,
    place: Place,
    heard: Instant,
    looked: Instant,
    read: Instant,
    /// Since when its row has said that it is over.
    over: Option<Instant>,
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    pub(super) fn new(relay: Arc<dyn Relay>, held: Arc<AtomicUsize>) -> Self {
        Self {
            relay,
            held,
            up: AtomicBool::new(false),
            dirty: Mutex::default(),
            behind: Mutex::default(),
            bell: Notify::new(),
            shadows: Mutex::default(),
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

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// For how long what runs said has waited to be mirrored.
    pub(super) fn lag(&self) -> Duration {
        held(&self.behind).map_or(Duration::ZERO, |since| since.elapsed())
    }

    pub(super) async fn stop(&self, run: RunId) -> Result<(), Error> {
        self.relay.stop(run).await
    }

    /// Whether a run of ours has readers elsewhere. An answer that is late is not a no; but nobody knows, if the relay is
    /// away: then it counts as none.
    pub(super) async fn attended(&self, run: RunId) -> bool {
        for patience in ASK {
            match tokio::time::timeout(patience, self.relay.attended(run)).await {
                Ok(Ok(attended)) => return attended,
                _ if self.is_up() => {}
                _ => return false,
            }
        }
        false
    }

    /// A run of another gateway, as far as the relay has it.
    ///
    /// # Errors
    /// `store_unavailable` if the relay is away or lacks some of a run that goes on; `replay_expired` if it lacks some of one
    /// that has ended.
    pub(super) async fn shadow(&self, record: &RunRecord) -> Result<Arc<Run>, Error> {
        if let Some(shadow) = held(&self.shadows).get_mut(&record.id) {
            shadow.read = Instant::now();
            return Ok(shadow.run.clone());
        }
        let told = self.relay.read(record.id).await?;
        let run = Run::beside(record.clone(), Log::new(0, self.held.clone()));
        let mut place = "0-0".to_owned();
        for (batch, behind) in told {
            // What is missing of a run that goes on is said again by its gateway.
            take(&run, &batch).map_err(|gap| match record.status {
                RunStatus::Running => elsewhere(),
                _ => gap,
            })?;
            place = behind;
        }
        let now = Instant::now();
        let shadow = Shadow {
            run: run.clone(),
            place,
            heard: now,
            looked: now,
            read: now,
            over: None,
        };
        let mut shadows = held(&self.shadows);
        Ok(shadows.entry(record.id).or_insert(shadow).run.clone())
    }

    /// Adds all that the relay has to a shadow, for what is heard may be a moment behind.
    pub(super) async fn catch_up(&self, shadow: &Run) -> Result<(), Error> {
        let told = self.relay.read(shadow.id).await?;
        if told.iter().any(|(batch, _)| take(shadow, batch).is_err()) {
            shadow.log.give_up();
        }
        Ok(())
    }

    /// Forgets runs of other gateways that were erased with their session. A reader gets the last event if it comes in
    /// a moment, or else one that says as much.
    pub(super) async fn erase(&self, runs: &[RunId]) {
        let shadows: Vec<Arc<Run>> = {
            let shadows = held(&self.shadows);
            let known = runs.iter().filter_map(|run| shadows.get(run));
            known.map(|shadow| shadow.run.clone()).collect()
        };
        let deadline = Instant::now() + FAREWELL;
        while shadows.iter().any(|run| !run.log.ended()) && Instant::now() < deadline {
            sleep(FAREWELL / 20).await;
        }
        for run in shadows {
            run.log.append([Event::Failed(erased())]);
            self.forget(run.id);
        }
    }

    /// Waits until no batch is on its way to the relay that was made before now.
    pub(super) async fn published(&self) {
        drop(self.publishing.lock().await);
    }

    /// Erases the logs of runs from the relay.
    pub(super) async fn erase_relayed(&self, runs: &[RunId]) -> Result<(), Error> {
        self.relay.erase(runs).await
    }

    /// Forgets a run of another gateway.
    pub(super) fn forget(&self, run: RunId) {
        held(&self.shadows).remove(&run);
    }
}

/// Adds what was heard to a shadow's log, but for what it has already.
fn take(run: &Run, batch: &Batch) -> Result<(), Error> {
    let gap = || {
        Error::new(
            ErrorCode::ReplayExpired,
            "This run's events are not all there; GET /runs/{id} has its result.",
        )
    };
    let events: Vec<Event> = serde_json::from_slice(&batch.body).map_err(|_| gap())?;
    let next = run.log.next_seq();
    let known = next.checked_sub(batch.first).ok_or_else(gap)?;
    let known = usize::try_from(known).unwrap_or(usize::MAX);
    if known < events.len() {
        run.log.append(events.into_iter().skip(known));
    }
    Ok(())
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

    /// Mirrors what runs say, and hears what those of other gateways do, for ever. Returns at once without a fleet.
    pub async fn mirror(&self) {
        let Some(fleet) = &self.fleet else { return };
        tokio::join!(self.tell_others(fleet), self.listen(fleet));
    }

    async fn tell_others(&self, fleet: &Fleet) {
        let mut pause = BACK_OFF.0;
        let mut well = true;
        loop {
            fleet.bell.notified().await;
            sleep(WINDOW).await;
            match self.tell_once(fleet).await {
                Ok(()) if well => {}
                // It may have lost what it had: everything is said once more.
                Ok(()) => {
                    tracing::info!("runs are mirrored again");
                    (pause, well) = (BACK_OFF.0, true);
                    for run in self.registry.every() {
                        *held(&run.mirrored.next) = 0;
                        fleet.ring(&run);
                    }
                }
                Err(error) => {
                    if well {
                        tracing::warn!(
                            cause = error.causes(),
                            "runs cannot be mirrored; other gateways cannot follow them"
                        );
                    }
                    well = false;
                    sleep(pause).await;
                    pause = (pause * 2).min(BACK_OFF.1);
                    fleet.bell.notify_one();
                }
            }
        }
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
                batches.push(Batch { run: id, first, body });
                told.push((run, first, next, more));
            }
            if batches.is_empty() {
                // What was added meanwhile is as old as this round, at most.
                let more = !held(&fleet.dirty).is_empty();
                *held(&fleet.behind) = Some(began).filter(|_| more);
                return Ok(());
            }
            // Long enough for the longest run, and for its replay.
            let keep = self.limits.deadline + self.limits.replay_window;
            let outcome = {
                let _publishing = fleet.publishing.lock().await;
                // A run that was erased meanwhile is not published any more.
                batches.retain(|batch| self.registry.shown(batch.run).is_some());
                fleet.relay.publish(&batches, keep).await
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

    /// Says the last words of the runs that ended, once more, and not for long.
    pub(super) async fn tell_farewell(&self) {
        if let Some(fleet) = &self.fleet {
            let _ = tokio::time::timeout(Duration::from_secs(1), self.tell_once(fleet)).await;
        }
    }

    async fn listen(&self, fleet: &Fleet) {
        let mut stops: Option<Place> = None;
        loop {
            let heard = self.hear_once(fleet, &mut stops).await;
            fleet.up.store(heard.is_ok(), Ordering::Relaxed);
            self.meters.relay_is(heard.is_ok().into());
            match heard {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(cause = error.causes(), "nothing is heard of other gateways");
                    sleep(BACK_OFF.0 * 5).await;
                }
            }
            self.look_after(fleet).await;
        }
    }

    async fn hear_once(&self, fleet: &Fleet, stops: &mut Option<Place>) -> Result<(), Error> {
        let place = match stops {
            Some(place) => place,
            None => stops.insert(fleet.relay.now().await?),
        };
        let shadows: Vec<(RunId, Place)> = held(&fleet.shadows)
            .iter()
            .filter(|(_, shadow)| !shadow.run.log.ended())
            .map(|(id, shadow)| (*id, shadow.place.clone()))
            .collect();
        let heard = fleet.relay.hear(&shadows, place, LISTEN).await?;
        for (run, behind) in heard.stops {
            *place = behind;
            if let Some(run) = self.registry.any(run) {
                run.cancel.cancel();
            }
            self.notices.notify_one(); // whoever calls may have left more in the store
        }
        let mut known = held(&fleet.shadows);
        for (batch, behind) in heard.batches {
            if let Some(shadow) = known.get_mut(&batch.run) {
                (shadow.place, shadow.heard) = (behind, Instant::now());
                // With a gap it is of no use: the run's gateway will say everything once more.
                let _ = take(&shadow.run, &batch);
            }
        }
        Ok(())
    }

    /// Tells the others which of their runs are read here, looks at the rows of those that are silent, and forgets those
    /// that nobody reads.
    async fn look_after(&self, fleet: &Fleet) {
        let (mut read, mut silent) = (Vec::new(), Vec::new());
        held(&fleet.shadows).retain(|id, shadow| {
            if shadow.run.log.vacant_since().is_none() {
                shadow.read = Instant::now();
                read.push(*id);
            }
            if !shadow.run.log.ended() && shadow.heard.elapsed() >= LOOK && shadow.looked.elapsed() >= LOOK {
                shadow.looked = Instant::now();
                silent.push((shadow.run.clone(), shadow.over));
            }
            shadow.read.elapsed() < LINGER
        });
        if !read.is_empty() {
            let _ = fleet.relay.attend(&read, ATTENDED).await;
        }
        for (run, over) in silent {
            let Ok(record) = self.store.run(&run.principal, run.id).await else {
                continue;
            };
            match record {
                Some(record) if record.status == RunStatus::Running => {}
                // Its gateway died, or stopped: what was mirrored is all there is, and this is its end. Who is not here now
                // may know more, and is told when they come back.
                Some(record) if record.status == RunStatus::Interrupted => {
                    if run.log.vacant_since().is_some() || fleet.catch_up(&run).await.is_err() {
                        continue;
                    }
                    let seq = run.log.next_seq();
                    let error = follow::kept_error(record.end.and_then(|end| end.error));
                    if !run.log.ended() && self.store.told(run.id, seq).await.is_ok() {
                        run.log.append([Event::Failed(error)]);
                    }
                }
                Some(_) if over.is_none_or(|since| since.elapsed() < LAG) => {
                    if let Some(shadow) = held(&fleet.shadows).get_mut(&run.id) {
                        shadow.over.get_or_insert_with(Instant::now);
                    }
                }
                // It ended, and how is not to be heard; or it was erased. Whoever comes back is told what there is.
                _ => run.log.give_up(),
            }
        }
    }
}

fn erased() -> Error {
    Error::new(ErrorCode::Cancelled, "The run's session was erased.")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use futures_util::future::BoxFuture;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        chat::RunId,
        run::{
            Interest, Reader,
            shelf::tests::{beside, run},
        },
        store::{Store, memory::Memory, relay::Heard},
    };

    /// A relay that fails as it is told.
    #[derive(Default)]
    struct Faulty {
        streams: Mutex<HashMap<RunId, Vec<(u64, Batch)>>>,
        entries: AtomicU64,
        /// Nothing works.
        down: AtomicBool,
        /// The next batches are taken, and the answer is lost.
        deaf: AtomicBool,
        /// It has lost what it had, and the next command finds a broken connection.
        broken: AtomicBool,
        /// Somebody reads elsewhere, and so many looks for them are answered late.
        hesitates: AtomicUsize,
    }

    impl Faulty {
        fn fail(&self) -> Result<(), Error> {
            match self.down.load(Ordering::SeqCst) || self.broken.swap(false, Ordering::SeqCst) {
                true => Err(elsewhere()),
                false => Ok(()),
            }
        }

        fn after(&self, run: RunId, place: &str) -> Vec<(Batch, Place)> {
            let place: u64 = place.split('-').next().unwrap().parse().unwrap();
            let streams = held(&self.streams);
            let all = streams.get(&run).into_iter().flatten();
            let new = all.filter(|(at, _)| *at > place);
            new.map(|(at, batch)| (batch.clone(), format!("{at}-0"))).collect()
        }
    }

    impl Relay for Faulty {
        fn publish<'a>(&'a self, batches: &'a [Batch], _keep: Duration) -> BoxFuture<'a, Result<(), Error>> {
            Box::pin(async move {
                sleep(Duration::from_millis(3)).await;
                self.fail()?;
                for batch in batches {
                    let at = self.entries.fetch_add(1, Ordering::SeqCst) + 1;
                    let mut streams = held(&self.streams);
                    let stream = streams.entry(batch.run).or_default();
                    if batch.first == 0 {
                        stream.clear();
                    }
                    stream.push((at, batch.clone()));
                }
                match self.deaf.swap(false, Ordering::SeqCst) {
                    true => Err(elsewhere()),
                    false => Ok(()),
                }
            })
        }

        fn read(&self, run: RunId) -> BoxFuture<'_, Result<Vec<(Batch, Place)>, Error>> {
            Box::pin(async move {
                match self.down.load(Ordering::SeqCst) {
                    true => Err(elsewhere()),
                    false => Ok(self.after(run, "0-0")),
                }
            })
        }

        fn hear<'a>(
            &'a self,
            runs: &'a [(RunId, Place)],
            _stops: &'a Place,
            patience: Duration,
        ) -> BoxFuture<'a, Result<Heard, Error>> {
            Box::pin(async move {
                sleep(patience / 10).await;
                if self.down.load(Ordering::SeqCst) {
                    return Err(elsewhere());
                }
                let batches = runs.iter().flat_map(|(run, place)| self.after(*run, place)).collect();
                let stops = Vec::new();
                Ok(Heard { batches, stops })
            })
        }

        fn now(&self) -> BoxFuture<'_, Result<Place, Error>> {
            Box::pin(std::future::ready(Ok("0-0".to_owned())))
        }

        fn stop(&self, _run: RunId) -> BoxFuture<'_, Result<(), Error>> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn erase<'a>(&'a self, runs: &'a [RunId]) -> BoxFuture<'a, Result<(), Error>> {
            Box::pin(async move {
                self.fail()?;
                held(&self.streams).retain(|run, _| !runs.contains(run));
                Ok(())
            })
        }

        fn attend<'a>(&'a self, _runs: &'a [RunId], _keep: Duration) -> BoxFuture<'a, Result<(), Error>> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn attended(&self, _run: RunId) -> BoxFuture<'_, Result<bool, Error>> {
            Box::pin(async move {
                let late = |left: usize| left.checked_sub(1);
                if self
                    .hesitates
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, late)
                    .is_ok()
                {
                    sleep(Duration::from_secs(1)).await;
                }
                Ok(true)
            })
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Say(u8),
        Wait(u16),
        Down,
        Up,
        Deaf,
        Lose,
        Follow,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..6_u8).prop_map(Step::Say),
            4 => (1..400_u16).prop_map(Step::Wait),
            1 => Just(Step::Down),
            1 => Just(Step::Up),
            1 => Just(Step::Deaf),
            1 => Just(Step::Lose),
            2 => Just(Step::Follow),
        ]
    }

    fn told(run: &Run) -> String {
        format!("{:?}", run.log.since(0, usize::MAX).0)
    }

    /// Whatever becomes of the relay: what another gateway shows of a run begins as the run does, without a gap or a
    /// repetition, and once the relay is well, it is all there.
    async fn simulate(steps: Vec<Step>) {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let relay = Arc::new(Faulty::default());
        let gateway = || beside(store.clone(), Some(relay.clone() as Arc<dyn Relay>));
        let (own, other, late) = (gateway(), gateway(), gateway());
        let limits = own.limits;
        let run = run(&own, Some("s")).await;
        let _ = own.registry.admit(&run, crate::run::OnBusy::Reject, &limits, 0);
        let record = store.run(&run.principal, run.id).await.unwrap().unwrap();
        let gateways = [own.clone(), other.clone(), late.clone()];
        let tasks = gateways.map(|runs| tokio::spawn(async move { runs.mirror().await }));
        own.say(&run, [Event::Started]);
        let (mut shadows, mut count) = (Vec::new(), 0);
        for step in steps {
            match step {
                Step::Say(many) => {
                    let words = (0..many).map(|at| Event::Text(format!("{} ", count + u32::from(at))));
                    own.say(&run, words);
                    count += u32::from(many);
                }
                Step::Wait(millis) => sleep(Duration::from_millis(millis.into())).await,
                Step::Down => relay.down.store(true, Ordering::SeqCst),
                Step::Up => relay.down.store(false, Ordering::SeqCst),
                Step::Deaf => relay.deaf.store(true, Ordering::SeqCst),
                Step::Lose => {
                    held(&relay.streams).clear();
                    relay.broken.store(true, Ordering::SeqCst);
                }
                Step::Follow => {
                    if let Ok(shadow) = other.fleet.as_ref().unwrap().shadow(&record).await {
                        shadows.push(Reader::new(shadow, 0, Interest::Every));
                    }
                }
            }
            for reader in &shadows {
                let (ours, theirs) = (told(&run), told(reader.run()));
                assert!(
                    ours.starts_with(theirs.trim_end_matches(']')),
                    "{theirs} is not how {ours} begins"
                );
            }
        }
        relay.down.store(false, Ordering::SeqCst);
        own.say(&run, [Event::Failed(elsewhere())]);
        sleep(Duration::from_secs(30)).await;
        let fresh = late.fleet.as_ref().unwrap().shadow(&record).await.unwrap();
        assert_eq!(told(&fresh), told(&run));
        for reader in &shadows {
            assert_eq!(told(reader.run()), told(&run));
        }
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }

    /// A late answer is not a no, but for one of a relay that is away; and nobody waits for it for long.
    #[tokio::test(start_paused = true)]
    async fn who_reads_elsewhere_is_asked_for_twice() {
        let relay = Arc::new(Faulty::default());
        let fleet = Fleet::new(relay.clone(), Arc::default());
        for (up, late, attended, took) in [
            (true, 0, true, 0),
            (true, 1, true, 100),
            (true, 2, false, 500),
            (false, 1, false, 100),
        ] {
            fleet.up.store(up, Ordering::Relaxed);
            relay.hesitates.store(late, Ordering::SeqCst);
            let began = Instant::now();
            assert_eq!(fleet.attended(RunId::new()).await, attended, "{up} {late}");
            assert_eq!(began.elapsed(), Duration::from_millis(took), "{up} {late}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_run_is_the_same_at_every_gateway_whatever_becomes_of_the_relay(steps in prop::collection::vec(step(), 1..40)) {
            let clock = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            clock.block_on(simulate(steps));
        }
    }
}

//! Runs of other gateways: followed here as shadows, each fed from the relay once for all its
//! readers.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{
    Fleet, Run, Runs,
    health::{Direction, RelayState},
    held,
};
use crate::{
    chat::{Event, RunId},
    error::{Error, ErrorCode},
    run::{elsewhere, follow, log::Log},
    store::{
        RunRecord, RunStatus,
        relay::{Batch, Place, START},
    },
};

/// How long one look for news waits.
const LISTEN: Duration = Duration::from_millis(200);
/// How long to wait after a look for news that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a shadow without readers is kept.
const LINGER: Duration = Duration::from_secs(5);
/// How often shadows are looked after.
const TICK: Duration = Duration::from_millis(250);
/// How often a run's row is looked at while nothing is heard of the run.
const LOOK: Duration = Duration::from_millis(500);
/// How many rows are looked at at a time.
const ROWS: usize = 8;
/// How long readers at another gateway are believed to be there.
const ATTENDED: Duration = Duration::from_secs(5);
/// How long the end of a run may take to be heard after its row said so.
const LAG: Duration = Duration::from_secs(2);
/// How long to wait for the first event of a run whose row is there already.
const FIRST: Duration = Duration::from_secs(1);
/// How long the relay may take for one request while shadows are looked after.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a reader of an erased run may wait for the run's last event.
const FAREWELL: Duration = Duration::from_millis(500);

/// A run of another gateway.
pub(super) struct Shadow {
    run: Arc<Run>,
    place: Place,
    heard: Instant,
    looked: Instant,
    read: Instant,
    /// Since when its row has said that it is over.
    over: Option<Instant>,
    /// Whether a batch came without the one before it.
    gap: bool,
}

impl Fleet {
    /// A run of another gateway, as far as the relay has it. The relay is read once for all that
    /// ask at the same time.
    ///
    /// # Errors
    /// `store_unavailable` if the relay is away or lacks some of a run that goes on;
    /// `replay_expired` if it lacks some of one that has ended.
    pub(in crate::run) async fn shadow(&self, record: &RunRecord) -> Result<Arc<Run>, Error> {
        if let Some(shadow) = held(&self.shadows).get_mut(&record.id) {
            shadow.read = Instant::now();
            return Ok(shadow.run.clone());
        }
        self.loads.join(record.id, || self.load(record)).await
    }

    async fn load(&self, record: &RunRecord) -> Result<Arc<Run>, Error> {
        let goes_on = record.status == RunStatus::Running;
        // What a run says from now on does not get into the relay.
        if goes_on && self.state() == RelayState::NotWritable {
            return Err(elsewhere());
        }
        let run = Run::beside(record.clone(), Log::new(0, self.held.clone()));
        let mut place = START.to_owned();
        let deadline = Instant::now() + FIRST;
        loop {
            let page = self.relay.read(record.id, &place).await?;
            if page.is_empty() {
                if !goes_on || run.log.next_seq() > 0 {
                    break;
                }
                // The row is written some moments before the first event is mirrored.
                if Instant::now() >= deadline {
                    return Err(elsewhere());
                }
                sleep(FIRST / 20).await;
            }
            for (batch, behind) in page {
                // What is missing of a run that goes on is said again by its gateway.
                take(&run, &batch).map_err(|gap| if goes_on { elsewhere() } else { gap })?;
                place = behind;
            }
        }
        let now = Instant::now();
        let shadow = Shadow {
            run: run.clone(),
            place,
            heard: now,
            looked: now,
            read: now,
            over: None,
            gap: false,
        };
        let mut shadows = held(&self.shadows);
        Ok(shadows.entry(record.id).or_insert(shadow).run.clone())
    }

    /// Adds all that the relay has to a shadow, for what is heard may be a moment behind.
    pub(in crate::run) async fn catch_up(&self, run: &Run) -> Result<(), Error> {
        loop {
            let place = held(&self.shadows).get(&run.id).map(|shadow| shadow.place.clone());
            let Some(place) = place else { return Ok(()) };
            let page = self.relay.read(run.id, &place).await?;
            if page.is_empty() {
                return Ok(());
            }
            let mut shadows = held(&self.shadows);
            let Some(shadow) = shadows.get_mut(&run.id) else {
                return Ok(());
            };
            for (batch, behind) in page {
                if take(&shadow.run, &batch).is_err() {
                    shadow.run.log.give_up();
                    return Ok(());
                }
                shadow.place = behind;
            }
        }
    }

    /// Forgets a run of another gateway.
    pub(in crate::run) fn forget(&self, run: RunId) {
        held(&self.shadows).remove(&run);
    }

    /// Forgets runs of other gateways that were erased with their session. A reader gets the last
    /// event if it comes in a moment, or else one that says as much.
    pub(in crate::run) async fn erase(&self, runs: &[RunId]) {
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
}

/// Adds what was heard to a shadow's log, but for what it has already. Whoever calls this holds the
/// lock on the shadows, or nobody else knows the run yet.
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
    /// Hears what other gateways say, for ever.
    pub(super) async fn listen(&self, fleet: &Fleet) {
        let mut stops: Option<Place> = None;
        loop {
            let heard = self.hear_once(fleet, &mut stops).await;
            fleet.health.note(Direction::Read, heard.as_ref().err());
            self.meters.relay_is(i64::from(fleet.state() == RelayState::Up));
            if heard.is_err() {
                sleep(PAUSE).await;
            }
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
        if heard.renewed {
            // Another server, whose places begin anew. What was heard before is known by its
            // number.
            START.clone_into(place);
            for shadow in held(&fleet.shadows).values_mut() {
                START.clone_into(&mut shadow.place);
            }
            return Ok(());
        }
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
                // With a gap it is of no use: the run's gateway will say everything once more, or
                // has done so.
                shadow.gap |= take(&shadow.run, &batch).is_err();
            }
        }
        Ok(())
    }

    /// Looks after shadows, for ever; apart from hearing, which takes its time while the relay is
    /// away.
    pub(super) async fn look_after_shadows(&self, fleet: &Fleet) {
        let mut clock = interval(TICK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            self.look_after(fleet).await;
        }
    }

    /// Tells the others which of their runs are read here, looks at the rows of those that are
    /// silent, and forgets those that nobody reads.
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
            if std::mem::take(&mut shadow.gap) {
                START.clone_into(&mut shadow.place);
            }
            shadow.read.elapsed() < LINGER
        });
        let attend = async {
            if !read.is_empty() && fleet.is_up() {
                let _ = timeout(PATIENCE, fleet.relay.attend(&read, ATTENDED)).await;
            }
        };
        let rows = async {
            for some in silent.chunks(ROWS) {
                join_all(some.iter().map(|(run, over)| self.look_at_row(fleet, run, *over))).await;
            }
        };
        tokio::join!(attend, rows);
    }

    /// Ends a shadow whose row says that the run is over, if its end is not heard. `over`: since
    /// when the row has said so.
    async fn look_at_row(&self, fleet: &Fleet, run: &Run, over: Option<Instant>) {
        let Ok(record) = self.store.run(&run.principal, run.id).await else {
            return;
        };
        let Some(record) = record else {
            return run.log.give_up(); // it was erased
        };
        if record.status == RunStatus::Running {
            return;
        }
        let mut record = record;
        // Held until the end of this look, because the result counts as memory in use.
        let Ok(_stored) = self.load_result(&mut record).await else {
            return;
        };
        let late = over.is_some_and(|since| since.elapsed() >= LAG);
        let last = follow::last_words(&record);
        // Its gateway died: what was mirrored is all there is, and this is its end. Whoever is not
        // here now may know more, and is told when they come back.
        let died = record.status == RunStatus::Interrupted && last.is_none();
        if record.status == RunStatus::Interrupted && run.log.vacant_since().is_some() {
            return;
        }
        let caught_up = match fleet.is_up() {
            true => matches!(timeout(PATIENCE, fleet.catch_up(run)).await, Ok(Ok(()))),
            false => false,
        };
        // Without the relay nothing more will come.
        if !late && !(died && (caught_up || !fleet.is_up())) {
            if let Some(shadow) = held(&fleet.shadows).get_mut(&run.id) {
                shadow.over.get_or_insert_with(Instant::now);
            }
            return;
        }
        let known = run.log.next_seq();
        match last {
            _ if run.log.ended() => {}
            Some((seq, last)) if seq == known => run.log.append([last]),
            // Some of what it said is missing here, and how it ended is not.
            Some((_, last @ Event::Failed(_))) if !caught_up || record.status == RunStatus::Interrupted => {
                run.log.append([last]);
            }
            // It ended well, and some of it is not to be heard. Whoever comes back is told what
            // there is.
            Some(_) => run.log.give_up(),
            None if self.store.told(run.id, known).await.is_ok() => {
                let error = follow::kept_error(record.end.and_then(|end| end.error));
                run.log.append([Event::Failed(error)]);
            }
            None => {}
        }
    }
}

fn erased() -> Error {
    Error::new(ErrorCode::Cancelled, "The run's session was erased.")
}

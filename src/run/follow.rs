//! Coming back to a run: to read on, to look at it, to stop it. Nothing here ever starts one.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Interest, Reader, Run, Runs, StoredResult, elsewhere,
    fleet::{Fleet, FoundRow},
    log::out_of_sight,
};

use crate::{
    chat::{Done, Event, Principal, RunId, SessionId, Usage},
    error::{Error, ErrorCode},
    meters::Resume,
    store::{RunEnd, RunRecord, RunStatus},
};

/// How long to wait for a run that was told to stop.
pub(super) const STOP: Duration = Duration::from_secs(1);
/// How long to wait for an event that was told at another gateway.
const AHEAD: Duration = Duration::from_secs(1);
/// For how long after a run's end some of what it said may not be mirrored.
const LATELY: Duration = Duration::from_secs(10);

/// What there is to follow.
#[derive(Debug)]
pub enum Follow {
    /// Events.
    Events(Reader),
    /// Nothing after the one named: it was the last.
    Nothing,
}

/// A run as its owner sees it.
#[derive(Clone, Debug)]
pub struct Glance {
    /// The run.
    pub id: RunId,
    /// Its session.
    pub session_id: Option<SessionId>,
    /// The agent's name.
    pub agent: String,
    /// `provider/model`.
    pub model: String,
    /// How it stands.
    pub status: RunStatus,
    /// When it began, in milliseconds since 1970.
    pub created_at: i64,
    /// When it ended.
    pub ended_at: Option<i64>,
    /// The number of its last event so far; unknown where the process died.
    pub last_seq: Option<u64>,
    /// What it cost.
    pub usage: Option<Usage>,
    /// What went wrong.
    pub error: Option<Error>,
    /// Its result, or how far it got.
    pub done: Option<Box<Done>>,
    /// What the request brought.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// What has the result's texts: to be held as long as they are.
    pub source: Source,
}

/// Where a run's result is held.
#[derive(Clone, Debug)]
pub enum Source {
    /// In its log.
    Log(Arc<Run>),
    /// In memory, out of the store; `None` for a run without a result.
    Stored(Option<Arc<StoredResult>>),
}

impl Runs {
    /// Reads a run on, strictly after the event `after`; from its first event on with `None`.
    ///
    /// # Errors
    /// `not_found`, `replay_expired`, and `last_event_id_invalid` for an event that there has not been.
    pub async fn follow(&self, principal: &Principal, id: RunId, after: Option<u64>) -> Result<Follow, Error> {
        let mut how = Resume::Hit;
        let followed = self.find(principal, id, after, &mut how).await;
        if after.is_some() {
            self.meters.resumed(match &followed {
                Ok(_) => how,
                Err(error) => match error.code {
                    ErrorCode::ReplayExpired if how == Resume::Expired => how,
                    ErrorCode::ReplayExpired | ErrorCode::StoreUnavailable => Resume::Lost,
                    _ => Resume::Unknown,
                },
            });
        }
        followed
    }

    /// The same; `how` says what was found.
    async fn find(
        &self,
        principal: &Principal,
        id: RunId,
        after: Option<u64>,
        how: &mut Resume,
    ) -> Result<Follow, Error> {
        if let Some(run) = self.registry.get(principal, id) {
            if run.log.ended() {
                *how = Resume::Finished;
            }
            return follow_log(run, after);
        }
        let record = self.row(principal, id).await?.ok_or_else(Error::not_found)?;
        if self.goes_on_elsewhere(&record) {
            *how = Resume::Remote;
            let fleet = self.fleet.as_ref().ok_or_else(elsewhere)?;
            return follow_shadow(fleet.shadow(&record).await?, after).await;
        }
        *how = Resume::Finished;
        let end = self.ending(&record);
        if after.is_some() && after == end.last_seq {
            return Ok(Follow::Nothing);
        }
        if self.since(end.ended_at) >= self.limits.replay_window {
            *how = Resume::Expired;
            return Err(Error::new(
                ErrorCode::ReplayExpired,
                "This run's events are no longer kept; GET /runs/{id} has its result.",
            ));
        }
        if let Some(fleet) = &self.fleet {
            return self.follow_ended(fleet, record, after).await;
        }
        let mut record = RunRecord::clone(&record);
        let stored = self.load_result(&mut record).await?;
        let (seq, last) = match last_words(&record) {
            Some(known) => known,
            None => {
                let seq = after.map_or(0, |after| after + 1);
                self.store.told(id, seq).await?;
                (seq, Event::Failed(interrupted()))
            }
        };
        if after.is_some_and(|after| after > seq) {
            return Err(ahead());
        }
        Ok(Follow::Events(Reader::new(
            Run::kept(record, seq, last, stored),
            seq,
            Interest::Every,
        )))
    }

    /// A run's row. Beside other gateways it is read once for all that ask for it at the same time: a result is long.
    async fn row(&self, principal: &Principal, id: RunId) -> FoundRow {
        let read = async || Ok(self.store.run(principal, id).await?.map(Arc::new));
        match &self.fleet {
            Some(fleet) => fleet.rows.join((principal.clone(), id), read).await,
            None => read().await,
        }
    }

    /// Follows a run that ended at another gateway, or died with it. What its readers there were told last may not have
    /// been mirrored.
    async fn follow_ended(&self, fleet: &Fleet, record: Arc<RunRecord>, after: Option<u64>) -> Result<Follow, Error> {
        let shadow = fleet.shadow(&record).await?;
        if !shadow.log.concluded() {
            fleet.catch_up(&shadow).await?;
        }
        let mut record = RunRecord::clone(&record);
        let stored = match shadow.log.concluded() {
            true => None, // what it came to is in the log
            false => self.load_result(&mut record).await?,
        };
        // That it ended is known when that is written down; what it said before is mirrored some moments later.
        let just_now = record.end.as_ref().is_some_and(|end| self.since(end.ended_at) < LATELY);
        let lacking = || {
            let last = last_words(&record).is_some_and(|(seq, _)| seq > shadow.log.next_seq());
            just_now && last && !shadow.log.ended()
        };
        let deadline = Instant::now() + AHEAD;
        while lacking() && Instant::now() < deadline {
            tokio::time::sleep(AHEAD / 50).await;
            fleet.catch_up(&shadow).await?;
        }
        // A gateway that died may have told its own readers more than it could mirror.
        let died = record.status == RunStatus::Interrupted && last_words(&record).is_none();
        if shadow.log.concluded() && !(died && after > shadow.log.last_seq()) {
            return follow_shadow(shadow, after).await;
        }
        let (known, next) = (shadow.log.next_seq(), after.map_or(0, |after| after + 1));
        let (seq, last) = match last_words(&record) {
            Some((seq, last)) if seq == next || (seq == known && !shadow.log.ended()) => (seq, last),
            None if died => {
                let told = record.end.as_ref().and_then(|end| end.last_seq).unwrap_or(0);
                let seq = if next < known { known } else { next.max(told) };
                self.store.told(record.id, seq).await?;
                (seq, Event::Failed(interrupted()))
            }
            _ => {
                let behind = lacking();
                fleet.forget(record.id);
                return Err(if behind { out_of_sight() } else { not_all_there() });
            }
        };
        if seq == known && !shadow.log.ended() {
            shadow.log.append([last]);
            return follow_log(shadow, after);
        }
        Ok(Follow::Events(Reader::new(
            Run::kept(record, seq, last, stored),
            seq,
            Interest::Every,
        )))
    }

    /// How a run ended; as if just now, where nobody knows.
    fn ending(&self, record: &RunRecord) -> RunEnd {
        record.end.clone().unwrap_or_else(|| RunEnd {
            ended_at: self.store.now(),
            last_seq: None,
            usage: None,
            error: None,
            done: None,
            result_bytes: None,
            calls: Vec::new(),
        })
    }

    /// For how long a moment is past, by the store's clock.
    fn since(&self, moment: i64) -> Duration {
        let age = self.store.now().saturating_sub(moment);
        Duration::from_millis(u64::try_from(age).unwrap_or(0))
    }

    /// The run that holds a session now.
    ///
    /// # Errors
    /// The store's.
    pub async fn active_run(&self, principal: &Principal, session: &SessionId) -> Result<Option<RunId>, Error> {
        if !self.store.shared() {
            return Ok(self.registry.holder(principal, session)); // its row may be older than the gateway
        }
        Ok(self.store.running(principal, session).await?.into_iter().next())
    }

    /// A run, as it stands.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn glance(&self, principal: &Principal, id: RunId) -> Result<Glance, Error> {
        match self.registry.get(principal, id) {
            Some(run) => Ok(glance_at(&run)),
            None => {
                let mut record = self.store.run(principal, id).await?.ok_or_else(Error::not_found)?;
                let goes_on = self.goes_on_elsewhere(&record);
                let end = self.ending(&record);
                let stored = self.load_result(&mut record).await?;
                let done = record.end.as_mut().and_then(|end| end.done.take());
                let glance = glance_back(record, RunEnd { done, ..end }, stored);
                Ok(match goes_on {
                    true => Glance {
                        status: RunStatus::Running,
                        ended_at: None,
                        error: None,
                        ..glance
                    },
                    false => glance,
                })
            }
        }
    }

    /// Whether a run that is not here is under way at another gateway. In a store that nobody else has, a row that says so
    /// is one whose end could not be written down.
    fn goes_on_elsewhere(&self, record: &RunRecord) -> bool {
        record.status == RunStatus::Running && self.store.shared()
    }

    /// Stops a run, and waits a moment for it to have stopped.
    ///
    /// # Errors
    /// `not_found`, and `run_finished` for a run that ended otherwise.
    pub async fn cancel(&self, principal: &Principal, id: RunId) -> Result<Glance, Error> {
        if let Some(run) = self.registry.get(principal, id) {
            run.cancel.cancel();
            let _ = tokio::time::timeout(STOP, run.over.cancelled()).await; // it will stop; the answer need not wait
        }
        let mut glance = self.glance(principal, id).await?;
        if glance.status == RunStatus::Running && self.registry.any(id).is_none() {
            self.request_stop(id).await?;
            let deadline = Instant::now() + STOP;
            while glance.status == RunStatus::Running && Instant::now() < deadline {
                tokio::time::sleep(STOP / 20).await;
                glance = self.glance(principal, id).await?;
            }
        }
        match glance.status {
            RunStatus::Running | RunStatus::Cancelled => Ok(glance),
            _ => Err(Error {
                run_id: Some(id),
                ..Error::new(ErrorCode::RunFinished, "The run has ended already.")
            }),
        }
    }
}

/// Follows a run of another gateway. What was told there can be some moments ahead of what is known here.
async fn follow_shadow(run: Arc<Run>, after: Option<u64>) -> Result<Follow, Error> {
    let deadline = Instant::now() + AHEAD;
    while after > run.log.last_seq() && !run.log.ended() && Instant::now() < deadline {
        tokio::time::sleep(AHEAD / 20).await;
    }
    match after {
        Some(_) if after > run.log.last_seq() && run.log.ended() => Err(not_all_there()),
        Some(_) if after > run.log.last_seq() => Err(out_of_sight()),
        // Its log broke off, and what there is of it is known: nobody shall come back for nothing.
        after if after == run.log.last_seq() && run.log.ended() && !run.log.concluded() => Err(out_of_sight()),
        after => follow_log(run, after),
    }
}

/// The number and the last event of a run, where its row has them.
pub(super) fn last_words(record: &RunRecord) -> Option<(u64, Event)> {
    let end = record.end.as_ref()?;
    let last = match (record.status, &end.done, &end.error) {
        (RunStatus::Completed, Some(done), _) => Event::Done(done.clone()),
        (RunStatus::Failed | RunStatus::Cancelled | RunStatus::Interrupted, _, Some(error)) => {
            Event::Failed(kept_error(Some(error.clone())))
        }
        _ => return None,
    };
    Some((end.last_seq?, last))
}

fn follow_log(run: Arc<Run>, after: Option<u64>) -> Result<Follow, Error> {
    let (ended, last) = (run.log.concluded(), run.log.last_seq());
    match after {
        Some(_) if after > last => Err(ahead()),
        Some(_) if ended && after == run.log.last_seq() => Ok(Follow::Nothing),
        _ => Ok(Follow::Events(Reader::new(
            run,
            after.map_or(0, |after| after + 1),
            Interest::Every,
        ))),
    }
}

fn glance_at(run: &Arc<Run>) -> Glance {
    let ended = run.ended();
    let mut glance = Glance {
        id: run.id,
        session_id: run.session_id.clone(),
        agent: run.agent.clone(),
        model: run.model.clone(),
        status: run.status(),
        created_at: run.created_at,
        ended_at: ended.map(|ended| ended.at),
        last_seq: run.log.last_seq(),
        usage: ended.and_then(|ended| ended.usage.clone()),
        error: None,
        done: ended
            .and_then(|ended| ended.partial.as_deref())
            .map(|partial| Box::new(run.log.whole(partial))),
        metadata: run.metadata.clone(),
        source: Source::Log(run.clone()),
    };
    if let Some(done) = &glance.done {
        glance.model.clone_from(&done.answer.model);
    }
    run.log.last_event(|last| match last {
        Event::Done(done) => {
            glance.model.clone_from(&done.answer.model);
            glance.done = Some(done.clone());
        }
        Event::Failed(error) => glance.error = Some(error.clone()),
        _ => {}
    });
    glance
}

fn glance_back(record: RunRecord, end: RunEnd, stored: Option<Arc<StoredResult>>) -> Glance {
    let (status, error) = match record.status {
        RunStatus::Completed => (RunStatus::Completed, None),
        // A row that says it runs, without a run: how it ended could not be written down.
        RunStatus::Running | RunStatus::Interrupted => (
            RunStatus::Interrupted,
            Some(end.error.map_or_else(interrupted, |error| kept_error(Some(error)))),
        ),
        other => (other, Some(kept_error(end.error))),
    };
    Glance {
        id: record.id,
        session_id: Some(record.session_id),
        agent: record.agent,
        model: end.done.as_ref().map_or(record.model, |done| done.answer.model.clone()),
        status,
        created_at: record.created_at,
        ended_at: Some(end.ended_at),
        last_seq: end.last_seq,
        usage: end.usage,
        error,
        done: end.done,
        metadata: record.metadata,
        source: Source::Stored(stored),
    }
}

pub(super) fn kept_error(kept: Option<serde_json::Value>) -> Error {
    kept.and_then(|kept| serde_json::from_value(kept).ok())
        .unwrap_or_else(interrupted)
}

fn not_all_there() -> Error {
    let gap = "This run's events are not all there; GET /runs/{id} has its result.";
    Error::new(ErrorCode::ReplayExpired, gap)
}

pub(super) fn interrupted() -> Error {
    Error::new(
        ErrorCode::Interrupted,
        "The gateway stopped while this run went on; nothing was added to the session.",
    )
}

fn ahead() -> Error {
    Error::new(
        ErrorCode::LastEventIdInvalid,
        "This run has had no event of that number yet.",
    )
}

//! A run and its log. A run is a task that writes its log ([`start`]); a client is a reader of the log ([`log`]);
//! who runs, and what ends it, is in [`registry`] and `drive`; what was said before, and waiting for it, in `recall`; runs of
//! other gateways in `fleet`; what gateways ask of each other through the store in `erase`; files that runs make in `shelf`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    agent::Agents,
    chat::{Event, Principal, RunId, SessionId, Usage},
    error::{Error, ErrorCode},
    limit::{Common, MemoryBudget},
    meters::{Meters, RunsNow},
    provider::Providers,
    store::{RunRecord, RunStatus, Store, lease::Fence, relay::Relay},
    telemetry::trace::Tracer,
    tool::{ToolSettings, Tools},
};

mod drive;
mod entry;
mod erase;
mod fleet;
pub mod follow;
mod history;
pub mod log;
#[cfg(test)]
mod panics;
mod permit;
mod recall;
pub mod registry;
mod shelf;
pub mod start;
mod stored;

pub use fleet::RelayState;
pub use follow::Follow;
pub use log::{Found, Interest, Reader, View};
pub use permit::Permit;
pub use shelf::{ArtifactLimits, Artifacts, plain_name};
pub use start::Order;
pub use stored::StoredResult;

/// A run, as long as its log is held.
#[derive(Debug)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Whose it is.
    pub principal: Principal,
    /// Its session; `None` for a run that is not stored.
    pub session_id: Option<SessionId>,
    /// The agent's name.
    pub agent: String,
    /// `provider/model`.
    pub model: String,
    /// What the request brought.
    pub metadata: BTreeMap<String, String>,
    /// When it began, in milliseconds since 1970.
    pub created_at: i64,
    /// The same, on the clock that never jumps.
    pub began: Instant,
    /// What it did.
    pub log: log::Log,
    /// What the last reader's leaving means.
    pub on_disconnect: OnDisconnect,
    /// The key that started it, and its request's fingerprint.
    pub idempotency: Option<(String, String)>,
    /// Cancelled: somebody asked for it to stop.
    pub(crate) cancel: CancellationToken,
    /// Cancelled: the last event is in the log.
    pub(crate) over: CancellationToken,
    /// The id of the request that started it, for the log.
    request_id: Option<Arc<str>>,
    /// Lost once another gateway may have declared it dead.
    pub(crate) fence: Fence,
    /// How far other gateways have been told of it.
    mirrored: fleet::Mirrored,
    /// How it ended.
    ended: OnceLock<Ended>,
    /// The stored result that its log was made from.
    #[expect(dead_code, reason = "held for its memory, as long as the log is read")]
    stored: Option<Arc<StoredResult>>,
}

/// How a run ended, beside its last event.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The status, never `Running`.
    pub status: RunStatus,
    /// When, in milliseconds since 1970.
    pub at: i64,
    /// What it cost, as far as is known.
    pub usage: Option<Usage>,
    /// How far it got, where it did not complete.
    pub(crate) partial: Option<Box<log::Lean>>,
}

impl Run {
    /// How it stands.
    #[must_use]
    pub fn status(&self) -> RunStatus {
        self.ended.get().map_or(RunStatus::Running, |ended| ended.status)
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.get()
    }

    /// Whether it ended because another gateway may have declared it dead: then what is kept of it elsewhere counts.
    fn is_lost(&self) -> bool {
        self.status() == RunStatus::Interrupted && self.fence.is_lost()
    }

    /// Whether another gateway may have ended it by now.
    fn is_taken(&self) -> bool {
        matches!(self.status(), RunStatus::Running | RunStatus::Interrupted) && self.fence.is_expired()
    }

    /// The last thing that is said of a run. Only the first call counts.
    fn end(&self, ended: Ended, last: Event) {
        if self.ended.set(ended).is_ok() {
            self.log.append([last]);
            self.over.cancel();
        }
    }

    /// A run out of what a store kept: only its log's last event is to be read.
    fn kept(record: RunRecord, seq: u64, last: Event, stored: Option<Arc<StoredResult>>) -> Arc<Run> {
        let log = log::Log::new(seq, Arc::new(AtomicUsize::new(0)));
        log.append([last]);
        Self::of_stored(record, log, stored)
    }

    /// A run that is not of this gateway, with what is known of its log.
    fn beside(record: RunRecord, log: log::Log) -> Arc<Run> {
        Self::of_stored(record, log, None)
    }

    fn of_stored(record: RunRecord, log: log::Log, stored: Option<Arc<StoredResult>>) -> Arc<Run> {
        Arc::new(Run {
            id: record.id,
            principal: record.principal,
            session_id: Some(record.session_id),
            agent: record.agent,
            model: record.model,
            metadata: record.metadata,
            created_at: record.created_at,
            began: Instant::now(),
            log,
            on_disconnect: OnDisconnect::Continue,
            idempotency: record.idempotency,
            cancel: CancellationToken::new(),
            over: CancellationToken::new(),
            fence: Fence::default(),
            mirrored: fleet::Mirrored::default(),
            request_id: None,
            ended: OnceLock::new(),
            stored,
        })
    }
}

/// What the last reader's leaving means for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisconnect {
    /// It is cancelled.
    Cancel,
    /// It is cancelled, unless somebody reads again within this time.
    Grace(Duration),
    /// Nothing.
    Continue,
}

/// What to do while another run holds the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBusy {
    /// Nothing: there is no run.
    Reject,
    /// Wait, in order of arrival.
    Queue,
    /// Stop the other one, then begin.
    Interrupt,
}

/// What happens to the answer of a cancelled run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCancel {
    /// What was said is added to the session, marked.
    Keep,
    /// The session stays as it was.
    Discard,
}

/// The limits that runs live within.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest a run may take.
    pub deadline: Duration,
    /// How long a log can be read after its run's end.
    pub replay_window: Duration,
    /// The most that a model may say in a run, in bytes.
    pub max_output: usize,
    /// The most that all logs together may hold, in bytes.
    pub memory_limit: usize,
    /// The most runs at a time; 0: no limit.
    pub max_runs: usize,
    /// The most of a session's history that a model is sent, in tokens.
    pub max_history_tokens: u64,
    /// The same in bytes as stored, images included.
    pub max_history_bytes: usize,
    /// The most that requests and what is read for them may take together, in bytes.
    pub memory: usize,
    /// What happens to a cancelled answer.
    pub on_cancel: OnCancel,
    /// How long a run may wait for its session.
    pub queue_patience: Duration,
}

/// The other gateways of a fleet: through what they are told of runs, and what is counted together with them.
#[derive(Clone, Default)]
pub struct Others {
    /// Where logs are mirrored.
    pub relay: Option<Arc<dyn Relay>>,
    /// Where the runs that callers have are counted.
    pub common: Option<Arc<Common>>,
}

/// Everything that runs need: one of it, shared.
pub struct Runs {
    /// Who can be asked.
    pub agents: Agents,
    /// Who answers.
    pub providers: Providers,
    /// What agents can do beside talking.
    pub tools: Arc<Tools>,
    /// What is kept.
    pub store: Arc<dyn Store>,
    /// Where the files that runs make are kept.
    pub artifacts: Arc<Artifacts>,
    /// The limits.
    pub limits: Limits,
    /// The memory that requests, and what is read for them, may take together.
    pub memory: MemoryBudget,
    /// Where it is counted what happens.
    pub meters: Arc<Meters>,
    /// Who is told what was done for whom.
    pub tracer: Tracer,
    /// Who runs.
    pub(crate) registry: Arc<registry::Registry>,
    /// The stored results that are being read.
    results: Arc<stored::StoredResults>,
    /// The other gateways, if there are any.
    fleet: Option<Arc<fleet::Fleet>>,
    /// What is counted with them.
    common: Option<Arc<Common>>,
    /// Rung when there may be notices from other gateways in the store.
    notices: Arc<Notify>,
    /// The tasks of all runs.
    pub(crate) tasks: TaskTracker,
    /// Cancelled: the gateway was told to stop.
    leaving: CancellationToken,
    /// Cancelled: what still runs is to be interrupted.
    pub(crate) interrupt: CancellationToken,
}

impl Runs {
    /// The room, empty.
    #[must_use]
    pub fn new(
        (agents, providers, tools): (Agents, Providers, Arc<Tools>),
        store: Arc<dyn Store>,
        artifacts: Artifacts,
        others: Others,
        limits: Limits,
        (meters, tracer): (Arc<Meters>, Tracer),
    ) -> Arc<Self> {
        let registry = Arc::new(registry::Registry::beside(&*store, meters.clone()));
        Arc::new(Self {
            fleet: others
                .relay
                .map(|relay| Arc::new(fleet::Fleet::new(relay, registry.held.clone()))),
            common: others.common,
            results: Arc::default(),
            notices: Arc::new(Notify::new()),
            registry,
            agents,
            providers,
            tools,
            store,
            artifacts: Arc::new(artifacts),
            limits,
            memory: MemoryBudget::new(limits.memory, meters.clone()),
            meters,
            tracer,
            tasks: TaskTracker::new(),
            leaving: CancellationToken::new(),
            interrupt: CancellationToken::new(),
        })
    }

    /// The same room with other agents, providers, tools and limits, for runs that start from now
    /// on. A run holds the room that it started in, and so what it started with.
    #[must_use]
    pub fn renewed(&self, (agents, providers, tools): (Agents, Providers, Arc<Tools>), limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            agents,
            providers,
            tools,
            limits,
            store: self.store.clone(),
            artifacts: self.artifacts.clone(),
            meters: self.meters.clone(),
            tracer: self.tracer.clone(),
            registry: self.registry.clone(),
            fleet: self.fleet.clone(),
            common: self.common.clone(),
            notices: self.notices.clone(),
            memory: self.memory.clone(),
            results: self.results.clone(),
            tasks: self.tasks.clone(),
            leaving: self.leaving.clone(),
            interrupt: self.interrupt.clone(),
        })
    }

    /// The same room without agents, providers and tools, for jobs that live as long as the
    /// gateway: whatever holds tools keeps their servers from being stopped.
    ///
    /// # Errors
    /// No tools can be made.
    pub fn keeper(&self) -> Result<Arc<Self>, String> {
        let agents = Agents {
            all: BTreeMap::new(),
            default: self.agents.default.clone(),
        };
        let tools = Arc::new(Tools::new(ToolSettings::default())?);
        Ok(self.renewed((agents, Providers::default(), tools), self.limits))
    }

    /// Has the meters say how runs stand.
    pub fn take_stock(&self) {
        let (running, kept) = self.registry.count();
        self.meters.runs_now(RunsNow {
            running,
            kept,
            log_bytes: self.registry.held.load(Ordering::Relaxed),
            log_limit: self.limits.memory_limit,
        });
        if let Some(fleet) = &self.fleet {
            self.meters.relay_lag(fleet.lag());
        }
        if let Some(lost) = self.tracer.lost() {
            self.meters.spans_lost(lost);
        }
    }

    /// The state of the relay, as far as is known; `None` without one.
    #[must_use]
    pub fn relayed(&self) -> Option<RelayState> {
        self.fleet.as_ref().map(|fleet| fleet.state())
    }

    /// Whether the files can be kept that agents' tools may make. Without tools there are none.
    ///
    /// # Errors
    /// They cannot.
    pub async fn files_ready(&self) -> Result<(), Error> {
        match self.agents.all.values().any(|agent| !agent.tools.is_empty()) {
            true => self.artifacts.blobs.ready().await,
            false => Ok(()),
        }
    }

    /// Whether new runs are refused because the gateway goes down.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.registry.closed()
    }

    /// Whether there is room for one more run: asked before anything is read that would be for nothing.
    ///
    /// # Errors
    /// `shutting_down`, `overloaded`.
    pub fn open(&self) -> Result<(), Error> {
        self.registry.open(&self.limits)
    }

    /// Whether the gateway was told to stop. It may go on taking runs for a while, until those who
    /// send it requests have noticed.
    #[must_use]
    pub fn leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Says from now on that the gateway was told to stop.
    pub fn leave(&self) {
        self.leaving.cancel();
    }

    /// Refuses new runs from now on.
    pub fn begin_drain(&self) {
        self.registry.close();
    }

    /// Lets runs finish: none begins any more, and those that have not ended when `patience` has, or somebody is in a hurry,
    /// are interrupted.
    pub async fn finish(&self, patience: Duration) {
        self.begin_drain();
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => {}
            () = tokio::time::sleep(patience) => self.hurry(),
            () = self.interrupt.cancelled() => {}
        }
    }

    /// Interrupts what still runs, and has nothing be waited for that may be long in coming.
    pub fn hurry(&self) {
        self.interrupt.cancel();
        self.store.hurry();
    }

    /// Returns when the last run has ended, and said so.
    pub async fn ended(&self) {
        self.tasks.wait().await;
        self.tell_farewell().await;
    }

    /// Drops logs whose replay window has passed, for ever.
    pub async fn sweep(&self) {
        self.registry.sweep(self.limits.replay_window).await;
    }
}

/// A run goes on in another process, and so does its log: until logs are shared, nobody here can read or stop it.
fn elsewhere() -> Error {
    let elsewhere = "This run goes on at another gateway; what it came to can be read here when it has ended.";
    Error::new(ErrorCode::StoreUnavailable, elsewhere).retry_after(Duration::from_secs(1))
}

/// What a run that the gateway's going down ended is told.
fn shutting_down() -> Error {
    Error::new(
        ErrorCode::ShuttingDown,
        "The gateway is going down; ask again in a moment.",
    )
    .retry_after(Duration::from_secs(2))
}

//! Runs as they are kept: the row that says how a run went, and its result.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::Commit;
use crate::{
    chat::{Done, ModelCall, Principal, RunId, SessionId, Usage},
    error::Error,
};

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// It goes on.
    Running,
    /// It is complete, and its turn is committed.
    Completed,
    /// It broke.
    Failed,
    /// It was stopped.
    Cancelled,
    /// The process died under it, or was told to stop.
    Interrupted,
}

impl RunStatus {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RunStatus::Running => "running",
            RunStatus::Completed => "completed",
            RunStatus::Failed => "failed",
            RunStatus::Cancelled => "cancelled",
            RunStatus::Interrupted => "interrupted",
        }
    }

    /// The status of that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        use RunStatus::*;
        [Running, Completed, Failed, Cancelled, Interrupted]
            .into_iter()
            .find(|s| s.as_str() == word)
    }
}

/// A run's row. Times are milliseconds since 1970, UTC.
#[derive(Clone, Debug, PartialEq)]
pub struct RunRecord {
    /// The run.
    pub id: RunId,
    /// Whose it is.
    pub principal: Principal,
    /// Its session.
    pub session_id: SessionId,
    /// The agent's name.
    pub agent: String,
    /// `provider/model`.
    pub model: String,
    /// What the request brought.
    pub metadata: BTreeMap<String, String>,
    /// When it began.
    pub created_at: i64,
    /// The key that the request was given, and a fingerprint of its body: SHA-256, hex.
    pub idempotency: Option<(String, String)>,
    /// How it stands.
    pub status: RunStatus,
    /// How it ended, once it has.
    pub end: Option<RunEnd>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// When.
    pub ended_at: i64,
    /// The number of its last event; unknown where the process died.
    pub last_seq: Option<u64>,
    /// What it cost; unknown where the process died.
    pub usage: Option<Usage>,
    /// What went wrong, as JSON ([`Error`]).
    pub error: Option<serde_json::Value>,
    /// Its result: complete for a completed run, as far as it got for another. Written; read with [`RunStore::result`].
    pub done: Option<Box<Done>>,
    /// The size of its result as stored, in bytes. Read with the run; not written.
    pub result_bytes: Option<u64>,
    /// What each model call cost. Written; not read back with the run.
    pub calls: Vec<ModelCall>,
}

/// For how long an idempotency key means the run that it started, in milliseconds.
pub const KEY_LIFE: i64 = 24 * 60 * 60 * 1000;

/// How a run asks for its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Only if nobody is there.
    Alone,
    /// Behind whoever is there, in the order in which they asked the store.
    Line,
    /// The same, but before all that wait as [`Entry::Line`].
    Front,
}

/// The session that a new run asks for, and what must be true of it. The store checks it in the step that writes the
/// run's row, because another request may create the session at any moment before that.
#[derive(Clone, Copy, Debug)]
pub struct SessionClaim<'a> {
    /// The user that the session must belong to; `None`: any. A new session without one belongs to [`NO_USER`].
    pub user_id: Option<&'a str>,
    /// The agent that the session must have; `None`: any. A new session gets the run's agent.
    pub agent: Option<&'a str>,
    /// Whether the session is created if there is none.
    pub may_create: bool,
    /// How the run asks for it.
    pub entry: Entry,
}

/// The user of a session that was created without one.
pub const NO_USER: &str = "anonymous";

impl<'a> SessionClaim<'a> {
    /// A claim to a session of this user, which is created if there is none.
    #[must_use]
    pub fn new(user_id: &'a str, entry: Entry) -> Self {
        Self {
            user_id: Some(user_id),
            agent: None,
            may_create: true,
            entry,
        }
    }

    /// The reason why the session, given by its user and its agent, cannot be used; `None` if it can.
    #[must_use]
    pub fn refusal(&self, session: Option<(&str, &str)>) -> Option<Begun> {
        let Some((user_id, agent)) = session else {
            return (!self.may_create).then_some(Begun::NotFound);
        };
        if self.user_id.is_some_and(|claimed| claimed != user_id) {
            return Some(Begun::NotFound);
        }
        let other_agent = self.agent.is_some_and(|claimed| claimed != agent);
        other_agent.then(|| Begun::OtherAgent(agent.to_owned()))
    }
}

/// What became of a run that asked for its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Its row is written and it holds the session, which has this version.
    At(i64),
    /// Nothing is written: this run holds the session, or is the first of those that wait for it.
    Busy(RunId),
    /// Its row is written, and it waits in line ([`RunStore::take`]).
    Waiting,
    /// Nothing is written: its idempotency key means this run.
    Known(RunId),
    /// Nothing is written: there is no such session for this user.
    NotFound,
    /// Nothing is written: the session has this agent, which is not the claimed one.
    OtherAgent(String),
}

/// Keeps runs.
///
/// A store that several gateways share sees to it that a session is held by one run at a time, and that an idempotency
/// key means one run: a run's row holds them from `begin` (or `take`) until it is no longer `running`. A store that
/// belongs to one process need not, because there the register of runs has seen to both before it asks the store. Every
/// store checks the claim.
pub trait RunStore: Send + Sync {
    /// Writes a new run's row, and its session's if there is none yet. Survives the process, need not survive a power
    /// failure: it costs no wait for the disk.
    fn begin<'a>(&'a self, run: &'a RunRecord, claim: SessionClaim<'a>) -> BoxFuture<'a, Result<Begun, Error>>;

    /// A run that waits in line asks whether it is its turn. It is if nobody holds the session and nobody who is still
    /// running waits before it: in the order in which they asked, those of [`Entry::Front`] first; the run holds the session
    /// then, and gets its version.
    ///
    /// Fails with `session_busy` if the run does not wait any more: its session was erased, or it was declared dead.
    fn take<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
        run: RunId,
    ) -> BoxFuture<'a, Result<Option<i64>, Error>>;

    /// The run that holds the session for which this one waits, if it asked for it earlier. In a store of one process the
    /// register of runs knows that.
    fn holder_before(&self, run: RunId) -> BoxFuture<'_, Result<Option<RunId>, Error>> {
        let _ = run;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// The session's runs that are running, the one that holds it first.
    fn running<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
    ) -> BoxFuture<'a, Result<Vec<RunId>, Error>>;

    /// Writes how a run ended and, with `commit`, its turn, in one transaction. With `commit` it returns only when that
    /// is on the disk.
    ///
    /// Fails with `session_busy` if the session is another than the one that was loaded, or if the run's row is not
    /// `running` any more: it is erased, or another gateway has declared the run dead. Nothing is written then.
    fn end<'a>(
        &'a self,
        run: RunId,
        status: RunStatus,
        end: &'a RunEnd,
        commit: Option<Commit<'a>>,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// The result of a run of this principal's, if it has one.
    fn result<'a>(&'a self, principal: &'a Principal, id: RunId) -> BoxFuture<'a, Result<Option<Box<Done>>, Error>>;

    /// A run of this principal's. Without its result, which is large: there is its size.
    fn run<'a>(&'a self, principal: &'a Principal, id: RunId) -> BoxFuture<'a, Result<Option<RunRecord>, Error>>;

    /// The newest run that was started with this key since `since`, and is running or completed.
    fn run_by_key<'a>(
        &'a self,
        principal: &'a Principal,
        key: &'a str,
        since: i64,
    ) -> BoxFuture<'a, Result<Option<RunRecord>, Error>>;

    /// Notes which number the last event of an interrupted run was told under.
    fn told<'a>(&'a self, run: RunId, last_seq: u64) -> BoxFuture<'a, Result<(), Error>>;
}

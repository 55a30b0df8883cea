//! The records of files that runs made. Their bytes are elsewhere ([`super::blobs`]), and nothing can write both at
//! once, so the record goes first and leaves last: whatever is cut off in between, a record knows of the bytes.
//!
//! A record is *pending* until its bytes are there, then *ready*, and *due* once its time is over; only a ready one is
//! shown. Erasing a session makes its records due in the same transaction; a sweep erases the bytes of what is due, and
//! then the records.

use futures_util::future::BoxFuture;

use crate::{
    chat::{Artifact, ArtifactId, Principal, RunId, SessionId},
    error::Error,
};

/// A file's record. Times are milliseconds since 1970, UTC.
#[derive(Clone, Debug, PartialEq)]
pub struct ArtifactRecord {
    /// What clients are told of it.
    pub artifact: Artifact,
    /// Whose it is.
    pub principal: Principal,
    /// The session that it is kept with; `None` for one of a run that is not stored.
    pub session_id: Option<SessionId>,
    /// The run that made it.
    pub run_id: RunId,
    /// When it was made.
    pub created_at: i64,
}

/// Which records are due, page by page: the last one that has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// When its time was over.
    pub erase_after: i64,
    /// Which it is.
    pub id: ArtifactId,
}

/// Keeps the records of files.
pub trait ArtifactStore: Send + Sync {
    /// Writes a pending record, which is due after `erase_after` unless it gets ready before. Says `false`, and writes
    /// nothing, if the run is of a session and was erased with it.
    fn announce<'a>(&'a self, record: &'a ArtifactRecord, erase_after: i64) -> BoxFuture<'a, Result<bool, Error>>;

    /// Makes a pending record ready: its bytes are there. It is kept until `erase_after`, or else with its session. Says
    /// `false` if it is not pending any more, or its session was erased meanwhile.
    fn keep<'a>(&'a self, record: &'a ArtifactRecord, erase_after: Option<i64>) -> BoxFuture<'a, Result<bool, Error>>;

    /// Makes ready records due after `erase_after`, if they are of a run that is not stored and were due later.
    fn shorten<'a>(&'a self, ids: &'a [ArtifactId], erase_after: i64) -> BoxFuture<'a, Result<(), Error>>;

    /// A ready record of this principal's, whose time is not over.
    fn artifact<'a>(
        &'a self,
        principal: &'a Principal,
        id: ArtifactId,
    ) -> BoxFuture<'a, Result<Option<ArtifactRecord>, Error>>;

    /// At most `limit` records whose time was over at `now`, in their order, after the one named.
    fn due(&self, now: i64, after: Option<Due>, limit: u32) -> BoxFuture<'_, Result<Vec<Due>, Error>>;

    /// Erases records whose time is over, because their bytes are gone.
    fn forget<'a>(&'a self, gone: &'a [Due]) -> BoxFuture<'a, Result<(), Error>>;
}

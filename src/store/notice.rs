//! Notices between the gateways of one store: a run that is to stop, and a session that was erased.
//!
//! Notices go through the store, because the relay may be away. A gateway reads its notices a few
//! times per second.

use std::time::Duration;

use futures_util::future::{BoxFuture, ready};

use crate::{
    chat::{Principal, RunId, SessionId},
    error::Error,
};

/// The party that has to forget the runs of an erased session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A gateway: logs, idempotency keys, copies of other gateways' logs.
    Gateway,
    /// The relay. Any gateway may erase there, after all gateways have forgotten the runs.
    Relay,
}

/// A session that was erased from the store, and not yet everywhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// The number of this notice.
    pub id: i64,
    /// The party that has to forget the runs.
    pub holder: Holder,
    /// All runs that the session had.
    pub runs: Vec<RunId>,
    /// The time since the session was erased.
    pub age: Duration,
}

/// The notices for one gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Runs of this gateway that are to stop. A run is listed until it has ended.
    pub stops: Vec<RunId>,
    /// Erasures for this gateway, and those for the relay that are due.
    pub erasures: Vec<Erasure>,
    /// The number of times that this gateway had been given up, or may have been. It may have missed
    /// notices then.
    pub given_up: u64,
}

/// Notices. A store that belongs to one process has none.
pub trait NoticeStore: Send + Sync {
    /// Asks the gateway of a run to stop it.
    fn request_stop(&self, run: RunId) -> BoxFuture<'_, Result<(), Error>> {
        let _ = run;
        Box::pin(ready(Ok(())))
    }

    /// The notices for this gateway, at most some hundred erasures at a time.
    fn notices(&self) -> BoxFuture<'_, Result<Notices, Error>> {
        Box::pin(ready(Ok(Notices::default())))
    }

    /// The erasures of a session that are not settled; gateways that are known to be dead do not
    /// count.
    fn unsettled<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
    ) -> BoxFuture<'a, Result<Vec<Erasure>, Error>> {
        let _ = (principal, session);
        Box::pin(ready(Ok(Vec::new())))
    }

    /// Removes notices that were carried out.
    fn settle<'a>(&'a self, erasures: &'a [i64]) -> BoxFuture<'a, Result<(), Error>> {
        let _ = erasures;
        Box::pin(ready(Ok(())))
    }
}

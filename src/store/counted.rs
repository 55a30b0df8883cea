//! A store that counts: what fails, and how long a run's end takes to be written. It keeps nothing itself.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{
    ArtifactRecord, ArtifactStore, Begun, Commit, MessagePage, NoticeStore, ReadFrom, ReadLimit, RunEnd, RunRecord,
    RunStatus, RunStore, Session, SessionClaim, SessionPage, SessionStore, Store, TicketRecord, TicketStore, TicketUse,
    artifact::Due,
    lease::Fence,
    notice::{Erasure, Notices},
};
use crate::{
    chat::{ArtifactId, Done, Principal, RunId, SessionId},
    error::{Error, ErrorCode},
    meters::Meters,
};

/// What is behind an error of a store's, in a word for the meters.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct Fault {
    pub(super) kind: &'static str,
    pub(super) text: String,
}

/// The store.
pub(super) struct Counted {
    pub(super) within: Arc<dyn Store>,
    pub(super) meters: Arc<Meters>,
}

impl Counted {
    fn note<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &outcome
            && error.code == ErrorCode::StoreUnavailable
        {
            let fault = error
                .source
                .as_deref()
                .and_then(|source| source.downcast_ref::<Fault>());
            // Without a cause it is our own patience that ended.
            self.meters.store_failed(fault.map_or("timeout", |fault| fault.kind));
        }
        outcome
    }
}

macro_rules! counted {
    ($($name:ident($($told:ident: $kind:ty),*) -> $answer:ty;)*) => {$(
        fn $name<'a>(&'a self, $($told: $kind),*) -> BoxFuture<'a, Result<$answer, Error>> {
            Box::pin(async move { self.note(self.within.$name($($told),*).await) })
        }
    )*};
}

impl Store for Counted {
    fn shared(&self) -> bool {
        self.within.shared()
    }

    fn now(&self) -> i64 {
        self.within.now()
    }

    fn hurry(&self) {
        self.within.hurry();
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.within.close()
    }

    counted! {
        ready() -> ();
        fence() -> Fence;
    }
}

impl SessionStore for Counted {
    counted! {
        create(principal: &'a Principal, session: Session) -> Session;
        session(principal: &'a Principal, id: &'a SessionId) -> Option<Session>;
        messages(principal: &'a Principal, id: &'a SessionId, from: ReadFrom, limit: ReadLimit) -> Option<MessagePage>;
        list(principal: &'a Principal, user_id: Option<&'a str>, after: Option<(i64, SessionId)>, limit: u32) -> SessionPage;
        delete(principal: &'a Principal, id: &'a SessionId) -> ();
        expire(before: i64) -> u64;
    }
}

impl RunStore for Counted {
    counted! {
        begin(run: &'a RunRecord, claim: SessionClaim<'a>) -> Begun;
        take(principal: &'a Principal, session: &'a SessionId, run: RunId) -> Option<i64>;
        running(principal: &'a Principal, session: &'a SessionId) -> Vec<RunId>;
        holder_before(run: RunId) -> Option<RunId>;
        result(principal: &'a Principal, id: RunId) -> Option<Box<Done>>;
        run(principal: &'a Principal, id: RunId) -> Option<RunRecord>;
        run_by_key(principal: &'a Principal, key: &'a str, since: i64) -> Option<RunRecord>;
        told(run: RunId, last_seq: u64) -> ();
    }

    fn end<'a>(
        &'a self,
        run: RunId,
        status: RunStatus,
        end: &'a RunEnd,
        commit: Option<Commit<'a>>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let began = Instant::now();
            let outcome = self.within.end(run, status, end, commit).await;
            self.meters.committed(began.elapsed());
            self.note(outcome)
        })
    }
}

impl ArtifactStore for Counted {
    counted! {
        announce(record: &'a ArtifactRecord, erase_after: i64) -> bool;
        keep(record: &'a ArtifactRecord, erase_after: Option<i64>) -> bool;
        shorten(ids: &'a [ArtifactId], erase_after: i64) -> ();
        artifact(principal: &'a Principal, id: ArtifactId) -> Option<ArtifactRecord>;
        due(now: i64, after: Option<Due>, limit: u32) -> Vec<Due>;
        forget(gone: &'a [Due]) -> ();
    }
}

impl NoticeStore for Counted {
    counted! {
        notices() -> Notices;
        unsettled(principal: &'a Principal, session: &'a SessionId) -> Vec<Erasure>;
        settle(erasures: &'a [i64]) -> ();
    }

    fn request_stop(&self, run: RunId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.note(self.within.request_stop(run).await) })
    }
}

impl TicketStore for Counted {
    counted! {
        issue(ticket: &'a TicketRecord, most: u32) -> bool;
        ticket(id: &'a str) -> Option<TicketRecord>;
        claim(id: &'a str, used: &'a TicketUse, erase_after: i64) -> bool;
        tie(id: &'a str, run: RunId) -> ();
        give_back(id: &'a str) -> ();
        sweep_tickets(now: i64) -> u64;
    }
}

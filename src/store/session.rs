//! Sessions as they are kept.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    chat::{Message, Principal, RunId, SessionId},
    error::Error,
};

/// A session, without its messages. Times are milliseconds since 1970, UTC.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Its id, unique for its principal.
    pub id: SessionId,
    /// Whom the principal acts for.
    pub user_id: String,
    /// The agent that it was made with.
    pub agent: String,
    /// What it was made with.
    pub metadata: BTreeMap<String, String>,
    /// How many messages it has.
    pub message_count: u64,
    /// Changes with every turn, and is never the same again, not even for another session of the same id.
    pub version: i64,
    /// When it was made.
    pub created_at: i64,
    /// When it was last written to.
    pub updated_at: i64,
}

/// A message as kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredMessage {
    /// What was said.
    pub message: Message,
    /// By which run it was added.
    pub run_id: RunId,
    /// Whether its turn was complete.
    pub status: MessageStatus,
    /// When, in milliseconds since 1970.
    pub created_at: i64,
}

/// Whether a message's turn was complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageStatus {
    /// It was.
    Complete,
    /// It was cancelled; what had been said is kept.
    Cancelled,
}

/// A turn to be added.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    /// Whose session.
    pub principal: &'a Principal,
    /// Which.
    pub session: &'a SessionId,
    /// The version that was loaded; another one now is a conflict.
    pub after_version: i64,
    /// What is added.
    pub messages: &'a [Message],
    /// As what.
    pub status: MessageStatus,
}

/// A page of sessions, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<Session>,
    /// Where the next page begins: after this session's `(created_at, id)`.
    pub next: Option<(i64, SessionId)>,
}

impl SessionPage {
    /// A page of `limit` from sessions that were asked for one more than that.
    #[must_use]
    pub fn cut(mut sessions: Vec<Session>, limit: u32) -> Self {
        let more = sessions.len() > limit as usize;
        sessions.truncate(limit as usize);
        let next = sessions
            .last()
            .filter(|_| more)
            .map(|last| (last.created_at, last.id.clone()));
        Self { sessions, next }
    }
}

/// Where a read of a session's messages begins. They are numbered from 0, the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// At the newest message, backwards.
    Newest,
    /// At the one before this number, backwards.
    Before(u64),
    /// At this number, forwards.
    Number(u64),
}

/// The most that one read returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimit {
    /// In messages.
    pub rows: u32,
    /// In bytes as stored.
    pub bytes: u64,
}

/// A session and some of its messages, as of one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct MessagePage {
    /// The session.
    pub session: Session,
    /// Messages that follow each other, oldest first.
    pub messages: Vec<StoredMessage>,
    /// The number of the first of them; without any, of the message after the place where the read began backwards, or at
    /// it forwards.
    pub first: u64,
    /// Their size as stored.
    pub bytes: u64,
    /// The size of the next message in the direction of the read, for which there was no room; `None` at the end.
    pub next_bytes: Option<u64>,
}

/// Keeps sessions.
pub trait SessionStore: Send + Sync {
    /// Makes a session; returns the one that is there if there is one.
    fn create<'a>(&'a self, principal: &'a Principal, session: Session) -> BoxFuture<'a, Result<Session, Error>>;

    /// A session.
    fn session<'a>(
        &'a self,
        principal: &'a Principal,
        id: &'a SessionId,
    ) -> BoxFuture<'a, Result<Option<Session>, Error>>;

    /// A session and those of its messages that fit into `limit`. Their sizes are looked at first: what does not fit is not
    /// read.
    fn messages<'a>(
        &'a self,
        principal: &'a Principal,
        id: &'a SessionId,
        from: ReadFrom,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Option<MessagePage>, Error>>;

    /// At most `limit` sessions, newest first, `user_id`'s only if given, after the one named.
    fn list<'a>(
        &'a self,
        principal: &'a Principal,
        user_id: Option<&'a str>,
        after: Option<(i64, SessionId)>,
        limit: u32,
    ) -> BoxFuture<'a, Result<SessionPage, Error>>;

    /// Erases a session, its messages and its runs. It need not be there.
    fn delete<'a>(&'a self, principal: &'a Principal, id: &'a SessionId) -> BoxFuture<'a, Result<(), Error>>;

    /// Erases sessions that were last written to before `before`; returns how many.
    fn expire(&self, before: i64) -> BoxFuture<'_, Result<u64, Error>>;
}

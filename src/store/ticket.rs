//! Tickets as they are kept. What opens a door is known only to whoever has it: of a ticket its SHA-256 is kept.

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    chat::{ArtifactId, Principal, RunId, SessionId},
    error::Error,
};

/// A ticket's row. Times are milliseconds since 1970, UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketRecord {
    /// The SHA-256 of the ticket, in hexadecimal.
    pub id: String,
    /// Whose it is.
    pub principal: Principal,
    /// With what its owner was known when it was made: what it is worth goes with that.
    pub credential: String,
    /// What it is bound to.
    pub binding: TicketBinding,
    /// Until when it can be used first.
    pub expires_at: i64,
    /// What it was used for.
    pub used: Option<TicketUse>,
}

/// What a ticket is bound to: a request with the ticket may ask for nothing else. The JSON form is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TicketBinding {
    /// The session that runs belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// The user that the session belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The agent that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// The run that is followed, or that made the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// The file that is downloaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_id: Option<ArtifactId>,
}

/// What a ticket was used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketUse {
    /// When.
    pub at: i64,
    /// A fingerprint of the request.
    pub request: String,
    /// The run; `None` as long as it is not under way.
    pub run: Option<RunId>,
}

/// Keeps tickets.
pub trait TicketStore: Send + Sync {
    /// Keeps a new one, unless its principal has `most` already that are not used and not expired; says whether it did.
    fn issue<'a>(&'a self, ticket: &'a TicketRecord, most: u32) -> BoxFuture<'a, Result<bool, Error>>;

    /// The ticket of that id.
    fn ticket<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<TicketRecord>, Error>>;

    /// Uses a ticket for the first time, at `used.at`: from then on it is kept until `erase_after`. Says `false`, and
    /// changes nothing, if it was used before, or has expired. Of two who come at once one is the first.
    fn claim<'a>(&'a self, id: &'a str, used: &'a TicketUse, erase_after: i64) -> BoxFuture<'a, Result<bool, Error>>;

    /// Notes which run a claimed ticket is for.
    fn tie<'a>(&'a self, id: &'a str, run: RunId) -> BoxFuture<'a, Result<(), Error>>;

    /// Makes a claimed ticket that is for no run yet as it was before.
    fn give_back<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// Erases the tickets whose time was over at `now`.
    fn sweep_tickets(&self, now: i64) -> BoxFuture<'_, Result<u64, Error>>;
}

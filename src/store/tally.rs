//! What gateways of one fleet count together: how often a caller asks, and how many runs it has.
//!
//! A tally may be away, and may lose what it had: then each gateway counts by itself.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::{
    chat::{Principal, RunId, SessionId},
    error::Error,
};

/// What a tally says to one who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It is one of those that are let in.
    In {
        /// How many more there may be at once.
        remaining: u32,
        /// When that will be one more.
        reset: Duration,
    },
    /// There were as many as may be; it is not counted. One more is let in after this time.
    Out(Duration),
}

/// A place among the runs that a caller has at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whose it is.
    pub principal: Principal,
    /// For which run.
    pub run: RunId,
    /// In which session.
    pub session: Option<SessionId>,
}

/// Which of a caller's runs stand in the way of one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// Every one.
    All,
    /// Those of other sessions: the new one interrupts those of its own.
    OtherSessions,
}

/// Counts for all gateways.
pub trait Tally: Send + Sync {
    /// Connects, if need be, and waits for an answer. Until this has come to a good end, nothing else does.
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Counts one request of this caller, of whom there may be `limit` within any `window`.
    fn count<'a>(&'a self, who: &'a Principal, limit: u32, window: Duration) -> BoxFuture<'a, Result<Counted, Error>>;

    /// Takes a place for as long as `keep`, if its caller has less than `limit`. Whether it was taken.
    fn enter<'a>(
        &'a self,
        place: &'a Place,
        limit: usize,
        counting: Counting,
        keep: Duration,
    ) -> BoxFuture<'a, Result<bool, Error>>;

    /// Keeps these places for as long as `keep` from now on, and takes them again if they are lost.
    fn stay<'a>(&'a self, places: &'a [Place], keep: Duration) -> BoxFuture<'a, Result<(), Error>>;

    /// Gives these places back.
    fn leave<'a>(&'a self, places: &'a [Place]) -> BoxFuture<'a, Result<(), Error>>;
}

//! Where gateways of one fleet tell each other what their runs do: logs, and who is to stop.
//!
//! A relay may be away; nothing that is kept for good is in it.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::{chat::RunId, error::Error};

/// Consecutive events of a run, written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The run.
    pub run: RunId,
    /// The number of the first event.
    pub first: u64,
    /// The events, in a form that gateways agree on.
    pub body: Vec<u8>,
}

/// How far a reader is in what the relay has of a run, or of the calls to stop: the relay's own word.
pub type Place = String;

/// The place before everything that the relay has.
pub const START: &str = "0-0";

/// What there was to read.
#[derive(Debug, Default)]
pub struct Heard {
    /// Batches, and behind which place the next ones of that run are.
    pub batches: Vec<(Batch, Place)>,
    /// Runs that are to stop, and behind which place further calls are.
    pub stops: Vec<(RunId, Place)>,
    /// The relay is another one than before: no place that was known means anything there, and everything is to be read
    /// from the start. Nothing else is in the answer then.
    pub renewed: bool,
}

/// Passes on what runs do.
pub trait Relay: Send + Sync {
    /// Adds batches, in order; with each one, for how long its run's log is kept from now on. What is said twice is heard
    /// twice; a run's first batch replaces whatever there was of it.
    fn publish<'a>(&'a self, batches: &'a [(Batch, Duration)]) -> BoxFuture<'a, Result<(), Error>>;

    /// Writes something, to see whether that can be done, and keeps the logs of these runs for `keep` from now on. Returns
    /// those that the relay does not have any more.
    fn check<'a>(&'a self, runs: &'a [RunId], keep: Duration) -> BoxFuture<'a, Result<Vec<RunId>, Error>>;

    /// Some of what there is of a run behind a place, a few MiB at most; nothing if there is no more.
    fn read<'a>(&'a self, run: RunId, behind: &'a Place) -> BoxFuture<'a, Result<Vec<(Batch, Place)>, Error>>;

    /// Waits, for `patience` at most, for more of these runs and for calls to stop after `stops`.
    fn hear<'a>(
        &'a self,
        runs: &'a [(RunId, Place)],
        stops: &'a Place,
        patience: Duration,
    ) -> BoxFuture<'a, Result<Heard, Error>>;

    /// Where the calls to stop are at the moment.
    fn now(&self) -> BoxFuture<'_, Result<Place, Error>>;

    /// Calls on whoever runs this to stop it.
    fn stop(&self, run: RunId) -> BoxFuture<'_, Result<(), Error>>;

    /// Erases all that there is of these runs.
    fn erase<'a>(&'a self, runs: &'a [RunId]) -> BoxFuture<'a, Result<(), Error>>;

    /// Says, for as long as `keep`, that these runs have readers at another gateway.
    fn attend<'a>(&'a self, runs: &'a [RunId], keep: Duration) -> BoxFuture<'a, Result<(), Error>>;

    /// Whether a run has readers at another gateway.
    fn attended(&self, run: RunId) -> BoxFuture<'_, Result<bool, Error>>;
}

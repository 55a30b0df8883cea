//! The house in which the stories play: bytes at both ends, and the gateway between them.
//!
//! * [`script`]: what a provider says, in which pieces, and how it breaks off ([`Script`], [`Gate`]); the words of OpenAI in [`openai`].
//! * [`dialect`]: the same round of a model in the bytes of every provider ([`Dialect`]).
//! * [`upstream`]: the provider that plays it and remembers what it was asked ([`Upstream`]).
//! * [`tls`]: a door of TLS in front of it ([`tls::Door`]).
//! * [`gateway`]: the gateway, inside the test ([`Gateway`]) or as the real program ([`Process`]).
//! * [`redis`]: the server through which gateways follow each other's runs.
//! * [`name_server`]: a name server whose answers the story sets.
//! * [`client`]: a client that sends every byte as told ([`post`], [`get`], [`delete`], [`Call`], [`Connection`]).
//! * [`response`]: what came back, as it came, and how it ended ([`Response`], [`Body`], [`Ending`]).
//! * [`sse`]: the strictest reader of our event streams ([`Transcript`], [`Event`]).
//! * [`meters`]: what the gateway counts ([`Meters`]).
//! * [`oracle`]: what must hold after every fault ([`Oracle`]), for which it hears what gateways [`log`].
//!
//! A story looks like this:
//!
//! ```ignore
//! #[tokio::test]
//! async fn a_provider_that_dies_mid_word_aborts_the_text_stream() {
//!     let upstream = Upstream::always(Script::sse().role().say("Hel").say("lo, wor").cut()).await;
//!     let gateway = Gateway::with(&upstream).start().await;
//!
//!     let answer = post(&gateway, "/chat/stream", json!({"message": "Hi"})).await.body().await;
//!
//!     assert_eq!((answer.status, answer.text()), (200, "Hello, wor"));
//!     assert!(answer.ending.is_aborted(), "{:?}", answer.ending);
//!     assert_eq!(upstream.calls(), 1);
//! }
//! ```
//!
//! Everything is on loopback and on ports that the kernel chose. Nothing sleeps where a signal will do: hold the upstream with
//! a [`Gate`]. Every wait has a deadline ([`PATIENCE`]) and says what it waited for; every task ends with its owner.
#![allow(dead_code, reason = "a vocabulary: no story uses every word of it")]
#![allow(unused_imports, reason = "the doors of the rooms; stories choose")]
pub(crate) mod client;
pub(crate) mod dialect;
pub(crate) mod gateway;
pub(crate) mod log;
pub(crate) mod meters;
pub(crate) mod name_server;
pub(crate) mod openai;
pub(crate) mod oracle;
pub(crate) mod redis;
pub(crate) mod response;
pub(crate) mod script;
pub(crate) mod sse;
pub(crate) mod tls;
pub(crate) mod upstream;
pub(crate) mod wire;

mod tests;

pub(crate) use client::{Call, Connection, Place, delete, get, post};
pub(crate) use dialect::{Ask, Dialect};
pub(crate) use gateway::{Gateway, Process, Recipe, reserved_port, signal};
pub(crate) use meters::Meters;
pub(crate) use oracle::{Billed, Oracle, RunEnding, is_reason};
pub(crate) use response::{Body, Ending, Response};
pub(crate) use script::{Framing, Gate, Script, Step};
pub(crate) use sse::{Ended, Event, Reader, Transcript};
pub(crate) use upstream::{Request, Upstream, black_hole, closed_port};
pub(crate) use wire::Headers;

use std::fmt::{Debug, Display};
use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long anything may take that ought to happen at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for `it`, and panics after [`PATIENCE`], saying `what` was awaited, and where.
#[track_caller]
pub(crate) fn soon<F: Future>(what: impl Display, it: F) -> impl Future<Output = F::Output> {
    within(PATIENCE, what, it)
}

/// Waits for `it`, and panics after `limit`, saying `what` was awaited, and where.
#[track_caller]
pub(crate) fn within<F: Future>(limit: Duration, what: impl Display, it: F) -> impl Future<Output = F::Output> {
    let place = Location::caller();
    async move {
        match tokio::time::timeout(limit, it).await {
            Ok(value) => value,
            Err(_) => panic!("waited {limit:?} in vain for {what} ({place})"),
        }
    }
}

/// What is promised from a cancel, or a client's leaving, to the close of what was waited for.
pub(crate) const PROMPT: Duration = Duration::from_millis(250);

/// Plays a story that says how long something took, until it was prompt: the best of five, for the machine may be busy.
pub(crate) async fn prompt(limit: Duration, story: impl AsyncFn() -> Duration) {
    let mut took = Vec::new();
    while took.len() < 5 {
        took.push(story().await);
        if took.iter().any(|took| *took <= limit) {
            return;
        }
    }
    panic!("not within {limit:?}, but after {took:?}");
}

/// Asks again and again until the answer is there. For what gives no signal, such as a status that another task writes.
#[track_caller]
pub(crate) fn eventually<T>(what: impl Display, mut ask: impl AsyncFnMut() -> Option<T>) -> impl Future<Output = T> {
    soon(what, async move {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

/// A task that ends when its owner is dropped.
#[derive(Debug)]
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    /// Starts it.
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    /// Waits for its own end.
    pub(crate) async fn ended(&mut self) {
        if !self.0.is_finished() {
            let _ = (&mut self.0).await;
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until the state is as wanted, at most [`PATIENCE`].
#[track_caller]
pub(crate) fn wait_for<T: Debug>(
    state: &watch::Sender<T>,
    what: impl Display,
    wanted: impl FnMut(&T) -> bool,
) -> impl Future<Output = ()> {
    let mut receiver = state.subscribe();
    soon(what, async move {
        receiver
            .wait_for(wanted)
            .await
            .expect("whoever changes the state outlives the wait");
    })
}

//! What a connection does: a request is received or answered, or none is. The two timeouts of a connection without a
//! request being answered are here: one from the first byte of a request's head on, one while nothing comes.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// The bytes that a client of HTTP/2 sends before its first request.
const PREFACE: usize = 24;

/// The state of one connection.
pub(super) struct Activity {
    state: Mutex<State>,
    changed: Notify,
    http2: bool,
}

struct State {
    /// The requests that are being answered, or whose body is still being read.
    exchanges: usize,
    /// Since when there is none.
    idle_since: Instant,
    /// When the first byte of a head came that is not complete; over HTTP/2, of the preface.
    head_since: Option<Instant>,
    /// The bytes received so far.
    received: usize,
}

/// Why a connection has lasted long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// The head of a request is not complete in time.
    Head,
    /// No request has come for a long time.
    Idle,
}

impl Activity {
    /// A connection whose first byte has just come.
    pub(super) fn new(http2: bool) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            state: Mutex::new(State {
                exchanges: 0,
                idle_since: now,
                head_since: Some(now),
                received: 0,
            }),
            changed: Notify::new(),
            http2,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that bytes came.
    pub(super) fn receive(&self, bytes: usize) {
        let mut state = self.state();
        if bytes == 0 || state.exchanges > 0 {
            return;
        }
        if self.http2 {
            // Frames between requests are no head: an answer to a ping is one of them.
            state.received = state.received.saturating_add(bytes);
            if state.received >= PREFACE {
                state.head_since = None;
            }
        } else if state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Begins an exchange: the head of a request is complete. Ends when its result and all of its clones are dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Exchange {
        let mut state = self.state();
        state.exchanges += 1;
        state.head_since = None;
        drop(state);
        self.changed.notify_one();
        Exchange { activity: self.clone() }
    }

    /// Waits until a head has taken longer than `header`, or no request has come for `idle`.
    pub(super) async fn expired(&self, header: Duration, idle: Option<Duration>) -> Expiry {
        loop {
            let due = {
                let state = self.state();
                let head = state.head_since.map(|since| (since + header, Expiry::Head));
                let idle = idle.map(|idle| (state.idle_since + idle, Expiry::Idle));
                let due = [head, idle].into_iter().flatten().min_by_key(|(due, _)| *due);
                due.filter(|_| state.exchanges == 0)
            };
            let Some((due, expiry)) = due else {
                self.changed.notified().await;
                continue;
            };
            if due <= Instant::now() {
                return expiry;
            }
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.changed.notified() => {}
            }
        }
    }
}

/// A request and its answer, as long as either is under way.
pub(super) struct Exchange {
    activity: Arc<Activity>,
}

impl Clone for Exchange {
    fn clone(&self) -> Self {
        self.activity.begin()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.exchanges -= 1;
        if state.exchanges == 0 {
            state.idle_since = Instant::now();
            drop(state);
            self.activity.changed.notify_one();
        }
    }
}

/// A body that belongs to an exchange.
pub(super) struct Held<B> {
    body: B,
    _exchange: Exchange,
}

impl<B> Held<B> {
    pub(super) fn new(body: B, exchange: Exchange) -> Self {
        Self {
            body,
            _exchange: exchange,
        }
    }
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why a connection was closed on which no head came in time.
pub(super) fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client sends no request")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Option<Duration> = Some(Duration::from_secs(75));

    async fn expiry_after(activity: &Activity) -> (Expiry, u64) {
        let began = Instant::now();
        let expiry = activity.expired(HEADER, IDLE).await;
        (expiry, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_one_timeout_and_silence_another() {
        let activity = Activity::new(false);
        tokio::time::advance(Duration::from_secs(4)).await;
        activity.receive(1); // the head goes on, and has no more time for that
        assert_eq!(expiry_after(&activity).await, (Expiry::Head, 6));

        let activity = Activity::new(false);
        let exchange = activity.begin();
        let (body, answer) = (exchange.clone(), exchange);
        let waiting = tokio::time::timeout(Duration::from_secs(500), activity.expired(HEADER, IDLE));
        assert!(waiting.await.is_err(), "a request that is answered has all the time");
        drop(answer);
        let waiting = tokio::time::timeout(Duration::from_secs(500), activity.expired(HEADER, IDLE));
        assert!(waiting.await.is_err(), "and so has one whose body is read");
        drop(body);
        tokio::time::advance(Duration::from_secs(60)).await;
        activity.receive(1);
        assert_eq!(expiry_after(&activity).await, (Expiry::Head, 10));

        let activity = Activity::new(false);
        drop(activity.begin());
        assert_eq!(expiry_after(&activity).await, (Expiry::Idle, 75));
    }

    #[tokio::test(start_paused = true)]
    async fn frames_of_http2_are_no_head_after_the_preface() {
        let activity = Activity::new(true);
        activity.receive(PREFACE - 1);
        assert_eq!(expiry_after(&activity).await, (Expiry::Head, 10));
        let activity = Activity::new(true);
        activity.receive(PREFACE);
        assert_eq!(expiry_after(&activity).await, (Expiry::Idle, 75));
        let activity = Activity::new(true);
        drop(activity.begin());
        tokio::time::advance(Duration::from_secs(30)).await;
        activity.receive(17);
        assert_eq!(expiry_after(&activity).await, (Expiry::Idle, 45));
    }
}

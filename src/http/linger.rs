//! What is still read of a body that was refused. A sender that writes all of its body before it reads would otherwise
//! find its connection reset, and never read why.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::Semaphore;

/// How long a refused body is read on, and for how long its sender may pause.
const LONG: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(5);
/// How many are read on that long at a time; of further ones so much is read.
static PLACES: Semaphore = Semaphore::const_new(256);
const SHORT: Duration = Duration::from_secs(2);
const SHORT_BYTES: u64 = 2 << 20;

/// A body that is read on for a moment, and thrown away, when nobody wants it: a sender whose connection is reset while it
/// sends never reads the answer. Who waits to be told to go on is not told.
pub(super) fn heard_out(headers: &HeaderMap, body: Body) -> Body {
    use http_body::Body as _;
    match body.is_end_stream() || headers.contains_key(header::EXPECT) {
        true => body,
        false => Body::new(HeardOut {
            body: Some(body),
            sends: true,
        }),
    }
}

struct HeardOut {
    /// Until its end.
    body: Option<Body>,
    /// Whether there was something to read when it was last looked at. Who sends nothing has nothing to lose.
    sends: bool,
}

impl http_body::Body for HeardOut {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        self.sends = polled.is_ready();
        let frame = ready!(polled);
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

impl Drop for HeardOut {
    fn drop(&mut self) {
        let unread = self
            .body
            .take()
            .filter(|body| self.sends && !http_body::Body::is_end_stream(body));
        let (Some(mut body), Ok(runtime)) = (unread, tokio::runtime::Handle::try_current()) else {
            return;
        };
        let place = PLACES.try_acquire().ok();
        let (time, mut left) = match place {
            Some(_) => (LONG, u64::MAX),
            None => (SHORT, SHORT_BYTES),
        };
        runtime.spawn(tokio::time::timeout(time, async move {
            let _place = place;
            while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, body.frame()).await {
                match left.checked_sub(frame.data_ref().map_or(0, Bytes::len) as u64) {
                    Some(rest) => left = rest,
                    None => break,
                }
            }
        }));
    }
}

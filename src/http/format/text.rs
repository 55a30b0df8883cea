//! Only the answer's text. A stream that breaks is aborted: its last chunk never comes, so that nobody takes half an
//! answer for a whole one.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body::Frame;

use super::{Attended, PIECE, name_run, streaming};
use crate::{
    chat::Event,
    error::{Error, ErrorCode},
    http::error::Refusal,
    meters::{Format, Meters},
    run::{Found, Reader, View, log::Log},
};

/// How long the headers wait for the model's first event, so that an early failure is a real status.
const HOLD: Duration = Duration::from_secs(10);

/// Answers with the text as it comes.
///
/// # Errors
/// The run's, as long as nothing was sent.
pub async fn respond(reader: Reader, meters: &Arc<Meters>) -> Result<Response, Refusal> {
    let mut body = TextBody {
        client: Attended::begin(meters, Format::Text, reader.run()),
        reader,
        ready: Vec::new(),
        end: None,
        unwritten: true,
    };
    let first = std::future::poll_fn(|cx| body.poll_first(cx));
    let _ = tokio::time::timeout(HOLD, first).await; // then the headers go without it
    let run = body.reader.run().clone();
    let unsent = body.ready.is_empty();
    if let Some(End::Broken(error)) = body.end.take_if(|end| unsent && matches!(end, End::Broken(_))) {
        return Err(Refusal::of_run(error, run.id, run.session_id.clone()));
    }
    let mut response = Body::new(body).into_response();
    streaming(response.headers_mut(), "text/plain; charset=utf-8");
    name_run(response.headers_mut(), &run.id, run.session_id.as_ref());
    Ok(response)
}

struct TextBody {
    client: Attended,
    reader: Reader,
    /// Text that has been read and not been sent.
    ready: Vec<u8>,
    end: Option<End>,
    /// Whether something was handed over (the headers, to begin with) that the server had no occasion to write yet.
    unwritten: bool,
}

enum End {
    Complete,
    Broken(Error),
}

impl TextBody {
    /// Ready when there is text, or an end, or anything else that the model did.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if ready!(self.poll_log(cx)) > 0 {
                return Poll::Ready(());
            }
        }
    }

    /// Reads what is in the log; ready with the number of events that the model is behind.
    fn poll_log(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let Self {
            reader,
            ready,
            end,
            client,
            ..
        } = self;
        let (mut events, mut repaired) = (0, None);
        let found = ready!(reader.poll_read(cx, |_, view| {
            match view {
                View::Text { text, .. } => ready.extend_from_slice(text.as_bytes()),
                View::Other(Event::Started) => return true,
                View::Other(Event::Done(done)) => {
                    repaired = done.repaired.then(|| done.answer.content.clone());
                    *end = Some(End::Complete);
                }
                View::Other(Event::Failed(error)) => *end = Some(End::Broken(error.clone())),
                _ => {}
            }
            events += 1;
            ready.len() < PIECE
        }));
        if let Some(answer) = repaired {
            *end = Some(ending(&reader.run().log, &answer, ready));
        }
        if found == Found::End && end.is_none() {
            // The log is at its end and this reader has not seen it: it must not look complete.
            *end = Some(End::Broken(Error::new(
                ErrorCode::Internal,
                "The log ended without a last event.",
            )));
        }
        if end.is_some() {
            client.ends();
        }
        Poll::Ready(events)
    }
}

/// How a run ends here whose answer had to be repaired. What was streamed is not the answer then, and must not look like
/// it, unless nothing was streamed at all.
fn ending(log: &Log, answer: &str, ready: &mut Vec<u8>) -> End {
    if log.says(answer) {
        return End::Complete; // this log was made from the repaired answer
    }
    if log.says("") {
        ready.extend_from_slice(answer.as_bytes());
        return End::Complete;
    }
    End::Broken(Error::new(
        ErrorCode::OutputInvalid,
        "What was streamed did not have the form asked for; GET /runs/{id} has the repaired answer.",
    ))
}

impl http_body::Body for TextBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if !self.ready.is_empty() {
                self.unwritten = true;
                let text = Bytes::from(std::mem::take(&mut self.ready));
                return Poll::Ready(Some(Ok(Frame::data(text))));
            }
            match self.end.take() {
                Some(End::Complete) => {
                    self.end = Some(End::Complete);
                    return Poll::Ready(None);
                }
                // An error makes the server drop what it has not written: it is to write the words before it first.
                broken @ Some(End::Broken(_)) if self.unwritten => {
                    (self.end, self.unwritten) = (broken, false);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(End::Broken(error)) => return Poll::Ready(Some(Err(error))),
                None => {}
            }
            if self.poll_log(cx).is_pending() {
                self.unwritten = false;
                return Poll::Pending;
            }
        }
    }
}

//! Every event of a run as server-sent events. The frames are our own: CONTRACT § 7 says what is in them to the byte.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body::Frame;

use super::{
    Attended, PIECE, chunk,
    long::{LongBody, LongTexts},
    name_run, streaming,
};
use crate::{
    chat::Event,
    meters::{Format, Meters},
    patience::Patience,
    run::{Found, Reader, View},
};

/// What the data of a `token` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Data {
    /// The text.
    #[default]
    Raw,
    /// A chunk.
    Json,
}

/// Answers with the run's events, from where the reader stands.
#[must_use]
pub fn respond(reader: Reader, data: Data, heartbeat: Duration, request_id: &str, meters: &Arc<Meters>) -> Response {
    let run = reader.run().clone();
    let body = SseBody {
        client: Attended::begin(meters, Format::Sse, &run),
        id: format!("id: {}:", run.id),
        reader,
        data,
        request_id: request_id.into(),
        heartbeat,
        silence: Patience::new(heartbeat),
        begun: false,
        json: Vec::new(),
        rest: None,
    };
    let mut response = Body::new(body).into_response();
    streaming(response.headers_mut(), "text/event-stream");
    name_run(response.headers_mut(), &run.id, run.session_id.as_ref());
    response
}

struct SseBody {
    client: Attended,
    /// `id: RUN:`, for every frame.
    id: String,
    reader: Reader,
    data: Data,
    request_id: Box<str>,
    heartbeat: Duration,
    silence: Patience,
    begun: bool,
    /// Room for JSON that is copied behind `data: `.
    json: Vec<u8>,
    /// What is still to be written of a last event with long texts.
    rest: Option<LongBody>,
}

impl http_body::Body for SseBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    /// Whole frames only, as many as there are; but for a last one with long texts, which is written in pieces.
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self {
            client,
            id,
            reader,
            data,
            request_id,
            heartbeat,
            silence,
            begun,
            json,
            rest,
        } = &mut *self;
        if let Some(piece) = rest.as_mut().and_then(LongBody::next_piece) {
            silence.extend(*heartbeat);
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let run = reader.run().clone();
        let mut out = Vec::new();
        let found = reader.poll_read(cx, |seq, view| {
            if out.capacity() == 0 {
                out.reserve(256);
            }
            if !std::mem::replace(begun, true) {
                out.extend_from_slice(b"retry: 2000\n");
            }
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(itoa::Buffer::new().format(seq).as_bytes());
            out.extend_from_slice(b"\nevent: ");
            out.extend_from_slice(chunk::name(view).as_bytes());
            match view {
                View::Text { text, after_cr } if *data == Data::Raw => raw_data(&mut out, text, after_cr),
                View::Other(Event::Done(done)) if LongTexts::any(&done.answer) => {
                    let mut done = done.clone();
                    let texts = LongTexts::take(&mut done.answer);
                    let short = Event::Done(done);
                    let mut json = Vec::new();
                    chunk::write(&mut json, &run, request_id, seq, View::Other(&short));
                    let mut body = texts.put_back(json, run.clone());
                    body.push_bytes(b"\n\n");
                    *rest = Some(body);
                    out.extend_from_slice(b"\ndata: ");
                    return false;
                }
                view => {
                    json.clear();
                    chunk::write(json, &run, request_id, seq, view);
                    out.extend_from_slice(b"\ndata: ");
                    out.extend_from_slice(json);
                }
            }
            out.extend_from_slice(b"\n\n");
            if let View::Other(event) = view
                && event.is_last()
            {
                client.ends();
            }
            out.len() < PIECE
        });
        match found {
            Poll::Ready(Found::Events) => {
                silence.extend(*heartbeat);
                Poll::Ready(Some(Ok(Frame::data(Bytes::from(out)))))
            }
            Poll::Ready(Found::End) => {
                client.ends();
                Poll::Ready(None)
            }
            Poll::Pending => {
                std::task::ready!(silence.poll_over(cx));
                silence.extend(*heartbeat);
                // No blank line: it would end an event that the next frame has not begun.
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": hb\n")))))
            }
        }
    }
}

/// A text as `data` lines: one for every line of it, so that the standard's reader joins them to the same text. CR and
/// CRLF are line ends too, also where an LF is in the next token. There is always at least one line.
pub fn raw_data(out: &mut Vec<u8>, text: &str, after_cr: bool) {
    let bytes = text.as_bytes();
    let mut rest = if after_cr {
        bytes.strip_prefix(b"\n").unwrap_or(bytes)
    } else {
        bytes
    };
    loop {
        out.extend_from_slice(b"\ndata: ");
        let Some(end) = memchr::memchr2(b'\n', b'\r', rest) else {
            break;
        };
        out.extend_from_slice(&rest[..end]);
        let crlf = rest[end] == b'\r' && rest.get(end + 1) == Some(&b'\n');
        rest = &rest[end + 1 + usize::from(crlf)..];
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn data(text: &str, after_cr: bool) -> String {
        let mut out = Vec::new();
        raw_data(&mut out, text, after_cr);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn line_ends_become_lines() {
        assert_eq!(data("Hello", false), "\ndata: Hello");
        assert_eq!(data(" a", false), "\ndata:  a");
        assert_eq!(data("a\nb", false), "\ndata: a\ndata: b");
        assert_eq!(data("a\r\nb\rc\n", false), "\ndata: a\ndata: b\ndata: c\ndata: ");
        assert_eq!(
            data("\n", true),
            "\ndata: ",
            "an LF that belongs to the token before leaves an empty token"
        );
        assert_eq!(data("\n\n", true), "\ndata: \ndata: ");
        assert_eq!(data("x\n", true), "\ndata: x\ndata: ");
    }

    proptest! {
        #[test]
        fn tokens_join_to_the_text_with_its_line_ends_folded(tokens in prop::collection::vec("[a \r\n:]{1,4}", 0..8)) {
            let whole = tokens.concat();
            let folded = whole.replace("\r\n", "\n").replace('\r', "\n");
            let mut joined = String::new();
            let mut before = String::new();
            for token in &tokens {
                let lines = data(token, before.ends_with('\r'));
                prop_assert!(!lines.contains('\r') && lines.starts_with("\ndata: "));
                let lines: Vec<&str> = lines[1..].split('\n').map(|line| line.strip_prefix("data: ").unwrap()).collect();
                joined.push_str(&lines.join("\n"));
                before.push_str(token);
            }
            prop_assert_eq!(joined, folded);
        }
    }
}

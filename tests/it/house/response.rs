//! What came back: the head, the body as it comes, the events in it, and how it ended.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde_json::Value;

use super::wire::Headers;
use super::{Call, Connection, Ended, Event, Reader, Transcript, within};

/// How a body ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As the headers said it would.
    Complete,
    /// Short of what the headers said, and in which way.
    Aborted(String),
}

impl Ending {
    /// Whether it was cut short.
    pub(crate) fn is_aborted(&self) -> bool {
        matches!(self, Self::Aborted(_))
    }
}

/// A body read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) bytes: Bytes,
    pub(crate) ending: Ending,
}

impl Body {
    /// The bytes as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).expect("a body in UTF-8")
    }

    /// The bytes as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| panic!("{error} in {:?}", self.bytes))
    }
}

/// An answer whose head has been read, and whose body is read as the story likes. Dropping it hangs up.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) version: String,
    pub(crate) headers: Headers,
    /// When the head had arrived.
    pub(crate) at: Instant,
    pub(super) what: String,
    pub(super) connection: Connection,
    pub(super) call: Option<Call>,
    pub(super) reader: Option<Reader>,
    /// How many events were given out.
    pub(super) read: usize,
    pub(super) ending: Option<Ending>,
}

impl Response {
    /// Waits up to this long for each next thing, instead of [`super::PATIENCE`].
    pub(crate) fn patience(mut self, patience: Duration) -> Self {
        self.connection.patience = patience;
        self
    }

    /// Reads events as this reader does; by default what the request asked for decides.
    pub(crate) fn read_as(self, reader: Reader) -> Self {
        Self {
            reader: Some(reader),
            ..self
        }
    }

    /// The header's value; its absence is a failure.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
    }

    /// Asserts the status; what came instead is shown.
    pub(crate) async fn expect(self, status: u16) -> Self {
        if self.status != status {
            let (what, body) = (self.what.clone(), self.body().await);
            panic!("{} instead of {status} for {what}: {:?}", body.status, body.bytes);
        }
        self
    }

    /// The next bytes of the body as they come; `None` at its end: see [`Response::ending`].
    pub(crate) async fn next_bytes(&mut self) -> Option<Bytes> {
        let what = format!("more of the body of {}", self.what);
        match within(self.connection.patience, what, self.connection.incoming.next()).await {
            Ok(Some(bytes)) => return Some(bytes),
            Ok(None) => self.ending = Some(Ending::Complete),
            Err(error) => self.ending = Some(Ending::Aborted(error.to_string())),
        }
        None
    }

    /// How the body ended, once it has.
    pub(crate) fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// The next event; the end of the stream is a failure.
    pub(crate) async fn next_event(&mut self) -> Event {
        let event = self.try_event().await;
        event.unwrap_or_else(|| panic!("{} ended ({:?}) where an event was due", self.what, self.ending))
    }

    /// Reads events up to and including the first of this name, and gives that one.
    pub(crate) async fn next_event_named(&mut self, name: &str) -> Event {
        loop {
            let event = self.next_event().await;
            if event.event == name {
                return event;
            }
            assert!(!event.is_terminal(), "{event:?} where a {name} was due");
        }
    }

    /// The next event; `None` at the end of the stream.
    pub(crate) async fn try_event(&mut self) -> Option<Event> {
        loop {
            let next = self.read;
            if let Some(event) = self.reader().events().get(next).cloned() {
                self.read += 1;
                return Some(event);
            }
            let bytes = self.next_bytes().await?;
            self.feed(&bytes);
        }
    }

    /// The whole event stream, with the events that were read already.
    pub(crate) async fn transcript(mut self) -> Transcript {
        while let Some(bytes) = self.next_bytes().await {
            self.feed(&bytes);
        }
        let ended = match self.ending {
            Some(Ending::Complete) => Ended::Eof,
            _ => Ended::Aborted,
        };
        let reader = std::mem::replace(self.reader(), Reader::anywhere());
        reader
            .finish(ended)
            .unwrap_or_else(|broken| panic!("{}: {broken}", self.what))
    }

    fn reader(&mut self) -> &mut Reader {
        assert_eq!(
            self.headers.get("content-type"),
            Some("text/event-stream"),
            "{} gave {}",
            self.what,
            self.status
        );
        self.reader
            .get_or_insert_with(|| self.call.as_ref().map_or_else(Reader::fresh, Call::reader))
    }

    fn feed(&mut self, bytes: &[u8]) {
        let between_writes = self.connection.incoming.is_between_chunks();
        let reader = self.reader();
        let mut kept = reader.feed(bytes);
        if kept.is_ok() && between_writes && !(reader.is_between_frames() || reader.is_in_done()) {
            kept = Err("a write that ends inside a frame".into());
        }
        kept.unwrap_or_else(|broken| panic!("{}: {broken}; read so far: {:#?}", self.what, self.reader));
    }

    /// The body to its end, however that was.
    pub(crate) async fn body(self) -> Body {
        self.body_and_connection().await.0
    }

    /// The same, with the connection for another request.
    pub(crate) async fn body_and_connection(mut self) -> (Body, Connection) {
        let mut bytes = BytesMut::new();
        while let Some(more) = self.next_bytes().await {
            bytes.extend_from_slice(&more);
        }
        let ending = self.ending.expect("set at the end");
        (
            Body {
                status: self.status,
                headers: self.headers,
                bytes: bytes.freeze(),
                ending,
            },
            self.connection,
        )
    }

    /// The complete body as JSON, whatever the status.
    pub(crate) async fn json(self) -> Value {
        let what = self.what.clone();
        let body = self.body().await;
        assert_eq!(body.ending, Ending::Complete, "{what}");
        assert_eq!(
            body.headers.get("content-type"),
            Some("application/json"),
            "{what}: {:?}",
            body.bytes
        );
        body.json()
    }

    /// The code of a refusal, which must be `application/problem+json` with all that belongs to one.
    pub(crate) async fn problem(self) -> String {
        self.problem_object().await["code"]
            .as_str()
            .expect("checked")
            .to_owned()
    }

    /// The whole object of a refusal, checked in the same way.
    pub(crate) async fn problem_object(self) -> Value {
        let what = self.what.clone();
        let body = self.body().await;
        assert_eq!(body.ending, Ending::Complete, "{what}");
        assert_eq!(
            body.headers.get("content-type"),
            Some("application/problem+json"),
            "{what}: {:?}",
            body.bytes
        );
        let problem = body.json();
        for member in ["type", "title", "code", "request_id"] {
            assert!(
                problem[member].as_str().is_some_and(|text| !text.is_empty()),
                "{what}: no {member} in {problem}"
            );
        }
        assert_eq!(problem["status"], body.status, "{what}: {problem}");
        problem
    }

    /// Closes, wherever the body is: see [`Connection::hang_up`].
    pub(crate) fn hang_up(self) {}

    /// Breaks off (RST), wherever the body is.
    pub(crate) fn reset(self) {
        self.connection.reset();
    }

    /// The connection under it, to send more on, or to close it halfway.
    pub(crate) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

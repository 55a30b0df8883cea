//! What a provider does with a request, step by step: what it says, in which pieces, how fast, and how it breaks off.
//! Pure values, of any dialect; [`super::upstream`] plays them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::wait_for;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Chunked,
    Length(usize),
    UntilClose,
}

/// One thing that a script does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The status line and headers, in one write.
    Head {
        status: u16,
        headers: Vec<(String, String)>,
        framing: Framing,
    },
    /// Exactly these bytes, in one write.
    Bytes(Bytes),
    /// Each byte in a write of its own.
    ByteByByte(Bytes),
    /// In writes of these sizes, over and over.
    Split(Bytes, Vec<usize>),
    /// One HTTP chunk, in one write.
    Chunk(Bytes),
    /// The chunk that ends a chunked body.
    EndChunks,
    /// Says nothing for this long, a minute at most.
    Sleep(Duration),
    /// Stands at a gate until the story opens it.
    Wait(Gate),
    /// The same bytes in one write each, `max` times, with a pause after each.
    Repeat { bytes: Bytes, every: Duration, max: usize },
    /// Ends the connection (FIN).
    Close,
    /// Breaks the connection (RST).
    Reset,
    /// Says nothing more, until the peer closes.
    Hang,
    /// Resets the connection when the first byte of another request comes: a kept connection that turns out to be dead.
    ResetOnReuse,
}

/// What is done with one request, step by step. After the last step a complete answer keeps the connection, any other closes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    steps: Vec<Step>,
    shape: Shape,
}

/// In which writes body bytes leave: those of the steps, one for all that stand together, or pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Shape {
    #[default]
    AsWritten,
    AtOnce,
    Pieces(Vec<usize>),
}

impl Script {
    /// No head, no body: for what is not HTTP, or never comes.
    pub(crate) fn raw() -> Self {
        Self::default()
    }

    /// The head of any answer.
    pub(crate) fn head(status: u16, headers: &[(&str, &str)], framing: Framing) -> Self {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Self::raw().step(Step::Head {
            status,
            headers,
            framing,
        })
    }

    /// The head of a stream of events, chunked.
    pub(crate) fn sse() -> Self {
        Self::sse_framed(Framing::Chunked)
    }

    /// The head of a stream of events, ended in another way.
    pub(crate) fn sse_framed(framing: Framing) -> Self {
        Self::head(200, &[("content-type", "text/event-stream")], framing)
    }

    /// A whole answer with a body: JSON, unless the headers say otherwise.
    pub(crate) fn status(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let mut headers = headers.to_vec();
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-type"))
        {
            headers.push(("content-type", "application/json"));
        }
        Self::head(status, &headers, Framing::Length(body.len())).step(Step::Bytes(body))
    }

    /// One more step.
    pub(crate) fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Bytes of the body in one write: as one chunk, if the head said chunked.
    pub(crate) fn send(self, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        match self.framing() {
            Some(Framing::Chunked) => self.step(Step::Chunk(bytes)),
            _ => self.step(Step::Bytes(bytes)),
        }
    }

    /// Exactly these bytes on the wire, in one write.
    pub(crate) fn bytes(self, bytes: impl Into<Bytes>) -> Self {
        self.step(Step::Bytes(bytes.into()))
    }

    /// A pause. Prefer [`Script::wait`].
    pub(crate) fn sleep(self, pause: Duration) -> Self {
        self.step(Step::Sleep(pause))
    }

    /// Stands at the gate until the story opens it.
    pub(crate) fn wait(self, gate: &Gate) -> Self {
        self.step(Step::Wait(gate.clone()))
    }

    /// The same body bytes `max` times, with a pause after each.
    pub(crate) fn repeat(self, bytes: impl Into<Bytes>, every: Duration, max: usize) -> Self {
        let mut bytes = bytes.into();
        if self.framing() == Some(Framing::Chunked) {
            bytes = chunk(&bytes);
        }
        self.step(Step::Repeat { bytes, every, max })
    }

    /// The orderly end of the HTTP body, whatever was said in it.
    pub(crate) fn end(self) -> Self {
        match self.framing() {
            Some(Framing::Chunked) => self.step(Step::EndChunks),
            _ => self,
        }
    }

    /// Dies here: the connection closes (FIN), the body lacks its end.
    pub(crate) fn cut(self) -> Self {
        self.step(Step::Close)
    }

    /// Dies here: the connection breaks (RST).
    pub(crate) fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    /// Falls silent here, with the connection open, until the peer closes it.
    pub(crate) fn hang(self) -> Self {
        self.step(Step::Hang)
    }

    /// The same bytes on the wire, each in a write of its own.
    pub(crate) fn byte_by_byte(self) -> Self {
        self.in_pieces(&[1])
    }

    /// The same bytes on the wire, in writes of these sizes, over and over.
    pub(crate) fn in_pieces(self, sizes: &[usize]) -> Self {
        Self {
            shape: Shape::Pieces(sizes.to_vec()),
            ..self
        }
    }

    /// The same bytes on the wire, all that stand together in one write.
    pub(crate) fn at_once(self) -> Self {
        Self {
            shape: Shape::AtOnce,
            ..self
        }
    }

    fn framing(&self) -> Option<Framing> {
        self.steps.iter().find_map(|step| match step {
            Step::Head { framing, .. } => Some(*framing),
            _ => None,
        })
    }

    /// Whether the peer can take the answer for a whole one, so that the connection may be kept.
    pub(super) fn is_complete(&self) -> bool {
        let length = |step: &Step| match step {
            Step::Bytes(bytes) | Step::ByteByByte(bytes) | Step::Split(bytes, _) => bytes.len(),
            Step::Repeat { bytes, max, .. } => bytes.len().saturating_mul(*max),
            _ => 0,
        };
        match self.framing() {
            Some(Framing::Chunked) => self.steps.iter().any(|step| matches!(step, Step::EndChunks)),
            Some(Framing::Length(told)) => told == self.steps.iter().map(length).sum::<usize>(),
            _ => false,
        }
    }

    /// The steps, in the shape that was asked for: runs of plain body bytes become one step.
    pub(super) fn shaped(&self) -> Vec<Step> {
        let mut shaped = Vec::new();
        for step in &self.steps {
            let bytes = match step {
                _ if self.shape == Shape::AsWritten => None,
                Step::Bytes(bytes) => Some(bytes.clone()),
                Step::Chunk(bytes) => Some(chunk(bytes)),
                Step::EndChunks => Some(Bytes::from_static(LAST_CHUNK)),
                _ => None,
            };
            match (bytes, shaped.last_mut()) {
                (Some(more), Some(Step::Bytes(run))) => *run = [&run[..], &more[..]].concat().into(),
                (Some(bytes), _) => shaped.push(Step::Bytes(bytes)),
                (None, _) => shaped.push(step.clone()),
            }
        }
        if let Shape::Pieces(sizes) = &self.shape {
            for step in &mut shaped {
                if let Step::Bytes(bytes) = step {
                    *step = Step::Split(std::mem::take(bytes), sizes.clone());
                }
            }
        }
        shaped
    }
}

/// What ends a chunked body.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// An HTTP chunk.
pub(super) fn chunk(bytes: &[u8]) -> Bytes {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"]
        .concat()
        .into()
}

/// A named signal: a script that comes to `Step::Wait(gate)` stands there until the story opens it.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    name: Arc<str>,
    state: watch::Sender<GateState>,
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    arrivals: usize,
}

impl Gate {
    /// A closed gate; the name is for messages.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            state: watch::Sender::default(),
        }
    }

    /// Lets through whoever stands here or comes later.
    pub(crate) fn open(&self) {
        self.state.send_modify(|state| state.open = true);
    }

    /// Waits until a script stands (or stood) here: everything before it has been written.
    pub(crate) async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Waits until this many scripts have come here.
    pub(crate) async fn reached_by(&self, scripts: usize) {
        let what = format!("{scripts} script(s) at the gate {:?}", self.name);
        wait_for(&self.state, what, |state| state.arrivals >= scripts).await;
    }

    /// Comes to the gate and waits for it to open (a script does this).
    pub(crate) async fn pass(&self) {
        self.state.send_modify(|state| state.arrivals += 1);
        let mut state = self.state.subscribe();
        state
            .wait_for(|state| state.open)
            .await
            .expect("the gate holds its own sender");
    }
}

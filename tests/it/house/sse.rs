//! The strictest reader of our event streams. What the SSE standard forgives, this does not: it knows what we promise
//! and fails at the first byte that breaks one. It knows nothing of sockets.

use std::time::Instant;

use serde_json::Value;

/// One event, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// `<run_id>:<seq>`, what `Last-Event-ID` takes.
    pub(crate) id: String,
    pub(crate) run_id: String,
    pub(crate) seq: u64,
    /// `start`, `token`, … `done`, `error`.
    pub(crate) event: String,
    /// The `data:` lines, joined with LF.
    pub(crate) data: String,
    /// What this adds to the answer: a token's text, in both formats; of other events nothing.
    pub(crate) text: String,
    /// When the blank line after it arrived.
    pub(crate) at: Instant,
}

impl Event {
    /// The data as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in the data of {self:?}"))
    }

    /// Whether nothing may follow this.
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.event.as_str(), "done" | "error")
    }
}

/// How a stream stopped: as HTTP says an end, or torn off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Eof,
    Aborted,
}

/// A whole stream.
#[derive(Clone, Debug)]
pub(crate) struct Transcript {
    pub(crate) events: Vec<Event>,
    /// When each `: hb` arrived.
    pub(crate) heartbeats: Vec<Instant>,
    pub(crate) ended: Ended,
}

impl Transcript {
    /// The answer's text: all tokens, joined.
    pub(crate) fn text(&self) -> String {
        self.events.iter().map(|event| event.text.as_str()).collect()
    }

    /// The names of the events, in order.
    pub(crate) fn kinds(&self) -> Vec<&str> {
        self.events.iter().map(|event| event.event.as_str()).collect()
    }

    /// The codes of the errors: none, or one.
    pub(crate) fn codes(&self) -> Vec<String> {
        let errors = self.events.iter().filter(|event| event.event == "error");
        errors
            .map(|event| event.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// The `done` or `error` that ended it; the reader has seen to it that it is the only one, and last.
    pub(crate) fn terminal(&self) -> &Event {
        let last = self.events.last().filter(|event| event.is_terminal());
        last.unwrap_or_else(|| {
            panic!(
                "neither done nor error at the end of {:?} ({:?})",
                self.kinds(),
                self.ended
            )
        })
    }

    /// The data of the `done` that ended it; an `error` is a failure.
    pub(crate) fn done(&self) -> Value {
        let last = self.terminal();
        assert_eq!(last.event, "done", "{}", last.data);
        last.json()
    }

    /// What a client comes back with: the id of the last event, if there was one.
    pub(crate) fn last_id(&self) -> Option<&str> {
        self.events.last().map(|event| event.id.as_str())
    }
}

/// Where a stream may begin.
#[derive(Clone, Debug)]
enum Begin {
    /// At `start`, numbered 0, after the `retry` line.
    AtStart,
    /// Right after an id. A terminal event may be numbered higher: a log that was lost leaves only it.
    After { run_id: String, seq: u64 },
    /// Wherever it likes.
    Anywhere,
}

/// The data of tokens: the text itself, or a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tokens {
    Raw,
    Json,
}

/// A frame under way: its `id:` line has been read.
#[derive(Debug, Default)]
struct Frame {
    id: String,
    event: Option<String>,
    data: Vec<String>,
}

/// Reads a stream bit by bit, however it was cut, and verifies it. A violation is told in words; reading on is pointless then.
#[derive(Debug)]
pub(crate) struct Reader {
    from: Begin,
    tokens: Tokens,
    retry: bool,
    /// A line whose LF has not come yet.
    line: Vec<u8>,
    frame: Option<Frame>,
    events: Vec<Event>,
    heartbeats: Vec<Instant>,
}

impl Reader {
    /// Of a stream from its start.
    pub(crate) fn fresh() -> Self {
        Self::new(Begin::AtStart)
    }

    /// Of a stream that was asked for with `Last-Event-ID: id`.
    pub(crate) fn after(id: &str) -> Self {
        let (run_id, seq) = parse_id(id).unwrap_or_else(|error| panic!("{error}"));
        Self::new(Begin::After { run_id, seq })
    }

    /// Of a stream that may begin with any event, such as one rebuilt after a restart.
    pub(crate) fn anywhere() -> Self {
        Self::new(Begin::Anywhere)
    }

    /// The same, of a stream whose tokens are chunks (`format=json`).
    pub(crate) fn json_tokens(self) -> Self {
        Self {
            tokens: Tokens::Json,
            ..self
        }
    }

    fn new(from: Begin) -> Self {
        let (tokens, line, events, heartbeats) = (Tokens::Raw, Vec::new(), Vec::new(), Vec::new());
        Self {
            from,
            tokens,
            retry: false,
            line,
            frame: None,
            events,
            heartbeats,
        }
    }

    /// The events so far.
    pub(crate) fn events(&self) -> &[Event] {
        &self.events
    }

    /// When heartbeats arrived so far.
    pub(crate) fn heartbeats(&self) -> &[Instant] {
        &self.heartbeats
    }

    /// Whether no frame is half read: what must hold after each write of the gateway.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.line.is_empty() && self.frame.is_none()
    }

    /// Whether a `done` is under way: one with a long answer is written in pieces.
    pub(crate) fn is_in_done(&self) -> bool {
        let event = self.frame.as_ref().and_then(|frame| frame.event.as_deref());
        event == Some("done")
    }

    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            if let Some(last) = self.events.last().filter(|event| event.is_terminal()) {
                return Err(format!("{:?} after the terminal event {:?}", lossy(part), last.event));
            }
            self.line.extend_from_slice(part);
            if part.contains(&b'\r') {
                return Err(format!("a CR in {:?}", lossy(&self.line)));
            }
            if part.ends_with(b"\n") {
                let line = String::from_utf8(std::mem::take(&mut self.line));
                let line = line.map_err(|error| format!("{error} in {:?}", lossy(error.as_bytes())))?;
                self.take_line(line.trim_end_matches('\n'))
                    .map_err(|what| format!("{what} in the line {line:?}"))?;
            }
        }
        Ok(())
    }

    /// Says that no more will come. What an orderly end left half written is a violation.
    pub(crate) fn finish(self, ended: Ended) -> Result<Transcript, String> {
        if ended == Ended::Eof && !self.is_between_frames() {
            return Err(format!(
                "the end inside a frame: {:?} {:?}",
                self.frame,
                lossy(&self.line)
            ));
        }
        Ok(Transcript {
            events: self.events,
            heartbeats: self.heartbeats,
            ended,
        })
    }

    fn take_line(&mut self, line: &str) -> Result<(), String> {
        let frame = self.frame.as_mut();
        match (line.split_once(": ").unwrap_or((line, "")), frame) {
            (("", "hb"), None) => self.heartbeats.push(Instant::now()),
            (("retry", "2000"), None) if self.events.is_empty() && !self.retry => self.retry = true,
            (("id", id), None) => {
                self.frame = Some(Frame {
                    id: id.to_owned(),
                    ..Frame::default()
                })
            }
            (("event", name), Some(frame)) if frame.event.is_none() => frame.event = Some(name.to_owned()),
            (("data", data), Some(frame)) if frame.event.is_some() && line != "data" => {
                frame.data.push(data.to_owned())
            }
            (("", ""), Some(frame)) if line.is_empty() && !frame.data.is_empty() => {
                let frame = std::mem::take(frame);
                self.frame = None;
                let event = self.check(frame)?;
                self.events.push(event);
            }
            (("", ""), None) if line.is_empty() => return Err("a blank line that ends no frame".into()),
            (_, frame) => return Err(format!("something out of place (frame so far: {frame:?})")),
        }
        Ok(())
    }

    /// A whole frame: the right id, the right name, the right data.
    fn check(&self, frame: Frame) -> Result<Event, String> {
        let (run_id, seq) = parse_id(&frame.id)?;
        let event = frame.event.unwrap_or_default();
        let terminal = matches!(event.as_str(), "done" | "error");
        let in_order = match (self.events.last(), &self.from) {
            (Some(last), _) => last.run_id == run_id && last.seq + 1 == seq && event != "start",
            (None, Begin::AtStart) => seq == 0 && event == "start" && self.retry,
            (
                None,
                Begin::After {
                    run_id: run,
                    seq: after,
                },
            ) => *run == run_id && (seq == after + 1 || (terminal && seq > *after)) && event != "start",
            (None, Begin::Anywhere) => true,
        };
        if !in_order {
            let last = self.events.last().map(|last| &last.id);
            return Err(format!(
                "{event:?} with id {:?} after {last:?}, read from {:?} (with its retry line: {})",
                frame.id, self.from, self.retry
            ));
        }
        let chunk_type = match event.as_str() {
            "token" if self.tokens == Tokens::Raw => None,
            "token" => Some("text"),
            name @ ("start" | "reasoning" | "tool_call" | "tool_result" | "artifact" | "done" | "error") => Some(name),
            name => return Err(format!("an event nobody promised: {name:?}")),
        };
        let text = match chunk_type {
            None => frame.data.join("\n"),
            Some(chunk_type) => {
                let chunk = check_chunk(&frame.data, chunk_type, (&run_id, seq))?;
                if event == "token" { chunk } else { String::new() }
            }
        };
        Ok(Event {
            id: frame.id,
            run_id,
            seq,
            event,
            data: frame.data.join("\n"),
            text,
            at: Instant::now(),
        })
    }
}

/// The members that every chunk has, and what they must say; gives its content.
fn check_chunk(data: &[String], chunk_type: &str, (run_id, seq): (&str, u64)) -> Result<String, String> {
    let [line] = data else {
        return Err(format!("JSON in {} data lines", data.len()));
    };
    if line.contains(['\u{2028}', '\u{2029}']) {
        return Err("an unescaped line separator".into());
    }
    let chunk: Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
    let content = chunk["content"].as_str().unwrap_or_default();
    let is_error = chunk_type == "error";
    let rules = [
        ("chunk_type", chunk["chunk_type"] == chunk_type),
        ("chunk_index", chunk["chunk_index"] == seq),
        ("run_id", chunk["run_id"] == run_id),
        (
            "content",
            chunk["content"].is_string() && (matches!(chunk_type, "text" | "reasoning") || content.is_empty()),
        ),
        ("delta", chunk["delta"] == chunk["content"]),
        ("is_final", chunk["is_final"] == (chunk_type == "done")),
        (
            "session_id",
            chunk.get("session_id").is_some_and(|id| id.is_string() || id.is_null()),
        ),
        ("model", chunk["model"].is_string()),
        ("error", is_error == chunk["error"]["code"].is_string()),
    ];
    match rules.iter().find(|(_, kept)| !kept) {
        Some((member, _)) => Err(format!("a {chunk_type} chunk whose {member} is wrong: {line}")),
        None => Ok(content.to_owned()),
    }
}

/// `<run_id>:<seq>`: a UUID, and a number written in the one usual way.
fn parse_id(id: &str) -> Result<(String, u64), String> {
    let parts = id
        .rsplit_once(':')
        .and_then(|(run_id, seq)| Some((run_id, seq.parse::<u64>().ok()?)));
    let parts = parts.filter(|(run_id, seq)| {
        let groups: Vec<usize> = run_id.split('-').map(str::len).collect();
        let hex = run_id
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'));
        groups == [8, 4, 4, 4, 12] && hex && format!("{run_id}:{seq}") == id
    });
    parts
        .map(|(run_id, seq)| (run_id.to_owned(), seq))
        .ok_or_else(|| format!("an id that is none: {id:?}"))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

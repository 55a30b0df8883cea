//! Reads server-sent events strictly: the gateway's own (CONTRACT § 7) and OpenAI's.
//!
//! Strict means that what a lenient reader would swallow counts as lost: a gap in the ids, an event of an unknown
//! name, a frame without data, anything after the end, an end that is not there.

use anyhow::{Context, Result, bail, ensure};
use memchr::{memchr, memmem};
use serde_json::Value;

use super::body::{Body, whole_answer};
use crate::token::Check;

/// Cuts bytes into lines at LF, keeping what is not yet a line.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while let Some(at) = memchr(b'\n', bytes) {
            if self.0.is_empty() {
                line(&bytes[..at])?;
            } else {
                self.0.extend_from_slice(&bytes[..at]);
                line(&self.0)?;
                self.0.clear();
            }
            bytes = &bytes[at + 1..];
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// The gateway's events in the `raw` format: `start`, `token`…, `done`.
pub struct Ours {
    lines: Lines,
    frames: Frames,
}

struct Frames {
    check: Check,
    stored: bool,
    run: Vec<u8>,
    next: u64,
    event: Vec<u8>,
    data: Option<Vec<u8>>,
    id: Vec<u8>,
    done: bool,
    now: u64,
    beats: u64,
}

impl Ours {
    /// Expects what `check` expects, and a session in `done` exactly if `stored`.
    #[must_use]
    pub fn new(check: Check, stored: bool) -> Self {
        let frames = Frames {
            check,
            stored,
            run: Vec::new(),
            next: 0,
            event: Vec::new(),
            data: None,
            id: Vec::new(),
            done: false,
            now: 0,
            beats: 0,
        };
        Self {
            lines: Lines::default(),
            frames,
        }
    }
}

impl Body for Ours {
    fn take(&mut self, bytes: &[u8], now: u64) -> Result<()> {
        self.frames.now = now;
        self.lines.take(bytes, |line| self.frames.line(line))
    }

    fn end(&mut self) -> Result<()> {
        ensure!(
            self.lines.0.is_empty() && self.frames.data.is_none(),
            "the last frame was cut"
        );
        ensure!(self.frames.done, "no `done`");
        self.frames.check.end()
    }

    fn check(&mut self) -> &mut Check {
        &mut self.frames.check
    }

    fn beats(&self) -> u64 {
        self.frames.beats
    }
}

impl Frames {
    fn line(&mut self, line: &[u8]) -> Result<()> {
        ensure!(!line.contains(&b'\r'), "a CR in the framing");
        if line.is_empty() {
            return self.frame();
        }
        if let Some(rest) = line.strip_prefix(b"data: ") {
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(rest);
                }
                None => self.data = Some(rest.to_vec()),
            }
        } else if let Some(rest) = line.strip_prefix(b"id: ") {
            self.id = rest.to_vec();
        } else if let Some(rest) = line.strip_prefix(b"event: ") {
            self.event = rest.to_vec();
        } else {
            self.beats += u64::from(line == b": hb");
            let other = line.starts_with(b":") || line.starts_with(b"retry: ");
            ensure!(other, "a line of no known field: {:?}", String::from_utf8_lossy(line));
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<()> {
        let event = std::mem::take(&mut self.event);
        let Some(data) = self.data.take() else {
            ensure!(event.is_empty() && self.next == 0, "a frame without data");
            return Ok(());
        };
        ensure!(!self.done, "an event after `done`");
        self.number()?;
        match event.as_slice() {
            b"start" => ensure!(self.next == 1, "`start` is not the first event"),
            _ if self.next == 1 => bail!("the first event is {:?}", String::from_utf8_lossy(&event)),
            b"token" => self.check.text(&data, self.now)?,
            b"done" => {
                self.done = true;
                self.answer(&serde_json::from_slice(&data).context("`done` is no JSON")?)?;
            }
            _ => bail!(
                "event {}: {}",
                String::from_utf8_lossy(&event),
                String::from_utf8_lossy(&data)
            ),
        }
        Ok(())
    }

    /// `RUN:SEQ`, always the same run, one more each time.
    fn number(&mut self) -> Result<()> {
        let colon = self
            .id
            .iter()
            .rposition(|&byte| byte == b':')
            .context("an event without RUN:SEQ")?;
        let (run, seq) = (&self.id[..colon], std::str::from_utf8(&self.id[colon + 1..])?);
        ensure!(seq.parse() == Ok(self.next), "event {seq} where {} was due", self.next);
        if self.next == 0 {
            self.run = run.to_vec();
        }
        ensure!(run == self.run, "an event of another run");
        self.next += 1;
        self.id.clear();
        Ok(())
    }

    fn answer(&self, done: &Value) -> Result<()> {
        ensure!(
            done["chunk_type"] == "done" && done["is_final"] == true,
            "`done` does not say that it is final"
        );
        ensure!(
            done["finish_reason"] == "stop",
            "finish_reason {}",
            done["finish_reason"]
        );
        whole_answer(&done["response"], &self.check, self.stored)
    }
}

/// OpenAI's chunks, as the mock sends them and nginx copies them.
pub struct OpenAi {
    lines: Lines,
    check: Check,
    finished: bool,
    done: bool,
}

impl OpenAi {
    /// Expects what `check` expects.
    #[must_use]
    pub fn new(check: Check) -> Self {
        Self {
            lines: Lines::default(),
            check,
            finished: false,
            done: false,
        }
    }
}

impl Body for OpenAi {
    fn take(&mut self, bytes: &[u8], now: u64) -> Result<()> {
        let Self {
            lines,
            check,
            finished,
            done,
        } = self;
        lines.take(bytes, |line| {
            if line.is_empty() {
                return Ok(());
            }
            ensure!(!*done, "an event after [DONE]");
            let data = line.strip_prefix(b"data: ").context("a line without data")?;
            if data == b"[DONE]" {
                *done = true;
            } else if let Some(at) = memmem::find(data, br#""delta":{"content":""#) {
                // The mock's tokens have nothing to unescape; a full JSON parser would measure itself.
                let text = &data[at + 20..];
                check.text(&text[..memchr(b'"', text).context("content without end")?], now)?;
            } else if memmem::find(data, br#""finish_reason":"stop""#).is_some() {
                *finished = true;
            }
            Ok(())
        })
    }

    fn end(&mut self) -> Result<()> {
        ensure!(self.finished && self.done, "no finish_reason or no [DONE]");
        self.check.end()
    }

    fn check(&mut self) -> &mut Check {
        &mut self.check
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "retry: 2000\nid: r:0\nevent: start\ndata: {}\n\n: hb\nid: r:1\nevent: token\n\
        data:  00007:00000:000000000000000001\n\nid: r:2\nevent: token\n: hb\ndata:  00007:00001:000000000000000002\n\n\
        id: r:3\nevent: done\ndata: {\"chunk_type\":\"done\",\"is_final\":true,\"finish_reason\":\"stop\",\"response\":\
        {\"session_id\":null,\"finish_reason\":\"stop\",\"content\":\
        \" 00007:00000:000000000000000001 00007:00001:000000000000000002\"}}\n\n";

    fn read(mut body: impl Body, bytes: &str, size: usize) -> Result<Vec<u64>> {
        for piece in bytes.as_bytes().chunks(size) {
            body.take(piece, 11)?;
        }
        body.end()?;
        Ok(std::mem::take(&mut body.check().delays))
    }

    fn ours(bytes: &str, size: usize) -> Result<Vec<u64>> {
        read(Ours::new(Check::new(7, 2), false), bytes, size)
    }

    #[test]
    fn our_events_split_anywhere_are_read() {
        for size in 1..=GOOD.len() {
            assert_eq!(ours(GOOD, size).unwrap(), [10, 9], "{size}");
        }
    }

    #[test]
    fn our_events_with_anything_wrong_are_refused() {
        for (from, to) in [
            ("id: r:2", "id: r:3"),
            ("id: r:2", "id: s:2"),
            ("event: start", "event: token"),
            ("event: done", "event: error"),
            ("event: done", "event: later"),
            (
                "\"finish_reason\":\"stop\",\"response\"",
                "\"finish_reason\":\"length\",\"response\"",
            ),
            ("\"session_id\":null", "\"session_id\":\"x\""),
            ("00007:00001:", "00007:00002:"),
            ("\n: hb\nid: r:1", "\n: hb\n\nid: r:1"),
            (
                "event: token\ndata:  00007:00000:000000000000000001\n\n",
                "event: token\n\n",
            ),
            ("retry: 2000\n", "retry: 2000\r\n"),
            ("retry: 2000\n", "again: 2000\n"),
            ("\"content\":\" 00007:00000", "\"content\":\" 00007:00001"),
            ("002\"}}\n\n", "\"}}\n\n"),
            ("002\"}}\n\n", "002\"}}\n"),
        ] {
            let wrong = GOOD.replacen(from, to, 1);
            assert_ne!(wrong, GOOD, "{from}");
            assert!(ours(&wrong, 64).is_err(), "{from} -> {to}");
        }
        assert!(ours(&GOOD[..GOOD.find("id: r:3").unwrap()], 64).is_err(), "no done");
        assert!(ours(&format!("{GOOD}{}", &GOOD[12..]), 64).is_err(), "twice");
    }

    #[test]
    fn openai_events_need_their_end() {
        let token =
            r#"data: {"choices":[{"delta":{"content":" 00007:00000:000000000000000001"},"finish_reason":null}]}"#;
        let finish = r#"data: {"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
        let good = format!("{token}\n\n{finish}\n\ndata: [DONE]\n\n");
        for size in 1..=good.len() {
            assert_eq!(
                read(OpenAi::new(Check::new(7, 1)), &good, size).unwrap(),
                [10],
                "{size}"
            );
        }
        for wrong in [
            format!("{token}\n\ndata: [DONE]\n\n"),
            format!("{token}\n\n{finish}\n\n"),
            finish.into(),
        ] {
            assert!(read(OpenAi::new(Check::new(7, 1)), &wrong, 64).is_err(), "{wrong}");
        }
    }
}

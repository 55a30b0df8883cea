//! Bytes to server-sent events, however they were cut.
//!
//! The event-stream format of the WHATWG HTML standard, § 9.2 (2026-11): a line ends with LF, CRLF or a lone CR; a blank
//! line dispatches; `data:` lines join with LF; one space after the colon is removed; comments, `id`, `retry` and
//! unknown fields are skipped; a byte order mark may come first. Four departures: an event is bounded; an event that the
//! end of the stream left without its blank line is given if its data is JSON (it may carry the finish); an error that
//! stands there as JSON without `data:` is given as if it had that; and a field that is `data` in disguise (behind a byte
//! order mark in mid-stream, indented, in capitals) breaks the stream.
//! UTF-8 is decoded event by event, so no character can be cut; a byte that is none, inside an otherwise whole event, costs
//! its character and not the answer.

use std::borrow::Cow;

use serde::de::IgnoredAny;

use super::{
    ProviderError,
    bare::{Bare, error_in},
    error::{Exactly, Kind},
};

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The `event:` field; empty without one.
    pub event: &'a [u8],
    /// The `data:` lines, joined.
    pub data: &'a str,
    /// Whether it stood there as JSON by itself, without `data:`: an error, as far as the reader can tell.
    pub bare: bool,
}

/// Who is given each event.
pub type Each<'a> = dyn FnMut(Frame<'_>) -> Result<(), ProviderError> + 'a;

/// How events are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Server-sent events.
    Sse,
    /// A JSON value a line; `event` is empty.
    Ndjson,
}

/// The longest name of a field that is looked at more closely.
const MAX_DISGUISE: usize = 16;

/// Reads events. At most `limit` bytes of one event are kept.
#[derive(Debug)]
pub struct FrameReader {
    framing: Framing,
    limit: usize,
    /// A line whose end has not come yet.
    line: Vec<u8>,
    /// The event under way.
    event: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// What may become an error without `data:`.
    bare: Bare,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
    /// Still before the first line.
    at_start: bool,
    /// There was a byte that is no UTF-8.
    mended: bool,
}

impl FrameReader {
    /// A reader at the start of a stream.
    #[must_use]
    pub fn new(framing: Framing, limit: usize) -> Self {
        Self {
            framing,
            limit,
            line: Vec::new(),
            event: Vec::new(),
            data: Vec::new(),
            has_data: false,
            bare: Bare::default(),
            after_cr: false,
            at_start: true,
            mended: false,
        }
    }

    /// Whether an event had a byte that is no UTF-8.
    #[must_use]
    pub fn mended(&self) -> bool {
        self.mended
    }

    /// Takes the next bytes, and gives each event that they complete.
    ///
    /// # Errors
    /// An event over the limit, and whatever `each` returns.
    pub fn push(&mut self, mut bytes: &[u8], each: &mut Each<'_>) -> Result<(), ProviderError> {
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            if bytes[0] == b'\n' {
                bytes = &bytes[1..];
            }
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) {
            let piece = &bytes[..end];
            let mut next = end + 1;
            if bytes[end] == b'\r' {
                match bytes.get(next) {
                    Some(b'\n') => next += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if self.line.is_empty() {
                self.take_line(piece, each)?;
            } else {
                self.keep(piece)?;
                let mut line = std::mem::take(&mut self.line);
                self.take_line(&line, each)?;
                line.clear();
                self.line = line;
            }
            bytes = &bytes[next..];
        }
        self.keep(bytes)
    }

    /// The stream has ended: gives what it left, if that is JSON or `[DONE]`.
    ///
    /// # Errors
    /// Whatever `each` returns.
    pub fn finish(&mut self, each: &mut Each<'_>) -> Result<(), ProviderError> {
        let line = std::mem::take(&mut self.line);
        let torn = self.framing == Framing::Ndjson && serde_json::from_slice::<IgnoredAny>(&line).is_err();
        if !line.is_empty() && !torn {
            self.take_line(&line, each)?;
        }
        self.close_event(each)
    }

    /// Gives the event under way without its blank line, if it is JSON or `[DONE]`.
    fn close_event(&mut self, each: &mut Each<'_>) -> Result<(), ProviderError> {
        let whole = self.data == b"[DONE]" || serde_json::from_slice::<IgnoredAny>(&self.data).is_ok();
        if self.has_data && whole {
            self.take_line(b"", each)
        } else {
            Ok(())
        }
    }

    /// Keeps the beginning of a line.
    fn keep(&mut self, bytes: &[u8]) -> Result<(), ProviderError> {
        let kept = self.line.len() + self.data.len() + bytes.len();
        if kept > self.limit {
            return Err(self.too_long());
        }
        self.bare.keep_within(self.limit - kept);
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn too_long(&self) -> ProviderError {
        ProviderError::new(Kind::Protocol, format!("an event over {} bytes", self.limit)).exactly(Exactly::EventLimit)
    }

    /// Takes a whole line, without its end.
    fn take_line(&mut self, mut line: &[u8], each: &mut Each<'_>) -> Result<(), ProviderError> {
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if self.framing == Framing::Ndjson {
            return if line.trim_ascii().is_empty() {
                Ok(())
            } else {
                each(Frame {
                    event: b"",
                    data: &decoded(line, &mut self.mended),
                    bare: false,
                })
            };
        }
        if let Some(value) = self.bare.take(line, self.limit.saturating_sub(self.data.len()))
            && let Some(error) = error_in(&String::from_utf8_lossy(&value))
        {
            self.mended |= std::str::from_utf8(&value).is_err();
            self.close_event(each)?; // it came before
            return each(Frame {
                event: b"",
                data: error,
                bare: true,
            });
        }
        if line.is_empty() {
            if self.has_data {
                each(Frame {
                    event: &self.event,
                    data: &decoded(&self.data, &mut self.mended),
                    bare: false,
                })?;
            }
            self.event.clear();
            self.data.clear();
            self.has_data = false;
            return Ok(());
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if self.data.len() + value.len() > self.limit {
                    return Err(self.too_long());
                }
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
                self.has_data = true;
            }
            b"event" => {
                self.event.clear();
                self.event.extend_from_slice(value);
            }
            _ if is_disguised(field) => {
                let what = "a line of data behind characters that do not belong there";
                return Err(ProviderError::new(Kind::Protocol, what).exactly(Exactly::BadEvent));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a field is `data` but for its case, and for blanks, a byte order mark or other signs around it. The format
/// says to pass it over, and with it the words of an answer would be lost in silence.
fn is_disguised(field: &[u8]) -> bool {
    if field.len() > MAX_DISGUISE {
        return false;
    }
    let is_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    let word = field.split(|b| !is_word(b)).filter(|word| !word.is_empty());
    let mut words = word.map(<[u8]>::to_ascii_lowercase);
    words.next().as_deref() == Some(b"data") && words.next().is_none()
}

/// Bytes as text; `mended` is told if some are none.
fn decoded<'a>(bytes: &'a [u8], mended: &mut bool) -> Cow<'a, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    *mended = true;
    String::from_utf8_lossy(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Events = Vec<(String, String)>;

    fn read(pieces: &[&[u8]], limit: usize) -> Result<Events, ProviderError> {
        let mut events = Events::new();
        let mut reader = FrameReader::new(Framing::Sse, limit);
        let mut each = |frame: Frame<'_>| {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            events.push((text(frame.event), frame.data.to_owned()));
            Ok(())
        };
        for piece in pieces {
            reader.push(piece, &mut each)?;
        }
        reader.finish(&mut each)?;
        Ok(events)
    }

    fn whole(text: &str) -> Events {
        read(&[text.as_bytes()], 1024).unwrap()
    }

    #[test]
    fn the_format_is_read_to_the_letter() {
        let data = |text: &str| (String::new(), text.to_owned());
        assert_eq!(
            whole("data: a\n\ndata: b\r\n\r\ndata: c\r\rdata: d\n\n"),
            ["a", "b", "c", "d"].map(data)
        );
        assert_eq!(whole("\u{FEFF}data:a\n\n"), [data("a")], "a byte order mark, no space");
        assert_eq!(
            whole("data:  a\ndata\ndata: b\n\n"),
            [data(" a\n\nb")],
            "several lines, an empty one"
        );
        assert_eq!(
            whole(": hi\n\n\nid: 3\nretry: 9\nfoo: bar\n\n"),
            [],
            "nothing without data"
        );
        assert_eq!(
            whole("event: error\ndata: {}\n\ndata: 1\n\n"),
            [("error".into(), "{}".into()), data("1")]
        );
    }

    #[test]
    fn an_event_without_its_blank_line_counts_if_it_is_whole() {
        assert_eq!(whole("data: {\"a\":1}").len(), 1);
        assert_eq!(whole("data: {\"a\":1}\n").len(), 1);
        assert_eq!(whole("data: [DONE]").len(), 1);
        assert_eq!(whole("data: {\"a\":").len(), 0);
    }

    #[test]
    fn data_in_disguise_is_not_lost_in_silence() {
        for line in [
            "\u{FEFF}data: {}",
            "\u{FEFF}\u{FEFF}data: {}",
            " data: {}",
            "Data: {}",
            "DATA:{}",
            "data : {}",
            "\u{200B}data: {}",
        ] {
            let text = format!("data: 1\n\n{line}\n\n");
            let error = read(&[text.as_bytes()], 1024).unwrap_err();
            assert_eq!((error.kind, error.word()), (Kind::Protocol, "bad_event"), "{line:?}");
        }
        for fine in [
            "metadata: {}",
            "data_2: {}",
            "x data: {}",
            ": data: {}",
            "\u{FEFF}: ping",
        ] {
            let text = format!("data: 1\n\n{fine}\n\n");
            assert_eq!(whole(&text).len(), 1, "{fine:?}");
        }
    }

    #[test]
    fn an_error_without_data_is_one_all_the_same() {
        let error = "{\n  \"error\": {\n    \"code\": 503\n  }\n}";
        let one = |data: &str| vec![(String::new(), data.to_owned())];
        for text in [
            error.to_owned(),
            format!("\n\n{error}\n\n"),
            format!("[{error}\n]"),
            format!("event: x\nid: 1\n{error}\n"),
            format!("foo: {{\n: {{\n {{\n{error}\n"),
        ] {
            for text in [text.clone(), text.replace('\n', "\r\n"), text.replace('\n', "\r")] {
                assert_eq!(whole(&text), one(error), "{text:?}");
            }
        }
        let (before, after) = (r#"{"a":1}"#, "{\"error\":\"e\"}");
        let three = [one(before), one(after), one("b")].concat();
        assert_eq!(whole(&format!("data: {before}\n{after}\ndata: b\n\n")), three);
    }

    #[test]
    fn what_is_no_error_without_data_is_passed_over() {
        for text in [
            "{\n\"error\": {}\n",
            "{\n\"error\": {}\n: ping\n}\n\n",
            "{\n{\"error\": {}}\n\n",
            "{\"error\": null}\n\n",
            "{\"a\": 1}\n\n",
            "[1, 2]\n\n",
            "{error: gone}\n\n",
            ": {\"error\": {}}\n\n",
            "error: {\"error\": {}}\n\n",
            "  {\"error\": {}}\n\n",
        ] {
            assert_eq!(
                whole(&format!("{text}data: a\n\n")),
                [(String::new(), "a".into())],
                "{text:?}"
            );
        }
        let long = format!("{{\n{}\"error\": {{}}\n}}\n", "\"a\": 1,\n".repeat(9));
        assert_eq!(read(&[long.as_bytes()], 64).unwrap(), [], "nor is one without a bound");
    }

    #[test]
    fn an_event_is_bounded_in_all_its_forms() {
        let limit = 64;
        let long = "x".repeat(65);
        for text in [long.clone(), format!("data: {long}\n\n"), "data: xxxxxxxx\n".repeat(9)] {
            assert!(read(&[text.as_bytes()], limit).is_err());
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert!(read(&bytes, limit).is_err());
        }
        assert!(
            read(&[": a comment\n".repeat(1000).as_bytes()], limit).is_ok(),
            "comments are not kept"
        );
    }

    proptest! {
        #[test]
        fn a_stream_reads_the_same_however_it_is_cut(
            lines in prop::collection::vec("(data:|data: |event: |: |id: |\\[?\\{(\"error\":\"é\")?|\\}\\]?)?([a-zé😀\u{2028}]{0,6}|)(\n|\r|\r\n|\n\n|\r\r|\r\n\r\n)", 0..12),
            cuts in prop::collection::vec(0usize..200, 0..12),
        ) {
            let text = lines.concat();
            let expected = whole(&text);
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                pieces.push(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(&read(&pieces, 1024).unwrap(), &expected);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&read(&single, 1024).unwrap(), &expected);
        }
    }
}

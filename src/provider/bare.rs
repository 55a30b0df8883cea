//! An error that stands among server-sent events as JSON by itself, without `data:`.
//!
//! So Gemini ends a stream that fails in its middle, over several lines, and so a server fails that answers as JSON what it
//! labelled a stream. To the event-stream format such lines are fields that nobody knows, so whatever else they are is
//! passed over as before: only one whole JSON object with an `error`, alone or as an array's only element, is one.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Lines that may become one, read beside the events.
#[derive(Debug, Default)]
pub(super) struct Bare {
    /// The lines so far; none as long as nothing has begun.
    text: Vec<u8>,
    /// How many objects and arrays are open.
    depth: usize,
}

impl Bare {
    /// Takes a line, if it and those before have at most `room` bytes together. Gives the bytes of a JSON value that may be
    /// complete with it.
    pub(super) fn take(&mut self, line: &[u8], room: usize) -> Option<Vec<u8>> {
        self.keep_within(room.saturating_sub(line.len()));
        if self.text.is_empty() && !matches!(line.first(), Some(b'{' | b'[')) || line.len() > room {
            return None;
        }
        match depth_after(line, self.depth) {
            Some(depth) => self.depth = depth,
            None => {
                self.forget();
                return None;
            }
        }
        self.text.extend_from_slice(line);
        self.text.push(b'\n');
        (self.depth == 0).then(|| std::mem::take(&mut self.text))
    }

    /// Lets go of what began, if it has more bytes than this.
    pub(super) fn keep_within(&mut self, room: usize) {
        if self.text.len() > room {
            self.forget();
        }
    }

    /// What began is none.
    fn forget(&mut self) {
        self.text.clear();
        self.depth = 0;
    }
}

/// How many objects and arrays are open after a line of JSON, if it can be one: in JSON no string goes on in the next.
fn depth_after(line: &[u8], mut depth: usize) -> Option<usize> {
    let starts = |b: &u8| b"\"{}[],-tfn".contains(b) || b.is_ascii_digit();
    if !line.trim_ascii_start().first().is_none_or(starts) {
        return None;
    }
    let (mut in_string, mut escaped) = (false, false);
    for byte in line {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    (!in_string).then_some(depth)
}

/// The object that reports an error, if this text is one, or an array of nothing else.
pub(super) fn error_in(text: &str) -> Option<&str> {
    #[derive(Deserialize)]
    struct Report<'a> {
        #[serde(borrow)]
        error: &'a RawValue,
    }
    let text = match text.trim_ascii() {
        array if array.starts_with('[') => {
            let [only]: [&RawValue; 1] = serde_json::from_str(array).ok()?;
            only.get()
        }
        other => other,
    };
    if !text.starts_with('{') {
        return None; // a struct may be written as an array too
    }
    let report: Report<'_> = serde_json::from_str(text).ok()?;
    report.error.get().starts_with(['{', '"']).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_an_object_or_an_array_of_one() {
        let object = r#"{"error":{"code":503}}"#;
        for text in [
            object,
            "[{\"error\":{\"code\":503}}]",
            " [ {\"error\":{\"code\":503}} ]\n",
        ] {
            assert_eq!(error_in(text), Some(object), "{text}");
        }
        assert!(error_in(r#"{"type":"error","error":"gone"}"#).is_some());
        for none in [
            "{}",
            "[]",
            "[[{\"error\":{}}]]",
            "[{\"error\":{}},{\"error\":{}}]",
            r#"{"error":null}"#,
            r#"{"error":false}"#,
            r#"{"errors":{}}"#,
            r#"{"a":{"error":{}}}"#,
            r#"{"error":{}} {}"#,
            r#"{"error":{}"#,
            r#"[{}]"#,
        ] {
            assert_eq!(error_in(none), None, "{none}");
        }
    }

    #[test]
    fn a_value_is_complete_when_all_is_closed_that_was_opened() {
        let complete = |lines: &[&str], room| {
            let mut bare = Bare::default();
            let all = lines.iter().filter_map(|line| bare.take(line.as_bytes(), room));
            all.map(|text| String::from_utf8(text).unwrap()).collect::<Vec<_>>()
        };
        let pretty = ["{", "  \"a\": [\"}]\\\"{\",", "", "\t-1, true ]", "}"];
        assert_eq!(complete(&pretty, 64), [pretty.join("\n") + "\n"]);
        assert_eq!(complete(&["x", "{}", "[", "]", "{"], 64), ["{}\n", "[\n]\n"]);
        for broken in [
            &["{", "data: {}", "}"] as &[&str],
            &["{", ": ping", "}"],
            &["{", "\"a", "\"}"],
            &["{}}", "}"],
            &["  {}"],
        ] {
            assert_eq!(complete(broken, 64), [""; 0], "{broken:?}");
        }
        assert_eq!(complete(&pretty, 16), [""; 0], "beyond the room");
    }
}

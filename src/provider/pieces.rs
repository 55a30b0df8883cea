//! The arguments of a call, which come in pieces.
//!
//! Some servers repeat them whole after the pieces. The repetition is noticed because the pieces
//! were a whole JSON object already.

use serde_json::Value;

/// The arguments so far.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    text: String,
    /// Objects and arrays that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Whether the first value has been closed.
    closed: bool,
}

impl Arguments {
    /// Takes a piece. Returns whether it is more of the arguments, and not the whole again.
    pub(super) fn take(&mut self, piece: &str) -> bool {
        if self.is_repeated_by(piece) {
            return false;
        }
        self.scan(piece);
        self.text.push_str(piece);
        true
    }

    /// Whether the pieces are a whole object, and this is the same one.
    pub(super) fn is_repeated_by(&self, piece: &str) -> bool {
        self.closed && is_same_object(&self.text, piece)
    }

    /// Takes all arguments as they are known now. Returns the part that is new, or `None` where
    /// they contradict the pieces.
    pub(super) fn take_all<'t>(&mut self, all: &'t str) -> Option<&'t str> {
        if let Some(more) = all.strip_prefix(self.text.as_str()) {
            self.scan(more);
            self.text.push_str(more);
            return Some(more);
        }
        let is_known = all.trim().is_empty() || all.trim() == self.text.trim() || is_same_object(&self.text, all);
        is_known.then_some("")
    }

    /// Each byte is looked at once, so that no sequence of pieces makes this slow.
    fn scan(&mut self, piece: &str) {
        for byte in piece.bytes() {
            match byte {
                _ if self.closed => return,
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = self.in_string,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.closed = self.depth == 0;
                }
                _ => {}
            }
        }
    }
}

/// Whether two texts are the same JSON object, however it is written.
fn is_same_object(one: &str, other: &str) -> bool {
    if !other.trim_start().starts_with('{') {
        return false;
    }
    let object = |text: &str| serde_json::from_str::<Value>(text).ok().filter(Value::is_object);
    object(other).is_some_and(|other| object(one) == Some(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces that are more of the arguments, joined.
    fn joined(pieces: &[&str]) -> String {
        let mut arguments = Arguments::default();
        let news = pieces.iter().filter(|piece| arguments.take(piece));
        news.copied().collect()
    }

    #[test]
    fn a_whole_that_is_told_again_is_told_once() {
        let whole = r#"{"x":"}\"{","y":[1]}"#;
        assert_eq!(joined(&[whole, whole]), whole);
        assert_eq!(joined(&[&whole[..5], &whole[5..], whole, whole]), whole);
        assert_eq!(joined(&["{}", "{ }"]), "{}");
        let (spaced, turned) = (r#"{ "a": 1, "b": 2 }"#, r#"{"b":2,"a":1}"#);
        assert_eq!(joined(&[r#"{"a":1,"b":2}"#, spaced, turned]), r#"{"a":1,"b":2}"#);
    }

    #[test]
    fn what_differs_is_kept_so_that_the_call_is_seen_to_be_broken() {
        for pieces in [
            &[r#"{"a":1}"#, r#"{"a":2}"#] as &[&str],
            &[r#"{"a":"#, r#"{"a":1}"#],
            &["[1]", "[1]"],
            &[r#"{"a":1}"#, "x"],
            &["{}", "{", "}"],
        ] {
            assert_eq!(joined(pieces), pieces.concat(), "{pieces:?}");
        }
    }

    #[test]
    fn all_arguments_go_on_where_the_pieces_ended_or_contradict_them() {
        let mut arguments = Arguments::default();
        assert!(arguments.take(r#"{"a""#));
        assert_eq!(arguments.take_all(r#"{"a":1}"#), Some(":1}"));
        assert_eq!(arguments.take_all(r#"{ "a": 1 }"#), Some(""));
        assert_eq!(arguments.take_all(""), Some(""));
        assert_eq!(arguments.take_all(r#"{"a":2}"#), None);
    }
}

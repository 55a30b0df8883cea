//! The words in which models say why they stopped, unified by their meaning.
//!
//! Servers borrow each other's words, so one table serves all dialects. A word that no table has
//! ends an answer that has words of its own; it never completes a call, because it may mean that
//! the round failed.

use serde_json::Value;

use super::{ProviderError, deviations::Deviations, dialect::word, error::Kind, loose::LooseText};
use crate::{chat::FinishKind, meters::Tolerated};

/// The meaning of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Stop,
    Calls,
    Length,
    Filter,
    Failure,
    Unknown,
}

/// What an answer had when it ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    /// The field that the word stood in.
    pub(super) field: &'a str,
    /// The words that the dialect documents.
    pub(super) own: &'a [&'a str],
    /// Number of calls, readable or not.
    pub(super) calls: usize,
    /// Whether there was text.
    pub(super) spoke: bool,
}

impl Answer<'_> {
    /// Our word for theirs.
    ///
    /// # Errors
    /// A word that says that the model failed; one that is unknown, where it would complete a call
    /// or an answer without text; and one that promises calls where neither calls nor text came.
    pub(super) fn ended(self, theirs: &str, odd: &mut Deviations) -> Result<FinishKind, ProviderError> {
        odd.add_if(!self.own.contains(&theirs), Tolerated::FinishWord);
        match meaning(theirs) {
            Meaning::Length => Ok(FinishKind::Length),
            Meaning::Filter => Ok(FinishKind::ContentFilter),
            Meaning::Stop | Meaning::Calls if self.calls > 0 => Ok(FinishKind::ToolCalls),
            Meaning::Stop => Ok(FinishKind::Stop),
            Meaning::Calls | Meaning::Unknown if self.spoke && self.calls == 0 => {
                odd.add(Tolerated::FinishWord);
                Ok(FinishKind::Stop)
            }
            Meaning::Calls => {
                let detail = format!("{} {}, and no call", self.field, word(theirs));
                Err(ProviderError::new(Kind::Protocol, detail))
            }
            Meaning::Failure | Meaning::Unknown => {
                let detail = format!("{} {}", self.field, word(theirs));
                Err(ProviderError::new(Kind::Reported, detail))
            }
        }
    }
}

/// Why an answer was cut, by a word that comes with one that is known to be cut.
pub(super) fn cut_by(reason: &str) -> Option<FinishKind> {
    match meaning(reason) {
        Meaning::Length => Some(FinishKind::Length),
        Meaning::Filter => Some(FinishKind::ContentFilter),
        _ => None,
    }
}

/// The word in a field that says why the model stopped; `None` where it says that it did not.
pub(super) fn word_in(field: Option<LooseText<'_>>, odd: &mut Deviations) -> Option<String> {
    match field? {
        LooseText::Plain(text) if text.is_empty() => None,
        LooseText::Plain(text) if matches!(&*text, "null" | "none" | "None") => {
            odd.add(Tolerated::FieldType);
            None
        }
        LooseText::Plain(text) => Some(text.into_owned()),
        LooseText::Other(other) => {
            odd.add(Tolerated::FieldType);
            word_of(other)
        }
    }
}

fn word_of(value: Value) -> Option<String> {
    match value {
        Value::Null | Value::Bool(false) => None,
        Value::Bool(true) => Some("true".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text).filter(|text| !text.is_empty()),
        Value::Array(all) => all.into_iter().find_map(word_of),
        Value::Object(fields) if fields.is_empty() => None,
        Value::Object(mut fields) => {
            let names = ["type", "reason", "finish_reason", "stop_reason", "name", "value"];
            let named = names
                .into_iter()
                .find_map(|name| fields.swap_remove(name).and_then(word_of));
            Some(named.unwrap_or_else(|| "object".to_owned()))
        }
    }
}

/// Case and the signs between words differ from server to server, and mean nothing.
fn meaning(theirs: &str) -> Meaning {
    let letters = theirs.bytes().filter(u8::is_ascii_alphanumeric);
    let plain: String = letters.map(|b| char::from(b.to_ascii_lowercase())).collect();
    match plain.as_str() {
        "stop" | "stopsequence" | "stopsequences" | "stopword" | "stoptoken" | "stopstring" | "eos" | "eostoken"
        | "eot" | "endofturn" | "endturn" | "endofsequence" | "endoftext" | "end" | "pauseturn" | "complete"
        | "completed" | "done" | "finish" | "finished" | "success" | "normal" => Meaning::Stop,
        "toolcalls" | "toolcall" | "tooluse" | "functioncall" | "functioncalls" => Meaning::Calls,
        "length"
        | "maxlength"
        | "modellength"
        | "modelmaxlength"
        | "lengthlimit"
        | "maxtokens"
        | "maxtoken"
        | "maxnewtokens"
        | "maxoutputtokens"
        | "maxcompletiontokens"
        | "maxtokensreached"
        | "tokenlimit"
        | "tokenlimitreached"
        | "limit"
        | "outputlimit"
        | "contextlength"
        | "contextlengthexceeded"
        | "contextwindowexceeded"
        | "modelcontextwindowexceeded"
        | "truncated"
        | "timelimit" => Meaning::Length,
        "contentfilter"
        | "contentfiltered"
        | "contentfiltering"
        | "filter"
        | "filtered"
        | "contentpolicy"
        | "contentpolicyviolation"
        | "policyviolation"
        | "contentmoderation"
        | "moderation"
        | "moderated"
        | "safety"
        | "imagesafety"
        | "sensitive"
        | "refusal"
        | "blocked"
        | "blocklist"
        | "recitation"
        | "imagerecitation"
        | "prohibitedcontent"
        | "imageprohibitedcontent"
        | "spii"
        | "language"
        | "modelarmor"
        | "guardrail"
        | "guardrails"
        | "guardrailintervened" => Meaning::Filter,
        "incomplete" | "partial" | "unfinished" => Meaning::Failure,
        other if FAILURES.iter().any(|stem| other.contains(stem)) => Meaning::Failure,
        _ => Meaning::Unknown,
    }
}

/// The stems of words that say failure.
const FAILURES: [&str; 20] = [
    "error",
    "fail",
    "abort",
    "cancel",
    "timeout",
    "timedout",
    "exception",
    "malformed",
    "unexpected",
    "invalid",
    "interrupt",
    "disconnect",
    "unavailable",
    "overload",
    "insufficient",
    "crash",
    "toomany",
    "missing",
    "ratelimit",
    "quota",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(theirs: &str, calls: usize, spoke: bool) -> Result<FinishKind, Kind> {
        let answer = Answer {
            field: "finish_reason",
            own: &["stop"],
            calls,
            spoke,
        };
        let ended = answer.ended(theirs, &mut Deviations::default());
        ended.map_err(|error| error.kind)
    }

    #[test]
    fn words_are_unified_by_their_meaning() {
        for (words, kind) in [
            (
                &["stop", "STOP", "Stop", "stop_sequence", "eos", "end_turn", "completed"] as &[&str],
                FinishKind::Stop,
            ),
            (
                &["length", "model_length", "max_tokens", "MAX_TOKENS", "maxOutputTokens"],
                FinishKind::Length,
            ),
            (
                &["content_filter", "content-filter", "SAFETY", "sensitive", "refusal"],
                FinishKind::ContentFilter,
            ),
        ] {
            for theirs in words {
                assert_eq!(ended(theirs, 0, true), Ok(kind), "{theirs}");
                let with_calls = if kind == FinishKind::Stop {
                    FinishKind::ToolCalls
                } else {
                    kind
                };
                assert_eq!(ended(theirs, 1, true), Ok(with_calls), "{theirs} with a call");
            }
        }
    }

    #[test]
    fn words_of_failure_are_errors_whatever_came_before() {
        for theirs in [
            "error",
            "abort",
            "ABORTED",
            "network_error",
            "cancelled",
            "timeout",
            "malformed_function_call",
            "insufficient_system_resource",
            "rate_limit",
        ] {
            for (calls, spoke) in [(0, true), (1, true), (1, false), (0, false)] {
                assert_eq!(ended(theirs, calls, spoke), Err(Kind::Reported), "{theirs}");
            }
        }
    }

    #[test]
    fn an_unknown_word_ends_words_and_completes_no_call() {
        assert_eq!(ended("novel", 0, true), Ok(FinishKind::Stop));
        assert_eq!(ended("novel", 1, true), Err(Kind::Reported));
        assert_eq!(ended("novel", 0, false), Err(Kind::Reported));
        assert_eq!(ended("tool_calls", 0, false), Err(Kind::Protocol));
        assert_eq!(ended("tool_calls", 0, true), Ok(FinishKind::Stop));
        let answer = Answer {
            field: "f",
            own: &["stop"],
            calls: 0,
            spoke: true,
        };
        let mut odd = Deviations::default();
        answer.ended("stop", &mut odd).unwrap();
        assert_eq!(odd, Deviations::default());
        answer.ended("STOP", &mut odd).unwrap();
        assert_eq!(odd.iter().next(), Some(Tolerated::FinishWord));
    }

    #[test]
    fn a_word_is_found_in_every_form() {
        for (field, expected) in [
            ("\"stop\"", Some("stop")),
            ("\"\"", None),
            ("\"null\"", None),
            ("null", None),
            ("false", None),
            (r#"{"type":"stop"}"#, Some("stop")),
            (r#"{"reason":"length","x":1}"#, Some("length")),
            (r#"["stop"]"#, Some("stop")),
            ("[]", None),
            ("{}", None),
            (r#"{"x":1}"#, Some("object")),
            ("1", Some("1")),
        ] {
            let field = serde_json::from_str(field).unwrap();
            let found = word_in(field, &mut Deviations::default());
            assert_eq!(found.as_deref(), expected);
        }
    }
}

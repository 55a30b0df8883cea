//! The words in a message's content, in whichever form a server writes it: a string, a list of
//! parts, one part, or parts within parts.

use serde_json::{Map, Value};

use super::{deviations::Deviations, loose::LooseText};
use crate::{chat::Chunk, meters::Tolerated};

/// Fields that hold the words of a part.
const WORDS: [&str; 5] = ["text", "content", "refusal", "output_text", "value"];
/// Fields that hold the words of a part that is thinking.
const THOUGHTS: [&str; 6] = ["thinking", "reasoning", "text", "summary", "content", "value"];

/// What the words of a content are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speech {
    /// The answer.
    Answer,
    /// The model's thinking.
    Thinking,
}

impl Speech {
    fn chunk(self, words: String) -> Chunk {
        match self {
            Speech::Answer => Chunk::Text(words),
            Speech::Thinking => Chunk::Reasoning(words),
        }
    }
}

/// Writes the words of a content in their order.
pub(super) fn say(content: Option<LooseText<'_>>, speech: Speech, odd: &mut Deviations, out: &mut Vec<Chunk>) {
    match content {
        None => {}
        Some(LooseText::Plain(text)) if text.is_empty() => {}
        Some(LooseText::Plain(text)) => out.push(speech.chunk(text.into_owned())),
        Some(LooseText::Other(other)) => {
            odd.add(Tolerated::FieldType);
            say_value(other, speech, odd, out);
        }
    }
}

/// The same of any JSON value. The JSON parser bounds how deep it goes.
pub(super) fn say_value(value: Value, speech: Speech, odd: &mut Deviations, out: &mut Vec<Chunk>) {
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => out.push(speech.chunk(number.to_string())),
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => out.push(speech.chunk(text)),
        Value::Array(parts) => parts.into_iter().for_each(|part| say_value(part, speech, odd, out)),
        Value::Object(part) => say_part(part, speech, odd, out),
    }
}

fn say_part(mut part: Map<String, Value>, speech: Speech, odd: &mut Deviations, out: &mut Vec<Chunk>) {
    if part.is_empty() {
        return;
    }
    let has = |name: &str| part.get(name).is_some_and(|value| !value.is_null());
    let thinks = match part.get("type").and_then(Value::as_str) {
        Some("text" | "output_text" | "text_delta" | "refusal") => false,
        Some(
            "thinking" | "thinking_delta" | "thought" | "reasoning" | "reasoning_text" | "reasoning.text"
            | "reasoning.summary" | "summary_text",
        ) => true,
        Some(_) => {
            odd.add(Tolerated::UnknownPart);
            return;
        }
        None => !has("text") && !has("content") && (has("thinking") || has("reasoning")),
    };
    let fields: &[&str] = if thinks { &THOUGHTS } else { &WORDS };
    match fields.iter().find(|name| has(name)) {
        Some(name) => {
            let words = part.swap_remove(*name).unwrap_or_default();
            let speech = if thinks { Speech::Thinking } else { speech };
            say_value(words, speech, odd, out);
        }
        // A part that has a place for words, and no words in it, says nothing.
        None if fields.iter().any(|name| part.contains_key(*name)) => {}
        None => odd.add(Tolerated::UnknownPart),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chunks of a content, and the deviations.
    fn said(content: &str) -> (Vec<Chunk>, Vec<&'static str>) {
        let (mut odd, mut out) = (Deviations::default(), Vec::new());
        let content = serde_json::from_str(content).unwrap();
        say(content, Speech::Answer, &mut odd, &mut out);
        (out, odd.iter().map(Tolerated::as_str).collect())
    }

    #[test]
    fn words_are_found_in_every_form_and_in_their_order() {
        let text = |text: &str| Chunk::Text(text.into());
        let thought = |text: &str| Chunk::Reasoning(text.into());
        for (content, expected) in [
            (r#"[{"type":"text","text":"Hello"}]"#, vec![text("Hello")]),
            (r#"[{"type":"output_text","text":"Hello"}]"#, vec![text("Hello")]),
            (r#"{"type":"text","text":"Hello"}"#, vec![text("Hello")]),
            (r#"{"text":"Hello"}"#, vec![text("Hello")]),
            (r#"{"text":{"value":"Hello","annotations":[]}}"#, vec![text("Hello")]),
            (r#"["Hel",{"text":"lo"}]"#, vec![text("Hel"), text("lo")]),
            ("42", vec![text("42")]),
            ("[]", vec![]),
            ("{}", vec![]),
            ("false", vec![]),
            (r#"[null,{"type":"text","text":null}]"#, vec![]),
            (r#"[{"type":"refusal","refusal":"No."}]"#, vec![text("No.")]),
            (
                r#"[{"type":"thinking","thinking":[{"type":"text","text":"Hm"}]},{"type":"text","text":"A"}]"#,
                vec![thought("Hm"), text("A")],
            ),
            (r#"[{"type":"thinking","thinking":"Hm"}]"#, vec![thought("Hm")]),
            (r#"{"thinking":"Hm"}"#, vec![thought("Hm")]),
        ] {
            assert_eq!(said(content), (expected, vec!["field_type"]), "{content}");
        }
        assert_eq!(said("\"Hello\""), (vec![text("Hello")], vec![]));
        assert_eq!(said("null"), (vec![], vec![]));
    }

    #[test]
    fn a_part_of_an_unknown_type_is_skipped_and_noted() {
        for content in [
            r#"[{"type":"reference","reference_ids":[1]},{"type":"text","text":"A"}]"#,
            r#"[{"odd":1},{"type":"text","text":"A"}]"#,
        ] {
            let (chunks, odd) = said(content);
            assert_eq!(chunks, [Chunk::Text("A".into())], "{content}");
            assert_eq!(odd, ["field_type", "unknown_part"], "{content}");
        }
    }
}

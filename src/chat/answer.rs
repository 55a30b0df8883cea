//! A finished run's result: the object that `/chat` answers with, `done` carries and the store keeps.

use memchr::memmem;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, value::RawValue};
use std::{collections::BTreeMap, sync::Arc};

use super::{Artifact, FinishKind, Message, RunId, SessionId, Usage};

/// The answer of a run, all of it. The JSON form is a promise (CONTRACT § 5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The run.
    pub run_id: RunId,
    /// The session it belongs to; `None` for a run that is not stored.
    pub session_id: Option<SessionId>,
    /// The agent's name.
    pub agent: String,
    /// `provider/model`, as configured, that answered.
    pub model: String,
    /// The text.
    pub content: Arc<str>,
    /// The model's reasoning, where the request asked for it and there was some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<Arc<str>>,
    /// Why it ended; `None` only for an answer that did not get to its end (a cancelled or failed run's).
    pub finish_reason: Option<FinishKind>,
    /// Tokens, over all rounds.
    pub usage: Usage,
    /// How many model calls.
    pub rounds: u32,
    /// What tools were called, in order.
    pub tool_calls: Vec<ToolRecord>,
    /// The answer as data, where a form was asked for.
    pub structured_data: Option<JsonText>,
    /// Files the run made.
    pub artifact_files: Vec<Artifact>,
    /// The messages this run added to its session.
    pub messages: Vec<Message>,
    /// What the request brought.
    pub metadata: BTreeMap<String, String>,
}

/// A tool call and how it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolRecord {
    /// The call's id.
    pub id: String,
    /// The tool.
    pub name: String,
    /// What it was given; empty where the model's arguments could not be parsed.
    pub arguments: Map<String, Value>,
    /// In which round.
    pub round: u32,
    /// Whether it worked.
    pub ok: bool,
    /// What the model was told. Shared with its message.
    pub result: Arc<str>,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// JSON as text, shared: as values, data takes many times its text. U+2028 and U+2029, which some readers take for the end
/// of a line, are escaped in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText(Arc<str>);

impl JsonText {
    /// A value as text.
    #[must_use]
    pub fn of(value: &Value) -> Self {
        Self::escaped(value.to_string())
    }

    fn escaped(text: String) -> Self {
        if memmem::find(text.as_bytes(), b"\xE2\x80").is_none() {
            return Self(text.into());
        }
        Self(
            text.replace('\u{2028}', "\\u2028")
                .replace('\u{2029}', "\\u2029")
                .into(),
        )
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &Arc<str> {
        &self.0
    }

    /// Another text, which must be JSON, too.
    #[must_use]
    pub(crate) fn of_text(text: &str) -> Self {
        Self(text.into())
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self::escaped(String::from(Box::<str>::from(raw))))
    }
}

impl Done {
    /// Has the answer's messages and tool calls share the texts that they have in common with the answer, so that a result
    /// which was read from a store holds each text once.
    #[must_use]
    pub fn sharing(mut self) -> Self {
        let Answer {
            content,
            messages,
            tool_calls,
            ..
        } = &mut self.answer;
        for message in messages {
            if message.content == *content {
                message.content = content.clone();
            }
            let call = tool_calls
                .iter_mut()
                .find(|call| message.tool_call_id.as_ref() == Some(&call.id));
            if let Some(call) = call.filter(|call| call.result == message.content) {
                call.result = message.content.clone();
            }
        }
        self
    }
}

/// The end of a run that completed: its answer, and what is told beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The answer.
    pub answer: Answer,
    /// From the request to the commit, in milliseconds.
    pub duration_ms: u64,
    /// From the request to the first content of the model, in milliseconds; `None` for an answer without any.
    pub first_token_ms: Option<u64>,
    /// Whether old turns were left out of what the model was sent.
    pub history_truncated: bool,
    /// Whether the answer is not what was streamed, because that did not fit the form asked for.
    #[serde(default)]
    pub repaired: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn data_is_the_same_value_as_text_and_has_no_ends_of_lines() {
        let value = json!({"b": ["\u{2028}x", "\u{2029}", "“\n"], "a": 1.50});
        let text = JsonText::of(&value);
        assert!(!text.text().contains(['\u{2028}', '\u{2029}', '\n']), "{text:?}");
        assert_eq!(serde_json::to_value(&text).unwrap(), value);
        let back: JsonText = serde_json::from_str(&serde_json::to_string(&value).unwrap()).unwrap();
        assert_eq!(back, text);
        assert_eq!(serde_json::from_value::<JsonText>(value.clone()).unwrap(), text);
        let none: Option<JsonText> = serde_json::from_str("null").unwrap();
        assert_eq!(none, None);
    }
}

//! The fields of OpenAI's answers that we read; all others are ignored (`obfuscation`, `system_fingerprint`, …).
//! Compatible servers write some of them in other JSON types, so these are read loosely.

use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use super::opaque::Others;
use crate::provider::loose::{LooseInt, LooseList, LooseStruct, LooseText};

/// `chat.completion.chunk`, and `chat.completion` where `message` stands for `delta`.
#[derive(Deserialize)]
pub(super) struct Completion<'a> {
    #[serde(borrow, default)]
    pub(super) choices: Option<LooseList<Choice<'a>>>,
    /// `null` on all chunks but the one that has it.
    #[serde(borrow, default)]
    pub(super) usage: Option<&'a RawValue>,
    /// An error inside a 200: an object, or from some servers a string.
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(default)]
    pub(super) index: Option<LooseInt>,
    #[serde(borrow, default)]
    pub(super) delta: Option<LooseStruct<Delta<'a>>>,
    /// The whole message: of an answer that is no stream, and of servers that send it in streams too.
    #[serde(borrow, default)]
    pub(super) message: Option<LooseStruct<Delta<'a>>>,
    /// The words where a server answers in the form before chats.
    #[serde(borrow, default)]
    pub(super) text: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<LooseText<'a>>,
    /// Of servers that count inside the choice.
    #[serde(borrow, default)]
    pub(super) usage: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
pub(super) struct Delta<'a> {
    #[serde(borrow, default)]
    pub(super) content: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) refusal: Option<LooseText<'a>>,
    /// Compatible servers show the model's thinking under either name; OpenAI's own never does.
    #[serde(borrow, default)]
    pub(super) reasoning_content: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) reasoning: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) tool_calls: Option<LooseList<ToolCallDelta<'a>>>,
    /// The form before tools; `finish_reason` is then `function_call`.
    #[serde(borrow, default)]
    pub(super) function_call: Option<LooseStruct<Function<'a>>>,
    #[serde(flatten)]
    others: Others,
}

impl Delta<'_> {
    /// Whether there can be members that are carried with the message: so that most events, which
    /// have words only, are parsed once.
    pub(super) fn can_carry(&self) -> bool {
        let thinks = self.reasoning_content.is_some() || self.reasoning.is_some();
        thinks || self.tool_calls.is_some() || self.others.any
    }
}

#[derive(Default, Deserialize)]
pub(super) struct ToolCallDelta<'a> {
    #[serde(default)]
    pub(super) index: Option<LooseInt>,
    #[serde(borrow, default)]
    pub(super) id: Option<LooseText<'a>>,
    /// `function`; of another type there is no call of ours.
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) function: Option<LooseStruct<Function<'a>>>,
    /// A call of a tool that takes free text, which is never offered.
    #[serde(default)]
    pub(super) custom: Option<IgnoredAny>,
    /// The function's fields, where a server writes them beside the id.
    #[serde(borrow, default)]
    pub(super) name: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) arguments: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
pub(super) struct Function<'a> {
    #[serde(borrow, default)]
    pub(super) name: Option<LooseText<'a>>,
    /// JSON in a string, in pieces; from some servers an object, whole.
    #[serde(borrow, default)]
    pub(super) arguments: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_have_words_only_carry_nothing() {
        let can_carry = |delta: &str| serde_json::from_str::<Delta<'_>>(delta).unwrap().can_carry();
        for words in [
            "{}",
            r#"{"content":"Hi"}"#,
            r#"{"role":"assistant","content":"Hi","tool_calls":null,"reasoning_content":null,"refusal":null}"#,
        ] {
            assert!(!can_carry(words), "{words}");
        }
        for more in [
            r#"{"content":"Hi","reasoning_details":[{"signature":"s","n":1.5}]}"#,
            r#"{"\u0072easoning_details":[]}"#,
            r#"{"reasoning_content":"x"}"#,
            r#"{"tool_calls":[{"index":0,"extra_content":{}}]}"#,
        ] {
            assert!(can_carry(more), "{more}");
        }
    }
}

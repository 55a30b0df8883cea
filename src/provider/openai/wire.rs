//! The fields of OpenAI's answers that we read; all others are ignored (`obfuscation`, `system_fingerprint`, …).
//! Compatible servers write some of them in other JSON types, so these are read loosely.

use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

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

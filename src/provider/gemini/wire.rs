//! The fields of Gemini's answers that we read; all others are ignored (`safetyRatings`, `groundingMetadata`, …).

use std::borrow::Cow;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use crate::provider::loose::{LooseBool, LooseInt, LooseList, LooseStruct, LooseText};

/// `GenerateContentResponse`: an event of the stream, an element of the array that comes without `alt=sse`, or the whole.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Response<'a> {
    #[serde(borrow, default)]
    pub(super) candidates: Option<LooseList<Candidate<'a>>>,
    #[serde(borrow, default)]
    pub(super) prompt_feedback: Option<LooseStruct<PromptFeedback<'a>>>,
    /// In nearly every event; the last counts.
    #[serde(borrow, default)]
    pub(super) usage_metadata: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PromptFeedback<'a> {
    #[serde(borrow, default)]
    pub(super) block_reason: Option<LooseText<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Candidate<'a> {
    #[serde(default)]
    pub(super) index: Option<LooseInt>,
    #[serde(borrow, default)]
    pub(super) content: Option<LooseStruct<Content<'a>>>,
    /// A member of an enumeration: its name, or its number where enumerations are encoded so.
    #[serde(borrow, default)]
    pub(super) finish_reason: Option<LooseText<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Content<'a> {
    #[serde(borrow, default)]
    pub(super) parts: Option<LooseList<Part<'a>>>,
}

/// One of many kinds, told apart by which field it has. What is not known yet has none of these.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Part<'a> {
    #[serde(borrow, default)]
    pub(super) text: Option<LooseText<'a>>,
    /// Whether the text is a summary of the model's thinking.
    #[serde(default)]
    pub(super) thought: Option<LooseBool>,
    #[serde(borrow, default)]
    pub(super) thought_signature: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) function_call: Option<LooseStruct<FunctionCall<'a>>>,
    /// Tools that Google runs: code and its result, searches and theirs.
    #[serde(default)]
    pub(super) executable_code: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) tool_call: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) code_execution_result: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) tool_response: Option<IgnoredAny>,
    /// Files, for which there is no word of ours.
    #[serde(default)]
    pub(super) inline_data: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) file_data: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FunctionCall<'a> {
    /// From newer models only.
    #[serde(borrow, default)]
    pub(super) id: Option<LooseText<'a>>,
    /// Absent on what continues a call.
    #[serde(borrow, default)]
    pub(super) name: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) args: Option<&'a RawValue>,
    /// Arguments piece by piece (`streamFunctionCallArguments`, which we do not ask for).
    #[serde(borrow, default)]
    pub(super) partial_args: Option<LooseList<PartialArg<'a>>>,
    #[serde(default)]
    pub(super) will_continue: Option<LooseBool>,
}

/// One value of a call's arguments, or a piece of a string. Without any value it is `null`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PartialArg<'a> {
    #[serde(borrow, default)]
    pub(super) json_path: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) string_value: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) number_value: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) bool_value: Option<bool>,
}

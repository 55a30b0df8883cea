//! The fields of Ollama's lines that we read; all others are ignored (`created_at`, `context`, `logprobs`, …).

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A line of an answer.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow, default)]
    pub(super) message: Option<Message<'a>>,
    /// The text where `/api/generate` answers, which some proxies put behind `/api/chat`.
    #[serde(borrow, default)]
    pub(super) response: Option<Cow<'a, str>>,
    /// The thinking beside it.
    #[serde(borrow, default)]
    pub(super) thinking: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(super) done: Option<bool>,
    /// Absent from old versions.
    #[serde(borrow, default)]
    pub(super) done_reason: Option<Cow<'a, str>>,
    /// A sentence.
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow, default)]
    pub(super) content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) thinking: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) tool_calls: Option<Vec<ToolCall<'a>>>,
}

#[derive(Deserialize)]
pub(super) struct ToolCall<'a> {
    /// Only newer versions give one.
    #[serde(borrow, default)]
    pub(super) id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) function: Function<'a>,
}

#[derive(Deserialize)]
pub(super) struct Function<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    /// An object, whole.
    #[serde(borrow, default)]
    pub(super) arguments: Option<&'a RawValue>,
}

//! The fields of Ollama's lines that we read; all others are ignored (`created_at`, `context`, `logprobs`, …).

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::provider::loose::{LooseBool, LooseList, LooseStruct, LooseText};

/// A line of an answer.
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow, default)]
    pub(super) message: Option<LooseStruct<Message<'a>>>,
    /// The text where `/api/generate` answers, which some proxies put behind `/api/chat`.
    #[serde(borrow, default)]
    pub(super) response: Option<LooseText<'a>>,
    /// The thinking beside it.
    #[serde(borrow, default)]
    pub(super) thinking: Option<LooseText<'a>>,
    #[serde(default)]
    pub(super) done: Option<LooseBool>,
    /// Absent from old versions.
    #[serde(borrow, default)]
    pub(super) done_reason: Option<LooseText<'a>>,
    /// A sentence.
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow, default)]
    pub(super) content: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) thinking: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) tool_calls: Option<LooseList<ToolCall<'a>>>,
}

#[derive(Deserialize)]
pub(super) struct ToolCall<'a> {
    /// Only newer versions give one.
    #[serde(borrow, default)]
    pub(super) id: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) function: Option<LooseStruct<Function<'a>>>,
}

#[derive(Default, Deserialize)]
pub(super) struct Function<'a> {
    #[serde(borrow, default)]
    pub(super) name: Option<LooseText<'a>>,
    /// An object, whole.
    #[serde(borrow, default)]
    pub(super) arguments: Option<&'a RawValue>,
}

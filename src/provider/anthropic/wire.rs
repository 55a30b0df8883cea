//! The fields of Anthropic's answers that we read; all others are ignored. What depends on a `type` stays raw until the
//! type is known: an unknown one may hold anything.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::provider::loose::{LooseInt, LooseText};

/// Any event of a stream.
#[derive(Deserialize)]
pub(super) struct Event<'a> {
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Option<Cow<'a, str>>,
    /// Which block.
    #[serde(default)]
    pub(super) index: Option<LooseInt>,
    /// Of `message_start`: a [`Message`].
    #[serde(borrow, default)]
    pub(super) message: Option<&'a RawValue>,
    /// Of `content_block_start`: a block.
    #[serde(borrow, default)]
    pub(super) content_block: Option<&'a RawValue>,
    /// Of `content_block_delta` and `message_delta`: a [`Delta`] or an [`Ending`].
    #[serde(borrow, default)]
    pub(super) delta: Option<&'a RawValue>,
    /// Of `message_delta`.
    #[serde(borrow, default)]
    pub(super) usage: Option<&'a RawValue>,
    /// Of `error`.
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

/// A whole answer; in `message_start`, one without content.
#[derive(Deserialize)]
pub(super) struct Message<'a> {
    #[serde(borrow, default)]
    pub(super) id: Option<LooseText<'a>>,
    /// A list of blocks.
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) stop_reason: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) error: Option<&'a RawValue>,
}

/// What something is.
#[derive(Deserialize)]
pub(super) struct Tagged<'a> {
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Option<Cow<'a, str>>,
}

/// A `text` block.
#[derive(Deserialize)]
pub(super) struct Text<'a> {
    #[serde(borrow, default)]
    pub(super) text: Option<LooseText<'a>>,
}

/// A `thinking` block.
#[derive(Deserialize)]
pub(super) struct Thinking<'a> {
    #[serde(borrow, default)]
    pub(super) thinking: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) signature: Option<LooseText<'a>>,
}

/// A `redacted_thinking` block.
#[derive(Deserialize)]
pub(super) struct Redacted<'a> {
    #[serde(borrow)]
    pub(super) data: Cow<'a, str>,
}

/// A `tool_use` block.
#[derive(Deserialize)]
pub(super) struct ToolUse<'a> {
    #[serde(borrow, default)]
    pub(super) id: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) name: Option<LooseText<'a>>,
    /// `{}` where deltas bring it.
    #[serde(borrow, default)]
    pub(super) input: Option<&'a RawValue>,
}

/// More of a block: of the types that we read, each has one of these.
#[derive(Deserialize)]
pub(super) struct Delta<'a> {
    #[serde(borrow, default)]
    pub(super) text: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) thinking: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) signature: Option<LooseText<'a>>,
    #[serde(borrow, default)]
    pub(super) partial_json: Option<&'a RawValue>,
}

/// How the message ends.
#[derive(Deserialize)]
pub(super) struct Ending<'a> {
    #[serde(borrow, default)]
    pub(super) stop_reason: Option<LooseText<'a>>,
}

/// What is carried: a block that the API wants back unchanged, and where among the message's words and calls it stood.
/// It is stored with sessions: its form is a promise.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    /// After so many bytes of the message's text,
    pub(super) text: usize,
    /// and so many of its calls.
    pub(super) calls: usize,
    /// The configured provider that it is from, and goes back to; older ones do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) provider: Option<String>,
    /// `thinking` or `redacted_thinking`, as it is to be sent.
    pub(super) block: serde_json::Value,
}

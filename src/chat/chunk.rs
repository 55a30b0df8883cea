//! What a model does, piece by piece: the words a dialect's decoder speaks.

use serde::{Deserialize, Serialize};

use super::{Carry, Usage};

/// One thing a model did, in order. The last of a stream is always [`Chunk::Finish`]; a stream without it is truncated.
#[derive(Clone, Debug, PartialEq)]
pub enum Chunk {
    /// More of the answer; never empty. A refusal's words are the answer's too.
    Text(String),
    /// More of the model's thinking; never empty.
    Reasoning(String),
    /// A tool call begins.
    ToolCallStart {
        /// Which call of this round, from 0, without gaps.
        index: usize,
        /// The provider's id, or ours where it gave none.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// More of a call's arguments, as JSON text.
    ToolCallDelta {
        /// Which call.
        index: usize,
        /// A piece of JSON text.
        arguments: String,
    },
    /// Something for the provider itself, to be handed back with this message.
    Carry(Carry),
    /// The model is finished, and says why.
    Finish {
        /// Why.
        reason: FinishReason,
        /// What it cost, as far as the provider said.
        usage: Usage,
    },
}

impl Chunk {
    /// Whether this is the model speaking: as opposed to its end, and to what is not for us.
    #[must_use]
    pub fn is_content(&self) -> bool {
        !matches!(self, Chunk::Finish { .. } | Chunk::Carry(_))
    }
}

/// Why a model stopped: our word, and theirs beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishReason {
    /// Ours.
    pub kind: FinishKind,
    /// Theirs, unchanged.
    pub raw: Option<String>,
}

/// Why a model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishKind {
    /// It had said all.
    Stop,
    /// The limit of tokens was reached.
    Length,
    /// A filter of the provider's stopped it.
    ContentFilter,
    /// It asks for tools.
    ToolCalls,
}

impl FinishKind {
    /// The word that clients get.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FinishKind::Stop => "stop",
            FinishKind::Length => "length",
            FinishKind::ContentFilter => "content_filter",
            FinishKind::ToolCalls => "tool_calls",
        }
    }
}

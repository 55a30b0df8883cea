//! What a run did, event by event: what clients see. Changing it is changing the contract.

use serde_json::{Map, Value};

use super::{Artifact, Done};
use crate::error::Error;

/// One thing a run did. Events are numbered from 0 without gaps; the first is `Started`, the last `Done` or `Failed`.
#[derive(Clone, Debug)]
pub enum Event {
    /// The run exists; what it is stands with the run.
    Started,
    /// More of the answer.
    Text(String),
    /// More of the model's thinking (only where the client asked for it).
    Reasoning(String),
    /// The model calls a tool, with arguments that are a JSON object.
    ToolCall(ToolCallMade),
    /// What came of a call.
    ToolResult(ToolResult),
    /// A tool made a file, and it is kept.
    Artifact(Artifact),
    /// The run is complete and committed.
    Done(Box<Done>),
    /// The run ended otherwise.
    Failed(Error),
}

impl Event {
    /// Whether nothing follows this.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, Event::Done(_) | Event::Failed(_))
    }
}

/// A call, once its round is complete.
#[derive(Clone, Debug)]
pub struct ToolCallMade {
    /// The call's id.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
    /// In which round, from 1.
    pub round: u32,
    /// Whether it is the last of its round.
    pub last: bool,
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct ToolResult {
    /// The call's id.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Whether it worked.
    pub ok: bool,
    /// What the model is told.
    pub content: String,
    /// Whether the result was cut to its limit.
    pub truncated: bool,
    /// In milliseconds.
    pub duration_ms: u64,
    /// In which round, from 1.
    pub round: u32,
}

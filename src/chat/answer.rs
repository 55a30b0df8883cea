//! A finished run's result: the object that `/chat` answers with, `done` carries and the store keeps.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
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
    pub structured_data: Option<Value>,
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
    /// What the model was told.
    pub result: String,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
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

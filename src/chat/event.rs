//! What a run did, event by event: what clients see. Changing it is changing the contract.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Artifact, Done};
use crate::error::Error;

/// One thing a run did. Events are numbered from 0 without gaps; the first is `Started`, the last `Done` or `Failed`. The
/// JSON form is what gateways of one fleet tell each other; it is a promise between versions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// The run exists; what it is stands with the run.
    #[serde(rename = "s")]
    Started,
    /// More of the answer.
    #[serde(rename = "t")]
    Text(String),
    /// More of the model's thinking (only where the client asked for it).
    #[serde(rename = "r")]
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
#[derive(Clone, Debug, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Serialize, Deserialize)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;

    #[test]
    fn what_gateways_tell_each_other_is_a_promise() {
        let events = [
            Event::Started,
            Event::Text("Hello".into()),
            Event::Reasoning("Hm".into()),
            Event::ToolResult(ToolResult {
                id: "c".into(),
                name: "clock".into(),
                ok: true,
                content: "12:00".into(),
                truncated: false,
                duration_ms: 3,
                round: 1,
            }),
            Event::Failed(Error::new(ErrorCode::Interrupted, "It stopped.")),
        ];
        let json = serde_json::to_string(&events).unwrap();
        insta::assert_snapshot!(json);
        let back: Vec<Event> = serde_json::from_str(&json).unwrap();
        assert_eq!(format!("{back:?}"), format!("{events:?}"));
    }
}

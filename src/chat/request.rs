//! What is asked of a model: one call, in our words.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::Message;

/// One call to a model.
#[derive(Clone, Debug)]
pub struct ChatRequest {
    /// The model, as its provider names it.
    pub model: String,
    /// The agent's instructions, if any: what providers call the system prompt.
    pub instructions: Option<String>,
    /// The conversation, oldest first; the last is the user's or a tool's.
    pub messages: Vec<Message>,
    /// What the model may call.
    pub tools: Vec<ToolDefinition>,
    /// Whether it must.
    pub tool_choice: ToolChoice,
    /// How it should answer.
    pub settings: Settings,
    /// In what form.
    pub response_format: ResponseFormat,
    /// The trace that it is part of, as W3C's `traceparent`.
    pub trace: Option<String>,
    /// What may be asked again, should it be refused.
    pub again: Again,
}

/// What may be asked again when a provider refuses it, and until when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Again {
    /// Only what was never sent, for want of a connection: the client has been told of this run, or a tool has run.
    pub unsent_only: bool,
    /// When the answer will be of no use any more.
    pub until: Option<Instant>,
}

/// A tool as a model is told of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolDefinition {
    /// `[A-Za-z0-9_-]{1,64}`.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// A JSON Schema of an object.
    pub parameters: Value,
}

impl ToolDefinition {
    /// Whether there is nothing that a call could give it.
    #[must_use]
    pub fn takes_no_arguments(&self) -> bool {
        let Some(schema) = self.parameters.as_object() else {
            return false;
        };
        schema.iter().all(|(word, value)| match word.as_str() {
            "type" | "$schema" | "title" | "description" => true,
            "properties" => value.as_object().is_some_and(Map::is_empty),
            "required" => value.as_array().is_some_and(Vec::is_empty),
            "additionalProperties" => value == false,
            _ => false,
        })
    }
}

/// Whether the model may, must or must not call tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

/// Settings of a call; what is `None` is left to the provider.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// 0 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Above 0, at most 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// In tokens, reasoning included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u64>,
    /// At most 4 strings that end the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// For answers that repeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// The provider's word: `minimal`, `low`, `medium`, `high`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<String>,
}

impl Settings {
    /// These, and for what these leave open, those of `defaults`.
    #[must_use]
    pub fn over(self, defaults: &Settings) -> Settings {
        Settings {
            temperature: self.temperature.or(defaults.temperature),
            top_p: self.top_p.or(defaults.top_p),
            max_output_tokens: self.max_output_tokens.or(defaults.max_output_tokens),
            stop: if self.stop.is_empty() {
                defaults.stop.clone()
            } else {
                self.stop
            },
            seed: self.seed.or(defaults.seed),
            reasoning_effort: self.reasoning_effort.or_else(|| defaults.reasoning_effort.clone()),
        }
    }
}

/// The form of the answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ResponseFormat {
    /// Words.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that fits a schema.
    JsonSchema {
        /// `[A-Za-z0-9_-]{1,64}`.
        name: String,
        /// The schema, of an object.
        schema: Value,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_tool_without_any_parameter_takes_no_arguments() {
        for (parameters, expected) in [
            (json!({"type": "object"}), true),
            (
                json!({"type": "object", "properties": {}, "required": [], "additionalProperties": false}),
                true,
            ),
            (json!({"type": "object", "properties": {"x": {}}}), false),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                false,
            ),
            (json!({"type": "object", "anyOf": []}), false),
            (json!(true), false),
        ] {
            let tool = ToolDefinition {
                name: "t".into(),
                description: String::new(),
                parameters: parameters.clone(),
            };
            assert_eq!(tool.takes_no_arguments(), expected, "{parameters}");
        }
    }
}

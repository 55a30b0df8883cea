//! What was said: the messages of a session, as they are kept and as they are sent to a model.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Whose words a message holds. (Instructions are not a message: see [`super::ChatRequest::instructions`].)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The caller's.
    User,
    /// The model's.
    Assistant,
    /// A tool's result, for the model.
    Tool,
}

/// One message. Its JSON form is a promise: it is what the store keeps and what clients read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Whose words.
    pub role: Role,
    /// The text; of a tool's message, its result. Shared: an answer is long.
    pub content: Arc<str>,
    /// What the assistant asked for.
    #[serde(default)]
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's message: which call it answers.
    #[serde(default)]
    pub tool_call_id: Option<String>,
    /// Images sent with a user's message; kept for the model, not repeated to clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Image>,
    /// Of an assistant's message: what its provider wants back, unread; not shown to clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carry: Vec<Carry>,
    /// Of a tool's message: whether the call failed; for the model, not shown to clients.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
}

impl Message {
    /// What the caller said.
    #[must_use]
    pub fn user(content: impl Into<Arc<str>>, attachments: Vec<Image>) -> Self {
        Self {
            role: Role::User,
            content: content.into(),
            tool_calls: Vec::new(),
            tool_call_id: None,
            attachments,
            carry: Vec::new(),
            failed: false,
        }
    }

    /// What the model said and asked for.
    #[must_use]
    pub fn assistant(content: impl Into<Arc<str>>, tool_calls: Vec<ToolCall>) -> Self {
        Self {
            role: Role::Assistant,
            content: content.into(),
            tool_calls,
            tool_call_id: None,
            attachments: Vec::new(),
            carry: Vec::new(),
            failed: false,
        }
    }

    /// What a tool gave back.
    #[must_use]
    pub fn tool(call_id: impl Into<String>, result: impl Into<Arc<str>>) -> Self {
        Self {
            role: Role::Tool,
            content: result.into(),
            tool_calls: Vec::new(),
            tool_call_id: Some(call_id.into()),
            attachments: Vec::new(),
            carry: Vec::new(),
            failed: false,
        }
    }

    /// What a tool gave back that failed.
    #[must_use]
    pub fn failure(call_id: impl Into<String>, why: impl Into<Arc<str>>) -> Self {
        Self {
            failed: true,
            ..Self::tool(call_id, why)
        }
    }

    /// The same, with what its provider wants back.
    #[must_use]
    pub fn carrying(self, carry: Vec<Carry>) -> Self {
        Self { carry, ..self }
    }

    /// The same message as clients see it: without the bytes of its images, and without what is for its provider only.
    #[must_use]
    pub fn shown(&self) -> Self {
        Self {
            role: self.role,
            content: self.content.clone(),
            tool_calls: self.tool_calls.clone(),
            tool_call_id: self.tool_call_id.clone(),
            attachments: Vec::new(),
            carry: Vec::new(),
            failed: false,
        }
    }
}

/// A call that a model asked for, complete and parsed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The provider's id for it, or ours where it gave none.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments: always an object.
    pub arguments: Map<String, Value>,
}

/// Something of a provider's that is kept with the message it came with, and handed back unread: signatures of thinking,
/// encrypted reasoning. Another dialect's is not sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Carry {
    /// Whose.
    pub dialect: String,
    /// What, in the dialect's own form.
    pub data: Value,
}

/// What a value holds, in bytes: an estimate.
#[must_use]
pub fn held(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(all) => all.iter().map(held).sum(),
            Value::Object(all) => members(all),
            _ => 0,
        }
}

/// What an object's members hold, in bytes.
#[must_use]
pub fn members(all: &Map<String, Value>) -> usize {
    all.iter().map(|(name, value)| name.len() + held(value)).sum()
}

/// An image, as the request brought it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// `image/png`, `image/jpeg`, `image/webp` or `image/gif`.
    pub media_type: String,
    /// Its bytes in base64, standard alphabet, padded. Shared, because an image is large.
    pub data: Arc<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_form_is_a_promise() {
        let call = ToolCall {
            id: "c1".into(),
            name: "add".into(),
            arguments: Map::from_iter([("a".into(), 1.into())]),
        };
        insta::assert_json_snapshot!([
            Message::user("Hi", vec![Image { media_type: "image/png".into(), data: "AAAA".into() }]),
            Message::assistant("", vec![call]),
            Message::tool("c1", "3"),
        ], @r#"
        [
          {
            "role": "user",
            "content": "Hi",
            "tool_calls": [],
            "tool_call_id": null,
            "attachments": [
              {
                "media_type": "image/png",
                "data": "AAAA"
              }
            ]
          },
          {
            "role": "assistant",
            "content": "",
            "tool_calls": [
              {
                "id": "c1",
                "name": "add",
                "arguments": {
                  "a": 1
                }
              }
            ],
            "tool_call_id": null
          },
          {
            "role": "tool",
            "content": "3",
            "tool_calls": [],
            "tool_call_id": "c1"
          }
        ]
        "#);
    }
}

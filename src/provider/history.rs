//! What every dialect does with the conversation before it is written on its wire.

use std::{borrow::Cow, collections::BTreeSet};

use serde_json::{Value, json};

use crate::chat::{ChatRequest, ToolChoice, ToolDefinition};

/// The tools to send with a request, and whether they may be called.
///
/// A conversation with calls is refused by some servers if no tools come with it. If the agent has
/// none any more, the tools that were called are described by their names, and none may be called.
pub(super) fn tools(request: &ChatRequest) -> (Cow<'_, [ToolDefinition]>, &ToolChoice) {
    if !request.tools.is_empty() {
        return (Cow::Borrowed(&request.tools), &request.tool_choice);
    }
    let calls = request.messages.iter().flat_map(|message| &message.tool_calls);
    let names: BTreeSet<&str> = calls.map(|call| call.name.as_str()).collect();
    let described = names.into_iter().map(|name| ToolDefinition {
        name: name.to_owned(),
        description: String::new(),
        parameters: json!({"type": "object", "properties": {}}),
    });
    (described.collect(), &ToolChoice::None)
}

/// A text with something in it: strict servers refuse blank ones.
pub(super) fn has_text(text: &str) -> bool {
    !text.trim().is_empty()
}

/// The contents of two messages of one side as one content: a text, or parts whose texts have this
/// type.
pub(super) fn joined(content: Value, more: Value, text_type: &str) -> Value {
    let parts = |content: Value| match content {
        Value::Array(parts) => parts,
        Value::String(text) => vec![json!({"type": text_type, "text": text})],
        _ => Vec::new(),
    };
    match (content, more) {
        (Value::Null, content) | (content, Value::Null) => content,
        (Value::String(text), Value::String(more)) => Value::String(format!("{text}\n\n{more}")),
        (content, more) => Value::Array(parts(content).into_iter().chain(parts(more)).collect()),
    }
}

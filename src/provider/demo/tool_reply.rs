//! What tools gave back, in words.

use serde_json::Value;

use super::{SELF, quote};
use crate::chat::{Message, Role, ToolCall};

/// What the tools gave back, in words; nothing if the last message is no tool's.
pub(super) fn results(messages: &[Message]) -> Option<String> {
    let from = messages.iter().rposition(|m| m.role != Role::Tool)? + 1;
    let (asked, given) = messages.split_at(from);
    if given.is_empty() {
        return None;
    }
    let calls = asked.last().map_or(&[][..], |message| &message.tool_calls[..]);
    let mut text = String::new();
    for result in given {
        let call = calls.iter().find(|call| Some(&call.id) == result.tool_call_id.as_ref());
        text.push_str(&told(call, result));
        text.push(' ');
    }
    text.push_str(SELF);
    Some(text)
}

/// One result in words.
fn told(call: Option<&ToolCall>, result: &Message) -> String {
    let content = quote(&result.content);
    let Some(call) = call else {
        return format!("A tool says: {content}");
    };
    let argument = |name: &str| call.arguments.get(name).and_then(Value::as_str);
    if result.failed {
        return format!("The tool {} failed: {content}", call.name);
    }
    let value: Value = serde_json::from_str(&result.content).unwrap_or_default();
    let field = |name: &str| value.get(name).and_then(Value::as_str);
    match (
        call.name.as_str(),
        field("time"),
        argument("expression"),
        argument("name"),
    ) {
        ("current_time", Some(time), ..) if time.get(11..16).is_some() => format!(
            "It is {} in {} ({}, {}).",
            &time[11..16],
            field("timezone").unwrap_or("UTC"),
            field("weekday").unwrap_or_default(),
            time.get(..10).unwrap_or_default()
        ),
        ("calculator", _, Some(expression), _) if content.starts_with("approx. ") => {
            format!("{expression} is {content}.")
        }
        ("calculator", _, Some(expression), _) => format!("{expression} = {content}."),
        ("write_file", _, _, Some(name)) => {
            format!("I wrote {name}; download it at the address in the tool's result: {content}")
        }
        (name, ..) => format!("The tool {name} says: {content}"),
    }
}

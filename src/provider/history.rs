//! What every dialect does with the conversation before it is written on its wire.

use std::{borrow::Cow, collections::BTreeSet};

use serde_json::{Value, json};

use super::call_ids::{CallIds, IdForm};
use crate::chat::{ChatRequest, Image, Message, Role, ToolChoice, ToolDefinition};

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

/// The messages of the turn under way: from the question that is answered on.
pub(super) fn current_turn(request: &ChatRequest) -> &[Message] {
    let question = request.messages.iter().rposition(|message| message.role == Role::User);
    &request.messages[question.unwrap_or(0)..]
}

/// Whether earlier turns have images.
pub(super) fn has_old_images(request: &ChatRequest) -> bool {
    let earlier = request.messages.len() - current_turn(request).len();
    request.messages[..earlier]
        .iter()
        .any(|message| !message.attachments.is_empty())
}

/// Whether there are calls in the conversation.
pub(super) fn has_calls(request: &ChatRequest) -> bool {
    request.messages.iter().any(|message| !message.tool_calls.is_empty())
}

/// The request with ids of calls that every known server takes.
pub(super) fn with_short_ids(request: &ChatRequest) -> ChatRequest {
    let mut ids = CallIds::new(IdForm::Nine);
    let mut messages = request.messages.clone();
    for (from, to) in request.messages.iter().zip(&mut messages) {
        for (from, to) in from.tool_calls.iter().zip(&mut to.tool_calls) {
            to.id = ids.of_call(&from.id);
        }
        to.tool_call_id = from.tool_call_id.as_deref().map(|id| ids.of_result(id));
    }
    ChatRequest {
        messages,
        ..request.clone()
    }
}

/// The request without the images of earlier turns that are not taken, each with a note in its place.
/// Those of the turn under way stay, because they have been checked, or are the provider's to refuse.
pub(super) fn without_old_images(request: &ChatRequest, takes: impl Fn(&Image) -> bool) -> Cow<'_, ChatRequest> {
    let earlier = request.messages.len() - current_turn(request).len();
    let old = request.messages[..earlier]
        .iter()
        .flat_map(|message| &message.attachments);
    if old.into_iter().all(&takes) {
        return Cow::Borrowed(request);
    }
    let messages = request.messages.iter().enumerate().map(|(at, message)| match at {
        at if at >= earlier => message.clone(),
        _ => without_images(message, &takes),
    });
    Cow::Owned(ChatRequest {
        messages: messages.collect(),
        ..request.clone()
    })
}

fn without_images(message: &Message, takes: impl Fn(&Image) -> bool) -> Message {
    let (kept, left_out): (Vec<_>, Vec<_>) = message.attachments.iter().partition(|image| takes(image));
    let mut content = message.content.to_string();
    for image in left_out {
        if !content.is_empty() {
            content.push_str("\n\n");
        }
        let note = format!(
            "[An image ({}) was left out: this model does not take it.]",
            image.media_type
        );
        content.push_str(&note);
    }
    Message {
        content: content.into(),
        attachments: kept.into_iter().cloned().collect(),
        ..message.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Again, ResponseFormat, Settings};

    fn image(media_type: &str) -> Image {
        Image {
            media_type: media_type.into(),
            data: "AAAA".into(),
        }
    }

    #[test]
    fn an_image_of_an_earlier_turn_that_is_not_taken_is_a_note() {
        let request = ChatRequest {
            model: "m".into(),
            instructions: None,
            messages: vec![
                Message::user("Look", vec![image("image/png"), image("image/gif")]),
                Message::assistant("A cat.", vec![]),
                Message::user("", vec![image("image/gif")]),
            ],
            tools: vec![],
            tool_choice: ToolChoice::Auto,
            settings: Settings::default(),
            response_format: ResponseFormat::Text,
            trace: None,
            again: Again::default(),
        };
        let sent = without_old_images(&request, |image| image.media_type != "image/gif");
        assert_eq!(
            &*sent.messages[0].content,
            "Look\n\n[An image (image/gif) was left out: this model does not take it.]"
        );
        assert_eq!(sent.messages[0].attachments, [image("image/png")]);
        assert_eq!(sent.messages[1..], request.messages[1..]);
        assert!(matches!(without_old_images(&request, |_| true), Cow::Borrowed(_)));
    }
}

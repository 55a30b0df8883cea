//! What comes next: read off the messages, from nothing else.

use crate::chat::{Message, Role, ToolCall};

/// What comes next.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Ask the model.
    Ask,
    /// Answer these calls.
    Call(Vec<ToolCall>),
    /// It is all said.
    Stop,
}

/// What comes next after `messages`: calls without an answer are to be called, words of the user or of tools are to be
/// answered, words of the model end it.
#[must_use]
pub fn next(messages: &[Message]) -> Next {
    let Some(last) = messages.iter().rposition(|m| m.role != Role::Tool) else {
        return Next::Stop;
    };
    let (asked, answers) = (&messages[last], &messages[last + 1..]);
    let open = |call: &&ToolCall| !answers.iter().any(|a| a.tool_call_id.as_deref() == Some(&call.id));
    let open: Vec<ToolCall> = asked.tool_calls.iter().filter(open).cloned().collect();
    match (open.is_empty(), asked.role, asked.tool_calls.is_empty()) {
        (false, ..) => Next::Call(open),
        (true, Role::Assistant, true) => Next::Stop,
        _ => Next::Ask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_say_what_comes_next() {
        let call = |id: &str| ToolCall {
            id: id.into(),
            name: "t".into(),
            arguments: serde_json::Map::new(),
        };
        let mut talk = vec![Message::user("Hi", vec![])];
        assert_eq!(next(&talk), Next::Ask);
        talk.push(Message::assistant("", vec![call("a"), call("b")]));
        assert_eq!(next(&talk), Next::Call(vec![call("a"), call("b")]));
        talk.push(Message::tool("a", "1"));
        assert_eq!(next(&talk), Next::Call(vec![call("b")]));
        talk.push(Message::tool("b", "2"));
        assert_eq!(next(&talk), Next::Ask);
        talk.push(Message::assistant("Done.", vec![]));
        assert_eq!(next(&talk), Next::Stop);
        assert_eq!(next(&[]), Next::Stop);
    }
}

//! One message of a server's: how large it may be, and how it is read.
//!
//! A message is bounded before it is parsed, in bytes and in JSON values, because a value takes a
//! hundred times the memory that it takes to write `{},`.

use memchr::{memchr2, memmem};
use rmcp::model::{ErrorCode, ErrorData, JsonRpcMessage, RequestId, ServerJsonRpcMessage};
use serde::Deserialize;
use serde_json::{Value, json};

/// How large one message may be, in bytes: a file of 10 MiB in base64, and some words.
pub(super) const MAX_MESSAGE: usize = 16 << 20;
/// How many JSON values one message may hold: a list of 200 tools with schemas of 250 values each.
const MAX_VALUES: usize = 50_000;
/// From how many bytes on few messages of a server are read at once.
const LARGE: usize = 1 << 20;
/// The entry of a tool's `_meta` in which its `execution.taskSupport` is kept: the library drops the
/// field itself.
pub(super) const TASK_SUPPORT: &str = "sluicegate/task-support";

/// The size of a message that comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Size {
    bytes: usize,
    values: usize,
    in_string: bool,
    escaped: bool,
}

impl Size {
    /// Counts the next piece. Returns whether the message is still within its bounds.
    pub(super) fn admits(&mut self, piece: &[u8]) -> bool {
        self.bytes += piece.len();
        let mut rest = piece;
        while let Some((first, others)) = rest.split_first() {
            rest = match (self.in_string, self.escaped) {
                (true, true) => {
                    self.escaped = false;
                    others
                }
                (true, false) => {
                    let Some(at) = memchr2(b'"', b'\\', rest) else { break };
                    self.escaped = rest[at] == b'\\';
                    self.in_string = self.escaped;
                    &rest[at + 1..]
                }
                (false, _) => {
                    self.in_string = *first == b'"';
                    self.values += usize::from(matches!(first, b',' | b'[' | b'{'));
                    others
                }
            };
        }
        self.bytes <= MAX_MESSAGE && self.values <= MAX_VALUES
    }

    /// Whether few such messages are read at once.
    pub(super) fn is_large(&self) -> bool {
        self.bytes > LARGE
    }
}

/// The answer to a request whose own answer is beyond the bounds.
pub(super) fn too_large(id: RequestId) -> ServerJsonRpcMessage {
    let why = "the tool server's answer is too large: it has more than 16 MiB or 50000 JSON values";
    ServerJsonRpcMessage::error(ErrorData::internal_error(why, None), Some(id))
}

/// Reads a message. `asked` is the request that it can only be an answer to: an error answers that
/// request whatever id it names, because a server that could not read the request names none.
pub(super) fn read(bytes: &[u8], asked: Option<&RequestId>) -> Option<ServerJsonRpcMessage> {
    match parse(bytes) {
        Some(JsonRpcMessage::Error(refused)) => {
            let id = asked.cloned().or(refused.id);
            Some(ServerJsonRpcMessage::error(refused.error, id))
        }
        Some(message) => Some(message),
        None => read_error(bytes, asked),
    }
}

/// Reads an error, also one that is not as JSON-RPC has it, as long as it has a code or a message.
pub(super) fn read_error(bytes: &[u8], asked: Option<&RequestId>) -> Option<ServerJsonRpcMessage> {
    #[derive(Deserialize)]
    struct Refused {
        #[serde(default)]
        id: Option<RequestId>,
        error: Value,
    }
    let Refused { id, error } = serde_json::from_slice(bytes).ok()?;
    let code = error.get("code").and_then(Value::as_i64);
    let message = error.get("message").and_then(Value::as_str);
    if code.is_none() && message.is_none() {
        return None;
    }
    let code = code
        .and_then(|code| i32::try_from(code).ok())
        .unwrap_or(ErrorCode::INTERNAL_ERROR.0);
    let message = message.unwrap_or("the server did not say why").to_owned();
    let error = ErrorData::new(ErrorCode(code), message, None);
    Some(ServerJsonRpcMessage::error(error, asked.cloned().or(id)))
}

fn parse(bytes: &[u8]) -> Option<ServerJsonRpcMessage> {
    if memmem::find(bytes, b"\"taskSupport\"").is_none() {
        return serde_json::from_slice(bytes).ok();
    }
    let mut message: Value = serde_json::from_slice(bytes).ok()?;
    let tools = message.pointer_mut("/result/tools").and_then(Value::as_array_mut);
    for tool in tools.into_iter().flatten() {
        let Some(support) = tool.pointer("/execution/taskSupport").cloned() else {
            continue;
        };
        let Some(tool) = tool.as_object_mut() else { continue };
        let meta = tool.entry("_meta").or_insert_with(|| json!({}));
        if !meta.is_object() {
            *meta = json!({});
        }
        meta[TASK_SUPPORT] = support;
    }
    serde_json::from_value(message).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a text is admitted, however it is cut.
    fn admits(text: &str) -> bool {
        let whole = Size::default().admits(text.as_bytes());
        let mut size = Size::default();
        let pieces = text.as_bytes().chunks(7).map(|piece| size.admits(piece));
        assert_eq!(pieces.last().unwrap_or(true), whole);
        whole
    }

    #[test]
    fn values_are_counted_and_what_is_in_strings_is_not() {
        let many = |count: usize| format!("[{}0]", "{},".repeat(count));
        assert!(admits(&many(MAX_VALUES / 2 - 1)) && !admits(&many(MAX_VALUES / 2)));
        let text = format!("[\"{}\"]", ",[{\\\"\\\\".repeat(MAX_VALUES));
        assert!(admits(&text));
        assert!(admits(&"x".repeat(MAX_MESSAGE)) && !admits(&"x".repeat(MAX_MESSAGE + 1)));
    }

    #[test]
    fn an_error_answers_the_request_it_came_for() {
        let asked = RequestId::Number(7);
        for error in [
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"no session"}}"#,
            r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"no session"}}"#,
            r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":-32000,"message":"no session"}}"#,
            r#"{"id":null,"error":{"code":-32000,"message":"no session"}}"#,
            r#"{"error":{"message":"no session"}}"#,
        ] {
            let Some(JsonRpcMessage::Error(read)) = read(error.as_bytes(), Some(&asked)) else {
                panic!("{error}")
            };
            assert_eq!((read.id, &*read.error.message), (Some(asked.clone()), "no session"));
        }
        let other = r#"{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"m"}}"#;
        let Some(JsonRpcMessage::Error(read_alone)) = read(other.as_bytes(), None) else {
            panic!()
        };
        assert_eq!(read_alone.id, Some(RequestId::Number(3)));
        for nothing in ["", "{}", "[]", r#"{"error":"down"}"#, r#"{"error":{}}"#] {
            assert!(read(nothing.as_bytes(), Some(&asked)).is_none(), "{nothing}");
        }
    }
}

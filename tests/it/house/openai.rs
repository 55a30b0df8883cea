//! What OpenAI's Chat Completions says: the events as bytes, and the words for them in a [`Script`].

use bytes::Bytes;
use serde_json::{Value, json};

use super::Script;

impl Script {
    /// The event that opens an answer and says nothing.
    pub(crate) fn role(self) -> Self {
        self.send(role())
    }

    /// A piece of the answer's text.
    pub(crate) fn say(self, piece: &str) -> Self {
        self.send(text(piece))
    }

    /// The finish marker.
    pub(crate) fn finish(self, reason: &str) -> Self {
        self.send(finish(reason))
    }

    /// What it cost.
    pub(crate) fn usage(self, input: u64, output: u64) -> Self {
        self.send(usage(input, output))
    }

    /// `[DONE]`.
    pub(crate) fn done(self) -> Self {
        self.send(done())
    }

    /// All that ends a good answer: finish `stop`, usage 12 and 34, `[DONE]`, the last chunk.
    pub(crate) fn complete(self) -> Self {
        self.finish("stop").usage(12, 34).done().end()
    }
}

/// A whole good answer in these pieces.
pub(crate) fn answer(pieces: &[&str]) -> Script {
    pieces
        .iter()
        .fold(Script::sse().role(), |script, piece| script.say(piece))
        .complete()
}

/// The first event: the role, and no text.
pub(crate) fn role() -> Bytes {
    delta(json!({"role": "assistant", "content": "", "refusal": null}))
}

/// A piece of text.
pub(crate) fn text(piece: &str) -> Bytes {
    delta(json!({ "content": piece }))
}

/// A piece of a refusal.
pub(crate) fn refusal(piece: &str) -> Bytes {
    delta(json!({ "refusal": piece }))
}

/// A piece of a tool call: id and name belong to the first of an index, `None` to the later ones.
pub(crate) fn tool_delta<'a>(
    index: usize,
    id: impl Into<Option<&'a str>>,
    name: impl Into<Option<&'a str>>,
    arguments: &str,
) -> Bytes {
    let mut call = json!({"index": index, "function": {"arguments": arguments}});
    if let Some(id) = id.into() {
        call["id"] = id.into();
        call["type"] = "function".into();
    }
    if let Some(name) = name.into() {
        call["function"]["name"] = name.into();
    }
    delta(json!({ "tool_calls": [call] }))
}

/// The finish marker.
pub(crate) fn finish(reason: &str) -> Bytes {
    event(&chunk(
        json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": reason}]),
        Value::Null,
    ))
}

/// The event that has no choices, only counts.
pub(crate) fn usage(input: u64, output: u64) -> Bytes {
    let counts = json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
        "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}});
    event(&chunk(json!([]), counts))
}

/// `[DONE]`.
pub(crate) fn done() -> Bytes {
    Bytes::from_static(b"data: [DONE]\n\n")
}

/// An error in the middle of a stream: what stands under `error`.
pub(crate) fn error(error: Value) -> Bytes {
    event(&json!({ "error": error }))
}

/// Any JSON as an event.
pub(crate) fn event(data: &Value) -> Bytes {
    format!("data: {data}\n\n").into()
}

fn delta(delta: Value) -> Bytes {
    let choices = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]);
    event(&chunk(choices, Value::Null))
}

fn chunk(choices: Value, usage: Value) -> Value {
    json!({"id": "chatcmpl-test", "object": "chat.completion.chunk", "created": 1_700_000_000,
        "model": "test-model-2026-01-01", "service_tier": "default", "choices": choices, "usage": usage})
}

//! How every provider says the same round of a model, and where in a request it is told what: for stories that must hold
//! whoever answers. What only OpenAI says, and how it breaks off, is in [`super::openai`].

use bytes::Bytes;
use serde_json::{Value, json};

use super::gateway::Recipe;
use super::{Framing, Gateway, Place, Script, Upstream, openai};

/// A call that a model asks for: its id, the tool, the arguments.
pub(crate) type Ask<'a> = (&'a str, &'a str, Value);

/// A way to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Responses,
    Anthropic,
    Gemini,
    Groq,
    Ollama,
    Azure,
}

use Dialect::{Anthropic, Azure, Gemini, Groq, Ollama, OpenAi, Responses};

impl Dialect {
    pub(crate) const ALL: [Self; 7] = [OpenAi, Responses, Anthropic, Gemini, Groq, Ollama, Azure];

    /// What `kind` of provider it is.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            OpenAi => "openai",
            Responses => "openai-responses",
            Anthropic => "anthropic",
            Gemini => "gemini",
            Groq => "groq",
            Ollama => "ollama",
            Azure => "azure",
        }
    }

    /// The settings of a provider of this kind, at this place.
    pub(crate) fn provider(self, name: &str, upstream: &Upstream) -> String {
        let path = if matches!(self, Azure | Ollama) { "" } else { "/v1" };
        format!(
            r#"
[providers.{name}]
kind = "{}"
base_url = "http://{}{path}"
api_key = "test-key"
default_model = "test-model"
"#,
            self.kind(),
            upstream.addr()
        )
    }

    /// A gateway whose agent asks the model `model/test-model` of this kind, at this place.
    pub(crate) fn gateway(self, upstream: &Upstream) -> Recipe {
        let recipe = Gateway::with(upstream).toml(&self.provider("model", upstream));
        recipe.toml("[agents.assistant]\nmodel = \"model/test-model\"")
    }

    /// A whole round: these pieces of text, then these calls, with thinking that is wanted back where there are calls and
    /// the dialect has that. It costs 10 and 5 tokens.
    pub(crate) fn round(self, said: &[&str], asks: &[Ask<'_>]) -> Script {
        self.script(self.events(said, asks)).end()
    }

    /// The events of [`Dialect::round`].
    pub(crate) fn events(self, said: &[&str], asks: &[Ask<'_>]) -> Vec<Bytes> {
        match self {
            OpenAi | Azure => chat(self, said, asks),
            Groq => groq(said, asks),
            Responses => responses(said, asks),
            Anthropic => anthropic(said, asks),
            Gemini => gemini(said, asks),
            Ollama => ollama(said, asks),
        }
    }

    /// The head of a stream, and these events: not yet its end.
    pub(crate) fn script(self, events: impl IntoIterator<Item = Bytes>) -> Script {
        let head = match self {
            Ollama => Script::head(200, &[("content-type", "application/x-ndjson")], Framing::Chunked),
            _ => Script::sse(),
        };
        events.into_iter().fold(head, Script::send)
    }

    /// Whether this is the event by which a round is complete.
    pub(crate) fn completes(self, event: &[u8]) -> bool {
        let marker = match self {
            OpenAi | Azure | Groq => r#""finish_reason":""#,
            Responses => "response.completed",
            Anthropic => "message_stop",
            Gemini => "finishReason",
            Ollama => r#""done":true"#,
        };
        memchr::memmem::find(event, marker.as_bytes()).is_some()
    }

    /// The conversation in a request.
    pub(crate) fn conversation(self, request: &Value) -> Vec<Value> {
        let place = match self {
            Responses => "input",
            Gemini => "contents",
            _ => "messages",
        };
        request[place]
            .as_array()
            .unwrap_or_else(|| panic!("no {place} in {request}"))
            .clone()
    }

    /// The instructions in a request.
    pub(crate) fn instructions(self, request: &Value) -> String {
        let instructions = match self {
            Responses => &request["instructions"],
            Anthropic => &request["system"],
            Gemini => &request["systemInstruction"]["parts"][0]["text"],
            _ if request["messages"][0]["role"] == "system" => &request["messages"][0]["content"],
            _ => &Value::Null,
        };
        instructions.as_str().unwrap_or_default().to_owned()
    }

    /// The names of the tools that a request offers.
    pub(crate) fn tools(self, request: &Value) -> Vec<String> {
        let (list, name) = match self {
            Responses | Anthropic => (&request["tools"], "/name"),
            Gemini => (&request["tools"][0]["functionDeclarations"], "/name"),
            _ => (&request["tools"], "/function/name"),
        };
        let tools = list.as_array().cloned().unwrap_or_default();
        let name = |tool: &Value| tool.pointer(name).and_then(Value::as_str).expect("a name").to_owned();
        tools.iter().map(name).collect()
    }
}

/// JSON text in pieces, as models write it.
fn pieces(arguments: &Value) -> Vec<String> {
    let text: Vec<char> = arguments.to_string().chars().collect();
    text.chunks(3).map(|piece| piece.iter().collect()).collect()
}

fn reason(asks: &[Ask<'_>]) -> &'static str {
    if asks.is_empty() { "stop" } else { "tool_calls" }
}

/// Chat Completions: arguments in pieces, those of parallel calls in turns.
fn chat(dialect: Dialect, said: &[&str], asks: &[Ask<'_>]) -> Vec<Bytes> {
    let mut events = vec![openai::role()];
    if dialect == Azure {
        let filter = json!([{"prompt_index": 0, "content_filter_results": {}}]);
        let first = json!({"choices": [], "id": "", "model": "", "object": "", "prompt_filter_results": filter});
        events.insert(0, openai::event(&first));
    }
    events.extend(said.iter().map(|text| openai::text(text)));
    for (index, (id, name, _)) in asks.iter().enumerate() {
        events.push(openai::tool_delta(index, *id, *name, ""));
    }
    let mut arguments: Vec<_> = asks
        .iter()
        .map(|(.., arguments)| pieces(arguments).into_iter())
        .collect();
    loop {
        let before = events.len();
        for (index, pieces) in arguments.iter_mut().enumerate() {
            events.extend(pieces.next().map(|piece| openai::tool_delta(index, None, None, &piece)));
        }
        if events.len() == before {
            break;
        }
    }
    events.extend([openai::finish(reason(asks)), openai::usage(10, 5), openai::done()]);
    events
}

/// Groq: calls whole, usage beside the finish.
fn groq(said: &[&str], asks: &[Ask<'_>]) -> Vec<Bytes> {
    let mut events = vec![openai::role()];
    events.extend(said.iter().map(|text| openai::text(text)));
    for (index, (id, name, arguments)) in asks.iter().enumerate() {
        events.push(openai::tool_delta(index, *id, *name, &arguments.to_string()));
    }
    let usage = json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15});
    let choice = json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": reason(asks)});
    events.push(openai::event(
        &json!({"choices": [choice], "x_groq": {"id": "req_1", "usage": usage}}),
    ));
    events.push(openai::done());
    events
}

/// The Responses API: items, reasoning first.
fn responses(said: &[&str], asks: &[Ask<'_>]) -> Vec<Bytes> {
    let mut events = Vec::new();
    let mut send = |kind: &str, mut data: Value| {
        data["type"] = kind.into();
        events.push(Bytes::from(format!("event: {kind}\ndata: {data}\n\n")));
    };
    let mut at = 0;
    send(
        "response.created",
        json!({"response": {"id": "resp_1", "status": "in_progress", "output": []}}),
    );
    if let Some((id, ..)) = asks.first() {
        let mut item = json!({"id": format!("rs_{id}"), "type": "reasoning", "summary": []});
        send("response.output_item.added", json!({"output_index": at, "item": item}));
        item["encrypted_content"] = format!("sealed {id}").into();
        send("response.output_item.done", json!({"output_index": at, "item": item}));
        at += 1;
    }
    if !said.is_empty() {
        let part = json!({"type": "output_text", "text": said.concat(), "annotations": []});
        let item = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": [part]});
        let begun = json!({"id": "msg_1", "type": "message", "role": "assistant", "content": []});
        send("response.output_item.added", json!({"output_index": at, "item": begun}));
        for text in said {
            send(
                "response.output_text.delta",
                json!({"output_index": at, "item_id": "msg_1", "content_index": 0, "delta": text}),
            );
        }
        send("response.output_item.done", json!({"output_index": at, "item": item}));
        at += 1;
    }
    for (id, name, arguments) in asks {
        let item_id = format!("fc_{id}");
        let item = |arguments: &str| json!({"id": item_id, "type": "function_call", "call_id": id, "name": name, "arguments": arguments});
        send(
            "response.output_item.added",
            json!({"output_index": at, "item": item("")}),
        );
        for piece in pieces(arguments) {
            send(
                "response.function_call_arguments.delta",
                json!({"output_index": at, "item_id": item_id, "delta": piece}),
            );
        }
        let whole = arguments.to_string();
        send(
            "response.function_call_arguments.done",
            json!({"output_index": at, "item_id": item_id, "arguments": whole}),
        );
        send(
            "response.output_item.done",
            json!({"output_index": at, "item": item(&whole)}),
        );
        at += 1;
    }
    let usage = json!({"input_tokens": 10, "output_tokens": 5, "total_tokens": 15});
    let response = json!({"id": "resp_1", "status": "completed", "output": [], "usage": usage});
    send("response.completed", json!({ "response": response }));
    events
}

/// Messages: blocks, thinking first.
fn anthropic(said: &[&str], asks: &[Ask<'_>]) -> Vec<Bytes> {
    let mut blocks: Vec<(Value, Vec<Value>)> = Vec::new();
    if let Some((id, ..)) = asks.first() {
        let deltas = [
            json!({"type": "thinking_delta", "thinking": "Hm"}),
            json!({"type": "thinking_delta", "thinking": "…"}),
            json!({"type": "signature_delta", "signature": format!("signed {id}")}),
        ];
        blocks.push((
            json!({"type": "thinking", "thinking": "", "signature": ""}),
            deltas.into(),
        ));
    }
    if !said.is_empty() {
        let deltas = said.iter().map(|text| json!({"type": "text_delta", "text": text}));
        blocks.push((json!({"type": "text", "text": ""}), deltas.collect()));
    }
    for (id, name, arguments) in asks {
        let deltas = [String::new()].into_iter().chain(pieces(arguments));
        let deltas = deltas.map(|piece| json!({"type": "input_json_delta", "partial_json": piece}));
        blocks.push((
            json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
            deltas.collect(),
        ));
    }
    let mut events = Vec::new();
    let mut send = |kind: &str, mut data: Value| {
        data["type"] = kind.into();
        events.push(Bytes::from(format!("event: {kind}\ndata: {data}\n\n")));
    };
    let usage = json!({"input_tokens": 10, "output_tokens": 1});
    send(
        "message_start",
        json!({"message": {"id": "msg_1", "role": "assistant", "content": [], "usage": usage}}),
    );
    for (index, (block, deltas)) in blocks.into_iter().enumerate() {
        send("content_block_start", json!({"index": index, "content_block": block}));
        send("ping", json!({}));
        for delta in deltas {
            send("content_block_delta", json!({"index": index, "delta": delta}));
        }
        send("content_block_stop", json!({ "index": index }));
    }
    let reason = if asks.is_empty() { "end_turn" } else { "tool_use" };
    send(
        "message_delta",
        json!({"delta": {"stop_reason": reason}, "usage": {"output_tokens": 5}}),
    );
    send("message_stop", json!({}));
    events
}

/// Gemini: calls whole, the first of a round signed; the finish comes later, and is `STOP` whatever came before.
fn gemini(said: &[&str], asks: &[Ask<'_>]) -> Vec<Bytes> {
    let event = |parts: Value, finish: Option<&str>| {
        let mut candidate = json!({"index": 0, "content": {"role": "model", "parts": parts}});
        if let Some(finish) = finish {
            candidate["finishReason"] = finish.into();
        }
        let usage = json!({"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15});
        let data = json!({"candidates": [candidate], "usageMetadata": usage});
        Bytes::from(format!("data: {data}\r\n\r\n"))
    };
    let mut events: Vec<_> = said.iter().map(|text| event(json!([{ "text": text }]), None)).collect();
    for (at, (id, name, arguments)) in asks.iter().enumerate() {
        let mut part = json!({"functionCall": {"id": id, "name": name, "args": arguments}});
        if at == 0 {
            part["thoughtSignature"] = format!("signed {id}").into();
        }
        events.push(event(json!([part]), None));
    }
    events.push(event(json!([{"text": ""}]), Some("STOP")));
    events
}

/// Ollama: a line each, calls whole, and `stop` at the end whatever came before.
fn ollama(said: &[&str], asks: &[Ask<'_>]) -> Vec<Bytes> {
    let line = |message: Value| {
        Bytes::from(format!(
            "{}\n",
            json!({"model": "test", "message": message, "done": false})
        ))
    };
    let mut lines = Vec::new();
    if !asks.is_empty() {
        lines.push(line(json!({"role": "assistant", "content": "", "thinking": "Hm…"})));
    }
    lines.extend(
        said.iter()
            .map(|text| line(json!({"role": "assistant", "content": text}))),
    );
    for (id, name, arguments) in asks {
        let call = json!({"id": id, "function": {"name": name, "arguments": arguments}});
        lines.push(line(json!({"role": "assistant", "content": "", "tool_calls": [call]})));
    }
    let last = json!({"model": "test", "message": {"role": "assistant", "content": ""}, "done": true,
        "done_reason": "stop", "prompt_eval_count": 10, "eval_count": 5});
    lines.push(Bytes::from(format!("{last}\n")));
    lines
}

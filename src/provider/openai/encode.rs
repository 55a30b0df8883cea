//! Our request as OpenAI's.

use serde_json::{Map, Value, json};

use super::{
    opaque::{self, Opaque},
    server::{MaxTokensField, Server},
};
use crate::{
    chat::{ChatRequest, Message, ResponseFormat, Role, ToolChoice},
    provider::{
        ProviderError,
        call_ids::CallIds,
        dialect::{Call, OPENAI_BOUNDS, is_strict},
        error::Kind,
        history::{self, has_text},
    },
};

/// The text that stands for an answer without words between a tool's result and the next question.
const NO_ANSWER: &str = "(no answer)";

/// The call for a request to this provider.
pub(super) fn call(request: &ChatRequest, provider: &str, server: &Server) -> Result<Call, ProviderError> {
    let body = body(request, provider, &server.for_model(&request.model));
    let body = serde_json::to_vec(&body).map_err(|e| ProviderError::new(Kind::Config, e.to_string()))?;
    Ok(Call {
        path: "/chat/completions".into(),
        body,
    })
}

fn body(request: &ChatRequest, provider: &str, server: &Server) -> Value {
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("model", json!(request.model));
    put("messages", messages(request, provider, server));
    put("stream", json!(true));
    put("stream_options", json!({"include_usage": true})); // without it there is no usage at all
    let settings = &request.settings;
    if let Some(temperature) = settings.temperature {
        put("temperature", json!(temperature));
    }
    if let Some(top_p) = settings.top_p {
        put("top_p", json!(top_p));
    }
    if let Some(limit) = settings.max_output_tokens {
        if server.max_tokens != MaxTokensField::MaxTokens {
            put("max_completion_tokens", json!(limit));
        }
        if server.max_tokens != MaxTokensField::MaxCompletionTokens {
            put("max_tokens", json!(limit));
        }
    }
    if !settings.stop.is_empty() {
        put("stop", json!(settings.stop));
    }
    if let Some(seed) = settings.seed {
        put("seed", json!(seed));
    }
    if let Some(effort) = &settings.reasoning_effort {
        put("reasoning_effort", json!(effort));
    }
    let (tools, choice) = history::tools(request);
    let format_alone = request.response_format != ResponseFormat::Text && !server.json_beside_tools;
    let left_out = format_alone && *choice == ToolChoice::None;
    if !tools.is_empty() && !left_out {
        let tools = tools.iter().map(|tool| json!({"type": "function", "function": tool}));
        put("tools", tools.collect());
        match choice {
            ToolChoice::Auto => {}
            ToolChoice::None => drop(put("tool_choice", json!("none"))),
            ToolChoice::Required => drop(put("tool_choice", json!("required"))),
            ToolChoice::Named(name) => {
                put("tool_choice", json!({"type": "function", "function": {"name": name}}));
            }
        }
    }
    match &request.response_format {
        ResponseFormat::Text => {} // what there is without being asked for
        ResponseFormat::JsonObject => drop(put("response_format", json!({"type": "json_object"}))),
        ResponseFormat::JsonSchema { name, schema } => {
            let schema = json!({"name": name, "schema": schema, "strict": is_strict(schema, &OPENAI_BOUNDS)});
            put("response_format", json!({"type": "json_schema", "json_schema": schema}));
        }
    }
    Value::Object(body)
}

/// The conversation as every server takes it: without messages that have nothing in them, and with
/// questions in a row as one, because many templates want user and assistant to alternate.
fn messages(request: &ChatRequest, provider: &str, server: &Server) -> Value {
    let mut ids = CallIds::new(server.ids);
    let mut all: Vec<Value> = Vec::with_capacity(request.messages.len() + 1);
    if let Some(instructions) = request.instructions.as_deref().filter(|text| has_text(text)) {
        all.push(json!({"role": "system", "content": instructions}));
    }
    for message in &request.messages {
        let next = match message.role {
            Role::User => user(message),
            Role::Assistant => {
                let opaque = Opaque::of(message, provider);
                assistant(message, opaque.as_ref(), server, &mut ids)
            }
            Role::Tool => {
                let id = ids.of_result(message.tool_call_id.as_deref().unwrap_or(""));
                Some(json!({"role": "tool", "tool_call_id": id, "content": message.content}))
            }
        };
        if let Some(next) = next {
            append(next, server, &mut all);
        }
    }
    Value::Array(all)
}

/// Adds a message: to the last one, where both are of one side.
fn append(mut next: Value, server: &Server, all: &mut Vec<Value>) {
    if let Some(last) = all.last_mut() {
        let (from, to) = (&last["role"], &next["role"]);
        let same = to == from && (to == "user" || to == "assistant" && last.get("tool_calls").is_none());
        if same {
            let (content, more) = (last["content"].take(), next["content"].take());
            next["content"] = history::joined(content, more, "text");
            if let (Value::Object(last), Value::Object(next)) = (last, next) {
                last.extend(next);
            }
            return;
        }
        if from == "tool" && to == "user" && !server.question_after_result {
            all.push(json!({"role": "assistant", "content": NO_ANSWER}));
        }
    }
    all.push(next);
}

fn user(message: &Message) -> Option<Value> {
    let text = Some(&*message.content).filter(|text| has_text(text));
    if message.attachments.is_empty() {
        return text.map(|text| json!({"role": "user", "content": text}));
    }
    let text = text.map(|text| json!({"type": "text", "text": text}));
    let images = message.attachments.iter().map(|image| {
        let url = format!("data:{};base64,{}", image.media_type, image.data);
        json!({"type": "image_url", "image_url": {"url": url}})
    });
    let parts: Vec<Value> = text.into_iter().chain(images).collect();
    Some(json!({"role": "user", "content": parts}))
}

/// An answer, with what its provider wants back; none without words and calls, which strict servers
/// refuse.
fn assistant<'a>(
    message: &'a Message,
    opaque: Option<&Opaque>,
    server: &Server,
    ids: &mut CallIds<'a>,
) -> Option<Value> {
    let text = Some(&*message.content).filter(|text| has_text(text));
    if text.is_none() && message.tool_calls.is_empty() {
        return None;
    }
    let mut answer = json!({"role": "assistant", "content": text});
    let returned = opaque.filter(|_| server.takes_opaque);
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().enumerate().map(|(index, call)| {
            let arguments = Value::Object(call.arguments.clone()).to_string();
            let id = match opaque {
                Some(_) => ids.of_own_call(&call.id),
                None => ids.of_call(&call.id),
            };
            let mut call =
                json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments}});
            if let Some(opaque) = returned {
                opaque::add(opaque.of_call(index), &mut call);
            }
            call
        });
        answer["tool_calls"] = calls.collect();
    }
    if let Some(opaque) = returned {
        opaque::add(&opaque.message, &mut answer);
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use crate::provider::{golden::golden, openai::OpenAi};

    #[test]
    fn every_scenario_is_written_to_the_letter() {
        insta::assert_json_snapshot!(golden(&OpenAi::default(), &[]));
    }
}

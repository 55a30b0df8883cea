//! Our request as OpenAI's.

use serde_json::{Map, Value, json};

use crate::{
    chat::{ChatRequest, Message, ResponseFormat, Role, ToolChoice},
    provider::{
        ProviderError,
        dialect::{Call, OPENAI_BOUNDS, is_strict},
        error::Kind,
    },
};

/// The call for a request.
pub(super) fn call(request: &ChatRequest) -> Result<Call, ProviderError> {
    let body = serde_json::to_vec(&body(request)).map_err(|e| ProviderError::new(Kind::Config, e.to_string()))?;
    Ok(Call {
        path: "/chat/completions".into(),
        body,
    })
}

fn body(request: &ChatRequest) -> Value {
    let mut messages: Vec<Value> = Vec::with_capacity(request.messages.len() + 1);
    if let Some(instructions) = &request.instructions {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    messages.extend(request.messages.iter().map(message));

    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("model", json!(request.model));
    put("messages", Value::Array(messages));
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
        put("max_completion_tokens", json!(limit)); // reasoning models refuse `max_tokens`
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
    if !request.tools.is_empty() {
        let tools = request
            .tools
            .iter()
            .map(|tool| json!({"type": "function", "function": tool}));
        put("tools", tools.collect());
        match &request.tool_choice {
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

fn message(message: &Message) -> Value {
    match message.role {
        Role::User if message.attachments.is_empty() => json!({"role": "user", "content": message.content}),
        Role::User => {
            let mut parts = vec![json!({"type": "text", "text": message.content})];
            parts.extend(message.attachments.iter().map(|image| {
                let url = format!("data:{};base64,{}", image.media_type, image.data);
                json!({"type": "image_url", "image_url": {"url": url}})
            }));
            json!({"role": "user", "content": parts})
        }
        Role::Assistant if message.tool_calls.is_empty() => json!({"role": "assistant", "content": message.content}),
        Role::Assistant => {
            let calls = message.tool_calls.iter().map(|call| {
                let arguments = Value::Object(call.arguments.clone()).to_string();
                json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
            });
            let content = if message.content.is_empty() {
                Value::Null
            } else {
                json!(message.content)
            };
            json!({"role": "assistant", "content": content, "tool_calls": calls.collect::<Value>()})
        }
        Role::Tool => json!({"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}),
    }
}

#[cfg(test)]
mod tests {
    use crate::provider::{golden::golden, openai::OpenAi};

    #[test]
    fn every_scenario_is_written_to_the_letter() {
        insta::assert_json_snapshot!(golden(&OpenAi, &[]));
    }
}

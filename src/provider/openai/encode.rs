//! Our request as OpenAI's.

use serde_json::{Map, Value, json};

use crate::{
    chat::{ChatRequest, Message, ResponseFormat, Role, ToolChoice},
    provider::{ProviderError, dialect::Call, error::Kind},
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
    match request.response_format {
        ResponseFormat::Text => {} // what there is without being asked for
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
    use super::*;
    use crate::chat::{Image, Settings, ToolCall, ToolDefinition};

    #[test]
    fn everything_at_once() {
        let call = ToolCall {
            id: "c1".into(),
            name: "add".into(),
            arguments: Map::from_iter([("a".into(), json!(1))]),
        };
        let request = ChatRequest {
            model: "gpt-x".into(),
            instructions: Some("Be brief.".into()),
            messages: vec![
                Message::user(
                    "Look",
                    vec![Image {
                        media_type: "image/png".into(),
                        data: "AAAA".into(),
                    }],
                ),
                Message::assistant("", vec![call]),
                Message::tool("c1", "2"),
                Message::assistant("Two.", vec![]),
                Message::user("Thanks", vec![]),
            ],
            tools: vec![ToolDefinition {
                name: "add".into(),
                description: "Adds.".into(),
                parameters: json!({"type": "object"}),
            }],
            tool_choice: ToolChoice::Named("add".into()),
            settings: Settings {
                temperature: Some(0.5),
                top_p: Some(0.9),
                max_output_tokens: Some(64),
                stop: vec!["END".into()],
                seed: Some(7),
                reasoning_effort: Some("low".into()),
            },
            response_format: ResponseFormat::Text,
        };
        insta::assert_json_snapshot!(body(&request));
    }

    #[test]
    fn nothing_is_sent_that_was_not_asked_for() {
        let request = ChatRequest {
            model: "gpt-x".into(),
            instructions: None,
            messages: vec![Message::user("Hi", vec![])],
            tools: vec![],
            tool_choice: ToolChoice::Required,
            settings: Settings::default(),
            response_format: ResponseFormat::Text,
        };
        insta::assert_json_snapshot!(body(&request), @r#"
        {
          "messages": [
            {
              "content": "Hi",
              "role": "user"
            }
          ],
          "model": "gpt-x",
          "stream": true,
          "stream_options": {
            "include_usage": true
          }
        }
        "#);
    }
}

//! Our request as Ollama's.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::NAME;
use crate::{
    chat::{ChatRequest, Message, ResponseFormat, Role, ToolChoice},
    provider::{ProviderError, Unsupported, dialect::Call, error::Kind, history::has_text},
};

/// What has no place on this wire: a model cannot be made to call, and thinks in these words only.
pub(super) fn check(request: &ChatRequest) -> Result<(), Unsupported> {
    if matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_)) {
        return Err(Unsupported { field: "tool_choice" });
    }
    let effort = request.settings.reasoning_effort.as_deref();
    if effort.is_some_and(|word| think(word).is_none()) {
        return Err(Unsupported {
            field: "settings.reasoning_effort",
        });
    }
    // The form binds every word from the first on, so that no tool could be called.
    let may_call = !request.tools.is_empty() && request.tool_choice != ToolChoice::None;
    if request.response_format != ResponseFormat::Text && may_call {
        return Err(Unsupported {
            field: "response_format",
        });
    }
    Ok(())
}

/// The call for a request.
pub(super) fn call(request: &ChatRequest) -> Result<Call, ProviderError> {
    let body = serde_json::to_vec(&body(request)).map_err(|e| ProviderError::new(Kind::Config, e.to_string()))?;
    Ok(Call {
        path: "/api/chat".into(),
        body,
    })
}

fn body(request: &ChatRequest) -> Value {
    let mut messages: Vec<Value> = Vec::with_capacity(request.messages.len() + 1);
    if let Some(instructions) = request.instructions.as_deref().filter(|text| has_text(text)) {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    let mut tools = HashMap::new(); // by the id of a call
    for said in &request.messages {
        tools.extend(
            said.tool_calls
                .iter()
                .map(|call| (call.id.as_str(), call.name.as_str())),
        );
        let is_empty = !has_text(&said.content) && said.tool_calls.is_empty() && said.attachments.is_empty();
        if is_empty && said.role != Role::Tool {
            continue; // nothing was said, and templates make an empty turn of it
        }
        append(message(said, &tools), &mut messages);
    }

    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("model", json!(request.model));
    put("messages", Value::Array(messages));
    put("stream", json!(true)); // what it does unasked, said all the same
    // There is no tool_choice: who must not call is told of no tools.
    if !request.tools.is_empty() && request.tool_choice != ToolChoice::None {
        let tools = request
            .tools
            .iter()
            .map(|tool| json!({"type": "function", "function": tool}));
        put("tools", tools.collect());
    }
    match &request.response_format {
        ResponseFormat::Text => {}
        ResponseFormat::JsonObject => drop(put("format", json!("json"))),
        ResponseFormat::JsonSchema { schema, .. } => drop(put("format", schema.clone())),
    }
    if let Some(think) = request.settings.reasoning_effort.as_deref().and_then(think) {
        put("think", think);
    }
    let options = options(request);
    if !options.is_empty() {
        put("options", Value::Object(options));
    }
    Value::Object(body)
}

fn options(request: &ChatRequest) -> Map<String, Value> {
    let settings = &request.settings;
    let stop = (!settings.stop.is_empty()).then(|| json!(settings.stop));
    let options = [
        ("temperature", settings.temperature.map(|n| json!(n))),
        ("top_p", settings.top_p.map(|n| json!(n))),
        ("num_predict", settings.max_output_tokens.map(|n| json!(n))),
        ("stop", stop),
        ("seed", settings.seed.map(|n| json!(n))),
    ];
    let told = options
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    told.collect()
}

/// How much to think, in its word; some models only know whether.
fn think(effort: &str) -> Option<Value> {
    match effort {
        "low" | "medium" | "high" | "max" => Some(json!(effort)),
        "true" => Some(json!(true)),
        "false" | "none" => Some(json!(false)),
        _ => None,
    }
}

/// Adds a message: to the last one, where both are questions, because many templates want user and
/// assistant to alternate.
fn append(next: Value, messages: &mut Vec<Value>) {
    match messages.last_mut() {
        Some(last) if last["role"] == "user" && next["role"] == "user" => {
            let texts = [&last["content"], &next["content"]].map(|text| text.as_str().unwrap_or_default());
            last["content"] = texts
                .into_iter()
                .filter(|text| has_text(text))
                .collect::<Vec<_>>()
                .join("\n\n")
                .into();
            if let Some(more) = next.get("images").and_then(Value::as_array) {
                let images = last.get("images").and_then(Value::as_array);
                let all = images.into_iter().flatten().chain(more).cloned();
                last["images"] = all.collect();
            }
        }
        _ => messages.push(next),
    }
}

fn message(message: &Message, tools: &HashMap<&str, &str>) -> Value {
    match message.role {
        Role::User if message.attachments.is_empty() => json!({"role": "user", "content": message.content}),
        Role::User => {
            let images: Vec<&str> = message.attachments.iter().map(|image| &*image.data).collect();
            json!({"role": "user", "content": message.content, "images": images})
        }
        Role::Assistant => {
            let mut said = json!({"role": "assistant", "content": message.content});
            let ours = message.carry.iter().find(|carry| carry.dialect == NAME);
            if let Some(thinking) = ours.and_then(|carry| carry.data.get("thinking")) {
                said["thinking"] = thinking.clone();
            }
            if !message.tool_calls.is_empty() {
                let calls = message.tool_calls.iter();
                said["tool_calls"] = calls
                    .map(|call| json!({"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}))
                    .collect();
            }
            said
        }
        Role::Tool => {
            let mut result = json!({"role": "tool", "content": message.content});
            if let Some(id) = &message.tool_call_id {
                result["tool_call_id"] = json!(id);
                if let Some(name) = tools.get(id.as_str()) {
                    result["tool_name"] = json!(name);
                }
            }
            result
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        chat::{Again, Carry, Settings},
        provider::{golden::golden, ollama::Ollama},
    };

    #[test]
    fn every_scenario_is_written_to_the_letter() {
        let thought = Carry {
            dialect: NAME.into(),
            data: json!({"thinking": "Two cities and a clock."}),
        };
        insta::assert_json_snapshot!(golden(&Ollama, &[thought]));
    }

    #[test]
    fn thinking_is_asked_for_in_its_words() {
        let asked = |effort: &str| {
            let request = ChatRequest {
                model: "m".into(),
                instructions: None,
                messages: vec![Message::user("Hi", vec![])],
                tools: vec![],
                tool_choice: ToolChoice::Auto,
                settings: Settings {
                    reasoning_effort: Some(effort.into()),
                    ..Settings::default()
                },
                response_format: ResponseFormat::Text,
                trace: None,
                again: Again::default(),
            };
            check(&request).map(|()| body(&request)["think"].clone())
        };
        assert_eq!(asked("max"), Ok(json!("max")));
        assert_eq!(asked("none"), Ok(json!(false)));
        assert_eq!(asked("true"), Ok(json!(true)));
        for other in ["minimal", "xhigh", ""] {
            assert_eq!(asked(other).unwrap_err().field, "settings.reasoning_effort", "{other}");
        }
    }
}

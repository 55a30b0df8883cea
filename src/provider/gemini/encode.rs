//! Our request as Gemini's.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::NAME;
use crate::{
    chat::{ChatRequest, Message, ResponseFormat, Role, ToolChoice},
    provider::{
        ProviderError, Unsupported,
        dialect::Call,
        error::Kind,
        history::{self, has_text},
    },
};

/// The most strings that end an answer.
const MAX_STOP: usize = 5;

/// What has no place on this wire.
pub(super) fn check(request: &ChatRequest) -> Result<(), Unsupported> {
    let settings = &request.settings;
    let refuse = |field| Err(Unsupported { field });
    // Numbers are of 32 bits there.
    if settings.seed.is_some_and(|seed| i32::try_from(seed).is_err()) {
        return refuse("settings.seed");
    }
    if settings
        .max_output_tokens
        .is_some_and(|limit| i32::try_from(limit).is_err())
    {
        return refuse("settings.max_output_tokens");
    }
    if settings.stop.len() > MAX_STOP {
        return refuse("settings.stop");
    }
    // Images of earlier turns are left out, so that a session that has one stays usable.
    let mut images = history::current_turn(request)
        .iter()
        .flat_map(|message| &message.attachments);
    if images.any(|image| !takes_image(&image.media_type)) {
        return refuse("attachments");
    }
    // Models before Gemini 3 refuse a form together with tools (ai.google.dev/gemini-api/docs/structured-output, 2026-11).
    let may_call = !request.tools.is_empty() && request.tool_choice != ToolChoice::None;
    if request.response_format != ResponseFormat::Text && may_call {
        return refuse("response_format");
    }
    Ok(())
}

/// Whether an image is taken: PNG, JPEG, WEBP, HEIC and HEIF are
/// (ai.google.dev/gemini-api/docs/image-understanding, 2026-11).
pub(super) fn takes_image(media_type: &str) -> bool {
    media_type != "image/gif"
}

/// The call for a request.
pub(super) fn call(request: &ChatRequest) -> Result<Call, ProviderError> {
    let mut model = String::with_capacity(request.model.len());
    for byte in request.model.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            model.push(char::from(byte));
        } else {
            let _ = write!(model, "%{byte:02X}"); // writing to a String cannot fail
        }
    }
    let body = serde_json::to_vec(&body(request)?).map_err(|e| ProviderError::new(Kind::Config, e.to_string()))?;
    Ok(Call {
        path: format!("/models/{model}:streamGenerateContent?alt=sse"),
        body,
    })
}

fn body(request: &ChatRequest) -> Result<Value, ProviderError> {
    let mut body = Map::new();
    if let Some(instructions) = request.instructions.as_deref().filter(|text| has_text(text)) {
        body.insert("systemInstruction".into(), json!({"parts": [{"text": instructions}]}));
    }
    body.insert("contents".into(), Value::Array(contents(&request.messages)?));
    let (tools, choice) = history::tools(request);
    let left_out = *choice == ToolChoice::None && request.response_format != ResponseFormat::Text;
    if !tools.is_empty() && !left_out {
        let tools = tools.iter().map(
            |tool| json!({"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters}),
        );
        body.insert(
            "tools".into(),
            json!([{"functionDeclarations": tools.collect::<Value>()}]),
        );
        let mode = match choice {
            ToolChoice::Auto => None,
            ToolChoice::None => Some(json!({"mode": "NONE"})),
            ToolChoice::Required => Some(json!({"mode": "ANY"})),
            ToolChoice::Named(name) => Some(json!({"mode": "ANY", "allowedFunctionNames": [name]})),
        };
        if let Some(mode) = mode {
            body.insert("toolConfig".into(), json!({"functionCallingConfig": mode}));
        }
    }
    let config = generation_config(request);
    if !config.is_empty() {
        body.insert("generationConfig".into(), Value::Object(config));
    }
    Ok(Value::Object(body))
}

fn generation_config(request: &ChatRequest) -> Map<String, Value> {
    let mut config = Map::new();
    let mut put = |name: &str, value: Value| config.insert(name.to_owned(), value);
    let settings = &request.settings;
    if let Some(temperature) = settings.temperature {
        put("temperature", json!(temperature));
    }
    if let Some(top_p) = settings.top_p {
        put("topP", json!(top_p));
    }
    if let Some(limit) = settings.max_output_tokens {
        put("maxOutputTokens", json!(limit));
    }
    if !settings.stop.is_empty() {
        put("stopSequences", json!(settings.stop));
    }
    if let Some(seed) = settings.seed {
        put("seed", json!(seed));
    }
    if let Some(effort) = &settings.reasoning_effort {
        // Whoever asks for thinking may see it; models that cannot think refuse the field, so it is not sent unasked.
        put(
            "thinkingConfig",
            json!({"thinkingLevel": effort, "includeThoughts": true}),
        );
    }
    match &request.response_format {
        ResponseFormat::Text => {} // what there is without being asked for
        ResponseFormat::JsonObject => drop(put("responseMimeType", json!("application/json"))),
        ResponseFormat::JsonSchema { schema, .. } => {
            put("responseMimeType", json!("application/json"));
            put("responseJsonSchema", schema.clone());
        }
    }
    config
}

/// The conversation in turns: a round's results are one turn, questions in a row are one turn, and a message without
/// anything in it is no turn, for a turn without parts is refused.
fn contents(messages: &[Message]) -> Result<Vec<Value>, ProviderError> {
    let mut turns: Vec<(Role, Vec<Value>)> = Vec::with_capacity(messages.len());
    let mut asked: Option<&Message> = None;
    let mut rest = messages;
    while let [first, after @ ..] = rest {
        rest = after;
        let mut parts = match first.role {
            Role::User => question(first),
            Role::Assistant => {
                asked = Some(first);
                answer(first)
            }
            Role::Tool => {
                let others = after.iter().take_while(|m| m.role == Role::Tool).count();
                rest = &after[others..];
                results(asked, std::iter::once(first).chain(&after[..others]))?
            }
        };
        match turns.last_mut() {
            _ if parts.is_empty() => {}
            Some((Role::User, before)) if first.role == Role::User => before.append(&mut parts),
            _ => turns.push((first.role, parts)),
        }
    }
    let role = |role| if role == Role::Assistant { "model" } else { "user" };
    let turns = turns
        .into_iter()
        .map(|(by, parts)| json!({"role": role(by), "parts": parts}));
    Ok(turns.collect())
}

/// What the caller said: images first, as Google advises.
fn question(message: &Message) -> Vec<Value> {
    let images = message.attachments.iter();
    let mut parts: Vec<Value> = images
        .map(|image| json!({"inlineData": {"mimeType": image.media_type, "data": image.data}}))
        .collect();
    if has_text(&message.content) {
        parts.push(json!({"text": message.content}));
    }
    parts
}

/// What the model said, each signature on the part that it came with.
fn answer(message: &Message) -> Vec<Value> {
    let mut parts: Vec<Value> = Vec::new();
    for data in carried(message) {
        if let Some(thought) = data.get("thought") {
            parts.push(signed(json!({"text": thought, "thought": true}), data.get("signature")));
        }
    }
    let mut last = Vec::new();
    let mut said = 0;
    for data in carried(message) {
        let place = |name: &str| data.get(name)?.as_u64().and_then(|n| usize::try_from(n).ok());
        let (Some(from), Some(to)) = (place("from"), place("to")) else {
            continue;
        };
        match (message.content.get(said..from), message.content.get(from..to)) {
            (Some(before), Some(text)) if !text.is_empty() => {
                parts.extend(some_text(before));
                parts.push(signed(json!({"text": text}), data.get("signature")));
                said = to;
            }
            // It came with an empty part, or with a text that is not there any more.
            _ => last.push(signed(json!({"text": ""}), data.get("signature"))),
        }
    }
    parts.extend(message.content.get(said..).and_then(some_text));

    for (index, call) in message.tool_calls.iter().enumerate() {
        let mut asked = json!({"name": call.name, "args": call.arguments});
        if let Some(id) = of_call(message, index, "id") {
            asked["id"] = id.clone();
        }
        let part = json!({"functionCall": asked});
        parts.push(signed(part, of_call(message, index, "signature")));
    }
    if !parts.is_empty() {
        parts.append(&mut last);
    }
    parts
}

/// A round's results, in the order of its calls: that, and their names, is what tells them apart where there are no ids.
fn results<'a>(
    asked: Option<&Message>,
    results: impl Iterator<Item = &'a Message>,
) -> Result<Vec<Value>, ProviderError> {
    let mut ordered = Vec::new();
    for result in results {
        let found = asked.and_then(|asked| {
            let mut calls = asked.tool_calls.iter().enumerate();
            let (index, call) = calls.find(|(_, call)| Some(&call.id) == result.tool_call_id.as_ref())?;
            Some((index, call, of_call(asked, index, "id")))
        });
        let (index, call, id) = found
            .ok_or_else(|| ProviderError::new(Kind::Config, "a tool's result without the call that it answers"))?;
        // A result must be an object.
        let object = serde_json::from_str(&result.content).ok().filter(Value::is_object);
        let mut answer = json!({
            "name": call.name,
            "response": object.unwrap_or_else(|| json!({"result": result.content})),
        });
        if let Some(id) = id {
            answer["id"] = id.clone();
        }
        ordered.push((index, json!({"functionResponse": answer})));
    }
    ordered.sort_by_key(|(index, _)| *index);
    Ok(ordered.into_iter().map(|(_, part)| part).collect())
}

/// What this dialect carried with a message.
fn carried(message: &Message) -> impl Iterator<Item = &Value> {
    let own = message.carry.iter().filter(|carry| carry.dialect == NAME);
    own.map(|carry| &carry.data)
}

/// What came with a call: its `id`, if it was Google's, or its `signature`.
fn of_call<'a>(message: &'a Message, index: usize, name: &str) -> Option<&'a Value> {
    let of_it = carried(message).filter(|data| data.get("call").and_then(Value::as_u64) == Some(index as u64));
    of_it.filter_map(|data| data.get(name)).find(|value| value.is_string())
}

/// A part, with its signature if it has one.
fn signed(mut part: Value, signature: Option<&Value>) -> Value {
    if let Some(signature) = signature {
        part["thoughtSignature"] = signature.clone();
    }
    part
}

/// A part of text, unless it is empty: Google refuses those.
fn some_text(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| json!({"text": text}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::{Again, Carry, Image, Settings, ToolCall},
        provider::{
            dialect::{Decoder as _, Dialect as _},
            frame::Frame,
            gemini::{Gemini, decode::GeminiDecoder},
            golden::golden,
        },
    };

    fn own(data: Value) -> Carry {
        Carry {
            dialect: NAME.into(),
            data,
        }
    }

    fn request(messages: Vec<Message>) -> ChatRequest {
        ChatRequest {
            model: "m".into(),
            instructions: None,
            messages,
            tools: vec![],
            tool_choice: ToolChoice::Auto,
            settings: Settings::default(),
            response_format: ResponseFormat::Text,
            trace: None,
            again: Again::default(),
        }
    }

    #[test]
    fn every_scenario_is_written_to_the_letter() {
        let carried = [
            own(json!({"thought": "Two cities.", "signature": "c2lnMA=="})),
            own(json!({"from": 7, "to": 12, "signature": "c2lnMQ=="})),
            own(json!({"call": 0, "id": "8hd01vsf", "signature": "c2lnMg=="})),
            own(json!({"from": 12, "to": 12, "signature": "c2lnMw=="})),
        ];
        insta::assert_json_snapshot!(golden(&Gemini, &carried));
    }

    #[test]
    fn what_an_answer_carried_goes_back_with_the_next_question() {
        let events = [
            r#"{"candidates":[{"content":{"parts":[{"text":"Só: "},{"text":"add","thoughtSignature":"S0"}]}}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"functionCall":{"id":"g1","name":"add","args":{"a":2}},"thoughtSignature":"S1"},
                {"functionCall":{"name":"add","args":{"a":3}}}]}}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"","thoughtSignature":"S2"}]},"finishReason":"STOP"}]}"#,
        ];
        let (mut decoder, mut chunks) = (GeminiDecoder::default(), Vec::new());
        for event in events {
            let (event, data, bare) = (b"", event, false);
            decoder.frame(Frame { event, data, bare }, &mut chunks).unwrap();
        }
        decoder.end(&mut chunks).unwrap();
        let mut round = crate::chat::fold::Round::default();
        chunks.iter().for_each(|chunk| assert!(round.push(chunk)));
        let (asked, carry) = round.complete();
        let calls: Vec<ToolCall> = asked.into_iter().map(|asked| asked.call).collect();
        let results = [
            Message::tool(calls[1].id.clone(), "[5]"),
            Message::tool(calls[0].id.clone(), "{\"sum\": 4}"),
        ];
        let said = Message::assistant(crate::chat::fold::words(&chunks), calls).carrying(carry);
        // Kept in a session and read again.
        let said: Message = serde_json::from_str(&serde_json::to_string(&said).unwrap()).unwrap();
        let [first, second] = results;
        let turns = contents(&[Message::user("?", vec![]), said, first, second]).unwrap();
        assert_eq!(
            turns[1..],
            [
                json!({"role": "model", "parts": [
                    {"text": "Só: "},
                    {"text": "add", "thoughtSignature": "S0"},
                    {"functionCall": {"id": "g1", "name": "add", "args": {"a": 2}}, "thoughtSignature": "S1"},
                    {"functionCall": {"name": "add", "args": {"a": 3}}},
                    {"text": "", "thoughtSignature": "S2"},
                ]}),
                json!({"role": "user", "parts": [
                    {"functionResponse": {"id": "g1", "name": "add", "response": {"sum": 4}}},
                    {"functionResponse": {"name": "add", "response": {"result": "[5]"}}},
                ]}),
            ]
        );
    }

    #[test]
    fn a_signature_whose_text_was_changed_is_sent_with_an_empty_part() {
        for (from, to) in [(0, 99), (1, 2), (3, 2)] {
            let carry = vec![own(json!({"from": from, "to": to, "signature": "S"}))];
            let parts = answer(&Message::assistant("é", vec![]).carrying(carry));
            assert_eq!(
                parts,
                [json!({"text": "é"}), json!({"text": "", "thoughtSignature": "S"})]
            );
        }
    }

    #[test]
    fn a_models_name_cannot_leave_its_place_in_the_address() {
        let mut request = request(vec![Message::user("Hi", vec![])]);
        request.model = "../a b?c#d:é%".into();
        assert_eq!(
            call(&request).unwrap().path,
            "/models/..%2Fa%20b%3Fc%23d%3A%C3%A9%25:streamGenerateContent?alt=sse"
        );
    }

    #[test]
    fn what_has_no_place_is_refused_by_its_field() {
        let gif = Image {
            media_type: "image/gif".into(),
            data: "".into(),
        };
        let settings = |change: fn(&mut Settings)| {
            let mut request = request(vec![]);
            change(&mut request.settings);
            request
        };
        for (request, field) in [
            (request(vec![Message::user("", vec![gif])]), "attachments"),
            (settings(|s| s.seed = Some(1 << 31)), "settings.seed"),
            (
                settings(|s| s.max_output_tokens = Some(1 << 31)),
                "settings.max_output_tokens",
            ),
            (settings(|s| s.stop = vec!["x".into(); 6]), "settings.stop"),
        ] {
            assert_eq!(Gemini.check(&request), Err(Unsupported { field }));
        }
        assert_eq!(Gemini.check(&settings(|s| s.seed = Some(-1))), Ok(()));
    }
}

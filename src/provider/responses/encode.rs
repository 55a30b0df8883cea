//! Our request as one of the Responses API: its `input` is a list of items, a message of ours one or several of them.

use serde_json::{Map, Value, json};

use super::{
    NAME,
    wire::{Layout, Place},
};
use crate::{
    chat::{ChatRequest, Message, ResponseFormat, Role, ToolCall, ToolChoice},
    provider::{
        ProviderError, Unsupported,
        call_ids::{CallIds, IdForm},
        dialect::{Call, OPENAI_BOUNDS, is_of_object, is_strict},
        error::Kind,
        history::{self, has_text},
    },
};

/// The least `max_output_tokens` that is taken.
const MIN_OUTPUT_TOKENS: u64 = 16;
/// The longest id of a call that is taken, in characters.
const MAX_CALL_ID: usize = 64;

/// What has no place on this wire.
pub(super) fn check(request: &ChatRequest) -> Result<(), Unsupported> {
    let settings = &request.settings;
    let field = if !settings.stop.is_empty() {
        "settings.stop"
    } else if settings.seed.is_some() {
        "settings.seed"
    } else if settings
        .max_output_tokens
        .is_some_and(|limit| limit < MIN_OUTPUT_TOKENS)
    {
        "settings.max_output_tokens"
    } else if matches!(&request.response_format, ResponseFormat::JsonSchema { schema, .. } if !is_of_object(schema)) {
        "response_format"
    } else {
        return Ok(());
    };
    Err(Unsupported { field })
}

/// The call for a request to this provider.
pub(super) fn call(request: &ChatRequest, provider: &str) -> Result<Call, ProviderError> {
    let body =
        serde_json::to_vec(&body(request, provider)).map_err(|e| ProviderError::new(Kind::Config, e.to_string()))?;
    Ok(Call {
        path: "/responses".into(),
        body,
    })
}

fn body(request: &ChatRequest, provider: &str) -> Value {
    // A model that does not reason refuses both reasoning and the question for it.
    let from = reasons(&request.model).then_some(provider);
    let mut ids = CallIds::new(IdForm::Short(MAX_CALL_ID));
    let mut input: Vec<Value> = Vec::with_capacity(request.messages.len());
    for message in &request.messages {
        match message.role {
            Role::User => question(message, &mut input),
            Role::Assistant => assistant(message, from, &mut ids, &mut input),
            Role::Tool => {
                let id = ids.of_result(message.tool_call_id.as_deref().unwrap_or(""));
                input.push(json!({"type": "function_call_output", "call_id": id, "output": message.content}));
            }
        }
    }

    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    put("model", json!(request.model));
    if let Some(instructions) = request.instructions.as_deref().filter(|text| has_text(text)) {
        put("instructions", json!(instructions));
    }
    put("input", Value::Array(input));
    put("stream", json!(true));
    put("store", json!(false)); // what was said is kept by us alone
    if from.is_some() {
        put("include", json!(["reasoning.encrypted_content"])); // to be handed back, as nothing is stored
    }
    let settings = &request.settings;
    if let Some(temperature) = settings.temperature {
        put("temperature", json!(temperature));
    }
    if let Some(top_p) = settings.top_p {
        put("top_p", json!(top_p));
    }
    if let Some(limit) = settings.max_output_tokens {
        put("max_output_tokens", json!(limit));
    }
    if let Some(effort) = &settings.reasoning_effort {
        put("reasoning", json!({"effort": effort, "summary": "auto"}));
    }
    let (tools, choice) = history::tools(request);
    if !tools.is_empty() {
        // Without the flag a schema is taken as strict here, and refused if it is not.
        let tools = tools.iter().map(|tool| {
            json!({
                "type": "function", "name": tool.name, "description": tool.description,
                "parameters": tool.parameters, "strict": false,
            })
        });
        put("tools", tools.collect());
        match choice {
            ToolChoice::Auto => {}
            ToolChoice::None => drop(put("tool_choice", json!("none"))),
            ToolChoice::Required => drop(put("tool_choice", json!("required"))),
            ToolChoice::Named(name) => drop(put("tool_choice", json!({"type": "function", "name": name}))),
        }
    }
    let format = match &request.response_format {
        ResponseFormat::Text => None, // what there is without being asked for
        ResponseFormat::JsonObject => Some(json!({"type": "json_object"})),
        ResponseFormat::JsonSchema { name, schema } => Some(
            json!({"type": "json_schema", "name": name, "schema": schema, "strict": is_strict(schema, &OPENAI_BOUNDS)}),
        ),
    };
    if let Some(format) = format {
        put("text", json!({"format": format}));
    }
    Value::Object(body)
}

/// Whether a model may reason, for all that its name says: those of OpenAI's that do not answer 400 when they are asked
/// for encrypted reasoning ("Encrypted content is not supported with this model", 2026-11).
fn reasons(model: &str) -> bool {
    let name = model.strip_prefix("ft:").unwrap_or(model);
    !["gpt-3.5", "gpt-35", "gpt-4", "chatgpt-", "gpt-5-chat"]
        .iter()
        .any(|family| name.starts_with(family))
}

/// A question, added to the last item where that is one too, because templates of compatible servers
/// want user and assistant to alternate.
fn question(message: &Message, input: &mut Vec<Value>) {
    let text = Some(&*message.content).filter(|text| has_text(text));
    let images = message.attachments.iter().map(|image| {
        let url = format!("data:{};base64,{}", image.media_type, image.data);
        json!({"type": "input_image", "image_url": url})
    });
    let content = match (text, message.attachments.is_empty()) {
        (None, true) => return,
        (Some(text), true) => json!(text),
        (text, false) => {
            let text = text.map(|text| json!({"type": "input_text", "text": text}));
            text.into_iter().chain(images).collect()
        }
    };
    match input.last_mut() {
        Some(last) if last["role"] == "user" => {
            last["content"] = history::joined(last["content"].take(), content, "input_text");
        }
        _ => input.push(json!({"role": "user", "content": content})),
    }
}

/// An answer as the items that it was; without a layout of this provider's, its text and then its calls.
fn assistant<'a>(message: &'a Message, from: Option<&str>, ids: &mut CallIds<'a>, input: &mut Vec<Value>) {
    let layout = from.and_then(|provider| layout(message, provider)).unwrap_or_default();
    let mut text = Some(&*message.content).filter(|text| has_text(text));
    let mut calls = message.tool_calls.iter().map(Some).collect::<Vec<_>>();
    let mut places = pieces(&message.content, layout);
    // Whatever the layout does not know of comes at the end.
    places.push(Piece::Rest);

    // Reasoning that led to nothing we hold (a call that was cut off) is refused, and waits here for what follows it.
    let mut waiting: Vec<Value> = Vec::new();
    for place in places {
        match place {
            Piece::Reasoning(item) => waiting.push(item),
            Piece::Text { words, phase } => {
                text = None;
                input.append(&mut waiting);
                input.push(said(words, phase));
            }
            Piece::Call(index) => {
                if let Some(call) = calls.get_mut(index).and_then(Option::take) {
                    input.append(&mut waiting);
                    input.push(asked(call, ids));
                }
            }
            Piece::Rest => {
                let words = text.take().map(|words| said(words, None));
                let calls = calls.iter_mut().filter_map(Option::take).map(|call| asked(call, ids));
                let rest = words.into_iter().chain(calls);
                for item in rest {
                    input.append(&mut waiting);
                    input.push(item);
                }
            }
        }
    }
}

/// What stands at a place.
enum Piece<'a> {
    Reasoning(Value),
    Text { words: &'a str, phase: Option<String> },
    Call(usize),
    Rest,
}

/// The layout with its words. If the text is not the one that was laid out, all of it stands where it began.
fn pieces(content: &str, layout: Vec<Place>) -> Vec<Piece<'_>> {
    let lengths = layout.iter().map(|place| {
        if let Place::Text { bytes, .. } = place {
            *bytes
        } else {
            0
        }
    });
    let mut ends = Vec::new();
    let mut end = 0_usize;
    for length in lengths {
        end = end.saturating_add(length);
        ends.push(end);
    }
    let fits = end == content.len() && ends.iter().all(|end| content.is_char_boundary(*end));
    let mut from = 0;
    let mut pieces = Vec::new();
    for (place, end) in layout.into_iter().zip(ends) {
        match place {
            Place::Reasoning(item) => pieces.push(Piece::Reasoning(item)),
            Place::Call(index) => pieces.push(Piece::Call(index)),
            Place::Text { phase, .. } => {
                let to = if fits { end } else { content.len() };
                let words = &content[from..to];
                from = to;
                if !words.is_empty() {
                    pieces.push(Piece::Text { words, phase });
                }
            }
        }
    }
    pieces
}

/// What we carry of this provider's.
fn layout(message: &Message, provider: &str) -> Option<Vec<Place>> {
    let ours = message.carry.iter().filter(|carry| carry.dialect == NAME);
    let mut layouts = ours.filter_map(|carry| serde_json::from_value::<Layout>(carry.data.clone()).ok());
    layouts
        .find(|layout| layout.provider == provider)
        .map(|layout| layout.items)
}

fn said(words: &str, phase: Option<String>) -> Value {
    // OpenAI's server takes the item without its type; others do not.
    let mut item = json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": words}]});
    if let Some(phase) = phase {
        item["phase"] = phase.into();
    }
    item
}

fn asked<'a>(call: &'a ToolCall, ids: &mut CallIds<'a>) -> Value {
    let arguments = Value::Object(call.arguments.clone()).to_string();
    json!({"type": "function_call", "call_id": ids.of_call(&call.id), "name": call.name, "arguments": arguments})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::{Again, Carry, Settings},
        provider::{golden::golden, responses::Responses},
    };

    fn reasoning(id: &str) -> Place {
        Place::Reasoning(json!({"type": "reasoning", "id": id, "summary": [], "encrypted_content": "gAAA"}))
    }

    fn text(bytes: usize, phase: Option<&str>) -> Place {
        let phase = phase.map(str::to_owned);
        Place::Text { bytes, phase }
    }

    fn carry(provider: &str, items: Vec<Place>) -> Carry {
        let provider = provider.to_owned();
        Carry {
            dialect: NAME.into(),
            data: serde_json::to_value(Layout { provider, items }).unwrap(),
        }
    }

    #[test]
    fn every_scenario_is_written_to_the_letter() {
        let items = vec![
            reasoning("rs_1"),
            text("I will look.".len(), Some("commentary")),
            reasoning("rs_2"),
            Place::Call(0),
            Place::Call(1),
            reasoning("rs_3"),
            Place::Call(2),
        ];
        insta::assert_json_snapshot!(golden(&Responses::of("openai"), &[carry("openai", items)]));
    }

    /// The items of an answer, in a word each.
    fn written(message: &Message, from: Option<&str>) -> Vec<String> {
        let mut input = Vec::new();
        assistant(message, from, &mut CallIds::new(IdForm::Short(MAX_CALL_ID)), &mut input);
        let word = |item: &Value| match (item["type"].as_str(), item["content"][0]["text"].as_str()) {
            (Some("reasoning"), _) => item["id"].as_str().unwrap().to_owned(),
            (Some("function_call"), _) => item["call_id"].as_str().unwrap().to_owned(),
            (_, text) => format!("{} {}", text.unwrap(), item["phase"].as_str().unwrap_or(""))
                .trim()
                .to_owned(),
        };
        input.iter().map(word).collect()
    }

    fn asking(ids: &[&str]) -> Vec<ToolCall> {
        let call = |id: &&str| ToolCall {
            id: (*id).into(),
            name: "f".into(),
            arguments: Map::new(),
        };
        ids.iter().map(call).collect()
    }

    #[test]
    fn an_answer_is_written_as_the_items_that_it_was() {
        let items = || {
            vec![
                text(5, Some("commentary")),
                reasoning("rs_1"),
                Place::Call(0),
                text(4, Some("final_answer")),
            ]
        };
        let message = Message::assistant("Hëyothr", asking(&["a"])).carrying(vec![carry("here", items())]);
        assert_eq!(message.content.len(), 8);
        // Not the text that was laid out.
        assert_eq!(written(&message, Some("here")), ["Hëyothr commentary", "rs_1", "a"]);
        let message = Message::assistant("Hëyoüvr", asking(&["a"])).carrying(vec![carry("here", items())]);
        assert_eq!(message.content.len(), 9);
        assert_eq!(
            written(&message, Some("here")),
            ["Hëyo commentary", "rs_1", "a", "üvr final_answer"]
        );
    }

    #[test]
    fn reasoning_goes_back_to_where_it_came_from_only() {
        let message = Message::assistant("Hi", asking(&["a"])).carrying(vec![carry(
            "here",
            vec![reasoning("rs_1"), Place::Call(0), text(2, None)],
        )]);
        assert_eq!(written(&message, Some("here")), ["rs_1", "a", "Hi"]);
        assert_eq!(written(&message, Some("elsewhere")), ["Hi", "a"]);
        assert_eq!(written(&message, None), ["Hi", "a"]);
    }

    #[test]
    fn reasoning_is_never_left_without_what_it_led_to() {
        let items = vec![reasoning("rs_1"), text(2, None), reasoning("rs_2"), Place::Call(0)];
        let cut = Message::assistant("Hi", vec![]).carrying(vec![carry("here", items)]);
        assert_eq!(written(&cut, Some("here")), ["rs_1", "Hi"]);
        let silent = Message::assistant("", vec![]).carrying(vec![carry("here", vec![reasoning("rs_1")])]);
        assert!(written(&silent, Some("here")).is_empty());
        let odd = Message::assistant("Hi", asking(&["a", "b"])).carrying(vec![carry("here", vec![Place::Call(1)])]);
        assert_eq!(written(&odd, Some("here")), ["b", "Hi", "a"]);
    }

    #[test]
    fn a_model_that_does_not_reason_is_not_asked_for_its_reasoning() {
        for (model, expected) in [
            ("gpt-5.6", true),
            ("o4-mini", true),
            ("my-deployment", true),
            ("gpt-4o-mini", false),
            ("gpt-4.1", false),
            ("ft:gpt-4o:us", false),
            ("gpt-5-chat-latest", false),
        ] {
            let request = ChatRequest {
                model: model.into(),
                instructions: None,
                messages: vec![Message::user("Hi", vec![])],
                tools: vec![],
                tool_choice: ToolChoice::Auto,
                settings: Settings::default(),
                response_format: ResponseFormat::Text,
                trace: None,
                again: Again::default(),
            };
            assert_eq!(body(&request, "here").get("include").is_some(), expected, "{model}");
        }
    }
}

//! Our request as Anthropic's.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{NAME, wire::Kept};
use crate::{
    chat::{ChatRequest, Message, ResponseFormat, Role, ToolChoice},
    provider::{
        ProviderError, Unsupported,
        call_ids::{CallIds, IdForm},
        dialect::{Call, is_strict},
        error::Kind,
        history::{self, has_text},
    },
};

/// The answer's limit where none is set: the API wants one. Models from Claude 3.5 on allow it; older ones want less.
const MAX_TOKENS: u64 = 8192;

/// What has no place here.
pub(super) fn check(request: &ChatRequest) -> Result<(), Unsupported> {
    let settings = &request.settings;
    let refused = |field| Err(Unsupported { field });
    if settings.temperature.is_some_and(|t| !(0.0..=1.0).contains(&t)) {
        return refused("settings.temperature");
    }
    if settings.seed.is_some() {
        return refused("settings.seed");
    }
    if settings.stop.iter().any(|stop| stop.trim().is_empty()) {
        return refused("settings.stop"); // a line break, for one, cannot end an answer here
    }
    match &request.response_format {
        ResponseFormat::Text => {}
        // Not every model, and only schemas that leave nothing open; any JSON object has no place at all.
        ResponseFormat::JsonSchema { schema, .. } if structures(&request.model) && is_strict(schema, &[]) => {}
        _ => return refused("response_format"),
    }
    Ok(())
}

/// Whether a model takes `output_config.format`, for all that its name says: those from before Opus 4.1 do not
/// (docs.claude.com/en/docs/build-with-claude/structured-outputs, 2026-11).
fn structures(model: &str) -> bool {
    let before = [
        "claude-2",
        "claude-3",
        "claude-instant",
        "claude-sonnet-4-0",
        "claude-sonnet-4-2025",
        "claude-opus-4-0",
        "claude-opus-4-2025",
    ];
    !before.iter().any(|family| model.starts_with(family))
}

/// The call for a request to this provider.
pub(super) fn call(request: &ChatRequest, provider: &str) -> Result<Call, ProviderError> {
    let body =
        serde_json::to_vec(&body(request, provider)).map_err(|e| ProviderError::new(Kind::Config, e.to_string()))?;
    Ok(Call {
        path: "/messages".into(),
        body,
    })
}

fn body(request: &ChatRequest, provider: &str) -> Value {
    let mut body = Map::new();
    let mut put = |name: &str, value: Value| body.insert(name.to_owned(), value);
    let settings = &request.settings;
    put("model", json!(request.model));
    put("max_tokens", json!(settings.max_output_tokens.unwrap_or(MAX_TOKENS)));
    if let Some(instructions) = request.instructions.as_deref().filter(|text| has_text(text)) {
        put("system", json!(instructions));
    }
    put("messages", turns(&request.messages, provider));
    put("stream", json!(true));
    if let Some(temperature) = settings.temperature {
        put("temperature", json!(temperature));
    }
    if let Some(top_p) = settings.top_p {
        put("top_p", json!(top_p));
    }
    if !settings.stop.is_empty() {
        put("stop_sequences", json!(settings.stop));
    }
    let (tools, choice) = history::tools(request);
    if !tools.is_empty() {
        let tools = tools
            .iter()
            .map(|tool| json!({"name": tool.name, "description": tool.description, "input_schema": tool.parameters}));
        put("tools", tools.collect());
        match choice {
            ToolChoice::Auto => {}
            ToolChoice::None => drop(put("tool_choice", json!({"type": "none"}))),
            ToolChoice::Required => drop(put("tool_choice", json!({"type": "any"}))),
            ToolChoice::Named(name) => drop(put("tool_choice", json!({"type": "tool", "name": name}))),
        }
    }
    let mut output = Map::new();
    if let Some(effort) = &settings.reasoning_effort {
        // The model's own scale (`low` to `max`) of how much it says and thinks. `thinking` is another thing: a budget
        // or a mode, which not all models know alike; without it each thinks as its default is.
        output.insert("effort".to_owned(), json!(effort));
    }
    if let ResponseFormat::JsonSchema { schema, .. } = &request.response_format {
        output.insert("format".to_owned(), json!({"type": "json_schema", "schema": schema})); // it has no name here
    }
    if !output.is_empty() {
        put("output_config", Value::Object(output));
    }
    Value::Object(body)
}

/// The conversation as turns of user and assistant, one after the other. What we keep as several messages of one side is
/// one turn: so a round's results are all in one, before whatever the user says next, as the API demands.
fn turns(messages: &[Message], provider: &str) -> Value {
    let mut ids = CallIds::new(IdForm::Unique);
    let mut turns: Vec<(&str, Vec<Value>)> = Vec::with_capacity(messages.len());
    for message in messages {
        let (role, blocks) = match message.role {
            Role::User => ("user", user(message)),
            Role::Assistant => ("assistant", assistant(message, provider, &mut ids)),
            Role::Tool => ("user", vec![result(message, &ids)]),
        };
        match turns.last_mut() {
            _ if blocks.is_empty() => {}
            Some((last, known)) if *last == role => known.extend(blocks),
            _ => turns.push((role, blocks)),
        }
    }
    let turn = |(role, blocks): (&str, Vec<Value>)| match blocks.as_slice() {
        [only] if only["type"] == "text" => json!({"role": role, "content": only["text"]}),
        _ => json!({"role": role, "content": blocks}),
    };
    turns.into_iter().map(turn).collect()
}

/// Images first: the model reads them better before the words about them.
fn user(message: &Message) -> Vec<Value> {
    let images = message.attachments.iter().map(|image| {
        json!({"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": image.data}})
    });
    images.chain(text(&message.content)).collect()
}

/// Words and calls, and between them, where it stood, the thinking that came with them.
fn assistant<'a>(message: &'a Message, provider: &str, ids: &mut CallIds<'a>) -> Vec<Value> {
    let mut blocks = Vec::new();
    let content = &*message.content;
    let calls: Vec<Value> = message
        .tool_calls
        .iter()
        .map(
            |call| json!({"type": "tool_use", "id": ids.of_call(&call.id), "name": call.name, "input": call.arguments}),
        )
        .collect();
    let (mut said, mut called) = (0, 0);
    for carry in message.carry.iter().filter(|carry| carry.dialect == NAME) {
        let Ok(kept) = Kept::deserialize(&carry.data) else {
            continue;
        };
        if kept.provider.is_some_and(|from| from != provider) {
            continue;
        }
        if let Some(before) = content.get(said..kept.text) {
            blocks.extend(text(before));
            said = kept.text;
        }
        if let Some(before) = calls.get(called..kept.calls) {
            blocks.extend_from_slice(before);
            called = kept.calls;
        }
        blocks.push(kept.block);
    }
    blocks.extend(text(&content[said..]));
    blocks.extend_from_slice(&calls[called..]);
    // A turn must not end with thinking: where nothing came of it, because the answer was cut, it is of no use.
    let end = blocks
        .iter()
        .rposition(|block| block["type"] == "text" || block["type"] == "tool_use");
    blocks.truncate(end.map_or(0, |at| at + 1));
    blocks
}

fn result(message: &Message, ids: &CallIds<'_>) -> Value {
    let id = ids.of_result(message.tool_call_id.as_deref().unwrap_or(""));
    match message.failed {
        true => json!({"type": "tool_result", "tool_use_id": id, "content": message.content, "is_error": true}),
        false => json!({"type": "tool_result", "tool_use_id": id, "content": message.content}),
    }
}

/// A text block, unless it were blank: those are not allowed.
fn text(text: &str) -> Option<Value> {
    has_text(text).then(|| json!({"type": "text", "text": text}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::{
            Again, Carry, Settings, ToolCall,
            fold::{Round, words},
        },
        provider::{anthropic::Anthropic, deviations::Deviations, dialect::Dialect as _, golden::golden},
    };

    fn kept(text: usize, calls: usize, block: Value) -> Carry {
        Carry {
            dialect: NAME.into(),
            data: json!({"text": text, "calls": calls, "block": block}),
        }
    }

    fn thinking(words: &str) -> Value {
        json!({"type": "thinking", "thinking": words, "signature": format!("signed {words}")})
    }

    fn call(id: &str) -> ToolCall {
        ToolCall {
            id: id.into(),
            name: "t".into(),
            arguments: Map::new(),
        }
    }

    fn written(messages: &[Message]) -> Value {
        turns(messages, "")
    }

    #[test]
    fn every_scenario_is_written_to_the_letter() {
        let redacted = json!({"type": "redacted_thinking", "data": "c2VjcmV0"});
        let carried = [kept(0, 0, thinking("Look it up.")), kept(0, 0, redacted)];
        insta::assert_json_snapshot!(golden(&Anthropic::default(), &carried));
    }

    #[test]
    fn thinking_goes_back_to_where_it_stood() {
        let message = Message::assistant("Wörter, more.", vec![call("a"), call("b")]).carrying(vec![
            kept(0, 0, thinking("first")),
            kept(8, 0, thinking("after words")),
            kept(14, 1, thinking("between calls")),
        ]);
        let types: Vec<Value> = assistant(&message, "", &mut CallIds::new(IdForm::Unique))
            .into_iter()
            .map(|block| {
                block
                    .get("thinking")
                    .or(block.get("text"))
                    .or(block.get("id"))
                    .cloned()
                    .unwrap()
            })
            .collect();
        assert_eq!(
            json!(types),
            json!(["first", "Wörter,", "after words", " more.", "a", "between calls", "b"])
        );
    }

    #[test]
    fn thinking_goes_back_to_its_own_provider_only() {
        let mut carry = kept(0, 0, json!({"type": "thinking", "thinking": "Hm"}));
        carry.data["provider"] = json!("deepseek");
        let message = Message::assistant("Hi", vec![]).carrying(vec![carry]);
        let types = |provider: &str| -> Vec<Value> {
            let blocks = assistant(&message, provider, &mut CallIds::new(IdForm::Unique));
            blocks.into_iter().map(|block| block["type"].clone()).collect()
        };
        assert_eq!(types("deepseek"), ["thinking", "text"]);
        assert_eq!(types("anthropic"), ["text"]);
    }

    #[test]
    fn a_round_goes_back_block_by_block_as_it_came() {
        let came = json!([
            thinking("one"), {"type": "text", "text": "Let me see."}, {"type": "redacted_thinking", "data": "R"},
            {"type": "tool_use", "id": "toolu_1", "name": "t", "input": {"x": 1}}, thinking("two"),
            {"type": "tool_use", "id": "toolu_2", "name": "t", "input": {}},
        ]);
        let answer = json!({"type": "message", "content": came, "stop_reason": "tool_use"});
        let chunks = Anthropic::default()
            .whole(answer.to_string().as_bytes(), &mut Deviations::default())
            .unwrap();
        let mut round = Round::default();
        chunks.iter().for_each(|chunk| assert!(round.push(chunk)));
        let (asked, carry) = round.complete();
        let kept = Message::assistant(words(&chunks), asked.into_iter().map(|a| a.call).collect()).carrying(carry);
        let stored: Message = serde_json::from_value(json!(kept)).unwrap();
        assert_eq!(json!(assistant(&stored, "", &mut CallIds::new(IdForm::Unique))), came);
    }

    #[test]
    fn thinking_whose_place_is_gone_goes_first_and_a_carry_of_another_form_is_left_out() {
        let odd = Carry {
            dialect: NAME.into(),
            data: json!({"from": "another time"}),
        };
        let message = Message::assistant("ö", vec![]).carrying(vec![kept(1, 0, thinking("x")), odd]);
        let turn = written(&[Message::user("Hi", vec![]), message, Message::user("And?", vec![])]);
        assert_eq!(
            turn[1]["content"],
            json!([thinking("x"), {"type": "text", "text": "ö"}])
        );
    }

    #[test]
    fn thinking_that_came_to_nothing_is_not_sent() {
        let cut = |text: &str| Message::assistant(text, vec![]).carrying(vec![kept(text.len(), 0, thinking("x"))]);
        let ask = || Message::user("Hi", vec![]);
        assert_eq!(
            written(&[ask(), cut("Well"), ask()])[1],
            json!({"role": "assistant", "content": "Well"})
        );
        let without = written(&[ask(), cut(" \n"), ask()]);
        let hi = json!({"type": "text", "text": "Hi"});
        assert_eq!(without, json!([{"role": "user", "content": [hi, hi]}]));
    }

    #[test]
    fn results_come_first_in_the_turn_that_a_question_follows() {
        let messages = [
            Message::user("Hi", vec![]),
            Message::assistant("", vec![call("a"), call("b")]),
            Message::tool("a", "1"),
            Message::tool("b", ""),
            Message::user("Stop.", vec![]),
        ];
        let turns = written(&messages);
        assert_eq!(turns.as_array().unwrap().len(), 3);
        let types: Vec<&Value> = turns[2]["content"]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| &b["type"])
            .collect();
        assert_eq!(types, ["tool_result", "tool_result", "text"]);
    }

    #[test]
    fn ids_of_other_providers_are_made_to_fit() {
        let round = |id: &str| {
            [
                Message::user("Hi", vec![]),
                Message::assistant("", vec![call(id)]),
                Message::tool(id, "1"),
            ]
        };
        let turns = written(&["toolu_01-A", "call:1", "call+1", "", "call:1"].map(round).concat());
        let turns = turns.as_array().unwrap();
        let asked: Vec<&Value> = turns.iter().filter_map(|t| t.pointer("/content/0/id")).collect();
        let answered: Vec<&Value> = turns
            .iter()
            .filter_map(|t| t.pointer("/content/0/tool_use_id"))
            .collect();
        assert_eq!(asked, ["toolu_01-A", "call_1", "call_1_", "_", "call_1__"]);
        assert_eq!(asked, answered);
    }

    #[test]
    fn what_has_no_place_is_refused_by_its_name() {
        let request = |settings: Settings| ChatRequest {
            model: "m".into(),
            instructions: Some(" ".into()),
            messages: vec![Message::user("Hi", vec![])],
            tools: vec![],
            tool_choice: ToolChoice::Auto,
            settings,
            response_format: ResponseFormat::Text,
            trace: None,
            again: Again::default(),
        };
        let refused = |settings| check(&request(settings)).map_err(|unsupported| unsupported.field);
        let of = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            refused(settings)
        };
        assert_eq!(of(|s| s.stop = vec!["END".into(), "\n".into()]), Err("settings.stop"));
        assert_eq!(of(|s| s.temperature = Some(1.01)), Err("settings.temperature"));
        assert_eq!(of(|s| s.temperature = Some(1.0)), Ok(()));
        assert_eq!(of(|s| s.seed = Some(0)), Err("settings.seed"));
        assert!(
            body(&request(Settings::default()), "").get("system").is_none(),
            "blank instructions"
        );
    }
}

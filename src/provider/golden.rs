//! Scenarios that every dialect writes down: a table of what is asked × how each provider is asked it, kept as snapshots
//! of the exact requests. What a provider cannot do is in the table too, as its refusal.

use serde_json::{Map, Value, json};

use super::dialect::Dialect;
use crate::chat::{
    Again, Carry, ChatRequest, Image, Message, ResponseFormat, Settings, ToolCall, ToolChoice, ToolDefinition,
};

/// Every scenario as this dialect writes it.
pub(crate) fn golden(dialect: &dyn Dialect, carried: &[Carry]) -> Value {
    let mut table = Map::new();
    for (name, request) in scenarios(carried) {
        let written = match dialect.check(&request) {
            Err(refused) => json!({"refused": refused.field}),
            Ok(()) => {
                let call = dialect
                    .encode(&request)
                    .expect("a request that passed its check is written down");
                let body: Value = serde_json::from_slice(&call.body).expect("a body of JSON");
                json!({"path": call.path, "body": body})
            }
        };
        table.insert(name.to_owned(), written);
    }
    let mut table = Value::Object(table);
    table.sort_all_objects(); // so that a change of the encoder's order changes no snapshot
    table
}

/// What is asked. `carried` is what the dialect wants back with the round that asked for tools.
fn scenarios(carried: &[Carry]) -> Vec<(&'static str, ChatRequest)> {
    let plain = |messages: Vec<Message>| ChatRequest {
        model: "model-x".into(),
        instructions: None,
        messages,
        tools: vec![],
        tool_choice: ToolChoice::Auto,
        settings: Settings::default(),
        response_format: ResponseFormat::Text,
        trace: None,
        again: Again::default(),
    };
    let hi = || plain(vec![Message::user("Hi", vec![])]);
    let with = |change: fn(&mut ChatRequest)| {
        let mut request = hi();
        request.tools = vec![weather(), clock()];
        change(&mut request);
        request
    };
    let setting = |change: fn(&mut Settings)| {
        let mut request = hi();
        change(&mut request.settings);
        request
    };
    let schema = || json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false});
    let call = |id: &str, city: &str| ToolCall {
        id: id.into(),
        name: "weather".into(),
        arguments: Map::from_iter([("city".to_owned(), json!(city))]),
    };
    let image = |media_type: &str| Image {
        media_type: media_type.into(),
        data: "iVBORw0KGgo=".into(),
    };
    let foreign = Carry {
        dialect: "somebody-else".into(),
        data: json!({"secret": true}),
    };
    let mut tools_round = plain(vec![
        Message::user("Weather in Paris and Rome, and the time?", vec![]),
        Message::assistant(
            "I will look.",
            vec![
                call("call_1", "Paris"),
                call("call_2", "Rome"),
                ToolCall {
                    id: "call_3".into(),
                    name: "clock".into(),
                    arguments: Map::new(),
                },
            ],
        )
        .carrying(carried.iter().cloned().chain([foreign]).collect()),
        Message::tool("call_1", "18 degrees"),
        Message::tool("call_2", "{\"degrees\": 24}"),
        Message::tool("call_3", "noon"),
    ]);
    tools_round.tools = vec![weather(), clock()];

    vec![
        ("1 a question", hi()),
        ("2 instructions and several turns", {
            let mut request = plain(vec![
                Message::user("My name is Ada.", vec![]),
                Message::assistant("Hello, Ada.", vec![]),
                Message::user("What is my name?", vec![]),
            ]);
            request.instructions = Some("Be brief.".into());
            request
        }),
        (
            "3 images",
            plain(vec![Message::user(
                "What is it?",
                vec![image("image/png"), image("image/jpeg")],
            )]),
        ),
        ("4 tools", with(|_| ())),
        ("5 tools, none to be called", with(|r| r.tool_choice = ToolChoice::None)),
        (
            "6 tools, one must be called",
            with(|r| r.tool_choice = ToolChoice::Required),
        ),
        (
            "7 tools, this one",
            with(|r| r.tool_choice = ToolChoice::Named("clock".into())),
        ),
        ("8 three results of one round", tools_round),
        (
            "9 two questions in a row after an empty answer",
            plain(vec![
                Message::user("One?", vec![]),
                Message::assistant("", vec![]),
                Message::user("Two?", vec![]),
            ]),
        ),
        ("any JSON", {
            let mut r = hi();
            r.response_format = ResponseFormat::JsonObject;
            r
        }),
        ("JSON of a schema", {
            let mut r = hi();
            r.response_format = ResponseFormat::JsonSchema {
                name: "place".into(),
                schema: schema(),
            };
            r
        }),
        ("setting temperature", setting(|s| s.temperature = Some(0.5))),
        ("setting temperature above 1", setting(|s| s.temperature = Some(1.5))),
        ("setting top_p", setting(|s| s.top_p = Some(0.9))),
        ("setting max_output_tokens", setting(|s| s.max_output_tokens = Some(64))),
        ("setting stop", setting(|s| s.stop = vec!["END".into(), "STOP".into()])),
        ("setting seed", setting(|s| s.seed = Some(7))),
        (
            "setting reasoning_effort",
            setting(|s| s.reasoning_effort = Some("low".into())),
        ),
    ]
}

fn weather() -> ToolDefinition {
    ToolDefinition {
        name: "weather".into(),
        description: "The weather in a city.".into(),
        parameters: json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}),
    }
}

fn clock() -> ToolDefinition {
    ToolDefinition {
        name: "clock".into(),
        description: "The time.".into(),
        parameters: json!({"type": "object", "properties": {}}),
    }
}

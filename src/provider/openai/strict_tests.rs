//! The requests that strict servers take, to the letter.

use serde_json::{Map, Value, json};

use super::{OpenAi, Server};
use crate::{
    chat::{
        Again, Carry, ChatRequest, Image, Message, ResponseFormat, Settings, ToolCall, ToolChoice, fold::Round,
        fold::words,
    },
    provider::{deviations::Deviations, dialect::Dialect as _},
};

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

fn named(provider: &str) -> OpenAi {
    OpenAi {
        provider: provider.into(),
        server: Server::default(),
    }
}

fn body(dialect: &OpenAi, request: &ChatRequest) -> Value {
    serde_json::from_slice(&dialect.encode(request).unwrap().body).unwrap()
}

fn messages(dialect: &OpenAi, messages: Vec<Message>) -> Value {
    body(dialect, &request(messages))["messages"].take()
}

fn user(text: &str) -> Message {
    Message::user(text, vec![])
}

fn call(id: &str) -> ToolCall {
    ToolCall {
        id: id.into(),
        name: "t".into(),
        arguments: Map::new(),
    }
}

/// The message that a stored answer becomes, and the one that comes back from the store.
fn stored(dialect: &OpenAi, events: &[Value]) -> Message {
    let mut decoder = dialect.own_decoder();
    let mut chunks = Vec::new();
    for event in events {
        let data = event.to_string();
        let frame = crate::provider::frame::Frame {
            event: b"",
            bare: false,
            data: &data,
        };
        crate::provider::dialect::Decoder::frame(&mut decoder, frame, &mut chunks).unwrap();
    }
    crate::provider::dialect::Decoder::end(&mut decoder, &mut chunks).unwrap();
    let mut round = Round::default();
    chunks.iter().for_each(|chunk| assert!(round.push(chunk)));
    let (asked, carry) = round.complete();
    let calls = asked.into_iter().map(|asked| asked.call).collect();
    let message = Message::assistant(words(&chunks), calls).carrying(carry);
    serde_json::from_value(json!(message)).unwrap()
}

fn delta(delta: Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta}]})
}

fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

#[test]
fn an_answer_of_nothing_is_left_out_and_its_questions_are_one() {
    for nothing in ["", " \n"] {
        let talk = vec![user("One?"), Message::assistant(nothing, vec![]), user("Two?")];
        let sent = messages(&OpenAi::default(), talk);
        assert_eq!(sent, json!([{"role": "user", "content": "One?\n\nTwo?"}]));
    }
    let image = Image {
        media_type: "image/png".into(),
        data: "AAAA".into(),
    };
    let talk = vec![
        Message::user("", vec![image]),
        Message::assistant("", vec![]),
        user("Two?"),
    ];
    let part = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    let sent = messages(&OpenAi::default(), talk);
    assert_eq!(
        sent,
        json!([{"role": "user", "content": [part, {"type": "text", "text": "Two?"}]}])
    );
}

#[test]
fn a_question_after_a_result_has_an_answer_before_it_at_mistral() {
    let talk = || {
        vec![
            user("One?"),
            Message::assistant("", vec![call("aB3dE6gH9")]),
            Message::tool("aB3dE6gH9", "1"),
            Message::assistant("", vec![]),
            user("Two?"),
        ]
    };
    let roles = |model: &str| -> Vec<Value> {
        let mut request = request(talk());
        request.model = model.into();
        let sent = body(&OpenAi::default(), &request)["messages"].take();
        sent.as_array()
            .unwrap()
            .iter()
            .map(|message| message["role"].clone())
            .collect()
    };
    assert_eq!(
        roles("mistral-small"),
        ["user", "assistant", "tool", "assistant", "user"]
    );
    assert_eq!(roles("m"), ["user", "assistant", "tool", "user"]);
}

#[test]
fn members_of_a_round_with_calls_go_back_to_their_provider_alone() {
    let dialect = named("kimi");
    let answer = stored(
        &dialect,
        &[
            delta(json!({"role": "assistant", "content": "", "reasoning_content": "Let me "})),
            delta(json!({"reasoning_content": "see."})),
            delta(json!({"reasoning_details": [{"index": 0, "type": "reasoning.text", "text": "a"}], "token_id": 7})),
            delta(
                json!({"reasoning_details": [{"index": 0, "type": "reasoning.text", "text": "a", "signature": "S"}]}),
            ),
            delta(json!({"tool_calls": [
                {"index": 0, "id": "t:0", "type": "function", "function": {"name": "t", "arguments": "{}"},
                 "extra_content": {"google": {"thought_signature": "one"}}},
            ]})),
            delta(json!({"tool_calls": [
                {"index": 1, "id": "t:1", "type": "function", "function": {"name": "t", "arguments": "{}", "mark": "m"},
                 "extra_content": {"google": {"thought_signature": "two"}}},
            ]})),
            finish("tool_calls"),
        ],
    );
    let talk = || {
        vec![
            user("?"),
            answer.clone(),
            Message::tool("t:0", "1"),
            Message::tool("t:1", "2"),
            user("And?"),
        ]
    };
    assert_eq!(
        messages(&dialect, talk()),
        json!([
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": null, "reasoning_content": "Let me see.",
             "reasoning_details": [{"index": 0, "type": "reasoning.text", "text": "aa", "signature": "S"}],
             "tool_calls": [
                {"id": "t:0", "type": "function", "function": {"name": "t", "arguments": "{}"},
                 "extra_content": {"google": {"thought_signature": "one"}}},
                {"id": "t:1", "type": "function", "function": {"name": "t", "arguments": "{}", "mark": "m"},
                 "extra_content": {"google": {"thought_signature": "two"}}},
             ]},
            {"role": "tool", "tool_call_id": "t:0", "content": "1"},
            {"role": "tool", "tool_call_id": "t:1", "content": "2"},
                {"role": "user", "content": "And?"},
        ])
    );
    let elsewhere = messages(&named("other"), talk()).to_string();
    for own in ["reasoning", "thought_signature", "mark", "t:0"] {
        assert!(!elsewhere.contains(own), "{own}: {elsewhere}");
    }
}

#[test]
fn thinking_without_calls_stays_and_other_members_go_back() {
    let dialect = named("p");
    let answer = stored(
        &dialect,
        &[
            delta(json!({"content": "Hi", "reasoning": "Hm", "extra_content": {"google": {"thought_signature": "S"}}})),
            finish("stop"),
        ],
    );
    let sent = messages(&dialect, vec![user("?"), answer, user("!")]);
    let expected =
        json!({"role": "assistant", "content": "Hi", "extra_content": {"google": {"thought_signature": "S"}}});
    assert_eq!(sent[1], expected);
    let plain = stored(
        &dialect,
        &[
            delta(json!({"content": "Hi", "annotations": [1], "x": 1, "y": ""})),
            finish("stop"),
        ],
    );
    assert_eq!(plain.carry, []);
}

#[test]
fn a_whole_message_after_its_pieces_adds_nothing() {
    let dialect = named("p");
    let piece = json!({"content": "Hi", "extra_content": {"a": {"s": "S"}}});
    let message = json!({"role": "assistant", "extra_content": {"a": {"s": "T"}}});
    let last = json!({"choices": [{"index": 0, "delta": null, "message": message, "finish_reason": "stop"}]});
    let mut collector = super::opaque::Collector::new("p".into());
    for event in [delta(piece), last] {
        collector.read(&event.to_string(), |_, _| None).unwrap();
    }
    let carried = collector.finish(false).unwrap();
    assert_eq!(carried.data["message"], json!({"extra_content": {"a": {"s": "S"}}}));
    let whole = json!({"choices": [{"message": {"content": "Hi", "x": ["y"]}, "finish_reason": "stop"}]});
    let chunks = dialect
        .whole(whole.to_string().as_bytes(), &mut Deviations::default())
        .unwrap();
    let data = json!({"provider": "p", "message": {"x": ["y"]}});
    let carry = Carry {
        dialect: "openai".into(),
        data,
    };
    assert!(chunks.contains(&crate::chat::Chunk::Carry(carry)), "{chunks:?}");
}

#[test]
fn another_provider_s_ids_are_rewritten_alike_in_a_call_and_its_result() {
    let talk = || {
        vec![
            user("?"),
            Message::assistant(
                "",
                vec![call("toolu_01A"), call("call_0123456789abcdef0123456789abcdef")],
            ),
            Message::tool("toolu_01A", "1"),
            Message::tool("call_0123456789abcdef0123456789abcdef", "2"),
        ]
    };
    let ids = |model: &str| -> [String; 2] {
        let mut request = request(talk());
        request.model = model.into();
        let sent = body(&OpenAi::default(), &request)["messages"].take();
        let calls = &sent[1]["tool_calls"];
        assert_eq!(calls[0]["id"], sent[2]["tool_call_id"]);
        assert_eq!(calls[1]["id"], sent[3]["tool_call_id"]);
        [&calls[0], &calls[1]].map(|call| call["id"].as_str().unwrap().to_owned())
    };
    for id in ids("mistral-small") {
        assert!(id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()), "{id}");
    }
    assert_eq!(ids("m"), ["toolu_01A", "call_0123456789abcdef0123456789abcdef"]);
}

#[test]
fn a_conversation_with_calls_has_tools_even_where_none_may_be_called() {
    let mut request = request(vec![
        user("?"),
        Message::assistant("", vec![call("a")]),
        Message::tool("a", "1"),
    ]);
    let sent = body(&OpenAi::default(), &request);
    let tool = json!({"name": "t", "description": "", "parameters": {"type": "object", "properties": {}}});
    assert_eq!(
        (&sent["tools"], &sent["tool_choice"]),
        (&json!([{"type": "function", "function": tool}]), &json!("none"))
    );
    request.messages.truncate(1);
    let sent = body(&OpenAi::default(), &request);
    assert_eq!((sent.get("tools"), sent.get("tool_choice")), (None, None));
}

#[test]
fn the_limit_of_tokens_has_the_name_that_the_server_knows() {
    use super::MaxTokensField::{Both, MaxCompletionTokens, MaxTokens};
    for (max_tokens, names) in [
        (MaxTokens, vec!["max_tokens"]),
        (MaxCompletionTokens, vec!["max_completion_tokens"]),
        (Both, vec!["max_completion_tokens", "max_tokens"]),
    ] {
        let mut request = request(vec![user("?")]);
        request.settings.max_output_tokens = Some(64);
        let sent = body(
            &OpenAi::at(Server {
                max_tokens,
                ..Server::default()
            }),
            &request,
        );
        let fields = sent.as_object().unwrap().iter().filter(|(_, value)| **value == 64);
        assert_eq!(fields.map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
    }
}

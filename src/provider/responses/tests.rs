//! The dialect's stories: events and what they come to.

use serde_json::{Value, json};

use super::Responses;
use crate::{
    chat::{
        Again, ChatRequest, Chunk, FinishKind, Message, ResponseFormat, Settings, ToolChoice, Usage,
        fold::{Round, words},
    },
    provider::{
        ProviderError,
        decoding::Decoding,
        deviations::Deviations,
        dialect::{Dialect, Progress},
        error::Kind,
    },
};

/// What a stream of these events comes to, and how it ended.
fn told(events: &[Value]) -> (Vec<Chunk>, Result<(), ProviderError>) {
    let mut decoding = Decoding::new(&Responses::of("here"), 1 << 20);
    let mut out = Vec::new();
    for event in events {
        let kind = event["type"].as_str().unwrap_or("error");
        if let Err(error) = decoding.push(format!("event: {kind}\ndata: {event}\n\n").as_bytes(), &mut out) {
            return (out, Err(error));
        }
        if decoding.progress() == Progress::Over {
            return (out, Ok(()));
        }
    }
    let end = decoding.end(None, &mut out);
    (out, end)
}

fn decode(events: &[Value]) -> Vec<Chunk> {
    let (chunks, end) = told(events);
    end.unwrap();
    chunks
}

fn error(events: &[Value]) -> ProviderError {
    told(events).1.unwrap_err()
}

fn added(at: u64, item: Value) -> Value {
    json!({"type": "response.output_item.added", "output_index": at, "item": item})
}

fn done(at: u64, item: Value) -> Value {
    json!({"type": "response.output_item.done", "output_index": at, "item": item})
}

fn delta(kind: &str, at: u64, delta: &str) -> Value {
    json!({"type": format!("response.{kind}.delta"), "output_index": at, "delta": delta, "obfuscation": "xyz"})
}

fn hi() -> Value {
    delta("output_text", 0, "Hi")
}

fn completed() -> Value {
    json!({"type": "response.completed", "response": {"status": "completed", "output": []}})
}

fn arguments_done(at: u64, arguments: &str) -> Value {
    json!({"type": "response.function_call_arguments.done", "output_index": at, "arguments": arguments})
}

fn call(id: &str, name: &str, arguments: &str) -> Value {
    json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": name, "arguments": arguments})
}

fn text(chunks: &[Chunk]) -> String {
    let words = |chunk: &Chunk| {
        if let Chunk::Text(text) = chunk {
            text.clone()
        } else {
            String::new()
        }
    };
    chunks.iter().map(words).collect()
}

fn thinking(chunks: &[Chunk]) -> String {
    let words = |chunk: &Chunk| {
        if let Chunk::Reasoning(text) = chunk {
            text.clone()
        } else {
            String::new()
        }
    };
    chunks.iter().map(words).collect()
}

/// `(id, name, arguments)` of every call.
fn calls(chunks: &[Chunk]) -> Vec<(String, String, String)> {
    let mut calls = Vec::new();
    for chunk in chunks {
        match chunk {
            Chunk::ToolCallStart { index, id, name } => {
                assert_eq!(*index, calls.len());
                calls.push((id.clone(), name.clone(), String::new()));
            }
            Chunk::ToolCallDelta { index, arguments } => calls[*index].2.push_str(arguments),
            _ => {}
        }
    }
    calls
}

fn asked(id: &str, name: &str, arguments: &str) -> (String, String, String) {
    (id.into(), name.into(), arguments.into())
}

fn finish(chunks: &[Chunk]) -> (FinishKind, Usage) {
    let Some(Chunk::Finish { reason, usage }) = chunks.last() else {
        panic!("no finish")
    };
    (reason.kind, usage.clone())
}

#[test]
fn words_and_a_refusal_are_the_answer() {
    let chunks = decode(&[
        json!({"type": "response.created", "response": {"status": "in_progress", "output": []}}),
        added(0, json!({"type": "message", "id": "m", "content": []})),
        delta("output_text", 0, "Hé"),
        json!({"type": "response.output_text.annotation.added", "output_index": 0, "annotation": {}}),
        json!({"type": "response.output_text.done", "output_index": 0, "content_index": 0, "text": "Hé"}),
        json!({"type": "response.refusal.delta", "output_index": 0, "content_index": 1, "delta": "No."}),
        json!({"type": "response.refusal.done", "output_index": 0, "content_index": 1, "refusal": "No."}),
        done(
            0,
            json!({"type": "message", "content": [{"type": "output_text", "text": "Hé"}, {"type": "refusal", "refusal": "No."}]}),
        ),
        completed(),
        delta("output_text", 0, "late"),
    ]);
    assert_eq!(text(&chunks), "HéNo.");
    assert_eq!(finish(&chunks), (FinishKind::Stop, Usage::default()));
    assert!(!chunks.iter().any(|chunk| matches!(chunk, Chunk::Carry(_))));
}

#[test]
fn only_the_last_event_completes_an_answer() {
    let message = json!({"type": "message", "content": [{"type": "output_text", "text": "Hi"}]});
    for cut in [&[hi()] as &[Value], &[hi(), done(0, message)]] {
        assert_eq!(error(cut).kind, Kind::Truncated, "{cut:?}");
    }
    let mut decoding = Decoding::new(&Responses::of("here"), 1 << 20);
    let done_alone = decoding.push(b"data: [DONE]\n\n", &mut Vec::new());
    assert_eq!(done_alone.unwrap_err().kind, Kind::Truncated);
    assert_eq!(
        finish(&decode(&[hi(), completed(), json!("[DONE]")])).0,
        FinishKind::Stop
    );
}

#[test]
fn every_ending_has_its_word() {
    let end = |kind: &str, response: Value| json!({"type": format!("response.{kind}"), "response": response});
    let cut = |reason: &str| {
        end(
            "incomplete",
            json!({"status": "incomplete", "incomplete_details": {"reason": reason}}),
        )
    };
    assert_eq!(finish(&decode(&[cut("max_output_tokens")])).0, FinishKind::Length);
    assert_eq!(finish(&decode(&[cut("content_filter")])).0, FinishKind::ContentFilter);
    assert_eq!(error(&[cut("boredom")]).kind, Kind::Reported);
    assert_eq!(error(&[cut("sk-1 said")]).detail, "incomplete:");
    assert_eq!(error(&[end("incomplete", json!({}))]).kind, Kind::Reported);
    assert_eq!(
        finish(&decode(&[json!({"type": "response.completed"})])).0,
        FinishKind::Stop
    );
    assert_eq!(
        error(&[end("completed", json!({"status": "failed"}))]).kind,
        Kind::Reported
    );
    assert_eq!(
        error(&[end("cancelled", json!({"status": "cancelled"}))]).kind,
        Kind::Reported
    );
    let call = done(0, call("a", "f", "{\"x\":1"));
    assert_eq!(finish(&decode(&[call, cut("max_output_tokens")])).0, FinishKind::Length);
}

#[test]
fn calls_are_numbered_from_0_and_named_by_their_call_id() {
    let chunks = decode(&[
        added(0, json!({"type": "reasoning", "id": "rs_1", "summary": []})),
        added(
            2,
            json!({"type": "function_call", "id": "x", "call_id": "a", "name": "f", "arguments": ""}),
        ),
        added(
            3,
            json!({"type": "function_call", "id": "y", "call_id": "b", "name": "g", "arguments": ""}),
        ),
        // Ids that changed on the way, and pieces that take turns.
        json!({"type": "response.function_call_arguments.delta", "output_index": 2, "item_id": "p", "delta": "{\"x\""}),
        json!({"type": "response.function_call_arguments.delta", "output_index": 3, "item_id": "q", "delta": "{"}),
        json!({"type": "response.function_call_arguments.delta", "output_index": 2, "item_id": "r", "delta": ":1}"}),
        json!({"type": "response.function_call_arguments.delta", "output_index": 3, "item_id": "s", "delta": "}"}),
        json!({"type": "response.function_call_arguments.done", "output_index": 2, "item_id": "t", "arguments": "{\"x\":1}"}),
        done(2, call("a", "f", "{\"x\":1}")),
        done(3, call("b", "g", "{}")),
        completed(),
    ]);
    assert_eq!(calls(&chunks), [asked("a", "f", "{\"x\":1}"), asked("b", "g", "{}")]);
    assert_eq!(finish(&chunks).0, FinishKind::ToolCalls);
}

#[test]
fn arguments_are_told_once_wherever_they_stand() {
    let begun = || added(1, call("a", "f", ""));
    let all = json!({"type": "response.function_call_arguments.done", "output_index": 1, "arguments": "{}"});
    for events in [
        vec![begun(), all.clone(), done(1, call("a", "f", "{}")), completed()],
        vec![begun(), all, completed()],
        vec![begun(), done(1, call("a", "f", "{}")), completed()],
        vec![done(1, call("a", "f", "{}")), completed()],
        vec![
            added(1, json!({"type": "function_call", "call_id": "a"})),
            delta("function_call_arguments", 1, "{}"),
            done(1, call("a", "f", "{}")),
            completed(),
        ],
        vec![
            begun(),
            json!({"type": "response.completed", "response": {"output": [call("a", "f", "{}")]}}),
        ],
    ] {
        assert_eq!(calls(&decode(&events)), [asked("a", "f", "{}")], "{events:?}");
    }
    let none = decode(&[begun(), done(1, call("a", "f", "")), completed()]);
    assert_eq!(calls(&none), [asked("a", "f", "")]);
}

#[test]
fn calls_that_share_a_place_are_told_apart() {
    let chunks = decode(&[
        added(0, call("a", "f", "")),
        arguments_done(0, "{}"),
        added(0, call("b", "f", "")),
        delta("function_call_arguments", 0, "{\"x\":1}"),
        arguments_done(0, "{ \"x\": 1 }"),
        completed(),
    ]);
    assert_eq!(calls(&chunks), [asked("a", "f", "{}"), asked("b", "f", "{\"x\":1}")]);
    let nameless = [added(0, json!({"type": "function_call", "call_id": "a"})), completed()];
    assert_eq!(error(&nameless).kind, Kind::Protocol);
    let unnamed = decode(&[
        done(0, json!({"type": "function_call", "name": "f", "arguments": "{}"})),
        completed(),
    ]);
    assert!(calls(&unnamed)[0].0.starts_with("call_"));
}

#[test]
fn the_provider_s_own_items_are_none_of_ours() {
    let chunks = decode(&[
        added(0, json!({"type": "web_search_call", "id": "ws"})),
        json!({"type": "response.web_search_call.searching", "output_index": 0}),
        added(
            1,
            json!({"type": "mcp_call", "id": "mcp", "name": "f", "arguments": ""}),
        ),
        delta("mcp_call_arguments", 1, "{}"),
        json!({"type": "response.mcp_call.failed", "output_index": 1, "error": "gone"}),
        done(
            1,
            json!({"type": "mcp_call", "id": "mcp", "name": "f", "arguments": "{}", "error": {"code": 1}}),
        ),
        done(
            2,
            json!({"type": "tool_search_call", "call_id": "c", "arguments": {"queries": []}}),
        ),
        json!({"type": "response.code_interpreter_call_code.delta", "delta": {"odd": 1}}),
        json!({"type": "keepalive", "error": null}),
        delta("output_text", 3, "Hi"),
        completed(),
    ]);
    assert_eq!((text(&chunks).as_str(), finish(&chunks).0), ("Hi", FinishKind::Stop));
    assert!(calls(&chunks).is_empty());
}

#[test]
fn free_text_is_never_a_call_s_arguments() {
    for input in ["ls -l", "{}", "", "null", "{\"path\":\"/\"}"] {
        let item = json!({"type": "custom_tool_call", "id": "c", "call_id": "a", "name": "shell", "input": input});
        let chunks = decode(&[
            added(
                0,
                json!({"type": "custom_tool_call", "id": "c", "call_id": "a", "name": "shell", "input": ""}),
            ),
            delta("custom_tool_call_input", 0, input),
            done(0, item),
            completed(),
        ]);
        let mut round = Round::default();
        chunks.iter().for_each(|chunk| assert!(round.push(chunk)));
        let (asked, _) = round.complete();
        assert!(asked.len() == 1 && !asked[0].parsed, "{input}");
    }
}

#[test]
fn an_empty_line_stands_between_parts_of_thinking() {
    let part = |index: u64, delta: &str| json!({"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": index, "delta": delta});
    let whole = json!({"type": "reasoning", "summary": [{"text": "One two"}, {"text": "three"}]});
    let chunks = decode(&[
        part(0, "One"),
        part(0, " two"),
        json!({"type": "response.reasoning_summary_text.done", "output_index": 0, "summary_index": 0, "text": "One two"}),
        part(1, "three"),
        done(0, whole),
        delta("reasoning_text", 1, "four"),
        done(
            2,
            json!({"type": "reasoning", "summary": [{"text": "five"}], "content": [{"text": "six"}]}),
        ),
        completed(),
    ]);
    assert_eq!(thinking(&chunks), "One two\n\nthree\n\nfour\n\nfive\n\nsix");
}

fn thought(id: &str) -> Value {
    json!({"type": "reasoning", "id": id, "summary": [], "encrypted_content": format!("gAAA{id}"), "status": null})
}

#[test]
fn reasoning_is_handed_back_in_front_of_what_it_led_to() {
    let chunks = decode(&[
        done(0, thought("rs_1")),
        delta("output_text", 1, "Mom"),
        delta("output_text", 1, "ent"),
        done(
            1,
            json!({"type": "message", "phase": "commentary", "content": [{"type": "output_text", "text": "Moment"}]}),
        ),
        done(2, thought("rs_2")),
        done(3, call("a", "f", "{}")),
        done(4, call("b", "f", "{}")),
        done(5, thought("rs_lost")),
        done(6, json!({"type": "web_search_call"})),
        completed(),
    ]);
    let mut round = Round::default();
    chunks.iter().for_each(|chunk| assert!(round.push(chunk)));
    let (asked, carry) = round.complete();
    let answer = Message::assistant(words(&chunks), asked.into_iter().map(|asked| asked.call).collect());
    let request = ChatRequest {
        model: "m".into(),
        instructions: None,
        messages: vec![answer.carrying(carry)],
        tools: vec![],
        tool_choice: ToolChoice::Auto,
        settings: Settings::default(),
        response_format: ResponseFormat::Text,
        trace: None,
        again: Again::default(),
    };
    let input = |provider: &str| -> Value {
        let body = Responses::of(provider).encode(&request).unwrap().body;
        serde_json::from_slice::<Value>(&body).unwrap()["input"].clone()
    };
    let reasoning =
        |id: &str| json!({"type": "reasoning", "id": id, "summary": [], "encrypted_content": format!("gAAA{id}")});
    let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
    let said = json!([{"type": "output_text", "text": "Moment"}]);
    assert_eq!(
        input("here"),
        json!([
            reasoning("rs_1"),
            {"type": "message", "role": "assistant", "content": said, "phase": "commentary"},
            reasoning("rs_2"),
            call("a"),
            call("b"),
        ])
    );
    assert_eq!(
        input("elsewhere"),
        json!([{"type": "message", "role": "assistant", "content": said}, call("a"), call("b")])
    );
}

#[test]
fn reasoning_that_nobody_kept_is_not_handed_back() {
    let empty = json!({"type": "reasoning", "id": "rs_1", "summary": [{"text": "Hm."}], "content": [], "encrypted_content": null});
    let chunks = decode(&[done(0, empty), delta("output_text", 1, "Hi"), completed()]);
    assert_eq!(thinking(&chunks), "Hm.");
    assert!(!chunks.iter().any(|chunk| matches!(chunk, Chunk::Carry(_))));
}

#[test]
fn errors_inside_a_stream_have_their_kinds() {
    for (event, kind) in [
        (
            json!({"type": "error", "code": "server_error", "message": "m", "param": null}),
            Kind::Server,
        ),
        (json!({"type": "error", "code": null, "message": "m"}), Kind::Reported),
        (
            json!({"type": "error", "error": {"type": "tokens", "code": "rate_limit_exceeded"}}),
            Kind::RateLimited,
        ),
        (json!({"error": {"code": "429"}}), Kind::RateLimited),
        (
            json!({"type": "error", "error": {"code": "server_is_overloaded"}}),
            Kind::Overloaded,
        ),
        (json!({"type": "error", "code": "insufficient_quota"}), Kind::Quota),
        (
            json!({"type": "error", "error": {"type": "invalid_request_error", "code": null}}),
            Kind::Rejected,
        ),
        (
            json!({"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error", "message": "m"}}}),
            Kind::Server,
        ),
        (
            json!({"type": "response.failed", "response": {"error": {"code": "context_length_exceeded"}}}),
            Kind::ContextTooLong,
        ),
        (
            json!({"type": "response.failed", "response": {"error": null}}),
            Kind::Reported,
        ),
        (json!({"type": "response.failed"}), Kind::Reported),
    ] {
        let failed = json!({"type": "response.failed", "response": {"status": "failed", "error": {"code": "x"}}});
        let (chunks, end) = told(&[hi(), event.clone(), failed]);
        assert_eq!(
            (chunks, end.unwrap_err().kind),
            (vec![Chunk::Text("Hi".into())], kind),
            "{event}"
        );
    }
    let slow = json!({"type": "error", "code": "rate_limit_exceeded", "message": "Please try again in 2s."});
    assert_eq!(error(&[slow]).retry_after, Some(std::time::Duration::from_secs(2)));
}

#[test]
fn the_last_event_s_items_are_told_if_no_event_told_them() {
    let message = json!({"type": "message", "content": [{"type": "output_text", "text": "Hi"}]});
    let end =
        |output: Value| json!({"type": "response.completed", "response": {"status": "completed", "output": output}});
    let alone = decode(&[end(json!([thought("rs"), message, call("a", "f", "{}")]))]);
    assert_eq!(text(&alone), "Hi");
    assert_eq!(calls(&alone), [asked("a", "f", "{}")]);
    assert!(alone.iter().any(|chunk| matches!(chunk, Chunk::Carry(_))));
    // Told before, and at another place now.
    let again = decode(&[
        done(0, thought("rs")),
        delta("output_text", 1, "Hi"),
        done(2, call("a", "f", "{}")),
        end(json!([message, call("another id", "f", "{}")])),
    ]);
    assert_eq!((text(&again).as_str(), calls(&again).len()), ("Hi", 1));
}

#[test]
fn what_is_not_an_event_breaks_the_answer() {
    for wrong in [
        "{",
        "nonsense",
        r#"{"type":"response.output_text.delta","delta":"\ud83d"}"#,
        r#"{"type":7}"#,
    ] {
        let mut decoding = Decoding::new(&Responses::of("here"), 1 << 20);
        let end = decoding.push(format!("data: {wrong}\n\n").as_bytes(), &mut Vec::new());
        assert_eq!(end.unwrap_err().kind, Kind::Protocol, "{wrong}");
    }
    // The type may stand in the frame alone.
    let mut decoding = Decoding::new(&Responses::of("here"), 1 << 20);
    let mut out = Vec::new();
    let untyped =
        b"event: response.output_text.delta\ndata: {\"delta\":\"Hi\"}\n\nevent: response.completed\ndata: {}\n\n";
    decoding.push(untyped, &mut out).unwrap();
    assert_eq!((text(&out).as_str(), finish(&out).0), ("Hi", FinishKind::Stop));
}

#[test]
fn numbers_are_the_provider_s_or_unknown() {
    let usage = |usage: Value| {
        let end = json!({"type": "response.completed", "response": {"usage": usage, "output": []}});
        finish(&decode(&[end])).1
    };
    let told = json!({
        "input_tokens": 100, "input_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30},
        "output_tokens": 20, "output_tokens_details": {"reasoning_tokens": 0},
    });
    let known = usage(told.clone());
    assert_eq!((known.input_tokens, known.output_tokens), (Some(100), Some(20)));
    assert_eq!((known.cached_input_tokens, known.reasoning_tokens), (Some(60), Some(0)));
    assert_eq!(known.raw, Some(told));
    assert_eq!(usage(json!(null)), Usage::default());
    assert_eq!(
        usage(json!({"input_tokens": -4, "output_tokens": 1_u64 << 53})),
        Usage::default()
    );
}

#[test]
fn an_answer_may_come_whole() {
    let whole = |body: Value| Responses::of("here").whole(body.to_string().as_bytes(), &mut Deviations::default());
    let message = json!({"type": "message", "content": [{"type": "output_text", "text": "Hi"}]});
    let chunks = whole(json!({
        "object": "response", "status": "completed", "error": null, "output": [thought("rs"), message],
        "usage": {"input_tokens": 1, "output_tokens": 2},
    }))
    .unwrap();
    assert_eq!(text(&chunks), "Hi");
    assert_eq!(finish(&chunks).1.output_tokens, Some(2));
    assert!(chunks.iter().any(|chunk| matches!(chunk, Chunk::Carry(_))));
    for (body, kind) in [
        (json!({"error": {"code": "server_error"}}), Kind::Server),
        (
            json!({"type": "error", "code": "rate_limit_exceeded"}),
            Kind::RateLimited,
        ),
        (
            json!({"status": "failed", "error": {"code": "server_error"}}),
            Kind::Server,
        ),
        (json!({"status": "in_progress", "output": []}), Kind::Protocol),
        (json!({"output": [message]}), Kind::Protocol),
        (json!([]), Kind::Protocol),
    ] {
        assert_eq!(whole(body.clone()).unwrap_err().kind, kind, "{body}");
    }
}

#[test]
fn what_is_handed_back_is_kept_up_to_a_limit() {
    let item =
        |id: &str| json!({"type": "reasoning", "id": id, "summary": [], "encrypted_content": "x".repeat(900 << 10)});
    let events: Vec<_> = (0..20).map(|at| done(at, item(&format!("rs_{at}")))).collect();
    assert_eq!(error(&events).kind, Kind::Limit);
    assert_ne!(error(&events[..9]).kind, Kind::Limit);
}

#[test]
fn a_call_is_made_only_if_it_was_completed_and_the_round_ended_well() {
    let with_status = |status: &str| {
        let mut item = call("a", "f", "{\"x\":1}");
        item["status"] = status.into();
        item
    };
    let begun = || added(0, call("a", "f", ""));
    let piece = || delta("function_call_arguments", 0, "{\"x\":1}");
    let last = |item: Value| json!({"type": "response.completed", "response": {"output": [item]}});
    for complete in [
        vec![begun(), piece(), arguments_done(0, "{\"x\":1}"), completed()],
        vec![begun(), piece(), done(0, with_status("completed")), completed()],
        vec![begun(), piece(), last(with_status("completed"))],
        vec![
            begun(),
            delta("function_call_arguments", 0, "{\"x\""),
            arguments_done(0, "{\"x\":1}"),
            completed(),
        ],
    ] {
        assert_eq!(
            calls(&decode(&complete)),
            [asked("a", "f", "{\"x\":1}")],
            "{complete:?}"
        );
    }
    for cut in [
        vec![begun(), piece(), completed()],
        vec![begun(), completed()],
        vec![begun(), piece(), done(0, with_status("incomplete")), completed()],
        vec![begun(), piece(), done(0, with_status("in_progress")), completed()],
        vec![
            begun(),
            piece(),
            arguments_done(0, "{\"x\":1}"),
            done(0, with_status("incomplete")),
            completed(),
        ],
        vec![begun(), piece(), last(with_status("incomplete"))],
        vec![last(with_status("incomplete"))],
        vec![begun(), piece(), arguments_done(0, "{\"x\":2}"), completed()],
        vec![
            added(0, json!({"type": "custom_tool_call", "call_id": "a", "name": "f"})),
            completed(),
        ],
    ] {
        assert_eq!(error(&cut).kind, Kind::Truncated, "{cut:?}");
    }
}

#[test]
fn a_second_response_breaks_the_answer_once_it_has_content() {
    let created = |id: Value| json!({"type": "response.created", "response": {"id": id, "status": "in_progress"}});
    let (one, other, none) = (created("r1".into()), created("r2".into()), created(Value::Null));
    let item = added(0, call("a", "f", ""));
    for content in [hi(), item] {
        for (first, second) in [(&one, &other), (&one, &none), (&none, &none)] {
            let broken = error(&[first.clone(), content.clone(), second.clone(), content.clone()]);
            assert_eq!(broken.kind, Kind::Protocol, "{first} {second}");
        }
    }
    for again in [one.clone(), other, none] {
        assert_eq!(text(&decode(&[one.clone(), again, hi(), completed()])), "Hi");
    }
    assert_eq!(text(&decode(&[one.clone(), hi(), one, completed()])), "Hi");
}

#[test]
fn odd_fields_cost_no_words_and_no_call() {
    let chunks = decode(&[
        json!({"type": "response.output_text.delta", "output_index": "0", "delta": {"text": "H"}}),
        json!({"type": "response.output_text.delta", "output_index": 0.0, "item_id": 7, "delta": ["i", null]}),
        json!({"type": "response.output_text.delta", "output_index": 0, "delta": {}}),
        json!({"type": "response.function_call_arguments.delta", "output_index": 1, "delta": {}}),
        added(
            2,
            json!({"type": "function_call", "call_id": 7, "name": "f", "arguments": null}),
        ),
        json!({"type": "response.function_call_arguments.delta", "output_index": 2, "delta": {"x": 1}}),
        json!({"type": "response.function_call_arguments.delta", "output_index": 2, "delta": "{\"x\": 1}"}),
        done(
            2,
            json!({"type": "function_call", "call_id": 7, "name": "f", "arguments": {"x": 1}}),
        ),
        json!({"type": "response.completed", "response": {"status": "COMPLETED", "output": [null],
            "usage": {"input_tokens": "3", "output_tokens": 9.0, "total_tokens": 106,
                "output_tokens_details": {"reasoning_tokens": 94}}}}),
    ]);
    assert_eq!(text(&chunks), "Hi");
    assert_eq!(calls(&chunks), [asked("7", "f", "{\"x\":1}")]);
    let (kind, usage) = finish(&chunks);
    assert_eq!(
        (kind, usage.input_tokens, usage.output_tokens),
        (FinishKind::ToolCalls, Some(3), Some(103))
    );
    let message = json!({"type": "message", "content": "Hi"});
    assert_eq!(text(&decode(&[done(0, message), completed()])), "Hi");
    let cut = json!({"type": "response.incomplete",
        "response": {"status": "incomplete", "incomplete_details": [{"reason": "max_completion_tokens"}]}});
    assert_eq!(finish(&decode(&[hi(), cut])).0, FinishKind::Length);
}

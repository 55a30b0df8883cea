//! Agents with tools: rounds in every dialect, calls that go wrong, limits, choices, and whatever may come in the middle.

mod calls_that_go_wrong;
mod choosing;
mod facts;
mod in_every_dialect;
mod key_order;
mod rounds_without_end;
mod stopping;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::house::gateway::Recipe;
use super::house::*;

/// With the tool `weather {city}`, which asks `tools` for `/weather/{city}`.
fn with_weather(recipe: Recipe, tools: &Upstream) -> Recipe {
    let addr = tools.addr();
    recipe.toml(&format!(
        r#"
[tools.guard]
allow = ["127.0.0.0/8"]
[tools.http.weather]
description = "How the weather is in a city"
parameters = '{{"type": "object", "required": ["city"], "additionalProperties": false, "properties": {{"city": {{"type": "string"}}}}}}'
url = "http://{addr}/weather/{{city}}"
[agents.assistant]
tools = ["weather"]
"#
    ))
}

/// A gateway whose agent asks OpenAI at `model`, and the weather at `tools`.
fn gateway(model: &Upstream, tools: &Upstream) -> Recipe {
    with_weather(Gateway::with(model).toml("[providers.openai]\nmax_retries = 0"), tools)
}

/// The weather: of Rome nothing is known.
async fn weather() -> Upstream {
    Upstream::answering(|request| report(&request.path)).await
}

fn report(path: &str) -> Script {
    let city = path.rsplit('/').next().unwrap_or_default();
    let plain = [("content-type", "text/plain")];
    match city {
        "Rome" => Script::status(500, &plain, "no such station"),
        city => Script::status(200, &plain, format!("21 degrees in {city}")),
    }
}

/// A call of `weather`.
fn ask<'a>(id: &'a str, city: &str) -> Ask<'a> {
    (id, "weather", json!({ "city": city }))
}

/// A round of OpenAI's that asks for these.
fn asks(asks: &[Ask<'_>]) -> Script {
    Dialect::OpenAi.round(&[], asks)
}

/// A round of OpenAI's that says this.
fn says(text: &str) -> Script {
    Dialect::OpenAi.round(&[text], &[])
}

/// A question in the session `s`.
fn question(text: &str) -> Value {
    json!({"message": text, "session_id": "s"})
}

async fn answer(place: &impl Place, question: Value) -> Value {
    post(place, "/chat", question).await.expect(200).await.json().await
}

async fn events(place: &impl Place, question: Value) -> Transcript {
    let answer = post(place, "/chat/sse", question).await;
    answer.expect(200).await.transcript().await
}

/// `GET /sessions/s/messages`; none where there is no such session.
async fn history(place: &impl Place) -> Vec<Value> {
    let answer = get(place, "/sessions/s/messages").await;
    match answer.status {
        404 => Vec::new(),
        _ => list(&answer.expect(200).await.json().await["messages"]),
    }
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}")).clone()
}

fn text<'a>(object: &'a Value, member: &str) -> &'a str {
    object[member]
        .as_str()
        .unwrap_or_else(|| panic!("no {member} in {object}"))
}

/// These members of each.
fn each(all: &[Value], members: &[&str]) -> Vec<Value> {
    let row = |one: &Value| members.iter().map(|member| one[*member].clone()).collect();
    all.iter().map(row).collect()
}

/// Whether every call among these messages has its result right behind it, in order, and every result its call. It holds
/// of messages as clients see them, and of those in OpenAI's requests.
fn assert_well_formed(messages: &[Value]) {
    let mut due: Vec<String> = Vec::new();
    for message in messages {
        if message["role"] == "tool" {
            assert!(!due.is_empty(), "a result without a call: {message} in {messages:?}");
            assert_eq!(message["tool_call_id"], due.remove(0), "{messages:?}");
            continue;
        }
        assert!(due.is_empty(), "{due:?} have no results in {messages:?}");
        let calls = message["tool_calls"].as_array().into_iter().flatten();
        due = calls.map(|call| text(call, "id").to_owned()).collect();
    }
    assert!(due.is_empty(), "{due:?} have no results in {messages:?}");
}

#[tokio::test]
async fn a_call_is_told_and_made_only_when_its_round_is_complete() {
    let (gate, tools) = (Gate::new("the arguments are there"), weather().await);
    let asked = openai::tool_delta(0, "c1", "weather", r#"{"city":"Oslo"}"#);
    let script = Script::sse().role().send(asked).say("One moment.").wait(&gate);
    let model = Upstream::start([script.finish("tool_calls").done().end(), says("Sunny.")]).await;
    let gateway = gateway(&model, &tools).start().await;

    let mut reply = post(&gateway, "/chat/sse", question("Weather?")).await;
    let token = reply.next_event_named("token").await; // what came before it has been read
    let run = get(&gateway, &format!("/runs/{}", token.run_id)).await.json().await;
    assert_eq!((&run["last_seq"], tools.calls()), (&json!(token.seq), 0));
    gate.open();
    let transcript = reply.transcript().await;
    let expected = ["start", "token", "tool_call", "tool_result", "token", "done"];
    assert_eq!((transcript.kinds(), tools.calls()), (expected.to_vec(), 1));
}

#[tokio::test]
async fn parallel_calls_run_side_by_side_and_are_remembered_in_their_order() {
    let (slow, quick) = (Gate::new("Oslo"), Gate::new("Paris"));
    let gates = [slow.clone(), quick.clone()];
    let tools = Upstream::answering(move |request| {
        let gate = &gates[usize::from(request.path.ends_with("Paris"))];
        Script::raw()
            .wait(gate)
            .bytes("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
            .bytes("21")
    })
    .await;
    let model = Upstream::start([asks(&[ask("c1", "Oslo"), ask("c2", "Paris")]), says("Sunny.")]).await;
    let gateway = gateway(&model, &tools).start().await;

    let mut reply = post(&gateway, "/chat/sse", question("Weather?")).await;
    slow.reached().await;
    quick.reached().await; // both are asked, and neither is answered
    quick.open();
    let first = reply.next_event_named("tool_result").await.json();
    slow.open();
    let second = reply.next_event_named("tool_result").await.json();
    let arrived = [&first["tool_result"]["id"], &second["tool_result"]["id"]];
    assert_eq!(arrived, ["c2", "c1"]);
    let response = reply.transcript().await.done()["response"].clone();
    assert_eq!(
        each(&list(&response["tool_calls"]), &["id"]),
        [json!(["c1"]), json!(["c2"])]
    );
    assert_well_formed(&history(&gateway).await);
    assert_well_formed(&Dialect::OpenAi.conversation(&model.requests()[1].json));
}

#[tokio::test]
async fn a_long_history_loses_whole_turns_calls_and_all() {
    let long = "x".repeat(8 << 10);
    let tools = Upstream::always(Script::status(200, &[("content-type", "text/plain")], long)).await;
    let rounds = [
        asks(&[ask("c1", "Oslo"), ask("c2", "Paris")]),
        says("Sunny."),
        says("Yes."),
        says("Yes."),
    ];
    let model = Upstream::start(rounds).await;
    let recipe = gateway(&model, &tools).toml("[sessions]\nmax_history_tokens = 1000");
    let gateway = recipe.start().await;
    answer(&gateway, question("Weather?")).await;
    let transcript = events(&gateway, question("And?")).await;
    assert_ne!(
        transcript.done()["metadata"]["history_truncated"],
        true,
        "the last turn is sent whatever its size"
    );
    assert_well_formed(&Dialect::OpenAi.conversation(&model.requests()[2].json));
    let transcript = events(&gateway, question("Again?")).await;
    assert_eq!(transcript.done()["metadata"]["history_truncated"], true);
    let conversation = Dialect::OpenAi.conversation(&model.requests()[3].json);
    let sent: Vec<_> = conversation.iter().map(|message| text(message, "content")).collect();
    assert_eq!(sent, ["And?", "Yes.", "Again?"]);
    let stored = history(&gateway).await;
    assert_eq!(stored.len(), 9, "what is not sent is still kept");
    assert_well_formed(&stored);
}

#[tokio::test]
async fn a_stream_that_comes_back_among_the_calls_misses_nothing_and_calls_nothing_again() {
    let gate = Gate::new("the weather");
    let held = gate.clone();
    let tools = Upstream::answering(move |request| {
        let script = Script::raw().wait(&held);
        let length = request.path.len();
        script.bytes(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}",
            request.path
        ))
    })
    .await;
    let model = Upstream::start([asks(&[ask("c1", "Oslo"), ask("c2", "Paris")]), says("Sunny.")]).await;
    let gateway = gateway(&model, &tools).start().await;
    let mut reply = post(&gateway, "/chat/sse", question("Weather?")).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(reply.next_event().await); // start, and both calls
    }
    gate.reached_by(2).await;
    reply.hang_up();
    let again = |id: &str| Call::get("/chat/sse?message=Weather%3F").header("Last-Event-ID", id);
    let mut followers = Vec::new();
    for event in &seen {
        followers.push(again(&event.id).to(&gateway).await.expect(200).await);
    }
    gate.open();
    let whole = [
        "start",
        "tool_call",
        "tool_call",
        "tool_result",
        "tool_result",
        "token",
        "done",
    ];
    let mut after = Vec::new();
    for (at, follower) in followers.into_iter().enumerate() {
        let rest = follower.transcript().await;
        assert_eq!(rest.kinds(), whole[at + 1..]);
        after = rest.events;
    }
    // And once more, from between the results.
    let rest = again(&after[0].id)
        .to(&gateway)
        .await
        .expect(200)
        .await
        .transcript()
        .await;
    assert_eq!(rest.kinds(), whole[4..]);
    assert_eq!((model.calls(), tools.calls()), (2, 2));
}

#[tokio::test]
async fn a_key_that_comes_again_calls_nothing_again() {
    let tools = weather().await;
    let model = Upstream::start([asks(&[ask("c1", "Oslo")]), says("Sunny.")]).await;
    let gateway = gateway(&model, &tools).start().await;
    let call = |door: &str| {
        Call::post(door)
            .json(&question("Weather?"))
            .header("Idempotency-Key", "k")
    };
    let first = call("/chat/sse")
        .to(&gateway)
        .await
        .expect(200)
        .await
        .transcript()
        .await;
    let second = call("/chat/sse")
        .to(&gateway)
        .await
        .expect(200)
        .await
        .transcript()
        .await;
    let data = |transcript: &Transcript| {
        transcript
            .events
            .iter()
            .map(|event| event.data.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(data(&first), data(&second));
    let whole = call("/chat").to(&gateway).await.expect(200).await.json().await;
    assert_eq!(whole, first.done()["response"]);
    assert_eq!((model.calls(), tools.calls()), (2, 1));
}

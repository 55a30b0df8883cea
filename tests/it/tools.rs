//! Agents with tools: rounds in every dialect, calls that go wrong, limits, choices, and whatever may come in the middle.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::house::gateway::Recipe;
use super::house::*;

/// What is promised from a cancel, or a client's leaving, to the close of a tool's connection.
const PROMPT: Duration = Duration::from_millis(250);

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

mod in_every_dialect {
    use super::*;

    /// The conversation as a provider is told it: the first question, each round of calls with its results, the answer,
    /// the second question. `results` are those of the calls c1, c2 and c3, of which c2 failed.
    fn told(dialect: Dialect, results: &[String; 3]) -> [Vec<Value>; 5] {
        let [r1, r2, r3] = results;
        let said = |role: &str, text: &str| vec![json!({"role": role, "content": text})];
        let city = |city: &str| json!({ "city": city });
        match dialect {
            Dialect::OpenAi | Dialect::Azure | Dialect::Groq => {
                let call = |id: &str, at: &str| {
                    let function = json!({"name": "weather", "arguments": city(at).to_string()});
                    json!({"id": id, "type": "function", "function": function})
                };
                let result = |id: &str, text: &str| json!({"role": "tool", "tool_call_id": id, "content": text});
                let calls = [call("c1", "Oslo"), call("c2", "Rome")];
                [
                    said("user", "Weather?"),
                    vec![
                        json!({"role": "assistant", "content": "Let me see. ", "tool_calls": calls}),
                        result("c1", r1),
                        result("c2", r2),
                    ],
                    vec![
                        json!({"role": "assistant", "content": null, "tool_calls": [call("c3", "Paris")]}),
                        result("c3", r3),
                    ],
                    said("assistant", "Sunny."),
                    said("user", "And now?"),
                ]
            }
            Dialect::Responses => {
                let sealed = |id: &str| {
                    let (own, sealed) = (format!("rs_{id}"), format!("sealed {id}"));
                    json!({"id": own, "type": "reasoning", "summary": [], "encrypted_content": sealed})
                };
                let call = |id: &str, at: &str| {
                    let arguments = city(at).to_string();
                    json!({"type": "function_call", "call_id": id, "name": "weather", "arguments": arguments})
                };
                let result =
                    |id: &str, text: &str| json!({"type": "function_call_output", "call_id": id, "output": text});
                let words =
                    |text: &str| json!({"role": "assistant", "content": [{"type": "output_text", "text": text}]});
                [
                    said("user", "Weather?"),
                    vec![
                        sealed("c1"),
                        words("Let me see. "),
                        call("c1", "Oslo"),
                        call("c2", "Rome"),
                        result("c1", r1),
                        result("c2", r2),
                    ],
                    vec![sealed("c3"), call("c3", "Paris"), result("c3", r3)],
                    vec![words("Sunny.")],
                    said("user", "And now?"),
                ]
            }
            Dialect::Anthropic => {
                let signed =
                    |id: &str| json!({"type": "thinking", "thinking": "Hm…", "signature": format!("signed {id}")});
                let call =
                    |id: &str, at: &str| json!({"type": "tool_use", "id": id, "name": "weather", "input": city(at)});
                let result = |id: &str, text: &str| json!({"type": "tool_result", "tool_use_id": id, "content": text});
                let mut failed = result("c2", r2);
                failed["is_error"] = json!(true);
                let words = json!({"type": "text", "text": "Let me see. "});
                let first = [signed("c1"), words, call("c1", "Oslo"), call("c2", "Rome")];
                [
                    said("user", "Weather?"),
                    vec![
                        json!({"role": "assistant", "content": first}),
                        json!({"role": "user", "content": [result("c1", r1), failed]}),
                    ],
                    vec![
                        json!({"role": "assistant", "content": [signed("c3"), call("c3", "Paris")]}),
                        json!({"role": "user", "content": [result("c3", r3)]}),
                    ],
                    said("assistant", "Sunny."),
                    said("user", "And now?"),
                ]
            }
            Dialect::Gemini => {
                let words = |role: &str, text: &str| vec![json!({"role": role, "parts": [{ "text": text }]})];
                let call =
                    |id: &str, at: &str| json!({"functionCall": {"id": id, "name": "weather", "args": city(at)}});
                let signed = |id: &str, at: &str| {
                    let mut part = call(id, at);
                    part["thoughtSignature"] = format!("signed {id}").into();
                    part
                };
                let result = |id: &str, text: &str| {
                    let response = json!({ "result": text });
                    json!({"functionResponse": {"id": id, "name": "weather", "response": response}})
                };
                let first = [
                    json!({"text": "Let me see. "}),
                    signed("c1", "Oslo"),
                    call("c2", "Rome"),
                ];
                [
                    words("user", "Weather?"),
                    vec![
                        json!({"role": "model", "parts": first}),
                        json!({"role": "user", "parts": [result("c1", r1), result("c2", r2)]}),
                    ],
                    vec![
                        json!({"role": "model", "parts": [signed("c3", "Paris")]}),
                        json!({"role": "user", "parts": [result("c3", r3)]}),
                    ],
                    words("model", "Sunny."),
                    words("user", "And now?"),
                ]
            }
            Dialect::Ollama => {
                let call = |id: &str, at: &str| {
                    let function = json!({"name": "weather", "arguments": city(at)});
                    json!({"id": id, "function": function})
                };
                let asked = |text: &str, calls: Vec<Value>| json!({"role": "assistant", "content": text, "thinking": "Hm…", "tool_calls": calls});
                let result = |id: &str, text: &str| json!({"role": "tool", "content": text, "tool_call_id": id, "tool_name": "weather"});
                [
                    said("user", "Weather?"),
                    vec![
                        asked("Let me see. ", vec![call("c1", "Oslo"), call("c2", "Rome")]),
                        result("c1", r1),
                        result("c2", r2),
                    ],
                    vec![asked("", vec![call("c3", "Paris")]), result("c3", r3)],
                    said("assistant", "Sunny."),
                    said("user", "And now?"),
                ]
            }
        }
    }

    /// What the model says to its four questions: two rounds of calls, an answer, and another in the next turn.
    fn rounds(dialect: Dialect) -> [Script; 4] {
        [
            dialect.round(&["Let me", " see. "], &[ask("c1", "Oslo"), ask("c2", "Rome")]),
            dialect.round(&[], &[ask("c3", "Paris")]),
            dialect.round(&["Sun", "ny."], &[]),
            dialect.round(&["Still."], &[]),
        ]
    }

    /// Asks through a door, and gives the answer as `/chat` would.
    async fn through(door: &str, gateway: &Gateway, question: Value) -> Value {
        let reply = post(gateway, door, question).await.expect(200).await;
        match door {
            "/chat" => reply.json().await,
            "/chat/stream" => {
                let run = reply.header("x-run-id").to_owned();
                let body = reply.body().await;
                assert_eq!((body.text(), &body.ending), ("Let me see. Sunny.", &Ending::Complete));
                let run = get(gateway, &format!("/runs/{run}")).await.json().await;
                assert_eq!((&run["status"], &run["error"]), (&json!("completed"), &Value::Null));
                run["response"].clone()
            }
            _ => {
                let transcript = reply.transcript().await;
                assert_events(&transcript);
                transcript.done()["response"].clone()
            }
        }
    }

    fn assert_events(transcript: &Transcript) {
        let mut expected = vec![
            "start",
            "token",
            "token",
            "tool_call",
            "tool_call",
            "tool_result",
            "tool_result",
        ];
        expected.extend(["tool_call", "tool_result", "token", "token", "done"]);
        assert_eq!(transcript.kinds(), expected);
        assert_eq!(transcript.text(), "Let me see. Sunny.");
        let chunks = |name: &str| {
            let of_it = transcript.events.iter().filter(|event| event.event == name);
            of_it.map(Event::json).collect::<Vec<_>>()
        };
        let calls = each(&chunks("tool_call"), &["tool_call", "finish_reason"]);
        let call = |id: &str, city: &str, round: u32| json!({"id": id, "name": "weather", "arguments": {"city": city}, "round": round});
        let expected = [
            json!([call("c1", "Oslo", 1), null]),
            json!([call("c2", "Rome", 1), "tool_calls"]),
            json!([call("c3", "Paris", 2), "tool_calls"]),
        ];
        assert_eq!(calls, expected);
        // Results come as they are there: the first two in any order.
        let results = chunks("tool_result");
        let response = transcript.done()["response"].clone();
        for call in list(&response["tool_calls"]) {
            let result = results.iter().find(|result| result["tool_result"]["id"] == call["id"]);
            let expected = json!({"id": call["id"], "name": "weather", "ok": call["ok"], "content": call["result"],
                "truncated": false, "duration_ms": call["duration_ms"], "round": call["round"]});
            assert_eq!(result.map(|result| &result["tool_result"]), Some(&expected));
        }
        let done = transcript.done();
        assert_eq!(done["finish_reason"], "stop");
        assert_eq!(done["metadata"]["rounds"], 3);
        assert_eq!(done["metadata"]["usage"], response["usage"]);
    }

    /// Checks the answer of § 5, and gives the calls' results.
    fn assert_response(response: &Value) -> [String; 3] {
        assert_eq!(response["content"], "Let me see. Sunny.");
        assert_eq!(
            (&response["finish_reason"], &response["rounds"]),
            (&json!("stop"), &json!(3))
        );
        assert_eq!(response["model"], "model/test-model");
        let counted = each(
            &[response["usage"].clone()],
            &["input_tokens", "output_tokens", "estimated"],
        );
        assert_eq!(counted, [json!([30, 15, false])]);
        let calls = list(&response["tool_calls"]);
        let expected = [
            json!(["c1", "weather", {"city": "Oslo"}, 1, true]),
            json!(["c2", "weather", {"city": "Rome"}, 1, false]),
            json!(["c3", "weather", {"city": "Paris"}, 2, true]),
        ];
        assert_eq!(each(&calls, &["id", "name", "arguments", "round", "ok"]), expected);
        assert!(calls.iter().all(|call| call["duration_ms"].is_u64()), "{calls:?}");
        let results = [0, 1, 2].map(|at| text(&calls[at], "result").to_owned());
        assert!(results[0].contains("21 degrees in Oslo"), "{results:?}");
        assert!(results[1].contains("500"), "{results:?}");
        assert!(results[2].contains("21 degrees in Paris"), "{results:?}");

        let messages = list(&response["messages"]);
        let expected = [
            json!(["user", "Weather?"]),
            json!(["assistant", "Let me see. "]),
            json!(["tool", results[0]]),
            json!(["tool", results[1]]),
            json!(["assistant", ""]),
            json!(["tool", results[2]]),
            json!(["assistant", "Sunny."]),
        ];
        assert_eq!(each(&messages, &["role", "content"]), expected);
        assert_well_formed(&messages);
        results
    }

    #[tokio::test]
    async fn rounds_of_tools_are_told_in_full_through_every_door() {
        for dialect in Dialect::ALL {
            let tools = weather().await;
            let model = Upstream::answering(move |request| rounds(dialect)[request.number % 4].clone()).await;
            let gateway = with_weather(dialect.gateway(&model), &tools).start().await;
            let doors = ["/chat", "/chat/sse", "/chat/sse?format=json", "/chat/stream"];
            for (turn, door) in doors.into_iter().enumerate() {
                eprintln!("{dialect:?} through {door}");
                let session = format!("s{turn}");
                let first = json!({"message": "Weather?", "session_id": session});
                let response = through(door, &gateway, first).await;
                let results = assert_response(&response);
                let second = json!({"message": "And now?", "session_id": session});
                assert_eq!(answer(&gateway, second).await["content"], "Still.");

                let whole = told(dialect, &results);
                let requests = model.requests().split_off(turn * 4);
                for (request, known) in requests.iter().zip([1, 2, 3, 5]) {
                    assert_eq!(dialect.conversation(&request.json), whole[..known].concat());
                    assert_eq!(dialect.tools(&request.json), ["weather"]);
                }
                assert_eq!((requests.len(), tools.calls()), (4, (turn + 1) * 3));
                let stored = get(&gateway, &format!("/sessions/{session}/messages"))
                    .await
                    .json()
                    .await;
                let stored = list(&stored["messages"]);
                let members = ["role", "content", "tool_calls", "tool_call_id"];
                assert_eq!(
                    each(&stored[..7], &members),
                    each(&list(&response["messages"]), &members)
                );
            }
        }
    }

    /// What one provider is told of what another said: nothing that was for that one alone.
    fn foreign(mut told: Value) -> Value {
        match &mut told {
            Value::Object(members) => {
                members.retain(|name, _| name != "thinking" && name != "thoughtSignature");
                for name in ["functionCall", "functionResponse"] {
                    if let Some(Value::Object(inside)) = members.get_mut(name) {
                        inside.remove("id"); // Google's servers know only their own
                    }
                }
                members.values_mut().for_each(|value| *value = foreign(value.take()));
            }
            Value::Array(all) => {
                all.retain(|one| one["type"] != "thinking" && one["type"] != "reasoning");
                all.iter_mut().for_each(|one| *one = foreign(one.take()));
            }
            _ => {}
        }
        told
    }

    #[tokio::test]
    async fn a_session_with_calls_in_it_goes_on_with_any_other_provider() {
        let tools = weather().await;
        let mut models = Vec::new();
        for dialect in Dialect::ALL {
            let script = move |request: &Request| {
                let body = String::from_utf8_lossy(&request.body);
                let told = ["Oslo", "Paris", "And now?"]
                    .iter()
                    .rposition(|word| body.contains(word));
                rounds(dialect)[told.map_or(0, |at| at + 1)].clone()
            };
            models.push((dialect, Upstream::answering(script).await));
        }
        let mut recipe = with_weather(Gateway::with(&models[0].1), &tools);
        for (dialect, model) in &models {
            recipe = recipe.toml(&dialect.provider(dialect.kind(), model));
        }
        let gateway = recipe
            .toml("[agents.assistant]\nallowed_models = [\"*\"]")
            .start()
            .await;
        for (first, _) in &models {
            let by = |dialect: Dialect, text: &str| {
                let (session, model) = (first.kind(), format!("{}/test-model", dialect.kind()));
                json!({"message": text, "session_id": session, "model": model})
            };
            let response = answer(&gateway, by(*first, "Weather?")).await;
            let results = [0, 1, 2].map(|at| text(&response["tool_calls"][at], "result").to_owned());
            for (other, model) in models.iter().filter(|(other, _)| other != first) {
                assert_eq!(answer(&gateway, by(*other, "And now?")).await["content"], "Still.");
                let heard = other.conversation(&model.requests().pop().expect("a request").json);
                let expected = foreign(json!(told(*other, &results)[..4].concat()));
                assert_eq!(
                    json!(heard[..expected.as_array().map_or(0, Vec::len)]),
                    expected,
                    "{first:?}, {other:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_round_that_is_cut_anywhere_calls_nothing() {
        for dialect in Dialect::ALL {
            let tools = weather().await;
            let events = dialect.events(&["Let me see."], &[ask("c1", "Oslo"), ask("c2", "Paris")]);
            let complete = events
                .iter()
                .position(|event| dialect.completes(event))
                .expect("an end");
            let cuts: Vec<_> = (0..=complete)
                .map(|at| dialect.script(events[..at].to_vec()).cut())
                .collect();
            let model = Upstream::start(cuts).await;
            let recipe = with_weather(dialect.gateway(&model), &tools);
            let gateway = recipe
                .toml("[providers.model]\nmax_retries = 0\nbreaker = false")
                .start()
                .await;
            for at in 0..=complete {
                let broken = post(&gateway, "/chat", json!({"message": "Weather?"})).await;
                let code = broken.expect(502).await.problem().await;
                assert_eq!(code, "upstream_truncated", "{dialect:?} after {at} events");
            }
            assert_eq!((model.calls(), tools.calls()), (complete + 1, 0), "{dialect:?}");
        }
    }
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

mod calls_that_go_wrong {
    use super::*;

    /// A call as a model writes it: its id, the tool, and a text for arguments.
    type Raw = (&'static str, &'static str, &'static str);

    /// A round of OpenAI's with these calls.
    fn raw(calls: &[Raw]) -> Script {
        let script = Script::sse().role();
        let calls = calls.iter().enumerate();
        let script = calls.fold(script, |script, (index, (id, name, arguments))| {
            script.send(openai::tool_delta(index, *id, *name, arguments))
        });
        script.finish("tool_calls").usage(12, 34).done().end()
    }

    /// What comes of a round of calls.
    struct Row {
        what: &'static str,
        calls: Vec<Raw>,
        /// The ids of those that are told before they are answered.
        told: Vec<&'static str>,
        /// Which of them are made, and answered well.
        right: Vec<bool>,
    }

    /// A call that is told, and not made.
    fn refused(what: &'static str, call: Raw) -> Row {
        let (calls, told, right) = (vec![call], vec![call.0], vec![false]);
        Row {
            what,
            calls,
            told,
            right,
        }
    }

    /// A call that is not even told, as its arguments are none.
    fn untold(what: &'static str, call: Raw) -> Row {
        let told = Vec::new();
        Row {
            told,
            ..refused(what, call)
        }
    }

    #[tokio::test]
    async fn a_call_that_cannot_be_made_gets_an_error_and_the_run_goes_on() {
        let oslo = r#"{"city":"Oslo"}"#;
        let rows = [
            refused("an unknown tool", ("c1", "wether", oslo)),
            refused("a tool of others", ("c1", "calculator", r#"{"expression":"1"}"#)),
            refused("no arguments", ("c1", "weather", "")),
            refused("one missing", ("c1", "weather", "{}")),
            refused("one of another type", ("c1", "weather", r#"{"city":7}"#)),
            refused("one too many", ("c1", "weather", r#"{"city":"Oslo","x":1}"#)),
            untold("half of JSON", ("c1", "weather", r#"{"city":"Os"#)),
            untold("more than JSON", ("c1", "weather", r#"{"city":"Oslo"}}"#)),
            untold("a list", ("c1", "weather", r#"["Oslo"]"#)),
            untold("a text", ("c1", "weather", r#""Oslo""#)),
            Row {
                what: "ids twice",
                calls: vec![("c1", "weather", oslo), ("c1", "weather", r#"{"city":"Paris"}"#)],
                told: vec!["c1", "c1+"],
                right: vec![true, true],
            },
            Row {
                what: "wrong ones beside a right one",
                calls: vec![("c1", "wether", "{}"), ("c2", "weather", oslo), ("c3", "weather", "{")],
                told: vec!["c1", "c2"],
                right: vec![false, true, false],
            },
        ];
        for Row {
            what,
            calls,
            told,
            right,
        } in rows
        {
            let tools = weather().await;
            let model = Upstream::start([raw(&calls), says("Well.")]).await;
            let gateway = gateway(&model, &tools).start().await;
            let transcript = events(&gateway, question("Weather?")).await;
            let response = transcript.done()["response"].clone();
            assert_eq!(response["content"], "Well.", "{what}");
            assert_eq!(
                (&response["finish_reason"], &response["rounds"]),
                (&json!("stop"), &json!(2)),
                "{what}"
            );

            let of = |name: &str| {
                let events = transcript.events.iter().filter(|event| event.event == name);
                events.map(Event::json).collect::<Vec<_>>()
            };
            let ids: Vec<_> = of("tool_call")
                .iter()
                .map(|chunk| chunk["tool_call"]["id"].clone())
                .collect();
            assert_eq!(ids, told, "{what}");
            let finishes = of("tool_call")
                .iter()
                .map(|chunk| chunk["finish_reason"].clone())
                .collect::<Vec<_>>();
            let last = finishes.iter().position(|finish| finish == "tool_calls");
            assert_eq!(last, told.len().checked_sub(1), "{what}");
            assert_eq!(of("tool_result").len(), calls.len(), "{what}");
            let records = list(&response["tool_calls"]);
            assert_eq!(
                each(&records, &["ok"]),
                right.iter().map(|ok| json!([ok])).collect::<Vec<_>>(),
                "{what}"
            );
            let results = records.iter().map(|record| text(record, "result"));
            assert!(results.clone().all(|result| !result.is_empty()), "{what}");

            let conversation = Dialect::OpenAi.conversation(&model.requests()[1].json);
            assert_well_formed(&conversation);
            assert_well_formed(&history(&gateway).await);
            let heard: Vec<_> = conversation[2..]
                .iter()
                .map(|message| text(message, "content"))
                .collect();
            assert_eq!(heard, results.collect::<Vec<_>>(), "{what}");
            assert_eq!(tools.calls(), right.iter().filter(|ok| **ok).count(), "{what}");
        }
    }

    #[tokio::test]
    async fn of_many_calls_in_a_round_sixteen_are_made() {
        for many in [20, 1000] {
            let tools = weather().await;
            let ids: Vec<_> = (0..many).map(|number| format!("c{number}")).collect();
            let calls: Vec<_> = ids.iter().map(|id| ask(id, "Oslo")).collect();
            let model = Upstream::start([asks(&calls), says("Sunny.")]).await;
            let gateway = gateway(&model, &tools).start().await;
            let transcript = events(&gateway, question("Weather?")).await;
            let records = list(&transcript.done()["response"]["tool_calls"]);
            let expected: Vec<_> = (0..many).map(|number| json!([ids[number], number < 16])).collect();
            assert_eq!(each(&records, &["id", "ok"]), expected);
            let count = |name: &str| transcript.kinds().into_iter().filter(|kind| *kind == name).count();
            assert_eq!(
                (count("tool_call"), count("tool_result"), tools.calls()),
                (many, many, 16)
            );
            assert_well_formed(&Dialect::OpenAi.conversation(&model.requests()[1].json));
        }
    }

    #[tokio::test]
    async fn a_name_that_no_provider_would_take_back_is_not_sent_back() {
        let long = "x".repeat(200);
        for dialect in Dialect::ALL {
            for name in [
                "functions.weather",
                "weather<|channel|>commentary",
                "get weather",
                "Wetter für\n",
                &long,
            ] {
                let tools = weather().await;
                let rounds = [
                    dialect.round(&[], &[("c1", name, json!({}))]),
                    dialect.round(&["Well."], &[]),
                ];
                let model = Upstream::start(rounds).await;
                let gateway = with_weather(dialect.gateway(&model), &tools).start().await;
                let response = answer(&gateway, question("Weather?")).await;
                assert_eq!(
                    (&response["content"], &response["tool_calls"][0]["ok"]),
                    (&json!("Well."), &json!(false))
                );
                let names = names(&Value::Array(dialect.conversation(&model.requests()[1].json)));
                let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                let fine = |name: &String| (1..=64).contains(&name.len()) && name.chars().all(fits);
                assert!(!names.is_empty() && names.iter().all(fine), "{dialect:?}: {names:?}");
                assert_eq!(tools.calls(), 0);
            }
        }
    }

    /// All names of tools in a conversation.
    fn names(told: &Value) -> Vec<String> {
        let own = ["name", "tool_name"]
            .into_iter()
            .filter_map(|member| told[member].as_str());
        let inside: Vec<&Value> = match told {
            Value::Object(members) => members.values().collect(),
            Value::Array(all) => all.iter().collect(),
            _ => Vec::new(),
        };
        let own = own.map(str::to_owned);
        own.chain(inside.into_iter().flat_map(names)).collect()
    }

    #[tokio::test]
    async fn an_id_that_comes_again_in_the_next_round_is_another_call_s() {
        for dialect in Dialect::ALL {
            let tools = weather().await;
            let round = |city: &str| dialect.round(&[], &[ask("c1", city)]);
            let model = Upstream::start([round("Oslo"), round("Rome"), dialect.round(&["Well."], &[])]).await;
            let gateway = with_weather(dialect.gateway(&model), &tools).start().await;
            let transcript = events(&gateway, question("Weather?")).await;
            let records = list(&transcript.done()["response"]["tool_calls"]);
            let expected = [json!([1, {"city": "Oslo"}, true]), json!([2, {"city": "Rome"}, false])];
            assert_eq!(each(&records, &["round", "arguments", "ok"]), expected, "{dialect:?}");
            assert_well_formed(&history(&gateway).await);
            let told = dialect.conversation(&model.requests()[2].json);
            let places: Vec<_> = ["Oslo\"", "21 degrees", "Rome\"", "500"]
                .map(|words| json!(told).to_string().replace("\\\"", "\"").find(words))
                .into();
            assert!(
                places.is_sorted() && places[0].is_some(),
                "{dialect:?}: {places:?} in {told:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_result_that_is_too_long_is_told_by_its_beginning() {
        let long = format!("beginning {}", "x".repeat(300 << 10));
        let tools = Upstream::always(Script::status(200, &[("content-type", "text/plain")], long)).await;
        let model = Upstream::start([asks(&[ask("c1", "Oslo")]), says("Well.")]).await;
        let recipe = gateway(&model, &tools).toml("[tools.http.weather]\nmax_result = \"1MiB\"");
        let gateway = recipe.start().await;
        let transcript = events(&gateway, question("Weather?")).await;
        let result = transcript.events[2].json()["tool_result"].clone();
        assert_eq!((&result["ok"], &result["truncated"]), (&json!(false), &json!(true)));
        let content = text(&result, "content");
        assert!(
            content.contains("beginning xxx") && content.len() < 20 << 10,
            "{} bytes",
            content.len()
        );
    }

    #[tokio::test]
    async fn a_tool_that_fails_hangs_or_never_stops_talking_costs_only_its_call() {
        let plain = [("content-type", "text/plain")];
        let endless = Script::head(200, &plain, Framing::Chunked);
        // What it does, and whether its connection has to be closed on it.
        let rows = [
            ("a failure", Script::status(500, &plain, "broken"), false),
            ("a refusal", Script::status(404, &plain, "no"), false),
            ("silence", Script::raw().hang(), true),
            (
                "silence after the head",
                Script::head(200, &plain, Framing::Chunked).hang(),
                true,
            ),
            ("a reset", Script::raw().reset(), false),
            ("a close", Script::raw().cut(), false),
            (
                "half a body",
                Script::head(200, &plain, Framing::Length(100)).bytes("half").cut(),
                false,
            ),
            ("300 KiB", Script::status(200, &plain, "x".repeat(300 << 10)), false),
            (
                "an endless body",
                endless.repeat("x".repeat(16 << 10), Duration::ZERO, 100_000),
                true,
            ),
            ("no HTTP", Script::raw().bytes("SSH-2.0-x\r\n").cut(), false),
        ];
        for (what, script, closes) in rows {
            let tools = Upstream::always(script).await;
            let model = Upstream::start([asks(&[ask("c1", "Oslo")]), says("Well.")]).await;
            let recipe = gateway(&model, &tools).toml("[agents.assistant]\ntool_timeout = \"500ms\"");
            let gateway = recipe.start().await;
            let began = Instant::now();
            let transcript = events(&gateway, question("Weather?")).await;
            let expected = ["start", "tool_call", "tool_result", "token", "done"];
            assert_eq!(transcript.kinds(), expected, "{what}");
            assert!(began.elapsed() < Duration::from_secs(5), "{what}");
            let record = transcript.done()["response"]["tool_calls"][0].clone();
            assert_eq!(record["ok"], false, "{what}: {record}");
            let result = text(&record, "result");
            assert!(
                !result.is_empty() && result.len() < 20 << 10,
                "{what}: {} bytes",
                result.len()
            );
            assert!(!result.contains("127.0.0.1"), "{what}: {result}");
            if closes {
                tools.closed().await;
            }
            assert_eq!(model.calls(), 2, "{what}");
        }
    }

    #[tokio::test]
    async fn what_a_tool_says_forms_no_event_and_comes_through_unchanged() {
        let said = "a\u{2028}b\r\n\r\nevent: done\ndata: {}\n\nid: 1\n\n: hb\n\u{0}\u{202e}é世👩‍👩‍👧\"\\";
        let tools = Upstream::always(Script::status(
            200,
            &[("content-type", "text/plain; charset=utf-8")],
            said,
        ))
        .await;
        let model = Upstream::start([asks(&[ask("c1", "Oslo")]), says("Well.")]).await;
        let gateway = gateway(&model, &tools).start().await;
        let transcript = events(&gateway, question("Weather?")).await;
        assert_eq!(
            transcript.kinds(),
            ["start", "tool_call", "tool_result", "token", "done"]
        );
        let result = transcript.events[2].json()["tool_result"]["content"].clone();
        assert!(text(&json!({ "result": result }), "result").contains(said), "{result}");
        let heard = Dialect::OpenAi.conversation(&model.requests()[1].json);
        assert_eq!(heard[2]["content"], result);
        assert_eq!(history(&gateway).await[2]["content"], result);
    }

    #[tokio::test]
    async fn calls_of_an_answer_that_was_cut_by_a_limit_or_a_filter_are_not_made() {
        for finish in ["length", "content_filter"] {
            let tools = weather().await;
            let asked = openai::tool_delta(0, "c1", "weather", r#"{"city":"Oslo"}"#);
            let cut = Script::sse().role().say("Let me see.").send(asked);
            let model = Upstream::start([cut.finish(finish).usage(12, 34).done().end(), says("Well.")]).await;
            let gateway = gateway(&model, &tools).start().await;
            let transcript = events(&gateway, question("Weather?")).await;
            assert_eq!(transcript.kinds(), ["start", "token", "done"], "{finish}");
            assert_eq!(transcript.done()["finish_reason"], finish);
            let stored = history(&gateway).await;
            assert_eq!(
                each(&stored, &["content", "tool_calls"]),
                [json!(["Weather?", []]), json!(["Let me see.", []])]
            );
            answer(&gateway, question("And?")).await;
            assert_eq!(tools.calls(), 0);
        }
    }

    #[tokio::test]
    async fn arguments_without_end_are_cut_off() {
        let tools = weather().await;
        let begun = Script::sse()
            .role()
            .send(openai::tool_delta(0, "c1", "weather", "{\"city\":\""));
        let more = openai::tool_delta(0, None, None, &"x".repeat(4096));
        let model = Upstream::always(begun.repeat(more, Duration::ZERO, 100_000)).await;
        let recipe = gateway(&model, &tools).toml("[runs]\nmax_output = \"64KiB\"");
        let gateway = recipe.start().await;
        let refusal = post(&gateway, "/chat", question("Weather?")).await.expect(502).await;
        assert_eq!(refusal.problem().await, "output_limit");
        model.closed().await;
        assert_eq!((model.calls(), tools.calls()), (1, 0));
    }

    #[tokio::test]
    async fn a_provider_that_fails_after_the_calls_fails_the_run_and_the_calls_are_not_made_again() {
        let tools = weather().await;
        let first = || asks(&[ask("c1", "Oslo")]);
        let fails = || Script::status(500, &[], "{}");
        let model = Upstream::start([first(), fails(), first(), fails(), first(), fails(), says("Well.")]).await;
        let second = Upstream::always(says("no")).await;
        let recipe = gateway(&model, &tools).toml(&Dialect::OpenAi.provider("second", &second));
        let recipe = recipe.toml("[agents.assistant]\nfallbacks = [\"second/test-model\"]");
        let gateway = recipe.start().await;
        let refusal = post(&gateway, "/chat", question("Weather?")).await.expect(502).await;
        assert_eq!(refusal.problem().await, "upstream_error");
        let transcript = events(&gateway, question("Weather?")).await;
        assert_eq!(transcript.kinds(), ["start", "tool_call", "tool_result", "error"]);
        let body = post(&gateway, "/chat/stream", question("Weather?"))
            .await
            .expect(200)
            .await
            .body()
            .await;
        assert!(body.ending.is_aborted() && body.bytes.is_empty(), "{body:?}");
        assert_eq!((tools.calls(), second.calls()), (3, 0));
        assert_eq!(history(&gateway).await, [Value::Null; 0]);
        assert_eq!(answer(&gateway, question("Weather?")).await["content"], "Well.");

        // Where asking again helps, only the model is asked again.
        let model = Upstream::start([first(), Script::status(503, &[], "{}"), says("Sunny.")]).await;
        let recipe = super::gateway(&model, &tools).toml("[providers.openai]\nmax_retries = 1");
        let gateway = recipe.start().await;
        assert_eq!(answer(&gateway, question("Weather?")).await["content"], "Sunny.");
        assert_eq!((model.calls(), tools.calls()), (3, 4));
    }

    #[tokio::test]
    async fn a_tool_s_own_patience_is_the_one_that_counts() {
        let tools = Upstream::always(Script::raw().hang()).await;
        let model = Upstream::start([asks(&[ask("c1", "Oslo")]), says("Well.")]).await;
        let recipe = gateway(&model, &tools).toml("[tools.http.weather]\ntimeout = \"100ms\"");
        let gateway = recipe.toml("[agents.assistant]\ntool_timeout = \"60s\"").start().await;
        let record = answer(&gateway, question("Weather?")).await["tool_calls"][0].clone();
        assert_eq!(record["ok"], false);
        let took = record["duration_ms"].as_u64().expect("a number");
        assert!((100..5_000).contains(&took), "{took}");
    }
}

mod rounds_without_end {
    use super::*;

    #[tokio::test]
    async fn after_the_last_round_the_model_is_asked_once_more_without_tools() {
        for dialect in Dialect::ALL {
            for limit in [0, 2] {
                let tools = weather().await;
                let model = Upstream::answering(move |request| match request.number {
                    number if number < limit => dialect.round(&[], &[ask(&format!("c{number}"), "Oslo")]),
                    _ => dialect.round(&["Enough."], &[]),
                })
                .await;
                let recipe = with_weather(dialect.gateway(&model), &tools);
                let gateway = recipe
                    .toml(&format!("[agents.assistant]\nmax_tool_rounds = {limit}"))
                    .start()
                    .await;
                let response = answer(&gateway, question("Weather?")).await;
                assert_eq!(
                    (&response["content"], &response["finish_reason"]),
                    (&json!("Enough."), &json!("stop"))
                );
                assert_eq!(response["rounds"], limit + 1);
                assert_eq!((model.calls(), tools.calls()), (limit + 1, limit), "{dialect:?}");
                let last = &model.requests()[limit].json;
                // Anthropic wants every tool of the conversation declared; that none may be called is said there.
                match dialect == Dialect::Anthropic && limit > 0 {
                    true => assert_eq!(last["tool_choice"], json!({"type": "none"})),
                    false => assert_eq!(dialect.tools(last), [""; 0], "{dialect:?}"),
                }
            }
        }
    }

    #[tokio::test]
    async fn a_model_that_asks_even_then_ends_the_run_with_every_call_answered() {
        let tools = weather().await;
        let model = Upstream::answering(|request| match request.number {
            6 => says("Sorry."),
            number => asks(&[ask(&format!("a{number}"), "Oslo"), ask(&format!("b{number}"), "Paris")]),
        })
        .await;
        let gateway = gateway(&model, &tools).start().await;
        let transcript = events(&gateway, question("Weather?")).await;
        let response = transcript.done()["response"].clone();
        assert_eq!(
            (&response["finish_reason"], &response["rounds"]),
            (&json!("tool_calls"), &json!(6))
        );
        assert_eq!((model.calls(), tools.calls()), (6, 10)); // five rounds of tools by default, and one call more
        let records = list(&response["tool_calls"]);
        let right: Vec<_> = records.iter().map(|record| record["ok"] == true).collect();
        assert_eq!(right, [[true; 10].as_slice(), &[false; 2]].concat());
        assert_well_formed(&list(&response["messages"]));
        assert_well_formed(&history(&gateway).await);
        // What the next turn makes of it.
        assert_eq!(answer(&gateway, question("Why?")).await["content"], "Sorry.");
        let conversation = Dialect::OpenAi.conversation(&model.requests()[6].json);
        assert_eq!(conversation.last(), Some(&json!({"role": "user", "content": "Why?"})));
        assert_well_formed(&conversation);
    }
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

mod choosing {
    use super::*;

    #[tokio::test]
    async fn what_the_client_chooses_holds_for_the_first_round_only() {
        let named = json!({"name": "weather"});
        // The choice as the provider is told it.
        let rows = [
            (Dialect::OpenAi, "required", "/tool_choice", json!("required")),
            (
                Dialect::OpenAi,
                "named",
                "/tool_choice",
                json!({"type": "function", "function": {"name": "weather"}}),
            ),
            (Dialect::Responses, "required", "/tool_choice", json!("required")),
            (
                Dialect::Responses,
                "named",
                "/tool_choice",
                json!({"type": "function", "name": "weather"}),
            ),
            (Dialect::Anthropic, "required", "/tool_choice", json!({"type": "any"})),
            (
                Dialect::Anthropic,
                "named",
                "/tool_choice",
                json!({"type": "tool", "name": "weather"}),
            ),
            (
                Dialect::Gemini,
                "required",
                "/toolConfig/functionCallingConfig",
                json!({"mode": "ANY"}),
            ),
            (
                Dialect::Gemini,
                "named",
                "/toolConfig/functionCallingConfig",
                json!({"mode": "ANY", "allowedFunctionNames": ["weather"]}),
            ),
        ];
        for (dialect, choice, place, expected) in rows {
            let tools = weather().await;
            let script = [
                dialect.round(&[], &[ask("c1", "Oslo")]),
                dialect.round(&["Sunny."], &[]),
            ];
            let model = Upstream::start(script).await;
            let gateway = with_weather(dialect.gateway(&model), &tools).start().await;
            let choice = if choice == "named" {
                named.clone()
            } else {
                json!(choice)
            };
            let asked = json!({"message": "Weather?", "tool_choice": choice});
            assert_eq!(answer(&gateway, asked).await["content"], "Sunny.");
            let told: Vec<_> = model
                .requests()
                .iter()
                .map(|request| request.json.pointer(place).cloned())
                .collect();
            assert_eq!(told, [Some(expected), None], "{dialect:?} {choice}");
        }
    }

    #[tokio::test]
    async fn none_means_that_no_tool_may_be_called() {
        let tools = weather().await;
        let model = Upstream::start([says("No idea."), asks(&[ask("c1", "Oslo")]), says("Sunny.")]).await;
        let gateway = gateway(&model, &tools).start().await;
        let asked = json!({"message": "Weather?", "tool_choice": "none"});
        assert_eq!(answer(&gateway, asked).await["content"], "No idea.");
        assert_eq!(model.requests()[0].json["tool_choice"], "none");
        assert_eq!(
            answer(&gateway, json!({"message": "Weather?", "tool_choice": "auto"})).await["content"],
            "Sunny."
        );
        assert_eq!((model.calls(), tools.calls()), (3, 1));
    }

    #[tokio::test]
    async fn a_tool_that_the_agent_does_not_have_cannot_be_chosen() {
        let (model, tools) = (Upstream::always(says("no")).await, weather().await);
        let recipe = gateway(&model, &tools).toml(
            "[agents.bare]\nmodel = \"openai/test-model\"\n[agents.tied]\nmodel = \"openai/test-model\"\ntools = [\"weather\"]\n\
             max_tool_rounds = 0",
        );
        let gateway = recipe.start().await;
        let rows = [
            (json!({"tool_choice": "required", "agent": "tied"}), "tool_choice"),
            (json!({"tool_choice": {"name": "wether"}}), "tool_choice"),
            (json!({"tool_choice": {"name": "calculator"}}), "tool_choice"),
            (json!({"tool_choice": "required", "agent": "bare"}), "tool_choice"),
            (
                json!({"tool_choice": {"name": "weather"}, "agent": "bare"}),
                "tool_choice",
            ),
            (json!({"tool_choice": "any"}), "tool_choice"),
        ];
        for (mut body, field) in rows {
            body["message"] = json!("Weather?");
            for door in ["/chat", "/chat/sse", "/chat/stream", "/runs"] {
                let refusal = post(&gateway, door, body.clone()).await.expect(422).await;
                let problem = refusal.problem_object().await;
                assert_eq!(
                    (&problem["code"], &problem["field"]),
                    (&json!("field_invalid"), &json!(field)),
                    "{body}"
                );
            }
        }
        assert_eq!(model.calls(), 0);
    }

    #[tokio::test]
    async fn a_provider_that_cannot_be_made_to_call_says_so() {
        let (model, tools) = (Upstream::always(says("no")).await, weather().await);
        let gateway = with_weather(Dialect::Ollama.gateway(&model), &tools).start().await;
        for choice in [json!("required"), json!({"name": "weather"})] {
            let body = json!({"message": "Weather?", "tool_choice": choice});
            let problem = post(&gateway, "/chat", body)
                .await
                .expect(422)
                .await
                .problem_object()
                .await;
            assert_eq!(
                (&problem["code"], &problem["field"]),
                (&json!("field_invalid"), &json!("tool_choice"))
            );
        }
        assert_eq!(model.calls(), 0);
    }

    #[tokio::test]
    async fn an_agent_s_tools_are_listed() {
        let (model, tools) = (Upstream::always(says("no")).await, weather().await);
        let recipe = gateway(&model, &tools).toml(
            r#"
[agents.assistant]
tools = ["weather", "cal*", "current_time", "calculator"]
[agents.bare]
model = "openai/test-model"
"#,
        );
        let gateway = recipe.start().await;
        let agents = get(&gateway, "/agents").await.expect(200).await.json().await;
        let expected = [
            json!(["assistant", ["weather", "calculator", "current_time"]]),
            json!(["bare", []]),
        ];
        assert_eq!(each(&list(&agents["agents"]), &["name", "tools"]), expected);
    }

    #[tokio::test]
    async fn a_tool_that_is_none_stops_the_start() {
        let rows = [
            (r#"["calculater"]"#, "agents.assistant.tools", "\"calculator\""),
            (r#"["calculator", "wether"]"#, "\"wether\"", "weather"),
            (r#"["x*"]"#, "agents.assistant.tools", "\"x*\""),
            (r#"[""]"#, "agents.assistant.tools", "\"\""),
            (r#"["mcp:files"]"#, "agents.assistant.tools", "mcp:SERVER/TOOL"),
            (r#"["mcp:files/*"]"#, "agents.assistant.tools", "[mcp]"),
        ];
        let (model, tools) = (Upstream::always(says("no")).await, weather().await);
        for (named, place, hint) in rows {
            let recipe = gateway(&model, &tools).toml(&format!("[agents.assistant]\ntools = {named}"));
            let settings = sluicegate::config::Settings::from_toml(&recipe.text()).expect("settings in good form");
            let outcome = soon("a start to fail", sluicegate::app::serve(settings)).await;
            let error = format!(
                "{:#}",
                outcome.err().unwrap_or_else(|| panic!("it starts with {named}"))
            );
            assert!(error.contains(place) && error.contains(hint), "{named}: {error}");
        }
    }
}

mod stopping {
    use super::*;

    /// A tool that reports at once, but never of Rome.
    async fn stuck() -> Upstream {
        Upstream::answering(|request| match request.path.ends_with("Rome") {
            true => Script::raw().hang(),
            false => report(&request.path),
        })
        .await
    }

    async fn model() -> Upstream {
        Upstream::start([asks(&[ask("c1", "Rome"), ask("c2", "Oslo")]), says("Sunny.")]).await
    }

    fn patient(recipe: Recipe) -> Recipe {
        recipe.toml("[agents.assistant]\ntool_timeout = \"60s\"")
    }

    /// Waits until the run is in the middle of its calls: one is answered, the other is not.
    async fn halfway(gateway: &impl Place, body: Value, tools: &Upstream) -> (Response, String) {
        let mut reply = post(gateway, "/chat/sse", body).await;
        let event = reply.next_event_named("tool_result").await;
        assert_eq!(event.json()["tool_result"]["id"], "c2");
        tools.next_request().await;
        tools.next_request().await;
        (reply, event.run_id)
    }

    /// What a cancel leaves behind: every call has its result, and the session goes on.
    async fn assert_kept(gateway: &Gateway, model: &Upstream) {
        let stored = eventually("the turn to be kept", async || {
            Some(history(gateway).await).filter(|messages| !messages.is_empty())
        })
        .await;
        assert_well_formed(&stored);
        let roles = each(&stored, &["role", "tool_call_id", "status"]);
        let expected = [
            json!(["user", null, "cancelled"]),
            json!(["assistant", null, "cancelled"]),
            json!(["tool", "c1", "cancelled"]),
            json!(["tool", "c2", "cancelled"]),
        ];
        assert_eq!(roles, expected);
        assert!(text(&stored[3], "content").contains("21 degrees in Oslo"), "{stored:?}");
        assert_eq!(model.calls(), 1, "the model was asked again");

        assert_eq!(answer(gateway, question("And?")).await["content"], "Sunny.");
        let conversation = Dialect::OpenAi.conversation(&model.requests()[1].json);
        assert_well_formed(&conversation);
        let roles: Vec<_> = conversation.iter().map(|message| text(message, "role")).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "tool", "user"]);
    }

    #[tokio::test]
    async fn a_cancel_among_the_arguments_keeps_the_words_and_calls_nothing() {
        let (gate, tools) = (Gate::new("half the arguments"), weather().await);
        let asked = openai::tool_delta(0, "c1", "weather", r#"{"city":"Os"#);
        let script = Script::sse()
            .role()
            .say("Let me see.")
            .send(asked)
            .wait(&gate)
            .complete();
        let model = Upstream::start([script, says("Sunny.")]).await;
        let gateway = gateway(&model, &tools).start().await;
        let mut reply = post(&gateway, "/chat/sse", question("Weather?")).await;
        let run = reply.next_event_named("token").await.run_id;
        gate.reached().await;
        let cancel = Call::post(&format!("/runs/{run}/cancel")).to(&gateway).await;
        cancel.expect(200).await;
        model.closed().await;
        assert_eq!(reply.transcript().await.codes(), ["cancelled"]);
        let kept = [json!(["user", "Weather?", []]), json!(["assistant", "Let me see.", []])];
        assert_eq!(each(&history(&gateway).await, &["role", "content", "tool_calls"]), kept);
        answer(&gateway, question("And?")).await;
        assert_eq!((model.calls(), tools.calls()), (2, 0));
    }

    #[tokio::test]
    async fn a_cancel_closes_the_tools_and_answers_their_calls() {
        let (model, tools) = (model().await, stuck().await);
        let gateway = patient(gateway(&model, &tools)).start().await;
        let (reply, run) = halfway(&gateway, question("Weather?"), &tools).await;
        let asked = Instant::now();
        let cancel = Call::post(&format!("/runs/{run}/cancel")).to(&gateway).await;
        cancel.expect(200).await;
        let closed = tools.closed().await - asked;
        assert!(closed < PROMPT, "{closed:?}");
        let transcript = reply.transcript().await;
        assert_eq!(
            transcript
                .kinds()
                .into_iter()
                .filter(|kind| *kind == "tool_call")
                .count(),
            2
        );
        assert_eq!(transcript.codes(), ["cancelled"]);
        assert_kept(&gateway, &model).await;
        let run = get(&gateway, &format!("/runs/{run}")).await.json().await;
        assert_eq!(run["status"], "cancelled");
    }

    #[tokio::test]
    async fn a_client_that_leaves_closes_the_tools() {
        let (model, tools) = (model().await, stuck().await);
        let gateway = patient(gateway(&model, &tools)).start().await;
        let mut body = question("Weather?");
        body["on_disconnect"] = json!("cancel");
        let (reply, _) = halfway(&gateway, body, &tools).await;
        let left = Instant::now();
        reply.hang_up();
        let closed = tools.closed().await - left;
        assert!(closed < PROMPT, "{closed:?}");
        assert_kept(&gateway, &model).await;
    }

    #[tokio::test]
    async fn a_deadline_closes_the_tools_and_leaves_the_session_alone() {
        let (model, tools) = (model().await, stuck().await);
        let recipe = patient(gateway(&model, &tools)).toml("[runs]\ndeadline = \"2s\"");
        let gateway = recipe.start().await;
        let (reply, _) = halfway(&gateway, question("Weather?"), &tools).await;
        tools.closed().await;
        assert_eq!(reply.transcript().await.codes(), ["run_deadline"]);
        assert_eq!(history(&gateway).await, [Value::Null; 0]);
        assert_eq!(answer(&gateway, question("And?")).await["content"], "Sunny.");
        let conversation = Dialect::OpenAi.conversation(&model.requests()[1].json);
        assert_eq!(conversation, [json!({"role": "user", "content": "And?"})]);
    }

    #[tokio::test]
    async fn a_gateway_that_stops_closes_the_tools_and_leaves_the_session_alone() {
        let (model, tools) = (model().await, stuck().await);
        let recipe = patient(gateway(&model, &tools)).toml("[runs]\ndrain = \"300ms\"");
        let gateway = recipe.start().await;
        let (reply, run) = halfway(&gateway, question("Weather?"), &tools).await;
        let (gateway, transcript, _) = tokio::join!(gateway.restart(), reply.transcript(), tools.closed());
        assert_eq!(transcript.codes(), ["shutting_down"]);
        let run = get(&gateway, &format!("/runs/{run}"))
            .await
            .expect(200)
            .await
            .json()
            .await;
        assert_eq!(run["status"], "interrupted");
        assert_eq!(history(&gateway).await, [Value::Null; 0]);
        assert_eq!(answer(&gateway, question("And?")).await["content"], "Sunny.");
        assert_eq!(Dialect::OpenAi.conversation(&model.requests()[1].json).len(), 1);
    }
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

mod facts {
    use super::*;

    #[tokio::test]
    async fn the_context_reaches_the_model_and_the_tools_and_is_not_kept() {
        let tools = Upstream::always(Script::status(200, &[], "{}")).await;
        let model = Upstream::answering(|request| match request.number {
            0 => asks(&[
                ("c1", "lookup", json!({"city": "Oslo"})),
                ("c2", "tell", json!({"city": "\"Oslo\""})),
            ]),
            _ => says("Sunny."),
        })
        .await;
        let addr = tools.addr();
        let schema = r#"{"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}"#;
        let recipe = gateway(&model, &tools).toml(&format!(
            r#"
[tools.http.lookup]
description = "Looks up a city"
parameters = '{schema}'
url = "http://{addr}/of/{{context.tenant}}/{{city}}"
[tools.http.tell]
description = "Tells of a city"
parameters = '{schema}'
method = "POST"
url = "http://{addr}/tell"
body = '{{"city": {{city}}, "user": {{context.user}}, "tenant": {{context.tenant}}}}'
[agents.assistant]
tools = ["lookup", "tell"]
instructions = "Be brief."
"#
        ));
        let gateway = recipe.start().await;
        let mut body = question("Weather?");
        body["context"] = json!({"tenant": "a b/ç", "user": {"id": 7}});
        assert_eq!(answer(&gateway, body).await["content"], "Sunny.");

        let mut requests = tools.requests();
        requests.sort_by(|a, b| a.method.cmp(&b.method));
        assert_eq!(
            (requests[0].method.as_str(), requests[1].method.as_str()),
            ("GET", "POST")
        );
        assert_eq!(requests[0].path, "/of/a%20b%2F%C3%A7/Oslo");
        let expected = json!({"city": "\"Oslo\"", "user": {"id": 7}, "tenant": "a b/ç"});
        assert_eq!(requests[1].json, expected);

        for request in model.requests() {
            let instructions = Dialect::OpenAi.instructions(&request.json);
            let (own, block) = instructions.split_once("\n\n").expect("two blocks");
            assert!(
                own.contains("Be brief.") && block.starts_with("Context"),
                "{instructions}"
            );
            assert!(
                block.contains("\"tenant\": \"a b/ç\"") && block.contains("\"id\": 7"),
                "{instructions}"
            );
        }
        let stored = json!(history(&gateway).await).to_string();
        assert!(!stored.contains("a b/") && !stored.contains("tenant"), "{stored}");

        answer(&gateway, question("And?")).await;
        let next = model.requests().pop().expect("a request");
        assert!(
            !String::from_utf8_lossy(&next.body).contains("tenant"),
            "{:?}",
            next.body
        );
        assert!(Dialect::OpenAi.instructions(&next.json).contains("Be brief."));
    }

    #[tokio::test]
    async fn the_context_is_told_in_every_dialect() {
        for dialect in Dialect::ALL {
            let model = Upstream::always(dialect.round(&["Yes."], &[])).await;
            let gateway = dialect.gateway(&model).start().await;
            answer(&gateway, json!({"message": "Hi", "context": {"plan": "gold"}})).await;
            let instructions = dialect.instructions(&model.requests()[0].json);
            assert!(
                instructions.starts_with("Context") && instructions.contains("\"plan\": \"gold\""),
                "{dialect:?}"
            );
        }
    }
}

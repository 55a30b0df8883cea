//! Two rounds of tools and an answer, in every dialect, through every door.
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
            let result = |id: &str, text: &str| json!({"type": "function_call_output", "call_id": id, "output": text});
            let words = |text: &str| json!({"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]});
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
            let signed = |id: &str| json!({"type": "thinking", "thinking": "Hm…", "signature": format!("signed {id}")});
            let call = |id: &str, at: &str| json!({"type": "tool_use", "id": id, "name": "weather", "input": city(at)});
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
            let call = |id: &str, at: &str| json!({"functionCall": {"id": id, "name": "weather", "args": city(at)}});
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

//! Answers as data: what each provider is asked for, what is read, what is repaired, and what is refused.

use std::time::Instant;

use serde_json::{Value, json};

use super::house::*;

/// A schema that leaves nothing open, and one that does.
fn closed() -> Value {
    json!({"type": "object", "required": ["n"], "additionalProperties": false, "properties": {"n": {"type": "integer"}}})
}

fn open() -> Value {
    json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}, "why": {"type": "string"}}})
}

/// A question that wants an answer of this schema, in the session `s`.
fn wants(schema: Value) -> Value {
    json!({"message": "How many?", "session_id": "s",
        "response_format": {"type": "json_schema", "name": "count", "schema": schema}})
}

/// An answer of OpenAI's in these pieces, which costs 10 and 5 tokens.
fn says(pieces: &[&str]) -> Script {
    Dialect::OpenAi.round(pieces, &[])
}

/// A gateway whose agent asks OpenAI at this place, once.
async fn gateway(model: &Upstream) -> Gateway {
    Gateway::with(model).start().await
}

async fn answer(place: &impl Place, body: Value) -> Value {
    post(place, "/chat", body).await.expect(200).await.json().await
}

/// The session's messages as role and content; none where there is no such session.
async fn history(place: &impl Place) -> Vec<Value> {
    let answer = get(place, "/sessions/s/messages").await;
    if answer.status == 404 {
        return Vec::new();
    }
    let messages = answer.expect(200).await.json().await["messages"].clone();
    let messages = messages.as_array().expect("a list");
    messages.iter().map(|m| json!([m["role"], m["content"]])).collect()
}

/// What the model was told last, as role and content.
fn heard(model: &Upstream) -> Vec<Value> {
    let request = model.requests().pop().expect("a request");
    let conversation = Dialect::OpenAi.conversation(&request.json);
    conversation.iter().map(|m| json!([m["role"], m["content"]])).collect()
}

/// The tool `count`, which asks this place, and an agent that has it.
fn counter_settings(counter: &Upstream) -> String {
    let addr = counter.addr();
    format!(
        r#"
[tools.guard]
allow = ["127.0.0.0/8"]
[tools.http.count]
description = "Counts"
url = "http://{addr}/count"
[agents.assistant]
tools = ["count"]
"#
    )
}

mod asking {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Asked {
        /// In the field of the wire.
        Natively(Value),
        /// In the instructions.
        InWords,
        /// Both.
        InBoth(Value),
    }

    /// Where a request says in what form to answer.
    fn format(dialect: Dialect, request: &Value) -> Value {
        let place = match dialect {
            Dialect::Responses => "/text/format",
            Dialect::Anthropic => "/output_config/format",
            Dialect::Gemini => "/generationConfig",
            Dialect::Ollama => "/format",
            _ => "/response_format",
        };
        request.pointer(place).cloned().unwrap_or_default()
    }

    #[tokio::test]
    async fn every_provider_is_asked_natively_where_it_can_be_and_in_words_elsewhere() {
        use Asked::{InBoth, InWords, Natively};
        let schema = |schema: Value| json!({"type": "json_schema", "name": "count", "schema": schema});
        let (strict, loose, object) = (schema(closed()), schema(open()), json!({"type": "json_object"}));
        let chat = |schema: Value, strict: bool| {
            let inside = json!({"name": "count", "schema": schema, "strict": strict});
            json!({"type": "json_schema", "json_schema": inside})
        };
        let flat = |schema: Value, strict: bool| json!({"type": "json_schema", "name": "count", "schema": schema, "strict": strict});
        let google = |schema: Value| json!({"responseMimeType": "application/json", "responseJsonSchema": schema});
        let mut rows = vec![
            (Dialect::Responses, &strict, Natively(flat(closed(), true))),
            (Dialect::Responses, &loose, Natively(flat(open(), false))),
            (Dialect::Responses, &object, InBoth(object.clone())),
            (
                Dialect::Anthropic,
                &strict,
                Natively(json!({"type": "json_schema", "schema": closed()})),
            ),
            (Dialect::Anthropic, &loose, InWords),
            (Dialect::Anthropic, &object, InWords),
            (Dialect::Gemini, &strict, Natively(google(closed()))),
            (Dialect::Gemini, &loose, Natively(google(open()))),
            (
                Dialect::Gemini,
                &object,
                InBoth(json!({"responseMimeType": "application/json"})),
            ),
            (Dialect::Groq, &strict, InWords),
            (Dialect::Groq, &object, InBoth(object.clone())),
            (Dialect::Ollama, &strict, Natively(closed())),
            (Dialect::Ollama, &loose, Natively(open())),
            (Dialect::Ollama, &object, InBoth(json!("json"))),
        ];
        let any = schema(json!({"anyOf": [closed(), {"type": "null"}]}));
        let parts = schema(json!({"type": "object", "allOf": [closed()]}));
        for dialect in [Dialect::OpenAi, Dialect::Azure, Dialect::Responses] {
            rows.push((dialect, &any, InWords)); // they take schemas of objects only
            rows.push((dialect, &parts, InWords)); // and none with alternatives at the root
        }
        for dialect in [Dialect::OpenAi, Dialect::Azure] {
            rows.push((dialect, &strict, Natively(chat(closed(), true))));
            rows.push((dialect, &loose, Natively(chat(open(), false))));
            rows.push((dialect, &object, InBoth(object.clone())));
        }
        for (dialect, asked, expected) in rows {
            let model = Upstream::always(dialect.round(&["{\"n\"", ": 7}"], &[])).await;
            let gateway = dialect.gateway(&model).start().await;
            let body = json!({"message": "How many?", "response_format": asked});
            let reply = post(&gateway, "/chat/sse", body)
                .await
                .expect(200)
                .await
                .transcript()
                .await;
            assert_eq!(
                reply.kinds(),
                ["start", "token", "token", "done"],
                "{dialect:?} {asked}"
            );
            let done = reply.done();
            assert_eq!(done["structured_data"], json!({"n": 7}), "{dialect:?} {asked}");
            assert_eq!(done["response"]["structured_data"], json!({"n": 7}));
            assert_eq!(done["response"]["content"], "{\"n\": 7}");
            assert_ne!(done["metadata"]["repaired"], true);

            let request = &model.requests()[0].json;
            let words = dialect.instructions(request);
            let told = match (format(dialect, request), words.as_str()) {
                (Value::Null, _) => InWords,
                (format, "") => Natively(format),
                (format, _) => InBoth(format),
            };
            assert_eq!(told, expected, "{dialect:?} {asked}");
            if expected == InWords && asked["type"] == "json_schema" {
                assert!(words.contains(&asked["schema"].to_string()), "{dialect:?}: {words}");
            }
            assert_eq!(model.calls(), 1);
        }
    }

    #[tokio::test]
    async fn json_in_a_block_of_code_is_json() {
        for fenced in ["```json\n{\"n\": 7}\n```", "```\n{\"n\": 7}\n```\n", "\n {\"n\": 7}\n"] {
            let model = Upstream::always(says(&[fenced])).await;
            let gateway = gateway(&model).await;
            let response = answer(&gateway, wants(closed())).await;
            assert_eq!(
                (&response["structured_data"], model.calls()),
                (&json!({"n": 7}), 1),
                "{fenced}"
            );
            assert_eq!(response["content"], fenced, "what was said is what was said");
        }
    }

    #[tokio::test]
    async fn an_agent_s_form_holds_where_the_request_asks_for_none() {
        let model = Upstream::always(says(&["{\"n\": 7}"])).await;
        let schema = closed();
        let recipe = Gateway::with(&model).toml(&format!(
            "[agents.assistant]\nresponse_format = {{ type = \"json_schema\", name = \"own\", schema = '{schema}' }}"
        ));
        let gateway = recipe.start().await;
        let rows = [
            (json!({}), json!("json_schema"), json!({"n": 7})),
            (
                json!({"response_format": {"type": "json_object"}}),
                json!("json_object"),
                json!({"n": 7}),
            ),
            (json!({"response_format": {"type": "text"}}), Value::Null, Value::Null),
        ];
        for (mut body, asked, data) in rows {
            body["message"] = json!("How many?");
            let response = answer(&gateway, body).await;
            let request = model.requests().pop().expect("a request").json;
            assert_eq!(
                (&request["response_format"]["type"], &response["structured_data"]),
                (&asked, &data)
            );
        }
    }

    #[tokio::test]
    async fn tools_and_a_form_go_together() {
        let counter = Upstream::always(Script::status(200, &[], "7")).await;
        for dialect in Dialect::ALL {
            let rounds = [
                dialect.round(&[], &[("c1", "count", json!({}))]),
                dialect.round(&["{\"n\": 7}"], &[]),
            ];
            let model = Upstream::start(rounds).await;
            let recipe = dialect.gateway(&model).toml(&counter_settings(&counter));
            let gateway = recipe.start().await;
            let response = answer(&gateway, wants(closed())).await;
            assert_eq!(response["structured_data"], json!({"n": 7}), "{dialect:?}");
            assert_eq!((&response["rounds"], model.calls()), (&json!(2), 2), "{dialect:?}");
            let native = matches!(
                dialect,
                Dialect::OpenAi | Dialect::Azure | Dialect::Responses | Dialect::Anthropic
            );
            for request in model.requests() {
                assert_eq!(dialect.tools(&request.json), ["count"], "{dialect:?}");
                let format = format(dialect, &request.json);
                let words = dialect.instructions(&request.json);
                assert_eq!(
                    (format != Value::Null, words.contains("JSON Schema")),
                    (native, !native),
                    "{dialect:?}"
                );
            }
        }
    }
}

mod repairing {
    use super::*;

    /// What does not fit the schema.
    const WRONG: [&str; 5] = [
        "Seven.",
        "{\"n\": \"seven\"}",
        "{\"n\": 7, \"why\": 1}",
        "{\"n\": 7",
        "Here it is: {\"n\": 7}",
    ];

    #[tokio::test]
    async fn an_answer_that_does_not_fit_is_asked_for_once_more() {
        for wrong in WRONG {
            let model = Upstream::start([says(&[wrong]), says(&["{\"n\"", ": 7}"]), says(&["{\"n\": 8}"])]).await;
            let gateway = gateway(&model).await;
            let reply = post(&gateway, "/chat/sse", wants(closed())).await.expect(200).await;
            let transcript = reply.transcript().await;
            assert_eq!(
                transcript.kinds(),
                ["start", "token", "done"],
                "the repair is not streamed"
            );
            assert_eq!(transcript.text(), wrong);
            let done = transcript.done();
            assert_eq!(done["structured_data"], json!({"n": 7}), "{wrong}");
            assert_eq!(done["metadata"]["repaired"], true);
            let response = &done["response"];
            assert_eq!(
                (&response["content"], &response["rounds"]),
                (&json!("{\"n\": 7}"), &json!(2))
            );
            let usage = (&response["usage"]["input_tokens"], &response["usage"]["output_tokens"]);
            assert_eq!(usage, (&json!(20), &json!(10)), "both calls");

            // The model saw its own words, and what is wrong with them.
            let asked = heard(&model);
            let told = asked[2][1].as_str().unwrap_or_default();
            assert_eq!(asked[..2], [json!(["user", "How many?"]), json!(["assistant", wrong])]);
            assert!(
                asked[2][0] == "user" && !told.is_empty() && asked.len() == 3,
                "{asked:?}"
            );
            // The session did not.
            let kept = [json!(["user", "How many?"]), json!(["assistant", "{\"n\": 7}"])];
            assert_eq!(history(&gateway).await, kept);
            assert_eq!(response["messages"].as_array().map(Vec::len), Some(2));
            answer(&gateway, wants(closed())).await;
            assert_eq!(
                heard(&model),
                [kept.as_slice(), &[json!(["user", "How many?"])]].concat()
            );
        }
    }

    #[tokio::test]
    async fn what_was_not_streamed_yet_is_the_repaired_answer() {
        let model = Upstream::start([says(&["Seven."]), says(&["{\"n\": 7}"])]).await;
        let gateway = gateway(&model).await;
        let response = answer(&gateway, wants(closed())).await;
        assert_eq!(
            (&response["content"], &response["structured_data"]),
            (&json!("{\"n\": 7}"), &json!({"n": 7}))
        );
        assert_eq!(response["finish_reason"], "stop");

        // An answer without a word leaves a text stream free to say the right one.
        let model = Upstream::start([says(&[]), says(&["{\"n\": 7}"])]).await;
        let gateway = super::gateway(&model).await;
        let body = post(&gateway, "/chat/stream", wants(closed()))
            .await
            .expect(200)
            .await
            .body()
            .await;
        assert_eq!((body.text(), &body.ending), ("{\"n\": 7}", &Ending::Complete));
    }

    #[tokio::test]
    async fn a_text_stream_that_said_something_else_is_aborted() {
        let model = Upstream::start([says(&["Sev", "en."]), says(&["{\"n\": 7}"])]).await;
        let gateway = gateway(&model).await;
        let reply = post(&gateway, "/chat/stream", wants(closed())).await.expect(200).await;
        let run = reply.header("x-run-id").to_owned();
        let body = reply.body().await;
        assert_eq!(body.text(), "Seven.");
        assert!(body.ending.is_aborted(), "{:?}", body.ending);
        let run = get(&gateway, &format!("/runs/{run}")).await.json().await;
        assert_eq!(run["status"], "completed");
        assert_eq!(run["response"]["structured_data"], json!({"n": 7}));
        assert_eq!(history(&gateway).await[1], json!(["assistant", "{\"n\": 7}"]));
    }

    #[tokio::test]
    async fn an_answer_that_does_not_fit_twice_is_an_error_and_no_turn() {
        for wrong in WRONG {
            let scripts = (0..3).flat_map(|_| [says(&["Seven."]), says(&[wrong])]);
            let model = Upstream::start(scripts.chain([says(&["{\"n\": 7}"])])).await;
            let gateway = gateway(&model).await;
            let problem = post(&gateway, "/chat", wants(closed()))
                .await
                .expect(502)
                .await
                .problem()
                .await;
            assert_eq!(problem, "output_invalid", "{wrong}");
            let reply = post(&gateway, "/chat/sse", wants(closed())).await.expect(200).await;
            let transcript = reply.transcript().await;
            assert_eq!(transcript.kinds(), ["start", "token", "error"]);
            assert_eq!(transcript.codes(), ["output_invalid"]);
            let body = post(&gateway, "/chat/stream", wants(closed()))
                .await
                .expect(200)
                .await
                .body()
                .await;
            assert!(body.ending.is_aborted() && body.text() == "Seven.", "{body:?}");
            assert_eq!(history(&gateway).await, [Value::Null; 0]);

            assert_eq!(
                answer(&gateway, wants(closed())).await["structured_data"],
                json!({"n": 7})
            );
            assert_eq!(heard(&model), [json!(["user", "How many?"])]);
        }
    }

    #[tokio::test]
    async fn an_answer_that_its_limit_cut_is_never_passed_for_whole() {
        let cut = |text: &str| {
            let script = Script::sse().role().say(text);
            script.finish("length").usage(10, 5).done().end()
        };
        let whole = "{\"n\": 7}";
        // What is said first and then; what becomes of it.
        let rows = [
            (cut("{\"n\": 7"), says(&[whole]), Ok("stop")),
            (cut("{\"n\": 7"), cut("{\"n\": 77"), Err("output_invalid")),
            (cut("{\"n\": 7"), cut(whole), Ok("length")),
            (says(&[""]), cut(""), Err("output_invalid")),
        ];
        for (first, second, expected) in rows {
            let model = Upstream::start([first, second]).await;
            let gateway = gateway(&model).await;
            let reply = post(&gateway, "/chat", wants(closed())).await;
            match expected {
                Ok(finish) => {
                    let response = reply.expect(200).await.json().await;
                    assert_eq!(response["structured_data"], json!({"n": 7}));
                    assert_eq!(response["finish_reason"], finish);
                }
                Err(code) => assert_eq!(reply.expect(502).await.problem().await, code),
            }
            assert_eq!(model.calls(), 2);
        }
    }

    #[tokio::test]
    async fn a_repair_that_breaks_is_the_run_s_error() {
        let rows = [
            (Script::sse().role().say("{\"n\"").cut(), 502, "upstream_truncated"),
            (Script::status(500, &[], "{}"), 502, "upstream_error"),
            (Script::status(429, &[], "{}"), 503, "upstream_rate_limited"),
        ];
        for (breaks, status, code) in rows {
            let scripts = [
                says(&["Seven."]),
                breaks.clone(),
                says(&["Seven."]),
                breaks,
                says(&["{\"n\": 7}"]),
            ];
            let model = Upstream::start(scripts).await;
            let gateway = gateway(&model).await;
            let refusal = post(&gateway, "/chat", wants(closed())).await.expect(status).await;
            assert_eq!(refusal.problem().await, code);
            let reply = post(&gateway, "/chat/sse", wants(closed())).await.expect(200).await;
            let transcript = reply.transcript().await;
            assert_eq!(
                (transcript.codes(), transcript.text().as_str()),
                (vec![code.to_owned()], "Seven.")
            );
            assert_eq!(history(&gateway).await, [Value::Null; 0]);
            assert_eq!(
                answer(&gateway, wants(closed())).await["structured_data"],
                json!({"n": 7})
            );
            assert_eq!(heard(&model).len(), 1);
        }
    }

    #[tokio::test]
    async fn a_cancel_while_an_answer_is_repaired_keeps_what_was_said_first() {
        prompt(PROMPT, async || {
            let gate = Gate::new("the repair");
            let repair = Script::sse().role().say("{\"n\"").wait(&gate).say(": 7}").complete();
            let model = Upstream::start([says(&["Seven."]), repair, says(&["{\"n\": 8}"])]).await;
            let gateway = gateway(&model).await;
            let mut reply = post(&gateway, "/chat/sse", wants(closed())).await;
            let token = reply.next_event_named("token").await;
            gate.reached().await;
            let asked = Instant::now();
            let cancel = Call::post(&format!("/runs/{}/cancel", token.run_id)).to(&gateway).await;
            cancel.expect(200).await;
            let took = model.closed().await - asked;
            let transcript = reply.transcript().await;
            assert_eq!(
                (transcript.codes(), transcript.text().as_str()),
                (vec!["cancelled".to_owned()], "Seven.")
            );
            let kept = [json!(["user", "How many?"]), json!(["assistant", "Seven."])];
            assert_eq!(history(&gateway).await, kept);
            let run = get(&gateway, &format!("/runs/{}", token.run_id)).await.json().await;
            assert_eq!(
                (&run["status"], &run["response"]["content"]),
                (&json!("cancelled"), &json!("Seven."))
            );
            assert_eq!(run["response"]["structured_data"], Value::Null);

            assert_eq!(
                answer(&gateway, wants(closed())).await["structured_data"],
                json!({"n": 8})
            );
            assert_eq!(
                heard(&model),
                [kept.as_slice(), &[json!(["user", "How many?"])]].concat()
            );
            took
        })
        .await;
    }

    #[tokio::test]
    async fn a_model_that_asks_for_tools_to_the_last_is_asked_for_the_answer() {
        let counter = Upstream::always(Script::status(200, &[], "7")).await;
        for dialect in Dialect::ALL {
            let asks = |id: &str| dialect.round(&[], &[(id, "count", json!({}))]);
            let rounds = [
                asks("c1"),
                asks("c2"),
                dialect.round(&["{\"n\": 7}"], &[]),
                dialect.round(&["{\"n\": 8}"], &[]),
            ];
            let model = Upstream::start(rounds).await;
            let recipe = dialect
                .gateway(&model)
                .toml(&counter_settings(&counter))
                .toml("[agents.assistant]\nmax_tool_rounds = 1");
            let gateway = recipe.start().await;
            let response = answer(&gateway, wants(closed())).await;
            assert_eq!(
                (&response["structured_data"], &response["rounds"]),
                (&json!({"n": 7}), &json!(3)),
                "{dialect:?}"
            );
            assert_eq!(response["finish_reason"], "stop");
            let roles: Vec<_> = history(&gateway)
                .await
                .iter()
                .map(|message| message[0].clone())
                .collect();
            assert_eq!(
                roles,
                ["user", "assistant", "tool", "assistant", "tool", "assistant"],
                "{dialect:?}"
            );
            assert_eq!(
                answer(&gateway, wants(closed())).await["structured_data"],
                json!({"n": 8}),
                "{dialect:?}"
            );
        }
        assert_eq!(counter.calls(), 7);
    }

    #[tokio::test]
    async fn a_repair_that_asks_for_tools_gets_none() {
        let call = ("c1", "count", json!({}));
        for said in ["{\"n\": 7}", ""] {
            let counter = Upstream::always(Script::status(200, &[], "7")).await;
            let repair = Dialect::OpenAi.round(&[said], std::slice::from_ref(&call));
            let model = Upstream::start([says(&["Seven."]), repair, says(&["no"])]).await;
            let recipe = Gateway::with(&model).toml(&counter_settings(&counter));
            let gateway = recipe.start().await;
            let reply = post(&gateway, "/chat", wants(closed())).await;
            if said.is_empty() {
                assert_eq!(reply.expect(502).await.problem().await, "output_invalid");
            } else {
                let response = reply.expect(200).await.json().await;
                assert_eq!(response["structured_data"], json!({"n": 7}));
                assert_eq!(
                    (&response["finish_reason"], &response["tool_calls"]),
                    (&json!("stop"), &json!([]))
                );
                assert_eq!(response["messages"][1]["tool_calls"], json!([]));
            }
            assert_eq!((model.calls(), counter.calls()), (2, 0));
        }
    }

    #[tokio::test]
    async fn what_was_said_between_calls_is_kept_when_the_answer_is_repaired() {
        let counter = Upstream::always(Script::status(200, &[], "7")).await;
        let rounds = [
            Dialect::OpenAi.round(&["I count. "], &[("c1", "count", json!({}))]),
            says(&["Seven."]),
            says(&["{\"n\": 7}"]),
        ];
        let model = Upstream::start(rounds).await;
        let recipe = Gateway::with(&model).toml(&counter_settings(&counter));
        let gateway = recipe.start().await;
        let response = answer(&gateway, wants(closed())).await;
        assert_eq!(
            (&response["content"], &response["rounds"]),
            (&json!("I count. {\"n\": 7}"), &json!(3))
        );
        assert_eq!((&response["structured_data"], counter.calls()), (&json!({"n": 7}), 1));
        assert_eq!(
            model.requests()[2].json["tool_choice"],
            "none",
            "a repair calls nothing"
        );
        let roles: Vec<_> = history(&gateway)
            .await
            .iter()
            .map(|message| message[0].clone())
            .collect();
        assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
    }
}

#[tokio::test]
async fn an_answer_that_takes_too_long_to_check_does_not_fit() {
    let objects: Vec<Value> = (0..4_000).map(|n| json!({"a": n})).collect();
    let schema = json!({"type": "object", "properties": {"a": {"items": {"enum": objects}}}});
    let items = "{\"a\":-1},".repeat(1_000);
    let mut pieces = vec!["{\"a\":["];
    pieces.extend(vec![&*items; 20]);
    pieces.push("0]}");
    let model = Upstream::always(says(&pieces)).await;
    let gateway = gateway(&model).await;
    let reply = post(&gateway, "/chat", wants(schema)).await.expect(502).await;
    assert_eq!(reply.problem().await, "output_invalid");
    let asked = heard(&model).pop().unwrap_or_default().to_string();
    assert!(asked.contains("too large to be checked"), "{asked}");
}

#[tokio::test]
async fn a_schema_that_is_a_trap_is_refused_and_nothing_connects() {
    let elsewhere = Upstream::always(Script::status(200, &[], "{}")).await;
    let model = Upstream::always(says(&["{}"])).await;
    let gateway = gateway(&model).await;
    let remote = format!("http://{}/schema.json", elsewhere.addr());
    let deep = (0..100).fold(
        json!({"type": "string"}),
        |inner, _| json!({"type": "array", "items": inner}),
    );
    let bomb: Value = (0..30)
        .map(|level| {
            let next = format!("#/$defs/l{}", level + 1);
            (format!("l{level}"), json!({"anyOf": [{"$ref": next}, {"$ref": next}]}))
        })
        .chain([("l30".to_owned(), json!({"type": "string"}))])
        .collect::<serde_json::Map<_, _>>()
        .into();
    let to = |name: &str| vec![json!({"$ref": format!("#/$defs/{name}")}); 50];
    let objects: Vec<Value> = (0..5_000).map(|n| json!({"a": n})).collect();
    let compared = json!({"type": "object", "properties": {"a": {"items": {"allOf": to("m")}}},
        "$defs": {"m": {"allOf": to("e")}, "e": {"enum": objects}}});
    let rows = [
        ("a schema elsewhere", json!({"$ref": remote})),
        ("a dialect elsewhere", json!({"$schema": remote, "type": "object"})),
        (
            "a file",
            json!({"type": "object", "properties": {"n": {"$ref": "file:///etc/passwd"}}}),
        ),
        ("another document", json!({"$ref": "other.json#/x"})),
        (
            "a base elsewhere",
            json!({"$id": remote, "type": "object", "properties": {"n": {"$ref": "x.json"}}}),
        ),
        ("itself", json!({"type": "object", "properties": {"n": {"$ref": "#"}}})),
        (
            "round about",
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}),
        ),
        ("nowhere", json!({"$ref": "#/$defs/none"})),
        ("1 MB", json!({"type": "object", "description": "x".repeat(1 << 20)})),
        ("a bomb", json!({"$ref": "#/$defs/l0", "$defs": bomb})),
        ("a bomb of comparisons", compared),
        (
            "a repeated repetition",
            json!({"type": "object", "properties": {"n": {"type": "string", "pattern": "(a+)+$"}}}),
        ),
        (
            "a look-ahead",
            json!({"type": "object", "properties": {"n": {"type": "string", "pattern": "(?=a)b"}}}),
        ),
        ("an unknown type", json!({"type": "thing"})),
        ("no schema", json!({"type": "object", "properties": 7})),
    ];
    for (what, schema) in rows {
        let began = Instant::now();
        let problem = post(&gateway, "/chat", wants(schema))
            .await
            .expect(422)
            .await
            .problem_object()
            .await;
        let (code, field) = (&problem["code"], &problem["field"]);
        assert_eq!(
            (code, field),
            (&json!("schema_invalid"), &json!("response_format.schema")),
            "{what}"
        );
        assert!(began.elapsed().as_secs() < 5, "{what}");
    }
    // What is nested deeper than any schema needs is not even read.
    let refusal = post(&gateway, "/chat", wants(deep)).await.expect(400).await;
    assert_eq!(refusal.problem().await, "json_invalid");
    assert_eq!((model.calls(), elsewhere.connections()), (0, 0));
    assert_eq!(history(&gateway).await, [Value::Null; 0]);
}

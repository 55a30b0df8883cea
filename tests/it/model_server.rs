//! A real model server, llama.cpp's, behind each dialect that it speaks. Its model is random, so that a story asserts what
//! the protocols promise: words, calls, data, usage, errors, and a second turn that the server accepts.

use serde_json::{Value, json};

use super::house::*;

/// The most times that a random model is asked for something.
const TRIES: usize = 20;
/// What one answer may cost, in tokens.
const OUTPUT_TOKENS: u64 = 400;

/// Dialects that the server speaks, with the base address of each below its own.
const DIALECTS: [(&str, &str); 3] = [("openai", "/v1"), ("openai-responses", "/v1"), ("anthropic", "/v1")];

/// The server's address; `None`, loudly, where there is none; in CI that is an error.
fn address() -> Option<String> {
    let address = std::env::var("SLUICEGATE_TEST_MODEL_SERVER").ok();
    if address.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "SLUICEGATE_TEST_MODEL_SERVER is not set"
        );
        eprintln!("!!! SKIPPED: no SLUICEGATE_TEST_MODEL_SERVER; scripts/with-model-server starts a server");
    }
    address
}

/// Gateways whose agent asks the server, one for each dialect. The agent has the tool `weather`.
async fn gateways() -> Vec<(&'static str, Gateway, Upstream)> {
    let Some(address) = address() else { return Vec::new() };
    let mut all = Vec::new();
    for (kind, path) in DIALECTS {
        let plain = [("content-type", "text/plain")];
        let weather = Upstream::always(Script::status(200, &plain, "21 degrees")).await;
        let gateway = Gateway::with(&weather)
            .toml(&format!(
                r#"
[providers.local]
kind = "{kind}"
base_url = "{address}{path}"
api_key = "unused"
default_model = "random"
[tools.guard]
allow = ["127.0.0.0/8"]
[tools.http.weather]
description = "The weather of a place"
parameters = '{{"type": "object", "required": ["place"], "additionalProperties": false, "properties": {{"place": {{"type": "string", "enum": ["Rome", "Oslo"]}}}}}}'
url = "http://{}/weather/{{place}}"
[agents.assistant]
model = "local"
[agents.helper]
model = "local"
tools = ["weather"]
"#,
                weather.addr()
            ))
            .start()
            .await;
        all.push((kind, gateway, weather));
    }
    all
}

fn question(number: usize) -> Value {
    let settings = json!({"max_output_tokens": OUTPUT_TOKENS});
    json!({"message": format!("Question {number}"), "settings": settings})
}

async fn answer(gateway: &Gateway, question: Value) -> Value {
    post(gateway, "/chat", question).await.expect(200).await.json().await
}

#[tokio::test]
async fn its_words_are_streamed_and_a_second_turn_is_accepted() {
    for (kind, gateway, _) in gateways().await {
        for number in 0..4 {
            let stream = post(&gateway, "/chat/sse", question(number)).await;
            let transcript = stream.expect(200).await.transcript().await;
            let done = transcript.done();
            let response = &done["response"];
            assert_eq!(response["content"], transcript.text(), "{kind}");
            let finish = response["finish_reason"].as_str().unwrap();
            assert!(["stop", "length"].contains(&finish), "{kind}: {finish}");
            assert_eq!(response["usage"]["estimated"], false, "{kind}: {response}");
            assert!(
                response["usage"]["input_tokens"].as_u64() > Some(0),
                "{kind}: {response}"
            );
            let mut second = question(number);
            second["session_id"] = response["session_id"].clone();
            assert_eq!(answer(&gateway, second).await["rounds"], 1, "{kind}");
        }
    }
}

#[tokio::test]
async fn its_calls_are_made_and_their_results_are_accepted() {
    for (kind, gateway, weather) in gateways().await {
        let (mut answered, mut with_words) = (0, 0);
        for number in 0..TRIES {
            let mut question = question(number);
            question["agent"] = json!("helper");
            question["tool_choice"] = json!("required");
            let before = weather.calls();
            let response = post(&gateway, "/chat", question.clone()).await;
            if response.status != 200 {
                // Many calls fill the small context, and one that the limit of tokens cut is not made.
                assert_ne!(response.problem().await, "upstream_rejected", "{kind}");
                continue;
            }
            let body = response.json().await;
            // A round has at most 16 calls; those beyond are refused.
            let calls = body["tool_calls"].as_array().unwrap().iter();
            let made: Vec<_> = calls.filter(|call| call["ok"] == true).collect();
            assert_eq!(weather.calls() - before, made.len(), "{kind}: {body}");
            if made.is_empty() {
                continue;
            }
            for call in made {
                assert_eq!(call["result"], "21 degrees", "{kind}");
            }
            assert!(body["rounds"].as_u64() > Some(1), "{kind}: {body}");
            let first = body["messages"]
                .as_array()
                .unwrap()
                .iter()
                .find(|m| m["role"] == "assistant")
                .unwrap();
            with_words += usize::from(first["content"] != "");
            // The history, with words beside calls and with results, is accepted in the session's next turn.
            let mut next = json!({"message": "And?", "session_id": body["session_id"], "agent": "helper"});
            next["settings"] = question["settings"].clone();
            next["tool_choice"] = json!("none");
            answer(&gateway, next).await;
            answered += 1;
            if answered >= 3 && with_words > 0 {
                break;
            }
        }
        assert!(
            answered >= 3 && with_words > 0,
            "{kind}: {answered} answers, {with_words} with words before calls"
        );
    }
}

#[tokio::test]
async fn its_data_fits_the_schema_or_is_refused() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["place", "sure"],
        "properties": {"place": {"type": "string", "enum": ["Rome", "Oslo"]}, "sure": {"type": "boolean"}}
    });
    for (kind, gateway, _) in gateways().await {
        let mut question = question(0);
        question["response_format"] = json!({"type": "json_schema", "name": "answer", "schema": schema});
        let response = post(&gateway, "/chat", question).await;
        // The server follows a schema in Chat Completions only. Elsewhere its answer, asked for twice, is refused as data.
        if kind != "openai" {
            assert_eq!(response.problem().await, "output_invalid", "{kind}");
            continue;
        }
        let data = response.expect(200).await.json().await["structured_data"].clone();
        assert!(
            ["Rome", "Oslo"].contains(&data["place"].as_str().unwrap()),
            "{kind}: {data}"
        );
        assert!(data["sure"].is_boolean(), "{kind}: {data}");
    }
}

#[tokio::test]
async fn a_context_that_is_too_long_is_called_so() {
    for (kind, gateway, _) in gateways().await {
        let question = json!({"message": "word ".repeat(2_000)});
        let refused = post(&gateway, "/chat", question).await;
        assert_eq!(refused.status, 422, "{kind}");
        assert_eq!(refused.problem().await, "context_too_long", "{kind}");
    }
}

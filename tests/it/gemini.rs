//! Gemini over a socket: what its decoder alone cannot show.

use std::time::Duration;

use serde_json::json;

use crate::house::{Gateway, Script, Upstream, post};

/// A gateway whose agent asks Gemini, at this place.
async fn gateway(upstream: &Upstream) -> Gateway {
    Gateway::with(upstream)
        .toml(&format!(
            r#"
[providers.gemini]
kind = "gemini"
base_url = "{}"
api_key = "gemini-canary"
default_model = "gemini-x"
[agents.assistant]
model = "gemini"
"#,
            upstream.base_url()
        ))
        .start()
        .await
}

/// An event, framed as Google does.
fn event(candidate: &str) -> String {
    format!("data: {{\"candidates\": [{candidate}]}}\r\n\r\n")
}

#[tokio::test]
async fn a_signature_goes_back_with_the_next_question_of_the_session() {
    let two = event(r#"{"content":{"parts":[{"text":"Two"}]}}"#);
    let signed = event(r#"{"content":{"parts":[{"text":"","thoughtSignature":"c2ln"}]},"finishReason":"STOP"}"#);
    let four = event(r#"{"content":{"parts":[{"text":"Four"}]},"finishReason":"STOP"}"#);
    let upstream = Upstream::start([
        Script::sse().send(two).send(signed).end(),
        Script::sse().send(four).end(),
    ])
    .await;
    let gateway = gateway(&upstream).await;

    let first = post(&gateway, "/chat", json!({"message": "1+1?"}))
        .await
        .expect(200)
        .await
        .json()
        .await;
    assert_eq!(
        (&first["content"], &first["finish_reason"]),
        (&json!("Two"), &json!("stop"))
    );
    let again = json!({"message": "2+2?", "session_id": first["session_id"]});
    let second = post(&gateway, "/chat", again).await.expect(200).await.json().await;
    assert_eq!(second["content"], "Four");

    let requests = upstream.requests();
    assert_eq!(requests[0].path, "/v1/models/gemini-x:streamGenerateContent?alt=sse");
    assert_eq!(requests[0].headers.get("x-goog-api-key"), Some("gemini-canary"));
    assert_eq!(requests[0].headers.get("authorization"), None);
    let signed = json!({"role": "model", "parts": [{"text": "Two"}, {"text": "", "thoughtSignature": "c2ln"}]});
    assert_eq!(requests[1].json["contents"][1], signed);
}

#[tokio::test]
async fn an_answer_that_goes_on_after_a_finish_has_its_whole_patience_back() {
    let pause = Duration::from_millis(2300); // longer than what the numbers after a finish are waited for
    let said = |text: &str| format!(r#"{{"content":{{"parts":[{{"text":"{text}"}}]}},"finishReason":"STOP"}}"#);
    let code = r#"{"content":{"parts":[{"executableCode":{"language":"PYTHON","code":"1"}}]},"finishReason":"STOP"}"#;
    let result = r#"{"content":{"parts":[{"codeExecutionResult":{"outcome":"OUTCOME_OK"}}]}}"#;
    let while_code_runs = Script::sse()
        .send(event(code))
        .sleep(pause)
        .send(event(result))
        .send(event(&said("Ran.")));
    let every_event = Script::sse()
        .send(event(&said("a")))
        .send(event(&said("b")))
        .sleep(pause)
        .send(event(&said("c")));
    let upstream = Upstream::start([while_code_runs.end(), every_event.end()]).await;
    let gateway = gateway(&upstream).await;
    for expected in ["Ran.", "abc"] {
        let answer = post(&gateway, "/chat", json!({"message": "Go on"}))
            .await
            .expect(200)
            .await
            .json()
            .await;
        assert_eq!(answer["content"], expected);
    }
}

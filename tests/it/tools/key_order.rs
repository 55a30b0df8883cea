//! The order of an object's keys, from end to end: models answer in the order of a schema's properties.
use super::*;

/// The JSON that stands in a text, also as a string of JSON.
fn unescaped(text: &str) -> String {
    text.replace("\\\"", "\"")
}

#[track_caller]
fn assert_has(text: &str, part: &str, what: &str) {
    assert!(unescaped(text).contains(part), "{what}: no {part} in {text}");
}

#[tokio::test]
async fn schemas_arguments_and_data_keep_the_order_of_their_keys_in_every_dialect() {
    const ASKED: &str = r#"{"zone":"North","city":"Oslo"}"#;
    const DATA: &str = r#"{"thoughts":"It is cold.","answer":{"sky":"grey","degrees":3}}"#;
    const TOOL: &str = r#""properties":{"zone":{"type":"string"},"city":{"type":"string"}}"#;
    const FORM: &str = r#""properties":{"thoughts":{"type":"string"},"answer":{"type":"object"}}"#;
    for dialect in Dialect::ALL {
        let tools = weather().await;
        let model = Upstream::answering(move |request| match request.number {
            0 => dialect.round(&[], &[("c1", "weather", json!({"zone": "North", "city": "Oslo"}))]),
            1 => dialect.round(&[DATA], &[]),
            _ => dialect.round(&["Still."], &[]),
        })
        .await;
        let addr = tools.addr();
        let recipe = dialect.gateway(&model).toml(&format!(
            r#"
[tools.guard]
allow = ["127.0.0.0/8"]
[tools.http.weather]
description = "How the weather is in a city"
url = "http://{addr}/weather/{{zone}}/{{city}}"
[tools.http.weather.parameters]
type = "object"
required = ["zone", "city"]
[tools.http.weather.parameters.properties]
zone = {{ type = "string" }}
city = {{ type = "string" }}
[agents.assistant]
tools = ["weather"]
"#
        ));
        let gateway = recipe.start().await;
        // As text: a value of the test's own would have an order of its own.
        let question = r#"{"message": "Weather?", "session_id": "s", "response_format": {"type": "json_schema",
            "schema": {"type": "object", "required": ["thoughts", "answer"],
            "properties": {"thoughts": {"type": "string"}, "answer": {"type": "object"}}}}}"#;
        let call = Call::post("/chat")
            .header("content-type", "application/json")
            .body(question);
        let reply = call.to(&gateway).await.expect(200).await.body().await;
        let what = format!("{dialect:?}");
        assert_has(reply.text(), &format!(r#""structured_data":{DATA}"#), &what);
        assert_has(reply.text(), &format!(r#""arguments":{ASKED}"#), &what);

        let stored = get(&gateway, "/sessions/s/messages").await.body().await;
        assert_has(stored.text(), &format!(r#""arguments":{ASKED}"#), &what);
        assert_eq!(answer(&gateway, super::question("And now?")).await["content"], "Still.");
        let sent: Vec<String> = model.requests().iter().map(|one| one.json.to_string()).collect();
        assert_eq!(sent.len(), 3);
        for (request, at) in sent.iter().zip(0..) {
            assert_has(request, TOOL, &what);
            assert_eq!(unescaped(request).contains(FORM), at < 2, "{what}: {request}");
            if at > 0 {
                assert_has(request, ASKED, &what);
            }
        }
    }
}

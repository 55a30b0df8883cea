//! `context`: what a client tells of itself for one request.
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

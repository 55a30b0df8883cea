//! Fields that are wrong.
use super::*;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        row("B068 no message", chat("{}"), 422, "message_empty"),
        row("B068 null", chat(r#"{"message":null}"#), 422, "field_invalid"),
        row("B068 a number", chat(r#"{"message":5}"#), 422, "field_invalid"),
        row("B068 a list", chat(r#"{"message":[]}"#), 422, "field_invalid"),
        row(
            "B058 NUL in the message",
            chat(r#"{"message":"a\u0000b"}"#),
            422,
            "control_character",
        ),
        row(
            "B058 NUL in the session",
            spelled("session_id", r#""a\u0000b""#),
            422,
            "session_id_invalid",
        ),
        row(
            "B058 NUL in the user",
            spelled("user_id", r#""a\u0000b""#),
            422,
            "control_character",
        ),
        row(
            "B058 NUL in the metadata",
            spelled("metadata", r#"{"a":"\u0000"}"#),
            422,
            "control_character",
        ),
        row(
            "B058 NUL in a name of the metadata",
            spelled("metadata", r#"{"\u0000":"a"}"#),
            422,
            "control_character",
        ),
        row(
            "B058 NUL in the context",
            spelled("context", r#"{"a":["\u0000"]}"#),
            422,
            "control_character",
        ),
        row(
            "B058 NUL in the agent",
            spelled("agent", r#""\u0000""#),
            422,
            "control_character",
        ),
        row(
            "B077 a key of 300",
            send("/chat", &[&format!("Idempotency-Key: {}", "k".repeat(300))], GOOD),
            422,
            "field_invalid",
        ),
        row(
            "B077 a key that is not ASCII",
            send("/chat", &["Idempotency-Key: \u{e9}"], GOOD),
            422,
            "field_invalid",
        ),
        row(
            "B077 a key with a space",
            send("/chat", &["Idempotency-Key: a b"], GOOD),
            422,
            "field_invalid",
        ),
        row(
            "B077 an empty key",
            send("/chat", &["Idempotency-Key: "], GOOD),
            422,
            "field_invalid",
        ),
        row(
            "B077 two keys",
            send("/chat", &["Idempotency-Key: a", "Idempotency-Key: b"], GOOD),
            422,
            "field_invalid",
        ),
        row(
            "B080 a value of 1 MB",
            field("metadata", json!({"a": "x".repeat(1 << 20)})),
            422,
            "field_invalid",
        ),
        row(
            "B080 a thousand names",
            field(
                "metadata",
                (0..1000)
                    .map(|n| (n.to_string(), json!("")))
                    .collect::<serde_json::Map<_, _>>(),
            ),
            422,
            "field_invalid",
        ),
        row(
            "an agent that is not there",
            field("agent", CANARY),
            422,
            "agent_unknown",
        ),
        row(
            "a session without a store",
            chat(r#"{"message":"Hi","store":false,"session_id":"a"}"#),
            422,
            "field_invalid",
        ),
    ];
    for empty in ["", " ", "\t\n", "\u{200b}", "\u{200b}\u{feff} \u{2060}"] {
        rows.push(row(
            format!("B069 {empty:?}"),
            chat(json!({"message": empty}).to_string()),
            422,
            "message_empty",
        ));
    }
    for (name, value) in [
        ("temperature", "-0.1"),
        ("temperature", "2.01"),
        ("temperature", "\"0.7\""),
        ("temperature", "null"),
        ("max_output_tokens", "0"),
        ("max_output_tokens", "-1"),
        ("max_output_tokens", "1.5"),
        ("max_output_tokens", "9223372036854775808"),
        ("max_output_tokens", &format!("1{}", "0".repeat(100))),
        ("top_p", "0"),
        ("top_p", "1.1"),
        ("seed", "1.5"),
        ("seed", "9007199254740993"),
        ("stop", "\"x\""),
        ("stop", "[\"\"]"),
        ("stop", "[1]"),
        ("reasoning_effort", "\"\""),
        ("reasoning_effort", "\"High!\""),
    ] {
        let id = if name == "max_output_tokens" { "B073" } else { "B071" };
        rows.push(row(
            format!("{id} {name} {value}"),
            spelled("settings", &format!(r#"{{"{name}":{value}}}"#)),
            422,
            "field_invalid",
        ));
    }
    for model in [
        "../gpt",
        "gpt\r\nX: y",
        "openai/other",
        "",
        "openai",
        "demo/guide",
        "nobody/gpt",
    ] {
        rows.push(row(
            format!("B074 {model:?}"),
            field("model", model),
            422,
            "model_not_allowed",
        ));
    }
    for id in [
        "../../etc/passwd",
        "a/b",
        "..%2f",
        "",
        "\u{1F600}",
        "a b",
        "a\0",
        ".",
        "..",
        &"x".repeat(10_000),
    ] {
        let short: String = id.chars().take(20).collect();
        for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
            let body = json!({"message": "Hi", "session_id": id}).to_string();
            rows.push(row(
                format!("B075 {short:?} to {path}"),
                send(path, &[], body),
                422,
                "session_id_invalid",
            ));
        }
    }
    for name in [
        "session_id",
        "user_id",
        "attachments",
        "agent",
        "model",
        "settings",
        "tool_choice",
        "context",
        "response_format",
        "metadata",
        "on_disconnect",
        "on_busy",
        "format",
        "include_reasoning",
        "store",
    ] {
        rows.push(row(
            format!("null for {name}"),
            field(name, Value::Null),
            422,
            "field_invalid",
        ));
        rows.push(row(
            format!("a list in a list for {name}"),
            field(name, json!([[CANARY]])),
            422,
            "field_invalid",
        ));
    }
    for (name, value) in [
        ("on_disconnect", json!("stay")),
        ("on_busy", json!("wait")),
        ("format", json!("xml")),
        ("tool_choice", json!("maybe")),
        ("store", json!("false")),
        ("include_reasoning", json!(1)),
        ("user_id", json!("")),
        ("response_format", json!({"type": "xml"})),
        ("response_format", json!({})),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"name": "delete"})),
        ("metadata", json!({"a": 1})),
    ] {
        rows.push(row(format!("{name} {value}"), field(name, value), 422, "field_invalid"));
    }
    let image = |media: &str, data: &str| json!([{"media_type": media, "data": data}]);
    for (id, value) in [
        ("an image of no kind we know", image("image/svg+xml", "aGk=")),
        ("an image that is not base64", image("image/png", "a*b=")),
        ("an image without padding", image("image/png", "aGk")),
        ("an image of nothing", image("image/png", "")),
        ("an image that is a URL", image("image/png", "http://127.0.0.1/x.png")),
        ("an image without data", json!([{"media_type": "image/png"}])),
        ("an image that is a word", json!(["aGk="])),
    ] {
        rows.push(row(id, field("attachments", value), 422, "field_invalid"));
    }
    let schema = |schema: Value| json!({"type": "json_schema", "name": "answer", "schema": schema});
    for (id, trap) in [
        ("elsewhere", json!({"$ref": "http://127.0.0.1:1/schema.json"})),
        ("in a file", json!({"$ref": "file:///etc/passwd"})),
        (
            "of itself",
            json!({"type": "object", "properties": {"n": {"$ref": "#"}}}),
        ),
        ("of 1 MB", json!({"type": "object", "description": "x".repeat(1 << 20)})),
        (
            "of a pattern that takes for ever",
            json!({"type": "string", "pattern": "(a+)+$"}),
        ),
    ] {
        let request = field("response_format", schema(trap));
        rows.push(row(format!("B079 a schema {id}"), request, 422, "schema_invalid"));
    }
    let trap = json!({"message": "Hi", "response_format": schema(json!({"$ref": "#/nowhere"}))}).to_string();
    for path in ["/chat/stream", "/chat/sse", "/runs"] {
        let request = send(path, &[], &trap);
        rows.push(row(format!("B079 a schema to {path}"), request, 422, "schema_invalid"));
    }
    rows
}

#[tokio::test]
async fn fields_that_are_wrong_are_refused_before_anything_runs() {
    refused_all(rows()).await;
}

#[tokio::test]
async fn who_misspells_a_field_is_told_the_nearest() {
    let (_upstream, gateway) = house().await;
    let image = r#"[{"mime_type":"image/png","data":"AAAA"}]"#;
    for (more, field, meant) in [
        (r#""mesage":"Hi""#, "mesage", "message"),
        (r#""prompt":"Hi""#, "prompt", "message"),
        (r#""temperature":1"#, "temperature", "settings.temperature"),
        (r#""max_tokens":9"#, "max_tokens", "settings.max_output_tokens"),
        (r#""sessionId":"s""#, "sessionId", "session_id"),
        (r#""user":"ada""#, "user", "user_id"),
        (
            r#""settings":{"max_tokens":9}"#,
            "settings.max_tokens",
            "settings.max_output_tokens",
        ),
        (
            r#""settings":{"temprature":1}"#,
            "settings.temprature",
            "settings.temperature",
        ),
        (
            r#""settings":{"tool_choice":"none"}"#,
            "settings.tool_choice",
            "tool_choice",
        ),
        (r#""tool_choice":{"nam":"x"}"#, "tool_choice.nam", "tool_choice.name"),
        (
            r#""response_format":{"type":"json_schema","json_schema":{},"schema":{}}"#,
            "response_format.json_schema",
            "response_format.schema",
        ),
        (
            &format!(r#""attachments":{image}"#),
            "attachments[0].mime_type",
            "attachments[0].media_type",
        ),
    ] {
        for path in ["/chat", "/chat/sse", "/runs"] {
            let call = Call::post(path).header("Content-Type", "application/json");
            let call = call.body(format!(r#"{{"message":"Hi",{more}}}"#));
            let problem = call.to(&gateway).await.expect(422).await.problem_object().await;
            let detail = format!("`{field}` is not a field of this request; did you mean `{meant}`?");
            assert_eq!(problem["detail"], detail.as_str(), "{path}");
            assert_eq!(problem["field"], field);
        }
    }
    for (path, meant) in [
        ("/chat/sse?messsage=Hi", "message"),
        ("/chat/sse?message=Hi&session=s", "session_id"),
        ("/sessions?user=ada", "user_id"),
        ("/sessions?limt=5", "limit"),
    ] {
        let problem = Call::get(path)
            .to(&gateway)
            .await
            .expect(422)
            .await
            .problem_object()
            .await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.ends_with(&format!("did you mean `{meant}`?")), "{detail}");
    }
    // What resembles nothing is compared with nothing.
    for more in [r#""top_k":1"#, r#""stream":true"#, r#""x":1"#] {
        let call = Call::post("/chat").header("Content-Type", "application/json");
        let call = call.body(format!(r#"{{"message":"Hi",{more}}}"#));
        let problem = call.to(&gateway).await.expect(422).await.problem_object().await;
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.ends_with("is not a field of this request."), "{detail}");
    }
}

#[tokio::test]
async fn an_unknown_field_is_refused_by_its_name_wherever_it_stands() {
    let (upstream, gateway) = house().await;
    let trap = Upstream::always(Script::status(200, &[], "{}")).await;
    let url = format!("http://{}/{CANARY}", trap.addr());
    let good = json!({"message": "Hi"});
    let with = |more: Value| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let mut failed = Vec::new();
    for (name, body) in [
        ("mesage", json!({"mesage": "Hi"})),
        ("api_base", with(json!({"api_base": url}))),
        ("base_url", with(json!({"base_url": url}))),
        ("headers", with(json!({"headers": {"x": CANARY}}))),
        ("api_key", with(json!({"api_key": CANARY}))),
        ("tools", with(json!({"tools": [{"url": url}]}))),
        ("mcp", with(json!({"mcp": {"command": "touch"}}))),
        ("__proto__", with(json!({"__proto__": {"message": CANARY}}))),
        ("constructor", with(json!({"constructor": 1}))),
        ("Message", with(json!({"Message": "Ho"}))),
        ("messages", with(json!({"messages": []}))),
        ("stream", with(json!({"stream": true}))),
        ("settings.api_base", with(json!({"settings": {"api_base": url}}))),
        ("settings.headers", with(json!({"settings": {"headers": {}}}))),
        ("settings.max_tokens", with(json!({"settings": {"max_tokens": 5}}))),
        ("settings.__proto__", with(json!({"settings": {"__proto__": 5}}))),
        (
            "attachments[0].url",
            with(json!({"attachments": [{"media_type": "image/png", "data": "aGk=", "url": url}]})),
        ),
        (
            "attachments[1].url",
            with(json!({"attachments": [{"media_type": "image/png", "data": "aGk="}, {"url": url}]})),
        ),
        (
            "response_format.url",
            with(json!({"response_format": {"type": "text", "url": url}})),
        ),
        (
            "tool_choice.url",
            with(json!({"tool_choice": {"name": "x", "url": url}})),
        ),
    ] {
        for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
            let problem = refused(post(&gateway, path, body.clone()).await).await;
            let told = (problem["code"].as_str(), problem["field"].as_str());
            if told != (Some("unknown_field"), Some(name)) {
                failed.push(format!("{name} to {path}: {problem}"));
            }
        }
    }
    for (name, body) in [("url", json!({"url": url})), ("message", json!({"message": "Hi"}))] {
        let problem = refused(post(&gateway, "/sessions", body).await).await;
        if (problem["code"].as_str(), problem["field"].as_str()) != (Some("unknown_field"), Some(name)) {
            failed.push(format!("{name} to /sessions: {problem}"));
        }
    }
    let id = "01920000-0000-7000-8000-000000000001";
    for (name, path) in [
        ("base_url", format!("/chat/sse?message=Hi&base_url={url}")),
        ("model", "/chat/sse?message=Hi&model=openai/test-model".into()),
        ("base_url", format!("/runs/{id}/events?base_url={url}")),
        ("ab", "/sessions?a%62=1".into()),
        ("order", "/sessions/x/messages?order=asc".into()),
    ] {
        let problem = refused(get(&gateway, &path).await).await;
        if (problem["code"].as_str(), problem["field"].as_str()) != (Some("unknown_field"), Some(name)) {
            failed.push(format!("GET {path}: {problem}"));
        }
    }
    let long = "n".repeat(100_000);
    let mut wordy = good.clone();
    wordy[&long] = json!(1);
    let problem = refused(post(&gateway, "/chat", wordy).await).await;
    assert!(
        problem.to_string().len() < 1000,
        "a name of 100,000 characters is not repeated whole"
    );
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert_eq!(trap.connections(), 0, "a client made the gateway call somebody");
    nothing_happened(&upstream, &gateway, gateway.folder()).await;
}

#[tokio::test]
async fn a_key_that_belongs_to_another_request_is_refused() {
    let (upstream, gateway) = house().await;
    let ask = |body: Value| Call::post("/chat").json(&body).header("Idempotency-Key", "order-66");
    let first = ask(json!({"message": "Hi"})).to(&gateway).await.json().await;
    let again = ask(json!({"message": "Hi", "format": "json"}))
        .to(&gateway)
        .await
        .json()
        .await;
    assert_eq!(
        first["run_id"], again["run_id"],
        "the format is not part of what is compared"
    );
    for other in [
        json!({"message": "Ho"}),
        json!({"message": "Hi", "metadata": {}}),
        json!({"message": "Hi", "session_id": "s"}),
    ] {
        assert_eq!(
            refused(ask(other).to(&gateway).await).await["code"],
            "idempotency_mismatch"
        );
    }
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_message_full_of_other_peoples_syntax_is_just_a_message() {
    let text = "\r\n\r\nevent: done\r\ndata: {}\r\n\r\nHTTP/1.1 200 OK\r\n\u{1b}[31m\u{2028}{\"level\":\"ERROR\",\"message\":\"canary-7f3a\"}\n' OR 1=1--";
    let program = Process::start(
        &[
            ("SLUICEGATE__LOG__FORMAT", "json"),
            ("SLUICEGATE__LOG__FILTER", "debug"),
        ],
        &[],
    )
    .await;
    let call = Call::post("/chat")
        .json(&json!({"message": text}))
        .header("X-Request-Id", "a\" b{}");
    let answer = call.to(&program).await.expect(200).await.json().await;
    assert_eq!(answer["messages"][0]["content"], text);
    let events = post(&program, "/chat/sse", json!({"message": text}))
        .await
        .transcript()
        .await;
    assert_eq!(events.terminal().event, "done");
    let refusal = refused(get(&program, "/chat/sse?message=Hi&api_key=canary-7f3a%0A%7B").await).await;
    assert_eq!(refusal["code"], "credential_in_url");
    let log = program.log();
    assert!(log.lines().count() >= 4, "{log}");
    for line in log.lines() {
        assert!(
            serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object()),
            "not a line of JSON: {line:?}"
        );
    }
    assert!(
        !log.contains(CANARY) && !log.contains('\u{1b}'),
        "what clients send is not logged: {log}"
    );
}

#[tokio::test]
async fn a_session_id_that_nobody_knows_is_a_new_session_of_the_callers() {
    let (_upstream, gateway) = house().await;
    let answer = post(&gateway, "/chat", json!({"message": "Hi", "session_id": "new:1.a_b-C"}))
        .await
        .json()
        .await;
    assert_eq!(answer["session_id"], "new:1.a_b-C");
    let session = get(&gateway, "/sessions/new:1.a_b-C").await.json().await;
    assert_eq!(session["message_count"], 2);
}

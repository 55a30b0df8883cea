//! Addresses, queries, and where a stream is to go on.
use super::*;

pub(super) fn rows() -> Vec<Row> {
    let id = "01920000-0000-7000-8000-000000000001";
    let mut rows = vec![
        row(
            "B082 a future seq of nobody's run",
            ask("GET", "/chat/sse", &[&format!("Last-Event-ID: {id}:5")]),
            404,
            "not_found",
        ),
        row(
            "B083 two ids",
            ask(
                "GET",
                "/chat/sse",
                &[&format!("Last-Event-ID: {id}:5"), &format!("Last-Event-ID: {id}:5")],
            ),
            400,
            "last_event_id_invalid",
        ),
        row("B084 no message", ask("GET", "/chat/sse", &[]), 422, "message_empty"),
        row(
            "B084 an empty message",
            ask("GET", "/chat/sse?message=", &[]),
            422,
            "message_empty",
        ),
        row(
            "B085 two messages",
            ask("GET", "/chat/sse?message=a&message=b", &[]),
            422,
            "duplicate_parameter",
        ),
        row(
            "B085 two messages, spelled differently",
            ask("GET", "/chat/sse?message=a&m%65ssage=b", &[]),
            422,
            "duplicate_parameter",
        ),
        row(
            "B087 NUL",
            ask("GET", "/chat/sse?message=%00", &[]),
            422,
            "control_character",
        ),
        row(
            "a format that is none",
            ask("GET", "/chat/sse?message=a&format=xml", &[]),
            422,
            "field_invalid",
        ),
        row(
            "two keys that differ",
            ask("GET", "/chat/sse?message=a&key=a", &["Idempotency-Key: b"]),
            422,
            "field_invalid",
        ),
        row(
            "another run's id",
            ask(
                "GET",
                &format!("/runs/{id}/events"),
                &["Last-Event-ID: 01920000-0000-7000-8000-000000000002:5"],
            ),
            400,
            "last_event_id_invalid",
        ),
        row(
            "a session id that is none",
            ask("GET", "/chat/sse?message=a&session_id=a%2fb", &[]),
            422,
            "session_id_invalid",
        ),
        row(
            "B050 with q=0",
            send("/chat", &["Accept: application/json;q=0"], GOOD),
            406,
            "not_acceptable",
        ),
        row(
            "B058 NUL in the user whose sessions are asked for",
            ask("GET", "/sessions?user_id=a%00", &[]),
            422,
            "control_character",
        ),
        row(
            "a user without a name",
            ask("GET", "/sessions?user_id=", &[]),
            422,
            "field_invalid",
        ),
        row(
            "a user of 257 characters",
            ask("GET", &format!("/sessions?user_id={}", "u".repeat(257)), &[]),
            422,
            "field_invalid",
        ),
        row(
            "a limit of 0",
            ask("GET", "/sessions?limit=0", &[]),
            422,
            "field_invalid",
        ),
        row(
            "a limit of 201",
            ask("GET", "/sessions?limit=201", &[]),
            422,
            "field_invalid",
        ),
        row(
            "a cursor that is none",
            ask("GET", "/sessions?cursor=x", &[]),
            422,
            "field_invalid",
        ),
    ];
    let bad_ids = [
        "abc",
        "-1",
        "1",
        id,
        &format!("{id}:"),
        &format!("{id}:-1"),
        &format!("{id}:+1"),
        &format!("{id}:1:1"),
        &format!("{id}:111111111111111111111"),
        &format!("{id}:99999999999999999999"),
        &format!("{}:1", id.to_uppercase().replace('0', "A")),
        &"9".repeat(10 << 10),
        "\u{e9}",
        "a;b",
        &format!("{id}:1\u{2028}"),
    ];
    for bad in bad_ids {
        let short: String = bad.chars().take(70).collect();
        rows.push(row(
            format!("B082 {short:?}"),
            ask("GET", "/chat/sse", &[&format!("Last-Event-ID: {bad}")]),
            400,
            "last_event_id_invalid",
        ));
        rows.push(row(
            format!("B082 {short:?} in POST"),
            send("/chat/sse", &[&format!("Last-Event-ID: {bad}")], GOOD),
            400,
            "last_event_id_invalid",
        ));
        rows.push(row(
            format!("B082 {short:?} of a run"),
            ask(
                "GET",
                &format!("/runs/{id}/events"),
                &[&format!("Last-Event-ID: {bad}")],
            ),
            400,
            "last_event_id_invalid",
        ));
        if bad.is_ascii() && !bad.contains('+') {
            rows.push(row(
                format!("B082 {short:?} in the query"),
                ask("GET", &format!("/chat/sse?last_event_id={bad}"), &[]),
                400,
                "last_event_id_invalid",
            ));
        }
    }
    // An empty header is none, so the query's id counts, and nothing is started.
    for (method, bytes) in [
        (
            "GET",
            ask(
                "GET",
                &format!("/chat/sse?message=Hi&last_event_id={id}:0"),
                &["Last-Event-ID:"],
            ),
        ),
        (
            "POST",
            send(&format!("/chat/sse?last_event_id={id}:0"), &["Last-Event-ID:"], GOOD),
        ),
    ] {
        rows.push(row(
            format!("B043 {method} with an empty header beside a query"),
            bytes,
            404,
            "not_found",
        ));
    }
    for bad in ["a%00", "%00", &format!("{id}:1%00"), &format!("{id}:1%0A")] {
        rows.push(row(
            format!("B082 {bad} in the query"),
            ask("GET", &format!("/chat/sse?last_event_id={bad}"), &[]),
            400,
            "last_event_id_invalid",
        ));
    }
    rows.push(bare(
        "B082 NUL in the header",
        ask("GET", "/chat/sse", &["Last-Event-ID: a\0"]),
        &[400],
    ));
    for bad in ["%FF", "%C3%28", "%", "%2", "%zz", "%ED%A0%80"] {
        rows.push(row(
            format!("B086 {bad}"),
            ask("GET", &format!("/chat/sse?message={bad}"), &[]),
            400,
            "query_invalid",
        ));
        rows.push(row(
            format!("B086 {bad} in a name"),
            ask("GET", &format!("/sessions?{bad}=1"), &[]),
            400,
            "query_invalid",
        ));
    }
    rows
}

#[tokio::test]
async fn queries_headers_and_paths_that_are_wrong_are_refused_before_anything_runs() {
    refused_all(rows()).await;
}

#[tokio::test]
async fn headers_that_mean_nothing_to_a_stream_are_ignored() {
    let (upstream, gateway) = house().await;
    let ignored = [
        ("Range", "bytes=0-5"),
        ("If-None-Match", "*"),
        ("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("TE", "trailers"),
        ("Accept-Encoding", "gzip, br"),
        ("Upgrade", "websocket"),
        ("X-Http-Method-Override", "DELETE"),
    ];
    for (name, value) in ignored {
        let call = Call::get("/chat/sse?message=Hi").header(name, value);
        let call = if name == "Upgrade" {
            call.header("Connection", "Upgrade")
        } else {
            call
        };
        let answer = call.to(&gateway).await.expect(200).await;
        assert_eq!(answer.headers.get("content-encoding"), None, "{name}");
        assert_eq!(answer.transcript().await.text(), "Hello", "{name}");
    }
    let with_body = Call::get("/chat/sse?message=Hi")
        .header("Content-Type", "application/json")
        .body(r#"{"message":"Ho"}"#);
    assert_eq!(with_body.to(&gateway).await.transcript().await.text(), "Hello");
    assert_eq!(upstream.calls(), ignored.len() + 1);
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| request.json["messages"][0]["content"] == "Hi")
    );
    let h2c = Call::get("/agents")
        .header("Connection", "Upgrade, HTTP2-Settings")
        .header("Upgrade", "h2c")
        .header("HTTP2-Settings", "AAMAAABk");
    assert_eq!(h2c.to(&gateway).await.status, 200);
}

#[tokio::test]
async fn cancelling_twice_is_one_cancellation_and_a_completed_run_is_past_it() {
    let gate = Gate::new("after the first word");
    let upstream = Upstream::start([
        Script::sse().role().say("Hel").wait(&gate).say("lo").complete(),
        openai::answer(&["Hello"]),
    ])
    .await;
    let gateway = Gateway::with(&upstream).start().await;
    let cancel = async |id: &Value| {
        let path = format!("/runs/{}/cancel", id.as_str().unwrap());
        Call::post(&path).body("this is no JSON {").to(&gateway).await
    };
    let run = post(&gateway, "/runs", json!({"message": "Hi"}))
        .await
        .expect(202)
        .await
        .json()
        .await["run_id"]
        .take();
    gate.reached().await;
    for _ in 0..2 {
        let shown = cancel(&run).await.expect(200).await.json().await;
        assert_eq!(shown["run_id"], run);
    }
    upstream.closed().await;
    let done = post(&gateway, "/chat", json!({"message": "Hi"})).await.json().await["run_id"].take();
    let problem = refused(cancel(&done).await).await;
    assert_eq!((&problem["code"], &problem["run_id"]), (&json!("run_finished"), &done));
}

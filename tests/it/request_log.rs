//! The log of requests: who was refused is found by the id that the answer has.
use serde_json::{Value, json};

use super::house::*;

const KEY: &str = "sluice_test-key-of-the-log";

/// A gateway with a key, whose log is JSON.
async fn program(upstream: &Upstream, more: &str) -> Process {
    let recipe =
        Gateway::with(upstream)
            .toml("[log]\nformat = \"json\"")
            .toml(more)
            .key("web", KEY, "requests_per_minute = 8");
    recipe.spawn().await
}

/// Ends the program; its log, line by line.
async fn lines(mut program: Process) -> Vec<Value> {
    program.terminate().await;
    program.wait_exit(std::time::Duration::from_secs(20)).await;
    let log = program.log();
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    log.lines().map(parse).collect()
}

fn requests(lines: &[Value]) -> Vec<&Value> {
    let all = lines.iter();
    // The house itself asks for /readyz.
    all.filter(|line| line["event"] == "request" && line["route"] != "/readyz")
        .collect()
}

#[tokio::test]
async fn a_refused_request_is_found_by_its_id_and_by_default_no_other_has_a_line() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let program = program(&upstream, "").await;
    let ask = |id: &str, path: &str, body: Value| Call::post(path).json(&body).header("x-request-id", id);
    let fine = ask("fine", "/chat", json!({"message": "Hello"})).key(KEY);
    let answer = fine.to(&program).await.expect(200).await.json().await;
    for (call, status) in [
        (ask("no-key", "/chat", json!({"message": "Hello"})), 401),
        (
            ask("bad-key", "/chat", json!({"message": "Hello"})).key("sluice_other"),
            401,
        ),
        (
            Call::get("/runs/secret-path").header("x-request-id", "no-run").key(KEY),
            404,
        ),
        (Call::get("/secret-path").header("x-request-id", "no-path"), 404),
        (
            ask("field", "/chat", json!({"message": "Hello", "mesage": "x"})).key(KEY),
            422,
        ),
        (ask("method", "/agents", json!({})).key(KEY), 405),
    ] {
        call.to(&program).await.expect(status).await.body().await;
    }
    let mut limited = 0;
    for at in 0..8 {
        let call = ask(&format!("often-{at}"), "/chat", json!({}))
            .key(KEY)
            .to(&program)
            .await;
        limited += usize::from(call.status == 429);
        call.body().await;
    }
    assert!(limited > 0);
    let lines = lines(program).await;
    let requests = requests(&lines);
    let of = |id: &str| {
        let mut found = requests.iter().filter(|line| line["request_id"] == id);
        match (found.next(), found.next()) {
            (found, None) => found.copied(),
            more => panic!("two lines of one request: {more:?}"),
        }
    };
    assert_eq!(of("fine"), None, "by default only what was refused has a line");
    for (id, route, status, code, principal) in [
        ("no-key", "/chat", 401, "auth_missing", Value::Null),
        ("bad-key", "/chat", 401, "auth_invalid", Value::Null),
        ("no-run", "/runs/{run_id}", 404, "not_found", json!("web")),
        ("no-path", "unmatched", 404, "not_found", Value::Null),
        ("field", "/chat", 422, "unknown_field", json!("web")),
        ("method", "/agents", 405, "method_not_allowed", Value::Null),
        ("often-7", "/chat", 429, "rate_limited", json!("web")),
    ] {
        let line = of(id).unwrap_or_else(|| panic!("no line of {id}"));
        let told = (&line["route"], &line["status"], &line["code"], &line["principal"]);
        assert_eq!(
            told,
            (&json!(route), &json!(status), &json!(code), &principal),
            "{line}"
        );
        assert_eq!(
            line["level"], "INFO",
            "a client's fault is nothing to be woken for: {line}"
        );
        assert!(line["ms"].is_u64() && line["detail"].is_string(), "{line}");
        assert!(!line.to_string().contains("secret-path"), "{line}");
    }
    assert_eq!(of("field").unwrap()["field"], "mesage");
    // The run, too.
    let mut ends = lines.iter().filter(|line| line["event"] == "run.end");
    let end = ends.next().expect("a run's end");
    assert_eq!(
        (&end["request_id"], &end["run_id"]),
        (&json!("fine"), &answer["run_id"])
    );
}

#[tokio::test]
async fn every_request_has_a_line_where_all_are_asked_for_and_none_where_none_is() {
    for (word, expected) in [("all", 2), ("off", 0)] {
        let upstream = Upstream::always(openai::answer(&["Hi"])).await;
        let program = program(&upstream, &format!("[log]\nrequests = \"{word}\"")).await;
        let ask = Call::post("/chat/sse").json(&json!({"message": "Hello"}));
        let stream = ask.key(KEY).to(&program).await.expect(200).await;
        let run_id = stream.header("x-run-id").to_owned();
        stream.transcript().await;
        get(&program, "/agents").await.expect(401).await.body().await;
        let lines = lines(program).await;
        let requests = requests(&lines);
        assert_eq!(requests.len(), expected, "{requests:?}");
        if let Some(first) = requests.first() {
            let told = (&first["method"], &first["route"], &first["status"], &first["run_id"]);
            let meant = (&json!("POST"), &json!("/chat/sse"), &json!(200), &json!(run_id));
            assert_eq!(told, meant, "{first}");
        }
    }
}

#[tokio::test]
async fn a_page_that_cors_keeps_out_is_named_once_with_the_setting() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let recipe = Gateway::with(&upstream).toml("[log]\nformat = \"json\"");
    let recipe = recipe.toml("[server]\ncors_allowed_origins = [\"https://app.example\"]");
    let program = recipe.key("web", KEY, "").spawn().await;
    let preflight = |origin: &str| {
        Call::new("OPTIONS", "/chat")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
    };
    for origin in [
        "http://localhost:5173",
        "http://localhost:5173",
        "https://other.example",
        "https://app.example",
    ] {
        preflight(origin).to(&program).await.body().await;
    }
    // A request without a preflight, and a page of the gateway's own.
    let own = format!("http://{}", program.addr());
    for origin in ["https://other.example", own.as_str()] {
        let call = Call::get("/agents").header("origin", origin).key(KEY);
        call.to(&program).await.expect(200).await.body().await;
    }
    let lines = lines(program).await;
    let warned: Vec<_> = lines
        .iter()
        .filter(|line| line["level"] == "WARN" && line["origin"].is_string())
        .collect();
    let origins: Vec<_> = warned.iter().map(|line| line["origin"].as_str().unwrap()).collect();
    assert_eq!(origins, ["http://localhost:5173", "https://other.example"]);
    for line in &warned {
        let message = line["message"].as_str().unwrap();
        assert!(message.contains("server.cors_allowed_origins"), "{message}");
        assert!(line["request_id"].is_string(), "{line}");
    }
    let message = warned[0]["message"].as_str().unwrap();
    assert!(message.contains("only where no keys are configured"), "{message}");
    // Each of the four requests has its line.
    let refused = requests(&lines).into_iter();
    let refused: Vec<_> = refused.filter_map(|line| line["refused_origin"].as_str()).collect();
    let twice = ["http://localhost:5173", "https://other.example"];
    assert_eq!(refused, [twice[0], twice[0], twice[1], twice[1]]);
}

#[tokio::test]
async fn the_start_says_that_keys_keep_pages_of_this_machine_out() {
    const SAID: &str = "pages on other ports of this machine may not call";
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let allowed = "[server]\ncors_allowed_origins = [\"http://localhost:5173\"]";
    for (recipe, said) in [
        (Gateway::with(&upstream).key("web", KEY, ""), true),
        (Gateway::with(&upstream).key("web", KEY, "").toml(allowed), false),
        (Gateway::with(&upstream), false),
    ] {
        let program = recipe.spawn().await;
        assert_eq!(program.log().contains(SAID), said, "{}", program.log());
    }
}

#[tokio::test]
async fn statements_are_logged_only_where_they_are_named() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    for (filter, seen) in [("debug", false), ("info,sqlx::query=debug", true)] {
        let recipe = Gateway::with(&upstream).toml(&format!("[log]\nfilter = \"{filter}\""));
        let program = recipe.spawn().await;
        post(&program, "/chat", json!({"message": "Hello"}))
            .await
            .expect(200)
            .await
            .body()
            .await;
        program.logged("a run ended").await;
        assert_eq!(program.log().contains("INSERT INTO runs"), seen, "{filter}");
    }
}

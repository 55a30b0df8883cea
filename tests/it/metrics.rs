//! What those who run the gateway see of it: the meters, on a listener of their own.
use std::collections::BTreeSet;

use serde_json::json;

use crate::house::{
    Call, Connection, Gate, Gateway, Meters, Place, Process, Script, Upstream, closed_port, eventually, get,
    meters::WATCHED, openai, post,
};

#[tokio::test]
async fn a_run_is_counted_once_and_its_tokens_by_direction() {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let gateway = Gateway::with(&upstream).toml(WATCHED).start().await;
    let answer = post(&gateway, "/chat", json!({"message": "Hi"})).await.body().await;
    assert_eq!(answer.status, 200);
    let usage = answer.json()["usage"].clone();

    let meters = Meters::of(&gateway.admin()).await;
    let completed = "runs_total{outcome=\"completed\",agent=\"assistant\",provider=\"openai\"}";
    assert_eq!(meters.get(completed), 1.0);
    assert_eq!(meters.get("runs_active"), 0.0);
    assert_eq!(
        meters.get("upstream_requests_total{provider=\"openai\",model=\"test-model\"}"),
        1.0
    );
    assert_eq!(meters.get("upstream_inflight{provider=\"openai\"}"), 0.0);
    assert_eq!(
        meters.get("time_to_first_token_seconds_count{provider=\"openai\"}"),
        1.0
    );
    assert_eq!(meters.get("run_duration_seconds_count"), 1.0);
    for (direction, count) in [("input", &usage["input_tokens"]), ("output", &usage["output_tokens"])] {
        let series = format!("tokens_total{{provider=\"openai\",model=\"test-model\",direction=\"{direction}\"}}");
        assert_eq!(Some(meters.get(&series)), count.as_f64(), "{direction}");
    }
    let asked = "http_requests_total{route=\"/chat\",method=\"POST\",status=\"200\"}";
    assert_eq!(meters.get(asked), 1.0);
    assert_eq!(meters.get("store_up"), 1.0);
    gateway.stop().await;
}

#[tokio::test]
async fn the_public_door_knows_nothing_of_the_back_one() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let gateway = Gateway::with(&upstream).toml(WATCHED).start().await;
    for path in ["/metrics", "/debug", "/admin"] {
        assert_eq!(get(&gateway, path).await.body().await.status, 404, "{path}");
        let posted = post(&gateway, path, json!({})).await.body().await;
        assert_eq!(
            (posted.status, posted.json()["code"].as_str()),
            (404, Some("not_found")),
            "{path}"
        );
    }
    let admin = gateway.admin();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(&admin, path).await.body().await.status, 200, "{path}");
    }
    for path in ["/chat", "/sessions", "/agents", "/"] {
        assert_eq!(get(&admin, path).await.body().await.status, 404, "{path}");
    }
    let posted = post(&admin, "/metrics", json!({})).await.body().await;
    assert_eq!((posted.status, posted.headers.get("allow")), (405, Some("GET, HEAD")));
    let asked = Call::get("/metrics").header("accept", "application/openmetrics-text; version=1.0.0,text/plain;q=0.5");
    let open = asked.to(&admin).await.body().await;
    let media_type = open.headers.get("content-type").unwrap();
    assert_eq!(media_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.text().contains("# TYPE sluicegate_build info\n") && open.text().ends_with("# EOF\n"));
    let plain = get(&admin, "/metrics").await.body().await;
    // Its parsers know neither this type nor an end, and want a counter's whole name.
    assert!(plain.text().contains("# TYPE sluicegate_build_info gauge\n"));
    assert!(plain.text().contains("# TYPE sluicegate_http_requests_total counter\n"));
    assert!(!plain.text().contains("# EOF") && !plain.text().contains("# UNIT"));
    assert_eq!(
        plain.headers.get("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_taken_admin_port_stops_the_start_and_the_setting_is_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = taken.local_addr().unwrap();
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"{at}\"\n[store]\nurl = \"memory:\"\n[artifacts]\nurl = \"memory:\""
    );
    let settings = sluicegate::config::Settings::from_toml(&toml).unwrap();
    let refused = sluicegate::app::serve(settings).await.err().expect("a refusal");
    assert!(refused.message.contains("server.admin_listen"), "{refused}");
    assert!(refused.message.contains(&at.to_string()), "{refused}");
}

#[tokio::test]
async fn who_leaves_is_counted_by_what_it_had() {
    let (first, second) = (Gate::new("before the first word"), Gate::new("after it"));
    let script = Script::sse()
        .role()
        .wait(&first)
        .say("Hel")
        .wait(&second)
        .say("lo")
        .complete();
    let upstream = Upstream::always(script).await;
    let gateway = Gateway::with(&upstream).toml(WATCHED).start().await;
    let admin = gateway.admin();
    let ask = || Call::post("/chat/stream").json(&json!({"message": "Hi"}));
    let mut early = Connection::open(&gateway).await;
    early.send_raw("POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"message\":\"Hi\"}").await;
    first.reached().await;
    assert_eq!(Meters::of(&admin).await.get("streams_open{format=\"json\"}"), 1.0);
    assert_eq!(
        Meters::of(&admin).await.get("upstream_inflight{provider=\"openai\"}"),
        1.0
    );
    assert_eq!(Meters::of(&admin).await.get("runs_active"), 1.0);
    early.hang_up();
    let counted = async |series: &str| Meters::of(&admin).await.get(series);
    eventually("the early one to be counted", async || {
        (counted("client_disconnects_total{phase=\"ttft\"}").await == 1.0).then_some(())
    })
    .await;
    first.open();
    let mut late = ask().to(&gateway).await;
    second.reached().await;
    eventually("the first words", async || late.next_bytes().await.map(drop)).await;
    late.hang_up();
    eventually("the late one to be counted", async || {
        (counted("client_disconnects_total{phase=\"stream\"}").await == 1.0).then_some(())
    })
    .await;
    eventually("both runs to be cancelled", async || {
        let series = "runs_total{outcome=\"cancelled\",agent=\"assistant\",provider=\"openai\"}";
        (counted(series).await == 2.0).then_some(())
    })
    .await;
    let meters = Meters::of(&admin).await;
    assert_eq!(meters.get("upstream_inflight{provider=\"openai\"}"), 0.0);
    assert_eq!(meters.get("streams_open{format=\"text\"}"), 0.0);
    gateway.stop().await;
}

/// What the dashboard asks for: every name in its queries.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("sluicegate_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

#[tokio::test]
async fn the_dashboard_asks_for_what_there_is_and_the_names_are_kept() {
    let calls = Script::sse().role().send(openai::tool_delta(
        0,
        "call-1",
        "calculator",
        "{\"expression\":\"6*7\"}",
    ));
    let calls = calls.finish("tool_calls").usage(20, 5).done();
    let upstream = Upstream::answering(move |request| match request.number {
        1 => calls.clone(),
        2 => openai::answer(&["Hel", "lo"]),
        3 => Script::status(429, &[("retry-after", "0")], "{}"),
        4 => Script::status(400, &[], "{}"),
        5 => Script::sse().role().say("Hel").cut(),
        _ => Script::sse()
            .role()
            .say("Hel")
            .sleep(std::time::Duration::from_millis(20))
            .say("lo")
            .finish("stop")
            .end(),
    })
    .await;
    let redis = closed_port();
    let settings = format!(
        "{WATCHED}\n[run_log]\nurl = \"redis://{}\"\n[agents.assistant]\ntools = [\"calculator\"]\n[log]\notlp_endpoint = \"http://{}\"",
        redis.addr(),
        redis.addr()
    );
    let gateway = Gateway::with(&upstream).toml(&settings).start().await;
    for (path, message) in [
        ("/chat", "a"),
        ("/chat/stream", "b"),
        ("/chat/sse", "c"),
        ("/chat/stream", "d"),
    ] {
        post(&gateway, path, json!({"message": message})).await.body().await;
    }
    let twice = Call::get("/agents")
        .header("authorization", "Bearer a")
        .header("x-api-key", "b");
    assert_eq!(twice.to(&gateway).await.body().await.status, 400);
    let admin = gateway.admin();
    let text = eventually("all runs to be over", async || {
        let answer = get(&admin, "/metrics").await.body().await;
        let text = answer.text().to_owned();
        text.contains("sluicegate_runs_active 0\n").then_some(text)
    })
    .await;

    // Only these are there when something went wrong with the store itself.
    let rare = ["sluicegate_store_errors_total"];
    let known: BTreeSet<String> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next().map(str::to_owned))
        .chain(rare.map(str::to_owned))
        .collect();
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../deploy/grafana/sluicegate.json")).expect("a dashboard in JSON");
    let mut asked = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            asked.extend(names_in(target["expr"].as_str().expect("a query")));
        }
    }
    assert!(asked.len() > 25, "{asked:?}");
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty(), "asked for, and not there: {unknown:?}\nin\n{text}");
    let alerts: serde_json::Value =
        serde_saphyr::from_str(include_str!("../../deploy/prometheus/alerts.yml")).expect("alerts in YAML");
    let rules = alerts["groups"][0]["rules"].as_array().expect("rules");
    assert!(rules.len() > 8, "{rules:?}");
    for rule in rules {
        let names = names_in(rule["expr"].as_str().expect("an expression"));
        let unknown: Vec<_> = names.difference(&known).collect();
        assert!(unknown.is_empty(), "{}: {unknown:?}", rule["alert"]);
        assert!(
            !names.is_empty() || rule["expr"].as_str().unwrap().starts_with("up{"),
            "{}",
            rule["alert"]
        );
        for word in ["summary", "description"] {
            assert!(rule["annotations"][word].is_string(), "{}: no {word}", rule["alert"]);
        }
    }

    // Names and labels are what dashboards elsewhere rely on.
    let mut shapes = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels
            .trim_end_matches('}')
            .split("\",")
            .filter_map(|pair| pair.split('=').next());
        let labels: Vec<_> = labels.filter(|label| !label.is_empty()).collect();
        shapes.insert(format!("{name}{{{}}}", labels.join(",")));
    }
    let shapes: Vec<_> = shapes.into_iter().collect();
    insta::assert_snapshot!("names_and_labels", shapes.join("\n"));
    gateway.stop().await;
}

#[tokio::test]
async fn a_provider_that_falters_is_counted_by_what_it_did() {
    let upstream = Upstream::start([
        Script::status(429, &[("retry-after", "0")], "{}"),
        Script::status(500, &[], "{}"),
        openai::answer(&["Hi"]),
        Script::status(400, &[], "{}"),
        Script::sse().role().say("Hel").cut(),
    ])
    .await;
    let gateway = Gateway::with(&upstream).toml(WATCHED).start().await;
    for status in [200, 422, 502] {
        assert_eq!(
            post(&gateway, "/chat", json!({"message": "Hi"}))
                .await
                .body()
                .await
                .status,
            status
        );
    }
    let meters = Meters::of(&gateway.admin()).await;
    for (series, count) in [
        ("upstream_retries_total{provider=\"openai\",reason=\"429\"}", 1.0),
        ("upstream_retries_total{provider=\"openai\",reason=\"5xx\"}", 1.0),
        ("upstream_errors_total{provider=\"openai\",kind=\"client_error\"}", 1.0),
        ("upstream_requests_total{provider=\"openai\",model=\"test-model\"}", 3.0),
        (
            "runs_total{outcome=\"failed\",agent=\"assistant\",provider=\"openai\"}",
            2.0,
        ),
        ("upstream_inflight{provider=\"openai\"}", 0.0),
    ] {
        assert_eq!(meters.get(series), count, "{series}");
    }
    assert_eq!(meters.sum("upstream_errors_total"), 2.0);
    gateway.stop().await;
}

#[tokio::test]
async fn who_comes_back_is_counted_by_what_it_finds() {
    let gate = Gate::new("in the middle");
    let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate).say("lo").complete()).await;
    let gateway = Gateway::with(&upstream).toml(WATCHED).start().await;
    let keyed = || {
        Call::post("/runs")
            .json(&json!({"message": "Hi"}))
            .header("idempotency-key", "one")
    };
    let run = keyed().to(&gateway).await.expect(202).await.body().await.json()["run_id"]
        .as_str()
        .unwrap()
        .to_owned();
    keyed().to(&gateway).await.expect(202).await;
    gate.reached().await;
    let events = |after: &str| get_events(&run, after);
    let going_on = events(":0").to(&gateway).await.expect(200).await;
    gate.open();
    going_on.body().await;
    assert_eq!(events(":0").to(&gateway).await.body().await.status, 200);
    let strange = "01890000-0000-7000-8000-000000000000";
    assert_eq!(get_events(strange, ":0").to(&gateway).await.body().await.status, 404);
    let meters = Meters::of(&gateway.admin()).await;
    assert_eq!(meters.get("resumes_total{how=\"hit\"}"), 1.0);
    assert_eq!(meters.get("resumes_total{how=\"finished\"}"), 1.0);
    assert_eq!(meters.get("resumes_total{how=\"unknown\"}"), 1.0);
    assert_eq!(meters.get("idempotent_hits_total"), 1.0);
    assert_eq!(meters.get("runs_finished_kept"), 1.0);
    assert!(meters.get("log_memory_bytes") > 0.0);
    gateway.stop().await;
}

fn get_events(run: &str, after: &str) -> Call {
    Call::get(&format!("/runs/{run}/events")).header("last-event-id", &format!("{run}{after}"))
}

#[tokio::test]
async fn a_gateway_without_its_relay_is_ready_and_says_so() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let redis = closed_port();
    let settings = format!("{WATCHED}\n[run_log]\nurl = \"redis://{}\"", redis.addr());
    let gateway = Gateway::with(&upstream).toml(&settings).start().await;
    let ready = get(&gateway, "/readyz").await.body().await;
    assert_eq!(ready.status, 200);
    let mut ready = ready.json();
    let loaded_at = ready["loaded_at"].take();
    assert!(
        loaded_at
            .as_str()
            .is_some_and(|at| at.parse::<jiff::Timestamp>().is_ok())
    );
    assert_eq!(
        ready,
        json!({"status": "ready", "store": "ok", "run_log": "unreachable", "generation": 1, "loaded_at": null})
    );
    let meters = Meters::of(&gateway.admin()).await;
    assert_eq!((meters.get("relay_up"), meters.get("store_up")), (0.0, 1.0));
    gateway.stop().await;
}

/// B081, and the line that every run has.
#[tokio::test]
async fn every_line_of_the_log_is_one_object_whatever_clients_say() {
    let forged = "x\n{\"level\":\"INFO\",\"message\":\"forged\"}\r\n\u{1b}[31mred\u{7}";
    let mut gateway = Process::start(
        &[
            ("SLUICEGATE__LOG__FORMAT", "json"),
            ("SLUICEGATE__LOG__FILTER", "debug,hyper=off,sqlx=off"),
        ],
        &[],
    )
    .await;
    let ask = Call::post("/chat").json(&json!({"message": forged, "metadata": {"a": forged}, "user_id": "ada"}));
    let ask = ask.header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let answer = ask.to(&gateway).await.expect(200).await.body().await;
    let run_id = answer.json()["run_id"].as_str().unwrap().to_owned();
    get(&gateway, "/%0A%7B%22forged%22%3A1%7D%1b[31m?x=%0Aforged")
        .await
        .body()
        .await;
    gateway.logged("a run ended").await;
    gateway.terminate().await;
    gateway.wait_exit(std::time::Duration::from_secs(10)).await;
    let log = gateway.log();
    let mut ends = Vec::new();
    for line in log.lines() {
        let told: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(told["timestamp"].is_string() && told["level"].is_string(), "{line}");
        assert!(!line.contains('\u{1b}'), "{line}");
        assert_ne!(told["message"], "forged");
        if told["event"] == "run.end" {
            ends.push(told);
        }
    }
    assert_eq!(ends.len(), 1, "{log}");
    let end = &ends[0];
    assert_eq!(end["run_id"], *run_id);
    assert_eq!(end["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    for (field, value) in [
        ("status", "completed"),
        ("agent", "assistant"),
        ("principal", "anonymous"),
        ("model", "demo/guide"),
    ] {
        assert_eq!(end[field], value, "{end}");
    }
    for field in ["duration_ms", "first_token_ms", "input_tokens", "output_tokens"] {
        assert!(end[field].is_number(), "{field} in {end}");
    }
    assert!(end["session_id"].is_string(), "{end}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_counted_when_it_is_cut() {
    let flood = openai::text(&"x".repeat(8 << 10));
    let script = Script::sse()
        .role()
        .repeat(flood, std::time::Duration::ZERO, 400)
        .finish("stop")
        .done();
    let upstream = Upstream::always(script).await;
    let settings = "[server]\nadmin_listen = \"127.0.0.1:0\"\nwrite_timeout = \"300ms\"";
    let gateway = Gateway::with(&upstream).toml(settings).start().await;
    let mut client = Connection::open_narrow(&gateway).await;
    let ask = "{\"message\":\"Hi\"}";
    let head = "POST /chat/stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 16";
    client.send_raw(format!("{head}\r\n\r\n{ask}")).await;
    let admin = gateway.admin();
    eventually("the slow client to be counted", async || {
        (Meters::of(&admin).await.get("slow_clients_total") == 1.0).then_some(())
    })
    .await;
    gateway.stop().await;
}

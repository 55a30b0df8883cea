//! What those who run the gateway see of it: the meters, on a listener of their own.
use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::json;

use crate::house::{Call, Connection, Gate, Gateway, Script, Upstream, eventually, get, openai, post};

/// The meters at a moment: every series with its value.
pub(crate) struct Meters(BTreeMap<String, f64>);

impl Meters {
    /// Asks an admin listener.
    pub(crate) async fn of(admin: &SocketAddr) -> Self {
        let answer = get(admin, "/metrics").await.body().await;
        assert_eq!(answer.status, 200);
        Self::read(answer.text())
    }

    fn read(text: &str) -> Self {
        let mut all = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            let before = all.insert(series.to_owned(), value.parse().expect("a number"));
            assert!(before.is_none(), "{series} twice");
        }
        assert!(text.ends_with("# EOF\n"));
        Self(all)
    }

    /// The value of a series; 0 if it is not there.
    pub(crate) fn get(&self, series: &str) -> f64 {
        self.0.get(&format!("sluicegate_{series}")).copied().unwrap_or(0.0)
    }
}

const WATCHED: &str = "[server]\nadmin_listen = \"127.0.0.1:0\"";

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
    let plain = get(&admin, "/metrics").await.body().await;
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

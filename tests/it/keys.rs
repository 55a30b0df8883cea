//! Who has a key may call, as the one whose key it is, and sees nothing of anybody else.

use serde_json::{Value, json};
use sluicegate::{chat::ArtifactId, http};

use crate::house::{
    Call, Connection, Gate, Gateway, Place, Process, Response, Script, Upstream, gateway::Recipe, get, openai, post,
};

const ALICE: &str = "alice-canary-7f3a";
const MALLORY: &str = "mallory-canary-7f3a";

/// A gateway that knows Alice and Mallory.
fn of_two(upstream: &impl Place) -> Recipe {
    let tools = "[agents.assistant]\ntools = [\"write_file\"]";
    Gateway::with(upstream)
        .toml(tools)
        .key("alice", ALICE, "")
        .key("mallory", MALLORY, "")
}

/// Asks `POST /chat` with this key.
async fn chat(place: &impl Place, key: &str, body: Value) -> Response {
    Call::post("/chat").json(&body).key(key).to(place).await
}

#[tokio::test]
async fn every_route_but_the_public_ones_asks_for_a_key() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let gateway = of_two(&upstream).start().await;
    let public = ["/healthz", "/readyz", "/openapi.yaml", "/openapi.json", "/docs"];
    for route in http::routes() {
        let path = route
            .path
            .replace("{run_id}", "x")
            .replace("{session_id}", "x")
            .replace("{artifact_id}", "x");
        let answer = Call::new(route.method.as_str(), &path).to(&gateway).await;
        if public.contains(&route.path) {
            assert_eq!(answer.status, 200, "{path}");
            continue;
        }
        assert_eq!(answer.status, 401, "{} {path}", route.method);
        assert_eq!(answer.header("www-authenticate"), "Bearer");
        assert_eq!(answer.problem().await, "auth_missing", "{path}");
    }
    assert_eq!(upstream.calls(), 0);
}

#[tokio::test]
async fn what_is_not_a_key_gets_one_answer() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let gateway = of_two(&upstream)
        .key("gone", "gone-key", "expires = \"2020-01-01\"")
        .key("off", "off-key", "disabled = true")
        .start()
        .await;
    let long = format!("Bearer {}", "k".repeat(8 << 10));
    let (last, prefix) = (format!("Bearer {}b", &ALICE[..ALICE.len() - 1]), &ALICE[..6]);
    let wrong = [
        ("Authorization", "Bearer"),
        ("Authorization", "Bearer "),
        ("Authorization", ""),
        ("Authorization", "Basic YTpi"),
        ("Authorization", "Token x"),
        ("Authorization", ALICE),
        ("Authorization", "Bearer nobody"),
        ("Authorization", &last),
        ("Authorization", &format!("Bearer {prefix}")),
        ("Authorization", &format!("Bearer {ALICE} {ALICE}")),
        ("Authorization", &format!("Bearer {ALICE},{MALLORY}")),
        ("Authorization", &format!("Bearer {}", ALICE.to_uppercase())),
        ("Authorization", "Bearer ' OR 1=1--"),
        ("Authorization", "Bearer %"),
        ("Authorization", "Bearer *"),
        ("Authorization", "Bearer {{7*7}}"),
        ("Authorization", "Bearer schlüssel"),
        ("Authorization", &long),
        ("Authorization", "Bearer gone-key"),
        ("Authorization", "Bearer off-key"),
        ("X-Api-Key", ""),
        ("X-Api-Key", "nobody"),
        ("X-Api-Key", &format!("Bearer {ALICE}")),
        ("X-Api-Key", "schlüssel"),
    ];
    let mut first: Option<(Vec<String>, String)> = None;
    for (name, value) in wrong {
        let call = Call::post("/chat").json(&json!({"message": "Hi"}));
        let answer = call
            .header("X-Request-Id", "same")
            .header(name, value)
            .to(&gateway)
            .await;
        let body = answer.expect(401).await.body().await;
        let told = body.headers.0.iter().map(|(name, value)| format!("{name}: {value}"));
        let told = told
            .filter(|line| !line.to_ascii_lowercase().starts_with("date:"))
            .collect();
        let told = (told, body.text().to_owned());
        assert!(
            told.1.contains("auth_invalid") && !told.1.contains("canary"),
            "{told:?}"
        );
        assert_eq!(*first.get_or_insert(told.clone()), told, "{name}: {value}");
    }
    for (name, value) in [
        ("Authorization", format!("Bearer {ALICE}")),
        ("Authorization", format!("bearer {ALICE}")),
        ("Authorization", format!("BEARER  {ALICE}")),
        ("X-Api-Key", ALICE.to_owned()),
    ] {
        let call = Call::post("/chat").json(&json!({"message": "Hi"}));
        call.header(name, &value)
            .to(&gateway)
            .await
            .expect(200)
            .await
            .json()
            .await;
    }
    let both = Call::post("/chat").json(&json!({"message": "Hi"})).key(ALICE);
    both.clone()
        .header("X-Api-Key", ALICE)
        .to(&gateway)
        .await
        .expect(200)
        .await
        .json()
        .await;
    let differ = both.header("X-Api-Key", MALLORY).to(&gateway).await.expect(400).await;
    assert_eq!(differ.problem().await, "auth_conflict");
    assert_eq!(upstream.calls(), 5);
}

#[tokio::test]
async fn a_second_request_on_a_connection_needs_its_own_key() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let gateway = of_two(&upstream).start().await;
    let body = r#"{"message":"Hi"}"#;
    let head = format!(
        "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    let mut connection = Connection::open(&gateway).await;
    let hidden = "GET /sessions HTTP/1.1\r\nHost: localhost\r\n\r\n";
    connection
        .send_raw(format!("{head}Authorization: Bearer {ALICE}\r\n\r\n{body}{hidden}"))
        .await;
    let (answer, connection) = connection
        .answer("the first")
        .await
        .expect(200)
        .await
        .body_and_connection()
        .await;
    assert_eq!(answer.json()["content"], "Hi");
    let second = connection.answer("the second").await.expect(401).await;
    assert_eq!(second.problem().await, "auth_missing");
}

/// All that Alice has: a finished run with a file, and one that goes on.
struct Treasure {
    finished: String,
    running: String,
    artifact: String,
    stream: Response,
    /// Lets the run that goes on end.
    gate: Gate,
}

async fn treasure(place: &impl Place, gate: Gate) -> Treasure {
    let answer = chat(place, ALICE, json!({"message": "A file", "session_id": "diary"})).await;
    let answer = answer.expect(200).await.json().await;
    let long = json!({"message": "Go on", "session_id": "novel", "on_disconnect": "continue"});
    let mut stream = Call::post("/chat/sse")
        .json(&long)
        .key(ALICE)
        .to(place)
        .await
        .expect(200)
        .await;
    stream.next_event_named("token").await;
    Treasure {
        finished: answer["run_id"].as_str().unwrap().to_owned(),
        artifact: answer["artifact_files"][0]["url"].as_str().unwrap().to_owned(),
        running: stream.header("x-run-id").to_owned(),
        stream,
        gate,
    }
}

fn upstream_scripts(gate: &Gate) -> Vec<Script> {
    let arguments = json!({"name": "secret.txt", "content": "Alice's"}).to_string();
    let file = openai::tool_delta(0, "call_0", "write_file", &arguments);
    vec![
        Script::sse()
            .role()
            .send(file)
            .finish("tool_calls")
            .usage(1, 2)
            .done()
            .end(),
        openai::answer(&["Done"]),
        Script::sse().role().say("Once ").wait(gate).say("more").complete(),
    ]
}

#[tokio::test]
async fn nobody_sees_or_touches_what_is_anothers() {
    let gate = Gate::new("Alice's run goes on");
    let mallorys = (0..3).map(|_| openai::answer(&["Mine"]));
    let upstream = Upstream::start(upstream_scripts(&gate).into_iter().chain(mallorys)).await;
    let gateway = of_two(&upstream).start().await;
    let alice = treasure(&gateway, gate).await;
    let (ghost, no_file) = (
        "01890000-0000-7000-8000-000000000000",
        format!("/artifacts/{}", ArtifactId::generate()),
    );

    // What Alice has, and what nobody has, look the same: status, headers and body.
    let pairs = [&alice.finished, &alice.running].into_iter().flat_map(|run| {
        [
            ("GET", format!("/runs/{run}"), format!("/runs/{ghost}")),
            ("POST", format!("/runs/{run}/cancel"), format!("/runs/{ghost}/cancel")),
            ("GET", format!("/runs/{run}/events"), format!("/runs/{ghost}/events")),
            (
                "GET",
                format!("/runs/{run}/events?last_event_id={run}:0"),
                format!("/runs/{ghost}/events?last_event_id={ghost}:0"),
            ),
            (
                "GET",
                format!("/chat/sse?last_event_id={run}:0"),
                format!("/chat/sse?last_event_id={ghost}:0"),
            ),
            (
                "POST",
                format!("/chat/sse?last_event_id={run}:0"),
                format!("/chat/sse?last_event_id={ghost}:0"),
            ),
        ]
    });
    let sessions = ["diary", "novel"].into_iter().flat_map(|session| {
        [
            ("GET", format!("/sessions/{session}"), "/sessions/nothing".to_owned()),
            (
                "GET",
                format!("/sessions/{session}/messages"),
                "/sessions/nothing/messages".to_owned(),
            ),
        ]
    });
    let files = [
        ("GET", alice.artifact.clone(), no_file.clone()),
        ("HEAD", alice.artifact.clone(), no_file),
    ];
    for (method, hers, nobodys) in pairs.chain(sessions).chain(files) {
        let mut told = Vec::new();
        for path in [&hers, &nobodys] {
            let call = Call::new(method, path).header("X-Request-Id", "same").key(MALLORY);
            let call = if method == "POST" {
                call.json(&json!({"message": "x"}))
            } else {
                call
            };
            let body = call.to(&gateway).await.body().await;
            let headers = body
                .headers
                .0
                .iter()
                .filter(|(name, _)| !name.eq_ignore_ascii_case("date"));
            told.push((body.status, headers.cloned().collect::<Vec<_>>(), body.bytes));
        }
        assert_eq!(told[0].0, 404, "{method} {hers}");
        assert_eq!(told[0], told[1], "{method} {hers}");
    }
    let all = Call::get("/sessions").key(MALLORY).to(&gateway).await.json().await;
    assert_eq!(all["sessions"], json!([]));

    // The same name is another session, also to be erased.
    let mine = chat(&gateway, MALLORY, json!({"message": "Hello", "session_id": "diary"})).await;
    let mine = mine.expect(200).await.json().await;
    assert_eq!(mine["messages"][0]["content"], "Hello");
    let seen = &upstream.requests()[3].json["messages"];
    assert!(!seen.to_string().contains("A file"), "{seen}");
    for session in ["diary", "novel", "nothing"] {
        let erased = Call::new("DELETE", &format!("/sessions/{session}"))
            .key(MALLORY)
            .to(&gateway)
            .await;
        assert_eq!(erased.status, 204, "{session}");
    }

    // The session that Alice's run holds is not busy for Mallory, and cannot be interrupted.
    let other = json!({"message": "Mine", "session_id": "novel", "on_busy": "interrupt"});
    chat(&gateway, MALLORY, other).await.expect(200).await.json().await;

    // All of Alice's is as it was.
    alice.gate.open();
    let heard = alice.stream.transcript().await;
    assert_eq!(heard.text(), "Once more");
    for path in [
        &format!("/runs/{}", alice.finished),
        "/sessions/diary",
        "/sessions/novel/messages",
        &alice.artifact,
    ] {
        let answer = Call::get(path).key(ALICE).to(&gateway).await;
        assert_eq!(answer.status, 200, "{path}");
    }
    let status = Call::get(&format!("/runs/{}", alice.running))
        .key(ALICE)
        .to(&gateway)
        .await
        .json()
        .await;
    assert_eq!(status["status"], "completed");
}

#[tokio::test]
async fn an_idempotency_key_is_its_callers_own() {
    let upstream = Upstream::start([openai::answer(&["Alice's"]), openai::answer(&["Mallory's"])]).await;
    let gateway = of_two(&upstream).start().await;
    let ask = async |key: &str| {
        let call = Call::post("/chat")
            .json(&json!({"message": "Hi"}))
            .header("Idempotency-Key", "one");
        call.key(key).to(&gateway).await.expect(200).await.json().await
    };
    assert_eq!(ask(ALICE).await["content"], "Alice's");
    assert_eq!(ask(MALLORY).await["content"], "Mallory's");
    assert_eq!(ask(ALICE).await["content"], "Alice's");
    assert_eq!(upstream.calls(), 2);
}

#[tokio::test]
async fn two_keys_of_one_name_are_one_caller() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let gateway = of_two(&upstream).key("alice", "her-new-key", "").start().await;
    chat(&gateway, ALICE, json!({"message": "Hi", "session_id": "s"}))
        .await
        .expect(200)
        .await
        .json()
        .await;
    let known = Call::get("/sessions/s")
        .key("her-new-key")
        .to(&gateway)
        .await
        .expect(200)
        .await;
    assert_eq!(known.json().await["message_count"], 2);
}

#[tokio::test]
async fn a_key_asks_the_agents_that_are_its() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[agents.helper]\nmodel = \"openai/test-model\"\n[agents.secret]\nmodel = \"openai/test-model\"")
        .key("one", "one-key", "agents = [\"helper\"]")
        .key("some", "some-key", "agents = [\"h*\", \"assistant\"]")
        .start()
        .await;
    let ask = async |key: &str, agent: Option<&str>| {
        let body = agent.map_or(
            json!({"message": "Hi"}),
            |agent| json!({"message": "Hi", "agent": agent}),
        );
        let answer = chat(&gateway, key, body).await;
        match answer.status {
            200 => answer.json().await["agent"].as_str().unwrap().to_owned(),
            _ => answer.problem().await,
        }
    };
    for (key, agent, told) in [
        ("one-key", None, "forbidden"), // it is not the default
        ("one-key", Some("helper"), "helper"),
        ("one-key", Some("assistant"), "forbidden"),
        ("one-key", Some("secret"), "forbidden"),
        ("one-key", Some("nobody"), "forbidden"),
        ("some-key", None, "assistant"),
        ("some-key", Some("helper"), "helper"),
        ("some-key", Some("secret"), "forbidden"),
        ("some-key", Some("hn"), "agent_unknown"),
    ] {
        assert_eq!(ask(key, agent).await, told, "{key} {agent:?}");
    }
    let plain = Call::post("/chat").json(&json!({"message": "Hi", "agent": "secret"}));
    let refused = plain
        .header("X-Api-Key", "one-key")
        .to(&gateway)
        .await
        .expect(403)
        .await;
    assert_eq!(refused.problem_object().await["field"], "agent");
    let made = Call::post("/sessions")
        .json(&json!({"agent": "secret"}))
        .key("one-key")
        .to(&gateway)
        .await;
    assert_eq!(made.expect(403).await.problem().await, "forbidden");
    let seen = Call::get("/agents").key("some-key").to(&gateway).await.json().await;
    let names: Vec<_> = seen["agents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|agent| agent["name"].clone())
        .collect();
    assert_eq!(names, ["assistant", "helper"]);
    let by_event_source = Call::get("/chat/sse?message=Hi&agent=secret")
        .key("one-key")
        .to(&gateway)
        .await;
    assert_eq!(by_event_source.expect(403).await.problem().await, "forbidden");
}

/// F70: whatever a text talks the model into, a key that may not use a tool does not use it.
#[tokio::test]
async fn a_tool_that_a_key_may_not_use_is_refused_to_its_model() {
    let arguments = json!({"name": "x.txt", "content": "x"}).to_string();
    let asks = || {
        let calls = openai::tool_delta(0, "call_0", "write_file", &arguments);
        Script::sse()
            .role()
            .send(calls)
            .finish("tool_calls")
            .usage(1, 2)
            .done()
            .end()
    };
    let upstream = Upstream::start([asks(), openai::answer(&["No"]), asks(), openai::answer(&["Yes"])]).await;
    let gateway = Gateway::with(&upstream)
        .toml("[agents.assistant]\ntools = [\"calculator\", \"write_file\"]")
        .key("careful", "careful-key", "tools = [\"calculator\"]")
        .key("free", "free-key", "")
        .start()
        .await;
    let offered = |at: usize| {
        let request = upstream.requests()[at].json.clone();
        let tools = request["tools"].as_array().cloned().unwrap_or_default();
        tools
            .iter()
            .map(|tool| tool["function"]["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let told = chat(&gateway, "careful-key", json!({"message": "Delete"}))
        .await
        .expect(200)
        .await
        .json()
        .await;
    assert_eq!(offered(0), ["calculator"]);
    assert_eq!(
        (&told["tool_calls"][0]["ok"], &told["artifact_files"]),
        (&json!(false), &json!([]))
    );
    assert!(
        told["tool_calls"][0]["result"]
            .as_str()
            .unwrap()
            .contains("may not use"),
        "{told}"
    );
    let told = chat(&gateway, "free-key", json!({"message": "Write"}))
        .await
        .expect(200)
        .await
        .json()
        .await;
    assert_eq!(offered(2), ["calculator", "write_file"]);
    assert_eq!(told["tool_calls"][0]["ok"], true);
    let seen = Call::get("/agents").key("careful-key").to(&gateway).await.json().await;
    assert_eq!(seen["agents"][0]["tools"], json!(["calculator"]));
    let choice = json!({"message": "x", "tool_choice": {"name": "write_file"}});
    let refused = chat(&gateway, "careful-key", choice).await.expect(422).await;
    assert_eq!(refused.problem().await, "field_invalid");
}

#[tokio::test]
async fn with_keys_it_may_listen_to_the_world_by_any_name() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let world = "[server]\nlisten = \"0.0.0.0:0\"";
    let gateway = of_two(&upstream).toml(world).start().await;
    let place = std::net::SocketAddr::from(([127, 0, 0, 1], gateway.addr().port()));
    let ask = async |host: &str, key: Option<&str>| {
        let call = Call::post("/chat").json(&json!({"message": "Hi"})).header("Host", host);
        let call = key.into_iter().fold(call, Call::key);
        let answer = call.to(&place).await;
        (
            answer.status,
            answer.body().await.headers.get("access-control-allow-origin").is_some(),
        )
    };
    assert_eq!(ask("ai.example", Some(ALICE)).await, (200, false));
    assert_eq!(ask("ai.example", None).await, (401, false));
    let page = Call::get("/agents")
        .key(ALICE)
        .header("Origin", "http://localhost:3000")
        .to(&place)
        .await;
    assert_eq!(
        page.headers.get("access-control-allow-origin"),
        None,
        "no page is anybody's own any more"
    );

    let named = of_two(&upstream)
        .toml(world)
        .toml("[server]\ntrusted_hosts = [\"ai.example\"]")
        .start()
        .await;
    let place = std::net::SocketAddr::from(([127, 0, 0, 1], named.addr().port()));
    for (host, status) in [("ai.example", 200), ("localhost", 200), ("evil.example", 421)] {
        let call = Call::post("/chat")
            .json(&json!({"message": "Hi"}))
            .header("Host", host)
            .key(ALICE);
        assert_eq!(call.to(&place).await.status, status, "{host}");
    }
}

#[tokio::test]
async fn callers_without_a_key_are_admitted_beside_those_with_one_if_that_is_said() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let world = "[server]\nlisten = \"0.0.0.0:0\"\n[auth]\nallow_anonymous = true";
    let gateway = of_two(&upstream).toml(world).start().await;
    let place = std::net::SocketAddr::from(([127, 0, 0, 1], gateway.addr().port()));
    let anybody = Call::post("/chat").json(&json!({"message": "Hi"})).to(&place).await;
    anybody.expect(200).await.json().await;
    assert_eq!(
        get(&place, "/sessions").await.expect(403).await.problem().await,
        "forbidden"
    );
    let wrong = Call::get("/sessions").key("nobody").to(&place).await;
    assert_eq!(wrong.expect(401).await.problem().await, "auth_invalid");
    let hers = Call::get("/sessions").key(ALICE).to(&place).await.expect(200).await;
    assert_eq!(hers.json().await["sessions"], json!([]));
}

/// Behind a proxy on its own machine a gateway listens on loopback, and the world calls.
#[tokio::test]
async fn who_is_called_by_a_name_of_the_worlds_is_not_one_persons_own() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let named = Gateway::with(&upstream).toml("[server]\ntrusted_hosts = [\"ai.example\"]");
    let mixed = of_two(&upstream).toml("[auth]\nallow_anonymous = true");
    for recipe in [named, mixed] {
        let gateway = recipe.start().await;
        let ask = async |body: Value| post(&gateway, "/chat", body).await;
        let first = ask(json!({"message": "Hi"})).await.expect(200).await.json().await;
        let listed = get(&gateway, "/sessions").await.expect(403).await;
        assert_eq!(listed.problem().await, "forbidden");
        // A name that somebody else may think of as well.
        let chosen = ask(json!({"message": "Hi", "session_id": "mine"})).await;
        assert_eq!(chosen.expect(404).await.problem().await, "not_found");
        let made = post(&gateway, "/sessions", json!({"session_id": "mine"})).await;
        assert_eq!(made.expect(404).await.problem().await, "not_found");
        let mine = json!({"message": "Hi", "session_id": first["session_id"]});
        ask(mine).await.expect(200).await.json().await;
    }
    let own = Gateway::with(&upstream).start().await;
    get(&own, "/sessions").await.expect(200).await;
}

/// A proxy on the same machine calls from loopback, and often under a loopback name: its headers give it away.
#[tokio::test]
async fn without_keys_nobody_calls_through_a_proxy() {
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let headers = [
        ("Forwarded", "for=192.0.2.1"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Proto", "https"),
        ("x-forwarded-host", "ai.example"),
        ("X-Real-IP", "192.0.2.1"),
        ("Via", "1.1 proxy"),
    ];
    let named = "[server]\ntrusted_hosts = [\"ai.example\"]";
    for toml in ["", named] {
        let gateway = Gateway::with(&upstream).toml(toml).start().await;
        for (name, value) in headers {
            for call in [
                Call::get("/sessions"),
                Call::get("/docs"),
                Call::post("/chat").json(&json!({"message": "Hi"})),
            ] {
                let refused = call.header(name, value).to(&gateway).await.expect(403).await;
                let problem = refused.problem_object().await;
                assert_eq!(problem["code"], "forbidden", "{name}");
                let detail = problem["detail"].as_str().unwrap();
                for word in [&*name.to_ascii_lowercase(), "auth.keys", "auth.allow_anonymous"] {
                    assert!(detail.contains(word), "{detail}");
                }
            }
            // A probe learns nothing but a status.
            let probe = Call::get("/healthz").header(name, value);
            probe.to(&gateway).await.expect(200).await;
        }
        get(&gateway, "/agents").await.expect(200).await;
    }
    assert_eq!(upstream.calls(), 0);

    let open = Gateway::with(&upstream)
        .toml("[auth]\nallow_anonymous = true")
        .start()
        .await;
    let keyed = of_two(&upstream).start().await;
    for (name, value) in headers {
        let agents = Call::get("/agents").header(name, value);
        agents.clone().to(&open).await.expect(200).await;
        agents.key(ALICE).to(&keyed).await.expect(200).await;
        // Anybody may call, so nobody may see what all of them have.
        let sessions = Call::get("/sessions").header(name, value).to(&open).await;
        assert_eq!(sessions.expect(403).await.problem().await, "forbidden");
    }
}

#[tokio::test]
async fn keys_that_make_no_sense_stop_the_start() {
    let hash = "a".repeat(64);
    let key = |lines: &str| format!("[[auth.keys]]\n{lines}");
    for (toml, told) in [
        (key("name = \"a\""), "auth.keys[0].sha256 is missing"),
        (key("name = \"a\"\nsha256 = \"canary-7f3a\""), "auth.keys[0].sha256"),
        (
            key(&format!("name = \"a:b\"\nsha256 = \"{hash}\"")),
            "auth.keys[0].name",
        ),
        (
            key(&format!("name = \"anonymous\"\nsha256 = \"{hash}\"")),
            "auth.keys[0].name",
        ),
        (
            key(&format!("name = \"a\"\nsha256 = \"{hash}\"\nexpires = \"soon\"")),
            "auth.keys[0].expires",
        ),
        (
            key(&format!("name = \"a\"\nsha256 = \"{hash}\"\nrequests_per_minute = -1")),
            "requests_per_minute",
        ),
        (
            key(&format!("name = \"a\"\nsha256 = \"{hash}\"\nagent = [\"x\"]")),
            "agents",
        ),
        (
            format!(
                "{}\n{}",
                key(&format!("name = \"a\"\nsha256 = \"{hash}\"")),
                key(&format!("name = \"b\"\nsha256 = \"{hash}\""))
            ),
            "auth.keys[1].sha256: the same key twice",
        ),
    ] {
        let error = sluicegate::config::Settings::from_toml(&toml).unwrap_err().to_string();
        assert!(error.contains(told) && !error.contains("canary"), "{error}\nin\n{toml}");
    }
    for (more, told) in [
        ("agents = [\"nobody\"]", "nobody"),
        ("tools = [\"calculater\"]", "calculator"),
    ] {
        let toml = key(&format!("name = \"a\"\nsha256 = \"{hash}\"\n{more}"));
        let settings = sluicegate::config::Settings::from_toml(&toml).unwrap();
        let error = sluicegate::app::check(&settings).unwrap_err().message;
        assert!(error.contains("auth.keys: a: ") && error.contains(told), "{error}");
    }
}

#[tokio::test]
async fn a_key_is_made_printed_once_and_works_and_is_never_logged() {
    let made = tokio::process::Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    let made = { made }.args(["keys", "new", "--name", "web"]).output().await.unwrap();
    let text = String::from_utf8(made.stdout).unwrap();
    assert!(made.status.success(), "{text}");
    let key = text.lines().find(|line| line.starts_with("sluice_")).unwrap();
    let lines = &text[text.find("[[auth.keys]]").unwrap()..];
    let upstream = Upstream::always(openai::answer(&["Hi"])).await;
    let recipe = Gateway::with(&upstream).toml(lines).toml("[log]\nfilter = \"trace\"");
    let mut gateway: Process = recipe.spawn().await;
    let answer = chat(&gateway, key, json!({"message": "Hi"}))
        .await
        .expect(200)
        .await
        .json()
        .await;
    assert_eq!(answer["content"], "Hi");
    let wrong = Call::get(&format!("/agents?api_key={key}"))
        .to(&gateway)
        .await
        .expect(400)
        .await;
    assert_eq!(wrong.problem().await, "credential_in_url");
    gateway.terminate().await;
    gateway.wait_exit(std::time::Duration::from_secs(25)).await;
    let log = gateway.log();
    assert!(log.contains("who has a key may call: web"), "{log}");
    assert!(log.contains("principal=\"web\""), "{log}");
    assert!(!log.contains(key), "the key is in the log");
}

#[tokio::test]
async fn keys_come_from_the_environment_too() {
    let hashes = [ALICE, MALLORY].map(|key| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
        digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    });
    let env = [
        ("SLUICEGATE__AUTH__KEYS__0__NAME", "alice"),
        ("SLUICEGATE__AUTH__KEYS__0__SHA256", &hashes[0]),
        ("SLUICEGATE__AUTH__KEYS__1__NAME", "mallory"),
        ("SLUICEGATE__AUTH__KEYS__1__SHA256", &hashes[1]),
        ("SLUICEGATE__AUTH__KEYS__1__AGENTS", "nobody,assistant"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let told = std::process::Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .arg("check-config")
        .env_clear()
        .envs(env)
        .current_dir(&folder)
        .output()
        .unwrap();
    let told = String::from_utf8(told.stderr).unwrap();
    assert!(
        told.contains("auth.keys: mallory: there is no agent \"nobody\""),
        "{told}"
    );
    let gateway = Process::start(&env[..4], &[]).await;
    for key in [ALICE, MALLORY] {
        chat(&gateway, key, json!({"message": "Hi"}))
            .await
            .expect(200)
            .await
            .json()
            .await;
    }
    get(&gateway, "/agents").await.expect(401).await;
}

#[test]
fn a_key_for_nobody_is_not_made() {
    for name in ["", "a b", "anonymous", "a\"\nx", &"x".repeat(65)] {
        let made = std::process::Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["keys", "new", "--name", name])
            .output()
            .unwrap();
        let told = String::from_utf8(made.stderr).unwrap();
        assert!(
            !made.status.success() && made.stdout.is_empty() && told.contains("--name"),
            "{name:?}: {told}"
        );
    }
}

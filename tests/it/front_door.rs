//! What holds at the door for every request: ids, methods, origins, deadlines, connections that are used again.
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::house::{
    Call, Connection, Ending, Gate, Gateway, Place, Response, Script, Upstream, get, openai, post, soon,
};

const ID: &str = "01920000-0000-7000-8000-000000000001";

async fn house(toml: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let gateway = Gateway::with(&upstream).toml(toml).start().await;
    (upstream, gateway)
}

fn preflight(path: &str, origin: &str) -> Call {
    Call::new("OPTIONS", path)
        .header("Origin", origin)
        .header("Access-Control-Request-Method", "POST")
        .header("Access-Control-Request-Headers", &PAGE_HEADERS.join(", "))
}

/// Headers that pages and their libraries send, in order.
const PAGE_HEADERS: [&str; 13] = [
    "authorization",
    "baggage",
    "cache-control",
    "content-type",
    "idempotency-key",
    "last-event-id",
    "sentry-trace",
    "traceparent",
    "tracestate",
    "x-api-key",
    "x-request-id",
    "x-requested-with",
    "x-stainless-lang",
];

/// The words of a header that lists words, in lower case and in order.
fn words(answer: &Response, name: &str) -> Vec<String> {
    let mut words: Vec<String> = answer
        .headers
        .all(name)
        .iter()
        .flat_map(|value| value.split(','))
        .map(|word| word.trim().to_ascii_lowercase())
        .collect();
    words.sort();
    words
}

#[tokio::test]
async fn pages_of_ours_may_call_and_pages_elsewhere_may_not() {
    let (upstream, gateway) =
        house("[server]\ncors_allowed_origins = [\"https://app.example\", \"https://good.com\"]").await;
    for origin in [
        "http://localhost:5173",
        "http://127.0.0.1:3000",
        "http://localhost",
        "https://app.example",
    ] {
        for path in ["/chat", "/chat/sse", "/sessions/x", "/nowhere"] {
            let answer = preflight(path, origin).to(&gateway).await;
            assert!(matches!(answer.status, 200 | 204), "{origin} {path}: {}", answer.status);
            assert_eq!(answer.header("access-control-allow-origin"), origin);
            assert!(words(&answer, "vary").contains(&"origin".to_owned()));
            assert_eq!(answer.headers.get("access-control-allow-credentials"), None);
            assert_eq!(
                words(&answer, "access-control-allow-methods"),
                ["delete", "get", "post"]
            );
            let asked = words(&answer, "access-control-allow-headers");
            assert_eq!(asked, PAGE_HEADERS, "{origin} {path}");
        }
        let call = Call::post("/chat")
            .json(&json!({"message": "Hi"}))
            .header("Origin", origin);
        let answer = call.to(&gateway).await.expect(200).await;
        assert_eq!(answer.header("access-control-allow-origin"), origin);
        let exposed = ["retry-after", "x-request-id", "x-run-id", "x-session-id"];
        assert_eq!(words(&answer, "access-control-expose-headers"), exposed);
        // What is refused can be read too, or the page could not say why.
        let refused = Call::post("/chat")
            .json(&json!({"x": 1}))
            .header("Origin", origin)
            .to(&gateway)
            .await
            .expect(422)
            .await;
        assert_eq!(refused.header("access-control-allow-origin"), origin);
    }
    let mine = upstream.calls();
    for origin in [
        "https://evil.example",
        "null",
        "https://good.com.evil.com",
        "https://app.example.evil.com",
        "https://app.example:444",
        "http://app.example",
        "HTTPS://APP.EXAMPLE",
        "https://localhost:5173",
        "http://localhost.evil.example",
        "http://[::1]:5173",
        "*",
        "http://localhost@evil.example",
        "http://10.0.0.1:3000",
    ] {
        for call in [
            preflight("/chat", origin),
            Call::get("/agents").header("Origin", origin),
        ] {
            let answer = call.to(&gateway).await;
            assert!(matches!(answer.status, 200 | 204), "{origin}: {}", answer.status);
            assert_eq!(answer.headers.get("access-control-allow-origin"), None, "{origin}");
            assert!(words(&answer, "vary").contains(&"origin".to_owned()), "{origin}");
        }
    }
    assert_eq!(upstream.calls(), mine, "asking for leave costs nothing");
    let plain = Call::new("OPTIONS", "/chat").to(&gateway).await;
    assert!(matches!(plain.status, 200 | 204) && plain.headers.get("access-control-allow-origin").is_none());
}

#[tokio::test]
async fn every_answer_carries_the_id_of_its_request() {
    let (_upstream, gateway) = house("").await;
    let longest = "x".repeat(128);
    for id in ["a", "req-1.2_3", &longest] {
        for call in [
            Call::get("/agents"),
            Call::get("/nowhere"),
            Call::new("PUT", "/chat"),
            Call::get("/agents").header("Host", "evil.example"),
            Call::new("OPTIONS", "/chat"),
        ] {
            let answer = call.header("X-Request-Id", id).to(&gateway).await;
            assert_eq!(answer.header("x-request-id"), id);
            if answer.headers.get("content-type") == Some("application/problem+json") {
                assert_eq!(answer.problem_object().await["request_id"], id);
            }
        }
    }
    let mut made = std::collections::BTreeSet::new();
    let strange = ["", "a b", "a\"b", "\u{e9}", "a/b", "{}", "<x>", &"x".repeat(129)];
    for id in strange {
        let answer = Call::get("/agents").header("X-Request-Id", id).to(&gateway).await;
        let ours = answer.header("x-request-id").to_owned();
        assert!(ours != id && ours.len() == 36, "{id:?} became {ours:?}");
        made.insert(ours);
    }
    made.insert(get(&gateway, "/agents").await.header("x-request-id").to_owned());
    assert_eq!(made.len(), strange.len() + 1, "each request has an id of its own");
    let mut stream = Call::post("/chat/sse")
        .json(&json!({"message": "Hi"}))
        .header("X-Request-Id", "mine")
        .to(&gateway)
        .await;
    assert_eq!(stream.header("x-request-id"), "mine");
    assert_eq!(stream.next_event().await.event, "start");
}

#[tokio::test]
async fn a_method_that_is_not_for_a_path_is_told_those_that_are() {
    let (upstream, gateway) = house("").await;
    let run = format!("/runs/{ID}");
    let mut failed = Vec::new();
    for (path, allowed) in [
        ("/chat", "options post"),
        ("/chat/stream", "options post"),
        ("/chat/sse", "get options post"),
        ("/runs", "options post"),
        (run.as_str(), "get head options"),
        (&format!("{run}/events"), "get options"),
        (&format!("{run}/cancel"), "options post"),
        ("/sessions", "get head options post"),
        ("/sessions/x", "delete get head options"),
        ("/sessions/x/messages", "get head options"),
        ("/agents", "get head options"),
        ("/healthz", "get head options"),
        ("/readyz", "get head options"),
        ("/openapi.yaml", "get head options"),
        ("/openapi.json", "get head options"),
        ("/docs", "get head options"),
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "FOO"] {
            if allowed.split(' ').any(|word| word.eq_ignore_ascii_case(method)) {
                continue;
            }
            let answer = Call::new(method, path).to(&gateway).await;
            let told = (answer.status, words(&answer, "allow").join(" "));
            if told != (405, allowed.to_owned()) {
                failed.push(format!("{method} {path}: {told:?} and not {allowed:?}"));
            } else if method != "HEAD" {
                assert_eq!(answer.problem().await, "method_not_allowed");
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert_eq!(upstream.calls(), 0);
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let (_upstream, gateway) = house("").await;
    for path in [
        "/healthz",
        "/readyz",
        "/agents",
        "/docs",
        "/openapi.yaml",
        "/openapi.json",
        "/sessions",
    ] {
        let whole = get(&gateway, path).await;
        let (status, length) = (whole.status, whole.header("content-length").to_owned());
        let mut connection = Connection::open(&gateway).await;
        connection
            .send_raw(format!(
                "HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            ))
            .await;
        let mut answer = connection.answer(path).await;
        assert_eq!(
            (answer.status, answer.header("content-length")),
            (status, length.as_str()),
            "{path}"
        );
        answer.connection().closed().await; // without another byte
    }
}

#[tokio::test]
async fn the_gateway_says_what_it_is() {
    let (upstream, gateway) =
        house("[agents.assistant]\ndescription = \"Helps.\"\nallowed_models = [\"openai/*\"]").await;
    assert_eq!(
        get(&gateway, "/healthz").await.expect(200).await.json().await["status"],
        "ok"
    );
    assert_eq!(
        get(&gateway, "/readyz").await.expect(200).await.json().await["status"],
        "ready"
    );
    let agents = get(&gateway, "/agents").await.expect(200).await.json().await;
    let agent = &agents["agents"][0];
    assert_eq!(agents["agents"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&agent["name"], &agent["description"], &agent["model"], &agent["tools"]),
        (
            &json!("assistant"),
            &json!("Helps."),
            &json!("openai/test-model"),
            &json!([])
        )
    );
    let file = include_str!("../../openapi.yaml");
    let yaml = get(&gateway, "/openapi.yaml").await.expect(200).await;
    assert!(yaml.header("content-type").starts_with("application/yaml"));
    assert_eq!(yaml.body().await.text(), file);
    let json = get(&gateway, "/openapi.json").await.expect(200).await.json().await;
    assert_eq!(json, serde_saphyr::from_str::<Value>(file).unwrap());
    let page = get(&gateway, "/docs").await.expect(200).await;
    assert!(page.header("content-type").starts_with("text/html"));
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    let policy = page.header("content-security-policy").to_owned();
    assert!(policy.starts_with("default-src 'none'"));
    let page = page.body().await;
    // Its own script and style are known by their digests; nothing else of that kind runs.
    assert!(
        policy.contains("script-src 'sha256-") && !policy.contains("unsafe-inline"),
        "{policy}"
    );
    for (element, word) in [("script", "script-src"), ("style", "style-src")] {
        let (_, rest) = page.text().split_once(&format!("<{element}>")).unwrap();
        let inner = rest.split_once(&format!("</{element}>")).unwrap().0;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, inner.as_bytes());
        let digest = base64::engine::general_purpose::STANDARD.encode(digest.as_ref());
        assert!(
            policy.contains(&format!("{word} 'sha256-{digest}';")),
            "{element}: {policy}"
        );
        assert_eq!(page.text().matches(&format!("<{element}")).count(), 1, "one {element}");
    }
    for event in [" onclick=", " onload=", " style=", "javascript:"] {
        assert!(!page.text().contains(event), "{event}");
    }
    for foreign in ["src=\"http", "href=\"http", "url(http", "@import", "src=\"//"] {
        assert!(!page.text().contains(foreign), "/docs loads something: {foreign}");
    }
    assert_eq!(upstream.calls(), 0);
}

#[tokio::test]
async fn a_probe_may_call_by_any_name() {
    let (_upstream, gateway) = house("").await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            Call::get(path)
                .header("Host", "10.1.2.3:8080")
                .to(&gateway)
                .await
                .status,
            200
        );
    }
}

#[tokio::test]
async fn names_that_the_configuration_trusts_are_answered_to() {
    let (_upstream, gateway) = house("[server]\ntrusted_hosts = [\"ai.example\", \"b.example:8443\"]").await;
    for (host, status) in [
        ("ai.example", 200),
        ("AI.EXAMPLE:99", 200),
        ("b.example:8443", 200),
        ("b.example", 421),
        ("x.ai.example", 421),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("127.0.0.1", 200),
        ("127.0.0.1.nip.example", 421),
        ("0.0.0.0", 421),
    ] {
        let answer = Call::get("/agents").header("Host", host).to(&gateway).await;
        assert_eq!(answer.status, status, "{host}");
    }
}

#[tokio::test]
async fn a_get_that_costs_something_is_not_for_prefetchers_nor_for_other_sites() {
    let (upstream, gateway) = house("[server]\ncors_allowed_origins = [\"https://app.example\"]").await;
    let ask = |headers: &[(&str, &str)]| {
        headers
            .iter()
            .fold(Call::get("/chat/sse?message=Hi"), |call, (name, value)| {
                call.header(name, value)
            })
    };
    for refused in [
        &[("Sec-Purpose", "prefetch")][..],
        &[("Sec-Purpose", "prefetch;prerender")],
        &[("Sec-Purpose", "prefetch"), ("Sec-Fetch-Site", "same-origin")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "cross-site"), ("Origin", "https://evil.example")],
        &[("Sec-Fetch-Site", "cross-site"), ("Origin", "null")],
    ] {
        let answer = ask(refused).to(&gateway).await.expect(403).await;
        assert_eq!(answer.problem().await, "cross_site", "{refused:?}");
    }
    assert_eq!(upstream.calls(), 0);
    let welcome = [
        &[][..],
        &[("Sec-Fetch-Site", "none")],
        &[("Sec-Fetch-Site", "same-origin")],
        &[("Sec-Fetch-Site", "same-site")],
        &[("Sec-Fetch-Site", "cross-site"), ("Origin", "https://app.example")],
        &[("Sec-Fetch-Site", "cross-site"), ("Origin", "http://localhost:5173")],
    ];
    for headers in welcome {
        assert_eq!(
            ask(headers)
                .to(&gateway)
                .await
                .expect(200)
                .await
                .transcript()
                .await
                .text(),
            "Hello",
            "{headers:?}"
        );
    }
    assert_eq!(upstream.calls(), welcome.len());
}

/// Short patience: what is slow is told at once.
const HASTY: &str = "[server]\nheader_timeout = \"300ms\"\nidle_timeout = \"300ms\"\nbody_timeout = \"300ms\"";

#[tokio::test]
async fn who_says_nothing_or_dawdles_over_a_header_is_hung_up_on() {
    let (upstream, gateway) = house(HASTY).await;
    let mut silent = Connection::open(&gateway).await;
    let mut half = Connection::open(&gateway).await;
    half.send_raw("POST /chat HTTP/1.1\r\nHost: loc").await;
    let mut idle = get_kept(&gateway).await;
    let mut http2 = soon("a connection", TcpStream::connect(gateway.addr())).await.unwrap();
    http2.write_all(b"PRI * HTTP/2.0\r\n\r\nS").await.unwrap();
    silent.closed().await;
    // A status before the close is good manners; without one is allowed.
    if let Ok(answer) = half.try_answer("half a header").await {
        assert_eq!(answer.status, 408);
    }
    idle.closed().await;
    let mut told = Vec::new(); // its settings, perhaps
    let _ = soon("the end of half a preface", http2.read_to_end(&mut told)).await; // or a reset
    // One byte at a time, always in time for the next: the header as a whole is what has a deadline.
    let mut drip = Connection::open(&gateway).await;
    let begun = std::time::Instant::now();
    for byte in b"GET /agents HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
        .iter()
        .chain(std::iter::repeat_n(&b'x', 200))
    {
        drip.send_raw([*byte]).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        if begun.elapsed() > Duration::from_millis(900) {
            break;
        }
    }
    drip.send_raw("\r\n\r\n").await;
    match drip.try_answer("a dripped header").await {
        Ok(answer) => assert_eq!(answer.status, 408),
        Err(closed) => drop(closed),
    }
    assert_eq!(upstream.calls(), 0);
}

#[tokio::test]
async fn who_is_silent_first_and_dawdles_then_has_no_more_time_than_others() {
    let (upstream, gateway) = house("[server]\nheader_timeout = \"700ms\"\nidle_timeout = \"6s\"").await;
    let begun = std::time::Instant::now();
    let dawdlers = ["G", "PO", "P", "PRI * HTTP/2.0\r\n\r\nS"].map(async |first| {
        let mut client = soon("a connection", TcpStream::connect(gateway.addr())).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2700)).await;
        client.write_all(first.as_bytes()).await.unwrap();
        let mut told = Vec::new();
        let _ = soon("the end of a beginning", client.read_to_end(&mut told)).await; // or a reset
        begun.elapsed()
    });
    let closed = futures_util::future::join_all(dawdlers).await;
    let patience = Duration::from_millis(3300)..Duration::from_millis(5500);
    assert!(closed.iter().all(|after| patience.contains(after)), "{closed:?}");
    // Who sends nothing has longer: before the first request, and between two.
    let mut late = Connection::open(&gateway).await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    for _ in 0..2 {
        let answer = late.call(Call::get("/agents")).await.expect(200).await;
        late = answer.body_and_connection().await.1;
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    assert_eq!(late.call(Call::get("/agents")).await.status, 200);
    assert_eq!(upstream.calls(), 0);
}

/// A load balancer keeps its connections, and uses them again.
#[tokio::test]
async fn a_connection_without_requests_is_kept_longer_than_a_head_may_take() {
    let gate = Gate::new("the answer's end");
    let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate).say("lo").complete()).await;
    let timeouts = "[server]\nheader_timeout = \"300ms\"\nidle_timeout = \"2s\"";
    let gateway = Gateway::with(&upstream).toml(timeouts).start().await;
    let mut kept = Connection::open(&gateway).await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(900)).await;
        let answer = kept.call(Call::get("/agents")).await.expect(200).await;
        kept = answer.body_and_connection().await.1;
    }
    // An answer takes as long as it takes, and what comes meanwhile is no head.
    let mut answer = kept.call(Call::post("/chat/sse").json(&json!({"message": "Hi"}))).await;
    answer.next_event_named("token").await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    gate.open();
    assert_eq!(answer.transcript().await.text(), "Hello");
    let mut idle = get_kept(&gateway).await;
    let since = std::time::Instant::now();
    let closed = idle.closed().await.duration_since(since);
    assert!(closed >= Duration::from_millis(1800), "{closed:?}");
    // Over HTTP/2 as well; it is told that the connection ends.
    let tcp = soon("a connection", TcpStream::connect(gateway.addr())).await.unwrap();
    let (mut sender, connection) = soon("a handshake", h2::client::handshake(tcp)).await.unwrap();
    let since = std::time::Instant::now();
    let ended = tokio::spawn(async move { connection.await.map(|()| since.elapsed()) });
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(900)).await;
        let request = axum::http::Request::get(format!("http://{}/agents", gateway.addr()))
            .body(())
            .unwrap();
        sender = soon("a stream", sender.ready()).await.unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        assert_eq!(soon("an answer", response).await.unwrap().status(), 200);
    }
    let lasted = soon("the connection's end", ended)
        .await
        .unwrap()
        .expect("a graceful end");
    assert!(lasted >= Duration::from_millis(3600), "{lasted:?}");
}

/// A connection over which a request has gone well.
async fn get_kept(gateway: &Gateway) -> Connection {
    get(gateway, "/agents")
        .await
        .expect(200)
        .await
        .body_and_connection()
        .await
        .1
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let (upstream, gateway) = house(HASTY).await;
    let head = "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    for rest in [
        "Content-Length: 100\r\n\r\n",
        "Content-Length: 100\r\n\r\n{\"message\":",
        "Transfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"mes\r\n",
    ] {
        let mut connection = Connection::open(&gateway).await;
        connection.send_raw(format!("{head}{rest}")).await;
        let answer = connection.answer("a body that does not come").await.expect(408).await;
        let (body, mut connection) = answer.body_and_connection().await;
        assert_eq!(body.json()["code"], "request_timeout", "{rest:?}");
        connection.closed().await;
    }
    // Dripped: it is the whole body that has a deadline.
    let mut connection = Connection::open(&gateway).await;
    connection.send_raw(format!("{head}Content-Length: 1000\r\n\r\n")).await;
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(600) {
        connection.send_raw(" ").await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        connection
            .answer("a dripped body")
            .await
            .expect(408)
            .await
            .problem()
            .await,
        "request_timeout"
    );
    // Leave to send is given first, then the deadline holds.
    let mut connection = Connection::open(&gateway).await;
    connection
        .send_raw(format!("{head}Expect: 100-continue\r\nContent-Length: 16\r\n\r\n"))
        .await;
    let mut go_on = connection.answer("an expectation").await.expect(100).await;
    assert_eq!(go_on.next_bytes().await, None);
    let (_, connection) = go_on.body_and_connection().await;
    assert_eq!(
        connection.answer("silence").await.expect(408).await.problem().await,
        "request_timeout"
    );
    assert_eq!(upstream.calls(), 0);
}

#[tokio::test]
async fn a_body_that_was_announced_is_asked_for() {
    let (upstream, gateway) = house("").await;
    let mut connection = Connection::open(&gateway).await;
    let head = "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    connection
        .send_raw(format!("{head}Expect: 100-continue\r\nContent-Length: 16\r\n\r\n"))
        .await;
    let go_on = connection.answer("an expectation").await.expect(100).await;
    let (_, mut connection) = go_on.body_and_connection().await;
    connection.send_raw(r#"{"message":"Hi"}"#).await;
    assert_eq!(connection.answer("the body").await.json().await["content"], "Hello");
    assert_eq!(upstream.calls(), 1);
    // Nobody is asked for a body that would be refused.
    for (lines, status) in [
        ("Expect: 100-continue\r\nContent-Length: 10000000", 413),
        (
            "Expect: 100-continue\r\nContent-Encoding: gzip\r\nContent-Length: 10",
            415,
        ),
    ] {
        let mut connection = Connection::open(&gateway).await;
        connection.send_raw(format!("{head}{lines}\r\n\r\n")).await;
        let first = connection.answer(lines).await;
        assert!(first.status == status || first.status == 100, "{}", first.status);
        if first.status == 100 {
            let (_, connection) = first.body_and_connection().await;
            assert_eq!(connection.answer(lines).await.status, status);
        }
    }
}

#[tokio::test]
async fn who_sends_too_much_gets_to_read_that_it_is_too_much() {
    let (upstream, gateway) = house("[server]\nmax_body = \"64KiB\"").await;
    let head = "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    // A sender that sends all before it reads, as most do: what it sends must be taken for long enough.
    for (what, rest) in [
        (
            "with a length",
            format!("Content-Length: 1500000\r\n\r\n{}", " ".repeat(1_500_000)),
        ),
        (
            "in chunks",
            format!(
                "Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
                format!("10000\r\n{}\r\n", " ".repeat(1 << 16)).repeat(23)
            ),
        ),
    ] {
        let mut connection = Connection::open(&gateway).await;
        connection.send_raw(format!("{head}{rest}")).await;
        let answer = connection.answer(what).await.expect(413).await;
        assert_eq!(answer.problem().await, "body_too_large", "{what}");
    }
    // As urllib does: far more than is taken, all of it before anything is read, and no other request after it.
    let mut connection = Connection::open(&gateway).await;
    let rest = format!(
        "Connection: close\r\nContent-Length: 9500000\r\n\r\n{}",
        " ".repeat(9_500_000)
    );
    connection.send_raw(format!("{head}{rest}")).await;
    let answer = connection.answer("9.5 MB").await.expect(413).await;
    assert_eq!(answer.problem().await, "body_too_large");
    // One that sends far too much reads it as well, before its connection is closed.
    let mut connection = Connection::open(&gateway).await;
    connection
        .send_raw(format!(
            "{head}Content-Length: 100000000\r\n\r\n{}",
            " ".repeat(1 << 20)
        ))
        .await;
    let answer = connection.answer("far too much").await.expect(413).await;
    let (body, mut connection) = answer.body_and_connection().await;
    assert_eq!(
        (&body.json()["code"], &body.ending),
        (&json!("body_too_large"), &Ending::Complete)
    );
    for _ in 0..64 {
        connection.send_raw(vec![b' '; 1 << 16]).await;
    }
    connection.closed().await;
    assert_eq!(upstream.calls(), 0);
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let (upstream, gateway) = house("").await;
    let mut connection = Connection::open(&gateway).await;
    for round in 0..3 {
        let answer = connection
            .call(Call::post("/chat").json(&json!({"message": "Hi"})))
            .await
            .expect(200)
            .await;
        connection = answer.body_and_connection().await.1;
        let refused = connection
            .call(Call::post("/chat").json(&json!({"x": round})))
            .await
            .expect(422)
            .await;
        connection = refused.body_and_connection().await.1;
        let text = connection
            .call(Call::post("/chat/stream").json(&json!({"message": "Hi"})))
            .await
            .expect(200)
            .await;
        let (body, next) = text.body_and_connection().await;
        assert_eq!((body.text(), &body.ending), ("Hello", &Ending::Complete));
        let events = next.call(Call::get("/chat/sse?message=Hi")).await.expect(200).await;
        let (body, next) = events.body_and_connection().await;
        assert!(body.text().ends_with("\n\n") && body.ending == Ending::Complete);
        connection = next;
    }
    assert_eq!(upstream.calls(), 9);
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_one_by_one_each_for_itself() {
    let (upstream, gateway) = house("").await;
    let mut connection = Connection::open(&gateway).await;
    let good = "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"message\":\"Hi\"}";
    let foreign = "GET /agents HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    let keyed = "GET /chat/sse?message=Hi&api_key=x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let last = "GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    connection.send_raw([good, foreign, good, keyed, last].concat()).await;
    let mut ids = Vec::new();
    for (status, told) in [
        (200, None),
        (421, Some("host_not_allowed")),
        (200, None),
        (400, Some("credential_in_url")),
        (404, Some("not_found")),
    ] {
        let answer = connection.answer("a request sent ahead").await.expect(status).await;
        ids.push(answer.header("x-request-id").to_owned());
        let (body, next) = answer.body_and_connection().await;
        assert_eq!(body.json()["code"].as_str(), told);
        connection = next;
    }
    connection.closed().await;
    ids.dedup();
    assert_eq!((ids.len(), upstream.calls()), (5, 2));
}

#[tokio::test]
async fn old_http_gets_what_it_can_understand() {
    let (upstream, gateway) = house("").await;
    let whole = Call::post("/chat")
        .json(&json!({"message": "Hi"}))
        .http10()
        .to(&gateway)
        .await
        .expect(200)
        .await;
    let length = whole.header("content-length").parse::<usize>().unwrap();
    let (body, mut connection) = whole.body_and_connection().await;
    assert_eq!((body.bytes.len(), &body.json()["content"]), (length, &json!("Hello")));
    connection.closed().await;

    for call in [
        Call::post("/chat/sse").json(&json!({"message": "Hi"})),
        Call::get("/chat/sse?message=Hi"),
    ] {
        let events = call.http10().to(&gateway).await.expect(200).await;
        assert_eq!(
            (
                events.headers.get("transfer-encoding"),
                events.headers.get("content-length")
            ),
            (None, None)
        );
        let events = events.transcript().await;
        assert_eq!(
            (events.text().as_str(), events.terminal().event.as_str()),
            ("Hello", "done")
        );
    }
    let calls = upstream.calls();
    let text = Call::post("/chat/stream")
        .json(&json!({"message": "Hi"}))
        .http10()
        .to(&gateway)
        .await
        .expect(505)
        .await;
    let problem = text.problem_object().await;
    assert_eq!(problem["code"], "http_version");
    assert!(
        problem["detail"].as_str().unwrap().contains("proxy_http_version 1.1"),
        "{problem}"
    );
    assert_eq!((calls, upstream.calls()), (3, 3));
}

#[tokio::test]
async fn a_stream_is_headed_as_the_contract_says_and_starts_before_the_model_does() {
    let gate = Gate::new("before the first byte");
    let upstream = Upstream::always(Script::raw().wait(&gate)).await;
    let gateway = Gateway::with(&upstream).start().await;
    let mut stream = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "s"}))
        .await
        .expect(200)
        .await;
    let start = stream.next_event().await;
    assert_eq!((start.event.as_str(), start.seq), ("start", 0));
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache, no-transform"),
        ("x-accel-buffering", "no"),
        ("x-session-id", "s"),
        ("x-run-id", &start.run_id),
    ] {
        assert_eq!(stream.header(name), value);
    }
    assert_eq!(
        (
            stream.headers.get("content-encoding"),
            stream.headers.get("retry-after")
        ),
        (None, None)
    );
    gate.open();
}

#[tokio::test]
async fn a_browser_at_the_root_is_led_to_the_page_and_others_are_not() {
    let (_upstream, gateway) = house("").await;
    let html = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    for method in ["GET", "HEAD"] {
        let answer = Call::new(method, "/").header("accept", html).to(&gateway).await;
        assert_eq!((answer.status, answer.header("location")), (303, "/docs"), "{method}");
    }
    for call in [
        Call::get("/"),
        Call::get("/").header("accept", "application/json"),
        Call::get("/nothing").header("accept", html),
        Call::post("/").json(&json!({})).header("accept", html),
    ] {
        assert_eq!(call.to(&gateway).await.expect(404).await.problem().await, "not_found");
    }
}

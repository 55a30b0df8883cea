//! What no client should send, and some do: each row has its answer, none of them costs a model call.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use base64::Engine as _;
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};
use sluicegate::error::ErrorCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::contract::Spec;
use crate::house::{
    Call, Connection, Gate, Gateway, Place, Process, Response, Script, Upstream, get, openai, post, soon,
};

/// What stands for a secret in what is sent: no answer may repeat it.
const CANARY: &str = "canary-7f3a";

/// How a request is to be answered.
#[derive(Clone, Copy, Debug)]
enum Says {
    /// With a problem of this status and code.
    Problem(u16, &'static str),
    /// With one of these statuses, from before the router, and a closed connection.
    Bare(&'static [u16]),
}

/// One request, to the byte, and its answer.
#[derive(Clone, Debug)]
struct Row {
    id: String,
    bytes: Vec<u8>,
    /// Whether the client says that this was all (FIN).
    fin: bool,
    says: Says,
}

fn row(id: impl Into<String>, bytes: impl Into<Vec<u8>>, status: u16, code: &'static str) -> Row {
    Row {
        id: id.into(),
        bytes: bytes.into(),
        fin: false,
        says: Says::Problem(status, code),
    }
}

fn bare(id: impl Into<String>, bytes: impl Into<Vec<u8>>, statuses: &'static [u16]) -> Row {
    Row {
        id: id.into(),
        bytes: bytes.into(),
        fin: false,
        says: Says::Bare(statuses),
    }
}

/// A request without a body.
fn ask(method: &str, path: &str, headers: &[&str]) -> Vec<u8> {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").into_bytes()
}

/// A request with a body of JSON.
fn send(path: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let length = format!("Content-Length: {}", body.as_ref().len());
    let headers = [headers, &["Content-Type: application/json", &length]].concat();
    [&ask("POST", path, &headers), body.as_ref()].concat()
}

/// `POST /chat` with this body.
fn chat(body: impl AsRef<[u8]>) -> Vec<u8> {
    send("/chat", &[], body)
}

/// `POST /chat` with one more field beside a good message.
fn field(name: &str, value: impl Into<Value>) -> Vec<u8> {
    let mut body = json!({"message": "Hi"});
    body[name] = value.into();
    chat(body.to_string())
}

/// The same with the value as it is spelled.
fn spelled(name: &str, value: &str) -> Vec<u8> {
    chat(format!(r#"{{"message":"Hi","{name}":{value}}}"#))
}

const GOOD: &str = r#"{"message":"Hi"}"#;

/// All rows, at the same time; every one that fails is told.
async fn every(place: SocketAddr, rows: Vec<Row>) {
    let total = rows.len();
    assert_eq!(
        rows.iter().map(|row| &row.id).collect::<BTreeSet<_>>().len(),
        total,
        "an id twice"
    );
    let outcomes = stream::iter(rows).map(async |row: Row| {
        let id = row.id.clone();
        let panic = AssertUnwindSafe(answered(place, row)).catch_unwind().await.err()?;
        let what = panic
            .downcast::<String>()
            .map_or_else(|_| "a panic".to_owned(), |what| *what);
        Some(format!("{id}: {}", what.chars().take(400).collect::<String>()))
    });
    let failed: Vec<String> = outcomes
        .buffer_unordered(16)
        .filter_map(async |failure| failure)
        .collect()
        .await;
    assert!(
        failed.is_empty(),
        "{} of {total} rows:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

/// One row.
async fn answered(place: SocketAddr, row: Row) {
    let mut connection = Connection::open(&place).await;
    connection.send_raw(&row.bytes).await;
    if row.fin {
        connection.half_close().await;
    }
    let head = row.bytes.starts_with(b"HEAD ");
    let answer = connection
        .try_answer(&row.id)
        .await
        .unwrap_or_else(|end| panic!("no answer: {end}"));
    if let Says::Problem(status, code) = row.says {
        let line = row.bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let told = Spec::read().tells_of(method, target, status, code);
        told.unwrap_or_else(|missing| panic!("{missing}"));
    }
    match row.says {
        Says::Problem(status, _) if head => {
            assert_eq!(answer.status, status);
            assert_eq!(answer.header("content-type"), "application/problem+json");
        }
        Says::Problem(status, code) => {
            let problem = refused(answer).await;
            assert_eq!(
                (problem["status"].as_u64(), problem["code"].as_str()),
                (Some(status.into()), Some(code)),
                "{problem}"
            );
        }
        Says::Bare(statuses) => {
            assert!(
                statuses.contains(&answer.status),
                "{} and not one of {statuses:?}",
                answer.status
            );
            let (body, mut connection) = answer.body_and_connection().await;
            assert!(
                !String::from_utf8_lossy(&body.bytes).contains(CANARY),
                "{:?}",
                body.bytes
            );
            connection.closed().await;
        }
    }
}

/// A refusal with all that belongs to one, and nothing of what was sent.
async fn refused(answer: Response) -> Value {
    let request_id = answer.header("x-request-id").to_owned();
    assert_eq!(answer.header("cache-control"), "no-store");
    let problem = answer.problem_object().await;
    assert_eq!(problem["type"], "about:blank");
    assert_eq!(problem["request_id"], request_id.as_str());
    assert!(
        problem["detail"].as_str().is_some_and(|text| text.ends_with('.')),
        "{problem}"
    );
    assert!(problem["retryable"].is_boolean(), "{problem}");
    let code = problem["code"].as_str().unwrap_or_default();
    let known = ErrorCode::ALL.iter().find(|known| known.as_str() == code);
    let known = known.unwrap_or_else(|| panic!("{code} is no code of the contract"));
    let (status, title) = sluicegate::http::error::status(*known);
    assert_eq!((&problem["status"], &problem["title"]), (&json!(status), &json!(title)));
    let text = problem.to_string();
    for secret in [CANARY, "/work", ".rs:", "panicked", "serde", "sqlx", "hyper"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    problem
}

/// A gateway whose upstream counts; what is not refused would be answered.
async fn house() -> (Upstream, Gateway) {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    (upstream, gateway)
}

/// Nothing ran: no session was made, nobody upstream was asked, and a good request still works.
async fn nothing_happened(upstream: &Upstream, gateway: &Gateway) {
    let sessions = get(gateway, "/sessions").await.json().await;
    assert_eq!(sessions["sessions"], json!([]), "a refused request began something");
    assert_eq!(
        upstream.calls(),
        0,
        "a refused request reached the provider: {:?}",
        upstream.requests()
    );
    let good = post(gateway, "/chat", json!({"message": "Hi"})).await.json().await;
    assert_eq!((good["content"].as_str(), upstream.calls()), (Some("Hello"), 1));
}

#[tokio::test]
async fn requests_that_are_badly_framed_are_refused_before_anything_runs() {
    let (upstream, gateway) = house().await;
    let long = |length: usize| "x".repeat(length);
    let head = |head: &str| format!("{head}\r\n\r\n").into_bytes();
    let post_with = |headers: &str| {
        head(&format!(
            "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
        ))
    };
    let chunks = |body: &str| [post_with("Transfer-Encoding: chunked"), body.as_bytes().to_vec()].concat();
    let mut rows = vec![
        row("B001 GET /chat", ask("GET", "/chat", &[]), 405, "method_not_allowed"),
        row("B002 HEAD /chat", ask("HEAD", "/chat", &[]), 405, "method_not_allowed"),
        row(
            "B002 HEAD /chat/sse",
            ask("HEAD", "/chat/sse?message=Hi", &[]),
            405,
            "method_not_allowed",
        ),
        row(
            "B002 HEAD /chat/stream",
            ask("HEAD", "/chat/stream", &[]),
            405,
            "method_not_allowed",
        ),
        row(
            "B002 HEAD events",
            ask("HEAD", "/runs/01920000-0000-7000-8000-000000000001/events", &[]),
            405,
            "method_not_allowed",
        ),
        row(
            "B004 CONNECT",
            head("CONNECT x:1 HTTP/1.1\r\nHost: x:1"),
            421,
            "host_not_allowed",
        ),
        row(
            "B004 CONNECT to us",
            head("CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1"),
            404,
            "not_found",
        ),
        row("B008 /chat/", send("/chat/", &[], GOOD), 404, "not_found"),
        row(
            "B010 HTTP/1.0 without a Host",
            head("POST /chat HTTP/1.0"),
            400,
            "host_invalid",
        ),
        row(
            "B011 HTTP/1.0 /chat/stream",
            String::from_utf8(send("/chat/stream", &[], GOOD))
                .unwrap()
                .replace("HTTP/1.1", "HTTP/1.0"),
            505,
            "http_version",
        ),
        bare("B012 HTTP/0.9", "GET /chat\r\n", &[400]),
        bare(
            "B012 HTTP/3.7",
            head("GET /healthz HTTP/3.7\r\nHost: localhost"),
            &[400, 505],
        ),
        bare("B012 garbage", head("\u{1}\u{2}SSH-2.0-x"), &[400]),
        row(
            "B013 no Host",
            head("POST /chat HTTP/1.1\r\nContent-Length: 0"),
            400,
            "host_invalid",
        ),
        row(
            "B013 two Hosts",
            post_with("Host: localhost\r\nContent-Length: 0"),
            400,
            "host_invalid",
        ),
        row(
            "B013 a host that is none",
            head("GET /agents HTTP/1.1\r\nHost: a/b?c#"),
            400,
            "host_invalid",
        ),
        row(
            "B013 an empty host",
            head("GET /agents HTTP/1.1\r\nHost:"),
            400,
            "host_invalid",
        ),
        row(
            "B014 somebody else's host",
            head(&format!("GET /agents HTTP/1.1\r\nHost: {CANARY}.example")),
            421,
            "host_not_allowed",
        ),
        row(
            "B014 a host that looks like ours",
            head("GET /agents HTTP/1.1\r\nHost: localhost.evil.example"),
            421,
            "host_not_allowed",
        ),
        bare(
            "B016 two lengths",
            post_with("Content-Length: 16\r\nContent-Length: 17"),
            &[400],
        ),
        // Taken for chunked once: the body is empty then.
        row(
            "B017 chunked twice",
            [post_with("Transfer-Encoding: chunked, chunked"), b"0\r\n\r\n".to_vec()].concat(),
            400,
            "json_invalid",
        ),
        bare("B017 xchunked", post_with("Transfer-Encoding: xchunked"), &[400, 501]),
        bare(
            "B017 chunked;q=1",
            post_with("Transfer-Encoding: chunked;q=1"),
            &[400, 501],
        ),
        bare(
            "B017 chunked with a tab",
            post_with("Transfer-Encoding: chunked\u{b}"),
            &[400, 501],
        ),
        row(
            "B018 a chunk of 2^68",
            chunks("FFFFFFFFFFFFFFFFF\r\n"),
            400,
            "body_incomplete",
        ),
        row("B018 a chunk of -1", chunks("-1\r\n"), 400, "body_incomplete"),
        row(
            "B018 an extension of 1 MB",
            chunks(&format!("1;{}", long(1 << 20))),
            400,
            "body_incomplete",
        ),
        row(
            "B018 a chunk that ends in a bare LF",
            chunks("10\n{\"message\":\"Hi\"}\n0\n\n"),
            400,
            "body_incomplete",
        ),
        bare("B019 a folded header", post_with("X-A: 1\r\n 2"), &[400]),
        bare("B019 a space before the colon", post_with("X-A : 1"), &[400]),
        bare("B019 NUL in a value", post_with("X-A: a\0b"), &[400]),
        bare("B019 CR in a value", post_with("X-A: a\rb"), &[400]),
        bare("B019 a name that is no token", post_with("X(A: 1"), &[400]),
        bare(
            "B020 101 headers",
            post_with((0..99).map(|n| format!("X-{n}: 1\r\n")).collect::<String>().trim_end()),
            &[431],
        ),
        row(
            "B021 a header of 40 KiB",
            post_with(&format!("X-A: {}{CANARY}", long(40 << 10))),
            431,
            "headers_too_large",
        ),
        bare(
            "B022 an address of 70 KB",
            ask("GET", &format!("/{}", long(70_000)), &[]),
            &[414, 431],
        ),
        bare(
            "B021 a header of 500 KiB",
            post_with(&format!("X-A: {}", long(500 << 10))),
            &[431],
        ),
        row(
            "B022 an address of 17 KiB",
            ask("GET", &format!("/chat/sse?message={}", long(17 << 10)), &[]),
            414,
            "uri_too_long",
        ),
        row(
            "B025 an expectation",
            send("/chat", &["Expect: x"], GOOD),
            417,
            "expectation",
        ),
        row(
            "B029 absolute form",
            send("http://evil.example/chat", &[], GOOD),
            421,
            "host_not_allowed",
        ),
        row(
            "B029 absolute form against the Host",
            ask("GET", "http://evil.example/chat/sse?message=Hi", &[]),
            421,
            "host_not_allowed",
        ),
        row(
            "B030 gzip",
            send("/chat", &["Content-Encoding: gzip"], b"\x1f\x8b\x08\0\0\0\0\0\0\x03"),
            415,
            "encoding_unsupported",
        ),
        row(
            "B030 gzip ten times",
            send(
                "/chat",
                &["Content-Encoding: gzip, gzip, gzip, gzip, gzip, gzip, gzip, gzip, gzip, gzip"],
                GOOD,
            ),
            415,
            "encoding_unsupported",
        ),
        row(
            "B030 gzip in a second header",
            send("/chat", &["Content-Encoding: identity", "Content-Encoding: gzip"], GOOD),
            415,
            "encoding_unsupported",
        ),
    ];
    for method in ["PUT", "DELETE", "PATCH", "TRACE", "FOO"] {
        rows.push(row(
            format!("B003 {method}"),
            ask(method, "/chat", &[]),
            405,
            "method_not_allowed",
        ));
    }
    for path in [
        "//chat",
        "/./chat",
        "/chat%2fstream",
        "/CHAT",
        "/chat;x",
        "/chat%00",
        "/chat/sse/",
        "/runs/",
        "/",
        "*",
        "/metrics",
        "/debug",
        "/admin",
    ] {
        rows.push(row(format!("B009 {path}"), send(path, &[], GOOD), 404, "not_found"));
    }
    for length in ["-1", "+5", "5,6", "0x5", "1000000000000000000000000000000", ""] {
        rows.push(bare(
            format!("B016 a length of {length:?}"),
            post_with(&format!("Content-Length: {length}")),
            &[400],
        ));
    }
    for (id, body) in [
        ("with a length", post_with("Content-Length: 100")),
        ("of chunks", chunks("5\r\n{\"mes")),
    ] {
        rows.push(Row {
            fin: true,
            ..row(
                format!("B026 a body {id} that breaks off"),
                body,
                400,
                "body_incomplete",
            )
        });
    }
    every(gateway.addr(), rows).await;
    nothing_happened(&upstream, &gateway).await;
}

#[tokio::test]
async fn bodies_that_are_not_a_request_are_refused_before_anything_runs() {
    let (upstream, gateway) = house().await;
    let mut rows = Vec::new();
    for (id, headers) in [
        ("no type", &[][..]),
        ("text", &["Content-Type: text/plain"]),
        ("a form", &["Content-Type: application/x-www-form-urlencoded"]),
        ("parts", &["Content-Type: multipart/form-data; boundary=x"]),
        ("JSON5", &["Content-Type: application/json5"]),
        ("UTF-16", &["Content-Type: application/json; charset=utf-16"]),
    ] {
        for path in ["/chat", "/chat/stream", "/chat/sse", "/runs", "/sessions"] {
            let head = ask("POST", path, &[headers, &["Content-Length: 16"]].concat());
            rows.push(row(
                format!("B048 {id} to {path}"),
                [&head, GOOD.as_bytes()].concat(),
                415,
                "media_type",
            ));
        }
    }
    for path in ["/chat", "/chat/stream", "/chat/sse", "/runs", "/sessions"] {
        rows.push(row(
            format!("B050 POST {path}"),
            send(path, &["Accept: application/xml"], GOOD),
            406,
            "not_acceptable",
        ));
    }
    for path in [
        "/chat/sse?message=Hi",
        "/sessions",
        "/sessions/none",
        "/sessions/none/messages",
        "/agents",
        "/runs/01920000-0000-7000-8000-000000000001",
        "/runs/01920000-0000-7000-8000-000000000001/events",
        "/healthz",
        "/readyz",
        "/openapi.yaml",
        "/openapi.json",
        "/docs",
    ] {
        rows.push(row(
            format!("B050 GET {path}"),
            ask("GET", path, &["Accept: application/xml"]),
            406,
            "not_acceptable",
        ));
    }
    let cancel = send(
        "/runs/01920000-0000-7000-8000-000000000001/cancel",
        &["Accept: application/xml"],
        "",
    );
    rows.push(row("B050 cancel", cancel, 406, "not_acceptable"));
    let not_json: &[(&str, &[u8])] = &[
        ("B051 nothing", b""),
        ("B051 spaces", b"   "),
        ("B053 truncated", br#"{"message":"canary-7f3a"#),
        ("B053 single quotes", b"{'message':'Hi'}"),
        ("B053 a trailing comma", br#"{"message":"Hi",}"#),
        ("B053 a comment", br#"{"message":"Hi"/* canary-7f3a */}"#),
        ("B053 NaN", br#"{"message":"Hi","settings":{"seed":NaN}}"#),
        ("B053 Infinity", br#"{"message":"Hi","settings":{"seed":Infinity}}"#),
        ("B054 two values", br#"{"message":"Hi"}{}"#),
        ("B054 a letter behind", br#"{"message":"Hi"}x"#),
        ("B055 not UTF-8", b"{\"message\":\"\xC3\x28\"}"),
        ("B055 overlong", b"{\"message\":\"\xC0\xAF\"}"),
        ("B055 a surrogate in bytes", b"{\"message\":\"\xED\xA0\x80\"}"),
        ("B056 a byte order mark", b"\xEF\xBB\xBF{\"message\":\"Hi\"}"),
        ("B056 UTF-16", b"\xFF\xFE{\0}\0"),
        ("B057 half a pair", br#"{"message":"\ud800"}"#),
        ("B057 a pair the wrong way round", br#"{"message":"\udc00\ud800"}"#),
        (
            "B057 half a pair in an unknown field",
            br#"{"message":"Hi","x":"\ud800"}"#,
        ),
        ("B062 a name twice", br#"{"message":"Hi","message":"Ho"}"#),
        (
            "B062 a name twice, spelled differently",
            br#"{"message":"Hi","m\u0065ssage":"Ho"}"#,
        ),
        (
            "B062 a name twice, deep inside",
            br#"{"message":"Hi","context":{"a":[{"b":1,"b":1}]}}"#,
        ),
        (
            "B072 a number without end",
            br#"{"message":"Hi","settings":{"temperature":1e999}}"#,
        ),
    ];
    for (id, body) in not_json {
        rows.push(row(*id, chat(body), 400, "json_invalid"));
    }
    let deep = "[".repeat(100_000);
    for name in ["message", "metadata", "context", "response_format", "nobody"] {
        rows.push(row(
            format!("B063 {name} without a bottom"),
            spelled(name, &deep),
            400,
            "json_invalid",
        ));
    }
    rows.push(row(
        "B063 objects without a bottom",
        chat(r#"{"a":"#.repeat(100_000)),
        400,
        "json_invalid",
    ));
    for body in ["null", "[]", "\"x\"", "42", "true"] {
        rows.push(row(format!("B052 {body}"), chat(body), 422, "field_invalid"));
    }
    let many: String = (0..1_000_000).map(|n| format!("\"k{n}\":0,")).collect();
    rows.push(row(
        "B064 a million keys",
        chat(format!("{{{many}\"message\":\"Hi\"}}")),
        413,
        "body_too_large",
    ));
    let list = format!("[{}0]", "0,".repeat(999_999));
    rows.push(row("B064 a million elements", chat(&list), 422, "field_invalid"));
    rows.push(row(
        "B064 a million stops",
        chat(format!(r#"{{"message":"Hi","settings":{{"stop":{list}}}}}"#)),
        422,
        "field_invalid",
    ));
    rows.push(row("B065 10 MB", chat(vec![b' '; 10_000_000]), 413, "body_too_large"));
    let chunk = format!("4000\r\n{}\r\n", " ".repeat(0x4000)).repeat(640);
    let chunked = ask(
        "POST",
        "/chat",
        &["Content-Type: application/json", "Transfer-Encoding: chunked"],
    );
    rows.push(row(
        "B066 10 MB in chunks",
        [&chunked[..], chunk.as_bytes(), b"0\r\n\r\n"].concat(),
        413,
        "body_too_large",
    ));
    let told = ask(
        "POST",
        "/chat",
        &["Content-Type: application/json", "Content-Length: 10000000000"],
    );
    rows.push(row(
        "B067 10 GB, and one byte of it",
        [&told[..], b"{"].concat(),
        413,
        "body_too_large",
    ));
    every(gateway.addr(), rows).await;
    nothing_happened(&upstream, &gateway).await;
}

#[tokio::test]
async fn fields_that_are_wrong_are_refused_before_anything_runs() {
    let (upstream, gateway) = house().await;
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
        rows.push(row(
            format!("B071 {name} {value}"),
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
    every(gateway.addr(), rows).await;
    nothing_happened(&upstream, &gateway).await;
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
    nothing_happened(&upstream, &gateway).await;
}

#[tokio::test]
async fn queries_headers_and_paths_that_are_wrong_are_refused_before_anything_runs() {
    let (upstream, gateway) = house().await;
    let id = "01920000-0000-7000-8000-000000000001";
    let mut rows = vec![
        row(
            "B038 two Authorizations",
            send("/chat", &["Authorization: Bearer a", "Authorization: Bearer b"], GOOD),
            400,
            "auth_conflict",
        ),
        row(
            "B038 two credentials that differ",
            send(
                "/chat",
                &[&format!("Authorization: Bearer {CANARY}"), "X-Api-Key: b"],
                GOOD,
            ),
            400,
            "auth_conflict",
        ),
        row(
            "B045 cross-site",
            ask("GET", "/chat/sse?message=Hi", &["Sec-Fetch-Site: cross-site"]),
            403,
            "cross_site",
        ),
        row(
            "B045 cross-site, from a foreign page",
            ask(
                "GET",
                "/chat/sse?message=Hi",
                &["Sec-Fetch-Site: cross-site", "Origin: https://evil.example"],
            ),
            403,
            "cross_site",
        ),
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
    for name in ["api_key", "API_KEY", "apikey", "access_token", "token", "authorization"] {
        rows.push(row(
            format!("B039 {name}"),
            send(&format!("/chat?{name}={CANARY}"), &[], GOOD),
            400,
            "credential_in_url",
        ));
        rows.push(row(
            format!("B039 {name} in GET"),
            ask("GET", &format!("/chat/sse?message=Hi&{name}={CANARY}"), &[]),
            400,
            "credential_in_url",
        ));
    }
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
    // Unknown, foreign and impossible: the same 404 (B042, B043).
    for (method, path) in [
        ("GET", format!("/runs/{id}")),
        ("GET", format!("/runs/{id}/events")),
        ("POST", format!("/runs/{id}/cancel")),
        ("GET", "/runs/x".into()),
        ("GET", "/runs/%FF".into()),
        ("GET", "/runs/..%2f".into()),
        ("GET", format!("/runs/{id}%00")),
        ("GET", format!("/runs/{}", id.to_uppercase().replace('0', "A"))),
        ("POST", "/runs/x/cancel".into()),
        ("GET", "/runs/%C3%28/events".into()),
        ("GET", "/sessions/none".into()),
        ("GET", "/sessions/none/messages".into()),
        ("GET", "/sessions/a%2fb".into()),
        ("GET", "/sessions/%FF".into()),
        ("GET", "/sessions/%ff/messages".into()),
        ("GET", "/artifacts/..%2f..%2fetc%2fpasswd".into()),
        ("GET", "/artifacts/%252e%252e/etc/passwd".into()),
        ("GET", "/tickets".into()),
    ] {
        rows.push(row(
            format!("B042 {method} {path}"),
            ask(method, &path, &[]),
            404,
            "not_found",
        ));
    }
    for path in ["/chat/sse", &format!("/runs/{id}/events")] {
        rows.push(row(
            format!("B043 {path}"),
            ask("GET", path, &[&format!("Last-Event-ID: {id}:0")]),
            404,
            "not_found",
        ));
    }
    rows.push(row(
        "B043 POST",
        send("/chat/sse", &[&format!("Last-Event-ID: {id}:0")], GOOD),
        404,
        "not_found",
    ));
    rows.push(row(
        "B043 in the query",
        ask("GET", &format!("/chat/sse?last_event_id={id}:0"), &[]),
        404,
        "not_found",
    ));
    every(gateway.addr(), rows).await;
    nothing_happened(&upstream, &gateway).await;
}

#[tokio::test]
async fn what_is_not_there_and_what_cannot_be_look_the_same() {
    let (_upstream, gateway) = house().await;
    let mut bodies = BTreeSet::new();
    for path in [
        "/runs/01920000-0000-7000-8000-000000000001",
        "/runs/x",
        "/sessions/none",
        "/sessions/none/messages",
        "/nowhere",
    ] {
        let mut problem = refused(get(&gateway, path).await).await;
        problem["request_id"].take();
        bodies.insert(problem.to_string());
    }
    assert_eq!(bodies.len(), 1, "{bodies:#?}");
}

/// What is taken at its edge, and what is refused one step beyond it.
#[tokio::test]
async fn every_limit_is_where_the_contract_puts_it() {
    let (upstream, gateway) = house().await;
    let (mut failed, mut taken) = (Vec::new(), 0);
    let nested = |depth: usize| {
        // The body and `context` are two of them.
        let (open, close) = ("[".repeat(depth - 2), "]".repeat(depth - 2));
        spelled("context", &format!(r#"{{"a":{open}1{close}}}"#))
    };
    let hollow = |depth: usize| {
        let (open, close) = ("[".repeat(depth - 3), "]".repeat(depth - 3));
        spelled("context", &format!(r#"{{"a":{open}{{}}{close}}}"#))
    };
    let context = |bytes: usize| field("context", json!({"a": "x".repeat(bytes - r#"{"a":""}"#.len())}));
    let pairs = |count: usize| {
        field(
            "metadata",
            (0..count)
                .map(|n| (n.to_string(), json!("v")))
                .collect::<serde_json::Map<_, _>>(),
        )
    };
    let image = |bytes: usize| {
        let data = base64::engine::general_purpose::STANDARD.encode(vec![7; bytes]);
        field("attachments", json!([{"media_type": "image/png", "data": data}]))
    };
    let images = |count: usize| {
        field(
            "attachments",
            vec![json!({"media_type": "image/gif", "data": "aGk="}); count],
        )
    };
    let padded = |bytes: usize| [GOOD.as_bytes(), &vec![b' '; bytes - GOOD.len()]].concat();
    let in_chunks = |bytes: usize| {
        let head = ask(
            "POST",
            "/chat",
            &["Content-Type: application/json", "Transfer-Encoding: chunked"],
        );
        let body = padded(bytes);
        let chunks = body
            .chunks(1 << 16)
            .flat_map(|part| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
        [head, chunks.collect(), b"0\r\n\r\n".to_vec()].concat()
    };
    let settings = |name: &str, value: Value| field("settings", json!({ name: value }));
    let query = |bytes: usize| ask("GET", &format!("/chat/sse?message={}", "x".repeat(bytes)), &[]);
    let headers = |count: usize| {
        let more: Vec<String> = (3..count).map(|n| format!("X-{n}: 1")).collect();
        send("/chat", &more.iter().map(String::as_str).collect::<Vec<_>>(), GOOD) // Host, type and length are three
    };
    let address = |bytes: usize| {
        let key = format!("/chat?key={}", "k".repeat(100));
        send(&format!("{key}{}", "&".repeat(bytes - key.len())), &[], GOOD)
    };
    let header_bytes = |bytes: usize| {
        let known = "hostlocalhostcontent-typeapplication/jsoncontent-length16x-a".len();
        send("/chat", &[&format!("X-A: {}", "x".repeat(bytes - known))], GOOD)
    };
    let key = |length: usize| send("/chat", &[&format!("Idempotency-Key: {}", "k".repeat(length))], GOOD);
    let message = |length: usize| chat(json!({"message": "\u{1F600}".repeat(length)}).to_string());
    let rows: Vec<(&str, Vec<u8>, Vec<u8>, &str)> = vec![
        (
            "message, in characters",
            message(262_144),
            message(262_145),
            "message_too_long",
        ),
        (
            "message in a query, in bytes",
            query(4096),
            query(4097),
            "message_too_long",
        ),
        (
            "session id",
            field("session_id", "s".repeat(128)),
            field("session_id", "s".repeat(129)),
            "session_id_invalid",
        ),
        (
            "user id, in characters",
            field("user_id", "\u{e9}".repeat(256)),
            field("user_id", "\u{e9}".repeat(257)),
            "field_invalid",
        ),
        ("context", context(64 << 10), context((64 << 10) + 1), "field_invalid"),
        ("pairs of metadata", pairs(16), pairs(17), "field_invalid"),
        (
            "a name of metadata",
            field("metadata", json!({"n".repeat(64): ""})),
            field("metadata", json!({"n".repeat(65): ""})),
            "field_invalid",
        ),
        (
            "a value of metadata",
            field("metadata", json!({"n": "\u{e9}".repeat(512)})),
            field("metadata", json!({"n": "\u{e9}".repeat(513)})),
            "field_invalid",
        ),
        ("images", images(4), images(5), "field_invalid"),
        ("an image", image(5 << 20), image((5 << 20) + 1), "field_invalid"),
        ("depth", nested(64), nested(65), "json_invalid"),
        ("depth of what is empty", hollow(64), hollow(65), "json_invalid"),
        (
            "body with a length",
            chat(padded(8 << 20)),
            chat(padded((8 << 20) + 1)),
            "body_too_large",
        ),
        (
            "body in chunks",
            in_chunks(8 << 20),
            in_chunks((8 << 20) + 1),
            "body_too_large",
        ),
        ("idempotency key", key(128), key(129), "field_invalid"),
        (
            "temperature below",
            settings("temperature", json!(0)),
            settings("temperature", json!(-0.001)),
            "field_invalid",
        ),
        (
            "temperature above",
            settings("temperature", json!(2)),
            settings("temperature", json!(2.001)),
            "field_invalid",
        ),
        (
            "top_p",
            settings("top_p", json!(1)),
            settings("top_p", json!(1.001)),
            "field_invalid",
        ),
        (
            "max_output_tokens below",
            settings("max_output_tokens", json!(1)),
            settings("max_output_tokens", json!(0)),
            "field_invalid",
        ),
        (
            "max_output_tokens above",
            settings("max_output_tokens", json!(10_000_000)),
            settings("max_output_tokens", json!(10_000_001)),
            "field_invalid",
        ),
        (
            "seed",
            settings("seed", json!(9_007_199_254_740_991_i64)),
            settings("seed", json!(9_007_199_254_740_992_i64)),
            "field_invalid",
        ),
        (
            "stops",
            settings("stop", json!(["a", "b", "c", "d"])),
            settings("stop", json!(["a", "b", "c", "d", "e"])),
            "field_invalid",
        ),
        (
            "a stop",
            settings("stop", json!(["x".repeat(256)])),
            settings("stop", json!(["x".repeat(257)])),
            "field_invalid",
        ),
        (
            "reasoning effort",
            settings("reasoning_effort", json!("l".repeat(16))),
            settings("reasoning_effort", json!("l".repeat(17))),
            "field_invalid",
        ),
        ("headers", headers(100), headers(101), ""),
        (
            "bytes of headers",
            header_bytes(32 << 10),
            header_bytes((32 << 10) + 1),
            "headers_too_large",
        ),
        ("address", address(16 << 10), address((16 << 10) + 1), "uri_too_long"),
    ];
    for (what, edge, beyond, code) in rows {
        let mut connection = Connection::open(&gateway).await.patience(Duration::from_secs(20));
        connection.send_raw(&edge).await;
        let answer = connection.answer(what).await;
        let status = answer.status;
        let body = answer.body().await;
        if status == 200 {
            taken += 1;
        } else {
            failed.push(format!("{what} at its edge: {status} {:?}", body.bytes));
        }
        let mut connection = Connection::open(&gateway).await.patience(Duration::from_secs(20));
        connection.send_raw(&beyond).await;
        let answer = connection.answer(what).await;
        let told = if code.is_empty() {
            if answer.status == 431 {
                String::new()
            } else {
                answer.status.to_string()
            }
        } else {
            answer.body().await.json()["code"]
                .as_str()
                .unwrap_or("no code")
                .to_owned()
        };
        if told != code {
            failed.push(format!("{what} beyond its edge: {told:?} and not {code:?}"));
        }
        if upstream.calls() != taken {
            failed.push(format!("{what}: {} calls upstream and not {taken}", upstream.calls()));
            taken = upstream.calls();
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn over_http2_the_same_requests_get_the_same_answers() {
    let (upstream, gateway) = house().await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .no_proxy()
        .build()
        .unwrap();
    let id = "01920000-0000-7000-8000-000000000001";
    let url = |path: &str| format!("http://{}{path}", gateway.addr());
    let json = |path: &str, body: Vec<u8>| {
        client
            .post(url(path))
            .header("content-type", "application/json")
            .body(body)
    };
    let rows = [
        ("B001", client.get(url("/chat")), 405, "method_not_allowed"),
        ("B002", client.head(url("/chat/sse?message=Hi")), 405, ""),
        ("B008", json("/chat/", GOOD.into()), 404, "not_found"),
        (
            "B021",
            json("/chat", GOOD.into())
                .header("x-a", "x".repeat(31 << 10))
                .header("x-b", "y".repeat(2 << 10)),
            431,
            "",
        ),
        (
            "B022",
            client.get(url(&format!("/chat/sse?message={}", "x".repeat(17 << 10)))),
            414,
            "uri_too_long",
        ),
        (
            "B030",
            json("/chat", GOOD.into()).header("content-encoding", "gzip"),
            415,
            "encoding_unsupported",
        ),
        (
            "B038",
            json("/chat", GOOD.into())
                .header("authorization", "Bearer a")
                .header("x-api-key", "b"),
            400,
            "auth_conflict",
        ),
        (
            "B039",
            json("/chat?api_key=canary-7f3a", GOOD.into()),
            400,
            "credential_in_url",
        ),
        ("B042", client.get(url(&format!("/runs/{id}"))), 404, "not_found"),
        (
            "B045",
            client
                .get(url("/chat/sse?message=Hi"))
                .header("sec-fetch-site", "cross-site"),
            403,
            "cross_site",
        ),
        ("B048", client.post(url("/chat")).body(GOOD), 415, "media_type"),
        (
            "B050",
            json("/chat/sse", GOOD.into()).header("accept", "application/xml"),
            406,
            "not_acceptable",
        ),
        ("B053", json("/chat", b"{".into()), 400, "json_invalid"),
        (
            "B059",
            json("/chat/stream", br#"{"message":"Hi","x":"canary-7f3a"}"#.into()),
            422,
            "unknown_field",
        ),
        ("B065", json("/chat", vec![b' '; 10_000_000]), 413, "body_too_large"),
        (
            "B069",
            json("/runs", br#"{"message":" "}"#.into()),
            422,
            "message_empty",
        ),
        (
            "B082",
            client.get(url("/chat/sse")).header("last-event-id", "abc"),
            400,
            "last_event_id_invalid",
        ),
        (
            "B085",
            client.get(url("/chat/sse?message=a&message=b")),
            422,
            "duplicate_parameter",
        ),
        ("B086", client.get(url("/chat/sse?message=%FF")), 400, "query_invalid"),
    ];
    let mut failed = Vec::new();
    for (row, request, status, code) in rows {
        let answer = match soon(format_args!("an answer to {row}"), request.send()).await {
            Ok(answer) => answer,
            Err(error) => {
                failed.push(format!("{row}: {error:?}"));
                continue;
            }
        };
        let (version, told) = (answer.version(), answer.status().as_u16());
        let kind = answer.headers().get("content-type").cloned();
        let named = answer.headers().get("x-request-id").cloned();
        let body = soon("a body", answer.bytes()).await.unwrap();
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let fine = version == reqwest::Version::HTTP_2
            && told == status
            && (code.is_empty()
                || problem["code"] == code
                    && kind.is_some_and(|kind| kind == "application/problem+json")
                    && named.is_some_and(|named| problem["request_id"] == named.to_str().unwrap()));
        if !fine || String::from_utf8_lossy(&body).contains(CANARY) {
            failed.push(format!("{row}: {version:?} {told} {problem}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    nothing_happened(&upstream, &gateway).await;
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = &u32::try_from(payload.len()).unwrap().to_be_bytes()[1..];
    [length, &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `:method`, `:scheme http`, `:path`, `:authority`, spelled out.
fn fields(method: &str, path: &str, authority: &str) -> Vec<u8> {
    let mut block = vec![0x86];
    for (name, value) in [(2, method), (4, path), (1, authority)] {
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    block
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;

/// How a connection of HTTP/2 opens.
fn opening() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

#[tokio::test]
async fn over_http2_the_authority_is_the_host() {
    let (upstream, gateway) = house().await;
    for (authority, answer) in [
        ("evil.example", "host_not_allowed"),
        ("localhost.evil.example:80", "host_not_allowed"),
        ("localhost", "agents"),
    ] {
        let mut stream = soon("a connection", TcpStream::connect(gateway.addr())).await.unwrap();
        let ask = frame(HEADERS, 0x5, 1, &fields("GET", "/agents", authority));
        stream.write_all(&[opening(), ask].concat()).await.unwrap();
        let mut bytes = Vec::new();
        while !bytes.windows(answer.len()).any(|part| part == answer.as_bytes()) {
            let read = soon(format_args!("{answer} for {authority}"), stream.read_buf(&mut bytes)).await;
            assert!(read.unwrap() > 0, "closed before {answer} for {authority}");
        }
    }
    nothing_happened(&upstream, &gateway).await;
}

#[tokio::test]
async fn floods_of_http2_frames_cost_their_connection_and_nothing_else() {
    let (upstream, gateway) = house().await;
    let rapid_reset = (0..10_000).flat_map(|n| {
        let stream = 2 * n + 1;
        let ask = frame(
            HEADERS,
            0x5,
            stream,
            &fields("GET", "/chat/sse?message=Hi&x=1", "localhost"),
        );
        [ask, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    let endless_header = (0..10_000).flat_map(|n| match n {
        0 => frame(HEADERS, 0x1, 1, &fields("GET", "/healthz", "localhost")),
        _ => frame(CONTINUATION, 0, 1, &[&[0, 1, b'x', 100][..], &[b'y'; 100]].concat()),
    });
    for (what, flood) in [
        ("rapid reset", rapid_reset.collect::<Vec<u8>>()),
        ("endless headers", endless_header.collect()),
    ] {
        let stream = soon("a connection", TcpStream::connect(gateway.addr())).await.unwrap();
        let (mut from, mut to) = stream.into_split();
        let sent = [opening(), flood].concat();
        let writer = tokio::spawn(async move { drop(to.write_all(&sent).await) }); // it may be cut off; that is the point
        let mut bytes = Vec::new();
        let _ = soon(format_args!("the end of the {what}"), from.read_to_end(&mut bytes)).await; // or a reset
        writer.abort();
        let mut at = &bytes[..];
        let mut kinds = Vec::new();
        while at.len() >= 9 {
            let length = usize::from(at[0]) << 16 | usize::from(at[1]) << 8 | usize::from(at[2]);
            kinds.push(at[3]);
            at = at.get(9 + length..).unwrap_or_default();
        }
        assert!(kinds.contains(&7), "{what}: no GOAWAY among the frames {kinds:?}");
    }
    nothing_happened(&upstream, &gateway).await;
}

#[tokio::test]
async fn a_flood_of_nothing_over_http2_is_an_empty_body_or_the_end() {
    const DATA: u8 = 0;
    let (upstream, gateway) = house().await;
    let mut head = fields("POST", "/chat", "localhost");
    head.extend([0x0f, 0x10, 16]); // content-type, by its number
    head.extend(b"application/json");
    let nothing = frame(DATA, 0, 1, &[]).repeat(100_000);
    let flood = [
        opening(),
        frame(HEADERS, 0x4, 1, &head),
        nothing,
        frame(DATA, 0x1, 1, &[]),
    ]
    .concat();
    let stream = soon("a connection", TcpStream::connect(gateway.addr())).await.unwrap();
    let (mut from, mut to) = stream.into_split();
    let writer = tokio::spawn(async move { drop(to.write_all(&flood).await) }); // it may be cut off
    let (mut bytes, answer) = (Vec::new(), b"json_invalid");
    let told = soon("an answer or the end", async {
        while !bytes.windows(answer.len()).any(|part| part == answer) {
            if from.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return false;
            }
        }
        true
    });
    let told = told.await;
    writer.abort();
    assert!(told || bytes.len() < 10_000, "closed, after {} bytes", bytes.len());
    nothing_happened(&upstream, &gateway).await;
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
async fn headers_that_mean_nothing_to_a_stream_are_ignored() {
    let (upstream, gateway) = house().await;
    let ignored = [
        ("Range", "bytes=0-5"),
        ("If-None-Match", "*"),
        ("If-Modified-Since", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("TE", "trailers"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Forwarded-Host", "evil.example"),
        ("Forwarded", "host=evil.example"),
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

#[tokio::test]
async fn a_length_and_chunks_together_do_not_smuggle_a_second_request() {
    let (upstream, gateway) = house().await;
    for headers in [
        ["Content-Length: 6", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 6"],
    ] {
        let head = ask(
            "POST",
            "/chat",
            &[headers[0], headers[1], "Content-Type: application/json"],
        );
        let hidden = ask("GET", "/chat/sse?message=smuggled", &[]);
        let body = format!("{:x}\r\n{GOOD}\r\n0\r\n\r\n", GOOD.len());
        let mut connection = Connection::open(&gateway).await;
        connection
            .send_raw([&head[..], body.as_bytes(), &hidden].concat())
            .await;
        let answer = connection.try_answer("both").await.expect("an answer");
        let (body, mut connection) = answer.body_and_connection().await;
        assert!(matches!(body.status, 200 | 400), "{} {:?}", body.status, body.bytes);
        connection.closed().await;
    }
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| !request.body.windows(8).any(|part| part == b"smuggled"))
    );
}

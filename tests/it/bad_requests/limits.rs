//! Where every limit is.
use base64::Engine as _;

use super::*;

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

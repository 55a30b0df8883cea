//! HTTP itself, badly spoken.
use super::*;

pub(super) fn rows() -> Vec<Row> {
    let long = |length: usize| "x".repeat(length);
    let head = |head: &str| format!("{head}\r\n\r\n").into_bytes();
    let post_with = |headers: &str| {
        head(&format!(
            "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
        ))
    };
    let chunks_of = |headers: &str, body: &[u8]| {
        let head = post_with(&format!("{headers}Transfer-Encoding: chunked"));
        let size = format!("{:x}\r\n", body.len());
        [&head[..], size.as_bytes(), body, b"\r\n"].concat()
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
            405,
            "method_not_allowed",
        ),
        row(
            "B004 CONNECT to us",
            head("CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1"),
            405,
            "method_not_allowed",
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
            "B030 a bomb",
            send("/chat", &["Content-Encoding: gzip"], bomb()),
            415,
            "encoding_unsupported",
        ),
        row(
            "B030 a bomb in chunks",
            [chunks_of("Content-Encoding: gzip\r\n", &bomb()), b"0\r\n\r\n".to_vec()].concat(),
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
    for codings in [
        "chunked, chunked",
        "gzip, chunked",
        "foo, chunked",
        "identity, chunked",
        "chunked\r\nTransfer-Encoding: chunked",
        "gzip\r\nTransfer-Encoding: chunked",
    ] {
        let body = format!("{:x}\r\n{GOOD}\r\n0\r\n\r\n", GOOD.len());
        rows.push(bare(
            format!("B017 {codings:?}"),
            [post_with(&format!("Transfer-Encoding: {codings}")), body.into_bytes()].concat(),
            &[501],
        ));
    }
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
    ] {
        rows.push(row(format!("B009 {path}"), send(path, &[], GOOD), 404, "not_found"));
    }
    for path in ["/metrics", "/debug", "/admin"] {
        for (method, bytes) in [("POST", send(path, &[], GOOD)), ("GET", ask("GET", path, &[]))] {
            rows.push(row(format!("B047 {method} {path}"), bytes, 404, "not_found"));
        }
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
    rows
}

/// A message in some kilobytes of gzip that would be 8 MiB.
fn bomb() -> Vec<u8> {
    let head = b"\x1f\x8b\x08\0\0\0\0\0\0\x03";
    let body = miniz_oxide::deflate::compress_to_vec(&vec![b' '; 8 << 20], 1);
    [&head[..], &body, &[0; 8]].concat()
}

#[tokio::test]
async fn requests_that_are_badly_framed_are_refused_before_anything_runs() {
    refused_all(rows()).await;
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

//! Bodies that are not JSON, and JSON that is no request.
use super::*;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (id, headers) in [
        ("B048 no type", &[][..]),
        ("B048 text", &["Content-Type: text/plain"]),
        ("B048 a form", &["Content-Type: application/x-www-form-urlencoded"]),
        ("B048 parts", &["Content-Type: multipart/form-data; boundary=x"]),
        ("B048 JSON5", &["Content-Type: application/json5"]),
        ("B049 UTF-16", &["Content-Type: application/json; charset=utf-16"]),
    ] {
        for path in ["/chat", "/chat/stream", "/chat/sse", "/runs", "/sessions"] {
            let head = ask("POST", path, &[headers, &["Content-Length: 16"]].concat());
            rows.push(row(
                format!("{id} to {path}"),
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
        (
            "B053 a comment to the end of the line",
            b"{\"message\":\"Hi\"} // canary-7f3a",
        ),
        ("B053 NaN", br#"{"message":"Hi","settings":{"seed":NaN}}"#),
        ("B053 Infinity", br#"{"message":"Hi","settings":{"seed":Infinity}}"#),
        ("B054 two values", br#"{"message":"Hi"}{}"#),
        ("B054 a letter behind", br#"{"message":"Hi"}x"#),
        ("B055 not UTF-8", b"{\"message\":\"\xC3\x28\"}"),
        ("B055 overlong", b"{\"message\":\"\xC0\xAF\"}"),
        ("B055 a surrogate in bytes", b"{\"message\":\"\xED\xA0\x80\"}"),
        ("B056 a byte order mark", b"\xEF\xBB\xBF{\"message\":\"Hi\"}"),
        ("B056 UTF-16", b"\xFF\xFE{\0}\0"),
        ("B056 UTF-16, the other way round", b"\xFE\xFF\0{\0}"),
        ("B056 UTF-16 without a mark", b"{\0}\0"),
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
    for name in ["schema", "name", "nobody"] {
        let format = format!(r#"{{"type":"json_schema","{name}":{deep}"#);
        rows.push(row(
            format!("B063 {name} of a format without a bottom"),
            spelled("response_format", &format),
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
    rows.push(row("B064 a million elements", chat(&list), 413, "body_too_large"));
    rows.push(row(
        "B064 a million stops",
        chat(format!(r#"{{"message":"Hi","settings":{{"stop":{list}}}}}"#)),
        413,
        "body_too_large",
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
    rows
}

#[tokio::test]
async fn bodies_that_are_not_a_request_are_refused_before_anything_runs() {
    refused_all(rows()).await;
}

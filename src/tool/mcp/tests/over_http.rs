//! Stories of servers over HTTP that do not answer as others do.

use axum::{
    body::Bytes,
    http::{HeaderMap, header::CONTENT_TYPE},
    response::Response,
};

use super::*;

/// A server that answers as `answer` says, and where that says nothing, as any server does.
async fn answering(
    answer: impl Fn(&HeaderMap, &Value) -> Option<Response> + Clone + Send + Sync + 'static,
) -> url::Url {
    let post = move |headers: HeaderMap, Json(message): Json<Value>| {
        let answer = answer(&headers, &message).unwrap_or_else(|| usual(&message));
        async move { answer }
    };
    let refuse = || async { StatusCode::METHOD_NOT_ALLOWED };
    let routes = axum::Router::new().route("/mcp", axum::routing::post(post).get(refuse));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    tokio::spawn(serve(listener, routes));
    url
}

fn usual(message: &Value) -> Response {
    let result = match message["method"].as_str() {
        Some("initialize") => json!({
            "protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
            "serverInfo": {"name": "h", "version": "1"},
        }),
        Some("tools/list") => json!({"tools": [{"name": "hi", "inputSchema": {"type": "object"}}]}),
        Some("tools/call") => json!({"content": [{"type": "text", "text": "hi"}]}),
        _ => return StatusCode::ACCEPTED.into_response(),
    };
    Json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).into_response()
}

fn is_call(message: &Value) -> bool {
    message["method"] == "tools/call"
}

fn events(data: &str) -> Response {
    (
        [(CONTENT_TYPE, "text/event-stream")],
        format!("event: message\ndata: {data}\n\n"),
    )
        .into_response()
}

async fn up(url: url::Url) -> Server {
    let server = begun(http(url));
    until(|| !server.offers().is_empty()).await;
    server
}

async fn hi(server: &Server) -> Result<ToolOutput, ToolError> {
    let offers = server.offers();
    let called = call(&offers[0], json!({}));
    tokio::time::timeout(Duration::from_secs(8), called)
        .await
        .expect("an answer")
}

#[tokio::test]
async fn an_error_that_names_no_request_answers_the_one_it_came_for() {
    let error = json!({"code": -32000, "message": "no such thing"});
    let bodies = [
        json!({"jsonrpc": "2.0", "id": null, "error": error}),
        json!({"jsonrpc": "2.0", "error": error}),
        json!({"jsonrpc": "2.0", "id": "server-error", "error": error}),
        json!({"id": null, "error": error}),
    ];
    let mut answers = Vec::new();
    for body in bodies {
        answers.push((200, false, body.to_string()));
        answers.push((200, true, body.to_string()));
        answers.push((400, false, body.to_string()));
        answers.push((500, false, body.to_string()));
    }
    for (status, streams, body) in answers {
        let failed = Arc::new(AtomicUsize::new(0));
        let (count, text) = (failed.clone(), body.clone());
        let url = answering(move |_, message| {
            let fails = is_call(message) && count.fetch_add(1, Ordering::SeqCst) == 0;
            fails.then(|| match streams {
                true => events(&text),
                false => {
                    let status = StatusCode::from_u16(status).unwrap();
                    (status, [(CONTENT_TYPE, "application/json")], text.clone()).into_response()
                }
            })
        })
        .await;
        let server = up(url).await;
        let what = format!("{status} {streams} {body}");
        assert_eq!(hi(&server).await, Err(ToolError::new("no such thing")), "{what}");
        assert_eq!(hi(&server).await, Ok(ToolOutput::text("hi")), "{what}");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_cursor_that_stands_still_and_pages_without_news_end_the_list() {
    for mode in ["one cursor", "the same tools", "no tools", "new tools"] {
        let page = Arc::new(AtomicUsize::new(0));
        let pages = page.clone();
        let url = answering(move |_, message| {
            (message["method"] == "tools/list").then(|| {
                let page = pages.fetch_add(1, Ordering::SeqCst);
                let (name, cursor) = match mode {
                    "one cursor" => (format!("t{page}"), "same".to_owned()),
                    "new tools" => (format!("t{page}"), format!("c{page}")),
                    _ => ("t0".to_owned(), format!("c{page}")),
                };
                let tools = match (mode, page) {
                    ("no tools", 1..) => json!([]),
                    _ => json!([{"name": name, "inputSchema": {"type": "object"}}]),
                };
                let result = json!({"tools": tools, "nextCursor": cursor});
                Json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).into_response()
            })
        })
        .await;
        let server = up(url).await;
        let expected = match mode {
            "one cursor" => 2,
            "new tools" => 50,
            _ => 1,
        };
        assert_eq!(server.offers().len(), expected, "{mode}");
        assert_eq!(page.load(Ordering::SeqCst), expected.max(2), "{mode}");
        server.stop().await;
    }
}

#[tokio::test]
async fn whatever_answers_a_notification_is_ignored() {
    let answers: [(u16, &str, &str); 7] = [
        (200, "text/plain", "ok"),
        (200, "text/html", ""),
        (200, "text/event-stream", ""),
        (200, "text/event-stream", ": ping\n\ndata: what\n\n"),
        (200, "application/json", ""),
        (200, "application/json", "{}"),
        (204, "", ""),
    ];
    for (status, kind, body) in answers {
        let url = answering(move |_, message| {
            message.get("id").is_none().then(|| {
                let status = StatusCode::from_u16(status).unwrap();
                (status, [(CONTENT_TYPE, kind)], body).into_response()
            })
        })
        .await;
        let server = up(url).await;
        assert_eq!(hi(&server).await, Ok(ToolOutput::text("hi")), "{status} {kind} {body}");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_call_in_a_forgotten_session_is_sent_once_more_in_a_new_one() {
    for status in [404, 400] {
        let (session, begun) = (Arc::new(AtomicUsize::new(1)), Arc::new(AtomicUsize::new(0)));
        let (now, begins) = (session.clone(), begun.clone());
        let url = answering(move |headers, message| {
            let now = now.load(Ordering::SeqCst).to_string();
            if message["method"] == "initialize" {
                begins.fetch_add(1, Ordering::SeqCst);
                let mut answer = usual(message);
                answer.headers_mut().insert("mcp-session-id", now.parse().unwrap());
                return Some(answer);
            }
            let known = headers.get("mcp-session-id").is_some_and(|id| id == &*now);
            let error = json!({"code": -32000, "message": "Bad Request: No valid session ID provided"});
            let body = Json(json!({"jsonrpc": "2.0", "id": null, "error": error}));
            (!known).then(|| (StatusCode::from_u16(status).unwrap(), body).into_response())
        })
        .await;
        let server = up(url).await;
        assert_eq!(hi(&server).await, Ok(ToolOutput::text("hi")), "{status}");
        session.store(2, Ordering::SeqCst);
        let offers = server.offers();
        let calls = (0..4).map(|_| call(&offers[0], json!({})));
        for called in futures_util::future::join_all(calls).await {
            assert_eq!(called, Ok(ToolOutput::text("hi")), "{status}");
        }
        assert_eq!(begun.load(Ordering::SeqCst), 2, "{status}");
        server.stop().await;
    }
}

#[tokio::test]
async fn answers_of_too_many_parts_are_refused_before_they_are_parsed() {
    let before = memory();
    for streams in [false, true] {
        let parts = vec![r#"{"type":"text","text":"x"}"#; 500_000].join(",");
        let parts = Bytes::from(parts);
        let url = answering(move |_, message| {
            is_call(message).then(|| {
                let head = format!(r#"{{"jsonrpc":"2.0","id":{},"result":{{"content":["#, message["id"]);
                let (begin, kind, end) = match streams {
                    true => (format!("data: {head}"), "text/event-stream", "]}}\n\n"),
                    false => (head, "application/json", "]}}"),
                };
                let pieces = [Bytes::from(begin), parts.clone(), Bytes::from_static(end.as_bytes())];
                let pieces = futures_util::stream::iter(pieces.map(Ok::<_, std::convert::Infallible>));
                ([(CONTENT_TYPE, kind)], axum::body::Body::from_stream(pieces)).into_response()
            })
        })
        .await;
        let server = up(url).await;
        let offers = server.offers();
        let calls = (0..16).map(|_| call(&offers[0], json!({})));
        for called in futures_util::future::join_all(calls).await {
            let ToolError(why) = called.unwrap_err();
            assert!(why.contains("too large"), "{why}");
        }
        server.stop().await;
    }
    let grown = memory().saturating_sub(before);
    assert!(
        grown < 300 << 10,
        "{grown} KiB: other tests hold some of it, but not that"
    );
}

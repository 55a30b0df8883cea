//! HTTP tools against servers that answer in every way.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::chat::RunId;

/// A server on loopback that says one thing to everybody, and then the last bit of it again and again if it is told
/// to go on.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    asked: Arc<Mutex<Vec<u8>>>,
    hung_up: Arc<tokio::sync::Notify>,
}

/// What a server does when it has said its piece.
#[derive(Clone, Copy)]
enum Then {
    Close,
    /// Goes on with this many bytes at a time, after this pause.
    GoOn(usize, Duration),
}

impl Server {
    async fn says(answer: impl Into<Vec<u8>>, then: Then) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            asked: Arc::default(),
            hung_up: Arc::default(),
        };
        let (this, answer) = (server.clone(), answer.into());
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                this.connections.fetch_add(1, Ordering::SeqCst);
                let (this, answer) = (this.clone(), answer.clone());
                tokio::spawn(async move {
                    let mut asked = Vec::new();
                    while !whole(&asked) {
                        match socket.read_buf(&mut asked).await {
                            Ok(0) | Err(_) => return,
                            Ok(_) => {}
                        }
                    }
                    *this.asked.lock().unwrap() = asked;
                    let _ = socket.write_all(&answer).await;
                    if let Then::GoOn(bytes, pause) = then {
                        let more = vec![b'x'; bytes];
                        while socket.write_all(&more).await.is_ok() {
                            tokio::time::sleep(pause).await;
                        }
                        this.hung_up.notify_one();
                    }
                });
            }
        });
        server
    }

    /// An answer with a length.
    async fn answers(status: &str, headers: &str, body: &[u8]) -> Self {
        let mut answer = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend_from_slice(body);
        Self::says(answer, Then::Close).await
    }

    fn asked(&self) -> String {
        String::from_utf8(self.asked.lock().unwrap().clone()).unwrap()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Whether these bytes are a whole request.
fn whole(asked: &[u8]) -> bool {
    let text = String::from_utf8_lossy(asked).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_none_or(|length| body.len() >= length.parse().unwrap())
}

const JSON: &str = "content-type: application/json\r\n";

fn settings(url: String) -> HttpToolSettings {
    HttpToolSettings {
        name: "look_up".into(),
        description: "Looks things up.".into(),
        parameters: json!({"type": "object", "properties": {"id": {"type": "string"}, "q": {"type": "string"}}}),
        method: "GET".into(),
        url,
        headers: BTreeMap::from([("Authorization".into(), "Bearer sk-very-secret-1".into())]),
        body: None,
        timeout: None,
        max_result: 64 << 10,
    }
}

fn guard(allow: &[&str]) -> Guard {
    Guard::new(allow.iter().map(|net| net.parse().unwrap()).collect())
}

fn tool(settings: HttpToolSettings, guard: &Guard) -> Result<HttpTool, String> {
    HttpTool::new(settings, guard, client(guard)?)
}

async fn call(tool: &HttpTool, arguments: Value) -> Result<ToolOutput, String> {
    let context = ToolContext {
        run_id: RunId::new(),
        facts: Arc::default(),
        trace: None,
    };
    let called = tool.call(arguments.as_object().unwrap(), &context);
    let called = tokio::time::timeout(Duration::from_secs(10), called)
        .await
        .expect("in time");
    called.map_err(|e| e.to_string())
}

/// Asks a server for `/things/a%2Fb`.
async fn ask(server: &Server) -> Result<ToolOutput, String> {
    let settings = settings(format!("http://{}/things/{{id}}?q={{q}}", server.address));
    call(&tool(settings, &guard(&["127.0.0.0/8"])).unwrap(), json!({"id": "a/b"})).await
}

#[tokio::test]
async fn a_request_is_what_was_declared_and_its_answer_is_for_the_model() {
    let server = Server::answers("200 OK", JSON, b"{\"degrees\": 21}").await;
    assert_eq!(ask(&server).await, Ok(ToolOutput::text("{\"degrees\": 21}")));
    let asked = server.asked().to_ascii_lowercase();
    assert!(asked.starts_with("get /things/a%2fb http/1.1\r\n"), "{asked}");
    for line in [
        "authorization: bearer sk-very-secret-1",
        "accept-encoding: identity",
        concat!("user-agent: sluicegate/", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(asked.lines().any(|l| l == line), "{line}: {asked}");
    }
}

#[tokio::test]
async fn a_body_is_sent_as_json_unless_a_header_says_otherwise() {
    let server = Server::answers("201 Created", "", b"").await;
    let mut post = settings(format!("http://{}/tickets", server.address));
    post.method = "post".into();
    post.body = Some(r#"{"title": {q}, "from": "agent {id}"}"#.into());
    let made = call(
        &tool(post.clone(), &guard(&["127.0.0.0/8"])).unwrap(),
        json!({"q": "a\"b", "id": "7"}),
    )
    .await;
    assert_eq!(
        made,
        Ok(ToolOutput::text("The request succeeded, with an empty answer."))
    );
    let asked = server.asked();
    assert!(asked.starts_with("POST /tickets "), "{asked}");
    assert!(asked.contains("content-type: application/json\r\n"), "{asked}");
    assert!(
        asked.ends_with("\r\n\r\n{\"title\": \"a\\\"b\", \"from\": \"agent 7\"}"),
        "{asked}"
    );
    post.headers
        .insert("content-type".into(), "application/x-www-form-urlencoded".into());
    post.body = Some("title={q}&id={id}".into());
    call(&tool(post, &guard(&["127.0.0.0/8"])).unwrap(), json!({"q": "a&b"}))
        .await
        .unwrap();
    assert!(server.asked().ends_with("\r\n\r\ntitle=a%26b"), "{}", server.asked());
}

#[tokio::test]
async fn a_failure_is_told_with_what_the_server_says_but_without_our_keys() {
    let server = Server::answers(
        "500 Oh",
        JSON,
        b"{\"why\": \"Bearer sk-very-secret-1 is sk-very-secret-1\"}",
    )
    .await;
    assert_eq!(
        ask(&server).await,
        Err("HTTP 500: {\"why\": \"[hidden] is [hidden]\"}".into())
    );
    let half = Server::answers("500 Oh", "content-type: text/plain\r\n", b"it was sk-very-sec").await;
    assert_eq!(ask(&half).await, Err("HTTP 500: it was [hidden]".into()));
    let server = Server::answers("404 No", "", b"").await;
    assert_eq!(ask(&server).await, Err("HTTP 404".into()));
    let server = Server::answers("502 No", "content-type: image/png\r\n", b"\x89PNG").await;
    assert_eq!(ask(&server).await, Err("HTTP 502".into()));
    let long = Server::answers("503 No", "content-type: text/plain\r\n", "ü".repeat(5000).as_bytes()).await;
    assert_eq!(ask(&long).await, Err(format!("HTTP 503: {}…", "ü".repeat(2000))));
    let dripping = "HTTP/1.1 500 Oh\r\ncontent-type: text/plain\r\n\r\nwait".to_owned();
    let dripping = Server::says(dripping, Then::GoOn(1, Duration::from_millis(500))).await;
    let told = ask(&dripping).await.unwrap_err();
    assert!(told.starts_with("HTTP 500: wait"), "{told}");
}

#[tokio::test]
async fn an_answer_that_repeats_the_request_tells_no_key() {
    let plain = "content-type: text/plain\r\n";
    for (headers, body, told) in [
        (plain, "I got sk-very-secret-1.", "I got [hidden]."),
        (
            plain,
            "its key=query%2Fkey%2B1, or query/key+1",
            "its key=[hidden], or [hidden]",
        ),
        (JSON, r#"{"k": "query\/key+1"}"#, r#"{"k": "[hidden]"}"#),
        (
            plain,
            "units=metric; identity, as was asked",
            "units=metric; identity, as was asked",
        ),
    ] {
        let server = Server::answers("200 OK", headers, body.as_bytes()).await;
        let address = server.address;
        let settings = settings(format!("http://{address}/?units=metric&api_key=query%2Fkey%2B1"));
        let told_now = call(&tool(settings, &guard(&["127.0.0.0/8"])).unwrap(), json!({})).await;
        assert_eq!(told_now, Ok(ToolOutput::text(told)));
    }
    let pdf = "content-type: application/pdf\r\n";
    let named = format!("{pdf}content-disposition: attachment; filename=sk-very-secret-1.pdf\r\n");
    let server = Server::answers("200 OK", &named, b"%PDF").await;
    let output = ask(&server).await.unwrap();
    assert_eq!(output.files[0].name, "[hidden].pdf");
    assert!(!output.content.contains("sk-very"), "{}", output.content);
    let server = Server::answers("200 OK", pdf, b"%PDF\xff Bearer sk-very-secret-1").await;
    assert!(ask(&server).await.unwrap_err().contains("repeats a key"));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let inside = Server::answers("200 OK", JSON, b"{}").await;
    let place = format!("http://{}/latest/meta-data", inside.address);
    let elsewhere = [
        &*place,
        "file:///etc/passwd",
        "gopher://127.0.0.1:1/",
        "data:text/plain,x",
        "//127.0.0.1/",
        "",
    ];
    for status in [
        "300 Many",
        "301 Moved",
        "302 Found",
        "303 See",
        "304 No",
        "307 Temporary",
        "308 Permanent",
    ] {
        for place in elsewhere {
            let server = Server::answers(status, &format!("location: {place}\r\n"), b"").await;
            let told = ask(&server).await.unwrap_err();
            assert_eq!(
                told,
                format!("HTTP {}: a redirect, which is not followed", &status[..3])
            );
        }
    }
    // What only a browser follows, and what says that the server is to be had elsewhere.
    let page = format!("<meta http-equiv=\"refresh\" content=\"0; url={place}\">");
    for headers in [
        format!("refresh: 0; url={place}\r\n"),
        format!("link: <{place}>; rel=preload\r\n"),
        format!("alt-svc: h2=\"{0}\"; ma=86400, http/1.1=\"{0}\"\r\n", inside.address),
        format!("content-location: {place}\r\nlocation: {place}\r\n"),
    ] {
        let headers = format!("{headers}content-type: text/html\r\n");
        let server = Server::answers("200 OK", &headers, page.as_bytes()).await;
        for _ in 0..2 {
            assert_eq!(ask(&server).await, Ok(ToolOutput::text(page.clone())));
        }
    }
    assert_eq!(inside.connections(), 0);
}

#[tokio::test]
async fn an_answer_without_end_is_left_at_the_limit() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 10000000000\r\n\r\n";
    let server = Server::says(head, Then::GoOn(64 << 10, Duration::ZERO)).await;
    let told = ask(&server).await.unwrap_err();
    assert_eq!(
        told,
        format!(
            "the answer is larger than 65536 bytes; it begins: {}…",
            "x".repeat(2000)
        )
    );
    let hung_up = server.hung_up.notified();
    tokio::time::timeout(Duration::from_secs(30), hung_up)
        .await
        .expect("the connection is closed");
    let exact = Server::answers("200 OK", "content-type: text/plain\r\n", &[b'x'; 64 << 10]).await;
    assert_eq!(ask(&exact).await.unwrap().content.len(), 64 << 10);
    let pdf = "HTTP/1.1 200 OK\r\ncontent-type: application/pdf\r\n\r\n";
    let server = Server::says(pdf, Then::GoOn(1 << 20, Duration::ZERO)).await;
    assert_eq!(
        ask(&server).await,
        Err("the answer is larger than 10485760 bytes".into())
    );
}

#[tokio::test]
async fn a_call_that_is_given_up_hangs_up() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n";
    let server = Server::says(head, Then::GoOn(1, Duration::from_millis(20))).await;
    let asked = async {
        while server.asked().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        told = ask(&server) => panic!("an answer without an end has ended: {told:?}"),
        () = asked => {}
    }
    let hung_up = server.hung_up.notified();
    tokio::time::timeout(Duration::from_secs(30), hung_up)
        .await
        .expect("the connection is closed");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_no_answer() {
    let half = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"half\":";
    let server = Server::says(half, Then::Close).await;
    assert_eq!(ask(&server).await, Err("the answer broke off".into()));
    let server = Server::says("", Then::Close).await;
    assert_eq!(
        ask(&server).await,
        Err("the connection broke before there was an answer".into())
    );
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let tool = tool(settings(format!("http://{gone}/")), &guard(&["127.0.0.0/8"])).unwrap();
    assert_eq!(call(&tool, json!({})).await, Err("no connection to the server".into()));
}

#[tokio::test]
async fn what_is_not_text_is_a_file() {
    for (headers, body, name, media_type) in [
        (
            "content-type: application/pdf\r\n",
            &b"%PDF\xff"[..],
            "look_up.pdf",
            "application/pdf",
        ),
        (
            "content-type: Image/PNG; x=y\r\n",
            b"\x89PNG",
            "look_up.png",
            "image/png",
        ),
        (
            "content-type: image/svg+xml\r\n",
            b"<svg/>",
            "look_up.svg",
            "image/svg+xml",
        ),
        (
            "content-type: nonsense\r\n",
            b"x",
            "look_up.bin",
            "application/octet-stream",
        ),
        ("", b"\xff\xfe\x00", "look_up.bin", "application/octet-stream"),
        (
            "content-type: text/csv\r\ncontent-disposition: attachment; filename=\"../../a \\\"b\\\"; c.csv\"\r\n",
            b"1,2",
            "a \"b\"; c.csv",
            "text/csv",
        ),
        (
            "content-type: application/zip\r\n\
             content-disposition: attachment; filename=x.zip; filename*=UTF-8''na%C3%AFve%2Fn%C3%A4.zip\r\n",
            b"PK",
            "nä.zip",
            "application/zip",
        ),
        (
            "content-type: application/zip\r\ncontent-disposition: attachment; filename=\"..\"\r\n",
            b"PK",
            "look_up.zip",
            "application/zip",
        ),
    ] {
        let server = Server::answers("200 OK", headers, body).await;
        let output = ask(&server).await.unwrap();
        let file = File {
            name: name.into(),
            media_type: media_type.into(),
            bytes: Bytes::copy_from_slice(body),
        };
        assert_eq!(output.files, [file], "{headers}");
        let said = format!(
            "The request succeeded. The answer is a file: {name} ({media_type}, {} bytes).",
            body.len()
        );
        assert_eq!(output.content, said);
    }
}

#[tokio::test]
async fn text_is_read_in_its_charset() {
    for (headers, body, text) in [
        (
            "content-type: text/plain; charset=ISO-8859-1\r\n",
            &b"Z\xfcrich"[..],
            "Zürich",
        ),
        (
            "content-type: text/plain; charset=\"utf-8\"\r\n",
            "\u{feff}Zürich".as_bytes(),
            "Zürich",
        ),
        ("content-type: text/html\r\n", b"Z\xfcrich", "Z\u{fffd}rich"),
        ("content-type: application/problem+json\r\n", b"{}", "{}"),
        ("", b"plain", "plain"),
    ] {
        let server = Server::answers("200 OK", headers, body).await;
        assert_eq!(ask(&server).await, Ok(ToolOutput::text(text)), "{headers}");
    }
    let server = Server::answers("200 OK", "content-type: text/plain\r\ncontent-encoding: gzip\r\n", b"x").await;
    assert_eq!(
        ask(&server).await,
        Err("the answer is compressed, although that was declined".into())
    );
}

#[tokio::test]
async fn no_spelling_of_loopback_is_connected_to() {
    let server = Server::answers("200 OK", JSON, b"{}").await;
    let port = server.address.port();
    for host in [
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "2130706433",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "metadata.localhost",
        "0177.0.0.1",
        "127.0.0.1.",
        "127.0.0.0x1",
        "\u{ff11}\u{ff12}\u{ff17}.\u{ff10}.\u{ff10}.\u{ff11}",
        "127\u{3002}0\u{ff0e}0\u{ff61}1",
        "\u{2460}27.0.0.1",
        "\u{24db}ocal\u{24d7}ost",
        "%6cocalhost",
        "[::]",
        "[::7f00:1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::7f00:1]",
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
    ] {
        let blocked = tool(settings(format!("http://{host}:{port}/{{id}}")), &guard(&[])).unwrap();
        let told = call(&blocked, json!({"id": "x"})).await;
        assert_eq!(
            told,
            Err("blocked_address: this tool may not connect there".into()),
            "{host}"
        );
    }
    assert_eq!(server.connections(), 0);
    let allowed = settings(format!("http://localhost.:{port}/{{id}}"));
    let allowed = tool(allowed, &guard(&["127.0.0.0/8"])).unwrap();
    assert_eq!(call(&allowed, json!({"id": "x"})).await, Ok(ToolOutput::text("{}")));
}

/// 127.0.0.2 is the public address here, as no packet may leave the machine.
#[tokio::test]
async fn a_name_that_changes_its_mind_is_judged_for_every_connection() {
    let server = Server::answers("200 OK", &format!("connection: close\r\n{JSON}"), b"{}").await;
    let port = server.address.port();
    let outside = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let accepting = tokio::spawn(async move {
        let (mut socket, _) = outside.accept().await.unwrap();
        let mut asked = Vec::new();
        while !whole(&asked) {
            socket.read_buf(&mut asked).await.unwrap();
        }
        let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nhi";
        socket.write_all(answer.as_bytes()).await.unwrap();
    });
    let guard = guard(&["127.0.0.2/32"]);
    let asked = AtomicUsize::new(0);
    let resolver = Resolver::of(guard.clone(), move |_| {
        let last = if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            2
        } else {
            1
        };
        Box::pin(async move { Ok(vec![SocketAddr::from(([127, 0, 0, last], 0))]) })
    });
    let settings = settings(format!("http://rebinding.example:{port}/"));
    let tool = HttpTool::new(settings, &guard, client_of(resolver).unwrap()).unwrap();
    assert_eq!(call(&tool, json!({})).await, Ok(ToolOutput::text("hi")));
    accepting.await.unwrap();
    let told = call(&tool, json!({})).await;
    assert_eq!(told, Err("blocked_address: this tool may not connect there".into()));
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_name_without_an_address_says_so() {
    let guard = guard(&[]);
    let resolver = Resolver::of(guard.clone(), |_| Box::pin(async { Ok(Vec::new()) }));
    let settings = settings("http://nowhere.example/".into());
    let tool = HttpTool::new(settings, &guard, client_of(resolver).unwrap()).unwrap();
    assert_eq!(
        call(&tool, json!({})).await,
        Err("the server's name has no address".into())
    );
}

#[tokio::test]
async fn settings_that_cannot_be_meant_stop_the_start() {
    type Change = fn(&mut HttpToolSettings);
    let changes: [(&str, Change); 14] = [
        ("a tool's name", |s| s.name = "look up".into()),
        ("a tool's name", |s| s.name = String::new()),
        ("max_result", |s| s.max_result = 0),
        ("parameters", |s| s.parameters = json!([])),
        ("parameters", |s| s.parameters = json!({"type": "string"})),
        ("method", |s| s.method = "HEAD".into()),
        ("method", |s| s.method = "TRACE".into()),
        ("url: {nmae}", |s| s.url = "https://api.example/{nmae}".into()),
        ("url: no placeholder", |s| s.url = "https://{id}.example/".into()),
        ("body: {x}", |s| s.body = Some(r#"{"x": {x}}"#.into())),
        ("headers: Host is not", |s| {
            s.headers = BTreeMap::from([("Host".into(), "x".into())])
        }),
        ("headers: \"a b\"", |s| {
            s.headers = BTreeMap::from([("a b".into(), "x".into())])
        }),
        ("headers: the value of x", |s| {
            s.headers = BTreeMap::from([("x".into(), "a\r\nb: secret".into())])
        }),
        ("headers: x-a is there twice", |s| {
            s.headers = BTreeMap::from([("X-A".into(), "1".into()), ("x-a".into(), "2".into())]);
        }),
    ];
    for (why, change) in changes {
        let mut settings = settings("https://api.example/{id}".into());
        change(&mut settings);
        let refused = tool(settings, &guard(&[])).err().unwrap_or_default();
        assert!(
            refused.starts_with(why) && !refused.contains("secret"),
            "{why}: {refused}"
        );
    }
    let mut plain = settings("https://api.example/".into());
    plain.parameters = Value::Null;
    plain.timeout = Some(Duration::from_secs(3));
    let plain = tool(plain, &guard(&[])).unwrap();
    let nothing = json!({"type": "object", "properties": {}, "additionalProperties": false});
    assert_eq!(plain.definition().parameters, nothing);
    assert_eq!(plain.timeout(), Some(Duration::from_secs(3)));
}

//! Stories of servers, with one that does as it is told: `scripted.py`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Json, http::StatusCode, response::IntoResponse};
use futures_util::FutureExt as _;
use secrecy::SecretString;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::{McpSettings, McpTransport, Server};
use crate::{
    chat::RunId,
    tool::{Offer, ToolContext, ToolError, ToolOutput},
};

mod over_http;

/// How long anything may take.
const LONG: Duration = Duration::from_secs(20);

/// A scripted server, and what it noted.
struct Scripted {
    server: Server,
    folder: TempDir,
}

fn settings(transport: McpTransport) -> McpSettings {
    McpSettings {
        name: "scripted".into(),
        transport,
        start_timeout: Duration::from_secs(10),
        refresh: Duration::from_secs(3600),
    }
}

fn child(mode: &str, folder: &TempDir) -> McpTransport {
    McpTransport::Child {
        command: "python3".into(),
        args: vec!["-c".into(), include_str!("scripted.py").into(), mode.into()],
        env: BTreeMap::from([
            ("PATH".into(), SecretString::from(env!("PATH"))),
            (
                "LOG".into(),
                SecretString::from(folder.path().join("log").to_str().unwrap()),
            ),
        ]),
    }
}

fn begun(settings: McpSettings) -> Server {
    let server = Server::new(settings, &TaskTracker::new()).unwrap();
    assert!(server.begin().now_or_never().is_none(), "nothing is listed at once");
    server
}

impl Scripted {
    fn start(mode: &str) -> Self {
        Self::with(mode, |_| {})
    }

    fn with(mode: &str, change: impl FnOnce(&mut McpSettings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(child(mode, &folder));
        change(&mut settings);
        let server = begun(settings);
        Self { server, folder }
    }

    async fn up(mode: &str) -> Self {
        let scripted = Self::start(mode);
        until(|| !scripted.server.offers().is_empty()).await;
        scripted
    }

    fn offer(&self, name: &str) -> Offer {
        let offers = self.server.offers();
        offers.iter().find(|o| o.definition.name == name).unwrap().clone()
    }

    async fn echo(&self, text: &str) -> Result<ToolOutput, ToolError> {
        call(&self.offer("echo"), json!({"text": text})).await
    }

    fn notes(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The numbers behind a word.
    fn noted(&self, word: &str) -> Vec<PathBuf> {
        let notes = self.notes();
        let numbers = notes
            .lines()
            .filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        numbers.map(|pid| Path::new("/proc").join(pid)).collect()
    }
}

async fn call(offer: &Offer, arguments: Value) -> Result<ToolOutput, ToolError> {
    call_for(offer, arguments, Map::new()).await
}

async fn call_for(offer: &Offer, arguments: Value, facts: Map<String, Value>) -> Result<ToolOutput, ToolError> {
    let context = ToolContext {
        run_id: RunId::new(),
        facts: Arc::new(facts),
        trace: None,
    };
    offer.tool().call(arguments.as_object().unwrap(), &context).await
}

fn names(server: &Server) -> Vec<String> {
    server.offers().iter().map(|o| o.definition.name.clone()).collect()
}

/// Waits for something that has no signal.
async fn until(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "it did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process is there. One that is dead and was not reaped is.
fn remains(process: &Path) -> bool {
    process.exists()
}

/// Whether a process runs. A grandchild is its next reaper's when it is dead, not ours.
fn runs(process: &Path) -> bool {
    fs::read_to_string(process.join("stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

/// How much memory this process holds, in KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_tools_of_all_pages_are_offered_and_one_without_a_usable_schema_is_not() {
    let scripted = Scripted::up("").await;
    assert_eq!(names(&scripted.server), ["echo", "bare"]);
    let bare = scripted.offer("bare");
    assert_eq!(bare.definition.parameters, json!({"type": "object", "properties": {}}));
    assert!(scripted.offer("echo").admits(&Map::new()).await.is_err());
    assert_eq!(scripted.echo("hello").await, Ok(ToolOutput::text("hello")));
    scripted.server.stop().await;
}

#[tokio::test]
async fn many_calls_share_one_connection() {
    let scripted = Scripted::up("").await;
    let began = Instant::now();
    let texts: Vec<String> = (0..32).map(|n| format!("slow {n}")).collect();
    let said = futures_util::future::join_all(texts.iter().map(|text| scripted.echo(text))).await;
    for (text, said) in texts.iter().zip(said) {
        assert_eq!(said, Ok(ToolOutput::text(text)));
    }
    assert!(began.elapsed() < Duration::from_secs(4), "one after the other");
    assert_eq!(scripted.noted("pid").len(), 1);
    scripted.server.stop().await;
}

#[tokio::test]
async fn a_server_is_told_for_whom_a_call_is_and_sees_none_of_our_variables() {
    let scripted = Scripted::up("").await;
    let facts = json!({"tenant": "t"}).as_object().unwrap().clone();
    call_for(&scripted.offer("bare"), json!({"a": 1}), facts).await.unwrap();
    call(&scripted.offer("bare"), json!({})).await.unwrap();
    scripted.server.stop().await;
    let notes = scripted.notes();
    let calls: Vec<Value> = notes
        .lines()
        .filter_map(|l| serde_json::from_str(l.strip_prefix("call ")?).ok())
        .collect();
    assert_eq!(calls[0]["_meta"]["sluicegate/context"], json!({"tenant": "t"}));
    assert!(calls[0]["_meta"]["sluicegate/run_id"].is_string());
    assert_eq!(calls[0]["arguments"], json!({"a": 1}));
    assert!(calls[1]["_meta"].get("sluicegate/context").is_none());
    let variables = notes.lines().find_map(|line| line.strip_prefix("env ")).unwrap();
    assert!(
        variables.contains("PATH") && !variables.contains("CARGO"),
        "{variables}"
    );
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_is_cancelled_at_the_server() {
    let scripted = Scripted::up("").await;
    let echo = scripted.offer("echo");
    let sleeping = tokio::spawn(async move { call(&echo, json!({"text": "sleep"})).await });
    until(|| scripted.notes().contains("sleeps")).await;
    sleeping.abort();
    until(|| scripted.notes().contains("cancelled")).await;
    assert_eq!(scripted.echo("still there").await, Ok(ToolOutput::text("still there")));
    scripted.server.stop().await;
}

#[tokio::test]
async fn a_server_cannot_ask_for_anything() {
    let scripted = Scripted::up("").await;
    scripted.echo("ask").await.unwrap();
    until(|| scripted.notes().matches("refused").count() == 3).await;
    assert!(!scripted.notes().contains("granted"), "{}", scripted.notes());
    scripted.server.stop().await;
}

#[tokio::test]
async fn what_a_server_was_given_is_told_to_nobody() {
    const TOKEN: &str = "canary-token-7f3a/1+2";
    let scripted = Scripted::with("", |settings| {
        let McpTransport::Child { env, .. } = &mut settings.transport else {
            panic!()
        };
        env.insert("API_TOKEN".into(), TOKEN.into());
    });
    until(|| !scripted.server.offers().is_empty()).await;
    let told = scripted.echo("token").await;
    assert_eq!(told, Ok(ToolOutput::text("my token is [hidden]")));
    let failed = call(&scripted.offer("echo"), json!({"text": "token", "fails": true})).await;
    assert_eq!(failed, Err(ToolError::new("my token is [hidden]")));
    let file = scripted.echo("token file").await.unwrap_err();
    assert!(file.0.contains("repeats a key"), "{file}");
    assert_eq!(scripted.echo("file").await.unwrap().files.len(), 1);
    scripted.server.stop().await;
}

#[tokio::test]
async fn a_server_that_dies_in_a_call_is_an_error_for_the_model_and_comes_back() {
    let scripted = Scripted::up("").await;
    let echo = scripted.offer("echo");
    let gone = scripted.echo("crash").await;
    assert_eq!(
        gone,
        Err(ToolError::new("the tool server is not available at the moment"))
    );
    assert_eq!(
        names(&scripted.server),
        ["echo", "bare"],
        "a conversation keeps its tools"
    );
    until(|| scripted.noted("pid").len() == 2).await;
    let began = Instant::now();
    while call(&echo, json!({"text": "again"})).await.is_err() {
        assert!(began.elapsed() < LONG);
    }
    let pids = scripted.noted("pid");
    assert!(!remains(&pids[0]), "a zombie");
    scripted.server.stop().await;
    assert!(!pids.iter().any(|process| remains(process)));
    let late = call(&echo, json!({"text": "late"})).await;
    assert_eq!(
        late,
        Err(ToolError::new("the tool server is not available at the moment"))
    );
}

#[tokio::test]
async fn a_tool_that_changes_is_switched_off_and_one_that_is_new_is_not_taken() {
    let scripted = Scripted::up("drifts").await;
    let echo = scripted.offer("echo");
    scripted.echo("list").await.unwrap();
    until(|| names(&scripted.server) == ["bare"]).await;
    let ToolError(why) = call(&echo, json!({"text": "x"})).await.unwrap_err();
    assert!(why.starts_with("tool_drift: "), "{why}");
    scripted.server.stop().await;
}

#[tokio::test]
async fn tools_that_a_server_adds_while_it_starts_are_taken() {
    let scripted = Scripted::up("hesitates").await;
    assert_eq!(names(&scripted.server), ["echo", "bare"]);
    scripted.server.stop().await;
}

#[tokio::test]
async fn a_tool_that_vanishes_is_offered_again_when_it_comes_back_the_same() {
    let scripted = Scripted::up("vanishes").await;
    let echo = scripted.offer("echo");
    scripted.echo("list").await.unwrap();
    until(|| names(&scripted.server) == ["bare"]).await;
    call(&echo, json!({"text": "list"})).await.unwrap();
    until(|| names(&scripted.server) == ["echo", "bare"]).await;
    scripted.server.stop().await;
}

#[tokio::test]
async fn a_server_that_knows_no_handshake_is_discovered() {
    let scripted = Scripted::up("modern").await;
    assert_eq!(scripted.echo("hello").await, Ok(ToolOutput::text("hello")));
    scripted.server.stop().await;
}

#[tokio::test]
async fn servers_that_never_begin_are_contained_and_tried_again() {
    let before = memory();
    let stories = ["exits", "silent", "endless", "garbage"].map(|mode| async move {
        let scripted = Scripted::with(mode, |settings| settings.start_timeout = Duration::from_secs(2));
        until(|| scripted.noted("pid").len() >= 2).await;
        assert!(scripted.server.offers().is_empty());
        scripted.server.stop().await;
        assert!(
            !scripted.noted("pid").iter().any(|process| remains(process)),
            "{mode}: a child remains"
        );
    });
    futures_util::future::join_all(stories).await;
    let grown = memory().saturating_sub(before);
    assert!(
        grown < 1 << 20,
        "{grown} KiB: other tests hold some of it, but not that"
    );
}

#[tokio::test]
async fn stopping_takes_along_a_child_that_does_not_listen_and_all_that_it_started() {
    let scripted = Scripted::up("stubborn").await;
    let began = Instant::now();
    scripted.server.stop().await;
    assert!(began.elapsed() < Duration::from_secs(6));
    assert!(!scripted.noted("pid").iter().any(|process| remains(process)));
    let grandchild = scripted.noted("grandchild").remove(0);
    until(|| !runs(&grandchild)).await;
}

#[tokio::test]
async fn stopping_takes_along_what_a_child_that_goes_at_once_leaves_behind() {
    for mode in ["leaves", "detaches"] {
        let scripted = Scripted::up(mode).await;
        let grandchild = scripted.noted("grandchild").remove(0);
        assert!(runs(&grandchild), "{mode}");
        scripted.server.stop().await;
        until(|| !runs(&grandchild)).await;
    }
    let dropped = Scripted::up("detaches").await;
    let grandchild = dropped.noted("grandchild").remove(0);
    drop(dropped);
    until(|| !runs(&grandchild)).await;
}

#[tokio::test]
async fn a_schema_is_offered_as_providers_take_it_and_checked_as_it_is() {
    let scripted = Scripted::up("schemas").await;
    assert_eq!(names(&scripted.server), ["either", "maybe"]);
    let either = scripted.offer("either");
    let expected = json!({
        "description": "Either", "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    });
    assert_eq!(either.definition.parameters, expected);
    let admits = async |arguments: Value| either.admits(arguments.as_object().unwrap()).await.is_ok();
    assert!(admits(json!({"a": 1})).await && admits(json!({"b": "x"})).await);
    assert!(!admits(json!({})).await && !admits(json!({"a": "1"})).await);
    scripted.server.stop().await;
}

#[tokio::test]
async fn an_answer_with_too_many_parts_is_an_error_and_a_strange_one_is_read() {
    let scripted = Scripted::up("").await;
    let ToolError(why) = scripted.echo("parts").await.unwrap_err();
    assert!(why.contains("too large"), "{why}");
    let strange = scripted.echo("strange").await.unwrap().content;
    assert!(
        strange.starts_with("one\n[") && strange.contains("hologram"),
        "{strange}"
    );
    assert!(strange.ends_with("\n{\"z\":1,\"a\":2}"), "{strange}");
    assert_eq!(scripted.noted("pid").len(), 1);
    scripted.server.stop().await;
}

#[tokio::test]
async fn a_server_that_is_dropped_ends_its_child() {
    let scripted = Scripted::up("stubborn").await;
    let (child, grandchild) = (scripted.noted("pid").remove(0), scripted.noted("grandchild").remove(0));
    drop(scripted);
    until(|| !remains(&child) && !runs(&grandchild)).await;
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_tried_again_and_stops_at_once() {
    let settings = settings(McpTransport::Child {
        command: "/does/not/exist".into(),
        args: Vec::new(),
        env: BTreeMap::new(),
    });
    let server = begun(settings);
    tokio::task::yield_now().await;
    assert!(server.offers().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_at_the_start() {
    let http = |url: &str, name: &str, value: &str| {
        let transport = McpTransport::Http {
            url: url.parse().unwrap(),
            headers: BTreeMap::from([(name.to_owned(), SecretString::from(value))]),
        };
        Server::new(settings(transport), &TaskTracker::new()).err().unwrap()
    };
    assert!(http("ftp://x/", "a", "b").starts_with("url: "));
    let password = http("http://me:secret@x/", "a", "b");
    assert!(password.starts_with("url: ") && !password.contains("secret"));
    assert!(http("http://x/", "mcp-session-id", "b").starts_with("headers.mcp-session-id: "));
    let secret = http("http://x/", "authorization", "secret\n");
    assert!(secret.starts_with("headers.authorization: ") && !secret.contains("secret\n"));
}

/// A server over HTTP that answers every request with JSON; with a redirect, for as long as `astray`, which then counts them, is
/// more than nothing.
async fn over_http(astray: Arc<AtomicUsize>) -> url::Url {
    let answer = move |headers: axum::http::HeaderMap, Json(message): Json<Value>| {
        let lost = astray
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n > 0).then_some(n + 1))
            .is_ok();
        async move {
            if lost {
                return (StatusCode::TEMPORARY_REDIRECT, [("location", "http://127.0.0.1:1/")]).into_response();
            }
            if headers.get("authorization").is_none_or(|key| key != "Bearer k") {
                return StatusCode::UNAUTHORIZED.into_response();
            }
            let result = match message["method"].as_str() {
                Some("initialize") => json!({
                    "protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                    "serverInfo": {"name": "h", "version": "1"},
                }),
                Some("tools/list") => {
                    json!({"tools": [{"name": "big"}, {"name": "hi", "inputSchema": {"type": "object"}}]})
                }
                Some("tools/call") if message["params"]["name"] == "big" => {
                    json!({"content": [{"type": "text", "text": "x".repeat(20 << 20)}]})
                }
                Some("tools/call") => json!({"content": [{"type": "text", "text": "hi"}]}),
                _ => return StatusCode::ACCEPTED.into_response(),
            };
            Json(json!({"jsonrpc": "2.0", "id": message["id"], "result": result})).into_response()
        }
    };
    let refuse = || async { StatusCode::METHOD_NOT_ALLOWED };
    let routes = axum::Router::new().route("/mcp", axum::routing::post(answer).get(refuse));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    tokio::spawn(serve(listener, routes));
    url
}

/// Serves it: axum's own loop is not compiled in.
async fn serve(listener: tokio::net::TcpListener, routes: axum::Router) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let service = hyper_util::service::TowerToHyperService::new(routes.clone());
        let socket = hyper_util::rt::TokioIo::new(socket);
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(socket, service));
    }
}

fn http(url: url::Url) -> McpSettings {
    settings(McpTransport::Http {
        url,
        headers: BTreeMap::from([("authorization".into(), SecretString::from("Bearer k"))]),
    })
}

#[tokio::test]
async fn a_server_over_http_is_called_with_its_headers_and_a_huge_answer_is_not_read() {
    let url = over_http(Arc::default()).await;
    let server = begun(http(url));
    until(|| !server.offers().is_empty()).await;
    assert_eq!(names(&server), ["big", "hi"]);
    let offers = server.offers();
    assert_eq!(call(&offers[1], json!({})).await, Ok(ToolOutput::text("hi")));
    assert!(call(&offers[0], json!({})).await.is_err());
    assert_eq!(call(&offers[1], json!({})).await, Ok(ToolOutput::text("hi")));
    server.stop().await;
}

#[tokio::test]
async fn a_server_over_http_that_sends_elsewhere_is_not_followed_and_comes_back() {
    let astray = Arc::new(AtomicUsize::new(1));
    let url = over_http(astray.clone()).await;
    let server = begun(http(url));
    until(|| astray.load(Ordering::SeqCst) > 2).await;
    assert!(server.offers().is_empty());
    astray.store(0, Ordering::SeqCst);
    until(|| !server.offers().is_empty()).await;
    astray.store(1, Ordering::SeqCst);
    let offers = server.offers();
    let lost = call(&offers[1], json!({})).await;
    assert_eq!(
        lost,
        Err(ToolError::new("the tool server is not available at the moment"))
    );
    astray.store(0, Ordering::SeqCst);
    let began = Instant::now();
    while call(&offers[1], json!({})).await.is_err() {
        assert!(began.elapsed() < LONG);
    }
    server.stop().await;
}

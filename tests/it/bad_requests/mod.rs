//! What no client should send, and some do: each row has its answer, none of them costs a model call.
//!
//! A row is a request to the byte. Here is how it is run and what must hold for all; the rows stand by subject in the
//! rooms below, and the last two run them all again: over HTTP/2 and through nginx.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};
use sluicegate::error::ErrorCode;
use sqlx::Connection as _;

use crate::contract::Spec;
use crate::house::{
    Call, Connection, Gate, Gateway, Place, Process, Response, Script, Upstream, get, openai, post, soon,
};

mod artifacts;
mod body;
mod credentials;
mod fields;
mod floods;
mod framing;
mod http2;
mod index;
mod limits;
mod nginx;
mod program;
mod sse;

/// What stands for a secret in what is sent: no answer may repeat it.
const CANARY: &str = "canary-7f3a";

/// How long half of all refusals may take at most, once the request is there, also on a machine that has much to do.
const SOON: Duration = Duration::from_secs(1);

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

/// Every row that is refused before anything runs.
fn all() -> Vec<Row> {
    let rooms = [
        framing::rows(),
        credentials::rows(),
        body::rows(),
        fields::rows(),
        sse::rows(),
        artifacts::rows(),
    ];
    rooms.concat()
}

/// Runs all of these, some at the same time, and gives what came of each; every one that fails is told.
async fn every<T>(rows: Vec<Row>, run: impl AsyncFn(Row) -> T) -> Vec<T> {
    let total = rows.len();
    let outcomes = stream::iter(rows).map(async |row: Row| {
        let id = row.id.clone();
        let panic = match AssertUnwindSafe(run(row)).catch_unwind().await {
            Ok(outcome) => return Ok(outcome),
            Err(panic) => panic,
        };
        let what = panic
            .downcast::<String>()
            .map_or_else(|_| "a panic".to_owned(), |what| *what);
        Err(format!("{id}: {}", what.chars().take(400).collect::<String>()))
    });
    let outcomes: Vec<Result<T, String>> = outcomes.buffer_unordered(8).collect().await;
    let (fine, failed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    let failed: Vec<String> = failed.into_iter().filter_map(Result::err).collect();
    assert!(
        failed.is_empty(),
        "{} of {total} rows:\n{}",
        failed.len(),
        failed.join("\n")
    );
    fine.into_iter().filter_map(Result::ok).collect()
}

/// All of these on raw connections to a gateway inside the test; none of them begins anything.
async fn refused_all(rows: Vec<Row>) {
    let (upstream, gateway) = house().await;
    let mut took = every(rows, async |row| answered(gateway.addr(), row).await).await;
    took.sort_unstable();
    assert!(took[took.len() / 2] < SOON, "refused late: {took:?}");
    nothing_happened(&upstream, &gateway, gateway.folder()).await;
}

/// One row; and how long the answer took.
async fn answered(place: SocketAddr, row: Row) -> Duration {
    let mut connection = Connection::open(&place).await;
    connection.send_raw(&row.bytes).await;
    if row.fin {
        connection.half_close().await;
    }
    let sent = Instant::now();
    let head = row.bytes.starts_with(b"HEAD ");
    let answer = connection
        .try_answer(&row.id)
        .await
        .unwrap_or_else(|end| panic!("no answer: {end}"));
    let took = answer.at - sent;
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
    took
}

/// A refusal with all that belongs to one, and nothing of what was sent.
async fn refused(answer: Response) -> Value {
    let (request_id, status) = (answer.header("x-request-id").to_owned(), answer.status);
    assert_eq!(answer.header("cache-control"), "no-store");
    let headers = answer.headers.clone();
    let problem = answer.problem_object().await;
    assert_eq!(problem["request_id"], request_id.as_str());
    is_a_problem(&problem, |name| !headers.all(name).is_empty());
    assert_eq!(problem["status"], status);
    problem
}

/// What every refusal is, however it came: one schema, our own words, and the header that belongs to its status.
fn is_a_problem(problem: &Value, has: impl Fn(&str) -> bool) {
    assert_eq!(Spec::read().objections_to_problem(problem), [""; 0], "{problem}");
    assert_eq!(problem["type"], "about:blank");
    assert!(
        problem["detail"]
            .as_str()
            .is_some_and(|text| text.ends_with(['.', '?'])),
        "{problem}"
    );
    assert!(problem["retryable"].is_boolean(), "{problem}");
    let code = problem["code"].as_str().unwrap_or_default();
    let known = ErrorCode::ALL.iter().find(|known| known.as_str() == code);
    let known = known.unwrap_or_else(|| panic!("{code} is no code of the contract"));
    let (status, title) = sluicegate::http::error::status(*known);
    assert_eq!((&problem["status"], &problem["title"]), (&json!(status), &json!(title)));
    let belongs = match status {
        401 => Some("www-authenticate"),
        405 => Some("allow"),
        416 => Some("content-range"),
        429 => Some("retry-after"),
        _ => None,
    };
    assert!(belongs.is_none_or(has), "{status} without its {belongs:?}");
    let text = problem.to_string();
    for secret in [CANARY, "/work", ".rs:", "panicked", "serde", "sqlx", "hyper"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

/// A gateway whose upstream counts; what is not refused would be answered.
async fn house() -> (Upstream, Gateway) {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    (upstream, gateway)
}

/// A good request by this key.
fn good_by(key: &str) -> Call {
    Call::post("/chat").json(&json!({"message": "Hi"})).key(key)
}

/// Nothing ran: no session, no run and no usage was written, nobody upstream was asked, and a good request still works.
async fn nothing_happened(upstream: &Upstream, gateway: &impl Place, folder: &Path) {
    let good = Call::post("/chat").json(&json!({"message": "Hi"}));
    nothing_happened_but(good, upstream, gateway, folder).await;
}

/// The same, where this is a good request.
async fn nothing_happened_but(good: Call, upstream: &Upstream, gateway: &impl Place, folder: &Path) {
    assert_eq!(
        upstream.calls(),
        0,
        "a refused request reached the provider: {:?}",
        upstream.requests()
    );
    let file = folder.join("sluicegate.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
    let mut db = soon("the store", sqlx::SqliteConnection::connect_with(&options))
        .await
        .unwrap();
    for table in ["sessions", "messages", "runs", "model_calls", "artifacts"] {
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let rows: i64 = soon(table, sqlx::query_scalar(sql).fetch_one(&mut db)).await.unwrap();
        assert_eq!(rows, 0, "a refused request left {rows} {table}");
    }
    let good = good.to(gateway).await.json().await;
    assert_eq!((good["content"].as_str(), upstream.calls()), (Some("Hello"), 1));
    let counted: i64 = soon(
        "the calls",
        sqlx::query_scalar("SELECT count(*) FROM model_calls").fetch_one(&mut db),
    )
    .await
    .unwrap();
    assert_eq!(counted, 1, "what is counted is written where it was looked for");
}

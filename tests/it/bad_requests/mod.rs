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
    let outcomes: Vec<Result<T, String>> = outcomes.buffer_unordered(16).collect().await;
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
        problem["detail"].as_str().is_some_and(|text| text.ends_with('.')),
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

/// Rows of the list of bad requests that are no one request to the byte: the file and the story that tells of each.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "B005",
        "front_door",
        "pages_of_ours_may_call_and_pages_elsewhere_may_not",
    ),
    (
        "B006",
        "front_door",
        "pages_of_ours_may_call_and_pages_elsewhere_may_not",
    ),
    (
        "B007",
        "front_door",
        "pages_of_ours_may_call_and_pages_elsewhere_may_not",
    ),
    (
        "B015",
        "bad_requests/framing",
        "a_length_and_chunks_together_do_not_smuggle_a_second_request",
    ),
    (
        "B023",
        "front_door",
        "who_says_nothing_or_dawdles_over_a_header_is_hung_up_on",
    ),
    ("B024", "front_door", "a_body_that_does_not_come_is_given_up"),
    (
        "B027",
        "front_door",
        "requests_sent_ahead_are_answered_one_by_one_each_for_itself",
    ),
    (
        "B028",
        "bad_requests/sse",
        "headers_that_mean_nothing_to_a_stream_are_ignored",
    ),
    (
        "B031",
        "bad_requests/floods",
        "floods_of_http2_frames_cost_their_connection_and_nothing_else",
    ),
    ("B034", "keys", "what_is_not_a_key_gets_one_answer"),
    ("B035", "keys", "what_is_not_a_key_gets_one_answer"),
    ("B041", "keys", "a_key_asks_the_agents_that_are_its"),
    ("B043", "keys", "nobody_sees_or_touches_what_is_anothers"),
    ("B044", "limits", "a_thousand_made_up_addresses_are_one_caller"),
    ("B045", "tickets", "a_page_elsewhere_starts_nothing_and_reads_nothing"),
    ("B046", "tickets", "a_ticket_is_for_one_run_of_whoever_made_it"),
    ("B046", "tickets", "a_ticket_beside_a_key_is_of_the_same_caller"),
    (
        "B046",
        "jwt",
        "a_ticket_ends_with_the_token_that_it_was_made_with_and_its_run_does_not",
    ),
    (
        "B059",
        "bad_requests/fields",
        "an_unknown_field_is_refused_by_its_name_wherever_it_stands",
    ),
    (
        "B060",
        "bad_requests/fields",
        "an_unknown_field_is_refused_by_its_name_wherever_it_stands",
    ),
    (
        "B061",
        "bad_requests/fields",
        "an_unknown_field_is_refused_by_its_name_wherever_it_stands",
    ),
    (
        "B070",
        "bad_requests/limits",
        "every_limit_is_where_the_contract_puts_it",
    ),
    (
        "B076",
        "bad_requests/fields",
        "a_session_id_that_nobody_knows_is_a_new_session_of_the_callers",
    ),
    (
        "B078",
        "bad_requests/fields",
        "a_key_that_belongs_to_another_request_is_refused",
    ),
    (
        "B081",
        "bad_requests/fields",
        "a_message_full_of_other_peoples_syntax_is_just_a_message",
    ),
    (
        "B088",
        "bad_requests/sse",
        "headers_that_mean_nothing_to_a_stream_are_ignored",
    ),
    (
        "B089",
        "bad_requests/sse",
        "headers_that_mean_nothing_to_a_stream_are_ignored",
    ),
    (
        "B091",
        "bad_requests/artifacts",
        "a_name_is_one_header_line_whatever_is_in_it",
    ),
    (
        "B092",
        "bad_requests/artifacts",
        "a_file_that_a_browser_would_run_is_only_saved",
    ),
    (
        "B093",
        "bad_requests/artifacts",
        "what_stands_in_the_place_of_a_file_is_not_served",
    ),
    ("B094", "artifacts", "parts_and_copies_are_asked_for"),
    (
        "B095",
        "limits",
        "a_burst_of_the_limit_is_fine_and_one_more_is_told_when_to_come",
    ),
    ("B096", "limits", "a_caller_has_so_many_runs_and_others_do_not_mind"),
    (
        "B097",
        "limits",
        "a_full_gateway_refuses_at_once_and_its_fifty_streams_go_on",
    ),
    (
        "B098",
        "bad_requests/sse",
        "cancelling_twice_is_one_cancellation_and_a_completed_run_is_past_it",
    ),
    (
        "B099",
        "bad_requests/http2",
        "over_http2_the_same_requests_get_the_same_answers",
    ),
    (
        "B099",
        "bad_requests/nginx",
        "through_nginx_the_same_requests_get_the_same_answers",
    ),
];

#[test]
fn every_row_of_the_list_is_told_of() {
    let rows = [all(), credentials::keyed_rows()].concat();
    let mut ids = BTreeSet::new();
    for row in &rows {
        assert!(ids.insert(row.id.as_str()), "{} twice", row.id);
    }
    let mut told: BTreeSet<String> = rows
        .iter()
        .filter_map(|row| row.id.split(' ').next())
        .map(str::to_owned)
        .collect();
    for (id, file, story) in ELSEWHERE {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/{file}.rs"));
        let source = std::fs::read_to_string(path).unwrap();
        let (before, _) = source
            .split_once(&format!("async fn {story}("))
            .unwrap_or_else(|| panic!("{id}: no {story} in {file}"));
        let mark = before
            .lines()
            .rev()
            .take(2)
            .any(|line| line.trim().starts_with("#[tokio::test"));
        assert!(mark, "{id}: {story} in {file} is no story");
        told.insert((*id).to_owned());
    }
    let missing: Vec<String> = (1..=99)
        .map(|n| format!("B{n:03}"))
        .filter(|id| !told.contains(id))
        .collect();
    assert_eq!(missing, [""; 0]);
}

//! Faults of rounds, tools and forms (FAULTS § 2.4) as rows, each through every door: what is told, what is kept, what the
//! tool's server sees, and that nothing is left over. Their details in every dialect are in `tools.rs`, `mcp.rs` and
//! `structured.rs`; `fault_index.rs` knows what is where.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _};

use super::house::oracle::{Billed, Oracle, RunEnding};
use super::house::*;

const DOORS: [&str; 3] = ["/chat", "/chat/stream", "/chat/sse"];
const QUESTION: &str = "Weather?";
/// What nobody may be told: the provider's key, and what a tool's server says inside.
const SECRETS: [&str; 2] = ["test-key", "canary-of-the-tool"];

/// How it ends for the client.
#[derive(Clone, Debug)]
enum Ends {
    /// With this answer, and these calls: whether each was made and answered well.
    Well(&'static str, Vec<bool>),
    /// With this code, after a word.
    Aborted(&'static str),
    /// With this code, before any.
    Refused(&'static str),
}

struct Row {
    id: &'static str,
    what: &'static str,
    /// The model's rounds.
    model: Vec<Script>,
    /// What the tool's server does.
    tool: Script,
    /// The tool's host; its port is the server's.
    host: &'static str,
    settings: &'static str,
    form: Option<Value>,
    ends: Ends,
    /// How often the tool's server is asked.
    asked: usize,
}

/// A row in which the tool answers well, and the model in the end.
fn row(id: &'static str, what: &'static str, model: Vec<Script>, ends: Ends, asked: usize) -> Row {
    Row {
        id,
        what,
        model,
        tool: Script::status(
            200,
            &[("content-type", "text/plain"), ("connection", "close")],
            "21 degrees",
        ),
        host: "127.0.0.1",
        settings: "[tools.guard]\nallow = [\"127.0.0.0/8\"]",
        form: None,
        ends,
        asked,
    }
}

/// A stream whose connection is not kept: how many of them a gateway keeps for later rounds depends on who was faster, and
/// would be taken for something left over.
fn sse() -> Script {
    let headers = [("content-type", "text/event-stream"), ("connection", "close")];
    Script::head(200, &headers, Framing::Chunked)
}

fn answer(pieces: &[&str]) -> Script {
    let script = pieces.iter().fold(sse().role(), |script, piece| script.say(piece));
    script.complete()
}

/// A round with these calls of OpenAI's: an id, the tool, and a text for arguments.
fn calls(calls: &[(&str, &str, &str)]) -> Script {
    let script = sse().role();
    let script = calls
        .iter()
        .enumerate()
        .fold(script, |script, (index, (id, name, arguments))| {
            script.send(openai::tool_delta(index, *id, *name, arguments))
        });
    script.finish("tool_calls").usage(12, 34).done().end()
}

const OSLO: &str = r#"{"city":"Oslo"}"#;

/// A round with one call as it should be.
fn one() -> Script {
    calls(&[("c1", "weather", OSLO)])
}

fn well() -> Script {
    answer(&["Well."])
}

fn rows() -> Vec<Row> {
    let half = || openai::tool_delta(0, "c1", "weather", r#"{"city":"Os"#);
    let ends_well = |right: &[bool]| Ends::Well("Well.", right.to_vec());
    let many: Vec<_> = (0..20).map(|number| format!("c{number}")).collect();
    let many: Vec<_> = many.iter().map(|id| (id.as_str(), "weather", OSLO)).collect();
    let form = json!({"type": "json_schema", "name": "count", "schema": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}});
    let mut rows = vec![
        row(
            "F60",
            "a stream cut inside arguments",
            vec![sse().role().send(half()).cut()],
            Ends::Refused("upstream_truncated"),
            0,
        ),
        row(
            "F60",
            "the same after words",
            vec![sse().role().say("Let me").send(half()).cut()],
            Ends::Aborted("upstream_truncated"),
            0,
        ),
        row(
            "F60",
            "the same by a reset",
            vec![sse().role().say("Let me").send(half()).reset()],
            Ends::Aborted("upstream_truncated"),
            0,
        ),
        row(
            "F60",
            "an orderly end inside arguments",
            vec![sse().role().say("Let me").send(half()).end()],
            Ends::Aborted("upstream_truncated"),
            0,
        ),
        row(
            "F61",
            "arguments that are no JSON",
            vec![calls(&[("c1", "weather", r#"{"city":"Os"#)]), well()],
            ends_well(&[false]),
            0,
        ),
        row(
            "F62",
            "arguments that miss the schema",
            vec![calls(&[("c1", "weather", r#"{"city":7}"#)]), well()],
            ends_well(&[false]),
            0,
        ),
        row(
            "F63",
            "an unknown tool beside one",
            vec![calls(&[("c1", "wether", OSLO), ("c2", "weather", OSLO)]), well()],
            ends_well(&[false, true]),
            1,
        ),
        row(
            "F63",
            "one id twice",
            vec![calls(&[("c1", "weather", OSLO), ("c1", "weather", OSLO)]), well()],
            ends_well(&[true, true]),
            2,
        ),
        row(
            "F63",
            "twenty calls in a round",
            vec![calls(&many), well()],
            ends_well(&[[true; 16].as_slice(), &[false; 4]].concat()),
            16,
        ),
        row(
            "F64",
            "a round more than there may be",
            (0..5).map(|_| one()).chain([well()]).collect(),
            ends_well(&[true; 5]),
            5,
        ),
        row(
            "F64",
            "and more after that",
            (0..6).map(|_| one()).collect(),
            Ends::Well("", [[true; 5].as_slice(), &[false]].concat()),
            5,
        ),
    ];
    let plain = [("content-type", "text/plain"), ("connection", "close")];
    let endless = Script::head(200, &plain, Framing::Chunked);
    for (what, tool) in [
        ("a tool that hangs", Script::raw().hang()),
        ("a tool that fails", Script::status(500, &plain, "canary-of-the-tool")),
        ("a tool that resets", Script::raw().reset()),
        (
            "a tool that never stops",
            endless.repeat("x".repeat(16 << 10), Duration::ZERO, 100_000),
        ),
    ] {
        let row = row("F65", what, vec![one(), well()], ends_well(&[false]), 1);
        rows.push(Row {
            tool,
            settings: "[tools.guard]\nallow = [\"127.0.0.0/8\"]\n[agents.assistant]\ntool_timeout = \"500ms\"",
            ..row
        });
    }
    for host in ["127.0.0.1", "localhost.", "2130706433"] {
        rows.push(Row {
            host,
            settings: "",
            ..row("F66", host, vec![one(), well()], ends_well(&[false]), 0)
        });
    }
    for (what, words) in [
        ("words", "Seven."),
        ("JSON of another form", "{\"n\":\"7\"}"),
        ("half of JSON", "{\"n\":"),
    ] {
        let wrong = || answer(&[words]);
        rows.push(Row {
            form: Some(form.clone()),
            ..row("F71", what, vec![wrong(), wrong()], Ends::Aborted("output_invalid"), 0)
        });
    }
    rows
}

/// The last thing that the user said.
fn asked(request: &Request) -> String {
    let all = request.json["messages"].as_array().cloned().unwrap_or_default();
    let mut users = all.iter().filter(|message| message["role"] == "user");
    users
        .next_back()
        .map(|last| last["content"].to_string())
        .unwrap_or_default()
}

async fn said(gateway: &Gateway) -> Vec<Value> {
    let messages = get(gateway, "/sessions/s/messages")
        .await
        .expect(200)
        .await
        .json()
        .await;
    messages["messages"].as_array().expect("a list").clone()
}

async fn turn(gateway: &Gateway, message: &str) {
    let reply = post(gateway, "/chat", json!({"message": message, "session_id": "s"})).await;
    assert_eq!(reply.expect(200).await.json().await["content"], "Yes");
}

/// How many model calls of a run are in the books.
async fn booked(gateway: &Gateway, run: &str) -> i64 {
    let file = gateway.folder().join("sluicegate.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
    let mut db = options.connect().await.expect("the gateway's file");
    let count = sqlx::query_scalar("SELECT count(*) FROM model_calls WHERE run_id = ?").bind(run);
    let count = count.fetch_one(&mut db).await.expect("the books");
    db.close().await.expect("a file that can be closed");
    count
}

async fn check(row: Row, door: &str) {
    let what = format!("{} {} at {door}", row.id, row.what);
    let Row {
        model: scripts,
        tool,
        host,
        settings,
        form,
        ends,
        asked: expected,
        ..
    } = row;
    let (rounds, played) = (scripts.len(), AtomicUsize::new(0));
    let model = Upstream::answering(move |request| match asked(request).contains(QUESTION) {
        true => scripts[played.fetch_add(1, Relaxed).min(rounds - 1)].clone(),
        false => answer(&["Yes"]),
    })
    .await;
    let tools = Upstream::always(tool).await;
    let port = tools.addr().port();
    let recipe = Gateway::with(&model)
        .patient()
        .toml("[providers.openai]\nmax_retries = 0\n[agents.assistant]\ntools = [\"weather\"]");
    let recipe = recipe.toml(settings).toml(&format!(
        r#"
[tools.http.weather]
description = "How the weather is in a city"
parameters = '{{"type": "object", "required": ["city"], "additionalProperties": false, "properties": {{"city": {{"type": "string"}}}}}}'
url = "http://{host}:{port}/weather/{{city}}"
"#
    ));
    let gateway = recipe.toml(meters::WATCHED).start().await;
    turn(&gateway, "Before").await;
    let mut oracle = Oracle::at_rest(&gateway, &model, &SECRETS[..1]).await;

    let mut body = json!({"message": QUESTION, "session_id": "s"});
    if let Some(form) = form {
        body["response_format"] = form;
    }
    let reply = post(&gateway, door, body).await;
    let run = reply.headers.get("x-run-id").map(str::to_owned);
    let run = match (door, &ends) {
        ("/chat/sse", ends) => {
            let transcript = reply.expect(200).await.transcript().await;
            oracle.hear(&transcript.events);
            match ends {
                Ends::Well(content, _) => assert_eq!(transcript.done()["response"]["content"], *content, "{what}"),
                Ends::Aborted(code) | Ends::Refused(code) => assert_eq!(transcript.codes(), [*code], "{what}"),
            }
            run
        }
        (_, Ends::Well(content, _)) => {
            let body = reply.expect(200).await.body().await;
            oracle.hear(&body);
            assert_eq!(body.ending, Ending::Complete, "{what}");
            match door {
                "/chat" => assert_eq!(body.json()["content"], *content, "{what}"),
                _ => assert_eq!(body.text(), *content, "{what}"),
            }
            run
        }
        ("/chat/stream", Ends::Aborted(_)) => {
            let body = reply.expect(200).await.body().await;
            oracle.hear(&body);
            assert!(body.ending.is_aborted(), "{what}: {body:?}");
            run
        }
        (_, Ends::Aborted(code) | Ends::Refused(code)) => {
            let problem = reply.expect(502).await.problem_object().await;
            oracle.hear(&problem);
            assert_eq!(problem["code"], *code, "{what}");
            problem["run_id"].as_str().map(str::to_owned)
        }
    };
    let run = run.unwrap_or_else(|| panic!("{what}: no run is named"));
    oracle.let_go().await;
    assert_eq!(
        (tools.calls(), tools.connections() == 0),
        (expected, expected == 0),
        "{what}: what the tool saw"
    );
    tools.idle().await;

    let (status, code) = match &ends {
        Ends::Well(..) => ("completed", ""),
        Ends::Aborted(code) | Ends::Refused(code) => ("failed", *code),
    };
    let wrong = meters::Wrong {
        failed: code.starts_with("upstream_"),
        ..Default::default()
    };
    oracle.counted(status, &wrong).await;

    // One end for all who look, and every call of the model in the books.
    let told = get(&gateway, &format!("/runs/{run}"))
        .await
        .expect(200)
        .await
        .json()
        .await;
    let kept = said(&gateway).await;
    match &ends {
        Ends::Well(_, right) => {
            assert_eq!(told["status"], "completed", "{what}");
            let records = told["response"]["tool_calls"].as_array().expect("a list").clone();
            let ok: Vec<_> = records.iter().map(|record| record["ok"] == true).collect();
            assert_eq!(ok, *right, "{what}");
            assert!(
                host != "127.0.0.1" || records.iter().all(|record| record["result"] != ""),
                "{what}: {records:?}"
            );
            let blocked = records
                .iter()
                .all(|record| record["result"].to_string().contains("blocked_address"));
            assert!(row.id != "F66" || blocked, "{what}: {records:?}");
            // Every call has its result behind it.
            let of = |role: &str| kept.iter().filter(|message| message["role"] == role).count();
            assert_eq!(of("tool"), right.len(), "{what}");
            assert_eq!(
                booked(&gateway, &run).await,
                told["response"]["rounds"].as_i64().unwrap(),
                "{what}"
            );
        }
        Ends::Aborted(code) | Ends::Refused(code) => {
            assert_eq!(kept.len(), 2, "{what}: a broken turn was kept");
            match rounds {
                1 => drop(
                    oracle
                        .one_ending(&run, &RunEnding::failed(code), Billed::OneCallEstimated)
                        .await,
                ),
                _ => {
                    assert_eq!(
                        (&told["status"], &told["error"]["code"]),
                        (&json!("failed"), &json!(code)),
                        "{what}"
                    );
                    assert_eq!(booked(&gateway, &run).await, rounds as i64, "{what}");
                }
            }
        }
    }
    turn(&gateway, "After").await;
    oracle.nothing_left_over().await;
    oracle.no_secret_told();
    gateway.stop().await;
}

/// All rows of these ids, one after another, and all that is wrong of them.
async fn check_all(ids: &[&str]) {
    let mut checked = 0;
    for door in DOORS {
        for row in rows().into_iter().filter(|row| ids.contains(&row.id)) {
            check(row, door).await;
            checked += 1;
        }
    }
    assert!(checked >= ids.len() * DOORS.len());
}

#[tokio::test]
async fn a_round_that_breaks_in_the_middle_of_a_call_calls_nothing() {
    check_all(&["F60"]).await;
}

#[tokio::test]
async fn calls_that_cannot_be_made_are_answered_and_the_run_goes_on() {
    check_all(&["F61", "F62", "F63"]).await;
}

#[tokio::test]
async fn rounds_end_and_the_last_one_is_words() {
    check_all(&["F64"]).await;
}

#[tokio::test]
async fn a_tool_in_trouble_costs_its_call() {
    check_all(&["F65"]).await;
}

#[tokio::test]
async fn a_tool_does_not_connect_to_what_is_inside() {
    check_all(&["F66"]).await;
}

#[tokio::test]
async fn an_answer_of_another_form_is_never_passed_for_right() {
    check_all(&["F71"]).await;
}

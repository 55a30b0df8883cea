//! How a row is played, in one format, and what must hold after it.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde_json::{Value, json};

use super::row::{Outcome, Row, Said, Who};
use super::{CREDENTIAL, KEY, SECRETS, WORDS};
use crate::house::meters::WATCHED;
use crate::house::oracle::{LET_GO, Watched};
use crate::house::{
    Call, Dialect, Ending, Gateway, Oracle, Place, Request, Response, Script, Upstream, black_hole, closed_port, get,
    post,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Text,
    Sse,
}

pub(super) const FORMATS: [Format; 3] = [Format::Json, Format::Text, Format::Sse];

/// What a client saw.
#[derive(Debug, Default)]
struct Seen {
    status: u16,
    run_id: String,
    text: String,
    /// The problem object, as a body or as an event's `error`.
    problem: Value,
    /// Whether it ended as an answer that is complete.
    complete: bool,
    /// Whether it was torn off.
    aborted: bool,
    /// The result, where the format has one.
    response: Value,
    tokens: usize,
    heartbeats: usize,
    took: Duration,
}

/// What an upstream says to the faulty turn, and to the one just before it; another row, and it says something else.
#[derive(Debug, Default)]
pub(super) struct Lines {
    before: Option<Script>,
    scripts: VecDeque<Script>,
}

impl Lines {
    fn of(row: &Row) -> Self {
        Self {
            before: row.before.clone(),
            scripts: row.scripts.clone().into(),
        }
    }

    /// The next script; the last goes on.
    fn next(&mut self) -> Script {
        let script = if self.scripts.len() > 1 {
            self.scripts.pop_front()
        } else {
            self.scripts.front().cloned()
        };
        script.expect("it is asked only if there is a script")
    }
}

/// An upstream that answers the turns of stories, and where to say how it answers the faulty ones.
pub(super) async fn upstream(dialect: Dialect) -> (Upstream, Arc<Mutex<Lines>>) {
    let lines = Arc::new(Mutex::new(Lines::default()));
    let said = lines.clone();
    let upstream = Upstream::answering(move |request| {
        let mut lines = said.lock().expect("nobody fails here");
        match question(dialect, request).as_str() {
            "fault" => lines.next(),
            "just before" => lines.before.clone().expect("it is asked only if there is a script"),
            "keep this" => Script::status(400, &[], "{}"),
            // The connection is not kept: whether it can be is a matter of microseconds, and the oracle counts it.
            other => dialect.round(&["You said ", other, "."], &[]).cut(),
        }
    })
    .await;
    (upstream, lines)
}

/// One row in every format, one after the other, with a gateway of its own. The row is given once for each format, for a
/// gate opens but once.
pub(super) async fn check(rows: [Row; 3]) {
    let row = &rows[0];
    let (upstream, lines) = upstream(row.speaks()).await;
    let (closed, hole) = (closed_port(), black_hole().await);
    let at = match row.who {
        Who::NobodyListens => closed.addr(),
        Who::NobodyAccepts => hole.addr(),
        _ => upstream.addr(),
    };
    let mut recipe = Gateway::with(&at)
        .fast()
        .toml(&format!("[providers.openai]\napi_key = \"{KEY}\""));
    if row.who != Who::Scripted {
        recipe = recipe.toml(&format!(
            "[providers.well]\nkind = \"openai\"\nbase_url = \"{}\"\n[agents.assistant]\nallowed_models = [\"well/*\"]",
            upstream.base_url()
        ));
    }
    if row.who == Who::NoSuchName {
        let nowhere = format!("http://{}.invalid/v1", "a".repeat(64));
        recipe = recipe.toml(&format!("[providers.openai]\nbase_url = \"{nowhere}\""));
    }
    if let Some(dialect) = row.dialect {
        let provider = dialect.provider("model", &upstream);
        recipe = recipe.toml(&provider).toml(&format!(
            "[providers.model]\napi_key = \"{KEY}\"\n[agents.assistant]\nmodel = \"model/test-model\""
        ));
    }
    let gateway = recipe.toml(row.toml).toml(WATCHED).start().await;
    let (mut failed, mut let_go) = (Vec::new(), Vec::new());
    for (format, row) in FORMATS.into_iter().zip(&rows) {
        let story = story(&gateway, &upstream, &lines, row, format);
        match AssertUnwindSafe(story).catch_unwind().await {
            Ok(took) => let_go.push(took),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                failed.push(format!("{} ({format:?}): {}", row.name, text.unwrap_or_default()));
            }
        }
    }
    gateway.stop().await;
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    // The best of them: the machine may be busy.
    assert!(let_go.iter().any(|took| *took <= LET_GO), "let go of after {let_go:?}");
}

/// The story: a normal turn, the faulty one, another normal one; and all that must hold. Returns how long the upstream of the
/// faulty one was held.
pub(super) async fn story<G: Watched>(
    gateway: &G,
    upstream: &Upstream,
    lines: &Mutex<Lines>,
    row: &Row,
    format: Format,
) -> Duration {
    *lines.lock().expect("nobody fails here") = Lines::of(row);
    let session = &format!("{}-{format:?}", row.name).replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let talk = Talk { gateway, row, session };
    talk.keep_one().await;
    talk.turn("before").await;
    let mut oracle = Oracle::at_rest(gateway, upstream, &SECRETS)
        .await
        .admitting_reasons(&[WORDS]);
    if row.before.is_some() {
        talk.turn("just before").await;
    }
    let before = talk.history().await;
    oracle.read_meters().await;
    let (sent_before, calls_before) = (upstream.sent(), faults(row, upstream));

    let seen = ask(&talk, format, &mut oracle).await;

    let let_go = oracle.let_go().await;
    let sent = upstream.sent() - sent_before;
    assert!(sent <= row.sent, "the upstream got rid of {sent} bytes");
    let (least, most) = row.took;
    assert!((least..=most).contains(&seen.took), "it took {:?}", seen.took);
    assert_eq!(faults(row, upstream) - calls_before, row.calls, "upstream calls");
    if format == Format::Sse {
        assert!(seen.heartbeats >= row.heartbeats, "{} heartbeats", seen.heartbeats);
        assert!(
            row.tokens.is_none_or(|tokens| tokens == seen.tokens),
            "{} tokens",
            seen.tokens
        );
    }
    assert_outcome(row, format, &seen, session);
    let run = oracle
        .one_ending(&seen.run_id, &row.outcome.ending(), row.in_the_books())
        .await;
    assert_record(row, &run);
    oracle.counted(row.outcome.ending().status, &row.wrong()).await;
    if let Some(kind) = row.kind {
        let lines = gateway.ends_of(&seen.run_id).await;
        assert!(
            lines[0].contains(&format!("{kind} at provider")),
            "no {kind} in {lines:?}"
        );
    }

    let after = talk.history().await;
    oracle.hear(&after);
    let kept = match &row.outcome {
        Outcome::Answered(text, _) => {
            let added: Vec<_> = after[before.len()..]
                .iter()
                .map(|m| (m["role"].clone(), m["content"].clone()))
                .collect();
            let expected = [("user", "fault"), ("assistant", text)];
            assert_eq!(added, expected.map(|(role, text)| (role.into(), text.into())));
            after
        }
        _ => {
            assert_eq!(after, before, "a failed run adds nothing to its session");
            before
        }
    };
    // An answer without words is not sent back, so the questions around it are one message.
    let (sent, question) = match &row.outcome {
        Outcome::Answered(text, _) if text.is_empty() => (&kept[..kept.len() - 2], "fault\n\nagain"),
        _ => (&kept[..], "again"),
    };
    assert_eq!(talk.turn("again").await["content"], format!("You said {question}."));
    let requests = upstream.requests();
    let request = &requests.last().expect("it was asked").json;
    assert_sent(row.speaks(), request, sent, question);
    assert_eq!(talk.history().await.len(), kept.len() + 2);
    oracle.nothing_left_over().await;
    oracle.no_secret_told();
    let_go
}

/// A session of a gateway's, and the row that is played in it.
struct Talk<'a, G> {
    gateway: &'a G,
    row: &'a Row,
    session: &'a str,
}

impl<G: Place> Talk<'_, G> {
    /// A turn in which nothing goes wrong.
    async fn turn(&self, message: &str) -> Value {
        let answer = post(self.gateway, "/chat", self.normal(message)).await;
        answer.expect(200).await.json().await
    }

    fn normal(&self, message: &str) -> Value {
        let mut body = json!({"message": message, "session_id": self.session});
        if self.row.who != Who::Scripted {
            body["model"] = "well/test-model".into();
        }
        body
    }

    /// A turn after which the connection is kept for certain, for it is refused, and the refusal read to its end: the
    /// client library has a task for kept connections, which it starts with the first of them.
    async fn keep_one(&self) {
        post(self.gateway, "/chat", self.normal("keep this"))
            .await
            .expect(422)
            .await;
    }

    async fn history(&self) -> Vec<Value> {
        let path = format!("/sessions/{}/messages", self.session);
        let page = get(self.gateway, &path).await.expect(200).await.json().await;
        page["messages"].as_array().expect("messages").clone()
    }

    fn fault(&self, path: &str) -> Call {
        let mut body = json!({"message": "fault", "session_id": self.session});
        if let Who::Named(provider) = self.row.who {
            body["model"] = format!("{provider}/test-model").into();
        }
        let once = format!("once-in-{}", self.session);
        let call = Call::post(path).json(&body).header("Idempotency-Key", &once);
        call.header("X-Api-Key", CREDENTIAL)
    }
}

/// How many requests of the faulty turn the upstream got.
fn faults(row: &Row, upstream: &Upstream) -> usize {
    let requests = upstream.requests();
    let asked = |request: &&Request| question(row.speaks(), request) == "fault";
    requests.iter().filter(asked).count()
}

/// What the last message of a request says.
fn question(dialect: Dialect, request: &Request) -> String {
    let said = |message: &Value| {
        let places = ["/content", "/content/0/text", "/parts/0/text"];
        let texts = places.map(|place| message.pointer(place).and_then(Value::as_str));
        texts.into_iter().flatten().next().unwrap_or_default().to_owned()
    };
    dialect.conversation(&request.json).last().map(said).unwrap_or_default()
}

/// The faulty turn, as a client sees it.
async fn ask<G: Watched>(talk: &Talk<'_, G>, format: Format, oracle: &mut Oracle<'_, G>) -> Seen {
    let (row, path) = match format {
        Format::Json => (talk.row, "/chat"),
        Format::Text => (talk.row, "/chat/stream"),
        Format::Sse => (talk.row, "/chat/sse"),
    };
    let said = match &row.outcome {
        Outcome::Broken(Said::Exactly(said), ..) => said.len(),
        _ => 0,
    };
    let began = Instant::now();
    // Only a gate's row must be read while it is under way; JSON shows nothing until its end, so somebody else looks.
    let watch = async {
        let Some(gate) = &row.gate else { return };
        gate.reached().await;
        if format == Format::Json {
            read_events(&mut talk.fault("/chat/sse").to(talk.gateway).await, said).await;
            gate.open();
        }
    };
    let answer = async {
        let mut response = talk.fault(path).to(talk.gateway).await;
        let mut seen = Seen {
            status: response.status,
            run_id: response.headers.get("x-run-id").unwrap_or_default().to_owned(),
            ..Seen::default()
        };
        oracle.hear(&response.headers);
        match (format, response.status) {
            (Format::Sse, 200) => {
                if let Some(gate) = &row.gate {
                    read_events(&mut response, said).await;
                    gate.open();
                }
                let transcript = response.transcript().await;
                oracle.hear(&transcript.events);
                let last = transcript.terminal();
                seen.complete = last.event == "done";
                seen.problem = last.json()["error"].clone();
                seen.response = last.json()["response"].clone();
                seen.text = transcript.text();
                seen.heartbeats = transcript.heartbeats.len();
                let kinds: Vec<&str> = transcript.kinds();
                seen.tokens = kinds.iter().filter(|kind| **kind == "token").count();
                assert_eq!(kinds.len(), seen.tokens + 2, "{kinds:?}");
            }
            (Format::Text, 200) => {
                let mut bytes = Vec::new();
                while let Some(more) = response.next_bytes().await {
                    bytes.extend_from_slice(&more);
                    if let Some(gate) = row.gate.as_ref().filter(|_| bytes.len() >= said) {
                        gate.open();
                    }
                }
                seen.text = String::from_utf8(bytes).expect("whole characters");
                seen.complete = response.ending() == Some(&Ending::Complete);
                seen.aborted = !seen.complete;
                oracle.hear(&seen.text);
            }
            (_, 200) => {
                seen.response = response.json().await;
                oracle.hear(&seen.response);
                seen.text = seen.response["content"].as_str().unwrap_or_default().to_owned();
                seen.complete = true;
            }
            _ => {
                let retry_after = response.headers.get("retry-after").map(str::to_owned);
                seen.problem = response.problem_object().await;
                let told = seen.problem["retry_after"].as_u64().map(|seconds| seconds.to_string());
                assert_eq!(retry_after, told, "Retry-After and retry_after");
                oracle.hear(&seen.problem);
            }
        }
        seen
    };
    let (mut seen, ()) = tokio::join!(answer, watch);
    if seen.run_id.is_empty() {
        seen.run_id = seen.problem["run_id"].as_str().unwrap_or_default().to_owned();
    }
    seen.took = began.elapsed();
    seen
}

async fn read_events(response: &mut Response, bytes: usize) {
    let mut read = 0;
    while read < bytes {
        read += response.next_event().await.text.len();
    }
}

/// What the format promises for the row's outcome.
fn assert_outcome(row: &Row, format: Format, seen: &Seen, session: &str) {
    let (text, is_said) = match &row.outcome {
        Outcome::Refused(..) => ("", seen.text.is_empty()),
        Outcome::Broken(said, ..) if format == Format::Json => ("", said.is("") || seen.text.is_empty()),
        Outcome::Broken(said, ..) => ("", said.is(&seen.text)),
        // The standard has an event stream's lines end with LF, whatever they ended with before.
        Outcome::Answered(text, _) if format == Format::Sse => (
            text.as_str(),
            seen.text == text.replace("\r\n", "\n").replace('\r', "\n"),
        ),
        Outcome::Answered(text, _) => (text.as_str(), seen.text == *text),
    };
    assert!(is_said, "{:?} was read, of {text:?} {:?}", seen.text, row.outcome);
    match (&row.outcome, format) {
        (Outcome::Answered(_, finish), _) => {
            assert!(
                seen.complete && seen.status == 200 && seen.problem.is_null(),
                "{seen:?}"
            );
            if format != Format::Text {
                assert_eq!(seen.response["finish_reason"], *finish);
                assert_usage(row, &seen.response["usage"]);
            }
        }
        (Outcome::Broken(..), Format::Text) => assert!(seen.aborted && seen.status == 200, "{seen:?}"),
        (Outcome::Broken(_, status, code) | Outcome::Refused(status, code), _) => {
            let on_the_wire = if format == Format::Sse { 200 } else { *status };
            assert!(
                !seen.complete && !seen.aborted && seen.status == on_the_wire,
                "{seen:?}"
            );
            assert_eq!(
                (&seen.problem["code"], &seen.problem["status"]),
                (&json!(code), &json!(status))
            );
            assert_eq!(seen.problem["run_id"], seen.run_id, "{seen:?}");
            assert_eq!(seen.problem["session_id"], session, "{seen:?}");
            assert!(seen.problem["retryable"].is_boolean(), "{seen:?}");
            if row.retry_after.is_some() {
                assert_eq!(seen.problem["retry_after"].as_u64(), row.retry_after, "{seen:?}");
            }
        }
    }
}

/// What the run's record says of the row's outcome.
fn assert_record(row: &Row, run: &Value) {
    match &row.outcome {
        Outcome::Answered(text, finish) => {
            assert_eq!(run["error"], Value::Null, "{run}");
            assert_eq!(
                (&run["response"]["content"], &run["finish_reason"]),
                (&json!(text), &json!(finish))
            );
            assert_usage(row, &run["usage"]);
        }
        Outcome::Refused(..) | Outcome::Broken(..) => {
            assert_eq!(run["finish_reason"], Value::Null, "what broke has no finish: {run}");
            let partial = run["response"]["content"].as_str().unwrap_or_default();
            match &row.outcome {
                Outcome::Broken(said, ..) => assert!(said.is(partial), "kept with the run: {partial:?}"),
                _ => assert_eq!(partial, ""),
            }
        }
    }
    assert!(run["ended_at"].is_string() && run["last_seq"].is_u64(), "{run}");
}

fn assert_usage(row: &Row, usage: &Value) {
    match row.counted {
        Some((None, None, estimated)) => {
            let known = usage["input_tokens"].is_u64() && usage["output_tokens"].is_u64();
            assert!(known && usage["estimated"] == estimated, "{usage}");
        }
        Some((input, output, estimated)) => {
            let expected = (json!(input), json!(output), json!(estimated));
            let got = (&usage["input_tokens"], &usage["output_tokens"], &usage["estimated"]);
            assert_eq!(got, (&expected.0, &expected.1, &expected.2));
        }
        None => {}
    }
}

/// The next turn sends these messages, and the question.
fn assert_sent(dialect: Dialect, request: &Value, kept: &[Value], question: &str) {
    let sent = dialect.conversation(request);
    assert_eq!(sent.len(), kept.len() + 1, "{sent:?}");
    if dialect != Dialect::OpenAi {
        return; // others have other words for it
    }
    let roles_and_words = |messages: &[Value]| -> VecDeque<_> {
        messages
            .iter()
            .map(|m| (m["role"].clone(), m["content"].clone()))
            .collect()
    };
    let mut expected = roles_and_words(kept);
    expected.push_back(("user".into(), question.into()));
    assert_eq!(roles_and_words(&sent), expected, "what the next turn sends");
}

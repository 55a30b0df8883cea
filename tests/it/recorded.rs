//! Streams as providers sent them, each with what it must come to: whole, byte by byte, and cut at random.
//!
//! The recordings are not part of this repository: `RECORDED_STREAMS` says where they are. Without it this is skipped, in a line.

#![expect(clippy::print_stdout, reason = "that it was skipped has to be said")]

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use serde_json::{Value, json};
use sluicegate::{
    chat::{Chunk, FinishKind, fold::Round},
    provider::{ProviderError, decoding::Decoding, deviations::Deviations, dialect::Dialect, openai::OpenAi},
};

use crate::house::{Framing, Gateway, Place as _, Script, Upstream, post};

/// The dialect of a manifest's row; `None` for one that is not spoken yet.
fn dialect(row: &Value) -> Option<Box<dyn Dialect>> {
    match (row["provider"].as_str()?, row["api"].as_str()?) {
        ("groq", "openai-chat") => Some(Box::new(sluicegate::provider::groq::Groq::default())),
        ("azure", "openai-chat") => Some(Box::new(sluicegate::provider::azure::Azure::default())),
        (_, "ollama") => Some(Box::new(sluicegate::provider::ollama::Ollama)),
        (_, "openai-responses") => Some(Box::new(sluicegate::provider::responses::Responses::of("recorded"))),
        (_, "openai-chat") => Some(Box::new(OpenAi::default())),
        (_, "anthropic") => Some(Box::new(sluicegate::provider::anthropic::Anthropic::default())),
        (_, "gemini") => Some(Box::new(sluicegate::provider::gemini::Gemini)),
        _ => None,
    }
}

/// Where the recordings are, if they are.
fn recordings() -> Option<PathBuf> {
    let folder = std::env::var_os("RECORDED_STREAMS").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: RECORDED_STREAMS is not set, so there are no recorded streams to decode");
    }
    folder
}

/// The manifest's rows whose dialect is spoken.
fn rows(folder: &Path) -> Vec<(Value, Box<dyn Dialect>)> {
    let manifest = fs::read_to_string(folder.join("MANIFEST.jsonl")).expect("a manifest");
    let rows = manifest
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a row of JSON"));
    let spoken = rows.filter_map(|row| dialect(&row).map(|dialect| (row, dialect)));
    spoken.collect()
}

/// What a stream came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    chunks: Vec<Chunk>,
    error: Option<String>,
}

fn decode<'a>(
    dialect: &dyn Dialect,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Chunk>, Option<ProviderError>) {
    let mut decoding = Decoding::new(dialect, 16 << 20);
    let mut out = Vec::new();
    for piece in pieces {
        if let Err(error) = decoding.push(piece, &mut out) {
            return (out, Some(error));
        }
        if decoding.progress() == sluicegate::provider::dialect::Progress::Over {
            return (out, None);
        }
    }
    let end = decoding.end(None, &mut out);
    (out, end.err())
}

/// The same of a row: one that came as JSON although a stream was asked for is taken whole.
fn answer<'a>(
    row: &Value,
    dialect: &dyn Dialect,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Chunk>, Option<ProviderError>) {
    let media_type = row["headers"]["content-type"].as_str().unwrap_or("");
    if !media_type.starts_with("application/json") {
        return decode(dialect, pieces);
    }
    match dialect.whole(
        &pieces.into_iter().collect::<Vec<_>>().concat(),
        &mut Deviations::default(),
    ) {
        Ok(chunks) => (chunks, None),
        Err(error) => (Vec::new(), Some(error)),
    }
}

/// The same with invented ids made equal, text joined, and arguments joined: what must not depend on the cuts.
fn outcome((chunks, error): (Vec<Chunk>, Option<ProviderError>)) -> Outcome {
    let mut same = Vec::new();
    for chunk in chunks {
        match (same.last_mut(), chunk) {
            (Some(Chunk::Text(before)), Chunk::Text(more)) => before.push_str(&more),
            (Some(Chunk::Reasoning(before)), Chunk::Reasoning(more)) => before.push_str(&more),
            (_, Chunk::ToolCallStart { index, id, name }) => {
                let id = if id.starts_with("call_") && id.len() == 37 {
                    "invented".to_owned()
                } else {
                    id
                };
                same.push(Chunk::ToolCallStart { index, id, name });
            }
            (_, other) => same.push(other),
        }
    }
    let error = error.map(|error| format!("{:?} {}", error.kind, error.detail));
    Outcome { chunks: same, error }
}

/// What differs from the manifest's expectation, as text; empty if nothing does.
fn differences(expected: &Value, chunks: &[Chunk], error: Option<&ProviderError>) -> String {
    let mut wrong = String::new();
    let mut check = |what: &str, expected: &Value, found: Value| {
        if *expected != found {
            let _ = writeln!(wrong, "  {what}: expected {expected}, found {found}");
        }
    };
    let (mut text, mut reasoning, mut arguments) = (String::new(), String::new(), Vec::<String>::new());
    let (mut calls, mut round) = (Vec::new(), Round::default());
    for chunk in chunks {
        round.push(chunk);
        match chunk {
            Chunk::Text(more) => text.push_str(more),
            Chunk::Reasoning(more) => reasoning.push_str(more),
            Chunk::ToolCallStart { id, name, .. } => {
                calls.push((id.clone(), name.clone()));
                arguments.push(String::new());
            }
            Chunk::ToolCallDelta { index, arguments: more } => arguments[*index].push_str(more),
            _ => {}
        }
    }
    let words = |name: &str| expected[name].as_str().unwrap_or("").to_owned();
    check("text", &json!(words("text") + &words("refusal")), json!(text));
    let squeeze = |text: &str| text.replace("\n\n", "");
    check(
        "reasoning",
        &json!(squeeze(&words("reasoning"))),
        json!(squeeze(&reasoning)),
    );

    let finish = round.finish().map(|(reason, _)| match reason.kind {
        FinishKind::Stop => "stop",
        FinishKind::Length => "length",
        FinishKind::ContentFilter => "content_filter",
        FinishKind::ToolCalls => "tool_calls",
    });
    let ended = if error.is_some() { Some("error") } else { finish };
    check("finish_reason", &expected["finish_reason"], json!(ended));
    if error.is_some() {
        return wrong;
    }

    let parsed = |text: &str| match serde_json::from_str(if text.trim().is_empty() { "{}" } else { text }) {
        Ok(Value::Null) => json!({}),
        Ok(value) => value,
        Err(_) => json!({"__unparsed__": text}),
    };
    let expected_calls = expected["tool_calls"].as_array().cloned().unwrap_or_default();
    check("number of tool calls", &json!(expected_calls.len()), json!(calls.len()));
    for (at, ((id, name), arguments)) in calls.iter().zip(&arguments).enumerate().take(expected_calls.len()) {
        let call = &expected_calls[at];
        check("tool name", &call["name"], json!(name));
        check(
            "tool arguments",
            call.get("arguments").filter(|a| !a.is_null()).unwrap_or(&json!({})),
            parsed(arguments),
        );
        if !call["id"].is_null() {
            check("tool id", &call["id"], json!(id));
        }
    }

    let told = &expected["usage"];
    if let (Some(told), Some((_, usage))) = (told.as_object(), round.finish()) {
        let zero_or = |number: Option<u64>| json!(number.unwrap_or(0));
        let count = |name: &str| told.get(name).cloned().unwrap_or(Value::Null);
        // What a provider left out is 0 there, and unknown here.
        let left_out = count("input_tokens") == 0 && usage.input_tokens.is_none();
        let input = if left_out { json!(0) } else { json!(usage.input_tokens) };
        check("input tokens", &count("input_tokens"), input);
        check("output tokens", &count("output_tokens"), json!(usage.output_tokens));
        check("cached tokens", &count("cached"), zero_or(usage.cached_input_tokens));
        check("reasoning tokens", &count("reasoning"), zero_or(usage.reasoning_tokens));
    }
    wrong
}

#[test]
fn every_recorded_stream_comes_to_what_it_must() {
    let Some(folder) = recordings() else { return };
    let (mut seen, mut wrong) = (0, String::new());
    for (row, dialect) in rows(&folder) {
        let file = row["file"].as_str().expect("a file");
        let bytes = fs::read(folder.join(file)).expect("a recording");
        if row["http_status"] != 200 {
            continue;
        }
        seen += 1;
        let (chunks, error) = answer(&row, &*dialect, [bytes.as_slice()]);
        let differs = differences(&row["expected"], &chunks, error.as_ref());
        if !differs.is_empty() {
            let _ = writeln!(
                wrong,
                "{file}{}\n{differs}",
                error.map(|e| format!(" ({e})")).unwrap_or_default()
            );
        }
        let whole = outcome(answer(&row, &*dialect, [bytes.as_slice()]));
        let single = outcome(answer(&row, &*dialect, bytes.chunks(1)));
        if whole != single {
            let _ = writeln!(wrong, "{file}: byte by byte it is another: {single:?}");
        }
    }
    assert!(seen > 0, "no recorded stream in {}", folder.display());
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_recorded_refusal_is_an_error_of_its_kind() {
    use sluicegate::provider::error::Kind;
    let Some(folder) = recordings() else { return };
    let mut wrong = String::new();
    for (row, dialect) in rows(&folder) {
        let (file, status) = (
            row["file"].as_str().expect("a file"),
            row["http_status"].as_u64().expect("a status"),
        );
        if status == 200 {
            continue;
        }
        let headers = row["headers"].as_object().expect("headers").iter();
        let headers = headers.filter_map(|(name, value)| Some((name.parse().ok()?, value.as_str()?.parse().ok()?)));
        let body = fs::read(folder.join(file)).expect("a recording");
        let status = u16::try_from(status).expect("a status");
        let error = dialect.refusal(status, &headers.collect(), &body);
        let fits = match status {
            401 | 403 => error.kind == Kind::Auth,
            404 => error.kind == Kind::NotFound,
            429 => matches!(error.kind, Kind::RateLimited | Kind::Quota),
            503 | 529 => error.kind == Kind::Overloaded,
            500 | 502 | 504 => error.kind == Kind::Server,
            _ => matches!(
                error.kind,
                Kind::Rejected | Kind::ContextTooLong | Kind::Auth | Kind::NotFound | Kind::Quota
            ),
        };
        if !fits || error.status != Some(status) {
            let _ = writeln!(wrong, "{file}: {status} is {error:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_recorded_stream_comes_to_the_same_wherever_it_is_cut(cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..24)) {
        let Some(folder) = std::env::var_os("RECORDED_STREAMS").map(PathBuf::from) else { return Ok(()) };
        for (row, dialect) in rows(&folder).into_iter().filter(|(row, _)| row["http_status"] == 200) {
            let bytes = fs::read(folder.join(row["file"].as_str().expect("a file"))).expect("a recording");
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.sort_unstable();
            at.push(bytes.len());
            let mut from = 0;
            let pieces: Vec<&[u8]> = at.into_iter().map(|to| &bytes[std::mem::replace(&mut from, to)..to]).collect();
            let cut = outcome(answer(&row, &*dialect, pieces));
            prop_assert_eq!(cut, outcome(answer(&row, &*dialect, [bytes.as_slice()])), "{}", row["file"]);
        }
    }
}

/// The kind of provider that a row is from.
fn kind(row: &Value) -> Option<&'static str> {
    Some(match (row["provider"].as_str()?, row["api"].as_str()?) {
        ("groq", "openai-chat") => "groq",
        ("azure", "openai-chat") => "azure",
        (_, "openai-chat") => "openai",
        (_, "openai-responses") => "openai-responses",
        (_, "anthropic") => "anthropic",
        (_, "gemini") => "gemini",
        (_, "ollama") => "ollama",
        _ => return None,
    })
}

#[tokio::test]
async fn every_recorded_stream_comes_to_it_through_the_whole_gateway() {
    let Some(folder) = recordings() else { return };
    let rows: Vec<Value> = rows(&folder).into_iter().map(|(row, _)| row).collect();
    let bodies: HashMap<String, (String, Vec<u8>)> = rows
        .iter()
        .map(|row| {
            let file = row["file"].as_str().expect("a file").to_owned();
            let media_type = row["headers"]["content-type"]
                .as_str()
                .unwrap_or("text/event-stream")
                .to_owned();
            let bytes = fs::read(folder.join(&file)).expect("a recording");
            (file, (media_type, bytes))
        })
        .collect();
    let upstream = Upstream::answering(move |request| {
        let asked = request.json.to_string();
        let file = asked
            .split("recording ")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .expect("a recording's name");
        let (media_type, bytes) = &bodies[file];
        let head = Script::head(200, &[("content-type", media_type)], Framing::Chunked);
        head.send(bytes.clone()).end().in_pieces(&[1, 7, 113, 1021])
    })
    .await;
    let place = upstream.addr();
    let mut recipe = Gateway::with(&upstream).toml("[agents.assistant]\nallowed_models = [\"*\"]\nmax_tool_rounds = 0");
    for kind in [
        "openai",
        "openai-responses",
        "anthropic",
        "gemini",
        "groq",
        "azure",
        "ollama",
    ] {
        let path = if kind == "azure" { "/openai/v1" } else { "" };
        recipe = recipe.toml(&format!(
            "[providers.{kind}]\nkind = \"{kind}\"\nbase_url = \"http://{place}{path}\"\napi_key = \"k\"\nmax_retries = 0\nbreaker = false\n\
             default_model = \"m\"\nmax_event = \"16MiB\""
        ));
    }
    let gateway = recipe.start().await;

    let (mut seen, mut wrong) = (0, String::new());
    for row in rows.iter().filter(|row| row["http_status"] == 200) {
        let (file, expected) = (row["file"].as_str().expect("a file"), &row["expected"]);
        let model = format!("{}/recorded", kind(row).expect("a kind"));
        let ask = json!({"message": format!("recording {file}"), "model": model, "store": false});
        let answer = post(&gateway, "/chat", ask).await;
        seen += 1;
        let status = answer.status;
        let body = if status == 200 {
            answer.json().await
        } else {
            answer.problem_object().await
        };
        let mut check = |what: &str, expected: Value, found: &Value| {
            if expected != *found {
                let _ = writeln!(
                    wrong,
                    "{file}: {what}: expected {expected}, found {found} ({})",
                    body["code"]
                );
            }
        };
        if expected["finish_reason"] == "error" {
            check("failed", json!(true), &json!(status >= 400));
            continue;
        }
        check("status", json!(200), &json!(status));
        let words = |name: &str| expected[name].as_str().unwrap_or("");
        check(
            "content",
            json!([words("text"), words("refusal")].concat()),
            &body["content"],
        );
        check(
            "finish_reason",
            expected["finish_reason"].clone(),
            &body["finish_reason"],
        );
        if expected["usage"].is_object() && body["usage"]["estimated"] == false {
            check(
                "input",
                expected["usage"]["input_tokens"].clone(),
                &body["usage"]["input_tokens"],
            );
            check(
                "output",
                expected["usage"]["output_tokens"].clone(),
                &body["usage"]["output_tokens"],
            );
        }
    }
    assert!(seen > 0, "no recorded stream in {}", folder.display());
    assert!(wrong.is_empty(), "{wrong}");
}

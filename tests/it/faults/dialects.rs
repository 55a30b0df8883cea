//! The most telling rows, whoever the provider is: every dialect has its own end, and must miss it.

use bytes::Bytes;
use memchr::memmem;
use serde_json::{Value, json};

use super::row::{Row, answered, broken, refused, status, words};
use super::{KEY, WORDS};
use crate::house::{Dialect, Framing, Script};

/// Room for an event of 1 MiB, also where there is more by default.
const ROOM: &str = "[runs]\ndeadline = \"20s\"\n[providers.model]\nmax_event = \"1MiB\"";

pub(super) fn rows() -> Vec<Row> {
    let all = Dialect::ALL.into_iter().flat_map(rows_of);
    all.chain(bare()).collect()
}

/// Gemini's errors that stand in the stream by themselves, without `data:`.
fn bare() -> Vec<Row> {
    let (dialect, ten) = (Dialect::Gemini, words(10));
    let told = |code: u16, status: &str| {
        let message = format!("{WORDS} {KEY}");
        let error = json!({"error": {"code": code, "message": message, "status": status}});
        serde_json::to_string_pretty(&error).expect("JSON")
    };
    let (overloaded, internal) = (told(503, "UNAVAILABLE"), told(500, "INTERNAL"));
    let first = |name: &str, body: String, code| {
        let row = Row::new(name, [dialect.script([]).send(body).end()], refused(503, code));
        row.dialect(dialect).toml(ROOM).calls(3)
    };
    let after = |name: &str, script: Script, status, code| {
        let row = Row::new(name, [script], broken(&ten, status, code));
        row.dialect(dialect).toml(ROOM).tokens(10)
    };
    let mended = Row::new(
        "F40 a bare error, and then an answer (gemini)",
        [
            dialect.script([]).send(overloaded.clone()).end(),
            dialect.round(&["Well."], &[]),
        ],
        answered("Well."),
    );
    let finished = Row::new(
        "F39 a bare error after the finish (gemini)",
        [dialect.script(events(dialect, &ten)).send(internal.clone()).end()],
        answered(ten.concat()),
    );
    vec![
        first(
            "F40 overloaded, bare, as the first thing (gemini)",
            overloaded.clone(),
            "upstream_overloaded",
        )
        .kind("overloaded")
        .again("overloaded", 2),
        first(
            "F40 exhausted, bare, in an array, as the first thing (gemini)",
            format!("[{}\r\n]\r\n", told(429, "RESOURCE_EXHAUSTED").replace('\n', "\r\n")),
            "upstream_rate_limited",
        )
        .kind("rate_limited")
        .again("rate_limited", 2),
        mended.dialect(dialect).toml(ROOM).again("overloaded", 1).calls(2),
        after(
            "F41 a bare error after ten words (gemini)",
            saying(dialect, &ten).send(internal).end(),
            502,
            "upstream_error",
        )
        .kind("server_error"),
        after(
            "F41 overloaded, bare, after ten words, byte by byte (gemini)",
            saying(dialect, &ten)
                .send(format!("\r\n{overloaded}\r\n\r\n"))
                .end()
                .byte_by_byte(),
            503,
            "upstream_overloaded",
        )
        .kind("overloaded"),
        finished
            .dialect(dialect)
            .toml(ROOM)
            .tolerated("dup_terminal")
            .tokens(10),
    ]
}

fn rows_of(dialect: Dialect) -> Vec<Row> {
    let (ten, forty) = (words(10), words(40));
    let row = |name: &str, script: Script, said: &[String], code| {
        let row = Row::new(
            format!("{name} ({})", dialect.kind()),
            [script],
            broken(said, 502, code),
        );
        row.dialect(dialect).toml(ROOM)
    };
    let endless = saying(dialect, &ten).bytes(format!("{:x}\r\n{}", 64 << 20, begun(dialect)));
    let malformed = saying(dialect, &ten).send(format!("{}{{\"{WORDS}\": [1,\n\n", begun(dialect)));
    let after = rest(dialect, &ten);
    let rejection = Row::new(
        format!("F28 a refusal as a whole answer ({})", dialect.kind()),
        [status(200, rejection(dialect).to_string())],
        refused(502, "upstream_error"),
    );
    let body = whole(dialect).to_string();
    let framing = Framing::Length(body.len() + 9);
    let json = [("content-type", "application/json")];
    let short = Row::new(
        format!("F33 a whole answer that is shorter than promised ({})", dialect.kind()),
        [Script::head(200, &json, framing).bytes(body).cut()],
        refused(502, "upstream_truncated"),
    );
    vec![
        rejection.dialect(dialect).toml(ROOM).kind("in_band_error"),
        short.dialect(dialect).toml(ROOM).kind("incomplete_body"),
        row(
            "F33 a FIN inside the body",
            saying(dialect, &forty).cut(),
            &forty,
            "upstream_truncated",
        )
        .kind("incomplete_body")
        .tokens(40),
        row(
            "F35 a clean end, and no word of it",
            saying(dialect, &forty).end(),
            &forty,
            "upstream_truncated",
        )
        .kind("no_terminal")
        .tokens(40),
        row(
            "F37 all that comes at the end, but the end",
            unfinished(dialect, &forty).end(),
            &forty,
            "upstream_truncated",
        )
        .kind("no_terminal")
        .tokens(40),
        row(
            "F41 an error after ten words",
            saying(dialect, &ten).send(error(dialect)).end(),
            &ten,
            "upstream_error",
        )
        .tokens(10),
        row(
            "F42 one malformed event amid good ones",
            after.into_iter().fold(malformed, Script::send).end(),
            &ten,
            "upstream_protocol",
        )
        .kind("bad_event")
        .tokens(10),
        row(
            "F47 an event without an end",
            endless.repeat_raw("x".repeat(64 << 10), 1024),
            &ten,
            "upstream_protocol",
        )
        .kind("event_limit")
        .sent_at_most(24 << 20),
    ]
}

/// All events of an answer in these words.
fn events(dialect: Dialect, words: &[String]) -> Vec<Bytes> {
    dialect.events(&words.iter().map(String::as_str).collect::<Vec<_>>(), &[])
}

/// How many of the events there are up to the last word.
fn spoken(events: &[Bytes], words: &[String]) -> usize {
    let last = words.last().expect("words");
    let says = |event: &Bytes| memmem::find(event, last.as_bytes()).is_some();
    events.iter().position(says).expect("the last word") + 1
}

/// A stream that has come to the last of these words.
fn saying(dialect: Dialect, words: &[String]) -> Script {
    let mut events = events(dialect, words);
    events.truncate(spoken(&events, words));
    dialect.script(events)
}

/// What comes after the last of these words, the end among it.
fn rest(dialect: Dialect, words: &[String]) -> Vec<Bytes> {
    let mut events = events(dialect, words);
    events.split_off(spoken(&events, words))
}

/// A whole answer, but for the event by which it is one.
fn unfinished(dialect: Dialect, words: &[String]) -> Script {
    let events = events(dialect, words);
    let (all, kept): (usize, Vec<Bytes>) = (
        events.len(),
        events.into_iter().filter(|event| !dialect.completes(event)).collect(),
    );
    assert_eq!(kept.len() + 1, all, "one event makes it whole");
    dialect.script(kept)
}

/// An answer that is no stream.
fn whole(dialect: Dialect) -> Value {
    let text = json!({"type": "text", "text": "Hi"});
    match dialect {
        Dialect::OpenAi | Dialect::Groq | Dialect::Azure => {
            json!({"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]})
        }
        Dialect::Responses => {
            json!({"status": "completed", "output": [{"type": "message", "content": [text]}]})
        }
        Dialect::Anthropic => json!({"content": [text], "stop_reason": "end_turn"}),
        Dialect::Gemini => {
            json!({"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]})
        }
        Dialect::Ollama => json!({"message": {"content": "Hi"}, "done": true, "done_reason": "stop"}),
    }
}

/// How an event begins.
fn begun(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Ollama => "",
        _ => "data: ",
    }
}

/// An error that refuses the request, in the provider's way.
fn rejection(dialect: Dialect) -> Value {
    let message = format!("{WORDS} {KEY}");
    match dialect {
        Dialect::Ollama => json!({"error": message, "status_code": 400}),
        Dialect::Anthropic => {
            json!({"type": "error", "error": {"type": "invalid_request_error", "message": message}})
        }
        Dialect::Gemini => json!({"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": message}}),
        Dialect::OpenAi | Dialect::Groq | Dialect::Azure | Dialect::Responses => {
            json!({"error": {"message": message, "type": "invalid_request_error", "code": null}})
        }
    }
}

/// An error in the middle of a stream, in the provider's way.
fn error(dialect: Dialect) -> Bytes {
    let message = format!("{WORDS} {KEY}");
    let sse = |name: &str, data: Value| format!("event: {name}\ndata: {data}\n\n").into();
    match dialect {
        Dialect::Ollama => format!("{}\n", json!({"error": message})).into(),
        Dialect::Anthropic => sse(
            "error",
            json!({"type": "error", "error": {"type": "api_error", "message": message}}),
        ),
        Dialect::Responses => sse(
            "error",
            json!({"type": "error", "code": "server_error", "message": message, "param": null}),
        ),
        Dialect::Gemini => {
            let told = json!({"error": {"code": 500, "status": "INTERNAL", "message": message}});
            format!("data: {told}\r\n\r\n").into()
        }
        Dialect::OpenAi | Dialect::Groq | Dialect::Azure => {
            let told = json!({"error": {"message": message, "type": "weird_error", "code": null}});
            format!("data: {told}\n\n").into()
        }
    }
}

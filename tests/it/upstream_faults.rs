//! What an upstream can do to us, as a table: every row through all three formats, each on a session that was there
//! before and goes on afterwards.
//!
//! A row says what the provider does and what comes of it. What must hold after every row, whatever it was, is said once,
//! in [`check`]: one terminal outcome, the run's record says the same, the session is as if a failed run had never been,
//! the next turn works, the upstream's connection is let go, and nobody is told a key or an upstream's own words.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::{JoinSet, LocalSet};

use crate::house::{
    Call, Ending, Framing, Gate, Gateway, Place, Request, Response, Script, Step, Upstream, black_hole, closed_port,
    get, openai, post, within,
};

/// The provider's key: in no answer, whatever the provider echoes.
const KEY: &str = "sk-canary-Kd83hQ0s";
/// Words of the upstream's errors: in no answer either.
const WORDS: &str = "canary-words-of-the-upstream";
/// How soon the upstream must be let go of once the run has ended.
const LET_GO: Duration = Duration::from_secs(1);
/// Where nothing is about time, there is enough of it for a machine that has other things to do.
const PATIENT: &str = r#"
[runs]
deadline = "20s"
[providers.openai]
connect_timeout = "4s"
first_byte_timeout = "10s"
first_token_timeout = "10s"
gap_timeout = "10s"
"#;
/// Where silence is the story: it takes a second, and is filled.
const SILENT: &str = "[server]\nheartbeat = \"100ms\"";
/// How many stories are under way at a time.
const AT_A_TIME: usize = 6;

/// What comes of it.
#[derive(Clone, Debug)]
enum Outcome {
    /// Nothing was said: this status and code.
    Refused(u16, &'static str),
    /// It broke off after words: what was said, and the status and code where nothing of it was sent yet.
    Broken(Said, u16, &'static str),
    /// A whole answer, and why it finished.
    Answered(String, &'static str),
}

/// What was said before it broke off.
#[derive(Clone, Debug)]
enum Said {
    Exactly(String),
    /// These words over and over, at least once, and at most so many bytes.
    Repeated(String, usize),
}

impl Said {
    fn is(&self, text: &str) -> bool {
        match self {
            Said::Exactly(said) => text == said,
            Said::Repeated(word, most) => {
                !text.is_empty() && text.len() <= *most && text.replace(word.as_str(), "").is_empty()
            }
        }
    }
}

/// Who the provider is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Scripted,
    NobodyListens,
    NobodyAccepts,
}

/// The tokens that the gateway counts: input, output, and whether it had to estimate.
type Counted = (Option<u64>, Option<u64>, bool);

struct Row {
    name: &'static str,
    who: Who,
    /// What the provider does at the first call, the second, ...; the last goes on.
    scripts: Vec<Script>,
    /// Stands in the script; opened once the client has read what is said before it.
    gate: Option<Gate>,
    outcome: Outcome,
    toml: &'static str,
    calls: usize,
    /// The least number of heartbeats.
    heartbeats: usize,
    /// In how many tokens the answer comes.
    tokens: Option<usize>,
    counted: Option<Counted>,
    retry_after: Option<u64>,
    took: (Duration, Duration),
    /// The most that the upstream may get rid of, in bytes.
    sent: u64,
}

impl Row {
    fn new(name: &'static str, scripts: impl Into<Vec<Script>>, outcome: Outcome) -> Self {
        Self {
            name,
            who: Who::Scripted,
            scripts: scripts.into(),
            gate: None,
            outcome,
            toml: PATIENT,
            calls: 1,
            heartbeats: 0,
            tokens: None,
            counted: None,
            retry_after: None,
            took: (Duration::ZERO, Duration::from_secs(15)),
            sent: u64::MAX,
        }
    }
    fn who(self, who: Who) -> Self {
        Self { who, ..self }
    }
    fn gate(self, gate: Gate) -> Self {
        Self {
            gate: Some(gate),
            ..self
        }
    }
    fn toml(self, toml: &'static str) -> Self {
        Self { toml, ..self }
    }
    fn calls(self, calls: usize) -> Self {
        Self { calls, ..self }
    }
    fn heartbeats(self, heartbeats: usize) -> Self {
        Self { heartbeats, ..self }
    }
    fn tokens(self, tokens: usize) -> Self {
        Self {
            tokens: Some(tokens),
            ..self
        }
    }
    fn counted(self, input: u64, output: u64) -> Self {
        Self {
            counted: Some((Some(input), Some(output), false)),
            ..self
        }
    }
    fn estimated(self) -> Self {
        Self {
            counted: Some((None, None, true)),
            ..self
        }
    }
    fn retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..self
        }
    }
    fn not_before(mut self, milliseconds: u64) -> Self {
        self.took.0 = Duration::from_millis(milliseconds);
        self
    }
    fn within(mut self, milliseconds: u64) -> Self {
        self.took.1 = Duration::from_millis(milliseconds);
        self
    }
    fn sent_at_most(self, bytes: u64) -> Self {
        Self { sent: bytes, ..self }
    }
}

fn refused(status: u16, code: &'static str) -> Outcome {
    Outcome::Refused(status, code)
}

fn broken(said: &[String], status: u16, code: &'static str) -> Outcome {
    Outcome::Broken(Said::Exactly(said.concat()), status, code)
}

fn answered(text: impl Into<String>) -> Outcome {
    Outcome::Answered(text.into(), "stop")
}

/// So many words, each of its own.
fn words(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("w{number} ")).collect()
}

/// A stream that says these words, and is not at its end.
fn saying(words: &[String]) -> Script {
    words.iter().fold(Script::sse().role(), |script, word| script.say(word))
}

/// An error's body, with the key and the upstream's own words in it.
fn told(code: &str, kind: &str) -> String {
    json!({"error": {"message": format!("{WORDS}: key {KEY}"), "type": kind, "param": WORDS, "code": code}}).to_string()
}

fn status(status: u16, body: impl Into<Bytes>) -> Script {
    Script::status(status, &[], body)
}

/// The good answer, as its events, in another spelling of the event stream format.
fn spelled(line_end: &str, data: &str) -> Script {
    let events = [
        openai::role(),
        openai::text("Hé"),
        openai::text("llo\n"),
        openai::finish("stop"),
        openai::done(),
    ];
    let text: String = events
        .iter()
        .map(|event| String::from_utf8_lossy(event).into_owned())
        .collect();
    Script::sse()
        .send(text.replace("data: ", data).replace('\n', line_end))
        .end()
}

/// `bytes` as one gzip member that is only stored, not packed: whoever looks for words in it finds them.
fn gzip_stored(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a short text").to_le_bytes();
    let head = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1, length[0], length[1], !length[0], !length[1],
    ];
    [&head, bytes, &[0; 8]].concat()
}

/// A gzip member that unpacks to ten megabytes of zeros: one zero, and then copies of it, 258 at a time.
fn gzip_bomb() -> Vec<u8> {
    let mut bits = vec![true, true, false]; // the last block, fixed codes
    bits.extend([false, false, true, true, false, false, false, false]); // a zero
    let copy = [
        true, true, false, false, false, true, false, true, false, false, false, false, false,
    ];
    (0..10 * (1 << 20) / 258).for_each(|_| bits.extend(copy));
    bits.extend([false; 7]);
    let packed = bits
        .chunks(8)
        .map(|byte| byte.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit)));
    let mut bomb = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    bomb.extend(packed);
    bomb
}

fn before_headers() -> Vec<Row> {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(100);
    let headers: String = (0..10_000).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = "y".repeat(1 << 20);
    vec![
        Row::new("F01 nobody listens", [], refused(502, "upstream_connect"))
            .who(Who::NobodyListens)
            .calls(0),
        Row::new("F02 nobody accepts", [], refused(504, "upstream_timeout"))
            .who(Who::NobodyAccepts)
            .calls(0)
            .toml("[runs]\ndeadline = \"20s\"\n[providers.openai]\nconnect_timeout = \"1500ms\"\nfirst_byte_timeout = \"10s\"")
            .not_before(1_450)
            .within(2_900), // asking again would take twice as long
        Row::new(
            "F09 a request, and a FIN",
            [Script::raw().cut()],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F10 a request, and silence",
            [Script::raw().hang()],
            refused(504, "upstream_timeout"),
        )
        .not_before(950)
        .toml(SILENT)
        .heartbeats(2),
        Row::new(
            "F11 another protocol",
            [Script::raw().bytes("SSH-2.0-x\r\n").hang()],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F11 random bytes",
            [Script::raw()
                .bytes(&b"\x16\x03\x01\x00\xa5\x01\x00\xff\xfe\r\n\r\n"[..])
                .cut()],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F12 a flood of hints, and no answer",
            [Script::raw().repeat(hints.clone(), Duration::ZERO, 100).cut()],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F12 a flood of hints without an end is silence",
            [Script::raw().repeat(hints, Duration::from_millis(5), 10_000)],
            refused(504, "upstream_timeout"),
        )
        .toml(SILENT),
        Row::new(
            "F13 a header of 1 MiB",
            [Script::raw()
                .bytes(format!("HTTP/1.1 200 OK\r\nx: {long}\r\n\r\n"))
                .hang()],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F13 ten thousand headers",
            [Script::raw().bytes(format!("HTTP/1.1 200 OK\r\n{headers}\r\n")).hang()],
            refused(502, "upstream_protocol"),
        ),
    ]
}

fn statuses(elsewhere: &str) -> Vec<Row> {
    let good = || openai::answer(&["Well."]);
    let limited = |headers: &[(&str, &str)]| Script::status(429, headers, told("rate_limit_exceeded", "requests"));
    let dated = [
        ("date", "Sat, 21 Nov 2026 10:00:00 GMT"),
        ("retry-after", "Sat, 21 Nov 2026 12:00:00 GMT"),
    ];
    let page = format!("<html>{WORDS}{}", "x".repeat(64 << 10));
    let whole = json!({"id": "x", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop",
        "message": {"role": "assistant", "content": "All at once.", "refusal": null}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 6}});
    let gzip = [("content-encoding", "gzip")];
    let events = [("content-type", "text/event-stream")];
    let mut rows = vec![
        Row::new(
            "F15 a 400 that echoes the key",
            [status(400, told("unsupported_value", "invalid_request_error"))],
            refused(422, "upstream_rejected"),
        ),
        Row::new(
            "F16 a 400 about the context's length",
            [status(400, told("context_length_exceeded", "invalid_request_error"))],
            refused(422, "context_too_long"),
        ),
        Row::new(
            "F17 a 401 that echoes the key",
            [status(401, told("invalid_api_key", "invalid_request_error"))],
            refused(502, "upstream_auth"),
        ),
        Row::new(
            "F17 a 403",
            [status(403, told("", "permission"))],
            refused(502, "upstream_auth"),
        ),
        Row::new(
            "F18 no such model",
            [status(404, told("model_not_found", "invalid_request_error"))],
            refused(502, "upstream_error"),
        ),
        Row::new(
            "F19 a 429 for a second",
            [limited(&[("retry-after", "1")]), good()],
            answered("Well."),
        )
        .calls(2)
        .not_before(990),
        Row::new(
            "F20 a 429 for an hour",
            [limited(&[("retry-after", "3600")])],
            refused(503, "upstream_rate_limited"),
        )
        .retry_after(600),
        Row::new(
            "F20 a 429 until a date",
            [limited(&dated)],
            refused(503, "upstream_rate_limited"),
        )
        .retry_after(600),
        Row::new(
            "F20 a 429 for decades",
            [limited(&[("retry-after", "1e9")])],
            refused(503, "upstream_rate_limited"),
        )
        .retry_after(600),
        Row::new(
            "F20 a 429 for less than no time",
            [limited(&[("retry-after", "-5")])],
            refused(503, "upstream_rate_limited"),
        )
        .calls(3)
        .retry_after(1),
        Row::new(
            "F20 a 429 for x",
            [limited(&[("retry-after", "x")])],
            refused(503, "upstream_rate_limited"),
        )
        .calls(3)
        .retry_after(1),
        Row::new(
            "F21 a 500 once",
            [status(500, told("", "server_error")), good()],
            answered("Well."),
        )
        .calls(2),
        Row::new(
            "F22 a 503 always",
            [status(503, told("", "overloaded"))],
            refused(503, "upstream_overloaded"),
        )
        .calls(3)
        .retry_after(1),
        Row::new(
            "F22 a 529 always",
            [status(529, told("", "overloaded_error"))],
            refused(503, "upstream_overloaded"),
        )
        .calls(3)
        .retry_after(1),
        // It says that 5 MB will come, and stops at 64 KiB: whoever wants more of it than that waits in vain.
        Row::new(
            "F23 a 500 with a page of 5 MB",
            [
                Script::head(500, &[("content-type", "text/html")], Framing::Length(5_000_000))
                    .send(page)
                    .hang(),
            ],
            refused(502, "upstream_error"),
        )
        .toml("[runs]\ndeadline = \"20s\"\n[providers.openai]\nfirst_byte_timeout = \"10s\"\nfirst_token_timeout = \"10s\"\nmax_retries = 0")
        .within(5_000),
        Row::new(
            "F24 a 500 in gzip",
            [Script::status(
                500,
                &gzip,
                gzip_stored(told("", "server_error").as_bytes()),
            )],
            refused(502, "upstream_error"),
        )
        .calls(3),
        Row::new(
            "F25 a 500 in gzip that is a bomb",
            [Script::status(500, &gzip, gzip_bomb())],
            refused(502, "upstream_error"),
        )
        .toml("[providers.openai]\nfirst_byte_timeout = \"4s\"\nmax_retries = 0")
        .within(3_000),
        Row::new(
            "F26 a redirect elsewhere",
            [Script::status(302, &[("location", elsewhere)], WORDS)],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F26 a redirect that keeps the method",
            [Script::status(307, &[("location", elsewhere)], WORDS)],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F27 a 204",
            [Script::raw().bytes("HTTP/1.1 204 No Content\r\n\r\n")],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F27 a 304",
            [Script::raw().bytes("HTTP/1.1 304 Not Modified\r\n\r\n")],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F27 an empty stream",
            [Script::status(200, &events, "")],
            refused(502, "upstream_protocol"),
        ),
        Row::new("F27 empty JSON", [status(200, "")], refused(502, "upstream_protocol")),
        Row::new(
            "F27 nothing, of no type",
            [Script::raw().bytes("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F28 an error as a whole answer",
            [status(200, told("x", "invalid_request_error"))],
            refused(502, "upstream_error"),
        ),
        Row::new(
            "F29 a login page",
            [Script::status(
                200,
                &[("content-type", "text/html; charset=utf-8")],
                format!("<html>{WORDS}"),
            )],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F30 a whole answer though a stream was asked for",
            [status(200, whole.to_string())],
            answered("All at once."),
        )
        .tokens(1)
        .counted(5, 6),
    ];
    for encoding in ["br", "gzip", "deflate"] {
        let headers = [events[0], ("content-encoding", encoding)];
        let script = Script::head(200, &headers, Framing::Chunked)
            .send(gzip_stored(WORDS.as_bytes()))
            .end();
        rows.push(Row::new(
            "F59 an encoding that was not asked for",
            [script],
            refused(502, "upstream_protocol"),
        ));
    }
    for charset in ["utf-16", "iso-8859-1"] {
        let script = Script::head(
            200,
            &[("content-type", &format!("text/event-stream; charset={charset}"))],
            Framing::Chunked,
        );
        let script = script.role().say("x").complete();
        rows.push(Row::new(
            "F59 another charset",
            [script],
            refused(502, "upstream_protocol"),
        ));
    }
    let named = Script::head(
        200,
        &[("content-type", "text/event-stream; charset=\"UTF-8\"")],
        Framing::Chunked,
    );
    rows.push(Row::new(
        "F59 the right charset",
        [named.role().say("x").complete()],
        answered("x"),
    ));
    rows
}

fn broken_bodies() -> Vec<Row> {
    let (ten, twenty, thirty, forty) = (words(10), words(20), words(30), words(40));
    let torn = Gate::new("the words before the reset were read");
    let torn_script = saying(&forty).wait(&torn).reset();
    let overloaded = json!({"message": format!("{WORDS} {KEY}"), "type": "overloaded_error", "code": null});
    let reported = json!({"message": format!("{WORDS} {KEY}"), "type": "weird_error", "code": null});
    let half = [
        openai::text("a"),
        Bytes::from_static(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\ud83d\"}}]}\n\n"),
    ];
    let other_half = Bytes::from_static(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\ude00\"}}]}\n\n");
    let big = "0123456789abcdef".repeat(64);
    vec![
        Row::new(
            "F31 headers, and silence",
            [Script::sse().hang()],
            refused(504, "upstream_timeout"),
        )
        .not_before(950)
        .toml(SILENT)
        .heartbeats(2),
        Row::new(
            "F31 a role, and silence",
            [Script::sse().role().hang()],
            refused(504, "upstream_timeout"),
        )
        .not_before(950)
        .toml(SILENT)
        .heartbeats(2),
        Row::new(
            "F32 twenty words, and silence",
            [saying(&twenty).hang()],
            broken(&twenty, 504, "upstream_timeout"),
        )
        .not_before(950)
        .tokens(20)
        .toml(SILENT)
        .heartbeats(2),
        Row::new(
            "F33 forty words, and a FIN inside the body",
            [saying(&forty).cut()],
            broken(&forty, 502, "upstream_truncated"),
        )
        .tokens(40),
        Row::new(
            "F33 forty words, and a FIN inside a chunk",
            [saying(&forty).bytes("ff\r\ndata: {\"choices\":[{\"ind").cut()],
            broken(&forty, 502, "upstream_truncated"),
        )
        .tokens(40),
        Row::new(
            "F34 forty words, and a RST",
            [torn_script],
            broken(&forty, 502, "upstream_truncated"),
        )
        .gate(torn)
        .tokens(40),
        Row::new(
            "F35 forty words, and a clean end",
            [saying(&forty).end()],
            broken(&forty, 502, "upstream_truncated"),
        )
        .tokens(40),
        Row::new(
            "F37 no finish, but [DONE]",
            [saying(&forty).usage(1, 2).done().end()],
            broken(&forty, 502, "upstream_truncated"),
        )
        .tokens(40),
        Row::new(
            "F40 overloaded, as the first event",
            [Script::sse().role().send(openai::error(overloaded)).end()],
            refused(503, "upstream_overloaded"),
        )
        .calls(3),
        Row::new(
            "F41 an error after ten words",
            [saying(&ten).send(openai::error(reported)).end()],
            broken(&ten, 502, "upstream_error"),
        )
        .tokens(10),
        Row::new(
            "F41 a mendable error after ten words is not mended",
            [saying(&ten).send(openai::error(json!({"type": "server_error"}))).end()],
            broken(&ten, 502, "upstream_error"),
        )
        .tokens(10),
        Row::new(
            "F42 one malformed event amid good ones",
            [thirty
                .iter()
                .fold(
                    saying(&thirty).send(format!("data: {{\"{WORDS}\": [1,\n\n")),
                    |script, word| script.say(word),
                )
                .complete()],
            broken(&thirty, 502, "upstream_protocol"),
        )
        .tokens(30),
        Row::new(
            "F42 an event that is JSON and no event",
            [saying(&thirty)
                .send(format!("data: {{\"choices\": \"{WORDS}\"}}\n\n"))
                .complete()],
            broken(&thirty, 502, "upstream_protocol"),
        ),
        Row::new(
            "F44 pings, and never a word",
            [Script::sse().repeat(": ping\n\n", Duration::from_millis(20), 500)],
            refused(504, "upstream_timeout"),
        )
        .toml(SILENT)
        .heartbeats(2)
        .within(6_000),
        Row::new(
            "F44 pings after words",
            [saying(&ten).repeat(": ping\n\n", Duration::from_millis(20), 500)],
            broken(&ten, 504, "upstream_timeout"),
        )
        .toml(SILENT)
        .heartbeats(2)
        .within(6_000),
        Row::new(
            "F45 a word now and then, for longer than a run may take",
            [Script::sse().repeat(openai::text("drip "), Duration::from_millis(50), 200)],
            Outcome::Broken(Said::Repeated("drip ".into(), 500), 504, "run_deadline"),
        )
        .toml("[runs]\ndeadline = \"1s\"")
        .not_before(950)
        .within(6_000),
        Row::new(
            "F45 a byte now and then, and never an event",
            [Script::sse().repeat("x", Duration::from_millis(20), 500)],
            refused(504, "upstream_timeout"),
        )
        .toml(SILENT)
        .within(6_000),
        Row::new(
            "F46 words without end",
            [Script::sse().repeat(openai::text(&big), Duration::ZERO, 60_000)],
            Outcome::Broken(Said::Repeated(big, (256 << 10) + (128 << 10)), 502, "output_limit"),
        )
        .toml("[runs]\nmax_output = \"256KiB\"\ndeadline = \"20s\"\n[providers.openai]\nfirst_byte_timeout = \"4s\"\ngap_timeout = \"4s\"")
        .sent_at_most(24 << 20),
        Row::new(
            "F47 an event without an end",
            [saying(&ten)
                .bytes(format!("{:x}\r\ndata: ", 64 << 20))
                .repeat_raw("x".repeat(64 << 10), 1024)],
            broken(&ten, 502, "upstream_protocol"),
        )
        .sent_at_most(24 << 20),
        Row::new(
            "F53 half a character in one event, half in the next",
            [Script::sse().role().send(half.concat()).send(other_half).complete()],
            broken(&["a".to_owned()], 502, "upstream_protocol"),
        ),
        Row::new(
            "F57 fewer bytes than promised",
            [ten.iter()
                .fold(Script::sse_framed(Framing::Length(1 << 20)), |script, word| {
                    script.say(word)
                })
                .cut()],
            broken(&ten, 502, "upstream_truncated"),
        ),
    ]
}

fn good_bodies() -> Vec<Row> {
    let (ten, hundred) = (words(10), words(100));
    let family = ["Grüße, 世", "界 👩\u{200D}👩\u{200D}👧 ", "🏳️\u{200D}🌈é"];
    let nasty = "\r\n\nevent: done\ndata: {}\n\n";
    let odd = json!({"choices": [{"index": 0, "delta": {"content": "b", "extra": {"x": [1]}}, "finish_reason": null}],
        "obfuscation": "xyz", "system_fingerprint": null});
    let negative =
        json!({"choices": [], "usage": {"prompt_tokens": -4, "completion_tokens": 1_000_000_000_000_000_000_u64}});
    let split = openai::answer(&family).byte_by_byte();
    let (body, extra) = (
        [openai::text("a"), openai::finish("stop"), openai::done()].concat(),
        "data: extra\n\n",
    );
    let mut rows = vec![
        Row::new(
            "F36 a finish, and no [DONE]",
            [saying(&ten).finish("stop").usage(3, 4).end()],
            answered(ten.concat()),
        )
        .counted(3, 4)
        .tokens(10),
        Row::new(
            "F36 a finish, and a FIN",
            [saying(&ten).finish("stop").cut()],
            answered(ten.concat()),
        ),
        Row::new(
            "F38 the end, and a socket left open",
            [saying(&ten).finish("stop").usage(3, 4).done().hang()],
            answered(ten.concat()),
        )
        .counted(3, 4)
        .within(1_900),
        Row::new(
            "F38 a finish, no [DONE], and a socket left open",
            [saying(&ten).finish("stop").usage(3, 4).hang()],
            answered(ten.concat()),
        )
        .counted(3, 4)
        .within(6_000),
        Row::new(
            "F39 a second finish, words and [DONE] after the end",
            [saying(&ten)
                .finish("stop")
                .finish("length")
                .say("late")
                .done()
                .say("later")
                .done()
                .finish("stop")
                .end()],
            answered(ten.concat()),
        )
        .tokens(10),
        Row::new(
            "F43 what nobody knows is passed over",
            [Script::sse()
                .send(": ping\n\n")
                .send("event: whatever\n\n")
                .role()
                .say("a")
                .say("")
                .send("id: 7\nretry: 1\nfoo: bar\n\n")
                .send(openai::event(&json!({"choices": []})))
                .send(openai::event(&odd))
                .send(openai::event(&json!({"type": "new", "object": "thing"})))
                .send(openai::event(
                    &json!({"choices": [{"index": 0, "delta": {"content": null}}]}),
                ))
                .complete()],
            answered("ab"),
        )
        .tokens(2)
        .counted(12, 34),
        Row::new("F48 every byte by itself", [split], answered(family.concat())).tokens(3),
        Row::new(
            "F49 a hundred events at once",
            [saying(&hundred).complete().at_once()],
            answered(hundred.concat()),
        )
        .tokens(100),
        Row::new(
            "F50 a byte that is no UTF-8",
            [Script::sse()
                .send(&b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\xFFb\"}}]}\n\n"[..])
                .complete()],
            answered("a\u{FFFD}b"),
        ),
        Row::new("F51 CRLF", [spelled("\r\n", "data: ")], answered("Héllo\n")).tokens(2),
        Row::new("F51 CR", [spelled("\r", "data: ")], answered("Héllo\n")).tokens(2),
        Row::new(
            "F51 CRLF, split",
            [spelled("\r\n", "data: ").byte_by_byte()],
            answered("Héllo\n"),
        )
        .tokens(2),
        Row::new(
            "F51 CR, split",
            [spelled("\r", "data: ").byte_by_byte()],
            answered("Héllo\n"),
        )
        .tokens(2),
        Row::new("F51 no space", [spelled("\n", "data:")], answered("Héllo\n")).tokens(2),
        Row::new(
            "F51 a byte order mark",
            [Script::sse().send("\u{FEFF}").say("a").complete()],
            answered("a"),
        ),
        Row::new(
            "F51 data in several lines",
            [Script::sse()
                .send("data: {\"choices\":\ndata: [{\"index\":0,\ndata\ndata:\"delta\":{\"content\":\"a\"}}]}\n\n")
                .complete()],
            answered("a"),
        ),
        Row::new(
            "F52 words that look like frames",
            [Script::sse()
                .say("a")
                .say(nasty)
                .say("\u{0}")
                .say("\u{2028}\u{2029}")
                .complete()],
            answered(format!("a{nasty}\u{0}\u{2028}\u{2029}")),
        )
        .tokens(4),
        Row::new(
            "F54 nothing but the end",
            [Script::sse().role().complete()],
            answered(""),
        )
        .tokens(0),
        Row::new(
            "F56 no usage",
            [Script::sse().say("four").finish("stop").done().end()],
            answered("four"),
        )
        .estimated(),
        Row::new(
            "F56 usage twice",
            [Script::sse()
                .say("a")
                .usage(1, 1)
                .finish("stop")
                .usage(5, 6)
                .done()
                .end()],
            answered("a"),
        )
        .counted(5, 6),
        Row::new(
            "F56 usage that is none, after one that is",
            [Script::sse()
                .say("a")
                .finish("stop")
                .usage(5, 6)
                .send(openai::event(&negative))
                .done()
                .end()],
            answered("a"),
        )
        .counted(5, 6),
        Row::new(
            "F56 usage that is none",
            [Script::sse()
                .say("a")
                .finish("stop")
                .send(openai::event(&negative))
                .done()
                .end()],
            answered("a"),
        )
        .estimated(),
        Row::new(
            "F56 usage with the finish",
            [Script::sse()
                .say("a")
                .send(openai::event(
                    &json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 0, "completion_tokens": 0}}),
                ))
                .done()
                .end()],
            answered("a"),
        )
        .counted(0, 0),
        Row::new(
            "F57 more bytes than promised",
            [Script::sse_framed(Framing::Length(body.len())).bytes(body).bytes(extra)],
            answered("a"),
        ),
    ];
    for reason in ["length", "content_filter"] {
        rows.push(Row::new(
            "F55 a finish that is no stop",
            [saying(&ten).finish(reason).usage(1, 2).done().end()],
            Outcome::Answered(ten.concat(), reason),
        ));
    }
    rows
}

impl Script {
    /// The same bytes on the wire many times, whatever the framing.
    fn repeat_raw(self, bytes: impl Into<Bytes>, max: usize) -> Self {
        self.step(Step::Repeat {
            bytes: bytes.into(),
            every: Duration::ZERO,
            max,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Text,
    Sse,
}

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

/// Everything that anybody was told.
#[derive(Debug, Default)]
struct Told(String);

impl Told {
    fn add(&mut self, what: impl std::fmt::Debug) {
        self.0.push_str(&format!("{what:?}\n"));
    }
}

async fn ask(place: &Gateway, format: Format, row: &Row, upstream_words: &mut Told) -> Seen {
    let path = match format {
        Format::Json => "/chat",
        Format::Text => "/chat/stream",
        Format::Sse => "/chat/sse",
    };
    let body = json!({"message": "fault", "session_id": "s"});
    let call = Call::post(path).json(&body).header("Idempotency-Key", "once");
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
            let watcher = Call::post("/chat/sse").json(&body).header("Idempotency-Key", "once");
            read_events(&mut watcher.to(place).await, said).await;
            gate.open();
        }
    };
    let answer = async {
        let mut response = call.to(place).await;
        let mut seen = Seen {
            status: response.status,
            run_id: response.headers.get("x-run-id").unwrap_or_default().to_owned(),
            ..Seen::default()
        };
        upstream_words.add(&response.headers);
        match (format, response.status) {
            (Format::Sse, 200) => {
                if let Some(gate) = &row.gate {
                    read_events(&mut response, said).await;
                    gate.open();
                }
                let transcript = response.transcript().await;
                upstream_words.add(&transcript.events);
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
                upstream_words.add(&seen.text);
            }
            (_, 200) => {
                seen.response = response.json().await;
                upstream_words.add(&seen.response);
                seen.text = seen.response["content"].as_str().unwrap_or_default().to_owned();
                seen.complete = true;
            }
            _ => {
                let retry_after = response.headers.get("retry-after").map(str::to_owned);
                seen.problem = response.problem_object().await;
                let told = seen.problem["retry_after"].as_u64().map(|seconds| seconds.to_string());
                assert_eq!(retry_after, told, "Retry-After and retry_after");
                upstream_words.add(&seen.problem);
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

/// One row in one format, with all that must hold after it.
async fn check(row: Row, format: Format) {
    let (scripts, asked) = (row.scripts.clone(), AtomicUsize::new(0));
    let upstream = Upstream::answering(move |request| match question(request) {
        "fault" => scripts[asked.fetch_add(1, Relaxed).min(scripts.len() - 1)].clone(),
        other => openai::answer(&["You said ", other, "."]),
    })
    .await;
    let (closed, hole) = (closed_port(), black_hole().await);
    let at = match row.who {
        Who::Scripted => upstream.addr(),
        Who::NobodyListens => closed.addr(),
        Who::NobodyAccepts => hole.addr(),
    };
    let known = format!(
        "[providers.openai]\napi_key = \"{KEY}\"\n[providers.well]\nkind = \"openai\"\nbase_url = \"{}\"\n\
         [agents.assistant]\nallowed_models = [\"well/*\"]",
        upstream.base_url()
    );
    let gateway = Gateway::with(&at).fast().toml(&known).toml(row.toml).start().await;
    let mut told = Told::default();
    turn(&gateway, row.who, "before").await;
    let before = history(&gateway).await;
    assert_eq!(before.len(), 2);
    let sent_before = upstream.sent();

    let seen = ask(&gateway, format, &row, &mut told).await;

    within(LET_GO, "the upstream to be let go of", upstream.idle()).await;
    let sent = upstream.sent() - sent_before;
    assert!(sent <= row.sent, "the upstream got rid of {sent} bytes");
    let (least, most) = row.took;
    assert!((least..=most).contains(&seen.took), "it took {:?}", seen.took);
    let calls = upstream
        .requests()
        .iter()
        .filter(|request| question(request) == "fault")
        .count();
    assert_eq!(calls, row.calls, "upstream calls");
    if format == Format::Sse {
        assert!(seen.heartbeats >= row.heartbeats, "{} heartbeats", seen.heartbeats);
        assert!(
            row.tokens.is_none_or(|tokens| tokens == seen.tokens),
            "{} tokens",
            seen.tokens
        );
    }
    assert_outcome(&row, format, &seen);

    let run = get(&gateway, &format!("/runs/{}", seen.run_id))
        .await
        .expect(200)
        .await
        .json()
        .await;
    told.add(&run);
    assert_record(&row, &run);
    let after = history(&gateway).await;
    told.add(&after);
    let kept = match &row.outcome {
        Outcome::Answered(text, _) => {
            let added: Vec<_> = after[2..]
                .iter()
                .map(|m| (m["role"].clone(), m["content"].clone()))
                .collect();
            assert_eq!(
                added,
                [
                    ("user".into(), "fault".into()),
                    ("assistant".into(), text.as_str().into())
                ]
            );
            after
        }
        _ => {
            assert_eq!(after, before, "a failed run adds nothing to its session");
            before
        }
    };

    assert_eq!(turn(&gateway, row.who, "again").await["content"], "You said again.");
    let requests = upstream.requests();
    let sent: Vec<_> = requests.last().expect("it was asked").json["messages"]
        .as_array()
        .expect("messages")
        .clone();
    let roles_and_words = |messages: &[Value]| -> VecDeque<_> {
        messages
            .iter()
            .map(|m| (m["role"].clone(), m["content"].clone()))
            .collect()
    };
    let mut expected = roles_and_words(&kept);
    expected.push_back(("user".into(), "again".into()));
    assert_eq!(roles_and_words(&sent), expected, "what the next turn sends");
    assert_eq!(history(&gateway).await.len(), kept.len() + 2);

    for canary in [KEY, WORDS] {
        assert!(!told.0.contains(canary), "{canary} in {}", told.0);
    }
    gateway.stop().await;
}

/// What the format promises for the row's outcome.
fn assert_outcome(row: &Row, format: Format, seen: &Seen) {
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
            assert_eq!(seen.problem["session_id"], "s", "{seen:?}");
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
            assert_eq!(
                (&run["status"], &run["error"]),
                (&json!("completed"), &Value::Null),
                "{run}"
            );
            assert_eq!(
                (&run["response"]["content"], &run["finish_reason"]),
                (&json!(text), &json!(finish))
            );
            assert_usage(row, &run["usage"]);
        }
        Outcome::Refused(_, code) | Outcome::Broken(_, _, code) => {
            assert_eq!(
                (&run["status"], &run["error"]["code"]),
                (&json!("failed"), &json!(code)),
                "{run}"
            );
            assert_eq!(run["finish_reason"], Value::Null, "what broke has no finish: {run}");
            let partial = run["response"]["content"].as_str().unwrap_or_default();
            match &row.outcome {
                Outcome::Broken(said, ..) => assert!(said.is(partial), "kept with the run: {partial:?}"),
                _ => assert_eq!(partial, ""),
            }
            if row.calls > 0 {
                assert_eq!(run["usage"]["estimated"], true, "what was sent has a cost: {run}");
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

fn question(request: &Request) -> &str {
    let messages = request.json["messages"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    messages
        .last()
        .and_then(|last| last["content"].as_str())
        .unwrap_or_default()
}

/// A turn in which nothing goes wrong.
async fn turn(gateway: &Gateway, who: Who, message: &str) -> Value {
    let mut body = json!({"message": message, "session_id": "s"});
    if who != Who::Scripted {
        body["model"] = "well/test-model".into();
    }
    post(gateway, "/chat", body).await.expect(200).await.json().await
}

async fn history(gateway: &Gateway) -> Vec<Value> {
    let page = get(gateway, "/sessions/s/messages")
        .await
        .expect(200)
        .await
        .json()
        .await;
    page["messages"].as_array().expect("messages").clone()
}

/// Runs every row in every format, some at a time, and tells of all that failed.
async fn check_all(rows: impl Fn() -> Vec<Row>) {
    LocalSet::new().run_until(check_each(rows)).await;
}

async fn check_each(rows: impl Fn() -> Vec<Row>) {
    let formats = [Format::Json, Format::Text, Format::Sse];
    let mut stories: VecDeque<_> = formats
        .into_iter()
        .flat_map(|f| rows().into_iter().map(move |r| (r, f)))
        .collect();
    let (mut under_way, mut failed, mut names) = (JoinSet::new(), Vec::new(), std::collections::HashMap::new());
    loop {
        while under_way.len() < AT_A_TIME {
            let Some((row, format)) = stories.pop_front() else {
                break;
            };
            let name = format!("{} ({format:?})", row.name);
            names.insert(under_way.spawn_local(check(row, format)).id(), name);
        }
        match under_way.join_next().await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                let name = names[&error.id()].clone();
                let panic = error.into_panic();
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                failed.push(format!("{name}: {}", text.unwrap_or_default()));
            }
            None => break,
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {} failed:\n{}",
        failed.len(),
        names.len(),
        failed.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_before_an_answer_is_a_status_of_ours() {
    check_all(before_headers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstreams_status_is_told_in_our_words() {
    let elsewhere = Upstream::always(openai::answer(&["You should not be here."])).await;
    let address = format!("{}/chat/completions", elsewhere.base_url());
    check_all(|| statuses(&address)).await;
    assert_eq!(elsewhere.connections(), 0, "a redirect was followed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_never_looks_finished() {
    check_all(broken_bodies).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_whole_is_told_whole_however_it_came() {
    check_all(good_bodies).await;
}

#[tokio::test]
async fn no_log_says_a_key_or_what_an_upstream_said() {
    let rows = statuses("http://127.0.0.1:9/v1").into_iter().chain(broken_bodies());
    let wanted = ["F15", "F16", "F17", "F18", "F22", "F28", "F29", "F40", "F41", "F42"];
    let rows: Vec<_> = rows
        .filter(|row| wanted.iter().any(|name| row.name.starts_with(name)))
        .collect();
    assert!(rows.len() >= wanted.len());
    let scripts: Vec<Script> = rows.iter().map(|row| row.scripts[0].clone()).collect();
    let upstream = Upstream::start(scripts).await;
    let toml = format!("[providers.openai]\napi_key = \"{KEY}\"\nmax_retries = 0\n[log]\nfilter = \"debug\"");
    let mut process = Gateway::with(&upstream)
        .fast()
        .toml(&toml)
        .toml("[server]\nlisten = \"127.0.0.1:0\"")
        .spawn()
        .await;
    for row in &rows {
        let refused = post(&process, "/chat", json!({"message": "fault"})).await;
        assert!(refused.status >= 400, "{}", row.name);
        let run_id = refused.problem_object().await["run_id"]
            .as_str()
            .expect("a run")
            .to_owned();
        process.logged(&run_id).await;
    }
    process.terminate().await;
    process.wait_exit(Duration::from_secs(10)).await;
    let log = process.log();
    for canary in [KEY, WORDS] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(canary)).collect();
        assert!(lines.is_empty(), "{canary} in the log:\n{}", lines.join("\n"));
    }
}

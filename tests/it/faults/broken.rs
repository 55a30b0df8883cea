//! A body that breaks off, or is none: in every way that must not look like an end.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::row::{Outcome, Row, Said, broken, refused, saying, words};
use super::{KEY, SILENT, WORDS};
use crate::house::{Framing, Gate, Script, openai};

pub(super) fn rows() -> Vec<Row> {
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
        ).kind("first_token")
        .not_before(1_950)
        .toml(SILENT)
        .heartbeats(2),
        Row::new(
            "F31 a role, and silence",
            [Script::sse().role().hang()],
            refused(504, "upstream_timeout"),
        ).kind("first_token")
        .not_before(1_950)
        .toml(SILENT)
        .heartbeats(2),
        Row::new(
            "F32 twenty words, and silence",
            [saying(&twenty).hang()],
            broken(&twenty, 504, "upstream_timeout"),
        ).kind("gap")
        .not_before(1_950)
        .tokens(20)
        .toml(SILENT)
        .heartbeats(2),
        Row::new(
            "F33 forty words, and a FIN inside the body",
            [saying(&forty).cut()],
            broken(&forty, 502, "upstream_truncated"),
        ).kind("incomplete_body")
        .tokens(40),
        Row::new(
            "F33 forty words, and a FIN inside a chunk",
            [saying(&forty).bytes("ff\r\ndata: {\"choices\":[{\"ind").cut()],
            broken(&forty, 502, "upstream_truncated"),
        ).kind("incomplete_body")
        .tokens(40),
        Row::new(
            "F34 forty words, and a RST",
            [torn_script],
            broken(&forty, 502, "upstream_truncated"),
        ).kind("reset")
        .gate(torn)
        .tokens(40),
        Row::new(
            "F35 forty words, and a clean end",
            [saying(&forty).end()],
            broken(&forty, 502, "upstream_truncated"),
        ).kind("no_terminal")
        .tokens(40),
        Row::new(
            "F37 no finish, but [DONE]",
            [saying(&forty).usage(1, 2).done().end()],
            broken(&forty, 502, "upstream_truncated"),
        ).kind("no_terminal")
        .tokens(40),
        Row::new(
            "F40 overloaded, as the first event",
            [Script::sse().role().send(openai::error(overloaded)).end()],
            refused(503, "upstream_overloaded"),
        ).kind("overloaded")
        .again("overloaded", 2)
        .calls(3),
        Row::new(
            "F41 an error after ten words",
            [saying(&ten).send(openai::error(reported)).end()],
            broken(&ten, 502, "upstream_error"),
        ).kind("in_band_error")
        .tokens(10),
        Row::new(
            "F41 a mendable error after ten words is not mended",
            [saying(&ten).send(openai::error(json!({"type": "server_error"}))).end()],
            broken(&ten, 502, "upstream_error"),
        ).kind("server_error")
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
        ).kind("bad_event")
        .tokens(30),
        Row::new(
            "F42 an event behind a byte order mark in mid-stream",
            [saying(&ten)
                .send("\u{FEFF}data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lost\"}}]}\n\n")
                .complete()],
            broken(&ten, 502, "upstream_protocol"),
        ).kind("bad_event")
        .tokens(10),
        Row::new(
            "F42 calls without a name",
            [Script::sse()
                .role()
                .send(openai::event(&json!({"choices": [{"index": 0, "delta":
                    {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": null}]}}]})))
                .finish("tool_calls")
                .usage(1, 2)
                .done()
                .end()],
            refused(502, "upstream_protocol"),
        ),
        Row::new(
            "F42 an event that is JSON and no event",
            [saying(&thirty)
                .send(format!("data: {{\"choices\": \"{WORDS}\"}}\n\n"))
                .complete()],
            broken(&thirty, 502, "upstream_protocol"),
        ).kind("bad_event"),
        Row::new(
            "F44 pings, and never a word",
            [Script::sse().repeat(": ping\n\n", Duration::from_millis(20), 500)],
            refused(504, "upstream_timeout"),
        ).kind("no_progress")
        .toml(SILENT)
        .heartbeats(2)
        .within(9_900),
        Row::new(
            "F44 pings after words",
            [saying(&ten).repeat(": ping\n\n", Duration::from_millis(20), 500)],
            broken(&ten, 504, "upstream_timeout"),
        ).kind("no_progress")
        .toml(SILENT)
        .heartbeats(2)
        .within(9_900),
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
        ).kind("no_progress")
        .toml(SILENT)
        .within(9_900),
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
        ).kind("event_limit")
        .sent_at_most(24 << 20),
        Row::new(
            "F53 half a character in one event, half in the next",
            [Script::sse().role().send(half.concat()).send(other_half).complete()],
            broken(&["a".to_owned()], 502, "upstream_protocol"),
        ).kind("bad_event"),
        Row::new(
            "F57 fewer bytes than promised",
            [ten.iter()
                .fold(Script::sse_framed(Framing::Length(1 << 20)), |script, word| {
                    script.say(word)
                })
                .cut()],
            broken(&ten, 502, "upstream_truncated"),
        ).kind("incomplete_body"),
        // HTTP/2 resets one stream of a connection; upstream connections are HTTP/1.1 by decision, and there a frame that
        // says so is a chunk that is none. (A window that is never opened is silence: F31, F32.)
        Row::new(
            "F58 a RST_STREAM of HTTP/2 in the body",
            [saying(&ten).bytes(&b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08"[..]).hang()],
            broken(&ten, 502, "upstream_truncated"),
        )
        .kind("incomplete_body")
        .tokens(10),
    ]
}

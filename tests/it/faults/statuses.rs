//! An upstream's status, and the headers of its answer.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use serde_json::json;

use super::WORDS;
use super::row::{Row, answered, refused, status, told};
use crate::house::{Framing, Script, openai};

pub(super) fn rows(elsewhere: &str) -> Vec<Row> {
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
    let packed = [("content-encoding", "gzip")];
    let too_long = told("context_length_exceeded", "invalid_request_error");
    let bomb = gzip(&vec![0; 10 << 20]);
    let events = [("content-type", "text/event-stream")];
    let mut rows = vec![
        Row::new(
            "F15 a 400 that echoes the key",
            [status(400, told("unsupported_value", "invalid_request_error"))],
            refused(422, "upstream_rejected"),
        ).kind("client_error"),
        Row::new(
            "F16 a 400 about the context's length",
            [status(400, told("context_length_exceeded", "invalid_request_error"))],
            refused(422, "context_too_long"),
        ).kind("context_too_long"),
        Row::new(
            "F17 a 401 that echoes the key",
            [status(401, told("invalid_api_key", "invalid_request_error"))],
            refused(502, "upstream_auth"),
        ).kind("auth"),
        Row::new(
            "F17 a 403",
            [status(403, told("", "permission"))],
            refused(502, "upstream_auth"),
        ).kind("auth"),
        Row::new(
            "F18 no such model",
            [status(404, told("model_not_found", "invalid_request_error"))],
            refused(502, "upstream_error"),
        ).kind("config"),
        Row::new(
            "F19 a 429 for a second",
            [limited(&[("retry-after", "1")]), good()],
            answered("Well."),
        )
        .again("429", 1)
        .calls(2)
        .not_before(990),
        Row::new(
            "F20 a 429 for an hour",
            [limited(&[("retry-after", "3600")])],
            refused(503, "upstream_rate_limited"),
        ).kind("rate_limited")
        .retry_after(600),
        Row::new(
            "F20 a 429 for longer than the run has left",
            [limited(&[("retry-after", "9")])],
            refused(503, "upstream_rate_limited"),
        ).kind("rate_limited")
        .toml("[runs]\ndeadline = \"5s\"")
        .retry_after(9)
        .within(4_500),
        Row::new(
            "F20 a 429 until a date",
            [limited(&dated)],
            refused(503, "upstream_rate_limited"),
        ).kind("rate_limited")
        .retry_after(600),
        Row::new(
            "F20 a 429 for decades",
            [limited(&[("retry-after", "1e9")])],
            refused(503, "upstream_rate_limited"),
        ).kind("rate_limited")
        .retry_after(600),
        Row::new(
            "F20 a 429 for less than no time",
            [limited(&[("retry-after", "-5")])],
            refused(503, "upstream_rate_limited"),
        ).kind("rate_limited")
        .again("429", 2)
        .calls(3)
        .retry_after(1),
        Row::new(
            "F20 a 429 for x",
            [limited(&[("retry-after", "x")])],
            refused(503, "upstream_rate_limited"),
        ).kind("rate_limited")
        .again("429", 2)
        .calls(3)
        .retry_after(1),
        Row::new(
            "F21 a 500 once",
            [status(500, told("", "server_error")), good()],
            answered("Well."),
        )
        .again("5xx", 1)
        .calls(2),
        Row::new(
            "F22 a 503 always",
            [status(503, told("", "overloaded"))],
            refused(503, "upstream_overloaded"),
        ).kind("overloaded")
        .again("5xx", 2)
        .calls(3)
        .retry_after(1),
        Row::new(
            "F22 a 529 always",
            [status(529, told("", "overloaded_error"))],
            refused(503, "upstream_overloaded"),
        ).kind("overloaded")
        .again("5xx", 2)
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
        ).kind("server_error")
        .toml("[runs]\ndeadline = \"20s\"\n[providers.openai]\nfirst_byte_timeout = \"10s\"\nfirst_token_timeout = \"10s\"\nmax_retries = 0")
        .within(5_000),
        Row::new(
            "F24 a 500 in gzip",
            [Script::status(500, &packed, gzip(told("", "server_error").as_bytes()))],
            refused(502, "upstream_error"),
        )
        .kind("server_error")
        .again("5xx", 2)
        .calls(3),
        Row::new(
            "F24 a 400 in gzip that names its cause",
            [Script::status(400, &packed, gzip(too_long.as_bytes()))],
            refused(422, "context_too_long"),
        )
        .kind("context_too_long"),
        Row::new(
            "F24 a 400 in gzip that is none",
            [Script::status(400, &packed, too_long)],
            refused(422, "upstream_rejected"),
        )
        .kind("client_error"),
        Row::new(
            "F25 a 500 in gzip that is a bomb",
            [Script::status(500, &packed, bomb)],
            refused(502, "upstream_error"),
        )
        .kind("server_error")
        .toml("[providers.openai]\nfirst_byte_timeout = \"4s\"\nmax_retries = 0")
        .within(3_000),
        Row::new(
            "F26 a redirect elsewhere",
            [Script::status(302, &[("location", elsewhere)], WORDS)],
            refused(502, "upstream_protocol"),
        ).kind("redirect"),
        Row::new(
            "F26 a redirect that keeps the method",
            [Script::status(307, &[("location", elsewhere)], WORDS)],
            refused(502, "upstream_protocol"),
        ).kind("redirect"),
        Row::new(
            "F27 a 204",
            [Script::raw().bytes("HTTP/1.1 204 No Content\r\n\r\n")],
            refused(502, "upstream_protocol"),
        ).kind("empty"),
        Row::new(
            "F27 a 304",
            [Script::raw().bytes("HTTP/1.1 304 Not Modified\r\n\r\n")],
            refused(502, "upstream_protocol"),
        ).kind("empty"),
        Row::new(
            "F27 an empty stream",
            [Script::status(200, &events, "")],
            refused(502, "upstream_protocol"),
        ).kind("empty"),
        Row::new("F27 empty JSON", [status(200, "")], refused(502, "upstream_protocol")).kind("empty"),
        Row::new(
            "F27 nothing, of no type",
            [Script::raw().bytes("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")],
            refused(502, "upstream_protocol"),
        ).kind("empty"),
        Row::new(
            "F28 an error as a whole answer",
            [status(200, told("x", "invalid_request_error"))],
            refused(502, "upstream_error"),
        ).kind("in_band_error"),
        Row::new(
            "F29 a login page",
            [Script::status(
                200,
                &[("content-type", "text/html; charset=utf-8")],
                format!("<html>{WORDS}"),
            )],
            refused(502, "upstream_protocol"),
        ).kind("content_type"),
        Row::new(
            "F30 a whole answer though a stream was asked for",
            [status(200, whole.to_string())],
            answered("All at once."),
        )
        .tolerated("not_a_stream")
        .tokens(1)
        .counted(5, 6),
    ];
    for encoding in ["br", "gzip", "deflate"] {
        let headers = [events[0], ("content-encoding", encoding)];
        let script = Script::head(200, &headers, Framing::Chunked)
            .send(gzip(WORDS.as_bytes()))
            .end();
        rows.push(
            Row::new(
                "F59 an encoding that was not asked for",
                [script],
                refused(502, "upstream_protocol"),
            )
            .kind("encoding"),
        );
    }
    for charset in ["utf-16", "iso-8859-1"] {
        let script = Script::head(
            200,
            &[("content-type", &format!("text/event-stream; charset={charset}"))],
            Framing::Chunked,
        );
        let script = script.role().say("x").complete();
        rows.push(Row::new("F59 another charset", [script], refused(502, "upstream_protocol")).kind("encoding"));
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

/// `bytes`, packed.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(bytes).expect("memory takes everything");
    packed.finish().expect("memory takes everything")
}

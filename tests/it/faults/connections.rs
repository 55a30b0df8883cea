//! Before an answer's headers: nobody there, nobody who speaks, nobody who speaks HTTP/1.1.

use std::time::Duration;

use super::SILENT;
use super::row::{Row, Who, answered, refused};
use crate::house::{Billed, Script, Step, openai};

pub(super) fn rows() -> Vec<Row> {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(1_000);
    let headers: String = (0..10_000).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = "y".repeat(1 << 20);
    // Frames of HTTP/2: SETTINGS, then GOAWAY.
    let goaway = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
    vec![
        Row::new("F01 nobody listens", [], refused(502, "upstream_connect")).kind("connect").again("connect", 2)
            .who(Who::NobodyListens)
            .calls(0),
        Row::new("F02 nobody accepts", [], refused(504, "upstream_timeout")).kind("connect_timeout")
            .who(Who::NobodyAccepts)
            .calls(0)
            .toml("[runs]\ndeadline = \"20s\"\n[providers.openai]\nconnect_timeout = \"1500ms\"\nfirst_byte_timeout = \"10s\"")
            .not_before(1_450)
            .within(2_900), // asking again would take twice as long
        Row::new("F03 no such name", [], refused(502, "upstream_connect"))
            .kind("dns")
            .again("dns", 2)
            .who(Who::NoSuchName)
            .calls(0),
        // F04, a resolver that says nothing, needs a resolver that is not the machine's: provider/unanswered.rs tells it.
        // F05, F06 and F07 need certificates: see `tls`.
        Row::new(
            "F08 a kept connection that was closed",
            [openai::answer(&["Well."])],
            answered("Well."),
        )
        .before(openai::answer(&["You said just before."]).cut()),
        // Closed at the very moment of being used again: the request may have been read, so it is not sent twice.
        Row::new(
            "F08 a kept connection that is reset as it is used again",
            [openai::answer(&["Well."])],
            refused(502, "upstream_protocol"),
        )
        .kind("empty_reply")
        .before(openai::answer(&["You said just before."]).step(Step::ResetOnReuse))
        .calls(0)
        .billed(Billed::OneCallEstimated),
        Row::new(
            "F09 a request, and a FIN",
            [Script::raw().cut()],
            refused(502, "upstream_protocol"),
        ).kind("empty_reply"),
        Row::new(
            "F10 a request, and silence",
            [Script::raw().hang()],
            refused(504, "upstream_timeout"),
        ).kind("first_byte")
        .not_before(1_950)
        .toml(SILENT)
        .heartbeats(2),
        Row::new(
            "F11 another protocol",
            [Script::raw().bytes("SSH-2.0-x\r\n").hang()],
            refused(502, "upstream_protocol"),
        ).kind("protocol"),
        Row::new(
            "F11 random bytes",
            [Script::raw()
                .bytes(&b"\x16\x03\x01\x00\xa5\x01\x00\xff\xfe\r\n\r\n"[..])
                .cut()],
            refused(502, "upstream_protocol"),
        ).kind("protocol"),
        Row::new(
            "F12 a flood of hints, and no answer",
            [Script::raw().repeat(hints.clone(), Duration::ZERO, 100).cut()],
            refused(502, "upstream_protocol"),
        ).kind("empty_reply"),
        Row::new(
            "F12 a flood of hints without an end is silence",
            [Script::raw().repeat(hints, Duration::from_millis(5), 10_000)],
            refused(504, "upstream_timeout"),
        ).kind("first_byte")
        .toml(SILENT),
        Row::new(
            "F13 a header of 1 MiB",
            [Script::raw()
                .bytes(format!("HTTP/1.1 200 OK\r\nx: {long}\r\n\r\n"))
                .hang()],
            refused(502, "upstream_protocol"),
        ).kind("header_limit"),
        Row::new(
            "F13 ten thousand headers",
            [Script::raw().bytes(format!("HTTP/1.1 200 OK\r\n{headers}\r\n")).hang()],
            refused(502, "upstream_protocol"),
        ).kind("header_limit"),
        // Upstream connections are HTTP/1.1 by decision, so there is no GOAWAY to be asked again after: an upstream that
        // speaks HTTP/2 is one that speaks another protocol. (One that would have both is offered HTTP/1.1: see `tls`.)
        Row::new(
            "F14 a GOAWAY of HTTP/2",
            [Script::raw().bytes(&goaway[..]).hang()],
            refused(502, "upstream_protocol"),
        )
        .kind("protocol"),
    ]
}

//! A body that is whole, however odd.

use serde_json::json;

use super::row::{Outcome, Row, answered, saying, words};
use crate::house::{Framing, Script, openai};

pub(super) fn rows() -> Vec<Row> {
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
        .tolerated("missing_done")
        .counted(3, 4)
        .tokens(10),
        Row::new(
            "F36 a finish, and a FIN",
            [saying(&ten).finish("stop").cut()],
            answered(ten.concat()),
        )
        .tolerated("missing_done"),
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
        .tolerated("missing_done")
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
        .tolerated("dup_terminal")
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
        )
        .tolerated("invalid_utf8"),
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
        .tolerated("empty")
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
        .tolerated("usage_form")
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
        .tolerated("usage_form")
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
    let parts = json!([{"type": "text", "text": "b"}, {"type": "reference", "reference_ids": [1]}]);
    let content = |content| json!({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": null}]});
    rows.push(
        Row::new(
            "F43 content in parts, one of them unknown",
            [Script::sse().say("a").send(openai::event(&content(parts))).complete()],
            answered("ab"),
        )
        .tolerated("field_type")
        .tolerated("unknown_part")
        .tokens(2),
    );
    let whole = json!({"choices": [{"index": 0, "delta": {}, "message": {"role": "assistant", "content": "ab"}}]});
    rows.push(
        Row::new(
            "F43 the whole message after its pieces",
            [Script::sse().say("a").say("b").send(openai::event(&whole)).complete()],
            answered("ab"),
        )
        .tolerated("repeated")
        .tokens(2),
    );
    for (word, ours) in [("model_length", "length"), ("STOP", "stop"), ("novel", "stop")] {
        let script = saying(&ten).finish(word).usage(1, 2).done().end();
        let outcome = Outcome::Answered(ten.concat(), ours);
        let row = Row::new("F55 a finish in a word that is not OpenAI's", [script], outcome);
        rows.push(row.tolerated("finish_word"));
    }
    for reason in ["length", "content_filter"] {
        rows.push(Row::new(
            "F55 a finish that is no stop",
            [saying(&ten).finish(reason).usage(1, 2).done().end()],
            Outcome::Answered(ten.concat(), reason),
        ));
    }
    rows
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

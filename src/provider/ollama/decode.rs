//! Ollama's lines to chunks.
//!
//! What completes an answer is the line with `done: true`, and nothing follows it. Its `done_reason` is `stop` after
//! tool calls too.

use std::borrow::Cow;

use reqwest::header::HeaderMap;
use serde_json::{Map, Value, json, value::RawValue};

use super::{
    NAME,
    wire::{Line, Message, ToolCall},
};
use crate::{
    chat::{Carry, Chunk, FinishKind, FinishReason, Usage},
    provider::{
        ProviderError,
        content::{Speech, say},
        deviations::Deviations,
        dialect::{Decoder, Progress, room_beside},
        error::Kind,
        finish::{Answer, word_in},
        frame::Frame,
        loose::{arguments, count, list, name, object, truth},
        retry,
    },
};

/// The words of `done_reason` that Ollama documents, and `tool_calls`, which servers that imitate it send.
const FINISHES: [&str; 3] = ["stop", "length", "tool_calls"];

/// Decodes one answer.
#[derive(Default)]
pub(super) struct OllamaDecoder {
    /// How many calls there were.
    calls: usize,
    /// Whether there was text.
    spoke: bool,
    /// The thinking so far: with calls, the model wants it back.
    thinking: String,
    /// How it ended, and in which word.
    finish: Option<(FinishKind, Option<String>)>,
    usage: Usage,
    odd: Deviations,
}

impl Decoder for OllamaDecoder {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Chunk>) -> Result<Progress, ProviderError> {
        self.line(frame.data, out)?;
        Ok(if self.finish.is_some() {
            Progress::Over
        } else {
            Progress::More
        })
    }

    fn end(&mut self, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let Some((kind, raw)) = self.finish.take() else {
            return Err(ProviderError::new(
                Kind::Truncated,
                "the stream ended without a line that is done",
            ));
        };
        if self.calls > 0 && !self.thinking.is_empty() {
            let data = json!({"thinking": std::mem::take(&mut self.thinking)});
            out.push(Chunk::Carry(Carry {
                dialect: NAME.into(),
                data,
            }));
        }
        out.push(Chunk::Finish {
            reason: FinishReason { kind, raw },
            usage: std::mem::take(&mut self.usage),
        });
        Ok(())
    }

    fn deviations(&self) -> Deviations {
        self.odd
    }
}

impl OllamaDecoder {
    fn line(&mut self, text: &str, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let line: Line<'_> = serde_json::from_str(text).map_err(|e| not_a_line(&e))?;
        if line.error.is_some() {
            return Err(reported(&serde_json::from_str(text).unwrap_or(Value::Null)));
        }
        let message = object(line.message, &mut self.odd).unwrap_or(Message {
            content: line.response,
            thinking: line.thinking,
            tool_calls: None,
        });
        let from = out.len();
        say(message.thinking, Speech::Thinking, &mut self.odd, out);
        say(message.content, Speech::Answer, &mut self.odd, out);
        for chunk in &out[from..] {
            match chunk {
                Chunk::Reasoning(thinking) => self.thinking.push_str(thinking),
                Chunk::Text(_) => self.spoke = true,
                _ => {}
            }
        }
        for call in list(message.tool_calls, &mut self.odd) {
            self.tool_call(call, out)?;
        }
        if truth(line.done, &mut self.odd) == Some(true) {
            let reason = word_in(line.done_reason, &mut self.odd);
            self.finish = Some((self.ending(reason.as_deref())?, reason));
            self.read_usage(text);
        }
        Ok(())
    }

    /// A call, which comes whole.
    fn tool_call(&mut self, call: ToolCall<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let function = object(call.function, &mut self.odd).unwrap_or_default();
        let Some(called) = name(function.name, &mut self.odd) else {
            return Err(ProviderError::new(Kind::Protocol, "a tool call without a name"));
        };
        let index = self.calls;
        room_beside(index)?;
        self.calls += 1;
        let id = name(call.id, &mut self.odd);
        out.push(Chunk::ToolCallStart {
            index,
            id: id.map_or_else(|| format!("call_{}", uuid::Uuid::new_v4().simple()), Cow::into_owned),
            name: called.into_owned(),
        });
        // Servers that imitate it send the arguments as JSON in a string.
        if let Some(arguments) = arguments(function.arguments, false, &mut self.odd)? {
            out.push(Chunk::ToolCallDelta { index, arguments });
        }
        Ok(())
    }

    /// Why it is done. Old versions give no reason; `load` and `unload` say that the model was moved in memory and
    /// nothing was answered.
    fn ending(&mut self, reason: Option<&str>) -> Result<FinishKind, ProviderError> {
        if let Some(moved @ ("load" | "unload")) = reason {
            let detail = format!("done_reason {moved:?}: no answer");
            return Err(ProviderError::new(Kind::Server, detail));
        }
        let answer = Answer {
            field: "done_reason",
            own: &FINISHES,
            calls: self.calls,
            spoke: self.spoke,
        };
        answer.ended(reason.unwrap_or("stop"), &mut self.odd)
    }

    /// The numbers of the last line: tokens, and times in nanoseconds. Counts that are none (absent where the prompt
    /// was cached, negative, beyond 2^53) are unknown.
    fn read_usage(&mut self, line: &str) {
        let Ok(mut raw) = serde_json::from_str::<Map<String, Value>>(line) else {
            return;
        };
        let is_number = |value: &Value| value.is_number() || value.is_string();
        raw.retain(|name, value| is_number(value) && (name.ends_with("_count") || name.ends_with("_duration")));
        let mut number = |name: &str| count(raw.get(name), &mut self.odd);
        let (input_tokens, output_tokens) = (number("prompt_eval_count"), number("eval_count"));
        self.usage = Usage {
            input_tokens,
            output_tokens,
            cached_input_tokens: None,
            reasoning_tokens: None, // counted with the output, and not apart
            estimated: false,
            raw: (!raw.is_empty()).then_some(Value::Object(raw)),
        };
    }
}

/// A stream was asked for, and `application/json` came: one answer, or the lines under another name.
pub(super) fn whole(body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError> {
    let text = std::str::from_utf8(body).map_err(|e| ProviderError::new(Kind::Protocol, e.to_string()))?;
    let mut out = Vec::new();
    let mut decoder = OllamaDecoder::default();
    for line in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        decoder.line(line.map_err(|e| not_a_line(&e))?.get(), &mut out)?;
        if decoder.finish.is_some() {
            break;
        }
    }
    let nothing = out.is_empty() && decoder.finish.is_none();
    match decoder.end(&mut out) {
        Err(_) if nothing => Err(ProviderError::new(Kind::Protocol, "JSON that is not an answer")),
        ended => {
            *odd = decoder.odd;
            ended.map(|()| out)
        }
    }
}

/// What a status other than 200 means.
pub(super) fn refusal(status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
    let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    ProviderError {
        kind: if too_long(&body) {
            Kind::ContextTooLong
        } else {
            Kind::of_status(status)
        },
        retry_after: retry::told_delay(headers),
        ..ProviderError::new(Kind::Reported, "")
    }
    .with_status(status)
}

/// An error in place of a line. Without a status of its own it is what the server would have answered 500 with, had it
/// not begun to answer.
fn reported(line: &Value) -> ProviderError {
    let status = ["status_code", "status"]
        .iter()
        .find_map(|name| line.get(name)?.as_u64());
    let status = status
        .and_then(|status| u16::try_from(status).ok())
        .filter(|status| *status >= 400);
    let kind = if too_long(line) {
        Kind::ContextTooLong
    } else {
        Kind::of_status(status.unwrap_or(500))
    };
    let detail = status.map_or_else(
        || "an error instead of a line".to_owned(),
        |status| format!("status_code {status}"),
    );
    ProviderError::new(kind, detail)
}

/// Its errors have no codes: this one is known by its words.
fn too_long(body: &Value) -> bool {
    let text = body.get("error").and_then(Value::as_str).unwrap_or("");
    text.contains("context length") && (text.contains("exceed") || text.contains("too long"))
}

fn not_a_line(error: &serde_json::Error) -> ProviderError {
    // The parser's own sentence quotes what it read.
    let what = format!(
        "a line that is not one: {:?} error at byte {}",
        error.classify(),
        error.column()
    );
    ProviderError::new(Kind::Protocol, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{decoding::Decoding, ollama::Ollama};

    /// The chunks of a stream, and how it ended.
    fn decode(lines: &[&str]) -> (Vec<Chunk>, Result<(), ProviderError>) {
        let mut out = Vec::new();
        let mut decoding = Decoding::new(&Ollama, 1 << 20);
        for line in lines {
            if let Err(error) = decoding.push(format!("{line}\n").as_bytes(), &mut out) {
                return (out, Err(error));
            }
            if decoding.progress() == Progress::Over {
                return (out, Ok(()));
            }
        }
        let end = decoding.end(None, &mut out);
        (out, end)
    }

    fn says(message: &str) -> String {
        format!(r#"{{"model":"m","message":{message},"done":false}}"#)
    }

    fn finish(chunks: &[Chunk]) -> (FinishReason, Usage) {
        match chunks.last() {
            Some(Chunk::Finish { reason, usage }) => (reason.clone(), usage.clone()),
            other => panic!("no finish: {other:?}"),
        }
    }

    fn ended(lines: &[&str]) -> FinishReason {
        let (chunks, end) = decode(lines);
        end.unwrap();
        finish(&chunks).0
    }

    const DONE: &str = r#"{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}"#;
    const CALL: &str =
        r#"{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}"#;

    #[test]
    fn the_line_that_is_done_completes_an_answer_whatever_it_says() {
        let hi = says(r#"{"role":"assistant","content":"Hi"}"#);
        let reason = |kind, raw: Option<&str>| FinishReason {
            kind,
            raw: raw.map(str::to_owned),
        };
        assert_eq!(ended(&[&hi, DONE]), reason(FinishKind::Stop, Some("stop")));
        let old = r#"{"message":{"content":"!"},"done":true}"#;
        assert_eq!(ended(&[&hi, old]), reason(FinishKind::Stop, None));
        assert_eq!(
            ended(&[&hi, r#"{"done":true,"done_reason":"length"}"#]).kind,
            FinishKind::Length
        );
        for cut in [&[hi.as_str()] as &[&str], &[]] {
            let kind = decode(cut).1.unwrap_err().kind;
            assert_eq!(
                kind,
                if cut.is_empty() {
                    Kind::Protocol
                } else {
                    Kind::Truncated
                }
            );
        }
        let (chunks, _) = decode(&[&hi, DONE, &hi]);
        assert_eq!(chunks.len(), 2, "nothing after the end counts");
    }

    #[test]
    fn a_last_line_without_its_end_counts_if_it_is_whole() {
        for (last, whole) in [(DONE, true), (&DONE[..DONE.len() - 1], false)] {
            let mut out = Vec::new();
            let mut decoding = Decoding::new(&Ollama, 1 << 20);
            decoding
                .push(format!("{}\n{last}", says(r#"{"content":"Hi"}"#)).as_bytes(), &mut out)
                .unwrap();
            assert_eq!(decoding.end(None, &mut out).is_ok(), whole);
        }
    }

    #[test]
    fn stop_after_calls_is_a_tool_call_and_a_cut_is_not_hidden() {
        let call = says(CALL);
        assert_eq!(ended(&[&call, DONE]).kind, FinishKind::ToolCalls);
        assert_eq!(ended(&[&call, r#"{"done":true}"#]).kind, FinishKind::ToolCalls);
        assert_eq!(
            ended(&[&call, r#"{"done":true,"done_reason":"length"}"#]).kind,
            FinishKind::Length
        );
        let in_the_last = format!(r#"{{"message":{CALL},"done":true,"done_reason":"stop"}}"#);
        assert_eq!(ended(&[&in_the_last]).kind, FinishKind::ToolCalls);
    }

    #[test]
    fn moving_a_model_in_memory_is_no_answer() {
        for word in ["load", "unload", "novel"] {
            let line = format!(r#"{{"message":{{"content":""}},"done":true,"done_reason":"{word}"}}"#);
            let error = decode(&[&line]).1.unwrap_err();
            assert_eq!(
                error.kind,
                if word == "novel" { Kind::Reported } else { Kind::Server },
                "{word}"
            );
        }
    }

    #[test]
    fn calls_come_whole_with_an_id_or_with_ours() {
        let two = says(
            r#"{"tool_calls":[{"id":"a","function":{"index":0,"name":"f","arguments":{"x":[1,"é"]}}},{"id":"","function":{"index":0,"name":"f"}}]}"#,
        );
        let text =
            says(r#"{"content":null,"thinking":"","tool_calls":[{"function":{"name":"g","arguments":"{\"x\":1}"}}]}"#);
        let (chunks, end) = decode(&[&two, &text, DONE]);
        end.unwrap();
        let mut ids = Vec::new();
        let mut arguments = vec![String::new(); 3];
        for chunk in &chunks[..chunks.len() - 1] {
            match chunk {
                Chunk::ToolCallStart { index, id, name } => {
                    assert_eq!((*index, name.as_str()), (ids.len(), ["f", "f", "g"][ids.len()]));
                    ids.push(id.clone());
                }
                Chunk::ToolCallDelta { index, arguments: more } => arguments[*index].push_str(more),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(ids[0], "a");
        assert!(ids[1].starts_with("call_") && ids[1].len() == 37 && ids[1] != ids[2]);
        assert_eq!(arguments, [r#"{"x":[1,"é"]}"#, "", r#"{"x":1}"#]);
        let nameless = says(r#"{"tool_calls":[{"function":{"name":"","arguments":{}}}]}"#);
        assert_eq!(decode(&[&nameless, DONE]).1.unwrap_err().kind, Kind::Protocol);
    }

    #[test]
    fn thinking_is_reasoning_and_goes_back_with_calls_only() {
        let thinks = [
            says(r#"{"content":"","thinking":"Let me "}"#),
            says(r#"{"thinking":"see."}"#),
        ];
        let carried = |lines: &[&str]| {
            let (chunks, _) = decode(lines);
            let reasoning = chunks.iter().filter(|c| matches!(c, Chunk::Reasoning(_))).count();
            assert_eq!(reasoning, 2);
            chunks
                .into_iter()
                .find_map(|c| if let Chunk::Carry(carry) = c { Some(carry) } else { None })
        };
        let expected = Carry {
            dialect: NAME.into(),
            data: json!({"thinking": "Let me see."}),
        };
        assert_eq!(carried(&[&thinks[0], &thinks[1], &says(CALL), DONE]), Some(expected));
        assert_eq!(carried(&[&thinks[0], &thinks[1], DONE]), None);
    }

    #[test]
    fn numbers_that_are_none_are_unknown() {
        let counted = |numbers: &str| {
            let (chunks, end) = decode(&[&format!(r#"{{"message":{{"content":"x"}},"done":true{numbers}}}"#)]);
            end.unwrap();
            let usage = finish(&chunks).1;
            (usage.input_tokens, usage.output_tokens, usage.raw)
        };
        let (input, output, raw) = counted(r#","total_duration":5,"prompt_eval_count":7,"eval_count":0,"context":[1]"#);
        assert_eq!((input, output), (Some(7), Some(0)));
        assert_eq!(
            raw,
            Some(json!({"total_duration": 5, "prompt_eval_count": 7, "eval_count": 0}))
        );
        assert_eq!(counted(r#","eval_count":58"#).0, None, "the prompt was cached");
        assert_eq!(counted(""), (None, None, None));
        let (input, output, _) = counted(r#","prompt_eval_count":-1,"eval_count":9007199254740992"#);
        assert_eq!((input, output), (None, None));
    }

    #[test]
    fn an_error_in_place_of_a_line_has_its_kind_and_not_its_words() {
        let hi = says(r#"{"content":"Hi"}"#);
        for (line, kind, again) in [
            (r#"{"error":"the runner broke"}"#, Kind::Server, true),
            (r#"{"error":"busy","status_code":503}"#, Kind::Overloaded, true),
            (r#"{"error":"slow down","status_code":429}"#, Kind::RateLimited, true),
            (
                r#"{"error":"who?","status_code":401,"signin_url":"https://x"}"#,
                Kind::Auth,
                false,
            ),
            (r#"{"error":"no","status":400}"#, Kind::Rejected, false),
            (
                r#"{"error":"the input length exceeds the context length"}"#,
                Kind::ContextTooLong,
                false,
            ),
            (r#"{"error":{"message":"odd"}}"#, Kind::Server, true),
        ] {
            let (chunks, end) = decode(&[&hi, line]);
            let error = end.unwrap_err();
            assert_eq!((error.kind, error.retryable()), (kind, again), "{line}");
            assert_eq!(chunks, [Chunk::Text("Hi".into())]);
            assert!(
                !error.detail.contains("runner") && !error.detail.contains("https"),
                "{}",
                error.detail
            );
        }
    }

    #[test]
    fn what_is_not_a_line_breaks_the_answer() {
        for wrong in [
            "{",
            "nonsense",
            r#"{"message":7}"#,
            r#"{"message":{"content":"\ud83d"}}"#,
            "[1]",
        ] {
            assert_eq!(decode(&[wrong, DONE]).1.unwrap_err().kind, Kind::Protocol, "{wrong}");
        }
        for fine in [
            "{}",
            "",
            r#"{"message":null,"error":null,"done":null}"#,
            r#"{"message":{},"novel":[1]}"#,
        ] {
            assert_eq!(ended(&[fine, DONE]).kind, FinishKind::Stop, "{fine}");
        }
    }

    #[test]
    fn odd_fields_cost_no_words_and_no_call() {
        for line in [
            r#"{"message":[{"content":[{"type":"text","text":"Hi"}]}],"done":"false"}"#,
            r#"{"message":{"content":{"text":"Hi"},"tool_calls":null},"done":0}"#,
            r#"{"message":{"content":"Hi","tool_calls":[],"thinking":[]}}"#,
        ] {
            let (chunks, end) = decode(&[line, r#"{"done":"true","done_reason":"STOP","eval_count":"3"}"#]);
            end.unwrap();
            assert_eq!(chunks[0], Chunk::Text("Hi".into()), "{line}");
            let (reason, usage) = finish(&chunks);
            assert_eq!(
                (reason.kind, usage.output_tokens),
                (FinishKind::Stop, Some(3)),
                "{line}"
            );
        }
        let one = says(r#"{"tool_calls":{"id":7,"function":{"name":"f","arguments":"{\"x\":1}"}}}"#);
        let (chunks, _) = decode(&[&one, DONE]);
        let arguments = r#"{"x":1}"#.to_owned();
        assert_eq!(chunks[1], Chunk::ToolCallDelta { index: 0, arguments });
        for nameless in [
            r#"{"function":null}"#,
            "{}",
            r#"{"function":{"arguments":{}}}"#,
            r#""f""#,
        ] {
            let line = says(&format!(r#"{{"tool_calls":[{nameless}]}}"#));
            assert_eq!(decode(&[&line, DONE]).1.unwrap_err().kind, Kind::Protocol, "{nameless}");
        }
    }

    #[test]
    fn a_call_is_made_only_if_the_round_ended_well() {
        let call = says(CALL);
        for (word, kind) in [
            ("STOP", FinishKind::ToolCalls),
            ("max_tokens", FinishKind::Length),
            ("sensitive", FinishKind::ContentFilter),
        ] {
            let line = format!(r#"{{"done":true,"done_reason":"{word}"}}"#);
            assert_eq!(ended(&[&call, &line]).kind, kind, "{word}");
        }
        for word in ["error", "abort", "novel"] {
            let line = format!(r#"{{"done":true,"done_reason":"{word}"}}"#);
            assert_eq!(decode(&[&call, &line]).1.unwrap_err().kind, Kind::Reported, "{word}");
        }
        let hi = says(r#"{"content":"Hi"}"#);
        let novel = ended(&[&hi, r#"{"done":true,"done_reason":"novel"}"#]);
        assert_eq!((novel.kind, novel.raw.as_deref()), (FinishKind::Stop, Some("novel")));
    }

    #[test]
    fn an_answer_that_comes_whole_is_the_same_answer() {
        let one = r#"{"message":{"role":"assistant","content":"Hi","thinking":"h"},
            "done":true,"done_reason":"stop","prompt_eval_count":3,"eval_count":2}"#;
        let chunks = whole(one.as_bytes(), &mut Deviations::default()).unwrap();
        assert_eq!(chunks[..2], [Chunk::Reasoning("h".into()), Chunk::Text("Hi".into())]);
        assert_eq!(finish(&chunks).1.input_tokens, Some(3));
        let lines = format!("{}\n{DONE}\n", says(r#"{"content":"Hi"}"#));
        assert_eq!(whole(lines.as_bytes(), &mut Deviations::default()).unwrap().len(), 2);
        let kind = |body: &str| whole(body.as_bytes(), &mut Deviations::default()).unwrap_err().kind;
        assert_eq!(kind(r#"{"error":"broken"}"#), Kind::Server);
        assert_eq!(kind(&says(r#"{"content":"Hi"}"#)), Kind::Truncated);
        for none in ["{}", "", "[1]", "{"] {
            assert_eq!(kind(none), Kind::Protocol, "{none}");
        }
    }

    #[test]
    fn statuses_have_their_kinds() {
        for (status, body, kind, again) in [
            (400, r#"{"error":"m does not support tools"}"#, Kind::Rejected, false),
            (
                400,
                r#"{"error":"the prompt is too long: context length exceeded"}"#,
                Kind::ContextTooLong,
                false,
            ),
            (401, r#"{"error":"unauthorized"}"#, Kind::Auth, false),
            (402, "", Kind::Quota, false),
            (404, r#"{"error":"model 'm' not found"}"#, Kind::NotFound, false),
            (408, "", Kind::Reported, true),
            (429, "", Kind::RateLimited, true),
            (
                500,
                r#"{"error":"llama runner process has terminated"}"#,
                Kind::Server,
                true,
            ),
            (502, "<html>", Kind::Server, true),
            (503, r#"{"error":"server busy"}"#, Kind::Overloaded, true),
            (302, "", Kind::Protocol, false),
        ] {
            let error = refusal(status, &HeaderMap::new(), body.as_bytes());
            assert_eq!(
                (error.kind, error.retryable(), error.status),
                (kind, again, Some(status)),
                "{body}"
            );
            assert_eq!(error.detail, "");
        }
    }
}

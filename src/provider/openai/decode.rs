//! OpenAI's chunks to ours.
//!
//! What completes an answer is `finish_reason`, not `[DONE]`: some servers skip the latter, and a `[DONE]` without a
//! `finish_reason` is a truncated answer. Usage comes after the finish, in a chunk with empty `choices`.

use std::{borrow::Cow, sync::Arc};

use reqwest::header::HeaderMap;
use serde_json::Value;

use super::{
    opaque::Collector,
    wire::{Completion, Delta, Function, ToolCallDelta},
};
use crate::{
    chat::{Chunk, FinishKind, FinishReason, Usage},
    provider::{
        ProviderError,
        dialect::{Decoder, Progress, parse_event as parse, room_beside, word},
        error::Kind,
        frame::Frame,
        retry,
    },
};

/// Decodes one answer. A dialect that is this one with quirks has it inside a decoder of its own.
#[derive(Default)]
pub(in crate::provider) struct OpenAiDecoder {
    calls: Vec<Call>,
    finish: Option<String>,
    /// More came after the finish.
    went_on: bool,
    usage: Usage,
    opaque: Collector,
}

/// A call under way: how the wire names it.
struct Call {
    index: Option<u32>,
    id: Option<String>,
}

impl Decoder for OpenAiDecoder {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Chunk>) -> Result<Progress, ProviderError> {
        if frame.data.trim_ascii() == "[DONE]" {
            return Ok(Progress::Over);
        }
        self.completion(parse(frame.data)?, out)?;
        self.collect_opaque(frame.data)?;
        Ok(if self.finish.is_some() {
            Progress::Finishing
        } else {
            Progress::More
        })
    }

    fn end(&mut self, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let Some(raw) = self.finish.take() else {
            return Err(ProviderError::new(
                Kind::Truncated,
                "the stream ended without a finish_reason",
            ));
        };
        let kind = match raw.as_str() {
            "length" => FinishKind::Length,
            "content_filter" => FinishKind::ContentFilter,
            // With a forced tool the finish is `stop` although there is a call.
            _ if !self.calls.is_empty() => FinishKind::ToolCalls,
            "stop" | "tool_calls" | "function_call" | "eos" | "end_turn" => FinishKind::Stop,
            other => {
                let detail = format!("finish_reason {}", word(other));
                return Err(ProviderError::new(Kind::Reported, detail));
            }
        };
        out.extend(self.opaque.finish(!self.calls.is_empty()).map(Chunk::Carry));
        out.push(Chunk::Finish {
            reason: FinishReason { kind, raw: Some(raw) },
            usage: std::mem::take(&mut self.usage),
        });
        Ok(())
    }

    fn went_on(&self) -> bool {
        self.went_on
    }
}

impl OpenAiDecoder {
    /// A decoder of an answer of this provider's.
    pub(in crate::provider) fn new(provider: Arc<str>) -> Self {
        Self {
            opaque: Collector::new(provider),
            ..Self::default()
        }
    }

    /// Collects the members that are not of this dialect; the calls have been read by then.
    fn collect_opaque(&mut self, event: &str) -> Result<(), ProviderError> {
        let calls = &self.calls;
        self.opaque.read(event, |index, id| {
            let by_id = id.and_then(|id| calls.iter().rposition(|call| call.id.as_deref() == Some(id)));
            let by_index = || {
                let index = index?;
                calls.iter().rposition(|call| call.index.map(u64::from) == Some(index))
            };
            by_id.or_else(by_index).or_else(|| calls.len().checked_sub(1))
        })
    }

    fn completion(&mut self, completion: Completion<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        if let Some(error) = completion.error {
            return Err(reported(&serde_json::from_str(error.get()).unwrap_or(Value::Null)));
        }
        if let Some(usage) = completion.usage {
            self.read_usage(usage.get());
        }
        // We ask for one choice; of a server that sends several, the first is the answer.
        for choice in completion.choices.into_iter().flatten().filter(|c| c.index == 0) {
            if self.finish.is_some() {
                // A second finish, or words after the first, are not the answer's.
                self.went_on |= choice.finish_reason.is_some_and(|reason| !reason.is_empty())
                    || choice
                        .delta
                        .and_then(|delta| delta.content)
                        .is_some_and(|text| !text.is_empty());
                continue;
            }
            if let Some(delta) = choice.delta {
                self.delta(delta, out)?;
            }
            self.finish = choice.finish_reason.filter(|r| !r.is_empty()).map(Cow::into_owned);
        }
        Ok(())
    }

    fn delta(&mut self, delta: Delta<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let mut say = |text: Option<Cow<'_, str>>, chunk: fn(String) -> Chunk| {
            if let Some(text) = text.filter(|t| !t.is_empty()) {
                out.push(chunk(text.into_owned()));
            }
        };
        say(
            delta.reasoning_content.filter(|t| !t.is_empty()).or(delta.reasoning),
            Chunk::Reasoning,
        );
        say(delta.content, Chunk::Text);
        say(delta.refusal, Chunk::Text);
        for call in delta.tool_calls.into_iter().flatten() {
            self.tool_call(call, out)?;
        }
        if let Some(function) = delta.function_call {
            self.tool_call(
                ToolCallDelta {
                    index: Some(0),
                    id: None,
                    function: Some(function),
                },
                out,
            )?;
        }
        Ok(())
    }

    /// Which call a delta belongs to: the one with its index, unless it names another id; without an index the one with
    /// its id, or the last. What is new must have a name to begin with.
    fn tool_call(&mut self, delta: ToolCallDelta<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let Function { name, arguments } = delta.function.unwrap_or(Function {
            name: None,
            arguments: None,
        });
        let id = delta.id.filter(|id| !id.is_empty());
        let name = name.filter(|name| !name.is_empty());
        let known = match (delta.index, &id) {
            (Some(_), _) => self.calls.iter().rposition(|c| c.index == delta.index),
            (None, Some(id)) => self.calls.iter().rposition(|c| c.id.as_deref() == Some(id)),
            (None, None) => self.calls.len().checked_sub(1),
        };
        let other = |at: usize| match (&self.calls[at].id, &id) {
            (Some(known), Some(id)) => known != id.as_ref() && name.is_some(),
            // Without ids, a second name without an index is a second call.
            _ => delta.index.is_none() && name.is_some(),
        };
        let index = match known.filter(|at| !other(*at)) {
            Some(at) => at,
            None => {
                let Some(name) = name else { return Ok(()) };
                let index = self.calls.len();
                room_beside(index)?;
                self.calls.push(Call {
                    index: delta.index,
                    id: id.as_deref().map(str::to_owned),
                });
                let id = id.map_or_else(|| format!("call_{}", uuid::Uuid::new_v4().simple()), Cow::into_owned);
                out.push(Chunk::ToolCallStart {
                    index,
                    id,
                    name: name.into_owned(),
                });
                index
            }
        };
        if let Some(arguments) = arguments.filter(|a| !a.is_empty()) {
            out.push(Chunk::ToolCallDelta {
                index,
                arguments: arguments.into_owned(),
            });
        }
        Ok(())
    }

    /// The last usage that has numbers wins; numbers that are none (negative, beyond 2^53) are unknown.
    pub(in crate::provider) fn read_usage(&mut self, raw: &str) {
        let Ok(raw) = serde_json::from_str::<Value>(raw) else {
            return;
        };
        let number = |pointer: &str| raw.pointer(pointer).and_then(Value::as_u64).filter(|n| *n < 1 << 53);
        let (input_tokens, output_tokens) = (number("/prompt_tokens"), number("/completion_tokens"));
        if input_tokens.is_none() && output_tokens.is_none() {
            return;
        }
        self.usage = Usage {
            input_tokens,
            output_tokens,
            cached_input_tokens: number("/prompt_tokens_details/cached_tokens"),
            reasoning_tokens: number("/completion_tokens_details/reasoning_tokens"),
            estimated: false,
            raw: Some(raw),
        };
    }
}

/// A stream was asked for, and a whole answer came.
pub(super) fn whole(mut decoder: OpenAiDecoder, body: &[u8]) -> Result<Vec<Chunk>, ProviderError> {
    let text = std::str::from_utf8(body).map_err(|e| ProviderError::new(Kind::Protocol, e.to_string()))?;
    let completion = parse(text)?;
    let mut out = Vec::new();
    decoder.completion(completion, &mut out)?;
    decoder.collect_opaque(text)?;
    decoder
        .end(&mut out)
        .map_err(|_| ProviderError::new(Kind::Protocol, "JSON that is not an answer"))?;
    Ok(out)
}

/// What a status other than 200 means.
pub(super) fn refusal(status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
    let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let told = reported(body.get("error").unwrap_or(&body));
    let kind = match (status, told.kind) {
        (_, Kind::ContextTooLong) => Kind::ContextTooLong,
        (429, Kind::Quota) => Kind::Quota,
        _ => Kind::of_status(status),
    };
    let retry_after = retry::told_delay(headers);
    ProviderError {
        kind,
        retry_after,
        ..told
    }
    .with_status(status)
}

/// An error object, wherever it stood.
pub(in crate::provider) fn reported(error: &Value) -> ProviderError {
    let word = |name: &str| match error.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let (code, kind, mut message) = (word("code"), word("type"), word("message"));
    if let Value::String(text) = error {
        message.clone_from(text);
    }
    // `rate_limit_exceeded`, `RateLimitReached`: the spellings of compatible servers differ.
    let plain = |word: &str| word.replace(['_', '-', ' '], "").to_ascii_lowercase();
    let (plain_code, plain_kind) = (plain(&code), plain(&kind));
    let says = |words: &[&str]| words.contains(&plain_code.as_str()) || words.contains(&plain_kind.as_str());
    let found = if says(&["contextlengthexceeded"]) || message.contains("maximum context length") {
        Kind::ContextTooLong
    } else if says(&["insufficientquota"]) {
        Kind::Quota
    } else if says(&[
        "ratelimitexceeded",
        "ratelimitreached",
        "ratelimiterror",
        "toomanyrequests",
        "429",
    ]) {
        Kind::RateLimited
    } else if says(&[
        "overloadederror",
        "overloaded",
        "serveroverloaded",
        "serviceunavailable",
        "503",
        "529",
    ]) {
        Kind::Overloaded
    } else if says(&[
        "servererror",
        "internalservererror",
        "internalerror",
        "badgateway",
        "500",
        "502",
        "504",
    ]) {
        Kind::Server
    } else if says(&["invalidapikey", "authenticationerror", "unauthorized", "401", "403"]) {
        Kind::Auth
    } else {
        Kind::Reported
    };
    // Their sentence may repeat our key or the user's words, so it stays out of the log; their codes are kept.
    let is_word = |text: &str| text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
    let is_number = |text: &str| text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    let is_code = |text: &&str| !text.is_empty() && (is_word(text) || is_number(text));
    let codes: Vec<&str> = [code.as_str(), kind.as_str()].into_iter().filter(is_code).collect();
    ProviderError::new(found, codes.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::provider::frame::{FrameReader, Framing};

    /// The chunks of a stream of `data:` events, and how it ended.
    fn decode(events: &[&str]) -> Result<Vec<Chunk>, ProviderError> {
        let mut decoder = OpenAiDecoder::default();
        let mut out = Vec::new();
        let mut reader = FrameReader::new(Framing::Sse, 1 << 20);
        let mut over = false;
        for event in events {
            reader.push(format!("data: {event}\n\n").as_bytes(), &mut |frame| {
                if !over {
                    over = decoder.frame(frame, &mut out)? == Progress::Over;
                }
                Ok(())
            })?;
        }
        decoder.end(&mut out)?;
        Ok(out)
    }

    fn delta(delta: &str) -> String {
        format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}],"usage":null}}"#)
    }

    fn finish(reason: &str) -> String {
        format!(r#"{{"choices":[{{"index":0,"delta":{{}},"finish_reason":"{reason}"}}]}}"#)
    }

    fn kinds(chunks: &[Chunk]) -> (String, FinishKind, Usage) {
        let mut text = String::new();
        let mut end = None;
        for chunk in chunks {
            match chunk {
                Chunk::Text(more) => text.push_str(more),
                Chunk::Finish { reason, usage } => end = Some((reason.kind, usage.clone())),
                _ => {}
            }
        }
        let (kind, usage) = end.expect("a finish");
        (text, kind, usage)
    }

    #[test]
    fn words_a_refusal_and_the_numbers_after_the_finish() {
        let chunks = decode(&[
            &delta(r#"{"role":"assistant","content":"","refusal":null}"#),
            &delta(r#"{"content":"Hé"}"#),
            &delta(r#"{"content":null,"refusal":"No."}"#),
            &finish("stop"),
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":0,"prompt_tokens_details":{"cached_tokens":4}}}"#,
            "[DONE]",
            &delta(r#"{"content":"late"}"#),
        ])
        .unwrap();
        let (text, kind, usage) = kinds(&chunks);
        assert_eq!((text.as_str(), kind), ("HéNo.", FinishKind::Stop));
        assert_eq!(
            (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens),
            (Some(9), Some(0), Some(4))
        );
        assert_eq!(usage.reasoning_tokens, None);
    }

    #[test]
    fn the_finish_marker_completes_an_answer_and_done_does_not() {
        let hi = delta(r#"{"content":"Hi"}"#);
        assert!(decode(&[&hi, &finish("length")]).is_ok());
        for cut in [&[hi.as_str()] as &[&str], &[&hi, "[DONE]"], &[]] {
            assert_eq!(decode(cut).unwrap_err().kind, Kind::Truncated);
        }
        let late = decode(&[&hi, &finish("stop"), &delta(r#"{"content":"!"}"#), &finish("length")]).unwrap();
        assert_eq!(kinds(&late), ("Hi".into(), FinishKind::Stop, Usage::default()));
    }

    /// `(id, name, arguments)` of every call.
    fn calls(deltas: &[&str]) -> Vec<(String, String, String)> {
        let mut events: Vec<String> = deltas
            .iter()
            .map(|d| delta(&format!(r#"{{"tool_calls":{d}}}"#)))
            .collect();
        events.push(finish("tool_calls"));
        let chunks = decode(&events.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let mut calls = Vec::new();
        for chunk in chunks {
            match chunk {
                Chunk::ToolCallStart { index, id, name } => {
                    assert_eq!(index, calls.len());
                    calls.push((id, name, String::new()));
                }
                Chunk::ToolCallDelta { index, arguments } => calls[index].2.push_str(&arguments),
                _ => {}
            }
        }
        calls
    }

    fn call(id: &str, name: &str, arguments: &str) -> (String, String, String) {
        (id.into(), name.into(), arguments.into())
    }

    #[test]
    fn tool_calls_are_told_apart_in_every_spelling() {
        let parallel = calls(&[
            r#"[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]"#,
            r#"[{"index":0,"function":{"arguments":"{\"x\""}}]"#,
            r#"[{"index":1,"id":"b","function":{"name":"g","arguments":"{}"}},{"index":0,"function":{"arguments":":1}"}}]"#,
        ]);
        assert_eq!(parallel, [call("a", "f", "{\"x\":1}"), call("b", "g", "{}")]);
        let all_zero = calls(&[
            r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}]"#,
            r#"[{"index":0,"id":"b","function":{"name":"f","arguments":"{}"}}]"#,
        ]);
        assert_eq!(all_zero, [call("a", "f", "{}"), call("b", "f", "{}")]);
        let no_index = calls(&[
            r#"[{"id":"a","function":{"name":"f","arguments":"{"}}]"#,
            r#"[{"function":{"arguments":"}"}}]"#,
            r#"[{"id":"b","function":{"name":"g","arguments":null}}]"#,
        ]);
        assert_eq!(no_index, [call("a", "f", "{}"), call("b", "g", "")]);
        let from_one = calls(&[r#"[{"index":1,"id":"a","function":{"name":"f","arguments":"{}"}}]"#]);
        assert_eq!(from_one, [call("a", "f", "{}")]);
        let repeated_id = calls(&[
            r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{"}}]"#,
            r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"}"}}]"#,
        ]);
        assert_eq!(repeated_id, [call("a", "f", "{}")]);
        let no_id = calls(&[r#"[{"index":0,"function":{"name":"f","arguments":"{}"}}]"#]);
        assert!(no_id[0].0.starts_with("call_") && no_id.len() == 1);
    }

    #[test]
    fn a_call_makes_the_finish_a_tool_call_but_never_hides_a_cut() {
        let one = delta(r#"{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}]}"#);
        for (raw, kind) in [
            ("stop", FinishKind::ToolCalls),
            ("tool_calls", FinishKind::ToolCalls),
            ("length", FinishKind::Length),
            ("content_filter", FinishKind::ContentFilter),
        ] {
            assert_eq!(kinds(&decode(&[&one, &finish(raw)]).unwrap()).1, kind);
        }
    }

    #[test]
    fn errors_inside_a_stream_have_their_kinds() {
        for (error, kind) in [
            (
                r#"{"error":{"message":"x","type":"server_error","code":null}}"#,
                Kind::Server,
            ),
            (
                r#"{"error":{"message":"x","code":"rate_limit_exceeded"}}"#,
                Kind::RateLimited,
            ),
            (r#"{"error":{"message":"x","code":"insufficient_quota"}}"#, Kind::Quota),
            (r#"{"error":{"message":"x","code":503}}"#, Kind::Overloaded),
            (
                r#"{"error":{"message":"x","code":"RateLimitReached"}}"#,
                Kind::RateLimited,
            ),
            (r#"{"error":{"message":"x","code":"401"}}"#, Kind::Auth),
            (r#"{"error":"gone"}"#, Kind::Reported),
        ] {
            assert_eq!(
                decode(&[&delta(r#"{"content":"Hi"}"#), error]).unwrap_err().kind,
                kind,
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_not_an_event_breaks_the_answer() {
        for wrong in [
            "{",
            "nonsense",
            r#"{"choices":[{"delta":{"content":"\ud83d"}}]}"#,
            r#"{"choices":7}"#,
        ] {
            assert_eq!(decode(&[wrong]).unwrap_err().kind, Kind::Protocol, "{wrong}");
        }
        for fine in [
            r"{}",
            r#"{"choices":[]}"#,
            r#"{"choices":null,"usage":null}"#,
            r#"{"choices":[{"index":0}]}"#,
            r#"{"choices":[{"index":1,"delta":{"content":"other"}}]}"#,
        ] {
            let (text, ..) = kinds(&decode(&[fine, &finish("stop")]).unwrap());
            assert_eq!(text, "", "{fine}");
        }
    }

    #[test]
    fn numbers_that_are_none_are_unknown() {
        let odd = r#"{"choices":[],"usage":{"prompt_tokens":-4,"completion_tokens":1000000000000000000}}"#;
        let (_, _, usage) = kinds(&decode(&[&finish("stop"), odd]).unwrap());
        assert_eq!(usage, Usage::default());
    }

    #[test]
    fn statuses_have_their_kinds() {
        let none = HeaderMap::new();
        let body = |code: &str| format!(r#"{{"error":{{"message":"m","type":"t","code":"{code}"}}}}"#);
        for (status, code, kind, again) in [
            (400, "unsupported_parameter", Kind::Rejected, false),
            (400, "context_length_exceeded", Kind::ContextTooLong, false),
            (401, "invalid_api_key", Kind::Auth, false),
            (403, "", Kind::Auth, false),
            (404, "model_not_found", Kind::NotFound, false),
            (408, "", Kind::Reported, true),
            (429, "rate_limit_exceeded", Kind::RateLimited, true),
            (429, "insufficient_quota", Kind::Quota, false),
            (500, "", Kind::Server, true),
            (503, "", Kind::Overloaded, true),
            (302, "", Kind::Protocol, false),
        ] {
            let error = refusal(status, &none, body(code).as_bytes());
            assert_eq!((error.kind, error.retryable()), (kind, again), "{status} {code}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("retry-after-ms", "1500".parse().unwrap());
        headers.insert("retry-after", "20".parse().unwrap());
        assert_eq!(
            refusal(429, &headers, b"<html>").retry_after,
            Some(Duration::from_millis(1500))
        );
    }
}

//! OpenAI's chunks to ours.
//!
//! What completes an answer is `finish_reason`, not `[DONE]`: some servers skip the latter, and a `[DONE]` without a
//! `finish_reason` is a truncated answer. Usage comes after the finish, in a chunk with empty `choices`.

use std::sync::Arc;

use reqwest::header::HeaderMap;
use serde_json::Value;

use super::{
    calls::Calls,
    opaque::Collector,
    snapshot::Snapshot,
    usage::read_usage,
    wire::{Choice, Completion, Delta, ToolCallDelta},
};
use crate::{
    chat::{Chunk, FinishKind, FinishReason, Usage},
    meters::Tolerated,
    provider::{
        ProviderError,
        content::{Speech, say},
        deviations::Deviations,
        dialect::{Decoder, Progress, parse_event as parse},
        error::Kind,
        finish::{Answer, word_in},
        frame::Frame,
        loose::{LooseInt, int, list, object},
        retry,
    },
};

/// The words of `finish_reason` that OpenAI documents.
const FINISHES: [&str; 5] = ["stop", "length", "tool_calls", "content_filter", "function_call"];

/// Decodes one answer. A dialect that is this one with quirks has it inside a decoder of its own.
#[derive(Default)]
pub(in crate::provider) struct OpenAiDecoder {
    calls: Calls,
    /// What came in deltas, which go before whole messages.
    by_delta: Came,
    /// The words of whole messages.
    text: Snapshot,
    thinking: Snapshot,
    /// Whether there was text.
    spoke: bool,
    finish: Option<String>,
    usage: Usage,
    opaque: Collector,
    /// Whether the event can have members that are carried with the message.
    can_carry: bool,
    odd: Deviations,
}

/// Kinds of content that have come.
#[derive(Default)]
struct Came {
    text: bool,
    thinking: bool,
    calls: bool,
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
        let answer = Answer {
            field: "finish_reason",
            own: &FINISHES,
            calls: self.calls.len(),
            spoke: self.spoke,
        };
        // With a forced tool the finish is `stop` although there is a call.
        let kind = answer.ended(&raw, &mut self.odd)?;
        if kind == FinishKind::ToolCalls {
            self.calls.check()?;
        }
        out.extend(self.opaque.finish(self.calls.has_named()).map(Chunk::Carry));
        out.push(Chunk::Finish {
            reason: FinishReason { kind, raw: Some(raw) },
            usage: std::mem::take(&mut self.usage),
        });
        Ok(())
    }

    fn deviations(&self) -> Deviations {
        self.odd
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
        if !std::mem::take(&mut self.can_carry) {
            return Ok(());
        }
        let calls = &self.calls;
        self.opaque.read(event, |index, id| calls.locate(index, id))
    }

    fn completion(&mut self, completion: Completion<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let choices = list(completion.choices, &mut self.odd);
        if let Some(error) = completion.error {
            let error = serde_json::from_str(error.get()).unwrap_or(Value::Null);
            if choices.is_empty() || !says_nothing(&error) {
                return Err(reported(&error));
            }
            self.odd.add(Tolerated::FieldType);
        }
        // We ask for one choice; of a server that sends several, the first is the answer.
        for (choice, place) in choices.into_iter().zip(0..) {
            if self.index(choice.index).unwrap_or(place) == 0 {
                self.choice(choice, out)?;
            }
        }
        if let Some(usage) = completion.usage {
            self.read_usage(usage.get());
        }
        Ok(())
    }

    fn index(&mut self, index: Option<LooseInt>) -> Option<u64> {
        int(index, &mut self.odd)
    }

    fn choice(&mut self, choice: Choice<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        if let Some(usage) = choice.usage {
            self.odd.add_if(usage.get() != "null", Tolerated::UsageForm);
            self.read_usage(usage.get());
        }
        let finish = word_in(choice.finish_reason, &mut self.odd);
        let delta = object(choice.delta, &mut self.odd);
        self.can_carry |= choice.message.is_some() || delta.as_ref().is_some_and(Delta::can_carry);
        if self.finish.is_some() {
            // A second finish, or words after the first, are not the answer's.
            let mut late = Vec::new();
            if let Some(delta) = delta {
                say(delta.content, Speech::Answer, &mut self.odd, &mut late);
                let calls = list(delta.tool_calls, &mut self.odd);
                self.odd.add_if(!calls.is_empty(), Tolerated::Late);
            }
            self.odd.add_if(finish.is_some() || !late.is_empty(), Tolerated::Late);
            return Ok(());
        }
        let (has_delta, from) = (delta.is_some(), out.len());
        if let Some(delta) = delta {
            self.delta(delta, out)?;
        }
        match object(choice.message, &mut self.odd) {
            Some(message) => self.message(message, out)?,
            None if !has_delta => say(choice.text, Speech::Answer, &mut self.odd, out),
            None => {}
        }
        self.spoke |= out[from..].iter().any(|chunk| matches!(chunk, Chunk::Text(_)));
        self.finish = finish;
        Ok(())
    }

    fn delta(&mut self, mut delta: Delta<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let from = out.len();
        self.words(&mut delta, out);
        for chunk in &out[from..] {
            self.by_delta.text |= matches!(chunk, Chunk::Text(_));
            self.by_delta.thinking |= matches!(chunk, Chunk::Reasoning(_));
        }
        for call in self.called(delta) {
            self.by_delta.calls = true;
            self.calls.take(call, &mut self.odd, out)?;
        }
        Ok(())
    }

    /// A message, whole. Of each kind of content it counts only where deltas had none.
    fn message(&mut self, mut message: Delta<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let mut words = Vec::new();
        self.words(&mut message, &mut words);
        let (mut text, mut thinking) = (String::new(), String::new());
        for chunk in words {
            match chunk {
                Chunk::Text(more) => text.push_str(&more),
                Chunk::Reasoning(more) => thinking.push_str(&more),
                _ => {}
            }
        }
        if let Some(news) = self.thinking.take(&thinking, self.by_delta.thinking, &mut self.odd)? {
            out.push(Chunk::Reasoning(news.to_owned()));
        }
        if let Some(news) = self.text.take(&text, self.by_delta.text, &mut self.odd)? {
            out.push(Chunk::Text(news.to_owned()));
        }
        for (mut call, place) in self.called(message).into_iter().zip(0..) {
            if self.by_delta.calls {
                self.odd.add(Tolerated::Repeated);
                continue;
            }
            call.index.get_or_insert(LooseInt::from(place));
            self.calls.take_all(call, &mut self.odd, out)?;
        }
        Ok(())
    }

    /// The words of a delta or a message.
    fn words(&mut self, delta: &mut Delta<'_>, out: &mut Vec<Chunk>) {
        let from = out.len();
        say(delta.reasoning_content.take(), Speech::Thinking, &mut self.odd, out);
        if out.len() == from {
            say(delta.reasoning.take(), Speech::Thinking, &mut self.odd, out);
        }
        say(delta.content.take(), Speech::Answer, &mut self.odd, out);
        say(delta.refusal.take(), Speech::Answer, &mut self.odd, out);
    }

    /// The calls of a delta or a message, in either form.
    fn called<'a>(&mut self, delta: Delta<'a>) -> Vec<ToolCallDelta<'a>> {
        let mut calls = list(delta.tool_calls, &mut self.odd);
        if let Some(function) = delta.function_call {
            calls.push(ToolCallDelta {
                index: Some(LooseInt::from(0)),
                function: Some(function),
                ..ToolCallDelta::default()
            });
        }
        calls
    }

    /// The last usage that has numbers wins.
    pub(in crate::provider) fn read_usage(&mut self, raw: &str) {
        let raw = serde_json::from_str(raw).unwrap_or(Value::Null);
        if let Some(usage) = read_usage(raw, &mut self.odd) {
            self.usage = usage;
        }
    }
}

/// Whether an error is none: some servers send an empty one with each chunk.
fn says_nothing(error: &Value) -> bool {
    match error {
        Value::Null | Value::Bool(false) => true,
        Value::Number(code) => code.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}

/// A stream was asked for, and a whole answer came.
pub(super) fn whole(
    mut decoder: OpenAiDecoder,
    body: &[u8],
    odd: &mut Deviations,
) -> Result<Vec<Chunk>, ProviderError> {
    let text = std::str::from_utf8(body).map_err(|e| ProviderError::new(Kind::Protocol, e.to_string()))?;
    let completion = parse(text)?;
    let mut out = Vec::new();
    decoder.completion(completion, &mut out)?;
    decoder.collect_opaque(text)?;
    decoder.end(&mut out).map_err(|error| match error.kind {
        Kind::Truncated => ProviderError::new(Kind::Protocol, "JSON that is not an answer"),
        _ => error,
    })?;
    *odd = decoder.deviations();
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

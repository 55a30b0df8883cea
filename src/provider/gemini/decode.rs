//! Gemini's events to chunks.
//!
//! There is no terminator: what completes an answer is `finishReason`, and then the end. While a tool of Google's runs
//! there may be a `finishReason` before the last one, so one is only believed when nothing is left to come.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{
    NAME,
    error::{is_word, reported},
    partial::Streamed,
    wire::{Candidate, FunctionCall, Part, Response, Word},
};
use crate::{
    chat::{Carry, Chunk, FinishKind, FinishReason, Usage},
    provider::{
        ProviderError,
        dialect::{Decoder, Progress, parse_event as parse, room_beside},
        error::Kind,
        frame::Frame,
    },
};

/// Decodes one answer.
#[derive(Default)]
pub(super) struct GeminiDecoder {
    /// How many calls there have been.
    calls: usize,
    /// A call whose arguments are still coming.
    open: Option<Streamed>,
    /// Bytes of text so far.
    said: usize,
    finish: Option<FinishReason>,
    usage: Usage,
    /// A tool of Google's has been called, and its result is to follow.
    runs_tool: bool,
    /// The model went on after a finish, so the next may not be the last either.
    went_on: bool,
}

impl Decoder for GeminiDecoder {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Chunk>) -> Result<Progress, ProviderError> {
        if frame.data.trim_ascii() == "[DONE]" {
            return Ok(Progress::Over); // not Gemini's, but of proxies in front of it
        }
        self.read(frame.data, out)?;
        Ok(match self.finish {
            Some(_) if !self.runs_tool && !self.went_on => Progress::Finishing,
            _ => Progress::More,
        })
    }

    fn end(&mut self, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        self.close(out); // what says that a call's arguments are complete may be missing
        let Some(mut reason) = self.finish.take() else {
            return Err(ProviderError::new(
                Kind::Truncated,
                "the stream ended without a finishReason",
            ));
        };
        if reason.kind == FinishKind::Stop && self.calls > 0 {
            reason.kind = FinishKind::ToolCalls; // theirs is STOP, perhaps long after the call
        }
        out.push(Chunk::Finish {
            reason,
            usage: std::mem::take(&mut self.usage),
        });
        Ok(())
    }
}

impl GeminiDecoder {
    /// One event, or several in an array.
    fn read(&mut self, text: &str, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        if text.trim_start().starts_with('[') {
            let responses: Vec<Response<'_>> = parse(text)?;
            return responses
                .into_iter()
                .try_for_each(|response| self.response(response, out));
        }
        self.response(parse(text)?, out)
    }

    fn response(&mut self, response: Response<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        if let Some(error) = response.error {
            return Err(reported(&serde_json::from_str(error.get()).unwrap_or(Value::Null)));
        }
        if let Some(usage) = response.usage_metadata {
            self.read_usage(usage.get());
        }
        if let Some(raw) = response.prompt_feedback.and_then(|f| f.block_reason).and_then(word) {
            let kind = FinishKind::ContentFilter;
            self.finish = Some(FinishReason { kind, raw: Some(raw) });
        }
        // We ask for one candidate; of a server that sends several, the first is the answer.
        for candidate in response.candidates.into_iter().flatten() {
            if candidate.index.unwrap_or(0) == 0 {
                self.candidate(candidate, out)?;
            }
        }
        Ok(())
    }

    fn candidate(&mut self, candidate: Candidate<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        for part in candidate.content.and_then(|c| c.parts).into_iter().flatten() {
            if self.finish.is_some() && speaks(&part) {
                if self.runs_tool {
                    self.finish = None; // that finish was the tool's: the answer needs one of its own
                } else {
                    self.went_on = true;
                }
            }
            self.part(part, out)?;
        }
        if let Some(raw) = candidate.finish_reason.and_then(word) {
            let kind = finish_kind(&raw).ok_or_else(|| {
                let name = if is_word(&raw) { raw.as_str() } else { "unknown" };
                ProviderError::new(Kind::Reported, format!("finishReason {name}"))
            })?;
            self.finish = Some(FinishReason { kind, raw: Some(raw) });
        }
        Ok(())
    }

    fn part(&mut self, part: Part<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let signature = part.thought_signature.filter(|s| !s.is_empty());
        if let Some(call) = part.function_call {
            return self.function_call(call, signature, out);
        }
        if part.executable_code.is_some() || part.tool_call.is_some() {
            self.runs_tool = true;
        } else if part.code_execution_result.is_some() || part.tool_response.is_some() {
            self.runs_tool = false;
        } else if let Some(text) = part.text {
            let thought = part.thought == Some(true);
            let from = self.said;
            if !thought {
                self.said += text.len();
            }
            if let Some(signature) = signature {
                out.push(carry(if thought {
                    json!({"thought": text, "signature": signature})
                } else {
                    json!({"from": from, "to": self.said, "signature": signature})
                }));
            }
            if !text.is_empty() {
                self.runs_tool = false;
                let chunk = if thought { Chunk::Reasoning } else { Chunk::Text };
                out.push(chunk(text.into_owned()));
            }
        }
        Ok(())
    }

    /// A call: whole, or the beginning of one whose arguments follow, or (without a name) more of that one.
    fn function_call(
        &mut self,
        call: FunctionCall<'_>,
        signature: Option<Cow<'_, str>>,
        out: &mut Vec<Chunk>,
    ) -> Result<(), ProviderError> {
        let arguments = call.args.map(|raw| raw.get()).filter(|text| *text != "null");
        let given = call.id.filter(|id| !id.is_empty());
        if let Some(name) = call.name.filter(|name| !name.is_empty()) {
            self.close(out);
            let index = self.calls;
            room_beside(index)?;
            self.calls += 1;
            if given.is_some() || signature.is_some() {
                // An id of ours is never sent: some of Google's servers refuse the field.
                let data = json!({"call": index, "id": given, "signature": signature});
                out.push(carry(data));
            }
            out.push(Chunk::ToolCallStart {
                index,
                id: given.map_or_else(|| format!("call_{}", uuid::Uuid::new_v4().simple()), Cow::into_owned),
                name: name.into_owned(),
            });
            if call.will_continue == Some(true) || call.partial_args.is_some() {
                self.open = Some(Streamed::new(index, arguments));
            } else if let Some(arguments) = arguments {
                out.push(Chunk::ToolCallDelta {
                    index,
                    arguments: arguments.to_owned(),
                });
            }
        } else if let (Some(open), Some(signature)) = (&self.open, signature) {
            out.push(carry(json!({"call": open.index, "signature": signature})));
        }
        if let Some(open) = &mut self.open {
            for part in call.partial_args.into_iter().flatten() {
                open.take(part)?;
            }
            if call.will_continue != Some(true) {
                self.close(out);
            }
        }
        Ok(())
    }

    /// The call under way is complete.
    fn close(&mut self, out: &mut Vec<Chunk>) {
        if let Some(open) = self.open.take() {
            out.push(Chunk::ToolCallDelta {
                index: open.index,
                arguments: open.arguments(),
            });
        }
    }

    /// The last usage that has numbers wins; numbers that are none (negative, beyond 2^53) are unknown. What is 0 is left
    /// out on this wire, so the output may have to be read off the total.
    fn read_usage(&mut self, raw: &str) {
        let Ok(raw) = serde_json::from_str::<Value>(raw) else {
            return;
        };
        let number = |name: &str| raw.get(name).and_then(Value::as_u64).filter(|n| *n < 1 << 53);
        let (prompt, total) = (number("promptTokenCount"), number("totalTokenCount"));
        let (said, thought) = (number("candidatesTokenCount"), number("thoughtsTokenCount"));
        if prompt.or(total).or(said).or(thought).is_none() {
            return;
        }
        let input_tokens = prompt.map(|n| n + number("toolUsePromptTokenCount").unwrap_or(0));
        let output_tokens = match (said, thought) {
            (None, None) => total
                .zip(input_tokens)
                .and_then(|(total, input)| total.checked_sub(input)),
            _ => Some(said.unwrap_or(0) + thought.unwrap_or(0)),
        };
        self.usage = Usage {
            input_tokens,
            output_tokens,
            cached_input_tokens: number("cachedContentTokenCount"),
            reasoning_tokens: thought,
            estimated: false,
            raw: Some(raw),
        };
    }
}

/// Something to be handed back with this message.
fn carry(data: Value) -> Chunk {
    Chunk::Carry(Carry {
        dialect: NAME.into(),
        data,
    })
}

/// Whether a part is more of the answer, as opposed to an empty one at its end.
fn speaks(part: &Part<'_>) -> bool {
    part.text.as_ref().is_some_and(|text| !text.is_empty())
        || part.function_call.is_some()
        || part.executable_code.is_some()
        || part.tool_call.is_some()
        || part.code_execution_result.is_some()
        || part.tool_response.is_some()
}

/// A member's name, unless it stands for nothing. Numbers are those of generativelanguage v1beta.
fn word(word: Word<'_>) -> Option<String> {
    match word {
        Word::Name(name) if name.is_empty() || name.ends_with("_UNSPECIFIED") => None,
        Word::Name(name) => Some(name.into_owned()),
        Word::Number(0) => None,
        Word::Number(number) => Some(number.to_string()),
    }
}

/// Why the model stopped; `None` if that is an error, as every reason is that is not known.
fn finish_kind(raw: &str) -> Option<FinishKind> {
    match raw {
        "STOP" | "1" => Some(FinishKind::Stop),
        "MAX_TOKENS" | "2" => Some(FinishKind::Length),
        "SAFETY"
        | "3"
        | "RECITATION"
        | "4"
        | "LANGUAGE"
        | "6"
        | "BLOCKLIST"
        | "7"
        | "PROHIBITED_CONTENT"
        | "8"
        | "SPII"
        | "9"
        | "IMAGE_SAFETY"
        | "11"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION"
        | "MODEL_ARMOR" => Some(FinishKind::ContentFilter),
        _ => None,
    }
}

/// A stream was asked for, and a whole answer came: one response, or an array of the stream's.
pub(super) fn whole(body: &[u8]) -> Result<Vec<Chunk>, ProviderError> {
    let mut out = Vec::new();
    let mut decoder = GeminiDecoder::default();
    decoder.read(&String::from_utf8_lossy(body), &mut out)?;
    decoder.end(&mut out).map_err(|error| match out.is_empty() {
        true => ProviderError::new(Kind::Protocol, "JSON that is not an answer"),
        false => error,
    })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chunks of a stream of events, how far each brought it, and how it ended.
    fn run(events: &[&str]) -> (Vec<Chunk>, Vec<Progress>, Result<(), ProviderError>) {
        let (mut decoder, mut out, mut progress) = (GeminiDecoder::default(), Vec::new(), Vec::new());
        for event in events {
            let (event, data, bare) = (b"", *event, false);
            match decoder.frame(Frame { event, data, bare }, &mut out) {
                Ok(so_far) => progress.push(so_far),
                Err(error) => return (out, progress, Err(error)),
            }
        }
        let end = decoder.end(&mut out);
        (out, progress, end)
    }

    fn decode(events: &[&str]) -> Result<Vec<Chunk>, ProviderError> {
        let (out, _, end) = run(events);
        end.map(|()| out)
    }

    fn failure(events: &[&str]) -> ProviderError {
        run(events).2.expect_err("an error")
    }

    fn parts(parts: &str) -> String {
        format!(r#"{{"candidates":[{{"content":{{"role":"model","parts":[{parts}]}}}}]}}"#)
    }

    fn finish(reason: &str) -> String {
        format!(r#"{{"candidates":[{{"finishReason":{reason}}}]}}"#)
    }

    fn text(chunks: &[Chunk]) -> String {
        let texts = chunks.iter().filter_map(|chunk| match chunk {
            Chunk::Text(text) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    fn end(chunks: &[Chunk]) -> (FinishKind, Usage) {
        match chunks.last() {
            Some(Chunk::Finish { reason, usage }) => (reason.kind, usage.clone()),
            other => panic!("no finish but {other:?}"),
        }
    }

    const HI: &str = r#"{"text":"Hi"}"#;
    const RESULT: &str = r#"{"codeExecutionResult":{"outcome":"OUTCOME_OK"}}"#;
    const STOP: &str = r#"{"candidates":[{"finishReason":"STOP"}]}"#;

    #[test]
    fn a_finish_completes_an_answer_and_nothing_else_does() {
        let hi = parts(HI);
        assert_eq!(end(&decode(&[&hi, STOP]).unwrap()).0, FinishKind::Stop);
        for cut in [
            &[hi.as_str()] as &[&str],
            &[&hi, "[DONE]"],
            &[],
            &[&hi, &finish("null")],
        ] {
            assert_eq!(failure(cut).kind, Kind::Truncated, "{cut:?}");
        }
        for unset in [r#""FINISH_REASON_UNSPECIFIED""#, r#""""#, "0"] {
            assert_eq!(failure(&[&hi, &finish(unset)]).kind, Kind::Truncated, "{unset}");
        }
    }

    #[test]
    fn a_finish_is_not_the_end_while_a_tool_of_theirs_runs() {
        let (result, hi) = (parts(RESULT), parts(HI));
        let stopped = r#"{"candidates":[{"content":{"parts":[{"executableCode":{"code":"1"},"thoughtSignature":"s"}]},"finishReason":"STOP"}]}"#;
        let events = [stopped, &result, &hi, STOP, &parts(r#"{"text":""}"#)];
        let (chunks, progress, end_of_it) = run(&events);
        end_of_it.unwrap();
        use Progress::{Finishing, More};
        assert_eq!(progress, [More, More, More, Finishing, Finishing]);
        assert_eq!((text(&chunks), end(&chunks).0), ("Hi".into(), FinishKind::Stop));
        assert!(
            !chunks
                .iter()
                .any(|c| matches!(c, Chunk::ToolCallStart { .. } | Chunk::Carry(_)))
        );
        assert_eq!(
            failure(&events[..3]).kind,
            Kind::Truncated,
            "the tool's finish is not the answer's"
        );
    }

    #[test]
    fn a_server_that_finishes_every_event_is_read_to_its_end() {
        let each = r#"{"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}]}"#;
        let (chunks, progress, end_of_it) = run(&[each, each, each]);
        end_of_it.unwrap();
        assert_eq!(text(&chunks), "aaa");
        assert_eq!(progress, [Progress::Finishing, Progress::More, Progress::More]);
    }

    /// `(id, name, arguments)` of every call.
    fn calls(events: &[&str]) -> Vec<(String, String, String)> {
        let mut calls = Vec::new();
        let chunks = decode(&[events, &[STOP]].concat()).unwrap();
        assert_eq!(end(&chunks).0, FinishKind::ToolCalls);
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

    #[test]
    fn the_same_function_twice_is_two_calls_with_ids_of_their_own() {
        let twice =
            parts(r#"{"functionCall":{"name":"f","args":{"x":1}}},{"functionCall":{"name":"f","args":{"x":1}}}"#);
        let found = calls(&[&twice, &parts(r#"{"functionCall":{"id":"g","name":"f"}}"#)]);
        let arguments: Vec<&str> = found.iter().map(|(_, _, arguments)| arguments.as_str()).collect();
        assert_eq!(arguments, ["{\"x\":1}", "{\"x\":1}", ""]);
        assert!(found[0].0 != found[1].0 && found[0].0.starts_with("call_") && found[0].0.len() == 37);
        assert_eq!(found[2].0, "g");
    }

    #[test]
    fn streamed_arguments_become_whole_ones_even_without_their_end() {
        let found = calls(&[
            &parts(r#"{"functionCall":{"name":"f","willContinue":true}}"#),
            &parts(
                r#"{"functionCall":{"partialArgs":[{"jsonPath":"$.a","stringValue":"x","willContinue":true}],"willContinue":true}}"#,
            ),
            &parts(r#"{"functionCall":{"partialArgs":[{"jsonPath":"$.a","stringValue":"y"}],"willContinue":true}}"#),
            &parts(r#"{"functionCall":{"name":"g","args":{"b":1}}}"#),
            &parts(r#"{"functionCall":{}}"#),
            &parts(r#"{"functionCall":{"name":"h","partialArgs":[{"jsonPath":"$.c","boolValue":true}]}}"#),
        ]);
        let arguments: Vec<&str> = found.iter().map(|(_, _, arguments)| arguments.as_str()).collect();
        assert_eq!(arguments, ["{\"a\":\"xy\"}", "{\"b\":1}", "{\"c\":true}"]);
    }

    #[test]
    fn reasons_have_their_kinds_by_name_and_by_number() {
        let call = parts(r#"{"functionCall":{"name":"f","args":{}}}"#);
        for (reason, kind) in [
            (r#""MAX_TOKENS""#, FinishKind::Length),
            ("2", FinishKind::Length),
            (r#""SAFETY""#, FinishKind::ContentFilter),
            (r#""SPII""#, FinishKind::ContentFilter),
            (r#""IMAGE_SAFETY""#, FinishKind::ContentFilter),
            ("8", FinishKind::ContentFilter),
            ("1", FinishKind::ToolCalls),
        ] {
            assert_eq!(end(&decode(&[&call, &finish(reason)]).unwrap()).0, kind, "{reason}");
        }
        for reason in [
            "MALFORMED_FUNCTION_CALL",
            "UNEXPECTED_TOOL_CALL",
            "TOO_MANY_TOOL_CALLS",
            "OTHER",
            "NO_IMAGE",
            "FROM_THE_FUTURE",
        ] {
            let error = failure(&[&call, &finish(&format!("{reason:?}"))]);
            assert_eq!((error.kind, error.retryable()), (Kind::Reported, false));
            assert_eq!(error.detail, format!("finishReason {reason}"));
        }
        assert_eq!(failure(&[&finish("10")]).kind, Kind::Reported);
        assert_eq!(failure(&[&finish(r#""Ada's secret""#)]).detail, "finishReason unknown");
    }

    #[test]
    fn a_prompt_that_is_blocked_is_filtered() {
        let blocked = r#"{"promptFeedback":{"blockReason":"PROHIBITED_CONTENT"},"usageMetadata":{"promptTokenCount":7,"totalTokenCount":7}}"#;
        let (chunks, progress, _) = run(&[blocked]);
        let (kind, usage) = end(&chunks);
        assert_eq!((kind, progress), (FinishKind::ContentFilter, vec![Progress::Finishing]));
        assert_eq!((usage.input_tokens, usage.output_tokens), (Some(7), Some(0)));
        let rated = r#"{"promptFeedback":{"safetyRatings":[]}}"#;
        assert_eq!(failure(&[rated]).kind, Kind::Truncated);
    }

    #[test]
    fn the_last_numbers_count_and_those_that_are_none_are_unknown() {
        let usage = |numbers: &str| {
            let first = r#"{"usageMetadata":{"promptTokenCount":1,"candidatesTokenCount":1}}"#;
            let last = format!(r#"{{"usageMetadata":{numbers}}}"#);
            end(&decode(&[first, STOP, &last]).unwrap()).1
        };
        let counted = |u: Usage| {
            (
                u.input_tokens,
                u.output_tokens,
                u.cached_input_tokens,
                u.reasoning_tokens,
            )
        };
        let full = r#"{"promptTokenCount":9,"toolUsePromptTokenCount":4,"cachedContentTokenCount":3,"candidatesTokenCount":5,"thoughtsTokenCount":2}"#;
        assert_eq!(counted(usage(full)), (Some(13), Some(7), Some(3), Some(2)));
        let thoughts_only = r#"{"promptTokenCount":9,"thoughtsTokenCount":2,"totalTokenCount":11}"#;
        assert_eq!(counted(usage(thoughts_only)), (Some(9), Some(2), None, Some(2)));
        let odd = r#"{"promptTokenCount":-4,"candidatesTokenCount":9007199254740992,"totalTokenCount":6}"#;
        assert_eq!(counted(usage(odd)), (None, None, None, None));
        assert_eq!(counted(usage(r#"{"promptTokenCount":9}"#)), (Some(9), None, None, None));
        assert_eq!(
            counted(usage(r#"{"trafficType":"ON_DEMAND"}"#)),
            (Some(1), Some(1), None, None)
        );
    }

    #[test]
    fn errors_inside_a_stream_have_their_kinds_in_every_shape() {
        let hi = parts(HI);
        for (error, kind) in [
            (
                r#"{"error":{"code":503,"message":"x","status":"UNAVAILABLE"}}"#,
                Kind::Overloaded,
            ),
            (r#"[{"error":{"code":500,"status":"INTERNAL"}}]"#, Kind::Server),
            (r#"{"error":{"code":429}}"#, Kind::RateLimited),
            (r#"{"error":"gone"}"#, Kind::Reported),
        ] {
            assert_eq!(failure(&[&hi, error]).kind, kind, "{error}");
        }
        assert!(decode(&[r#"{"error":null}"#, STOP]).is_ok());
    }

    #[test]
    fn what_is_not_an_event_breaks_the_answer_and_what_is_unknown_does_not() {
        for wrong in [
            "{",
            "nonsense",
            "7",
            r#"{"candidates":7}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"\ud83d"}]}}]}"#,
        ] {
            assert_eq!(failure(&[wrong]).kind, Kind::Protocol, "{wrong}");
        }
        for fine in [
            "{}",
            "[]",
            r#"{"candidates":null,"usageMetadata":null}"#,
            r#"{"candidates":[{}]}"#,
            r#"{"candidates":[{"content":null}]}"#,
            r#"{"candidates":[{"content":{"role":"model"}}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"videoMetadata":{}},{"inlineData":{"data":"AA=="}}]}}]}"#,
            r#"{"candidates":[{"index":1,"content":{"parts":[{"text":"other"}]},"finishReason":"OTHER"}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"toolCall":{"toolType":"X","id":"1"}},{"toolResponse":{}}]}}]}"#,
        ] {
            let chunks = decode(&[fine, STOP]).unwrap();
            assert_eq!(
                (text(&chunks), end(&chunks).0),
                (String::new(), FinishKind::Stop),
                "{fine}"
            );
        }
    }

    #[test]
    fn an_answer_may_come_whole_or_as_an_array() {
        let one = r#"{"candidates":[{"content":{"parts":[{"text":"Hi"}]},"finishReason":"STOP"}]}"#;
        let array = format!("[{}\n,\r\n{STOP}]", parts(HI));
        for body in [one, &array] {
            let chunks = whole(body.as_bytes()).unwrap();
            assert_eq!((text(&chunks), end(&chunks).0), ("Hi".into(), FinishKind::Stop));
        }
        for (body, kind) in [
            (format!("[{}]", parts(HI)), Kind::Truncated),
            (format!("[{}", parts(HI)), Kind::Protocol),
            ("{}".into(), Kind::Protocol),
            (
                r#"[{"error":{"code":503,"status":"UNAVAILABLE"}}]"#.into(),
                Kind::Overloaded,
            ),
        ] {
            assert_eq!(whole(body.as_bytes()).unwrap_err().kind, kind, "{body}");
        }
    }
}

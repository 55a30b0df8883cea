//! Gemini's events to chunks.
//!
//! There is no terminator: what completes an answer is `finishReason`, and then the end. While a tool of Google's runs
//! there may be a `finishReason` before the last one, so one is only believed when nothing is left to come.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{
    NAME,
    error::reported,
    partial::Streamed,
    wire::{Candidate, FunctionCall, Part, Response},
};
use crate::{
    chat::{Carry, Chunk, FinishKind, FinishReason, Usage},
    meters::Tolerated,
    provider::{
        ProviderError,
        content::{Speech, say},
        deviations::Deviations,
        dialect::{self, Decoder, Progress, parse_event as parse, room_beside},
        error::Kind,
        finish::{Answer, word_in},
        frame::Frame,
        loose::{LooseText, arguments, count, int, list, name, object, truth},
    },
};

/// The members of `FinishReason` that complete an answer, by their names and numbers in generativelanguage v1beta.
const FINISHES: [(&str, &str); 9] = [
    ("STOP", "1"),
    ("MAX_TOKENS", "2"),
    ("SAFETY", "3"),
    ("RECITATION", "4"),
    ("LANGUAGE", "6"),
    ("BLOCKLIST", "7"),
    ("PROHIBITED_CONTENT", "8"),
    ("SPII", "9"),
    ("IMAGE_SAFETY", "11"),
];
/// Further members that are documented, without a number that is known.
const NAMED: [&str; 3] = ["IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "MODEL_ARMOR"];
/// Members that say failure, by name or number, beside those whose words say so.
const FAILURES: [&str; 4] = ["OTHER", "5", "10", "NO_IMAGE"];

/// Decodes one answer.
#[derive(Default)]
pub(super) struct GeminiDecoder {
    /// How many calls there have been.
    calls: usize,
    /// A call whose arguments are still coming.
    open: Option<Streamed>,
    /// Bytes of text so far.
    said: usize,
    /// A call that another took the place of before it was complete.
    abandoned: bool,
    finish: Option<Finish>,
    usage: Usage,
    odd: Deviations,
    /// A tool of Google's has been called, and its result is to follow.
    runs_tool: bool,
    /// The model went on after a finish, so the next may not be the last either.
    went_on: bool,
}

/// Why the model stopped.
enum Finish {
    /// The prompt was blocked, for this reason.
    Blocked(String),
    /// The candidate's own reason.
    Own(String),
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
        let Some(finish) = self.finish.take() else {
            return Err(ProviderError::new(
                Kind::Truncated,
                "the stream ended without a finishReason",
            ));
        };
        let reason = match finish {
            Finish::Blocked(raw) => FinishReason {
                kind: FinishKind::ContentFilter,
                raw: Some(raw),
            },
            Finish::Own(raw) => FinishReason {
                kind: self.ended(&raw)?,
                raw: Some(raw),
            },
        };
        if reason.kind == FinishKind::ToolCalls && (self.open.is_some() || self.abandoned) {
            return Err(ProviderError::new(
                Kind::Truncated,
                "a call whose arguments were to be continued",
            ));
        }
        out.push(Chunk::Finish {
            reason,
            usage: std::mem::take(&mut self.usage),
        });
        Ok(())
    }

    fn deviations(&self) -> Deviations {
        self.odd
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
        let feedback = object(response.prompt_feedback, &mut self.odd);
        if let Some(raw) = feedback.and_then(|f| self.word(f.block_reason)) {
            self.finish = Some(Finish::Blocked(raw));
        }
        // We ask for one candidate; of a server that sends several, the first is the answer.
        let candidates = list(response.candidates, &mut self.odd);
        for (mut candidate, place) in candidates.into_iter().zip(0..) {
            let index = int(candidate.index.take(), &mut self.odd);
            if index.unwrap_or(place) == 0 {
                self.candidate(candidate, out)?;
            }
        }
        Ok(())
    }

    fn candidate(&mut self, candidate: Candidate<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let content = object(candidate.content, &mut self.odd);
        let parts = content.map(|content| list(content.parts, &mut self.odd));
        for part in parts.into_iter().flatten() {
            if self.finish.is_some() && speaks(&part) {
                if self.runs_tool || part.function_call.is_some() {
                    // That finish was the tool's, or came before a call: the answer needs one of its own.
                    self.finish = None;
                } else {
                    self.went_on = true;
                }
            }
            self.part(part, out)?;
        }
        if let Some(raw) = self.word(candidate.finish_reason) {
            self.ended(&raw)?;
            self.finish = Some(Finish::Own(raw));
        }
        Ok(())
    }

    fn part(&mut self, part: Part<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let signature = part.thought_signature.filter(|s| !s.is_empty());
        if let Some(call) = object(part.function_call, &mut self.odd) {
            return self.function_call(call, signature, out);
        }
        if part.executable_code.is_some() || part.tool_call.is_some() {
            self.runs_tool = true;
        } else if part.code_execution_result.is_some() || part.tool_response.is_some() {
            self.runs_tool = false;
        } else if let Some(text) = part.text {
            let thought = truth(part.thought, &mut self.odd) == Some(true);
            self.text(text, thought, signature, out);
        } else if part.inline_data.is_some() || part.file_data.is_some() {
            self.odd.add(Tolerated::UnknownPart);
        }
        Ok(())
    }

    fn text(&mut self, text: LooseText<'_>, thought: bool, signature: Option<Cow<'_, str>>, out: &mut Vec<Chunk>) {
        let speech = match thought {
            true => Speech::Thinking,
            false => Speech::Answer,
        };
        let (before, from) = (out.len(), self.said);
        say(Some(text), speech, &mut self.odd, out);
        self.runs_tool &= out.len() == before;
        let mut thinking = String::new();
        for chunk in &out[before..] {
            match chunk {
                Chunk::Text(text) => self.said += text.len(),
                Chunk::Reasoning(text) if signature.is_some() => thinking.push_str(text),
                _ => {}
            }
        }
        if let Some(signature) = signature {
            let data = match thought {
                true => json!({"thought": thinking, "signature": signature}),
                false => json!({"from": from, "to": self.said, "signature": signature}),
            };
            out.insert(before, carry(data));
        }
    }

    /// A call: whole, or the beginning of one whose arguments follow, or (without a name) more of that one.
    fn function_call(
        &mut self,
        call: FunctionCall<'_>,
        signature: Option<Cow<'_, str>>,
        out: &mut Vec<Chunk>,
    ) -> Result<(), ProviderError> {
        let arguments = arguments(call.args, false, &mut self.odd)?;
        let given = name(call.id, &mut self.odd);
        let goes_on = truth(call.will_continue, &mut self.odd) == Some(true);
        let in_parts = call.partial_args.is_some();
        let parts = list(call.partial_args, &mut self.odd);
        if let Some(name) = name(call.name, &mut self.odd) {
            self.abandoned |= self.open.take().is_some();
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
            if goes_on || in_parts {
                self.open = Some(Streamed::new(index, arguments.as_deref()));
            } else {
                // A part is whole, and a value that has nothing in it is left out on this wire.
                let arguments = arguments.unwrap_or_else(|| "{}".to_owned());
                out.push(Chunk::ToolCallDelta { index, arguments });
            }
        } else if let Some(open) = self.open.as_ref().filter(|_| arguments.is_none()) {
            let signed = signature.map(|signature| json!({"call": open.index, "signature": signature}));
            out.extend(signed.map(carry));
        } else {
            return Err(ProviderError::new(Kind::Protocol, "a call without a name"));
        }
        if let Some(open) = &mut self.open {
            for part in parts {
                open.take(part)?;
            }
            if !goes_on {
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
        let mut number = |name: &str| count(raw.get(name), &mut self.odd);
        let (prompt, total) = (number("promptTokenCount"), number("totalTokenCount"));
        let (said, thought) = (number("candidatesTokenCount"), number("thoughtsTokenCount"));
        let (tools, cached) = (number("toolUsePromptTokenCount"), number("cachedContentTokenCount"));
        if prompt.or(total).or(said).or(thought).is_none() {
            return;
        }
        let input_tokens = prompt.map(|n| n + tools.unwrap_or(0));
        let output_tokens = match (said, thought) {
            (None, None) => total
                .zip(input_tokens)
                .and_then(|(total, input)| total.checked_sub(input)),
            _ => Some(said.unwrap_or(0) + thought.unwrap_or(0)),
        };
        self.usage = Usage {
            input_tokens,
            output_tokens,
            cached_input_tokens: cached,
            reasoning_tokens: thought,
            estimated: false,
            raw: Some(raw),
        };
    }
}

impl GeminiDecoder {
    /// A member's name or number, unless it stands for nothing.
    fn word(&mut self, field: Option<LooseText<'_>>) -> Option<String> {
        match field? {
            LooseText::Plain(name) if name.is_empty() || name.ends_with("_UNSPECIFIED") => None,
            LooseText::Other(Value::Number(number)) => Some(number.to_string()).filter(|number| number != "0"),
            other => word_in(Some(other), &mut self.odd),
        }
    }

    /// Our word for theirs, as far as the answer has come.
    fn ended(&mut self, raw: &str) -> Result<FinishKind, ProviderError> {
        if FAILURES.contains(&raw) {
            let detail = format!("finishReason {}", dialect::word(raw));
            return Err(ProviderError::new(Kind::Reported, detail));
        }
        let documented = FINISHES.iter().find(|(name, number)| *name == raw || *number == raw);
        let name = documented.map_or(raw, |(name, _)| name);
        let is_own = documented.is_some() || NAMED.contains(&raw);
        let own: &[&str] = if is_own { &[name] } else { &[] };
        let answer = Answer {
            field: "finishReason",
            own,
            calls: self.calls,
            spoke: self.said > 0,
        };
        answer.ended(name, &mut self.odd)
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
    let says = |text: &LooseText<'_>| !matches!(text, LooseText::Plain(text) if text.is_empty());
    part.text.as_ref().is_some_and(says)
        || part.function_call.is_some()
        || part.executable_code.is_some()
        || part.tool_call.is_some()
        || part.code_execution_result.is_some()
        || part.tool_response.is_some()
}

/// A stream was asked for, and a whole answer came: one response, or an array of the stream's.
pub(super) fn whole(body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError> {
    let mut out = Vec::new();
    let mut decoder = GeminiDecoder::default();
    decoder.read(&String::from_utf8_lossy(body), &mut out)?;
    decoder.end(&mut out).map_err(|error| match out.is_empty() {
        true => ProviderError::new(Kind::Protocol, "JSON that is not an answer"),
        false => error,
    })?;
    *odd = decoder.odd;
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

    #[test]
    fn a_call_after_the_finish_needs_a_finish_of_its_own() {
        let call = parts(r#"{"functionCall":{"name":"f","args":{"x":1}}}"#);
        assert_eq!(failure(&[STOP, &call]).kind, Kind::Truncated);
        assert_eq!(calls(&[STOP, &call]).len(), 1, "it has one");
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
        assert_eq!(arguments, ["{\"x\":1}", "{\"x\":1}", "{}"]);
        assert!(found[0].0 != found[1].0 && found[0].0.starts_with("call_") && found[0].0.len() == 37);
        assert_eq!(found[2].0, "g");
    }

    #[test]
    fn streamed_arguments_become_whole_ones() {
        let found = calls(&[
            &parts(r#"{"functionCall":{"name":"f","willContinue":true}}"#),
            &parts(
                r#"{"functionCall":{"partialArgs":[{"jsonPath":"$.a","stringValue":"x","willContinue":true}],"willContinue":true}}"#,
            ),
            &parts(r#"{"functionCall":{"partialArgs":[{"jsonPath":"$.a","stringValue":"y"}],"willContinue":true}}"#),
            &parts(r#"{"functionCall":{}}"#),
            &parts(r#"{"functionCall":{"name":"g","args":{"b":1}}}"#),
            &parts(r#"{"functionCall":{"name":"h","partialArgs":[{"jsonPath":"$.c","boolValue":true}]}}"#),
        ]);
        let arguments: Vec<&str> = found.iter().map(|(_, _, arguments)| arguments.as_str()).collect();
        assert_eq!(arguments, ["{\"a\":\"xy\"}", "{\"b\":1}", "{\"c\":true}"]);
    }

    #[test]
    fn a_call_that_was_to_be_continued_is_not_made() {
        let begun = parts(
            r#"{"functionCall":{"name":"f","partialArgs":[{"jsonPath":"$.a","stringValue":"x"}],"willContinue":true}}"#,
        );
        let other = parts(r#"{"functionCall":{"name":"g","args":{"b":1}}}"#);
        for cut in [&[begun.as_str(), STOP] as &[&str], &[&begun, &other, STOP]] {
            assert_eq!(failure(cut).kind, Kind::Truncated, "{cut:?}");
        }
        let length = decode(&[&begun, &finish(r#""MAX_TOKENS""#)]).unwrap();
        assert_eq!(end(&length).0, FinishKind::Length);
        for nameless in [
            r#"{"functionCall":{}}"#,
            r#"{"functionCall":{"args":{"x":1}}}"#,
            r#"{"functionCall":{"name":"","args":{}}}"#,
        ] {
            let kind = failure(&[&parts(nameless), STOP]).kind;
            assert_eq!(kind, Kind::Protocol, "{nameless}");
        }
    }

    #[test]
    fn odd_fields_cost_no_words() {
        for event in [
            r#"{"candidates":{"index":0,"content":{"parts":[{"text":"Hi"}]}}}"#,
            r#"{"candidates":[null,{"index":"0","content":{"parts":{"text":"Hi"}}}]}"#,
            r#"{"candidates":[{"content":[{"parts":[{"text":["H","i"]}]}]}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"Hi","thought":"false"}]}}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":{"text":"Hi"}},null]}}]}"#,
        ] {
            let stop = r#"{"candidates":[{"finishReason":{"name":"STOP"}}],"usageMetadata":{"promptTokenCount":"3","candidatesTokenCount":1.0}}"#;
            let chunks = decode(&[event, stop]).unwrap();
            let (kind, usage) = end(&chunks);
            assert_eq!((text(&chunks).as_str(), kind), ("Hi", FinishKind::Stop), "{event}");
            assert_eq!((usage.input_tokens, usage.output_tokens), (Some(3), Some(1)));
        }
        let call = parts(r#"{"functionCall":{"name":"f","args":"{\"x\":1}"}}"#);
        assert_eq!(calls(&[&call])[0].2, r#"{"x":1}"#);
        let image = parts(r#"{"inlineData":{"mimeType":"image/png","data":"AA=="}},{"text":"Hi"}"#);
        let mut decoder = GeminiDecoder::default();
        decoder.read(&image, &mut Vec::new()).unwrap();
        assert_eq!(decoder.odd.iter().next(), Some(Tolerated::UnknownPart));
    }

    #[test]
    fn an_unknown_reason_ends_words_and_completes_no_call() {
        let chunks = decode(&[&parts(HI), &finish(r#""NOVEL""#)]).unwrap();
        let Some(Chunk::Finish { reason, .. }) = chunks.last() else {
            panic!("no finish")
        };
        assert_eq!((reason.kind, reason.raw.as_deref()), (FinishKind::Stop, Some("NOVEL")));
        let call = parts(r#"{"functionCall":{"name":"f","args":{}}}"#);
        for reason in [r#""NOVEL""#, r#""OTHER""#, "5", "10", r#""MALFORMED_FUNCTION_CALL""#] {
            assert_eq!(failure(&[&call, &finish(reason)]).kind, Kind::Reported, "{reason}");
        }
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
        assert_eq!(
            failure(&[&finish(r#""Ada's secret""#)]).detail,
            "finishReason of no known form"
        );
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
            let chunks = whole(body.as_bytes(), &mut Deviations::default()).unwrap();
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
            assert_eq!(
                whole(body.as_bytes(), &mut Deviations::default()).unwrap_err().kind,
                kind,
                "{body}"
            );
        }
    }
}

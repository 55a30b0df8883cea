//! Anthropic's events to ours.
//!
//! What completes an answer is `message_stop`; the reason came before it, in `message_delta`. An answer is a row of
//! blocks, told apart by their index, each with a start, deltas and a stop.

use std::{borrow::Cow, sync::Arc};

use serde_json::{Map, Value, json, value::RawValue};

use super::{
    NAME,
    refusal::reported,
    wire::{Delta, Ending, Event, Kept, Message, Redacted, Tagged, Text, Thinking, ToolUse},
};
use crate::{
    chat::{Carry, Chunk, FinishKind, FinishReason, Usage},
    meters::Tolerated,
    provider::{
        ProviderError,
        content::{Speech, say},
        deviations::Deviations,
        dialect::{Decoder, Progress, parse_event as parse, room_beside},
        error::Kind,
        finish::{Answer, word_in},
        frame::Frame,
        loose::{LooseText, arguments, count, int, name},
        pieces::Arguments,
    },
};

/// The words of `stop_reason` that Anthropic documents.
const FINISHES: [&str; 7] = [
    "end_turn",
    "stop_sequence",
    "tool_use",
    "pause_turn",
    "max_tokens",
    "model_context_window_exceeded",
    "refusal",
];

/// Decodes one answer.
#[derive(Default)]
pub(super) struct AnthropicDecoder {
    /// The configured provider: what is kept goes back to no other.
    provider: Arc<str>,
    /// The blocks that have begun and not stopped.
    open: Vec<(u64, Block)>,
    /// Bytes of text so far.
    text: usize,
    /// Calls so far.
    calls: usize,
    /// Whether a call's block did not stop.
    cut_call: bool,
    /// Whether a block has begun.
    begun: bool,
    /// The id of the message; an empty one where it came without.
    message: Option<String>,
    stop_reason: Option<String>,
    stopped: bool,
    /// Cumulative: each event's fields replace those before.
    usage: Map<String, Value>,
    odd: Deviations,
}

/// How a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The provider said so.
    Sent,
    /// Another began in its place, or the message ended.
    Implied,
}

/// A block under way.
enum Block {
    Text,
    /// Kept, for it is wanted back with its signature.
    Thinking {
        thinking: String,
        /// `None` if the block has no such member.
        signature: Option<String>,
    },
    Tool {
        call: usize,
        /// Arguments that came with the start; they count if no delta brings others.
        given: Option<String>,
        arguments: Arguments,
    },
    /// The provider's own tools and their results, and whatever is new.
    Other,
}

impl Decoder for AnthropicDecoder {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Chunk>) -> Result<Progress, ProviderError> {
        if frame.event == b"error" {
            return Err(reported(&serde_json::from_str(frame.data).unwrap_or(Value::Null)));
        }
        if frame.data.trim_ascii() == "[DONE]" {
            return Ok(Progress::Over); // some proxies end with it; by itself it completes nothing
        }
        let event: Event<'_> = parse(frame.data)?;
        if let Some(error) = event.error {
            return Err(reported(&parse(error.get())?));
        }
        let index = int(event.index, &mut self.odd).unwrap_or(0);
        match event.kind.as_deref().unwrap_or("") {
            "error" => return Err(reported(&Value::Null)),
            "message_start" => {
                if let Some(message) = event.message {
                    let message: Message<'_> = parse(message.get())?;
                    self.begin(message.id)?;
                    self.read_usage(message.usage);
                }
            }
            "content_block_start" => {
                self.end_block(index, Stop::Implied, out); // another begins in its place
                if let Some(block) = event.content_block {
                    self.start(index, block, out)?;
                }
            }
            "content_block_delta" => {
                if let Some(delta) = event.delta {
                    self.delta(index, delta, out)?;
                }
            }
            "content_block_stop" => self.end_block(index, Stop::Sent, out),
            "message_delta" => {
                if let Some(delta) = event.delta {
                    self.end_with(parse::<Ending<'_>>(delta.get())?.stop_reason);
                }
                self.read_usage(event.usage);
            }
            "message_stop" => {
                self.close(out);
                return Ok(Progress::Over);
            }
            _ => {} // `ping`, and what may come: the API reserves the right to new events
        }
        Ok(Progress::More)
    }

    fn end(&mut self, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let truncated = |what| Err(ProviderError::new(Kind::Truncated, what));
        if !self.stopped {
            return truncated("the stream ended without a message_stop");
        }
        let Some(raw) = self.stop_reason.take() else {
            return truncated("a message_stop without a stop_reason");
        };
        // A paused turn could be sent back to go on; only the provider's own tools pause, and we ask for none.
        let answer = Answer {
            field: "stop_reason",
            own: &FINISHES,
            calls: self.calls,
            spoke: self.text > 0,
        };
        let kind = answer.ended(&raw, &mut self.odd)?;
        if kind == FinishKind::ToolCalls && self.cut_call {
            return truncated("a call whose block did not stop");
        }
        out.push(Chunk::Finish {
            reason: FinishReason { kind, raw: Some(raw) },
            usage: self.usage(),
        });
        Ok(())
    }

    fn deviations(&self) -> Deviations {
        self.odd
    }
}

impl AnthropicDecoder {
    /// A decoder of an answer of this provider's.
    pub(super) fn new(provider: Arc<str>) -> Self {
        Self {
            provider,
            ..Self::default()
        }
    }

    /// A message begins. Before its content it may be begun again, by a proxy that asks again; after that it would be
    /// another message, whose words and calls are not to be mixed with these.
    fn begin(&mut self, id: Option<LooseText<'_>>) -> Result<(), ProviderError> {
        let id = name(id, &mut self.odd).map(Cow::into_owned).unwrap_or_default();
        if let Some(known) = &self.message {
            if self.begun && (id.is_empty() || *known != id) {
                return Err(ProviderError::new(Kind::Protocol, "a second message_start"));
            }
            self.odd.add(Tolerated::Repeated);
        }
        self.message = Some(id);
        Ok(())
    }

    /// A block begins; most begin empty, but none has to.
    fn start(&mut self, index: u64, raw: &RawValue, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        room_beside(self.open.len().max(self.calls))?;
        self.begun = true;
        let raw = raw.get();
        let kind = parse::<Tagged<'_>>(raw)?.kind.unwrap_or_default();
        let block = match kind.as_ref() {
            "text" => {
                self.say(parse::<Text<'_>>(raw)?.text, out);
                Block::Text
            }
            "thinking" => {
                let block: Thinking<'_> = parse(raw)?;
                Block::Thinking {
                    thinking: self.think(block.thinking, out),
                    signature: block.signature.map(|signature| {
                        let signature = name(Some(signature), &mut self.odd);
                        signature.unwrap_or_default().into_owned()
                    }),
                }
            }
            "redacted_thinking" => {
                let data = parse::<Redacted<'_>>(raw)?.data;
                self.keep(json!({"type": "redacted_thinking", "data": data}), out);
                Block::Other
            }
            "tool_use" => self.call(parse(raw)?, out)?,
            _ => Block::Other,
        };
        self.open.push((index, block));
        Ok(())
    }

    /// A call begins.
    fn call(&mut self, block: ToolUse<'_>, out: &mut Vec<Chunk>) -> Result<Block, ProviderError> {
        let Some(called) = name(block.name, &mut self.odd) else {
            return Err(ProviderError::new(Kind::Protocol, "a call without a name"));
        };
        let call = self.calls;
        self.calls += 1;
        let id = name(block.id, &mut self.odd);
        out.push(Chunk::ToolCallStart {
            index: call,
            id: id.map_or_else(|| format!("call_{}", uuid::Uuid::new_v4().simple()), Cow::into_owned),
            name: called.into_owned(),
        });
        let given = arguments(block.input, false, &mut self.odd)?;
        Ok(Block::Tool {
            call,
            // A block that stops without any has an empty object.
            given: Some(given.unwrap_or_else(|| "{}".to_owned())),
            arguments: Arguments::default(),
        })
    }

    /// More of a block. What belongs to no block that is read is passed over, except words, which are never lost, and
    /// arguments, without which a call would be another.
    fn delta(&mut self, index: u64, raw: &RawValue, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let kind = parse::<Tagged<'_>>(raw.get())?.kind.unwrap_or_default();
        if !matches!(
            kind.as_ref(),
            "text_delta" | "thinking_delta" | "signature_delta" | "input_json_delta"
        ) {
            return Ok(()); // `citations_delta`, `compaction_delta`, …
        }
        let delta: Delta<'_> = parse(raw.get())?;
        let open = self.open.iter().position(|(at, _)| *at == index);
        if open.is_some_and(|at| matches!(self.open[at].1, Block::Other)) {
            return Ok(());
        }
        match kind.as_ref() {
            "text_delta" => self.say(delta.text, out),
            "thinking_delta" => {
                let more = self.think(delta.thinking, out);
                if let Some(Block::Thinking { thinking, .. }) = self.block(open) {
                    thinking.push_str(&more);
                }
            }
            "signature_delta" => {
                let whole = name(delta.signature, &mut self.odd).map(Cow::into_owned);
                if let (Some(Block::Thinking { signature, .. }), Some(whole)) = (self.block(open), whole) {
                    *signature = Some(whole);
                }
            }
            _ => self.argue(open, delta.partial_json, out)?,
        }
        Ok(())
    }

    fn block(&mut self, open: Option<usize>) -> Option<&mut Block> {
        open.map(|at| &mut self.open[at].1)
    }

    /// More of a call's arguments.
    fn argue(
        &mut self,
        open: Option<usize>,
        piece: Option<&RawValue>,
        out: &mut Vec<Chunk>,
    ) -> Result<(), ProviderError> {
        let Some(piece) = arguments(piece, true, &mut self.odd)? else {
            return Ok(());
        };
        match open.map(|at| &mut self.open[at].1) {
            Some(Block::Tool { call, given, arguments }) => {
                *given = None;
                if arguments.take(&piece) {
                    out.push(Chunk::ToolCallDelta {
                        index: *call,
                        arguments: piece,
                    });
                } else {
                    self.odd.add(Tolerated::Repeated);
                }
                Ok(())
            }
            _ => Err(ProviderError::new(Kind::Protocol, "arguments of no call")),
        }
    }

    /// A block ends.
    fn end_block(&mut self, index: u64, stop: Stop, out: &mut Vec<Chunk>) {
        let Some(at) = self.open.iter().position(|(open, _)| *open == index) else {
            return;
        };
        match self.open.remove(at).1 {
            Block::Thinking { thinking, signature } => {
                let is_signed = signature.as_ref().is_some_and(|signature| !signature.is_empty());
                // Compatible servers sign nothing and want the block back all the same. One that
                // was cut short is not taken back.
                if is_signed || stop == Stop::Sent && !thinking.is_empty() {
                    let mut block = json!({"type": "thinking", "thinking": thinking});
                    if let Some(signature) = signature {
                        block["signature"] = signature.into();
                    }
                    self.keep(block, out);
                }
            }
            Block::Tool { .. } if stop == Stop::Implied => self.cut_call = true,
            Block::Tool {
                call,
                given: Some(arguments),
                ..
            } => out.push(Chunk::ToolCallDelta { index: call, arguments }),
            _ => {}
        }
    }

    /// The message is complete, and with it every block but calls.
    fn close(&mut self, out: &mut Vec<Chunk>) {
        while let Some(&(index, _)) = self.open.first() {
            self.end_block(index, Stop::Implied, out);
        }
        self.stopped = true;
    }

    fn say(&mut self, text: Option<LooseText<'_>>, out: &mut Vec<Chunk>) {
        let from = out.len();
        say(text, Speech::Answer, &mut self.odd, out);
        for chunk in &out[from..] {
            if let Chunk::Text(text) = chunk {
                self.begun = true;
                self.text += text.len();
            }
        }
    }

    /// Tells thinking, and gives it.
    fn think(&mut self, thinking: Option<LooseText<'_>>, out: &mut Vec<Chunk>) -> String {
        let from = out.len();
        say(thinking, Speech::Thinking, &mut self.odd, out);
        let told = out[from..].iter().filter_map(|chunk| match chunk {
            Chunk::Reasoning(text) => Some(text.as_str()),
            _ => None,
        });
        told.collect()
    }

    /// A block that is wanted back, in its place: the API refuses thinking that has moved.
    fn keep(&self, block: Value, out: &mut Vec<Chunk>) {
        let kept = Kept {
            text: self.text,
            calls: self.calls,
            provider: Some(self.provider.to_string()).filter(|name| !name.is_empty()),
            block,
        };
        out.push(Chunk::Carry(Carry {
            dialect: NAME.to_owned(),
            data: json!(kept),
        }));
    }

    /// Of several reasons the last counts; `null` is none.
    fn end_with(&mut self, reason: Option<LooseText<'_>>) {
        if let Some(reason) = word_in(reason, &mut self.odd) {
            self.stop_reason = Some(reason);
        }
    }

    /// Numbers are cumulative: they replace, and are never added. Older streams name the input in `message_start` only.
    fn read_usage(&mut self, raw: Option<&RawValue>) {
        if let Some(Ok(Value::Object(fields))) = raw.map(|raw| serde_json::from_str(raw.get())) {
            self.usage
                .extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
        }
    }

    /// Their `input_tokens` are those that the cache had no part in.
    fn usage(&mut self) -> Usage {
        let raw = Value::Object(std::mem::take(&mut self.usage));
        let mut number = |pointer: &str| count(raw.pointer(pointer), &mut self.odd);
        let (cached, output_tokens) = (number("/cache_read_input_tokens"), number("/output_tokens"));
        let reasoning_tokens = number("/output_tokens_details/thinking_tokens");
        let parts = [
            "/input_tokens",
            "/cache_read_input_tokens",
            "/cache_creation_input_tokens",
        ];
        // The cache's parts may be missing, which means 0.
        let is_there = |name: &&str| *name == "/input_tokens" || raw.pointer(name).is_some();
        let input_tokens = parts.into_iter().filter(is_there).map(number).sum();
        Usage {
            input_tokens,
            output_tokens,
            cached_input_tokens: cached,
            reasoning_tokens,
            estimated: false,
            raw: raw.as_object().is_some_and(|fields| !fields.is_empty()).then_some(raw),
        }
    }
}

/// A stream was asked for, and a whole answer came.
pub(super) fn whole(
    mut decoder: AnthropicDecoder,
    body: &[u8],
    odd: &mut Deviations,
) -> Result<Vec<Chunk>, ProviderError> {
    let text = String::from_utf8_lossy(body);
    let message: Message<'_> = parse(&text)?;
    if let Some(error) = message.error {
        return Err(reported(&parse(error.get())?));
    }
    let mut out = Vec::new();
    let content = message.content.map_or("null", RawValue::get);
    if content.starts_with('"') {
        decoder.odd.add(Tolerated::FieldType);
        decoder.say(parse(content)?, &mut out);
    } else {
        for block in blocks(content)? {
            decoder.start(0, block, &mut out)?;
            decoder.end_block(0, Stop::Sent, &mut out);
        }
    }
    decoder.end_with(message.stop_reason);
    decoder.read_usage(message.usage);
    decoder.close(&mut out);
    decoder.end(&mut out).map_err(|error| match error.kind {
        Kind::Truncated => ProviderError::new(Kind::Protocol, "JSON that is not an answer"),
        _ => error,
    })?;
    *odd = decoder.odd;
    Ok(out)
}

/// The blocks of a content: a list, or one block.
fn blocks(content: &str) -> Result<Vec<&RawValue>, ProviderError> {
    if content.starts_with('{') {
        return Ok(vec![parse(content)?]);
    }
    let blocks: Option<Vec<Option<&RawValue>>> = parse(content)?;
    Ok(blocks.into_iter().flatten().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::fold::Round,
        provider::{anthropic::Anthropic, decoding::Decoding},
    };

    /// What a stream of these events comes to.
    fn decode(events: &[&str]) -> Result<Vec<Chunk>, ProviderError> {
        let mut decoding = Decoding::new(&Anthropic::default(), 1 << 20);
        let mut out = Vec::new();
        for event in events {
            decoding.push(format!("data: {event}\n\n").as_bytes(), &mut out)?;
            if decoding.progress() == Progress::Over {
                return Ok(out);
            }
        }
        decoding.end(None, &mut out)?;
        Ok(out)
    }

    const STOP: &str = r#"{"type":"message_stop"        }"#;

    fn start(index: u64, block: &str) -> String {
        format!(r#"{{"type":"content_block_start","index":{index},"content_block":{block}}}"#)
    }

    fn delta(index: u64, delta: &str) -> String {
        format!(r#"{{"type":"content_block_delta","index":{index},"delta":{delta}}}"#)
    }

    fn close(index: u64) -> String {
        format!(r#"{{"type":"content_block_stop","index":{index}}}"#)
    }

    fn finish(reason: &str) -> String {
        format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"{reason}"}},"usage":{{"output_tokens":5}}}}"#)
    }

    /// A stream of these events and an end for this reason.
    fn ended(events: &[&str], reason: &str) -> Vec<Chunk> {
        decode(&[events, &[finish(reason).as_str(), STOP]].concat()).unwrap()
    }

    fn kind(chunks: &[Chunk]) -> FinishKind {
        match chunks.last() {
            Some(Chunk::Finish { reason, .. }) => reason.kind,
            other => panic!("no finish: {other:?}"),
        }
    }

    fn usage(chunks: &[Chunk]) -> Usage {
        match chunks.last() {
            Some(Chunk::Finish { usage, .. }) => usage.clone(),
            other => panic!("no finish: {other:?}"),
        }
    }

    fn words(chunks: &[Chunk]) -> String {
        let word = |chunk: &Chunk| match chunk {
            Chunk::Text(text) => Some(text.clone()),
            _ => None,
        };
        chunks.iter().filter_map(word).collect()
    }

    /// `id name arguments` of every call, as they would be run.
    fn calls(chunks: &[Chunk]) -> Vec<String> {
        let mut round = Round::default();
        chunks.iter().for_each(|chunk| assert!(round.push(chunk)));
        let show = |asked: crate::chat::fold::Asked| {
            assert!(asked.parsed);
            let call = asked.call;
            format!("{} {} {}", call.id, call.name, Value::Object(call.arguments))
        };
        round.complete().0.into_iter().map(show).collect()
    }

    fn carried(chunks: &[Chunk]) -> Vec<Value> {
        let data = |chunk: &Chunk| match chunk {
            Chunk::Carry(carry) => {
                assert_eq!(carry.dialect, NAME);
                Some(carry.data.clone())
            }
            _ => None,
        };
        chunks.iter().filter_map(data).collect()
    }

    #[test]
    fn only_message_stop_with_a_reason_completes_an_answer() {
        let hi = delta(0, r#"{"type":"text_delta","text":"Hi"}"#);
        let end = finish("end_turn");
        assert_eq!(kind(&decode(&[&hi, &end, STOP]).unwrap()), FinishKind::Stop);
        for cut in [
            &[hi.as_str()] as &[&str],
            &[&hi, &end],
            &[&hi, STOP],
            &[&hi, &end, "[DONE]"],
        ] {
            assert_eq!(decode(cut).unwrap_err().kind, Kind::Truncated, "{cut:?}");
        }
    }

    #[test]
    fn every_reason_has_its_word_and_none_is_made_up() {
        for (reason, expected) in [
            ("end_turn", FinishKind::Stop),
            ("stop_sequence", FinishKind::Stop),
            ("pause_turn", FinishKind::Stop),
            ("tool_use", FinishKind::Stop), // without a call
            ("max_tokens", FinishKind::Length),
            ("model_context_window_exceeded", FinishKind::Length),
            ("refusal", FinishKind::ContentFilter),
        ] {
            let hi = delta(0, r#"{"type":"text_delta","text":"Hi"}"#);
            assert_eq!(kind(&ended(&[&hi], reason)), expected, "{reason}");
            let tool = start(0, r#"{"type":"tool_use","id":"a","name":"t","input":{}}"#);
            let stopped = close(0);
            let expected = if expected == FinishKind::Stop {
                FinishKind::ToolCalls
            } else {
                expected
            };
            assert_eq!(
                kind(&ended(&[&tool, &stopped], reason)),
                expected,
                "{reason} with a call"
            );
        }
        let error = decode(&[&finish("My key is sk-1"), STOP]).unwrap_err();
        assert_eq!((error.kind, error.detail.contains("sk-1")), (Kind::Reported, false));
    }

    #[test]
    fn a_later_message_delta_without_a_reason_takes_none_back() {
        let later =
            r#"{"type":"message_delta","delta":{"stop_reason":null},"usage":{"output_tokens":9,"input_tokens":null}}"#;
        let begin = r#"{"type":"message_start","message":{"content":[],"usage":{"input_tokens":3,"output_tokens":1}}}"#;
        let chunks = decode(&[begin, &finish("max_tokens"), later, STOP]).unwrap();
        let usage = usage(&chunks);
        assert_eq!(kind(&chunks), FinishKind::Length);
        assert_eq!((usage.input_tokens, usage.output_tokens), (Some(3), Some(9)));
    }

    #[test]
    fn the_input_includes_what_the_cache_read_and_wrote() {
        let begin = r#"{"type":"message_start","message":{"usage":{"input_tokens":4,"cache_read_input_tokens":100,"cache_creation_input_tokens":20,"output_tokens":1}}}"#;
        let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":5,"output_tokens":7,"output_tokens_details":{"thinking_tokens":3}}}"#;
        let usage = usage(&decode(&[begin, end, STOP]).unwrap());
        assert_eq!(
            (usage.input_tokens, usage.cached_input_tokens),
            (Some(125), Some(100)),
            "replaced, never added"
        );
        assert_eq!((usage.output_tokens, usage.reasoning_tokens), (Some(7), Some(3)));
        let raw = usage.raw.unwrap();
        assert_eq!(
            (&raw["input_tokens"], &raw["cache_creation_input_tokens"]),
            (&json!(5), &json!(20))
        );
    }

    #[test]
    fn numbers_that_are_none_are_unknown() {
        for odd in [
            r#"{"input_tokens":-1,"output_tokens":9007199254740992}"#,
            r#"{"input_tokens":5,"cache_read_input_tokens":-2,"output_tokens":"x"}"#,
            r"[]",
        ] {
            let end = format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn"}},"usage":{odd}}}"#);
            let known = usage(&decode(&[&end, STOP]).unwrap());
            assert_eq!((known.input_tokens, known.output_tokens), (None, None), "{odd}");
        }
        let silent = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
        assert_eq!(usage(&decode(&[silent, STOP]).unwrap()), Usage::default());
    }

    #[test]
    fn arguments_come_in_deltas_or_with_the_start_or_not_at_all() {
        let piece = |index, json: &str| {
            delta(
                index,
                &json!({"type": "input_json_delta", "partial_json": json}).to_string(),
            )
        };
        let chunks = ended(
            &[
                &start(0, r#"{"type":"tool_use","id":"a","name":"none","input":{}}"#),
                &close(0),
                &start(1, r#"{"type":"tool_use","id":"b","name":"empty","input":{}}"#),
                &piece(1, ""),
                &close(1),
                &start(2, r#"{"type":"tool_use","id":"c","name":"filled","input":{"x":1}}"#),
                &close(2),
                &start(3, r#"{"type":"tool_use","id":"d","name":"both","input":{"x":1}}"#),
                &start(4, r#"{"type":"tool_use","id":"e","name":"bare"}"#),
                &piece(3, "{\"y\":"),
                &piece(4, "{}"),
                &piece(3, "\"ü\"}"),
                &close(3),
                &close(4),
            ],
            "tool_use",
        );
        assert_eq!(
            calls(&chunks),
            [
                "a none {}",
                "b empty {}",
                "c filled {\"x\":1}",
                "d both {\"y\":\"ü\"}",
                "e bare {}"
            ]
        );
    }

    #[test]
    fn the_providers_own_tools_and_what_is_unknown_are_no_calls_and_no_words() {
        let chunks = ended(
            &[
                r#"{"type":"ping"}"#,
                r#"{"type":"something_new","delta":"odd","usage":7,"message":[1]}"#,
                &start(
                    0,
                    r#"{"type":"server_tool_use","id":"s","name":"web_search","input":{"q":1}}"#,
                ),
                &delta(0, r#"{"type":"input_json_delta","partial_json":"{}"}"#),
                &close(0),
                &start(
                    1,
                    r#"{"type":"web_search_tool_result","tool_use_id":"s","content":[],"text":{"not":"words"}}"#,
                ),
                &close(1),
                &start(2, r#"{"type":"mcp_tool_use","id":"m","name":"x","input":{}}"#),
                &start(3, r#"{"type":"novelty","text":"not ours"}"#),
                &delta(3, r#"{"type":"text_delta","text":"not ours"}"#),
                &start(4, r#"{"type":"text","text":"Begun"}"#),
                &delta(4, r#"{"type":"citations_delta","citation":{"text":[]},"text":{}}"#),
                &delta(4, r#"{"type":"text_delta","text":"."}"#),
            ],
            "tool_use",
        );
        assert_eq!((words(&chunks).as_str(), calls(&chunks).len()), ("Begun.", 0));
        assert_eq!(kind(&chunks), FinishKind::Stop);
    }

    #[test]
    fn finished_thinking_is_kept_without_a_signature_too() {
        let thought = |member: &str, stop: &str| {
            let chunks = decode(&[
                &start(0, &format!(r#"{{"type":"thinking","thinking":""{member}}}"#)),
                &delta(0, r#"{"type":"thinking_delta","thinking":"Hmm."}"#),
                stop,
                &start(1, r#"{"type":"text","text":"Hi"}"#),
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#,
                r#"{"type":"message_stop"}"#,
            ]);
            carried(&chunks.unwrap())
                .iter()
                .map(|data| data["block"].clone())
                .collect::<Vec<_>>()
        };
        let stop = r#"{"type":"content_block_stop","index":0}"#;
        assert_eq!(thought("", stop), [json!({"type": "thinking", "thinking": "Hmm."})]);
        let empty = json!({"type": "thinking", "thinking": "Hmm.", "signature": ""});
        assert_eq!(thought(r#","signature":"""#, stop), [empty]);
        assert_eq!(thought("", r#"{"type":"ping"}"#), [Value::Null; 0], "it was cut short");
    }

    #[test]
    fn thinking_is_kept_with_its_signature_and_its_place() {
        let chunks = ended(
            &[
                &start(0, r#"{"type":"thinking","thinking":"","signature":""}"#),
                &delta(0, r#"{"type":"thinking_delta","thinking":"Hm"}"#),
                &delta(0, r#"{"type":"thinking_delta","thinking":"m."}"#),
                &delta(0, r#"{"type":"signature_delta","signature":"S1"}"#),
                &close(0),
                &start(1, r#"{"type":"redacted_thinking","data":"R1"}"#),
                &close(1),
                &start(2, r#"{"type":"text","text":""}"#),
                &delta(2, r#"{"type":"text_delta","text":"Ö"}"#),
                &close(2),
                &start(3, r#"{"type":"tool_use","id":"a","name":"t","input":{}}"#),
                &close(3),
                &start(4, r#"{"type":"thinking","thinking":"","signature":"S2"}"#),
                &close(4),
                &start(5, r#"{"type":"thinking","thinking":"cut"}"#),
            ],
            "tool_use",
        );
        assert_eq!(
            carried(&chunks),
            [
                json!({"text": 0, "calls": 0, "block": {"type": "thinking", "thinking": "Hmm.", "signature": "S1"}}),
                json!({"text": 0, "calls": 0, "block": {"type": "redacted_thinking", "data": "R1"}}),
                json!({"text": 2, "calls": 1, "block": {"type": "thinking", "thinking": "", "signature": "S2"}}),
            ]
        );
    }

    #[test]
    fn errors_inside_a_stream_have_their_kinds() {
        let typed =
            |kind: &str| format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"sk-1"}},"request_id":"r"}}"#);
        for (kind, expected, again) in [
            ("overloaded_error", Kind::Overloaded, true),
            ("rate_limit_error", Kind::RateLimited, true),
            ("api_error", Kind::Server, true),
            ("timeout_error", Kind::Server, true),
            ("billing_error", Kind::Quota, false),
            ("authentication_error", Kind::Auth, false),
            ("permission_error", Kind::Auth, false),
            ("not_found_error", Kind::NotFound, false),
            ("invalid_request_error", Kind::Rejected, false),
            ("request_too_large", Kind::Rejected, false),
            ("a_new_error", Kind::Reported, false),
        ] {
            let error = decode(&[&typed(kind)]).unwrap_err();
            assert_eq!((error.kind, error.retryable()), (expected, again), "{kind}");
            assert_eq!(error.detail, kind, "their word, not their sentence");
        }
        for (bare, expected) in [
            (r#"{"error":{"message":"x","code":529}}"#, Kind::Overloaded),
            (r#"{"error":{"message":"x","code":"429"}}"#, Kind::RateLimited),
            (r#"{"error":"gone"}"#, Kind::Reported),
            (r#"{"type":"error"}"#, Kind::Reported),
        ] {
            assert_eq!(decode(&[bare]).unwrap_err().kind, expected, "{bare}");
        }
    }

    #[test]
    fn an_event_named_error_is_one_whatever_its_data() {
        for (data, expected) in [
            (
                r#"{"type":"error","error":{"type":"overloaded_error"}}"#,
                Kind::Overloaded,
            ),
            (r#"{"type":"overloaded_error"}"#, Kind::Overloaded),
            ("upstream connect error: sk-1", Kind::Reported),
        ] {
            let mut decoder = AnthropicDecoder::default();
            let frame = Frame {
                event: b"error",
                data,
                bare: false,
            };
            let error = decoder.frame(frame, &mut Vec::new()).unwrap_err();
            assert_eq!((error.kind, error.detail.contains("sk-1")), (expected, false), "{data}");
        }
    }

    #[test]
    fn what_is_not_an_event_breaks_the_answer() {
        for wrong in [
            "{",
            "nonsense",
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\ud83d"}}"#,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","name":[]}}"#,
        ] {
            let error = decode(&[wrong]).unwrap_err();
            assert_eq!(error.kind, Kind::Protocol, "{wrong}");
        }
    }

    #[test]
    fn an_answer_that_comes_whole_is_the_same_answer() {
        let chunks = whole(AnthropicDecoder::default(), r#"{"type":"message","content":[
                {"type":"thinking","thinking":"Hm.","signature":"S"},{"type":"text","text":"Hé","citations":null},
                {"type":"server_tool_use","id":"s","name":"x","input":{}},
                {"type":"tool_use","id":"a","name":"t","input":{"x":1}},{"type":"tool_use","id":"b","name":"t","input":{}}],
                "stop_reason":"tool_use","usage":{"input_tokens":2,"cache_read_input_tokens":1,"output_tokens":3}}"#
                .as_bytes(),
            &mut Deviations::default(),
        )
        .unwrap();
        assert_eq!((words(&chunks).as_str(), kind(&chunks)), ("Hé", FinishKind::ToolCalls));
        assert_eq!(calls(&chunks), ["a t {\"x\":1}", "b t {}"]);
        assert_eq!(carried(&chunks)[0]["block"]["signature"], "S");
        assert_eq!(usage(&chunks).input_tokens, Some(3));

        let error = whole(
            AnthropicDecoder::default(),
            br#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            &mut Deviations::default(),
        );
        assert_eq!(error.unwrap_err().kind, Kind::Overloaded);
        for none in ["{}", "<html>", r#"{"content":[{"type":"text","text":"Hi"}]}"#, "7"] {
            assert_eq!(
                whole(AnthropicDecoder::default(), none.as_bytes(), &mut Deviations::default())
                    .unwrap_err()
                    .kind,
                Kind::Protocol,
                "{none}"
            );
        }
    }

    #[test]
    fn a_call_is_made_only_if_its_block_stopped_and_the_round_ended_well() {
        let begun = start(0, r#"{"type":"tool_use","id":"a","name":"t","input":{}}"#);
        let piece = delta(0, r#"{"type":"input_json_delta","partial_json":"{\"x\":1}"}"#);
        let made = ended(&[&begun, &piece, &close(0)], "tool_use");
        assert_eq!(calls(&made), ["a t {\"x\":1}"]);
        let next = start(0, r#"{"type":"text","text":"Hi"}"#);
        let end = finish("tool_use");
        for open in [
            &[begun.as_str(), &piece, &end, STOP] as &[&str],
            &[&begun, &end, STOP],
            &[&begun, &piece, &next, &close(0), &end, STOP],
        ] {
            assert_eq!(decode(open).unwrap_err().kind, Kind::Truncated, "{open:?}");
        }
        assert_eq!(kind(&ended(&[&begun, &piece], "max_tokens")), FinishKind::Length);
        for word in ["error", "abort", "novel"] {
            let (stopped, end) = (close(0), finish(word));
            let error = decode(&[&begun, &piece, &stopped, &end, STOP]).unwrap_err();
            assert_eq!(error.kind, Kind::Reported, "{word}");
        }
        let nameless = start(0, r#"{"type":"tool_use","id":"a","input":{}}"#);
        for broken in [nameless.as_str(), &piece] {
            let error = decode(&[broken, &end, STOP]).unwrap_err();
            assert_eq!(error.kind, Kind::Protocol, "{broken}");
        }
    }

    #[test]
    fn a_second_message_breaks_the_answer_once_it_has_content() {
        let begin = |id: &str| format!(r#"{{"type":"message_start","message":{{"id":{id},"content":[]}}}}"#);
        let (one, other, none) = (begin("\"m1\""), begin("\"m2\""), begin("null"));
        let text = start(0, r#"{"type":"text","text":"Hi"}"#);
        let tool = start(0, r#"{"type":"tool_use","id":"a","name":"t","input":{}}"#);
        for content in [&text, &tool] {
            for (first, second) in [(&one, &other), (&one, &none), (&none, &none), (&none, &one)] {
                let error = decode(&[first, content, &close(0), second, content]).unwrap_err();
                assert_eq!(error.kind, Kind::Protocol, "{first} {second}");
            }
        }
        for again in [&one, &other, &none] {
            assert_eq!(words(&ended(&[&one, again, &text, &close(0)], "end_turn")), "Hi");
        }
        assert_eq!(words(&ended(&[&one, &text, &one, &close(0)], "end_turn")), "Hi");
    }

    #[test]
    fn odd_fields_cost_no_words_and_no_call() {
        let chunks = ended(
            &[
                &start(0, r#"{"type":"thinking","thinking":[{"type":"text","text":"H"}]}"#),
                r#"{"type":"content_block_delta","index":"0","delta":{"type":"thinking_delta","thinking":{"text":"m"}}}"#,
                &delta(0, r#"{"type":"signature_delta","signature":"S"}"#),
                &close(0),
                &start(1, r#"{"type":"text","text":[]}"#),
                &delta(1, r#"{"type":"text_delta","text":[{"type":"text","text":"Hi "}]}"#),
                &delta(1, r#"{"type":"text_delta","text":7}"#),
                &close(1),
                &start(2, r#"{"type":"tool_use","id":1,"name":"t","input":"{\"x\":1}"}"#),
                &close(2),
                &start(3, r#"{"type":"tool_use","id":"b","name":"t","input":{}}"#),
                &delta(3, r#"{"type":"input_json_delta","partial_json":{"x":1}}"#),
                &delta(3, r#"{"type":"input_json_delta","partial_json":"{\"x\": 1}"}"#),
                &close(3),
            ],
            "TOOL_USE",
        );
        assert_eq!(
            (words(&chunks).as_str(), kind(&chunks)),
            ("Hi 7", FinishKind::ToolCalls)
        );
        assert_eq!(calls(&chunks), ["1 t {\"x\":1}", "b t {\"x\":1}"]);
        assert_eq!(carried(&chunks)[0]["block"]["thinking"], "Hm");
        let hi = start(0, r#"{"type":"text","text":"Hi"}"#);
        let Some(Chunk::Finish { reason, .. }) = ended(&[&hi], "novel").pop() else {
            panic!("no finish")
        };
        assert_eq!((reason.kind, reason.raw.as_deref()), (FinishKind::Stop, Some("novel")));
        for content in [
            "\"Hi\"",
            r#"{"type":"text","text":"Hi"}"#,
            r#"[null,{"type":"text","text":"Hi"}]"#,
        ] {
            let body = format!(
                r#"{{"content":{content},"stop_reason":"end_turn","usage":{{"input_tokens":"3","output_tokens":1.0}}}}"#
            );
            let chunks = whole(AnthropicDecoder::default(), body.as_bytes(), &mut Deviations::default()).unwrap();
            let usage = usage(&chunks);
            assert_eq!(words(&chunks), "Hi", "{content}");
            assert_eq!((usage.input_tokens, usage.output_tokens), (Some(3), Some(1)));
        }
    }
}

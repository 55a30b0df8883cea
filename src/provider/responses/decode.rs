//! The Responses API's events to our chunks.
//!
//! An answer is a list of items (see `items.rs`), told event by event; its last event is one of `response.completed`,
//! `.incomplete` and `.failed`, and nothing follows it: there is no `[DONE]`.

use std::sync::Arc;

use serde_json::{Value, value::RawValue};

use super::{
    items::{Items, Piece, Thought},
    reported::{is_code, reported},
    wire::{Event, Response},
};
use crate::{
    chat::{Chunk, FinishKind, FinishReason, Usage},
    provider::{
        ProviderError,
        dialect::{Decoder, Progress, parse_event as parse},
        error::Kind,
        frame::Frame,
    },
};

/// Decodes one answer.
pub(super) struct ResponsesDecoder {
    provider: Arc<str>,
    items: Items,
    finish: Option<FinishReason>,
    usage: Usage,
}

impl Decoder for ResponsesDecoder {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Chunk>) -> Result<Progress, ProviderError> {
        if frame.data.trim_ascii() == "[DONE]" {
            return Ok(Progress::Over); // not theirs; of compatible servers
        }
        let event: Event<'_> = parse(frame.data)?;
        let named = String::from_utf8_lossy(frame.event);
        let kind = event.kind.as_deref().unwrap_or(&named);
        let part = event.content_index.unwrap_or(0);
        let summary = Thought::Summary(event.summary_index.unwrap_or(0));
        let items = &mut self.items;
        match kind {
            "response.output_item.added" => items.begin(&event, out)?,
            "response.output_item.done" => {
                if let Some(item) = event.item {
                    items.whole(event.output_index, item, out)?;
                }
            }
            "response.output_text.delta" | "response.refusal.delta" => {
                items.say(&event, part, Piece::Next(words(event.delta)?), out)?;
            }
            "response.output_text.done" => items.say(&event, part, Piece::All(words(event.text)?), out)?,
            "response.refusal.done" => items.say(&event, part, Piece::All(words(event.refusal)?), out)?,
            "response.reasoning_summary_text.delta" => {
                items.think(&event, summary, Piece::Next(words(event.delta)?), out)?;
            }
            "response.reasoning_summary_text.done" => {
                items.think(&event, summary, Piece::All(words(event.text)?), out)?;
            }
            "response.reasoning_text.delta" => {
                items.think(&event, Thought::Text(part), Piece::Next(words(event.delta)?), out)?;
            }
            "response.reasoning_text.done" => {
                items.think(&event, Thought::Text(part), Piece::All(words(event.text)?), out)?;
            }
            "response.function_call_arguments.delta" => items.argue(&event, Piece::Next(words(event.delta)?), out),
            "response.function_call_arguments.done" => items.argue(&event, Piece::All(words(event.arguments)?), out),
            "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled" => {
                let response = match event.response {
                    Some(raw) => parse(raw.get())?,
                    None => Response::default(),
                };
                self.finish(kind.trim_start_matches("response."), response, out)?;
                return Ok(Progress::Over);
            }
            // Flat, or nested; `response.failed` may follow, but the first word about it is enough.
            "error" => return Err(reported(&value(event.error.map_or(frame.data, RawValue::get)))),
            kind if !kind.starts_with("response.") => {
                if let Some(error) = event.error {
                    return Err(reported(&value(error.get())));
                }
            }
            _ => {}
        }
        Ok(Progress::More)
    }

    fn end(&mut self, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let Some(reason) = self.finish.take() else {
            return Err(ProviderError::new(
                Kind::Truncated,
                "the stream ended without its last event",
            ));
        };
        let items = std::mem::take(&mut self.items);
        out.extend(items.carry(&self.provider).map(Chunk::Carry));
        out.push(Chunk::Finish {
            reason,
            usage: std::mem::take(&mut self.usage),
        });
        Ok(())
    }
}

impl ResponsesDecoder {
    pub(super) fn new(provider: Arc<str>) -> Self {
        Self {
            provider,
            items: Items::default(),
            finish: None,
            usage: Usage::default(),
        }
    }

    /// The last event.
    fn finish(&mut self, named: &str, response: Response<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        if let Some(usage) = response.usage {
            self.read_usage(usage.get());
        }
        let status = match response.status.as_deref() {
            Some(status @ ("incomplete" | "failed" | "cancelled")) => status,
            _ => named,
        };
        let raw = match status {
            "failed" | "cancelled" => {
                let told = response
                    .error
                    .map(|error| value(error.get()))
                    .filter(|error| !error.is_null());
                return Err(told.map_or_else(|| ProviderError::new(Kind::Reported, status), |error| reported(&error)));
            }
            "incomplete" => {
                let reason = response.incomplete_details.and_then(|details| details.reason);
                format!(
                    "incomplete:{}",
                    reason.filter(|reason| is_code(reason)).unwrap_or_default()
                )
            }
            status => status.to_owned(),
        };
        let calls = self.items.settle(response.output.unwrap_or_default(), out)?;
        let kind = match raw.as_str() {
            "completed" if calls > 0 => FinishKind::ToolCalls, // they have no word for it
            "completed" => FinishKind::Stop,
            "incomplete:max_output_tokens" | "incomplete:max_tokens" => FinishKind::Length,
            "incomplete:content_filter" => FinishKind::ContentFilter,
            _ => return Err(ProviderError::new(Kind::Reported, raw)),
        };
        self.finish = Some(FinishReason { kind, raw: Some(raw) });
        Ok(())
    }

    /// Numbers that are none (negative, beyond 2^53) are unknown.
    fn read_usage(&mut self, raw: &str) {
        let raw = value(raw);
        let number = |pointer: &str| raw.pointer(pointer).and_then(Value::as_u64).filter(|n| *n < 1 << 53);
        let (input_tokens, output_tokens) = (number("/input_tokens"), number("/output_tokens"));
        if input_tokens.is_none() && output_tokens.is_none() {
            return;
        }
        self.usage = Usage {
            input_tokens,
            output_tokens,
            cached_input_tokens: number("/input_tokens_details/cached_tokens"),
            reasoning_tokens: number("/output_tokens_details/reasoning_tokens"),
            estimated: false,
            raw: Some(raw),
        };
    }
}

/// A stream was asked for, and a whole answer came.
pub(super) fn whole(provider: Arc<str>, body: &[u8]) -> Result<Vec<Chunk>, ProviderError> {
    let text = std::str::from_utf8(body).map_err(|_| ProviderError::new(Kind::Protocol, "JSON that is not UTF-8"))?;
    let response: Response<'_> = parse(text)?;
    let status = response.status.as_deref().map(str::to_owned);
    match status.as_deref() {
        Some(status @ ("completed" | "incomplete" | "failed" | "cancelled")) => {
            let mut out = Vec::new();
            let mut decoder = ResponsesDecoder::new(provider);
            decoder.finish(status, response, &mut out)?;
            decoder.end(&mut out)?;
            Ok(out)
        }
        _ => {
            let body = value(text);
            match body.get("error").filter(|error| !error.is_null()) {
                Some(error) => Err(reported(error)),
                None if body.get("type") == Some(&Value::from("error")) => Err(reported(&body)),
                None => Err(ProviderError::new(Kind::Protocol, "JSON that is not an answer")),
            }
        }
    }
}

/// A string; nothing, where there is none.
fn words(raw: Option<&RawValue>) -> Result<String, ProviderError> {
    let text: Option<String> = raw.map_or(Ok(None), |raw| parse(raw.get()))?;
    Ok(text.unwrap_or_default())
}

pub(super) fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

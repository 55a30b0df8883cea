//! The Responses API's events to our chunks.
//!
//! An answer is a list of items (see `items.rs`), told event by event; its last event is one of `response.completed`,
//! `.incomplete` and `.failed`, and nothing follows it: there is no `[DONE]`.

use std::sync::Arc;

use serde_json::{Value, value::RawValue};

use super::{
    items::{About, Items, Piece, Thought},
    reported::{is_code, reported},
    wire::{Created, Event, Response},
};
use crate::{
    chat::{Chunk, FinishKind, FinishReason, Usage},
    meters::Tolerated,
    provider::{
        ProviderError,
        content::Speech,
        deviations::Deviations,
        dialect::{Decoder, Progress, parse_event as parse},
        error::Kind,
        finish::cut_by,
        frame::Frame,
        loose::{self, LooseText, int, list, name, object},
        openai::read_usage,
    },
};

/// Decodes one answer.
pub(super) struct ResponsesDecoder {
    provider: Arc<str>,
    items: Items,
    /// The id of the response; an empty one where it came without.
    id: Option<String>,
    finish: Option<FinishReason>,
    usage: Usage,
    odd: Deviations,
}

impl Decoder for ResponsesDecoder {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Chunk>) -> Result<Progress, ProviderError> {
        if frame.data.trim_ascii() == "[DONE]" {
            return Ok(Progress::Over); // not theirs; of compatible servers
        }
        let event: Event<'_> = parse(frame.data)?;
        let named = String::from_utf8_lossy(frame.event);
        let kind = event.kind.as_deref().unwrap_or(&named);
        let odd = &mut self.odd;
        let part = int(event.content_index, odd).unwrap_or(0);
        let summary = Thought::Summary(int(event.summary_index, odd).unwrap_or(0));
        let about = About {
            at: int(event.output_index, odd),
            id: event.item_id.as_ref().and_then(LooseText::as_str),
        };
        let items = &mut self.items;
        let mut words = |field, speech| loose::words(field, speech, odd);
        let (answer, thinking) = (Speech::Answer, Speech::Thinking);
        match kind {
            "response.created" => self.begin(event.response)?,
            "response.output_item.added" => {
                if let Some(item) = event.item {
                    items.begin(about.at, item, out)?;
                }
            }
            "response.output_item.done" => {
                if let Some(item) = event.item {
                    items.whole(about.at, item, out)?;
                }
            }
            "response.output_text.delta" | "response.refusal.delta" => {
                items.say(about, part, Piece::Next(words(event.delta, answer)?), out)?;
            }
            "response.output_text.done" => items.say(about, part, Piece::All(words(event.text, answer)?), out)?,
            "response.refusal.done" => items.say(about, part, Piece::All(words(event.refusal, answer)?), out)?,
            "response.reasoning_summary_text.delta" => {
                items.think(about, summary, Piece::Next(words(event.delta, thinking)?), out)?;
            }
            "response.reasoning_summary_text.done" => {
                items.think(about, summary, Piece::All(words(event.text, thinking)?), out)?;
            }
            "response.reasoning_text.delta" => {
                let piece = Piece::Next(words(event.delta, thinking)?);
                items.think(about, Thought::Text(part), piece, out)?;
            }
            "response.reasoning_text.done" => {
                let piece = Piece::All(words(event.text, thinking)?);
                items.think(about, Thought::Text(part), piece, out)?;
            }
            "response.function_call_arguments.delta" => {
                let piece = loose::arguments(event.delta, true, odd)?;
                items.argue(about, Piece::Next(piece.unwrap_or_default()), out);
            }
            "response.function_call_arguments.done" => {
                let all = loose::arguments(event.arguments, true, odd)?;
                items.argue(about, Piece::All(all.unwrap_or_default()), out);
            }
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
        self.items.odd = items.odd;
        out.extend(items.carry(&self.provider).map(Chunk::Carry));
        out.push(Chunk::Finish {
            reason,
            usage: std::mem::take(&mut self.usage),
        });
        Ok(())
    }

    fn deviations(&self) -> Deviations {
        let mut all = self.odd;
        self.items.odd.iter().for_each(|what| all.add(what));
        all
    }
}

impl ResponsesDecoder {
    pub(super) fn new(provider: Arc<str>) -> Self {
        Self {
            provider,
            items: Items::default(),
            id: None,
            finish: None,
            usage: Usage::default(),
            odd: Deviations::default(),
        }
    }

    /// A response begins. Before its content it may be begun again, by a proxy that asks again; after that it would be
    /// another response, whose words and calls are not to be mixed with these.
    fn begin(&mut self, response: Option<&RawValue>) -> Result<(), ProviderError> {
        let created: Option<Created<'_>> = response.map(|raw| parse(raw.get())).transpose()?;
        let id = name(created.and_then(|created| created.id), &mut self.odd).unwrap_or_default();
        if let Some(known) = &self.id {
            if !self.items.is_empty() && (id.is_empty() || *known != id) {
                return Err(ProviderError::new(Kind::Protocol, "a second response.created"));
            }
            self.odd.add(Tolerated::Repeated);
        }
        self.id = Some(id.into_owned());
        Ok(())
    }

    /// The last event.
    fn finish(&mut self, named: &str, response: Response<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        if let Some(usage) = response.usage {
            self.read_usage(usage.get());
        }
        let status = response.status.as_ref().and_then(LooseText::as_str);
        let status = match status.map(str::to_ascii_lowercase).as_deref() {
            Some("incomplete") => "incomplete",
            Some("failed") => "failed",
            Some("cancelled") => "cancelled",
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
                let details = object(response.incomplete_details, &mut self.odd);
                let reason = name(details.and_then(|details| details.reason), &mut self.odd);
                format!(
                    "incomplete:{}",
                    reason.filter(|reason| is_code(reason)).unwrap_or_default()
                )
            }
            status => status.to_owned(),
        };
        let output = list(response.output, &mut self.odd);
        let calls = self.items.settle(output, out)?;
        let cut = raw.strip_prefix("incomplete:").map(cut_by);
        let kind = match (raw.as_str(), cut) {
            ("completed", _) if calls > 0 => FinishKind::ToolCalls, // they have no word for it
            ("completed", _) => FinishKind::Stop,
            (_, Some(Some(kind))) => kind,
            _ => return Err(ProviderError::new(Kind::Reported, raw)),
        };
        if kind == FinishKind::ToolCalls {
            self.items.check_calls()?;
        }
        self.finish = Some(FinishReason { kind, raw: Some(raw) });
        Ok(())
    }

    fn read_usage(&mut self, raw: &str) {
        if let Some(usage) = read_usage(value(raw), &mut self.odd) {
            self.usage = usage;
        }
    }
}

/// A stream was asked for, and a whole answer came.
pub(super) fn whole(provider: Arc<str>, body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError> {
    let text = std::str::from_utf8(body).map_err(|_| ProviderError::new(Kind::Protocol, "JSON that is not UTF-8"))?;
    let response: Response<'_> = parse(text)?;
    let status = response.status.as_ref().and_then(LooseText::as_str);
    let status = status.map(str::to_ascii_lowercase);
    match status.as_deref() {
        Some(status @ ("completed" | "incomplete" | "failed" | "cancelled")) => {
            let mut out = Vec::new();
            let mut decoder = ResponsesDecoder::new(provider);
            decoder.finish(status, response, &mut out)?;
            decoder.end(&mut out)?;
            *odd = decoder.deviations();
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

pub(super) fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

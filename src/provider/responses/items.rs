//! The items of an answer (messages, calls, reasoning), each begun, told in pieces, and given whole when it is done.
//!
//! A piece belongs to an item by its `output_index`: the items' ids may change on the way. What was not told in pieces is
//! taken from where the item, or else the response, stands whole; nothing is told twice.

use std::borrow::Cow;

use serde_json::{Value, value::RawValue};

use super::{
    NAME,
    decode::value,
    wire::{CallItem, Event, ItemKind, Layout, MessageItem, Part, Place, ReasoningItem},
};
use crate::{
    chat::{Carry, Chunk},
    provider::{
        ProviderError,
        dialect::{parse_event as parse, room_beside},
        error::Kind,
    },
};

/// The items so far.
#[derive(Default)]
pub(super) struct Items {
    list: Vec<Item>,
    /// Calls begun.
    calls: usize,
    /// The part of thinking that was told last.
    thought: Option<(usize, Thought)>,
    /// Bytes of what was kept to be handed back, each time that it was told.
    kept: usize,
}

/// The most of that: an answer tells it twice, when it is done and when all is.
const MAX_KEPT: usize = 16 << 20;

/// Words of an item.
pub(super) enum Piece {
    /// More of them.
    Next(String),
    /// All of them: told only if none were.
    All(String),
}

/// An item of the answer.
struct Item {
    /// Its `output_index`, and its id as we first heard it.
    at: Option<u64>,
    id: Option<String>,
    what: What,
}

enum What {
    Message {
        /// The parts that were told.
        told: Vec<u64>,
        bytes: usize,
        phase: Option<String>,
    },
    Call {
        /// Which call; `None` until it has a name.
        index: Option<usize>,
        call_id: Option<String>,
        /// Whether its arguments were told.
        told: bool,
    },
    Reasoning {
        told: Vec<Thought>,
        /// The item, whole, if it can be handed back.
        whole: Option<Value>,
    },
    /// The provider's own: its searches and the like. Never a call of ours.
    Other,
}

/// A part of a reasoning item: of its summary, or of the thinking itself.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Thought {
    Summary(u64),
    Text(u64),
}

impl Items {
    /// An item begins. A call is told as soon as it has a name.
    pub(super) fn begin(&mut self, event: &Event<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let Some(raw) = event.item else { return Ok(()) };
        let ItemKind { kind, id } = parse(raw.get())?;
        match kind.as_deref() {
            Some("message") => {
                self.message(event.output_index, id.as_deref())?;
            }
            Some("reasoning") => {
                self.reasoning(event.output_index, id.as_deref())?;
            }
            Some("function_call") => {
                let call: CallItem<'_> = parse(raw.get())?;
                let item = self.call(event.output_index, id.as_deref(), call.call_id.as_deref())?;
                self.start(item, &call, out);
            }
            Some("custom_tool_call") => {} // told when it is done
            _ => self.add(event.output_index, id.as_deref(), What::Other)?,
        }
        Ok(())
    }

    /// An item, whole: what of it was not told is told now.
    pub(super) fn whole(&mut self, at: Option<u64>, raw: &RawValue, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let ItemKind { kind, id } = parse(raw.get())?;
        let id = id.as_deref();
        match kind.as_deref() {
            Some("message") => {
                let message: MessageItem<'_> = parse(raw.get())?;
                let item = self.message(at, id)?;
                for (part, index) in message.content.into_iter().flatten().zip(0..) {
                    self.tell_words(item, index, Piece::All(part.words()), out);
                }
                if let What::Message { phase, .. } = &mut self.list[item].what {
                    *phase = message.phase.map(Cow::into_owned);
                }
            }
            Some("reasoning") => {
                let ReasoningItem {
                    summary,
                    content,
                    encrypted_content,
                } = parse(raw.get())?;
                // Without its content it is a name for what nobody has kept, and would be refused.
                let useful = encrypted_content.is_some_and(|e| !e.is_empty())
                    || content.as_ref().is_some_and(|content| !content.is_empty());
                let item = self.reasoning(at, id)?;
                // Some servers repeat as a summary what they told as thinking: once is enough.
                if matches!(&self.list[item].what, What::Reasoning { told, .. } if told.is_empty()) {
                    for (part, index) in summary.into_iter().flatten().zip(0..) {
                        self.tell_thought(item, Thought::Summary(index), Piece::All(part.words()), out);
                    }
                    for (part, index) in content.into_iter().flatten().zip(0..) {
                        self.tell_thought(item, Thought::Text(index), Piece::All(part.words()), out);
                    }
                }
                if useful {
                    self.keep(raw.get().len())?;
                }
                if let (true, What::Reasoning { whole, .. }) = (useful, &mut self.list[item].what) {
                    *whole = Some(handed_back(value(raw.get())));
                }
            }
            Some("function_call") => {
                let call: CallItem<'_> = parse(raw.get())?;
                let item = self.call(at, id, call.call_id.as_deref())?;
                self.start(item, &call, out);
                let arguments = call.arguments.map(Cow::into_owned).unwrap_or_default();
                self.tell_arguments(item, Piece::All(arguments), out);
            }
            Some("custom_tool_call") => {
                let call: CallItem<'_> = parse(raw.get())?;
                let item = self.call(at, id, call.call_id.as_deref())?;
                self.start(item, &call, out);
                // We never offer such a tool. Its input is free text, and must not pass for arguments even by chance.
                let input = call.input.map(Cow::into_owned).unwrap_or_default();
                let harmless = serde_json::from_str::<Value>(&input).is_err() && !input.trim().is_empty();
                let input = if harmless {
                    input
                } else {
                    Value::String(input).to_string()
                };
                self.tell_arguments(item, Piece::All(input), out);
            }
            _ if self.find(at, id, |what| matches!(what, What::Other)).is_none() => self.add(at, id, What::Other)?,
            _ => {}
        }
        Ok(())
    }

    /// More of a message.
    pub(super) fn say(
        &mut self,
        event: &Event<'_>,
        part: u64,
        piece: Piece,
        out: &mut Vec<Chunk>,
    ) -> Result<(), ProviderError> {
        let item = self.message(event.output_index, event.item_id.as_deref())?;
        self.tell_words(item, part, piece, out);
        Ok(())
    }

    /// More of the thinking.
    pub(super) fn think(
        &mut self,
        event: &Event<'_>,
        part: Thought,
        piece: Piece,
        out: &mut Vec<Chunk>,
    ) -> Result<(), ProviderError> {
        let item = self.reasoning(event.output_index, event.item_id.as_deref())?;
        self.tell_thought(item, part, piece, out);
        Ok(())
    }

    /// More of a call's arguments. Those of a call that we have not heard of come again with its item.
    pub(super) fn argue(&mut self, event: &Event<'_>, piece: Piece, out: &mut Vec<Chunk>) {
        let is_call = |what: &What| matches!(what, What::Call { index: Some(_), .. });
        if let Some(item) = self.find(event.output_index, event.item_id.as_deref(), is_call) {
            self.tell_arguments(item, piece, out);
        }
    }

    /// Takes from the response what no event before has told, and gives the number of calls. Its items are not matched
    /// by their place, which may be another than in the stream: a kind of which something was told was told whole.
    pub(super) fn settle(&mut self, output: Vec<&RawValue>, out: &mut Vec<Chunk>) -> Result<usize, ProviderError> {
        let told = |found: fn(&What) -> bool| self.list.iter().any(|item| found(&item.what));
        let said = told(|what| matches!(what, What::Message { bytes, .. } if *bytes > 0));
        let thought = told(|what| matches!(what, What::Reasoning { .. }));
        let asked = told(|what| matches!(what, What::Call { .. }));
        for (raw, at) in output.into_iter().zip(0..) {
            match parse::<ItemKind<'_>>(raw.get())?.kind.as_deref() {
                Some("message") if said => {}
                Some("reasoning") if thought => {}
                Some("custom_tool_call") if asked => {}
                Some("function_call") if asked => {
                    let CallItem { call_id, arguments, .. } = parse(raw.get())?;
                    let call_id = call_id.as_deref();
                    let known = self.find(
                        None,
                        None,
                        |what| matches!(what, What::Call { call_id: Some(id), .. } if Some(id.as_str()) == call_id),
                    );
                    if let (Some(item), Some(arguments)) = (known, arguments) {
                        self.tell_arguments(item, Piece::All(arguments.into_owned()), out);
                    }
                }
                _ => self.whole(Some(at), raw, out)?,
            }
        }
        let nameless = |what: &What| matches!(what, What::Call { index: None, .. });
        if self.find(None, None, nameless).is_some() {
            return Err(ProviderError::new(Kind::Protocol, "a call without a name"));
        }
        Ok(self.calls)
    }

    /// The order of the items, if there is something to be handed back: reasoning goes in front of what it led to.
    pub(super) fn carry(self, provider: &str) -> Option<Carry> {
        let mut items = Vec::new();
        let mut led_to_ours = false; // whether the item behind is one that we keep
        for item in self.list.into_iter().rev() {
            let place = match item.what {
                What::Message { bytes, phase, .. } if bytes > 0 => Place::Text { bytes, phase },
                What::Call { index: Some(index), .. } => Place::Call(index),
                What::Reasoning { whole: Some(item), .. } if led_to_ours => Place::Reasoning(item),
                What::Other => {
                    led_to_ours = false;
                    continue;
                }
                _ => continue,
            };
            led_to_ours = true;
            items.push(place);
        }
        items.reverse();
        let told = |place: &Place| matches!(place, Place::Reasoning(_) | Place::Text { phase: Some(_), .. });
        let provider = provider.to_owned();
        let layout = items.iter().any(told).then_some(Layout { provider, items })?;
        Some(Carry {
            dialect: NAME.into(),
            data: serde_json::to_value(layout).ok()?,
        })
    }

    /// The item that an event is about, among those that are alike: the one of this place and id, else the last of this
    /// place.
    fn find(&self, at: Option<u64>, id: Option<&str>, alike: impl Fn(&What) -> bool) -> Option<usize> {
        let here = |item: &Item| alike(&item.what) && (at.is_none() || item.at == at);
        let named = |item: &Item| here(item) && id.is_some() && item.id.as_deref() == id;
        self.list
            .iter()
            .rposition(named)
            .or_else(|| self.list.iter().rposition(here))
    }

    /// Room for more that is kept until the answer's end.
    fn keep(&mut self, bytes: usize) -> Result<(), ProviderError> {
        self.kept += bytes;
        match self.kept {
            ..=MAX_KEPT => Ok(()),
            _ => Err(ProviderError::new(
                Kind::Limit,
                "more reasoning to hand back than is kept",
            )),
        }
    }

    /// Another item: the last of the list.
    fn add(&mut self, at: Option<u64>, id: Option<&str>, what: What) -> Result<(), ProviderError> {
        room_beside(self.list.len())?;
        self.keep(id.map_or(0, str::len))?;
        self.list.push(Item {
            at,
            id: id.map(str::to_owned),
            what,
        });
        Ok(())
    }

    fn message(&mut self, at: Option<u64>, id: Option<&str>) -> Result<usize, ProviderError> {
        let known = self.find(at, id, |what| matches!(what, What::Message { .. }));
        if let Some(known) = known {
            return Ok(known);
        }
        let (told, bytes, phase) = (Vec::new(), 0, None);
        self.add(at, id, What::Message { told, bytes, phase })?;
        Ok(self.list.len() - 1)
    }

    fn reasoning(&mut self, at: Option<u64>, id: Option<&str>) -> Result<usize, ProviderError> {
        let known = self.find(at, id, |what| matches!(what, What::Reasoning { .. }));
        if let Some(known) = known {
            return Ok(known);
        }
        let (told, whole) = (Vec::new(), None);
        self.add(at, id, What::Reasoning { told, whole })?;
        Ok(self.list.len() - 1)
    }

    /// A call: another id at the same place is another call.
    fn call(&mut self, at: Option<u64>, id: Option<&str>, call_id: Option<&str>) -> Result<usize, ProviderError> {
        let same = |known: &Option<String>| known.is_none() || call_id.is_none() || known.as_deref() == call_id;
        let known = self.find(
            at,
            id,
            |what| matches!(what, What::Call { call_id, .. } if same(call_id)),
        );
        if let Some(known) = known {
            return Ok(known);
        }
        let call_id = call_id.map(str::to_owned);
        let (index, told) = (None, false);
        self.add(at, id, What::Call { index, call_id, told })?;
        Ok(self.list.len() - 1)
    }

    /// Tells that a call begins, once.
    fn start(&mut self, item: usize, call: &CallItem<'_>, out: &mut Vec<Chunk>) {
        let What::Call { index, call_id, .. } = &mut self.list[item].what else {
            return;
        };
        let Some(name) = call.name.as_deref().filter(|name| !name.is_empty() && index.is_none()) else {
            return;
        };
        let id = call.call_id.as_deref().filter(|id| !id.is_empty()).map(str::to_owned);
        let id = id.unwrap_or_else(|| format!("call_{}", uuid::Uuid::new_v4().simple()));
        *index = Some(self.calls);
        *call_id = Some(id.clone());
        out.push(Chunk::ToolCallStart {
            index: self.calls,
            id,
            name: name.to_owned(),
        });
        self.calls += 1;
    }

    fn tell_arguments(&mut self, item: usize, piece: Piece, out: &mut Vec<Chunk>) {
        if let What::Call {
            index: Some(index),
            told,
            ..
        } = &mut self.list[item].what
            && let Some(arguments) = piece.words(*told)
        {
            *told = true;
            let index = *index;
            out.push(Chunk::ToolCallDelta { index, arguments });
        }
    }

    fn tell_words(&mut self, item: usize, part: u64, piece: Piece, out: &mut Vec<Chunk>) {
        if let What::Message { told, bytes, .. } = &mut self.list[item].what
            && let Some(text) = piece.words(told.contains(&part))
        {
            if !told.contains(&part) {
                told.push(part);
            }
            *bytes += text.len();
            out.push(Chunk::Text(text));
        }
    }

    /// With an empty line between parts.
    fn tell_thought(&mut self, item: usize, part: Thought, piece: Piece, out: &mut Vec<Chunk>) {
        if let What::Reasoning { told, .. } = &mut self.list[item].what
            && let Some(text) = piece.words(told.contains(&part))
        {
            if !told.contains(&part) {
                told.push(part);
            }
            let before = self.thought.replace((item, part));
            if before.is_some_and(|before| before != (item, part)) {
                out.push(Chunk::Reasoning("\n\n".into()));
            }
            out.push(Chunk::Reasoning(text));
        }
    }
}

impl Piece {
    /// What of it is to be told, `told` being whether something was.
    fn words(self, told: bool) -> Option<String> {
        let words = match self {
            Piece::Next(words) => words,
            Piece::All(_) if told => return None,
            Piece::All(words) => words,
        };
        Some(words).filter(|words| !words.is_empty())
    }
}

impl Part<'_> {
    fn words(self) -> String {
        self.text.or(self.refusal).map(Cow::into_owned).unwrap_or_default()
    }
}

/// A reasoning item as it may be sent: without what is `null` and what is said of answers only.
fn handed_back(mut item: Value) -> Value {
    if let Value::Object(fields) = &mut item {
        fields.retain(|name, value| !value.is_null() && name != "status");
    }
    item
}

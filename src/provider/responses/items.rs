//! The items of an answer (messages, calls, reasoning), each begun, told in pieces, and given whole when it is done.
//!
//! A piece belongs to an item by its `output_index`: the items' ids may change on the way. What was not told in pieces is
//! taken from where the item, or else the response, stands whole; nothing is told twice.

use std::borrow::Cow;

use serde_json::{Value, value::RawValue};

use super::{
    NAME,
    decode::value,
    wire::{CallItem, ItemKind, Layout, MessageItem, Place, ReasoningItem},
};
use crate::{
    chat::{Carry, Chunk},
    meters::Tolerated,
    provider::{
        ProviderError,
        content::Speech,
        deviations::Deviations,
        dialect::{parse_event as parse, room_beside},
        error::Kind,
        loose::{LooseText, arguments, name, parts, words},
        pieces::Arguments,
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
    /// The deviations in what items are made of.
    pub(super) odd: Deviations,
}

/// The item that an event is about.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) at: Option<u64>,
    pub(super) id: Option<&'a str>,
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
        arguments: Arguments,
        state: CallState,
    },
    Reasoning {
        told: Vec<Thought>,
        /// The item, whole, if it can be handed back.
        whole: Option<Value>,
    },
    /// The provider's own: its searches and the like. Never a call of ours.
    Other,
}

/// How far a call is, by the provider's own signs.
#[derive(Clone, Copy, PartialEq)]
enum CallState {
    Open,
    /// Its arguments are done, or the item is.
    Complete,
    /// Its item ended incomplete, or its arguments contradict each other.
    Broken,
}

/// A part of a reasoning item: of its summary, or of the thinking itself.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Thought {
    Summary(u64),
    Text(u64),
}

impl Items {
    /// An item begins. A call is told as soon as it has a name.
    pub(super) fn begin(&mut self, at: Option<u64>, raw: &RawValue, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let ItemKind { kind, id } = parse(raw.get())?;
        let id = id.as_ref().and_then(LooseText::as_str);
        match kind.as_deref() {
            Some("message") => {
                self.message(at, id)?;
            }
            Some("reasoning") => {
                self.reasoning(at, id)?;
            }
            Some("function_call" | "custom_tool_call") => {
                self.start(at, id, parse(raw.get())?, out)?;
            }
            _ => self.add(at, id, What::Other)?,
        }
        Ok(())
    }

    /// Whether no item has begun.
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// An item, whole: what of it was not told is told now.
    pub(super) fn whole(&mut self, at: Option<u64>, raw: &RawValue, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let ItemKind { kind, id } = parse(raw.get())?;
        let id = id.as_ref().and_then(LooseText::as_str);
        match kind.as_deref() {
            Some("message") => {
                let message: MessageItem<'_> = parse(raw.get())?;
                let item = self.message(at, id)?;
                let told = parts(message.content, Speech::Answer, &mut self.odd)?;
                for (part, index) in told.into_iter().zip(0..) {
                    self.tell_words(item, index, Piece::All(part), out);
                }
                if let What::Message { phase, .. } = &mut self.list[item].what {
                    *phase = name(message.phase, &mut self.odd).map(Cow::into_owned);
                }
            }
            Some("reasoning") => self.whole_reasoning(at, id, raw, out)?,
            Some("function_call") => {
                let call: CallItem<'_> = parse(raw.get())?;
                let (state, given) = (state_of(&call), call.arguments);
                let item = self.start(at, id, call, out)?;
                let given = arguments(given, true, &mut self.odd)?.unwrap_or_default();
                self.tell_arguments(item, Piece::All(given), out);
                self.settle_call(item, state);
            }
            Some("custom_tool_call") => {
                let call: CallItem<'_> = parse(raw.get())?;
                let input = words(call.input, Speech::Answer, &mut self.odd)?;
                let item = self.start(at, id, call, out)?;
                // We never offer such a tool. Its input is free text, and must not pass for arguments even by chance.
                let harmless = serde_json::from_str::<Value>(&input).is_err() && !input.trim().is_empty();
                let input = if harmless {
                    input
                } else {
                    Value::String(input).to_string()
                };
                self.tell_arguments(item, Piece::All(input), out);
                self.settle_call(item, CallState::Complete);
            }
            _ if self.find(at, id, |what| matches!(what, What::Other)).is_none() => self.add(at, id, What::Other)?,
            _ => {}
        }
        Ok(())
    }

    /// A reasoning item, whole.
    fn whole_reasoning(
        &mut self,
        at: Option<u64>,
        id: Option<&str>,
        raw: &RawValue,
        out: &mut Vec<Chunk>,
    ) -> Result<(), ProviderError> {
        let ReasoningItem {
            summary,
            content,
            encrypted_content,
        } = parse(raw.get())?;
        let summary = parts(summary, Speech::Thinking, &mut self.odd)?;
        let content = parts(content, Speech::Thinking, &mut self.odd)?;
        // Without its content it is a name for what nobody has kept, and would be refused.
        let sealed = encrypted_content.as_ref().and_then(LooseText::as_str);
        let useful = sealed.is_some_and(|sealed| !sealed.is_empty()) || !content.is_empty();
        let item = self.reasoning(at, id)?;
        // Some servers repeat as a summary what they told as thinking: once is enough.
        if matches!(&self.list[item].what, What::Reasoning { told, .. } if told.is_empty()) {
            for (part, index) in summary.into_iter().zip(0..) {
                self.tell_thought(item, Thought::Summary(index), Piece::All(part), out);
            }
            for (part, index) in content.into_iter().zip(0..) {
                self.tell_thought(item, Thought::Text(index), Piece::All(part), out);
            }
        }
        if useful {
            self.keep(raw.get().len())?;
        }
        if let (true, What::Reasoning { whole, .. }) = (useful, &mut self.list[item].what) {
            *whole = Some(handed_back(value(raw.get())));
        }
        Ok(())
    }

    /// More of a message.
    pub(super) fn say(
        &mut self,
        about: About<'_>,
        part: u64,
        piece: Piece,
        out: &mut Vec<Chunk>,
    ) -> Result<(), ProviderError> {
        let item = self.message(about.at, about.id)?;
        self.tell_words(item, part, piece, out);
        Ok(())
    }

    /// More of the thinking.
    pub(super) fn think(
        &mut self,
        about: About<'_>,
        part: Thought,
        piece: Piece,
        out: &mut Vec<Chunk>,
    ) -> Result<(), ProviderError> {
        let item = self.reasoning(about.at, about.id)?;
        self.tell_thought(item, part, piece, out);
        Ok(())
    }

    /// More of a call's arguments. Those of a call that we have not heard of come again with its item.
    pub(super) fn argue(&mut self, about: About<'_>, piece: Piece, out: &mut Vec<Chunk>) {
        let is_call = |what: &What| matches!(what, What::Call { index: Some(_), .. });
        if let Some(item) = self.find(about.at, about.id, is_call) {
            let is_all = matches!(piece, Piece::All(_));
            self.tell_arguments(item, piece, out);
            if is_all {
                self.settle_call(item, CallState::Complete);
            }
        }
    }

    /// Notes how a call ended. What is broken stays so.
    fn settle_call(&mut self, item: usize, ended: CallState) {
        if let What::Call { state, .. } = &mut self.list[item].what
            && *state != CallState::Broken
            && ended != CallState::Open
        {
            *state = ended;
        }
    }

    /// Checks that each call was completed by the provider's own sign.
    ///
    /// # Errors
    /// A call that was not.
    pub(super) fn check_calls(&self) -> Result<(), ProviderError> {
        let is_cut = |what: &What| matches!(what, What::Call { state, .. } if *state != CallState::Complete);
        match self.list.iter().any(|item| is_cut(&item.what)) {
            false => Ok(()),
            true => Err(ProviderError::new(Kind::Truncated, "a call that was not completed")),
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
                Some("function_call") if asked => self.settle_known(parse(raw.get())?, out)?,
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

    /// A call as the response has it, whole, of a stream that has told calls.
    fn settle_known(&mut self, call: CallItem<'_>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        let (state, call_id) = (state_of(&call), name(call.call_id, &mut self.odd));
        let is_it = |what: &What| matches!(what, What::Call { call_id: Some(id), .. } if Some(id.as_str()) == call_id.as_deref());
        if let Some(item) = self.find(None, None, is_it) {
            let given = arguments(call.arguments, true, &mut self.odd)?.unwrap_or_default();
            self.tell_arguments(item, Piece::All(given), out);
            self.settle_call(item, state);
        }
        Ok(())
    }

    /// A call, told that it begins once it has a name. Another id at the same place is another call.
    fn start(
        &mut self,
        at: Option<u64>,
        id: Option<&str>,
        call: CallItem<'_>,
        out: &mut Vec<Chunk>,
    ) -> Result<usize, ProviderError> {
        let called = name(call.name, &mut self.odd);
        let given = name(call.call_id, &mut self.odd).map(Cow::into_owned);
        let same = |known: &Option<String>| known.is_none() || given.is_none() || *known == given;
        let known = self.find(
            at,
            id,
            |what| matches!(what, What::Call { call_id, .. } if same(call_id)),
        );
        let item = match known {
            Some(known) => known,
            None => {
                let what = What::Call {
                    index: None,
                    call_id: given.clone(),
                    arguments: Arguments::default(),
                    state: CallState::Open,
                };
                self.add(at, id, what)?;
                self.list.len() - 1
            }
        };
        if let (What::Call { index, call_id, .. }, Some(called)) = (&mut self.list[item].what, called)
            && index.is_none()
        {
            let id = given.unwrap_or_else(|| format!("call_{}", uuid::Uuid::new_v4().simple()));
            *index = Some(self.calls);
            *call_id = Some(id.clone());
            out.push(Chunk::ToolCallStart {
                index: self.calls,
                id,
                name: called.into_owned(),
            });
            self.calls += 1;
        }
        Ok(item)
    }

    /// Tells what of a call's arguments is new.
    fn tell_arguments(&mut self, item: usize, piece: Piece, out: &mut Vec<Chunk>) {
        let What::Call {
            index: Some(index),
            arguments,
            state,
            ..
        } = &mut self.list[item].what
        else {
            return;
        };
        let news = match &piece {
            Piece::Next(more) if arguments.take(more) => more,
            Piece::Next(_) => {
                self.odd.add(Tolerated::Repeated);
                return;
            }
            Piece::All(all) => match arguments.take_all(all) {
                Some(news) => news,
                None => {
                    *state = CallState::Broken;
                    return;
                }
            },
        };
        if !news.is_empty() {
            out.push(Chunk::ToolCallDelta {
                index: *index,
                arguments: news.to_owned(),
            });
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

/// What an item that is done says of its call.
fn state_of(call: &CallItem<'_>) -> CallState {
    match call.status.as_ref().and_then(LooseText::as_str) {
        None | Some("completed") => CallState::Complete,
        Some("in_progress") => CallState::Open,
        Some(_) => CallState::Broken,
    }
}

/// A reasoning item as it may be sent: without what is `null` and what is said of answers only.
fn handed_back(mut item: Value) -> Value {
    if let Value::Object(fields) = &mut item {
        fields.retain(|name, value| !value.is_null() && name != "status");
    }
    item
}

//! Members of an answer's message and calls that are not of this dialect, and that their provider
//! wants back unread: `reasoning_content` of a round with calls (DeepSeek, Kimi),
//! `reasoning_details` (OpenRouter), `extra_content` with a signature (Gemini), and whatever comes.
//!
//! They are carried with the message and sent back to the provider that sent them, because another
//! one may refuse them.

use std::{borrow::Cow, fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    chat::{Carry, Message, message::held},
    provider::{
        ProviderError,
        deviations::Deviations,
        error::Kind,
        loose::{LooseInt, LooseList, LooseStruct, int, list, object},
    },
};

/// Whose [`Carry`] it is.
const DIALECT: &str = "openai";
/// The most that is carried for one answer, in bytes.
const MAX_CARRIED: usize = 4 << 20;
/// Members of a message that have a meaning in this dialect, or none for a later request.
const OF_MESSAGE: [&str; 9] = [
    "role",
    "content",
    "refusal",
    "tool_calls",
    "function_call",
    "annotations",
    "audio",
    "images",
    "executed_tools",
];
/// Members that hold the model's thinking as plain text. Providers want it back beside calls only;
/// DeepSeek's older models refuse it elsewhere.
const THINKING: [&str; 2] = ["reasoning_content", "reasoning"];
/// Members of a call that have a meaning in this dialect.
const OF_CALL: [&str; 4] = ["index", "id", "type", "function"];
/// Members of a call's function that have.
const OF_FUNCTION: [&str; 2] = ["name", "arguments"];
/// Members that are the same in every piece, so that a later one replaces the earlier one.
const CONSTANT: [&str; 6] = ["id", "type", "format", "name", "role", "index"];
/// Members whose pieces are always parts of one text, even if two of them are equal.
const TEXT: [&str; 7] = [
    "reasoning_content",
    "reasoning",
    "text",
    "summary",
    "thinking",
    "content",
    "data",
];

/// What is carried with a message. It is stored with sessions: its form is a promise.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Opaque {
    /// The configured provider that sent it.
    #[serde(default)]
    provider: String,
    /// Members of the message.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) message: Map<String, Value>,
    /// Members of its calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    calls: Vec<OfCall>,
}

#[derive(Debug, Deserialize, Serialize)]
struct OfCall {
    /// Which call of the message.
    index: usize,
    members: Map<String, Value>,
}

impl Opaque {
    /// What a message carries from this provider; `None` if the message is not this provider's.
    pub(super) fn of(message: &Message, provider: &str) -> Option<Self> {
        let ours = message.carry.iter().filter(|carry| carry.dialect == DIALECT);
        let mut all = ours.filter_map(|carry| Opaque::deserialize(&carry.data).ok());
        let mut found = all.find(|opaque| opaque.provider == provider)?;
        if message.tool_calls.is_empty() {
            THINKING.iter().for_each(|name| drop(found.message.shift_remove(*name)));
        }
        Some(found)
    }

    /// The members of the call at an index.
    pub(super) fn of_call(&self, index: usize) -> impl Iterator<Item = (&String, &Value)> {
        let of_it = self.calls.iter().filter(move |call| call.index == index);
        of_it.flat_map(|call| &call.members)
    }
}

/// Adds members to an object that has none of that name; an object to an object.
pub(super) fn add<'a>(members: impl IntoIterator<Item = (&'a String, &'a Value)>, to: &mut Value) {
    let Value::Object(to) = to else { return };
    for (name, value) in members {
        match to.get_mut(name) {
            None => drop(to.insert(name.clone(), value.clone())),
            Some(known) => {
                if let (Value::Object(more), true) = (value, known.is_object()) {
                    add(more, known);
                }
            }
        }
    }
}

/// Collects what an answer's pieces bring.
#[derive(Debug, Default)]
pub(super) struct Collector {
    provider: Arc<str>,
    opaque: Opaque,
    /// Whether pieces brought any, so that a whole message repeats them.
    has_deltas: bool,
    bytes: usize,
}

impl Collector {
    pub(super) fn new(provider: Arc<str>) -> Self {
        Self {
            provider,
            ..Self::default()
        }
    }

    /// Reads one event. `find` gives the index of the call with such an index and id on the wire,
    /// or of the last one.
    ///
    /// # Errors
    /// `Kind::Limit`: more than is carried.
    pub(super) fn read(
        &mut self,
        event: &str,
        find: impl Fn(Option<u64>, Option<&str>) -> Option<usize>,
    ) -> Result<(), ProviderError> {
        let Ok(Event { choices }) = serde_json::from_str(event) else {
            return Ok(());
        };
        let odd = &mut Deviations::default(); // noted already, by whoever read the words
        let choice = list(choices, odd)
            .into_iter()
            .find(|choice| int(choice.index, odd).unwrap_or(0) == 0);
        let Some(Choice { delta, message, .. }) = choice else {
            return Ok(());
        };
        let part = match (object(delta, odd).filter(Part::has_opaque), object(message, odd)) {
            (Some(delta), _) => {
                self.has_deltas = true;
                delta
            }
            (None, Some(message)) if !self.has_deltas => message,
            _ => return Ok(()),
        };
        for (name, value) in part.opaque {
            self.take(None, &name, value);
        }
        for call in part.calls {
            if !call.has_opaque() {
                continue;
            }
            let Some(index) = find(call.index, call.id.as_deref()) else {
                continue;
            };
            for (name, value) in call.opaque {
                self.take(Some(index), &name, value);
            }
            let function: Map<String, Value> = call.function.into_iter().filter_map(parsed).collect();
            if !function.is_empty() {
                self.put(Some(index), "function", Value::Object(function));
            }
        }
        if self.bytes > MAX_CARRIED {
            let why = format!("more than {MAX_CARRIED} bytes of members that are to be sent back");
            return Err(ProviderError::new(Kind::Limit, why));
        }
        Ok(())
    }

    fn take(&mut self, call: Option<usize>, name: &str, value: &RawValue) {
        if let Some((name, value)) = parsed((Cow::Borrowed(name), value)) {
            self.put(call, &name, value);
        }
    }

    fn put(&mut self, call: Option<usize>, name: &str, value: Value) {
        self.bytes += name.len() + held(&value);
        let members = match call {
            None => &mut self.opaque.message,
            Some(index) => {
                let calls = &mut self.opaque.calls;
                let at = calls.iter().position(|call| call.index == index).unwrap_or_else(|| {
                    let members = Map::new();
                    calls.push(OfCall { index, members });
                    calls.len() - 1
                });
                &mut calls[at].members
            }
        };
        match members.get_mut(name) {
            None => drop(members.insert(name.to_owned(), value)),
            Some(known) => merge(name, known, value),
        }
    }

    /// What is to be carried with the message. A message with calls carries at least whose it is,
    /// because their ids are of that provider's form.
    pub(super) fn finish(&mut self, has_calls: bool) -> Option<Carry> {
        let mut opaque = std::mem::take(&mut self.opaque);
        if !has_calls {
            THINKING
                .iter()
                .for_each(|name| drop(opaque.message.shift_remove(*name)));
        }
        if !has_calls && opaque.message.is_empty() {
            return None;
        }
        opaque.provider = self.provider.to_string();
        Some(Carry {
            dialect: DIALECT.to_owned(),
            data: serde_json::to_value(opaque).ok()?,
        })
    }
}

/// A member that says something: a text, list or object with anything in it. Numbers and truth
/// values describe the piece, not the message.
fn parsed((name, value): (Cow<'_, str>, &RawValue)) -> Option<(String, Value)> {
    let value: Value = serde_json::from_str(value.get()).ok()?;
    let says = match &value {
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
        _ => false,
    };
    says.then(|| (name.into_owned(), value))
}

/// Adds a later piece to an earlier one, as OpenAI's libraries do: texts are joined, the elements
/// of lists are found by their `index`, objects are merged member by member.
fn merge(name: &str, known: &mut Value, more: Value) {
    match (known, more) {
        (_, Value::Null) => {}
        (Value::String(known), Value::String(more)) if CONSTANT.contains(&name) => *known = more,
        (Value::String(known), Value::String(more)) => {
            if TEXT.contains(&name) || *known != more {
                known.push_str(&more);
            }
        }
        (Value::Object(known), Value::Object(more)) => {
            for (name, value) in more {
                match known.get_mut(&name) {
                    None => drop(known.insert(name, value)),
                    Some(known) => merge(&name, known, value),
                }
            }
        }
        (Value::Array(known), Value::Array(more)) => {
            for element in more {
                let index = element.get("index").filter(|index| index.is_number());
                let same = |other: &&mut Value| index.is_some() && other.get("index") == index;
                let found = known.iter_mut().find(|other| same(other));
                match found {
                    Some(known) => merge("", known, element),
                    None => known.push(element),
                }
            }
        }
        (known, more) => *known = more,
    }
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    choices: Option<LooseList<Choice<'a>>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: Option<LooseInt>,
    #[serde(borrow, default)]
    delta: Option<LooseStruct<Part<'a>>>,
    #[serde(borrow, default)]
    message: Option<LooseStruct<Part<'a>>>,
}

/// Whether a delta or message has members that no struct of this dialect reads.
#[derive(Default)]
pub(super) struct Others {
    pub(super) any: bool,
}

impl<'de> Deserialize<'de> for Others {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Others;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut any = false;
                while let Some((Name(name), IgnoredAny)) = map.next_entry()? {
                    any |= !OF_MESSAGE.contains(&&*name);
                }
                Ok(Others { any })
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// A delta or message, without the members that have a meaning in this dialect.
#[derive(Default)]
struct Part<'a> {
    calls: Vec<CallPart<'a>>,
    opaque: Vec<(Cow<'a, str>, &'a RawValue)>,
}

#[derive(Default)]
struct CallPart<'a> {
    index: Option<u64>,
    id: Option<Cow<'a, str>>,
    opaque: Vec<(Cow<'a, str>, &'a RawValue)>,
    function: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl Part<'_> {
    fn has_opaque(&self) -> bool {
        !self.opaque.is_empty() || self.calls.iter().any(CallPart::has_opaque)
    }
}

impl CallPart<'_> {
    fn has_opaque(&self) -> bool {
        !self.opaque.is_empty() || !self.function.is_empty()
    }
}

/// The members of an object whose names are not known.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// A name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::new();
                while let Some(Name(name)) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Part<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Part<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut part = Part::default();
                while let Some(Name(name)) = map.next_key()? {
                    if name == "tool_calls" {
                        part.calls = calls(map.next_value()?);
                    } else if OF_MESSAGE.contains(&&*name) {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        part.opaque.push((name, map.next_value()?));
                    }
                }
                Ok(part)
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// The calls of a delta: a list of them, or one alone.
fn calls(raw: &RawValue) -> Vec<CallPart<'_>> {
    let one = |raw: &str| serde_json::from_str::<Members<'_>>(raw).ok().map(|_| ());
    let all: Vec<&RawValue> = match serde_json::from_str(raw.get()) {
        Ok(all) => all,
        Err(_) if one(raw.get()).is_some() => vec![raw],
        Err(_) => Vec::new(),
    };
    all.into_iter().filter_map(|raw| call(raw.get())).collect()
}

fn call(raw: &str) -> Option<CallPart<'_>> {
    let Members(members) = serde_json::from_str(raw).ok()?;
    let mut part = CallPart::default();
    for (name, value) in members {
        match &*name {
            "index" => part.index = serde_json::from_str(value.get().trim_matches('"')).ok(),
            "id" => part.id = serde_json::from_str::<Name<'_>>(value.get()).ok().map(|Name(id)| id),
            "function" => {
                if let Ok(Members(members)) = serde_json::from_str(value.get()) {
                    let opaque = members.into_iter().filter(|(name, _)| !OF_FUNCTION.contains(&&**name));
                    part.function = opaque.collect();
                }
            }
            name if OF_CALL.contains(&name) => {}
            _ => part.opaque.push((name, value)),
        }
    }
    Some(part)
}

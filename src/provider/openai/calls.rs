//! The calls of an answer, told apart in every way in which servers number and name them.

use std::borrow::Cow;

use super::wire::{Function, ToolCallDelta};
use crate::{
    chat::Chunk,
    meters::Tolerated,
    provider::{
        ProviderError,
        deviations::Deviations,
        dialect::room_beside,
        error::Kind,
        loose::{arguments, int, name, object},
        pieces::Arguments,
    },
};

/// The calls so far.
#[derive(Default)]
pub(super) struct Calls {
    named: Vec<Call>,
    /// Calls that have an id, a type or arguments, and no name yet.
    nameless: Vec<Nameless>,
}

/// A call under way.
struct Call {
    key: Key,
    name: String,
    arguments: Arguments,
}

/// A call that has no name yet.
struct Nameless {
    key: Key,
    /// Whether it had arguments, which are lost.
    argued: bool,
}

/// The names by which the wire tells a call apart.
struct Key {
    index: Option<u64>,
    id: Option<String>,
}

impl Key {
    /// Whether both are of one call.
    fn is(&self, other: &Key) -> bool {
        self.index.is_some() && self.index == other.index || self.id.is_some() && self.id == other.id
    }
}

impl Calls {
    /// Number of calls, readable or not.
    pub(super) fn len(&self) -> usize {
        self.named.len() + self.nameless.len()
    }

    /// Whether a call has begun.
    pub(super) fn has_named(&self) -> bool {
        !self.named.is_empty()
    }

    /// The call with such an id or index on the wire, or else the last.
    pub(super) fn locate(&self, index: Option<u64>, id: Option<&str>) -> Option<usize> {
        let with_id = |id: &str| self.named.iter().rposition(|c| c.key.id.as_deref() == Some(id));
        let with_index = |index: u64| self.named.iter().rposition(|c| c.key.index == Some(index));
        id.and_then(with_id)
            .or_else(|| index.and_then(with_index))
            .or_else(|| self.named.len().checked_sub(1))
    }

    /// Checks that each call can be made.
    ///
    /// # Errors
    /// A call without a name.
    pub(super) fn check(&self) -> Result<(), ProviderError> {
        match self.nameless.is_empty() {
            true => Ok(()),
            false => Err(ProviderError::new(Kind::Protocol, "a call without a name")),
        }
    }

    /// Takes more of a call. It belongs to the call with its index, unless it names another id; without an index to the
    /// one with its id, or the last. What is new needs a name to begin with.
    pub(super) fn take(
        &mut self,
        delta: ToolCallDelta<'_>,
        odd: &mut Deviations,
        out: &mut Vec<Chunk>,
    ) -> Result<(), ProviderError> {
        if let Some((at, Some(piece))) = self.find(delta, odd, out)? {
            if self.named[at].arguments.take(&piece) {
                out.push(Chunk::ToolCallDelta {
                    index: at,
                    arguments: piece,
                });
            } else {
                odd.add(Tolerated::Repeated);
            }
        }
        Ok(())
    }

    /// Takes a call as it is known now, of a message that is sent whole, perhaps again and again as it grows.
    pub(super) fn take_all(
        &mut self,
        delta: ToolCallDelta<'_>,
        odd: &mut Deviations,
        out: &mut Vec<Chunk>,
    ) -> Result<(), ProviderError> {
        if let Some((at, Some(all))) = self.find(delta, odd, out)? {
            let more = self.named[at].arguments.take_all(&all);
            let more = more.ok_or_else(|| ProviderError::new(Kind::Protocol, "a call whose arguments changed"))?;
            odd.add_if(more.is_empty(), Tolerated::Repeated);
            if !more.is_empty() {
                out.push(Chunk::ToolCallDelta {
                    index: at,
                    arguments: more.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// The call that a delta belongs to, begun if it is new, and the delta's arguments.
    fn find(
        &mut self,
        delta: ToolCallDelta<'_>,
        odd: &mut Deviations,
        out: &mut Vec<Chunk>,
    ) -> Result<Option<(usize, Option<String>)>, ProviderError> {
        let has_type = name(delta.kind, odd).is_some() || delta.custom.is_some();
        let function = object(delta.function, odd);
        odd.add_if(delta.name.is_some(), Tolerated::FieldType);
        let Function {
            name: called,
            arguments: given,
        } = function.unwrap_or(Function {
            name: delta.name,
            arguments: delta.arguments,
        });
        let called = name(called, odd);
        let given = arguments(given, true, odd)?;
        let id = name(delta.id, odd);
        let index = int(delta.index, odd);
        if index.is_none() && id.is_none() {
            // A call that had an index or an id has neither where a server repeats it whole.
            let is_again = |call: &Call| {
                let has_key = call.key.index.is_some() || call.key.id.is_some();
                has_key
                    && called.as_deref() == Some(call.name.as_str())
                    && given.as_deref().is_some_and(|all| call.arguments.is_repeated_by(all))
            };
            if let Some(at) = self.named.iter().rposition(is_again) {
                return Ok(Some((at, given)));
            }
        }
        let known = match (index, &id) {
            (Some(_), _) => self.named.iter().rposition(|c| c.key.index == index),
            (None, Some(id)) => self.named.iter().rposition(|c| c.key.id.as_deref() == Some(id)),
            (None, None) => self.named.len().checked_sub(1),
        };
        let other = |at: &usize| match (&self.named[*at].key.id, &id) {
            (Some(known), Some(id)) => known != id.as_ref() && called.is_some(),
            // Without ids, a second name without an index is a second call.
            _ => index.is_none() && called.is_some(),
        };
        if let Some(at) = known.filter(|at| !other(at)) {
            return Ok(Some((at, given)));
        }
        let mut key = Key {
            index,
            id: id.map(Cow::into_owned),
        };
        room_beside(self.len())?;
        let Some(called) = called else {
            let argued = given.is_some();
            if has_type || key.id.is_some() || argued {
                self.begin_nameless(key, argued);
            } else {
                odd.add(Tolerated::FieldType); // an entry that says nothing
            }
            return Ok(None);
        };
        if let Some(earlier) = self.nameless.iter().position(|n| n.key.is(&key) && !n.argued) {
            let earlier = self.nameless.swap_remove(earlier).key;
            key.id = key.id.or(earlier.id);
        }
        let at = self.named.len();
        let id = key.id.clone();
        out.push(Chunk::ToolCallStart {
            index: at,
            id: id.unwrap_or_else(|| format!("call_{}", uuid::Uuid::new_v4().simple())),
            name: called.to_string(),
        });
        self.named.push(Call {
            key,
            name: called.into_owned(),
            arguments: Arguments::default(),
        });
        Ok(Some((at, given)))
    }

    fn begin_nameless(&mut self, key: Key, argued: bool) {
        match self.nameless.iter_mut().find(|known| known.key.is(&key)) {
            Some(known) => known.argued |= argued,
            None => self.nameless.push(Nameless { key, argued }),
        }
    }
}

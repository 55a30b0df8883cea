//! One round of a model, folded from its chunks: its text, its calls, its ending.
//!
//! Strict on purpose: a call exists only when the round is complete and its arguments are one JSON object.

use std::{collections::HashMap, iter::repeat_n};

use serde_json::{Map, Value};

use super::{Carry, Chunk, FinishKind, FinishReason, ToolCall, Usage, message::held, number::oversized_integer};

/// What a call weighs beside what is in it, in bytes: it is kept, answered and told, however little it says.
const CALL: usize = 64;

/// A round under way.
#[derive(Debug, Default)]
pub struct Round {
    /// Bytes of text so far: whoever is told the words has them.
    pub text: usize,
    /// Bytes of reasoning so far.
    pub reasoning: usize,
    /// Bytes of the calls' names and arguments so far.
    asked: usize,
    /// What the calls weigh beside these, and what is carried for the provider.
    beside: usize,
    calls: Vec<Draft>,
    carry: Vec<Carry>,
    finish: Option<(FinishReason, Usage)>,
}

#[derive(Debug)]
struct Draft {
    id: String,
    name: String,
    arguments: String,
}

/// A call of a complete round.
#[derive(Debug, PartialEq)]
pub struct Asked {
    /// The call; without arguments where they could not be parsed.
    pub call: ToolCall,
    /// Whether its arguments were a JSON object that can be read without loss.
    pub parsed: bool,
    /// An integer among the arguments that does not fit into 64 bits, where that is the reason.
    pub oversized: Option<String>,
    /// Whether no arguments came at all. They may have been lost, so only a call of a tool that takes none is one.
    pub absent: bool,
}

impl Round {
    /// Takes the next chunk. Chunks after the finish are ignored; whether this one was not.
    pub fn push(&mut self, chunk: &Chunk) -> bool {
        if self.finish.is_some() {
            return false;
        }
        match chunk {
            Chunk::Text(text) => self.text += text.len(),
            Chunk::Reasoning(text) => self.reasoning += text.len(),
            Chunk::ToolCallStart { id, name, .. } => {
                self.asked += name.len();
                self.beside += id.len() + CALL;
                self.calls.push(Draft {
                    id: id.clone(),
                    name: name.clone(),
                    arguments: String::new(),
                });
            }
            Chunk::ToolCallDelta { index, arguments } => {
                if let Some(call) = self.calls.get_mut(*index) {
                    self.asked += arguments.len();
                    call.arguments.push_str(arguments);
                }
            }
            Chunk::Carry(carry) => {
                self.beside += held(&carry.data);
                self.carry.push(carry.clone());
            }
            Chunk::Finish { reason, usage } => self.finish = Some((reason.clone(), usage.clone())),
        }
        true
    }

    /// Bytes that the model has produced in this round.
    #[must_use]
    pub fn size(&self) -> usize {
        self.text + self.reasoning + self.asked
    }

    /// What the round weighs against the limit of an answer, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.size() + self.beside
    }

    /// How the round ended, if it has.
    #[must_use]
    pub fn finish(&self) -> Option<&(FinishReason, Usage)> {
        self.finish.as_ref()
    }

    /// The round's calls, and what its provider wants back. Of a round that was cut short by its limit or a filter the
    /// calls are not to be run, and are not given.
    #[must_use]
    pub fn complete(self) -> (Vec<Asked>, Vec<Carry>) {
        let asks = self
            .finish
            .as_ref()
            .is_some_and(|(reason, _)| reason.kind == FinishKind::ToolCalls);
        let mut calls: Vec<Asked> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new(); // how often each id was wanted
        for mut draft in self.calls.into_iter().filter(|_| asks) {
            // Every call has its own result, so every call needs its own id, whatever the provider thought.
            while let Some(times) = known.get_mut(&draft.id) {
                draft.id.extend(repeat_n('+', *times));
                *times += 1;
            }
            known.insert(draft.id.clone(), 1);
            calls.push(draft.parse());
        }
        (calls, self.carry)
    }
}

impl Draft {
    /// `null` and `{}` both mean that there are none.
    fn parse(self) -> Asked {
        let text = self.arguments.trim();
        let oversized = oversized_integer(text);
        let arguments = match serde_json::from_str(text) {
            _ if oversized.is_some() => None,
            Ok(Value::Object(map)) => Some(map),
            Ok(Value::Null) => Some(Map::new()),
            _ => None,
        };
        let (parsed, absent) = (arguments.is_some(), text.is_empty());
        Asked {
            call: ToolCall {
                id: self.id,
                name: fit(&self.name),
                arguments: arguments.unwrap_or_default(),
            },
            parsed,
            oversized,
            absent,
        }
    }
}

/// A name as every provider takes it back: what a model invents beside its tools would otherwise fail the next round.
fn fit(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = name.chars().take(64).map(fits).collect();
    if name.is_empty() { "_".to_owned() } else { name }
}

/// The text in chunks.
#[cfg(test)]
pub(crate) fn words(chunks: &[Chunk]) -> String {
    let text = |chunk: &Chunk| match chunk {
        Chunk::Text(text) => Some(text.clone()),
        _ => None,
    };
    chunks.iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(arguments: &[&str], kind: FinishKind) -> Vec<Asked> {
        let mut round = Round::default();
        round.push(&Chunk::ToolCallStart {
            index: 0,
            id: "c".into(),
            name: "t".into(),
        });
        for piece in arguments {
            round.push(&Chunk::ToolCallDelta {
                index: 0,
                arguments: (*piece).into(),
            });
        }
        round.push(&Chunk::Finish {
            reason: FinishReason { kind, raw: None },
            usage: Usage::default(),
        });
        assert!(!round.push(&Chunk::Text("after the end".into())));
        assert_eq!(round.text, 0);
        round.complete().0
    }

    #[test]
    fn what_is_carried_weighs_what_it_holds_and_is_no_word_of_the_answer() {
        let mut round = Round::default();
        let carry = Carry {
            dialect: "d".into(),
            data: serde_json::json!({"signature": "x".repeat(1_000)}),
        };
        round.push(&Chunk::Carry(carry));
        assert!(round.weight() > 1_000 && round.size() == 0, "{}", round.weight());
    }

    #[test]
    fn arguments_are_one_object_or_nothing() {
        for none in [&["null"] as &[&str], &["{}"], &[" {", "} "]] {
            let asked = &round(none, FinishKind::ToolCalls)[0];
            assert!(
                asked.parsed && !asked.absent && asked.call.arguments.is_empty(),
                "{none:?}"
            );
        }
        for absent in [&[] as &[&str], &[""], &[" ", "\n"]] {
            let asked = &round(absent, FinishKind::ToolCalls)[0];
            assert!(!asked.parsed && asked.absent, "{absent:?}");
        }
        assert_eq!(
            round(&["{\"a\"", ":1}"], FinishKind::ToolCalls)[0].call.arguments["a"],
            1
        );
        for wrong in [&["{\"a\":"] as &[&str], &["{}{}"], &["[1]"], &["\"x\""], &["nul"]] {
            let asked = &round(wrong, FinishKind::ToolCalls)[0];
            assert!(!asked.parsed && asked.call.arguments.is_empty(), "{wrong:?}");
        }
    }

    #[test]
    fn an_integer_beyond_64_bits_is_no_argument() {
        let pieces = ["{\"a\":[12345678901234", "567890123456],\"b\":1}"];
        let asked = &round(&pieces, FinishKind::ToolCalls)[0];
        assert!(!asked.parsed && asked.call.arguments.is_empty());
        assert_eq!(asked.oversized.as_deref(), Some("12345678901234567890123456"));
        let fits = &round(&["{\"a\":18446744073709551615,\"b\":1e30}"], FinishKind::ToolCalls)[0];
        assert!(fits.parsed && fits.oversized.is_none());
        assert_eq!(fits.call.arguments["a"], u64::MAX);
    }

    #[test]
    fn a_name_is_one_that_every_provider_takes_back() {
        for (told, taken) in [
            ("get_time", "get_time"),
            ("a.b c", "a_b_c"),
            ("", "_"),
            (&"x".repeat(65), &"x".repeat(64)),
        ] {
            assert_eq!(fit(told), taken);
        }
    }

    #[test]
    fn every_call_has_an_id_of_its_own() {
        let ids = |told: &[&str]| {
            let mut round = Round::default();
            for (index, id) in told.iter().enumerate() {
                let (id, name) = ((*id).into(), "t".into());
                round.push(&Chunk::ToolCallStart { index, id, name });
            }
            let (kind, usage) = (FinishKind::ToolCalls, Usage::default());
            let reason = FinishReason { kind, raw: None };
            round.push(&Chunk::Finish { reason, usage });
            assert_eq!(round.size(), told.len());
            assert_eq!(round.weight(), told.iter().map(|id| id.len() + 1 + CALL).sum::<usize>());
            let asked = round.complete().0.into_iter();
            asked.map(|asked| asked.call.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&["a", "b", "a", "a", "b"]), ["a", "b", "a+", "a++", "b+"]);
        assert_eq!(ids(&["a", "a+", "a", "a"]), ["a", "a+", "a++", "a+++"]);
        let many: std::collections::HashSet<_> = ids(&["a"; 1024]).into_iter().collect();
        assert_eq!(many.len(), 1024);
    }

    #[test]
    fn a_round_that_was_cut_asks_for_nothing() {
        assert!(round(&["{\"a\":1}"], FinishKind::Length).is_empty());
        assert!(round(&["{\"a\":1}"], FinishKind::ContentFilter).is_empty());
    }
}

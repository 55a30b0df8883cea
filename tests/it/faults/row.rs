//! A row: what a provider does, and what comes of it; and the words in which most rows are written.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::{KEY, PATIENT, WORDS};
use crate::house::meters::Wrong;
use crate::house::{Billed, Dialect, Gate, RunEnding, Script, Step};

/// What comes of it.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// Nothing was said: this status and code.
    Refused(u16, &'static str),
    /// It broke off after words: what was said, and the status and code where nothing of it was sent yet.
    Broken(Said, u16, &'static str),
    /// A whole answer, and why it finished.
    Answered(String, &'static str),
}

impl Outcome {
    /// How the run ends.
    pub(super) fn ending(&self) -> RunEnding {
        match self {
            Outcome::Refused(_, code) | Outcome::Broken(_, _, code) => RunEnding::failed(code),
            Outcome::Answered(..) => RunEnding::completed(),
        }
    }
}

/// What was said before it broke off.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Exactly(String),
    /// These words over and over, at least once, and at most so many bytes.
    Repeated(String, usize),
}

impl Said {
    pub(super) fn is(&self, text: &str) -> bool {
        match self {
            Said::Exactly(said) => text == said,
            Said::Repeated(word, most) => {
                !text.is_empty() && text.len() <= *most && text.replace(word.as_str(), "").is_empty()
            }
        }
    }
}

/// Who the provider is that is asked for the faulty turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Scripted,
    NobodyListens,
    NobodyAccepts,
    /// A name that no resolver can even ask for: a label of 64 letters, one more than there may be. So no packet leaves
    /// the machine, and yet it is the machine's own resolver that says that there is no such name.
    NoSuchName,
    /// A provider of this name, which the gateway knows beside the scripted one.
    Named(&'static str),
}

/// The tokens that the gateway counts: input, output, and whether it had to estimate.
pub(super) type Counted = (Option<u64>, Option<u64>, bool);

pub(super) struct Row {
    pub(super) name: String,
    pub(super) who: Who,
    /// How the provider speaks; usually as OpenAI does.
    pub(super) dialect: Option<Dialect>,
    /// What the provider does with the turn before, which goes well.
    pub(super) before: Option<Script>,
    /// What the provider does at the first call, the second, ...; the last goes on.
    pub(super) scripts: Vec<Script>,
    /// Stands in the script; opened once the client has read what is said before it.
    pub(super) gate: Option<Gate>,
    pub(super) outcome: Outcome,
    /// The one word for what was wrong, where that was a provider's failure, and the run's end.
    pub(super) kind: Option<&'static str>,
    /// Why it is asked again before that, and how often.
    pub(super) again: Option<(&'static str, u8)>,
    /// What is wrong with an answer that is taken all the same.
    pub(super) tolerated: Vec<&'static str>,
    pub(super) toml: &'static str,
    pub(super) calls: usize,
    /// The least number of heartbeats.
    pub(super) heartbeats: usize,
    /// In how many tokens the answer comes.
    pub(super) tokens: Option<usize>,
    pub(super) counted: Option<Counted>,
    pub(super) billed: Option<Billed>,
    pub(super) retry_after: Option<u64>,
    pub(super) took: (Duration, Duration),
    /// The most that the upstream may get rid of, in bytes.
    pub(super) sent: u64,
}

impl Row {
    pub(super) fn new(name: impl Into<String>, scripts: impl Into<Vec<Script>>, outcome: Outcome) -> Self {
        Self {
            name: name.into(),
            who: Who::Scripted,
            dialect: None,
            before: None,
            scripts: scripts.into(),
            gate: None,
            outcome,
            kind: None,
            again: None,
            tolerated: Vec::new(),
            toml: PATIENT,
            calls: 1,
            heartbeats: 0,
            tokens: None,
            counted: None,
            billed: None,
            retry_after: None,
            took: (Duration::ZERO, Duration::from_secs(15)),
            sent: u64::MAX,
        }
    }
    pub(super) fn who(self, who: Who) -> Self {
        Self { who, ..self }
    }
    pub(super) fn dialect(self, dialect: Dialect) -> Self {
        Self {
            dialect: Some(dialect),
            ..self
        }
    }
    pub(super) fn before(self, script: Script) -> Self {
        Self {
            before: Some(script),
            ..self
        }
    }
    pub(super) fn gate(self, gate: Gate) -> Self {
        Self {
            gate: Some(gate),
            ..self
        }
    }
    pub(super) fn kind(self, kind: &'static str) -> Self {
        Self {
            kind: Some(kind),
            ..self
        }
    }
    pub(super) fn again(self, reason: &'static str, times: u8) -> Self {
        Self {
            again: Some((reason, times)),
            ..self
        }
    }
    pub(super) fn tolerated(mut self, what: &'static str) -> Self {
        self.tolerated.push(what);
        self
    }
    pub(super) fn toml(self, toml: &'static str) -> Self {
        Self { toml, ..self }
    }
    pub(super) fn calls(self, calls: usize) -> Self {
        Self { calls, ..self }
    }
    pub(super) fn heartbeats(self, heartbeats: usize) -> Self {
        Self { heartbeats, ..self }
    }
    pub(super) fn tokens(self, tokens: usize) -> Self {
        Self {
            tokens: Some(tokens),
            ..self
        }
    }
    pub(super) fn counted(self, input: u64, output: u64) -> Self {
        Self {
            counted: Some((Some(input), Some(output), false)),
            ..self
        }
    }
    pub(super) fn estimated(self) -> Self {
        Self {
            counted: Some((None, None, true)),
            ..self
        }
    }
    pub(super) fn billed(self, billed: Billed) -> Self {
        Self {
            billed: Some(billed),
            ..self
        }
    }
    pub(super) fn retry_after(self, seconds: u64) -> Self {
        Self {
            retry_after: Some(seconds),
            ..self
        }
    }
    pub(super) fn not_before(mut self, milliseconds: u64) -> Self {
        self.took.0 = Duration::from_millis(milliseconds);
        self
    }
    pub(super) fn within(mut self, milliseconds: u64) -> Self {
        self.took.1 = Duration::from_millis(milliseconds);
        self
    }
    pub(super) fn sent_at_most(self, bytes: u64) -> Self {
        Self { sent: bytes, ..self }
    }

    /// How the provider speaks.
    pub(super) fn speaks(&self) -> Dialect {
        self.dialect.unwrap_or(Dialect::OpenAi)
    }

    /// What is counted of its provider.
    pub(super) fn wrong(&self) -> Wrong {
        let theirs = |code: &str| code.starts_with("upstream_") || code == "context_too_long";
        let failed = match &self.outcome {
            Outcome::Refused(_, code) | Outcome::Broken(_, _, code) => theirs(code),
            Outcome::Answered(..) => false,
        };
        Wrong {
            failed,
            kind: self.kind,
            again: self.again,
            tolerated: self.tolerated.clone(),
        }
    }

    /// What must be in the books afterwards.
    pub(super) fn in_the_books(&self) -> Billed {
        let answered = matches!(self.outcome, Outcome::Answered(..));
        self.billed.unwrap_or(match (self.calls, answered, self.counted) {
            (0, ..) => Billed::Nothing,
            (_, false, _) | (_, _, Some((.., true))) => Billed::OneCallEstimated,
            _ => Billed::OneCall,
        })
    }
}

pub(super) fn refused(status: u16, code: &'static str) -> Outcome {
    Outcome::Refused(status, code)
}

pub(super) fn broken(said: &[String], status: u16, code: &'static str) -> Outcome {
    Outcome::Broken(Said::Exactly(said.concat()), status, code)
}

pub(super) fn answered(text: impl Into<String>) -> Outcome {
    Outcome::Answered(text.into(), "stop")
}

/// So many words, each of its own.
pub(super) fn words(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("w{number} ")).collect()
}

/// A stream that says these words, and is not at its end.
pub(super) fn saying(words: &[String]) -> Script {
    words.iter().fold(Script::sse().role(), |script, word| script.say(word))
}

/// An error's body, with the key and the upstream's own words in it.
pub(super) fn told(code: &str, kind: &str) -> String {
    json!({"error": {"message": format!("{WORDS}: key {KEY}"), "type": kind, "param": WORDS, "code": code}}).to_string()
}

pub(super) fn status(status: u16, body: impl Into<Bytes>) -> Script {
    Script::status(status, &[], body)
}

impl Script {
    /// The same bytes on the wire many times, whatever the framing.
    pub(super) fn repeat_raw(self, bytes: impl Into<Bytes>, max: usize) -> Self {
        self.step(Step::Repeat {
            bytes: bytes.into(),
            every: Duration::ZERO,
            max,
        })
    }
}

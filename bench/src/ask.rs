//! What the bench asks the mock for, as words in the user's message, so that what stands in between needs no
//! special road: `bench stream=17 tokens=200 every_us=2000`.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::token::LIMIT;

/// One answer to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Written into every token, below [`LIMIT`].
    pub stream: u32,
    /// How many tokens the answer has, 1 to [`LIMIT`].
    pub tokens: u32,
    /// Microseconds between two writes; 0: as fast as the socket takes them.
    pub every_us: u64,
    /// Microseconds from the request to the first write of tokens.
    pub first_us: u64,
    /// Events (each an HTTP chunk of its own) in one write, 1 to 64.
    pub per_write: u32,
    /// Tokens in one event, 1 to 64; divides `tokens`.
    pub per_event: u32,
    /// Ask for the tool `slow` first, and let it take so many microseconds; 0: no tool.
    pub tool_us: u64,
    /// After so many tokens say nothing more until the other side closes (at most a minute); 0: never.
    pub stall_after: u32,
    /// After so many tokens close the connection without an end, as a provider that dies; 0: never.
    pub cut_after: u32,
}

impl Default for Ask {
    /// What a message without the word `bench` gets: 20 tokens, one per 50 ms, pleasant to look at.
    fn default() -> Self {
        Self {
            tokens: 20,
            every_us: 50_000,
            ..Self::new(0, 20)
        }
    }
}

impl Ask {
    /// `tokens` tokens for `stream` at full speed.
    #[must_use]
    pub fn new(stream: u32, tokens: u32) -> Self {
        Self {
            stream,
            tokens,
            every_us: 0,
            first_us: 0,
            per_write: 1,
            per_event: 1,
            tool_us: 0,
            stall_after: 0,
            cut_after: 0,
        }
    }

    /// Finds what is asked in the words of a message; a message that does not begin with `bench` gets the default.
    ///
    /// # Errors
    /// When a word after `bench` is unknown or out of its range: a typo must not measure something else.
    pub fn find(message: &str) -> Result<Self> {
        match message.trim().strip_prefix("bench ") {
            Some(words) => words.parse(),
            None => Ok(Self::default()),
        }
    }
}

impl FromStr for Ask {
    type Err = anyhow::Error;

    fn from_str(words: &str) -> Result<Self> {
        let mut ask = Self::new(0, 1);
        for word in words.split_ascii_whitespace() {
            let (name, value) = word
                .split_once('=')
                .with_context(|| format!("{word}: expected NAME=NUMBER"))?;
            let number: u32 = value.parse().with_context(|| format!("{word}: no number"))?;
            match name {
                "stream" => ask.stream = number,
                "tokens" => ask.tokens = number,
                "every_us" => ask.every_us = u64::from(number),
                "first_us" => ask.first_us = u64::from(number),
                "per_write" => ask.per_write = number,
                "per_event" => ask.per_event = number,
                "tool_us" => ask.tool_us = u64::from(number),
                "stall_after" => ask.stall_after = number,
                "cut_after" => ask.cut_after = number,
                _ => bail!("{name}: unknown"),
            }
        }
        ensure!(ask.stream < LIMIT, "stream: below {LIMIT}");
        ensure!((1..=LIMIT).contains(&ask.tokens), "tokens: 1 to {LIMIT}");
        ensure!((1..=64).contains(&ask.per_write), "per_write: 1 to 64");
        ensure!((1..=64).contains(&ask.per_event), "per_event: 1 to 64");
        ensure!(
            ask.tokens.is_multiple_of(ask.per_event) && ask.cut_after.is_multiple_of(ask.per_event),
            "per_event: has to divide tokens and cut_after"
        );
        Ok(ask)
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "bench stream={} tokens={} every_us={}",
            self.stream, self.tokens, self.every_us
        )?;
        for (name, value, usual) in [
            ("per_write", u64::from(self.per_write), 1),
            ("per_event", u64::from(self.per_event), 1),
            ("tool_us", self.tool_us, 0),
            ("first_us", self.first_us, 0),
            ("stall_after", u64::from(self.stall_after), 0),
            ("cut_after", u64::from(self.cut_after), 0),
        ] {
            if value != usual {
                write!(f, " {name}={value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_found() {
        for ask in [
            Ask::new(17, 200),
            Ask {
                every_us: 2_000,
                per_write: 4,
                per_event: 10,
                tool_us: 300,
                first_us: 5,
                stall_after: 7,
                cut_after: 10,
                ..Ask::new(99_999, 100_000)
            },
        ] {
            assert_eq!(Ask::find(&ask.to_string()).unwrap(), ask);
        }
        assert_eq!(Ask::find("hello").unwrap(), Ask::default());
    }

    #[test]
    fn a_typo_measures_nothing() {
        for wrong in [
            "tokens",
            "tokens=",
            "tokens=x",
            "tokns=1",
            "tokens=0",
            "stream=100000",
            "per_write=65",
            "tokens=5 per_event=2",
        ] {
            assert!(Ask::find(&format!("bench {wrong}")).is_err(), "{wrong}");
        }
    }
}

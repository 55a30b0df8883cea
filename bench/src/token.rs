//! A token of the bench: ` 00017:00003:000123456789012345` is stream 17, number 3, sent at that nanosecond.
//!
//! Every token has the same length, so that the mock can patch digits into ready-made bytes and a reader can
//! find tokens in plain text without separators. [`Check`] is the judge of completeness and order.

use anyhow::{Result, bail, ensure};

/// Bytes of one token: a space, 5 digits of stream, 5 of number, 18 of nanoseconds, two colons.
pub const LEN: usize = 31;
/// Streams and numbers are below this.
pub const LIMIT: u32 = 100_000;

/// What a token says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The stream it belongs to, below [`LIMIT`].
    pub stream: u32,
    /// Its place in the stream, from 0, below [`LIMIT`].
    pub number: u32,
    /// [`crate::clock::now`] just before it was written to the socket.
    pub sent: u64,
}

impl Token {
    /// Writes the token over the first [`LEN`] bytes of `into`.
    pub fn write(self, into: &mut [u8]) {
        into[0] = b' ';
        digits(&mut into[1..6], u64::from(self.stream));
        into[6] = b':';
        digits(&mut into[7..12], u64::from(self.number));
        into[12] = b':';
        digits(&mut into[13..LEN], self.sent);
    }

    /// Reads a token from exactly [`LEN`] bytes; `None` when they are not one.
    #[must_use]
    pub fn read(from: &[u8]) -> Option<Self> {
        if from.len() != LEN || from[0] != b' ' || from[6] != b':' || from[12] != b':' {
            return None;
        }
        Some(Self {
            stream: u32::try_from(number(&from[1..6])?).ok()?,
            number: u32::try_from(number(&from[7..12])?).ok()?,
            sent: number(&from[13..LEN])?,
        })
    }
}

fn digits(into: &mut [u8], mut value: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

fn number(from: &[u8]) -> Option<u64> {
    from.iter().try_fold(0_u64, |sum, byte| {
        byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0'))
    })
}

/// Takes the text of one answer, split anywhere, and refuses anything but the expected tokens in order.
#[derive(Debug)]
pub struct Check {
    stream: u32,
    tokens: u32,
    next: u32,
    part: Vec<u8>,
    /// Nanoseconds from each token's writing to its reading, in order.
    pub delays: Vec<u64>,
    /// When the first token had been read ([`crate::clock::now`]).
    pub first: Option<u64>,
}

impl Check {
    /// Expects tokens 0 to `tokens - 1` of `stream`.
    #[must_use]
    pub fn new(stream: u32, tokens: u32) -> Self {
        let delays = Vec::with_capacity(tokens.min(4_096) as usize);
        Self {
            stream,
            tokens,
            next: 0,
            part: Vec::with_capacity(LEN),
            delays,
            first: None,
        }
    }

    /// The same expectation with nothing read yet.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self::new(self.stream, self.tokens)
    }

    /// Tokens read so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.next
    }

    /// Takes text that was read from the socket at `now` (nanoseconds).
    ///
    /// # Errors
    /// When a token is foreign, doubled, missing, out of order, or no token at all.
    pub fn text(&mut self, mut text: &[u8], now: u64) -> Result<()> {
        while !text.is_empty() {
            if self.part.is_empty() && text.len() >= LEN {
                self.one(&text[..LEN], now)?;
                text = &text[LEN..];
            } else {
                let missing = LEN - self.part.len();
                let (head, rest) = text.split_at(missing.min(text.len()));
                self.part.extend_from_slice(head);
                text = rest;
                if self.part.len() == LEN {
                    let part = std::mem::take(&mut self.part);
                    self.one(&part, now)?;
                    self.part = part;
                    self.part.clear();
                }
            }
        }
        Ok(())
    }

    /// The answer is said to be over.
    ///
    /// # Errors
    /// When tokens are missing or one was cut.
    pub fn end(&self) -> Result<()> {
        ensure!(self.part.is_empty(), "the last token was cut");
        ensure!(
            self.next == self.tokens,
            "{} of {} tokens arrived",
            self.next,
            self.tokens
        );
        Ok(())
    }

    fn one(&mut self, bytes: &[u8], now: u64) -> Result<()> {
        let Some(token) = Token::read(bytes) else {
            bail!("no token: {:?}", String::from_utf8_lossy(bytes));
        };
        ensure!(
            token.stream == self.stream,
            "token of stream {} in stream {}",
            token.stream,
            self.stream
        );
        ensure!(
            token.number == self.next,
            "token {} where {} was due",
            token.number,
            self.next
        );
        ensure!(self.next < self.tokens, "more than {} tokens", self.tokens);
        self.next += 1;
        self.first.get_or_insert(now);
        self.delays.push(now.saturating_sub(token.sent));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().fold(Vec::new(), |mut all, &number| {
            let mut one = [0; LEN];
            Token {
                stream: 17,
                number,
                sent: 123_456_789,
            }
            .write(&mut one);
            all.extend_from_slice(&one);
            all
        })
    }

    #[test]
    fn a_token_reads_back_as_it_was_written() {
        let bytes = text(&[3]);
        assert_eq!(bytes, b" 00017:00003:000000000123456789");
        assert_eq!(
            Token::read(&bytes),
            Some(Token {
                stream: 17,
                number: 3,
                sent: 123_456_789
            })
        );
        assert_eq!(Token::read(&bytes[1..]), None);
    }

    #[test]
    fn text_split_anywhere_is_the_same_text() {
        let bytes = text(&[0, 1, 2]);
        for size in 1..bytes.len() {
            let mut check = Check::new(17, 3);
            bytes
                .chunks(size)
                .for_each(|piece| check.text(piece, 123_457_000).unwrap());
            check.end().unwrap();
            assert_eq!(check.delays, [211, 211, 211]);
        }
    }

    #[test]
    fn whatever_is_lost_doubled_or_swapped_is_noticed() {
        for wrong in [&[1][..], &[0, 2], &[0, 0], &[0, 2, 1], &[0, 1, 2, 3]] {
            assert!(Check::new(17, 3).text(&text(wrong), 0).is_err(), "{wrong:?}");
        }
        assert!(Check::new(18, 3).text(&text(&[0]), 0).is_err());
        let mut short = Check::new(17, 3);
        short.text(&text(&[0, 1]), 0).unwrap();
        assert!(short.end().is_err());
    }
}

//! The bodies that are not events: plain text and one whole JSON.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::token::Check;

/// A body that takes what was read from the socket and judges it.
pub trait Body {
    /// Takes the next bytes, which were read at `now` ([`crate::clock::now`]).
    ///
    /// # Errors
    /// When they cannot be part of the expected answer.
    fn take(&mut self, bytes: &[u8], now: u64) -> Result<()>;

    /// HTTP says that the body is whole (chunked: the last chunk was there).
    ///
    /// # Errors
    /// When the answer is not.
    fn end(&mut self) -> Result<()>;

    /// The tokens seen so far.
    fn check(&mut self) -> &mut Check;

    /// The heartbeats seen so far.
    fn beats(&self) -> u64 {
        0
    }
}

/// `/chat/stream`: nothing but the answer.
pub struct Text(pub Check);

impl Body for Text {
    fn take(&mut self, bytes: &[u8], now: u64) -> Result<()> {
        self.0.text(bytes, now)
    }

    fn end(&mut self) -> Result<()> {
        self.0.end()
    }

    fn check(&mut self) -> &mut Check {
        &mut self.0
    }
}

/// `/chat`, or Chat Completions without `stream`.
pub struct Whole {
    bytes: Vec<u8>,
    check: Check,
    stored: Option<bool>,
    now: u64,
}

impl Whole {
    /// The gateway's answer, with a session exactly if `stored`.
    #[must_use]
    pub fn ours(check: Check, stored: bool) -> Self {
        Self {
            bytes: Vec::new(),
            check,
            stored: Some(stored),
            now: 0,
        }
    }

    /// OpenAI's answer.
    #[must_use]
    pub fn openai(check: Check) -> Self {
        Self {
            bytes: Vec::new(),
            check,
            stored: None,
            now: 0,
        }
    }
}

impl Body for Whole {
    fn take(&mut self, bytes: &[u8], now: u64) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        self.now = now;
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let json: Value = serde_json::from_slice(&self.bytes).context("the answer is no JSON")?;
        let content = if let Some(stored) = self.stored {
            whole_answer(&json, &self.check, stored)?;
            &json["content"]
        } else {
            &json["choices"][0]["message"]["content"]
        };
        self.check
            .text(content.as_str().context("no content")?.as_bytes(), self.now)?;
        self.check.end()
    }

    fn check(&mut self) -> &mut Check {
        &mut self.check
    }
}

/// The object of CONTRACT § 5: it finished, holds every token that `check` wants, and has a session if `stored`.
pub(super) fn whole_answer(answer: &Value, check: &Check, stored: bool) -> Result<()> {
    ensure!(
        answer["finish_reason"] == "stop",
        "finish_reason {}",
        answer["finish_reason"]
    );
    ensure!(
        answer["session_id"].is_string() == stored,
        "session_id {} although store={stored}",
        answer["session_id"]
    );
    let mut again = check.afresh();
    again.text(answer["content"].as_str().context("no content")?.as_bytes(), 0)?;
    again.end().context("in the whole answer")
}

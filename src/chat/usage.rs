//! What a model call cost, in tokens.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Tokens used. What nobody knows is `None` (JSON `null`), never 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub input_tokens: Option<u64>,
    /// Tokens of the answer, reasoning included.
    pub output_tokens: Option<u64>,
    /// Of the input: read from the provider's cache.
    pub cached_input_tokens: Option<u64>,
    /// Of the output: spent on reasoning.
    pub reasoning_tokens: Option<u64>,
    /// Whether a number was counted by us because the provider did not say ([`estimate`]).
    #[serde(default)]
    pub estimated: bool,
    /// The provider's own object.
    #[serde(skip)]
    pub raw: Option<Value>,
}

impl Usage {
    /// Adds another round's. A number is known as soon as one round knows it.
    pub fn add(&mut self, other: &Usage) {
        fn sum(a: &mut Option<u64>, b: Option<u64>) {
            if let Some(b) = b {
                *a = Some(a.unwrap_or(0).saturating_add(b));
            }
        }
        sum(&mut self.input_tokens, other.input_tokens);
        sum(&mut self.output_tokens, other.output_tokens);
        sum(&mut self.cached_input_tokens, other.cached_input_tokens);
        sum(&mut self.reasoning_tokens, other.reasoning_tokens);
        self.estimated |= other.estimated;
    }

    /// Fills the two totals that are missing with estimates of `input` and `output` tokens, and says so.
    pub fn fill(&mut self, input: u64, output: u64) {
        if self.input_tokens.is_none() || self.output_tokens.is_none() {
            self.estimated = true;
        }
        self.input_tokens.get_or_insert(input);
        self.output_tokens.get_or_insert(output);
    }
}

/// What one model call cost: one for every call that was sent, also of a run that was cancelled or broke.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCall {
    /// Which call of the run, from 1.
    pub round: u32,
    /// `provider/model`.
    pub model: String,
    /// What it cost.
    pub usage: Usage,
}

/// How many tokens a text of so many bytes of UTF-8 has, by rule of thumb: four bytes a token, rounded up. English runs
/// at about four characters a token, Chinese at about one character (three bytes).
#[must_use]
pub fn estimate(bytes: usize) -> u64 {
    bytes.div_ceil(4) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_stays_unknown_and_nothing_overflows() {
        let mut sum = Usage {
            input_tokens: Some(u64::MAX),
            ..Usage::default()
        };
        sum.add(&Usage {
            input_tokens: Some(5),
            output_tokens: Some(0),
            ..Usage::default()
        });
        assert_eq!(
            (sum.input_tokens, sum.output_tokens, sum.reasoning_tokens),
            (Some(u64::MAX), Some(0), None)
        );
        assert!(!sum.estimated);
    }

    #[test]
    fn only_what_is_missing_is_estimated() {
        let mut usage = Usage {
            input_tokens: Some(7),
            ..Usage::default()
        };
        usage.fill(100, 3);
        assert_eq!(
            (usage.input_tokens, usage.output_tokens, usage.estimated),
            (Some(7), Some(3), true)
        );
        let mut told = Usage {
            input_tokens: Some(7),
            output_tokens: Some(0),
            ..Usage::default()
        };
        told.fill(100, 3);
        assert_eq!((told.output_tokens, told.estimated), (Some(0), false));
    }
}

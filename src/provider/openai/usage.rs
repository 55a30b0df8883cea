//! The numbers of OpenAI's two wires, in the spellings of compatible servers.

use serde_json::Value;

use crate::{
    chat::Usage,
    meters::Tolerated,
    provider::{deviations::Deviations, loose::count},
};

const INPUT: [&str; 2] = ["/prompt_tokens", "/input_tokens"];
const OUTPUT: [&str; 2] = ["/completion_tokens", "/output_tokens"];
/// DeepSeek, Moonshot, Mistral and Anthropic have a name of their own.
const CACHED: [&str; 6] = [
    "/prompt_tokens_details/cached_tokens",
    "/input_tokens_details/cached_tokens",
    "/prompt_cache_hit_tokens",
    "/cached_tokens",
    "/num_cached_tokens",
    "/cache_read_input_tokens",
];
const REASONING: [&str; 3] = [
    "/completion_tokens_details/reasoning_tokens",
    "/output_tokens_details/reasoning_tokens",
    "/reasoning_tokens",
];

/// Usage, if there are numbers in it; numbers that are none (negative, beyond 2^53) are unknown.
pub(in crate::provider) fn read_usage(raw: Value, odd: &mut Deviations) -> Option<Usage> {
    let raw = match raw {
        Value::Array(all) => {
            odd.add(Tolerated::UsageForm);
            all.into_iter().rfind(Value::is_object)?
        }
        other => other,
    };
    let mut number = |names: &[&str]| {
        let present = names.iter().filter_map(|name| raw.pointer(name));
        present.into_iter().find_map(|value| count(Some(value), odd))
    };
    let (input_tokens, told) = (number(&INPUT), number(&OUTPUT));
    let (total, reasoning_tokens) = (number(&["/total_tokens"]), number(&REASONING));
    if input_tokens.is_none() && told.is_none() {
        return None;
    }
    let cached_input_tokens = number(&CACHED);
    let beside = reasoning_beside(total, input_tokens, told, reasoning_tokens);
    odd.add_if(beside > 0, Tolerated::UsageForm);
    let rest = || total?.checked_sub(input_tokens?);
    Some(Usage {
        input_tokens,
        output_tokens: told.map(|told| told + beside).or_else(rest),
        cached_input_tokens,
        reasoning_tokens,
        estimated: false,
        raw: Some(raw),
    })
}

/// Reasoning that is not counted in the output, as the total shows (xAI).
fn reasoning_beside(total: Option<u64>, input: Option<u64>, output: Option<u64>, reasoning: Option<u64>) -> u64 {
    let beside = |total: u64, input: u64, output: u64, reasoning: u64| {
        let rest = total.checked_sub(input)?.checked_sub(output)?;
        (rest == reasoning).then_some(rest)
    };
    let found = match (total, input, output, reasoning) {
        (Some(total), Some(input), Some(output), Some(reasoning)) => beside(total, input, output, reasoning),
        _ => None,
    };
    found.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Numbers = (Option<u64>, Option<u64>, Option<u64>, Option<u64>);

    /// Input, output, cached and reasoning tokens, and the number of deviations.
    fn read(raw: Value) -> (Numbers, usize) {
        let mut odd = Deviations::default();
        let usage = read_usage(raw, &mut odd).unwrap_or_default();
        let numbers = (
            usage.input_tokens,
            usage.output_tokens,
            usage.cached_input_tokens,
            usage.reasoning_tokens,
        );
        (numbers, odd.iter().count())
    }

    #[test]
    fn reasoning_beside_the_output_is_part_of_it() {
        let xai = json!({"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135,
            "prompt_tokens_details": {"cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 94}});
        assert_eq!(read(xai), ((Some(32), Some(103), Some(6), Some(94)), 1));
        let openai = json!({"prompt_tokens": 32, "completion_tokens": 103, "total_tokens": 135,
            "completion_tokens_details": {"reasoning_tokens": 94}});
        assert_eq!(read(openai), ((Some(32), Some(103), None, Some(94)), 0));
        let other_total = json!({"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 50,
            "completion_tokens_details": {"reasoning_tokens": 4}});
        assert_eq!(read(other_total).0.1, Some(9), "no total that shows it");
    }

    #[test]
    fn providers_have_names_and_forms_of_their_own() {
        for (raw, expected, odd) in [
            (
                json!({"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4}),
                (Some(9), Some(1), Some(4), None),
                0,
            ),
            (
                json!({"prompt_tokens": 9, "completion_tokens": 1, "cached_tokens": 4}),
                (Some(9), Some(1), Some(4), None),
                0,
            ),
            (
                json!({"prompt_tokens": 9.0, "completion_tokens": "1"}),
                (Some(9), Some(1), None, None),
                1,
            ),
            (
                json!({"input_tokens": 9, "output_tokens": 1, "reasoning_tokens": 1}),
                (Some(9), Some(1), None, Some(1)),
                0,
            ),
            (json!([{"prompt_tokens": 9}]), (Some(9), None, None, None), 1),
            (
                json!({"prompt_tokens": 9, "total_tokens": 10}),
                (Some(9), Some(1), None, None),
                0,
            ),
            (json!({"prompt_tokens": -9}), (None, None, None, None), 1),
            (json!("none"), (None, None, None, None), 0),
            (json!([]), (None, None, None, None), 1),
        ] {
            assert_eq!(read(raw.clone()), (expected, odd), "{raw}");
        }
    }
}

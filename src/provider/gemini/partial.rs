//! Arguments that come value by value (`partialArgs`), folded into one object.
//!
//! Source: docs.cloud.google.com/vertex-ai/generative-ai/docs/multimodal/function-calling, "Streaming function call
//! arguments" (2026-11). We do not ask for them, but a proxy in between might.

use serde_json::{Map, Number, Value};

use super::wire::PartialArg;
use crate::{
    chat::number::oversized_integer,
    provider::{ProviderError, error::Kind},
};

/// The most bytes of arguments that are kept.
const MAX_SIZE: usize = 4 << 20;
/// The deepest path: as deep as the JSON parser goes.
const MAX_DEPTH: usize = 100;

/// A call whose arguments are still coming.
pub(super) struct Streamed {
    /// Which call.
    pub(super) index: usize,
    arguments: Value,
    size: usize,
    /// An integer that does not fit into 64 bits: a [`Value`] cannot hold its digits.
    oversized: Option<String>,
}

impl Streamed {
    /// A call, and what arguments it came with.
    pub(super) fn new(index: usize, arguments: Option<&str>) -> Self {
        let oversized = arguments.and_then(oversized_integer);
        let arguments = arguments.and_then(|text| serde_json::from_str(text).ok());
        let arguments = arguments
            .filter(Value::is_object)
            .unwrap_or_else(|| Value::Object(Map::new()));
        Self {
            index,
            arguments,
            size: 0,
            oversized,
        }
    }

    /// The arguments so far, as JSON text; only the integer where one cannot be held, because the
    /// call is refused for it and the refusal names it.
    pub(super) fn arguments(&self) -> String {
        match &self.oversized {
            Some(integer) => integer.clone(),
            None => self.arguments.to_string(),
        }
    }

    /// Takes one value: a piece of a string goes on with what is there.
    pub(super) fn take(&mut self, part: PartialArg<'_>) -> Result<(), ProviderError> {
        let wrong = |what: &str| ProviderError::new(Kind::Protocol, format!("partialArgs: {what}"));
        self.size += part.json_path.len() + part.string_value.as_deref().map_or(0, str::len);
        if self.size > MAX_SIZE {
            return Err(wrong("too many"));
        }
        let place = steps(&part.json_path)
            .and_then(|steps| place(&mut self.arguments, steps))
            .ok_or_else(|| wrong("a jsonPath that leads nowhere"))?;
        match (part.string_value, part.number_value, part.bool_value) {
            (Some(more), ..) => match place {
                Value::String(text) => text.push_str(&more),
                place => *place = Value::String(more.into_owned()),
            },
            (None, Some(number), _) => {
                self.oversized = self.oversized.take().or_else(|| oversized_integer(number.get()));
                let number: Number =
                    serde_json::from_str(number.get()).map_err(|_| wrong("a numberValue that is none"))?;
                *place = Value::Number(number);
            }
            (None, None, Some(truth)) => *place = Value::Bool(truth),
            (None, None, None) => {} // a place that was made is null already
        }
        Ok(())
    }
}

/// A step into a value.
enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

/// The steps of `$.name`, `$.list[0].name`, `$['a name']`.
fn steps(path: &str) -> Option<Vec<Step<'_>>> {
    let mut rest = path.strip_prefix('$')?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if steps.len() == MAX_DEPTH {
            return None;
        }
        if let Some(named) = rest.strip_prefix('.') {
            let end = named.find(['.', '[']).unwrap_or(named.len());
            steps.push(Step::Field(Some(&named[..end]).filter(|name| !name.is_empty())?));
            rest = &named[end..];
        } else {
            let inner = rest.strip_prefix('[')?;
            let quote = inner.chars().next().filter(|c| matches!(c, '\'' | '"'));
            let (step, after) = match quote {
                Some(quote) => {
                    let (name, after) = inner[1..].split_once(quote)?;
                    (Step::Field(name), after.strip_prefix(']')?)
                }
                None => {
                    let (number, after) = inner.split_once(']')?;
                    (Step::Item(number.parse().ok()?), after)
                }
            };
            steps.push(step);
            rest = after;
        }
    }
    (!steps.is_empty()).then_some(steps)
}

/// The place that steps lead to, made on the way if it is not there. Lists grow by one at a time.
fn place<'a>(mut at: &'a mut Value, steps: Vec<Step<'_>>) -> Option<&'a mut Value> {
    for step in steps {
        at = match step {
            Step::Field(name) => {
                if at.is_null() {
                    *at = Value::Object(Map::new());
                }
                at.as_object_mut()?.entry(name).or_insert(Value::Null)
            }
            Step::Item(index) => {
                if at.is_null() {
                    *at = Value::Array(Vec::new());
                }
                let list = at.as_array_mut()?;
                if index == list.len() {
                    list.push(Value::Null);
                }
                list.get_mut(index)?
            }
        };
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(path, value)` pairs, folded.
    fn fold(parts: &[&str]) -> Result<String, ProviderError> {
        let mut call = Streamed::new(0, None);
        for part in parts {
            call.take(serde_json::from_str(part).unwrap())?;
        }
        Ok(call.arguments())
    }

    #[test]
    fn values_find_their_places() {
        let folded = fold(&[
            r#"{"jsonPath":"$.a","stringValue":"x\"","willContinue":true}"#,
            r#"{"jsonPath":"$.a","stringValue":"y"}"#,
            r#"{"jsonPath":"$.b.c[0].d","numberValue":2}"#,
            r#"{"jsonPath":"$.b.c[1]","boolValue":true}"#,
            r#"{"jsonPath":"$['e f']","nullValue":"NULL_VALUE"}"#,
            r#"{"jsonPath":"$.g","willContinue":true}"#,
            r#"{"jsonPath":"$.g","stringValue":"z"}"#,
        ]);
        let expected = serde_json::json!({"a": "x\"y", "b": {"c": [{"d": 2}, true]}, "e f": null, "g": "z"});
        assert_eq!(serde_json::from_str::<Value>(&folded.unwrap()).unwrap(), expected);
    }

    #[test]
    fn an_integer_that_cannot_be_held_is_all_that_is_left() {
        let part = r#"{"jsonPath":"$.a","numberValue":123456789012345678901234}"#;
        let more = r#"{"jsonPath":"$.b","stringValue":"x"}"#;
        assert_eq!(fold(&[part, more]).unwrap(), "123456789012345678901234");
        let begun = Streamed::new(0, Some(r#"{"a":123456789012345678901234}"#));
        assert_eq!(begun.arguments(), "123456789012345678901234");
    }

    #[test]
    fn a_path_that_leads_nowhere_breaks_the_answer_and_not_the_gateway() {
        let deep = format!("${}", ".a".repeat(5000));
        for path in [
            "",
            "$",
            "a",
            "$.",
            "$[",
            "$[x]",
            "$[7]",
            "$[99999999999999999999]",
            "$['a",
            "$.a..b",
            "$[0]",
            &deep,
        ] {
            let part = format!(r#"{{"jsonPath":{},"numberValue":1}}"#, Value::from(path));
            assert_eq!(fold(&[&part]).unwrap_err().kind, Kind::Protocol, "{path}");
        }
        let through = [
            r#"{"jsonPath":"$.a","numberValue":1}"#,
            r#"{"jsonPath":"$.a.b","numberValue":1}"#,
        ];
        assert!(fold(&through).is_err());
    }
}

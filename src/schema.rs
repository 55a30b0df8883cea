//! JSON Schemas that come from outside: compiled without fetching anything, checked to be no trap, and applied.
//!
//! The only place that knows the `jsonschema` crate. A schema from a request is bounded in its size, in what its
//! references unfold to, and in its patterns; what it costs to apply is known before, by the answer's size, and it is not
//! applied where that is more than a second. What takes time is done [aside](Aside), a little at a time.

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

mod aside;
mod object;
mod pattern;
mod weight;

pub use aside::{Aside, CHECKING, COMPILING, Place};
pub use object::widened;
pub use pattern::{drop_all_patterns, drop_unchecked_patterns};
use weight::{Weight, size, survey};

/// How large a schema may be, in bytes of JSON.
const MAX_BYTES: usize = 64 << 10;
/// How large a pattern may become, in bytes.
const MAX_PATTERN: usize = 256 << 10;
/// How large all of them may become together, each an equal share: `.{90}`, six bytes, becomes a tenth of a megabyte.
const MAX_ALL_PATTERNS: usize = 8 << 20;
/// How many steps it may take to say whether a value fits, and as many again to say where not: each is a second, where
/// every subschema has to be tried at every place.
const MAX_WORK: usize = 200_000_000;
/// How many subschemas times places it may take to say where a value does not fit: each can cost half a kilobyte, and what
/// was wrong there.
const MAX_EFFORT: usize = 200_000;
/// How much text counts as a place then.
const TEXT: usize = 512;
/// Up to how many steps, and bytes of text, it is quick to say whether and where a value fits.
const QUICK: (usize, usize) = (100_000, 64 << 10);
/// How many steps a value is thought to take where a schema's unfolding has no end.
const ENDLESS: usize = 50_000;
/// How many differences are told.
const MAX_TOLD: usize = 5;
/// How much of one difference is told, in characters.
const MAX_SENTENCE: usize = 300;

/// Whether a schema may refer to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recursion {
    /// It may: it is from somebody who is trusted to mean well.
    Allowed,
    /// It may not.
    Refused,
}

/// A schema, compiled.
#[derive(Debug)]
pub struct Schema {
    validator: Validator,
    /// What it weighs; where that has no end, as if its circles were gone round once.
    weight: Weight,
    /// Whether that has no end.
    endless: bool,
}

impl Schema {
    /// Compiles a schema. Nothing is ever fetched.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn compile(schema: &Value, recursion: Recursion) -> Result<Self, String> {
        if !matches!(schema, Value::Object(_)) {
            return Err("a schema must be an object".into());
        }
        let text = schema.to_string();
        if text.len() > MAX_BYTES {
            return Err("a schema may have 64 KiB as JSON".into());
        }
        let id = if text.contains("draft-04") { "id" } else { "$id" };
        let found = survey(schema, recursion, id)?;
        let share = MAX_ALL_PATTERNS / found.patterns.max(1);
        let patterns = PatternOptions::regex()
            .size_limit(share.min(MAX_PATTERN))
            .dfa_size_limit(MAX_PATTERN);
        let compiled = jsonschema::options()
            .with_pattern_options(patterns)
            .offline()
            .build(schema);
        compiled
            .map(|validator| Self {
                validator,
                weight: found.weight,
                endless: found.endless,
            })
            .map_err(|e| format!("not a JSON Schema: {}", shorten(&e.to_string())))
    }

    /// Whether it takes no time worth speaking of to say whether a value fits, and where it does not.
    pub fn is_quick(&self, value: &Value) -> bool {
        let size = size(value);
        let steps = self.weight.whether.of(size).saturating_add(self.weight.again.of(size));
        let least = if self.endless {
            ENDLESS.saturating_mul(size.0)
        } else {
            0
        };
        steps.max(least) <= QUICK.0 && size.1 <= QUICK.1
    }

    /// Whether a value fits.
    ///
    /// # Errors
    /// Where it does not, in words that a model can act on.
    pub fn admits(&self, value: &Value) -> Result<(), String> {
        let size = size(value);
        if self.weight.whether.of(size) > MAX_WORK {
            return Err("it is too large to be checked against such a schema".into());
        }
        if self.validator.is_valid(value) {
            return Ok(());
        }
        // To say where, all that was tried at every place is kept, even for the first difference.
        let effort = self.weight.shapes.saturating_mul(size.0 + size.1 / TEXT);
        if self.endless || effort > MAX_EFFORT || self.weight.again.of(size) > MAX_WORK {
            return Err("it does not fit the schema; there is too much of it to say where".into());
        }
        let mut told = Vec::new();
        for error in self.validator.iter_errors(value).take(MAX_TOLD) {
            let place = error.instance_path().to_string();
            let place = if place.is_empty() { "/".to_owned() } else { place };
            told.push(format!("at {place}: {}", shorten(&error.to_string())));
        }
        Err(told.join("; "))
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_SENTENCE) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::LazyLock,
        time::{Duration, Instant},
    };

    use serde_json::json;

    use super::*;

    /// The time that this thread has had of a processor: what others do beside it does not count. Where the kernel does not
    /// tell, the time that has passed.
    fn worked() -> Duration {
        static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
        let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
        let nanos = told.and_then(|told| told.split(' ').next()?.parse().ok());
        nanos.map_or_else(|| BEGAN.elapsed(), Duration::from_nanos)
    }

    #[test]
    fn what_fits_fits_and_what_does_not_is_told() {
        let schema = json!({
            "type": "object", "required": ["n", "who"], "additionalProperties": false,
            "properties": {"n": {"type": "integer"}, "who": {"$ref": "#/$defs/name"}},
            "$defs": {"name": {"type": "string", "pattern": "^[a-z]+$"}},
        });
        let schema = Schema::compile(&schema, Recursion::Refused).unwrap();
        assert_eq!(schema.admits(&json!({"n": 1, "who": "ada"})), Ok(()));
        let why = schema.admits(&json!({"n": "1", "who": "Ada"})).unwrap_err();
        assert!(why.contains("at /n:") && why.contains("at /who:"), "{why}");
        assert!(schema.admits(&json!({"n": 1})).unwrap_err().contains("who"));
    }

    #[test]
    fn traps_are_refused_and_nothing_is_fetched() {
        let bomb = (0..20).fold(json!({"l20": {"type": "string"}}), |mut defs, level| {
            let next = json!({"$ref": format!("#/$defs/l{}", level + 1)});
            defs[format!("l{level}")] = json!({"anyOf": [next.clone(), next.clone(), next]});
            defs
        });
        for (what, schema) in [
            ("no object", json!([])),
            ("http", json!({"$ref": "http://127.0.0.1:1/x"})),
            ("file", json!({"properties": {"a": {"$ref": "file:///etc/passwd"}}})),
            ("relative", json!({"$ref": "other.json"})),
            (
                "itself",
                json!({"type": "object", "properties": {"next": {"$ref": "#"}}}),
            ),
            (
                "round about",
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"items": {"$ref": "#/$defs/a"}}}}),
            ),
            (
                "around",
                json!({"properties": {"a": {"items": {"$ref": "#/properties/a"}}}}),
            ),
            (
                "under a name",
                json!({"properties": {"default": {"items": {"$ref": "#"}}}}),
            ),
            (
                "under a name of draft 7",
                json!({"dependencies": {"default": {"items": {"$ref": "#"}}}}),
            ),
            (
                "elsewhere in draft 4",
                json!({"$schema": "http://json-schema.org/draft-04/schema#", "definitions": {"a": {}}, "items": {
                    "id": "http://x/", "$ref": "#/definitions/a", "definitions": {"a": {"items": {"$ref": "#/definitions/a"}}},
                }}),
            ),
            (
                "elsewhere in a part of draft 4",
                json!({"definitions": {"a": {}}, "items": {
                    "$schema": "http://json-schema.org/draft-04/schema#",
                    "id": "http://x/", "$ref": "#/definitions/a", "definitions": {"a": {"items": {"$ref": "#/definitions/a"}}},
                }}),
            ),
            (
                "elsewhere",
                json!({"$defs": {"x": {"$id": "http://x/", "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}}}}),
            ),
            ("nowhere", json!({"$ref": "#/$defs/none"})),
            ("bomb", json!({"$ref": "#/$defs/l0", "$defs": bomb})),
            ("repeated repetition", json!({"pattern": "(a+)+$"})),
            ("look-around", json!({"pattern": "(?=a)b"})),
            ("back-reference", json!({"patternProperties": {"(a)\\1": {}}})),
            ("no type", json!({"type": "thing"})),
            ("large", json!({"description": "x".repeat(MAX_BYTES)})),
        ] {
            let began = worked();
            assert!(Schema::compile(&schema, Recursion::Refused).is_err(), "{what}");
            assert!((worked() - began).as_secs() < 5, "{what}");
        }
    }

    #[test]
    fn many_patterns_cost_no_more_than_a_few() {
        let named = |count: usize, pattern: &str| {
            let named = (0..count).map(|at| (format!("{pattern}{at}"), json!({"type": "string"})));
            json!({"patternProperties": Value::Object(named.collect())})
        };
        for (what, schema, fine) in [
            ("many", named(weight::MAX_PATTERNS, "^[a-z]{1,8}_"), true),
            ("too many", named(weight::MAX_PATTERNS + 1, "a"), false),
            ("too many that are large", named(weight::MAX_PATTERNS, ".{50}"), false),
            ("a few that are large", named(20, ".{50}"), true),
            ("one that is too large", named(1, ".{900}"), false),
        ] {
            let began = worked();
            let compiled = Schema::compile(&schema, Recursion::Refused);
            assert_eq!(compiled.is_ok(), fine, "{what}: {:?}", compiled.err());
            let took = worked() - began;
            assert!(took.as_secs() < 30, "{what}: {took:?}");
        }
    }

    #[test]
    fn to_say_where_a_value_does_not_fit_costs_no_more_than_it_is_worth() {
        let alternatives = vec![json!({"type": "string"}); 500];
        let schema = Schema::compile(&json!({"items": {"anyOf": alternatives}}), Recursion::Refused).unwrap();
        assert!(schema.admits(&json!([1])).unwrap_err().contains("at /0"));
        let began = worked();
        let why = schema.admits(&json!(vec![1; 20_000])).unwrap_err();
        assert!(why.contains("too much of it"), "{why}");
        let long: Vec<Value> = (0..500).map(|n| json!({"minLength": n + (1 << 20)})).collect();
        let long = Schema::compile(&json!({"anyOf": long}), Recursion::Refused).unwrap();
        assert_eq!(long.admits(&json!("x".repeat(1 << 20))), Ok(()));
        let why = long.admits(&json!("x".repeat(1 << 19))).unwrap_err();
        assert!(why.contains("too much of it"), "{why}");
        let alternatives = vec![json!({"type": "string"}); 3_000];
        let schema = Schema::compile(&json!({"items": {"anyOf": alternatives}}), Recursion::Refused).unwrap();
        let why = schema.admits(&json!(vec![1; 100_000])).unwrap_err();
        assert!(why.contains("too large"), "{why}");
        let twice = json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]});
        let tree = json!({"properties": {"a": twice}, "required": ["b"]});
        let schema = Schema::compile(&tree, Recursion::Allowed).unwrap();
        let deep = (0..100).fold(json!({}), |inner, _| json!({"a": inner}));
        assert!(schema.admits(&deep).is_err());
        assert!((worked() - began).as_secs() < 5);
    }

    #[test]
    fn what_cannot_be_checked_in_a_second_is_not_checked() {
        let objects: Vec<Value> = (0..5_000).map(|n| json!({"a": n})).collect();
        let hungry = vec![json!({"pattern": "[a-m].{100}0"}); 3];
        for (what, schema, value) in [
            (
                "enum",
                json!({"items": {"enum": objects}}),
                json!(vec![json!({"a": -1}); 20_000]),
            ),
            (
                "const",
                json!({"items": {"const": vec![1; 20_000]}}),
                json!(vec![1; 20_000]),
            ),
            ("patterns", json!({"anyOf": hungry}), json!("a".repeat(4 << 20))),
        ] {
            let schema = Schema::compile(&schema, Recursion::Refused).unwrap();
            assert!(!schema.is_quick(&value), "{what}");
            let why = schema.admits(&value).unwrap_err();
            assert!(why.contains("too large to be checked"), "{what}: {why}");
        }
    }

    #[test]
    fn what_schemas_ordinarily_ask_of_long_answers_is_checked() {
        let names: Vec<String> = (0..200).map(|n| format!("name-{n}")).collect();
        let objects: Vec<Value> = (0..50).map(|n| json!({"x": n, "y": n})).collect();
        let person = json!({
            "type": "object", "required": ["mail", "born", "id"], "additionalProperties": false,
            "properties": {
                "mail": {"type": "string", "pattern": r"^[^@\s]+@[^@\s]+\.[^@\s]+$", "maxLength": 200},
                "born": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$", "format": "date"},
                "id": {"pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
                "kind": {"anyOf": [{"enum": names}, {"type": "null"}]},
            },
        });
        let ada = json!({"mail": "ada@example.org", "born": "1815-12-10", "kind": "name-7",
            "id": "00000000-0000-4000-8000-000000000000"});
        for (what, schema, one, wrong) in [
            ("strings", json!({"enum": names}), json!("name-199"), json!("name-200")),
            (
                "numbers",
                json!({"enum": (0..200).collect::<Vec<_>>()}),
                json!(199),
                json!(200),
            ),
            (
                "objects",
                json!({"enum": objects}),
                json!({"x": 7, "y": 7}),
                json!({"x": 7}),
            ),
            ("people", person, ada, json!({"mail": "ada"})),
        ] {
            let schema = json!({"type": "array", "items": {"$ref": "#/$defs/one"}, "$defs": {"one": schema}});
            let schema = Schema::compile(&schema, Recursion::Refused).unwrap();
            assert_eq!(schema.admits(&json!(vec![one; 1_000])), Ok(()), "{what}");
            let why = schema.admits(&json!([wrong])).unwrap_err();
            assert!(why.contains("at /0"), "{what}: {why}");
        }
    }

    #[test]
    fn what_takes_time_is_known_before() {
        let schema = Schema::compile(&json!({"items": {"anyOf": vec![json!({}); 100]}}), Recursion::Refused).unwrap();
        assert!(schema.is_quick(&json!([1, 2, {"a": "b"}])));
        assert!(!schema.is_quick(&json!(vec![1; 1000])) && !schema.is_quick(&json!("x".repeat(100_000))));
        let tree = Schema::compile(&json!({"items": {"$ref": "#"}}), Recursion::Allowed).unwrap();
        assert!(tree.is_quick(&json!([])) && !tree.is_quick(&json!([[1], [2]])));
    }

    #[test]
    fn a_trusted_schema_may_be_a_tree() {
        let tree = json!({"type": "object", "properties": {"left": {"$ref": "#"}}, "additionalProperties": false});
        let schema = Schema::compile(&tree, Recursion::Allowed).unwrap();
        assert_eq!(schema.admits(&json!({"left": {"left": {}}})), Ok(()));
        assert!(schema.admits(&json!({"left": {"right": {}}})).is_err());
    }
}

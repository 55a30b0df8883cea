//! JSON Schemas that come from outside: compiled without fetching anything, checked to be no trap, and applied.
//!
//! The only place that knows the `jsonschema` crate. A schema from a request is bounded in its size, in what its
//! references unfold to, and in its patterns, so that applying it costs no more than reading the answer.

use std::collections::BTreeMap;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

/// How large a schema may be, in bytes of JSON.
const MAX_BYTES: usize = 64 << 10;
/// How many subschemas it may have, its references unfolded.
const MAX_UNFOLDED: usize = 10_000;
/// How many patterns a schema may have.
const MAX_PATTERNS: usize = 500;
/// How large a pattern may become, in bytes.
const MAX_PATTERN: usize = 256 << 10;
/// How large all of them may become together, each an equal share: `.{90}`, six bytes, becomes a tenth of a megabyte.
const MAX_ALL_PATTERNS: usize = 8 << 20;
/// How many subschemas times places it may take to say whether a value fits: a second, where each has to be tried at each.
const MAX_WORK: usize = 200_000_000;
/// How many subschemas times places it may take to say where a value does not fit: each can cost half a kilobyte.
const MAX_EFFORT: usize = 200_000;
/// Up to how many subschemas times places, and bytes of text, it is quick to say whether a value fits.
const QUICK: (usize, usize) = (20_000, 64 << 10);
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

/// Keywords that hold schemas by name.
const NAMED: [&str; 6] = [
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
    "dependencies",
];

/// A schema, compiled.
#[derive(Debug)]
pub struct Schema {
    validator: Validator,
    /// How many subschemas it unfolds to; `None` if that has no end.
    weight: Option<usize>,
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
        let mut survey = Survey {
            root: schema,
            recursion,
            id: if text.contains("draft-04") { "id" } else { "$id" },
            endless: false,
            patterns: 0,
            known: BTreeMap::new(),
            open: Vec::new(),
        };
        let weight = survey.weigh(schema)?;
        let weight = Some(weight).filter(|_| !survey.endless);
        let share = MAX_ALL_PATTERNS / survey.patterns.max(1);
        let patterns = PatternOptions::regex()
            .size_limit(share.min(MAX_PATTERN))
            .dfa_size_limit(MAX_PATTERN);
        let compiled = jsonschema::options()
            .with_pattern_options(patterns)
            .offline()
            .build(schema);
        compiled
            .map(|validator| Self { validator, weight })
            .map_err(|e| format!("not a JSON Schema: {}", shorten(&e.to_string())))
    }

    /// Whether it takes no time worth speaking of to say whether a value fits.
    pub fn is_quick(&self, value: &Value) -> bool {
        let weight = self.weight.unwrap_or(MAX_UNFOLDED);
        weight.saturating_mul(places(value)) <= QUICK.0 && letters(value) <= QUICK.1
    }

    /// Whether a value fits.
    ///
    /// # Errors
    /// Where it does not, in words that a model can act on.
    pub fn admits(&self, value: &Value) -> Result<(), String> {
        let work = self.weight.map(|weight| weight.saturating_mul(places(value)));
        if work.is_some_and(|work| work > MAX_WORK) {
            return Err("it is too large to be checked against such a schema".into());
        }
        if self.validator.is_valid(value) {
            return Ok(());
        }
        // To say where, all that was tried at every place is kept, even for the first difference.
        let effort = self.weight.unwrap_or(usize::MAX).saturating_mul(places(value));
        if effort > MAX_EFFORT {
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

/// How many bytes of text there are in a value, names and all.
fn letters(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(all) => all.iter().map(letters).sum(),
        Value::Object(all) => all.iter().map(|(name, value)| name.len() + letters(value)).sum(),
        _ => 0,
    }
}

/// How many values there are in a value.
fn places(value: &Value) -> usize {
    match value {
        Value::Array(all) => 1 + all.iter().map(places).sum::<usize>(),
        Value::Object(all) => 1 + all.values().map(places).sum::<usize>(),
        _ => 1,
    }
}

/// A walk over a schema that counts what it unfolds to.
struct Survey<'a> {
    root: &'a Value,
    recursion: Recursion,
    /// What a name is under that a part of the schema gives itself. In draft 4, which a part can be of for itself, it was
    /// another.
    id: &'static str,
    /// Whether there was a circle, or a reference that may be one.
    endless: bool,
    /// How many patterns there were.
    patterns: usize,
    /// What references unfold to.
    known: BTreeMap<&'a str, usize>,
    /// References that the walk is inside of.
    open: Vec<&'a str>,
}

impl<'a> Survey<'a> {
    /// How many subschemas there are in and under `place`.
    fn weigh(&mut self, place: &'a Value) -> Result<usize, String> {
        let mut weight = 1_usize;
        match place {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value) {
                        ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(to)) => weight += self.follow(to)?,
                        ("pattern", Value::String(pattern)) => self.read(pattern)?,
                        ("patternProperties", Value::Object(patterns)) => {
                            patterns.keys().try_for_each(|pattern| self.read(pattern))?;
                        }
                        // Data, not schemas.
                        ("const" | "enum" | "default" | "examples", _) => continue,
                        // A schema with a name of its own has references of its own.
                        (id, Value::String(_)) if (id == "$id" || id == self.id) && !std::ptr::eq(place, self.root) => {
                            return Err("only the schema itself may have an $id".into());
                        }
                        _ => {}
                    }
                    weight += match value {
                        // Their keys are names, whatever they look like.
                        Value::Object(named) if NAMED.contains(&name.as_str()) => named
                            .values()
                            .try_fold(1, |sum, one| self.weigh(one).map(|weight| sum + weight))?,
                        value => self.weigh(value)?,
                    };
                }
            }
            Value::Array(all) => {
                for one in all {
                    weight += self.weigh(one)?;
                }
            }
            _ => {}
        }
        if weight > MAX_UNFOLDED {
            return Err("a schema may unfold to 10000 subschemas".into());
        }
        Ok(weight)
    }

    /// Reads a pattern, and counts it.
    fn read(&mut self, pattern: &str) -> Result<(), String> {
        self.patterns += 1;
        if self.patterns > MAX_PATTERNS {
            return Err(format!("a schema may have {MAX_PATTERNS} patterns"));
        }
        tame(pattern)
    }

    fn follow(&mut self, to: &'a str) -> Result<usize, String> {
        let Some(pointer) = to.strip_prefix('#') else {
            return Err(format!(
                "{} is not a reference into the schema itself; nothing is fetched",
                shorten(&format!("{to:?}"))
            ));
        };
        if self.open.contains(&to) {
            self.endless = true;
            return match self.recursion {
                Recursion::Allowed => Ok(1),
                Recursion::Refused => Err("a schema must not refer to itself".into()),
            };
        }
        if let Some(known) = self.known.get(to) {
            return Ok(*known);
        }
        // An anchor or an encoded name is left to the compiler, unless it could hide a circle.
        let target = if pointer.is_empty() {
            Some(self.root)
        } else {
            self.root.pointer(pointer)
        };
        let Some(target) = target else {
            self.endless = true;
            return match self.recursion {
                Recursion::Allowed => Ok(1),
                Recursion::Refused => Err(format!("{} leads nowhere", shorten(&format!("{to:?}")))),
            };
        };
        self.open.push(to);
        // The root holds the place where the walk is, so a reference to it, or to anything around, is a circle.
        let weight = self.weigh(target)?;
        self.open.pop();
        self.known.insert(to, weight);
        Ok(weight)
    }
}

/// Refuses a pattern that is not plainly cheap: what a linear engine cannot read, and repetitions of repetitions.
fn tame(pattern: &str) -> Result<(), String> {
    use regex_syntax::hir::{Hir, HirKind};
    fn nested(hir: &Hir, inside: bool) -> bool {
        match hir.kind() {
            HirKind::Repetition(repetition) => {
                let endless = repetition.max.is_none_or(|max| max > 100);
                (endless && inside) || nested(&repetition.sub, inside || endless)
            }
            HirKind::Capture(capture) => nested(&capture.sub, inside),
            HirKind::Concat(all) | HirKind::Alternation(all) => all.iter().any(|one| nested(one, inside)),
            _ => false,
        }
    }
    let name = shorten(&format!("{pattern:?}"));
    let parsed = regex_syntax::ParserBuilder::new().nest_limit(50).build().parse(pattern);
    match parsed {
        Ok(hir) if !nested(&hir, false) => Ok(()),
        Ok(_) => Err(format!("the pattern {name} repeats a repetition")),
        Err(_) => Err(format!("the pattern {name} is not one that takes linear time")),
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
    use serde_json::json;

    use super::*;

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
            let began = std::time::Instant::now();
            assert!(Schema::compile(&schema, Recursion::Refused).is_err(), "{what}");
            assert!(began.elapsed().as_secs() < 5, "{what}");
        }
    }

    #[test]
    fn many_patterns_cost_no_more_than_a_few() {
        let named = |count: usize, pattern: &str| {
            let named = (0..count).map(|at| (format!("{pattern}{at}"), json!({"type": "string"})));
            json!({"patternProperties": Value::Object(named.collect())})
        };
        for (what, schema, fine) in [
            ("many", named(MAX_PATTERNS, "^[a-z]{1,8}_"), true),
            ("too many", named(MAX_PATTERNS + 1, "a"), false),
            ("too many that are large", named(MAX_PATTERNS, ".{50}"), false),
            ("a few that are large", named(20, ".{50}"), true),
            ("one that is too large", named(1, ".{900}"), false),
        ] {
            let began = std::time::Instant::now();
            let compiled = Schema::compile(&schema, Recursion::Refused);
            assert_eq!(compiled.is_ok(), fine, "{what}: {:?}", compiled.err());
            assert!(began.elapsed().as_secs() < 30, "{what}: {:?}", began.elapsed());
        }
    }

    #[test]
    fn to_say_where_a_value_does_not_fit_costs_no_more_than_it_is_worth() {
        let alternatives = vec![json!({"type": "string"}); 500];
        let schema = Schema::compile(&json!({"items": {"anyOf": alternatives}}), Recursion::Refused).unwrap();
        assert!(schema.admits(&json!([1])).unwrap_err().contains("at /0"));
        let began = std::time::Instant::now();
        let why = schema.admits(&json!(vec![1; 20_000])).unwrap_err();
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
        assert!(began.elapsed().as_secs() < 5);
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

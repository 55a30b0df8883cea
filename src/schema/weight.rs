//! What a schema costs to apply, found by a walk over it that follows its references: how many subschemas it unfolds to,
//! what there is to compare with, and what its patterns read.

use std::{collections::BTreeMap, iter::Sum, ops::Add};

use serde_json::Value;

use super::{Recursion, shorten};

/// How many subschemas a schema may have, its references unfolded.
const MAX_UNFOLDED: usize = 10_000;
/// How many steps one value may take: what takes more could hardly be checked anywhere.
const MAX_STEPS: usize = 1_000_000;
/// How many patterns a schema may have.
pub(super) const MAX_PATTERNS: usize = 500;
/// How many bytes of text are compared in a step.
const COMPARED: usize = 32;
/// How many steps it takes to count a thousand letters, or to look a text of so many up.
const COUNTED: usize = 20;
/// How many to see whether a thousand letters are what `format` and the like ask for.
const UNDERSTOOD: usize = 6_000;
/// How many to see whether a thousand letters were there before.
const HASHED: usize = 100;
/// How many steps a pattern takes to read a thousand letters, for each place in it.
const MATCHED: usize = 1000;

/// Keywords that hold schemas by name.
pub(super) const NAMED: [&str; 6] = [
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
    "dependencies",
];
/// Keywords under which a value is first tried, and then looked at again: to say what is wrong, or what was looked at.
const TRIED: [&str; 8] = ["anyOf", "oneOf", "allOf", "not", "if", "contains", "then", "else"];

/// What it takes to do something with a value, in steps of some nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// For each value in it.
    pub place: usize,
    /// For each thousand bytes of text in it.
    pub text: usize,
}

impl Cost {
    /// For a value of so many values and so many bytes of text.
    pub(super) fn of(self, (places, letters): (usize, usize)) -> usize {
        let text = self.text.saturating_mul(letters) / 1000;
        self.place.saturating_mul(places).saturating_add(text)
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            place: self.place.saturating_add(other.place),
            text: self.text.saturating_add(other.text),
        }
    }
}

/// What a schema weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// How many subschemas it unfolds to.
    pub shapes: usize,
    /// What it takes to say whether a value fits.
    pub whether: Cost,
    /// What it takes to say where it does not: at each level, all below is tried again.
    pub again: Cost,
    /// What it takes to say which parts of a value it spoke of, which `unevaluatedProperties` asks at its level.
    marks: Cost,
}

impl Weight {
    /// Of one subschema.
    const ONE: Self = Self::new(1, Cost { place: 1, text: 0 });
    const NONE: Self = Self::new(0, Cost { place: 0, text: 0 });

    const fn new(shapes: usize, cost: Cost) -> Self {
        Self {
            shapes,
            whether: cost,
            again: cost,
            marks: cost,
        }
    }

    /// No subschema, but work.
    const fn work(place: usize, text: usize) -> Self {
        Self::new(0, Cost { place, text })
    }

    /// As what stands under a keyword.
    fn under(mut self, name: &str) -> Self {
        if TRIED.contains(&name) {
            self.again = self.again + self.whether;
            self.marks = self.marks + self.whether;
        } else if name.starts_with("unevaluated") {
            self.marks = self.whether;
        } else if name != "dependentSchemas" {
            self.marks = Cost::default(); // it speaks of what is in the value
        }
        self
    }
}

impl Add for Weight {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            shapes: self.shapes.saturating_add(other.shapes),
            whether: self.whether + other.whether,
            again: self.again + other.again,
            marks: self.marks + other.marks,
        }
    }
}

impl Sum for Weight {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::NONE, Add::add)
    }
}

/// What a walk over a schema found.
#[derive(Debug)]
pub(super) struct Found {
    /// What it weighs.
    pub weight: Weight,
    /// Whether there was a circle, or a reference that may be one.
    pub endless: bool,
    /// How many patterns there were.
    pub patterns: usize,
}

/// Walks over a schema; `id` is what a name is under that a part of it gives itself.
///
/// # Errors
/// Why it is refused, in a sentence.
pub(super) fn survey(schema: &Value, recursion: Recursion, id: &'static str) -> Result<Found, String> {
    let mut survey = Survey {
        root: schema,
        recursion,
        id,
        endless: false,
        patterns: 0,
        known: BTreeMap::new(),
        open: Vec::new(),
    };
    let weight = survey.weigh(schema)?;
    if weight.whether.place > MAX_STEPS {
        return Err(format!("a schema may take {MAX_STEPS} comparisons for each value"));
    }
    Ok(Found {
        weight,
        endless: survey.endless,
        patterns: survey.patterns,
    })
}

/// How many values there are in a value, and how many bytes of text, names and all.
pub(super) fn size(value: &Value) -> (usize, usize) {
    let sum = |(places, letters), (more, text): (usize, usize)| (places + more, letters + text);
    match value {
        Value::String(text) => (1, text.len()),
        Value::Array(all) => all.iter().map(size).fold((1, 0), sum),
        Value::Object(all) => all
            .iter()
            .map(|(name, value)| sum((0, name.len()), size(value)))
            .fold((1, 0), sum),
        _ => (1, 0),
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
    known: BTreeMap<&'a str, Weight>,
    /// References that the walk is inside of.
    open: Vec<&'a str>,
}

impl<'a> Survey<'a> {
    /// What `place` weighs, and all under it.
    fn weigh(&mut self, place: &'a Value) -> Result<Weight, String> {
        let mut weight = Weight::ONE;
        match place {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match (name.as_str(), value) {
                        ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(to)) => {
                            weight = weight + self.follow(to)?;
                        }
                        ("pattern", Value::String(pattern)) => weight = weight + self.read(pattern)?,
                        ("patternProperties", Value::Object(patterns)) => {
                            for pattern in patterns.keys() {
                                weight = weight + self.read(pattern)?;
                            }
                        }
                        // Data, not schemas.
                        ("enum" | "const", _) => {
                            weight = weight + compared(value);
                            continue;
                        }
                        ("default" | "examples", _) => continue,
                        ("minLength" | "maxLength", _) => weight = weight + Weight::work(0, COUNTED),
                        ("uniqueItems", _) => weight = weight + Weight::work(5, HASHED),
                        ("format" | "contentEncoding" | "contentMediaType", _) => {
                            weight = weight + Weight::work(0, UNDERSTOOD);
                        }
                        // A schema with a name of its own has references of its own.
                        (id, Value::String(_)) if (id == "$id" || id == self.id) && !std::ptr::eq(place, self.root) => {
                            return Err("only the schema itself may have an $id".into());
                        }
                        _ => {}
                    }
                    let inside = match value {
                        // Their keys are names, whatever they look like.
                        Value::Object(named) if NAMED.contains(&name.as_str()) => named
                            .values()
                            .try_fold(Weight::ONE, |sum, one| self.weigh(one).map(|weight| sum + weight))?,
                        value => self.weigh(value)?,
                    };
                    weight = weight + inside.under(name);
                }
                let asks = ["unevaluatedProperties", "unevaluatedItems"]
                    .iter()
                    .filter(|name| fields.contains_key(**name));
                for _ in asks {
                    weight.whether = weight.whether + weight.marks;
                    weight.again = weight.again + weight.marks;
                }
            }
            Value::Array(all) => {
                for one in all {
                    weight = weight + self.weigh(one)?;
                }
            }
            _ => {}
        }
        if weight.shapes > MAX_UNFOLDED {
            return Err("a schema may unfold to 10000 subschemas".into());
        }
        Ok(weight)
    }

    /// Reads a pattern, and counts it.
    fn read(&mut self, pattern: &str) -> Result<Weight, String> {
        self.patterns += 1;
        if self.patterns > MAX_PATTERNS {
            return Err(format!("a schema may have {MAX_PATTERNS} patterns"));
        }
        Ok(Weight::work(0, tame(pattern)?.saturating_mul(MATCHED)))
    }

    fn follow(&mut self, to: &'a str) -> Result<Weight, String> {
        let Some(pointer) = to.strip_prefix('#') else {
            return Err(format!(
                "{} is not a reference into the schema itself; nothing is fetched",
                shorten(&format!("{to:?}"))
            ));
        };
        if self.open.contains(&to) {
            self.endless = true;
            return match self.recursion {
                Recursion::Allowed => Ok(Weight::ONE),
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
                Recursion::Allowed => Ok(Weight::ONE),
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

/// What it takes to compare a value with what `enum` or `const` holds.
fn compared(data: &Value) -> Weight {
    let steps = |one: &Value| {
        let (places, letters) = size(one);
        1 + places + letters / COMPARED
    };
    match data {
        // They are found by their hash.
        Value::Array(all) if all.iter().all(|one| one.is_string() || one.is_null()) => Weight::work(10, COUNTED),
        Value::Array(all) => Weight::work(all.iter().map(steps).sum(), COUNTED),
        one => Weight::work(steps(one), COUNTED),
    }
}

/// How many places there are in a pattern. Refuses one that is not plainly cheap: what a linear engine cannot read, and
/// repetitions of repetitions.
pub(super) fn tame(pattern: &str) -> Result<usize, String> {
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
    fn places(hir: &Hir) -> usize {
        match hir.kind() {
            HirKind::Repetition(repetition) => {
                let times = repetition.max.unwrap_or(repetition.min.saturating_add(1));
                places(&repetition.sub).saturating_mul(usize::try_from(times).unwrap_or(usize::MAX))
            }
            HirKind::Capture(capture) => places(&capture.sub),
            HirKind::Concat(all) | HirKind::Alternation(all) => all.iter().map(places).fold(0, usize::saturating_add),
            HirKind::Literal(text) => text.0.len(),
            HirKind::Class(class) if class.maximum_len() > Some(1) => 2,
            HirKind::Empty | HirKind::Look(_) | HirKind::Class(_) => 1,
        }
    }
    let name = shorten(&format!("{pattern:?}"));
    let parsed = regex_syntax::ParserBuilder::new().nest_limit(50).build().parse(pattern);
    match parsed {
        Ok(hir) if !nested(&hir, false) => Ok(places(&hir).max(1)),
        Ok(_) => Err(format!("the pattern {name} repeats a repetition")),
        Err(_) => Err(format!(
            "the pattern {name} is not one that takes linear time: look-around, back-references and classes such as \
             [\\w-.] are not taken"
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn found(schema: &Value) -> Result<Weight, String> {
        survey(schema, Recursion::Refused, "$id").map(|found| found.weight)
    }

    /// Each of `wide` places at one of `wide` places, compared with so many objects.
    fn fanned(wide: usize, entries: usize) -> Value {
        let to = |name: &str| vec![json!({"$ref": format!("#/$defs/{name}")}); wide];
        let entries: Vec<Value> = (0..entries).map(|n| json!({"a": n})).collect();
        json!({"items": {"allOf": to("m")}, "$defs": {"m": {"allOf": to("e")}, "e": {"enum": entries}}})
    }

    #[test]
    fn what_is_compared_counts_wherever_it_is_referred_to() {
        let weight = found(&fanned(5, 100)).unwrap();
        assert!(weight.whether.place > 5 * 5 * 100 * 3, "{weight:?}");
        assert!(weight.shapes < 500, "{weight:?}");
        assert!(found(&fanned(50, 5_000)).unwrap_err().contains("comparisons"));
        let large = found(&json!({"const": {"a": ["x".repeat(3200), 1]}})).unwrap();
        assert!(large.whether.place > 100, "{large:?}");
        let named: Vec<String> = (0..5_000).map(|n| n.to_string()).collect();
        assert!(found(&json!({"enum": named})).unwrap().whether.place < 20);
        // A name, not the keyword.
        let named = found(&json!({"properties": {"enum": {"type": "string"}}})).unwrap();
        assert_eq!(named.whether.text, 0);
    }

    #[test]
    fn a_pattern_counts_by_its_places_and_by_what_it_reads() {
        for (pattern, places) in [
            ("abc", 3),
            ("", 1),
            ("[a-z]{20}[0-9]", 21),
            ("^(a|bc)*$", 5),
            (".{100}", 200),
        ] {
            assert_eq!(tame(pattern), Ok(places), "{pattern}");
            let weight = found(&json!({"pattern": pattern})).unwrap();
            assert_eq!(weight.whether.of((0, 1)), places, "{pattern}");
            let named = found(&json!({"patternProperties": {pattern: {}}})).unwrap();
            assert_eq!(named.whether.text, weight.whether.text, "{pattern}");
        }
        let twice =
            json!({"allOf": [{"$ref": "#/$defs/p"}, {"$ref": "#/$defs/p"}], "$defs": {"p": {"pattern": "abc"}}});
        assert_eq!(found(&twice).unwrap().whether.of((0, 1000)), 3 * 3000);
    }

    #[test]
    fn what_is_asked_again_at_each_level_counts_at_each() {
        let chain = |deep: usize, keyword: &str, asks: bool| {
            let mut all: Map<String, Value> = (0..deep)
                .map(|at| {
                    let mut one = json!({keyword: [{"$ref": format!("#/$defs/{}", at + 1)}]});
                    if asks {
                        one["unevaluatedProperties"] = json!({"type": "integer"});
                    }
                    (at.to_string(), one)
                })
                .collect();
            all.insert(deep.to_string(), json!({"type": "object"}));
            json!({"$ref": "#/$defs/0", "$defs": all})
        };
        for keyword in ["anyOf", "oneOf", "allOf"] {
            assert!(found(&chain(18, keyword, true)).is_err(), "{keyword}");
            let weight = found(&chain(40, keyword, false)).unwrap();
            assert!(weight.whether.place < 50_000, "{weight:?}");
            assert!(weight.again.place > 5 * weight.whether.place, "{weight:?}");
        }
        let nested = (0..10).fold(
            json!({"type": "string"}),
            |inner, _| json!({"type": "object", "properties": {"a": inner}, "unevaluatedProperties": false}),
        );
        assert!(found(&nested).unwrap().whether.place < 200);
    }

    #[test]
    fn a_value_is_measured_with_its_names() {
        assert_eq!(size(&json!({"ab": [1, "cde", null], "f": {}})), (6, 6));
    }
}

//! A value for a schema, made from the schema and from what the message states: the same every time, and no sentence of
//! a model's.
//!
//! It knows what most schemas say. A pattern it does not invent anything for; such a value may miss its schema, as a
//! model's may.

use std::cell::Cell;

use serde_json::{Map, Number, Value, json};

use super::facts::Facts;

/// How deep a value may become; a schema that refers to itself has no end.
const DEEPEST: usize = 12;
/// How many schemas are looked at for one value: depth alone does not bound one that refers to itself often.
const MAX_STEPS: usize = 10_000;
/// The most items that are made, whatever a schema asks for.
const MAX_ITEMS: u64 = 100;
/// The longest text that is made, in characters.
const MAX_TEXT: usize = 10_000;
/// Properties that hold what somebody said, rather than a name of something.
const SAID: &[&str] = &[
    "answer",
    "body",
    "content",
    "description",
    "input",
    "message",
    "prompt",
    "query",
    "question",
    "summary",
    "text",
    "title",
    "words",
];

/// Which properties of an object are filled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Those that must be there.
    Required,
    /// At the top, all.
    All,
}

/// A value that fits `schema`, with the user's words where it asks for text.
pub(super) fn fill(schema: &Value, words: &str, extent: Extent) -> Value {
    let filler = Filler {
        root: schema,
        words,
        facts: Facts::of(words),
        steps: Cell::new(0),
    };
    filler.value(schema, "answer", extent, 0, 0)
}

struct Filler<'a> {
    root: &'a Value,
    words: &'a str,
    facts: Facts,
    /// How many schemas were looked at.
    steps: Cell<usize>,
}

impl Filler<'_> {
    /// `index` tells the items of an array apart.
    fn value(&self, schema: &Value, name: &str, extent: Extent, index: u64, depth: usize) -> Value {
        if depth > DEEPEST || self.steps.get() > MAX_STEPS {
            return Value::Null;
        }
        let schema = self.plain(schema, DEEPEST);
        let at = usize::try_from(index).unwrap_or(0);
        if let Some(fixed) = schema.get("const") {
            return fixed.clone();
        }
        if let Some(Value::Array(all)) = schema.get("enum") {
            let mentioned = self.facts.mentioned(all).filter(|_| index == 0);
            let choice = mentioned.or_else(|| all.get(at % all.len().max(1)));
            return choice.cloned().unwrap_or_default();
        }
        match kind(&schema) {
            "object" => self.object(&schema, extent, depth),
            "array" => self.array(&schema, name, depth),
            "integer" => self
                .stated(&schema, Number::is_i64)
                .unwrap_or_else(|| whole(&schema, index)),
            "number" => self.stated(&schema, |_| true).unwrap_or_else(|| number(&schema, index)),
            "boolean" => Value::Bool(index.is_multiple_of(2)),
            "null" => Value::Null,
            _ => Value::String(self.text(&schema, name, index)),
        }
    }

    /// Returns the next number of the message that is within the schema's bounds.
    fn stated(&self, schema: &Map<String, Value>, of_kind: impl Fn(&Number) -> bool) -> Option<Value> {
        let number = self
            .facts
            .take_number(|number| of_kind(number) && within(schema, number))?;
        Some(Value::Number(number))
    }

    /// A schema without references and alternatives: what it refers to and its first branches are put into it.
    fn plain(&self, schema: &Value, left: usize) -> Map<String, Value> {
        let Value::Object(schema) = schema else {
            return Map::new();
        };
        let mut all = schema.clone();
        self.steps.set(self.steps.get() + 1);
        if left == 0 || self.steps.get() > MAX_STEPS {
            return all;
        }
        let mut parts = Vec::new();
        if let Some(Value::String(to)) = all.shift_remove("$ref") {
            parts.extend(to.strip_prefix('#').and_then(|to| self.root.pointer(to)));
        }
        for word in ["anyOf", "oneOf"] {
            if let Some(Value::Array(branches)) = schema.get(word) {
                all.shift_remove(word);
                parts.extend(branches.first());
            }
        }
        if let Some(Value::Array(branches)) = schema.get("allOf") {
            all.shift_remove("allOf");
            parts.extend(branches);
        }
        for part in parts {
            merge(&mut all, self.plain(part, left - 1));
        }
        all
    }

    fn object(&self, schema: &Map<String, Value>, extent: Extent, depth: usize) -> Value {
        let mut object = Map::new();
        let none = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        let required = schema.get("required").and_then(Value::as_array);
        let required = |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
        for (name, property) in properties {
            if required(name) || extent == Extent::All {
                object.insert(name.clone(), self.value(property, name, Extent::Required, 0, depth + 1));
            }
        }
        let names = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        for name in names {
            if !object.contains_key(name) {
                let other = schema.get("additionalProperties").unwrap_or(&Value::Null);
                object.insert(name.to_owned(), self.value(other, name, Extent::Required, 0, depth + 1));
            }
        }
        Value::Object(object)
    }

    fn array(&self, schema: &Map<String, Value>, name: &str, depth: usize) -> Value {
        let bound = |word: &str| schema.get(word).and_then(Value::as_u64);
        let first = schema.get("prefixItems").and_then(Value::as_array);
        let few = first.map_or(1, |first| first.len() as u64);
        let count = bound("minItems")
            .unwrap_or(few)
            .max(few.min(1))
            .min(bound("maxItems").unwrap_or(MAX_ITEMS))
            .min(MAX_ITEMS);
        let items = (0..count).map(|index| {
            let at = usize::try_from(index).unwrap_or(0);
            let item = first.and_then(|first| first.get(at)).or_else(|| schema.get("items"));
            self.value(item.unwrap_or(&Value::Null), name, Extent::Required, index, depth + 1)
        });
        Value::Array(items.collect())
    }

    fn text(&self, schema: &Map<String, Value>, name: &str, index: u64) -> String {
        match schema.get("format").and_then(Value::as_str) {
            Some("date-time") => return "2026-01-01T12:00:00Z".into(),
            Some("date") => return self.facts.date().unwrap_or_else(|| "2026-01-01".into()),
            Some("time") => return "12:00:00Z".into(),
            Some("duration") => return "PT1S".into(),
            Some("email" | "idn-email") => {
                return self.facts.email().unwrap_or_else(|| "demo@example.com".into());
            }
            Some("hostname" | "idn-hostname") => return "example.com".into(),
            Some("ipv4") => return "192.0.2.1".into(),
            Some("ipv6") => return "2001:db8::1".into(),
            Some("uri" | "iri" | "uri-reference") => return "https://example.com/".into(),
            Some("uuid") => return "00000000-0000-4000-8000-000000000000".into(),
            _ => {}
        }
        let length = |word: &str| {
            schema
                .get(word)
                .and_then(Value::as_u64)
                .and_then(|n| usize::try_from(n).ok())
        };
        let lower = name.to_ascii_lowercase();
        let said = SAID.iter().any(|word| lower.contains(word)) && !self.words.is_empty();
        let mut text = if said {
            self.words.to_owned()
        } else if let Some(email) = self.facts.email().filter(|_| lower.contains("mail")) {
            email
        } else if let Some(stated) = self.facts.take_name(&lower) {
            return stated.chars().take(length("maxLength").unwrap_or(MAX_TEXT)).collect();
        } else {
            name.to_owned()
        };
        if index > 0 {
            text.push_str(&format!(" {}", index + 1));
        }
        let missing = length("minLength")
            .unwrap_or(0)
            .min(MAX_TEXT)
            .saturating_sub(text.chars().count());
        text.extend(std::iter::repeat_n('.', missing));
        text.chars().take(length("maxLength").unwrap_or(MAX_TEXT)).collect()
    }
}

/// What kind of value a schema asks for, from its `type` or from what else it says.
fn kind(schema: &Map<String, Value>) -> &str {
    match schema.get("type") {
        Some(Value::String(kind)) => kind,
        Some(Value::Array(kinds)) => {
            let mut kinds = kinds.iter().filter_map(Value::as_str);
            kinds.find(|kind| *kind != "null").unwrap_or("null")
        }
        _ if schema.contains_key("properties") || schema.contains_key("required") => "object",
        _ if schema.contains_key("items") || schema.contains_key("prefixItems") => "array",
        _ if schema.contains_key("minimum") || schema.contains_key("maximum") => "number",
        _ => "string",
    }
}

/// Puts a part of a schema into it; what the schema says itself stays, and what is required is required of both.
fn merge(all: &mut Map<String, Value>, part: Map<String, Value>) {
    for (word, theirs) in part {
        match (all.get_mut(&word), theirs) {
            (Some(Value::Object(ours)), Value::Object(theirs)) => {
                for (name, property) in theirs {
                    ours.entry(name).or_insert(property);
                }
            }
            (Some(Value::Array(ours)), Value::Array(theirs)) if word == "required" => ours.extend(theirs),
            (Some(_), _) => {}
            (None, theirs) => {
                all.insert(word, theirs);
            }
        }
    }
}

/// Whether a number is within the bounds of a schema.
fn within(schema: &Map<String, Value>, number: &Number) -> bool {
    let Some(number) = number.as_f64() else { return false };
    let holds = |word: &str, holds: fn(f64, f64) -> bool| {
        schema
            .get(word)
            .and_then(Value::as_f64)
            .is_none_or(|bound| holds(number, bound))
    };
    holds("minimum", |number, bound| number >= bound)
        && holds("maximum", |number, bound| number <= bound)
        && holds("exclusiveMinimum", |number, bound| number > bound)
        && holds("exclusiveMaximum", |number, bound| number < bound)
        && holds("multipleOf", |number, step| (number / step).fract() == 0.0)
}

fn whole(schema: &Map<String, Value>, index: u64) -> Value {
    let bound = |word: &str| schema.get(word).and_then(Value::as_i64);
    let offset = i64::try_from(index).unwrap_or(0);
    let step = bound("multipleOf").filter(|step| *step > 0).unwrap_or(1);
    let least = bound("minimum").or(bound("exclusiveMinimum").map(|n| n.saturating_add(1)));
    let most = bound("maximum").or(bound("exclusiveMaximum").map(|n| n.saturating_sub(1)));
    let start = least.unwrap_or(1.min(most.unwrap_or(1))).max(1.min(most.unwrap_or(1)));
    let up = start.rem_euclid(step);
    let fit = if up == 0 {
        start
    } else {
        start.saturating_add(step - up)
    };
    let fit = if most.is_some_and(|most| fit > most) {
        fit.saturating_sub(step)
    } else {
        fit
    };
    json!(fit.saturating_add(offset.saturating_mul(step)))
}

fn number(schema: &Map<String, Value>, index: u64) -> Value {
    let bound = |word: &str| schema.get(word).and_then(Value::as_f64);
    let whole_bounds = [
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    ];
    if whole_bounds
        .iter()
        .all(|word| schema.get(*word).is_none_or(|value| value.is_i64()))
    {
        let (least, most) = (bound("exclusiveMinimum"), bound("exclusiveMaximum"));
        if let (Some(least), Some(most)) = (least, most) {
            return json!((least + most) / 2.0);
        }
        return whole(schema, index);
    }
    if let Some(step) = bound("multipleOf").filter(|step| *step > 0.0) {
        let least = bound("minimum")
            .or(bound("exclusiveMinimum").map(|n| n + step))
            .unwrap_or(step);
        return json!((least / step).ceil() * step);
    }
    let least = bound("minimum").or(bound("exclusiveMinimum"));
    let most = bound("maximum").or(bound("exclusiveMaximum"));
    json!(match (least, most) {
        (Some(least), Some(most)) => (least + most) / 2.0,
        (Some(least), None) => least + 1.0,
        (None, Some(most)) => most - 1.0,
        (None, None) => 1.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(schema: &Value) -> Value {
        let value = fill(schema, "Hello there", Extent::All);
        assert!(jsonschema::is_valid(schema, &value), "{value} does not fit {schema}");
        value
    }

    #[test]
    fn what_is_made_fits_its_schema() {
        let value = fits(&json!({
            "type": "object",
            "properties": {
                "summary": {"type": "string", "minLength": 20, "maxLength": 40},
                "name": {"type": "string"},
                "mood": {"enum": ["good", "bad"]},
                "kind": {"const": "x"},
                "age": {"type": "integer", "minimum": 18, "multipleOf": 5},
                "share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                "low": {"type": "integer", "maximum": -3},
                "half": {"type": "number", "minimum": 0.5, "maximum": 0.75},
                "yes": {"type": "boolean"},
                "nothing": {"type": "null"},
                "maybe": {"type": ["null", "string"]},
                "tags": {"type": "array", "items": {"type": "string"}, "minItems": 3, "uniqueItems": true},
                "place": {"$ref": "#/$defs/place"},
                "either": {"anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"type": "null"}]},
                "both": {"allOf": [{"type": "object", "required": ["p"], "properties": {"p": {"type": "string"}}}, {"required": ["q"]}]},
                "when": {"type": "string", "format": "date-time"}
            },
            "required": ["summary", "place", "tags"],
            "additionalProperties": false,
            "$defs": {"place": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "note": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": false
            }}
        }));
        assert_eq!(value["summary"], "Hello there.........");
        assert_eq!(
            (&value["name"], &value["mood"], &value["age"]),
            (&json!("name"), &json!("good"), &json!(20))
        );
        assert_eq!(value["place"], json!({"city": "city"}));
        assert_eq!(value["tags"], json!(["tags", "tags 2", "tags 3"]));
        assert_eq!(value["both"], json!({"p": "p", "q": "q"}));
    }

    #[test]
    fn what_the_message_states_is_filled_in() {
        let person = json!({
            "type": "object", "additionalProperties": false, "required": ["name", "age"],
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}}
        });
        let filled = fill(&person, "Ada, 36, from London", Extent::All);
        assert_eq!(filled, json!({"name": "Ada", "age": 36, "city": "London"}));
        let order = json!({
            "type": "object",
            "properties": {
                "size": {"enum": ["small", "large"]},
                "share": {"type": "number", "maximum": 1},
                "count": {"type": "integer", "minimum": 1},
                "e_mail": {"type": "string"}
            }
        });
        let filled = fill(&order, "3 large ones at 0.5 for bob@example.org", Extent::All);
        let expected = json!({"size": "large", "share": 0.5, "count": 3, "e_mail": "bob@example.org"});
        assert_eq!(filled, expected);
    }

    #[test]
    fn a_schema_that_refers_to_itself_has_an_end() {
        let tree = json!({
            "$ref": "#/$defs/tree",
            "$defs": {"tree": {
                "type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                "required": ["children"]
            }}
        });
        assert!(fill(&tree, "x", Extent::All)["children"].is_array());
        let ring = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}});
        fill(&ring, "x", Extent::All);
        // Without a limit these would be 8^12 schemas, and 100^12 items.
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let many: Map<String, Value> = names
            .iter()
            .map(|name| ((*name).to_owned(), json!({"$ref": "#"})))
            .collect();
        fill(&json!({"properties": many, "required": names}), "x", Extent::All);
        fill(&json!({"allOf": names.map(|_| json!({"$ref": "#"}))}), "x", Extent::All);
        fill(
            &json!({"type": "array", "minItems": 100, "items": {"$ref": "#"}}),
            "x",
            Extent::All,
        );
    }

    #[test]
    fn arguments_have_what_is_required_and_no_more() {
        let schema = json!({
            "type": "object",
            "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}, "deep": {"type": "boolean"}},
            "required": ["query", "limit"]
        });
        assert_eq!(
            fill(&schema, "rust", Extent::Required),
            json!({"query": "rust", "limit": 1})
        );
    }
}

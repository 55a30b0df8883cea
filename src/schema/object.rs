//! A tool's schema as every provider takes it: an object at its root, without alternatives there.
//!
//! OpenAI and Anthropic refuse a request with a tool whose schema has `anyOf`, `oneOf`, `allOf`,
//! `enum` or `not` at its root. Such a schema is widened for the model; arguments are checked against
//! the whole schema all the same.

use serde_json::{Map, Value, json};

/// How many references and alternatives are followed into each other.
const MAX_DEPTH: usize = 16;
/// How many branches are merged.
const MAX_BRANCHES: usize = 200;
/// Keywords that providers refuse at the root, and those that only make sense beside them.
const NARROWING: [&str; 14] = [
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "if",
    "then",
    "else",
    "enum",
    "const",
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "dependentSchemas",
    "dependencies",
];

/// Returns a schema of an object that admits at least what `schema` admits of objects.
///
/// # Errors
/// Why there is none, in a sentence.
pub fn widened(schema: &Value) -> Result<Value, String> {
    let Value::Object(root) = schema else {
        return Err("a schema must be an object".into());
    };
    let is_plain = !NARROWING.iter().any(|word| root.contains_key(*word));
    let mut wide = root.clone();
    if !is_plain {
        let mut branches = 0;
        let merged = merged(root, root, &mut branches, MAX_DEPTH)
            .ok_or("its schema has too many alternatives, or none that is an object")?;
        for word in NARROWING
            .iter()
            .chain(&["additionalProperties", "unevaluatedProperties"])
        {
            wide.shift_remove(*word);
        }
        wide.insert("properties".into(), Value::Object(merged.properties));
        wide.shift_remove("required");
        if !merged.required.is_empty() {
            wide.insert("required".into(), json!(merged.required));
        }
    }
    if !admits_objects(&wide) {
        return Err("its arguments are no object".into());
    }
    wide.insert("type".into(), json!("object"));
    if !wide.get("properties").is_some_and(Value::is_object) {
        wide.insert("properties".into(), json!({}));
    }
    let wide = Value::Object(wide);
    match is_plain || references_lead_somewhere(&wide, &wide) {
        true => Ok(wide),
        false => Err("its schema refers to an alternative at its root".into()),
    }
}

/// What the objects of a schema can have.
#[derive(Default)]
struct Members {
    properties: Map<String, Value>,
    required: Vec<String>,
}

/// The members of all branches of a schema together; `None` if no object fits, or if there are too
/// many.
fn merged(
    root: &Map<String, Value>,
    schema: &Map<String, Value>,
    branches: &mut usize,
    depth: usize,
) -> Option<Members> {
    *branches += 1;
    if depth == 0 || *branches > MAX_BRANCHES || !admits_objects(schema) {
        return None;
    }
    let mut all = Members::default();
    if let Some(Value::Object(properties)) = schema.get("properties") {
        all.properties = properties.clone();
    }
    if let Some(Value::Array(required)) = schema.get("required") {
        all.require(required.iter().filter_map(Value::as_str));
    }
    let mut parts: Vec<&Value> = Vec::new();
    if let Some(to) = schema.get("$ref").and_then(Value::as_str) {
        parts.push(target(root, to)?);
    }
    parts.extend(schema.get("allOf").and_then(Value::as_array).into_iter().flatten());
    for part in parts.into_iter().filter_map(Value::as_object) {
        let part = merged(root, part, branches, depth - 1)?;
        for (name, property) in part.properties {
            all.properties.entry(name).or_insert(property);
        }
        all.require(part.required.iter().map(String::as_str));
    }
    for word in ["anyOf", "oneOf"] {
        if let Some(Value::Array(alternatives)) = schema.get(word) {
            let objects = alternatives.iter().filter_map(Value::as_object);
            let found: Vec<_> = objects
                .filter_map(|one| merged(root, one, branches, depth - 1))
                .collect();
            all.choose(found)?;
        }
    }
    if schema.contains_key("enum") || schema.contains_key("const") {
        let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
        let values = listed.chain(schema.get("const")).filter_map(Value::as_object);
        all.choose(values.map(literal).collect())?;
    }
    let optional = ["then", "else"].into_iter().filter_map(|word| schema.get(word));
    let dependent = ["dependentSchemas", "dependencies"]
        .into_iter()
        .filter_map(|word| schema.get(word)?.as_object());
    let optional = optional.chain(dependent.flat_map(Map::values));
    for part in optional.filter_map(Value::as_object) {
        if let Some(part) = merged(root, part, branches, depth - 1) {
            part.properties
                .into_iter()
                .for_each(|(name, property)| all.admit(name, property));
        }
    }
    Some(all)
}

impl Members {
    fn require<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        for name in names {
            if !self.required.iter().any(|known| known == name) {
                self.required.push(name.to_owned());
            }
        }
    }

    /// Adds alternatives: required is what all of them require.
    fn choose(&mut self, alternatives: Vec<Members>) -> Option<()> {
        let (first, others) = alternatives.split_first()?;
        let common = first.required.iter();
        let common = common.filter(|name| others.iter().all(|other| other.required.contains(name)));
        let common: Vec<String> = common.cloned().collect();
        let own: Vec<String> = self.properties.keys().cloned().collect();
        for (name, property) in alternatives.into_iter().flat_map(|one| one.properties) {
            // What the schema says itself holds for every alternative.
            if !own.contains(&name) {
                self.admit(name, property);
            }
        }
        self.require(common.iter().map(String::as_str));
        Some(())
    }

    /// Adds a property that another alternative may have otherwise.
    fn admit(&mut self, name: String, property: Value) {
        match self.properties.get_mut(&name) {
            None => drop(self.properties.insert(name, property)),
            Some(known) if *known == property => {}
            Some(known) => *known = either(known.take(), property),
        }
    }
}

/// A schema that admits what one of two admits. Fixed values become one list of them.
fn either(known: Value, other: Value) -> Value {
    if let (Some(mut all), Some(more)) = (fixed(&known), fixed(&other)) {
        all.extend(more);
        let mut distinct: Vec<Value> = Vec::new();
        all.into_iter().for_each(|one| match distinct.contains(&one) {
            true => {}
            false => distinct.push(one),
        });
        let mut merged = json!({});
        if known.get("type") == other.get("type")
            && let Some(kind) = known.get("type")
        {
            merged["type"] = kind.clone();
        }
        merged["enum"] = Value::Array(distinct);
        return merged;
    }
    match known {
        Value::Object(mut known) if known.len() == 1 && known.get("anyOf").is_some_and(Value::is_array) => {
            if let Some(Value::Array(all)) = known.get_mut("anyOf")
                && !all.contains(&other)
            {
                all.push(other);
            }
            Value::Object(known)
        }
        known => json!({"anyOf": [known, other]}),
    }
}

/// The values that a schema lists, if it says nothing else of them.
fn fixed(schema: &Value) -> Option<Vec<Value>> {
    let schema = schema.as_object()?;
    let is_known = |word: &String| {
        matches!(
            word.as_str(),
            "const" | "enum" | "type" | "description" | "title" | "default"
        )
    };
    if !schema.keys().all(is_known) {
        return None;
    }
    match (schema.get("const"), schema.get("enum")) {
        (Some(one), None) => Some(vec![one.clone()]),
        (None, Some(Value::Array(all))) => Some(all.clone()),
        _ => None,
    }
}

/// The members of one value that a schema lists.
fn literal(value: &Map<String, Value>) -> Members {
    let fixed = value
        .iter()
        .map(|(name, value)| (name.clone(), json!({ "const": value })));
    Members {
        properties: fixed.collect(),
        required: value.keys().cloned().collect(),
    }
}

fn admits_objects(schema: &Map<String, Value>) -> bool {
    match schema.get("type") {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        Some(kind) => kind == "object",
    }
}

/// What a reference into the schema itself means.
fn target<'a>(root: &'a Map<String, Value>, to: &str) -> Option<&'a Value> {
    let mut steps = to.strip_prefix("#/")?.split('/');
    let unescaped = |step: &str| step.replace("~1", "/").replace("~0", "~");
    let first = root.get(&unescaped(steps.next()?))?;
    steps.try_fold(first, |at, step| match at {
        Value::Array(all) => all.get(step.parse::<usize>().ok()?),
        at => at.get(unescaped(step)),
    })
}

/// Whether every reference by a path leads to a place that is still there.
fn references_lead_somewhere(root: &Value, at: &Value) -> bool {
    match at {
        Value::Object(fields) => fields.iter().all(|(name, value)| match (name.as_str(), value) {
            ("$ref", Value::String(to)) => match to.strip_prefix('#') {
                Some(path) if path.starts_with('/') => root.pointer(path).is_some(),
                _ => true,
            },
            _ => references_lead_somewhere(root, value),
        }),
        Value::Array(all) => all.iter().all(|one| references_lead_somewhere(root, one)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(schema: Value) -> Value {
        widened(&schema).unwrap()
    }

    #[test]
    fn a_plain_object_stays_as_it_is() {
        let plain = json!({"type": "object", "properties": {"a": {"anyOf": [{}, {}]}}, "additionalProperties": false});
        assert_eq!(wide(plain.clone()), plain);
        assert_eq!(wide(json!({})), json!({"type": "object", "properties": {}}));
        let nullable = json!({"type": ["object", "null"], "required": ["a"], "properties": {"a": {}}});
        assert_eq!(
            wide(nullable),
            json!({"type": "object", "required": ["a"], "properties": {"a": {}}})
        );
    }

    #[test]
    fn alternatives_become_one_object_that_requires_what_all_require() {
        for word in ["anyOf", "oneOf"] {
            let shapes = json!({"description": "A shape", "required": ["name"], "properties": {"name": {"type": "string"}}, word: [
                {"type": "object", "required": ["kind", "r"], "additionalProperties": false,
                 "properties": {"kind": {"const": "circle"}, "r": {"type": "number"}, "at": {"type": "string"}}},
                {"type": "object", "required": ["kind", "w"],
                 "properties": {"kind": {"const": "square"}, "w": {"type": "number"}, "at": {"type": "array"}}},
                {"type": "null"},
            ]});
            let expected = json!({
                "type": "object", "description": "A shape", "required": ["name", "kind"],
                "properties": {
                    "name": {"type": "string"},
                    "kind": {"enum": ["circle", "square"]},
                    "r": {"type": "number"},
                    "at": {"anyOf": [{"type": "string"}, {"type": "array"}]},
                    "w": {"type": "number"},
                },
            });
            assert_eq!(wide(shapes), expected, "{word}");
        }
    }

    #[test]
    fn parts_references_and_conditions_are_put_together() {
        let all = json!({
            "allOf": [{"$ref": "#/$defs/base"}, {"required": ["b"], "properties": {"b": {"$ref": "#/$defs/b"}}}],
            "if": {"properties": {"b": {"const": "x"}}}, "then": {"required": ["c"], "properties": {"c": {}}},
            "$defs": {"base": {"type": "object", "required": ["a"], "properties": {"a": {}}}, "b": {"type": "string"}},
        });
        let wide_all = wide(all);
        assert_eq!(wide_all["required"], json!(["a", "b"]));
        let names: Vec<_> = wide_all["properties"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(wide_all["$defs"]["b"].is_object() && wide_all.get("allOf").is_none() && wide_all.get("if").is_none());

        let reference =
            json!({"$ref": "#/definitions/x~1y", "definitions": {"x/y": {"type": "object", "properties": {"a": {}}}}});
        assert_eq!(wide(reference)["properties"], json!({"a": {}}));
        let listed = json!({"enum": [{"a": 1}, {"a": 2, "b": 3}]});
        let expected =
            json!({"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"const": 3}}, "required": ["a"]});
        assert_eq!(wide(listed), expected);
        let required_only = json!({"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]});
        assert_eq!(
            wide(required_only),
            json!({"type": "object", "properties": {"a": {}, "b": {}}})
        );
    }

    #[test]
    fn what_is_no_object_or_has_no_end_is_refused() {
        for (what, schema) in [
            ("no schema", json!([])),
            ("a text", json!({"type": "string"})),
            ("texts", json!({"anyOf": [{"type": "string"}, {"type": "null"}]})),
            ("a listed text", json!({"enum": ["a", "b"]})),
            (
                "a circle",
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
            ),
            ("nowhere", json!({"$ref": "#/$defs/a"})),
            ("elsewhere", json!({"$ref": "https://example.com/schema"})),
            (
                "many",
                json!({"anyOf": vec![json!({"type": "object", "properties": {"a": {"$ref": "#/anyOf/0"}}}); 2]}),
            ),
            (
                "too many",
                json!({"anyOf": vec![json!({"type": "object"}); MAX_BRANCHES + 1], "type": "text"}),
            ),
        ] {
            assert!(widened(&schema).is_err(), "{what}: {:?}", widened(&schema));
        }
    }
}

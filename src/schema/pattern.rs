//! Patterns that another engine takes and this one does not: what JavaScript writes, zod's for e-mail
//! addresses among them.

use serde_json::{Map, Value};

use super::weight::{NAMED, tame};

/// Removes the patterns from a trusted schema that cannot be checked here, and returns them. The
/// schema admits more without them. Providers are not sent them either, because some refuse them too.
pub fn drop_unchecked_patterns(schema: &mut Value) -> Vec<String> {
    let mut dropped = Vec::new();
    visit(schema, &|pattern| tame(pattern).is_ok(), &mut dropped);
    dropped
}

/// Removes all patterns from a trusted schema, and returns them: each can be checked, but together
/// they are too large.
pub fn drop_all_patterns(schema: &mut Value) -> Vec<String> {
    let mut dropped = Vec::new();
    visit(schema, &|_| false, &mut dropped);
    dropped
}

fn visit(at: &mut Value, stays: &impl Fn(&str) -> bool, dropped: &mut Vec<String>) {
    match at {
        Value::Array(all) => all.iter_mut().for_each(|one| visit(one, stays, dropped)),
        Value::Object(fields) => visit_object(fields, stays, dropped),
        _ => {}
    }
}

fn visit_object(fields: &mut Map<String, Value>, stays: &impl Fn(&str) -> bool, dropped: &mut Vec<String>) {
    if let Some(Value::String(pattern)) = fields.get("pattern")
        && !stays(pattern)
    {
        dropped.push(pattern.clone());
        fields.shift_remove("pattern");
    }
    if let Some(Value::Object(patterns)) = fields.get_mut("patternProperties") {
        let before = patterns.len();
        patterns.retain(|pattern, _| {
            let keeps = stays(pattern);
            if !keeps {
                dropped.push(pattern.clone());
            }
            keeps
        });
        if patterns.len() < before {
            // Names that fitted a removed pattern are not to be refused as unknown ones.
            fields.shift_remove("additionalProperties");
            fields.shift_remove("unevaluatedProperties");
        }
    }
    for (name, value) in fields.iter_mut() {
        match (name.as_str(), value) {
            ("enum" | "const" | "default" | "examples", _) => {} // data, no schemas
            (name, Value::Object(named)) if NAMED.contains(&name) => {
                named.values_mut().for_each(|one| visit(one, stays, dropped));
            }
            (_, value) => visit(value, stays, dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_patterns_that_cannot_be_checked_are_removed() {
        const MAIL: &str =
            r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$";
        let mut schema = json!({
            "type": "object", "required": ["mail"], "default": {"pattern": MAIL},
            "properties": {
                "mail": {"type": "string", "format": "email", "pattern": MAIL},
                "name": {"type": "string", "pattern": r"^[\w-.]+$"},
                "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
                "pattern": {"type": "string", "enum": ["(?=a)"]},
            },
            "anyOf": [{"items": {"pattern": r"(a)\1"}}],
            "patternProperties": {"^x-": {}, "^(?!y)": {}},
            "additionalProperties": false,
        });
        let dropped = drop_unchecked_patterns(&mut schema);
        assert_eq!(dropped, ["^(?!y)", MAIL, r"^[\w-.]+$", r"(a)\1"]);
        let expected = json!({
            "type": "object", "required": ["mail"], "default": {"pattern": MAIL},
            "properties": {
                "mail": {"type": "string", "format": "email"},
                "name": {"type": "string"},
                "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
                "pattern": {"type": "string", "enum": ["(?=a)"]},
            },
            "anyOf": [{"items": {}}],
            "patternProperties": {"^x-": {}},
        });
        assert_eq!(schema, expected);
        assert_eq!(drop_all_patterns(&mut schema), ["^x-", "^[A-Z]{2}$"]);
    }
}

//! How an upstream speaks: pure, bytes and values only. What does I/O is `upstream.rs`.

use reqwest::header::HeaderMap;
use serde_json::Value;

use super::{
    ProviderError, Unsupported,
    deviations::Deviations,
    error::Kind,
    frame::{Frame, Framing},
};
use crate::chat::{ChatRequest, Chunk};

/// A call, encoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    /// Below the provider's base address, with a slash in front; may have a query.
    pub path: String,
    /// The JSON body.
    pub body: Vec<u8>,
}

/// A way to speak to a model over HTTP.
pub trait Dialect: Send + Sync + 'static {
    /// How its events are told apart.
    fn framing(&self) -> Framing {
        Framing::Sse
    }

    /// Whether a mark of the stream's end follows the finish. An answer without it is complete all the same.
    fn marks_its_end(&self) -> bool {
        false
    }

    /// Headers of every call, beside the credentials.
    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// Whether images of this media type have a place on this wire.
    fn takes_image(&self, _media_type: &str) -> bool {
        true
    }

    /// What it cannot say.
    ///
    /// # Errors
    /// The first field of the request that has no place on this wire.
    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported>;

    /// Our request on its wire.
    ///
    /// # Errors
    /// A request that cannot be written down.
    fn encode(&self, request: &ChatRequest) -> Result<Call, ProviderError>;

    /// A decoder for one answer.
    fn decoder(&self) -> Box<dyn Decoder>;

    /// An answer that came whole although a stream was asked for. Its deviations are noted in `odd`.
    ///
    /// # Errors
    /// The error it reports, or that it is not an answer.
    fn whole(&self, body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError>;

    /// What an HTTP status other than 200 means. `body` may be cut, and need not be JSON.
    fn refusal(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError;
}

/// How far an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Content may follow.
    More,
    /// The model's finish was seen; only numbers may follow, and if they do not, the answer is complete all the same.
    Finishing,
    /// Nothing follows: the connection need not be read any further.
    Over,
}

/// Turns one answer's frames into chunks. Keeps what state the dialect needs; never waits.
pub trait Decoder: Send {
    /// The next frame.
    ///
    /// # Errors
    /// An error that the frame reports, or a frame that is none.
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Chunk>) -> Result<Progress, ProviderError>;

    /// Nothing follows. Writes `Finish`.
    ///
    /// # Errors
    /// Truncated, if no finish was seen.
    fn end(&mut self, out: &mut Vec<Chunk>) -> Result<(), ProviderError>;

    /// The deviations from the dialect that were tolerated so far.
    fn deviations(&self) -> Deviations {
        Deviations::default()
    }
}

/// The most calls in one answer, and the most blocks or items that one is made of: these are looked through for each event.
const MAX_PARTS: usize = 1024;

/// Room for one more call, block or item beside so many.
///
/// # Errors
/// `Kind::Limit`, if there is none.
pub(super) fn room_beside(parts: usize) -> Result<(), ProviderError> {
    match parts {
        ..MAX_PARTS => Ok(()),
        _ => Err(ProviderError::new(
            Kind::Limit,
            format!("more than {MAX_PARTS} calls, blocks or items in an answer"),
        )),
    }
}

/// What a strict schema on OpenAI's wires may say of a value beside its type
/// (platform.openai.com/docs/guides/structured-outputs, 2026-11).
pub(super) const OPENAI_BOUNDS: [&str; 9] = [
    "pattern",
    "format",
    "multipleOf",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minItems",
    "maxItems",
];

/// Whether a schema leaves nothing open: every value in it has a type, every object lists all its properties as required
/// and admits no others, and nothing else is said but these `bounds`. Only such a schema can be asked for strictly; a
/// provider refuses a request that asks so for another.
pub(super) fn is_strict(schema: &Value, bounds: &[&str]) -> bool {
    let Value::Object(fields) = schema else { return false };
    let is = |kind: &str| match fields.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|one| one == kind),
        told => told.is_some_and(|one| one == kind),
    };
    let each = |schema: &Value| is_strict(schema, bounds);
    let known = |(word, value): (&String, &Value)| match (word.as_str(), value) {
        ("$schema" | "title" | "description" | "type" | "enum" | "const" | "required" | "$ref", _) => true,
        ("additionalProperties", value) => value == false,
        ("properties" | "$defs" | "definitions", Value::Object(all)) => all.values().all(each),
        ("anyOf", Value::Array(all)) => all.iter().all(each),
        ("items", schema) => each(schema),
        (word, _) => bounds.contains(&word),
    };
    let properties = fields.get("properties").and_then(Value::as_object);
    let required = fields.get("required").and_then(Value::as_array);
    let listed = |name: &String| required.is_some_and(|all| all.iter().any(|one| one == name));
    let closed = !(is("object") || properties.is_some())
        || fields.contains_key("additionalProperties") && properties.is_some_and(|all| all.keys().all(listed));
    let typed = ["type", "enum", "const", "anyOf", "$ref"]
        .iter()
        .any(|word| fields.contains_key(*word));
    typed && closed && (!is("array") || fields.contains_key("items")) && fields.iter().all(known)
}

/// Whether a schema is of an object, without alternatives at its root: no other can be asked for on OpenAI's wires.
pub(super) fn is_of_object(schema: &Value) -> bool {
    const REFUSED: [&str; 7] = ["anyOf", "oneOf", "allOf", "not", "enum", "const", "$ref"];
    schema.get("type").is_some_and(|kind| kind == "object") && !REFUSED.iter().any(|word| schema.get(word).is_some())
}

/// A word of theirs as it may stand in the log: letters, as types and reasons have them. Anything else may be a key of ours,
/// or what a user said.
pub(super) fn word(theirs: &str) -> &str {
    let fits = |b: u8| b.is_ascii_alphabetic() || b"_-/+.".contains(&b);
    match theirs {
        word if word.len() <= 64 && word.bytes().all(fits) => word,
        _ => "of no known form",
    }
}

/// An event's data as a value of a wire. The parser's own sentence quotes what it read, so it is not repeated.
pub(super) fn parse_event<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Result<T, ProviderError> {
    serde_json::from_str(text).map_err(|e| {
        let what = format!(
            "an event that is not one: {:?} error at byte {}",
            e.classify(),
            e.column()
        );
        ProviderError::new(Kind::Protocol, what)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_words_of_theirs_are_repeated() {
        for fine in [
            "",
            "text/html",
            "application/vnd.api+json",
            "insufficient_system_resource",
            "gzip",
        ] {
            assert_eq!(word(fine), fine);
        }
        for other in ["sk-123", "a b", "a\nb", "a\u{1b}b", "é", &"x".repeat(65)] {
            assert_eq!(word(other), "of no known form", "{other:?}");
        }
    }

    #[test]
    fn only_a_schema_that_leaves_nothing_open_is_strict() {
        let place = json!({
            "type": "object", "required": ["name", "tags"], "additionalProperties": false,
            "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}}},
            "$defs": {"tag": {"enum": ["a", {"type": "object"}]}},
        });
        assert!(is_strict(&place, &[]));
        let with = |what: Value| {
            let mut place = place.clone();
            place["properties"]["name"] = what;
            place
        };
        let mut optional = place.clone();
        optional["required"] = json!(["name"]);
        for loose in [
            optional,
            with(json!({"type": "object"})),
            with(json!({"type": ["object", "null"]})),
            with(json!({"oneOf": [{"type": "string"}]})),
            with(json!({})),
            with(json!(true)),
            with(json!({"type": "array"})),
            with(json!({"type": "string", "minLength": 1})),
            json!({"type": "object", "properties": {}}),
        ] {
            assert!(!is_strict(&loose, &OPENAI_BOUNDS), "{loose}");
        }
        let bounded = with(json!({"type": ["integer", "null"], "minimum": 0}));
        assert!(is_strict(&bounded, &OPENAI_BOUNDS) && !is_strict(&bounded, &[]));
    }
}

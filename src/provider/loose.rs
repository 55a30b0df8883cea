//! Fields that some servers write in another JSON type than their dialect documents.
//!
//! A field of the documented type is read without a detour: its text is borrowed. Any other type is
//! read as what it plainly means, or as nothing, and noted as a deviation.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{
        Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use serde_json::{Value, value::RawValue};

use super::{
    ProviderError,
    content::{Speech, say_value},
    deviations::Deviations,
    dialect::parse_event,
};
use crate::{chat::Chunk, meters::Tolerated};

/// The first number that is no count of tokens any more: beyond it JSON numbers lose digits.
const TOO_MANY: u64 = 1 << 53;

/// A field that should be a string.
#[derive(Debug)]
pub(super) enum LooseText<'a> {
    /// A string.
    Plain(Cow<'a, str>),
    /// Anything else.
    Other(Value),
}

impl LooseText<'_> {
    /// The string, if it is one.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            LooseText::Plain(text) => Some(text),
            LooseText::Other(_) => None,
        }
    }
}

/// A field that should be a whole number.
#[derive(Clone, Copy, Debug)]
pub(super) struct LooseInt {
    value: Option<u64>,
    deviates: bool,
}

impl From<u64> for LooseInt {
    fn from(value: u64) -> Self {
        Self {
            value: Some(value),
            deviates: false,
        }
    }
}

/// A field that should be `true` or `false`.
#[derive(Clone, Copy, Debug)]
pub(super) struct LooseBool {
    value: bool,
    deviates: bool,
}

/// A field that should be a list. One object stands for a list of one; a `null` in the list, and
/// an empty scalar in its place, say nothing.
#[derive(Debug)]
pub(super) struct LooseList<T> {
    items: Vec<T>,
    deviates: bool,
}

/// A field that should be an object. A list of one object stands for it; an empty list and an empty
/// scalar say nothing.
#[derive(Debug)]
pub(super) struct LooseStruct<T> {
    value: Option<T>,
    deviates: bool,
}

/// The text of a field that names something. Numbers are names too; other types are none.
pub(super) fn name<'a>(field: Option<LooseText<'a>>, odd: &mut Deviations) -> Option<Cow<'a, str>> {
    let name = match field? {
        LooseText::Plain(text) => text,
        LooseText::Other(other) => {
            odd.add(Tolerated::FieldType);
            match other {
                Value::Number(number) => Cow::Owned(number.to_string()),
                _ => return None,
            }
        }
    };
    Some(name).filter(|name| !name.is_empty())
}

/// The number in a field.
pub(super) fn int(field: Option<LooseInt>, odd: &mut Deviations) -> Option<u64> {
    let field = field?;
    odd.add_if(field.deviates, Tolerated::FieldType);
    field.value
}

/// The truth of a field.
pub(super) fn truth(field: Option<LooseBool>, odd: &mut Deviations) -> Option<bool> {
    let field = field?;
    odd.add_if(field.deviates, Tolerated::FieldType);
    Some(field.value)
}

/// The elements of a field.
pub(super) fn list<T>(field: Option<LooseList<T>>, odd: &mut Deviations) -> Vec<T> {
    let Some(field) = field else {
        return Vec::new();
    };
    odd.add_if(field.deviates, Tolerated::FieldType);
    field.items
}

/// The object in a field.
pub(super) fn object<T>(field: Option<LooseStruct<T>>, odd: &mut Deviations) -> Option<T> {
    let field = field?;
    odd.add_if(field.deviates, Tolerated::FieldType);
    field.value
}

/// The words of a field that should be a string. Of the thinking in an answer's parts there are none.
///
/// # Errors
/// A string that is none.
pub(super) fn words(field: Option<&RawValue>, speech: Speech, odd: &mut Deviations) -> Result<String, ProviderError> {
    let Some(raw) = field.map(RawValue::get) else {
        return Ok(String::new());
    };
    if raw.starts_with('"') {
        return parse_event(raw);
    }
    let value: Value = parse_event(raw)?;
    odd.add_if(!value.is_null(), Tolerated::FieldType);
    Ok(words_of(value, speech, odd))
}

/// The words of each part of a field that should be a list of parts.
///
/// # Errors
/// A string that is none.
pub(super) fn parts(
    field: Option<&RawValue>,
    speech: Speech,
    odd: &mut Deviations,
) -> Result<Vec<String>, ProviderError> {
    let parts = match field.map(|raw| parse_event(raw.get())).transpose()? {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(parts)) => parts,
        Some(other) => {
            odd.add(Tolerated::FieldType);
            vec![other]
        }
    };
    Ok(parts.into_iter().map(|part| words_of(part, speech, odd)).collect())
}

fn words_of(value: Value, speech: Speech, odd: &mut Deviations) -> String {
    let mut chunks = Vec::new();
    say_value(value, speech, odd, &mut chunks);
    let words = chunks.into_iter().filter_map(|chunk| match (chunk, speech) {
        (Chunk::Text(words), _) | (Chunk::Reasoning(words), Speech::Thinking) => Some(words),
        _ => None,
    });
    words.collect()
}

/// The arguments of a call as JSON text: an object as it stands, and a string's content. Which of
/// both a dialect documents is `in_string`.
///
/// # Errors
/// A string that is none.
pub(super) fn arguments(
    field: Option<&RawValue>,
    in_string: bool,
    odd: &mut Deviations,
) -> Result<Option<String>, ProviderError> {
    let Some(raw) = field.map(RawValue::get).filter(|raw| *raw != "null") else {
        return Ok(None);
    };
    let is_string = raw.starts_with('"');
    odd.add_if(is_string != in_string, Tolerated::FieldType);
    let text = if is_string { parse_event(raw)? } else { raw.to_owned() };
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// A number of tokens. Negative numbers, fractions and numbers from 2^53 on are unknown.
pub(super) fn count(value: Option<&Value>, odd: &mut Deviations) -> Option<u64> {
    let value = value?;
    let number = match value {
        Value::Number(number) if number.is_u64() => number.as_u64(),
        Value::Null => None,
        other => {
            odd.add(Tolerated::UsageForm);
            whole_number(other)
        }
    };
    number.filter(|number| *number < TOO_MANY)
}

/// A whole number that is written as a float or in a string.
fn whole_number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64().or_else(|| whole_float(number.as_f64()?)),
        Value::String(text) => {
            let text = text.trim();
            let float = || whole_float(text.parse::<f64>().ok()?);
            text.parse::<u64>().ok().or_else(float)
        }
        _ => None,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the range is checked, and in it every whole number has a float of its own"
)]
fn whole_float(number: f64) -> Option<u64> {
    let counts = number >= 0.0 && number < TOO_MANY as f64 && number.fract() == 0.0;
    counts.then_some(number as u64)
}

impl<'de: 'a, 'a> Deserialize<'de> for LooseText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = LooseText<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(LooseText::Plain(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(LooseText::Plain(Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(LooseText::Other(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Ok(LooseText::Other(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        Ok(LooseText::Other(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        Ok(LooseText::Other(value.into()))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(LooseText::Other(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        Value::deserialize(SeqAccessDeserializer::new(seq)).map(LooseText::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Value::deserialize(MapAccessDeserializer::new(map)).map(LooseText::Other)
    }
}

impl<'de> Deserialize<'de> for LooseInt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = match LooseText::deserialize(deserializer)? {
            LooseText::Other(Value::Number(number)) if number.is_u64() => {
                let value = number.as_u64();
                return Ok(Self { value, deviates: false });
            }
            LooseText::Other(other) => whole_number(&other),
            LooseText::Plain(text) => text.trim().parse().ok(),
        };
        Ok(Self { value, deviates: true })
    }
}

impl<'de> Deserialize<'de> for LooseBool {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = match LooseText::deserialize(deserializer)? {
            LooseText::Other(Value::Bool(value)) => {
                return Ok(Self { value, deviates: false });
            }
            LooseText::Other(other) => whole_number(&other) == Some(1),
            LooseText::Plain(text) => text.trim().eq_ignore_ascii_case("true"),
        };
        Ok(Self { value, deviates: true })
    }
}

/// The scalars that stand for nothing where a list or an object should be.
macro_rules! empty_scalars {
    ($none:expr) => {
        fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
            match value {
                false => Ok($none),
                true => Err(E::invalid_type(Unexpected::Bool(value), &self)),
            }
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
            match value {
                0 => Ok($none),
                _ => Err(E::invalid_type(Unexpected::Unsigned(value), &self)),
            }
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            match text {
                "" => Ok($none),
                _ => Err(E::invalid_type(Unexpected::Other("string"), &self)),
            }
        }
    };
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for LooseList<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = LooseList<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    empty_scalars!(LooseList {
        items: Vec::new(),
        deviates: true
    });

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut items, mut deviates) = (Vec::new(), false);
        while let Some(item) = seq.next_element::<Option<T>>()? {
            match item {
                Some(item) => items.push(item),
                None => deviates = true,
            }
        }
        Ok(LooseList { items, deviates })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let items = vec![T::deserialize(MapAccessDeserializer::new(map))?];
        Ok(LooseList { items, deviates: true })
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for LooseStruct<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StructVisitor(PhantomData))
    }
}

struct StructVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for StructVisitor<T> {
    type Value = LooseStruct<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    empty_scalars!(LooseStruct {
        value: None,
        deviates: true
    });

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let value = seq.next_element::<Option<T>>()?.flatten();
        if value.is_some() && seq.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::invalid_type(Unexpected::Seq, &self));
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(LooseStruct { value, deviates: true })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let value = Some(T::deserialize(MapAccessDeserializer::new(map))?);
        Ok(LooseStruct { value, deviates: false })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Deserialize)]
    struct Wire<'a> {
        #[serde(borrow, default)]
        text: Option<LooseText<'a>>,
        #[serde(default)]
        int: Option<LooseInt>,
        #[serde(default)]
        truth: Option<LooseBool>,
        #[serde(borrow, default)]
        list: Option<LooseList<Inner<'a>>>,
        #[serde(borrow, default)]
        inner: Option<LooseStruct<Inner<'a>>>,
    }

    #[derive(Deserialize)]
    struct Inner<'a> {
        #[serde(borrow)]
        a: Cow<'a, str>,
    }

    #[test]
    fn documented_types_are_borrowed_and_no_deviation() {
        let text = r#"{"text":"x","int":3,"truth":true,"list":[{"a":"b"}],"inner":{"a":"c"}}"#;
        let wire: Wire<'_> = serde_json::from_str(text).unwrap();
        let mut odd = Deviations::default();
        assert!(matches!(name(wire.text, &mut odd), Some(Cow::Borrowed("x"))));
        assert_eq!(int(wire.int, &mut odd), Some(3));
        assert_eq!(truth(wire.truth, &mut odd), Some(true));
        assert!(matches!(list(wire.list, &mut odd)[0].a, Cow::Borrowed("b")));
        let inner = object(wire.inner, &mut odd).unwrap();
        assert!(matches!(inner.a, Cow::Borrowed("c")));
        assert_eq!(odd, Deviations::default());
        let nulls = r#"{"text":null,"int":null,"truth":null,"list":null,"inner":null}"#;
        let wire: Wire<'_> = serde_json::from_str(nulls).unwrap();
        assert!(wire.text.is_none() && wire.int.is_none() && wire.truth.is_none());
        assert!(wire.list.is_none() && wire.inner.is_none());
    }

    #[test]
    fn other_types_mean_what_they_plainly_mean() {
        let of = |field: &str, value: &str| format!("{{\"{field}\":{value}}}");
        for (value, expected) in [
            ("\"0\"", Some(0)),
            ("1.0", Some(1)),
            ("-1", None),
            ("1.5", None),
            ("[2]", None),
            ("\"x\"", None),
        ] {
            let (mut odd, text) = (Deviations::default(), of("int", value));
            let wire: Wire<'_> = serde_json::from_str(&text).unwrap();
            assert_eq!(int(wire.int, &mut odd), expected, "{value}");
            assert_eq!(odd.iter().count(), 1, "{value}");
        }
        for (value, expected) in [("\"True\"", true), ("1", true), ("0", false), ("{}", false)] {
            let text = of("truth", value);
            let wire: Wire<'_> = serde_json::from_str(&text).unwrap();
            let found = truth(wire.truth, &mut Deviations::default());
            assert_eq!(found, Some(expected), "{value}");
        }
        for (value, expected) in [
            ("[]", 0),
            ("[null]", 0),
            ("[null,{\"a\":\"\"}]", 1),
            ("{\"a\":\"b\"}", 1),
            ("\"\"", 0),
            ("false", 0),
        ] {
            let text = of("list", value);
            let wire: Wire<'_> = serde_json::from_str(&text).unwrap();
            let found = list(wire.list, &mut Deviations::default());
            assert_eq!(found.len(), expected, "{value}");
        }
        for (value, expected) in [("[]", false), ("[{\"a\":\"\"}]", true), ("\"\"", false)] {
            let text = of("inner", value);
            let wire: Wire<'_> = serde_json::from_str(&text).unwrap();
            let found = object(wire.inner, &mut Deviations::default());
            assert_eq!(found.is_some(), expected, "{value}");
        }
        for wrong in ["7", "\"x\"", "true", "[7]"] {
            for field in ["list", "inner"] {
                let text = of(field, wrong);
                assert!(serde_json::from_str::<Wire<'_>>(&text).is_err(), "{text}");
            }
        }
        assert!(serde_json::from_str::<Wire<'_>>(r#"{"text":"\ud83d"}"#).is_err());
    }

    #[test]
    fn counts_may_be_floats_and_strings_and_are_never_guessed() {
        for (value, expected, deviates) in [
            (json!(9), Some(9), false),
            (json!(9.0), Some(9), true),
            (json!("9"), Some(9), true),
            (json!(" 9.0 "), Some(9), true),
            (json!(9.5), None, true),
            (json!(-4), None, true),
            (json!("many"), None, true),
            (json!(null), None, false),
            (json!([9]), None, true),
            (json!(1_u64 << 53), None, false),
            (json!("inf"), None, true),
        ] {
            let mut odd = Deviations::default();
            assert_eq!(count(Some(&value), &mut odd), expected, "{value}");
            assert_eq!(odd.iter().count(), usize::from(deviates), "{value}");
        }
    }

    #[test]
    fn arguments_are_an_object_or_the_content_of_a_string() {
        let read = |text: &str| {
            let raw: &RawValue = serde_json::from_str(text).unwrap();
            let mut odd = Deviations::default();
            let found = arguments(Some(raw), true, &mut odd).unwrap();
            (found, odd.iter().count())
        };
        assert_eq!(read(r#""{\"a\":1}""#), (Some(r#"{"a":1}"#.into()), 0));
        assert_eq!(read(r#"{"a": 1}"#), (Some(r#"{"a": 1}"#.into()), 1));
        assert_eq!(read("null"), (None, 0));
        assert_eq!(read("\"\""), (None, 0));
        assert_eq!(read("[]"), (Some("[]".into()), 1));
    }
}

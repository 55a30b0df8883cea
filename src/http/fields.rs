//! A JSON object's fields, taken one by one: each is checked when it is taken, and what nobody took is unknown.

use serde_json::{Map, Value};

use super::nearest::{nearest, suggestion};
use crate::error::{Error, ErrorCode};

/// The fields of an object that have not been taken yet.
#[derive(Debug)]
pub struct Fields {
    left: Map<String, Value>,
    path: String,
    /// The fields that the object can have: those that were asked for so far.
    known: Vec<String>,
    /// Fields of the whole request, which a client may have put into the wrong object.
    elsewhere: &'static [&'static str],
}

impl Fields {
    /// The fields of a body.
    ///
    /// # Errors
    /// `field_invalid` for what is no object.
    pub fn of_body(value: Value) -> Result<Self, Error> {
        match value {
            Value::Object(left) => Ok(Self::at(String::new(), left)),
            _ => Err(Error::new(ErrorCode::FieldInvalid, "The body must be a JSON object.")),
        }
    }

    /// The fields of an object within a body; `path` leads to them and ends in a dot.
    #[must_use]
    pub fn at(path: String, left: Map<String, Value>) -> Self {
        Self {
            left,
            path,
            known: Vec::new(),
            elsewhere: &[],
        }
    }

    /// The same, where the whole request has these fields: an unknown one is compared with all of them.
    #[must_use]
    pub fn among(self, elsewhere: &'static [&'static str]) -> Self {
        Self { elsewhere, ..self }
    }

    /// A field's full name.
    #[must_use]
    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// An error about a field: `message` completes the sentence that begins with its name.
    #[must_use]
    pub fn invalid(&self, field: &str, message: &str) -> Error {
        Error::field(ErrorCode::FieldInvalid, self.name(field), message)
    }

    /// Takes a field, whatever it is. `null` is a value that no field takes.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        if !self.left.is_empty() {
            self.known.push(self.name(field));
        }
        self.left.shift_remove(field)
    }

    /// The fields that have not been taken, as JSON with the names of every object sorted.
    #[must_use]
    pub fn canonical(&self) -> String {
        let mut left = Value::Object(self.left.clone());
        left.sort_all_objects();
        left.to_string()
    }

    /// Takes an object.
    ///
    /// # Errors
    /// `field_invalid`.
    pub fn object(&mut self, field: &str) -> Result<Option<Fields>, Error> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(left)) => {
                let path = format!("{}{field}.", self.path);
                Ok(Some(Self::at(path, left).among(self.elsewhere)))
            }
            Some(_) => Err(self.invalid(field, "must be an object")),
        }
    }

    /// Takes a text of at most `max` characters.
    ///
    /// # Errors
    /// `field_invalid`, and `control_character` for U+0000.
    pub fn text(&mut self, field: &str, max: usize) -> Result<Option<String>, Error> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let Value::String(text) = value else {
            return Err(self.invalid(field, "must be a string"));
        };
        no_nul(&self.name(field), &text)?;
        if text.len() > max && text.chars().nth(max).is_some() {
            return Err(self.invalid(field, &format!("may have at most {max} characters")));
        }
        Ok(Some(text))
    }

    /// Takes a truth value.
    ///
    /// # Errors
    /// `field_invalid`.
    pub fn truth(&mut self, field: &str) -> Result<Option<bool>, Error> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(truth)),
            Some(_) => Err(self.invalid(field, "must be true or false")),
        }
    }

    /// Takes a number that `fits`.
    ///
    /// # Errors
    /// `field_invalid`; `what` says what fits.
    pub fn number(&mut self, field: &str, what: &str, fits: fn(f64) -> bool) -> Result<Option<f64>, Error> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| fits(*number)) {
                Some(number) => Ok(Some(number)),
                None => Err(self.invalid(field, what)),
            },
        }
    }

    /// Takes one of some words.
    ///
    /// # Errors
    /// `field_invalid`, naming them.
    pub fn word<T: Copy>(&mut self, field: &str, words: &[(&str, T)]) -> Result<Option<T>, Error> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let found = words.iter().find(|(word, _)| value.as_str() == Some(word));
        match found {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let words: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
                Err(self.invalid(field, &format!("must be {}", words.join(" or "))))
            }
        }
    }

    /// Whether everything was taken.
    ///
    /// # Errors
    /// `unknown_field`, naming the first that was not, and the known one that is nearest to it.
    pub fn end(self) -> Result<(), Error> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(unknown) => {
                let known = self.known.iter().map(String::as_str);
                let near = nearest(unknown, known.chain(self.elsewhere.iter().copied()));
                let name: String = self.name(unknown).chars().take(100).collect();
                let message = format!("is not a field of this request{}", suggestion(near));
                Err(Error::field(ErrorCode::UnknownField, name, message))
            }
        }
    }
}

/// U+0000 has no place in a text: not every store can keep it.
///
/// # Errors
/// `control_character`.
pub fn no_nul(field: &str, text: &str) -> Result<(), Error> {
    if text.contains('\0') {
        return Err(Error::field(
            ErrorCode::ControlCharacter,
            field,
            "holds a character U+0000",
        ));
    }
    Ok(())
}

/// Whether a value holds a float at which integers are no longer exact: the digits that a client sent
/// for it may be lost.
#[must_use]
pub fn has_rounded_integer(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64() && number.as_f64().is_some_and(|n| n.abs() >= i64::MAX as f64),
        Value::Array(all) => all.iter().any(has_rounded_integer),
        Value::Object(all) => all.values().any(has_rounded_integer),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_canonical_form_does_not_depend_on_the_order_of_names() {
        let sent = json!({"z": [{"d": 1, "c": 2}], "message": "Hi", "a": {"y": null, "x": true}});
        let again = json!({"a": {"x": true, "y": null}, "z": [{"c": 2, "d": 1}], "message": "Hi"});
        let canonical = |body: Value| Fields::of_body(body).unwrap().canonical();
        let expected = r#"{"a":{"x":true,"y":null},"message":"Hi","z":[{"c":2,"d":1}]}"#;
        assert_eq!(canonical(sent), expected);
        assert_eq!(canonical(again), expected);
        let other = json!({"z": [{"c": 1, "d": 2}], "message": "Hi", "a": {"y": null, "x": true}});
        assert_ne!(canonical(other), expected);
    }

    #[test]
    fn integers_that_lost_their_digits_are_found_at_any_depth() {
        let read = |json: &str| has_rounded_integer(&serde_json::from_str(json).unwrap());
        assert!(read(r#"{"a":[1,{"b":123456789012345678901234}]}"#) && read("-9223372036854775809"));
        assert!(!read(r#"{"a":[18446744073709551615,-9223372036854775808,1.5,"1e30"]}"#));
    }

    #[test]
    fn taking_a_field_leaves_the_others_in_their_order() {
        let body = json!({"message": "Hi", "zeta": 1, "beta": 2, "alpha": 3});
        let mut fields = Fields::of_body(body).unwrap();
        fields.take("message");
        assert_eq!(fields.end().unwrap_err().field.as_deref(), Some("zeta"));
    }
}

//! A JSON object's fields, taken one by one: each is checked when it is taken, and what nobody took is unknown.

use serde_json::{Map, Value};

use crate::error::{Error, ErrorCode};

/// The fields of an object that have not been taken yet.
#[derive(Debug)]
pub struct Fields {
    left: Map<String, Value>,
    path: String,
}

impl Fields {
    /// The fields of a body.
    ///
    /// # Errors
    /// `field_invalid` for what is no object.
    pub fn of_body(value: Value) -> Result<Self, Error> {
        match value {
            Value::Object(left) => Ok(Self {
                left,
                path: String::new(),
            }),
            _ => Err(Error::new(ErrorCode::FieldInvalid, "The body must be a JSON object.")),
        }
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
        self.left.remove(field)
    }

    /// What has not been taken, as JSON with its names in order.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(&self.left).unwrap_or_default()
    }

    /// Takes an object.
    ///
    /// # Errors
    /// `field_invalid`.
    pub fn object(&mut self, field: &str) -> Result<Option<Fields>, Error> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(left)) => Ok(Some(Fields {
                left,
                path: format!("{}{field}.", self.path),
            })),
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
    /// `unknown_field`, naming the first that was not.
    pub fn end(self) -> Result<(), Error> {
        match self.left.keys().next() {
            None => Ok(()),
            Some(unknown) => {
                let name: String = self.name(unknown).chars().take(100).collect();
                Err(Error::field(
                    ErrorCode::UnknownField,
                    name,
                    "is not a field of this request",
                ))
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

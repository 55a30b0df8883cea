//! A request's query: strict percent-encoding, every parameter known and given once. And a path's parameter.

use std::{collections::BTreeMap, str::FromStr};

use axum::extract::{Path, rejection::PathRejection};

use super::nearest::{nearest, suggestion};
use crate::error::{Error, ErrorCode};

/// The parameters of a query.
#[derive(Debug)]
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads a query that may hold the parameters `known`.
    ///
    /// # Errors
    /// `query_invalid`, `duplicate_parameter`, `unknown_field`.
    pub fn read(query: Option<&str>, known: &[&str]) -> Result<Self, Error> {
        let mut all = BTreeMap::new();
        for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            if !known.contains(&name.as_str()) {
                let near = suggestion(nearest(&name, known.iter().copied()));
                let name: String = name.chars().take(100).collect();
                let message = format!("is not a parameter here{near}");
                return Err(Error::field(ErrorCode::UnknownField, name, message));
            }
            if all.contains_key(&name) {
                return Err(Error::field(ErrorCode::DuplicateParameter, name, "is there twice"));
            }
            all.insert(name, value);
        }
        Ok(Self(all))
    }

    /// Takes a parameter.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// What has not been taken.
    #[must_use]
    pub fn rest(self) -> BTreeMap<String, String> {
        self.0
    }
}

/// An id in a path, if it could be read.
pub type PathId = Result<Path<String>, PathRejection>;

/// An id in a path: what is none names nothing.
///
/// # Errors
/// `not_found`.
pub fn known<T: FromStr>(id: PathId) -> Result<T, Error> {
    let id = id.ok().and_then(|Path(id)| id.parse().ok());
    id.ok_or_else(Error::not_found)
}

/// `application/x-www-form-urlencoded`, without its leniency: every `%` has two hex digits, and the bytes are UTF-8.
pub(super) fn decode(text: &str) -> Result<String, Error> {
    let invalid = || Error::new(ErrorCode::QueryInvalid, "The query must be percent-encoded UTF-8.");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(invalid);
                (digit()? * 16 + digit()?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_to_the_letter() {
        let mut query = Query::read(
            Some("message=a+b%2Bc%20%C3%A9&&format=json&empty"),
            &["message", "format", "empty"],
        )
        .unwrap();
        assert_eq!(query.take("message").as_deref(), Some("a b+c é"));
        assert_eq!(query.take("empty").as_deref(), Some(""));
        assert_eq!(query.rest().len(), 1);
        let code = |text: &str| Query::read(Some(text), &["message"]).unwrap_err().code;
        for invalid in [
            "message=%FF",
            "message=%C3%28",
            "message=%",
            "message=%2",
            "message=%zz",
            "message=%+1",
        ] {
            assert_eq!(code(invalid), ErrorCode::QueryInvalid, "{invalid}");
        }
        assert_eq!(code("message=a&message=b"), ErrorCode::DuplicateParameter);
        assert_eq!(code("messsage=a"), ErrorCode::UnknownField);
        let unknown = Query::read(Some("messsage=a"), &["message"]).unwrap_err();
        assert!(
            unknown.message.ends_with("; did you mean `message`?"),
            "{}",
            unknown.message
        );
        assert!(Query::read(None, &[]).is_ok());
    }
}

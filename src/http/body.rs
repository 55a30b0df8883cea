//! A request's body: bounded in size and time, and JSON to the letter.

use std::cell::Cell;

use axum::{
    body::Body,
    http::{HeaderMap, Request, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::FrontSettings;
use crate::{
    chat::Principal,
    error::{Error, ErrorCode},
    limit::{MemoryUse, Reservation},
};

/// How deep JSON may be nested.
const MAX_DEPTH: usize = 64;
/// How many values JSON may have: each of them takes sixteen times what it takes to write `1,`. What is valid has fewer.
const MAX_VALUES: usize = 100_000;

/// The body of a request that must be JSON, and the memory that is reserved for it: twice its size, for what is made of it
/// beside it.
///
/// # Errors
/// Everything that keeps it from being a value.
pub async fn json(
    request: Request<Body>,
    who: &Principal,
    settings: &FrontSettings,
) -> Result<(Value, Reservation), Error> {
    media_type(request.headers())?;
    let (bytes, mut memory) = read(request, who, settings).await?;
    memory.grow_to(2 * bytes.len(), MemoryUse::Body).await?;
    Ok((parse(&bytes)?, memory))
}

/// The bytes of a request's body.
///
/// # Errors
/// Over a limit, too slow, broken off, or encoded.
pub async fn bytes(request: Request<Body>, who: &Principal, settings: &FrontSettings) -> Result<Bytes, Error> {
    Ok(read(request, who, settings).await?.0)
}

async fn read(
    request: Request<Body>,
    who: &Principal,
    settings: &FrontSettings,
) -> Result<(Bytes, Reservation), Error> {
    let (parts, mut body) = request.into_parts();
    let mut codings = parts.headers.get_all(header::CONTENT_ENCODING).iter();
    if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Error::new(
            ErrorCode::EncodingUnsupported,
            "Bodies are taken without content encoding only.",
        ));
    }
    let too_large = || {
        Error::new(
            ErrorCode::BodyTooLarge,
            format!("A body may have {} bytes.", settings.max_body),
        )
    };
    let announced = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > settings.max_body as u64) {
        return Err(too_large());
    }
    let (mut whole, mut memory) = (BytesMut::new(), settings.memory.reserve_nothing(who));
    let read = async {
        while let Some(frame) = body.frame().await {
            let incomplete = |e: axum::Error| Error::new(ErrorCode::BodyIncomplete, "The body broke off.").because(e);
            if let Ok(data) = frame.map_err(incomplete)?.into_data() {
                if whole.len() + data.len() > settings.max_body {
                    return Err(too_large());
                }
                memory.grow_to(whole.len() + data.len(), MemoryUse::Body).await?;
                whole.extend_from_slice(&data);
            }
        }
        Ok(())
    };
    let slow = |_| Error::new(ErrorCode::RequestTimeout, "The body did not arrive in time.");
    crate::patience::timeout(settings.body_timeout, read)
        .await
        .map_err(slow)??;
    Ok((whole.freeze(), memory))
}

fn media_type(headers: &HeaderMap) -> Result<(), Error> {
    let told = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let mut parts = told.split(';').map(str::trim);
    let json = parts
        .next()
        .is_some_and(|media| media.eq_ignore_ascii_case("application/json"));
    let utf8 = parts.filter_map(|part| part.split_once('=')).all(|(name, value)| {
        !name.trim().eq_ignore_ascii_case("charset") || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    if json && utf8 {
        Ok(())
    } else {
        Err(Error::new(
            ErrorCode::MediaType,
            "The body must be application/json, in UTF-8.",
        ))
    }
}

/// JSON to the letter: UTF-8, one value, no name twice in an object, at most 64 deep, and not of too many values.
///
/// # Errors
/// `json_invalid`.
pub fn parse(bytes: &[u8]) -> Result<Value, Error> {
    let invalid = |what: String| Error::new(ErrorCode::JsonInvalid, what);
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("The body is not UTF-8.".to_owned()))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let left = Cell::new(MAX_VALUES);
    let value = Strict { depth: 0, left: &left }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value));
    if left.get() == 0 {
        let message = format!("A body may have {MAX_VALUES} values.");
        return Err(Error::new(ErrorCode::BodyTooLarge, message));
    }
    value.map_err(|e| {
        invalid(format!(
            "The body is not one strict JSON value (line {}, column {}).",
            e.line(),
            e.column()
        ))
    })
}

struct Strict<'a> {
    depth: usize,
    /// How many more values there may be.
    left: &'a Cell<usize>,
}

impl Strict<'_> {
    fn deeper<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom("too deep"));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..*self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.left.set(self.left.get().saturating_sub(1));
        if self.left.get() == 0 {
            return Err(D::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(value) = seq.next_element_seed(self.deeper()?)? {
            all.push(value);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        self.deeper()?; // an empty object is as deep as any
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(self.deeper()?)?;
            if all.insert(name, value).is_some() {
                return Err(A::Error::custom("a name twice"));
            }
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_to_the_letter() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        for fine in [
            "{}",
            " [1, -2.5, \"é\\u0000\", null, true] ",
            r#"{"a":{"a":1}}"#,
            &nested(64),
        ] {
            assert_eq!(
                parse(fine.as_bytes()).unwrap(),
                serde_json::from_str::<Value>(fine).unwrap()
            );
        }
        let wrong: [&[u8]; 19] = [
            b"",
            b"   ",
            b"{",
            b"{'a':1}",
            b"[1,]",
            b"{/**/}",
            b"NaN",
            b"Infinity",
            b"{}{}",
            b"{}x",
            b"\"\xC3\x28\"",
            b"\"\xC0\xAF\"",
            b"\"\xED\xA0\x80\"",
            b"\xEF\xBB\xBF{}",
            b"\"\\ud800\"",
            b"\"\\udc00\\ud800\"",
            br#"{"a":1,"a":2}"#,
            br#"{"x":{"a":1,"a":1}}"#,
            b"1e999",
        ];
        for wrong in wrong {
            assert_eq!(
                parse(wrong).unwrap_err().code,
                ErrorCode::JsonInvalid,
                "{:?}",
                wrong.escape_ascii().to_string()
            );
        }
        let hollow = |depth: usize| nested(depth).replace('1', "{}").into_bytes();
        assert!(parse(&hollow(63)).is_ok());
        assert_eq!(parse(&hollow(64)).unwrap_err().code, ErrorCode::JsonInvalid);
        assert_eq!(parse(nested(65).as_bytes()).unwrap_err().code, ErrorCode::JsonInvalid);
        assert_eq!(
            parse("[".repeat(100_000).as_bytes()).unwrap_err().code,
            ErrorCode::JsonInvalid
        );
        let many = |count: usize| format!("[{}1]", "1,".repeat(count - 1));
        assert!(parse(many(MAX_VALUES - 2).as_bytes()).is_ok());
        assert_eq!(
            parse(many(MAX_VALUES).as_bytes()).unwrap_err().code,
            ErrorCode::BodyTooLarge
        );
    }

    #[test]
    fn only_json_in_utf8_is_json() {
        let ask =
            |value: &str| media_type(&HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())])).is_ok();
        assert!(
            ask("application/json")
                && ask("Application/JSON; charset=UTF-8")
                && ask("application/json;charset=\"utf-8\"")
        );
        for wrong in [
            "text/plain",
            "application/json; charset=utf-16",
            "application/json5",
            "multipart/form-data",
            "",
        ] {
            assert!(!ask(wrong), "{wrong}");
        }
        assert!(media_type(&HeaderMap::new()).is_err());
    }
}

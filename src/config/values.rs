//! How single values are written: times, sizes, lists, and secrets, which are never shown.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

use bytesize::ByteSize;
use config::{Value, ValueKind};
use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, IntoDeserializer, value::StringDeserializer},
};

use super::{ConfigError, wrong};
use crate::tool::is_secret;

/// A secret text with the variables in it that it names: `Bearer ${TOKEN}`.
pub(super) fn expand(
    secret: &Secret,
    environment: &BTreeMap<String, String>,
    at: &str,
) -> Result<SecretString, ConfigError> {
    filled(secret.0.expose_secret(), environment, at).map(SecretString::from)
}

/// A text with the variables in it that it names.
pub(super) fn filled(text: &str, environment: &BTreeMap<String, String>, at: &str) -> Result<String, ConfigError> {
    let mut rest = text;
    let mut whole = String::with_capacity(rest.len());
    while let Some((before, after)) = rest.split_once("${") {
        let named = after
            .split_once('}')
            .filter(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        let Some((name, after)) = named else {
            return Err(wrong(format!(
                "{at}: ${{ is not followed by the name of a variable and }}"
            )));
        };
        let value = environment
            .get(name)
            .ok_or_else(|| wrong(format!("{at}: {name} is not set")))?;
        whole.push_str(before);
        whole.push_str(value.trim());
        rest = after;
    }
    whole.push_str(rest);
    Ok(whole)
}

/// A text that is never shown.
#[derive(Clone, Debug)]
pub(super) struct Secret(pub(super) SecretString);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.trim().to_owned().into()))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.expose_secret().is_empty() { "" } else { "***" })
    }
}

/// An address as it may be shown: what its query says under the name of a key is masked, unless it is a place for a value.
pub(super) fn veiled_url<S: Serializer>(url: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let url = url.as_deref().unwrap_or_default();
    let Some((before, query)) = url.split_once('?') else {
        return serializer.serialize_str(url);
    };
    let pairs: Vec<_> = query.split('&').map(|pair| veiled(pair, is_secret)).collect();
    serializer.serialize_str(&format!("{before}?{}", pairs.join("&")))
}

/// Arguments as they may be shown: `--api-key=…` and `--token …` are masked in the same way.
pub(super) fn veiled_args<S: Serializer>(args: &List, serializer: S) -> Result<S::Ok, S::Error> {
    let is_flag = |name: &str| name.starts_with('-') && is_secret(name);
    let before = std::iter::once(None).chain(args.0.iter().map(Some));
    let shown = before.zip(&args.0).map(|(before, arg)| match before {
        Some(flag) if is_flag(flag) && !flag.contains('=') => mask(arg),
        _ => veiled(arg, is_flag),
    });
    serializer.collect_seq(shown)
}

/// A `name=value`, the value masked if it has such a name.
fn veiled(pair: &str, secret: impl Fn(&str) -> bool) -> String {
    match pair.split_once('=') {
        Some((name, value)) if secret(name) => format!("{name}={}", mask(value)),
        _ => pair.to_owned(),
    }
}

/// `***` for what is not just the place of a value, `${VARIABLE}` or `{argument}`.
fn mask(value: &str) -> String {
    let place = value.strip_prefix('$').unwrap_or(value);
    let name = place.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    match name {
        Some(name) if !name.contains(['{', '}']) => value.to_owned(),
        _ if value.is_empty() => String::new(),
        _ => "***".to_owned(),
    }
}

/// `"250ms"`, `"30s"`, `"5m"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub(super) Duration);

impl Time {
    /// More than nothing: what has no time at all would fail at once.
    pub(super) fn positive(self, at: &str) -> Result<Duration, ConfigError> {
        match self.0.is_zero() {
            true => Err(wrong(format!("{at}: must be more than nothing"))),
            false => Ok(self.0),
        }
    }
}

pub(super) fn time(text: &str) -> Option<Duration> {
    let unsigned = !text.starts_with(['-', '+']) && !text.contains("ago");
    let span: jiff::SignedDuration = text.parse().ok().filter(|_| unsigned)?;
    Duration::try_from(span).ok()
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        time(&text)
            .map(Self)
            .ok_or_else(|| D::Error::custom("expected a duration, such as \"250ms\", \"30s\" or \"5m\""))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = self.0.as_millis();
        let text = if millis.is_multiple_of(1000) {
            format!("{}s", millis / 1000)
        } else {
            format!("{millis}ms")
        };
        serializer.serialize_str(&text)
    }
}

/// A time, or `""` for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct OptionalTime(pub(super) Option<Duration>);

impl<'de> Deserialize<'de> for OptionalTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        let found = time(&text).filter(|time| !time.is_zero());
        found
            .map(|time| Self(Some(time)))
            .ok_or_else(|| D::Error::custom("expected a duration, such as \"30m\" or \"24h\", or \"\""))
    }
}

impl Serialize for OptionalTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(time) => Time(time).serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }
}

/// An address to listen at: `127.0.0.1:8080`, or with a name for the host, `localhost:8080`, of
/// which the first address counts, an IPv4 one before others.
///
/// # Errors
/// What such an address looks like, or that nobody knows the name.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    const EXPECTED: &str = "expected an address and a port, such as \"127.0.0.1:8080\" or \"localhost:8080\"";
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (name, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if name.is_empty() || !name.bytes().all(fits) || port.parse::<u16>().is_err() {
        return Err(EXPECTED.to_owned());
    }
    let unknown = || "expected an address, or the name of a host that is known here".to_owned();
    let all: Vec<SocketAddr> = text.to_socket_addrs().map_err(|_| unknown())?.collect();
    let first = all.iter().find(|address| address.is_ipv4()).or(all.first());
    first.copied().ok_or_else(unknown)
}

/// An address to listen at.
pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    listen_address(&text).map_err(D::Error::custom)
}

/// One of the words of an enum; the error lists them.
pub(super) fn word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    let word: StringDeserializer<serde::de::value::Error> = text.into_deserializer();
    T::deserialize(word).map_err(D::Error::custom)
}

/// A word that may be left out.
pub(super) fn optional_word<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    word(deserializer).map(Some)
}

/// An address, or `""` for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct OptionalAddress(pub(super) Option<SocketAddr>);

impl<'de> Deserialize<'de> for OptionalAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        let address = listen_address(&text).map_err(|error| D::Error::custom(format!("{error}, or \"\"")))?;
        Ok(Self(Some(address)))
    }
}

impl Serialize for OptionalAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(address) => address.serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }
}

/// `"64KiB"`, `"4MiB"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size(pub(super) usize);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let size = text
            .parse::<ByteSize>()
            .ok()
            .and_then(|size| usize::try_from(size.as_u64()).ok());
        size.map(Self)
            .ok_or_else(|| D::Error::custom("expected a size, such as \"64KiB\" or \"4MiB\""))
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&ByteSize(self.0 as u64).to_string())
    }
}

/// A list of texts; in the environment separated by commas.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct List(pub(super) Vec<String>);

impl List {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = match Value::deserialize(deserializer)?.kind {
            ValueKind::Array(list) => list
                .into_iter()
                .map(Value::into_string)
                .collect::<Result<_, _>>()
                .map_err(D::Error::custom)?,
            ValueKind::String(text) => text
                .split(',')
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty())
                .collect(),
            _ => return Err(D::Error::custom("expected a list of strings")),
        };
        Ok(Self(texts))
    }
}

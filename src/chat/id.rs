//! Who and what: run ids, event ids, session ids, artifact ids, principals.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The number that no event has: what JSON's readers can count to.
const MAX_SEQ: u64 = 1 << 53;

/// A run's id: a UUIDv7, so that ids sort by the time of their making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Uuid);

impl RunId {
    /// A fresh id.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "a default id would look like a value; every call makes another one"
    )]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for RunId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        uuid(text).map(Self)
    }
}

/// Takes the one spelling that we write: 36 characters, lower case, hyphens.
fn uuid(text: &str) -> Result<Uuid, Malformed> {
    let id = Uuid::try_parse(text).map_err(|_| Malformed)?;
    let mut spelling = [0; uuid::fmt::Hyphenated::LENGTH];
    if *id.as_hyphenated().encode_lower(&mut spelling) == *text {
        Ok(id)
    } else {
        Err(Malformed)
    }
}

/// An artifact's id, which nobody can guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArtifactId(Uuid);

impl ArtifactId {
    /// A fresh id.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for ArtifactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for ArtifactId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        uuid(text).map(Self)
    }
}

/// The id of one event: `<run_id>:<seq>`, what `Last-Event-ID` carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId {
    /// The run.
    pub run: RunId,
    /// The event's number in the run, from 0.
    pub seq: u64,
}

impl FromStr for EventId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (run, seq) = text.split_once(':').ok_or(Malformed)?;
        let digits = !seq.is_empty() && seq.len() <= 20 && seq.bytes().all(|b| b.is_ascii_digit());
        if !digits || (seq.len() > 1 && seq.starts_with('0')) {
            return Err(Malformed);
        }
        Ok(Self {
            run: run.parse()?,
            seq: seq.parse().ok().filter(|seq| *seq < MAX_SEQ).ok_or(Malformed)?,
        })
    }
}

/// A session's id: `[A-Za-z0-9._:-]{1,128}`, unique within its principal's namespace. Neither `.` nor `..`, because a client
/// resolves these as segments of a path, so that no URL could name such a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// A fresh id that nobody can guess: a UUIDv7 of 74 random bits. Sessions that were begun together are together in a
    /// store, too, instead of each on a page of its own.
    #[must_use]
    pub fn generate() -> Self {
        let now = jiff::Timestamp::now().as_millisecond();
        let mut random = [0; 10];
        let (first, last) = random.split_at_mut(6);
        // What of a random id is neither its version nor its variant.
        let given = *Uuid::new_v4().as_bytes();
        first.copy_from_slice(&given[..6]);
        last.copy_from_slice(&given[9..13]);
        let id = uuid::Builder::from_unix_timestamp_millis(now.unsigned_abs(), &random);
        Self(id.into_uuid().to_string().into())
    }

    /// The id of a session that is in a store already. Not checked again, so that a row of an earlier version can be read.
    #[must_use]
    pub fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SessionId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
        let dots = matches!(text, "." | "..");
        if (1..=128).contains(&text.len()) && text.bytes().all(allowed) && !dots {
            Ok(Self(text.into()))
        } else {
            Err(Malformed)
        }
    }
}

/// Who is asking: an API key's name, or `anonymous`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal(Arc<str>);

impl Principal {
    /// The caller without a key.
    #[must_use]
    pub fn anonymous() -> Self {
        Self("anonymous".into())
    }

    /// A caller by name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An id that is not of its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a well-formed id")]
pub struct Malformed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_has_one_spelling() {
        let run = RunId::new();
        let id: EventId = format!("{run}:17").parse().unwrap();
        assert_eq!((id.run, id.seq), (run, 17));
        for wrong in [
            "",
            "abc",
            "-1",
            &format!("{run}"),
            &format!("{run}:"),
            &format!("{run}:-1"),
            &format!("{run}:+1"),
            &format!("{run}:01"),
            &format!("{run}:00"),
            &format!("{run}:{}", "9".repeat(21)),
            &format!("{run}:99999999999999999999"),
            &format!("{run}:{MAX_SEQ}"),
            &format!("{run}:1 "),
            &format!("{}:1", run.to_string().to_uppercase()),
        ] {
            assert!(wrong.parse::<EventId>().is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn a_session_id_of_ours_tells_when_it_was_made_and_nothing_else() {
        let ids: Vec<Uuid> = (0..1_000)
            .map(|_| SessionId::generate().as_str().parse().unwrap())
            .collect();
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
        // Each bit behind the time is now this and now that.
        let random = ids.iter().map(|id| id.as_u128() as u64 & (u64::MAX >> 2));
        assert_eq!(random.clone().fold(0, |bits, id| bits | id), u64::MAX >> 2);
        assert_eq!(random.fold(u64::MAX, |bits, id| bits & id), 0);
        assert_eq!(
            ids.iter().fold(0, |bits, id| bits | (id.as_u128() >> 64 & 0xfff)),
            0xfff
        );
    }

    #[test]
    fn a_session_id_is_a_plain_word() {
        for right in ["a", "A-b_c.d:9", "...", ".a", "..a", "a..", ":", &"x".repeat(128)] {
            assert!(right.parse::<SessionId>().is_ok());
        }
        for wrong in [
            "",
            "a/b",
            ".",
            "..",
            "../../etc/passwd",
            "..%2f",
            "a b",
            "é",
            "\u{1F600}",
            "a\0",
            &"x".repeat(129),
        ] {
            assert!(wrong.parse::<SessionId>().is_err(), "{wrong:?} was taken");
        }
    }
}

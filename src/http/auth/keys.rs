//! The keys that callers have: what is kept of one is its SHA-256.

use std::{fmt, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use subtle::ConstantTimeEq;

use crate::{chat::Principal, run::Permit};

/// What begins every key that is made here, so that those who look for lost secrets know one.
const PREFIX: &str = "sluice_";

/// A caller's key, as the configuration has it.
#[derive(Clone)]
pub struct Key {
    /// Whose it is. Two keys of one name are one caller, for as long as one takes the other's place.
    pub principal: Principal,
    /// The SHA-256 of the key.
    pub sha256: [u8; 32],
    /// From when on it is not taken any more.
    pub expires: Option<Timestamp>,
    /// Whether it is taken at all.
    pub standing: Standing,
    /// What its owner may.
    pub allowance: Allowance,
}

/// Whether a key is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is.
    Good,
    /// It is not, for now.
    Disabled,
}

/// What a caller may, and how much of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// How many requests within a minute; 0: no limit.
    pub requests_per_minute: u32,
    /// What its runs may.
    pub permit: Arc<Permit>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

impl Key {
    fn taken(&self, now: Timestamp) -> bool {
        self.standing == Standing::Good && self.expires.is_none_or(|end| now < end)
    }
}

/// All keys.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    keys: Vec<Key>,
}

impl Keyring {
    /// A ring of these.
    #[must_use]
    pub fn new(keys: Vec<Key>) -> Self {
        Self { keys }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Each of them.
    pub fn all(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// Whose they are, each name once.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.keys.iter().map(|key| key.principal.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The key of that SHA-256, if it is one that is taken `now`.
    pub(super) fn known(&self, sha256: &str, now: Timestamp) -> Option<&Key> {
        let found = self.keys.iter().find(|key| hex(&key.sha256) == sha256);
        found.filter(|key| key.taken(now))
    }

    /// The key that this is, if it is one that is taken `now`. All are compared, and each to its end, so that the time
    /// that it takes tells nothing.
    pub(super) fn find(&self, told: &str, now: Timestamp) -> Option<&Key> {
        let told = digest(&SHA256, told.as_bytes());
        let mut found = None;
        for key in &self.keys {
            if bool::from(key.sha256.ct_eq(told.as_ref())) {
                found = Some(key);
            }
        }
        found.filter(|key| key.taken(now))
    }
}

/// A key that is new, and its SHA-256 in hexadecimal.
///
/// # Errors
/// The system has no random numbers.
pub fn generate() -> Result<(String, String), aws_lc_rs::error::Unspecified> {
    let key = secret(PREFIX)?;
    let digest = digest(&SHA256, key.as_bytes());
    let hex = hex(digest.as_ref());
    Ok((key, hex))
}

/// A word that nobody guesses, after what it begins with.
pub(in crate::http) fn secret(prefix: &str) -> Result<String, aws_lc_rs::error::Unspecified> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    let mut random = [0; 32];
    aws_lc_rs::rand::fill(&mut random)?;
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random)))
}

pub(in crate::http) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key {
            principal: Principal::named(text),
            sha256: digest(&SHA256, text.as_bytes()).as_ref().try_into().unwrap(),
            expires: None,
            standing: Standing::Good,
            allowance: Allowance::default(),
        }
    }

    #[test]
    fn a_key_is_found_by_all_of_it() {
        let ring = Keyring::new(vec![key("first"), key("second")]);
        let now = Timestamp::now();
        let whose = |told: &str| ring.find(told, now).map(|key| key.principal.as_str().to_owned());
        assert_eq!(whose("first").as_deref(), Some("first"));
        assert_eq!(whose("second").as_deref(), Some("second"));
        for wrong in ["", "firs", "firsT", "first ", "firstsecond", "' OR 1=1--"] {
            assert_eq!(whose(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_key_has_its_time() {
        let now = Timestamp::now();
        let mut key = key("k");
        let taken = |key: &Key| Keyring::new(vec![key.clone()]).find("k", now).is_some();
        assert!(taken(&key));
        key.expires = Some(now);
        assert!(!taken(&key), "its end is not part of its time");
        key.expires = Some(now + jiff::SignedDuration::from_secs(1));
        assert!(taken(&key));
        key.standing = Standing::Disabled;
        assert!(!taken(&key));
    }

    #[test]
    fn no_two_new_keys_are_the_same() {
        let (key, hex) = generate().unwrap();
        assert_ne!(generate().unwrap().0, key);
        assert_eq!((key.len(), hex.len()), (PREFIX.len() + 43, 64));
    }
}

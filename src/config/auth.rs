//! Who may call, as it is written down.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    ConfigError, Problems,
    tree::Tree,
    values::{List, Size},
    wrong,
};
use crate::{
    chat::Principal,
    http::auth::{
        Access, IssuerSettings, Names,
        keys::{Allowance, Key, Keyring, Standing},
    },
    run::Permit,
};

/// The most requests within a minute that a limit can admit.
const MOST_REQUESTS: u32 = 100_000;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthTree {
    allow_anonymous: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<KeyTree>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jwt: Option<JwtTree>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct JwtTree {
    issuer: String,
    audience: List,
    jwks_url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    concurrent_runs: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agents: Option<List>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tools: Option<List>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsSection {
    pub(super) max_runs: usize,
    pub(super) requests_per_minute: u32,
    pub(super) concurrent_runs: usize,
    pub(super) memory: Size,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyTree {
    name: String,
    sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests_per_minute: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    concurrent_runs: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agents: Option<List>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tools: Option<List>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disabled: Option<bool>,
}

impl Tree {
    /// Who may call.
    pub(super) fn access(&self) -> Result<Access, ConfigError> {
        let mut problems = Problems::default();
        problems.take(often("limits.requests_per_minute", self.limits.requests_per_minute));
        let mut known = BTreeSet::new();
        let mut keys = Vec::new();
        for (at, tree) in self.auth.keys.iter().enumerate() {
            let key = self.key(tree, &|field| format!("auth.keys[{at}].{field}"));
            let Some(key) = problems.take(key) else { continue };
            if !known.insert(key.sha256) {
                problems.add(format!("auth.keys[{at}].sha256: the same key twice"));
            }
            keys.push(key);
        }
        let loopback = self.server.listen.ip().is_loopback();
        let trusted = self.server.trusted_hosts.0.clone();
        let issuer = self.auth.jwt.as_ref().map(|tree| self.issuer(tree)).transpose();
        let issuer = problems.take(issuer).flatten();
        problems.end()?;
        let guarded = (!keys.is_empty() || issuer.is_some()) && !self.auth.allow_anonymous;
        Ok(Access {
            loopback,
            allow_anonymous: self.auth.allow_anonymous,
            anonymous: self.allowance(None, None, Permit::default()),
            keys: Keyring::new(keys),
            issuer,
            names: Names {
                any: guarded && trusted.is_empty(),
                trusted,
            },
        })
    }

    fn key(&self, tree: &KeyTree, at: &dyn Fn(&str) -> String) -> Result<Key, ConfigError> {
        let plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._@-".contains(&b));
        if !(1..=64).contains(&tree.name.len()) || !plain(&tree.name) || tree.name == "anonymous" {
            return Err(wrong(format!(
                "{}: must have 1 to 64 of the characters A-Z a-z 0-9 . _ @ -, and not be \"anonymous\"",
                at("name")
            )));
        }
        let sha256 = digest(&tree.sha256).ok_or_else(|| {
            wrong(format!(
                "{}: must be the SHA-256 of a key, 64 hexadecimal digits; `sluicegate keys new` makes one",
                at("sha256")
            ))
        })?;
        often(&at("requests_per_minute"), tree.requests_per_minute.unwrap_or(0))?;
        let expires = tree.expires.as_deref().map(|text| {
            let day = || format!("{text}T00:00:00Z").parse::<Timestamp>();
            let time = text.parse::<Timestamp>().or_else(|_| day());
            time.map_err(|_| {
                wrong(format!(
                    "{}: must be a time such as \"2027-01-31T12:00:00Z\", or a day",
                    at("expires")
                ))
            })
        });
        let permit = permit(tree.agents.as_ref(), tree.tools.as_ref());
        Ok(Key {
            principal: Principal::named(&tree.name),
            sha256,
            expires: expires.transpose()?,
            standing: if tree.disabled == Some(true) {
                Standing::Disabled
            } else {
                Standing::Good
            },
            allowance: self.allowance(tree.requests_per_minute, tree.concurrent_runs, permit),
        })
    }

    fn issuer(&self, tree: &JwtTree) -> Result<IssuerSettings, ConfigError> {
        let told = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
        if !told(&tree.issuer) {
            return Err(wrong("auth.jwt.issuer: must be what the issuer calls itself"));
        }
        if tree.audience.is_empty() || !tree.audience.0.iter().all(|name| told(name)) {
            return Err(wrong("auth.jwt.audience: must say for whom tokens are"));
        }
        // The characters of RFC 6749, section 3.3: a scope is one word.
        let word = |scope: &String| told(scope) && scope.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\".contains(&b));
        if !tree.scope.as_ref().is_none_or(word) {
            return Err(wrong("auth.jwt.scope: must be one word"));
        }
        let permit = permit(tree.agents.as_ref(), tree.tools.as_ref());
        Ok(IssuerSettings {
            issuer: tree.issuer.clone(),
            audience: tree.audience.0.clone(),
            jwks_url: tree.jwks_url.clone(),
            scope: tree.scope.clone(),
            allowance: self.allowance(tree.requests_per_minute, tree.concurrent_runs, permit),
        })
    }

    /// What a caller may, with the defaults for what is not said.
    fn allowance(&self, requests: Option<u32>, runs: Option<usize>, permit: Permit) -> Allowance {
        Allowance {
            requests_per_minute: requests.unwrap_or(self.limits.requests_per_minute),
            permit: Arc::new(Permit {
                concurrent_runs: runs.unwrap_or(self.limits.concurrent_runs),
                ..permit
            }),
        }
    }
}

fn permit(agents: Option<&List>, tools: Option<&List>) -> Permit {
    Permit {
        agents: agents.map(|list| list.0.clone()),
        tools: tools.map(|list| list.0.clone()),
        concurrent_runs: 0,
    }
}

/// What is counted is remembered for a minute, each by itself.
fn often(name: &str, requests: u32) -> Result<(), ConfigError> {
    if requests <= MOST_REQUESTS {
        return Ok(());
    }
    Err(wrong(format!(
        "{name}: must be at most {MOST_REQUESTS}; 0 means no limit"
    )))
}

/// 64 hexadecimal digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

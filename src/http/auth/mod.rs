//! Who may call, and as whom.

use std::{fmt, sync::Arc};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, Uri, header, request::Parts},
};
use jiff::Timestamp;

use super::{Front, error::Refusal, limits, query::decode, request_log::KnownCaller};
use crate::{
    chat::Principal,
    error::{Error, ErrorCode},
    run::Permit,
    store::TicketRecord,
};

mod host;
#[cfg(feature = "jwt")]
mod jwks;
#[cfg_attr(not(feature = "jwt"), path = "no_jwt.rs")]
pub mod jwt;
pub mod keys;
pub(in crate::http) mod site;

pub use host::Names;
use keys::{Allowance, Keyring};

/// Who may call.
#[derive(Clone, Debug)]
pub struct Access {
    /// Whether the gateway listens on loopback only: then it is one person's own.
    pub loopback: bool,
    /// Whether callers without a key may come from anywhere.
    pub allow_anonymous: bool,
    /// What callers without a key may.
    pub anonymous: Allowance,
    /// The keys.
    pub keys: Keyring,
    /// Whose tokens are taken beside them.
    pub issuer: Option<IssuerSettings>,
    /// By which names it may be called.
    pub names: Names,
}

/// An issuer of tokens (JWT).
#[derive(Clone, Debug)]
pub struct IssuerSettings {
    /// What its tokens call it: the claim `iss`, to the letter.
    pub issuer: String,
    /// For whom tokens must be: one of these must be in the claim `aud`.
    pub audience: Vec<String>,
    /// Where its keys are.
    pub jwks_url: String,
    /// A word that must be in the claim `scope` or `scp`.
    pub scope: Option<String>,
    /// What those may who have a token.
    pub allowance: Allowance,
}

impl Access {
    /// Whether callers can say who they are.
    #[must_use]
    pub fn guarded(&self) -> bool {
        !self.keys.is_empty() || self.issuer.is_some()
    }

    /// Whether somebody may call who does not.
    #[must_use]
    pub fn open(&self) -> bool {
        self.allow_anonymous || !self.guarded()
    }

    /// Whether those who do not say who they are may be many: where the gateway listens beyond loopback, or may be called by
    /// anybody, or is called there by another's name, as behind a proxy, or knows callers by their keys beside them.
    #[must_use]
    pub fn crowded(&self) -> bool {
        !self.loopback || self.allow_anonymous || self.guarded() || !self.names.trusted.is_empty()
    }

    /// Refuses a request to a host name that is not the gateway's own and, where the gateway serves one person on its
    /// own machine (no keys, no `allow_anonymous`), a request that came through a proxy.
    ///
    /// # Errors
    /// `host_invalid`, `host_not_allowed`, `forbidden`.
    pub fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Error> {
        self.names.admit(uri, headers)?;
        if self.loopback && !self.allow_anonymous && !self.guarded() {
            host::refuse_proxied(headers)?;
        }
        Ok(())
    }

    /// Whether anybody who reaches it could use it, although nobody said so.
    #[must_use]
    pub fn exposed(&self) -> bool {
        !self.loopback && !self.allow_anonymous && !self.guarded()
    }

    /// Whether a page of this origin may read what it asks for.
    #[must_use]
    pub fn local_page(&self, origin: &str) -> bool {
        self.loopback && self.open() && host::local_page(origin)
    }
}

/// The caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// As whom.
    pub principal: Principal,
    /// Whether callers cannot be told from each other: then none may see what the others have, and names are not theirs
    /// to choose.
    pub shared: bool,
    /// What it may.
    pub permit: Arc<Permit>,
    /// How many requests within a minute; 0: no limit.
    pub requests_per_minute: u32,
    /// How it is known.
    pub proof: Proof,
}

/// How a caller is known.
#[derive(Clone, Copy)]
pub enum Proof {
    /// Not at all.
    Nobody,
    /// By the key with this SHA-256.
    Key([u8; 32]),
    /// By a token that is good until then, in milliseconds since 1970.
    Token(i64),
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Key(_) => "Key",
            Self::Token(_) => "Token",
        })
    }
}

impl FromRequestParts<Front> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Self, Refusal> {
        sane(parts, front)?;
        let caller = known(&parts.headers, front).await?;
        KnownCaller::set(&parts.extensions, &caller.principal);
        limits::count(&caller, parts, front).await?;
        Ok(caller)
    }
}

/// Refuses a request whose credentials are not to be looked at.
pub(super) fn sane(parts: &Parts, front: &Front) -> Result<(), Error> {
    let settings = &front.settings;
    site::admit(parts, &settings.access, &settings.allowed_origins)?;
    if let Some(name) = credential_in(parts.uri.query().unwrap_or("")) {
        let message = format!("`{name}` has no place in a URL, where logs keep it; use the Authorization header.");
        return Err(Error::new(ErrorCode::CredentialInUrl, message));
    }
    if conflict(&parts.headers) {
        let message = "There must be one credential: Authorization or X-Api-Key, or both with the same key.";
        return Err(Error::new(ErrorCode::AuthConflict, message));
    }
    Ok(())
}

/// Who calls, if they say so.
pub(super) async fn told(headers: &HeaderMap, front: &Front) -> Result<Option<Caller>, Error> {
    match credential(headers) {
        Credential::None => Ok(None),
        _ => known(headers, front).await.map(Some),
    }
}

/// What a ticket's row says of how its maker was known.
pub(super) fn credential_of(proof: Proof, front: &Front) -> String {
    match (proof, &front.issuer) {
        (Proof::Key(sha256), _) => format!("key {}", keys::hex(&sha256)),
        (Proof::Token(_), Some(issuer)) => format!("issuer {}", issuer.name()),
        _ => "nobody".to_owned(),
    }
}

/// Who made a ticket, if what they were known with is still taken.
pub(super) fn owner(ticket: &TicketRecord, front: &Front) -> Option<Caller> {
    let access = &front.settings.access;
    let (proof, allowance) = match ticket.credential.split_once(' ') {
        None => return access.open().then(|| nobody(access)),
        Some(("key", sha256)) => {
            let key = access.keys.known(sha256, Timestamp::now());
            let key = key.filter(|key| key.principal == ticket.principal)?;
            (Proof::Key(key.sha256), &key.allowance)
        }
        Some((_, name)) => {
            let issuer = front.issuer.as_deref().filter(|issuer| issuer.name() == name)?;
            (Proof::Token(ticket.expires_at), issuer.allowance())
        }
    };
    Some(Caller {
        principal: ticket.principal.clone(),
        shared: false,
        permit: allowance.permit.clone(),
        requests_per_minute: allowance.requests_per_minute,
        proof,
    })
}

/// Whoever it is.
fn nobody(access: &Access) -> Caller {
    Caller {
        principal: Principal::anonymous(),
        shared: access.crowded(),
        permit: access.anonymous.permit.clone(),
        requests_per_minute: access.anonymous.requests_per_minute,
        proof: Proof::Nobody,
    }
}

/// Who calls.
async fn known(headers: &HeaderMap, front: &Front) -> Result<Caller, Error> {
    let access = &front.settings.access;
    let told = credential(headers);
    if !access.guarded() || (told == Credential::None && access.open()) {
        return Ok(nobody(access));
    }
    let told = match told {
        Credential::None => {
            let missing = "A key is needed: `Authorization: Bearer KEY` or `X-Api-Key: KEY`.";
            return Err(Error::new(ErrorCode::AuthMissing, missing));
        }
        Credential::Malformed => return Err(invalid()),
        Credential::Told(told) => told,
    };
    let (principal, allowance, proof) = match (access.keys.find(told, Timestamp::now()), &front.issuer) {
        (Some(key), _) => (key.principal.clone(), &key.allowance, Proof::Key(key.sha256)),
        (None, Some(issuer)) if jwt::is_token(told) => {
            let bearer = issuer.bearer(told).await?.ok_or_else(invalid)?;
            (bearer.principal, issuer.allowance(), Proof::Token(bearer.expires))
        }
        (None, _) => return Err(invalid()),
    };
    Ok(Caller {
        principal,
        shared: false,
        permit: allowance.permit.clone(),
        requests_per_minute: allowance.requests_per_minute,
        proof,
    })
}

/// The one answer to every credential that is no good, whatever is wrong with it.
fn invalid() -> Error {
    Error::new(ErrorCode::AuthInvalid, "This credential is not valid.")
}

/// What a request says of who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Credential<'a> {
    None,
    Told(&'a str),
    Malformed,
}

/// The credential of a request whose credentials do not differ: `Authorization: Bearer`, whose scheme is written in any
/// case (RFC 9110, section 11.1), or `X-Api-Key`.
fn credential(headers: &HeaderMap) -> Credential<'_> {
    let told = match (headers.get(header::AUTHORIZATION), headers.get("x-api-key")) {
        (Some(value), _) => bearer(value.as_bytes()),
        (None, Some(value)) => Some(value.as_bytes()),
        (None, None) => return Credential::None,
    };
    let visible = |key: &&[u8]| !key.is_empty() && key.iter().all(u8::is_ascii_graphic);
    let key = told.filter(visible).and_then(|key| std::str::from_utf8(key).ok());
    key.map_or(Credential::Malformed, Credential::Told)
}

/// A query parameter that is somebody's key, however its name is spelled.
fn credential_in(query: &str) -> Option<&'static str> {
    let names = query.split('&').filter_map(|pair| pair.split('=').next());
    let known = [
        "api_key",
        "apikey",
        "x_api_key",
        "access_token",
        "token",
        "authorization",
        "bearer",
    ];
    names
        .filter_map(|name| {
            let name = decode(name).ok()?.to_ascii_lowercase().replace('-', "_");
            known.into_iter().find(|known| *known == name)
        })
        .next()
}

/// Whether a request names two keys: which of them would count is nobody's to guess.
fn conflict(headers: &HeaderMap) -> bool {
    let mut bearers = headers.get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes);
    let mut plain = headers.get_all("x-api-key").iter().map(HeaderValue::as_bytes);
    let (bearer, key) = (bearers.next(), plain.next());
    let twice = bearers.next().is_some() || plain.next().is_some();
    twice
        || bearer
            .zip(key)
            .is_some_and(|(bearer, key)| match bearer.split_at_checked(7) {
                Some((scheme, told)) => !scheme.eq_ignore_ascii_case(b"bearer ") || told.trim_ascii() != key,
                None => true,
            })
}

/// What stands behind `Bearer` and its blanks.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    let blanks = key.iter().take_while(|byte| **byte == b' ').count();
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(&key[blanks..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_one_visible_word() {
        let ask = |name: &'static str, value: &[u8]| {
            let headers = HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(name),
                HeaderValue::from_bytes(value).unwrap(),
            )]);
            match credential(&headers) {
                Credential::Told(key) => Some(key.to_owned()),
                Credential::Malformed => None,
                Credential::None => panic!("nothing was told"),
            }
        };
        for fine in [&b"Bearer KEY"[..], b"bearer KEY", b"BEARER   KEY"] {
            assert_eq!(ask("authorization", fine).as_deref(), Some("KEY"), "{fine:?}");
        }
        assert_eq!(ask("x-api-key", b"KEY").as_deref(), Some("KEY"));
        for wrong in [
            &b""[..],
            b"Bearer",
            b"Bearer ",
            b"Bearer   ",
            b"BearerKEY",
            b"Bearer KEY\t",
            b"Bearer KEY KEY",
            b"Bearer\tKEY",
            b"Basic KEY",
            b"Token KEY",
            b"KEY",
            b"Bearer K\xC3\xA9Y",
        ] {
            assert_eq!(ask("authorization", wrong), None, "{wrong:?}");
        }
        for wrong in [&b""[..], b" ", b"KEY KEY", b"KEY\t", b"\xFF"] {
            assert_eq!(ask("x-api-key", wrong), None, "{wrong:?}");
        }
        assert_eq!(credential(&HeaderMap::new()), Credential::None);
    }

    #[test]
    fn two_keys_are_one_too_many() {
        let ask = |told: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in told {
                headers.append(*name, HeaderValue::from_static(value));
            }
            conflict(&headers)
        };
        for fine in [
            &[][..],
            &[("authorization", "Bearer a")],
            &[("authorization", "")],
            &[("x-api-key", "")],
            &[("authorization", "bearer  a"), ("x-api-key", "a")],
        ] {
            assert!(!ask(fine), "{fine:?}");
        }
        for wrong in [
            &[("authorization", "Bearer a"), ("authorization", "Bearer a")][..],
            &[("x-api-key", "a"), ("x-api-key", "a")],
            &[("authorization", "Bearer a"), ("x-api-key", "b")],
            &[("authorization", "Basic a"), ("x-api-key", "a")],
            &[("authorization", "a"), ("x-api-key", "a")],
        ] {
            assert!(ask(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn keys_in_urls_are_seen() {
        for (query, name) in [
            ("a=1&API_key=x", "api_key"),
            ("api%5Fkey=x", "api_key"),
            ("%61pi-k%65y=x", "api_key"),
            ("a=%zz&X-Api-Key=x", "x_api_key"),
            ("x%5fapi%2Dkey", "x_api_key"),
            ("Access-Token=x", "access_token"),
            ("%42earer=x", "bearer"),
        ] {
            assert_eq!(credential_in(query), Some(name), "{query}");
        }
        for none in [
            "message=api_key&key=00000000",
            "ticket=x",
            "api%5key=x",
            "%FF=token",
            "",
        ] {
            assert_eq!(credential_in(none), None, "{none}");
        }
    }
}

//! Tokens of an issuer (JWT, RFC 7519): whether one is good, and whose it is.
//!
//! The only place that knows `jsonwebtoken`. What a token says of keys (`jwk`, `jku`, `x5u`, `x5c`) is not listened to: keys
//! are those that the issuer publishes (`jwks.rs`). Only what a key pair signed is taken, so that a public key is
//! never a secret; and whatever is wrong with a token, its caller learns no more than that it is not valid.

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode, decode_header};
use serde::Deserialize;

use super::{Allowance, IssuerSettings, jwks::Jwks};
use crate::{
    chat::Principal,
    error::{Error, ErrorCode},
};

/// The longest token, in bytes.
const MAX_TOKEN: usize = 8 << 10;
/// The longest subject, in characters.
const MAX_SUBJECT: usize = 256;
/// How far the issuer's clock may be from ours, in seconds.
const LEEWAY: u64 = 30;

/// An issuer whose tokens are taken.
pub struct Issuer {
    settings: IssuerSettings,
    keys: Arc<Jwks>,
}

/// A token that is good.
#[derive(Clone, Debug)]
pub(super) struct Bearer {
    /// Whose it is.
    pub(super) principal: Principal,
    /// Until when it is good, in milliseconds since 1970.
    pub(super) expires: i64,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    exp: f64,
    scope: Option<Words>,
    scp: Option<Words>,
}

/// One text of words, or a list of them: issuers do not agree.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Text(String),
    List(Vec<String>),
}

impl Words {
    fn have(&self, word: &str) -> bool {
        match self {
            Self::Text(text) => text.split(' ').any(|known| known == word),
            Self::List(list) => list.iter().any(|known| known == word),
        }
    }
}

impl Issuer {
    /// Checks the settings.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(settings: IssuerSettings) -> Result<Arc<Self>, String> {
        let keys = Jwks::new(&settings.jwks_url).map_err(|e| format!("jwks_url: {e}"))?;
        let keys = Arc::new(keys);
        Ok(Arc::new(Self { settings, keys }))
    }

    /// The issuer of settings that were read again, with the keys of this one if they come from
    /// the same place.
    ///
    /// # Errors
    /// What is wrong with the settings.
    pub fn renewed(&self, settings: IssuerSettings) -> Result<Arc<Self>, String> {
        if settings.jwks_url != self.settings.jwks_url {
            return Self::new(settings);
        }
        let keys = self.keys.clone();
        Ok(Arc::new(Self { settings, keys }))
    }

    /// Whether both have the same keys, kept by the same task.
    #[must_use]
    pub fn shares_keys(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.keys, &other.keys)
    }

    /// Keeps its keys up to date, for ever.
    pub async fn keep(&self) {
        self.keys.keep().await;
    }

    /// What it is called.
    pub(super) fn name(&self) -> &str {
        &self.settings.issuer
    }

    /// What those may who have a token of its.
    pub(super) fn allowance(&self) -> &Allowance {
        &self.settings.allowance
    }

    /// Whose token this is; `None` if it is no good one.
    ///
    /// # Errors
    /// `forbidden` for one that is not meant for this, `store_unavailable` where nobody can say.
    pub(super) async fn bearer(&self, token: &str) -> Result<Option<Bearer>, Error> {
        let Some((algorithm, key)) = outside(token) else {
            return Ok(None);
        };
        let Some(key) = self.keys.find(&key, algorithm).await? else {
            return Ok(None);
        };
        let Some(claims) = self.claims(token, algorithm, &key) else {
            return Ok(None);
        };
        if let Some(word) = &self.settings.scope
            && ![&claims.scope, &claims.scp]
                .into_iter()
                .flatten()
                .any(|all| all.have(word))
        {
            let refused = "This token is good, but not for this: it lacks the scope that is needed here.";
            return Err(Error::new(ErrorCode::Forbidden, refused));
        }
        Ok(Some(Bearer {
            principal: Principal::named(&format!("jwt:{}", claims.sub)),
            expires: (claims.exp * 1000.0) as i64,
        }))
    }

    /// What a token says, if it was signed with this key, by this issuer, for us, and for now.
    fn claims(&self, token: &str, algorithm: Algorithm, key: &DecodingKey) -> Option<Claims> {
        let mut rules = Validation::new(algorithm);
        rules.leeway = LEEWAY;
        rules.validate_nbf = true;
        rules.set_issuer(&[&self.settings.issuer]);
        rules.set_audience(&self.settings.audience);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = decode::<Claims>(token, key, &rules).ok()?.claims;
        let told = 1..=MAX_SUBJECT;
        let plain = told.contains(&claims.sub.chars().count()) && !claims.sub.chars().any(char::is_control);
        (plain && claims.iss == self.settings.issuer).then_some(claims)
    }
}

/// Whether this could be a token: three parts in base64url, as no other credential has them.
pub(super) fn is_token(told: &str) -> bool {
    let mut parts = told.split('.');
    let letters =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    told.len() <= MAX_TOKEN
        && parts.by_ref().take(3).filter(|part| letters(part)).count() == 3
        && parts.next().is_none()
}

/// With what a token says it was signed. Nothing of it is believed yet.
fn outside(token: &str) -> Option<(Algorithm, String)> {
    use Algorithm::*;

    let Header {
        typ, alg, kid, crit, ..
    } = decode_header(token).ok()?;
    let signed = matches!(
        alg,
        RS256 | RS384 | RS512 | PS256 | PS384 | PS512 | ES256 | ES384 | EdDSA
    );
    // One that says that it is something else, a token for logging out for one, is not for calling (RFC 8725, 3.11).
    let kind = typ.unwrap_or_default().to_ascii_lowercase();
    let ours = matches!(kind.trim_start_matches("application/"), "" | "jwt" | "at+jwt");
    (signed && ours && crit.is_none()).then_some((alg, kid?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_three_words_in_base64url() {
        for fine in ["a.b.c", "eyJ.A-_9.x"] {
            assert!(is_token(fine), "{fine}");
        }
        for wrong in [
            "",
            "a",
            "a.b",
            "a.b.c.d",
            "a..c",
            ".b.c",
            "a.b.",
            "a.b.c=",
            "a.b/.c",
            "sluice_abc",
        ] {
            assert!(!is_token(wrong), "{wrong}");
        }
        assert!(is_token(&format!("a.b.{}", "c".repeat(MAX_TOKEN - 4))));
        assert!(!is_token(&format!("a.b.{}", "c".repeat(MAX_TOKEN - 3))));
    }

    #[test]
    fn scopes_are_whole_words() {
        let text = Words::Text("chat.read chat".into());
        assert!(text.have("chat") && !text.have("read") && !text.have("chat.read chat"));
        let list = Words::List(vec!["chat".into(), "a b".into()]);
        assert!(list.have("chat") && !list.have("a"));
    }
}

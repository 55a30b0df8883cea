//! Who may call, and as whom.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, Uri, header, request::Parts},
};

use super::{Front, error::Refusal};
use crate::{
    chat::Principal,
    error::{Error, ErrorCode},
};

/// Who may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Whether the gateway listens on loopback only: then it is one person's own.
    pub loopback: bool,
    /// Names that it may be called by beside loopback's; `host` or `host:port`.
    pub trusted_hosts: Vec<String>,
}

/// The caller.
#[derive(Clone, Debug)]
pub struct Caller {
    /// As whom.
    pub principal: Principal,
    /// Whether callers cannot be told from each other: then none may see what the others have, and names are not theirs
    /// to choose.
    pub shared: bool,
}

impl FromRequestParts<Front> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Self, Refusal> {
        if let Some(name) = credential_in(parts.uri.query().unwrap_or("")) {
            let message = format!("`{name}` has no place in a URL, where logs keep it; use the Authorization header.");
            return Err(Error::new(ErrorCode::CredentialInUrl, message).into());
        }
        if conflict(&parts.headers) {
            let message = "There must be one credential: Authorization or X-Api-Key, or both with the same key.";
            return Err(Error::new(ErrorCode::AuthConflict, message).into());
        }
        Ok(Self {
            principal: Principal::anonymous(),
            shared: !front.settings.access.loopback,
        })
    }
}

/// A query parameter that is somebody's key.
fn credential_in(query: &str) -> Option<&'static str> {
    let names = query.split('&').filter_map(|pair| pair.split('=').next());
    let known = ["api_key", "apikey", "access_token", "token", "authorization"];
    names
        .filter_map(|name| known.into_iter().find(|known| name.eq_ignore_ascii_case(known)))
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

impl Access {
    /// Whether the request was meant for this gateway: on loopback a name that is not loopback's means that somebody
    /// else's page found its way here (DNS rebinding).
    ///
    /// # Errors
    /// `host_invalid`, `host_not_allowed`.
    pub fn host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Error> {
        let invalid = || {
            Error::new(
                ErrorCode::HostInvalid,
                "There must be one Host, and it must be a host's name.",
            )
        };
        let mut hosts = headers.get_all(header::HOST).iter();
        let told = match (hosts.next(), hosts.next()) {
            (Some(host), None) => Some(host.to_str().map_err(|_| invalid())?),
            (None, _) => None,
            _ => return Err(invalid()),
        };
        let named = uri
            .authority()
            .map(|authority| authority.as_str())
            .or(told)
            .ok_or_else(invalid)?;
        let (host, _) = split(named).ok_or_else(invalid)?;
        let trusted = |name: &String| name.eq_ignore_ascii_case(named) || name.eq_ignore_ascii_case(host);
        if is_loopback(host) || self.trusted_hosts.iter().any(trusted) {
            return Ok(());
        }
        let message = "This gateway is not called by that name; server.trusted_hosts lists further ones.";
        Err(Error::new(ErrorCode::HostNotAllowed, message))
    }

    /// Whether a page of this origin may read what it asks for.
    #[must_use]
    pub fn local_page(&self, origin: &str) -> bool {
        let Some(authority) = origin.strip_prefix("http://") else {
            return false;
        };
        self.loopback && split(authority).is_some_and(|(host, _)| matches!(host, "localhost" | "127.0.0.1"))
    }
}

/// `host[:port]`, the host without brackets.
fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            (
                host,
                if port.is_empty() {
                    None
                } else {
                    Some(port.strip_prefix(':')?)
                },
            )
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port
        .map(|port| port.parse::<u16>().ok().filter(|_| !port.starts_with('+')))
        .map_or(Some(None), |p| p.map(Some))?;
    let fine = !host.is_empty()
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
    fine.then_some((host, port))
}

fn is_loopback(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_answers_to_its_own_names_only() {
        let access = Access {
            loopback: true,
            trusted_hosts: vec!["ai.example".into(), "other.example:8443".into()],
        };
        let ask = |host: &str| {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            access.host(&Uri::from_static("/chat"), &headers).map_err(|e| e.code)
        };
        for fine in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:80",
            "127.8.8.8",
            "[::1]:8080",
            "ai.example",
            "AI.example:99",
            "other.example:8443",
        ] {
            assert_eq!(ask(fine), Ok(()), "{fine}");
        }
        for wrong in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:8080",
            "other.example",
            "10.0.0.1",
            "[::2]",
        ] {
            assert_eq!(ask(wrong), Err(ErrorCode::HostNotAllowed), "{wrong}");
        }
        for no_host in [
            "",
            "a/b?c#",
            "localhost:x",
            "localhost:",
            "localhost:+80",
            "[::1",
            "[::1]x",
            "a b",
            "localhost:99999",
        ] {
            assert_eq!(ask(no_host), Err(ErrorCode::HostInvalid), "{no_host}");
        }
        assert_eq!(
            access
                .host(&Uri::from_static("/"), &HeaderMap::new())
                .map_err(|e| e.code),
            Err(ErrorCode::HostInvalid)
        );
        let absolute = Uri::from_static("http://evil.example/chat");
        let headers = HeaderMap::from_iter([(header::HOST, "localhost".parse().unwrap())]);
        assert_eq!(
            access.host(&absolute, &headers).map_err(|e| e.code),
            Err(ErrorCode::HostNotAllowed)
        );
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
        assert_eq!(credential_in("a=1&API_key=x"), Some("api_key"));
        assert_eq!(credential_in("message=api_key&key=00000000"), None);
    }
}

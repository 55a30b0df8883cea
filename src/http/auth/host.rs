//! By which names the gateway may be called.

use axum::http::{HeaderMap, HeaderName, Uri, header};

use crate::error::{Error, ErrorCode};

/// The names that the gateway answers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Names beside loopback's; `host` or `host:port`.
    pub trusted: Vec<String>,
    /// Whether any other will do as well: where every caller has a key, and none is listed.
    pub any: bool,
}

impl Names {
    /// Whether the request was meant for this gateway: where no key is needed, a name that is not its own means that
    /// somebody else's page found its way here (DNS rebinding).
    ///
    /// # Errors
    /// `host_invalid`, `host_not_allowed`.
    pub fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Error> {
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
        if self.any || is_loopback(host) || self.trusted.iter().any(trusted) {
            return Ok(());
        }
        let message = "This gateway is not called by that name; server.trusted_hosts lists further ones.";
        Err(Error::new(ErrorCode::HostNotAllowed, message))
    }
}

/// Refuses a request that came through a proxy, where the gateway serves one person on this machine without a key:
/// behind a proxy the caller can be anybody, because the proxy replaces the caller's address and often the `Host`.
///
/// # Errors
/// `forbidden`, naming the header and the settings.
pub(super) fn refuse_proxied(headers: &HeaderMap) -> Result<(), Error> {
    let Some(name) = headers.keys().map(HeaderName::as_str).find(|name| set_by_proxies(name)) else {
        return Ok(());
    };
    let message = format!(
        "This request came through a proxy (header `{name}`), and this gateway has no keys: it serves callers \
         on its own machine only. Set [[auth.keys]] or [auth.jwt], or auth.allow_anonymous = true."
    );
    Err(Error::new(ErrorCode::Forbidden, message))
}

/// Whether a header is one that proxies add.
fn set_by_proxies(name: &str) -> bool {
    let known = ["forwarded", "via", "x-real-ip", "cf-connecting-ip", "true-client-ip"];
    known.contains(&name) || name == "x-forwarded" || name.starts_with("x-forwarded-")
}

/// Whether this is the origin of a page of this machine's.
pub(in crate::http) fn local_page(origin: &str) -> bool {
    let authority = origin.strip_prefix("http://").and_then(split);
    authority.is_some_and(|(host, _)| matches!(host, "localhost" | "127.0.0.1"))
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
    fn headers_of_proxies_are_known() {
        for name in [
            "Forwarded",
            "Via",
            "X-Real-IP",
            "X-Forwarded-For",
            "X-Forwarded-Proto",
            "x-forwarded-anything",
            "CF-Connecting-IP",
        ] {
            let name = HeaderName::try_from(name).unwrap();
            let headers = HeaderMap::from_iter([(name.clone(), "x".parse().unwrap())]);
            let refused = refuse_proxied(&headers).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Forbidden);
            assert!(refused.message.contains(name.as_str()), "{}", refused.message);
        }
        for name in ["host", "x-request-id", "x-forwardedfor", "viaduct", "user-agent"] {
            let name = HeaderName::from_static(name);
            let headers = HeaderMap::from_iter([(name, "x".parse().unwrap())]);
            assert!(refuse_proxied(&headers).is_ok());
        }
    }

    #[test]
    fn a_gateway_answers_to_its_own_names_only() {
        let names = Names {
            trusted: vec!["ai.example".into(), "other.example:8443".into()],
            any: false,
        };
        let ask = |host: &str| {
            let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
            names.admit(&Uri::from_static("/chat"), &headers).map_err(|e| e.code)
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
            names
                .admit(&Uri::from_static("/"), &HeaderMap::new())
                .map_err(|e| e.code),
            Err(ErrorCode::HostInvalid)
        );
        let absolute = Uri::from_static("http://evil.example/chat");
        let headers = HeaderMap::from_iter([(header::HOST, "localhost".parse().unwrap())]);
        assert_eq!(
            names.admit(&absolute, &headers).map_err(|e| e.code),
            Err(ErrorCode::HostNotAllowed)
        );
    }
}

//! Which pages may make a browser ask: what a browser sends by itself is not what its user wants.

use axum::http::{HeaderMap, Method, Uri, header, request::Parts, uri::Authority};

use super::Access;
pub(in crate::http) use super::host::local_page as is_local_page;
use crate::error::{Error, ErrorCode};

/// Refuses what a page of another site made a browser send: an image, a form, a link, whatever needs no leave (CORS keeps
/// such a page from reading an answer, not from asking). A file may be linked to from anywhere: whoever follows the link
/// gets it, and not the page.
///
/// # Errors
/// `cross_site`.
pub(super) fn admit(parts: &Parts, access: &Access, allowed: &[String]) -> Result<(), Error> {
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
    };
    let (path, origin) = (parts.uri.path(), header("origin"));
    let foreign = match header("sec-fetch-site") {
        "cross-site" => true,
        // A browser that opens a WebSocket, or asks a name without TLS, says no more than whose page it is.
        "" => {
            let starts = parts.method == Method::GET && path == STARTS && !origin.is_empty();
            starts && !is_origin_of(origin, &parts.uri, &parts.headers)
        }
        _ => false,
    };
    let link = path.starts_with("/artifacts/") && header("sec-fetch-mode") == "navigate";
    if !foreign || link || allowed.iter().any(|known| known == origin) || access.local_page(origin) {
        return Ok(());
    }
    let refused = "A page of another site may not ask here; server.cors_allowed_origins lists those that may.";
    Err(Error::new(ErrorCode::CrossSite, refused))
}

/// The path where a GET starts a run.
const STARTS: &str = "/chat/sse";

/// Whether an origin is the one that a request of this address and these headers asks.
pub(in crate::http) fn is_origin_of(origin: &str, uri: &Uri, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(Authority::as_str).or(host).unwrap_or("");
    let page = origin.split_once("://").map_or("", |(_, page)| page);
    !page.is_empty() && page.eq_ignore_ascii_case(host)
}

/// Refuses what a browser fetches before anybody wants it: a GET that costs something is not for that.
///
/// # Errors
/// `cross_site`.
pub(in crate::http) fn wanted(headers: &HeaderMap) -> Result<(), Error> {
    let early = |name: &str| headers.get(name).is_some_and(|value| !value.is_empty());
    // The header's name today, and what browsers called it before.
    let before = |name: &str| {
        let told = headers.get(name).and_then(|value| value.to_str().ok());
        told.is_some_and(|told| told.eq_ignore_ascii_case("prefetch") || told.eq_ignore_ascii_case("preview"))
    };
    if early("sec-purpose") || before("purpose") || before("x-purpose") || before("x-moz") {
        return Err(Error::new(ErrorCode::CrossSite, "A prefetch does not start a run."));
    }
    Ok(())
}

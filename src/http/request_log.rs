//! The log's line for a request, and the warning for a page that CORS keeps out.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, Method, header},
    response::Response,
};

use super::{
    Front,
    auth::{Access, site},
    error::{Unwritten, status},
    layers::known_method,
};
use crate::{
    chat::Principal,
    error::{Error, ErrorCode},
};

/// The most origins that are named, each once. A browser decides what an origin is, so their
/// number needs a limit.
const MAX_ORIGINS: usize = 64;
/// The most characters of a client's text in a line of the log.
const MAX_TEXT: usize = 200;

/// The requests that have a line in the log: `log.requests`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogRequests {
    /// None, but for those that failed by a fault of the gateway.
    Off,
    /// Those that were refused or failed.
    #[default]
    Errors,
    /// All of them.
    All,
}

/// The caller of a request, once known: an extractor sets it, the outermost layer reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownCaller(Arc<OnceLock<Principal>>);

impl KnownCaller {
    /// Sets the caller of the request that has these extensions.
    pub(super) fn set(extensions: &axum::http::Extensions, principal: &Principal) {
        if let Some(known) = extensions.get::<Self>() {
            let _ = known.0.set(principal.clone()); // a second extractor finds the same caller
        }
    }
}

/// The origins of pages that CORS kept out, each of which was logged once.
#[derive(Debug, Default)]
pub struct RefusedOrigins(Mutex<BTreeSet<String>>);

/// The begin of a request, as its line in the log needs it.
pub(super) struct RequestLine {
    id: Arc<str>,
    began: Instant,
    method: Method,
    route: Option<MatchedPath>,
    caller: KnownCaller,
    /// The origin of the page that sent it, if CORS keeps the answer from that page.
    refused_origin: Option<String>,
}

impl RequestLine {
    /// Begins the line of a request; the request gets a place for its caller.
    pub(super) fn begin(id: &Arc<str>, request: &mut Request, front: &Front) -> Self {
        let caller = KnownCaller::default();
        request.extensions_mut().insert(caller.clone());
        let line = Self {
            id: id.clone(),
            began: Instant::now(),
            method: request.method().clone(),
            route: request.extensions().get::<MatchedPath>().cloned(),
            caller,
            refused_origin: refused_origin(request, front).map(bounded),
        };
        if let Some(origin) = &line.refused_origin {
            line.warn_of_origin(origin, front);
        }
        line
    }

    /// Writes one warning for an origin that is refused for the first time.
    fn warn_of_origin(&self, origin: &str, front: &Front) {
        let known = &front.settings.refused_origins.0;
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_ORIGINS || !known.insert(origin.to_owned()) {
            return;
        }
        let last = known.len() == MAX_ORIGINS;
        drop(known);
        let request_id = &*self.id;
        tracing::warn!(
            request_id,
            origin,
            "pages of {origin} may not call this gateway: server.cors_allowed_origins does not \
             list that origin{}",
            hint(&front.settings.access, origin)
        );
        if last {
            tracing::warn!("{MAX_ORIGINS} refused origins were named; further ones are not");
        }
    }

    /// Writes the line, if there is to be one, when the head of the response is known.
    /// `refusal` is the error that became this response.
    pub(super) fn end(self, response: &Response, refusal: Option<&Unwritten>, mode: LogRequests) {
        let status_code = response.status().as_u16();
        let error = refusal.map(Unwritten::error);
        let code = error.map(|error| error.code);
        let ours = code.is_some_and(is_fault_of_ours);
        let refused = status_code >= 400 || self.refused_origin.is_some();
        if mode == LogRequests::Off && !ours {
            return;
        }
        let run_id = response.headers().get("x-run-id").and_then(|id| id.to_str().ok());
        let cause = error.map(Error::causes).filter(|cause| !cause.is_empty());
        macro_rules! line {
            ($level:ident, $message:literal) => {
                tracing::$level!(
                    name: "request",
                    event = "request",
                    request_id = &*self.id,
                    method = known_method(&self.method),
                    route = self.route.as_ref().map_or("unmatched", MatchedPath::as_str),
                    status = status_code,
                    code = code.map(ErrorCode::as_str),
                    field = error.and_then(|error| error.field.clone()).map(bounded),
                    detail = error.map(|error| bounded(error.message.clone())),
                    cause,
                    principal = self.caller.0.get().map(Principal::as_str),
                    run_id,
                    refused_origin = self.refused_origin,
                    ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
                    $message
                )
            };
        }
        // The line of a run that failed says how bad that is; a gateway that stops is no fault.
        let of_run = refusal.is_some_and(Unwritten::is_of_run);
        let quiet = of_run || code == Some(ErrorCode::ShuttingDown);
        match (ours, refused, status_code >= 500 && !quiet) {
            (true, ..) => line!(error, "a request failed here"),
            (false, true, true) => line!(warn, "a request could not be served"),
            (false, true, false) => line!(info, "a request was refused"),
            (false, false, _) if mode == LogRequests::All => line!(info, "a request was answered"),
            (false, false, _) => line!(debug, "a request was answered"),
        }
    }
}

/// Writes the line of a request to the admin listener that failed by a fault of the gateway.
/// Others have none, because those that watch ask all the time.
pub(super) fn admin_request_failed(request_id: &str, refusal: &Unwritten) {
    let error = refusal.error();
    if is_fault_of_ours(error.code) {
        let (code, cause) = (error.code.as_str(), error.causes());
        tracing::error!(request_id, code, cause, "a request to the admin listener failed");
    }
}

/// Whether an error is one that the operator has to look into.
fn is_fault_of_ours(code: ErrorCode) -> bool {
    status(code).0 == 500 || code == ErrorCode::StoreUnavailable
}

/// The way out for the operator, where the setting's name alone is not enough.
fn hint(access: &Access, origin: &str) -> &'static str {
    if access.loopback && access.guarded() && site::is_local_page(origin) {
        "; pages of this machine are admitted by themselves only where no keys are configured"
    } else if origin == "null" {
        "; a file, and a frame that is sandboxed, have no origin and cannot be listed"
    } else {
        ""
    }
}

/// The origin of the page that sent a request, if CORS keeps the answer from that page.
fn refused_origin(request: &Request, front: &Front) -> Option<String> {
    let header = |name: &str| text(request.headers(), name);
    let origin = header(header::ORIGIN.as_str())?;
    let (settings, parts) = (&front.settings, request);
    let preflight = request.method() == Method::OPTIONS && header("access-control-request-method").is_some();
    let same = !preflight
        && (header("sec-fetch-site") == Some("same-origin")
            || site::is_origin_of(origin, parts.uri(), parts.headers()));
    let allowed = settings.allowed_origins.iter().any(|known| known == origin) || settings.access.local_page(origin);
    (!same && !allowed).then(|| origin.to_owned())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A client's text, cut where a line would become too long.
fn bounded(mut text: String) -> String {
    if let Some((at, _)) = text.char_indices().nth(MAX_TEXT) {
        text.truncate(at);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_text_is_cut_between_characters() {
        assert_eq!(bounded("é".repeat(MAX_TEXT)), "é".repeat(MAX_TEXT));
        assert_eq!(bounded("é".repeat(MAX_TEXT + 1)), "é".repeat(MAX_TEXT) + "…");
    }

    #[test]
    fn a_fault_of_the_gateway_is_told_from_a_refusal() {
        for code in [ErrorCode::Internal, ErrorCode::StoreUnavailable] {
            assert!(is_fault_of_ours(code), "{code}");
        }
        for code in [ErrorCode::NotFound, ErrorCode::Overloaded, ErrorCode::UpstreamError] {
            assert!(!is_fault_of_ours(code), "{code}");
        }
    }
}

//! What is around every route: the request's id, what is refused before any handler, CORS, and the net for panics.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowHeaders, AllowOrigin, CorsLayer},
};
use uuid::Uuid;

use super::{
    Front,
    error::{self, Refusal, Unwritten},
    limits::{self, Told},
    linger::heard_out,
    request_log::{self, RequestLine},
};
use crate::{
    error::{Error, ErrorCode},
    meters::Meters,
    telemetry::trace::{Kind, TraceContext},
};

/// The longest path and query, in bytes.
const MAX_URI: usize = 16 << 10;
/// The largest header block, in bytes of names and values.
pub(super) const MAX_HEADERS: usize = 32 << 10;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The request's id: the client's if it is well-formed, else ours.
#[derive(Clone, Debug)]
pub struct RequestId(pub Arc<str>);

/// Puts everything around the routes.
pub fn around(router: Router<Front>, front: &Front) -> Router<Front> {
    router
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cors(front))
        .layer(from_fn_with_state(front.clone(), entrance))
}

/// Puts around the routes of the admin listener what they need: no names are checked, no pages are served, and nobody is
/// counted.
pub fn around_admin(router: Router<Front>) -> Router<Front> {
    router
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(async |request: Request, next: Next| {
            let id = request_id(&request);
            let response = next.run(request).await;
            if let Some(refusal) = response.extensions().get::<Unwritten>() {
                request_log::admin_request_failed(&id, refusal);
            }
            written(response, &id)
        }))
}

/// The first to see a request, and the last to see its response.
async fn entrance(State(front): State<Front>, mut request: Request, next: Next) -> Response {
    let (route, method) = (
        request.extensions().get::<MatchedPath>().cloned(),
        request.method().clone(),
    );
    let id = request_id(&request);
    let mut span = front
        .runs
        .tracer
        .span(told_trace(request.headers()), Kind::Server, || match &route {
            Some(route) => format!("{} {}", known_method(&method), route.as_str()),
            None => known_method(&method).to_owned(),
        });
    if let Some(context) = span.context() {
        request.extensions_mut().insert(context);
    }
    request.extensions_mut().insert(RequestId(id.clone()));
    let line = RequestLine::begin(&id, &mut request, &front);
    let told = Told::default();
    request.extensions_mut().insert(told.clone());
    let (parts, body) = request.into_parts();
    let body = heard_out(&parts.headers, body);
    let request = Request::from_parts(parts, body);
    let response = match (not_spoken(&request), admissible(&request, &front)) {
        (Some(refused), _) => refused,
        (None, Ok(())) => next.run(request).await,
        (None, Err(error)) => Refusal::from(error).into_response(),
    };
    let refusal = response.extensions().get::<Unwritten>().cloned();
    if let Some(refusal) = &refusal {
        refused(refusal, &front.runs.meters);
    }
    let mut response = written(response, &id);
    line.end(&response, refusal.as_ref(), front.settings.log_requests);
    limits::tell(&told, response.headers_mut());
    let (route, status) = (route.as_ref().map(MatchedPath::as_str), response.status().as_u16());
    front.runs.meters.request(route, method.as_str(), status);
    span.note("http.request.method", || known_method(&method));
    span.note("http.response.status_code", || u64::from(status));
    if let Some(route) = route {
        span.note("http.route", || route);
    }
    if status >= 500 {
        span.fail("5xx");
    }
    response
}

/// A method as those who watch are told of it: one that nobody knows could be any text (OpenTelemetry's word for it).
pub(super) fn known_method(method: &Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH") => known,
        _ => "_OTHER",
    }
}

/// The trace that a request says it is part of: one that says two is part of none.
fn told_trace(headers: &HeaderMap) -> Option<TraceContext> {
    let mut told = headers.get_all("traceparent").iter();
    match (told.next(), told.next()) {
        (Some(one), None) => TraceContext::parse(one.to_str().ok()?),
        _ => None,
    }
}

/// The request's id: its own if that is well-formed, else a new one.
fn request_id(request: &Request) -> Arc<str> {
    let told = request.headers().get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
    let fits = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    told.filter(fits)
        .map_or_else(|| Uuid::now_v7().to_string().into(), Into::into)
}

/// A response as it is sent: a refusal is written, and the request's id is on it.
fn written(mut response: Response, id: &str) -> Response {
    if let Some(unwritten) = response.extensions_mut().remove::<Unwritten>() {
        let mut written = unwritten.write(id);
        let inner = std::mem::take(response.headers_mut());
        let kept = inner.into_iter().filter_map(|(name, value)| Some((name?, value)));
        let kept = kept.filter(|(name, _)| name != header::CONTENT_LENGTH && name != header::CONTENT_TYPE);
        written.headers_mut().extend(kept);
        response = written;
    }
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    // What one caller may see is for nobody else, and nobody on the way knows who asked.
    let cache = response.headers_mut().entry(header::CACHE_CONTROL);
    cache.or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Counts a refusal that somebody may want to know of.
fn refused(refusal: &Unwritten, meters: &Meters) {
    match refusal.code() {
        ErrorCode::AuthMissing
        | ErrorCode::AuthInvalid
        | ErrorCode::TicketInvalid
        | ErrorCode::AuthConflict
        | ErrorCode::CredentialInUrl
        | ErrorCode::Forbidden => meters.auth_failed(refusal.code().as_str()),
        ErrorCode::RateLimited | ErrorCode::TooManyRuns => meters.rate_limited(),
        ErrorCode::SessionBusy if !refusal.is_of_run() => meters.session_conflict(),
        _ => {}
    }
}

/// The answer to HTTP that is not spoken here, whoever it is meant for.
fn not_spoken(request: &Request<Body>) -> Option<Response> {
    // Where a body in another transfer coding than one `chunked` ends, whoever passes it on may see otherwise: so the
    // connection ends, as the library ends one whose last coding is another.
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if !codings.next().is_none_or(chunked) || codings.next().is_some() {
        return Some((StatusCode::NOT_IMPLEMENTED, [(header::CONNECTION, "close")]).into_response());
    }
    (request.method() == Method::CONNECT).then(|| error::no_tunnel().into_response())
}

/// What no handler needs to see.
fn admissible(request: &Request<Body>, front: &Front) -> Result<(), Error> {
    let headers = request.headers();
    if request
        .uri()
        .path_and_query()
        .is_some_and(|uri| uri.as_str().len() > MAX_URI)
    {
        return Err(Error::new(ErrorCode::UriTooLong, "An address may have 16 KiB."));
    }
    if headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum::<usize>()
        > MAX_HEADERS
    {
        return Err(Error::new(ErrorCode::HeadersTooLarge, "The headers may have 32 KiB."));
    }
    // HTTP/1 reads no more than these in the first place; HTTP/2 would read thousands of small ones.
    if headers.len() > front.settings.max_headers {
        let message = format!("A request may have {} headers.", front.settings.max_headers);
        return Err(Error::new(ErrorCode::HeadersTooLarge, message));
    }
    one_name(request)?;
    // A probe calls by whatever address it knows, and learns nothing but a status.
    if !matches!(request.uri().path(), "/healthz" | "/readyz") {
        front.settings.access.admit(request.uri(), headers)?;
    }
    if headers
        .get(header::EXPECT)
        .is_some_and(|what| !what.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        return Err(Error::new(
            ErrorCode::Expectation,
            "The only expectation that can be met is 100-continue.",
        ));
    }
    Ok(())
}

/// HTTP/2 has the host in `:authority`; a `Host` that says another is malformed (RFC 9113, 8.3.1). In HTTP/1 an absolute
/// address simply counts before the `Host` (RFC 9112, 3.2.2).
fn one_name(request: &Request<Body>) -> Result<(), Error> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match request.uri().authority() {
        Some(authority) if request.version() == Version::HTTP_2 => hosts
            .all(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()))
            .then_some(())
            .ok_or_else(|| Error::new(ErrorCode::HostInvalid, "The host and the authority differ.")),
        _ => Ok(()),
    }
}

fn cors(front: &Front) -> CorsLayer {
    let settings = front.settings.clone();
    let allowed = move |origin: &HeaderValue, _: &axum::http::request::Parts| {
        let origin = origin.to_str().unwrap_or("");
        settings.allowed_origins.iter().any(|known| known == origin) || settings.access.local_page(origin)
    };
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(allowed))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // An admitted page may send any header: clients' libraries add headers of their own (for traces, for retries),
        // and none of them gives a right.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            name("x-run-id"),
            name("x-session-id"),
            X_REQUEST_ID,
            header::RETRY_AFTER,
        ])
        .max_age(Duration::from_secs(600))
}

/// A panic costs one request. Where it was is in the log; what it says may quote a message.
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    Refusal::from(Error::internal("a panic")).into_response()
}

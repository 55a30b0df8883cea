//! Errors as clients get them: `application/problem+json` (RFC 9457). The only place that picks a status.

use axum::{
    extract::MatchedPath,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{
    chat::{RunId, SessionId},
    error::{Error, ErrorCode, Upstream},
    http::format::name_run,
};

/// The HTTP status and the title of a code: CONTRACT § 12.
#[must_use]
pub fn status(code: ErrorCode) -> (u16, &'static str) {
    use ErrorCode::*;
    match code {
        JsonInvalid => (400, "The body is not valid JSON"),
        QueryInvalid => (400, "The query is not valid"),
        BodyIncomplete => (400, "The body is incomplete"),
        LastEventIdInvalid => (400, "The last event id is not valid"),
        AuthConflict => (400, "Two credentials that differ"),
        CredentialInUrl => (400, "A credential in the URL"),
        HostInvalid => (400, "The host is not valid"),
        AuthMissing => (401, "A credential is missing"),
        AuthInvalid => (401, "The credential is not valid"),
        TicketInvalid => (401, "The ticket is not valid"),
        Forbidden => (403, "Not allowed"),
        CrossSite => (403, "Not allowed from another site"),
        NotFound => (404, "Not found"),
        MethodNotAllowed => (405, "Method not allowed"),
        NotAcceptable => (406, "Not acceptable"),
        RequestTimeout => (408, "The request took too long"),
        SessionBusy => (409, "The session is busy"),
        RunFinished => (409, "The run has ended"),
        ReplayExpired => (410, "The replay has expired"),
        BodyTooLarge => (413, "The body is too large"),
        UriTooLong => (414, "The address is too long"),
        MediaType => (415, "Unsupported media type"),
        EncodingUnsupported => (415, "Unsupported content encoding"),
        RangeInvalid => (416, "The range is not valid"),
        Expectation => (417, "The expectation cannot be met"),
        HostNotAllowed => (421, "The host is not served here"),
        FieldInvalid => (422, "A field is not valid"),
        UnknownField => (422, "An unknown field"),
        MessageEmpty => (422, "The message is empty"),
        MessageTooLong => (422, "The message is too long"),
        SessionIdInvalid => (422, "The session id is not valid"),
        ControlCharacter => (422, "A control character"),
        DuplicateParameter => (422, "A parameter twice"),
        ModelNotAllowed => (422, "The model is not allowed"),
        AgentUnknown => (422, "The agent is unknown"),
        SchemaInvalid => (422, "The schema is not valid"),
        IdempotencyMismatch => (422, "The idempotency key is another request's"),
        ContextTooLong => (422, "Too long for the model"),
        UpstreamRejected => (422, "The provider refused the request"),
        RateLimited => (429, "Too many requests"),
        TooManyRuns => (429, "Too many runs"),
        HeadersTooLarge => (431, "The headers are too large"),
        Cancelled => (499, "The run was cancelled"),
        Internal => (500, "Internal error"),
        Interrupted => (500, "The run was interrupted"),
        UpstreamConnect => (502, "The provider cannot be reached"),
        UpstreamTls => (502, "The provider's TLS failed"),
        UpstreamProtocol => (502, "The provider's answer is not valid"),
        UpstreamTruncated => (502, "The provider's answer broke off"),
        UpstreamError => (502, "The provider reported an error"),
        UpstreamAuth => (502, "The provider refused the gateway"),
        OutputLimit => (502, "The answer is too long"),
        OutputInvalid => (502, "The answer is not of the form asked for"),
        ToolFailed => (502, "A tool failed"),
        Overloaded => (503, "Overloaded"),
        UpstreamOverloaded => (503, "The provider is overloaded"),
        UpstreamRateLimited => (503, "The provider limits the rate"),
        StoreUnavailable => (503, "The store is not available"),
        ShuttingDown => (503, "Shutting down"),
        UpstreamTimeout => (504, "The provider took too long"),
        RunDeadline => (504, "The run took too long"),
        HttpVersion => (505, "The HTTP version is not supported"),
    }
}

/// The problem object: the body of an error, and the `error` of a stream. A promise (CONTRACT § 12).
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    code: ErrorCode,
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<SessionId>,
    retryable: bool,
    /// In whole seconds, rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<Upstream>,
}

impl Problem {
    /// An error as a problem of this request's.
    #[must_use]
    pub fn new(error: &Error, request_id: &str) -> Self {
        let (status, title) = status(error.code);
        Self {
            kind: "about:blank",
            title,
            status,
            detail: error.message.clone(),
            code: error.code,
            request_id: request_id.to_owned(),
            run_id: error.run_id,
            session_id: None,
            retryable: error.is_retryable(),
            retry_after: error.retry_after.map(|delay| delay.as_millis().div_ceil(1000) as u64),
            field: error.field.clone(),
            upstream: error.upstream.as_deref().cloned(),
        }
    }

    /// The same, about a run.
    #[must_use]
    pub fn about(mut self, run_id: RunId, session_id: Option<SessionId>) -> Self {
        self.run_id = Some(run_id);
        self.session_id = session_id;
        self
    }

    fn response(mut self) -> Response {
        if self.code == ErrorCode::StoreUnavailable {
            self.retry_after = self.retry_after.max(Some(1)); // a store may be back at any time
        }
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, serde_json::to_vec(&self).unwrap_or_default()).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// An error on its way out; `layers.rs` adds the request's id.
#[derive(Debug)]
pub struct Refusal {
    error: Error,
    run: Option<(RunId, Option<SessionId>)>,
}

impl Refusal {
    /// An error of a run's.
    #[must_use]
    pub fn of_run(error: Error, run_id: RunId, session_id: Option<SessionId>) -> Self {
        Self {
            error,
            run: Some((run_id, session_id)),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, run: None }
    }
}

/// Marks a response whose body `layers.rs` is to write, when it knows the request's id.
#[derive(Clone, Debug)]
pub(super) struct Unwritten(std::sync::Arc<Refusal>);

impl Unwritten {
    /// What it is.
    pub(super) fn code(&self) -> ErrorCode {
        self.0.error.code
    }

    /// Whether it is the end of a run, which was counted there.
    pub(super) fn is_of_run(&self) -> bool {
        self.0.run.is_some()
    }

    /// The error.
    pub(super) fn error(&self) -> &Error {
        &self.0.error
    }

    /// The response, for this request.
    pub(super) fn write(&self, request_id: &str) -> Response {
        let Refusal { error, run } = &*self.0;
        let problem = Problem::new(error, request_id);
        let Some((run, session)) = run else {
            return problem.response();
        };
        let mut response = problem.about(*run, session.clone()).response();
        name_run(response.headers_mut(), run, session.as_ref());
        response
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(Unwritten(std::sync::Arc::new(self)));
        response
    }
}

/// No such path; a browser that asks for `/` is led to the page.
pub async fn not_found(request: axum::extract::Request) -> Result<Response, Refusal> {
    let (parts, _) = request.into_parts();
    super::docs::way_to_page(&parts).ok_or_else(|| Error::not_found().into())
}

/// The path exists, the method does not.
pub async fn method_not_allowed(path: MatchedPath) -> ([(HeaderName, String); 1], Refusal) {
    let message = "This method is not allowed here; the Allow header lists those that are.";
    let error = Error::new(ErrorCode::MethodNotAllowed, message);
    ([(header::ALLOW, super::methods(path.as_str()))], error.into())
}

/// `CONNECT` is for a tunnel, not for anything here: so there is no method to name.
pub fn no_tunnel() -> ([(HeaderName, &'static str); 1], Refusal) {
    let error = Error::new(
        ErrorCode::MethodNotAllowed,
        "There are no tunnels through this gateway.",
    );
    ([(header::ALLOW, "")], error.into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_finds_the_store_away_is_told_when_to_come_back() {
        let told = |error: Error| {
            let response = Problem::new(&error, "id").response();
            response.headers().get(header::RETRY_AFTER).cloned()
        };
        let away = || Error::new(ErrorCode::StoreUnavailable, "Away.");
        for (error, seconds) in [
            (away(), Some("1")),
            (away().retry_after(Duration::from_millis(1)), Some("1")),
            (away().retry_after(Duration::from_secs(30)), Some("30")),
            (Error::not_found(), None),
        ] {
            assert_eq!(told(error), seconds.map(HeaderValue::from_static));
        }
    }
}

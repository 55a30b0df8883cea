//! What went wrong: one error for the whole house, with two messages. `message` is for the client and is ours; `source`
//! is for the log and may be anybody's. Which HTTP status an error has is said in `http/error.rs`, nowhere else.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::chat::RunId;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal,)*) => {
        /// The codes of the contract (§ 12). A client may match on them; they never change their meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $code)] $variant,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$variant,)*];

            /// The code as clients see it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$variant => $code,)* }
            }
        }
    };
}

codes! {
    /// The body is not one JSON value, strictly.
    JsonInvalid = "json_invalid",
    /// The query is not percent-encoded UTF-8.
    QueryInvalid = "query_invalid",
    /// The body ended before its announced length.
    BodyIncomplete = "body_incomplete",
    /// `Last-Event-ID` is not an id of this run's.
    LastEventIdInvalid = "last_event_id_invalid",
    /// Two credentials that differ.
    AuthConflict = "auth_conflict",
    /// A key in the URL, where logs keep it.
    CredentialInUrl = "credential_in_url",
    /// No usable `Host`.
    HostInvalid = "host_invalid",
    /// No credential.
    AuthMissing = "auth_missing",
    /// A credential that is not valid.
    AuthInvalid = "auth_invalid",
    /// A ticket that is not valid, any more or for this.
    TicketInvalid = "ticket_invalid",
    /// Known, but not allowed.
    Forbidden = "forbidden",
    /// Another site's page asked.
    CrossSite = "cross_site",
    /// Nothing here of that name, for this caller.
    NotFound = "not_found",
    /// Not with this method.
    MethodNotAllowed = "method_not_allowed",
    /// `Accept` admits nothing that this endpoint writes.
    NotAcceptable = "not_acceptable",
    /// The request did not arrive in time.
    RequestTimeout = "request_timeout",
    /// Another run of this session is under way.
    SessionBusy = "session_busy",
    /// The run has ended.
    RunFinished = "run_finished",
    /// The run's log is gone.
    ReplayExpired = "replay_expired",
    /// The body is over its limit.
    BodyTooLarge = "body_too_large",
    /// The request target is over its limit.
    UriTooLong = "uri_too_long",
    /// Not `application/json` in UTF-8.
    MediaType = "media_type",
    /// A content coding that is not taken.
    EncodingUnsupported = "encoding_unsupported",
    /// A range that cannot be served.
    RangeInvalid = "range_invalid",
    /// An expectation that cannot be met.
    Expectation = "expectation",
    /// A `Host` that is not served here.
    HostNotAllowed = "host_not_allowed",
    /// The header is over its limit.
    HeadersTooLarge = "headers_too_large",
    /// A field's value is not of its form.
    FieldInvalid = "field_invalid",
    /// A field that nobody knows.
    UnknownField = "unknown_field",
    /// No message.
    MessageEmpty = "message_empty",
    /// A message over its limit.
    MessageTooLong = "message_too_long",
    /// A session id not of its form.
    SessionIdInvalid = "session_id_invalid",
    /// U+0000 in a text.
    ControlCharacter = "control_character",
    /// A query parameter twice.
    DuplicateParameter = "duplicate_parameter",
    /// The agent does not admit this model.
    ModelNotAllowed = "model_not_allowed",
    /// No agent of that name.
    AgentUnknown = "agent_unknown",
    /// A JSON schema that is not taken.
    SchemaInvalid = "schema_invalid",
    /// The idempotency key belongs to another request.
    IdempotencyMismatch = "idempotency_mismatch",
    /// More than the model's context holds.
    ContextTooLong = "context_too_long",
    /// The provider refused the request.
    UpstreamRejected = "upstream_rejected",
    /// Too many requests of this caller.
    RateLimited = "rate_limited",
    /// Too many runs of this caller.
    TooManyRuns = "too_many_runs",
    /// The run was cancelled.
    Cancelled = "cancelled",
    /// A fault of ours.
    Internal = "internal",
    /// The process died under the run.
    Interrupted = "interrupted",
    /// The provider could not be reached.
    UpstreamConnect = "upstream_connect",
    /// The provider's certificate or handshake failed.
    UpstreamTls = "upstream_tls",
    /// The provider answered something that is not its protocol.
    UpstreamProtocol = "upstream_protocol",
    /// The provider's stream ended before its answer did.
    UpstreamTruncated = "upstream_truncated",
    /// The provider reported an error.
    UpstreamError = "upstream_error",
    /// The provider refused our credentials.
    UpstreamAuth = "upstream_auth",
    /// The answer is over its limit.
    OutputLimit = "output_limit",
    /// The answer is not of the form asked for.
    OutputInvalid = "output_invalid",
    /// A tool failed in a way that ends the run.
    ToolFailed = "tool_failed",
    /// This gateway is at its limits.
    Overloaded = "overloaded",
    /// The provider is overloaded.
    UpstreamOverloaded = "upstream_overloaded",
    /// The provider limits our rate.
    UpstreamRateLimited = "upstream_rate_limited",
    /// Sessions cannot be read or written.
    StoreUnavailable = "store_unavailable",
    /// This gateway is going down.
    ShuttingDown = "shutting_down",
    /// The provider was silent too long.
    UpstreamTimeout = "upstream_timeout",
    /// The run was at its time limit.
    RunDeadline = "run_deadline",
    /// Not over this version of HTTP.
    HttpVersion = "http_version",
}

impl ErrorCode {
    /// Whether the same request may succeed later.
    #[must_use]
    pub fn retryable(self) -> bool {
        use ErrorCode::*;
        matches!(
            self,
            RequestTimeout
                | SessionBusy
                | RateLimited
                | TooManyRuns
                | Internal
                | Interrupted
                | UpstreamConnect
                | UpstreamTruncated
                | UpstreamError
                | Overloaded
                | UpstreamOverloaded
                | UpstreamRateLimited
                | StoreUnavailable
                | ShuttingDown
                | UpstreamTimeout
                | RunDeadline
        )
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a provider had to do with an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The configured provider's name.
    pub provider: String,
    /// The HTTP status it answered, if it did.
    pub status: Option<u16>,
}

/// A cause, for the log only.
pub type Source = Arc<dyn std::error::Error + Send + Sync>;

/// What went wrong. Kept with runs, so its JSON form is a promise; the cause is not kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Error {
    /// Which of the contract's errors.
    pub code: ErrorCode,
    /// A sentence for the client: ours, without anything of an upstream's, a key, a path or a stack.
    pub message: String,
    /// The field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Whether the same request may succeed later, where the code alone does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Duration>,
    /// The provider's part in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Box<Upstream>>,
    /// The run that stands in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// What is behind it, for the log.
    #[serde(skip)]
    pub source: Option<Source>,
}

/// A result of the house's.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a sentence for the client.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            field: None,
            retryable: None,
            retry_after: None,
            upstream: None,
            run_id: None,
            source: None,
        }
    }

    /// A field's fault: `message` completes the sentence that begins with the field's name.
    #[must_use]
    pub fn field(code: ErrorCode, field: impl Into<String>, message: impl fmt::Display) -> Self {
        let field = field.into();
        let mut sentence = format!("`{field}` {message}");
        if !sentence.ends_with('?') {
            sentence.push('.');
        }
        Self {
            field: Some(field),
            ..Self::new(code, sentence)
        }
    }

    /// A fault of ours; the cause is for the log.
    #[must_use]
    pub fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(
            ErrorCode::Internal,
            "Something went wrong here; the log has it under this request's id.",
        )
        .because(source)
    }

    /// The same for a caller who names what is not there, or not theirs: one answer for both.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(ErrorCode::NotFound, "There is nothing here by that name.")
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable.unwrap_or_else(|| self.code.retryable())
    }

    /// Adds when to try again.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// The causes, joined, for a log line; empty without one.
    #[must_use]
    pub fn causes(&self) -> String {
        let mut text = String::new();
        let mut next = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(cause) = next {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Error {}

//! What can go wrong with a provider, and what it is to our clients.

use std::{fmt, time::Duration};

use crate::error::{Error, ErrorCode, Upstream};

/// The longest `Retry-After` that is passed on.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// What went wrong. The words are for metrics and logs too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Its settings make no sense.
    Config,
    /// Nobody there: refused, unreachable, no such name.
    Connect,
    /// The connection broke before an answer began.
    EmptyReply,
    /// Certificate or handshake.
    Tls,
    /// No connection in time.
    ConnectTimeout,
    /// No header in time.
    FirstByte,
    /// A header, but no content in time.
    FirstToken,
    /// Silence in the middle.
    Gap,
    /// Not its protocol: status, type, framing or JSON.
    Protocol,
    /// The stream ended, or broke, before its finish.
    Truncated,
    /// It reported an error.
    Reported,
    /// It refused the request.
    Rejected,
    /// The request does not fit the model's context.
    ContextTooLong,
    /// It refused our credentials.
    Auth,
    /// It has no such model or address.
    NotFound,
    /// It limits our rate.
    RateLimited,
    /// Our quota with it is used up: asking again does not help.
    Quota,
    /// It is overloaded.
    Overloaded,
    /// It failed inside.
    Server,
    /// It failed so often in a row that it is not asked for a moment.
    Resting,
}

impl Kind {
    /// It in a word, for meters and traces.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Kind::Config => "config",
            Kind::Connect => "connect",
            Kind::EmptyReply => "empty_reply",
            Kind::Tls => "tls",
            Kind::ConnectTimeout => "connect_timeout",
            Kind::FirstByte => "first_byte",
            Kind::FirstToken => "first_token",
            Kind::Gap => "gap",
            Kind::Protocol => "protocol",
            Kind::Truncated => "truncated",
            Kind::Reported => "in_band_error",
            Kind::Rejected => "client_error",
            Kind::ContextTooLong => "context_too_long",
            Kind::Auth => "auth",
            Kind::NotFound => "not_found",
            Kind::RateLimited => "rate_limited",
            Kind::Quota => "quota",
            Kind::Overloaded => "overloaded",
            Kind::Server => "server",
            Kind::Resting => "resting",
        }
    }

    /// What an HTTP status other than 200 means where the body says nothing else.
    #[must_use]
    pub fn of_status(status: u16) -> Self {
        match status {
            402 => Kind::Quota, // not paid for
            429 => Kind::RateLimited,
            401 | 403 => Kind::Auth,
            404 => Kind::NotFound,
            503 | 529 => Kind::Overloaded,
            500.. => Kind::Server,
            408 | 409 => Kind::Reported,
            400.. => Kind::Rejected,
            _ => Kind::Protocol,
        }
    }
}

/// What went wrong with a provider. `detail` is for the log; an upstream's sentences have no place in it, for they may
/// repeat keys and what users said.
#[derive(Clone, Debug)]
pub struct ProviderError {
    /// The configured provider's name.
    pub provider: String,
    /// What.
    pub kind: Kind,
    /// The HTTP status it answered, if it did.
    pub status: Option<u16>,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
    /// More, for the log.
    pub detail: String,
}

impl ProviderError {
    /// An error without a status.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            provider: String::new(),
            kind,
            status: None,
            retry_after: None,
            detail: detail.into(),
        }
    }

    /// Settings that make no provider.
    #[must_use]
    pub fn config(provider: &str, detail: impl Into<String>) -> Self {
        Self {
            provider: provider.into(),
            ..Self::new(Kind::Config, detail)
        }
    }

    /// The same, of this provider.
    #[must_use]
    pub fn of(mut self, provider: &str) -> Self {
        if self.provider.is_empty() {
            self.provider = provider.into();
        }
        self
    }

    /// The same, with the status it answered.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Whether asking again may help. (Only ever before the first content.) A request that may have been worked on,
    /// and billed, is not sent twice: so neither an empty reply nor silence is asked again.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self.kind {
            Kind::Connect | Kind::RateLimited | Kind::Overloaded | Kind::Server => true,
            Kind::Reported => self.status.is_some_and(|s| matches!(s, 408 | 409)),
            _ => false,
        }
    }
}

impl ProviderError {
    /// Whether the provider is at fault, and may be so for the next request too: what the breaker counts.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        use Kind::*;
        matches!(
            self.kind,
            Connect | Tls | ConnectTimeout | FirstByte | FirstToken | EmptyReply | Overloaded | Server
        )
    }

    /// Whether another provider may do better: anything but a fault of the request's.
    #[must_use]
    pub fn elsewhere(&self) -> bool {
        !matches!(self.kind, Kind::Rejected | Kind::ContextTooLong)
    }

    /// Whether nothing was sent, so that nothing can have been billed.
    #[must_use]
    pub fn unsent(&self) -> bool {
        matches!(
            self.kind,
            Kind::Config | Kind::Connect | Kind::Tls | Kind::ConnectTimeout | Kind::Resting
        )
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at provider {}", self.kind, self.provider)?;
        if let Some(status) = self.status {
            write!(f, ", status {status}")?;
        }
        write!(f, ": {}", self.detail)
    }
}

impl std::error::Error for ProviderError {}

impl From<ProviderError> for Error {
    fn from(error: ProviderError) -> Error {
        use ErrorCode::*;
        let (code, message) = match error.kind {
            Kind::Config | Kind::Reported | Kind::NotFound | Kind::Server => {
                (UpstreamError, "The model's provider reported an error.")
            }
            Kind::Connect => (UpstreamConnect, "The model's provider could not be reached."),
            Kind::Tls => (UpstreamTls, "The TLS connection to the model's provider failed."),
            Kind::ConnectTimeout | Kind::FirstByte | Kind::FirstToken | Kind::Gap => {
                (UpstreamTimeout, "The model's provider was silent for too long.")
            }
            Kind::Protocol | Kind::EmptyReply => (
                UpstreamProtocol,
                "The model's provider answered with something that is not its protocol.",
            ),
            Kind::Truncated => (UpstreamTruncated, "The model's answer broke off before its end."),
            Kind::Rejected => (UpstreamRejected, "The model's provider refused the request."),
            Kind::ContextTooLong => (ContextTooLong, "The conversation is longer than the model's context."),
            Kind::Auth => (UpstreamAuth, "The model's provider refused this gateway's credentials."),
            Kind::RateLimited | Kind::Quota => {
                (UpstreamRateLimited, "The model's provider limits this gateway's rate.")
            }
            Kind::Overloaded | Kind::Resting => (UpstreamOverloaded, "The model's provider is overloaded."),
        };
        let retry_after = match code {
            UpstreamRateLimited | UpstreamOverloaded => {
                Some(error.retry_after.unwrap_or(Duration::from_secs(1)).min(MAX_RETRY_AFTER))
            }
            _ => None,
        };
        let upstream = Upstream {
            provider: error.provider.clone(),
            status: error.status,
        };
        let mut known = Error::new(code, message).because(error);
        known.retry_after = retry_after;
        known.upstream = Some(Box::new(upstream));
        known
    }
}

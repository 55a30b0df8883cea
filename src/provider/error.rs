//! What can go wrong with a provider, and what it is to our clients.

use std::{fmt, time::Duration};

use super::refusal::Fault;
use crate::error::{Error, ErrorCode, Upstream};

/// The longest `Retry-After` that is passed on.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word for it, in metrics and logs.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

words! {
    /// What went wrong: what it is to our clients, and to whoever asks again.
    Kind {
        /// Its settings make no sense.
        Config = "settings",
        /// Nobody there: refused, unreachable, no such name.
        Connect = "connect",
        /// The connection broke before an answer began.
        EmptyReply = "empty_reply",
        /// Certificate or handshake.
        Tls = "tls",
        /// No connection in time.
        ConnectTimeout = "connect_timeout",
        /// No header in time.
        FirstByte = "first_byte",
        /// A header, but no content in time.
        FirstToken = "first_token",
        /// Silence in the middle.
        Gap = "gap",
        /// Not its protocol: status, type, framing or JSON.
        Protocol = "protocol",
        /// The stream ended, or broke, before its finish.
        Truncated = "no_terminal",
        /// More than an answer may have.
        Limit = "limit",
        /// It reported an error.
        Reported = "in_band_error",
        /// It refused the request.
        Rejected = "client_error",
        /// The request does not fit the model's context.
        ContextTooLong = "context_too_long",
        /// It refused our credentials.
        Auth = "auth",
        /// It has no such model or address.
        NotFound = "config",
        /// It limits our rate.
        RateLimited = "rate_limited",
        /// Our quota with it is used up: asking again does not help.
        Quota = "quota",
        /// It is overloaded.
        Overloaded = "overloaded",
        /// It failed inside.
        Server = "server_error",
        /// It failed so often in a row that it is not asked for a moment.
        Resting = "resting",
    }
}

words! {
    /// What exactly, where those who run a gateway tell causes apart that are one kind to everybody else.
    Exactly {
        /// Connect: the name leads nowhere.
        Dns = "dns",
        /// Connect timeout: nobody said which address the name has.
        DnsTimeout = "dns_timeout",
        /// Connect: this gateway, or its machine, may open no more files and sockets.
        NoFiles = "no_files",
        /// TLS: the handshake broke off, and no certificate was at fault.
        Handshake = "handshake",
        /// Protocol: too many headers, or too long ones.
        HeaderLimit = "header_limit",
        /// Protocol: it sends us elsewhere.
        Redirect = "redirect",
        /// Protocol: an answer without anything in it.
        Empty = "empty",
        /// Protocol: a media type that is none of ours.
        ContentType = "content_type",
        /// Protocol: a content coding or a charset that was not asked for.
        Encoding = "encoding",
        /// Protocol: an event that is none.
        BadEvent = "bad_event",
        /// Protocol: an event over its limit.
        EventLimit = "event_limit",
        /// Truncated: the connection closed inside the body.
        IncompleteBody = "incomplete_body",
        /// Truncated: the connection was reset inside the body.
        Reset = "reset",
        /// First token and gap: bytes kept coming, and no content with them.
        NoProgress = "no_progress",
    }
}

impl Kind {
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

/// The explanation of a refusal.
#[derive(Clone, Debug, Default)]
pub struct Refusal {
    /// The provider's own reason, for one warning in the log: on one line, bounded and masked once
    /// the error has left its provider.
    pub reason: Option<String>,
    /// The part of the request, or of the settings, that is at fault.
    pub fault: Option<Fault>,
    /// The model or tool at fault, by a name of ours.
    pub subject: Option<String>,
    /// The address that was asked, without its query.
    pub url: Option<String>,
}

/// What went wrong with a provider. `detail` is for the log; an upstream's sentences have no place in it, for they may
/// repeat keys and what users said. They are in `refusal.reason`, masked, and no other text of this error has them.
#[derive(Clone, Debug)]
pub struct ProviderError {
    /// The configured provider's name.
    pub provider: String,
    /// What.
    pub kind: Kind,
    /// What exactly, where that is known.
    pub exactly: Option<Exactly>,
    /// The HTTP status it answered, if it did.
    pub status: Option<u16>,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
    /// More, for the log.
    pub detail: String,
    /// The explanation of a refusal; in a box, because most results are no errors.
    pub refusal: Box<Refusal>,
}

impl ProviderError {
    /// An error without a status.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            provider: String::new(),
            kind,
            exactly: None,
            status: None,
            retry_after: None,
            detail: detail.into(),
            refusal: Box::default(),
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

    /// The same, told exactly; what was told before stays.
    #[must_use]
    pub fn exactly(mut self, exactly: Exactly) -> Self {
        self.exactly.get_or_insert(exactly);
        self
    }

    /// The one word for it: of [`Kind`] or of [`Exactly`], so that there are as many as these have and no more.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match (self.exactly, self.kind, self.status) {
            (Some(Exactly::Handshake), ..) => Kind::Tls.as_str(), // it only may be tried again
            (Some(exactly), ..) => exactly.as_str(),
            (None, Kind::Reported, Some(400..)) => Kind::Rejected.as_str(), // it was no event that said so
            (None, kind, _) => kind.as_str(),
        }
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
            Kind::Tls => self.exactly == Some(Exactly::Handshake), // a certificate does not get better
            _ => false,
        }
    }
}

impl ProviderError {
    /// Whether the provider is at fault, and may be so for the next request too: what the breaker counts.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        use Kind::*;
        !self.is_ours()
            && matches!(
                self.kind,
                Connect | Tls | ConnectTimeout | FirstByte | FirstToken | EmptyReply | Overloaded | Server
            )
    }

    /// Whether this gateway is at fault, so that it says nothing of the provider.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.exactly == Some(Exactly::NoFiles)
    }

    /// Whether another provider may do better: anything but a fault of the request's.
    #[must_use]
    pub fn elsewhere(&self) -> bool {
        !matches!(self.kind, Kind::Rejected | Kind::ContextTooLong)
    }

    /// Whether it lasts until an operator changes the settings, or a client its request.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        use Kind::*;
        match self.kind {
            Config | Auth | NotFound | Quota | Rejected => true,
            Protocol => matches!(self.exactly, Some(Exactly::Redirect | Exactly::ContentType)),
            Connect => self.exactly == Some(Exactly::Dns),
            Tls => self.exactly.is_none(),
            _ => false,
        }
    }

    /// The sentence for the client about the part at fault, in words of ours.
    fn about_fault(&self) -> Option<String> {
        let about = match (self.refusal.fault?, self.refusal.subject.as_deref()) {
            (Fault::Model, Some(model)) => format!("The model's provider does not know the model `{model}`."),
            (Fault::Model, None) => "The model's provider does not know the model.".to_owned(),
            (Fault::Address, _) => "The model's provider has nothing at the address in the settings.".to_owned(),
            (Fault::Images, _) => "The model's provider refuses the parameter `attachments`.".to_owned(),
            (Fault::Parameter(name), _) => format!("The model's provider refuses the parameter `{name}`."),
            (Fault::Conversation | Fault::CallIds, _) => {
                "The model's provider refuses a message of the conversation.".to_owned()
            }
            (Fault::Tool(_), Some(tool)) => format!("The model's provider refuses the tool `{tool}`."),
            (Fault::Tool(_), None) => "The model's provider refuses a tool.".to_owned(),
        };
        Some(about)
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
        write!(f, "{} at provider {}", self.word(), self.provider)?;
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
            Kind::EmptyReply => (
                UpstreamProtocol,
                "The model's provider closed the connection before it answered.",
            ),
            Kind::Protocol => (
                UpstreamProtocol,
                "The model's provider answered with something that is not its protocol.",
            ),
            Kind::Truncated => (UpstreamTruncated, "The model's answer broke off before its end."),
            Kind::Limit => (OutputLimit, "The answer is longer than this gateway allows."),
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
        let about_fault = error
            .about_fault()
            .filter(|_| matches!(code, UpstreamError | UpstreamRejected));
        let message = about_fault.unwrap_or_else(|| message.to_owned());
        let is_for_good = matches!(error.kind, Kind::NotFound | Kind::Config);
        let mut known = Error::new(code, message).because(error);
        known.retryable = Some(false).filter(|_| is_for_good);
        known.retry_after = retry_after;
        known.upstream = Some(Box::new(upstream));
        known
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_failure_has_one_word_of_a_closed_list() {
        let words = Kind::ALL.iter().map(|kind| kind.as_str());
        let all: Vec<_> = words.chain(Exactly::ALL.iter().map(|one| one.as_str())).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a word twice");
        let plain = |word: &&&str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert_eq!(all.iter().filter(plain).count(), all.len(), "a label is a word");

        let broken = ProviderError::new(Kind::Truncated, "");
        assert_eq!(broken.word(), "no_terminal");
        let broken = broken.exactly(Exactly::Reset).exactly(Exactly::IncompleteBody);
        assert_eq!(broken.word(), "reset", "what is nearer to the cause knows better");
        let reported = ProviderError::new(Kind::Reported, "");
        assert_eq!(reported.clone().with_status(200).word(), "in_band_error");
        assert_eq!(reported.with_status(409).word(), "client_error");
    }
}

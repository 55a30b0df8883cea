//! The back door: who answers, and how theirs becomes ours.
//!
//! A provider whose wire is its own is one folder (a [`dialect::Dialect`]) and one row of [`KINDS`]; one that speaks a
//! known dialect is a few lines of configuration. Nothing here knows who is asking.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, future::BoxFuture};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    chat::{ChatRequest, Chunk},
    meters::Meters,
};

mod adapt;
mod address;
pub mod anthropic;
pub mod azure;
mod bare;
pub mod breaker;
mod call_ids;
mod content;
pub mod decoding;
pub mod demo;
pub mod deviations;
pub mod dialect;
pub mod error;
mod finish;
pub mod frame;
pub mod gemini;
#[cfg(test)]
pub(crate) mod golden;
pub mod groq;
mod history;
mod loose;
pub mod ollama;
pub mod openai;
mod payload;
mod pieces;
pub mod probe;
pub mod refusal;
mod reporter;
pub mod responses;
pub mod retry;
pub mod unanswered;
pub mod unpack;
pub mod upstream;

pub use error::ProviderError;

/// What a model does, in batches: everything that one read of the upstream brought. The last chunk is `Finish`; an
/// `Err` ends the stream, and without either it was truncated, which is an `Err` too.
pub type ChunkStream = Pin<Box<dyn Stream<Item = Result<Vec<Chunk>, ProviderError>> + Send>>;

/// One who answers.
pub trait Provider: Send + Sync {
    /// The configured name.
    fn name(&self) -> &str;

    /// Who it is to those who watch.
    fn identity(&self) -> Identity<'_> {
        Identity {
            system: self.name(),
            server: None,
        }
    }

    /// Whether it can do what is asked, before anything is sent.
    ///
    /// # Errors
    /// What it cannot do, by the request's field.
    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported>;

    /// Asks. An outer `Err` means that nothing was said: the caller may ask again, or ask another. After it, nothing may
    /// be retried.
    fn stream<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChunkStream, ProviderError>>;
}

/// Who a provider is, in the words of OpenTelemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// `gen_ai.provider.name`.
    pub system: &'a str,
    /// The name of its host.
    pub server: Option<&'a str>,
}

/// A field that a provider has no use for; it is refused rather than dropped in silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The field, as in the request: `settings.seed`.
    pub field: &'static str,
}

/// A provider's settings, complete.
#[derive(Clone, Debug)]
pub struct ProviderSettings {
    /// The name it has in the configuration.
    pub name: String,
    /// Which row of [`KINDS`].
    pub kind: String,
    /// Where it is, without a slash at the end.
    pub base_url: String,
    /// Its key, if it wants one.
    pub api_key: Option<SecretString>,
    /// Further headers.
    pub headers: BTreeMap<String, SecretString>,
    /// Azure only: the dated version of its API, before v1.
    pub api_version: Option<String>,
    /// Azure only: the deployment, where it stands in the address.
    pub deployment: Option<String>,
    /// Servers of the openai dialect only: the name under which the server takes the limit of
    /// tokens; `None` for what is known of its host.
    pub max_tokens_field: Option<openai::MaxTokensField>,
    /// Its patience and limits.
    pub limits: Limits,
    /// Whether it is left alone for a moment when it fails too often.
    pub breaker: BreakerSwitch,
    /// Where it counts; the settings' own are nobody's.
    pub meters: Arc<Meters>,
}

impl ProviderSettings {
    /// Whether the other settings make the same provider.
    fn is_same(&self, other: &Self) -> bool {
        let Self {
            name,
            kind,
            base_url,
            api_key,
            headers,
            api_version,
            deployment,
            max_tokens_field,
            limits,
            breaker,
            meters: _,
        } = self;
        let key = |key: &Option<SecretString>| key.as_ref().map(|key| key.expose_secret().to_owned());
        let same_headers = headers.len() == other.headers.len()
            && headers
                .iter()
                .zip(&other.headers)
                .all(|(a, b)| a.0 == b.0 && a.1.expose_secret() == b.1.expose_secret());
        same_headers
            && key(api_key) == key(&other.api_key)
            && (name, kind, base_url) == (&other.name, &other.kind, &other.base_url)
            && (api_version, deployment) == (&other.api_version, &other.deployment)
            && *max_tokens_field == other.max_tokens_field
            && (limits, breaker) == (&other.limits, &other.breaker)
    }
}

/// Whether a provider has a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerSwitch {
    /// It has.
    On,
    /// It is always asked.
    Off,
}

/// How long to wait for a provider, and how much to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For a connection, TLS included.
    pub connect_timeout: Duration,
    /// From the request to the answer's header.
    pub first_byte_timeout: Duration,
    /// From the header to the first content.
    pub first_token_timeout: Duration,
    /// Between two pieces of content.
    pub gap_timeout: Duration,
    /// How often to ask again before the first content.
    pub max_retries: u32,
    /// Of one event, in bytes.
    pub max_event: usize,
}

/// Makes a provider of a kind.
type Make = fn(ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError>;

/// Every kind of provider: adding one is adding its row.
pub const KINDS: &[(&str, Make)] = &[
    ("openai", openai::provider),
    ("openai-responses", responses::provider),
    ("anthropic", anthropic::provider),
    ("gemini", gemini::provider),
    ("groq", groq::provider),
    ("azure", azure::provider),
    ("ollama", ollama::provider),
    ("demo", demo::provider),
];

/// Whether there is such a kind.
#[must_use]
pub fn knows(kind: &str) -> bool {
    KINDS.iter().any(|(known, _)| *known == kind)
}

/// The configured providers, by name.
#[derive(Clone, Default)]
pub struct Providers(BTreeMap<String, Arc<dyn Provider>>);

impl Providers {
    /// Makes them all.
    ///
    /// # Errors
    /// The first that cannot be made; an unknown kind is the configuration's to refuse.
    pub fn new(
        settings: impl IntoIterator<Item = ProviderSettings>,
        meters: &Arc<Meters>,
    ) -> Result<Self, ProviderError> {
        Self::default().renewed(&[], settings, meters)
    }

    /// The providers of settings that were read again. Those whose settings are the same stay, with
    /// their connections and their breakers; `old` are the settings that made these.
    ///
    /// # Errors
    /// The first that cannot be made.
    pub fn renewed(
        &self,
        old: &[ProviderSettings],
        settings: impl IntoIterator<Item = ProviderSettings>,
        meters: &Arc<Meters>,
    ) -> Result<Self, ProviderError> {
        let mut all = BTreeMap::new();
        for mut one in settings {
            let stays = old.iter().any(|old| old.is_same(&one));
            if let Some(known) = self.get(&one.name).filter(|_| stays) {
                all.insert(one.name, known.clone());
                continue;
            }
            one.meters = meters.clone();
            let make = KINDS.iter().find(|(kind, _)| *kind == one.kind).map(|(_, make)| make);
            let make = make.ok_or_else(|| ProviderError::config(&one.name, format!("no kind {:?}", one.kind)))?;
            all.insert(one.name.clone(), make(one)?);
        }
        Ok(Self(all))
    }

    /// These, as they are.
    #[cfg(test)]
    pub(crate) fn of(all: impl IntoIterator<Item = Arc<dyn Provider>>) -> Self {
        Self(all.into_iter().map(|one| (one.name().to_owned(), one)).collect())
    }

    /// The provider of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Provider>> {
        self.0.get(name)
    }
}

impl std::fmt::Debug for Providers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

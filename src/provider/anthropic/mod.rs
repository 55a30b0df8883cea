//! Anthropic's Messages dialect.
//!
//! Sources (2026-11): platform.claude.com/docs/en/api/messages, …/build-with-claude/streaming, …/extended-thinking and
//! …/api/errors. We ask for no tools that the provider runs itself; their blocks, like all that is unknown, are passed
//! over.

use std::sync::Arc;

use reqwest::header::HeaderMap;

use super::{
    Provider, ProviderError, ProviderSettings, Unsupported,
    deviations::Deviations,
    dialect::{Call, Decoder, Dialect},
    upstream::{Credentials, HttpProvider},
};
use crate::chat::{ChatRequest, Chunk};

mod decode;
mod encode;
mod refusal;
mod wire;

/// Whose [`crate::chat::Carry`] it is.
const NAME: &str = "anthropic";

/// The dialect, as one provider speaks it.
#[derive(Clone, Debug, Default)]
pub struct Anthropic {
    /// The configured provider: thinking goes back to nobody else, because another one refuses its
    /// signature, or the want of one.
    provider: Arc<str>,
}

/// A provider that speaks it.
pub(super) fn provider(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError> {
    let credentials = Credentials::Header("x-api-key");
    let provider = settings.name.as_str().into();
    Ok(Arc::new(HttpProvider::new(
        Anthropic { provider },
        credentials,
        settings,
    )?))
}

impl Dialect for Anthropic {
    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        &[("anthropic-version", "2023-06-01")] // the format's own date; every call must name it
    }

    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported> {
        encode::check(request)
    }

    fn encode(&self, request: &ChatRequest) -> Result<Call, ProviderError> {
        encode::call(request, &self.provider)
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        Box::new(decode::AnthropicDecoder::new(self.provider.clone()))
    }

    fn whole(&self, body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError> {
        decode::whole(decode::AnthropicDecoder::new(self.provider.clone()), body, odd)
    }

    fn refusal(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
        refusal::refusal(status, headers, body)
    }
}

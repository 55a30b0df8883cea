//! OpenAI's Responses dialect, and any server that speaks it.
//!
//! Source: platform.openai.com/docs/api-reference/responses and responses-streaming (2026-11). Nothing is left with the
//! provider (`store: false`): every call brings the whole conversation, and with it the reasoning that the model gave us
//! encrypted. A provider with quirks of its own has its own file.

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
mod items;
mod reported;
#[cfg(test)]
mod tests;
mod wire;

/// Whose carries are ours.
const NAME: &str = "openai-responses";

/// The dialect, as one provider speaks it.
#[derive(Clone, Debug)]
pub struct Responses {
    /// The configured provider: only who encrypted a model's reasoning can read it, and refuses a request with
    /// somebody else's.
    provider: Arc<str>,
}

impl Responses {
    /// The dialect as the provider of this name speaks it.
    #[must_use]
    pub fn of(provider: &str) -> Self {
        Self {
            provider: provider.into(),
        }
    }
}

/// A provider that speaks it.
pub(super) fn provider(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError> {
    let dialect = Responses::of(&settings.name);
    Ok(Arc::new(HttpProvider::new(dialect, Credentials::Bearer, settings)?))
}

impl Dialect for Responses {
    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported> {
        encode::check(request)
    }

    fn encode(&self, request: &ChatRequest) -> Result<Call, ProviderError> {
        encode::call(request, &self.provider)
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        Box::new(decode::ResponsesDecoder::new(self.provider.clone()))
    }

    fn whole(&self, body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError> {
        decode::whole(self.provider.clone(), body, odd)
    }

    fn refusal(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
        reported::refusal(status, headers, body)
    }
}

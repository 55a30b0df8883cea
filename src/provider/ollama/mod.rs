//! Ollama's own dialect: `/api/chat`, a JSON value a line.
//!
//! Source: docs.ollama.com/api (chat, streaming, errors) and `api/types.go` (2026-11). Its OpenAI-compatible endpoint
//! is another grammar, which the openai dialect speaks. There is no version, and a server of one's own wants no key.

use std::sync::Arc;

use reqwest::header::HeaderMap;

use super::{
    Provider, ProviderError, ProviderSettings, Unsupported,
    deviations::Deviations,
    dialect::{Call, Decoder, Dialect},
    frame::Framing,
    upstream::{Credentials, HttpProvider},
};
use crate::chat::{ChatRequest, Chunk};

mod decode;
mod encode;
mod wire;

/// Whose carried thinking is whose.
const NAME: &str = "ollama";

/// The dialect.
#[derive(Clone, Copy, Debug)]
pub struct Ollama;

/// A provider that speaks it.
pub(super) fn provider(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError> {
    Ok(Arc::new(HttpProvider::new(Ollama, Credentials::Bearer, settings)?))
}

impl Dialect for Ollama {
    fn framing(&self) -> Framing {
        Framing::Ndjson
    }

    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported> {
        encode::check(request)
    }

    fn encode(&self, request: &ChatRequest) -> Result<Call, ProviderError> {
        encode::call(request)
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        Box::<decode::OllamaDecoder>::default()
    }

    fn whole(&self, body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError> {
        decode::whole(body, odd)
    }

    fn refusal(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
        decode::refusal(status, headers, body)
    }
}

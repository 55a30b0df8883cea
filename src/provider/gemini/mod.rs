//! Google's Gemini dialect: `streamGenerateContent` of the Gemini API, and of Vertex AI, which speaks the same.
//!
//! Source: ai.google.dev/api/generate-content, ai.google.dev/gemini-api/docs/function-calling, …/thought-signatures and
//! …/image-understanding (2026-11). Google's Interactions API is another grammar, and is not spoken here.

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
mod error;
mod partial;
mod wire;

/// Whose what is carried is.
const NAME: &str = "gemini";

/// The dialect.
#[derive(Clone, Copy, Debug)]
pub struct Gemini;

/// A provider that speaks it. Its key travels in a header: in the address it would end up in logs.
pub(super) fn provider(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError> {
    let key = Credentials::Header("x-goog-api-key");
    Ok(Arc::new(HttpProvider::new(Gemini, key, settings)?))
}

impl Dialect for Gemini {
    fn takes_image(&self, media_type: &str) -> bool {
        encode::takes_image(media_type)
    }

    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported> {
        encode::check(request)
    }

    fn encode(&self, request: &ChatRequest) -> Result<Call, ProviderError> {
        encode::call(request)
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        Box::<decode::GeminiDecoder>::default()
    }

    fn whole(&self, body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError> {
        decode::whole(body, odd)
    }

    fn refusal(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
        error::refusal(status, headers, body)
    }
}

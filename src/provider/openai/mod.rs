//! OpenAI's Chat Completions dialect, and any server that speaks it.
//!
//! Source: platform.openai.com/docs/api-reference/chat and chat-streaming (2026-11). This folder knows OpenAI's own
//! server and what compatible ones are known to do within the same grammar; a provider with quirks of its own has its
//! own file.

use std::sync::Arc;

use reqwest::header::HeaderMap;

use super::{
    Provider, ProviderError, ProviderSettings, Unsupported,
    dialect::{Call, Decoder, Dialect, is_of_object},
    upstream::{Credentials, HttpProvider},
};
use crate::chat::{ChatRequest, Chunk, ResponseFormat};

mod decode;
mod encode;
mod wire;

pub(in crate::provider) use decode::{OpenAiDecoder, reported};

/// The dialect.
#[derive(Clone, Copy, Debug)]
pub struct OpenAi;

/// A provider that speaks it.
pub(super) fn provider(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError> {
    Ok(Arc::new(HttpProvider::new(OpenAi, Credentials::Bearer, settings)?))
}

impl Dialect for OpenAi {
    fn marks_its_end(&self) -> bool {
        true
    }

    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported> {
        match &request.response_format {
            ResponseFormat::JsonSchema { schema, .. } if !is_of_object(schema) => Err(Unsupported {
                field: "response_format",
            }),
            _ => Ok(()), // every other field of ours has its place here
        }
    }

    fn encode(&self, request: &ChatRequest) -> Result<Call, ProviderError> {
        encode::call(request)
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        Box::<decode::OpenAiDecoder>::default()
    }

    fn whole(&self, body: &[u8]) -> Result<Vec<Chunk>, ProviderError> {
        decode::whole(body)
    }

    fn refusal(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
        decode::refusal(status, headers, body)
    }
}

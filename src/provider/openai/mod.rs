//! OpenAI's Chat Completions dialect, and any server that speaks it.
//!
//! Source: platform.openai.com/docs/api-reference/chat and chat-streaming (2026-11). This folder knows OpenAI's own
//! server and what compatible ones are known to do within the same grammar; a provider with quirks of its own has its
//! own file.

use std::sync::Arc;

use reqwest::header::HeaderMap;

use super::{
    Provider, ProviderError, ProviderSettings, Unsupported,
    deviations::Deviations,
    dialect::{Call, Decoder, Dialect, is_of_object},
    upstream::{Credentials, HttpProvider},
};
use crate::chat::{ChatRequest, Chunk, ResponseFormat};

mod calls;
mod decode;
mod encode;
mod opaque;
pub(in crate::provider) mod server;
mod snapshot;
#[cfg(test)]
mod strict_tests;
#[cfg(test)]
mod tolerance;
mod usage;
mod wire;

pub(in crate::provider) use decode::{OpenAiDecoder, reported};
pub use server::MaxTokensField;
use server::Server;
pub(in crate::provider) use usage::read_usage;

/// The dialect, as one provider speaks it.
#[derive(Clone, Debug, Default)]
pub struct OpenAi {
    /// The configured provider: what it wants back goes to nobody else.
    provider: Arc<str>,
    server: Server,
}

impl OpenAi {
    /// The dialect as the server of these settings speaks it.
    pub(in crate::provider) fn of(settings: &ProviderSettings) -> Self {
        Self {
            provider: settings.name.as_str().into(),
            server: Server::of(settings),
        }
    }

    /// The dialect as such a server speaks it.
    pub(in crate::provider) fn at(server: Server) -> Self {
        Self {
            provider: Arc::default(),
            server,
        }
    }

    /// A decoder for one answer.
    pub(in crate::provider) fn own_decoder(&self) -> OpenAiDecoder {
        OpenAiDecoder::new(self.provider.clone())
    }
}

/// A provider that speaks it.
pub(super) fn provider(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError> {
    let dialect = OpenAi::of(&settings);
    Ok(Arc::new(HttpProvider::new(dialect, Credentials::Bearer, settings)?))
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
        encode::call(request, &self.provider, &self.server)
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        Box::new(self.own_decoder())
    }

    fn whole(&self, body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError> {
        decode::whole(self.own_decoder(), body, odd)
    }

    fn refusal(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
        decode::refusal(status, headers, body)
    }
}

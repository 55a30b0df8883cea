//! One small question to a provider: whether its address, its key and a model are right.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, timeout};

use super::{
    Provider, ProviderError,
    error::{Exactly, Kind},
    refusal::Fault,
};
use crate::chat::{Again, ChatRequest, Chunk, Message, ResponseFormat, Settings, ToolChoice};

/// Asks a provider's model one small question and hangs up at the first piece of its answer.
///
/// # Errors
/// The provider's, and `Kind::FirstByte` if nothing came within `patience`.
pub async fn probe(provider: &dyn Provider, model: &str, patience: Duration) -> Result<(), ProviderError> {
    let request = ChatRequest {
        model: model.to_owned(),
        instructions: None,
        messages: vec![Message::user("Answer with OK.", Vec::new())],
        tools: Vec::new(),
        tool_choice: ToolChoice::Auto,
        settings: Settings::default(), // a small limit is refused by models that think first
        response_format: ResponseFormat::Text,
        trace: None,
        again: Again {
            unsent_only: true,
            until: Some(Instant::now() + patience),
        },
    };
    let ask = async {
        let mut chunks = provider.stream(&request).await?;
        while let Some(batch) = chunks.next().await {
            let answers = |chunk: &Chunk| chunk.is_content() || matches!(chunk, Chunk::Finish { .. });
            if batch?.iter().any(answers) {
                break;
            }
        }
        Ok(())
    };
    timeout(patience, ask).await.unwrap_or_else(|_| {
        let late = ProviderError::new(Kind::FirstByte, "no answer in time");
        Err(late.of(provider.name()))
    })
}

/// A probe's outcome in a few words.
#[must_use]
pub fn verdict(outcome: &Result<(), ProviderError>) -> &'static str {
    let Err(error) = outcome else {
        return "reachable, the key and the model are accepted";
    };
    match (error.kind, error.refusal.fault) {
        (Kind::Auth, _) => "reachable, the key is refused",
        (_, Some(Fault::Model)) => "reachable, the model is unknown",
        (_, Some(Fault::Address)) => "reachable, nothing is at this address: check base_url",
        (Kind::NotFound, _) => "reachable, the model or the address is unknown",
        (Kind::Protocol, _) if error.exactly == Some(Exactly::Redirect) => "it redirects: check base_url",
        (Kind::Protocol, _) => "it does not speak this protocol: check kind and base_url",
        (Kind::Connect | Kind::EmptyReply | Kind::Resting, _) => "not reachable",
        (Kind::ConnectTimeout | Kind::FirstByte | Kind::FirstToken | Kind::Gap, _) => "no answer in time",
        (Kind::Tls, _) => "the TLS connection failed",
        (Kind::RateLimited, _) => "reachable, the rate limit is reached",
        (Kind::Quota, _) => "reachable, the quota is used up",
        (Kind::Overloaded, _) => "reachable, overloaded",
        (Kind::Rejected | Kind::ContextTooLong, _) => "reachable, the request is refused",
        (Kind::Config, _) => "the settings make no provider",
        (Kind::Truncated | Kind::Limit | Kind::Reported | Kind::Server, _) => "reachable, it reports an error",
    }
}

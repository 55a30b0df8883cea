//! The provider that needs no key: it streams word by word, remembers the session, and says plainly that it is a demo.
//!
//! It exists so that a first `curl` shows what the gateway does. It is not a language model and never pretends to be.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{ChunkStream, Provider, ProviderError, ProviderSettings, Unsupported};
use crate::chat::{ChatRequest, Chunk, FinishKind, FinishReason, Message, Role, Usage, history, usage};

/// The time between two words.
const PACE: Duration = Duration::from_millis(25);
/// How much of somebody's words is quoted back, in characters.
const QUOTE: usize = 200;

struct Demo {
    name: String,
}

/// The demo.
pub(super) fn provider(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError> {
    Ok(Arc::new(Demo { name: settings.name }))
}

impl Provider for Demo {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported> {
        let settings = &request.settings;
        let fields = [
            ("settings.temperature", settings.temperature.is_some()),
            ("settings.top_p", settings.top_p.is_some()),
            ("settings.stop", !settings.stop.is_empty()),
            ("settings.seed", settings.seed.is_some()),
            ("settings.reasoning_effort", settings.reasoning_effort.is_some()),
            (
                "attachments",
                request.messages.iter().any(|m| !m.attachments.is_empty()),
            ),
        ];
        match fields.iter().find(|(_, asked)| *asked) {
            Some((field, _)) => Err(Unsupported { field }),
            None => Ok(()),
        }
    }

    fn stream<'a>(&'a self, request: &'a ChatRequest) -> BoxFuture<'a, Result<ChunkStream, ProviderError>> {
        let answer = answer(&request.messages);
        let limit = request
            .settings
            .max_output_tokens
            .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let words: Vec<String> = answer.split_inclusive(' ').map(str::to_owned).collect();
        let kind = if words.len() > limit {
            FinishKind::Length
        } else {
            FinishKind::Stop
        };
        let usage = Usage {
            input_tokens: Some(request.messages.iter().map(history::tokens).sum()),
            output_tokens: Some(usage::estimate(words.iter().take(limit).map(String::len).sum())),
            estimated: true, // there is no tokenizer behind this
            ..Usage::default()
        };
        let stream = async_stream::stream! {
            for word in words.into_iter().take(limit) {
                yield Ok(vec![Chunk::Text(word)]);
                tokio::time::sleep(PACE).await;
            }
            yield Ok(vec![Chunk::Finish { reason: FinishReason { kind, raw: None }, usage }]);
        };
        Box::pin(std::future::ready(Ok(Box::pin(stream) as ChunkStream)))
    }
}

/// What the demo says: who it is, what was said now, and what was said before.
fn answer(messages: &[Message]) -> String {
    let said: Vec<&Message> = messages.iter().filter(|m| m.role == Role::User).collect();
    let Some((now, before)) = said.split_last() else {
        return "This is a demo.".to_owned();
    };
    let mut text = format!(
        "This is Sluicegate's built-in demo, not a language model. You said: “{}” ",
        quote(&now.content)
    );
    match before {
        [] => text.push_str(
            "It is the first message of this session; send another with the same session_id and I will remember it. ",
        ),
        [.., last] => text.push_str(&format!(
            "It is message {} of this session; before it you said: “{}” ",
            said.len(),
            quote(&last.content)
        )),
    }
    text.push_str("Start the gateway with OPENAI_API_KEY set to put a real model here.");
    text
}

fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_is_and_what_was_said_before() {
        let first = answer(&[Message::user("My name is Ada.", vec![])]);
        assert!(first.contains("demo, not a language model") && first.contains("“My name is Ada.”"));
        let talk = [
            Message::user("My name is Ada.", vec![]),
            Message::assistant(first, vec![]),
            Message::user("And?", vec![]),
        ];
        assert!(answer(&talk).contains("message 2 of this session; before it you said: “My name is Ada.”"));
        assert_eq!(quote(&"é".repeat(201)).chars().count(), 201);
    }
}

//! The loop, and nothing but the loop: ask the model, run what it asks for, ask again, until it has said all.
//!
//! It does not know HTTP, sessions or stores; who runs it listens.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    chat::{Artifact, Event, ResponseFormat, Settings},
    error::{Error, ErrorCode},
    meters::Meters,
    telemetry::trace::Span,
    tool::{self, File, Offer, ToolContext},
};

mod call;
pub mod form;
pub mod next;
pub mod step;
pub mod turn;

pub use form::Form;
pub use step::answer;
pub use turn::Turn;

/// A named recipe: which model answers, as whom.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// What it is for, for people.
    pub description: String,
    /// Who answers.
    pub model: ModelRef,
    /// Who is asked instead, in this order, when one fails before saying anything.
    pub fallbacks: Vec<ModelRef>,
    /// Which other models a request may name: `provider/model`, or with a `*` at the end all that begin so.
    pub allowed_models: Vec<String>,
    /// What the model is told first.
    pub instructions: Option<String>,
    /// How it should answer, where the request does not say.
    pub settings: Settings,
    /// Which tools it has: patterns, as [`crate::tool::Tools::select`] takes them.
    pub tools: Vec<String>,
    /// How many rounds of tools at most.
    pub max_tool_rounds: u32,
    /// How long a tool may take that does not say itself.
    pub tool_timeout: Duration,
    /// In what form it answers, where the request does not say.
    pub response_format: ResponseFormat,
}

/// What an agent has at hand for one turn.
pub struct Kit<'a> {
    /// Its tools.
    pub tools: &'a [Offer],
    /// The names of those that it has, but not for this caller.
    pub denied: &'a [String],
    /// What they are told beside their arguments.
    pub context: ToolContext,
    /// Where their files go.
    pub shelf: &'a dyn Shelf,
    /// When the run began.
    pub began: Instant,
    /// When it will be cut.
    pub until: Instant,
    /// Where it is counted what happens.
    pub meters: &'a Meters,
    /// The run, as part of a trace.
    pub span: &'a Span,
}

/// Who hears a turn as it happens.
pub trait Listener: Send {
    /// Is told what happened, in order.
    fn hear(&mut self, events: &mut Vec<Event>);

    /// Whether the turn may go on: asked before a model or a tool is called.
    ///
    /// # Errors
    /// Why it may not.
    fn may_go_on(&self) -> Result<(), Error> {
        Ok(())
    }

    /// The last so many bytes of the text that it heard: an answer is long, and is kept in one place.
    fn heard(&self, bytes: usize) -> Arc<str>;
}

/// Where the files are kept that tools make.
pub trait Shelf: Send + Sync {
    /// Keeps a file.
    ///
    /// # Errors
    /// Why it cannot be kept, for the model.
    fn keep(&self, file: File) -> BoxFuture<'_, Result<Artifact, String>>;
}

/// A model and its provider: `provider/model`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRef {
    /// The configured provider's name.
    pub provider: String,
    /// The model, as the provider names it; may hold slashes.
    pub model: String,
}

impl ModelRef {
    /// Reads `provider/model`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (provider, model) = text.split_once('/')?;
        let fine = !provider.is_empty() && !model.is_empty() && text.chars().all(|c| !c.is_control() && c != ' ');
        fine.then(|| Self {
            provider: provider.to_owned(),
            model: model.to_owned(),
        })
    }
}

impl std::fmt::Display for ModelRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.provider, self.model)
    }
}

impl Agent {
    /// The model that a request gets: the agent's own, or the one it names if the agent admits it.
    ///
    /// # Errors
    /// `model_not_allowed`.
    pub fn model(&self, asked: Option<&str>) -> Result<ModelRef, Error> {
        let Some(asked) = asked else {
            return Ok(self.model.clone());
        };
        let refused = || {
            let message = format!("The agent `{}` does not admit this model.", self.name);
            Error {
                field: Some("model".into()),
                ..Error::new(ErrorCode::ModelNotAllowed, message)
            }
        };
        let model = ModelRef::parse(asked).ok_or_else(refused)?;
        let admits = |pattern: &String| tool::matches(pattern, asked);
        if model == self.model || self.allowed_models.iter().any(admits) {
            Ok(model)
        } else {
            Err(refused())
        }
    }
}

/// The configured agents.
#[derive(Clone, Debug)]
pub struct Agents {
    /// By name.
    pub all: BTreeMap<String, Arc<Agent>>,
    /// Who answers when nobody is named; always among `all`.
    pub default: String,
}

impl Agents {
    /// The agent of that name.
    ///
    /// # Errors
    /// `agent_unknown`.
    pub fn get(&self, name: &str) -> Result<&Arc<Agent>, Error> {
        self.all.get(name).ok_or_else(|| {
            let unknown = Error::new(
                ErrorCode::AgentUnknown,
                "There is no agent of that name; GET /agents lists them.",
            );
            Error {
                field: Some("agent".into()),
                ..unknown
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_admitted_models_are_admitted() {
        let agent = Agent {
            name: "a".into(),
            description: String::new(),
            model: ModelRef::parse("openai/gpt-x").unwrap(),
            fallbacks: vec![],
            allowed_models: vec!["openai/gpt-y".into(), "groq/*".into()],
            instructions: None,
            settings: Settings::default(),
            tools: vec![],
            max_tool_rounds: 5,
            tool_timeout: Duration::from_secs(10),
            response_format: ResponseFormat::Text,
        };
        for fine in ["openai/gpt-x", "openai/gpt-y", "groq/meta/llama"] {
            assert_eq!(agent.model(Some(fine)).unwrap().to_string(), fine);
        }
        for wrong in [
            "openai/gpt-z",
            "../gpt",
            "gpt",
            "",
            "groq/",
            "groq/a b",
            "groq/x\r\nX: y",
            "openai/gpt-y/z",
        ] {
            assert_eq!(
                agent.model(Some(wrong)).unwrap_err().code,
                ErrorCode::ModelNotAllowed,
                "{wrong:?}"
            );
        }
    }
}

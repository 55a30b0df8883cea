//! What the runs of a caller may.

use std::sync::Arc;

use crate::{
    agent::{Agent, Agents},
    error::{Error, ErrorCode},
    tool::{Tools, matches},
};

/// What the runs of a caller may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permit {
    /// Which agents may be asked: names, with a `*` at the end all that begin so; `None`: every one.
    pub agents: Option<Vec<String>>,
    /// Which of an agent's tools may be used: patterns, as agents have them; `None`: every one.
    pub tools: Option<Vec<String>>,
    /// How many at a time; 0: no limit.
    pub concurrent_runs: usize,
}

impl Permit {
    /// Whether this agent may be asked.
    #[must_use]
    pub fn admits(&self, agent: &str) -> bool {
        let patterns = self.agents.as_ref();
        patterns.is_none_or(|patterns| patterns.iter().any(|pattern| matches(pattern, agent)))
    }

    /// Whether all that it names is there.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self, agents: &Agents, tools: &Tools) -> Result<(), String> {
        for pattern in self.agents.iter().flatten() {
            if !agents.all.keys().any(|name| matches(pattern, name)) {
                return Err(format!("there is no agent {pattern:?}"));
            }
        }
        self.tools.iter().flatten().try_for_each(|pattern| tools.knows(pattern))
    }

    /// The agent that is asked, if the caller may ask it. Who may not, does not learn which there are.
    ///
    /// # Errors
    /// `forbidden`, `agent_unknown`.
    pub fn agent<'a>(&self, agents: &'a Agents, asked: Option<&str>) -> Result<&'a Arc<Agent>, Error> {
        let name = asked.unwrap_or(&agents.default);
        if !self.admits(name) {
            let refused = Error::new(ErrorCode::Forbidden, "This key may not ask that agent.");
            return Err(Error {
                field: Some("agent".into()),
                ..refused
            });
        }
        agents.get(name)
    }
}

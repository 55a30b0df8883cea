//! Tools that are HTTP requests, declared in the configuration.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use serde_json::{Map, Value};

use super::{Guard, Tool, ToolContext, ToolError, ToolOutput};
use crate::chat::ToolDefinition;

/// A tool that is an HTTP request, as configured.
#[derive(Clone, Debug)]
pub struct HttpToolSettings {
    /// The tool's name.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// A JSON Schema of an object.
    pub parameters: Value,
    /// `GET`, `POST`, ...
    pub method: String,
    /// The address, with `{name}` for arguments.
    pub url: String,
    /// Headers of every request.
    pub headers: BTreeMap<String, SecretString>,
    /// The body, with `{name}` for arguments; without one, no body.
    pub body: Option<String>,
    /// How long a call may take; without one, as long as the agent says.
    pub timeout: Option<Duration>,
    /// How much of an answer is read, in bytes.
    pub max_result: usize,
}

/// The client of all HTTP tools.
pub(super) fn client(_guard: &Guard) -> Result<reqwest::Client, String> {
    Ok(reqwest::Client::new())
}

/// The tool.
pub(super) struct HttpTool {
    definition: ToolDefinition,
}

impl HttpTool {
    /// Checks the settings.
    pub(super) fn new(_settings: HttpToolSettings, _guard: &Guard, _client: reqwest::Client) -> Result<Self, String> {
        unimplemented!()
    }
}

impl Tool for HttpTool {
    fn definition(&self) -> &ToolDefinition {
        &self.definition
    }

    fn call<'a>(
        &'a self,
        _arguments: &'a Map<String, Value>,
        _context: &'a ToolContext,
    ) -> BoxFuture<'a, Result<ToolOutput, ToolError>> {
        unimplemented!()
    }
}

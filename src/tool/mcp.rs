//! Tools of MCP servers.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use secrecy::SecretString;

use super::Offer;

/// An MCP server, as configured.
#[derive(Clone, Debug)]
pub struct McpSettings {
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub transport: McpTransport,
    /// How long it may take to start and to list its tools.
    pub start_timeout: Duration,
    /// How often it is asked whether its tools are still what they were.
    pub refresh: Duration,
}

/// How an MCP server is reached.
#[derive(Clone, Debug)]
pub enum McpTransport {
    /// A child process that speaks over its standard input and output.
    Child {
        /// The program.
        command: PathBuf,
        /// Its arguments.
        args: Vec<String>,
        /// Its environment, beside the few variables that every program needs.
        env: BTreeMap<String, SecretString>,
    },
    /// Streamable HTTP.
    Http {
        /// The address.
        url: url::Url,
        /// Headers of every request.
        headers: BTreeMap<String, SecretString>,
    },
}

/// A server and what is known of its tools.
pub(super) struct Server {}

impl Server {
    /// Begins to start it, and goes on trying for as long as the gateway lives.
    pub(super) fn start(_settings: McpSettings) -> Result<Self, String> {
        unimplemented!()
    }

    /// Its tools, as far as they can be called now.
    pub(super) fn offers(&self) -> Arc<[Offer]> {
        unimplemented!()
    }

    /// Stops it, and waits until it has.
    pub(super) async fn stop(&self) {
        unimplemented!()
    }
}

//! Tools of MCP servers: child processes and streamable HTTP.
//!
//! The only place that knows `rmcp`. Every server has one task that owns it ([`server`]): it connects, lists the tools,
//! watches, and begins again when something fails. What a server listed first is what it is held to ([`catalogue`]):
//! a tool that changes afterwards is switched off, because nobody has agreed to what it says now. A server's words go
//! to the model and its files to the client; nothing that it says can ask the gateway for anything.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretString};

#[cfg(feature = "mcp")]
mod call;
#[cfg(feature = "mcp")]
mod catalogue;
#[cfg(feature = "mcp")]
mod child;
#[cfg(feature = "mcp")]
mod connect;
#[cfg(feature = "mcp")]
mod descendants;
#[cfg(feature = "mcp")]
mod http;
#[cfg(feature = "mcp")]
mod message;
#[cfg(feature = "mcp")]
mod output;
#[cfg(feature = "mcp")]
mod pipes;
#[cfg(feature = "mcp")]
mod server;
#[cfg(feature = "mcp")]
#[cfg(test)]
mod tests;

#[cfg(not(feature = "mcp"))]
pub(super) use absent::Server;
#[cfg(feature = "mcp")]
pub(super) use server::Server;

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
        /// Its whole environment.
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

impl McpSettings {
    /// Whether the other settings describe the same server, reached in the same way.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |a: &BTreeMap<String, SecretString>, b: &BTreeMap<String, SecretString>| {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|(a, b)| a.0 == b.0 && a.1.expose_secret() == b.1.expose_secret())
        };
        let same_transport = match (&self.transport, &other.transport) {
            (
                McpTransport::Child { command, args, env },
                McpTransport::Child {
                    command: other_command,
                    args: other_args,
                    env: other_env,
                },
            ) => (command, args) == (other_command, other_args) && same(env, other_env),
            (
                McpTransport::Http { url, headers },
                McpTransport::Http {
                    url: other_url,
                    headers: other_headers,
                },
            ) => url == other_url && same(headers, other_headers),
            _ => false,
        };
        same_transport
            && self.name == other.name
            && (self.start_timeout, self.refresh) == (other.start_timeout, other.refresh)
    }
}

/// Text from outside as it may stand in a log: one line, of so many characters at most.
#[cfg(feature = "mcp")]
fn plain(text: &str, most: usize) -> String {
    let mut plain = String::new();
    for (at, c) in text.trim().chars().enumerate() {
        if at == most {
            plain.push('…');
            break;
        }
        if c.is_control() {
            plain.extend(c.escape_default());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// What stands here in a build without MCP: a server that cannot be.
#[cfg(not(feature = "mcp"))]
mod absent {
    use std::{convert::Infallible, sync::Arc};

    use tokio_util::task::TaskTracker;

    use super::McpSettings;
    use crate::tool::Offer;

    /// No server.
    pub(in crate::tool) struct Server(Infallible);

    impl Server {
        /// Says that there is none.
        pub(in crate::tool) fn new(_settings: McpSettings, _tasks: &TaskTracker) -> Result<Self, String> {
            Err("this build has no MCP: it was made without the cargo feature \"mcp\"".into())
        }

        /// Never called.
        pub(in crate::tool) fn offers(&self) -> Arc<[Offer]> {
            match self.0 {}
        }

        /// Never called.
        pub(in crate::tool) async fn begin(&self) {
            match self.0 {}
        }

        /// Never called.
        pub(in crate::tool) async fn stop(&self) {
            match self.0 {}
        }
    }
}

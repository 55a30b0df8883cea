//! What agents can do beside talking: the tools, where they come from, and which of them an agent has.
//!
//! A tool gets arguments that were parsed strictly and fit its schema, and gives back words for the model and perhaps
//! files. It knows neither the model nor who asked. Whatever goes wrong in it is an error for the model, never the end of
//! a run. A new built-in tool is one file and one row of `BUILT_IN`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use tokio_util::task::TaskTracker;

use crate::{
    chat::{RunId, ToolDefinition},
    schema::{self, CHECKING, Recursion, Schema},
};

mod answer;
mod calculator;
mod current_time;
mod guard;
mod http;
mod mcp;
mod secrets;
pub mod template;
mod write_file;

pub use guard::Guard;
pub use http::HttpToolSettings;
pub use mcp::{McpSettings, McpTransport};
pub use secrets::is_secret;

/// How long the gateway's start waits for MCP servers.
const LISTING: Duration = Duration::from_secs(5);
/// How many patterns that cannot be checked are logged of a tool.
const MAX_LOGGED: usize = 5;

/// Something that a model can call.
pub trait Tool: Send + Sync {
    /// What the model is told of it.
    fn definition(&self) -> &ToolDefinition;

    /// How long a call may take, where that is not the agent's to say.
    fn timeout(&self) -> Option<Duration> {
        None
    }

    /// Calls it. `arguments` fit [`ToolDefinition::parameters`]. Dropping the future gives the call up.
    ///
    /// # Errors
    /// Why it did not work, for the model.
    fn call<'a>(
        &'a self,
        arguments: &'a Map<String, Value>,
        context: &'a ToolContext,
    ) -> BoxFuture<'a, Result<ToolOutput, ToolError>>;
}

/// For whom a tool is called: data, no words of a model's.
#[derive(Clone, Debug)]
pub struct ToolContext {
    /// The run.
    pub run_id: RunId,
    /// The request's `context`.
    pub facts: Arc<Map<String, Value>>,
    /// The trace that the call is part of, as W3C's `traceparent`.
    pub trace: Option<String>,
}

/// What a tool gives back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolOutput {
    /// For the model.
    pub content: String,
    /// Files for the client; the model is told of them.
    pub files: Vec<File>,
}

impl ToolOutput {
    /// Words alone.
    #[must_use]
    pub fn text(content: impl Into<String>) -> Self {
        Self {
            content: content.into(),
            files: Vec::new(),
        }
    }
}

/// A file that a tool made.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// What it is called; whoever keeps it makes it harmless.
    pub name: String,
    /// What it is.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Why a call did not work: a sentence for the model, which may hold what a tool's server said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ToolError(pub String);

impl ToolError {
    /// An error of that sentence.
    #[must_use]
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    /// It in a word, for meters: ours where the sentence begins with one. (A server could begin one so too, and would only
    /// be counted so.)
    #[must_use]
    pub fn word(&self) -> &'static str {
        let ours = ["blocked_address", "tool_drift"];
        let begins = |word: &&str| self.0.strip_prefix(*word).is_some_and(|rest| rest.starts_with(':'));
        ours.into_iter().find(begins).unwrap_or("failed")
    }
}

/// A tool as an agent has it: under the name that its model knows, with its schema compiled.
#[derive(Clone)]
pub struct Offer {
    /// What the model is told. The name can be another than the tool's own.
    pub definition: ToolDefinition,
    /// The MCP server that it comes from, if any.
    origin: Option<Arc<str>>,
    /// What arguments have to fit.
    schema: Arc<Schema>,
    tool: Arc<dyn Tool>,
}

impl Offer {
    /// A tool with its schema. The model gets a schema that every provider takes; arguments are
    /// checked against the whole one, but for patterns that cannot be checked.
    ///
    /// # Errors
    /// What is wrong with the schema.
    pub fn new(tool: Arc<dyn Tool>, origin: Option<Arc<str>>) -> Result<Self, String> {
        let mut definition = tool.definition().clone();
        let parameters = &mut definition.parameters;
        let mut dropped = schema::drop_unchecked_patterns(parameters);
        let schema = Schema::compile(parameters, Recursion::Allowed).or_else(|why| {
            let more = schema::drop_all_patterns(parameters);
            if more.is_empty() {
                return Err(why);
            }
            dropped.extend(more);
            Schema::compile(parameters, Recursion::Allowed)
        })?;
        if !dropped.is_empty() {
            tracing::warn!(
                tool = definition.name,
                server = origin.as_deref(),
                patterns = ?dropped.iter().take(MAX_LOGGED).collect::<Vec<_>>(),
                "tool has patterns that cannot be checked; they are neither checked nor sent to models"
            );
        }
        definition.parameters = schema::widened(parameters)?;
        Ok(Self {
            definition,
            origin,
            schema: Arc::new(schema),
            tool,
        })
    }

    /// Whether arguments fit. Many of them are looked at where nobody waits for that.
    ///
    /// # Errors
    /// Where they do not, for the model.
    pub async fn admits(&self, arguments: &Map<String, Value>) -> Result<(), String> {
        let arguments = Value::Object(arguments.clone());
        if self.schema.is_quick(&arguments) {
            return self.schema.admits(&arguments);
        }
        let schema = self.schema.clone();
        let looking = CHECKING.place().await.run(move || schema.admits(&arguments)).await;
        looking.unwrap_or_else(|| Err("they could not be checked".to_owned()))
    }

    /// Whether a pattern means it: by the tool's own name, whatever the model knows it by.
    fn is_meant(&self, pattern: &str) -> bool {
        let name = &self.tool.definition().name;
        match (
            &self.origin,
            pattern.strip_prefix("mcp:").and_then(|rest| rest.split_once('/')),
        ) {
            (Some(origin), Some((server, pattern))) => **origin == *server && matches(pattern, name),
            (None, None) => matches(pattern, name),
            _ => false,
        }
    }

    /// What it goes by in meters: its name, or where it comes from, for what others name is without end.
    #[must_use]
    pub fn counted_as(&self) -> &str {
        self.origin.as_deref().unwrap_or(&self.definition.name)
    }

    /// The tool.
    #[must_use]
    pub fn tool(&self) -> &Arc<dyn Tool> {
        &self.tool
    }
}

/// What tools are configured.
#[derive(Clone, Debug, Default)]
pub struct ToolSettings {
    /// Tools that are HTTP requests.
    pub http: Vec<HttpToolSettings>,
    /// Networks that they may reach although they are not public.
    pub guard_allow: Vec<ipnet::IpNet>,
    /// MCP servers.
    pub mcp: Vec<McpSettings>,
}

/// Makes a built-in tool.
type Make = fn() -> Arc<dyn Tool>;

/// Every built-in tool: adding one is adding its row.
const BUILT_IN: &[(&str, Make)] = &[
    ("calculator", calculator::tool),
    ("current_time", current_time::tool),
    ("write_file", write_file::tool),
];

/// The names of the built-in tools.
pub fn built_in() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// All tools of this gateway.
pub struct Tools {
    /// Those that are always there, by name.
    fixed: BTreeMap<String, Offer>,
    /// Those that come and go, by their server's name.
    servers: BTreeMap<String, Arc<mcp::Server>>,
    /// The tasks of the servers, and of those that settings which were replaced had.
    tasks: TaskTracker,
}

impl Tools {
    /// Makes them; MCP servers have no tools until they are [begun](Tools::begin).
    ///
    /// # Errors
    /// Whatever is wrong with the settings, with the name of the setting.
    pub fn new(settings: ToolSettings) -> Result<Self, String> {
        Self::made(settings, TaskTracker::new(), |_| None)
    }

    /// The tools of settings that were read again; `old` are the settings that made these. An MCP
    /// server whose settings are the same stays. One that is not among them is stopped when
    /// nothing has these tools any more.
    ///
    /// # Errors
    /// Whatever is wrong with the settings, with the name of the setting.
    pub fn renewed(&self, old: &ToolSettings, settings: ToolSettings) -> Result<Self, String> {
        Self::made(settings, self.tasks.clone(), |one| {
            let stays = old.mcp.iter().any(|old| old.is_same(one));
            self.servers.get(&one.name).filter(|_| stays).cloned()
        })
    }

    fn made(
        settings: ToolSettings,
        tasks: TaskTracker,
        known: impl Fn(&McpSettings) -> Option<Arc<mcp::Server>>,
    ) -> Result<Self, String> {
        let mut fixed = BTreeMap::new();
        for (name, make) in BUILT_IN {
            let offer = Offer::new(make(), None).map_err(|e| format!("{name}: {e}"))?;
            fixed.insert((*name).to_owned(), offer);
        }
        let guard = Guard::new(settings.guard_allow);
        let client = http::client(&guard)?;
        for one in settings.http {
            let name = one.name.clone();
            let wrong = |what: String| format!("tools.http.{name}: {what}");
            if fixed.contains_key(&name) {
                return Err(wrong("there is a built-in tool of this name".into()));
            }
            let tool = http::HttpTool::new(one, &guard, client.clone()).map_err(wrong)?;
            fixed.insert(name.clone(), Offer::new(Arc::new(tool), None).map_err(wrong)?);
        }
        let mut servers = BTreeMap::new();
        for one in settings.mcp {
            let name = one.name.clone();
            let server = match known(&one) {
                Some(server) => server,
                None => {
                    let server = mcp::Server::new(one, &tasks);
                    Arc::new(server.map_err(|e| format!("mcp.{name}: {e}"))?)
                }
            };
            servers.insert(name, server);
        }
        Ok(Self { fixed, servers, tasks })
    }

    /// Whether an agent may name this: a tool's name, `mcp:SERVER/TOOL`, or either with a `*` at the end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn knows(&self, pattern: &str) -> Result<(), String> {
        if let Some(rest) = pattern.strip_prefix("mcp:") {
            let (server, tool) = rest
                .split_once('/')
                .ok_or_else(|| format!("{pattern:?} is not mcp:SERVER/TOOL, where TOOL can be *"))?;
            if tool.is_empty() || !self.servers.contains_key(server) {
                return Err(format!("{pattern:?} names no server of [mcp]"));
            }
            return Ok(());
        }
        if self.fixed.keys().any(|name| matches(pattern, name)) {
            return Ok(());
        }
        let near = self.fixed.keys().max_by(|a, b| {
            let near = |name: &str| strsim::jaro_winkler(pattern, name);
            near(a).total_cmp(&near(b))
        });
        let hint = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
        Err(format!("there is no tool {pattern:?}{hint}"))
    }

    /// The tools that an agent has at this moment, in the order of its patterns, each once. Where an MCP server's tool has
    /// a name that another of the agent's tools has, it goes by `SERVER_TOOL`.
    #[must_use]
    pub fn select(&self, patterns: &[String]) -> Vec<Offer> {
        let mut all: Vec<Offer> = Vec::new();
        let mut seen = BTreeSet::new();
        for pattern in patterns {
            match pattern.strip_prefix("mcp:").and_then(|rest| rest.split_once('/')) {
                Some((server, pattern)) => {
                    let offers = self.servers.get(server).map(|server| server.offers());
                    let offers = offers.iter().flat_map(|offers| offers.iter());
                    let named = offers.filter(|offer| matches(pattern, &offer.tool.definition().name));
                    all.extend(
                        named
                            .filter(|o| seen.insert((server, o.tool.definition().name.clone())))
                            .cloned(),
                    );
                }
                None => {
                    let named = self.fixed.iter().filter(|(name, _)| matches(pattern, name));
                    all.extend(
                        named
                            .filter(|(name, _)| seen.insert(("", (*name).clone())))
                            .map(|(_, o)| o.clone()),
                    );
                }
            }
        }
        rename(&mut all);
        all
    }

    /// The tools of these patterns that a caller with such a list may use, and the names of those that it may not.
    #[must_use]
    pub fn admitted(&self, patterns: &[String], allowed: Option<&[String]>) -> (Vec<Offer>, Vec<String>) {
        let all = self.select(patterns);
        let Some(allowed) = allowed else {
            return (all, Vec::new());
        };
        let (admitted, denied): (Vec<Offer>, Vec<Offer>) = all
            .into_iter()
            .partition(|offer| allowed.iter().any(|pattern| offer.is_meant(pattern)));
        (
            admitted,
            denied.into_iter().map(|offer| offer.definition.name).collect(),
        )
    }

    /// Starts the MCP servers, and waits until each has listed its tools or failed to, but not for long: one that comes
    /// later is there from then on.
    pub async fn begin(&self) {
        let all = self.servers.values().map(|server| server.begin());
        let _ = tokio::time::timeout(LISTING, futures_util::future::join_all(all)).await;
    }

    /// Stops the MCP servers, and waits until they have, and those that were to stop before.
    pub async fn close(&self) {
        futures_util::future::join_all(self.servers.values().map(|server| server.stop())).await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Whether a name is meant: one name, or with a `*` at the end all that begin so.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// Gives every tool a name of its own that models take: `[A-Za-z0-9_-]{1,64}`.
fn rename(all: &mut [Offer]) {
    let plain: Vec<String> = all.iter().map(|offer| fit(&offer.definition.name)).collect();
    let mut taken = BTreeSet::new();
    for (at, offer) in all.iter_mut().enumerate() {
        let unique = plain.iter().filter(|name| **name == plain[at]).count() == 1;
        let mut name = match &offer.origin {
            Some(server) if !unique => fit(&format!("{server}_{}", offer.definition.name)),
            _ => plain[at].clone(),
        };
        let stem = name.clone();
        for number in 2.. {
            if taken.insert(name.clone()) {
                break;
            }
            let tail = format!("_{number}");
            name = format!("{}{tail}", &stem[..stem.len().min(64 - tail.len())]);
        }
        offer.definition.name = name;
    }
}

/// A name as models take it.
fn fit(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = name.chars().take(64).map(fits).collect();
    if name.is_empty() { "_".to_owned() } else { name }
}

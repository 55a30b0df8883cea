//! Settings: the built-in file, a file, the environment, flags. The only place that reads the environment, and the only
//! one that knows defaults are in `config/default.toml`. Everything is checked here, at the start; nothing per request.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bytesize::ByteSize;
use config::{Config, File, FileFormat, Value, ValueKind};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{
    agent::{Agent, Form, ModelRef},
    chat::{self, ResponseFormat},
    http::listen::ListenSettings,
    provider::{self, BreakerSwitch, ProviderSettings},
    run,
    store::StoreUrl,
    telemetry::LogFormat,
    tool::{self, ToolSettings},
};

mod tools;

use tools::{HttpToolDefaults, McpDefaults, McpTree, ToolsTree};

const DEFAULT: &str = include_str!("../config/default.toml");
const PREFIX: &str = "SLUICEGATE__";
/// The providers that the environment can configure, in the order of preference: the kind, its keys' variables, its
/// address's. Any of them configures it.
const FROM_ENVIRONMENT: &[(&str, &[&str], &[&str])] = &[
    ("openai", &["OPENAI_API_KEY"], &["OPENAI_BASE_URL"]),
    ("anthropic", &["ANTHROPIC_API_KEY"], &["ANTHROPIC_BASE_URL"]),
    ("gemini", &["GEMINI_API_KEY", "GOOGLE_API_KEY"], &["GEMINI_BASE_URL"]),
    ("groq", &["GROQ_API_KEY"], &["GROQ_BASE_URL"]),
    ("azure", &["AZURE_OPENAI_API_KEY"], &["AZURE_OPENAI_ENDPOINT"]),
    ("ollama", &[], &["OLLAMA_BASE_URL", "OLLAMA_HOST"]),
];

/// What the command line says.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// The file.
    pub config: Option<PathBuf>,
    /// Who answers, `provider/model`.
    pub model: Option<String>,
    /// Where to listen.
    pub listen: Option<SocketAddr>,
}

/// Settings that do not make a gateway: a sentence for whoever starts it, without secrets.
#[derive(Debug)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

fn wrong(what: impl Into<String>) -> ConfigError {
    ConfigError(what.into())
}

/// The settings in force, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Origins of pages that may call from elsewhere.
    pub cors_allowed_origins: Vec<String>,
    /// Names to answer to beside loopback's.
    pub trusted_hosts: Vec<String>,
    /// After how much silence a heartbeat is sent.
    pub heartbeat: Duration,
    /// How long a body may take.
    pub body_timeout: Duration,
    /// How large it may be.
    pub max_body: usize,
    /// How connections are served.
    pub listener: ListenSettings,
    /// Whether callers without a key may come from anywhere.
    pub allow_anonymous: bool,
    /// The limits of runs.
    pub runs: run::Limits,
    /// What `grace` means.
    pub detach_grace: Duration,
    /// How long runs may take to finish when the gateway stops.
    pub drain: Duration,
    /// After how long idle sessions are erased.
    pub session_ttl: Option<Duration>,
    /// Where sessions are kept.
    pub store_url: StoreUrl,
    /// Where the events of runs are kept.
    pub run_log_url: StoreUrl,
    /// Where the files that runs make are kept.
    pub artifacts_url: String,
    /// How many they may be, and how large.
    pub artifacts: run::ArtifactLimits,
    /// What the environment says of clouds, for those who keep files there.
    pub cloud: Vec<(String, SecretString)>,
    /// How the log looks.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_filter: String,
    /// Who answers.
    pub providers: Vec<ProviderSettings>,
    /// What agents can do beside talking.
    pub tools: ToolSettings,
    /// Who can be asked.
    pub agents: Vec<Agent>,
    /// Who is asked when nobody is named.
    pub default_agent: String,
    tree: Tree,
}

impl Settings {
    /// The settings that flags, environment and files make together.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn load(flags: &Flags, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let environment: BTreeMap<String, String> =
            environment.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let file = match flags.config.as_deref() {
            Some(path) => Some(read(path)?),
            None => None,
        };
        Self::build(file.as_ref(), flags, &environment)
    }

    /// The settings of a file's text alone, for tests and for those who embed the gateway.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::build(
            Some(&("the settings".to_owned(), text.to_owned())),
            &Flags::default(),
            &BTreeMap::new(),
        )
    }

    fn build(
        file: Option<&(String, String)>,
        flags: &Flags,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let mut builder = Config::builder().add_source(File::from_str(DEFAULT, FileFormat::Toml));
        if let Some((name, text)) = file {
            let syntax = text.parse::<toml::Table>();
            syntax.map_err(|e| wrong(format!("{name}: {}", e.message())))?; // the whole error would quote the line
            builder = builder.add_source(File::from_str(text, FileFormat::Toml));
        }
        let ours = environment
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value)));
        for (name, value) in ours {
            let path = name
                .split("__")
                .map(str::to_ascii_lowercase)
                .collect::<Vec<_>>()
                .join(".");
            let refused = |_| wrong(format!("{PREFIX}{name}: not the name of a setting"));
            builder = builder.set_override(path, value.clone()).map_err(refused)?;
        }
        if let Some(listen) = flags.listen {
            builder = builder
                .set_override("server.listen", listen.to_string())
                .map_err(|e| wrong(e.to_string()))?;
        }
        let merged = builder.build().map_err(|e| wrong(e.to_string()))?;
        let tree: Tree = serde_path_to_error::deserialize(merged.cache).map_err(|e| explain(&e))?;
        tree.check(flags, environment)
    }

    /// The settings in force as TOML, secrets masked.
    ///
    /// # Errors
    /// They cannot be written down.
    pub fn effective(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(&self.tree).map_err(|e| wrong(e.to_string()))
    }
}

/// What the usual variables say of a kind of provider; `None` if nothing.
fn usual_provider(
    kind: &str,
    keys: &[&str],
    addresses: &[&str],
    environment: &BTreeMap<String, String>,
) -> Option<ProviderTree> {
    let get = |name: &str| environment.get(name).cloned();
    let key = keys.iter().find_map(|name| get(name));
    let address = addresses.iter().find_map(|name| get(name));
    if !provider::knows(kind) || (key.is_none() && address.is_none()) {
        return None;
    }
    let mut found = ProviderTree {
        kind: Some(kind.to_owned()),
        api_key: key.map(|key| Secret(key.trim().to_owned().into())),
        ..ProviderTree::default()
    };
    match kind {
        "azure" => {
            let endpoint = address?.trim_end_matches('/').to_owned(); // Azure is nowhere without one
            found.default_model = get("AZURE_OPENAI_DEPLOYMENT");
            found.api_version = get("AZURE_OPENAI_API_VERSION");
            found.deployment = get("AZURE_OPENAI_DEPLOYMENT").filter(|_| found.api_version.is_some());
            let v1 = if found.api_version.is_some() || endpoint.ends_with("/openai/v1") {
                ""
            } else {
                "/openai/v1"
            };
            found.base_url = Some(format!("{endpoint}{v1}"));
        }
        "ollama" => found.base_url = address.map(|address| ollama_address(&address)),
        _ => found.base_url = address,
    }
    Some(found)
}

/// The variables by which the tools of clouds are told where they are, and as whom they call; not those of models.
fn cloud(environment: &BTreeMap<String, String>) -> Vec<(String, SecretString)> {
    let theirs = |name: &str| {
        ["AWS_", "AZURE_", "GOOGLE_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    let ours = |name: &str| name.starts_with("AZURE_OPENAI_") || name == "GOOGLE_API_KEY";
    let told = environment.iter().filter(|(name, _)| theirs(name) && !ours(name));
    told.map(|(name, value)| (name.clone(), value.clone().into())).collect()
}

/// `OLLAMA_HOST` is what Ollama listens on, in any of its spellings: `0.0.0.0`, `host`, `:11434`, `http://host:11434`.
fn ollama_address(host: &str) -> String {
    let (scheme, rest) = host.split_once("://").unwrap_or(("http", host));
    let rest = rest.trim_end_matches('/');
    let (name, port) = rest
        .rsplit_once(':')
        .filter(|(_, port)| port.parse::<u16>().is_ok())
        .unwrap_or((rest, ""));
    let name = if matches!(name, "" | "0.0.0.0") {
        "127.0.0.1"
    } else {
        name
    };
    let port = match (port, scheme) {
        ("", "https") => String::new(),
        ("", _) if !rest.contains('/') => ":11434".to_owned(),
        ("", _) => String::new(),
        (port, _) => format!(":{port}"),
    };
    format!("{scheme}://{name}{port}")
}

fn read(path: &Path) -> Result<(String, String), ConfigError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("{name}: {e}")))?;
    Ok((name, text))
}

/// An error of deserialising, with its key, and for an unknown one the nearest that is known. Values are not repeated:
/// they may be secrets.
fn explain(error: &serde_path_to_error::Error<config::ConfigError>) -> ConfigError {
    let path = error.path().to_string();
    let text = error.inner().to_string();
    if let Some(rest) = text.split("unknown field `").nth(1)
        && let Some((unknown, rest)) = rest.split_once('`')
    {
        let known = rest.split('`').skip(1).step_by(2);
        let nearest =
            known.max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
        let section = path.strip_suffix(unknown).unwrap_or(&path).trim_end_matches('.');
        let place = if section.is_empty() || section == "." {
            String::new()
        } else {
            format!("{section}.")
        };
        let hint = nearest
            .map(|nearest| format!("; did you mean {place}{nearest}?"))
            .unwrap_or_default();
        return wrong(format!("unknown setting {place}{unknown}{hint}"));
    }
    let what = match text.split_once("expected ") {
        None if text.contains("does not have variant") => "not a word that it can be".to_owned(),
        Some((_, expected)) => format!("expected {}", expected.split(" for key").next().unwrap_or(expected)),
        None => text.split(" for key").next().unwrap_or(&text).to_owned(),
    };
    wrong(format!("{path}: {what}"))
}

/// The settings as they are written down.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Tree {
    default_agent: String,
    server: Server,
    auth: Auth,
    limits: LimitsSection,
    runs: RunsSection,
    sessions: Sessions,
    store: StoreSection,
    run_log: StoreSection,
    artifacts: ArtifactsSection,
    log: Log,
    provider_defaults: ProviderTree,
    provider_kinds: BTreeMap<String, KindTree>,
    #[serde(default)]
    providers: BTreeMap<String, ProviderTree>,
    http_tool_defaults: HttpToolDefaults,
    #[serde(default)]
    tools: ToolsTree,
    mcp_defaults: McpDefaults,
    #[serde(default)]
    mcp: BTreeMap<String, McpTree>,
    agent_defaults: AgentDefaults,
    #[serde(default)]
    agents: BTreeMap<String, AgentTree>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Server {
    listen: SocketAddr,
    cors_allowed_origins: List,
    trusted_hosts: List,
    heartbeat: Time,
    header_timeout: Time,
    body_timeout: Time,
    max_body: Size,
    max_headers: usize,
    max_connections: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    allow_anonymous: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct LimitsSection {
    max_runs: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RunsSection {
    deadline: Time,
    detach_grace: Time,
    replay_window: Time,
    drain: Time,
    on_cancel: OnCancelWord,
    max_output: Size,
    memory_limit: Size,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum OnCancelWord {
    Keep,
    Discard,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Sessions {
    ttl: OptionalTime,
    max_history_tokens: u64,
    queue_patience: Time,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct StoreSection {
    url: StoreUrl,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ArtifactsSection {
    url: String,
    max_size: Size,
    max_per_run: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Log {
    format: LogWord,
    filter: String,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum LogWord {
    Text,
    Json,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct KindTree {
    base_url: String,
    default_model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_event: Option<Size>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct ProviderTree {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deployment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gap_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_retries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_event: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    breaker: Option<bool>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, Secret>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct AgentDefaults {
    tools: List,
    max_tool_rounds: u32,
    tool_timeout: Time,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct AgentTree {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    fallbacks: List,
    allowed_models: List,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tools: Option<List>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tool_rounds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_timeout: Option<Time>,
    settings: chat::Settings,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<FormatTree>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct FormatTree {
    r#type: FormatWord,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// A JSON Schema: a table, or the text of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<serde_json::Value>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum FormatWord {
    Text,
    JsonObject,
    JsonSchema,
}

impl Tree {
    /// From what was written to what holds.
    fn check(mut self, flags: &Flags, environment: &BTreeMap<String, String>) -> Result<Settings, ConfigError> {
        self.add_usual_providers(environment);
        let providers = self.providers(environment)?;
        if self.agents.is_empty() || flags.model.is_some() {
            let usual = FROM_ENVIRONMENT.iter().map(|(kind, ..)| *kind).chain(["demo"]);
            let first = usual
                .filter(|name| self.providers.contains_key(*name))
                .chain(self.providers.keys().map(String::as_str))
                .next();
            let first = first.map(str::to_owned);
            let known = self.agents.contains_key("assistant");
            let assistant = self.agents.entry("assistant".to_owned()).or_insert_with(|| AgentTree {
                description: "Answers questions; remembers the session.".to_owned(),
                ..AgentTree::default()
            });
            assistant.model = flags.model.clone().or_else(|| assistant.model.clone()).or(first);
            // The demo shows everything. A real model has the tools that its owner gives it: each costs tokens, and not
            // every server that is compatible with OpenAI's takes them.
            let demo = |model: &String| model.split('/').next() == Some("demo");
            if !known && assistant.model.as_ref().is_some_and(demo) && self.agent_defaults.tools.is_empty() {
                assistant.tools = Some(List(tool::built_in().map(str::to_owned).collect()));
            }
        }
        let agents = self.agents()?;
        let tools = tools::tools(
            &self.tools,
            &self.http_tool_defaults,
            &self.mcp,
            &self.mcp_defaults,
            environment,
        )?;
        let Tree {
            server,
            runs,
            sessions,
            log,
            ..
        } = &self;
        if !matches!(
            self.run_log.url.as_str().split_once(':'),
            Some(("memory" | "redis" | "rediss", _))
        ) {
            return Err(wrong(
                "run_log.url: must be redis://[USER:PASSWORD@]HOST[:PORT] or memory:",
            ));
        }
        if !matches!(
            self.store.url.as_str().split_once(':'),
            Some(("memory" | "sqlite" | "postgres" | "postgresql", _))
        ) {
            return Err(wrong(
                "store.url: must be sqlite://PATH, postgres://USER:PASSWORD@HOST/DATABASE or memory:",
            ));
        }
        for origin in &server.cors_allowed_origins.0 {
            let fine = url::Url::parse(origin).is_ok_and(|url| url.origin().ascii_serialization() == *origin);
            if !fine {
                return Err(wrong(format!(
                    "server.cors_allowed_origins: {origin:?} is not an origin, such as https://app.example"
                )));
            }
        }
        let positive = [
            ("server.heartbeat", server.heartbeat.0),
            ("server.header_timeout", server.header_timeout.0),
            ("server.body_timeout", server.body_timeout.0),
            ("runs.deadline", runs.deadline.0),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, time)| time.is_zero()) {
            return Err(wrong(format!("{name}: must be more than nothing")));
        }
        if runs.max_output.0 == 0 || runs.max_output.0 > 1 << 30 {
            return Err(wrong("runs.max_output: must be at most 1GiB, and more than nothing"));
        }
        if self.artifacts.max_size.0 == 0 || self.artifacts.max_size.0 > 1 << 30 {
            return Err(wrong("artifacts.max_size: must be at most 1GiB, and more than nothing"));
        }
        Ok(Settings {
            listen: server.listen,
            cors_allowed_origins: server.cors_allowed_origins.0.clone(),
            trusted_hosts: server.trusted_hosts.0.clone(),
            heartbeat: server.heartbeat.0,
            body_timeout: server.body_timeout.0,
            max_body: server.max_body.0,
            listener: ListenSettings {
                header_timeout: server.header_timeout.0,
                max_headers: server.max_headers.clamp(1, 1000),
                max_connections: server.max_connections.clamp(1, tokio::sync::Semaphore::MAX_PERMITS),
            },
            allow_anonymous: self.auth.allow_anonymous,
            runs: run::Limits {
                deadline: runs.deadline.0,
                replay_window: runs.replay_window.0,
                max_output: runs.max_output.0,
                memory_limit: runs.memory_limit.0,
                max_runs: self.limits.max_runs,
                max_history_tokens: sessions.max_history_tokens,
                queue_patience: sessions.queue_patience.0,
                on_cancel: match runs.on_cancel {
                    OnCancelWord::Keep => run::OnCancel::Keep,
                    OnCancelWord::Discard => run::OnCancel::Discard,
                },
            },
            detach_grace: runs.detach_grace.0,
            drain: runs.drain.0,
            session_ttl: sessions.ttl.0,
            store_url: self.store.url.clone(),
            run_log_url: self.run_log.url.clone(),
            artifacts_url: self.artifacts.url.clone(),
            artifacts: run::ArtifactLimits {
                max_size: self.artifacts.max_size.0,
                max_per_run: self.artifacts.max_per_run,
            },
            cloud: cloud(environment),
            log_format: match log.format {
                LogWord::Text => LogFormat::Text,
                LogWord::Json => LogFormat::Json,
            },
            log_filter: log.filter.clone(),
            providers,
            tools,
            agents,
            default_agent: self.default_agent.clone(),
            tree: self,
        })
    }

    /// Adds the providers that the usual variables name. What is configured already is left alone, but for a key that is
    /// missing where the address is the usual one: a key goes nowhere else by itself.
    fn add_usual_providers(&mut self, environment: &BTreeMap<String, String>) {
        for (kind, keys, addresses) in FROM_ENVIRONMENT {
            let Some(found) = usual_provider(kind, keys, addresses, environment) else {
                continue;
            };
            let known = self
                .providers
                .entry((*kind).to_owned())
                .or_insert_with(|| found.clone());
            let keyless = known.api_key.is_none() && known.api_key_env.is_none() && known.api_key_file.is_none();
            if keyless && known.base_url.is_none() && known.kind.as_deref() == Some(*kind) {
                known.api_key = found.api_key;
                known.base_url = found.base_url;
            }
        }
    }

    fn providers(&self, environment: &BTreeMap<String, String>) -> Result<Vec<ProviderSettings>, ConfigError> {
        let kinds: BTreeSet<&str> = provider::KINDS.iter().map(|(kind, _)| *kind).collect();
        let mut all = Vec::new();
        for (name, tree) in &self.providers {
            let at = |key: &str| format!("providers.{name}.{key}");
            let kind = tree
                .kind
                .clone()
                .ok_or_else(|| wrong(format!("{} is missing", at("kind"))))?;
            if !kinds.contains(kind.as_str()) {
                let known: Vec<&str> = kinds.into_iter().collect();
                return Err(wrong(format!(
                    "{}: {kind:?} is none of {}",
                    at("kind"),
                    known.join(", ")
                )));
            }
            let usual = self.provider_kinds.get(&kind);
            let base_url = tree
                .base_url
                .clone()
                .or_else(|| usual.map(|kind| kind.base_url.clone()))
                .unwrap_or_default();
            let limits = &self.provider_defaults;
            macro_rules! limit {
                ($key:ident) => {
                    tree.$key
                        .or(limits.$key)
                        .ok_or_else(|| wrong(format!("{} is missing", at(stringify!($key)))))?
                };
            }
            let max_event = tree
                .max_event
                .or(usual.and_then(|kind| kind.max_event))
                .or(limits.max_event);
            let max_event = max_event.ok_or_else(|| wrong(format!("{} is missing", at("max_event"))))?;
            all.push(ProviderSettings {
                name: name.clone(),
                api_key: api_key(tree, environment, &at)?,
                api_version: tree.api_version.clone(),
                deployment: tree.deployment.clone(),
                headers: tools::secrets(&tree.headers, &at("headers"), environment)?,
                limits: provider::Limits {
                    connect_timeout: limit!(connect_timeout).0,
                    first_byte_timeout: limit!(first_byte_timeout).0,
                    first_token_timeout: limit!(first_token_timeout).0,
                    gap_timeout: limit!(gap_timeout).0,
                    max_retries: limit!(max_retries),
                    max_event: max_event.0,
                },
                breaker: if limit!(breaker) {
                    BreakerSwitch::On
                } else {
                    BreakerSwitch::Off
                },
                base_url,
                kind,
            });
        }
        Ok(all)
    }

    /// A model by its name, or a provider's default model by the provider's.
    fn model(&self, name: &str, at: &str) -> Result<ModelRef, ConfigError> {
        let usual = || {
            let provider = self.providers.get(name)?;
            let kind = provider.kind.as_ref().and_then(|kind| self.provider_kinds.get(kind));
            let usual = provider
                .default_model
                .clone()
                .or_else(|| kind.map(|kind| kind.default_model.clone()));
            Some(ModelRef {
                provider: name.to_owned(),
                model: usual.filter(|model| !model.is_empty())?,
            })
        };
        let wrong = || {
            let known = self.provider_kinds.contains_key(name) && !self.providers.contains_key(name);
            wrong(match known {
                true => format!("{at}: the provider {name:?} is not configured, and its usual variables are not set"),
                false => format!("{at}: {name:?} is not provider/model, nor a provider with a default model"),
            })
        };
        ModelRef::parse(name).or_else(usual).ok_or_else(wrong)
    }

    fn agents(&self) -> Result<Vec<Agent>, ConfigError> {
        let mut all = Vec::new();
        for (name, tree) in &self.agents {
            let at = |key: &str| format!("agents.{name}.{key}");
            let model = tree
                .model
                .as_deref()
                .ok_or_else(|| wrong(format!("{} is missing", at("model"))))?;
            let fallbacks = tree
                .fallbacks
                .0
                .iter()
                .map(|model| self.model(model, &at("fallbacks")))
                .collect::<Result<_, _>>()?;
            all.push(Agent {
                name: name.clone(),
                description: tree.description.clone(),
                model: self.model(model, &at("model"))?,
                fallbacks,
                allowed_models: tree.allowed_models.0.clone(),
                instructions: tree.instructions(name)?,
                settings: tree.settings.clone(),
                tools: tree.tools.as_ref().unwrap_or(&self.agent_defaults.tools).0.clone(),
                max_tool_rounds: tree.max_tool_rounds.unwrap_or(self.agent_defaults.max_tool_rounds),
                tool_timeout: {
                    let time = tree.tool_timeout.unwrap_or(self.agent_defaults.tool_timeout);
                    time.positive(&at("tool_timeout"))?
                },
                response_format: match &tree.response_format {
                    Some(format) => format.checked(&at("response_format"))?,
                    None => ResponseFormat::Text,
                },
            });
        }
        Ok(all)
    }
}

impl FormatTree {
    fn checked(&self, at: &str) -> Result<ResponseFormat, ConfigError> {
        let format = match (self.r#type, &self.schema) {
            (FormatWord::Text, None) => ResponseFormat::Text,
            (FormatWord::JsonObject, None) => ResponseFormat::JsonObject,
            (FormatWord::JsonSchema, Some(schema)) => ResponseFormat::JsonSchema {
                name: self.name.clone().unwrap_or_else(|| "answer".to_owned()),
                schema: tools::json(schema, &format!("{at}.schema"))?,
            },
            _ => {
                return Err(wrong(format!(
                    "{at}: a schema belongs to the type json_schema, and to no other"
                )));
            }
        };
        Form::new(&format).map_err(|e| wrong(format!("{at}.schema: {}", e.message)))?;
        Ok(format)
    }
}

impl AgentTree {
    /// A prompt, or one made from who the agent is, what for, and how.
    fn instructions(&self, name: &str) -> Result<Option<String>, ConfigError> {
        let parts = [
            ("Role", &self.role),
            ("Goal", &self.goal),
            ("Instructions", &self.instructions),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter_map(|(label, part)| part.as_ref().map(|part| format!("{label}: {part}")))
            .collect();
        match (&self.system_prompt, parts.is_empty()) {
            (Some(_), false) => Err(wrong(format!(
                "agents.{name}: system_prompt stands instead of role, goal and instructions"
            ))),
            (Some(prompt), true) => Ok(Some(prompt.clone())),
            (None, true) => Ok(None),
            (None, false) => Ok(Some(parts.join("\n\n"))),
        }
    }
}

/// A provider's key, from wherever it is said to be.
fn api_key(
    tree: &ProviderTree,
    environment: &BTreeMap<String, String>,
    at: &impl Fn(&str) -> String,
) -> Result<Option<SecretString>, ConfigError> {
    let told = [
        tree.api_key.is_some(),
        tree.api_key_env.is_some(),
        tree.api_key_file.is_some(),
    ];
    if told.into_iter().filter(|told| *told).count() > 1 {
        return Err(wrong(format!(
            "{}: there must be one of api_key, api_key_env and api_key_file",
            at("api_key")
        )));
    }
    if let Some(variable) = &tree.api_key_env {
        let value = environment
            .get(variable)
            .ok_or_else(|| wrong(format!("{}: {variable} is not set", at("api_key_env"))))?;
        return Ok(Some(value.trim().to_owned().into()));
    }
    if let Some(path) = &tree.api_key_file {
        let text = std::fs::read_to_string(path)
            .map_err(|e| wrong(format!("{}: {}: {e}", at("api_key_file"), path.display())))?;
        return Ok(Some(text.trim().to_owned().into()));
    }
    Ok(tree.api_key.as_ref().map(|key| key.0.clone()))
}

/// A secret text with the variables in it that it names: `Bearer ${TOKEN}`.
fn expand(secret: &Secret, environment: &BTreeMap<String, String>, at: &str) -> Result<SecretString, ConfigError> {
    filled(secret.0.expose_secret(), environment, at).map(SecretString::from)
}

/// A text with the variables in it that it names.
fn filled(text: &str, environment: &BTreeMap<String, String>, at: &str) -> Result<String, ConfigError> {
    let mut rest = text;
    let mut whole = String::with_capacity(rest.len());
    while let Some((before, after)) = rest.split_once("${") {
        let named = after
            .split_once('}')
            .filter(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        let Some((name, after)) = named else {
            return Err(wrong(format!(
                "{at}: ${{ is not followed by the name of a variable and }}"
            )));
        };
        let value = environment
            .get(name)
            .ok_or_else(|| wrong(format!("{at}: {name} is not set")))?;
        whole.push_str(before);
        whole.push_str(value.trim());
        rest = after;
    }
    whole.push_str(rest);
    Ok(whole)
}

/// A text that is never shown.
#[derive(Clone, Debug)]
struct Secret(SecretString);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.trim().to_owned().into()))
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.expose_secret().is_empty() { "" } else { "***" })
    }
}

/// `"250ms"`, `"30s"`, `"5m"`.
#[derive(Clone, Copy, Debug)]
struct Time(Duration);

impl Time {
    /// More than nothing: what has no time at all would fail at once.
    fn positive(self, at: &str) -> Result<Duration, ConfigError> {
        match self.0.is_zero() {
            true => Err(wrong(format!("{at}: must be more than nothing"))),
            false => Ok(self.0),
        }
    }
}

fn time(text: &str) -> Option<Duration> {
    let unsigned = !text.starts_with(['-', '+']) && !text.contains("ago");
    let span: jiff::SignedDuration = text.parse().ok().filter(|_| unsigned)?;
    Duration::try_from(span).ok()
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        time(&text)
            .map(Self)
            .ok_or_else(|| D::Error::custom("expected a duration, such as \"250ms\", \"30s\" or \"5m\""))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = self.0.as_millis();
        let text = if millis.is_multiple_of(1000) {
            format!("{}s", millis / 1000)
        } else {
            format!("{millis}ms")
        };
        serializer.serialize_str(&text)
    }
}

/// A time, or `""` for none.
#[derive(Clone, Copy, Debug)]
struct OptionalTime(Option<Duration>);

impl<'de> Deserialize<'de> for OptionalTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        let found = time(&text).filter(|time| !time.is_zero());
        found
            .map(|time| Self(Some(time)))
            .ok_or_else(|| D::Error::custom("expected a duration, such as \"30m\" or \"24h\", or \"\""))
    }
}

impl Serialize for OptionalTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(time) => Time(time).serialize(serializer),
            None => serializer.serialize_str(""),
        }
    }
}

/// `"64KiB"`, `"4MiB"`.
#[derive(Clone, Copy, Debug)]
struct Size(usize);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let size = text
            .parse::<ByteSize>()
            .ok()
            .and_then(|size| usize::try_from(size.as_u64()).ok());
        size.map(Self)
            .ok_or_else(|| D::Error::custom("expected a size, such as \"64KiB\" or \"4MiB\""))
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&ByteSize(self.0 as u64).to_string())
    }
}

/// A list of texts; in the environment separated by commas.
#[derive(Clone, Debug, Default, Serialize)]
struct List(Vec<String>);

impl List {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = match Value::deserialize(deserializer)?.kind {
            ValueKind::Array(list) => list
                .into_iter()
                .map(Value::into_string)
                .collect::<Result<_, _>>()
                .map_err(D::Error::custom)?,
            ValueKind::String(text) => text
                .split(',')
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty())
                .collect(),
            _ => return Err(D::Error::custom("expected a list of strings")),
        };
        Ok(Self(texts))
    }
}

//! The settings as they are written down, and how they become those that hold: each checked by itself, and with what it
//! belongs to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{
    ConfigError, Flags, Problems, Settings,
    auth::{AuthTree, LimitsSection},
    environment::{FROM_ENVIRONMENT, cloud, otlp, usual_provider},
    strange_variables,
    tools::{self, HttpToolDefaults, McpDefaults, McpTree, ToolsTree},
    values::{List, OptionalAddress, OptionalTime, Secret, Size, Time, address, optional_word, word},
    wrong,
};
use crate::{
    agent::{Agent, Form, ModelRef},
    chat::{self, ResponseFormat},
    http::{listen::ListenSettings, request_log::LogRequests},
    provider::{self, BreakerSwitch, ProviderSettings},
    run,
    store::StoreUrl,
    telemetry::LogFormat,
    tool,
};

/// The settings as they are written down.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tree {
    default_agent: String,
    pub(super) server: Server,
    pub(super) auth: AuthTree,
    pub(super) limits: LimitsSection,
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
pub(super) struct Server {
    #[serde(deserialize_with = "address")]
    pub(super) listen: SocketAddr,
    admin_listen: OptionalAddress,
    cors_allowed_origins: List,
    pub(super) trusted_hosts: List,
    public_url: String,
    heartbeat: Time,
    header_timeout: Time,
    idle_timeout: Time,
    body_timeout: Time,
    write_timeout: Time,
    lost_timeout: Time,
    max_body: Size,
    max_headers: usize,
    max_connections: usize,
    drain_delay: Time,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunsSection {
    deadline: Time,
    detach_grace: Time,
    replay_window: Time,
    drain: Time,
    #[serde(deserialize_with = "word")]
    on_cancel: OnCancelWord,
    max_output: Size,
    memory_limit: Size,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnCancelWord {
    Keep,
    Discard,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sessions {
    ttl: OptionalTime,
    max_history_tokens: u64,
    max_history_size: Size,
    queue_patience: Time,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreSection {
    url: StoreUrl,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ArtifactsSection {
    url: String,
    max_size: Size,
    max_per_run: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    #[serde(deserialize_with = "word")]
    format: LogWord,
    filter: String,
    #[serde(deserialize_with = "word")]
    requests: RequestsWord,
    otlp_endpoint: String,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogWord {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RequestsWord {
    Off,
    Errors,
    All,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KindTree {
    base_url: String,
    default_model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_event: Option<Size>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ProviderTree {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) base_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api_key: Option<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api_key_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) default_model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) api_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) deployment: Option<String>,
    #[serde(deserialize_with = "optional_word", skip_serializing_if = "Option::is_none")]
    pub(super) max_tokens_field: Option<provider::openai::MaxTokensField>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connect_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_byte_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_token_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gap_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_retries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_event: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) breaker: Option<bool>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) headers: BTreeMap<String, Secret>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AgentDefaults {
    tools: List,
    max_tool_rounds: u32,
    tool_timeout: Time,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AgentTree {
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
pub(super) struct FormatTree {
    #[serde(deserialize_with = "word")]
    r#type: FormatWord,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// A JSON Schema: a table, or the text of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<serde_json::Value>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FormatWord {
    Text,
    JsonObject,
    JsonSchema,
}

impl Tree {
    /// These settings, but for those that hold until a restart, which are the ones of `old`:
    /// listeners, stores, and what the gateway's own jobs were started with.
    pub(super) fn with_fixed_of(self, old: &Self) -> Self {
        let old = old.clone();
        Self {
            server: Server {
                cors_allowed_origins: self.server.cors_allowed_origins,
                trusted_hosts: self.server.trusted_hosts,
                ..old.server
            },
            limits: LimitsSection {
                memory: old.limits.memory,
                ..self.limits
            },
            runs: RunsSection {
                replay_window: old.runs.replay_window,
                drain: old.runs.drain,
                ..self.runs
            },
            sessions: Sessions {
                ttl: old.sessions.ttl,
                ..self.sessions
            },
            store: old.store,
            run_log: old.run_log,
            artifacts: old.artifacts,
            log: Log {
                filter: self.log.filter,
                requests: self.log.requests,
                ..old.log
            },
            ..self
        }
    }

    /// From what was written to what holds.
    pub(super) fn check(
        mut self,
        flags: &Flags,
        environment: &BTreeMap<String, String>,
    ) -> Result<Settings, ConfigError> {
        self.add_usual_providers(environment);
        let mut problems = Problems::default();
        let providers = problems.take(self.providers(environment));
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
        let agents = problems.take(self.agents());
        let tools = problems.take(tools::tools(
            &self.tools,
            &self.http_tool_defaults,
            &self.mcp,
            &self.mcp_defaults,
            environment,
        ));
        problems.take(crate::telemetry::check_filter(&self.log.filter).map_err(wrong));
        let access = problems.take(self.access());
        let otlp = problems.take(otlp(&self.log.otlp_endpoint, environment));
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
            problems.add("run_log.url: must be redis://[USER:PASSWORD@]HOST[:PORT] or memory:");
        }
        if !matches!(
            self.store.url.as_str().split_once(':'),
            Some(("memory" | "sqlite" | "postgres" | "postgresql", _))
        ) {
            problems.add("store.url: must be sqlite://PATH, postgres://USER:PASSWORD@HOST/DATABASE or memory:");
        }
        for origin in &server.cors_allowed_origins.0 {
            let fine = url::Url::parse(origin).is_ok_and(|url| url.origin().ascii_serialization() == *origin);
            if !fine {
                problems.add(format!(
                    "server.cors_allowed_origins: {origin:?} is not an origin, such as https://app.example"
                ));
            }
        }
        let public_url = server.public_url.trim_end_matches('/').to_owned();
        let address = url::Url::parse(&public_url);
        let address = address.is_ok_and(|url| {
            let plain = url.username().is_empty() && url.password().is_none();
            let path_only = url.query().is_none() && url.fragment().is_none();
            matches!(url.scheme(), "http" | "https") && plain && path_only
        });
        if !public_url.is_empty() && !address {
            let example = "must be the gateway's address, such as https://ai.example/gateway";
            return Err(wrong(format!("server.public_url: {example}")));
        }
        let positive = [
            ("server.heartbeat", server.heartbeat.0),
            ("server.header_timeout", server.header_timeout.0),
            ("server.idle_timeout", server.idle_timeout.0),
            ("server.body_timeout", server.body_timeout.0),
            ("server.write_timeout", server.write_timeout.0),
            ("runs.deadline", runs.deadline.0),
        ];
        for (name, _) in positive.into_iter().filter(|(_, time)| time.is_zero()) {
            problems.add(format!("{name}: must be more than nothing"));
        }
        if server.lost_timeout.0 < Duration::from_secs(2) {
            problems.add("server.lost_timeout: must be at least 2s");
        }
        if runs.max_output.0 == 0 || runs.max_output.0 > 1 << 30 {
            problems.add("runs.max_output: must be at most 1GiB, and more than nothing");
        }
        if self.limits.memory.0 / 4 < server.max_body.0 {
            problems.add(
                "limits.memory: must be at least four times server.max_body, so that a caller's half of it holds a \
                 body, what it becomes, and a history",
            );
        }
        if self.artifacts.max_size.0 == 0 || self.artifacts.max_size.0 > 1 << 30 {
            problems.add("artifacts.max_size: must be at most 1GiB, and more than nothing");
        }
        let parts = (providers, agents, tools, access, otlp);
        problems.end()?;
        let (Some(providers), Some(agents), Some(tools), Some(access), Some(otlp)) = parts else {
            return Err(wrong("the settings are wrong")); // and the problems were told above
        };
        Ok(Settings {
            listen: server.listen,
            admin_listen: server.admin_listen.0,
            cors_allowed_origins: server.cors_allowed_origins.0.clone(),
            heartbeat: server.heartbeat.0,
            public_url,
            body_timeout: server.body_timeout.0,
            max_body: server.max_body.0,
            listener: ListenSettings {
                header_timeout: server.header_timeout.0,
                idle_timeout: server.idle_timeout.0,
                write_timeout: server.write_timeout.0,
                lost_timeout: server.lost_timeout.0,
                max_headers: server.max_headers.clamp(1, 1000),
                max_connections: server.max_connections.clamp(1, tokio::sync::Semaphore::MAX_PERMITS),
            },
            access,
            runs: run::Limits {
                deadline: runs.deadline.0,
                replay_window: runs.replay_window.0,
                max_output: runs.max_output.0,
                memory_limit: runs.memory_limit.0,
                max_runs: self.limits.max_runs,
                max_history_tokens: sessions.max_history_tokens,
                // Held, and once more while it is read: a quarter of the memory, half of what a caller may have.
                max_history_bytes: sessions.max_history_size.0.min(self.limits.memory.0 / 8),
                memory: self.limits.memory.0,
                queue_patience: sessions.queue_patience.0,
                on_cancel: match runs.on_cancel {
                    OnCancelWord::Keep => run::OnCancel::Keep,
                    OnCancelWord::Discard => run::OnCancel::Discard,
                },
            },
            detach_grace: runs.detach_grace.0,
            drain: runs.drain.0,
            drain_delay: server.drain_delay.0,
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
            log_requests: match log.requests {
                RequestsWord::Off => LogRequests::Off,
                RequestsWord::Errors => LogRequests::Errors,
                RequestsWord::All => LogRequests::All,
            },
            otlp,
            warnings: strange_variables(environment),
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
        Problems::take_each(self.providers.iter().map(|(name, tree)| {
            let at = |key: &str| format!("providers.{name}.{key}");
            let kind = tree
                .kind
                .clone()
                .ok_or_else(|| wrong(format!("{} is missing", at("kind"))))?;
            if !kinds.contains(kind.as_str()) {
                let known: Vec<&str> = kinds.iter().copied().collect();
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
            Ok(ProviderSettings {
                name: name.clone(),
                api_key: api_key(tree, environment, &at)?,
                api_version: tree.api_version.clone(),
                deployment: tree.deployment.clone(),
                max_tokens_field: tree.max_tokens_field,
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
                meters: Arc::default(),
            })
        }))
    }

    /// A model by its name, or a provider's default model by the provider's.
    pub(super) fn model(&self, name: &str, at: &str) -> Result<ModelRef, ConfigError> {
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
        Problems::take_each(self.agents.iter().map(|(name, tree)| {
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
            Ok(Agent {
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
            })
        }))
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
pub(super) fn api_key(
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

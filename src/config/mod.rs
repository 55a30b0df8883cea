//! Settings: the built-in file, a file, the environment, flags. The only place that reads the environment, and the only
//! one that knows defaults are in `config/default.toml`. Everything is checked here, at the start; nothing per request.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::SecretString;

use crate::{
    agent::Agent,
    http::{auth::Access, listen::ListenSettings, request_log::LogRequests},
    provider::ProviderSettings,
    run,
    store::StoreUrl,
    telemetry::{LogFormat, trace::OtlpSettings},
    tool::ToolSettings,
};

mod auth;
mod environment;
mod merge;
mod problems;
mod reload;
mod tools;
mod tree;
mod values;

use merge::{merge, path, strange_variables, variables};
pub use problems::ConfigError;
use problems::{Problems, wrong};
pub use reload::Reread;
use tree::Tree;
pub use values::listen_address;

const DEFAULT: &str = include_str!("../../config/default.toml");
const PREFIX: &str = "SLUICEGATE__";

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

/// The settings in force, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where those who run it look.
    pub admin_listen: Option<SocketAddr>,
    /// Origins of pages that may call from elsewhere.
    pub cors_allowed_origins: Vec<String>,
    /// After how much silence a heartbeat is sent.
    pub heartbeat: Duration,
    /// How long a body may take.
    pub body_timeout: Duration,
    /// What addresses in answers begin with; may be empty.
    pub public_url: String,
    /// How large it may be.
    pub max_body: usize,
    /// How connections are served.
    pub listener: ListenSettings,
    /// Who may call.
    pub access: Access,
    /// The limits of runs.
    pub runs: run::Limits,
    /// What `grace` means.
    pub detach_grace: Duration,
    /// How long runs may take to finish when the gateway stops.
    pub drain: Duration,
    /// How long the gateway serves on when it is told to stop, while it says that it is not ready.
    pub drain_delay: Duration,
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
    /// The requests that have a line in the log.
    pub log_requests: LogRequests,
    /// Where traces are sent.
    pub otlp: Option<OtlpSettings>,
    /// Who answers.
    pub providers: Vec<ProviderSettings>,
    /// What agents can do beside talking.
    pub tools: ToolSettings,
    /// Who can be asked.
    pub agents: Vec<Agent>,
    /// Who is asked when nobody is named.
    pub default_agent: String,
    /// Sentences for whoever starts it: what is not wrong, and not as it was meant.
    pub warnings: Vec<String>,
    tree: Tree,
}

impl Settings {
    /// The settings that flags, environment and files make together.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(flags: &Flags, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let file = flags.config.as_deref().map(read).transpose()?;
        Self::build(file.as_ref(), flags, &variables(environment))
    }

    /// The settings of a file's text alone, for tests and for those who embed the gateway.
    ///
    /// # Errors
    /// Everything that is wrong with them.
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
        let tree = merge(file, flags, environment);
        let settings = tree.and_then(|tree| tree.check(flags, environment));
        settings.map_err(|error| error.located(file, environment))
    }

    /// The model that answers at a provider where none is named.
    #[must_use]
    pub fn default_model(&self, provider: &str) -> Option<crate::agent::ModelRef> {
        self.tree.model(provider, "default_model").ok()
    }

    /// The settings in force as TOML, secrets masked.
    ///
    /// # Errors
    /// They cannot be written down.
    pub fn effective(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(&self.tree).map_err(|e| wrong(e.to_string()))
    }
}

fn read(path: &Path) -> Result<(String, String), ConfigError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("{name}: {e}")))?;
    Ok((name, text))
}

//! Settings: the built-in file, a file, the environment, flags. The only place that reads the environment, and the only
//! one that knows defaults are in `config/default.toml`. Everything is checked here, at the start; nothing per request.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use config::{Config, File, FileFormat, ValueKind};
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
mod reload;
mod tools;
mod tree;
mod values;

pub use reload::Reread;
use tree::Tree;

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
    tree: Tree,
}

impl Settings {
    /// The settings that flags, environment and files make together.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn load(flags: &Flags, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let file = flags.config.as_deref().map(read).transpose()?;
        Self::build(file.as_ref(), flags, &variables(environment))
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
        merge(file, flags, environment)?.check(flags, environment)
    }

    /// The settings in force as TOML, secrets masked.
    ///
    /// # Errors
    /// They cannot be written down.
    pub fn effective(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(&self.tree).map_err(|e| wrong(e.to_string()))
    }
}

/// The variables that say something.
fn variables(environment: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    environment.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// The settings as they are written down in all these places, later ones winning.
fn merge(
    file: Option<&(String, String)>,
    flags: &Flags,
    environment: &BTreeMap<String, String>,
) -> Result<Tree, ConfigError> {
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
        let path = path(name);
        let refused = |_| wrong(format!("{PREFIX}{name}: not the name of a setting"));
        builder = builder.set_override(path, value.clone()).map_err(refused)?;
    }
    if let Some(listen) = flags.listen {
        builder = builder
            .set_override("server.listen", listen.to_string())
            .map_err(|e| wrong(e.to_string()))?;
    }
    let merged = builder.build().map_err(|e| wrong(e.to_string()))?;
    let numbers = check_numbers(&merged.cache, "");
    let tree: Tree = serde_path_to_error::deserialize(merged.cache).map_err(|e| explain(&e))?;
    numbers?; // a misspelled name is the better thing to be told
    Ok(tree)
}

/// A number with a fraction where a whole one belongs would be rounded: half a run at a time to none, which is no limit.
fn check_numbers(value: &config::Value, path: &str) -> Result<(), ConfigError> {
    match &value.kind {
        ValueKind::Table(table) => table.iter().try_for_each(|(name, value)| match name.as_str() {
            "temperature" | "top_p" | "schema" | "parameters" => Ok(()), // here they have a meaning
            _ if path.is_empty() => check_numbers(value, name),
            _ => check_numbers(value, &format!("{path}.{name}")),
        }),
        ValueKind::Array(all) => {
            let mut all = all.iter().enumerate();
            all.try_for_each(|(at, value)| check_numbers(value, &format!("{path}[{at}]")))
        }
        ValueKind::Float(_) => Err(wrong(format!("{path}: expected a whole number"))),
        _ => Ok(()),
    }
}

/// The path of a setting that a variable names: `AUTH__KEYS__0__NAME` is `auth.keys[0].name`.
fn path(name: &str) -> String {
    let mut path = String::new();
    for part in name.split("__").map(str::to_ascii_lowercase) {
        match part.parse::<u8>() {
            Ok(index) if !path.is_empty() => path.push_str(&format!("[{index}]")),
            _ if path.is_empty() => path = part,
            _ => path.extend([".", &part]),
        }
    }
    path
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
    if let Some((_, rest)) = text.split_once("missing configuration field \"") {
        let whole = rest.split('"').next().unwrap_or(rest);
        let field = whole.strip_prefix(&path).unwrap_or(whole).trim_start_matches('.');
        return wrong(format!("{path}.{field} is missing"));
    }
    let what = match text.split_once("expected ") {
        None if text.contains("does not have variant") => "not a word that it can be".to_owned(),
        Some((_, expected)) => format!("expected {}", expected.split(" for key").next().unwrap_or(expected)),
        None => text.split(" for key").next().unwrap_or(&text).to_owned(),
    };
    wrong(format!("{path}: {what}"))
}

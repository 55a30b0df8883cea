//! The settings as they are written down in all places, put together: later ones win.

use std::collections::BTreeMap;

use config::{Config, File, FileFormat, Value, ValueKind};

use super::{
    ConfigError, DEFAULT, Flags, PREFIX,
    problems::{MAX_PROBLEMS, Problems, check_syntax, wrong},
    tree::Tree,
};

/// The settings whose `""` says that there is none, in the environment as in a file. Elsewhere an
/// empty variable is one that is not set.
const EMPTY_MEANS_NONE: [&str; 7] = [
    "server.admin_listen",
    "server.cors_allowed_origins",
    "server.trusted_hosts",
    "sessions.ttl",
    "log.otlp_endpoint",
    "tools.guard.allow",
    "agent_defaults.tools",
];

/// The variables of one underscore that there are.
const VARIABLES: [&str; 2] = ["SLUICEGATE_CONFIG", "SLUICEGATE_MODEL"];

/// The variables that say something.
pub(super) fn variables(environment: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let says = |name: &str| {
        let key = name.strip_prefix(PREFIX).map(path);
        key.is_some_and(|key| EMPTY_MEANS_NONE.contains(&key.as_str()))
    };
    let all = environment.into_iter();
    all.filter(|(name, value)| !value.is_empty() || says(name)).collect()
}

/// Puts together what is written down in all places.
///
/// # Errors
/// Everything that is no setting, or not of its form.
pub(super) fn merge(
    file: Option<&(String, String)>,
    flags: &Flags,
    environment: &BTreeMap<String, String>,
) -> Result<Tree, ConfigError> {
    let other = |e: config::ConfigError| wrong(e.to_string());
    let default = || Config::builder().add_source(File::from_str(DEFAULT, FileFormat::Toml));
    let mut builder = default();
    if let Some((name, text)) = file {
        check_syntax(name, text)?;
        builder = builder.add_source(File::from_str(text, FileFormat::Toml));
    }
    let ours = environment
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value)));
    for (name, value) in ours {
        let refused = |_| wrong(format!("{PREFIX}{name}: not the name of a setting"));
        builder = builder.set_override(path(name), value.clone()).map_err(refused)?;
    }
    if let Some(listen) = flags.listen {
        builder = builder
            .set_override("server.listen", listen.to_string())
            .map_err(other)?;
    }
    let merged = builder.build().map_err(other)?.cache;
    let default = default().build().map_err(other)?.cache;
    let mut problems = Problems::default();
    let tree = deserialize(merged.clone(), &default, &mut problems);
    if problems.is_empty() {
        check_numbers(&merged, "", &mut problems); // a misspelled name is the better thing to be told
    }
    match (tree, problems.is_empty()) {
        (Some(tree), true) => Ok(tree),
        (Some(tree), false) => {
            // What else is wrong, with the default in the place of each.
            if let Err(further) = tree.check(flags, environment) {
                problems.add_all(further);
            }
            Err(problems.end().err().unwrap_or_else(|| wrong("the settings are wrong")))
        }
        (None, _) => Err(problems.end().err().unwrap_or_else(|| wrong("the settings are wrong"))),
    }
}

/// The tree of settings. Each value that is wrong is told, and the default put in its place, to find
/// the next one; there is no tree if one that is wrong has none:
/// what belongs to it would be called wrong too.
fn deserialize(mut value: Value, default: &Value, problems: &mut Problems) -> Option<Tree> {
    let mut is_whole = true;
    for _ in 0..MAX_PROBLEMS {
        let error = match serde_path_to_error::deserialize(value.clone()) {
            Ok(tree) => return Some(tree).filter(|_| is_whole),
            Err(error) => error,
        };
        let (key, problem) = explain(&error, default);
        let is_unknown = problem.starts_with("unknown setting");
        problems.add(problem);
        let spare = find(default, &key).cloned();
        is_whole &= is_unknown || spare.is_some();
        if !put(&mut value, &key, spare) {
            return None;
        }
    }
    None
}

/// The names that a path is made of; `None` if it leads into a list.
fn segments(key: &str) -> Option<Vec<&str>> {
    (!key.contains('[')).then(|| key.split('.').collect())
}

/// The value of a key.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let mut found = value;
    for name in segments(key)? {
        match &found.kind {
            ValueKind::Table(table) => found = table.get(name)?,
            _ => return None,
        }
    }
    Some(found)
}

/// Puts another value in the place of a key's, or none; says whether the key had one.
fn put(value: &mut Value, key: &str, spare: Option<Value>) -> bool {
    let Some((last, before)) = segments(key).and_then(|all| Some((*all.last()?, all[..all.len() - 1].to_vec()))) else {
        return false;
    };
    let mut found = value;
    for name in before {
        match &mut found.kind {
            ValueKind::Table(table) => match table.get_mut(name) {
                Some(inner) => found = inner,
                None => return false,
            },
            _ => return false,
        }
    }
    match (&mut found.kind, spare) {
        (ValueKind::Table(table), Some(spare)) => table.insert(last.to_owned(), spare).is_some(),
        (ValueKind::Table(table), None) => {
            let before = table.len();
            table.retain(|name, _| name != last);
            table.len() < before
        }
        _ => false,
    }
}

/// The keys of all settings that have a default.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match &value.kind {
        ValueKind::Table(table) => {
            for (name, value) in table {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                leaves(value, &path, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

/// A number with a fraction where a whole one belongs would be rounded: half a run at a time to none, which is no limit.
fn check_numbers(value: &Value, path: &str, problems: &mut Problems) {
    match &value.kind {
        ValueKind::Table(table) => {
            for (name, value) in table {
                match name.as_str() {
                    "temperature" | "top_p" | "schema" | "parameters" => {} // here they have a meaning
                    _ if path.is_empty() => check_numbers(value, name, problems),
                    _ => check_numbers(value, &format!("{path}.{name}"), problems),
                }
            }
        }
        ValueKind::Array(all) => {
            for (at, value) in all.iter().enumerate() {
                check_numbers(value, &format!("{path}[{at}]"), problems);
            }
        }
        ValueKind::Float(_) => problems.add(format!("{path}: expected a whole number")),
        _ => {}
    }
}

/// The path of a setting that a variable names: `AUTH__KEYS__0__NAME` is `auth.keys[0].name`.
pub(super) fn path(name: &str) -> String {
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

/// A warning for each variable that looks like one of ours and is none, with the nearest that is.
pub(super) fn strange_variables(environment: &BTreeMap<String, String>) -> Vec<String> {
    let default = Config::builder().add_source(File::from_str(DEFAULT, FileFormat::Toml));
    let mut keys = Vec::new();
    if let Ok(default) = default.build() {
        leaves(&default.cache, "", &mut keys);
    }
    keys.sort();
    // Kubernetes sets these for a service of this name.
    let is_service = |rest: &str| rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_");
    let strange = environment.keys().filter_map(|name| {
        let rest = name.strip_prefix("SLUICEGATE_")?;
        let known = rest.starts_with('_') || VARIABLES.contains(&name.as_str());
        (!known && !is_service(rest)).then_some((name, rest))
    });
    let warn = |(name, rest): (&String, &str)| {
        let rest = rest.to_ascii_lowercase();
        let near = |key: &str| {
            let last = key.rsplit('.').next().unwrap_or(key);
            let whole = key.replace('.', "_");
            strsim::jaro_winkler(&rest, last).max(strsim::jaro_winkler(&rest, &whole))
        };
        let nearest = keys.iter().rev().max_by(|a, b| near(a).total_cmp(&near(b)));
        let meant = nearest.map(|key| format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase()));
        let hint = meant
            .map(|meant| format!("; did you mean {meant}?"))
            .unwrap_or_default();
        format!("the variable {name} is not one of this gateway's, and does nothing{hint}")
    };
    strange.map(warn).collect()
}

/// An error of deserialising: its key, and a sentence; for an unknown key with the nearest that is known. Values are not
/// repeated: they may be secrets.
fn explain(error: &serde_path_to_error::Error<config::ConfigError>, default: &Value) -> (String, String) {
    let path = error.path().to_string();
    let text = error.inner().to_string();
    if let Some(rest) = text.split("unknown field `").nth(1)
        && let Some((unknown, rest)) = rest.split_once('`')
    {
        let section = path.strip_suffix(unknown).unwrap_or(&path).trim_end_matches('.');
        let place = if section.is_empty() || section == "." {
            String::new()
        } else {
            format!("{section}.")
        };
        let mut keys = Vec::new();
        leaves(default, "", &mut keys);
        keys.sort();
        // A key of another section, by its own name, is meant rather than one that is only like it.
        let elsewhere = keys.into_iter().find(|key| {
            let open = ["providers.", "agents.", "tools.", "mcp.", "provider_kinds."];
            key.rsplit('.').next() == Some(unknown) && !open.iter().any(|open| place.starts_with(open))
        });
        let known = rest.split('`').skip(1).step_by(2);
        let nearest =
            known.max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)));
        let meant = elsewhere.or_else(|| nearest.map(|nearest| format!("{place}{nearest}")));
        let hint = meant
            .map(|meant| format!("; did you mean {meant}?"))
            .unwrap_or_default();
        let key = format!("{place}{unknown}");
        let problem = format!("unknown setting {key}{hint}");
        return (key, problem);
    }
    if let Some((_, rest)) = text.split_once("missing configuration field \"") {
        let whole = rest.split('"').next().unwrap_or(rest);
        let field = whole.strip_prefix(&path).unwrap_or(whole).trim_start_matches('.');
        let key = format!("{path}.{field}");
        let problem = format!("{key} is missing");
        return (key, problem);
    }
    let what = match text.split_once("expected ") {
        Some((_, expected)) => {
            let expected = expected.split(" for key").next().unwrap_or(expected);
            format!("expected {}", expected.replace('`', "\""))
        }
        None => text.split(" for key").next().unwrap_or(&text).to_owned(),
    };
    let problem = format!("{path}: {what}");
    (path, problem)
}

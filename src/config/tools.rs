//! The settings of tools: those that are HTTP requests, where they may connect to, and MCP servers.

use std::{collections::BTreeMap, path::PathBuf};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{
    ConfigError, Problems,
    values::{List, Secret, Size, Time, expand, filled, veiled_args, veiled_url},
    wrong,
};
use crate::tool::{HttpToolSettings, McpSettings, McpTransport, ToolSettings};

/// What a child sees of the gateway's own environment: what programs need to run at all. The keys of the providers are in
/// there too, and those are not for it.
const INHERITED: [&str; 7] = ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"];

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ToolsTree {
    guard: GuardTree,
    http: BTreeMap<String, HttpToolTree>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct GuardTree {
    allow: List,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HttpToolTree {
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    /// A JSON Schema: a table, or the text of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "veiled_url")]
    url: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_result: Option<Size>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct McpTree {
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<PathBuf>,
    #[serde(skip_serializing_if = "List::is_empty", serialize_with = "veiled_args")]
    args: List,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, Secret>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "veiled_url")]
    url: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_timeout: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh: Option<Time>,
}

/// What holds for every HTTP tool that does not say otherwise.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpToolDefaults {
    method: String,
    max_result: Size,
}

/// What holds for every MCP server that does not say otherwise.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct McpDefaults {
    start_timeout: Time,
    refresh: Time,
}

/// The tools' settings, checked for their form.
pub(super) fn tools(
    tree: &ToolsTree,
    http_defaults: &HttpToolDefaults,
    mcp: &BTreeMap<String, McpTree>,
    mcp_defaults: &McpDefaults,
    environment: &BTreeMap<String, String>,
) -> Result<ToolSettings, ConfigError> {
    let networks = tree.guard.allow.0.iter().map(|network| {
        let address = || network.parse::<std::net::IpAddr>().map(ipnet::IpNet::from);
        network.parse::<ipnet::IpNet>().or_else(|_| address()).map_err(|_| {
            wrong(format!(
                "tools.guard.allow: {network:?} is no network, such as 10.1.0.0/16"
            ))
        })
    });
    let http = tree
        .http
        .iter()
        .map(|(name, tool)| http_tool(name, tool, http_defaults, environment));
    let mcp = mcp
        .iter()
        .map(|(name, server)| mcp_server(name, server, mcp_defaults, environment));
    let mut problems = Problems::default();
    let networks = problems.take(Problems::take_each(networks));
    let http = problems.take(Problems::take_each(http));
    let mcp = problems.take(Problems::take_each(mcp));
    problems.end()?;
    Ok(ToolSettings {
        guard_allow: networks.unwrap_or_default(),
        http: http.unwrap_or_default(),
        mcp: mcp.unwrap_or_default(),
    })
}

fn http_tool(
    name: &str,
    tree: &HttpToolTree,
    defaults: &HttpToolDefaults,
    environment: &BTreeMap<String, String>,
) -> Result<HttpToolSettings, ConfigError> {
    let at = |key: &str| format!("tools.http.{name}.{key}");
    plain("tools.http", name)?;
    let missing = |key: &str| wrong(format!("{} is missing", at(key)));
    if tree.description.trim().is_empty() {
        return Err(missing("description")); // without it no model knows what the tool is for
    }
    Ok(HttpToolSettings {
        name: name.to_owned(),
        description: tree.description.clone(),
        parameters: match &tree.parameters {
            Some(told) => json(told, &at("parameters"))?,
            None => serde_json::json!({"type": "object", "properties": {}, "additionalProperties": false}),
        },
        method: tree.method.clone().unwrap_or_else(|| defaults.method.clone()),
        url: tree.url.clone().ok_or_else(|| missing("url"))?,
        headers: secrets(&tree.headers, &at("headers"), environment)?,
        body: tree.body.clone(),
        timeout: tree.timeout.map(|time| time.positive(&at("timeout"))).transpose()?,
        max_result: tree.max_result.unwrap_or(defaults.max_result).0,
    })
}

fn mcp_server(
    name: &str,
    tree: &McpTree,
    defaults: &McpDefaults,
    environment: &BTreeMap<String, String>,
) -> Result<McpSettings, ConfigError> {
    let at = |key: &str| format!("mcp.{name}.{key}");
    plain("mcp", name)?;
    let transport = match (&tree.command, &tree.url) {
        (Some(command), None) if tree.headers.is_empty() => McpTransport::Child {
            command: command.clone(),
            args: {
                let args = tree.args.0.iter();
                let args = args.map(|arg| filled(arg, environment, &at("args")));
                args.collect::<Result<_, _>>()?
            },
            env: {
                let told = secrets(&tree.env, &at("env"), environment)?;
                let needed = INHERITED
                    .iter()
                    .filter_map(|name| Some(((*name).to_owned(), environment.get(*name)?.clone().into())));
                needed.chain(told).collect()
            },
        },
        (None, Some(url)) if tree.args.is_empty() && tree.env.is_empty() => McpTransport::Http {
            url: url::Url::parse(&filled(url, environment, &at("url"))?)
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
                .ok_or_else(|| wrong(format!("{}: must be http(s)://host[:port][/path]", at("url"))))?,
            headers: secrets(&tree.headers, &at("headers"), environment)?,
        },
        _ => {
            return Err(wrong(format!(
                "mcp.{name}: must have a command (with args and env) or a url (with headers)"
            )));
        }
    };
    Ok(McpSettings {
        name: name.to_owned(),
        transport,
        start_timeout: tree
            .start_timeout
            .unwrap_or(defaults.start_timeout)
            .positive(&at("start_timeout"))?,
        refresh: tree.refresh.unwrap_or(defaults.refresh).positive(&at("refresh"))?,
    })
}

/// A name that can stand in a pattern and before a model.
fn plain(section: &str, name: &str) -> Result<(), ConfigError> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=64).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(wrong(format!(
        "{section}.{name}: a name must have 1 to 64 of the characters A-Z a-z 0-9 _ -"
    )))
}

/// A value of JSON that is written as a table, or as text.
pub(super) fn json(told: &serde_json::Value, at: &str) -> Result<serde_json::Value, ConfigError> {
    match told {
        serde_json::Value::String(text) => {
            serde_json::from_str(text).map_err(|e| wrong(format!("{at}: not JSON: {e}")))
        }
        told => Ok(told.clone()),
    }
}

/// Secret texts by name, the variables in them put in.
pub(super) fn secrets(
    told: &BTreeMap<String, Secret>,
    at: &str,
    environment: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, SecretString>, ConfigError> {
    told.iter()
        .map(|(name, value)| Ok((name.clone(), expand(value, environment, &format!("{at}.{name}"))?)))
        .collect()
}

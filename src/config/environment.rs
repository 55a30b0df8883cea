//! What the usual variables of others say: providers' keys and addresses, clouds' credentials.

use std::collections::BTreeMap;

use secrecy::SecretString;

use super::{ConfigError, tree::ProviderTree, values::Secret, wrong};
use crate::{provider, telemetry::trace::OtlpSettings};

/// The providers that the environment can configure, in the order of preference: the kind, its keys' variables, its
/// address's. Any of them configures it.
pub(super) const FROM_ENVIRONMENT: &[(&str, &[&str], &[&str])] = &[
    ("openai", &["OPENAI_API_KEY"], &["OPENAI_BASE_URL"]),
    ("anthropic", &["ANTHROPIC_API_KEY"], &["ANTHROPIC_BASE_URL"]),
    ("gemini", &["GEMINI_API_KEY", "GOOGLE_API_KEY"], &["GEMINI_BASE_URL"]),
    ("groq", &["GROQ_API_KEY"], &["GROQ_BASE_URL"]),
    ("azure", &["AZURE_OPENAI_API_KEY"], &["AZURE_OPENAI_ENDPOINT"]),
    ("ollama", &[], &["OLLAMA_BASE_URL", "OLLAMA_HOST"]),
];

/// What the usual variables say of a kind of provider; `None` if nothing.
pub(super) fn usual_provider(
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
            let endpoint = endpoint.strip_suffix("/openai").unwrap_or(&endpoint);
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
pub(super) fn cloud(environment: &BTreeMap<String, String>) -> Vec<(String, SecretString)> {
    let theirs = |name: &str| {
        ["AWS_", "AZURE_", "GOOGLE_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    let ours = |name: &str| name.starts_with("AZURE_OPENAI_") || name == "GOOGLE_API_KEY";
    let told = environment.iter().filter(|(name, _)| theirs(name) && !ours(name));
    told.map(|(name, value)| (name.clone(), value.clone().into())).collect()
}

/// Where traces are sent, if anywhere: the setting, or else the usual variable; and as whom.
pub(super) fn otlp(setting: &str, environment: &BTreeMap<String, String>) -> Result<Option<OtlpSettings>, ConfigError> {
    let usual = environment
        .get("OTEL_EXPORTER_OTLP_ENDPOINT")
        .map_or("", String::as_str);
    let endpoint = if setting.is_empty() { usual } else { setting };
    if endpoint.is_empty() {
        return Ok(None);
    }
    let fine = url::Url::parse(endpoint).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none() && url.password().is_none()
    });
    if !fine {
        return Err(wrong(
            "log.otlp_endpoint: must be http(s)://HOST:PORT; the path /v1/traces is added to it",
        ));
    }
    let service = environment.get("OTEL_SERVICE_NAME").cloned();
    Ok(Some(OtlpSettings {
        endpoint: endpoint.to_owned(),
        service: service.unwrap_or_else(|| "sluicegate".to_owned()),
    }))
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

//! Base addresses as the vendors' own libraries take them.
//!
//! Most libraries add the version of the API to an address that has none; a few want it written.
//! Here both work: a version is added only where the path has none.

use url::Url;

/// The path below which a kind's API is, with its version.
fn versioned(kind: &str) -> Option<&'static str> {
    match kind {
        "anthropic" => Some("/v1"),
        "gemini" => Some("/v1beta"),
        "groq" => Some("/openai/v1"),
        _ => None,
    }
}

/// The base address to which a dialect's paths are added, without a slash at the end.
///
/// OpenAI's library takes addresses as they are, and servers of its dialect are found at any path.
/// So the version is added to OpenAI's own host only.
pub(super) fn complete(kind: &str, address: &Url) -> String {
    let bare = address.as_str().trim_end_matches('/').to_owned();
    let path = address.path().trim_end_matches('/');
    let has_version = path.split('/').any(is_version);
    match kind {
        "openai" | "openai-responses" if path.is_empty() && address.host_str() == Some("api.openai.com") => {
            format!("{bare}/v1")
        }
        // Ollama's own API is at the root, and the path of another one of its APIs is often given.
        "ollama" => {
            let root = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/api"));
            root.map(|root| root.trim_end_matches('/').to_owned()).unwrap_or(bare)
        }
        kind => match versioned(kind) {
            Some(below) if !has_version => {
                let below = match below.strip_prefix("/openai") {
                    Some(version) if path.ends_with("/openai") => version,
                    _ => below,
                };
                format!("{bare}{below}")
            }
            _ => bare,
        },
    }
}

/// Azure's endpoint: the resource's bare address where only `/openai` follows it.
pub(super) fn azure_endpoint(address: &str) -> &str {
    let address = address.trim_end_matches('/');
    let resource = address.strip_suffix("/openai").unwrap_or(address);
    let is_bare = Url::parse(resource).is_ok_and(|url| url.path() == "/");
    if is_bare { resource } else { address }
}

/// Whether a segment of a path is the version of an API: `v1`, `v1beta`, `v4`.
fn is_version(segment: &str) -> bool {
    let Some(rest) = segment.strip_prefix('v') else {
        return false;
    };
    let letters = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    letters.len() < rest.len() && letters.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Whether an address is this machine's own.
pub(crate) fn is_loopback(address: &Url) -> bool {
    match address.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback() || ip.is_unspecified(),
        Some(url::Host::Ipv6(ip)) => {
            let mapped = ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback());
            ip.is_loopback() || ip.is_unspecified() || mapped
        }
        Some(url::Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(kind: &str, address: &str) -> String {
        complete(kind, &Url::parse(address).unwrap())
    }

    #[test]
    fn a_version_is_added_where_there_is_none() {
        for (kind, address, expected) in [
            ("anthropic", "https://api.anthropic.com", "https://api.anthropic.com/v1"),
            (
                "anthropic",
                "https://api.anthropic.com/",
                "https://api.anthropic.com/v1",
            ),
            (
                "anthropic",
                "https://api.anthropic.com/v1/",
                "https://api.anthropic.com/v1",
            ),
            (
                "anthropic",
                "https://api.deepseek.com/anthropic",
                "https://api.deepseek.com/anthropic/v1",
            ),
            ("anthropic", "https://h/v1/projects/p", "https://h/v1/projects/p"),
            ("groq", "https://api.groq.com", "https://api.groq.com/openai/v1"),
            ("groq", "https://api.groq.com/openai/", "https://api.groq.com/openai/v1"),
            (
                "groq",
                "https://api.groq.com/openai/v1/",
                "https://api.groq.com/openai/v1",
            ),
            ("groq", "http://proxy:8080/groq", "http://proxy:8080/groq/openai/v1"),
            ("gemini", "https://h", "https://h/v1beta"),
            ("gemini", "https://h/v1beta/", "https://h/v1beta"),
            ("gemini", "https://h/v1", "https://h/v1"),
            (
                "gemini",
                "https://h/v1/projects/p/publishers/google",
                "https://h/v1/projects/p/publishers/google",
            ),
            ("openai", "https://api.openai.com", "https://api.openai.com/v1"),
            ("openai", "https://api.openai.com/v1/", "https://api.openai.com/v1"),
            (
                "openai-responses",
                "https://api.openai.com/",
                "https://api.openai.com/v1",
            ),
            ("openai", "https://api.deepseek.com/", "https://api.deepseek.com"),
            ("openai", "https://h/api/paas/v4", "https://h/api/paas/v4"),
            ("openai", "https://h/inference/", "https://h/inference"),
            ("ollama", "http://127.0.0.1:11434/", "http://127.0.0.1:11434"),
            ("ollama", "http://127.0.0.1:11434/api/", "http://127.0.0.1:11434"),
            ("ollama", "http://127.0.0.1:11434/v1", "http://127.0.0.1:11434"),
            ("ollama", "https://h/ollama", "https://h/ollama"),
            ("azure", "https://r.openai.azure.com/", "https://r.openai.azure.com"),
        ] {
            assert_eq!(completed(kind, address), expected, "{kind} {address}");
        }
        for (given, expected) in [
            ("https://r.openai.azure.com/", "https://r.openai.azure.com"),
            ("https://r.openai.azure.com/openai/", "https://r.openai.azure.com"),
            (
                "https://r.openai.azure.com/openai/v1/",
                "https://r.openai.azure.com/openai/v1",
            ),
            ("https://gateway/a/openai", "https://gateway/a/openai"),
        ] {
            assert_eq!(azure_endpoint(given), expected);
        }
    }

    #[test]
    fn what_is_this_machine_s_own() {
        for own in [
            "http://localhost:1",
            "http://a.localhost",
            "http://127.9.9.9/x",
            "http://[::1]:2",
            "http://0.0.0.0",
        ] {
            assert!(is_loopback(&Url::parse(own).unwrap()), "{own}");
        }
        for other in [
            "http://localhost.example",
            "http://10.0.0.1",
            "http://[::2]",
            "http://127.0.0.1.example",
        ] {
            assert!(!is_loopback(&Url::parse(other).unwrap()), "{other}");
        }
    }
}

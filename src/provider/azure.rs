//! Azure OpenAI: the openai dialect at another address, with its quirks here.
//!
//! Source: learn.microsoft.com, "API version lifecycle", "Content filtering" and the reference of Azure OpenAI
//! (2026-11). What its streams have beside OpenAI's (events about the prompt's filter without choices, filter results in
//! a choice, choices without a delta after the finish) is not read. A filtered prompt is status 400, a refused request; a
//! filtered answer ends with `content_filter`.
//!
//! There are two forms. In v1 the model is the deployment's name, and there need be no version. Before it the
//! deployment stands in the address, and the version is a date.

use std::sync::Arc;

use reqwest::header::HeaderMap;
use serde_json::{Map, Value};

use super::{
    Provider, ProviderError, ProviderSettings, Unsupported,
    address::azure_endpoint,
    deviations::Deviations,
    dialect::{Call, Decoder, Dialect},
    error::Kind,
    openai::{OpenAi, server::OPENAI},
    upstream::{Credentials, HttpProvider},
};
use crate::chat::{ChatRequest, Chunk};

/// The first version that knows `stream_options` and `max_completion_tokens`.
const KNOWS_ITS_OPTIONS: &str = "2024-09-01";

/// The dialect.
#[derive(Clone, Debug)]
pub struct Azure {
    form: Form,
    wire: OpenAi,
}

impl Default for Azure {
    fn default() -> Self {
        Self {
            form: Form::default(),
            wire: OpenAi::at(OPENAI),
        }
    }
}

/// Where the model's name stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// In the body only; this is below the base address.
    V1 { path: String },
    /// In the address: this deployment, or else the one with the model's name.
    Deployment { name: Option<String>, version: String },
}

impl Default for Form {
    fn default() -> Self {
        Form::V1 {
            path: "/chat/completions".into(),
        }
    }
}

/// A provider that speaks it.
pub(super) fn provider(mut settings: ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError> {
    settings.base_url = azure_endpoint(&settings.base_url).to_owned();
    let (version, deployment) = (settings.api_version.take(), settings.deployment.take());
    let form =
        form(&settings.base_url, version, deployment).map_err(|what| ProviderError::config(&settings.name, what))?;
    let wire = OpenAi::of(&settings);
    Ok(Arc::new(HttpProvider::new(
        Azure { form, wire },
        Credentials::Header("api-key"),
        settings,
    )?))
}

/// The form that the settings choose: a deployment with a version, or a dated version at the resource's bare endpoint,
/// is the older one. At a bare endpoint v1 is below `/openai/v1`; any other address is taken as it is.
fn form(base_url: &str, version: Option<String>, deployment: Option<String>) -> Result<Form, &'static str> {
    let is_word = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_')
    };
    if base_url.is_empty() {
        return Err("base_url is missing: https://RESOURCE.openai.azure.com/openai/v1");
    }
    if version.as_deref().is_some_and(|version| !is_word(version)) {
        return Err("api_version is none: a date such as 2024-10-21, or a word such as preview");
    }
    let bare = url::Url::parse(base_url).is_ok_and(|url| url.path() == "/");
    let dated = version
        .as_deref()
        .is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()));
    match (deployment, version) {
        (Some(_), None) => Err("deployment wants an api_version; in v1 the model is the deployment's name"),
        (Some(_), _) if base_url.trim_end_matches('/').ends_with("/openai/v1") => {
            Err("base_url must end before /openai/v1 where there is a deployment")
        }
        (Some(name), _) if segment(&name).is_none() => Err("deployment is no name"),
        (Some(name), Some(version)) => Ok(Form::Deployment {
            name: Some(name),
            version,
        }),
        (None, Some(version)) if bare && dated => Ok(Form::Deployment { name: None, version }),
        (None, version) => {
            let v1 = if bare { "/openai/v1" } else { "" };
            let query = version
                .map(|version| format!("?api-version={version}"))
                .unwrap_or_default();
            Ok(Form::V1 {
                path: format!("{v1}/chat/completions{query}"),
            })
        }
    }
}

/// A name as one segment of a path, which it must not leave.
fn segment(name: &str) -> Option<String> {
    let dots = name.bytes().all(|b| b == b'.');
    let encoded: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
    (!dots).then(|| encoded.replace('+', "%20"))
}

impl Dialect for Azure {
    fn marks_its_end(&self) -> bool {
        true
    }

    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported> {
        self.wire.check(request)
    }

    fn encode(&self, request: &ChatRequest) -> Result<Call, ProviderError> {
        let Call { body, .. } = self.wire.encode(request)?;
        match &self.form {
            Form::V1 { path } => Ok(Call {
                path: path.clone(),
                body,
            }),
            Form::Deployment { name, version } => {
                let name = segment(name.as_deref().unwrap_or(&request.model));
                let name = name.ok_or_else(|| ProviderError::new(Kind::NotFound, "no deployment has such a name"))?;
                Ok(Call {
                    path: format!("/openai/deployments/{name}/chat/completions?api-version={version}"),
                    body: if version.as_str() < KNOWS_ITS_OPTIONS {
                        older(&body)?
                    } else {
                        body
                    },
                })
            }
        }
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        self.wire.decoder()
    }

    fn whole(&self, body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError> {
        self.wire.whole(body, odd)
    }

    fn refusal(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
        self.wire.refusal(status, headers, body)
    }
}

/// A body without the words that older versions refuse. Without `stream_options` there is no usage.
fn older(body: &[u8]) -> Result<Vec<u8>, ProviderError> {
    let wrong = |e: serde_json::Error| ProviderError::new(Kind::Config, e.to_string());
    let mut body: Map<String, Value> = serde_json::from_slice(body).map_err(wrong)?;
    body.shift_remove("stream_options");
    if let Some(limit) = body.shift_remove("max_completion_tokens") {
        body.insert("max_tokens".into(), limit);
    }
    serde_json::to_vec(&body).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        chat::{Again, FinishKind, Message, ResponseFormat, Settings, ToolChoice},
        provider::{decoding::Decoding, golden::golden},
    };

    const ENDPOINT: &str = "https://r.openai.azure.com";

    #[test]
    fn every_scenario_is_written_to_the_letter() {
        insta::assert_json_snapshot!(golden(&Azure::default(), &[]));
    }

    /// Where a question to `model-x` goes, and its body.
    fn asked(
        base_url: &str,
        version: Option<&str>,
        deployment: Option<&str>,
        model: &str,
    ) -> Result<(String, Value), String> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let form = form(base_url, owned(version), owned(deployment))?;
        let request = ChatRequest {
            model: model.into(),
            instructions: None,
            messages: vec![Message::user("Hi", vec![])],
            tools: vec![],
            tool_choice: ToolChoice::Auto,
            settings: Settings {
                max_output_tokens: Some(64),
                ..Settings::default()
            },
            response_format: ResponseFormat::Text,
            trace: None,
            again: Again::default(),
        };
        let call = Azure {
            form,
            ..Azure::default()
        }
        .encode(&request)
        .map_err(|e| e.detail)?;
        Ok((
            format!("{base_url}{}", call.path),
            serde_json::from_slice(&call.body).unwrap(),
        ))
    }

    #[test]
    fn the_settings_choose_the_form() {
        let v1 = "https://r.openai.azure.com/openai/v1/chat/completions";
        let dated = "https://r.openai.azure.com/openai/deployments/prod/chat/completions?api-version=2024-10-21";
        let foundry = "https://r.services.ai.azure.com/models";
        for (base_url, version, deployment, model, expected) in [
            (
                "https://r.openai.azure.com/openai/v1",
                None,
                None,
                "prod",
                v1.to_owned(),
            ),
            (ENDPOINT, None, None, "prod", v1.to_owned()),
            (
                ENDPOINT,
                Some("preview"),
                None,
                "prod",
                format!("{v1}?api-version=preview"),
            ),
            (ENDPOINT, Some("2024-10-21"), Some("prod"), "gpt-x", dated.to_owned()),
            (ENDPOINT, Some("2024-10-21"), None, "prod", dated.to_owned()),
            (
                foundry,
                Some("2024-05-01-preview"),
                None,
                "grok",
                format!("{foundry}/chat/completions?api-version=2024-05-01-preview"),
            ),
            (
                ENDPOINT,
                Some("2024-10-21"),
                None,
                "../x?y z",
                dated.replace("prod", "..%2Fx%3Fy%20z"),
            ),
        ] {
            let (address, body) = asked(base_url, version, deployment, model).unwrap();
            assert_eq!(address, expected);
            assert_eq!(body["model"], model);
            assert_eq!(
                (&body["max_completion_tokens"], &body["max_tokens"]),
                (&64.into(), &Value::Null)
            );
            assert_eq!(body["stream_options"]["include_usage"], true);
        }
        assert!(asked(ENDPOINT, Some("2024-10-21"), None, "..").is_err());
    }

    #[test]
    fn settings_that_choose_none_are_refused() {
        for (base_url, version, deployment, about) in [
            ("", None, None, "base_url"),
            (ENDPOINT, None, Some("prod"), "api_version"),
            (
                "https://r.openai.azure.com/openai/v1/",
                Some("2024-10-21"),
                Some("prod"),
                "base_url",
            ),
            (ENDPOINT, Some("2024-10-21&x=1"), Some("prod"), "api_version"),
            (ENDPOINT, Some("2024-10-21"), Some(".."), "deployment"),
        ] {
            let refused = asked(base_url, version, deployment, "m").unwrap_err();
            assert!(refused.contains(about), "{refused}");
        }
    }

    #[test]
    fn an_older_version_is_spared_what_it_does_not_know() {
        let (_, body) = asked(ENDPOINT, Some("2024-06-01"), Some("prod"), "m").unwrap();
        assert_eq!(body["max_tokens"], 64);
        assert!(body.get("stream_options").is_none() && body.get("max_completion_tokens").is_none());
    }

    fn decode(events: &[&str]) -> Result<Vec<Chunk>, ProviderError> {
        let mut out = Vec::new();
        let mut decoding = Decoding::new(&Azure::default(), 1 << 20);
        for event in events {
            decoding.push(format!("data: {event}\n\n").as_bytes(), &mut out)?;
        }
        decoding.end(None, &mut out)?;
        Ok(out)
    }

    const PROMPT: &str = r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}"#;
    const HI: &str = r#"{"choices":[{"content_filter_results":{"hate":{"filtered":false}},"delta":{"content":"Hi"},"finish_reason":null,"index":0}],"usage":null}"#;
    const LATE: &str = r#"{"choices":[{"content_filter_offsets":{"check_offset":1,"start_offset":1,"end_offset":2},"content_filter_results":{"hate":{"filtered":false}},"finish_reason":null,"index":0}],"created":0,"id":"","model":"","object":""}"#;

    #[test]
    fn filters_that_report_late_change_nothing() {
        let stop = r#"{"choices":[{"delta":{},"finish_reason":"stop","index":0}]}"#;
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":1}}"#;
        let chunks = decode(&[PROMPT, LATE, HI, LATE, stop, LATE, usage, LATE]).unwrap();
        assert_eq!(chunks[0], Chunk::Text("Hi".into()));
        let [_, Chunk::Finish { reason, usage }] = chunks.as_slice() else {
            panic!("{chunks:?}")
        };
        assert_eq!((reason.kind, usage.input_tokens), (FinishKind::Stop, Some(4)));
        assert_eq!(decode(&[PROMPT, HI, LATE]).unwrap_err().kind, Kind::Truncated);
    }

    #[test]
    fn an_answer_that_a_filter_stopped_says_so() {
        for end in [
            r#"{"choices":[{"delta":{},"finish_reason":"content_filter","index":0}]}"#,
            r#"{"choices":[{"content_filter_offsets":{"check_offset":1},"content_filter_results":{"violence":{"filtered":true}},"finish_reason":"content_filter","index":0}]}"#,
        ] {
            let chunks = decode(&[PROMPT, HI, end]).unwrap();
            assert!(
                matches!(chunks.last(), Some(Chunk::Finish { reason, .. }) if reason.kind == FinishKind::ContentFilter)
            );
        }
    }

    #[test]
    fn models_of_others_think_aloud() {
        let thinks = r#"{"choices":[{"delta":{"content":null,"reasoning_content":"Hm"},"index":0}]}"#;
        let stop = r#"{"choices":[{"delta":{"content":""},"finish_reason":"stop","index":0}]}"#;
        assert_eq!(decode(&[thinks, stop]).unwrap()[0], Chunk::Reasoning("Hm".into()));
    }

    #[test]
    fn statuses_have_their_kinds() {
        let filtered = r#"{"error":{"message":"m","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#;
        for (status, body, kind, again, detail) in [
            (400, filtered, Kind::Rejected, false, "content_filter"),
            (
                401,
                r#"{"error":{"code":"401","message":"m"}}"#,
                Kind::Auth,
                false,
                "401",
            ),
            (401, r#"{"statusCode":401,"message":"m"}"#, Kind::Auth, false, ""),
            (403, "", Kind::Auth, false, ""),
            (
                404,
                r#"{"error":{"code":"DeploymentNotFound","message":"m"}}"#,
                Kind::NotFound,
                false,
                "DeploymentNotFound",
            ),
            (
                408,
                r#"{"error":{"code":"Timeout","message":"m"}}"#,
                Kind::Reported,
                true,
                "Timeout",
            ),
            (
                429,
                r#"{"error":{"code":"RateLimitReached","message":"m"}}"#,
                Kind::RateLimited,
                true,
                "RateLimitReached",
            ),
            (
                429,
                r#"{"error":{"code":"429","message":"m"}}"#,
                Kind::RateLimited,
                true,
                "429",
            ),
            (
                429,
                r#"{"error":{"code":"insufficient_quota","message":"m"}}"#,
                Kind::Quota,
                false,
                "insufficient_quota",
            ),
            (
                500,
                r#"{"error":{"code":"InternalServerError","message":"m"}}"#,
                Kind::Server,
                true,
                "InternalServerError",
            ),
            (503, "<html>", Kind::Overloaded, true, ""),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", "1".parse().unwrap());
            headers.insert("retry-after-ms", "250".parse().unwrap());
            let error = Azure::default().refusal(status, &headers, body.as_bytes());
            assert_eq!(
                (error.kind, error.retryable(), error.detail.as_str()),
                (kind, again, detail),
                "{status} {body}"
            );
            assert_eq!(error.retry_after, Some(Duration::from_millis(250)));
        }
    }
}

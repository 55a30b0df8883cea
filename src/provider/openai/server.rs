//! The differences between servers of this dialect, by the names of their hosts.
//!
//! A server about which nothing is known gets the form that the known ones have in common.

use serde::{Deserialize, Serialize};

use crate::provider::{ProviderSettings, call_ids::IdForm};

/// The name under which a server takes `max_output_tokens`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxTokensField {
    /// `max_completion_tokens`: OpenAI's reasoning models refuse the other one.
    MaxCompletionTokens,
    /// `max_tokens`, the older name.
    MaxTokens,
    /// Both, for a server that ignores the name that it does not know.
    #[default]
    Both,
}

/// What one server wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::provider) struct Server {
    /// The name of the limit.
    pub(in crate::provider) max_tokens: MaxTokensField,
    /// The form of the calls' ids.
    pub(in crate::provider) ids: IdForm,
    /// Whether tools and a JSON format may be asked for together.
    pub(in crate::provider) json_beside_tools: bool,
    /// Whether a question may follow a tool's result directly.
    pub(in crate::provider) question_after_result: bool,
    /// Whether members that it sent and that are not of this dialect are sent back.
    pub(in crate::provider) takes_opaque: bool,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            max_tokens: MaxTokensField::Both,
            ids: IdForm::Unknown,
            json_beside_tools: true,
            question_after_result: true,
            takes_opaque: true,
        }
    }
}

/// OpenAI's own, and Azure's of the same models.
pub(in crate::provider) const OPENAI: Server = Server {
    max_tokens: MaxTokensField::MaxCompletionTokens,
    ids: IdForm::Short(40),
    json_beside_tools: true,
    question_after_result: true,
    takes_opaque: true,
};

/// Groq's. A message with a member that is not documented is refused there.
pub(in crate::provider) const GROQ: Server = Server {
    json_beside_tools: false,
    takes_opaque: false,
    ids: IdForm::Any,
    ..OPENAI
};

/// Hosts that know only `max_tokens`, or refuse the two together (their references, 2026-11).
const MAX_TOKENS: [&str; 18] = [
    "api.ai21.com",
    "api.cohere.ai",
    "api.cohere.com",
    "api.deepinfra.com",
    "api.deepseek.com",
    "api.fireworks.ai",
    "api.minimax.io",
    "api.mistral.ai",
    "api.moonshot.ai",
    "api.moonshot.cn",
    "api.novita.ai",
    "api.perplexity.ai",
    "api.sambanova.ai",
    "api.together.xyz",
    "api.z.ai",
    "dashscope.aliyuncs.com",
    "integrate.api.nvidia.com",
    "open.bigmodel.cn",
];

/// Hosts that prefer `max_completion_tokens`, or refuse the two together.
const MAX_COMPLETION_TOKENS: [&str; 4] = [
    "api.cerebras.ai",
    "api.x.ai",
    "generativelanguage.googleapis.com",
    "openrouter.ai",
];

/// The families of Mistral's models.
const MISTRAL: [&str; 8] = [
    "mistral",
    "ministral",
    "mixtral",
    "codestral",
    "magistral",
    "devstral",
    "pixtral",
    "voxtral",
];

impl Server {
    /// The server at the settings' address, with what the settings say of it.
    pub(in crate::provider) fn of(settings: &ProviderSettings) -> Self {
        let known = match settings.kind.as_str() {
            "azure" => OPENAI,
            "groq" => GROQ,
            _ => Self::at(&settings.base_url),
        };
        Self {
            max_tokens: settings.max_tokens_field.unwrap_or(known.max_tokens),
            ..known
        }
    }

    fn at(base_url: &str) -> Self {
        let address = url::Url::parse(base_url).ok();
        let host = address.as_ref().and_then(url::Url::host_str).unwrap_or_default();
        let is = |known: &str| {
            let below = host.strip_suffix(known);
            below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if is("api.openai.com") || is("openai.azure.com") {
            return OPENAI;
        }
        if is("api.groq.com") {
            return GROQ;
        }
        let max_tokens = match () {
            () if MAX_TOKENS.into_iter().any(is) => MaxTokensField::MaxTokens,
            () if MAX_COMPLETION_TOKENS.into_iter().any(is) => MaxTokensField::MaxCompletionTokens,
            () => MaxTokensField::Both,
        };
        let server = Self {
            max_tokens,
            ..Self::default()
        };
        if is("mistral.ai") {
            return server.of_mistral();
        }
        server
    }

    fn of_mistral(self) -> Self {
        Self {
            ids: IdForm::Nine,
            question_after_result: false,
            ..self
        }
    }

    /// The server for a model: one about which nothing is known passes Mistral's models on as they are.
    pub(super) fn for_model(&self, model: &str) -> Self {
        let model = model.to_ascii_lowercase();
        let is_mistral = MISTRAL.iter().any(|family| model.contains(family));
        match self.ids == IdForm::Unknown && is_mistral {
            true => self.of_mistral(),
            false => *self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_of_mistral_s_is_known_wherever_it_is() {
        let ids = |server: Server, model: &str| server.for_model(model).ids;
        assert_eq!(ids(Server::default(), "mistralai/Devstral-Small"), IdForm::Nine);
        assert_eq!(ids(Server::default(), "qwen3"), IdForm::Unknown);
        assert_eq!(ids(GROQ, "mistral-saba-24b"), IdForm::Any);
    }

    #[test]
    fn a_server_is_known_by_its_host() {
        use MaxTokensField::{Both, MaxCompletionTokens, MaxTokens};
        for (address, field, ids) in [
            ("https://api.openai.com/v1", MaxCompletionTokens, IdForm::Short(40)),
            ("https://eu.api.openai.com/v1", MaxCompletionTokens, IdForm::Short(40)),
            (
                "https://r.openai.azure.com/openai/v1",
                MaxCompletionTokens,
                IdForm::Short(40),
            ),
            ("https://api.groq.com/openai/v1", MaxCompletionTokens, IdForm::Any),
            ("https://api.mistral.ai/v1", MaxTokens, IdForm::Nine),
            ("https://api.deepseek.com", MaxTokens, IdForm::Unknown),
            ("https://openrouter.ai/api/v1", MaxCompletionTokens, IdForm::Unknown),
            ("https://notapi.openai.com.example/v1", Both, IdForm::Unknown),
            ("https://fakeapi.mistral.ai.example", Both, IdForm::Unknown),
            ("http://127.0.0.1:8000/v1", Both, IdForm::Unknown),
            ("nonsense", Both, IdForm::Unknown),
        ] {
            let server = Server::at(address);
            assert_eq!((server.max_tokens, server.ids), (field, ids), "{address}");
        }
    }
}

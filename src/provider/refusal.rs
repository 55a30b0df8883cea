//! The reason that a provider gives for a refusal, for the operator's log, and the part of the
//! request that is at fault, for the caller.
//!
//! Their sentence may repeat keys and what users wrote. So it is bounded, on one line and masked, and
//! it goes to the log only; the caller reads our own words about a name of ours.

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::{ProviderError, error::Kind};

/// The most characters of a reason.
const MAX_REASON: usize = 300;
/// How deep an error is looked for in a body.
const MAX_DEPTH: usize = 6;
/// The mask of a secret.
const MASK: &str = "***";

/// The part of a request, or of the settings, that a provider refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The model is unknown to it.
    Model,
    /// It has nothing at this address.
    Address,
    /// A parameter, by the name that our clients know.
    Parameter(&'static str),
    /// Images, all of them: the model reads none.
    Images,
    /// A message of the conversation.
    Conversation,
    /// The tool at this index of the request.
    Tool(usize),
    /// The form of the calls' ids.
    CallIds,
}

/// Words for parameters on the wires, and our names for them. A distinctive word is recognised
/// wherever it stands in a sentence.
const DISTINCTIVE: &[(&str, &str)] = &[
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("topp", "top_p"),
    ("max_tokens", "max_output_tokens"),
    ("max_completion_tokens", "max_output_tokens"),
    ("max_output_tokens", "max_output_tokens"),
    ("maxoutputtokens", "max_output_tokens"),
    ("num_predict", "max_output_tokens"),
    ("stop_sequences", "stop"),
    ("stopsequences", "stop"),
    ("reasoning_effort", "reasoning_effort"),
    ("thinking_level", "reasoning_effort"),
    ("thinkinglevel", "reasoning_effort"),
    ("thinking_config", "reasoning_effort"),
    ("thinkingconfig", "reasoning_effort"),
    ("tool_choice", "tool_choice"),
    ("toolconfig", "tool_choice"),
    ("tool_config", "tool_choice"),
    ("response_format", "response_format"),
    ("responsejsonschema", "response_format"),
    ("response_json_schema", "response_format"),
    ("responsemimetype", "response_format"),
    ("response_mime_type", "response_format"),
    ("output_config", "response_format"),
    ("json_schema", "response_format"),
    ("image_url", "attachments"),
    ("input_image", "attachments"),
    ("inlinedata", "attachments"),
    ("inline_data", "attachments"),
];

/// Words that are parameters only where the provider names them as such.
const AMBIGUOUS: &[(&str, &str)] = &[
    ("stop", "stop"),
    ("seed", "seed"),
    ("reasoning", "reasoning_effort"),
    ("thinking", "reasoning_effort"),
    ("think", "reasoning_effort"),
    ("effort", "reasoning_effort"),
    ("format", "response_format"),
    ("text", "response_format"),
    ("images", "attachments"),
    ("image", "attachments"),
];

/// Parts of a sentence that say that the conversation is longer than the model's context
/// (OpenAI, Anthropic, Gemini, Mistral, Groq, xAI, Bedrock and LiteLLM, vLLM, llama.cpp, TGI, Ollama,
/// Cohere, Kimi, GLM, MiniMax, DashScope, LM Studio; 2026-11).
const TOO_LONG: &[&str] = &[
    "maximum context length",
    "maximum prompt length",
    "maximum model length",
    "max context length",
    "model context length",
    "context length exceeded",
    "context_length_exceeded",
    "contextwindowexceeded",
    "context window exceed",
    "exceeds the context window",
    "exceed context limit",
    "exceeds the available context size",
    "exceed the available context size",
    "exceed_context_size",
    "exceeds the context length",
    "exceeds the model's context",
    "exceeds model context",
    "exceeds maximum context",
    "greater than the context length",
    "context length of only",
    "prompt is too long",
    "prompt too long",
    "input is too long",
    "too large for model with",
    "exceeds the maximum number of tokens",
    "exceeded model token limit",
    "prompt exceeds max length",
    "reduce the length of the messages",
    "reduce the length of the input prompt",
    "too many tokens: total number of tokens",
    "tokens + `max_new_tokens` must be <=",
    "`inputs` must have less than",
    "range of input length should be",
    "max_prompt_tokens_exceeded",
];

/// Codes that say the same.
const TOO_LONG_CODES: &[&str] = &[
    "context_length_exceeded",
    "exceed_context_size_error",
    "context_window_exceeded",
    "model_max_prompt_tokens_exceeded",
    "model_context_window_exceeded",
    "input_too_long",
];

/// Codes and parts of sentences that say that a model is unknown.
const UNKNOWN_MODEL: &[&str] = &[
    "model_not_found",
    "deploymentnotfound",
    "model not found",
    "model not exist",
    "model does not exist",
    "unknown model",
    "invalid model",
    "no such model",
    "not a valid model",
    "unable to access model",
];

/// Parts of sentences that say that a model reads no images. A refusal of one image is none of these.
const NO_IMAGES: &[&str] = &[
    "support image input",
    "support images",
    "support vision",
    "image input is not",
    "image inputs are not",
    "images are not supported",
    "image_url is only supported",
    "unknown variant `image_url`",
    "required for image input",
    "not a multimodal model",
];

/// What a body says of an error.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Their sentence.
    message: String,
    /// Their codes and types, in lower case.
    codes: Vec<String>,
    /// The places in the request that they name.
    places: Vec<String>,
}

impl Report {
    /// Reads the body of an error, or an event that has one, whoever's it is.
    pub(super) fn read(body: &[u8]) -> Self {
        let mut report = Self::default();
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => report.add(&value, 0),
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let is_page = text.trim_start().starts_with('<');
                report.message = if is_page { String::new() } else { text.into_owned() };
            }
        }
        report
    }

    fn add(&mut self, value: &Value, depth: usize) {
        match value {
            _ if depth > MAX_DEPTH => {}
            Value::String(text) => self.say(text, depth),
            // FastAPI's form is a list of `{loc, msg}`, Google's an error in a list of one.
            Value::Array(all) => all.iter().take(3).for_each(|one| self.add(one, depth + 1)),
            Value::Object(members) => {
                for (name, value) in members {
                    match (name.as_str(), value) {
                        ("message" | "msg" | "detail" | "error_description", Value::String(text)) => {
                            self.say(text, depth);
                        }
                        ("code" | "type" | "status" | "reason", Value::String(word)) => {
                            self.codes.push(word.to_ascii_lowercase());
                        }
                        ("param" | "field", Value::String(place)) => self.places.push(place.clone()),
                        ("loc", Value::Array(path)) => {
                            let part = |part: &Value| part.as_str().map_or_else(|| part.to_string(), str::to_owned);
                            self.places.push(path.iter().map(part).collect::<Vec<_>>().join("."));
                        }
                        (
                            "error" | "errors" | "detail" | "details" | "fieldViolations" | "response" | "message"
                            | "metadata" | "raw",
                            value,
                        ) => self.add(value, depth + 1),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }

    /// Adds a sentence; one that holds an error as JSON, as proxies pass it on, is taken apart.
    fn say(&mut self, text: &str, depth: usize) {
        let is_json = depth < MAX_DEPTH && text.trim_start().starts_with(['{', '[']);
        if is_json && let Ok(value) = serde_json::from_str(text) {
            self.add(&value, depth + 1);
            return;
        }
        if self.message.contains(text) {
            return;
        }
        if !self.message.is_empty() {
            self.message.push_str("; ");
        }
        self.message.push_str(text);
    }

    /// Whether it says that the conversation is longer than the model's context.
    fn is_too_long(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        self.codes.iter().any(|code| TOO_LONG_CODES.contains(&code.as_str()))
            || TOO_LONG.iter().any(|part| message.contains(part))
    }

    fn is_unknown_model(&self, status: Option<u16>) -> bool {
        let message = self.message.to_ascii_lowercase();
        let named = UNKNOWN_MODEL
            .iter()
            .any(|part| message.contains(part) || self.codes.iter().any(|code| code == part));
        let is_about_it = message.contains("model") || message.contains("deployment");
        named || status == Some(404) && is_about_it || message.contains("model") && message.contains("does not exist")
    }

    fn reads_no_images(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        NO_IMAGES.iter().any(|part| message.contains(part))
    }

    /// Whether the ids of calls are not of its form.
    fn refuses_ids(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        let place = self.places.join(" ").to_ascii_lowercase();
        let ids = [
            "tool call id",
            "tool_call_id",
            "call_id",
            "tool_use_id",
            "tool_use.id",
            "tool_calls",
        ];
        let form = [
            "with a length of",
            "string too long",
            "maximum length",
            "should match pattern",
            "invalid format",
        ];
        let is_about = |text: &str| ids.iter().any(|word| text.contains(word));
        (is_about(&message) || is_about(&place)) && form.iter().any(|word| message.contains(word))
    }

    /// The part of the request that it names.
    fn part(&self) -> Option<Fault> {
        if self.refuses_ids() {
            return Some(Fault::CallIds);
        }
        let places = self.places.iter().find_map(|place| part_at(place));
        places.or_else(|| {
            let message = self.message.to_ascii_lowercase();
            part_at(&message).or_else(|| part_in(&message))
        })
    }
}

/// A path such as `tools[0].function.parameters`, `messages.1.content` or `body.temperature` at the
/// beginning of a text.
fn part_at(text: &str) -> Option<Fault> {
    let text = text.to_ascii_lowercase();
    let ends = |c: char| !(c.is_ascii_alphanumeric() || "_.[]$".contains(c));
    let path = text.split(ends).next().unwrap_or_default();
    let is_path = path.len() == text.len() || text[path.len()..].starts_with(':');
    let mut parts = path.split(['.', '[', ']']).filter(|part| !part.is_empty());
    let first = parts.find(|part| {
        !matches!(
            *part,
            "body" | "$" | "generation_config" | "generationconfig" | "options"
        )
    })?;
    if !is_path {
        return None;
    }
    let index = parts.next().and_then(|part| part.parse().ok());
    match first {
        "tools" => index.map_or(Some(Fault::Parameter("tools")), |index| Some(Fault::Tool(index))),
        "messages" | "contents" | "input" if path.contains("image") => Some(Fault::Parameter("attachments")),
        "messages" | "contents" | "input" => Some(Fault::Conversation),
        word => known(word),
    }
}

/// A parameter that is named in a sentence: a distinctive word anywhere, any word in quotation marks.
fn part_in(message: &str) -> Option<Fault> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let quotes = ['`', '\'', '"'];
    let mut quoted = message.split(quotes).skip(1).step_by(2);
    let named = quoted.find_map(|word| {
        let word = word.rsplit('.').next().unwrap_or(word);
        known(word.trim())
    });
    let anywhere = || {
        let mut words = message.split(|c| !is_word(c));
        words.find_map(|word| in_table(DISTINCTIVE, word))
    };
    named.or_else(anywhere)
}

fn known(word: &str) -> Option<Fault> {
    in_table(DISTINCTIVE, word).or_else(|| in_table(AMBIGUOUS, word))
}

fn in_table(table: &[(&str, &'static str)], word: &str) -> Option<Fault> {
    let found = table.iter().find(|(theirs, _)| *theirs == word);
    found.map(|(_, ours)| Fault::Parameter(ours))
}

impl ProviderError {
    /// The same, with what the body of an answer, or an event, says of it.
    #[must_use]
    pub(super) fn explained(mut self, body: &[u8]) -> Self {
        let refused = matches!(self.kind, Kind::Rejected | Kind::Reported | Kind::NotFound);
        let spoken = refused
            || matches!(
                self.kind,
                Kind::Auth | Kind::Quota | Kind::Server | Kind::ContextTooLong
            );
        if !spoken || self.refusal.reason.is_some() {
            return self;
        }
        let report = Report::read(body);
        if (refused || self.kind == Kind::Server) && report.is_too_long() {
            self.kind = Kind::ContextTooLong;
        } else if refused && report.reads_no_images() {
            self.refusal.fault = Some(Fault::Images);
        } else if refused && report.is_unknown_model(self.status) {
            self.kind = Kind::NotFound;
            self.refusal.fault = Some(Fault::Model);
        } else if matches!(self.status, Some(404 | 405)) {
            self.refusal.fault = Some(Fault::Address);
        } else if refused {
            self.refusal.fault = report.part();
        }
        self.refusal.reason = Some(report.message).filter(|reason| !reason.trim().is_empty());
        self
    }
}

/// A reason as it may stand in the log: on one line, bounded, without these secrets and without
/// anything that looks like a key.
pub(super) fn masked(reason: &str, secrets: &[SecretString]) -> String {
    let mut text = reason.to_owned();
    let wholes = secrets
        .iter()
        .map(ExposeSecret::expose_secret)
        .filter(|whole| whole.len() >= 4);
    // A header's value may be a scheme and a key, of which the key alone is repeated.
    let words = wholes
        .clone()
        .flat_map(str::split_whitespace)
        .filter(|word| word.len() >= 8);
    let mut hidden: Vec<&str> = wholes.chain(words).collect();
    hidden.sort_by_key(|part| std::cmp::Reverse(part.len())); // one may be a part of another
    for part in hidden {
        text = text.replace(part, MASK);
    }
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        if looks_like_key(word) {
            line.push_str(MASK);
        } else {
            line.push_str(word);
        }
        if line.chars().count() > MAX_REASON {
            line = line.chars().take(MAX_REASON).chain(['…']).collect();
            break;
        }
    }
    line
}

/// Whether a word may be a key: by the beginning that vendors give theirs, or as a long run of letters
/// and digits.
fn looks_like_key(word: &str) -> bool {
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let beginnings = ["sk-", "sk_", "gsk_", "xai-", "aiza", "pplx-", "hf_", "nvapi-", "eyj"];
    let lower = bare.to_ascii_lowercase();
    let parts = bare.split(|c: char| !c.is_ascii_alphanumeric());
    let is_long = |part: &str| {
        let digits = part.bytes().filter(u8::is_ascii_digit).count();
        part.len() >= 24 && digits > 0 && digits < part.len()
    };
    let mut tokens = lower.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    let begins = |token: &str| beginnings.iter().any(|beginning| token.starts_with(beginning));
    tokens.any(begins) || parts.into_iter().any(is_long)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(status: u16, body: &str) -> ProviderError {
        let kind = Kind::of_status(status);
        ProviderError::new(kind, "")
            .with_status(status)
            .explained(body.as_bytes())
    }

    #[test]
    fn every_server_s_words_for_a_full_context_are_known() {
        for (status, body) in [
            (
                400,
                r#"{"error":{"code":400,"message":"request (9 tokens) exceeds the available context size (8 tokens), try increasing it","type":"exceed_context_size_error","n_ctx":8}}"#,
            ),
            (
                400,
                r#"{"object":"error","message":"This model's maximum context length is 8 tokens. However, you requested 9 tokens","type":"BadRequestError","code":400}"#,
            ),
            (
                400,
                r#"{"error":{"message":"The decoder prompt (length 9) is longer than the maximum model length of 8.","type":"BadRequestError"}}"#,
            ),
            (400, r#"{"error":"the input length exceeds the context length"}"#),
            (
                400,
                r#"{"object":"error","message":"Prompt contains 9 tokens and 0 draft tokens, too large for model with 8 maximum context length","type":"invalid_request_error","code":"3051"}"#,
            ),
            (
                400,
                r#"{"error":{"message":"Please reduce the length of the messages or completion.","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            ),
            (
                400,
                r#"{"error":{"message":"litellm.ContextWindowExceededError: BedrockException - Input is too long for requested model.","type":null,"code":"400"}}"#,
            ),
            (400, r#"{"message":"Input is too long for requested model."}"#),
            (
                400,
                r#"{"error":{"code":400,"message":"The input token count (9) exceeds the maximum number of tokens allowed (8).","status":"INVALID_ARGUMENT"}}"#,
            ),
            (
                400,
                r#"[{"error":{"code":400,"message":"The input token count (9) exceeds the maximum number of tokens allowed (8).","status":"INVALID_ARGUMENT"}}]"#,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 8 maximum"}}"#,
            ),
            (
                413,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"input length and `max_tokens` exceed context limit: 7 + 9 > 8"}}"#,
            ),
            (
                400,
                r#"{"error":{"message":"Your input exceeds the context window of this model.","code":null}}"#,
            ),
            (
                400,
                r#"{"code":"x","error":"This model's maximum prompt length is 8 but the request contains 9 tokens."}"#,
            ),
            (
                422,
                r#"{"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8. Given: 9","error_type":"validation"}"#,
            ),
            (
                500,
                r#"{"error":{"message":"litellm.ContextWindowExceededError: too much"}}"#,
            ),
        ] {
            assert_eq!(explained(status, body).kind, Kind::ContextTooLong, "{body}");
        }
        let limited = r#"{"error":{"message":"Request too large for model `m` on tokens per minute (TPM): Limit 8, Requested 9","type":"tokens","code":"rate_limit_exceeded"}}"#;
        assert_ne!(explained(413, limited).kind, Kind::ContextTooLong);
        let slow = r#"{"error":{"message":"maximum context length"}}"#;
        assert_eq!(explained(429, slow).kind, Kind::RateLimited);
    }

    #[test]
    fn an_unknown_model_and_a_wrong_address_are_told_apart() {
        for (status, body) in [
            (
                404,
                r#"{"error":{"message":"The model `x` does not exist or you do not have access to it.","code":"model_not_found"}}"#,
            ),
            (
                404,
                r#"{"type":"error","error":{"type":"not_found_error","message":"model: x"}}"#,
            ),
            (
                404,
                r#"{"error":{"code":404,"message":"models/x is not found for API version v1beta","status":"NOT_FOUND"}}"#,
            ),
            (404, r#"{"error":"model 'x' not found"}"#),
            (
                404,
                r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
            ),
            (
                400,
                r#"{"object":"error","message":"Invalid model: x","type":"invalid_model","code":"1500"}"#,
            ),
            (
                400,
                r#"{"error":{"message":"Model Not Exist","type":"invalid_request_error","code":"invalid_request_error"}}"#,
            ),
            (400, r#"{"error":{"message":"x is not a valid model ID","code":400}}"#),
        ] {
            let error = explained(status, body);
            assert_eq!(
                (error.kind, error.refusal.fault),
                (Kind::NotFound, Some(Fault::Model)),
                "{body}"
            );
        }
        for body in [
            "<html>404</html>",
            "404 page not found",
            "",
            r#"{"detail":"Not Found"}"#,
        ] {
            let error = explained(404, body);
            assert_eq!(
                (error.kind, error.refusal.fault),
                (Kind::NotFound, Some(Fault::Address)),
                "{body}"
            );
        }
    }

    #[test]
    fn the_part_at_fault_is_found_in_every_form() {
        use Fault::{CallIds, Conversation, Images, Parameter, Tool};
        for (body, expected) in [
            (
                r#"{"error":{"message":"Unsupported value: 'temperature' does not support 0.5","param":"temperature","code":"unsupported_value"}}"#,
                Some(Parameter("temperature")),
            ),
            (
                r#"{"error":{"message":"Unsupported parameter: 'max_tokens' is not supported with this model.","param":null}}"#,
                Some(Parameter("max_output_tokens")),
            ),
            (
                r#"{"error":{"message":"Invalid schema for function 'x'","param":"tools[1].function.parameters"}}"#,
                Some(Tool(1)),
            ),
            (
                r#"{"error":{"message":"m","param":"messages.[3].content"}}"#,
                Some(Conversation),
            ),
            (
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"tools.0.custom.input_schema: bad"}}"#,
                Some(Tool(0)),
            ),
            (
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"messages.1.content.0: bad"}}"#,
                Some(Conversation),
            ),
            (
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"temperature: range: 0..1"}}"#,
                Some(Parameter("temperature")),
            ),
            (
                r#"{"error":{"code":400,"message":"m","status":"INVALID_ARGUMENT","details":[{"fieldViolations":[{"field":"generation_config.thinking_config","description":"d"}]}]}}"#,
                Some(Parameter("reasoning_effort")),
            ),
            (
                r#"{"detail":[{"type":"extra_forbidden","loc":["body","seed"],"msg":"Extra inputs are not permitted"}]}"#,
                Some(Parameter("seed")),
            ),
            (
                r#"{"error":{"message":"property 'seed' is unsupported"}}"#,
                Some(Parameter("seed")),
            ),
            (
                r#"{"object":"error","message":"Tool call id was call_1 but must be a-z, A-Z, 0-9, with a length of 9.","code":"3280"}"#,
                Some(CallIds),
            ),
            (
                r#"{"error":{"message":"Invalid 'messages[1].tool_calls[0].id': string too long. Expected a string with maximum length 40","param":"messages[1].tool_calls[0].id"}}"#,
                Some(CallIds),
            ),
            (
                r#"{"error":{"message":"This model does not support image input","param":"messages[0].content"}}"#,
                Some(Images),
            ),
            (
                r#"{"type":"error","error":{"message":"messages.0.content.1.image.source.base64.data: Could not process image"}}"#,
                Some(Parameter("attachments")),
            ),
            (r#"{"error":{"message":"Please stop asking; the text is bad"}}"#, None),
            (
                r#"{"error":{"message":"Provider returned error","code":400,"metadata":{"raw":"{\"error\":{\"message\":\"m\",\"param\":\"top_p\"}}"}}}"#,
                Some(Parameter("top_p")),
            ),
            (r#"{"error":{"message":"This revision is not supported"}}"#, None),
            ("<html>", None),
        ] {
            assert_eq!(explained(400, body).refusal.fault, expected, "{body}");
        }
    }

    #[test]
    fn a_reason_is_one_bounded_line_without_keys() {
        let secrets =
            ["configured/secret", "configured/secret+1", "Token header/secret"].map(|secret| secret.to_owned().into());
        let masked = |text: &str| masked(text, &secrets);
        assert_eq!(masked("Bad\n\tkey configured/secret+1!"), "Bad key ***!");
        assert_eq!(masked("no header/secret here"), "no *** here");
        assert_eq!(
            masked("Incorrect API key provided: sk-abc12*****9xyz. See"),
            "Incorrect API key provided: *** See"
        );
        assert_eq!(masked("key 0123456789abcdef0123456789abcdef wrong"), "key *** wrong");
        assert_eq!(
            masked("the model `claude-sonnet-4-5-20250929` is unknown"),
            "the model `claude-sonnet-4-5-20250929` is unknown"
        );
        assert_eq!(masked(&"x ".repeat(1000)).chars().count(), MAX_REASON + 1);
        assert!(!masked("a\u{1b}[31mb\u{0}").contains(char::is_control));
    }
}

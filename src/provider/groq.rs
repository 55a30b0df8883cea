//! Groq: the openai dialect at another address, with its quirks here.
//!
//! Source: console.groq.com/docs/openai, /docs/errors, /docs/rate-limits and the types of its SDK (2026-11). Usage stands
//! in `x_groq.usage` of the finish, in older streams only there; an error comes as an event of that name; reasoning is
//! `delta.reasoning`. Tools that Groq runs itself (`executed_tools`) are no calls of ours and are not read.

use std::sync::Arc;

use memchr::memmem;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{
    Provider, ProviderError, ProviderSettings, Unsupported,
    deviations::Deviations,
    dialect::{Call, Decoder, Dialect, Progress},
    error::Kind,
    frame::Frame,
    openai::{self, OpenAi, OpenAiDecoder},
    upstream::{Credentials, HttpProvider},
};
use crate::chat::{ChatRequest, Chunk, ResponseFormat, ToolChoice};

/// The dialect.
#[derive(Clone, Debug)]
pub struct Groq(OpenAi);

impl Default for Groq {
    fn default() -> Self {
        Self(OpenAi::at(openai::server::GROQ))
    }
}

/// A provider that speaks it.
pub(super) fn provider(settings: ProviderSettings) -> Result<Arc<dyn Provider>, ProviderError> {
    let dialect = Groq(OpenAi::of(&settings));
    Ok(Arc::new(HttpProvider::new(dialect, Credentials::Bearer, settings)?))
}

impl Dialect for Groq {
    fn marks_its_end(&self) -> bool {
        true
    }

    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported> {
        // A schema cannot be asked for while streaming, nor any JSON together with tools (console.groq.com/docs/structured-outputs,
        // 2026-11).
        let refused = match &request.response_format {
            ResponseFormat::Text => false,
            ResponseFormat::JsonObject => !request.tools.is_empty() && request.tool_choice != ToolChoice::None,
            ResponseFormat::JsonSchema { .. } => true,
        };
        match refused {
            true => Err(Unsupported {
                field: "response_format",
            }),
            false => self.0.check(request),
        }
    }

    fn encode(&self, request: &ChatRequest) -> Result<Call, ProviderError> {
        self.0.encode(request)
    }

    fn decoder(&self) -> Box<dyn Decoder> {
        Box::new(GroqDecoder(self.0.own_decoder()))
    }

    fn whole(&self, body: &[u8], odd: &mut Deviations) -> Result<Vec<Chunk>, ProviderError> {
        self.0.whole(body, odd)
    }

    fn refusal(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
        let told = self.0.refusal(status, headers, body);
        match status {
            498 => ProviderError {
                kind: Kind::Overloaded,
                ..told
            }, // its own: no capacity in the flex tier
            _ => told,
        }
    }
}

/// Decodes one answer.
struct GroqDecoder(OpenAiDecoder);

impl Decoder for GroqDecoder {
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Chunk>) -> Result<Progress, ProviderError> {
        let progress = match self.0.frame(frame, out) {
            // Its errors say which status they would have been.
            Err(error) if error.kind == Kind::Reported => return Err(told(frame.data)),
            Ok(_) if frame.event == b"error" => return Err(told(frame.data)),
            other => other?,
        };
        if memmem::find(frame.data.as_bytes(), b"x_groq").is_some() {
            self.aside(frame.data)?;
        }
        Ok(progress)
    }

    fn end(&mut self, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        self.0.end(out)
    }

    fn deviations(&self) -> Deviations {
        self.0.deviations()
    }
}

impl GroqDecoder {
    /// What stands beside the answer: the same numbers as elsewhere, or the only ones; and why it stopped early.
    fn aside(&mut self, data: &str) -> Result<(), ProviderError> {
        let aside = serde_json::from_str::<Extended<'_>>(data)
            .ok()
            .and_then(|chunk| chunk.x_groq);
        let Some(Aside { usage, error }) = aside else {
            return Ok(());
        };
        if let Some(error) = error.filter(|error| !error.is_null()) {
            return Err(openai::reported(&error));
        }
        if let Some(usage) = usage {
            self.0.read_usage(usage.get());
        }
        Ok(())
    }
}

/// A chunk, as far as it is not OpenAI's.
#[derive(Deserialize)]
struct Extended<'a> {
    #[serde(borrow, default)]
    x_groq: Option<Aside<'a>>,
}

#[derive(Deserialize)]
struct Aside<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<Value>,
}

/// An error inside a stream: by the status it names, else by its code. `failed_generation`, the model's words, is not
/// read.
fn told(data: &str) -> ProviderError {
    let body: Value = serde_json::from_str(data).unwrap_or(Value::Null);
    let status = body.pointer("/error/status_code").and_then(Value::as_u64);
    match status.and_then(|status| u16::try_from(status).ok()) {
        Some(status @ 400..) => ProviderError {
            status: None, // what was answered is 200
            ..Groq::default().refusal(status, &HeaderMap::new(), data.as_bytes())
        },
        _ => openai::reported(body.get("error").unwrap_or(&body)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        chat::{FinishKind, FinishReason, Usage},
        provider::{decoding::Decoding, golden::golden},
    };

    #[test]
    fn every_scenario_is_written_to_the_letter() {
        insta::assert_json_snapshot!(golden(&Groq::default(), &[]));
    }

    fn decode(stream: &str) -> Result<Vec<Chunk>, ProviderError> {
        let mut out = Vec::new();
        let mut decoding = Decoding::new(&Groq::default(), 1 << 20);
        decoding.push(stream.as_bytes(), &mut out)?;
        if decoding.progress() != Progress::Over {
            decoding.end(None, &mut out)?;
        }
        Ok(out)
    }

    fn finish(chunks: &[Chunk]) -> (FinishReason, Usage) {
        match chunks.last() {
            Some(Chunk::Finish { reason, usage }) => (reason.clone(), usage.clone()),
            other => panic!("no finish: {other:?}"),
        }
    }

    const HI: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"Hi\"}}],\"x_groq\":{\"id\":\"req_1\"}}\n\n";
    const STOP: &str = "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]";
    const NUMBERS: &str = "{\"prompt_tokens\":18,\"completion_tokens\":7,\"queue_time\":0.1}";

    #[test]
    fn numbers_are_taken_from_wherever_they_stand_and_never_added() {
        let only = format!("{HI}data: {{{STOP},\"x_groq\":{{\"id\":\"r\",\"usage\":{NUMBERS}}}}}\n\ndata: [DONE]\n\n");
        let thrice = format!(
            "{HI}data: {{{STOP},\"usage\":{NUMBERS},\"x_groq\":{{\"usage\":{NUMBERS}}}}}\n\ndata: {{\"choices\":[],\"usage\":{NUMBERS}}}\n\n"
        );
        let later = format!("{HI}data: {{{STOP}}}\n\ndata: {{\"choices\":[],\"x_groq\":{{\"usage\":{NUMBERS}}}}}\n\n");
        for stream in [only, thrice, later] {
            let (reason, usage) = finish(&decode(&stream).unwrap());
            assert_eq!(reason.kind, FinishKind::Stop);
            assert_eq!(
                (usage.input_tokens, usage.output_tokens),
                (Some(18), Some(7)),
                "{stream}"
            );
            assert_eq!(usage.raw.unwrap()["queue_time"], 0.1);
        }
        let none = format!("{HI}data: {{{STOP},\"x_groq\":{{\"id\":\"r\",\"usage\":null,\"error\":null}}}}\n\n");
        assert_eq!(finish(&decode(&none).unwrap()).1, Usage::default());
    }

    #[test]
    fn a_text_about_x_groq_is_a_text() {
        let stream =
            format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"x_groq\"}}}}]}}\n\ndata: {{{STOP}}}\n\n");
        assert_eq!(decode(&stream).unwrap()[0], Chunk::Text("x_groq".into()));
    }

    #[test]
    fn reasoning_and_null_arguments_are_read_and_its_own_tools_are_not() {
        let stream = "data: {\"choices\":[{\"delta\":{\"reasoning\":\"Hm\",\"executed_tools\":[{\"index\":0,\"type\":\"search\",\"arguments\":\"{}\"}]}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"id\":\"a\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"null\"},\"index\":0}]}}]}\n\n\
            data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\ndata: [DONE]\n\n";
        let chunks = decode(stream).unwrap();
        let call = Chunk::ToolCallStart {
            index: 0,
            id: "a".into(),
            name: "f".into(),
        };
        assert_eq!(chunks[..2], [Chunk::Reasoning("Hm".into()), call]);
        assert_eq!(finish(&chunks).0.kind, FinishKind::ToolCalls);
    }

    #[test]
    fn an_error_event_breaks_the_answer_with_its_kind_and_without_its_words() {
        let failed = r#"{"error":{"message":"secret","type":"invalid_request_error","code":"tool_use_failed","failed_generation":"secret","status_code":400}}"#;
        for (event, data, kind, again) in [
            ("event: error\n", failed, Kind::Rejected, false),
            ("", failed, Kind::Rejected, false),
            (
                "event: error\n",
                r#"{"error":{"message":"secret","code":"rate_limit_exceeded"}}"#,
                Kind::RateLimited,
                true,
            ),
            (
                "event: error\n",
                r#"{"error":{"message":"secret","status_code":503}}"#,
                Kind::Overloaded,
                true,
            ),
            (
                "event: error\n",
                r#"{"error":{"message":"secret","status_code":498}}"#,
                Kind::Overloaded,
                true,
            ),
            (
                "event: error\n",
                r#"{"error":{"message":"secret","status_code":500}}"#,
                Kind::Server,
                true,
            ),
            (
                "event: error\n",
                r#"{"message":"secret","type":"server_error"}"#,
                Kind::Server,
                true,
            ),
            ("event: error\n", "{}", Kind::Reported, false),
            (
                "",
                r#"{"choices":[],"x_groq":{"id":"r","error":"secret"}}"#,
                Kind::Reported,
                false,
            ),
            ("event: error\n", "{", Kind::Protocol, false),
        ] {
            let error = decode(&format!("{HI}{event}data: {data}\n\n")).unwrap_err();
            assert_eq!((error.kind, error.retryable()), (kind, again), "{data}");
            assert!(!error.detail.contains("secret"), "{}", error.detail);
        }
        assert_eq!(decode(HI).unwrap_err().kind, Kind::Truncated);
    }

    #[test]
    fn statuses_have_their_kinds() {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "6".parse().unwrap());
        for (status, code, kind, again) in [
            (400, "tool_use_failed", Kind::Rejected, false),
            (400, "context_length_exceeded", Kind::ContextTooLong, false),
            (401, "invalid_api_key", Kind::Auth, false),
            (404, "model_not_found", Kind::NotFound, false),
            (413, "rate_limit_exceeded", Kind::Rejected, false),
            (429, "rate_limit_exceeded", Kind::RateLimited, true),
            (498, "capacity_exceeded", Kind::Overloaded, true),
            (503, "", Kind::Overloaded, true),
        ] {
            let body = format!(r#"{{"error":{{"message":"m","type":"tokens","code":"{code}"}}}}"#);
            let error = Groq::default().refusal(status, &headers, body.as_bytes());
            assert_eq!(
                (error.kind, error.retryable(), error.status),
                (kind, again, Some(status)),
                "{status}"
            );
            assert_eq!(error.retry_after, Some(Duration::from_secs(6)));
        }
    }
}

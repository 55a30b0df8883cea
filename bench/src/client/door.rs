//! The doors an answer can be had through: what to send, and how to read what comes.

use crate::ask::Ask;
use crate::client::body::{Body, Text, Whole};
use crate::client::sse::{OpenAi, Ours};
use crate::token::Check;

/// Where and how an answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// `POST /v1/chat/completions`, streamed: the mock itself, or nginx in front of it.
    OpenAi,
    /// The same without `stream`.
    OpenAiWhole,
    /// The gateway's `POST /chat/sse`.
    Sse {
        /// The request's `store`.
        store: bool,
    },
    /// The gateway's `POST /chat/stream`.
    Text {
        /// The request's `store`.
        store: bool,
    },
    /// The gateway's `POST /chat`.
    Whole {
        /// The request's `store`.
        store: bool,
    },
}

impl Door {
    /// The bytes of a request, head and body.
    #[must_use]
    pub fn request(self, ask: Ask) -> Vec<u8> {
        self.request_with(ask, "", "")
    }

    /// The same with more headers (whole lines) and, of the gateway's doors, more fields (each with its comma before).
    #[must_use]
    pub fn request_with(self, ask: Ask, headers: &str, fields: &str) -> Vec<u8> {
        let path = match self {
            Self::OpenAi | Self::OpenAiWhole => "/v1/chat/completions",
            Self::Sse { .. } => "/chat/sse",
            Self::Text { .. } => "/chat/stream",
            Self::Whole { .. } => "/chat",
        };
        let openai = |rest: &str| {
            format!(
                r#"{{"model":"bench","messages":[{{"role":"system","content":"You are a helpful assistant."}},{{"role":"user","content":"{ask}"}}]{rest}}}"#
            )
        };
        let body = match self {
            Self::OpenAi => openai(r#","stream":true,"stream_options":{"include_usage":true}"#),
            Self::OpenAiWhole => openai(""),
            Self::Sse { store } | Self::Text { store } | Self::Whole { store } => {
                format!(r#"{{"message":"{ask}","store":{store}{fields}}}"#)
            }
        };
        format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAccept: */*\r\n\
             {headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    /// A judge for the answer to `ask`.
    #[must_use]
    pub fn body(self, ask: Ask) -> Box<dyn Body + Send> {
        let check = Check::new(ask.stream, ask.tokens);
        match self {
            Self::OpenAi => Box::new(OpenAi::new(check)),
            Self::OpenAiWhole => Box::new(Whole::openai(check)),
            Self::Sse { store } => Box::new(Ours::new(check, store)),
            Self::Text { .. } => Box::new(Text(check)),
            Self::Whole { store } => Box::new(Whole::ours(check, store)),
        }
    }
}

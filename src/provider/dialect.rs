//! How an upstream speaks: pure, bytes and values only. What does I/O is `upstream.rs`.

use reqwest::header::HeaderMap;

use super::{
    ProviderError, Unsupported,
    error::Kind,
    frame::{Frame, Framing},
};
use crate::chat::{ChatRequest, Chunk};

/// A call, encoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Call {
    /// Below the provider's base address, with a slash in front; may have a query.
    pub path: String,
    /// The JSON body.
    pub body: Vec<u8>,
}

/// A way to speak to a model over HTTP.
pub trait Dialect: Send + Sync + 'static {
    /// How its events are told apart.
    fn framing(&self) -> Framing {
        Framing::Sse
    }

    /// Headers of every call, beside the credentials.
    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// What it cannot say.
    ///
    /// # Errors
    /// The first field of the request that has no place on this wire.
    fn check(&self, request: &ChatRequest) -> Result<(), Unsupported>;

    /// Our request on its wire.
    ///
    /// # Errors
    /// A request that cannot be written down.
    fn encode(&self, request: &ChatRequest) -> Result<Call, ProviderError>;

    /// A decoder for one answer.
    fn decoder(&self) -> Box<dyn Decoder>;

    /// An answer that came whole although a stream was asked for.
    ///
    /// # Errors
    /// The error it reports, or that it is not an answer.
    fn whole(&self, body: &[u8]) -> Result<Vec<Chunk>, ProviderError>;

    /// What an HTTP status other than 200 means. `body` may be cut, and need not be JSON.
    fn refusal(&self, status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError;
}

/// How far an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Content may follow.
    More,
    /// The model's finish was seen; only numbers may follow, and if they do not, the answer is complete all the same.
    Finishing,
    /// Nothing follows: the connection need not be read any further.
    Over,
}

/// Turns one answer's frames into chunks. Keeps what state the dialect needs; never waits.
pub trait Decoder: Send {
    /// The next frame.
    ///
    /// # Errors
    /// An error that the frame reports, or a frame that is none.
    fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<Chunk>) -> Result<Progress, ProviderError>;

    /// Nothing follows. Writes `Finish`.
    ///
    /// # Errors
    /// Truncated, if no finish was seen.
    fn end(&mut self, out: &mut Vec<Chunk>) -> Result<(), ProviderError>;
}

/// An event's data as a value of a wire. The parser's own sentence quotes what it read, so it is not repeated.
pub(super) fn parse_event<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Result<T, ProviderError> {
    serde_json::from_str(text).map_err(|e| {
        let what = format!(
            "an event that is not one: {:?} error at byte {}",
            e.classify(),
            e.column()
        );
        ProviderError::new(Kind::Protocol, what)
    })
}

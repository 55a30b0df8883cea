//! How a run is written to a client: each format is a reader of a run's log that makes a response. Nothing here asks a
//! model, and none of it is a second road: what `/chat` answers is what the events said.

use axum::{
    body::Body,
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;

use std::sync::Arc;

use crate::{
    chat::{RunId, SessionId},
    error::{Error, ErrorCode},
    http::{error::Refusal, outlet},
    limit::Reservation,
    meters::{Disconnect, Format, Meters, Open},
    run::Run,
};

pub mod chunk;
pub mod json;
pub(super) mod long;
pub mod sse;
pub mod text;

/// The most that is written in one go, in bytes: more than this waits in the log, which is bounded.
const PIECE: usize = 16 << 10;

/// A client who is being answered. Dropped before its answer's end, it is one that went.
struct Attended {
    meters: Arc<Meters>,
    run: Arc<Run>,
    over: bool,
    _open: Open,
}

impl Attended {
    fn begin(meters: &Arc<Meters>, format: Format, run: &Arc<Run>) -> Self {
        Self {
            meters: meters.clone(),
            run: run.clone(),
            over: false,
            _open: meters.stream(format),
        }
    }

    /// The answer has come to its end, whichever.
    fn ends(&mut self) {
        self.over = true;
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        if !self.over {
            self.meters.disconnected(match (outlet::lost(), self.run.log.spoke()) {
                (true, _) => Disconnect::Lost,
                (false, true) => Disconnect::Stream,
                (false, false) => Disconnect::FirstToken,
            });
        }
    }
}

/// The headers that say which run this is.
pub(super) fn name_run(headers: &mut HeaderMap, run: &RunId, session: Option<&SessionId>) {
    let value = |text: &str| HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    headers.insert("x-run-id", value(&run.to_string()));
    if let Some(session) = session {
        headers.insert("x-session-id", value(session.as_str()));
    }
}

/// The headers of a body that is written as it comes: nobody on the way shall keep it, change it or wait for more.
pub(super) fn streaming(headers: &mut HeaderMap, media_type: &'static str) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-transform"),
    );
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
}

/// A JSON response whose bytes are counted until they are written: `memory` is shrunk to them, and held as long as they are.
///
/// # Errors
/// A value that is no JSON.
pub(super) fn held_json(value: &impl Serialize, mut memory: Reservation) -> Result<Response, Error> {
    let bytes = serde_json::to_vec(value).map_err(Error::internal)?;
    memory.shrink_to(bytes.len());
    let mut response = Body::from(Bytes::from_owner(HeldBytes { bytes, _memory: memory })).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

struct HeldBytes {
    bytes: Vec<u8>,
    _memory: Reservation,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Whether a client takes what an endpoint writes.
///
/// # Errors
/// `not_acceptable`.
pub(super) fn acceptable(headers: &HeaderMap, media_type: &str) -> Result<(), Error> {
    let mut told = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .peekable();
    if told.peek().is_none() {
        return Ok(());
    }
    let (kind, _) = media_type.split_once('/').unwrap_or((media_type, ""));
    let admits = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or("").to_ascii_lowercase();
        let refused = parts.any(|part| part.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()) == Some(0.0));
        let fits = media == media_type || media == "*/*" || media.strip_suffix("/*") == Some(kind);
        fits && !refused
    };
    if told.flat_map(|value| value.split(',')).any(admits) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::NotAcceptable,
        format!("This endpoint writes {media_type}."),
    ))
}

/// What a client must take where the answer is JSON.
pub struct TakesJson;

impl<S: Sync> FromRequestParts<S> for TakesJson {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        acceptable(&parts.headers, "application/json")?;
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_heard() {
        let ask = |value: &str| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, value.parse().unwrap())]);
            acceptable(&headers, "text/event-stream").is_ok()
        };
        for fine in [
            "text/event-stream",
            "*/*",
            "text/*",
            "application/json, text/plain, */*",
            "a/b, TEXT/event-stream;q=0.1",
        ] {
            assert!(ask(fine), "{fine}");
        }
        for wrong in ["application/xml", "application/json", "text/event-stream;q=0", ""] {
            assert!(!ask(wrong), "{wrong}");
        }
        assert!(acceptable(&HeaderMap::new(), "text/plain").is_ok());
    }
}

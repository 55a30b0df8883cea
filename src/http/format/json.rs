//! One JSON object: the log, waited for and folded.

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};

use std::sync::Arc;

use super::{Attended, name_run};
use crate::{
    chat::Event,
    error::Error,
    http::error::Refusal,
    meters::{Format, Meters},
    run::Reader,
};

/// Waits for the run's end and answers with its result, or with what went wrong.
///
/// # Errors
/// The run's.
pub async fn respond(mut reader: Reader, meters: &Arc<Meters>) -> Result<Response, Refusal> {
    let mut client = Attended::begin(meters, Format::Json, reader.run());
    let last = reader.last().await;
    client.ends();
    let run = reader.run();
    let of_run = |error| Refusal::of_run(error, run.id, run.session_id.clone());
    match last {
        Event::Done(done) => {
            let body = serde_json::to_vec(&done.answer).map_err(|e| of_run(Error::internal(e)))?;
            let mut response = body.into_response();
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            name_run(headers, &run.id, run.session_id.as_ref());
            Ok(response)
        }
        Event::Failed(error) => Err(of_run(error)),
        other => Err(of_run(Error::internal(format!("a run's last event was {other:?}")))),
    }
}

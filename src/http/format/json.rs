//! One JSON object: the log, waited for and folded.

use axum::{
    http::{HeaderValue, header},
    response::Response,
};

use std::sync::Arc;

use super::{
    Attended,
    long::{self, LongTexts},
    name_run,
};
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
            let mut answer = done.answer;
            let texts = LongTexts::take(&mut answer);
            let response = long::respond(&answer, texts, run.clone());
            let mut response = response.map_err(of_run)?;
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            name_run(headers, &run.id, run.session_id.as_ref());
            Ok(response)
        }
        Event::Failed(error) => Err(of_run(error)),
        other => Err(of_run(Error::internal(format!("a run's last event was {other:?}")))),
    }
}

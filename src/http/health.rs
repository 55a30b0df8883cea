//! Whether the gateway lives, and whether it can take work.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::json;
use tokio::{sync::Mutex, time::Instant};

use super::{Front, error::Refusal, format};
use crate::{
    error::{Error, ErrorCode},
    run::{RelayState, Runs},
};

/// How long the store may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long what it said is believed, so that asking often costs no more than asking once.
const BELIEVED: Duration = Duration::from_secs(1);

/// What was found last.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<Option<(Instant, Result<(), Error>)>>);

impl Readiness {
    /// Whether the store, and the folder of files, can be reached and written to. Whoever asks while somebody else does
    /// waits for that answer.
    ///
    /// # Errors
    /// It cannot.
    pub async fn store(&self, runs: &Runs) -> Result<(), Error> {
        let mut last = self.0.lock().await;
        if let Some((_, found)) = last.as_ref().filter(|(at, _)| at.elapsed() < BELIEVED) {
            return found.clone();
        }
        let slow = |_| Error::new(ErrorCode::StoreUnavailable, "The store did not answer in time.");
        let asked = tokio::time::timeout(PATIENCE, runs.store.ready()).await;
        let found = asked.map_err(slow).and_then(|found| found);
        runs.meters.store_is(found.is_ok().into());
        let found = match found {
            Ok(()) => {
                let slow = |_| {
                    Error::new(
                        ErrorCode::StoreUnavailable,
                        "The folder of files did not answer in time.",
                    )
                };
                let files = tokio::time::timeout(PATIENCE, runs.files_ready()).await;
                files.map_err(slow).and_then(|found| found)
            }
            unready => unready,
        };
        let before = last.as_ref().is_none_or(|(_, found)| found.is_ok());
        if let (Err(error), true) = (&found, before) {
            tracing::warn!(%error, cause = error.causes(), "not ready");
        }
        *last = Some((Instant::now(), found.clone()));
        found
    }
}

/// `GET /healthz`: the process answers.
pub async fn alive(_: format::TakesJson) -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// `GET /readyz`: it takes runs, and can keep them. One whose runs cannot be followed at other gateways takes them all the
/// same, and says so.
pub async fn ready(_: format::TakesJson, State(front): State<Front>) -> Result<Response, Refusal> {
    if front.runs.leaving() || front.runs.draining() {
        return Err(Error::new(ErrorCode::ShuttingDown, "The gateway is going down.").into());
    }
    front.readiness.store(&front.runs).await?;
    let run_log = match front.runs.relayed() {
        None | Some(RelayState::Up) => "ok",
        Some(RelayState::NotWritable) => "not_writable",
        Some(RelayState::Unreachable) => "unreachable",
    };
    let ready = Ready {
        status: "ready",
        store: "ok",
        run_log,
        generation: front.settings.generation,
        loaded_at: super::sessions::time(front.settings.loaded_at.as_millisecond()),
    };
    Ok(Json(ready).into_response())
}

/// A promise.
#[derive(Serialize)]
struct Ready {
    status: &'static str,
    store: &'static str,
    run_log: &'static str,
    generation: u64,
    loaded_at: String,
}

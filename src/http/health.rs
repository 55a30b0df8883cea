//! Whether the gateway lives, and whether it can take work.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{Front, error::Refusal, format};
use crate::error::{Error, ErrorCode};

/// How long the store may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// `GET /healthz`: the process answers.
pub async fn alive(_: format::TakesJson) -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// `GET /readyz`: it takes runs, and can keep them.
pub async fn ready(_: format::TakesJson, State(front): State<Front>) -> Result<Response, Refusal> {
    if front.runs.draining() {
        return Err(Error::new(ErrorCode::ShuttingDown, "The gateway is going down.").into());
    }
    let slow = |_| Error::new(ErrorCode::StoreUnavailable, "The store did not answer in time.");
    tokio::time::timeout(PATIENCE, front.runs.store.ready())
        .await
        .map_err(slow)??;
    Ok(Json(json!({"status": "ready"})).into_response())
}

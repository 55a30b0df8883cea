//! The back of the house: what those who run the gateway see, on a listener of its own that no client reaches.

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::{Front, error::Refusal, health, layers};
use crate::{
    error::{Error, ErrorCode},
    telemetry,
};

/// The media type of what `text` in `meters` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of the older form, for clients that do not take that.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The paths of this listener, beside those that say whether the gateway is well.
pub const PATHS: [&str; 1] = ["/metrics"];

/// The router.
pub fn router(front: Front) -> Router {
    let [metrics_path] = PATHS;
    let router = Router::new()
        .route(metrics_path, get(metrics))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .fallback(async || Refusal::from(Error::not_found()))
        .method_not_allowed_fallback(only_get);
    layers::around_admin(router).with_state(front)
}

/// `GET /metrics`.
async fn metrics(State(front): State<Front>, headers: HeaderMap) -> Response {
    let runs = &front.runs;
    runs.take_stock();
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    runs.meters
        .process_now(tasks, telemetry::panics(), telemetry::dropped());
    let _ = front.readiness.store(runs).await; // the meters are told
    let takes = |value: &HeaderValue| {
        value
            .to_str()
            .is_ok_and(|value| value.contains("application/openmetrics-text"))
    };
    let (media_type, text) = match headers.get_all(header::ACCEPT).iter().any(takes) {
        true => (OPEN_METRICS, runs.meters.text()),
        false => (PROMETHEUS, runs.meters.prometheus_text()),
    };
    let headers = [(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-store")];
    (headers, text).into_response()
}

async fn only_get() -> impl IntoResponse {
    let message = "This listener answers GET and HEAD.";
    let error = Error::new(ErrorCode::MethodNotAllowed, message);
    ([(header::ALLOW, "GET, HEAD")], Refusal::from(error))
}

//! The front door: HTTP in, HTTP out. Every route is on this screen; no handler names a provider.

use std::sync::Arc;

use axum::{
    Router,
    http::Method,
    routing::{MethodRouter, delete, get, post},
};

use crate::{limit::Limiter, run::Runs};

mod activity;
pub mod admin;
pub mod artifacts;
pub mod auth;
pub mod body;
pub mod chat;
pub mod docs;
pub mod error;
pub mod fields;
pub mod format;
mod guarded;
pub mod health;
pub mod layers;
mod limits;
mod linger;
pub mod listen;
mod nearest;
pub mod order;
mod outlet;
pub mod query;
pub mod request_log;
pub mod runs;
mod session_events;
pub mod sessions;
mod silence;
mod ticket_binding;
pub mod tickets;

/// Paths whose GET is a stream, which is not to be started by a HEAD: that would have to throw it away.
const STREAMS: [&str; 3] = ["/chat/sse", "/runs/{run_id}/events", "/sessions/{session_id}/events"];

/// What handlers work with.
#[derive(Clone)]
pub struct Front {
    /// The runs.
    pub runs: Arc<Runs>,
    /// Whose tokens are taken.
    pub issuer: Option<Arc<auth::jwt::Issuer>>,
    /// How often callers may ask.
    pub limiter: Arc<Limiter>,
    /// How to serve.
    pub settings: Arc<FrontSettings>,
    /// Whether it can take work, as was found last.
    pub readiness: Arc<health::Readiness>,
}

/// The front door's settings.
#[derive(Clone, Debug)]
pub struct FrontSettings {
    /// The most of a request's body, in bytes.
    pub max_body: usize,
    /// How many headers a request may have.
    pub max_headers: usize,
    /// The memory that requests may take together.
    pub memory: crate::limit::MemoryBudget,
    /// How long a body may take.
    pub body_timeout: std::time::Duration,
    /// What addresses in answers begin with; may be empty.
    pub public_url: String,
    /// After how much silence a heartbeat is sent.
    pub heartbeat: std::time::Duration,
    /// What `on_disconnect: grace` means.
    pub detach_grace: std::time::Duration,
    /// Pages that may call from elsewhere: exact origins.
    pub allowed_origins: Vec<String>,
    /// Who may call.
    pub access: auth::Access,
    /// Which settings these are: 1 at the start, one more each time that they are read again.
    pub generation: u64,
    /// When they were read.
    pub loaded_at: jiff::Timestamp,
    /// The requests that have a line in the log.
    pub log_requests: request_log::LogRequests,
    /// The origins of pages that may not call, as far as they were seen.
    pub refused_origins: Arc<request_log::RefusedOrigins>,
}

/// A route: what `openapi.yaml` describes.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, `{name}` for a parameter.
    pub path: &'static str,
    handler: MethodRouter<Front>,
}

/// Every route.
#[must_use]
pub fn routes() -> Vec<Route> {
    let route = |method, path, handler| Route { method, path, handler };
    vec![
        route(Method::POST, "/chat", post(chat::json)),
        route(Method::POST, "/chat/stream", post(chat::text)),
        route(Method::POST, "/chat/sse", post(chat::sse)),
        route(Method::GET, "/chat/sse", get(chat::sse_by_query)),
        route(Method::POST, "/runs", post(runs::start)),
        route(Method::GET, "/runs/{run_id}", get(runs::look)),
        route(Method::GET, "/runs/{run_id}/events", get(runs::events)),
        route(Method::POST, "/runs/{run_id}/cancel", post(runs::cancel)),
        route(Method::POST, "/sessions", post(sessions::create)),
        route(Method::GET, "/sessions", get(sessions::list)),
        route(Method::GET, "/sessions/{session_id}", get(sessions::look)),
        route(Method::GET, "/sessions/{session_id}/messages", get(sessions::messages)),
        route(
            Method::GET,
            "/sessions/{session_id}/events",
            get(session_events::follow),
        ),
        route(Method::DELETE, "/sessions/{session_id}", delete(sessions::erase)),
        route(Method::GET, "/agents", get(runs::agents)),
        route(Method::GET, "/artifacts/{artifact_id}", get(artifacts::download)),
        route(Method::POST, "/tickets", post(tickets::issue)),
        route(Method::GET, "/healthz", get(health::alive)),
        route(Method::GET, "/readyz", get(health::ready)),
        route(Method::GET, "/openapi.yaml", get(docs::yaml)),
        route(Method::GET, "/openapi.json", get(docs::json)),
        route(Method::GET, "/docs", get(docs::page)),
    ]
}

/// The router, with everything around it.
pub fn router(front: Front) -> Router {
    let mut router = Router::new();
    for Route { method, path, handler } in routes() {
        let stream = method == Method::GET && STREAMS.contains(&path);
        let handler = if stream {
            handler.head(error::method_not_allowed)
        } else {
            handler
        };
        router = router.route(path, handler);
    }
    let router = router
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed);
    layers::around(router, &front).with_state(front)
}

/// The methods that a path takes. `OPTIONS` is answered everywhere, by the layer that knows CORS.
fn methods(path: &str) -> String {
    let mut all = Vec::new();
    for route in routes().into_iter().filter(|route| route.path == path) {
        all.push(route.method.clone());
        if route.method == Method::GET && !STREAMS.contains(&path) {
            all.push(Method::HEAD);
        }
    }
    all.push(Method::OPTIONS);
    all.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")
}

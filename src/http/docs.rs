//! The contract, for machines and people.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use base64::Engine as _;

use super::{error::Refusal, format};
use crate::error::Error;

/// The contract as OpenAPI: what `sluicegate openapi` prints.
pub const OPENAPI: &str = include_str!("../../openapi.yaml");
const PAGE: &str = include_str!("docs.html");

/// What the page may do: run its own script and style, known by their digests, and call this gateway.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let (script, style) = (digest_of("script"), digest_of("style"));
    let policy = format!(
        "default-src 'none'; style-src '{style}'; script-src '{script}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// The digest of the page's one element of this name, as a policy names it.
fn digest_of(element: &str) -> String {
    let inner = PAGE
        .split_once(&format!("<{element}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    let text = inner.map_or("", |(text, _)| text);
    let digest = digest(&SHA256, text.as_bytes());
    format!(
        "sha256-{}",
        base64::engine::general_purpose::STANDARD.encode(digest.as_ref())
    )
}

/// The same as JSON.
static OPENAPI_JSON: LazyLock<Result<String, String>> = LazyLock::new(|| {
    let value: serde_json::Value = serde_saphyr::from_str(OPENAPI).map_err(|e| e.to_string())?;
    serde_json::to_string(&value).map_err(|e| e.to_string())
});

/// `GET /openapi.yaml`.
pub async fn yaml(headers: HeaderMap) -> Result<Response, Refusal> {
    format::acceptable(&headers, "application/yaml")?;
    Ok(typed("application/yaml; charset=utf-8", OPENAPI))
}

/// `GET /openapi.json`.
pub async fn json(_: format::TakesJson) -> Result<Response, Refusal> {
    match &*OPENAPI_JSON {
        Ok(json) => Ok(typed("application/json", json)),
        Err(error) => Err(Error::internal(error.clone()).into()),
    }
}

/// `GET /docs`: a page of its own, which loads nothing from anywhere.
pub async fn page(headers: HeaderMap) -> Result<Response, Refusal> {
    format::acceptable(&headers, "text/html")?;
    let mut response = typed("text/html; charset=utf-8", PAGE);
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// `GET /`, for a browser: the way to the page. `None` for others, to whom there is nothing here.
pub(super) fn way_to_page(request: &Parts) -> Option<Response> {
    let reads = matches!(request.method, Method::GET | Method::HEAD) && request.uri.path() == "/";
    let mut accept = request.headers.get_all(header::ACCEPT).iter();
    let html = accept.any(|value| value.to_str().is_ok_and(|value| value.contains("text/html")));
    (reads && html).then(|| (StatusCode::SEE_OTHER, [(header::LOCATION, "/docs")]).into_response())
}

fn typed(media_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(media_type))], text).into_response()
}

//! The contract, for machines and people.

use axum::{
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use std::sync::LazyLock;

use super::{error::Refusal, format};
use crate::error::Error;

/// The contract as OpenAPI: what `sluicegate openapi` prints.
pub const OPENAPI: &str = include_str!("../../openapi.yaml");
const PAGE: &str = include_str!("docs.html");

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
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

fn typed(media_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(media_type))], text).into_response()
}

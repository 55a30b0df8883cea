//! Anthropic's errors to ours, as statuses and inside a stream.

use reqwest::header::HeaderMap;
use serde_json::Value;

use crate::provider::{ProviderError, error::Kind, retry};

/// What a status other than 200 means. A body from the network before the API (413, 502, …) is HTML. The headers
/// `anthropic-ratelimit-…-reset` name when a limit is whole again, which is later than asking again makes sense.
pub(super) fn refusal(status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
    let told = reported(&serde_json::from_slice(body).unwrap_or(Value::Null));
    let final_word = headers.get("x-should-retry").is_some_and(|value| value == "false");
    let kind = match (status, told.kind) {
        (400 | 413, Kind::ContextTooLong) => Kind::ContextTooLong,
        (400 | 429, Kind::Quota) => Kind::Quota,
        (429, _) if final_word => Kind::Quota,
        _ => Kind::of_status(status),
    };
    let retry_after = retry::told_delay(headers);
    ProviderError {
        kind,
        retry_after,
        ..told
    }
    .with_status(status)
}

/// An error object, or what has one in its `error`.
pub(super) fn reported(told: &Value) -> ProviderError {
    let error = told.get("error").unwrap_or(told);
    let word = |name: &str| match error.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let (code, kind, message) = (word("code"), word("type"), word("message"));
    let says = |what: &str| message.contains(what);
    let found = match kind.as_str() {
        "overloaded_error" => Kind::Overloaded,
        "rate_limit_error" => Kind::RateLimited,
        "api_error" | "timeout_error" => Kind::Server,
        "billing_error" => Kind::Quota,
        "authentication_error" | "permission_error" => Kind::Auth,
        "not_found_error" => Kind::NotFound,
        // Only their sentence tells these from any other wrong request.
        "invalid_request_error" if says("prompt is too long") || says("exceed context limit") => Kind::ContextTooLong,
        "invalid_request_error" if says("credit balance is too low") || says("API usage limits") => Kind::Quota,
        "invalid_request_error" | "request_too_large" => Kind::Rejected,
        // From what stands before the API: the code of a status, if anything.
        _ => code
            .parse()
            .ok()
            .filter(|status| *status >= 400)
            .map_or(Kind::Reported, Kind::of_status),
    };
    // Their sentence may repeat our key or the user's words, so it stays out of the log; their codes are kept.
    let codes: Vec<&str> = [code.as_str(), kind.as_str()]
        .into_iter()
        .filter(|word| is_code(word))
        .collect();
    ProviderError::new(found, codes.join(", "))
}

/// Whether it is one of their words, and not a sentence.
pub(super) fn is_code(word: &str) -> bool {
    (1..=64).contains(&word.len())
        && word
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn statuses_have_their_kinds() {
        let none = HeaderMap::new();
        for (status, kind, message, expected, again) in [
            (400, "invalid_request_error", "max_tokens: 9 > 8", Kind::Rejected, false),
            (
                400,
                "invalid_request_error",
                "prompt is too long: 9 tokens > 8 maximum",
                Kind::ContextTooLong,
                false,
            ),
            (
                400,
                "invalid_request_error",
                "input length and `max_tokens` exceed context limit: 7 + 9 > 8",
                Kind::ContextTooLong,
                false,
            ),
            (
                400,
                "invalid_request_error",
                "Your credit balance is too low to access",
                Kind::Quota,
                false,
            ),
            (401, "authentication_error", "invalid x-api-key", Kind::Auth, false),
            (402, "billing_error", "", Kind::Quota, false),
            (403, "permission_error", "", Kind::Auth, false),
            (404, "not_found_error", "model: x", Kind::NotFound, false),
            (408, "", "", Kind::Reported, true),
            (409, "", "", Kind::Reported, true),
            (413, "request_too_large", "", Kind::Rejected, false),
            (429, "rate_limit_error", "", Kind::RateLimited, true),
            (500, "api_error", "", Kind::Server, true),
            (504, "timeout_error", "", Kind::Server, true),
            (529, "overloaded_error", "Overloaded", Kind::Overloaded, true),
            (302, "", "", Kind::Protocol, false),
        ] {
            let body = json!({"type": "error", "error": {"type": kind, "message": message}}).to_string();
            let error = refusal(status, &none, body.as_bytes());
            assert_eq!((error.kind, error.retryable()), (expected, again), "{status} {message}");
            assert_eq!((error.status, error.detail.as_str()), (Some(status), kind));
        }
    }

    #[test]
    fn a_page_of_the_network_before_the_api_counts_by_its_status() {
        let page = b"<html><head><title>413 Request Entity Too Large</title></head></html>";
        for (status, expected) in [
            (413, Kind::Rejected),
            (429, Kind::RateLimited),
            (502, Kind::Server),
            (529, Kind::Overloaded),
        ] {
            let error = refusal(status, &HeaderMap::new(), page);
            assert_eq!((error.kind, error.detail.as_str()), (expected, ""), "{status}");
        }
    }

    #[test]
    fn the_headers_say_when_to_ask_again_and_whether() {
        let body = br#"{"type":"error","error":{"type":"rate_limit_error","message":"m"}}"#;
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "34".parse().unwrap());
        headers.insert("x-should-retry", "true".parse().unwrap());
        let error = refusal(429, &headers, body);
        assert_eq!(
            (error.kind, error.retry_after),
            (Kind::RateLimited, Some(Duration::from_secs(34)))
        );
        headers.insert("x-should-retry", "false".parse().unwrap());
        assert!(!refusal(429, &headers, body).retryable());
    }
}

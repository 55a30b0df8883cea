//! The errors that the API reports: as a refusal, as an event, and as a failed response.

use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::Value;

use crate::provider::{ProviderError, error::Kind, retry};

/// What a status other than 200 means.
pub(super) fn refusal(status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
    let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let told = reported(body.get("error").unwrap_or(&body));
    let kind = match (status, told.kind) {
        (_, Kind::ContextTooLong | Kind::Quota) => told.kind,
        (400, Kind::NotFound) => Kind::NotFound,
        _ => Kind::of_status(status),
    };
    let retry_after = retry::told_delay(headers).or(told.retry_after);
    ProviderError {
        kind,
        retry_after,
        ..told
    }
    .with_status(status)
}

/// An error object, wherever it stood: in an event or beside one, in a response, in a refusal.
pub(super) fn reported(error: &Value) -> ProviderError {
    let word = |name: &str| match error.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    };
    let (code, kind, param, message) = (word("code"), word("type"), word("param"), word("message"));
    let says = |words: &[&str]| words.contains(&code.as_str()) || words.contains(&kind.as_str());
    let found = if says(&["context_length_exceeded"])
        || message.contains("maximum context length")
        || message.contains("exceeds the context window")
    {
        Kind::ContextTooLong
    } else if says(&["insufficient_quota", "billing_hard_limit_reached", "billing_not_active"]) {
        Kind::Quota
    } else if says(&["rate_limit_exceeded", "too_many_requests", "RateLimitReached", "429"]) {
        Kind::RateLimited
    } else if says(&[
        "server_is_overloaded",
        "server_overloaded",
        "overloaded_error",
        "slow_down",
        "503",
        "529",
    ]) {
        Kind::Overloaded
    } else if says(&[
        "server_error",
        "internal_server_error",
        "internal_error",
        "api_error",
        "500",
        "502",
        "504",
    ]) {
        Kind::Server
    } else if says(&[
        "invalid_api_key",
        "authentication_error",
        "permission_error",
        "401",
        "403",
    ]) {
        Kind::Auth
    } else if says(&["model_not_found", "DeploymentNotFound", "404"]) {
        Kind::NotFound
    } else if says(&["invalid_request_error", "invalid_prompt", "content_filter"]) {
        Kind::Rejected
    } else {
        Kind::Reported
    };
    // Their sentence may repeat our key or the user's words, so it stays out of the log; their codes are kept.
    let codes: Vec<&str> = [code.as_str(), kind.as_str(), param.as_str()]
        .into_iter()
        .filter(|text| is_code(text))
        .collect();
    ProviderError {
        retry_after: matches!(found, Kind::RateLimited | Kind::Overloaded)
            .then(|| delay_in_words(&message))
            .flatten(),
        ..ProviderError::new(found, codes.join(", "))
    }
}

/// A word of theirs that can hold neither a key nor what somebody said: letters alone, or a status.
pub(super) fn is_code(text: &str) -> bool {
    let status = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
    let word = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphabetic() || matches!(b, b'_' | b'.'));
    status || word
}

/// Inside a stream there is no header, but the sentence names a delay: "Please try again in 1.3s", "6m0s", "35 seconds".
fn delay_in_words(message: &str) -> Option<Duration> {
    let message = message.to_ascii_lowercase();
    let (_, mut rest) = message
        .split_once("try again in ")
        .or_else(|| message.split_once("retry after "))?;
    let mut delay = None;
    loop {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let Ok(number) = rest[..end].parse::<f64>() else {
            return delay;
        };
        rest = rest[end..].trim_start();
        let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "ms" | "milliseconds" => number / 1000.0,
            "s" | "second" | "seconds" => number,
            "m" | "minute" | "minutes" => number * 60.0,
            "h" | "hour" | "hours" => number * 3600.0,
            _ => return delay,
        };
        let more = Duration::try_from_secs_f64(seconds).ok()?;
        delay = Some(delay.unwrap_or(Duration::ZERO).saturating_add(more));
        rest = &rest[end..];
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statuses_have_their_kinds() {
        let none = HeaderMap::new();
        let body = |code: &str| json!({"error": {"message": "m", "type": "t", "code": code}}).to_string();
        for (status, code, kind, again) in [
            (400, "unsupported_parameter", Kind::Rejected, false),
            (400, "content_filter", Kind::Rejected, false),
            (400, "model_not_found", Kind::NotFound, false),
            (400, "context_length_exceeded", Kind::ContextTooLong, false),
            (401, "401", Kind::Auth, false),
            (403, "", Kind::Auth, false),
            (404, "DeploymentNotFound", Kind::NotFound, false),
            (408, "", Kind::Reported, true),
            (409, "", Kind::Reported, true),
            (413, "", Kind::Rejected, false),
            (422, "", Kind::Rejected, false),
            (429, "RateLimitReached", Kind::RateLimited, true),
            (429, "insufficient_quota", Kind::Quota, false),
            (500, "", Kind::Server, true),
            (502, "", Kind::Server, true),
            (503, "", Kind::Overloaded, true),
            (302, "", Kind::Protocol, false),
        ] {
            let error = refusal(status, &none, body(code).as_bytes());
            assert_eq!((error.kind, error.retryable()), (kind, again), "{status} {code}");
        }
        assert_eq!(refusal(502, &none, b"<html>").kind, Kind::Server);
    }

    #[test]
    fn the_header_s_delay_goes_before_the_sentence_s() {
        let body = br#"{"error":{"code":"rate_limit_exceeded","message":"Please try again in 7s."}}"#;
        let mut headers = HeaderMap::new();
        assert_eq!(refusal(429, &headers, body).retry_after, Some(Duration::from_secs(7)));
        headers.insert("retry-after-ms", "1500".parse().unwrap());
        headers.insert("retry-after", "20".parse().unwrap());
        assert_eq!(
            refusal(429, &headers, body).retry_after,
            Some(Duration::from_millis(1500))
        );
    }

    #[test]
    fn a_delay_is_read_out_of_a_sentence() {
        for (words, millis) in [
            (
                "Rate limit reached on requests per min. Please try again in 1.3s. Visit …",
                Some(1300),
            ),
            ("Please try again in 28ms.", Some(28)),
            ("Please try again in 6m0s.", Some(360_000)),
            ("Please retry after 35 seconds.", Some(35_000)),
            ("Please try again in a while.", None),
            ("Please try again in 7 parsecs", None),
            ("Please try again in 99999999999999999999999999h", None),
            ("Slow down.", None),
        ] {
            assert_eq!(delay_in_words(words), millis.map(Duration::from_millis), "{words}");
        }
    }

    #[test]
    fn their_sentences_stay_out_of_the_log() {
        let error = json!({
            "type": "invalid_request_error", "code": "sk-abc123", "param": "include",
            "message": "Incorrect API key provided: sk-abc123",
        });
        assert_eq!(reported(&error).detail, "invalid_request_error, include");
    }
}

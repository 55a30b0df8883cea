//! Gemini's errors: google.rpc.Status, as the body of a status or inside a stream.

use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::Value;

use crate::provider::{ProviderError, error::Kind, retry};

/// What a status other than 200 means. The body is an error object, or an array of one.
pub(super) fn refusal(status: u16, headers: &HeaderMap, body: &[u8]) -> ProviderError {
    let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let body = body.get(0).unwrap_or(&body);
    let told = reported(body.get("error").unwrap_or(&Value::Null));
    let kind = match (status, told.kind) {
        (400.., kind @ (Kind::ContextTooLong | Kind::Auth)) if status < 429 => kind,
        (429, Kind::Quota) => Kind::Quota,
        (499, _) => Kind::Reported,
        _ => Kind::of_status(status),
    };
    ProviderError {
        kind,
        retry_after: retry::told_delay(headers).or(told.retry_after),
        ..told
    }
    .with_status(status)
}

/// An error object (google.rpc.Status), wherever it stood.
pub(super) fn reported(error: &Value) -> ProviderError {
    let text = |value: &'_ Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let (status, message) = (text(error, "status"), text(error, "message"));
    let code = error.get("code").and_then(Value::as_u64).unwrap_or(0);
    let details = error
        .get("details")
        .and_then(Value::as_array)
        .map_or(&[] as &[Value], Vec::as_slice);
    let reason = details
        .iter()
        .map(|d| text(d, "reason"))
        .find(|r| is_word(r))
        .unwrap_or_default();
    let a_day_is_over = |quota: &Value| text(quota, "quotaId").contains("PerDay");
    let mut violations = details.iter().filter_map(|d| d.get("violations")?.as_array()).flatten();
    let used_up = violations.any(a_day_is_over);

    let kind = match (status.as_str(), code) {
        _ if reason.starts_with("API_KEY_") => Kind::Auth, // a wrong key is INVALID_ARGUMENT
        _ if message.contains("exceeds the maximum number of tokens") => Kind::ContextTooLong,
        ("RESOURCE_EXHAUSTED", _) | ("", 429) if used_up => Kind::Quota,
        ("RESOURCE_EXHAUSTED", _) | ("", 429) => Kind::RateLimited,
        ("UNAVAILABLE", _) | ("", 503) => Kind::Overloaded,
        ("INTERNAL" | "UNKNOWN" | "DEADLINE_EXCEEDED" | "DATA_LOSS", _) | ("", 500..) => Kind::Server,
        ("UNAUTHENTICATED" | "PERMISSION_DENIED", _) | ("", 401 | 403) => Kind::Auth,
        ("NOT_FOUND", _) | ("", 404) => Kind::NotFound,
        ("INVALID_ARGUMENT" | "FAILED_PRECONDITION" | "OUT_OF_RANGE", _) | ("", 400) => Kind::Rejected,
        _ => Kind::Reported,
    };
    // Their sentence may repeat our key or the user's words, so it stays out of the log; their codes are kept.
    let words: Vec<&str> = [status.as_str(), &reason].into_iter().filter(|w| is_word(w)).collect();
    let delay = details
        .iter()
        .filter_map(|d| d.get("retryDelay")?.as_str())
        .find_map(seconds);
    ProviderError {
        retry_after: delay,
        ..ProviderError::new(kind, words.join(", "))
    }
}

/// `google.protobuf.Duration` in JSON: `48.9s`.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}

/// Whether it is a word of theirs, as opposed to a sentence.
pub(super) fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(status: &str, message: &str, details: &str) -> String {
        format!(r#"{{"error":{{"code":1,"message":"{message}","status":"{status}","details":[{details}]}}}}"#)
    }

    #[test]
    fn statuses_have_their_kinds() {
        let bad_key = r#"{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}"#;
        let a_day = r#"{"violations":[{"quotaId":"GenerateRequestsPerDayPerProjectPerModel"}]},{"retryDelay":"3s"}"#;
        let a_minute = r#"{"violations":[{"quotaId":"GenerateRequestsPerMinutePerProjectPerModel"}]}"#;
        let long = "The input token count (9) exceeds the maximum number of tokens allowed (8).";
        for (status, body, kind, again) in [
            (400, body("INVALID_ARGUMENT", "", bad_key), Kind::Auth, false),
            (400, body("INVALID_ARGUMENT", "no", ""), Kind::Rejected, false),
            (400, body("INVALID_ARGUMENT", long, ""), Kind::ContextTooLong, false),
            (400, body("FAILED_PRECONDITION", "", ""), Kind::Rejected, false),
            (401, body("UNAUTHENTICATED", "", ""), Kind::Auth, false),
            (403, body("PERMISSION_DENIED", "", ""), Kind::Auth, false),
            (404, body("NOT_FOUND", "", ""), Kind::NotFound, false),
            (413, "<html>".into(), Kind::Rejected, false),
            (429, body("RESOURCE_EXHAUSTED", "", a_minute), Kind::RateLimited, true),
            (429, body("RESOURCE_EXHAUSTED", "", a_day), Kind::Quota, false),
            (429, String::new(), Kind::RateLimited, true),
            (500, body("INTERNAL", "", ""), Kind::Server, true),
            (503, body("UNAVAILABLE", "", ""), Kind::Overloaded, true),
            (504, body("DEADLINE_EXCEEDED", "", ""), Kind::Server, true),
            (302, String::new(), Kind::Protocol, false),
        ] {
            for body in [body.clone(), format!("[{body}]")] {
                let error = refusal(status, &HeaderMap::new(), body.as_bytes());
                assert_eq!((error.kind, error.retryable()), (kind, again), "{status} {body}");
                assert_eq!(error.status, Some(status));
            }
        }
    }

    #[test]
    fn a_delay_is_told_by_the_header_or_by_the_details() {
        let body = body(
            "RESOURCE_EXHAUSTED",
            "Please retry in 48.9s.",
            r#"{"retryDelay":"48.5s"}"#,
        );
        let mut headers = HeaderMap::new();
        let told = |headers: &HeaderMap, body: &str| refusal(429, headers, body.as_bytes()).retry_after;
        assert_eq!(told(&headers, &body), Some(Duration::from_millis(48_500)));
        headers.insert("retry-after", "2".parse().unwrap());
        assert_eq!(told(&headers, &body), Some(Duration::from_secs(2)));
        for none in ["-1s", "5", "NaNs", "1e300s", ""] {
            let body = body.replace("48.5s", none);
            assert_eq!(told(&HeaderMap::new(), &body), None, "{none}");
        }
    }

    #[test]
    fn what_they_say_stays_out_of_the_log() {
        let info = r#"{"reason":"API_KEY_INVALID"}"#;
        let error = refusal(
            400,
            &HeaderMap::new(),
            body("INVALID_ARGUMENT", "key AIza is bad", info).as_bytes(),
        );
        assert_eq!(error.detail, "INVALID_ARGUMENT, API_KEY_INVALID");
        let odd = refusal(400, &HeaderMap::new(), body("a sentence", "m", "").as_bytes());
        assert_eq!(odd.detail, "");
    }
}

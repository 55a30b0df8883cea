//! How often a caller may ask, as HTTP says it: who is counted for what, and the headers that tell.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    extract::MatchedPath,
    http::{HeaderMap, HeaderName, HeaderValue, Method, request::Parts},
};

use super::{Front, auth::Caller};
use crate::{
    error::Error,
    limit::{Errand, MINUTE, Standing},
};

/// How the caller of a request stands, once it is known: a handler's extractor writes it, the outermost layer reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<OnceLock<Standing>>);

/// Counts a request of a caller who is known, if it has a limit. What is refused later has been counted.
///
/// # Errors
/// `rate_limited`.
pub(super) async fn count(caller: &Caller, parts: &Parts, front: &Front) -> Result<(), Error> {
    counted(caller, errand(parts), parts, front).await
}

/// Counts a request that comes with a ticket. What the ticket is for was asked for when it was made; but who tries it again
/// and again is to have a bound.
///
/// # Errors
/// `rate_limited`.
pub(super) async fn count_ticket(caller: &Caller, parts: &Parts, front: &Front) -> Result<(), Error> {
    counted(caller, Errand::Return, parts, front).await
}

async fn counted(caller: &Caller, errand: Errand, parts: &Parts, front: &Front) -> Result<(), Error> {
    if caller.requests_per_minute == 0 {
        return Ok(());
    }
    let verdict = front
        .limiter
        .admit(&caller.principal, caller.requests_per_minute, errand)
        .await?;
    if let Some(told) = parts.extensions.get::<Told>() {
        let _ = told.0.set(verdict.standing);
    }
    verdict.outcome
}

/// What a request comes for. Whether a stream is gone on with is decided as the handler decides it, or a request that
/// starts a run could pass for one that reads on.
fn errand(parts: &Parts) -> Errand {
    let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let returns = match path {
        "/runs/{run_id}/cancel" => true,
        "/runs/{run_id}/events" | "/sessions/{session_id}/events" => parts.method == Method::GET,
        "/chat/sse" => reads_on(&parts.headers, parts.uri.query().unwrap_or("")),
        _ => false,
    };
    if returns { Errand::Return } else { Errand::Ask }
}

/// Whether a request names the last event that it has, in a header or in the query; where there is nothing, nothing is named.
fn reads_on(headers: &HeaderMap, query: &str) -> bool {
    headers.get("last-event-id").is_some_and(|id| !id.is_empty())
        || query
            .split('&')
            .any(|pair| matches!(pair.split_once('='), Some(("last_event_id" | "lastEventId", id)) if !id.is_empty()))
}

/// Says how the caller stands, if that is known: in the three headers that most clients read, and in the two that
/// draft-ietf-httpapi-ratelimit-headers-11 (23 May 2026) has instead of them.
pub(super) fn tell(told: &Told, headers: &mut HeaderMap) {
    let Some(Standing {
        limit,
        remaining,
        reset,
    }) = told.0.get()
    else {
        return;
    };
    let reset = seconds(*reset);
    let mut say = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    say("ratelimit-limit", limit.to_string());
    say("ratelimit-remaining", remaining.to_string());
    say("ratelimit-reset", reset.to_string());
    say(
        "ratelimit-policy",
        format!("\"default\";q={limit};w={}", MINUTE.as_secs()),
    );
    say("ratelimit", format!("\"default\";r={remaining};t={reset}"));
}

/// In whole seconds, rounded up: who comes a moment early is refused.
fn seconds(time: Duration) -> u128 {
    time.as_millis().div_ceil(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_on_is_known_as_the_handler_knows_it() {
        let ask = |header: Option<&'static str>, query: &str| {
            let headers = header.map(|id| (HeaderName::from_static("last-event-id"), HeaderValue::from_static(id)));
            reads_on(&HeaderMap::from_iter(headers), query)
        };
        assert!(ask(Some("x:1"), ""));
        assert!(ask(None, "format=json&last_event_id=x%3A1"));
        assert!(ask(None, "format=json&lastEventId=x%3A1"));
        assert!(ask(Some("x:1"), "last_event_id="));
        for starts in [
            "",
            "last_event_id",
            "last_event_id=",
            "message=last_event_id=x",
            "Last_Event_Id=x",
        ] {
            assert!(!ask(None, starts), "{starts}");
        }
        assert!(
            ask(Some(""), "last_event_id=x%3A1"),
            "an empty header says nothing, and the query something"
        );
        assert!(!ask(Some(""), "last_event_id="));
    }

    #[test]
    fn a_standing_is_said_in_whole_seconds() {
        let told = Told::default();
        let mut headers = HeaderMap::new();
        tell(&told, &mut headers);
        assert!(headers.is_empty());
        let (limit, remaining, reset) = (60, 7, Duration::from_millis(30_001));
        told.0
            .set(Standing {
                limit,
                remaining,
                reset,
            })
            .unwrap();
        tell(&told, &mut headers);
        let said: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(
            said,
            [
                ("ratelimit-limit", "60"),
                ("ratelimit-remaining", "7"),
                ("ratelimit-reset", "31"),
                ("ratelimit-policy", "\"default\";q=60;w=60"),
                ("ratelimit", "\"default\";r=7;t=31"),
            ]
        );
    }
}

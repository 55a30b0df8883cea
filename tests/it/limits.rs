//! How much callers may ask for: so often, so much at a time; and what the gateway refuses when it has enough to do, while
//! what it has begun goes on.

mod at_a_time;
mod in_a_fleet;
mod overload;
mod rate;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluicegate::http::auth::keys::generate;

use super::house::*;

/// A caller's key, and what the configuration says of it.
struct Key {
    key: String,
    toml: String,
}

impl Key {
    /// A new one, with these lines more.
    fn of(name: &str, lines: &str) -> Self {
        let (key, sha256) = generate().unwrap();
        let toml = format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\n{lines}\n");
        Self { key, toml }
    }

    fn on(&self, call: Call) -> Call {
        call.header("Authorization", &format!("Bearer {}", self.key))
    }

    async fn get(&self, place: &impl Place, path: &str) -> Response {
        self.on(Call::get(path)).to(place).await
    }

    async fn post(&self, place: &impl Place, path: &str, body: Value) -> Response {
        self.on(Call::post(path).json(&body)).to(place).await
    }

    /// Starts a run over SSE, and reads until it has begun.
    async fn begin(&self, place: &impl Place, body: Value) -> (Response, String) {
        let mut stream = self.post(place, "/chat/sse", body).await.expect(200).await;
        stream.next_event_named("start").await;
        let run = stream.header("x-run-id").to_owned();
        (stream, run)
    }
}

fn hi() -> Value {
    json!({"message": "Hi"})
}

/// An upstream that says a word, and the next one when the gate opens.
async fn held(gate: &Gate) -> Upstream {
    Upstream::always(Script::sse().role().say("Hel").wait(gate).say("lo").complete()).await
}

/// Asserts that this is a refusal with a code and a time to come back, and gives that time.
async fn refused(answer: Response, status: u16, code: &str) -> u64 {
    let answer = answer.expect(status).await;
    let wait: u64 = answer.header("retry-after").parse().expect("whole seconds");
    let problem = answer.problem_object().await;
    assert_eq!((&problem["code"], &problem["retryable"]), (&json!(code), &json!(true)));
    assert_eq!(problem["retry_after"], wait);
    assert!(wait >= 1, "{wait}");
    wait
}

/// What the headers say: the limit, how many are left, and in how many seconds there is one more.
fn standing(answer: &Response) -> (u64, u64, u64) {
    let number = |name: &str| answer.header(name).parse::<u64>().expect("a number");
    let (limit, left, reset) = (
        number("ratelimit-limit"),
        number("ratelimit-remaining"),
        number("ratelimit-reset"),
    );
    assert_eq!(answer.header("ratelimit-policy"), format!("\"default\";q={limit};w=60"));
    assert_eq!(answer.header("ratelimit"), format!("\"default\";r={left};t={reset}"));
    (limit, left, reset)
}

//! Several gateways, the real program each, on one PostgreSQL database and one Redis: whoever is asked gives the same
//! answer, whoever dies, and whatever becomes of Redis.

mod at_random;
mod behind_nginx;
mod clocks;
mod crowd;
mod erased;
mod followed;
mod frozen;
mod in_a_browser;
mod in_line;
mod killed;
mod refusing;
mod stopped;
mod without_redis;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::house::redis::{Redis, shared};
use super::house::*;
use crate::stores::Database;

/// Gateways that share what is kept, and tell each other what their runs do.
struct Fleet {
    gateways: Vec<Process>,
    database: Database,
    /// The variables that they were started with.
    env: Vec<(String, String)>,
}

impl std::ops::Deref for Fleet {
    type Target = [Process];

    fn deref(&self) -> &[Process] {
        &self.gateways
    }
}

/// A lease that a story can wait for, and that outlasts a moment in which the machine does something else.
const LEASE: &str = "lease=3s";

impl Fleet {
    /// So many gateways, on the Redis that is there for all.
    async fn of(count: usize, upstream: &Upstream, settings: &[(&str, &str)]) -> Option<Self> {
        Self::on(&shared()?, LEASE, count, upstream, settings).await
    }

    /// So many gateways on this Redis, with further settings, as `("RUNS__DRAIN", "1s")`.
    async fn on(
        redis: &str,
        lease: &str,
        count: usize,
        upstream: &Upstream,
        settings: &[(&str, &str)],
    ) -> Option<Self> {
        let database = Database::make().await?;
        let mut env = vec![
            ("OPENAI_API_KEY".to_owned(), "test-key".to_owned()),
            ("OPENAI_BASE_URL".to_owned(), upstream.base_url()),
            ("SLUICEGATE_MODEL".to_owned(), "openai/test-model".to_owned()),
            ("SLUICEGATE__STORE__URL".to_owned(), database.url(lease)),
            ("SLUICEGATE__RUN_LOG__URL".to_owned(), redis.to_owned()),
        ];
        let more = settings.iter();
        env.extend(more.map(|(name, value)| (format!("SLUICEGATE__{name}"), (*value).to_owned())));
        let plain: Vec<_> = env.iter().map(|(name, value)| (&**name, &**value)).collect();
        let gateways = join_all((0..count).map(|_| Process::start(&plain, &[]))).await;
        Some(Self {
            gateways,
            database,
            env,
        })
    }
}

/// A provider that says two words to everybody, and a third one to "finish", behind the gate.
async fn who_finishes_or_hangs(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::answering(move |request| {
        let begun = Script::sse().role().say("one ").say("two ");
        match question(request).as_str() {
            "finish" => begun.wait(&gate).say("three").complete(),
            _ => begun.hang(),
        }
    })
    .await
}

fn events(run: &str) -> Call {
    Call::get(&format!("/runs/{run}/events"))
}

/// The answer to a call that follows a run. What is not known yet where it is asked, or not to be heard, may be a moment later.
async fn followed(call: Call, place: &impl Place) -> Response {
    let answer = eventually("a run to be followed", async || {
        Some(call.clone().to(place).await).filter(|answer| answer.status != 503)
    });
    answer.await.expect(200).await
}

fn after(run: &str, seq: u64) -> Call {
    events(run).header("Last-Event-ID", &format!("{run}:{seq}"))
}

async fn glance(gateway: &impl Place, run: &str) -> Value {
    get(gateway, &format!("/runs/{run}"))
        .await
        .expect(200)
        .await
        .json()
        .await
}

async fn cancel(gateway: &impl Place, run: &str) -> Response {
    Call::post(&format!("/runs/{run}/cancel")).to(gateway).await
}

/// The content of all messages of a session.
async fn said(gateway: &impl Place, session: &str) -> Vec<String> {
    let page = get(gateway, &format!("/sessions/{session}/messages?limit=200")).await;
    let page = page.expect(200).await.json().await;
    let messages = page["messages"].as_array().expect("messages").iter();
    messages
        .map(|message| message["content"].as_str().expect("text").to_owned())
        .collect()
}

fn question(request: &Request) -> String {
    let messages = request.json["messages"].as_array().expect("messages");
    messages.last().expect("a question")["content"]
        .as_str()
        .expect("text")
        .to_owned()
}

/// Says two words, and the third one when the gate opens.
async fn held(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::answering(move |_| {
        let script = Script::sse().role().say("one ").say("two ").wait(&gate);
        script.say("three").complete()
    })
    .await
}

/// Starts a run over SSE, and reads until it has said `two`.
async fn begin(gateway: &impl Place, body: Value) -> (Response, String) {
    let mut stream = post(gateway, "/chat/sse", body).await.expect(200).await;
    stream.next_event_named("token").await;
    assert_eq!(stream.next_event_named("token").await.seq, 2);
    let run = stream.header("x-run-id").to_owned();
    (stream, run)
}

fn hi(session: &str) -> Value {
    json!({"message": "Hi", "session_id": session})
}

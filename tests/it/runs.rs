//! Runs and coming back to them: resuming at every place, several readers, slow ones, cancelling, leaving, keys, limits.

mod cancelling;
mod keys;
mod leaving;
mod looking;
mod readers;
mod resuming;
mod shedding;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use serde_json::{Value, json};

use super::house::*;

/// Runs every row of a table, and fails with the names of all that failed.
async fn every_row<F: Future<Output = ()>>(rows: impl IntoIterator<Item = (String, F)>) {
    let mut failed = Vec::new();
    for (name, row) in rows {
        if AssertUnwindSafe(row).catch_unwind().await.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "rows that failed: {failed:#?}");
}

/// `GET /runs/{id}`.
async fn glance(gateway: &impl Place, run: &str) -> Value {
    get(gateway, &format!("/runs/{run}"))
        .await
        .expect(200)
        .await
        .json()
        .await
}

/// Waits until the run has ended, and gives it.
async fn ended(gateway: &impl Place, run: &str) -> Value {
    eventually(format_args!("the end of the run {run}"), async || {
        Some(glance(gateway, run).await).filter(|run| run["status"] != "running")
    })
    .await
}

/// Starts a run and leaves it; gives its id.
async fn begin(gateway: &impl Place, body: Value) -> String {
    let started = post(gateway, "/runs", body).await.expect(202).await.json().await;
    text(&started, "run_id").to_owned()
}

fn text<'a>(object: &'a Value, member: &str) -> &'a str {
    object[member]
        .as_str()
        .unwrap_or_else(|| panic!("no {member} in {object}"))
}

/// The session's messages as `(role, content, status)`.
async fn said(gateway: &impl Place, session: &str) -> Vec<(String, String, String)> {
    let answer = get(gateway, &format!("/sessions/{session}/messages")).await;
    let messages = answer.expect(200).await.json().await;
    let member = |message: &Value, name: &str| text(message, name).to_owned();
    let messages = messages["messages"].as_array().expect("a list");
    messages
        .iter()
        .map(|m| (member(m, "role"), member(m, "content"), member(m, "status")))
        .collect()
}

/// Tokens with all that is awkward in a stream of lines.
const PIECES: [&str; 9] = [
    "Hel",
    "lo,\r",
    "\nworld",
    " 世界",
    "\n\n",
    "\r\n",
    "data: x\n\nevent: done",
    "👩‍👩‍👧",
    " end",
];

/// A POST as bytes, for who wants to hang up before the answer.
fn wire(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

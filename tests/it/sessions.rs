//! Sessions: what is kept between runs, for whom, how much of it the model is sent, and how it goes away.

mod beyond_loopback;
mod history;
mod lists;
mod made_and_erased;
mod turns;
mod users;

use std::time::Duration;

use serde_json::{Value, json};

use super::house::*;

async fn ask(gateway: &impl Place, session: &str, message: &str) -> Value {
    let answer = post(gateway, "/chat", json!({"message": message, "session_id": session})).await;
    answer.expect(200).await.json().await
}

async fn read(gateway: &impl Place, path: &str) -> Value {
    get(gateway, path).await.expect(200).await.json().await
}

async fn status_and_code(answer: Response) -> (u16, String) {
    (
        answer.status,
        if answer.status < 400 {
            String::new()
        } else {
            answer.problem().await
        },
    )
}

/// The `(role, content)` of messages, ours or the upstream's.
fn words(messages: &Value) -> Vec<(&str, &str)> {
    let messages = messages.as_array().unwrap_or_else(|| panic!("no list: {messages}"));
    messages
        .iter()
        .map(|m| {
            (
                m["role"].as_str().unwrap_or_default(),
                m["content"].as_str().unwrap_or_default(),
            )
        })
        .collect()
}

/// The ids of a page of sessions.
fn ids(page: &Value) -> Vec<&str> {
    let sessions = page["sessions"].as_array().unwrap_or_else(|| panic!("no list: {page}"));
    sessions
        .iter()
        .map(|session| session["session_id"].as_str().expect("an id"))
        .collect()
}

/// An upstream that answers with a number: `answer 0`, `answer 1`, …
async fn counting() -> Upstream {
    Upstream::answering(|request| openai::answer(&["answer ", &request.number.to_string()])).await
}

fn is_time(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|time| time.len() >= 20 && &time[10..11] == "T" && time.ends_with('Z'))
}

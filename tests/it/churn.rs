//! Clients that leave, hundreds of them, at any moment: before the first token, in the middle, while a tool works, while they
//! wait for a session, while they come back, in the middle of their own request. Whatever was theirs has to go too.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::house::*;

const CLIENTS: u64 = 400;
/// So many at a time.
const AT_ONCE: usize = 40;
/// Nobody stays longer after asking; an answer takes about twice as long.
const LONGEST: u64 = 300;
/// Sessions that clients queue for.
const SESSIONS: u64 = 8;

/// Chance that can be repeated (splitmix64).
struct Dice(u64);

impl Dice {
    /// The next number, below `sides`.
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }
}

/// A model that thinks, then speaks for half a second; asked about the weather, it asks for the tool first. It keeps no
/// connection, so that what is open afterwards is somebody's.
async fn model() -> Upstream {
    Upstream::answering(|request| {
        let messages = request.json["messages"].as_array().cloned().unwrap_or_default();
        let asks_for_weather = messages
            .last()
            .is_some_and(|last| last["role"] == "user" && last["content"] == "weather");
        let script =
            Script::sse_framed(Framing::UntilClose).sleep(Duration::from_millis(50 * (request.number as u64 % 4)));
        if asks_for_weather {
            let call = openai::tool_delta(0, "c1", "weather", "{}");
            return script.send(call).finish("tool_calls").done().step(Step::Close);
        }
        let script = script
            .role()
            .repeat(openai::text("word "), Duration::from_millis(10), 50);
        script.finish("stop").usage(12, 34).done().step(Step::Close)
    })
    .await
}

/// A tool that takes its time.
async fn weather() -> Upstream {
    let head = Script::head(200, &[("content-type", "application/json")], Framing::UntilClose);
    let slow = Duration::from_millis(150);
    Upstream::always(head.sleep(slow).bytes(r#"{"sun":true}"#).step(Step::Close)).await
}

fn recipe(model: &Upstream, tools: &Upstream) -> gateway::Recipe {
    Gateway::with(model).toml(&format!(
        r#"
[runs]
detach_grace = "200ms"
[tools.guard]
allow = ["127.0.0.1/32"]
[tools.http.weather]
description = "The weather."
url = "http://{}/weather"
[agents.assistant]
tools = ["weather"]
"#,
        tools.addr()
    ))
}

/// One client that leaves; the run's id, if it saw one.
async fn leave(place: std::net::SocketAddr, number: u64) -> Option<String> {
    let mut dice = Dice(0x5EED ^ (number << 32));
    let path = ["/chat", "/chat/stream", "/chat/sse"][usize::try_from(dice.throw(3)).unwrap()];
    let mut body = json!({"message": (["hello", "weather"][usize::from(dice.throw(3) == 0)])});
    if dice.throw(4) == 0 {
        body["session_id"] = format!("s{}", dice.throw(SESSIONS)).into();
        body["on_busy"] = ["queue", "interrupt", "reject"][usize::try_from(dice.throw(3)).unwrap()].into();
    }
    let body = body.to_string();
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: {place}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    if dice.throw(10) == 0 {
        request.truncate(request.len() - 1 - usize::try_from(dice.throw(100)).unwrap());
    }
    let came = come_and_go(place, &request, &mut dice).await;
    let between = |from: &str, to: char| Some(came.rsplit_once(from)?.1.split_once(to)?.0.to_owned());
    let run = between("\nx-run-id: ", '\r')?;
    if let Some(id) = between("\nid: ", '\n').filter(|_| dice.throw(2) == 0) {
        let again = format!("GET /runs/{run}/events HTTP/1.1\r\nHost: {place}\r\nLast-Event-ID: {id}\r\n\r\n");
        come_and_go(place, &again, &mut dice).await;
    }
    Some(run)
}

/// Sends this, reads for as long as the dice say, and leaves: with a FIN or a RST.
async fn come_and_go(place: std::net::SocketAddr, request: &str, dice: &mut Dice) -> String {
    let connected = soon("a connection", TcpStream::connect(place)).await;
    let mut socket = connected.unwrap();
    if dice.throw(2) == 0 {
        socket.set_zero_linger().unwrap();
    }
    soon("room to send", socket.write_all(request.as_bytes()))
        .await
        .unwrap();
    let mut came = Vec::new();
    let stays = Duration::from_millis(dice.throw(LONGEST));
    let reading = async { while socket.read_buf(&mut came).await.is_ok_and(|count| count > 0) {} };
    // Over before it leaves, or not: both may be.
    let _ = tokio::time::timeout(stays, reading).await;
    String::from_utf8_lossy(&came).into_owned()
}

/// All of them; the ids of the runs that were seen.
async fn churn(place: std::net::SocketAddr, clients: std::ops::Range<u64>) -> Vec<String> {
    let (mut under_way, mut runs) = (JoinSet::new(), Vec::new());
    for number in clients {
        if under_way.len() >= AT_ONCE {
            runs.extend(under_way.join_next().await.unwrap().unwrap());
        }
        under_way.spawn(leave(place, number));
    }
    while let Some(run) = under_way.join_next().await {
        runs.extend(run.unwrap());
    }
    runs
}

/// Every run has an end, and every session can go on.
async fn nothing_is_stuck(gateway: &impl Place, runs: &[String]) {
    for run in runs {
        eventually(format_args!("the end of the run {run}"), async || {
            let run: Value = get(gateway, &format!("/runs/{run}"))
                .await
                .expect(200)
                .await
                .json()
                .await;
            (run["status"] != "running").then_some(())
        })
        .await;
    }
    let turns = (0..SESSIONS).map(|session| {
        let turn = json!({"message": "hello", "session_id": format!("s{session}"), "on_busy": "queue"});
        async move { post(gateway, "/chat", turn).await.expect(200).await.json().await }
    });
    for answer in futures_util::future::join_all(turns).await {
        assert_eq!(answer["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn the_program_has_no_more_sockets_and_threads_after_hundreds_left_than_before() {
    let (model, tools) = (model().await, weather().await);
    let program = recipe(&model, &tools).spawn().await;
    let (addr, pid) = (program.addr(), program.pid());
    let sockets = || {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        targets
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count()
    };
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    let quiet = async || {
        soon("the model to be left alone", model.idle()).await;
        soon("the tools to be left alone", tools.idle()).await;
    };
    let (sockets_before, threads_before) = (sockets(), threads());
    let runs = churn(addr, 0..CLIENTS).await;
    assert!(!runs.is_empty() && model.calls() > 0 && tools.calls() > 0);
    quiet().await;
    nothing_is_stuck(&addr, &runs).await;
    quiet().await;
    eventually(format_args!("{sockets_before} sockets"), async || {
        (sockets() <= sockets_before).then_some(())
    })
    .await;
    // The store opens its other connections for reading, each with a thread, when they are first needed; and the files that
    // runs may write are opened by a thread that is kept for the next for a while.
    let most = threads_before + 5;
    assert!(threads() <= most, "{} threads, {threads_before} before", threads());
}

#[tokio::test]
async fn no_task_outlives_the_clients_that_left() {
    let (model, tools) = (model().await, weather().await);
    let gateway = recipe(&model, &tools).start().await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let settled = async || {
        soon("the model to be left alone", model.idle()).await;
        soon("the tools to be left alone", tools.idle()).await;
    };
    let runs = churn(gateway.addr(), 0..AT_ONCE as u64).await;
    nothing_is_stuck(&gateway, &runs).await;
    settled().await;
    let mut before = usize::MAX;
    eventually("tasks to stay as they are", async || {
        let last = std::mem::replace(&mut before, tasks());
        (last == before).then_some(())
    })
    .await;
    let runs = churn(gateway.addr(), AT_ONCE as u64..CLIENTS / 2).await;
    settled().await;
    nothing_is_stuck(&gateway, &runs).await;
    settled().await;
    eventually(format_args!("{before} tasks"), async || {
        (tasks() <= before).then_some(())
    })
    .await;
}

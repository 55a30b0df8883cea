//! Sessions full of images, large results, and others beside them: four callers whose turns bring 8 MiB each, and a hundred
//! readers of results of 3 MB, in a cage of 512 MiB with the README's settings. Does the process live, and are the others
//! served?

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::Bench;
use super::arrivals::{Flow, Flowed};
use super::crowd::next_stream;
use super::figures::Figures;
use crate::ask::Ask;
use crate::cage::Cage;
use crate::client::door::Door;
use crate::clock::{nanos, now};
use crate::report::Section;
use crate::scales::Scales;
use crate::stats::{millis, ratio, tail};
use crate::watch::Watch;

const CAGE: u64 = 512 << 20;
/// Callers' keys, and the SHA-256 of each in hex: four with sessions full of images, the readers', the others'.
const KEYS: [(&str, &str); 6] = [
    (
        "bench-large-image-1",
        "1b39819a4bb5f66c80ba67222222b796acf99e1f1529799dc5ef3b31091d485a",
    ),
    (
        "bench-large-image-2",
        "faee84d9f4e61ffbd98ba379743d98692344b3261b5de3812260895cb45617b6",
    ),
    (
        "bench-large-image-3",
        "29355c32f36c822ff2df75e6fe21cb0c604f3408206bfb52f25733a30a6102f1",
    ),
    (
        "bench-large-image-4",
        "2b2c477568648ab7c7e55118a3add9eaab5080a1fae1c47e2c512b7684ff9fbd",
    ),
    (
        "bench-large-reader",
        "a1fc3878028a804acabe54ce2c45a33957b7315af87abdf2914f6c26004d3ac8",
    ),
    (
        "bench-large-other",
        "8044dacda94910c86cc3668cf1ce9dcfc4b5f3efaccc03c39ae2781678184bc5",
    ),
];
const READER: usize = 4;
const OTHER: usize = 5;
/// How many bytes of base64 a turn's two images have together.
const IMAGES: usize = 8_000_000;
/// How many results there are to be read, and by how many at once.
const RESULTS: usize = 10;
const READERS: usize = 100;
/// An answer of some 3 MB.
const LARGE: Ask = Ask {
    stream: 0,
    tokens: 96_000,
    per_event: 64,
    per_write: 64,
    every_us: 0,
    first_us: 0,
    tool_us: 0,
    stall_after: 0,
    cut_after: 0,
};
/// Longest that one request may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came of requests: how many were answered, refused with 503, and neither.
#[derive(Default)]
struct Count {
    answered: u64,
    refused: u64,
    wrong: Vec<String>,
}

impl Count {
    fn add(&mut self, outcome: Result<u16>) {
        match outcome {
            Ok(200) => self.answered += 1,
            Ok(503) => self.refused += 1,
            Ok(status) => self.wrong.push(format!("status {status}")),
            Err(error) => self.wrong.push(format!("{error:#}")),
        }
    }
}

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let time = bench.seconds([5, 20, 120]);
    let keys = KEYS.iter().enumerate().map(|(place, (_, digest))| {
        let runs = if place == OTHER { 0 } else { 4 };
        format!("[[auth.keys]]\nname = \"caller-{place}\"\nsha256 = \"{digest}\"\nconcurrent_runs = {runs}\n")
    });
    let mut gateway = bench.subject()?.with(&[
        ("SLUICEGATE__LIMITS__MAX_RUNS", "500"),
        ("SLUICEGATE__RUNS__MEMORY_LIMIT", "96MiB"),
        // So that results are read from the store.
        ("SLUICEGATE__RUNS__REPLAY_WINDOW", "1s"),
    ]);
    gateway.settings = Some(keys.collect());
    let subject = gateway.start(&bench.place).await?;
    let cage = Cage::around(subject.pid, CAGE);
    let port = subject.port;
    let others = |time| Flow {
        port,
        door: Door::Sse { store: true },
        ask: Ask::new(0, 5),
        headers: format!("X-Api-Key: {}\r\n", KEYS[OTHER].0),
        rate: 20.0,
        time,
    };

    let questions: Vec<_> = (0..4).map(|caller| Arc::new(question(caller))).collect();
    for question in &questions {
        for _ in 0..2 {
            let asked = call(port, question).await.map(|(status, _)| status);
            ensure!(asked? == 200, "a session could not be filled");
        }
    }
    let mut results = Vec::new();
    for _ in 0..RESULTS {
        results.push(Arc::new(result(port).await?));
    }
    tokio::time::sleep(Duration::from_secs(2)).await; // until the logs are gone
    let quiet = bench.flow(others(time)).await;

    let watch = Watch::begin(subject.pid);
    let scales = Scales::set(Some(subject.pid), bench.cores);
    let end = now() + nanos(time);
    let images = repeat(questions.iter().map(|question| (port, question.clone())), end);
    let readers = (0..READERS).map(|reader| (port, results[reader % RESULTS].clone()));
    let (images, read, beside) = tokio::join!(images, repeat(readers, end), bench.flow(others(time)));
    let weight = scales.read();

    let mut figures = Figures::new(
        "large_sessions",
        format!(
            "4 callers with turns of 8 MiB of images, {READERS} readers of results of 3 MB, others beside them, for {} s",
            time.as_secs()
        ),
    );
    let told = |count: &Count| format!("{} / {}", count.answered, count.refused);
    figures.row("turns with images answered / refused with 503", told(&images));
    figures.row("results read / refused with 503", told(&read));
    let first = |flow: &Flowed| tail(&flow.outcome.first);
    figures.row("others' first token without them, p50 / p99 / max ms", first(&quiet));
    figures.row("others' first token beside them, p50 / p99 / max ms", first(&beside));
    let peak = watch.peak_kib().map(|kib| ratio(kib, 1_024));
    figures.at_most(300.0, "MiB of its own, highest", peak);
    match &cage {
        Some(cage) => {
            let kills = cage.kills().map(|kills| ratio(kills, 1));
            figures.at_most(0.0, "processes killed for want of memory", kills);
        }
        None => figures.note("No control group may be written here: there was no cage."),
    }
    figures.weight(&weight);
    let wrong = (images.wrong.len() + read.wrong.len()) as u64;
    figures.at_most(
        0.0,
        "requests that were neither answered nor refused",
        Some(ratio(wrong, 1)),
    );
    if let Some(one) = images.wrong.iter().chain(&read.wrong).next() {
        figures.note(format!("One of them: {one}"));
    }
    figures.at_most(0.0, "others' requests refused", Some(ratio(beside.count_refused(), 1)));
    let times = millis(&beside.outcome.first, 50.0).zip(millis(&quiet.outcome.first, 50.0));
    let times = times.map(|(beside, quiet)| beside / quiet);
    figures.at_most(2.0, "times as late is the others' first token, p50", times);
    figures.losses("others' answers without them", &quiet.outcome);
    figures.losses("others' answers beside them", &beside.outcome);
    figures.stopped(subject.stop().await);
    Ok(figures.section())
}

/// Sends each request over and over until `end`, each by somebody of its own.
async fn repeat(requests: impl Iterator<Item = (u16, Arc<Vec<u8>>)>, end: u64) -> Count {
    let mut all = JoinSet::new();
    for (port, request) in requests {
        all.spawn(async move {
            let mut count = Count::default();
            while now() < end {
                let outcome = call(port, &request).await.map(|(status, _)| status);
                let pause = if matches!(outcome, Ok(200)) { 0 } else { 500 };
                count.add(outcome);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            count
        });
    }
    let mut sum = Count::default();
    while let Some(done) = all.join_next().await {
        match done {
            Ok(count) => {
                sum.answered += count.answered;
                sum.refused += count.refused;
                sum.wrong.extend(count.wrong);
            }
            Err(error) => sum.wrong.push(error.to_string()),
        }
    }
    sum
}

/// A turn with images, in the caller's one session.
fn question(caller: usize) -> Vec<u8> {
    let image = format!(
        "{{\"media_type\":\"image/png\",\"data\":\"{}\"}}",
        "QUJD".repeat(IMAGES / 8)
    );
    let body = format!(
        "{{\"message\":\"{}\",\"session_id\":\"s\",\"attachments\":[{image},{image}]}}",
        Ask::new(next_stream(), 5)
    );
    request("POST /chat", KEYS[caller].0, &body)
}

/// Has a large result made; gives the request that reads it.
async fn result(port: u16) -> Result<Vec<u8>> {
    let ask = Ask {
        stream: next_stream(),
        ..LARGE
    };
    let body = format!("{{\"message\":\"{ask}\"}}");
    let (status, answer) = call(port, &request("POST /chat", KEYS[READER].0, &body)).await?;
    ensure!(
        status == 200 && answer.len() > 2 << 20,
        "a result of {} bytes, {status}",
        answer.len()
    );
    let text = std::str::from_utf8(&answer)?;
    let id = text.split_once("\"run_id\":\"").and_then(|(_, rest)| rest.get(..36));
    let id = id.context("an answer without a run's id")?;
    Ok(request(&format!("GET /runs/{id}"), KEYS[READER].0, ""))
}

fn request(line: &str, key: &str, body: &str) -> Vec<u8> {
    format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends a request on a connection of its own; gives the status and all that came.
async fn call(port: u16, request: &[u8]) -> Result<(u16, Vec<u8>)> {
    let exchange = async {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        let (mut reader, mut writer) = socket.split();
        let mut answer = Vec::new();
        // A refusal may come while the body is still on its way.
        let (_, read) = tokio::join!(writer.write_all(request), reader.read_to_end(&mut answer));
        read.or_else(|error| if answer.is_empty() { Err(error) } else { Ok(0) })?;
        let status = answer.get(9..12).and_then(|status| std::str::from_utf8(status).ok());
        let status = status.and_then(|status| status.parse().ok()).context("no answer")?;
        Ok((status, answer))
    };
    tokio::time::timeout(PATIENCE, exchange).await.context("too slow")?
}

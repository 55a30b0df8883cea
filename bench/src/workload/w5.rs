//! W5: the client leaves in the middle of `/chat/stream`. How long until the upstream is told, when tokens flow and when it is silent?

use std::time::Duration;

use anyhow::{Result, anyhow};

use super::crowd::next_stream;
use super::{Bench, Between, DIRECT, NGINX, Rounds, Side, TEXT, Way};
use crate::ask::Ask;
use crate::client::Connection;
use crate::client::door::Door;
use crate::clock::{nanos, now};
use crate::report::{Section, Target, cell, worst};
use crate::stats::{Outcome, millis};

const CLIENTS: usize = 64;
const SPREAD: Duration = Duration::from_millis(200);
/// The client leaves once it has read so many tokens.
const READ: u32 = 4;
/// Longest wait for the mock to see it.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let times = if bench.quick { 1 } else { 4 };
    let flowing = Ask {
        every_us: 20_000,
        ..Ask::new(0, 10_000)
    };
    let silent = Ask {
        stall_after: READ,
        ..flowing
    };
    let states = [("tokens flowing", flowing), ("upstream silent", silent)];
    let ways = [TEXT, NGINX, DIRECT]
        .into_iter()
        .filter(|way| bench.present(way.between));
    let rows: Vec<_> = ways
        .flat_map(|way| states.map(|(what, ask)| (what, ask, way)))
        .collect();
    let sides = rows.iter().map(|&(_, _, way)| Side {
        way,
        outcomes: Vec::new(),
    });
    let mut rounds = Rounds {
        sides: sides.collect(),
        troubles: Vec::new(),
    };
    for round in 0..bench.rounds {
        for (place, &(what, ask, way)) in rows.iter().enumerate() {
            if rounds.sides[place].given_up() {
                continue;
            }
            eprintln!("  round {}: {}, {what}", round + 1, way.name);
            let subject = bench.start(way.between).await?;
            let port = subject
                .as_ref()
                .map_or(bench.mock.address().port(), |subject| subject.port);
            let outcome = once(bench, port, way, ask, times).await?;
            rounds.sides[place].outcomes.push(outcome);
            rounds.stop(subject).await;
        }
    }

    let head = ["", "upstream closed after p50 / p99 / max ms", "closings", "lost"];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    let mut targets = Vec::new();
    for ((what, _, way), side) in rows.iter().zip(&rounds.sides) {
        let at = |percentile| side.spread(move |outcome| millis(&outcome.whole, percentile));
        let cells = [at(50.0), at(99.0), at(100.0)].map(cell::<2>).join(" / ");
        let closings: u64 = side.outcomes.iter().map(|outcome| outcome.answers).sum();
        let lost: u64 = side.outcomes.iter().map(|outcome| outcome.lost).sum();
        table.push(vec![
            format!("{}, {what}", way.name),
            cells,
            closings.to_string(),
            lost.to_string(),
        ]);
        if way.between == Between::Gateway {
            // The slowest of all rounds, not the median of the rounds' slowest: it is a promise, not a figure.
            let slowest = at(100.0).map(worst);
            targets.push(Target::at_most(
                250.0,
                format!("W5 upstream closed, slowest ms, {what}"),
                side.unless_lost(slowest),
            ));
        }
    }
    let title = format!("W5: {CLIENTS} clients that leave after {READ} tokens, {times} times each");
    let mut section = Section::new(title, &rounds, table);
    section.targets.extend(targets);
    section.notes.push(format!(
        "Answers left open in the mock at the end: {}.",
        bench.mock.streaming()
    ));
    Ok(section)
}

async fn once(bench: &Bench, port: u16, way: Way, ask: Ask, times: u32) -> Result<Outcome> {
    let (start, step) = (now(), nanos(SPREAD) / CLIENTS as u64);
    let clients: Vec<_> = (0..CLIENTS as u64)
        .map(|place| {
            let (mock, pacer) = (bench.mock.clone(), bench.pacer.clone());
            tokio::spawn(async move {
                pacer.until(start + place * step).await;
                let mut results = Vec::new();
                for _ in 0..times {
                    let ask = Ask {
                        stream: next_stream(),
                        ..ask
                    };
                    let seen = mock.watch(ask.stream);
                    results.push(tokio::time::timeout(PATIENCE, leave(port, way.door, ask, seen)).await);
                }
                results
            })
        })
        .collect();
    let mut outcome = Outcome::default();
    for client in clients {
        for result in client.await? {
            match result.unwrap_or_else(|_| Err(anyhow!("not closed after {} s", PATIENCE.as_secs()))) {
                Ok(took) => {
                    outcome.answers += 1;
                    outcome.whole.saturating_record(took);
                }
                Err(fault) => outcome.lose(&fault),
            }
        }
    }
    Ok(outcome)
}

/// Nanoseconds from the client's closing to the mock's seeing its own reader gone.
async fn leave(port: u16, door: Door, ask: Ask, seen: tokio::sync::oneshot::Receiver<u64>) -> Result<u64> {
    let closed = Connection::open(port).await?.ask_and_leave(door, ask, READ).await?;
    let seen = seen.await.map_err(|_| anyhow!("the mock's answer ended otherwise"))?;
    Ok(seen.saturating_sub(closed))
}

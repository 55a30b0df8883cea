//! L6: five hundred open streams whose readers leave at any moment. How long until the model is told to stop?

use std::time::Duration;

use anyhow::{Result, anyhow};

use super::crowd::next_stream;
use super::{Bench, Between, NGINX, Rounds, TEXT, Way};
use crate::ask::Ask;
use crate::client::Connection;
use crate::client::door::Door;
use crate::clock::{nanos, now};
use crate::dice::Dice;
use crate::report::{Section, TRUST, Target, cell, trust, worst};
use crate::scales::Scales;
use crate::stats::{Outcome, millis};

/// A reader leaves one to five seconds after asking, and asks again.
const STAY_MS: [u64; 2] = [1_000, 5_000];
const SPREAD: Duration = Duration::from_secs(2);
/// Longest wait for the mock to see it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Twenty tokens a second, and never the end.
const ASK: Ask = Ask {
    stream: 0,
    tokens: 10_000,
    every_us: 50_000,
    first_us: 0,
    per_write: 1,
    per_event: 1,
    tool_us: 0,
    stall_after: 0,
    cut_after: 0,
};

const WHOLE: Way = Way {
    name: "gateway `/chat`",
    between: Between::Gateway,
    door: Door::Whole { store: false },
};

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let streams = if bench.quick { 100 } else { 500 };
    let time = bench.seconds([6, 20, 120]);
    let mut rounds = bench.rounds_of(&[TEXT, WHOLE, NGINX]);
    for round in 0..bench.rounds {
        for place in 0..rounds.sides.len() {
            let way = rounds.sides[place].way;
            if rounds.sides[place].given_up() {
                continue;
            }
            let subject = bench.start(way.between).await?;
            eprintln!("  round {}: {}", round + 1, way.name);
            let port = (subject.as_ref()).map_or(bench.mock.address().port(), |subject| subject.port);
            let scales = Scales::set(subject.as_ref().map(|subject| subject.pid), bench.cores);
            let mut outcome = once(bench, port, way, streams, time).await;
            let weight = scales.read();
            outcome.harness = weight.harness;
            outcome.others = weight.others;
            rounds.sides[place].outcomes.push(outcome);
            rounds.stop(subject).await;
        }
    }
    let title = format!(
        "L6: {streams} streams whose readers leave after 1 to 5 s, for {} s",
        time.as_secs()
    );
    let mut section = Section::new(title, &rounds, table(&rounds));
    for side in rounds.sides.iter().filter(|side| side.way.between == Between::Gateway) {
        let late = side.spread(|outcome| millis(&outcome.whole, 99.0)).map(worst);
        section.targets.push(Target::at_most(
            250.0,
            format!("L6 ms until the upstream was closed, p99, {}", side.way.name),
            side.unless_lost(late),
        ));
    }
    section.notes.push(format!(
        "Answers left open in the mock at the end: {}. Both times are readings of one clock in one process.",
        bench.mock.streaming()
    ));
    Ok(section)
}

fn table(rounds: &Rounds) -> Vec<Vec<String>> {
    let head = ["", "upstream closed after p50 / p99 / max ms", "closings"];
    let mut table = vec![head.iter().chain(&TRUST).map(ToString::to_string).collect::<Vec<_>>()];
    for side in &rounds.sides {
        let at = |percentile| side.spread(move |outcome| millis(&outcome.whole, percentile));
        let closings: u64 = side.outcomes.iter().map(|outcome| outcome.answers).sum();
        let mut row = vec![
            side.way.name.to_owned(),
            [at(50.0), at(99.0), at(100.0)].map(cell::<2>).join(" / "),
            closings.to_string(),
        ];
        row.extend(trust(side));
        table.push(row);
    }
    table
}

async fn once(bench: &Bench, port: u16, way: Way, streams: u64, time: Duration) -> Outcome {
    let (start, step) = (now(), nanos(SPREAD) / streams);
    let clients: Vec<_> = (0..streams)
        .map(|place| {
            let (mock, pacer) = (bench.mock.clone(), bench.pacer.clone());
            let mut dice = Dice::new(place);
            tokio::spawn(async move {
                pacer.until(start + place * step).await;
                let mut results = Vec::new();
                while now() < start + nanos(time) {
                    let ask = Ask {
                        stream: next_stream(),
                        ..ASK
                    };
                    let stay = STAY_MS[0] + dice.throw(STAY_MS[1] - STAY_MS[0]);
                    let seen = mock.watch(ask.stream);
                    let left = async {
                        let connection = Connection::open(port).await?;
                        let at = now() + stay * 1_000_000;
                        connection.ask_and_leave_at(way.door, ask, &pacer, at).await
                    };
                    let result = match left.await {
                        Err(fault) => Err(fault),
                        Ok(left) => match tokio::time::timeout(PATIENCE, seen).await {
                            Ok(Ok(seen)) => Ok(seen.saturating_sub(left)),
                            Ok(Err(_)) => Err(anyhow!("the mock's answer ended otherwise")),
                            Err(_) => Err(anyhow!("not closed after {} s", PATIENCE.as_secs())),
                        },
                    };
                    let broken = result.is_err();
                    results.push(result);
                    if broken {
                        break;
                    }
                }
                results
            })
        })
        .collect();
    let mut outcome = Outcome::default();
    for client in clients {
        for result in client.await.unwrap_or_else(|panic| vec![Err(panic.into())]) {
            match result {
                Ok(took) => {
                    outcome.answers += 1;
                    outcome.whole.saturating_record(took);
                }
                Err(fault) => outcome.lose(&fault),
            }
        }
    }
    outcome
}

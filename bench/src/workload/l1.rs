//! L1: a thousand readers at a model's pace. Is every byte right, how late is a token, what do they weigh?

use std::time::Duration;

use anyhow::Result;

use super::{Bench, DIRECT, NGINX, SSE, Side, side};
use crate::report::{Section, TRUST, Target, cell, trust, worst};
use crate::stats::{millis, ratio};
use crate::watch::Watch;
use crate::workload::crowd::Wave;

const EVERY: Duration = Duration::from_millis(50);
/// Starts spread over so long, and so the ends.
const SPREAD: Duration = Duration::from_secs(5);

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let streams = if bench.quick { 200 } else { 1_000 };
    let time = bench.seconds([3, 30, 300]);
    let tokens = u32::try_from(time.as_millis() / EVERY.as_millis())?;
    let warm = Wave::new(5, EVERY, 1).spread(Duration::from_secs(1));
    let wave = Wave::new(tokens, EVERY, 1).spread(SPREAD);
    let mut rounds = bench.rounds_of(&[SSE, NGINX, DIRECT]);
    let count = rounds.sides.len();
    for round in 0..bench.rounds {
        for place in (0..count).map(|place| (round + place) % count) {
            let way = rounds.sides[place].way;
            if rounds.sides[place].given_up() {
                continue;
            }
            let subject = bench.start(way.between).await?;
            eprintln!("  round {}: {}", round + 1, way.name);
            let watch = subject.as_ref().map(|subject| Watch::begin(subject.pid));
            let mut outcome = bench.once(way, subject.as_ref(), streams, warm, wave).await;
            outcome.peak_kib = watch.and_then(|watch| watch.peak_kib());
            rounds.sides[place].outcomes.push(outcome);
            rounds.stop(subject).await;
        }
    }
    let sides = &rounds.sides;
    let title = format!(
        "L1: {streams} streams of 20 tokens a second, {} s each, starts spread over {} s",
        time.as_secs(),
        SPREAD.as_secs()
    );
    let mut section = Section::new(title, &rounds, table(sides));
    if let Some(ours) = side(sides, &SSE) {
        let weight = ours.spread(|outcome| Some(ratio(outcome.peak_kib?, 1_024)));
        let late = side(sides, &DIRECT).map(|direct| ours.added(direct, 99.0)[1]);
        for (mark, what, measured) in [
            (160.0, "L1 MiB of its own, highest", weight.map(worst)),
            (10.0, "L1 ms added to a token, p99", late.flatten()),
        ] {
            section
                .targets
                .push(Target::at_most(mark, what, ours.unless_lost(measured)));
        }
    }
    section.notes.push(format!(
        "Driver and mock alone, before the rounds: {:.0} tokens/s; asked for here: {}.",
        bench.alone.tokens,
        streams * 20
    ));
    Ok(section)
}

fn table(sides: &[Side]) -> Vec<Vec<String>> {
    let head = [
        "",
        "MiB of its own, highest",
        "CPU µs/token",
        "tokens/s",
        "first token p50 / p99 / max ms",
        "per token p50 / p99 / max ms",
    ];
    let mut table = vec![head.iter().chain(&TRUST).map(ToString::to_string).collect::<Vec<_>>()];
    for side in sides {
        let first = [50.0, 99.0, 100.0].map(|at| cell::<2>(side.spread(|outcome| millis(&outcome.first, at))));
        let late = [50.0, 99.0, 100.0].map(|at| cell::<2>(side.spread(|outcome| millis(&outcome.delay, at))));
        let mut row = vec![
            side.way.name.to_owned(),
            cell::<1>(side.spread(|outcome| Some(ratio(outcome.peak_kib?, 1_024)))),
            cell::<1>(side.spread(|outcome| outcome.cpu_per_token().map(|cpu| cpu[2]))),
            cell::<0>(side.spread(|outcome| outcome.tokens_per_second())),
            first.join(" / "),
            late.join(" / "),
        ];
        row.extend(trust(side));
        table.push(row);
    }
    table
}

//! W3: what an open stream weighs. Two thousand of them, each saying something once a second; a fresh process
//! every time, because memory that an earlier crowd left behind would hide what this one needs.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Bench, NGINX, SSE, Side, TEXT, Way, side};
use crate::procfs;
use crate::report::{Section, TRUST, Target, cell, trust};
use crate::stats::{Outcome, millis};
use crate::subject::Subject;
use crate::workload::crowd::Wave;

const EVERY: Duration = Duration::from_secs(1);
const RAMP: Duration = Duration::from_secs(5);

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let (streams, hold) = if bench.quick { (500, 5) } else { (2_000, 20) };
    let mut rounds = bench.rounds_of(&[SSE, TEXT, NGINX]);
    for round in 0..bench.rounds {
        for place in 0..rounds.sides.len() {
            let way = rounds.sides[place].way;
            if rounds.sides[place].given_up() {
                continue;
            }
            eprintln!("  round {}: {}", round + 1, way.name);
            let subject = bench.start(way.between).await?.context("nobody to measure")?;
            let outcome = once(bench, &subject, way, streams, hold).await?;
            rounds.sides[place].outcomes.push(outcome);
            rounds.stop(Some(subject)).await;
        }
    }
    let title = format!(
        "W3: {streams} open streams at one token a second, opened over {} s, all open for {hold} s",
        RAMP.as_secs()
    );
    let mut section = Section::new(title, &rounds, table(&rounds.sides));
    for way in [SSE, TEXT] {
        let Some(side) = side(&rounds.sides, &way) else {
            continue;
        };
        let weight = side.spread(|outcome| outcome.kib_per_stream);
        section.targets.push(Target::at_most(
            48.0,
            format!("W3 KiB per open stream, {}", way.name),
            side.unless_lost(weight),
        ));
    }
    Ok(section)
}

async fn once(bench: &Bench, subject: &Subject, way: Way, streams: usize, hold: u32) -> Result<Outcome> {
    // One short answer, so that what is made once and kept is in the baseline.
    let mut first = bench.crowd(subject.port, way.door, 1);
    let warmed = first.warm_up(Wave::new(3, Duration::ZERO, 1)).await;
    if warmed.useless {
        return Ok(warmed);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let idle = procfs::anonymous_kib(subject.pid)?;

    // The first stream ends `hold` after the last began; the first token comes at once.
    let tokens = u32::try_from(RAMP.as_secs())? + hold + 1;
    let wave = Wave::new(tokens, EVERY, 1).spread(RAMP);
    let mut crowd = bench.crowd(subject.port, way.door, streams);
    let mut highest = None;
    let measured = crowd.measure(wave, Some(subject.pid), bench.cores);
    let watched = async {
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            if bench.mock.streaming() == streams {
                highest = highest.max(procfs::anonymous_kib(subject.pid).ok());
            }
        }
    };
    let mut outcome = tokio::select! {
        outcome = measured => outcome,
        () = watched => anyhow::bail!("never: the watch has no end"),
    };
    // Without a moment at which all streams were open there is no figure.
    outcome.kib_per_stream = highest.map(|kib| kib_per(kib.saturating_sub(idle), streams));
    Ok(outcome)
}

fn kib_per(kib: u64, streams: usize) -> f64 {
    crate::stats::ratio(kib, streams as u64)
}

fn table(sides: &[Side]) -> Vec<Vec<String>> {
    let head = [
        "",
        "KiB/stream",
        "CPU µs/token",
        "delay per token p50 / p99 ms (not less direct)",
        "tokens/s",
    ];
    let mut table = vec![head.iter().chain(&TRUST).map(ToString::to_string).collect::<Vec<_>>()];
    for side in sides {
        let late = |percentile| side.spread(move |outcome| millis(&outcome.delay, percentile));
        let mut row = vec![
            side.way.name.to_owned(),
            cell::<1>(side.spread(|outcome| outcome.kib_per_stream)),
            cell::<1>(side.spread(|outcome| outcome.cpu_per_token().map(|cpu| cpu[2]))),
            format!("{} / {}", cell::<2>(late(50.0)), cell::<2>(late(99.0))),
            cell::<0>(side.spread(|outcome| outcome.tokens_per_second())),
        ];
        row.extend(trust(side));
        table.push(row);
    }
    table
}

//! L3: what a reader feels with a hundred others about, asked for in an open loop: counted from when the question was due.

use std::time::Duration;

use anyhow::Result;

use super::arrivals::Flow;
use super::{Bench, DIRECT, NGINX, SSE, TEXT, Way, side};
use crate::ask::Ask;
use crate::report::{Section, Target, relay_table};
use crate::scales::Scales;

/// Two seconds at twenty tokens a second; fifty a second of these are a hundred at a time.
const TOKENS: u32 = 40;
const EVERY_US: u64 = 50_000;
const RATE: f64 = 50.0;

/// A hundred ordinary readers through `way` for `time`: the crowd that L4 and L7 look at too.
pub(super) fn ordinary(way: Way, port: u16, time: Duration) -> Flow {
    let ask = Ask {
        every_us: EVERY_US,
        ..Ask::new(0, TOKENS)
    };
    Flow {
        port,
        door: way.door,
        ask,
        headers: String::new(),
        rate: RATE,
        time,
    }
}

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let time = bench.seconds([4, 20, 120]);
    let mut rounds = bench.rounds_of(&[SSE, TEXT, NGINX, DIRECT]);
    let count = rounds.sides.len();
    for round in 0..bench.rounds {
        for place in (0..count).map(|place| (round + place) % count) {
            let way = rounds.sides[place].way;
            if rounds.sides[place].given_up() {
                continue;
            }
            let subject = bench.start(way.between).await?;
            eprintln!("  round {}: {}", round + 1, way.name);
            let port = (subject.as_ref()).map_or(bench.mock.address().port(), |subject| subject.port);
            // Connections upstream open, code is paged in.
            let warmed = bench.flow(ordinary(way, port, Duration::from_secs(3))).await.outcome;
            let scales = Scales::set(subject.as_ref().map(|subject| subject.pid), bench.cores);
            let mut outcome = bench.flow(ordinary(way, port, time)).await.outcome;
            let weight = scales.read();
            outcome.cpu = weight.cpu;
            outcome.harness = weight.harness;
            outcome.others = weight.others;
            outcome.lost += warmed.lost;
            outcome.faults.splice(0..0, warmed.faults);
            rounds.sides[place].outcomes.push(outcome);
            rounds.stop(subject).await;
        }
    }
    let sides = &rounds.sides;
    let title = format!(
        "L3: 100 streams at a time, {RATE} new ones a second for {} s, each on a new connection",
        time.as_secs()
    );
    let mut section = Section::new(title, &rounds, relay_table(sides));
    for way in [SSE, TEXT] {
        let (Some(ours), Some(direct)) = (side(sides, &way), side(sides, &DIRECT)) else {
            continue;
        };
        for (mark, percentile) in [(1.0, 50.0), (5.0, 99.0)] {
            section.targets.push(Target::at_most(
                mark,
                format!("L3 ms added to the first token, p{percentile}, {}", way.name),
                ours.unless_lost(ours.added(direct, percentile)[0]),
            ));
        }
    }
    Ok(section)
}

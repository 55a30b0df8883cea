//! W4: what a request costs, apart from its tokens. Clients that ask for one-token answers, one after the other,
//! as events and whole, with and without keeping the turn.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Between, DIRECT, NGINX, SSE, Side, Way, side};
use crate::client::door::Door;
use crate::report::{Section, TRUST, Target, cell, cpu_beside_nginx, trust};
use crate::stats::{Outcome, millis};
use crate::workload::crowd::Wave;

const CLIENTS: usize = 32;

const WHOLE: Way = way("gateway `/chat`", Door::Whole { store: false });
const SSE_KEPT: Way = way("gateway `/chat/sse`, stored", Door::Sse { store: true });
const WHOLE_KEPT: Way = way("gateway `/chat`, stored", Door::Whole { store: true });
const DIRECT_WHOLE: Way = Way {
    name: "direct, whole",
    between: Between::Nobody,
    door: Door::OpenAiWhole,
};

const fn way(name: &'static str, door: Door) -> Way {
    Way {
        name,
        between: Between::Gateway,
        door,
    }
}

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let times = if bench.quick { 25 } else { 250 };
    let ways = [SSE, WHOLE, SSE_KEPT, WHOLE_KEPT, NGINX, DIRECT, DIRECT_WHOLE];
    let warm = Wave::new(1, Duration::ZERO, 10);
    let rounds = bench
        .interleave(&ways, CLIENTS, warm, Wave::new(1, Duration::ZERO, times))
        .await?;
    let sides = &rounds.sides;
    let count = CLIENTS as u64 * u64::from(times);
    let title = format!("W4: {CLIENTS} clients, one-token answers one after the other, {count} in a round");
    let mut section = Section::new(title, &rounds, table(sides));
    for way in [SSE, WHOLE] {
        let Some(side) = side(sides, &way) else { continue };
        let cpu = side.spread(|outcome| outcome.cpu_per_answer().map(|cpu| cpu[2]));
        section.targets.push(Target::at_most(
            200.0,
            format!("W4 CPU µs per request, {}", way.name),
            side.unless_lost(cpu),
        ));
    }
    for way in [SSE_KEPT, WHOLE_KEPT] {
        let Some(side) = side(sides, &way) else { continue };
        let speed = side.spread(|outcome| outcome.answers_per_second());
        section.targets.push(Target::at_least(
            1_000.0,
            format!("W4 durable turns per second, {}", way.name),
            side.unless_lost(speed),
        ));
    }
    section.notes.push(format!(
        "Driver and mock alone, before the rounds: {:.0} answers/s.",
        bench.alone.answers
    ));
    let speeds = sides.iter().filter(|side| side.way.between == Between::Gateway);
    let fastest = speeds.filter_map(|side| side.spread(|outcome| outcome.answers_per_second()));
    if let Some(fastest) = fastest.map(|spread| spread.max).max_by(f64::total_cmp) {
        let times = bench.alone.answers / fastest;
        section
            .notes
            .push(format!("That is {times:.1} × the gateway's fastest round here."));
    }
    Ok(section)
}

fn table(sides: &[Side]) -> Vec<Vec<String>> {
    let head = [
        "",
        "CPU µs/request",
        "of it user",
        "× nginx",
        "requests/s",
        "whole answer p50 / p99 ms",
    ];
    let mut table = vec![head.iter().chain(&TRUST).map(ToString::to_string).collect::<Vec<_>>()];
    for side in sides {
        let took = |percentile| side.spread(move |outcome| millis(&outcome.whole, percentile));
        let mut row = vec![
            side.way.name.to_owned(),
            cell::<0>(side.spread(|outcome| outcome.cpu_per_answer().map(|cpu| cpu[2]))),
            cell::<0>(side.spread(|outcome| outcome.cpu_per_answer().map(|cpu| cpu[0]))),
            cell::<2>(cpu_beside_nginx(sides, side, Outcome::cpu_per_answer)),
            cell::<0>(side.spread(|outcome| outcome.answers_per_second())),
            format!("{} / {}", cell::<2>(took(50.0)), cell::<2>(took(99.0))),
        ];
        row.extend(trust(side));
        table.push(row);
    }
    table
}

//! W1p: the fair figure of CPU per token. The rate is fixed, below what anybody can do, and tokens come one by one.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, DIRECT, NGINX, SSE, TEXT, side};
use crate::report::{Section, Target, cpu_beside_nginx, relay_table};
use crate::stats::Outcome;
use crate::workload::crowd::Wave;

const STREAMS: usize = 64;
const EVERY: Duration = Duration::from_millis(2);
/// Longer than the pace, so that the streams' phases differ.
const SPREAD: Duration = Duration::from_millis(250);

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let tokens = if bench.quick { 500 } else { 3_000 };
    let warm = Wave::new(50, EVERY, 1).spread(SPREAD);
    let wave = Wave::new(tokens, EVERY, 1).spread(SPREAD);
    let rounds = bench
        .interleave(&[SSE, TEXT, NGINX, DIRECT], STREAMS, warm, wave)
        .await?;
    let sides = &rounds.sides;
    let title = format!("W1p: {STREAMS} streams × {tokens} tokens, one per 2 ms, phases spread");
    let mut section = Section::new(title, &rounds, relay_table(sides));
    for way in [SSE, TEXT] {
        let Some(side) = side(sides, &way) else { continue };
        let beside = cpu_beside_nginx(sides, side, Outcome::cpu_per_token);
        let user = side.spread(|outcome| outcome.cpu_per_token().map(|cpu| cpu[0]));
        section.targets.push(Target::at_most(
            1.5,
            format!("W1p CPU per token, × nginx, {}", way.name),
            side.unless_lost(beside),
        ));
        let what = format!("W1p user µs per token, {}", way.name);
        section.targets.push(Target::at_most(8.0, what, side.unless_lost(user)));
    }
    Ok(section)
}

//! W1: as fast as the sockets take it. Shows what merging is worth, and whether anything breaks under pressure.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, DIRECT, NGINX, SSE, TEXT, side};
use crate::ask::Ask;
use crate::report::{Section, relay_table};
use crate::workload::crowd::Wave;

const STREAMS: usize = 64;
const TOKENS: u32 = 200;

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let times = if bench.quick { 5 } else { 25 };
    let wave = |times| {
        let wave = Wave::new(TOKENS, Duration::ZERO, times);
        Wave {
            ask: Ask {
                per_write: bench.per_write,
                ..wave.ask
            },
            ..wave
        }
    };
    let rounds = bench
        .interleave(&[SSE, TEXT, NGINX, DIRECT], STREAMS, wave(1), wave(times))
        .await?;
    let sides = &rounds.sides;
    let title = format!(
        "W1: {STREAMS} streams × {TOKENS} tokens at full speed, {times} times over ({} per upstream write)",
        bench.per_write
    );
    let mut section = Section::new(title, &rounds, relay_table(sides));
    let mut note = format!(
        "Driver and mock alone, before the rounds: {:.0} tokens/s",
        bench.alone.tokens
    );
    for way in [SSE, TEXT, NGINX] {
        let speed = side(sides, &way).and_then(|side| side.spread(|outcome| outcome.tokens_per_second()));
        if let Some(speed) = speed {
            let times = bench.alone.tokens / speed.median;
            note += &format!(", {times:.1} × {}", way.name);
        }
    }
    section.notes.push(format!("{note}."));
    Ok(section)
}

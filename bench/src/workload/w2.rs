//! W2: what a reader feels. Many streams at a model's pace; how much later do the first and every token come?

use std::time::Duration;

use anyhow::Result;

use super::{Bench, DIRECT, NGINX, SSE, TEXT, side};
use crate::report::{Section, Target, relay_table};
use crate::workload::crowd::Wave;

const STREAMS: usize = 256;
const TOKENS: u32 = 100;
const EVERY: Duration = Duration::from_millis(20);
/// Starts spread over so long: 128 a second, not 256 at once, which would measure a queue of the bench's own making.
const SPREAD: Duration = Duration::from_secs(2);

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    // The warm-up holds all streams open at once, so that everybody's connections upstream are there before.
    let warm = Wave::new(25, EVERY, 1).spread(Duration::from_millis(250));
    let wave = Wave::new(TOKENS, EVERY, 1).spread(SPREAD);
    let rounds = bench
        .interleave(&[SSE, TEXT, NGINX, DIRECT], STREAMS, warm, wave)
        .await?;
    let sides = &rounds.sides;
    let title = format!("W2: {STREAMS} streams × {TOKENS} tokens, one per 20 ms, starts spread over 2 s");
    let mut section = Section::new(title, &rounds, relay_table(sides));
    for way in [SSE, TEXT] {
        let (Some(side), Some(direct)) = (side(sides, &way), side(sides, &DIRECT)) else {
            continue;
        };
        let [first50, delay50] = side.added(direct, 50.0);
        let [first99, _] = side.added(direct, 99.0);
        for (mark, what, measured) in [
            (0.5, "W2 added first token p50 ms", first50),
            (5.0, "W2 added first token p99 ms", first99),
            (0.3, "W2 added per token p50 ms", delay50),
        ] {
            section.targets.push(Target::at_most(
                mark,
                format!("{what}, {}", way.name),
                side.unless_lost(measured),
            ));
        }
    }
    Ok(section)
}

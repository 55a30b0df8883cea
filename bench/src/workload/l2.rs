//! L2: five thousand readers of models that think. Nothing is said but heartbeats; what do they weigh, and what do they cost?

use std::time::Duration;

use anyhow::Result;

use super::figures::Figures;
use super::{Bench, SSE};
use crate::ask::Ask;
use crate::clock::nanos;
use crate::procfs;
use crate::report::Section;
use crate::scales::Scales;
use crate::stats::ratio;
use crate::watch::Watch;
use crate::workload::crowd::Wave;

/// Opened over so long, so that heartbeats are spread as they would be.
const RAMP: Duration = Duration::from_secs(10);
/// What the gateway promises: something is written so often.
const HEARTBEAT: Duration = Duration::from_secs(15);

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let streams = if bench.quick { 1_000 } else { 5_000 };
    // Below the gateway's first_token_timeout of 120 s: who thinks for longer is given up.
    let think = bench.seconds([20, 50, 110]);
    let subject = bench.subject()?.start(&bench.place).await?;
    bench
        .crowd(subject.port, SSE.door, 1)
        .warm_up(Wave::new(3, Duration::ZERO, 1))
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let idle = procfs::own_kib(subject.pid)?;

    let wave = Wave {
        ask: Ask {
            first_us: nanos(think) / 1_000,
            ..Ask::new(0, 1)
        },
        patience: think + Duration::from_secs(60),
        ..Wave::new(1, Duration::ZERO, 1).spread(RAMP)
    };
    let watch = Watch::begin(subject.pid);
    let mut crowd = bench.crowd(subject.port, SSE.door, streams);
    let quiet = async {
        tokio::time::sleep(RAMP + Duration::from_secs(2)).await;
        let scales = Scales::set(Some(subject.pid), bench.cores);
        let open = bench.mock.streaming();
        tokio::time::sleep(think.saturating_sub(RAMP + Duration::from_secs(4))).await;
        // While all were open and silent: what comes after is everybody's first and last token.
        (scales.read(), open, watch.looks().last().copied())
    };
    let (outcome, (weight, open, look)) = tokio::join!(crowd.run(wave), quiet);

    let mut figures = Figures::new(
        "L2",
        format!(
            "{streams} streams that wait {} s for their first token, opened over {} s",
            think.as_secs(),
            RAMP.as_secs()
        ),
    );
    let peak = watch.peak_kib();
    figures.row("streams open while it was quiet", open);
    figures.row("MiB of its own, idle", format!("{:.1}", ratio(idle, 1_024)));
    figures.row(
        "KiB per open stream",
        look.map_or("–".into(), |look| {
            format!("{:.1}", ratio(look.kib.saturating_sub(idle), streams as u64))
        }),
    );
    figures.row(
        "open files, threads",
        look.map_or("–".into(), |look| format!("{}, {}", look.files, look.threads)),
    );
    figures.row(
        "heartbeats, fewest of a stream",
        outcome.fewest_beats.unwrap_or_default(),
    );
    figures.weight(&weight);
    figures.losses("streams", &outcome);
    let all = |measured: Option<f64>| measured.filter(|_| open == streams && outcome.lost == 0);
    figures.at_most(320.0, "MiB of its own, highest", all(peak.map(|kib| ratio(kib, 1_024))));
    figures.at_most(
        5.0,
        "CPU of one core, % (only heartbeats)",
        all(weight.share().map(|share| share * 100.0)),
    );
    // One less than would fit: the first comes fifteen seconds after `start`, and timers are not exact.
    let beats = (think.as_secs() / HEARTBEAT.as_secs()).saturating_sub(1).max(1);
    figures.at_least(
        ratio(beats, 1),
        "heartbeats, fewest of a stream",
        outcome.fewest_beats.map(|beats| ratio(beats, 1)),
    );
    figures.stopped(subject.stop().await);
    Ok(figures.section())
}

//! L8: three times as much as there is room for, in a cage of 256 MiB. Does what is let in get through, are the others told at
//! once, and does the process live?

use std::time::Duration;

use anyhow::Result;

use super::Bench;
use super::arrivals::Flow;
use super::crowd::Wave;
use super::figures::Figures;
use crate::ask::Ask;
use crate::cage::Cage;
use crate::client::door::Door;
use crate::clock::{nanos, now};
use crate::procfs::own_kib;
use crate::report::Section;
use crate::scales::Scales;
use crate::stats::{millis, ratio, tail};
use crate::watch::Watch;

const CAGE: u64 = 256 << 20;
const DOOR: Door = Door::Sse { store: true };
/// Answers of one second and 10 KiB of text, so that logs fill what they may have.
const ANSWER: Ask = Ask {
    stream: 0,
    tokens: 320,
    per_event: 16,
    every_us: 50_000,
    first_us: 0,
    per_write: 1,
    tool_us: 0,
    stall_after: 0,
    cut_after: 0,
};

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let places: u64 = if bench.quick { 100 } else { 300 };
    let time = bench.seconds([5, 40, 300]);
    let gateway = bench.subject()?.with(&[
        ("SLUICEGATE__LIMITS__MAX_RUNS", &places.to_string()),
        // Below the cage: the default of 512 MiB is above it.
        ("SLUICEGATE__RUNS__MEMORY_LIMIT", "96MiB"),
    ]);
    let subject = gateway.start(&bench.place).await?;
    let cage = Cage::around(subject.pid, CAGE);
    let watch = Watch::begin(subject.pid);
    let offer = |rate, time| Flow {
        port: subject.port,
        door: DOOR,
        ask: ANSWER,
        headers: String::new(),
        rate,
        time,
    };
    // The best there is: as many clients as places, each asking again as soon as it has its answer.
    let mut crowd = bench.crowd(subject.port, DOOR, usize::try_from(places)?);
    let best = Wave {
        ask: ANSWER,
        times: u32::try_from(time.as_secs())?,
        ..Wave::new(1, Duration::ZERO, 1).spread(Duration::from_secs(1))
    };
    let ordinary = crowd.run(best).await;
    drop(crowd);
    let rate = ratio(places * 3, 1);
    let scales = Scales::set(Some(subject.pid), bench.cores);
    let start = now();
    let overload = bench.flow(offer(rate, time)).await;
    let weight = scales.read();

    let mut figures = Figures::new(
        "L8",
        format!(
            "limits.max_runs {places}, answers of a second, three times as many, for {} s",
            time.as_secs()
        ),
    );
    // Only what ended within the time counts: the tail of answers after the last arrival is nobody's goodput.
    let inside = |&&(at, good): &&(u64, bool)| good && at <= start + nanos(time);
    let under = ratio(overload.ends.iter().filter(inside).count() as u64, time.as_secs());
    let peak = ordinary.answers_per_second().unwrap_or_default();
    figures.row("asked for a second at three times the room", places * 3);
    figures.row(
        "answered a second, complete and kept: by as many clients as places / at three times the room",
        format!("{peak:.0} / {under:.0}"),
    );
    figures.row("refused", overload.count_refused());
    figures.row("refused after p50 / p99 / max ms", tail(&overload.refusals));
    figures.row(
        "first token of those let in, p50 / p99 / max ms",
        tail(&overload.outcome.first),
    );
    let mib = |kib: Option<u64>| kib.map_or("–".into(), |kib| format!("{:.1}", ratio(kib, 1_024)));
    figures.row("MiB of its own, highest (logs may have 96)", mib(watch.peak_kib()));
    match &cage {
        Some(cage) => {
            figures.row(
                "MiB in the cage of 256, files in the cache among them, highest",
                mib(cage.peak_kib()),
            );
            let kills = cage.kills().map(|kills| ratio(kills, 1));
            figures.at_most(0.0, "processes killed for want of memory", kills);
        }
        None => figures.note("No control group may be written here: there was no cage."),
    }
    figures.weight(&weight);
    figures.losses("answers of as many clients as places", &ordinary);
    figures.losses("answers at three times the room", &overload.outcome);
    figures.at_least(
        90.0,
        "% of the best, answered at three times the room",
        Some(under / peak * 100.0),
    );
    figures.at_most(50.0, "ms until a refusal, p99", millis(&overload.refusals, 99.0));
    figures.at_most(
        0.0,
        "refusals without Retry-After, or with another status than 503",
        Some(ratio(
            overload.without_advice
                + overload
                    .refused
                    .iter()
                    .filter(|(status, _)| *status != 503)
                    .map(|(_, count)| count)
                    .sum::<u64>(),
            1,
        )),
    );
    figures.row("MiB of its own in the end", mib(own_kib(subject.pid).ok()));
    figures.stopped(subject.stop().await);
    Ok(figures.section())
}

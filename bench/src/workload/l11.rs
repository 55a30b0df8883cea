//! L11: SIGTERM while two hundred streams are open. Does everybody learn how theirs ended, and how soon is the process gone?

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use super::crowd::next_stream;
use super::figures::Figures;
use super::{Bench, SSE, TEXT, Way};
use crate::ask::Ask;
use crate::client::Connection;
use crate::clock::{nanos, now};
use crate::report::Section;
use crate::stats::{histogram, millis, ratio};

/// What the gateway promises.
const EXIT: f64 = 25.0;

/// One kind of stream and how it has to end.
struct Kind {
    name: &'static str,
    way: Way,
    /// Seconds of talking after the signal; the drain is 20.
    after: u64,
    whole: bool,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "events that end in time: `done`",
        way: SSE,
        after: 8,
        whole: true,
    },
    Kind {
        name: "text that ends in time: the last chunk",
        way: TEXT,
        after: 8,
        whole: true,
    },
    Kind {
        name: "events that cannot: `error` shutting_down",
        way: SSE,
        after: 200,
        whole: false,
    },
    Kind {
        name: "text that cannot: no last chunk",
        way: TEXT,
        after: 200,
        whole: false,
    },
];

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let each: u64 = if bench.quick { 10 } else { 50 };
    let every = Duration::from_millis(50);
    let settle = Duration::from_secs(3);
    let mut figures = Figures::new(
        "L11",
        format!("SIGTERM with {} open streams", each * KINDS.len() as u64),
    );
    let subject = bench.subject()?.start(&bench.place).await?;
    let port = subject.port;
    let mut streams = JoinSet::new();
    for kind in &KINDS {
        for _ in 0..each {
            let seconds = settle + Duration::from_secs(kind.after);
            let ask = Ask {
                every_us: nanos(every) / 1_000,
                ..Ask::new(next_stream(), u32::try_from(seconds.as_millis() / every.as_millis())?)
            };
            streams.spawn(async move {
                let verdict = tokio::time::timeout(Duration::from_secs(60), one(port, kind, ask)).await;
                (kind.name, verdict.context("no end after a minute").flatten(), now())
            });
        }
    }
    tokio::time::sleep(settle).await;
    let open = bench.mock.streaming();
    ensure!(
        open as u64 == each * KINDS.len() as u64,
        "only {open} streams were open"
    );
    let told = now();
    subject.tell_to_stop()?;
    let ended = subject.ended().await;
    let took = ratio(now() - told, 1_000_000_000);
    let mut ends = histogram();
    let mut good: Vec<(&str, u64)> = KINDS.iter().map(|kind| (kind.name, 0)).collect();
    let mut faults = Vec::new();
    while let Some(stream) = streams.join_next().await {
        let (name, verdict, at) = stream?;
        match verdict {
            Ok(()) => {
                ends.saturating_record(at.saturating_sub(told));
                good.iter_mut()
                    .filter(|(kind, _)| *kind == name)
                    .for_each(|(_, count)| *count += 1);
            }
            Err(fault) => faults.push(format!("{name}: {fault:#}")),
        }
    }
    for (name, count) in &good {
        figures.row(format!("{name}, of {each}"), count);
    }
    figures.row("s from the signal to the process's end", format!("{took:.2}"));
    figures.row(
        "s from the signal to a stream's end, p50 / max",
        [50.0, 100.0]
            .map(|at| millis(&ends, at).map_or("–".into(), |ms| format!("{:.2}", ms / 1e3)))
            .join(" / "),
    );
    let right: u64 = good.iter().map(|(_, count)| count).sum();
    figures.at_least(
        100.0,
        "% of streams that ended as they had to",
        Some(ratio(right * 100, each * KINDS.len() as u64)),
    );
    figures.at_most(
        EXIT,
        "s until it was gone, with exit code 0",
        ended.is_ok().then_some(took),
    );
    figures.at_most(
        0.0,
        "answers left open at the upstream",
        Some(ratio(bench.mock.streaming() as u64, 1)),
    );
    faults.dedup();
    for fault in faults.into_iter().take(4) {
        figures.note(format!("Wrong: {fault}"));
    }
    figures.stopped(ended);
    Ok(figures.section())
}

/// Reads one stream to its end, and says whether it is the right one.
async fn one(port: u16, kind: &Kind, ask: Ask) -> Result<()> {
    let answer = Connection::open(port).await?.ask(kind.way.door, ask).await;
    if kind.whole {
        answer?;
        return Ok(());
    }
    let fault = format!("{:#}", answer.err().context("it is said to be complete")?);
    let right = if kind.way.name == SSE.name {
        fault.starts_with("event error: ") && fault.contains(r#""code":"shutting_down""#)
    } else {
        fault.ends_with("without an end") || fault.contains("reset")
    };
    ensure!(right, "{fault}");
    Ok(())
}

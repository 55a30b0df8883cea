//! L16: a key that may ask so often a minute, asking three times as often. How much gets through in any sixty seconds?

use std::time::Duration;

use anyhow::Result;

use super::arrivals::Flow;
use super::figures::Figures;
use super::w6::Redis;
use super::{Bench, SSE};
use crate::ask::Ask;
use crate::clock::{nanos, now};
use crate::report::Section;
use crate::scales::Scales;
use crate::stats::{millis, ratio, tail};
use crate::subject::Gateway;

const PER_MINUTE: u64 = 600;
const KEY: &str = "bench-key-that-opens-nothing-else";
/// SHA-256 of the key, in hex.
const DIGEST: &str = "97053b1f0c68452f05c9b0eaab2129860e62b5b750f2b2605e2a956abe968870";
const MINUTE: Duration = Duration::from_secs(60);

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let time = bench.seconds([75, 150, 600]);
    let mut gateway = bench.subject()?.clone();
    gateway.settings = Some(format!(
        "[[auth.keys]]\nname = \"bench\"\nsha256 = \"{DIGEST}\"\nrequests_per_minute = {PER_MINUTE}\n"
    ));
    let mut figures = Figures::new(
        "L16",
        format!(
            "a key with {PER_MINUTE} requests a minute asks for {} a minute, for {} s",
            PER_MINUTE * 3,
            time.as_secs()
        ),
    );
    figures.row("**one gateway**", "");
    limited(bench, &mut figures, &[&gateway], time, 5.0).await?;
    match &bench.postgres {
        Some(postgres) => {
            let redis = Redis::start(&bench.redis, bench.cores.map(|cores| cores.harness)).await?;
            let relay = format!("redis://127.0.0.1:{}", redis.port);
            let shared = gateway.with(&[
                ("SLUICEGATE__RUN_LOG__URL", &relay),
                ("SLUICEGATE__STORE__URL", postgres),
            ]);
            figures.row("**two gateways**", "");
            limited(bench, &mut figures, &[&shared, &shared], time, 10.0).await?;
        }
        None => figures.note("Not asked at two gateways: that needs a database of its own (`--postgres URL`)."),
    }
    Ok(figures.section())
}

/// Asks all gateways by turns, and counts what got through in the sixty seconds from every fifth second on.
async fn limited(
    bench: &Bench,
    figures: &mut Figures,
    gateways: &[&Gateway],
    time: Duration,
    tolerance: f64,
) -> Result<()> {
    let mut subjects = Vec::new();
    for gateway in gateways {
        subjects.push(gateway.start(&bench.place).await?);
    }
    let pids: Vec<u32> = subjects.iter().map(|subject| subject.pid).collect();
    let scales = Scales::set(pids.first().copied().filter(|_| pids.len() == 1), bench.cores);
    let start = now();
    let rate = ratio(PER_MINUTE * 3, 60 * subjects.len() as u64);
    let flows = subjects.iter().map(|subject| {
        bench.flow(Flow {
            port: subject.port,
            door: SSE.door,
            ask: Ask::new(0, 1),
            headers: format!("Authorization: Bearer {KEY}\r\n"),
            rate,
            time,
        })
    });
    let flows = futures_all(flows.collect()).await;
    let weight = scales.read();
    let through: Vec<u64> = flows
        .iter()
        .flat_map(|flow| &flow.ends)
        .filter(|(_, good)| *good)
        .map(|(at, _)| at - start)
        .collect();
    let windows = (0..=(time.saturating_sub(MINUTE)).as_secs() / 5).map(|step| {
        let from = step * 5_000_000_000;
        let inside = through.iter().filter(|&&at| at >= from && at < from + nanos(MINUTE));
        inside.count() as u64
    });
    let windows: Vec<u64> = windows.collect();
    let (fewest, most) = (windows.iter().min(), windows.iter().max());
    figures.row(
        "let through in sixty seconds, in turn",
        windows.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    );
    let refused: u64 = flows.iter().map(super::arrivals::Flowed::count_refused).sum();
    figures.row("refused", refused);
    for flow in &flows {
        figures.row("refused after p50 / p99 / max ms", tail(&flow.refusals));
        figures.losses("answers", &flow.outcome);
    }
    if pids.len() == 1 {
        figures.weight(&weight);
    }
    let off = |count: &u64| (ratio(*count, PER_MINUTE) - 1.0) * 100.0;
    let worst = fewest
        .zip(most)
        .map(|(fewest, most)| off(fewest).abs().max(off(most).abs()));
    let what = format!("% beside the limit in any sixty seconds, {} gateway(s)", subjects.len());
    figures.at_most(tolerance, what, worst);
    let wrong: u64 = flows
        .iter()
        .map(|flow| {
            flow.without_advice
                + flow
                    .refused
                    .iter()
                    .filter(|(status, _)| *status != 429)
                    .map(|(_, count)| count)
                    .sum::<u64>()
        })
        .sum();
    figures.at_most(
        0.0,
        format!(
            "refusals that are not 429 with Retry-After, {} gateway(s)",
            subjects.len()
        ),
        Some(ratio(wrong, 1)),
    );
    let slowest = flows
        .iter()
        .filter_map(|flow| millis(&flow.refusals, 99.0))
        .max_by(f64::total_cmp);
    figures.at_most(
        50.0,
        format!("ms until a refusal, p99, {} gateway(s)", subjects.len()),
        slowest,
    );
    for subject in subjects {
        figures.stopped(subject.stop().await);
    }
    Ok(())
}

/// One or two, at the same time.
async fn futures_all<T, F: Future<Output = T>>(flows: Vec<F>) -> Vec<T> {
    let mut flows = flows.into_iter();
    match (flows.next(), flows.next()) {
        (Some(one), Some(other)) => {
            let (one, other) = tokio::join!(one, other);
            vec![one, other]
        }
        (Some(one), None) => vec![one.await],
        _ => Vec::new(),
    }
}

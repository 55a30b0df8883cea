//! L17: five thousand connections a second that come and go. Is anybody else still served?

use std::time::Duration;

use anyhow::Result;
use tokio::net::TcpStream;

use super::arrivals::{Flow, arrivals};
use super::figures::Figures;
use super::{Bench, SSE};
use crate::ask::Ask;
use crate::report::Section;
use crate::scales::Scales;
use crate::stats::{millis, ratio, tail};
use crate::watch::Watch;

const FLOOD: f64 = 5_000.0;

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let time = bench.seconds([3, 15, 60]);
    let subject = bench.subject()?.start(&bench.place).await?;
    let port = subject.port;
    let questions = Flow {
        port,
        door: SSE.door,
        ask: Ask::new(0, 5),
        headers: String::new(),
        rate: 20.0,
        time,
    };
    let (watch, scales) = (Watch::begin(subject.pid), Scales::set(Some(subject.pid), bench.cores));
    let flood = arrivals(&bench.pacer, FLOOD, time, |_, _| async move {
        let connected = tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(("127.0.0.1", port))).await;
        // Gone at once, with a RST, so that the bench's own ports are not what runs out.
        matches!(connected, Ok(Ok(socket)) if socket.set_zero_linger().is_ok())
    });
    let (flooded, beside) = tokio::join!(flood, bench.flow(questions));
    let (weight, beside) = (scales.read(), beside.outcome);
    let connected = flooded.iter().filter(|connected| **connected).count() as u64;

    let mut figures = Figures::new(
        "L17",
        format!("{FLOOD} connections a second that go at once, for {} s", time.as_secs()),
    );
    figures.row(
        "connections made a second",
        format!("{:.0}", ratio(connected * 1_000_000_000, weight.took)),
    );
    figures.row("answers beside, whole p50 / p99 / max ms", tail(&beside.whole));
    let looks = watch.looks();
    figures.row(
        "open files, most",
        looks.iter().map(|look| look.files).max().unwrap_or_default(),
    );
    figures.row(
        "MiB of its own, highest",
        watch
            .peak_kib()
            .map_or("–".into(), |kib| format!("{:.1}", ratio(kib, 1_024))),
    );
    figures.weight(&weight);
    figures.losses("answers beside the flood", &beside);
    figures.at_most(
        500.0,
        "ms for an answer beside the flood, p99",
        millis(&beside.whole, 99.0),
    );
    figures.stopped(subject.stop().await);
    Ok(figures.section())
}

//! L4: readers that hardly read. What do they cost in memory, what do the others feel, and when are they shown the door?

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::crowd::next_stream;
use super::figures::Figures;
use super::l3::ordinary;
use super::{Bench, SSE};
use crate::ask::Ask;
use crate::clock::now;
use crate::procfs::{own_kib, sockets};
use crate::report::{Section, cell};
use crate::scales::Scales;
use crate::stats::{Spread, histogram, millis, ratio, tail};
use crate::token::LEN;
use crate::watch::Watch;

/// 1 MiB less a crumb, in events of half a KiB, in twenty seconds.
const ANSWER: Ask = Ask {
    stream: 0,
    tokens: 33_824,
    per_event: 16,
    every_us: 9_500,
    first_us: 0,
    per_write: 1,
    tool_us: 0,
    stall_after: 0,
    cut_after: 0,
};
/// What such a reader's socket holds, and how it reads: a hundred bytes a second, in segments as they cross a network. (On
/// loopback's own segments of 64 KiB the gateway's kernel would take the whole answer, and nobody would be slow.)
const RECEIVE_BUFFER: usize = 4_096;
const SEGMENT: u32 = 1_460;
const SIP: usize = 100;
/// What the gateway promises a reader that takes nothing.
const STALL: Duration = Duration::from_secs(60);
/// Seconds after the first request in which all answers are said and nobody is cut.
const HANGING: Range<u64> = 30..55;

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let slow = if bench.quick { 20 } else { 200 };
    let before = bench.seconds([4, 20, 60]);
    // The answers are said in 20 s; what is left is for those that are cut.
    let during = bench.seconds([90, 100, 300]);
    // Ended runs would weigh too; here only what somebody reads is to.
    let gateway = bench.subject()?.with(&[("SLUICEGATE__RUNS__REPLAY_WINDOW", "1s")]);
    let subject = gateway.start(&bench.place).await?;
    let port = subject.port;

    let watch = Watch::begin(subject.pid);
    let alone = bench.flow(ordinary(SSE, port, before)).await.outcome;
    let base = watch.peak_kib().context("no memory seen")?;
    drop(watch);

    let (watch, scales) = (Watch::begin(subject.pid), Scales::set(Some(subject.pid), bench.cores));
    let start = now();
    let mut readers = JoinSet::new();
    let mut open = HashMap::new();
    for _ in 0..slow {
        let ask = Ask {
            stream: next_stream(),
            ..ANSWER
        };
        let (socket, peer) = narrow(port)?;
        open.insert(peer, now());
        readers.spawn(sip(socket, SSE.door.request(ask)));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut cuts = histogram();
    let mut unsent_most = 0;
    let watching = async {
        let deadline = now() + crate::clock::nanos(during + STALL);
        while !open.is_empty() && now() < deadline {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let Ok(seen) = sockets(port) else { continue };
            let theirs = seen.iter().filter(|socket| open.contains_key(&socket.peer));
            unsent_most = unsent_most.max(theirs.clone().map(|socket| socket.unsent).sum());
            let held: Vec<u16> = theirs
                .filter(|socket| socket.established)
                .map(|socket| socket.peer)
                .collect();
            open.retain(|peer, since| {
                let still = held.contains(peer);
                if !still {
                    cuts.saturating_record(now() - *since);
                }
                still
            });
        }
    };
    let (beside, ()) = tokio::join!(bench.flow(ordinary(SSE, port, during)), watching);
    let (beside, weight) = (beside.outcome, scales.read());
    let (peak, left) = (watch.peak_kib(), open.len());
    // All has been said, and nobody was cut yet: what is held for as long as somebody hardly reads.
    let hanging = watch
        .looks()
        .into_iter()
        .filter(|look| HANGING.contains(&(look.at.saturating_sub(start) / 1_000_000_000)));
    let hanging = Spread::of(hanging.map(|look| ratio(look.kib, 1_024)));
    readers.shutdown().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = own_kib(subject.pid)?;

    let answer = u64::from(ANSWER.tokens) * LEN as u64 / 1_024;
    let mut figures = Figures::new(
        "L4",
        format!("{slow} readers of {answer} KiB at 100 B a second beside 100 ordinary ones"),
    );
    let each = peak.map(|peak| ratio(peak.saturating_sub(base), slow as u64));
    let mib = |kib: u64| format!("{:.1}", ratio(kib, 1_024));
    figures.row("MiB of its own with the ordinary ones alone, highest", mib(base));
    figures.row(
        "MiB of its own beside the slow ones, highest",
        peak.map_or("–".into(), mib),
    );
    figures.row(
        "MiB of its own while they hang, all said (30 to 55 s)",
        cell::<1>(hanging),
    );
    figures.row("MiB of its own 3 s after all were gone", mib(after));
    figures.row("MiB in the kernel for the slow ones, most", mib(unsent_most / 1_024));
    figures.row(
        "slow ones cut after p50 / p99 / max s (from their request; the answer ends after 20)",
        [50.0, 99.0, 100.0]
            .map(|at| millis(&cuts, at).map_or("–".into(), |ms| format!("{:.1}", ms / 1e3)))
            .join(" / "),
    );
    figures.row(
        "ordinary ones alone, first token p50 / p99 / max ms",
        tail(&alone.first),
    );
    figures.row(
        "ordinary ones beside, first token p50 / p99 / max ms",
        tail(&beside.first),
    );
    figures.row("ordinary ones alone, per token p50 / p99 / max ms", tail(&alone.delay));
    figures.row(
        "ordinary ones beside, per token p50 / p99 / max ms",
        tail(&beside.delay),
    );
    figures.weight(&weight);
    figures.losses("ordinary answers", &alone);
    figures.losses("ordinary answers beside", &beside);
    figures.at_most(
        ratio(answer + 64, 1),
        "KiB for each slow reader (its answer and 64)",
        each,
    );
    let times = |of: fn(&crate::stats::Outcome) -> Option<f64>| Some(of(&beside)? / of(&alone)?);
    figures.at_most(
        2.0,
        "× the first token's p99 of ordinary ones alone",
        times(|outcome| millis(&outcome.first, 99.0)),
    );
    figures.at_most(
        2.0,
        "× a token's p99 of ordinary ones alone",
        times(|outcome| millis(&outcome.delay, 99.0)),
    );
    figures.at_most(0.0, "slow readers that were never cut", Some(ratio(left as u64, 1)));
    figures.stopped(subject.stop().await);
    Ok(figures.section())
}

/// A connection that takes little, and its port on this side.
fn narrow(port: u16) -> Result<(TcpStream, u16)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_tcp_mss(SEGMENT)?;
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.set_nonblocking(true)?;
    let socket = TcpStream::from_std(socket.into())?;
    let peer = socket.local_addr()?.port();
    Ok((socket, peer))
}

/// Asks, and reads a little every second until the other side has had enough.
async fn sip(mut socket: TcpStream, request: Vec<u8>) {
    if socket.write_all(&request).await.is_err() {
        return;
    }
    let mut some = [0; SIP];
    while matches!(socket.read(&mut some).await, Ok(1..)) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

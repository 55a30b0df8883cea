//! L5: fifty clients a second that leave when they like: before anything came, in the middle, while a tool works, while they
//! come back. Does everything that was theirs go too, and does memory stay where it is?

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::arrivals::{Flow, arrivals};
use super::crowd::next_stream;
use super::figures::Figures;
use super::{Bench, SSE};
use crate::ask::Ask;
use crate::client::door::Door;
use crate::clock::{nanos, now};
use crate::dice::Dice;
use crate::procfs::{open_sockets, own_kib, sockets};
use crate::report::Section;
use crate::scales::Scales;
use crate::stats::{ratio, tail};
use crate::subject::Subject;
use crate::watch::{Look, Watch, growth};

/// Clients that leave, and beside them clients that stay to the end and look at every byte, a second.
const LEAVE: f64 = 50.0;
const STAY: f64 = 5.0;
/// Nobody stays longer than this after asking.
const LONGEST_MS: u64 = 1_000;
/// How long a run goes on without its reader here; the default of 30 s would only make everything wait.
const GRACE: Duration = Duration::from_secs(1);
const BACK: Duration = Duration::from_secs(5);
const SEED: u64 = 0x5EED;

/// The ways to leave; each is as likely.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Events,
    Text,
    Whole,
    /// While a tool works, before, or after.
    Tool,
    /// Comes back with the last id, and leaves again.
    Resume,
    /// Perhaps while it waits for its session.
    Queue,
    /// In the middle of the request's body.
    Upload,
}

const WAYS: [Leaving; 7] = [
    Leaving::Events,
    Leaving::Text,
    Leaving::Whole,
    Leaving::Tool,
    Leaving::Resume,
    Leaving::Queue,
    Leaving::Upload,
];

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let time = bench.churn.unwrap_or_else(|| bench.seconds([15, 150, 3_600]));
    let mut figures = Figures::new(
        "L5",
        format!("{LEAVE} clients a second that leave, for {} s each", time.as_secs()),
    );
    if let Some(window) = bench.window {
        once(bench, &mut figures, time, window).await?;
        return Ok(figures.section());
    }
    once(bench, &mut figures, time, Duration::from_secs(1)).await?;
    // With the default, memory grows until the first logs go: nothing is to be learnt in less.
    let window = Duration::from_secs(300);
    if time >= window + Duration::from_secs(180) {
        once(bench, &mut figures, time, window).await?;
    } else {
        figures
            .note("Not churned with the default replay_window of 5 min: that takes 8 minutes or more (`--churn 600`).");
    }
    Ok(figures.section())
}

/// Churns with one `replay_window`.
async fn once(bench: &Bench, figures: &mut Figures, time: Duration, window: Duration) -> Result<()> {
    let mut gateway = bench.subject()?.with(&[
        ("SLUICEGATE__RUNS__DETACH_GRACE", "1s"),
        ("SLUICEGATE__RUNS__REPLAY_WINDOW", &format!("{}s", window.as_secs())),
    ]);
    gateway.settings = Some(settings(bench.mock.address().port()));
    let subject = gateway.start(&bench.place).await?;
    let name = format!("replay_window {} s", window.as_secs());
    eprintln!("  {name}");

    // What is made once and kept is to be in the base: threads, connections of the store, buffers.
    churn(bench, &subject, Duration::from_secs(10), SEED + 1).await;
    settled(bench, &subject, usize::MAX).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let base = Look::at(subject.pid).context("the gateway is gone")?;
    let base_sockets = own_sockets(bench, subject.pid);

    let (watch, scales) = (Watch::begin(subject.pid), Scales::set(Some(subject.pid), bench.cores));
    let start = now();
    let stay = Flow {
        port: subject.port,
        door: Door::Sse { store: true },
        ask: Ask {
            every_us: 10_000,
            ..Ask::new(0, 20)
        },
        headers: String::new(),
        rate: STAY,
        time,
    };
    let (left, stayed) = tokio::join!(churn(bench, &subject, time, SEED), bench.flow(stay));
    let ended = now();
    let looks = watch.looks();
    drop(watch);
    let back = settled(bench, &subject, base_sockets).await;
    let (after, weight) = (Look::at(subject.pid).context("the gateway is gone")?, scales.read());

    // Memory is judged once the first logs have gone again and allocators have seen everything.
    let warm = (window + Duration::from_secs(60)).min(time * 2 / 3);
    let grown = growth(&looks, start + nanos(warm));
    let mib = |kib: u64| format!("{:.1}", ratio(kib, 1_024));
    figures.row(format!("**{name}**"), "");
    figures.row(
        "clients that left: before a byte / in the middle / too late",
        left.map(|count| count.to_string()).join(" / "),
    );
    figures.row(
        "answers of those that stayed, first token p50 / p99 / max ms",
        tail(&stayed.outcome.first),
    );
    let series: Vec<String> = (0..=6)
        .filter_map(|part| {
            let at = start + (ended - start) / 6 * part;
            looks.iter().rev().find(|look| look.at <= at).or(looks.first())
        })
        .map(|look| mib(look.kib))
        .collect();
    figures.row("MiB of its own, from beginning to end", series.join(", "));
    figures.row(
        format!(
            "MiB of its own in the end, {:.1} s later",
            ratio(after.at - ended, 1_000_000_000)
        ),
        mib(own_kib(subject.pid)?),
    );
    figures.row(
        "sockets that are not to the upstream, open files, threads: before",
        format!("{base_sockets}, {}, {}", base.files, base.threads),
    );
    figures.row(
        "the same in the end",
        format!(
            "{}, {}, {}",
            own_sockets(bench, subject.pid),
            after.files,
            after.threads
        ),
    );
    figures.row(
        "connections at the upstream in the end (kept for the next), in use",
        format!("{}, {}", bench.mock.connections(), bench.mock.streaming()),
    );
    figures.weight(&weight);
    figures.losses("answers of those that stayed", &stayed.outcome);
    figures.at_most(
        ratio(BACK.as_secs(), 1),
        format!(
            "s until sockets and answers under way were as before, {name} (with {} s of grace)",
            GRACE.as_secs()
        ),
        back.map(|took| ratio(took, 1_000_000_000)),
    );
    // The store opens three of its connections for reading, each with a thread, when they are first needed.
    figures.at_most(
        3.0,
        format!("threads more than before, {name}"),
        Some(ratio(after.threads.saturating_sub(base.threads) as u64, 1)),
    );
    figures.at_most(
        1.0,
        format!(
            "MiB of growth in 10 min, {name}, judged from {} s of {} s on",
            warm.as_secs(),
            time.as_secs()
        ),
        grown,
    );
    figures.stopped(subject.stop().await);
    Ok(())
}

/// Sockets that are not connections to the upstream: the gateway keeps some of those for the next run.
fn own_sockets(bench: &Bench, pid: u32) -> usize {
    open_sockets(pid).saturating_sub(bench.mock.connections())
}

/// Nanoseconds until nothing is under way and sockets are as few as before; nothing after thirty seconds.
async fn settled(bench: &Bench, subject: &Subject, base: usize) -> Option<u64> {
    let start = now();
    while now() - start < nanos(Duration::from_secs(30)) {
        let busy = bench.mock.streaming() > 0 || sockets(subject.port).ok()?.iter().any(|socket| socket.established);
        if !busy && own_sockets(bench, subject.pid) <= base {
            return Some(now() - start);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

/// An agent with a tool that takes as long as it is told to.
fn settings(mock: u16) -> String {
    format!(
        r#"
[tools.http.slow]
description = "Waits."
parameters = {{ type = "object", properties = {{ us = {{ type = "integer" }} }}, required = ["us"] }}
url = "http://127.0.0.1:{mock}/tool/{{us}}"
[tools.guard]
allow = ["127.0.0.1/32"]
[agents.assistant]
model = "openai/bench"
tools = ["slow"]
"#
    )
}

/// Lets clients come and leave; how many left before a byte came, in the middle, and after the end.
async fn churn(bench: &Bench, subject: &Subject, time: Duration, seed: u64) -> [u64; 3] {
    let port = subject.port;
    let when = arrivals(&bench.pacer, LEAVE, time, |place, _| {
        let mut dice = Dice::new(seed ^ (place << 20));
        async move { leave(port, &mut dice).await.ok() }
    });
    let mut count = [0; 3];
    for when in when.await.into_iter().flatten() {
        count[when] += 1;
    }
    count
}

/// One client that leaves; 0: nothing had come, 1: something, 2: everything.
async fn leave(port: u16, dice: &mut Dice) -> Result<usize> {
    let way = WAYS[usize::try_from(dice.throw(WAYS.len() as u64))?];
    let ask = Ask {
        every_us: 10_000,
        first_us: dice.throw(400) * 1_000,
        tool_us: if matches!(way, Leaving::Tool) { 400_000 } else { 0 },
        ..Ask::new(next_stream(), 200)
    };
    let door = match way {
        Leaving::Text => Door::Text {
            store: dice.throw(2) == 0,
        },
        Leaving::Whole => Door::Whole { store: true },
        Leaving::Resume => SSE.door,
        _ => Door::Sse {
            store: matches!(way, Leaving::Queue) || dice.throw(2) == 0,
        },
    };
    let fields = match way {
        // Other sessions after a while: histories are sent to the model, and would make every run heavier than the last.
        Leaving::Queue => format!(
            r#","on_busy":"queue","session_id":"churn-{}-{}""#,
            ask.stream / 1_000,
            dice.throw(20)
        ),
        _ => String::new(),
    };
    let mut request = door.request_with(ask, "", &fields);
    if matches!(way, Leaving::Upload) {
        request.truncate(request.len() - 1 - usize::try_from(dice.throw(40))?);
    }
    let came = come_and_go(port, &request, dice).await?;
    let Some(id) = last_id(&came).filter(|_| matches!(way, Leaving::Resume)) else {
        return Ok(phase(&came));
    };
    let (run, _) = id.split_once(':').context("an id")?;
    let again = format!("GET /runs/{run}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nLast-Event-ID: {id}\r\n\r\n");
    Ok(phase(&come_and_go(port, again.as_bytes(), dice).await?))
}

/// Sends a request, reads for a while, and leaves: one in two with a RST. What had come.
async fn come_and_go(port: u16, request: &[u8], dice: &mut Dice) -> Result<Vec<u8>> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.set_nodelay(true)?;
    if dice.throw(2) == 0 {
        socket.set_zero_linger()?;
    }
    socket.write_all(request).await?;
    let mut came = Vec::new();
    let patience = Duration::from_millis(dice.throw(LONGEST_MS));
    // Over in time, or not: both are a way to leave.
    let _ = tokio::time::timeout(patience, async {
        while socket.read_buf(&mut came).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    Ok(came)
}

fn phase(came: &[u8]) -> usize {
    match came {
        [] => 0,
        _ if came.ends_with(b"0\r\n\r\n") => 2,
        _ => 1,
    }
}

/// The last whole `id:` of events.
fn last_id(came: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(came);
    let (_, rest) = text.rsplit_once("\nid: ")?;
    Some(rest.split_once('\n')?.0.to_owned())
}

//! L7: connections that want to be held. Some say nothing, some begin and do not go on, some read as slowly as they dare: the
//! bench's own, and `slowhttptest`'s. Are the others served, and when are these gone?

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;

use super::arrivals::{Flow, Flowed};
use super::figures::Figures;
use super::{Bench, SSE};
use crate::ask::Ask;
use crate::clock::{nanos, now};
use crate::machine;
use crate::procfs::sockets;
use crate::report::Section;
use crate::scales::Scales;
use crate::stats::{histogram, millis, ratio, tail};
use crate::subject::Subject;
use crate::watch::Watch;

/// What the gateway promises for headers and for a body.
const HEADERS: f64 = 10.0;
const BODY: f64 = 30.0;
/// What is granted beside the promise: timers, a busy machine, and a look every second.
const CRUMB: f64 = 2.0;
/// How fast `slowhttptest` opens its connections.
const OPENED: u64 = 500;

/// A way to be a nuisance, of the bench's own.
struct Nuisance {
    name: &'static str,
    /// What is said at once.
    says: &'static [u8],
    /// What is said every second after it.
    drips: &'static [u8],
    /// After how many seconds the gateway has to have had enough.
    promise: f64,
}

const NUISANCES: [Nuisance; 5] = [
    Nuisance {
        name: "say nothing",
        says: b"",
        drips: b"",
        promise: HEADERS,
    },
    Nuisance {
        name: "send headers without end, a byte a second",
        says: b"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ",
        drips: b"a",
        promise: HEADERS,
    },
    Nuisance {
        name: "send half of HTTP/2's preface",
        says: b"PRI * HTTP/2.0\r\n\r\nS",
        drips: b"",
        promise: HEADERS,
    },
    Nuisance {
        name: "send HTTP/2's preface and no request",
        says: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        drips: b"",
        promise: HEADERS,
    },
    Nuisance {
        name: "send a body, a byte a second",
        says:
            b"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{",
        drips: b" ",
        promise: BODY,
    },
];

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let each = if bench.quick { 200 } else { 1_000 };
    let time = bench.seconds([36, 40, 240]);
    let subject = bench.subject()?.start(&bench.place).await?;
    let mut figures = Figures::new(
        "L7",
        format!(
            "{} connections that hold on beside 20 questions a second",
            each * NUISANCES.len()
        ),
    );
    let alone = bench
        .flow(questions(subject.port, bench.seconds([3, 10, 30])))
        .await
        .outcome;
    figures.row("questions alone, whole answer p50 / p99 / max ms", tail(&alone.whole));

    let watch = Watch::begin(subject.pid);
    let scales = Scales::set(Some(subject.pid), bench.cores);
    let (beside, lives) = tokio::join!(bench.flow(questions(subject.port, time)), pester(&subject, each));
    judge(&mut figures, "the bench's own", &beside);
    for (nuisance, lives) in NUISANCES.iter().zip(&lives) {
        let seconds = |at| millis(lives, at).map(|ms| ms / 1e3);
        let cells = [50.0, 99.0, 100.0].map(|at| seconds(at).map_or("–".into(), |at| format!("{at:.1}")));
        figures.row(
            format!("{} that {}: gone after p50 / p99 / max s", lives.len(), nuisance.name),
            cells.join(" / "),
        );
        figures.at_most(
            nuisance.promise + CRUMB,
            format!("s until the last was gone of those that {}", nuisance.name),
            seconds(100.0).filter(|_| lives.len() == each as u64),
        );
    }
    figures.weight(&scales.read());
    if machine::has("slowhttptest") {
        let many = if bench.quick { 400 } else { 2_000 };
        for (flag, name, promise) in [
            ("-H", "headers", HEADERS),
            ("-B", "bodies", BODY),
            ("-X", "reads", BODY),
        ] {
            slow_test(bench, &mut figures, &subject, (flag, name, promise), many, time).await?;
        }
    } else {
        figures.note("slowhttptest is not installed (apt-get install slowhttptest): only the bench's own attackers.");
    }
    figures.row(
        "MiB of its own, highest",
        watch
            .peak_kib()
            .map_or("–".into(), |kib| format!("{:.1}", ratio(kib, 1_024))),
    );
    figures.stopped(subject.stop().await);
    Ok(figures.section())
}

/// Twenty short answers a second, each on a new connection.
fn questions(port: u16, time: Duration) -> Flow {
    Flow {
        port,
        door: SSE.door,
        ask: Ask::new(0, 5),
        headers: String::new(),
        rate: 20.0,
        time,
    }
}

fn judge(figures: &mut Figures, whom: &str, beside: &Flowed) {
    let outcome = &beside.outcome;
    let all = outcome.answers + outcome.lost + beside.count_refused();
    figures.row(
        format!("questions beside {whom}, whole answer p50 / p99 / max ms"),
        tail(&outcome.whole),
    );
    figures.at_least(
        99.9,
        format!("% of the {all} questions answered beside {whom}"),
        Some(ratio(outcome.answers * 100_000, all) / 1_000.0),
    );
    figures.at_most(
        500.0,
        format!("ms for an answer beside {whom}, p99"),
        millis(&outcome.whole, 99.0),
    );
    for fault in &outcome.faults {
        figures.note(format!("Lost beside {whom}: {fault}"));
    }
}

/// All kinds at once, `each` of each, opened over two seconds; how long each lived.
async fn pester(subject: &Subject, each: usize) -> Vec<Histogram<u64>> {
    let port = subject.port;
    let mut tasks = JoinSet::new();
    for count in 0..each {
        for (kind, nuisance) in NUISANCES.iter().enumerate() {
            tasks.spawn(async move { (kind, hold(port, nuisance).await.ok()) });
        }
        if count % (each / 100).max(1) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let mut lives: Vec<_> = NUISANCES.iter().map(|_| histogram()).collect();
    while let Some(done) = tasks.join_next().await {
        if let Ok((kind, Some(took))) = done {
            lives[kind].saturating_record(took);
        }
    }
    lives
}

/// Holds a connection until the other side closes it; nanoseconds. Two minutes are for ever.
async fn hold(port: u16, nuisance: &Nuisance) -> Result<u64> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let start = now();
    let (mut reader, mut writer) = socket.into_split();
    writer.write_all(nuisance.says).await?;
    let dripping = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if !nuisance.drips.is_empty() && writer.write_all(nuisance.drips).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let closed = async {
        let mut some = [0; 512];
        while matches!(reader.read(&mut some).await, Ok(1..)) {}
    };
    tokio::select! {
        () = closed => Ok(now() - start),
        () = dripping => anyhow::bail!("never: dripping has no end"),
        () = tokio::time::sleep(Duration::from_secs(120)) => anyhow::bail!("held for ever"),
    }
}

/// One of `slowhttptest`'s attacks, and whether it holds anything longer than was promised.
async fn slow_test(
    bench: &Bench,
    figures: &mut Figures,
    subject: &Subject,
    (flag, name, promise): (&str, &str, f64),
    many: u64,
    time: Duration,
) -> Result<()> {
    let mut command = match bench.cores {
        Some(cores) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &cores.harness.to_string(), "slowhttptest"]);
            command
        }
        None => Command::new("slowhttptest"),
    };
    let (many_text, opened, seconds) = (many.to_string(), OPENED.to_string(), time.as_secs().to_string());
    command.args([flag, "-c", &many_text, "-r", &opened, "-l", &seconds, "-i", "1"]);
    // A body has to be a JSON request for long enough to be read as one; a slow reader needs something long to read.
    let url = format!("http://127.0.0.1:{}", subject.port);
    match flag {
        "-B" => command.args([
            "-t",
            "POST",
            "-f",
            "application/json",
            "-s",
            "8192",
            "-u",
            &format!("{url}/chat"),
        ]),
        "-X" => command.args([
            "-w",
            "256",
            "-y",
            "512",
            "-n",
            "5",
            "-z",
            "32",
            "-k",
            "3",
            "-u",
            &format!("{url}/openapi.json"),
        ]),
        _ => command.args(["-u", &format!("{url}/chat")]),
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("slowhttptest")?;
    let start = now();
    let mut held: Vec<(u64, u64)> = Vec::new();
    let watching = async {
        while now() - start < nanos(time) {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let Ok(seen) = sockets(subject.port) else { continue };
            let count = seen.iter().filter(|socket| socket.established).count();
            held.push((now() - start, count as u64));
        }
    };
    let (beside, ()) = tokio::join!(bench.flow(questions(subject.port, time)), watching);
    // It ends by itself at that time; where it does not, it is ended.
    let _ = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
    let _ = child.kill().await;
    let most = held.iter().map(|&(_, count)| count).max().unwrap_or_default();
    // How long it takes to open them is not the gateway's: from when most were open until only questions are.
    let full = held.iter().rev().find(|&&(_, count)| count == most).map(|&(at, _)| at);
    let empty = held
        .iter()
        .rev()
        .take_while(|&&(_, count)| count <= 20)
        .last()
        .map(|&(at, _)| at);
    let gone = full
        .zip(empty)
        .map(|(full, empty)| ratio(empty.saturating_sub(full), 1_000_000_000));
    let whom = format!("slowhttptest {flag} (slow {name})");
    judge(figures, &whom, &beside);
    figures.row(format!("connections held by {whom}, most"), most);
    if flag == "-X" {
        figures.row(
            format!("s from the most to none, {whom} (60 s without progress are granted)"),
            gone.map_or("not while it ran".into(), |at| format!("{at:.0}")),
        );
    } else {
        figures.at_most(
            promise + CRUMB,
            format!("s from the most to none of {whom}"),
            gone.filter(|_| most * 2 > many),
        );
    }
    Ok(())
}

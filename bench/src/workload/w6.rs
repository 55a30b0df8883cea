//! W6: what it costs that other gateways can follow: W1p's streams, stored, with the runs' logs in memory and mirrored to Redis.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{Bench, Between, Rounds, Side, Way};
use crate::client::door::Door;
use crate::report::{Section, Target, relay_table};
use crate::stats::millis;
use crate::subject::free_port;
use crate::workload::crowd::Wave;

const STREAMS: usize = 64;
const EVERY: Duration = Duration::from_millis(2);
const SPREAD: Duration = Duration::from_millis(250);
const ALONE: Way = way("gateway `/chat/sse`, logs in memory");
const MIRRORED: Way = way("gateway `/chat/sse`, logs in Redis");

const fn way(name: &'static str) -> Way {
    Way {
        name,
        between: Between::Gateway,
        door: Door::Sse { store: true },
    }
}

pub(super) async fn run(bench: &Bench) -> Result<Section> {
    let gateway = bench.gateway.as_ref().context("there is no gateway to be measured")?;
    let redis = Redis::start(&bench.redis, bench.cores.map(|cores| cores.harness)).await?;
    let mut mirrored = gateway.clone();
    let url = format!("redis://127.0.0.1:{}", redis.port);
    mirrored.environment.push(("SLUICEGATE__RUN_LOG__URL".into(), url));

    let tokens = if bench.quick { 500 } else { 3_000 };
    let warm = Wave::new(50, EVERY, 1).spread(SPREAD);
    let wave = Wave::new(tokens, EVERY, 1).spread(SPREAD);
    let side = |way| Side {
        way,
        outcomes: Vec::new(),
    };
    let mut rounds = Rounds {
        sides: vec![side(ALONE), side(MIRRORED)],
        troubles: Vec::new(),
    };
    for round in 0..bench.rounds {
        for place in [round % 2, (round + 1) % 2] {
            let gateway = [gateway, &mirrored][place];
            let subject = gateway.start(&bench.place).await?;
            let way = rounds.sides[place].way;
            eprintln!("  round {}: {}", round + 1, way.name);
            let outcome = bench.once(way, Some(&subject), STREAMS, warm, wave).await;
            rounds.sides[place].outcomes.push(outcome);
            rounds.stop(Some(subject)).await;
        }
    }
    let (alone, with) = (&rounds.sides[0], &rounds.sides[1]);
    let cpu = with.beside(alone, |ours, theirs| {
        let [ours, theirs] = [ours.cpu_per_token()?, theirs.cpu_per_token()?];
        Some(ours[2] / theirs[2])
    });
    let delay = with.beside(alone, |ours, theirs| {
        Some(millis(&ours.delay, 50.0)? - millis(&theirs.delay, 50.0)?)
    });
    let targets = vec![
        Target::at_most(
            1.5,
            "W6 CPU per token, × logs in memory".to_owned(),
            with.unless_lost(cpu),
        ),
        Target::at_most(0.1, "W6 ms added to a token, p50".to_owned(), with.unless_lost(delay)),
    ];
    let title = format!("W6: {STREAMS} streams × {tokens} tokens, one per 2 ms, stored, mirrored to Redis and not");
    let mut section = Section::new(title, &rounds, relay_table(&rounds.sides));
    section.targets = targets;
    Ok(section)
}

/// A Redis of the bench's own, beside the driver: the gateway's core stays the gateway's.
pub(super) struct Redis {
    /// Where it listens on 127.0.0.1.
    pub(super) port: u16,
    _child: Child,
}

impl Redis {
    pub(super) async fn start(program: &Path, core: Option<usize>) -> Result<Self> {
        let port = free_port()?;
        let mut command = match core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string()]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let port_text = port.to_string();
        command.args([
            "--port",
            &port_text,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let child =
            child.with_context(|| format!("{} cannot be started (apt-get install redis-server)", program.display()))?;
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Ok(Self { port, _child: child });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("Redis does not serve")
    }
}

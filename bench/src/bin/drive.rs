//! The load driver: measures the gateway, nginx and the direct way, and writes Markdown. `bench/run` calls it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use sluicegate_bench::clock::Pacer;
use sluicegate_bench::machine::{self, Cores};
use sluicegate_bench::mock::Mock;
use sluicegate_bench::report::{Section, summary};
use sluicegate_bench::subject::{Gateway, Nginx, Place};
use sluicegate_bench::workload::{Alone, Bench, LOADS, NAMES};

/// Measures what a token costs in the gateway, beside nginx and beside nothing.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Workloads: w1 w1p w2 w3 w4 w5 w6, or all of these; loads: l1 to l8 l11 l16 l17, or load for all of these.
    #[arg(default_value = "all")]
    workloads: Vec<String>,
    /// How often each way is measured; medians and ranges are over these.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    rounds: u16,
    /// One round, fewer and shorter streams: to see that it works, not to be quoted.
    #[arg(long)]
    quick: bool,
    /// The loads as long as is promised: hours.
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// For how many seconds L5 churns, with each replay_window.
    #[arg(long, value_name = "SECONDS")]
    churn: Option<u64>,
    /// With which replay_window, in seconds, L5 churns; default: 1, and 300 where there is time for that.
    #[arg(long, value_name = "SECONDS")]
    window: Option<u64>,
    /// The gateway's release binary; without it only nginx and the direct way are measured.
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// A setting for the gateway's environment, NAME=VALUE; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    gateway_env: Vec<String>,
    /// nginx's binary, or `none`.
    #[arg(long, default_value = "nginx")]
    nginx: PathBuf,
    /// Redis' or Valkey's server, for W6.
    #[arg(long, default_value = "redis-server")]
    redis: PathBuf,
    /// A PostgreSQL database of its own for L16's two gateways: postgres://…
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Core of the harness and core of the gateway, as `0,1`; default: the first two allowed ones.
    #[arg(long)]
    cores: Option<String>,
    /// Tokens per write of the mock in W1.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    per_write: u32,
    /// Folder for the gateway's temporary data; has to be on a real disk for W4.
    #[arg(long)]
    data: Option<PathBuf>,
    /// The day, if the machine's clock is not to be trusted.
    #[arg(long)]
    date: Option<String>,
    /// The command to be quoted in the report.
    #[arg(long)]
    command: Option<String>,
    /// Writes the report to this file as well.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    match begin(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("drive: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin(arguments: Arguments) -> Result<ExitCode> {
    let cores = machine::bind(arguments.cores.as_deref().map(parse_cores).transpose()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            result = drive(arguments, cores) => result,
            // Dropping the work kills the children it started.
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    })
}

async fn drive(arguments: Arguments, cores: Option<Cores>) -> Result<ExitCode> {
    let names = workloads(&arguments.workloads)?;
    let files = machine::raise_open_files();
    if names.contains(&"w3") {
        ensure!(
            files.is_none_or(|files| files >= 4_200),
            "W3 needs 4,200 open files per process: ulimit -n"
        );
    }
    if names.iter().any(|name| ["l2", "l7"].contains(name)) {
        ensure!(
            files.is_none_or(|files| files >= 12_000),
            "L2 and L7 need 12,000 open files per process: ulimit -n"
        );
    }
    let pacer = Pacer::start()?;
    let mock = Mock::start(([127, 0, 0, 1], 0).into(), pacer.clone())?;
    let data = arguments.data.clone().unwrap_or_else(std::env::temp_dir);
    let place = Place {
        core: cores.map(|cores| cores.subject),
        data,
        upstream: mock.address().port(),
    };
    let mut bench = Bench {
        mock,
        pacer,
        cores,
        place,
        gateway: gateway(&arguments)?,
        nginx: nginx(&arguments),
        redis: arguments.redis.clone(),
        rounds: if arguments.quick { 1 } else { arguments.rounds.into() },
        quick: arguments.quick,
        full: arguments.full,
        postgres: arguments.postgres.clone(),
        churn: arguments.churn.map(std::time::Duration::from_secs),
        window: arguments.window.map(std::time::Duration::from_secs),
        per_write: arguments.per_write,
        alone: Alone::default(),
    };
    let mut report = Report {
        file: arguments.out.as_ref().map(std::fs::File::create).transpose()?,
    };
    report.say(&head(&arguments, &bench)?)?;
    bench.measure_alone().await.context("the harness alone")?;

    let (mut sections, mut missing): (Vec<Section>, Vec<&str>) = (Vec::new(), Vec::new());
    for name in names {
        eprintln!("{name}");
        match bench.run(name).await {
            Ok(section) => {
                report.say(&section.to_string())?;
                sections.push(section);
            }
            Err(error) => {
                missing.push(name);
                report.say(&format!("### {name}: not measured\n\n{error:#}\n"))?;
            }
        }
    }
    report.say(&summary(&sections))?;
    let lost: u64 = sections.iter().map(|section| section.lost).sum();
    let troubles: usize = sections.iter().map(|section| section.troubles).sum();
    report.say(&format!(
        "Answers lost on all sides: {lost}. Children in trouble: {troubles}."
    ))?;
    if !missing.is_empty() {
        report.say(&format!("**Not measured: {}.**", missing.join(", ")))?;
    }
    let good = missing.is_empty() && lost == 0 && troubles == 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Standard output, and a file beside it.
struct Report {
    file: Option<std::fs::File>,
}

impl Report {
    fn say(&mut self, text: &str) -> Result<()> {
        writeln!(std::io::stdout(), "{text}")?;
        if let Some(file) = &mut self.file {
            writeln!(file, "{text}")?;
        }
        Ok(())
    }
}

fn workloads(asked: &[String]) -> Result<Vec<&'static str>> {
    for name in asked {
        ensure!(
            ["all", "load"]
                .into_iter()
                .chain(NAMES)
                .chain(LOADS)
                .any(|known| known == name),
            "{name}: no such workload; there are {}, all (of these), {}, load (all of these)",
            NAMES.join(", "),
            LOADS.join(", ")
        );
    }
    let wanted = |group: &str, name: &str| asked.iter().any(|asked| asked == group || asked == name);
    let names = NAMES.into_iter().filter(|name| wanted("all", name));
    Ok(names
        .chain(LOADS.into_iter().filter(|name| wanted("load", name)))
        .collect())
}

fn gateway(arguments: &Arguments) -> Result<Option<Gateway>> {
    let Some(program) = &arguments.gateway else {
        return Ok(None);
    };
    let program = program.canonicalize().with_context(|| program.display().to_string())?;
    let pairs = arguments.gateway_env.iter().map(|pair| {
        let (name, value) = pair
            .split_once('=')
            .with_context(|| format!("{pair}: expected NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    });
    Ok(Some(Gateway {
        program,
        environment: pairs.collect::<Result<_>>()?,
        settings: None,
    }))
}

fn nginx(arguments: &Arguments) -> Option<Nginx> {
    let program = &arguments.nginx;
    let name = program.to_str()?;
    let here = name != "none" && machine::first_line(name, &["-v"]).is_some();
    here.then(|| Nginx {
        program: program.clone(),
    })
}

fn parse_cores(text: &str) -> Result<Cores> {
    let (harness, subject) = text.split_once(',').context("--cores: expected two numbers, as 0,1")?;
    Ok(Cores {
        harness: harness.trim().parse()?,
        subject: subject.trim().parse()?,
    })
}

/// What is needed to judge, and to repeat, the numbers below it.
fn head(arguments: &Arguments, bench: &Bench) -> Result<String> {
    let date = arguments
        .date
        .clone()
        .unwrap_or_else(|| jiff::Timestamp::now().strftime("%Y-%m-%d").to_string());
    let commit = machine::first_line("git", &["rev-parse", "--short=12", "HEAD"]).unwrap_or("no commit yet".into());
    let changed = machine::first_line("git", &["status", "--porcelain"]).map_or("", |_| ", with uncommitted changes");
    let version = |program: Option<&PathBuf>, flag| {
        let name = program.and_then(|program| program.to_str())?;
        machine::first_line(name, &[flag])
    };
    let gateway = version(bench.gateway.as_ref().map(|gateway| &gateway.program), "--version");
    let nginx = version(bench.nginx.as_ref().map(|nginx| &nginx.program), "-v");
    let mut lines = vec![
        format!(
            "{date}, commit {commit}{changed}: `{}`",
            arguments.command.as_deref().unwrap_or("drive")
        ),
        format!(
            "{}; {}; {} round{}{}",
            match (&bench.gateway, gateway) {
                (None, _) => "no gateway".into(),
                (Some(_), version) => version.unwrap_or("a gateway of unknown version".into()),
            },
            nginx.as_deref().unwrap_or("no nginx"),
            bench.rounds,
            if bench.rounds == 1 { "" } else { "s" },
            if bench.quick { ", QUICK: not to be quoted" } else { "" }
        ),
    ];
    if !arguments.gateway_env.is_empty() {
        lines.push(format!(
            "gateway's environment besides: `{}`",
            arguments.gateway_env.join(" ")
        ));
    }
    lines.extend(machine::describe(bench.cores));
    lines.push(format!(
        "gateway's data folder: {}",
        machine::durability(&bench.place.data)?
    ));
    Ok(lines.iter().map(|line| format!("- {line}\n")).collect())
}

//! The command line.

use std::{
    ffi::OsString,
    io::Write,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use clap::{Parser, Subcommand, builder::OsStringValueParser};
use sluicegate::{
    app,
    config::{self, Flags, Settings},
    http::{auth::keys, docs::OPENAPI},
    shutdown, store, telemetry,
};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long threads may take that are still at work when everything is over.
const LAST: Duration = Duration::from_millis(250);

/// An HTTP gateway that runs an AI agent and streams its answer.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// A file of settings (TOML); config/default.toml explains them all.
    #[arg(long, global = true, env = "SLUICEGATE_CONFIG", value_name = "FILE", value_parser = OsStringValueParser::new())]
    config: Option<OsString>,
    /// Who answers: provider/model.
    #[arg(long, global = true, env = "SLUICEGATE_MODEL", value_name = "PROVIDER/MODEL")]
    model: Option<String>,
    /// Where to listen.
    #[arg(long, global = true, value_name = "HOST:PORT", value_parser = config::listen_address)]
    listen: Option<SocketAddr>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve (what happens without a command).
    Serve,
    /// Check the settings, and print those in force, secrets masked.
    CheckConfig {
        /// Ask each provider once, too: exit code 1 if one of them does not answer.
        #[arg(long)]
        online: bool,
    },
    /// Ask the gateway that these settings describe whether it is ready: exit code 0 if it is.
    Healthcheck,
    /// Copy the SQLite store of these settings into a new file, as of one moment, also while a gateway runs.
    Backup {
        /// The copy; it must not be there yet.
        file: PathBuf,
    },
    /// Make keys for callers.
    #[command(subcommand)]
    Keys(Keys),
    /// Print the contract as OpenAPI.
    Openapi,
}

#[derive(Subcommand)]
enum Keys {
    /// Make a key: it is printed once, with the lines that the settings need to know it by.
    New {
        /// Whose it is: sessions, runs and files will belong to this name.
        #[arg(long, value_name = "NAME")]
        name: String,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let told = telemetry::harmless(&format!("sluicegate: {error:#}"));
            let _ = writeln!(std::io::stderr(), "{told}"); // there is nobody else to tell
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let command = cli.command.unwrap_or(Command::Serve);
    match command {
        Command::Openapi => return print(OPENAPI),
        Command::Keys(Keys::New { name }) => return new_key(&name),
        Command::Serve | Command::CheckConfig { .. } | Command::Healthcheck | Command::Backup { .. } => {}
    }
    let flags = Flags {
        // An empty variable is none.
        config: cli.config.filter(|path| !path.is_empty()).map(PathBuf::from),
        model: cli.model.filter(|model| !model.is_empty()),
        listen: cli.listen,
    };
    let settings = Settings::load(&flags, std::env::vars()).map_err(|e| anyhow!("{e}"))?;
    match command {
        Command::Serve => serve(settings, &flags),
        Command::CheckConfig { online } => {
            for warning in &settings.warnings {
                let told = telemetry::harmless(&format!("sluicegate: {warning}"));
                let _ = writeln!(std::io::stderr(), "{told}"); // there is nobody else to tell
            }
            app::check(&settings).map_err(|e| anyhow!("{}", e.message))?;
            print(&settings.effective().map_err(|e| anyhow!("{e}"))?)?;
            if online { check_online(&settings) } else { Ok(()) }
        }
        Command::Healthcheck => healthcheck(settings.listen),
        Command::Backup { file } => backup(&settings, &file),
        Command::Keys(_) | Command::Openapi => Ok(()),
    }
}

/// A key, and what the settings are told of it.
fn new_key(name: &str) -> anyhow::Result<()> {
    let (key, sha256) = keys::generate().map_err(|_| anyhow!("the system has no random numbers"))?;
    let lines = format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\n");
    Settings::from_toml(&lines).map_err(|_| {
        anyhow!("--name: must have 1 to 64 of the characters A-Z a-z 0-9 . _ @ -, and not be \"anonymous\"")
    })?;
    print(&format!(
        "# The key, which is shown only here:\n{key}\n\n# What the settings know it by:\n{lines}"
    ))
}

fn serve(settings: Settings, flags: &Flags) -> anyhow::Result<()> {
    // Ends last, so that everything is in it.
    let _log = telemetry::begin(settings.log_format, &settings.log_filter).map_err(|e| anyhow!("{e}"))?;
    // One provider of cryptography for the whole process; two would panic at the first connection.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let start = async { app::serve(settings).await.map_err(|e| anyhow!("{}", e.message)) };
    let read_again = |old: &Settings| old.read_again(flags, std::env::vars());
    let served = runtime.block_on(shutdown::until_signalled(start, read_again));
    // A thread that still computes what nobody waits for must not keep the process.
    runtime.shutdown_timeout(LAST);
    served
}

fn backup(settings: &Settings, file: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let copied = runtime.block_on(store::backup(settings.store_url.as_str(), file));
    let (from, to, bytes) = copied.map_err(|e| anyhow!("{}", e.message))?;
    print(&format!(
        "{} was copied to {} ({bytes} bytes)",
        from.display(),
        to.display()
    ))
}

/// Asks each provider once, and prints what came of it: as comments, so that the output stays TOML.
fn check_online(settings: &Settings) -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    let reports = runtime.block_on(app::check_online(settings));
    let reports = reports.map_err(|e| anyhow!("{}", e.message))?;
    print("\n# Online:")?;
    for report in &reports {
        print(&format!("# {}", telemetry::harmless(&report.line)))?;
    }
    let failed = reports.iter().filter(|report| !report.is_fine).count();
    if failed > 0 {
        bail!("{failed} of {} providers did not answer as they should", reports.len());
    }
    Ok(())
}

/// `GET /readyz` by hand: the one request that a container's health check makes needs no client.
fn healthcheck(mut address: SocketAddr) -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(3);
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("nobody at {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut head = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut head).context("no answer")?;
    if &head[9..] == b"200" {
        return Ok(());
    }
    bail!("not ready: {}", head.escape_ascii())
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(())
}

//! What is measured: a child process between the client and the mock. Started here on a free port, with a folder
//! of its own, bound to its core; ended here, by SIGTERM and with patience, and nothing else is ever ended.

mod gateway;
mod nginx;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::client::Connection;
use crate::machine;

pub use gateway::Gateway;
pub use nginx::Nginx;

/// Longest wait for a child to serve.
const START: Duration = Duration::from_secs(20);
/// Longest wait for a child to end after SIGTERM: the gateway promises 25 s.
const END: Duration = Duration::from_secs(30);

/// Where children run.
#[derive(Debug, Clone)]
pub struct Place {
    /// The core they are bound to, if there is one to spare.
    pub core: Option<usize>,
    /// The folder in which each gets a temporary one.
    pub data: PathBuf,
    /// The mock's port.
    pub upstream: u16,
}

/// A running child.
pub struct Subject {
    /// `gateway` or `nginx`.
    pub name: &'static str,
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    /// Its process.
    pub pid: u32,
    child: Child,
    folder: TempDir,
}

impl Subject {
    /// Runs `command` in `folder` and waits until `GET ready` is answered with 200.
    async fn start(name: &'static str, mut command: Command, port: u16, folder: TempDir, ready: &str) -> Result<Self> {
        let log = File::create(folder.path().join("log"))?;
        let child = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name}: cannot be started"))?;
        let pid = child.id().with_context(|| format!("{name}: ended at once"))?;
        let mut subject = Self {
            name,
            port,
            pid,
            child,
            folder,
        };
        let deadline = Instant::now() + START;
        loop {
            if let Some(status) = subject.child.try_wait()? {
                bail!("{name} ended with {status}: {}", subject.last_words());
            }
            let answer = tokio::time::timeout(Duration::from_secs(1), async {
                Connection::open(port).await?.get(ready).await
            });
            if matches!(answer.await, Ok(Ok(200))) {
                // For whoever wants to look closer: `perf record -g -p PID`.
                eprintln!("  {name} serves, pid {pid}");
                return Ok(subject);
            }
            if Instant::now() > deadline {
                bail!(
                    "{name} does not serve after {} s: {}",
                    START.as_secs(),
                    subject.last_words()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the child: SIGTERM, patience, and only then SIGKILL.
    ///
    /// # Errors
    /// When it did not end in time, or not with 0.
    pub async fn stop(self) -> Result<()> {
        self.tell_to_stop()?;
        self.ended().await
    }

    /// SIGTERM.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn tell_to_stop(&self) -> Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("pid")?;
        Ok(kill_process(pid, Signal::TERM)?)
    }

    /// Waits for the end of a child that was told to stop.
    ///
    /// # Errors
    /// When it did not end in time, or not with 0.
    pub async fn ended(mut self) -> Result<()> {
        match tokio::time::timeout(END, self.child.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(status) => bail!("{} ended with {}: {}", self.name, status?, self.last_words()),
            Err(_) => {
                self.child.kill().await?;
                bail!("{} did not end {} s after SIGTERM", self.name, END.as_secs())
            }
        }
    }

    /// The end of what it wrote to stdout and stderr.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

impl Place {
    fn folder(&self, name: &str) -> Result<TempDir> {
        let prefix = format!("sluicegate-bench-{name}-");
        tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&self.data)
            .context("no temporary folder")
    }

    /// A command bound to the subject's core, if there is one; `taskset` replaces itself, so the pid is the program's.
    fn command(&self, program: &Path) -> Command {
        match self.core {
            Some(core) if machine::has("taskset") => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string()]).arg(program);
                command
            }
            _ => Command::new(program),
        }
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

//! The machine that measured: what it is, which of its cores do what, how many files it may open, how fast its
//! disk makes things durable. Whoever reads a number has to know these.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::clock::now;
use crate::procfs::field;

/// Which core the harness and which the measured process is bound to.
#[derive(Debug, Clone, Copy)]
pub struct Cores {
    /// Driver and mock.
    pub harness: usize,
    /// The gateway, or nginx.
    pub subject: usize,
}

/// Takes the first two cores this process may use, or those that were `asked` for, and binds this process to the
/// first; `None` on a machine with one core, where nothing can be kept apart.
///
/// # Errors
/// When a core that was asked for cannot be had.
pub fn bind(asked: Option<Cores>) -> Result<Option<Cores>> {
    let allowed = sched_getaffinity(None)?;
    let mut usable = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
    let (Some(first), Some(second)) = (usable.next(), usable.next()) else {
        return Ok(None);
    };
    let cores = asked.unwrap_or(Cores {
        harness: first,
        subject: second,
    });
    let mut only = CpuSet::new();
    only.set(cores.harness);
    sched_setaffinity(None, &only).with_context(|| format!("core {}", cores.harness))?;
    Ok(Some(cores))
}

/// Raises the soft limit of open files to the hard one, for this process and its children; returns it.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_err() {
        return limit.current;
    }
    limit.maximum
}

/// Lines that say what this machine is.
#[must_use]
pub fn describe(cores: Option<Cores>) -> Vec<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let memory = field(&read("/proc/meminfo"), "MemTotal:").unwrap_or_default() / 1_024;
    let kernel = read("/proc/sys/kernel/osrelease");
    let mut lines = vec![format!("{count} cores, {model}; {memory} MiB; Linux {}", kernel.trim())];
    lines.push(match cores {
        None => "one core: nothing is pinned, and driver, mock and gateway share it".into(),
        Some(Cores { harness, subject }) => {
            let siblings = read(&format!(
                "/sys/devices/system/cpu/cpu{subject}/topology/thread_siblings_list"
            ));
            let shared = siblings
                .trim()
                .split([',', '-'])
                .any(|core| core.parse() == Ok(harness));
            let note = if shared {
                " (two threads of ONE physical core: they slow each other)"
            } else {
                ""
            };
            format!("driver and mock on core {harness}, gateway or nginx alone on core {subject}{note}")
        }
    });
    lines
}

/// How long `folder`'s disk takes to make 4 KiB durable, in words; a memory disk makes W4's durable turns worthless.
///
/// # Errors
/// When nothing can be written there.
pub fn durability(folder: &Path) -> Result<String> {
    const TMPFS: i64 = 0x0102_1994;
    let path = folder.join("durability");
    let mut file = File::create(&path)?;
    let mut took = Vec::new();
    for _ in 0..64 {
        let start = now();
        file.write_all(&[7; 4_096])?;
        file.sync_data()?;
        took.push(now() - start);
    }
    fs::remove_file(&path)?;
    took.sort_unstable();
    #[expect(
        clippy::useless_conversion,
        reason = "the field's type differs between architectures"
    )]
    let kind = i64::from(rustix::fs::statfs(folder)?.f_type);
    let memory = if kind == TMPFS {
        " - A MEMORY DISK: its durable turns prove nothing"
    } else {
        ""
    };
    Ok(format!(
        "append of 4 KiB made durable in {} µs (median of 64){memory}",
        took[took.len() / 2] / 1_000
    ))
}

/// First line that a command prints (on stdout, else stderr), or `None` when it cannot be run or fails.
#[must_use]
pub fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    Some(String::from_utf8_lossy(&text).lines().next()?.to_owned())
}

/// Whether a command of this name can be run.
#[must_use]
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|paths| std::env::split_paths(&paths).any(|folder| folder.join(program).is_file()))
}

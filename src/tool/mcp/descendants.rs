//! The processes that a child started, and those that they started, wherever they went.
//!
//! A process group holds what did not leave it. A process with a session of its own did, but it still
//! has its parents, as long as those live. Linux only: elsewhere none are found.

use rustix::process::{Pid, Signal, kill_process};

/// A process, told from a later one of the same number by the time when it started.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    started: u64,
}

/// Returns all descendants of a process.
pub(super) fn of(root: u32) -> Vec<Process> {
    let Ok(folder) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let all: Vec<_> = pids.filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let mut found: Vec<Process> = Vec::new();
    let mut parents: Vec<i32> = i32::try_from(root).into_iter().collect();
    while let Some(parent) = parents.pop() {
        for (pid, (ppid, started)) in &all {
            if *ppid == parent && found.iter().all(|known| known.pid != *pid) {
                parents.push(*pid);
                found.push(Process {
                    pid: *pid,
                    started: *started,
                });
            }
        }
    }
    found
}

/// Kills those that still run.
pub(super) fn kill(processes: &[Process]) {
    for process in processes {
        let is_same = stat(process.pid).is_some_and(|(_, started)| started == process.started);
        if let Some(pid) = Pid::from_raw(process.pid).filter(|_| is_same) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A process's parent, and when it started.
fn stat(pid: i32) -> Option<(i32, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name can hold anything, but the last parenthesis is behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.nth(1)?.parse().ok()?, fields.nth(17)?.parse().ok()?))
}

//! What a process cost, read from `/proc`: CPU in user space and in the kernel, memory of its own.
//!
//! `/proc/PID/stat` counts the whole process, also threads that have ended, but in hundredths of a second.
//! `/proc/PID/task/*/schedstat` is exact to the nanosecond but forgets threads that ended. So the total is from
//! schedstat when the two agree, else from stat.
//!
//! The split into user and system is `/proc/PID/stat`'s: sampled by the kernel's tick, then scaled to the exact total of
//! the process's whole life. So it is noisy, and least so for a process that did nothing but what is measured.

use std::fs;

use anyhow::{Context, Result};

/// CPU time in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// In the program's own code.
    pub user: u64,
    /// In the kernel on its behalf.
    pub system: u64,
}

impl Cpu {
    /// Both together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.user + self.system
    }
}

/// What a process had used at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    stat: Cpu,
    tasks: u64,
}

/// Reads what process `pid` has used so far.
///
/// # Errors
/// When there is no such process.
pub fn used(pid: u32) -> Result<Used> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
    // The second field, the name, may hold anything up to the last bracket; utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|field| field.parse::<u64>().ok())
            .context("/proc/PID/stat")
    };
    let stat = Cpu {
        user: ticks(11)? * tick,
        system: ticks(12)? * tick,
    };
    let mut tasks = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // A thread may end between the listing and the reading.
        let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        tasks += schedstat
            .split(' ')
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or_default();
    }
    Ok(Used { stat, tasks })
}

impl Used {
    /// What was used since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Cpu {
        let user = self.stat.user.saturating_sub(earlier.stat.user);
        let system = self.stat.system.saturating_sub(earlier.stat.system);
        let stat = user + system;
        let tasks = self.tasks.saturating_sub(earlier.tasks);
        // Two fields of 10 ms each, and as much again for threads that ended unseen.
        let agree = stat.abs_diff(tasks) <= 40_000_000 + stat / 50;
        let total = if agree && tasks > 0 { tasks } else { stat };
        if stat == 0 {
            return Cpu { user: 0, system: total };
        }
        let user = u64::try_from(u128::from(total) * u128::from(user) / u128::from(stat)).unwrap_or(u64::MAX);
        Cpu {
            user,
            system: total - user,
        }
    }
}

/// Anonymous memory of process `pid` that is in RAM (`RssAnon`), in KiB: what it allocated, without its binary.
///
/// # Errors
/// When there is no such process.
pub fn anonymous_kib(pid: u32) -> Result<u64> {
    field(&read(&format!("/proc/{pid}/status"))?, "RssAnon:").context("no RssAnon")
}

/// Memory of process `pid` that is its own, in KiB: [`anonymous_kib`] and what of it was swapped out.
///
/// # Errors
/// When there is no such process.
pub fn own_kib(pid: u32) -> Result<u64> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let kib = |name| field(&status, name).with_context(|| format!("no {name}"));
    Ok(kib("RssAnon:")? + kib("VmSwap:")?)
}

/// Threads of process `pid`.
#[must_use]
pub fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// One end of a TCP connection of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// The port at the other end.
    pub peer: u16,
    /// Neither end has closed it.
    pub established: bool,
    /// Bytes that wait in the kernel to be sent or to be acknowledged.
    pub unsent: u64,
}

/// The ends of IPv4 connections that belong to whoever listens on `port`.
///
/// # Errors
/// When `/proc/net/tcp` cannot be read.
pub fn sockets(port: u16) -> Result<Vec<Socket>> {
    const ESTABLISHED: &str = "01";
    const LISTEN: &str = "0A";
    let local = format!(":{port:04X}");
    let file = read("/proc/net/tcp")?;
    let ends = file.lines().skip(1).filter_map(|line| {
        // sl local_address rem_address st tx_queue:rx_queue …
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (mine, theirs, state, queues) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (mine.ends_with(&local) && state != LISTEN).then_some(Socket {
            peer: u16::from_str_radix(theirs.rsplit(':').next()?, 16).ok()?,
            established: state == ESTABLISHED,
            unsent: u64::from_str_radix(queues.split(':').next()?, 16).ok()?,
        })
    });
    Ok(ends.collect())
}

/// Open sockets of process `pid`.
#[must_use]
pub fn open_sockets(pid: u32) -> usize {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

/// Open files of process `pid`.
#[must_use]
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Nanoseconds that a core was not idle since the machine started, stolen time included.
#[must_use]
pub fn core_busy(core: usize) -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let name = format!("cpu{core}");
    let line = stat.lines().find(|line| line.split(' ').next() == Some(&name))?;
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system (idle iowait) irq softirq steal
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|&at| ticks.get(at)).sum();
    Some(busy * (1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.to_owned())
}

/// The number after `name` in a file of lines like `VmRSS:   1234 kB`.
pub(crate) fn field(file: &str, name: &str) -> Option<u64> {
    file.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(user: u64, system: u64, tasks: u64) -> Used {
        let ms = 1_000_000;
        Used {
            stat: Cpu {
                user: user * ms,
                system: system * ms,
            },
            tasks: tasks * ms,
        }
    }

    #[test]
    fn the_total_is_exact_and_the_split_is_the_kernels() {
        let cpu = at(310, 710, 1_015).since(at(10, 10, 15));
        assert_eq!(
            cpu,
            Cpu {
                user: 300_000_000,
                system: 700_000_000
            }
        );
        let cpu = at(300, 700, 1_008).since(at(0, 0, 0));
        assert_eq!((cpu.total(), cpu.user), (1_008_000_000, 302_400_000));
    }

    #[test]
    fn threads_that_ended_are_not_forgotten() {
        assert_eq!(at(300, 700, 400).since(at(0, 0, 0)).total(), 1_000_000_000);
    }

    #[test]
    fn a_connection_is_seen_from_the_listeners_side() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _accepted = listener.accept().unwrap();
        let seen = Socket {
            peer: client.local_addr().unwrap().port(),
            established: true,
            unsent: 0,
        };
        assert_eq!(sockets(port).unwrap(), [seen]);
    }

    #[test]
    fn this_process_can_be_read() {
        let me = std::process::id();
        assert!(used(me).unwrap().tasks > 0);
        assert!(anonymous_kib(me).unwrap() > 0);
        assert!(own_kib(me).unwrap() >= 1);
        assert!(threads(me) >= 1);
        assert!(open_files(me) > 2);
        assert!(core_busy(0).unwrap() > 0);
    }
}

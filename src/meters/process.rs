//! The process itself, read when somebody asks: what `/proc` says of it. Elsewhere than on Linux there is nothing to read.

use std::{
    fmt::Error,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// How often the kernel counts a process's time, per second: 100 on every Linux since 2.6, whatever it runs at.
const TICKS: f64 = 100.0;

/// The process.
#[derive(Debug)]
pub(super) struct Process {
    /// When this gateway began, in seconds since 1970.
    began: f64,
}

impl Default for Process {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            began: now.as_secs_f64(),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let began = ConstGauge::new(self.began);
        let help = "When this gateway began, since 1970";
        let metric =
            encoder.encode_descriptor("process_start_time", help, Some(&Unit::Seconds), began.metric_type())?;
        began.encode(metric)?;
        let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).ok();
        if let Some(bytes) = read("status").as_deref().and_then(own_memory) {
            let memory = ConstGauge::new(bytes);
            let help = "Memory of the process that is no file's, swapped out or not";
            let metric = encoder.encode_descriptor(
                "process_resident_memory",
                help,
                Some(&Unit::Bytes),
                memory.metric_type(),
            )?;
            memory.encode(metric)?;
        }
        if let Some(seconds) = read("stat").as_deref().and_then(busy) {
            let cpu = ConstCounter::new(seconds);
            let help = "Processor time of the process";
            let metric = encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), cpu.metric_type())?;
            cpu.encode(metric)?;
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            let open = ConstGauge::new(i64::try_from(open.count().saturating_sub(1)).unwrap_or(i64::MAX)); // one is this look
            let metric =
                encoder.encode_descriptor("process_open_fds", "Open file descriptors", None, open.metric_type())?;
            open.encode(metric)?;
        }
        Ok(())
    }
}

/// `RssAnon` and `VmSwap` of `/proc/self/status`, in bytes.
fn own_memory(status: &str) -> Option<i64> {
    let kilobytes = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<i64>().ok()
    };
    Some((kilobytes("RssAnon")? + kilobytes("VmSwap").unwrap_or(0)) * 1024)
}

/// `utime` and `stime` of `/proc/self/stat`, in seconds. The program's name stands before them, in brackets, and may hold
/// anything.
fn busy(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_is_read() {
        let status = "Name:\tx\nVmRSS:\t  999 kB\nRssAnon:\t     100 kB\nVmSwap:\t      20 kB\n";
        assert_eq!(own_memory(status), Some(120 * 1024));
        assert_eq!(own_memory("Name: x"), None);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 3 0 12345 1 2";
        assert_eq!(busy(stat), Some(2.0));
        assert_eq!(busy("7 (a"), None);
    }
}

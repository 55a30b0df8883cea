//! What a stretch of time cost: the measured process's CPU, the harness's, and what strangers took of their cores.

use crate::clock::now;
use crate::machine::Cores;
use crate::procfs::{Cpu, Used, core_busy, used};
use crate::stats::ratio;

/// Set before a measurement, read after it.
pub struct Scales {
    pid: Option<u32>,
    cores: Option<Cores>,
    busy: Option<[Option<u64>; 2]>,
    own: Option<Used>,
    theirs: Option<Used>,
    start: u64,
}

/// What was used.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    /// Nanoseconds that passed.
    pub took: u64,
    /// The measured process; nothing when there was none, or when it is gone.
    pub cpu: Option<Cpu>,
    /// Share of the time that driver and mock were on the CPU, 0 to 1.
    pub harness: f64,
    /// Share of the time that strangers kept the harness's or the subject's core busy, the larger, 0 to 1; with cores
    /// pinned only.
    pub others: Option<f64>,
}

impl Scales {
    /// Begins to weigh process `pid`, this one, and their cores.
    #[must_use]
    pub fn set(pid: Option<u32>, cores: Option<Cores>) -> Self {
        Self {
            pid,
            cores,
            busy: cores.map(|cores| busy(cores, pid)),
            own: used(std::process::id()).ok(),
            theirs: pid.and_then(|pid| used(pid).ok()),
            start: now(),
        }
    }

    /// What was used since.
    #[must_use]
    pub fn read(&self) -> Weight {
        let took = now() - self.start;
        let since = |pid, before: Option<Used>| Some(used(pid).ok()?.since(before?));
        let cpu = self.pid.and_then(|pid| since(pid, self.theirs));
        let own = since(std::process::id(), self.own).map_or(0, Cpu::total);
        let others = self.cores.zip(self.busy).and_then(|(cores, before)| {
            let known = [own, cpu.map_or(0, Cpu::total)];
            let strangers = (busy(cores, self.pid).into_iter().zip(before).zip(known))
                .filter_map(|((after, before), known)| Some(after?.saturating_sub(before?).saturating_sub(known)));
            strangers.max().map(|strangers| ratio(strangers, took))
        });
        Weight {
            took,
            cpu,
            harness: ratio(own, took),
            others,
        }
    }
}

impl Weight {
    /// Share of one core that the measured process was on, 0 to 1.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        Some(ratio(self.cpu?.total(), self.took))
    }
}

/// Nanoseconds for which the harness's core and the subject's were busy so far; strangers on the latter do no harm
/// when there is no subject.
fn busy(cores: Cores, subject: Option<u32>) -> [Option<u64>; 2] {
    [core_busy(cores.harness), subject.and_then(|_| core_busy(cores.subject))]
}

//! A look at a process twice a second for as long as something goes on: its memory, its files, its threads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::clock::now;
use crate::procfs;
use crate::stats::{ratio, slope};

const EVERY: Duration = Duration::from_millis(500);

/// One look.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// When ([`now`]).
    pub at: u64,
    /// `RssAnon` and `VmSwap`, in KiB.
    pub kib: u64,
    /// Open files.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

impl Look {
    /// Looks once; nothing when there is no such process.
    #[must_use]
    pub fn at(pid: u32) -> Option<Self> {
        Some(Self {
            at: now(),
            kib: procfs::own_kib(pid).ok()?,
            files: procfs::open_files(pid),
            threads: procfs::threads(pid),
        })
    }
}

/// Looks until it is dropped.
pub struct Watch {
    looks: Arc<Mutex<Vec<Look>>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins to look at process `pid`.
    #[must_use]
    pub fn begin(pid: u32) -> Self {
        let looks = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&looks);
        let task = tokio::spawn(async move {
            while let Some(look) = Look::at(pid) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(look);
                tokio::time::sleep(EVERY).await;
            }
        });
        Self { looks, task }
    }

    /// What was seen so far.
    #[must_use]
    pub fn looks(&self) -> Vec<Look> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The most memory seen, in KiB.
    #[must_use]
    pub fn peak_kib(&self) -> Option<u64> {
        self.looks().iter().map(|look| look.kib).max()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// By how many MiB memory grew in ten minutes, judged by the looks from `since` on.
#[must_use]
pub fn growth(looks: &[Look], since: u64) -> Option<f64> {
    let looks = looks.iter().filter(|look| look.at >= since);
    let points: Vec<(f64, f64)> = looks
        .map(|look| (ratio(look.at - since, 600_000_000_000), ratio(look.kib, 1_024)))
        .collect();
    // Ten looks a minute are enough for hours, and keep the pairs few.
    let step = points.len().div_ceil(1_500).max(1);
    slope(&points.into_iter().step_by(step).collect::<Vec<_>>())
}

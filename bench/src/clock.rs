//! The one clock of the bench (`CLOCK_MONOTONIC`, nanoseconds) and a pacer finer than tokio's timer wheel.
//!
//! Tokio's timers fire on whole milliseconds, so 64 streams of one token per 2 ms would come as 32 tokens at
//! once; delays would then measure the burst, and the kernel's tick, which samples user and system time, could fall
//! into step with it. The pacer is a heap of deadlines over one
//! `timerfd`, good to some tens of microseconds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

const NANOS: u64 = 1_000_000_000;

/// Nanoseconds of `CLOCK_MONOTONIC`: comparable between all processes of one machine.
#[must_use]
pub fn now() -> u64 {
    let at = clock_gettime(ClockId::Monotonic);
    at.tv_sec.unsigned_abs() * NANOS + at.tv_nsec.unsigned_abs()
}

/// A duration as nanoseconds, saturating.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Wakes tasks at absolute times of [`now`]; clones share one timer.
#[derive(Clone)]
pub struct Pacer(Arc<Shared>);

struct Shared {
    waiting: Mutex<BinaryHeap<Reverse<Entry>>>,
    timer: AsyncFd<OwnedFd>,
}

struct Entry {
    at: u64,
    waker: Waker,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl Pacer {
    /// Makes the timer and spawns the task that serves it; call inside a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// When the kernel gives no `timerfd`.
    pub fn start() -> io::Result<Self> {
        let fd = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for fds that change; an `OwnedFd` never does"
        )]
        let timer = AsyncFd::new(fd)?;
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            timer,
        });
        let serving = Arc::clone(&shared);
        // Lives as long as the runtime: a process of the bench has one pacer and ends with it.
        tokio::spawn(async move { while serving.serve().await.is_ok() {} });
        Ok(Self(shared))
    }

    /// Returns when [`now`] has reached `at` (nanoseconds); at once, without yielding, when it already has.
    #[must_use]
    pub fn until(&self, at: u64) -> Until {
        Until {
            shared: Arc::clone(&self.0),
            at,
            registered: None,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BinaryHeap<Reverse<Entry>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One expiry: wakes whoever is due and arms the timer for the next.
    async fn serve(&self) -> io::Result<()> {
        let mut ready = self.timer.readable().await?;
        let mut count = [0_u8; 8];
        // Clears the readiness when the timer was re-armed between the wake-up and this read.
        let _ = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut count)?));
        let mut waiting = self.lock();
        let at = now();
        while waiting.peek().is_some_and(|entry| entry.0.at <= at) {
            if let Some(Reverse(entry)) = waiting.pop() {
                entry.waker.wake();
            }
        }
        if let Some(Reverse(next)) = waiting.peek() {
            self.arm(next.at)?;
        }
        Ok(())
    }

    fn arm(&self, at: u64) -> io::Result<()> {
        let it_value = Timespec {
            tv_sec: (at / NANOS).cast_signed(),
            tv_nsec: (at % NANOS).cast_signed(),
        };
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value,
        };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }
}

/// See [`Pacer::until`].
pub struct Until {
    shared: Arc<Shared>,
    at: u64,
    registered: Option<Waker>,
}

impl Future for Until {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if now() >= self.at {
            return Poll::Ready(());
        }
        if self
            .registered
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            return Poll::Pending;
        }
        let waker = cx.waker().clone();
        self.registered = Some(waker.clone());
        let mut waiting = self.shared.lock();
        let earliest = waiting.peek().is_none_or(|entry| self.at < entry.0.at);
        waiting.push(Reverse(Entry { at: self.at, waker }));
        if earliest && self.shared.arm(self.at).is_err() {
            // Without a timer the only honest thing left is to look again at once.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn deadlines_are_kept_in_order_and_never_early() {
        let pacer = Pacer::start().unwrap();
        let start = now();
        let waits = [900_u64, 300, 600, 301, 0].map(|micros| {
            let pacer = pacer.clone();
            tokio::spawn(async move {
                let at = start + micros * 1_000;
                pacer.until(at).await;
                (at, now())
            })
        });
        for wait in waits {
            let (at, woke) = wait.await.unwrap();
            assert!(woke >= at);
            assert!(woke - at < 50_000_000, "woke {} ns late", woke - at);
        }
    }
}

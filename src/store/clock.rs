//! Time that gateways of one store agree on, whatever their own clocks say.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The part of a second by which two quartz clocks may drift apart per second.
const DRIFT: u32 = 2_000;

/// Returns the time since some moment before the start. It also counts the time in which the process was stopped or
/// the machine was suspended, and never jumps.
#[must_use]
pub fn uptime() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

/// Returns this machine's time, in milliseconds since 1970.
#[must_use]
pub fn system() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// The clock of a store's server, read from answers that carry its time.
#[derive(Debug, Default)]
pub struct ServerClock(Mutex<Option<Reading>>);

/// A reading of the server's clock.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// The local moment that it belongs to.
    at: Duration,
    /// The server's time then, in milliseconds since 1970.
    time: i64,
    /// By how much it may be wrong.
    error: Duration,
}

impl Reading {
    fn time_at(&self, moment: Duration) -> i64 {
        self.time.saturating_add(millis(moment.saturating_sub(self.at)))
    }

    /// The error at a later moment.
    fn error_at(&self, moment: Duration) -> Duration {
        self.error + moment.saturating_sub(self.at) / DRIFT
    }
}

impl ServerClock {
    /// Takes an answer that was asked for at `sent`, arrived at `received`, and carries the server's time. A reading that
    /// took long is less exact than one before, and then does not replace it, unless the server's clock was set.
    pub fn learn(&self, sent: Duration, received: Duration, time: i64) {
        let half = received.saturating_sub(sent) / 2;
        let new = Reading {
            at: received.saturating_sub(half),
            time,
            error: half,
        };
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let better = reading.is_none_or(|old| {
            let error = old.error_at(new.at);
            let apart = old.time_at(new.at).abs_diff(time);
            new.error <= error || u128::from(apart) > (error + new.error).as_millis() + 1
        });
        if better {
            *reading = Some(new);
        }
    }

    /// Returns the server's time, in milliseconds since 1970; this machine's as long as the server's is not known.
    #[must_use]
    pub fn now(&self) -> i64 {
        let reading = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reading.map_or_else(system, |reading| reading.time_at(uptime()))
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_most_exact_reading_counts_until_the_clock_is_set() {
        let clock = ServerClock::default();
        let predicted = |at: u64| clock.0.lock().unwrap().map(|reading| reading.time_at(ms(at)));
        assert!(clock.now().abs_diff(system()) < 1_000, "its own, without an answer");
        // (sent, received, the server's time, what is believed of the moment 100,000)
        for (sent, received, time, believed) in [
            (1_000, 3_000, 502_500, 600_500),   // two seconds on the way: it may be a second wrong
            (4_000, 4_010, 504_005, 600_000),   // this one is exact
            (5_000, 7_000, 505_300, 600_000),   // this one less so, and it does not contradict
            (8_000, 8_020, 508_011, 600_000),   // nor this one
            (50_000, 50_020, 550_012, 600_002), // after a while the clocks may have drifted apart
            (60_000, 60_500, 560_000 + 7_000, 606_750), // the server's clock was set
            (61_000, 61_001, 460_000, 498_999), // and again, backwards
        ] {
            clock.learn(ms(sent), ms(received), time);
            let off = predicted(100_000).unwrap().abs_diff(believed);
            assert!(off <= 1, "{sent}: {:?}", predicted(100_000));
        }
    }

    #[test]
    fn the_uptime_never_goes_back() {
        let (first, second) = (uptime(), uptime());
        assert!(first <= second && second - first < Duration::from_secs(5));
    }
}

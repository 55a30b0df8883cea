//! Numbers of one measurement, and the spread of a number over the rounds.

use std::fmt;

use anyhow::Error;
use hdrhistogram::Histogram;

use crate::client::Answer;
use crate::procfs::Cpu;

/// Different faults that are kept word by word; the others are only counted.
const KEPT: usize = 3;

/// What one way of asking gave in one round.
pub struct Outcome {
    /// Answers that were complete, in order and properly ended.
    pub answers: u64,
    /// Answers that were not, in the warm-up too.
    pub lost: u64,
    /// Most of a warm-up was lost: there is nothing to measure, only something to repair.
    pub useless: bool,
    /// What was wrong with the first few of them.
    pub faults: Vec<String>,
    /// Tokens in the complete answers.
    pub tokens: u64,
    /// Socket reads that brought them.
    pub reads: u64,
    /// Nanoseconds from the first request to the last end.
    pub wall: u64,
    /// Nanoseconds from a request to its first token.
    pub first: Histogram<u64>,
    /// Nanoseconds from a token's writing by the mock to its reading by the client.
    pub delay: Histogram<u64>,
    /// Nanoseconds from a request to its end; W5: from the client's close to the mock's seeing it.
    pub whole: Histogram<u64>,
    /// What the process in between used; nothing when there was none.
    pub cpu: Option<Cpu>,
    /// Share of the wall time that driver and mock were on the CPU, 0 to 1.
    pub harness: f64,
    /// Share of the wall time that strangers kept the harness's or the subject's core busy, the larger, 0 to 1; with
    /// cores pinned only.
    pub others: Option<f64>,
    /// Anonymous memory per open stream in KiB, beyond the idle process; W3 only.
    pub kib_per_stream: Option<f64>,
    /// The most memory of its own that the process had, in KiB; only where somebody watched.
    pub peak_kib: Option<u64>,
    /// The fewest heartbeats of an answer.
    pub fewest_beats: Option<u64>,
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            answers: 0,
            lost: 0,
            useless: false,
            faults: Vec::new(),
            tokens: 0,
            reads: 0,
            wall: 0,
            first: histogram(),
            delay: histogram(),
            whole: histogram(),
            cpu: None,
            harness: 0.0,
            others: None,
            kib_per_stream: None,
            peak_kib: None,
            fewest_beats: None,
        }
    }
}

/// Nanoseconds up to ten minutes, three digits kept.
#[expect(clippy::expect_used, reason = "constant bounds that are valid")]
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("constant bounds")
}

impl Outcome {
    /// Counts one answer.
    pub fn add(&mut self, answer: &Answer) {
        self.answers += 1;
        self.tokens += answer.delays.len() as u64;
        self.reads += answer.reads;
        let fewest = self.fewest_beats.map_or(answer.beats, |beats| beats.min(answer.beats));
        self.fewest_beats = Some(fewest);
        self.first.saturating_record(answer.first);
        self.whole.saturating_record(answer.whole);
        for &delay in &answer.delays {
            self.delay.saturating_record(delay);
        }
    }

    /// Counts an answer that was lost.
    pub fn lose(&mut self, fault: &Error) {
        self.lost += 1;
        if self.faults.len() < KEPT {
            let mut fault = format!("{fault:#}");
            fault.truncate(fault.floor_char_boundary(300));
            if !self.faults.contains(&fault) {
                self.faults.push(fault);
            }
        }
    }

    /// Tokens per second; nothing without a token.
    #[must_use]
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.tokens > 0).then(|| ratio(self.tokens, self.wall) * 1e9)
    }

    /// Answers per second; nothing without one.
    #[must_use]
    pub fn answers_per_second(&self) -> Option<f64> {
        (self.answers > 0).then(|| ratio(self.answers, self.wall) * 1e9)
    }

    /// Microseconds of CPU per token: user, system, together; nothing when nobody was in between.
    #[must_use]
    pub fn cpu_per_token(&self) -> Option<[f64; 3]> {
        self.cpu_per(self.tokens)
    }

    /// Microseconds of CPU per answer: user, system, together.
    #[must_use]
    pub fn cpu_per_answer(&self) -> Option<[f64; 3]> {
        self.cpu_per(self.answers)
    }

    fn cpu_per(&self, count: u64) -> Option<[f64; 3]> {
        let cpu = self.cpu.filter(|_| count > 0)?;
        Some([cpu.user, cpu.system, cpu.total()].map(|used| ratio(used, count) / 1e3))
    }
}

/// `a / b` of whole numbers; 0 when `b` is.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "53 bits are more than these measurements are good for"
)]
pub fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// Milliseconds at a percentile of a histogram of nanoseconds; nothing when it is empty, which is not 0 ms.
#[must_use]
pub fn millis(histogram: &Histogram<u64>, percentile: f64) -> Option<f64> {
    (!histogram.is_empty()).then(|| ratio(histogram.value_at_percentile(percentile), 1_000_000))
}

/// Half, ninety-nine of a hundred, and the slowest, in milliseconds: `1.02 / 3.10 / 12.40`.
#[must_use]
pub fn tail(histogram: &Histogram<u64>) -> String {
    let at = |percentile| millis(histogram, percentile).map_or("–".into(), |ms| format!("{ms:.2}"));
    [50.0, 99.0, 100.0].map(at).join(" / ")
}

/// The slope of a line through points that a few wild ones do not bend: the median of the slopes between any two (Theil
/// and Sen). Nothing without two points apart.
#[must_use]
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let pairs = points
        .iter()
        .enumerate()
        .flat_map(|(place, a)| points[place + 1..].iter().map(move |b| (b.0 - a.0, b.1 - a.1)));
    let slopes = pairs.filter(|(along, _)| *along > 0.0).map(|(along, up)| up / along);
    Spread::of(slopes).map(|spread| spread.median)
}

/// One number over the rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The middle one (of an even count: the mean of the middle two).
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// Of the values of all rounds; nothing when there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }
}

impl fmt::Display for Spread {
    /// `15.2 (14.9 to 16.0)`, with as many digits as `{:.1}` says; the median alone when there was one round.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        write!(f, "{:.digits$}", self.median)?;
        if self.min < self.max {
            write!(f, " ({:.digits$} to {:.digits$})", self.min, self.max)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_and_the_range() {
        let spread = Spread::of([3.0, 1.0, 2.04]).unwrap();
        assert_eq!(
            spread,
            Spread {
                median: 2.04,
                min: 1.0,
                max: 3.0
            }
        );
        assert_eq!(format!("{spread:.1}"), "2.0 (1.0 to 3.0)");
        assert_eq!(format!("{:.2}", Spread::of([1.0, 2.0]).unwrap()), "1.50 (1.00 to 2.00)");
        assert_eq!(format!("{:.0}", Spread::of([7.0]).unwrap()), "7");
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_slope_is_not_bent_by_one_wild_point() {
        let mut points: Vec<(f64, f64)> = (0..20).map(|at| (f64::from(at), 3.0 * f64::from(at))).collect();
        points[7].1 = 1_000.0;
        assert!((slope(&points).unwrap() - 3.0).abs() < 1e-9);
        assert_eq!(slope(&points[..1]), None);
    }

    #[test]
    fn an_outcome_counts_what_arrived() {
        let mut outcome = Outcome {
            wall: 2_000_000_000,
            ..Outcome::default()
        };
        outcome.add(&Answer {
            first: 1_000_000,
            whole: 3_000_000,
            delays: vec![500_000, 700_000],
            reads: 2,
            beats: 0,
        });
        outcome.lose(&anyhow::anyhow!("gone"));
        assert_eq!((outcome.answers, outcome.lost, outcome.tokens), (1, 1, 2));
        assert!((outcome.tokens_per_second().unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(outcome.cpu_per_token(), None);
        outcome.cpu = Some(Cpu {
            user: 2_000,
            system: 4_000,
        });
        assert_eq!(outcome.cpu_per_token(), Some([1.0, 2.0, 3.0]));
        assert!((millis(&outcome.first, 50.0).unwrap() - 1.0).abs() < 0.01);
        assert_eq!(millis(&histogram(), 50.0), None);
    }
}

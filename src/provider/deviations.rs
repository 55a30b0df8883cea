//! The deviations from a dialect that do not cost an answer: noted while it is decoded, counted
//! and logged when it is complete.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::meters::{Meters, Tolerated};

/// A set of deviations. Each is noted once per answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deviations(u32);

impl Deviations {
    /// Notes one.
    pub fn add(&mut self, what: Tolerated) {
        self.0 |= bit(what);
    }

    /// Notes one if `deviates` is true.
    pub fn add_if(&mut self, deviates: bool, what: Tolerated) {
        if deviates {
            self.add(what);
        }
    }

    /// Those that were noted.
    pub fn iter(self) -> impl Iterator<Item = Tolerated> {
        let noted = move |what: &Tolerated| self.0 & bit(*what) != 0;
        Tolerated::ALL.iter().copied().filter(noted)
    }
}

fn bit(what: Tolerated) -> u32 {
    1 << what as u32
}

/// The counter and the log of one provider's deviations.
#[derive(Debug)]
pub struct DeviationLog {
    provider: String,
    meters: Arc<Meters>,
    /// The kinds that the log has a line about.
    logged: AtomicU32,
}

impl DeviationLog {
    /// A log of this provider, without a line.
    #[must_use]
    pub fn new(provider: String, meters: Arc<Meters>) -> Self {
        let logged = AtomicU32::new(0);
        Self {
            provider,
            meters,
            logged,
        }
    }

    /// Counts a deviation. The first of each kind is logged, because a provider that changes its
    /// protocol should be noticed, and a line per answer would hide other lines.
    pub fn note(&self, what: Tolerated) {
        self.meters.call_tolerated(&self.provider, what);
        if self.logged.fetch_or(bit(what), Ordering::Relaxed) & bit(what) == 0 {
            tracing::warn!(
                provider = self.provider,
                kind = what.as_str(),
                "the provider's answer deviates from its documented protocol and was accepted; \
                 more of this kind are counted and not logged"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use super::*;

    /// What a subscriber writes.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_first_of_each_kind_is_logged_with_its_provider() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let log = DeviationLog::new("mistral".into(), Arc::default());
            for what in [Tolerated::FieldType, Tolerated::FinishWord, Tolerated::FieldType] {
                log.note(what);
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        for kind in ["field_type", "finish_word"] {
            let named = |line: &&str| line.contains(kind) && line.contains("mistral") && line.contains("WARN");
            assert_eq!(text.lines().filter(named).count(), 1, "{text}");
        }
    }

    #[test]
    fn a_set_holds_what_was_noted_and_nothing_else() {
        let mut set = Deviations::default();
        assert_eq!(set.iter().count(), 0);
        set.add(Tolerated::Repeated);
        set.add(Tolerated::Repeated);
        set.add_if(false, Tolerated::Empty);
        set.add_if(true, Tolerated::FieldType);
        let mut noted: Vec<_> = set.iter().map(Tolerated::as_str).collect();
        noted.sort_unstable();
        assert_eq!(noted, ["field_type", "repeated"]);
        let mut all = Deviations::default();
        Tolerated::ALL.iter().for_each(|what| all.add(*what));
        assert_eq!(all.iter().count(), Tolerated::ALL.len());
    }
}

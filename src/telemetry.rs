//! What is written to the log: sentences that read alone, with fields; never a key, never a message's text. Whoever logs
//! does not wait for who reads the log: a thread writes, and lines that it cannot get rid of are dropped and counted.
//! (Own code: the library's writer prints to standard output when it cannot end, which may be the same full pipe.)

use std::{
    io::{self, IsTerminal, Write},
    panic::PanicHookInfo,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

mod line;
#[cfg(feature = "otel")]
mod otel;
pub mod trace;

pub use line::harmless;
use line::{Look, line};
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// Lines that may wait to be written.
const WAITING: usize = 4096;
/// How long the last of them have when everything is over.
const LAST: Duration = Duration::from_secs(1);

static DROPPED: AtomicU64 = AtomicU64::new(0);
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many lines of the log were dropped, as nobody took them.
#[must_use]
pub fn dropped() -> u64 {
    DROPPED.load(Relaxed)
}

/// How many panics there were, since the log began.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Relaxed)
}

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Begins to log to standard error. `filter` is a `tracing` filter, such as `info` or `sluicegate=debug,warn`. The log ends,
/// written to its last line if that can be, when what is returned is dropped.
///
/// # Errors
/// A filter that is none, a log that has begun already, or no thread to write it.
pub fn begin(format: LogFormat, filter: &str) -> Result<Log, String> {
    let (filter, handle) = reload::Layer::new(parse_filter(filter)?);
    let (to, waiting) = sync_channel(WAITING);
    let writer = std::thread::Builder::new().name("log".to_owned());
    writer
        .spawn(move || write_all(&waiting, io::stderr()))
        .map_err(|e| format!("no thread for the log: {e}"))?;
    let log = Log(to.clone());
    let coloured = io::stderr().is_terminal();
    let look = match format {
        LogFormat::Json => Look::Json,
        LogFormat::Text if coloured => Look::Coloured,
        LogFormat::Text => Look::Plain,
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(move || Line(to.clone(), look));
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(coloured).with_target(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|e| e.to_string())?;
    let _ = FILTER.set(handle); // the log begins once, or `try_init` has failed
    std::panic::set_hook(Box::new(note_panic));
    Ok(log)
}

/// The filter of the log, once the log has begun.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Replaces the filter of the log. Where the log has not begun there is none to replace.
///
/// # Errors
/// A filter that is none.
pub fn refilter(filter: &str) -> Result<(), String> {
    let filter = parse_filter(filter)?;
    match FILTER.get() {
        Some(handle) => handle.reload(filter).map_err(|e| format!("log.filter: {e}")),
        None => Ok(()),
    }
}

/// Checks a filter without beginning to log.
///
/// # Errors
/// The part that is wrong, and how it must be written.
pub fn check_filter(filter: &str) -> Result<(), String> {
    parse_filter(filter).map(drop)
}

/// A filter with what is never logged, or only when asked for by name.
fn parse_filter(filter: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    for part in filter.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        // The library takes any lone word for the name of a target, and "verbose" too.
        let is_target = part.contains(['=', '[', ':']) || part == "sluicegate";
        if !is_level(part) && !is_target {
            return Err(format!(
                "log.filter: {part:?} is no level ({}); a target has one behind it, as in \
                 sluicegate=debug",
                LEVELS.join(", ")
            ));
        }
    }
    // rmcp logs what MCP servers say, and addresses with their queries; what matters of it we say
    // ourselves. sqlx logs statements, which are wanted only by those who name it.
    let statements = if filter.contains("sqlx") {
        ""
    } else {
        "sqlx::query=off,"
    };
    EnvFilter::builder()
        .parse(format!("rmcp=off,{statements}{filter}"))
        .map_err(|e| format!("log.filter: {e}; it is written as in \"info\" or \"sluicegate=debug,warn\""))
}

/// A panic is a line of the log like any other. Where it was, and not what it says: that may quote what was worked on.
fn note_panic(panic: &PanicHookInfo<'_>) {
    PANICS.fetch_add(1, Relaxed);
    let at = panic.location().map(ToString::to_string);
    tracing::error!(at, "a bug: something panicked");
}

/// What the writing thread is given.
enum Piece {
    Line(Vec<u8>),
    /// The last one; told when everything before it has been written.
    End(SyncSender<()>),
}

/// Where a line is written, and how it looks: to the end of those that wait, or nowhere.
struct Line(SyncSender<Piece>, Look);

impl Write for Line {
    /// The layer hands over whole events.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = line(&String::from_utf8_lossy(event), self.1).into_bytes();
        if let Err(TrySendError::Full(_)) = self.0.try_send(Piece::Line(line)) {
            DROPPED.fetch_add(1, Relaxed);
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what comes, and says where lines are missing once it has caught up.
fn write_all(waiting: &Receiver<Piece>, mut to: impl Write) {
    let mut told = 0;
    loop {
        let next = match waiting.try_recv() {
            Err(TryRecvError::Empty) => {
                let dropped = dropped();
                if dropped > told {
                    told = dropped;
                    tracing::warn!(dropped, "lines of the log were dropped, as nobody took them");
                }
                waiting.recv().ok()
            }
            next => next.ok(),
        };
        match next {
            Some(Piece::Line(line)) => drop(to.write_all(&line)), // a closed log is nobody's fault, and nobody is there to be told
            Some(Piece::End(ended)) => {
                let _ = ended.send(()); // nobody waits any more
                return;
            }
            None => return,
        }
    }
}

/// The log, as long as it is kept.
#[derive(Debug)]
pub struct Log(SyncSender<Piece>);

impl Drop for Log {
    fn drop(&mut self) {
        let (end, ended) = sync_channel(1);
        let (until, mut piece) = (Instant::now() + LAST, Piece::End(end));
        while let Err(TrySendError::Full(unsent)) = self.0.try_send(piece) {
            if Instant::now() > until {
                return;
            }
            piece = unsent;
            std::thread::sleep(Duration::from_millis(5));
        }
        // An error either way: time is over, or what would send is gone.
        let _ = ended.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_counted() {
        let (before, usual) = (panics(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            note_panic(panic);
            usual(panic);
        }));
        assert!(std::panic::catch_unwind(|| panic!("as it is meant to")).is_err());
        assert!(panics() > before);
    }

    /// Says that it has a line, and takes it when it is told to.
    struct Reluctant {
        has: SyncSender<()>,
        may: Receiver<()>,
        lines: SyncSender<Vec<u8>>,
    }

    impl Write for Reluctant {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.has.try_send(());
            let _ = self.may.recv();
            let _ = self.lines.send(line.to_vec());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_takes_drops_lines_and_holds_up_nobody() {
        let (to, waiting) = sync_channel(WAITING);
        let ((allow, may), (lines, written)) = (sync_channel(0), sync_channel(2 * WAITING));
        let (has, first) = sync_channel(1);
        let writer = std::thread::spawn(move || write_all(&waiting, Reluctant { has, may, lines }));
        let log = |number: usize| {
            Line(to.clone(), Look::Plain)
                .write_all(format!("{number}\n").as_bytes())
                .unwrap();
        };
        log(0);
        first.recv().unwrap();
        // One is with who writes, as many as may do wait, and the rest is too much.
        let (before, began) = (dropped(), Instant::now());
        (1..=WAITING + 1_000).for_each(log);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(dropped() - before, 1_000);
        // Its end is not waited for beyond its time.
        let began = Instant::now();
        drop(Log(to.clone()));
        let took = began.elapsed();
        assert!((LAST..LAST + Duration::from_secs(5)).contains(&took), "{took:?}");
        // Who takes lines again gets those that waited, in order, and the log ends behind them.
        drop(allow);
        drop(Log(to));
        writer.join().unwrap();
        let written: Vec<_> = written.iter().map(|line| String::from_utf8(line).unwrap()).collect();
        let expected: Vec<_> = (0..=WAITING).map(|number| format!("{number}\n")).collect();
        assert_eq!(written, expected);
    }
}

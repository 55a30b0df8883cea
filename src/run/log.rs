//! A run's log: what it did, in order, once; and its readers, each at its own place.
//!
//! The run appends and never waits for a reader; a reader takes everything that is there in one go. The text of the
//! answer is kept once, in one piece, whatever number of tokens it came in. The log is bounded by the run's
//! `max_output`, so a slow reader costs nothing but its own place.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::{sync::Notify, time::Instant};

use super::Run;
use crate::{
    chat::Event,
    error::{Error, ErrorCode},
};

/// What an entry costs beside its text, in bytes: an estimate, for the limit of all logs together.
const ENTRY: usize = size_of::<Entry>();

/// An event as a reader sees it: borrowed from the log.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// More of the answer.
    Text {
        /// The text.
        text: &'a str,
        /// Whether the answer before it ended with a CR (which an LF at its start then belongs to).
        after_cr: bool,
    },
    /// More of the thinking.
    Reasoning(&'a str),
    /// Any other event.
    Other(&'a Event),
}

/// The log.
#[derive(Debug)]
pub struct Log {
    shelf: Mutex<Shelf>,
    /// Told when the last reader left.
    pub(super) vacated: Notify,
    /// Bytes in all logs together.
    held: Arc<AtomicUsize>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// The number of the first entry: 0, but for a log made from what a store kept.
    first: u64,
    entries: Vec<Entry>,
    text: String,
    thoughts: String,
    bytes: usize,
    ended: bool,
    readers: Vec<Seat>,
    seats: u64,
    /// Since when nobody reads.
    vacant: Option<Instant>,
}

#[derive(Debug)]
enum Entry {
    Text { from: u32, to: u32 },
    Reasoning { from: u32, to: u32 },
    Other(Box<Event>),
}

/// A reader's place in the waiting room.
#[derive(Debug)]
struct Seat {
    id: u64,
    interest: Interest,
    waker: Option<Waker>,
}

/// What a reader wants to be woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Every event.
    Every,
    /// The last one.
    Last,
}

impl Log {
    /// An empty log whose first event will have the number `first`.
    #[must_use]
    pub fn new(first: u64, held: Arc<AtomicUsize>) -> Self {
        let shelf = Shelf {
            first,
            vacant: Some(Instant::now()),
            ..Shelf::default()
        };
        Self {
            shelf: Mutex::new(shelf),
            vacated: Notify::new(),
            held,
        }
    }

    /// A panicking holder leaves the log as it was before the event it was adding.
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds events, and wakes the readers once for all of them. After the last event nothing is added any more.
    pub fn append(&self, events: impl IntoIterator<Item = Event>) {
        let mut shelf = self.shelf();
        let before = shelf.bytes;
        for event in events {
            shelf.push(event);
        }
        self.held.fetch_add(shelf.bytes - before, Ordering::Relaxed);
        let ended = shelf.ended;
        for seat in &mut shelf.readers {
            if (ended || seat.interest == Interest::Every)
                && let Some(waker) = seat.waker.take()
            {
                waker.wake(); // only queues the reader's task; it does not run here
            }
        }
    }

    /// The number of the last event; `None` for an empty log.
    #[must_use]
    pub fn last_seq(&self) -> Option<u64> {
        let shelf = self.shelf();
        (shelf.first + shelf.entries.len() as u64).checked_sub(1)
    }

    /// Whether the texts of all events together are this.
    #[must_use]
    pub fn says(&self, text: &str) -> bool {
        self.shelf().text == text
    }

    /// The number that the next event will have.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        let shelf = self.shelf();
        shelf.first + shelf.entries.len() as u64
    }

    /// The events from number `first` on, as many as make about `limit` bytes of text, and whether there are more.
    #[must_use]
    pub fn since(&self, first: u64, limit: usize) -> (Vec<Event>, bool) {
        let shelf = self.shelf();
        let from = usize::try_from(first.saturating_sub(shelf.first)).unwrap_or(usize::MAX);
        let (mut events, mut bytes) = (Vec::new(), 0);
        for at in from..shelf.entries.len() {
            if bytes > limit {
                return (events, true);
            }
            events.push(match shelf.view(at) {
                View::Text { text, .. } => Event::Text(text.to_owned()),
                View::Reasoning(text) => Event::Reasoning(text.to_owned()),
                View::Other(event) => event.clone(),
            });
            bytes += events.last().map_or(0, size);
        }
        (events, false)
    }

    /// Ends a log whose last event cannot be had: its readers find its end without one.
    pub fn give_up(&self) {
        let mut shelf = self.shelf();
        shelf.ended = true;
        for seat in &mut shelf.readers {
            if let Some(waker) = seat.waker.take() {
                waker.wake();
            }
        }
    }

    /// Whether there is anything in it behind the run's beginning.
    #[must_use]
    pub fn spoke(&self) -> bool {
        let shelf = self.shelf();
        shelf.first + shelf.entries.len() as u64 > 1
    }

    /// Whether the last event is there.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.shelf().ended
    }

    /// Gives the last event to `look`, if the log has ended with one.
    pub fn last_event<T>(&self, look: impl FnOnce(&Event) -> T) -> Option<T> {
        let shelf = self.shelf();
        match shelf.entries.last() {
            Some(Entry::Other(event)) if event.is_last() => Some(look(event)),
            _ => None,
        }
    }

    /// Whether it begins as a run's does; if not, the run came to nothing. `None` while it is empty.
    #[must_use]
    pub fn begun(&self) -> Option<bool> {
        let shelf = self.shelf();
        let first = shelf.entries.first()?;
        Some(!matches!(first, Entry::Other(event) if event.is_last()))
    }

    /// Since when nobody reads; `None` while somebody does.
    #[must_use]
    pub fn vacant_since(&self) -> Option<Instant> {
        self.shelf().vacant
    }

    fn sit(&self, interest: Interest) -> u64 {
        let mut shelf = self.shelf();
        shelf.vacant = None;
        shelf.seats += 1;
        let id = shelf.seats;
        shelf.readers.push(Seat {
            id,
            interest,
            waker: None,
        });
        id
    }

    fn leave(&self, seat: u64) {
        let mut shelf = self.shelf();
        shelf.readers.retain(|other| other.id != seat);
        if shelf.readers.is_empty() {
            shelf.vacant = Some(Instant::now());
            drop(shelf);
            self.vacated.notify_one();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.held.fetch_sub(self.shelf().bytes, Ordering::Relaxed);
    }
}

impl Shelf {
    fn push(&mut self, event: Event) {
        if self.ended {
            return;
        }
        self.ended = event.is_last();
        // Offsets fit: the configuration bounds an answer far below 4 GiB.
        let entry = match event {
            Event::Text(text) => {
                let from = self.text.len() as u32;
                self.text.push_str(&text);
                self.bytes += text.len();
                Entry::Text {
                    from,
                    to: self.text.len() as u32,
                }
            }
            Event::Reasoning(text) => {
                let from = self.thoughts.len() as u32;
                self.thoughts.push_str(&text);
                self.bytes += text.len();
                Entry::Reasoning {
                    from,
                    to: self.thoughts.len() as u32,
                }
            }
            other => {
                self.bytes += size(&other);
                Entry::Other(Box::new(other))
            }
        };
        self.bytes += ENTRY;
        self.entries.push(entry);
    }

    fn view(&self, at: usize) -> View<'_> {
        match &self.entries[at] {
            Entry::Text { from, to } => View::Text {
                text: &self.text[*from as usize..*to as usize],
                after_cr: *from > 0 && self.text.as_bytes()[*from as usize - 1] == b'\r',
            },
            Entry::Reasoning { from, to } => View::Reasoning(&self.thoughts[*from as usize..*to as usize]),
            Entry::Other(event) => View::Other(event),
        }
    }
}

/// What is told of a run that went on where it cannot be followed.
pub(super) fn out_of_sight() -> Error {
    Error::new(
        ErrorCode::StoreUnavailable,
        "This run's events cannot be read here any more; GET /runs/{id} has its result.",
    )
    .retry_after(Duration::from_secs(1))
}

/// What an event holds, in bytes: an estimate.
fn size(event: &Event) -> usize {
    match event {
        Event::Text(text) | Event::Reasoning(text) => text.len(),
        Event::ToolCall(call) => members(&call.arguments),
        Event::ToolResult(result) => result.content.len(),
        // The answer stands there as the content and as messages, and so do calls and their results.
        Event::Done(done) => {
            let answer = &done.answer;
            let calls = answer.tool_calls.iter();
            let calls: usize = calls.map(|call| call.result.len() + members(&call.arguments)).sum();
            2 * (answer.content.len() + calls) + answer.structured_data.as_ref().map_or(0, held)
        }
        _ => 0,
    }
}

/// What a value holds, in bytes.
fn held(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::String(text) => text.len(),
            Value::Array(all) => all.iter().map(held).sum(),
            Value::Object(all) => members(all),
            _ => 0,
        }
}

fn members(all: &Map<String, Value>) -> usize {
    all.iter().map(|(name, value)| name.len() + held(value)).sum()
}

/// One who reads a run's log. Dropping it is leaving.
#[derive(Debug)]
pub struct Reader {
    run: Arc<Run>,
    next: u64,
    seat: u64,
}

/// What a look at the log found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Events; there may be more at once.
    Events,
    /// The last event was read before.
    End,
}

impl Reader {
    /// A reader who reads from the event `next` on.
    #[must_use]
    pub fn new(run: Arc<Run>, next: u64, interest: Interest) -> Self {
        let seat = run.log.sit(interest);
        Self { run, next, seat }
    }

    /// The run that is read.
    #[must_use]
    pub fn run(&self) -> &Arc<Run> {
        &self.run
    }

    /// Gives events to `each`, with their numbers, as long as it returns true and there are any. Pending where there
    /// are none: then the task is woken when there are.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, mut each: impl FnMut(u64, View<'_>) -> bool) -> Poll<Found> {
        let mut shelf = self.run.log.shelf();
        let mut at = usize::try_from(self.next.saturating_sub(shelf.first)).unwrap_or(usize::MAX);
        if at >= shelf.entries.len() {
            if shelf.ended {
                return Poll::Ready(Found::End);
            }
            if let Some(seat) = shelf.readers.iter_mut().find(|seat| seat.id == self.seat) {
                match &mut seat.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
            }
            return Poll::Pending;
        }
        let mut go_on = true;
        while go_on && at < shelf.entries.len() {
            go_on = each(shelf.first + at as u64, shelf.view(at));
            at += 1;
        }
        self.next = shelf.first + at as u64;
        Poll::Ready(Found::Events)
    }

    /// Waits for the run's last event. Wants a seat with [`Interest::Last`].
    pub async fn last(&mut self) -> Event {
        std::future::poll_fn(|cx| {
            let mut shelf = self.run.log.shelf();
            match shelf.entries.last() {
                Some(Entry::Other(event)) if event.is_last() => return Poll::Ready((**event).clone()),
                _ if shelf.ended => return Poll::Ready(Event::Failed(out_of_sight())),
                _ => {}
            }
            if let Some(seat) = shelf.readers.iter_mut().find(|seat| seat.id == self.seat) {
                seat.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.run.log.leave(self.seat);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::chat::ToolCallMade;

    #[test]
    fn the_arguments_of_a_call_count_like_words() {
        let held = Arc::default();
        let log = Log::new(0, Arc::clone(&held));
        let arguments = Map::from_iter([(
            "list".to_owned(),
            json!(["x".repeat(10_000), {"y": "z".repeat(10_000)}]),
        )]);
        let (id, name) = ("c".to_owned(), "t".to_owned());
        log.append([Event::ToolCall(ToolCallMade {
            id,
            name,
            arguments,
            round: 1,
            last: true,
        })]);
        assert!((20_000..21_000).contains(&held.load(Ordering::Relaxed)));
    }
}

//! A run's log: what it did, in order, once; and its readers, each at its own place.
//!
//! The run appends and never waits for a reader; a reader takes everything that is there in one go. The text of the
//! answer is kept once, in one piece, whatever number of tokens it came in. The log is bounded by the run's
//! `max_output`, so a slow reader costs nothing but its own place.

use std::{
    ops::{Deref, Range},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    Run,
    entry::{Entries, Place},
};
use crate::{
    chat::{Done, Event, Role, message::members},
    error::{Error, ErrorCode},
};

/// The longest text of one event: a longer one becomes several, so that a reader never has to take more at once.
const MAX_TEXT: usize = 16 << 10;
/// What a run costs beside what it said, in bytes, as long as its log is held: an estimate, as measured.
const RUN: usize = 3 << 10;

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
    entries: Entries<Told>,
    text: Words,
    thoughts: String,
    bytes: usize,
    ended: bool,
    readers: Vec<Seat>,
    seats: u64,
    /// Since when nobody reads.
    vacant: Option<Instant>,
}

/// The answer's text.
#[derive(Debug)]
enum Words {
    /// As long as more may come.
    Growing(String),
    /// Whole, as far as is known: the same piece that the run's message and its result hold.
    Whole(Arc<str>),
}

impl Default for Words {
    fn default() -> Self {
        Self::Growing(String::new())
    }
}

impl Deref for Words {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Growing(text) => text,
            Self::Whole(text) => text,
        }
    }
}

impl Words {
    fn push(&mut self, more: &str) {
        match self {
            Self::Growing(text) => text.push_str(more),
            Self::Whole(text) => *self = Self::Growing([text, more].concat()),
        }
    }

    /// A part of it. Who takes all of it shares it from then on.
    fn share(&mut self, part: Range<usize>) -> Arc<str> {
        let all = part == (0..self.len());
        let shared = self.part(part);
        if all {
            *self = Self::Whole(shared.clone());
        }
        shared
    }

    /// A part of it; all of it is not copied again.
    fn part(&self, part: Range<usize>) -> Arc<str> {
        match self {
            Self::Whole(text) if part == (0..text.len()) => text.clone(),
            text => text[part].into(),
        }
    }
}

/// An event that is not words.
#[derive(Debug)]
enum Told {
    Event(Box<Event>),
    /// `done`, without the words that the log has already.
    Done(Box<Lean>),
}

impl Told {
    fn is_last(&self) -> bool {
        match self {
            Self::Event(event) => event.is_last(),
            Self::Done(_) => true,
        }
    }
}

/// What a run came to, with its words left where the log has them: an answer is long, and is kept for a while.
#[derive(Clone, Debug)]
pub struct Lean {
    done: Done,
    /// Whether the content is the log's text.
    content: bool,
    /// Whether the reasoning is the log's.
    reasoning: bool,
    /// Which messages are which part of it.
    messages: Vec<(usize, Range<usize>)>,
    /// The parts that somebody reads just now, in that order: many readers share one copy.
    parts: Arc<Mutex<Vec<Option<Weak<str>>>>>,
}

impl Lean {
    /// Leaves out what stands in `text` and in `thoughts`.
    fn of(mut done: Done, text: &str, thoughts: &str) -> Self {
        let (mut messages, mut at) = (Vec::new(), 0);
        for (place, message) in done.answer.messages.iter_mut().enumerate() {
            if message.role == Role::Assistant && text[at..].starts_with(&*message.content) {
                let words = at..at + message.content.len();
                at = words.end;
                message.content = Arc::default();
                messages.push((place, words));
            }
        }
        let content = &*done.answer.content == text;
        if content {
            done.answer.content = Arc::default();
        }
        let reasoning = done.answer.reasoning.as_deref() == Some(thoughts);
        if reasoning {
            done.answer.reasoning = None;
        }
        let parts = vec![None; messages.len()];
        Self {
            done,
            content,
            reasoning,
            messages,
            parts: Arc::new(Mutex::new(parts)),
        }
    }

    /// All of it again.
    fn whole(&self, text: &Words, thoughts: &str) -> Done {
        let mut done = self.done.clone();
        if self.reasoning {
            done.answer.reasoning = Some(thoughts.into());
        }
        if self.content {
            done.answer.content = text.part(0..text.len());
        }
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        for ((place, words), part) in self.messages.iter().zip(&mut *parts) {
            let held = part.as_ref().and_then(Weak::upgrade);
            let read = held.unwrap_or_else(|| text.part(words.clone()));
            *part = Some(Arc::downgrade(&read));
            done.answer.messages[*place].content = read;
        }
        done
    }

    /// What it holds, in bytes: an estimate.
    fn size(&self) -> usize {
        let messages = self.done.answer.messages.iter();
        let messages = messages.map(|message| {
            let calls = message.tool_calls.iter().map(|call| members(&call.arguments));
            message.content.len() + calls.sum::<usize>()
        });
        let reasoning = self.done.answer.reasoning.as_ref().map_or(0, |text| text.len());
        self.done.answer.content.len() + reasoning + messages.sum::<usize>() + data_size(&self.done)
    }
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
            bytes: RUN,
            ..Shelf::default()
        };
        held.fetch_add(RUN, Ordering::Relaxed);
        Self {
            shelf: Mutex::new(shelf),
            vacated: Notify::new(),
            held,
        }
    }

    /// The log of a run that ended before, told again: its beginning, its text, which is not copied, and its last event.
    pub(super) fn replayed(text: Arc<str>, last: Event) -> Self {
        let log = Self::new(0, Arc::default());
        log.append([Event::Started]);
        if !text.is_empty() {
            let mut shelf = log.shelf();
            let mut end = 0;
            for piece in pieces(&text) {
                end += piece.len();
                shelf.entries.text(end);
            }
            shelf.text = Words::Whole(text);
        }
        log.append([last]);
        log
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
        if ended {
            // It is kept for a while, and will not grow. Copied rather than shrunk, see there.
            let all = 0..shelf.text.len();
            let _ = shelf.text.share(all);
            shelf.thoughts = shelf.thoughts.as_str().to_owned();
            shelf.entries.settle();
        }
        for seat in &mut shelf.readers {
            if (ended || seat.interest == Interest::Every)
                && let Some(waker) = seat.waker.take()
            {
                waker.wake(); // only queues the reader's task; it does not run here
            }
        }
    }

    /// What is to be kept beside the log for as long as the log is: how far a run got that did not complete. It counts.
    pub(super) fn keep(&self, partial: Done) -> Lean {
        let mut shelf = self.shelf();
        let lean = Lean::of(partial, &shelf.text, &shelf.thoughts);
        shelf.bytes += lean.size();
        self.held.fetch_add(lean.size(), Ordering::Relaxed);
        lean
    }

    /// What was kept.
    pub(super) fn whole(&self, kept: &Lean) -> Done {
        let shelf = self.shelf();
        kept.whole(&shelf.text, &shelf.thoughts)
    }

    /// The number of the last event; `None` for an empty log.
    #[must_use]
    pub fn last_seq(&self) -> Option<u64> {
        let shelf = self.shelf();
        (shelf.first + shelf.entries.len() as u64).checked_sub(1)
    }

    /// The reasoning of all events together; `None` where there is none.
    #[must_use]
    pub fn reasoning(&self) -> Option<Arc<str>> {
        let shelf = self.shelf();
        (!shelf.thoughts.is_empty()).then(|| shelf.thoughts.as_str().into())
    }

    /// Whether the texts of all events together are this.
    #[must_use]
    pub fn says(&self, text: &str) -> bool {
        &*self.shelf().text == text
    }

    /// The last so many bytes of the text; all of it is not held twice then, for as long as nothing is added.
    #[must_use]
    pub fn tail(&self, bytes: usize) -> Arc<str> {
        let mut shelf = self.shelf();
        let (from, end) = (shelf.text.len().saturating_sub(bytes), shelf.text.len());
        match shelf.text.is_char_boundary(from) {
            true => shelf.text.share(from..end),
            false => Arc::default(),
        }
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
            let event = shelf.look(at, |view| match view {
                View::Text { text, .. } => Event::Text(text.to_owned()),
                View::Reasoning(text) => Event::Reasoning(text.to_owned()),
                View::Other(event) => event.clone(),
            });
            bytes += size(&event);
            events.push(event);
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
        let last = self.shelf().last();
        last.map(|event| look(&event))
    }

    /// Whether there is a last event.
    #[must_use]
    pub fn concluded(&self) -> bool {
        self.shelf().entries.last().is_some_and(Told::is_last)
    }

    /// Whether it begins as a run's does; if not, the run came to nothing. `None` while it is empty.
    #[must_use]
    pub fn begun(&self) -> Option<bool> {
        let shelf = self.shelf();
        let over = shelf.entries.first().is_some_and(Told::is_last);
        (shelf.entries.len() > 0).then_some(!over)
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
        self.bytes += match event {
            Event::Done(done) => {
                let content = done.answer.content.clone();
                let lean = Lean::of(*done, &self.text, &self.thoughts);
                if lean.content {
                    self.text = Words::Whole(content);
                }
                let size = lean.size();
                self.entries.other(Told::Done(Box::new(lean)));
                Entries::<Told>::OTHER + size
            }
            Event::Text(text) => pieces(&text)
                .map(|piece| {
                    self.text.push(piece);
                    self.entries.text(self.text.len());
                    Entries::<Told>::WORDS + piece.len()
                })
                .sum(),
            Event::Reasoning(text) => pieces(&text)
                .map(|piece| {
                    self.thoughts.push_str(piece);
                    self.entries.reasoning(self.thoughts.len());
                    Entries::<Told>::WORDS + piece.len()
                })
                .sum(),
            other => {
                let size = size(&other);
                self.entries.other(Told::Event(Box::new(other)));
                Entries::<Told>::OTHER + size
            }
        };
    }

    fn look<T>(&self, at: usize, look: impl FnOnce(View<'_>) -> T) -> T {
        match self.entries.get(at) {
            Place::Text(words) => look(View::Text {
                after_cr: self.text[..words.start].ends_with('\r'),
                text: &self.text[words],
            }),
            Place::Reasoning(words) => look(View::Reasoning(&self.thoughts[words])),
            Place::Other(Told::Event(event)) => look(View::Other(event)),
            Place::Other(Told::Done(lean)) => look(View::Other(&Event::Done(Box::new(
                lean.whole(&self.text, &self.thoughts),
            )))),
        }
    }

    /// The last event, if there is one.
    fn last(&self) -> Option<Event> {
        match self.entries.last().filter(|told| told.is_last())? {
            Told::Done(lean) => Some(Event::Done(Box::new(lean.whole(&self.text, &self.thoughts)))),
            Told::Event(event) => Some((**event).clone()),
        }
    }
}

/// A text in pieces that are no longer than an event may be; an empty one is a piece, too.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let (piece, more) = text.split_at(text.floor_char_boundary(MAX_TEXT));
        rest = Some(more).filter(|more| !more.is_empty());
        Some(piece)
    })
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
        Event::Done(done) => 2 * done.answer.content.len() + data_size(done),
        _ => 0,
    }
}

/// What a result holds beside what the model said: calls and their results (which stand there as messages, too), and data.
fn data_size(done: &Done) -> usize {
    let answer = &done.answer;
    let calls = answer.tool_calls.iter();
    let calls: usize = calls.map(|call| call.result.len() + members(&call.arguments)).sum();
    calls + answer.structured_data.as_ref().map_or(0, |data| data.text().len())
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
            go_on = shelf.look(at, |view| each(shelf.first + at as u64, view));
            at += 1;
        }
        self.next = shelf.first + at as u64;
        Poll::Ready(Found::Events)
    }

    /// Waits for the run's last event. Wants a seat with [`Interest::Last`].
    pub async fn last(&mut self) -> Event {
        std::future::poll_fn(|cx| {
            let mut shelf = self.run.log.shelf();
            match shelf.last() {
                Some(event) => return Poll::Ready(event),
                None if shelf.ended => return Poll::Ready(Event::Failed(out_of_sight())),
                None => {}
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
    use serde_json::{Map, json};

    use super::*;
    use std::collections::BTreeMap;

    use crate::chat::{Answer, Message, RunId, ToolCallMade, Usage};

    /// What a run with a tool came to that said `content` over two rounds.
    fn done(content: &str) -> Done {
        let messages = vec![
            Message::user("Hi", Vec::new()),
            Message::assistant("Let me see. ", Vec::new()),
            Message::tool("c", "Sun"),
            Message::assistant("It is sunny.", Vec::new()),
        ];
        Done {
            answer: Answer {
                run_id: RunId::new(),
                session_id: None,
                agent: "a".into(),
                model: "m".into(),
                content: content.into(),
                reasoning: None,
                finish_reason: None,
                usage: Usage::default(),
                rounds: 2,
                tool_calls: Vec::new(),
                structured_data: None,
                artifact_files: Vec::new(),
                messages,
                metadata: BTreeMap::new(),
            },
            duration_ms: 1,
            first_token_ms: None,
            history_truncated: false,
            repaired: false,
        }
    }

    #[test]
    fn what_was_taken_whole_is_held_once_until_more_is_said() {
        let log = Log::new(0, Arc::default());
        let say = |text: &str| log.append([Event::Text(text.into())]);
        say("Let me ");
        say("see. ");
        let all = log.tail("Let me see. ".len());
        assert_eq!(&*all, "Let me see. ");
        assert!(Arc::ptr_eq(&all, &log.tail(all.len())));
        say("It is sünny.");
        assert_eq!(&*all, "Let me see. ");
        assert_eq!(&*log.tail("sünny.".len()), "sünny.");
        assert_eq!(&*log.tail("nny.".len() + 1), "", "in the middle of a letter");
        assert!(log.says("Let me see. It is sünny."));
        let told = format!("{:?}", log.since(0, usize::MAX).0);
        assert_eq!(told, r#"[Text("Let me "), Text("see. "), Text("It is sünny.")]"#);
    }

    #[test]
    fn an_answer_is_held_once_and_told_whole() {
        let said = "Let me see. It is sunny.";
        for content in [said, "It was mended."] {
            let held = Arc::default();
            let log = Log::new(0, Arc::clone(&held));
            log.append([Event::Started, Event::Text(said.into())]);
            let before = held.load(Ordering::Relaxed);
            let done = done(content);
            let partial = log.keep(done.clone());
            assert_eq!(log.whole(&partial), done);
            log.append([Event::Done(Box::new(done.clone()))]);
            let told = Event::Done(Box::new(done));
            assert_eq!(
                format!("{:?}", log.last_event(Clone::clone)),
                format!("{:?}", Some(&told))
            );
            assert_eq!(format!("{:?}", log.since(2, 0).0), format!("{:?}", [told]));
            // Twice "Hi" and "Sun", an entry, and what had to be kept because it was not what was said.
            let mended = if content == said { 0 } else { 2 * content.len() };
            assert_eq!(
                held.load(Ordering::Relaxed) - before,
                2 * 5 + Entries::<Told>::OTHER + mended
            );
        }
    }

    #[test]
    fn reasoning_is_held_once_and_told_whole() {
        let held = Arc::default();
        let log = Log::new(0, Arc::clone(&held));
        log.append([
            Event::Started,
            Event::Reasoning("Let me ".into()),
            Event::Reasoning("think.".into()),
        ]);
        assert_eq!(log.reasoning().as_deref(), Some("Let me think."));
        let mut done = done("");
        done.answer.reasoning = log.reasoning();
        let before = held.load(Ordering::Relaxed);
        log.append([Event::Done(Box::new(done.clone()))]);
        assert!(held.load(Ordering::Relaxed) - before < Entries::<Told>::OTHER + 60);
        let told = log.last_event(|event| match event {
            Event::Done(told) => **told == done,
            _ => false,
        });
        assert_eq!(told, Some(true));
    }

    #[test]
    fn a_long_text_is_told_in_pieces_whether_it_is_said_or_replayed() {
        let text = "äb".repeat(MAX_TEXT);
        let log = Log::new(0, Arc::default());
        log.append([Event::Started, Event::Text(text.clone())]);
        log.append([Event::Reasoning(text.clone())]);
        let (events, _) = log.since(0, usize::MAX);
        let texts = events.iter().filter_map(|event| match event {
            Event::Text(text) => Some(text.as_str()),
            _ => None,
        });
        let texts: Vec<_> = texts.collect();
        assert_eq!((texts.concat(), texts.len()), (text.clone(), 4));
        assert!(events.len() == 9 && texts.iter().all(|text| text.len() <= MAX_TEXT));
        let done = done(&text);
        let said: Arc<str> = done.answer.content.clone();
        let replayed = Log::replayed(said.clone(), Event::Done(Box::new(done.clone())));
        let (told, _) = replayed.since(0, usize::MAX);
        assert_eq!(format!("{:?}", &told[..5]), format!("{:?}", &events[..5]));
        assert_eq!(
            format!("{:?}", &told[5..]),
            format!("{:?}", [Event::Done(Box::new(done))])
        );
        assert!(Arc::ptr_eq(&said, &replayed.tail(said.len())), "it was copied");
    }

    #[test]
    fn readers_of_a_part_share_one_copy_of_it() {
        let log = Log::new(0, Arc::default());
        log.append([Event::Started, Event::Text("Let me see. It is sunny.".into())]);
        log.append([Event::Done(Box::new(done("Let me see. It is sunny.")))]);
        let last = || {
            let Some(Event::Done(done)) = log.last_event(Clone::clone) else {
                panic!("it is done")
            };
            done.answer.messages[3].content.clone()
        };
        let (one, two) = (last(), last());
        assert_eq!(&*one, "It is sunny.");
        assert!(Arc::ptr_eq(&one, &two));
    }

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
        assert!((20_000..21_000).contains(&(held.load(Ordering::Relaxed) - RUN)));
        drop(log);
        assert_eq!(held.load(Ordering::Relaxed), 0);
    }
}

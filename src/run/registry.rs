//! Who runs: runs by id, the session that each holds, the keys that started them, and the logs that can still be read.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{Limits, OnBusy, Run, shutting_down};
use crate::{
    chat::{Principal, RunId, SessionId},
    error::{Error, ErrorCode},
    meters::{Meters, Shed},
    store::Store,
};

/// The most runs that may wait for one session.
const LINE: usize = 64;

/// The register.
#[derive(Default)]
pub struct Registry {
    /// Whether other gateways have runs in the same sessions. Then the store says who holds one, and whose turn it is;
    /// the first in a line of this gateway may be waiting too.
    shared: bool,
    books: Mutex<Books>,
    /// Bytes in all logs.
    pub(super) held: Arc<AtomicUsize>,
    meters: Arc<Meters>,
    ended: Notify,
    /// Told when a run that was let in has begun, or come to nothing.
    settled: Notify,
}

#[derive(Default)]
struct Books {
    closed: bool,
    running: usize,
    /// How many runs each caller has that runs.
    of: HashMap<Principal, usize>,
    runs: HashMap<RunId, Arc<Run>>,
    /// Who holds a session, and who waits for it.
    sessions: HashMap<(Principal, SessionId), Line>,
    /// The run that a key started, while it is running or completed.
    keys: HashMap<(Principal, String), RunId>,
    /// Runs that have ended, oldest first.
    finished: VecDeque<(Instant, RunId)>,
    /// Runs that have not, of sessions that are gone: nobody is told of them any more.
    erased: HashSet<RunId>,
}

/// The runs of one session.
struct Line {
    /// The one that holds it.
    holder: RunId,
    /// Those that wait, the next one first.
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    run: RunId,
    /// Whether it interrupts, or queues.
    on_busy: OnBusy,
    call: oneshot::Sender<()>,
}

/// What became of a run that asked to be let in.
pub enum Admission {
    /// It is in; it holds its session and its key.
    Admitted,
    /// It is in and holds its key; it will be called when it holds its session.
    Waits(oneshot::Receiver<()>),
    /// Its key belongs to this run.
    Known(Arc<Run>),
}

impl Registry {
    /// An empty one, for the runs that this store keeps.
    pub(super) fn beside(store: &dyn Store, meters: Arc<Meters>) -> Self {
        Self {
            shared: store.shared(),
            meters,
            ..Self::default()
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a place for one more run, whosever it is; who is refused is counted.
    fn place(&self, books: &Books, limits: &Limits) -> Result<(), Error> {
        books.room(limits).inspect_err(|full| {
            self.meters.shed(match full.code {
                ErrorCode::ShuttingDown => Shed::Draining,
                _ => Shed::Runs,
            });
        })
    }

    /// Lets a run in: all of it, or nothing. Its caller may have `own` runs at a time; 0: no limit.
    ///
    /// # Errors
    /// `shutting_down`, `overloaded`, `too_many_runs`, `session_busy`, `idempotency_mismatch`.
    pub fn admit(&self, run: &Arc<Run>, on_busy: OnBusy, limits: &Limits, own: usize) -> Result<Admission, Error> {
        let mut books = self.books();
        let key = run
            .idempotency
            .as_ref()
            .map(|(key, _)| (run.principal.clone(), key.clone()));
        if let Some(known) = key
            .as_ref()
            .and_then(|key| books.keys.get(key))
            .and_then(|id| books.runs.get(id))
        {
            return same_request(known.idempotency.as_ref(), run.idempotency.as_ref())
                .map(|()| Admission::Known(known.clone()));
        }
        self.place(&books, limits)?;
        books.room_of(run, on_busy, own)?;
        while self.held.load(Ordering::Relaxed) > limits.memory_limit {
            let Some((_, oldest)) = books.finished.pop_front() else {
                self.meters.shed(Shed::Memory);
                return Err(overloaded());
            };
            books.forget(oldest);
        }
        let mut admission = Admission::Admitted;
        if let Some(id) = &run.session_id {
            let session = (run.principal.clone(), id.clone());
            let books = &mut *books;
            books.part_with_lost(&session);
            match books.sessions.get_mut(&session) {
                None => {
                    let (holder, waiting) = (run.id, VecDeque::new());
                    books.sessions.insert(session, Line { holder, waiting });
                }
                Some(line) if on_busy == OnBusy::Reject || line.waiting.len() >= LINE => {
                    return Err(session_busy(line.holder));
                }
                Some(line) => admission = Admission::Waits(line.join(run.id, on_busy)),
            }
        }
        if let Some(key) = key {
            books.keys.insert(key, run.id);
        }
        books.running += 1;
        *books.of.entry(run.principal.clone()).or_default() += 1;
        books.runs.insert(run.id, run.clone());
        Ok(admission)
    }

    /// Stops the runs that a waiting one interrupts: the holder of its session, where this gateway knows that, and those
    /// that interrupt as well and came before. Called after the store has admitted the run to the session, because
    /// nobody may stop the run of a session that is not theirs.
    pub fn interrupt(&self, run: &Run) {
        let books = self.books();
        let session = run.session_id.clone().map(|id| (run.principal.clone(), id));
        let Some(line) = session.and_then(|session| books.sessions.get(&session)) else {
            return;
        };
        let Some(place) = line.waiting.iter().position(|waiter| waiter.run == run.id) else {
            return;
        };
        let holder = Some(line.holder).filter(|_| !self.shared);
        for stopped in line.interrupted_by(place, holder) {
            if let Some(stopped) = books.runs.get(&stopped) {
                stopped.cancel.cancel();
            }
        }
    }

    /// Whether this gateway has room for one more run, whosever it is.
    ///
    /// # Errors
    /// `shutting_down`, `overloaded`.
    pub fn open(&self, limits: &Limits) -> Result<(), Error> {
        let books = self.books();
        self.place(&books, limits)?;
        if self.held.load(Ordering::Relaxed) > limits.memory_limit && books.finished.is_empty() {
            self.meters.shed(Shed::Memory);
            return Err(overloaded());
        }
        Ok(())
    }

    /// Whether a run could be let in: false if its key belongs to one that is known here.
    ///
    /// # Errors
    /// `shutting_down`, `overloaded`, `too_many_runs`.
    pub fn room(&self, run: &Run, on_busy: OnBusy, limits: &Limits, own: usize) -> Result<bool, Error> {
        let books = self.books();
        let key = run.idempotency.as_ref();
        if key.is_some_and(|(key, _)| books.keys.contains_key(&(run.principal.clone(), key.clone()))) {
            return Ok(false);
        }
        self.place(&books, limits)?;
        books.room_of(run, on_busy, own).map(|()| true)
    }

    /// The run lets go of its session, or of its place in the line for it, and of its place among those that run: called
    /// before its last event is told, so that who reads it can go on at once.
    pub fn release(&self, run: &Run, keep_key: bool) {
        let mut books = self.books();
        books.running -= 1;
        if let Some(has) = books.of.get_mut(&run.principal) {
            *has -= 1;
            if *has == 0 {
                books.of.remove(&run.principal);
            }
        }
        if let Some(id) = &run.session_id {
            let session = (run.principal.clone(), id.clone());
            if books.sessions.get_mut(&session).is_some_and(|line| !line.leave(run.id)) {
                books.sessions.remove(&session);
            }
        }
        if !keep_key {
            books.free_key(run);
        }
    }

    /// The run's last event is told: its log can be read for the replay window.
    pub fn finished(&self, run: &Run) {
        let mut books = self.books();
        match books.erased.contains(&run.id) {
            true => books.forget(run.id),
            false => books.finished.push_back((Instant::now(), run.id)),
        }
        drop(books);
        self.ended.notify_one();
    }

    /// The run never began.
    pub fn withdraw(&self, run: &Run) {
        self.release(run, false);
        self.books().forget(run.id);
        self.settled();
    }

    /// A run that was let in has begun, or come to nothing: its log says which.
    pub fn settled(&self) {
        self.settled.notify_waiters();
    }

    /// Waits until a run that was let in has begun. False if it came to nothing.
    pub async fn begins(&self, run: &Run) -> bool {
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            settled.as_mut().enable();
            if let Some(begun) = run.log.begun() {
                return begun;
            }
            settled.await;
        }
    }

    /// A run of this principal's whose log is held.
    pub fn get(&self, principal: &Principal, id: RunId) -> Option<Arc<Run>> {
        let books = self.books();
        let run = books.runs.get(&id).filter(|run| run.principal == *principal);
        // What a run said here after another gateway may have declared it dead is nobody's.
        run.filter(|run| !books.erased.contains(&run.id) && !run.is_lost())
            .cloned()
    }

    /// A run whose log is held and may be shown to others, whosever it is.
    pub fn shown(&self, id: RunId) -> Option<Arc<Run>> {
        let books = self.books();
        books.runs.get(&id).filter(|_| !books.erased.contains(&id)).cloned()
    }

    /// A run whose log is held, whosever it is.
    pub fn any(&self, id: RunId) -> Option<Arc<Run>> {
        self.books().runs.get(&id).cloned()
    }

    /// Every run whose log is held.
    pub fn every(&self) -> Vec<Arc<Run>> {
        self.books().runs.values().cloned().collect()
    }

    /// The run that a key started.
    pub fn by_key(&self, principal: &Principal, key: &str) -> Option<Arc<Run>> {
        let books = self.books();
        let id = books.keys.get(&(principal.clone(), key.to_owned()))?;
        books.runs.get(id).cloned()
    }

    /// The run that holds a session, once it has begun.
    pub fn holder(&self, principal: &Principal, session: &SessionId) -> Option<RunId> {
        let books = self.books();
        let line = books.sessions.get(&(principal.clone(), session.clone()))?;
        let run = books.runs.get(&line.holder)?;
        run.log.begun().is_some_and(|begun| begun).then_some(line.holder)
    }

    /// The runs of a session whose last event has not been told: the one that holds it, and one that lets go just now.
    pub fn unended(&self, principal: &Principal, session: &SessionId) -> Vec<Arc<Run>> {
        let books = self.books();
        let theirs = |run: &&Arc<Run>| run.principal == *principal && run.session_id.as_ref() == Some(session);
        let runs = books.runs.values().filter(theirs);
        runs.filter(|run| !run.log.ended()).cloned().collect()
    }

    /// Forgets the runs of a session; one that has not ended yet, when it has.
    pub fn erase(&self, principal: &Principal, session: &SessionId) {
        let of_session = |run: &Run| run.principal == *principal && run.session_id.as_ref() == Some(session);
        let mut books = self.books();
        let all = books.runs.values().filter(|run| of_session(run)).cloned().collect();
        books.erase(all);
    }

    /// The same, of these runs. Returns those that have not ended.
    pub fn erase_runs(&self, runs: &[RunId]) -> Vec<Arc<Run>> {
        let mut books = self.books();
        let all = runs.iter().filter_map(|id| books.runs.get(id).cloned()).collect();
        books.erase(all)
    }

    /// Forgets every run that has ended.
    pub fn forget_ended(&self) {
        let mut books = self.books();
        while let Some((_, id)) = books.finished.pop_front() {
            books.forget(id);
        }
    }

    /// How many runs are under way, and how many ended ones are kept.
    pub fn count(&self) -> (usize, usize) {
        let books = self.books();
        (books.running, books.finished.len())
    }

    /// Lets nobody in any more.
    pub fn close(&self) {
        self.books().closed = true;
    }

    /// Whether nobody is let in.
    pub fn closed(&self) -> bool {
        self.books().closed
    }

    /// Forgets runs that ended `window` ago, for ever.
    pub async fn sweep(&self, window: Duration) {
        loop {
            let next = loop {
                let mut books = self.books();
                match books.finished.front() {
                    Some((ended, id)) if ended.elapsed() >= window => {
                        let id = *id;
                        books.finished.pop_front();
                        books.forget(id);
                    }
                    Some((ended, _)) => break Some(*ended + window),
                    None => break None,
                }
            };
            match next {
                Some(time) => tokio::time::sleep_until(time).await,
                None => self.ended.notified().await,
            }
        }
    }
}

impl Line {
    /// The runs that are stopped by one that interrupts from this place in the line: the one that is known to hold the
    /// session, and those before it that were to stop it and have not begun.
    fn interrupted_by(&self, place: usize, holder: Option<RunId>) -> Vec<RunId> {
        let before = self.waiting.iter().take(place);
        let others = before.filter(|waiter| waiter.on_busy == OnBusy::Interrupt);
        holder.into_iter().chain(others.map(|waiter| waiter.run)).collect()
    }

    /// A newcomer's place: at the end, or, if it interrupts, before all that queue.
    fn join(&mut self, run: RunId, on_busy: OnBusy) -> oneshot::Receiver<()> {
        let (call, called) = oneshot::channel();
        let place = match on_busy {
            OnBusy::Interrupt => self
                .waiting
                .iter()
                .take_while(|w| w.on_busy == OnBusy::Interrupt)
                .count(),
            OnBusy::Reject | OnBusy::Queue => self.waiting.len(),
        };
        self.waiting.insert(place, Waiter { run, on_busy, call });
        called
    }

    /// A run goes; if it held the session, the next one does. False if nobody does.
    fn leave(&mut self, run: RunId) -> bool {
        self.waiting.retain(|waiter| waiter.run != run);
        if self.holder != run {
            return true;
        }
        while let Some(next) = self.waiting.pop_front() {
            self.holder = next.run;
            if next.call.send(()).is_ok() {
                return true;
            }
        }
        false
    }
}

impl Books {
    /// Whether one more run is let in, whosever it is.
    fn room(&self, limits: &Limits) -> Result<(), Error> {
        if self.closed {
            return Err(shutting_down());
        }
        if limits.max_runs > 0 && self.running >= limits.max_runs {
            return Err(overloaded());
        }
        Ok(())
    }

    /// Whether its caller may have one more.
    fn room_of(&self, run: &Run, on_busy: OnBusy, own: usize) -> Result<(), Error> {
        let has = self.of.get(&run.principal).copied().unwrap_or(0);
        if own > 0 && has >= own + self.stopped_by(run, on_busy) {
            return Err(too_many_runs());
        }
        Ok(())
    }

    /// How many runs of its own session a newcomer is to stop. They are about to go, and do not stand in its way: or who
    /// may have one run could never interrupt it.
    fn stopped_by(&self, run: &Run, on_busy: OnBusy) -> usize {
        if on_busy != OnBusy::Interrupt {
            return 0;
        }
        let session = run.session_id.clone().map(|id| (run.principal.clone(), id));
        let line = session.and_then(|session| self.sessions.get(&session));
        line.map_or(0, |line| line.interrupted_by(usize::MAX, Some(line.holder)).len())
    }

    /// A run that another gateway may have declared dead holds nothing any more, also while it is about to end.
    fn part_with_lost(&mut self, session: &(Principal, SessionId)) {
        while let Some(line) = self.sessions.get_mut(session)
            && let holder = line.holder
            && self.runs.get(&holder).is_some_and(|run| run.fence.is_lost())
        {
            if !line.leave(holder) {
                self.sessions.remove(session);
            }
        }
    }

    fn forget(&mut self, id: RunId) {
        self.erased.remove(&id);
        if let Some(run) = self.runs.remove(&id) {
            self.free_key(&run);
        }
    }

    /// Forgets runs; one that has not ended yet, when it has, but its key at once. Returns those.
    fn erase(&mut self, runs: Vec<Arc<Run>>) -> Vec<Arc<Run>> {
        let (gone, going): (Vec<_>, Vec<_>) = runs.into_iter().partition(|run| run.log.ended());
        self.erased.extend(going.iter().map(|run| run.id));
        self.finished.retain(|(_, id)| gone.iter().all(|run| run.id != *id));
        gone.iter().for_each(|run| self.forget(run.id));
        going.iter().for_each(|run| self.free_key(run));
        going
    }

    /// The run's key does not mean this run any more.
    fn free_key(&mut self, run: &Run) {
        if let Some((key, _)) = &run.idempotency {
            let key = (run.principal.clone(), key.clone());
            if self.keys.get(&key) == Some(&run.id) {
                self.keys.remove(&key);
            }
        }
    }
}

/// Whether a key comes with the request that it came with first.
pub(super) fn same_request(known: Option<&(String, String)>, now: Option<&(String, String)>) -> Result<(), Error> {
    match known.map(|(_, print)| print) == now.map(|(_, print)| print) {
        true => Ok(()),
        false => Err(Error::new(
            ErrorCode::IdempotencyMismatch,
            "This key came with another request before.",
        )),
    }
}

/// Another run, this one, has the session.
pub(super) fn session_busy(active: RunId) -> Error {
    let message = "Another run of this session is under way; `on_busy` may be `queue` or `interrupt`, and \
                   GET /sessions/{id}/events follows that run.";
    let busy = Error::new(ErrorCode::SessionBusy, message);
    Error {
        run_id: Some(active),
        ..busy
    }
}

/// The caller has as many runs as it may.
pub(super) fn too_many_runs() -> Error {
    let message = "More runs at a time than this caller may have.";
    Error::new(ErrorCode::TooManyRuns, message).retry_after(Duration::from_secs(1))
}

fn overloaded() -> Error {
    Error::new(ErrorCode::Overloaded, "This gateway has as much to do as it can.").retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::Event,
        run::shelf::tests::{beside, run},
        store::memory::Memory,
    };

    #[tokio::test]
    async fn a_run_of_a_session_that_is_gone_is_known_to_nobody_and_forgotten_at_its_end() {
        let runs = beside(Arc::new(Memory::default()), None);
        let (run, other) = (run(&runs, Some("s")).await, run(&runs, Some("t")).await);
        for run in [&run, &other] {
            let admitted = runs.registry.admit(run, OnBusy::Reject, &runs.limits, 0);
            assert!(matches!(admitted, Ok(Admission::Admitted)));
        }
        let get = |run: &Run| runs.registry.get(&run.principal, run.id).is_some();
        runs.registry.erase(&run.principal, run.session_id.as_ref().unwrap());
        assert_eq!((get(&run), get(&other)), (false, true));
        assert!(runs.registry.any(run.id).is_some(), "it can still be stopped");
        for run in [&run, &other] {
            runs.say(run, [Event::Failed(overloaded())]);
            runs.registry.release(run, false);
            runs.registry.finished(run);
        }
        assert!(runs.registry.any(run.id).is_none(), "its log is held for nobody");
        assert_eq!((get(&run), get(&other)), (false, true));
        assert_eq!(runs.registry.count(), (0, 1));
    }
}

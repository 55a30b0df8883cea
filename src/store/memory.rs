//! Nothing is kept beyond the process: for trying things out, and for gateways that only relay.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_util::future::{BoxFuture, ready};

use super::{
    ArtifactRecord, ArtifactStore, Begun, Commit, MessagePage, NO_USER, NoticeStore, ReadFrom, ReadLimit, RunEnd,
    RunRecord, RunStatus, RunStore, Session, SessionClaim, SessionPage, SessionStore, Store, StoredMessage,
    TicketRecord, TicketStore, TicketUse, artifact::Due, conflict,
};
use crate::{
    chat::{ArtifactId, Done, Message, Principal, RunId, SessionId, history::memory},
    error::Error,
};

/// The store.
#[derive(Default)]
pub struct Memory(Mutex<Shelves>);

type SessionKey = (String, SessionId);

#[derive(Default)]
struct Shelves {
    sessions: BTreeMap<SessionKey, (Session, Vec<StoredMessage>)>,
    runs: BTreeMap<RunId, RunRecord>,
    files: BTreeMap<ArtifactId, File>,
    /// With when each is to be erased.
    tickets: BTreeMap<String, (TicketRecord, i64)>,
    versions: i64,
}

/// A file's record, and how it stands.
struct File {
    record: ArtifactRecord,
    ready: bool,
    erase_after: Option<i64>,
}

impl Shelves {
    fn version(&mut self) -> i64 {
        self.versions += 1;
        self.versions
    }

    fn running(&self, run: RunId) -> bool {
        self.runs.get(&run).is_some_and(|row| row.status == RunStatus::Running)
    }

    fn erase(&mut self, key: &SessionKey) {
        self.sessions.remove(key);
        self.runs
            .retain(|_, run| run.principal.as_str() != key.0 || run.session_id != key.1);
        let theirs = |file: &&mut File| {
            file.record.principal.as_str() == key.0 && file.record.session_id.as_ref() == Some(&key.1)
        };
        for file in self.files.values_mut().filter(theirs) {
            file.record.session_id = None;
            // One that is still being written stays pending until nobody can be writing it any more.
            if std::mem::take(&mut file.ready) {
                file.erase_after = Some(0);
            }
        }
    }
}

impl Memory {
    /// Nothing is half done when a holder panics: every change below is one step.
    fn shelves(&self) -> MutexGuard<'_, Shelves> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The messages that fit. Their stored size is what they hold in memory.
fn page(session: &Session, all: &[StoredMessage], from: ReadFrom, limit: ReadLimit) -> MessagePage {
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).min(all.len());
    let (start, backwards) = match from {
        ReadFrom::Newest => (all.len(), true),
        ReadFrom::Before(before) => (number(before), true),
        ReadFrom::Number(first) => (number(first), false),
    };
    let (mut first, mut end, mut bytes) = (start, start, 0);
    let next_bytes = loop {
        let next = if backwards { first.checked_sub(1) } else { Some(end) };
        let Some((at, next)) = next.and_then(|at| Some((at, all.get(at)?))) else {
            break None;
        };
        let size = memory(&next.message) as u64;
        if end - first == limit.rows as usize || bytes + size > limit.bytes {
            break Some(size);
        }
        bytes += size;
        (first, end) = (first.min(at), end.max(at + 1));
    };
    MessagePage {
        session: session.clone(),
        messages: all[first..end].to_vec(),
        first: first as u64,
        bytes,
        next_bytes,
    }
}

/// A run's row without its result, whose texts are shared and take nothing more when it is read.
fn without_result(run: &RunRecord) -> RunRecord {
    let mut run = run.clone();
    if let Some(end) = &mut run.end {
        end.result_bytes = end.done.take().map(|_| 0);
    }
    run
}

fn key(principal: &Principal, id: &SessionId) -> SessionKey {
    (principal.as_str().to_owned(), id.clone())
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

impl Store for Memory {
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(ready(Ok(())))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }
}

impl NoticeStore for Memory {}

impl SessionStore for Memory {
    fn create<'a>(&'a self, principal: &'a Principal, mut session: Session) -> BoxFuture<'a, Result<Session, Error>> {
        let mut shelves = self.shelves();
        session.version = shelves.version();
        let made = shelves
            .sessions
            .entry(key(principal, &session.id))
            .or_insert((session, Vec::new()));
        Box::pin(ready(Ok(made.0.clone())))
    }

    fn session<'a>(
        &'a self,
        principal: &'a Principal,
        id: &'a SessionId,
    ) -> BoxFuture<'a, Result<Option<Session>, Error>> {
        let found = self
            .shelves()
            .sessions
            .get(&key(principal, id))
            .map(|(session, _)| session.clone());
        Box::pin(ready(Ok(found)))
    }

    fn messages<'a>(
        &'a self,
        principal: &'a Principal,
        id: &'a SessionId,
        from: ReadFrom,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Option<MessagePage>, Error>> {
        let shelves = self.shelves();
        let found = shelves.sessions.get(&key(principal, id));
        Box::pin(ready(Ok(found.map(|(session, all)| page(session, all, from, limit)))))
    }

    fn list<'a>(
        &'a self,
        principal: &'a Principal,
        user_id: Option<&'a str>,
        after: Option<(i64, SessionId)>,
        limit: u32,
    ) -> BoxFuture<'a, Result<SessionPage, Error>> {
        let shelves = self.shelves();
        let theirs = shelves
            .sessions
            .iter()
            .filter(|(key, _)| key.0 == principal.as_str())
            .map(|(_, (session, _))| session);
        let mut sessions: Vec<Session> = theirs
            .filter(|s| user_id.is_none_or(|user| user == s.user_id))
            .filter(|s| {
                after
                    .as_ref()
                    .is_none_or(|(time, id)| (s.created_at, &s.id) < (*time, id))
            })
            .cloned()
            .collect();
        sessions.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        sessions.truncate(limit as usize + 1);
        Box::pin(ready(Ok(SessionPage::cut(sessions, limit))))
    }

    fn delete<'a>(&'a self, principal: &'a Principal, id: &'a SessionId) -> BoxFuture<'a, Result<(), Error>> {
        self.shelves().erase(&key(principal, id));
        Box::pin(ready(Ok(())))
    }

    fn expire(&self, before: i64) -> BoxFuture<'_, Result<u64, Error>> {
        let mut shelves = self.shelves();
        let busy = |key: &SessionKey| {
            let running = |run: &&RunRecord| run.status == RunStatus::Running;
            shelves
                .runs
                .values()
                .filter(running)
                .any(|r| r.principal.as_str() == key.0 && r.session_id == key.1)
        };
        let idle = shelves
            .sessions
            .iter()
            .filter(|(key, (s, _))| s.updated_at < before && !busy(key));
        let idle: Vec<SessionKey> = idle.map(|(key, _)| key.clone()).collect();
        idle.iter().for_each(|key| shelves.erase(key));
        Box::pin(ready(Ok(idle.len() as u64)))
    }
}

impl RunStore for Memory {
    /// At once, whatever the entry: one process has this store, and its register of runs lets one at a time come here.
    fn begin<'a>(&'a self, run: &'a RunRecord, claim: SessionClaim<'a>) -> BoxFuture<'a, Result<Begun, Error>> {
        let mut shelves = self.shelves();
        let known = shelves.sessions.get(&key(&run.principal, &run.session_id));
        let known = known.map(|(session, _)| (&*session.user_id, &*session.agent));
        if let Some(refused) = claim.refusal(known) {
            return Box::pin(ready(Ok(refused)));
        }
        let version = shelves.version();
        let (session, _) = shelves
            .sessions
            .entry(key(&run.principal, &run.session_id))
            .or_insert_with(|| {
                let session = Session {
                    id: run.session_id.clone(),
                    user_id: claim.user_id.unwrap_or(NO_USER).to_owned(),
                    agent: run.agent.clone(),
                    metadata: BTreeMap::new(),
                    message_count: 0,
                    version,
                    created_at: run.created_at,
                    updated_at: run.created_at,
                };
                (session, Vec::new())
            });
        let version = session.version;
        shelves.runs.insert(run.id, run.clone());
        Box::pin(ready(Ok(Begun::At(version))))
    }

    fn take<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
        run: RunId,
    ) -> BoxFuture<'a, Result<Option<i64>, Error>> {
        let shelves = self.shelves();
        let key = key(principal, session);
        let waits = |row: &&RunRecord| row.status == RunStatus::Running && row.principal == *principal;
        let row = shelves.runs.get(&run).filter(waits);
        let taken = match row.and_then(|row| shelves.sessions.get(&key).filter(|_| row.session_id == key.1)) {
            Some((session, _)) => Ok(Some(session.version)),
            None => Err(conflict()),
        };
        Box::pin(ready(taken))
    }

    fn running<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
    ) -> BoxFuture<'a, Result<Vec<RunId>, Error>> {
        let shelves = self.shelves();
        let theirs = shelves.runs.values().filter(|run| run.status == RunStatus::Running);
        let theirs = theirs.filter(|run| run.principal == *principal && run.session_id == *session);
        let running = theirs.map(|run| run.id).collect();
        Box::pin(ready(Ok(running)))
    }

    fn end<'a>(
        &'a self,
        run: RunId,
        status: RunStatus,
        end: &'a RunEnd,
        commit: Option<Commit<'a>>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        let mut shelves = self.shelves();
        let version = shelves.version();
        if !shelves.running(run) {
            return Box::pin(ready(Err(conflict())));
        }
        if let Some(turn) = commit {
            let session = shelves.sessions.get_mut(&key(turn.principal, turn.session));
            let Some((session, messages)) = session.filter(|(session, _)| session.version == turn.after_version) else {
                return Box::pin(ready(Err(conflict())));
            };
            session.version = version;
            session.updated_at = now();
            let stored = |message: &Message| StoredMessage {
                message: message.clone(),
                run_id: run,
                status: turn.status,
                created_at: session.updated_at,
            };
            messages.extend(turn.messages.iter().map(stored));
            session.message_count = messages.len() as u64;
        }
        if let Some(row) = shelves.runs.get_mut(&run) {
            row.status = status;
            row.end = Some(end.clone());
        }
        Box::pin(ready(Ok(())))
    }

    fn result<'a>(&'a self, principal: &'a Principal, id: RunId) -> BoxFuture<'a, Result<Option<Box<Done>>, Error>> {
        let shelves = self.shelves();
        let run = shelves.runs.get(&id).filter(|run| run.principal == *principal);
        let done = run.and_then(|run| run.end.as_ref()?.done.clone());
        Box::pin(ready(Ok(done)))
    }

    fn run<'a>(&'a self, principal: &'a Principal, id: RunId) -> BoxFuture<'a, Result<Option<RunRecord>, Error>> {
        let shelves = self.shelves();
        let found = shelves.runs.get(&id).filter(|run| run.principal == *principal);
        Box::pin(ready(Ok(found.map(without_result))))
    }

    fn run_by_key<'a>(
        &'a self,
        principal: &'a Principal,
        key: &'a str,
        since: i64,
    ) -> BoxFuture<'a, Result<Option<RunRecord>, Error>> {
        let shelves = self.shelves();
        let theirs = shelves
            .runs
            .values()
            .rev()
            .filter(|run| run.principal == *principal && run.created_at >= since);
        let found = theirs
            .filter(|run| matches!(run.status, RunStatus::Running | RunStatus::Completed))
            .find(|run| run.idempotency.as_ref().is_some_and(|(known, _)| known == key));
        Box::pin(ready(Ok(found.map(without_result))))
    }

    fn told<'a>(&'a self, run: RunId, last_seq: u64) -> BoxFuture<'a, Result<(), Error>> {
        if let Some(row) = self.shelves().runs.get_mut(&run)
            && row.status == RunStatus::Interrupted
            && let Some(end) = &mut row.end
        {
            end.last_seq = Some(end.last_seq.unwrap_or(0).max(last_seq));
        }
        Box::pin(ready(Ok(())))
    }
}

impl ArtifactStore for Memory {
    fn announce<'a>(&'a self, record: &'a ArtifactRecord, erase_after: i64) -> BoxFuture<'a, Result<bool, Error>> {
        let mut shelves = self.shelves();
        let known = record.session_id.as_ref().is_none_or(|session| {
            let run = shelves.runs.get(&record.run_id);
            run.is_some_and(|run| run.principal == record.principal && run.session_id == *session)
        });
        if known {
            let file = File {
                record: record.clone(),
                ready: false,
                erase_after: Some(erase_after),
            };
            shelves.files.insert(record.artifact.id, file);
        }
        Box::pin(ready(Ok(known)))
    }

    fn keep<'a>(&'a self, record: &'a ArtifactRecord, erase_after: Option<i64>) -> BoxFuture<'a, Result<bool, Error>> {
        let mut shelves = self.shelves();
        let pending = shelves.files.get_mut(&record.artifact.id).filter(|file| {
            let in_time = file.erase_after.is_some_and(|time| time > now());
            !file.ready && in_time && file.record.session_id == record.session_id
        });
        let kept = pending.map(|file| {
            file.ready = true;
            file.erase_after = erase_after;
        });
        Box::pin(ready(Ok(kept.is_some())))
    }

    fn shorten<'a>(&'a self, ids: &'a [ArtifactId], erase_after: i64) -> BoxFuture<'a, Result<(), Error>> {
        let mut shelves = self.shelves();
        for id in ids {
            let file = shelves.files.get_mut(id);
            if let Some(file) = file.filter(|file| file.ready && file.record.session_id.is_none()) {
                file.erase_after = file.erase_after.map(|time| time.min(erase_after));
            }
        }
        Box::pin(ready(Ok(())))
    }

    fn artifact<'a>(
        &'a self,
        principal: &'a Principal,
        id: ArtifactId,
    ) -> BoxFuture<'a, Result<Option<ArtifactRecord>, Error>> {
        let shelves = self.shelves();
        let shown = |file: &&File| {
            let in_time = file.erase_after.is_none_or(|time| time > now());
            file.ready && in_time && file.record.principal == *principal
        };
        let found = shelves.files.get(&id).filter(shown);
        Box::pin(ready(Ok(found.map(|file| file.record.clone()))))
    }

    fn due(&self, now: i64, after: Option<Due>, limit: u32) -> BoxFuture<'_, Result<Vec<Due>, Error>> {
        let shelves = self.shelves();
        let timed = |(id, file): (&ArtifactId, &File)| file.erase_after.map(|erase_after| Due { erase_after, id: *id });
        let over = |due: &Due| due.erase_after <= now && after.is_none_or(|after| *due > after);
        let mut all: Vec<Due> = shelves.files.iter().filter_map(timed).filter(over).collect();
        all.sort();
        all.truncate(limit as usize);
        Box::pin(ready(Ok(all)))
    }

    fn forget<'a>(&'a self, gone: &'a [Due]) -> BoxFuture<'a, Result<(), Error>> {
        let mut shelves = self.shelves();
        for due in gone {
            let same = |file: &File| file.erase_after == Some(due.erase_after);
            if shelves.files.get(&due.id).is_some_and(same) {
                shelves.files.remove(&due.id);
            }
        }
        Box::pin(ready(Ok(())))
    }
}

impl TicketStore for Memory {
    fn issue<'a>(&'a self, ticket: &'a TicketRecord, most: u32) -> BoxFuture<'a, Result<bool, Error>> {
        let mut shelves = self.shelves();
        let (now, owner) = (now(), &ticket.principal);
        let open = |known: &TicketRecord| known.principal == *owner && known.used.is_none() && known.expires_at > now;
        let room = shelves.tickets.values().filter(|(known, _)| open(known)).count() < most as usize;
        if room {
            let row = (ticket.clone(), ticket.expires_at);
            shelves.tickets.insert(ticket.id.clone(), row);
        }
        Box::pin(ready(Ok(room)))
    }

    fn ticket<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<TicketRecord>, Error>> {
        let found = self.shelves().tickets.get(id).map(|(ticket, _)| ticket.clone());
        Box::pin(ready(Ok(found)))
    }

    fn claim<'a>(&'a self, id: &'a str, used: &'a TicketUse, erase_after: i64) -> BoxFuture<'a, Result<bool, Error>> {
        let mut shelves = self.shelves();
        let open = |ticket: &TicketRecord| ticket.used.is_none() && ticket.expires_at > used.at;
        let claimed = shelves
            .tickets
            .get_mut(id)
            .filter(|(ticket, _)| open(ticket))
            .map(|row| {
                row.0.used = Some(used.clone());
                row.1 = erase_after;
            });
        Box::pin(ready(Ok(claimed.is_some())))
    }

    fn tie<'a>(&'a self, id: &'a str, run: RunId) -> BoxFuture<'a, Result<(), Error>> {
        let mut shelves = self.shelves();
        if let Some(used) = shelves.tickets.get_mut(id).and_then(|(ticket, _)| ticket.used.as_mut()) {
            used.run.get_or_insert(run);
        }
        Box::pin(ready(Ok(())))
    }

    fn give_back<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let mut shelves = self.shelves();
        if let Some((ticket, erase_after)) = shelves.tickets.get_mut(id)
            && ticket.used.as_ref().is_some_and(|used| used.run.is_none())
        {
            ticket.used = None;
            *erase_after = ticket.expires_at;
        }
        Box::pin(ready(Ok(())))
    }

    fn sweep_tickets(&self, now: i64) -> BoxFuture<'_, Result<u64, Error>> {
        let mut shelves = self.shelves();
        let before = shelves.tickets.len();
        shelves.tickets.retain(|_, (_, erase_after)| *erase_after > now);
        Box::pin(ready(Ok((before - shelves.tickets.len()) as u64)))
    }
}

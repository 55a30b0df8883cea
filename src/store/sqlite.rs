//! SQLite: one file, one writer.
//!
//! All writes go through one task with one connection, which commits together what waits together: one `fsync` for
//! many turns. Turns are written with `synchronous=FULL`; a run's first row with `NORMAL`, which in WAL mode survives
//! the process but costs no wait for the disk. Reads have connections of their own and never wait for the writer.

use std::{fs::File, sync::Arc, time::Duration};

use futures_util::{TryStreamExt, future::BoxFuture};
use serde::de::DeserializeOwned;
use sqlx::{
    Connection, Row, SqlSafeStr, SqliteConnection, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    file::Opened,
    write::{Fate, Op, QUEUE, TurnRows, Write, Writer, late},
};
use super::{
    Begun, Commit, MessagePage, NoticeStore, ReadFrom, ReadLimit, RunEnd, RunRecord, RunStatus, RunStore, Session,
    SessionClaim, SessionPage, SessionStore, Store, conflict,
    sql::{
        Columns, PageRows, broken, messages_statement, parse, read_limits, read_run, read_session, select_run,
        status_word, unavailable,
    },
};
use crate::{
    chat::{Done, Principal, RunId, SessionId},
    error::{Error, ErrorCode},
    meters::Meters,
};

mod artifacts;
mod backup;
mod file;
mod tickets;
mod write;

pub use backup::backup;

/// How long a write may wait for its turn and for the file's lock.
const BUSY: Duration = Duration::from_secs(5);
/// How long a write may wait on a disk that does not answer, before it is taken back: longer than for the file's lock.
const STALLED: Duration = Duration::from_secs(10);
/// The same once the gateway goes down.
const HURRIED: Duration = Duration::from_secs(1);
/// How long a turn's outcome is waited for when it can no more be taken back.
const OUTCOME: Duration = Duration::from_secs(50);
/// How often a run asks for its session before it gives up: each time, what was in the way was gone when looked for.
const TRIES: usize = 5;
/// The size of the log beside the file, in bytes, from which on it is emptied, and cut, even if that has to wait for readers.
const LOG_SIZE: u64 = 64 << 20;
/// Connections for reading.
const READERS: u32 = 4;
/// How many rows a reader is ahead of whoever takes them. One row can hold a body's worth of images.
const AHEAD: usize = 1;

/// The schema's history. A file that has been released is never changed.
fn migrations() -> Migrator {
    let simple = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        simple(
            1,
            "sessions and runs",
            include_str!("../../migrations/sqlite/0001_sessions_and_runs.sql"),
        ),
        simple(
            2,
            "model calls",
            include_str!("../../migrations/sqlite/0002_model_calls.sql"),
        ),
        simple(
            3,
            "artifacts",
            include_str!("../../migrations/sqlite/0003_artifacts.sql"),
        ),
        simple(4, "tickets", include_str!("../../migrations/sqlite/0004_tickets.sql")),
        simple(
            5,
            "ticket bindings",
            include_str!("../../migrations/sqlite/0005_ticket_bindings.sql"),
        ),
    ])
}

/// The store.
pub struct Sqlite {
    writes: mpsc::Sender<Write>,
    reads: SqlitePool,
    writer: TaskTracker,
    closing: CancellationToken,
    hurried: CancellationToken,
    /// Held as long as the store is open: two gateways on one file would interrupt each other's runs.
    lock: File,
}

impl Sqlite {
    /// Opens the file, and makes it (and its folder, for the owner only) if it is not there.
    ///
    /// # Errors
    /// Whatever is in the way: another gateway, a file that is no database, or one of a newer version.
    pub async fn open(path: &str, meters: &Meters) -> Result<Self, Error> {
        let whole = std::path::absolute(path).map_or_else(|_| path.to_owned(), |path| path.display().to_string());
        let failed = |what: &str| format!("the store {whole} {what}");
        let lock = file::lock(path).map_err(|e| unavailable(&failed("cannot be opened"), e))?;
        let Some(lock) = lock else {
            return Err(Error::new(
                ErrorCode::StoreUnavailable,
                failed("is in use by another sluicegate"),
            ));
        };
        let looked = file::look(path, &migrations()).await;
        looked.map_err(|why| Error::new(ErrorCode::StoreUnavailable, failed(&why)))?;
        file::writable(path).map_err(|e| unavailable(&failed("cannot be opened"), e))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .pragma("journal_size_limit", LOG_SIZE.to_string())
            .busy_timeout(BUSY);
        let mut writer = SqliteConnection::connect_with(&options)
            .await
            .map_err(|e| unavailable(&failed("cannot be opened"), e))?;
        migrations()
            .run(&mut writer)
            .await
            .map_err(|e| unavailable(&failed("has a schema of another version"), e))?;
        let left = sqlx::query("UPDATE runs SET status = 'interrupted', ended_at = ? WHERE status = 'running'")
            .bind(jiff::Timestamp::now().as_millisecond())
            .execute(&mut writer)
            .await
            .map_err(|e| unavailable(&failed("cannot be written"), e))?;
        meters.recovered(left.rows_affected());
        let reads = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(BUSY)
            .connect_with(options.read_only(true).create_if_missing(false).row_buffer_size(AHEAD))
            .await
            .map_err(|e| unavailable(&failed("cannot be read"), e))?;
        let (writes, queue) = mpsc::channel(QUEUE);
        let tasks = TaskTracker::new();
        let closing = CancellationToken::new();
        let writer = Writer {
            db: writer,
            opened: Opened::at(path),
            undo: Vec::new(),
            emptied: None,
        };
        tasks.spawn(writer.write_all(queue, closing.clone()));
        tasks.close();
        Ok(Self {
            writes,
            reads,
            writer: tasks,
            closing,
            hurried: CancellationToken::new(),
            lock,
        })
    }

    /// Hands an operation to the writer and waits for it. What has not come to its COMMIT in time is taken back, so that it
    /// is known not to be written; a turn that has is waited for, because only its outcome says what may be told.
    async fn write(&self, op: Op) -> Result<i64, Error> {
        let (reply, mut answer) = oneshot::channel();
        let (turn, fate) = (op.turn().is_some(), Arc::<Fate>::default());
        let write = Write {
            op,
            reply,
            fate: fate.clone(),
        };
        let gone = |_| Error::new(ErrorCode::StoreUnavailable, "The store is closed.");
        let full = || Error::new(ErrorCode::StoreUnavailable, "The store has too much to write.");
        tokio::select! {
            biased;
            sent = self.writes.send(write) => sent.map_err(|e| gone(e.to_string()))?,
            () = self.patience(BUSY) => return Err(full()),
        }
        tokio::select! {
            biased;
            outcome = &mut answer => return outcome.map_err(|e| gone(e.to_string()))?,
            () = self.patience(STALLED) => {}
        }
        if turn && !fate.take_back() {
            tokio::select! {
                biased;
                outcome = &mut answer => return outcome.map_err(|e| gone(e.to_string()))?,
                () = tokio::time::sleep(OUTCOME) => {}
            }
        }
        // The last word: what was answered before it counts; what is committed after it is undone.
        answer.close();
        answer.try_recv().unwrap_or_else(|_| Err(late()))
    }

    /// Waits for this long, or for little longer than until the gateway goes down.
    async fn patience(&self, time: Duration) {
        let hurried = async {
            self.hurried.cancelled().await;
            tokio::time::sleep(HURRIED).await;
        };
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = hurried => {}
        }
    }
}

impl Store for Sqlite {
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { self.write(Op::Probe).await.map(drop) })
    }

    fn hurry(&self) {
        self.hurried.cancel();
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // The writer goes last: only who may write can put into the file what waits beside it.
            self.reads.close().await;
            self.closing.cancel();
            self.writer.wait().await;
            // Said, not left to the descriptor's end: a child that is being started holds a copy of it for a moment.
            let _ = self.lock.unlock();
        })
    }
}

impl NoticeStore for Sqlite {}

impl SessionStore for Sqlite {
    fn create<'a>(&'a self, principal: &'a Principal, session: Session) -> BoxFuture<'a, Result<Session, Error>> {
        Box::pin(async move {
            let id = session.id.clone();
            self.write(Op::Create {
                principal: principal.clone(),
                session: Box::new(session),
            })
            .await?;
            let made = self.session(principal, &id).await?;
            made.ok_or_else(|| Error::new(ErrorCode::StoreUnavailable, "The session was erased while it was made."))
        })
    }

    fn session<'a>(
        &'a self,
        principal: &'a Principal,
        id: &'a SessionId,
    ) -> BoxFuture<'a, Result<Option<Session>, Error>> {
        Box::pin(async move {
            let found = sqlx::query("SELECT * FROM sessions WHERE principal = ? AND id = ?")
                .bind(principal.as_str())
                .bind(id.as_str())
                .fetch_optional(&self.reads)
                .await;
            found
                .and_then(|row| row.map(|row| read_session(&row)).transpose())
                .map_err(|e| broken(&e))
        })
    }

    fn messages<'a>(
        &'a self,
        principal: &'a Principal,
        id: &'a SessionId,
        from: ReadFrom,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Option<MessagePage>, Error>> {
        Box::pin(async move {
            let (statement, start) = messages_statement(from);
            let (count, bytes) = read_limits(limit);
            let mut page = PageRows::default();
            let mut rows = sqlx::query(statement)
                .bind(principal.as_str())
                .bind(id.as_str())
                .bind(start)
                .bind(count)
                .bind(bytes)
                .fetch(&self.reads);
            while let Some(row) = rows.try_next().await.map_err(|e| broken(&e))? {
                page.push(&row).map_err(|e| broken(&e))?;
            }
            Ok(page.page(from))
        })
    }

    fn list<'a>(
        &'a self,
        principal: &'a Principal,
        user_id: Option<&'a str>,
        after: Option<(i64, SessionId)>,
        limit: u32,
    ) -> BoxFuture<'a, Result<SessionPage, Error>> {
        Box::pin(async move {
            let (time, id) = after.as_ref().map_or((i64::MAX, ""), |(time, id)| (*time, id.as_str()));
            let rows = sqlx::query(
                "SELECT * FROM sessions WHERE principal = ?1 AND (?2 IS NULL OR user_id = ?2) \
                 AND (created_at, id) < (?3, ?4) ORDER BY created_at DESC, id DESC LIMIT ?5",
            )
            .bind(principal.as_str())
            .bind(user_id)
            .bind(time)
            .bind(id)
            .bind(i64::from(limit) + 1)
            .fetch_all(&self.reads)
            .await;
            let sessions = rows.and_then(|rows| rows.iter().map(read_session).collect::<Result<Vec<_>, _>>());
            Ok(SessionPage::cut(sessions.map_err(|e| broken(&e))?, limit))
        })
    }

    fn delete<'a>(&'a self, principal: &'a Principal, id: &'a SessionId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            self.write(Op::Delete {
                principal: principal.clone(),
                id: id.clone(),
            })
            .await
            .map(drop)
        })
    }

    fn expire(&self, before: i64) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async move { self.write(Op::Expire { before }).await.map(i64::unsigned_abs) })
    }
}

impl RunStore for Sqlite {
    /// At once, whatever the entry: one process has this file, and its register of runs lets one at a time come here.
    fn begin<'a>(&'a self, run: &'a RunRecord, claim: SessionClaim<'a>) -> BoxFuture<'a, Result<Begun, Error>> {
        Box::pin(async move {
            for _ in 0..TRIES {
                let op = Op::Begin {
                    run: Box::new(run.clone()),
                    user_id: claim.user_id.map(str::to_owned),
                    agent: claim.agent.map(str::to_owned),
                    may_create: claim.may_create,
                };
                let version = self.write(op).await?;
                if version != 0 {
                    return Ok(Begun::At(version));
                }
                let session = self.session(&run.principal, &run.session_id).await?;
                let session = session.as_ref().map(|session| (&*session.user_id, &*session.agent));
                if let Some(refused) = claim.refusal(session) {
                    return Ok(refused);
                }
            }
            Err(Error::new(
                ErrorCode::StoreUnavailable,
                "The session was created and erased too often.",
            ))
        })
    }

    fn take<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
        run: RunId,
    ) -> BoxFuture<'a, Result<Option<i64>, Error>> {
        Box::pin(async move {
            let version: Option<i64> = sqlx::query_scalar(
                "SELECT s.version FROM sessions s JOIN runs r ON r.principal = s.principal AND r.session_id = s.id \
                 WHERE s.principal = ? AND s.id = ? AND r.id = ? AND r.status = 'running'",
            )
            .bind(principal.as_str())
            .bind(session.as_str())
            .bind(run.to_string())
            .fetch_optional(&self.reads)
            .await
            .map_err(|e| broken(&e))?;
            version.map(Some).ok_or_else(conflict)
        })
    }

    fn running<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
    ) -> BoxFuture<'a, Result<Vec<RunId>, Error>> {
        Box::pin(async move {
            let rows = sqlx::query(
                "SELECT id FROM runs WHERE principal = ? AND session_id = ? AND status = 'running' ORDER BY id",
            )
            .bind(principal.as_str())
            .bind(session.as_str())
            .fetch_all(&self.reads)
            .await;
            rows.and_then(|rows| rows.iter().map(|row| super::sql::word(row, "id")).collect())
                .map_err(|e| broken(&e))
        })
    }

    fn end<'a>(
        &'a self,
        run: RunId,
        status: RunStatus,
        end: &'a RunEnd,
        commit: Option<Commit<'a>>,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let turn = commit.map(|commit| TurnRows {
                principal: commit.principal.clone(),
                session: commit.session.clone(),
                after_version: commit.after_version,
                status: status_word(commit.status),
                messages: commit.messages.to_vec(),
            });
            let end = Box::new(end.clone());
            match self.write(Op::End { run, status, end, turn }).await? {
                0 => Err(conflict()),
                _ => Ok(()),
            }
        })
    }

    fn result<'a>(&'a self, principal: &'a Principal, id: RunId) -> BoxFuture<'a, Result<Option<Box<Done>>, Error>> {
        Box::pin(async move {
            let found = sqlx::query("SELECT done FROM runs WHERE principal = ? AND id = ?")
                .bind(principal.as_str())
                .bind(id.to_string())
                .fetch_optional(&self.reads)
                .await;
            found
                .and_then(|row| row.map_or(Ok(None), |row| row.json("done")))
                .map_err(|e| broken(&e))
        })
    }

    fn run<'a>(&'a self, principal: &'a Principal, id: RunId) -> BoxFuture<'a, Result<Option<RunRecord>, Error>> {
        Box::pin(async move {
            let found = sqlx::query(select_run!("principal = ? AND id = ?"))
                .bind(principal.as_str())
                .bind(id.to_string())
                .fetch_optional(&self.reads)
                .await;
            found
                .and_then(|row| row.map(|row| read_run(&row)).transpose())
                .map_err(|e| broken(&e))
        })
    }

    fn run_by_key<'a>(
        &'a self,
        principal: &'a Principal,
        key: &'a str,
        since: i64,
    ) -> BoxFuture<'a, Result<Option<RunRecord>, Error>> {
        Box::pin(async move {
            let found = sqlx::query(select_run!(
                "principal = ? AND idem_key = ? AND created_at >= ? \
                 AND status IN ('running', 'completed') ORDER BY created_at DESC LIMIT 1"
            ))
            .bind(principal.as_str())
            .bind(key)
            .bind(since)
            .fetch_optional(&self.reads)
            .await;
            found
                .and_then(|row| row.map(|row| read_run(&row)).transpose())
                .map_err(|e| broken(&e))
        })
    }

    fn told<'a>(&'a self, run: RunId, last_seq: u64) -> BoxFuture<'a, Result<(), Error>> {
        let last_seq = i64::try_from(last_seq).unwrap_or(i64::MAX);
        Box::pin(async move { self.write(Op::Told { run, last_seq }).await.map(drop) })
    }
}

impl Columns for SqliteRow {
    fn text(&self, column: &'static str) -> Result<Option<String>, sqlx::Error> {
        self.try_get(column)
    }

    fn number(&self, column: &'static str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(column)
    }

    fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, sqlx::Error> {
        self.try_get::<Option<&str>, _>(column)?.map(parse).transpose()
    }
}

//! SQLite: one file, one writer.
//!
//! All writes go through one task with one connection, which commits together what waits together: one `fsync` for
//! many turns. Turns are written with `synchronous=FULL`; a run's first row with `NORMAL`, which in WAL mode survives
//! the process but costs no wait for the disk. Reads have connections of their own and never wait for the writer.

use std::{fs::File, path::Path, time::Duration};

use futures_util::future::BoxFuture;
use sqlx::{
    Connection, Row, SqlSafeStr, SqliteConnection, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Begun, Commit, Entry, RunEnd, RunRecord, RunStatus, RunStore, Session, SessionPage, SessionStore, Store,
    StoredMessage, conflict,
    session::Loaded,
    sql::{
        Columns, broken, fresh_version, json, parse, read_message, read_run, read_session, status_word, unavailable,
    },
};
use crate::{
    chat::{Message, ModelCall, Principal, RunId, SessionId},
    error::{Error, ErrorCode},
    meters::Meters,
};

mod artifacts;
mod tickets;

/// How long a write may wait for its turn and for the file's lock.
const BUSY: Duration = Duration::from_secs(5);
/// How long a write may take altogether, on a disk that does not answer: longer than it may wait for the file's lock.
const STALLED: Duration = Duration::from_secs(10);
/// Writes that may wait; one more waits to be let in.
const QUEUE: usize = 1024;
/// The most writes of one transaction.
const BATCH: usize = 256;
/// Connections for reading.
const READERS: u32 = 4;

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
    ])
}

/// The store.
pub struct Sqlite {
    writes: mpsc::Sender<Write>,
    reads: SqlitePool,
    writer: TaskTracker,
    closing: CancellationToken,
    /// Held as long as the store is open: two gateways on one file would interrupt each other's runs.
    lock: File,
}

impl Sqlite {
    /// Opens the file, and makes it (and its folder, for the owner only) if it is not there.
    ///
    /// # Errors
    /// Whatever is in the way: another gateway, a file that is no database, or one of a newer version.
    pub async fn open(path: &str, meters: &Meters) -> Result<Self, Error> {
        let failed = |what: &str| format!("the store {path} {what}");
        let lock = lock(path).map_err(|e| unavailable(&failed("cannot be opened"), e))?;
        let Some(lock) = lock else {
            return Err(Error::new(
                ErrorCode::StoreUnavailable,
                failed("is in use by another sluicegate"),
            ));
        };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
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
            .connect_with(options.read_only(true).create_if_missing(false))
            .await
            .map_err(|e| unavailable(&failed("cannot be read"), e))?;
        let (writes, queue) = mpsc::channel(QUEUE);
        let tasks = TaskTracker::new();
        let closing = CancellationToken::new();
        tasks.spawn(write_all(writer, queue, closing.clone()));
        tasks.close();
        Ok(Self {
            writes,
            reads,
            writer: tasks,
            closing,
            lock,
        })
    }

    /// Hands an operation to the writer and waits for it.
    async fn write(&self, op: Op) -> Result<i64, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| Error::new(ErrorCode::StoreUnavailable, "The store is closed.");
        let sent = tokio::time::timeout(BUSY, self.writes.send(Write { op, reply })).await;
        let full = |_| Error::new(ErrorCode::StoreUnavailable, "The store has too much to write.");
        sent.map_err(full)?.map_err(|e| gone(e.to_string()))?;
        let slow = |_| Error::new(ErrorCode::StoreUnavailable, "The store did not write in time.");
        let answer = tokio::time::timeout(STALLED, answer).await.map_err(slow)?;
        answer.map_err(|e| gone(e.to_string()))?
    }
}

/// One thing to write.
struct Write {
    op: Op,
    reply: oneshot::Sender<Result<i64, Error>>,
}

impl Write {
    /// Who has given up waiting has said so to somebody: what they wanted must not happen after that. But for a run's mere
    /// end, which is true whenever it is written.
    fn is_wanted(&self) -> bool {
        !self.reply.is_closed() || matches!(self.op, Op::End { turn: None, .. })
    }
}

enum Op {
    Begin {
        run: Box<RunRecord>,
        user_id: String,
    },
    End {
        run: RunId,
        status: RunStatus,
        end: Box<RunEnd>,
        turn: Option<TurnRows>,
    },
    Create {
        principal: Principal,
        session: Box<Session>,
    },
    Delete {
        principal: Principal,
        id: SessionId,
    },
    Told {
        run: RunId,
        last_seq: i64,
    },
    Expire {
        before: i64,
    },
    Artifact(artifacts::ArtifactOp),
    Ticket(tickets::TicketOp),
    /// Nothing of meaning, but through the whole road and onto a page of the file: a disk that is full or broken is seen.
    Probe,
}

/// A turn to add. Its texts are those that the run holds: JSON is made of them when it is their turn to be written.
struct TurnRows {
    principal: Principal,
    session: SessionId,
    after_version: i64,
    status: &'static str,
    messages: Vec<Message>,
}

impl Op {
    /// Whether its answer must mean that it is on the disk.
    fn lasting(&self) -> bool {
        match self {
            Op::End { turn, .. } => turn.is_some(),
            Op::Create { .. } | Op::Delete { .. } => true,
            // A file's record is on the disk with the turn that tells of it: the log is synced from its beginning. A
            // ticket is over before a machine that lost its power is back.
            Op::Begin { .. } | Op::Told { .. } | Op::Expire { .. } | Op::Artifact(_) | Op::Ticket(_) | Op::Probe => {
                false
            }
        }
    }

    /// Writes it. The number is how many rows it met (an end that meets none is a conflict); of a beginning, the
    /// session's version.
    async fn apply(&self, db: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
        let now = jiff::Timestamp::now().as_millisecond();
        let done = match self {
            Op::Begin { run, user_id } => {
                let (key, fingerprint) = run.idempotency.as_ref().map(|(k, f)| (k, f)).unzip();
                let version: i64 = sqlx::query_scalar(
                    "INSERT INTO sessions (principal, id, user_id, agent, metadata, message_count, version, created_at, updated_at) \
                     VALUES (?, ?, ?, ?, '{}', 0, ?, ?, ?) ON CONFLICT DO UPDATE SET version = version RETURNING version",
                )
                .bind(run.principal.as_str())
                .bind(run.session_id.as_str())
                .bind(user_id)
                .bind(&run.agent)
                .bind(fresh_version())
                .bind(run.created_at)
                .bind(run.created_at)
                .fetch_one(&mut *db)
                .await?;
                sqlx::query(
                    "INSERT INTO runs (principal, session_id, id, agent, model, metadata, created_at, idem_key, fingerprint, status) \
                     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'running')",
                )
                .bind(run.principal.as_str())
                .bind(run.session_id.as_str())
                .bind(run.id.to_string())
                .bind(&run.agent)
                .bind(&run.model)
                .bind(json(&run.metadata))
                .bind(run.created_at)
                .bind(key)
                .bind(fingerprint)
                .execute(db)
                .await?;
                return Ok(version);
            }
            Op::End { run, status, end, turn } => {
                if let Some(turn) = turn
                    && !turn.append(*run, now, db).await?
                {
                    return Ok(0);
                }
                let ended = sqlx::query(
                    "UPDATE runs SET status = ?, ended_at = ?, last_seq = ?, usage = ?, error = ?, done = ? \
                     WHERE id = ? AND status = 'running'",
                )
                .bind(status.as_str())
                .bind(end.ended_at)
                .bind(end.last_seq.and_then(|seq| i64::try_from(seq).ok()))
                .bind(end.usage.as_ref().map(json))
                .bind(end.error.as_ref().map(json))
                .bind(end.done.as_ref().map(json))
                .bind(run.to_string())
                .execute(&mut *db)
                .await?;
                if ended.rows_affected() > 0 {
                    for call in &end.calls {
                        write_call(*run, call, end.ended_at, &mut *db).await?;
                    }
                }
                ended
            }
            Op::Create { principal, session } => {
                sqlx::query(
                    "INSERT INTO sessions (principal, id, user_id, agent, metadata, message_count, version, created_at, updated_at) \
                     VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?) ON CONFLICT DO NOTHING",
                )
                .bind(principal.as_str())
                .bind(session.id.as_str())
                .bind(&session.user_id)
                .bind(&session.agent)
                .bind(json(&session.metadata))
                .bind(fresh_version())
                .bind(session.created_at)
                .bind(session.updated_at)
                .execute(db)
                .await?
            }
            Op::Delete { principal, id } => {
                let erase = sqlx::query("DELETE FROM sessions WHERE principal = ? AND id = ?"); // and by cascade its rows
                erase.bind(principal.as_str()).bind(id.as_str()).execute(db).await?
            }
            Op::Told { run, last_seq } => {
                sqlx::query("UPDATE runs SET last_seq = max(coalesce(last_seq, 0), ?) WHERE id = ? AND status = 'interrupted'")
                    .bind(last_seq)
                    .bind(run.to_string())
                    .execute(db)
                    .await?
            }
            Op::Expire { before } => {
                let idle = "DELETE FROM sessions WHERE updated_at < ?1 AND NOT EXISTS (SELECT 1 FROM runs r \
                     WHERE r.principal = sessions.principal AND r.session_id = sessions.id AND r.status = 'running')";
                sqlx::query(idle).bind(before).execute(db).await?
            }
            Op::Artifact(op) => return op.apply(now, db).await,
            Op::Probe => sqlx::query("PRAGMA user_version = 1").execute(db).await?,
            Op::Ticket(op) => return op.apply(now, db).await,
        };
        Ok(done.rows_affected().cast_signed())
    }
}

impl TurnRows {
    /// Adds the turn, if the session is still the one that was loaded.
    async fn append(&self, run: RunId, now: i64, db: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
        let count = self.messages.len() as i64;
        let moved = sqlx::query_scalar::<_, i64>(
            "UPDATE sessions SET version = max(version + 1, ?), message_count = message_count + ?, updated_at = ? \
             WHERE principal = ? AND id = ? AND version = ? \
             AND EXISTS (SELECT 1 FROM runs WHERE id = ? AND status = 'running') RETURNING message_count",
        )
        .bind(fresh_version())
        .bind(count)
        .bind(now)
        .bind(self.principal.as_str())
        .bind(self.session.as_str())
        .bind(self.after_version)
        .bind(run.to_string())
        .fetch_optional(&mut *db)
        .await?;
        let Some(total) = moved else { return Ok(false) };
        for (at, message) in self.messages.iter().enumerate() {
            sqlx::query("INSERT INTO messages (principal, session_id, seq, run_id, status, created_at, body) VALUES (?, ?, ?, ?, ?, ?, ?)")
                .bind(self.principal.as_str())
                .bind(self.session.as_str())
                .bind(total - count + at as i64)
                .bind(run.to_string())
                .bind(self.status)
                .bind(now)
                .bind(json(message))
                .execute(&mut *db)
                .await?;
        }
        Ok(true)
    }
}

/// Notes what a model call cost.
async fn write_call(run: RunId, call: &ModelCall, ended_at: i64, db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let number = |number: Option<u64>| number.and_then(|number| i64::try_from(number).ok());
    sqlx::query(
        "INSERT INTO model_calls (run_id, round, model, input_tokens, output_tokens, cached_input_tokens, reasoning_tokens, estimated, ended_at) \
         SELECT id, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM runs WHERE id = ?1 ON CONFLICT DO NOTHING",
    )
    .bind(run.to_string())
    .bind(call.round)
    .bind(&call.model)
    .bind(number(call.usage.input_tokens))
    .bind(number(call.usage.output_tokens))
    .bind(number(call.usage.cached_input_tokens))
    .bind(number(call.usage.reasoning_tokens))
    .bind(call.usage.estimated)
    .bind(ended_at)
    .execute(db)
    .await
    .map(drop)
}

/// The writer: until the store is closed, or everybody who could ask is gone.
async fn write_all(mut db: SqliteConnection, mut queue: mpsc::Receiver<Write>, closing: CancellationToken) {
    let mut waiting = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            () = std::future::ready(()), if !waiting.is_empty() => {}
            count = queue.recv_many(&mut waiting, BATCH) => if count == 0 { break },
            () = closing.cancelled(), if !queue.is_closed() => queue.close(), // what is in it is still written
        }
        waiting.retain(Write::is_wanted);
        let (lasting, quick): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|write| write.op.lasting());
        // What need not wait for the disk goes first, so that it does not.
        for (batch, synchronous) in [
            (quick, "PRAGMA synchronous = NORMAL"),
            (lasting, "PRAGMA synchronous = FULL"),
        ] {
            if batch.is_empty() {
                continue;
            }
            match write_batch(&mut db, &batch, synchronous).await {
                Ok(outcomes) => batch
                    .into_iter()
                    .zip(outcomes)
                    .for_each(|(write, rows)| drop(write.reply.send(Ok(rows)))),
                // One that fails must not take the others with it: each gets a transaction of its own.
                Err(error) if batch.len() > 1 && !is_everybodys(&error) => {
                    for write in batch.into_iter().filter(Write::is_wanted) {
                        let outcome = write_batch(&mut db, std::slice::from_ref(&write), synchronous).await;
                        drop(write.reply.send(outcome.map(|rows| rows[0]).map_err(|e| broken(&e))));
                    }
                }
                Err(error) => {
                    // Who came meanwhile has waited for the same file: a turn is tried once more, nothing else.
                    let came = std::iter::from_fn(|| queue.try_recv().ok());
                    let (lasting, quick): (Vec<_>, Vec<_>) = came.take(QUEUE).partition(|write| write.op.lasting());
                    waiting.extend(lasting);
                    for write in batch.into_iter().chain(quick) {
                        drop(write.reply.send(Err(broken(&error))));
                    }
                }
            }
        }
    }
    if let Err(error) = db.close().await {
        tracing::warn!(%error, "the store was not closed cleanly; nothing that was acknowledged is lost");
    }
}

/// Whether an error is the file's, or its disk's: then the other writes of a batch would wait for it again one by one, each
/// as long as they all have waited. An operation's own is a constraint, or a value.
fn is_everybodys(error: &sqlx::Error) -> bool {
    const OF_AN_OPERATION: [i32; 4] = [1, 18, 19, 20]; // SQLITE_ERROR, _TOOBIG, _CONSTRAINT, _MISMATCH
    let code = error
        .as_database_error()
        .and_then(|error| error.code()?.parse::<i32>().ok());
    !matches!(error, sqlx::Error::RowNotFound | sqlx::Error::Decode(_))
        && code.is_none_or(|code| !OF_AN_OPERATION.contains(&(code & 0xff)))
}

/// One transaction.
async fn write_batch(
    db: &mut SqliteConnection,
    batch: &[Write],
    synchronous: &'static str,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query(synchronous).execute(&mut *db).await?;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *db).await?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for write in batch {
        // The lock may have been long in coming, and its asker be gone.
        if !write.is_wanted() {
            outcomes.push(0);
            continue;
        }
        match write.op.apply(&mut *db).await {
            Ok(rows) => outcomes.push(rows),
            Err(error) => {
                let _ = sqlx::query("ROLLBACK").execute(&mut *db).await; // it failed already; there is nothing to undo
                return Err(error);
            }
        }
    }
    if let Err(error) = sqlx::query("COMMIT").execute(&mut *db).await {
        let _ = sqlx::query("ROLLBACK").execute(&mut *db).await;
        return Err(error);
    }
    Ok(outcomes)
}

impl Store for Sqlite {
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { self.write(Op::Probe).await.map(drop) })
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

    fn load<'a>(&'a self, principal: &'a Principal, id: &'a SessionId) -> BoxFuture<'a, Result<Option<Loaded>, Error>> {
        Box::pin(async move {
            // One statement, so that the messages are those of the version.
            let rows = sqlx::query(
                "SELECT s.*, m.body FROM sessions s LEFT JOIN messages m ON m.principal = s.principal AND m.session_id = s.id \
                 WHERE s.principal = ? AND s.id = ? ORDER BY m.seq",
            )
            .bind(principal.as_str())
            .bind(id.as_str())
            .fetch_all(&self.reads)
            .await
            .map_err(|e| broken(&e))?;
            let Some(first) = rows.first() else { return Ok(None) };
            let session = read_session(first).map_err(|e| broken(&e))?;
            let bodies = rows
                .iter()
                .filter_map(|row| row.try_get::<Option<String>, _>("body").transpose());
            let messages = bodies.map(|body| parse(&body?)).collect::<Result<_, sqlx::Error>>();
            Ok(Some((session, messages.map_err(|e| broken(&e))?)))
        })
    }

    fn messages<'a>(
        &'a self,
        principal: &'a Principal,
        id: &'a SessionId,
        from: u64,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<StoredMessage>, Error>> {
        Box::pin(async move {
            let rows = sqlx::query(
                "SELECT run_id, status, created_at, body FROM messages \
                 WHERE principal = ? AND session_id = ? AND seq >= ? ORDER BY seq LIMIT ?",
            )
            .bind(principal.as_str())
            .bind(id.as_str())
            .bind(i64::try_from(from).unwrap_or(i64::MAX))
            .bind(limit)
            .fetch_all(&self.reads)
            .await;
            rows.and_then(|rows| rows.iter().map(read_message).collect())
                .map_err(|e| broken(&e))
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
    fn begin<'a>(&'a self, run: &'a RunRecord, user_id: &'a str, _: Entry) -> BoxFuture<'a, Result<Begun, Error>> {
        let op = Op::Begin {
            run: Box::new(run.clone()),
            user_id: user_id.to_owned(),
        };
        Box::pin(async { self.write(op).await.map(Begun::At) })
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

    fn run<'a>(&'a self, principal: &'a Principal, id: RunId) -> BoxFuture<'a, Result<Option<RunRecord>, Error>> {
        Box::pin(async move {
            let found = sqlx::query("SELECT * FROM runs WHERE principal = ? AND id = ?")
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
            let found = sqlx::query(
                "SELECT * FROM runs WHERE principal = ? AND idem_key = ? AND created_at >= ? \
                 AND status IN ('running', 'completed') ORDER BY created_at DESC LIMIT 1",
            )
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
}

/// Takes the lock that says who has this file open; `None` if somebody else has. It goes with the process.
fn lock(path: &str) -> std::io::Result<Option<File>> {
    let path = Path::new(path);
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        super::make_private(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(name)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

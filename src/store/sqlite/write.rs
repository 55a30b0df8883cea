//! The writer: what is to be written, who waits for it, and what becomes of what nobody waits for any more.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use sqlx::{Connection, SqliteConnection};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{LOG_SIZE, artifacts::ArtifactOp, file::Opened, tickets::TicketOp};
use crate::{
    chat::{Message, ModelCall, Principal, RunId, SessionId},
    error::{Error, ErrorCode},
    store::{
        NO_USER, RunEnd, RunRecord, RunStatus, Session,
        sql::{broken, fresh_version, json},
    },
};

/// After what pause it is tried again to undo what was told as failed.
const AGAIN: Duration = Duration::from_secs(1);
/// How often at most the log is emptied, and how long that may wait for readers; the patience of everything else.
const EMPTY_EVERY: Duration = Duration::from_secs(10);
const EMPTY_PATIENCE: &str = "PRAGMA busy_timeout = 500";
const USUAL_PATIENCE: &str = "PRAGMA busy_timeout = 5000";
/// The most writes of one transaction.
const BATCH: usize = 256;
/// Writes that may wait; one more waits to be let in.
pub(super) const QUEUE: usize = 1024;

pub(super) fn late() -> Error {
    Error::new(ErrorCode::StoreUnavailable, "The store did not write in time.")
}

/// One thing to write.
pub(super) struct Write {
    pub(super) op: Op,
    pub(super) reply: oneshot::Sender<Result<i64, Error>>,
    pub(super) fate: Arc<Fate>,
}

impl Write {
    /// Who has given up waiting has said so to somebody: what they wanted must not happen after that. But for a run's mere
    /// end, which is true whenever it is written.
    fn is_wanted(&self) -> bool {
        matches!(self.op, Op::End { turn: None, .. }) || !(self.reply.is_closed() || self.fate.is_taken_back())
    }

    /// The same, for good: from here on nobody takes it back.
    fn is_final(&self) -> bool {
        self.fate.go_on();
        self.is_wanted()
    }

    /// Tells who asked. A turn that nobody waits for any more, because it took too long inside its COMMIT, was told as
    /// failed: it has to be undone.
    fn answer(self, outcome: Result<i64, Error>) -> Option<Undo> {
        let kept = outcome.as_ref().is_ok_and(|rows| *rows > 0);
        let unheard = self.reply.send(outcome).is_err();
        match self.op {
            Op::End { run, turn, .. } if kept && unheard => turn.map(|turn| Undo {
                run,
                principal: turn.principal,
                session: turn.session,
            }),
            _ => None,
        }
    }
}

/// Whether a write is taken back or goes on to its COMMIT: what is said first counts.
#[derive(Default)]
pub(super) struct Fate(OnceLock<Said>);

#[derive(Clone, Copy, PartialEq)]
enum Said {
    TakenBack,
    Committing,
}

impl Fate {
    /// Whether it is now certain that nothing is written.
    pub(super) fn take_back(&self) -> bool {
        *self.0.get_or_init(|| Said::TakenBack) == Said::TakenBack
    }

    fn go_on(&self) {
        let _ = self.0.set(Said::Committing); // or it was taken back
    }

    fn is_taken_back(&self) -> bool {
        self.0.get() == Some(&Said::TakenBack)
    }
}

pub(super) enum Op {
    /// A run's row, and its session's if there is none; neither, if the session is not the claimed one.
    Begin {
        run: Box<RunRecord>,
        user_id: Option<String>,
        agent: Option<String>,
        may_create: bool,
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
    Artifact(ArtifactOp),
    Ticket(TicketOp),
    /// A run's beginning that is taken away again: through the whole road and onto as many pages of the file, so that a disk
    /// which is full or broken is seen as a run would see it.
    Probe,
}

/// A turn to add. Its texts are those that the run holds: JSON is made of them when it is their turn to be written.
pub(super) struct TurnRows {
    pub(super) principal: Principal,
    pub(super) session: SessionId,
    pub(super) after_version: i64,
    pub(super) status: &'static str,
    pub(super) messages: Vec<Message>,
}

impl Op {
    /// The turn that it adds.
    pub(super) fn turn(&self) -> Option<&TurnRows> {
        match self {
            Op::End { turn, .. } => turn.as_ref(),
            _ => None,
        }
    }

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
    /// session's version, or 0 if the session is not the claimed one.
    async fn apply(&self, db: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
        let now = jiff::Timestamp::now().as_millisecond();
        let done = match self {
            Op::Begin {
                run,
                user_id,
                agent,
                may_create,
            } => {
                let (key, fingerprint) = run.idempotency.as_ref().map(|(k, f)| (k, f)).unzip();
                let version: Option<i64> = sqlx::query_scalar(
                    "INSERT INTO sessions (principal, id, user_id, agent, metadata, message_count, version, created_at, updated_at) \
                     SELECT ?1, ?2, coalesce(?3, ?8), ?4, '{}', 0, ?5, ?6, ?6 \
                     WHERE ?7 OR EXISTS (SELECT 1 FROM sessions WHERE principal = ?1 AND id = ?2) \
                     ON CONFLICT DO UPDATE SET version = version \
                     WHERE (?3 IS NULL OR user_id = ?3) AND (?9 IS NULL OR agent = ?9) RETURNING version",
                )
                .bind(run.principal.as_str())
                .bind(run.session_id.as_str())
                .bind(user_id)
                .bind(&run.agent)
                .bind(fresh_version())
                .bind(run.created_at)
                .bind(may_create)
                .bind(NO_USER)
                .bind(agent)
                .fetch_optional(&mut *db)
                .await?;
                let Some(version) = version else { return Ok(0) };
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
            Op::Probe => {
                let run = Box::new(probe()?);
                let (principal, id) = (run.principal.clone(), run.session_id.clone());
                let begin = Op::Begin {
                    run,
                    user_id: None,
                    agent: None,
                    may_create: true,
                };
                Box::pin(begin.apply(&mut *db)).await?;
                return Box::pin(Op::Delete { principal, id }.apply(db)).await;
            }
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

/// A run of nobody's.
fn probe() -> Result<RunRecord, sqlx::Error> {
    let session_id = "probe".parse();
    Ok(RunRecord {
        id: RunId::new(),
        principal: Principal::named(""),
        session_id: session_id.map_err(|_| sqlx::Error::Decode("a session's id".into()))?,
        agent: String::new(),
        model: String::new(),
        metadata: BTreeMap::new(),
        created_at: 0,
        idempotency: Some((String::new(), String::new())),
        status: RunStatus::Running,
        end: None,
    })
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

/// A turn that was committed after it had been told as failed: a failed run adds nothing to its session.
pub(super) struct Undo {
    run: RunId,
    principal: Principal,
    session: SessionId,
}

impl Undo {
    async fn apply(&self, db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let shorten = sqlx::query(
            "UPDATE sessions SET version = max(version + 1, ?4), message_count = message_count - \
             (SELECT count(*) FROM messages WHERE principal = ?1 AND session_id = ?2 AND run_id = ?3) \
             WHERE principal = ?1 AND id = ?2",
        );
        shorten
            .bind(self.principal.as_str())
            .bind(self.session.as_str())
            .bind(self.run.to_string())
            .bind(fresh_version())
            .execute(&mut *db)
            .await?;
        sqlx::query("DELETE FROM messages WHERE principal = ? AND session_id = ? AND run_id = ?")
            .bind(self.principal.as_str())
            .bind(self.session.as_str())
            .bind(self.run.to_string())
            .execute(&mut *db)
            .await?;
        sqlx::query(
            "UPDATE runs SET status = CASE status WHEN 'completed' THEN 'failed' ELSE status END, error = coalesce(error, ?) \
             WHERE id = ?",
        )
        .bind(json(&late()))
        .bind(self.run.to_string())
        .execute(db)
        .await
        .map(drop)
    }
}

/// What writes.
pub(super) struct Writer {
    pub(super) db: SqliteConnection,
    pub(super) opened: Opened,
    /// What the next transaction begins with.
    pub(super) undo: Vec<Undo>,
    /// When the log was last emptied, or that was tried.
    pub(super) emptied: Option<Instant>,
}

impl Writer {
    /// Until the store is closed, or everybody who could ask is gone.
    pub(super) async fn write_all(mut self, mut queue: mpsc::Receiver<Write>, closing: CancellationToken) {
        let mut waiting = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = std::future::ready(()), if !waiting.is_empty() => {}
                count = queue.recv_many(&mut waiting, BATCH) => if count == 0 { break },
                () = closing.cancelled(), if !queue.is_closed() => queue.close(), // what is in it is still written
                () = tokio::time::sleep(AGAIN), if !self.undo.is_empty() => {}
            }
            waiting.retain(Write::is_wanted);
            let (lasting, quick): (Vec<_>, Vec<_>) = waiting.drain(..).partition(|write| write.op.lasting());
            // What need not wait for the disk goes first, so that it does not.
            for (batch, synchronous) in [
                (quick, "PRAGMA synchronous = NORMAL"),
                (lasting, "PRAGMA synchronous = FULL"),
            ] {
                if batch.is_empty() && self.undo.is_empty() {
                    continue;
                }
                match self.write_batch(&batch, synchronous).await {
                    Ok(outcomes) => {
                        let told = batch.into_iter().zip(outcomes);
                        self.undo
                            .extend(told.filter_map(|(write, rows)| write.answer(Ok(rows))));
                    }
                    // One that fails must not take the others with it: each gets a transaction of its own.
                    Err(error) if batch.len() > 1 && !is_everybodys(&error) => {
                        for write in batch.into_iter().filter(Write::is_wanted) {
                            let outcome = self.write_batch(std::slice::from_ref(&write), synchronous).await;
                            let outcome = outcome.map(|rows| rows[0]).map_err(|e| broken(&e));
                            self.undo.extend(write.answer(outcome));
                        }
                    }
                    Err(error) => {
                        // Who came meanwhile has waited for the same file: a turn is tried once more, nothing else.
                        let came = std::iter::from_fn(|| queue.try_recv().ok());
                        let (lasting, quick): (Vec<_>, Vec<_>) = came.take(QUEUE).partition(|write| write.op.lasting());
                        waiting.extend(lasting);
                        for write in batch.into_iter().chain(quick) {
                            write.answer(Err(broken(&error)));
                        }
                    }
                }
            }
            self.empty_log().await;
        }
        if !self.undo.is_empty()
            && let Err(error) = self.write_batch(&[], "PRAGMA synchronous = FULL").await
        {
            tracing::error!(%error, "turns that were told as failed could not be taken out of their sessions");
        }
        if let Err(error) = self.db.close().await {
            tracing::warn!(%error, "the store was not closed cleanly; nothing that was acknowledged is lost");
        }
    }

    /// Empties a log that has become too large. SQLite does that by itself where no reader is in the way; where some reader
    /// always is, the log would grow for ever, so that new ones are held up for a moment now and then.
    async fn empty_log(&mut self) {
        let due = self.emptied.is_none_or(|last| last.elapsed() >= EMPTY_EVERY);
        if !due || self.opened.log_length() <= LOG_SIZE {
            return;
        }
        for statement in [EMPTY_PATIENCE, "PRAGMA wal_checkpoint(TRUNCATE)", USUAL_PATIENCE] {
            if let Err(error) = sqlx::query(statement).execute(&mut self.db).await {
                tracing::warn!(%error, "the store's log could not be emptied; it is tried again");
            }
        }
        self.emptied = Some(Instant::now());
    }

    /// One transaction.
    async fn write_batch(&mut self, batch: &[Write], synchronous: &'static str) -> Result<Vec<i64>, sqlx::Error> {
        sqlx::query(synchronous).execute(&mut self.db).await?;
        let written = loop {
            sqlx::query("BEGIN IMMEDIATE").execute(&mut self.db).await?;
            match self.fill(batch).await {
                Ok(None) => {
                    sqlx::query("ROLLBACK").execute(&mut self.db).await?;
                }
                Ok(Some(outcomes)) => match sqlx::query("COMMIT").execute(&mut self.db).await {
                    Ok(_) => break Ok(outcomes),
                    Err(error) => break Err(error),
                },
                Err(error) => break Err(error),
            }
        };
        match &written {
            Ok(_) => self.undo.clear(),
            // It failed already; there is nothing to undo.
            Err(_) => drop(sqlx::query("ROLLBACK").execute(&mut self.db).await),
        }
        written
    }

    /// Everything between BEGIN and COMMIT. `None`: something that is in it was taken back meanwhile.
    async fn fill(&mut self, batch: &[Write]) -> Result<Option<Vec<i64>>, sqlx::Error> {
        self.opened.check()?; // before pages are read that are not there any more
        for undo in &self.undo {
            undo.apply(&mut self.db).await?;
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        for write in batch {
            // The lock may have been long in coming, and its asker be gone.
            outcomes.push(match write.is_wanted() {
                true => Some(write.op.apply(&mut self.db).await?),
                false => None,
            });
        }
        self.opened.check()?;
        let mut all = batch.iter().zip(&outcomes);
        let whole = all.all(|(write, outcome)| outcome.is_none() || write.is_final());
        Ok(whole.then(|| outcomes.into_iter().map(Option::unwrap_or_default).collect()))
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

#[cfg(test)]
mod tests {
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};

    use super::{super::migrations, *};

    async fn written(writer: &mut Writer, op: Op) -> (Write, oneshot::Receiver<Result<i64, Error>>, i64) {
        let (reply, answer) = oneshot::channel();
        let fate = Arc::default();
        let write = Write { op, reply, fate };
        let rows = writer.write_batch(std::slice::from_ref(&write), "PRAGMA synchronous = FULL");
        let rows = rows.await.unwrap()[0];
        (write, answer, rows)
    }

    async fn count(writer: &mut Writer, what: &'static str) -> i64 {
        sqlx::query_scalar(what).fetch_one(&mut writer.db).await.unwrap()
    }

    fn begin(run: RunId, session: &SessionId) -> Op {
        Op::Begin {
            run: Box::new(RunRecord {
                id: run,
                principal: Principal::anonymous(),
                session_id: session.clone(),
                agent: "a".into(),
                model: "p/m".into(),
                metadata: Default::default(),
                created_at: 1,
                idempotency: None,
                status: RunStatus::Running,
                end: None,
            }),
            user_id: Some("u".into()),
            agent: None,
            may_create: true,
        }
    }

    fn end(run: RunId, session: &SessionId, after_version: i64) -> Op {
        Op::End {
            run,
            status: RunStatus::Completed,
            end: Box::new(RunEnd {
                ended_at: 2,
                last_seq: Some(3),
                usage: None,
                calls: Vec::new(),
                error: None,
                done: None,
                result_bytes: None,
            }),
            turn: Some(TurnRows {
                principal: Principal::anonymous(),
                session: session.clone(),
                after_version,
                status: "complete",
                messages: vec![Message::user("Hi", Vec::new()), Message::user("there", Vec::new())],
            }),
        }
    }

    async fn writer(folder: &tempfile::TempDir) -> Writer {
        let path = folder.path().join("s.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut db = SqliteConnection::connect_with(&options.journal_mode(SqliteJournalMode::Wal))
            .await
            .unwrap();
        migrations().run(&mut db).await.unwrap();
        Writer {
            db,
            opened: Opened::at(path.to_str().unwrap()),
            undo: Vec::new(),
            emptied: None,
        }
    }

    const MESSAGES: &str = "SELECT count(*) FROM messages";

    #[tokio::test]
    async fn a_turn_that_was_told_as_failed_while_it_was_committed_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(&folder).await;
        let session: SessionId = "s".parse().unwrap();
        let (first, second) = (RunId::new(), RunId::new());
        let (.., version) = written(&mut writer, begin(first, &session)).await;
        let (write, heard, rows) = written(&mut writer, end(first, &session, version)).await;
        assert!(write.answer(Ok(rows)).is_none(), "somebody waits");
        drop(heard);
        let (.., version) = written(&mut writer, begin(second, &session)).await;
        let (write, unheard, rows) = written(&mut writer, end(second, &session, version)).await;
        assert_eq!(count(&mut writer, MESSAGES).await, 4);
        drop(unheard);
        writer.undo.extend(write.answer(Ok(rows)));
        writer.write_batch(&[], "PRAGMA synchronous = NORMAL").await.unwrap();
        assert!(writer.undo.is_empty());
        assert_eq!(count(&mut writer, MESSAGES).await, 2);
        assert_eq!(count(&mut writer, "SELECT message_count FROM sessions").await, 2);
        let runs: Vec<String> = sqlx::query_scalar("SELECT status FROM runs ORDER BY id")
            .fetch_all(&mut writer.db)
            .await
            .unwrap();
        assert_eq!(runs, ["completed", "failed"]);
    }

    #[tokio::test]
    async fn a_probe_takes_as_much_room_as_a_beginning_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(&folder).await;
        let log = folder.path().join("s.db-wal");
        let size = || std::fs::metadata(&log).unwrap().len();
        let session: SessionId = "s".parse().unwrap();
        written(&mut writer, begin(RunId::new(), &session)).await;
        let before = size();
        written(&mut writer, Op::Probe).await;
        let between = size();
        written(&mut writer, begin(RunId::new(), &session)).await;
        assert!(between - before >= size() - between, "{before}, {between}, {}", size());
        assert_eq!(count(&mut writer, "SELECT count(*) FROM runs").await, 2);
        assert_eq!(count(&mut writer, "SELECT count(*) FROM sessions").await, 1);
    }

    #[tokio::test]
    async fn a_file_that_was_cut_takes_no_turn_and_one_that_is_checkpointed_does() {
        for (ending, length) in [("", 0), ("", 4_096), ("", 8_191), ("-wal", 0), ("-wal", 100)] {
            let folder = tempfile::tempdir().unwrap();
            let mut writer = writer(&folder).await;
            let session: SessionId = "s".parse().unwrap();
            let checkpoint = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)");
            checkpoint.execute(&mut writer.db).await.unwrap();
            assert!(
                writer.opened.check().is_ok(),
                "an empty log is what a checkpoint leaves"
            );
            written(&mut writer, begin(RunId::new(), &session)).await;
            assert!(writer.opened.check().is_ok());
            let path = folder.path().join(format!("s.db{ending}"));
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_len(length).unwrap();
            let (reply, _answer) = oneshot::channel();
            let op = begin(RunId::new(), &session);
            let fate = Arc::default();
            let lost = writer
                .write_batch(&[Write { op, reply, fate }], "PRAGMA synchronous = FULL")
                .await;
            let error = lost.expect_err("a lost turn").to_string();
            assert!(error.contains("s.db"), "{ending} {length}: {error}");
        }
    }

    #[tokio::test]
    async fn a_log_that_became_large_is_emptied_although_readers_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(&folder).await;
        sqlx::query("PRAGMA wal_autocheckpoint = 0")
            .execute(&mut writer.db)
            .await
            .unwrap();
        sqlx::query("CREATE TABLE filler (body)")
            .execute(&mut writer.db)
            .await
            .unwrap();
        while writer.opened.log_length() <= LOG_SIZE {
            let fill = sqlx::query("INSERT INTO filler VALUES (zeroblob(9000000))");
            fill.execute(&mut writer.db).await.unwrap();
        }
        writer.empty_log().await;
        assert_eq!(writer.opened.log_length(), 0);
        written(&mut writer, begin(RunId::new(), &"s".parse().unwrap())).await;
        assert_eq!(count(&mut writer, "SELECT count(*) FROM runs").await, 1);
    }

    #[tokio::test]
    async fn what_is_taken_back_before_its_commit_is_not_written_and_takes_nothing_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(&folder).await;
        let sessions: [SessionId; 2] = ["s", "t"].map(|id| id.parse().unwrap());
        let runs = [RunId::new(), RunId::new()];
        let mut batch = Vec::new();
        let mut answers = Vec::new();
        for (run, session) in runs.into_iter().zip(&sessions) {
            let (.., version) = written(&mut writer, begin(run, session)).await;
            let (reply, answer) = oneshot::channel();
            let fate = Arc::default();
            batch.push(Write {
                op: end(run, session, version),
                reply,
                fate,
            });
            answers.push(answer);
        }
        assert!(batch[0].fate.take_back());
        let outcomes = writer.write_batch(&batch, "PRAGMA synchronous = FULL").await.unwrap();
        assert_eq!(outcomes, [0, 1]);
        assert_eq!(count(&mut writer, MESSAGES).await, 2);
        assert!(!batch[1].fate.take_back(), "it was committed");
    }
}

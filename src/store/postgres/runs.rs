//! Runs in PostgreSQL: who holds a session, which run a key means, and how runs end.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use sqlx::{Connection, PgConnection, Row};

use super::Postgres;
use crate::{
    chat::{Done, ModelCall, Principal, RunId, SessionId},
    error::{Error, ErrorCode},
    store::{
        Begun, Commit, Entry, KEY_LIFE, NO_USER, RunEnd, RunRecord, RunStatus, RunStore, SessionClaim, Store, conflict,
        sql::{Columns, fresh_version, json, read_run, select_run, status_word},
    },
};

/// How often a run asks for its session before it gives up: whoever stood in its way each time was gone when looked for.
const TRIES: usize = 5;

impl RunStore for Postgres {
    fn begin<'a>(&'a self, run: &'a RunRecord, claim: SessionClaim<'a>) -> BoxFuture<'a, Result<Begun, Error>> {
        Box::pin(async move {
            let owed = Owed::new(self, run.id);
            let sent = &owed.sent;
            let begun = self.patiently(move |_| async move {
                let mut db = self.lend().await?;
                sent.store(true, Ordering::Relaxed);
                for _ in 0..TRIES {
                    if let Some(begun) = self.enter(run, &claim, &mut db).await? {
                        db.back();
                        return Ok(Some(begun));
                    }
                }
                db.back();
                Ok(None)
            });
            let begun = begun.await?;
            owed.settle();
            let crowded = || Error::new(ErrorCode::StoreUnavailable, "Too many want this session at once.");
            begun.ok_or_else(crowded)
        })
    }

    fn take<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
        run: RunId,
    ) -> BoxFuture<'a, Result<Option<i64>, Error>> {
        Box::pin(async move {
            let taken = self.patiently(move |_| async move {
                let mut db = self.lend().await?;
                let taken = take(principal, session, run, &mut db).await?;
                db.back();
                Ok(taken)
            });
            match taken.await? {
                Turn::Mine(version) => Ok(Some(version)),
                Turn::Others => Ok(None),
                Turn::Over => Err(conflict()),
            }
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
            let owed = Owed::new(self, run);
            owed.sent.store(true, Ordering::Relaxed);
            let bodies: Vec<String> = commit.iter().flat_map(|turn| turn.messages).map(json).collect();
            let row = EndRow {
                run: run.to_string(),
                status,
                ended_at: end.ended_at,
                last_seq: end.last_seq.and_then(|seq| i64::try_from(seq).ok()),
                usage: end.usage.as_ref().map(json),
                error: end.error.as_ref().map(json),
                done: end.done.as_ref().map(json),
                calls: Calls::of(&end.calls),
            };
            let sealed = AtomicBool::new(false);
            let (row, bodies, committing) = (&row, &bodies, &sealed);
            let ended = self.to_its_outcome(&sealed, move |attempt| async move {
                let mut db = self.lend().await?;
                let mut ended = match &commit {
                    None => row.write(&mut db).await?,
                    Some(turn) => {
                        let mut work = db.begin().await?;
                        let at = (&*row.run, self.now());
                        let ended = append(turn, at, bodies, &mut work).await? && row.write(&mut work).await?;
                        match ended {
                            true => {
                                committing.store(true, Ordering::Relaxed);
                                work.commit().await?;
                            }
                            false => work.rollback().await?,
                        }
                        ended
                    }
                };
                // The connection may have broken after the first attempt was done, and before that was told.
                if !ended && attempt > 1 {
                    ended = row.is_written(&mut db).await?;
                }
                db.back();
                Ok(ended)
            });
            let ended = ended.await?;
            match ended {
                true => owed.settle(),
                // With a turn: it may still be said that the run failed.
                false if commit.is_none() => owed.settle(),
                false => {}
            }
            if ended { Ok(()) } else { Err(conflict()) }
        })
    }

    fn result<'a>(&'a self, principal: &'a Principal, id: RunId) -> BoxFuture<'a, Result<Option<Box<Done>>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let row = sqlx::query("SELECT done FROM runs WHERE principal = $1 AND id = $2")
                .bind(principal.as_str())
                .bind(id.to_string())
                .fetch_optional(&mut *db)
                .await?;
            db.back();
            row.map_or(Ok(None), |row| row.json("done"))
        }))
    }

    fn run<'a>(&'a self, principal: &'a Principal, id: RunId) -> BoxFuture<'a, Result<Option<RunRecord>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let row = sqlx::query(select_run!("principal = $1 AND id = $2"))
                .bind(principal.as_str())
                .bind(id.to_string())
                .fetch_optional(&mut *db)
                .await?;
            db.back();
            row.map(|row| read_run(&row)).transpose()
        }))
    }

    fn run_by_key<'a>(
        &'a self,
        principal: &'a Principal,
        key: &'a str,
        since: i64,
    ) -> BoxFuture<'a, Result<Option<RunRecord>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let row = sqlx::query(select_run!(
                "principal = $1 AND idem_key = $2 AND created_at >= $3 AND status IN ('running', 'completed') \
                 ORDER BY created_at DESC LIMIT 1"
            ))
            .bind(principal.as_str())
            .bind(key)
            .bind(since)
            .fetch_optional(&mut *db)
            .await?;
            db.back();
            row.map(|row| read_run(&row)).transpose()
        }))
    }

    fn running<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
    ) -> BoxFuture<'a, Result<Vec<RunId>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let ids: Vec<String> = sqlx::query_scalar(
                "SELECT id FROM runs WHERE principal = $1 AND session_id = $2 AND status = 'running' \
                 ORDER BY holds DESC, NOT front, coalesce(arrival, 0), id",
            )
            .bind(principal.as_str())
            .bind(session.as_str())
            .fetch_all(&mut *db)
            .await?;
            db.back();
            ids.iter().map(|id| run_id(id)).collect()
        }))
    }

    fn holder_before(&self, run: RunId) -> BoxFuture<'_, Result<Option<RunId>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let holder: Option<String> = sqlx::query_scalar(
                "SELECT o.id FROM runs r JOIN runs o ON o.principal = r.principal AND o.session_id = r.session_id \
                 WHERE r.id = $1 AND r.status = 'running' AND o.status = 'running' AND o.holds \
                 AND (coalesce(o.arrival, 0), o.id) < (coalesce(r.arrival, 0), r.id)",
            )
            .bind(run.to_string())
            .fetch_optional(&mut *db)
            .await?;
            db.back();
            holder.map(|holder| run_id(&holder)).transpose()
        }))
    }

    fn told<'a>(&'a self, run: RunId, last_seq: u64) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            sqlx::query("UPDATE runs SET last_seq = greatest(coalesce(last_seq, 0), $2) WHERE id = $1 AND status = 'interrupted'")
                .bind(run.to_string())
                .bind(i64::try_from(last_seq).unwrap_or(i64::MAX))
                .execute(&mut *db)
                .await?;
            db.back();
            Ok(())
        }))
    }
}

/// A write that may be done without anybody here knowing: then the run's row must not stay `running` for ever.
struct Owed<'a> {
    store: &'a Postgres,
    run: RunId,
    /// Whether anything went to the server.
    sent: AtomicBool,
    settled: AtomicBool,
}

impl<'a> Owed<'a> {
    fn new(store: &'a Postgres, run: RunId) -> Self {
        store.replica.owned(run);
        Self {
            store,
            run,
            sent: AtomicBool::new(false),
            settled: AtomicBool::new(false),
        }
    }

    /// It is known how it went.
    fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        if self.sent.load(Ordering::Relaxed) && !self.settled.load(Ordering::Relaxed) {
            self.store.replica.owe(self.run);
        }
    }
}

impl Postgres {
    /// Asks once. `None`: whoever was in the way has gone, ask again.
    async fn enter(
        &self,
        run: &RunRecord,
        claim: &SessionClaim<'_>,
        db: &mut PgConnection,
    ) -> Result<Option<Begun>, sqlx::Error> {
        let (key, fingerprint) = run.idempotency.as_ref().map(|(k, f)| (k, f)).unzip();
        // One statement, which waits for no disk: either the run's row and its session's, or neither. The unique indexes
        // decide races: who comes second writes nothing. A session that is there must be the claimed one.
        let entered = sqlx::query(
            "WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)), \
             alive AS (SELECT id FROM replicas WHERE id = $11 AND seen_at > now() - make_interval(secs => $12)), \
             before AS (SELECT EXISTS (SELECT 1 FROM runs WHERE principal = $1 AND session_id = $2 AND status = 'running') AS busy), \
             entered AS (INSERT INTO runs (principal, session_id, id, agent, model, metadata, created_at, idem_key, fingerprint, \
                 binds, status, replica, holds, front) \
                 SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $8 IS NOT NULL, 'running', alive.id, NOT before.busy, $15 \
                 FROM quick, alive, before WHERE ($13 OR NOT before.busy) AND coalesce( \
                     (SELECT ($10::text IS NULL OR s.user_id = $10) AND ($17::text IS NULL OR s.agent = $17) FROM sessions s \
                      WHERE s.principal = $1 AND s.id = $2), $16) \
                 ON CONFLICT DO NOTHING RETURNING holds), \
             made AS (INSERT INTO sessions (principal, id, user_id, agent, metadata, message_count, version, created_at, updated_at) \
                 SELECT $1, $2, coalesce($10, $18), $4, '{}', 0, $14, $7, $7 FROM entered ON CONFLICT DO NOTHING RETURNING version) \
             SELECT holds, coalesce((SELECT version FROM made), \
                 (SELECT version FROM sessions WHERE principal = $1 AND id = $2)) AS version FROM entered",
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
        .bind(claim.user_id)
        .bind(self.replica.id())
        .bind(self.replica.length.as_secs_f64())
        .bind(claim.entry != Entry::Alone)
        .bind(fresh_version())
        .bind(claim.entry == Entry::Front)
        .bind(claim.may_create)
        .bind(claim.agent)
        .bind(NO_USER)
        .fetch_optional(&mut *db)
        .await?;
        if let Some(row) = entered {
            return match (row.try_get("holds")?, row.try_get("version")?) {
                (true, Some(version)) => Ok(Some(Begun::At(version))),
                (false, _) => Ok(Some(Begun::Waiting)),
                // Somebody else made the session in the same moment.
                (true, None) => self.entered_before(run, claim, db).await,
            };
        }
        self.in_the_way(run, claim, db).await
    }

    /// Why nothing was written.
    async fn in_the_way(
        &self,
        run: &RunRecord,
        claim: &SessionClaim<'_>,
        db: &mut PgConnection,
    ) -> Result<Option<Begun>, sqlx::Error> {
        if let Some(begun) = self.entered_before(run, claim, db).await? {
            return Ok(Some(begun));
        }
        if let Some((key, _)) = &run.idempotency {
            // A key that is a day old is free again.
            sqlx::query(
                "UPDATE runs SET binds = false WHERE principal = $1 AND idem_key = $2 AND binds AND created_at < $3",
            )
            .bind(run.principal.as_str())
            .bind(key)
            .bind(run.created_at - KEY_LIFE)
            .execute(&mut *db)
            .await?;
            let known = sqlx::query_scalar("SELECT id FROM runs WHERE principal = $1 AND idem_key = $2 AND binds");
            let known: Option<String> = known
                .bind(run.principal.as_str())
                .bind(key)
                .fetch_optional(&mut *db)
                .await?;
            if let Some(known) = known {
                return run_id(&known).map(|id| Some(Begun::Known(id)));
            }
        }
        let session: Option<(String, String)> =
            sqlx::query_as("SELECT user_id, agent FROM sessions WHERE principal = $1 AND id = $2")
                .bind(run.principal.as_str())
                .bind(run.session_id.as_str())
                .fetch_optional(&mut *db)
                .await?;
        let session = session.as_ref().map(|(user_id, agent)| (&**user_id, &**agent));
        if let Some(refused) = claim.refusal(session) {
            return Ok(Some(refused));
        }
        if claim.entry == Entry::Alone {
            let holder: Option<String> = sqlx::query_scalar(
                "SELECT id FROM runs WHERE principal = $1 AND session_id = $2 AND status = 'running' \
                 ORDER BY holds DESC, NOT front, coalesce(arrival, 0), id LIMIT 1",
            )
            .bind(run.principal.as_str())
            .bind(run.session_id.as_str())
            .fetch_optional(&mut *db)
            .await?;
            if let Some(holder) = holder {
                return run_id(&holder).map(|id| Some(Begun::Busy(id)));
            }
        }
        // This gateway may have been too slow to say that it lives. It does.
        self.replica.beat(db).await?;
        Ok(None)
    }

    /// What became of the run if its row is there: an attempt that did not hear its answer may have written it. A row in
    /// a session that turns out not to be the claimed one is taken away again.
    async fn entered_before(
        &self,
        run: &RunRecord,
        claim: &SessionClaim<'_>,
        db: &mut PgConnection,
    ) -> Result<Option<Begun>, sqlx::Error> {
        let row: Option<(bool, i64, String, String)> = sqlx::query_as(
            "SELECT r.holds, s.version, s.user_id, s.agent FROM runs r JOIN sessions s ON s.principal = r.principal AND s.id = r.session_id \
             WHERE r.id = $1 AND r.replica = $2 AND r.status = 'running'",
        )
        .bind(run.id.to_string())
        .bind(self.replica.id())
        .fetch_optional(&mut *db)
        .await?;
        let Some((holds, version, user_id, agent)) = row else {
            return Ok(None);
        };
        if let Some(refused) = claim.refusal(Some((&user_id, &agent))) {
            let undo = sqlx::query("DELETE FROM runs WHERE id = $1 AND replica = $2");
            undo.bind(run.id.to_string())
                .bind(self.replica.id())
                .execute(db)
                .await?;
            return Ok(Some(refused));
        }
        Ok(Some(if holds { Begun::At(version) } else { Begun::Waiting }))
    }
}

pub(super) fn run_id(text: &str) -> Result<RunId, sqlx::Error> {
    text.parse().map_err(|_| sqlx::Error::Decode("a run's id".into()))
}

/// Whose turn it is.
enum Turn {
    Mine(i64),
    Others,
    /// Not this run's any more.
    Over,
}

async fn take(
    principal: &Principal,
    session: &SessionId,
    run: RunId,
    db: &mut PgConnection,
) -> Result<Turn, sqlx::Error> {
    let taken: Result<Option<i64>, sqlx::Error> = sqlx::query_scalar(
        "UPDATE runs r SET holds = true WHERE r.id = $3 AND r.principal = $1 AND r.session_id = $2 AND r.status = 'running' \
         AND (r.holds OR NOT EXISTS (SELECT 1 FROM runs o WHERE o.principal = $1 AND o.session_id = $2 \
             AND o.status = 'running' AND o.id <> $3 \
             AND (o.holds OR (NOT o.front, coalesce(o.arrival, 0), o.id) < (NOT r.front, coalesce(r.arrival, 0), r.id)))) \
         RETURNING (SELECT version FROM sessions WHERE principal = $1 AND id = $2)",
    )
    .bind(principal.as_str())
    .bind(session.as_str())
    .bind(run.to_string())
    .fetch_optional(&mut *db)
    .await;
    match taken {
        Ok(Some(version)) => return Ok(Turn::Mine(version)),
        Ok(None) => {}
        // Two took it at once, and the index let the other one have it.
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => return Ok(Turn::Others),
        Err(error) => return Err(error),
    }
    let waits: Option<bool> = sqlx::query_scalar(
        "SELECT true FROM runs WHERE id = $3 AND principal = $1 AND session_id = $2 AND status = 'running'",
    )
    .bind(principal.as_str())
    .bind(session.as_str())
    .bind(run.to_string())
    .fetch_optional(db)
    .await?;
    Ok(waits.map_or(Turn::Over, |_| Turn::Others))
}

/// Adds a turn, if the session is still the one that was loaded. Its row is locked first, as by whoever erases it.
async fn append(
    turn: &Commit<'_>,
    (run, now): (&str, i64),
    bodies: &[String],
    db: &mut PgConnection,
) -> Result<bool, sqlx::Error> {
    let count = bodies.len() as i64;
    let moved: Option<i64> = sqlx::query_scalar(
        "UPDATE sessions SET version = greatest(version + 1, $4), message_count = message_count + $5, updated_at = $6 \
         WHERE principal = $1 AND id = $2 AND version = $3 RETURNING message_count",
    )
    .bind(turn.principal.as_str())
    .bind(turn.session.as_str())
    .bind(turn.after_version)
    .bind(fresh_version())
    .bind(count)
    .bind(now)
    .fetch_optional(&mut *db)
    .await?;
    let Some(total) = moved else { return Ok(false) };
    sqlx::query(
        "INSERT INTO messages (principal, session_id, seq, run_id, status, created_at, body) \
         SELECT $1, $2, $3 + number - 1, $4, $5, $6, body FROM unnest($7::text[]) WITH ORDINALITY AS said (body, number)",
    )
    .bind(turn.principal.as_str())
    .bind(turn.session.as_str())
    .bind(total - count)
    .bind(run)
    .bind(status_word(turn.status))
    .bind(now)
    .bind(bodies)
    .execute(db)
    .await?;
    Ok(true)
}

struct EndRow {
    run: String,
    status: RunStatus,
    ended_at: i64,
    last_seq: Option<i64>,
    usage: Option<String>,
    error: Option<String>,
    done: Option<String>,
    calls: Calls,
}

/// Model calls, by column.
#[derive(Default)]
struct Calls {
    rounds: Vec<i32>,
    models: Vec<String>,
    input: Vec<Option<i64>>,
    output: Vec<Option<i64>>,
    cached: Vec<Option<i64>>,
    reasoning: Vec<Option<i64>>,
    estimated: Vec<bool>,
}

impl Calls {
    fn of(calls: &[ModelCall]) -> Self {
        let number = |number: Option<u64>| number.and_then(|number| i64::try_from(number).ok());
        let mut columns = Self::default();
        for call in calls {
            columns.rounds.push(i32::try_from(call.round).unwrap_or(i32::MAX));
            columns.models.push(call.model.clone());
            columns.input.push(number(call.usage.input_tokens));
            columns.output.push(number(call.usage.output_tokens));
            columns.cached.push(number(call.usage.cached_input_tokens));
            columns.reasoning.push(number(call.usage.reasoning_tokens));
            columns.estimated.push(call.usage.estimated);
        }
        columns
    }
}

impl EndRow {
    /// Writes how the run ended and what its calls cost, if it is still running.
    async fn write(&self, db: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let ended: i64 = sqlx::query_scalar(
            "WITH ended AS (UPDATE runs SET status = $2, ended_at = $3, last_seq = $4, usage = $5, error = $6, done = $7, \
                 binds = binds AND $2 = 'completed' WHERE id = $1 AND status = 'running' RETURNING id), \
             calls AS (INSERT INTO model_calls (run_id, round, model, input_tokens, output_tokens, cached_input_tokens, \
                 reasoning_tokens, estimated, ended_at) SELECT ended.id, call.*, $3 FROM ended, \
                 unnest($8::int[], $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bool[]) \
                 AS call ON CONFLICT DO NOTHING) \
             SELECT count(*) FROM ended",
        )
        .bind(&self.run)
        .bind(self.status.as_str())
        .bind(self.ended_at)
        .bind(self.last_seq)
        .bind(&self.usage)
        .bind(&self.error)
        .bind(&self.done)
        .bind(&self.calls.rounds)
        .bind(&self.calls.models)
        .bind(&self.calls.input)
        .bind(&self.calls.output)
        .bind(&self.calls.cached)
        .bind(&self.calls.reasoning)
        .bind(&self.calls.estimated)
        .fetch_one(db)
        .await?;
        Ok(ended > 0)
    }

    /// Whether this is how the row says that the run ended.
    async fn is_written(&self, db: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let written: Option<bool> = sqlx::query_scalar(
            "SELECT true FROM runs WHERE id = $1 AND status = $2 AND ended_at = $3 \
             AND last_seq IS NOT DISTINCT FROM $4",
        )
        .bind(&self.run)
        .bind(self.status.as_str())
        .bind(self.ended_at)
        .bind(self.last_seq)
        .fetch_optional(db)
        .await?;
        Ok(written.is_some())
    }
}

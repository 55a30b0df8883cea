//! Notices between gateways, in PostgreSQL.

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::{Connection, Row, postgres::PgRow};

use super::{Postgres, runs::run_id};
use crate::{
    chat::{Principal, RunId, SessionId},
    error::Error,
    store::notice::{Erasure, Holder, NoticeStore, Notices},
};

/// An erasure's columns. `$2` is the lease in seconds: a gateway whose lease is over is not waited
/// for.
macro_rules! select_erasures {
    ($which:literal) => {
        concat!(
            "SELECT e.id, e.replica IS NULL AS relay, e.runs, \
             greatest(extract(epoch FROM clock_timestamp() - e.erased_at), 0)::double precision AS age \
             FROM erasures e WHERE ",
            $which,
            " ORDER BY e.id LIMIT 100"
        )
    };
}

impl NoticeStore for Postgres {
    fn request_stop(&self, run: RunId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            sqlx::query("UPDATE runs SET stop_requested = true WHERE id = $1 AND status = 'running'")
                .bind(run.to_string())
                .execute(&mut *db)
                .await?;
            db.back();
            Ok(())
        }))
    }

    fn notices(&self) -> BoxFuture<'_, Result<Notices, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let stops: Vec<String> =
                sqlx::query_scalar("SELECT id FROM runs WHERE replica = $1 AND status = 'running' AND stop_requested")
                    .bind(self.replica.id())
                    .fetch_all(&mut *db)
                    .await?;
            // The relay's turn comes after all gateways, because a gateway may still be writing to
            // it.
            let erasures = sqlx::query(select_erasures!(
                "e.replica = $1 OR (e.replica IS NULL AND NOT EXISTS (SELECT 1 FROM erasures o \
                 JOIN replicas p ON p.id = o.replica AND p.seen_at >= now() - make_interval(secs => $2) \
                 WHERE o.principal = e.principal AND o.session_id = e.session_id))"
            ))
            .bind(self.replica.id())
            .bind(self.replica.length.as_secs_f64())
            .fetch_all(&mut *db)
            .await?;
            db.back();
            Ok(Notices {
                stops: stops.iter().map(|id| run_id(id)).collect::<Result<_, _>>()?,
                erasures: erasures.iter().map(read_erasure).collect::<Result<_, _>>()?,
                given_up: self.replica.given_up(),
            })
        }))
    }

    fn unsettled<'a>(
        &'a self,
        principal: &'a Principal,
        session: &'a SessionId,
    ) -> BoxFuture<'a, Result<Vec<Erasure>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let rows = sqlx::query(select_erasures!(
                "e.principal = $1 AND e.session_id = $3 AND (e.replica IS NULL OR EXISTS \
                 (SELECT 1 FROM replicas p WHERE p.id = e.replica \
                  AND p.seen_at >= now() - make_interval(secs => $2)))"
            ))
            .bind(principal.as_str())
            .bind(self.replica.length.as_secs_f64())
            .bind(session.as_str())
            .fetch_all(&mut *db)
            .await?;
            db.back();
            rows.iter().map(read_erasure).collect()
        }))
    }

    fn settle<'a>(&'a self, erasures: &'a [i64]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            sqlx::query("DELETE FROM erasures WHERE id = ANY($1)")
                .bind(erasures)
                .execute(&mut *db)
                .await?;
            db.back();
            Ok(())
        }))
    }
}

fn read_erasure(row: &PgRow) -> Result<Erasure, sqlx::Error> {
    let runs: Vec<String> = row.try_get("runs")?;
    let relay: bool = row.try_get("relay")?;
    let age: f64 = row.try_get("age")?;
    Ok(Erasure {
        id: row.try_get("id")?,
        holder: if relay { Holder::Relay } else { Holder::Gateway },
        runs: runs.iter().map(|id| run_id(id)).collect::<Result<_, _>>()?,
        age: Duration::try_from_secs_f64(age).unwrap_or_default(),
    })
}

impl Postgres {
    /// Erases a session, and leaves a notice for every other gateway and for the relay in the same
    /// transaction.
    pub(super) async fn erase_session(&self, principal: &Principal, session: &SessionId) -> Result<(), sqlx::Error> {
        let mut db = self.lend().await?;
        let mut work = db.begin().await?;
        // The lock keeps new runs out until the session is gone: such a run begins a new session.
        let locked = sqlx::query("SELECT 1 FROM sessions WHERE principal = $1 AND id = $2 FOR UPDATE")
            .bind(principal.as_str())
            .bind(session.as_str())
            .fetch_optional(&mut *work)
            .await?;
        if locked.is_some() {
            sqlx::query(
                "INSERT INTO erasures (principal, session_id, replica, runs) SELECT $1, $2, holder.id, gone.runs \
                 FROM (SELECT array_agg(id) AS runs FROM runs WHERE principal = $1 AND session_id = $2) gone, \
                 (SELECT id FROM replicas WHERE id <> $3 UNION ALL SELECT NULL) holder WHERE gone.runs IS NOT NULL",
            )
            .bind(principal.as_str())
            .bind(session.as_str())
            .bind(self.replica.id())
            .execute(&mut *work)
            .await?;
            sqlx::query("DELETE FROM sessions WHERE principal = $1 AND id = $2") // and by cascade its rows
                .bind(principal.as_str())
                .bind(session.as_str())
                .execute(&mut *work)
                .await?;
        }
        work.commit().await?;
        db.back();
        Ok(())
    }
}

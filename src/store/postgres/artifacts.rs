//! The records of files, in PostgreSQL.

use futures_util::future::BoxFuture;

use super::Postgres;
use crate::{
    chat::{ArtifactId, Principal, SessionId},
    error::Error,
    store::{
        artifact::{ArtifactRecord, ArtifactStore, Due},
        sql::{read_artifact, read_due},
    },
};

/// An announcement that is repeated, because its answer was lost, is the same one.
macro_rules! announce {
    ($from:literal) => {
        concat!(
            "INSERT INTO artifacts (id, principal, session_id, run_id, name, media_type, size, sha256, created_at, ready, \
             erase_after) SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, false, $10 ",
            $from,
            " ON CONFLICT (id) DO UPDATE SET erase_after = excluded.erase_after WHERE NOT artifacts.ready"
        )
    };
}

impl ArtifactStore for Postgres {
    fn announce<'a>(&'a self, record: &'a ArtifactRecord, erase_after: i64) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let artifact = &record.artifact;
            let announce = match record.session_id {
                None => announce!(""),
                // Who erases the session waits for this lock, or this waits for them and finds nothing.
                Some(_) => announce!(
                    "FROM sessions s WHERE s.principal = $2 AND s.id = $3 AND EXISTS (SELECT 1 FROM runs r \
                     WHERE r.id = $4 AND r.principal = $2 AND r.session_id = $3) FOR KEY SHARE"
                ),
            };
            let announced = sqlx::query(announce)
                .bind(artifact.id.to_string())
                .bind(record.principal.as_str())
                .bind(record.session_id.as_ref().map(SessionId::as_str))
                .bind(record.run_id.to_string())
                .bind(&artifact.name)
                .bind(&artifact.media_type)
                .bind(i64::try_from(artifact.size).unwrap_or(i64::MAX))
                .bind(&artifact.sha256)
                .bind(record.created_at)
                .bind(erase_after)
                .execute(&mut *db)
                .await?;
            db.back();
            Ok(announced.rows_affected() > 0)
        }))
    }

    fn keep<'a>(&'a self, record: &'a ArtifactRecord, erase_after: Option<i64>) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.patiently(move |attempt| async move {
            let mut db = self.lend().await?;
            // A second attempt may find that the first one was done.
            let kept = sqlx::query(
                "UPDATE artifacts SET ready = true, erase_after = $1 WHERE id = $2 AND session_id IS NOT DISTINCT FROM $3 \
                 AND ((NOT ready AND erase_after > $4) OR ($5 AND ready AND erase_after IS NOT DISTINCT FROM $1))",
            )
            .bind(erase_after)
            .bind(record.artifact.id.to_string())
            .bind(record.session_id.as_ref().map(SessionId::as_str))
            .bind(self.replica.clock.now())
            .bind(attempt > 1)
            .execute(&mut *db)
            .await?;
            db.back();
            Ok(kept.rows_affected() > 0)
        }))
    }

    fn shorten<'a>(&'a self, ids: &'a [ArtifactId], erase_after: i64) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.patiently(move |_| async move {
            let ids: Vec<String> = ids.iter().map(ArtifactId::to_string).collect();
            let mut db = self.lend().await?;
            sqlx::query(
                "UPDATE artifacts SET erase_after = $2 WHERE id = ANY($1) AND ready AND session_id IS NULL AND erase_after > $2",
            )
            .bind(ids)
            .bind(erase_after)
            .execute(&mut *db)
            .await?;
            db.back();
            Ok(())
        }))
    }

    fn artifact<'a>(
        &'a self,
        principal: &'a Principal,
        id: ArtifactId,
    ) -> BoxFuture<'a, Result<Option<ArtifactRecord>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let row = sqlx::query(
                "SELECT id, principal, session_id, run_id, name, media_type, size, sha256, created_at FROM artifacts \
                 WHERE principal = $1 AND id = $2 AND ready AND (erase_after IS NULL OR erase_after > $3)",
            )
            .bind(principal.as_str())
            .bind(id.to_string())
            .bind(self.replica.clock.now())
            .fetch_optional(&mut *db)
            .await?;
            db.back();
            row.map(|row| read_artifact(&row)).transpose()
        }))
    }

    fn due(&self, now: i64, after: Option<Due>, limit: u32) -> BoxFuture<'_, Result<Vec<Due>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let (time, id) = after.map_or((i64::MIN, String::new()), |due| (due.erase_after, due.id.to_string()));
            let mut db = self.lend().await?;
            let rows = sqlx::query(
                "SELECT erase_after, id FROM artifacts WHERE erase_after <= $1 AND (erase_after, id) > ($2, $3) \
                 ORDER BY erase_after, id LIMIT $4",
            )
            .bind(now)
            .bind(time)
            .bind(id)
            .bind(i64::from(limit))
            .fetch_all(&mut *db)
            .await?;
            db.back();
            rows.iter().map(read_due).collect()
        }))
    }

    fn forget<'a>(&'a self, gone: &'a [Due]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.patiently(move |_| async move {
            let (ids, times): (Vec<_>, Vec<_>) = gone.iter().map(|due| (due.id.to_string(), due.erase_after)).unzip();
            let mut db = self.lend().await?;
            sqlx::query(
                "DELETE FROM artifacts a USING unnest($1::text[], $2::bigint[]) AS gone (id, erase_after) \
                 WHERE a.id = gone.id AND a.erase_after = gone.erase_after",
            )
            .bind(ids)
            .bind(times)
            .execute(&mut *db)
            .await?;
            db.back();
            Ok(())
        }))
    }
}

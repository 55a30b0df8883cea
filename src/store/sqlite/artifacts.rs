//! The records of files, in SQLite.

use futures_util::future::BoxFuture;
use sqlx::SqliteConnection;

use super::{Op, Sqlite};
use crate::{
    chat::{ArtifactId, Principal, SessionId},
    error::Error,
    store::{
        artifact::{ArtifactRecord, ArtifactStore, Due},
        sql::{broken, read_artifact, read_due},
    },
};

/// What is written of files.
pub(super) enum ArtifactOp {
    Announce {
        record: Box<ArtifactRecord>,
        erase_after: i64,
    },
    Keep {
        id: ArtifactId,
        session: Option<SessionId>,
        erase_after: Option<i64>,
    },
    Shorten {
        ids: Vec<ArtifactId>,
        erase_after: i64,
    },
    Forget(Vec<Due>),
}

impl ArtifactOp {
    /// Writes it; the number is how many rows it met.
    pub(super) async fn apply(&self, now: i64, db: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
        let done = match self {
            ArtifactOp::Announce { record, erase_after } => {
                let artifact = &record.artifact;
                sqlx::query(
                    "INSERT INTO artifacts (id, principal, session_id, run_id, name, media_type, size, sha256, created_at, ready, erase_after) \
                     SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, ?10 \
                     WHERE ?3 IS NULL OR EXISTS (SELECT 1 FROM runs WHERE id = ?4 AND principal = ?2 AND session_id = ?3)",
                )
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
                .execute(db)
                .await?
            }
            ArtifactOp::Keep {
                id,
                session,
                erase_after,
            } => {
                sqlx::query(
                    "UPDATE artifacts SET ready = 1, erase_after = ? \
                     WHERE id = ? AND ready = 0 AND erase_after > ? AND session_id IS ?",
                )
                .bind(erase_after)
                .bind(id.to_string())
                .bind(now)
                .bind(session.as_ref().map(SessionId::as_str))
                .execute(db)
                .await?
            }
            ArtifactOp::Shorten { ids, erase_after } => {
                for id in ids {
                    sqlx::query(
                        "UPDATE artifacts SET erase_after = ?1 \
                         WHERE id = ?2 AND ready = 1 AND session_id IS NULL AND erase_after > ?1",
                    )
                    .bind(erase_after)
                    .bind(id.to_string())
                    .execute(&mut *db)
                    .await?;
                }
                return Ok(0);
            }
            ArtifactOp::Forget(gone) => {
                for due in gone {
                    sqlx::query("DELETE FROM artifacts WHERE id = ? AND erase_after = ?")
                        .bind(due.id.to_string())
                        .bind(due.erase_after)
                        .execute(&mut *db)
                        .await?;
                }
                return Ok(0);
            }
        };
        Ok(done.rows_affected().cast_signed())
    }
}

impl ArtifactStore for Sqlite {
    fn announce<'a>(&'a self, record: &'a ArtifactRecord, erase_after: i64) -> BoxFuture<'a, Result<bool, Error>> {
        let record = Box::new(record.clone());
        Box::pin(async move {
            let op = ArtifactOp::Announce { record, erase_after };
            self.write(Op::Artifact(op)).await.map(|rows| rows > 0)
        })
    }

    fn keep<'a>(&'a self, record: &'a ArtifactRecord, erase_after: Option<i64>) -> BoxFuture<'a, Result<bool, Error>> {
        let op = ArtifactOp::Keep {
            id: record.artifact.id,
            session: record.session_id.clone(),
            erase_after,
        };
        Box::pin(async move { self.write(Op::Artifact(op)).await.map(|rows| rows > 0) })
    }

    fn shorten<'a>(&'a self, ids: &'a [ArtifactId], erase_after: i64) -> BoxFuture<'a, Result<(), Error>> {
        let ids = ids.to_vec();
        Box::pin(async move {
            let op = ArtifactOp::Shorten { ids, erase_after };
            self.write(Op::Artifact(op)).await.map(drop)
        })
    }

    fn artifact<'a>(
        &'a self,
        principal: &'a Principal,
        id: ArtifactId,
    ) -> BoxFuture<'a, Result<Option<ArtifactRecord>, Error>> {
        Box::pin(async move {
            let found = sqlx::query(
                "SELECT * FROM artifacts WHERE principal = ? AND id = ? AND ready = 1 AND (erase_after IS NULL OR erase_after > ?)",
            )
            .bind(principal.as_str())
            .bind(id.to_string())
            .bind(jiff::Timestamp::now().as_millisecond())
            .fetch_optional(&self.reads)
            .await;
            found
                .and_then(|row| row.map(|row| read_artifact(&row)).transpose())
                .map_err(|e| broken(&e))
        })
    }

    fn due(&self, now: i64, after: Option<Due>, limit: u32) -> BoxFuture<'_, Result<Vec<Due>, Error>> {
        Box::pin(async move {
            let (time, id) = after.map_or((i64::MIN, String::new()), |due| (due.erase_after, due.id.to_string()));
            let rows = sqlx::query(
                "SELECT erase_after, id FROM artifacts WHERE erase_after <= ? AND (erase_after, id) > (?, ?) \
                 ORDER BY erase_after, id LIMIT ?",
            )
            .bind(now)
            .bind(time)
            .bind(id)
            .bind(limit)
            .fetch_all(&self.reads)
            .await;
            rows.and_then(|rows| rows.iter().map(read_due).collect())
                .map_err(|e| broken(&e))
        })
    }

    fn forget<'a>(&'a self, gone: &'a [Due]) -> BoxFuture<'a, Result<(), Error>> {
        let op = ArtifactOp::Forget(gone.to_vec());
        Box::pin(async move { self.write(Op::Artifact(op)).await.map(drop) })
    }
}

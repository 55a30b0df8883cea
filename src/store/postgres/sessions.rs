//! Sessions in PostgreSQL. One statement each wherever one will do: a statement is a transaction, and one way.

use futures_util::{TryStreamExt, future::BoxFuture};
use sqlx::Connection;

use super::Postgres;
use crate::{
    chat::{Principal, SessionId},
    error::{Error, ErrorCode},
    store::{
        MessagePage, ReadFrom, ReadLimit, Session, SessionPage, SessionStore,
        sql::{PageRows, fresh_version, json, messages_statement, read_limits, read_session},
    },
};

/// The most sessions that are erased in one transaction.
const BATCH: i64 = 500;

impl SessionStore for Postgres {
    fn create<'a>(&'a self, principal: &'a Principal, session: Session) -> BoxFuture<'a, Result<Session, Error>> {
        Box::pin(async move {
            let (wanted, metadata) = (&session, &json(&session.metadata));
            self.patiently(move |_| async move {
                let mut db = self.lend().await?;
                sqlx::query(
                    "INSERT INTO sessions (principal, id, user_id, agent, metadata, message_count, version, created_at, updated_at) \
                     VALUES ($1, $2, $3, $4, $5, 0, $6, $7, $8) ON CONFLICT DO NOTHING",
                )
                .bind(principal.as_str())
                .bind(wanted.id.as_str())
                .bind(&wanted.user_id)
                .bind(&wanted.agent)
                .bind(metadata)
                .bind(fresh_version())
                .bind(wanted.created_at)
                .bind(wanted.updated_at)
                .execute(&mut *db)
                .await?;
                db.back();
                Ok(())
            })
            .await?;
            let made = self.session(principal, &session.id).await?;
            made.ok_or_else(|| Error::new(ErrorCode::StoreUnavailable, "The session was erased while it was made."))
        })
    }

    fn session<'a>(
        &'a self,
        principal: &'a Principal,
        id: &'a SessionId,
    ) -> BoxFuture<'a, Result<Option<Session>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let row = sqlx::query(
                "SELECT id, user_id, agent, metadata, message_count, version, created_at, updated_at FROM sessions \
                 WHERE principal = $1 AND id = $2",
            )
            .bind(principal.as_str())
            .bind(id.as_str())
            .fetch_optional(&mut *db)
            .await?;
            db.back();
            row.map(|row| read_session(&row)).transpose()
        }))
    }

    fn messages<'a>(
        &'a self,
        principal: &'a Principal,
        id: &'a SessionId,
        from: ReadFrom,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Option<MessagePage>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let (statement, start) = messages_statement(from);
            let (count, bytes) = read_limits(limit);
            let mut page = PageRows::default();
            let mut rows = sqlx::query(statement)
                .bind(principal.as_str())
                .bind(id.as_str())
                .bind(start)
                .bind(count)
                .bind(bytes)
                .fetch(&mut *db);
            while let Some(row) = rows.try_next().await? {
                page.push(&row)?;
            }
            drop(rows);
            db.back();
            Ok(page.page(from))
        }))
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
            let sessions = self.patiently(move |_| async move {
                let mut db = self.lend().await?;
                let rows = sqlx::query(
                    "SELECT id, user_id, agent, metadata, message_count, version, created_at, updated_at FROM sessions \
                     WHERE principal = $1 AND ($2::text IS NULL OR user_id = $2) AND (created_at, id) < ($3, $4) \
                     ORDER BY created_at DESC, id DESC LIMIT $5",
                )
                .bind(principal.as_str())
                .bind(user_id)
                .bind(time)
                .bind(id)
                .bind(i64::from(limit) + 1)
                .fetch_all(&mut *db)
                .await?;
                db.back();
                rows.iter().map(read_session).collect::<Result<Vec<_>, _>>()
            });
            Ok(SessionPage::cut(sessions.await?, limit))
        })
    }

    fn delete<'a>(&'a self, principal: &'a Principal, id: &'a SessionId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.patiently(move |_| self.erase_session(principal, id)))
    }

    fn expire(&self, before: i64) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async move {
            let mut erased = 0;
            loop {
                let (looked_at, gone) = self.patiently(move |_| self.expire_some(before)).await?;
                erased += gone;
                // What is locked or busy is left for the next time, so a batch that erased nothing must be the last one.
                if looked_at < BATCH.unsigned_abs() || gone == 0 {
                    return Ok(erased);
                }
            }
        })
    }
}

impl Postgres {
    /// Erases at most a batch of idle sessions. Returns how many there were, and how many are gone.
    async fn expire_some(&self, before: i64) -> Result<(u64, u64), sqlx::Error> {
        let mut db = self.lend().await?;
        let mut work = db.begin().await?;
        // Locked first and looked at then, in two statements: whoever began a run before the lock is seen by the second
        // one, and whoever comes later waits for the lock and finds no session.
        let idle: Vec<(String, String)> = sqlx::query_as(
            "SELECT principal, id FROM sessions s WHERE updated_at < $1 AND NOT EXISTS (SELECT 1 FROM runs r \
             WHERE r.principal = s.principal AND r.session_id = s.id AND r.status = 'running') \
             ORDER BY updated_at LIMIT $2 FOR UPDATE SKIP LOCKED",
        )
        .bind(before)
        .bind(BATCH)
        .fetch_all(&mut *work)
        .await?;
        let looked_at = idle.len() as u64;
        let (principals, ids): (Vec<_>, Vec<_>) = idle.into_iter().unzip();
        let gone = sqlx::query(
            "DELETE FROM sessions s USING unnest($1::text[], $2::text[]) AS idle (principal, id) \
             WHERE s.principal = idle.principal AND s.id = idle.id AND NOT EXISTS (SELECT 1 FROM runs r \
             WHERE r.principal = s.principal AND r.session_id = s.id AND r.status = 'running')",
        )
        .bind(principals)
        .bind(ids)
        .execute(&mut *work)
        .await?;
        work.commit().await?;
        db.back();
        Ok((looked_at, gone.rows_affected()))
    }
}

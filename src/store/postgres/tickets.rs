//! Tickets, in PostgreSQL.

use futures_util::future::BoxFuture;

use super::Postgres;
use crate::{
    chat::RunId,
    error::Error,
    store::{
        sql::{json, read_ticket},
        ticket::{TicketRecord, TicketStore, TicketUse},
    },
};

impl TicketStore for Postgres {
    fn issue<'a>(&'a self, ticket: &'a TicketRecord, most: u32) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(self.patiently(move |attempt| async move {
            let mut db = self.lend().await?;
            // Two who come at once may both find room for the last one; the bound is there for thousands.
            let issued = sqlx::query(
                "INSERT INTO tickets (id, principal, credential, expires_at, erase_after, binding) \
                 SELECT $1, $2, $3, $4, $4, $8 WHERE (SELECT count(*) FROM tickets WHERE principal = $2 AND used_at IS NULL AND expires_at > $5) < $6 \
                 ON CONFLICT (id) DO UPDATE SET id = excluded.id WHERE $7",
            )
            .bind(&ticket.id)
            .bind(ticket.principal.as_str())
            .bind(&ticket.credential)
            .bind(ticket.expires_at)
            .bind(self.replica.clock.now())
            .bind(i64::from(most))
            .bind(attempt > 1) // the first attempt was done, and its answer was lost
            .bind(json(&ticket.binding))
            .execute(&mut *db)
            .await?;
            db.back();
            Ok(issued.rows_affected() > 0)
        }))
    }

    fn ticket<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<TicketRecord>, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            let row = sqlx::query("SELECT * FROM tickets WHERE id = $1")
                .bind(id)
                .fetch_optional(&mut *db)
                .await?;
            db.back();
            row.map(|row| read_ticket(&row)).transpose()
        }))
    }

    fn claim<'a>(&'a self, id: &'a str, used: &'a TicketUse, erase_after: i64) -> BoxFuture<'a, Result<bool, Error>> {
        // Whoever asks again because the answer was lost must know their own claim from another's of the same moment.
        let claim = uuid::Uuid::new_v4().to_string();
        Box::pin(async move {
            let claim = &claim;
            self.patiently(move |_| async move {
                let mut db = self.lend().await?;
                let claimed = sqlx::query(
                    "UPDATE tickets SET used_at = $1, request = $2, erase_after = $3, claim = $5 \
                     WHERE id = $4 AND ((used_at IS NULL AND expires_at > $1) OR claim = $5)",
                )
                .bind(used.at)
                .bind(&used.request)
                .bind(erase_after)
                .bind(id)
                .bind(claim)
                .execute(&mut *db)
                .await?;
                db.back();
                Ok(claimed.rows_affected() > 0)
            })
            .await
        })
    }

    fn tie<'a>(&'a self, id: &'a str, run: RunId) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            sqlx::query("UPDATE tickets SET run_id = $1 WHERE id = $2 AND used_at IS NOT NULL AND run_id IS NULL")
                .bind(run.to_string())
                .bind(id)
                .execute(&mut *db)
                .await?;
            db.back();
            Ok(())
        }))
    }

    fn give_back<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            sqlx::query(
                "UPDATE tickets SET used_at = NULL, request = NULL, claim = NULL, erase_after = expires_at \
                 WHERE id = $1 AND run_id IS NULL",
            )
            .bind(id)
            .execute(&mut *db)
            .await?;
            db.back();
            Ok(())
        }))
    }

    fn sweep_tickets(&self, now: i64) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(self.patiently(move |_| async move {
            let mut db = self.lend().await?;
            // Gateways sweep at the same time; none waits for another.
            let swept = sqlx::query(
                "DELETE FROM tickets WHERE id IN \
                 (SELECT id FROM tickets WHERE erase_after <= $1 FOR UPDATE SKIP LOCKED)",
            )
            .bind(now)
            .execute(&mut *db)
            .await?;
            db.back();
            Ok(swept.rows_affected())
        }))
    }
}

//! Tickets, in SQLite.

use futures_util::future::BoxFuture;
use sqlx::SqliteConnection;

use super::{Op, Sqlite};
use crate::{
    chat::RunId,
    error::Error,
    store::{
        sql::{broken, json, read_ticket},
        ticket::{TicketRecord, TicketStore, TicketUse},
    },
};

/// What is written of tickets.
pub(super) enum TicketOp {
    Issue {
        ticket: Box<TicketRecord>,
        most: u32,
    },
    Claim {
        id: String,
        used: TicketUse,
        erase_after: i64,
    },
    Tie {
        id: String,
        run: RunId,
    },
    GiveBack(String),
    Sweep(i64),
}

impl TicketOp {
    /// Writes it; the number is how many rows it met.
    pub(super) async fn apply(&self, now: i64, db: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
        let done = match self {
            TicketOp::Issue { ticket, most } => {
                sqlx::query(
                    "INSERT INTO tickets (id, principal, credential, expires_at, erase_after, binding) \
                     SELECT ?1, ?2, ?3, ?4, ?4, ?7 WHERE (SELECT count(*) FROM tickets WHERE principal = ?2 AND used_at IS NULL AND expires_at > ?5) < ?6",
                )
                .bind(&ticket.id)
                .bind(ticket.principal.as_str())
                .bind(&ticket.credential)
                .bind(ticket.expires_at)
                .bind(now)
                .bind(most)
                .bind(json(&ticket.binding))
                .execute(db)
                .await?
            }
            TicketOp::Claim { id, used, erase_after } => {
                sqlx::query(
                    "UPDATE tickets SET used_at = ?1, request = ?2, erase_after = ?3 \
                     WHERE id = ?4 AND used_at IS NULL AND expires_at > ?1",
                )
                .bind(used.at)
                .bind(&used.request)
                .bind(erase_after)
                .bind(id)
                .execute(db)
                .await?
            }
            TicketOp::Tie { id, run } => {
                sqlx::query("UPDATE tickets SET run_id = ? WHERE id = ? AND used_at IS NOT NULL AND run_id IS NULL")
                    .bind(run.to_string())
                    .bind(id)
                    .execute(db)
                    .await?
            }
            TicketOp::GiveBack(id) => {
                sqlx::query(
                    "UPDATE tickets SET used_at = NULL, request = NULL, erase_after = expires_at \
                     WHERE id = ? AND run_id IS NULL",
                )
                .bind(id)
                .execute(db)
                .await?
            }
            TicketOp::Sweep(now) => {
                let over = sqlx::query("DELETE FROM tickets WHERE erase_after <= ?");
                over.bind(now).execute(db).await?
            }
        };
        Ok(done.rows_affected().cast_signed())
    }
}

impl TicketStore for Sqlite {
    fn issue<'a>(&'a self, ticket: &'a TicketRecord, most: u32) -> BoxFuture<'a, Result<bool, Error>> {
        let ticket = Box::new(ticket.clone());
        Box::pin(async move {
            let op = TicketOp::Issue { ticket, most };
            self.write(Op::Ticket(op)).await.map(|rows| rows > 0)
        })
    }

    fn ticket<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<TicketRecord>, Error>> {
        Box::pin(async move {
            let found = sqlx::query("SELECT * FROM tickets WHERE id = ?").bind(id);
            let row = found.fetch_optional(&self.reads).await;
            row.and_then(|row| row.map(|row| read_ticket(&row)).transpose())
                .map_err(|e| broken(&e))
        })
    }

    fn claim<'a>(&'a self, id: &'a str, used: &'a TicketUse, erase_after: i64) -> BoxFuture<'a, Result<bool, Error>> {
        let op = TicketOp::Claim {
            id: id.to_owned(),
            used: used.clone(),
            erase_after,
        };
        Box::pin(async move { self.write(Op::Ticket(op)).await.map(|rows| rows > 0) })
    }

    fn tie<'a>(&'a self, id: &'a str, run: RunId) -> BoxFuture<'a, Result<(), Error>> {
        let op = TicketOp::Tie { id: id.to_owned(), run };
        Box::pin(async move { self.write(Op::Ticket(op)).await.map(drop) })
    }

    fn give_back<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        let op = TicketOp::GiveBack(id.to_owned());
        Box::pin(async move { self.write(Op::Ticket(op)).await.map(drop) })
    }

    fn sweep_tickets(&self, now: i64) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async move {
            let swept = self.write(Op::Ticket(TicketOp::Sweep(now))).await;
            swept.map(i64::unsigned_abs)
        })
    }
}

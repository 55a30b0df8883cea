//! What stores in SQL have in common: how rows become values, and values text. Where they differ is their own.

use std::str::FromStr;

use serde::{Serialize, de::DeserializeOwned};

use super::{
    ArtifactRecord, MessageStatus, RunEnd, RunRecord, RunStatus, Session, StoredMessage, TicketRecord, TicketUse,
    artifact::Due, counted::Fault,
};
use crate::{
    chat::{Artifact, Principal},
    error::{Error, ErrorCode},
};

/// A row's columns, by name.
pub(super) trait Columns {
    fn text(&self, column: &'static str) -> Result<Option<String>, sqlx::Error>;
    fn number(&self, column: &'static str) -> Result<Option<i64>, sqlx::Error>;
}

fn text(row: &impl Columns, column: &'static str) -> Result<String, sqlx::Error> {
    row.text(column)?.ok_or_else(|| missing(column))
}

fn number(row: &impl Columns, column: &'static str) -> Result<i64, sqlx::Error> {
    row.number(column)?.ok_or_else(|| missing(column))
}

fn missing(column: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(format!("there is no {column}").into())
}

/// A column that holds one of our ids.
pub(super) fn word<T: FromStr>(row: &impl Columns, column: &'static str) -> Result<T, sqlx::Error> {
    text(row, column)?
        .parse()
        .map_err(|_| sqlx::Error::Decode(format!("{column} is not an id").into()))
}

pub(super) fn read_session(row: &impl Columns) -> Result<Session, sqlx::Error> {
    Ok(Session {
        id: word(row, "id")?,
        user_id: text(row, "user_id")?,
        agent: text(row, "agent")?,
        metadata: parse(&text(row, "metadata")?)?,
        message_count: number(row, "message_count")?.unsigned_abs(),
        version: number(row, "version")?,
        created_at: number(row, "created_at")?,
        updated_at: number(row, "updated_at")?,
    })
}

pub(super) fn read_message(row: &impl Columns) -> Result<StoredMessage, sqlx::Error> {
    Ok(StoredMessage {
        message: parse(&text(row, "body")?)?,
        run_id: word(row, "run_id")?,
        status: if text(row, "status")? == status_word(MessageStatus::Complete) {
            MessageStatus::Complete
        } else {
            MessageStatus::Cancelled
        },
        created_at: number(row, "created_at")?,
    })
}

pub(super) fn read_run(row: &impl Columns) -> Result<RunRecord, sqlx::Error> {
    let status =
        RunStatus::from_word(&text(row, "status")?).ok_or_else(|| sqlx::Error::Decode("a run's status".into()))?;
    let end = match row.number("ended_at")? {
        None => None,
        Some(ended_at) => Some(RunEnd {
            ended_at,
            last_seq: row.number("last_seq")?.map(i64::unsigned_abs),
            usage: row.text("usage")?.map(|text| parse(&text)).transpose()?,
            error: row.text("error")?.map(|text| parse(&text)).transpose()?,
            done: row.text("done")?.map(|text| parse(&text)).transpose()?,
            calls: Vec::new(),
        }),
    };
    Ok(RunRecord {
        id: word(row, "id")?,
        principal: Principal::named(&text(row, "principal")?),
        session_id: word(row, "session_id")?,
        agent: text(row, "agent")?,
        model: text(row, "model")?,
        metadata: parse(&text(row, "metadata")?)?,
        created_at: number(row, "created_at")?,
        idempotency: row.text("idem_key")?.zip(row.text("fingerprint")?),
        status,
        end,
    })
}

pub(super) fn read_artifact(row: &impl Columns) -> Result<ArtifactRecord, sqlx::Error> {
    let artifact = Artifact::new(
        word(row, "id")?,
        text(row, "name")?,
        text(row, "media_type")?,
        number(row, "size")?.unsigned_abs(),
        text(row, "sha256")?,
    );
    let session = row.text("session_id")?;
    Ok(ArtifactRecord {
        artifact,
        principal: Principal::named(&text(row, "principal")?),
        session_id: session.map(|_| word(row, "session_id")).transpose()?,
        run_id: word(row, "run_id")?,
        created_at: number(row, "created_at")?,
    })
}

pub(super) fn read_due(row: &impl Columns) -> Result<Due, sqlx::Error> {
    Ok(Due {
        erase_after: number(row, "erase_after")?,
        id: word(row, "id")?,
    })
}

pub(super) fn read_ticket(row: &impl Columns) -> Result<TicketRecord, sqlx::Error> {
    let used = match row.number("used_at")? {
        None => None,
        Some(at) => Some(TicketUse {
            at,
            request: text(row, "request")?,
            run: row.text("run_id")?.map(|_| word(row, "run_id")).transpose()?,
        }),
    };
    Ok(TicketRecord {
        id: text(row, "id")?,
        principal: Principal::named(&text(row, "principal")?),
        credential: text(row, "credential")?,
        expires_at: number(row, "expires_at")?,
        used,
    })
}

pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, sqlx::Error> {
    serde_json::from_str(text).map_err(|e| sqlx::Error::Decode(e.into()))
}

/// Our values have string keys and finite numbers, so this cannot fail; if it did, `null` would be refused on reading.
/// It is also why U+0000, which no text column of PostgreSQL takes, can be kept: JSON escapes it.
pub(super) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

pub(super) fn status_word(status: MessageStatus) -> &'static str {
    match status {
        MessageStatus::Complete => "complete",
        MessageStatus::Cancelled => "cancelled",
    }
}

/// A version for a session that no session had before: the microseconds since 1970.
pub(super) fn fresh_version() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

pub(super) fn broken(error: &sqlx::Error) -> Error {
    let message = "Sessions cannot be read or written at the moment.";
    let (kind, text) = (kind(error), error.to_string());
    Error::new(ErrorCode::StoreUnavailable, message).because(Fault { kind, text })
}

/// What an error is of, for the meters: codes of SQLite (numbers, the last eight bits of extended ones) and of PostgreSQL.
fn kind(error: &sqlx::Error) -> &'static str {
    let code = match error {
        // Another file where ours was.
        sqlx::Error::Io(error) if error.kind() == std::io::ErrorKind::StaleNetworkFileHandle => return "io",
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => return "connection",
        sqlx::Error::PoolTimedOut => return "timeout",
        sqlx::Error::Database(error) => error.code().unwrap_or_default(),
        _ => return "other",
    };
    match (code.len(), code.parse::<u32>().map(|code| code & 0xff)) {
        (5, _) if matches!(&*code, "53100" | "53200") => "full",
        (5, _) if matches!(&*code, "55P03" | "40P01" | "40001") => "busy",
        (5, _) if matches!(&*code, "57014") => "timeout",
        (5, _) if code.starts_with("08") || code.starts_with("57P") => "connection",
        (5, _) if matches!(&*code, "58030" | "25006") => "io",
        (_, Ok(5 | 6)) => "busy",
        (_, Ok(13)) => "full",
        (_, Ok(8 | 10 | 14)) => "io",
        (_, Ok(11 | 26)) => "corrupt",
        _ => "other",
    }
}

pub(super) fn unavailable(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::StoreUnavailable, format!("{what}: {error}"))
}

//! What stores in SQL have in common: how rows become values, and values text. Where they differ is their own.

use std::str::FromStr;

use serde::{Serialize, de::DeserializeOwned};

use super::{
    ArtifactRecord, MessagePage, MessageStatus, ReadFrom, ReadLimit, RunEnd, RunRecord, RunStatus, Session,
    StoredMessage, TicketBinding, TicketRecord, TicketUse, artifact::Due, counted::Fault,
};
use crate::{
    chat::{Artifact, Principal, SessionId},
    error::{Error, ErrorCode},
};

/// A row's columns, by name.
pub(super) trait Columns {
    fn text(&self, column: &'static str) -> Result<Option<String>, sqlx::Error>;
    fn number(&self, column: &'static str) -> Result<Option<i64>, sqlx::Error>;
    /// A column of JSON, parsed where it is: a large one is not copied first.
    fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, sqlx::Error>;
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

/// A column that holds a session's id.
fn session_id(row: &impl Columns) -> Result<SessionId, sqlx::Error> {
    text(row, "session_id").map(|id| SessionId::stored(&id))
}

pub(super) fn read_session(row: &impl Columns) -> Result<Session, sqlx::Error> {
    Ok(Session {
        id: SessionId::stored(&text(row, "id")?),
        user_id: text(row, "user_id")?,
        agent: text(row, "agent")?,
        metadata: parse(&text(row, "metadata")?)?,
        message_count: number(row, "message_count")?.unsigned_abs(),
        version: number(row, "version")?,
        created_at: number(row, "created_at")?,
        updated_at: number(row, "updated_at")?,
    })
}

/// The statement that reads a part of a session's messages: parameters are the principal, the session, where to begin,
/// how many messages and how many bytes. The sizes of as many messages are summed up first, which reads no body; bodies are
/// read of those that fit, and of the first that does not there is the size alone. Rows come in any order.
macro_rules! select_messages {
    ($compare:literal, $order:literal) => {
        concat!(
            "SELECT s.id, s.user_id, s.agent, s.metadata, s.message_count, s.version, s.created_at, s.updated_at, \
             w.seq, CAST(w.size AS bigint) AS size, m.run_id, m.status, m.created_at AS added_at, m.body FROM sessions s \
             LEFT JOIN (SELECT seq, size, sum(size) OVER (ORDER BY seq ",
            $order,
            ") AS total, row_number() OVER (ORDER BY seq ",
            $order,
            ") AS place FROM (SELECT seq, octet_length(body) AS size FROM messages \
             WHERE principal = $1 AND session_id = $2 AND seq ",
            $compare,
            " $3 ORDER BY seq ",
            $order,
            " LIMIT $4 + 1) sizes) w ON w.total - w.size <= $5 \
             LEFT JOIN messages m ON m.principal = s.principal AND m.session_id = s.id AND m.seq = w.seq \
             AND w.total <= $5 AND w.place <= $4 WHERE s.principal = $1 AND s.id = $2"
        )
    };
}

/// The statement for a direction, and the number where it begins.
pub(super) fn messages_statement(from: ReadFrom) -> (&'static str, i64) {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    match from {
        ReadFrom::Newest => (select_messages!("<", "DESC"), i64::MAX),
        ReadFrom::Before(before) => (select_messages!("<", "DESC"), number(before)),
        ReadFrom::Number(first) => (select_messages!(">=", "ASC"), number(first)),
    }
}

/// The limits of a read as the statement takes them.
pub(super) fn read_limits(limit: ReadLimit) -> (i64, i64) {
    let bytes = i64::try_from(limit.bytes).unwrap_or(i64::MAX);
    (i64::from(limit.rows), bytes)
}

/// Puts a page together from the rows of [`messages_statement`], as they come.
#[derive(Default)]
pub(super) struct PageRows {
    session: Option<Session>,
    messages: Vec<(u64, StoredMessage)>,
    bytes: u64,
    /// The number and the size of the message for which there was no room.
    next: Option<(u64, u64)>,
}

impl PageRows {
    /// Takes a row.
    ///
    /// # Errors
    /// Something in it is not what was written.
    pub(super) fn push(&mut self, row: &impl Columns) -> Result<(), sqlx::Error> {
        if self.session.is_none() {
            self.session = Some(read_session(row)?);
        }
        let Some(seq) = row.number("seq")?.map(i64::unsigned_abs) else {
            return Ok(()); // a session without messages there
        };
        let size = number(row, "size")?.unsigned_abs();
        match read_message(row)? {
            Some(message) => {
                self.messages.push((seq, message));
                self.bytes += size;
            }
            None => self.next = Some((seq, size)),
        }
        Ok(())
    }

    /// The page; `None` if there is no such session.
    pub(super) fn page(mut self, from: ReadFrom) -> Option<MessagePage> {
        let session = self.session?;
        self.messages.sort_by_key(|(seq, _)| *seq);
        let first = match (self.messages.first(), from, self.next) {
            (Some((first, _)), ..) => *first,
            (None, ReadFrom::Number(first), _) => first,
            (None, _, Some((next, _))) => next + 1,
            (None, _, None) => 0,
        };
        Some(MessagePage {
            session,
            messages: self.messages.into_iter().map(|(_, message)| message).collect(),
            first,
            bytes: self.bytes,
            next_bytes: self.next.map(|(_, size)| size),
        })
    }
}

/// A message whose body was read.
fn read_message(row: &impl Columns) -> Result<Option<StoredMessage>, sqlx::Error> {
    let Some(message) = row.json("body")? else {
        return Ok(None);
    };
    let complete = text(row, "status")? == status_word(MessageStatus::Complete);
    Ok(Some(StoredMessage {
        message,
        run_id: word(row, "run_id")?,
        status: match complete {
            true => MessageStatus::Complete,
            false => MessageStatus::Cancelled,
        },
        created_at: number(row, "added_at")?,
    }))
}

/// A statement that reads runs, without their results.
macro_rules! select_run {
    ($which:literal) => {
        concat!(
            "SELECT id, principal, session_id, agent, model, metadata, created_at, idem_key, fingerprint, status, \
             ended_at, last_seq, usage, error, CAST(octet_length(done) AS bigint) AS result_bytes FROM runs WHERE ",
            $which
        )
    };
}
pub(super) use select_run;

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
            done: None,
            result_bytes: row.number("result_bytes")?.map(i64::unsigned_abs),
            calls: Vec::new(),
        }),
    };
    Ok(RunRecord {
        id: word(row, "id")?,
        principal: Principal::named(&text(row, "principal")?),
        session_id: session_id(row)?,
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
        session_id: session.map(|id| SessionId::stored(&id)),
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
        binding: row
            .text("binding")?
            .map_or_else(|| Ok(TicketBinding::default()), |text| parse(&text))?,
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

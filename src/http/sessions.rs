//! Sessions: made, listed, read, erased.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{Request, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use http_body::Body as _;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

use super::{
    Front,
    auth::Caller,
    body,
    error::Refusal,
    fields::Fields,
    format, order,
    query::{PathId, Query, known},
};
use crate::{
    chat::{Message, RunId, SessionId},
    error::{Error, ErrorCode},
    limit::MemoryUse,
    store::{MessageStatus, ReadFrom, ReadLimit, Session, StoredMessage},
};

/// How many are on a page, where the query does not say, and at most.
const PAGE: (u32, u32) = (50, 200);
/// How many bytes of messages are on a page, as stored: a page ends before the message that does not fit, unless it is the
/// first.
const PAGE_BYTES: u64 = 4 << 20;
/// What a session on a page takes at most while it is read and written: its metadata, in the longest characters.
const SESSION_BYTES: usize = 40 << 10;

/// `POST /sessions`.
pub async fn create(
    _: format::TakesJson,
    State(front): State<Front>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    Query::read(request.uri().query(), &[])?;
    let nothing = request.body().is_end_stream();
    let (body, _memory) = if nothing {
        (
            serde_json::json!({}),
            front.runs.memory.reserve_nothing(&caller.principal),
        )
    } else {
        body::json(request, &caller.principal, &front.settings).await?
    };
    let mut fields = Fields::of_body(body)?;
    let id = fields
        .text("session_id", 10_000)?
        .map(|id| order::session_id(&id))
        .transpose()?;
    let (user_id, agent) = (order::user_id(&mut fields)?, fields.text("agent", 128)?);
    let metadata = order::metadata(&mut fields)?;
    fields.end()?;
    let agent = caller.permit.agent(&front.runs.agents, agent.as_deref())?.name.clone();
    let store = &front.runs.store;
    if let Some(id) = &id {
        match store.session(&caller.principal, id).await? {
            Some(known) if user_id.as_ref().is_none_or(|user| *user == known.user_id) => {
                return Ok(Json(shown(known)).into_response());
            }
            Some(_) => return Err(Error::not_found().into()),
            None if caller.shared => return Err(Error::not_found().into()),
            None => {}
        }
    }
    let now = store.now();
    let session = Session {
        id: id.unwrap_or_else(SessionId::generate),
        user_id: user_id.unwrap_or_else(|| "anonymous".to_owned()),
        agent,
        metadata,
        message_count: 0,
        version: 0,
        created_at: now,
        updated_at: now,
    };
    let asked = session.user_id.clone();
    let made = store.create(&caller.principal, session).await?;
    // Another request may have created it in the same moment, for another user.
    if made.user_id != asked {
        return Err(Error::not_found().into());
    }
    Ok((StatusCode::CREATED, Json(shown(made))).into_response())
}

/// `GET /sessions`.
pub async fn list(
    _: format::TakesJson,
    State(front): State<Front>,
    caller: Caller,
    uri: Uri,
) -> Result<Response, Refusal> {
    if caller.shared {
        let message = "Callers cannot be told from each other here, so none may list what the others have.";
        return Err(Error::new(ErrorCode::Forbidden, message).into());
    }
    let mut query = Query::read(uri.query(), &["user_id", "limit", "cursor"])?;
    let limit = limit(query.take("limit"))?;
    let after = match query.take("cursor") {
        Some(cursor) => Some(
            open(&cursor)
                .and_then(|text| {
                    let (time, id) = text.split_once(' ')?;
                    Some((time.parse().ok()?, id.parse().ok()?))
                })
                .ok_or_else(bad_cursor)?,
        ),
        None => None,
    };
    let user_id = user(&mut query)?;
    let mut memory = front.runs.memory.reserve_nothing(&caller.principal);
    memory
        .grow_to(limit as usize * SESSION_BYTES, MemoryUse::Stored)
        .await?;
    let page = front
        .runs
        .store
        .list(&caller.principal, user_id.as_deref(), after, limit)
        .await?;
    let next_cursor = page.next.map(|(time, id)| seal(&format!("{time} {id}")));
    let sessions = page.sessions.into_iter().map(shown).collect();
    Ok(format::held_json(&Sessions { sessions, next_cursor }, memory)?)
}

/// A page of sessions as JSON. A promise (CONTRACT § 9).
#[derive(Serialize)]
struct Sessions {
    sessions: Vec<SessionShown>,
    next_cursor: Option<String>,
}

/// `GET /sessions/{session_id}`.
pub async fn look(
    _: format::TakesJson,
    State(front): State<Front>,
    caller: Caller,
    id: PathId,
    uri: Uri,
) -> Result<Response, Refusal> {
    let id: SessionId = known(id)?;
    let mut query = Query::read(uri.query(), &["user_id"])?;
    let session = of_user(&front, &caller, &id, &mut query).await?;
    let active_run = front.runs.active_run(&caller.principal, &id).await?;
    let session = shown(session);
    Ok(Json(SessionNow { session, active_run }).into_response())
}

/// The caller's session of this id. Where the query names a user, the session of another user is not there.
///
/// # Errors
/// `not_found`; and what is wrong with the parameter.
pub(super) async fn of_user(
    front: &Front,
    caller: &Caller,
    id: &SessionId,
    query: &mut Query,
) -> Result<Session, Error> {
    let user_id = user(query)?;
    let session = front.runs.store.session(&caller.principal, id).await?;
    let session = session.filter(|session| user_id.is_none_or(|user| user == session.user_id));
    session.ok_or_else(Error::not_found)
}

/// The parameter `user_id`.
fn user(query: &mut Query) -> Result<Option<String>, Error> {
    let user_id = query
        .take("user_id")
        .map(|user| ("user_id".to_owned(), Value::String(user)));
    order::user_id(&mut Fields::of_body(Value::Object(user_id.into_iter().collect()))?)
}

/// `GET /sessions/{session_id}/messages`.
pub async fn messages(
    _: format::TakesJson,
    State(front): State<Front>,
    caller: Caller,
    id: PathId,
    uri: Uri,
) -> Result<Response, Refusal> {
    let id: SessionId = known(id)?;
    let mut query = Query::read(uri.query(), &["limit", "cursor", "user_id"])?;
    let limit = limit(query.take("limit"))?;
    let from = match query.take("cursor") {
        Some(cursor) => open(&cursor)
            .and_then(|text| text.parse::<u64>().ok())
            .ok_or_else(bad_cursor)?,
        None => 0,
    };
    of_user(&front, &caller, &id, &mut query).await?;
    let mut memory = front.runs.memory.reserve_nothing(&caller.principal);
    let mut bytes = PAGE_BYTES.min(memory.most() as u64 / 2);
    let page = loop {
        // What is read is there twice for a moment: as a row, and as a value.
        let needed = usize::try_from(bytes.saturating_mul(2)).unwrap_or(usize::MAX);
        memory.grow_to(needed, MemoryUse::Stored).await?;
        let read = ReadLimit { rows: limit, bytes };
        let store = &front.runs.store;
        let page = store.messages(&caller.principal, &id, ReadFrom::Number(from), read);
        let page = page.await?.ok_or_else(Error::not_found)?;
        match page.next_bytes {
            Some(first) if page.messages.is_empty() => bytes = first,
            _ => break page,
        }
    };
    let next = page.first + page.messages.len() as u64;
    let next_cursor = page.next_bytes.map(|_| seal(&next.to_string()));
    let messages = page.messages.into_iter().map(MessageShown::new).collect();
    Ok(format::held_json(&Messages { messages, next_cursor }, memory)?)
}

/// A page of a session's messages as JSON. A promise (CONTRACT § 9).
#[derive(Serialize)]
struct Messages {
    messages: Vec<MessageShown>,
    next_cursor: Option<String>,
}

/// `DELETE /sessions/{session_id}`: the second time is as good as the first.
pub async fn erase(State(front): State<Front>, caller: Caller, id: PathId, uri: Uri) -> Result<StatusCode, Refusal> {
    let user_id = user(&mut Query::read(uri.query(), &["user_id"])?)?;
    if let Ok(id) = known::<SessionId>(id) {
        if let Some(user_id) = user_id {
            let session = front.runs.store.session(&caller.principal, &id).await?;
            if session.is_some_and(|session| session.user_id != user_id) {
                return Err(Error::not_found().into());
            }
        }
        front.runs.erase(&caller.principal, &id).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A session as JSON. A promise (CONTRACT § 9).
#[derive(Serialize)]
struct SessionShown {
    session_id: SessionId,
    user_id: String,
    agent: String,
    message_count: u64,
    created_at: String,
    updated_at: String,
    metadata: BTreeMap<String, String>,
}

/// A session and the run that holds it now, as JSON. A promise (CONTRACT § 9).
#[derive(Serialize)]
struct SessionNow {
    #[serde(flatten)]
    session: SessionShown,
    active_run: Option<RunId>,
}

fn shown(session: Session) -> SessionShown {
    SessionShown {
        session_id: session.id,
        user_id: session.user_id,
        agent: session.agent,
        message_count: session.message_count,
        created_at: time(session.created_at),
        updated_at: time(session.updated_at),
        metadata: session.metadata,
    }
}

/// A kept message as JSON. A promise (CONTRACT § 9).
#[derive(Serialize)]
struct MessageShown {
    #[serde(flatten)]
    message: Message,
    run_id: RunId,
    status: MessageStatus,
    created_at: String,
}

impl MessageShown {
    fn new(stored: StoredMessage) -> Self {
        Self {
            message: stored.message.shown(),
            run_id: stored.run_id,
            status: stored.status,
            created_at: time(stored.created_at),
        }
    }
}

/// A time in RFC 3339, UTC, from milliseconds since 1970.
#[must_use]
pub fn time(milliseconds: i64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds)
        .unwrap_or_default()
        .to_string()
}

fn limit(told: Option<String>) -> Result<u32, Error> {
    let Some(told) = told else { return Ok(PAGE.0) };
    let limit = told.parse().ok().filter(|limit| (1..=PAGE.1).contains(limit));
    limit.ok_or_else(|| Error::field(ErrorCode::FieldInvalid, "limit", "must be a whole number from 1 to 200"))
}

/// A cursor says nothing to who holds it, and needs no secret: it only says where a page begins among one's own.
fn seal(text: &str) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
}

fn open(cursor: &str) -> Option<String> {
    String::from_utf8(base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()
}

fn bad_cursor() -> Error {
    Error::field(
        ErrorCode::FieldInvalid,
        "cursor",
        "must be a `next_cursor` that this gateway gave",
    )
}

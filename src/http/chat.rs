//! `/chat`, `/chat/stream`, `/chat/sse`: the same run, read three ways.

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, Request, StatusCode, Version},
    response::{IntoResponse, Response},
};

use super::{
    Front,
    auth::Caller,
    body,
    error::Refusal,
    format::{self, sse::Data},
    layers::RequestId,
    order::{self, Door},
    query::Query,
};
use crate::{
    chat::EventId,
    error::{Error, ErrorCode},
    run::{Follow, Interest, Order, Reader},
};

/// `POST /chat`.
pub async fn json(
    _: format::TakesJson,
    State(front): State<Front>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let (order, _) = ordered(request, &["key"], Door::Direct, caller, &front).await?;
    format::json::respond(begin(&front, order, Interest::Last).await?, &front.runs.meters).await
}

/// `POST /chat/stream`.
pub async fn text(State(front): State<Front>, caller: Caller, request: Request<Body>) -> Result<Response, Refusal> {
    if request.version() < Version::HTTP_11 {
        let message = "HTTP/1.0 cannot show that a text broke off; nginx needs `proxy_http_version 1.1`.";
        return Err(Error::new(ErrorCode::HttpVersion, message).into());
    }
    format::acceptable(request.headers(), "text/plain")?;
    let (order, _) = ordered(request, &["key"], Door::Direct, caller, &front).await?;
    format::text::respond(begin(&front, order, Interest::Every).await?, &front.runs.meters).await
}

/// `POST /chat/sse`.
pub async fn sse(
    State(front): State<Front>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    format::acceptable(request.headers(), "text/event-stream")?;
    let mut query = Query::read(request.uri().query(), &["key", "format", "last_event_id"])?;
    let data = data(&mut query)?;
    if let Some(id) = last_event_id(request.headers(), query.take("last_event_id"))? {
        let data = match data {
            Some(data) => data,
            None => data_of_body(request, &front).await?, // a reconnect repeats the body
        };
        return resume(&front, &caller, id, data, &request_id).await;
    }
    let (order, told) = ordered(
        request,
        &["key", "format", "last_event_id"],
        Door::Events,
        caller,
        &front,
    )
    .await?;
    let reader = begin(&front, order, Interest::Every).await?;
    Ok(format::sse::respond(
        reader,
        data.or(told).unwrap_or_default(),
        front.settings.heartbeat,
        &request_id,
        &front.runs.meters,
    ))
}

/// `GET /chat/sse`, for `EventSource`.
pub async fn sse_by_query(
    State(front): State<Front>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let headers = request.headers();
    format::acceptable(headers, "text/event-stream")?;
    same_site(headers, &front)?;
    let known = [
        "message",
        "session_id",
        "user_id",
        "agent",
        "key",
        "format",
        "ticket",
        "last_event_id",
    ];
    let mut query = Query::read(request.uri().query(), &known)?;
    if query.take("ticket").is_some() {
        return Err(Error::new(ErrorCode::TicketInvalid, "This ticket is not valid.").into());
    }
    let data = data(&mut query)?.unwrap_or_default();
    if let Some(id) = last_event_id(headers, query.take("last_event_id"))? {
        return resume(&front, &caller, id, data, &request_id).await;
    }
    let key = order::key(headers, query.take("key"))?;
    let order = order::from_query(query.rest(), key, caller, front.settings.detach_grace)?;
    let reader = begin(&front, order, Interest::Every).await?;
    Ok(format::sse::respond(
        reader,
        data,
        front.settings.heartbeat,
        &request_id,
        &front.runs.meters,
    ))
}

/// Reads the events of a run on after `id`: never starts one.
async fn resume(
    front: &Front,
    caller: &Caller,
    id: EventId,
    data: Data,
    request_id: &str,
) -> Result<Response, Refusal> {
    match front.runs.follow(&caller.principal, id.run, Some(id.seq)).await? {
        Follow::Events(reader) => Ok(format::sse::respond(
            reader,
            data,
            front.settings.heartbeat,
            request_id,
            &front.runs.meters,
        )),
        Follow::Nothing => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// Starts what was ordered, and reads it from its beginning.
async fn begin(front: &Front, order: Order, interest: Interest) -> Result<Reader, Refusal> {
    Ok(Reader::new(front.runs.start(order).await?, 0, interest))
}

/// Reads an order from a POST.
pub(super) async fn ordered(
    request: Request<Body>,
    known: &[&str],
    door: Door,
    caller: Caller,
    front: &Front,
) -> Result<(Order, Option<Data>), Refusal> {
    let mut query = Query::read(request.uri().query(), known)?;
    let key = order::key(request.headers(), query.take("key"))?;
    if key.is_none() {
        front.runs.open()?; // who comes again with a key needs no room
    }
    let body = body::json(request, &front.settings).await?;
    Ok(order::from_body(body, key, door, caller, front.settings.detach_grace)?)
}

/// The event that a client names as the last it has: the header wins, for a reconnect repeats the old URL. A browser that
/// has no id yet sends none; an empty one means the same, wherever it stands.
pub(super) fn last_event_id(headers: &HeaderMap, query: Option<String>) -> Result<Option<EventId>, Error> {
    let invalid = || {
        Error::new(
            ErrorCode::LastEventIdInvalid,
            "The last event id must be one that this gateway gave.",
        )
    };
    let mut told = headers.get_all("last-event-id").iter();
    let id = match (told.next(), told.next()) {
        (None, _) => query,
        (Some(id), None) if id.is_empty() => query,
        (Some(id), None) => Some(id.to_str().map_err(|_| invalid())?.to_owned()),
        _ => return Err(invalid()),
    };
    id.filter(|id| !id.is_empty())
        .map(|id| id.parse().map_err(|_| invalid()))
        .transpose()
}

/// The form of the data, if the query says.
pub(super) fn data(query: &mut Query) -> Result<Option<Data>, Error> {
    match query.take("format").as_deref() {
        None => Ok(None),
        Some("raw") => Ok(Some(Data::Raw)),
        Some("json") => Ok(Some(Data::Json)),
        Some(_) => Err(Error::field(
            ErrorCode::FieldInvalid,
            "format",
            "must be `raw` or `json`",
        )),
    }
}

/// The form of the data that a repeated body asks for; anything else in it has no meaning any more.
async fn data_of_body(request: Request<Body>, front: &Front) -> Result<Data, Error> {
    let body = body::bytes(request, &front.settings).await?;
    let value: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let json = value.as_ref().and_then(|v| v.get("format")).and_then(|f| f.as_str()) == Some("json");
    Ok(if json { Data::Json } else { Data::Raw })
}

/// A GET that costs something is not for prefetchers, nor for pages elsewhere.
fn same_site(headers: &HeaderMap, front: &Front) -> Result<(), Error> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    if !header("sec-purpose").is_empty() {
        return Err(Error::new(ErrorCode::CrossSite, "A prefetch does not start a run."));
    }
    let origin = header("origin");
    let allowed =
        front.settings.allowed_origins.iter().any(|known| known == origin) || front.settings.access.local_page(origin);
    if header("sec-fetch-site") == "cross-site" && !allowed {
        return Err(Error::new(
            ErrorCode::CrossSite,
            "A page of another site does not start a run.",
        ));
    }
    Ok(())
}

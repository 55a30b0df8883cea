//! `/chat`, `/chat/stream`, `/chat/sse`: the same run, read three ways.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{HeaderMap, Request, StatusCode, Version},
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::{
    Front,
    auth::{Caller, site},
    body,
    error::Refusal,
    format::{self, sse::Data},
    layers::RequestId,
    order::{self, Door},
    query::Query,
    tickets::{self, Visitor},
};
use crate::{
    chat::EventId,
    error::{Error, ErrorCode},
    run::{Follow, Interest, Order, Reader},
    telemetry::trace::TraceContext,
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
    let known = ["key", "format", "last_event_id", "lastEventId"];
    let mut query = Query::read(request.uri().query(), &known)?;
    let data = data(&mut query)?;
    if let Some(id) = last_event_id(request.headers(), &mut query)? {
        let data = match data {
            Some(data) => data,
            None => data_of_body(request, &caller, &front).await?, // a reconnect repeats the body
        };
        return resume(&front, &caller, id, data, &request_id).await;
    }
    let (order, told) = ordered(request, &known, Door::Events, caller, &front).await?;
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
    Visitor { caller, ticket }: Visitor,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let headers = request.headers();
    format::acceptable(headers, "text/event-stream")?;
    site::wanted(headers)?;
    let known = [
        "message",
        "session_id",
        "user_id",
        "agent",
        "key",
        "format",
        "ticket",
        "last_event_id",
        "lastEventId",
    ];
    let mut query = Query::read(request.uri().query(), &known)?;
    if query.take("ticket").is_some() != ticket.is_some() {
        return Err(tickets::invalid().into()); // one that is written in another way
    }
    let data = data(&mut query)?.unwrap_or_default();
    if let Some(id) = last_event_id(headers, &mut query)? {
        let Some(ticket) = ticket else {
            return resume(&front, &caller, id, data, &request_id).await;
        };
        let follow = ticket.follow(&front, id.run, Some(id.seq)).await?;
        return Ok(read(follow, data, &front, &request_id));
    }
    let key = order::key(headers, query.take("key"))?;
    let trace = request.extensions().get::<TraceContext>().copied();
    let id = Some(request_id.clone());
    let parameters = query.rest();
    let request = order::fingerprint_of(&parameters, key.as_deref());
    let order = order::from_query(parameters, key, caller, front.settings.detach_grace)?;
    let order = Order {
        trace,
        request_id: id,
        ..order
    };
    let follow = match ticket {
        Some(ticket) => ticket.start(&front, order, request).await?,
        None => Follow::Events(begin(&front, order, Interest::Every).await?),
    };
    Ok(read(follow, data, &front, &request_id))
}

/// Reads the events of a run on after `id`: never starts one.
async fn resume(
    front: &Front,
    caller: &Caller,
    id: EventId,
    data: Data,
    request_id: &str,
) -> Result<Response, Refusal> {
    let follow = front.runs.follow(&caller.principal, id.run, Some(id.seq)).await?;
    Ok(read(follow, data, front, request_id))
}

/// The events that there are to follow.
pub(super) fn read(follow: Follow, data: Data, front: &Front, request_id: &str) -> Response {
    match follow {
        Follow::Events(reader) => {
            let settings = &front.settings;
            format::sse::respond(reader, data, settings.heartbeat, request_id, &front.runs.meters)
        }
        Follow::Nothing => StatusCode::NO_CONTENT.into_response(),
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
    let trace = request.extensions().get::<TraceContext>().copied();
    let id = request.extensions().get::<RequestId>();
    let request_id = id.map(|RequestId(id)| id.clone());
    let (body, mut memory) = body::json(request, &caller.principal, &front.settings).await?;
    let (order, data) = order::from_body(body, key, door, caller, front.settings.detach_grace)?;
    memory.shrink_to(memory.bytes() / 2); // the question alone is left
    let order = Order {
        trace,
        request_id,
        memory: Some(Arc::new(memory)),
        ..order
    };
    Ok((order, data))
}

/// The event that a client names as the last it has: the header wins, for a reconnect repeats the old URL. A browser that
/// has no id yet sends none; an empty one means the same, wherever it stands. `lastEventId` is the name that polyfills of
/// `EventSource` use; `last_event_id` counts before it.
pub(super) fn last_event_id(headers: &HeaderMap, query: &mut Query) -> Result<Option<EventId>, Error> {
    let parameters = ["last_event_id", "lastEventId"].map(|name| query.take(name));
    let query = parameters.into_iter().flatten().find(|id| !id.is_empty());
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
async fn data_of_body(request: Request<Body>, caller: &Caller, front: &Front) -> Result<Data, Error> {
    let body = match body::bytes(request, &caller.principal, &front.settings).await {
        Err(packed) if packed.code == ErrorCode::EncodingUnsupported => return Ok(Data::Raw),
        body => body?,
    };
    let json = serde_json::from_slice(&body).is_ok_and(|Repeated { format }| format == "json");
    Ok(if json { Data::Json } else { Data::Raw })
}

/// What is looked at in a repeated body. What is not is not kept either: as values, a body takes much more room than as bytes.
#[derive(Deserialize)]
struct Repeated {
    format: String,
}

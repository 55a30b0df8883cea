//! Runs by their id, and the agents that can be asked for one.

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

use super::{
    Front,
    auth::Caller,
    chat,
    error::{Problem, Refusal},
    format::{self, long::LongTexts},
    layers::RequestId,
    order::Door,
    query::{PathId, Query, known},
    sessions::time,
    tickets::{self, Visitor},
};
use crate::{
    chat::{Answer, FinishKind, RunId, SessionId, Usage},
    error::{Error, ErrorCode},
    run::follow::Glance,
    store::RunStatus,
};

/// `POST /runs`: starts a run and leaves it alone.
pub async fn start(
    _: format::TakesJson,
    State(front): State<Front>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let (order, _) = chat::ordered(request, &["key"], Door::Background, caller, &front).await?;
    let run = front.runs.start(order).await?; // and nobody reads it yet
    let place = format!("{}/runs/{}", front.settings.public_url, run.id);
    let events_url = format!("{place}/events");
    let started = Started {
        run_id: run.id,
        session_id: run.session_id.as_ref(),
        events_url: &events_url,
    };
    let mut response = (StatusCode::ACCEPTED, Json(started)).into_response();
    if let Ok(location) = place.parse() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    format::name_run(response.headers_mut(), &run.id, run.session_id.as_ref());
    Ok(response)
}

#[derive(Serialize)]
struct Started<'a> {
    run_id: RunId,
    session_id: Option<&'a SessionId>,
    events_url: &'a str,
}

/// `GET /runs/{run_id}`.
pub async fn look(
    _: format::TakesJson,
    State(front): State<Front>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    caller: Caller,
    run_id: PathId,
) -> Result<Response, Refusal> {
    let glance = front.runs.glance(&caller.principal, known(run_id)?).await?;
    Ok(shown(glance, &request_id)?)
}

/// `POST /runs/{run_id}/cancel`.
pub async fn cancel(
    _: format::TakesJson,
    State(front): State<Front>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    caller: Caller,
    run_id: PathId,
) -> Result<Response, Refusal> {
    let glance = front.runs.cancel(&caller.principal, known(run_id)?).await?;
    Ok(shown(glance, &request_id)?)
}

/// `GET /runs/{run_id}/events`.
pub async fn events(
    State(front): State<Front>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Visitor { caller, ticket }: Visitor,
    run_id: PathId,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    format::acceptable(request.headers(), "text/event-stream")?;
    let run_id: RunId = known(run_id)?;
    let mut query = Query::read(
        request.uri().query(),
        &["format", "last_event_id", "lastEventId", "ticket"],
    )?;
    if query.take("ticket").is_some() != ticket.is_some() {
        return Err(tickets::invalid().into()); // one that is written in another way
    }
    let data = chat::data(&mut query)?.unwrap_or_default();
    let after = chat::last_event_id(request.headers(), &mut query)?;
    if after.is_some_and(|id| id.run != run_id) {
        return Err(Error::new(ErrorCode::LastEventIdInvalid, "The last event id is another run's.").into());
    }
    let after = after.map(|id| id.seq);
    let follow = match ticket {
        Some(ticket) => ticket.follow(&front, run_id, after).await?,
        None => front.runs.follow(&caller.principal, run_id, after).await?,
    };
    Ok(chat::read(follow, data, &front, &request_id))
}

/// `GET /agents`.
pub async fn agents(_: format::TakesJson, State(front): State<Front>, caller: Caller) -> Response {
    let agents = &front.runs.agents;
    let permit = &caller.permit;
    let admitted = agents.all.values().filter(|agent| permit.admits(&agent.name));
    let all = admitted.map(|agent| AgentShown {
        name: &agent.name,
        description: &agent.description,
        model: agent.model.to_string(),
        allowed_models: &agent.allowed_models,
        tools: front
            .runs
            .tools
            .admitted(&agent.tools, permit.tools.as_deref())
            .0
            .into_iter()
            .map(|offer| offer.definition.name)
            .collect(),
        default: agent.name == agents.default,
    });
    Json(serde_json::json!({"agents": all.collect::<Vec<_>>()})).into_response()
}

#[derive(Serialize)]
struct AgentShown<'a> {
    name: &'a str,
    description: &'a str,
    model: String,
    allowed_models: &'a [String],
    tools: Vec<String>,
    default: bool,
}

/// A run as JSON. A promise (CONTRACT § 8).
#[derive(Serialize)]
struct RunShown {
    run_id: RunId,
    session_id: Option<SessionId>,
    agent: String,
    model: String,
    status: RunStatus,
    created_at: String,
    ended_at: Option<String>,
    last_seq: Option<u64>,
    finish_reason: Option<FinishKind>,
    usage: Option<Usage>,
    error: Option<Problem>,
    response: Option<Answer>,
    metadata: BTreeMap<String, String>,
}

fn shown(glance: Glance, request_id: &str) -> Result<Response, Error> {
    let (run_id, session_id) = (glance.id, glance.session_id.clone());
    let error = glance
        .error
        .map(|error| Problem::new(&error, request_id).about(run_id, session_id));
    let mut answer = glance.done.map(|done| done.answer);
    let texts = answer.as_mut().map(LongTexts::take);
    let shown = RunShown {
        run_id,
        session_id: glance.session_id,
        agent: glance.agent,
        model: glance.model,
        status: glance.status,
        created_at: time(glance.created_at),
        ended_at: glance.ended_at.map(time),
        last_seq: glance.last_seq,
        finish_reason: answer.as_ref().and_then(|answer| answer.finish_reason),
        usage: glance.usage,
        error,
        response: answer,
        metadata: glance.metadata,
    };
    match texts {
        Some(texts) => format::long::respond(&shown, texts, Arc::new(glance.source)),
        None => Ok(Json(shown).into_response()),
    }
}

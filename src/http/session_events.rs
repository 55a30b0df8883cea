//! The events of the run that a session has now: what a reloaded page asks for.

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};

use super::{
    Front, chat,
    error::Refusal,
    format,
    layers::RequestId,
    query::{PathId, Query, known},
    sessions,
    tickets::{self, Visitor},
};
use crate::{
    chat::SessionId,
    error::{Error, ErrorCode},
};

/// `GET /sessions/{session_id}/events`: the run that is under way, from its first event on; with a last event id, the
/// run that it names, after it.
pub(super) async fn follow(
    State(front): State<Front>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Visitor { caller, ticket }: Visitor,
    session_id: PathId,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    format::acceptable(request.headers(), "text/event-stream")?;
    let session_id: SessionId = known(session_id)?;
    let known = ["format", "last_event_id", "lastEventId", "ticket", "user_id"];
    let mut query = Query::read(request.uri().query(), &known)?;
    if query.take("ticket").is_some() != ticket.is_some() {
        return Err(tickets::invalid().into()); // one that is written in another way
    }
    let data = chat::data(&mut query)?.unwrap_or_default();
    let after = chat::last_event_id(request.headers(), &mut query)?;
    let session = sessions::of_user(&front, &caller, &session_id, &mut query).await?;
    if let Some(ticket) = &ticket {
        ticket.admit_session(&session, front.runs.store.now())?;
    }
    let run = match after {
        Some(after) => {
            let glance = front.runs.glance(&caller.principal, after.run).await?;
            if glance.session_id.as_ref() != Some(&session_id) {
                let message = "The last event id is another session's.";
                return Err(Error::new(ErrorCode::LastEventIdInvalid, message).into());
            }
            Some(after.run)
        }
        None => front.runs.active_run(&caller.principal, &session_id).await?,
    };
    let Some(run) = run else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let after = after.map(|id| id.seq);
    let follow = match ticket {
        Some(ticket) => ticket.follow(&front, run, after).await?,
        None => front.runs.follow(&caller.principal, run, after).await?,
    };
    Ok(chat::read(follow, data, &front, &request_id))
}

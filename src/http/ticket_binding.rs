//! What a ticket is bound to when it is made, and the check of a request against it.
//!
//! A web application has one key for all of its users. Its server asks for a ticket that is bound to the user's session,
//! so that the page which gets the ticket cannot use it for another one.

use axum::{body::Body, http::Request};
use http_body::Body as _;

use super::{Front, auth::Caller, body, fields::Fields, order, tickets::invalid};
use crate::{
    chat::{ArtifactId, RunId, SessionId},
    error::{Error, ErrorCode},
    run::Order,
    store::{Session, TicketBinding, TicketRecord},
};

/// Reads the binding from the body of `POST /tickets`; without a body the ticket is bound to nothing.
///
/// # Errors
/// The field at fault.
pub(super) async fn from_request(
    request: Request<Body>,
    caller: &Caller,
    front: &Front,
) -> Result<TicketBinding, Error> {
    if request.body().is_end_stream() {
        return Ok(TicketBinding::default());
    }
    let (body, _memory) = body::json(request, &caller.principal, &front.settings).await?;
    let mut fields = Fields::of_body(body)?;
    let session_id = fields.text("session_id", 10_000)?;
    let (user_id, agent) = (order::user_id(&mut fields)?, fields.text("agent", 128)?);
    let binding = TicketBinding {
        session_id: session_id.map(|id| order::session_id(&id)).transpose()?,
        user_id,
        agent,
        run_id: id(&mut fields, "run_id")?,
        artifact_id: id(&mut fields, "artifact_id")?,
    };
    fields.end()?;
    if let Some(agent) = &binding.agent {
        caller.permit.agent(&front.runs.agents, Some(agent))?;
    }
    Ok(binding)
}

fn id<T: std::str::FromStr>(fields: &mut Fields, name: &str) -> Result<Option<T>, Error> {
    let text = fields.text(name, 128)?;
    let id = text.map(|text| {
        text.parse()
            .map_err(|_| fields.invalid(name, "must be an id of this gateway"))
    });
    id.transpose()
}

/// Returns the order with everything that the ticket is bound to.
///
/// # Errors
/// `ticket_invalid` for an order that names anything else.
pub(super) async fn fix(ticket: &TicketRecord, mut order: Order, front: &Front) -> Result<Order, Error> {
    let binding = &ticket.binding;
    if binding.run_id.is_some() || binding.artifact_id.is_some() {
        return Err(invalid()); // such a ticket starts nothing
    }
    fix_field(&mut order.session_id, binding.session_id.as_ref())?;
    fix_field(&mut order.user_id, binding.user_id.as_ref())?;
    fix_field(&mut order.agent, binding.agent.as_ref())?;
    if let (Some(_), Some(session)) = (&binding.user_id, &order.session_id) {
        let known = front.runs.store.session(&ticket.principal, session).await?;
        if known.is_some_and(|session| !admits_session(binding, &session)) {
            return Err(invalid());
        }
    }
    Ok(order)
}

fn fix_field<T: PartialEq + Clone>(asked: &mut Option<T>, bound: Option<&T>) -> Result<(), Error> {
    let Some(bound) = bound else { return Ok(()) };
    match asked.replace(bound.clone()) {
        Some(other) if other != *bound => Err(invalid()),
        _ => Ok(()),
    }
}

/// Whether a binding leaves room for runs of this session.
pub(super) fn admits_session(binding: &TicketBinding, session: &Session) -> bool {
    binding.artifact_id.is_none()
        && binding.session_id.as_ref().is_none_or(|id| *id == session.id)
        && binding.user_id.as_ref().is_none_or(|user| *user == session.user_id)
}

/// Refuses a ticket that is bound to anything else than this run.
///
/// # Errors
/// `ticket_invalid`; also for a run that is not there, if the ticket is bound, because nothing says that it is the one.
pub(super) async fn admit_run(ticket: &TicketRecord, run: RunId, front: &Front) -> Result<(), Error> {
    let binding = &ticket.binding;
    if binding.artifact_id.is_some() || binding.run_id.is_some_and(|bound| bound != run) {
        return Err(invalid());
    }
    admit_origin(ticket, run, front).await
}

/// Refuses a ticket that is bound to anything else than this file.
///
/// # Errors
/// `ticket_invalid`; `not_found` for a file that is not there, where the ticket is not bound to another.
pub(super) async fn admit_artifact(ticket: &TicketRecord, id: ArtifactId, front: &Front) -> Result<(), Error> {
    let binding = &ticket.binding;
    if binding.artifact_id.is_some_and(|bound| bound != id) {
        return Err(invalid());
    }
    if *binding == TicketBinding::default() {
        return Ok(());
    }
    let record = front.runs.store.artifact(&ticket.principal, id).await?;
    let record = record.ok_or_else(Error::not_found)?;
    if binding.run_id.is_some_and(|bound| bound != record.run_id) {
        return Err(invalid());
    }
    admit_origin(ticket, record.run_id, front).await
}

/// Refuses a ticket that is bound to another session, user or agent than this run's.
async fn admit_origin(ticket: &TicketRecord, run: RunId, front: &Front) -> Result<(), Error> {
    let binding = &ticket.binding;
    if binding.session_id.is_none() && binding.user_id.is_none() && binding.agent.is_none() {
        return Ok(());
    }
    let glance = match front.runs.glance(&ticket.principal, run).await {
        Err(error) if error.code == ErrorCode::NotFound => return Err(invalid()),
        glance => glance?,
    };
    if binding.agent.as_ref().is_some_and(|agent| *agent != glance.agent) {
        return Err(invalid());
    }
    let session: Option<SessionId> = glance.session_id;
    if binding.session_id.is_some() && binding.session_id != session {
        return Err(invalid());
    }
    if binding.user_id.is_some() {
        let session = session.ok_or_else(invalid)?;
        let session = front.runs.store.session(&ticket.principal, &session).await?;
        if session.map(|session| session.user_id) != binding.user_id {
            return Err(invalid());
        }
    }
    Ok(())
}

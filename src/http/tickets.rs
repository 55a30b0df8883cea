//! Tickets: what opens one stream for those who cannot send a header, such as a browser's `EventSource`.
//!
//! A ticket stands in a URL, where proxies and logs may keep it. So it is worth little: it is soon over, it is for one run,
//! and from its first use on it is good for nothing but that run. It is a stand-in for the credential that it was made
//! with: when that one is not taken any more, neither is the ticket. What it may be used for is bounded by its binding
//! (`ticket_binding`).

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Json,
    body::Body,
    extract::{FromRequestParts, State},
    http::{HeaderName, HeaderValue, Method, Request, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{
    Front,
    auth::{self, Caller, Proof, keys},
    error::Refusal,
    format, limits,
    request_log::KnownCaller,
    ticket_binding,
};
use crate::{
    chat::{ArtifactId, RunId},
    error::{Error, ErrorCode},
    run::{Follow, Interest, Order, Reader},
    store::{Session, TicketRecord, TicketUse},
};

/// What begins every ticket.
const PREFIX: &str = "ticket_";
/// For how long one can be used first.
const LIFE: Duration = Duration::from_secs(60);
/// How many a caller may have that are neither used nor expired.
const MOST: u32 = 1000;
/// How long to wait for a run that another request with the same ticket is about to start.
const START: Duration = Duration::from_secs(10);
/// For how long a used ticket is kept beyond the longest time that its run may take and its log is kept.
const SPARE: Duration = Duration::from_secs(60);

/// `POST /tickets`.
pub async fn issue(
    _: format::TakesJson,
    State(front): State<Front>,
    caller: Caller,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let binding = ticket_binding::from_request(request, &caller, &front).await?;
    let no_luck = |_| Error::internal("the system has no random numbers");
    let ticket = keys::secret(PREFIX).map_err(no_luck)?;
    let now = front.runs.store.now();
    let record = TicketRecord {
        id: id(&ticket),
        principal: caller.principal,
        credential: auth::credential_of(caller.proof, &front),
        binding,
        expires_at: match caller.proof {
            Proof::Token(end) => end.min(now + millis(LIFE)),
            Proof::Nobody | Proof::Key(_) => now + millis(LIFE),
        },
        used: None,
    };
    if !front.runs.store.issue(&record, MOST).await? {
        let many = "There are too many tickets of this caller that have not been used.";
        return Err(Error::new(ErrorCode::RateLimited, many).retry_after(LIFE).into());
    }
    let issued = Issued {
        ticket: &ticket,
        expires_in: (record.expires_at - now).max(0) / 1000,
    };
    let mut response = (StatusCode::CREATED, Json(issued)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        HeaderName::from_static("referrer-policy"),
        HeaderValue::from_static("no-referrer"),
    );
    Ok(response)
}

#[derive(Serialize)]
struct Issued<'a> {
    ticket: &'a str,
    /// In whole seconds: how long it can be used first.
    expires_in: i64,
}

/// Who asks for a stream: a caller, who may have come with a ticket.
pub struct Visitor {
    /// Who calls.
    pub caller: Caller,
    /// With which ticket.
    pub ticket: Option<Ticket>,
}

/// A ticket whose owner is known, and still taken.
pub struct Ticket {
    record: TicketRecord,
}

impl FromRequestParts<Front> for Visitor {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, front: &Front) -> Result<Self, Refusal> {
        let told = parts.uri.query().unwrap_or("").split('&');
        let Some(told) = told.filter_map(|pair| pair.strip_prefix("ticket=")).next() else {
            let caller = Caller::from_request_parts(parts, front).await?;
            return Ok(Self { caller, ticket: None });
        };
        auth::sane(parts, front)?;
        if !formed(told) {
            return Err(invalid().into()); // nobody need look for it
        }
        let id = id(told);
        let record = front.runs.store.ticket(&id).await?.ok_or_else(invalid)?;
        let caller = auth::owner(&record, front).ok_or_else(invalid)?;
        // Who brings a credential beside it must be who made it.
        let other = auth::told(&parts.headers, front).await?;
        if other.is_some_and(|other| other.principal != record.principal) {
            return Err(invalid().into());
        }
        KnownCaller::set(&parts.extensions, &caller.principal);
        limits::count_ticket(&caller, parts, front).await?;
        Ok(Self {
            caller,
            ticket: Some(Ticket { record }),
        })
    }
}

impl Ticket {
    /// Starts what was ordered, the first time; leads to the run that it started, when it comes again with the same key
    /// and parameters. What it begins, it begins to the end, even if who came with it hangs up: they will come again.
    ///
    /// # Errors
    /// `ticket_invalid`; and whatever keeps the run from starting: then the ticket is as it was.
    pub async fn start(self, front: &Front, order: Order, request: String) -> Result<Follow, Error> {
        let order = ticket_binding::fix(&self.record, order, front).await?;
        let keyed = order.idempotency.is_some();
        let front = front.clone();
        let work = async move {
            let known = self
                .enter(&front, &request, |used| keyed && used.request == request)
                .await?;
            if let Some(run) = known {
                return front.runs.follow(&self.record.principal, run, None).await;
            }
            let started = front.runs.start(order).await;
            self.settle(&front, started.as_ref().ok().map(|run| run.id)).await;
            started.map(|run| Follow::Events(Reader::new(run, 0, Interest::Every)))
        };
        tokio::spawn(work).await.map_err(Error::internal)?
    }

    /// Follows a run: any of its owner's, the first time; from then on that one.
    ///
    /// # Errors
    /// `ticket_invalid`; and whatever keeps the run from being followed.
    pub async fn follow(self, front: &Front, run: RunId, after: Option<u64>) -> Result<Follow, Error> {
        ticket_binding::admit_run(&self.record, run, front).await?;
        let front = front.clone();
        let work = async move {
            let request = format!("follow {run}");
            let known = self
                .enter(&front, &request, |used| {
                    used.run.map_or(used.request == request, |of| of == run)
                })
                .await?;
            let followed = front.runs.follow(&self.record.principal, run, after).await;
            if known.is_none() {
                self.settle(&front, followed.is_ok().then_some(run)).await;
            }
            followed
        };
        tokio::spawn(work).await.map_err(Error::internal)?
    }

    /// Whether the events of this session may be followed with the ticket at `now`, whichever of its runs that is.
    ///
    /// # Errors
    /// `ticket_invalid`.
    pub fn admit_session(&self, session: &Session, now: i64) -> Result<(), Error> {
        let over = self.record.used.is_none() && self.record.expires_at <= now;
        if over || !ticket_binding::admits_session(&self.record.binding, session) {
            return Err(invalid());
        }
        Ok(())
    }

    /// Uses the ticket to download a file, once; a `HEAD` does not use it up.
    ///
    /// # Errors
    /// `ticket_invalid`; and whatever keeps the file from being found.
    pub async fn download(&self, front: &Front, id: ArtifactId, method: &Method) -> Result<(), Error> {
        ticket_binding::admit_artifact(&self.record, id, front).await?;
        let (store, now) = (&front.runs.store, front.runs.store.now());
        let used = TicketUse {
            at: now,
            request: format!("download {id}"),
            run: None,
        };
        let usable = match *method {
            Method::HEAD => self.record.used.is_none() && self.record.expires_at > now,
            _ => store.claim(&self.record.id, &used, self.record.expires_at).await?,
        };
        if usable { Ok(()) } else { Err(invalid()) }
    }

    /// Makes the ticket usable again after a download that did not send the file.
    pub async fn give_back(&self, front: &Front) {
        self.settle(front, None).await;
    }

    /// The run that the ticket was used for, if what it was used for is `same`; `None` if this is its first use.
    async fn enter(
        &self,
        front: &Front,
        request: &str,
        same: impl Fn(&TicketUse) -> bool,
    ) -> Result<Option<RunId>, Error> {
        let (store, limits) = (&front.runs.store, &front.runs.limits);
        let kept = limits.deadline + limits.queue_patience + limits.replay_window + SPARE;
        let give_up = Instant::now() + START;
        while Instant::now() < give_up {
            let now = store.now();
            let known = store.ticket(&self.record.id).await?.ok_or_else(invalid)?;
            match known.used {
                None if known.expires_at <= now => break,
                None => {
                    let used = TicketUse {
                        at: now,
                        request: request.to_owned(),
                        run: None,
                    };
                    if store
                        .claim(&self.record.id, &used, now.saturating_add(millis(kept)))
                        .await?
                    {
                        return Ok(None);
                    }
                }
                Some(used) if !same(&used) => break,
                Some(TicketUse { run: Some(run), .. }) => return Ok(Some(run)),
                // Another request with this ticket is about to start the run, or to give the ticket back.
                Some(_) => sleep(START / 200).await,
            }
        }
        Err(invalid())
    }

    /// Says which run the ticket is for from now on; or that it was used for nothing.
    async fn settle(&self, front: &Front, run: Option<RunId>) {
        let store = &front.runs.store;
        let settled = match run {
            Some(run) => store.tie(&self.record.id, run).await,
            None => store.give_back(&self.record.id).await,
        };
        if let Err(error) = settled {
            tracing::warn!(
                cause = error.causes(),
                "a ticket's use could not be written down; it is lost"
            );
        }
    }
}

/// Whether this could be a ticket.
fn formed(told: &str) -> bool {
    let word = told.strip_prefix(PREFIX).unwrap_or("");
    word.len() == 43 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// What is kept of a ticket.
fn id(ticket: &str) -> String {
    keys::hex(digest(&SHA256, ticket.as_bytes()).as_ref())
}

/// The one answer to every ticket that is no good, whatever is wrong with it.
pub(super) fn invalid() -> Error {
    Error::new(ErrorCode::TicketInvalid, "This ticket is not valid.")
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

//! What was said before: a run's session is found or made, held or waited for, and read.

use std::time::Duration;

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{OnBusy, Run, Runs, history::History, registry::session_busy, start::record};
use crate::{
    chat::{ChatRequest, RunId},
    error::{Error, ErrorCode},
    limit::Reservation,
    store::{Begun, Entry, Session, SessionClaim},
};

/// How often a run asks whether it holds its session, where another gateway's run does.
const POLL: Duration = Duration::from_millis(100);
/// How often it asks while others of this gateway are before it in the line, as far as is known here.
const SELDOM: Duration = Duration::from_secs(1);

/// What an order says of its session.
pub(super) struct Asked {
    /// Whether it names one.
    pub(super) known_session: bool,
    pub(super) user_id: Option<String>,
    /// The agent that the session must have, where the order names none.
    pub(super) session_agent: Option<String>,
    pub(super) may_name_sessions: bool,
    pub(super) on_busy: OnBusy,
}

/// What was said before.
pub(super) enum Recalled {
    /// Nothing is kept.
    Nothing,
    /// It stands in front of the question.
    Now {
        /// The session's version that it is of.
        version: i64,
        /// Whether old turns were left out.
        truncated: bool,
    },
    /// It can be read when the run holds its session.
    Later(Until),
    /// There is no run to begin: its key started this one already, at another gateway.
    Known(RunId),
    /// There is no run to begin: the session has this agent, and the run was prepared for another.
    OtherAgent(String),
}

/// What a run waits for that does not hold its session, or not for certain.
pub(super) enum Until {
    /// Another run of this gateway lets go. Where others share the session, the store may say so earlier.
    Called(oneshot::Receiver<()>),
    /// The store says that it is its turn.
    Free,
    /// The same, and it sees to it that whoever holds the session is stopped.
    Stopped,
}

impl Asked {
    /// Whether the order may go on with this session, or make it, as far as is known before the store has decided.
    pub(super) fn may_use(&self, session: Option<&Session>) -> Result<(), Error> {
        let session = session.map(|session| (&*session.user_id, &*session.agent));
        match self.claim().refusal(session) {
            Some(Begun::NotFound) => Err(Error::not_found()),
            _ => Ok(()),
        }
    }

    fn claim(&self) -> SessionClaim<'_> {
        SessionClaim {
            user_id: self.user_id.as_deref(),
            agent: self.session_agent.as_deref(),
            may_create: !self.known_session || self.may_name_sessions,
            entry: match self.on_busy {
                OnBusy::Reject => Entry::Alone,
                OnBusy::Queue => Entry::Line,
                OnBusy::Interrupt => Entry::Front,
            },
        }
    }
}

impl Runs {
    /// Writes the run's row and, if it holds its session, puts what was said before in front of the question. `called` is
    /// there if it has to wait for another run of this gateway.
    pub(super) async fn recall(
        &self,
        run: &Run,
        asked_by: &Asked,
        called: Option<oneshot::Receiver<()>>,
        request: &mut ChatRequest,
        memory: &mut Reservation,
    ) -> Result<Recalled, Error> {
        let Some(session_id) = &run.session_id else {
            return Ok(Recalled::Nothing);
        };
        let loaded = match (&called, asked_by.known_session) {
            (None, true) => self.history(&run.principal, session_id, memory).await?,
            _ => None,
        };
        let claim = asked_by.claim();
        let begun = self.store.begin(&record(run, session_id), claim).await?;
        // From here on there is a row: nothing may fail, or be waited for, before the run's task has it.
        let entered = matches!(begun, Begun::At(_) | Begun::Waiting);
        if entered && asked_by.on_busy == OnBusy::Interrupt {
            self.registry.interrupt(run);
        }
        match (begun, called) {
            (Begun::Known(known), _) => Ok(Recalled::Known(known)),
            (Begun::NotFound, _) => Err(Error::not_found()),
            (Begun::OtherAgent(agent), _) => Ok(Recalled::OtherAgent(agent)),
            (Begun::Busy(active), _) => Err(session_busy(active)),
            (Begun::At(_), Some(called)) if !self.store.shared() => Ok(Recalled::Later(Until::Called(called))),
            // The store lets it go before those of this gateway that came a moment earlier.
            (Begun::At(_), Some(_)) => Ok(Recalled::Later(Until::Free)),
            (Begun::At(version), None) => {
                let Some(history) = loaded else {
                    // Another gateway may have made the session, and written a turn, after it was looked for.
                    if asked_by.known_session && self.store.shared() {
                        return Ok(Recalled::Later(Until::Free));
                    }
                    return Ok(Recalled::Now {
                        version,
                        truncated: false,
                    });
                };
                if history.session.version != version {
                    return Ok(Recalled::Later(Until::Free)); // a turn was written after the session was read
                }
                request.messages.splice(0..0, history.messages);
                let truncated = history.truncated;
                Ok(Recalled::Now { version, truncated })
            }
            // Who interrupts goes before all that queue here.
            (Begun::Waiting, _) if claim.entry == Entry::Front => Ok(Recalled::Later(Until::Stopped)),
            (Begun::Waiting, called) => Ok(Recalled::Later(called.map_or(Until::Free, Until::Called))),
        }
    }

    /// Stops the run that holds this one's session, wherever it is, if it came before this one and was not told before.
    async fn interrupt_holder(&self, run: &Run, told: &mut Option<RunId>) -> Result<(), Error> {
        let Some(holder) = self.store.holder_before(run.id).await? else {
            return Ok(());
        };
        if *told == Some(holder) {
            return Ok(());
        }
        match self.registry.any(holder) {
            Some(here) => here.cancel.cancel(),
            None => self.request_stop(holder).await?,
        }
        *told = Some(holder);
        Ok(())
    }

    /// Waits until the run holds its session, then reads what was said before.
    ///
    /// # Errors
    /// `session_busy` if that takes too long, `overloaded` if there is no memory for what was said.
    pub(super) async fn called(
        &self,
        run: &Run,
        until: &mut Until,
        memory: &mut Reservation,
    ) -> Result<History, Error> {
        let Some(session_id) = &run.session_id else {
            return Err(Error::internal("a run without a session waits for one"));
        };
        let deadline = Instant::now() + self.limits.queue_patience;
        let in_vain = || Error::new(ErrorCode::SessionBusy, "The session was busy for too long.");
        if let Until::Called(called) = until
            && !self.store.shared()
        {
            let called = timeout_at(deadline, called).await;
            called.map_err(|_| in_vain())?.map_err(|_| in_vain())?;
        }
        let mut told = None;
        while self.store.take(&run.principal, session_id, run.id).await?.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(in_vain());
            }
            let uneven = 0.5 + fastrand::f64();
            match until {
                Until::Called(called) => {
                    if timeout(SELDOM.mul_f64(uneven).min(left), called).await.is_ok() {
                        *until = Until::Free;
                    }
                    continue;
                }
                Until::Free => {}
                // If it cannot be said now, then the next time.
                Until::Stopped => drop(self.interrupt_holder(run, &mut told).await),
            }
            sleep(POLL.mul_f64(uneven).min(left)).await;
        }
        let history = self.history(&run.principal, session_id, memory).await?;
        history.ok_or_else(Error::not_found)
    }
}

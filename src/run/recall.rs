//! What was said before: a run's session is found or made, held or waited for, and read.

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use super::{OnBusy, Run, Runs, registry::session_busy, start::record};
use crate::{
    chat::{ChatRequest, Message, RunId, SessionId, history},
    error::{Error, ErrorCode},
    store::{Begun, Entry, Session},
};

/// How often a run asks whether it holds its session, where another gateway's run does.
const POLL: std::time::Duration = std::time::Duration::from_millis(100);

/// What an order says of its session.
pub(super) struct Asked {
    /// Whether it names one.
    pub(super) known_session: bool,
    pub(super) user_id: Option<String>,
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
    /// It can be read when the run holds its session: another one does. It is called first, if that one is of this gateway.
    Later(Option<oneshot::Receiver<()>>),
    /// There is no run to begin: its key started this one already, at another gateway.
    Known(RunId),
}

impl Asked {
    /// Whether the order may go on with this session, or make it.
    fn may_use(&self, session: Option<&Session>) -> Result<(), Error> {
        let strange = match session {
            Some(session) => self.user_id.as_ref().is_some_and(|user| *user != session.user_id),
            None => self.known_session && !self.may_name_sessions,
        };
        if strange { Err(Error::not_found()) } else { Ok(()) }
    }

    fn entry(&self) -> Entry {
        match self.on_busy {
            OnBusy::Reject => Entry::Alone,
            OnBusy::Queue => Entry::Line,
            OnBusy::Interrupt => Entry::Front,
        }
    }
}

impl Runs {
    /// Writes the run's row and, if it holds its session, puts what was said before in front of the question. `called` is
    /// there if it has to wait for another run of this gateway.
    pub(super) async fn recall(
        &self,
        run: &Run,
        asked_by: Asked,
        called: Option<oneshot::Receiver<()>>,
        request: &mut ChatRequest,
    ) -> Result<Recalled, Error> {
        let Some(session_id) = &run.session_id else {
            return Ok(Recalled::Nothing);
        };
        let loaded = match (&called, asked_by.known_session) {
            (None, true) => self.store.load(&run.principal, session_id).await?,
            _ => None,
        };
        match (&called, &loaded) {
            (None, loaded) => asked_by.may_use(loaded.as_ref().map(|(session, _)| session))?,
            (Some(_), _) => asked_by.may_use(self.store.session(&run.principal, session_id).await?.as_ref())?,
        }
        let entry = asked_by.entry();
        let user_id = asked_by.user_id.unwrap_or_else(|| "anonymous".to_owned());
        let begun = self.store.begin(&record(run, session_id), &user_id, entry).await?;
        match begun {
            Begun::Known(known) => Ok(Recalled::Known(known)),
            Begun::Busy(active) => Err(session_busy(active)),
            Begun::At(_) if called.is_some() => Ok(Recalled::Later(called)),
            Begun::At(version) => {
                let Some((session, before)) = loaded else {
                    return Ok(Recalled::Now {
                        version,
                        truncated: false,
                    });
                };
                let (before, truncated) = self.fitting(before);
                request.messages.splice(0..0, before);
                // The version that was read, not the one that is there now: the commit shall notice a difference.
                Ok(Recalled::Now {
                    version: session.version,
                    truncated,
                })
            }
            Begun::Waiting => {
                if entry == Entry::Front {
                    self.interrupt_elsewhere(run, session_id).await?;
                }
                Ok(Recalled::Later(called))
            }
        }
    }

    /// Stops the run of another gateway that holds this session, if one does.
    async fn interrupt_elsewhere(&self, run: &Run, session: &SessionId) -> Result<(), Error> {
        let holder = self.store.running(&run.principal, session).await?.into_iter().next();
        if let (Some(holder), Some(fleet)) = (holder, &self.fleet)
            && self.registry.any(holder).is_none()
        {
            fleet.stop(holder).await?;
        }
        Ok(())
    }

    /// Waits until the run holds its session, then reads what was said before. Returns the session's version, the
    /// messages, and whether old turns were left out.
    ///
    /// # Errors
    /// `session_busy` if that takes too long.
    pub(super) async fn called(
        &self,
        run: &Run,
        called: &mut Option<oneshot::Receiver<()>>,
    ) -> Result<(i64, Vec<Message>, bool), Error> {
        let Some(session_id) = &run.session_id else {
            return Err(Error::internal("a run without a session waits for one"));
        };
        let deadline = Instant::now() + self.limits.queue_patience;
        let in_vain = || Error::new(ErrorCode::SessionBusy, "The session was busy for too long.");
        if let Some(called) = called {
            let called = timeout_at(deadline, called).await;
            called.map_err(|_| in_vain())?.map_err(|_| in_vain())?;
        }
        // Of this gateway's runs it is its turn; of another's, the store says.
        while self.store.take(&run.principal, session_id, run.id).await?.is_none() {
            if Instant::now() + POLL > deadline {
                return Err(in_vain());
            }
            sleep(POLL.mul_f64(0.5 + fastrand::f64())).await;
        }
        let loaded = self.store.load(&run.principal, session_id).await?;
        let (session, before) = loaded.ok_or_else(Error::not_found)?;
        let (before, truncated) = self.fitting(before);
        Ok((session.version, before, truncated))
    }

    /// The newest turns that a model can be sent, and whether older ones were left out.
    fn fitting(&self, mut before: Vec<Message>) -> (Vec<Message>, bool) {
        let from = history::fit(&before, self.limits.max_history_tokens);
        before.drain(..from);
        (before, from > 0)
    }
}

//! Erasing a session at every gateway, and stopping runs of other gateways: requests between
//! gateways through the store.
//!
//! A session is erased from the store first, in one transaction with a notice for every other
//! gateway and for the relay. A gateway forgets the logs and keys of the runs, and removes its
//! notice; the relay comes last, because a gateway may still be writing to it. The relay only makes
//! notices faster: it rings, and whoever hears it looks into the store.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future::join_all, stream};
use tokio::time::{Instant, sleep, timeout};

use super::{Run, Runs, follow::STOP};
use crate::{
    chat::{Principal, RunId, SessionId},
    error::{Error, ErrorCode},
    store::notice::{Erasure, Holder},
};

/// How often a gateway looks for notices in the store when nobody rings.
const POLL: Duration = Duration::from_millis(300);
/// How long a gateway waits before it looks again after the store failed.
const RETRY: Duration = Duration::from_secs(1);
/// How long the erasing of a session waits for the other gateways, and how often it looks.
const CONFIRM: Duration = Duration::from_secs(3);
const CONFIRM_POLL: Duration = Duration::from_millis(20);
/// How many erasures a gateway carries out at a time.
const AT_ONCE: usize = 16;
/// How long a request through the relay may take: the store has it already.
const RING: Duration = Duration::from_millis(250);
/// How much longer than the replay window the relay may have a run's log.
const MARGIN: Duration = Duration::from_secs(60);

impl Runs {
    /// Erases a session and everything of it, at every gateway; a run that goes on is cancelled
    /// first.
    ///
    /// # Errors
    /// The store's; `store_unavailable` if a gateway, or the relay, may still have some of it.
    /// Erasing again is right then.
    pub async fn erase(&self, principal: &Principal, session: &SessionId) -> Result<(), Error> {
        let unended = self.registry.unended(principal, session);
        // All of them first: those that wait for the session must not have their turn now.
        unended.iter().for_each(|run| run.cancel.cancel());
        wait_over(&unended).await; // a commit that comes later finds no session
        self.stop_elsewhere(principal, session).await?;
        self.store.delete(principal, session).await?;
        self.registry.erase(principal, session);
        self.erase_due_soon().await;
        self.confirm_erased(principal, session).await
    }

    /// Asks the gateway of a run to stop it: through the store, and through the relay, which is
    /// faster.
    ///
    /// # Errors
    /// `store_unavailable` if neither took it.
    pub(super) async fn request_stop(&self, run: RunId) -> Result<(), Error> {
        let (stored, relayed) = tokio::join!(self.store.request_stop(run), self.ring(run));
        match relayed {
            true => Ok(()),
            false => stored,
        }
    }

    /// Sends a call to stop through the relay. Other gateways look for notices whenever they hear
    /// one. False if it was not taken in time.
    async fn ring(&self, run: RunId) -> bool {
        let Some(fleet) = &self.fleet else { return false };
        fleet.is_up() && matches!(timeout(RING, fleet.stop(run)).await, Ok(Ok(())))
    }

    /// Stops what other gateways run in a session, and waits a moment for it to have stopped.
    async fn stop_elsewhere(&self, principal: &Principal, session: &SessionId) -> Result<(), Error> {
        if !self.store.shared() {
            return Ok(());
        }
        let mut running = self.store.running(principal, session).await?;
        // If that cannot be said, the run finds its row gone when it ends.
        join_all(running.iter().map(|run| self.request_stop(*run))).await;
        let deadline = Instant::now() + STOP;
        while !running.is_empty() && Instant::now() < deadline {
            sleep(STOP / 20).await;
            running = self.store.running(principal, session).await?;
        }
        Ok(())
    }

    /// Waits until every gateway that lives, and the relay, has forgotten the runs of an erased
    /// session.
    async fn confirm_erased(&self, principal: &Principal, session: &SessionId) -> Result<(), Error> {
        if !self.store.shared() {
            return Ok(());
        }
        let deadline = Instant::now() + CONFIRM;
        let mut rung = false;
        loop {
            let unsettled = self.store.unsettled(principal, session).await?;
            if unsettled.is_empty() {
                return Ok(());
            }
            if let Some(fleet) = &self.fleet {
                let all: Vec<RunId> = unsettled.iter().flat_map(|e| e.runs.iter().copied()).collect();
                fleet.erase(&all).await;
            }
            if unsettled.iter().all(|erasure| erasure.holder == Holder::Relay) {
                for erasure in &unsettled {
                    self.erase_relayed(erasure)
                        .await
                        .map_err(|e| unconfirmed().because(e))?;
                }
                continue;
            }
            if Instant::now() >= deadline {
                return Err(unconfirmed());
            }
            let newest = unsettled.iter().flat_map(|erasure| &erasure.runs).max();
            if let (false, Some(run)) = (rung, newest) {
                rung = self.ring(*run).await;
            }
            sleep(CONFIRM_POLL).await;
        }
    }

    /// Carries out what other gateways ask through the store, for ever. Returns at once with a
    /// store of one gateway's.
    pub async fn follow_notices(&self) {
        if !self.store.shared() {
            return;
        }
        let mut given_up = 0;
        loop {
            let _ = timeout(POLL, self.notices.notified()).await;
            let notices = match self.store.notices().await {
                Ok(notices) => notices,
                Err(error) => {
                    tracing::debug!(cause = error.causes(), "notices of other gateways cannot be read");
                    sleep(RETRY).await;
                    continue;
                }
            };
            // Others had given this gateway up, and did not wait for it: anything may have been
            // erased meanwhile.
            if notices.given_up != given_up {
                given_up = notices.given_up;
                self.registry.forget_ended();
            }
            for run in notices.stops.iter().filter_map(|run| self.registry.any(*run)) {
                run.cancel.cancel();
            }
            let erased = stream::iter(&notices.erasures).for_each_concurrent(AT_ONCE, |erasure| async {
                let outcome = match erasure.holder {
                    Holder::Gateway => self.erase_here(erasure).await,
                    Holder::Relay if self.fleet.as_ref().is_some_and(|fleet| !fleet.is_up()) => Ok(()),
                    Holder::Relay => self.erase_relayed(erasure).await,
                };
                if let Err(error) = outcome {
                    tracing::debug!(
                        cause = error.causes(),
                        "an erased session is not forgotten everywhere yet"
                    );
                }
            });
            erased.await;
        }
    }

    /// Forgets the runs of a session that another gateway erased.
    async fn erase_here(&self, erasure: &Erasure) -> Result<(), Error> {
        let unended = self.registry.erase_runs(&erasure.runs);
        unended.iter().for_each(|run| run.cancel.cancel());
        wait_over(&unended).await; // it is known to nobody any more, and forgotten at its end
        if let Some(fleet) = &self.fleet {
            fleet.erase(&erasure.runs).await;
            fleet.published().await;
        }
        self.store.settle(&[erasure.id]).await
    }

    /// Erases the logs of an erased session from the relay. One that has expired there by itself
    /// needs no relay.
    async fn erase_relayed(&self, erasure: &Erasure) -> Result<(), Error> {
        let expired = erasure.age > self.limits.replay_window + self.limits.deadline + MARGIN;
        if let Some(fleet) = self.fleet.as_ref().filter(|_| !expired) {
            fleet.erase_relayed(&erasure.runs).await?;
        }
        self.store.settle(&[erasure.id]).await
    }
}

/// Waits a moment for runs that were cancelled to be over.
async fn wait_over(runs: &[Arc<Run>]) {
    let over = join_all(runs.iter().map(|run| run.over.cancelled()));
    let _ = timeout(STOP, over).await;
}

fn unconfirmed() -> Error {
    let message =
        "The session is erased, but another gateway or the relay may still have some of it; erase it once more.";
    Error::new(ErrorCode::StoreUnavailable, message).retry_after(Duration::from_secs(1))
}

//! A server and the task that owns it: connect, list, watch, and begin again.
//!
//! What was listed stays on offer while the server is down, so that a conversation's tools do not change under it; calls
//! then fail with a sentence for the model.

use std::{
    future::pending,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use rmcp::{Peer, RoleClient};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    McpSettings,
    call::{Connection, Line},
    catalogue::{self, Catalogue},
    child::Child,
    connect::{Host, Opening, Unopened, Way, greet},
    descendants,
};
use crate::tool::{Offer, secrets::Secrets};

/// How long the first pause before another try is, about; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How long a pause can get.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a server has to be up until it counts as one that works.
const SETTLED: Duration = Duration::from_secs(60);
/// How often a server can make the gateway list its tools.
const LISTING_GAP: Duration = Duration::from_secs(1);
/// How long other calls have to learn that the server forgot their session: what they are told by a
/// closed connection does not say whether they were run.
const OTHERS: Duration = Duration::from_millis(200);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// A server and what is known of its tools.
pub(in crate::tool) struct Server {
    offers: watch::Receiver<Arc<[Offer]>>,
    /// Cancelled: it has listed its tools, or failed to, once.
    tried: CancellationToken,
    stop: CancellationToken,
    /// Until it begins.
    owner: Mutex<Option<Owner>>,
    /// Cancelled: nothing of it remains.
    ended: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// A server that has not begun; its task will be one of `tasks`.
    ///
    /// # Errors
    /// What is wrong with the settings.
    pub(in crate::tool) fn new(settings: McpSettings, tasks: &TaskTracker) -> Result<Self, String> {
        let way = Way::new(settings.transport)?;
        let (offers, seen) = watch::channel(Arc::from([]));
        let (line, callers) = watch::channel(None);
        let name: Arc<str> = settings.name.into();
        let doubt = Arc::new(Notify::new());
        let tried = CancellationToken::new();
        let lost = Arc::new(watch::Sender::new(0));
        let secrets = Arc::new(way.secrets());
        let owner = Owner {
            tried: tried.clone(),
            catalogue: Catalogue::new(name.clone(), callers, doubt.clone(), lost.clone(), secrets.clone()),
            name,
            way,
            secrets,
            opening: Opening::Handshake,
            start_timeout: settings.start_timeout,
            refresh: settings.refresh.max(LISTING_GAP),
            doubt,
            lost,
            connection: 0,
            line,
            offers,
            up_since: None,
            condition: Condition::New,
        };
        Ok(Self {
            offers: seen,
            tried,
            stop: CancellationToken::new(),
            owner: Mutex::new(Some(owner)),
            ended: CancellationToken::new(),
            tasks: tasks.clone(),
        })
    }

    /// Begins to start it, and goes on trying for as long as the gateway lives. Must be called within a runtime. Ready
    /// when it has listed its tools, or failed to, for the first time.
    pub(in crate::tool) async fn begin(&self) {
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(owner) = owner {
            let (stop, ended) = (self.stop.clone(), self.ended.clone().drop_guard());
            self.tasks.spawn(async move {
                owner.live(stop).await;
                drop(ended);
            });
        }
        self.tried.cancelled().await;
    }

    /// Its tools, as they were listed last; none before the first time.
    pub(in crate::tool) fn offers(&self) -> Arc<[Offer]> {
        self.offers.borrow().clone()
    }

    /// Stops it, and waits until it has.
    pub(in crate::tool) async fn stop(&self) {
        self.stop.cancel();
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner).take();
        if owner.is_none() {
            self.ended.cancelled().await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What was said of a server last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    New,
    Up,
    Down,
}

/// The task's own.
struct Owner {
    name: Arc<str>,
    way: Way,
    /// What nobody is to hear from it.
    secrets: Arc<Secrets>,
    opening: Opening,
    start_timeout: Duration,
    refresh: Duration,
    catalogue: Catalogue,
    /// Told when the server should be looked at again: it says that its tools changed, or a call failed.
    doubt: Arc<Notify>,
    /// The newest connection whose session a call found forgotten.
    lost: Arc<watch::Sender<u64>>,
    /// The number of the connection that there is, or was.
    connection: u64,
    line: watch::Sender<Line>,
    offers: watch::Sender<Arc<[Offer]>>,
    up_since: Option<Instant>,
    condition: Condition,
    tried: CancellationToken,
}

impl Owner {
    /// Keeps the server up until it is to stop.
    async fn live(mut self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.up_since = None;
            let before = self.opening;
            let why = self.once(&stop).await;
            if stop.is_cancelled() {
                break;
            }
            if before == Opening::Handshake && self.opening == Opening::Discovery {
                continue;
            }
            let up = self.up_since.map(|since| since.elapsed());
            // Calls wait for the new session. A server that never keeps one is not asked all the time.
            if *self.lost.borrow() >= self.connection && up.is_some_and(|up| up >= LISTING_GAP) {
                continue;
            }
            if up.is_some_and(|up| up >= SETTLED) {
                pause = FIRST_PAUSE;
            }
            // Many gateways that lost the same server must not come back at the same moment.
            let next = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            self.say_down(&why, next);
            pause = (pause * 2).min(LONGEST_PAUSE);
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(next) => {}
            }
        }
        let server = &*self.name;
        tracing::info!(server, "The MCP server {server} was stopped");
    }

    /// One connection, from its first word to its last; nothing remains of it. Why it ended.
    async fn once(&mut self, stop: &CancellationToken) -> String {
        self.connection += 1;
        let (wire, mut child) = match self.way.open(&self.name, &self.secrets) {
            Ok(open) => open,
            Err(why) => return why,
        };
        let pid = child.as_ref().and_then(Child::id);
        let mut descendants = Vec::new();
        let why = {
            let over = async {
                let gone = async {
                    match &mut child {
                        Some(child) => child.gone().await,
                        None => pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = stop.cancelled() => String::from("the gateway stops"),
                    why = gone => why,
                }
            };
            let mut over = pin!(over);
            let deadline = Instant::now() + self.start_timeout;
            let host = Host {
                server: self.name.clone(),
                doubt: self.doubt.clone(),
                secrets: self.secrets.clone(),
            };
            let greeted = tokio::select! {
                greeted = timeout_at(deadline, greet(wire, host, self.opening)) => greeted,
                why = &mut over => Ok(Err(Unopened::Failed(why))),
            };
            match greeted {
                Err(_) => "it did not begin in time".into(),
                Ok(Err(unopened)) => match (unopened, self.opening) {
                    (Unopened::Refused(why), Opening::Handshake) => {
                        self.opening = Opening::Discovery;
                        why
                    }
                    (Unopened::Refused(why) | Unopened::Failed(why), _) => {
                        self.opening = Opening::Handshake;
                        why
                    }
                },
                Ok(Ok(service)) => {
                    let goodbye = service.cancellation_token();
                    let peer = service.peer().clone();
                    let mut ended = pin!(service.waiting());
                    let open = tokio::select! {
                        why = self.watch(&peer, deadline) => Ok(why),
                        _ = &mut ended => Err(String::from("it ended the connection")),
                        why = &mut over => Ok(why),
                    };
                    self.line.send_replace(None);
                    // Before the child knows that it is to go: its descendants lose their parents with it.
                    descendants = pid.map(descendants::of).unwrap_or_default();
                    match open {
                        Ok(why) => {
                            goodbye.cancel();
                            let _ = timeout(GOODBYE, ended).await;
                            why
                        }
                        Err(why) => why,
                    }
                }
            }
        };
        if let Some(child) = child {
            child.end(descendants).await;
        }
        why
    }

    /// Lists the tools, again and again, for as long as that works. Why it did not.
    async fn watch(&mut self, peer: &Peer<RoleClient>, mut deadline: Instant) -> String {
        let (mut lost, connection) = (self.lost.subscribe(), self.connection);
        loop {
            match timeout_at(deadline, catalogue::list(&self.name, peer)).await {
                Err(_) => return "it did not list its tools in time".into(),
                Ok(Err(why)) => return why,
                // Some servers add tools while they start: the first listing is one that nothing has overtaken.
                Ok(Ok(_)) if self.catalogue.is_new() && self.doubt.notified().now_or_never().is_some() => continue,
                Ok(Ok(tools)) => {
                    let offers = self.catalogue.take(tools);
                    let count = offers.len();
                    self.offers.send_replace(offers);
                    if self.up_since.is_none() {
                        // Not before: nothing of an unexamined server can be called.
                        self.line.send_replace(Some(Connection {
                            number: self.connection,
                            peer: peer.clone(),
                        }));
                        self.up_since = Some(Instant::now());
                        self.say_up(count);
                    }
                }
            }
            let next = Instant::now() + LISTING_GAP;
            let doubted = async {
                self.doubt.notified().await;
                sleep_until(next).await;
            };
            let forgotten = async {
                let _ = lost.wait_for(|lost| *lost >= connection).await.is_ok();
            };
            tokio::select! {
                () = doubted => {}
                () = sleep(self.refresh) => {}
                () = forgotten => {
                    sleep(OTHERS).await;
                    return "it forgot its session".into();
                }
            }
            deadline = Instant::now() + self.start_timeout;
        }
    }

    fn say_up(&mut self, tools: usize) {
        let server = &*self.name;
        match self.condition {
            Condition::Down => tracing::info!(server, tools, "The MCP server {server} is back with {tools} tools"),
            _ => tracing::info!(server, tools, "The MCP server {server} started with {tools} tools"),
        }
        self.condition = Condition::Up;
        self.tried.cancel();
    }

    fn say_down(&mut self, why: &str, next: Duration) {
        let (server, why) = (&*self.name, self.way.veil(&self.secrets.hide(why.to_owned())));
        match self.condition {
            Condition::Down => tracing::debug!(
                server,
                why,
                "The MCP server {server} is still down; next try in {next:.1?}"
            ),
            _ => tracing::warn!(
                server,
                why,
                "The MCP server {server} is down: {why}; next try in {next:.1?}"
            ),
        }
        self.condition = Condition::Down;
        self.tried.cancel();
    }
}

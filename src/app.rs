//! The whole gateway, put together: settings in, a listening address out.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agents,
    config::{ConfigError, Reread, Settings},
    error::{Error, ErrorCode},
    http::{health::Readiness, listen},
    limit::{Common, Limiter},
    meters::Meters,
    run::{Artifacts, Others, Runs},
    store::{self, Blobs},
    telemetry::trace::Tracer,
};

mod generation;
mod staff;

use generation::{Current, Generations, Shared};
use staff::{Staff, names};

mod online;

pub use online::check_online;

/// How long everything may take together that comes after the last run's end, or after the end of `runs.drain`. With what
/// `main` waits at last it leaves the usual drain within 25 s.
const AFTER: Duration = Duration::from_secs(4);
/// How much of it is kept for the store, which is closed last.
const CLOSE: Duration = Duration::from_millis(500);
/// How much of it is kept for the last spans, which tell of the last readers.
const SPANS: Duration = Duration::from_secs(1);
/// How often sessions are looked through for those whose time is over.
const EXPIRY: Duration = Duration::from_secs(60);

/// A gateway that serves.
pub struct Running {
    address: SocketAddr,
    admin: Option<SocketAddr>,
    generations: Generations,
    drain_delay: Duration,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Starts a gateway.
///
/// # Errors
/// Whatever keeps it from starting: settings, the store, the address.
pub async fn serve(settings: Settings) -> Result<Running, Error> {
    let listen_at = settings.listen;
    let meters = meters(&settings);
    let staff = Staff::new(&settings, &meters, None)?;
    let artifacts = Artifacts {
        blobs: blobs(&settings)?,
        limits: settings.artifacts,
        public_url: settings.public_url.clone(),
    };
    let store = store::open_counted(settings.store_url.as_str(), &meters).await?;
    let others = match store::open_relay(settings.run_log_url.as_str())? {
        None => Others::default(),
        Some((relay, tally)) => Others {
            relay: Some(relay),
            common: Some(Arc::new(Common::new(tally))),
        },
    };
    let common = others.common.clone();
    if let Some(common) = &common {
        common.begin().await;
    }
    let listener = TcpListener::bind(listen_at)
        .await
        .map_err(|e| config_error(format!("cannot listen on {listen_at}: {e}")))?;
    let address = listener.local_addr().map_err(Error::internal)?;
    let back = match settings.admin_listen {
        Some(at) => Some(back_door(at).await?),
        None => None,
    };
    let tracer = match &settings.otlp {
        Some(otlp) => Tracer::begin(otlp).map_err(config_error)?,
        None => Tracer::default(),
    };
    let admin = back.as_ref().map(TcpListener::local_addr);
    let admin = admin.transpose().map_err(Error::internal)?;
    introduce(&settings, &staff.agents, address, admin);
    staff.tools.begin().await;

    let parts = (staff.agents.clone(), staff.providers.clone(), staff.tools.clone());
    let runs = Runs::new(parts, store, artifacts, others, settings.runs, (meters, tracer));
    if let Err(error) = runs.files_ready().await {
        tracing::error!(
            cause = error.causes(),
            "files that tools make cannot be kept in {}",
            settings.artifacts_url
        );
    }
    let shared = Shared {
        runs: runs.keeper().map_err(config_error)?,
        limiter: Arc::new(Limiter::new(common.clone())),
        readiness: Arc::new(Readiness::default()),
    };
    let jobs = Jobs {
        listener,
        back,
        common,
        settings: settings.clone(),
    };
    let drain_delay = settings.drain_delay;
    let generations = Generations::begin(shared, runs, settings, staff);
    let stop = CancellationToken::new();
    let task = tokio::spawn(live(jobs, generations.follow(), stop.clone()));
    Ok(Running {
        address,
        admin,
        generations,
        drain_delay,
        stop,
        task,
    })
}

/// The listener of those who run it.
async fn back_door(at: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(at).await.map_err(|e| {
        config_error(format!(
            "cannot listen on {at}: {e}; server.admin_listen says where /metrics is, \"\" for nowhere"
        ))
    })
}

/// The meters, with the names that a series may have: all of the configuration, none of a client's.
fn meters(settings: &Settings) -> Arc<Meters> {
    let mut meters = Meters::new(names(settings));
    if !settings.run_log_url.as_str().starts_with("memory:") {
        meters.expect_relay();
    }
    if settings.otlp.is_some() {
        meters.expect_traces();
    }
    Arc::new(meters)
}

/// The things that the gateway's own task works with.
struct Jobs {
    listener: TcpListener,
    back: Option<TcpListener>,
    common: Option<Arc<Common>>,
    settings: Settings,
}

/// Serves until told to stop; then drains, says farewell, and closes the store.
async fn live(jobs: Jobs, current: Current, stop: CancellationToken) {
    let Jobs {
        listener,
        back,
        common,
        settings,
    } = jobs;
    let runs = current.runs();
    let (give_up, over) = (CancellationToken::new(), CancellationToken::new());
    let close = CancellationToken::new();
    // Who watches sees the gateway go down, to the last run.
    let back = back.map(|back| {
        let admin = current.router(|generation| &generation.admin);
        let nobody = Arc::default(); // who watches is not counted among those who are watched
        tokio::spawn(listen::serve(
            back,
            admin,
            settings.listener,
            nobody,
            over.clone(),
            over.clone(),
        ))
    });
    let door = tokio::spawn(listen::serve(
        listener,
        current.router(|generation| &generation.public),
        settings.listener,
        runs.meters.clone(),
        close.clone(),
        give_up.clone(),
    ));
    let housekeeping = async {
        tokio::join!(
            runs.mirror(),
            runs.follow_notices(),
            tend(common),
            runs.sweep(),
            runs.sweep_artifacts(),
            sweep_tickets(&runs),
            current.keep_issuer_keys(),
            expire(&runs, settings.session_ttl)
        );
    };
    let work = async {
        stop.cancelled().await;
        if !settings.drain_delay.is_zero() {
            let delay = settings.drain_delay;
            tracing::info!("/readyz says no from now on; the port closes in {delay:.1?}");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = runs.interrupt.cancelled() => {} // somebody is in a hurry
            }
        }
        close.cancel();
        runs.finish(settings.drain).await;
        let end = Instant::now() + AFTER;
        tokio::join!(
            part(&runs, door, &give_up, end - CLOSE),
            closed("tools", end - CLOSE, current.close_tools())
        );
        end
    };
    let end = tokio::select! {
        end = work => end,
        () = housekeeping => Instant::now() + AFTER, // it goes on for ever
    };
    closed("the store", end, runs.store.close()).await;
    over.cancel();
    if let Some(back) = back {
        let _ = back.await; // it ends at once
    }
}

/// Lets the last runs and their readers go, then the spans that tell of them.
async fn part(runs: &Runs, door: JoinHandle<()>, give_up: &CancellationToken, end: Instant) {
    let farewell = async {
        runs.ended().await;
        door.await
    };
    if tokio::time::timeout_at(end - SPANS, farewell).await.is_err() {
        give_up.cancel();
        tracing::warn!("some readers did not take their last events in time");
    }
    closed("traces", end, runs.tracer.close()).await;
}

/// Closes something, unless it takes too long.
async fn closed(what: &str, end: Instant, close: impl Future<Output = ()>) {
    if tokio::time::timeout_at(end, close).await.is_err() {
        tracing::warn!("{what} could not be closed in time");
    }
}

/// Counts together with the other gateways, if there are any, for ever.
async fn tend(common: Option<Arc<Common>>) {
    if let Some(common) = common {
        common.tend().await;
    }
}

/// Erases tickets whose time is over, for ever.
async fn sweep_tickets(runs: &Runs) {
    let mut clock = tokio::time::interval(EXPIRY);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let swept = runs.store.sweep_tickets(runs.store.now()).await;
        if let Err(error) = swept {
            tracing::warn!(cause = error.causes(), "expired tickets could not be erased");
        }
    }
}

/// Erases sessions whose time is over, for ever.
async fn expire(runs: &Runs, ttl: Option<Duration>) {
    let Some(ttl) = ttl else {
        return std::future::pending().await;
    };
    let mut clock = tokio::time::interval(EXPIRY.min(ttl));
    loop {
        clock.tick().await;
        let before = runs.store.now().saturating_sub_unsigned(ttl.as_millis() as u64);
        match runs.store.expire(before).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "idle sessions were erased"),
            Err(error) => tracing::warn!(cause = error.causes(), "idle sessions could not be erased"),
        }
    }
}

/// Whether settings that are each for itself in order make a gateway together.
///
/// # Errors
/// What keeps it from starting, as far as it can be told without starting it.
pub fn check(settings: &Settings) -> Result<(), Error> {
    Staff::new(settings, &Arc::default(), None)?;
    blobs(settings).map(drop)
}

/// Where files are kept.
fn blobs(settings: &Settings) -> Result<Blobs, Error> {
    Blobs::open(&settings.artifacts_url, &settings.cloud).map_err(|e| config_error(format!("artifacts.url: {e}")))
}

fn config_error(what: String) -> Error {
    Error::new(ErrorCode::Internal, what)
}

/// What a person who starts it wants to know: a line each.
fn introduce(settings: &Settings, agents: &Agents, address: SocketAddr, admin: Option<SocketAddr>) {
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!("listening on http://{address}");
    let mut page = address;
    if page.ip().is_unspecified() {
        page.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    tracing::info!("a page to try it in is at http://{page}/docs");
    match admin {
        Some(admin) if admin.ip().is_loopback() => tracing::info!("metrics are at http://{admin}/metrics"),
        Some(admin) => tracing::warn!("anybody who reaches http://{admin}/metrics may read it (server.admin_listen)"),
        None => {}
    }
    for provider in settings.providers.iter().filter(|provider| provider.kind != "demo") {
        let key = if provider.api_key.is_some() {
            "with a key"
        } else {
            "without a key"
        };
        tracing::info!(
            "provider {} ({}) is at {}, {key}",
            provider.name,
            provider.kind,
            provider.base_url
        );
    }
    for agent in agents.all.values() {
        let default = if agent.name == agents.default {
            " (the default)"
        } else {
            ""
        };
        let demo = if agent.model.provider == "demo" {
            "; a demo, set OPENAI_API_KEY for a real model"
        } else {
            ""
        };
        tracing::info!("agent {}{default} is answered by {}{demo}", agent.name, agent.model);
    }
    match settings.run_log_url.as_str() {
        "memory:" => tracing::info!("sessions are kept in {}, runs in memory", settings.store_url.whole()),
        _ => tracing::info!(
            "sessions are kept in {}, runs in {}",
            settings.store_url.whole(),
            settings.run_log_url
        ),
    }
    tracing::info!("files that tools make are kept in {}", settings.artifacts_url);
    introduce_callers(settings);
}

/// Says who may call.
fn introduce_callers(settings: &Settings) {
    let access = &settings.access;
    if !access.keys.is_empty() {
        tracing::info!("who has a key may call: {}", access.keys.names().join(", "));
    }
    if let Some(issuer) = &access.issuer {
        let audience = issuer.audience.join(" or ");
        tracing::info!("who has a token of {} for {audience} may call", issuer.issuer);
    }
    if access.loopback && !access.open() && settings.cors_allowed_origins.is_empty() {
        tracing::info!(
            "pages on other ports of this machine may not call, because keys are configured; \
             server.cors_allowed_origins lists the origins of pages that may"
        );
    }
    match (access.open(), access.loopback) {
        (false, _) => {}
        (true, true) => tracing::info!("anybody on this machine may call, nobody else"),
        (true, false) => tracing::warn!("anybody who reaches this address may call (auth.allow_anonymous)"),
    }
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Where those who run it look, if anywhere.
    #[must_use]
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Puts settings in force that `load` reads again, for runs that start from then on. Runs under
    /// way keep what they have. Settings that are wrong change nothing. Both are logged and counted.
    /// When the future is dropped before it is ready, nothing has changed.
    pub async fn reload(&self, load: impl FnOnce(&Settings) -> Result<Reread, ConfigError>) {
        self.generations.reload(load).await;
    }

    /// Tells it to stop: no new runs, those that go on may finish within `runs.drain`.
    pub fn begin_stop(&self) {
        let runs = self.generations.runs();
        runs.leave();
        if self.drain_delay.is_zero() {
            runs.begin_drain();
        }
        self.stop.cancel();
    }

    /// Tells it not to wait for runs any more.
    pub fn hurry(&self) {
        self.generations.runs().hurry();
    }

    /// Waits until it has stopped.
    ///
    /// # Errors
    /// Its task panicked.
    pub async fn stopped(&mut self) -> Result<(), Error> {
        (&mut self.task).await.map_err(Error::internal)
    }

    /// Stops it, and waits until it has.
    ///
    /// # Errors
    /// Its task panicked.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.begin_stop();
        self.stopped().await
    }
}

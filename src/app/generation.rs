//! Settings that are replaced while the gateway serves. A generation is everything that one
//! reading of the settings makes: agents, providers, tools, keys, limits, and the routers that use
//! them. A request is answered by the generation that is in force when it comes, and a run goes on
//! with the one that it started in.

use std::sync::Arc;

use axum::{Router, extract::Request};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{Staff, introduce_callers, names};
use crate::{
    config::{ConfigError, Reread, Settings},
    http::{Front, FrontSettings, admin, health::Readiness, router},
    limit::Limiter,
    run::Runs,
    telemetry,
};

/// The most keys that are named in a line of the log.
const MAX_NAMED: usize = 20;

/// One reading of the settings, in force.
pub(super) struct Generation {
    number: u64,
    settings: Settings,
    staff: Staff,
    /// The routes of clients.
    pub(super) public: Router,
    /// The routes of the admin listener.
    pub(super) admin: Router,
}

/// The things that all generations have together.
pub(super) struct Shared {
    /// The room of all runs, without any generation's agents, providers and tools.
    pub(super) runs: Arc<Runs>,
    pub(super) limiter: Arc<Limiter>,
    pub(super) readiness: Arc<Readiness>,
}

impl Shared {
    /// Puts a generation together.
    fn generation(&self, number: u64, runs: Arc<Runs>, settings: Settings, staff: Staff) -> Arc<Generation> {
        let front = Front {
            runs,
            issuer: staff.issuer.clone(),
            limiter: self.limiter.clone(),
            settings: Arc::new(FrontSettings {
                max_body: settings.max_body,
                max_headers: settings.listener.max_headers,
                memory: self.runs.memory.clone(),
                body_timeout: settings.body_timeout,
                public_url: settings.public_url.clone(),
                heartbeat: settings.heartbeat,
                detach_grace: settings.detach_grace,
                allowed_origins: settings.cors_allowed_origins.clone(),
                access: settings.access.clone(),
                generation: number,
                loaded_at: Timestamp::now(),
                log_requests: settings.log_requests,
                refused_origins: Arc::default(),
            }),
            readiness: self.readiness.clone(),
        };
        Arc::new(Generation {
            number,
            settings,
            staff,
            public: router(front.clone()),
            admin: admin::router(front),
        })
    }
}

/// The generation in force, and the next ones.
pub(super) struct Generations {
    shared: Shared,
    current: watch::Sender<Arc<Generation>>,
}

impl Generations {
    /// The first one.
    pub(super) fn begin(shared: Shared, runs: Arc<Runs>, settings: Settings, staff: Staff) -> Self {
        let first = shared.generation(1, runs, settings, staff);
        let current = watch::Sender::new(first);
        Self { shared, current }
    }

    /// The one in force, for whoever needs it as long as the gateway lives.
    pub(super) fn follow(&self) -> Current {
        Current {
            runs: self.shared.runs.clone(),
            generation: self.current.subscribe(),
        }
    }

    /// The room of all runs.
    pub(super) fn runs(&self) -> &Runs {
        &self.shared.runs
    }

    /// Puts settings in force that `load` reads again; those that are wrong change nothing.
    pub(super) async fn reload(&self, load: impl FnOnce(&Settings) -> Result<Reread, ConfigError>) {
        let old = self.current.borrow().clone();
        let meters = &self.shared.runs.meters;
        match self.next(&old, load).await {
            Ok(next) => {
                meters.settings_read(Some(next.number));
                self.current.send_replace(next);
            }
            Err(why) => {
                meters.settings_read(None);
                let generation = old.number;
                tracing::error!(
                    generation,
                    "the settings were read again and are wrong, so nothing changes: {why}"
                );
            }
        }
    }

    /// The generation that follows, ready to serve.
    async fn next(
        &self,
        old: &Generation,
        load: impl FnOnce(&Settings) -> Result<Reread, ConfigError>,
    ) -> Result<Arc<Generation>, String> {
        let reread = load(&old.settings).map_err(|e| e.problems().join("; "))?;
        let Reread {
            settings,
            changed,
            needs_restart,
        } = reread;
        let meters = &self.shared.runs.meters;
        let staff = Staff::new(&settings, meters, Some((&old.settings, &old.staff)));
        let staff = staff.map_err(|e| e.message.replace("\n  ", " "))?;
        // Before anything is replaced, so that the first run finds the tools of new servers.
        staff.tools.begin().await;
        telemetry::refilter(&settings.log_filter)?;
        meters.learn(names(&settings));
        let generation = old.number + 1;
        tracing::info!(
            generation,
            changed = named(&changed),
            "the settings were read again; they hold for runs that start from now on"
        );
        if !needs_restart.is_empty() {
            tracing::warn!(
                generation,
                "these settings changed too, and wait for a restart: {}",
                named(&needs_restart)
            );
        }
        introduce_callers(&settings);
        let parts = (staff.agents.clone(), staff.providers.clone(), staff.tools.clone());
        let runs = self.shared.runs.renewed(parts, settings.runs);
        Ok(self.shared.generation(generation, runs, settings, staff))
    }
}

/// Keys, as far as a line has room for them.
fn named(keys: &[String]) -> String {
    let more = keys.len().saturating_sub(MAX_NAMED);
    let shown = keys[..keys.len() - more].join(", ");
    match (shown.as_str(), more) {
        ("", _) => "nothing".to_owned(),
        (_, 0) => shown,
        (_, more) => format!("{shown} and {more} more"),
    }
}

/// The generation in force, whichever that is at the moment.
#[derive(Clone)]
pub(super) struct Current {
    runs: Arc<Runs>,
    generation: watch::Receiver<Arc<Generation>>,
}

impl Current {
    /// The room of all runs.
    pub(super) fn runs(&self) -> Arc<Runs> {
        self.runs.clone()
    }

    /// A router that hands each request to the router of the generation in force.
    pub(super) fn router(&self, pick: fn(&Generation) -> &Router) -> Router {
        let generation = self.generation.clone();
        Router::new().fallback(move |request: Request| {
            let router = pick(&generation.borrow()).clone();
            TowerToHyperService::new(router).call(request)
        })
    }

    /// Keeps the keys of the issuer up to date, whichever is in force, for ever.
    pub(super) async fn keep_issuer_keys(&self) {
        let mut generation = self.generation.clone();
        loop {
            let issuer = generation.borrow_and_update().staff.issuer.clone();
            let keep = async {
                match &issuer {
                    Some(issuer) => issuer.keep().await,
                    None => std::future::pending().await,
                }
            };
            let is_other = |next: &Arc<Generation>| match (&issuer, &next.staff.issuer) {
                (Some(old), Some(new)) => !old.shares_keys(new),
                (old, new) => old.is_some() != new.is_some(),
            };
            let gone = async { generation.wait_for(is_other).await.is_err() };
            tokio::select! {
                () = keep => {}
                gone = gone => if gone {
                    return std::future::pending().await; // so is the gateway
                },
            }
        }
    }

    /// Stops the servers of the tools in force, and waits for those that were to stop before.
    pub(super) async fn close_tools(&self) {
        let tools = self.generation.borrow().staff.tools.clone();
        tools.close().await;
    }
}

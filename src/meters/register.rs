//! What there is to be counted: every meter's name, and a sentence on it. The names are a promise to dashboards.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, info::Info},
    registry::{Metric, Registry, Unit},
};

use super::{
    Arc, ConfigMeters, Count, Level, Meters, PREFIX, Relay, RwLock, Standing, Times,
    label::{Disconnect, Format, Reload, Resume, Shed},
    process::Process,
    timing::Timing,
};

/// A meter on the register.
fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// The same, in seconds; the name ends so.
fn timed<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

impl Meters {
    /// Meters at zero. `names` are what may be the value of a label beside our own words: agents, providers, models, tools and
    /// routes, as configured.
    #[must_use]
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::default())); // by the names that everybody's processes have
        let r = registry.sub_registry_with_prefix(PREFIX);
        let meters = Self {
            names: RwLock::new(names.into_iter().map(Arc::from).collect()),
            requests: add(
                r,
                "http_requests",
                "Requests answered, by route, method and status",
                Count::default(),
            ),
            connections: add(
                r,
                "connections_open",
                "Connections of clients that are open",
                Gauge::default(),
            ),
            accept_errors: add(
                r,
                "accept_errors",
                "Connections that could not be accepted",
                Counter::default(),
            ),
            slow_clients: add(
                r,
                "slow_clients",
                "Connections cut because their client took nothing for too long",
                Counter::default(),
            ),
            disconnects: add(
                r,
                "client_disconnects",
                "Clients that went before their answer's end, by what they had of it; or were lost",
                Count::default(),
            ),
            streams: add(r, "streams_open", "Answers being given, by format", Level::default()),
            auth_failures: add(
                r,
                "auth_failures",
                "Requests refused for their credential, by code",
                Count::default(),
            ),
            rate_limited: add(
                r,
                "rate_limited",
                "Requests refused by a caller's own limits",
                Counter::default(),
            ),
            runs: add(
                r,
                "runs",
                "Runs that ended, by how, by agent and by provider",
                Count::default(),
            ),
            run_seconds: timed(r, "run_duration", "How long runs took", Timing::default()),
            resumes: add(
                r,
                "resumes",
                "Readers that came back with the id of an event, by what they found",
                Count::default(),
            ),
            idempotent_hits: add(
                r,
                "idempotent_hits",
                "Requests whose key had started their run before",
                Counter::default(),
            ),
            session_conflicts: add(
                r,
                "session_conflicts",
                "Requests and runs that found their session taken",
                Counter::default(),
            ),
            shed: add(
                r,
                "shed",
                "Runs, bodies and connections refused because this gateway was at a limit, by limit",
                Count::default(),
            ),
            standing: Standing {
                running: add(r, "runs_active", "Runs under way", Gauge::default()),
                kept: add(
                    r,
                    "runs_finished_kept",
                    "Ended runs whose logs can still be read",
                    Gauge::default(),
                ),
                log_bytes: add(r, "log_memory_bytes", "Bytes in the logs of all runs", Gauge::default()),
                log_limit: add(r, "log_memory_limit_bytes", "How many these may be", Gauge::default()),
                tasks: add(r, "tasks", "Tasks of the process", Gauge::default()),
                panics: add(r, "panics", "Panics of the process", Counter::default()),
                log_dropped: add(
                    r,
                    "log_dropped",
                    "Lines of the log that nobody took",
                    Counter::default(),
                ),
            },
            upstream_requests: add(
                r,
                "upstream_requests",
                "Calls to models, by provider and model",
                Count::default(),
            ),
            upstream_errors: add(
                r,
                "upstream_errors",
                "Calls to models that failed in the end, by provider and kind; attempts that were made again are in upstream_retries",
                Count::default(),
            ),
            upstream_retries: add(
                r,
                "upstream_retries",
                "Calls that were made again before anything was said, by provider and reason",
                Count::default(),
            ),
            upstream_tolerated: add(
                r,
                "upstream_tolerated",
                "Complete answers that had something wrong with them, by provider and kind",
                Count::default(),
            ),
            upstream_inflight: add(
                r,
                "upstream_inflight",
                "Calls to models under way, by provider",
                Level::default(),
            ),
            first_token: timed(
                r,
                "time_to_first_token",
                "From the beginning of a run to the first thing its model said, by provider",
                Times::default(),
            ),
            token_gap: timed(
                r,
                "token_gap",
                "Between two pieces of an answer as they came in, by provider",
                Times::default(),
            ),
            tokens: add(
                r,
                "tokens",
                "Tokens, by provider, model and direction",
                Count::default(),
            ),
            tokens_estimated: add(
                r,
                "tokens_estimated",
                "Of the tokens of input and output: in calls whose provider did not say all numbers",
                Count::default(),
            ),
            tool_calls: add(r, "tool_calls", "Calls of tools, by tool and outcome", Count::default()),
            store_up: add(
                r,
                "store_up",
                "Whether the store can be reached and written to",
                Gauge::default(),
            ),
            store_errors: add(
                r,
                "store_errors",
                "Operations of the store that failed, by kind",
                Count::default(),
            ),
            commit_seconds: timed(
                r,
                "store_commit",
                "How long the end of a run took to be written",
                Timing::default(),
            ),
            recovered: add(
                r,
                "recovered_runs",
                "Runs that a process which is no more left running, found at the start",
                Counter::default(),
            ),
            lease_expired: add(
                r,
                "lease_expired",
                "Runs of other gateways that were given up because those said nothing any more",
                Counter::default(),
            ),
            commit_unknown: add(
                r,
                "commit_unknown",
                "Writes of a run's end of which nobody knows whether they were done",
                Counter::default(),
            ),
            store_reconnects: add(
                r,
                "store_reconnects",
                "Operations tried again because the connection to the store broke",
                Counter::default(),
            ),
            config: ConfigMeters {
                generation: add(
                    r,
                    "config_generation",
                    "The number of the settings in force: 1 at the start, one more each time that they are read again",
                    Gauge::default(),
                ),
                reloads: add(
                    r,
                    "config_reloads",
                    "How often the settings were read again, by outcome",
                    Count::default(),
                ),
                last_successful: add(
                    r,
                    "config_last_reload_successful",
                    "Whether the settings were right when they were read last",
                    Gauge::default(),
                ),
            },
            relay: Relay::default(),
            spans_lost: Counter::default(),
            registry: Registry::default(),
        };
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "What runs here", version);
        let meters = Self { registry, ..meters };
        meters.begin();
        meters
    }

    /// Series of ours are there from the beginning: a rate over one that appears at its first event misses that event.
    fn begin(&self) {
        for word in Format::ALL {
            drop(self.streams.get_or_create(&[("format", word.label())]));
        }
        for word in Disconnect::ALL {
            drop(self.disconnects.get_or_create(&[("phase", word.label())]));
        }
        for word in Resume::ALL {
            drop(self.resumes.get_or_create(&[("how", word.label())]));
        }
        self.config.generation.set(1);
        self.config.last_successful.set(1);
        for word in Reload::ALL {
            drop(self.config.reloads.get_or_create(&[("outcome", word.label())]));
        }
        for word in Shed::ALL {
            drop(self.shed.get_or_create(&[("reason", word.label())]));
        }
    }

    /// Adds what is only there with a relay. Before anybody counts.
    pub fn expect_relay(&mut self) {
        let registry = self.registry.sub_registry_with_prefix(PREFIX);
        let help = "Whether other gateways can be told of runs";
        registry.register("relay_up", help, self.relay.up.clone());
        let help = "For how long runs have waited to be told to other gateways";
        let lag = self.relay.lag.clone();
        registry.register_with_unit("event_log_lag", help, Unit::Seconds, lag);
    }

    /// Adds what is only there with a collector of traces. Before anybody counts.
    pub fn expect_traces(&mut self) {
        let lost = self.spans_lost.clone();
        let help = "Spans that there was no room for, or that the collector did not take";
        self.registry
            .sub_registry_with_prefix(PREFIX)
            .register("spans_lost", help, lost);
    }
}

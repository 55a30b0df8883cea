//! What is counted, for whoever watches from outside: knows nobody, and everybody may count.
//!
//! One [`Meters`] belongs to one gateway; there are no globals. The value of a label is a word of ours, or a name out of the
//! configuration ([`Meters::new`]); a name that is neither is `other`, so that nobody outside can make a series.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

mod call;
mod label;
mod process;
mod prometheus;
mod register;
mod timing;

pub use call::CallMeter;
pub use label::{Direction, Disconnect, Format, Label, Outcome, Reload, Resume, Shed, Tolerated};

use timing::Timing;

/// What all names begin with, but those of the process.
const PREFIX: &str = "sluicegate";

/// Labels, by name.
type Labels<const N: usize> = [(&'static str, Label); N];
type Count<const N: usize> = Family<Labels<N>, Counter>;
type Level<const N: usize> = Family<Labels<N>, Gauge>;
type Times<const N: usize> = Family<Labels<N>, Timing>;

/// The meters of a gateway.
#[derive(Debug)]
pub struct Meters {
    registry: Registry,
    /// What may be the value of a label, out of the configuration.
    names: RwLock<BTreeSet<Arc<str>>>,

    requests: Count<3>,
    connections: Gauge,
    accept_errors: Counter,
    slow_clients: Counter,
    disconnects: Count<1>,
    streams: Level<1>,
    auth_failures: Count<1>,
    rate_limited: Counter,

    runs: Count<3>,
    run_seconds: Timing,
    resumes: Count<1>,
    idempotent_hits: Counter,
    session_conflicts: Counter,
    shed: Count<1>,
    /// What is looked up when somebody asks for the meters.
    standing: Standing,

    upstream_requests: Count<2>,
    upstream_errors: Count<2>,
    upstream_retries: Count<2>,
    upstream_tolerated: Count<2>,
    upstream_inflight: Level<1>,
    first_token: Times<1>,
    token_gap: Times<1>,
    tokens: Count<3>,
    tokens_estimated: Count<2>,
    tool_calls: Count<2>,

    store_up: Gauge,
    store_errors: Count<1>,
    commit_seconds: Timing,
    recovered: Counter,
    lease_expired: Counter,
    commit_unknown: Counter,
    store_reconnects: Counter,
    config: ConfigMeters,
    relay: Relay,
    spans_lost: Counter,
}

/// Levels that others know: they are set before the meters are read.
#[derive(Debug, Default)]
struct Standing {
    running: Gauge,
    kept: Gauge,
    log_bytes: Gauge,
    log_limit: Gauge,
    tasks: Gauge,
    panics: Counter,
    log_dropped: Counter,
}

/// The settings, and how reading them again went.
#[derive(Debug, Default)]
struct ConfigMeters {
    generation: Gauge,
    reloads: Count<1>,
    last_successful: Gauge,
}

/// What other gateways are told through; its meters are there only if it is.
#[derive(Debug, Default)]
struct Relay {
    up: Gauge,
    lag: Gauge<f64, AtomicU64>,
}

/// How the runs of a gateway stand at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunsNow {
    /// Runs under way.
    pub running: usize,
    /// Runs that ended and whose logs can still be read.
    pub kept: usize,
    /// Bytes in all logs.
    pub log_bytes: usize,
    /// How many they may be.
    pub log_limit: usize,
}

impl Default for Meters {
    fn default() -> Self {
        Self::new([])
    }
}

impl Meters {
    /// All of it, as OpenMetrics text 1.0.0.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(16 << 10);
        // A string takes everything.
        match text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(_) => String::new(),
        }
    }

    /// All of it, as Prometheus text 0.0.4.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        prometheus::from_open_metrics(&self.text())
    }

    /// A name as the value of a label: itself if it is configured, else `other`.
    #[must_use]
    pub fn label(&self, name: &str) -> Label {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let known = names.get(name);
        known.map_or(Label::OTHER, |name| Label::Name(name.clone()))
    }

    /// Takes further names of the configuration as values of labels.
    pub fn learn(&self, names: impl IntoIterator<Item = String>) {
        let mut known = self.names.write().unwrap_or_else(PoisonError::into_inner);
        known.extend(names.into_iter().map(Arc::from));
    }

    /// The settings were read again, and are in force under this number; `None`: they were wrong.
    pub fn settings_read(&self, generation: Option<u64>) {
        let outcome = match generation {
            Some(_) => Reload::Applied,
            None => Reload::Refused,
        };
        let labels = [("outcome", outcome.label())];
        self.config.reloads.get_or_create(&labels).inc();
        self.config.last_successful.set(generation.is_some().into());
        if let Some(generation) = generation {
            let number = i64::try_from(generation).unwrap_or(i64::MAX);
            self.config.generation.set(number);
        }
    }

    // The front door.

    /// A request was answered. `route` is the template of its path, if it has one.
    pub fn request(&self, route: Option<&str>, method: &str, status: u16) {
        const METHODS: [&str; 7] = ["GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"];
        let route = route.map_or(Label::Word("unmatched"), |route| self.label(route));
        let method = METHODS.into_iter().find(|known| *known == method).unwrap_or("other");
        let labels = [
            ("route", route),
            ("method", Label::Word(method)),
            ("status", Label::Number(status)),
        ];
        self.requests.get_or_create(&labels).inc();
    }

    /// A connection was accepted; it is open until the guard is dropped.
    #[must_use]
    pub fn connection(&self) -> Open {
        Open::new(self.connections.clone())
    }

    /// A connection could not be accepted.
    pub fn accept_failed(&self) {
        self.accept_errors.inc();
    }

    /// A connection was cut because its client took nothing.
    pub fn slow_client(&self) {
        self.slow_clients.inc();
    }

    /// An answer is being given, until the guard is dropped.
    #[must_use]
    pub fn stream(&self, format: Format) -> Open {
        let streams = self.streams.get_or_create_owned(&[("format", format.label())]);
        Open::new(streams)
    }

    /// A client went before its answer's end.
    pub fn disconnected(&self, phase: Disconnect) {
        self.disconnects.get_or_create(&[("phase", phase.label())]).inc();
    }

    /// A request was refused for its credential, with this code.
    pub fn auth_failed(&self, code: &'static str) {
        self.auth_failures.get_or_create(&[("code", Label::Word(code))]).inc();
    }

    /// A request was refused because its caller is at a limit of its own.
    pub fn rate_limited(&self) {
        self.rate_limited.inc();
    }

    // Runs.

    /// A run ended: called once for each.
    pub fn run_ended(&self, outcome: Outcome, agent: &str, provider: &str, took: Duration) {
        let labels = [
            ("outcome", outcome.label()),
            ("agent", self.label(agent)),
            ("provider", self.label(provider)),
        ];
        self.runs.get_or_create(&labels).inc();
        self.run_seconds.observe(took);
    }

    /// A reader came back.
    pub fn resumed(&self, how: Resume) {
        self.resumes.get_or_create(&[("how", how.label())]).inc();
    }

    /// A key had started its run before.
    pub fn idempotent_hit(&self) {
        self.idempotent_hits.inc();
    }

    /// A session was taken.
    pub fn session_conflict(&self) {
        self.session_conflicts.inc();
    }

    /// A run, a request's body or a connection was refused because this gateway is at a limit: once for each that was.
    pub fn shed(&self, reason: Shed) {
        self.shed.get_or_create(&[("reason", reason.label())]).inc();
    }

    /// How runs stand.
    pub fn runs_now(&self, now: RunsNow) {
        let level = |gauge: &Gauge, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        level(&self.standing.running, now.running);
        level(&self.standing.kept, now.kept);
        level(&self.standing.log_bytes, now.log_bytes);
        level(&self.standing.log_limit, now.log_limit);
    }

    /// What the process as a whole can say: its tasks, its panics, and the lines that its log has lost.
    pub fn process_now(&self, tasks: usize, panics: u64, log_dropped: u64) {
        self.standing.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
        self.standing.panics.inner().store(panics, Ordering::Relaxed);
        self.standing.log_dropped.inner().store(log_dropped, Ordering::Relaxed);
    }

    /// How many spans were lost.
    pub fn spans_lost(&self, lost: u64) {
        self.spans_lost.inner().store(lost, Ordering::Relaxed);
    }

    // The back door.

    /// A model is being called, until the meter is dropped.
    #[must_use]
    pub fn call(&self, provider: &str, model: &str) -> CallMeter {
        let (provider, model) = (self.label(provider), self.label(model));
        let of_provider = [("provider", provider.clone())];
        self.upstream_requests
            .get_or_create(&[("provider", provider.clone()), ("model", model)])
            .inc();
        CallMeter::new(
            Open::new(self.upstream_inflight.get_or_create_owned(&of_provider)),
            self.first_token.get_or_create_owned(&of_provider),
            self.token_gap.get_or_create_owned(&of_provider),
        )
    }

    /// A call to a model failed, in the end. Attempts that were made again are not counted here but by
    /// [`Meters::call_again`]: so that what was mended does not look like a failure, and one call is one failure however
    /// often it was tried. Of a run that another model was asked for instead, the call to the first has failed.
    pub fn call_failed(&self, provider: &str, kind: &'static str) {
        let labels = [("provider", self.label(provider)), ("kind", Label::Word(kind))];
        self.upstream_errors.get_or_create(&labels).inc();
    }

    /// A call to a model is made again: once for each repetition, by what made it necessary.
    pub fn call_again(&self, provider: &str, reason: &'static str) {
        let labels = [("provider", self.label(provider)), ("reason", Label::Word(reason))];
        self.upstream_retries.get_or_create(&labels).inc();
    }

    /// A call's answer is complete, and had this wrong with it: once for each kind.
    pub fn call_tolerated(&self, provider: &str, what: Tolerated) {
        let labels = [("provider", self.label(provider)), ("kind", what.label())];
        self.upstream_tolerated.get_or_create(&labels).inc();
    }

    /// What a call cost.
    pub fn tokens(&self, provider: &str, model: &str, direction: Direction, count: Option<u64>) {
        let Some(count) = count else { return };
        let labels = [
            ("provider", self.label(provider)),
            ("model", self.label(model)),
            ("direction", direction.label()),
        ];
        self.tokens.get_or_create(&labels).inc_by(count);
    }

    /// How much of what a call cost was estimated, in part or as a whole.
    pub fn tokens_estimated(&self, provider: &str, model: &str, count: u64) {
        let labels = [("provider", self.label(provider)), ("model", self.label(model))];
        self.tokens_estimated.get_or_create(&labels).inc_by(count);
    }

    /// A tool was called, or was not.
    pub fn tool_called(&self, tool: &str, outcome: &'static str) {
        let labels = [("tool", self.label(tool)), ("outcome", Label::Word(outcome))];
        self.tool_calls.get_or_create(&labels).inc();
    }

    // What is kept.

    /// Whether the store can be used: 1 if so, else 0.
    pub fn store_is(&self, up: i64) {
        self.store_up.set(up);
    }

    /// An operation of the store failed.
    pub fn store_failed(&self, kind: &'static str) {
        self.store_errors.get_or_create(&[("kind", Label::Word(kind))]).inc();
    }

    /// The end of a run was written.
    pub fn committed(&self, took: Duration) {
        self.commit_seconds.observe(took);
    }

    /// So many runs had been left running.
    pub fn recovered(&self, runs: u64) {
        self.recovered.inc_by(runs);
    }

    /// So many runs of other gateways were given up.
    pub fn leases_expired(&self, runs: u64) {
        self.lease_expired.inc_by(runs);
    }

    /// Nobody knows whether a run's end was written.
    pub fn commit_unknown(&self) {
        self.commit_unknown.inc();
    }

    /// The connection to the store broke, and another one is tried.
    pub fn store_reconnects(&self) {
        self.store_reconnects.inc();
    }

    /// Whether the relay can be used: 1 if so, else 0.
    pub fn relay_is(&self, up: i64) {
        self.relay.up.set(up);
    }

    /// For how long runs have waited to be told through the relay.
    pub fn relay_lag(&self, lag: Duration) {
        self.relay.lag.set(lag.as_secs_f64());
    }
}

/// One more of something, as long as this lives.
#[derive(Debug)]
pub struct Open(Gauge<i64, AtomicI64>);

impl Open {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_configured_makes_no_series() {
        let meters = Meters::new(["assistant".to_owned(), "openai".to_owned(), "/chat".to_owned()]);
        for evil in ["openai", "evil\"} 1\n", "evil2"] {
            meters.call_failed(evil, "gap");
            meters.request(Some(evil), evil, 200);
        }
        meters.request(Some("/chat"), "POST", 200);
        meters.request(None, "BREW", 404);
        let text = meters.text();
        assert!(!text.contains("evil"), "{text}");
        let lines = |start: &str| text.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
        let errors = lines("sluicegate_upstream_errors_total");
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors.contains(&"sluicegate_upstream_errors_total{provider=\"other\",kind=\"gap\"} 2"));
        let unmatched = "sluicegate_http_requests_total{route=\"unmatched\",method=\"other\",status=\"404\"} 1";
        assert!(text.contains(unmatched), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_is_open_is_counted_as_long_as_it_is() {
        let meters = Meters::default();
        let (one, two) = (meters.stream(Format::Sse), meters.stream(Format::Sse));
        assert!(meters.text().contains("sluicegate_streams_open{format=\"sse\"} 2\n"));
        drop((one, two));
        assert!(meters.text().contains("sluicegate_streams_open{format=\"sse\"} 0\n"));
    }
}

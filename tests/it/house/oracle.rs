//! What must hold after every fault, whatever it was: the books are closed, nothing is left over, nobody was told a
//! secret, and life goes on.
//!
//! A story takes an [`Oracle`] while nothing goes on, lets it hear all that clients are told, and asks it in the end:
//!
//! ```ignore
//! let mut oracle = Oracle::at_rest(&gateway, &upstream, &[KEY]).await; // after a normal turn
//! // ... the fault; `oracle.hear(…)` for everything that a client was told
//! oracle.let_go().await;
//! oracle.one_ending(&run_id, &RunEnding::failed("upstream_truncated"), Billed::OneCallEstimated).await;
//! // ... another normal turn
//! oracle.nothing_left_over().await;
//! oracle.no_secret_told();
//! gateway.stop().await;
//! ```

use std::fmt::{Debug, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::Row as _;

use super::meters::Wrong;
use super::{Gateway, Meters, Place, Process, Reader, Upstream, eventually, get, log, soon, within};

/// How soon an upstream must be let go of once its run has ended.
pub(crate) const LET_GO: Duration = Duration::from_secs(1);
/// How long that may take where the machine does something else for a moment. What is not let go of hangs for much longer.
const AT_MOST: Duration = Duration::from_secs(5);
/// How soon all that a run held must be free.
const SETTLED: Duration = Duration::from_secs(5);

/// How a run ended, as all who know of it must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunEnding {
    /// `completed`, `failed`, `cancelled` or `interrupted`.
    pub(crate) status: &'static str,
    /// The code of its error, where it has one.
    pub(crate) code: Option<&'static str>,
}

impl RunEnding {
    pub(crate) fn completed() -> Self {
        let (status, code) = ("completed", None);
        Self { status, code }
    }

    pub(crate) fn failed(code: &'static str) -> Self {
        Self {
            status: "failed",
            code: Some(code),
        }
    }
}

/// Whether a provider was sent the run's request, so that it may have cost something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Billed {
    Nothing,
    /// One model call that has to be in the books, whatever it was asked how often.
    OneCall,
    /// One, and the provider said nothing of its cost.
    OneCallEstimated,
}

/// A gateway that can be looked at from all sides.
pub(crate) trait Watched: Place {
    /// Where its files are.
    fn folder(&self) -> &Path;
    /// The lines that say how a run ended.
    async fn ends_of(&self, run_id: &str) -> Vec<String>;
    /// Lines of its log with one of these words in them.
    fn lines_with(&self, words: &[&str]) -> Vec<String>;
    /// Its tasks, where they can be counted. Inside a test they are all those of the test's runtime; a connection, to either
    /// side, has one.
    fn tasks(&self) -> usize;
    /// Where its meters can be read, if they can.
    async fn meters_at(&self) -> Option<SocketAddr>;
    /// Its open files and sockets, as far as it can be told which are its own.
    fn files(&self) -> usize;
}

impl Watched for Gateway {
    fn folder(&self) -> &Path {
        Gateway::folder(self)
    }

    async fn ends_of(&self, run_id: &str) -> Vec<String> {
        log::ends_of(run_id)
    }

    fn lines_with(&self, words: &[&str]) -> Vec<String> {
        let mut lines = log::leaks();
        lines.retain(|line| words.iter().any(|word| line.contains(word)));
        lines
    }

    fn tasks(&self) -> usize {
        tokio::runtime::Handle::current().metrics().num_alive_tasks()
    }

    async fn meters_at(&self) -> Option<SocketAddr> {
        self.may_admin()
    }

    fn files(&self) -> usize {
        let own = |file: &Path| file.starts_with(self.folder());
        files(std::process::id(), own) // other gateways of other stories are in this process too
    }
}

impl Watched for Process {
    fn folder(&self) -> &Path {
        Process::folder(self)
    }

    async fn ends_of(&self, run_id: &str) -> Vec<String> {
        self.logged(run_id).await; // it comes through a pipe
        let log = Process::log(self);
        let ends = |line: &&str| line.contains(run_id) && line.contains("a run ended");
        log.lines().filter(ends).map(str::to_owned).collect()
    }

    fn lines_with(&self, words: &[&str]) -> Vec<String> {
        let log = Process::log(self);
        let told = |line: &&str| words.iter().any(|word| line.contains(word));
        log.lines().filter(told).map(str::to_owned).collect()
    }

    fn tasks(&self) -> usize {
        0 // nobody outside can see them
    }

    async fn meters_at(&self) -> Option<SocketAddr> {
        Some(self.admin().await)
    }

    fn files(&self) -> usize {
        files(self.pid(), |_| true)
    }
}

/// What is open while nothing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    tasks: usize,
    /// Connections that the upstream has.
    connections: usize,
    /// Not the database's: its pool opens what it needs, and keeps it.
    files: usize,
}

impl Held {
    fn is_within(&self, before: &Self) -> bool {
        self.tasks <= before.tasks && self.connections <= before.connections && self.files <= before.files
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Oracle<'a, G> {
    gateway: &'a G,
    upstream: &'a Upstream,
    secrets: &'a [&'a str],
    /// Those that may stand in the one line that has an upstream's reason.
    reasons: &'a [&'a str],
    before: Held,
    told: String,
    /// Where the meters are, and how they stood before the fault.
    meters: Option<(SocketAddr, Meters)>,
}

impl<'a, G: Watched> Oracle<'a, G> {
    /// Takes note of what is held while nothing goes on: after a normal turn, so that what is opened once is open. (The
    /// upstream closes the connections of normal turns: whether one can be kept is a matter of microseconds.) The
    /// `secrets` are what nobody may be told: keys, and an upstream's own words.
    pub(crate) async fn at_rest(gateway: &'a G, upstream: &'a Upstream, secrets: &'a [&'a str]) -> Self {
        log::listen(secrets);
        let mut oracle = Self {
            gateway,
            upstream,
            secrets,
            reasons: &[],
            before: Held {
                tasks: 0,
                connections: 0,
                files: 0,
            },
            told: String::new(),
            meters: None,
        };
        let mut same = 0;
        eventually("the gateway to come to rest", async || {
            let held = oracle.held();
            same = if held == oracle.before { same + 1 } else { 0 };
            oracle.before = held;
            (same >= 5).then_some(())
        })
        .await;
        oracle.read_meters().await;
        oracle
    }

    /// These of the secrets are an upstream's words: the operator's warning of a refusal may repeat them.
    pub(crate) fn admitting_reasons(mut self, reasons: &'a [&'a str]) -> Self {
        self.reasons = reasons;
        self
    }

    /// Takes note of the meters, where there are any: what is counted from here on is the fault's.
    pub(crate) async fn read_meters(&mut self) {
        if let Some(admin) = self.gateway.meters_at().await {
            self.meters = Some((admin, Meters::of(&admin).await));
        }
    }

    /// Somebody was told this.
    pub(crate) fn hear(&mut self, what: impl Debug) {
        let _ = writeln!(self.told, "{what:?}");
    }

    /// The upstream has seen its connection closed, or the whole answer go out, and the gateway says so. To be asked as
    /// soon as the client knows how it ended.
    pub(crate) async fn let_go(&self) -> Duration {
        let began = Instant::now();
        let let_go = async {
            self.upstream.idle().await;
            let Some((admin, _)) = &self.meters else { return };
            eventually("no call under way and no answer being given", async || {
                let now = Meters::of(admin).await;
                (now.sum("upstream_inflight") == 0.0 && now.sum("streams_open") == 0.0).then_some(())
            })
            .await;
        };
        within(AT_MOST, "the upstream to be let go of", let_go).await;
        began.elapsed()
    }

    /// One run has been counted since the meters were read, as one that ended so; and of what providers did wrong in it
    /// exactly this. Nothing that is counted tells a secret.
    pub(crate) async fn counted(&mut self, status: &str, wrong: &Wrong) {
        let Some((admin, before)) = &self.meters else {
            panic!("a gateway whose meters can be read")
        };
        let now = Meters::of(admin).await;
        now.assert_one_run_since(before, status, wrong);
        self.told.push_str(now.text());
    }

    /// The run has ended once and in this way: for whoever looks, in its log, in the gateway's log, and in the books.
    /// Gives what `GET /runs/{run_id}` says.
    pub(crate) async fn one_ending(&mut self, run_id: &str, ending: &RunEnding, billed: Billed) -> Value {
        let path = format!("/runs/{run_id}");
        let run = get(self.gateway, &path).await.expect(200).await.json().await;
        self.hear(&run);
        let code = |told: &Value| told["error"]["code"].as_str().map(str::to_owned);
        assert_eq!(run["status"], ending.status, "{run}");
        assert_eq!(code(&run).as_deref(), ending.code, "{run}");

        let log = get(self.gateway, &format!("{path}/events")).await.expect(200).await;
        let log = log.read_as(Reader::anywhere()).transcript().await; // which refuses anything after the last event
        self.hear(&log.events);
        let last = log.terminal();
        assert_eq!(last.event == "done", ending.status == "completed", "{last:?}");
        assert_eq!(code(&last.json()).as_deref(), ending.code, "{last:?}");
        assert_eq!(run["last_seq"], last.seq, "{run}");

        let lines = self.gateway.ends_of(run_id).await;
        let [line] = &lines[..] else {
            panic!("{} lines say how {run_id} ended: {lines:#?}", lines.len());
        };
        for word in [ending.status].into_iter().chain(ending.code) {
            assert!(line.contains(&format!("\"{word}\"")), "no {word} in {line}");
        }
        self.one_entry(run_id, &run["usage"], billed).await;
        run
    }

    /// What the run cost is in the books once, and is what the run says of itself.
    async fn one_entry(&self, run_id: &str, usage: &Value, billed: Billed) {
        let file = self.gateway.folder().join(self.database());
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
        let sql = "SELECT input_tokens, output_tokens, estimated FROM model_calls WHERE run_id = ?";
        let entries = soon("the books", async {
            let mut db = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options)
                .await
                .expect("the gateway's database");
            let entries = sqlx::query(sql).bind(run_id).fetch_all(&mut db).await;
            let _ = sqlx::Connection::close(db).await;
            entries.expect("the books")
        })
        .await;
        let expected = usize::from(billed != Billed::Nothing);
        assert_eq!(entries.len(), expected, "entries for {run_id}, {usage}");
        for entry in entries {
            let number = |at: usize| -> Value { entry.get::<Option<i64>, _>(at).into() };
            let shown = (&usage["input_tokens"], &usage["output_tokens"]);
            assert_eq!((&number(0), &number(1)), shown, "the books of {run_id}");
            let estimated: bool = entry.get(2);
            assert_eq!(usage["estimated"], estimated, "the books of {run_id}");
            assert!(estimated || billed != Billed::OneCallEstimated, "nobody said {usage}");
        }
    }

    /// No more tasks, connections and files are held than before.
    pub(crate) async fn nothing_left_over(&self) {
        let now = std::cell::Cell::new(self.before);
        let settled = eventually("as much to be held as before", async || {
            now.set(self.held());
            now.get().is_within(&self.before).then_some(())
        });
        let settled = tokio::time::timeout(SETTLED, settled).await;
        assert!(
            settled.is_ok(),
            "held before: {:?}, after: {:?}",
            self.before,
            now.get()
        );
    }

    /// Nothing that anybody was told, and no line of the log, has a secret in it; but the warning of a refusal may have
    /// the upstream's words.
    pub(crate) fn no_secret_told(&self) {
        for secret in self.secrets {
            assert!(!self.told.contains(secret), "{secret} in {}", self.told);
        }
        let mut lines = self.gateway.lines_with(self.secrets);
        lines.retain(|line| !is_reason(line, self.secrets, self.reasons));
        assert!(lines.is_empty(), "in the log:\n{}", lines.join("\n"));
    }

    /// The database file, as the recipes call it.
    fn database(&self) -> PathBuf {
        let files = ["sluicegate.db", "data/sluicegate.db"].map(PathBuf::from);
        let there = |file: &PathBuf| self.gateway.folder().join(file).exists();
        files
            .into_iter()
            .find(there)
            .expect("a database in the gateway's folder")
    }

    fn held(&self) -> Held {
        Held {
            tasks: self.gateway.tasks(),
            connections: self.upstream.held(),
            files: self.gateway.files(),
        }
    }
}

/// Whether this is the warning of a refusal, with none of the secrets in it but these words of the upstream's.
pub(crate) fn is_reason(line: &str, secrets: &[&str], words: &[&str]) -> bool {
    let mut forbidden = secrets.iter().filter(|secret| !words.contains(secret));
    line.contains("the provider refuses what it is asked") && !forbidden.any(|secret| line.contains(secret))
}

/// How many such files and sockets a process holds.
fn files(process: u32, own: impl Fn(&Path) -> bool) -> usize {
    let Ok(held) = std::fs::read_dir(format!("/proc/{process}/fd")) else {
        return 0; // elsewhere than on Linux, the other counts must do
    };
    let targets = held.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let of_the_database = |file: &Path| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("sluicegate.db")
    };
    targets.filter(|file| own(file) && !of_the_database(file)).count()
}

mod tests {
    use serde_json::json;

    use super::super::{Call, Connection, openai, post};
    use super::*;

    const SECRET: &str = "canary-of-the-oracle";

    async fn at_work() -> (Upstream, Gateway) {
        let upstream = Upstream::always(openai::answer(&["Well."]).cut()).await;
        let gateway = Gateway::with(&upstream).patient().start().await;
        turn(&gateway).await;
        (upstream, gateway)
    }

    async fn turn(gateway: &Gateway) -> String {
        let answer = post(gateway, "/chat", json!({"message": "Hi"})).await.expect(200).await;
        answer.header("x-run-id").to_owned()
    }

    #[tokio::test]
    async fn after_a_turn_all_is_as_before() {
        let (upstream, gateway) = at_work().await;
        let mut oracle = Oracle::at_rest(&gateway, &upstream, &[SECRET]).await;
        let run = turn(&gateway).await;
        oracle.let_go().await;
        oracle.one_ending(&run, &RunEnding::completed(), Billed::OneCall).await;
        oracle.nothing_left_over().await;
        oracle.no_secret_told();
    }

    /// A turn that went well, and what is to be counted of it.
    async fn counted(status: &str, wrong: &Wrong) {
        let upstream = Upstream::always(openai::answer(&["Well."]).cut()).await;
        let recipe = Gateway::with(&upstream).patient();
        let gateway = recipe.toml(super::super::meters::WATCHED).start().await;
        turn(&gateway).await;
        let mut oracle = Oracle::at_rest(&gateway, &upstream, &[SECRET]).await;
        turn(&gateway).await;
        oracle.let_go().await;
        oracle.counted(status, wrong).await;
        oracle.no_secret_told();
    }

    #[tokio::test]
    async fn a_turn_is_counted() {
        counted("completed", &Wrong::default()).await;
    }

    #[tokio::test]
    #[should_panic(expected = "runs in all and failed")]
    async fn an_ending_that_is_counted_as_another_is_found() {
        counted("failed", &Wrong::default()).await;
    }

    #[tokio::test]
    #[should_panic(expected = "failures")]
    async fn a_failure_that_is_not_counted_is_found() {
        let wrong = Wrong {
            failed: true,
            ..Wrong::default()
        };
        counted("completed", &wrong).await;
    }

    #[tokio::test]
    #[should_panic(expected = "repetitions")]
    async fn a_repetition_that_is_not_counted_is_found() {
        let wrong = Wrong {
            again: Some(("429", 1)),
            ..Wrong::default()
        };
        counted("completed", &wrong).await;
    }

    #[tokio::test]
    #[should_panic(expected = "held before")]
    async fn a_socket_that_stays_open_is_found() {
        let (upstream, gateway) = at_work().await;
        let oracle = Oracle::at_rest(&gateway, &upstream, &[SECRET]).await;
        let asked = Connection::open(&gateway).await.call(Call::get("/healthz")).await;
        let (_, _open) = asked.body_and_connection().await;
        oracle.nothing_left_over().await;
    }

    #[tokio::test]
    #[should_panic(expected = "held before")]
    async fn a_task_that_does_not_end_is_found() {
        let (upstream, gateway) = at_work().await;
        let oracle = Oracle::at_rest(&gateway, &upstream, &[SECRET]).await;
        let _task = super::super::Task::spawn(std::future::pending());
        oracle.nothing_left_over().await;
    }

    #[tokio::test]
    #[should_panic(expected = "nobody said")]
    async fn a_cost_that_nobody_said_must_be_an_estimate() {
        let (upstream, gateway) = at_work().await;
        let mut oracle = Oracle::at_rest(&gateway, &upstream, &[SECRET]).await;
        let run = turn(&gateway).await;
        let billed = Billed::OneCallEstimated;
        oracle.one_ending(&run, &RunEnding::completed(), billed).await;
    }

    #[tokio::test]
    #[should_panic(expected = "in the log")]
    async fn a_secret_in_the_log_is_found() {
        let (upstream, gateway) = at_work().await;
        let oracle = Oracle::at_rest(&gateway, &upstream, &["words-that-somebody-logs"]).await;
        tracing::info!(said = "words-that-somebody-logs", "somebody is careless");
        oracle.no_secret_told();
    }

    #[tokio::test]
    #[should_panic(expected = "in the log")]
    async fn words_of_an_upstream_in_another_line_than_the_warning_are_found() {
        let (upstream, gateway) = at_work().await;
        let secrets = ["words-of-an-upstream"];
        let oracle = Oracle::at_rest(&gateway, &upstream, &secrets).await;
        let oracle = oracle.admitting_reasons(&secrets);
        tracing::info!(reason = "words-of-an-upstream", "a run ended");
        oracle.no_secret_told();
    }

    #[test]
    fn only_the_warning_of_a_refusal_has_reasons_and_never_a_key() {
        let admitted = |line| is_reason(line, &["key", "words"], &["words"]);
        assert!(admitted(
            "reason=words: *** message=the provider refuses what it is asked"
        ));
        assert!(!admitted(
            "reason=words: key message=the provider refuses what it is asked"
        ));
        assert!(!admitted("reason=words: *** message=a run ended"));
    }
}

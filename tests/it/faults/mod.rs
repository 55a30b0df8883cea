//! What an upstream can do to us, as a table: every row through all three formats, each on a session that was there
//! before and goes on afterwards.
//!
//! A [`row`] says what the provider does and what comes of it. What must hold after every row, whatever it was, is said
//! once, in [`story`] and in the house's oracle: one terminal outcome, the run's record says the same, the session is as
//! if a failed run had never been, the next turn works, nothing of the run is left over, and nobody is told a key or an
//! upstream's own words.
//!
//! The rows by subject: [`connections`] (F01 to F14), [`tls`] (of those, the ones that need certificates), [`statuses`]
//! (F15 to F30, F59), [`broken`] and [`whole`] (F31 to F58), and [`dialects`]: the most telling ones for every provider.

mod broken;
mod connections;
mod dialects;
mod row;
mod statuses;
mod story;
mod tls;
mod whole;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Duration;

use self::row::Row;
use self::story::{Format, check, story, upstream};
use crate::house::gateway::PATIENT;
use crate::house::{Dialect, Gateway, Upstream, is_reason, openai};

/// The provider's key: in no answer, whatever the provider echoes.
const KEY: &str = "sk-canary-Kd83hQ0s";
/// Words of the upstream's errors: in no answer either, and in no line of the log but the warning of a refusal.
const WORDS: &str = "canary-words-of-the-upstream";
/// What a client shows of itself: for nobody's log.
const CREDENTIAL: &str = "ck-canary-Wq71mZ4e";
/// What nobody is told.
const SECRETS: [&str; 3] = [KEY, WORDS, CREDENTIAL];
/// Where silence is the story: it takes two seconds, and is filled.
const SILENT: &str = r#"
[server]
heartbeat = "100ms"
[runs]
deadline = "20s"
[providers.openai]
first_byte_timeout = "2s"
first_token_timeout = "2s"
gap_timeout = "2s"
"#;
/// How many stories are under way at a time.
const AT_A_TIME: usize = 6;

/// Runs one story to its end, with a runtime of its own: so that its tasks can be counted.
fn run(story: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(story);
    runtime.shutdown_timeout(Duration::from_secs(1));
}

/// Runs every row, some at a time, and tells of all that failed.
fn check_all(rows: impl Fn() -> Vec<Row>) {
    let (json, text, sse) = (rows(), rows(), rows());
    let all = json.len();
    let each = json
        .into_iter()
        .zip(text)
        .zip(sse)
        .map(|((json, text), sse)| [json, text, sse]);
    let (waiting, failed) = (Mutex::new(each.collect::<VecDeque<_>>()), Mutex::new(Vec::new()));
    let take = || waiting.lock().expect("nobody fails here").pop_front();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(row) = take() {
                    let name = row[0].name.clone();
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(check(row)))) {
                        let text = panic.downcast_ref::<String>().cloned().unwrap_or(name);
                        failed.lock().expect("nobody fails here").push(text);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("nobody fails here");
    let count = failed.len();
    assert!(
        failed.is_empty(),
        "{count} of {all} rows failed:\n{}",
        failed.join("\n")
    );
}

#[test]
fn what_goes_wrong_before_an_answer_is_a_status_of_ours() {
    check_all(connections::rows);
}

#[test]
fn an_upstreams_status_is_told_in_our_words() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let elsewhere = runtime.block_on(Upstream::always(openai::answer(&["You should not be here."])));
    let address = format!("{}/chat/completions", elsewhere.base_url());
    check_all(|| statuses::rows(&address));
    assert_eq!(elsewhere.connections(), 0, "a redirect was followed");
}

#[test]
fn an_answer_that_breaks_off_never_looks_finished() {
    check_all(broken::rows);
}

#[test]
fn an_answer_that_is_whole_is_told_whole_however_it_came() {
    check_all(whole::rows);
}

#[test]
fn whoever_the_provider_is_what_breaks_off_is_broken() {
    check_all(dialects::rows);
}

/// The real program, whose whole log and every open file can be seen.
#[test]
fn no_log_says_a_key_and_one_warning_says_an_upstream_s_reason() {
    let rows = statuses::rows("http://127.0.0.1:9/v1")
        .into_iter()
        .chain(broken::rows());
    let wanted = [
        "F15", "F16", "F17", "F18", "F22", "F24", "F28", "F29", "F33", "F40", "F41", "F42",
    ];
    let rows: Vec<_> = rows
        .filter(|row| wanted.iter().any(|name| row.name.starts_with(name)))
        .collect();
    assert!(rows.len() >= wanted.len());
    run(async {
        let (upstream, lines) = upstream(Dialect::OpenAi).await;
        let toml = format!("[providers.openai]\napi_key = \"{KEY}\"\n[log]\nfilter = \"debug\"");
        let recipe = Gateway::with(&upstream).patient().toml(&toml);
        let mut process = recipe.spawn().await;
        for row in &rows {
            eprintln!("{}", row.name);
            story(&process, &upstream, &lines, row, Format::Sse).await;
        }
        process.terminate().await;
        process.wait_exit(Duration::from_secs(10)).await;
        let log = process.log();
        let told = |line: &&str| SECRETS.iter().any(|secret| line.contains(secret));
        let (reasons, leaks): (Vec<_>, Vec<_>) = log
            .lines()
            .filter(told)
            .partition(|line| is_reason(line, &SECRETS, &[WORDS]) && line.contains("WARN"));
        assert_eq!(leaks, [""; 0]);
        assert!(
            reasons.iter().any(|line| line.contains(&format!("{WORDS}: key ***"))),
            "{log}"
        );
    });
}

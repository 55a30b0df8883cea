//! More runs than the gateway takes.
use super::*;

/// Every way to start a run is refused, at once and with a time to come back, and counted as refused for this.
async fn refused(gateway: &Gateway, reason: &str) {
    let before = Meters::of(&gateway.admin()).await.sum("shed_total");
    for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
        let began = Instant::now();
        let answer = post(gateway, path, json!({"message": "Hi"})).await.expect(503).await;
        let wait: u64 = answer.header("retry-after").parse().expect("seconds");
        let problem = answer.problem_object().await;
        assert_eq!(
            (&problem["code"], &problem["retryable"]),
            (&json!("overloaded"), &json!(true)),
            "{path}"
        );
        assert!(problem["retry_after"] == wait && wait >= 1, "{path}: {problem}");
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{path} took {:?}",
            began.elapsed()
        );
    }
    let query = get(gateway, "/chat/sse?message=Hi").await;
    assert_eq!((query.status, query.problem().await.as_str()), (503, "overloaded"));
    let after = Meters::of(&gateway.admin()).await;
    assert_eq!(after.sum("shed_total") - before, 5.0);
    assert_eq!(after.get(&format!("shed_total{{reason=\"{reason}\"}}")), 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_run_too_many_is_refused_and_those_that_run_are_unharmed() {
    let gate = Gate::new("the end");
    let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate).say("lo").complete()).await;
    let recipe = Gateway::with(&upstream).toml(meters::WATCHED);
    let gateway = recipe.toml("[limits]\nmax_runs = 2").start().await;
    let mut first = post(&gateway, "/chat/sse", json!({"message": "Hi"})).await;
    first.next_event_named("token").await;
    let mut second = post(&gateway, "/chat/stream", json!({"message": "Hi"})).await;
    second.next_bytes().await;
    refused(&gateway, "max_runs").await;
    // Coming back is not starting.
    let run = first.header("x-run-id").to_owned();
    let resumed = get(&gateway, &format!("/runs/{run}/events")).await.expect(200).await;
    gate.open();
    assert_eq!(first.transcript().await.done()["response"]["content"], "Hello");
    assert_eq!(resumed.transcript().await.text(), "Hello");
    assert_eq!(second.body().await.text(), "lo");
    assert_eq!(upstream.calls(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_whose_end_was_read_does_not_count_any_more() {
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let gateway = Gateway::with(&upstream).toml("[limits]\nmax_runs = 1").start().await;
    for _ in 0..30 {
        let mut stream = post(&gateway, "/chat/sse", json!({"message": "Hi"}))
            .await
            .expect(200)
            .await;
        stream.next_event_named("done").await;
        post(&gateway, "/chat", json!({"message": "Hi"}))
            .await
            .expect(200)
            .await
            .json()
            .await;
    }
}

#[tokio::test]
async fn runs_that_said_little_count_too() {
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[runs]\nmemory_limit = \"64KiB\"\nmax_output = \"1MiB\"")
        .start()
        .await;
    let mut runs = Vec::new();
    for _ in 0..30 {
        let answer = post(&gateway, "/chat", json!({"message": "Hi"}))
            .await
            .expect(200)
            .await;
        runs.push(text(&answer.json().await, "run_id").to_owned());
    }
    let left = async |run: &str| {
        let events = get(&gateway, &format!("/runs/{run}/events")).await.expect(200).await;
        let events = events.read_as(Reader::anywhere()).transcript().await;
        events.kinds().join(" ")
    };
    assert_eq!(left(&runs[0]).await, "done");
    assert_eq!(left(&runs[29]).await, "start token done");
}

#[tokio::test]
async fn beyond_the_memory_limit_finished_logs_go_first_and_then_new_runs_are_refused() {
    let gate = Gate::new("the end");
    let large = "x".repeat(100 * 1024);
    let held = Script::sse().role().say(&large).wait(&gate).complete();
    let upstream = Upstream::start([openai::answer(&[&large]), held, openai::answer(&["a"])]).await;
    let gateway = Gateway::with(&upstream)
        .toml("[runs]\nmemory_limit = \"64KiB\"\nmax_output = \"1MiB\"")
        .toml(meters::WATCHED)
        .start()
        .await;
    let finished = post(&gateway, "/chat", json!({"message": "Hi"}))
        .await
        .expect(200)
        .await
        .json()
        .await;
    let finished = text(&finished, "run_id");
    let replay = get(&gateway, &format!("/runs/{finished}/events"))
        .await
        .transcript()
        .await;
    // A long text becomes several events of at most 16 KiB.
    assert_eq!(replay.text(), large);
    let kinds = replay.kinds();
    assert_eq!((kinds.len(), kinds[0], kinds[8]), (9, "start", "done"));
    // A new run takes the place of the finished one's log; what it came to is kept.
    let mut open = post(&gateway, "/chat/sse", json!({"message": "Hi"}))
        .await
        .expect(200)
        .await;
    open.next_event_named("token").await;
    let done = get(&gateway, &format!("/runs/{finished}/events"))
        .await
        .expect(200)
        .await;
    let done = done.read_as(Reader::anywhere()).transcript().await;
    assert_eq!((done.kinds(), done.terminal().seq), (vec!["done"], 8));
    assert_eq!(glance(&gateway, finished).await["response"]["content"], large);
    // Nothing finished is left to drop.
    refused(&gateway, "memory_limit").await;
    assert_eq!(upstream.calls(), 2);
    gate.open();
    assert_eq!(open.transcript().await.text(), large);
    let next = eventually("room", async || {
        Some(post(&gateway, "/chat", json!({"message": "Hi"})).await).filter(|next| next.status != 503)
    });
    assert_eq!(next.await.json().await["content"], "a");
}

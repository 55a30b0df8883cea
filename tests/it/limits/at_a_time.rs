//! Runs at a time.
use super::*;

#[tokio::test]
async fn a_caller_has_so_many_runs_and_others_do_not_mind() {
    let gate = Gate::new("the end");
    let upstream = held(&gate).await;
    let (web, other) = (Key::of("web", "concurrent_runs = 2"), Key::of("other", ""));
    let recipe = Gateway::with(&upstream).toml(&web.toml).toml(&other.toml);
    let gateway = recipe.toml(meters::WATCHED).start().await;
    let (first, _) = web.begin(&gateway, hi()).await;
    let second = web.post(&gateway, "/runs", hi()).await.expect(202).await.json().await;
    for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
        refused(web.post(&gateway, path, hi()).await, 429, "too_many_runs").await;
    }
    refused(web.get(&gateway, "/chat/sse?message=Hi").await, 429, "too_many_runs").await;
    let counted = Meters::of(&gateway.admin()).await;
    assert_eq!(
        (counted.get("rate_limited_total"), counted.sum("shed_total")),
        (5.0, 0.0)
    );
    let (others, _) = other.begin(&gateway, hi()).await;
    // Looking, reading and cancelling are no runs.
    let run = second["run_id"].as_str().unwrap();
    web.get(&gateway, &format!("/runs/{run}")).await.expect(200).await;
    web.get(&gateway, &format!("/runs/{run}/events"))
        .await
        .expect(200)
        .await;
    web.post(&gateway, &format!("/runs/{run}/cancel"), json!({}))
        .await
        .expect(200)
        .await;
    let third = eventually("the cancelled run's place", async || {
        Some(web.post(&gateway, "/chat/sse", hi()).await).filter(|answer| answer.status == 200)
    });
    let third = third.await;
    refused(web.post(&gateway, "/chat", hi()).await, 429, "too_many_runs").await;
    gate.open();
    for stream in [first, third, others] {
        assert_eq!(stream.transcript().await.text(), "Hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_run_whose_end_was_read_does_not_count_any_more() {
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let web = Key::of("web", "concurrent_runs = 1");
    let gateway = Gateway::with(&upstream).toml(&web.toml).start().await;
    for _ in 0..30 {
        let (mut stream, _) = web.begin(&gateway, hi()).await;
        stream.next_event_named("done").await;
        web.post(&gateway, "/chat", hi()).await.expect(200).await.json().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_fifty_that_come_at_once_as_many_get_in_as_may() {
    let gate = Gate::new("the end");
    let upstream = held(&gate).await;
    let web = Key::of("web", "concurrent_runs = 7");
    let gateway = Gateway::with(&upstream).toml(&web.toml).start().await;
    let all = futures_util::future::join_all((0..50).map(|_| web.post(&gateway, "/chat/sse", hi()))).await;
    let (admitted, turned_away): (Vec<_>, Vec<_>) = all.into_iter().partition(|answer| answer.status == 200);
    assert_eq!(admitted.len(), 7);
    for answer in turned_away {
        refused(answer, 429, "too_many_runs").await;
    }
    gate.open();
    for stream in admitted {
        assert_eq!(stream.transcript().await.text(), "Hello");
    }
}

#[tokio::test]
async fn who_comes_again_with_a_key_needs_no_place() {
    let gate = Gate::new("the end");
    let upstream = held(&gate).await;
    let web = Key::of("web", "concurrent_runs = 1");
    let gateway = Gateway::with(&upstream).toml(&web.toml).start().await;
    let ask = || web.on(Call::post("/chat/sse?key=once").json(&hi())).to(&gateway);
    let first = ask().await.expect(200).await;
    let again = ask().await.expect(200).await;
    assert_eq!(first.header("x-run-id"), again.header("x-run-id"));
    refused(web.post(&gateway, "/chat", hi()).await, 429, "too_many_runs").await;
    gate.open();
    for stream in [first, again] {
        assert_eq!(stream.transcript().await.text(), "Hello");
    }
}

#[tokio::test]
async fn who_may_have_one_run_may_interrupt_it_and_no_other_and_not_queue() {
    let gate = Gate::new("the end");
    let upstream = held(&gate).await;
    let web = Key::of("web", "concurrent_runs = 1");
    let gateway = Gateway::with(&upstream).toml(&web.toml).start().await;
    let ask = |session: &str, on_busy: &str| {
        let body = json!({"message": "Hi", "session_id": session, "on_busy": on_busy});
        web.post(&gateway, "/chat/sse", body)
    };
    let mut streams = vec![ask("s", "reject").await.expect(200).await];
    refused(ask("s", "queue").await, 429, "too_many_runs").await;
    refused(ask("other", "interrupt").await, 429, "too_many_runs").await;
    for _ in 0..3 {
        streams.push(ask("s", "interrupt").await.expect(200).await);
    }
    refused(ask("other", "interrupt").await, 429, "too_many_runs").await;
    gate.open();
    let last = streams.pop().unwrap();
    for stream in streams {
        assert_eq!(stream.transcript().await.codes(), ["cancelled"]);
    }
    assert_eq!(last.transcript().await.text(), "Hello");
}

//! Idempotency keys: one run however often it is asked for.
use super::*;

fn keyed(path: &str, key: &str) -> Call {
    Call::post(path)
        .json(&json!({"message": "Hi", "metadata": {"a": "1"}}))
        .header("Idempotency-Key", key)
}

#[tokio::test]
async fn the_same_key_attaches_while_it_runs_and_replays_when_it_is_done() {
    let gate = Gate::new("the end");
    let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate).say("lo").complete()).await;
    let gateway = Gateway::with(&upstream).start().await;
    let mut first = keyed("/chat/sse", "k-1").to(&gateway).await;
    first.next_event_named("token").await;
    let run = first.header("x-run-id").to_owned();
    // While it runs: in every format, by header and by query.
    let second = keyed("/chat/sse", "k-1").to(&gateway).await.expect(200).await;
    let by_query = Call::post("/chat/sse?key=k-1&format=json").json(&json!({"metadata": {"a": "1"}, "message": "Hi"}));
    let third = by_query.to(&gateway).await.expect(200).await;
    let mut words = keyed("/chat/stream", "k-1").to(&gateway).await.expect(200).await;
    assert_eq!(words.next_bytes().await.unwrap(), "Hel");
    let alone = keyed("/runs", "k-1").to(&gateway).await.expect(202).await.json().await;
    assert_eq!(alone["run_id"], run);
    let whole = Connection::open(&gateway).await;
    let (whole, ()) = tokio::join!(whole.call(keyed("/chat", "k-1")), async { gate.open() });
    let whole = whole.expect(200).await.json().await;
    assert_eq!((&whole["run_id"], &whole["content"]), (&json!(run), &json!("Hello")));
    for reader in [first, second, third] {
        let events = reader.transcript().await;
        assert_eq!(
            (events.done()["response"]["content"].clone(), &events.events[0].run_id),
            (json!("Hello"), &run)
        );
    }
    assert_eq!(words.body().await.text(), "lo");
    // When it is done: the same, replayed.
    assert_eq!(keyed("/chat", "k-1").to(&gateway).await.json().await, whole);
    let words = keyed("/chat/stream", "k-1").to(&gateway).await.body().await;
    assert_eq!((words.text(), &words.ending), ("Hello", &Ending::Complete));
    let events = keyed("/chat/sse", "k-1").to(&gateway).await.transcript().await;
    assert_eq!(events.kinds(), ["start", "token", "token", "done"]);
    assert_eq!(
        keyed("/runs", "k-1").to(&gateway).await.expect(202).await.json().await["run_id"],
        run
    );
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_get_and_a_post_that_say_the_same_are_the_same() {
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    let first = get(&gateway, "/chat/sse?message=Hi&key=k&format=json")
        .await
        .transcript()
        .await;
    let again = get(&gateway, "/chat/sse?key=k&message=Hi").await.transcript().await;
    let post = Call::post("/chat")
        .json(&json!({"message": "Hi", "format": "json"}))
        .header("Idempotency-Key", "k");
    let whole = post.to(&gateway).await.expect(200).await.json().await;
    assert_eq!(again.events[0].id, first.events[0].id);
    assert_eq!(whole["run_id"], first.events[0].run_id);
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn another_request_with_the_same_key_is_refused() {
    let gate = Gate::new("the end");
    let upstream = Upstream::always(Script::sse().role().say("a").wait(&gate).complete()).await;
    let gateway = Gateway::with(&upstream)
        .toml("[runs]\nreplay_window = \"100ms\"")
        .start()
        .await;
    let run = keyed("/runs", "k").to(&gateway).await.expect(202).await.json().await;
    let others = [
        json!({"message": "Ho", "metadata": {"a": "1"}}),
        json!({"message": "Hi"}),
        json!({"message": "Hi", "metadata": {"a": "2"}}),
        json!({"message": "Hi", "metadata": {"a": "1"}, "session_id": "s"}),
        json!({"message": "Hi", "metadata": {"a": "1"}, "settings": {"temperature": 1}}),
    ];
    let refused = async |when: &str| {
        for other in &others {
            for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
                let answer = Call::post(path)
                    .json(other)
                    .header("Idempotency-Key", "k")
                    .to(&gateway)
                    .await;
                let got = (answer.status, answer.problem().await);
                assert_eq!(got, (422, "idempotency_mismatch".to_owned()), "{when}: {path} {other}");
            }
        }
    };
    refused("while it runs").await;
    gate.open();
    let run = text(&run, "run_id");
    ended(&gateway, run).await;
    refused("when it is done").await;
    eventually("the log to expire", async || {
        (get(&gateway, &format!("/runs/{run}/events")).await.status == 410).then_some(())
    })
    .await;
    refused("when its log is gone").await;
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_at_once_make_one_run() {
    for round in 0..10 {
        let upstream = Upstream::always(openai::answer(&["a", "b"])).await;
        let gateway = Gateway::with(&upstream).start().await;
        let ask = async |path: &str| keyed(path, "k").to(&gateway).await.expect(200).await.json().await;
        let (a, b, c, d) = tokio::join!(ask("/chat"), ask("/chat"), ask("/chat"), ask("/chat"));
        assert!(
            a["run_id"] == b["run_id"] && b["run_id"] == c["run_id"] && c["run_id"] == d["run_id"],
            "round {round}"
        );
        assert_eq!(upstream.calls(), 1, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_a_failed_or_cancelled_run_the_key_is_free() {
    let gate = Gate::new("never");
    let upstream = Upstream::start([
        Script::sse().role().say("a").cut(),
        Script::sse().role().say("b").wait(&gate),
        openai::answer(&["c"]),
    ])
    .await;
    let gateway = Gateway::with(&upstream).start().await;
    let failed = keyed("/chat/sse", "k").to(&gateway).await.transcript().await;
    assert_eq!(failed.codes(), ["upstream_truncated"]);
    let mut second = keyed("/chat/sse", "k").to(&gateway).await;
    second.next_event_named("token").await;
    let run = second.header("x-run-id").to_owned();
    assert_ne!(run, failed.events[0].run_id);
    Call::post(&format!("/runs/{run}/cancel"))
        .to(&gateway)
        .await
        .expect(200)
        .await;
    assert_eq!(second.transcript().await.codes(), ["cancelled"]);
    let third = keyed("/chat", "k").to(&gateway).await.expect(200).await.json().await;
    assert_eq!(third["content"], "c");
    let again = keyed("/chat", "k").to(&gateway).await.expect(200).await.json().await;
    assert_eq!(
        (again["run_id"].clone(), upstream.calls()),
        (third["run_id"].clone(), 3)
    );
}

#[tokio::test]
async fn when_its_log_is_gone_a_completed_run_is_answered_from_its_result() {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo", "\r\n"])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[runs]\nreplay_window = \"100ms\"")
        .start()
        .await;
    let whole = keyed("/chat", "k").to(&gateway).await.expect(200).await.json().await;
    let run = text(&whole, "run_id");
    let from_result = async |gateway: &Gateway| {
        let events = keyed("/chat/sse", "k")
            .to(gateway)
            .await
            .expect(200)
            .await
            .transcript()
            .await;
        assert_eq!(events.kinds(), ["start", "token", "done"]);
        assert_eq!(
            (events.text().as_str(), &events.done()["response"]),
            ("Hello\n", &whole)
        );
        assert_eq!(events.events[0].run_id, run);
        assert_eq!(
            keyed("/chat", "k").to(gateway).await.expect(200).await.json().await,
            whole
        );
        let words = keyed("/chat/stream", "k")
            .to(gateway)
            .await
            .expect(200)
            .await
            .body()
            .await;
        assert_eq!((words.text(), &words.ending), ("Hello\r\n", &Ending::Complete));
        assert_eq!(
            keyed("/runs", "k").to(gateway).await.expect(202).await.json().await["run_id"],
            run
        );
    };
    eventually("the log to expire", async || {
        (get(&gateway, &format!("/runs/{run}/events")).await.status == 410).then_some(())
    })
    .await;
    from_result(&gateway).await;
    let gateway = gateway.restart().await;
    from_result(&gateway).await;
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn what_is_no_key_is_refused() {
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    for key in ["", " ", "a b", "é", &"x".repeat(129)] {
        let answer = keyed("/chat", key).to(&gateway).await;
        assert_eq!(
            (answer.status, answer.problem().await.as_str()),
            (422, "field_invalid"),
            "{key:?}"
        );
    }
    let twice = keyed("/chat", "a").header("Idempotency-Key", "b").to(&gateway).await;
    assert_eq!((twice.status, upstream.calls()), (422, 0));
    keyed("/chat", &"x".repeat(128)).to(&gateway).await.expect(200).await;
    keyed("/chat", "!\"#~").to(&gateway).await.expect(200).await;
    assert_eq!(upstream.calls(), 2);
}

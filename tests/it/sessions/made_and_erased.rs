//! Sessions made beforehand, and erased at every moment.
use super::*;

#[tokio::test]
async fn a_session_can_be_made_before_its_first_use() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream).start().await;
    let body = json!({"session_id": "s", "user_id": "ada", "agent": "assistant", "metadata": {"plan": "gold"}});
    let made = post(&gateway, "/sessions", body.clone())
        .await
        .expect(201)
        .await
        .json()
        .await;
    let expected = json!({"session_id": "s", "user_id": "ada", "agent": "assistant", "message_count": 0,
            "created_at": made["created_at"], "updated_at": made["created_at"], "metadata": {"plan": "gold"}});
    assert_eq!(made, expected);
    let mut found = made.clone();
    found["active_run"] = Value::Null;
    assert_eq!(read(&gateway, "/sessions/s").await, found);
    // Again: the one that is there.
    assert_eq!(
        post(&gateway, "/sessions", body).await.expect(200).await.json().await,
        made
    );
    ask(&gateway, "s", "Hi").await;
    assert_eq!(read(&gateway, "/sessions/s").await["metadata"], json!({"plan": "gold"}));
    // Without a word about it: a new one each time.
    let one = Call::post("/sessions")
        .to(&gateway)
        .await
        .expect(201)
        .await
        .json()
        .await;
    let two = post(&gateway, "/sessions", json!({}))
        .await
        .expect(201)
        .await
        .json()
        .await;
    assert_ne!(one["session_id"], two["session_id"]);
    assert_eq!((&one["user_id"], &one["metadata"]), (&json!("anonymous"), &json!({})));
    for (body, status, code) in [
        (json!({"session_id": "a b"}), 422, "session_id_invalid"),
        (json!({"session_id": ""}), 422, "session_id_invalid"),
        (json!({"session_id": "."}), 422, "session_id_invalid"),
        (json!({"session_id": ".."}), 422, "session_id_invalid"),
        (json!({"agent": "nobody"}), 422, "agent_unknown"),
        (json!({"message": "Hi"}), 422, "unknown_field"),
        (json!({"metadata": {"a": 1}}), 422, "field_invalid"),
        (json!([]), 422, "field_invalid"),
    ] {
        let refused = post(&gateway, "/sessions", body.clone()).await;
        assert_eq!(status_and_code(refused).await, (status, code.to_owned()), "{body}");
    }
    assert_eq!(
        read(&gateway, "/sessions").await["sessions"].as_array().unwrap().len(),
        3
    );
}

#[tokio::test]
async fn what_is_erased_is_gone_with_everything_of_it() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream).start().await;
    let run = ask(&gateway, "s", "Hi").await["run_id"].as_str().unwrap().to_owned();
    let kept = ask(&gateway, "t", "Hi").await["run_id"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        let erased = delete(&gateway, "/sessions/s").await.expect(204).await.body().await;
        assert!(erased.bytes.is_empty());
    }
    delete(&gateway, "/sessions/never-there").await.expect(204).await;
    let paths = [
        "/sessions/s",
        "/sessions/s/messages",
        &format!("/runs/{run}"),
        &format!("/runs/{run}/events"),
    ];
    for path in paths {
        assert_eq!(
            status_and_code(get(&gateway, path).await).await,
            (404, "not_found".into()),
            "{path}"
        );
    }
    let resumed = get(&gateway, &format!("/chat/sse?message=Hi&last_event_id={run}:0")).await;
    assert_eq!(status_and_code(resumed).await, (404, "not_found".into()));
    let cancelled = Call::post(&format!("/runs/{run}/cancel")).to(&gateway).await;
    assert_eq!(status_and_code(cancelled).await, (404, "not_found".into()));
    assert_eq!(ids(&read(&gateway, "/sessions").await), ["t"]);
    assert_eq!(read(&gateway, &format!("/runs/{kept}")).await["status"], "completed");
    // Its name is free, and means another session.
    ask(&gateway, "s", "Who are you?").await;
    assert_eq!(
        words(&upstream.requests()[2].json["messages"]),
        [("user", "Who are you?")]
    );
}

#[tokio::test]
async fn erasing_cancels_what_runs_and_nothing_of_it_is_committed_afterwards() {
    let gate = Gate::new("never");
    let upstream = Upstream::start([
        openai::answer(&["zero"]),
        Script::sse().role().say("Hel").wait(&gate),
        openai::answer(&["two"]),
    ])
    .await;
    let gateway = Gateway::with(&upstream).start().await;
    let old = ask(&gateway, "s", "question 0").await["run_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut stream = post(
        &gateway,
        "/chat/sse",
        json!({"message": "question 1", "session_id": "s"}),
    )
    .await;
    stream.next_event_named("token").await;
    let run = stream.header("x-run-id").to_owned();
    delete(&gateway, "/sessions/s").await.expect(204).await;
    upstream.closed().await;
    assert_eq!(stream.transcript().await.codes(), ["cancelled"]);
    upstream.idle().await;
    for run in [&old, &run] {
        for path in [format!("/runs/{run}"), format!("/runs/{run}/events")] {
            assert_eq!(
                status_and_code(get(&gateway, &path).await).await,
                (404, "not_found".into()),
                "{path}"
            );
        }
    }
    assert_eq!(
        status_and_code(get(&gateway, "/sessions/s").await).await,
        (404, "not_found".into())
    );
    assert_eq!(ids(&read(&gateway, "/sessions").await), [""; 0]);
    delete(&gateway, "/sessions/s").await.expect(204).await;
    ask(&gateway, "s", "question 2").await;
    assert_eq!(
        words(&upstream.requests()[2].json["messages"]),
        [("user", "question 2")]
    );
    assert_eq!(read(&gateway, "/sessions/s").await["message_count"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_erased_while_its_turn_ends_is_gone_whoever_was_first() {
    let upstream = Upstream::always(openai::answer(&["a", "b", "c"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    for round in 0..60 {
        let mut stream = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "s"}))
            .await
            .expect(200)
            .await;
        let run = stream.next_event().await.run_id;
        for _ in 0..3 {
            stream.next_event_named("token").await;
        }
        // While it is committed, and a little before and after.
        tokio::time::sleep(Duration::from_micros(100 * (round % 30))).await;
        delete(&gateway, "/sessions/s").await.expect(204).await;
        let session = get(&gateway, "/sessions/s").await.status;
        let run = get(&gateway, &format!("/runs/{run}")).await.status;
        assert_eq!((session, run), (404, 404), "round {round}");
        stream.transcript().await.terminal();
    }
}

#[tokio::test]
async fn a_session_that_is_idle_for_too_long_is_erased() {
    let gate = Gate::new("the end");
    let upstream = Upstream::answering({
        let gate = gate.clone();
        move |request| match request.number {
            1 => Script::sse().role().say("a").wait(&gate).complete(),
            _ => openai::answer(&["a"]),
        }
    })
    .await;
    let gateway = Gateway::with(&upstream)
        .toml("[sessions]\nttl = \"300ms\"")
        .start()
        .await;
    ask(&gateway, "idle", "Hi").await;
    let mut busy = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "busy"})).await;
    busy.next_event_named("token").await;
    eventually("the idle session to be erased", async || {
        (get(&gateway, "/sessions/idle").await.status == 404).then_some(())
    })
    .await;
    assert_eq!(ids(&read(&gateway, "/sessions").await), ["busy"]);
    // Longer than its time, by now; but it is not idle.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(read(&gateway, "/sessions/busy").await["message_count"], 0);
    gate.open();
    busy.transcript().await.done();
    eventually("the other to be erased, in its turn", async || {
        (get(&gateway, "/sessions/busy").await.status == 404).then_some(())
    })
    .await;
}

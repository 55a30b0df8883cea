//! Turns: what is kept of each, and what the next one knows.
use super::*;

#[tokio::test]
async fn a_session_is_made_by_its_first_use() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream).start().await;
    assert_eq!(
        status_and_code(get(&gateway, "/sessions/kitchen").await).await,
        (404, "not_found".into())
    );
    let answer = ask(&gateway, "kitchen", "Hi").await;
    assert_eq!(answer["session_id"], "kitchen");
    let session = read(&gateway, "/sessions/kitchen").await;
    let expected = json!({"session_id": "kitchen", "user_id": "anonymous", "agent": "assistant", "message_count": 2,
            "created_at": session["created_at"], "updated_at": session["updated_at"], "metadata": {}, "active_run": null});
    assert_eq!(session, expected);
    assert!(
        is_time(&session["created_at"]) && is_time(&session["updated_at"]),
        "{session}"
    );
    // Without a name a new one is made each time, and returned.
    let made = [(); 3].map(|()| post(&gateway, "/chat", json!({"message": "Hi"})));
    let mut names = Vec::new();
    for made in made {
        let answer = made.await.expect(200).await;
        let header = answer.header("x-session-id").to_owned();
        let answer = answer.json().await;
        assert_eq!(answer["session_id"], header);
        names.push(header);
    }
    names.push("kitchen".into());
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 4);
    assert_eq!(
        read(&gateway, "/sessions").await["sessions"].as_array().unwrap().len(),
        4
    );
}

#[tokio::test]
async fn the_model_is_sent_what_was_said_before_in_order_through_every_door() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream).start().await;
    ask(&gateway, "s", "question 0").await;
    let body = |n: usize| json!({"message": format!("question {n}"), "session_id": "s"});
    post(&gateway, "/chat/stream", body(1))
        .await
        .expect(200)
        .await
        .body()
        .await;
    post(&gateway, "/chat/sse", body(2))
        .await
        .expect(200)
        .await
        .transcript()
        .await
        .done();
    get(&gateway, "/chat/sse?message=question%203&session_id=s")
        .await
        .transcript()
        .await
        .done();
    let run = post(&gateway, "/runs", body(4)).await.expect(202).await.json().await["run_id"].clone();
    get(&gateway, &format!("/runs/{}/events", run.as_str().unwrap()))
        .await
        .transcript()
        .await
        .done();
    ask(&gateway, "other", "not of this session").await;
    // What was kept outlives the process.
    let gateway = gateway.restart().await;
    ask(&gateway, "s", "question 6").await;

    let requests = upstream.requests();
    let mut said = Vec::new();
    for number in [0, 1, 2, 3, 4, 6] {
        said.push(("user".to_owned(), format!("question {number}")));
        let sent: Vec<_> = said
            .iter()
            .map(|(role, content)| (role.as_str(), content.as_str()))
            .collect();
        assert_eq!(words(&requests[number].json["messages"]), sent, "turn {number}");
        said.push(("assistant".to_owned(), format!("answer {number}")));
    }
    let said: Vec<_> = said
        .iter()
        .map(|(role, content)| (role.as_str(), content.as_str()))
        .collect();
    assert_eq!(words(&read(&gateway, "/sessions/s/messages").await["messages"]), said);
    assert_eq!(upstream.calls(), 7);
}

#[tokio::test]
async fn an_answer_says_which_messages_it_added() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream).start().await;
    ask(&gateway, "s", "one").await;
    let answer = ask(&gateway, "s", "two").await;
    assert_eq!(words(&answer["messages"]), [("user", "two"), ("assistant", "answer 1")]);
}

#[tokio::test]
async fn while_one_runs_the_others_are_told_which() {
    let gate = Gate::new("the end");
    let upstream = Upstream::always(Script::sse().role().say("a").wait(&gate).complete()).await;
    let gateway = Gateway::with(&upstream).toml(meters::WATCHED).start().await;
    let mut active = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "s"})).await;
    let run = active.next_event().await.run_id;
    let body = json!({"message": "Me too", "session_id": "s"});
    for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
        for body in [
            body.clone(),
            json!({"message": "Me too", "session_id": "s", "on_busy": "reject"}),
        ] {
            let problem = post(&gateway, path, body)
                .await
                .expect(409)
                .await
                .problem_object()
                .await;
            assert_eq!(
                (&problem["code"], &problem["run_id"]),
                (&json!("session_busy"), &json!(run)),
                "{path}"
            );
            assert_eq!(problem["retryable"], true, "{path}: {problem}");
        }
    }
    let by_query = get(&gateway, "/chat/sse?message=Hi&session_id=s")
        .await
        .expect(409)
        .await;
    assert_eq!(by_query.problem_object().await["run_id"], run);
    let counted = Meters::of(&gateway.admin()).await;
    assert_eq!(counted.get("session_conflicts_total"), 9.0);
    // Another session is not busy.
    let other = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "t"}))
        .await
        .expect(200)
        .await;
    gate.open();
    active.transcript().await.done();
    other.transcript().await.done();
    ask(&gateway, "s", "Now").await;
    assert_eq!(upstream.calls(), 3);
    assert_eq!(
        read(&gateway, "/sessions/s").await["message_count"],
        4,
        "who was refused added nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_has_read_the_end_of_a_turn_can_begin_the_next() {
    let upstream = Upstream::always(openai::answer(&["a", "b"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    let body = |n: usize| json!({"message": format!("question {n}"), "session_id": "s"});
    for turn in 0..50 {
        let mut stream = post(&gateway, "/chat/sse", body(turn)).await.expect(200).await;
        stream.next_event_named("done").await; // and not a byte further
    }
    for turn in 50..70 {
        post(&gateway, "/chat", body(turn)).await.expect(200).await.json().await;
        let text = post(&gateway, "/chat/stream", body(turn))
            .await
            .expect(200)
            .await
            .body()
            .await;
        assert_eq!(text.ending, Ending::Complete);
    }
    assert_eq!(read(&gateway, "/sessions/s").await["message_count"], 2 * 90);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_has_read_that_a_turn_failed_can_begin_the_next() {
    let upstream = Upstream::always(Script::sse().role().say("a").cut()).await;
    let gateway = Gateway::with(&upstream).start().await;
    for _ in 0..25 {
        let mut stream = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "s"}))
            .await
            .expect(200)
            .await;
        stream.next_event_named("error").await;
    }
    assert_eq!(read(&gateway, "/sessions/s").await["message_count"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_once_one_gets_the_session_and_the_history_stays_linear() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream).start().await;
    let mut won = 0;
    for _ in 0..10 {
        let asks = (0..8).map(|n| {
            post(
                &gateway,
                "/chat",
                json!({"message": format!("from {n}"), "session_id": "s"}),
            )
        });
        for answer in futures_util::future::join_all(asks).await {
            match answer.status {
                200 => won += 1,
                _ => assert_eq!(status_and_code(answer).await, (409, "session_busy".into())),
            }
        }
    }
    assert!(won >= 10, "{won}");
    let messages = read(&gateway, "/sessions/s/messages?limit=200").await;
    let roles: Vec<_> = words(&messages["messages"]).into_iter().map(|(role, _)| role).collect();
    assert_eq!(roles, ["user", "assistant"].repeat(won));
    assert_eq!(upstream.calls(), won);
    for request in upstream.requests() {
        assert_eq!(
            request.json["messages"].as_array().unwrap().len() % 2,
            1,
            "{}",
            request.json
        );
    }
}

#[tokio::test]
async fn a_run_that_breaks_adds_nothing_and_the_client_simply_asks_again() {
    let broken = || Script::sse().role().say("Hel");
    let upstream = Upstream::start([
        openai::answer(&["zero"]),
        broken().cut(),
        broken().end(),
        Script::status(400, &[], r#"{"error":{"message":"no"}}"#),
        broken().send("data: {\"choices\":[\n\n").end(),
        openai::answer(&["one"]),
    ])
    .await;
    let gateway = Gateway::with(&upstream)
        .toml("[providers.openai]\nmax_retries = 0")
        .start()
        .await;
    ask(&gateway, "s", "question 0").await;
    let before = read(&gateway, "/sessions/s/messages").await;
    for (path, number) in [("/chat", 1), ("/chat/sse", 2), ("/chat", 3), ("/chat/stream", 4)] {
        let body = json!({"message": "question 1", "session_id": "s"});
        let body = post(&gateway, path, body).await.body().await;
        assert!(body.status != 200 || path != "/chat", "{number}");
        assert_eq!(read(&gateway, "/sessions/s/messages").await, before, "{number}");
    }
    ask(&gateway, "s", "question 1").await;
    let sent = &upstream.requests()[5].json["messages"];
    assert_eq!(
        words(sent),
        [("user", "question 0"), ("assistant", "zero"), ("user", "question 1")]
    );
}

#[tokio::test]
async fn what_is_not_to_be_stored_leaves_nothing_behind() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream).start().await;
    let body = json!({"message": "Hi", "store": false});
    let answer = post(&gateway, "/chat", body.clone()).await.expect(200).await;
    assert_eq!(answer.headers.get("x-session-id"), None);
    let answer = answer.json().await;
    assert_eq!(
        (&answer["session_id"], &answer["content"]),
        (&Value::Null, &json!("answer 0"))
    );
    let text = post(&gateway, "/chat/stream", body.clone())
        .await
        .expect(200)
        .await
        .body()
        .await;
    assert_eq!((text.headers.get("x-session-id"), text.text()), (None, "answer 1"));
    let events = post(&gateway, "/chat/sse", body.clone()).await.expect(200).await;
    assert_eq!(events.headers.get("x-session-id"), None);
    let events = events.transcript().await;
    assert_eq!(
        (&events.events[0].json()["session_id"], &events.done()["session_id"]),
        (&Value::Null, &Value::Null)
    );
    let started = post(&gateway, "/runs", body).await.expect(202).await.json().await;
    let run = started["run_id"].as_str().unwrap().to_owned();
    assert_eq!(started["session_id"], Value::Null);
    get(&gateway, &format!("/runs/{run}/events"))
        .await
        .transcript()
        .await
        .done();
    assert_eq!(
        read(&gateway, "/sessions").await,
        json!({"sessions": [], "next_cursor": null})
    );
    for request in upstream.requests() {
        assert_eq!(request.json["messages"].as_array().unwrap().len(), 1, "no history");
    }
    let named = post(
        &gateway,
        "/chat",
        json!({"message": "Hi", "store": false, "session_id": "s"}),
    )
    .await;
    let problem = named.expect(422).await.problem_object().await;
    assert_eq!(
        (&problem["code"], &problem["field"]),
        (&json!("field_invalid"), &json!("session_id"))
    );
    // Not in the file either: the row of a stored run is there, no other.
    ask(&gateway, "s", "Keep this").await;
    let files = ["sluicegate.db", "sluicegate.db-wal"].map(|name| std::fs::read(gateway.folder().join(name)));
    let bytes = files.map(|file| file.expect("a file that can be read")).concat();
    assert!(memchr::memmem::find(&bytes, b"Keep this").is_some());
    assert!(
        memchr::memmem::find(&bytes, b"answer 0").is_none() && memchr::memmem::find(&bytes, run.as_bytes()).is_none()
    );
}

/// A gateway with a second agent, whose instructions tell which one was asked.
async fn two_agents(upstream: &Upstream, more: &str) -> Gateway {
    let agents = "[agents.tutor]\nmodel = \"openai/test-model\"\ninstructions = \"I am the tutor.\"";
    Gateway::with(upstream).toml(agents).toml(more).start().await
}

#[tokio::test]
async fn a_session_goes_on_with_its_own_agent() {
    let upstream = counting().await;
    let folder = tempfile::tempdir().unwrap();
    let store = format!("[store]\nurl = \"sqlite://{}/store.db\"", folder.path().display());
    let gateway = two_agents(&upstream, &store).await;
    let agent = |answer: &Value| answer["agent"].as_str().unwrap().to_owned();
    let made = post(&gateway, "/sessions", json!({"session_id": "made", "agent": "tutor"})).await;
    made.expect(201).await.body().await;
    assert_eq!(agent(&ask(&gateway, "made", "Hi").await), "tutor");
    let begun = json!({"message": "Hi", "session_id": "begun", "agent": "tutor"});
    post(&gateway, "/chat", begun).await.expect(200).await.body().await;
    assert_eq!(agent(&ask(&gateway, "begun", "Hi").await), "tutor");
    assert_eq!(agent(&ask(&gateway, "plain", "Hi").await), "assistant");
    // Who names an agent gets that one, and the session keeps its own.
    let named = json!({"message": "Hi", "session_id": "made", "agent": "assistant"});
    let named = post(&gateway, "/chat", named).await.expect(200).await.json().await;
    assert_eq!(agent(&named), "assistant");
    let query = get(&gateway, "/chat/sse?message=Hi&session_id=made").await;
    assert_eq!(
        query.expect(200).await.transcript().await.events[0].json()["agent"],
        "tutor"
    );
    gateway.stop().await;
    let gateway = two_agents(&upstream, &store).await;
    assert_eq!(agent(&ask(&gateway, "made", "Hi").await), "tutor");
}

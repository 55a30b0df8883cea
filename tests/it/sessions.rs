//! Sessions: what is kept between runs, for whom, how much of it the model is sent, and how it goes away.
use std::time::Duration;

use serde_json::{Value, json};

use super::house::*;

async fn ask(gateway: &impl Place, session: &str, message: &str) -> Value {
    let answer = post(gateway, "/chat", json!({"message": message, "session_id": session})).await;
    answer.expect(200).await.json().await
}

async fn read(gateway: &impl Place, path: &str) -> Value {
    get(gateway, path).await.expect(200).await.json().await
}

async fn status_and_code(answer: Response) -> (u16, String) {
    (
        answer.status,
        if answer.status < 400 {
            String::new()
        } else {
            answer.problem().await
        },
    )
}

/// The `(role, content)` of messages, ours or the upstream's.
fn words(messages: &Value) -> Vec<(&str, &str)> {
    let messages = messages.as_array().unwrap_or_else(|| panic!("no list: {messages}"));
    messages
        .iter()
        .map(|m| {
            (
                m["role"].as_str().unwrap_or_default(),
                m["content"].as_str().unwrap_or_default(),
            )
        })
        .collect()
}

/// The ids of a page of sessions.
fn ids(page: &Value) -> Vec<&str> {
    let sessions = page["sessions"].as_array().unwrap_or_else(|| panic!("no list: {page}"));
    sessions
        .iter()
        .map(|session| session["session_id"].as_str().expect("an id"))
        .collect()
}

/// An upstream that answers with a number: `answer 0`, `answer 1`, …
async fn counting() -> Upstream {
    Upstream::answering(|request| openai::answer(&["answer ", &request.number.to_string()])).await
}

fn is_time(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|time| time.len() >= 20 && &time[10..11] == "T" && time.ends_with('Z'))
}

mod turns {
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
            "created_at": session["created_at"], "updated_at": session["updated_at"], "metadata": {}});
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
            memchr::memmem::find(&bytes, b"answer 0").is_none()
                && memchr::memmem::find(&bytes, run.as_bytes()).is_none()
        );
    }
}

mod users {
    use super::*;

    #[tokio::test]
    async fn a_session_belongs_to_the_user_it_was_made_for() {
        let upstream = counting().await;
        let gateway = Gateway::with(&upstream).start().await;
        let as_user = |user: &str, session: &str| json!({"message": "Hi", "session_id": session, "user_id": user});
        post(&gateway, "/chat", as_user("ada", "hers")).await.expect(200).await;
        ask(&gateway, "nobodys", "Hi").await;
        assert_eq!(read(&gateway, "/sessions/hers").await["user_id"], "ada");
        assert_eq!(read(&gateway, "/sessions/nobodys").await["user_id"], "anonymous");
        // Named again, or not named: her session.
        post(&gateway, "/chat", as_user("ada", "hers")).await.expect(200).await;
        ask(&gateway, "hers", "Hi").await;
        post(&gateway, "/chat", as_user("anonymous", "nobodys"))
            .await
            .expect(200)
            .await;
        let calls = upstream.calls();
        // Anybody else's: as if it were not there.
        let unknown = get(&gateway, "/sessions/never-made").await.problem_object().await;
        for (user, session) in [
            ("bob", "hers"),
            ("anonymous", "hers"),
            ("Ada", "hers"),
            ("ada", "nobodys"),
        ] {
            for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
                let problem = post(&gateway, path, as_user(user, session))
                    .await
                    .expect(404)
                    .await
                    .problem_object()
                    .await;
                assert_eq!(
                    (&problem["code"], &problem["detail"]),
                    (&unknown["code"], &unknown["detail"]),
                    "{path} {user}"
                );
            }
            let query = format!("/chat/sse?message=Hi&session_id={session}&user_id={user}");
            assert_eq!(get(&gateway, &query).await.status, 404, "{user}");
            let made = post(&gateway, "/sessions", json!({"session_id": session, "user_id": user})).await;
            assert_eq!(status_and_code(made).await, (404, "not_found".into()), "{user}");
        }
        assert_eq!(upstream.calls(), calls, "a refused turn reached the model");
        assert_eq!(read(&gateway, "/sessions/hers").await["user_id"], "ada");
        assert_eq!(read(&gateway, "/sessions/hers").await["message_count"], 6);
        // A refusal does not leave the session busy.
        ask(&gateway, "hers", "Hi").await;
        for user in ["", &"x".repeat(257)] {
            let refused = post(&gateway, "/chat", as_user(user, "other")).await;
            assert_eq!(status_and_code(refused).await, (422, "field_invalid".into()));
        }
    }
}

mod lists {
    use super::*;

    /// Walks all pages.
    async fn walk(gateway: &impl Place, path: &str, list: &str) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), Value::Null);
        for _ in 0..100 {
            let joint = if path.contains('?') { '&' } else { '?' };
            let next = cursor
                .as_str()
                .map_or(path.to_owned(), |cursor| format!("{path}{joint}cursor={cursor}"));
            let page = read(gateway, &next).await;
            let members: Vec<_> = page.as_object().unwrap().keys().collect();
            assert_eq!(members.len(), 2, "{page}");
            all.extend(
                page[list]
                    .as_array()
                    .unwrap_or_else(|| panic!("{page}"))
                    .iter()
                    .cloned(),
            );
            cursor = page["next_cursor"].clone();
            if cursor.is_null() {
                return all;
            }
        }
        panic!("pages without end");
    }

    #[tokio::test]
    async fn sessions_are_listed_newest_first_by_user_and_by_page() {
        let upstream = counting().await;
        let gateway = Gateway::with(&upstream).start().await;
        assert_eq!(
            read(&gateway, "/sessions").await,
            json!({"sessions": [], "next_cursor": null})
        );
        for number in 0..7 {
            let user = if number % 2 == 0 { "ada" } else { "bob" };
            let body = json!({"message": "Hi", "session_id": format!("s{number}"), "user_id": user});
            post(&gateway, "/chat", body).await.expect(200).await;
            tokio::time::sleep(Duration::from_millis(2)).await; // a moment of its own for each
        }
        ask(&gateway, "s0", "Again").await; // which does not make it newer
        for (path, expected) in [
            ("/sessions", vec!["s6", "s5", "s4", "s3", "s2", "s1", "s0"]),
            ("/sessions?user_id=ada", vec!["s6", "s4", "s2", "s0"]),
            ("/sessions?user_id=bob", vec!["s5", "s3", "s1"]),
            ("/sessions?user_id=nobody", vec![]),
        ] {
            for limit in [1, 2, 3, 4, 7, 200] {
                let joint = if path.contains('?') { '&' } else { '?' };
                let all = walk(&gateway, &format!("{path}{joint}limit={limit}"), "sessions").await;
                assert_eq!(ids(&json!({"sessions": all})), expected, "{path}, {limit} a page");
            }
        }
        let first = read(&gateway, "/sessions?limit=1").await;
        assert_eq!(first["sessions"][0], read(&gateway, "/sessions/s6").await);
        for query in [
            "limit=0",
            "limit=201",
            "limit=-1",
            "limit=x",
            "limit=",
            "cursor=x",
            "cursor=",
            "cursor=%00",
            "page=2",
            "limit=1&limit=2",
        ] {
            let refused = get(&gateway, &format!("/sessions?{query}")).await;
            assert!(matches!(refused.status, 400 | 422), "{query}: {}", refused.status);
            refused.problem().await;
        }
    }

    #[tokio::test]
    async fn messages_are_given_oldest_first_by_page() {
        let upstream = counting().await;
        let gateway = Gateway::with(&upstream).start().await;
        let mut runs = Vec::new();
        for number in 0..4 {
            runs.push(ask(&gateway, "s", &format!("question {number}")).await["run_id"].clone());
        }
        let all = walk(&gateway, "/sessions/s/messages", "messages").await;
        assert_eq!(all.len(), 8);
        for (at, message) in all.iter().enumerate() {
            let (role, content) = match at % 2 {
                0 => ("user", format!("question {}", at / 2)),
                _ => ("assistant", format!("answer {}", at / 2)),
            };
            let expected = json!({"role": role, "content": content, "tool_calls": [], "tool_call_id": null,
                "run_id": runs[at / 2], "status": "complete", "created_at": message["created_at"]});
            assert_eq!(message, &expected);
            assert!(is_time(&message["created_at"]));
        }
        for limit in [1, 2, 3, 7, 8, 9, 200] {
            assert_eq!(
                walk(&gateway, &format!("/sessions/s/messages?limit={limit}"), "messages").await,
                all,
                "{limit} a page"
            );
        }
        for path in [
            "/sessions/t/messages",
            "/sessions/t",
            "/sessions/a%20b",
            "/sessions/%2e%2e/messages",
        ] {
            assert_eq!(
                status_and_code(get(&gateway, path).await).await,
                (404, "not_found".into()),
                "{path}"
            );
        }
        for query in ["limit=0", "limit=201", "cursor=x", "user_id=a"] {
            let refused = get(&gateway, &format!("/sessions/s/messages?{query}")).await;
            assert!(matches!(refused.status, 400 | 422), "{query}: {}", refused.status);
        }
    }
}

mod made_and_erased {
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
        assert_eq!(read(&gateway, "/sessions/s").await, made);
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
}

mod history {
    use super::*;

    #[tokio::test]
    async fn a_history_that_is_too_long_is_cut_by_whole_turns_and_says_so() {
        let upstream = Upstream::always(openai::answer(&["y".repeat(400).as_str()])).await;
        let gateway = Gateway::with(&upstream)
            .toml("[sessions]\nmax_history_tokens = 1000")
            .start()
            .await;
        let question = |n: usize| format!("{n} {}", "x".repeat(400));
        let mut truncated = Vec::new();
        for number in 0..12 {
            let body = json!({"message": question(number), "session_id": "s"});
            let done = post(&gateway, "/chat/sse", body).await.transcript().await.done();
            truncated.push(done["metadata"]["history_truncated"] == true);
            let sent = &upstream.requests()[number].json["messages"];
            let sent = words(sent);
            // Whole turns: it begins with a question, and goes on from there without a gap up to the new one.
            let turns = sent.len() / 2;
            let kept: Vec<_> = (number - turns..=number).map(question).collect();
            let asked: Vec<_> = sent
                .iter()
                .step_by(2)
                .map(|(_, content)| (*content).to_owned())
                .collect();
            assert_eq!(asked, kept, "turn {number}");
            assert!(
                sent.iter()
                    .enumerate()
                    .all(|(at, (role, _))| *role == ["user", "assistant"][at % 2]),
                "turn {number}"
            );
            assert_eq!(truncated[number], turns < number, "turn {number}: {turns} turns sent");
        }
        assert!(!truncated[0] && truncated[11], "{truncated:?}");
        let sent = upstream.requests()[11].json["messages"].as_array().unwrap().len();
        assert!((5..=21).contains(&sent), "{sent} messages for a thousand tokens");
        // What was left out stays stored.
        assert_eq!(read(&gateway, "/sessions/s").await["message_count"], 24);
        // And it is not said where nothing was.
        let done = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "new"}))
            .await
            .transcript()
            .await
            .done();
        assert_ne!(done["metadata"]["history_truncated"], true);
    }

    #[tokio::test]
    async fn a_message_longer_than_the_limit_is_sent_all_the_same() {
        let upstream = counting().await;
        let gateway = Gateway::with(&upstream)
            .toml("[sessions]\nmax_history_tokens = 10")
            .start()
            .await;
        ask(&gateway, "s", "short").await;
        let long = "x".repeat(10_000);
        ask(&gateway, "s", &long).await;
        let sent = &upstream.requests()[1].json["messages"];
        assert_eq!(words(sent).last(), Some(&("user", long.as_str())));
    }
}

mod beyond_loopback {
    use super::*;

    /// A gateway that believes to be reachable from elsewhere, and is not: loopback, by its IPv6 name.
    async fn open_gateway(upstream: &Upstream) -> (Gateway, std::net::SocketAddr) {
        let settings = "[server]\nlisten = \"[::ffff:127.0.0.1]:0\"\n[auth]\nallow_anonymous = true";
        let gateway = Gateway::with(upstream).toml(settings).start().await;
        let place = ([127, 0, 0, 1], gateway.addr().port()).into();
        (gateway, place)
    }

    #[tokio::test]
    async fn callers_who_cannot_be_told_apart_cannot_find_each_other() {
        let upstream = counting().await;
        let (_gateway, place) = open_gateway(&upstream).await;
        assert_eq!(
            status_and_code(get(&place, "/sessions").await).await,
            (403, "forbidden".into())
        );
        assert_eq!(
            status_and_code(get(&place, "/sessions?user_id=ada").await).await,
            (403, "forbidden".into())
        );
        // Names are made here, so that none can be guessed.
        let mine = json!({"message": "Hi", "session_id": "mine"});
        for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
            assert_eq!(
                status_and_code(post(&place, path, mine.clone()).await).await,
                (404, "not_found".into()),
                "{path}"
            );
        }
        let query = get(&place, "/chat/sse?message=Hi&session_id=mine").await;
        assert_eq!(status_and_code(query).await, (404, "not_found".into()));
        let made = post(&place, "/sessions", json!({"session_id": "mine"})).await;
        assert_eq!(status_and_code(made).await, (404, "not_found".into()));
        assert_eq!(upstream.calls(), 0);
        // Who was given one can go on with it, and read and erase it.
        let first = post(&place, "/chat", json!({"message": "Hi"}))
            .await
            .expect(200)
            .await
            .json()
            .await;
        let session = first["session_id"].as_str().unwrap();
        assert!(session.len() >= 32, "{session} can be guessed");
        ask(&place, session, "Again").await;
        assert_eq!(words(&upstream.requests()[1].json["messages"]).len(), 3);
        assert_eq!(read(&place, &format!("/sessions/{session}")).await["message_count"], 4);
        assert_eq!(
            words(&read(&place, &format!("/sessions/{session}/messages")).await["messages"]).len(),
            4
        );
        delete(&place, &format!("/sessions/{session}")).await.expect(204).await;
        let again = post(&place, "/chat", json!({"message": "Hi", "session_id": session})).await;
        assert_eq!(status_and_code(again).await, (404, "not_found".into()));
        let made = post(&place, "/sessions", json!({"user_id": "ada"}))
            .await
            .expect(201)
            .await
            .json()
            .await;
        ask(&place, made["session_id"].as_str().unwrap(), "Hi").await;
    }

    #[tokio::test]
    async fn nobody_listens_there_without_being_told_to() {
        let upstream = counting().await;
        let settings = Gateway::with(&upstream).toml("[server]\nlisten = \"0.0.0.0:0\"").text();
        let settings = sluicegate::config::Settings::from_toml(&settings).unwrap();
        let refused = sluicegate::app::serve(settings).await.err().expect("a refusal");
        assert!(refused.message.contains("allow_anonymous"), "{refused}");
    }
}

//! The real program: killed at any moment, started again, told to stop.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection as _, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::house::*;

/// The program with this upstream and further settings, as `("RUNS__DRAIN", "1s")`.
async fn program(upstream: &Upstream, settings: &[(&str, &str)]) -> Process {
    let mut env = vec![
        ("OPENAI_API_KEY".to_owned(), "test-key".to_owned()),
        ("OPENAI_BASE_URL".to_owned(), upstream.base_url()),
        ("SLUICEGATE_MODEL".to_owned(), "openai/test-model".to_owned()),
    ];
    env.extend(
        settings
            .iter()
            .map(|(name, value)| (format!("SLUICEGATE__{name}"), (*value).to_owned())),
    );
    let env: Vec<_> = env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    Process::start(&env, &[]).await
}

/// Its store's file, looked into from outside.
async fn file(program: &Process) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(program.folder().join("data/sluicegate.db"))
        .read_only(true);
    options.connect().await.expect("a file that can be opened")
}

async fn glance(program: &Process, run: &str) -> Value {
    get(program, &format!("/runs/{run}"))
        .await
        .expect(200)
        .await
        .json()
        .await
}

fn wire(path: &str, body: &Value) -> String {
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// What became of a turn that a client asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// `done` was read.
    Acknowledged,
    /// Anything else, or nothing at all.
    Unknown,
}

mod killed {
    use super::*;

    /// Asks over SSE, and forgives a gateway that is not there, or goes in the middle.
    async fn ask(place: SocketAddr, body: &Value) -> Outcome {
        let exchange = async {
            let mut stream = TcpStream::connect(place).await.ok()?;
            stream.write_all(wire("/chat/sse", body).as_bytes()).await.ok()?;
            let mut read = Vec::new();
            while stream.read_buf(&mut read).await.ok()? > 0 {
                // The whole frame: its blank line is there.
                if let Some(at) = memchr::memmem::find(&read, b"\nevent: done\ndata: ")
                    && memchr::memmem::find(&read[at..], b"\n\n").is_some()
                {
                    return Some(());
                }
            }
            None
        };
        match soon("a turn, or its end", exchange).await {
            Some(()) => Outcome::Acknowledged,
            None => Outcome::Unknown,
        }
    }

    /// A client with a session of its own, turn after turn, until it is told to stop.
    async fn chat(
        place: SocketAddr,
        session: String,
        first: usize,
        journal: Arc<Mutex<HashMap<String, Outcome>>>,
        acknowledged: watch::Sender<usize>,
        stop: watch::Receiver<bool>,
    ) {
        for turn in first.. {
            if *stop.borrow() {
                return;
            }
            let message = format!("{session} asks {turn}");
            let outcome = ask(place, &json!({"message": message, "session_id": session})).await;
            if outcome == Outcome::Acknowledged {
                acknowledged.send_modify(|count| *count += 1);
            } else {
                tokio::time::sleep(Duration::from_millis(2)).await; // the gateway is gone
            }
            journal.lock().unwrap().insert(message, outcome);
        }
    }

    /// Everything that was acknowledged is there once and whole; what was not is there whole or not at all.
    async fn check(program: &Process, journal: &HashMap<String, Outcome>) {
        let mut file = file(program).await;
        let sound: String = sqlx::query_scalar("PRAGMA integrity_check")
            .fetch_one(&mut file)
            .await
            .unwrap();
        assert_eq!(sound, "ok");
        let rows = sqlx::query("SELECT session_id, seq, run_id, status, body FROM messages ORDER BY session_id, seq");
        let rows = rows.fetch_all(&mut file).await.unwrap();
        let (mut kept, mut expected_seq) = (HashMap::<String, usize>::new(), 0);
        assert_eq!(rows.len() % 2, 0, "half a turn");
        for pair in rows.chunks(2) {
            let text = |at: usize, column: &str| pair[at].get::<String, _>(column);
            let body = |at: usize| serde_json::from_str::<Value>(&text(at, "body")).unwrap();
            let seq = pair[0].get::<i64, _>("seq");
            expected_seq = if seq == 0 { 0 } else { expected_seq };
            assert_eq!(
                (seq, pair[1].get::<i64, _>("seq")),
                (expected_seq, expected_seq + 1),
                "numbers with a gap"
            );
            expected_seq += 2;
            assert_eq!(
                (text(0, "session_id"), text(0, "run_id")),
                (text(1, "session_id"), text(1, "run_id")),
                "half a turn"
            );
            assert_eq!(
                (text(0, "status"), text(1, "status")),
                ("complete".into(), "complete".into())
            );
            let (question, answer) = (body(0), body(1));
            assert_eq!(
                (&question["role"], &answer["role"]),
                (&json!("user"), &json!("assistant"))
            );
            assert_eq!(answer["content"], ANSWER.concat(), "half an answer to {question}");
            *kept
                .entry(question["content"].as_str().unwrap().to_owned())
                .or_default() += 1;
        }
        for (message, outcome) in journal {
            match kept.get(message) {
                Some(1) => {}
                None if *outcome == Outcome::Unknown => {}
                times => panic!("{message:?} was {outcome:?} and is there {times:?} times"),
            }
        }
        let counts = "SELECT count(*) FROM sessions s WHERE message_count <> (SELECT count(*) FROM messages m \
             WHERE m.principal = s.principal AND m.session_id = s.id)";
        let wrong: i64 = sqlx::query_scalar(counts).fetch_one(&mut file).await.unwrap();
        assert_eq!(wrong, 0, "sessions that miscount their messages");
        // Each turn is of a run that says it is complete, and no run is left that says it goes on.
        let unended: i64 = sqlx::query_scalar("SELECT count(*) FROM runs WHERE status = 'running'")
            .fetch_one(&mut file)
            .await
            .unwrap();
        assert_eq!(unended, 0);
        let completed: i64 = sqlx::query_scalar("SELECT count(*) FROM runs WHERE status = 'completed'")
            .fetch_one(&mut file)
            .await
            .unwrap();
        assert_eq!(completed as usize, kept.len());
        file.close().await.unwrap();
    }

    const ANSWER: [&str; 4] = ["Yes, ", "and ", "no", "."];
    /// How often to kill it, among how many clients, and for how long at most. `SLUICEGATE_TEST_KILLS=200` asks for that many
    /// among 50, which takes minutes.
    fn effort() -> (usize, usize, Duration) {
        match std::env::var("SLUICEGATE_TEST_KILLS")
            .ok()
            .and_then(|kills| kills.parse().ok())
        {
            Some(kills) => (kills, 50, Duration::from_secs(1_200)),
            None => (25, 20, Duration::from_secs(40)),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn at_any_moment_it_loses_nothing_that_was_acknowledged() {
        let (most, many, time) = effort();
        let upstream = Upstream::always(openai::answer(&ANSWER)).await;
        let mut program = program(&upstream, &[]).await;
        let (place, began) = (program.addr(), Instant::now());
        let journal = Arc::new(Mutex::new(HashMap::new()));
        let (mut rounds, mut starts) = (0, Vec::new());
        while rounds < most && began.elapsed() < time {
            let (acknowledged, stop) = (watch::Sender::new(0), watch::Sender::new(false));
            let mut clients = JoinSet::new();
            for number in 0..many {
                // Old sessions and new ones.
                let session = format!(
                    "s{}",
                    if number % 2 == 0 {
                        number
                    } else {
                        1_000 * (rounds + 1) + number
                    }
                );
                let turn = 10_000 * rounds;
                clients.spawn(chat(
                    place,
                    session,
                    turn,
                    journal.clone(),
                    acknowledged.clone(),
                    stop.subscribe(),
                ));
            }
            // Right after somebody has read `done`, a little later each time, or anywhere.
            let some = 1 + rounds % 25 * 2;
            let mut count = acknowledged.subscribe();
            soon("turns", count.wait_for(|count| *count >= some)).await.unwrap();
            if rounds % 2 == 1 {
                tokio::time::sleep(Duration::from_micros(fastrand::u64(0..20_000))).await;
            }
            program.kill9().await;
            stop.send_replace(true);
            while let Some(client) = soon("the clients to notice", clients.join_next()).await {
                client.unwrap();
            }
            let started = Instant::now();
            program.restart().await;
            starts.push(started.elapsed());
            let journal = journal.lock().unwrap().clone();
            check(&program, &journal).await;
            rounds += 1;
        }
        let journal = journal.lock().unwrap().clone();
        let acknowledged = journal
            .values()
            .filter(|outcome| **outcome == Outcome::Acknowledged)
            .count();
        assert!(rounds >= 10, "only {rounds} rounds in {:?}", began.elapsed());
        assert!(
            acknowledged >= 10 * rounds,
            "only {acknowledged} turns in {rounds} rounds"
        );
        assert!(journal.len() > acknowledged, "nothing was ever cut");
        // Most of them: the machine may be busy.
        starts.sort_unstable();
        let usual = starts[starts.len() / 2];
        assert!(usual < Duration::from_secs(2), "it was ready after {usual:?}");
        let slowest = starts.last().copied().unwrap_or_default();
        println!("{rounds} deaths, {acknowledged} turns acknowledged; ready after {usual:?}, {slowest:?} at most");
    }

    #[tokio::test]
    async fn in_the_middle_of_a_run_its_readers_are_told_afterwards() {
        let gate = Gate::new("never");
        let upstream = Upstream::start([
            openai::answer(&["zero"]),
            Script::sse().role().say("Hel").say("lo").wait(&gate),
            openai::answer(&["one"]),
        ])
        .await;
        let mut program = program(&upstream, &[]).await;
        post(&program, "/chat", json!({"message": "question 0", "session_id": "s"}))
            .await
            .expect(200)
            .await;
        let call = Call::post("/chat/sse").json(&json!({"message": "question 1", "session_id": "s"}));
        let call = call.header("Idempotency-Key", "k");
        let mut stream = call.clone().to(&program).await;
        let run = stream.header("x-run-id").to_owned();
        stream.next_event_named("token").await;
        assert_eq!(stream.next_event_named("token").await.id, format!("{run}:2"));
        program.kill9().await;
        assert_eq!(stream.transcript().await.ended, Ended::Aborted);
        upstream.closed().await;
        program.restart().await;

        let interrupted = glance(&program, &run).await;
        assert_eq!(
            (&interrupted["status"], &interrupted["error"]["code"]),
            (&json!("interrupted"), &json!("interrupted"))
        );
        assert!(
            interrupted["response"].is_null() && interrupted["ended_at"].is_string(),
            "{interrupted}"
        );
        // Numbered one after the id that is named; and who has it is told to stop.
        let resume = async |door: &str, seq: u64| {
            let id = format!("{run}:{seq}");
            let call = match door {
                "GET" => Call::get("/chat/sse?message=question%201&session_id=s"),
                "POST" => Call::post("/chat/sse").json(&json!({"message": "question 1", "session_id": "s"})),
                _ => Call::get(&format!("/runs/{run}/events")),
            };
            call.header("Last-Event-ID", &id).to(&program).await
        };
        // That is the client's word; but a number that no event has is nobody's.
        for seq in [u64::MAX, u64::MAX - 1, 1 << 53] {
            assert_eq!(resume("GET", seq).await.status, 400, "{seq}");
        }
        for door in ["GET", "POST", "events"] {
            let told = resume(door, 2).await.expect(200).await.transcript().await;
            assert_eq!(
                (told.kinds(), told.codes()),
                (vec!["error"], vec!["interrupted".to_owned()]),
                "{door}"
            );
            assert_eq!(
                (told.events[0].seq, &told.terminal().json()["error"]["run_id"]),
                (3, &json!(run)),
                "{door}"
            );
            assert_eq!(resume(door, 3).await.status, 204, "{door}");
        }
        // A reader that is further behind gets it where it stands, and comes to the same end.
        let mut seq = 0;
        for _ in 0..4 {
            let answer = resume("GET", seq).await;
            if answer.status == 204 {
                break;
            }
            let told = answer.expect(200).await.transcript().await;
            assert_eq!((told.kinds(), told.events[0].seq), (vec!["error"], seq + 1));
            seq += 1;
        }
        assert_eq!(resume("GET", seq).await.status, 204);
        let fresh = get(&program, &format!("/runs/{run}/events")).await.expect(200).await;
        assert_eq!(
            fresh.read_as(Reader::anywhere()).transcript().await.codes(),
            ["interrupted"]
        );
        let cancelled = Call::post(&format!("/runs/{run}/cancel"))
            .to(&program)
            .await
            .expect(409)
            .await;
        assert_eq!(cancelled.problem().await, "run_finished");
        assert_eq!(upstream.calls(), 2, "a resume asked the model");
        // It added nothing; the client simply asks again, with the same key.
        let again = call.to(&program).await.expect(200).await.transcript().await;
        assert_eq!(again.done()["response"]["content"], "one");
        assert_ne!(again.events[0].run_id, run);
        let sent = &upstream.requests()[2].json["messages"];
        let contents: Vec<_> = sent
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["content"].as_str().unwrap())
            .collect();
        assert_eq!(contents, ["question 0", "zero", "question 1"]);
    }

    #[tokio::test]
    async fn what_had_ended_is_told_with_its_number_though_its_log_is_gone() {
        let upstream = Upstream::start([
            openai::answer(&["a", "b", "c"]),
            Script::sse().role().say("a").cut(),
            Script::sse().role().say("a").hang(),
        ])
        .await;
        let mut program = program(&upstream, &[]).await;
        let whole = post(&program, "/chat/sse", json!({"message": "Hi"}))
            .await
            .transcript()
            .await;
        let broken = post(&program, "/chat/sse", json!({"message": "Hi"}))
            .await
            .transcript()
            .await;
        let mut stopped = post(&program, "/chat/sse", json!({"message": "Hi"})).await;
        stopped.next_event_named("token").await;
        Call::post(&format!("/runs/{}/cancel", stopped.header("x-run-id")))
            .to(&program)
            .await
            .expect(200)
            .await;
        let stopped = stopped.transcript().await;
        // The ends of the broken ones need not wait for the disk, but survive the process.
        program.kill9().await;
        program.restart().await;
        for (before, status) in [(&whole, "completed"), (&broken, "failed"), (&stopped, "cancelled")] {
            let (run, last) = (&before.events[0].run_id, before.terminal());
            assert_eq!(glance(&program, run).await["status"], status);
            assert_eq!(glance(&program, run).await["last_seq"], last.seq);
            for seq in 0..last.seq {
                for format in ["raw", "json"] {
                    let call = Call::get(&format!("/chat/sse?message=Hi&format={format}"));
                    let call = call.header("Last-Event-ID", &format!("{run}:{seq}"));
                    let told = call.to(&program).await.expect(200).await.transcript().await;
                    assert_eq!(
                        (told.events.len(), &told.events[0].id, &told.events[0].event),
                        (1, &last.id, &last.event)
                    );
                    let (mut now, mut then) = (told.terminal().json(), last.json());
                    for chunk in [&mut now, &mut then] {
                        chunk["error"]["request_id"].take();
                        chunk["metadata"]["duration_ms"].take(); // measured anew when it is told
                    }
                    assert_eq!(now, then, "{status} after {seq}");
                }
            }
            let over = Call::get(&format!("/runs/{run}/events"))
                .header("Last-Event-ID", &last.id)
                .to(&program)
                .await;
            assert_eq!(over.status, 204, "{status}");
        }
        assert_eq!(upstream.calls(), 3);
    }
}

mod told_to_stop {
    use super::*;

    /// Waits until nobody listens any more.
    async fn closed_to_new(place: SocketAddr) {
        eventually("the listener to close", async || {
            TcpStream::connect(place).await.is_err().then_some(())
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_open_stream_comes_to_one_end_and_it_exits_in_order() {
        let (finish, never) = (Gate::new("after the signal"), Gate::new("never"));
        let upstream = Upstream::answering({
            let (finish, never) = (finish.clone(), never.clone());
            move |request| match request.json["messages"][0]["content"].as_str() {
                Some("finish") => Script::sse().role().say("Hel").wait(&finish).say("lo").complete(),
                _ => Script::sse().role().say("Hel").wait(&never),
            }
        })
        .await;
        let drain = Duration::from_secs(3);
        let mut program = program(&upstream, &[("RUNS__DRAIN", "3s")]).await;
        let body = |kind: &str| json!({"message": kind, "on_disconnect": "continue"});
        let (mut ending, mut hanging) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            for (kind, streams) in [("finish", &mut ending), ("hang", &mut hanging)] {
                let mut stream = post(&program, "/chat/sse", body(kind)).await.expect(200).await;
                stream.next_event_named("token").await;
                streams.push(stream);
            }
        }
        let mut words = Vec::new();
        for kind in ["finish", "hang"] {
            let mut text = post(&program, "/chat/stream", body(kind)).await.expect(200).await;
            assert_eq!(text.next_bytes().await.unwrap(), "Hel");
            words.push(text);
        }
        let whole: Vec<_> = ["finish", "hang"]
            .map(|kind| {
                let place = program.addr();
                tokio::spawn(async move {
                    let mut connection = Connection::open(&place).await;
                    connection.send_raw(wire("/chat", &json!({"message": kind}))).await;
                    connection.answer("POST /chat").await.body().await
                })
            })
            .into();
        finish.reached_by(12).await;
        never.reached_by(12).await;
        let admin = program.admin().await;
        let late = wire("/chat", &json!({"message": "late"}));
        let (begun, rest) = late.split_at(late.len() - 1);
        let mut half_asked = Connection::open(&program).await;
        half_asked.send_raw(begun).await;
        half_asked.read_there().await; // or it is a connection without a question

        let told = Instant::now();
        program.terminate().await;
        program.logged("stopping").await;
        closed_to_new(program.addr()).await;
        half_asked.send_raw(rest).await;
        let refused = half_asked
            .answer("a question that comes too late")
            .await
            .expect(503)
            .await;
        assert_eq!(refused.problem().await, "shutting_down");
        let counted = Meters::of(&admin).await;
        assert_eq!(counted.get("shed_total{reason=\"shutting_down\"}"), 1.0);
        finish.open();
        for stream in ending {
            let events = stream.transcript().await;
            assert_eq!(
                (events.ended, events.done()["response"]["content"].as_str()),
                (Ended::Eof, Some("Hello"))
            );
        }
        for stream in hanging {
            let run = stream.header("x-run-id").to_owned();
            let events = stream.transcript().await;
            assert_eq!(
                (events.ended, events.codes()),
                (Ended::Eof, vec!["shutting_down".to_owned()])
            );
            let error = events.terminal().json()["error"].clone();
            assert_eq!(
                (&error["retryable"], &error["status"], &error["run_id"]),
                (&json!(true), &json!(503), &json!(run))
            );
        }
        assert!(
            told.elapsed() >= drain,
            "it did not wait for those that could have finished"
        );
        let cut = words.pop().unwrap().body().await;
        assert!(cut.ending.is_aborted(), "a text that was cut looks complete");
        let text = words.pop().unwrap().body().await;
        assert_eq!((text.text(), &text.ending), ("lo", &Ending::Complete));
        let mut bodies = Vec::new();
        for task in whole {
            bodies.push(task.await.unwrap());
        }
        assert_eq!(
            (bodies[0].status, bodies[0].json()["content"].as_str()),
            (200, Some("Hello"))
        );
        assert_eq!(
            (bodies[1].status, bodies[1].json()["code"].as_str()),
            (503, Some("shutting_down"))
        );
        let exit = program
            .wait_exit((told + drain + Duration::from_secs(5)).saturating_duration_since(Instant::now()))
            .await;
        assert_eq!(exit.code(), Some(0), "{}", program.log());
        assert_eq!(upstream.calls(), 24, "a run began after the signal");

        // What finished is kept; what did not is interrupted, and says so.
        program.restart().await;
        let sessions = get(&program, "/sessions?limit=200")
            .await
            .expect(200)
            .await
            .json()
            .await;
        let counts = sessions["sessions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["message_count"].as_u64().unwrap());
        assert_eq!(counts.filter(|count| *count == 2).count(), 12, "{sessions}");
        let mut file = file(&program).await;
        let by_status = "SELECT status, count(*) FROM runs GROUP BY status ORDER BY status";
        let by_status: Vec<(String, i64)> = sqlx::query_as(by_status).fetch_all(&mut file).await.unwrap();
        assert_eq!(
            by_status,
            [("completed".to_owned(), 12), ("interrupted".to_owned(), 12)]
        );
    }

    #[tokio::test]
    async fn who_is_interrupted_can_read_that_after_the_restart_and_ask_again() {
        let gate = Gate::new("never");
        let upstream = Upstream::start([Script::sse().role().say("Hel").wait(&gate), openai::answer(&["Yes"])]).await;
        let mut program = program(&upstream, &[("RUNS__DRAIN", "10ms")]).await;
        let body = json!({"message": "Hi", "session_id": "s"});
        let mut stream = post(&program, "/chat/sse", body.clone()).await;
        let token = stream.next_event_named("token").await;
        program.terminate().await;
        let last = stream.transcript().await;
        assert_eq!(last.codes(), ["shutting_down"]);
        assert!(program.wait_exit(Duration::from_secs(5)).await.success());
        program.restart().await;
        let resumed = Call::get("/chat/sse?message=Hi")
            .header("Last-Event-ID", &token.id)
            .to(&program)
            .await;
        let resumed = resumed.transcript().await;
        assert_eq!(
            (resumed.codes(), resumed.last_id()),
            (vec!["shutting_down".to_owned()], last.last_id())
        );
        let over = Call::get("/chat/sse?message=Hi")
            .header("Last-Event-ID", last.last_id().unwrap())
            .to(&program)
            .await;
        assert_eq!(over.status, 204);
        assert_eq!(glance(&program, &token.run_id).await["status"], "interrupted");
        let answer = post(&program, "/chat", body).await.expect(200).await.json().await;
        assert_eq!(answer["content"], "Yes");
        assert_eq!(
            upstream.requests()[1].json["messages"].as_array().unwrap().len(),
            1,
            "nothing was added"
        );
    }

    #[tokio::test]
    async fn a_second_signal_ends_it_at_once() {
        let gate = Gate::new("never");
        let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate)).await;
        let mut program = program(&upstream, &[("RUNS__DRAIN", "60s")]).await;
        let mut stream = post(&program, "/chat/sse", json!({"message": "Hi"})).await;
        stream.next_event_named("token").await;
        let mut words = post(&program, "/chat/stream", json!({"message": "Hi"})).await;
        words.next_bytes().await;
        program.terminate().await;
        program.logged("stopping").await;
        closed_to_new(program.addr()).await;
        let again = Instant::now();
        program.terminate().await;
        assert_eq!(stream.transcript().await.codes(), ["shutting_down"]);
        assert!(words.body().await.ending.is_aborted());
        let exit = program.wait_exit(Duration::from_secs(5)).await;
        assert!(
            again.elapsed() < Duration::from_secs(5) && exit.code() == Some(0),
            "{exit} {}",
            program.log()
        );
    }

    #[tokio::test]
    async fn with_nothing_open_it_exits_within_a_second() {
        let upstream = Upstream::always(openai::answer(&["a"])).await;
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let mut program = program(&upstream, &[]).await;
            // Connections that are open, and have nothing to wait for: one fresh, one used, and a run that has ended.
            let _fresh = Connection::open(&program).await;
            let used = Connection::open(&program).await.call(Call::get("/healthz")).await;
            let (_, _used) = used.body_and_connection().await;
            post(&program, "/chat", json!({"message": "Hi"}))
                .await
                .expect(200)
                .await
                .json()
                .await;
            let told = Instant::now();
            program.terminate().await;
            let exit = program.wait_exit(Duration::from_secs(5)).await;
            assert_eq!(exit.code(), Some(0), "{}", program.log());
            best = best.min(told.elapsed());
            if best < Duration::from_secs(1) {
                return;
            }
        }
        panic!("it took {best:?}");
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_does_not_hold_it_up() {
        let piece = "x".repeat(64 * 1024);
        let script = (0..50)
            .fold(Script::sse().role(), |script, _| script.say(&piece))
            .complete();
        let upstream = Upstream::always(script).await;
        let mut program = program(&upstream, &[("RUNS__DRAIN", "200ms")]).await;
        let mut slow = Connection::open_narrow(&program).await;
        slow.send_raw(wire("/chat/sse", &json!({"message": "Hi"}))).await;
        let slow = slow.answer("POST /chat/sse, which nobody reads").await;
        let run = slow.header("x-run-id").to_owned();
        eventually("the run to end", async || {
            (glance(&program, &run).await["status"] == "completed").then_some(())
        })
        .await;
        let told = Instant::now();
        program.terminate().await;
        let exit = program.wait_exit(Duration::from_millis(5_200)).await;
        assert_eq!(exit.code(), Some(0), "after {:?}: {}", told.elapsed(), program.log());
        let body = slow.body().await;
        assert!(body.ending.is_aborted(), "half a stream looks whole");
    }
}

#[tokio::test]
async fn the_program_keeps_its_sessions_where_it_was_started() {
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let mut program = program(&upstream, &[]).await;
    post(&program, "/chat", json!({"message": "Hi", "session_id": "s"}))
        .await
        .expect(200)
        .await;
    program.terminate().await;
    assert!(program.wait_exit(Duration::from_secs(5)).await.success());
    program.restart().await;
    let session = get(&program, "/sessions/s").await.expect(200).await.json().await;
    assert_eq!(session["message_count"], 2);
}

mod drain_delay {
    use super::*;

    #[tokio::test]
    async fn readiness_fails_first_and_the_port_closes_after_it() {
        let upstream = Upstream::always(openai::answer(&["Hi"])).await;
        let mut program = program(&upstream, &[("SERVER__DRAIN_DELAY", "3s")]).await;
        program.terminate().await;
        eventually("/readyz to say no", async || {
            let ready = get(&program, "/readyz").await;
            (ready.status == 503).then_some(())
        })
        .await;
        // What a balancer still sends is served, in new connections and with new runs.
        let served = post(&program, "/chat", json!({"message": "Hi"})).await;
        assert_eq!(served.expect(200).await.json().await["content"], "Hi");
        assert_eq!(get(&program, "/readyz").await.problem().await, "shutting_down");
        assert!(program.wait_exit(Duration::from_secs(20)).await.success());
        assert!(TcpStream::connect(program.addr()).await.is_err());
    }

    #[tokio::test]
    async fn a_second_signal_skips_it() {
        let upstream = Upstream::always(openai::answer(&["Hi"])).await;
        let mut program = program(&upstream, &[("SERVER__DRAIN_DELAY", "10m")]).await;
        program.terminate().await;
        program.logged("the port closes in").await;
        program.terminate().await;
        assert!(program.wait_exit(Duration::from_secs(20)).await.success());
    }
}

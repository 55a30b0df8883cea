//! Clients that leave: at every moment, in every way, with every policy.
use super::*;

/// How a client goes.
#[derive(Clone, Copy, Debug)]
enum Exit {
    Fin,
    Rst,
}

/// Where the upstream is when it does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    BeforeTheHead,
    BeforeTheFirstToken,
    MidStream,
    Silent,
}

const PHASES: [Phase; 4] = [
    Phase::BeforeTheHead,
    Phase::BeforeTheFirstToken,
    Phase::MidStream,
    Phase::Silent,
];

fn script(phase: Phase, gate: &Gate) -> Script {
    match phase {
        Phase::BeforeTheHead => Script::raw().wait(gate).step(Step::Hang),
        Phase::BeforeTheFirstToken => Script::sse().role().wait(gate).hang(),
        Phase::MidStream => {
            Script::sse()
                .role()
                .say("Hel")
                .wait(gate)
                .repeat(openai::text("lo "), Duration::from_millis(5), 10_000)
        }
        Phase::Silent => Script::sse().role().say("Hel").wait(gate).hang(),
    }
}

/// Lets a client leave; gives how long the upstream stayed open after that.
async fn leave(path: &str, policy: Option<&str>, phase: Phase, exit: Exit) -> Duration {
    let gate = Gate::new("in the middle");
    let (middle, first) = (script(phase, &gate), std::sync::atomic::AtomicBool::new(true));
    let upstream = Upstream::answering(move |_| match first.swap(false, std::sync::atomic::Ordering::Relaxed) {
        true => middle.clone(),
        false => openai::answer(&["Yes"]),
    })
    .await;
    let gateway = Gateway::with(&upstream).start().await;
    let mut body = json!({"message": "Hi", "session_id": "s"});
    if let Some(policy) = policy {
        body["on_disconnect"] = policy.into();
    }
    let mut connection = Connection::open(&gateway).await;
    connection.send_raw(wire(path, &body)).await;
    gate.reached().await;
    gate.open();
    // What streams is read up to its first words, so that it is a stream that is left.
    let starts_early =
        path == "/chat/sse" || (path == "/chat/stream" && matches!(phase, Phase::MidStream | Phase::Silent));
    let left = if starts_early {
        let mut answer = connection.answer(path).await;
        assert_eq!(answer.status, 200);
        match (path, phase) {
            ("/chat/sse", Phase::MidStream | Phase::Silent) => drop(answer.next_event_named("token").await),
            _ => drop(answer.next_bytes().await.expect("the first bytes")),
        }
        let now = Instant::now();
        match exit {
            Exit::Fin => answer.hang_up(),
            Exit::Rst => answer.reset(),
        }
        now
    } else {
        let now = Instant::now();
        match exit {
            Exit::Fin => connection.hang_up(),
            Exit::Rst => connection.reset(),
        }
        now
    };
    let closed = upstream.closed().await;
    // The session is free again, and has what was said, marked, or nothing.
    let next = eventually("the session to be free", async || {
        let next = post(&gateway, "/chat", json!({"message": "Go on", "session_id": "s"})).await;
        (next.status != 409).then_some(next)
    })
    .await;
    next.expect(200).await;
    let kept = said(&gateway, "s").await;
    let spoke = matches!(phase, Phase::MidStream | Phase::Silent);
    let marks: Vec<_> = kept
        .iter()
        .map(|(role, _, status)| (role.as_str(), status.as_str()))
        .collect();
    let turn = [("user", "complete"), ("assistant", "complete")];
    // Who waits for JSON cannot see whether the words had arrived when it left.
    let unseen = path == "/chat" && marks == turn;
    match spoke && !unseen {
        true => assert_eq!(
            marks,
            [&[("user", "cancelled"), ("assistant", "cancelled")][..], &turn].concat(),
            "{kept:?}"
        ),
        false => assert_eq!(marks, turn, "{kept:?}"),
    }
    if spoke && !unseen {
        assert!(kept[1].1.starts_with("Hel"), "{kept:?}");
    }
    assert_eq!(upstream.calls(), 2);
    closed.saturating_duration_since(left)
}

/// The best of five: the machine may be busy, but what is late by design is late each time.
async fn leaves_promptly(path: &'static str, policy: Option<&str>, phase: Phase, exit: Exit) {
    let mut took = Duration::MAX;
    for _ in 0..5 {
        took = took.min(leave(path, policy, phase, exit).await);
        if took <= PROMPT {
            return;
        }
    }
    panic!("{path} {policy:?} {phase:?} {exit:?}: the upstream was closed after {took:?}");
}

#[tokio::test]
async fn who_hangs_up_on_json_or_text_closes_the_upstream_at_any_moment() {
    let mut rows = Vec::new();
    for path in ["/chat", "/chat/stream"] {
        for phase in PHASES {
            for exit in [Exit::Fin, Exit::Rst] {
                rows.push((
                    format!("{path} {phase:?} {exit:?}"),
                    leaves_promptly(path, None, phase, exit),
                ));
            }
        }
    }
    every_row(rows).await;
}

#[tokio::test]
async fn who_hangs_up_on_sse_closes_the_upstream_if_that_was_asked_for() {
    let rows = PHASES
        .into_iter()
        .flat_map(|phase| [Exit::Fin, Exit::Rst].map(|exit| (phase, exit)));
    let leaves = |(phase, exit)| {
        (
            format!("{phase:?} {exit:?}"),
            leaves_promptly("/chat/sse", Some("cancel"), phase, exit),
        )
    };
    every_row(rows.map(leaves)).await;
}

const GRACE: Duration = Duration::from_millis(400);

/// With a grace of its own, and this script.
async fn graceful(grace: Duration, script: Script) -> (Upstream, Gateway) {
    let upstream = Upstream::always(script).await;
    let gateway = Gateway::with(&upstream)
        .toml(&format!("[runs]\ndetach_grace = \"{}ms\"", grace.as_millis()))
        .start()
        .await;
    (upstream, gateway)
}

/// Every way to a run that has a grace: `(path, body, key)`.
fn with_grace() -> Vec<(&'static str, Value, Option<&'static str>)> {
    let hi = json!({"message": "Hi"});
    let asked = json!({"message": "Hi", "on_disconnect": "grace"});
    vec![
        ("/chat/sse", hi.clone(), None),
        ("/chat", asked.clone(), None),
        ("/chat/stream", asked.clone(), None),
        ("/chat", hi.clone(), Some("k")),
        ("/chat/stream", hi, Some("k")),
        ("/runs", asked, None),
    ]
}

#[tokio::test]
async fn with_a_grace_the_upstream_is_closed_when_it_is_over_and_not_before() {
    let leave = async |path: &str, body: &Value, key: Option<&str>| {
        let gate = Gate::new("never");
        let (upstream, gateway) = graceful(GRACE, Script::sse().role().say("Hel").wait(&gate)).await;
        let mut head = wire(path, body);
        if let Some(key) = key {
            head = head.replacen("\r\n", &format!("\r\nIdempotency-Key: {key}\r\n"), 1);
        }
        let mut connection = Connection::open(&gateway).await;
        let sent = Instant::now();
        connection.send_raw(head).await;
        gate.reached().await;
        let left = if path == "/chat" {
            let left = Instant::now();
            connection.hang_up();
            left
        } else {
            let mut answer = connection.answer(path).await;
            answer.next_bytes().await.expect("the first words");
            let left = Instant::now();
            answer.hang_up();
            // What was left alone from the beginning has been without a reader since it was answered.
            if path == "/runs" { sent } else { left }
        };
        upstream.closed().await.saturating_duration_since(left)
    };
    let mut wrong = Vec::new();
    for (path, body, key) in with_grace() {
        let mut took = Duration::MAX;
        for _ in 0..5 {
            took = took.min(leave(path, &body, key).await);
            if took <= GRACE + PROMPT {
                break;
            }
        }
        if took < GRACE || took > GRACE + PROMPT {
            wrong.push(format!("{path} {body} {key:?}: closed after {took:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn who_comes_back_in_time_finds_the_run_going_on() {
    let gate = Gate::new("the end");
    let (grace, away) = (Duration::from_secs(4), Duration::from_millis(1_500));
    let script = Script::sse().role().say("Hel").wait(&gate).say("lo").complete();
    let (upstream, gateway) = graceful(grace, script).await;
    let mut stream = post(&gateway, "/chat/sse", json!({"message": "Hi"})).await;
    let id = stream.next_event_named("token").await.id;
    let run = stream.header("x-run-id").to_owned();
    // Three times away for less than the grace, together for more: each return begins it anew.
    for _ in 0..3 {
        stream.hang_up();
        tokio::time::sleep(away).await;
        stream = Call::get("/chat/sse?message=Hi")
            .header("Last-Event-ID", &id)
            .to(&gateway)
            .await
            .expect(200)
            .await;
    }
    assert_eq!(glance(&gateway, &run).await["status"], "running");
    gate.open();
    let token = stream.next_event().await;
    assert_eq!(
        (token.event.as_str(), token.text.as_str(), token.seq),
        ("token", "lo", 2)
    );
    let done = stream.transcript().await;
    assert_eq!(done.done()["response"]["content"], "Hello");
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn who_drops_before_the_first_token_has_an_id_to_come_back_with() {
    let gate = Gate::new("the head");
    let (upstream, gateway) = graceful(
        PATIENCE,
        Script::raw().wait(&gate).bytes(head()).bytes(chunked("a")).cut(),
    )
    .await;
    let mut stream = post(&gateway, "/chat/sse", json!({"message": "Hi"})).await;
    let start = stream.next_event().await;
    assert_eq!((start.event.as_str(), start.seq), ("start", 0));
    gate.reached().await;
    stream.hang_up();
    let back = Call::get("/chat/sse?message=Hi")
        .header("Last-Event-ID", &start.id)
        .to(&gateway)
        .await
        .expect(200)
        .await;
    gate.open();
    assert_eq!(back.transcript().await.text(), "a");
    assert_eq!(upstream.calls(), 1);
}

fn head() -> &'static str {
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
}

fn chunked(piece: &str) -> Vec<u8> {
    let event = openai::text(piece);
    [format!("{:x}\r\n", event.len()).as_bytes(), &event, b"\r\n"].concat()
}

#[tokio::test]
async fn who_wants_it_to_continue_finds_it_complete() {
    for path in ["/chat", "/chat/stream", "/chat/sse"] {
        let gate = Gate::new("the end");
        let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate).say("lo").complete()).await;
        // With a grace that would have ended it.
        let gateway = Gateway::with(&upstream)
            .toml("[runs]\ndetach_grace = \"1ms\"")
            .start()
            .await;
        let mut connection = Connection::open(&gateway).await;
        let body = json!({"message": "Hi", "session_id": "s", "on_disconnect": "continue"});
        connection.send_raw(wire(path, &body)).await;
        gate.reached().await;
        connection.hang_up();
        // Its leaving takes effect while the upstream stands still; nothing tells that nothing happens.
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.open();
        let kept = eventually("the turn", async || {
            Some(said(&gateway, "s").await).filter(|messages| !messages.is_empty())
        })
        .await;
        assert_eq!(
            (kept.len(), kept[1].1.as_str(), kept[1].2.as_str()),
            (2, "Hello", "complete"),
            "{path}"
        );
        assert_eq!(upstream.calls(), 1);
    }
}

#[tokio::test]
async fn a_run_that_was_started_and_left_goes_on_alone() {
    let gate = Gate::new("the end");
    let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate).say("lo").complete()).await;
    let gateway = Gateway::with(&upstream)
        .toml("[runs]\ndetach_grace = \"1ms\"")
        .start()
        .await;
    let answer = post(&gateway, "/runs", json!({"message": "Hi", "metadata": {"a": "b"}}))
        .await
        .expect(202)
        .await;
    let (run, session) = (
        answer.header("x-run-id").to_owned(),
        answer.header("x-session-id").to_owned(),
    );
    let started = answer.json().await;
    let events_url = format!("/runs/{run}/events");
    assert_eq!(
        started,
        json!({"run_id": run, "session_id": session, "events_url": events_url})
    );
    gate.reached().await;
    // Readers come and go; a run that continues does not mind.
    get(&gateway, &events_url).await.next_event_named("token").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let now = glance(&gateway, &run).await;
    assert_eq!(
        (&now["status"], &now["response"], &now["ended_at"]),
        (&json!("running"), &Value::Null, &Value::Null)
    );
    gate.open();
    let over = ended(&gateway, &run).await;
    assert_eq!(
        (&over["status"], &over["response"]["content"]),
        (&json!("completed"), &json!("Hello"))
    );
    assert_eq!(over["metadata"], json!({"a": "b"}));
    let events = get(&gateway, &events_url).await.expect(200).await.transcript().await;
    assert_eq!(events.kinds(), ["start", "token", "token", "done"]);
    assert_eq!(events.done()["response"], over["response"]);
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_run_does_not_outlive_its_deadline() {
    let gate = Gate::new("never");
    let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate)).await;
    let gateway = Gateway::with(&upstream).toml("[runs]\ndeadline = \"3s\"").start().await;
    let began = Instant::now();
    let events = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "a"}))
        .await
        .transcript()
        .await;
    assert_eq!(
        (events.text().as_str(), events.codes()),
        ("Hel", vec!["run_deadline".to_owned()])
    );
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    upstream.closed().await;
    let run = ended(&gateway, &events.events[0].run_id).await;
    assert_eq!(
        (&run["status"], &run["error"]["code"]),
        (&json!("failed"), &json!("run_deadline"))
    );
    assert_eq!(run["response"]["content"], "Hel", "how far it got is kept with the run");
    assert_eq!(said(&gateway, "a").await, []);
    let whole = post(&gateway, "/chat", json!({"message": "Hi"})).await;
    assert_eq!((whole.status, whole.problem().await.as_str()), (504, "run_deadline"));
    let words = post(&gateway, "/chat/stream", json!({"message": "Hi"}))
        .await
        .expect(200)
        .await
        .body()
        .await;
    assert_eq!((words.text(), words.ending.is_aborted()), ("Hel", true));
    let alone = begin(&gateway, json!({"message": "Hi"})).await;
    assert_eq!(ended(&gateway, &alone).await["error"]["code"], "run_deadline");
    upstream.idle().await;
}

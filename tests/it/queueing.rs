//! A session that is busy: who waits for it, in which order, how long; and who interrupts.
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::house::*;

/// What was asked last.
fn question(request: &Request) -> String {
    contents(request).pop().unwrap_or_default()
}

/// What the model was sent, from the first message to the question.
fn contents(request: &Request) -> Vec<String> {
    let messages = request.json["messages"].as_array().expect("messages").iter();
    messages
        .map(|message| message["content"].as_str().expect("text").to_owned())
        .collect()
}

/// Answers `re NAME` to the question `NAME`; `hold` and `hold too` say a word first, and stand at the gate.
async fn upstream(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::answering(move |request| match question(request).as_str() {
        held if held.starts_with("hold") => Script::sse().role().say("partial").wait(&gate).say(" whole").complete(),
        other => openai::answer(&["re ", other]),
    })
    .await
}

fn body(message: &str, on_busy: &str) -> Value {
    json!({"message": message, "session_id": "s", "on_busy": on_busy})
}

/// Asks over SSE, and reads `start`: then the run is under way, or in the line.
async fn ask(gateway: &impl Place, message: &str, on_busy: &str) -> Response {
    let mut stream = post(gateway, "/chat/sse", body(message, on_busy))
        .await
        .expect(200)
        .await;
    assert_eq!(stream.next_event().await.event, "start");
    stream
}

/// A run that holds the session `s` until the gate opens, and has said `partial`.
async fn hold(gateway: &impl Place) -> Response {
    let mut stream = ask(gateway, "hold", "reject").await;
    assert_eq!(stream.next_event_named("token").await.text, "partial");
    stream
}

async fn glance(gateway: &impl Place, run: &str) -> Value {
    get(gateway, &format!("/runs/{run}"))
        .await
        .expect(200)
        .await
        .json()
        .await
}

/// `(content, status)` of all messages of the session `s`.
async fn kept(gateway: &impl Place) -> Vec<(String, String)> {
    let page = get(gateway, "/sessions/s/messages?limit=200").await.expect(200).await;
    let page = page.json().await;
    let word = |message: &Value, member: &str| message[member].as_str().expect("text").to_owned();
    let messages = page["messages"].as_array().expect("messages").iter();
    messages.map(|m| (word(m, "content"), word(m, "status"))).collect()
}

fn turn(question: &str, answer: &str, status: &str) -> Vec<(String, String)> {
    [question, answer]
        .map(|text| (text.to_owned(), status.to_owned()))
        .into()
}

fn complete(question: &str) -> Vec<(String, String)> {
    turn(question, &format!("re {question}"), "complete")
}

#[tokio::test]
async fn ten_wait_in_the_order_in_which_they_came() {
    let gate = Gate::new("the first one's end");
    let upstream = upstream(&gate).await;
    let gateway = Gateway::with(&upstream).start().await;
    let first = hold(&gateway).await;
    let mut waiting = Vec::new();
    for number in 1..=10 {
        // `start` is read while the session is another's.
        waiting.push(ask(&gateway, &format!("q{number}"), "queue").await);
    }
    for stream in &waiting {
        assert_eq!(glance(&gateway, stream.header("x-run-id")).await["status"], "running");
    }
    assert_eq!(upstream.calls(), 1, "a model was asked before its turn");
    gate.open();
    assert_eq!(first.transcript().await.text(), "partial whole");
    let mut history = vec!["hold".to_owned(), "partial whole".to_owned()];
    for (number, stream) in (1..).zip(waiting) {
        let transcript = stream.transcript().await;
        assert_eq!(transcript.done()["response"]["content"], format!("re q{number}"));
        history.push(format!("q{number}"));
        assert_eq!(contents(&upstream.requests()[number]), history);
        history.push(format!("re q{number}"));
    }
    assert_eq!(upstream.calls(), 11);
    let expected = [turn("hold", "partial whole", "complete")]
        .into_iter()
        .chain((1..=10).map(|number| complete(&format!("q{number}"))));
    assert_eq!(kept(&gateway).await, expected.flatten().collect::<Vec<_>>());
}

/// Two users name the same new session at the same moment, again and again. Each session is answered for one of them; the
/// other one learns nothing, stops nothing, and its model is never asked.
async fn one_owner(gateways: [&impl Place; 2], upstream: &Upstream) {
    let before = upstream.calls();
    for round in 0..30 {
        let on_busy = ["queue", "interrupt", "reject"][round % 3];
        let ask = |user: usize| {
            let (session, message) = (format!("n{round}"), format!("{round} of {user}"));
            let body =
                json!({"message": message, "session_id": session, "user_id": format!("u{user}"), "on_busy": on_busy});
            async move { post(gateways[user], "/chat", body).await }
        };
        let (first, second) = tokio::join!(ask(0), ask(1));
        let mut statuses = [first.status, second.status];
        let owner = usize::from(statuses[0] == 404);
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 404], "{round}, {on_busy}");
        let session = get(gateways[0], &format!("/sessions/n{round}")).await.expect(200).await;
        let session = session.json().await;
        assert_eq!(
            (&session["user_id"], &session["message_count"]),
            (&json!(format!("u{owner}")), &json!(2)),
            "{round}, {on_busy}"
        );
        assert_eq!(
            question(upstream.requests().last().unwrap()),
            format!("{round} of {owner}")
        );
    }
    assert_eq!(upstream.calls() - before, 30, "the other one's model was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_session_that_two_users_name_at_once_is_one_users() {
    let gate = Gate::new("never");
    let upstream = upstream(&gate).await;
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("[store]\nurl = \"sqlite://{}/s.db\"", folder.path().display());
    for store in ["[store]\nurl = \"memory:\"", &sqlite] {
        let gateway = Gateway::with(&upstream).toml(store).start().await;
        one_owner([&gateway, &gateway], &upstream).await;
    }
    let Some(database) = crate::stores::Database::make().await else {
        return;
    };
    let (url, base_url) = (database.url("lease=10s"), upstream.base_url());
    let env = [
        ("OPENAI_API_KEY", "test-key"),
        ("OPENAI_BASE_URL", &base_url),
        ("SLUICEGATE_MODEL", "openai/test-model"),
        ("SLUICEGATE__STORE__URL", &url),
    ];
    let (a, b) = (Process::start(&env, &[]).await, Process::start(&env, &[]).await);
    one_owner([&a, &b], &upstream).await;
}

#[tokio::test]
async fn nobody_stops_or_learns_of_the_run_of_another_users_session() {
    let gate = Gate::new("the first one's end");
    let upstream = upstream(&gate).await;
    let gateway = Gateway::with(&upstream).start().await;
    let first = hold(&gateway).await;
    for on_busy in ["interrupt", "queue", "reject"] {
        let mut body = body("mine", on_busy);
        body["user_id"] = json!("somebody else");
        let refused = post(&gateway, "/chat", body).await.expect(404).await.problem().await;
        assert_eq!(refused, "not_found", "{on_busy}");
    }
    gate.open();
    assert_eq!(first.transcript().await.text(), "partial whole");
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_session_has_the_agent_that_it_was_created_with() {
    let upstream =
        Upstream::answering(|request| openai::answer(&[&request.json["messages"][0]["content"].to_string()])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[agents.poet]\nmodel = \"openai/test-model\"\ninstructions = \"Rhyme.\"\n")
        .start()
        .await;
    let created = json!({"session_id": "made", "agent": "poet"});
    post(&gateway, "/sessions", created).await.expect(201).await;
    let ask = async |session: &str, agent: Option<&str>, on_busy: &str| {
        let mut body = json!({"message": "Hi", "session_id": session, "on_busy": on_busy});
        if let Some(agent) = agent {
            body["agent"] = json!(agent);
        }
        let answer = post(&gateway, "/chat", body).await.expect(200).await.json().await;
        answer["agent"].as_str().expect("an agent").to_owned()
    };
    assert_eq!(ask("made", None, "reject").await, "poet");
    assert_eq!(
        ask("made", Some("assistant"), "reject").await,
        "assistant",
        "for this turn"
    );
    assert_eq!(ask("made", None, "reject").await, "poet");
    assert_eq!(ask("new", None, "reject").await, "assistant");
    // Whoever comes first names it, and the other one in the same moment goes by that.
    for round in 0..20 {
        let session = format!("n{round}");
        let (first, second) = tokio::join!(ask(&session, Some("poet"), "queue"), ask(&session, None, "queue"));
        assert_eq!(first, "poet");
        let session = get(&gateway, &format!("/sessions/{session}")).await.expect(200).await;
        assert_eq!(session.json().await["agent"], second);
    }
}

#[tokio::test]
async fn a_session_that_is_free_is_waited_for_by_nobody() {
    let gate = Gate::new("never");
    let upstream = upstream(&gate).await;
    let gateway = Gateway::with(&upstream).start().await;
    for on_busy in ["queue", "interrupt", "reject"] {
        let answer = post(&gateway, "/chat", body(on_busy, on_busy)).await.expect(200).await;
        assert_eq!(answer.json().await["content"], format!("re {on_busy}"));
    }
    assert_eq!(contents(&upstream.requests()[2]).len(), 5);
}

#[tokio::test]
async fn patience_ends_and_nothing_is_written() {
    let gate = Gate::new("the first one's end");
    let upstream = upstream(&gate).await;
    let gateway = Gateway::with(&upstream)
        .toml("[sessions]\nqueue_patience = \"300ms\"")
        .start()
        .await;
    let first = hold(&gateway).await;
    let began = Instant::now();
    let (events, whole, text) = tokio::join!(
        async { ask(&gateway, "one", "queue").await.transcript().await },
        async { post(&gateway, "/chat", body("two", "queue")).await.expect(409).await },
        async {
            post(&gateway, "/chat/stream", body("three", "queue"))
                .await
                .expect(409)
                .await
        },
    );
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(
        (events.kinds(), events.codes()),
        (vec!["start", "error"], vec!["session_busy".to_owned()])
    );
    let run = glance(&gateway, &events.events[0].run_id).await;
    assert_eq!(
        (&run["status"], &run["error"]["code"], &run["last_seq"]),
        (&json!("failed"), &json!("session_busy"), &json!(1))
    );
    assert_eq!(whole.problem().await, "session_busy");
    assert_eq!(text.problem().await, "session_busy");
    assert_eq!(upstream.calls(), 1);
    gate.open();
    first.transcript().await.done();
    assert_eq!(kept(&gateway).await, turn("hold", "partial whole", "complete"));
    // The line is empty, and the session free.
    let next = post(&gateway, "/chat", body("next", "reject")).await.expect(200).await;
    assert_eq!(next.json().await["content"], "re next");
}

#[tokio::test]
async fn who_does_not_want_to_wait_leaves_the_line() {
    let gate = Gate::new("the first one's end");
    let upstream = upstream(&gate).await;
    let gateway = Gateway::with(&upstream)
        .toml("[runs]\ndetach_grace = \"100ms\"")
        .start()
        .await;
    let first = hold(&gateway).await;
    let cancelled = ask(&gateway, "cancelled", "queue").await;
    let stays = ask(&gateway, "stays", "queue").await;
    let gone = ask(&gateway, "gone", "queue").await;
    let mut closed = Connection::open(&gateway).await;
    let call = body("closed", "queue").to_string();
    let head = format!(
        "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{call}",
        call.len()
    );
    closed.send_raw(head).await;
    let last = ask(&gateway, "last", "queue").await;
    let run = cancelled.header("x-run-id").to_owned();
    let answer = Call::post(&format!("/runs/{run}/cancel"))
        .to(&gateway)
        .await
        .expect(200)
        .await;
    assert_eq!(answer.json().await["status"], "cancelled");
    assert_eq!(cancelled.transcript().await.codes(), ["cancelled"]);
    let run = gone.header("x-run-id").to_owned();
    gone.reset();
    closed.reset();
    eventually("the run without a reader to be cancelled", async || {
        (glance(&gateway, &run).await["status"] == "cancelled").then_some(())
    })
    .await;
    assert_eq!(upstream.calls(), 1);
    gate.open();
    first.transcript().await.done();
    stays.transcript().await.done();
    last.transcript().await.done();
    let asked: Vec<_> = upstream.requests().iter().map(question).collect();
    assert_eq!(asked, ["hold", "stays", "last"]);
    let turns = [
        turn("hold", "partial whole", "complete"),
        complete("stays"),
        complete("last"),
    ];
    assert_eq!(kept(&gateway).await, turns.concat());
}

#[tokio::test]
async fn the_deadline_goes_on_while_a_run_waits() {
    let gate = Gate::new("never");
    let upstream = upstream(&gate).await;
    let gateway = Gateway::with(&upstream).toml("[runs]\ndeadline = \"4s\"").start().await;
    let first = hold(&gateway).await;
    let waits = ask(&gateway, "waits", "queue").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // It goes before the one that waits, and has the session for longer than that one may take.
    let mut second = ask(&gateway, "hold too", "interrupt").await;
    assert_eq!(first.transcript().await.codes(), ["cancelled"]);
    second.next_event_named("token").await;
    assert_eq!(waits.transcript().await.codes(), ["run_deadline"]);
    assert_eq!(second.transcript().await.codes(), ["run_deadline"]);
    let next = ask(&gateway, "next", "queue").await.transcript().await;
    assert_eq!(next.text(), "re next");
    let asked: Vec<_> = upstream.requests().iter().map(question).collect();
    assert_eq!(asked, ["hold", "hold too", "next"]);
    let turns = [turn("hold", "partial", "cancelled"), complete("next")];
    assert_eq!(kept(&gateway).await, turns.concat());
}

#[tokio::test]
async fn one_that_fails_lets_the_next_one_go_on_without_it() {
    let gate = Gate::new("its failure");
    let upstream = Upstream::start([
        Script::sse().role().say("Hel").wait(&gate).cut(),
        openai::answer(&["Yes"]),
    ])
    .await;
    let gateway = Gateway::with(&upstream).start().await;
    let first = ask(&gateway, "first", "reject").await;
    gate.reached().await;
    let next = ask(&gateway, "next", "queue").await;
    gate.open();
    assert_eq!(first.transcript().await.terminal().event, "error");
    assert_eq!(next.transcript().await.text(), "Yes");
    assert_eq!(contents(&upstream.requests()[1]), ["next"]);
}

#[tokio::test]
async fn an_interrupt_keeps_what_was_said_and_goes_on_from_there() {
    let gate = Gate::new("never");
    let upstream = upstream(&gate).await;
    let gateway = Gateway::with(&upstream).start().await;
    let first = hold(&gateway).await;
    let second = ask(&gateway, "stop", "interrupt").await;
    let first = first.transcript().await;
    assert_eq!(
        (first.text().as_str(), first.codes()),
        ("partial", vec!["cancelled".to_owned()])
    );
    upstream.closed().await;
    assert_eq!(second.transcript().await.done()["response"]["content"], "re stop");
    assert_eq!(contents(&upstream.requests()[1]), ["hold", "partial", "stop"]);
    let turns = [turn("hold", "partial", "cancelled"), complete("stop")];
    assert_eq!(kept(&gateway).await, turns.concat());
    // The same without SSE.
    let again = hold(&gateway).await;
    let answer = post(&gateway, "/chat", body("enough", "interrupt"))
        .await
        .expect(200)
        .await;
    assert_eq!(answer.json().await["content"], "re enough");
    assert_eq!(again.transcript().await.codes(), ["cancelled"]);
    assert_eq!(contents(&upstream.requests()[3]).len(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_interrupts_the_last_one_stays() {
    for round in 0..5 {
        let gate = Gate::new("the last one's end");
        let upstream = upstream(&gate).await;
        let gateway = Gateway::with(&upstream).start().await;
        let first = hold(&gateway).await;
        let all = join_all((0..8).map(|number| {
            let gateway = &gateway;
            async move { ask(gateway, &format!("hold {number}"), "interrupt").await }
        }))
        .await;
        assert_eq!(first.transcript().await.codes(), ["cancelled"]);
        let runs: Vec<String> = all.iter().map(|stream| stream.header("x-run-id").to_owned()).collect();
        let left = eventually("one to be left", async || {
            let mut left = Vec::new();
            for run in &runs {
                if glance(&gateway, run).await["status"] == "running" {
                    left.push(run);
                }
            }
            assert!(!left.is_empty(), "nobody is left");
            (left.len() == 1).then(|| left[0].clone())
        })
        .await;
        gate.open();
        for stream in all {
            let mine = stream.header("x-run-id") == left;
            let transcript = stream.transcript().await;
            match mine {
                true => assert_eq!(transcript.text(), "partial whole", "round {round}"),
                false => assert_eq!(transcript.codes(), ["cancelled"], "round {round}"),
            }
        }
        // Whoever had begun left a turn; whoever had not, nothing; the last one saw all of it.
        let kept = kept(&gateway).await;
        assert_eq!(kept.len() % 2, 0);
        let saw = upstream.requests().iter().map(|call| contents(call).len()).max();
        assert_eq!(saw, Some(kept.len() - 1));
    }
}

#[tokio::test]
async fn an_interrupt_goes_before_those_that_queue() {
    let (gate, second) = (Gate::new("never"), Gate::new("the interrupting one's end"));
    let upstream = Upstream::answering({
        let (gate, second) = (gate.clone(), second.clone());
        move |request| match question(request).as_str() {
            "hold" => Script::sse().role().say("partial").wait(&gate).complete(),
            "stop" => Script::sse().role().say("re ").wait(&second).say("stop").complete(),
            other => openai::answer(&["re ", other]),
        }
    })
    .await;
    let gateway = Gateway::with(&upstream).start().await;
    let first = hold(&gateway).await;
    let queued = [ask(&gateway, "q1", "queue").await, ask(&gateway, "q2", "queue").await];
    let mut stop = ask(&gateway, "stop", "interrupt").await;
    stop.next_event_named("token").await;
    assert_eq!(first.transcript().await.codes(), ["cancelled"]);
    for stream in &queued {
        assert_eq!(glance(&gateway, stream.header("x-run-id")).await["status"], "running");
    }
    second.open();
    stop.transcript().await.done();
    for stream in queued {
        stream.transcript().await.done();
    }
    let turns = [
        turn("hold", "partial", "cancelled"),
        complete("stop"),
        complete("q1"),
        complete("q2"),
    ];
    assert_eq!(kept(&gateway).await, turns.concat());
    assert_eq!(upstream.calls(), 4);
}

#[tokio::test]
async fn the_line_is_bounded_and_an_erased_session_has_none() {
    let gate = Gate::new("never");
    let upstream = upstream(&gate).await;
    let gateway = Gateway::with(&upstream).start().await;
    let first = hold(&gateway).await;
    let waiting = join_all((0..64).map(|number| {
        let gateway = &gateway;
        async move { ask(gateway, &format!("q{number}"), "queue").await }
    }))
    .await;
    for on_busy in ["queue", "interrupt", "reject"] {
        let refused = post(&gateway, "/chat/sse", body("one more", on_busy))
            .await
            .expect(409)
            .await;
        let problem = refused.problem_object().await;
        assert_eq!(
            (&problem["code"], &problem["run_id"]),
            (&json!("session_busy"), &json!(first.header("x-run-id"))),
            "{on_busy}"
        );
    }
    assert_eq!(delete(&gateway, "/sessions/s").await.status, 204);
    for stream in waiting.into_iter().chain([first]) {
        assert_eq!(stream.transcript().await.codes(), ["cancelled"]);
    }
    assert_eq!(upstream.calls(), 1, "one that waited for an erased session began");
    assert_eq!(get(&gateway, "/sessions/s").await.status, 404);
    let anew = post(&gateway, "/chat", body("anew", "queue")).await.expect(200).await;
    assert_eq!(anew.json().await["content"], "re anew");
    assert_eq!(contents(&upstream.requests()[1]), ["anew"]);
}

#[tokio::test]
async fn a_key_means_the_run_that_waits() {
    let gate = Gate::new("the first one's end");
    let upstream = upstream(&gate).await;
    let gateway = Gateway::with(&upstream)
        .toml("[sessions]\nqueue_patience = \"3s\"")
        .start()
        .await;
    let first = hold(&gateway).await;
    let call = |path: &str| {
        Call::post(path)
            .json(&body("keyed", "queue"))
            .header("Idempotency-Key", "k")
    };
    // In vain, and the key is free again.
    let in_vain = call("/chat/sse")
        .to(&gateway)
        .await
        .expect(200)
        .await
        .transcript()
        .await;
    assert_eq!(in_vain.codes(), ["session_busy"]);
    let waits = call("/chat/sse").to(&gateway).await.expect(200).await;
    let run = waits.header("x-run-id").to_owned();
    assert_ne!(run, in_vain.events[0].run_id);
    let mut attached = call("/chat/sse").to(&gateway).await.expect(200).await;
    assert_eq!(attached.header("x-run-id"), run);
    assert_eq!(attached.next_event().await.seq, 0);
    let other = Call::post("/chat")
        .json(&body("other", "queue"))
        .header("Idempotency-Key", "k");
    assert_eq!(
        other.to(&gateway).await.expect(422).await.problem().await,
        "idempotency_mismatch"
    );
    gate.open();
    let whole = call("/chat").to(&gateway).await.expect(200).await.json().await;
    assert_eq!((&whole["run_id"], &whole["content"]), (&json!(run), &json!("re keyed")));
    assert_eq!(waits.transcript().await.text(), "re keyed");
    assert_eq!(attached.transcript().await.text(), "re keyed");
    first.transcript().await.done();
    let replayed = call("/chat").to(&gateway).await.expect(200).await.json().await;
    assert_eq!(replayed, whole);
    assert_eq!(upstream.calls(), 2);
}

mod the_program {
    use super::*;

    async fn program(upstream: &Upstream, drain: &str) -> Process {
        let base_url = upstream.base_url();
        let env = [
            ("OPENAI_API_KEY", "test-key"),
            ("OPENAI_BASE_URL", &base_url),
            ("SLUICEGATE_MODEL", "openai/test-model"),
            ("SLUICEGATE__RUNS__DRAIN", drain),
        ];
        Process::start(&env, &[]).await
    }

    #[tokio::test]
    async fn told_to_stop_tells_those_that_wait() {
        let gate = Gate::new("never");
        let upstream = upstream(&gate).await;
        let mut program = program(&upstream, "300ms").await;
        let mut streams = vec![hold(&program).await];
        for number in 0..3 {
            streams.push(ask(&program, &format!("q{number}"), "queue").await);
        }
        program.terminate().await;
        let mut last = Vec::new();
        for stream in streams {
            let transcript = stream.transcript().await;
            assert_eq!(transcript.codes(), ["shutting_down"]);
            last.push(transcript.terminal().clone());
        }
        assert_eq!(
            program.wait_exit(Duration::from_secs(5)).await.code(),
            Some(0),
            "{}",
            program.log()
        );
        assert_eq!(upstream.calls(), 1);
        program.restart().await;
        for last in last {
            let run = glance(&program, &last.run_id).await;
            assert_eq!(
                (&run["status"], &run["last_seq"]),
                (&json!("interrupted"), &json!(last.seq))
            );
        }
        assert_eq!(kept(&program).await, []);
    }

    #[tokio::test]
    async fn told_to_stop_lets_those_that_wait_have_their_turn_if_there_is_time() {
        let gate = Gate::new("the signal");
        let upstream = upstream(&gate).await;
        let mut program = program(&upstream, "10s").await;
        let first = hold(&program).await;
        let waits = [ask(&program, "q0", "queue").await, ask(&program, "q1", "queue").await];
        program.terminate().await;
        program.logged("stopping").await;
        gate.open();
        first.transcript().await.done();
        for stream in waits {
            stream.transcript().await.done();
        }
        assert_eq!(
            program.wait_exit(Duration::from_secs(5)).await.code(),
            Some(0),
            "{}",
            program.log()
        );
        program.restart().await;
        let turns = [
            turn("hold", "partial whole", "complete"),
            complete("q0"),
            complete("q1"),
        ];
        assert_eq!(kept(&program).await, turns.concat());
    }

    #[tokio::test]
    async fn killed_leaves_nothing_of_those_that_waited() {
        let gate = Gate::new("never");
        let upstream = upstream(&gate).await;
        let mut program = program(&upstream, "1s").await;
        let mut runs = vec![hold(&program).await];
        for number in 0..3 {
            runs.push(ask(&program, &format!("q{number}"), "queue").await);
        }
        let runs: Vec<String> = runs.iter().map(|stream| stream.header("x-run-id").to_owned()).collect();
        program.kill9().await;
        program.restart().await;
        for (number, run) in runs.iter().enumerate() {
            assert_eq!(glance(&program, run).await["status"], "interrupted");
            let resumed = Call::get(&format!("/runs/{run}/events"))
                .header("Last-Event-ID", &format!("{run}:0"))
                .to(&program)
                .await;
            let resumed = resumed.expect(200).await.transcript().await;
            assert_eq!(
                (resumed.kinds(), resumed.codes()),
                (vec!["error"], vec!["interrupted".to_owned()]),
                "{number}"
            );
        }
        assert_eq!(upstream.calls(), 1);
        let next = post(&program, "/chat", body("next", "reject")).await.expect(200).await;
        assert_eq!(next.json().await["content"], "re next");
        assert_eq!(kept(&program).await, complete("next"));
    }
}

//! Runs and coming back to them: resuming at every place, several readers, slow ones, cancelling, leaving, keys, limits.
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use serde_json::{Value, json};

use super::house::*;

/// What is promised from a client's leaving, or a cancel, to the close of the upstream connection.
const PROMPT: Duration = Duration::from_millis(250);

/// Runs every row of a table, and fails with the names of all that failed.
async fn every_row<F: Future<Output = ()>>(rows: impl IntoIterator<Item = (String, F)>) {
    let mut failed = Vec::new();
    for (name, row) in rows {
        if AssertUnwindSafe(row).catch_unwind().await.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "rows that failed: {failed:#?}");
}

/// `GET /runs/{id}`.
async fn glance(gateway: &impl Place, run: &str) -> Value {
    get(gateway, &format!("/runs/{run}"))
        .await
        .expect(200)
        .await
        .json()
        .await
}

/// Waits until the run has ended, and gives it.
async fn ended(gateway: &impl Place, run: &str) -> Value {
    eventually(format_args!("the end of the run {run}"), async || {
        Some(glance(gateway, run).await).filter(|run| run["status"] != "running")
    })
    .await
}

/// Starts a run and leaves it; gives its id.
async fn begin(gateway: &impl Place, body: Value) -> String {
    let started = post(gateway, "/runs", body).await.expect(202).await.json().await;
    text(&started, "run_id").to_owned()
}

fn text<'a>(object: &'a Value, member: &str) -> &'a str {
    object[member]
        .as_str()
        .unwrap_or_else(|| panic!("no {member} in {object}"))
}

/// The session's messages as `(role, content, status)`.
async fn said(gateway: &impl Place, session: &str) -> Vec<(String, String, String)> {
    let answer = get(gateway, &format!("/sessions/{session}/messages")).await;
    let messages = answer.expect(200).await.json().await;
    let member = |message: &Value, name: &str| text(message, name).to_owned();
    let messages = messages["messages"].as_array().expect("a list");
    messages
        .iter()
        .map(|m| (member(m, "role"), member(m, "content"), member(m, "status")))
        .collect()
}

/// Tokens with all that is awkward in a stream of lines.
const PIECES: [&str; 9] = [
    "Hel",
    "lo,\r",
    "\nworld",
    " 世界",
    "\n\n",
    "\r\n",
    "data: x\n\nevent: done",
    "👩‍👩‍👧",
    " end",
];

mod resuming {
    use super::*;

    /// A stream from strictly after event `seq` on, cut out of the whole.
    fn rest(whole: &Bytes, run: &str, seq: usize) -> Bytes {
        let next = format!("id: {run}:{}\n", seq + 1);
        let at = memchr::memmem::find(whole, next.as_bytes()).unwrap_or(whole.len());
        whole.slice(at..)
    }

    /// The body to its end, without the `retry` line.
    async fn frames(answer: Response) -> Bytes {
        let body = answer.expect(200).await.body().await;
        assert_eq!(body.ending, Ending::Complete);
        body.bytes
            .strip_prefix(b"retry: 2000\n")
            .map_or(body.bytes.clone(), |rest| body.bytes.slice_ref(rest))
    }

    /// Every way to come back to an event, raw or json.
    fn doors(run: &str, id: &str, format: &str) -> Vec<Call> {
        let escaped = id.replace(':', "%3A");
        let body = json!({"message": "Hi", "format": format});
        vec![
            Call::get(&format!("/runs/{run}/events?format={format}")).header("Last-Event-ID", id),
            Call::get(&format!("/runs/{run}/events?format={format}&last_event_id={escaped}")),
            Call::get(&format!("/chat/sse?message=Hi&format={format}")).header("Last-Event-ID", id),
            Call::get(&format!("/chat/sse?last_event_id={escaped}&format={format}")),
            Call::post(&format!("/chat/sse?format={format}"))
                .json(&json!({"message": "Hi"}))
                .header("Last-Event-ID", id),
            Call::post("/chat/sse").json(&body).header("Last-Event-ID", id),
            Call::post(&format!("/chat/sse?last_event_id={id}")).json(&body),
        ]
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_stream_cut_at_any_place_goes_on_strictly_after_it_through_every_door() {
        let gate = Gate::new("halfway");
        let half = PIECES[..5]
            .iter()
            .fold(Script::sse().role(), |script, piece| script.say(piece));
        let script = PIECES[5..]
            .iter()
            .fold(half.wait(&gate), |script, piece| script.say(piece))
            .complete();
        let upstream = Upstream::always(script).await;
        let gateway = Gateway::with(&upstream).start().await;

        let mut whole = post(&gateway, "/chat/sse", json!({"message": "Hi"})).await;
        let run = whole.header("x-run-id").to_owned();
        let mut before = Vec::new();
        for _ in 0..=5 {
            before.push(whole.next_event().await);
        }
        gate.reached().await;
        // Readers from every event so far, while the run stands still in the middle.
        let mut following = Vec::new();
        for seq in 0..=5 {
            for format in ["raw", "json"] {
                for call in doors(&run, &format!("{run}:{seq}"), format) {
                    following.push((
                        seq,
                        format,
                        format!("{call:?}"),
                        call.to(&gateway).await.expect(200).await,
                    ));
                }
            }
        }
        gate.open();
        let whole = whole.transcript().await;
        assert_eq!(whole.done()["response"]["content"], PIECES.concat());
        assert_eq!(whole.text(), PIECES.concat().replace("\r\n", "\n").replace('\r', "\n"));

        let raw = frames(get(&gateway, &format!("/runs/{run}/events")).await).await;
        let chunks = frames(get(&gateway, &format!("/runs/{run}/events?format=json")).await).await;
        let last = whole.events.len() - 1;
        assert_eq!(last, PIECES.len() + 1, "{:?}", whole.kinds());
        let expected = |format: &str, seq| rest(if format == "raw" { &raw } else { &chunks }, &run, seq);
        let mut wrong = Vec::new();
        for (seq, format, call, answer) in following {
            if frames(answer).await != expected(format, seq) {
                wrong.push(format!("followed after {seq}: {call}"));
            }
        }
        for seq in 0..=last {
            for format in ["raw", "json"] {
                for call in doors(&run, &format!("{run}:{seq}"), format) {
                    let (name, answer) = (format!("replayed after {seq}: {call:?}"), call.to(&gateway).await);
                    let right = match seq == last {
                        true => answer.status == 204 && answer.body().await.bytes.is_empty(),
                        false => frames(answer).await == expected(format, seq),
                    };
                    if !right {
                        wrong.push(name);
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        // What the strict reader makes of the resumed streams, once each.
        for format in ["raw", "json"] {
            for seq in 0..last {
                let call = Call::get(&format!("/runs/{run}/events?format={format}"));
                let resumed = call
                    .header("Last-Event-ID", &format!("{run}:{seq}"))
                    .to(&gateway)
                    .await
                    .transcript()
                    .await;
                assert_eq!(
                    (resumed.events.len(), resumed.terminal().event.as_str()),
                    (last - seq, "done")
                );
            }
        }
        assert_eq!(upstream.calls(), 1, "a resume asked the model");
    }

    #[tokio::test]
    async fn the_header_wins_over_the_address() {
        let upstream = Upstream::always(openai::answer(&["a", "b", "c"])).await;
        let gateway = Gateway::with(&upstream).start().await;
        let other = begin(&gateway, json!({"message": "Hi"})).await;
        let run = begin(&gateway, json!({"message": "Hi"})).await;
        ended(&gateway, &run).await;
        for old in [format!("{run}:0"), format!("{other}:0"), "rubbish".to_owned()] {
            for path in [
                format!("/runs/{run}/events?last_event_id={old}"),
                format!("/chat/sse?message=Hi&last_event_id={old}"),
            ] {
                let call = Call::get(&path).header("Last-Event-ID", &format!("{run}:2"));
                let events = call.to(&gateway).await.expect(200).await.transcript().await;
                assert_eq!((events.events[0].seq, events.text().as_str()), (3, "c"), "{path}");
            }
        }
        ended(&gateway, &other).await;
        assert_eq!(upstream.calls(), 2);
    }

    #[tokio::test]
    async fn what_names_no_event_of_the_run_is_refused() {
        let gate = Gate::new("the end");
        let upstream = Upstream::start([
            openai::answer(&["a"]),
            Script::sse().role().say("a").wait(&gate).complete(),
        ])
        .await;
        let gateway = Gateway::with(&upstream).start().await;
        let over = begin(&gateway, json!({"message": "Hi"})).await;
        ended(&gateway, &over).await; // 0 start, 1 token, 2 done
        let open = begin(&gateway, json!({"message": "Hi"})).await;
        gate.reached().await;
        let mut reader = get(&gateway, &format!("/runs/{open}/events")).await;
        reader.next_event_named("token").await; // 0 start, 1 token

        let upper = over.to_uppercase();
        let unknown = "01920000-0000-7000-8000-000000000001";
        let mut rows: Vec<(String, String, u16, &str)> = Vec::new();
        let malformed = [
            "abc".to_owned(),
            "1".to_owned(),
            over.clone(),
            format!("{over}:"),
            format!("{over}:-1"),
            format!("{over}:+1"),
            format!("{over}:1x"),
            format!("{over}:1:1"),
            format!("{over}: 1"),
            format!("{over}:18446744073709551616"),
            format!("{over}:99999999999999999999999"),
            format!("{upper}:1"),
            format!("{}:1", over.replace('-', "")),
            format!("{{{over}}}:1"),
            "é:1".to_owned(),
        ];
        for id in malformed {
            rows.push((over.clone(), id, 400, "last_event_id_invalid"));
        }
        for (run, id) in [
            (&over, format!("{over}:3")),
            (&over, format!("{over}:18446744073709551615")),
            (&open, format!("{open}:2")),
        ] {
            rows.push((run.clone(), id, 400, "last_event_id_invalid")); // ahead of the log
        }
        rows.push((over.clone(), format!("{open}:0"), 400, "another run's"));
        rows.push((over.clone(), format!("{unknown}:0"), 400, "another run's"));
        rows.push((unknown.to_owned(), format!("{unknown}:0"), 404, "not_found"));
        let mut wrong = Vec::new();
        for (run, id, status, code) in rows {
            let escaped: String = id.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let mut calls = vec![
                Call::get(&format!("/runs/{run}/events")).header("Last-Event-ID", &id),
                Call::get(&format!("/runs/{run}/events?last_event_id={escaped}")),
            ];
            if code != "another run's" {
                calls.extend([
                    Call::get("/chat/sse?message=Hi").header("Last-Event-ID", &id),
                    Call::get(&format!("/chat/sse?message=Hi&last_event_id={escaped}")),
                    Call::post("/chat/sse")
                        .json(&json!({"message": "Hi"}))
                        .header("Last-Event-ID", &id),
                ]);
            }
            let code = if code == "another run's" {
                "last_event_id_invalid"
            } else {
                code
            };
            for call in calls {
                let name = format!("{call:?}");
                let connection = Connection::open(&gateway).await;
                let answer = connection.call(call).await;
                let got = (
                    answer.status,
                    if answer.status >= 400 {
                        answer.problem().await
                    } else {
                        String::new()
                    },
                );
                if got != (status, code.to_owned()) {
                    wrong.push(format!("{got:?} instead of {status} {code} for {name}"));
                }
            }
        }
        for path in [
            format!("/runs/{unknown}/events"),
            "/runs/abc/events".to_owned(),
            format!("/runs/{upper}/events"),
        ] {
            let answer = get(&gateway, &path).await;
            if answer.status != 404 || answer.problem().await != "not_found" {
                wrong.push(path);
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        gate.open();
        assert_eq!(reader.transcript().await.done()["response"]["content"], "a");
        assert_eq!(upstream.calls(), 2);
    }

    #[tokio::test]
    async fn a_log_is_replayable_for_its_window_and_then_gone() {
        let upstream = Upstream::always(openai::answer(&["a", "b"])).await;
        let gateway = Gateway::with(&upstream)
            .toml("[runs]\nreplay_window = \"1s\"")
            .toml(meters::WATCHED)
            .start()
            .await;
        let whole = post(&gateway, "/chat/sse", json!({"message": "Hi"}))
            .await
            .transcript()
            .await;
        whole.done();
        let (run, last) = (whole.events[0].run_id.clone(), whole.last_id().unwrap().to_owned());
        let path = format!("/runs/{run}/events");
        let replay = get(&gateway, &path).await.expect(200).await.transcript().await;
        assert_eq!(replay.events.len(), whole.events.len());
        let came_late = eventually("the log to expire", async || {
            Some(get(&gateway, &path).await).filter(|answer| answer.status != 200)
        })
        .await;
        assert_eq!(
            (came_late.status, came_late.problem().await.as_str()),
            (410, "replay_expired")
        );
        for call in [
            Call::get(&path).header("Last-Event-ID", &format!("{run}:1")),
            Call::get(&format!("/chat/sse?message=Hi&last_event_id={run}:0")),
            Call::post("/chat/sse")
                .json(&json!({"message": "Hi"}))
                .header("Last-Event-ID", &format!("{run}:1")),
            Call::get(&path).header("Last-Event-ID", &format!("{run}:99")), // ahead, and ended
        ] {
            assert_eq!(call.to(&gateway).await.problem().await, "replay_expired");
        }
        // Who has it all is told to stop, however late.
        let done = Call::get("/chat/sse?message=Hi").header("Last-Event-ID", &last);
        assert_eq!(done.to(&gateway).await.status, 204);
        let counted = Meters::of(&gateway.admin()).await;
        for (how, times) in [("expired", 4.0), ("finished", 1.0), ("hit", 0.0)] {
            assert_eq!(counted.get(&format!("resumes_total{{how=\"{how}\"}}")), times, "{how}");
        }
        // Its result is kept.
        assert_eq!(glance(&gateway, &run).await["response"]["content"], "ab");
        assert_eq!(upstream.calls(), 1);
    }

    #[tokio::test]
    async fn a_broken_run_is_replayed_with_its_error() {
        let upstream = Upstream::always(Script::sse().role().say("a").say("b").cut()).await;
        let gateway = Gateway::with(&upstream).start().await;
        let whole = post(&gateway, "/chat/sse", json!({"message": "Hi"}))
            .await
            .transcript()
            .await;
        assert_eq!(
            (whole.text().as_str(), whole.codes()),
            ("ab", vec!["upstream_truncated".to_owned()])
        );
        let id = whole.events[1].id.clone();
        let resumed = Call::get("/chat/sse?message=Hi")
            .header("Last-Event-ID", &id)
            .to(&gateway)
            .await
            .transcript()
            .await;
        assert_eq!(
            (resumed.kinds(), resumed.codes()),
            (vec!["token", "error"], whole.codes())
        );
        let done = Call::get("/chat/sse?message=Hi")
            .header("Last-Event-ID", whole.last_id().unwrap())
            .to(&gateway)
            .await;
        assert_eq!(done.status, 204);
        assert_eq!(upstream.calls(), 1);
    }
}

mod readers {
    use super::*;

    #[tokio::test]
    async fn readers_at_different_places_get_the_same_bytes() {
        let gates: Vec<Gate> = (0..4).map(|n| Gate::new(&format!("before piece {n}"))).collect();
        let script = gates
            .iter()
            .zip(PIECES)
            .fold(Script::sse().role(), |script, (gate, piece)| {
                script.wait(gate).say(piece)
            });
        let upstream = Upstream::always(script.complete()).await;
        let gateway = Gateway::with(&upstream).start().await;
        let first = post(&gateway, "/chat/sse", json!({"message": "Hi"}))
            .await
            .expect(200)
            .await;
        let run = first.header("x-run-id").to_owned();
        let mut readers = vec![first];
        for gate in &gates {
            gate.reached().await;
            readers.push(get(&gateway, &format!("/runs/{run}/events")).await.expect(200).await);
            gate.open();
        }
        let mut bodies = Vec::new();
        for reader in readers {
            bodies.push(reader.body().await.bytes);
        }
        bodies.push(get(&gateway, &format!("/runs/{run}/events")).await.body().await.bytes);
        assert!(bodies[0].ends_with(b"\n\n") && bodies[0].starts_with(b"retry: 2000\nid: "));
        for (number, body) in bodies.iter().enumerate() {
            assert_eq!(body, &bodies[0], "reader {number}");
        }
        assert_eq!(upstream.calls(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_reader_that_leaves_takes_nobody_with_it() {
        let gate = Gate::new("the end");
        let upstream = Upstream::always(Script::sse().role().say("a").wait(&gate).say("b").complete()).await;
        let gateway = Gateway::with(&upstream).start().await;
        let body = json!({"message": "Hi", "on_disconnect": "cancel"});
        let mut first = post(&gateway, "/chat/sse", body).await;
        let run = first.next_event().await.run_id;
        let mut second = get(&gateway, &format!("/runs/{run}/events")).await;
        second.next_event_named("token").await;
        first.next_event_named("token").await;
        first.hang_up();
        let third = get(&gateway, &format!("/runs/{run}/events")).await;
        third.reset();
        gate.open();
        assert_eq!(second.transcript().await.done()["response"]["content"], "ab");
    }

    #[tokio::test]
    async fn a_slow_reader_holds_up_neither_the_upstream_nor_another_reader() {
        let piece = "x".repeat(30 * 1024);
        let pieces = 100;
        let script = (0..pieces)
            .fold(Script::sse().role(), |script, _| script.say(&piece))
            .complete();
        let upstream = Upstream::always(script).await;
        let gateway = Gateway::with(&upstream).start().await;
        let wire = wire("/chat/sse", &json!({"message": "Hi"}));
        let mut slow = Connection::open_narrow(&gateway).await;
        slow.send_raw(wire).await;
        upstream.next_request().await;
        let slow = slow.answer("POST /chat/sse, slowly").await;
        let run = slow.header("x-run-id").to_owned();
        // The other reader, and the run itself, are through while the slow one has read nothing.
        let quick = get(&gateway, &format!("/runs/{run}/events")).await.body().await;
        upstream.idle().await;
        assert_eq!(ended(&gateway, &run).await["status"], "completed");
        assert!(quick.bytes.len() > pieces * piece.len());
        // And the slow one loses nothing.
        let slow = slow.body().await;
        assert_eq!(slow.ending, Ending::Complete);
        assert!(
            slow.bytes == quick.bytes,
            "{} and {} bytes",
            slow.bytes.len(),
            quick.bytes.len()
        );
    }

    #[tokio::test]
    async fn a_slow_text_reader_gets_all_of_it_too() {
        let piece = "y".repeat(30 * 1024);
        let script = (0..50)
            .fold(Script::sse().role(), |script, _| script.say(&piece))
            .complete();
        let upstream = Upstream::always(script).await;
        let gateway = Gateway::with(&upstream).start().await;
        let mut slow = Connection::open_narrow(&gateway).await;
        slow.send_raw(wire("/chat/stream", &json!({"message": "Hi"}))).await;
        upstream.next_request().await;
        upstream.idle().await;
        let body = slow.answer("POST /chat/stream, slowly").await.body().await;
        assert_eq!((body.ending, body.bytes.len()), (Ending::Complete, 50 * piece.len()));
    }
}

/// A POST as bytes, for who wants to hang up before the answer.
fn wire(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

mod cancelling {
    use super::*;

    #[tokio::test]
    async fn a_cancelled_run_says_so_keeps_what_was_said_and_closes_the_upstream() {
        let mut took = Duration::MAX;
        for _ in 0..5 {
            took = took.min(cancel_once().await);
            if took <= PROMPT {
                return;
            }
        }
        panic!("the upstream was closed after {took:?}");
    }

    async fn cancel_once() -> Duration {
        let gate = Gate::new("never");
        let upstream = Upstream::start([
            Script::sse().role().say("Hel").say("lo").wait(&gate),
            openai::answer(&["Yes"]),
        ])
        .await;
        let gateway = Gateway::with(&upstream).start().await;
        let mut stream = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "s"})).await;
        let run = stream.header("x-run-id").to_owned();
        stream.next_event_named("token").await;
        stream.next_event_named("token").await;
        let path = format!("/runs/{run}/cancel");
        let now = Instant::now();
        let cancelled = post(&gateway, &path, json!({"nobody": "reads this"}))
            .await
            .expect(200)
            .await
            .json()
            .await;
        let took = upstream.closed().await - now;
        assert_eq!(
            (&cancelled["run_id"], &cancelled["status"]),
            (&json!(run), &json!("cancelled")),
            "{cancelled}"
        );
        let stream = stream.transcript().await;
        assert_eq!(
            (stream.text().as_str(), stream.codes()),
            ("Hello", vec!["cancelled".to_owned()])
        );
        assert_eq!(stream.terminal().json()["error"]["status"], 499);

        let again = Call::post(&path).to(&gateway).await.expect(200).await.json().await;
        assert_eq!(again["status"], "cancelled");
        let kept = glance(&gateway, &run).await;
        assert_eq!(kept["response"]["content"], "Hello");
        assert_eq!(kept["response"]["finish_reason"], Value::Null, "it did not finish");
        assert_eq!(kept["error"]["code"], "cancelled");
        assert_eq!(
            kept["usage"]["estimated"], true,
            "the provider never said what it cost: {kept}"
        );
        assert!(kept["usage"]["output_tokens"].as_u64() > Some(0), "{kept}");
        let kept = |role: &str, content: &str, status: &str| (role.to_owned(), content.to_owned(), status.to_owned());
        assert_eq!(
            said(&gateway, "s").await,
            [kept("user", "Hi", "cancelled"), kept("assistant", "Hello", "cancelled")]
        );
        // The next turn goes on from there, with a history that is well-formed.
        let next = post(&gateway, "/chat", json!({"message": "Go on", "session_id": "s"})).await;
        assert_eq!(next.expect(200).await.json().await["content"], "Yes");
        let messages = &upstream.requests()[1].json["messages"];
        let roles: Vec<_> = messages.as_array().unwrap().iter().map(|m| text(m, "role")).collect();
        assert_eq!(roles, ["user", "assistant", "user"], "{messages}");
        took
    }

    #[tokio::test]
    async fn a_run_cancelled_before_its_first_word_adds_nothing() {
        let gate = Gate::new("never");
        let upstream = Upstream::start([Script::sse().role().wait(&gate), openai::answer(&["Yes"])]).await;
        let gateway = Gateway::with(&upstream).start().await;
        let run = begin(&gateway, json!({"message": "Hi", "session_id": "s"})).await;
        gate.reached().await;
        Call::post(&format!("/runs/{run}/cancel"))
            .to(&gateway)
            .await
            .expect(200)
            .await;
        upstream.closed().await;
        ended(&gateway, &run).await;
        assert_eq!(said(&gateway, "s").await, []);
        post(&gateway, "/chat", json!({"message": "Hi", "session_id": "s"}))
            .await
            .expect(200)
            .await;
        assert_eq!(upstream.requests()[1].json["messages"].as_array().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn the_configuration_may_say_that_a_cancelled_answer_is_dropped() {
        let gate = Gate::new("never");
        let upstream = Upstream::always(Script::sse().role().say("Hello").wait(&gate)).await;
        let gateway = Gateway::with(&upstream)
            .toml("[runs]\non_cancel = \"discard\"")
            .start()
            .await;
        let run = begin(&gateway, json!({"message": "Hi", "session_id": "s"})).await;
        get(&gateway, &format!("/runs/{run}/events"))
            .await
            .next_event_named("token")
            .await;
        Call::post(&format!("/runs/{run}/cancel"))
            .to(&gateway)
            .await
            .expect(200)
            .await;
        assert_eq!(ended(&gateway, &run).await["response"]["content"], "Hello");
        assert_eq!(said(&gateway, "s").await, []);
    }

    #[tokio::test]
    async fn every_reader_of_a_cancelled_run_is_told() {
        let gate = Gate::new("never");
        let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate)).await;
        let gateway = Gateway::with(&upstream).start().await;
        let key = |call: Call| call.json(&json!({"message": "Hi"})).header("Idempotency-Key", "k");
        let mut events = key(Call::post("/chat/sse")).to(&gateway).await;
        events.next_event_named("token").await;
        let run = events.header("x-run-id").to_owned();
        let mut words = key(Call::post("/chat/stream")).to(&gateway).await;
        assert_eq!(words.next_bytes().await.unwrap(), "Hel");
        let whole = Connection::open(&gateway).await;
        let whole = whole.call(key(Call::post("/chat")));
        let cancel = async {
            // The JSON reader sits before its answer comes; nothing tells when. A moment later would do as well.
            tokio::time::sleep(Duration::from_millis(50)).await;
            Call::post(&format!("/runs/{run}/cancel"))
                .to(&gateway)
                .await
                .expect(200)
                .await
        };
        let (whole, _) = tokio::join!(whole, cancel);
        assert_eq!((whole.status, whole.problem().await.as_str()), (499, "cancelled"));
        assert_eq!(events.transcript().await.codes(), ["cancelled"]);
        assert!(words.body().await.ending.is_aborted());
        assert_eq!(upstream.calls(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn what_has_ended_otherwise_cannot_be_cancelled() {
        let upstream = Upstream::start([openai::answer(&["a"]), Script::sse().say("a").cut()]).await;
        let gateway = Gateway::with(&upstream).start().await;
        for status in ["completed", "failed"] {
            let run = begin(&gateway, json!({"message": "Hi"})).await;
            assert_eq!(ended(&gateway, &run).await["status"], status);
            let refused = Call::post(&format!("/runs/{run}/cancel"))
                .to(&gateway)
                .await
                .expect(409)
                .await;
            let problem = refused.problem_object().await;
            assert_eq!(
                (&problem["code"], &problem["run_id"]),
                (&json!("run_finished"), &json!(run))
            );
            assert_eq!(glance(&gateway, &run).await["status"], status);
        }
        for unknown in ["01920000-0000-7000-8000-000000000001", "abc"] {
            let unknown = Call::post(&format!("/runs/{unknown}/cancel"))
                .to(&gateway)
                .await
                .expect(404)
                .await;
            assert_eq!(unknown.problem().await, "not_found");
        }
    }
}

mod leaving {
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
        let (grace, away) = (Duration::from_secs(2), Duration::from_millis(800));
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
        let gateway = Gateway::with(&upstream).toml("[runs]\ndeadline = \"1s\"").start().await;
        let began = Instant::now();
        let events = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "a"}))
            .await
            .transcript()
            .await;
        assert_eq!(
            (events.text().as_str(), events.codes()),
            ("Hel", vec!["run_deadline".to_owned()])
        );
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
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
}

mod keys {
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
        let by_query =
            Call::post("/chat/sse?key=k-1&format=json").json(&json!({"metadata": {"a": "1"}, "message": "Hi"}));
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
}

mod looking {
    use super::*;

    const MEMBERS: [&str; 13] = [
        "agent",
        "created_at",
        "ended_at",
        "error",
        "finish_reason",
        "last_seq",
        "metadata",
        "model",
        "response",
        "run_id",
        "session_id",
        "status",
        "usage",
    ];

    fn check(run: &Value, status: &str) {
        let members: Vec<_> = run.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, MEMBERS, "{run}");
        assert_eq!(run["status"], status, "{run}");
        assert_eq!(
            (&run["agent"], &run["model"]),
            (&json!("assistant"), &json!("openai/test-model"))
        );
        let times = ["created_at", "ended_at"].map(|time| {
            run[time]
                .as_str()
                .map(|time| time.ends_with('Z') && time.len() >= 20 && &time[10..11] == "T")
        });
        assert_eq!(times, [Some(true), (status != "running").then_some(true)], "{run}");
        assert_eq!(
            run["error"].is_null(),
            matches!(status, "running" | "completed"),
            "{run}"
        );
        assert_eq!(run["finish_reason"].is_null(), status != "completed", "{run}");
    }

    #[tokio::test]
    async fn a_run_can_be_looked_at_in_every_state() {
        let gates = [Gate::new("the end"), Gate::new("never"), Gate::new("stopped")];
        let upstream = Upstream::start([
            Script::sse().role().say("Hel").wait(&gates[0]).say("lo").complete(),
            Script::sse().role().say("Hel").cut(),
            Script::sse().role().say("Hel").wait(&gates[1]),
            Script::sse().role().say("Hel").wait(&gates[2]),
        ])
        .await;
        let gateway = Gateway::with(&upstream).toml("[runs]\ndrain = \"50ms\"").start().await;
        let body = json!({"message": "Hi", "metadata": {"ticket": "7"}});
        let read_one = async |gateway: &Gateway, run: &str| {
            get(gateway, &format!("/runs/{run}/events"))
                .await
                .next_event_named("token")
                .await;
        };

        let run = begin(&gateway, body.clone()).await;
        read_one(&gateway, &run).await;
        let now = glance(&gateway, &run).await;
        check(&now, "running");
        assert_eq!(
            (&now["last_seq"], &now["usage"], &now["response"]),
            (&json!(1), &Value::Null, &Value::Null)
        );
        assert_eq!(now["metadata"], json!({"ticket": "7"}));
        gates[0].open();
        let completed = ended(&gateway, &run).await;
        check(&completed, "completed");
        assert_eq!(
            (&completed["last_seq"], &completed["finish_reason"]),
            (&json!(3), &json!("stop"))
        );
        assert_eq!(completed["usage"]["input_tokens"], 12);
        assert_eq!(completed["response"]["content"], "Hello");

        let broken = begin(&gateway, body.clone()).await;
        let failed = ended(&gateway, &broken).await;
        check(&failed, "failed");
        assert_eq!(
            (&failed["error"]["code"], &failed["error"]["run_id"]),
            (&json!("upstream_truncated"), &json!(broken))
        );
        assert_eq!(
            (&failed["last_seq"], &failed["response"]["content"]),
            (&json!(2), &json!("Hel"))
        );

        let stopped = begin(&gateway, body.clone()).await;
        read_one(&gateway, &stopped).await;
        let cancelled = Call::post(&format!("/runs/{stopped}/cancel"))
            .to(&gateway)
            .await
            .expect(200)
            .await
            .json()
            .await;
        check(&cancelled, "cancelled");

        let cut = begin(&gateway, body).await;
        read_one(&gateway, &cut).await;
        // Another process tells the same of them: what a run came to is not only in memory.
        let gateway = gateway.restart().await;
        for (id, before) in [(&run, completed), (&broken, failed), (&stopped, cancelled)] {
            let mut after = glance(&gateway, id).await;
            let mut before = before;
            for run in [&mut before, &mut after] {
                run["error"]["request_id"].take(); // of the request that asks
            }
            assert_eq!(after, before);
        }
        let interrupted = glance(&gateway, &cut).await;
        check(&interrupted, "interrupted");
        assert_eq!(interrupted["error"]["code"], "shutting_down");
        for unknown in ["01920000-0000-7000-8000-000000000001", "abc", "%2e%2e"] {
            let answer = get(&gateway, &format!("/runs/{unknown}")).await;
            assert_eq!((answer.status, answer.problem().await.as_str()), (404, "not_found"));
        }
    }

    #[tokio::test]
    async fn a_run_that_is_not_stored_still_has_its_log() {
        let upstream = Upstream::always(openai::answer(&["a"])).await;
        let gateway = Gateway::with(&upstream)
            .toml("[runs]\nreplay_window = \"1s\"")
            .start()
            .await;
        let run = begin(&gateway, json!({"message": "Hi", "store": false})).await;
        let over = ended(&gateway, &run).await;
        check(&over, "completed");
        assert_eq!(over["session_id"], Value::Null);
        let replay = get(&gateway, &format!("/runs/{run}/events")).await.transcript().await;
        assert_eq!(replay.done()["session_id"], Value::Null);
        // And nothing else: with its log it is gone.
        eventually("the log to expire", async || {
            (get(&gateway, &format!("/runs/{run}")).await.status == 404).then_some(())
        })
        .await;
    }
}

mod shedding {
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
        assert_eq!(replay.kinds(), ["start", "token", "done"]);
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
        assert_eq!((done.kinds(), done.terminal().seq), (vec!["done"], 2));
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
}

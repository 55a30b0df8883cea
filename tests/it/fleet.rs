//! Several gateways, the real program each, on one PostgreSQL database and one Redis: whoever is asked gives the same
//! answer, whoever dies, and whatever becomes of Redis.
use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::house::redis::{Redis, shared};
use super::house::*;
use crate::stores::Database;

/// Gateways that share what is kept, and tell each other what their runs do.
struct Fleet {
    gateways: Vec<Process>,
    database: Database,
}

impl std::ops::Deref for Fleet {
    type Target = [Process];

    fn deref(&self) -> &[Process] {
        &self.gateways
    }
}

/// A lease that a story can wait for.
const LEASE: &str = "lease=1s";

impl Fleet {
    /// So many gateways, on the Redis that is there for all.
    async fn of(count: usize, upstream: &Upstream, settings: &[(&str, &str)]) -> Option<Self> {
        Self::on(&shared()?, LEASE, count, upstream, settings).await
    }

    /// So many gateways on this Redis, with further settings, as `("RUNS__DRAIN", "1s")`.
    async fn on(
        redis: &str,
        lease: &str,
        count: usize,
        upstream: &Upstream,
        settings: &[(&str, &str)],
    ) -> Option<Self> {
        let database = Database::make().await?;
        let mut env = vec![
            ("OPENAI_API_KEY".to_owned(), "test-key".to_owned()),
            ("OPENAI_BASE_URL".to_owned(), upstream.base_url()),
            ("SLUICEGATE_MODEL".to_owned(), "openai/test-model".to_owned()),
            ("SLUICEGATE__STORE__URL".to_owned(), database.url(lease)),
            ("SLUICEGATE__RUN_LOG__URL".to_owned(), redis.to_owned()),
        ];
        let more = settings.iter();
        env.extend(more.map(|(name, value)| (format!("SLUICEGATE__{name}"), (*value).to_owned())));
        let env: Vec<_> = env.iter().map(|(name, value)| (&**name, &**value)).collect();
        let gateways = join_all((0..count).map(|_| Process::start(&env, &[]))).await;
        Some(Self { gateways, database })
    }
}

fn events(run: &str) -> Call {
    Call::get(&format!("/runs/{run}/events"))
}

fn after(run: &str, seq: u64) -> Call {
    events(run).header("Last-Event-ID", &format!("{run}:{seq}"))
}

async fn glance(gateway: &impl Place, run: &str) -> Value {
    get(gateway, &format!("/runs/{run}"))
        .await
        .expect(200)
        .await
        .json()
        .await
}

async fn cancel(gateway: &impl Place, run: &str) -> Response {
    Call::post(&format!("/runs/{run}/cancel")).to(gateway).await
}

/// The content of all messages of a session.
async fn said(gateway: &impl Place, session: &str) -> Vec<String> {
    let page = get(gateway, &format!("/sessions/{session}/messages?limit=200")).await;
    let page = page.expect(200).await.json().await;
    let messages = page["messages"].as_array().expect("messages").iter();
    messages
        .map(|message| message["content"].as_str().expect("text").to_owned())
        .collect()
}

fn question(request: &Request) -> String {
    let messages = request.json["messages"].as_array().expect("messages");
    messages.last().expect("a question")["content"]
        .as_str()
        .expect("text")
        .to_owned()
}

/// Says two words, and the third one when the gate opens.
async fn held(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::answering(move |_| {
        let script = Script::sse().role().say("one ").say("two ").wait(&gate);
        script.say("three").complete()
    })
    .await
}

/// Starts a run over SSE, and reads until it has said `two`.
async fn begin(gateway: &impl Place, body: Value) -> (Response, String) {
    let mut stream = post(gateway, "/chat/sse", body).await.expect(200).await;
    stream.next_event_named("token").await;
    assert_eq!(stream.next_event_named("token").await.seq, 2);
    let run = stream.header("x-run-id").to_owned();
    (stream, run)
}

fn hi(session: &str) -> Value {
    json!({"message": "Hi", "session_id": session})
}

mod followed {
    use super::*;

    /// Tokens with all that is awkward in a stream of lines.
    const BEFORE: [&str; 5] = ["Hel", "lo,\r", "\nworld", " two\r\nlines", "\n\n"];
    const AFTER: [&str; 4] = [
        "data: x\n\nevent: done\ndata: {}",
        "世界 👩‍👩‍👧",
        "\u{2028}\u{FEFF}\r",
        "\nend",
    ];

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_gateway_gives_the_bytes_that_the_runs_own_gives() {
        let gate = Gate::new("the second half");
        let say = |script: Script, pieces: &[&str]| pieces.iter().fold(script, |script, piece| script.say(piece));
        let upstream = Upstream::always(say(say(Script::sse().role(), &BEFORE).wait(&gate), &AFTER).complete()).await;
        let Some(fleet) = Fleet::of(3, &upstream, &[]).await else {
            return;
        };
        let [a, b, c] = &fleet[..] else { unreachable!() };
        let own = post(a, "/chat/sse", hi("s")).await.expect(200).await;
        let run = own.header("x-run-id").to_owned();
        gate.reached().await;
        // Several readers at each, from the start and from the middle, while it goes on.
        let calls = |format: &str| {
            let call = Call::get(&format!("/runs/{run}/events?format={format}"));
            let resumed = |seq: u64| call.clone().header("Last-Event-ID", &format!("{run}:{seq}"));
            [call.clone(), resumed(0), resumed(3), call.clone()]
        };
        let mut readers = Vec::new();
        for place in [a, b, c] {
            for format in ["raw", "json"] {
                for (number, call) in calls(format).into_iter().enumerate() {
                    readers.push((format, number, call.to(place).await.expect(200).await));
                }
            }
        }
        gate.open();
        let own = own.body().await;
        assert_eq!(own.ending, Ending::Complete);
        let mut told = HashMap::new();
        for (format, number, reader) in readers {
            let body = reader.body().await;
            assert_eq!(body.ending, Ending::Complete);
            let first = told.entry((format, number)).or_insert(body.bytes.clone());
            assert_eq!(*first, body.bytes, "{format} {number}");
        }
        assert_eq!(told[&("raw", 0)], own.bytes);
        assert_eq!(told[&("json", 0)], told[&("json", 3)]);
        let rest = told[&("raw", 2)]
            .strip_prefix(b"retry: 2000\n")
            .expect("how soon to come back");
        assert!(own.bytes.ends_with(rest), "the rest of the same bytes");
        // Afterwards, from everywhere.
        let whole = events(&run).to(b).await.expect(200).await.transcript().await;
        assert_eq!(
            whole.done()["response"]["content"],
            [&BEFORE[..], &AFTER].concat().concat()
        );
        let last = whole.terminal().seq;
        for seq in 0..last {
            let bodies = [a, b, c].map(|place| after(&run, seq).to(place));
            let bodies = join_all(join_all(bodies).await.into_iter().map(Response::body)).await;
            assert!(
                bodies
                    .iter()
                    .all(|body| body.status == 200 && body.bytes == bodies[0].bytes),
                "after {seq}"
            );
        }
        for place in [a, b, c] {
            assert_eq!(after(&run, last).to(place).await.status, 204);
        }
        assert_eq!(upstream.calls(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_key_means_the_run_at_every_gateway() {
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let Some(fleet) = Fleet::of(2, &upstream, &[]).await else {
            return;
        };
        let [a, b] = &fleet[..] else { unreachable!() };
        let ask = |path: &str| Call::post(path).json(&hi("s")).header("Idempotency-Key", "k");
        let mut own = ask("/chat/sse").to(a).await.expect(200).await;
        own.next_event_named("token").await;
        let run = own.header("x-run-id").to_owned();
        // While it goes on: the same stream, and the answer when it is there.
        let attached = ask("/chat/sse").to(b).await.expect(200).await;
        assert_eq!(attached.header("x-run-id"), run);
        let other = Call::post("/chat").json(&hi("t")).header("Idempotency-Key", "k");
        assert_eq!(
            other.to(b).await.expect(422).await.problem().await,
            "idempotency_mismatch"
        );
        let (answer, ()) = tokio::join!(
            async { ask("/chat").to(b).await.expect(200).await.json().await },
            async {
                tokio::time::sleep(Duration::from_millis(200)).await; // until it waits there
                gate.open();
            }
        );
        assert_eq!(
            (&answer["run_id"], &answer["content"]),
            (&json!(run), &json!("one two three"))
        );
        assert_eq!(own.transcript().await.text(), "one two three");
        assert_eq!(attached.transcript().await.text(), "one two three");
        // And afterwards.
        for place in [a, b] {
            assert_eq!(ask("/chat").to(place).await.expect(200).await.json().await, answer);
        }
        assert_eq!(upstream.calls(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_fifty_that_come_with_a_key_at_once_one_asks_the_model() {
        let upstream = Upstream::always(openai::answer(&["one ", "two"])).await;
        let Some(fleet) = Fleet::of(3, &upstream, &[]).await else {
            return;
        };
        for round in 0..4 {
            let key = format!("k{round}");
            let session = format!("s{round}");
            let calls = (0..50).map(|number| {
                let call = Call::post("/chat").json(&hi(&session)).header("Idempotency-Key", &key);
                let place = &fleet[number % 3];
                async move { call.to(place).await.body().await }
            });
            let answers = join_all(calls).await;
            for answer in &answers {
                assert_eq!(
                    (answer.status, answer.json()),
                    (200, answers[0].json()),
                    "round {round}"
                );
            }
            assert_eq!(answers[0].json()["content"], "one two");
            assert_eq!(upstream.calls(), round + 1);
            assert_eq!(said(&fleet[0], &session).await, ["Hi", "one two"]);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_event_that_has_not_been_is_waited_for_and_then_refused() {
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let Some(fleet) = Fleet::of(2, &upstream, &[]).await else {
            return;
        };
        let [a, b] = &fleet[..] else { unreachable!() };
        let (own, run) = begin(a, hi("s")).await;
        assert_eq!(
            after(&run, 50).to(a).await.expect(400).await.problem().await,
            "last_event_id_invalid"
        );
        let began = Instant::now();
        let ahead = after(&run, 50).to(b).await;
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
        assert_eq!(ahead.header("retry-after"), "1");
        assert_eq!(ahead.expect(503).await.problem().await, "store_unavailable");
        // One that comes while it is waited for is as good as any.
        let (told, ()) = tokio::join!(
            async { after(&run, 3).to(b).await.expect(200).await.transcript().await },
            async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                gate.open();
            }
        );
        assert_eq!(told.kinds(), ["done"]);
        own.transcript().await.done();
        assert_eq!(
            after(&run, 50).to(b).await.expect(410).await.problem().await,
            "replay_expired"
        );
        assert_eq!(
            get(b, "/runs/01a1fe71-de05-7081-80c5-75641c8afc86/events").await.status,
            404
        );
    }
}

mod stopped {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_run_is_cancelled_and_its_session_erased_from_anywhere() {
        let gate = Gate::new("never");
        let upstream = held(&gate).await;
        let Some(fleet) = Fleet::of(2, &upstream, &[]).await else {
            return;
        };
        let [a, b] = &fleet[..] else { unreachable!() };
        let (own, run) = begin(a, hi("s")).await;
        let there = events(&run).to(b).await.expect(200).await;
        let began = Instant::now();
        let answer = cancel(b, &run).await.expect(200).await.json().await;
        assert_eq!(answer["status"], "cancelled");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        upstream.closed().await;
        let (own, there) = (own.transcript().await, there.transcript().await);
        assert_eq!(
            (own.codes(), there.codes()),
            (vec!["cancelled".to_owned()], vec!["cancelled".to_owned()])
        );
        assert_eq!(own.last_id(), there.last_id());
        assert_eq!(said(b, "s").await, ["Hi", "one two "]);
        assert_eq!(cancel(b, &run).await.status, 200, "twice");
        // The session goes with the run that has it.
        let (own, run) = begin(a, hi("s")).await;
        let there = events(&run).to(b).await.expect(200).await;
        assert_eq!(delete(b, "/sessions/s").await.status, 204);
        upstream.closed().await;
        assert_eq!(own.transcript().await.codes(), ["cancelled"]);
        assert_eq!(there.transcript().await.codes(), ["cancelled"]);
        for place in [a, b] {
            assert_eq!(get(place, "/sessions/s").await.status, 404);
        }
        assert_eq!(delete(b, "/sessions/s").await.status, 204, "twice");
        eventually("the run to be forgotten", async || {
            let gone = async |place| get(place, &format!("/runs/{run}")).await.status == 404;
            (gone(b).await).then_some(())
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reader_elsewhere_is_a_reader() {
        let gate = Gate::new("never");
        let upstream = held(&gate).await;
        let settings = [("RUNS__DETACH_GRACE", "300ms")];
        let Some(fleet) = Fleet::of(2, &upstream, &settings).await else {
            return;
        };
        let [a, b] = &fleet[..] else { unreachable!() };
        let story = async |policy: &str| {
            let body = json!({"message": "Hi", "session_id": policy, "on_disconnect": policy});
            let (own, run) = begin(a, body).await;
            let mut there = events(&run).to(b).await.expect(200).await;
            assert_eq!(there.next_event().await.event, "start");
            // They say so a few times per second.
            tokio::time::sleep(Duration::from_millis(500)).await;
            own.reset();
            for _ in 0..30 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert_eq!(
                    glance(a, &run).await["status"],
                    "running",
                    "{policy}: it is read elsewhere"
                );
            }
            there.reset();
            let left = Instant::now();
            eventually(format!("{policy}: its end"), async || {
                (glance(a, &run).await["status"] == "cancelled").then_some(())
            })
            .await;
            assert!(
                left.elapsed() < Duration::from_secs(8),
                "{policy}: {:?}",
                left.elapsed()
            );
        };
        tokio::join!(story("grace"), story("cancel"));
    }
}

mod in_line {
    use super::*;

    /// Answers `re NAME` to the question `NAME`; `hold` says a word first, and stands at the gate.
    async fn upstream(gate: &Gate) -> Upstream {
        let gate = gate.clone();
        Upstream::answering(move |request| match question(request).as_str() {
            held if held.starts_with("hold") => Script::sse().role().say("partial").wait(&gate).complete(),
            other => openai::answer(&["re ", other]),
        })
        .await
    }

    async fn ask(gateway: &impl Place, message: &str, on_busy: &str) -> Response {
        let body = json!({"message": message, "session_id": "s", "on_busy": on_busy});
        let mut stream = post(gateway, "/chat/sse", body).await.expect(200).await;
        assert_eq!(stream.next_event().await.event, "start");
        stream
    }

    fn asked(upstream: &Upstream) -> Vec<String> {
        upstream.requests().iter().map(question).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn thirty_turns_of_three_gateways_are_all_there_once() {
        let upstream = upstream(&Gate::new("never")).await;
        let Some(fleet) = Fleet::of(3, &upstream, &[]).await else {
            return;
        };
        let turns = (0..30).map(|number| {
            let place = &fleet[number % 3];
            async move { ask(place, &format!("q{number}"), "queue").await.transcript().await }
        });
        for (number, transcript) in join_all(turns).await.into_iter().enumerate() {
            assert_eq!(transcript.done()["response"]["content"], format!("re q{number}"));
        }
        // Each once, and each in front of what the next one's model was sent.
        let said = said(&fleet[0], "s").await;
        assert_eq!(said.len(), 60);
        let mut questions: Vec<_> = said.iter().step_by(2).cloned().collect();
        assert_eq!(questions, asked(&upstream));
        for (number, request) in upstream.requests().iter().enumerate() {
            let sent = request.json["messages"].as_array().unwrap().iter();
            let sent: Vec<_> = sent.map(|message| message["content"].as_str().unwrap()).collect();
            assert_eq!(sent, said[..=2 * number]);
        }
        questions.sort();
        questions.dedup();
        assert_eq!(questions.len(), 30);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_first_turns_of_a_new_session_know_of_each_other() {
        let upstream = upstream(&Gate::new("never")).await;
        let Some(fleet) = Fleet::of(2, &upstream, &[]).await else {
            return;
        };
        let sessions = (0..20).map(|number| {
            let fleet = &fleet;
            async move {
                let turn = |place: usize| {
                    let body = json!({"message": format!("{number}.{place}"), "session_id": format!("new{number}"), "on_busy": "queue"});
                    async move { post(&fleet[place], "/chat", body).await.expect(200).await.json().await }
                };
                tokio::join!(turn(0), turn(1))
            }
        });
        join_all(sessions).await;
        let lengths = upstream
            .requests()
            .into_iter()
            .map(|request| request.json["messages"].as_array().unwrap().len());
        let mut lengths: Vec<_> = lengths.collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [[1; 20], [3; 20]].concat());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_order_is_that_of_arrival_wherever_they_came() {
        let gate = Gate::new("the first one's end");
        let upstream = upstream(&gate).await;
        let Some(fleet) = Fleet::of(3, &upstream, &[]).await else {
            return;
        };
        let first = ask(&fleet[0], "hold", "reject").await;
        gate.reached().await;
        let mut waiting = Vec::new();
        for number in 0..9 {
            waiting.push(ask(&fleet[(number * 2 + 1) % 3], &format!("q{number}"), "queue").await);
        }
        gate.open();
        first.transcript().await.done();
        for stream in waiting {
            stream.transcript().await.done();
        }
        let expected: Vec<_> = (0..9).map(|number| format!("q{number}")).collect();
        assert_eq!(asked(&upstream)[1..], expected);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_interrupt_stops_what_runs_elsewhere_and_nobody_who_waits() {
        let gate = Gate::new("never");
        let upstream = upstream(&gate).await;
        let Some(fleet) = Fleet::of(3, &upstream, &[]).await else {
            return;
        };
        let [a, b, c] = &fleet[..] else { unreachable!() };
        for (round, (interrupted, by, other)) in [(a, b, c), (b, b, a), (c, a, c)].into_iter().enumerate() {
            let before = upstream.calls();
            let mut first = ask(interrupted, "hold", "reject").await;
            first.next_event_named("token").await;
            // Those who wait: at the gateway that interrupts, and elsewhere.
            let waiting = [ask(by, "q1", "queue").await, ask(other, "q2", "queue").await];
            let began = Instant::now();
            let mut stop = ask(by, "hold it", "interrupt").await;
            assert_eq!(first.transcript().await.codes(), ["cancelled"], "round {round}");
            stop.next_event_named("token").await;
            assert!(
                began.elapsed() < Duration::from_secs(2),
                "round {round}: {:?}",
                began.elapsed()
            );
            // Another one elsewhere stops that one.
            let last = ask(other, "stop", "interrupt").await;
            assert_eq!(stop.transcript().await.codes(), ["cancelled"], "round {round}");
            assert_eq!(last.transcript().await.done()["response"]["content"], "re stop");
            for stream in waiting {
                stream.transcript().await.done();
            }
            assert_eq!(
                asked(&upstream)[before..],
                ["hold", "hold it", "stop", "q1", "q2"],
                "round {round}"
            );
            let said = said(c, "s").await;
            let turns = [
                "hold", "partial", "hold it", "partial", "stop", "re stop", "q1", "re q1", "q2", "re q2",
            ];
            assert_eq!(said[round * 10..], turns, "round {round}");
        }
    }
}

mod killed {
    use super::*;

    /// The gateway of a run dies while others follow it. Returns how long they waited for its end.
    async fn its_readers_are_told(lease: &str) -> Option<Duration> {
        let gate = Gate::new("never");
        let upstream = Upstream::answering({
            let gate = gate.clone();
            move |request| match request.number {
                0 => Script::sse().role().say("one ").say("two ").wait(&gate),
                _ => openai::answer(&["again"]),
            }
        })
        .await;
        let mut fleet = Fleet::on(&shared()?, lease, 3, &upstream, &[]).await?;
        let ask = || Call::post("/chat/sse").json(&hi("s")).header("Idempotency-Key", "k");
        let mut own = ask().to(&fleet[0]).await.expect(200).await;
        let run = own.header("x-run-id").to_owned();
        while own.next_event().await.seq < 2 {}
        let mut readers = Vec::new();
        for call in [events(&run), after(&run, 1), ask(), events(&run)] {
            let place = &fleet[1 + readers.len() % 2];
            let mut reader = call.to(place).await.expect(200).await.patience(Duration::from_secs(15));
            while reader.next_event().await.seq < 2 {}
            readers.push(reader);
        }
        fleet.gateways[0].kill9().await;
        let dead = Instant::now();
        upstream.closed().await;
        assert_eq!(own.transcript().await.ended, Ended::Aborted);
        for reader in readers {
            let told = reader.transcript().await;
            assert_eq!((told.codes(), told.terminal().seq), (vec!["interrupted".to_owned()], 3));
        }
        let took = dead.elapsed();
        // One of the two has given it up; whoever came back there had found it going on elsewhere.
        let (mut given_up, mut remote) = (0.0, 0.0);
        for place in &fleet[1..] {
            let counted = Meters::of(&place.admin().await).await;
            given_up += counted.get("lease_expired_total");
            remote += counted.get("resumes_total{how=\"remote\"}");
        }
        assert_eq!((given_up, remote), (1.0, 1.0));
        // It is over, and the session free; the key means the next one.
        for place in &fleet[1..] {
            let row = glance(place, &run).await;
            assert_eq!(
                (&row["status"], &row["error"]["code"]),
                (&json!("interrupted"), &json!("interrupted"))
            );
            assert_eq!(
                cancel(place, &run).await.expect(409).await.problem().await,
                "run_finished"
            );
        }
        let again = ask().to(&fleet[2]).await.expect(200).await.transcript().await;
        assert_eq!(again.text(), "again");
        assert_ne!(again.events[0].run_id, run);
        assert_eq!(said(&fleet[1], "s").await, ["Hi", "again"]);
        // Whoever is asked says the same, also the one that died.
        fleet.gateways[0].restart().await;
        for place in fleet.iter() {
            assert_eq!(glance(place, &run).await["last_seq"], 3);
            for seq in 0..3 {
                let told = after(&run, seq).to(place).await.expect(200).await.transcript().await;
                assert_eq!(
                    (told.codes(), told.terminal().seq),
                    (vec!["interrupted".to_owned()], 3),
                    "after {seq}"
                );
            }
            assert_eq!(after(&run, 3).to(place).await.status, 204);
            let whole = events(&run).to(place).await.expect(200).await.transcript().await;
            assert_eq!(whole.kinds(), ["start", "token", "token", "error"]);
            let answer = Call::post("/chat").json(&hi("s")).header("Idempotency-Key", "k");
            assert_eq!(
                answer.to(place).await.expect(200).await.json().await["content"],
                "again"
            );
        }
        assert_eq!(upstream.calls(), 2);
        Some(took)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_gateway_leaves_its_readers_elsewhere_with_what_they_have_and_an_end() {
        let Some(took) = its_readers_are_told(LEASE).await else {
            return;
        };
        assert!(took < Duration::from_secs(5), "{took:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_gateway_is_given_up_within_ten_seconds() {
        let Some(took) = its_readers_are_told("").await else {
            return;
        };
        assert!(took < Duration::from_secs(10), "{took:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_only_its_own_readers_were_told_is_not_taken_for_the_end() {
        let gate = Gate::new("nothing is mirrored any more");
        let upstream = Upstream::answering({
            let gate = gate.clone();
            move |request| match question(request).as_str() {
                "hang" => Script::sse().role().wait(&gate).say("one ").say("two ").hang(),
                _ => Script::sse().role().wait(&gate).say("one ").say("two").complete(),
            }
        })
        .await;
        let Some(redis) = Redis::start().await else { return };
        let Some(mut fleet) = Fleet::on(&redis.url(), LEASE, 2, &upstream, &[]).await else {
            return;
        };
        let ask = |message: &str| json!({"message": message, "session_id": message});
        let mut hangs = post(&fleet[0], "/chat/sse", ask("hang")).await.expect(200).await;
        let mut ends = post(&fleet[0], "/chat/sse", ask("end")).await.expect(200).await;
        let (hung, ended) = (hangs.header("x-run-id").to_owned(), ends.header("x-run-id").to_owned());
        for run in [&hung, &ended] {
            let mut there = events(run).to(&fleet[1]).await.expect(200).await;
            assert_eq!(there.next_event().await.event, "start");
        }
        redis.pause().await;
        gate.open();
        while hangs.next_event().await.seq < 2 {}
        while ends.next_event().await.event != "done" {}
        fleet.gateways[0].kill9().await;
        redis.resume().await;
        let there = &fleet[1];
        eventually("the run to be given up", async || {
            (glance(there, &hung).await["status"] == "interrupted").then_some(())
        })
        .await;
        // It was heard up to its start, and read up to its second word.
        let told = after(&hung, 2).to(there).await.expect(200).await.transcript().await;
        assert_eq!((told.codes(), told.terminal().seq), (vec!["interrupted".to_owned()], 3));
        assert_eq!(after(&hung, 3).to(there).await.status, 204);
        let told = events(&hung).to(there).await.expect(200).await;
        let told = told.read_as(Reader::anywhere()).transcript().await;
        // What was on its way to Redis when the gateway died may have arrived after all.
        assert_eq!(told.codes(), ["interrupted"]);
        let kinds = told.kinds();
        let arrived = kinds == ["start", "token", "token", "error"];
        assert!(arrived || kinds == ["start", "error"], "{kinds:?}");
        // What was committed is told with its number, to whoever lacks nothing else.
        let told = after(&ended, 2).to(there).await.expect(200).await.transcript().await;
        assert_eq!(
            (told.done()["response"]["content"].as_str(), told.terminal().seq),
            (Some("one two"), 3)
        );
        assert_eq!(after(&ended, 3).to(there).await.status, 204);
        let whole = events(&ended).to(there).await;
        match whole.status {
            200 => assert_eq!(whole.transcript().await.text(), "one two"),
            _ => assert_eq!(whole.expect(410).await.problem().await, "replay_expired"),
        }
        assert_eq!(said(there, "end").await, ["end", "one two"]);
        assert_eq!(upstream.calls(), 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_is_told_to_stop_tells_those_who_read_elsewhere() {
        let gate = Gate::new("the signal");
        let upstream = Upstream::answering({
            let gate = gate.clone();
            move |request| match question(request).as_str() {
                "finish" => Script::sse()
                    .role()
                    .say("one ")
                    .say("two ")
                    .wait(&gate)
                    .say("three")
                    .complete(),
                _ => Script::sse().role().say("one ").say("two ").hang(),
            }
        })
        .await;
        let settings = [("RUNS__DRAIN", "500ms")];
        let Some(mut fleet) = Fleet::of(2, &upstream, &settings).await else {
            return;
        };
        let ask = |message: &str| json!({"message": message, "session_id": message});
        let (finishes, first) = begin(&fleet[0], ask("finish")).await;
        let (hangs, second) = begin(&fleet[0], ask("hang")).await;
        let there = [
            events(&first).to(&fleet[1]).await.expect(200).await,
            events(&second).to(&fleet[1]).await.expect(200).await,
        ];
        let told = Instant::now();
        fleet[0].terminate().await;
        gate.open();
        let [finished, hung] = there;
        let (finished, hung) = (finished.transcript().await, hung.transcript().await);
        assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
        assert_eq!(finished.done()["response"]["content"], "one two three");
        assert_eq!(finished.last_id(), finishes.transcript().await.last_id());
        assert_eq!(hung.codes(), ["shutting_down"]);
        assert_eq!(hung.last_id(), hangs.transcript().await.last_id());
        let exit = fleet.gateways[0].wait_exit(Duration::from_secs(5)).await;
        assert_eq!(exit.code(), Some(0), "{}", fleet[0].log());
        // And whoever comes late.
        let late = after(&second, 0)
            .to(&fleet[1])
            .await
            .expect(200)
            .await
            .transcript()
            .await;
        assert_eq!((late.codes(), late.last_id()), (hung.codes(), hung.last_id()));
        assert_eq!(glance(&fleet[1], &second).await["status"], "interrupted");
        assert_eq!(said(&fleet[1], "finish").await, ["finish", "one two three"]);
        let next = post(&fleet[1], "/chat/sse", hi("hang")).await.expect(200).await;
        next.hang_up(); // the session is free
    }
}

mod without_redis {
    use super::*;

    /// Says two words and `three` at the gate to `hold`; to everything else at once.
    async fn upstream(gate: &Gate) -> Upstream {
        let gate = gate.clone();
        Upstream::answering(move |request| match question(request).as_str() {
            "hold" => {
                let script = Script::sse().role().say("one ").say("two ").wait(&gate);
                script.say("three").complete()
            }
            _ => openai::answer(&["at ", "once"]),
        })
        .await
    }

    /// A gateway is as good as one alone, and says what it cannot do in time.
    async fn goes_on_alone(fleet: &Fleet, run: &str, upstream: &Upstream) {
        let [a, b] = &fleet[..] else { unreachable!() };
        let turns = said(b, "alone").await.len();
        for number in 0..5 {
            let began = Instant::now();
            let answer = post(a, "/chat/sse", hi("alone"))
                .await
                .expect(200)
                .await
                .transcript()
                .await;
            answer.done();
            assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
            assert_eq!(said(b, "alone").await.len(), turns + 2 * (number + 1));
        }
        let admin = a.admin().await;
        eventually("what waits to be told to be counted", async || {
            (Meters::of(&admin).await.get("event_log_lag_seconds") > 0.0).then_some(())
        })
        .await;
        let calls = upstream.calls();
        let began = Instant::now();
        let (resumed, cancelled) = tokio::join!(after(run, 1).to(b), cancel(b, run));
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        if resumed.status != 200 {
            // What was heard before is still known; whoever has read it is told that there is no more.
            let status = resumed.status;
            let code = resumed.problem().await;
            assert!(
                matches!(
                    (status, code.as_str()),
                    (503, "store_unavailable") | (410, "replay_expired")
                ),
                "{code}"
            );
        }
        assert_eq!(cancelled.header("retry-after"), "1");
        assert_eq!(cancelled.expect(503).await.problem().await, "store_unavailable");
        // At its own gateway it is all there.
        let mut own = after(run, 1).to(a).await.expect(200).await;
        assert_eq!(own.next_event().await.text, "two ");
        assert_eq!(upstream.calls(), calls);
    }

    /// A run of one is followed at the other again, without anybody's doing.
    async fn is_mirrored_again(fleet: &Fleet) {
        let [a, b] = &fleet[..] else { unreachable!() };
        eventually("a run that is followed elsewhere", async || {
            let own = post(a, "/chat/sse", hi("anew"))
                .await
                .expect(200)
                .await
                .transcript()
                .await;
            let there = events(&own.events[0].run_id).to(b).await;
            if there.status != 200 {
                return None;
            }
            let there = there.transcript().await;
            (there.last_id() == own.last_id() && there.text() == own.text()).then_some(())
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn gateways_go_on_alone_while_it_does_not_answer() {
        let gate = Gate::new("it answers again");
        let upstream = upstream(&gate).await;
        let Some(redis) = Redis::start().await else { return };
        let Some(fleet) = Fleet::on(&redis.url(), LEASE, 2, &upstream, &[]).await else {
            return;
        };
        let [a, b] = &fleet[..] else { unreachable!() };
        post(a, "/chat", hi("alone")).await.expect(200).await;
        let hold = |session: &str| json!({"message": "hold", "session_id": session, "on_disconnect": "continue"});
        let (own, run) = begin(a, hold("s")).await;
        let mut there = events(&run).to(b).await.expect(200).await;
        while there.next_event().await.seq < 2 {}
        redis.pause().await;
        let (unheard, other) = begin(a, hold("t")).await;
        goes_on_alone(&fleet, &other, &upstream).await;
        goes_on_alone(&fleet, &run, &upstream).await;
        redis.resume().await;
        gate.open();
        // Nothing is lost: the log itself was the buffer.
        let (own, there) = (own.transcript().await, there.transcript().await);
        assert_eq!((there.text(), there.last_id()), (own.text(), own.last_id()));
        let unheard = unheard.transcript().await;
        eventually("the other one, from its start", async || {
            let late = events(&other).to(b).await;
            (late.status == 200 && late.transcript().await.text() == unheard.text()).then_some(())
        })
        .await;
        is_mirrored_again(&fleet).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn gateways_go_on_alone_while_it_is_gone_and_need_no_restart() {
        let gate = Gate::new("it is back");
        let upstream = upstream(&gate).await;
        let Some(mut redis) = Redis::start().await else { return };
        let Some(fleet) = Fleet::on(&redis.url(), LEASE, 2, &upstream, &[("SESSIONS__QUEUE_PATIENCE", "1s")]).await
        else {
            return;
        };
        let [a, b] = &fleet[..] else { unreachable!() };
        post(a, "/chat", hi("alone")).await.expect(200).await;
        let (own, run) = begin(a, json!({"message": "hold", "session_id": "s"})).await;
        let mut there = events(&run).to(b).await.expect(200).await;
        while there.next_event().await.seq < 2 {}
        redis.kill().await;
        goes_on_alone(&fleet, &run, &upstream).await;
        // Who would interrupt cannot say so, waits in vain, and leaves nothing in the session's way.
        let stop = json!({"message": "stop", "session_id": "s", "on_busy": "interrupt"});
        let stop = post(b, "/chat", stop).await.expect(409).await;
        assert_eq!(stop.problem().await, "session_busy");
        redis.restart().await;
        is_mirrored_again(&fleet).await;
        // What it had of this run is gone. Its reader is let go in time, and told so when it comes back.
        gate.open();
        let own = own.transcript().await;
        assert_eq!(own.done()["response"]["content"], "one two three");
        let there = there.transcript().await;
        assert!(there.ended == Ended::Eof && there.codes().is_empty(), "{there:?}");
        if there.last_id() != own.last_id() {
            let seq = there.events.last().unwrap().seq;
            let late = eventually("its row to say that it ended", async || {
                let late = after(&run, seq).to(b).await;
                (late.status != 503).then_some(late)
            });
            assert_eq!(late.await.expect(410).await.problem().await, "replay_expired");
            let counted = Meters::of(&b.admin().await).await;
            assert!(counted.get("resumes_total{how=\"lost\"}") >= 1.0, "{}", counted.text());
        }
        assert_eq!(glance(b, &run).await["response"]["content"], "one two three");
        post(b, "/chat", hi("s")).await.expect(200).await;
        assert_eq!(
            events(&run).to(a).await.expect(200).await.transcript().await.text(),
            "one two three"
        );
    }
}

mod behind_nginx {
    use super::*;
    use crate::browser::behind_nginx::Nginx;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn with_the_settings_that_are_shipped_a_death_is_noticed_by_nobody_but_its_own_runs() {
        let gate = Gate::new("a gateway is dead");
        let upstream = Upstream::answering({
            let gate = gate.clone();
            move |request| match question(request).as_str() {
                "finish" => Script::sse()
                    .role()
                    .say("one ")
                    .say("two ")
                    .wait(&gate)
                    .say("three")
                    .complete(),
                _ => Script::sse().role().say("one ").say("two ").hang(),
            }
        })
        .await;
        let Some(mut fleet) = Fleet::of(2, &upstream, &[]).await else {
            return;
        };
        let Some(nginx) = Nginx::shipped([fleet[0].addr(), fleet[1].addr()]).await else {
            return;
        };
        let ask = |message: &str| json!({"message": message, "session_id": message, "on_disconnect": "continue"});
        // Through nginx, token by token, from whichever gateway.
        let readers = async |run: &str| {
            let mut readers = Vec::new();
            for _ in 0..4 {
                let mut reader = events(run).to(&nginx).await.expect(200).await;
                while reader.next_event().await.seq < 2 {}
                readers.push(reader);
            }
            readers
        };
        let (own, run) = begin(&fleet[0], ask("finish")).await;
        let reading = readers(&run).await;
        fleet.gateways[1].kill9().await;
        let mut cut = 0;
        let mut resumed = Vec::new();
        gate.open();
        for reader in reading {
            let seen = reader.transcript().await;
            match seen.ended {
                Ended::Aborted => {
                    cut += 1;
                    let after = after(&run, seen.events.last().expect("an event").seq);
                    resumed.push(after.to(&nginx).await.expect(200).await.transcript().await);
                }
                Ended::Eof => resumed.push(seen),
            }
        }
        assert!((1..4).contains(&cut), "{cut} of the readers were at the other gateway");
        for transcript in resumed {
            assert_eq!(transcript.done()["response"]["content"], "one two three");
        }
        own.transcript().await.done();
        fleet.gateways[1].restart().await;
        // The run's own gateway.
        let (own, run) = begin(&fleet[0], ask("hang")).await;
        fleet.gateways[0].kill9().await;
        drop(own);
        let told = eventually("its end", async || {
            let call = after(&run, 2).to(&nginx).await;
            (call.status == 200).then_some(call)
        });
        let told = told.await.transcript().await;
        assert_eq!((told.codes(), told.terminal().seq), (vec!["interrupted".to_owned()], 3));
        fleet.gateways[0].restart().await;
        // What a gateway that died had been sent is not sent to another one. (An nginx that has seen no death yet uses both.)
        let Some(nginx) = Nginx::shipped([fleet[0].addr(), fleet[1].addr()]).await else {
            return;
        };
        let calls = upstream.calls();
        let (place, hang) = (nginx.addr(), ["t", "u", "v", "w"]);
        let asked: Vec<_> = hang
            .map(|session| tokio::spawn(async move { post(&place, "/chat", hi(session)).await.status }))
            .into();
        eventually("the model to be asked", async || {
            (upstream.calls() == calls + 4).then_some(())
        })
        .await;
        fleet.gateways[0].kill9().await;
        eventually("a refusal", async || {
            asked.iter().any(|asked| asked.is_finished()).then_some(())
        })
        .await;
        assert_eq!(upstream.calls(), calls + 4);
        fleet.gateways[1].kill9().await;
        for status in asked {
            assert_eq!(status.await.unwrap(), 502);
        }
        assert_eq!(upstream.calls(), calls + 4);
    }
}

/// Four `EventSource`s of a page in a browser, through the nginx that is shipped.
mod in_a_browser {
    use super::*;
    use crate::browser::{NODE, behind_nginx::Nginx, chromium, node, scripts};

    /// What the page read of a run during which one of two gateways is killed: the run's own, or the other one.
    async fn told(victim: usize) -> Option<(String, Vec<Value>)> {
        let scripts = scripts().filter(|_| chromium())?;
        let gate = Gate::new("a gateway is dead");
        let upstream = held(&gate).await;
        let bell = Upstream::always(Script::status(200, &[], "{}")).await;
        let mut fleet = Fleet::of(2, &upstream, &[]).await?;
        let nginx = Nginx::shipped([fleet[0].addr(), fleet[1].addr()]).await?;
        let body = json!({"message": "Hi", "on_disconnect": "continue"});
        let (own, run) = begin(&fleet[0], body).await;
        let order = json!({
            "base": format!("http://{}", nginx.addr()), "run": run, "bell": format!("http://{}/", bell.addr()),
        });
        let order = order.to_string();
        let death = async {
            let rung = async {
                while bell.calls() == 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await; // a browser takes its time to start
                }
            };
            within(NODE, "the page to have read two tokens four times", rung).await;
            fleet.gateways[victim].kill9().await;
            gate.open();
        };
        let (report, ()) = tokio::join!(node(scripts, "follow.mjs", &order), death);
        assert_eq!(upstream.calls(), 1);
        drop(own);
        Some((run, report["sources"].as_array().expect("sources").clone()))
    }

    fn check(run: &str, sources: &[Value], last: &str) {
        assert_eq!(sources.len(), 4);
        for source in sources {
            let ids = source["ids"].as_array().expect("ids");
            let expected: Vec<Value> = (0..ids.len()).map(|seq| json!(format!("{run}:{seq}"))).collect();
            assert_eq!(*ids, expected, "{source}");
            assert_eq!(
                source["names"].as_array().and_then(|names| names.last()),
                Some(&json!(last)),
                "{source}"
            );
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_page_misses_nothing_when_a_gateway_dies_that_only_read_along() {
        let Some((run, sources)) = told(1).await else { return };
        check(&run, &sources, "done");
        let again = |source: &&Value| source["opened"].as_u64() > Some(1);
        assert!(
            sources.iter().any(|source| again(&source)),
            "nobody was at the gateway that died: {sources:?}"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_page_is_told_when_the_runs_own_gateway_dies() {
        let Some((run, sources)) = told(0).await else { return };
        check(&run, &sources, "error");
        for source in sources {
            assert!(
                source["last"]
                    .as_str()
                    .is_some_and(|last| last.contains("\"interrupted\"")),
                "{source}"
            );
        }
    }
}

/// One client, cut and moved at random, and gateways killed and started again at random. The seed is printed;
/// `SLUICEGATE_TEST_SEED` takes it.
mod at_random {
    use super::*;
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    const GATEWAYS: usize = 3;
    /// Runs at a time.
    const CLIENTS: usize = 10;
    const TIME: Duration = Duration::from_secs(15);
    /// How long a run may go on after that.
    const REST: Duration = Duration::from_secs(20);
    const WORDS: u64 = 60;

    /// What the upstream says to this question, word by word.
    fn words(question: &str) -> Vec<String> {
        (0..WORDS).map(|number| format!("{question}/{number} ")).collect()
    }

    /// A run as its client saw it, over all its connections.
    #[derive(Debug, Default)]
    struct Seen {
        run: String,
        /// The number of the next event.
        next: u64,
        text: String,
        /// `done`, or the code of the error.
        ended: Option<String>,
        connections: usize,
    }

    /// Connects, sends this, and reads events into what was seen, until the end of the connection or as many events as
    /// there is patience for.
    async fn read(place: SocketAddr, request: &str, events: usize, seen: &mut Seen) -> Result<u16, std::io::Error> {
        let mut stream = TcpStream::connect(place).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        let end_of_head = loop {
            if let Some(at) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head = String::from_utf8(bytes.drain(..end_of_head).collect()).expect("a head");
        let status: u16 = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .expect("a status");
        if status != 200 {
            return Ok(status);
        }
        seen.connections += 1;
        let (mut lines, mut frame) = (String::new(), BTreeMap::<String, String>::new());
        let mut left = events;
        loop {
            // HTTP/1.0: the body is what comes until the close.
            let text = std::str::from_utf8(&bytes);
            let whole = text.map_or_else(|error| error.valid_up_to(), str::len);
            lines.push_str(std::str::from_utf8(&bytes[..whole]).expect("checked"));
            bytes.drain(..whole);
            while let Some(end) = lines.find('\n') {
                let line: String = lines.drain(..=end).collect();
                match line.trim_end_matches('\n') {
                    "" => {
                        take(&std::mem::take(&mut frame), seen);
                        left -= 1;
                        if left == 0 || seen.ended.is_some() {
                            return Ok(200);
                        }
                    }
                    line => {
                        if let Some((name, value)) = line.split_once(": ") {
                            let old = frame.entry(name.to_owned()).or_default();
                            *old = match old.is_empty() {
                                true => value.to_owned(),
                                false => format!("{old}\n{value}"),
                            };
                        }
                    }
                }
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(200);
            }
        }
    }

    /// One more event: the very next one.
    fn take(frame: &BTreeMap<String, String>, seen: &mut Seen) {
        assert!(seen.ended.is_none(), "{frame:?} after the end of {seen:?}");
        let (run, seq) = frame["id"].rsplit_once(':').expect("an id");
        if seen.run.is_empty() {
            seen.run = run.to_owned();
        }
        assert_eq!(
            (run, seq.parse()),
            (&*seen.run, Ok(seen.next)),
            "{frame:?} where another was due: {seen:?}"
        );
        seen.next += 1;
        match &*frame["event"] {
            "token" => seen.text.push_str(&frame["data"]),
            "done" => seen.ended = Some("done".to_owned()),
            "error" => {
                let chunk: Value = serde_json::from_str(&frame["data"]).expect("JSON");
                seen.ended = Some(chunk["error"]["code"].as_str().expect("a code").to_owned());
            }
            _ => {}
        }
    }

    /// Asks once, under a key, and stays with the run wherever it can be read, until it has ended.
    async fn follow(question: String, places: Vec<SocketAddr>, seed: u64) -> (String, Seen) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut seen = Seen::default();
        let body = json!({"message": question, "session_id": question, "on_disconnect": "continue"}).to_string();
        let deadline = Instant::now() + TIME + REST;
        while seen.ended.is_none() {
            assert!(Instant::now() < deadline, "{question} never ended: {seen:?}");
            let place = places[random.usize(..places.len())];
            let request = match seen.run.is_empty() {
                true => format!(
                    "POST /chat/sse HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nIdempotency-Key: {question}\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                ),
                false => format!(
                    "GET /runs/{0}/events HTTP/1.0\r\nHost: localhost\r\nLast-Event-ID: {0}:{1}\r\n\r\n",
                    seen.run,
                    seen.next - 1
                ),
            };
            let events = random.usize(1..40);
            match within(
                Duration::from_secs(15),
                "a read",
                read(place, &request, events, &mut seen),
            )
            .await
            {
                // Cut, by itself or by a death.
                Ok(200) => {}
                // Not ready; or what was told is not known there yet, or the gateway that is to say so.
                Ok(503) | Err(_) => tokio::time::sleep(Duration::from_millis(random.u64(5..50))).await,
                // Its gateway died between the commit and the relay: the result is there, and nothing more to read.
                Ok(410) => seen.ended = Some("lost".to_owned()),
                Ok(status) => panic!("{status} for {request}: {seen:?}"),
            }
        }
        (question, seen)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_lost_or_said_twice_whoever_dies() {
        let given = std::env::var("SLUICEGATE_TEST_SEED").ok();
        let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("a number"));
        eprintln!("SLUICEGATE_TEST_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let upstream = Upstream::answering(|request| {
            let pieces = words(&question(request));
            let pause = Duration::from_millis(25);
            let said = pieces
                .iter()
                .fold(Script::sse().role(), |script, piece| script.say(piece).sleep(pause));
            said.complete()
        })
        .await;
        let Some(mut fleet) = Fleet::of(GATEWAYS, &upstream, &[]).await else {
            return;
        };
        let places: Vec<SocketAddr> = fleet.iter().map(Place::addr).collect();
        let over = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (places, over, mut random) = (places.clone(), over.clone(), random.fork());
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    while !over.load(Relaxed) {
                        let question = format!("c{client}q{}", all.len());
                        all.push(follow(question, places.clone(), random.u64(..)).await);
                    }
                    all
                })
            })
            .collect();
        let (began, mut deaths) = (Instant::now(), 0);
        while began.elapsed() < TIME {
            tokio::time::sleep(Duration::from_millis(random.u64(500..1_500))).await;
            let gateway = &mut fleet.gateways[random.usize(..GATEWAYS)];
            gateway.kill9().await;
            deaths += 1;
            tokio::time::sleep(Duration::from_millis(random.u64(0..500))).await;
            gateway.restart().await;
        }
        over.store(true, Relaxed);
        let mut runs = Vec::new();
        for client in clients {
            let client = within(TIME + REST, "a client's last run", client).await;
            runs.extend(client.unwrap_or_else(|error| panic!("{error}; SLUICEGATE_TEST_SEED={seed}")));
        }
        let calls = upstream
            .requests()
            .iter()
            .map(question)
            .fold(HashMap::new(), |mut calls, question| {
                *calls.entry(question).or_insert(0) += 1;
                calls
            });
        let rows: Vec<(String, i64)> = sqlx::query_as("SELECT session_id, count(*) FROM runs GROUP BY session_id")
            .fetch_all(&mut fleet.database.look().await)
            .await
            .unwrap();
        let rows: HashMap<String, i64> = rows.into_iter().collect();
        let (mut done, mut moved) = (0, 0);
        for (question, seen) in &runs {
            moved += seen.connections - 1;
            let whole = words(question).concat();
            let kept = get(&fleet[0], &format!("/sessions/{question}/messages")).await;
            let kept = if kept.status == 404 {
                0
            } else {
                kept.json().await["messages"].as_array().unwrap().len()
            };
            match seen.ended.as_deref() {
                Some("done") => {
                    done += 1;
                    assert_eq!(
                        (&seen.text, seen.next),
                        (&whole, WORDS + 2),
                        "SLUICEGATE_TEST_SEED={seed}: {seen:?}"
                    );
                    assert_eq!(kept, 2, "{seen:?}");
                }
                Some("interrupted" | "shutting_down") => {
                    assert!(whole.starts_with(&seen.text), "SLUICEGATE_TEST_SEED={seed}: {seen:?}");
                    assert_eq!(kept, 0, "{seen:?}");
                }
                Some("lost") => {
                    let row = glance(&fleet[0], &seen.run).await;
                    assert_eq!(
                        row["response"]["content"], whole,
                        "SLUICEGATE_TEST_SEED={seed}: {seen:?}"
                    );
                    assert_eq!(kept, 2, "{seen:?}");
                }
                _ => panic!("SLUICEGATE_TEST_SEED={seed}: {seen:?}"),
            }
            // A key whose run died before its id arrived starts another one: that is what it is for.
            let (calls, rows) = (calls.get(question).copied().unwrap_or_default(), rows[question]);
            assert!(
                calls <= rows,
                "SLUICEGATE_TEST_SEED={seed}: {calls} calls for {rows} runs: {seen:?}"
            );
        }
        eprintln!(
            "{} runs, {done} done, {moved} times moved, {deaths} deaths, {:?}",
            runs.len(),
            began.elapsed()
        );
        assert!(runs.len() >= CLIENTS && done > 0 && moved > runs.len() && deaths > 5);
    }
}

//! Several gateways, the real program each, on one PostgreSQL database and one Redis: whoever is asked gives the same
//! answer, whoever dies, and whatever becomes of Redis.
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::house::redis::{Redis, shared};
use super::house::*;
use crate::stores::Database;

/// Gateways that share what is kept, and tell each other what their runs do.
struct Fleet {
    gateways: Vec<Process>,
    _database: Database,
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
        Some(Self {
            gateways,
            _database: database,
        })
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
        assert!(own.bytes.ends_with(&told[&("raw", 2)]), "the rest of the same bytes");
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

//! Clients that are gone without a word, that take nothing, or that say more than they were asked (FAULTS § 2.5). Those that
//! leave as one leaves, and those that come back, are in `runs.rs`; `fault_index.rs` knows what is where.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::house::*;

/// Every way to a run; what leaves an event stream means at once what it means elsewhere.
const DOORS: [&str; 3] = ["/chat", "/chat/stream", "/chat/sse"];

fn wire(path: &str, body: &Value) -> String {
    let (body, host) = (body.to_string(), "localhost");
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// What is kept, and where, is not the question here.
fn recipe(upstream: &Upstream) -> gateway::Recipe {
    Gateway::with(upstream).toml("[store]\nurl = \"memory:\"\n[artifacts]\nurl = \"memory:\"")
}

fn hi() -> Value {
    json!({"message": "Hi", "session_id": "s", "on_disconnect": "cancel"})
}

/// `GET /runs/{run}`.
async fn glance(gateway: &impl Place, run: &str) -> Value {
    get(gateway, &format!("/runs/{run}"))
        .await
        .expect(200)
        .await
        .json()
        .await
}

/// The session goes on: whoever was lost is not in its way.
async fn the_next_turn_works(gateway: &Gateway, what: &str) {
    let next = eventually("the session to be free", async || {
        let next = post(gateway, "/chat", json!({"message": "Next", "session_id": "s"})).await;
        (next.status != 409).then_some(next)
    });
    let next = next.await.expect(200).await.json().await;
    assert_eq!(next["content"], "Yes", "{what}");
}

/// More than the kernels between keep for a client that is far away.
const LARGE: usize = 512 << 10;

/// An answer of that size, without its end.
fn large() -> Script {
    let piece = "x".repeat(64 << 10);
    (0..LARGE / piece.len()).fold(Script::sse().role(), |script, _| script.say(&piece))
}

/// An upstream that plays this to "Hi", and answers what comes after.
async fn playing(script: Script) -> Upstream {
    Upstream::answering(
        move |request| match request.json["messages"].as_array().and_then(|all| all.last()) {
            Some(last) if last["content"] == "Hi" => script.clone(),
            _ => openai::answer(&["Yes"]),
        },
    )
    .await
}

mod vanished {
    use super::*;

    const LOST: Duration = Duration::from_secs(2);

    /// What goes on while the client vanishes.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Phase {
        /// The upstream says nothing yet.
        Waiting,
        /// It has said a word.
        Silent,
        /// It talks.
        Talking,
        /// It says more than there is room for, so that writes wait.
        Flooding,
    }

    fn script(phase: Phase, gate: &Gate) -> Script {
        match phase {
            Phase::Waiting => Script::raw().wait(gate).hang(),
            Phase::Silent => Script::sse().role().say("Hel").wait(gate).hang(),
            Phase::Talking => {
                let lo = openai::text("lo ");
                let script = Script::sse().role().say("Hel").wait(gate);
                script.repeat(lo, Duration::from_millis(20), 10_000)
            }
            Phase::Flooding => {
                let flood = openai::text(&"lo ".repeat(2_000));
                let script = Script::sse().role().say("Hel").wait(gate);
                script.repeat(flood, Duration::from_millis(20), 10_000)
            }
        }
    }

    async fn gateway(upstream: &Upstream) -> Gateway {
        let seconds = LOST.as_secs();
        let recipe = super::recipe(upstream).toml(&format!(
            "[runs]\nmax_output = \"64MiB\"\n\
             [server]\nlost_timeout = \"{seconds}s\"\nheartbeat = \"300ms\"\nadmin_listen = \"127.0.0.1:0\""
        ));
        recipe.start().await
    }

    /// How long it took to notice, since the client vanished and since it asked.
    async fn vanish(path: &str, phase: Phase) -> (Duration, Duration) {
        let what = format!("{path} {phase:?}");
        let gate = Gate::new("in the middle");
        let upstream = playing(script(phase, &gate)).await;
        let gateway = gateway(&upstream).await;
        let mut connection = match phase {
            Phase::Flooding => Connection::open_afar(&gateway).await,
            _ => Connection::open(&gateway).await,
        };
        let asked = Instant::now();
        connection.send_raw(wire(path, &hi())).await;
        gate.reached().await;
        gate.open();
        let speaks = path == "/chat/sse" || (path == "/chat/stream" && phase != Phase::Waiting);
        // Kept to the end, so that nothing says goodbye.
        let _kept;
        let since = if speaks {
            let mut answer = connection.answer(path).await;
            answer.next_bytes().await.expect("the first bytes");
            answer.connection().vanish();
            let since = Instant::now();
            _kept = Ok(answer);
            since
        } else {
            connection.vanish();
            let since = Instant::now();
            _kept = Err(connection);
            since
        };
        let closed = upstream.closed().await;
        eventually("the lost one to be counted", async || {
            let lost = Meters::of(&gateway.admin()).await;
            (lost.get("client_disconnects_total{phase=\"lost\"}") == 1.0).then_some(())
        })
        .await;
        the_next_turn_works(&gateway, &what).await;
        (
            closed.saturating_duration_since(since),
            closed.saturating_duration_since(asked),
        )
    }

    /// C04: with the shipped 30 s, a silent client is asked after 15 s and every 5 s, and given up within 35 s; one that is
    /// written to, 30 s after the first byte that it does not acknowledge, which is a heartbeat at the latest: 45 s. Also
    /// where there is no room for more and writes wait.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_client_that_vanishes_without_a_word_is_given_up_in_time_at_any_moment() {
        let phases = [Phase::Waiting, Phase::Silent, Phase::Talking, Phase::Flooding];
        let rows = DOORS.into_iter().flat_map(|path| phases.map(|phase| (path, phase)));
        let rows: Vec<_> = rows.collect();
        let took = join_all(rows.iter().map(|(path, phase)| vanish(path, *phase))).await;
        // The kernel's own seconds, and a busy machine.
        let limit = LOST * 3 / 2 + Duration::from_secs(3);
        let wrong: Vec<_> = rows
            .iter()
            .zip(took)
            .filter(|(_, (vanished, asked))| *vanished > limit || *asked < LOST - PROMPT)
            .collect();
        assert!(wrong.is_empty(), "not within {limit:?}: {wrong:#?}");
    }

    /// The same settings must not cost a client that is only quiet, or only slow.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_there_and_says_nothing_is_not_lost() {
        let quiet = async |path: &str| {
            let gate = Gate::new("the end");
            let upstream = playing(Script::sse().role().wait(&gate).say("Hello").complete()).await;
            let gateway = gateway(&upstream).await;
            let mut connection = Connection::open(&gateway).await;
            connection.send_raw(wire(path, &hi())).await;
            gate.reached().await;
            tokio::time::sleep(LOST * 2).await; // longer than anybody may be lost
            gate.open();
            let body = connection.answer(path).await.body().await;
            assert_eq!((body.status, &body.ending), (200, &Ending::Complete), "{path}");
            assert!(body.text().contains("Hello"), "{path}: {body:?}");
        };
        let slow = async |path: &str| {
            let upstream = playing(large().complete()).await;
            let gateway = gateway(&upstream).await;
            let mut connection = Connection::open_afar(&gateway).await;
            connection.send_raw(wire(path, &hi())).await;
            upstream.next_request().await;
            upstream.idle().await;
            tokio::time::sleep(LOST * 2).await; // it has no room all that time, and its kernel says so when asked
            let body = connection.answer(path).await.body().await;
            assert_eq!((body.status, &body.ending), (200, &Ending::Complete), "{path}");
            assert!(body.bytes.len() >= LARGE, "{path}: {}", body.bytes.len());
        };
        tokio::join!(join_all(DOORS.map(quiet)), join_all(DOORS.map(slow)));
    }
}

mod taking_nothing {
    use super::*;

    const STALL: Duration = Duration::from_secs(1);

    async fn gateway(upstream: &Upstream) -> Gateway {
        recipe(upstream).toml("[server]\nwrite_timeout = \"1s\"").start().await
    }

    /// C05: the connection is cut when a write has got nowhere for `server.write_timeout`; what it means for the run is the
    /// run's policy, and what is in the log can be read by others, or later.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_takes_nothing_is_cut_and_the_run_goes_on_as_its_policy_says() {
        let stalls = async |path: &str, policy: &str| {
            let what = format!("{path} {policy}");
            let gate = Gate::new("all but the end");
            // A JSON answer is written once the run is over.
            let script = match path {
                "/chat" => large().complete(),
                _ => large().wait(&gate).complete(),
            };
            let upstream = playing(script).await;
            let gateway = gateway(&upstream).await;
            let mut body = hi();
            body["on_disconnect"] = policy.into();
            let mut connection = Connection::open_afar(&gateway).await;
            let sent = Instant::now();
            connection.send_raw(wire(path, &body)).await;
            if path != "/chat" {
                gate.reached().await; // the run went on into its log
            }
            let cut = connection.closed_there().await - sent;
            assert!(
                (STALL..STALL + Duration::from_secs(6)).contains(&cut),
                "{what}: {cut:?}"
            );
            match (path, policy) {
                ("/chat", _) => {}
                (_, "cancel") => drop(upstream.closed().await),
                _ => gate.open(),
            }
            let answer = connection.answer(&what).await;
            let run = answer.header("x-run-id").to_owned();
            let cut = answer.body().await;
            assert!(cut.ending.is_aborted(), "{what}: what was cut looks whole");
            let status = eventually("the run to end", async || {
                let run = glance(&gateway, &run).await;
                (run["status"] != "running").then_some(run["status"].clone())
            });
            let expected = match (path, policy) {
                ("/chat", _) | (_, "continue") => "completed",
                _ => "cancelled",
            };
            assert_eq!(status.await, expected, "{what}");
            // Another reader has all of it.
            let whole = get(&gateway, &format!("/runs/{run}/events")).await.transcript().await;
            assert_eq!(whole.text().len(), LARGE, "{what}");
            the_next_turn_works(&gateway, &what).await;
        };
        let rows = DOORS
            .into_iter()
            .flat_map(|path| ["cancel", "continue"].map(|policy| (path, policy)));
        join_all(rows.map(|(path, policy)| stalls(path, policy))).await;
    }

    /// The same over HTTP/2, where the connection lives and a client takes nothing of one answer on it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_answer_side_by_side_that_nobody_takes_is_cut() {
        let upstream = playing(large().complete()).await;
        let recipe = recipe(&upstream).toml("[server]\nwrite_timeout = \"1s\"\nadmin_listen = \"127.0.0.1:0\"");
        let gateway = recipe.start().await;
        let client = reqwest::Client::builder()
            .http2_prior_knowledge()
            .http2_initial_stream_window_size(65_535)
            .http2_initial_connection_window_size(1 << 20);
        let client = client.build().unwrap();
        let ask = async |path: &str, message: &str| {
            let url = format!("http://{}{path}", gateway.addr());
            let body = json!({"message": message}).to_string();
            let call = client.post(url).header("content-type", "application/json").body(body);
            call.send().await.unwrap()
        };
        for (number, path) in DOORS.into_iter().enumerate() {
            let untaken = ask(path, "Hi").await;
            assert_eq!(untaken.status(), 200, "{path}");
            eventually("it to be cut", async || {
                let cut = Meters::of(&gateway.admin()).await.get("slow_clients_total");
                (cut == (number + 1) as f64).then_some(())
            })
            .await;
            // Others on the same connection are answered.
            assert_eq!(ask("/chat", "Next").await.status(), 200, "{path}");
            assert!(untaken.bytes().await.is_err(), "{path}: what was cut looks whole");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_takes_a_little_at_a_time_is_not_cut() {
        let slow = async |path: &str| {
            let upstream = playing(large().complete()).await;
            let recipe = recipe(&upstream).toml("[server]\nwrite_timeout = \"3s\"");
            let gateway = recipe.start().await;
            let mut connection = Connection::open_afar(&gateway).await;
            connection.send_raw(wire(path, &hi())).await;
            let mut answer = connection.answer(path).await;
            let began = Instant::now();
            let mut taken = 0;
            // Some of it every now and then, together for much longer than a write may wait; then the rest.
            while began.elapsed() < STALL * 9 {
                let until = taken + (32 << 10);
                while taken < until {
                    taken += answer
                        .next_bytes()
                        .await
                        .unwrap_or_else(|| panic!("{path} is over after {taken}"))
                        .len();
                }
                tokio::time::sleep(STALL).await;
            }
            let rest = answer.body().await;
            assert_eq!(rest.ending, Ending::Complete, "{path}");
            assert!(taken + rest.bytes.len() >= LARGE, "{path}");
        };
        join_all(DOORS.map(slow)).await;
    }
}

mod saying_too_much {
    use super::*;

    /// C06: a client that closes its sending half (`nc -N`, `shutdown(SHUT_WR)`) is taken for one that is gone: nothing tells
    /// the two apart before the next write, and a model that nobody hears costs money.
    #[tokio::test]
    async fn who_closes_one_half_is_taken_for_gone() {
        for path in DOORS {
            let mut took = Duration::MAX;
            // The best of five: the machine may be busy.
            for _ in 0..5 {
                let gate = Gate::new("in the middle");
                let upstream = playing(Script::sse().role().say("Hel").wait(&gate).hang()).await;
                let gateway = recipe(&upstream).start().await;
                let mut connection = Connection::open(&gateway).await;
                connection.send_raw(wire(path, &hi())).await;
                gate.reached().await;
                gate.open();
                let since = Instant::now();
                connection.half_close().await;
                took = took.min(upstream.closed().await.saturating_duration_since(since));
                connection.closed_there().await;
                the_next_turn_works(&gateway, path).await;
                if took < PROMPT {
                    break;
                }
            }
            assert!(took < PROMPT, "{path}: {took:?}");
        }
    }

    /// C07: a byte too many keeps the server from listening, and so from hearing that the client has left. The kernel is
    /// asked instead, every second.
    #[tokio::test]
    async fn a_byte_too_many_hides_a_leaving_for_a_moment_only() {
        let left = async |path: &str, more: &str, resets: bool| {
            let what = format!("{path} {more:?} {resets}");
            let gate = Gate::new("the end");
            let upstream = playing(Script::sse().role().say("Hel").wait(&gate).hang()).await;
            let gateway = recipe(&upstream).start().await;
            let mut connection = Connection::open(&gateway).await;
            connection.send_raw(wire(path, &hi()) + more).await;
            gate.reached().await;
            let since = Instant::now();
            if resets {
                connection.reset();
            } else {
                connection.hang_up();
            }
            let took = upstream.closed().await.saturating_duration_since(since);
            assert!(took < Duration::from_secs(4), "{what}: {took:?}");
            the_next_turn_works(&gateway, &what).await;
        };
        let more = ["G", "\r\n", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"];
        let rows = DOORS.into_iter().flat_map(|path| more.map(|more| (path, more)));
        let rows = rows.flat_map(|row| [false, true].map(|resets| (row, resets)));
        join_all(rows.map(|((path, more), resets)| left(path, more, resets))).await;
    }
}

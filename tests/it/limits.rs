//! How much callers may ask for: so often, so much at a time; and what the gateway refuses when it has enough to do, while
//! what it has begun goes on.
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluicegate::http::auth::keys::generate;

use super::house::*;

/// A caller's key, and what the configuration says of it.
struct Key {
    key: String,
    toml: String,
}

impl Key {
    /// A new one, with these lines more.
    fn of(name: &str, lines: &str) -> Self {
        let (key, sha256) = generate().unwrap();
        let toml = format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\n{lines}\n");
        Self { key, toml }
    }

    fn on(&self, call: Call) -> Call {
        call.header("Authorization", &format!("Bearer {}", self.key))
    }

    async fn get(&self, place: &impl Place, path: &str) -> Response {
        self.on(Call::get(path)).to(place).await
    }

    async fn post(&self, place: &impl Place, path: &str, body: Value) -> Response {
        self.on(Call::post(path).json(&body)).to(place).await
    }

    /// Starts a run over SSE, and reads until it has begun.
    async fn begin(&self, place: &impl Place, body: Value) -> (Response, String) {
        let mut stream = self.post(place, "/chat/sse", body).await.expect(200).await;
        stream.next_event_named("start").await;
        let run = stream.header("x-run-id").to_owned();
        (stream, run)
    }
}

fn hi() -> Value {
    json!({"message": "Hi"})
}

/// An upstream that says a word, and the next one when the gate opens.
async fn held(gate: &Gate) -> Upstream {
    Upstream::always(Script::sse().role().say("Hel").wait(gate).say("lo").complete()).await
}

/// Asserts that this is a refusal with a code and a time to come back, and gives that time.
async fn refused(answer: Response, status: u16, code: &str) -> u64 {
    let answer = answer.expect(status).await;
    let wait: u64 = answer.header("retry-after").parse().expect("whole seconds");
    let problem = answer.problem_object().await;
    assert_eq!((&problem["code"], &problem["retryable"]), (&json!(code), &json!(true)));
    assert_eq!(problem["retry_after"], wait);
    assert!(wait >= 1, "{wait}");
    wait
}

/// What the headers say: the limit, how many are left, and in how many seconds there is one more.
fn standing(answer: &Response) -> (u64, u64, u64) {
    let number = |name: &str| answer.header(name).parse::<u64>().expect("a number");
    let (limit, left, reset) = (
        number("ratelimit-limit"),
        number("ratelimit-remaining"),
        number("ratelimit-reset"),
    );
    assert_eq!(answer.header("ratelimit-policy"), format!("\"default\";q={limit};w=60"));
    assert_eq!(answer.header("ratelimit"), format!("\"default\";r={left};t={reset}"));
    (limit, left, reset)
}

mod rate {
    use super::*;

    #[tokio::test]
    async fn a_burst_of_the_limit_is_fine_and_one_more_is_told_when_to_come() {
        let upstream = Upstream::always(openai::answer(&["a"])).await;
        let web = Key::of("web", "requests_per_minute = 5");
        let recipe = Gateway::with(&upstream).toml(&web.toml);
        let gateway = recipe.toml(meters::WATCHED).start().await;
        let begun = Instant::now();
        for (left, path) in [(4, "/chat"), (3, "/chat/stream"), (2, "/chat/sse"), (1, "/runs")] {
            let answer = web.post(&gateway, path, hi()).await;
            assert!(matches!(answer.status, 200 | 202), "{path}: {}", answer.status);
            let (limit, told, reset) = standing(&answer);
            assert_eq!((limit, told), (5, left), "{path}");
            assert!((55..=60).contains(&reset), "{reset}");
        }
        // What is refused for another reason was asked for too.
        let wrong = web
            .post(&gateway, "/chat", json!({"massage": "Hi"}))
            .await
            .expect(422)
            .await;
        assert_eq!(standing(&wrong).1, 0);
        let calls = upstream.calls();
        for _ in 0..20 {
            let answer = web.post(&gateway, "/chat", hi()).await;
            let (limit, left, reset) = standing(&answer);
            assert_eq!((limit, left), (5, 0));
            assert_eq!(refused(answer, 429, "rate_limited").await, reset);
            assert!(reset <= 60 && Duration::from_secs(reset) + begun.elapsed() >= Duration::from_secs(60));
        }
        assert_eq!(upstream.calls(), calls);
        assert_eq!(Meters::of(&gateway.admin()).await.get("rate_limited_total"), 20.0);
    }

    #[tokio::test]
    async fn keys_of_two_callers_do_not_share_and_two_keys_of_one_do() {
        let gateway = |keys: &[&Key]| {
            let toml: String = keys.iter().map(|key| &*key.toml).collect();
            async move { Gateway::with(&closed_port()).toml(&toml).start().await }
        };
        let two = "requests_per_minute = 2";
        let (old, new, other) = (Key::of("web", two), Key::of("web", two), Key::of("other", two));
        let free = Key::of("free", "requests_per_minute = 0");
        let gateway = gateway(&[&old, &new, &other, &free]).await;
        assert_eq!(standing(&old.get(&gateway, "/agents").await).1, 1);
        assert_eq!(standing(&new.get(&gateway, "/agents").await).1, 0);
        for key in [&old, &new] {
            refused(key.get(&gateway, "/agents").await, 429, "rate_limited").await;
        }
        assert_eq!(standing(&other.get(&gateway, "/agents").await).1, 1);
        for _ in 0..10 {
            let answer = free.get(&gateway, "/agents").await.expect(200).await;
            assert!(answer.headers.get("ratelimit-limit").is_none());
        }
        // Who is not known is not counted, and does not use up what others have.
        for _ in 0..10 {
            let stranger = get(&gateway, "/agents").await.expect(401).await;
            assert!(stranger.headers.get("ratelimit-limit").is_none());
        }
        assert_eq!(standing(&other.get(&gateway, "/agents").await).1, 0);
        // Nor are those that nobody has to be for.
        get(&gateway, "/healthz").await.expect(200).await;
    }

    #[tokio::test]
    async fn the_default_is_for_whoever_has_no_limit_of_its_own() {
        let gateway = Gateway::with(&closed_port())
            .toml("[limits]\nrequests_per_minute = 1")
            .start()
            .await;
        assert_eq!(standing(&get(&gateway, "/agents").await.expect(200).await), (1, 0, 60));
        refused(get(&gateway, "/agents").await, 429, "rate_limited").await;
    }

    /// B044: who sends a request is its key, whatever it says of where it comes from.
    #[tokio::test]
    async fn a_thousand_made_up_addresses_are_one_caller() {
        let gateway = Gateway::with(&closed_port())
            .toml("[limits]\nrequests_per_minute = 3")
            .start()
            .await;
        let mut admitted = 0;
        for at in 0..1000 {
            let address = format!("198.51.{}.{}", at / 250, at % 250);
            let mut call = Call::get("/agents");
            for name in ["X-Forwarded-For", "X-Real-IP", "CF-Connecting-IP", "True-Client-IP"] {
                call = call.header(name, &address);
            }
            let answer = call.header("Forwarded", &format!("for={address}")).to(&gateway).await;
            match answer.status {
                200 => admitted += 1,
                _ => drop(refused(answer, 429, "rate_limited").await),
            }
        }
        assert_eq!(admitted, 3);
    }

    #[tokio::test]
    async fn who_reads_on_or_cancels_is_let_in_beyond_the_limit() {
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let web = Key::of("web", "requests_per_minute = 1");
        let gateway = Gateway::with(&upstream).toml(&web.toml).start().await;
        let (stream, run) = web.begin(&gateway, hi()).await;
        refused(web.post(&gateway, "/chat/sse", hi()).await, 429, "rate_limited").await;
        let id = format!("{run}:0");
        let again = |call: Call| web.on(call.header("Last-Event-ID", &id)).to(&gateway);
        let by_query = format!("/chat/sse?last_event_id={}", id.replace(':', "%3A"));
        for _ in 0..20 {
            for call in [
                Call::get("/chat/sse?message=Hi"),
                Call::post("/chat/sse").json(&hi()),
                Call::get(&format!("/runs/{run}/events")),
            ] {
                let mut answer = again(call).await.expect(200).await;
                assert_eq!(standing(&answer).1, 0, "and it is told how it stands");
                assert_eq!(answer.next_event().await.event, "token");
            }
            let answer = web.get(&gateway, &by_query).await.expect(200).await;
            assert_eq!(answer.read_as(Reader::after(&id)).next_event().await.event, "token");
            web.get(&gateway, &format!("/runs/{run}/events"))
                .await
                .expect(200)
                .await;
        }
        // A name for the last event that is none would start a run.
        for call in [
            Call::post("/chat/sse").json(&hi()).header("Last-Event-ID", ""),
            Call::get("/chat/sse?message=Hi&last_event_id="),
            Call::get("/chat/sse?message=Hi&last_event_id=").header("Last-Event-ID", ""),
        ] {
            refused(web.on(call).to(&gateway).await, 429, "rate_limited").await;
        }
        // An empty header says nothing; what the query says counts.
        let by_query = Call::get(&by_query).header("Last-Event-ID", "");
        web.on(by_query).to(&gateway).await.expect(200).await;
        for _ in 0..3 {
            let cancel = Call::post(&format!("/runs/{run}/cancel"));
            web.on(cancel).to(&gateway).await.expect(200).await;
        }
        assert_eq!(stream.transcript().await.codes(), ["cancelled"]);
        assert_eq!(upstream.calls(), 1);
    }

    #[tokio::test]
    async fn reading_on_has_a_bound_too() {
        let web = Key::of("web", "requests_per_minute = 1");
        let gateway = Gateway::with(&closed_port()).toml(&web.toml).start().await;
        let run = "0199f0c2-7d1e-7a34-9c55-0b6f6f1f2a11";
        let mut connection = Connection::open(&gateway).await;
        for at in 0..601 {
            let answer = connection
                .call(web.on(Call::post(&format!("/runs/{run}/cancel"))))
                .await;
            assert_eq!(answer.status, if at < 600 { 404 } else { 429 }, "{at}");
            connection = answer.body_and_connection().await.1;
        }
        web.get(&gateway, "/agents").await.expect(200).await;
    }

    #[tokio::test]
    async fn who_comes_with_a_ticket_is_somebody_who_comes_back() {
        let web = Key::of("web", "requests_per_minute = 1");
        let gateway = Gateway::with(&closed_port()).toml(&web.toml).start().await;
        let issued = web.post(&gateway, "/tickets", json!({})).await.expect(201).await;
        let ticket = issued.json().await["ticket"].as_str().unwrap().to_owned();
        // Each of these comes to nothing, so the ticket could be tried for ever.
        let try_it = Call::get(&format!(
            "/runs/0199f0c2-7d1e-7a34-9c55-0b6f6f1f2a11/events?ticket={ticket}"
        ));
        let mut connection = Connection::open(&gateway).await;
        for at in 0..601 {
            let answer = connection.call(try_it.clone()).await;
            assert_eq!(answer.status, if at < 600 { 404 } else { 429 }, "{at}");
            connection = answer.body_and_connection().await.1;
        }
    }

    /// A minute that is waited for, because nothing else shows that it ends: three times the limit gets the limit.
    #[tokio::test]
    async fn after_a_minute_there_is_room_again_for_as_many() {
        let web = Key::of("web", "requests_per_minute = 3");
        let gateway = Gateway::with(&closed_port()).toml(&web.toml).start().await;
        let begun = Instant::now();
        let mut wait = 0;
        for at in 0..9 {
            let answer = web.get(&gateway, "/agents").await;
            match at {
                0..3 => assert_eq!(answer.status, 200),
                _ => wait = refused(answer, 429, "rate_limited").await,
            }
        }
        tokio::time::sleep(Duration::from_secs(wait)).await;
        assert!(begun.elapsed() < Duration::from_secs(63));
        for left in (0..3).rev() {
            assert_eq!(standing(&web.get(&gateway, "/agents").await.expect(200).await).1, left);
        }
        refused(web.get(&gateway, "/agents").await, 429, "rate_limited").await;
    }
}

mod at_a_time {
    use super::*;

    #[tokio::test]
    async fn a_caller_has_so_many_runs_and_others_do_not_mind() {
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let (web, other) = (Key::of("web", "concurrent_runs = 2"), Key::of("other", ""));
        let recipe = Gateway::with(&upstream).toml(&web.toml).toml(&other.toml);
        let gateway = recipe.toml(meters::WATCHED).start().await;
        let (first, _) = web.begin(&gateway, hi()).await;
        let second = web.post(&gateway, "/runs", hi()).await.expect(202).await.json().await;
        for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
            refused(web.post(&gateway, path, hi()).await, 429, "too_many_runs").await;
        }
        refused(web.get(&gateway, "/chat/sse?message=Hi").await, 429, "too_many_runs").await;
        let counted = Meters::of(&gateway.admin()).await;
        assert_eq!(
            (counted.get("rate_limited_total"), counted.sum("shed_total")),
            (5.0, 0.0)
        );
        let (others, _) = other.begin(&gateway, hi()).await;
        // Looking, reading and cancelling are no runs.
        let run = second["run_id"].as_str().unwrap();
        web.get(&gateway, &format!("/runs/{run}")).await.expect(200).await;
        web.get(&gateway, &format!("/runs/{run}/events"))
            .await
            .expect(200)
            .await;
        web.post(&gateway, &format!("/runs/{run}/cancel"), json!({}))
            .await
            .expect(200)
            .await;
        let third = eventually("the cancelled run's place", async || {
            Some(web.post(&gateway, "/chat/sse", hi()).await).filter(|answer| answer.status == 200)
        });
        let third = third.await;
        refused(web.post(&gateway, "/chat", hi()).await, 429, "too_many_runs").await;
        gate.open();
        for stream in [first, third, others] {
            assert_eq!(stream.transcript().await.text(), "Hello");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_run_whose_end_was_read_does_not_count_any_more() {
        let upstream = Upstream::always(openai::answer(&["a"])).await;
        let web = Key::of("web", "concurrent_runs = 1");
        let gateway = Gateway::with(&upstream).toml(&web.toml).start().await;
        for _ in 0..30 {
            let (mut stream, _) = web.begin(&gateway, hi()).await;
            stream.next_event_named("done").await;
            web.post(&gateway, "/chat", hi()).await.expect(200).await.json().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_fifty_that_come_at_once_as_many_get_in_as_may() {
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let web = Key::of("web", "concurrent_runs = 7");
        let gateway = Gateway::with(&upstream).toml(&web.toml).start().await;
        let all = futures_util::future::join_all((0..50).map(|_| web.post(&gateway, "/chat/sse", hi()))).await;
        let (admitted, turned_away): (Vec<_>, Vec<_>) = all.into_iter().partition(|answer| answer.status == 200);
        assert_eq!(admitted.len(), 7);
        for answer in turned_away {
            refused(answer, 429, "too_many_runs").await;
        }
        gate.open();
        for stream in admitted {
            assert_eq!(stream.transcript().await.text(), "Hello");
        }
    }

    #[tokio::test]
    async fn who_comes_again_with_a_key_needs_no_place() {
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let web = Key::of("web", "concurrent_runs = 1");
        let gateway = Gateway::with(&upstream).toml(&web.toml).start().await;
        let ask = || web.on(Call::post("/chat/sse?key=once").json(&hi())).to(&gateway);
        let first = ask().await.expect(200).await;
        let again = ask().await.expect(200).await;
        assert_eq!(first.header("x-run-id"), again.header("x-run-id"));
        refused(web.post(&gateway, "/chat", hi()).await, 429, "too_many_runs").await;
        gate.open();
        for stream in [first, again] {
            assert_eq!(stream.transcript().await.text(), "Hello");
        }
    }

    #[tokio::test]
    async fn who_may_have_one_run_may_interrupt_it_and_no_other_and_not_queue() {
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let web = Key::of("web", "concurrent_runs = 1");
        let gateway = Gateway::with(&upstream).toml(&web.toml).start().await;
        let ask = |session: &str, on_busy: &str| {
            let body = json!({"message": "Hi", "session_id": session, "on_busy": on_busy});
            web.post(&gateway, "/chat/sse", body)
        };
        let mut streams = vec![ask("s", "reject").await.expect(200).await];
        refused(ask("s", "queue").await, 429, "too_many_runs").await;
        refused(ask("other", "interrupt").await, 429, "too_many_runs").await;
        for _ in 0..3 {
            streams.push(ask("s", "interrupt").await.expect(200).await);
        }
        refused(ask("other", "interrupt").await, 429, "too_many_runs").await;
        gate.open();
        let last = streams.pop().unwrap();
        for stream in streams {
            assert_eq!(stream.transcript().await.codes(), ["cancelled"]);
        }
        assert_eq!(last.transcript().await.text(), "Hello");
    }
}

mod in_a_fleet {
    use std::sync::Arc;

    use futures_util::future::join_all;
    use sluicegate::chat::{Principal, RunId, SessionId};
    use sluicegate::store::{
        open_relay,
        tally::{Counted, Counting, Place as Seat, Tally},
    };

    use super::*;
    use crate::house::redis::{Redis, shared};
    use crate::stores::Database;

    /// A name that no other story counts under.
    fn somebody() -> String {
        format!("web-{}", RunId::new())
    }

    /// Two gateways that count together at this Redis, for callers with this key.
    async fn two(redis: &str, upstream: &impl Place, key: &Key) -> [Gateway; 2] {
        let start = || {
            let recipe = Gateway::with(upstream).toml(&key.toml);
            recipe.toml(&format!("[run_log]\nurl = \"{redis}\"")).start()
        };
        [start().await, start().await]
    }

    #[tokio::test]
    async fn gateways_admit_together_what_one_would_within_a_tenth() {
        let Some(redis) = shared() else { return };
        let web = Key::of(&somebody(), "requests_per_minute = 30");
        let gateways = two(&redis, &closed_port(), &web).await;
        let mut admitted = 0;
        for at in 0..90 {
            let answer = web.get(&gateways[at % 2], "/agents").await;
            let (limit, left, _) = standing(&answer);
            if answer.status == 200 {
                admitted += 1;
                assert!(left <= limit - admitted, "{left} left after {admitted}");
            } else {
                refused(answer, 429, "rate_limited").await;
            }
        }
        assert!((27..=33).contains(&admitted), "{admitted}");
    }

    #[tokio::test]
    async fn places_are_counted_together_and_free_when_the_end_was_read() {
        let Some(redis) = shared() else { return };
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let web = Key::of(&somebody(), "concurrent_runs = 2");
        let [one, other] = two(&redis, &upstream, &web).await;
        let (first, _) = web.begin(&one, hi()).await;
        let (second, run) = web.begin(&other, hi()).await;
        for gateway in [&one, &other] {
            refused(web.post(gateway, "/chat", hi()).await, 429, "too_many_runs").await;
        }
        web.post(&other, &format!("/runs/{run}/cancel"), json!({}))
            .await
            .expect(200)
            .await;
        assert_eq!(second.transcript().await.codes(), ["cancelled"]);
        let (third, _) = web.begin(&one, hi()).await;
        refused(web.post(&other, "/chat", hi()).await, 429, "too_many_runs").await;
        gate.open();
        for stream in [first, third] {
            assert_eq!(stream.transcript().await.text(), "Hello");
        }
        for gateway in [&one, &other, &one, &other] {
            web.post(gateway, "/chat", hi()).await.expect(200).await.json().await;
        }
        // What could not begin has no place, or has it for a moment only.
        for _ in 0..4 {
            let ask = || web.post(&one, "/chat", json!({"message": "Hi", "session_id": "s"}));
            for answer in join_all([ask(), ask()]).await {
                assert!(matches!(answer.status, 200 | 409 | 429), "{}", answer.status);
                answer.body().await;
            }
        }
        eventually("both places", async || {
            let both = join_all([web.post(&one, "/chat", hi()), web.post(&other, "/chat", hi())]).await;
            both.iter().all(|answer| answer.status == 200).then_some(())
        })
        .await;
    }

    #[tokio::test]
    async fn who_may_have_one_run_may_interrupt_it_from_another_gateway() {
        let (Some(redis), Some(database)) = (shared(), Database::make().await) else {
            return;
        };
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let web = Key::of(&somebody(), "concurrent_runs = 1");
        let start = || {
            let recipe = Gateway::with(&upstream).toml(&web.toml);
            let recipe = recipe.toml(&format!("[run_log]\nurl = \"{redis}\""));
            recipe
                .toml(&format!("[store]\nurl = \"{}\"", database.url("lease=7s")))
                .start()
        };
        let (one, other) = (start().await, start().await);
        let (first, _) = web.begin(&one, json!({"message": "Hi", "session_id": "s"})).await;
        let ask = |session: &str, on_busy: &str| json!({"message": "Hi", "session_id": session, "on_busy": on_busy});
        refused(web.post(&other, "/chat", ask("s", "queue")).await, 429, "too_many_runs").await;
        refused(
            web.post(&other, "/chat", ask("else", "interrupt")).await,
            429,
            "too_many_runs",
        )
        .await;
        let (second, _) = web.begin(&other, ask("s", "interrupt")).await;
        assert_eq!(first.transcript().await.codes(), ["cancelled"]);
        gate.open();
        assert_eq!(second.transcript().await.text(), "Hello");
        web.post(&one, "/chat", ask("s", "reject"))
            .await
            .expect(200)
            .await
            .json()
            .await;
        one.stop().await;
        other.stop().await;
    }

    #[tokio::test]
    async fn the_places_of_a_gateway_that_died_come_free() {
        let Some(redis) = shared() else { return };
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let web = Key::of(&somebody(), "concurrent_runs = 2");
        let log = format!("[run_log]\nurl = \"{redis}\"");
        let recipe = || Gateway::with(&upstream).toml(&web.toml).toml(&log);
        let (mut mortal, other) = (recipe().spawn().await, recipe().start().await);
        let (_gone, _) = web.begin(&mortal, hi()).await;
        let (stays, _) = web.begin(&other, hi()).await;
        refused(web.post(&other, "/chat", hi()).await, 429, "too_many_runs").await;
        mortal.kill9().await;
        let died = Instant::now();
        let free = async {
            loop {
                let answer = web.post(&other, "/chat/sse", hi()).await;
                match answer.status {
                    200 => return answer,
                    _ => drop(refused(answer, 429, "too_many_runs").await),
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let third = within(Duration::from_secs(20), "the dead gateway's place", free).await;
        let took = died.elapsed();
        assert!(took <= Duration::from_secs(17), "{took:?}");
        // The other one's place was kept all the time.
        refused(web.post(&other, "/chat", hi()).await, 429, "too_many_runs").await;
        gate.open();
        for stream in [stays, third] {
            assert_eq!(stream.transcript().await.text(), "Hello");
        }
    }

    /// How many of ten are admitted by each of two gateways, and how long the usual one of the twenty took.
    async fn ten_each(gateways: &[Gateway; 2], key: &Key) -> ([usize; 2], Duration) {
        let (mut admitted, mut took) = ([0, 0], Vec::new());
        for _ in 0..10 {
            for (gateway, count) in gateways.iter().zip(&mut admitted) {
                let asked = Instant::now();
                let answer = key.get(gateway, "/agents").await;
                took.push(asked.elapsed());
                *count += usize::from(answer.status == 200);
            }
        }
        took.sort_unstable();
        (admitted, took[10])
    }

    /// Waits until two gateways admit five together, a key at a time.
    async fn together_again(gateways: &[Gateway; 2], keys: &[Key]) {
        let mut all = Vec::new();
        for key in keys {
            let (admitted, _) = ten_each(gateways, key).await;
            if admitted.iter().sum::<usize>() == 5 {
                return;
            }
            all.push(admitted);
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        panic!("{all:?}");
    }

    #[tokio::test]
    async fn while_redis_is_away_each_gateway_counts_by_itself() {
        let Some(mut redis) = Redis::start().await else { return };
        let fresh = |_| Key::of(&somebody(), "requests_per_minute = 5\nconcurrent_runs = 1");
        let keys: Vec<Key> = (0..19).map(fresh).collect();
        let all = Key {
            key: String::new(),
            toml: keys.iter().map(|key| &*key.toml).collect(),
        };
        let upstream = Upstream::always(openai::answer(&["a"])).await;
        let gateways = two(&redis.url(), &upstream, &all).await;
        together_again(&gateways, &keys[3..8]).await;
        redis.pause().await;
        let (admitted, took) = ten_each(&gateways, &keys[1]).await;
        assert_eq!(admitted, [5, 5]);
        assert!(took < Duration::from_millis(50), "each of them waited: {took:?}");
        let (stream, _) = keys[2].begin(&gateways[0], hi()).await;
        assert_eq!(stream.transcript().await.text(), "a", "runs go on");
        redis.resume().await;
        together_again(&gateways, &keys[8..13]).await;
        redis.kill().await;
        let (admitted, _) = ten_each(&gateways, &keys[2]).await;
        assert_eq!(admitted, [4, 5]);
        redis.restart().await;
        together_again(&gateways, &keys[13..]).await;
    }

    /// The tally itself, with a window that a story can wait for.
    #[tokio::test]
    async fn a_tally_counts_a_window_and_keeps_places_for_their_time() {
        let Some(redis) = shared() else { return };
        let (_, tally): (_, Arc<dyn Tally>) = open_relay(&redis).unwrap().unwrap();
        assert!(
            tally
                .count(&Principal::named("x"), 1, Duration::from_secs(1))
                .await
                .is_err(),
            "not ready"
        );
        tally.ready().await.unwrap();
        let (who, window) = (Principal::named(&somebody()), Duration::from_secs(2));
        let begun = Instant::now();
        for left in [2, 1, 0] {
            match tally.count(&who, 3, window).await.unwrap() {
                Counted::In { remaining, reset } => assert!(remaining == left && reset <= window),
                out => panic!("{out:?}"),
            }
        }
        for _ in 0..5 {
            let out = tally.count(&who, 3, window).await.unwrap();
            let Counted::Out(wait) = out else { panic!("{out:?}") };
            assert!(wait <= window && begun.elapsed() + wait >= window, "{wait:?}");
        }
        assert!(matches!(
            tally.count(&who, 4, window).await.unwrap(),
            Counted::In { remaining: 0, .. }
        ));
        tokio::time::sleep_until((begun + window * 2).into()).await;
        assert!(matches!(
            tally.count(&who, 3, window).await.unwrap(),
            Counted::In { remaining: 2, .. }
        ));

        let keep = Duration::from_secs(2);
        let seat = |session: &str| Seat {
            principal: who.clone(),
            run: RunId::new(),
            session: Some(session.parse::<SessionId>().unwrap()),
        };
        let (first, second) = (seat("a"), seat("b"));
        assert!(tally.enter(&first, 2, Counting::All, keep).await.unwrap());
        assert!(tally.enter(&second, 2, Counting::All, keep).await.unwrap());
        for (session, counting) in [
            ("c", Counting::All),
            ("a", Counting::All),
            ("c", Counting::OtherSessions),
        ] {
            assert!(
                !tally.enter(&seat(session), 2, counting, keep).await.unwrap(),
                "{session}"
            );
        }
        let instead = seat("a");
        assert!(tally.enter(&instead, 2, Counting::OtherSessions, keep).await.unwrap());
        tally.leave(&[first, instead]).await.unwrap();
        let third = seat("c");
        assert!(tally.enter(&third, 2, Counting::All, keep).await.unwrap());
        // One is kept, the other one not.
        for _ in 0..6 {
            tally.stay(std::slice::from_ref(&second), keep).await.unwrap();
            tokio::time::sleep(keep / 4).await;
        }
        assert!(tally.enter(&seat("d"), 2, Counting::All, keep).await.unwrap());
        assert!(!tally.enter(&seat("e"), 2, Counting::All, keep).await.unwrap());
    }

    /// What was written by a clock that has been set back since is of a time that comes only in an hour.
    #[cfg(feature = "redis")]
    #[tokio::test]
    async fn a_clock_that_is_set_back_keeps_nobody_out() {
        let Some(redis) = shared() else { return };
        let (_, tally): (_, Arc<dyn Tally>) = open_relay(&redis).unwrap().unwrap();
        tally.ready().await.unwrap();
        let (who, minute, keep) = (
            Principal::named(&somebody()),
            Duration::from_secs(60),
            Duration::from_secs(15),
        );
        let whole = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, who.as_str().as_bytes());
        let print: String = whole.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let client = ::redis::Client::open(redis).unwrap();
        let mut server = client.get_multiplexed_async_connection().await.unwrap();
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let later = now + Duration::from_secs(3600);
        for command in [
            ::redis::cmd("RPUSH")
                .arg(format!("sluicegate:asked:{print}"))
                .arg(later.as_micros().to_string())
                .arg(later.as_micros().to_string()),
            ::redis::cmd("ZADD")
                .arg(format!("sluicegate:places:{print}"))
                .arg((later + keep).as_millis().to_string())
                .arg("a gateway's that died/"),
        ] {
            command.exec_async(&mut server).await.unwrap();
        }
        for left in [1, 0] {
            let counted = tally.count(&who, 2, minute).await.unwrap();
            assert!(
                matches!(counted, Counted::In { remaining, reset } if remaining == left && reset <= minute),
                "{counted:?}"
            );
        }
        assert!(matches!(tally.count(&who, 2, minute).await.unwrap(), Counted::Out(_)));
        let seat = || Seat {
            principal: who.clone(),
            run: RunId::new(),
            session: None,
        };
        assert!(tally.enter(&seat(), 1, Counting::All, keep).await.unwrap());
        assert!(!tally.enter(&seat(), 1, Counting::All, keep).await.unwrap());
    }
}

mod overload {
    use futures_util::future::join_all;

    use super::*;

    /// B097, P15: who is refused hears it at once, before it has sent its question; who is served notices nothing.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_full_gateway_refuses_at_once_and_its_fifty_streams_go_on() {
        let gate = Gate::new("the end");
        let upstream = held(&gate).await;
        let gateway = Gateway::with(&upstream).toml("[limits]\nmax_runs = 50").start().await;
        let keyed = Call::post("/chat/sse?key=once").json(&hi());
        let first = keyed.clone().to(&gateway).await.expect(200).await;
        let run = first.header("x-run-id").to_owned();
        let mut streams = join_all((0..49).map(|_| post(&gateway, "/chat/sse", hi()))).await;
        streams.push(first);
        for stream in &mut streams {
            assert_eq!(stream.status, 200);
            stream.next_event_named("token").await;
        }
        let mut took = Vec::new();
        for at in 0..41 {
            let mut connection = Connection::open(&gateway).await;
            // 8 MiB that never come.
            let path = ["/chat", "/chat/stream", "/chat/sse", "/runs"][at % 4];
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 8388608\r\n\r\n{{"
            );
            let asked = Instant::now();
            connection.send_raw(head).await;
            refused(connection.answer("a question too many").await, 503, "overloaded").await;
            took.push(asked.elapsed());
        }
        took.sort_unstable();
        assert!(
            took[20] <= Duration::from_millis(50),
            "half of them took longer than {:?}",
            took[20]
        );
        refused(get(&gateway, "/chat/sse?message=Hi").await, 503, "overloaded").await;
        // What needs no room is served: a repetition, somebody who comes back, a look.
        let again = keyed.to(&gateway).await.expect(200).await;
        let events = Call::get(&format!("/runs/{run}/events"));
        let back = events
            .header("Last-Event-ID", &format!("{run}:0"))
            .to(&gateway)
            .await
            .expect(200)
            .await;
        get(&gateway, &format!("/runs/{run}")).await.expect(200).await;
        gate.open();
        for stream in streams.into_iter().chain([again, back]) {
            assert_eq!(stream.transcript().await.text(), "Hello");
        }
        assert_eq!(upstream.calls(), 50);
    }

    #[tokio::test]
    async fn a_connection_too_many_is_told_so_and_the_next_one_is_served() {
        let gateway = Gateway::with(&closed_port())
            .toml("[server]\nmax_connections = 2")
            .toml(meters::WATCHED)
            .start()
            .await;
        let open = || async {
            let answer = Connection::open(&gateway).await.call(Call::get("/healthz")).await;
            answer.expect(200).await.body_and_connection().await.1
        };
        let (first, second) = (open().await, open().await);
        for _ in 0..100 {
            let answer = Connection::open(&gateway).await.call(Call::get("/agents")).await;
            assert_eq!(answer.header("connection"), "close");
            refused(answer, 503, "overloaded").await;
        }
        let counted = Meters::of(&gateway.admin()).await;
        assert_eq!(counted.get("shed_total{reason=\"max_connections\"}"), 100.0);
        // Who has a place is served.
        first.call(Call::get("/healthz")).await.expect(200).await;
        eventually("a place", async || {
            let answer = Connection::open(&gateway).await.call(Call::get("/healthz")).await;
            (answer.status == 200).then_some(())
        })
        .await;
        second.hang_up();
    }

    #[tokio::test]
    async fn all_bodies_together_have_a_bound_and_small_ones_need_no_room() {
        let upstream = Upstream::always(openai::answer(&["a"])).await;
        let gateway = Gateway::with(&upstream)
            .toml("[server]\nmax_body = \"1MiB\"\n[limits]\nbody_memory = \"1MiB\"")
            .toml(meters::WATCHED)
            .start()
            .await;
        let half = "x".repeat(600_000);
        let head = |length: usize| {
            format!(
                "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
            )
        };
        let large = json!({"message": half}).to_string();
        let mut slow = Connection::open(&gateway).await;
        slow.send_raw(format!("{}{}", head(large.len()), &large[..large.len() - 10]))
            .await;
        let crowded = eventually("the slow one's body to be there", async || {
            let answer = Call::post("/chat").json(&json!({"message": half})).to(&gateway).await;
            Some(answer).filter(|answer| answer.status == 503)
        });
        refused(crowded.await, 503, "overloaded").await;
        let counted = Meters::of(&gateway.admin()).await;
        assert_eq!(counted.get("shed_total{reason=\"body_memory\"}"), 1.0);
        // Neither a small question nor a body that is announced and does not come is in anybody's way.
        let mut idle = Connection::open(&gateway).await;
        idle.send_raw(head(1 << 20)).await;
        assert_eq!(
            post(&gateway, "/chat", hi()).await.expect(200).await.json().await["content"],
            "a"
        );
        slow.send_raw(&large[large.len() - 10..]).await;
        assert_eq!(
            slow.answer("the slow one").await.expect(422).await.problem().await,
            "message_too_long"
        );
        let answer = Call::post("/chat").json(&json!({"message": half})).to(&gateway).await;
        assert_eq!(answer.expect(422).await.problem().await, "message_too_long");
    }

    #[tokio::test]
    async fn one_callers_slow_bodies_leave_room_for_the_others() {
        let upstream = Upstream::always(openai::answer(&["a"])).await;
        let (slow, other) = (Key::of("slow", ""), Key::of("other", ""));
        let gateway = Gateway::with(&upstream)
            .toml("[server]\nmax_body = \"256KiB\"\n[limits]\nbody_memory = \"1MiB\"")
            .toml(&slow.toml)
            .toml(&other.toml)
            .start()
            .await;
        let body = json!({"message": "x".repeat(200 << 10)}).to_string();
        // More than there is room for, and none of them comes to its end.
        let mut held = Vec::new();
        for _ in 0..8 {
            let mut connection = Connection::open(&gateway).await;
            let head = format!(
                "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Api-Key: {}\r\n\
                 Content-Length: {}\r\n\r\n",
                slow.key,
                body.len()
            );
            connection.send_raw(format!("{head}{}", &body[..body.len() - 10])).await;
            held.push(connection);
        }
        let ask = |key: &Key| {
            key.on(Call::post("/chat")
                .body(body.clone())
                .header("Content-Type", "application/json"))
        };
        let crowded = eventually("the slow ones' bodies to be there", async || {
            let answer = ask(&slow).to(&gateway).await;
            Some(answer).filter(|answer| answer.status == 503)
        });
        refused(crowded.await, 503, "overloaded").await;
        for _ in 0..3 {
            ask(&other).to(&gateway).await.expect(200).await.json().await;
        }
        drop(held);
        eventually("room for the slow one again", async || {
            let answer = ask(&slow).to(&gateway).await;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// Of a body that comes again only one word is looked at: all of it as values would be twenty times as much.
    #[tokio::test]
    async fn a_body_that_comes_again_takes_no_more_room_than_its_bytes() {
        let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
        let program = Gateway::with(&upstream).spawn().await;
        let peak = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.expect("a kernel that tells").trim().trim_end_matches(" kB");
            kib.parse::<u64>().unwrap() >> 10
        };
        let first = post(&program, "/chat", hi()).await.expect(200).await.json().await;
        let before = peak();
        let body = format!(r#"{{"x":[{}1],"format":"json"}}"#, "1,".repeat(4_000_000));
        let again = Call::post("/chat/sse").body(body);
        let id = format!("{}:0", first["run_id"].as_str().unwrap());
        let answer = again.header("Last-Event-ID", &id).to(&program).await.expect(200).await;
        let mut answer = answer.read_as(Reader::after(&id).json_tokens());
        let token = answer.next_event_named("token").await;
        assert!(token.data.starts_with('{'), "{token:?}");
        let grown = peak() - before;
        assert!(grown < 64, "8 MiB took {grown} MiB");
    }

    /// Who is refused before its body was read is still sending it.
    #[tokio::test]
    async fn a_refusal_is_read_by_who_sends_all_before_it_reads() {
        let web = Key::of("web", "requests_per_minute = 1");
        let gateway = Gateway::with(&closed_port()).toml(&web.toml).start().await;
        let long = json!({"message": "x".repeat(1 << 20)});
        web.get(&gateway, "/agents").await.expect(200).await;
        for _ in 0..20 {
            let stranger = Call::post("/chat").json(&long).to(&gateway).await;
            assert_eq!(stranger.expect(401).await.problem().await, "auth_missing");
            refused(web.post(&gateway, "/chat", long.clone()).await, 429, "rate_limited").await;
            let nowhere = Call::post("/nowhere").json(&long).to(&gateway).await;
            assert_eq!(nowhere.expect(404).await.problem().await, "not_found");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ten_thousand_wrong_keys_do_not_disturb_a_stream() {
        let word = Script::sse()
            .role()
            .repeat(openai::text("a"), Duration::from_millis(20), 100_000);
        let upstream = Upstream::always(word).await;
        let web = Key::of("web", "");
        let gateway = Gateway::with(&upstream)
            .toml(&web.toml)
            .toml("[runs]\ndeadline = \"120s\"")
            .start()
            .await;
        let (mut stream, _) = web.begin(&gateway, hi()).await;
        let flood = join_all((0..8).map(async |flood| {
            let mut connection = Connection::open(&gateway).await;
            for at in 0..1250 {
                let wrong = format!("Bearer sluice_{flood}_{at}");
                let answer = connection
                    .call(Call::get("/sessions").header("Authorization", &wrong))
                    .await;
                assert_eq!(answer.status, 401);
                connection = answer.body_and_connection().await.1;
            }
        }));
        let mut flood = std::pin::pin!(flood);
        let (mut words, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
        loop {
            tokio::select! {
                event = stream.next_event_named("token") => {
                    longest = longest.max(last.elapsed());
                    (last, words) = (Instant::now(), words + event.data.len());
                }
                _ = &mut flood => break,
            }
        }
        assert!(words > 10, "{words} words while the flood lasted");
        assert!(longest < Duration::from_secs(1), "{longest:?} without a word");
    }
}

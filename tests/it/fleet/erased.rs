//! Sessions that are erased at one gateway while others have logs, keys and copies of their runs.
use super::*;

/// A run of A's that ended, under a key, and is read at C, too.
async fn ended_run(fleet: &Fleet) -> String {
    let ask = Call::post("/chat/sse").json(&hi("s")).header("Idempotency-Key", "k");
    let own = ask.to(&fleet[0]).await.expect(200).await;
    let run = own.header("x-run-id").to_owned();
    own.transcript().await.done();
    if let Some(c) = fleet.get(2) {
        followed(events(&run), c).await.transcript().await.done();
    }
    run
}

/// Nobody knows the run, and its key means the next one.
async fn is_forgotten(fleet: &[Process], run: &str) {
    for place in fleet {
        assert_eq!(get(place, &format!("/runs/{run}")).await.status, 404);
        assert_eq!(events(run).to(place).await.status, 404);
        assert_eq!(after(run, 0).to(place).await.status, 404);
        assert_eq!(cancel(place, run).await.status, 404);
    }
    let ask = Call::post("/chat").json(&hi("s")).header("Idempotency-Key", "k");
    let again = ask.to(&fleet[0]).await.expect(200).await;
    assert_ne!(again.header("x-run-id"), run);
    again.body().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erased_session_is_erased_everywhere_before_that_is_answered() {
    let upstream = Upstream::always(openai::answer(&["one ", "two"])).await;
    let Some(redis) = Redis::start().await else { return };
    let Some(fleet) = Fleet::on(&redis.url(), LEASE, 3, &upstream, &[]).await else {
        return;
    };
    let run = ended_run(&fleet).await;
    let key = format!("sluicegate:log:{run}");
    // Five minutes, as the events are kept for anybody, from the mirroring of the end on.
    eventually("the time that an ended run is kept", async || {
        let left = redis.command(&["PTTL", &key]).await;
        let left: i64 = left.trim_start_matches(':').parse().expect("milliseconds");
        (1..=300_000).contains(&left).then_some(())
    })
    .await;
    assert_eq!(delete(&fleet[1], "/sessions/s").await.status, 204);
    assert_eq!(redis.command(&["EXISTS", &key]).await, ":0");
    is_forgotten(&fleet, &run).await;
    assert_eq!(upstream.calls(), 2);
    // What is begun in a new session of that name stays.
    assert_eq!(said(&fleet[1], "s").await, ["Hi", "one two"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erasing_is_not_confirmed_while_a_gateway_that_lives_does_not_answer() {
    let upstream = Upstream::always(openai::answer(&["one ", "two"])).await;
    // A lease that does not end before the erasing has given up on its confirmation.
    let Some(redis) = shared() else { return };
    let Some(fleet) = Fleet::on(&redis, "lease=5s", 2, &upstream, &[]).await else {
        return;
    };
    let [a, b] = &fleet[..] else { unreachable!() };
    let run = ended_run(&fleet).await;
    signal("STOP", a.pid()).await;
    let began = Instant::now();
    let mut answers = Vec::new();
    // Its lease ends meanwhile.
    eventually("the erasing to be confirmed", async || {
        let answer = delete(b, "/sessions/s").await;
        answers.push(answer.status);
        if answer.status == 503 {
            assert_eq!(answer.header("retry-after"), "1");
            assert_eq!(answer.problem().await, "store_unavailable");
        }
        (answers.last() == Some(&204)).then_some(())
    })
    .await;
    assert_eq!(answers[0], 503, "{answers:?} {:?}", began.elapsed());
    // When it comes back it has nothing of what was erased.
    signal("CONT", a.pid()).await;
    eventually("the run to be forgotten", async || {
        (get(a, &format!("/runs/{run}")).await.status == 404).then_some(())
    })
    .await;
    is_forgotten(&fleet, &run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_died_is_not_waited_for() {
    let upstream = Upstream::always(openai::answer(&["one ", "two"])).await;
    let Some(mut fleet) = Fleet::of(2, &upstream, &[]).await else {
        return;
    };
    let run = ended_run(&fleet).await;
    fleet.gateways[0].kill9().await;
    tokio::time::sleep(Duration::from_secs(4)).await; // its lease ends
    assert_eq!(delete(&fleet[1], "/sessions/s").await.status, 204);
    is_forgotten(&fleet[1..], &run).await;
}

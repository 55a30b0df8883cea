//! Redis that does not answer, dies and comes back.
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
    let mut took = Vec::new();
    for number in 0..5 {
        let began = Instant::now();
        let answer = post(a, "/chat/sse", hi("alone"))
            .await
            .expect(200)
            .await
            .transcript()
            .await;
        answer.done();
        took.push(began.elapsed());
        assert_eq!(said(b, "alone").await.len(), turns + 2 * (number + 1));
    }
    took.sort_unstable();
    assert!(took[2] < Duration::from_millis(500), "most of them waited: {took:?}");
    let admin = a.admin().await;
    eventually("what waits to be told to be counted", async || {
        (Meters::of(&admin).await.get("event_log_lag_seconds") > 0.0).then_some(())
    })
    .await;
    let calls = upstream.calls();
    let began = Instant::now();
    let resumed = after(run, 1).to(b).await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
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
    // At its own gateway it is all there.
    let mut own = followed(after(run, 1), a).await;
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
    let mut there = followed(events(&run), b).await;
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
    let Some(fleet) = Fleet::on(&redis.url(), LEASE, 2, &upstream, &[]).await else {
        return;
    };
    let [a, b] = &fleet[..] else { unreachable!() };
    post(a, "/chat", hi("alone")).await.expect(200).await;
    let (own, run) = begin(a, json!({"message": "hold", "session_id": "s"})).await;
    let mut there = followed(events(&run), b).await;
    while there.next_event().await.seq < 2 {}
    redis.kill().await;
    goes_on_alone(&fleet, &run, &upstream).await;
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
        followed(events(&run), a).await.transcript().await.text(),
        "one two three"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_are_stopped_from_elsewhere_without_it() {
    let gate = Gate::new("never");
    let upstream = upstream(&gate).await;
    let Some(mut redis) = Redis::start().await else { return };
    let Some(fleet) = Fleet::on(&redis.url(), LEASE, 2, &upstream, &[]).await else {
        return;
    };
    let [a, b] = &fleet[..] else { unreachable!() };
    let hold = |session: &str| json!({"message": "hold", "session_id": session});
    let (cancelled, first) = begin(a, hold("cancel")).await;
    let (interrupted, _) = begin(a, hold("interrupt")).await;
    let (erased, third) = begin(a, hold("erase")).await;
    redis.kill().await;
    cancel(b, &first).await.expect(200).await;
    assert_eq!(cancelled.transcript().await.codes(), ["cancelled"]);
    let next = json!({"message": "at once", "session_id": "interrupt", "on_busy": "interrupt"});
    let next = post(b, "/chat", next).await.expect(200).await.json().await;
    assert_eq!(next["content"], "at once");
    assert_eq!(interrupted.transcript().await.codes(), ["cancelled"]);
    // The relay may still have what the run said, so the erasing is not confirmed before the relay is there.
    let refused = delete(b, "/sessions/erase").await.expect(503).await;
    assert_eq!(refused.problem().await, "store_unavailable");
    assert_eq!(erased.transcript().await.codes(), ["cancelled"]);
    for place in [a, b] {
        assert_eq!(get(place, "/sessions/erase").await.status, 404);
        assert_eq!(get(place, &format!("/runs/{third}")).await.status, 404);
    }
    redis.restart().await;
    eventually("the erasing to be confirmed", async || {
        (delete(b, "/sessions/erase").await.status == 204).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_without_a_relay_stop_runs_and_erase_sessions_of_each_other() {
    let gate = Gate::new("never");
    let upstream = upstream(&gate).await;
    let Some(fleet) = Fleet::on("memory:", LEASE, 2, &upstream, &[]).await else {
        return;
    };
    let [a, b] = &fleet[..] else { unreachable!() };
    let (own, run) = begin(a, json!({"message": "hold"})).await;
    cancel(b, &run).await.expect(200).await;
    assert_eq!(own.transcript().await.codes(), ["cancelled"]);
    let answer = post(a, "/chat", hi("s")).await.expect(200).await;
    let run = answer.header("x-run-id").to_owned();
    assert_eq!(delete(b, "/sessions/s").await.status, 204);
    assert_eq!(events(&run).to(a).await.status, 404);
    assert_eq!(get(a, &format!("/runs/{run}")).await.status, 404);
}

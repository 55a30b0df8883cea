//! Gateways that die, and whom their readers ask then.
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
            let told = followed(after(&run, seq), place).await.transcript().await;
            assert_eq!(
                (told.codes(), told.terminal().seq),
                (vec!["interrupted".to_owned()], 3),
                "after {seq}"
            );
        }
        assert_eq!(after(&run, 3).to(place).await.status, 204);
        let whole = followed(events(&run), place).await.transcript().await;
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
    assert!(took < Duration::from_secs(9), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_given_up_within_ten_seconds() {
    prompt(Duration::from_secs(10), async || {
        its_readers_are_told("").await.unwrap_or_default()
    })
    .await;
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
        let mut there = followed(events(run), &fleet[1]).await;
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
    let told = followed(after(&hung, 2), there).await.transcript().await;
    assert_eq!((told.codes(), told.terminal().seq), (vec!["interrupted".to_owned()], 3));
    assert_eq!(after(&hung, 3).to(there).await.status, 204);
    let told = followed(events(&hung), there).await;
    let told = told.read_as(Reader::anywhere()).transcript().await;
    // What was on its way to Redis when the gateway died may have arrived after all.
    assert_eq!(told.codes(), ["interrupted"]);
    let kinds = told.kinds();
    let arrived = kinds.len() - 2;
    let expected = [&["start"][..], &["token"; 2][..arrived.min(2)], &["error"]].concat();
    assert_eq!(kinds, expected);
    // What was committed is told with its number, to whoever lacks nothing else.
    let told = followed(after(&ended, 2), there).await.transcript().await;
    assert_eq!(
        (told.done()["response"]["content"].as_str(), told.terminal().seq),
        (Some("one two"), 3)
    );
    assert_eq!(after(&ended, 3).to(there).await.status, 204);
    let whole = eventually("what was said in the end to come, or to be known as lost", async || {
        let whole = events(&ended).to(there).await;
        if whole.status != 503 {
            return Some(whole);
        }
        assert_eq!(whole.problem().await, "store_unavailable"); // it may be on its way: this gateway cannot know
        None
    });
    let whole = whole.await;
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
    let upstream = who_finishes_or_hangs(&gate).await;
    let settings = [("RUNS__DRAIN", "3s")];
    let Some(mut fleet) = Fleet::of(2, &upstream, &settings).await else {
        return;
    };
    let ask = |message: &str| json!({"message": message, "session_id": message});
    let (finishes, first) = begin(&fleet[0], ask("finish")).await;
    let (hangs, second) = begin(&fleet[0], ask("hang")).await;
    let there = [
        followed(events(&first), &fleet[1]).await,
        followed(events(&second), &fleet[1]).await,
    ];
    let told = Instant::now();
    fleet[0].terminate().await;
    fleet[0].logged("stopping").await;
    gate.open();
    let [finished, hung] = there;
    let (finished, hung) = (finished.transcript().await, hung.transcript().await);
    assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    assert_eq!(finished.done()["response"]["content"], "one two three");
    assert_eq!(finished.last_id(), finishes.transcript().await.last_id());
    assert_eq!(hung.codes(), ["shutting_down"]);
    assert_eq!(hung.last_id(), hangs.transcript().await.last_id());
    let exit = fleet.gateways[0].wait_exit(Duration::from_secs(5)).await;
    assert_eq!(exit.code(), Some(0), "{}", fleet[0].log());
    // And whoever comes late.
    let late = followed(after(&second, 0), &fleet[1]).await.transcript().await;
    assert_eq!((late.codes(), late.last_id()), (hung.codes(), hung.last_id()));
    assert_eq!(glance(&fleet[1], &second).await["status"], "interrupted");
    assert_eq!(said(&fleet[1], "finish").await, ["finish", "one two three"]);
    let next = post(&fleet[1], "/chat/sse", hi("hang")).await.expect(200).await;
    next.hang_up(); // the session is free
}

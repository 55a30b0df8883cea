//! Runs of another gateway, followed and resumed.
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
    // What was said to it is some moments later said by it.
    let all = BEFORE.len() as u64;
    eventually("the first half", async || {
        (after(&run, all).to(a).await.status == 200).then_some(())
    })
    .await;
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
    let whole = followed(events(&run), b).await.transcript().await;
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
async fn who_follows_elsewhere_as_soon_as_a_run_has_ended_gets_all_of_it() {
    let upstream = Upstream::always(openai::answer(&["one", " two", " three"])).await;
    let Some(fleet) = Fleet::of(2, &upstream, &[]).await else {
        return;
    };
    let [a, b] = &fleet[..] else { unreachable!() };
    for turn in 0..10 {
        // What was written down is known everywhere at once; what is mirrored, some moments later.
        let answer = post(a, "/chat", hi(&format!("s{turn}"))).await.expect(200).await;
        let run = answer.header("x-run-id").to_owned();
        let call = match turn % 2 {
            0 => events(&run),
            _ => after(&run, 0),
        };
        let told = call.to(b).await.expect(200).await.transcript().await;
        assert_eq!(told.text(), "one two three", "{turn}");
        answer.body().await;
    }
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
    let (told, ()) = tokio::join!(async { followed(after(&run, 3), b).await.transcript().await }, async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        gate.open();
    });
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

//! Gateways whose clocks differ: what they agree on goes by the database's.
use super::*;

/// Two gateways, the second of which has its clock off by this much.
async fn fleet(offset: &str, upstream: &Upstream) -> Option<Fleet> {
    let library = crate::host_faults::faketime()?;
    let mut fleet = Fleet::of(1, upstream, &[]).await?;
    let env: Vec<_> = fleet.env.iter().map(|(name, value)| (&**name, &**value)).collect();
    let library = library.to_str().expect("a plain path");
    let faked = [
        ("LD_PRELOAD", library),
        ("FAKETIME", offset),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    let env: Vec<_> = env.into_iter().chain(faked).collect();
    let other = Process::start(&env, &[]).await;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", other.pid())).expect("its memory");
    assert!(maps.contains("faketime"), "its clock is the machine's");
    fleet.gateways.push(other);
    Some(fleet)
}

/// Answers `re NAME` to the question `NAME`; `hold` says a word first, and stands at the gate.
async fn upstream(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::answering(move |request| match question(request).as_str() {
        held if held.starts_with("hold") => Script::sse().role().say("partial").wait(&gate).complete(),
        other => openai::answer(&["re ", other]),
    })
    .await
}

async fn ask(gateway: &impl Place, session: &str, message: &str, on_busy: &str) -> Response {
    let body = json!({"message": message, "session_id": session, "on_busy": on_busy});
    let mut stream = post(gateway, "/chat/sse", body).await.expect(200).await;
    assert_eq!(stream.next_event().await.event, "start");
    stream
}

/// An interrupt stops what began elsewhere, and whoever queues does so in the order of arrival.
async fn they_wait_for_each_other(here: &Process, there: &Process, session: &str) {
    let mut held = ask(here, session, "hold", "reject").await;
    held.next_event_named("token").await;
    let first = ask(here, session, "q1", "queue").await;
    let second = ask(there, session, "q2", "queue").await;
    let third = ask(here, session, "q3", "queue").await;
    let stops = ask(there, session, "stop", "interrupt").await;
    assert_eq!(held.transcript().await.codes(), ["cancelled"]);
    for stream in [stops, first, second, third] {
        stream.transcript().await.done();
    }
    let turns = [
        "hold", "partial", "stop", "re stop", "q1", "re q1", "q2", "re q2", "q3", "re q3",
    ];
    assert_eq!(said(here, session).await, turns);
}

/// What one gateway ends or issues is as fresh at the other one.
async fn they_agree_on_what_is_fresh(here: &Process, there: &Process, session: &str) {
    let keyed = || {
        let call = Call::post("/chat").json(&json!({"message": "Hi", "session_id": session}));
        call.header("Idempotency-Key", session)
    };
    let answer = keyed().to(here).await.expect(200).await.json().await;
    let run = answer["run_id"].as_str().expect("a run");
    let again = keyed().to(there).await.expect(200).await.json().await;
    assert_eq!(again["run_id"], answer["run_id"]);
    let replayed = followed(after(run, 0), there).await.transcript().await;
    assert_eq!(replayed.done()["response"]["content"], "re Hi");
    let rows = [glance(here, run).await, glance(there, run).await];
    let times = |row: &Value| {
        let time = |member: &str| -> jiff::Timestamp { row[member].as_str().expect("a time").parse().expect("a time") };
        (time("created_at"), time("ended_at"))
    };
    assert_eq!(times(&rows[0]), times(&rows[1]));
    let age = jiff::Timestamp::now().duration_since(times(&rows[0]).1).abs();
    assert!(
        age < jiff::SignedDuration::from_secs(20),
        "{age:?}: it goes by the database's clock, which is the machine's"
    );
    let ticket = Call::post("/tickets").to(here).await.expect(201).await.json().await;
    assert_eq!(ticket["expires_in"], 60);
    let ticket = ticket["ticket"].as_str().expect("a ticket").to_owned();
    let start = Call::get(&format!("/chat/sse?message=Hi&ticket={ticket}"));
    assert_eq!(
        start.to(there).await.expect(200).await.transcript().await.text(),
        "re Hi"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_whose_clocks_differ_behave_as_one() {
    for offset in ["+0.3s", "-2s", "+600s", "-600s"] {
        let upstream = upstream(&Gate::new("never")).await;
        let Some(fleet) = fleet(offset, &upstream).await else {
            return;
        };
        let [a, b] = &fleet[..] else { unreachable!() };
        for (number, (here, there)) in [(a, b), (b, a)].into_iter().enumerate() {
            they_wait_for_each_other(here, there, &format!("{offset}.{number}").replace('+', "")).await;
            they_agree_on_what_is_fresh(here, there, &format!("k{number}")).await;
        }
    }
}

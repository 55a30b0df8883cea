//! Turns of one session that wait at several gateways.
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
            began.elapsed() < Duration::from_secs(5),
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

//! A gateway that stands still for longer than its lease, and goes on then.
use super::*;

/// Two words, and then the third at the gate; a tool at the question "tool", once the gate is open.
async fn upstream(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    let call = openai::tool_delta(0, Some("c1"), Some("calculator"), r#"{"expression":"1+1"}"#);
    Upstream::answering(move |request| {
        let messages = request.json["messages"].as_array().expect("messages");
        let begun = Script::sse().role().say("one ").say("two ");
        match request.number {
            0 => begun
                .wait(&gate)
                .say("three")
                .send(call.clone())
                .finish("tool_calls")
                .done(),
            _ => openai::answer(&["again ", &messages.len().to_string()]),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stood_still_says_and_does_nothing_more_of_its_runs() {
    let gate = Gate::new("it goes on");
    let upstream = upstream(&gate).await;
    let settings = [("AGENTS__ASSISTANT__TOOLS", "calculator")];
    let Some(fleet) = Fleet::of(2, &upstream, &settings).await else {
        return;
    };
    let [a, b] = &fleet[..] else { unreachable!() };
    let ask = || Call::post("/chat/sse").json(&hi("s")).header("Idempotency-Key", "k");
    let mut own = ask().to(a).await.expect(200).await;
    let run = own.header("x-run-id").to_owned();
    while own.next_event().await.seq < 2 {}
    let mut there = followed(events(&run), b).await.patience(Duration::from_secs(15));
    while there.next_event().await.seq < 2 {}
    let waits = json!({"message": "wait", "session_id": "s", "on_busy": "queue"});
    let mut waits = post(a, "/chat/sse", waits).await.expect(200).await;
    assert_eq!(waits.next_event().await.event, "start");
    signal("STOP", a.pid()).await;
    let told = there.transcript().await;
    assert_eq!((told.codes(), told.terminal().seq), (vec!["interrupted".to_owned()], 3));
    // The session is free, and the key means another run.
    let again = ask().to(b).await.expect(200).await.transcript().await;
    assert_eq!(again.text(), "again 1");
    // What its model says now waits in its socket.
    gate.open();
    tokio::time::sleep(Duration::from_millis(300)).await;
    signal("CONT", a.pid()).await;
    let own = own.transcript().await;
    assert_eq!((own.codes(), own.terminal().seq), (vec!["interrupted".to_owned()], 3));
    assert_eq!(waits.transcript().await.codes(), ["interrupted"]);
    // Both gateways say the same of it, and of the session.
    for place in [a, b] {
        let row = glance(place, &run).await;
        assert_eq!((&row["status"], &row["last_seq"]), (&json!("interrupted"), &json!(3)));
        let whole = followed(events(&run), place).await.transcript().await;
        assert_eq!(whole.kinds(), ["start", "token", "token", "error"]);
        assert_eq!(after(&run, 3).to(place).await.status, 204);
        assert_eq!(
            cancel(place, &run).await.expect(409).await.problem().await,
            "run_finished"
        );
        let answer = Call::post("/chat").json(&hi("s")).header("Idempotency-Key", "k");
        let answer = answer.to(place).await.expect(200).await.json().await;
        assert_eq!(answer["run_id"], json!(again.events[0].run_id));
    }
    let next = post(a, "/chat", hi("s")).await.expect(200).await.json().await;
    assert_eq!(next["content"], "again 3");
    assert_eq!(said(b, "s").await, ["Hi", "again 1", "Hi", "again 3"]);
    assert_eq!(
        upstream.calls(),
        3,
        "no second round, and nobody was asked for who waited"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_stop_costs_nothing() {
    let gate = Gate::new("it goes on");
    let upstream = held(&gate).await;
    let Some(fleet) = Fleet::of(2, &upstream, &[]).await else {
        return;
    };
    let (own, run) = begin(&fleet[0], hi("s")).await;
    let there = followed(events(&run), &fleet[1]).await;
    signal("STOP", fleet[0].pid()).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    signal("CONT", fleet[0].pid()).await;
    gate.open();
    assert_eq!(own.transcript().await.text(), "one two three");
    assert_eq!(there.transcript().await.text(), "one two three");
}

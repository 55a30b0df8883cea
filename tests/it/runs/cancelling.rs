//! Cancelling: what its readers are told, what is kept, and how soon the upstream knows.
use super::*;

#[tokio::test]
async fn a_cancelled_run_says_so_keeps_what_was_said_and_closes_the_upstream() {
    prompt(PROMPT, cancel_once).await;
}

async fn cancel_once() -> Duration {
    let gate = Gate::new("never");
    let upstream = Upstream::start([
        Script::sse().role().say("Hel").say("lo").wait(&gate),
        openai::answer(&["Yes"]),
    ])
    .await;
    let gateway = Gateway::with(&upstream).start().await;
    let mut stream = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "s"})).await;
    let run = stream.header("x-run-id").to_owned();
    stream.next_event_named("token").await;
    stream.next_event_named("token").await;
    let path = format!("/runs/{run}/cancel");
    let now = Instant::now();
    let cancelled = post(&gateway, &path, json!({"nobody": "reads this"}))
        .await
        .expect(200)
        .await
        .json()
        .await;
    let took = upstream.closed().await - now;
    assert_eq!(
        (&cancelled["run_id"], &cancelled["status"]),
        (&json!(run), &json!("cancelled")),
        "{cancelled}"
    );
    let stream = stream.transcript().await;
    assert_eq!(
        (stream.text().as_str(), stream.codes()),
        ("Hello", vec!["cancelled".to_owned()])
    );
    assert_eq!(stream.terminal().json()["error"]["status"], 499);

    let again = Call::post(&path).to(&gateway).await.expect(200).await.json().await;
    assert_eq!(again["status"], "cancelled");
    let kept = glance(&gateway, &run).await;
    assert_eq!(kept["response"]["content"], "Hello");
    assert_eq!(kept["response"]["finish_reason"], Value::Null, "it did not finish");
    assert_eq!(kept["error"]["code"], "cancelled");
    assert_eq!(
        kept["usage"]["estimated"], true,
        "the provider never said what it cost: {kept}"
    );
    assert!(kept["usage"]["output_tokens"].as_u64() > Some(0), "{kept}");
    let kept = |role: &str, content: &str, status: &str| (role.to_owned(), content.to_owned(), status.to_owned());
    assert_eq!(
        said(&gateway, "s").await,
        [kept("user", "Hi", "cancelled"), kept("assistant", "Hello", "cancelled")]
    );
    // The next turn goes on from there, with a history that is well-formed.
    let next = post(&gateway, "/chat", json!({"message": "Go on", "session_id": "s"})).await;
    assert_eq!(next.expect(200).await.json().await["content"], "Yes");
    let messages = &upstream.requests()[1].json["messages"];
    let roles: Vec<_> = messages.as_array().unwrap().iter().map(|m| text(m, "role")).collect();
    assert_eq!(roles, ["user", "assistant", "user"], "{messages}");
    took
}

#[tokio::test]
async fn a_run_cancelled_before_its_first_word_adds_nothing() {
    let gate = Gate::new("never");
    let upstream = Upstream::start([Script::sse().role().wait(&gate), openai::answer(&["Yes"])]).await;
    let gateway = Gateway::with(&upstream).start().await;
    let run = begin(&gateway, json!({"message": "Hi", "session_id": "s"})).await;
    gate.reached().await;
    Call::post(&format!("/runs/{run}/cancel"))
        .to(&gateway)
        .await
        .expect(200)
        .await;
    upstream.closed().await;
    ended(&gateway, &run).await;
    assert_eq!(said(&gateway, "s").await, []);
    post(&gateway, "/chat", json!({"message": "Hi", "session_id": "s"}))
        .await
        .expect(200)
        .await;
    assert_eq!(upstream.requests()[1].json["messages"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_configuration_may_say_that_a_cancelled_answer_is_dropped() {
    let gate = Gate::new("never");
    let upstream = Upstream::always(Script::sse().role().say("Hello").wait(&gate)).await;
    let gateway = Gateway::with(&upstream)
        .toml("[runs]\non_cancel = \"discard\"")
        .start()
        .await;
    let run = begin(&gateway, json!({"message": "Hi", "session_id": "s"})).await;
    get(&gateway, &format!("/runs/{run}/events"))
        .await
        .next_event_named("token")
        .await;
    Call::post(&format!("/runs/{run}/cancel"))
        .to(&gateway)
        .await
        .expect(200)
        .await;
    assert_eq!(ended(&gateway, &run).await["response"]["content"], "Hello");
    assert_eq!(said(&gateway, "s").await, []);
}

#[tokio::test]
async fn every_reader_of_a_cancelled_run_is_told() {
    let gate = Gate::new("never");
    let upstream = Upstream::always(Script::sse().role().say("Hel").wait(&gate)).await;
    let gateway = Gateway::with(&upstream).start().await;
    let key = |call: Call| call.json(&json!({"message": "Hi"})).header("Idempotency-Key", "k");
    let mut events = key(Call::post("/chat/sse")).to(&gateway).await;
    events.next_event_named("token").await;
    let run = events.header("x-run-id").to_owned();
    let mut words = key(Call::post("/chat/stream")).to(&gateway).await;
    assert_eq!(words.next_bytes().await.unwrap(), "Hel");
    let whole = Connection::open(&gateway).await;
    let whole = whole.call(key(Call::post("/chat")));
    let cancel = async {
        // The JSON reader sits before its answer comes; nothing tells when. A moment later would do as well.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Call::post(&format!("/runs/{run}/cancel"))
            .to(&gateway)
            .await
            .expect(200)
            .await
    };
    let (whole, _) = tokio::join!(whole, cancel);
    assert_eq!((whole.status, whole.problem().await.as_str()), (499, "cancelled"));
    assert_eq!(events.transcript().await.codes(), ["cancelled"]);
    assert!(words.body().await.ending.is_aborted());
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_has_ended_otherwise_cannot_be_cancelled() {
    let upstream = Upstream::start([openai::answer(&["a"]), Script::sse().say("a").cut()]).await;
    let gateway = Gateway::with(&upstream).start().await;
    for status in ["completed", "failed"] {
        let run = begin(&gateway, json!({"message": "Hi"})).await;
        assert_eq!(ended(&gateway, &run).await["status"], status);
        let refused = Call::post(&format!("/runs/{run}/cancel"))
            .to(&gateway)
            .await
            .expect(409)
            .await;
        let problem = refused.problem_object().await;
        assert_eq!(
            (&problem["code"], &problem["run_id"]),
            (&json!("run_finished"), &json!(run))
        );
        assert_eq!(glance(&gateway, &run).await["status"], status);
    }
    for unknown in ["01920000-0000-7000-8000-000000000001", "abc"] {
        let unknown = Call::post(&format!("/runs/{unknown}/cancel"))
            .to(&gateway)
            .await
            .expect(404)
            .await;
        assert_eq!(unknown.problem().await, "not_found");
    }
}

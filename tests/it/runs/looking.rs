//! Looking at a run from beside, in every state.
use super::*;

const MEMBERS: [&str; 13] = [
    "agent",
    "created_at",
    "ended_at",
    "error",
    "finish_reason",
    "last_seq",
    "metadata",
    "model",
    "response",
    "run_id",
    "session_id",
    "status",
    "usage",
];

fn check(run: &Value, status: &str) {
    let mut members: Vec<_> = run.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, MEMBERS, "{run}");
    assert_eq!(run["status"], status, "{run}");
    assert_eq!(
        (&run["agent"], &run["model"]),
        (&json!("assistant"), &json!("openai/test-model"))
    );
    let times = ["created_at", "ended_at"].map(|time| {
        run[time]
            .as_str()
            .map(|time| time.ends_with('Z') && time.len() >= 20 && &time[10..11] == "T")
    });
    assert_eq!(times, [Some(true), (status != "running").then_some(true)], "{run}");
    assert_eq!(
        run["error"].is_null(),
        matches!(status, "running" | "completed"),
        "{run}"
    );
    assert_eq!(run["finish_reason"].is_null(), status != "completed", "{run}");
}

#[tokio::test]
async fn a_run_can_be_looked_at_in_every_state() {
    let gates = [Gate::new("the end"), Gate::new("never"), Gate::new("stopped")];
    let upstream = Upstream::start([
        Script::sse().role().say("Hel").wait(&gates[0]).say("lo").complete(),
        Script::sse().role().say("Hel").cut(),
        Script::sse().role().say("Hel").wait(&gates[1]),
        Script::sse().role().say("Hel").wait(&gates[2]),
    ])
    .await;
    let gateway = Gateway::with(&upstream).toml("[runs]\ndrain = \"50ms\"").start().await;
    let body = json!({"message": "Hi", "metadata": {"ticket": "7"}});
    let read_one = async |gateway: &Gateway, run: &str| {
        get(gateway, &format!("/runs/{run}/events"))
            .await
            .next_event_named("token")
            .await;
    };

    let run = begin(&gateway, body.clone()).await;
    read_one(&gateway, &run).await;
    let now = glance(&gateway, &run).await;
    check(&now, "running");
    assert_eq!(
        (&now["last_seq"], &now["usage"], &now["response"]),
        (&json!(1), &Value::Null, &Value::Null)
    );
    assert_eq!(now["metadata"], json!({"ticket": "7"}));
    gates[0].open();
    let completed = ended(&gateway, &run).await;
    check(&completed, "completed");
    assert_eq!(
        (&completed["last_seq"], &completed["finish_reason"]),
        (&json!(3), &json!("stop"))
    );
    assert_eq!(completed["usage"]["input_tokens"], 12);
    assert_eq!(completed["response"]["content"], "Hello");

    let broken = begin(&gateway, body.clone()).await;
    let failed = ended(&gateway, &broken).await;
    check(&failed, "failed");
    assert_eq!(
        (&failed["error"]["code"], &failed["error"]["run_id"]),
        (&json!("upstream_truncated"), &json!(broken))
    );
    assert_eq!(
        (&failed["last_seq"], &failed["response"]["content"]),
        (&json!(2), &json!("Hel"))
    );

    let stopped = begin(&gateway, body.clone()).await;
    read_one(&gateway, &stopped).await;
    let cancelled = Call::post(&format!("/runs/{stopped}/cancel"))
        .to(&gateway)
        .await
        .expect(200)
        .await
        .json()
        .await;
    check(&cancelled, "cancelled");

    let cut = begin(&gateway, body).await;
    read_one(&gateway, &cut).await;
    // Another process tells the same of them: what a run came to is not only in memory.
    let gateway = gateway.restart().await;
    for (id, before) in [(&run, completed), (&broken, failed), (&stopped, cancelled)] {
        let mut after = glance(&gateway, id).await;
        let mut before = before;
        for run in [&mut before, &mut after] {
            run["error"]["request_id"].take(); // of the request that asks
        }
        assert_eq!(after, before);
    }
    let interrupted = glance(&gateway, &cut).await;
    check(&interrupted, "interrupted");
    assert_eq!(interrupted["error"]["code"], "shutting_down");
    for unknown in ["01920000-0000-7000-8000-000000000001", "abc", "%2e%2e"] {
        let answer = get(&gateway, &format!("/runs/{unknown}")).await;
        assert_eq!((answer.status, answer.problem().await.as_str()), (404, "not_found"));
    }
}

#[tokio::test]
async fn a_run_that_is_not_stored_still_has_its_log() {
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[runs]\nreplay_window = \"3s\"")
        .start()
        .await;
    let run = begin(&gateway, json!({"message": "Hi", "store": false})).await;
    let over = ended(&gateway, &run).await;
    check(&over, "completed");
    assert_eq!(over["session_id"], Value::Null);
    let replay = get(&gateway, &format!("/runs/{run}/events")).await.transcript().await;
    assert_eq!(replay.done()["session_id"], Value::Null);
    // And nothing else: with its log it is gone.
    eventually("the log to expire", async || {
        (get(&gateway, &format!("/runs/{run}")).await.status == 404).then_some(())
    })
    .await;
}

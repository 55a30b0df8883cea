//! Who is asked when a provider fails, and what every call cost.

use std::time::Duration;

use serde_json::json;
use sqlx::Row;

use crate::house::*;

/// A gateway whose agent asks `first`, then `second`.
async fn with_fallback(first: &impl Place, second: &impl Place) -> Gateway {
    let recipe = Gateway::with(first)
        .patient()
        .toml("[providers.openai]\nmax_retries = 0");
    let second = second.addr();
    let recipe = recipe.toml(&format!(
        r#"
[providers.second]
kind = "openai"
base_url = "http://{second}/v1"
api_key = "second-key"
max_retries = 0
[agents.assistant]
fallbacks = ["second/other-model"]
allowed_models = ["openai/named"]
"#
    ));
    recipe.toml(meters::WATCHED).start().await
}

#[tokio::test]
async fn a_provider_that_fails_before_its_first_word_is_replaced() {
    for (status, body) in [
        (500, "{}"),
        (401, "{}"),
        (429, r#"{"error":{"code":"insufficient_quota"}}"#),
        (404, "{}"),
    ] {
        let first = Upstream::refusing_status(status, &[], body).await;
        let second = Upstream::always(openai::answer(&["Hel", "lo"])).await;
        let gateway = with_fallback(&first, &second).await;
        let answer = post(&gateway, "/chat", json!({"message": "Hi"})).await.json().await;
        assert_eq!(answer["content"], "Hello", "{status}");
        assert_eq!(answer["model"], "second/other-model", "{status}");
        assert_eq!((first.calls(), second.calls()), (1, 1), "{status}");
        assert_eq!(second.requests()[0].json["model"], "other-model");
        let run = format!("/runs/{}", answer["run_id"].as_str().unwrap());
        assert_eq!(get(&gateway, &run).await.json().await["model"], "second/other-model");
        // One call failed, the run did not, and it counts as the second one's.
        let counted = Meters::of(&gateway.admin()).await;
        let of = |name: &str, provider: &str| counted.sum_of(name, &format!("provider=\"{provider}\""));
        let errors = ["openai", "second"].map(|provider| of("upstream_errors_total", provider));
        assert_eq!((errors, of("runs_total", "second")), ([1.0, 0.0], 1.0), "{status}");
        assert_eq!(
            (counted.sum("runs_total"), counted.sum("upstream_retries_total")),
            (1.0, 0.0)
        );
    }
}

#[tokio::test]
async fn nobody_else_is_asked_for_what_is_the_requests_fault_or_after_a_word() {
    let second = Upstream::always(openai::answer(&["no"])).await;
    let refusing = Upstream::refusing_status(400, &[], r#"{"error":{"code":"unsupported_parameter"}}"#).await;
    let gateway = with_fallback(&refusing, &second).await;
    assert_eq!(
        post(&gateway, "/chat", json!({"message": "Hi"})).await.problem().await,
        "upstream_rejected"
    );

    let dying = Upstream::always(Script::sse().role().say("Hel").cut()).await;
    let gateway = with_fallback(&dying, &second).await;
    assert_eq!(
        post(&gateway, "/chat", json!({"message": "Hi"})).await.problem().await,
        "upstream_truncated"
    );
    assert_eq!(second.calls(), 0);
}

#[tokio::test]
async fn who_names_a_model_gets_that_model_or_an_error() {
    let first = Upstream::refusing_status(500, &[], "{}").await;
    let second = Upstream::always(openai::answer(&["no"])).await;
    let gateway = with_fallback(&first, &second).await;
    let answer = post(&gateway, "/chat", json!({"message": "Hi", "model": "openai/named"})).await;
    assert_eq!(answer.problem().await, "upstream_error");
    assert_eq!((first.calls(), second.calls()), (1, 0));
}

#[tokio::test]
async fn a_provider_that_fails_ten_times_is_left_alone() {
    let upstream = Upstream::refusing_status(503, &[], "{}").await;
    let gateway = Gateway::with(&upstream)
        .patient()
        .toml("[providers.openai]\nmax_retries = 0")
        .toml(meters::WATCHED)
        .start()
        .await;
    for _ in 0..12 {
        let answer = post(&gateway, "/chat", json!({"message": "Hi", "store": false})).await;
        assert_eq!(answer.status, 503);
        assert!(!answer.header("retry-after").is_empty());
        assert_eq!(answer.problem().await, "upstream_overloaded");
    }
    assert_eq!(upstream.calls(), 10);
    let counted = Meters::of(&gateway.admin()).await;
    let failed = |kind: &str| counted.sum_of("upstream_errors_total", &format!("kind=\"{kind}\""));
    assert_eq!(["overloaded", "resting"].map(failed), [10.0, 2.0]);
}

#[tokio::test]
async fn every_model_call_is_accounted_for_however_it_ended() {
    let gate = Gate::new("after a word");
    let scripts = [
        Script::sse().role().say("Hello").complete(),
        Script::sse().role().say("Hello wor").cut(),
        Script::sse().role().say("Hello world").wait(&gate).complete(),
    ];
    let upstream = Upstream::start(scripts).await;
    let gateway = Gateway::with(&upstream).patient().start().await;
    post(&gateway, "/chat", json!({"message": "Hi"})).await.json().await;
    assert_eq!(
        post(&gateway, "/chat", json!({"message": "Hi"})).await.problem().await,
        "upstream_truncated"
    );
    let mut stream = post(
        &gateway,
        "/chat/sse",
        json!({"message": "Hi", "on_disconnect": "continue"}),
    )
    .await;
    let token = stream.next_event_named("token").await;
    Call::new("POST", &format!("/runs/{}/cancel", token.run_id))
        .to(&gateway)
        .await
        .expect(200)
        .await;
    assert_eq!(stream.transcript().await.codes(), ["cancelled"]); // which is said when it is written down

    let file = gateway.folder().join("sluicegate.db");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
    let mut db = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options)
        .await
        .unwrap();
    let sql = "SELECT model, input_tokens, output_tokens, estimated FROM model_calls ORDER BY run_id";
    let rows = within(Duration::from_secs(5), "the calls", sqlx::query(sql).fetch_all(&mut db))
        .await
        .unwrap();
    let row = |at: usize| -> (String, i64, i64, bool) {
        (rows[at].get(0), rows[at].get(1), rows[at].get(2), rows[at].get(3))
    };
    assert_eq!(rows.len(), 3);
    assert_eq!(
        row(0),
        ("openai/test-model".into(), 12, 34, false),
        "the provider's own numbers"
    );
    assert_eq!(
        row(1),
        ("openai/test-model".into(), 1, 3, true),
        "nine bytes of answer, estimated"
    );
    assert_eq!(
        row(2),
        ("openai/test-model".into(), 1, 3, true),
        "eleven bytes of answer, estimated"
    );
}

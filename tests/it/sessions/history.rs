//! Histories that are longer than the model is to be sent.
use super::*;

#[tokio::test]
async fn a_history_that_is_too_long_is_cut_by_whole_turns_and_says_so() {
    let upstream = Upstream::always(openai::answer(&["y".repeat(400).as_str()])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[sessions]\nmax_history_tokens = 1000")
        .start()
        .await;
    let question = |n: usize| format!("{n} {}", "x".repeat(400));
    let mut truncated = Vec::new();
    for number in 0..12 {
        let body = json!({"message": question(number), "session_id": "s"});
        let done = post(&gateway, "/chat/sse", body).await.transcript().await.done();
        truncated.push(done["metadata"]["history_truncated"] == true);
        let sent = &upstream.requests()[number].json["messages"];
        let sent = words(sent);
        // Whole turns: it begins with a question, and goes on from there without a gap up to the new one.
        let turns = sent.len() / 2;
        let kept: Vec<_> = (number - turns..=number).map(question).collect();
        let asked: Vec<_> = sent
            .iter()
            .step_by(2)
            .map(|(_, content)| (*content).to_owned())
            .collect();
        assert_eq!(asked, kept, "turn {number}");
        assert!(
            sent.iter()
                .enumerate()
                .all(|(at, (role, _))| *role == ["user", "assistant"][at % 2]),
            "turn {number}"
        );
        assert_eq!(truncated[number], turns < number, "turn {number}: {turns} turns sent");
    }
    assert!(!truncated[0] && truncated[11], "{truncated:?}");
    let sent = upstream.requests()[11].json["messages"].as_array().unwrap().len();
    assert!((5..=21).contains(&sent), "{sent} messages for a thousand tokens");
    // What was left out stays stored.
    assert_eq!(read(&gateway, "/sessions/s").await["message_count"], 24);
    // And it is not said where nothing was.
    let done = post(&gateway, "/chat/sse", json!({"message": "Hi", "session_id": "new"}))
        .await
        .transcript()
        .await
        .done();
    assert_ne!(done["metadata"]["history_truncated"], true);
}

#[tokio::test]
async fn a_message_longer_than_the_limit_is_sent_all_the_same() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream)
        .toml("[sessions]\nmax_history_tokens = 10")
        .start()
        .await;
    ask(&gateway, "s", "short").await;
    let long = "x".repeat(10_000);
    ask(&gateway, "s", &long).await;
    let sent = &upstream.requests()[1].json["messages"];
    assert_eq!(words(sent).last(), Some(&("user", long.as_str())));
}

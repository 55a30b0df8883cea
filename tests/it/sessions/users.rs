//! Users within a principal.
use super::*;

#[tokio::test]
async fn a_session_belongs_to_the_user_it_was_made_for() {
    let upstream = counting().await;
    let gateway = Gateway::with(&upstream).start().await;
    let as_user = |user: &str, session: &str| json!({"message": "Hi", "session_id": session, "user_id": user});
    post(&gateway, "/chat", as_user("ada", "hers")).await.expect(200).await;
    ask(&gateway, "nobodys", "Hi").await;
    assert_eq!(read(&gateway, "/sessions/hers").await["user_id"], "ada");
    assert_eq!(read(&gateway, "/sessions/nobodys").await["user_id"], "anonymous");
    // Named again, or not named: her session.
    post(&gateway, "/chat", as_user("ada", "hers")).await.expect(200).await;
    ask(&gateway, "hers", "Hi").await;
    post(&gateway, "/chat", as_user("anonymous", "nobodys"))
        .await
        .expect(200)
        .await;
    let calls = upstream.calls();
    // Anybody else's: as if it were not there.
    let unknown = get(&gateway, "/sessions/never-made").await.problem_object().await;
    for (user, session) in [
        ("bob", "hers"),
        ("anonymous", "hers"),
        ("Ada", "hers"),
        ("ada", "nobodys"),
    ] {
        for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
            let problem = post(&gateway, path, as_user(user, session))
                .await
                .expect(404)
                .await
                .problem_object()
                .await;
            assert_eq!(
                (&problem["code"], &problem["detail"]),
                (&unknown["code"], &unknown["detail"]),
                "{path} {user}"
            );
        }
        for path in ["", "/messages", "/events"] {
            let path = format!("/sessions/{session}{path}?user_id={user}");
            assert_eq!(
                get(&gateway, &path).await.expect(404).await.problem().await,
                "not_found"
            );
        }
        let erased = delete(&gateway, &format!("/sessions/{session}?user_id={user}")).await;
        assert_eq!(erased.expect(404).await.problem().await, "not_found");
        let query = format!("/chat/sse?message=Hi&session_id={session}&user_id={user}");
        assert_eq!(get(&gateway, &query).await.status, 404, "{user}");
        let made = post(&gateway, "/sessions", json!({"session_id": session, "user_id": user})).await;
        assert_eq!(status_and_code(made).await, (404, "not_found".into()), "{user}");
    }
    assert_eq!(upstream.calls(), calls, "a refused turn reached the model");
    assert_eq!(read(&gateway, "/sessions/hers?user_id=ada").await["user_id"], "ada");
    assert_eq!(read(&gateway, "/sessions/hers").await["message_count"], 6);
    let misspelled = get(&gateway, "/sessions/hers?user=ada").await;
    assert_eq!(status_and_code(misspelled).await, (422, "unknown_field".into()));
    // A refusal does not leave the session busy.
    ask(&gateway, "hers", "Hi").await;
    for user in ["", &"x".repeat(257)] {
        let refused = post(&gateway, "/chat", as_user(user, "other")).await;
        assert_eq!(status_and_code(refused).await, (422, "field_invalid".into()));
    }
}

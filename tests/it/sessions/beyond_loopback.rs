//! Callers without keys from other machines.
use super::*;

/// A gateway that believes to be reachable from elsewhere, and is not: loopback, by its IPv6 name.
async fn open_gateway(upstream: &Upstream) -> (Gateway, std::net::SocketAddr) {
    let settings = "[server]\nlisten = \"[::ffff:127.0.0.1]:0\"\n[auth]\nallow_anonymous = true";
    let gateway = Gateway::with(upstream).toml(settings).start().await;
    let place = ([127, 0, 0, 1], gateway.addr().port()).into();
    (gateway, place)
}

#[tokio::test]
async fn callers_who_cannot_be_told_apart_cannot_find_each_other() {
    let upstream = counting().await;
    let (_gateway, place) = open_gateway(&upstream).await;
    assert_eq!(
        status_and_code(get(&place, "/sessions").await).await,
        (403, "forbidden".into())
    );
    assert_eq!(
        status_and_code(get(&place, "/sessions?user_id=ada").await).await,
        (403, "forbidden".into())
    );
    // Names are made here, so that none can be guessed.
    let mine = json!({"message": "Hi", "session_id": "mine"});
    for path in ["/chat", "/chat/stream", "/chat/sse", "/runs"] {
        assert_eq!(
            status_and_code(post(&place, path, mine.clone()).await).await,
            (404, "not_found".into()),
            "{path}"
        );
    }
    let query = get(&place, "/chat/sse?message=Hi&session_id=mine").await;
    assert_eq!(status_and_code(query).await, (404, "not_found".into()));
    let made = post(&place, "/sessions", json!({"session_id": "mine"})).await;
    assert_eq!(status_and_code(made).await, (404, "not_found".into()));
    assert_eq!(upstream.calls(), 0);
    // Who was given one can go on with it, and read and erase it.
    let first = post(&place, "/chat", json!({"message": "Hi"}))
        .await
        .expect(200)
        .await
        .json()
        .await;
    let session = first["session_id"].as_str().unwrap();
    assert!(session.len() >= 32, "{session} can be guessed");
    ask(&place, session, "Again").await;
    assert_eq!(words(&upstream.requests()[1].json["messages"]).len(), 3);
    assert_eq!(read(&place, &format!("/sessions/{session}")).await["message_count"], 4);
    assert_eq!(
        words(&read(&place, &format!("/sessions/{session}/messages")).await["messages"]).len(),
        4
    );
    delete(&place, &format!("/sessions/{session}")).await.expect(204).await;
    let again = post(&place, "/chat", json!({"message": "Hi", "session_id": session})).await;
    assert_eq!(status_and_code(again).await, (404, "not_found".into()));
    let made = post(&place, "/sessions", json!({"user_id": "ada"}))
        .await
        .expect(201)
        .await
        .json()
        .await;
    ask(&place, made["session_id"].as_str().unwrap(), "Hi").await;
}

#[tokio::test]
async fn nobody_listens_there_without_being_told_to() {
    let upstream = counting().await;
    let settings = Gateway::with(&upstream).toml("[server]\nlisten = \"0.0.0.0:0\"").text();
    let settings = sluicegate::config::Settings::from_toml(&settings).unwrap();
    let refused = sluicegate::app::serve(settings).await.err().expect("a refusal");
    assert!(refused.message.contains("allow_anonymous"), "{refused}");
}

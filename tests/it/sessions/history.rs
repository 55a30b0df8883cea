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

/// An image whose base64 has so many bytes.
fn image(letter: &str, bytes: usize) -> Value {
    json!({"media_type": "image/png", "data": letter.repeat(bytes)})
}

/// The newest turns that fit into the bytes are sent, whole, and each image of them to the letter.
#[tokio::test]
async fn a_history_of_images_is_cut_by_its_bytes() {
    let upstream = Upstream::always(openai::answer(&["Seen."])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[server]\nmax_body = \"2MiB\"\n[sessions]\nmax_history_size = \"1MiB\"")
        .start()
        .await;
    let mut truncated = Vec::new();
    for letter in ["A", "B", "C", "D", "E"] {
        let images = [image(letter, 200_000), image(letter, 120_000)];
        let body = json!({"message": letter, "session_id": "s", "attachments": images});
        let done = post(&gateway, "/chat/sse", body).await.transcript().await.done();
        truncated.push(done["metadata"]["history_truncated"] == true);
    }
    assert_eq!(truncated, [false, false, false, false, true]);
    let part = |letter: &str, bytes: usize| {
        let url = format!("data:image/png;base64,{}", letter.repeat(bytes));
        json!({"type": "image_url", "image_url": {"url": url}})
    };
    let question = |letter: &str| {
        let text = json!({"type": "text", "text": letter});
        json!({"role": "user", "content": [text, part(letter, 200_000), part(letter, 120_000)]})
    };
    let answer = json!({"role": "assistant", "content": "Seen."});
    let last = &upstream.requests()[4];
    let sent = ["B", "C", "D"]
        .iter()
        .flat_map(|letter| [question(letter), answer.clone()]);
    let sent: Vec<Value> = sent.chain([question("E")]).collect();
    assert!(last.json["messages"] == json!(sent), "other messages");
    // One question alone is more than the history may have: it is sent, and is not a history afterwards.
    let large = json!({"message": "F", "session_id": "s", "attachments": [image("F", 1_200_000)]});
    post(&gateway, "/chat", large).await.expect(200).await.json().await;
    let done = post(&gateway, "/chat/sse", json!({"message": "G", "session_id": "s"})).await;
    assert_eq!(done.transcript().await.done()["metadata"]["history_truncated"], true);
    let last = &upstream.requests()[6].json["messages"];
    assert_eq!(*last, json!([{"role": "user", "content": "G"}]));
}

/// A page ends before the message that does not fit, and the next one goes on there.
#[tokio::test]
async fn pages_of_a_history_are_bounded_in_bytes() {
    let upstream = Upstream::always(openai::answer(&["Seen."])).await;
    let gateway = Gateway::with(&upstream).start().await;
    for number in 0..3 {
        let images = [image("A", 1_200_000), image("B", 1_200_000)];
        let body = json!({"message": number.to_string(), "session_id": "s", "attachments": images});
        post(&gateway, "/chat", body).await.expect(200).await.json().await;
    }
    let body = json!({"message": "3", "session_id": "s", "attachments": [image("C", 4_800_000)]});
    post(&gateway, "/chat", body).await.expect(200).await.json().await;
    let (mut pages, mut contents, mut cursor) = (Vec::new(), Vec::new(), String::new());
    loop {
        let page = read(&gateway, &format!("/sessions/s/messages?limit=7{cursor}")).await;
        let messages = words(&page["messages"]);
        pages.push(messages.len());
        contents.extend(messages.into_iter().map(|(_, content)| content.to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(contents, ["0", "Seen.", "1", "Seen.", "2", "Seen.", "3", "Seen."]);
    assert_eq!(pages, [2, 2, 2, 1, 1]);
}

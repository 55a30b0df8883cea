//! Several readers of one run, and slow ones.
use super::*;

#[tokio::test]
async fn readers_at_different_places_get_the_same_bytes() {
    let gates: Vec<Gate> = (0..4).map(|n| Gate::new(&format!("before piece {n}"))).collect();
    let script = gates
        .iter()
        .zip(PIECES)
        .fold(Script::sse().role(), |script, (gate, piece)| {
            script.wait(gate).say(piece)
        });
    let upstream = Upstream::always(script.complete()).await;
    let gateway = Gateway::with(&upstream).start().await;
    let first = post(&gateway, "/chat/sse", json!({"message": "Hi"}))
        .await
        .expect(200)
        .await;
    let run = first.header("x-run-id").to_owned();
    let mut readers = vec![first];
    for gate in &gates {
        gate.reached().await;
        readers.push(get(&gateway, &format!("/runs/{run}/events")).await.expect(200).await);
        gate.open();
    }
    let mut bodies = Vec::new();
    for reader in readers {
        bodies.push(reader.body().await.bytes);
    }
    bodies.push(get(&gateway, &format!("/runs/{run}/events")).await.body().await.bytes);
    assert!(bodies[0].ends_with(b"\n\n") && bodies[0].starts_with(b"retry: 2000\nid: "));
    for (number, body) in bodies.iter().enumerate() {
        assert_eq!(body, &bodies[0], "reader {number}");
    }
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_that_leaves_takes_nobody_with_it() {
    let gate = Gate::new("the end");
    let upstream = Upstream::always(Script::sse().role().say("a").wait(&gate).say("b").complete()).await;
    let gateway = Gateway::with(&upstream).start().await;
    let body = json!({"message": "Hi", "on_disconnect": "cancel"});
    let mut first = post(&gateway, "/chat/sse", body).await;
    let run = first.next_event().await.run_id;
    let mut second = get(&gateway, &format!("/runs/{run}/events")).await;
    second.next_event_named("token").await;
    first.next_event_named("token").await;
    first.hang_up();
    let third = get(&gateway, &format!("/runs/{run}/events")).await;
    third.reset();
    gate.open();
    assert_eq!(second.transcript().await.done()["response"]["content"], "ab");
}

#[tokio::test]
async fn a_slow_reader_holds_up_neither_the_upstream_nor_another_reader() {
    let piece = "x".repeat(30 * 1024);
    let pieces = 100;
    let script = (0..pieces)
        .fold(Script::sse().role(), |script, _| script.say(&piece))
        .complete();
    let upstream = Upstream::always(script).await;
    let gateway = Gateway::with(&upstream).start().await;
    let wire = wire("/chat/sse", &json!({"message": "Hi"}));
    let mut slow = Connection::open_narrow(&gateway).await;
    slow.send_raw(wire).await;
    upstream.next_request().await;
    let slow = slow.answer("POST /chat/sse, slowly").await;
    let run = slow.header("x-run-id").to_owned();
    // The other reader, and the run itself, are through while the slow one has read nothing.
    let quick = get(&gateway, &format!("/runs/{run}/events")).await.body().await;
    upstream.idle().await;
    assert_eq!(ended(&gateway, &run).await["status"], "completed");
    assert!(quick.bytes.len() > pieces * piece.len());
    // And the slow one loses nothing.
    let slow = slow.body().await;
    assert_eq!(slow.ending, Ending::Complete);
    assert!(
        slow.bytes == quick.bytes,
        "{} and {} bytes",
        slow.bytes.len(),
        quick.bytes.len()
    );
}

#[tokio::test]
async fn a_slow_text_reader_gets_all_of_it_too() {
    let piece = "y".repeat(30 * 1024);
    let script = (0..50)
        .fold(Script::sse().role(), |script, _| script.say(&piece))
        .complete();
    let upstream = Upstream::always(script).await;
    let gateway = Gateway::with(&upstream).start().await;
    let mut slow = Connection::open_narrow(&gateway).await;
    slow.send_raw(wire("/chat/stream", &json!({"message": "Hi"}))).await;
    upstream.next_request().await;
    upstream.idle().await;
    let body = slow.answer("POST /chat/stream, slowly").await.body().await;
    assert_eq!((body.ending, body.bytes.len()), (Ending::Complete, 50 * piece.len()));
}

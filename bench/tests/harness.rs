//! The harness against itself: what the client finds in the mock's answers, good and broken.

use std::time::Duration;

use sluicegate_bench::ask::Ask;
use sluicegate_bench::client::door::Door;
use sluicegate_bench::client::{Connection, Refused};
use sluicegate_bench::clock::{Pacer, now};
use sluicegate_bench::mock::Mock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const MS: u64 = 1_000_000;

fn mock() -> std::io::Result<(Mock, u16)> {
    let mock = Mock::start(([127, 0, 0, 1], 0).into(), Pacer::start()?)?;
    let port = mock.address().port();
    Ok((mock, port))
}

#[tokio::test]
async fn answers_are_complete_whole_and_streamed_on_one_connection() {
    let (_mock, port) = mock().unwrap();
    let mut connection = Connection::open(port).await.unwrap();
    for (door, ask) in [
        (Door::OpenAi, Ask::new(1, 500)),
        (Door::OpenAiWhole, Ask::new(2, 30)),
        (
            Door::OpenAi,
            Ask {
                per_write: 7,
                ..Ask::new(3, 500)
            },
        ),
        (
            Door::OpenAi,
            Ask {
                every_us: 300,
                ..Ask::new(4, 20)
            },
        ),
    ] {
        let answer = connection.ask(door, ask).await.unwrap();
        assert_eq!(answer.delays.len(), ask.tokens as usize, "{ask}");
        assert!(answer.first <= answer.whole);
    }
}

#[tokio::test]
async fn pacing_is_finer_than_a_millisecond() {
    let (_mock, port) = mock().unwrap();
    let ask = Ask {
        every_us: 250,
        ..Ask::new(1, 201)
    };
    let answer = Connection::open(port)
        .await
        .unwrap()
        .ask(Door::OpenAi, ask)
        .await
        .unwrap();
    assert!(answer.whole >= 50 * MS, "{} ns", answer.whole);
    assert!(
        answer.whole <= 150 * MS,
        "{} ns: tokio's millisecond wheel would need 200 ms",
        answer.whole
    );
}

#[tokio::test]
async fn an_upstream_that_dies_is_noticed() {
    let (_mock, port) = mock().unwrap();
    let ask = Ask {
        cut_after: 5,
        ..Ask::new(1, 10)
    };
    let fault = Connection::open(port)
        .await
        .unwrap()
        .ask(Door::OpenAi, ask)
        .await
        .unwrap_err();
    assert!(fault.to_string().contains("after 5 tokens, without an end"), "{fault}");
}

#[tokio::test]
async fn a_client_that_leaves_is_seen_by_a_silent_upstream() {
    let (mock, port) = mock().unwrap();
    let ask = Ask {
        stall_after: 3,
        ..Ask::new(9, 10)
    };
    let seen = mock.watch(9);
    let closed = Connection::open(port)
        .await
        .unwrap()
        .ask_and_leave(Door::OpenAi, ask, 3)
        .await
        .unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(5), seen)
        .await
        .unwrap()
        .unwrap();
    assert!((closed..now()).contains(&seen));
    assert_eq!(mock.streaming(), 0);
}

#[tokio::test]
async fn a_bad_ask_is_a_status_not_a_measurement() {
    let (_mock, port) = mock().unwrap();
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let body = r#"{"messages":[{"role":"user","content":"bench tokns=3"}],"stream":true}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1_024];
    let count = socket.read(&mut answer).await.unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 400 "));
}

/// What the client says to bytes that a gateway might send to `POST /chat/stream`.
async fn text_answer(bytes: &'static str) -> anyhow::Result<usize> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await?;
        let _ = socket.read(&mut [0; 4_096]).await?;
        socket.write_all(bytes.as_bytes()).await
    });
    let answer = Connection::open(port)
        .await?
        .ask(Door::Text { store: false }, Ask::new(7, 1))
        .await?;
    Ok(answer.delays.len())
}

#[tokio::test]
async fn a_refusal_says_when_to_come_back() {
    let fault = text_answer("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}")
        .await
        .unwrap_err();
    let refused = fault.downcast_ref::<Refused>().unwrap();
    assert_eq!((refused.status, refused.retry_after), (503, Some(7)));
}

#[tokio::test]
async fn a_client_can_leave_at_a_time_of_its_own() {
    let (mock, port) = mock().unwrap();
    let ask = Ask {
        first_us: 60_000_000,
        ..Ask::new(11, 10)
    };
    let (seen, at) = (mock.watch(11), now() + 30 * MS);
    let connection = Connection::open(port).await.unwrap();
    let pacer = Pacer::start().unwrap();
    let left = connection
        .ask_and_leave_at(Door::OpenAi, ask, &pacer, at)
        .await
        .unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(5), seen)
        .await
        .unwrap()
        .unwrap();
    assert!(at <= left && left <= seen);
}

#[tokio::test]
async fn the_tool_takes_as_long_as_it_is_told() {
    let (_mock, port) = mock().unwrap();
    let start = now();
    let status = Connection::open(port).await.unwrap().get("/tool/20000").await.unwrap();
    assert_eq!(status, 200);
    assert!(now() - start >= 20 * MS);
}

#[tokio::test]
async fn a_text_answer_needs_the_last_chunk() {
    let good =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\n 00007:00000:000000000000000001\r\n0\r\n\r\n";
    assert_eq!(text_answer(good).await.unwrap(), 1);
    for wrong in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\n 00007:00000:000000000000000001\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\n 00007:00001:000000000000000001\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n 00007:00000:000000000000000001",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\n{}",
        "",
    ] {
        assert!(text_answer(wrong).await.is_err(), "{wrong}");
    }
}

//! The house, tested by itself: a stone that gives way would make every story lie.

/// The reader reads what it should, however cut, and refuses the rest.
mod reader {
    use futures_util::{StreamExt, stream};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::*;

    const RUN: &str = "01920000-0000-7000-8000-000000000001";

    fn chunk(event: &str, seq: u64, more: &Value) -> String {
        let mut chunk = json!({"chunk_type": event, "chunk_index": seq, "content": "", "delta": "", "is_final": false,
            "run_id": RUN, "session_id": "s", "model": "openai/test-model"});
        chunk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("id: {RUN}:{seq}\nevent: {event}\ndata: {chunk}\n\n")
    }
    fn start() -> String {
        format!("retry: 2000\n{}", chunk("start", 0, &json!({})))
    }
    fn token(seq: u64, text: &str) -> String {
        format!(
            "id: {RUN}:{seq}\nevent: token\ndata: {}\n\n",
            text.replace('\n', "\ndata: ")
        )
    }
    fn done(seq: u64) -> String {
        chunk("done", seq, &json!({"is_final": true}))
    }
    fn failed(seq: u64) -> String {
        chunk("error", seq, &json!({"error": {"code": "cancelled"}}))
    }
    fn read(reader: Reader, pieces: &[&[u8]]) -> Result<Transcript, String> {
        let mut reader = reader;
        for piece in pieces {
            reader.feed(piece)?;
        }
        reader.finish(Ended::Eof)
    }

    #[test]
    fn a_good_stream_is_read() {
        let bytes = [
            start(),
            token(1, "Hel"),
            ": hb\n".into(),
            token(2, ""),
            token(3, "lo\n\n: x"),
            done(4),
        ]
        .concat();
        let transcript = read(Reader::fresh(), &[bytes.as_bytes()]).unwrap();
        assert_eq!(transcript.kinds(), ["start", "token", "token", "token", "done"]);
        assert_eq!(
            (transcript.text().as_str(), transcript.heartbeats.len()),
            ("Hello\n\n: x", 1)
        );
        assert_eq!(transcript.done()["chunk_index"], 4);
        assert_eq!(
            (transcript.codes().len(), transcript.last_id()),
            (0, Some(format!("{RUN}:4").as_str()))
        );
    }

    #[test]
    fn a_resumed_stream_is_read_and_so_are_chunks() {
        let id = format!("{RUN}:6");
        assert_eq!(
            read(Reader::after(&id), &[failed(7).as_bytes()]).unwrap().codes(),
            ["cancelled"]
        );
        read(Reader::after(&id), &[done(12).as_bytes()]).unwrap();
        read(Reader::anywhere(), &[token(5, "x").as_bytes()]).unwrap();
        let text = chunk(
            "token",
            7,
            &json!({"chunk_type": "text", "content": "a\r\n", "delta": "a\r\n"}),
        );
        assert_eq!(
            read(Reader::after(&id).json_tokens(), &[text.as_bytes()])
                .unwrap()
                .text(),
            "a\r\n"
        );
    }

    #[test]
    fn every_broken_promise_is_seen() {
        let after_start = |rest: &str| start() + rest;
        let broken = [
            ("CR", after_start(&token(1, "a\r"))),
            ("CRLF lines", start().replace('\n', "\r\n")),
            ("no retry", chunk("start", 0, &json!({}))),
            ("retry twice", format!("retry: 2000\n{}", start())),
            ("another retry", start().replace("2000", "3000")),
            ("retry later", after_start("retry: 2000\n")),
            ("retry as a frame", start().replacen('\n', "\n\n", 1)),
            ("not start", format!("retry: 2000\n{}", token(0, "a"))),
            ("start twice", after_start(&chunk("start", 1, &json!({})))),
            ("a gap", after_start(&token(2, "a"))),
            ("a repetition", after_start(&token(0, "a"))),
            ("another run", after_start(&token(1, "a").replace("0001:", "0002:"))),
            ("an odd number", after_start(&token(1, "a").replace(":1", ":01"))),
            ("no run id", after_start(&token(1, "a").replace(RUN, "run"))),
            ("no data", after_start(&token(1, "a").replace("data: a\n", ""))),
            (
                "data without its space",
                after_start(&token(1, "").replace("data: ", "data:")),
            ),
            ("no colon", after_start(&token(1, "").replace("data: ", "data"))),
            ("no id", after_start("event: token\ndata: a\n\n")),
            ("no event", after_start(&token(1, "a").replace("event: token\n", ""))),
            (
                "event twice",
                after_start(&token(1, "a").replace("data", "event: token\ndata")),
            ),
            ("id twice", after_start(&format!("id: {RUN}:1\n{}", token(1, "a")))),
            ("an unknown field", after_start("foo: bar\n")),
            (
                "an unknown event",
                after_start(&token(1, "a").replace("token", "tokens")),
            ),
            ("a heartbeat with a blank line", after_start(": hb\n\n")),
            (
                "a heartbeat inside a frame",
                after_start(&token(1, "a").replace("data", ": hb\ndata")),
            ),
            ("another comment", after_start(": ping\n")),
            ("a blank line too many", after_start("\n")),
            ("two terminals", after_start(&(done(1) + &failed(2)))),
            ("a heartbeat after the terminal", after_start(&(done(1) + ": hb\n"))),
            ("a half frame", after_start(token(1, "a").trim_end_matches('\n'))),
            ("a half line", after_start(": h")),
            (
                "not JSON",
                after_start(&format!("id: {RUN}:1\nevent: done\ndata: bye\n\n")),
            ),
            (
                "another index",
                after_start(&done(1).replace("\"chunk_index\":1", "\"chunk_index\":2")),
            ),
            ("not final", after_start(&chunk("done", 1, &json!({})))),
            ("no code", after_start(&chunk("error", 1, &json!({})))),
            (
                "a line separator",
                after_start(&chunk(
                    "reasoning",
                    1,
                    &json!({"content": "\u{2028}", "delta": "\u{2028}"}),
                )),
            ),
        ];
        for (name, bytes) in broken {
            assert!(
                read(Reader::fresh(), &[bytes.as_bytes()]).is_err(),
                "{name} went unseen: {bytes}"
            );
        }
        let cut = [
            start().as_bytes(),
            b"id: ",
            RUN.as_bytes(),
            b":1\nevent: token\ndata: \xF0\x9F\n\n",
        ]
        .concat();
        assert!(read(Reader::fresh(), &[&cut]).is_err(), "half a character");
    }

    proptest! {
        #[test]
        fn cutting_changes_nothing_and_another_reader_agrees(
            texts in prop::collection::vec("[^\r]{0,12}", 0..6), cuts in prop::collection::vec(1_usize..40, 1..20)
        ) {
            let tokens = texts.iter().zip(1..).map(|(text, seq)| token(seq, text) + ": hb\n");
            let bytes = [start(), tokens.collect(), done(texts.len() as u64 + 1)].concat().into_bytes();
            let (mut pieces, mut rest, mut sizes) = (Vec::new(), bytes.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                pieces.push(piece);
                rest = after;
            }
            let cut = read(Reader::fresh(), &pieces).unwrap();
            let whole = read(Reader::fresh(), &[&bytes]).unwrap();
            let seen = |transcript: &Transcript| -> Vec<_> {
                transcript.events.iter().map(|e| (e.id.clone(), e.event.clone(), e.data.clone())).collect()
            };
            prop_assert_eq!(seen(&cut), seen(&whole));
            prop_assert_eq!(cut.text(), texts.concat());
            let pieces = pieces.iter().map(|piece| Ok::<_, std::io::Error>(*piece));
            let theirs = sse_stream::SseByteStream::new(stream::iter(pieces)).map(|event| event.unwrap());
            let theirs: Vec<_> = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(theirs.collect());
            let theirs: Vec<_> = theirs.into_iter().map(|e: sse_stream::Sse| (e.id.unwrap(), e.event.unwrap(), e.data.unwrap())).collect();
            prop_assert_eq!(theirs, seen(&cut));
        }
    }
}

/// The client reads event streams and refusals, here from a gateway that is itself a script.
mod answers {
    use serde_json::json;

    use super::super::*;

    const RUN: &str = "01920000-0000-7000-8000-000000000001";

    fn frame(event: &str, seq: u64, more: &str) -> String {
        let is_final = event == "done";
        let common = format!(r#""delta":"","is_final":{is_final},"run_id":"{RUN}","session_id":null,"model":"a/b""#);
        let chunk = format!(r#"{{"chunk_type":"{event}","chunk_index":{seq},"content":"",{common}{more}}}"#);
        format!("id: {RUN}:{seq}\nevent: {event}\ndata: {chunk}\n\n")
    }

    fn token(seq: u64, text: &str) -> String {
        format!("id: {RUN}:{seq}\nevent: token\ndata: {text}\n\n")
    }

    async fn gateway(pieces: &[String]) -> Upstream {
        let script = Script::sse().send(format!("retry: 2000\n{}", frame("start", 0, "")));
        Upstream::always(
            pieces
                .iter()
                .fold(script, |script, piece| script.send(piece.clone()))
                .end(),
        )
        .await
    }

    #[tokio::test]
    async fn events_are_given_one_by_one_and_as_a_whole() {
        let gateway = gateway(&[token(1, "a") + ": hb\n" + &token(2, "b"), frame("done", 3, "")]).await;
        let mut response = post(&gateway, "/chat/sse", json!({})).await.expect(200).await;
        assert_eq!(response.next_event().await.event, "start");
        assert_eq!(response.next_event_named("token").await.text, "a");
        let transcript = response.transcript().await;
        assert_eq!(
            (
                transcript.text().as_str(),
                transcript.heartbeats.len(),
                transcript.ended
            ),
            ("ab", 1, Ended::Eof)
        );
        assert_eq!(transcript.done()["chunk_index"], 3);
    }

    #[tokio::test]
    async fn a_resumed_stream_is_read_from_its_id() {
        let gateway = Upstream::always(Script::sse().send(token(5, "c")).cut()).await;
        let id = format!("{RUN}:4");
        for call in [
            Call::get("/chat/sse").header("Last-Event-ID", &id),
            Call::get(&format!("/runs/{RUN}/events?last_event_id={id}")),
        ] {
            let mut response = call.to(&gateway).await;
            assert_eq!(response.next_event().await.seq, 5);
            assert_eq!(response.try_event().await, None);
            assert_eq!(response.transcript().await.ended, Ended::Aborted);
        }
    }

    #[tokio::test]
    #[should_panic(expected = "a write that ends inside a frame")]
    async fn a_frame_in_two_writes_is_a_failure() {
        let whole = token(1, "a");
        let (first, second) = whole.split_at(9);
        let gateway = gateway(&[first.to_owned(), second.to_owned()]).await;
        get(&gateway, "/chat/sse").await.transcript().await;
    }

    #[tokio::test]
    #[should_panic(expected = "where an event was due")]
    async fn an_event_that_does_not_come_is_a_failure() {
        let gateway = gateway(&[]).await;
        let mut response = get(&gateway, "/chat/sse").await;
        response.next_event().await;
        response.next_event().await;
    }

    #[tokio::test]
    async fn a_refusal_is_checked_and_its_code_given() {
        let problem = r#"{"type":"about:blank","title":"No","status":409,"code":"session_busy","request_id":"r"}"#;
        let headers = [("Content-Type", "application/problem+json")];
        let gateway = Upstream::refusing_status(409, &headers, problem).await;
        assert_eq!(delete(&gateway, "/sessions/a").await.problem().await, "session_busy");
    }

    #[tokio::test]
    #[should_panic(expected = "no request_id in")]
    async fn a_refusal_without_its_members_is_a_failure() {
        let problem = r#"{"type":"about:blank","title":"No","status":409,"code":"session_busy"}"#;
        let headers = [("Content-Type", "application/problem+json")];
        get(&Upstream::refusing_status(409, &headers, problem).await, "/")
            .await
            .problem()
            .await;
    }

    #[tokio::test]
    #[should_panic(expected = "in vain for more of the body of GET /slow")]
    async fn a_wait_says_what_it_waited_for() {
        let gateway = Upstream::always(Script::sse().hang()).await;
        let mut response = get(&gateway, "/slow")
            .await
            .patience(std::time::Duration::from_millis(50));
        response.next_bytes().await;
    }
}

/// The upstream plays what is written, and the client sees what was played.
mod script_and_client {
    use std::io;
    use std::time::{Duration, Instant};

    use serde_json::json;
    use tokio::net::TcpStream;

    use super::super::*;

    async fn body_of(script: Script) -> (String, Ending) {
        let upstream = Upstream::always(script).await;
        let body = post(&upstream, "/v1/chat/completions", json!({})).await.body().await;
        upstream.idle().await;
        (body.text().to_owned(), body.ending)
    }

    #[tokio::test]
    async fn an_answer_arrives_however_it_is_cut_or_framed() {
        let script = openai::answer(&["Grüße, ", "世界 👩‍👩‍👧"]);
        let (whole, ending) = body_of(script.clone()).await;
        assert_eq!(ending, Ending::Complete);
        assert_eq!(
            (whole.matches("data: ").count(), whole.ends_with("data: [DONE]\n\n")),
            (6, true),
            "{whole}"
        );
        for shaped in [
            script.clone().byte_by_byte(),
            script.clone().in_pieces(&[3, 1, 7]),
            script.at_once(),
        ] {
            assert_eq!(body_of(shaped).await, (whole.clone(), Ending::Complete));
        }
        let until_close = Script::sse_framed(Framing::UntilClose).say("a").end();
        assert_eq!(
            body_of(until_close).await,
            (body_of(Script::sse().say("a").end()).await.0, Ending::Complete)
        );
    }

    #[tokio::test]
    async fn every_broken_end_is_seen() {
        let text = String::from_utf8(openai::text("Hel").to_vec()).unwrap();
        let gate = Gate::new("read");
        for script in [
            Script::sse().say("Hel").cut(),
            Script::sse().say("Hel"),
            Script::sse_framed(Framing::Length(1000)).say("Hel").cut(),
            Script::sse().bytes("ffff\r\n").bytes(text.clone()).cut(),
            Script::sse().say("Hel").wait(&gate).reset(),
        ] {
            let upstream = Upstream::always(script).await;
            let mut response = get(&upstream, "/").await;
            assert_eq!(response.next_bytes().await.unwrap(), text);
            gate.open();
            assert_eq!(response.next_bytes().await, None);
            assert!(response.ending().unwrap().is_aborted());
        }
        let silent = Upstream::start([
            Script::raw().cut(),
            Script::raw().reset(),
            Script::raw().bytes("SSH-2.0-x\r\n\r\n"),
        ])
        .await;
        for _ in 0..3 {
            let mut connection = Connection::open(&silent).await;
            connection.send_raw("GET / HTTP/1.1\r\n\r\n").await;
            connection.try_answer("a question").await.unwrap_err();
        }
        assert_eq!((silent.calls(), silent.connections()), (3, 3));
    }

    #[tokio::test]
    async fn requests_are_kept_and_so_are_connections() {
        let upstream = Upstream::start([openai::answer(&["a"]), openai::answer(&["b"]).step(Step::ResetOnReuse)]).await;
        let connection = Connection::open(&upstream).await;
        let call = Call::post("/v1/x")
            .json(&json!({"n": 1}))
            .header("X-Two", "1")
            .header("x-two", "2");
        let (_, connection) = connection.call(call.clone()).await.body_and_connection().await;
        let (body, mut connection) = connection.call(call.clone()).await.body_and_connection().await;
        assert!(body.text().contains("\"b\""));
        let (first, second) = (upstream.next_request().await, upstream.next_request().await);
        assert_eq!(
            (first.method.as_str(), first.path.as_str(), &first.json),
            ("POST", "/v1/x", &json!({"n": 1}))
        );
        assert_eq!(
            (first.headers.all("X-TWO"), second.connection, second.number),
            (vec!["1", "2"], 0, 1)
        );
        connection.send_raw("G").await;
        connection.closed().await;
        assert_eq!((upstream.calls(), upstream.connections()), (2, 1));
        let refused = Call::post("/v1/x").to(&upstream).await.expect(400).await.json().await;
        assert!(refused["error"]["message"].as_str().unwrap().contains("no script"));
        upstream.idle().await;
    }

    #[tokio::test]
    async fn a_gate_holds_and_a_hang_up_is_noticed() {
        let gate = Gate::new("before the end");
        let upstream = Upstream::always(Script::sse().say("Hel").wait(&gate).complete()).await;
        let mut left = get(&upstream, "/").await;
        left.next_bytes().await.unwrap();
        let mut broken = get(&upstream, "/").await;
        broken.next_bytes().await.unwrap();
        gate.reached_by(2).await;
        assert_eq!(upstream.open(), 2);
        let now = Instant::now();
        left.hang_up();
        let first = upstream.closed().await;
        broken.reset();
        let second = upstream.closed().await;
        assert!(now < first && first < second);
        assert_eq!(upstream.open(), 0);
        let patient = get(&upstream, "/").await;
        gate.open();
        assert_eq!(patient.body().await.ending, Ending::Complete);
        let silent = Upstream::always(Script::sse().hang()).await;
        let mut waiting = get(&silent, "/").await;
        waiting.connection().half_close().await;
        silent.closed().await;
    }

    #[tokio::test]
    async fn a_script_may_repeat_itself_and_sleep() {
        let script = Script::sse()
            .repeat("x", Duration::ZERO, 1000)
            .sleep(Duration::from_millis(1))
            .end();
        assert_eq!(body_of(script).await, ("x".repeat(1000), Ending::Complete));
        let endless = Upstream::always(Script::sse().repeat("x".repeat(1024), Duration::ZERO, usize::MAX / 4096)).await;
        get(&endless, "/").await.hang_up();
        endless.closed().await;
    }

    #[tokio::test]
    async fn nobody_listens_at_a_closed_port() {
        let port = closed_port();
        let refused = soon("a refusal", TcpStream::connect(port.addr())).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let hole = black_hole().await;
        let waiting = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(hole.addr())).await;
        assert!(waiting.is_err(), "{waiting:?}");
    }
}

//! A gateway that has enough to do: runs, connections, bodies.
use futures_util::future::join_all;

use super::*;

/// B097, P15: who is refused hears it at once, before it has sent its question; who is served notices nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_gateway_refuses_at_once_and_its_fifty_streams_go_on() {
    let gate = Gate::new("the end");
    let upstream = held(&gate).await;
    let gateway = Gateway::with(&upstream).toml("[limits]\nmax_runs = 50").start().await;
    let keyed = Call::post("/chat/sse?key=once").json(&hi());
    let first = keyed.clone().to(&gateway).await.expect(200).await;
    let run = first.header("x-run-id").to_owned();
    let mut streams = join_all((0..49).map(|_| post(&gateway, "/chat/sse", hi()))).await;
    streams.push(first);
    for stream in &mut streams {
        assert_eq!(stream.status, 200);
        stream.next_event_named("token").await;
    }
    let mut took = Vec::new();
    for at in 0..41 {
        let mut connection = Connection::open(&gateway).await;
        // 8 MiB that never come.
        let path = ["/chat", "/chat/stream", "/chat/sse", "/runs"][at % 4];
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 8388608\r\n\r\n{{"
        );
        let asked = Instant::now();
        connection.send_raw(head).await;
        refused(connection.answer("a question too many").await, 503, "overloaded").await;
        took.push(asked.elapsed());
    }
    took.sort_unstable();
    assert!(
        took[20] <= Duration::from_millis(50),
        "half of them took longer than {:?}",
        took[20]
    );
    refused(get(&gateway, "/chat/sse?message=Hi").await, 503, "overloaded").await;
    // What needs no room is served: a repetition, somebody who comes back, a look.
    let again = keyed.to(&gateway).await.expect(200).await;
    let events = Call::get(&format!("/runs/{run}/events"));
    let back = events
        .header("Last-Event-ID", &format!("{run}:0"))
        .to(&gateway)
        .await
        .expect(200)
        .await;
    get(&gateway, &format!("/runs/{run}")).await.expect(200).await;
    gate.open();
    for stream in streams.into_iter().chain([again, back]) {
        assert_eq!(stream.transcript().await.text(), "Hello");
    }
    assert_eq!(upstream.calls(), 50);
}

#[tokio::test]
async fn a_connection_too_many_is_told_so_and_the_next_one_is_served() {
    let gateway = Gateway::with(&closed_port())
        .toml("[server]\nmax_connections = 2")
        .toml(meters::WATCHED)
        .start()
        .await;
    let open = || async {
        let answer = Connection::open(&gateway).await.call(Call::get("/healthz")).await;
        answer.expect(200).await.body_and_connection().await.1
    };
    let (first, second) = (open().await, open().await);
    for _ in 0..100 {
        let answer = Connection::open(&gateway).await.call(Call::get("/agents")).await;
        assert_eq!(answer.header("connection"), "close");
        refused(answer, 503, "overloaded").await;
    }
    let counted = Meters::of(&gateway.admin()).await;
    assert_eq!(counted.get("shed_total{reason=\"max_connections\"}"), 100.0);
    // Who has a place is served.
    first.call(Call::get("/healthz")).await.expect(200).await;
    eventually("a place", async || {
        let answer = Connection::open(&gateway).await.call(Call::get("/healthz")).await;
        (answer.status == 200).then_some(())
    })
    .await;
    second.hang_up();
}

#[tokio::test]
async fn all_bodies_together_have_a_bound_and_small_ones_need_no_room() {
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[server]\nmax_body = \"1MiB\"\n[limits]\nmemory = \"4MiB\"")
        .toml(meters::WATCHED)
        .start()
        .await;
    let large = "x".repeat(900_000);
    let head = |length: usize| {
        format!(
            "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let body = json!({"message": large}).to_string();
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut one = Connection::open(&gateway).await;
        one.send_raw(format!("{}{}", head(body.len()), &body[..body.len() - 10]))
            .await;
        slow.push(one);
    }
    // Small enough to stand in nobody's way for long.
    let half = json!({"message": "x".repeat(400_000)});
    let crowded = eventually("the slow ones' bodies to be there", async || {
        let answer = Call::post("/chat").json(&half).to(&gateway).await;
        Some(answer).filter(|answer| answer.status == 503)
    });
    refused(crowded.await, 503, "overloaded").await;
    let counted = Meters::of(&gateway.admin()).await;
    assert!(counted.get("shed_total{reason=\"body_memory\"}") >= 1.0);
    // Neither a small question nor a body that is announced and does not come is in anybody's way.
    let mut idle = Connection::open(&gateway).await;
    idle.send_raw(head(1 << 20)).await;
    assert_eq!(
        post(&gateway, "/chat", hi()).await.expect(200).await.json().await["content"],
        "a"
    );
    slow.pop().expect("another").hang_up();
    let mut slow = slow.pop().expect("one");
    slow.send_raw(&body[body.len() - 10..]).await;
    assert_eq!(
        slow.answer("the slow one").await.expect(422).await.problem().await,
        "message_too_long"
    );
    let answer = Call::post("/chat").json(&json!({"message": large})).to(&gateway).await;
    assert_eq!(answer.expect(422).await.problem().await, "message_too_long");
}

#[tokio::test]
async fn one_callers_slow_bodies_leave_room_for_the_others() {
    let upstream = Upstream::always(openai::answer(&["a"])).await;
    let (slow, other) = (Key::of("slow", ""), Key::of("other", ""));
    let gateway = Gateway::with(&upstream)
        .toml("[server]\nmax_body = \"256KiB\"\n[limits]\nmemory = \"1MiB\"")
        .toml(&slow.toml)
        .toml(&other.toml)
        .start()
        .await;
    let body = json!({"message": "x".repeat(200 << 10)}).to_string();
    // More than there is room for, and none of them comes to its end.
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut connection = Connection::open(&gateway).await;
        let head = format!(
            "POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Api-Key: {}\r\n\
                 Content-Length: {}\r\n\r\n",
            slow.key,
            body.len()
        );
        connection.send_raw(format!("{head}{}", &body[..body.len() - 10])).await;
        held.push(connection);
    }
    let ask = |key: &Key| {
        key.on(Call::post("/chat")
            .body(body.clone())
            .header("Content-Type", "application/json"))
    };
    let crowded = eventually("the slow ones' bodies to be there", async || {
        let answer = ask(&slow).to(&gateway).await;
        Some(answer).filter(|answer| answer.status == 503)
    });
    refused(crowded.await, 503, "overloaded").await;
    for _ in 0..3 {
        ask(&other).to(&gateway).await.expect(200).await.json().await;
    }
    drop(held);
    eventually("room for the slow one again", async || {
        let answer = ask(&slow).to(&gateway).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// Histories count as long as their runs hold them: one caller's runs take half of the memory at most, and what finds none
/// is refused before it has begun.
#[tokio::test]
async fn histories_have_a_bound_together_and_leave_room_for_other_callers() {
    let gate = Gate::new("the end");
    let later = Script::sse().role().say("Hel").wait(&gate).say("lo").complete();
    let upstream = Upstream::answering(move |request| match request.number {
        0..9 => openai::answer(&["Hello"]),
        _ => later.clone(),
    });
    let upstream = upstream.await;
    let (many, other) = (Key::of("many", ""), Key::of("other", ""));
    let gateway = Gateway::with(&upstream)
        .toml("[server]\nmax_body = \"256KiB\"\n[limits]\nmemory = \"1MiB\"")
        .toml(meters::WATCHED)
        .toml(&many.toml)
        .toml(&other.toml)
        .start()
        .await;
    let long = "x".repeat(60_000);
    for number in 0..8 {
        let body = json!({"message": long, "session_id": format!("s{number}")});
        many.post(&gateway, "/chat", body).await.expect(200).await.json().await;
    }
    let body = json!({"message": long, "session_id": "t"});
    other.post(&gateway, "/chat", body).await.expect(200).await.json().await;
    let (mut streams, mut refusal) = (Vec::new(), None);
    for number in 0..8 {
        let body = json!({"message": "And?", "session_id": format!("s{number}")});
        let answer = many.post(&gateway, "/chat/sse", body).await;
        match answer.status {
            200 => streams.push(answer),
            _ => {
                refusal = Some(answer);
                break;
            }
        }
    }
    assert!((2..6).contains(&streams.len()), "{} held their history", streams.len());
    refused(refusal.expect("a refusal"), 503, "overloaded").await;
    let counted = Meters::of(&gateway.admin()).await;
    assert_eq!(counted.get("shed_total{reason=\"memory\"}"), 1.0);
    let body = json!({"message": "And?", "session_id": "t"});
    let mut theirs = other.post(&gateway, "/chat/sse", body).await.expect(200).await;
    theirs.next_event_named("token").await;
    // What was refused has left its session free, and there is memory when the others are done.
    gate.open();
    for stream in streams {
        stream.transcript().await.done();
    }
    let body = json!({"message": "And?", "session_id": "s7"});
    many.post(&gateway, "/chat", body).await.expect(200).await.json().await;
}

/// Of a body that comes again only one word is looked at: all of it as values would be twenty times as much.
#[tokio::test]
async fn a_body_that_comes_again_takes_no_more_room_than_its_bytes() {
    let upstream = Upstream::always(openai::answer(&["Hel", "lo"])).await;
    let program = Gateway::with(&upstream).spawn().await;
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.expect("a kernel that tells").trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() >> 10
    };
    let first = post(&program, "/chat", hi()).await.expect(200).await.json().await;
    let before = peak();
    let body = format!(r#"{{"x":[{}1],"format":"json"}}"#, "1,".repeat(4_000_000));
    let again = Call::post("/chat/sse").body(body);
    let id = format!("{}:0", first["run_id"].as_str().unwrap());
    let answer = again.header("Last-Event-ID", &id).to(&program).await.expect(200).await;
    let mut answer = answer.read_as(Reader::after(&id).json_tokens());
    let token = answer.next_event_named("token").await;
    assert!(token.data.starts_with('{'), "{token:?}");
    let grown = peak() - before;
    assert!(grown < 64, "8 MiB took {grown} MiB");
}

/// A stored result is read from the store once for all who ask at the same time, and is written out of that one copy.
#[tokio::test]
async fn many_readers_of_a_stored_result_share_one_copy() {
    let pieces = vec!["A \"long\"\nanswer. ".repeat(2_500); 20];
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    let upstream = Upstream::always(openai::answer(&pieces)).await;
    let program = Gateway::with(&upstream)
        .toml("[runs]\nreplay_window = \"1ms\"")
        .spawn()
        .await;
    let ask = Call::post("/chat?key=once").json(&hi());
    let first = ask.to(&program).await.expect(200).await.json().await;
    assert!(first["content"] == pieces.concat(), "another answer");
    let path = format!("/runs/{}", first["run_id"].as_str().unwrap());
    let status = || get(&program, &path);
    assert_eq!(status().await.expect(200).await.json().await["response"], first);
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.expect("a kernel that tells").trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() >> 10
    };
    let before = peak();
    let results = join_all((0..60).map(|_| status())).await;
    let again = Call::post("/chat/sse?key=once").json(&hi());
    let streams = join_all((0..20).map(|_| again.clone().to(&program))).await;
    for result in results {
        assert!(
            result.expect(200).await.json().await["response"] == first,
            "another result"
        );
    }
    for stream in streams {
        let done = stream.expect(200).await.transcript().await.done();
        assert!(done["response"] == first, "another result");
    }
    let grown = peak() - before;
    assert!(
        grown < 40,
        "80 readers of {} bytes took {grown} MiB",
        pieces.concat().len()
    );
}

/// Who is refused before its body was read is still sending it.
#[tokio::test]
async fn a_refusal_is_read_by_who_sends_all_before_it_reads() {
    let web = Key::of("web", "requests_per_minute = 1");
    let gateway = Gateway::with(&closed_port()).toml(&web.toml).start().await;
    let long = json!({"message": "x".repeat(1 << 20)});
    web.get(&gateway, "/agents").await.expect(200).await;
    for _ in 0..20 {
        let stranger = Call::post("/chat").json(&long).to(&gateway).await;
        assert_eq!(stranger.expect(401).await.problem().await, "auth_missing");
        refused(web.post(&gateway, "/chat", long.clone()).await, 429, "rate_limited").await;
        let nowhere = Call::post("/nowhere").json(&long).to(&gateway).await;
        assert_eq!(nowhere.expect(404).await.problem().await, "not_found");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_wrong_keys_do_not_disturb_a_stream() {
    let word = Script::sse()
        .role()
        .repeat(openai::text("a"), Duration::from_millis(20), 100_000);
    let upstream = Upstream::always(word).await;
    let web = Key::of("web", "");
    let gateway = Gateway::with(&upstream)
        .toml(&web.toml)
        .toml("[runs]\ndeadline = \"120s\"")
        .start()
        .await;
    let (mut stream, _) = web.begin(&gateway, hi()).await;
    let flood = join_all((0..8).map(async |flood| {
        let mut connection = Connection::open(&gateway).await;
        for at in 0..1250 {
            let wrong = format!("Bearer sluice_{flood}_{at}");
            let answer = connection
                .call(Call::get("/sessions").header("Authorization", &wrong))
                .await;
            assert_eq!(answer.status, 401);
            connection = answer.body_and_connection().await.1;
        }
    }));
    let mut flood = std::pin::pin!(flood);
    let (mut words, mut gaps, mut last) = (0, Vec::new(), Instant::now());
    loop {
        tokio::select! {
            event = stream.next_event_named("token") => {
                gaps.push(last.elapsed());
                (last, words) = (Instant::now(), words + event.data.len());
            }
            _ = &mut flood => break,
        }
    }
    assert!(words > 10, "{words} words while the flood lasted");
    // The machine may do something else for a moment.
    gaps.retain(|gap| *gap >= Duration::from_secs(1));
    assert!(gaps.len() <= 2, "{gaps:?} without a word");
}

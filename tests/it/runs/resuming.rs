//! Resuming: from every place, through every door, while it runs and afterwards.
use super::*;

/// A stream from strictly after event `seq` on, cut out of the whole.
fn rest(whole: &Bytes, run: &str, seq: usize) -> Bytes {
    let next = format!("id: {run}:{}\n", seq + 1);
    let at = memchr::memmem::find(whole, next.as_bytes()).unwrap_or(whole.len());
    whole.slice(at..)
}

/// The body to its end, without the `retry` line.
async fn frames(answer: Response) -> Bytes {
    let body = answer.expect(200).await.body().await;
    assert_eq!(body.ending, Ending::Complete);
    body.bytes
        .strip_prefix(b"retry: 2000\n")
        .map_or(body.bytes.clone(), |rest| body.bytes.slice_ref(rest))
}

/// Every way to come back to an event, raw or json.
fn doors(run: &str, id: &str, format: &str) -> Vec<Call> {
    let escaped = id.replace(':', "%3A");
    let body = json!({"message": "Hi", "format": format});
    vec![
        Call::get(&format!("/runs/{run}/events?format={format}")).header("Last-Event-ID", id),
        Call::get(&format!("/runs/{run}/events?format={format}&last_event_id={escaped}")),
        Call::get(&format!("/runs/{run}/events?format={format}&lastEventId={escaped}")),
        Call::get(&format!("/chat/sse?message=Hi&lastEventId={escaped}&format={format}")),
        Call::post(&format!("/chat/sse?lastEventId={id}")).json(&body),
        // The documented name counts before the other one.
        Call::get(&format!(
            "/chat/sse?lastEventId={run}:0&last_event_id={escaped}&format={format}"
        )),
        Call::get(&format!("/chat/sse?message=Hi&format={format}")).header("Last-Event-ID", id),
        Call::get(&format!("/chat/sse?last_event_id={escaped}&format={format}")),
        Call::post(&format!("/chat/sse?format={format}"))
            .json(&json!({"message": "Hi"}))
            .header("Last-Event-ID", id),
        Call::post("/chat/sse").json(&body).header("Last-Event-ID", id),
        Call::post(&format!("/chat/sse?last_event_id={id}")).json(&body),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stream_cut_at_any_place_goes_on_strictly_after_it_through_every_door() {
    let gate = Gate::new("halfway");
    let half = PIECES[..5]
        .iter()
        .fold(Script::sse().role(), |script, piece| script.say(piece));
    let script = PIECES[5..]
        .iter()
        .fold(half.wait(&gate), |script, piece| script.say(piece))
        .complete();
    let upstream = Upstream::always(script).await;
    let gateway = Gateway::with(&upstream).start().await;

    let mut whole = post(&gateway, "/chat/sse", json!({"message": "Hi"})).await;
    let run = whole.header("x-run-id").to_owned();
    let mut before = Vec::new();
    for _ in 0..=5 {
        before.push(whole.next_event().await);
    }
    gate.reached().await;
    // Readers from every event so far, while the run stands still in the middle.
    let mut following = Vec::new();
    for seq in 0..=5 {
        for format in ["raw", "json"] {
            for call in doors(&run, &format!("{run}:{seq}"), format) {
                following.push((
                    seq,
                    format,
                    format!("{call:?}"),
                    call.to(&gateway).await.expect(200).await,
                ));
            }
        }
    }
    gate.open();
    let whole = whole.transcript().await;
    assert_eq!(whole.done()["response"]["content"], PIECES.concat());
    assert_eq!(whole.text(), PIECES.concat().replace("\r\n", "\n").replace('\r', "\n"));

    let raw = frames(get(&gateway, &format!("/runs/{run}/events")).await).await;
    let chunks = frames(get(&gateway, &format!("/runs/{run}/events?format=json")).await).await;
    let last = whole.events.len() - 1;
    assert_eq!(last, PIECES.len() + 1, "{:?}", whole.kinds());
    let expected = |format: &str, seq| rest(if format == "raw" { &raw } else { &chunks }, &run, seq);
    let mut wrong = Vec::new();
    for (seq, format, call, answer) in following {
        if frames(answer).await != expected(format, seq) {
            wrong.push(format!("followed after {seq}: {call}"));
        }
    }
    for seq in 0..=last {
        for format in ["raw", "json"] {
            for call in doors(&run, &format!("{run}:{seq}"), format) {
                let (name, answer) = (format!("replayed after {seq}: {call:?}"), call.to(&gateway).await);
                let right = match seq == last {
                    true => answer.status == 204 && answer.body().await.bytes.is_empty(),
                    false => frames(answer).await == expected(format, seq),
                };
                if !right {
                    wrong.push(name);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // What the strict reader makes of the resumed streams, once each.
    for format in ["raw", "json"] {
        for seq in 0..last {
            let call = Call::get(&format!("/runs/{run}/events?format={format}"));
            let resumed = call
                .header("Last-Event-ID", &format!("{run}:{seq}"))
                .to(&gateway)
                .await
                .transcript()
                .await;
            assert_eq!(
                (resumed.events.len(), resumed.terminal().event.as_str()),
                (last - seq, "done")
            );
        }
    }
    assert_eq!(upstream.calls(), 1, "a resume asked the model");
}

#[tokio::test]
async fn the_header_wins_over_the_address() {
    let upstream = Upstream::always(openai::answer(&["a", "b", "c"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    let other = begin(&gateway, json!({"message": "Hi"})).await;
    let run = begin(&gateway, json!({"message": "Hi"})).await;
    ended(&gateway, &run).await;
    for old in [format!("{run}:0"), format!("{other}:0"), "rubbish".to_owned()] {
        for path in [
            format!("/runs/{run}/events?last_event_id={old}"),
            format!("/chat/sse?message=Hi&last_event_id={old}"),
        ] {
            let call = Call::get(&path).header("Last-Event-ID", &format!("{run}:2"));
            let events = call.to(&gateway).await.expect(200).await.transcript().await;
            assert_eq!((events.events[0].seq, events.text().as_str()), (3, "c"), "{path}");
        }
    }
    ended(&gateway, &other).await;
    assert_eq!(upstream.calls(), 2);
}

#[tokio::test]
async fn whatever_body_a_request_has_that_comes_back_it_is_let_in() {
    let upstream = Upstream::always(openai::answer(&["a", "b", "c"])).await;
    let gateway = Gateway::with(&upstream).start().await;
    let run = begin(&gateway, json!({"message": "Hi"})).await;
    ended(&gateway, &run).await;
    let back = || Call::post("/chat/sse").header("Last-Event-ID", &format!("{run}:2"));
    let json = r#"{"format":"json"}"#;
    for (call, token) in [
        (back(), "c"),
        (back().body("no JSON {"), "c"),
        (back().header("Content-Type", "text/plain").body("c=d"), "c"),
        (back().header("Content-Encoding", "gzip").body("\u{1f}no gzip"), "c"),
        (
            back()
                .header("Content-Type", "application/json")
                .header("Content-Encoding", "br")
                .body(json),
            "c",
        ),
        (back().header("Content-Type", "text/plain").body(json), "{"),
    ] {
        let what = format!("{call:?}");
        let answer = call.to(&gateway).await;
        assert_eq!(answer.status, 200, "{what}");
        let events = answer.transcript().await;
        assert_eq!(events.events[0].seq, 3, "{what}");
        assert!(
            events.events[0].data.starts_with(token),
            "{what}: {}",
            events.events[0].data
        );
    }
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn what_names_no_event_of_the_run_is_refused() {
    let gate = Gate::new("the end");
    let upstream = Upstream::start([
        openai::answer(&["a"]),
        Script::sse().role().say("a").wait(&gate).complete(),
    ])
    .await;
    let gateway = Gateway::with(&upstream).start().await;
    let over = begin(&gateway, json!({"message": "Hi"})).await;
    ended(&gateway, &over).await; // 0 start, 1 token, 2 done
    let open = begin(&gateway, json!({"message": "Hi"})).await;
    gate.reached().await;
    let mut reader = get(&gateway, &format!("/runs/{open}/events")).await;
    reader.next_event_named("token").await; // 0 start, 1 token

    let upper = over.to_uppercase();
    let unknown = "01920000-0000-7000-8000-000000000001";
    let mut rows: Vec<(String, String, u16, &str)> = Vec::new();
    let malformed = [
        "abc".to_owned(),
        "1".to_owned(),
        over.clone(),
        format!("{over}:"),
        format!("{over}:-1"),
        format!("{over}:+1"),
        format!("{over}:01"),
        format!("{over}:00"),
        format!("{over}:1x"),
        format!("{over}:1:1"),
        format!("{over}: 1"),
        format!("{over}:18446744073709551616"),
        format!("{over}:99999999999999999999999"),
        format!("{upper}:1"),
        format!("{}:1", over.replace('-', "")),
        format!("{{{over}}}:1"),
        "é:1".to_owned(),
    ];
    for id in malformed {
        rows.push((over.clone(), id, 400, "last_event_id_invalid"));
    }
    for (run, id) in [
        (&over, format!("{over}:3")),
        (&over, format!("{over}:18446744073709551615")),
        (&open, format!("{open}:2")),
    ] {
        rows.push((run.clone(), id, 400, "last_event_id_invalid")); // ahead of the log
    }
    rows.push((over.clone(), format!("{open}:0"), 400, "another run's"));
    rows.push((over.clone(), format!("{unknown}:0"), 400, "another run's"));
    rows.push((unknown.to_owned(), format!("{unknown}:0"), 404, "not_found"));
    let mut wrong = Vec::new();
    for (run, id, status, code) in rows {
        let escaped: String = id.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let mut calls = vec![
            Call::get(&format!("/runs/{run}/events")).header("Last-Event-ID", &id),
            Call::get(&format!("/runs/{run}/events?last_event_id={escaped}")),
        ];
        if code != "another run's" {
            calls.extend([
                Call::get("/chat/sse?message=Hi").header("Last-Event-ID", &id),
                Call::get(&format!("/chat/sse?message=Hi&last_event_id={escaped}")),
                Call::post("/chat/sse")
                    .json(&json!({"message": "Hi"}))
                    .header("Last-Event-ID", &id),
            ]);
        }
        let code = if code == "another run's" {
            "last_event_id_invalid"
        } else {
            code
        };
        for call in calls {
            let name = format!("{call:?}");
            let connection = Connection::open(&gateway).await;
            let answer = connection.call(call).await;
            let got = (
                answer.status,
                if answer.status >= 400 {
                    answer.problem().await
                } else {
                    String::new()
                },
            );
            if got != (status, code.to_owned()) {
                wrong.push(format!("{got:?} instead of {status} {code} for {name}"));
            }
        }
    }
    for path in [
        format!("/runs/{unknown}/events"),
        "/runs/abc/events".to_owned(),
        format!("/runs/{upper}/events"),
    ] {
        let answer = get(&gateway, &path).await;
        if answer.status != 404 || answer.problem().await != "not_found" {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    gate.open();
    assert_eq!(reader.transcript().await.done()["response"]["content"], "a");
    assert_eq!(upstream.calls(), 2);
}

#[tokio::test]
async fn a_log_is_replayable_for_its_window_and_then_gone() {
    let upstream = Upstream::always(openai::answer(&["a", "b"])).await;
    let gateway = Gateway::with(&upstream)
        .toml("[runs]\nreplay_window = \"3s\"")
        .toml(meters::WATCHED)
        .start()
        .await;
    let whole = post(&gateway, "/chat/sse", json!({"message": "Hi"}))
        .await
        .transcript()
        .await;
    whole.done();
    let (run, last) = (whole.events[0].run_id.clone(), whole.last_id().unwrap().to_owned());
    let path = format!("/runs/{run}/events");
    let replay = get(&gateway, &path).await.expect(200).await.transcript().await;
    assert_eq!(replay.events.len(), whole.events.len());
    let came_late = eventually("the log to expire", async || {
        Some(get(&gateway, &path).await).filter(|answer| answer.status != 200)
    })
    .await;
    assert_eq!(
        (came_late.status, came_late.problem().await.as_str()),
        (410, "replay_expired")
    );
    for call in [
        Call::get(&path).header("Last-Event-ID", &format!("{run}:1")),
        Call::get(&format!("/chat/sse?message=Hi&last_event_id={run}:0")),
        Call::post("/chat/sse")
            .json(&json!({"message": "Hi"}))
            .header("Last-Event-ID", &format!("{run}:1")),
        Call::get(&path).header("Last-Event-ID", &format!("{run}:99")), // ahead, and ended
    ] {
        assert_eq!(call.to(&gateway).await.problem().await, "replay_expired");
    }
    // Who has it all is told to stop, however late.
    let done = Call::get("/chat/sse?message=Hi").header("Last-Event-ID", &last);
    assert_eq!(done.to(&gateway).await.status, 204);
    let counted = Meters::of(&gateway.admin()).await;
    for (how, times) in [("expired", 4.0), ("finished", 1.0), ("hit", 0.0)] {
        assert_eq!(counted.get(&format!("resumes_total{{how=\"{how}\"}}")), times, "{how}");
    }
    // Its result is kept.
    assert_eq!(glance(&gateway, &run).await["response"]["content"], "ab");
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_broken_run_is_replayed_with_its_error() {
    let upstream = Upstream::always(Script::sse().role().say("a").say("b").cut()).await;
    let gateway = Gateway::with(&upstream).start().await;
    let whole = post(&gateway, "/chat/sse", json!({"message": "Hi"}))
        .await
        .transcript()
        .await;
    assert_eq!(
        (whole.text().as_str(), whole.codes()),
        ("ab", vec!["upstream_truncated".to_owned()])
    );
    let id = whole.events[1].id.clone();
    let resumed = Call::get("/chat/sse?message=Hi")
        .header("Last-Event-ID", &id)
        .to(&gateway)
        .await
        .transcript()
        .await;
    assert_eq!(
        (resumed.kinds(), resumed.codes()),
        (vec!["token", "error"], whole.codes())
    );
    let done = Call::get("/chat/sse?message=Hi")
        .header("Last-Event-ID", whole.last_id().unwrap())
        .to(&gateway)
        .await;
    assert_eq!(done.status, 204);
    assert_eq!(upstream.calls(), 1);
}

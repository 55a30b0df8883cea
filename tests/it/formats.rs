//! What a client reads, to the byte: one answer as JSON, as text and as server-sent events, and what of the request the
//! provider got to see.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::house::{
    Body, Call, Connection, Ending, Event, Gate, Gateway, Place, Script, Transcript, Upstream, get, openai, post,
    within,
};

/// Long enough to see that something does not happen.
const A_WHILE: Duration = Duration::from_millis(150);

/// A gateway in front of one answer in these pieces.
async fn answering(pieces: &[&str]) -> (Upstream, Gateway) {
    in_front_of(openai::answer(pieces)).await
}

async fn in_front_of(script: Script) -> (Upstream, Gateway) {
    let upstream = Upstream::always(script).await;
    let gateway = Gateway::with(&upstream).patient().start().await;
    (upstream, gateway)
}

async fn json_answer(gateway: &Gateway, body: Value) -> Value {
    post(gateway, "/chat", body).await.expect(200).await.json().await
}

async fn text_answer(gateway: &Gateway, body: Value) -> Body {
    post(gateway, "/chat/stream", body).await.expect(200).await.body().await
}

async fn events(gateway: &Gateway, body: Value) -> Transcript {
    post(gateway, "/chat/sse", body)
        .await
        .expect(200)
        .await
        .transcript()
        .await
}

/// The bytes of the frames between `start` and `done`, with `RUN` for the run's id.
async fn raw_frames(gateway: &Gateway, call: Call) -> String {
    let response = call.to(gateway).await.expect(200).await;
    let run_id = response.header("x-run-id").to_owned();
    let body = response.body().await;
    assert_eq!(body.ending, Ending::Complete);
    let text = body.text().replace(&run_id, "RUN");
    let from = text.find("\n\n").expect("a start") + 2;
    let to = text.rfind("id: RUN:").expect("a done");
    assert!(text[to..].contains("\nevent: done\ndata: {"), "{text}");
    text[from..to].to_owned()
}

fn asked(message: &str) -> Call {
    Call::post("/chat/sse").json(&json!({"message": message}))
}

#[tokio::test]
async fn a_small_answer_as_events_is_these_bytes() {
    let (_upstream, gateway) = answering(&["Hello", ",\nworld"]).await;
    let body = json!({"message": "Hi", "session_id": "kitchen", "metadata": {"k": "v"}});
    let response = post(&gateway, "/chat/sse", body).await.expect(200).await;
    let run = response.header("x-run-id").to_owned();
    let body = response.body().await;
    let whole = body.text();
    let done: Value = serde_json::from_str(whole.trim_end().rsplit_once("data: ").expect("data").1).expect("JSON");
    let (took, first) = (&done["metadata"]["duration_ms"], &done["metadata"]["first_token_ms"]);
    assert!(took.as_u64() >= first.as_u64() && first.is_u64(), "{done}");
    let usage =
        r#"{"input_tokens":12,"output_tokens":34,"cached_input_tokens":0,"reasoning_tokens":0,"estimated":false}"#;
    let expected = format!(
        r#"retry: 2000
id: {run}:0
event: start
data: {{"chunk_type":"start","chunk_index":0,"content":"","delta":"","is_final":false,"run_id":"{run}","session_id":"kitchen","agent":"assistant","model":"openai/test-model"}}

id: {run}:1
event: token
data: Hello

id: {run}:2
event: token
data: ,
data: world

id: {run}:3
event: done
data: {{"chunk_type":"done","chunk_index":3,"content":"","delta":"","is_final":true,"run_id":"{run}","session_id":"kitchen","model":"openai/test-model","finish_reason":"stop","metadata":{{"model":"openai/test-model","usage":{usage},"rounds":1,"duration_ms":{took},"first_token_ms":{first}}},"structured_data":null,"artifact_files":[],"response":{{"run_id":"{run}","session_id":"kitchen","agent":"assistant","model":"openai/test-model","content":"Hello,\nworld","finish_reason":"stop","usage":{usage},"rounds":1,"tool_calls":[],"structured_data":null,"artifact_files":[],"messages":[{{"role":"user","content":"Hi","tool_calls":[],"tool_call_id":null}},{{"role":"assistant","content":"Hello,\nworld","tool_calls":[],"tool_call_id":null}}],"metadata":{{"k":"v"}}}}}}

"#
    );
    assert_eq!(whole, expected);
    assert_eq!(body.ending, Ending::Complete);
}

#[tokio::test]
async fn an_error_as_events_is_a_start_and_these_bytes() {
    let (_upstream, gateway) = in_front_of(Script::status(403, &[], "{}")).await;
    let call = Call::post("/chat/sse").json(&json!({"message": "Hi", "session_id": "s"}));
    let response = call
        .header("X-Request-Id", "my-request")
        .to(&gateway)
        .await
        .expect(200)
        .await;
    let run = response.header("x-run-id").to_owned();
    let body = response.body().await;
    let last = body.text().split("\n\n").nth(1).expect("a second frame");
    let problem = format!(
        r#"{{"type":"about:blank","title":"The provider refused the gateway","status":502,"detail":"The model's provider refused this gateway's credentials.","code":"upstream_auth","request_id":"my-request","run_id":"{run}","session_id":"s","retryable":false,"upstream":{{"provider":"openai","status":403}}}}"#
    );
    assert_eq!(
        last,
        format!(
            "id: {run}:1\nevent: error\ndata: {{\"chunk_type\":\"error\",\"chunk_index\":1,\"content\":\"\",\"delta\":\"\",\
             \"is_final\":false,\"run_id\":\"{run}\",\"session_id\":\"s\",\"model\":\"openai/test-model\",\"error\":{problem}}}"
        )
    );
    let refused = Call::post("/chat").json(&json!({"message": "Hi", "session_id": "s"}));
    let refused = refused.header("X-Request-Id", "my-request").to(&gateway).await;
    let object = refused.problem_object().await;
    let as_event: Value = serde_json::from_str(&problem).expect("JSON");
    for member in [
        "type",
        "title",
        "status",
        "detail",
        "code",
        "request_id",
        "session_id",
        "retryable",
        "upstream",
    ] {
        assert_eq!(
            object[member], as_event[member],
            "{member}: the same object in both forms"
        );
    }
}

#[tokio::test]
async fn raw_tokens_are_lines_of_data() {
    let table: &[(&str, &[&str], &str)] = &[
        (
            "a line break",
            &["a\nb"],
            "id: RUN:1\nevent: token\ndata: a\ndata: b\n\n",
        ),
        (
            "one at the end",
            &["a\n"],
            "id: RUN:1\nevent: token\ndata: a\ndata: \n\n",
        ),
        ("only one", &["\n"], "id: RUN:1\nevent: token\ndata: \ndata: \n\n"),
        ("CR", &["a\rb"], "id: RUN:1\nevent: token\ndata: a\ndata: b\n\n"),
        ("CRLF", &["a\r\nb"], "id: RUN:1\nevent: token\ndata: a\ndata: b\n\n"),
        (
            "CRLF over two tokens",
            &["a\r", "\nb"],
            "id: RUN:1\nevent: token\ndata: a\ndata: \n\nid: RUN:2\nevent: token\ndata: b\n\n",
        ),
        (
            "a token that is the LF of a CRLF is there, and empty",
            &["a\r", "\n", "b"],
            "id: RUN:1\nevent: token\ndata: a\ndata: \n\nid: RUN:2\nevent: token\ndata: \n\nid: RUN:3\nevent: token\ndata: b\n\n",
        ),
        (
            "CR and CRLF over two tokens are two line ends",
            &["\r", "\r\n"],
            "id: RUN:1\nevent: token\ndata: \ndata: \n\nid: RUN:2\nevent: token\ndata: \ndata: \n\n",
        ),
        (
            "an empty upstream delta has no number",
            &["a", "", "b"],
            "id: RUN:1\nevent: token\ndata: a\n\nid: RUN:2\nevent: token\ndata: b\n\n",
        ),
        (
            "leading spaces stay",
            &[" a", "  b"],
            "id: RUN:1\nevent: token\ndata:  a\n\nid: RUN:2\nevent: token\ndata:   b\n\n",
        ),
        (
            "a frame's bytes in the text are text",
            &["\n\nevent: done\ndata: {}\n\n", ": hb\nid: x"],
            "id: RUN:1\nevent: token\ndata: \ndata: \ndata: event: done\ndata: data: {}\ndata: \ndata: \n\n\
             id: RUN:2\nevent: token\ndata: : hb\ndata: id: x\n\n",
        ),
        (
            "odd characters are themselves",
            &["\u{2028}\u{2029}", "a\u{0}b", "\u{FEFF}", "\u{85}\u{B}\u{C}"],
            "id: RUN:1\nevent: token\ndata: \u{2028}\u{2029}\n\nid: RUN:2\nevent: token\ndata: a\u{0}b\n\n\
             id: RUN:3\nevent: token\ndata: \u{FEFF}\n\nid: RUN:4\nevent: token\ndata: \u{85}\u{B}\u{C}\n\n",
        ),
    ];
    let mut wrong = Vec::new();
    for (name, pieces, expected) in table {
        let (_upstream, gateway) = answering(pieces).await;
        let found = raw_frames(&gateway, asked("Hi")).await;
        if found != *expected {
            wrong.push(format!("{name}: {found:?} instead of {expected:?}"));
        }
        let strict = events(&gateway, json!({"message": "Hi"})).await;
        let folded = pieces.concat().replace("\r\n", "\n").replace('\r', "\n");
        if strict.text() != folded {
            wrong.push(format!("{name}: {:?} instead of {folded:?}", strict.text()));
        }
        let text = text_answer(&gateway, json!({"message": "Hi"})).await;
        if text.bytes != pieces.concat() {
            wrong.push(format!("{name}: as text {:?}", text.bytes));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn tokens_as_chunks_say_exactly_what_the_model_said() {
    let pieces = ["a\r", "\nb", " \"c\"", "\u{2028}\u{0}", "👩\u{200D}👧"];
    let (_upstream, gateway) = answering(&pieces).await;
    let by_field = Call::post("/chat/sse").json(&json!({"message": "Hi", "format": "json"}));
    let by_query = Call::post("/chat/sse?format=json").json(&json!({"message": "Hi"}));
    let by_get = Call::get("/chat/sse?message=Hi&format=json");
    for call in [by_field, by_query, by_get] {
        let transcript = call.to(&gateway).await.expect(200).await.transcript().await;
        let tokens: Vec<&Event> = transcript
            .events
            .iter()
            .filter(|event| event.event == "token")
            .collect();
        assert_eq!(
            tokens.iter().map(|token| token.text.as_str()).collect::<Vec<_>>(),
            pieces
        );
        let first = tokens[0].json();
        let (run, session) = (&first["run_id"], &first["session_id"]);
        assert_eq!(
            tokens[0].data,
            format!(
                r#"{{"chunk_type":"text","chunk_index":1,"content":"a\r","delta":"a\r","is_final":false,"run_id":{run},"session_id":{session},"model":"openai/test-model"}}"#
            )
        );
        let joined: String = transcript
            .events
            .iter()
            .filter_map(|e| e.json()["content"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(
            (joined, transcript.done()["response"]["content"].clone()),
            (pieces.concat(), pieces.concat().into())
        );
    }
    let raw = Call::post("/chat/sse?format=raw")
        .json(&json!({"message": "Hi"}))
        .to(&gateway)
        .await;
    assert_eq!(raw.transcript().await.text(), pieces.concat().replace("\r\n", "\n"));
    let neither = Call::post("/chat/sse?format=xml")
        .json(&json!({"message": "Hi"}))
        .to(&gateway)
        .await;
    assert_eq!(neither.problem().await, "field_invalid");
}

#[tokio::test]
async fn silence_is_filled_with_heartbeats_from_the_first_moment() {
    let (before, between) = (Gate::new("before the first word"), Gate::new("between two words"));
    let script = Script::sse()
        .role()
        .wait(&before)
        .say("a")
        .wait(&between)
        .say("b")
        .complete();
    let upstream = Upstream::always(script).await;
    let recipe = Gateway::with(&upstream).toml("[server]\nheartbeat = \"60ms\"");
    let gateway = recipe.start().await;
    let mut response = asked("Hi").to(&gateway).await.expect(200).await;
    let mut bytes = Vec::new();
    let mut read_to = async |end: &str| {
        while !String::from_utf8_lossy(&bytes).contains(end) {
            bytes.extend_from_slice(&response.next_bytes().await.expect("a stream under way"));
        }
        String::from_utf8(bytes.clone()).expect("whole characters")
    };
    let silent = read_to("}\n\n: hb\n: hb\n").await;
    let (start, heartbeats) = silent.split_once("\n\n").expect("a frame");
    assert!(
        start.starts_with("retry: 2000\nid: ") && start.contains("\nevent: start\n"),
        "{silent}"
    );
    assert_eq!(
        heartbeats.replace(": hb\n", ""),
        "",
        "nothing but heartbeats, and no blank line after one"
    );
    before.open();
    read_to("\ndata: a\n\n: hb\n").await;
    between.open();
    while let Some(more) = response.next_bytes().await {
        bytes.extend_from_slice(&more);
    }
    let whole = String::from_utf8(bytes).expect("whole characters");
    assert!(!whole.contains(": hb\n\n"), "a heartbeat ends no event: {whole}");
}

#[tokio::test]
async fn the_headers_are_these_and_no_others() {
    let (_upstream, gateway) = answering(&["Hi."]).await;
    let table = [
        ("/chat/sse", "text/event-stream", "no-cache, no-transform"),
        ("/chat/stream", "text/plain; charset=utf-8", "no-cache, no-transform"),
        ("/chat", "application/json", "no-store"),
    ];
    for (path, media_type, cache) in table {
        let call = Call::post(path).json(&json!({"message": "Hi", "session_id": "s"}));
        let call = call
            .header("Accept-Encoding", "gzip, br, deflate, zstd")
            .header("X-Request-Id", "mine");
        let response = call.to(&gateway).await.expect(200).await;
        let headers = response.headers.clone();
        assert_eq!(headers.get("content-type"), Some(media_type), "{path}");
        assert_eq!(headers.get("cache-control"), Some(cache), "{path}");
        assert_eq!(
            (headers.get("x-session-id"), headers.get("x-request-id")),
            (Some("s"), Some("mine")),
            "{path}"
        );
        assert_eq!(headers.get("x-run-id").map(str::len), Some(36), "{path}");
        let mut names: Vec<String> = headers.0.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.sort();
        let mut expected = vec![
            "cache-control",
            "content-type",
            "date",
            "vary",
            "x-request-id",
            "x-run-id",
            "x-session-id",
        ];
        expected.push(if path == "/chat" {
            "content-length"
        } else {
            "transfer-encoding"
        });
        if path != "/chat" {
            expected.push("x-accel-buffering");
            assert_eq!(headers.get("x-accel-buffering"), Some("no"), "{path}");
        }
        expected.sort_unstable();
        // What CORS says beside them is for browsers, and depends on who asks.
        names.retain(|name| !name.starts_with("access-control-"));
        assert_eq!(names, expected, "{path}");
        response.body().await;
    }
}

#[tokio::test]
async fn start_is_on_the_wire_before_the_model_is_called() {
    let gate = Gate::new("the provider's answer");
    let upstream = Upstream::always(Script::raw().wait(&gate).step(openai_head()).say("a").complete()).await;
    let gateway = Gateway::with(&upstream).start().await;
    let mut response = asked("Hi").to(&gateway).await.expect(200).await;
    assert_eq!(response.next_event().await.event, "start");
    upstream.next_request().await;
    gate.open();
    assert_eq!(response.transcript().await.text(), "a");
}

/// The head of a stream of events, as a step.
fn openai_head() -> crate::house::Step {
    crate::house::Step::Head {
        status: 200,
        headers: vec![("content-type".into(), "text/event-stream".into())],
        framing: crate::house::Framing::Chunked,
    }
}

#[tokio::test]
async fn a_texts_headers_wait_for_the_models_first_word() {
    let (role, word) = (Gate::new("the role was said"), Gate::new("the first word"));
    let script = Script::sse()
        .role()
        .wait(&role)
        .send(": ping\n\n")
        .wait(&word)
        .say("Hel")
        .say("lo")
        .complete();
    let (_upstream, gateway) = in_front_of(script).await;
    let answer = post(&gateway, "/chat/stream", json!({"message": "Hi"}));
    tokio::pin!(answer);
    for gate in [&role, &word] {
        tokio::select! {
            response = &mut answer => panic!("headers before the first word: {response:?}"),
            () = async { gate.reached().await; tokio::time::sleep(A_WHILE).await } => {}
        }
        gate.open();
    }
    let body = answer.await.expect(200).await.body().await;
    assert_eq!((body.text(), &body.ending), ("Hello", &Ending::Complete));
}

#[tokio::test]
async fn a_texts_headers_wait_ten_seconds_at_most() {
    let gate = Gate::new("a model that thinks");
    let upstream = Upstream::always(Script::sse().role().wait(&gate).cut()).await;
    let gateway = Gateway::with(&upstream).start().await;
    let began = Instant::now();
    let connection = Connection::open(&gateway).await.patience(Duration::from_secs(20));
    let call = Call::post("/chat/stream").json(&json!({"message": "Hi"}));
    let response = connection.call(call).await.expect(200).await;
    let waited = began.elapsed();
    assert!((9_900..14_000).contains(&waited.as_millis()), "{waited:?}");
    gate.open();
    let body = response.body().await;
    assert!(body.bytes.is_empty() && body.ending.is_aborted(), "{body:?}");
}

#[tokio::test]
async fn an_aborted_text_lacks_its_last_chunk_and_a_whole_one_has_it() {
    let whole = openai::answer(&["Hel", "lo"]);
    for (script, last_chunk) in [(whole, true), (Script::sse().say("Hel").say("lo").cut(), false)] {
        let (_upstream, gateway) = in_front_of(script).await;
        let mut connection = Connection::open(&gateway).await;
        let body = r#"{"message":"Hi"}"#;
        let head = format!(
            "POST /chat/stream HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            gateway.addr(),
            body.len()
        );
        connection.send_raw(head + body).await;
        let mut response = connection.answer("the text").await;
        let mut text = Vec::new();
        while let Some(bytes) = response.next_bytes().await {
            text.extend_from_slice(&bytes);
        }
        assert_eq!(text, b"Hello");
        let ending = match last_chunk {
            true => Ending::Complete,
            false => Ending::Aborted("closed before the last chunk".into()),
        };
        assert_eq!(response.ending(), Some(&ending));
        response.connection().closed().await;
    }
}

#[tokio::test]
async fn words_that_came_together_with_the_break_are_still_delivered() {
    let words_and_nonsense = [
        openai::text("Hel"),
        openai::text("lo"),
        Bytes::from_static(b"data: {\n\n"),
    ]
    .concat();
    let (_upstream, gateway) = in_front_of(Script::sse().send(words_and_nonsense).hang()).await;
    // Without a store nothing stands between the last word and the end of the run.
    let body = json!({"message": "Hi", "store": false});
    let text = text_answer(&gateway, body.clone()).await;
    assert_eq!(text.text(), "Hello");
    assert!(text.ending.is_aborted(), "{:?}", text.ending);
    let transcript = events(&gateway, body).await;
    assert_eq!(
        (transcript.text().as_str(), transcript.codes()),
        ("Hello", vec!["upstream_protocol".to_owned()])
    );
}

#[tokio::test]
async fn an_empty_answer_is_whole_in_every_format() {
    let (_upstream, gateway) = in_front_of(Script::sse().role().complete()).await;
    let body = json!({"message": "Hi"});
    assert_eq!(json_answer(&gateway, body.clone()).await["content"], "");
    let text = text_answer(&gateway, body.clone()).await;
    assert_eq!((text.text(), &text.ending), ("", &Ending::Complete));
    let transcript = events(&gateway, body).await;
    assert_eq!(transcript.kinds(), ["start", "done"]);
    assert_eq!(transcript.done()["metadata"]["first_token_ms"], Value::Null);
}

#[tokio::test]
async fn a_json_answer_has_every_field() {
    let (_upstream, gateway) = answering(&["Hel", "lo"]).await;
    let metadata = json!({"ticket": "42", "lang": "de"});
    let body = json!({"message": "Hi", "session_id": "s", "metadata": metadata});
    let answer = json_answer(&gateway, body).await;
    let run_id = answer["run_id"].as_str().expect("a run id").to_owned();
    let expected = json!({
        "run_id": run_id, "session_id": "s", "agent": "assistant", "model": "openai/test-model",
        "content": "Hello", "finish_reason": "stop",
        "usage": {"input_tokens": 12, "output_tokens": 34, "cached_input_tokens": 0, "reasoning_tokens": 0, "estimated": false},
        "rounds": 1, "tool_calls": [], "structured_data": null, "artifact_files": [],
        "messages": [
            {"role": "user", "content": "Hi", "tool_calls": [], "tool_call_id": null},
            {"role": "assistant", "content": "Hello", "tool_calls": [], "tool_call_id": null}],
        "metadata": metadata,
    });
    assert_eq!(answer, expected);

    let run = get(&gateway, &format!("/runs/{run_id}"))
        .await
        .expect(200)
        .await
        .json()
        .await;
    let times = (run["created_at"].clone(), run["ended_at"].clone());
    let ended = json!({
        "run_id": run_id, "session_id": "s", "agent": "assistant", "model": "openai/test-model", "status": "completed",
        "created_at": times.0, "ended_at": times.1, "last_seq": 3, "finish_reason": "stop",
        "usage": expected["usage"], "error": null, "response": expected, "metadata": metadata});
    assert_eq!(run, ended);
    for time in [times.0, times.1] {
        let time = time.as_str().expect("a time");
        assert!(time.ends_with('Z') && time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    }
    let told = events(&gateway, json!({"message": "Again", "metadata": metadata})).await;
    assert_eq!(told.done()["response"]["metadata"], metadata);
}

#[tokio::test]
async fn what_a_provider_does_not_count_is_estimated_and_what_nobody_knows_is_null() {
    let (_upstream, gateway) = in_front_of(Script::sse().say("four").finish("stop").done().end()).await;
    let usage = json_answer(&gateway, json!({"message": "12345678"})).await["usage"].clone();
    let expected = json!({"input_tokens": 2, "output_tokens": 1, "cached_input_tokens": null, "reasoning_tokens": null, "estimated": true});
    assert_eq!(usage, expected);
    let spare = json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 0}});
    let script = Script::sse()
        .say("a")
        .finish("stop")
        .send(openai::event(&spare))
        .done()
        .end();
    let (_upstream, gateway) = in_front_of(script).await;
    let usage = json_answer(&gateway, json!({"message": "Hi"})).await["usage"].clone();
    let expected = json!({"input_tokens": 7, "output_tokens": 0, "cached_input_tokens": null, "reasoning_tokens": null, "estimated": false});
    assert_eq!(usage, expected);
}

#[tokio::test]
async fn reasoning_is_told_to_who_asks_and_is_never_the_answer() {
    let think = |text: &str| {
        openai::event(&json!({"choices": [{"index": 0, "delta": {"reasoning_content": text}, "finish_reason": null}]}))
    };
    let script = Script::sse()
        .role()
        .send(think("Hm, "))
        .send(think("well\n"))
        .say("So.")
        .complete();
    let (_upstream, gateway) = in_front_of(script).await;
    let asked = json!({"message": "Hi", "include_reasoning": true});
    let transcript = events(&gateway, asked.clone()).await;
    assert_eq!(transcript.kinds(), ["start", "reasoning", "reasoning", "token", "done"]);
    let thoughts: Vec<_> = transcript.events[1..3]
        .iter()
        .map(|event| event.json()["reasoning"].clone())
        .collect();
    assert_eq!(thoughts, ["Hm, ", "well\n"]);
    assert_eq!(
        transcript.events[1].json()["content"],
        "",
        "thinking is not part of the answer"
    );
    let without = events(&gateway, json!({"message": "Hi"})).await;
    assert_eq!(without.kinds(), ["start", "token", "done"]);
    assert_eq!(text_answer(&gateway, asked.clone()).await.text(), "So.");
    // The whole answer has it beside the content, everywhere the same.
    assert_eq!(transcript.terminal().json()["response"]["reasoning"], "Hm, well\n");
    let answer = json_answer(&gateway, asked).await;
    assert_eq!(answer["content"], "So.");
    assert_eq!(answer["reasoning"], "Hm, well\n");
    let run = get(&gateway, &format!("/runs/{}", answer["run_id"].as_str().unwrap())).await;
    assert_eq!(run.expect(200).await.json().await["response"], answer);
    let answer = json_answer(&gateway, json!({"message": "Hi"})).await;
    assert!(!answer.to_string().contains("Hm, "), "{answer}");
}

#[tokio::test]
async fn without_store_nothing_is_kept_but_the_run() {
    let (upstream, gateway) = answering(&["Hi."]).await;
    let body = json!({"message": "Hi", "store": false});
    for path in ["/chat", "/chat/stream", "/chat/sse"] {
        let response = post(&gateway, path, body.clone()).await.expect(200).await;
        assert_eq!(response.headers.get("x-session-id"), None, "{path}");
        let run_id = response.header("x-run-id").to_owned();
        match path {
            "/chat" => assert_eq!(response.json().await["session_id"], Value::Null),
            "/chat/sse" => {
                let transcript = response.transcript().await;
                assert!(
                    transcript
                        .events
                        .iter()
                        .filter(|e| e.event != "token")
                        .all(|e| e.json()["session_id"].is_null())
                );
            }
            _ => assert_eq!(response.body().await.text(), "Hi."),
        }
        let run = get(&gateway, &format!("/runs/{run_id}"))
            .await
            .expect(200)
            .await
            .json()
            .await;
        assert_eq!(
            (&run["status"], &run["session_id"]),
            (&json!("completed"), &Value::Null)
        );
        let replay = get(&gateway, &format!("/runs/{run_id}/events")).await.expect(200).await;
        assert_eq!(replay.transcript().await.text(), "Hi.");
    }
    for request in upstream.requests() {
        assert_eq!(request.json["messages"], json!([{"role": "user", "content": "Hi"}]));
    }
    let sessions = get(&gateway, "/sessions").await.expect(200).await.json().await;
    assert_eq!(sessions, json!({"sessions": [], "next_cursor": null}));
    let named = post(
        &gateway,
        "/chat",
        json!({"message": "Hi", "store": false, "session_id": "s"}),
    )
    .await;
    assert_eq!(named.status, 422);
    assert_eq!(named.problem_object().await["field"], "session_id");
}

#[tokio::test]
async fn the_model_gets_its_prompt_the_facts_and_the_history_in_order() {
    let upstream = Upstream::answering(|request| openai::answer(&[&format!("Answer {}.", request.number)])).await;
    let recipe = Gateway::with(&upstream).patient();
    let gateway = recipe
        .toml("[agents.assistant]\nsystem_prompt = \"Be brief.\"")
        .start()
        .await;
    let context = json!({"plan": "gold", "cart": [1, 2]});
    let turns = [
        json!({"message": "One", "session_id": "s"}),
        json!({"message": "Two", "session_id": "s", "context": context}),
        json!({"message": "Three", "session_id": "s"}),
    ];
    for turn in turns {
        json_answer(&gateway, turn).await;
    }
    let requests = upstream.requests();
    let sent = |number: usize| requests[number].json["messages"].as_array().expect("messages").clone();
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let system = said("system", "Be brief.");
    assert_eq!(sent(0), [system.clone(), said("user", "One")]);
    let second = sent(1);
    assert_eq!(
        second[1..],
        [said("user", "One"), said("assistant", "Answer 0."), said("user", "Two")]
    );
    let (role, told) = (&second[0]["role"], second[0]["content"].as_str().expect("a prompt"));
    assert!(role == "system" && told.starts_with("Be brief.\n\n"), "{told}");
    let facts: Value = serde_json::from_str(&told[told.find('{').expect("facts")..]).expect("JSON");
    assert_eq!(facts, context);
    assert!(told.contains("Context"), "the block is labelled: {told}");
    let third = [
        system,
        said("user", "One"),
        said("assistant", "Answer 0."),
        said("user", "Two"),
        said("assistant", "Answer 1."),
        said("user", "Three"),
    ];
    assert_eq!(sent(2), third, "facts are for their run alone");
    let kept = get(&gateway, "/sessions/s/messages")
        .await
        .expect(200)
        .await
        .json()
        .await;
    assert!(!kept.to_string().contains("gold"), "{kept}");
}

#[tokio::test]
async fn settings_and_images_are_said_in_the_providers_words() {
    let (upstream, gateway) = answering(&["Fine."]).await;
    let settings = json!({"temperature": 0.5, "top_p": 0.9, "max_output_tokens": 64, "stop": ["END", "\n"], "seed": 7, "reasoning_effort": "low"});
    let images =
        json!([{"media_type": "image/png", "data": "iVBORw0KGgo="}, {"media_type": "image/gif", "data": "R0lGODlh"}]);
    let body = json!({"message": "Look", "session_id": "s", "settings": settings, "attachments": images});
    json_answer(&gateway, body).await;
    let parts = json!([
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlh"}}]);
    let first = upstream.next_request().await;
    assert_eq!(
        (first.method.as_str(), first.path.as_str()),
        ("POST", "/v1/chat/completions")
    );
    assert_eq!(
        first.json,
        json!({"model": "test-model", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0.5, "top_p": 0.9,
            "max_completion_tokens": 64, "max_tokens": 64, "stop": ["END", "\n"], "seed": 7, "reasoning_effort": "low",
            "messages": [{"role": "user", "content": parts}]})
    );
    json_answer(&gateway, json!({"message": "And?", "session_id": "s"})).await;
    let second = upstream.next_request().await;
    assert_eq!(
        second.json,
        json!({"model": "test-model", "stream": true, "stream_options": {"include_usage": true}, "messages": [
            {"role": "user", "content": parts}, {"role": "assistant", "content": "Fine."}, {"role": "user", "content": "And?"}]}),
        "images stay in the history, settings do not"
    );
}

/// A round that calls these tools: index, id, name, arguments.
fn calling(calls: &[(&str, &str, &str)]) -> Script {
    calling_after(Script::sse().role(), calls)
}

fn calling_after(script: Script, calls: &[(&str, &str, &str)]) -> Script {
    let script = calls
        .iter()
        .enumerate()
        .fold(script, |script, (index, (id, name, arguments))| {
            let (first, second) = arguments.split_at(arguments.len() / 2);
            script
                .send(openai::tool_delta(index, *id, *name, first))
                .send(openai::tool_delta(index, None, None, second))
        });
    script.finish("tool_calls").usage(10, 20).done().end()
}

/// Every call that an assistant's message makes is answered, right after it, in the wire's own form.
fn assert_well_formed(messages: &Value) {
    let mut open: Vec<&str> = Vec::new();
    for message in messages.as_array().expect("messages") {
        match message["role"].as_str() {
            Some("tool") => {
                let id = message["tool_call_id"].as_str().expect("an id");
                let at = open.iter().position(|known| *known == id);
                open.remove(at.unwrap_or_else(|| panic!("{id} answers nothing in {messages}")));
            }
            _ => assert!(open.is_empty(), "{open:?} have no answer in {messages}"),
        }
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            open.push(call["id"].as_str().expect("an id"));
        }
    }
    assert!(open.is_empty(), "{open:?} have no answer in {messages}");
}

#[tokio::test]
async fn a_tool_that_is_not_there_is_told_to_the_model_and_the_run_goes_on() {
    let calls = [("call_a", "weather", r#"{"city":"Ulm"}"#), ("call_b", "clock", "{}")];
    let asks = calling_after(Script::sse().role().say("Let me look. "), &calls);
    let upstream = Upstream::start([asks, openai::answer(&["I ", "cannot."]), openai::answer(&["Yes."])]).await;
    let gateway = Gateway::with(&upstream).patient().start().await;
    let transcript = events(&gateway, json!({"message": "Hi", "session_id": "s"})).await;
    let kinds = [
        "start",
        "token",
        "tool_call",
        "tool_call",
        "tool_result",
        "tool_result",
        "token",
        "token",
        "done",
    ];
    assert_eq!(transcript.kinds(), kinds);
    let event = |at: usize| transcript.events[at].json();
    assert_eq!(
        event(2)["tool_call"],
        json!({"id": "call_a", "name": "weather", "arguments": {"city": "Ulm"}, "round": 1})
    );
    assert_eq!(
        event(3)["tool_call"],
        json!({"id": "call_b", "name": "clock", "arguments": {}, "round": 1})
    );
    assert_eq!(
        (event(2)["finish_reason"].clone(), event(3)["finish_reason"].clone()),
        (Value::Null, "tool_calls".into())
    );
    for (at, id, name) in [(4, "call_a", "weather"), (5, "call_b", "clock")] {
        let result = event(at)["tool_result"].clone();
        let content = result["content"].as_str().expect("words for the model").to_owned();
        assert!(!content.is_empty());
        assert_eq!(
            result,
            json!({"id": id, "name": name, "ok": false, "content": content, "truncated": false, "duration_ms": result["duration_ms"], "round": 1})
        );
    }
    let response = transcript.done()["response"].clone();
    assert_eq!(
        (&response["content"], &response["rounds"]),
        (&json!("Let me look. I cannot."), &json!(2))
    );
    assert_eq!(transcript.text(), "Let me look. I cannot.");
    assert_eq!(response["usage"]["input_tokens"], 22, "the sum of both rounds");
    assert_eq!(response["usage"]["output_tokens"], 54);
    assert_eq!(response["finish_reason"], "stop");
    let record = &response["tool_calls"][0];
    assert_eq!(
        (&record["id"], &record["name"], &record["arguments"]),
        (&json!("call_a"), &json!("weather"), &json!({"city": "Ulm"}))
    );
    assert_eq!(
        (&record["round"], &record["ok"], record["result"].is_string()),
        (&json!(1), &json!(false), true)
    );
    let roles: Vec<_> = response["messages"]
        .as_array()
        .expect("messages")
        .iter()
        .map(|m| m["role"].clone())
        .collect();
    assert_eq!(roles, ["user", "assistant", "tool", "tool", "assistant"]);

    upstream.next_request().await;
    let second = upstream.next_request().await.json["messages"].clone();
    assert_well_formed(&second);
    assert_eq!(second.as_array().map(Vec::len), Some(4));
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let calls = json!([
        call("call_a", "weather", r#"{"city":"Ulm"}"#),
        call("call_b", "clock", "{}")
    ]);
    assert_eq!(
        second[1],
        json!({"role": "assistant", "content": "Let me look. ", "tool_calls": calls})
    );
    assert_eq!(
        (&second[2]["role"], &second[2]["content"]),
        (&json!("tool"), &record["result"])
    );

    json_answer(&gateway, json!({"message": "And now?", "session_id": "s"})).await;
    let third = upstream.next_request().await.json["messages"].clone();
    assert_well_formed(&third);
    assert_eq!(third.as_array().map(Vec::len), Some(6));
}

#[tokio::test]
async fn a_model_that_only_wants_tools_has_its_rounds_and_then_one_without() {
    for (limit, toml) in [(5, ""), (2, "[agents.assistant]\nmax_tool_rounds = 2")] {
        let upstream = Upstream::answering(|request| {
            let round = request.number;
            let again = Script::sse().role().say(&format!("{round} "));
            again
                .send(openai::tool_delta(0, "same-id", "nope", "{}"))
                .finish("tool_calls")
                .usage(1, 1)
                .done()
                .end()
        })
        .await;
        let gateway = Gateway::with(&upstream).patient().toml(toml).start().await;
        let transcript = events(&gateway, json!({"message": "Hi", "session_id": "s"})).await;
        let response = transcript.done()["response"].clone();
        assert_eq!(upstream.calls(), limit + 1, "{limit} rounds of tools, and a last call");
        assert_eq!(response["finish_reason"], "tool_calls");
        assert_eq!(response["rounds"], limit + 1);
        let said: String = (0..=limit).map(|round| format!("{round} ")).collect();
        assert_eq!(
            (response["content"].as_str(), transcript.text()),
            (Some(said.as_str()), said.clone())
        );
        for request in upstream.requests() {
            assert_well_formed(&request.json["messages"]);
        }
        let last = upstream.requests().pop().expect("a last call").json;
        // Strict servers refuse a history with calls beside a request without tools.
        assert_eq!(last["tool_choice"], "none", "{last}");
        assert!(
            last["tools"].as_array().is_some_and(|tools| !tools.is_empty()),
            "{last}"
        );
        let kept = get(&gateway, "/sessions/s/messages")
            .await
            .expect(200)
            .await
            .json()
            .await;
        assert_well_formed(&kept["messages"]);
        json_answer(&gateway, json!({"message": "And?", "session_id": "s"})).await;
        let request = upstream.requests()[limit + 1].clone();
        assert_well_formed(&request.json["messages"]);
    }
}

#[tokio::test]
async fn after_its_last_round_of_tools_a_model_may_still_answer() {
    let scripts = (0..5)
        .map(|_| calling(&[("a", "nope", "{}")]))
        .chain([openai::answer(&["Then not."])]);
    let upstream = Upstream::start(scripts).await;
    let gateway = Gateway::with(&upstream).patient().start().await;
    let answer = json_answer(&gateway, json!({"message": "Hi"})).await;
    assert_eq!(
        (&answer["content"], &answer["finish_reason"]),
        (&json!("Then not."), &json!("stop"))
    );
    assert_eq!(
        (answer["tool_calls"].as_array().map(Vec::len), upstream.calls()),
        (Some(5), 6)
    );
}

#[tokio::test]
async fn arguments_that_are_no_object_call_nothing_and_give_only_a_result() {
    let calls = [
        ("a", "nope", r#"{"x":"#),
        ("b", "nope", "[1]"),
        ("c", "nope", "{}"),
        ("d", "nope", "{\"x\":1}{}"),
    ];
    let upstream = Upstream::start([calling(&calls), openai::answer(&["Sorry."])]).await;
    let gateway = Gateway::with(&upstream).patient().start().await;
    let transcript = events(&gateway, json!({"message": "Hi", "session_id": "s"})).await;
    let named = |kind: &str, part: &str| -> Vec<String> {
        let events = transcript.events.iter().filter(|event| event.event == kind);
        events
            .map(|event| event.json()[part]["id"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(named("tool_call", "tool_call"), ["c"]);
    let mut results = named("tool_result", "tool_result");
    results.sort();
    assert_eq!(results, ["a", "b", "c", "d"]);
    for event in transcript.events.iter().filter(|event| event.event == "tool_result") {
        assert_eq!(event.json()["tool_result"]["ok"], false);
    }
    let call = transcript
        .events
        .iter()
        .find(|event| event.event == "tool_call")
        .expect("the one");
    assert_eq!(call.json()["finish_reason"], "tool_calls", "the last call of its round");
    let second = upstream.requests()[1].json["messages"].clone();
    assert_well_formed(&second);
    for call in second[1]["tool_calls"].as_array().expect("calls") {
        let arguments = call["function"]["arguments"].as_str().expect("text");
        assert!(
            serde_json::from_str::<serde_json::Map<String, Value>>(arguments).is_ok(),
            "{arguments}"
        );
    }
    assert_eq!(transcript.done()["response"]["content"], "Sorry.");
}

#[tokio::test]
async fn calls_beyond_what_a_round_may_have_and_calls_of_one_name_are_all_answered() {
    let ids: Vec<String> = (0..20).map(|number| format!("call-{}", number / 2)).collect();
    let calls: Vec<_> = ids.iter().map(|id| (id.as_str(), "nope", "{}")).collect();
    let upstream = Upstream::start([calling(&calls), openai::answer(&["Sorry."])]).await;
    let gateway = Gateway::with(&upstream).patient().start().await;
    let transcript = events(&gateway, json!({"message": "Hi"})).await;
    let count = |kind: &str| transcript.kinds().iter().filter(|known| **known == kind).count();
    assert_eq!((count("tool_call"), count("tool_result")), (20, 20));
    let response = transcript.done()["response"].clone();
    let mut known: Vec<_> = response["tool_calls"]
        .as_array()
        .expect("calls")
        .iter()
        .map(|c| c["id"].to_string())
        .collect();
    known.sort();
    known.dedup();
    assert_eq!(known.len(), 20, "each call has its own id");
    assert_well_formed(&upstream.requests()[1].json["messages"]);
}

/// In how many reads the body came: at least as many as there were writes of the gateway.
async fn in_how_many_pieces(gateway: &Gateway, path: &str) -> (usize, Bytes) {
    let mut response = post(gateway, path, json!({"message": "Hi"})).await.expect(200).await;
    let (mut pieces, mut bytes) = (0, Vec::new());
    while let Some(more) = response.next_bytes().await {
        pieces += 1;
        bytes.extend_from_slice(&more);
    }
    assert_eq!(response.ending(), Some(&Ending::Complete));
    (pieces, bytes.into())
}

/// Both streaming formats of a hundred words, and in how few pieces they come.
async fn assert_few_pieces(script: Script, words: &[String]) {
    let (_upstream, gateway) = in_front_of(script).await;
    let (pieces, bytes) = in_how_many_pieces(&gateway, "/chat/sse").await;
    let frames = memchr::memmem::find_iter(&bytes, "\n\n").count();
    assert_eq!(frames, words.len() + 2);
    assert!(pieces <= 15, "{frames} frames in {pieces} pieces");
    let (pieces, bytes) = in_how_many_pieces(&gateway, "/chat/stream").await;
    assert_eq!(bytes, words.concat());
    assert!(pieces <= 10, "{} tokens in {pieces} pieces", words.len());
}

fn hundred_words() -> Vec<String> {
    (0..100).map(|number| format!("w{number} ")).collect()
}

#[tokio::test]
async fn what_comes_in_one_chunk_leaves_in_few() {
    let words = hundred_words();
    let events: Vec<u8> = words.iter().flat_map(|word| openai::text(word)).collect();
    assert_few_pieces(Script::sse().send(events).complete(), &words).await;
}

#[tokio::test]
async fn what_comes_in_one_segment_leaves_in_few_chunks_however_many_chunks_it_was() {
    let words = hundred_words();
    let script = words.iter().fold(Script::sse(), |script, word| script.say(word));
    assert_few_pieces(script.complete().at_once(), &words).await;
}

#[tokio::test]
async fn a_word_is_on_its_way_before_the_next_one_comes() {
    for path in ["/chat/sse", "/chat/stream"] {
        let gates: Vec<Gate> = (0..3).map(|_| Gate::new("the word before was read")).collect();
        let script = gates
            .iter()
            .fold(Script::sse(), |script, gate| script.say("word ").wait(gate));
        let (_upstream, gateway) = in_front_of(script.complete()).await;
        let mut response = post(&gateway, path, json!({"message": "Hi"})).await.expect(200).await;
        let mut bytes = Vec::new();
        for (read, gate) in gates.iter().enumerate() {
            let words = |bytes: &[u8]| memchr::memmem::find_iter(bytes, "word ").count();
            while words(&bytes) <= read {
                bytes.extend_from_slice(&response.next_bytes().await.expect("a word"));
            }
            gate.open();
        }
        while response.next_bytes().await.is_some() {}
        assert_eq!(response.ending(), Some(&Ending::Complete), "{path}");
    }
}

#[tokio::test]
async fn bytes_one_by_one_make_the_same_text_in_all_formats() {
    let pieces = [
        "Grüße, ",
        "世界 ",
        "👩\u{200D}👩\u{200D}👧",
        "🏳️\u{200D}🌈",
        "e\u{301}\u{0}\u{10FFFF}",
    ];
    let (_upstream, gateway) = in_front_of(openai::answer(&pieces).byte_by_byte()).await;
    let body = json!({"message": "Hi"});
    assert_eq!(json_answer(&gateway, body.clone()).await["content"], pieces.concat());
    assert_eq!(text_answer(&gateway, body.clone()).await.bytes, pieces.concat());
    assert_eq!(events(&gateway, body).await.text(), pieces.concat());
}

#[tokio::test]
async fn http_1_0_gets_events_ended_by_close_and_no_text() {
    let (_upstream, gateway) = answering(&["a", "b"]).await;
    let body = json!({"message": "Hi"});
    let call = |path: &str| Call::post(path).json(&body).http10();
    assert_eq!(
        call("/chat/stream")
            .to(&gateway)
            .await
            .expect(505)
            .await
            .problem()
            .await,
        "http_version"
    );
    let response = call("/chat/sse").to(&gateway).await.expect(200).await;
    assert_eq!(response.headers.get("transfer-encoding"), None);
    assert_eq!(response.transcript().await.text(), "ab");
    let whole = within(Duration::from_secs(5), "JSON over HTTP/1.0", call("/chat").to(&gateway)).await;
    assert_eq!(whole.expect(200).await.json().await["content"], "ab");
}

//! Providers from outside: the same answer however the network cuts it, a provider that is nothing but configuration, keys
//! that go where they belong, and many at a time.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};

use crate::house::{
    Ending, Gate, Gateway, Place, Process, Request, Script, Transcript, Upstream, get, openai, post, within,
};

/// A stream of events in any spelling that the format admits.
#[derive(Clone, Debug)]
struct Spelling {
    texts: Vec<String>,
    line_end: &'static str,
    colon: &'static str,
    between: &'static str,
    usage: Option<(u32, u32)>,
    sizes: Vec<usize>,
}

impl Spelling {
    fn script(&self) -> Script {
        let events = self.texts.iter().map(|text| openai::text(text));
        let end = self
            .usage
            .map(|(input, output)| openai::usage(input.into(), output.into()));
        let all = [openai::role()]
            .into_iter()
            .chain(events)
            .chain([openai::finish("stop")])
            .chain(end)
            .chain([openai::done()]);
        all.fold(Script::sse(), |script, event| {
            let event = String::from_utf8(event.to_vec()).expect("our own words");
            let event = event.replacen("data: ", self.colon, 1).replace('\n', self.line_end);
            script.send(event + self.between)
        })
        .end()
    }
}

fn spelling() -> impl Strategy<Value = Spelling> {
    let text = prop_oneof![
        "[ -~]{1,8}",
        "[\n\r :a]{1,6}",
        "(é|世|👩\u{200D}👧|\u{2028}|\u{0}|\\\\|\"){1,4}"
    ];
    let line_end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    let between = prop_oneof![Just(""), Just(": ping\n\n"), Just(":\n"), Just("event: x\nid: 7\n\n")];
    (
        prop::collection::vec(text, 0..8),
        line_end,
        prop_oneof![Just("data: "), Just("data:")],
        between,
        prop::option::of((0..9_u32, 0..9_u32)),
        prop::collection::vec(1..60_usize, 1..12),
    )
        .prop_map(|(texts, line_end, colon, between, usage, sizes)| Spelling {
            texts,
            line_end,
            colon,
            between,
            usage,
            sizes,
        })
}

/// What must not depend on how the bytes came.
fn essence(transcript: &Transcript) -> (Vec<(u64, String, String)>, Value) {
    let events = transcript.events.iter().filter(|event| event.event == "token");
    let tokens = events
        .map(|event| (event.seq, event.event.clone(), event.data.clone()))
        .collect();
    let mut response = transcript.done()["response"].clone();
    response["run_id"] = Value::Null;
    (tokens, response)
}

#[test]
fn an_answer_is_the_same_however_the_network_cuts_it() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let script = Arc::new(Mutex::new(Script::raw()));
    let (upstream, gateway) = runtime.block_on(async {
        let script = script.clone();
        let upstream = Upstream::answering(move |_| script.lock().expect("nobody panicked").clone()).await;
        let gateway = Gateway::with(&upstream).start().await;
        (upstream, gateway)
    });
    let ask = |playing: Script| {
        *script.lock().expect("nobody panicked") = playing;
        runtime.block_on(async {
            let body = json!({"message": "Hi", "store": false});
            let events = post(&gateway, "/chat/sse", body.clone())
                .await
                .expect(200)
                .await
                .transcript()
                .await;
            let text = post(&gateway, "/chat/stream", body)
                .await
                .expect(200)
                .await
                .body()
                .await;
            (essence(&events), text.bytes, text.ending)
        })
    };
    let mut runner = TestRunner::new(Config {
        cases: 30,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&spelling(), |spelling| {
        let whole = ask(spelling.script().at_once());
        let cut = ask(spelling.script().in_pieces(&spelling.sizes));
        prop_assert_eq!(&whole, &cut);
        let ((tokens, response), text, ending) = cut;
        prop_assert_eq!(tokens.len(), spelling.texts.len());
        prop_assert_eq!(&text, &spelling.texts.concat());
        prop_assert_eq!(&response["content"], &spelling.texts.concat());
        prop_assert_eq!(ending, Ending::Complete);
        let counted = spelling.usage.map(|(input, output)| (json!(input), json!(output)));
        let told = (
            response["usage"]["input_tokens"].clone(),
            response["usage"]["output_tokens"].clone(),
        );
        prop_assert_eq!(&response["usage"]["estimated"], &json!(counted.is_none()));
        prop_assert!(counted.is_none_or(|counted| counted == told));
        Ok::<(), TestCaseError>(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    runtime.block_on(gateway.stop());
    drop(upstream);
}

/// A request's headers but the ones that HTTP itself needs.
fn header_names(request: &Request) -> Vec<String> {
    let mut names: Vec<_> = request
        .headers
        .0
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.retain(|name| !matches!(name.as_str(), "host" | "content-length"));
    names.sort();
    names
}

#[tokio::test]
async fn a_seventh_provider_is_four_lines_of_configuration() {
    let keys = ["sk-canary-first-1", "sk-canary-second-2"];
    let [first, second, keyless] = [
        Upstream::always(openai::answer(&["One."])).await,
        Upstream::always(openai::answer(&["Two."])).await,
        Upstream::always(openai::answer(&["Three."])).await,
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key_file = folder.path().join("key");
    std::fs::write(&key_file, format!("{}\n", keys[1])).expect("a writable folder");
    let mut toml =
        String::from("[agents.assistant]\nmodel = \"first\"\nallowed_models = [\"second/*\", \"keyless/*\"]\n");
    write!(
        toml,
        r#"
[providers.first]
kind = "openai"
base_url = "{}"
api_key_env = "FIRST_KEY"
default_model = "house-model"

[providers.second]
kind = "openai"
base_url = "{}/"
api_key_file = "{}"
headers = {{ X-Team = "blue", x-secret = "header-canary-3" }}

[providers.keyless]
kind = "openai"
base_url = "{}"
"#,
        first.base_url(),
        second.base_url(),
        key_file.display(),
        keyless.base_url()
    )
    .expect("a string takes everything");
    let config = folder.path().join("story.toml");
    std::fs::write(&config, toml).expect("a writable folder");
    let args = ["--config", config.to_str().expect("a plain path")];
    let env = [("FIRST_KEY", keys[0]), ("SLUICEGATE__LOG__FILTER", "debug")];
    let mut process = Process::start(&env, &args).await;

    let mut told = String::new();
    let mut ask = async |body: Value, answer: &str, model: &str| {
        let said = post(&process, "/chat", body).await.expect(200).await.json().await;
        assert_eq!((&said["content"], &said["model"]), (&json!(answer), &json!(model)));
        told.push_str(&said.to_string());
    };
    ask(json!({"message": "Hi"}), "One.", "first/house-model").await;
    ask(
        json!({"message": "Hi", "model": "second/org/big"}),
        "Two.",
        "second/org/big",
    )
    .await;
    ask(
        json!({"message": "Hi", "model": "keyless/tiny"}),
        "Three.",
        "keyless/tiny",
    )
    .await;
    for path in ["/agents", "/sessions", "/healthz", "/readyz"] {
        told.push_str(get(&process, path).await.body().await.text());
    }

    let ours = ["accept", "accept-encoding", "content-type", "user-agent"];
    let with = |more: &[&str]| {
        let mut names: Vec<String> = ours.iter().chain(more).map(|name| (*name).to_owned()).collect();
        names.sort();
        names
    };
    let (to_first, to_second) = (first.next_request().await, second.next_request().await);
    let to_keyless = keyless.next_request().await;
    assert_eq!(header_names(&to_first), with(&["authorization"]));
    assert_eq!(header_names(&to_second), with(&["authorization", "x-secret", "x-team"]));
    assert_eq!(header_names(&to_keyless), ours, "no key, no header for it");
    assert_eq!(
        to_first.headers.get("authorization"),
        Some(format!("Bearer {}", keys[0]).as_str())
    );
    assert_eq!(
        to_second.headers.get("authorization"),
        Some(format!("Bearer {}", keys[1]).as_str())
    );
    assert_eq!(
        (to_second.headers.get("x-team"), to_second.path.as_str()),
        (Some("blue"), "/v1/chat/completions")
    );
    assert_eq!(to_second.json["model"], "org/big", "a model's name may have slashes");
    for (request, key) in [(&to_first, keys[0]), (&to_second, keys[1])] {
        let elsewhere = request
            .headers
            .0
            .iter()
            .filter(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
        let rest = format!(
            "{} {:?} {:?}",
            request.path,
            request.body,
            elsewhere.collect::<Vec<_>>()
        );
        assert!(!rest.contains(key), "{rest}");
    }
    process.terminate().await;
    process.wait_exit(Duration::from_secs(25)).await;
    for canary in [keys[0], keys[1], "header-canary-3"] {
        assert!(!told.contains(canary), "{canary} in {told}");
        assert!(
            !process.log().contains(canary),
            "{canary} in the log:\n{}",
            process.log()
        );
    }
}

#[tokio::test]
async fn nothing_of_a_clients_headers_reaches_a_provider() {
    let upstream = Upstream::always(openai::answer(&["Hi."])).await;
    let behind_a_proxy = Gateway::with(&upstream).toml("[auth]\nallow_anonymous = true");
    let gateway = behind_a_proxy.start().await;
    let call = crate::house::Call::post("/chat").json(&json!({"message": "Hi"}));
    let nosy = [
        ("Cookie", "a=client-canary"),
        ("X-Team", "client-canary"),
        ("Forwarded", "for=client-canary"),
        ("X-Request-Id", "client-canary"),
        ("User-Agent", "client-canary"),
        ("Accept-Language", "client-canary"),
    ];
    let call = nosy.iter().fold(call, |call, (name, value)| call.header(name, value));
    call.to(&gateway).await.expect(200).await.json().await;
    let request = upstream.next_request().await;
    assert!(!format!("{request:?}").contains("client-canary"), "{request:?}");
    assert!(
        request
            .headers
            .get("accept")
            .is_some_and(|types| types.starts_with("text/event-stream"))
    );
    assert_eq!(
        request.headers.get("accept-encoding"),
        Some("identity"),
        "what comes packed comes late"
    );
}

#[tokio::test]
async fn a_kept_connection_serves_the_next_question() {
    let upstream = Upstream::always(openai::answer(&["Hi."])).await;
    let gateway = Gateway::with(&upstream).start().await;
    for _ in 0..5 {
        post(&gateway, "/chat", json!({"message": "Hi", "store": false}))
            .await
            .expect(200)
            .await
            .json()
            .await;
        upstream.idle().await;
    }
    assert_eq!(upstream.calls(), 5);
    assert!(
        upstream.connections() < 5,
        "{} connections for 5 questions",
        upstream.connections()
    );
}

#[tokio::test]
async fn hundreds_of_streams_are_open_at_once_and_all_complete() {
    const STREAMS: usize = 310;
    let gate = Gate::new("all streams are open");
    let held = gate.clone();
    let upstream = Upstream::answering(move |request| {
        let asked = request.json["messages"][0]["content"].as_str().unwrap_or_default();
        Script::sse()
            .role()
            .say(asked)
            .wait(&held)
            .say(" and ")
            .say(asked)
            .complete()
    })
    .await;
    // Its own process, so that each side has its own files.
    let process = Process::with(&upstream).await;
    let all_open = async {
        within(Duration::from_secs(40), "all streams to be open", async {
            while upstream.open() < STREAMS {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        gate.open();
    };
    let streams = (0..STREAMS).map(|number| {
        let place = process.addr();
        async move {
            let question = format!("q{number}");
            let body = json!({"message": question});
            let connection = crate::house::Connection::open(&place)
                .await
                .patience(Duration::from_secs(60));
            let transcript = match number % 2 {
                0 => {
                    let call = crate::house::Call::post("/chat/sse").json(&body);
                    let transcript = connection.call(call).await.expect(200).await.transcript().await;
                    transcript.done();
                    transcript.text()
                }
                _ => {
                    let call = crate::house::Call::post("/chat/stream").json(&body);
                    let text = connection.call(call).await.expect(200).await.body().await;
                    assert_eq!(text.ending, Ending::Complete);
                    text.text().to_owned()
                }
            };
            assert_eq!(transcript, format!("{question} and {question}"));
        }
    });
    tokio::join!(all_open, futures_util::future::join_all(streams));
    assert_eq!((upstream.calls(), upstream.connections()), (STREAMS, STREAMS));
}

//! Calls that cannot be made, or fail: each has its result, and the run goes on.
use super::*;

/// A call as a model writes it: its id, the tool, and a text for arguments.
type Raw = (&'static str, &'static str, &'static str);

/// A round of OpenAI's with these calls.
fn raw(calls: &[Raw]) -> Script {
    let script = Script::sse().role();
    let calls = calls.iter().enumerate();
    let script = calls.fold(script, |script, (index, (id, name, arguments))| {
        script.send(openai::tool_delta(index, *id, *name, arguments))
    });
    script.finish("tool_calls").usage(12, 34).done().end()
}

/// What comes of a round of calls.
struct Row {
    what: &'static str,
    calls: Vec<Raw>,
    /// The ids of those that are told before they are answered.
    told: Vec<&'static str>,
    /// Which of them are made, and answered well.
    right: Vec<bool>,
}

/// A call that is told, and not made.
fn refused(what: &'static str, call: Raw) -> Row {
    let (calls, told, right) = (vec![call], vec![call.0], vec![false]);
    Row {
        what,
        calls,
        told,
        right,
    }
}

/// A call that is not even told, as its arguments are none.
fn untold(what: &'static str, call: Raw) -> Row {
    let told = Vec::new();
    Row {
        told,
        ..refused(what, call)
    }
}

#[tokio::test]
async fn a_call_that_cannot_be_made_gets_an_error_and_the_run_goes_on() {
    let oslo = r#"{"city":"Oslo"}"#;
    let rows = [
        refused("an unknown tool", ("c1", "wether", oslo)),
        refused("a tool of others", ("c1", "calculator", r#"{"expression":"1"}"#)),
        untold("no arguments", ("c1", "weather", "")),
        refused("one missing", ("c1", "weather", "{}")),
        refused("one of another type", ("c1", "weather", r#"{"city":7}"#)),
        refused("one too many", ("c1", "weather", r#"{"city":"Oslo","x":1}"#)),
        untold("half of JSON", ("c1", "weather", r#"{"city":"Os"#)),
        untold("more than JSON", ("c1", "weather", r#"{"city":"Oslo"}}"#)),
        untold("a list", ("c1", "weather", r#"["Oslo"]"#)),
        untold("a text", ("c1", "weather", r#""Oslo""#)),
        untold(
            "an integer beyond 64 bits",
            ("c1", "weather", r#"{"city":"Oslo","id":123456789012345678901234}"#),
        ),
        Row {
            what: "ids twice",
            calls: vec![("c1", "weather", oslo), ("c1", "weather", r#"{"city":"Paris"}"#)],
            told: vec!["c1", "c1+"],
            right: vec![true, true],
        },
        Row {
            what: "wrong ones beside a right one",
            calls: vec![("c1", "wether", "{}"), ("c2", "weather", oslo), ("c3", "weather", "{")],
            told: vec!["c1", "c2"],
            right: vec![false, true, false],
        },
    ];
    for Row {
        what,
        calls,
        told,
        right,
    } in rows
    {
        let tools = weather().await;
        let model = Upstream::start([raw(&calls), says("Well.")]).await;
        let gateway = gateway(&model, &tools).start().await;
        let transcript = events(&gateway, question("Weather?")).await;
        let response = transcript.done()["response"].clone();
        assert_eq!(response["content"], "Well.", "{what}");
        assert_eq!(
            (&response["finish_reason"], &response["rounds"]),
            (&json!("stop"), &json!(2)),
            "{what}"
        );

        let of = |name: &str| {
            let events = transcript.events.iter().filter(|event| event.event == name);
            events.map(Event::json).collect::<Vec<_>>()
        };
        let ids: Vec<_> = of("tool_call")
            .iter()
            .map(|chunk| chunk["tool_call"]["id"].clone())
            .collect();
        assert_eq!(ids, told, "{what}");
        let finishes = of("tool_call")
            .iter()
            .map(|chunk| chunk["finish_reason"].clone())
            .collect::<Vec<_>>();
        let last = finishes.iter().position(|finish| finish == "tool_calls");
        assert_eq!(last, told.len().checked_sub(1), "{what}");
        assert_eq!(of("tool_result").len(), calls.len(), "{what}");
        let records = list(&response["tool_calls"]);
        assert_eq!(
            each(&records, &["ok"]),
            right.iter().map(|ok| json!([ok])).collect::<Vec<_>>(),
            "{what}"
        );
        let results = records.iter().map(|record| text(record, "result"));
        assert!(results.clone().all(|result| !result.is_empty()), "{what}");

        let conversation = Dialect::OpenAi.conversation(&model.requests()[1].json);
        assert_well_formed(&conversation);
        assert_well_formed(&history(&gateway).await);
        let heard: Vec<_> = conversation[2..]
            .iter()
            .map(|message| text(message, "content"))
            .collect();
        assert_eq!(heard, results.collect::<Vec<_>>(), "{what}");
        assert_eq!(tools.calls(), right.iter().filter(|ok| **ok).count(), "{what}");
    }
}

#[tokio::test]
async fn a_call_of_a_round_that_failed_is_not_made() {
    for word in ["error", "abort", "network_error", "novel"] {
        let tools = weather().await;
        let call = openai::tool_delta(0, "c1", "weather", r#"{"city":"Oslo"}"#);
        let round = Script::sse().role().send(call).finish(word).usage(12, 34).done().end();
        let model = Upstream::start([round]).await;
        let gateway = gateway(&model, &tools).start().await;
        post(&gateway, "/chat", question("Weather?")).await.expect(502).await;
        assert_eq!((model.calls(), tools.calls()), (1, 0), "{word}");
    }
}

#[tokio::test]
async fn of_many_calls_in_a_round_sixteen_are_made() {
    for many in [20, 1000] {
        let tools = weather().await;
        let ids: Vec<_> = (0..many).map(|number| format!("c{number}")).collect();
        let calls: Vec<_> = ids.iter().map(|id| ask(id, "Oslo")).collect();
        let model = Upstream::start([asks(&calls), says("Sunny.")]).await;
        let gateway = gateway(&model, &tools).start().await;
        let transcript = events(&gateway, question("Weather?")).await;
        let records = list(&transcript.done()["response"]["tool_calls"]);
        let expected: Vec<_> = (0..many).map(|number| json!([ids[number], number < 16])).collect();
        assert_eq!(each(&records, &["id", "ok"]), expected);
        let count = |name: &str| transcript.kinds().into_iter().filter(|kind| *kind == name).count();
        assert_eq!(
            (count("tool_call"), count("tool_result"), tools.calls()),
            (many, many, 16)
        );
        assert_well_formed(&Dialect::OpenAi.conversation(&model.requests()[1].json));
    }
}

#[tokio::test]
async fn a_name_that_no_provider_would_take_back_is_not_sent_back() {
    let long = "x".repeat(200);
    for dialect in Dialect::ALL {
        for name in [
            "functions.weather",
            "weather<|channel|>commentary",
            "get weather",
            "Wetter für\n",
            &long,
        ] {
            let tools = weather().await;
            let rounds = [
                dialect.round(&[], &[("c1", name, json!({}))]),
                dialect.round(&["Well."], &[]),
            ];
            let model = Upstream::start(rounds).await;
            let gateway = with_weather(dialect.gateway(&model), &tools).start().await;
            let response = answer(&gateway, question("Weather?")).await;
            assert_eq!(
                (&response["content"], &response["tool_calls"][0]["ok"]),
                (&json!("Well."), &json!(false))
            );
            let names = names(&Value::Array(dialect.conversation(&model.requests()[1].json)));
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            let fine = |name: &String| (1..=64).contains(&name.len()) && name.chars().all(fits);
            assert!(!names.is_empty() && names.iter().all(fine), "{dialect:?}: {names:?}");
            assert_eq!(tools.calls(), 0);
        }
    }
}

/// All names of tools in a conversation.
fn names(told: &Value) -> Vec<String> {
    let own = ["name", "tool_name"]
        .into_iter()
        .filter_map(|member| told[member].as_str());
    let inside: Vec<&Value> = match told {
        Value::Object(members) => members.values().collect(),
        Value::Array(all) => all.iter().collect(),
        _ => Vec::new(),
    };
    let own = own.map(str::to_owned);
    own.chain(inside.into_iter().flat_map(names)).collect()
}

#[tokio::test]
async fn an_id_that_comes_again_in_the_next_round_is_another_call_s() {
    for dialect in Dialect::ALL {
        let tools = weather().await;
        let round = |city: &str| dialect.round(&[], &[ask("c1", city)]);
        let model = Upstream::start([round("Oslo"), round("Rome"), dialect.round(&["Well."], &[])]).await;
        let gateway = with_weather(dialect.gateway(&model), &tools).start().await;
        let transcript = events(&gateway, question("Weather?")).await;
        let records = list(&transcript.done()["response"]["tool_calls"]);
        let expected = [json!([1, {"city": "Oslo"}, true]), json!([2, {"city": "Rome"}, false])];
        assert_eq!(each(&records, &["round", "arguments", "ok"]), expected, "{dialect:?}");
        assert_well_formed(&history(&gateway).await);
        let told = dialect.conversation(&model.requests()[2].json);
        let places: Vec<_> = ["Oslo\"", "21 degrees", "Rome\"", "500"]
            .map(|words| json!(told).to_string().replace("\\\"", "\"").find(words))
            .into();
        assert!(
            places.is_sorted() && places[0].is_some(),
            "{dialect:?}: {places:?} in {told:?}"
        );
    }
}

#[tokio::test]
async fn a_result_that_is_too_long_is_told_by_its_beginning() {
    let long = format!("beginning {}", "x".repeat(300 << 10));
    let tools = Upstream::always(Script::status(200, &[("content-type", "text/plain")], long)).await;
    let model = Upstream::start([asks(&[ask("c1", "Oslo")]), says("Well.")]).await;
    let recipe = gateway(&model, &tools).toml("[tools.http.weather]\nmax_result = \"1MiB\"");
    let gateway = recipe.start().await;
    let transcript = events(&gateway, question("Weather?")).await;
    let result = transcript.events[2].json()["tool_result"].clone();
    assert_eq!((&result["ok"], &result["truncated"]), (&json!(false), &json!(true)));
    let content = text(&result, "content");
    assert!(
        content.contains("beginning xxx") && content.len() < 20 << 10,
        "{} bytes",
        content.len()
    );
}

#[tokio::test]
async fn a_tool_that_fails_hangs_or_never_stops_talking_costs_only_its_call() {
    let plain = [("content-type", "text/plain")];
    let endless = Script::head(200, &plain, Framing::Chunked);
    // What it does, and whether its connection has to be closed on it.
    let rows = [
        ("a failure", Script::status(500, &plain, "broken"), false),
        ("a refusal", Script::status(404, &plain, "no"), false),
        ("silence", Script::raw().hang(), true),
        (
            "silence after the head",
            Script::head(200, &plain, Framing::Chunked).hang(),
            true,
        ),
        ("a reset", Script::raw().reset(), false),
        ("a close", Script::raw().cut(), false),
        (
            "half a body",
            Script::head(200, &plain, Framing::Length(100)).bytes("half").cut(),
            false,
        ),
        ("300 KiB", Script::status(200, &plain, "x".repeat(300 << 10)), false),
        (
            "an endless body",
            endless.repeat("x".repeat(16 << 10), Duration::ZERO, 100_000),
            true,
        ),
        ("no HTTP", Script::raw().bytes("SSH-2.0-x\r\n").cut(), false),
    ];
    for (what, script, closes) in rows {
        let tools = Upstream::always(script).await;
        let model = Upstream::start([asks(&[ask("c1", "Oslo")]), says("Well.")]).await;
        let recipe = gateway(&model, &tools).toml("[agents.assistant]\ntool_timeout = \"500ms\"");
        let gateway = recipe.start().await;
        let began = Instant::now();
        let transcript = events(&gateway, question("Weather?")).await;
        let expected = ["start", "tool_call", "tool_result", "token", "done"];
        assert_eq!(transcript.kinds(), expected, "{what}");
        assert!(began.elapsed() < Duration::from_secs(5), "{what}");
        let record = transcript.done()["response"]["tool_calls"][0].clone();
        assert_eq!(record["ok"], false, "{what}: {record}");
        let result = text(&record, "result");
        assert!(
            !result.is_empty() && result.len() < 20 << 10,
            "{what}: {} bytes",
            result.len()
        );
        assert!(!result.contains("127.0.0.1"), "{what}: {result}");
        if closes {
            tools.closed().await;
        }
        assert_eq!(model.calls(), 2, "{what}");
    }
}

#[tokio::test]
async fn what_a_tool_says_forms_no_event_and_comes_through_unchanged() {
    let said = "a\u{2028}b\r\n\r\nevent: done\ndata: {}\n\nid: 1\n\n: hb\n\u{0}\u{202e}é世👩‍👩‍👧\"\\";
    let tools = Upstream::always(Script::status(
        200,
        &[("content-type", "text/plain; charset=utf-8")],
        said,
    ))
    .await;
    let model = Upstream::start([asks(&[ask("c1", "Oslo")]), says("Well.")]).await;
    let gateway = gateway(&model, &tools).start().await;
    let transcript = events(&gateway, question("Weather?")).await;
    assert_eq!(
        transcript.kinds(),
        ["start", "tool_call", "tool_result", "token", "done"]
    );
    let result = transcript.events[2].json()["tool_result"]["content"].clone();
    assert!(text(&json!({ "result": result }), "result").contains(said), "{result}");
    let heard = Dialect::OpenAi.conversation(&model.requests()[1].json);
    assert_eq!(heard[2]["content"], result);
    assert_eq!(history(&gateway).await[2]["content"], result);
}

#[tokio::test]
async fn calls_of_an_answer_that_was_cut_by_a_limit_or_a_filter_are_not_made() {
    for finish in ["length", "content_filter"] {
        let tools = weather().await;
        let asked = openai::tool_delta(0, "c1", "weather", r#"{"city":"Oslo"}"#);
        let cut = Script::sse().role().say("Let me see.").send(asked);
        let model = Upstream::start([cut.finish(finish).usage(12, 34).done().end(), says("Well.")]).await;
        let gateway = gateway(&model, &tools).start().await;
        let transcript = events(&gateway, question("Weather?")).await;
        assert_eq!(transcript.kinds(), ["start", "token", "done"], "{finish}");
        assert_eq!(transcript.done()["finish_reason"], finish);
        let stored = history(&gateway).await;
        assert_eq!(
            each(&stored, &["content", "tool_calls"]),
            [json!(["Weather?", []]), json!(["Let me see.", []])]
        );
        answer(&gateway, question("And?")).await;
        assert_eq!(tools.calls(), 0);
    }
}

#[tokio::test]
async fn arguments_without_end_are_cut_off() {
    let tools = weather().await;
    let begun = Script::sse()
        .role()
        .send(openai::tool_delta(0, "c1", "weather", "{\"city\":\""));
    let more = openai::tool_delta(0, None, None, &"x".repeat(4096));
    let model = Upstream::always(begun.repeat(more, Duration::ZERO, 100_000)).await;
    let recipe = gateway(&model, &tools).toml("[runs]\nmax_output = \"64KiB\"");
    let gateway = recipe.start().await;
    let refusal = post(&gateway, "/chat", question("Weather?")).await.expect(502).await;
    assert_eq!(refusal.problem().await, "output_limit");
    model.closed().await;
    assert_eq!((model.calls(), tools.calls()), (1, 0));
}

#[tokio::test]
async fn a_provider_that_fails_after_the_calls_fails_the_run_and_the_calls_are_not_made_again() {
    let tools = weather().await;
    let first = || asks(&[ask("c1", "Oslo")]);
    let fails = || Script::status(500, &[], "{}");
    let model = Upstream::start([first(), fails(), first(), fails(), first(), fails(), says("Well.")]).await;
    let second = Upstream::always(says("no")).await;
    let recipe = gateway(&model, &tools).toml(&Dialect::OpenAi.provider("second", &second));
    let recipe = recipe.toml("[agents.assistant]\nfallbacks = [\"second/test-model\"]");
    let gateway = recipe.start().await;
    let refusal = post(&gateway, "/chat", question("Weather?")).await.expect(502).await;
    assert_eq!(refusal.problem().await, "upstream_error");
    let transcript = events(&gateway, question("Weather?")).await;
    assert_eq!(transcript.kinds(), ["start", "tool_call", "tool_result", "error"]);
    let body = post(&gateway, "/chat/stream", question("Weather?"))
        .await
        .expect(200)
        .await
        .body()
        .await;
    assert!(body.ending.is_aborted() && body.bytes.is_empty(), "{body:?}");
    assert_eq!((tools.calls(), second.calls()), (3, 0));
    assert_eq!(history(&gateway).await, [Value::Null; 0]);
    assert_eq!(answer(&gateway, question("Weather?")).await["content"], "Well.");

    // P5: a tool has run, so the model is not asked again either, though it might help.
    for (status, code) in [
        (429, "upstream_rate_limited"),
        (500, "upstream_error"),
        (503, "upstream_overloaded"),
    ] {
        let model = Upstream::start([first(), Script::status(status, &[], "{}"), says("Sunny.")]).await;
        let recipe = super::gateway(&model, &tools).toml("[providers.openai]\nmax_retries = 2");
        let gateway = recipe.start().await;
        let refusal = post(&gateway, "/chat", question("Weather?")).await;
        assert_eq!(refusal.problem().await, code);
        assert_eq!(model.calls(), 2);
    }
}

#[tokio::test]
async fn a_tool_s_own_patience_is_the_one_that_counts() {
    let tools = Upstream::always(Script::raw().hang()).await;
    let model = Upstream::start([asks(&[ask("c1", "Oslo")]), says("Well.")]).await;
    let recipe = gateway(&model, &tools).toml("[tools.http.weather]\ntimeout = \"100ms\"");
    let gateway = recipe.toml("[agents.assistant]\ntool_timeout = \"60s\"").start().await;
    let record = answer(&gateway, question("Weather?")).await["tool_calls"][0].clone();
    assert_eq!(record["ok"], false);
    let took = record["duration_ms"].as_u64().expect("a number");
    assert!((100..5_000).contains(&took), "{took}");
}

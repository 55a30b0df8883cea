//! The odd fields of compatible servers: what an answer comes to in spite of them, and what breaks it.

use crate::{
    chat::{Chunk, FinishKind, Usage, fold::Round},
    provider::{
        ProviderError, azure::Azure, decoding::Decoding, deviations::Deviations, dialect::Dialect, error::Kind,
        groq::Groq, openai::OpenAi,
    },
};

/// What an answer came to.
#[derive(Debug, PartialEq)]
struct Came {
    text: String,
    thinking: String,
    /// `name arguments` of each call that would be made; `name !` of one that would not.
    calls: Vec<String>,
    kind: FinishKind,
    raw: String,
    usage: Usage,
    odd: Vec<&'static str>,
}

fn came(chunks: &[Chunk], odd: impl Iterator<Item = crate::meters::Tolerated>) -> Came {
    let (mut text, mut thinking, mut round) = (String::new(), String::new(), Round::default());
    for chunk in chunks {
        assert!(round.push(chunk));
        match chunk {
            Chunk::Text(more) => text.push_str(more),
            Chunk::Reasoning(more) => thinking.push_str(more),
            _ => {}
        }
    }
    let (reason, usage) = round.finish().expect("a finish").clone();
    let calls = round.complete().0.into_iter().map(|asked| {
        let arguments = serde_json::Value::Object(asked.call.arguments);
        match asked.parsed {
            true => format!("{} {arguments}", asked.call.name),
            false => format!("{} !", asked.call.name),
        }
    });
    Came {
        text,
        thinking,
        calls: calls.collect(),
        kind: reason.kind,
        raw: reason.raw.unwrap_or_default(),
        usage,
        odd: odd.map(crate::meters::Tolerated::as_str).collect(),
    }
}

/// The answer in these events, as every dialect with this grammar reads it.
fn decode(events: &[&str]) -> Result<Came, ProviderError> {
    let (openai, groq, azure) = (OpenAi::default(), Groq::default(), Azure::default());
    let dialects: [&dyn Dialect; 3] = [&openai, &groq, &azure];
    let mut all = dialects.map(|dialect| {
        let (mut decoding, mut out) = (Decoding::new(dialect, 1 << 20), Vec::new());
        for event in events {
            decoding.push(format!("data: {event}\n\n").as_bytes(), &mut out)?;
        }
        decoding.push(b"data: [DONE]\n\n", &mut out)?;
        Ok(came(&out, decoding.tolerated()))
    });
    all.sort_by_key(Result::is_ok);
    let [one, .., other] = all;
    assert_eq!(one.is_ok(), other.is_ok(), "the dialects differ: {one:?} {other:?}");
    if let (Ok(one), Ok(other)) = (&one, &other) {
        assert_eq!(one, other);
    }
    one
}

fn delta(delta: &str) -> String {
    format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#)
}

fn finish(word: &str) -> String {
    format!(r#"{{"choices":[{{"index":0,"delta":{{}},"finish_reason":{word}}}]}}"#)
}

/// What these deltas and a `stop` come to.
fn stopped(deltas: &[&str]) -> Came {
    let mut events: Vec<String> = deltas.iter().map(|one| delta(one)).collect();
    events.push(finish("\"stop\""));
    decode(&events.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
}

/// What these deltas and a `tool_calls` come to.
fn called(deltas: &[&str]) -> Result<Came, Kind> {
    let mut events: Vec<String> = deltas
        .iter()
        .map(|calls| delta(&format!(r#"{{"tool_calls":{calls}}}"#)))
        .collect();
    events.push(finish("\"tool_calls\""));
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    decode(&events).map_err(|error| error.kind)
}

#[test]
fn content_in_parts_is_the_content() {
    let came = stopped(&[
        r#"{"role":"assistant","content":[]}"#,
        r#"{"content":[{"type":"thinking","thinking":[{"type":"text","text":"Hm"}],"closed":false}]}"#,
        r#"{"content":[{"type":"text","text":"Hel"},{"type":"reference","reference_ids":[1]}]}"#,
        r#"{"content":{"text":"l"}}"#,
        r#"{"content":"o"}"#,
        r#"{"content":null}"#,
        r#"{"content":[{"type":"output_text","text":" 4"}]}"#,
        r#"{"content":2}"#,
    ]);
    assert_eq!((came.text.as_str(), came.thinking.as_str()), ("Hello 42", "Hm"));
    assert_eq!(came.odd, ["field_type", "unknown_part"]);
    let plain = stopped(&[r#"{"content":"Hi","reasoning_content":null,"tool_calls":null}"#]);
    assert_eq!((plain.text.as_str(), plain.odd.len()), ("Hi", 0));
}

#[test]
fn reasoning_may_be_in_parts_too() {
    let came = stopped(&[
        r#"{"reasoning_content":[{"type":"text","text":"H"}]}"#,
        r#"{"reasoning_content":"","reasoning":{"text":"m"}}"#,
        r#"{"content":"A"}"#,
    ]);
    assert_eq!((came.thinking.as_str(), came.text.as_str()), ("Hm", "A"));
}

#[test]
fn an_odd_frame_costs_no_words() {
    for event in [
        r#"{"choices":{"index":0,"delta":{"content":"Hi"}}}"#,
        r#"{"choices":[null,{"index":"0","delta":{"content":"Hi"}}]}"#,
        r#"{"choices":[{"index":null,"delta":{"content":"Hi"}}]}"#,
        r#"{"choices":[{"index":0.0,"delta":{"content":"Hi"}}]}"#,
        r#"{"choices":[{"delta":[{"content":"Hi"}]}]}"#,
        r#"{"choices":[{"delta":{"content":"Hi"}}],"error":""}"#,
        r#"{"choices":[{"delta":{"content":"Hi"}}],"usage":[]}"#,
        r#"{"choices":[{"text":"Hi"}]}"#,
        r#"{"choices":[{"delta":{"content":"Hi"}},{"delta":{"content":"other"}}]}"#,
        r#"{"choices":[{"index":1,"delta":{"content":"other"}},{"index":0,"delta":{"content":"Hi"}}]}"#,
        r#"{"choices":[{"delta":{"content":"Hi","tool_calls":[]}}]}"#,
        r#"{"choices":[{"delta":{"content":"Hi","tool_calls":[{}]}}]}"#,
        r#"{"choices":[{"delta":{"content":"Hi","tool_calls":[null]}}]}"#,
        r#"{"choices":[{"delta":{"content":"Hi","function_call":null,"role":7}}]}"#,
    ] {
        let came = decode(&[event, &finish("\"stop\"")]).unwrap();
        assert_eq!((came.text.as_str(), came.calls.len()), ("Hi", 0), "{event}");
    }
    for broken in [r#"{"choices":"Hi"}"#, r#"{"choices":[{"delta":7}]}"#] {
        let kind = decode(&[broken, &finish("\"stop\"")]).unwrap_err().kind;
        assert_eq!(kind, Kind::Protocol, "{broken}");
    }
}

#[test]
fn a_message_beside_deltas_doubles_nothing_and_loses_nothing() {
    let chunk = |choice: &str| format!(r#"{{"choices":[{{"index":0,{choice}}}]}}"#);
    let stop = r#""finish_reason":"stop""#;
    let message = |words: &str| format!(r#""message":{{"role":"assistant","content":"{words}"}}"#);
    let say = |words: &str| format!(r#""delta":{{"content":"{words}"}}"#);
    let hello = message("Hello");
    for events in [
        vec![
            format!(r#"{},"message":null"#, say("Hel")),
            format!("{},{}", say("lo"), message("lo")),
            stop.to_owned(),
        ],
        vec![say("Hel"), say("lo"), format!("{hello},{stop}")],
        vec![say("Hel"), say("lo"), format!(r#""delta":{{}},{hello},{stop}"#)],
        vec![say("Hel"), say("lo"), stop.to_owned(), hello.clone()],
        vec![format!("{hello},{stop}")],
        vec![message("Hel"), hello.clone(), format!("{hello},{stop}")],
        vec![message("Hel"), message("lo"), stop.to_owned()],
        vec![format!(r#""delta":{{}},{hello}"#), stop.to_owned()],
    ] {
        let events: Vec<String> = events.iter().map(|choice| chunk(choice)).collect();
        let came = decode(&events.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        assert_eq!(
            (came.text.as_str(), came.kind),
            ("Hello", FinishKind::Stop),
            "{events:?}"
        );
    }
    let call = r#""tool_calls":[{"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}]"#;
    let by_delta = format!(r#""delta":{{{call}}}"#);
    let by_message = format!(r#""message":{{"content":null,{call}}}"#);
    for events in [
        vec![by_delta.clone(), format!("{by_message},{stop}")],
        vec![format!("{by_message},{stop}")],
        vec![by_message.clone(), format!("{by_message},{stop}")],
        vec![say("Hello"), format!("{by_message},{stop}")],
    ] {
        let events: Vec<String> = events.iter().map(|choice| chunk(choice)).collect();
        let came = decode(&events.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        assert_eq!(came.calls, [r#"f {"x":1}"#], "{events:?}");
    }
}

#[test]
fn calls_are_read_in_every_form() {
    for deltas in [
        &[r#"[{"index":0,"id":"a","function":{"name":"f","arguments":{"x":1}}}]"#] as &[&str],
        &[r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}"#],
        &[
            r#"[{"index":"0","id":"a","function":{"name":"f","arguments":"{\"x\""}}]"#,
            r#"[{"index":"0","function":{"arguments":":1}"}}]"#,
        ],
        &[
            r#"[{"id":"a","function":{"name":"f","arguments":null}}]"#,
            r#"[{"function":{"arguments":"{\"x\":1}"}}]"#,
        ],
        &[
            r#"[{"index":0,"id":"a","type":"function"}]"#,
            r#"[{"index":0,"function":{"name":"f","arguments":"{\"x\":1}"}}]"#,
        ],
        &[r#"[{"index":0,"id":7,"function":[{"name":"f","arguments":{"x":1}}]}]"#],
        &[r#"[{"id":"a","name":"f","arguments":"{\"x\":1}"}]"#],
        &[r#"[null,{"index":0,"id":"a","type":null,"function":{"name":"f","arguments":"{\"x\":1}"}}]"#],
        // The whole, after its pieces.
        &[
            r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\""}}]"#,
            r#"[{"index":0,"function":{"arguments":":1}"}}]"#,
            r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{ \"x\": 1 }"}}]"#,
        ],
        &[
            r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}]"#,
            r#"[{"index":0,"function":{"arguments":{"x":1}}}]"#,
        ],
        &[
            r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}]"#,
            r#"[{"function":{"name":"f","arguments":"{\"x\":1}"}}]"#,
        ],
    ] {
        let came = called(deltas).unwrap();
        assert_eq!(
            (came.kind, came.calls),
            (FinishKind::ToolCalls, vec![r#"f {"x":1}"#.into()])
        );
    }
}

#[test]
fn arguments_that_are_no_object_or_never_came_make_no_call() {
    for arguments in [r#""""#, "null", "[]", r#"[{"x":1}]"#, "7", r#""{\"x\":""#, r#""\"x\"""#] {
        let delta = format!(r#"[{{"index":0,"id":"a","function":{{"name":"f","arguments":{arguments}}}}}]"#);
        assert_eq!(called(&[&delta]).unwrap().calls, ["f !"], "{arguments}");
    }
    let changed = called(&[
        r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}]"#,
        r#"[{"index":0,"function":{"arguments":"{\"x\":2}"}}]"#,
    ]);
    assert_eq!(changed.unwrap().calls, ["f !"]);
    let none = called(&[r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}]"#]);
    assert_eq!(none.unwrap().calls, ["f {}"]);
}

#[test]
fn a_call_that_cannot_be_read_breaks_the_answer() {
    for calls in [
        r#"[{"index":0,"id":"a","type":"function","function":null}]"#,
        r#"[{"index":0,"type":"function","function":null}]"#,
        r#"[{"index":0,"id":"a","function":{"arguments":"{}"}}]"#,
        r#"[{"index":0,"id":"a","function":{"name":"","arguments":"{}"}}]"#,
        r#"[{"index":0,"id":"a","function":{"name":null,"arguments":"{}"}}]"#,
        r#"[{"index":0,"id":"a","type":"custom","custom":{"name":"f","input":"x"}}]"#,
        r#"[{"index":0,"id":"a","type":"custom"}]"#,
        r#"["f"]"#,
        r#""f""#,
        "[]",
        "[{}]",
        "null",
    ] {
        assert_eq!(called(&[calls]).unwrap_err(), Kind::Protocol, "{calls}");
    }
    // A name that comes after the arguments cannot bring them back.
    let late = called(&[
        r#"[{"index":0,"id":"a","function":{"arguments":"{\"x\":"}}]"#,
        r#"[{"index":0,"function":{"name":"f","arguments":"1}"}}]"#,
    ]);
    assert_eq!(late.unwrap_err(), Kind::Protocol);
}

#[test]
fn a_finish_is_unified_and_its_word_stays_beside_it() {
    let hi = delta(r#"{"content":"Hi"}"#);
    for (word, kind) in [
        ("\"model_length\"", FinishKind::Length),
        ("\"max_tokens\"", FinishKind::Length),
        ("\"stop_sequence\"", FinishKind::Stop),
        ("\"STOP\"", FinishKind::Stop),
        ("\"sensitive\"", FinishKind::ContentFilter),
        ("\"novel\"", FinishKind::Stop),
        (r#"{"type":"stop"}"#, FinishKind::Stop),
    ] {
        let came = decode(&[&hi, &finish(word)]).unwrap();
        assert_eq!((came.text.as_str(), came.kind), ("Hi", kind), "{word}");
        assert!(word.contains(&came.raw) && !came.raw.is_empty(), "{word}");
        assert!(!came.odd.is_empty(), "{word}");
    }
    for word in ["\"error\"", "\"network_error\"", "\"abort\"", "\"cancelled\""] {
        let kind = decode(&[&hi, &finish(word)]).unwrap_err().kind;
        assert_eq!(kind, Kind::Reported, "{word}");
    }
    for none in ["\"\"", "null", "false", "\"null\"", "[]"] {
        let kind = decode(&[&hi, &finish(none)]).unwrap_err().kind;
        assert_eq!(kind, Kind::Truncated, "{none}");
    }
}

#[test]
fn a_call_is_made_only_if_the_round_ended_well() {
    let call = delta(r#"{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}]}"#);
    let ended = |word: &str| decode(&[&call, &finish(word)]);
    for word in [
        "\"stop\"",
        "\"tool_calls\"",
        "\"function_call\"",
        "\"TOOL_CALLS\"",
        "\"eos\"",
    ] {
        assert_eq!(ended(word).unwrap().calls, [r#"f {"x":1}"#], "{word}");
    }
    for word in ["\"length\"", "\"content_filter\"", "\"sensitive\"", "\"model_length\""] {
        assert_eq!(ended(word).unwrap().calls, [""; 0], "{word}");
    }
    for word in [
        "\"error\"",
        "\"abort\"",
        "\"network_error\"",
        "\"novel\"",
        "{\"x\":1}",
        "7",
    ] {
        assert_eq!(ended(word).unwrap_err().kind, Kind::Reported, "{word}");
    }
}

#[test]
fn usage_is_read_wherever_and_however_it_stands() {
    let numbers = |events: &[&str]| {
        let usage = decode(events).unwrap().usage;
        (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens)
    };
    let hi = delta(r#"{"content":"Hi"}"#);
    let stop = finish("\"stop\"");
    let in_choice = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop","usage":{"prompt_tokens":3,"completion_tokens":4}}]}"#;
    assert_eq!(numbers(&[&hi, in_choice]), (Some(3), Some(4), None));
    let xai = r#"{"choices":[],"usage":{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"completion_tokens_details":{"reasoning_tokens":94}}}"#;
    assert_eq!(numbers(&[&hi, &stop, xai]), (Some(32), Some(103), Some(94)));
    for none in [
        "null",
        "[]",
        "\"none\"",
        "7",
        r#"{"prompt_tokens":-1,"completion_tokens":"x"}"#,
    ] {
        let odd = format!(r#"{{"choices":[],"usage":{none}}}"#);
        assert_eq!(numbers(&[&hi, &stop, &odd]), (None, None, None), "{none}");
    }
}

#[test]
fn an_answer_that_came_whole_is_read_as_loosely() {
    let body = br#"{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant",
        "content":[{"type":"text","text":"Hi"}]},"finish_reason":"STOP"}],"usage":{"prompt_tokens":"3","completion_tokens":1.0}}"#;
    let mut odd = Deviations::default();
    let chunks = OpenAi::default().whole(body, &mut odd).unwrap();
    let came = came(&chunks, odd.iter());
    assert_eq!((came.text.as_str(), came.kind), ("Hi", FinishKind::Stop));
    assert_eq!((came.usage.input_tokens, came.usage.output_tokens), (Some(3), Some(1)));
    assert_eq!(came.odd, ["field_type", "finish_word", "usage_form"]);
    let failed = br#"{"choices":[{"message":{"content":"Hi"},"finish_reason":"error"}]}"#;
    let error = OpenAi::default().whole(failed, &mut odd).unwrap_err();
    assert_eq!(error.kind, Kind::Reported);
}

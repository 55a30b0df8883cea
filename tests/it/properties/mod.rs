//! Parsers and encoders under whatever bytes: what must hold is in [`bodies`], which `fuzz/` shares. Here proptest makes the
//! bytes up: random ones, good ones, and good ones that something happened to.

use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

use crate::house;

pub(crate) mod bodies;
mod foreign;

/// What happens to bytes on their way.
#[derive(Clone, Debug)]
enum Harm {
    Cut(Index),
    Set(Index, u8),
    Drop(Index, u8),
    Again(Index, u8),
    Insert(Index, Vec<u8>),
}

fn harm() -> impl Strategy<Value = Harm> {
    let telling = prop_oneof![
        Just(b"\n\n".to_vec()),
        Just(b"\r".to_vec()),
        Just(b"data: [DONE]\n\n".to_vec()),
        Just(b"data: {}\n\n".to_vec()),
        Just(b"\"".to_vec()),
        Just(b"null".to_vec()),
        Just(b"-1e999".to_vec()),
        Just(b"\\ud800".to_vec()),
        Just(b"\xc3".to_vec()),
        any::<[u8; 3]>().prop_map(Vec::from),
    ];
    prop_oneof![
        any::<Index>().prop_map(Harm::Cut),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Harm::Set(at, byte)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, count)| Harm::Drop(at, count)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, count)| Harm::Again(at, count)),
        (any::<Index>(), telling).prop_map(|(at, bytes)| Harm::Insert(at, bytes)),
    ]
}

fn harmed(mut bytes: Vec<u8>, all: &[Harm]) -> Vec<u8> {
    for one in all {
        let length = bytes.len();
        let range = |at: &Index, count: u8| {
            let from = at.index(length + 1);
            from..(from + usize::from(count)).min(length)
        };
        match one {
            Harm::Cut(at) => bytes.truncate(at.index(length + 1)),
            Harm::Set(at, byte) if length > 0 => bytes[at.index(length)] = *byte,
            Harm::Set(..) => {}
            Harm::Drop(at, count) => drop(bytes.drain(range(at, *count))),
            Harm::Again(at, count) => {
                let range = range(at, *count);
                let again = bytes[range.clone()].to_vec();
                bytes.splice(range.start..range.start, again);
            }
            Harm::Insert(at, more) => {
                let at = at.index(length + 1);
                bytes.splice(at..at, more.iter().copied());
            }
        }
    }
    bytes
}

/// Random bytes, or these with some harm done.
fn bytes_like(good: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changed = (prop::sample::select(good), prop::collection::vec(harm(), 0..4));
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..200),
        4 => changed.prop_map(|(good, all)| harmed(good, &all)),
    ]
}

/// A whole answer of each dialect, in the order of [`bodies::dialects`].
fn answers() -> Vec<Vec<u8>> {
    use house::Dialect::{Anthropic, Azure, Gemini, Groq, Ollama, OpenAi, Responses};
    let asks = [("call_1", "look", json!({"at": "é"})), ("call_2", "look", json!({}))];
    [OpenAi, Responses, Anthropic, Gemini, Groq, Ollama, Azure]
        .iter()
        .flat_map(|dialect| {
            [
                dialect.events(&["Hel", "lo, \u{1F469}"], &[]),
                dialect.events(&["Look"], &asks),
            ]
        })
        .map(|events| events.concat())
        .collect()
}

#[test]
fn every_dialect_decodes_its_good_answers_and_no_beginning_of_one_passes_for_the_whole() {
    for (at, answer) in answers().iter().enumerate() {
        let dialect = &*bodies::dialects().remove(at / 2);
        let (whole, error) = bodies::decode(dialect, &[answer]);
        assert_eq!(error, None, "{at}: {}", String::from_utf8_lossy(answer));
        let mut complete = None;
        for length in 0..answer.len() {
            let (chunks, error) = bodies::decode(dialect, &[&answer[..length]]);
            match error {
                Some(_) => assert_eq!(
                    complete, None,
                    "{at}: complete after {complete:?} bytes, broken after {length}"
                ),
                // Only numbers may be missing.
                None => {
                    complete = complete.or(Some(length));
                    assert_eq!(
                        chunks.len(),
                        whole.len(),
                        "{at}: cut after {length} of {}",
                        answer.len()
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_are_the_same_however_they_are_cut(seed in any::<u8>(), bytes in bytes_like(answers())) {
        bodies::frames(&[&[seed], &bytes[..]].concat());
    }

    #[test]
    fn decoders_are_honest_about_whatever_comes(choice in 0..14_u8, own in any::<bool>(), seed in any::<u8>(), bytes in bytes_like(answers()), all in prop::collection::vec(harm(), 0..3)) {
        // Mostly in its own dialect; sometimes in another's.
        let bytes = if own { harmed(answers()[usize::from(choice)].clone(), &all) } else { bytes };
        bodies::decoders(&[&[b'0' + choice / 2, seed], &bytes[..]].concat());
    }

    #[test]
    fn ids_are_read_to_the_letter(text in prop_oneof![
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(:[0-9]{0,22})?",
        "[0-9A-F]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}(:[-+ 0-9]{0,3})?",
        "[A-Za-z0-9._:-]{0,140}",
        "\\PC{0,40}",
    ]) {
        bodies::ids(text.as_bytes());
    }

    #[test]
    fn bodies_are_read_as_others_read_them(bytes in bytes_like(requests())) {
        bodies::bodies(&bytes);
    }

    #[test]
    fn queries_mean_what_they_spell(bytes in bytes_like(vec![b"message=a+b%2Bc%20%C3%A9&&a=%00&b".to_vec(), b"a=1&a=2".to_vec(), b"%61=%&b=%f&=".to_vec()])) {
        bodies::queries(&bytes);
    }

    #[test]
    fn names_of_files_are_harmless(bytes in bytes_like(vec![
        "../../etc/pass\"wd\r\nX: 1".into(), "\u{202E}txt.exe".into(), "a".repeat(300).into_bytes(), "x/...".into(), " . ".into(),
        format!("{}.{}", "é".repeat(200), "t".repeat(20)).into_bytes(), format!("{} y", "n".repeat(127)).into_bytes(), format!(".{}y", " ".repeat(127)).into_bytes(), format!("{} .txt", "n".repeat(123)).into_bytes(),
    ])) {
        bodies::file_names(&bytes);
    }

    #[test]
    fn another_reader_reads_what_was_said(bytes in bytes_like(vec![b"Hel\xfflo,\r\xff\nworld\xff\xff\r\n".to_vec(), b"data: x\n\nevent: done\ndata: {}\xff : \xff\xef\xbb\xbf".to_vec()])) {
        bodies::encoder(&bytes, foreign::sse_events);
    }

    #[test]
    fn what_fills_a_template_stays_in_its_place(bytes in bytes_like(vec![
        b"https://api.example/v1/{a}/{b}?x={a}\n../../admin\n\"b?c#d\"".to_vec(), b"v2/{a}{b}\n%2e%2e%2f\n5".to_vec(),
        b"{\"x\": {b}, \"y\": \"{a}\"}\n\",\"z\":\"\n{\"deep\":[1]}".to_vec(), b"x={a}&y={b}\na&b=c\ntrue".to_vec(),
    ])) {
        bodies::templates(&bytes);
    }

    #[test]
    fn schemas_cost_what_they_weigh(bytes in bytes_like(traps())) {
        bodies::schemas(&bytes);
    }
}

fn requests() -> Vec<Vec<u8>> {
    let everything = json!({
        "message": "Hi \u{1F469}", "session_id": "kitchen", "user_id": "ada", "agent": "assistant", "model": "openai/m",
        "attachments": [{"media_type": "image/png", "data": "aGk="}],
        "settings": {"temperature": 1, "top_p": 1, "max_output_tokens": 5, "stop": ["x"], "seed": 7, "reasoning_effort": "low"},
        "tool_choice": {"name": "look"}, "context": {"a": [1, {"b": null}]}, "metadata": {"k": "v"}, "on_disconnect": "grace",
        "response_format": {"type": "json_schema", "name": "answer", "schema": {"type": "object"}},
        "on_busy": "queue", "format": "json", "include_reasoning": true, "store": true,
    });
    let mut all = vec![everything.to_string().into_bytes(), br#"{"message":"Hi"}"#.to_vec()];
    for (name, value) in everything.as_object().expect("an object") {
        let mut one = json!({"message": "Hi"});
        one[name] = value.clone();
        all.push(one.to_string().into_bytes());
    }
    all
}

/// Schemas that are traps, and values that spring them.
fn traps() -> Vec<Vec<u8>> {
    let nested = |levels: usize, word: &str| {
        (0..levels).fold(
            json!({"type": "string"}),
            |inner, _| json!({ word: [inner.clone(), inner] }),
        )
    };
    let circle: Value = (0..20)
        .map(|level| {
            let next = json!({"$ref": format!("#/$defs/l{}", level + 1)});
            (format!("l{level}"), json!({"anyOf": [next, next]}))
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    let list = format!("[{}1]", "1,".repeat(2000));
    let word = format!("\"{}!\"", "a".repeat(2000));
    let with = |schema: Value, value: &str| format!("{schema}\n{value}").into_bytes();
    vec![
        with(json!({"$ref": "#/$defs/l0", "$defs": circle}), "1"),
        with(json!({"pattern": "^(a|a)*$"}), &word),
        with(json!({"pattern": "(a+)+$"}), &word),
        with(json!({"pattern": "a{1,900}b"}), &word),
        with(
            json!({"patternProperties": {"^(.*a){9}$": {}}}),
            &format!("{{{word}: 1}}"),
        ),
        with(json!({"uniqueItems": true}), &list),
        with(
            json!({"uniqueItems": true, "items": {"enum": [[1], [2]]}, "contains": {"not": {}}}),
            &list,
        ),
        with(json!({"items": nested(8, "oneOf")}), &list),
        with(
            json!({"unevaluatedProperties": false, "allOf": [nested(6, "anyOf")]}),
            r#"{"a": 1, "b": {"c": 2}}"#,
        ),
        with(
            json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}),
            r#"{"n": -1.5}"#,
        ),
        with(json!({"multipleOf": 1e-300, "maximum": 1e300}), "1e308"),
        with(
            json!({"propertyNames": {"format": "email"}, "minProperties": 1_000_000_000_u64}),
            "{}",
        ),
    ]
}

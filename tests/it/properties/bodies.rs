//! What must hold of whatever bytes come: each is a function of bytes that panics if it does not. The ordinary suite calls
//! them with bytes that proptest makes up, `fuzz/` with what libFuzzer finds.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Map, Value};
use sluicegate::{
    chat::{ArtifactId, Chunk, EventId, Principal, RunId, SessionId},
    error::ErrorCode,
    http::{
        artifacts::disposition,
        auth::{Caller, Proof},
        body,
        format::sse::raw_data,
        order::{self, Door},
        query::Query,
    },
    provider::{
        decoding::Decoding,
        dialect::Dialect,
        frame::{Frame, FrameReader, Framing},
    },
    run::plain_name,
    schema::{Recursion, Schema},
    tool::template::{Address, Body, Kind, Parameters, Values},
};

/// More than any of these inputs has.
const ROOMY: usize = 16 << 20;

/// The first byte, and the others.
fn first(bytes: &[u8]) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest))
}

/// Bytes in pieces whose sizes depend on `seed`; some are empty.
fn pieces(mut bytes: &[u8], seed: u8) -> Vec<&[u8]> {
    let mut state = u32::from(seed);
    let mut all = Vec::new();
    while !bytes.is_empty() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let size = match state >> 28 {
            0 => 0,
            1..=6 => 1,
            7..=12 => (state >> 20 & 15) as usize,
            _ => (state >> 16 & 255) as usize,
        };
        let (piece, rest) = bytes.split_at(size.min(bytes.len()));
        all.push(piece);
        bytes = rest;
    }
    all
}

/// Events, and how reading ended.
type Read = (Vec<(Vec<u8>, Vec<u8>)>, Option<String>);

fn read(framing: Framing, limit: usize, pieces: &[&[u8]]) -> Read {
    let mut events = Vec::new();
    let mut reader = FrameReader::new(framing, limit);
    let mut each = |frame: Frame<'_>| {
        events.push((frame.event.to_vec(), frame.data.to_vec()));
        Ok(())
    };
    let mut outcome = Ok(());
    for piece in pieces {
        outcome = outcome.and_then(|()| reader.push(piece, &mut each));
    }
    let error = outcome.and_then(|()| reader.finish(&mut each)).err();
    (events, error.map(|error| error.detail))
}

/// Events of a provider are the same however the network cut them, and none is larger than allowed.
pub(crate) fn frames(bytes: &[u8]) {
    let (seed, bytes) = first(bytes);
    for framing in [Framing::Sse, Framing::Ndjson] {
        let whole = read(framing, ROOMY, &[bytes]);
        assert_eq!(read(framing, ROOMY, &pieces(bytes, seed)), whole);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(framing, ROOMY, &single), whole);
        assert_eq!(whole.1, None, "nothing is over the limit");
        let limit = usize::from(seed);
        for (_, data) in read(framing, limit, &pieces(bytes, seed)).0 {
            // A line that came in one piece is not kept, and no piece has more than 255 bytes.
            assert!(data.len() <= limit.max(255), "{} of {limit}", data.len());
        }
    }
}

/// Every dialect that has a wire.
pub(crate) fn dialects() -> Vec<Box<dyn Dialect>> {
    use sluicegate::provider::{anthropic, azure, gemini, groq, ollama, openai, responses};
    vec![
        Box::new(openai::OpenAi),
        Box::new(responses::Responses::of("p")),
        Box::new(anthropic::Anthropic),
        Box::new(gemini::Gemini),
        Box::new(groq::Groq),
        Box::new(ollama::Ollama),
        Box::new(azure::Azure::default()),
    ]
}

/// What an answer came to, and its error.
pub(crate) type Answer = (Vec<Chunk>, Option<String>);

/// Decodes an answer whose connection ends properly after these pieces.
pub(crate) fn decode(dialect: &dyn Dialect, pieces: &[&[u8]]) -> Answer {
    let mut decoding = Decoding::new(dialect, ROOMY);
    let mut out = Vec::new();
    for piece in pieces {
        if let Err(error) = decoding.push(piece, &mut out) {
            return (joined(out), Some(format!("{:?} {}", error.kind, error.detail)));
        }
        if decoding.progress() == sluicegate::provider::dialect::Progress::Over {
            return (joined(out), None);
        }
    }
    let error = decoding.end(None, &mut out).err();
    (
        joined(out),
        error.map(|error| format!("{:?} {}", error.kind, error.detail)),
    )
}

/// Texts that follow each other are one, and ids that we made up are alike: what must not depend on the cuts.
fn joined(chunks: Vec<Chunk>) -> Vec<Chunk> {
    let mut all: Vec<Chunk> = Vec::new();
    for chunk in chunks {
        match (all.last_mut(), chunk) {
            (Some(Chunk::Text(before)), Chunk::Text(more)) => before.push_str(&more),
            (Some(Chunk::Reasoning(before)), Chunk::Reasoning(more)) => before.push_str(&more),
            (_, Chunk::ToolCallStart { index, id, name }) => {
                let ours = id.starts_with("call_") && id.len() == 37;
                let id = if ours { "ours".to_owned() } else { id };
                all.push(Chunk::ToolCallStart { index, id, name });
            }
            (_, other) => all.push(other),
        }
    }
    all
}

/// A complete answer ends with one finish; a broken one with an error, and never with both.
fn is_honest((chunks, error): &Answer) {
    let finishes = chunks
        .iter()
        .filter(|chunk| matches!(chunk, Chunk::Finish { .. }))
        .count();
    match error {
        None => assert!(
            matches!(chunks.last(), Some(Chunk::Finish { .. })),
            "no finish, no error: {chunks:?}"
        ),
        Some(error) => assert_eq!(finishes, 0, "{error} after a finish: {chunks:?}"),
    }
    assert!(finishes <= 1, "{chunks:?}");
    for chunk in chunks {
        assert!(
            !matches!(chunk, Chunk::Text(text) | Chunk::Reasoning(text) if text.is_empty()),
            "{chunks:?}"
        );
    }
}

/// Each dialect's decoder says the same of an answer however it was cut; what broke off is an error. The first byte chooses
/// the dialect, the second the cuts.
pub(crate) fn decoders(bytes: &[u8]) {
    let (choice, bytes) = first(bytes);
    let (seed, bytes) = first(bytes);
    let all = dialects();
    let dialect = &*all[usize::from(choice.wrapping_sub(b'0')) % all.len()];
    let whole = decode(dialect, &[bytes]);
    is_honest(&whole);
    assert_eq!(decode(dialect, &pieces(bytes, seed)), whole);
    // Cut anywhere it is either complete or an error, and never says more than the whole does.
    let cut = decode(dialect, &[&bytes[..bytes.len() * usize::from(seed) / 256]]);
    is_honest(&cut);
    if let Ok(chunks) = dialect.whole(bytes) {
        is_honest(&(chunks, None));
    }
    drop(dialect.refusal(400 + u16::from(seed), &Default::default(), bytes));
}

/// What is taken for an id is written as it was read, and is none of the forms that lead elsewhere.
pub(crate) fn ids(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = text.parse::<RunId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(id) = text.parse::<ArtifactId>() {
        assert_eq!(id.to_string(), text);
    }
    if let Ok(EventId { run, seq }) = text.parse::<EventId>() {
        let (told, digits) = text.split_once(':').expect("two parts");
        assert_eq!((run.to_string().as_str(), digits.parse()), (told, Ok(seq)));
        assert!(
            digits.len() <= 20 && digits.bytes().all(|b| b.is_ascii_digit()),
            "{text}"
        );
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    let fits = (1..=128).contains(&text.len()) && text.bytes().all(allowed);
    assert_eq!(text.parse::<SessionId>().is_ok(), fits, "{text:?}");
}

/// Whether a value has a number that its text need not spell exactly.
fn has_fractions(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(all) => all.iter().any(has_fractions),
        Value::Object(all) => all.values().any(has_fractions),
        _ => false,
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(all) => 1 + all.iter().map(depth).max().unwrap_or(0),
        Value::Object(all) => 1 + all.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// A body is JSON as another reader reads it, and an order that is taken keeps every promise about its fields.
pub(crate) fn bodies(bytes: &[u8]) {
    let Ok(value) = body::parse(bytes) else { return };
    assert_eq!(serde_json::from_slice::<Value>(bytes).ok().as_ref(), Some(&value));
    assert!(depth(&value) <= 64, "{} deep", depth(&value));
    let ask = |value: Value| {
        let caller = Caller {
            principal: Principal::anonymous(),
            shared: false,
            permit: std::sync::Arc::default(),
            requests_per_minute: 0,
            proof: Proof::Nobody,
        };
        order::from_body(
            value,
            Some("key".to_owned()),
            Door::Direct,
            caller,
            Duration::from_secs(30),
        )
    };
    let order = match ask(value.clone()) {
        Ok((order, _)) => order,
        Err(error) => {
            assert!(
                error.message.ends_with('.') && error.message.len() < 2000,
                "{}",
                error.message
            );
            assert!(!matches!(error.code, ErrorCode::Internal), "{}", error.message);
            return;
        }
    };
    assert!(!order.message.trim().is_empty() && order.message.chars().count() <= 262_144);
    assert!(order.store && order.attachments.len() <= 4 && order.metadata.len() <= 16);
    let texts = [
        Some(&order.message),
        order.user_id.as_ref(),
        order.agent.as_ref(),
        order.model.as_ref(),
    ];
    assert!(texts.into_iter().flatten().all(|text| !text.contains('\0')));
    assert!(order.settings.temperature.is_none_or(|it| (0.0..=2.0).contains(&it)));
    // However it is written down, it is the same request.
    let again = body::parse(serde_json::to_string_pretty(&value).expect("JSON").as_bytes()).expect("JSON");
    let again = ask(again).expect("the same order").0;
    assert_eq!(again.message, order.message);
    if !has_fractions(&value) {
        assert_eq!(again.idempotency, order.idempotency);
    }
}

/// A query is read as it was meant, or refused.
pub(crate) fn queries(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let known = ["message", "a", "b", "", "\u{e9}"];
    if let Ok(query) = Query::read(Some(&text), &known) {
        let all = query.rest();
        assert!(all.keys().all(|name| known.contains(&name.as_str())), "{all:?}");
        round_trip(&all, &known);
    }
    // And what is spelled out is what is read.
    let mut parts = text.splitn(2, '&');
    let mut values = || parts.next().unwrap_or_default().to_owned();
    let spelled = BTreeMap::from([("message".to_owned(), values()), ("a".to_owned(), values())]);
    round_trip(&spelled, &known);
}

fn round_trip(all: &BTreeMap<String, String>, known: &[&str]) {
    let spell = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let pairs: Vec<String> = all
        .iter()
        .map(|(name, value)| format!("{}={}", spell(name), spell(value)))
        .collect();
    let read = Query::read(Some(&pairs.join("&")), known).expect("a query");
    assert_eq!(&read.rest(), all);
}

/// Whatever a file is called, its name is one harmless header line that means the harmless name.
pub(crate) fn file_names(bytes: &[u8]) {
    let told = String::from_utf8_lossy(bytes);
    let name = plain_name(&told);
    assert!((1..=128).contains(&name.chars().count()), "{name:?}");
    assert!(
        !name.contains(['/', '\\']) && !name.chars().any(char::is_control),
        "{name:?}"
    );
    assert!(!matches!(name.as_str(), "." | ".."));
    assert_eq!(plain_name(&name), name, "once is enough");
    // Also of what was kept before names were made harmless.
    for name in [name.as_str(), &told] {
        let line = disposition(name);
        assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
        let rest = line.strip_prefix("attachment; filename=\"").expect("a name");
        let (plain, spelled) = rest.split_once("\"; filename*=UTF-8''").expect("both names");
        assert!(!plain.contains(['"', '\\', '%']), "{line}");
        assert_eq!(unescaped(spelled).as_deref(), Some(name.as_bytes()), "{line}");
    }
}

/// Percent-encoding, undone; `None` if it is none, or holds what ends a header's value.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => b,
            _ => return None,
        });
    }
    Some(bytes)
}

/// The texts that the bytes are; 0xFF is between two.
pub(crate) fn texts(bytes: &[u8]) -> Vec<String> {
    let texts = bytes.split(|byte| *byte == 0xff);
    texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// Our frames for these tokens: what `SseBody` writes around what it is given.
pub(crate) fn encoded(tokens: &[String]) -> Vec<u8> {
    let mut out = b"retry: 2000\n".to_vec();
    let mut after_cr = false;
    for (seq, token) in tokens.iter().enumerate() {
        out.extend_from_slice(format!("id: run:{seq}\nevent: token").as_bytes());
        raw_data(&mut out, token, after_cr);
        out.extend_from_slice(b"\n\n");
        if seq % 3 == 1 {
            out.extend_from_slice(b": hb\n");
        }
        // An empty token ends as the one before it.
        after_cr = if token.is_empty() {
            after_cr
        } else {
            token.ends_with('\r')
        };
    }
    out
}

/// Whatever a model says, an event stream carries it; no text makes a frame of its own. `parse` is somebody else's reader.
pub(crate) fn encoder(bytes: &[u8], parse: impl FnOnce(Vec<Vec<u8>>) -> Vec<(String, String, String)>) {
    let (seed, bytes) = first(bytes);
    let tokens = texts(bytes);
    let out = encoded(&tokens);
    let events = parse(pieces(&out, seed).into_iter().map(<[u8]>::to_vec).collect());
    assert_eq!(events.len(), tokens.len(), "{events:?}");
    let mut said = String::new();
    for (seq, (id, event, data)) in events.iter().enumerate() {
        assert_eq!((id.as_str(), event.as_str()), (format!("run:{seq}").as_str(), "token"));
        said.push_str(data);
    }
    assert_eq!(said, tokens.concat().replace("\r\n", "\n").replace('\r', "\n"));
}

/// An address stays at its host and in its segments, a JSON body in its form, a form in its pairs, whatever fills them.
/// The template is of ours, or, if it is one, the first line.
pub(crate) fn templates(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (line, rest) = text.split_once('\n').unwrap_or((&text, &text));
    let schema = serde_json::json!({"properties": {"a": {"type": "string"}, "b": {}}});
    let parameters = Parameters(&schema);
    let (a, b) = rest.split_once('\n').unwrap_or((rest, ""));
    let told = serde_json::from_str::<Value>(b).unwrap_or_else(|_| b.into());
    let arguments = Map::from_iter([("a".to_owned(), Value::from(a)), ("b".to_owned(), told.clone())]);
    let facts = Map::from_iter([("user".to_owned(), Value::from(b))]);
    let values = Values {
        arguments: &arguments,
        facts: &facts,
    };
    let own = "https://api.example:8443/v1/{a}/x-{b}.json?q={a}&f={context.user}";
    for template in [own, line, &format!("https://api.example:8443/{line}")] {
        let Ok(address) = Address::parse(template, &parameters) else {
            continue;
        };
        let Ok(url) = address.fill(values) else { continue };
        let start = template.split(['/', '?']).nth(2).expect("a host");
        let like =
            url::Url::parse(&format!("{}//{start}/", template.split('/').next().expect("a scheme"))).expect("a place");
        assert_eq!(url.origin(), like.origin(), "{template} with {arguments:?}");
        assert!(
            url.username().is_empty() && url.password().is_none() && url.fragment().is_none(),
            "{url}"
        );
        assert!(url.as_str().is_ascii() && !url.path().contains('\\'), "{url}");
        if template == own {
            let segments: Vec<&str> = url.path_segments().expect("a path").collect();
            assert_eq!((segments.len(), segments[0]), (3, "v1"), "{url}");
            assert_eq!(unescaped(segments[1]).as_deref(), Some(a.as_bytes()), "{url}");
            let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
            assert_eq!(
                pairs,
                [("q".to_owned(), a.to_owned()), ("f".to_owned(), b.to_owned())],
                "{url}"
            );
        }
    }
    let own = r#"{"text": "-{a}-", "any": {b}, "list": [{a}, "{context.user}"]}"#;
    for template in [own, line] {
        let Ok(body) = Body::parse(template, Kind::Json, &parameters) else {
            continue;
        };
        let Ok(filled) = body.fill(values) else { continue };
        let value: Value =
            serde_json::from_str(&filled).unwrap_or_else(|error| panic!("{error}: {template} is {filled}"));
        if template == own && !has_fractions(&told) {
            let is = serde_json::json!({"text": format!("-{a}-"), "any": told, "list": [a, b]});
            assert_eq!(value, is);
        }
    }
    for template in ["x={a}&y={a}", line] {
        let Ok(body) = Body::parse(template, Kind::Form, &parameters) else {
            continue;
        };
        let Ok(filled) = body.fill(values) else { continue };
        assert!(
            filled.matches('&').count() <= template.matches('&').count(),
            "{template} is {filled}"
        );
    }
}

/// How much of a processor's time looking at a schema of some kilobytes may take; a trap takes years.
const PATIENT: Duration = Duration::from_secs(5);

/// The time that this thread has had of a processor: what others do beside it does not count. Where the kernel does not
/// tell, the time that has passed.
fn worked(since: Instant) -> Duration {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = told.and_then(|told| told.split(' ').next()?.parse().ok());
    nanos.map_or_else(|| since.elapsed(), Duration::from_nanos)
}

/// A schema from outside is compiled or refused, and applied, in a time that its size bounds. The first line is the schema,
/// the rest what it is applied to.
pub(crate) fn schemas(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (schema, value) = text.split_once('\n').unwrap_or((&text, "null"));
    let Ok(schema) = serde_json::from_str::<Value>(schema) else {
        return;
    };
    let now = Instant::now();
    let began = worked(now);
    if let Ok(schema) = Schema::compile(&schema, Recursion::Refused) {
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        if let Err(told) = schema.admits(&value) {
            assert!(
                !told.is_empty() && told.len() < 16 << 10,
                "{} bytes of advice",
                told.len()
            );
        }
    }
    let took = worked(now).saturating_sub(began);
    assert!(took < PATIENT, "{took:?} for {text}");
}

//! What providers answer, and what becomes of it on its way out.

use sluicegate::{
    chat::Chunk,
    http::format::sse::raw_data,
    provider::{
        decoding::Decoding,
        deviations::Deviations,
        dialect::Dialect,
        frame::{Frame, FrameReader, Framing},
    },
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
        events.push((frame.event.to_vec(), frame.data.into()));
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
        let is_disguise = |error: &String| error.starts_with("a line of data behind");
        assert!(whole.1.as_ref().is_none_or(is_disguise), "nothing is over the limit");
        let limit = usize::from(seed);
        for (_, data) in read(framing, limit, &pieces(bytes, seed)).0 {
            // A line that came in one piece is not kept, and no piece has more than 255 bytes. What stands for a byte that is
            // no UTF-8 has three.
            assert!(data.len() <= 3 * limit.max(255), "{} of {limit}", data.len());
        }
    }
}

/// Every dialect that has a wire.
pub(crate) fn dialects() -> Vec<Box<dyn Dialect>> {
    use sluicegate::provider::{anthropic, azure, gemini, groq, ollama, openai, responses};
    vec![
        Box::new(openai::OpenAi::default()),
        Box::new(responses::Responses::of("p")),
        Box::new(anthropic::Anthropic::default()),
        Box::new(gemini::Gemini),
        Box::new(groq::Groq::default()),
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
    if let Ok(chunks) = dialect.whole(bytes, &mut Deviations::default()) {
        is_honest(&(chunks, None));
    }
    drop(dialect.refusal(400 + u16::from(seed), &Default::default(), bytes));
}

/// The texts that the bytes are; 0xFF is between two.
fn texts(bytes: &[u8]) -> Vec<String> {
    let texts = bytes.split(|byte| *byte == 0xff);
    texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// Our frames for these tokens: what `SseBody` writes around what it is given.
fn encoded(tokens: &[String]) -> Vec<u8> {
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

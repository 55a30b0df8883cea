#![no_main]
#![allow(dead_code, unused_imports, reason = "each target is one of these")]

use futures_util::{FutureExt, StreamExt, stream};

#[path = "../../tests/it/properties/bodies/mod.rs"]
mod bodies;

/// Somebody else's reader of event streams.
fn sse_events(pieces: Vec<Vec<u8>>) -> Vec<(String, String, String)> {
    let pieces = stream::iter(
        pieces
            .into_iter()
            .map(|piece| Ok::<_, std::io::Error>(bytes::Bytes::from(piece))),
    );
    let events = sse_stream::SseByteStream::new(pieces).collect::<Vec<_>>();
    let events = events.now_or_never().expect("nothing to wait for").into_iter();
    let events = events.map(|event| event.expect("an event"));
    events
        .map(|event| {
            (
                event.id.unwrap_or_default(),
                event.event.unwrap_or_default(),
                event.data.unwrap_or_default(),
            )
        })
        .collect()
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| bodies::encoder(bytes, sse_events));

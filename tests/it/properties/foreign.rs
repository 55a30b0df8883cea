//! What others wrote, to compare with.

use futures_util::{FutureExt, StreamExt, stream};

/// Somebody else's reader of event streams.
pub(crate) fn sse_events(pieces: Vec<Vec<u8>>) -> Vec<(String, String, String)> {
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

//! One answer's bytes to chunks: framing and dialect together, without a socket. What a recorded stream is tested with
//! is what a live one goes through.

use super::{
    ProviderError,
    dialect::{Decoder, Dialect, Progress},
    error::Kind,
    frame::{Each, FrameReader},
};
use crate::chat::Chunk;

/// An answer being decoded.
pub struct Decoding {
    frames: FrameReader,
    decoder: Box<dyn Decoder>,
    progress: Progress,
    /// Whether there has been no event at all.
    silent: bool,
}

impl Decoding {
    /// An answer in this dialect, none of whose events has more than `max_event` bytes.
    #[must_use]
    pub fn new(dialect: &dyn Dialect, max_event: usize) -> Self {
        Self {
            frames: FrameReader::new(dialect.framing(), max_event),
            decoder: dialect.decoder(),
            progress: Progress::More,
            silent: true,
        }
    }

    /// How far the answer is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Takes the next bytes, wherever they were cut.
    ///
    /// # Errors
    /// The one that an event reports, or an event that is none; what was decoded before it is in `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        self.events(out, |frames, each| frames.push(bytes, each))?;
        if self.progress == Progress::Over {
            self.decoder.end(out)
        } else {
            Ok(())
        }
    }

    /// The bytes have ended: by themselves, or because the connection broke. After the finish it does not matter which.
    ///
    /// # Errors
    /// Truncated, before the finish; and an answer without a single event.
    pub fn end(&mut self, broken: Option<String>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        self.events(out, FrameReader::finish)?;
        let complete = std::mem::replace(&mut self.progress, Progress::Over) != Progress::More;
        match broken {
            Some(why) if !complete => Err(ProviderError::new(Kind::Truncated, why)),
            None if self.silent => Err(ProviderError::new(Kind::Protocol, "a stream without a single event")),
            _ => self.decoder.end(out),
        }
    }

    /// Gives the decoder every event that `read` brings. After the last one nothing counts.
    fn events(
        &mut self,
        out: &mut Vec<Chunk>,
        read: impl FnOnce(&mut FrameReader, &mut Each<'_>) -> Result<(), ProviderError>,
    ) -> Result<(), ProviderError> {
        let Self {
            frames,
            decoder,
            progress,
            silent,
        } = self;
        read(frames, &mut |frame| {
            *silent = false;
            if *progress != Progress::Over {
                *progress = decoder.frame(frame, out)?;
            }
            Ok(())
        })
    }
}

//! One answer's bytes to chunks: framing and dialect together, without a socket. What a recorded stream is tested with
//! is what a live one goes through.

use super::{
    ProviderError,
    dialect::{Decoder, Dialect, Progress},
    error::{Exactly, Kind},
    frame::{Each, FrameReader},
};
use crate::{chat::Chunk, meters::Tolerated};

/// An answer being decoded.
pub struct Decoding {
    frames: FrameReader,
    decoder: Box<dyn Decoder>,
    progress: Progress,
    /// Whether there has been no event at all.
    silent: bool,
    /// Whether there has been no content.
    empty: bool,
    /// Whether the mark of the end is still to come.
    mark_is_due: bool,
    /// Whether events came after the last.
    late: bool,
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
            empty: true,
            mark_is_due: dialect.marks_its_end(),
            late: false,
        }
    }

    /// How far the answer is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// What was wrong with the answer, now that it is complete.
    pub fn tolerated(&self) -> impl Iterator<Item = Tolerated> {
        let all = [
            (self.mark_is_due, Tolerated::NoMark),
            (self.late || self.decoder.went_on(), Tolerated::Late),
            (self.frames.mended(), Tolerated::NotUtf8),
            (self.empty, Tolerated::Empty),
        ];
        all.into_iter().filter_map(|(is, what)| is.then_some(what))
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
    /// `broken` or truncated, before the finish; and an answer without a single event.
    pub fn end(&mut self, broken: Option<ProviderError>, out: &mut Vec<Chunk>) -> Result<(), ProviderError> {
        self.events(out, FrameReader::finish)?;
        let complete = std::mem::replace(&mut self.progress, Progress::Over) != Progress::More;
        match broken {
            Some(broken) if !complete => Err(broken),
            None if self.silent => {
                let nothing = ProviderError::new(Kind::Protocol, "a stream without a single event");
                Err(nothing.exactly(Exactly::Empty))
            }
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
            empty,
            mark_is_due,
            late,
        } = self;
        let before = out.len();
        let outcome = read(frames, &mut |frame| {
            *silent = false;
            if *progress == Progress::Over {
                *late = true;
            } else {
                *progress = decoder.frame(frame, out).map_err(|error| match error.kind {
                    Kind::Protocol => error.exactly(Exactly::BadEvent),
                    _ => error,
                })?;
                *mark_is_due &= *progress != Progress::Over;
            }
            Ok(())
        });
        *empty &= !out[before..].iter().any(Chunk::is_content);
        outcome
    }
}

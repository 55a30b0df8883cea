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
            (self.late, Tolerated::Late),
            (self.frames.mended(), Tolerated::NotUtf8),
            (self.empty, Tolerated::Empty),
        ];
        let mut tolerated = self.decoder.deviations();
        all.into_iter().for_each(|(is, what)| tolerated.add_if(is, what));
        tolerated.iter()
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
            // What has its finish is complete, whatever failed after it.
            if *progress == Progress::Over || frame.bare && *progress == Progress::Finishing {
                *late = true;
            } else {
                let data = frame.data;
                *progress = decoder.frame(frame, out).map_err(|error| match error.kind {
                    Kind::Protocol => error.exactly(Exactly::BadEvent),
                    _ => error.explained(data.as_bytes()),
                })?;
                *mark_is_due &= *progress != Progress::Over;
            }
            Ok(())
        });
        *empty &= !out[before..].iter().any(Chunk::is_content);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{
        anthropic::Anthropic, azure::Azure, gemini::Gemini, groq::Groq, openai::OpenAi, responses::Responses,
    };

    const HI: &str = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"Hi\"}]}}]}\r\n\r\n";
    const STOP: &str = "data: {\"candidates\":[{\"finishReason\":\"STOP\"}]}\r\n\r\n";
    /// An answer that fails as Gemini's do, over several lines.
    const OVERLOADED: &str = r#"{
  "error": {
    "code": 503,
    "message": "The model is \"overloaded\". {Please} try [again later.",
    "status": "UNAVAILABLE",
    "details": [

      {
        "@type": "type.googleapis.com/google.rpc.DebugInfo",
        "detail": ""
      }
    ]
  }
}"#;

    /// What these pieces come to, and why it broke.
    fn decode<'a>(dialect: &dyn Dialect, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Chunk>, Option<Kind>) {
        let (mut decoding, mut out) = (Decoding::new(dialect, 4096), Vec::new());
        for piece in pieces {
            if let Err(error) = decoding.push(piece, &mut out) {
                return (out, Some(error.kind));
            }
        }
        let end = decoding.end(None, &mut out);
        (out, end.err().map(|error| error.kind))
    }

    /// The same whole, byte by byte, and in two pieces, cut anywhere.
    fn however_cut(stream: &str) -> (Vec<Chunk>, Option<Kind>) {
        let bytes = stream.as_bytes();
        let whole = decode(&Gemini, [bytes]);
        assert_eq!(decode(&Gemini, bytes.chunks(1)), whole, "byte by byte: {stream:?}");
        for cut in 0..bytes.len() {
            let (one, other) = bytes.split_at(cut);
            assert_eq!(decode(&Gemini, [one, other]), whole, "cut at {cut}: {stream:?}");
        }
        whole
    }

    #[test]
    fn an_error_of_geminis_needs_no_data_in_front() {
        let hi = || vec![Chunk::Text("Hi".into())];
        let exhausted = r#"{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED"}}"#;
        let internal = "{\n\"error\": {\"code\": 500, \"status\": \"INTERNAL\"}}";
        for (error, kind) in [
            (OVERLOADED, Kind::Overloaded),
            (exhausted, Kind::RateLimited),
            (internal, Kind::Server),
        ] {
            for error in [
                error.to_owned(),
                format!("[{error}]"),
                format!("[{error}\n]\n"),
                format!("\n\n{error}\n\n"),
            ] {
                for error in [error.clone(), error.replace('\n', "\r\n")] {
                    assert_eq!(however_cut(&error), (vec![], Some(kind)), "{error}");
                    assert_eq!(however_cut(&format!("{HI}{error}")), (hi(), Some(kind)), "{error}");
                }
            }
        }
        let late = HI.trim_end().to_owned() + "\r\n" + OVERLOADED;
        assert_eq!(
            however_cut(&late),
            (hi(), Some(Kind::Overloaded)),
            "without a blank line before it"
        );
    }

    #[test]
    fn what_is_no_whole_error_leaves_an_answer_as_it_was() {
        for end in 1..OVERLOADED.len() {
            let cut = format!("{HI}{}", &OVERLOADED[..end]);
            assert_eq!(decode(&Gemini, [cut.as_bytes()]).1, Some(Kind::Truncated), "{cut:?}");
        }
        for odd in [
            "{\n",
            "{}\n\n",
            "{\"error\":null}\n",
            ": {\"error\":{}}\n",
            "[\n\n",
            "oh: {\"error\":{}}\n",
        ] {
            assert_eq!(
                decode(&Gemini, [HI, odd, HI, STOP].map(str::as_bytes)).1,
                None,
                "{odd:?}"
            );
        }
        let endless = format!("{{\"a\":[\n{}", "1,\n".repeat(4096));
        assert_eq!(decode(&Gemini, [HI, &endless, "\n", STOP].map(str::as_bytes)).1, None);
    }

    #[test]
    fn an_answer_with_its_finish_stays_complete_whatever_fails_after_it() {
        let stream = format!("{HI}{STOP}{OVERLOADED}");
        let (chunks, error) = however_cut(&stream);
        assert!(error.is_none() && matches!(chunks[..], [Chunk::Text(_), Chunk::Finish { .. }]));
        let mut decoding = Decoding::new(&Gemini, 4096);
        decoding.push(stream.as_bytes(), &mut Vec::new()).unwrap();
        decoding.end(None, &mut Vec::new()).unwrap();
        assert!(decoding.tolerated().any(|what| what == Tolerated::Late));
        let code = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"executableCode\":{}}]},\"finishReason\":\"STOP\"}]}\n\n";
        let error = however_cut(&format!("{code}{OVERLOADED}")).1;
        assert_eq!(
            error,
            Some(Kind::Overloaded),
            "a finish while a tool of theirs runs is none"
        );
    }

    #[test]
    fn whoever_the_provider_is_an_error_may_come_as_a_whole_body() {
        let dialects: [&dyn Dialect; 6] = [
            &OpenAi::default(),
            &Groq::default(),
            &Azure::default(),
            &Responses::of("p"),
            &Anthropic::default(),
            &Gemini,
        ];
        for dialect in dialects {
            let body = "{\n \"error\": {\"message\": \"x\", \"type\": \"a_new_error\", \"code\": null}\n}\n";
            assert_eq!(decode(dialect, [body.as_bytes()]), (vec![], Some(Kind::Reported)));
        }
    }
}

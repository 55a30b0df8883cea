//! The body of a request to a provider, in pieces: images stand in it as they are held, without a copy of their own. So
//! the encoded request takes only its text, and a repetition nothing more.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use memchr::memmem;
use uuid::Uuid;

use super::{ProviderError, dialect::Dialect};
use crate::chat::ChatRequest;

/// Images with less than so many bytes are copied into the text.
const SMALL: usize = 4 << 10;
/// How many digits say which image a mark stands for.
const DIGITS: usize = 6;

/// An encoded request. Clones share its bytes.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    /// Below the provider's base address.
    pub(super) path: Arc<str>,
    pieces: Arc<[Bytes]>,
}

impl Payload {
    /// Encodes a request. Its large images are encoded as marks, which nobody can guess, and the image's bytes take the
    /// place of each mark.
    ///
    /// # Errors
    /// A request that cannot be written down.
    pub(super) fn encode(dialect: &impl Dialect, request: &ChatRequest) -> Result<Self, ProviderError> {
        let large = |data: &str| data.len() >= SMALL;
        let images = request.messages.iter().flat_map(|message| &message.attachments);
        if !images.clone().any(|image| large(&image.data)) {
            let call = dialect.encode(request)?;
            return Ok(Self::of(&call.path, vec![call.body.into()]));
        }
        let mark = Uuid::new_v4().simple().to_string();
        let mut marked = request.clone();
        let mut data: Vec<Arc<str>> = Vec::new();
        let images = marked.messages.iter_mut().flat_map(|message| &mut message.attachments);
        for image in images.filter(|image| large(&image.data)) {
            let name = format!("{mark}{:0DIGITS$}", data.len()).into();
            data.push(std::mem::replace(&mut image.data, name));
        }
        let call = dialect.encode(&marked)?;
        let body = Bytes::from(call.body);
        let (mut pieces, mut at) = (Vec::new(), 0);
        for found in memmem::find_iter(&body, mark.as_bytes()) {
            let end = found + mark.len() + DIGITS;
            let number = body
                .get(end - DIGITS..end)
                .and_then(|digits| std::str::from_utf8(digits).ok());
            let image = number.and_then(|number| data.get(number.parse::<usize>().ok()?));
            let Some(image) = image else { continue };
            pieces.push(body.slice(at..found));
            pieces.push(Bytes::from_owner(Shared(image.clone())));
            at = end;
        }
        pieces.push(body.slice(at..));
        Ok(Self::of(&call.path, pieces))
    }

    /// A body that is encoded already.
    pub(super) fn of(path: &str, pieces: Vec<Bytes>) -> Self {
        Self {
            path: path.into(),
            pieces: pieces.into(),
        }
    }

    /// The body of one attempt. Its length is known, so that it is sent with `Content-Length`.
    pub(super) fn body(&self) -> reqwest::Body {
        match &*self.pieces {
            [whole] => whole.clone().into(),
            pieces => reqwest::Body::wrap(Pieces(pieces.iter().cloned().collect())),
        }
    }
}

/// A text as bytes.
struct Shared(Arc<str>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

struct Pieces(VecDeque<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chat::{Again, Image, Message, ResponseFormat, Settings, ToolChoice},
        provider::{anthropic::Anthropic, gemini::Gemini, ollama::Ollama, openai::OpenAi, responses::Responses},
    };

    fn request() -> ChatRequest {
        let image = |bytes: usize, media_type: &str| Image {
            media_type: media_type.into(),
            data: "QUJD".repeat(bytes / 4).into(),
        };
        ChatRequest {
            model: "m".into(),
            instructions: None,
            messages: vec![
                Message::user("Before", vec![image(8 << 10, "image/png"), image(64, "image/png")]),
                Message::assistant("Yes", vec![]),
                Message::user("Now", vec![image(SMALL, "image/jpeg"), image(12 << 10, "image/webp")]),
            ],
            tools: vec![],
            tool_choice: ToolChoice::Auto,
            settings: Settings::default(),
            response_format: ResponseFormat::Text,
            trace: None,
            again: Again::default(),
        }
    }

    fn holds(dialect: &impl Dialect) {
        let request = request();
        let payload = Payload::encode(dialect, &request).unwrap();
        let call = dialect.encode(&request).unwrap();
        assert_eq!(*payload.path, call.path);
        assert!(payload.pieces.concat() == call.body, "another body");
        let length = http_body::Body::size_hint(&payload.body()).exact();
        assert_eq!(length, Some(call.body.len() as u64));
        // The pieces of images are the images themselves.
        let images = request.messages.iter().flat_map(|message| &message.attachments);
        let large: Vec<_> = images.filter(|image| image.data.len() >= SMALL).collect();
        let shared = payload.pieces.iter().filter(|piece| piece.len() >= SMALL);
        let shared: Vec<_> = shared.map(|piece| piece.as_ptr()).collect();
        assert_eq!(
            shared,
            large.iter().map(|image| image.data.as_ptr()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_request_in_pieces_is_the_request_in_every_dialect() {
        holds(&OpenAi::default());
        holds(&Anthropic::default());
        holds(&Gemini);
        holds(&Ollama);
        holds(&Responses::of("p"));
    }

    #[test]
    fn a_request_without_images_is_one_piece() {
        let mut request = request();
        request.messages.truncate(2);
        request.messages.remove(0);
        let payload = Payload::encode(&OpenAi::default(), &request).unwrap();
        assert_eq!(payload.pieces.len(), 1);
    }
}

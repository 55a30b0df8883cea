//! JSON whose long texts are escaped as they are written, out of the place where they are held: a reader who is slow costs
//! its place in them, and no copy.

use std::{
    any::Any,
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use memchr::memmem;
use serde::Serialize;
use uuid::Uuid;

use super::{PIECE, chunk::OneLine};
use crate::{
    chat::{Answer, JsonText},
    error::Error,
};

/// How many digits say which text a mark stands for.
const DIGITS: usize = 6;

/// What holds the texts of a body: a run, or a result.
pub(in crate::http) type Holder = Arc<dyn Any + Send + Sync>;

/// The long texts of an answer, in whose places are marks that nobody can guess.
pub(in crate::http) struct LongTexts {
    mark: String,
    texts: Vec<Text>,
}

enum Text {
    /// The content of a string.
    Plain(Arc<str>),
    /// A value.
    Json(Arc<str>),
}

impl LongTexts {
    /// Whether an answer has any.
    pub(in crate::http) fn any(answer: &Answer) -> bool {
        let data = answer.structured_data.as_ref().map(|data| &**data.text());
        let texts = [&*answer.content]
            .into_iter()
            .chain(data)
            .chain(answer.reasoning.as_deref());
        let messages = answer.messages.iter().map(|message| &*message.content);
        let results = answer.tool_calls.iter().map(|call| &*call.result);
        texts.chain(messages).chain(results).any(|text| text.len() > PIECE)
    }

    /// Takes them out of an answer.
    pub(in crate::http) fn take(answer: &mut Answer) -> Self {
        let mut taken = Self {
            mark: Uuid::new_v4().simple().to_string(),
            texts: Vec::new(),
        };
        let messages = answer.messages.iter_mut().map(|message| &mut message.content);
        let results = answer.tool_calls.iter_mut().map(|call| &mut call.result);
        let words = [&mut answer.content].into_iter().chain(&mut answer.reasoning);
        for text in words.chain(messages).chain(results) {
            if text.len() > PIECE {
                let mark = taken.next_mark().into();
                taken.texts.push(Text::Plain(std::mem::replace(text, mark)));
            }
        }
        if let Some(data) = answer.structured_data.as_mut().filter(|data| data.text().len() > PIECE) {
            let mark = JsonText::of_text(&format!("\"{}\"", taken.next_mark()));
            let data = std::mem::replace(data, mark);
            taken.texts.push(Text::Json(data.text().clone()));
        }
        taken
    }

    fn next_mark(&self) -> String {
        format!("{}{:0DIGITS$}", self.mark, self.texts.len())
    }

    /// The JSON with the texts back in their places. `holder` is held until all is written.
    pub(in crate::http) fn put_back(self, json: Vec<u8>, holder: Holder) -> LongBody {
        let json = Bytes::from(json);
        let (mut body, mut at) = (LongBody::new(holder), 0);
        for found in memmem::find_iter(&json, self.mark.as_bytes()) {
            let end = found + self.mark.len() + DIGITS;
            let digits = json
                .get(end - DIGITS..end)
                .and_then(|digits| std::str::from_utf8(digits).ok());
            let text = digits.and_then(|digits| self.texts.get(digits.parse::<usize>().ok()?));
            match text {
                Some(Text::Plain(text)) => {
                    body.push(Part::Bytes(json.slice(at..found)));
                    body.push(Part::Text(text.clone(), 0));
                    at = end;
                }
                // Its quotes go, too.
                Some(Text::Json(text)) => {
                    body.push(Part::Bytes(json.slice(at..found - 1)));
                    body.push(Part::Bytes(Bytes::from_owner(Shared(text.clone()))));
                    at = end + 1;
                }
                None => {}
            }
        }
        body.push(Part::Bytes(json.slice(at..)));
        body
    }
}

/// A JSON response of a value from which long texts were taken.
///
/// # Errors
/// A value that is no JSON.
pub(in crate::http) fn respond(value: &impl Serialize, texts: LongTexts, holder: Holder) -> Result<Response, Error> {
    let json = serde_json::to_vec(value).map_err(Error::internal)?;
    let mut response = Body::new(texts.put_back(json, holder)).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

enum Part {
    Bytes(Bytes),
    /// A text, and how much of it is written.
    Text(Arc<str>, usize),
}

struct Shared(Arc<str>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The body: pieces of about [`PIECE`] bytes.
pub(in crate::http) struct LongBody {
    parts: VecDeque<Part>,
    /// How many bytes are still to be written.
    left: u64,
    _holder: Holder,
}

impl LongBody {
    fn new(holder: Holder) -> Self {
        Self {
            parts: VecDeque::new(),
            left: 0,
            _holder: holder,
        }
    }

    fn push(&mut self, part: Part) {
        self.left += match &part {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::Text(text, _) => escaped_length(text),
        };
        self.parts.push_back(part);
    }

    /// Adds bytes at the end.
    pub(in crate::http) fn push_bytes(&mut self, bytes: &'static [u8]) {
        self.push(Part::Bytes(Bytes::from_static(bytes)));
    }

    /// The next piece; `None` at the end.
    pub(in crate::http) fn next_piece(&mut self) -> Option<Bytes> {
        loop {
            let piece = match self.parts.front_mut()? {
                Part::Bytes(bytes) if bytes.len() > PIECE => bytes.split_to(PIECE),
                Part::Bytes(bytes) => {
                    let piece = std::mem::take(bytes);
                    self.parts.pop_front();
                    piece
                }
                Part::Text(text, written) => {
                    let rest = &text[*written..];
                    let piece = &rest[..rest.floor_char_boundary(PIECE)];
                    *written += piece.len();
                    let (escaped, whole) = (escaped(piece), piece.len() == rest.len());
                    if whole {
                        self.parts.pop_front();
                    }
                    escaped
                }
            };
            if !piece.is_empty() {
                self.left -= piece.len() as u64;
                return Some(piece);
            }
        }
    }
}

impl http_body::Body for LongBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next_piece().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A part of a string's content, as it stands in JSON.
fn escaped(text: &str) -> Bytes {
    let mut quoted = Vec::with_capacity(text.len() + text.len() / 16 + 2);
    let mut json = serde_json::Serializer::with_formatter(&mut quoted, OneLine);
    match text.serialize(&mut json) {
        Ok(()) => {
            let end = quoted.len() - 1;
            Bytes::from(quoted).slice(1..end)
        }
        Err(_) => Bytes::new(), // a vector takes everything
    }
}

/// How long that is.
fn escaped_length(text: &str) -> u64 {
    let bytes = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0C => 2,
        0..0x20 => 6,
        _ => 1,
    });
    let line_ends = memmem::find_iter(text.as_bytes(), b"\xE2\x80").filter(|at| {
        let last = text.as_bytes().get(at + 2);
        matches!(last, Some(0xA8 | 0xA9))
    });
    bytes.sum::<u64>() + 3 * line_ends.count() as u64 // six letters for three bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http_body::Body as _;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::chat::{Message, RunId, ToolRecord, Usage};

    fn answer(content: &str, data: &Value) -> Answer {
        let record = ToolRecord {
            id: "c".into(),
            name: "t".into(),
            arguments: Map::new(),
            round: 1,
            ok: true,
            result: content.to_uppercase().into(),
            duration_ms: 1,
        };
        Answer {
            run_id: RunId::new(),
            session_id: None,
            agent: "a".into(),
            model: "m".into(),
            content: content.into(),
            reasoning: None,
            finish_reason: None,
            usage: Usage::default(),
            rounds: 2,
            messages: vec![
                Message::user("Hi", Vec::new()),
                Message::tool("c", record.result.clone()),
                Message::assistant(content, Vec::new()),
            ],
            tool_calls: vec![record],
            structured_data: Some(JsonText::of(data)),
            artifact_files: Vec::new(),
            metadata: BTreeMap::new(),
        }
    }

    #[test]
    fn long_texts_stand_where_they_stood_and_are_written_in_pieces() {
        let special = "\"\\\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}é\u{2028}\u{2029}\u{2027}\u{1F600}/ ";
        for text in [special.repeat(3_000), "x".repeat(PIECE + 1), "\u{1F600}".repeat(PIECE)] {
            let whole = answer(&text, &json!({"a": [text, 1]}));
            assert!(LongTexts::any(&whole));
            let mut short = whole.clone();
            let texts = LongTexts::take(&mut short);
            assert!(!LongTexts::any(&short));
            let json = serde_json::to_vec(&short).unwrap();
            assert!(json.len() < 2_000, "{}", json.len());
            let mut body = texts.put_back(json, Arc::new(()));
            body.push_bytes(b"\n\n");
            let length = body.size_hint().exact();
            let mut written = Vec::new();
            while let Some(piece) = body.next_piece() {
                assert!(piece.len() <= 6 * PIECE);
                written.extend_from_slice(&piece);
            }
            assert!(body.is_end_stream());
            assert_eq!(length, Some(written.len() as u64));
            let line = written.strip_suffix(b"\n\n").unwrap();
            let line = std::str::from_utf8(line).unwrap();
            assert!(!line.contains(['\n', '\u{2028}', '\u{2029}']));
            let back: Value = serde_json::from_str(line).unwrap();
            assert!(back == serde_json::to_value(&whole).unwrap(), "another answer");
        }
        assert!(!LongTexts::any(&answer("short", &json!({}))));
    }
}

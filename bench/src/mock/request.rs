//! Reads the requests that arrive on one connection: just enough HTTP/1.1 for the clients of an upstream.

use std::io;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Largest request, head and body: W4's are below 1 KiB; a gateway that sends a history of images needs much more.
const LIMIT: usize = 64 << 20;

/// One request, with the body as it came.
pub(super) struct Request {
    /// `POST /v1/chat/completions`: method and path.
    pub(super) line: String,
    /// The body's bytes, complete.
    pub(super) body: Vec<u8>,
}

/// The bytes of a connection that no request has taken yet.
#[derive(Default)]
pub(super) struct Inbox(Vec<u8>);

impl Inbox {
    /// The next request; `None` when the other side closed in between.
    ///
    /// # Errors
    /// When it is not HTTP/1.1 with a `Content-Length`, or is too long, or breaks off.
    pub(super) async fn next(&mut self, socket: &mut TcpStream) -> Result<Option<Request>> {
        loop {
            if let Some((line, head, body)) = parse_head(&self.0)? {
                ensure!(head + body <= LIMIT, "request of more than {LIMIT} bytes");
                while self.0.len() < head + body {
                    ensure!(socket.read_buf(&mut self.0).await? > 0, "the body broke off");
                }
                let rest = self.0.split_off(head + body);
                let mut whole = std::mem::replace(&mut self.0, rest);
                return Ok(Some(Request {
                    line,
                    body: whole.split_off(head),
                }));
            }
            ensure!(self.0.len() <= LIMIT, "head of more than {LIMIT} bytes");
            match socket.read_buf(&mut self.0).await {
                Ok(0) if self.0.is_empty() => return Ok(None),
                Ok(0) => bail!("the head broke off"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Method and path, bytes of the head, bytes of the body; `None` when the head is not complete.
fn parse_head(bytes: &[u8]) -> Result<Option<(String, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(bytes).context("no HTTP request")? else {
        return Ok(None);
    };
    let mut body = 0;
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            body = std::str::from_utf8(header.value)?
                .trim()
                .parse()
                .context("content-length")?;
        }
        ensure!(
            !header.name.eq_ignore_ascii_case("transfer-encoding"),
            "the mock takes Content-Length only"
        );
    }
    let line = format!(
        "{} {}",
        request.method.unwrap_or_default(),
        request.path.unwrap_or_default()
    );
    Ok(Some((line, head, body)))
}

/// What the mock reads of a Chat Completions request.
#[derive(Deserialize)]
pub(super) struct Completion {
    messages: Vec<Message>,
    /// Whether the answer comes as events.
    #[serde(default)]
    pub(super) stream: bool,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Completion {
    /// The text of the last message whose role is `user`; empty when there is none.
    #[must_use]
    pub(super) fn last_words(&self) -> String {
        let last = self.messages.iter().rev().find(|message| message.role == "user");
        match last.and_then(|message| message.content.as_ref()) {
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => parts.iter().map(|part| part.text.as_str()).collect(),
            None => String::new(),
        }
    }

    /// Whether a tool has answered since the user spoke.
    #[must_use]
    pub(super) fn has_result(&self) -> bool {
        let since = self.messages.iter().rev().take_while(|message| message.role != "user");
        since.into_iter().any(|message| message.role == "tool")
    }

    /// Whether the stream ends with a chunk of usage.
    #[must_use]
    pub(super) fn include_usage(&self) -> bool {
        self.stream_options
            .as_ref()
            .is_some_and(|options| options.include_usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_user_message_is_found_as_text_and_as_parts() {
        let text = r#"{"messages":[{"role":"user","content":"no"},{"role":"user","content":"yes"},{"role":"assistant","content":null}]}"#;
        let parts = r#"{"stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":[{"type":"text","text":"yes"}]}]}"#;
        for (body, stream) in [(text, false), (parts, true)] {
            let completion: Completion = serde_json::from_str(body).unwrap();
            assert_eq!(completion.last_words(), "yes");
            assert_eq!((completion.stream, completion.include_usage()), (stream, stream));
        }
    }

    #[test]
    fn a_head_is_complete_or_not_yet() {
        let head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\ncontent-length: 2\r\n\r\n";
        assert!(parse_head(&head[..head.len() - 1]).unwrap().is_none());
        let (line, at, body) = parse_head(head).unwrap().unwrap();
        assert_eq!((line.as_str(), at, body), ("POST /v1/chat/completions", head.len(), 2));
        assert!(parse_head(b"\x16\x03\x01 tls?\r\n\r\n").is_err());
    }
}

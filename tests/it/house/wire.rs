//! HTTP/1.1 as it comes in, for both ends. Strict and small; it forgives nothing that the stories are about.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Header lines as they were on the wire: in order, duplicates kept; found without regard to case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// The value, if there is exactly one such header; two are a failure, since that would hide one.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let values = self.all(name);
        assert!(values.len() <= 1, "{name} occurs more than once: {values:?}");
        values.first().copied()
    }

    /// All values of this name, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

/// What of a body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Length(u64),
    UntilClose,
    /// A line with the size of a chunk.
    ChunkSize,
    /// Bytes of a chunk; after the last, a line end.
    Chunk(u64),
    /// Lines, up to an empty one.
    Trailers,
}

/// Heads, and bodies piece by piece. What was read stays in order when a wait is given up.
#[derive(Debug)]
pub(crate) struct Incoming<S> {
    pub(crate) io: S,
    pub(crate) buffer: BytesMut,
    pub(crate) left: Left,
}

impl<S: AsyncRead + Unpin> Incoming<S> {
    /// Before a head.
    pub(crate) fn new(io: S) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            left: Left::Nothing,
        }
    }

    /// Waits for more bytes; `false` at the end.
    pub(crate) async fn more(&mut self) -> io::Result<bool> {
        self.buffer.reserve(16 * 1024);
        Ok(self.io.read_buf(&mut self.buffer).await? > 0)
    }

    /// A first line and its headers; `None` if the end comes instead.
    pub(crate) async fn head(&mut self) -> io::Result<Option<(String, Headers)>> {
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            let empty = self.buffer.is_empty();
            if !self.more().await? {
                return if empty {
                    Ok(None)
                } else {
                    Err(broken(format!("closed inside a head: {:?}", self.buffer)))
                };
            }
        };
        let head = self.buffer.split_to(end + 4);
        let head = String::from_utf8_lossy(&head[..end]);
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| broken(format!("not a header: {line:?}")))?;
            Ok((name.to_owned(), value.trim().to_owned()))
        });
        Ok(Some((first, Headers(headers.collect::<io::Result<_>>()?))))
    }

    /// What kind of body the headers announce; if they are silent, `otherwise`.
    pub(crate) fn expect_body(&mut self, headers: &Headers, otherwise: Left) {
        let chunked = headers
            .get("transfer-encoding")
            .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        let length = headers.get("content-length").and_then(|length| length.parse().ok());
        self.left = if chunked {
            Left::ChunkSize
        } else {
            length.map_or(otherwise, Left::Length)
        };
    }

    /// The next bytes of the body (never of two chunks); `None` at its proper end, an error at any other.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.left {
                Left::Nothing | Left::Length(0) => return Ok(None),
                Left::ChunkSize => {
                    let line = self.line().await?;
                    let size =
                        u64::from_str_radix(&line, 16).map_err(|_| broken(format!("a chunk of size {line:?}")))?;
                    self.left = if size == 0 { Left::Trailers } else { Left::Chunk(size) };
                }
                Left::Chunk(0) => {
                    let line = self.line().await?;
                    if !line.is_empty() {
                        return Err(broken(format!("{line:?} after a chunk")));
                    }
                    self.left = Left::ChunkSize;
                }
                Left::Trailers => {
                    if self.line().await?.is_empty() {
                        self.left = Left::Nothing;
                    }
                }
                Left::Length(left) | Left::Chunk(left) => {
                    if self.buffer.is_empty() && !self.more().await? {
                        return Err(broken(format!("closed {left} bytes early")));
                    }
                    let size = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - size as u64;
                    let chunk = matches!(self.left, Left::Chunk(_));
                    self.left = if chunk { Left::Chunk(left) } else { Left::Length(left) };
                    return Ok(Some(self.buffer.split_to(size).freeze()));
                }
                Left::UntilClose => {
                    if self.buffer.is_empty() && !self.more().await? {
                        self.left = Left::Nothing;
                        continue;
                    }
                    return Ok(Some(self.buffer.split().freeze()));
                }
            }
        }
    }

    /// Whether the bytes given last were the last of their chunk: the end of one write of the peer.
    pub(crate) fn is_between_chunks(&self) -> bool {
        self.left == Left::Chunk(0)
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n") {
                let line = self.buffer.split_to(end + 2);
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.more().await? {
                return Err(broken("closed before the last chunk".into()));
            }
        }
    }
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

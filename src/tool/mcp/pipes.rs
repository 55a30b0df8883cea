//! The conversation with a child process: a message a line.

use memchr::{memchr, memmem};
use rmcp::{
    RoleClient,
    model::{ClientJsonRpcMessage, RequestId, ServerJsonRpcMessage},
    transport::{Transport, async_rw::AsyncRwTransport},
};
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, Empty, empty},
    process::{ChildStdin, ChildStdout},
};

use super::message::{self, Size};

/// How much of the beginning and of the end of a line that is too large is kept, in bytes: the id of
/// the request is there.
const EDGE: usize = 256;

/// A child's standard output and input.
pub(super) struct Pipes<R = ChildStdout, W = ChildStdin>
where
    W: AsyncWrite,
{
    from: BufReader<R>,
    line: Line,
    /// For writing alone.
    into: AsyncRwTransport<RoleClient, Empty, W>,
}

impl<R, W> Pipes<R, W>
where
    R: AsyncRead,
    W: AsyncWrite + Send + Unpin + 'static,
{
    pub(super) fn new(stdout: R, stdin: W) -> Self {
        Self {
            from: BufReader::new(stdout),
            line: Line::default(),
            into: AsyncRwTransport::new_client(empty(), stdin),
        }
    }
}

impl<R, W> Transport<RoleClient> for Pipes<R, W>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    type Error = std::io::Error;

    fn send(&mut self, item: ClientJsonRpcMessage) -> impl Future<Output = Result<(), Self::Error>> + Send + 'static {
        self.into.send(item)
    }

    /// May be dropped at any moment: what was read of a line stays in `line`.
    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        loop {
            let available = self.from.fill_buf().await.ok().filter(|read| !read.is_empty())?;
            let end = memchr(b'\n', available);
            self.line.take(&available[..end.unwrap_or(available.len())]);
            let used = end.map_or(available.len(), |end| end + 1);
            self.from.consume(used);
            if end.is_some()
                && let Some(message) = std::mem::take(&mut self.line).end()
            {
                return Some(message);
            }
        }
    }

    async fn close(&mut self) -> Result<(), Self::Error> {
        self.into.close().await
    }
}

/// A line that is being read. Of one that is too large only its edges are kept.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    size: Size,
    /// The beginning of a line that is too large; `bytes` has its end.
    beginning: Option<Vec<u8>>,
}

impl Line {
    fn take(&mut self, piece: &[u8]) {
        if self.beginning.is_none() && !self.size.admits(piece) {
            let read = std::mem::take(&mut self.bytes);
            self.beginning = Some(read.iter().chain(piece).take(EDGE).copied().collect());
        }
        self.bytes.extend_from_slice(piece);
        if self.beginning.is_some() {
            let surplus = self.bytes.len().saturating_sub(EDGE);
            self.bytes.drain(..surplus);
        }
    }

    /// The message, if it is one. A line that is too large is an error for the request that it answers.
    fn end(self) -> Option<ServerJsonRpcMessage> {
        let text = self.bytes.trim_ascii();
        match self.beginning {
            Some(beginning) => {
                let id = id_before_result(&beginning).or_else(|| id_after_result(text));
                tracing::warn!("a line of an MCP server is too large and is not read");
                id.map(message::too_large)
            }
            None if text.is_empty() => None,
            None => message::read(text, None),
        }
    }
}

/// The members of a message beside its result.
#[derive(Deserialize)]
struct Envelope {
    id: RequestId,
}

/// The id in the beginning of a message whose result comes last.
fn id_before_result(beginning: &[u8]) -> Option<RequestId> {
    let result = memmem::find(beginning, b"\"result\"")?;
    let members = beginning[..result].trim_ascii().strip_suffix(b",")?;
    let envelope = [members, b"}"].concat();
    Some(serde_json::from_slice::<Envelope>(&envelope).ok()?.id)
}

/// The id in the end of a message whose result comes first.
fn id_after_result(end: &[u8]) -> Option<RequestId> {
    let inside = end.strip_suffix(b"}")?;
    let result = inside.iter().rposition(|byte| matches!(byte, b'}' | b']'))?;
    let members = inside[result + 1..].trim_ascii().strip_prefix(b",")?;
    let envelope = [b"{", members, b"}"].concat();
    Some(serde_json::from_slice::<Envelope>(&envelope).ok()?.id)
}

#[cfg(test)]
mod tests {
    use rmcp::model::JsonRpcMessage;

    use super::*;

    async fn received(text: String) -> Vec<(Option<RequestId>, String)> {
        let mut pipes = Pipes::new(std::io::Cursor::new(text), tokio::io::sink());
        let mut all = Vec::new();
        while let Some(message) = pipes.receive().await {
            match message {
                JsonRpcMessage::Error(error) => all.push((error.id, error.error.message.into_owned())),
                JsonRpcMessage::Response(response) => all.push((Some(response.id), String::new())),
                _ => all.push((None, String::new())),
            }
        }
        all
    }

    #[tokio::test]
    async fn a_line_that_is_too_large_is_an_error_for_its_request() {
        let many = format!("{{\"content\":[{}{{}}]}}", "{\"id\":9},".repeat(200_000));
        let long = format!("{{\"content\":[{{\"text\":\"{}\"}}]}}", "\\\"}".repeat(6 << 20));
        let fine = |id: i64| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n");
        for result in [many, long] {
            let text = [
                fine(1),
                format!("{{\"jsonrpc\": \"2.0\", \"id\": 2, \"result\": {result}}}\n"),
                format!("{{\"result\":{result},\"jsonrpc\":\"2.0\",\"id\":\"three\"}}\r\n"),
                format!("{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{result}}}\n"),
                "no message\n\n{}\n".to_owned(),
                fine(4),
            ];
            let told = received(text.concat()).await;
            let ids: Vec<_> = told
                .iter()
                .map(|(id, _)| id.as_ref().map(ToString::to_string))
                .collect();
            let expected = ["1", "2", "three", "4"].map(|id| Some(id.to_owned()));
            assert_eq!(ids, expected);
            assert!(told[1].1.contains("too large") && told[2].1.contains("too large"));
        }
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_read_and_not_kept() {
        let endless = tokio::io::AsyncReadExt::take(tokio::io::repeat(b'x'), 100 << 20);
        let mut pipes = Pipes::new(endless, tokio::io::sink());
        assert!(pipes.receive().await.is_none());
        assert!(pipes.line.bytes.capacity() < 1 << 20);
    }
}

//! A client on a bare socket: one connection, one request at a time, every byte of the answer judged.
//!
//! On a socket rather than on a client library because its own cost is on the scales: one read, one clock
//! reading, and the bytes are with the judge. TCP_NODELAY; keep-alive. Nothing here is retried.

pub mod body;
pub mod chunked;
pub mod door;
pub mod sse;

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ask::Ask;
use crate::clock::{Pacer, now};
use body::Body;
use chunked::Chunked;
use door::Door;

/// Largest head of an answer.
const HEAD: usize = 16 << 10;
/// What one read takes at most.
const READ: usize = 16 << 10;

/// One connection to the gateway, to nginx or to the mock.
pub struct Connection {
    socket: TcpStream,
    inbox: Vec<u8>,
}

/// What one answer took.
#[derive(Debug, Default)]
pub struct Answer {
    /// Nanoseconds from the request's sending to the first token.
    pub first: u64,
    /// Nanoseconds from the request's sending to the end of the body.
    pub whole: u64,
    /// Nanoseconds from each token's writing by the mock to its reading here.
    pub delays: Vec<u64>,
    /// Socket reads that held bytes of the body.
    pub reads: u64,
    /// Heartbeats between the events.
    pub beats: u64,
}

/// An answer that is a refusal: another status than 200.
#[derive(Debug)]
pub struct Refused {
    /// The status.
    pub status: u16,
    /// `Retry-After`, in seconds, if it was there.
    pub retry_after: Option<u64>,
    /// What came of the body with the head.
    pub body: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}: {}", self.status, self.body)
    }
}

impl std::error::Error for Refused {}

/// How the end of a body is known.
enum Framing {
    Chunked(Chunked),
    Length(u64),
}

impl Framing {
    fn done(&self) -> bool {
        match self {
            Self::Chunked(chunked) => chunked.done(),
            Self::Length(left) => *left == 0,
        }
    }
}

impl Connection {
    /// Connects to a port of this machine.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn open(port: u16) -> Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.context("connect")?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            inbox: Vec::with_capacity(READ),
        })
    }

    /// Asks for one answer and reads it to its end.
    ///
    /// # Errors
    /// When anything about the answer is not as it should be; the connection is then of no more use.
    pub async fn ask(&mut self, door: Door, ask: Ask) -> Result<Answer> {
        self.exchange(&door.request(ask), door.body(ask)).await
    }

    /// Sends a request and reads its answer to the end, judged by `body`.
    ///
    /// # Errors
    /// As [`Connection::ask`]; a status other than 200 is a [`Refused`].
    pub async fn exchange(&mut self, request: &[u8], mut body: Box<dyn Body + Send>) -> Result<Answer> {
        let sent = now();
        self.socket.write_all(request).await.context("send")?;
        let (reads, _) = self.read(body.as_mut(), u32::MAX).await?;
        body.end()?;
        let whole = now() - sent;
        let beats = body.beats();
        let check = body.check();
        let first = check.first.context("no token")?.saturating_sub(sent);
        Ok(Answer {
            first,
            whole,
            delays: std::mem::take(&mut check.delays),
            reads,
            beats,
        })
    }

    /// Asks for an answer and closes the connection in its middle, once `tokens` tokens were read; returns the
    /// time of the closing ([`now`]).
    ///
    /// # Errors
    /// When the answer is broken or over before.
    pub async fn ask_and_leave(mut self, door: Door, ask: Ask, tokens: u32) -> Result<u64> {
        let mut body = door.body(ask);
        self.socket.write_all(&door.request(ask)).await.context("send")?;
        let (_, over) = self.read(body.as_mut(), tokens).await?;
        ensure!(!over, "the answer was over after {} tokens", body.check().count());
        let at = now();
        drop(self);
        Ok(at)
    }

    /// Asks for an answer and closes the connection at the time `at`, whatever has come by then; returns the time of the
    /// closing ([`now`]).
    ///
    /// # Errors
    /// When the answer is broken or over before.
    pub async fn ask_and_leave_at(mut self, door: Door, ask: Ask, pacer: &Pacer, at: u64) -> Result<u64> {
        let mut body = door.body(ask);
        self.socket.write_all(&door.request(ask)).await.context("send")?;
        tokio::select! {
            biased;
            () = pacer.until(at) => {}
            over = self.read(body.as_mut(), u32::MAX) => {
                over?;
                bail!("the answer was over after {} tokens", body.check().count())
            }
        }
        let at = now();
        drop(self);
        Ok(at)
    }

    /// `GET path`; the status.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn get(mut self, path: &str) -> Result<u16> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        self.socket.write_all(request.as_bytes()).await?;
        Ok(self.head().await?.status)
    }

    /// Reads head and body, until the body is over or `enough` tokens were read; socket reads, and whether it is over.
    async fn read(&mut self, body: &mut (dyn Body + Send), enough: u32) -> Result<(u64, bool)> {
        let Head {
            status,
            retry_after,
            mut framing,
        } = self.head().await?;
        if status != 200 {
            // The problem's text is worth one more read for the report; its end is not.
            if self.inbox.is_empty() {
                self.socket.read_buf(&mut self.inbox).await?;
            }
            let body = String::from_utf8_lossy(&self.inbox).into_owned();
            bail!(Refused {
                status,
                retry_after,
                body
            });
        }
        let mut reads = 0;
        loop {
            if !self.inbox.is_empty() {
                reads += 1;
                let at = now();
                let used = match &mut framing {
                    Framing::Chunked(chunked) => chunked.take(&self.inbox, |data| body.take(data, at))?,
                    Framing::Length(left) => {
                        let here = self.inbox.len().min(usize::try_from(*left)?);
                        body.take(&self.inbox[..here], at)?;
                        *left -= here as u64;
                        here
                    }
                };
                ensure!(used == self.inbox.len(), "bytes after the answer's end");
                self.inbox.clear();
            }
            if framing.done() || body.check().count() >= enough {
                return Ok((reads, framing.done()));
            }
            let count = self.socket.read_buf(&mut self.inbox).await.context("read")?;
            ensure!(
                count > 0,
                "the connection closed after {} tokens, without an end",
                body.check().count()
            );
        }
    }

    async fn head(&mut self) -> Result<Head> {
        self.inbox.clear();
        loop {
            let count = self.socket.read_buf(&mut self.inbox).await.context("read")?;
            ensure!(count > 0, "the connection closed before an answer");
            ensure!(self.inbox.len() <= HEAD + READ, "a head of more than {HEAD} bytes");
            if let Some((head, used)) = parse_head(&self.inbox)? {
                self.inbox.drain(..used);
                return Ok(head);
            }
        }
    }
}

/// The head of an answer.
struct Head {
    status: u16,
    retry_after: Option<u64>,
    framing: Framing,
}

/// A head and its length; `None` when it is not complete.
fn parse_head(bytes: &[u8]) -> Result<Option<(Head, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(used) = response.parse(bytes).context("no HTTP answer")? else {
        return Ok(None);
    };
    let status = response.code.unwrap_or_default();
    let (mut framing, mut retry_after) = (None, None);
    for header in response.headers.iter() {
        let value = std::str::from_utf8(header.value)?.trim();
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            ensure!(value.eq_ignore_ascii_case("chunked"), "transfer-encoding {value}");
            framing = Some(Framing::Chunked(Chunked::default()));
        } else if header.name.eq_ignore_ascii_case("content-length") {
            framing = Some(Framing::Length(value.parse()?));
        } else if header.name.eq_ignore_ascii_case("retry-after") {
            retry_after = Some(value.parse().context("retry-after")?);
        }
    }
    let head = Head {
        status,
        retry_after,
        framing: framing.context("an answer whose end would be the connection's")?,
    };
    Ok(Some((head, used)))
}

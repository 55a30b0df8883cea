//! A provider that plays scripts, byte by byte, and remembers what it was asked and when its peer hung up.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::script::{Framing, LAST_CHUNK, Script, Step, chunk};
use super::wire::{Headers, Incoming, Left};
use super::{Place, Task, wait_for, within};

/// No step of a script takes longer.
const A_STEP: Duration = Duration::from_secs(60);

/// A request as the upstream got it, whole.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Counted from 0, over all connections.
    pub(crate) number: usize,
    /// Which connection it came on, from 0.
    pub(crate) connection: usize,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Headers,
    pub(crate) body: Bytes,
    /// The body as JSON; null if it is none.
    pub(crate) json: Value,
    /// When its last byte had come.
    pub(crate) at: Instant,
}

/// What stories ask about; each change wakes those who wait.
#[derive(Debug, Default)]
struct State {
    connections: usize,
    /// Connections that are over.
    gone: usize,
    requests: Vec<Request>,
    /// Requests whose script is being played.
    open: usize,
    /// When a peer closed in the middle of a script.
    hang_ups: Vec<Instant>,
    /// Bytes that the sockets took; a change of this wakes nobody.
    sent: AtomicU64,
}

/// What the peer gets to see once the steps are through.
enum After {
    KeepAlive,
    Close,
    Reset,
    ResetOnReuse,
}

/// A server on loopback; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Upstream {
    addr: SocketAddr,
    state: watch::Sender<State>,
    requests_given: AtomicUsize,
    hang_ups_given: AtomicUsize,
    _server: Task,
}

impl Place for Upstream {
    fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Upstream {
    /// The first request gets the first script, and so on; one too many is refused with a 400 that says so.
    pub(crate) async fn start(scripts: impl IntoIterator<Item = Script>) -> Self {
        let scripts: Vec<_> = scripts.into_iter().collect();
        let nothing_left = Script::status(
            400,
            &[],
            r#"{"error":{"message":"the story has no script for this request"}}"#,
        );
        Self::answering(move |request| scripts.get(request.number).unwrap_or(&nothing_left).clone()).await
    }

    /// Every request gets this script.
    pub(crate) async fn always(script: Script) -> Self {
        Self::answering(move |_| script.clone()).await
    }

    /// Every request is refused.
    pub(crate) async fn refusing_status(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Self {
        Self::always(Script::status(status, headers, body)).await
    }

    /// Each request gets the script that this picks for it.
    pub(crate) async fn answering(pick: impl Fn(&Request) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (addr, state) = (listener.local_addr().unwrap(), watch::Sender::new(State::default()));
        let server = Task::spawn(accept(listener, state.clone(), Arc::new(pick)));
        let (requests_given, hang_ups_given) = <(AtomicUsize, AtomicUsize)>::default();
        Self {
            addr,
            state,
            requests_given,
            hang_ups_given,
            _server: server,
        }
    }

    /// What a provider's `base_url` is set to.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.borrow().requests.clone()
    }

    /// How many requests there were so far.
    pub(crate) fn calls(&self) -> usize {
        self.state.borrow().requests.len()
    }

    /// How many connections there were so far, with or without a request.
    pub(crate) fn connections(&self) -> usize {
        self.state.borrow().connections
    }

    /// How many connections there are now, kept ones among them.
    pub(crate) fn held(&self) -> usize {
        let state = self.state.borrow();
        state.connections - state.gone
    }

    /// How many connections are in the middle of a script.
    pub(crate) fn open(&self) -> usize {
        self.state.borrow().open
    }

    /// How many bytes its sockets have taken so far: what peers read, and what kernels keep for them.
    pub(crate) fn sent(&self) -> u64 {
        self.state.borrow().sent.load(Relaxed)
    }

    /// Waits for the first request, then at each call for the next.
    pub(crate) async fn next_request(&self) -> Request {
        let number = self.requests_given.fetch_add(1, Relaxed);
        wait_for(&self.state, format!("request {number} upstream"), |state| {
            state.requests.len() > number
        })
        .await;
        self.state.borrow().requests[number].clone()
    }

    /// Waits until a peer has closed its connection in the middle of a script (at each call, the next one), and says when.
    pub(crate) async fn closed(&self) -> Instant {
        let number = self.hang_ups_given.fetch_add(1, Relaxed);
        let what = format!(
            "the close of an upstream connection (close {number}, {} open)",
            self.open()
        );
        wait_for(&self.state, what, |state| state.hang_ups.len() > number).await;
        self.state.borrow().hang_ups[number]
    }

    /// Waits until no script is being played.
    pub(crate) async fn idle(&self) {
        wait_for(&self.state, "the upstream to have nothing to do", |state| {
            state.open == 0
        })
        .await;
    }
}

type Pick = Arc<dyn Fn(&Request) -> Script + Send + Sync>;

async fn accept(listener: TcpListener, state: watch::Sender<State>, pick: Pick) {
    let mut connections = JoinSet::new();
    for number in 0.. {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        state.send_modify(|state| state.connections += 1);
        let (state, pick) = (state.clone(), pick.clone());
        connections.spawn(async move {
            converse(stream, number, state.clone(), pick).await;
            state.send_modify(|state| state.gone += 1);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// One connection: requests, each with its script.
async fn converse(mut stream: TcpStream, connection: usize, state: watch::Sender<State>, pick: Pick) {
    stream.set_nodelay(true).expect("a fresh socket");
    let (read, write) = stream.split();
    let mut write = Counting {
        to: write,
        state: state.clone(),
    };
    let mut incoming = Incoming::new(read);
    while let Some(mut request) = read_request(&mut incoming).await {
        state.send_modify(|state| {
            (request.number, request.connection) = (state.requests.len(), connection);
            state.requests.push(request.clone());
            state.open += 1;
        });
        let script = pick(&request);
        let peer_left = async { while let Ok(true) = incoming.more().await {} };
        let after = tokio::select! {
            biased;
            after = play(&script, &mut write) => after.ok(),
            () = peer_left => None,
        };
        let now = Instant::now();
        state.send_modify(|state| {
            state.open -= 1;
            state.hang_ups.extend(after.is_none().then_some(now));
        });
        match after {
            Some(After::KeepAlive) => continue,
            Some(After::Close) => drop(write.shutdown().await),
            Some(After::ResetOnReuse) if !incoming.buffer.is_empty() || incoming.more().await.is_ok() => reset(&stream),
            Some(After::Reset) => reset(&stream),
            Some(After::ResetOnReuse) | None => {}
        }
        return;
    }
}

/// Counts the bytes that are written through it.
struct Counting<W> {
    to: W,
    state: watch::Sender<State>,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Counting<W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.to).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.state.borrow().sent.fetch_add(count as u64, Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(cx)
    }
}

fn reset(stream: &TcpStream) {
    stream.set_zero_linger().expect("a socket that lingers not");
}

async fn read_request(incoming: &mut Incoming<impl AsyncRead + Unpin>) -> Option<Request> {
    let (line, headers) = incoming.head().await.ok()??;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    incoming.expect_body(&headers, Left::Nothing);
    let mut body = BytesMut::new();
    while let Some(more) = incoming.next().await.ok()? {
        body.extend_from_slice(&more);
    }
    let (body, at) = (body.freeze(), Instant::now());
    let json = serde_json::from_slice(&body).unwrap_or_default();
    Some(Request {
        number: 0,
        connection: 0,
        method,
        path,
        headers,
        body,
        json,
        at,
    })
}

/// Plays a script to its end; an error means that the peer takes no more.
async fn play(script: &Script, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<After> {
    for step in script.shaped() {
        match step {
            Step::Head {
                status,
                headers,
                framing,
            } => to.write_all(&head(status, headers, framing)).await?,
            Step::Bytes(bytes) => to.write_all(&bytes).await?,
            Step::ByteByByte(bytes) => write_split(to, &bytes, &[1]).await?,
            Step::Split(bytes, sizes) => write_split(to, &bytes, &sizes).await?,
            Step::Chunk(bytes) => to.write_all(&chunk(&bytes)).await?,
            Step::EndChunks => to.write_all(LAST_CHUNK).await?,
            Step::Sleep(pause) => tokio::time::sleep(pause.min(A_STEP)).await,
            Step::Wait(gate) => within(A_STEP, "a gate to open, in a script", gate.pass()).await,
            Step::Repeat { bytes, every, max } => {
                for _ in 0..max {
                    to.write_all(&bytes).await?;
                    if every.is_zero() {
                        tokio::task::yield_now().await
                    } else {
                        tokio::time::sleep(every).await
                    }
                }
            }
            Step::Close => return Ok(After::Close),
            Step::Reset => return Ok(After::Reset),
            Step::ResetOnReuse => return Ok(After::ResetOnReuse),
            Step::Hang => tokio::time::sleep(A_STEP).await,
        }
    }
    Ok(if script.is_complete() {
        After::KeepAlive
    } else {
        After::Close
    })
}

fn head(status: u16, headers: Vec<(String, String)>, framing: Framing) -> Vec<u8> {
    let framing = match framing {
        Framing::Chunked => "transfer-encoding: chunked\r\n".into(),
        Framing::Length(length) => format!("content-length: {length}\r\n"),
        Framing::UntilClose => "connection: close\r\n".into(),
    };
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("HTTP/1.1 {status} Scripted\r\n{headers}{framing}\r\n").into()
}

async fn write_split(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], sizes: &[usize]) -> io::Result<()> {
    let (mut rest, mut sizes) = (bytes, sizes.iter().copied().cycle());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(sizes.next().unwrap_or(usize::MAX).clamp(1, rest.len()));
        to.write_all(piece).await?;
        tokio::task::yield_now().await;
        rest = after;
    }
    Ok(())
}

/// An address at which nobody will ever listen, as long as this is kept: connecting is refused.
#[derive(Debug)]
pub(crate) struct ClosedPort(TcpSocket);

/// See [`ClosedPort`].
pub(crate) fn closed_port() -> ClosedPort {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    ClosedPort(socket)
}

impl Place for ClosedPort {
    fn addr(&self) -> SocketAddr {
        self.0.local_addr().expect("a bound socket")
    }
}

/// An address where connections are never answered: the queue of those waiting to be accepted is full. (On Linux; the
/// kernel then drops what comes.)
#[derive(Debug)]
pub(crate) struct BlackHole {
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

/// See [`BlackHole`].
pub(crate) async fn black_hole() -> BlackHole {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let listener = socket.listen(1).expect("a bound socket");
    let (addr, mut queued) = (listener.local_addr().expect("a bound socket"), Vec::new());
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(addr)).await {
        queued.push(connected.expect("a place in the queue"));
    }
    BlackHole {
        listener,
        _queued: queued,
    }
}

impl Place for BlackHole {
    fn addr(&self) -> SocketAddr {
        self.listener.local_addr().expect("a bound socket")
    }
}

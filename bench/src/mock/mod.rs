//! The mock upstream: says over HTTP/1.1 what the last user message asks for, in OpenAI's streaming dialect.
//!
//! Written on sockets rather than on a server library because the writes are what is measured: one `write` per
//! token when paced (or per `per_write` tokens), the clock read just before it, TCP_NODELAY, no task between.
//! It knows nothing of the gateway.

mod request;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;

use crate::ask::Ask;
use crate::clock::{Pacer, nanos, now};
use request::{Completion, Inbox};

/// Longest that a stalled stream stays silent.
const STALL: Duration = Duration::from_secs(60);

/// A running mock; clones are the same one.
#[derive(Clone)]
pub struct Mock(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    pacer: Pacer,
    watched: Mutex<HashMap<u32, oneshot::Sender<u64>>>,
    streaming: AtomicUsize,
    connections: AtomicUsize,
}

/// How a stream of the mock ended.
enum Ending {
    Complete,
    Cut,
    /// The other side closed first.
    Gone,
}

impl Mock {
    /// Listens on `address` (port 0: any free one) and serves until the runtime ends.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn start(address: SocketAddr, pacer: Pacer) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(4_096)?;
        let mock = Self(Arc::new(Inner {
            address: listener.local_addr()?,
            pacer,
            watched: Mutex::default(),
            streaming: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        }));
        tokio::spawn(mock.clone().accept(listener));
        Ok(mock)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Connections that are open, idle ones too.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Answers being written right now, and tools at work.
    #[must_use]
    pub fn streaming(&self) -> usize {
        self.0.streaming.load(Ordering::Relaxed)
    }

    /// Gives the time ([`now`]) at which the answer to `stream` lost its reader; nothing if it ended otherwise.
    pub fn watch(&self, stream: u32) -> oneshot::Receiver<u64> {
        let (sender, receiver) = oneshot::channel();
        self.watched().insert(stream, sender);
        receiver
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<u32, oneshot::Sender<u64>>> {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn accept(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    let mock = self.clone();
                    tokio::spawn(async move {
                        mock.0.connections.fetch_add(1, Ordering::Relaxed);
                        let outcome = mock.connection(socket).await;
                        mock.0.connections.fetch_sub(1, Ordering::Relaxed);
                        if let Err(error) = outcome {
                            eprintln!("mock: {error:#}");
                        }
                    });
                }
                Err(error) => {
                    eprintln!("mock: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(&self, mut socket: TcpStream) -> Result<()> {
        socket.set_nodelay(true)?;
        let mut inbox = Inbox::default();
        while let Some(request) = inbox.next(&mut socket).await? {
            if let Some(us) = request.line.strip_prefix("GET /tool/") {
                self.0.streaming.fetch_add(1, Ordering::Relaxed);
                let gone = self.tool(&mut socket, us.parse()?).await;
                self.0.streaming.fetch_sub(1, Ordering::Relaxed);
                if gone? {
                    return Ok(());
                }
                continue;
            }
            if !request.line.ends_with("/chat/completions") {
                socket
                    .write_all(&wire::refusal("404 Not Found", "only /v1/chat/completions"))
                    .await?;
                continue;
            }
            let asked = serde_json::from_slice::<Completion>(&request.body)
                .map_err(anyhow::Error::from)
                .and_then(|completion| Ok((Ask::find(&completion.last_words())?, completion)));
            match asked {
                Err(error) => {
                    socket
                        .write_all(&wire::refusal("400 Bad Request", &format!("{error:#}")))
                        .await?
                }
                Ok((ask, completion)) if ask.tool_us > 0 && completion.stream && !completion.has_result() => {
                    socket.write_all(&wire::tool_call(&ask)).await?;
                }
                Ok((ask, completion)) if completion.stream => {
                    self.0.streaming.fetch_add(1, Ordering::Relaxed);
                    let ending = self.answer(&mut socket, ask, completion.include_usage()).await;
                    self.0.streaming.fetch_sub(1, Ordering::Relaxed);
                    let watcher = self.watched().remove(&ask.stream);
                    match ending {
                        Ok(Ending::Complete) => {}
                        Ok(Ending::Cut) => return Ok(()),
                        Ok(Ending::Gone) | Err(_) => {
                            if let Some(watcher) = watcher {
                                // Nobody waits any more: the driver gave up on it and said so.
                                let _ = watcher.send(now());
                            }
                            return Ok(());
                        }
                    }
                }
                Ok((ask, _)) => socket.write_all(&wire::whole(ask.stream, ask.tokens, now())).await?,
            }
        }
        Ok(())
    }

    /// The tool `slow`; whether the other side left before it was done.
    async fn tool(&self, socket: &mut TcpStream, us: u64) -> io::Result<bool> {
        tokio::select! {
            biased;
            () = self.0.pacer.until(now() + us * 1_000) => {}
            () = hung_up(socket) => return Ok(true),
        }
        socket.write_all(&wire::tool_result()).await?;
        Ok(false)
    }

    /// One streamed answer; an error is the other side's leaving.
    async fn answer(&self, socket: &mut TcpStream, ask: Ask, include_usage: bool) -> io::Result<Ending> {
        let mut events = wire::Events::new(&ask);
        let mut due = now() + ask.first_us * 1_000;
        socket.write_all(&events.opening()).await?;
        let mut number = 0;
        while number < ask.tokens {
            if ask.stall_after > 0 && number >= ask.stall_after {
                return Ok(tokio::select! {
                    () = hung_up(socket) => Ending::Gone,
                    () = self.0.pacer.until(now() + nanos(STALL)) => Ending::Cut,
                });
            }
            if now() < due {
                tokio::select! {
                    biased;
                    () = self.0.pacer.until(due) => {}
                    () = hung_up(socket) => return Ok(Ending::Gone),
                }
            }
            let mut count = (ask.per_write * ask.per_event).min(ask.tokens - number);
            if ask.cut_after > 0 {
                count = count.min(ask.cut_after - number);
            }
            socket.write_all(events.tokens(number, count, now())).await?;
            number += count;
            due += ask.every_us * 1_000;
            if ask.cut_after > 0 && number >= ask.cut_after {
                return Ok(Ending::Cut);
            }
        }
        socket.write_all(&events.closing(ask.tokens, include_usage)).await?;
        Ok(Ending::Complete)
    }
}

/// Returns when the other side closed or reset; bytes in the middle of an answer count as misbehaving the same way.
async fn hung_up(socket: &TcpStream) {
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        match socket.try_read(&mut [0; 1]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

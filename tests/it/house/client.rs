//! A client on a bare TCP connection: it sends exactly what it is told to. It trusts no HTTP library, since what a
//! library forgives is what the stories are about.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use super::wire::{Headers, Incoming, Left};
use super::{PATIENCE, Reader, Response, soon, within};

/// Something that listens: a gateway, an upstream, an address.
pub(crate) trait Place {
    /// Where it listens.
    fn addr(&self) -> SocketAddr;
}

impl Place for SocketAddr {
    fn addr(&self) -> SocketAddr {
        *self
    }
}

/// `POST path` with a JSON body.
pub(crate) async fn post(place: &impl Place, path: &str, body: Value) -> Response {
    Call::post(path).json(&body).to(place).await
}

/// `GET path`.
pub(crate) async fn get(place: &impl Place, path: &str) -> Response {
    Call::get(path).to(place).await
}

/// `DELETE path`.
pub(crate) async fn delete(place: &impl Place, path: &str) -> Response {
    Call::new("DELETE", path).to(place).await
}

/// A request in the making.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    method: String,
    path: String,
    version: &'static str,
    headers: Headers,
    body: Bytes,
    /// What kind of event stream is asked for.
    resumes: Option<String>,
    json_tokens: bool,
}

impl Call {
    /// With any method.
    pub(crate) fn new(method: &str, path: &str) -> Self {
        let query = path.split_once('?').map_or("", |(_, query)| query);
        let parameter = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        Self {
            method: method.into(),
            path: path.into(),
            version: "HTTP/1.1",
            headers: Headers::default(),
            body: Bytes::new(),
            resumes: parameter("last_event_id")
                .or_else(|| parameter("lastEventId"))
                .map(|id| id.replace("%3A", ":")),
            json_tokens: parameter("format") == Some("json"),
        }
    }

    /// `GET path`.
    pub(crate) fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// `POST path`.
    pub(crate) fn post(path: &str) -> Self {
        Self::new("POST", path)
    }

    /// With a JSON body.
    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.json_tokens |= body["format"] == "json";
        self.body(body.to_string()).header("Content-Type", "application/json")
    }

    /// With any body; say its type with [`Call::header`].
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// With one more header line. `Host` and `Content-Length` are added where they are not given.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        if name.eq_ignore_ascii_case("last-event-id") {
            self.resumes = Some(value.into());
        }
        self.headers.0.push((name.into(), value.into()));
        self
    }

    /// As the caller with this key.
    pub(crate) fn key(self, key: &str) -> Self {
        self.header("Authorization", &format!("Bearer {key}"))
    }

    /// As a client of HTTP/1.0.
    pub(crate) fn http10(self) -> Self {
        Self {
            version: "HTTP/1.0",
            ..self
        }
    }

    /// Sends it on a connection of its own, and waits for the head of the answer.
    pub(crate) async fn to(self, place: &impl Place) -> Response {
        Connection::open(place).await.call(self).await
    }

    fn wire(&self, host: SocketAddr) -> Vec<u8> {
        let mut head = format!("{} {} {}\r\n", self.method, self.path, self.version);
        let mut line = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
        if self.headers.all("host").is_empty() {
            line("Host", &host.to_string());
        }
        self.headers.0.iter().for_each(|(name, value)| line(name, value));
        let told = !self.headers.all("content-length").is_empty() || !self.headers.all("transfer-encoding").is_empty();
        if !told && (!self.body.is_empty() || self.method == "POST") {
            line("Content-Length", &self.body.len().to_string());
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }

    /// How a stream of events that answers this is to be read.
    pub(super) fn reader(&self) -> Reader {
        let reader = self.resumes.as_deref().map_or_else(Reader::fresh, Reader::after);
        if self.json_tokens { reader.json_tokens() } else { reader }
    }
}

/// One TCP connection.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: SocketAddr,
    pub(super) patience: Duration,
    pub(super) incoming: Incoming<TcpStream>,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(place: &impl Place) -> Self {
        Self::from_socket(TcpSocket::new_v4().unwrap(), place.addr()).await
    }

    /// Connects with as small a receive buffer as the kernel allows: who does not read is soon not written to.
    pub(crate) async fn open_narrow(place: &impl Place) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self::from_socket(socket, place.addr()).await
    }

    /// The same from far away, in small packets: the gateway's kernel keeps little of what is not taken, too.
    pub(crate) async fn open_afar(place: &impl Place) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket2::SockRef::from(&socket).set_tcp_mss(1000).unwrap();
        Self::from_socket(socket, place.addr()).await
    }

    async fn from_socket(socket: TcpSocket, peer: SocketAddr) -> Self {
        let stream = soon(format!("a connection to {peer}"), socket.connect(peer)).await;
        let stream = stream.unwrap_or_else(|error| panic!("cannot connect to {peer}: {error}"));
        stream.set_nodelay(true).unwrap();
        Self {
            peer,
            patience: PATIENCE,
            incoming: Incoming::new(stream),
        }
    }

    /// Waits up to this long for each next thing, instead of [`PATIENCE`].
    pub(crate) fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn call(mut self, call: Call) -> Response {
        self.send_raw(call.wire(self.peer)).await;
        let mut response = self.answer(&format!("{} {}", call.method, call.path)).await;
        if call.method == "HEAD" {
            response.connection.incoming.left = Left::Nothing;
        }
        response.call = Some(call);
        response
    }

    /// Sends any bytes, in one write. A peer that has closed already is not a failure: what it said can still be read.
    pub(crate) async fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within(
            self.patience,
            "room to send",
            self.incoming.io.write_all(bytes.as_ref()),
        )
        .await;
    }

    /// Waits for the head of an answer to what was sent; `what` is for messages.
    pub(crate) async fn answer(self, what: &str) -> Response {
        let answer = self.try_answer(what).await;
        answer.unwrap_or_else(|end| panic!("no answer to {what}: {end}"))
    }

    /// The same, where a connection closed without an answer is a possibility; says how it ended then.
    pub(crate) async fn try_answer(mut self, what: &str) -> Result<Response, String> {
        let awaited = format!("the head of the answer to {what}");
        let head = within(self.patience, awaited, self.incoming.head()).await;
        let (line, headers) = head
            .map_err(|error| error.to_string())?
            .ok_or("closed without a word")?;
        let mut words = line.splitn(3, ' ');
        let version = words.next().unwrap_or_default().to_owned();
        let status = words
            .next()
            .and_then(|status| status.parse().ok())
            .ok_or(format!("no status line: {line:?}"))?;
        self.incoming.expect_body(&headers, Left::UntilClose);
        if matches!(status, 100..=199 | 204 | 304) {
            self.incoming.left = Left::Nothing;
        }
        Ok(Response {
            status,
            version,
            headers,
            at: Instant::now(),
            what: what.to_owned(),
            connection: self,
            call: None,
            reader: None,
            read: 0,
            ending: None,
        })
    }

    /// Waits until the peer has closed, without another byte, and says when.
    pub(crate) async fn closed(&mut self) -> Instant {
        let awaited = "the gateway to close the connection";
        let more = within(self.patience, awaited, self.incoming.more()).await;
        assert!(
            !matches!(more, Ok(true)),
            "bytes where a close was due: {:?}",
            self.incoming.buffer
        );
        Instant::now()
    }

    /// Closes (FIN; the kernel makes it an RST if bytes had come that nobody read).
    pub(crate) fn hang_up(self) {}

    /// Says that no more will be sent (FIN), and goes on reading.
    pub(crate) async fn half_close(&mut self) {
        self.incoming
            .io
            .shutdown()
            .await
            .expect("a connection that can be shut down");
    }

    /// Vanishes: from now on nothing that the peer sends is taken or acknowledged, and nothing is said, as after a cut
    /// cable. (A filter on the socket that lets nothing through; on Linux.)
    pub(crate) fn vanish(&self) {
        const RETURN: u16 = 0x06; // BPF_RET | BPF_K: how much of the packet to keep
        let nothing = [socket2::SockFilter::new(RETURN, 0, 0, 0)];
        socket2::SockRef::from(&self.incoming.io)
            .attach_filter(&nothing)
            .expect("a kernel that filters");
    }

    /// Our end, as its peer sees it.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.incoming.io.local_addr().expect("a connected socket")
    }

    /// Waits until the peer has closed its end, whatever we take of it, and says when.
    pub(crate) async fn closed_there(&self) -> Instant {
        super::eventually("the gateway to close its end", async || {
            self.unread_there().is_none().then(Instant::now)
        })
        .await
    }

    /// Waits until the peer has read all that was sent.
    pub(crate) async fn read_there(&self) {
        super::eventually("the gateway to read what was sent", async || {
            let unread = self.unread_there().expect("it is open there");
            (unread == 0).then_some(())
        })
        .await;
    }

    /// How many bytes wait at the peer's end to be read; `None` where that is not open any more. (Linux tells.)
    fn unread_there(&self) -> Option<u32> {
        const ESTABLISHED: &str = "01";
        let hex = |addr: SocketAddr| match addr {
            SocketAddr::V4(addr) => format!("{:08X}:{:04X}", u32::from_ne_bytes(addr.ip().octets()), addr.port()),
            SocketAddr::V6(addr) => panic!("{addr}: the house is on IPv4"),
        };
        let ends = format!("{} {} {ESTABLISHED} ", hex(self.peer), hex(self.local_addr()));
        let all = std::fs::read_to_string("/proc/net/tcp").expect("a kernel that tells");
        let (_, queues) = all.split_once(&ends)?;
        let (_to_send, unread) = queues.split(' ').next()?.split_once(':')?;
        Some(u32::from_str_radix(unread, 16).expect("a number in hexadecimal"))
    }

    /// Breaks off (RST).
    pub(crate) fn reset(self) {
        self.incoming.io.set_zero_linger().expect("a socket that lingers not");
    }
}

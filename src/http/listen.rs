//! The accept loop: from a listening socket to requests. Our own, because the library's has no deadline for headers, no
//! TCP_NODELAY, and waits for open streams for ever.

use std::{
    convert::Infallible,
    io,
    ops::DerefMut,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::{BoxError, Router, body::Body};
use hyper::{
    Request, Response,
    body::Incoming,
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_http::map_response_body::MapResponseBody;

use super::{
    activity::{Activity, Expiry, Held, silent},
    error::Problem,
    guarded::{Guarded, give_up_after, takes_nothing},
    layers::MAX_HEADERS,
    outlet::{Beside, Measured, Outlet},
    silence::Ends,
};
use crate::{
    error::{Error, ErrorCode},
    meters::{Meters, Shed},
};

/// What is kept of responses that a client does not take, in bytes, by the server and by the kernel; more waits in the log.
const WRITE_BUFFER: usize = 64 << 10;
/// How long to wait before accepting again when the process has no more file descriptors.
const BREATHER: Duration = Duration::from_millis(50);
/// How many clients at a time are told that there is no room; further ones wait to be accepted. How long each has to hear
/// it, and how much of what it sends meanwhile is taken.
const REFUSALS: usize = 64;
const REFUSAL: Duration = Duration::from_secs(2);
const REFUSED_BYTES: usize = 256 << 10;
/// The most requests at a time of one HTTP/2 connection.
const H2_STREAMS: u32 = 256;
/// After how long without a word a client of HTTP/2 is asked for one.
const H2_PING: Duration = Duration::from_secs(20);

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub struct ListenSettings {
    /// How long a request's headers may take from their first byte on; over HTTP/2 the preface, because later headers
    /// have until a ping stays unanswered.
    pub header_timeout: Duration,
    /// How long a connection is kept on which no request is sent.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of what is written before its connection is cut. Its run goes on as its
    /// policy says.
    pub write_timeout: Duration,
    /// How long the kernel may hear nothing of a client, asking, before its connection is cut; seconds count.
    pub lost_timeout: Duration,
    /// How many headers a request may have.
    pub max_headers: usize,
    /// How many connections at a time; further ones are told that there is no room.
    pub max_connections: usize,
}

/// Accepts until told to stop, then closes the listener and lets what is open come to its end; returns when all is, or
/// when `give_up` says that it has taken long enough.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: ListenSettings,
    meters: Arc<Meters>,
    stop: CancellationToken,
    give_up: CancellationToken,
) {
    let protocols = Arc::new(Protocols::new(settings, meters.clone()));
    let (open, refused) = (
        Arc::new(Semaphore::new(settings.max_connections)),
        Arc::new(Semaphore::new(REFUSALS)),
    );
    let connections = TaskTracker::new();
    loop {
        let (stream, place) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&listener, [&open, &refused], settings.lost_timeout, &meters) => accepted,
        };
        let Place::Served(place) = place else {
            meters.shed(Shed::Connections);
            tokio::spawn(turn_away(stream, place));
            continue;
        };
        let service = TowerToHyperService::new(MapResponseBody::new(router.clone(), Measured::new as Measure));
        let protocols = protocols.clone();
        let (stop, give_up, meters) = (stop.clone(), give_up.clone(), meters.clone());
        connections.spawn(async move {
            let _place = (place, meters.connection());
            tokio::select! {
                outcome = protocols.serve(stream, service, stop) => if let Err(error) = outcome {
                    if takes_nothing(&*error) {
                        meters.slow_client();
                    }
                    tracing::debug!(%error, "a connection ended early");
                },
                () = give_up.cancelled() => {}
            }
        });
    }
    drop(listener);
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = give_up.cancelled() => {}
    }
}

/// A connection's place.
enum Place {
    /// Among those that are served.
    Served(OwnedSemaphorePermit),
    /// Among those that are told that there is no room.
    Refused(#[expect(dead_code, reason = "held as long as its connection")] OwnedSemaphorePermit),
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    [open, refused]: [&Arc<Semaphore>; 2],
    lost: Duration,
    meters: &Meters,
) -> (TcpStream, Place) {
    loop {
        let place = tokio::select! {
            biased;
            Ok(place) = open.clone().acquire_owned() => Place::Served(place),
            Ok(place) = refused.clone().acquire_owned() => Place::Refused(place),
            else => return std::future::pending().await,
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = prepare(&stream, lost) {
                    tracing::debug!(%error, "a connection was gone before it was served");
                    continue;
                }
                // There may be room by now.
                let place = match (place, open.clone().try_acquire_owned()) {
                    (Place::Refused(_), Ok(free)) => Place::Served(free),
                    (place, _) => place,
                };
                return (stream, place);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                meters.accept_failed();
                tokio::time::sleep(BREATHER).await;
            }
        }
    }
}

/// Tells a client that there is no room, once it has begun to ask, and listens until it has read that.
async fn turn_away(mut stream: TcpStream, place: Place) {
    let told = async {
        stream.readable().await?;
        stream.write_all(&no_room()).await?;
        stream.shutdown().await?;
        let (mut heard, mut rest) = ([0; 4096], REFUSED_BYTES);
        while rest > 0 {
            match stream.read(&mut heard).await? {
                0 => break,
                length => rest = rest.saturating_sub(length),
            }
        }
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(REFUSAL, told).await {
        tracing::debug!(%error, "a client did not hear that there is no room");
    }
    drop(place);
}

/// The answer to whoever comes when there is no room.
fn no_room() -> Vec<u8> {
    let id = uuid::Uuid::now_v7().to_string();
    let full = Error::new(ErrorCode::Overloaded, "This gateway has as many connections as it can.");
    let problem = Problem::new(&full.retry_after(Duration::from_secs(1)), &id);
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let length = body.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         retry-after: 1\r\nx-request-id: {id}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Tells the kernel how to treat a client.
fn prepare(stream: &TcpStream, lost: Duration) -> io::Result<()> {
    // Without this a token waits for the acknowledgement of the one before: 40 ms.
    stream.set_nodelay(true)?;
    // A client that is gone and could not say so (its cable, its power, its network's memory) is asked after half the time
    // without a word, and given up when it has acknowledged nothing for all of it. The kernel's unit is a second.
    let second = Duration::from_secs(1);
    let probes = TcpKeepalive::new()
        .with_time((lost / 2).max(second))
        .with_interval((lost / 6).max(second));
    SockRef::from(stream).set_tcp_keepalive(&probes)?;
    give_up_after(stream, Some(lost))?;
    keep_little(stream)
}

/// What a client has no room for waits with us, not in megabytes of the kernel's: so that we see a slow one take a little.
#[cfg(target_os = "linux")]
fn keep_little(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_notsent_lowat(WRITE_BUFFER as u32)
}

#[cfg(not(target_os = "linux"))]
fn keep_little(_: &TcpStream) -> io::Result<()> {
    Ok(())
}

/// What is served: the router, its answers measured.
type Served = MapResponseBody<Router, Measure>;
type Measure = fn(Body) -> Measured<Body>;

/// The two versions of HTTP that are spoken here.
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<Beside>,
    settings: ListenSettings,
    meters: Arc<Meters>,
}

impl Protocols {
    fn new(settings: ListenSettings, meters: Arc<Meters>) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(None) // it would count the time between two requests too
            .max_headers(settings.max_headers)
            .max_buf_size(WRITE_BUFFER)
            .writev(false); // frames are small: one copy is cheaper than a vector of three
        let mut http2 = http2::Builder::new(Beside(TokioExecutor::new()));
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS)
            // Beyond what a request may have, so that who goes a little too far is told so in a problem object.
            .max_header_list_size(2 * MAX_HEADERS as u32)
            .max_send_buf_size(WRITE_BUFFER)
            // This bounds the headers of later requests too, and nothing else does: amid them nobody can answer a ping.
            // Who is only stopped for a while has as long as over HTTP/1.
            .keep_alive_interval(H2_PING)
            .keep_alive_timeout(settings.write_timeout.saturating_sub(H2_PING).max(H2_PING));
        Self {
            http1,
            http2,
            settings,
            meters,
        }
    }

    /// Serves a connection to its end.
    async fn serve(
        &self,
        stream: TcpStream,
        service: TowerToHyperService<Served>,
        stop: CancellationToken,
    ) -> Result<(), BoxError> {
        // Looked at rather than read: a reader that has to be given bytes back costs every stream 8 KiB.
        let (idle, head) = (self.settings.idle_timeout, self.settings.header_timeout);
        let http2 = tokio::select! {
            biased;
            spoke = async {
                timeout(idle, stream.peek(&mut [0])).await.map_err(|_| silent())??;
                timeout(head, speaks_http2(&stream)).await.map_err(|_| silent())?
            } => spoke?,
            () = stop.cancelled() => return Ok(()), // nothing was asked, so nothing is to be waited for
        };
        let outlet = Outlet::new(http2, self.settings.write_timeout, self.meters.clone());
        let activity = Activity::new(http2);
        let ends = Ends::of(&stream)?;
        let guarded = Guarded::new((stream, ends), &self.settings, outlet.clone(), activity.clone());
        let io = TokioIo::new(guarded);
        let service = Noted {
            service,
            activity: activity.clone(),
        };
        // All of it, so that what is dropped with the connection knows which it was.
        outlet
            .clone()
            .serving(async {
                if http2 {
                    // Boxed, so that the many of HTTP/1 need not hold room for it.
                    let connection = Box::pin(self.http2.serve_connection(io, service));
                    attend(connection, &activity, &self.settings, stop).await
                } else {
                    let connection = pin!(self.http1.serve_connection(io, service));
                    tokio::select! {
                        biased;
                        outcome = attend(connection, &activity, &self.settings, stop) => outcome,
                        () = outlet.left(ends) => Err(gone().into()),
                    }
                }
            })
            .await
    }
}

/// A connection that can be told to come to its end after what is under way.
trait Connection: Future<Output = hyper::Result<()>> {
    fn finish(self: Pin<&mut Self>);
}

impl Connection for http1::Connection<TokioIo<Guarded>, Noted> {
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl Connection for http2::Connection<TokioIo<Guarded>, Noted, Beside> {
    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Serves a connection until it ends, or is to end: because no request comes any more, or the gateway stops.
async fn attend<C: Connection>(
    mut connection: Pin<impl DerefMut<Target = C> + Unpin>,
    activity: &Activity,
    settings: &ListenSettings,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    tokio::select! {
        biased;
        outcome = &mut connection => return Ok(outcome?),
        expiry = activity.expired(settings.header_timeout, Some(settings.idle_timeout)) => if expiry == Expiry::Head {
            return Err(silent().into());
        },
        () = stop.cancelled_owned() => {}
    }
    connection.as_mut().finish();
    tokio::select! {
        biased;
        outcome = &mut connection => Ok(outcome?),
        _ = activity.expired(settings.header_timeout, None) => Err(silent().into()),
    }
}

/// Why a connection was closed whose client was found to have left.
fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the client has left")
}

/// A service that notes which requests are under way.
struct Noted {
    service: TowerToHyperService<Served>,
    activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Noted {
    type Response = Response<Held<Measured<Body>>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let exchange = self.activity.begin();
        let request = request.map(|body| Held::new(body, exchange.clone()));
        let response = self.service.call(request);
        Box::pin(async move { Ok(response.await?.map(|body| Held::new(body, exchange))) })
    }
}

/// Whether the first bytes are HTTP/2's preface, `PRI * HTTP/2.0`, as clients send it that know (RFC 9113, § 3.3): no
/// method of HTTP/1 begins so.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; 3];
    loop {
        let length = stream.peek(&mut first).await?;
        if length == 0 || length == first.len() || !b"PRI".starts_with(&first[..length]) {
            return Ok(first == *b"PRI");
        }
        tokio::time::sleep(Duration::from_millis(5)).await; // a byte at a time: nothing else tells of the next
    }
}

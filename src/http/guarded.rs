//! A connection whose client must take what it is given, and be there.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use super::{activity::Activity, listen::ListenSettings, outlet::Outlet, silence::Ends};
use crate::patience::Patience;

/// How long to wait at least before it is asked again whether a client is there.
const LOOK: Duration = Duration::from_millis(100);

/// The connection.
///
/// The kernel's own count does not tell a client that has no room from one that is gone: for either it runs until
/// `lost_timeout`, even while a client takes a little now and then. So while a write waits here, it is we who count, and
/// for some time after; and who has not been heard of for that long is lost all the same.
pub(super) struct Guarded {
    stream: TcpStream,
    ends: Ends,
    outlet: Arc<Outlet>,
    activity: Arc<Activity>,
    write_timeout: Duration,
    lost_timeout: Duration,
    /// While a write waits.
    stall: Option<Stall>,
    /// While the kernel does not count: when a write waited last.
    waited: Option<Instant>,
}

/// A write that waits.
struct Stall {
    /// Until it has taken too long.
    over: Patience,
    /// Until it is asked whether the client is there.
    look: Patience,
}

impl Guarded {
    /// Guards a connection, and tells its outlet.
    pub(super) fn new(
        (stream, ends): (TcpStream, Ends),
        settings: &ListenSettings,
        outlet: Arc<Outlet>,
        activity: Arc<Activity>,
    ) -> Self {
        Self {
            stream,
            ends,
            outlet,
            activity,
            write_timeout: settings.write_timeout,
            lost_timeout: settings.lost_timeout,
            stall: None,
            waited: None,
        }
    }

    /// Notes whether a write got on, and cuts the connection when none has for too long, or nobody is there.
    fn watch<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            if self.stall.take().is_some() {
                self.waited = Some(Instant::now());
            } else if self.waited.is_some_and(|last| last.elapsed() > self.lost_timeout) {
                self.waited = None;
                self.outlet.slow(false);
                self.kernel_counts_to(Some(self.lost_timeout));
            }
            return outcome;
        }
        if self.waited.is_none() {
            self.waited = Some(Instant::now());
            self.outlet.slow(true);
            self.kernel_counts_to(None);
        }
        let stall = self.stall.get_or_insert_with(|| Stall {
            over: Patience::new(self.write_timeout),
            look: Patience::new(self.lost_timeout / 4),
        });
        while stall.look.poll_over(cx).is_ready() {
            let silent = self.ends.silent().unwrap_or_default();
            if silent >= self.lost_timeout {
                self.outlet.lose();
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Gone)));
            }
            let rest = self.lost_timeout - silent;
            stall.look.extend(rest.min(self.lost_timeout / 4).max(LOOK));
        }
        ready!(stall.over.poll_over(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, TakesNothing)))
    }

    /// Notes what the kernel has given up.
    fn note<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
        if let Poll::Ready(Err(error)) = &outcome
            && matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
        {
            self.outlet.lose();
        }
        outcome
    }

    fn kernel_counts_to(&self, lost: Option<Duration>) {
        if let Err(error) = give_up_after(&self.stream, lost) {
            tracing::debug!(%error, "how long a client may be lost cannot be changed");
        }
    }
}

/// Why a connection was cut.
#[derive(Debug, thiserror::Error)]
#[error("the client is gone")]
struct Gone;

/// Why a connection was cut.
#[derive(Debug, thiserror::Error)]
#[error("the client takes nothing")]
struct TakesNothing;

/// Whether a connection was cut because its client took nothing.
pub(super) fn takes_nothing(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if cause.is::<TakesNothing>() || inner.is_some_and(|inner| inner.is::<TakesNothing>()) {
            return true;
        }
        next = cause.source();
    }
    false
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.outlet.listen(outcome.is_pending());
        self.activity.receive(buf.filled().len() - filled);
        self.note(outcome)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = outcome {
            self.outlet.sent(bytes);
        }
        let outcome = self.note(outcome);
        self.watch(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outlet.sent_all(); // the server asks for it when it holds nothing any more
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How long what was sent may stay unacknowledged, or what is to be sent without room.
#[cfg(target_os = "linux")]
pub(super) fn give_up_after(stream: &TcpStream, lost: Option<Duration>) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(lost)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn give_up_after(_: &TcpStream, _: Option<Duration>) -> io::Result<()> {
    Ok(())
}

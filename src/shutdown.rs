//! When to stop: SIGTERM or Ctrl-C; a second one means at once.

use crate::app::Running;

/// Starts a gateway and serves until a signal comes, then stops in order. A signal while it starts gives the start up.
///
/// # Errors
/// The start failed, no signal can be waited for, or the gateway's task panicked.
pub async fn until_signalled(start: impl Future<Output = anyhow::Result<Running>>) -> anyhow::Result<()> {
    // Before anything is started: children of its own would outlive a gateway that the signal itself ends.
    let mut signals = Signals::new()?;
    let mut gateway = tokio::select! {
        started = start => started?,
        name = signals.next() => {
            tracing::info!("{name}: stopped before it had started");
            return Ok(());
        }
    };
    let name = signals.next().await;
    tracing::info!("{name}: stopping; runs that go on may finish, a second signal interrupts them");
    gateway.begin_stop();
    tokio::select! {
        stopped = gateway.stopped() => stopped?,
        _ = signals.next() => {
            gateway.hurry();
            gateway.stopped().await?;
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Its number, on every Unix and machine that we build for.
#[cfg(unix)]
const SIGXFSZ: i32 = 25;

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// Never asked for: that somebody would take it makes a write beyond the limit of a file's size an error of that write's,
    /// instead of the process's end.
    _file_size: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _file_size: signal(SignalKind::from_raw(SIGXFSZ))?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> &'static str {
        match tokio::signal::ctrl_c().await {
            Ok(()) => "Ctrl-C",
            Err(_) => std::future::pending().await,
        }
    }
}

//! When to stop: SIGTERM or Ctrl-C; a second one means at once.

use crate::app::Running;

/// Serves until a signal comes, then stops in order.
///
/// # Errors
/// No signal can be waited for, or the gateway's task panicked.
pub async fn until_signalled(mut gateway: Running) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
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

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
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

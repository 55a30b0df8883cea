//! When to stop: SIGTERM or Ctrl-C; a second one means at once. When to read the settings again: SIGHUP.

use crate::{
    app::Running,
    config::{ConfigError, Reread, Settings},
};

/// Starts a gateway and serves until a signal comes, then stops in order. A signal while it starts gives the start up.
///
/// # Errors
/// The start failed, no signal can be waited for, or the gateway's task panicked.
pub async fn until_signalled(
    start: impl Future<Output = anyhow::Result<Running>>,
    read_again: impl Fn(&Settings) -> Result<Reread, ConfigError>,
) -> anyhow::Result<()> {
    // Before anything is started: children of its own would outlive a gateway that the signal itself ends.
    let mut signals = Signals::new()?;
    let mut gateway = tokio::select! {
        started = start => started?,
        name = signals.stop() => {
            tracing::info!("{name}: stopped before it had started");
            return Ok(());
        }
    };
    let name = serve(&mut signals, &gateway, read_again).await;
    tracing::info!("{name}: stopping; runs that go on may finish, a second signal interrupts them");
    gateway.begin_stop();
    tokio::select! {
        stopped = gateway.stopped() => stopped?,
        _ = signals.stop() => {
            gateway.hurry();
            gateway.stopped().await?;
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Reads the settings again each time that SIGHUP asks for it; returns the signal to stop. Signals
/// that come while the settings are read are one more reading, however many they are.
async fn serve(
    signals: &mut Signals,
    gateway: &Running,
    read_again: impl Fn(&Settings) -> Result<Reread, ConfigError>,
) -> &'static str {
    let Signals { stop, reload } = signals;
    loop {
        tokio::select! {
            name = stop.next() => return name,
            () = reload.next() => {}
        }
        tracing::info!("SIGHUP: reading the settings again");
        tokio::select! {
            name = stop.next() => return name,
            () = gateway.reload(&read_again) => {}
        }
    }
}

struct Signals {
    stop: StopSignals,
    reload: ReloadSignal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            stop: StopSignals::new()?,
            reload: ReloadSignal::new()?,
        })
    }

    async fn stop(&mut self) -> &'static str {
        self.stop.next().await
    }
}

/// SIGHUP. Once it has been asked for, it does not end the process any more.
#[cfg(unix)]
struct ReloadSignal(tokio::signal::unix::Signal);

#[cfg(unix)]
impl ReloadSignal {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::hangup()).map(Self)
    }

    async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await; // there will be no more
        }
    }
}

#[cfg(not(unix))]
struct ReloadSignal;

#[cfg(not(unix))]
impl ReloadSignal {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        std::future::pending().await
    }
}

/// Its number, on every Unix and machine that we build for.
#[cfg(unix)]
const SIGXFSZ: i32 = 25;

#[cfg(unix)]
struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    /// Never asked for: that somebody would take it makes a write beyond the limit of a file's size an error of that write's,
    /// instead of the process's end.
    _file_size: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl StopSignals {
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
struct StopSignals;

#[cfg(not(unix))]
impl StopSignals {
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

//! A server that is a child process: what it gets, what becomes of its complaints, and how it ends with all its own.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use process_wrap::tokio::{ChildWrapper, CommandWrap, ProcessGroup};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{ChildStdin, ChildStdout, Command},
    signal::unix::SignalKind,
    task::JoinHandle,
    time::timeout,
};

use super::{
    descendants::{self, Process},
    plain,
};
use crate::tool::secrets::Secrets;

/// How long it may take to go after its standard input was closed.
const MANNERS: Duration = Duration::from_secs(2);
/// How long it may take to go after it was asked to terminate.
const NOTICE: Duration = Duration::from_secs(1);
/// How much of one of its complaints is told, in characters.
const MAX_COMPLAINT: usize = 500;

/// A child process, and all that it started, as far as those stayed in its process group.
pub(super) struct Child {
    process: Box<dyn ChildWrapper>,
    complaints: JoinHandle<()>,
    ended: bool,
}

impl Child {
    /// Starts one. Must be called within a runtime.
    ///
    /// # Errors
    /// Why it cannot be started.
    pub(super) fn start(
        server: &Arc<str>,
        command: &Path,
        args: &[String],
        env: &BTreeMap<String, SecretString>,
        secrets: Arc<Secrets>,
    ) -> Result<(Self, ChildStdout, ChildStdin), String> {
        let mut new = Command::new(command);
        new.args(args).env_clear();
        for (name, value) in env {
            new.env(name, value.expose_secret());
        }
        new.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut wrapped = CommandWrap::from(new);
        wrapped.wrap(ProcessGroup::leader());
        let mut process = wrapped
            .spawn()
            .map_err(|e| format!("{} cannot be started: {e}", command.display()))?;
        let pipes = (process.stdout().take(), process.stdin().take(), process.stderr().take());
        let (Some(stdout), Some(stdin), Some(stderr)) = pipes else {
            return Err("its pipes are missing".into());
        };
        let complaints = tokio::spawn(complain(stderr, server.clone(), secrets));
        let child = Self {
            process,
            complaints,
            ended: false,
        };
        Ok((child, stdout, stdin))
    }

    /// The number of the process; `None` once it is gone.
    pub(super) fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Waits until it is gone by itself, and says how it went.
    pub(super) async fn gone(&mut self) -> String {
        match self.first().await {
            Ok(status) => format!("it ended ({status})"),
            Err(e) => format!("it cannot be waited for: {e}"),
        }
    }

    /// Waits for the process itself, whatever it left behind.
    async fn first(&mut self) -> std::io::Result<ExitStatus> {
        self.process.inner_mut().wait().await
    }

    /// Sees to it that nothing remains of it, nor of these descendants of it. Its standard input must be closed already.
    pub(super) async fn end(mut self, descendants: Vec<Process>) {
        let went = timeout(MANNERS, self.first()).await.is_ok();
        // Whoever is still in the group, be it the child or what it left behind. Nobody there is an error.
        if self.process.signal(SignalKind::terminate().as_raw_value()).is_ok() {
            if went {
                tokio::time::sleep(NOTICE / 4).await;
            } else {
                let _ = timeout(NOTICE, self.first()).await;
            }
            let _ = self.process.start_kill();
        }
        descendants::kill(&descendants);
        // As the first process of a container the gateway gets the orphans too: this reaps whoever is ours.
        if timeout(NOTICE, self.process.wait()).await.is_err() {
            tracing::warn!("A child process of an MCP server does not go although it was killed");
        }
        // Its last words, if nobody who left the group holds the pipe.
        let _ = timeout(NOTICE / 4, &mut self.complaints).await;
        self.ended = true;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.complaints.abort();
        if !self.ended {
            // No time for manners; the runtime reaps it.
            let descendants = self.id().map(descendants::of).unwrap_or_default();
            let _ = self.process.start_kill();
            descendants::kill(&descendants);
        }
    }
}

/// Writes what comes from there to the log, line by line. Holds no more than it tells.
async fn complain(from: impl AsyncRead + Unpin, server: Arc<str>, secrets: Arc<Secrets>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while let Ok(read) = from.fill_buf().await {
        if read.is_empty() {
            break;
        }
        let end = memchr::memchr(b'\n', read);
        let piece = &read[..end.unwrap_or(read.len())];
        let room = (MAX_COMPLAINT * 4).saturating_sub(line.len());
        line.extend_from_slice(&piece[..piece.len().min(room)]);
        let used = end.map_or(read.len(), |end| end + 1);
        from.consume(used);
        if end.is_some() {
            tell(&server, &line, &secrets);
            line.clear();
        }
    }
    tell(&server, &line, &secrets);
}

/// Writes one line to the log.
fn tell(server: &str, line: &[u8], secrets: &Secrets) {
    let line = secrets.hide_in_beginning(String::from_utf8_lossy(line).into_owned());
    let line = plain(&line, MAX_COMPLAINT);
    if !line.is_empty() {
        tracing::debug!(server, "An MCP server says on standard error: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_that_never_ends_is_read_and_not_kept() {
        let endless = tokio::io::AsyncReadExt::take(tokio::io::repeat(b'x'), 100 << 20);
        complain(endless, "s".into(), Arc::default()).await;
    }

    #[test]
    fn what_stands_in_a_log_is_one_line_and_short() {
        assert_eq!(plain("a\nb\u{1b}[31m", 100), "a\\nb\\u{1b}[31m");
        assert_eq!(plain("abcdef", 3), "abc…");
    }
}

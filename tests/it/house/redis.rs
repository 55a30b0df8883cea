//! A Redis that gateways share: the one that `scripts/with-redis` started, or one of the story's own, to be stopped.

use std::net::SocketAddr;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, Command};

use super::{Place, eventually, reserved_port, signal, soon};

/// The server for all; `None`, loudly, where there is none; in CI that is an error.
pub(crate) fn shared() -> Option<String> {
    let url = std::env::var("SLUICEGATE_TEST_REDIS").ok();
    if url.is_none() {
        assert!(std::env::var_os("CI").is_none(), "SLUICEGATE_TEST_REDIS is not set");
        eprintln!("!!! SKIPPED: no SLUICEGATE_TEST_REDIS; scripts/with-redis starts a server");
    }
    url
}

/// A server of the story's own. Dropping it kills it, and nothing else.
#[derive(Debug)]
pub(crate) struct Redis {
    child: Child,
    /// Bound, and never listened on, so that no other test gets this port.
    listen: TcpSocket,
    folder: TempDir,
}

impl Place for Redis {
    fn addr(&self) -> SocketAddr {
        self.listen.local_addr().expect("a bound socket")
    }
}

impl Redis {
    /// A fresh one, where [`shared`] finds one: both are the same program.
    pub(crate) async fn start() -> Option<Self> {
        shared()?;
        let (listen, folder) = (reserved_port(), tempfile::tempdir().expect("a temporary folder"));
        let child = launch(listen.local_addr().expect("a bound socket"), &folder);
        let mut redis = Self { child, listen, folder };
        redis.ready().await;
        Some(redis)
    }

    /// What gateways are told.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    /// Ends it at once; what it had is gone.
    pub(crate) async fn kill(&mut self) {
        soon("Redis to be killed", self.child.kill())
            .await
            .expect("a child that can be killed");
    }

    /// Starts it again, empty, at the same place.
    pub(crate) async fn restart(&mut self) {
        self.child = launch(self.addr(), &self.folder);
        self.ready().await;
    }

    /// Has it do nothing, with its connections open.
    pub(crate) async fn pause(&self) {
        signal("STOP", self.child.id().expect("a running server")).await;
    }

    /// Has it go on.
    pub(crate) async fn resume(&self) {
        signal("CONT", self.child.id().expect("a running server")).await;
    }

    /// Sends one command, and returns the first line of the answer.
    pub(crate) async fn command(&self, words: &[&str]) -> String {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        let asked = async {
            let mut connection = BufReader::new(TcpStream::connect(self.addr()).await?);
            connection.write_all(request.as_bytes()).await?;
            let mut line = String::new();
            connection.read_line(&mut line).await?;
            std::io::Result::Ok(line.trim_end().to_owned())
        };
        soon("Redis to answer", asked).await.expect("an answer")
    }

    async fn ready(&mut self) {
        let place = self.addr();
        eventually("Redis to listen", async || {
            let exit = self.child.try_wait().expect("a child");
            assert!(exit.is_none(), "Redis ended: {exit:?}");
            TcpStream::connect(place).await.ok()
        })
        .await;
    }
}

fn launch(at: SocketAddr, folder: &TempDir) -> Child {
    let (ip, port) = (at.ip().to_string(), at.port().to_string());
    let arguments = ["--bind", &ip, "--port", &port, "--save", "", "--appendonly", "no"];
    let start = |program: &str| {
        let mut command = Command::new(program);
        command.args(arguments).arg("--dir").arg(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        command.spawn()
    };
    start("redis-server")
        .or_else(|_| start("valkey-server"))
        .expect("redis-server or valkey-server starts")
}

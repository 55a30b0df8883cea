//! PgBouncer between gateways and their database.
use std::process::Stdio;
use std::time::Duration;

use sluicegate::store::{self, Begun, Entry, RunStatus, SessionClaim};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, Command};

use crate::house::{eventually, reserved_port};
use crate::stores::{Database, ada, commit, end, id, run, turn};

struct Pooler {
    listen: TcpSocket,
    _child: Child,
    _folder: TempDir,
}

impl Pooler {
    /// `None`, loudly, where it is not installed.
    async fn start(database: &Database, mode: &str) -> Option<Self> {
        let server: url::Url = database.url("").parse().expect("an address");
        let listen = reserved_port();
        let port = listen.local_addr().expect("a bound socket").port();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let users = folder.path().join("users");
        std::fs::write(&users, format!("\"{}\" \"\"\n", server.username())).expect("a file");
        let settings = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = 60\n",
            server.host_str().expect("a host"),
            server.port().unwrap_or(5432),
            users.display(),
        );
        std::fs::write(&settings, text).expect("a file");
        let mut command = Command::new("pgbouncer");
        if std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0) {
            let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(folder.path(), open).expect("our own folder");
            command.args(["-u", "nobody"]); // it does not run as root
        }
        command
            .arg(&settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let Ok(mut child) = command.kill_on_drop(true).spawn() else {
            let promised = std::env::var_os("SLUICEGATE_TEST_HOST").is_some();
            assert!(!promised, "pgbouncer is not installed, and SLUICEGATE_TEST_HOST is set");
            eprintln!("!!! SKIPPED: a pooler: pgbouncer is not installed");
            return None;
        };
        eventually("the pooler to listen", async || {
            assert!(child.try_wait().expect("a child").is_none(), "the pooler ended");
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        Some(Self {
            listen,
            _child: child,
            _folder: folder,
        })
    }

    fn url(&self, database: &Database) -> String {
        let mut url: url::Url = database.url("lease=10s").parse().expect("an address");
        url.set_port(Some(self.listen.local_addr().expect("a bound socket").port()))
            .expect("a port");
        url.into()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pooler_that_keeps_a_connection_for_each_session_is_not_noticed() {
    let Some(database) = Database::make().await else { return };
    let Some(pooler) = Pooler::start(&database, "session").await else {
        return;
    };
    let stores = [
        store::open(&pooler.url(&database)).await.expect("a store"),
        store::open(&pooler.url(&database)).await.expect("a store"),
    ];
    let (ada, s) = (ada(), id("s"));
    for number in 0..6 {
        let (store, record) = (&stores[number % 2], run(&ada, &s, 1_000));
        let claim = SessionClaim::new("user", Entry::Alone);
        let Begun::At(version) = store.begin(&record, claim).await.expect("an answer") else {
            panic!("nobody is there")
        };
        let messages = turn(number);
        let (commit, end) = (commit(&record, version, &messages), end(2_000));
        let ended = store.end(record.id, RunStatus::Completed, &end, Some(commit));
        ended.await.expect("an end");
    }
    let session = stores[0].session(&ada, &s).await.unwrap().expect("a session");
    assert_eq!(session.message_count, 12);
    let fence = stores[1].fence().await.expect("a lease");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!fence.is_lost());
    for store in stores {
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pooler_that_shares_connections_is_refused_with_what_to_set() {
    let Some(database) = Database::make().await else { return };
    for mode in ["transaction", "statement"] {
        let Some(pooler) = Pooler::start(&database, mode).await else {
            return;
        };
        let refused = store::open(&pooler.url(&database))
            .await
            .err()
            .expect("a refusal")
            .to_string();
        if mode == "transaction" {
            assert!(refused.contains("pool_mode = session"), "{refused}");
        }
    }
}

//! What is kept: sessions with their messages, runs with their results, the files that runs made, and tickets.
//!
//! A store knows words, not who asks for them over which wire. Everything that belongs together is written in one
//! transaction, and what has been acknowledged survives `kill -9`. A new store is one file and one row of [`open`].

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize, Serializer};

use crate::{
    error::{Error, ErrorCode},
    meters::Meters,
};

pub mod artifact;
pub mod blobs;
pub mod clock;
mod counted;
pub mod lease;
pub mod memory;
pub mod notice;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
pub mod relay;
pub mod run;
pub mod session;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod tally;
pub mod ticket;

pub use artifact::{ArtifactRecord, ArtifactStore};
pub use blobs::Blobs;
pub use notice::NoticeStore;
pub use run::{Begun, Entry, KEY_LIFE, NO_USER, RunEnd, RunRecord, RunStatus, RunStore, SessionClaim};
pub use session::{
    Commit, MessagePage, MessageStatus, ReadFrom, ReadLimit, Session, SessionPage, SessionStore, StoredMessage,
};
pub use ticket::{TicketBinding, TicketRecord, TicketStore, TicketUse};

/// Sessions, runs and the records of files together: they are written in the same transactions. And tickets, which are
/// used once in all gateways, and notices between these.
pub trait Store: SessionStore + RunStore + ArtifactStore + TicketStore + NoticeStore {
    /// Whether other gateways may have runs in it that go on.
    fn shared(&self) -> bool {
        false
    }
    /// The time that all gateways of this store agree on, in milliseconds since 1970.
    fn now(&self) -> i64 {
        clock::system()
    }
    /// The fence of a run that is about to begin. Where no other gateway can declare runs dead, it is never lost.
    fn fence(&self) -> futures_util::future::BoxFuture<'_, Result<lease::Fence, Error>> {
        Box::pin(std::future::ready(Ok(lease::Fence::default())))
    }
    /// Whether it can be reached and written to.
    fn ready(&self) -> futures_util::future::BoxFuture<'_, Result<(), Error>>;
    /// Says that the gateway goes down: who waits for something to be written is soon told that it was not, if that is so.
    fn hurry(&self) {}
    /// Writes what is open and closes it.
    fn close(&self) -> futures_util::future::BoxFuture<'_, ()>;
}

/// Where a store is. Shown without its password, wherever it is shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct StoreUrl(String);

impl StoreUrl {
    /// All of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same as it is shown, with the whole path of a file: what is relative depends on where the process was started.
    #[must_use]
    pub fn whole(&self) -> String {
        let file = self
            .0
            .strip_prefix("sqlite://")
            .and_then(|path| std::path::absolute(path).ok());
        file.map_or_else(|| self.to_string(), |path| format!("sqlite://{}", path.display()))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(&self.0))
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        masked(&self.0).fmt(f)
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&masked(&self.0))
    }
}

/// A path is shown as it is; of an address with a host, everything but its secrets.
fn masked(url: &str) -> String {
    const MASK: &str = "***";
    let (scheme, _) = url.split_once(':').unwrap_or((MASK, ""));
    if matches!(scheme, "memory" | "sqlite") {
        return url.to_owned();
    }
    let Ok(mut shown) = url::Url::parse(url) else {
        return format!("{scheme}:{MASK}");
    };
    if shown.password().is_some() && shown.set_password(Some(MASK)).is_err() {
        return format!("{scheme}:{MASK}");
    }
    let pairs: Vec<(String, String)> = shown.query_pairs().into_owned().collect();
    let secret = |key: &str| key.contains("password"); // libpq's sslpassword, too
    if pairs.iter().any(|(key, _)| secret(key)) {
        let safe = pairs
            .iter()
            .map(|(key, value)| (key, if secret(key) { MASK } else { value }));
        shown.query_pairs_mut().clear().extend_pairs(safe);
    }
    shown.into()
}

/// Copies the store at `url` into a new file, as of one moment, also while a gateway has it open. Returns the whole paths of
/// the store and of the copy, and how many bytes the copy has.
///
/// # Errors
/// A store that is no SQLite file, or not there; a file that is there already, or cannot be written.
pub async fn backup(url: &str, to: &std::path::Path) -> Result<(std::path::PathBuf, std::path::PathBuf, u64), Error> {
    match url.split_once("://") {
        #[cfg(feature = "sqlite")]
        Some(("sqlite", path)) => sqlite::backup(std::path::Path::new(path), to).await,
        _ => {
            let what = "backup copies a store of sqlite://PATH; what PostgreSQL keeps is backed up by pg_dump";
            Err(Error::new(ErrorCode::StoreUnavailable, what))
        }
    }
}

/// Opens the store at `url`: `sqlite://PATH`, `postgres://USER:PASSWORD@HOST/DATABASE` or `memory:`. Its schema is brought
/// up to date, and runs that a process which is no more left running are marked interrupted.
///
/// # Errors
/// A URL of no store, or a store that cannot be opened; its file is left as it was.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, Error> {
    open_counted(url, &Arc::default()).await
}

/// The same, by somebody who counts.
///
/// # Errors
/// As before.
pub async fn open_counted(url: &str, meters: &Arc<Meters>) -> Result<Arc<dyn Store>, Error> {
    let (within, meters) = (open_plain(url, meters).await?, meters.clone());
    Ok(Arc::new(counted::Counted { within, meters }))
}

async fn open_plain(url: &str, meters: &Arc<Meters>) -> Result<Arc<dyn Store>, Error> {
    let _ = meters; // only a database counts
    match url
        .split_once(':')
        .map_or((url, ""), |(scheme, rest)| (scheme, rest.trim_start_matches("//")))
    {
        ("memory", _) => Ok(Arc::new(memory::Memory::default())),
        #[cfg(feature = "sqlite")]
        ("sqlite", path) if !path.is_empty() => Ok(Arc::new(sqlite::Sqlite::open(path, meters).await?)),
        #[cfg(feature = "postgres")]
        ("postgres" | "postgresql", _) => Ok(Arc::new(postgres::Postgres::open(url, meters).await?)),
        _ => Err(Error::new(
            ErrorCode::StoreUnavailable,
            format!(
                "{:?} is no store; it is sqlite://PATH, postgres://USER:PASSWORD@HOST/DATABASE or memory:",
                masked(url)
            ),
        )),
    }
}

/// The relay through which gateways follow each other's runs, and the tally that they keep together.
pub type Together = (Arc<dyn relay::Relay>, Arc<dyn tally::Tally>);

/// Opens the relay and the tally at `url`; `memory:` is none. They need not be there yet.
///
/// # Errors
/// A URL of no relay.
pub fn open_relay(url: &str) -> Result<Option<Together>, Error> {
    match url.split_once(':') {
        Some(("memory", _)) => Ok(None),
        #[cfg(feature = "redis")]
        Some(("redis" | "rediss", _)) => {
            let (relay, tally) = redis::open(url)?;
            Ok(Some((Arc::new(relay), Arc::new(tally))))
        }
        _ => Err(Error::new(
            ErrorCode::StoreUnavailable,
            "run_log.url must be redis://[USER:PASSWORD@]HOST[:PORT] or memory:",
        )),
    }
}

/// Why something cannot be written, with its whole path, and as whom where that is the reason.
pub(crate) fn cannot_write(path: &std::path::Path, error: &std::io::Error) -> String {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};

    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let path = path.display();
    match (error.kind(), user_id()) {
        (PermissionDenied, Some(user)) => {
            format!("user id {user} cannot write {path}; give it to that user, or name another place ({error})")
        }
        (ReadOnlyFilesystem, _) => format!("{path} is on a file system that cannot be written ({error})"),
        _ => format!("{path} cannot be written ({error})"),
    }
}

/// The user that this process runs as.
fn user_id() -> Option<u32> {
    #[cfg(target_os = "linux")]
    return std::fs::metadata("/proc/self")
        .ok()
        .map(|own| std::os::unix::fs::MetadataExt::uid(&own));
    #[cfg(not(target_os = "linux"))]
    None
}

/// Makes a folder that is not there, for the owner only.
pub(crate) fn make_private(folder: &std::path::Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// The session is not the one that was loaded.
pub(crate) fn conflict() -> Error {
    Error::new(
        ErrorCode::SessionBusy,
        "The session was changed by somebody else while this run went on.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        for (url, shown) in [
            ("memory:", "memory:"),
            ("sqlite://data/a@b.db", "sqlite://data/a@b.db"),
            ("postgres://ada@db/chats", "postgres://ada@db/chats"),
            (
                "postgres://ada:canary@db:5433/chats?lease=5s",
                "postgres://ada:***@db:5433/chats?lease=5s",
            ),
            (
                "postgresql://db/chats?user=ada&password=canary&sslmode=require&sslpassword=canary",
                "postgresql://db/chats?user=ada&password=***&sslmode=require&sslpassword=***",
            ),
            ("postgres://ada:canary@db:notaport/x", "postgres:***"),
            ("postgress://ada:canary@db/x", "postgress://ada:***@db/x"),
            ("canary", "***:***"),
        ] {
            let url = StoreUrl(url.to_owned());
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("{shown:?}"));
            assert_eq!(serde_json::to_value(&url).unwrap(), shown);
        }
    }
}

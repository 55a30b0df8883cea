//! What is kept: sessions with their messages, runs with their results, and the files that runs made.
//!
//! A store knows words, not who asks for them over which wire. Everything that belongs together is written in one
//! transaction, and what has been acknowledged survives `kill -9`. A new store is one file and one row of [`open`].

use std::sync::Arc;

use crate::error::{Error, ErrorCode};

pub mod artifact;
pub mod blobs;
pub mod memory;
pub mod run;
pub mod session;
#[cfg(feature = "sqlite")]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;

pub use artifact::{ArtifactRecord, ArtifactStore};
pub use blobs::Blobs;
pub use run::{Begun, Entry, KEY_LIFE, RunEnd, RunRecord, RunStatus, RunStore};
pub use session::{Commit, MessageStatus, Session, SessionPage, SessionStore, StoredMessage};

/// Sessions, runs and the records of files together: they are written in the same transactions.
pub trait Store: SessionStore + RunStore + ArtifactStore {
    /// Whether it can be reached and written to.
    fn ready(&self) -> futures_util::future::BoxFuture<'_, Result<(), Error>>;
    /// Writes what is open and closes it.
    fn close(&self) -> futures_util::future::BoxFuture<'_, ()>;
}

/// Opens the store at `url`: `sqlite://PATH` or `memory:`. Its schema is brought up to date, and runs that another
/// process left running are marked interrupted.
///
/// # Errors
/// A URL of no store, or a store that cannot be opened; its file is left as it was.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, Error> {
    match url
        .split_once(':')
        .map_or((url, ""), |(scheme, rest)| (scheme, rest.trim_start_matches("//")))
    {
        ("memory", _) => Ok(Arc::new(memory::Memory::default())),
        #[cfg(feature = "sqlite")]
        ("sqlite", path) if !path.is_empty() => Ok(Arc::new(sqlite::Sqlite::open(path).await?)),
        _ => Err(Error::new(
            ErrorCode::StoreUnavailable,
            format!("{url:?} is no store; it is sqlite://PATH or memory:"),
        )),
    }
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

//! The file itself: who has it open, whether it is ours, and whether its name still means it.

use std::{
    fs::{File, Metadata},
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{Connection, SqliteConnection, migrate::Migrator, sqlite::SqliteConnectOptions};

/// How long somebody else may hold the file while it is looked at.
const BUSY: Duration = Duration::from_secs(5);

/// A file's name with an ending of SQLite's, or of ours.
fn beside(path: &str, ending: &str) -> PathBuf {
    PathBuf::from(format!("{path}{ending}"))
}

/// Takes the lock that says who has this file open; `None` if somebody else has. It goes with the process.
pub(super) fn lock(path: &str) -> std::io::Result<Option<File>> {
    let folder = Path::new(path).parent();
    if let Some(folder) = folder.filter(|folder| !folder.as_os_str().is_empty()) {
        crate::store::make_private(folder)?;
    }
    let name = beside(path, ".lock");
    let file = File::options().create(true).truncate(false).write(true).open(name)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Says why a file must be left alone: it is somebody else's, or of a later version. What is not there, or empty, or ours
/// may be opened. It is only looked at, so that it stays as it is to the last byte.
///
/// # Errors
/// The reason, or what kept it from being read.
pub(super) async fn look(path: &str, ours: &Migrator) -> Result<(), String> {
    let has_bytes = |path: &Path| std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() > 0);
    if !has_bytes(Path::new(path)) {
        return Ok(());
    }
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .create_if_missing(false)
        // Without a log to read there is nothing to make beside it either.
        .immutable(!has_bytes(&beside(path, "-wal")))
        .busy_timeout(BUSY);
    let unreadable = |error: sqlx::Error| format!("cannot be read: {error}");
    let mut db = SqliteConnection::connect_with(&options).await.map_err(unreadable)?;
    let looked = judge(&mut db, ours).await;
    let _ = db.close().await; // nothing was written
    looked.map_err(unreadable)?
}

/// Whether what is in a database is ours.
async fn judge(db: &mut SqliteConnection, ours: &Migrator) -> Result<Result<(), String>, sqlx::Error> {
    const HISTORY: &str = "_sqlx_migrations";
    let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut *db).await?;
    if tables.is_empty() {
        return Ok(Ok(()));
    }
    let foreign = || Ok(Err("is a database of another program".to_owned()));
    if !tables.iter().any(|name| name == HISTORY) {
        return foreign();
    }
    let applied = sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations ORDER BY version");
    let applied: Vec<(i64, Vec<u8>)> = applied.fetch_all(db).await?;
    if applied.is_empty() && tables.len() > 1 {
        return foreign();
    }
    for (version, checksum) in applied {
        let known = ours.iter().find(|step| step.version == version);
        if known.is_none_or(|step| *step.checksum != *checksum) {
            let other = format!("has a schema of another version: its step {version} is not known here");
            return Ok(Err(other));
        }
    }
    Ok(Ok(()))
}

/// The files that were opened. Whoever removes or replaces them while they are open leaves us writing what nobody will
/// find again.
pub(super) struct Opened(Vec<(PathBuf, Identity)>);

/// A file's device and its number there.
type Identity = (u64, u64);

impl Opened {
    /// What is there now; nothing of a database in memory.
    pub(super) fn at(path: &str) -> Self {
        let files = ["", "-wal"].map(|ending| beside(path, ending));
        let known = |path: PathBuf| identity(&path).map(|file| (path, file));
        Self(files.into_iter().filter_map(known).collect())
    }

    /// # Errors
    /// A name means another file than it did, or none.
    pub(super) fn check(&self) -> Result<(), sqlx::Error> {
        match self.0.iter().find(|(path, file)| identity(path) != Some(*file)) {
            None => Ok(()),
            Some((path, _)) => {
                let what = format!("{} is not the file that was opened", path.display());
                let error = std::io::Error::new(std::io::ErrorKind::StaleNetworkFileHandle, what);
                Err(sqlx::Error::Io(error))
            }
        }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().and_then(|file| number(&file))
}

#[cfg(unix)]
fn number(file: &Metadata) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    Some((file.dev(), file.ino()))
}

/// Elsewhere a file that is open cannot be removed.
#[cfg(not(unix))]
fn number(_: &Metadata) -> Option<Identity> {
    None
}

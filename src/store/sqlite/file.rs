//! The file itself: who has it open, whether it is ours, and whether its name still means it.

use std::{
    fs::{File, Metadata},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sqlx::{Connection, SqliteConnection, migrate::Migrator, sqlite::SqliteConnectOptions};

use crate::store::cannot_write;

/// How long somebody else may hold the file while it is looked at.
const BUSY: Duration = Duration::from_secs(5);

/// A file's name with an ending of SQLite's, or of ours.
fn beside(path: &str, ending: &str) -> PathBuf {
    PathBuf::from(format!("{path}{ending}"))
}

/// Takes the lock that says who has this file open; `None` if somebody else has. It goes with the process.
///
/// # Errors
/// What is in the way, with the folder or the file that it is about.
pub(super) fn lock(path: &str) -> Result<Option<File>, String> {
    let folder = Path::new(path).parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    crate::store::make_private(folder).map_err(|e| cannot_write(folder, &e))?;
    let name = beside(path, ".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&name);
    let file = file.map_err(|e| cannot_write(&name, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error.to_string()),
    }
}

/// Says that a database which is there must be writable.
///
/// # Errors
/// It is not.
pub(super) fn writable(path: &str) -> Result<(), String> {
    // Before SQLite has it open: closing it later would give up SQLite's locks.
    match File::options().write(true).open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(cannot_write(Path::new(path), &error)),
        _ => Ok(()),
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

/// The files that were opened. Whoever removes, replaces or cuts them while they are open leaves us writing what nobody
/// will find again.
pub(super) struct Opened {
    files: Vec<(PathBuf, Identity)>,
    /// The database, and the index of its log. Closed with the store and not before, because closing a file gives up
    /// every lock that this process has on it, SQLite's too.
    database: Option<File>,
    index: Option<File>,
    /// The greatest length of the database file that was seen, in bytes.
    longest: AtomicU64,
}

/// A file's device and its number there.
type Identity = (u64, u64);

/// What of a database's first page is looked at: its mark, the size of a page, and two counters that say whether the
/// number of pages is known.
const HEADER: usize = 100;
/// The header of the log, and of each page in it.
const LOG_HEADERS: (u64, u64) = (32, 24);
/// Where the log's index says how many pages of the log are committed.
const LOG_PAGES: u64 = 16;

impl Opened {
    /// What is there now; nothing of a database in memory.
    pub(super) fn at(path: &str) -> Self {
        let files = ["", "-wal"].map(|ending| beside(path, ending));
        let known = |path: PathBuf| identity(&path).map(|file| (path, file));
        Self {
            files: files.into_iter().filter_map(known).collect(),
            database: File::open(path).ok(),
            longest: AtomicU64::new(0),
            index: File::open(beside(path, "-shm")).ok(),
        }
    }

    /// How long the log beside the database is, in bytes.
    pub(super) fn log_length(&self) -> u64 {
        let log = self.files.get(1).and_then(|(path, _)| std::fs::metadata(path).ok());
        log.map_or(0, |log| log.len())
    }

    /// # Errors
    /// A name means another file than it did, or none, or a file lacks what was written to it.
    pub(super) fn check(&self) -> Result<(), sqlx::Error> {
        let stale = |path: &Path, what: &str| {
            let what = format!("{} {what}", path.display());
            let error = std::io::Error::new(std::io::ErrorKind::StaleNetworkFileHandle, what);
            Err(sqlx::Error::Io(error))
        };
        for (path, file) in &self.files {
            if identity(path) != Some(*file) {
                return stale(path, "is not the file that was opened");
            }
        }
        match (&self.files[..], self.page_size()) {
            ([(path, _), ..], Some(Err(what))) => stale(path, what),
            ([_, (path, _)], Some(Ok(page))) if self.lacks_log(path, page) => {
                stale(path, "is shorter than what was written to it")
            }
            _ => Ok(()),
        }
    }

    /// The size of the database's pages, as its file says, if the file did not become shorter. Its header is no measure
    /// of its length, because a checkpoint beside readers writes the header before some of the pages that it counts.
    fn page_size(&self) -> Option<Result<u64, &'static str>> {
        let database = self.database.as_ref()?;
        let length = database.metadata().ok()?.len();
        let mut header = [0; HEADER];
        if read_at(database, &mut header, 0).is_err() || !header.starts_with(b"SQLite format 3\0") {
            return Some(Err("is not the database any more that was opened"));
        }
        let page = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65_536,
            page => u64::from(page),
        };
        match length < self.longest.fetch_max(length, Ordering::Relaxed) {
            true => Some(Err("is shorter than what was written to it")),
            false => Some(Ok(page)),
        }
    }

    /// Whether the log is shorter than its index says.
    fn lacks_log(&self, log: &Path, page: u64) -> bool {
        let Some(index) = &self.index else { return false };
        let (mut pages, (header, each)) = ([0; 4], LOG_HEADERS);
        let known = read_at(index, &mut pages, LOG_PAGES);
        let pages = u64::from(u32::from_ne_bytes(pages));
        let length = std::fs::metadata(log).map_or(0, |log| log.len());
        known.is_ok() && pages > 0 && length < header + pages * (each + page)
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

/// Elsewhere a file that is open cannot be cut.
#[cfg(not(unix))]
fn read_at(_: &File, _: &mut [u8], _: u64) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
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

//! A copy of the store, as of one moment, while a gateway may have it open.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{
    error::{Error, ErrorCode},
    store::{cannot_write, sql::unavailable},
};

/// How long the copy may wait for a lock. Writers never keep it from reading.
const BUSY: Duration = Duration::from_secs(30);

/// Copies the database at `from` into the new file `to`. Only a reader of it is opened, which the gateway that has it open
/// does not notice. The copy is written beside `to` and takes its name when it is on the disk.
///
/// # Errors
/// See [`crate::store::backup`].
pub async fn backup(from: &Path, to: &Path) -> Result<(PathBuf, PathBuf, u64), Error> {
    let failed = |what: String| Error::new(ErrorCode::StoreUnavailable, what);
    let whole = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (from, to) = (whole(from), whole(to));
    if !from.is_file() {
        return Err(failed(format!("there is no store at {}", from.display())));
    }
    // The name is taken first, so that nothing that is there is written over, and nobody else takes it meanwhile.
    match private(&to) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(failed(format!(
                "{} is there already; a backup is a new file",
                to.display()
            )));
        }
        Err(error) => return Err(failed(cannot_write(&to, &error))),
    }
    let mut half = to.clone().into_os_string();
    half.push(format!(".{}-half", std::process::id()));
    let half = PathBuf::from(half);
    let copied = async {
        private(&half).map_err(|e| failed(cannot_write(&half, &e)))?;
        copy(&from, &half).await?;
        let done = File::open(&half).and_then(|file| {
            file.sync_all()?;
            fs::rename(&half, &to)?;
            let folder = to.parent().map(File::open).transpose()?;
            folder.map_or(Ok(()), |folder| folder.sync_all())?;
            file.metadata()
        });
        done.map(|file| file.len()).map_err(|e| failed(cannot_write(&to, &e)))
    };
    let copied = copied.await;
    if copied.is_err() {
        // What is left of an attempt helps nobody.
        let _ = (fs::remove_file(&half), fs::remove_file(&to));
    }
    Ok((from, to, copied?))
}

async fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let failed = |e: sqlx::Error| unavailable(&format!("the store {} cannot be copied", from.display()), e);
    let options = SqliteConnectOptions::new()
        .filename(from)
        .read_only(true)
        .create_if_missing(false)
        .busy_timeout(BUSY);
    let mut db = SqliteConnection::connect_with(&options).await.map_err(failed)?;
    let copied = sqlx::query("VACUUM INTO ?")
        .bind(to.to_string_lossy().into_owned())
        .execute(&mut db)
        .await;
    let _ = db.close().await; // nothing was written to it
    copied.map(drop).map_err(failed)
}

/// A new file, for the owner only.
fn private(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

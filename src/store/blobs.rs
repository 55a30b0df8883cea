//! The bytes of files that runs made: in a folder, in a cloud's object store, or in memory. The only place that knows
//! the crate `object_store`.
//!
//! An object's key is made of our id alone, never of a name that a client or a model chose, so nothing can leave the
//! place. A put is there as a whole or not at all, and in a folder it waits for the disk. Nothing here holds a whole file
//! to read it: pieces are of 8 KiB from a folder, and as the network brings them from a cloud.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload, local::LocalFileSystem, memory::InMemory,
    path::Path as Key,
};
use secrecy::SecretString;

use crate::{
    chat::ArtifactId,
    error::{Error, ErrorCode},
};

/// How long a file may take to be written.
const PUT: Duration = Duration::from_secs(30);
/// How long it may take until there is an answer to a request for a file.
const OPEN: Duration = Duration::from_secs(10);
/// How long a piece of it may take, once somebody wants it.
const PIECE: Duration = Duration::from_secs(30);
/// How long a file may take to be erased.
const ERASE: Duration = Duration::from_secs(10);

/// A file, piece by piece. It ends after exactly as many bytes as were asked for, or with an error.
pub type Pieces = BoxStream<'static, io::Result<Bytes>>;

/// The place.
pub struct Blobs(Place);

enum Place {
    Folder {
        path: PathBuf,
        /// There since the first file; a gateway that makes none leaves no folder behind.
        made: OnceLock<LocalFileSystem>,
    },
    Elsewhere {
        store: Arc<dyn ObjectStore>,
        prefix: Key,
    },
}

impl Blobs {
    /// The place at `url`: `file://PATH`, `memory:`, or a cloud's (`s3://BUCKET/PREFIX`, `gs://…`, `az://…`, or the
    /// `https://…` of one), whose credentials and settings are in `options`, named as its own tools name them in the
    /// environment (`AWS_REGION`). Does not reach out for it.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn open(url: &str, options: &[(String, SecretString)]) -> Result<Self, String> {
        if url == "memory:" {
            return Ok(Self(Place::Elsewhere {
                store: Arc::new(InMemory::new()),
                prefix: Key::default(),
            }));
        }
        let Some(path) = url.strip_prefix("file://") else {
            return cloud(url, options);
        };
        if path.is_empty() {
            return Err("file:// needs a path".to_owned());
        }
        let path = PathBuf::from(path);
        if path.exists() && !path.is_dir() {
            return Err(format!("{} is not a folder", path.display()));
        }
        let made = OnceLock::new();
        Ok(Self(Place::Folder { path, made }))
    }

    /// Sees whether files can be kept: a folder is made if it is not there, and written to. A place elsewhere is not
    /// reached out for.
    ///
    /// # Errors
    /// They cannot; the cause says why.
    pub async fn ready(&self) -> Result<(), Error> {
        let Place::Folder { path, .. } = &self.0 else {
            return Ok(());
        };
        let path = path.clone();
        let probe = move || {
            let name = path.join(format!(".probe-{}", uuid::Uuid::new_v4()));
            let written = super::make_private(&path)
                .and_then(|()| std::fs::write(&name, [0; 512]))
                .and_then(|()| std::fs::remove_file(&name));
            written.map_err(|error| {
                let _ = std::fs::remove_file(&name); // a disk that is full keeps the name
                super::cannot_write(&path, &error)
            })
        };
        match tokio::time::timeout(OPEN, tokio::task::spawn_blocking(probe)).await {
            Ok(Ok(written)) => written.map_err(broken),
            Ok(Err(error)) => Err(broken(error)),
            Err(_) => Err(broken("the folder did not answer in time")),
        }
    }

    /// Keeps a file.
    ///
    /// # Errors
    /// It could not be written in time, or not at all.
    pub async fn put(&self, id: ArtifactId, bytes: Bytes) -> Result<(), Error> {
        let put = async {
            let payload = PutPayload::from_bytes(bytes);
            match &self.0 {
                Place::Folder { path, made } => folder(path, made).await?.put(&key(id), payload).await,
                Place::Elsewhere { store, prefix } => store.put(&within(prefix, id), payload).await,
            }
        };
        match tokio::time::timeout(PUT, put).await {
            Ok(done) => done.map(drop).map_err(broken),
            Err(_) => Err(broken("it was not written in time")),
        }
    }

    /// The bytes of a file in `range`, which is within its `size`; `None` if there is no such file, or what is there is
    /// not the file that was kept.
    ///
    /// # Errors
    /// The place does not answer.
    pub async fn get(&self, id: ArtifactId, size: u64, range: Range<u64>) -> Result<Option<Pieces>, Error> {
        let length = range.end.saturating_sub(range.start);
        let options = GetOptions {
            range: (length > 0).then_some(GetRange::Bounded(range)), // no store takes an empty range
            ..GetOptions::default()
        };
        let get = async {
            match &self.0 {
                Place::Folder { path, made } => {
                    if !regular(&path.join(key(id).as_ref()), size).await {
                        return Ok(None);
                    }
                    folder(path, made).await?.get_opts(&key(id), options).await.map(Some)
                }
                Place::Elsewhere { store, prefix } => store.get_opts(&within(prefix, id), options).await.map(Some),
            }
        };
        let found = match tokio::time::timeout(OPEN, get).await {
            Ok(Ok(found)) => found.filter(|found| found.meta.size == size),
            Ok(Err(object_store::Error::NotFound { .. })) => None,
            Ok(Err(error)) => return Err(broken(error)),
            Err(_) => return Err(broken("there was no answer in time")),
        };
        Ok(found.map(|found| exactly(length, found.into_stream())))
    }

    /// Erases a file, and what a write of it that was cut off has left. It need not be there.
    ///
    /// # Errors
    /// It may still be there.
    pub async fn erase(&self, id: ArtifactId) -> Result<(), Error> {
        let erase = async {
            match &self.0 {
                Place::Folder { path, made } => {
                    if made.get().is_none() && !path.exists() {
                        return Ok(());
                    }
                    // Where `object_store` writes before it renames; it does not address such names itself.
                    let half = path.join(format!("{}#1", key(id)));
                    match tokio::fs::remove_file(half).await {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(generic(error)),
                        _ => {}
                    }
                    folder(path, made).await?.delete(&key(id)).await
                }
                Place::Elsewhere { store, prefix } => store.delete(&within(prefix, id)).await,
            }
        };
        match tokio::time::timeout(ERASE, erase).await {
            Ok(Ok(()) | Err(object_store::Error::NotFound { .. })) => Ok(()),
            Ok(Err(error)) => Err(broken(error)),
            Err(_) => Err(broken("it was not erased in time")),
        }
    }
}

/// Where a file is: by our id, in one of 256 folders.
fn key(id: ArtifactId) -> Key {
    let id = id.to_string();
    Key::from_iter([&id[..2], &id])
}

fn within(prefix: &Key, id: ArtifactId) -> Key {
    prefix.parts().chain(key(id).parts()).collect()
}

/// The folder, made if it is not there, for the owner only.
async fn folder<'a>(path: &Path, made: &'a OnceLock<LocalFileSystem>) -> object_store::Result<&'a LocalFileSystem> {
    if let Some(made) = made.get() {
        return Ok(made);
    }
    let path = path.to_owned();
    let make = tokio::task::spawn_blocking(move || {
        super::make_private(&path).map_err(generic)?;
        LocalFileSystem::new_with_prefix(&path)
    });
    let store = make.await??.with_fsync(true);
    Ok(made.get_or_init(|| store))
}

/// Whether a regular file of that size is there, in a folder that is one: a link that somebody put there is not
/// followed, and a pipe is not waited for.
async fn regular(path: &Path, size: u64) -> bool {
    let folder = match path.parent() {
        Some(folder) => tokio::fs::symlink_metadata(folder)
            .await
            .is_ok_and(|found| found.is_dir()),
        None => false,
    };
    let file = tokio::fs::symlink_metadata(path).await;
    folder && file.is_ok_and(|found| found.is_file() && found.len() == size)
}

/// A cloud's place.
#[cfg(feature = "cloud")]
fn cloud(url: &str, options: &[(String, SecretString)]) -> Result<Blobs, String> {
    use secrecy::ExposeSecret;

    let parsed = url::Url::parse(url).map_err(|_| not_a_place(url))?;
    if !matches!(parsed.scheme(), "s3" | "s3a" | "gs" | "az" | "abfs" | "abfss" | "https") {
        return Err(not_a_place(url));
    }
    if parsed.password().is_some() || parsed.query().is_some() {
        return Err("credentials have no place in the URL; they are read from the environment".to_owned());
    }
    // A slow client makes a download long: what counts is that each piece comes in time.
    let patience = [("timeout", "24 hours"), ("read_timeout", "30 seconds")];
    let told = options
        .iter()
        .map(|(name, value)| (name.as_str(), value.expose_secret()));
    let (store, prefix) =
        object_store::parse_url_opts(&parsed, patience.into_iter().chain(told)).map_err(|e| e.to_string())?;
    Ok(Blobs(Place::Elsewhere {
        store: Arc::from(store),
        prefix,
    }))
}

#[cfg(not(feature = "cloud"))]
fn cloud(url: &str, _: &[(String, SecretString)]) -> Result<Blobs, String> {
    Err(not_a_place(url))
}

fn not_a_place(url: &str) -> String {
    let clouds = if cfg!(feature = "cloud") {
        ", s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX"
    } else {
        ""
    };
    // What has an @ may have a password before it.
    let shown = if url.contains('@') { "this" } else { &format!("{url:?}") };
    format!("{shown} is no place for files; it is file://PATH{clouds} or memory:")
}

/// Exactly `length` bytes: no more when the file grew, and an error, not an end, when it shrank.
fn exactly(length: u64, mut pieces: BoxStream<'static, object_store::Result<Bytes>>) -> Pieces {
    let stream = async_stream::try_stream! {
        let mut left = length;
        while left > 0 {
            let piece = tokio::time::timeout(PIECE, pieces.next()).await?;
            let mut piece = piece.ok_or(io::ErrorKind::UnexpectedEof)?.map_err(io::Error::other)?;
            if piece.is_empty() {
                // So a folder's file reads, for ever, that became shorter.
                Err(io::ErrorKind::UnexpectedEof)?;
            }
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            left -= piece.len() as u64;
            yield piece;
        }
    };
    stream.boxed()
}

fn generic(error: io::Error) -> object_store::Error {
    object_store::Error::Generic {
        store: "folder",
        source: error.into(),
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let message = "Files cannot be read or written at the moment.";
    Error::new(ErrorCode::StoreUnavailable, message).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(blobs: &Blobs, id: ArtifactId, size: u64, range: Range<u64>) -> Option<io::Result<Vec<u8>>> {
        let mut pieces = blobs.get(id, size, range).await.unwrap()?;
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(bytes))
    }

    fn in_folder() -> (Blobs, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&format!("file://{}/a/b", folder.path().display()), &[]).unwrap();
        (blobs, folder)
    }

    #[tokio::test]
    async fn a_file_comes_back_whole_and_in_parts_and_goes_for_good() {
        let (blobs, folder) = in_folder();
        assert!(
            !folder.path().join("a").exists(),
            "nothing is made before there is a file"
        );
        for blobs in [blobs, Blobs::open("memory:", &[]).unwrap()] {
            let (id, bytes) = (ArtifactId::generate(), Bytes::from(vec![7; 100_000]));
            assert!(blobs.erase(id).await.is_ok(), "what is not there is erased");
            assert!(all(&blobs, id, 100_000, 0..100_000).await.is_none());
            blobs.put(id, bytes.clone()).await.unwrap();
            assert_eq!(all(&blobs, id, 100_000, 0..100_000).await.unwrap().unwrap(), bytes);
            assert_eq!(all(&blobs, id, 100_000, 9..10).await.unwrap().unwrap(), [7]);
            let empty = ArtifactId::generate();
            blobs.put(empty, Bytes::new()).await.unwrap();
            assert!(all(&blobs, empty, 0, 0..0).await.unwrap().unwrap().is_empty());
            blobs.erase(id).await.unwrap();
            blobs.erase(id).await.unwrap();
            assert!(all(&blobs, id, 100_000, 0..1).await.is_none());
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(folder.path().join("a/b"))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o700);
        }
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn what_somebody_else_put_there_is_not_served() {
        let (blobs, folder) = in_folder();
        let id = ArtifactId::generate();
        blobs.put(id, Bytes::from_static(b"12345")).await.unwrap();
        let path = folder.path().join("a/b").join(key(id).as_ref());

        // Grown between the kept size and now; grown and cut while it is read.
        std::fs::write(&path, "123456").unwrap();
        assert!(all(&blobs, id, 5, 0..5).await.is_none());
        let large = vec![1; 50_000];
        blobs.put(id, large.clone().into()).await.unwrap();
        let mut pieces = blobs.get(id, 50_000, 0..50_000).await.unwrap().unwrap();
        assert!(pieces.next().await.unwrap().unwrap().len() <= 64 << 10);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(10_000)
            .unwrap();
        let mut last = pieces.next().await.unwrap();
        while last.is_ok() {
            last = pieces.next().await.expect("an error before the end");
        }
        std::fs::write(&path, &large).unwrap();
        let mut pieces = blobs.get(id, 50_000, 40_000..50_000).await.unwrap().unwrap();
        std::fs::write(&path, [large.clone(), large.clone()].concat()).unwrap();
        let mut read = 0;
        while let Some(piece) = pieces.next().await {
            read += piece.unwrap().len();
        }
        assert_eq!(read, 10_000);

        // A link to a file of the right size, a pipe, a folder that is a link.
        let elsewhere = folder.path().join("elsewhere");
        std::fs::write(&elsewhere, "12345").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(all(&blobs, id, 5, 0..5).await.is_none());
        std::fs::remove_file(&path).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(pipe.success() && all(&blobs, id, 0, 0..0).await.is_none());
        std::fs::remove_file(&path).unwrap();
        let (real, linked) = (folder.path().join("real"), path.parent().unwrap());
        std::fs::create_dir(&real).unwrap();
        std::fs::write(real.join(id.to_string()), "12345").unwrap();
        std::fs::remove_dir(linked).unwrap();
        std::os::unix::fs::symlink(&real, linked).unwrap();
        assert!(all(&blobs, id, 5, 0..5).await.is_none());
    }

    #[tokio::test]
    async fn a_write_that_was_cut_off_leaves_nothing() {
        let (blobs, folder) = in_folder();
        let id = ArtifactId::generate();
        blobs.put(id, Bytes::from_static(b"1")).await.unwrap();
        let path = folder.path().join("a/b").join(key(id).as_ref());
        let half = PathBuf::from(format!("{}#1", path.display()));
        std::fs::rename(&path, &half).unwrap();
        blobs.erase(id).await.unwrap();
        assert!(!half.exists());
    }

    #[test]
    fn a_place_is_told_by_its_url() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for wrong in [
            "",
            "data",
            "file://",
            "ftp://x/y",
            "http://example.com/x",
            &format!("file://{}", file.path().display()),
        ] {
            assert!(Blobs::open(wrong, &[]).is_err(), "{wrong}");
            let with_password = wrong.replace("://", "://me:secret@");
            let told = Blobs::open(&with_password, &[]).err().unwrap_or_default();
            assert!(!told.contains("secret") || wrong.starts_with("file:"), "{told}");
        }
        #[cfg(feature = "cloud")]
        {
            let aws = [
                ("AWS_REGION", "eu-central-1"),
                ("AWS_ACCESS_KEY_ID", "a"),
                ("AWS_SECRET_ACCESS_KEY", "b"),
                ("AWS_HOME", "c"),
            ];
            let aws = aws.map(|(name, value)| (name.to_owned(), SecretString::from(value)));
            let blobs = Blobs::open("s3://bucket/some/prefix", &aws).unwrap();
            let Place::Elsewhere { prefix, .. } = &blobs.0 else {
                panic!()
            };
            let id = ArtifactId::generate();
            assert_eq!(
                within(prefix, id).as_ref(),
                format!("some/prefix/{}/{id}", &id.to_string()[..2])
            );
            assert!(Blobs::open("s3://key:secret@bucket", &aws).is_err());
        }
    }
}

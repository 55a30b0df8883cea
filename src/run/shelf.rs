//! Where the files are kept that a run's tools make; and how they are found, and erased, later.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytesize::ByteSize;
use futures_util::{StreamExt, future::BoxFuture, stream};

use super::{Run, Runs};
use crate::{
    agent,
    chat::{Artifact, ArtifactId, Principal, RunId, SessionId},
    error::Error,
    store::{ArtifactRecord, Blobs, Store, artifact::Due},
    tool::File,
};

/// How long a file's record may be pending, in milliseconds: longer than writing its bytes can take.
const PENDING: i64 = 10 * 60 * 1000;
/// The longest name, in characters.
const MAX_NAME: usize = 128;
/// How often what is due is swept.
const SWEEP: Duration = Duration::from_secs(60);
/// How long whoever erases a session waits for the bytes of its files to be erased too.
const ERASED: Duration = Duration::from_secs(5);
/// How long a run's end may wait for the life of its files to be shortened.
const SHORTEN: Duration = Duration::from_secs(1);
/// How many records a sweep takes at a time, and how many files it erases at a time.
const PAGE: (u32, usize) = (100, 8);

/// Where files are kept, and how many, and how large they may be.
pub struct Artifacts {
    /// Their bytes.
    pub blobs: Blobs,
    /// The limits.
    pub limits: ArtifactLimits,
    /// What the address of a file begins with; may be empty.
    pub public_url: String,
}

/// The limits of the files that runs make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArtifactLimits {
    /// The largest file, in bytes.
    pub max_size: usize,
    /// The most files of one run.
    pub max_per_run: usize,
}

/// Keeps the files of one run.
pub(super) struct Shelf {
    artifacts: Arc<Artifacts>,
    store: Arc<dyn Store>,
    principal: Principal,
    session_id: Option<SessionId>,
    run_id: RunId,
    /// How long the files of a run that is not stored can be had if nobody says when it ended, in milliseconds.
    life: i64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// Files that are kept, or may get kept.
    places: usize,
    files: Vec<Artifact>,
}

impl Shelf {
    /// What has been kept so far, in that order.
    pub(super) fn kept(&self) -> Vec<Artifact> {
        self.books().files.clone()
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a file; when the future is dropped, what it wrote is swept later. `Ok(None)`: its session is gone.
    async fn write(&self, file: File) -> Result<Option<Artifact>, Error> {
        let bytes = file.bytes.clone();
        let hashed = tokio::task::spawn_blocking(move || sha256(&bytes)).await; // a large file takes some milliseconds
        let mut artifact = Artifact::new(
            ArtifactId::generate(),
            plain_name(&file.name),
            media_type(&file.media_type),
            file.bytes.len() as u64,
            hashed.map_err(Error::internal)?,
        );
        let now = self.store.now();
        artifact.url.insert_str(0, &self.artifacts.public_url);
        let record = ArtifactRecord {
            artifact,
            principal: self.principal.clone(),
            session_id: self.session_id.clone(),
            run_id: self.run_id,
            created_at: now,
        };
        if !self.store.announce(&record, now.saturating_add(PENDING)).await? {
            return Ok(None);
        }
        self.artifacts.blobs.put(record.artifact.id, file.bytes).await?;
        let erase_after = match self.session_id {
            Some(_) => None,
            None => Some(now.saturating_add(self.life)),
        };
        if !self.store.keep(&record, erase_after).await? {
            // Nobody will ever be shown it. If this fails, the sweep does it.
            let _ = self.artifacts.blobs.erase(record.artifact.id).await;
            return Ok(None);
        }
        Ok(Some(record.artifact))
    }
}

impl agent::Shelf for Shelf {
    fn keep(&self, file: File) -> BoxFuture<'_, Result<Artifact, String>> {
        Box::pin(async move {
            let limits = self.artifacts.limits;
            if file.bytes.len() > limits.max_size {
                let size = |bytes: usize| ByteSize(bytes as u64);
                let (is, may) = (size(file.bytes.len()), size(limits.max_size));
                return Err(format!("it has {is}, and a file may have {may}"));
            }
            {
                let mut kept = self.books();
                if kept.places >= limits.max_per_run {
                    let most = limits.max_per_run;
                    return Err(format!("this answer has {most} files already, which is the most"));
                }
                kept.places += 1;
            }
            let written = self.write(file).await;
            let mut kept = self.books();
            match written {
                Ok(Some(artifact)) => {
                    kept.files.push(artifact.clone());
                    Ok(artifact)
                }
                Ok(None) => {
                    kept.places -= 1;
                    Err("the conversation was erased meanwhile".to_owned())
                }
                Err(error) => {
                    kept.places -= 1;
                    let cause = error.causes();
                    tracing::warn!(run_id = %self.run_id, cause, "a file that a tool made could not be kept");
                    Err("files cannot be written at the moment".to_owned())
                }
            }
        })
    }
}

impl Runs {
    /// The shelf of a run.
    pub(super) fn shelf(&self, run: &Run) -> Shelf {
        let life = self.limits.deadline.saturating_add(self.limits.replay_window);
        Shelf {
            artifacts: self.artifacts.clone(),
            store: self.store.clone(),
            principal: run.principal.clone(),
            session_id: run.session_id.clone(),
            run_id: run.id,
            life: i64::try_from(life.as_millis()).unwrap_or(i64::MAX),
            kept: Mutex::default(),
        }
    }

    /// Has the files of a run that is not stored go with the run's replay window. If that cannot be written, they go a
    /// run's longest time later.
    pub(super) async fn shorten_files(&self, run: &Run, files: &[Artifact], ended_at: i64) {
        if run.session_id.is_some() || files.is_empty() {
            return;
        }
        let window = i64::try_from(self.limits.replay_window.as_millis()).unwrap_or(i64::MAX);
        let ids: Vec<ArtifactId> = files.iter().map(|file| file.id).collect();
        let shortened = self.store.shorten(&ids, ended_at.saturating_add(window));
        if !matches!(tokio::time::timeout(SHORTEN, shortened).await, Ok(Ok(()))) {
            tracing::debug!(run_id = %run.id, "the files of a run that is not stored are kept for longer than it");
        }
    }

    /// A file of this principal's.
    ///
    /// # Errors
    /// `not_found`, and the store's.
    pub async fn artifact(&self, principal: &Principal, id: ArtifactId) -> Result<Artifact, Error> {
        let found = self.store.artifact(principal, id).await?;
        Ok(found.ok_or_else(Error::not_found)?.artifact)
    }

    /// Erases the files whose time is over, or whose session was erased; now, and every minute, for ever.
    pub async fn sweep_artifacts(&self) {
        let mut clock = tokio::time::interval(SWEEP);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            self.erase_due().await;
        }
    }

    /// The same once, for whoever waits for it; not for ever.
    pub(super) async fn erase_due_soon(&self) {
        let _ = tokio::time::timeout(ERASED, self.erase_due()).await; // what is left is swept later
    }

    async fn erase_due(&self) {
        let now = self.store.now();
        let mut after = None;
        loop {
            let due = match self.store.due(now, after, PAGE.0).await {
                Ok(due) => due,
                Err(error) => return tracing::warn!(cause = error.causes(), "files to erase could not be found"),
            };
            let Some(last) = due.last() else { return };
            after = Some(*last);
            let count = due.len();
            let gone: Vec<Due> = stream::iter(due)
                .map(async |due| match self.artifacts.blobs.erase(due.id).await {
                    Ok(()) => Some(due),
                    Err(error) => {
                        tracing::warn!(artifact_id = %due.id, cause = error.causes(), "a file could not be erased");
                        None
                    }
                })
                .buffer_unordered(PAGE.1)
                .filter_map(std::future::ready)
                .collect()
                .await;
            if let Err(error) = self.store.forget(&gone).await {
                return tracing::warn!(
                    cause = error.causes(),
                    "the records of erased files could not be erased"
                );
            }
            // A place that erases none of a whole page will not erase the next one either.
            if count < PAGE.0 as usize || gone.is_empty() {
                return;
            }
        }
    }
}

/// A file's name, made harmless: no path, nothing that cannot be seen or turns text around, and not too long. It is only
/// told, never used as a path.
#[must_use]
pub fn plain_name(told: &str) -> String {
    let last = told.rsplit(['/', '\\']).next().unwrap_or_default();
    let seen: String = last.chars().filter(|c| !invisible(*c)).collect();
    let seen = seen.trim();
    let name = if seen.chars().count() <= MAX_NAME {
        seen.to_owned()
    } else {
        // What kind of file it is stands at the end.
        let ending = seen.rfind('.').map_or("", |dot| &seen[dot..]);
        let ending = if ending.chars().count() <= 16 { ending } else { "" };
        let stem: String = seen.chars().take(MAX_NAME - ending.chars().count()).collect();
        stem.trim_end().to_owned() + ending
    };
    if name.chars().all(|c| c == '.') {
        return "file".to_owned();
    }
    name
}

/// Control characters, line separators, and what changes the direction of the text around it or has no width.
fn invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{AD}' | '\u{61C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}')
        || matches!(c, '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

/// A media type, without what a header could not carry.
fn media_type(told: &str) -> String {
    let told = told.trim();
    let plain = told.len() <= 127 && told.bytes().all(|b| (b' '..=b'~').contains(&b));
    match told.split_once('/') {
        Some((kind, rest)) if plain && !kind.is_empty() && !rest.is_empty() => told.to_owned(),
        _ => "application/octet-stream".to_owned(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // a string takes everything
        hex
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    use crate::{
        agent::{Agents, Shelf as _},
        provider::Providers,
        run::{Limits, OnCancel, OnDisconnect, log::Log},
        store::{Entry, RunRecord, RunStatus, SessionClaim, memory::Memory, relay::Relay},
    };

    const LIFE: Duration = Duration::from_secs(60);

    fn runs() -> Arc<Runs> {
        beside(Arc::new(Memory::default()), None)
    }

    /// A gateway's runs, beside a store and a relay that others may have too.
    pub(in crate::run) fn beside(store: Arc<dyn crate::store::Store>, relay: Option<Arc<dyn Relay>>) -> Arc<Runs> {
        let agents = Agents {
            all: std::collections::BTreeMap::new(),
            default: String::new(),
        };
        let artifacts = Artifacts {
            blobs: Blobs::open("memory:", &[]).unwrap(),
            limits: ArtifactLimits {
                max_size: 100,
                max_per_run: 2,
            },
            public_url: String::new(),
        };
        let limits = Limits {
            deadline: LIFE,
            replay_window: LIFE,
            max_output: 1,
            memory_limit: 1,
            max_runs: 0,
            max_history_tokens: 1,
            max_history_bytes: 1 << 20,
            memory: 8 << 20,
            on_cancel: OnCancel::Keep,
            queue_patience: LIFE,
        };
        let providers = Providers::new(vec![], &Arc::default()).unwrap();
        let tools = crate::tool::Tools::new(crate::tool::ToolSettings::default()).unwrap();
        let tools = Arc::new(tools);
        let others = crate::run::Others {
            relay,
            ..crate::run::Others::default()
        };
        Runs::new(
            (agents, providers, tools),
            store,
            artifacts,
            others,
            limits,
            Default::default(),
        )
    }

    pub(in crate::run) async fn run(runs: &Runs, session: Option<&str>) -> Arc<Run> {
        let session: Option<SessionId> = session.map(|id| id.parse().unwrap());
        let record = RunRecord {
            id: RunId::new(),
            principal: Principal::named("ada"),
            session_id: session.clone().unwrap_or_else(SessionId::generate),
            agent: "a".into(),
            model: "m/m".into(),
            metadata: std::collections::BTreeMap::new(),
            created_at: 0,
            idempotency: None,
            status: RunStatus::Running,
            end: None,
        };
        if session.is_some() {
            runs.store
                .begin(&record, SessionClaim::new("u", Entry::Alone))
                .await
                .unwrap();
        }
        Arc::new(Run {
            id: record.id,
            principal: record.principal,
            session_id: session,
            agent: record.agent,
            model: record.model,
            metadata: record.metadata,
            created_at: 0,
            began: tokio::time::Instant::now(),
            log: Log::new(0, Arc::default()),
            on_disconnect: OnDisconnect::Continue,
            idempotency: None,
            cancel: tokio_util::sync::CancellationToken::new(),
            over: tokio_util::sync::CancellationToken::new(),
            request_id: None,
            fence: crate::store::lease::Fence::default(),
            mirrored: crate::run::fleet::Mirrored::default(),
            ended: std::sync::OnceLock::new(),
            stored: None,
        })
    }

    fn file(bytes: &'static str) -> File {
        File {
            name: "a/b.txt".into(),
            media_type: "text/plain".into(),
            bytes: bytes.into(),
        }
    }

    #[tokio::test]
    async fn a_file_is_kept_with_its_session_and_goes_with_it() {
        let runs = runs();
        let shelf = runs.shelf(&*run(&runs, Some("s")).await);
        let made = shelf.keep(file("hello")).await.unwrap();
        assert_eq!((made.name.as_str(), made.size), ("b.txt", 5));
        assert_eq!(made.sha256, sha256(b"hello"));
        assert_eq!(made.url, format!("/artifacts/{}", made.id));
        assert_eq!(shelf.kept(), std::slice::from_ref(&made));
        let ada = Principal::named("ada");
        assert_eq!(runs.artifact(&ada, made.id).await.unwrap(), made);
        assert!(runs.artifact(&Principal::anonymous(), made.id).await.is_err());
        runs.erase(&ada, &"s".parse().unwrap()).await.unwrap();
        assert!(runs.artifact(&ada, made.id).await.is_err());
        assert!(runs.artifacts.blobs.get(made.id, 5, 0..5).await.unwrap().is_none());
        assert!(shelf.keep(file("late")).await.unwrap_err().contains("erased meanwhile"));
    }

    #[tokio::test]
    async fn a_run_has_its_limits_and_what_was_refused_takes_no_place() {
        let runs = runs();
        let shelf = runs.shelf(&*run(&runs, None).await);
        let large = File {
            bytes: vec![0; 101].into(),
            ..file("")
        };
        assert_eq!(
            shelf.keep(large).await.unwrap_err(),
            "it has 101 B, and a file may have 100 B"
        );
        let (one, two) = (shelf.keep(file("1")).await, shelf.keep(file("2")).await);
        assert!(one.is_ok() && two.is_ok());
        assert!(shelf.keep(file("3")).await.unwrap_err().contains("2 files already"));
        assert_eq!(shelf.kept().len(), 2);
    }

    #[tokio::test]
    async fn a_file_of_a_run_that_is_not_stored_is_there_as_long_as_the_run() {
        let runs = runs();
        let shelf = runs.shelf(&*run(&runs, None).await);
        let made = shelf.keep(file("1")).await.unwrap();
        assert!(runs.artifact(&Principal::named("ada"), made.id).await.is_ok());
        let now = runs.store.now();
        let life = 2 * LIFE.as_millis() as i64;
        assert!(runs.store.due(now + life - 10_000, None, 9).await.unwrap().is_empty());
        assert_eq!(runs.store.due(now + life + 10, None, 9).await.unwrap()[0].id, made.id);
    }

    #[tokio::test]
    async fn a_file_of_a_run_that_is_not_stored_goes_with_the_runs_window() {
        let runs = runs();
        let run = run(&runs, None).await;
        let shelf = runs.shelf(&run);
        let made = shelf.keep(file("1")).await.unwrap();
        let ended_at = jiff::Timestamp::now().as_millisecond();
        runs.shorten_files(&run, &shelf.kept(), ended_at).await;
        let window = LIFE.as_millis() as i64;
        assert!(runs.store.due(ended_at + window - 1, None, 9).await.unwrap().is_empty());
        assert_eq!(runs.store.due(ended_at + window, None, 9).await.unwrap()[0].id, made.id);
    }

    #[tokio::test]
    async fn a_file_whose_writing_was_cut_off_is_shown_to_nobody_and_swept() {
        let runs = runs();
        let run = run(&runs, Some("s")).await;
        let record = ArtifactRecord {
            artifact: Artifact::new(ArtifactId::generate(), "a".into(), "a/b".into(), 1, "0".into()),
            principal: run.principal.clone(),
            session_id: run.session_id.clone(),
            run_id: run.id,
            created_at: 0,
        };
        let id = record.artifact.id;
        let now = runs.store.now();
        assert!(runs.store.announce(&record, now - 1).await.unwrap());
        runs.artifacts.blobs.put(id, "1".into()).await.unwrap();
        assert!(runs.artifact(&run.principal, id).await.is_err());
        runs.erase_due().await;
        assert!(runs.artifacts.blobs.get(id, 1, 0..1).await.unwrap().is_none());
        assert!(runs.store.due(i64::MAX, None, 9).await.unwrap().is_empty());
        assert!(
            runs.store
                .session(&run.principal, &"s".parse().unwrap())
                .await
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn a_name_is_made_harmless() {
        let long = format!("{}.tar", "é".repeat(300));
        for (told, made) in [
            ("report.csv", "report.csv"),
            ("../../etc/passwd", "passwd"),
            ("C:\\temp\\a b.txt", "a b.txt"),
            ("/", "file"),
            ("", "file"),
            ("  ", "file"),
            ("..", "file"),
            ("a/..", "file"),
            ("x\r\nSet-Cookie: a=b", "xSet-Cookie: a=b"),
            ("say \"hi\".txt", "say \"hi\".txt"),
            ("gpj.\u{202E}exe\u{2066}", "gpj.exe"),
            ("in\u{AD}vo\u{E0041}ice\u{206A}\u{180E}.pdf", "invoice.pdf"),
            ("\u{202E}..\u{200B}", "file"),
            ("a\0b\u{7f}\u{85}\u{feff}", "ab"),
            ("CON", "CON"),
            (".bashrc", ".bashrc"),
            ("日本語.txt", "日本語.txt"),
            (&long, &format!("{}.tar", "é".repeat(124))),
            (&"x".repeat(129), &"x".repeat(128)),
            (&format!("{} y", "x".repeat(127)), &"x".repeat(127)),
            (&format!(".{}y", " ".repeat(127)), "file"),
        ] {
            assert_eq!(plain_name(told), made, "{told:?}");
        }
    }

    #[test]
    fn a_media_type_is_one() {
        for (told, made) in [
            ("text/plain", "text/plain"),
            (" text/csv; header=present ", "text/csv; header=present"),
            ("", "application/octet-stream"),
            ("text", "application/octet-stream"),
            ("text/", "application/octet-stream"),
            ("text/plain\r\nX: y", "application/octet-stream"),
            ("text/é", "application/octet-stream"),
        ] {
            assert_eq!(media_type(told), made, "{told:?}");
        }
        assert_eq!(
            sha256(b""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}

//! That this gateway lives, said by a row, and what becomes of the runs of those that do not.
//!
//! Every gateway renews its row a few times per lease, by the database's clock, so that no two clocks need agree. A run
//! whose gateway's row is too old is dead: whoever notices first marks it interrupted, which frees its session and its
//! key. A gateway that was only slow finds out when it wants to write such a run's end, and is refused.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{chat::RunId, meters::Meters};

/// How often a gateway says that it lives, per lease.
const BEATS: u32 = 5;
/// The most runs whose end is owed; each is a run whose last write was not answered.
const STRAYS: usize = 10_000;
/// What marks a run as dead, by the database's clock.
macro_rules! interrupt {
    ($which:literal) => {
        concat!(
            "UPDATE runs SET status = 'interrupted', binds = false, \
             ended_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint WHERE status = 'running' AND ",
            $which
        )
    };
}

/// This gateway, as far as the others are concerned.
pub(super) struct Replica {
    pub(super) id: String,
    pub(super) lease: Duration,
    pub(super) meters: Arc<Meters>,
    registrations: Arc<AtomicU64>,
    strays: Strays,
    closing: CancellationToken,
    task: TaskTracker,
    /// Ends the task with the store, also with one that nobody closed.
    _dropped: DropGuard,
}

impl Replica {
    /// Says for the first time that this gateway lives, buries who does not, and goes on doing so.
    pub(super) async fn begin(
        options: PgConnectOptions,
        lease: Duration,
        meters: Arc<Meters>,
    ) -> Result<Arc<Self>, sqlx::Error> {
        let closing = CancellationToken::new();
        let replica = Arc::new(Self {
            id: uuid::Uuid::new_v4().to_string(),
            lease,
            meters,
            registrations: Arc::default(),
            strays: Strays::default(),
            task: TaskTracker::new(),
            _dropped: closing.clone().drop_guard(),
            closing,
        });
        let mut life = Life {
            id: replica.id.clone(),
            lease,
            meters: replica.meters.clone(),
            registrations: replica.registrations.clone(),
            strays: replica.strays.clone(),
            options,
            db: None,
        };
        life.go_on().await?;
        replica.task.spawn(life.live(replica.closing.clone()));
        replica.task.close();
        Ok(replica)
    }

    /// Renews the row.
    pub(super) async fn beat(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        beat(&self.id, &self.registrations, db).await.map(drop)
    }

    /// The number of times that this gateway's row was new: more than once where others had given it up.
    pub(super) fn registrations(&self) -> u64 {
        self.registrations.load(Ordering::Relaxed)
    }

    /// Notes that nobody knows whether a run's last write was done, and nobody here waits for it any more.
    pub(super) fn owe(&self, run: RunId) {
        self.meters.commit_unknown();
        let mut strays = self.strays.lock();
        if strays.len() < STRAYS {
            strays.insert(run, Instant::now());
        }
    }

    /// Notes that somebody is taking care of a run.
    pub(super) fn owned(&self, run: RunId) {
        self.strays.lock().remove(&run);
    }

    /// Says that this gateway is no more. What it still runs is interrupted.
    pub(super) async fn end(&self) {
        self.closing.cancel();
        self.task.wait().await;
    }
}

/// Runs whose last write failed or was given up on: in the table they may still be running, and hold a session that
/// nobody will ever let go.
#[derive(Clone, Default)]
struct Strays(Arc<Mutex<HashMap<RunId, Instant>>>);

impl Strays {
    fn lock(&self) -> MutexGuard<'_, HashMap<RunId, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the task has: a connection of its own, so that a gateway with much to write does not seem dead.
struct Life {
    id: String,
    lease: Duration,
    meters: Arc<Meters>,
    registrations: Arc<AtomicU64>,
    strays: Strays,
    options: PgConnectOptions,
    db: Option<PgConnection>,
}

impl Life {
    async fn live(mut self, closing: CancellationToken) {
        let mut clock = tokio::time::interval(self.lease / BEATS);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                () = closing.cancelled() => break,
                _ = clock.tick() => {}
            }
            match (self.go_on().await, failing) {
                (Ok(()), false) | (Err(_), true) => {}
                (Ok(()), true) => {
                    failing = false;
                    tracing::info!("the store can be written again");
                }
                (Err(error), false) => {
                    failing = true;
                    tracing::warn!(%error, "the store cannot be told that this gateway lives; others may declare its runs dead");
                }
            }
        }
        if let Err(error) = self.die().await {
            tracing::warn!(%error, "the store could not be told that this gateway is no more; its lease will end");
        }
    }

    /// One beat, on a connection that works; one that failed is not used again.
    async fn go_on(&mut self) -> Result<(), sqlx::Error> {
        let mut db = self.connection().await?;
        within(self.lease, self.beat(&mut db)).await?;
        self.db = Some(db);
        Ok(())
    }

    async fn connection(&mut self) -> Result<PgConnection, sqlx::Error> {
        match self.db.take() {
            Some(db) => Ok(db),
            None => within(super::ACQUIRE, self.options.connect()).await,
        }
    }

    async fn beat(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        if beat(&self.id, &self.registrations, db).await? == Beat::First {
            tracing::debug!(replica = self.id, "this gateway is known to the store");
        }
        // Rows that are locked are being ended, or buried by somebody else.
        let dead = sqlx::query(interrupt!(
            "id IN (SELECT r.id FROM runs r WHERE r.status = 'running' AND r.replica <> $1 AND NOT EXISTS \
             (SELECT 1 FROM replicas p WHERE p.id = r.replica AND p.seen_at >= now() - make_interval(secs => $2)) \
             FOR UPDATE SKIP LOCKED)"
        ));
        let dead = dead
            .bind(&self.id)
            .bind(self.lease.as_secs_f64())
            .execute(&mut *db)
            .await?;
        if dead.rows_affected() > 0 {
            let runs = dead.rows_affected();
            self.meters.leases_expired(runs);
            tracing::warn!(runs, "runs of a gateway that is no more were marked interrupted");
        }
        sqlx::query("DELETE FROM replicas WHERE id <> $1 AND seen_at < now() - make_interval(secs => $2)")
            .bind(&self.id)
            .bind(self.lease.as_secs_f64())
            .execute(&mut *db)
            .await?;
        self.bury_strays(db).await
    }

    /// Marks those of this gateway's runs that are owed an end. Not at once: what was sent may still be on its way, and a
    /// run that could not write its turn yet writes that it failed.
    async fn bury_strays(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        let due = self.lease + self.lease / 2;
        let runs: Vec<RunId> = self
            .strays
            .lock()
            .iter()
            .filter(|(_, since)| since.elapsed() >= due)
            .map(|(run, _)| *run)
            .collect();
        if runs.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = runs.iter().map(RunId::to_string).collect();
        let dead = sqlx::query(interrupt!("id = ANY($1) AND replica = $2"));
        dead.bind(ids).bind(&self.id).execute(db).await?;
        self.strays.lock().retain(|run, _| !runs.contains(run));
        Ok(())
    }

    async fn die(&mut self) -> Result<(), sqlx::Error> {
        let mut db = self.connection().await?;
        let farewell = async {
            let left = sqlx::query(interrupt!("replica = $1"));
            left.bind(&self.id).execute(&mut db).await?;
            sqlx::query("DELETE FROM replicas WHERE id = $1")
                .bind(&self.id)
                .execute(&mut db)
                .await?;
            db.close().await
        };
        within(super::CLOSE, farewell).await
    }
}

#[derive(PartialEq)]
enum Beat {
    /// The row was not there: this gateway has just begun, or others had given it up.
    First,
    Next,
}

async fn beat(id: &str, registrations: &AtomicU64, db: &mut PgConnection) -> Result<Beat, sqlx::Error> {
    let first: bool = sqlx::query_scalar(
        "INSERT INTO replicas (id, seen_at) VALUES ($1, clock_timestamp()) \
         ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp() RETURNING xmax = 0",
    )
    .bind(id)
    .fetch_one(db)
    .await?;
    if first {
        registrations.fetch_add(1, Ordering::Relaxed);
    }
    Ok(if first { Beat::First } else { Beat::Next })
}

async fn within<T>(time: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(time, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

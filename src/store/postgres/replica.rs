//! That this gateway lives, said by a row, and what becomes of the runs of those that do not.
//!
//! Every gateway renews its row a few times per lease, by the database's clock, so that no two clocks need agree. A run
//! whose gateway's row is too old is dead: whoever notices first marks it interrupted, which frees its session and its
//! key. A gateway that was only slow, or stopped for a while, knows before that, by a clock of its own ([`Lease`]).

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    chat::RunId,
    meters::Meters,
    store::{
        clock::{self, ServerClock},
        lease::Lease,
    },
};

/// How often a gateway says that it lives, per lease.
const BEATS: u32 = 5;
/// How many terms of its own a gateway buries at once; those before end with their leases.
const EARLIER: usize = 8;
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
    member: Member,
    strays: Strays,
    closing: CancellationToken,
    task: TaskTracker,
    /// Ends the task with the store, also with one that nobody closed.
    _dropped: DropGuard,
}

impl Deref for Replica {
    type Target = Member;

    fn deref(&self) -> &Member {
        &self.member
    }
}

/// What a gateway is known by.
#[derive(Clone)]
pub(super) struct Member {
    name: uuid::Uuid,
    /// For how long a gateway is believed to live that says nothing.
    pub(super) length: Duration,
    /// The same, as seen from here.
    pub(super) lease: Arc<Lease>,
    /// The database's clock.
    pub(super) clock: Arc<ServerClock>,
    pub(super) meters: Arc<Meters>,
}

impl Member {
    /// The id under which it runs what begins now. Each term of the lease has its own, so that the runs of an earlier one
    /// are a dead gateway's, for the others and for this one.
    pub(super) fn id(&self) -> String {
        self.id_of(self.lease.number())
    }

    /// The number of times that others had given this gateway up, or may have. It may have missed notices then.
    pub(super) fn given_up(&self) -> u64 {
        self.lease.number()
    }

    fn id_of(&self, term: u64) -> String {
        format!("{}-{term}", self.name)
    }

    /// Renews the row, by the database's clock.
    pub(super) async fn beat(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        let renewal = self.lease.renew();
        let (first, time): (bool, i64) = sqlx::query_as(
            "INSERT INTO replicas (id, seen_at) VALUES ($1, clock_timestamp()) \
             ON CONFLICT (id) DO UPDATE SET seen_at = clock_timestamp() \
             RETURNING xmax = 0, (extract(epoch FROM clock_timestamp()) * 1000)::bigint",
        )
        .bind(self.id_of(renewal.term))
        .fetch_one(db)
        .await?;
        self.clock.learn(renewal.sent, clock::uptime(), time);
        self.lease.renewed(renewal, !first);
        Ok(())
    }
}

impl Replica {
    /// Says for the first time that this gateway lives, buries who does not, and goes on doing so.
    pub(super) async fn begin(
        options: PgConnectOptions,
        length: Duration,
        meters: Arc<Meters>,
    ) -> Result<Arc<Self>, sqlx::Error> {
        let closing = CancellationToken::new();
        let member = Member {
            name: uuid::Uuid::new_v4(),
            length,
            lease: Lease::new(length),
            clock: Arc::default(),
            meters,
        };
        let replica = Arc::new(Self {
            member: member.clone(),
            strays: Strays::default(),
            task: TaskTracker::new(),
            _dropped: closing.clone().drop_guard(),
            closing,
        });
        let mut life = Life {
            member,
            strays: replica.strays.clone(),
            options,
            db: None,
            term: 0,
        };
        life.go_on().await?;
        replica.task.spawn(life.live(replica.closing.clone()));
        replica.task.close();
        Ok(replica)
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
    member: Member,
    strays: Strays,
    options: PgConnectOptions,
    db: Option<PgConnection>,
    /// The term of the last beat.
    term: u64,
}

impl Life {
    async fn live(mut self, closing: CancellationToken) {
        let mut clock = tokio::time::interval(self.member.length / BEATS);
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
        // A connection that hangs is given up while there is time for another one.
        within(self.member.length / 3, self.member.beat(&mut db)).await?;
        let term = self.member.lease.number();
        if std::mem::replace(&mut self.term, term) != term {
            tracing::warn!("this gateway could not renew its lease in time; the runs that it had are interrupted");
        }
        within(self.member.length / 3, self.bury(&mut db)).await?;
        self.db = Some(db);
        Ok(())
    }

    async fn connection(&mut self) -> Result<PgConnection, sqlx::Error> {
        match self.db.take() {
            Some(db) => Ok(db),
            None => within(super::ACQUIRE, super::connect(&self.options)).await,
        }
    }

    /// Takes away the rows of gateways that are no more, those of this one's earlier terms included, and marks their runs.
    /// It is one statement, so that a gateway whose runs were marked always finds its row gone.
    async fn bury(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        let earlier = (0..self.term).rev().take(EARLIER);
        let earlier: Vec<String> = earlier.map(|term| self.member.id_of(term)).collect();
        // Rows that are locked are being ended, or buried by somebody else.
        let dead = sqlx::query(concat!(
            "WITH dead AS (DELETE FROM replicas WHERE id <> $1 \
                 AND (seen_at < now() - make_interval(secs => $2) OR id = ANY($3)) RETURNING id) ",
            interrupt!(
                "id IN (SELECT r.id FROM runs r WHERE r.status = 'running' AND r.replica <> $1 \
                 AND (r.replica IN (SELECT id FROM dead) OR NOT EXISTS (SELECT 1 FROM replicas p WHERE p.id = r.replica)) \
                 FOR UPDATE SKIP LOCKED)"
            )
        ));
        let dead = dead
            .bind(self.member.id_of(self.term))
            .bind(self.member.length.as_secs_f64())
            .bind(earlier)
            .execute(&mut *db)
            .await?;
        if dead.rows_affected() > 0 {
            let runs = dead.rows_affected();
            self.member.meters.leases_expired(runs);
            tracing::warn!(runs, "runs of a gateway that is no more were marked interrupted");
        }
        self.bury_strays(db).await
    }

    /// Marks those of this gateway's runs that are owed an end. Not at once: what was sent may still be on its way, and a
    /// run that could not write its turn yet writes that it failed.
    async fn bury_strays(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        let due = self.member.length + self.member.length / 2;
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
        let dead = sqlx::query(interrupt!("id = ANY($1)"));
        dead.bind(ids).execute(db).await?;
        self.strays.lock().retain(|run, _| !runs.contains(run));
        Ok(())
    }

    async fn die(&mut self) -> Result<(), sqlx::Error> {
        let mut db = self.connection().await?;
        let farewell = async {
            let id = self.member.id();
            let left = sqlx::query(interrupt!("replica = $1"));
            left.bind(&id).execute(&mut db).await?;
            sqlx::query("DELETE FROM replicas WHERE id = $1")
                .bind(&id)
                .execute(&mut db)
                .await?;
            db.close().await
        };
        within(super::CLOSE, farewell).await
    }
}

async fn within<T>(time: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(time, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

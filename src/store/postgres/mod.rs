//! PostgreSQL: one database for several gateways.
//!
//! What one process may leave to its register of runs is decided here by rows: who holds a session, which run an
//! idempotency key means, and which gateways live (`replica.rs`). A turn is one transaction. Nothing waits for a server
//! that does not answer: every operation has a deadline, the server gives up on statements by itself, and a connection
//! that was left in the middle of something is thrown away instead of given back.

use std::{
    ops::{Deref, DerefMut},
    pin::pin,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use sqlx::{
    ConnectOptions, Connection, PgConnection, PgPool, Row, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::replica::Replica;
use super::{
    Store,
    lease::Fence,
    sql::{Columns, broken, parse, unavailable},
};
use crate::{
    error::{Error, ErrorCode},
    meters::Meters,
};

mod artifacts;
mod notices;
mod replica;
mod runs;
mod sessions;
mod tickets;

/// Connections of a gateway's, beside the one that says that it lives.
const CONNECTIONS: u32 = 16;
/// How long an operation may wait for a connection, a new one included.
const ACQUIRE: Duration = Duration::from_secs(5);
/// How long one may take altogether, and how long once the gateway goes down.
const PATIENCE: Duration = Duration::from_secs(9);
const HURRIED: Duration = Duration::from_secs(1);
/// How long one may take whose COMMIT was sent: only its outcome says what may be told.
const OUTCOME: Duration = Duration::from_secs(60);
/// How long what failed in passing (the server restarts, two deadlocked) is tried again, and after what pause.
const AGAIN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// A connection that was idle for this long is asked whether it still works, and this is how long it may take to say so.
const IDLE: Duration = Duration::from_secs(1);
const PROBE: Duration = Duration::from_millis(500);
/// How long the schema may take to be brought up to date, other gateways' turns included.
const MIGRATIONS: Duration = Duration::from_secs(120);
/// How long the store may take to close.
const CLOSE: Duration = Duration::from_secs(5);
/// What the server is asked for. It gives up on what has no reader any more, and locks of a gateway that vanished go. A
/// turn is on the disk when it is acknowledged, whatever the database's default. These are statements and no start-up
/// parameters, because poolers refuse such ones.
const SERVER: &str = "SET synchronous_commit = on; SET statement_timeout = '10s'; SET lock_timeout = '10s'; \
     SET idle_in_transaction_session_timeout = '10s'; SET default_transaction_isolation = 'read committed'";
/// How often it is looked whether a pooler shares connections: others may use it in the same moment.
const POOLER_LOOKS: usize = 3;
/// For how long a gateway that says nothing is believed to live, unless the address says `lease=…`.
const LEASE: Duration = Duration::from_secs(7);

/// The schema's history. A file that has been released is never changed.
fn migrations() -> Migrator {
    let simple = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        simple(
            1,
            "sessions and runs",
            include_str!("../../../migrations/postgres/0001_sessions_and_runs.sql"),
        ),
        simple(
            2,
            "artifacts",
            include_str!("../../../migrations/postgres/0002_artifacts.sql"),
        ),
        simple(
            3,
            "tickets",
            include_str!("../../../migrations/postgres/0003_tickets.sql"),
        ),
        simple(
            4,
            "notices",
            include_str!("../../../migrations/postgres/0004_notices.sql"),
        ),
        simple(
            5,
            "arrival",
            include_str!("../../../migrations/postgres/0005_arrival.sql"),
        ),
        simple(
            6,
            "ticket bindings",
            include_str!("../../../migrations/postgres/0006_ticket_bindings.sql"),
        ),
    ])
}

/// The store.
pub struct Postgres {
    pool: PgPool,
    replica: Arc<Replica>,
    hurried: CancellationToken,
}

impl Postgres {
    /// Opens the database, brings its schema up to date (one gateway after the other), and says that this gateway lives.
    /// `lease=` in the address, a duration, is for how long a gateway is believed to live that says nothing.
    ///
    /// # Errors
    /// Whatever is in the way: the address, the server, a schema of a newer version, an encoding that cannot hold every text.
    pub async fn open(url: &str, meters: &Arc<Meters>) -> Result<Self, Error> {
        let (url, lease) = address(url)?;
        let options = PgConnectOptions::from_str(url.as_str()).map_err(|_| {
            Error::new(
                ErrorCode::StoreUnavailable,
                "store.url is not an address of a PostgreSQL database",
            )
        })?;
        let database = options.get_database().unwrap_or("of the user's name").to_owned();
        let whose = format!(
            "the database {database} at {}:{}",
            options.get_host(),
            options.get_port()
        );
        let options = match options.get_application_name() {
            Some(_) => options,
            None => options.application_name("sluicegate"),
        };
        // A pooler may refuse this parameter, and no number of ours is a float.
        let options = options.extra_float_digits(None::<i8>);
        let migrated = tokio::time::timeout(MIGRATIONS, migrate(&options, &whose)).await;
        migrated.map_err(|_| unavailable(&whose, "its schema could not be brought up to date in time"))??;

        let pool = PgPoolOptions::new()
            .after_connect(|db, _| Box::pin(prepare(db)))
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE)
            .test_before_acquire(false)
            .before_acquire(|db, about| {
                Box::pin(async move {
                    if about.idle_for < IDLE {
                        return Ok(true);
                    }
                    Ok(matches!(tokio::time::timeout(PROBE, db.ping()).await, Ok(Ok(()))))
                })
            })
            .connect_lazy_with(options.clone());
        let replica = Replica::begin(options, lease, meters.clone())
            .await
            .map_err(|e| unavailable(&whose, e))?;
        Ok(Self {
            pool,
            replica,
            hurried: CancellationToken::new(),
        })
    }

    /// Does something until it is done, cannot be done, or has taken too long. What fails in passing is tried again, so it
    /// must be safe to do twice; it is told which attempt it is, from 1.
    async fn patiently<T, F>(&self, work: impl Fn(u32) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        self.to_its_outcome(&AtomicBool::new(false), work).await
    }

    /// The same, of something that says when it cannot be taken back any more: from then on there is more patience.
    async fn to_its_outcome<T, F>(&self, sealed: &AtomicBool, work: impl Fn(u32) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let began = Instant::now();
        let mut impatient = pin!(self.impatient(began));
        for attempt in 1.. {
            let work = async {
                let mut work = pin!(work(attempt));
                tokio::select! {
                    biased;
                    outcome = &mut work => return Some(outcome),
                    () = &mut impatient, if !sealed.load(Ordering::Relaxed) => {}
                }
                match sealed.load(Ordering::Relaxed) {
                    true => tokio::time::timeout_at(began + OUTCOME, work).await.ok(),
                    false => None,
                }
            };
            let again = |error: &sqlx::Error| match sealed.load(Ordering::Relaxed) {
                true => began.elapsed() < OUTCOME && (passing(error) || matches!(error, sqlx::Error::PoolTimedOut)),
                false => began.elapsed() < AGAIN && passing(error),
            };
            match work.await {
                Some(Ok(done)) => return Ok(done),
                Some(Err(error)) if again(&error) => {
                    if gone(&error) {
                        self.replica.meters.store_reconnects();
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Some(Err(error)) => return Err(broken(&error)),
                None => break,
            }
        }
        Err(Error::new(
            ErrorCode::StoreUnavailable,
            "The store did not answer in time.",
        ))
    }

    /// Waits until what began then has taken long enough.
    async fn impatient(&self, began: Instant) {
        let hurried = async {
            self.hurried.cancelled().await;
            tokio::time::sleep(HURRIED).await;
        };
        tokio::select! {
            () = tokio::time::sleep_until(began + PATIENCE) => {}
            () = hurried => {}
        }
    }

    /// A connection.
    async fn lend(&self) -> Result<Lent, sqlx::Error> {
        let db = self.pool.acquire().await?;
        Ok(Lent { db, whole: false })
    }
}

/// A connection that goes back to the pool only if whoever had it says that it is whole. Who was dropped in the middle of
/// a statement, or failed in a transaction, leaves one that nobody should wait for.
struct Lent {
    db: PoolConnection<sqlx::Postgres>,
    whole: bool,
}

impl Lent {
    /// Gives it back.
    fn back(mut self) {
        self.whole = true;
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.db
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.db
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.whole {
            self.db.close_on_drop();
        }
    }
}

/// Whether the same may succeed in a moment.
fn passing(error: &sqlx::Error) -> bool {
    match error {
        // A connection that closes while it is being made looks like a server that talks nonsense.
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            matches!(
                &*code,
                // serialization_failure, deadlock_detected; a session that was erased while its run began; shutdowns
                "40001" | "40P01" | "23503" | "57P01" | "57P02" | "57P03"
            ) || code.starts_with("08")
        }),
        _ => false,
    }
}

/// Whether it failed because the connection did.
fn gone(error: &sqlx::Error) -> bool {
    !matches!(error, sqlx::Error::Database(error) if error.code().is_some_and(|code| matches!(&*code, "40001" | "40P01" | "23503")))
}

/// Takes our own parameter out of the address.
fn address(text: &str) -> Result<(url::Url, Duration), Error> {
    let wrong = |what: &str| Error::new(ErrorCode::StoreUnavailable, format!("store.url: {what}"));
    let mut url = url::Url::parse(text).map_err(|e| wrong(&e.to_string()))?;
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(key, _)| key == "lease");
    let Some((_, lease)) = ours.first() else {
        return Ok((url, LEASE));
    };
    let lease = lease
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|lease| Duration::try_from(lease).ok())
        .filter(|lease| (Duration::from_millis(500)..=Duration::from_secs(600)).contains(lease))
        .ok_or_else(|| wrong("lease must be a duration between 500ms and 10m"))?;
    match theirs.is_empty() {
        true => url.set_query(None),
        false => drop(url.query_pairs_mut().clear().extend_pairs(theirs)),
    }
    Ok((url, lease))
}

/// Asks the server for what a connection needs.
async fn prepare(db: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(SERVER).execute(db).await.map(drop)
}

/// A connection of its own.
async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let mut db = options.connect().await?;
    prepare(&mut db).await?;
    Ok(db)
}

/// Whether a pooler before the server gives the server's connection to somebody else between two statements. Then
/// settings, locks and prepared statements of a session are somebody else's, too.
async fn is_shared(options: &PgConnectOptions, db: &mut PgConnection) -> Result<bool, sqlx::Error> {
    async fn backend(db: &mut PgConnection) -> Result<i32, sqlx::Error> {
        let row = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(db).await?;
        row.try_get(0)
    }
    let mut other = options.connect().await?;
    let mut shared = false;
    for _ in 0..POOLER_LOOKS {
        let mine = backend(db).await?;
        sqlx::raw_sql("BEGIN").execute(&mut other).await?;
        shared |= backend(&mut other).await? == mine;
        sqlx::raw_sql("COMMIT").execute(&mut other).await?;
    }
    let _ = other.close().await; // it has done what it was for
    Ok(shared)
}

/// Brings the schema up to date. Gateways that start at once do so one after the other; the driver's own lock sees to it.
async fn migrate(options: &PgConnectOptions, whose: &str) -> Result<(), Error> {
    let connected = tokio::time::timeout(ACQUIRE, options.connect()).await;
    let mut db = connected
        .map_err(|_| unavailable(whose, "it did not answer in time"))?
        .map_err(|e| unavailable(whose, e))?;
    if is_shared(options, &mut db).await.map_err(|e| unavailable(whose, e))? {
        return Err(unavailable(
            whose,
            "the pooler before it gives connections to others between statements; \
             it must keep one for each session (PgBouncer: pool_mode = session)",
        ));
    }
    let encoding: Result<String, _> = sqlx::query_scalar("SHOW server_encoding").fetch_one(&mut db).await;
    let encoding = encoding.map_err(|e| unavailable(whose, e))?;
    if encoding != "UTF8" {
        return Err(unavailable(
            whose,
            format!("its encoding must be UTF8, and is {encoding}"),
        ));
    }
    let migrated = migrations().run(&mut db).await;
    migrated.map_err(|e| unavailable(&format!("{whose} has a schema of another version"), e))?;
    let _ = db.close().await; // it has done what it was for
    Ok(())
}

impl Columns for PgRow {
    fn text(&self, column: &'static str) -> Result<Option<String>, sqlx::Error> {
        self.try_get(column)
    }

    fn number(&self, column: &'static str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(column)
    }

    fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, sqlx::Error> {
        self.try_get::<Option<&str>, _>(column)?.map(parse).transpose()
    }
}

impl Store for Postgres {
    fn shared(&self) -> bool {
        true
    }

    fn now(&self) -> i64 {
        self.replica.clock.now()
    }

    fn fence(&self) -> BoxFuture<'_, Result<Fence, Error>> {
        Box::pin(async {
            if let Some(fence) = self.replica.lease.fence() {
                return Ok(fence);
            }
            self.ready().await?; // which renews it
            let late = || Error::new(ErrorCode::StoreUnavailable, "The store answers too late.");
            self.replica.lease.fence().ok_or_else(late)
        })
    }

    /// A write, because a server that only reads (a standby, a full disk) is of no use here.
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.patiently(|_| async {
            let mut db = self.lend().await?;
            self.replica.beat(&mut db).await?;
            db.back();
            Ok(())
        }))
    }

    fn hurry(&self) {
        self.hurried.cancel();
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.replica.end().await;
            if tokio::time::timeout(CLOSE, self.pool.close()).await.is_err() {
                tracing::warn!("the store was not closed cleanly; nothing that was acknowledged is lost");
            }
        })
    }
}

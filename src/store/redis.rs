//! Redis or Valkey as a relay: a stream for every run, and one for the calls to stop.
//!
//! The only place that knows the `redis` crate; what gateways count together is in
//! `redis/tally.rs`. Reading blocks its connection, so it has one of its own; whatever is awaited
//! has a deadline. Keys begin with `sluicegate:` and expire by themselves.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, RedisError,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
};
use tokio::{sync::Mutex, time::timeout};

use self::fault::Server;
use super::{
    masked,
    relay::{Batch, Heard, Place, Relay},
};
use crate::{
    chat::RunId,
    error::{Error, ErrorCode},
};

mod fault;
mod tally;

pub use tally::RedisTally;

/// How long a connection may take, and an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much longer than its wait a read may take.
const SLACK: Duration = Duration::from_secs(1);
/// The calls to stop that are kept.
const STOPS: usize = 10_000;
/// How long calls to stop are kept after the last one.
const STOPS_LIFE: Duration = Duration::from_secs(60 * 60);
/// The most runs whose keys one command names.
const KEYS: usize = 500;
/// The most entries of a stream that are read at a time: batches of some 64 KiB.
const PAGE: usize = 16;
const STOP_KEY: &str = "sluicegate:stop";

/// The relay.
pub struct Redis {
    server: Arc<Server>,
    writes: std::sync::Mutex<ConnectionManager>,
    /// The connection that waits.
    reads: Mutex<Option<MultiplexedConnection>>,
    /// The server that the connection that waits was to: its own id, empty where it does not say.
    read_from: std::sync::Mutex<Option<String>>,
    /// Whether the connection that waits is to a server that is a replica now.
    demoted: AtomicBool,
}

/// Entries of streams: by key, each with its id and its fields.
type Streams = Vec<(String, Vec<Entry>)>;
type Entry = (String, HashMap<String, Vec<u8>>);

/// A relay and a tally at this URL. They need not be there yet.
///
/// # Errors
/// A URL that is none.
pub fn open(url: &str) -> Result<(Redis, RedisTally), Error> {
    let wrong = |_| {
        Error::new(
            ErrorCode::Internal,
            "run_log.url is not redis://[user:password@]host[:port][/number]",
        )
    };
    let server = Arc::new(Server {
        client: Client::open(url).map_err(wrong)?,
        address: masked(url),
    });
    Ok((Redis::new(server.clone()).map_err(wrong)?, RedisTally::new(server)))
}

impl Redis {
    fn new(server: Arc<Server>) -> Result<Self, RedisError> {
        Ok(Self {
            writes: std::sync::Mutex::new(manager(&server.client)?),
            server,
            reads: Mutex::new(None),
            read_from: std::sync::Mutex::default(),
            demoted: AtomicBool::new(false),
        })
    }

    fn writes(&self) -> ConnectionManager {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let mut connection = self.writes();
        let answer = timeout(PATIENCE * 2, command.query_async(&mut connection)).await;
        answer.map_err(|_| self.server.slow())?.map_err(|e| self.failed(&e))
    }

    async fn tell<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, Error> {
        let mut connection = self.writes();
        let answer = timeout(PATIENCE * 2, pipeline.query_async(&mut connection)).await;
        answer.map_err(|_| self.server.slow())?.map_err(|e| self.failed(&e))
    }

    /// An error of the connection that writes. A server that is a replica now is left: the address
    /// may mean another one by now.
    fn failed(&self, error: &RedisError) -> Error {
        if fault::is_replica(error) {
            self.demoted.store(true, Ordering::Relaxed);
            if let Ok(new) = manager(&self.server.client) {
                *self.writes.lock().unwrap_or_else(PoisonError::into_inner) = new;
            }
        }
        self.server.away(error)
    }

    /// Reads with the connection that may wait. One that failed, or was given up in the middle, is
    /// not used again. `None` if there is a new connection, to another server than before, which
    /// was asked for nothing.
    async fn wait(&self, command: &Cmd, patience: Duration) -> Result<Option<Streams>, Error> {
        let mut place = self.reads.lock().await;
        if self.demoted.swap(false, Ordering::Relaxed) {
            *place = None;
        }
        let connection = match place.take() {
            Some(connection) => connection,
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(PATIENCE))
                    .set_response_timeout(None);
                let client = &self.server.client;
                let new = client.get_multiplexed_async_connection_with_config(&config);
                let new = timeout(PATIENCE * 2, new).await.map_err(|_| self.server.slow())?;
                let mut new = new.map_err(|e| self.server.away(&e))?;
                let id = timeout(PATIENCE, server_id(&mut new)).await;
                let id = id.map_err(|_| self.server.slow())?;
                let mut known = self.read_from.lock().unwrap_or_else(PoisonError::into_inner);
                if known
                    .replace(id.clone())
                    .is_some_and(|known| known != id || id.is_empty())
                {
                    *place = Some(new);
                    return Ok(None);
                }
                new
            }
        };
        let mut asked = connection.clone();
        let answer = timeout(patience + SLACK, command.query_async::<Option<Streams>>(&mut asked)).await;
        let heard = match answer.map_err(|_| self.server.slow())? {
            Ok(heard) => {
                *place = Some(connection);
                heard
            }
            // The next read has a new connection, and learns which server answers now.
            Err(error) if fault::has_changed_role(&error) => None,
            Err(error) => return Err(self.server.away(&error)),
        };
        Ok(Some(heard.unwrap_or_default()))
    }
}

/// A connection that comes back by itself.
fn manager(client: &Client) -> Result<ConnectionManager, RedisError> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE))
        .set_number_of_retries(1)
        .set_max_delay(PATIENCE);
    client.get_connection_manager_lazy(config)
}

/// The id that a server gave itself when it began; empty if it does not say.
async fn server_id(connection: &mut MultiplexedConnection) -> String {
    let about: Result<String, RedisError> = redis::cmd("INFO").arg("server").query_async(connection).await;
    let about = about.unwrap_or_default();
    let id = about.lines().find_map(|line| line.strip_prefix("run_id:"));
    id.unwrap_or_default().trim().to_owned()
}

impl Relay for Redis {
    fn publish<'a>(&'a self, batches: &'a [(Batch, Duration)]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if batches.is_empty() {
                return Ok(());
            }
            let mut pipeline = Pipeline::with_capacity(batches.len() * 3);
            for (batch, keep) in batches {
                let key = log_key(batch.run);
                // The stream stays, so that its places go on: who follows it finds what is said
                // once more behind the last.
                if batch.first == 0 {
                    pipeline.cmd("XTRIM").arg(&key).arg("MAXLEN").arg(0).ignore();
                }
                pipeline
                    .cmd("XADD")
                    .arg(&key)
                    .arg("*")
                    .arg("s")
                    .arg(batch.first)
                    .arg("e")
                    .arg(&batch.body)
                    .ignore();
                pipeline.cmd("PEXPIRE").arg(&key).arg(millis(*keep)).ignore();
            }
            self.tell(&pipeline).await
        })
    }

    fn check<'a>(&'a self, runs: &'a [RunId], keep: Duration) -> BoxFuture<'a, Result<Vec<RunId>, Error>> {
        Box::pin(async move {
            let mut lost = Vec::new();
            self.ask::<()>(&probe()).await?;
            for runs in runs.chunks(KEYS) {
                let mut pipeline = Pipeline::with_capacity(runs.len());
                for run in runs {
                    pipeline.cmd("PEXPIRE").arg(log_key(*run)).arg(millis(keep));
                }
                let there: Vec<u8> = self.tell(&pipeline).await?;
                let gone = runs.iter().zip(there).filter(|(_, there)| *there == 0);
                lost.extend(gone.map(|(run, _)| *run));
            }
            Ok(lost)
        })
    }

    fn read<'a>(&'a self, run: RunId, behind: &'a Place) -> BoxFuture<'a, Result<Vec<(Batch, Place)>, Error>> {
        Box::pin(async move {
            let mut command = redis::cmd("XREAD");
            command
                .arg("COUNT")
                .arg(PAGE)
                .arg("STREAMS")
                .arg(log_key(run))
                .arg(behind);
            let streams: Option<Streams> = self.ask(&command).await?;
            let entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries);
            Ok(entries.filter_map(|entry| batch(run, entry)).collect())
        })
    }

    fn hear<'a>(
        &'a self,
        runs: &'a [(RunId, Place)],
        stops: &'a Place,
        patience: Duration,
    ) -> BoxFuture<'a, Result<Heard, Error>> {
        Box::pin(async move {
            let mut command = redis::cmd("XREAD");
            command
                .arg("COUNT")
                .arg(PAGE)
                .arg("BLOCK")
                .arg(millis(patience).max(1))
                .arg("STREAMS")
                .arg(STOP_KEY);
            command.arg(runs.iter().map(|(run, _)| log_key(*run)).collect::<Vec<_>>());
            command.arg(stops);
            command.arg(runs.iter().map(|(_, place)| place).collect::<Vec<_>>());
            let mut heard = Heard::default();
            let Some(streams) = self.wait(&command, patience).await? else {
                heard.renewed = true;
                return Ok(heard);
            };
            for (key, entries) in streams {
                match key.strip_prefix("sluicegate:log:").and_then(|id| id.parse().ok()) {
                    Some(run) => heard
                        .batches
                        .extend(entries.into_iter().filter_map(|entry| batch(run, entry))),
                    None => heard.stops.extend(entries.into_iter().filter_map(|(place, fields)| {
                        let id = std::str::from_utf8(fields.get("run")?).ok()?;
                        Some((id.parse().ok()?, place))
                    })),
                }
            }
            Ok(heard)
        })
    }

    fn now(&self) -> BoxFuture<'_, Result<Place, Error>> {
        Box::pin(async move {
            let last: Vec<Entry> = self
                .ask(
                    redis::cmd("XREVRANGE")
                        .arg(STOP_KEY)
                        .arg("+")
                        .arg("-")
                        .arg("COUNT")
                        .arg(1),
                )
                .await?;
            Ok(last
                .into_iter()
                .next()
                .map_or_else(|| "0-0".to_owned(), |(place, _)| place))
        })
    }

    fn stop(&self, run: RunId) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let mut pipeline = Pipeline::with_capacity(2);
            pipeline
                .cmd("XADD")
                .arg(STOP_KEY)
                .arg("MAXLEN")
                .arg("~")
                .arg(STOPS)
                .arg("*")
                .arg("run")
                .arg(run.to_string())
                .ignore();
            pipeline.cmd("PEXPIRE").arg(STOP_KEY).arg(millis(STOPS_LIFE)).ignore();
            self.tell(&pipeline).await
        })
    }

    fn erase<'a>(&'a self, runs: &'a [RunId]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            for runs in runs.chunks(KEYS) {
                let mut command = redis::cmd("DEL");
                command.arg(runs.iter().map(|run| log_key(*run)).collect::<Vec<_>>());
                command.arg(runs.iter().map(|run| readers_key(*run)).collect::<Vec<_>>());
                self.ask::<()>(&command).await?;
            }
            Ok(())
        })
    }

    fn attend<'a>(&'a self, runs: &'a [RunId], keep: Duration) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut pipeline = Pipeline::with_capacity(runs.len());
            for run in runs {
                pipeline
                    .cmd("SET")
                    .arg(readers_key(*run))
                    .arg(1)
                    .arg("PX")
                    .arg(millis(keep))
                    .ignore();
            }
            self.tell(&pipeline).await
        })
    }

    fn attended(&self, run: RunId) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(async move { self.ask(redis::cmd("EXISTS").arg(readers_key(run))).await })
    }
}

fn batch(run: RunId, (place, mut fields): Entry) -> Option<(Batch, Place)> {
    let first = std::str::from_utf8(fields.get("s")?).ok()?.parse().ok()?;
    let body = fields.remove("e")?;
    Some((Batch { run, first, body }, place))
}

fn log_key(run: RunId) -> String {
    format!("sluicegate:log:{run}")
}

fn readers_key(run: RunId) -> String {
    format!("sluicegate:readers:{run}")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A write that changes nothing of anybody's.
fn probe() -> Cmd {
    let mut command = redis::cmd("SET");
    command.arg("sluicegate:check").arg(1).arg("PX").arg(10_000);
    command
}

//! Redis or Valkey as a relay: a stream for every run, and one for the calls to stop.
//!
//! The only place that knows the `redis` crate; what gateways count together is in `redis/tally.rs`. Reading blocks its
//! connection, so it has one of its own; whatever is awaited has a deadline. Keys begin with `sluicegate:` and expire by themselves.

use std::{collections::HashMap, time::Duration};

use futures_util::future::BoxFuture;
use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, Pipeline, RedisError,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection},
};
use tokio::{sync::Mutex, time::timeout};

use super::relay::{Batch, Heard, Place, Relay};
use crate::{
    chat::RunId,
    error::{Error, ErrorCode},
};

mod tally;

pub use tally::RedisTally;

/// How long a connection may take, and an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much longer than its wait a read may take.
const SLACK: Duration = Duration::from_secs(1);
/// The calls to stop that are kept.
const STOPS: usize = 10_000;
/// The most runs whose keys one command names.
const KEYS: usize = 500;
const STOP_KEY: &str = "sluicegate:stop";

/// The relay.
pub struct Redis {
    client: Client,
    writes: ConnectionManager,
    /// The connection that waits.
    reads: Mutex<Option<MultiplexedConnection>>,
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
    let client = Client::open(url).map_err(wrong)?;
    Ok((Redis::new(client.clone()).map_err(wrong)?, RedisTally::new(client)))
}

impl Redis {
    fn new(client: Client) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE))
            .set_number_of_retries(1)
            .set_max_delay(PATIENCE);
        let writes = client.get_connection_manager_lazy(config)?;
        Ok(Self {
            client,
            writes,
            reads: Mutex::new(None),
        })
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let mut connection = self.writes.clone();
        let answer = timeout(PATIENCE * 2, command.query_async(&mut connection)).await;
        answer.map_err(|_| slow())?.map_err(|e| away(&e))
    }

    async fn tell(&self, pipeline: &Pipeline) -> Result<(), Error> {
        let mut connection = self.writes.clone();
        let answer = timeout(PATIENCE * 2, pipeline.query_async::<()>(&mut connection)).await;
        answer.map_err(|_| slow())?.map_err(|e| away(&e))
    }

    /// Reads with the connection that may wait. One that failed, or was given up in the middle, is not used again.
    async fn wait(&self, command: &Cmd, patience: Duration) -> Result<Option<Streams>, Error> {
        let mut place = self.reads.lock().await;
        let connection = match place.take() {
            Some(connection) => connection,
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(PATIENCE))
                    .set_response_timeout(None);
                let new = self.client.get_multiplexed_async_connection_with_config(&config);
                timeout(PATIENCE * 2, new)
                    .await
                    .map_err(|_| slow())?
                    .map_err(|e| away(&e))?
            }
        };
        let mut asked = connection.clone();
        let answer = timeout(patience + SLACK, command.query_async(&mut asked)).await;
        let heard = answer.map_err(|_| slow())?.map_err(|e| away(&e))?;
        *place = Some(connection);
        Ok(heard)
    }
}

impl Relay for Redis {
    fn publish<'a>(&'a self, batches: &'a [Batch], keep: Duration) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if batches.is_empty() {
                return Ok(());
            }
            let mut pipeline = Pipeline::with_capacity(batches.len() * 2);
            for batch in batches {
                let key = log_key(batch.run);
                if batch.first == 0 {
                    pipeline.cmd("DEL").arg(&key).ignore();
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
                pipeline.cmd("PEXPIRE").arg(&key).arg(millis(keep)).ignore();
            }
            self.tell(&pipeline).await
        })
    }

    fn read(&self, run: RunId) -> BoxFuture<'_, Result<Vec<(Batch, Place)>, Error>> {
        Box::pin(async move {
            let entries: Vec<Entry> = self
                .ask(redis::cmd("XRANGE").arg(log_key(run)).arg("-").arg("+"))
                .await?;
            Ok(entries.into_iter().filter_map(|entry| batch(run, entry)).collect())
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
                .arg("BLOCK")
                .arg(millis(patience).max(1))
                .arg("STREAMS")
                .arg(STOP_KEY);
            command.arg(runs.iter().map(|(run, _)| log_key(*run)).collect::<Vec<_>>());
            command.arg(stops);
            command.arg(runs.iter().map(|(_, place)| place).collect::<Vec<_>>());
            let mut heard = Heard::default();
            for (key, entries) in self.wait(&command, patience).await?.unwrap_or_default() {
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
            let mut command = redis::cmd("XADD");
            command
                .arg(STOP_KEY)
                .arg("MAXLEN")
                .arg("~")
                .arg(STOPS)
                .arg("*")
                .arg("run")
                .arg(run.to_string());
            self.ask::<String>(&command).await.map(drop)
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

fn away(error: &RedisError) -> Error {
    Error::new(
        ErrorCode::StoreUnavailable,
        "The runs of other gateways cannot be read at the moment.",
    )
    .retry_after(Duration::from_secs(1))
    .because(error.to_string())
}

fn slow() -> Error {
    Error::new(
        ErrorCode::StoreUnavailable,
        "The runs of other gateways cannot be read in time.",
    )
    .retry_after(Duration::from_secs(1))
}

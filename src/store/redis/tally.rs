//! Redis or Valkey as a tally: for every caller a list of the times of its requests, and a set of the places that its runs
//! have, each with its end. Scripts, so that two gateways cannot both take the last one; by the server's clock, so that
//! those of the gateways need not agree.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::future::BoxFuture;
use redis::{AsyncConnectionConfig, Script, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::{PATIENCE, fault::Server, millis, probe};
use crate::{
    chat::Principal,
    error::Error,
    store::tally::{Counted, Counting, Place, Tally},
};

/// The most places that one call names.
const AT_ONCE: usize = 500;

/// The last `limit` times decide, so that a call costs little however many there are; the oldest go a hundred at a time.
/// Where the server's clock was set back, by more than a moment, what it wrote before is of a time to come, and would keep
/// its caller out until then: it is forgotten.
static COUNT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local newest = redis.call('LINDEX', KEYS[1], -1)
if newest and newest - now > 1000000 then redis.call('DEL', KEYS[1]) end
for _ = 1, 100 do
  local first = redis.call('LINDEX', KEYS[1], 0)
  if not first or now - first < window then break end
  redis.call('LPOP', KEYS[1])
end
local last = redis.call('LINDEX', KEYS[1], -limit)
if last and now - last < window then
  return {-1, window - (now - last)}
end
local held = redis.call('RPUSH', KEYS[1], string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(window / 1000))
local oldest = redis.call('LINDEX', KEYS[1], math.max(0, held - limit))
return {math.max(0, limit - held), window - (now - oldest)}",
    )
});

/// Places whose end has come are nobody's, nor are those that end later than any could: the clock was set back, and who has
/// one asks for it again soon. A run that interrupts does not count those of its own session.
static ENTER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local limit, keep, member, own = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', now + keep + 1000), '+inf')
local held = redis.call('ZCARD', KEYS[1])
if held >= limit and own ~= '' then
  for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if string.sub(other, -#own) == own then held = held - 1 end
  end
end
if held >= limit then return 0 end
redis.call('ZADD', KEYS[1], now + keep, member)
redis.call('PEXPIRE', KEYS[1], keep)
return 1",
    )
});

static STAY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local keep = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for at = 2, #ARGV do redis.call('ZADD', KEYS[1], now + keep, ARGV[at]) end
redis.call('PEXPIRE', KEYS[1], keep)
return 0",
    )
});

/// The tally. Its connection is its own: what is asked here is waited for, and the relay's batches are large.
pub struct RedisTally {
    server: Arc<Server>,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl RedisTally {
    pub(super) fn new(server: Arc<Server>) -> Self {
        let connection = Mutex::default();
        Self { server, connection }
    }

    fn connection(&self) -> Result<MultiplexedConnection, Error> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.clone().ok_or_else(|| self.server.slow())
    }

    /// Waits until the server takes something. One that only reads does not count.
    async fn takes(&self, mut connection: MultiplexedConnection) -> Result<(), Error> {
        let answer = timeout(PATIENCE, probe().exec_async(&mut connection)).await;
        answer
            .map_err(|_| self.server.slow())?
            .map_err(|e| self.server.away(&e))
    }
}

impl Tally for RedisTally {
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let known = self.connection();
            let mut connection = match known {
                Ok(connection) if self.takes(connection.clone()).await.is_ok() => connection,
                // A connection that does not answer is not waited for: its server may be another one by now.
                _ => {
                    let config = AsyncConnectionConfig::new()
                        .set_connection_timeout(Some(PATIENCE))
                        .set_response_timeout(Some(PATIENCE));
                    let new = self.server.client.get_multiplexed_async_connection_with_config(&config);
                    let new = timeout(PATIENCE * 2, new).await.map_err(|_| self.server.slow())?;
                    let new = new.map_err(|e| self.server.away(&e))?;
                    self.takes(new.clone()).await?;
                    new
                }
            };
            // Whoever asks first would otherwise wait for them to be read.
            for script in [&*COUNT, &*ENTER, &*STAY] {
                let loaded = timeout(PATIENCE, script.load_async(&mut connection)).await;
                loaded
                    .map_err(|_| self.server.slow())?
                    .map_err(|e| self.server.away(&e))?;
            }
            *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
            Ok(())
        })
    }

    fn count<'a>(&'a self, who: &'a Principal, limit: u32, window: Duration) -> BoxFuture<'a, Result<Counted, Error>> {
        Box::pin(async move {
            let mut connection = self.connection()?;
            let micros = u64::try_from(window.as_micros()).unwrap_or(u64::MAX);
            let mut call = COUNT.key(format!("sluicegate:asked:{}", print(who.as_str())));
            call.arg(limit).arg(micros);
            let told = call.invoke_async::<(i64, i64)>(&mut connection).await;
            let (remaining, micros) = told.map_err(|e| self.server.away(&e))?;
            // A server whose clock was set back would have everybody wait for it.
            let time = Duration::from_micros(u64::try_from(micros).unwrap_or(0)).min(window);
            Ok(match u32::try_from(remaining) {
                Ok(remaining) => Counted::In { remaining, reset: time },
                Err(_) => Counted::Out(time),
            })
        })
    }

    fn enter<'a>(
        &'a self,
        place: &'a Place,
        limit: usize,
        counting: Counting,
        keep: Duration,
    ) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async move {
            let mut connection = self.connection()?;
            let (member, session) = named(place);
            let own = match counting {
                Counting::OtherSessions => session,
                Counting::All => String::new(),
            };
            let mut call = ENTER.key(places_key(&place.principal));
            call.arg(limit).arg(millis(keep)).arg(member).arg(own);
            let taken = call.invoke_async::<u8>(&mut connection).await;
            Ok(taken.map_err(|e| self.server.away(&e))? == 1)
        })
    }

    fn stay<'a>(&'a self, places: &'a [Place], keep: Duration) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut connection = self.connection()?;
            for (key, members) in by_caller(places) {
                for members in members.chunks(AT_ONCE) {
                    let mut call = STAY.key(&key);
                    call.arg(millis(keep)).arg(members);
                    let told = timeout(PATIENCE, call.invoke_async::<()>(&mut connection)).await;
                    told.map_err(|_| self.server.slow())?
                        .map_err(|e| self.server.away(&e))?;
                }
            }
            Ok(())
        })
    }

    fn leave<'a>(&'a self, places: &'a [Place]) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut connection = self.connection()?;
            for (key, members) in by_caller(places) {
                for members in members.chunks(AT_ONCE) {
                    let mut call = redis::cmd("ZREM");
                    call.arg(&key).arg(members);
                    let told = timeout(PATIENCE, call.exec_async(&mut connection)).await;
                    told.map_err(|_| self.server.slow())?
                        .map_err(|e| self.server.away(&e))?;
                }
            }
            Ok(())
        })
    }
}

/// The places of each caller, under the key of that caller's.
fn by_caller(places: &[Place]) -> HashMap<String, Vec<String>> {
    let mut callers: HashMap<String, Vec<String>> = HashMap::new();
    for place in places {
        let members = callers.entry(places_key(&place.principal)).or_default();
        members.push(named(place).0);
    }
    callers
}

/// How a place is written, and its session, which is how that ends; empty, if it has none.
fn named(place: &Place) -> (String, String) {
    let session = place.session.as_ref().map_or(String::new(), |id| print(id.as_str()));
    (format!("{}/{session}", place.run), session)
}

fn places_key(who: &Principal) -> String {
    format!("sluicegate:places:{}", print(who.as_str()))
}

/// A name of a fixed length that does not tell the name it is made from.
fn print(name: &str) -> String {
    let whole = digest(&SHA256, name.as_bytes());
    whole.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

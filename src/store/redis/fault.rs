//! A server that cannot be used: what its errors mean, and what whoever runs it can do.

use std::time::Duration;

use redis::{Client, RedisError};

use crate::error::{Error, ErrorCode};

/// The server, and its address as it may be shown.
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) address: String,
}

/// Words of a server that answers and does not do what it is asked, and what can be done about it.
const REFUSALS: &[(&str, &str)] = &[
    (
        REPLICA,
        "it is a replica; run_log.url has to name the primary server, or an address that follows it",
    ),
    (
        "OOM",
        "it has no memory left; raise its maxmemory, or set its maxmemory-policy to volatile-ttl, because all keys expire",
    ),
    (
        "MISCONF",
        "it cannot write its snapshots; make room on its disk, or set its stop-writes-on-bgsave-error to no",
    ),
    ("NOREPLICAS", "it has too few replicas (min-replicas-to-write)"),
    (
        "NOAUTH",
        "it wants a password: run_log.url is redis://[USER:PASSWORD@]HOST[:PORT]",
    ),
    ("WRONGPASS", "it does not know the user and password in run_log.url"),
    (
        "NOPERM",
        "the user in run_log.url may not do this; it needs all commands on keys sluicegate:*",
    ),
];
const REPLICA: &str = "READONLY";

impl Server {
    /// The error of a request that failed.
    pub(super) fn away(&self, error: &RedisError) -> Error {
        let advice = advice(error).map_or(String::new(), |advice| format!(" ({advice})"));
        let cause = format!("Redis at {}: {error}{advice}", self.address);
        unavailable("The runs of other gateways cannot be read at the moment.").because(cause)
    }

    /// The error of a request that was not answered in time.
    pub(super) fn slow(&self) -> Error {
        let cause = format!("Redis at {}: no answer in time", self.address);
        unavailable("The runs of other gateways cannot be read in time.").because(cause)
    }
}

fn unavailable(what: &str) -> Error {
    Error::new(ErrorCode::StoreUnavailable, what).retry_after(Duration::from_secs(1))
}

/// Whether the server only reads, because another one is the primary.
pub(super) fn is_replica(error: &RedisError) -> bool {
    says(error, REPLICA)
}

/// Whether a read that waits was ended because its server became a replica, or ceased to be one.
pub(super) fn has_changed_role(error: &RedisError) -> bool {
    says(error, "UNBLOCKED")
}

fn advice(error: &RedisError) -> Option<&'static str> {
    let known = REFUSALS.iter().find(|(word, _)| says(error, word));
    known.map(|(_, advice)| *advice)
}

/// Whether an error, or that of any command of a pipeline, begins with this word.
fn says(error: &RedisError, word: &str) -> bool {
    let of_pipeline = || {
        let errors = error.clone().into_server_errors();
        errors.is_some_and(|errors| errors.iter().any(|(_, error)| error.code() == word))
    };
    error.code() == Some(word) || of_pipeline()
}

#[cfg(test)]
mod tests {
    use redis::{Value, parse_redis_value};

    use super::*;

    fn error(line: &str) -> RedisError {
        let value = parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        let Value::ServerError(error) = value else {
            panic!("{value:?} is no error");
        };
        error.into()
    }

    #[test]
    fn a_refusal_is_logged_with_the_address_and_what_can_be_done() {
        let server = Server {
            client: Client::open("redis://ada:canary@db").unwrap(),
            address: super::super::masked("redis://ada:canary@db"),
        };
        for (line, advice, replica) in [
            ("READONLY You can't write against a read only replica.", "primary", true),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                "volatile-ttl",
                false,
            ),
            ("MISCONF Redis is configured to save RDB snapshots", "snapshots", false),
            ("NOREPLICAS Not enough good replicas to write.", "min-replicas", false),
            ("NOAUTH Authentication required.", "password", false),
            ("ERR unknown command", "unknown command", false),
        ] {
            let error = error(line);
            let causes = server.away(&error).causes();
            assert!(causes.starts_with("Redis at redis://ada:***@db: "), "{causes}");
            assert!(causes.contains(advice), "{causes}");
            assert_eq!(is_replica(&error), replica, "{line}");
        }
    }
}

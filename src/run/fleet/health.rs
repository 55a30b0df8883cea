//! The state of the relay, as far as is known, and the log lines about it.

use std::sync::Mutex;

use super::held;
use crate::error::Error;

/// The state of the relay, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayState {
    /// The relay answers, and takes what it is sent.
    Up,
    /// The relay answers, and takes nothing: a replica, or a server without memory or disk.
    NotWritable,
    /// The relay does not answer.
    Unreachable,
}

/// What was asked of the relay.
#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    Read,
    Write,
}

/// The outcome of the last read and the last write.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    reads: Option<bool>,
    writes: Option<bool>,
    /// Whether the log has a line about the relay's failing that no later line revokes.
    reported: bool,
}

impl Health {
    pub(super) fn state(&self) -> RelayState {
        let known = held(&self.0);
        match (known.reads, known.writes) {
            (Some(true), Some(false)) => RelayState::NotWritable,
            (Some(true), _) => RelayState::Up,
            _ => RelayState::Unreachable,
        }
    }

    /// Notes how a read or a write went. The log has one line when the relay begins to fail,
    /// whichever way, and one when both directions work again.
    pub(super) fn note(&self, direction: Direction, failed: Option<&Error>) {
        let mut known = held(&self.0);
        let last = match direction {
            Direction::Read => &mut known.reads,
            Direction::Write => &mut known.writes,
        };
        *last = Some(failed.is_none());
        let well = known.reads == Some(true) && known.writes == Some(true);
        match failed {
            None if well && std::mem::take(&mut known.reported) => {
                tracing::info!("the relay (Redis) can be used again: other gateways can follow runs");
            }
            None => {}
            Some(error) if std::mem::replace(&mut known.reported, true) => {
                tracing::debug!(
                    cause = error.causes(),
                    ?direction,
                    "the relay (Redis) still cannot be used"
                );
            }
            Some(error) => tracing::warn!(
                cause = error.causes(),
                "the relay (Redis) cannot be used: runs go on, and other gateways cannot follow them until it can"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_that_of_the_last_read_and_the_last_write() {
        let (health, failed) = (Health::default(), Error::not_found());
        assert_eq!(health.state(), RelayState::Unreachable);
        health.note(Direction::Read, None);
        assert_eq!(health.state(), RelayState::Up, "no write has failed yet");
        health.note(Direction::Write, Some(&failed));
        assert_eq!(health.state(), RelayState::NotWritable);
        health.note(Direction::Read, Some(&failed));
        assert_eq!(health.state(), RelayState::Unreachable);
        assert!(held(&health.0).reported);
        health.note(Direction::Read, None);
        assert!(held(&health.0).reported, "it still takes nothing");
        health.note(Direction::Write, None);
        assert_eq!(health.state(), RelayState::Up);
        assert!(!held(&health.0).reported);
    }
}

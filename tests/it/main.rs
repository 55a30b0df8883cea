//! The gateway from outside: stories with bytes at both ends, by subject. One binary.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test, what cannot be is a failure"
)]

mod agent_faults;
mod fallbacks;
mod faults;
mod formats;
mod gemini;
mod house;
mod mcp;
mod model_server;
mod properties;
mod provider;
mod recorded;
mod strict_servers;
mod structured;
mod tools;

mod bad_requests;
mod contract;
mod fault_index;
mod front_door;
#[cfg(feature = "jwt")]
mod jwt;
mod keys;
mod safety;
mod settings;
mod walls;

mod artifacts;
mod backups;
mod bound_tickets;
mod browser;
mod churn;
mod client_faults;
mod fleet;
mod host_faults;
mod limits;
mod metrics;
mod pooler;
mod process;
mod queueing;
mod reload;
mod replicas;
mod request_log;
mod runs;
mod sessions;
mod stores;
mod tickets;
#[cfg(feature = "otel")]
mod traces;

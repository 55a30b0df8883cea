//! Sluicegate: an HTTP gateway that runs an AI agent and streams its answer.
//!
//! The road, from the client to the model and back: [`http`] reads a request, [`run`] starts a task that writes a log,
//! [`agent`] asks the model in rounds, [`provider`] speaks the upstream's dialect, and a *format* in [`http::format`]
//! reads the log back to the client. [`chat`] holds the words they share. `ARCHITECTURE.md` walks it.

pub mod agent;
pub mod app;
pub mod chat;
pub mod config;
pub mod error;
pub mod http;
pub mod limit;
pub mod meters;
pub mod patience;
pub mod provider;
pub mod run;
pub mod schema;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod tool;

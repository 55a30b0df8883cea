//! Sluicegate's bench: what a token costs in the gateway, beside nginx copying bytes and beside nothing at all.
//!
//! The road of a measurement: [`workload`] decides how many streams and how fast, [`client`] asks and checks
//! every byte of the answers, [`subject`] is what stands in between (the gateway, nginx), [`mock`] is the
//! upstream that says what [`ask`] told it to, [`token`] carries the clock reading that makes delays visible,
//! [`procfs`], [`scales`] and [`watch`] read what it cost, [`stats`] folds rounds together and [`report`] writes the Markdown.
//!
//! It knows the gateway from outside only: its command line, its environment, its HTTP. It links none of it.

pub mod ask;
pub mod cage;
pub mod client;
pub mod clock;
pub mod dice;
pub mod machine;
pub mod mock;
pub mod procfs;
pub mod report;
pub mod scales;
pub mod stats;
pub mod subject;
pub mod token;
pub mod watch;
pub mod workload;

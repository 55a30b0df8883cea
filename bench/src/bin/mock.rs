//! The mock upstream by itself, to be looked at with `curl` or put behind any gateway by hand.

use std::net::SocketAddr;

use anyhow::Result;
use clap::Parser;
use sluicegate_bench::clock::Pacer;
use sluicegate_bench::mock::Mock;

/// Speaks OpenAI's Chat Completions over HTTP/1.1; the last user message says how much and how fast:
/// `bench stream=1 tokens=200 every_us=2000 per_write=1 first_us=0 stall_after=0 cut_after=0`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:9999")]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    sluicegate_bench::machine::raise_open_files();
    let mock = Mock::start(arguments.listen, Pacer::start()?)?;
    eprintln!("mock: http://{}/v1/chat/completions", mock.address());
    tokio::signal::ctrl_c().await?;
    Ok(())
}

//! What is written to the log: sentences that read alone, with fields; never a key, never a message's text.

use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Begins to log to standard error. `filter` is a `tracing` filter, such as `info` or `sluicegate=debug,warn`.
///
/// # Errors
/// A filter that is none, or a log that has begun already.
pub fn begin(format: LogFormat, filter: &str) -> Result<(), String> {
    // This library logs what MCP servers say, and addresses with their queries; what matters of it we say ourselves.
    let filter = EnvFilter::builder()
        .parse(format!("rmcp=off,{filter}"))
        .map_err(|e| format!("log.filter: {e}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_target(false)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|e| e.to_string())
}

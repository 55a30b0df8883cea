//! Sluicegate as a new user would start it: by its command line and its environment, in an empty folder.

use std::path::PathBuf;

use anyhow::Result;

use super::{Place, Subject, free_port};

/// Which binary, and settings beside the bench's own.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// The release binary.
    pub program: PathBuf,
    /// `NAME=VALUE` pairs for its environment, after the bench's own.
    pub environment: Vec<(String, String)>,
    /// The text of a file of settings, where the environment cannot say it.
    pub settings: Option<String>,
}

impl Gateway {
    /// The same with more settings.
    #[must_use]
    pub fn with(&self, pairs: &[(&str, &str)]) -> Self {
        let mut other = self.clone();
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        // What was asked for at the command line stays the last word.
        other.environment.splice(0..0, pairs);
        other
    }

    /// Starts it against the mock and waits for `GET /readyz`.
    ///
    /// # Errors
    /// When it does not serve, with the end of its log.
    pub async fn start(&self, place: &Place) -> Result<Subject> {
        let folder = place.folder("gateway")?;
        let port = free_port()?;
        let mut command = place.command(&self.program);
        command
            .arg("serve")
            // Whatever provider the caller's shell has a key for must not be measured by accident.
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("OPENAI_API_KEY", "bench")
            .env("OPENAI_BASE_URL", format!("http://127.0.0.1:{}/v1", place.upstream))
            .env("SLUICEGATE_MODEL", "openai/bench")
            .env("SLUICEGATE__SERVER__LISTEN", format!("127.0.0.1:{port}"))
            .env("SLUICEGATE__SERVER__ADMIN_LISTEN", "127.0.0.1:0") // there may be two of them
            .env(
                "SLUICEGATE__STORE__URL",
                format!("sqlite://{}", folder.path().join("sluicegate.db").display()),
            )
            .env("SLUICEGATE__LOG__FILTER", "warn")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(settings) = &self.settings {
            let file = folder.path().join("sluicegate.toml");
            std::fs::write(&file, settings)?;
            command.env("SLUICEGATE_CONFIG", file);
        }
        Subject::start("gateway", command, port, folder, "/readyz").await
    }
}

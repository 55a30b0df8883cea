//! `check-config --online`: every configured provider is asked once.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;

use super::config_error;
use crate::{
    agent::ModelRef,
    config::Settings,
    error::Error,
    provider::{
        Providers,
        probe::{probe, verdict},
    },
};

/// How long one provider may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// One provider's outcome.
pub struct Report {
    /// Whether it answered.
    pub is_fine: bool,
    /// A line for people, without secrets.
    pub line: String,
}

/// Asks every provider one small question, all at once.
///
/// # Errors
/// Settings that make no providers.
pub async fn check_online(settings: &Settings) -> Result<Vec<Report>, Error> {
    let providers = Providers::new(settings.providers.clone(), &Arc::default())
        .map_err(|e| config_error(format!("providers.{e}")))?;
    let asked = settings
        .providers
        .iter()
        .map(|one| ask(&providers, &one.name, model(settings, &one.name)));
    Ok(join_all(asked).await)
}

/// The model to ask for: one that an agent uses, else the provider's default.
fn model(settings: &Settings, provider: &str) -> Option<ModelRef> {
    let agents = settings.agents.iter();
    let mut used = agents.flat_map(|agent| std::iter::once(&agent.model).chain(&agent.fallbacks));
    let used = used.find(|model| model.provider == provider).cloned();
    used.or_else(|| settings.default_model(provider))
}

async fn ask(providers: &Providers, name: &str, model: Option<ModelRef>) -> Report {
    let (Some(provider), Some(model)) = (providers.get(name), model) else {
        let line = format!("{name}: not asked, because no model is named for it: set default_model");
        return Report { is_fine: false, line };
    };
    let outcome = probe(&**provider, &model.model, PATIENCE).await;
    let mut line = format!("{model}: {}", verdict(&outcome));
    if let Err(error) = &outcome {
        let status = error.status.map(|status| format!("status {status}"));
        let reason = error.refusal.reason.clone().or_else(|| Some(error.detail.clone()));
        let more: Vec<String> = [error.refusal.url.clone(), status, reason]
            .into_iter()
            .flatten()
            .filter(|part| !part.is_empty())
            .collect();
        line.push_str(&format!(" ({})", more.join("; ")));
    }
    Report {
        is_fine: outcome.is_ok(),
        line,
    }
}

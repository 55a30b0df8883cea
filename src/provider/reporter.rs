//! Completes the errors of one provider with its name, and tells the operator what has to be mended.

use secrecy::SecretString;

use super::{
    ProviderError,
    error::Kind,
    refusal::{Fault, masked},
};
use crate::chat::ChatRequest;

/// Completes errors. Every failure passes here once, those too that asking again mends: these are counted as
/// repetitions ([`crate::meters::Meters::call_again`]), and what fails in the end by whoever made the call
/// ([`crate::meters::Meters::call_failed`]).
pub(super) struct Reporter {
    provider: String,
    base_url: String,
    /// What must not be in any text: the key, and the values of headers.
    secrets: Vec<SecretString>,
}

impl Reporter {
    pub(super) fn new(provider: &str, base_url: &str, secrets: Vec<SecretString>) -> Self {
        Self {
            provider: provider.to_owned(),
            base_url: base_url.to_owned(),
            secrets,
        }
    }

    /// The error as this provider's, with its reason fit for the log.
    pub(super) fn complete(&self, error: ProviderError) -> ProviderError {
        let mut error = error.of(&self.provider);
        let reason = error.refusal.reason.take().map(|reason| masked(&reason, &self.secrets));
        error.refusal.reason = reason.filter(|reason| !reason.is_empty());
        error
    }

    /// The error of a call that failed for good, with the names of what is at fault. A warning tells
    /// the operator of what lasts until somebody mends it, and of errors that have a reason.
    pub(super) fn report(&self, mut error: ProviderError, request: &ChatRequest, path: &str) -> ProviderError {
        error.refusal.subject = match error.refusal.fault {
            Some(Fault::Model) => Some(request.model.clone()),
            Some(Fault::Tool(index)) => request.tools.get(index).map(|tool| tool.name.clone()),
            _ => None,
        };
        error.refusal.url = Some(self.url(path));
        self.warn(&error, Some(&request.model), path);
        error
    }

    /// The error of an answer that had begun.
    pub(super) fn broken_off(&self, error: ProviderError, path: &str) -> ProviderError {
        let error = self.complete(error);
        self.warn(&error, None, path);
        error
    }

    /// Writes the provider's reason to the log: the only line that has it.
    fn warn(&self, error: &ProviderError, model: Option<&str>, path: &str) {
        let explains = matches!(error.kind, Kind::Reported | Kind::Server) && error.refusal.reason.is_some();
        if !error.is_lasting() && !explains {
            return;
        }
        tracing::warn!(
            provider = self.provider,
            model,
            url = self.url(path),
            kind = error.word(),
            status = error.status,
            fault = error.refusal.fault.map(tracing::field::debug),
            detail = error.detail,
            reason = error.refusal.reason.as_deref().unwrap_or("none given"),
            "the provider refuses what it is asked"
        );
    }

    /// The address that was asked, without its query.
    fn url(&self, path: &str) -> String {
        let path = path.split('?').next().unwrap_or_default();
        format!("{}{path}", self.base_url)
    }
}

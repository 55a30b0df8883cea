//! The forms that a model turned out not to take, learnt from its refusals.
//!
//! A session may hold images and ids of calls from another model. Where a provider refuses them, the
//! session would stay refused for good; so the request is sent once more without them.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::{
    ProviderError,
    history::{has_calls, has_old_images, with_short_ids, without_old_images},
    refusal::Fault,
};
use crate::chat::{ChatRequest, Image};

/// How many models are remembered.
const MAX_MODELS: usize = 64;

/// What is known of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Images are refused.
    no_images: bool,
    /// Ids of calls must be nine letters and digits.
    short_ids: bool,
}

/// What is known of a provider's models.
#[derive(Debug, Default)]
pub(super) struct Adaptations(Mutex<BTreeMap<String, Known>>);

impl Adaptations {
    pub(super) fn of(&self, model: &str) -> Known {
        let models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        models.get(model).copied().unwrap_or_default()
    }

    /// What is known after a refusal, for this request at least; `None` if the request would be the
    /// same.
    pub(super) fn learn(&self, request: &ChatRequest, known: Known, error: &ProviderError) -> Option<Known> {
        let learnt = match error.refusal.fault? {
            Fault::Images | Fault::Parameter("attachments") if has_old_images(request) => Known {
                no_images: true,
                ..known
            },
            Fault::CallIds if has_calls(request) => Known {
                short_ids: true,
                ..known
            },
            _ => return None,
        };
        if learnt == known {
            return None;
        }
        if error.refusal.fault == Some(Fault::Parameter("attachments")) {
            return Some(learnt); // one image was refused: this says nothing of others
        }
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if models.len() >= MAX_MODELS {
            models.clear();
        }
        models.insert(request.model.clone(), learnt);
        Some(learnt)
    }
}

impl Known {
    /// The request in the form that the model takes.
    pub(super) fn apply<'a>(self, request: &'a ChatRequest, takes: impl Fn(&Image) -> bool) -> Cow<'a, ChatRequest> {
        let request = without_old_images(request, |image| !self.no_images && takes(image));
        match self.short_ids {
            true => Cow::Owned(with_short_ids(&request)),
            false => request,
        }
    }
}

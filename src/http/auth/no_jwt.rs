//! What stands here in a build without JWTs: an issuer that cannot be.

use std::{convert::Infallible, sync::Arc};

use super::{Allowance, IssuerSettings};
use crate::{chat::Principal, error::Error};

/// No issuer.
pub struct Issuer(Infallible);

/// Nobody.
pub(super) struct Bearer {
    pub(super) principal: Principal,
    pub(super) expires: i64,
}

impl Issuer {
    /// Says that there is none.
    ///
    /// # Errors
    /// Always.
    pub fn new(_settings: IssuerSettings) -> Result<Arc<Self>, String> {
        Err("this build takes no JWTs: it was made without the cargo feature \"jwt\"".into())
    }

    /// Never called.
    ///
    /// # Errors
    /// Never.
    pub fn renewed(&self, _settings: IssuerSettings) -> Result<Arc<Self>, String> {
        match self.0 {}
    }

    /// Never called.
    #[must_use]
    pub fn shares_keys(&self, _other: &Self) -> bool {
        match self.0 {}
    }

    /// Never called.
    pub async fn keep(&self) {
        match self.0 {}
    }

    /// Never called.
    pub(super) fn name(&self) -> &str {
        match self.0 {}
    }

    /// Never called.
    pub(super) fn allowance(&self) -> &Allowance {
        match self.0 {}
    }

    /// Never called.
    pub(super) async fn bearer(&self, _token: &str) -> Result<Option<Bearer>, Error> {
        match self.0 {}
    }
}

/// Nothing is one.
pub(super) fn is_token(_told: &str) -> bool {
    false
}

//! Where a tool may connect to.

use ipnet::IpNet;

/// Where a tool may connect to.
#[derive(Clone, Debug)]
pub struct Guard {
    allow: Vec<IpNet>,
}

impl Guard {
    /// Public addresses, and these networks.
    #[must_use]
    pub fn new(allow: Vec<IpNet>) -> Self {
        Self { allow }
    }
}

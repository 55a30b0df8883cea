//! Files.

use std::sync::Arc;

use super::Tool;

/// The tool.
pub(super) fn tool() -> Arc<dyn Tool> {
    unimplemented!()
}

//! Files that a run made, as clients are told of them. Their bytes are kept elsewhere.

use serde::{Deserialize, Serialize};

use super::ArtifactId;

/// A file that a run made. The JSON form is a promise (CONTRACT § 7, `artifact`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its id.
    pub id: ArtifactId,
    /// Its name: no path, no control characters; not unique.
    pub name: String,
    /// Its media type, as the tool said.
    pub media_type: String,
    /// Its size, in bytes.
    pub size: u64,
    /// SHA-256 of its bytes, in lower-case hex.
    pub sha256: String,
    /// Where it can be downloaded: a path on this gateway, or its public address and that path.
    pub url: String,
}

impl Artifact {
    /// A file of that id, and with it its place.
    #[must_use]
    pub fn new(id: ArtifactId, name: String, media_type: String, size: u64, sha256: String) -> Self {
        Self {
            id,
            name,
            media_type,
            size,
            sha256,
            url: format!("/artifacts/{id}"),
        }
    }
}

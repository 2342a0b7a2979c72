//! Documents as tests read them: their command blocks, and shells that run them as a reader would.

pub mod blocks;
pub mod shell;

use std::path::{Path, PathBuf};

/// Documents with blocks for clusters of Kubernetes: a host that begins with [`KUBERNETES`].
pub const IN_CLUSTERS: [&str; 3] = ["docs/install.md", "docs/operations.md", "docs/injection.md"];
/// Begin of the name of a host that is a person's shell with a cluster of Kubernetes.
pub const KUBERNETES: &str = "kube-";

/// The repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The text of a document, by its path from the root.
///
/// # Panics
/// There is none.
#[must_use]
pub fn read(document: &str) -> String {
    std::fs::read_to_string(root().join(document)).unwrap_or_else(|error| panic!("{document}: {error}"))
}

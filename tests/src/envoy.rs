//! Real Envoys, as `make deps` fetched them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The newest that was tried and the oldest that is supported.
pub const VERSIONS: [&str; 2] = ["1.40.0", "1.36.2"];

/// The program of this version.
///
/// # Errors
/// There is none: a test that needs it fails and says how to get it.
pub fn binary(version: &str) -> Result<PathBuf> {
    let name = format!("envoy-{version}");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let candidates = [
        std::env::var_os("EASTWAY_TOOLS").map(|tools| PathBuf::from(tools).join(&name)),
        Some(workspace.join("target/tools/bin").join(&name)),
    ];
    let Some(found) = candidates.into_iter().flatten().find(|path| path.is_file()) else {
        bail!("Envoy {version} is missing: run `make deps`");
    };
    Ok(found.canonicalize()?)
}

//! Programs of the test bed: built by `make deps-e2e`, or of the system.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run::from_workspace;

/// Where Debian's package of the CNI plugins has them.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// The Gateway API's own definitions, of its standard channel and of its experimental one.
pub const GATEWAY_API: &str = "gateway-api-standard.yaml";
/// See [`GATEWAY_API`].
pub const GATEWAY_API_EXPERIMENTAL: &str = "gateway-api-experimental.yaml";

/// A program that `make deps-e2e` built.
///
/// # Errors
/// There is none: what needs it fails and says how to get it.
pub fn built(name: &str) -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let candidates = [
        std::env::var_os("EASTWAY_TOOLS").map(|tools| from_workspace(tools.into()).join(name)),
        Some(workspace.join("target/tools/bin").join(name)),
    ];
    let Some(found) = candidates.into_iter().flatten().find(|path| path.exists()) else {
        bail!("{name} is missing: run `make deps-e2e`, or name the folder of the tools in EASTWAY_TOOLS");
    };
    // Not resolved further: the Kubernetes programs are links to one file and go by their own name.
    std::path::absolute(&found).with_context(|| found.display().to_string())
}

/// The text of a file that `make deps-e2e` or `make deps-istio` made.
///
/// # Errors
/// There is none.
pub fn text(name: &str) -> Result<String> {
    let file = built(name)?;
    std::fs::read_to_string(&file).with_context(|| file.display().to_string())
}

/// A program of the system.
///
/// # Errors
/// It is not installed.
pub fn system(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is missing: run `make deps-e2e`"))
}

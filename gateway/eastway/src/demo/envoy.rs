//! Which Envoy stands beside the workloads, if any.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Args;
use super::lab::Isolation;
use crate::roles::sidecar::program;

/// An Envoy that can be run.
#[derive(Clone, Debug)]
pub(super) struct Envoy {
    /// Its program, by its whole path: nothing of the lab may cover it.
    pub(super) path: PathBuf,
    pub(super) version: String,
}

/// The Envoy to run, or why the workloads go without.
pub(super) type Choice = std::result::Result<Envoy, String>;

/// The one that was asked for, else that of `PATH`.
///
/// # Errors
/// The one that was asked for cannot be used.
pub(super) async fn choose(args: &Args, isolation: Isolation) -> Result<Choice> {
    if args.no_envoy {
        return Ok(Err("asked for".to_owned()));
    }
    if isolation == Isolation::Loopback {
        // All of them would listen at the same addresses.
        return Ok(Err("on loopback there is no host for each workload".to_owned()));
    }
    // An empty variable is one that is not set.
    if let Some(path) = args.envoy.as_deref().filter(|path| !path.is_empty()).map(Path::new) {
        return Ok(Ok(usable(path).await.with_context(|| format!("--envoy {}", path.display()))?));
    }
    let Some(path) = in_path() else { return Ok(Err("there is no envoy in PATH".to_owned())) };
    Ok(usable(&path).await.map_err(|error| format!("{error:#}")))
}

async fn usable(path: &Path) -> Result<Envoy> {
    let version = program::version(path).await?.to_string();
    Ok(Envoy { path: path.canonicalize()?, version })
}

fn in_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("envoy")).find(|file| file.is_file())
}

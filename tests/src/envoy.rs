//! Real Envoys, as `make deps` fetched them, and the workload of cloud a that has one beside it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::lab::files::{self, trust_domain};
use crate::mesh::{Mesh, NAMESPACE};

/// The newest that was tried and the oldest that is supported.
pub const VERSIONS: [&str; 2] = ["1.40.0", "1.36.2"];

/// The service account of the workload.
pub const ACCOUNT: &str = "shopper";
/// Address of the gateway of cloud a for its pods, and its ports for HBONE and xDS.
const GATEWAY: &str = "10.244.0.1";
const HBONE: u16 = 15008;
const XDS: u16 = 15012;

/// What the gateway of cloud a needs for the workload's sidecar.
#[must_use]
pub fn gateway_settings() -> Value {
    json!({
        "listen": {"hbone": format!("0.0.0.0:{HBONE}"), "local": format!("0.0.0.0:{XDS}")},
        "sidecars": {"gateway": format!("{GATEWAY}:{HBONE}")},
        "trust": {"workloads": [{"namespace": NAMESPACE, "serviceAccount": ACCOUNT, "socket": "./run/shopper.sock"}]},
    })
}

/// Starts the sidecar among a's pods. From then on the address of `service`, which is returned, is on its own host.
///
/// # Errors
/// The service has no address in a, or the sidecar cannot be started.
pub async fn start_sidecar(mesh: &mut Mesh, service: &str, version: &str) -> Result<SocketAddr> {
    ensure!(mesh.cloud("a").net().gateways()[0].inside.to_string() == GATEWAY, "the gateway has another address");
    let target = mesh.target("a", service).await?;
    let (place, _) = mesh.client("a");
    place.ip(&format!("route add local {}/32 dev lo", target.ip())).await?;
    let cloud = mesh.cloud_mut("a");
    let file = cloud.folder().join("sidecar.yaml");
    let config = json!({
        "apiVersion": "eastway.dev/v1alpha1",
        "kind": "SidecarConfig",
        "workload": {"namespace": NAMESPACE, "serviceAccount": ACCOUNT, "name": "shopper-1"},
        "trust": {"domain": trust_domain("a"), "ca": "unix:./run/shopper.sock"},
        "gateway": format!("{GATEWAY}:{XDS}"),
        "state": "./shopper",
        "envoy": {"path": binary(version)?, "concurrency": 1},
    });
    files::write(&file, &config)?;
    cloud.start_workload("shopper", vec!["sidecar".into(), "--config".into(), file.into()]).await?;
    Ok(target)
}

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

//! Eastway beside Istio: the chart with `istio.enabled`, one root and trust domain for both, and the clusters joined.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{TRUST_DOMAIN, authority};
use crate::kube::eastway::{self, SYSTEM};
use crate::kube::{Bed, Cluster};

/// The first of the gateways' ports for Istio.
const FIRST_PORT: usize = 15444;

/// Installs Istio and then Eastway, and joins the clusters, unless a test of this bed has done so.
///
/// # Errors
/// A step fails; every later call says the same.
pub async fn ready(bed: &Bed) -> Result<()> {
    super::ready(bed).await?;
    let values = async |cluster: &Cluster| {
        cluster.apply(&same_authority(cluster)?).await?;
        Ok(values(bed, cluster))
    };
    // Workloads of the clusters are not isolated from each other, and both sides have to say so.
    let shared = |peer: &str| peer.replace("  trustDomain:", "  sharedTrustDomain: true\n  trustDomain:");
    eastway::ready_with(bed, values, shared).await
}

/// Every other cluster is a network of that name.
fn values(bed: &Bed, cluster: &Cluster) -> Value {
    let others = bed.clusters().iter().filter(|other| other.name() != cluster.name());
    let networks = others.zip(FIRST_PORT..).map(|(other, port)| json!({"peer": other.name(), "port": port}));
    json!({
        "trustDomain": TRUST_DOMAIN,
        "istio": {"enabled": true, "networks": networks.collect::<Vec<_>>()},
    })
}

/// Eastway's namespace with the Secret that Istio calls `cacerts`.
fn same_authority(cluster: &Cluster) -> Result<String> {
    let folder = authority(cluster);
    let file = |name: &str| {
        let bytes = std::fs::read(folder.join(name)).with_context(|| name.to_owned())?;
        anyhow::Ok(STANDARD.encode(bytes))
    };
    let data = json!({
        "ca-cert.pem": file("ca-cert.pem")?, "ca-key.pem": file("ca-key.pem")?,
        "cert-chain.pem": file("cert-chain.pem")?, "root-cert.pem": file("root-cert.pem")?,
    });
    let items = json!([
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cacerts", "namespace": SYSTEM}, "data": data},
    ]);
    Ok(json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())
}

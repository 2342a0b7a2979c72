//! Eastway beside Istio: the chart with `istio.enabled`, one root and trust domain for both, and the clusters joined.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Trust, authority};
use crate::kube::eastway::{self, SYSTEM};
use crate::kube::{Bed, Cluster};

/// The first of the gateways' ports for Istio.
pub const FIRST_PORT: usize = 15444;
/// The service that [`own_name`] leads to, wherever it is.
pub const NAMED: &str = "e2e-stretched/ratings";

/// A name of one's own, in [`eastway::ZONE`].
#[must_use]
pub fn own_name() -> String {
    format!("ratings.{}", eastway::ZONE)
}

/// Installs Istio and then Eastway, and joins the clusters, unless a test of this bed has done so.
///
/// # Errors
/// A step fails; every later call says the same.
pub async fn ready(bed: &Bed) -> Result<()> {
    ready_with(bed, Trust::One).await
}

/// As [`ready`], with this trust between the clusters.
///
/// # Errors
/// As there.
pub async fn ready_with(bed: &Bed, trust: Trust) -> Result<()> {
    ready_as(bed, trust, str::to_owned).await
}

/// As [`ready`], where Istio itself has networks called like the clusters: `network` has other names for them.
///
/// # Errors
/// As there.
pub async fn ready_beside(bed: &Bed, network: impl Fn(&str) -> String) -> Result<()> {
    ready_as(bed, Trust::One, network).await
}

async fn ready_as(bed: &Bed, trust: Trust, network: impl Fn(&str) -> String) -> Result<()> {
    super::ready_with(bed, trust).await?;
    let values = async |cluster: &Cluster| {
        cluster.apply(&same_authority(cluster)?).await?;
        Ok(values(bed, cluster, trust, &network))
    };
    // Workloads of the clusters are not isolated from each other, and both sides have to say so.
    let shared = |peer: &str| peer.replace("  trustDomain:", "  sharedTrustDomain: true\n  trustDomain:");
    match trust {
        Trust::One => eastway::ready_with(bed, values, shared).await,
        Trust::Apart => eastway::ready_with(bed, values, str::to_owned).await,
    }
}

/// What `eastway check` finds in a cluster about Istio: codes, and the change that it prints.
///
/// # Errors
/// It cannot be asked.
pub async fn found(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let command = ["/usr/bin/eastway", "check", "-o", "json"];
    let said = match cluster.exec(SYSTEM, "deploy/eastway-gateway", &command).await {
        Ok(said) => said,
        // It says by its exit code that it found something.
        Err(error) => format!("{error:#}"),
    };
    let object = said.find('{').zip(said.rfind('}')).and_then(|(first, last)| said.get(first..=last));
    let report: Value = serde_json::from_str(object.with_context(|| said.clone())?).with_context(|| said.clone())?;
    let findings = report["findings"].as_array().context("findings")?.iter();
    let of_istio = findings.filter(|finding| finding["subject"] == "istio");
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    Ok(of_istio.map(|finding| (text(finding, "code"), text(finding, "change"))).collect())
}

/// The Service of the gateways for sidecars: its address is theirs in every network but the cluster's own.
pub const GATEWAYS: &str = "eastway-istio";

/// Every other cluster is a network, which `network` has a name for.
fn values(bed: &Bed, cluster: &Cluster, trust: Trust, network: impl Fn(&str) -> String) -> Value {
    let others = bed.clusters().iter().filter(|other| other.name() != cluster.name());
    let networks = others.zip(FIRST_PORT..).map(|(other, port)| {
        let peer = other.name();
        json!({"peer": peer, "port": port, "network": network(peer)})
    });
    json!({
        "trustDomain": trust.domain(cluster.name()),
        "istio": {"enabled": true, "networks": networks.collect::<Vec<_>>()},
        // What Istio's sidecars go by is read for sidecars of ours, too. To the former that must make no difference.
        "routes": {"istio": true},
        "dns": {"names": [{"name": own_name(), "service": NAMED}]},
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

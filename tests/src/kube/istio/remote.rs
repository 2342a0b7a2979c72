//! Istio's own way between clusters, "multi-primary on different networks": an istiod reads the API server of the other
//! cluster by a *remote secret*, as `istioctl create-remote-secret` writes it, and sidecars reach pods of the other network
//! by an *east-west gateway* of Istio there.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{SYSTEM, sidecar};
use crate::kube::node::API_PORT;
use crate::kube::{Bed, Cluster, pods};
use crate::within;

/// The account that an istiod reads another cluster's API as, and the secret with its token.
const READER: &str = "istio-reader-service-account";
const TOKEN: &str = "istio-reader-service-account-istio-remote-secret-token";
/// The gateway, its Service and its account.
const GATEWAY: &str = "istio-eastwestgateway";
/// The gateway's port for other networks.
const PORT: u16 = 15443;
/// The addresses that the gateways have on the WAN begin here.
const FIRST_ADDRESS: u8 = 31;
/// Longest wait for a pod or a token.
const PATIENCE: Duration = Duration::from_secs(90);

/// Has the istiod of `reader` read the API server of `cluster`.
///
/// # Errors
/// There is no account, or the secret cannot be written.
pub async fn read(reader: &Cluster, cluster: &Cluster) -> Result<()> {
    cluster.apply(&account()).await?;
    let name = cluster.name();
    let token = async || {
        let secret = cluster.get(&["secret", TOKEN, "-n", SYSTEM]).await?;
        let text = |key: &str| secret["data"][key].as_str().map(str::to_owned).context("no token yet");
        anyhow::Ok((text("token")?, text("ca.crt")?))
    };
    within(PATIENCE, format!("the reader of {name} has a token"), async || token().await.map(|_| true)).await?;
    let (token, authority) = token().await?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": name,
        "clusters": [{"name": name, "cluster": {
            "server": format!("https://{}:{API_PORT}", cluster.address()), "certificate-authority-data": authority,
        }}],
        "users": [{"name": name, "user": {"token": plain(&token)?}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {
            "name": secret_name(cluster), "namespace": SYSTEM,
            "labels": {"istio/multiCluster": "true"}, "annotations": {"networking.istio.io/cluster": name},
        },
        "stringData": {name: kubeconfig.to_string()},
    });
    reader.apply(&secret.to_string()).await.map(drop)
}

/// Has it read that no more.
///
/// # Errors
/// There is no such secret.
pub async fn forget(reader: &Cluster, cluster: &Cluster) -> Result<()> {
    reader.kubectl(&["delete", "secret", &secret_name(cluster), "-n", SYSTEM]).await.map(drop)
}

fn secret_name(cluster: &Cluster) -> String {
    format!("istio-remote-secret-{}", cluster.name())
}

fn plain(base64: &str) -> Result<String> {
    use base64::Engine as _;
    Ok(String::from_utf8(base64::engine::general_purpose::STANDARD.decode(base64)?)?)
}

/// The reader, with the rights that Istio's charts give it, and its token.
fn account() -> String {
    let core =
        ["endpoints", "pods", "services", "nodes", "replicationcontrollers", "namespaces", "secrets", "configmaps"];
    let rules = json!([
        read_rule(&["security.istio.io", "networking.istio.io", "telemetry.istio.io", "extensions.istio.io"], &["*"]),
        read_rule(&[""], &core),
        read_rule(&["gateway.networking.k8s.io"], &["gateways"]),
        read_rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"]),
        read_rule(&["discovery.k8s.io"], &["endpointslices"]),
        read_rule(&["multicluster.x-k8s.io"], &["serviceexports", "serviceimports"]),
        read_rule(&["apps"], &["replicasets"]),
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
    ]);
    let (group, named) = ("rbac.authorization.k8s.io", json!({"name": "istio-reader"}));
    pods::list(&[
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": READER, "namespace": SYSTEM}}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": named, "rules": rules}),
        json!({
            "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": named,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "istio-reader"},
            "subjects": [{"kind": "ServiceAccount", "name": READER, "namespace": SYSTEM}],
        }),
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {
                "name": TOKEN, "namespace": SYSTEM, "annotations": {"kubernetes.io/service-account.name": READER},
            },
        }),
    ])
}

fn read_rule(groups: &[&str], resources: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": ["get", "list", "watch"]})
}

/// Starts the east-west gateway of a cluster; gives the address at which other networks reach it.
///
/// # Errors
/// It is not ready in time.
pub async fn open(bed: &Bed, cluster: &Cluster) -> Result<SocketAddr> {
    let place = bed.clusters().iter().position(|one| one.name() == cluster.name()).context("a cluster of this bed")?;
    let address = Ipv4Addr::new(198, 51, 100, FIRST_ADDRESS + u8::try_from(place)?);
    cluster.apply(&gateway(cluster)).await?;
    cluster.load_balancer(SYSTEM, GATEWAY, address).await?;
    cluster.wait("condition=Ready", &[&format!("pod/{GATEWAY}"), "-n", SYSTEM], PATIENCE).await?;
    Ok((address, PORT).into())
}

/// Ends it.
///
/// # Errors
/// There is none.
pub async fn close(cluster: &Cluster) -> Result<()> {
    cluster.delete(&gateway(cluster)).await.map(drop)
}

fn gateway(cluster: &Cluster) -> String {
    let labels = json!({
        "app": GATEWAY, "istio": "eastwestgateway", "topology.istio.io/network": cluster.name(),
    });
    let metadata = json!({"name": GATEWAY, "namespace": SYSTEM, "labels": labels});
    let server: Value = json!({
        "port": {"number": PORT, "name": "tls", "protocol": "TLS"}, "tls": {"mode": "AUTO_PASSTHROUGH"},
        "hosts": ["*.local"],
    });
    pods::list(&[
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": GATEWAY, "namespace": SYSTEM}}),
        sidecar::router(cluster, GATEWAY, &labels),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"type": "LoadBalancer", "selector": {"app": GATEWAY}, "ports": [{"name": "tls", "port": PORT}]},
        }),
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Gateway",
            "metadata": {"name": "cross-network-gateway", "namespace": SYSTEM},
            "spec": {"selector": {"istio": "eastwestgateway"}, "servers": [server]},
        }),
    ])
}

//! The premise of all else here: Istio does in these clusters what it does elsewhere, without us.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::istio::sidecar::Workload;
use eastway_tests::kube::{Bed, Cluster, image, istio, pods};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

const NAMESPACE: &str = "e2e-alone";
const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace with these service accounts, in which Istio takes nothing but mutual TLS.
fn strict(accounts: &[&str]) -> String {
    let account = |name: &&str| {
        let metadata = json!({"name": name, "namespace": NAMESPACE});
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    };
    let mut items = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": NAMESPACE}, "spec": {"mtls": {"mode": "STRICT"}},
        }),
    ];
    items.extend(accounts.iter().map(account));
    pods::list(&items)
}

fn server(cluster: &Cluster) -> Value {
    let container = json!({
        "name": "web", "image": image::AGNHOST, "imagePullPolicy": "IfNotPresent", "args": ["netexec", "--http-port=8080"],
    });
    let labels = json!({"app": "web"});
    Workload { namespace: NAMESPACE, name: "web", account: "web", labels, container }.pod(cluster)
}

fn client(cluster: &Cluster) -> Value {
    let container = json!({
        "name": "sleeper", "image": image::BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "infinity"],
    });
    let labels = json!({"app": "client"});
    Workload { namespace: NAMESPACE, name: "client", account: "client", labels, container }.pod(cluster)
}

async fn start(cluster: &Cluster) -> Result<SocketAddr> {
    cluster.apply(&strict(&["web", "client"])).await?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    let stranger = pods::sleeper(NAMESPACE, "stranger", "stranger");
    cluster.apply(&pods::list(&[service, server(cluster), client(cluster), stranger])).await?;
    cluster.wait("condition=Ready", &["pod", "-n", NAMESPACE, "--all"], PATIENCE).await?;
    let service = cluster.get(&["service", "web", "-n", NAMESPACE]).await?;
    let address: std::net::IpAddr = service["spec"]["clusterIP"].as_str().context("an address")?.parse()?;
    Ok(SocketAddr::new(address, 80))
}

async fn works(bed: &Bed, name: &str) -> Result<()> {
    let cluster = bed.cluster(name);
    let target = start(cluster).await?;
    let client = cluster.pod(NAMESPACE, "client").await?;
    // The sidecar of the server may not have heard of the PeerAuthentication, nor that of the client of the server.
    let path = "/header?key=X-Forwarded-Client-Cert";
    within(PATIENCE, "the server hears who its client is", async || {
        let answer = client.get(target, "web", path, &[]).await?;
        let id = format!("URI=spiffe://cluster.local/ns/{NAMESPACE}/sa/client");
        ensure!(answer.status == 200 && answer.body.contains(&id), "{answer:?}");
        Ok(true)
    })
    .await?;
    for _ in 0..20 {
        let answer = client.get(target, "web", "/hostname", &[]).await?;
        ensure!(answer.status == 200 && answer.body.contains("web"), "{answer:?}");
    }
    let stranger = cluster.pod(NAMESPACE, "stranger").await?;
    within(PATIENCE, "who speaks no mutual TLS is not served", async || {
        Ok(stranger.get(target, "web", "/hostname", &[]).await.is_err())
    })
    .await?;
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await.map(drop)
}

bed_tests! {
    /// From sidecar to sidecar, by mutual TLS with certificates of istiod, in each cluster by itself.
    async fn a_sidecar_reaches_its_neighbour(bed) {
        istio::ready(bed).await?;
        for name in ["a", "b"] {
            works(bed, name).await.with_context(|| name.to_owned())?;
        }
        Ok(())
    }
}

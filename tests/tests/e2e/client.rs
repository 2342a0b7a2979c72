//! A pod with resolvers, `nslookup`, `nc` and a client of gRPC, and what tests ask from there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use eastway_tests::kube::lookup::{self, Found};
use eastway_tests::kube::{Cluster, image, stage};
use serde_json::json;

/// The pod, in the namespace of a test.
pub(crate) const POD: &str = "pod/client";
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the pod in a namespace, which is made if need be. `searches` comes first in its resolver's search path.
pub(crate) async fn start(cluster: &Cluster, namespace: &str, searches: &[&str]) -> Result<()> {
    let tar = stage::folder()?.join("images/resolve.tar");
    if !tar.exists() {
        image::resolve_image(&tar).await?;
    }
    cluster.load_images(&[tar]).await?;
    let local = [format!("{namespace}.svc.cluster.local"), "svc.cluster.local".to_owned(), "cluster.local".to_owned()];
    let searches: Vec<&str> = searches.iter().copied().chain(local.iter().map(String::as_str)).collect();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "client", "namespace": namespace},
        "spec": {
            "containers": [{"name": "client", "image": image::RESOLVE}],
            "terminationGracePeriodSeconds": 0,
            "dnsPolicy": "None",
            // As every pod has it, but for what comes first.
            "dnsConfig": {"nameservers": ["10.96.0.10"], "searches": searches, "options": [{"name": "ndots", "value": "5"}]},
        },
    });
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    cluster.apply(&space.to_string()).await?;
    // The namespace's service account follows it.
    eastway_tests::within(PATIENCE, "a pod is taken", async || Ok(cluster.apply(&pod.to_string()).await.is_ok()))
        .await?;
    cluster.wait("condition=Ready", &[POD, "-n", namespace], PATIENCE).await
}

/// The pod goes at once, and the namespace with everything else.
pub(crate) async fn end(cluster: &Cluster, namespace: &str) -> Result<()> {
    cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]).await.map(drop)
}

/// Asks the cluster's resolver.
pub(crate) async fn lookup(cluster: &Cluster, namespace: &str, kind: &str, name: &str) -> Result<Found> {
    lookup::lookup(cluster, (namespace, POD), kind, name, None).await
}

/// The addresses of a name.
pub(crate) async fn addresses(cluster: &Cluster, namespace: &str, name: &str) -> Result<BTreeSet<IpAddr>> {
    Ok(lookup(cluster, namespace, "a", name).await?.addresses)
}

/// What a resolver in the pod says of a name, through the search path: its addresses, and the milliseconds it took.
pub(crate) async fn resolve(
    cluster: &Cluster,
    namespace: &str,
    resolver: &str,
    name: &str,
) -> Result<(Vec<String>, f64)> {
    let said = cluster.exec(namespace, POD, &[resolver, name]).await?;
    let words: Vec<&str> = said.split_ascii_whitespace().collect();
    let [_name, addresses @ .., took] = words.as_slice() else { anyhow::bail!("{resolver} says {said:?}") };
    let took = took.parse().with_context(|| said.clone())?;
    Ok((addresses.iter().map(|&address| address.to_owned()).collect(), took))
}

/// The host names that HTTP servers at `host:port` say they have, one for each of `times` connections at once; an
/// empty one where nothing was answered.
pub(crate) async fn hostnames(
    cluster: &Cluster,
    namespace: &str,
    host: &str,
    port: u16,
    times: usize,
) -> Result<Vec<String>> {
    // The input stays open: a server may take its end for that of the client.
    let script = format!(
        "for i in $(seq {times}); do \
         (printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n'; sleep 1) | nc -w 10 {host} {port} 2>/dev/null | tail -n 1 >/tmp/said.$i & \
         done; wait; for i in $(seq {times}); do cat /tmp/said.$i; echo; done"
    );
    let said = cluster.exec(namespace, POD, &["sh", "-c", &script]).await?;
    Ok(said.lines().map(|line| line.trim().to_owned()).collect())
}

//! Names of one's own that lead to one cluster each, while the service is in both.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use eastway_tests::kube::{Cluster, eastway as installed, image, pods};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use crate::client::{self, addresses, hostnames};

const NAMESPACE: &str = installed::PINNED;
const PATIENCE: Duration = Duration::from_secs(60);
const ASKED: usize = 10;

/// A server that says its name, exported, and who may call it.
fn server(name: &str) -> String {
    let labels = json!({"app": "web"});
    let metadata = |name: &str| json!({"name": name, "namespace": NAMESPACE});
    let mut pod = metadata(name);
    pod["labels"] = labels.clone();
    let object = |api_version: &str, kind: &str, metadata: &Value, spec: Value| json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec});
    pods::list(&[
        object(
            "v1",
            "Pod",
            &pod,
            json!({
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "http", "image": image::AGNHOST, "args": ["netexec", "--http-port=8080"],
                    "readinessProbe": {"httpGet": {"port": 8080, "path": "/healthz"}, "periodSeconds": 1},
                }],
            }),
        ),
        object(
            "v1",
            "Service",
            &metadata("web"),
            json!({"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
        ),
        object("multicluster.x-k8s.io/v1beta1", "ServiceExport", &metadata("web"), json!({})),
        object(
            "eastway.dev/v1alpha1",
            "AccessPolicy",
            &metadata("all"),
            json!({"services": ["web"], "allow": [{"cluster": "*"}]}),
        ),
    ])
}

/// Both names have an address of their own in a cluster, and each leads to the one it is for.
async fn ask(cluster: &Cluster) -> Result<()> {
    let import = installed::imported(cluster, NAMESPACE, "web").await?.parse::<IpAddr>()?;
    let mut all = BTreeSet::from([import]);
    for other in ["a", "b"] {
        let name = format!("{other}.{}", installed::ZONE);
        let what = format!("{name} has an address in {}", cluster.name());
        within(PATIENCE, what, async || Ok(addresses(cluster, NAMESPACE, &name).await?.len() == 1)).await?;
        all.extend(addresses(cluster, NAMESPACE, &name).await?);
        let said = hostnames(cluster, NAMESPACE, &name, 80, ASKED).await?;
        ensure!(said == vec![format!("web-{other}"); ASKED], "{}: {name} reached {said:?}", cluster.name());
    }
    ensure!(all.len() == 3, "{}: {all:?}", cluster.name());
    Ok(())
}

bed_tests! {
    /// From both clusters, by the cluster's resolver, and gone with the service.
    async fn a_name_of_ones_own_leads_to_the_cluster_it_is_pinned_to(bed) {
        installed::ready(bed).await?;
        for cluster in bed.clusters() {
            client::start(cluster, NAMESPACE, &[]).await?;
            let name = format!("web-{}", cluster.name());
            cluster.apply(&server(&name)).await?;
            cluster.wait("condition=Ready", &[&format!("pod/{name}"), "-n", NAMESPACE], PATIENCE).await?;
        }
        for cluster in bed.clusters() {
            ask(cluster).await?;
        }
        // The other cluster's name goes with its export, and so does its Service; its own stays.
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        b.kubectl(&["delete", "serviceexport", "web", "-n", NAMESPACE]).await?;
        let name = format!("b.{}", installed::ZONE);
        within(PATIENCE, format!("{name} is gone in a"), async || {
            let derived = ["get", "services", "-n", NAMESPACE, "-l", "app.kubernetes.io/managed-by=eastway", "-o", "name"];
            let services = a.kubectl(&derived).await?.lines().count();
            Ok(services == 2 && addresses(a, NAMESPACE, &name).await?.is_empty())
        })
        .await?;
        for cluster in bed.clusters() {
            client::end(cluster, NAMESPACE).await?;
        }
        Ok(())
    }
}

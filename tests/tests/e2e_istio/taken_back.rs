//! What istiod was told goes when it is to be told nothing any more, and is told again afterwards.

use std::time::Duration;

use anyhow::Result;
use eastway_tests::kube::istio::joined;
use eastway_tests::kube::{Cluster, eastway as installed, pods};
use eastway_tests::{bed_tests, within};
use serde_json::json;

use crate::parts::{remove, server, service, space, told};

const NAMESPACE: &str = "e2e-taken-back";
const PATIENCE: Duration = Duration::from_secs(90);

/// WorkloadEntries and ServiceEntries of ours in the test's namespace, and Gateways that lead to networks.
async fn counts(cluster: &Cluster) -> Result<[usize; 3]> {
    let gateways = told(cluster, installed::SYSTEM, "gateways.gateway.networking.k8s.io").await?;
    let entries = told(cluster, NAMESPACE, "workloadentries").await?;
    Ok([entries, told(cluster, NAMESPACE, "serviceentries").await?, gateways])
}

bed_tests! {
    /// By Helm alone: `istio.enabled` off, and on again.
    async fn what_istiod_was_told_goes_with_the_setting(bed) limit 400 {
        joined::ready(bed).await?;
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        for (cluster, version) in [(a, "v1"), (b, "v2")] {
            cluster.apply(&pods::list(&space(bed, NAMESPACE, &["both"]))).await?;
            let servers = vec![server(cluster, NAMESPACE, "both", version)];
            cluster.apply(&pods::list(&[service(NAMESPACE, "both"), servers].concat())).await?;
        }
        for cluster in [a, b] {
            cluster.wait("condition=Ready", &["pod", "-n", NAMESPACE, "--all"], PATIENCE).await?;
        }
        let all = [1, 1, bed.clusters().len() - 1];
        within(PATIENCE, "istiod of a is told", async || Ok(counts(a).await? == all)).await?;
        installed::set_values(a, &json!({"istio": {"enabled": false}})).await?;
        within(PATIENCE, "nothing is left of it", async || Ok(counts(a).await? == [0; 3])).await?;
        installed::set(a, &[]).await?;
        within(PATIENCE, "istiod of a is told again", async || Ok(counts(a).await? == all)).await?;
        remove(bed, NAMESPACE).await
    }
}

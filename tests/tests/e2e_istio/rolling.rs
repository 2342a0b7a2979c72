//! Gateways are replaced while sidecars, which know nothing of it, use connections through them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::istio::joined;
use eastway_tests::kube::pods::Pod;
use eastway_tests::kube::{Bed, Cluster, eastway as installed, pods, traffic};
use eastway_tests::load::{Load, Plan};
use eastway_tests::{bed_tests, within};
use serde_json::Value;

use crate::parts::{PORT, client, echo, remove, service, space};

const NAMESPACE: &str = "e2e-rolling";
const HOST: &str = "echo.e2e-rolling.svc.clusterset.local";
const PATIENCE: Duration = Duration::from_secs(90);
/// Requests per second, as many as the definition of "0 failed" asks for.
const RATE: u32 = 500;
/// Servers, so that no restart of theirs is needed for a connection to have a choice.
const SERVERS: [&str; 2] = ["v1", "v2"];

async fn set(bed: &Bed) -> Result<(Pod, SocketAddr)> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    traffic::load_echo(b).await?;
    for cluster in [a, b] {
        cluster.apply(&pods::list(&space(bed, NAMESPACE, &["client", "echo"]))).await?;
    }
    let servers = SERVERS.map(|version| echo(b, NAMESPACE, version)).to_vec();
    b.apply(&pods::list(&[service(NAMESPACE, "echo"), servers].concat())).await?;
    a.apply(&pods::list(&[client(a, NAMESPACE, "client")])).await?;
    for cluster in [a, b] {
        cluster.wait("condition=Ready", &["pod", "-n", NAMESPACE, "--all"], PATIENCE).await?;
    }
    let address: IpAddr = installed::imported(a, NAMESPACE, "echo").await?.parse()?;
    let (client, target) = (a.pod(NAMESPACE, "client").await?, SocketAddr::new(address, PORT));
    within(PATIENCE, "an answer of b", async || {
        let answer = client.get(target, HOST, "/1/100", &[]).await?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(true)
    })
    .await?;
    // Through sidecars, and not in plain text through the address of the import.
    let answer = client.get(target, HOST, "/1/100", &[]).await?;
    ensure!(answer.head.contains("x-envoy-upstream-service-time"), "{answer:?}");
    Ok((client, target))
}

/// The gateways of a cluster, those on their way out too.
async fn gateways(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = cluster.get(&["pods", "-n", installed::SYSTEM, "-l", "app.kubernetes.io/component=gateway"]).await?;
    let uid = |pod: &Value| pod["metadata"]["uid"].as_str().map(str::to_owned).context("a pod has a uid");
    pods["items"].as_array().into_iter().flatten().map(uid).collect()
}

/// Replaces the gateways of a cluster one by one, until none of before is left; how long that took.
pub(crate) async fn replace(cluster: &Cluster) -> Result<Duration> {
    let (begun, before) = (Instant::now(), gateways(cluster).await?);
    let what = "deploy/eastway-gateway";
    cluster.kubectl(&["rollout", "restart", what, "-n", installed::SYSTEM]).await?;
    cluster.rollout(what, installed::SYSTEM, 2 * PATIENCE).await?;
    within(PATIENCE, format!("old gateways of {} are gone", cluster.name()), async || {
        Ok(gateways(cluster).await?.iter().all(|uid| !before.contains(uid)))
    })
    .await?;
    Ok(begun.elapsed())
}

bed_tests! {
    /// The gateways of the client's cloud, then those of the server's: no request of a sidecar fails.
    async fn a_rolling_restart_of_gateways_fails_no_request_between_sidecars(bed) limit 600 {
        joined::ready(bed).await?;
        let (client, target) = set(bed).await?;
        let plan = Plan { source: client.address, target, rate: RATE, size: 1_000 };
        let (begun, load) = (Instant::now(), Load::start(&client.place, plan.named(HOST)));
        within(PATIENCE, "sidecars keep connections", async || Ok(load.sent() >= u64::from(5 * RATE))).await?;
        for cluster in ["a", "b"].map(|name| bed.cluster(name)) {
            let took = replace(cluster).await?;
            bed.record(&format!("rolling.{}.took_s", cluster.name()), took.as_secs_f64());
            println!("  {} has new gateways after {:.1} s", cluster.name(), load.elapsed().as_secs_f64());
        }
        let result = load.stop().await?;
        traffic::record(bed, "rolling", &result, begun.elapsed());
        remove(bed, NAMESPACE).await?;
        result.none_failed()
    }
}

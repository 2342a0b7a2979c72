//! Upgrades that nobody notices: three gateways a cluster, first those of the client's, then those of the server's.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_dns::client::{self, QueryType};
use eastway_tests::kube::traffic::{self, Client};
use eastway_tests::kube::{Cluster, eastway as installed, node, seconds};
use eastway_tests::lab::place::Place;
use eastway_tests::{bed_tests, within};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "e2e-upgrade";
/// Requests per second, more than the definition of "0 failed" asks for.
const RATE: u32 = 700;
/// Requests of the whole run.
const REQUESTS: u64 = 100_000;
const REPLICAS: usize = 3;

/// The pods of a cluster's gateways that are not on their way out, by uid.
async fn gateways(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = cluster.get(&["pods", "-n", installed::SYSTEM, "-l", "app.kubernetes.io/component=gateway"]).await?;
    let uid = |pod: &serde_json::Value| pod["metadata"]["uid"].as_str().map(str::to_owned);
    pods["items"].as_array().into_iter().flatten().map(|pod| uid(pod).context("a pod has a uid")).collect()
}

/// Upgrades everything in a cluster to another image, waits until no gateway of before is left, and says how long it took.
async fn upgrade(cluster: &Cluster, tag: &str) -> Result<Duration> {
    let before = gateways(cluster).await?;
    let (tag, replicas) = (format!("image.tag={tag}"), format!("gateway.replicas={REPLICAS}"));
    installed::set(cluster, &[&tag, &replicas]).await?;
    within(PATIENCE, format!("new gateways in {}", cluster.name()), async || {
        let now = gateways(cluster).await?;
        Ok(now.len() == REPLICAS && now.iter().all(|uid| !before.contains(uid)))
    })
    .await
}

/// Asks the cluster's resolver for the name of the service ten times a second.
struct Names {
    asked: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Names {
    fn ask(place: &Place, expected: IpAddr) -> Self {
        let (asked, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counters = (Arc::clone(&asked), Arc::clone(&failed));
        let task = place.spawn(async move {
            let mut clock = tokio::time::interval(Duration::from_millis(100));
            loop {
                clock.tick().await;
                counters.0.fetch_add(1, Ordering::Relaxed);
                let answer = resolve().await;
                if answer.is_err() || answer.is_ok_and(|addresses| addresses != [expected]) {
                    counters.1.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { asked, failed, task }
    }

    fn stop(&self) -> (u64, u64) {
        self.task.abort();
        (self.asked.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

/// What the cluster's resolver says of the service. Must run in a pod.
async fn resolve() -> Result<Vec<IpAddr>> {
    let (server, name) = (SocketAddr::from((node::CLUSTER_DNS, 53)), format!("echo.{NAMESPACE}.svc.clusterset.local"));
    let answer = client::query(server, &name, QueryType::A, Duration::from_secs(2)).await?;
    Ok(answer.addresses().collect())
}

bed_tests! {
    /// Everything in either cluster is upgraded by Helm, one after the other, while a pod of one uses a service of the
    /// other: no request fails, and no name.
    async fn upgrades_lose_no_request(bed) limit 420 {
        installed::ready(bed).await?;
        let [a, b] = bed.clusters() else { anyhow::bail!("two clusters") };
        for cluster in [a, b] {
            cluster.copy_image("eastway:e2e", "eastway:e2e-next").await?;
            installed::set(cluster, &[&format!("gateway.replicas={REPLICAS}")]).await?;
        }
        let client = Client::start(bed, NAMESPACE, 3).await?;
        let named = async || Ok(client.place.run(resolve()).await? == [client.target.ip()]);
        within(PATIENCE, "the name resolves in a pod", named).await?;
        let names = Names::ask(&client.place, client.target.ip());
        let load = client.load(RATE);
        for cluster in [a, b] {
            let took = upgrade(cluster, "e2e-next").await?;
            bed.record(&format!("upgrade.{}.rolled_s", cluster.name()), seconds(took));
            println!("  {} was upgraded {:.1} s after the load began", cluster.name(), load.elapsed().as_secs_f64());
        }
        within(Duration::from_secs(300), "all requests are sent", async || Ok(load.sent() >= REQUESTS)).await?;
        let took = load.elapsed();
        let result = load.stop().await?;
        let (asked, unanswered) = names.stop();
        traffic::record(bed, "upgrade", &result, took);
        bed.record("upgrade.names_asked", asked);
        bed.record("upgrade.names_failed", unanswered);
        for cluster in [a, b] {
            installed::set(cluster, &[]).await?;
        }
        client.end(bed, NAMESPACE).await?;
        result.none_failed()?;
        ensure!(unanswered == 0, "{unanswered} of {asked} names failed");
        Ok(())
    }
}

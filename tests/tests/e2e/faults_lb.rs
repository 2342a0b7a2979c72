//! Three gateways behind a balancer that knows flows by their addresses and drops a pod at once when it terminates, and a
//! NAT before it that rebinds: F2, F3, F10, F30.
//!
//! Cluster a is one without an inbound address: all its links go through the NAT, a relay on the WAN. The balancer is
//! kube-proxy's, for the LoadBalancer Service of b's gateways: each new source port of the NAT is a new flow for it, and
//! goes to whichever gateway it likes.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::traffic::{self, Client};
use eastway_tests::kube::{Bed, Cluster, eastway as installed};
use eastway_tests::lab::place::Place;
use eastway_tests::load::Load;
use eastway_tests::relay::Relay;
use eastway_tests::{bed_tests, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "e2e-balanced";
/// Requests per second, as many as the definition of "0 failed" asks for.
const RATE: u32 = 500;
const REPLICAS: usize = 3;
/// Where b's gateways are, and where a is told that they are.
const BALANCER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 51, 100, 22)), 15443);
const NAT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 15443);
/// A link that is acknowledged no more is given up after 4 s (invariant I13: 5 s).
const DETECTED: Duration = Duration::from_secs(5);

/// The gateway pods of a cluster that are not on their way out.
async fn gateways(cluster: &Cluster) -> Result<Vec<String>> {
    let pods = cluster.get(&["pods", "-n", installed::SYSTEM, "-l", "app.kubernetes.io/component=gateway"]).await?;
    let here = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    let name = |pod: &Value| pod["metadata"]["name"].as_str().map(str::to_owned).context("a pod has a name");
    pods["items"].as_array().into_iter().flatten().filter(here).map(name).collect()
}

/// The links of every gateway of a cluster, with when each was made, by their ends.
async fn links(cluster: &Cluster) -> Result<BTreeMap<(String, String), u64>> {
    let mut links = BTreeMap::new();
    for pod in gateways(cluster).await? {
        let said = cluster.exec(installed::SYSTEM, &pod, &["/usr/bin/eastway", "peers", "-o", "json"]).await?;
        let peers: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let peers = peers["items"].as_array().context("a list")?;
        for link in peers.iter().flat_map(|peer| peer["links"].as_array().into_iter().flatten()) {
            if link["draining"] == false {
                let replica = link["replica"].as_str().unwrap_or_default().to_owned();
                links.insert((pod.clone(), replica), link["since"].as_u64().unwrap_or_default());
            }
        }
    }
    Ok(links)
}

/// Whether every gateway of `a` has a link to every one of b's.
async fn is_full(a: &Cluster) -> Result<bool> {
    Ok(links(a).await?.len() == REPLICAS * REPLICAS)
}

/// Packets of links that a cluster's gateways handed over to each other since their start.
async fn handed_over(cluster: &Cluster) -> Result<u64> {
    let mut sum = 0;
    for pod in gateways(cluster).await? {
        let address = SocketAddr::new(cluster.pod_ip(installed::SYSTEM, &pod).await?, 15020);
        let mut command = cluster.on_node("curl", &["--silent", "--fail", &format!("http://{address}/metrics")])?;
        let page = eastway_tests::kube::process::output(&mut command).await?;
        let line = page.lines().find(|line| line.starts_with("eastway_forwarded_packets_total{direction=\"to_owner\""));
        sum += line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(sum)
}

/// Replaces the addresses of a Peer; gives what they were.
async fn set_addresses(cluster: &Cluster, peer: &str, addresses: &Value) -> Result<Value> {
    let before = cluster.get(&["peer", peer]).await?;
    let patch = json!({"spec": {"addresses": addresses}}).to_string();
    cluster.kubectl(&["patch", "peer", peer, "--type=merge", "-p", &patch]).await?;
    Ok(before["spec"]["addresses"].clone())
}

async fn restart(cluster: &Cluster) -> Result<()> {
    let before = gateways(cluster).await?;
    cluster.kubectl(&["rollout", "restart", "deploy/eastway-gateway", "-n", installed::SYSTEM]).await?;
    within(PATIENCE, format!("new gateways in {}", cluster.name()), async || {
        let now = gateways(cluster).await?;
        Ok(now.len() == REPLICAS && now.iter().all(|pod| !before.contains(pod)))
    })
    .await?;
    cluster.rollout("deploy/eastway-gateway", installed::SYSTEM, PATIENCE).await
}

/// What stands between the clusters, and what was there before.
struct Between {
    relay: Relay,
    wan: Place,
    peer_b: Value,
    peer_a: Value,
}

impl Between {
    async fn put(bed: &Bed) -> Result<Self> {
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        let wan = Place::host("nat").await?;
        let relay = Relay::start(&wan, NAT, BALANCER, 4).await?;
        for cluster in [a, b] {
            installed::set(cluster, &[&format!("gateway.replicas={REPLICAS}")]).await?;
        }
        let peer_b = set_addresses(a, "b", &json!([NAT.to_string()])).await?;
        let peer_a = set_addresses(b, "a", &json!([])).await?;
        // Links that exist stay when addresses change.
        restart(a).await?;
        within(PATIENCE, "a link between any two gateways", async || is_full(a).await).await?;
        Ok(Self { relay, wan, peer_b, peer_a })
    }

    async fn rebind(&self) -> Result<()> {
        let flows = self.relay.rebind(&self.wan).await?;
        ensure!(flows >= REPLICAS, "{flows} flows through the NAT");
        Ok(())
    }

    async fn take_away(self, bed: &Bed) -> Result<()> {
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        set_addresses(a, "b", &self.peer_b).await?;
        set_addresses(b, "a", &self.peer_a).await?;
        for cluster in [a, b] {
            installed::set(cluster, &[]).await?;
            cluster.wait("condition=Ready", &["peers.eastway.dev", "--all"], PATIENCE).await?;
        }
        Ok(())
    }
}

/// F10: nothing but rebinds, one every 5 s.
async fn rebinds(bed: &Bed, between: &Between, client: &Client) -> Result<()> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    let (before, handed) = (links(a).await?, handed_over(b).await?);
    let load = client.load(RATE);
    for round in 1..=4_u32 {
        until(&load, Duration::from_secs(5) * round).await?;
        between.rebind().await?;
    }
    until(&load, Duration::from_secs(22)).await?;
    let took = load.elapsed();
    let result = load.stop().await?;
    traffic::record(bed, "balanced.rebind", &result, took);
    result.none_failed()?;
    let after = links(a).await?;
    ensure!(after == before, "links were replaced: {before:#?} {after:#?}");
    let handed = handed_over(b).await?.saturating_sub(handed);
    bed.record("balanced.rebind.packets_handed_over", handed);
    ensure!(handed > 0, "no flow came to another gateway");
    Ok(())
}

/// F3 and F30: both clusters' gateways are replaced one by one, and the NAT rebinds all the while.
async fn rolls(bed: &Bed, between: &Between, client: &Client) -> Result<()> {
    let load = client.load(RATE);
    for name in ["b", "a"] {
        let cluster = bed.cluster(name);
        let mut rolling = std::pin::pin!(restart(cluster));
        loop {
            let next = load.elapsed() + Duration::from_secs(3);
            tokio::select! {
                rolled = &mut rolling => break rolled?,
                waited = until(&load, next) => waited?,
            }
            between.rebind().await?;
        }
    }
    // The last that were told to go have 30 s for what they carry.
    let end = load.elapsed() + Duration::from_secs(10);
    until(&load, end).await?;
    let took = load.elapsed();
    let result = load.stop().await?;
    traffic::record(bed, "balanced.roll", &result, took);
    result.none_failed()
}

/// F2: a gateway of b is killed. What its links carried is lost, what comes after goes by others, within the time for
/// noticing; no answer is another's.
async fn kill_one(bed: &Bed, between: &Between, client: &Client) -> Result<()> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    within(PATIENCE, "a link between any two gateways", async || is_full(a).await).await?;
    let load = client.load(RATE);
    until(&load, Duration::from_secs(2)).await?;
    let victim = gateways(b).await?.into_iter().next().context("a gateway")?;
    let pid = b.pod_process(installed::SYSTEM, &victim).await?;
    let killed = load.elapsed();
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    // Its flows come to another one, which has to say that nobody is there any more.
    between.rebind().await?;
    until(&load, killed + DETECTED + Duration::from_secs(5)).await?;
    let took = load.elapsed();
    let result = load.stop().await?;
    traffic::record(bed, "balanced.kill", &result, took);
    let last = result.failures.iter().map(|failure| failure.sent).max().unwrap_or(killed);
    bed.record("balanced.kill.recovered_s", last.saturating_sub(killed).as_secs_f64());
    result.failed_only(|failure| failure.sent <= killed + DETECTED && !failure.reason.contains("altered"))?;
    within(PATIENCE, "a link between any two gateways", async || is_full(a).await).await.map(drop)
}

async fn until(load: &Load, elapsed: Duration) -> Result<()> {
    let wait = elapsed.saturating_sub(load.elapsed()) + Duration::from_secs(10);
    within(wait, "the load goes on", async || Ok(load.elapsed() >= elapsed)).await.map(drop)
}

bed_tests! {
    /// F2, F3, F10, F30 with three replicas behind a balancer, and NAT rebinding on top.
    async fn f2_f3_f10_f30_behind_a_balancer_and_a_nat(bed) limit 420 {
        installed::ready(bed).await?;
        let between = Between::put(bed).await?;
        let client = Client::start(bed, NAMESPACE, 3).await?;
        let result = async {
            rebinds(bed, &between, &client).await.context("F10")?;
            rolls(bed, &between, &client).await.context("F3, F30")?;
            kill_one(bed, &between, &client).await.context("F2")
        };
        let result = result.await;
        between.take_away(bed).await?;
        client.end(bed, NAMESPACE).await?;
        result
    }
}

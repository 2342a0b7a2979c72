//! Istio's own way between two real clusters, with remote secrets and east-west gateways, and Eastway beside it: a service moves
//! from the one to the other and back again, as docs/istio.md says, while it is asked all the time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it measured"
)]

#[allow(dead_code, reason = "a part of it is for other tests")]
#[path = "../e2e_istio/parts.rs"]
mod parts;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::istio::joined::{self, FIRST_PORT, GATEWAYS};
use eastway_tests::kube::istio::{self, Istio, remote};
use eastway_tests::kube::pods::Pod;
use eastway_tests::kube::{Bed, Cluster, eastway as installed, pods, traffic};
use eastway_tests::load::{Load, Plan};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use parts::{PORT, client, echo, object, service, space, told};

const NAMESPACE: &str = "e2e-remote";
const HOST: &str = "echo.e2e-remote.svc.cluster.local";
const SET_HOST: &str = "echo.e2e-remote.svc.clusterset.local";
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests per second.
const RATE: u32 = 50;
/// Requests by which the shares of ways are judged.
const COUNTED: u64 = 400;
/// Pause between two looks into a sidecar, which has requests to serve.
const LOOK: Duration = Duration::from_millis(250);
/// One pod of a, and two of b: it shows whether pods are counted twice.
const SERVERS: [(&str, &str); 3] = [("a", "v1"), ("b", "v2"), ("b", "v3")];

fn main() -> ExitCode {
    if let Some(code) = traffic::serve_if_asked() {
        return code;
    }
    eastway_tests::kube::suite::main_called("istio-remote", &["a", "b"], TESTS)
}

/// The ways that sidecars of a cluster can have to pods of a service.
#[derive(Clone, Copy, Debug)]
struct Ways {
    /// To its own pods.
    own: bool,
    /// By the east-west gateway of the other cluster.
    istio: bool,
    /// By Eastway.
    eastway: bool,
}

const BY_ISTIO: Ways = Ways { own: true, istio: true, eastway: false };
const BY_BOTH: Ways = Ways { own: true, istio: true, eastway: true };
const BY_EASTWAY: Ways = Ways { own: true, istio: false, eastway: true };

/// A cluster, and a pod in it that asks.
struct Side<'a> {
    cluster: &'a Cluster,
    client: Pod,
    /// The other cluster's east-west gateway.
    gateway: SocketAddr,
}

impl Side<'_> {
    /// Addresses and weights of these ways.
    async fn endpoints(&self, ways: Ways) -> Result<BTreeMap<String, u64>> {
        let mut wanted = BTreeMap::new();
        let (own, others): (Vec<_>, Vec<_>) = SERVERS.iter().partition(|(name, _)| *name == self.cluster.name());
        let remote = u64::try_from(others.len())?;
        for (_, version) in own.iter().filter(|_| ways.own) {
            // What is in the cluster's own network has an address of its own.
            let address = self.cluster.pod_ip(NAMESPACE, &format!("echo-{version}")).await?;
            wanted.insert(format!("{address}:{}", traffic::TARGET), 1);
        }
        if ways.istio {
            wanted.insert(self.gateway.to_string(), remote);
        }
        if ways.eastway {
            let service = self.cluster.get(&["service", GATEWAYS, "-n", installed::SYSTEM]).await?;
            let address = service["spec"]["clusterIP"].as_str().context("an address")?;
            wanted.insert(format!("{address}:{FIRST_PORT}"), remote);
        }
        Ok(wanted)
    }

    /// Waits until its sidecar has exactly these ways.
    async fn until(&self, host: &str, ways: Ways) -> Result<()> {
        let wanted = self.endpoints(ways).await?;
        self.has(host, &wanted).await.with_context(|| format!("{ways:?}"))
    }

    /// Waits until its sidecar has exactly these endpoints and weights.
    async fn has(&self, host: &str, wanted: &BTreeMap<String, u64>) -> Result<()> {
        let what = format!("sidecars of {} have these ways to {host}", self.cluster.name());
        within(PATIENCE, what, async || {
            tokio::time::sleep(LOOK).await;
            let told = self.client.endpoints(host, PORT).await?;
            let told: BTreeMap<String, u64> = told.into_iter().map(|(name, one)| (name, one.weight)).collect();
            ensure!(told == *wanted, "it has {told:?}, and should have {wanted:?}");
            Ok(true)
        })
        .await
        .map(drop)
    }

    async fn requests(&self) -> Result<BTreeMap<String, u64>> {
        let told = self.client.endpoints(HOST, PORT).await?;
        Ok(told.into_iter().map(|(name, one)| (name, one.requests)).collect())
    }

    /// Requests go all these ways and no other, by their weights.
    async fn used(&self, ways: Ways) -> Result<BTreeMap<String, u64>> {
        let (before, wanted) = (self.requests().await?, self.endpoints(ways).await?);
        let grown = async || {
            let now = self.requests().await?;
            let since = |name: &String| before.get(name).copied().unwrap_or_default();
            anyhow::Ok(
                now.iter()
                    .map(|(name, count)| (name.clone(), count.saturating_sub(since(name))))
                    .collect::<BTreeMap<_, _>>(),
            )
        };
        let enough = async || {
            tokio::time::sleep(LOOK).await;
            Ok(grown().await?.values().sum::<u64>() >= COUNTED)
        };
        within(PATIENCE, "the ways are used", enough).await?;
        let shares = grown().await?;
        let (all, weights) = (shares.values().sum::<u64>(), wanted.values().sum::<u64>());
        for (name, weight) in &wanted {
            let (share, due) = (shares.get(name).copied().unwrap_or_default(), all * weight / weights);
            ensure!(
                share > due * 3 / 4 && share < due * 5 / 4,
                "{name} has {share} of {all}, {due} are due: {shares:?}"
            );
        }
        ensure!(shares.len() == wanted.len(), "{shares:?}");
        Ok(shares)
    }
}

/// What a cluster calls the network of a peer that Eastway leads to.
fn network(peer: &str) -> String {
    format!("eastway-{peer}")
}

/// Objects of one kind or all others.
fn of_kind(objects: Vec<Value>, kind: &str, is: bool) -> Vec<Value> {
    objects.into_iter().filter(|object| (object["kind"] == kind) == is).collect()
}

/// Two clusters that are one mesh by Istio alone.
async fn multi_primary(bed: &Bed) -> Result<[SocketAddr; 2]> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    remote::read(a, b).await?;
    remote::read(b, a).await?;
    Ok([remote::open(bed, b).await?, remote::open(bed, a).await?])
}

/// Ways have requests by their weights, and not by how fast they are.
fn in_turn() -> Value {
    let spec = json!({"host": "echo", "trafficPolicy": {"loadBalancer": {"simple": "ROUND_ROBIN"}}});
    object(NAMESPACE, "networking.istio.io/v1", "DestinationRule", "echo", &spec)
}

/// Starts servers and clients; nothing of Eastway.
async fn set(bed: &Bed) -> Result<()> {
    for cluster in bed.clusters() {
        traffic::load_echo(cluster).await?;
        let space = of_kind(space(bed, NAMESPACE, &["client", "echo"]), "AccessPolicy", false);
        cluster.apply(&pods::list(&space)).await?;
        let servers = SERVERS.iter().filter(|(name, _)| *name == cluster.name());
        let servers = servers.map(|(_, version)| echo(cluster, NAMESPACE, version)).collect();
        let service = of_kind(service(NAMESPACE, "echo"), "ServiceExport", false);
        let others = vec![in_turn(), client(cluster, NAMESPACE, "client")];
        cluster.apply(&pods::list(&[service, servers, others].concat())).await?;
    }
    for cluster in bed.clusters() {
        cluster.wait("condition=Ready", &["pod", "-n", NAMESPACE, "--all"], PATIENCE).await?;
    }
    Ok(())
}

/// Exports the service in both clusters, to both.
async fn export(bed: &Bed) -> Result<()> {
    for cluster in bed.clusters() {
        let policy = of_kind(space(bed, NAMESPACE, &[]), "AccessPolicy", true);
        let export = of_kind(service(NAMESPACE, "echo"), "ServiceExport", true);
        cluster.apply(&pods::list(&[policy, export].concat())).await?;
    }
    Ok(())
}

/// Takes the service out of what remote secrets bring, in both clusters, or leaves it in again.
async fn local(bed: &Bed, istio: &Istio, is: bool) -> Result<()> {
    let settings = json!([{"settings": {"clusterLocal": true}, "hosts": [HOST, SET_HOST]}]);
    let change = if is { json!({"serviceSettings": settings}) } else { json!({}) };
    for cluster in bed.clusters() {
        istio.set(cluster, &change).await?;
    }
    Ok(())
}

/// Nothing is wrong with Istio beside Eastway.
async fn checked(bed: &Bed) -> Result<()> {
    for cluster in bed.clusters() {
        within(PATIENCE, format!("nothing is wrong with Istio in {}", cluster.name()), async || {
            let found = joined::found(cluster).await?;
            ensure!(found.is_empty(), "{found:?}");
            Ok(true)
        })
        .await?;
    }
    Ok(())
}

/// Says how far it is. Whether something failed is judged at the end, when all steps are known.
fn step(load: &Load, name: &str) {
    let record = load.so_far();
    println!(
        "  {name} after {:.1} s, {} of {} requests failed",
        load.elapsed().as_secs_f64(),
        record.failures.len(),
        record.sent
    );
}

/// What both sidecars have for both hosts, and what they use.
async fn all_have(sides: &[Side<'_>; 2], ways: Ways) -> Result<()> {
    for side in sides {
        side.until(HOST, ways).await?;
    }
    println!("  {ways:?}: {:?}", sides[0].used(ways).await?);
    Ok(())
}

/// Why no two clusters may have the same name for a network of Eastway: istiod reads entries of the other cluster, too, and
/// takes those of a network that it knows for endpoints of the clusterset name.
async fn same_name(side: &Side<'_>, other: &Cluster) -> Result<()> {
    let labels = json!({"app": "echo", "version": "v4", "security.istio.io/tlsMode": "istio"});
    let spec =
        json!({"network": network("b"), "labels": labels, "serviceAccount": "echo", "locality": "b", "weight": 3});
    let entry = object(NAMESPACE, "networking.istio.io/v1", "WorkloadEntry", "of-the-other", &spec).to_string();
    other.apply(&entry).await?;
    let mut wanted = side.endpoints(BY_BOTH).await?;
    let ours = wanted.keys().find(|name| name.ends_with(&FIRST_PORT.to_string())).context("a way of ours")?.clone();
    wanted.entry(ours).and_modify(|weight| *weight += 3);
    side.has(SET_HOST, &wanted).await?;
    side.until(HOST, BY_BOTH).await?;
    other.delete(&entry).await?;
    side.until(SET_HOST, BY_BOTH).await
}

/// Steps 2 to 4 of the document.
async fn there(bed: &Bed, istio: &Istio, sides: &[Side<'_>; 2], load: &Load) -> Result<()> {
    export(bed).await?;
    all_have(sides, BY_BOTH).await?;
    checked(bed).await?;
    for side in sides {
        side.until(SET_HOST, BY_BOTH).await?;
    }
    same_name(&sides[0], sides[1].cluster).await?;
    step(load, "both ways");
    local(bed, istio, true).await?;
    all_have(sides, BY_EASTWAY).await?;
    for side in sides {
        side.until(SET_HOST, BY_EASTWAY).await?;
    }
    step(load, "by Eastway alone");
    let [a, b] = [sides[0].cluster, sides[1].cluster];
    remote::forget(a, b).await?;
    remote::forget(b, a).await?;
    for cluster in [a, b] {
        remote::close(cluster).await?;
    }
    local(bed, istio, false).await?;
    all_have(sides, BY_EASTWAY).await?;
    step(load, "without remote secrets");
    Ok(())
}

/// The same in the other order.
async fn back(bed: &Bed, istio: &Istio, sides: &[Side<'_>; 2], load: &Load) -> Result<()> {
    local(bed, istio, true).await?;
    multi_primary(bed).await?;
    all_have(sides, BY_EASTWAY).await?;
    local(bed, istio, false).await?;
    all_have(sides, BY_BOTH).await?;
    step(load, "both ways again");
    for cluster in bed.clusters() {
        cluster.kubectl(&["delete", "serviceexport", "echo", "-n", NAMESPACE]).await?;
    }
    all_have(sides, BY_ISTIO).await?;
    for cluster in bed.clusters() {
        ensure!(told(cluster, NAMESPACE, "workloadentries").await? == 0, "istiod is told of what is not exported");
    }
    step(load, "by Istio alone again");
    Ok(())
}

bed_tests! {
    /// As docs/istio.md has it: both side by side, by Eastway alone, without remote secrets, and back. No request fails.
    async fn a_service_moves_from_remote_secrets_to_eastway_and_back(bed) limit 900 {
        let istio = istio::ready(bed).await?;
        let (a, b) = (bed.cluster("a"), bed.cluster("b"));
        let [of_b, of_a] = multi_primary(bed).await?;
        set(bed).await?;
        let side = async |cluster, gateway| {
            anyhow::Ok(Side { cluster, client: Cluster::pod(cluster, NAMESPACE, "client").await?, gateway })
        };
        let sides = [side(a, of_b).await?, side(b, of_a).await?];
        for side in &sides {
            side.until(HOST, BY_ISTIO).await?;
        }
        let found = a.get(&["service", "echo", "-n", NAMESPACE]).await?;
        let address: IpAddr = found["spec"]["clusterIP"].as_str().context("an address")?.parse()?;
        let (client, target) = (&sides[0].client, SocketAddr::new(address, PORT));
        within(PATIENCE, "an answer", async || {
            let answer = client.get(target, HOST, "/1/100", &[]).await?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(true)
        })
        .await?;
        let plan = Plan { source: client.address, target, rate: RATE, size: 1_000 };
        let (begun, load) = (Instant::now(), Load::start(&client.place, plan.named(HOST)));
        let moved = async {
            all_have(&sides, BY_ISTIO).await?;
            step(&load, "by Istio alone");
            joined::ready_beside(bed, network).await?;
            all_have(&sides, BY_ISTIO).await?;
            step(&load, "with Eastway installed");
            there(bed, istio, &sides, &load).await?;
            back(bed, istio, &sides, &load).await
        };
        let moved = moved.await;
        let result = load.stop().await?;
        traffic::record(bed, "remote", &result, begun.elapsed());
        moved?;
        result.none_failed()
    }
}

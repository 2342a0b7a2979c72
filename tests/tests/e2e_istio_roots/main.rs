//! Istio in two real clusters with a root and a trust domain each: what `eastway check` prints is what its mesh configuration
//! lacks, and all that it lacks.
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

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::istio::joined::{self, found};
use eastway_tests::kube::istio::{self, Trust};
use eastway_tests::kube::pods::Pod;
use eastway_tests::kube::{Bed, Cluster, eastway as installed, pods};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use parts::{PORT, WHO, client_of, object, refuses, server_of, service, space, to, versions};

const NAMESPACE: &str = "e2e-roots";
const PATIENCE: Duration = Duration::from_secs(90);
/// That sidecars lack trust.
const LACKS: &str = "EW133";

fn main() -> ExitCode {
    eastway_tests::kube::suite::main_called("istio-roots", &["a", "b"], TESTS)
}

/// Everything but pods: `reviews` of both clusters, in versions, and `ratings` of b alone. Servers of b serve a's client and
/// nobody else.
async fn set(bed: &Bed) -> Result<()> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    for cluster in [a, b] {
        cluster.apply(&pods::list(&space(bed, NAMESPACE, &["client", "stranger", "reviews", "ratings"]))).await?;
    }
    let routes = json!({"hosts": ["reviews"], "http": [{"route": [to("reviews", "v2", 100)]}]});
    let routes = object(NAMESPACE, "networking.istio.io/v1", "VirtualService", "reviews", &routes);
    let rules = vec![versions(NAMESPACE, "reviews", &["v1", "v2"]), routes];
    a.apply(&pods::list(&[service(NAMESPACE, "reviews"), rules].concat())).await?;
    let who = format!("a.example/ns/{NAMESPACE}/sa/client");
    let spec = json!({"action": "ALLOW", "rules": [{"from": [{"source": {"principals": [who]}}]}]});
    let allowed = object(NAMESPACE, "security.istio.io/v1", "AuthorizationPolicy", "clients", &spec);
    b.apply(&pods::list(&[service(NAMESPACE, "reviews"), service(NAMESPACE, "ratings"), vec![allowed]].concat()))
        .await
        .map(drop)
}

/// Starts all pods, anew if they are there.
async fn start(bed: &Bed, roots: bool) -> Result<()> {
    for cluster in bed.clusters() {
        cluster.kubectl(&["delete", "pods", "-n", NAMESPACE, "--all", "--wait"]).await?;
    }
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    let of = |cluster: &Cluster, service: &str, version: &str| server_of(cluster, NAMESPACE, service, version, roots);
    let clients = ["client", "stranger"].map(|name| client_of(a, NAMESPACE, name, roots));
    a.apply(&pods::list(&[&clients[..], &[of(a, "reviews", "v1")]].concat())).await?;
    b.apply(&pods::list(&[of(b, "reviews", "v2"), of(b, "ratings", "v1")])).await?;
    for cluster in bed.clusters() {
        cluster.wait("condition=Ready", &["pod", "-n", NAMESPACE, "--all"], PATIENCE).await?;
    }
    Ok(())
}

/// The Service of a, and the import of what only b has, each with the host that requests are for.
async fn targets(a: &Cluster) -> Result<[(SocketAddr, String); 2]> {
    let reviews = a.get(&["service", "reviews", "-n", NAMESPACE]).await?;
    let reviews: IpAddr = reviews["spec"]["clusterIP"].as_str().context("an address")?.parse()?;
    let ratings: IpAddr = installed::imported(a, NAMESPACE, "ratings").await?.parse()?;
    let remote = format!("ratings.{NAMESPACE}.svc.clusterset.local");
    Ok([(SocketAddr::new(reviews, PORT), "reviews".to_owned()), (SocketAddr::new(ratings, PORT), remote)])
}

/// Puts what is printed into the mesh configuration of each cluster.
async fn apply(bed: &Bed) -> Result<()> {
    let istio = istio::ready_with(bed, Trust::Apart).await?;
    for cluster in bed.clusters() {
        let printed = found(cluster).await?;
        let change = printed.get(LACKS).with_context(|| format!("{LACKS} is not among {printed:?}"))?;
        println!("  to the mesh configuration of {}:\n{change}", cluster.name());
        let change: Value = serde_saphyr::from_str(change).with_context(|| change.clone())?;
        istio.change(cluster, &change).await?;
    }
    Ok(())
}

async fn answers(client: &Pod, (target, host): &(SocketAddr, String)) -> Result<()> {
    let answer = client.get(*target, host, WHO, &[]).await?;
    let who = format!("URI=spiffe://a.example/ns/{NAMESPACE}/sa/client");
    ensure!(answer.status == 200 && answer.body.contains(&who), "{answer:?}");
    Ok(())
}

bed_tests! {
    /// Without the change no sidecar of one cloud takes the other's for real; with it all do, by their own identities.
    async fn what_check_prints_makes_sidecars_with_other_roots_trust_each_other(bed) limit 500 {
        joined::ready_with(bed, Trust::Apart).await?;
        let a = bed.cluster("a");
        set(bed).await?;
        start(bed, false).await?;
        let targets = targets(a).await?;
        let client = a.pod(NAMESPACE, "client").await?;
        for target in &targets {
            within(PATIENCE, format!("{} is known and not trusted", target.1), async || {
                let answer = client.get(target.0, &target.1, WHO, &[]).await?;
                ensure!(answer.status == 503 && answer.body.contains("connection failure"), "{answer:?}");
                Ok(true)
            })
            .await?;
        }
        apply(bed).await?;
        start(bed, true).await?;
        let (client, stranger) = (a.pod(NAMESPACE, "client").await?, a.pod(NAMESPACE, "stranger").await?);
        for target in &targets {
            within(PATIENCE, format!("{} answers", target.1), async || answers(&client, target).await.map(|()| true)).await?;
            for _ in 0..20 {
                answers(&client, target).await?;
            }
            // Its sidecar is told of roots by a stream of its own.
            refuses(&stranger, target.0, &target.1).await?;
        }
        for cluster in bed.clusters() {
            let left = found(cluster).await?;
            ensure!(left.is_empty(), "{}: {left:?}", cluster.name());
        }
        Ok(())
    }
}

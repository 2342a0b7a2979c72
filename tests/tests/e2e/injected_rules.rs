//! Rules for requests of pods with sidecars, as objects of a cluster: by who reads, by weight, and with copies.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use eastway::demo::bookinfo::{COUNTER, Client, END_USER, NAMESPACE, PORT, Service, Version};
use eastway_tests::kube::node::CLUSTER_DNS;
use eastway_tests::kube::{Bed, Cluster, eastway as installed};
use eastway_tests::lab::http;
use eastway_tests::lab::place::Place;
use eastway_tests::within;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::injected::{PATIENCE, one_of};

/// Requests that weights are counted on.
const SHARED: u32 = 300;
/// How far a count of these may be off: if each goes to v3 with 20 %, fewer than one of two million batches have other than
/// 60 ± 36 that do.
const TOLERANCE: u32 = 36;
/// Requests that copies are counted of.
const COPIED: u32 = 100;
/// Requests on their way at once.
const AT_ONCE: usize = 8;
/// Longest wait for one answer, and for the last copies after it.
const ANSWER: Duration = Duration::from_secs(5);
const LATE: Duration = Duration::from_secs(10);

/// What rules name a version of the reviews by.
fn version(version: &str) -> Value {
    json!({"group": "eastway.dev", "kind": "ServiceShare", "name": format!("reviews-{version}")})
}

fn weighted(name: &str, weight: u32) -> Value {
    let mut backend = version(name);
    backend["weight"] = weight.into();
    backend
}

/// Writes the rules for the reviews, in place of those that are there; the route's status says that they count.
async fn write(cluster: &Cluster, rules: &Value) -> Result<()> {
    let share = |version: &str| {
        json!({
            "apiVersion": "eastway.dev/v1alpha1", "kind": "ServiceShare",
            "metadata": {"name": format!("reviews-{version}"), "namespace": NAMESPACE},
            "spec": {"service": "reviews", "subset": {"version": version}},
        })
    };
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "reviews", "namespace": NAMESPACE},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "reviews"}], "rules": rules},
    });
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [share("v1"), share("v2"), share("v3"), route]});
    cluster.apply(&objects.to_string()).await?;
    let says = async || {
        let route = cluster.get(&["httproute", "reviews", "-n", NAMESPACE]).await?;
        let said = &route["status"]["parents"][0];
        let holds = |kind: &str| {
            let conditions = said["conditions"].as_array().into_iter().flatten();
            let mut current = conditions.filter(|one| one["observedGeneration"] == route["metadata"]["generation"]);
            current.any(|one| one["type"] == kind && one["status"] == "True")
        };
        Ok(said["controllerName"] == "eastway.dev/controller" && holds("Accepted") && holds("ResolvedRefs"))
    };
    within(PATIENCE, format!("the route of {} says that it counts", cluster.name()), says).await.map(drop)
}

/// Two versions of the reviews are told apart by who reads them.
pub(crate) async fn by_reader(cluster: &Cluster) -> Result<()> {
    let of_jason = json!([{"headers": [{"name": END_USER, "value": "jason"}]}]);
    let rules = json!([
        {"matches": of_jason, "backendRefs": [version("v2")]},
        {"backendRefs": [version("v3")]},
    ]);
    write(cluster, &rules).await
}

/// Other rules for the page of a; at the end those by its reader are back.
pub(crate) async fn by_weight_and_with_copies(bed: &Bed) -> Result<()> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    let page = Page::of(a).await?;
    by_weight(a, &page).await?;
    with_copies(a, b, &page).await?;
    by_reader(a).await
}

/// 80 of 100 requests go to v1 in a, 20 to v3 in b.
async fn by_weight(a: &Cluster, page: &Page) -> Result<()> {
    write(a, &json!([{"backendRefs": [weighted("v1", 80), weighted("v3", 20)]}])).await?;
    twice("80 of 100 requests go to v1, and 20 to v3", async || {
        let seen = page.answered(SHARED).await?;
        let count = |version| seen.get(&Version(version)).copied().unwrap_or(0);
        ensure!(count(1) + count(3) == SHARED, "others have answered: {seen:?}");
        ensure!(count(3).abs_diff(SHARED * 20 / 100) <= TOLERANCE, "by other weights: {seen:?}");
        Ok(())
    })
    .await
}

/// All go to v1, and a copy of each to v3, for which nobody waits.
async fn with_copies(a: &Cluster, b: &Cluster, page: &Page) -> Result<()> {
    let filter = json!({"type": "RequestMirror", "requestMirror": {"backendRef": version("v3")}});
    write(a, &json!([{"filters": [filter], "backendRefs": [version("v1")]}])).await?;
    let third = place_of(b, "app=reviews,version=v3").await?;
    let copies = u64::from(COPIED);
    twice("each request goes to v1, and a copy to v3", async || {
        let before = asked(&third).await?;
        let seen = page.answered(COPIED).await?;
        ensure!(seen == BTreeMap::from([(Version(1), COPIED)]), "not all by v1: {seen:?}");
        let come = async || Ok(asked(&third).await?.saturating_sub(before) >= copies);
        within(LATE, "all copies come", come).await?;
        let came = asked(&third).await?.saturating_sub(before);
        ensure!(came == copies, "{came} copies of {copies} requests");
        Ok(())
    })
    .await
}

/// Waits until two batches in a row are as they should be: that a sidecar has new rules shows in nothing else.
async fn twice(what: &str, batch: impl AsyncFn() -> Result<()>) -> Result<()> {
    let both = async || {
        batch().await?;
        batch().await?;
        Ok(true)
    };
    within(PATIENCE, what, both).await.map(drop)
}

/// The page's pod, whose sidecar carries the rules out.
struct Page {
    place: Place,
    /// Where it finds the reviews.
    reviews: SocketAddr,
}

impl Page {
    async fn of(a: &Cluster) -> Result<Self> {
        let address: IpAddr = installed::imported(a, NAMESPACE, Service::Reviews.name()).await?.parse()?;
        Ok(Self { place: place_of(a, "app=productpage").await?, reviews: SocketAddr::new(address, PORT) })
    }

    /// Asks for the reviews as the page does, on a connection each; the versions that answered. None may fail.
    async fn answered(&self, requests: u32) -> Result<BTreeMap<Version, u32>> {
        let dns = SocketAddr::from((CLUSTER_DNS, 53));
        let (to, client) = (self.reviews, Client::new(dns, IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        let ask = move |_| {
            let client = client.clone();
            async move {
                let host = Service::Reviews.fqdn();
                let answer = timeout(ANSWER, client.get(to, &host, Service::Reviews.path())).await;
                anyhow::Ok(answer.context("no answer in time")??.by.version)
            }
        };
        let count = async move {
            let all = futures_util::stream::iter(0..requests).map(ask).buffer_unordered(AT_ONCE);
            let all: Vec<Result<Version>> = all.collect().await;
            let mut versions = BTreeMap::<Version, u32>::new();
            for version in all {
                *versions.entry(version?).or_default() += 1;
            }
            anyhow::Ok(versions)
        };
        self.place.run(count).await
    }
}

/// The network of a pod of Bookinfo.
async fn place_of(cluster: &Cluster, labels: &str) -> Result<Place> {
    let pod = one_of(cluster, NAMESPACE, labels).await?;
    cluster.pod_place(NAMESPACE, pod["metadata"]["name"].as_str().context("it has a name")?).await
}

/// How often the program of a pod was asked, as it says itself. Asked in its pod, where no sidecar stands before it.
async fn asked(place: &Place) -> Result<u64> {
    let answer = http::get(place, SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)), COUNTER).await?;
    answer.body.parse().with_context(|| format!("{COUNTER} answers {:?}", answer.body))
}

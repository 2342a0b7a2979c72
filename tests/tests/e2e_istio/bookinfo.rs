//! Bookinfo over two clouds, each part with a real sidecar: the page, the details and reviews v1 in a, reviews v2 and v3 and the
//! ratings in b.
//!
//! Both clouds have all Services and export them, as Istio wants it of clusters that share services, and pods where [`PARTS`]
//! says. So all are stretched, and the clusterset names by which the parts call each other lead from sidecar to sidecar, within
//! a cloud too: nothing here takes plain text.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway::demo::bookinfo::{Answer, Call, Hop, NAMESPACE, PORT, Service, Version};
use eastway_tests::kube::istio::joined;
use eastway_tests::kube::istio::sidecar::Workload;
use eastway_tests::kube::node::CLUSTER_DNS;
use eastway_tests::kube::pods::Pod;
use eastway_tests::kube::{Bed, Cluster, eastway as installed, image, pods};
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};

use crate::parts::{client, object, remove, service, space, to, versions};

/// The clouds; each has a client.
const CLOUDS: [&str; 2] = ["a", "b"];
/// What runs where, callers first.
const PARTS: [(&str, Service, Version); 6] = [
    ("a", Service::Productpage, Version(1)),
    ("a", Service::Details, Version(1)),
    ("a", Service::Reviews, Version(1)),
    ("b", Service::Reviews, Version(2)),
    ("b", Service::Reviews, Version(3)),
    ("b", Service::Ratings, Version(1)),
];
const SERVICES: [Service; 4] = [Service::Productpage, Service::Details, Service::Reviews, Service::Ratings];
const PATIENCE: Duration = Duration::from_secs(120);

/// A part, which runs as an account of its service's name.
fn part(cluster: &Cluster, service: Service, version: Version) -> Value {
    let account = service.name();
    let container = json!({
        "name": "web", "image": image::EASTWAY, "imagePullPolicy": "IfNotPresent",
        "args": [
            "demo-app", "--service", account, "--version", version, "--cloud", cluster.name(),
            "--listen", format!("0.0.0.0:{PORT}"), "--dns", format!("{CLUSTER_DNS}:53"),
        ],
        "ports": [{"name": "web", "containerPort": PORT}],
        "resources": {"requests": {"cpu": "50m"}},
    });
    let labels = json!({"app": account, "version": version});
    Workload { namespace: NAMESPACE, name: &format!("{account}-{version}"), account, labels, container }.pod(cluster)
}

/// The versions of the reviews, by the name that the page calls them by.
fn three_versions() -> Value {
    let mut rule = versions(NAMESPACE, &Service::Reviews.fqdn(), &["v1", "v2", "v3"]);
    // A connection stays with the pod that it was led to: each request has its own, or one of b's versions would have them all.
    rule["spec"]["trafficPolicy"] = json!({"connectionPool": {"http": {"maxRequestsPerConnection": 1}}});
    rule
}

/// Jason reads v3, and everybody else v1.
fn jason_reads_v3() -> Value {
    let host = Service::Reviews.fqdn();
    let spec = json!({"hosts": [host], "http": [
        {"match": [{"headers": {"end-user": {"exact": "jason"}}}], "route": [to(&host, "v3", 100)]},
        {"route": [to(&host, "v1", 100)]},
    ]});
    object(NAMESPACE, "networking.istio.io/v1", "VirtualService", "reviews", &spec)
}

/// What a cloud has of it.
fn objects(bed: &Bed, cluster: &Cluster) -> Vec<Value> {
    let accounts = [&["client"], &SERVICES.map(Service::name)[..]].concat();
    let mut objects = space(bed, NAMESPACE, &accounts);
    objects.extend(SERVICES.iter().flat_map(|one| service(NAMESPACE, one.name())));
    let here = PARTS.iter().filter(|(cloud, ..)| *cloud == cluster.name());
    objects.extend(here.map(|(_, service, version)| part(cluster, *service, *version)));
    objects.extend([three_versions(), client(cluster, NAMESPACE, "client")]);
    objects
}

/// The clients of a and b, once all pods are there.
async fn set(bed: &Bed) -> Result<[Reader; 2]> {
    let [a, b] = CLOUDS.map(|name| bed.cluster(name));
    for cluster in [a, b] {
        cluster.apply(&pods::list(&objects(bed, cluster))).await?;
    }
    for cluster in [a, b] {
        cluster.wait("condition=Ready", &["pod", "-n", NAMESPACE, "--all"], PATIENCE).await?;
    }
    Ok([Reader::of(a).await?, Reader::of(b).await?])
}

/// A client, and where it finds the page and the reviews.
struct Reader {
    pod: Pod,
    page: SocketAddr,
    reviews: SocketAddr,
}

impl Reader {
    async fn of(cluster: &Cluster) -> Result<Self> {
        let address = async |service: Service| {
            let address: IpAddr = installed::imported(cluster, NAMESPACE, service.name()).await?.parse()?;
            anyhow::Ok(SocketAddr::new(address, PORT))
        };
        let (page, reviews) = (address(Service::Productpage).await?, address(Service::Reviews).await?);
        Ok(Self { pod: cluster.pod(NAMESPACE, "client").await?, page, reviews })
    }

    /// Asks for the page, or for the reviews alone, and gives the version of the reviews. Nothing is missing, each part answered
    /// where it runs, and was told by its sidecar who called it.
    async fn read(&self, service: Service, headers: &[&str]) -> Result<Version> {
        let target = if service == Service::Reviews { self.reviews } else { self.page };
        let said = self.pod.get(target, &service.fqdn(), service.path(), headers).await?;
        ensure!(said.status == 200, "{said:?}");
        let answer: Answer = serde_json::from_str(&said.body).with_context(|| said.body.clone())?;
        let reviews = answer.find(Service::Reviews).context("no reviews")?;
        let (version, chain) = (reviews.by.version, answer.chain());
        ensure!(answer.by.service == service && whole(version).ends_with(&chain), "{chain:?}");
        proven(&answer, "client")?;
        let stars = reviews.find(Service::Ratings).and_then(|ratings| ratings.content["Reviewer1"].as_u64());
        ensure!(stars == (version != Version(1)).then_some(5), "{version} has {stars:?} stars");
        Ok(version)
    }

    /// The versions of the reviews that so many pages have, or answers of the reviews; none may fail.
    async fn seen(&self, service: Service, headers: &[&str], times: usize) -> Result<BTreeMap<Version, usize>> {
        let mut seen = BTreeMap::new();
        for _ in 0..times {
            let version = self.read(service, headers).await?;
            *seen.entry(version).or_default() += 1;
        }
        Ok(seen)
    }

    /// Reads so many times as each reader, who all get what the rule says.
    async fn ruled(&self, service: Service, times: usize) -> Result<()> {
        let readers = [(&["end-user: jason"][..], 3), (&["end-user: alice"][..], 1), (&[], 1)];
        for (headers, version) in readers {
            let seen = self.seen(service, headers, times).await?;
            ensure!(seen == BTreeMap::from([(Version(version), times)]), "{headers:?}: {seen:?}");
        }
        Ok(())
    }
}

/// All that take part in a page with this version of the reviews, where they run; callers first.
fn whole(reviews: Version) -> Vec<Hop> {
    let takes_part = |service: Service, version: Version| match service {
        Service::Reviews => version == reviews,
        // Only the reviews with stars ask for them.
        Service::Ratings => reviews != Version(1),
        Service::Productpage | Service::Details | Service::Kiosk => true,
    };
    let parts = PARTS.into_iter().filter(|(_, service, version)| takes_part(*service, *version));
    parts.map(|(cloud, service, version)| Hop { service, version, cloud: cloud.to_owned() }).collect()
}

/// Each part was called by whom the certificate of its caller's sidecar names: end to end, in another cloud too.
fn proven(answer: &Answer, caller: &str) -> Result<()> {
    let who = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{caller}");
    ensure!(answer.caller.as_ref() == Some(&who), "{:?} was called by {:?}", answer.by, answer.caller);
    let mut called = answer.calls.iter().filter_map(Call::answer);
    called.try_for_each(|called| proven(called, answer.by.service.name()))
}

/// Without rules the page has any version of the reviews, wherever it is.
async fn any_version(bed: &Bed, reader: &Reader) -> Result<()> {
    // All in a row: a connection may be led to another gateway, which hears of the other cloud a moment later.
    let known = within(PATIENCE, "pages of a have all versions of the reviews", async || {
        Ok(reader.seen(Service::Productpage, &[], 20).await?.len() == 3)
    });
    bed.record("bookinfo.known_s", known.await?.as_secs_f64());
    let seen = reader.seen(Service::Productpage, &[], 60).await?;
    // 20 of each are due; chance leaves one out less than once in 1,000,000 runs.
    ensure!(seen.len() == 3, "{seen:?}");
    bed.record("bookinfo.without_rules", json!(seen));
    Ok(())
}

/// By stock rules, which both clouds have: who reads decides, whichever cloud the client or the version is in.
async fn by_who_reads(bed: &Bed, [a, b]: &[Reader; 2]) -> Result<()> {
    for name in CLOUDS {
        bed.cluster(name).apply(&jason_reads_v3().to_string()).await?;
    }
    // The page of a is b's, too, and its sidecar chooses; of the reviews alone that of b's client does, and goes to a for v1.
    let asked = [("a", a, Service::Productpage), ("b", b, Service::Productpage), ("b", b, Service::Reviews)];
    for (cloud, reader, service) in asked {
        // So many answers are like this by chance, before the rule is there, less than once in 1,000,000 runs.
        within(PATIENCE, format!("{} is ruled for {cloud}", service.name()), async || {
            reader.ruled(service, 10).await.map(|()| true)
        })
        .await?;
        reader.ruled(service, 20).await.with_context(|| format!("{} for {cloud}", service.name()))?;
    }
    Ok(())
}

bed_tests! {
    /// Istio's own example as it is deployed over two clouds: each page is a chain of calls from sidecar to sidecar.
    async fn each_page_is_whole_and_led_by_who_reads_it(bed) limit 600 {
        joined::ready(bed).await?;
        let readers = set(bed).await?;
        any_version(bed, &readers[0]).await?;
        by_who_reads(bed, &readers).await?;
        remove(bed, NAMESPACE).await
    }
}

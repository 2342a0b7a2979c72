//! Services of several clouds, by stock objects of Istio: one that both have, in versions, and one that only one has.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::kube::istio::{self, joined};
use eastway_tests::kube::pods::Pod;
use eastway_tests::kube::wan::WAN_ADDRESS;
use eastway_tests::kube::{Bed, Cluster, eastway as installed, lookup, pods};
use eastway_tests::lab::place::Place;
use eastway_tests::sniffer::Sniffer;
use eastway_tests::{bed_tests, within};
use serde_json::{Value, json};
use tokio::net::UdpSocket;

use crate::known::{Led, Ways};
use crate::parts::{PORT, WHO, client, object, refuses, remove, server, service, space, to, told, versions};

const NAMESPACE: &str = "e2e-stretched";
/// A header of a request.
const MARK: &str = "x-mark: everybody-could-read-this";
const PATIENCE: Duration = Duration::from_secs(90);

/// As for any service of several versions: nothing in it knows of clouds.
fn rules() -> Vec<Value> {
    let to = |version, weight| to("reviews", version, weight);
    let routes = json!({"hosts": ["reviews"], "http": [
        {"match": [{"headers": {"end-user": {"exact": "jason"}}}], "route": [to("v3", 100)]},
        {"route": [to("v1", 80), to("v2", 20)]},
    ]});
    // A connection stays with the pod that it was led to: each request has its own, or one of b's versions would have them all.
    let each = json!({"connectionPool": {"http": {"maxRequestsPerConnection": 1}}});
    let all = json!({"host": format!("reviews.{NAMESPACE}.svc.clusterset.local"), "trafficPolicy": each});
    vec![
        versions(NAMESPACE, "reviews", &["v1", "v2", "v3"]),
        object(NAMESPACE, "networking.istio.io/v1", "VirtualService", "reviews", &routes),
        object(NAMESPACE, "networking.istio.io/v1", "DestinationRule", "all", &all),
    ]
}

/// Servers of b serve the account `client` and nobody else.
fn only_the_client() -> Value {
    let who = format!("cluster.local/ns/{NAMESPACE}/sa/client");
    let spec = json!({"action": "ALLOW", "rules": [{"from": [{"source": {"principals": [who]}}]}]});
    object(NAMESPACE, "security.istio.io/v1", "AuthorizationPolicy", "clients", &spec)
}

struct Stage {
    client: Pod,
    stranger: Pod,
    /// The Service of a, and the import of what only b has.
    reviews: SocketAddr,
    ratings: SocketAddr,
}

async fn set(bed: &Bed) -> Result<Stage> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    let accounts = ["client", "newcomer", "stranger", "reviews", "ratings"];
    for cluster in [a, b] {
        cluster.apply(&pods::list(&space(bed, NAMESPACE, &accounts))).await?;
    }
    let clients = ["client", "stranger"].map(|name| client(a, NAMESPACE, name)).to_vec();
    let v1 = vec![server(a, NAMESPACE, "reviews", "v1")];
    a.apply(&pods::list(&[service(NAMESPACE, "reviews"), rules(), v1, clients].concat())).await?;
    let servers = [("reviews", "v2"), ("reviews", "v3"), ("ratings", "v1")];
    let servers = servers.map(|(service, version)| server(b, NAMESPACE, service, version)).to_vec();
    let services = [service(NAMESPACE, "reviews"), service(NAMESPACE, "ratings")].concat();
    b.apply(&pods::list(&[services, servers, vec![only_the_client()]].concat())).await?;
    for cluster in [a, b] {
        cluster.wait("condition=Ready", &["pod", "-n", NAMESPACE, "--all"], PATIENCE).await?;
    }
    let found = a.get(&["service", "reviews", "-n", NAMESPACE]).await?;
    let reviews: std::net::IpAddr = found["spec"]["clusterIP"].as_str().context("an address")?.parse()?;
    let ratings: std::net::IpAddr = installed::imported(a, NAMESPACE, "ratings").await?.parse()?;
    Ok(Stage {
        client: a.pod(NAMESPACE, "client").await?,
        stranger: a.pod(NAMESPACE, "stranger").await?,
        reviews: SocketAddr::new(reviews, PORT),
        ratings: SocketAddr::new(ratings, PORT),
    })
}

/// The pods that answered so many requests.
async fn counted(stage: &Stage, requests: usize, headers: &[&str]) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let answer = stage.client.get(stage.reviews, "reviews", "/hostname", headers).await?;
        ensure!(answer.status == 200, "{answer:?}");
        *counts.entry(answer.body.trim().to_owned()).or_default() += 1;
    }
    Ok(counts)
}

async fn is_known(stage: &Stage) -> Result<Duration> {
    within(PATIENCE, "both versions of b are reached from a", async || {
        for (headers, server) in [(&["end-user: jason"][..], "reviews-v3"), (&[], "reviews-v")] {
            let answer = stage.client.get(stage.reviews, "reviews", "/hostname", headers).await?;
            ensure!(answer.status == 200 && answer.body.starts_with(server), "{answer:?}");
        }
        Ok(true)
    })
    .await
}

async fn by_version(bed: &Bed, stage: &Stage) -> Result<()> {
    bed.record("stretched.known_s", is_known(stage).await?.as_secs_f64());
    let by_header = counted(stage, 20, &["end-user: jason"]).await?;
    ensure!(by_header == BTreeMap::from([("reviews-v3".to_owned(), 20)]), "{by_header:?}");
    let by_weight = counted(stage, 300, &[]).await?;
    let remote = by_weight.get("reviews-v2").copied().unwrap_or_default();
    // 60 are due; chance is this far off less than once in 1,000,000 runs.
    ensure!((27..97).contains(&remote) && by_weight.len() == 2, "{by_weight:?}");
    ensure!(by_weight.get("reviews-v1") == Some(&(300 - remote)), "{by_weight:?}");
    bed.record("stretched.by_weight", json!(by_weight));
    Ok(())
}

/// Who asks is seen by the server, end to end, and by its rules.
async fn identities(stage: &Stage) -> Result<()> {
    let of = |account: &str| format!("URI=spiffe://cluster.local/ns/{NAMESPACE}/sa/{account}");
    let jason = ["end-user: jason"];
    let answer = stage.client.get(stage.reviews, "reviews", WHO, &jason).await?;
    ensure!(answer.status == 200 && answer.body.contains(&of("client")), "{answer:?}");
    let answer = stage.stranger.get(stage.reviews, "reviews", "/hostname", &jason).await?;
    ensure!(answer.status == 403, "a stranger is served: {answer:?}");
    Ok(())
}

/// What only b has, by its clusterset name and by one of our own.
async fn remote_only(bed: &Bed, stage: &Stage) -> Result<()> {
    let (host, own) = (format!("ratings.{NAMESPACE}.svc.clusterset.local"), joined::own_name());
    within(PATIENCE, "what only b has is reached from a", async || {
        for name in [&host, &own] {
            let answer = stage.client.get(stage.ratings, name, WHO, &[]).await?;
            let who = format!("URI=spiffe://cluster.local/ns/{NAMESPACE}/sa/client");
            ensure!(answer.status == 200 && answer.body.contains(&who), "{name}: {answer:?}");
        }
        Ok(true)
    })
    .await?;
    within(PATIENCE, "pods know the name of our own", async || {
        let found = lookup::lookup(bed.cluster("a"), (NAMESPACE, "client"), "a", &own, None).await?;
        ensure!(found.addresses.contains(&stage.ratings.ip()), "{found:?}");
        Ok(true)
    })
    .await?;
    // Its connection may be led to the other gateway, which hears of b a moment later.
    refuses(&stage.stranger, stage.ratings, &host).await
}

/// Waits until `eastway check` finds exactly this about Istio.
async fn finds(cluster: &Cluster, codes: &[&str]) -> Result<()> {
    within(PATIENCE, format!("{codes:?} and nothing else about Istio in {}", cluster.name()), async || {
        let found = joined::found(cluster).await?;
        ensure!(found.keys().eq(codes), "{found:?}");
        Ok(true)
    })
    .await
    .map(drop)
}

/// What the command line says of a service in a.
async fn described(bed: &Bed, service: &str, request: &[&str]) -> Result<String> {
    let service = format!("{NAMESPACE}/{service}");
    let command = [&["/usr/bin/eastway", "describe", service.as_str()][..], request].concat();
    bed.cluster("a").exec(installed::SYSTEM, "deploy/eastway-gateway", &command).await
}

/// The command line knows of it, and finds nothing wrong.
async fn shown(bed: &Bed) -> Result<()> {
    for name in ["a", "b"] {
        finds(bed.cluster(name), &[]).await?;
    }
    let (reviews, ratings) = (described(bed, "reviews", &[]).await?, described(bed, "ratings", &[]).await?);
    for line in
        ["stretched: its Service here has 1 endpoint of b with app=reviews,version=v2", "all that its Service has"]
    {
        ensure!(reviews.contains(line), "{line:?} is missing:\n{reviews}");
    }
    let own = joined::own_name();
    let line = format!("ratings.{NAMESPACE}.svc.clusterset.local and {own} lead to 1 endpoint of b");
    ensure!(ratings.contains(&line), "{line:?} is missing:\n{ratings}");
    Ok(())
}

/// The VirtualService is read for sidecars of ours, too: which of its rules a request meets, and where that leads.
async fn ruled(bed: &Bed) -> Result<()> {
    let to = |percent: u8, version: &str| format!("{percent} % to version={version} of {NAMESPACE}/reviews");
    let requests = [
        (["--header", "end-user=jason"], "http[0]", to(100, "v3")),
        (["--path", "/"], "http[1]", format!("{}, {}", to(80, "v1"), to(20, "v2"))),
    ];
    for (request, rule, outcome) in requests {
        let rule = format!("VirtualService {NAMESPACE}/reviews {rule}");
        within(PATIENCE, format!("{rule} is for {request:?}"), async || {
            let said = described(bed, "reviews", &request).await?;
            let chosen = said.lines().any(|line| line.starts_with(&rule) && line.ends_with("this one"));
            ensure!(chosen && said.contains(&format!("The request: {outcome}")), "{said}");
            Ok(true)
        })
        .await?;
    }
    Ok(())
}

/// Without the VirtualService there is no rule.
async fn unruled(bed: &Bed) -> Result<()> {
    let rules = ["delete", "virtualservices.networking.istio.io", "reviews", "-n", NAMESPACE];
    bed.cluster("a").kubectl(&rules).await?;
    within(PATIENCE, "the VirtualService is known no more", async || {
        let said = described(bed, "reviews", &["--path", "/"]).await?;
        ensure!(!said.contains("VirtualService") && said.contains("The request: no rule"), "{said}");
        Ok(true)
    })
    .await
    .map(drop)
}

async fn label_network(cluster: &Cluster, what: &[&str], label: &str) -> Result<()> {
    let label = format!("topology.istio.io/network{label}");
    cluster.kubectl(&[&["label", "--overwrite"][..], what, &[label.as_str()]].concat()).await.map(drop)
}

/// What is wrong with Istio is found as long as it is: the network of a cluster (of c, where nothing runs that it could disturb),
/// that of a pod, and an exported service without a sidecar.
async fn mistakes(bed: &Bed) -> Result<()> {
    let (a, c) = (bed.cluster("a"), bed.cluster("c"));
    let (system, pod) = (["namespace", istio::SYSTEM], ["pod", "stranger", "-n", NAMESPACE]);
    let mut plain = pods::sleeper(NAMESPACE, "plain", "plain");
    plain["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 8080}]);
    let plain = pods::list(&[service(NAMESPACE, "plain"), vec![plain]].concat());
    label_network(c, &system, "=a").await?;
    label_network(a, &pod, "=b").await?;
    a.apply(&plain).await?;
    finds(c, &["EW127"]).await?;
    finds(a, &["EW128", "EW130"]).await?;
    label_network(c, &system, "=c").await?;
    label_network(a, &pod, "-").await?;
    a.delete(&plain).await?;
    finds(c, &[]).await?;
    finds(a, &[]).await
}

/// As long as istiod knows no gateway of b, nobody is led to b, and not past it either: the controller, which writes it, is away.
async fn untold(bed: &Bed, stage: &Stage) -> Result<()> {
    let (a, ways) = (bed.cluster("a"), Ways::of(bed.cluster("a"), NAMESPACE).await?);
    scale(a, "controller", 0).await?;
    let controllers = ["pod", "-l", "app.kubernetes.io/component=controller", "-n", installed::SYSTEM];
    a.wait("delete", &controllers, PATIENCE).await?;
    a.kubectl(&["delete", "gateways.gateway.networking.k8s.io", "eastway-b", "-n", installed::SYSTEM]).await?;
    finds(a, &["EW129"]).await?;
    ways.until(&stage.client, Led::Neither).await?;
    scale(a, "controller", 1).await?;
    ways.until(&stage.client, Led::Both).await?;
    finds(a, &[]).await
}

/// Nothing of a request can be read between the clouds.
async fn unreadable(bed: &Bed, stage: &Stage) -> Result<()> {
    // The WAN is in the namespace of the stage.
    let wan = Place::host("wan").await?;
    let sniffer = Sniffer::start(&wan, MARK.as_bytes()).await?;
    let plain = UdpSocket::bind((WAN_ADDRESS, 0)).await?;
    within(PATIENCE, "what is said in plain text is read", async || {
        plain.send_to(MARK.as_bytes(), (bed.cluster("b").address(), 9)).await?;
        Ok(sniffer.seen().0 > 0)
    })
    .await?;
    drop(sniffer);
    let sniffer = Sniffer::start(&wan, MARK.as_bytes()).await?;
    for _ in 0..50 {
        let headers = ["end-user: jason", MARK];
        let answer = stage.client.get(stage.reviews, "reviews", "/hostname", &headers).await?;
        ensure!(answer.status == 200 && answer.body.starts_with("reviews-v3"), "{answer:?}");
    }
    let (seen, packets) = sniffer.seen();
    ensure!(seen == 0 && packets > 50, "{seen} of {packets} packets can be read");
    bed.record("stretched.packets_on_the_wan", packets);
    Ok(())
}

/// What both have by its clusterset name: any version, wherever it is.
async fn by_clusterset_name(bed: &Bed, stage: &Stage) -> Result<()> {
    let import: std::net::IpAddr = installed::imported(bed.cluster("a"), NAMESPACE, "reviews").await?.parse()?;
    let (target, host) = (SocketAddr::new(import, PORT), format!("reviews.{NAMESPACE}.svc.clusterset.local"));
    let versions = RefCell::new(BTreeSet::new());
    within(PATIENCE, "all versions answer to the clusterset name", async || {
        let answer = stage.client.get(target, &host, "/hostname", &[]).await?;
        ensure!(answer.status == 200, "{answer:?}");
        versions.borrow_mut().insert(answer.body.trim().to_owned());
        Ok(versions.borrow().len() == 3)
    })
    .await?;
    for _ in 0..20 {
        let answer = stage.client.get(target, &host, WHO, &[]).await?;
        let who = format!("URI=spiffe://cluster.local/ns/{NAMESPACE}/sa/client");
        ensure!(answer.status == 200 && answer.body.contains(&who), "{answer:?}");
    }
    Ok(())
}

async fn scale(cluster: &Cluster, role: &str, replicas: usize) -> Result<()> {
    let (what, replicas) = (format!("deploy/eastway-{role}"), format!("--replicas={replicas}"));
    cluster.kubectl(&["scale", &what, "-n", installed::SYSTEM, &replicas]).await.map(drop)
}

/// While b cannot be reached a service that both have is served by a, an istiod that begins then knows the last of what only b
/// has, and all is as before when b is back.
async fn loses_nothing(bed: &Bed, stage: &Stage) -> Result<()> {
    let (a, b) = (bed.cluster("a"), bed.cluster("b"));
    ensure!((told(a, NAMESPACE, "workloadentries").await?, told(a, NAMESPACE, "serviceentries").await?) == (2, 2));
    let ways = Ways::of(a, NAMESPACE).await?;
    ways.until(&stage.client, Led::Both).await?;
    scale(b, "gateway", 0).await?;
    let cut = within(PATIENCE, "b leaves the service that both have", async || {
        Ok(told(a, NAMESPACE, "workloadentries").await? == 0)
    });
    bed.record("stretched.left_s", cut.await?.as_secs_f64());
    ways.until(&stage.client, Led::Ratings).await?;
    istio::ready(bed).await?.restart(a).await?;
    // All that its sidecar knows it has of the istiod that has just begun: the other one was gone before.
    a.apply(&pods::list(&[client(a, NAMESPACE, "newcomer")])).await?;
    let clients = [a.pod(NAMESPACE, "newcomer").await?, stage.client.clone()];
    for pod in &clients {
        ways.until(pod, Led::Ratings).await?;
    }
    scale(b, "gateway", 2).await?;
    b.rollout("deploy/eastway-gateway", installed::SYSTEM, PATIENCE).await?;
    bed.record("stretched.back_s", is_known(stage).await?.as_secs_f64());
    for pod in &clients {
        ways.until(pod, Led::Both).await?;
    }
    remote_only(bed, stage).await
}

bed_tests! {
    /// The talk's demo on today's Istio: versions in different clouds by stock rules, mutual TLS from sidecar to sidecar.
    async fn a_service_stretches_over_two_clouds(bed) limit 600 {
        joined::ready(bed).await?;
        let stage = set(bed).await?;
        by_version(bed, &stage).await?;
        identities(&stage).await?;
        remote_only(bed, &stage).await?;
        shown(bed).await?;
        ruled(bed).await?;
        mistakes(bed).await?;
        untold(bed, &stage).await?;
        unreadable(bed, &stage).await?;
        loses_nothing(bed, &stage).await?;
        // While the VirtualService, which is for another name, is there and read: it leaves v3 out.
        by_clusterset_name(bed, &stage).await?;
        unruled(bed).await?;
        remove(bed, NAMESPACE).await
    }
}

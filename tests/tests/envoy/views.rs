//! What a sidecar is told, and how much of it: large services as a summary, no more than its namespace may see, sticky
//! services, and the endpoints of headless ones by their names. Cloud a has a workload with an Envoy, b the services.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use eastway_dns::client::{self, QueryType};
use eastway_tests::lab::files::{ServiceSpec, merge};
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{envoy, lab_test, within};
use serde_json::{Value, json};

/// Longest wait for what takes a second or two.
const PATIENCE: Duration = Duration::from_secs(20);
/// Another namespace of b.
const OTHER: &str = "other";
/// Service, its pods with their versions, and more keys.
type Placed = (&'static str, &'static [(u8, &'static str)]);

const WEB: Placed = ("web", &[(11, "v1"), (12, "v1"), (13, "v2"), (14, "v2")]);
const CART: Placed = ("cart", &[(15, "v1"), (16, "v1"), (17, "v1")]);
const LEDGER: Placed = ("ledger", &[(21, "v1"), (22, "v1"), (23, "v1")]);
const DB: Placed = ("db", &[(24, "v1"), (25, "v1")]);

struct Bed {
    mesh: Mesh,
    _servers: Vec<Server>,
}

impl Bed {
    async fn start(version: &str) -> Result<Self> {
        let mut settings = envoy::gateway_settings();
        merge(&mut settings, &json!({"sidecars": {"endpointsPerService": 3}}));
        let both = |key: &str| json!({"spec": {key: [{"namespace": NAMESPACE}, {"namespace": OTHER}]}});
        let mut mesh = MeshBuilder::of(&["a", "b"])
            .settings("a", &settings)
            .peer("a", "b", &both("import"))
            .peer("b", "a", &both("export"))
            .start()
            .await?;
        let mut servers = Vec::new();
        for (_, pods) in [WEB, CART, LEDGER, DB] {
            for (pod, version) in pods {
                let net = mesh.cloud("b").net();
                let address = SocketAddr::new(net.pod(*pod), PORT);
                servers.push(Server::start(net.pods(), address, &format!("{version}-{pod}"), Habit::Http).await?);
            }
        }
        let net = mesh.cloud("b").net();
        let spec = |(name, pods): Placed, namespace: &str, more: Value| {
            let spec = ServiceSpec { more, ..ServiceSpec::new(namespace, name, PORT) };
            pods.iter().fold(spec, |spec, (pod, version)| spec.endpoint(net.pod(*pod), version))
        };
        let sticky = json!({"sessionAffinity": "ClientIP"});
        let mut bytes = sticky.clone();
        merge(&mut bytes, &json!({"ports": [{"name": "tcp-ledger", "port": PORT}]}));
        let mut db = spec(DB, NAMESPACE, json!({"type": "Headless"}));
        for (number, endpoint) in db.endpoints.iter_mut().enumerate() {
            endpoint.more = json!({"hostname": format!("db-{number}")});
        }
        let all = vec![
            spec(WEB, NAMESPACE, Value::Null),
            spec(CART, NAMESPACE, sticky),
            spec(LEDGER, NAMESPACE, bytes),
            db,
            spec(("thing", &[(11, "v1")]), OTHER, Value::Null),
        ];
        mesh.change_services("b", |services| *services = all)?;
        // Whatever virtual address it connects to is its Envoy's, or nobody's.
        mesh.client("a").0.ip("route add local 242.0.0.0/16 dev lo").await?;
        envoy::start_sidecar(&mut mesh, "web", version).await?;
        let bed = Self { mesh, _servers: servers };
        bed.told("clusters", "web.shop", true).await?;
        Ok(bed)
    }

    /// What the gateway says that the sidecar has of a kind.
    async fn has(&self, kind: &str) -> Result<String> {
        let asked = ["proxy-config", kind, &format!("shopper-1.{NAMESPACE}")];
        let (code, said) = self.mesh.cloud("a").command(0, &asked).await?;
        ensure!(code == Some(0), "{said}");
        Ok(said)
    }

    /// Waits until the sidecar has something of a kind, or has not.
    async fn told(&self, kind: &str, what: &str, there: bool) -> Result<()> {
        let look = async || Ok(self.has(kind).await?.contains(what) == there);
        within(PATIENCE, format!("{what} is among the sidecar's {kind}: {there}"), look).await?;
        Ok(())
    }

    /// An address of b's services, once it answers.
    async fn at(&self, address: IpAddr) -> Result<SocketAddr> {
        let target = SocketAddr::new(address, PORT);
        let answered = async || self.mesh.ask("a", target).await.map(|_| true);
        within(PATIENCE, format!("an answer at {target}"), answered).await?;
        Ok(target)
    }

    /// Who answers.
    async fn servers(&self, target: SocketAddr, requests: usize) -> Result<BTreeSet<String>> {
        let mut seen = BTreeSet::new();
        for _ in 0..requests {
            seen.insert(self.mesh.ask("a", target).await?);
        }
        Ok(seen)
    }

    /// Waits until all of these have answered; nobody else may. A connection is with one of them for a hundred requests.
    async fn answered_by(&self, target: SocketAddr, all: &BTreeSet<String>) -> Result<()> {
        let mut seen = BTreeSet::new();
        let begun = Instant::now();
        while seen != *all {
            ensure!(begun.elapsed() < PATIENCE, "only {seen:?} of {all:?} answer");
            seen.extend(self.servers(target, 50).await?);
            ensure!(seen.is_subset(all), "{seen:?}, not {all:?}");
        }
        Ok(())
    }

    /// The addresses of a name, as soon as there are so many.
    async fn resolved(&self, name: &str, count: usize) -> Result<BTreeSet<IpAddr>> {
        let (server, pods) = (self.mesh.cloud("a").dns(0)?, self.mesh.cloud("a").net().pods().clone());
        let ask = async || {
            let name = name.to_owned();
            let asked = async move { Ok(client::query(server, &name, QueryType::A, PATIENCE).await?) };
            Ok(pods.run(asked).await?.addresses().collect::<BTreeSet<IpAddr>>())
        };
        within(PATIENCE, format!("{name} has {count} addresses"), async || Ok(ask().await?.len() == count)).await?;
        ask().await
    }
}

async fn views(version: &str) -> Result<()> {
    let bed = Bed::start(version).await?;
    a_large_service_is_a_summary(&bed).await?;
    a_sticky_service(&bed).await?;
    headless_names(&bed).await?;
    only_what_a_namespace_may_see(&bed).await?;
    bed.mesh.stop().await
}

async fn a_large_service_is_a_summary(bed: &Bed) -> Result<()> {
    bed.told("endpoints", "web.shop.b:8080 (summary of 4)", true).await?;
    let web = bed.at(bed.mesh.target("a", "web").await?.ip()).await?;
    let all: BTreeSet<String> = WEB.1.iter().map(|(pod, version)| format!("{version}-{pod}")).collect();
    bed.answered_by(web, &all).await?;
    let (_, said) = bed.mesh.cloud("a").command(0, &["describe", "shop/web"]).await?;
    ensure!(said.contains("summary: other clusters have 4 endpoints"), "{said}");
    // A version of it is one as well.
    let part = json!({
        "apiVersion": "eastway.dev/v1alpha1",
        "kind": "ServiceShare",
        "metadata": {"name": "v2", "namespace": NAMESPACE},
        "spec": {"service": "web", "subset": {"version": "v2"}},
    });
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": [{"backendRefs": [{"group": "eastway.dev", "kind": "ServiceShare", "name": "v2"}]}],
        },
    });
    bed.mesh.cloud("a").write_policy("v2", &part)?;
    bed.mesh.cloud("a").write_policy("web", &route)?;
    bed.told("endpoints", "version=v2.web.shop.b:8080 (summary of 2)", true).await?;
    let second: BTreeSet<String> = ["v2-13".to_owned(), "v2-14".to_owned()].into();
    within(PATIENCE, "version 2 alone answers", async || Ok(bed.servers(web, 20).await?.is_subset(&second))).await?;
    bed.answered_by(web, &second).await
}

async fn a_sticky_service(bed: &Bed) -> Result<()> {
    for service in ["cart", "ledger"] {
        let target = bed.at(bed.mesh.target("a", service).await?.ip()).await?;
        let seen = bed.servers(target, 40).await?;
        ensure!(seen.len() == 1, "{service}: {seen:?}");
    }
    bed.told("clusters", "ring hash", true).await
}

/// Whose addresses are on the workload's own host: nobody but its Envoy can answer there.
async fn headless_names(bed: &Bed) -> Result<()> {
    let service = format!("db.{NAMESPACE}.svc.clusterset.local");
    let all = bed.resolved(&service, 2).await?;
    for (host, server) in [("db-0", "v1-24"), ("db-1", "v1-25")] {
        let one = bed.resolved(&format!("{host}.b.{service}"), 1).await?;
        ensure!(all.is_superset(&one), "{host}: {one:?}");
        let target = bed.at(one.into_iter().next().context("no address")?).await?;
        let seen = bed.servers(target, 5).await?;
        ensure!(seen.iter().eq([server]), "{host}: {seen:?}");
    }
    Ok(())
}

async fn only_what_a_namespace_may_see(bed: &Bed) -> Result<()> {
    bed.told("clusters", "thing.other", true).await?;
    let visible = |services: Value| {
        json!({
            "apiVersion": "eastway.dev/v1alpha1",
            "kind": "Visibility",
            "metadata": {"name": "shop", "namespace": NAMESPACE},
            "spec": {"services": services},
        })
    };
    bed.mesh.cloud("a").write_policy("visible", &visible(json!([])))?;
    for kind in ["clusters", "endpoints"] {
        bed.told(kind, "thing.other", false).await?;
    }
    let web = bed.mesh.target("a", "web").await?;
    ensure!(bed.has("clusters").await?.contains("web.shop"));
    bed.servers(web, 10).await?;
    bed.mesh.cloud("a").write_policy("visible", &visible(json!(["other/th*"])))?;
    bed.told("endpoints", "thing.other", true).await?;
    bed.servers(web, 10).await?;
    Ok(())
}

lab_test! {
    async fn a_sidecar_is_told_what_it_needs_with_envoy_1_40_0() { views("1.40.0").await }
    async fn a_sidecar_is_told_what_it_needs_with_envoy_1_36_2() { views("1.36.2").await }
}

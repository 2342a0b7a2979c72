//! Names of all kinds, from the question to the bytes: IPv6 addresses, names of one's own, headless services.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_dns::client::{self, QueryType};
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{lab_test, load, within};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(10);
const VIPS: &str = "fd65:6173:7477::/48";

/// The addresses of a name at a cloud's DNS, asked from its pods; an error names the response code.
async fn addresses(mesh: &Mesh, cloud: &str, name: &str, qtype: QueryType) -> Result<BTreeSet<IpAddr>> {
    let (server, name) = (mesh.cloud(cloud).dns(0)?, name.to_owned());
    let asked = async move { Ok(client::query(server, &name, qtype, Duration::from_secs(2)).await?) };
    let answer = mesh.cloud(cloud).net().pods().run(asked).await?;
    ensure!(answer.rcode == "NOERROR", "{}", answer.rcode);
    Ok(answer.addresses().collect())
}

/// Waits until a name has `count` addresses.
async fn resolved(mesh: &Mesh, name: &str, qtype: QueryType, count: usize) -> Result<Vec<IpAddr>> {
    within(PATIENCE, format!("{name} has {count} addresses"), async || {
        let found = addresses(mesh, "a", name, qtype).await?;
        ensure!(found.len() == count, "{found:?}");
        Ok(true)
    })
    .await?;
    Ok(addresses(mesh, "a", name, qtype).await?.into_iter().collect())
}

/// Waits until requests to `address` are answered, and gives who answered each of the next ten.
async fn servers(mesh: &Mesh, address: IpAddr) -> Result<BTreeSet<String>> {
    let target = SocketAddr::new(address, PORT);
    within(PATIENCE, format!("{target} answers"), async || mesh.ask("a", target).await.map(|_| true)).await?;
    let mut seen = BTreeSet::new();
    for _ in 0..10 {
        seen.insert(mesh.ask("a", target).await?);
    }
    Ok(seen)
}

/// The `n`th IPv6 address among a cloud's pods; its gateway has the 255th.
fn pod(n: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, n))
}

/// Gives a cloud's pods and its gateway IPv6 addresses, and leads the range of virtual ones to the gateway.
async fn lay_ipv6(mesh: &Mesh, cloud: &str, pods: &[u16]) -> Result<()> {
    let net = mesh.cloud(cloud).net();
    let gateway = &net.gateways()[0].place;
    gateway.ip(&format!("addr add {}/64 dev pod0 nodad", pod(255))).await?;
    gateway.ip(&format!("-6 route add local {VIPS} dev lo")).await?;
    for n in pods {
        net.pods().ip(&format!("addr add {}/64 dev eth0 nodad", pod(*n))).await?;
    }
    net.pods().ip(&format!("-6 route add {VIPS} via {}", pod(255))).await?;
    Ok(())
}

lab_test! {
    /// A dual-stack range: the name has an address of each family, and both lead to the service, whichever family its
    /// endpoints are of.
    async fn names_and_virtual_addresses_of_both_families_lead_to_endpoints_of_both() {
        let ranges = json!({"vip": {"ranges": ["242.0.0.0/16", VIPS]}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &ranges).prepare().await?;
        lay_ipv6(&mesh, "a", &[20]).await?;
        lay_ipv6(&mesh, "b", &[11]).await?;
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", PATIENCE).await?;
        mesh.serve("b", "four", 12, Habit::Http).await?;
        let six = SocketAddr::new(pod(11), PORT);
        let _server = Server::start(mesh.cloud("b").net().pods(), six, "b-six", Habit::Http).await?;
        mesh.change_services("b", |services| services.push(ServiceSpec::new(NAMESPACE, "six", PORT).endpoint(pod(11), "v1")))?;
        let workloads = [(mesh.client("a").1, NAMESPACE, "client"), (pod(20), NAMESPACE, "client")];
        mesh.cloud("a").write_services(&[], &workloads)?;
        for (service, server) in [("four", "b-12"), ("six", "b-six")] {
            let name = format!("{service}.{NAMESPACE}.svc.clusterset.local");
            let v4 = resolved(&mesh, &name, QueryType::A, 1).await?[0];
            ensure!(servers(&mesh, v4).await? == [server.to_owned()].into());
            let v6 = resolved(&mesh, &name, QueryType::Aaaa, 1).await?[0];
            ensure!(v6.to_string().starts_with("fd65:6173:7477:"), "{v6}");
            let (place, target) = (mesh.cloud("a").net().pods(), SocketAddr::new(v6, PORT));
            within(PATIENCE, format!("{target} answers"), async || {
                let answer = place.run(async move { load::ask_once(pod(20), target, 1000).await }).await?;
                ensure!(answer == server, "{answer} answered");
                Ok(true)
            }).await?;
        }
        let found = mesh.cloud("a").command(0, &["check", "-o", "json"]).await?.1;
        ensure!(!found.contains("EW116") && !found.contains("EW204"), "{found}");
        mesh.stop().await
    }

    /// Names of one's own: another name than the service's, one that is pinned to a cluster, and one that leads to
    /// nothing yet; all of them go with what they lead to.
    async fn names_of_ones_own_lead_where_their_rules_say() {
        let rule = |name: &str, service: &str| json!({"name": format!("{name}.shop.example"), "service": format!("{NAMESPACE}/{service}")});
        let mut pinned = rule("only-c", "web");
        pinned["cluster"] = json!("c");
        let names = [rule("reviews", "web"), rule("deep.below", "web"), pinned, rule("later", "later")];
        let settings = json!({"dns": {"zones": ["shop.example"], "names": names}});
        let mut mesh = MeshBuilder::of(&["a", "b", "c"]).settings("a", &settings).start().await?;
        mesh.serve("b", "web", 11, Habit::Http).await?;
        mesh.serve("c", "web", 12, Habit::Http).await?;
        let all: BTreeSet<String> = ["b-11".to_owned(), "c-12".to_owned()].into();
        let clusterset = resolved(&mesh, &format!("web.{NAMESPACE}.svc.clusterset.local"), QueryType::A, 1).await?;
        for name in ["reviews.shop.example", "deep.below.shop.example", "ReViews.shop.EXAMPLE."] {
            ensure!(resolved(&mesh, name, QueryType::A, 1).await? == clusterset, "{name} has an address of its own");
        }
        within(PATIENCE, "both clusters are asked", async || Ok(servers(&mesh, clusterset[0]).await? == all)).await?;
        let only_c = resolved(&mesh, "only-c.shop.example", QueryType::A, 1).await?[0];
        ensure!(only_c != clusterset[0], "a pinned name needs an address of its own");
        ensure!(servers(&mesh, only_c).await? == ["c-12".to_owned()].into());
        let unknown = addresses(&mesh, "a", "nobody.shop.example", QueryType::A).await.err().context("nobody has an address")?;
        ensure!(format!("{unknown:#}").contains("NXDOMAIN"), "{unknown:#}");
        mesh.serve("b", "later", 13, Habit::Http).await?;
        let later = resolved(&mesh, "later.shop.example", QueryType::A, 1).await?[0];
        ensure!(servers(&mesh, later).await? == ["b-13".to_owned()].into());
        // What the name is pinned to goes, the service stays elsewhere.
        mesh.change_services("c", Vec::clear)?;
        within(PATIENCE, "the pinned name has no address", async || {
            Ok(addresses(&mesh, "a", "only-c.shop.example", QueryType::A).await.map_or(true, |left| left.is_empty()))
        }).await?;
        ensure!(servers(&mesh, clusterset[0]).await? == ["b-11".to_owned()].into());
        mesh.stop().await
    }

    /// A headless service: each endpoint has an address and a name, and that leads to it and to no other.
    async fn headless_names_lead_to_single_endpoints() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        mesh.serve("b", "db", 11, Habit::Http).await?;
        mesh.serve("b", "db", 12, Habit::Http).await?;
        mesh.change_services("b", |services| {
            services[0].more = json!({"type": "Headless"});
            for (number, endpoint) in services[0].endpoints.iter_mut().enumerate() {
                endpoint.more = json!({"hostname": format!("db-{number}")});
            }
        })?;
        let service = format!("db.{NAMESPACE}.svc.clusterset.local");
        let all = resolved(&mesh, &service, QueryType::A, 2).await?;
        for (host, server) in [("db-0", "b-11"), ("db-1", "b-12")] {
            let one = resolved(&mesh, &format!("{host}.b.{service}"), QueryType::A, 1).await?[0];
            ensure!(all.contains(&one), "{one} is not among {all:?}");
            ensure!(servers(&mesh, one).await? == [server.to_owned()].into(), "{host}");
        }
        mesh.change_services("b", |services| drop(services[0].endpoints.remove(1)))?;
        ensure!(resolved(&mesh, &service, QueryType::A, 1).await?.len() == 1);
        mesh.stop().await
    }
}

//! gRPC libraries that speak xDS themselves, of three languages, against `eastway sidecar` with `mode: agent` and gateways
//! of two clouds: their calls cross, are shared out by policy, fail over and come back.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test fails by panicking, and prints what it measured"
)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use eastway_tests::grpc::{self, Call, Client, Library};
use eastway_tests::lab::files::{self, ServiceSpec, trust_domain};
use eastway_tests::lab::net::VIP_RANGE;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::{lab_test, within};
use serde_json::json;

/// Longest wait for what takes a second or two.
const PATIENCE: Duration = Duration::from_secs(20);
/// A target without a service fails within this time: a library left alone waits 15 s for it.
const AT_ONCE: u64 = 10_000;
/// Calls of one look.
const LOOK: usize = 200;

/// Clouds a and b, and at a an agent without Envoy.
struct Stage {
    mesh: Mesh,
    bootstrap: PathBuf,
}

impl Stage {
    async fn set() -> Result<Self> {
        let settings = json!({
            "listen": {"hbone": "0.0.0.0:15008", "local": "0.0.0.0:15012"},
            "sidecars": {"gateway": "10.244.0.1:15008"},
            "dns": {
                "zones": ["shop.test"],
                "names": [{"name": "there.shop.test", "service": format!("{NAMESPACE}/echo"), "cluster": "b"}],
            },
            "trust": {"workloads": [{"namespace": NAMESPACE, "serviceAccount": "shopper", "socket": "./run/shopper.sock"}]},
        });
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &settings).prepare().await?;
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", PATIENCE).await?;
        // Who the client is: b lets nobody else in.
        mesh.change_services("a", |_| {})?;
        let (place, source) = mesh.client("a");
        let inside = mesh.cloud("a").net().gateways()[0].inside;
        place.ip(&format!("route replace {VIP_RANGE} via {inside} src {source}")).await?;
        let cloud = mesh.cloud_mut("a");
        let file = cloud.folder().join("agent.yaml");
        let bootstrap = cloud.folder().join("agent/grpc.json");
        let config = json!({
            "apiVersion": "eastway.dev/v1alpha1",
            "kind": "SidecarConfig",
            "mode": "agent",
            "workload": {"namespace": NAMESPACE, "serviceAccount": "shopper", "name": "shopper-1"},
            "trust": {"domain": trust_domain("a"), "ca": "unix:./run/shopper.sock"},
            "gateway": format!("{inside}:15012"),
            "state": "./agent",
        });
        files::write(&file, &config)?;
        cloud.start_workload("agent", vec!["sidecar".into(), "--config".into(), file.into()]).await?;
        within(PATIENCE, "the agent is there", async || Ok(bootstrap.exists())).await?;
        Ok(Self { mesh, bootstrap })
    }

    /// Starts a server on a pod of a cloud, behind `service`.
    async fn serve(&mut self, cloud: &str, service: &str, pod: u8) -> Result<()> {
        self.serve_version(cloud, service, pod, "v1").await
    }

    async fn serve_version(&mut self, cloud: &str, service: &str, pod: u8, version: &str) -> Result<()> {
        let net = self.mesh.cloud(cloud).net();
        let address = SocketAddr::new(net.pod(pod), PORT);
        grpc::serve(net.pods(), address, &format!("{cloud}-{pod}")).await?;
        self.mesh.change_services(cloud, |services| {
            let known = services.iter().position(|spec| spec.name == service);
            let mut spec =
                known.map_or_else(|| ServiceSpec::new(NAMESPACE, service, PORT), |index| services.remove(index));
            spec.more = json!({"ports": [{"name": "grpc", "port": PORT, "appProtocol": "grpc"}]});
            services.push(spec.endpoint(address.ip(), version));
        })
    }

    async fn client(&self, library: Library, name: &str) -> Result<Client> {
        let (place, _) = self.mesh.client("a");
        Client::start(&place, library, &self.bootstrap, &format!("xds:///{name}:{PORT}")).await
    }

    /// One of each library, whose calls have this metadata.
    async fn callers(&self, name: &str, metadata: &[&str]) -> Result<Vec<Client>> {
        let (place, _) = self.mesh.client("a");
        let mut clients = Vec::new();
        for library in Library::ALL {
            let target = format!("xds:///{name}:{PORT}");
            clients.push(Client::with(&place, library, &self.bootstrap, &target, metadata).await?);
        }
        Ok(clients)
    }

    /// One of each library.
    async fn clients(&self, name: &str) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for library in Library::ALL {
            clients.push(self.client(library, name).await?);
        }
        Ok(clients)
    }
}

/// How many of them `cloud` answered.
fn by(calls: &[Call], cloud: &str) -> usize {
    calls.iter().filter(|call| call.ok.starts_with(cloud)).count()
}

/// Waits until the last calls of each client are as they should be.
async fn until(clients: &[Client], what: &str, calls: usize, good: impl Fn(&[Call]) -> bool) -> Result<Duration> {
    let begun = Instant::now();
    for client in clients {
        let what = format!("{:?}: {what}", client.library);
        let waited = within(PATIENCE, what, async || {
            let last = client.last(calls);
            Ok(!last.is_empty() && good(&last))
        });
        waited.await.map_err(|error| error.context(format!("{:?}", client.last(5))))?;
    }
    Ok(begun.elapsed())
}

lab_test! {
    async fn calls_of_each_library_cross_and_what_is_not_there_fails_at_once() {
        let mut stage = Stage::set().await?;
        stage.serve("b", "echo", 11).await?;
        let clients = stage.clients("echo.shop.svc.clusterset.local").await?;
        until(&clients, "b answers", 20, |calls| by(calls, "b-11") == calls.len()).await?;
        within(PATIENCE, "each library has taken all", async || {
            let (_, status) = stage.mesh.cloud("a").command(0, &["proxy-status"]).await?;
            for library in ["gRPC C-core", "gRPC Go 1.85.0", "gRPC Node"] {
                let line = status.lines().find(|line| line.contains(library)).unwrap_or_default();
                ensure!(line.starts_with("shopper-1.shop ") && line.matches("SYNCED").count() == 4, "{library}:\n{status}");
            }
            Ok(true)
        }).await?;
        let (_, endpoints) = stage.mesh.cloud("a").command(0, &["proxy-config", "endpoints", "shopper-1.shop"]).await?;
        ensure!(endpoints.contains("outbound|8080||echo.shop.svc.clusterset.local"), "{endpoints}");
        drop(clients);

        let clients = stage.clients("later.shop.svc.clusterset.local").await?;
        until(&clients, "nobody is there", 3, |calls| calls.iter().all(|call| call.error == "UNAVAILABLE")).await?;
        for client in &clients {
            let first = client.calls().remove(0);
            println!("{:?}: {first:?}", client.library);
            ensure!(first.millis < AT_ONCE, "{:?} waited: {first:?}", client.library);
        }
        // It comes, and goes.
        stage.serve("b", "later", 12).await?;
        until(&clients, "it came", 20, |calls| by(calls, "b-12") == calls.len()).await?;
        stage.mesh.change_services("b", |services| services.retain(|spec| spec.name != "later"))?;
        let gone = |calls: &[Call]| calls.iter().all(|call| call.error == "UNAVAILABLE" && call.millis < AT_ONCE);
        until(&clients, "it went", 3, gone).await?;
        drop(clients);
        stage.mesh.stop().await
    }

    async fn weights_are_kept_and_a_cut_link_fails_over_and_comes_back() {
        let mut stage = Stage::set().await?;
        stage.serve("a", "echo", 11).await?;
        stage.serve("b", "echo", 12).await?;
        let policy = files::traffic_policy(NAMESPACE, "echo", &json!({"split": [{"cluster": "local", "weight": 70}, {"cluster": "b", "weight": 30}]}));
        stage.mesh.cloud("a").write_policy("echo", &policy)?;
        let clients = stage.clients("echo.shop.svc.clusterset.local").await?;
        let pinned = stage.clients("there.shop.test").await?;
        let shared = |calls: &[Call]| {
            let (a, b) = (by(calls, "a-11"), by(calls, "b-12"));
            a + b == calls.len() && b * 100 > calls.len() * 18 && b * 100 < calls.len() * 42
        };
        until(&clients, "70 : 30", LOOK, shared).await?;
        for client in &clients {
            let last = client.last(LOOK);
            println!("{:?}: {} from a, {} from b of {LOOK}", client.library, by(&last, "a-"), by(&last, "b-"));
        }
        until(&pinned, "only b", 20, |calls| by(calls, "b-12") == calls.len()).await?;

        let before: Vec<usize> = clients.iter().map(|client| client.calls().len()).collect();
        let (a, b) = (stage.mesh.cloud("a").net(), stage.mesh.cloud("b").net());
        b.block_from(a).await?;
        a.block_from(b).await?;
        let over = until(&clients, "all to a", LOOK, |calls| by(calls, "a-11") == calls.len()).await?;
        let down = |calls: &[Call]| calls.iter().all(|call| call.error == "UNAVAILABLE" && call.millis < AT_ONCE);
        until(&pinned, "b is away", 3, down).await?;
        for (client, before) in clients.iter().zip(before) {
            let since = client.calls().split_off(before);
            let failed: Vec<&Call> = since.iter().filter(|call| call.ok.is_empty()).collect();
            println!("{:?}: {} of {} calls failed while the link was cut, e.g. {:?}", client.library, failed.len(), since.len(), failed.first());
            // Those under way, and while nobody knew of it.
            ensure!(failed.len() < 60, "{failed:#?}");
        }
        b.unblock_from(a).await?;
        a.unblock_from(b).await?;
        let back = until(&clients, "70 : 30 again", LOOK, shared).await?;
        until(&pinned, "b is back", 20, |calls| by(calls, "b-12") == calls.len()).await?;
        println!("over after {over:?}, back after {back:?}");
        drop((clients, pinned));
        stage.mesh.stop().await
    }

    /// Rules that ask for no more than the libraries do are carried out by them: by metadata and method to versions in two
    /// clouds, by weight. If one asks for more, none is, and the weights of the rule for everything count.
    async fn rules_of_a_route_are_carried_out_by_each_library() {
        let mut stage = Stage::set().await?;
        for (cloud, pod, version) in [("a", 11, "v1"), ("b", 12, "v1"), ("b", 13, "v2")] {
            stage.serve_version(cloud, "echo", pod, version).await?;
        }
        let share = |name: &str, weight: u32| json!({"group": "eastway.dev", "kind": "ServiceShare", "name": name, "weight": weight});
        let a = stage.mesh.cloud("a");
        for (name, spec) in [
            ("here", json!({"service": "echo", "cluster": "local"})),
            ("v1-there", json!({"service": "echo", "cluster": "b", "subset": {"version": "v1"}})),
            ("v2", json!({"service": "echo", "subset": {"version": "v2"}})),
        ] {
            let metadata = json!({"name": name, "namespace": NAMESPACE});
            let file = json!({"apiVersion": "eastway.dev/v1alpha1", "kind": "ServiceShare", "metadata": metadata, "spec": spec});
            a.write_policy(&format!("share-{name}"), &file)?;
        }
        let route = |rules| json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GRPCRoute",
            "metadata": {"name": "echo", "namespace": NAMESPACE},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "echo"}], "rules": rules},
        });
        let jason = json!([{"headers": [{"name": "end-user", "value": "jason"}], "method": {"service": "eastway.test.Echo"}}]);
        let rules = json!([
            {"matches": jason, "backendRefs": [share("v2", 1)]},
            {"matches": [{"method": {"service": "other.Service", "method": "Say"}}], "backendRefs": [share("v2", 1)]},
            {"backendRefs": [share("here", 70), share("v1-there", 30)]},
        ]);
        a.write_policy("route", &route(rules))?;
        let name = "echo.shop.svc.clusterset.local";
        let his = stage.callers(name, &["end-user=jason"]).await?;
        let others = stage.callers(name, &["end-user=mary"]).await?;
        until(&his, "v2 for jason", 40, |calls| by(calls, "b-13") == calls.len()).await?;
        let shared = |calls: &[Call]| {
            let (a, b) = (by(calls, "a-11"), by(calls, "b-12"));
            a + b == calls.len() && b * 100 > calls.len() * 18 && b * 100 < calls.len() * 42
        };
        until(&others, "70 : 30", LOOK, shared).await?;
        for (his, others) in his.iter().zip(&others) {
            let (his, last) = (his.last(40), others.last(LOOK));
            println!(
                "{:?}: jason {} of 40 by b-13; others {} by a-11, {} by b-12 of {LOOK}",
                others.library,
                by(&his, "b-13"),
                by(&last, "a-11"),
                by(&last, "b-12")
            );
        }
        let (_, said) = stage.mesh.cloud("a").command(0, &["describe", "shop/echo"]).await?;
        ensure!(said.contains("gRPC libraries go by all of its rules"), "{said}");
        // A change of headers is no library's: no rule is carried out in part.
        let filters = json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-by", "value": "us"}]}}]);
        let rules = json!([
            {"matches": jason, "filters": filters, "backendRefs": [share("v2", 1)]},
            {"backendRefs": [share("here", 70), share("v1-there", 30)]},
        ]);
        stage.mesh.cloud("a").write_policy("route", &route(rules))?;
        until(&his, "70 : 30 for jason", LOOK, shared).await?;
        let (_, said) = stage.mesh.cloud("a").command(0, &["describe", "shop/echo"]).await?;
        ensure!(!said.contains("gRPC libraries"), "{said}");
        drop((his, others));
        stage.mesh.stop().await
    }
}

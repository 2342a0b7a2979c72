//! Ports that carry bytes: connections by weight, by the name that TLS asks for, and the same in Istio's words.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Result, ensure};
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::lab::place::Place;
use eastway_tests::load::connect;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{envoy, within};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

use super::bed::{PATIENCE, share, share_file};

/// Connections of one look.
const LOOK: usize = 200;

struct Bytes {
    mesh: Mesh,
    target: SocketAddr,
    place: Place,
    source: IpAddr,
}

pub(super) async fn run(version: &str) -> Result<()> {
    let bed = Bytes::start(version).await?;
    let both = |weights: [u32; 2]| json!([{"backendRefs": [share("v1", weights[0]), share("v2", weights[1])]}]);
    bed.route("tcp", &route("TCPRoute", json!({"rules": both([1, 0])})))?;
    within(PATIENCE, "all to v1", async || Ok(bed.look(20).await?.keys().eq(["a-11"]))).await?;
    bed.route("tcp", &route("TCPRoute", json!({"rules": both([80, 20])})))?;
    within(PATIENCE, "some to v2", async || Ok(bed.look(20).await?.len() == 2)).await?;
    let seen = bed.look(LOOK).await?;
    let second = seen.get("b-12").copied().unwrap_or_default();
    // Four standard deviations of 200 draws are 23.
    ensure!((17..=63).contains(&second), "{seen:?}");
    println!("Envoy {version}: 80/20 of {LOOK} connections: {seen:?}");

    let one = |version| json!([{"backendRefs": [share(version, 1)]}]);
    bed.route("first", &route("TLSRoute", json!({"hostnames": ["one.example", "*.one.example"], "rules": one("v1")})))?;
    let mut second = route("TLSRoute", json!({"hostnames": ["two.example"], "rules": one("v2")}));
    second["metadata"]["name"] = json!("second");
    bed.route("second", &second)?;
    bed.names().await?;
    std::fs::remove_file(bed.mesh.cloud("a").folder().join("policies/first.yaml"))?;
    std::fs::remove_file(bed.mesh.cloud("a").folder().join("policies/second.yaml"))?;
    std::fs::remove_file(bed.mesh.cloud("a").folder().join("policies/tcp.yaml"))?;

    let subsets = ["v1", "v2"].map(|name| json!({"name": name, "labels": {"version": name}}));
    bed.route("rule", &istio("DestinationRule", &json!({"host": "web", "subsets": subsets})))?;
    let to = |subset, weight| json!({"destination": {"host": "web", "subset": subset}, "weight": weight});
    bed.route(
        "service",
        &istio(
            "VirtualService",
            &json!({"hosts": ["web"], "tcp": [{"match": [{"port": PORT}], "route": [to("v2", 1)]}]}),
        ),
    )?;
    within(PATIENCE, "all to v2", async || Ok(bed.look(20).await?.keys().eq(["b-12"]))).await?;
    let tls = json!([
        {"match": [{"sniHosts": ["one.example", "*.one.example"]}], "route": [to("v1", 1)]},
        {"match": [{"sniHosts": ["two.example"]}], "route": [to("v2", 1)]},
    ]);
    bed.route("service", &istio("VirtualService", &json!({"hosts": ["web"], "tls": tls})))?;
    bed.names().await?;
    bed.mesh.stop().await
}

fn object(api: &str, kind: &str, spec: &Value) -> Value {
    json!({"apiVersion": api, "kind": kind, "metadata": {"name": "web", "namespace": NAMESPACE}, "spec": spec})
}

fn route(kind: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["parentRefs"] = json!([{"group": "", "kind": "Service", "name": "web"}]);
    object("gateway.networking.k8s.io/v1", kind, &spec)
}

fn istio(kind: &str, spec: &Value) -> Value {
    object("networking.istio.io/v1", kind, spec)
}

impl Bytes {
    /// Version v1 of `web` in a, v2 in b; each greets with its name before it has read anything.
    async fn start(version: &str) -> Result<Self> {
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &envoy::gateway_settings()).prepare().await?;
        for version in ["v1", "v2"] {
            let file = share_file(version, json!({"subset": {"version": version}}));
            mesh.cloud("a").write_policy(&format!("share-{version}"), &file)?;
        }
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", PATIENCE).await?;
        for (cloud, pod, version) in [("a", 11, "v1"), ("b", 12, "v2")] {
            let net = mesh.cloud(cloud).net();
            let address = SocketAddr::new(net.pod(pod), PORT);
            // It lives as long as the place.
            let _server = Server::start(net.pods(), address, &format!("{cloud}-{pod}"), Habit::Greeter).await?;
            let mut spec = ServiceSpec::new(NAMESPACE, "web", PORT).endpoint(address.ip(), version);
            spec.more = json!({"ports": [{"name": "tcp", "port": PORT, "appProtocol": "tcp"}]});
            mesh.change_services(cloud, |services| *services = vec![spec])?;
        }
        let target = envoy::start_sidecar(&mut mesh, "web", version).await?;
        let (place, source) = mesh.client("a");
        let bed = Self { mesh, target, place, source };
        within(PATIENCE, "an answer through Envoy", async || bed.who(Vec::new()).await.map(|name| !name.is_empty()))
            .await?;
        Ok(bed)
    }

    fn route(&self, name: &str, file: &Value) -> Result<()> {
        self.mesh.cloud("a").write_policy(name, file)
    }

    /// Who greets a new connection that begins with these bytes; nobody: it is closed.
    async fn who(&self, first: Vec<u8>) -> Result<String> {
        let (source, target) = (self.source, self.target);
        let greeted = async move {
            let mut stream = BufReader::new(connect(source, target).await?);
            stream.write_all(&first).await?;
            let mut line = String::new();
            // A connection that is reset is one that nobody greets.
            let _read = stream.read_line(&mut line).await;
            Ok(line.trim().to_owned())
        };
        self.place.run(async move { timeout(PATIENCE, greeted).await? }).await
    }

    async fn look(&self, connections: usize) -> Result<BTreeMap<String, usize>> {
        let mut seen = BTreeMap::new();
        for _ in 0..connections {
            *seen.entry(self.who(Vec::new()).await?).or_default() += 1;
        }
        Ok(seen)
    }

    /// one.example and names in it are at v1, two.example at v2, others nowhere.
    async fn names(&self) -> Result<()> {
        let at = async |name: &str| self.who(hello(name)?).await;
        // Envoy's threads take a new listener over one after the other: it has to be so ten times in a row.
        within(PATIENCE, "names are told apart", async || {
            for _ in 0..10 {
                let seen = [at("one.example").await?, at("x.one.example").await?, at("two.example").await?];
                let others = [at("three.example").await?, at("x.two.example").await?];
                if seen != ["a-11", "a-11", "b-12"] || others != ["", ""] {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await?;
        Ok(())
    }
}

/// What a TLS client that asks for `name` sends first.
fn hello(name: &str) -> Result<Vec<u8>> {
    let config = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
    let config = Arc::new(config.with_no_client_auth());
    let mut connection = rustls::ClientConnection::new(config, ServerName::try_from(name.to_owned())?)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    Ok(bytes)
}

//! Two clouds, a workload with an Envoy in a, and rules for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::lab::place::Place;
use eastway_tests::load::connect;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::{envoy, within};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::server::{Seen, Server};

/// Longest wait for what takes a second or two.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Cloud, pod and version of a server.
pub(super) type Placed = (&'static str, u8, &'static str);
/// Where the servers are if nothing else is said.
const SERVERS: [Placed; 4] = [("a", 11, "v1"), ("b", 11, "v1"), ("b", 12, "v2"), ("b", 13, "v3")];

pub(super) struct Bed {
    pub(super) mesh: Mesh,
    pub(super) target: SocketAddr,
    place: Place,
    source: IpAddr,
    servers: Vec<Server>,
    placed: Vec<Placed>,
}

/// An answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Lower case names.
    pub(super) headers: BTreeMap<String, String>,
}

impl Answer {
    /// The version that answered: `a-v1` is v1 of a.
    pub(super) fn server(&self) -> &str {
        self.headers.get("server").map_or("", String::as_str)
    }

    pub(super) fn version(&self) -> &str {
        self.server().split('-').nth(1).unwrap_or("nobody")
    }
}

impl Bed {
    pub(super) async fn start(version: &str) -> Result<Self> {
        Self::with(version, &SERVERS).await
    }

    pub(super) async fn with(version: &str, placed: &[Placed]) -> Result<Self> {
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &envoy::gateway_settings()).prepare().await?;
        for version in ["v1", "v2", "v3"] {
            mesh.cloud("a").write_policy(
                &format!("share-{version}"),
                &share_file(version, json!({"subset": {"version": version}})),
            )?;
        }
        for cloud in ["a", "b"] {
            mesh.cloud("a").write_policy(&format!("share-{cloud}"), &share_file(cloud, json!({"cluster": cloud})))?;
        }
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", PATIENCE).await?;
        let mut servers = Vec::new();
        for (cloud, pod, version) in placed.iter().copied() {
            let net = mesh.cloud(cloud).net();
            let address = SocketAddr::new(net.pod(pod), PORT);
            servers.push(Server::start(net.pods(), address, &format!("{cloud}-{version}")).await?);
        }
        for cloud in ["a", "b"] {
            publish(&mut mesh, placed, cloud, |_| true)?;
        }
        let target = envoy::start_sidecar(&mut mesh, "web", version).await?;
        let (place, source) = mesh.client("a");
        let bed = Self { mesh, target, place, source, servers, placed: placed.to_vec() };
        within(PATIENCE, "an answer through Envoy", async || Ok(bed.get("/", &[]).await?.status == 200)).await?;
        Ok(bed)
    }

    /// Writes the HTTPRoute of `web`, and waits until Envoy goes by it.
    pub(super) async fn apply(&self, rules: &[Value]) -> Result<()> {
        // A rule that shows: each time another.
        let path = format!("/rules-{:x}", fastrand::u64(..));
        let redirect = json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "applied.example"}});
        let marker = json!({"matches": [{"path": {"type": "Exact", "value": path}}], "filters": [redirect]});
        self.route("web", &http_route(&[rules, &[marker]].concat()))?;
        within(PATIENCE, "the new rules", async || Ok(self.get(&path, &[]).await?.status == 302)).await?;
        Ok(())
    }

    /// Writes a file of a's policies folder.
    pub(super) fn route(&self, name: &str, file: &Value) -> Result<()> {
        self.mesh.cloud("a").write_policy(name, file)
    }

    /// Lines of a page of Envoy's administration about clusters of `web`, with this text in them.
    pub(super) async fn figures(&self, page: &str, text: &str) -> Result<Vec<String>> {
        let socket = self.mesh.cloud("a").folder().join("shopper/envoy-admin.sock");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--max-time", "2", "--unix-socket"])
            .arg(socket)
            .arg(format!("http://envoy/{page}"));
        let output = curl.output().await?;
        ensure!(output.status.success(), "Envoy's administration does not answer");
        let lines = String::from_utf8(output.stdout)?;
        let ours = lines.lines().filter(|line| line.contains("outbound|") && line.contains(text));
        Ok(ours.map(str::to_owned).collect())
    }

    /// Takes a file out of a's policies folder.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let file = self.mesh.cloud("a").folder().join(format!("policies/{name}.yaml"));
        Ok(std::fs::remove_file(file)?)
    }

    pub(super) fn server(&self, name: &str) -> &Server {
        self.servers.iter().find(|server| server.name == name).expect("a server of this name")
    }

    /// What the server that gave this answer was asked last.
    pub(super) fn asked(&self, answer: &Answer) -> Seen {
        self.server(answer.server()).last()
    }

    /// Names of the servers that answer.
    pub(super) async fn servers_seen(&self, requests: usize) -> Result<BTreeSet<String>> {
        let mut seen = BTreeSet::new();
        for _ in 0..requests {
            seen.insert(self.get("/", &[]).await?.server().to_owned());
        }
        Ok(seen)
    }

    /// Only the endpoints of a cloud that are `kept` are left in its registry.
    pub(super) fn keep(&mut self, cloud: &str, kept: impl Fn(&str) -> bool) -> Result<()> {
        publish(&mut self.mesh, &self.placed, cloud, kept)
    }

    /// One request on a connection of its own.
    pub(super) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        self.send("GET", path, headers).await
    }

    pub(super) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        let (source, target) = (self.source, self.target);
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        self.place.run(async move { timeout(PATIENCE, ask(source, target, request)).await? }).await
    }

    /// How often each version answered.
    pub(super) async fn look(&self, requests: usize, headers: &[(&str, &str)]) -> Result<BTreeMap<String, usize>> {
        let mut seen = BTreeMap::new();
        for _ in 0..requests {
            let answer = self.get("/", headers).await?;
            ensure!(answer.status == 200, "{answer:?}");
            *seen.entry(answer.version().to_owned()).or_default() += 1;
        }
        Ok(seen)
    }

    pub(super) async fn stop(self) -> Result<()> {
        self.mesh.stop().await
    }
}

fn publish(mesh: &mut Mesh, placed: &[Placed], cloud: &str, kept: impl Fn(&str) -> bool) -> Result<()> {
    let net = mesh.cloud(cloud).net();
    let mut spec = ServiceSpec::new(NAMESPACE, "web", PORT);
    for (_, pod, version) in placed.iter().filter(|(of, _, version)| *of == cloud && kept(version)) {
        spec = spec.endpoint(net.pod(*pod), version);
    }
    mesh.change_services(cloud, |services| *services = vec![spec])
}

async fn ask(source: IpAddr, target: SocketAddr, request: String) -> Result<Answer> {
    let mut stream = BufReader::new(connect(source, target).await?);
    stream.write_all(request.as_bytes()).await?;
    // The head says all. What Envoy answers itself ends a second later, in case that somebody still sends.
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = stream.read_line(&mut head).await?;
        ensure!(read > 0, "no answer: {head:?}");
    }
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).context("no status")?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Ok(Answer { status, headers })
}

pub(super) fn share_file(name: &str, part: Value) -> Value {
    let mut spec = part;
    spec["service"] = json!("web");
    json!({
        "apiVersion": "eastway.dev/v1alpha1",
        "kind": "ServiceShare",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    })
}

/// A backend: the share of this name.
pub(super) fn share(name: &str, weight: u32) -> Value {
    json!({"group": "eastway.dev", "kind": "ServiceShare", "name": name, "weight": weight})
}

/// The HTTPRoute of `web`.
pub(super) fn http_route(rules: &[Value]) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": rules},
    })
}

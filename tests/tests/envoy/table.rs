//! Who talks TLS to whom: each cell of the table in docs/security.md, across two clouds and inside one, asked by real clients
//! and seen from the server.

mod istio;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use eastway_tests::grpc::{self, Client, Library};
use eastway_tests::lab::files::{ServiceSpec, trust_domain};
use eastway_tests::lab::net::VIP_RANGE;
use eastway_tests::lab_test;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::within;
use serde_json::{Value, json};
use tokio::process::Child;

use crate::mutual::{CLIENT, INBOUND, PATIENCE, POD, ask, client_of, settings, start_sidecar};
use crate::whole_path::PATIENCE as ANSWER;
use istio::NETWORK;

/// What the servers speak, as `tls` of a service has it: the columns.
const COLUMNS: [&str; 5] = ["plain", "permissive", "strict", "istio", "istioStrict"];
/// What a server that speaks gRPC is away from that of HTTP in the same column.
const GRPC: u16 = 10;
/// Account of our sidecars beside servers, and of the agent for gRPC libraries.
const SERVERS: &str = "servers";
const AGENT: &str = "agent";
/// Account of Istio's sidecars beside servers.
const ISTIO_SERVERS: &str = "istio-servers";
/// What the client itself claims to be, which reaches servers that nobody stands beside.
const CLAIM: &str = "spiffe://b.example/ns/shop/sa/admin";

/// What is said between a client and a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Plain,
    Mutual,
    Refused,
}

/// One row of the table, by its first cell.
fn documented(client: &str) -> Result<Vec<Said>> {
    let page = include_str!("../../../docs/security.md");
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let mut table =
        page.lines().skip_while(|line| !line.starts_with("| client ")).take_while(|line| line.starts_with('|'));
    let head = cells(table.next().context("docs/security.md has no such table")?);
    let columns: Vec<_> = COLUMNS.iter().map(|column| format!("`{column}`")).collect();
    ensure!(head[1..] == columns, "other columns: {head:?}");
    let row = table.map(cells).find(|row| row[0] == client).with_context(|| format!("no row {client}"))?;
    let said = |cell: &String| match cell.as_str() {
        "plain text" => Ok(Said::Plain),
        "mutual TLS" => Ok(Said::Mutual),
        "refused" => Ok(Said::Refused),
        other => bail!("{client}: what is {other:?}?"),
    };
    row[1..].iter().map(said).collect()
}

/// A server of a cloud, in a column.
#[derive(Clone, Copy, Debug)]
struct Place {
    cloud: &'static str,
    column: usize,
    grpc: bool,
}

impl Place {
    fn all() -> impl Iterator<Item = Self> {
        let columns = || (0..COLUMNS.len()).flat_map(|column| [(column, false), (column, true)]);
        ["b", "a"].into_iter().flat_map(move |cloud| columns().map(move |(column, grpc)| Self { cloud, column, grpc }))
    }

    fn tls(self) -> &'static str {
        COLUMNS[self.column]
    }

    fn is_istio(self) -> bool {
        self.tls().starts_with("istio")
    }

    fn service(self) -> String {
        let kind = if self.grpc { "grpc" } else { "http" };
        format!("{}-{}-{kind}", self.cloud, self.tls().to_lowercase())
    }

    fn number(self) -> u16 {
        u16::try_from(self.column).expect("few") + if self.grpc { GRPC } else { 0 }
    }

    /// Where the application listens.
    fn app(self, pod: IpAddr) -> SocketAddr {
        SocketAddr::new(pod, PORT + self.number())
    }

    /// Where its clients connect to.
    fn target(self, pod: IpAddr) -> SocketAddr {
        if self.tls() == "plain" { self.app(pod) } else { SocketAddr::new(pod, INBOUND + self.number()) }
    }

    fn account(self) -> &'static str {
        if self.is_istio() { ISTIO_SERVERS } else { SERVERS }
    }

    fn spec(self, pod: IpAddr) -> ServiceSpec {
        let mut spec = ServiceSpec::new(NAMESPACE, &self.service(), PORT).endpoint(pod, "v1");
        spec.endpoints[0].more = json!({"serviceAccount": self.account()});
        let (target, protocol) = (self.target(pod).port(), if self.grpc { "grpc" } else { "http" });
        spec.more = json!({
            "tls": self.tls(),
            "ports": [{"name": "app", "port": PORT, "targetPort": target, "appProtocol": protocol}],
        });
        spec
    }
}

/// Clouds a and b with a server in each column, and a's clients.
struct Stage {
    mesh: Mesh,
    version: &'static str,
    pod: IpAddr,
    servers: Vec<(Place, Server)>,
    _istio: Vec<Child>,
}

impl Stage {
    async fn set(version: &'static str) -> Result<Self> {
        let inside: IpAddr = "10.244.0.1".parse()?;
        let accounts = [CLIENT, SERVERS, AGENT].map(str::to_owned);
        let mut a = settings(inside, &accounts);
        a["listen"]["sni"] = json!([{"cluster": "b", "address": format!("0.0.0.0:{NETWORK}")}]);
        let mut mesh = MeshBuilder::of(&["a", "b"])
            .settings("a", &a)
            .settings("b", &settings(inside, &accounts))
            .prepare()
            .await?;
        ensure!(mesh.cloud("a").net().gateways()[0].inside == inside, "the gateway has another address");
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", PATIENCE).await?;
        let pod = mesh.cloud("b").net().pod(POD);
        ensure!(mesh.cloud("a").net().pod(POD) == pod, "both clouds have the same addresses");
        let mut servers = Vec::new();
        for place in Place::all() {
            let pods = mesh.cloud(place.cloud).net().pods();
            if place.grpc {
                grpc::serve(pods, place.app(pod), &place.service()).await?;
            } else {
                servers.push((place, Server::start(pods, place.app(pod), &place.service(), Habit::Mirror).await?));
            }
        }
        for cloud in ["a", "b"] {
            let of_cloud = Place::all().filter(|place| place.cloud == cloud);
            mesh.change_services(cloud, |services| services.extend(of_cloud.map(|place| place.spec(pod))))?;
        }
        let mut stage = Self { mesh, version, pod, servers, _istio: Vec::new() };
        for cloud in ["a", "b"] {
            stage.serve(cloud).await?;
        }
        Ok(stage)
    }

    /// Starts the sidecars of a cloud's servers.
    async fn serve(&mut self, cloud: &'static str) -> Result<()> {
        let pod = self.pod;
        let behind = |istio: bool| {
            let wanted =
                move |place: &Place| place.cloud == cloud && place.tls() != "plain" && place.is_istio() == istio;
            Place::all().filter(wanted)
        };
        let inbound = behind(false).map(|place| {
            json!({
                "listen": place.target(pod),
                "app": place.app(pod),
                "protocol": if place.grpc { "http2" } else { "http" },
                "mode": place.tls(),
            })
        });
        let inbound: Vec<Value> = inbound.collect();
        start_sidecar(&mut self.mesh, self.version, cloud, SERVERS, &json!({"inbound": inbound, "outbound": false}))
            .await?;
        let servers: Vec<_> = behind(true).collect();
        self._istio.push(istio::serve(&self.mesh, self.version, cloud, pod, &servers).await?);
        let place = self.mesh.cloud(cloud).net().pods().clone();
        for target in behind(false).chain(behind(true)).map(|place| place.target(pod)) {
            within(PATIENCE, format!("{cloud}'s sidecar listens at {target}"), async || {
                place.run(async move { Ok(eastway_tests::load::connect(pod, target).await.is_ok()) }).await
            })
            .await?;
        }
        Ok(())
    }

    /// What a request of a says, as `who`, to the server of a place by this address.
    async fn said(&self, place: Place, at: SocketAddr, who: &str) -> Result<Said> {
        let Ok(head) = ask(&self.mesh, at).await else { return Ok(Said::Refused) };
        ensure!(head.contains(&format!("server: {}", place.service())), "another server: {head}");
        match client_of(&head).as_deref() {
            None => Ok(Said::Plain),
            Some(client) if client == who => Ok(Said::Mutual),
            Some(CLAIM) if place.tls() == "plain" => Ok(Said::Plain),
            Some(other) => bail!("{place:?}: the server takes it for {other}"),
        }
    }

    /// Asks the servers of HTTP of all columns, at the address that `at` gives for each.
    async fn row(&self, client: &str, who: &str, at: impl AsyncFn(Place) -> Result<SocketAddr>) -> Result<()> {
        let row = documented(client)?;
        for place in Place::all().filter(|place| !place.grpc) {
            let (wanted, address) = (row[place.column], at(place).await?);
            let (before, connections) = (self.refused().await?, self.connections(place));
            let said = within(ANSWER, format!("{client} → {}", place.service()), async || {
                let said = self.said(place, address, who).await?;
                ensure!(said == wanted, "{said:?}, not {wanted:?}");
                Ok(true)
            });
            said.await?;
            if wanted == Said::Refused {
                ensure!(self.refused().await? > before, "{place:?}: it is not told as TLS_REQUIRED");
                ensure!(self.connections(place) == connections, "{place:?}: the server was dialled");
            }
            println!("{}: {client} → {}: {wanted:?}", self.version, place.service());
        }
        Ok(())
    }

    fn connections(&self, place: Place) -> u64 {
        let of = self.servers.iter().filter(|(other, _)| (other.cloud, other.column) == (place.cloud, place.column));
        of.map(|(_, server)| server.accepted()).sum()
    }

    /// Connections that a's gateway refused for want of TLS.
    async fn refused(&self) -> Result<u64> {
        let page = self.mesh.cloud("a").metrics(0).await?;
        let lines = page.lines().filter(|line| line.contains("\"tls_required\""));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }

    async fn without_sidecar(&self) -> Result<()> {
        self.row("no sidecar", "nobody", async |place| self.mesh.target("a", &place.service()).await).await
    }

    /// Its Envoy listens at the pods of clients, a port for each server.
    async fn istio(&self) -> Result<()> {
        let (pods, source) = self.mesh.client("a");
        let mut ways = Vec::new();
        for place in Place::all().filter(|place| !place.grpc) {
            ways.push((place, self.mesh.target("a", &place.service()).await?));
        }
        let who = istio::identity("a", istio::CLIENT);
        let _client = istio::client(&self.mesh, self.version, &pods, source, self.pod, &ways).await?;
        self.row("Istio's sidecar", &who, async |place| Ok(istio::app(source, place))).await
    }

    async fn ours(&mut self) -> Result<()> {
        let (pods, _) = self.mesh.client("a");
        for place in Place::all() {
            let target = self.mesh.target("a", &place.service()).await?;
            pods.ip(&format!("route add local {}/32 dev lo", target.ip())).await?;
        }
        start_sidecar(&mut self.mesh, self.version, "a", CLIENT, &Value::Null).await?;
        let who = format!("spiffe://{}/ns/{NAMESPACE}/sa/{CLIENT}", trust_domain("a"));
        self.row("our sidecar", &who, async |place| self.mesh.target("a", &place.service()).await).await
    }

    /// gRPC libraries, whose agent starts no Envoy.
    async fn libraries(&mut self) -> Result<()> {
        let bootstrap = self.agent().await?;
        let row = documented("gRPC library")?;
        let (pods, _) = self.mesh.client("a");
        for place in Place::all().filter(|place| place.grpc) {
            let (wanted, before) = (row[place.column], self.refused().await?);
            let target = format!("xds:///{}.{NAMESPACE}.svc.clusterset.local:{PORT}", place.service());
            let client = Client::start(&pods, Library::Go, &bootstrap, &target).await?;
            let is_wanted = |call: &grpc::Call| match wanted {
                Said::Plain => call.ok == place.service(),
                Said::Refused => call.error == "UNAVAILABLE",
                Said::Mutual => false,
            };
            let is_told = wanted == Said::Refused;
            within(PATIENCE, format!("gRPC library → {}", place.service()), async || {
                let last = client.last(5);
                ensure!(!last.is_empty() && last.iter().all(is_wanted), "{last:?}, not {wanted:?}");
                ensure!(!is_told || self.refused().await? > before, "it is not told as TLS_REQUIRED: {last:?}");
                Ok(true)
            })
            .await?;
            println!("{}: gRPC library → {}: {wanted:?}", self.version, place.service());
        }
        Ok(())
    }

    async fn agent(&mut self) -> Result<PathBuf> {
        let (pods, source) = self.mesh.client("a");
        let inside = self.mesh.cloud("a").net().gateways()[0].inside;
        pods.ip(&format!("route replace {VIP_RANGE} via {inside} src {source}")).await?;
        let more = json!({"mode": "agent", "envoy": null});
        start_sidecar(&mut self.mesh, self.version, "a", AGENT, &more).await?;
        let bootstrap = self.mesh.cloud("a").folder().join(AGENT).join("grpc.json");
        within(PATIENCE, "the agent is there", async || Ok(bootstrap.exists())).await?;
        Ok(bootstrap)
    }
}

async fn every_cell(version: &'static str) -> Result<()> {
    let mut stage = Stage::set(version).await?;
    stage.without_sidecar().await?;
    stage.istio().await?;
    stage.ours().await?;
    stage.mesh.stop().await
}

lab_test! {
    async fn every_cell_is_as_documented_with_envoy_1_40_0() { every_cell("1.40.0").await }
    async fn every_cell_is_as_documented_with_envoy_1_36_2() { every_cell("1.36.2").await }
    async fn every_cell_of_grpc_libraries_is_as_documented() {
        let mut stage = Stage::set("1.40.0").await?;
        stage.libraries().await?;
        stage.mesh.stop().await
    }
}

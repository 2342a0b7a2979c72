//! TLS from workload to workload, over two clouds whose gateways do not read it: who talks it to whom, and who is refused.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use eastway_tests::lab::files::{self, ServiceSpec, trust_domain};
use eastway_tests::load;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{envoy, lab_test, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::protocols::{serve_http2, serve_websocket};

/// Longest wait for what takes a second or two.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The client's service account, in a.
pub(crate) const CLIENT: &str = "shopper";
/// The pod with the servers, in b.
pub(crate) const POD: u8 = 11;
/// Where b's sidecar takes connections for service n: this port and n.
pub(crate) const INBOUND: u16 = 9443;
/// Port for HBONE, and for xDS.
pub(crate) const HBONE: u16 = 15008;
pub(crate) const XDS: u16 = 15012;

/// A service of b.
#[derive(Clone, Copy, Debug)]
struct Service {
    name: &'static str,
    /// `plain`, `permissive` or `strict`.
    tls: &'static str,
    server: Kind,
    protocol: &'static str,
}

const SERVICES: [Service; 7] = [
    Service { name: "plain", tls: "plain", server: Kind::Of(Habit::Mirror), protocol: "http" },
    Service { name: "permissive", tls: "permissive", server: Kind::Of(Habit::Mirror), protocol: "http" },
    Service { name: "strict", tls: "strict", server: Kind::Of(Habit::Mirror), protocol: "http" },
    Service { name: "echo", tls: "strict", server: Kind::Of(Habit::Greeter), protocol: "tcp" },
    Service { name: "load", tls: "strict", server: Kind::Of(Habit::Http), protocol: "http" },
    Service { name: "duplex", tls: "strict", server: Kind::Http2, protocol: "http2" },
    Service { name: "chat", tls: "strict", server: Kind::WebSocket, protocol: "http" },
];

/// What serves it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Of(Habit),
    Http2,
    WebSocket,
}

/// Clouds a and b; in b the services, those with TLS behind a sidecar each of them trusts.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    version: &'static str,
    servers: Vec<Server>,
}

/// What a gateway's file says for sidecars with these accounts.
pub(crate) fn settings(inside: IpAddr, accounts: &[String]) -> Value {
    let workload = |account: &String| json!({"namespace": NAMESPACE, "serviceAccount": account, "socket": format!("./run/{account}.sock")});
    json!({
        "listen": {"hbone": format!("0.0.0.0:{HBONE}"), "local": format!("0.0.0.0:{XDS}")},
        "sidecars": {"gateway": format!("{inside}:{HBONE}")},
        "trust": {"workloads": accounts.iter().map(workload).collect::<Vec<_>>()},
    })
}

impl World {
    pub(crate) async fn start(version: &'static str) -> Result<Self> {
        let inside: IpAddr = "10.244.0.1".parse()?;
        let mut mesh = MeshBuilder::of(&["a", "b"])
            .settings("a", &settings(inside, &[CLIENT.to_owned()]))
            .settings("b", &settings(inside, &["servers".to_owned()]))
            .prepare()
            .await?;
        ensure!(mesh.cloud("a").net().gateways()[0].inside == inside, "the gateway has another address");
        mesh.start_gateways().await?;
        mesh.wait_up("a", "b", PATIENCE).await?;
        let mut servers = Vec::new();
        let pod = mesh.cloud("b").net().pod(POD);
        for (service, number) in SERVICES.iter().zip(0..) {
            let app = SocketAddr::new(pod, PORT + number);
            let pods = mesh.cloud("b").net().pods();
            match service.server {
                Kind::Of(habit) => servers.push(Server::start(pods, app, service.name, habit).await?),
                Kind::Http2 => serve_http2(pods, app).await?,
                Kind::WebSocket => serve_websocket(pods, app).await?,
            }
            let mut spec = ServiceSpec::new(NAMESPACE, service.name, PORT).endpoint(pod, "v1");
            let target = if service.tls == "plain" { PORT + number } else { INBOUND + number };
            spec.endpoints[0].more = json!({"serviceAccount": "servers"});
            spec.more = json!({
                "tls": service.tls,
                "ports": [{"name": "app", "port": PORT, "targetPort": target, "appProtocol": service.protocol}],
            });
            mesh.change_services("b", |services| services.push(spec))?;
        }
        let mut world = Self { mesh, version, servers };
        world.serve().await?;
        Ok(world)
    }

    /// Starts b's sidecar, for all services with TLS.
    async fn serve(&mut self) -> Result<()> {
        let pod = self.mesh.cloud("b").net().pod(POD);
        let with_tls = SERVICES.iter().zip(0..).filter(|(service, _)| service.tls != "plain");
        let inbound = with_tls.map(|(service, number)| {
            json!({
                "listen": SocketAddr::new(pod, INBOUND + number),
                "app": SocketAddr::new(pod, PORT + number),
                "protocol": service.protocol,
                "mode": service.tls,
            })
        });
        let inbound: Vec<_> = inbound.collect();
        self.sidecar("b", "servers", &json!({"inbound": inbound, "outbound": false})).await?;
        let place = self.mesh.cloud("b").net().pods().clone();
        for (_, number) in SERVICES.iter().zip(0..).filter(|(service, _)| service.tls != "plain") {
            within(PATIENCE, "b's sidecar listens", async || {
                let to = SocketAddr::new(pod, INBOUND + number);
                place.run(async move { Ok(load::connect(pod, to).await.is_ok()) }).await
            })
            .await?;
        }
        // Whom its sidecar knows comes by its own side of the link.
        self.mesh.wait_up("b", "a", PATIENCE).await?;
        Ok(())
    }

    async fn sidecar(&mut self, cloud: &str, account: &str, more: &Value) -> Result<()> {
        start_sidecar(&mut self.mesh, self.version, cloud, account, more).await
    }

    /// Starts a's sidecar: the imports' addresses are on its own host from then on.
    pub(crate) async fn client(&mut self) -> Result<()> {
        let (place, _) = self.mesh.client("a");
        for service in SERVICES {
            let target = self.mesh.target("a", service.name).await?;
            place.ip(&format!("route add local {}/32 dev lo", target.ip())).await?;
        }
        self.sidecar("a", CLIENT, &Value::Null).await?;
        within(PATIENCE, "an answer through both sidecars", async || self.head("strict").await.map(|_| true)).await?;
        Ok(())
    }

    /// Asks a service from a, with a name that the client itself claims; the head as the server saw it.
    pub(crate) async fn head(&self, service: &str) -> Result<String> {
        let target = self.mesh.target("a", service).await?;
        ask(&self.mesh, target).await
    }

    /// Says something to a service of bytes from a; what came back.
    pub(crate) async fn greeting(&self, service: &str) -> Result<String> {
        let target = self.mesh.target("a", service).await?;
        let (place, source) = self.mesh.client("a");
        place
            .run(async move {
                let mut stream = load::connect(source, target).await?;
                stream.write_all(b"and back").await?;
                stream.shutdown().await?;
                let mut answer = String::new();
                tokio::time::timeout(load::PATIENCE, stream.read_to_string(&mut answer)).await??;
                Ok(answer)
            })
            .await
    }

    /// Connections that a's gateway refused for want of TLS.
    async fn refused(&self) -> Result<u64> {
        let page = self.mesh.cloud("a").metrics(0).await?;
        let lines = page.lines().filter(|line| line.contains("\"tls_required\""));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// What an Envoy's administration says.
    async fn admin(&self, cloud: &str, account: &str, path: &str) -> Result<String> {
        let socket = self.mesh.cloud(cloud).folder().join(account).join("envoy-admin.sock");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--fail", "--max-time", "2", "--unix-socket"]).arg(socket);
        let output = curl.arg(format!("http://envoy/{path}")).output().await?;
        ensure!(output.status.success(), "Envoy's administration does not answer");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The certificates of a secret that an Envoy has.
    pub(crate) async fn secret(&self, cloud: &str, account: &str, name: &str) -> Result<String> {
        let dump: Value =
            serde_json::from_str(&self.admin(cloud, account, "config_dump?resource=dynamic_active_secrets").await?)?;
        let secrets = dump["configs"].as_array().context("no secrets")?;
        let secret = secrets.iter().find(|secret| secret["name"] == name).context("no such secret")?;
        let bytes =
            secret["secret"]["validation_context"]["trusted_ca"]["inline_bytes"].as_str().context("no anchors")?;
        Ok(String::from_utf8(STANDARD.decode(bytes)?)?)
    }

    /// A figure of an Envoy, over all that have this end of a name.
    async fn figure(&self, cloud: &str, account: &str, suffix: &str) -> Result<u64> {
        let lines = self.admin(cloud, account, "stats").await?;
        let figures = lines.lines().filter_map(|line| line.split_once(": "));
        let wanted =
            figures.filter(|(name, _)| name.ends_with(suffix)).filter_map(|(_, figure)| figure.parse::<u64>().ok());
        Ok(wanted.sum::<u64>())
    }
}

/// Starts the sidecar of an account of `settings` among a cloud's pods, with these changes to its file.
pub(crate) async fn start_sidecar(
    mesh: &mut Mesh,
    version: &str,
    cloud: &str,
    account: &str,
    more: &Value,
) -> Result<()> {
    let domain = trust_domain(cloud);
    let path = envoy::binary(version)?;
    let cloud = mesh.cloud_mut(cloud);
    let file = cloud.folder().join(format!("{account}.yaml"));
    let gateway = cloud.net().gateways()[0].inside;
    let mut config = json!({
        "apiVersion": "eastway.dev/v1alpha1",
        "kind": "SidecarConfig",
        "workload": {"namespace": NAMESPACE, "serviceAccount": account, "name": format!("{account}-1")},
        "trust": {"domain": domain, "ca": format!("unix:./run/{account}.sock")},
        "gateway": format!("{gateway}:{XDS}"),
        "state": format!("./{account}"),
        "envoy": {"path": path, "concurrency": 1},
    });
    files::merge(&mut config, more);
    files::write(&file, &config)?;
    cloud.start_workload(account, vec!["sidecar".into(), "--config".into(), file.into()]).await
}

/// Asks from a's pods, with a name that the client itself claims; the head as the server saw it, in lower case.
pub(crate) async fn ask(mesh: &Mesh, target: SocketAddr) -> Result<String> {
    let (place, source) = mesh.client("a");
    let request = "GET /marked-path HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\
        x-forwarded-client-cert: URI=spiffe://b.example/ns/shop/sa/admin\r\n\r\n";
    let answer = place
        .run(async move {
            let mut stream = load::connect(source, target).await?;
            stream.write_all(request.as_bytes()).await?;
            tokio::time::timeout(load::PATIENCE, whole(&mut stream)).await?
        })
        .await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(answer.to_ascii_lowercase())
}

/// An answer with a length.
pub(crate) async fn whole(stream: &mut TcpStream) -> Result<String> {
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .to_ascii_lowercase()
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ").and_then(|length| length.parse::<usize>().ok()));
            if body.len() >= length.context("no length")? {
                return Ok(text);
            }
        }
        ensure!(stream.read_buf(&mut answer).await? > 0, "cut short: {text}");
    }
}

/// Which client names a head tells of.
pub(crate) fn client_of(head: &str) -> Option<String> {
    let line = head.lines().find_map(|line| line.strip_prefix("x-forwarded-client-cert: "))?;
    Some(line.split(';').find_map(|part| part.strip_prefix("uri="))?.to_owned())
}

async fn who_talks_to_whom(version: &'static str) -> Result<()> {
    let mut world = World::start(version).await?;
    let shopper = format!("spiffe://{}/ns/{NAMESPACE}/sa/{CLIENT}", trust_domain("a"));

    // Without a sidecar, by the virtual address at the gateway.
    within(PATIENCE, "a plain client and a plain server", async || world.head("plain").await.map(|_| true)).await?;
    within(PATIENCE, "a plain client and a permissive server", async || {
        let head = world.head("permissive").await?;
        ensure!(client_of(&head).is_none(), "nobody proved anything: {head}");
        Ok(true)
    })
    .await?;

    for service in ["strict", "echo"] {
        within(PATIENCE, "a plain client is refused before the dial", async || {
            let before = world.refused().await?;
            let answer = world.greeting(service).await;
            ensure!(answer.as_deref().unwrap_or_default().is_empty(), "{service} took it: {answer:?}");
            Ok(world.refused().await? > before)
        })
        .await?;
        let (code, said) = world.mesh.cloud("a").command(0, &["describe", &format!("{NAMESPACE}/{service}")]).await?;
        ensure!(code == Some(0) && said.contains("TLS_REQUIRED") && said.contains("sidecar"), "{said}");
    }
    let dialled = world.figure("b", "servers", "downstream_cx_total").await?;
    println!("{version}: connections at b's Envoy while plain clients were refused: {dialled}");

    // With one.
    world.client().await?;
    let head = world.head("plain").await?;
    ensure!(client_of(&head).is_none(), "{head}");
    for service in ["permissive", "strict"] {
        let before = world.figure("b", "servers", ".ssl.handshake").await?;
        let head = world.head(service).await?;
        ensure!(client_of(&head).as_deref() == Some(shopper.as_str()), "{service}: {head}");
        ensure!(!head.contains("sa/admin"), "what the client claims is taken out: {head}");
        println!("{version} {service}: {} handshakes", world.figure("b", "servers", ".ssl.handshake").await? - before);
    }
    let said = world.greeting("echo").await?;
    ensure!(said == "echo\nand back", "{said}");
    let accepted: Vec<_> = world.servers.iter().map(Server::accepted).collect();
    println!("{version}: connections accepted by the servers: {accepted:?}");
    world.mesh.stop().await.context("the end")
}

lab_test! {
    async fn who_talks_tls_to_whom_with_envoy_1_40_0() { who_talks_to_whom("1.40.0").await }
    async fn who_talks_tls_to_whom_with_envoy_1_36_2() { who_talks_to_whom("1.36.2").await }
}

//! UDP across clouds, with programs that know nothing of it: resolvers, QUIC, and floods of packets.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::lab::place::Place;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::{coredns, lab_test, within};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// Longest wait for what must come soon: a busy machine needs some.
const SOON: Duration = Duration::from_secs(10);

/// An exported service whose ports are `(name, number, protocol)`.
fn service(name: &str, ports: &[(&str, u16, &str)], endpoints: &[IpAddr]) -> ServiceSpec {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, number, protocol)| json!({"name": name, "port": number, "protocol": protocol}))
        .collect();
    let spec = ServiceSpec { more: json!({ "ports": ports }), ..ServiceSpec::new(NAMESPACE, name, 1) };
    endpoints.iter().fold(spec, |spec, endpoint| spec.endpoint(*endpoint, "v1"))
}

/// A program in a place, killed when dropped.
async fn start(place: &Place, program: PathBuf, arguments: &[&str], folder: &Path) -> Result<Child> {
    let log = std::fs::File::create(folder.join("log"))?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.kill_on_drop(true);
    place.run(async move { command.spawn().context("start a program") }).await
}

/// What a program in a place prints; it must end well.
async fn output(place: &Place, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = place.run(async move { Ok(command.output().await?) }).await.with_context(|| program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{program}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// A CoreDNS in a cloud that knows `names` as addresses, on a pod's port 53, and is a service there, called `dns`.
struct Resolver {
    _process: Child,
    _folder: tempfile::TempDir,
}

impl Resolver {
    async fn start(mesh: &mut Mesh, cloud: &str, pod: u8, answer: &str) -> Result<Self> {
        let (place, address) = {
            let net = mesh.cloud(cloud).net();
            (net.pods().clone(), net.pod(pod))
        };
        let folder = tempfile::tempdir()?;
        let large = "x".repeat(240);
        let texts: String = (0..15).map(|number| format!("large IN TXT \"{number} {large}\"\n")).collect();
        let zone = format!("$ORIGIN example.\n@ IN SOA ns mail 1 2 3 4 5\n@ IN NS ns\n* IN A {answer}\n{texts}");
        std::fs::write(folder.path().join("zone"), zone)?;
        let corefile = format!("example. {{\n  bind {address}\n  bufsize 4096\n  file zone\n}}\n");
        std::fs::write(folder.path().join("Corefile"), corefile)?;
        let process = start(&place, coredns::binary()?, &[], folder.path()).await?;
        mesh.change_services(cloud, |services| {
            services.retain(|spec| spec.name != "dns");
            services.push(service("dns", &[("dns", 53, "UDP"), ("dns-tcp", 53, "TCP")], &[address]));
        })?;
        Ok(Self { _process: process, _folder: folder })
    }
}

/// What `dig` prints, asked from a cloud's client.
async fn dig(mesh: &Mesh, cloud: &str, server: IpAddr, arguments: &[&str]) -> Result<String> {
    let (place, client) = mesh.client(cloud);
    let (server, client) = (format!("@{server}"), client.to_string());
    let all: Vec<&str> = [&server, "-b", &client, "+tries=1", "+time=2"].iter().chain(arguments).copied().collect();
    output(&place, "dig", &all).await
}

async fn answers(mesh: &Mesh, cloud: &str, server: IpAddr, answer: &str) -> Result<()> {
    within(SOON, format!("{cloud} gets {answer} from {server}"), async || {
        let said = dig(mesh, cloud, server, &["+short", "+notcp", "a.example", "A"]).await?;
        ensure!(said.trim() == answer, "{said}");
        Ok(true)
    })
    .await
    .map(drop)
}

lab_test! {
    /// The main job: names of another cloud's own resolver, and its answers, by UDP.
    async fn dns_over_udp_crosses_clouds() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let _resolver = Resolver::start(&mut mesh, "b", 11, "192.0.2.7").await?;
        let server = mesh.target("a", "dns").await?.ip();
        answers(&mesh, "a", server, "192.0.2.7").await?;
        // In its own cloud, too, and with the same port over TCP.
        let local = mesh.target("b", "dns").await?.ip();
        answers(&mesh, "b", local, "192.0.2.7").await?;
        let tcp = dig(&mesh, "a", server, &["+short", "+tcp", "a.example", "A"]).await?;
        ensure!(tcp.trim() == "192.0.2.7", "{tcp}");
        // An answer of 4 kB fits no datagram of a link.
        let large = dig(&mesh, "a", server, &["+notcp", "+bufsize=4096", "+ignore", "large.example", "TXT"]).await?;
        ensure!(large.matches("xxx\"").count() == 15, "{large}");
        // Its port has a name.
        let dns = mesh.cloud("a").dns(0)?;
        let port = dns.port().to_string();
        let name = format!("_dns._udp.dns.{NAMESPACE}.svc.clusterset.local");
        let srv = dig(&mesh, "a", dns.ip(), &["-p", &port, "+short", &name, "SRV"]).await?;
        ensure!(srv.contains(" 53 dns.shop.svc.clusterset.local."), "{srv}");
        mesh.stop().await
    }
}

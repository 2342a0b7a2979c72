//! Connections led to Envoy by nftables, of workloads that know nothing of it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::mesh::{MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{binary, lab_test, load, within};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::host::{Host, envoys};
use crate::mutual::{CLIENT, INBOUND, PATIENCE, POD, ask, client_of, settings, start_sidecar, whole};

/// CAP_NET_ADMIN, in the sets of /proc/<pid>/status.
const NET_ADMIN: u64 = 1 << 12;
const SERVERS: &str = "servers";

async fn both_ways(version: &'static str) -> Result<()> {
    let inside: IpAddr = "10.244.0.1".parse()?;
    let mut mesh = MeshBuilder::of(&["a", "b"])
        .settings("a", &settings(inside, &[CLIENT.to_owned()]))
        .settings("b", &settings(inside, &[SERVERS.to_owned()]))
        .prepare()
        .await?;
    mesh.start_gateways().await?;
    mesh.wait_up("a", "b", PATIENCE).await?;
    let pods = mesh.cloud("b").net().pods().clone();
    let app = SocketAddr::new(mesh.cloud("b").net().pod(POD), PORT);
    let server = Server::start(&pods, app, "web", Habit::Mirror).await?;
    // The application's own port: nothing names Envoy's.
    let mut spec = ServiceSpec::new(NAMESPACE, "web", PORT).endpoint(app.ip(), "v1");
    spec.endpoints[0].more = json!({"serviceAccount": SERVERS});
    spec.more = json!({"tls": "strict"});
    mesh.change_services("b", |services| services.push(spec))?;
    let place = json!({"listen": SocketAddr::new(app.ip(), INBOUND), "app": app, "protocol": "http"});
    let more = json!({"inbound": [place], "outbound": false, "capture": "nftables"});
    start_sidecar(&mut mesh, version, "b", SERVERS, &more).await?;
    start_sidecar(&mut mesh, version, "a", CLIENT, &json!({"capture": "nftables"})).await?;

    let target = mesh.target("a", "web").await?;
    let answered = within(PATIENCE, "an answer through both sidecars", async || {
        let head = ask(&mesh, target).await?;
        let client = client_of(&head).unwrap_or_default();
        ensure!(client == format!("spiffe://a.example/ns/{NAMESPACE}/sa/{CLIENT}"), "{head}");
        Ok(true)
    });
    answered.await?;
    for _ in 0..50 {
        ask(&mesh, target).await?;
    }
    // Who comes to the application past everything meets its Envoy all the same, and what is on its own host does not.
    let before = server.accepted();
    let neighbour = mesh.cloud("b").net().gateways()[0].place.clone();
    let plain = async move {
        let mut stream = load::connect(inside, app).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: any\r\n\r\n").await?;
        let mut answer = Vec::new();
        // A reset is an end as well.
        let _ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.context("it stays open")?;
        Ok(answer)
    };
    let answer = neighbour.run(plain).await?;
    ensure!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    ensure!(server.accepted() == before, "the application itself was reached");
    let own = pods.run(async move { Ok(load::connect(app.ip(), app).await.is_ok()) }).await?;
    ensure!(own, "its own host reaches it as ever");
    for pid in envoys() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let sets = status.lines().filter(|line| line.starts_with("CapPrm") || line.starts_with("CapBnd"));
        for set in sets {
            let bits = u64::from_str_radix(set.split_whitespace().nth(1).context("no set")?, 16)?;
            ensure!(bits & NET_ADMIN == 0, "Envoy may change rules: {set}");
        }
    }
    mesh.stop().await
}

/// What comes to the workload by IPv6: a place of that family takes it, and without one nobody gets past the other.
async fn by_ipv6(is_taken: bool) -> Result<()> {
    let inside: IpAddr = "10.244.0.1".parse()?;
    let mut mesh =
        MeshBuilder::of(&["a", "b"]).settings("b", &settings(inside, &[SERVERS.to_owned()])).prepare().await?;
    mesh.start_gateways().await?;
    let pods = mesh.cloud("b").net().pods().clone();
    let neighbour = mesh.cloud("b").net().gateways()[0].place.clone();
    let (own, other): (IpAddr, IpAddr) = ("fd00:1::11".parse()?, "fd00:1::1".parse()?);
    pods.ip(&format!("addr add {own}/64 dev eth0 nodad")).await?;
    neighbour.ip(&format!("addr add {other}/64 dev pod0 nodad")).await?;
    let server = Server::start(&pods, SocketAddr::new("::".parse()?, PORT), "web", Habit::Mirror).await?;
    let place = |any: &str, app: &str| {
        json!({
            "listen": format!("{any}:{INBOUND}"), "app": format!("{app}:{PORT}"), "protocol": "http", "mode": "permissive",
        })
    };
    let mut places = vec![place("0.0.0.0", "127.0.0.1")];
    if is_taken {
        places.push(place("[::]", "[::1]"));
    }
    let more = json!({"inbound": places, "outbound": false, "capture": "nftables"});
    start_sidecar(&mut mesh, "1.40.0", "b", SERVERS, &more).await?;
    let head = async |from: IpAddr, to: IpAddr| {
        let asked = async move {
            let mut stream = load::connect(from, SocketAddr::new(to, PORT)).await?;
            let claim = "x-forwarded-client-cert: URI=spiffe://b.example/ns/shop/sa/admin";
            let request = format!("GET / HTTP/1.1\r\nhost: any\r\nconnection: close\r\n{claim}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let answer = tokio::time::timeout(load::PATIENCE, whole(&mut stream)).await.context("no answer")??;
            Ok(answer.to_ascii_lowercase())
        };
        neighbour.run(asked).await
    };
    // Envoy takes the claim out; past it the server would repeat it.
    let by_envoy = |answer: &str| answer.starts_with("http/1.1 200") && client_of(answer).is_none();
    let pod = mesh.cloud("b").net().pod(POD);
    within(PATIENCE, "Envoy takes IPv4", async || Ok(by_envoy(&head(inside, pod).await?))).await?;
    let before = server.accepted();
    match head(other, own).await {
        Ok(answer) => ensure!(is_taken && by_envoy(&answer), "{answer}"),
        Err(error) => ensure!(!is_taken && server.accepted() == before, "{error:#}"),
    }
    mesh.stop().await
}

/// The tables of this network namespace.
async fn tables() -> Result<String> {
    Ok(String::from_utf8(Command::new("nft").args(["list", "tables"]).output().await?.stdout)?)
}

lab_test! {
    async fn a_workload_that_knows_nothing_is_captured_both_ways_envoy_1_40_0() { both_ways("1.40.0").await }
    async fn a_workload_that_knows_nothing_is_captured_both_ways_envoy_1_36_2() { both_ways("1.36.2").await }

    async fn what_comes_by_ipv6_is_taken_by_a_place_of_its_own() { by_ipv6(true).await }
    async fn without_a_place_of_ipv6_nobody_gets_past_envoy_by_it() { by_ipv6(false).await }

    async fn the_rules_go_with_the_sidecar_and_what_one_that_was_killed_left_is_replaced() {
        let host = Host::start("1.40.0").await?;
        let table = "table inet eastway";
        let mut sidecar = host.sidecar(&json!({"capture": "nftables", "vips": ["127.65.0.0/16"]}))?;
        sidecar.caller().await?;
        ensure!(tables().await?.contains(table));
        sidecar.signal(Signal::SIGKILL)?;
        sidecar.ended().await?;
        ensure!(tables().await?.contains(table), "nothing gets past Envoy while it is away");
        let next = host.start_sidecar(Command::new(binary()))?;
        next.caller().await?;
        let rules = Command::new("nft").args(["list", "table", "inet", "eastway"]).output().await?.stdout;
        ensure!(String::from_utf8(rules)?.matches("127.65.0.0/16").count() == 1, "not twice");
        next.stop().await?;
        ensure!(!tables().await?.contains(table), "{}", tables().await?);
        Ok(())
    }

    async fn without_nft_or_the_right_to_it_says_so() {
        let host = Host::start("1.40.0").await?;
        let first = host.sidecar(&json!({"capture": "nftables"}))?;
        first.caller().await?;
        first.stop().await?;
        let mut without = Command::new(binary());
        without.env("PATH", "/nonexistent");
        let mut sidecar = host.start_sidecar(without)?;
        ensure!(!sidecar.ended().await?.success() && sidecar.log().contains("install nftables"), "{}", sidecar.log());
        let mut forbidden = Command::new("setpriv");
        forbidden.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]).arg(binary());
        let mut sidecar = host.start_sidecar(forbidden)?;
        ensure!(!sidecar.ended().await?.success() && sidecar.log().contains("it takes CAP_NET_ADMIN"), "{}", sidecar.log());
        Ok(())
    }
}

//! Endpoints that ask for it are told who connects, by a header of the PROXY protocol that a real HAProxy reads.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use eastway_tests::haproxy::HaProxy;
use eastway_tests::lab::files::ServiceSpec;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::rogue::{Rogue, header};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::sidecar::{Credentials, Sidecar};
use eastway_tests::{lab_test, load, within};
use eastway_tunnel::header::{ClientAddress, StreamHeader};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SOON: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: told\r\nconnection: close\r\n\r\n";
const HBONE_PORT: u16 = 15008;

/// Lists a service of `cloud` whose only endpoint is a HAProxy on `pod`, which is asked for its health as well.
async fn told(mesh: &mut Mesh, cloud: &str, service: &str, pod: u8) -> Result<HaProxy> {
    let net = mesh.cloud(cloud).net();
    let address = SocketAddr::new(net.pod(pod), PORT);
    let haproxy = HaProxy::start(net.pods(), address).await?;
    let more = json!({
        "ports": [{"name": "http", "port": PORT, "appProtocol": "http", "proxyProtocol": "v2"}],
        "health": {"http": {"path": "/"}, "interval": "1s", "timeout": "1s"},
    });
    let spec = ServiceSpec { more, ..ServiceSpec::new(NAMESPACE, service, PORT).endpoint(address.ip(), "v1") };
    mesh.change_services(cloud, |services| services.push(spec))?;
    Ok(haproxy)
}

/// What the far end of `target` says about a client of `cloud`, and the address that the client has.
async fn ask(mesh: &Mesh, cloud: &str, target: SocketAddr) -> Result<(String, String)> {
    let (place, source) = mesh.client(cloud);
    let asking = place.run(async move {
        let mut stream = load::connect(source, target).await?;
        let own = stream.local_addr()?.to_string();
        stream.write_all(REQUEST).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok((body(&answer)?, own))
    });
    tokio::time::timeout(SOON, asking).await.context("no answer within 5 s")?
}

fn body(answer: &str) -> Result<String> {
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer:?}"))?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(body.to_owned())
}

/// Waits until `service` is reached from `cloud`, and gives its address there.
async fn reached(mesh: &Mesh, cloud: &str, service: &str) -> Result<SocketAddr> {
    let target = mesh.target(cloud, service).await?;
    within(SOON, format!("{cloud} reaches {service}"), async || ask(mesh, cloud, target).await.map(|_| true)).await?;
    Ok(target)
}

lab_test! {
    /// Clients of the other cloud, of the own cloud and of a sidecar are told as they are; and who does not ask is told nothing.
    async fn an_endpoint_is_told_who_connects_and_only_if_it_asks() {
        let hbone = json!({"listen": {"hbone": format!("0.0.0.0:{HBONE_PORT}")}});
        let lines = json!({"log": {"access": "all"}});
        let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &hbone).settings("b", &lines).start().await?;
        let haproxy = told(&mut mesh, "b", "told", 11).await?;
        mesh.serve("b", "web", 12, Habit::Http).await?;
        for cloud in ["a", "b"] {
            let target = reached(&mesh, cloud, "told").await?;
            for _ in 0..20 {
                let (shown, own) = ask(&mesh, cloud, target).await?;
                ensure!(shown == own, "{cloud}: {shown} instead of {own}");
            }
        }

        // A sidecar speaks for a pod: its connection's other end is told.
        let credentials = Credentials::of(mesh.cloud("a"), NAMESPACE, "client")?;
        let gateway = SocketAddr::new(mesh.cloud("a").net().gateways()[0].inside, HBONE_PORT);
        let sidecar = Sidecar::connect(mesh.cloud("a").net().pods(), gateway, &credentials).await?;
        let mut stream = sidecar.open(&format!("told.{NAMESPACE}.b:{PORT}")).await?;
        stream.write(Bytes::from_static(REQUEST)).await?;
        let mut answer = String::new();
        while let Some(chunk) = tokio::time::timeout(SOON, stream.read()).await.context("no answer")?? {
            answer.push_str(&String::from_utf8_lossy(&chunk));
        }
        let shown: SocketAddr = body(&answer)?.parse()?;
        let pods = mesh.cloud("a").net().pod(1);
        let same_network = |a: std::net::IpAddr, b: std::net::IpAddr| match (a, b) {
            (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
            _ => false,
        };
        ensure!(same_network(shown.ip(), pods) && shown.ip() != gateway.ip(), "{shown} is no pod of a");

        // The address crosses for those who ask, and for nobody else.
        let target = mesh.target("a", "web").await?;
        mesh.wait_answer("a", target, "b-12", SOON).await?;
        let client = mesh.client("a").1.to_string();
        within(SOON, "who asked knows the client and the other does not", async || {
            let log = mesh.cloud("b").gateway(0)?.log_tail(1 << 20);
            let lines = |service: &str| -> Vec<&str> {
                let name = format!("inbound|{PORT}||{service}.{NAMESPACE}");
                log.lines().filter(|line| line.contains(&name)).collect()
            };
            let (asked, silent) = (lines("told"), lines("web"));
            ensure!(!silent.iter().any(|line| line.contains(&client)), "{silent:#?}");
            Ok(!silent.is_empty() && asked.iter().any(|line| line.contains(&client)))
        })
        .await?;
        // A gateway waits for connections that somebody holds.
        drop((stream, sidecar, haproxy));
        mesh.stop().await
    }

    /// I1: a peer may claim that anybody connects; that is told to the endpoint, and nothing is sent there.
    async fn i1_what_a_peer_says_of_its_client_is_told_and_never_dialled() {
        let mut mesh = MeshBuilder::of(&["a", "b"]).start().await?;
        let haproxy = told(&mut mesh, "b", "told", 11).await?;
        reached(&mesh, "a", "told").await?;
        let victim = SocketAddr::new(mesh.cloud("b").net().pod(13), PORT);
        let server = Server::start(mesh.cloud("b").net().pods(), victim, "victim", Habit::Greeter).await?;
        let rogue = Rogue::join(mesh.cloud("a"), mesh.cloud("b")).await?;
        let mut claim = header(NAMESPACE, "told", PORT, "client")?;
        claim.client = ClientAddress::new(victim);
        let mut unknown = claim.clone();
        unknown.client = None;
        for (header, shown) in [(claim, Some(victim)), (unknown, None)] {
            let answer = rogue.say(&StreamHeader::Service(header), REQUEST).await?;
            let told = body(&answer)?;
            match shown {
                Some(address) => ensure!(told == address.to_string(), "{told}"),
                // LOCAL: the connection is the gateway's own.
                None => ensure!(!told.starts_with(&victim.ip().to_string()), "{told}"),
            }
        }
        ensure!(server.accepted() == 0, "the address was dialled: {}", haproxy.log());
        mesh.stop().await
    }
}

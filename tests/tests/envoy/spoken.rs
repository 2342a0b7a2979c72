//! A sidecar that leaves it to Services what its workload speaks: both ends of a connection follow what is said, while they run.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use eastway_tests::lab::files::{ServiceSpec, trust_domain};
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE, PORT};
use eastway_tests::servers::{Habit, Server};
use eastway_tests::{lab_test, within};
use serde_json::{Value, json};

use crate::mutual::{CLIENT, INBOUND, PATIENCE, POD, ask, client_of, settings, start_sidecar};

/// Account of the sidecar beside the server.
const SERVERS: &str = "servers";

/// A service of b that leads to the one server, and what it says is spoken there.
fn say(mesh: &mut Mesh, name: &str, protocol: &str) -> Result<()> {
    let pod = mesh.cloud("b").net().pod(POD);
    let mut spec = ServiceSpec::new(NAMESPACE, name, PORT).endpoint(pod, "v1");
    spec.endpoints[0].more = json!({"serviceAccount": SERVERS});
    let port = json!({"name": "app", "port": PORT, "targetPort": INBOUND, "appProtocol": protocol});
    spec.more = json!({"tls": "permissive", "ports": [port]});
    mesh.change_services("b", |services| {
        services.retain(|other| other.name != name);
        services.push(spec);
    })
}

async fn both_ends_follow(version: &'static str) -> Result<()> {
    let inside: IpAddr = "10.244.0.1".parse()?;
    let mut mesh = MeshBuilder::of(&["a", "b"])
        .settings("a", &settings(inside, &[CLIENT.to_owned()]))
        .settings("b", &settings(inside, &[SERVERS.to_owned()]))
        .prepare()
        .await?;
    mesh.start_gateways().await?;
    mesh.wait_up("a", "b", PATIENCE).await?;
    let pod = mesh.cloud("b").net().pod(POD);
    let _server = Server::start(mesh.cloud("b").net().pods(), SocketAddr::new(pod, PORT), "web", Habit::Mirror).await?;
    say(&mut mesh, "web", "http")?;
    let place = json!({
        "listen": SocketAddr::new(pod, INBOUND), "app": SocketAddr::new(pod, PORT), "protocol": "service",
        "mode": "permissive",
    });
    let more = json!({"workload": {"addresses": pod.to_string()}, "inbound": [place], "outbound": false});
    start_sidecar(&mut mesh, version, "b", SERVERS, &more).await?;
    let target = mesh.target("a", "web").await?;
    mesh.client("a").0.ip(&format!("route add local {}/32 dev lo", target.ip())).await?;
    start_sidecar(&mut mesh, version, "a", CLIENT, &Value::Null).await?;

    let shopper = format!("spiffe://{}/ns/{NAMESPACE}/sa/{CLIENT}", trust_domain("a"));
    let claim = "spiffe://b.example/ns/shop/sa/admin";
    // As bytes what the client claims arrives; as HTTP who it has proved to be.
    for (protocol, client) in [("http", shopper.as_str()), ("tcp", claim), ("http", shopper.as_str())] {
        say(&mut mesh, "web", protocol)?;
        within(PATIENCE, format!("the server is reached by {protocol}"), async || {
            Ok(client_of(&ask(&mesh, target).await?).as_deref() == Some(client))
        })
        .await?;
    }
    // Two that do not agree: bytes, in mutual TLS as clients of HTTP offer it. The client's own sidecar takes the claim out.
    say(&mut mesh, "raw", "tcp")?;
    within(PATIENCE, "bytes at the server, and HTTP at the client", async || {
        Ok(client_of(&ask(&mesh, target).await?).is_none())
    })
    .await?;
    let (_, said) = mesh.cloud("b").command(0, &["check"]).await?;
    let wanted = format!("port {PORT} is http by {NAMESPACE}/web, tcp by {NAMESPACE}/raw");
    ensure!(said.contains("WARN EW123") && said.contains(&wanted), "{said}");
    mesh.stop().await
}

lab_test! {
    async fn what_services_say_is_followed_by_envoy_1_40_0() { both_ends_follow("1.40.0").await }
    async fn what_services_say_is_followed_by_envoy_1_36_2() { both_ends_follow("1.36.2").await }
}

//! Two clouds that cannot reach each other: a workload with an Envoy beside it in a, pods in b.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Result;
use eastway_tests::lab::place::Place;
use eastway_tests::mesh::{Mesh, MeshBuilder, NAMESPACE};
use eastway_tests::servers::Habit;
use eastway_tests::{envoy, within};

use crate::latency::Way;

/// The service of b that is asked.
pub(crate) const SERVICE: &str = "web";
/// Longest wait for what takes a second or two.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Pods of b that serve it.
const PODS: [u8; 3] = [11, 12, 13];
/// The address of a's pod without a sidecar.
const PLAIN: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 60);

/// Both clouds, and the sidecar among a's pods with a host for each pod of b.
pub(crate) async fn start(version: &str) -> Result<Mesh> {
    let mut mesh = MeshBuilder::of(&["a", "b"]).settings("a", &envoy::gateway_settings()).start().await?;
    mesh.cloud("a").write_services(&[], &[(PLAIN.into(), NAMESPACE, "client")])?;
    for pod in PODS {
        mesh.serve("b", SERVICE, pod, Habit::Http).await?;
    }
    // Its own from now on, for all pods but those in namespaces of their own.
    let target = envoy::start_sidecar(&mut mesh, SERVICE, version).await?;
    let answered = async || mesh.ask("a", target).await.map(|server| server.starts_with("b-1"));
    within(PATIENCE, "an answer through Envoy", answered).await?;
    Ok(mesh)
}

/// From a's pods to b's, with the client's sidecar and without.
pub(crate) async fn ways(mesh: &Mesh) -> Result<Vec<Way>> {
    let target = mesh.target("a", SERVICE).await?;
    let (place, source) = mesh.client("a");
    let sidecar = Way { name: "sidecar_gateways", place, source, target };
    let place = plain_pod(mesh).await?;
    Ok(vec![Way { name: "gateways", place, source: IpAddr::V4(PLAIN), target }, sidecar])
}

/// A pod in a namespace of its own, which reaches imports by their virtual addresses.
async fn plain_pod(mesh: &Mesh) -> Result<Place> {
    let net = mesh.cloud("a").net();
    let pod = Place::namespace("a/plain").await?;
    net.pods().veth("plain0", &pod, "eth0").await?;
    net.pods().ip_batch(&["link set plain0 master eth0".to_owned(), "link set plain0 up".to_owned()]).await?;
    let gateway = net.gateways()[0].inside;
    let lines = [
        format!("addr add {PLAIN}/16 dev eth0"),
        "link set eth0 up".to_owned(),
        format!("route add {} via {gateway}", net.vip_range()),
    ];
    pod.ip_batch(&lines).await?;
    Ok(pod)
}

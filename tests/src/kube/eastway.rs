//! Eastway in the clusters of a bed, installed and joined as a person does it: Helm, one Peer each way, and the
//! cluster's resolver told.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use super::process::Daemon;
use super::{Bed, Cluster, image, process, seconds, stage};
use crate::within;

/// Where the chart installs.
pub const SYSTEM: &str = "eastway-system";
/// Namespace with the objects of further API servers, and Secret in [`SYSTEM`] with their files.
pub const REGISTRY: &str = "eastway-clusters";
/// A zone of names of one's own: `a` and `b` in it lead to the service `web` of the namespace [`PINNED`], each in the
/// cluster of this name.
pub const ZONE: &str = "clouds.example";
/// See [`ZONE`].
pub const PINNED: &str = "e2e-pinned";
/// The cluster address of the DNS Service, as the values ask for it.
const DNS: &str = "10.96.0.53";
/// Longest wait for a step of the installation.
const PATIENCE: Duration = Duration::from_secs(90);

/// Namespaces whose services cross both ways: Bookinfo's, those of tests and those of the conformance suite.
const CROSSING: &str = "[{namespace: bookinfo}, {namespace: 'e2e-*'}, {namespace: 'mcs-*'}]";

/// Installs and joins, unless a test of this bed has done so. Tests share the installation and have a namespace each,
/// `e2e-<name>`.
///
/// # Errors
/// A step fails, or the clusters are not ready in time; every later call says the same.
pub async fn ready(bed: &Bed) -> Result<()> {
    ready_with(bed, async |_| Ok(Value::Null), str::to_owned).await
}

/// As [`ready`], with values of one's own for each cluster, which `more` gives when all else is ready for it, and Peers as
/// `changed` makes them of what is printed.
///
/// # Errors
/// As there.
pub async fn ready_with(
    bed: &Bed,
    more: impl AsyncFn(&Cluster) -> Result<Value>,
    changed: impl Fn(&str) -> String,
) -> Result<()> {
    let started = Instant::now();
    let done = bed.installed.get_or_init(async || {
        install(bed, more).await?;
        bed.record("installed.install_s", seconds(started.elapsed()));
        let joining = Instant::now();
        join(bed, changed).await?;
        bed.record("installed.join_s", seconds(joining.elapsed()));
        Ok(())
    });
    done.await.as_ref().map_err(|error: &anyhow::Error| anyhow!("{error:#}")).copied()
}

/// Installs the chart in every cluster, with the binary under test, gives each gateway an address of the WAN and lets
/// pods resolve `clusterset.local`.
///
/// # Errors
/// A step fails; the message has what it said.
async fn install(bed: &Bed, more: impl AsyncFn(&Cluster) -> Result<Value>) -> Result<()> {
    let tar = image_of_binary().await?;
    for cluster in bed.clusters() {
        cluster.load_images(std::slice::from_ref(&tar)).await?;
        let address = outside(bed, cluster)?;
        let name = cluster.name();
        let pinned = |other: &Cluster| {
            let (cluster, service) = (other.name(), format!("{PINNED}/web"));
            json!({"name": format!("{cluster}.{ZONE}"), "service": service, "cluster": cluster})
        };
        let names: Vec<Value> = bed.clusters().iter().map(pinned).collect();
        let mut values = json!({
            "cluster": name, "trustDomain": format!("{name}.example"),
            "image": {"repository": "eastway", "tag": "e2e"},
            "gateway": {"advertise": [format!("{address}:15443")]},
            "dns": {"clusterIP": DNS, "zones": [ZONE], "names": names},
            // Nothing is registered until a test does it.
            "clusterRegistry": {"namespace": REGISTRY, "secret": REGISTRY}, "crds": {"clusterRegistry": true},
        });
        crate::lab::files::merge(&mut values, &more(cluster).await?);
        std::fs::write(values_file(name)?, values.to_string())?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": REGISTRY}});
        cluster.apply(&namespace.to_string()).await?;
        helm(cluster, &["--install", "--create-namespace"]).await?;
        cluster.load_balancer(SYSTEM, "eastway-gateway", address).await?;
    }
    for cluster in bed.clusters() {
        rolled_out(cluster).await?;
    }
    // Each waits until the kubelet has brought the new Corefile to the resolver: up to a minute.
    let resolvers = bed.clusters().iter().map(|cluster| eastway(cluster, &["dns", "install", "--zone", ZONE]));
    futures_util::future::try_join_all(resolvers).await.map(drop)
}

/// Upgrades the installation of a cluster: its values of the beginning, but for these (`image.tag=next`). Waits until the
/// new pods are there; old ones may still be on their way out.
///
/// # Errors
/// Helm refuses, or a Deployment does not get ready in time.
pub async fn set(cluster: &Cluster, values: &[&str]) -> Result<()> {
    let arguments: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
    helm(cluster, &arguments).await?;
    rolled_out(cluster).await
}

/// As [`set`], for values that are more than a word.
///
/// # Errors
/// As there.
pub async fn set_values(cluster: &Cluster, values: &Value) -> Result<()> {
    let file = stage::folder()?.join(format!("more-values-{}.json", cluster.name()));
    std::fs::write(&file, values.to_string())?;
    helm(cluster, &["-f", &file.display().to_string()]).await?;
    rolled_out(cluster).await
}

async fn rolled_out(cluster: &Cluster) -> Result<()> {
    for role in ["ca", "controller", "gateway"] {
        cluster.rollout(&format!("deploy/eastway-{role}"), SYSTEM, PATIENCE).await?;
    }
    Ok(())
}

async fn helm(cluster: &Cluster, more: &[&str]) -> Result<()> {
    let (chart, file) = (chart().display().to_string(), values_file(cluster.name())?.display().to_string());
    let arguments = ["upgrade", "eastway", &chart, "-n", SYSTEM, "-f", &file];
    cluster.helm(&[&arguments, more].concat()).await.map(drop)
}

/// What the chart is told in a cluster of this name.
fn values_file(cluster: &str) -> Result<PathBuf> {
    Ok(stage::folder()?.join(format!("values-{cluster}.json")))
}

/// Gives every cluster the Peer of every other, as `eastway peer export` prints it, with the namespaces that cross both ways.
///
/// # Errors
/// A step fails, or the peers are not ready in time.
async fn join(bed: &Bed, changed: impl Fn(&str) -> String) -> Result<()> {
    for giver in bed.clusters() {
        let peer = changed(&exchanged(&eastway(giver, &["peer", "export"]).await?)?);
        for taker in bed.clusters().iter().filter(|taker| taker.name() != giver.name()) {
            taker.apply(&peer).await?;
        }
    }
    for cluster in bed.clusters() {
        let ready = ["peers.eastway.dev", "--all"];
        cluster.wait("condition=Ready", &ready, PATIENCE).await?;
    }
    Ok(())
}

/// A Peer as it was printed, with the namespaces that cross both ways.
///
/// # Errors
/// They have no place in it.
pub fn exchanged(printed: &str) -> Result<String> {
    let peer = printed.replace("export: []", &format!("export: {CROSSING}"));
    let peer = peer.replace("import: []", &format!("import: {CROSSING}"));
    ensure!(peer != printed, "what to exchange has no place in\n{printed}");
    Ok(peer)
}

/// Runs the command line of the binary under test as that cluster's administrator, on its node.
///
/// # Errors
/// It fails; the message has what it said.
pub async fn eastway(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let binary = crate::binary();
    let mut command = cluster.on_node(binary.to_str().context("a path in UTF-8")?, arguments)?;
    if !arguments.contains(&"--kubeconfig") {
        command.arg("--kubeconfig").arg(cluster.pki().admin());
    }
    without_variables(&mut command);
    process::output(&mut command).await
}

/// Takes out variables of the tests: the binary refuses what it does not know.
fn without_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EASTWAY_")) {
        command.env_remove(name);
    }
}

/// Starts the binary under test on the WAN, outside of every cluster.
///
/// # Errors
/// It cannot be started.
pub fn daemon(name: &str, arguments: &[&str], folder: &Path) -> Result<Daemon> {
    let mut command = Command::new(crate::binary());
    command.args(arguments);
    without_variables(&mut command);
    Daemon::start(name, command, folder)
}

/// Waits until an import has an address in a cluster, and returns it.
///
/// # Errors
/// It has none in time.
pub async fn imported(cluster: &Cluster, namespace: &str, name: &str) -> Result<String> {
    let what = format!("{namespace}/{name} has an address in {}", cluster.name());
    within(PATIENCE, what, async || address(cluster, namespace, name).await.map(|_| true)).await?;
    address(cluster, namespace, name).await
}

async fn address(cluster: &Cluster, namespace: &str, name: &str) -> Result<String> {
    let import: Value = cluster.get(&["serviceimport", name, "-n", namespace]).await?;
    import["spec"]["ips"][0].as_str().map(str::to_owned).context("no address")
}

/// The address of the WAN where a cluster's gateways are reached.
///
/// # Errors
/// The cluster is not of this bed.
pub fn outside(bed: &Bed, cluster: &Cluster) -> Result<Ipv4Addr> {
    let place = bed.clusters().iter().position(|one| one.name() == cluster.name()).context("a cluster of this bed")?;
    Ok(Ipv4Addr::new(198, 51, 100, 21 + u8::try_from(place)?))
}

/// The archive of the binary under test, made once a run.
///
/// # Errors
/// The binary or its libraries cannot be read.
pub async fn image_of_binary() -> Result<PathBuf> {
    let tar = stage::folder()?.join("images/eastway.tar");
    if !tar.exists() {
        image::eastway_image(&crate::binary(), &tar).await?;
    }
    Ok(tar)
}

/// The archive of the image of sidecars with the binary under test, made once a run.
///
/// # Errors
/// The binary, Envoy, `nft` or a library cannot be read.
pub async fn image_of_sidecars() -> Result<PathBuf> {
    let tar = stage::folder()?.join("images/eastway-sidecar.tar");
    if !tar.exists() {
        image::sidecar_image(image::SIDECAR, &crate::binary(), &tar).await?;
    }
    Ok(tar)
}

fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../helm/eastway")
}

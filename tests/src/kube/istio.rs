//! Istio as its users have it, in the clusters of a bed: a real istiod in each, which is a process on the node, and pods with a
//! real sidecar ([`sidecar`]), pilot-agent and Envoy.
//!
//! All have one root and trust domain, and each cluster is a network of its own, called like the cluster. Nothing of Istio is
//! told of other clusters here, but by [`remote`].

pub mod joined;
pub mod remote;
pub mod sidecar;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use eastway_identity::Ca;
use eastway_identity::ca::{InitOptions, Root};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::Mutex;

use super::process::{Daemon, output};
use super::{Bed, Cluster, seconds, stage, tools};
use crate::{envoy, within};

/// Where Istio's own objects are.
pub const SYSTEM: &str = "istio-system";
/// The trust domain of all clusters.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// Host of istiod, and its port for sidecars.
const ISTIOD: &str = "istiod.istio-system.svc";
const XDS: u16 = 15012;
/// Longest start of istiod on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// What istiod is told. Envoy as its project builds it lacks filters of Istio's own, and metrics need those.
const ENVIRONMENT: [(&str, &str); 8] = [
    // Whoever has several roots is told to set it; it changes nothing else.
    ("ISTIO_MULTIROOT_MESH", "true"),
    ("POD_NAMESPACE", SYSTEM),
    ("POD_NAME", "istiod-0"),
    ("PILOT_CERT_PROVIDER", "istiod"),
    ("JWT_POLICY", "third-party-jwt"),
    ("ISTIOD_CUSTOM_HOST", ISTIOD),
    ("PILOT_ENABLE_ALPN_FILTER", "false"),
    ("PILOT_ENABLE_METADATA_EXCHANGE", "false"),
];

/// How the clusters of a bed trust each other's workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// One root and trust domain.
    One,
    /// A root and a trust domain of each cluster's own.
    Apart,
}

impl Trust {
    /// The trust domain of a cluster.
    #[must_use]
    pub fn domain(self, cluster: &str) -> String {
        match self {
            Self::One => TRUST_DOMAIN.to_owned(),
            Self::Apart => format!("{cluster}.example"),
        }
    }
}

/// Istio in all clusters of a bed.
#[derive(Debug)]
pub struct Istio {
    trust: Trust,
    istiods: Mutex<BTreeMap<String, Daemon>>,
}

/// Starts it, unless a test of this bed has done so.
///
/// # Errors
/// A step fails, or istiod is not ready in time; every later call says the same.
pub async fn ready(bed: &Bed) -> Result<&Istio> {
    ready_with(bed, Trust::One).await
}

/// As [`ready`]; a bed has one kind of trust.
///
/// # Errors
/// As there.
pub async fn ready_with(bed: &Bed, trust: Trust) -> Result<&Istio> {
    let started = Instant::now();
    let done = bed.istio.get_or_init(async || {
        let istio = install(bed, trust).await?;
        bed.record("istio.install_s", seconds(started.elapsed()));
        Ok(istio)
    });
    done.await.as_ref().map_err(|error: &anyhow::Error| anyhow!("{error:#}"))
}

async fn install(bed: &Bed, trust: Trust) -> Result<Istio> {
    let folder = stage::folder()?;
    let root = folder.join("istio-root");
    Ca::init(&root, &InitOptions::new(TRUST_DOMAIN))?;
    let tar = folder.join("images/istio.tar");
    sidecar::image(&tar).await?;
    let starting = bed.clusters().iter().map(async |cluster| {
        prepare(cluster, &root, &tar, trust).await?;
        configure(cluster, &mesh(&trust.domain(cluster.name()))).await?;
        let istiod = start(cluster).await?;
        anyhow::Ok((cluster.name().to_owned(), istiod))
    });
    let istiods = futures_util::future::try_join_all(starting).await?;
    Ok(Istio { trust, istiods: Mutex::new(istiods.into_iter().collect()) })
}

impl Istio {
    /// The trust domain of a cluster.
    #[must_use]
    pub fn domain(&self, cluster: &Cluster) -> String {
        self.trust.domain(cluster.name())
    }

    /// Gives a cluster the mesh configuration of the beginning with a change; its istiod reads it while it runs.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn set(&self, cluster: &Cluster, change: &Value) -> Result<()> {
        let mut mesh = mesh(&self.domain(cluster));
        crate::lab::files::merge(&mut mesh, change);
        configure(cluster, &mesh).await
    }

    /// As [`Self::set`], and starts istiod anew: some of it is read at the start alone.
    ///
    /// # Errors
    /// istiod does not get ready in time.
    pub async fn change(&self, cluster: &Cluster, change: &Value) -> Result<()> {
        self.set(cluster, change).await?;
        self.restart(cluster).await
    }

    /// Ends the istiod of a cluster, and starts it anew.
    ///
    /// # Errors
    /// It does not get ready in time.
    pub async fn restart(&self, cluster: &Cluster) -> Result<()> {
        let mut istiods = self.istiods.lock().await;
        if let Some(mut before) = istiods.remove(cluster.name()) {
            before.kill().await?;
        }
        let istiod = start(cluster).await?;
        istiods.insert(cluster.name().to_owned(), istiod);
        Ok(())
    }
}

/// The folder of a cluster's issuing CA, in the layout that Istio calls `cacerts`.
#[must_use]
pub fn authority(cluster: &Cluster) -> PathBuf {
    cluster.folder().join("istio/cacerts")
}

/// Gives a cluster all but istiod itself.
async fn prepare(cluster: &Cluster, root: &Path, tar: &PathBuf, trust: Trust) -> Result<()> {
    let own = InitOptions::new(&trust.domain(cluster.name()));
    let options = match trust {
        Trust::One => InitOptions { root: Root::Shared(root.to_owned()), ..own },
        Trust::Apart => own,
    };
    Ca::init(&authority(cluster), &options)?;
    cluster.load_images(std::slice::from_ref(tar)).await?;
    cluster.apply(&tools::text("istio-crds.yaml")?).await?;
    cluster.gateway_api(tools::GATEWAY_API).await?;
    cluster.apply(&objects(cluster)).await.map(drop)
}

/// istiod's namespace, which says what the network is called, and its Service, which leads to the node.
fn objects(cluster: &Cluster) -> String {
    let labels = json!({"topology.istio.io/network": cluster.name()});
    let ports = json!([{"name": "https-dns", "port": XDS}]);
    let items = json!([
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": labels}},
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "istiod", "namespace": SYSTEM},
            "spec": {"ports": ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": "istiod-node", "namespace": SYSTEM, "labels": {"kubernetes.io/service-name": "istiod"},
            },
            "endpoints": [{"addresses": [cluster.address()], "conditions": {"ready": true}}],
            "ports": ports,
        },
    ]);
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// The mesh configuration of the beginning.
fn mesh(domain: &str) -> Value {
    let proxies = json!({"discoveryAddress": format!("{ISTIOD}:{XDS}")});
    json!({"trustDomain": domain, "defaultConfig": proxies, "accessLogFile": "/dev/stdout"})
}

/// Writes the mesh configuration: for istiod, which has it of a file here, and for those who look where it has it of elsewhere.
async fn configure(cluster: &Cluster, mesh: &Value) -> Result<()> {
    let config = cluster.folder().join("istio/etc/istio/config");
    std::fs::create_dir_all(&config)?;
    // Renamed into place: istiod would read a file that is half there.
    std::fs::write(config.join("new"), mesh.to_string())?;
    std::fs::rename(config.join("new"), config.join("mesh"))?;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": SYSTEM},
        "data": {"mesh": mesh.to_string()},
    });
    cluster.apply(&map.to_string()).await.map(drop)
}

/// Starts istiod on the node, and waits until it is ready.
async fn start(cluster: &Cluster) -> Result<Daemon> {
    let folder = cluster.folder().join("istio");
    let config = folder.join("etc/istio/config");
    std::fs::write(config.join("meshNetworks"), "networks: {}\n")?;
    let text = |path: PathBuf| path.display().to_string();
    // It looks for some of its files below the working folder.
    let script = format!("cd {} && exec \"$@\"", folder.display());
    let kubeconfig = text(cluster.pki().admin());
    let arguments = [
        "-c".to_owned(),
        script,
        "istiod".to_owned(),
        text(tools::built("pilot-discovery")?),
        "discovery".to_owned(),
        format!("--kubeconfig={kubeconfig}"),
        format!("--clusterID={}", cluster.name()),
        format!("--meshConfig={}", text(config.join("mesh"))),
        format!("--networksConfig={}", text(config.join("meshNetworks"))),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command: Command = cluster.command("bash", &arguments)?;
    command.envs(ENVIRONMENT).env("CLUSTER_ID", cluster.name()).env("ROOT_CA_DIR", authority(cluster));
    let mut istiod = Daemon::start("istiod", command, cluster.logs())?;
    let ready = within(PATIENCE, format!("istiod of {} is ready", cluster.name()), async || {
        let asked = ["--silent", "--fail", "--max-time", "2", "http://127.0.0.1:8080/ready"];
        Ok(output(&mut cluster.on_node("curl", &asked)?).await.is_ok())
    });
    ready.await.with_context(|| istiod.tail())?;
    istiod.ensure_running()?;
    Ok(istiod)
}

/// The Envoy of sidecars.
fn proxy() -> Result<PathBuf> {
    envoy::binary(envoy::VERSIONS[0])
}

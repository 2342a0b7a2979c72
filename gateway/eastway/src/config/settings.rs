//! The gateway's settings after all checks: nothing here can be wrong any more.

mod convert;
mod dns;
mod injection;
mod memory;
mod quic_lb;
mod registries;
mod relay;
mod sni;
mod workloads;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use eastway_identity::{SpiffeId, SpiffeIdError};
use eastway_kubernetes::objects::Kind;
use eastway_kubernetes::source::ExportMark;
use eastway_model::rules::{self, NameRule};
use eastway_model::vip::VipRange;
use eastway_model::{ClusterName, Label, NameError};
use eastway_tunnel::RelayRule;
use serde::Serialize;

use super::file::RoutesWord;
use super::value::{Fqdn, HostPort};
use crate::telemetry::{AccessMode, LogFormat};

pub use injection::InjectionSettings;
pub(crate) use quic_lb::hex;

pub(super) use convert::{ca_address, convert, duration_in, folders, log_level, path, path_or, vip_ranges};

/// What one `kind: GatewayConfig` file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The file it comes from.
    pub file: PathBuf,
    /// This cluster's name.
    pub cluster: ClusterName,
    /// Identities and certificates.
    pub trust: TrustSettings,
    /// Where the gateway listens.
    pub listen: ListenSettings,
    /// Links to peers.
    pub link: LinkSettings,
    /// For whom links are carried.
    pub relay: Vec<RelayRule>,
    /// Other gateways of this cluster; `None`: there are none.
    pub replicas: Option<ReplicaSettings>,
    /// Sources of local services, names distinct.
    pub registries: Vec<RegistrySettings>,
    /// Folder of Peer files.
    pub peers: Folder,
    /// Folder of policy files.
    pub policies: Folder,
    /// What DNS answers beside clusterset.local.
    pub dns: DnsSettings,
    /// Virtual addresses.
    pub vip: VipSettings,
    /// Sidecars of this cluster; `None`: none are served.
    pub sidecars: Option<SidecarSettings>,
    /// Whether refusals by access policies are carried out.
    pub authorization: rules::AccessMode,
    /// The Kubernetes cluster; `None`: there is none.
    pub kubernetes: Option<KubernetesSettings>,
    /// Folder for what survives a restart.
    pub state: PathBuf,
    /// Logs.
    pub log: LogSettings,
    /// Bounds on what peers and clients can use up.
    pub limits: Limits,
    /// Endpoints on loopback addresses are accepted (threat P6 is given up knowingly).
    pub allow_loopback: bool,
}

/// A folder of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Folder {
    /// Its path.
    pub path: PathBuf,
    /// It was named in the configuration, so it has to be there.
    pub required: bool,
}

/// Identities and certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustSettings {
    /// Trust domain of this cluster.
    pub domain: Arc<str>,
    /// Folder of the issuing CA; only the ca role reads it.
    pub cacerts: PathBuf,
    /// Where the ca role is asked.
    pub ca: CaAddress,
    /// What proves to a CA on the network who asks.
    pub token: PathBuf,
    /// Where a gateway keeps its certificate over a restart; `None`: nowhere.
    pub keep: Option<PathBuf>,
    /// Lifetime of leaves, 1 minute to 24 hours.
    pub leaf_ttl: Duration,
    /// PEM file of revocation lists.
    pub crl: Option<PathBuf>,
    /// Workloads that the ca role certifies on sockets of their own; identities in `domain` and sockets distinct, at
    /// most 1,024.
    pub workloads: Vec<WorkloadSettings>,
}

/// A workload outside Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSettings {
    /// What it is certified as.
    #[serde(serialize_with = "as_text")]
    pub identity: SpiffeId,
    /// Where it asks.
    pub socket: PathBuf,
    /// Whom the socket belongs to; `None`: the user of the ca role.
    pub uid: Option<u32>,
}

fn as_text<S: serde::Serializer>(id: &SpiffeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// Where the CA is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CaAddress {
    /// A Unix socket; a ca role with this configuration listens there.
    Unix(PathBuf),
    /// The network, TLS.
    Network(HostPort),
}

/// Where the gateway listens. Port 0 lets the system choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenSettings {
    /// Links, UDP.
    pub link: SocketAddr,
    /// Where peers reach `link`; empty: nowhere.
    pub advertise: Vec<HostPort>,
    /// DNS, UDP and TCP; at least one.
    pub dns: Vec<SocketAddr>,
    /// Administration; a loopback address.
    pub admin: SocketAddr,
    /// The feed of the controller and the configuration of sidecars, TCP; `None`: there is neither.
    pub local: Option<SocketAddr>,
    /// Sidecars, TCP; `None`: none are served.
    pub hbone: Option<SocketAddr>,
    /// Istio's sidecars, TCP.
    pub sni: Vec<SniSettings>,
    /// The ca role, TCP; `None`: not on the network.
    pub ca: Option<SocketAddr>,
    /// The injector role, TCP.
    pub injection: SocketAddr,
    /// Prometheus metrics.
    pub metrics: SocketAddr,
    /// Health checks.
    pub health: SocketAddr,
}

/// A port at which the name in TLS says what is wanted of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SniSettings {
    /// The peer.
    pub cluster: ClusterName,
    /// What Istio calls its network.
    pub network: Label,
    /// Where it listens.
    pub address: SocketAddr,
}

/// The Kubernetes cluster that a process works in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesSettings {
    /// Eastway's own namespace.
    pub namespace: Label,
    /// Service of the gateways there.
    pub service: Label,
    /// How its API server is reached.
    #[serde(flatten)]
    pub access: KubernetesAccess,
    /// Where the controller finds a gateway that tells it what peers export.
    pub gateways: HostPort,
    /// Labels of the gateway pods, as `kubectl get -l` takes them.
    pub gateway_labels: String,
    /// Service there in front of `listen.sni`; `None`: Istio is none of this cluster's.
    pub istio_service: Option<Label>,
    /// Whose routes are read beside policies.
    pub routes: Vec<RoutesWord>,
}

impl KubernetesSettings {
    /// Those of a pod in `namespace`, with the chart's names.
    ///
    /// # Errors
    /// [`NameError`]: the namespace is none.
    pub fn in_namespace(namespace: &str) -> Result<Self, NameError> {
        let namespace = Label::parse(namespace)?;
        let host = Arc::from(format!("eastway-gateway-local.{namespace}.svc"));
        Ok(Self {
            namespace,
            service: Label::parse("eastway-gateway")?,
            access: KubernetesAccess::default(),
            gateways: HostPort { host, port: 15012 },
            gateway_labels: "app.kubernetes.io/name=eastway,app.kubernetes.io/component=gateway".to_owned(),
            istio_service: None,
            routes: Vec::new(),
        })
    }

    /// Kinds of objects that are read as files are.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        let of = |word: &RoutesWord| match word {
            RoutesWord::GatewayApi => Kind::GATEWAY_API.to_vec(),
            RoutesWord::Istio => Kind::ISTIO.to_vec(),
        };
        Kind::OWN.into_iter().chain(self.routes.iter().flat_map(of)).collect()
    }
}

/// How an API server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KubernetesAccess {
    /// A kubeconfig file; `None`: the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// A context of it; `None`: the current one.
    pub context: Option<String>,
}

/// Timing of links.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkSettings {
    /// How often a silent link proves that it lives.
    pub keep_alive: Duration,
    /// Silence after which it is down; at least 3 × `keep_alive`.
    pub idle_timeout: Duration,
    /// How long streams may go on when the process stops.
    pub drain: Duration,
    /// How a load balancer reads connection ids; `None`: as the environment says.
    pub quic_lb: Option<QuicLbSettings>,
}

/// How a load balancer reads connection ids of QUIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuicLbSettings {
    /// By what it knows this gateway, 1 to 15 bytes; `None`: the environment says it.
    pub server_id: Option<Vec<u8>>,
    /// Its configuration's number, 0 to 6.
    pub configuration: u8,
    /// Bytes of the nonce, 4 to 18, and with the server id at most 19.
    pub nonce_length: usize,
    /// File with its key; `None`: nothing is encrypted.
    pub key_file: Option<PathBuf>,
}

/// Other gateways of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaSettings {
    /// Where this one hears them, UDP.
    pub listen: SocketAddr,
    /// Where they listen, this one possibly among them; at most 64, distinct.
    pub siblings: Vec<SocketAddr>,
}

/// A source of local services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistrySettings {
    /// Its name.
    pub name: Label,
    /// What it reads.
    #[serde(flatten)]
    pub source: RegistrySource,
}

/// What a registry reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RegistrySource {
    /// A `kind: ServiceList` file.
    File(PathBuf),
    /// A Kubernetes API server.
    Kubernetes(ApiServerSettings),
    /// Further API servers, as they are listed somewhere.
    #[serde(rename = "clusterRegistry")]
    Clusters {
        /// Where they are listed.
        #[serde(flatten)]
        place: ClusterPlace,
        /// How each is read.
        #[serde(flatten)]
        read: ReadSettings,
    },
}

/// Where API servers are listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ClusterPlace {
    /// A folder of Cluster files.
    Folder(PathBuf),
    /// A namespace with Cluster and ClusterProfile objects and their Secrets; not Eastway's own.
    Namespace(Label),
}

/// A Kubernetes API server to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiServerSettings {
    /// A kubeconfig; `None`: the pod's own service account.
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; `None`: its current one.
    pub context: Option<String>,
    /// How it is read.
    #[serde(flatten)]
    pub read: ReadSettings,
}

/// How the objects of an API server are read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadSettings {
    /// What counts as an export beside a ServiceExport.
    pub export_marks: Vec<ExportMark>,
    /// Labels of pods that tell versions apart, at most 16.
    pub subset_labels: Vec<Arc<str>>,
}

/// What DNS answers beside clusterset.local.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsSettings {
    /// Own zones, none inside another.
    pub zones: Vec<Fqdn>,
    /// Own names, each in one of the zones, each once.
    pub names: Vec<NameRule>,
}

/// Virtual addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VipSettings {
    /// Ranges that do not overlap.
    pub ranges: Vec<VipRange>,
    /// Whether this gateway decides and keeps them.
    pub owner: bool,
}

/// Sidecars of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarSettings {
    /// Where they reach the gateway's HBONE port.
    pub gateway: HostPort,
    /// Most endpoints of other clusters that a service may have for sidecars to be told them one by one.
    pub endpoints_per_service: usize,
    /// Those in pods; `None`: none are put there.
    pub injection: Option<InjectionSettings>,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogSettings {
    /// How a line looks.
    pub format: LogFormat,
    /// Filter directives as in `RUST_LOG`; checked for their grammar.
    pub level: String,
    /// Which connections get a line.
    pub access: AccessMode,
}

/// Bounds on what peers and clients can use up (invariant I8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Services of one peer.
    pub services_per_peer: usize,
    /// Endpoints of one peer.
    pub endpoints_per_peer: usize,
    /// Changed services and endpoints of one peer per second, in the long run.
    pub updates_per_second_per_peer: u32,
    /// Open streams of one peer.
    pub streams_per_peer: u32,
    /// Seconds in an hour for which one peer may measure its link; 0: nobody may.
    pub bench_seconds_per_hour: u32,
    /// Bytes of all links in buffers.
    pub buffer_bytes: u64,
    /// Bytes of all tunnels of sidecars in buffers.
    pub hbone_buffer_bytes: u64,
    /// DNS connections over TCP at once.
    pub dns_connections: usize,
    /// DNS answers per second and client network.
    pub dns_answers_per_second: u32,
    /// Without a byte, or with bytes that nobody takes, for so long a connection is reset.
    pub connection_idle: Duration,
    /// Likewise, once one of its directions has ended.
    pub connection_half_closed: Duration,
    /// Without a packet for so long a UDP flow is over.
    pub udp_idle: Duration,
}

/// Bytes in buffers where there is memory enough.
const BUFFER_BYTES: u64 = 256 << 20;
/// The least that buffers may be limited to.
const LEAST_BUFFER_BYTES: u64 = 16 << 20;

impl Limits {
    /// The defaults for a process that may use so many bytes of memory: buffers get a quarter of it for links and one for
    /// sidecars, so that peers and clients that do not read cannot get it killed (fault F22).
    fn within(memory: Option<u64>) -> Self {
        let share = memory.map_or(BUFFER_BYTES, |bytes| (bytes / 4).clamp(LEAST_BUFFER_BYTES, BUFFER_BYTES));
        Self { buffer_bytes: share, hbone_buffer_bytes: share, ..Self::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services_per_peer: 10_000,
            endpoints_per_peer: 100_000,
            updates_per_second_per_peer: 10_000,
            streams_per_peer: 65_536,
            bench_seconds_per_hour: 60,
            buffer_bytes: BUFFER_BYTES,
            hbone_buffer_bytes: BUFFER_BYTES,
            dns_connections: 128,
            dns_answers_per_second: 10_000,
            connection_idle: Duration::from_secs(3_600),
            connection_half_closed: Duration::from_secs(600),
            udp_idle: crate::router::UDP_IDLE,
        }
    }
}

/// Namespace of Eastway's own service accounts unless the configuration names another.
pub const SYSTEM_NAMESPACE: &str = "eastway-system";

impl Settings {
    /// The identity of one of Eastway's own service accounts in this cluster.
    ///
    /// # Errors
    /// The trust domain makes no SPIFFE id.
    pub fn service_account(&self, account: &str) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::workload(&self.trust.domain, self.system_namespace(), account)
    }

    /// The trust domain of workloads with a sidecar of Istio; `None`: there is no Istio.
    #[must_use]
    pub fn istio(&self) -> Option<Arc<str>> {
        self.kubernetes.as_ref()?.istio_service.as_ref()?;
        Some(Arc::clone(&self.trust.domain))
    }

    /// Eastway's own namespace.
    #[must_use]
    pub fn system_namespace(&self) -> &str {
        self.kubernetes.as_ref().map_or(SYSTEM_NAMESPACE, |kubernetes| kubernetes.namespace.as_str())
    }

    /// The folder that relative paths start at.
    #[must_use]
    pub fn folder(&self) -> &Path {
        folder_of(&self.file)
    }
}

/// The folder of `file`, `.` if it is named without one.
pub(super) fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

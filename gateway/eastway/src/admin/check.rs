//! What `eastway check` knows: facts that a running gateway measured, and the findings they lead to.
//!
//! Gathering facts touches the network and is the gateway's work; judging them is pure and done here, so that every
//! code can be tested with a made-up gateway.

pub mod catalogue;
mod judge;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use judge::judge;

/// Longest time that gathering facts may take.
pub const PROBE_BUDGET: Duration = Duration::from_secs(8);

/// Everything that the checks look at.
#[derive(Clone, Debug, Default)]
pub struct CheckFacts {
    /// Our wall clock, milliseconds since the Unix epoch.
    pub now: u64,
    /// This process.
    pub gateway: GatewayFacts,
    /// The DNS server.
    pub dns: DnsFacts,
    /// The configured peers, sorted by name.
    pub peers: Vec<PeerFacts>,
}

/// Facts about this process.
#[derive(Clone, Debug, Default)]
pub struct GatewayFacts {
    /// Our leaf: beginning and end, milliseconds since the Unix epoch. `None`: there is none yet.
    pub leaf: Option<(u64, u64)>,
    /// End of our issuing CA.
    pub issuer_not_after: Option<u64>,
    /// End of the revocation list, if one is configured.
    pub crl_next_update: Option<u64>,
    /// Why the ca role did not answer, if it did not.
    pub ca_silent: Option<String>,
    /// Other gateways of this cluster that are configured, or found, and do not answer.
    pub siblings_silent: Vec<String>,
    /// Sidecars that refuse something now: which, of what kind, and what the proxy says.
    pub sidecars_refusing: Vec<String>,
    /// Pods that are to have a sidecar and have none, `namespace/name`; or why that is not known.
    pub sidecars_missing: Vec<String>,
    /// Ports at which sidecars take something else than Services say, or than some of them: which, and who says what.
    pub sidecars_differ: Vec<String>,
    /// Exported services with pods whose sidecars take connections at ports that are told the client's address.
    pub sidecars_in_the_way: Vec<String>,
    /// What does not fit together, if Istio is beside us.
    pub istio: Option<IstioFacts>,
    /// What keeps the process from being ready.
    pub pending: Vec<String>,
    /// Why the files on disk are not what runs.
    pub config_errors: Vec<String>,
    /// Registries that cannot be read as they are now: which, and why.
    pub registry_errors: Vec<String>,
    /// Services offered to peers by the registries.
    pub exported_services: u32,
    /// Exported services without any ready endpoint, `namespace/name`.
    pub exported_without_endpoints: Vec<String>,
    /// Imports without a virtual address because the ranges are full, or without a listener because there are too many.
    pub vips_missing: u32,
    /// Virtual addresses with their ports that could not be listened on.
    pub vips_unbound: Vec<String>,
    /// Log lines dropped since the start.
    pub dropped_log_lines: u64,
    /// Most file descriptors the process may open.
    pub fd_limit: Option<u64>,
    /// UDP receive buffer of the link socket, bytes.
    pub udp_receive_buffer: Option<u64>,
}

/// Facts about naming.
#[derive(Clone, Debug, Default)]
pub struct DnsFacts {
    /// Whether the gateway runs a DNS server at all.
    pub enabled: bool,
    /// Whether our own server answered a query for `clusterset.local` SOA.
    pub answers: bool,
    /// Whether it knows local truth.
    pub synced: bool,
    /// Own names whose rule leads to no import: the name, and what it points at.
    pub dangling_names: Vec<(String, String)>,
    /// Imports that do not resolve: the name, and what the server answered.
    pub unresolved: Vec<(String, String)>,
}

/// Facts about one peer.
#[derive(Clone, Debug, Default)]
pub struct PeerFacts {
    /// Its name.
    pub name: String,
    /// Whether a link acknowledged something within 5 s.
    pub up: bool,
    /// What dialling each configured address led to.
    pub addresses: Vec<AddressFacts>,
    /// Why the last handshake that we began with it was refused, by either side.
    pub handshake: Option<HandshakeFault>,
    /// Bytes of UDP payload that fit one packet on the best link.
    pub mtu: Option<u16>,
    /// Outcome of sending bytes through a link and back: round trip of 64 KiB.
    pub echo: Option<Result<Duration, String>>,
    /// What carries its links in place of QUIC, and why; none if QUIC does, or nothing.
    pub transport: Option<String>,
    /// The cluster that its links go by way of.
    pub via: Option<String>,
    /// Why none comes about by way of the cluster that its Peer file names.
    pub relay_error: Option<String>,
    /// Its clock minus ours.
    pub clock_skew_ms: Option<i64>,
    /// Begin and end of the certificate that it presented on the link that lasts longest.
    pub certificate: Option<(u64, u64)>,
    /// Packets sent and lost on its links since they opened.
    pub packets: (u64, u64),
    /// How often the last link was lost in the last 10 minutes.
    pub recent_link_losses: u32,
    /// Number of keys it is pinned to.
    pub pins: u32,
    /// Whether it accepts the CA that a rotation of ours announced. `None`: none is announced, or it does.
    pub next_ca: Option<NextCaFault>,
    /// Whether the Peer shares our trust domain.
    pub shared_trust_domain: bool,
    /// Namespaces we take from it.
    pub import_rules: u32,
    /// Rules of what we offer it.
    pub export_rules: u32,
    /// Services imported from it.
    pub imported_services: u32,
    /// Services that the export rules select.
    pub exported_services: u32,
    /// Records refused in the last 10 minutes, by reason.
    pub rejected: Vec<(String, u64)>,
    /// Whether its first complete snapshot arrived, now or from disk.
    pub synced: bool,
    /// For how long its records could not be confirmed.
    pub stale_ms: Option<u64>,
    /// Its software and ours share no protocol version.
    pub version_mismatch: Option<String>,
    /// Connections of it that no access rule allowed in the last 10 minutes: how many, and an example.
    pub denied: Option<(u64, String)>,
    /// Connections from here that its access rules denied in the last 10 minutes.
    pub denied_by_it: u64,
    /// Conflicts over services between it and another cluster: a sentence each.
    pub conflicts: Vec<String>,
    /// If it is a network of Istio's: services of it with endpoints that istiod is not told of, `namespace/name`.
    pub istio_plain: Vec<String>,
}

/// Facts about the Istio of this cluster.
#[derive(Clone, Debug, Default)]
pub struct IstioFacts {
    /// Clusters that ports for its sidecars are for and that are no peers.
    pub nobody: Vec<String>,
    /// Why its installation cannot be read; then nothing is known of what follows.
    pub unreadable: Option<String>,
    /// What is wrong with the network that istiod takes this cluster for, a whole sentence.
    pub network: Option<String>,
    /// Pods of this cluster that take themselves for ones of a peer.
    pub strangers: Vec<String>,
    /// Peers that istiod knows no gateway of.
    pub untold: Vec<String>,
    /// Exported services with pods that have no sidecar.
    pub plain: Vec<String>,
    /// Its root did not sign our CA.
    pub other_root: bool,
    /// Its mesh configurations that do not fit.
    pub meshes: Vec<MeshFacts>,
}

/// What is wrong with one mesh configuration of Istio.
#[derive(Clone, Debug, Default)]
pub struct MeshFacts {
    /// The revision that it is of; empty: it is that of Istio without revisions.
    pub revision: String,
    /// Its trust domain and ours, if they are not the same.
    pub domains: Option<(String, String)>,
    /// What it lacks.
    pub change: Option<MeshChange>,
}

/// What sidecars of Istio do not know of those of peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshChange {
    /// The peers.
    pub peers: Vec<String>,
    /// What has to be in the mesh configuration, YAML.
    pub change: String,
}

/// What dialling one address led to.
#[derive(Clone, Debug)]
pub struct AddressFacts {
    /// As configured, `host:port`.
    pub address: String,
    /// What happened.
    pub reach: Reach,
}

/// How far a probe of an address came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A QUIC answer came back after this long.
    Answered(Duration),
    /// The name has no address; what the resolver said.
    Unresolved(String),
    /// Packets leave, nothing comes back: a firewall, a wrong address, or no gateway.
    Silent,
    /// The network says that nobody listens (ICMP port unreachable).
    Refused,
    /// The network has no route, or the local firewall forbids it.
    Unroutable(String),
}

/// Why a handshake with a peer was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeFault {
    /// It showed a key that is not pinned for it; `sha256:<hex>` of that key.
    Unpinned(String),
    /// Its key is pinned, but the certificate is for this SPIFFE id.
    WrongIdentity(String),
    /// Its certificate ended at this time.
    Expired(u64),
    /// Its certificate begins at this time.
    NotYetValid(u64),
    /// Its certificate is on the revocation list.
    Revoked,
    /// It calls itself by this cluster name.
    WrongCluster(String),
    /// It refused our certificate; what it said.
    RefusedUs(String),
    /// It speaks another protocol.
    Protocol(String),
    /// Anything else.
    Other(String),
}

/// Why the next step of a rotation of our CA would, or could, cut the links of a peer. Each with the key,
/// `sha256:<hex>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextCaFault {
    /// It says that it does not accept the key.
    Missing(String),
    /// There is no link, or it does not say.
    Unknown(String),
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Works, but somebody should look.
    Warning,
    /// Does not work.
    Error,
}

/// One result of `eastway check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Stable code, `EWnnn`.
    pub code: String,
    /// How bad.
    pub severity: Severity,
    /// What it is about: `gateway`, `dns` or `peer <name>`.
    pub subject: String,
    /// What was found.
    pub message: String,
    /// Why it is probably so; empty if all is well.
    pub cause: String,
    /// What to do; empty if all is well.
    pub fix: String,
    /// A file's contents that `fix` speaks of.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub change: String,
}

/// The answer of `/check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// All findings: errors first, then warnings, then what is well.
    pub findings: Vec<Finding>,
}

//! What the admin port shows, as types that both it and the command line use.
//!
//! Lists are sorted, so that two dumps can be compared line by line. Times are milliseconds since the Unix epoch.
//! Fields are only ever added. Fields missing in an older process's answer get their defaults.

mod services;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use services::{
    CandidateView, ConflictView, Description, EndpointChoice, EndpointView, PartView, PortView, RejectedView,
    ServiceView,
};

/// Version of all views.
pub const API_VERSION: &str = "eastway.dev/v1alpha1";

/// One answer of the admin port: its kind, and the contents beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct View<T> {
    /// [`API_VERSION`].
    pub api_version: String,
    /// Name of the view, e.g. `Status`.
    pub kind: String,
    /// The contents.
    #[serde(flatten)]
    pub contents: T,
}

impl<T> View<T> {
    /// Wraps `contents`.
    pub fn new(kind: &str, contents: T) -> Self {
        Self { api_version: API_VERSION.to_owned(), kind: kind.to_owned(), contents }
    }
}

/// A list inside a [`View`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Items<T> {
    /// The sorted list.
    pub items: Vec<T>,
}

/// The process as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusView {
    /// This cluster.
    pub cluster: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// Version of the software.
    pub version: String,
    /// What the process does: `gateway`, `controller`, `ca`.
    pub roles: Vec<String>,
    /// When it started.
    pub started_at: u64,
    /// Whether it is ready. Filled in by the admin port.
    pub ready: bool,
    /// What keeps it from being ready. Filled in by the admin port.
    pub pending: Vec<String>,
    /// Whether it drains. Filled in by the admin port.
    pub draining: bool,
    /// Bound sockets by name, e.g. `link` or `dns`.
    pub listeners: BTreeMap<String, Vec<SocketAddr>>,
    /// The snapshot that is served.
    pub snapshot: SnapshotView,
    /// The gateway's certificate.
    pub identity: Option<IdentityView>,
    /// The configuration files.
    pub config: ConfigView,
    /// Where local services come from, sorted by name.
    pub registries: Vec<RegistryView>,
    /// Peers by state.
    pub peers: PeerCounts,
    /// Services by origin.
    pub services: ServiceCounts,
    /// The other gateways of this cluster that answer, sorted by replica.
    pub replicas: Vec<ReplicaView>,
    /// Pairs of clusters whose links are carried, and how much of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relay: Vec<RelayView>,
    /// Connections open now.
    pub open_connections: u64,
    /// Tunnels of sidecars; none if there is no port for them.
    pub tunnels: Option<TunnelsView>,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
}

/// Two clusters whose links are carried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RelayView {
    /// The two.
    pub between: Vec<String>,
    /// Pipes that are open.
    pub streams: u32,
    /// How many may be.
    pub max_streams: u32,
    /// Bytes from the first to the second, and back.
    pub bytes: Vec<u64>,
    /// Bytes of this day, and how many there may be.
    pub today_bytes: u64,
    /// See `today_bytes`; none: as many as will go.
    pub max_bytes_per_day: Option<u64>,
    /// Pipes that were refused.
    pub refused: u64,
}

/// Tunnels of sidecars, and what they hold in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelsView {
    /// How many are open.
    pub open: u64,
    /// Bytes in their buffers.
    pub buffered_bytes: u64,
    /// Beyond so many no further tunnel is granted.
    pub buffer_limit_bytes: u64,
}

/// The snapshot that is served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotView {
    /// Rises with every published change.
    pub version: u64,
    /// Whether all registries sent their contents.
    pub local_synced: bool,
    /// When imports were restored from disk and not yet confirmed by their peers: age of the file in ms.
    pub restored_age_ms: Option<u64>,
}

/// A certificate in use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IdentityView {
    /// SPIFFE id.
    pub id: String,
    /// End of the leaf.
    pub not_after: u64,
    /// Pin of the issuing CA's key, `sha256:<hex>`: what the other side's Peer file must list.
    pub pin: String,
    /// End of the issuing CA.
    pub issuer_not_after: Option<u64>,
}

/// State of the configuration files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigView {
    /// The main file.
    pub path: String,
    /// When what runs was read.
    pub loaded_at: u64,
    /// Why the files on disk were refused since; empty if they are what runs.
    pub errors: Vec<String>,
}

/// A source of local services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RegistryView {
    /// Its name.
    pub name: String,
    /// What it reads: `file`, `kubernetes` or `clusterRegistry`, a list of API servers that are registries of their own.
    pub kind: String,
    /// Whether its contents are known.
    pub synced: bool,
    /// When the contents that run were read, or the API server answered last.
    pub read_at: Option<u64>,
    /// Services in it.
    pub services: u64,
    /// Endpoints in it.
    pub endpoints: u64,
    /// Endpoints that fail their health check.
    pub unhealthy: u64,
    /// API servers that it lists.
    pub api_servers: u64,
    /// What is wrong with it now, of a file with line and column; what was read before goes on.
    pub errors: Vec<String>,
}

/// Another gateway of this cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaView {
    /// The process, hexadecimal.
    pub replica: String,
    /// Where it is on the network between replicas.
    pub address: String,
    /// Whether it is on its way out.
    pub draining: bool,
}

/// How many peers are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerCounts {
    /// With a live link.
    pub up: u32,
    /// Without one.
    pub down: u32,
    /// Never heard of since the start, and nothing on disk.
    pub unknown: u32,
}

/// How many services there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceCounts {
    /// Of this cluster.
    pub local: u32,
    /// Of these, offered to at least one peer.
    pub exported: u32,
    /// Offered by peers.
    pub imported: u32,
    /// Virtual addresses in use.
    pub vips: u32,
}

/// Whether a peer can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerCondition {
    /// A link acknowledged something within 5 s.
    Up,
    /// No link.
    Down,
    /// Never heard of since the start, and nothing on disk.
    #[default]
    Unknown,
}

/// One configured peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerView {
    /// Its cluster's name.
    pub name: String,
    /// Whether it can be reached.
    pub state: PeerCondition,
    /// Since when.
    pub since: Option<u64>,
    /// Its trust domain.
    pub trust_domain: String,
    /// SPIFFE id that its gateways must prove.
    pub gateway: String,
    /// Keys it is pinned to.
    pub pins: Vec<String>,
    /// `none` if it shares our trust domain, else `trust domain`.
    pub workload_isolation: String,
    /// Addresses we dial; empty if it dials us.
    pub addresses: Vec<String>,
    /// Live links, sorted by replica.
    pub links: Vec<LinkView>,
    /// Replicas that it says it has and that no link leads to, hexadecimal.
    pub missing_replicas: Vec<String>,
    /// Why the last attempt to reach it failed, if it is not up.
    pub last_error: Option<String>,
    /// Attempts to reach it since the start.
    pub dials: u64,
    /// Its clock minus ours.
    pub clock_skew_ms: Option<i64>,
    /// Services it exports to us.
    pub imported_services: u32,
    /// Endpoints behind them.
    pub imported_endpoints: u64,
    /// Services we export to it.
    pub exported_services: u32,
    /// Records of it that were refused since the start.
    pub rejected_records: u64,
    /// For how long its records could not be confirmed; `None` if they are current.
    pub stale_ms: Option<u64>,
}

/// One link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinkView {
    /// The other gateway process, hexadecimal.
    pub replica: String,
    /// Its address as we see it.
    pub remote: String,
    /// `quic`, or `tcp` where UDP is blocked.
    pub transport: String,
    /// Another transport is preferred, and does not pass.
    pub degraded: bool,
    /// Which streams it takes: `whole` is all; of one by TCP beside one by QUIC `bulk` is those that are expected to move
    /// much, and `standby` none now.
    pub role: String,
    /// What carries streams to this replica that are expected to move much, and why; missing where nothing moved much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bulk: Option<BulkView>,
    /// TCP connections that carry it: one for each stream, open or waiting, and one more, or as many as all of them share
    /// (`maxConnections` of the Peer). Missing where it goes by none of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// The cluster that it goes by way of, if there is no direct way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Whether we dialled it.
    pub dialled: bool,
    /// Whether the other side announced that it goes away.
    pub draining: bool,
    /// Since when.
    pub since: u64,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: Option<u64>,
    /// Bytes of UDP payload that fit one packet on this path.
    pub mtu: Option<u16>,
    /// End of the certificate it presented last.
    pub certificate_not_after: Option<u64>,
    /// Open streams.
    pub streams: u32,
    /// How many of them are UDP flows.
    pub flows: u32,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets lost.
    pub lost_packets: u64,
}

/// What carries streams that are expected to move much, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BulkView {
    /// `quic` or `tcp`.
    pub transport: String,
    /// Why, in words.
    pub why: String,
    /// Bytes a second that QUIC carried when it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quic_bytes_per_second: Option<u64>,
    /// And TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_bytes_per_second: Option<u64>,
}

/// A part of what was measured of the link to a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BenchView {
    /// The peer.
    pub peer: String,
    /// What the link is carried by.
    pub transport: String,
    /// Largest packet of the path, bytes; 0 if the transport does not know.
    pub mtu: u16,
    /// Median round trip of one byte, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// The shortest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_best_us: Option<u64>,
    /// The longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_worst_us: Option<u64>,
    /// Bytes that arrived.
    pub bytes: u64,
    /// How fast.
    pub bits_per_second: u64,
    /// Share of this side's packets that were lost; none if the transport does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
}

/// What the DNS server does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DnsView {
    /// Where it listens.
    pub listeners: Vec<SocketAddr>,
    /// Zones it is authoritative for.
    pub zones: Vec<String>,
    /// Names it can answer.
    pub names: u64,
    /// Whether local truth is known: before that everything is SERVFAIL.
    pub synced: bool,
    /// Peers of which nothing is known yet: unknown names they might own are SERVFAIL, for at most 30 s.
    pub waiting_for: Vec<String>,
    /// Answers by response code.
    pub answers: BTreeMap<String, u64>,
    /// Packets dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// What is left of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Leftovers {
    /// Whether the running configuration still lists it.
    pub configured: bool,
    /// Live links and dials in progress.
    pub links: u32,
    /// Federation sessions.
    pub sessions: u32,
    /// Imports with a part of that peer.
    pub imports: u32,
    /// Virtual addresses whose import has no other part.
    pub vips: u32,
    /// State files on disk.
    pub files: u32,
}

impl Leftovers {
    /// Whether there is nothing left.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Level and form of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoggingView {
    /// Level or directives.
    pub level: String,
    /// `text` or `json`.
    pub format: String,
    /// Which connections get an access line: `off`, `errors` or `all`.
    pub access: String,
    /// Lines dropped because the output was blocked.
    pub dropped_lines: u64,
}

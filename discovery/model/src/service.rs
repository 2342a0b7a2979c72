//! Services as one cluster describes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::{LocalEndpoint, LocalEndpoints, Subset, TlsMode, WorkloadIdentity, Zone};
use crate::group::GroupIndex;
use crate::name::{PortName, ServiceKey};
use crate::time::UnixMillis;

/// A port, 1 to 65535.
pub type PortNumber = NonZeroU16;

/// Transport of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// A byte stream.
    Tcp,
    /// Datagrams.
    Udp,
    /// Messages in streams. Told and merged like any other port, and not carried between clusters.
    Sctp,
}

/// As Kubernetes writes it.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A port of a service by number and transport: a service may have one of each transport with the same number. In text
/// `80`, or `53/UDP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// Its number.
    pub number: PortNumber,
    /// Its transport.
    pub protocol: Protocol,
}

/// The one of TCP.
impl From<PortNumber> for PortKey {
    fn from(number: PortNumber) -> Self {
        Self { number, protocol: Protocol::Tcp }
    }
}

impl fmt::Display for PortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => write!(f, "{}", self.number),
            protocol @ (Protocol::Udp | Protocol::Sctp) => write!(f, "{}/{protocol}", self.number),
        }
    }
}

impl serde::Serialize for PortKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text names no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a port from 1 to 65535, with /UDP or /SCTP if it is none of TCP")]
pub struct PortKeyError;

impl std::str::FromStr for PortKey {
    type Err = PortKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((number, "UDP")) => (number, Protocol::Udp),
            Some((number, "SCTP")) => (number, Protocol::Sctp),
            Some(_) => return Err(PortKeyError),
        };
        Ok(Self { number: number.parse().map_err(|_| PortKeyError)?, protocol })
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Name, unique in the service; a service with one port may leave it out.
    pub name: Option<PortName>,
    /// The port clients connect to.
    pub number: PortNumber,
    /// Its transport.
    pub protocol: Protocol,
    /// Application protocol hint (KEP-1422), at most 63 bytes, e.g. `http`, `kubernetes.io/h2c`.
    pub app_protocol: Option<Arc<str>>,
}

impl ServicePort {
    /// What it is known by.
    #[must_use]
    pub fn key(&self) -> PortKey {
        PortKey { number: self.number, protocol: self.protocol }
    }
}

/// Whether a service has one address or one per endpoint (KEP-1645 `type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum ServiceKind {
    /// One virtual address in front of all endpoints.
    #[default]
    ClusterSetIp,
    /// No virtual address; names lead to endpoints.
    Headless,
}

/// As KEP-1645 writes it.
impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterSetIp => "ClusterSetIP",
            Self::Headless => "Headless",
        })
    }
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum IpFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// As Kubernetes writes it.
impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

/// Whether connections of one client stay at one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub enum SessionAffinity {
    /// Each connection is balanced alone.
    #[default]
    None,
    /// Connections of one client address stay together until it was idle for `timeout`.
    ClientIp {
        /// Kubernetes allows 1 s to 86,400 s; 10,800 s is its default.
        timeout: Duration,
    },
}

/// Kubernetes `internalTrafficPolicy`. Carried and merged for those who write it to an API; routing
/// between clusters knows no nodes and does not apply it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub enum InternalTrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints of the client's node only.
    Local,
}

/// Endpoints of one service that are alike in zone, subset, TLS and identity, as a count: all that
/// another cluster needs to choose between clusters and versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointGroup {
    /// Topology zone.
    pub zone: Option<Zone>,
    /// Labels that routing rules select by, e.g. `version: v2`.
    pub subset: Subset,
    /// Endpoints that take new connections.
    pub ready: u32,
    /// Endpoints that drain: existing connections finish, new ones go there only if none is ready.
    pub draining: u32,
    /// Sum of the weights of the ready endpoints.
    pub weight: u64,
    /// Who the workloads are; empty if they prove nothing.
    pub identities: Vec<WorkloadIdentity>,
    /// What the workloads speak, as their owner decided.
    pub tls: TlsMode,
}

impl EndpointGroup {
    /// Whether its endpoints have all of these labels.
    #[must_use]
    pub fn has(&self, labels: &Subset) -> bool {
        labels.iter().all(|(key, value)| self.subset.get(key) == Some(value))
    }
}

/// A service as its cluster exports it: everything that crosses, and no address (invariant I1).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRecord {
    /// Namespace and name.
    pub key: ServiceKey,
    /// With or without a virtual address.
    pub kind: ServiceKind,
    /// Ports, at most 250.
    pub ports: Vec<ServicePort>,
    /// Families that the endpoints have, in order of preference, at most two.
    pub ip_families: Vec<IpFamily>,
    /// Stickiness.
    pub session_affinity: SessionAffinity,
    /// Kubernetes field of this name.
    pub internal_traffic_policy: InternalTrafficPolicy,
    /// Kubernetes field of this name, e.g. `PreferClose`.
    pub traffic_distribution: Option<Arc<str>>,
    /// Labels chosen for export.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Annotations chosen for export.
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// When it was exported; decides conflicts. Already clamped for records of peers: never later
    /// than its arrival, never earlier than the acceptance of the Peer.
    pub exported_at: UnixMillis,
    /// Endpoint counts, sorted by (zone, subset, tls).
    pub groups: Vec<EndpointGroup>,
    /// TCP ports whose endpoints are told the client's address before anything else, by a header of the PROXY protocol,
    /// version 2.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub proxy_protocol: BTreeSet<PortNumber>,
}

impl ServiceRecord {
    /// A record with one default for everything but the name and the ports: no affinity, no
    /// labels, exported at the epoch, no endpoints.
    #[must_use]
    pub fn new(key: ServiceKey, ports: Vec<ServicePort>) -> Self {
        Self {
            key,
            kind: ServiceKind::default(),
            ports,
            ip_families: Vec::new(),
            session_affinity: SessionAffinity::default(),
            internal_traffic_policy: InternalTrafficPolicy::default(),
            traffic_distribution: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            exported_at: UnixMillis::default(),
            groups: Vec::new(),
            proxy_protocol: BTreeSet::new(),
        }
    }

    /// The port of this transport and number.
    #[must_use]
    pub fn port(&self, protocol: Protocol, number: PortNumber) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number && port.protocol == protocol)
    }
}

/// A service of this cluster with the addresses that only its owner knows.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalService {
    /// What may cross. `groups` are those of `endpoints`: [`LocalService::new`] computes them, and
    /// so does the store, whatever a registry wrote there.
    pub record: Arc<ServiceRecord>,
    /// Whether it is offered to peers at all.
    pub exported: bool,
    /// Endpoints with addresses, sorted by id.
    pub endpoints: LocalEndpoints,
}

impl LocalService {
    /// A service with these endpoints; the groups of `record` are replaced by theirs.
    #[must_use]
    pub fn new(mut record: ServiceRecord, exported: bool, endpoints: impl IntoIterator<Item = LocalEndpoint>) -> Self {
        let endpoints: LocalEndpoints = endpoints.into_iter().collect();
        record.groups = GroupIndex::of(&endpoints).groups();
        Self { record: Arc::new(record), exported, endpoints }
    }

    /// Namespace and name.
    #[must_use]
    pub fn key(&self) -> &ServiceKey {
        &self.record.key
    }
}

//! What the server is told: services and names of one's own. Plain data.

use std::net::IpAddr;

use crate::Fqdn;

/// A transport protocol as it is spelled in an SRV name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// `_tcp`
    Tcp,
    /// `_udp`
    Udp,
    /// `_sctp`
    Sctp,
}

impl Protocol {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The label in an SRV name.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Tcp => "_tcp",
            Self::Udp => "_udp",
            Self::Sctp => "_sctp",
        }
    }
}

/// A port. Unnamed ones have no SRV records (KEP-1645, DNS specification §2.3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortEntry {
    /// The port's name, if it has one.
    pub name: Option<String>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// One ready endpoint of a headless service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadlessEndpoint {
    /// Its hostname; without one its first address with dashes stands in, as in CoreDNS.
    pub hostname: Option<String>,
    /// The cluster it runs in.
    pub cluster: String,
    /// Addresses that reach it from here. Never a peer's own (invariant I1).
    pub addresses: Vec<IpAddr>,
}

/// How a service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// By addresses of the service itself. Without any the name exists and has no records.
    ClusterSet {
        /// The clusterset addresses, of either family.
        addresses: Vec<IpAddr>,
    },
    /// By the addresses of its endpoints. Without any the name does not exist.
    Headless {
        /// The ready endpoints of all clusters.
        endpoints: Vec<HeadlessEndpoint>,
    },
    /// By addresses that are being given out: the name exists, and until it has some the answer is
    /// "not ready", which nobody caches for long.
    Pending,
}

/// A service under `clusterset.local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Its namespace, a DNS label.
    pub namespace: String,
    /// Its name, a DNS label.
    pub name: String,
    /// How it is reached.
    pub kind: ServiceKind,
    /// Its ports.
    pub ports: Vec<PortEntry>,
}

/// Which service is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A name of one's own in a zone of one's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameEntry {
    /// The name.
    pub fqdn: Fqdn,
    /// Its addresses. Without any the name does not exist.
    pub addresses: Vec<IpAddr>,
    /// Ports for SRV records.
    pub ports: Vec<PortEntry>,
    /// The service it stands for: while there are no addresses and a pending peer may own that
    /// service, the answer is "not ready" rather than "no such name".
    pub service: Option<ServiceName>,
}

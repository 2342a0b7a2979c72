//! What a service file says, after all checks.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use eastway_model::{Label, PortKey, PortNumber, ServiceKey, ServiceRecord, Subset, TlsMode, Workload, Zone};

/// Everything in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// By name; each once.
    pub services: BTreeMap<ServiceKey, ServiceSpec>,
    /// Workloads that only connect out; each address once.
    pub workloads: Vec<Workload>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// All but the endpoints' counts and the time of export.
    pub record: ServiceRecord,
    /// Whether it is offered to peers.
    pub exported: bool,
    /// How to check endpoints.
    pub health: Option<HealthSpec>,
    /// What endpoints speak.
    pub tls: TlsMode,
    /// In the order of the file; no two listen at the same place.
    pub endpoints: Vec<EndpointSpec>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Its address; may be dialled.
    pub address: IpAddr,
    /// Labels.
    pub subset: Subset,
    /// Topology zone.
    pub zone: Option<Zone>,
    /// 1 to 1,000,000.
    pub weight: u32,
    /// Service account.
    pub service_account: Option<Label>,
    /// Hostname.
    pub hostname: Option<Label>,
    /// Service port to its own.
    pub target_ports: BTreeMap<PortKey, u16>,
    /// On its way out.
    pub draining: bool,
}

/// How to check the endpoints of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSpec {
    /// What is tried.
    pub probe: Probe,
    /// Where.
    pub port: HealthPort,
    /// A header of the PROXY protocol is expected there.
    pub proxy_protocol: bool,
    /// How often.
    pub interval: Duration,
    /// How long to wait; at most the interval.
    pub timeout: Duration,
    /// Failures in a row that take an endpoint out.
    pub unhealthy_after: u32,
    /// Successes in a row that take it in.
    pub healthy_after: u32,
}

/// What is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A connection.
    Tcp,
    /// A request.
    Http {
        /// Path and query.
        path: Arc<str>,
    },
}

/// The port that is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthPort {
    /// Where the endpoint listens for this service port.
    Service(PortNumber),
    /// This one.
    Number(PortNumber),
}

impl EndpointSpec {
    /// Where to check it; `None` if it does not serve that port.
    #[must_use]
    pub fn health_address(&self, port: HealthPort) -> Option<SocketAddr> {
        let port = match port {
            HealthPort::Service(port) => *self.target_ports.get(&port.into())?,
            HealthPort::Number(port) => port.get(),
        };
        Some(SocketAddr::new(self.address, port))
    }
}

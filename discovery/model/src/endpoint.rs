//! Endpoints: single workloads behind a service.

mod chunks;
pub mod labels;
pub(crate) mod local;
mod pairs;
mod remote;

pub use local::LocalEndpoints;
pub use pairs::Pairs;
pub use remote::{EndpointRef, RemoteEndpoints, Shape, Shapes};

use std::borrow::Borrow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::name::Label;
use crate::service::PortKey;

/// Longest [`EndpointId`], bytes.
pub const MAX_ENDPOINT_ID: usize = 64;

/// Opaque name of one endpoint inside its own cluster, never reused. Only its owner can turn it
/// into an address. 1 to 64 bytes of `a-z`, `0-9`, `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct EndpointId(Arc<str>);

impl EndpointId {
    /// Checks length and alphabet.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (!text.is_empty() && text.len() <= MAX_ENDPOINT_ID && text.bytes().all(good)).then(|| Self(Arc::from(text)))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for EndpointId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A topology zone: 1 to 63 bytes, printable ASCII without spaces.
pub type Zone = Arc<str>;

/// Labels that tell the versions of a service apart, e.g. `version: v2`. At most 16 pairs.
pub type Subset = Pairs<Arc<str>, Arc<str>>;

/// Who a workload is: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadIdentity {
    /// Trust domain: lower-case DNS name of at most 255 bytes.
    pub trust_domain: Arc<str>,
    /// Namespace.
    pub namespace: Label,
    /// Service account.
    pub service_account: Label,
}

impl WorkloadIdentity {
    /// Parses the URI; nothing but the one form is accepted.
    #[must_use]
    pub fn parse(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix("spiffe://")?;
        let mut parts = rest.split('/');
        let trust_domain = parts.next()?;
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_');
        if trust_domain.is_empty() || trust_domain.len() > 255 || !trust_domain.bytes().all(good) {
            return None;
        }
        let ("ns", namespace, "sa", account) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?) else {
            return None;
        };
        if parts.next().is_some() {
            return None;
        }
        Some(Self {
            trust_domain: Arc::from(trust_domain),
            namespace: Label::parse(namespace).ok()?,
            service_account: Label::parse(account).ok()?,
        })
    }
}

impl fmt::Display for WorkloadIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl serde::Serialize for WorkloadIdentity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What an endpoint speaks, decided by its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// Its own protocol, in plain text inside the link.
    #[default]
    None,
    /// Mutual TLS of Eastway's own sidecars; plain text as well.
    Mesh,
    /// Mutual TLS of Eastway's own sidecars and nothing else.
    MeshStrict,
    /// Mutual TLS of Istio's sidecars; plain text as well.
    Istio,
    /// Mutual TLS of Istio's sidecars and nothing else.
    IstioStrict,
}

impl TlsMode {
    /// Whether a client that speaks no TLS is refused.
    #[must_use]
    pub fn refuses_plain(self) -> bool {
        matches!(self, Self::MeshStrict | Self::IstioStrict)
    }

    /// Whether there is mutual TLS, from workload to workload.
    #[must_use]
    pub fn is_mutual(self) -> bool {
        self != Self::None
    }
}

/// Kubernetes endpoint conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct EndpointCondition {
    /// Takes new connections.
    pub ready: bool,
    /// Passes its health check, even if it terminates.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
}

impl EndpointCondition {
    /// In full service.
    pub const READY: Self = Self { ready: true, serving: true, terminating: false };
    /// Finishing what it has: new connections only if no other endpoint is ready.
    pub const DRAINING: Self = Self { ready: false, serving: true, terminating: true };
    /// Takes nothing.
    pub const DOWN: Self = Self { ready: false, serving: false, terminating: false };

    /// Not ready any more, but still able to serve while it terminates.
    #[must_use]
    pub fn is_draining(self) -> bool {
        !self.ready && self.serving && self.terminating
    }
}

/// One endpoint as it may cross to peers that subscribed to its service.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Its opaque name.
    pub id: EndpointId,
    /// Hostname of a StatefulSet-like endpoint.
    pub hostname: Option<Label>,
    /// Labels that routing rules select by.
    pub subset: Subset,
    /// Topology zone.
    pub zone: Option<Zone>,
    /// Readiness.
    pub condition: EndpointCondition,
    /// Relative share of connections, 1 to 1,000,000; 100 unless configured.
    pub weight: u32,
    /// Who the workload is, if it can prove it.
    pub identity: Option<WorkloadIdentity>,
    /// What it speaks.
    pub tls: TlsMode,
}

/// An endpoint of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalEndpoint {
    /// The part that may cross.
    #[serde(flatten)]
    pub endpoint: Endpoint,
    /// Its address; never leaves this cluster.
    pub address: IpAddr,
    /// The service account it runs under, in its service's namespace, as the registry knows it.
    /// Unlike [`Endpoint::identity`] nothing proves it but the address.
    pub service_account: Option<Label>,
    /// Service port to the port it listens on; a service port that is missing is not served here.
    pub target_ports: Pairs<PortKey, u16>,
}

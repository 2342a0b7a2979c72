//! Addresses and ports that somebody else gives out: in Kubernetes the controller does, the API is the record, and the
//! gateways read it back (design §9).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::endpoint::EndpointId;
use crate::name::{ClusterName, ServiceKey};
use crate::service::{PortNumber, Protocol};

/// Everything that was given out.
pub type Allocations = BTreeMap<ServiceKey, ServiceAllocation>;

/// What one import has.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// The service itself; `None`: not yet, or it is headless.
    pub service: Option<Allocation>,
    /// Single endpoints of other clusters, of a headless service.
    #[serde(skip)]
    pub endpoints: BTreeMap<(ClusterName, EndpointId), Allocation>,
    /// Names of one's own that lead to one cluster of the service, without a final dot.
    #[serde(skip)]
    pub names: BTreeMap<Arc<str>, Allocation>,
}

/// One virtual address, and where connections to it arrive.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// What clients connect to: at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Port of the gateways that stands for each port of the service; one that is missing has none yet.
    #[serde(skip)]
    pub ports: BTreeMap<(Protocol, PortNumber), u16>,
}

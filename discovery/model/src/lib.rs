//! What Eastway knows: plain validated types, the store that publishes them, and the rules that
//! are computed from them.
//!
//! Nothing here reads a network, a file or a clock; `now` is always an argument. Records come in
//! as [`Change`]s through one [`store::Writer`] and are read as immutable [`store::Snapshot`]s.

pub mod access;
pub mod address;
pub mod allocation;
pub mod app_protocol;
pub mod change;
pub mod describe;
pub mod endpoint;
pub mod group;
mod hash;
pub mod import;
pub mod name;
pub mod proxy_protocol;
pub mod routing;
pub mod rules;
pub mod service;
pub mod store;
pub mod time;
pub mod vip;

pub use access::SourceIdentity;
pub use allocation::{Allocation, Allocations, ServiceAllocation};
pub use app_protocol::AppProtocol;
pub use change::{Change, LocalChange, Origin, PeerChange, PeerState, Workload};
pub use endpoint::{
    Endpoint, EndpointCondition, EndpointId, EndpointRef, LocalEndpoint, LocalEndpoints, Pairs, RemoteEndpoints, Shape,
    Subset, TlsMode, WorkloadIdentity, Zone,
};
pub use import::{Conflict, ConflictKind, Import, ImportPart};
pub use name::{ClusterName, Label, NameError, PortName, ServiceKey};
pub use service::{
    EndpointGroup, InternalTrafficPolicy, IpFamily, LocalService, PortKey, PortKeyError, PortNumber, Protocol,
    ServiceKind, ServicePort, ServiceRecord, SessionAffinity,
};
pub use time::UnixMillis;

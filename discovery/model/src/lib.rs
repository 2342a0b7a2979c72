//! What Eastway knows: plain validated types, the store that publishes them, and the rules that
//! are computed from them.
//!
//! Nothing here reads a network, a file or a clock; `now` is always an argument. Records come in
//! as [`Change`]s through one [`store::Writer`] and are read as immutable [`store::Snapshot`]s.

pub mod change;
pub mod endpoint;
pub mod name;
pub mod service;
pub mod time;

pub use change::{Change, LocalChange, Origin, PeerChange, PeerState};
pub use endpoint::{Endpoint, EndpointCondition, EndpointId, LocalEndpoint, Subset, TlsMode, WorkloadIdentity, Zone};
pub use name::{ClusterName, Label, NameError, PortName, ServiceKey};
pub use service::{
    EndpointGroup, InternalTrafficPolicy, IpFamily, LocalService, PortNumber, Protocol, ServiceKind, ServicePort,
    ServiceRecord, SessionAffinity,
};
pub use time::UnixMillis;

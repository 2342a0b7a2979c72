//! What happens to the store.

use std::net::IpAddr;
use std::sync::Arc;

use crate::endpoint::{Endpoint, EndpointId, LocalEndpoint};
use crate::name::{ClusterName, Label, ServiceKey};
use crate::service::{LocalService, ServiceRecord};
use crate::time::UnixMillis;

/// Where a record comes from (invariant I3: every record carries it).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A registry of this cluster.
    Local {
        /// Name of the registry: several can feed one cluster.
        registry: Label,
    },
    /// A peer's federation session.
    Peer(ClusterName),
}

/// One change, applied by the one writer.
#[derive(Clone, Debug)]
pub enum Change {
    /// From the registry `registry`.
    Local {
        /// Its name.
        registry: Label,
        /// What happened.
        change: LocalChange,
    },
    /// From the peer `cluster`, already validated, filtered and clamped.
    Peer {
        /// Its name.
        cluster: ClusterName,
        /// What happened.
        change: PeerChange,
    },
}

/// A change of local truth.
#[derive(Clone, Debug)]
pub enum LocalChange {
    /// Added or changed.
    Upsert(Arc<LocalService>),
    /// Explicitly removed.
    Remove(ServiceKey),
    /// Endpoints of a service that was added before: added or changed, and removed ones. Costs the
    /// change, not the size of the service.
    Endpoints {
        /// The service.
        service: ServiceKey,
        /// Added or changed.
        upsert: Vec<LocalEndpoint>,
        /// Removed.
        remove: Vec<EndpointId>,
    },
    /// The registry's complete contents; what is not in it is gone. Also marks it synced.
    Replace(Vec<Arc<LocalService>>),
    /// All workloads that the registry knows beside those behind services; replaces what it said before.
    /// Of several with one address the last counts.
    Workloads(Vec<Workload>),
    /// Some of these workloads: added or changed, and addresses that have none any more. Costs the
    /// change, not their number.
    WorkloadEdits {
        /// Added or changed; each address once.
        upsert: Vec<Workload>,
        /// Removed.
        remove: Vec<IpAddr>,
    },
    /// The registry is gone from the configuration, and its services with it.
    Removed,
}

/// A workload known by its address alone.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Its address in this cluster.
    pub address: IpAddr,
    /// Its namespace.
    pub namespace: Label,
    /// Its service account.
    pub service_account: Option<Label>,
}

/// A change of what a peer exports to us.
#[derive(Clone, Debug)]
pub enum PeerChange {
    /// Added or changed.
    Upsert(Arc<ServiceRecord>),
    /// Explicitly removed.
    Remove(ServiceKey),
    /// A *complete* snapshot; what is not in it is gone (invariant I4).
    Replace(Vec<Arc<ServiceRecord>>),
    /// Endpoint records of a subscribed service: added or changed, and explicitly removed ones.
    Endpoints {
        /// The service.
        service: ServiceKey,
        /// Added or changed.
        upsert: Vec<Endpoint>,
        /// Removed.
        remove: Vec<EndpointId>,
    },
    /// The links to the peer changed state.
    State(PeerState),
    /// What follows is a copy from disk, and its peer was last heard then. Makes an unknown peer one
    /// that is down since; a link that was seen since our start says more and stays.
    LastHeard(UnixMillis),
    /// The Peer was removed from the configuration: everything of it goes at once.
    Removed,
}

/// Whether a peer can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum PeerState {
    /// Configured, never heard of since our start, and nothing on disk.
    Unknown,
    /// At least one link acknowledged something within 5 s.
    Up,
    /// No link; the last known records are served as stale.
    Down {
        /// Since when, by the clock that [`crate::store::Writer::apply`] is given.
        since: UnixMillis,
    },
}

//! A snapshot as plain values, to compare two of them.

use std::net::IpAddr;

use eastway_model::store::{PeerView, RegistryConflict, Snapshot};
use eastway_model::{Import, LocalService, ServiceKey, SourceIdentity};

use super::support::label;

/// Local truth: what no peer may ever change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LocalView {
    pub(crate) synced: bool,
    pub(crate) services: Vec<LocalService>,
    pub(crate) conflicts: Vec<(ServiceKey, Vec<RegistryConflict>)>,
    pub(crate) sources: Vec<(IpAddr, Option<SourceIdentity>)>,
    pub(crate) exports: Vec<(&'static str, Vec<ServiceKey>)>,
}

/// All of a snapshot but its version.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    pub(crate) local: LocalView,
    pub(crate) imports: Vec<Import>,
    pub(crate) peers: Vec<PeerView>,
}

pub(crate) const PEERS: [&str; 3] = ["edge", "evil", "gke"];

pub(crate) fn local_view(snapshot: &Snapshot, addresses: &[IpAddr]) -> LocalView {
    let exports =
        |peer: &'static str| (peer, snapshot.exports_to(&label(peer)).map(|service| service.key().clone()).collect());
    let services: Vec<LocalService> = snapshot.locals().map(|service| LocalService::clone(service)).collect();
    let conflicts = |service: &LocalService| {
        let key = service.key();
        (key.clone(), snapshot.registry_conflicts(key).to_vec())
    };
    LocalView {
        synced: snapshot.is_local_synced(),
        conflicts: services.iter().map(conflicts).collect(),
        services,
        sources: addresses.iter().map(|address| (*address, snapshot.source_of(*address).cloned())).collect(),
        exports: PEERS.into_iter().map(exports).collect(),
    }
}

pub(crate) fn view(snapshot: &Snapshot, addresses: &[IpAddr]) -> View {
    View {
        local: local_view(snapshot, addresses),
        imports: snapshot.imports().map(|import| Import::clone(import)).collect(),
        peers: snapshot.peers().cloned().collect(),
    }
}

//! One immutable view of everything known.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::local::RegistryConflict;
use super::sharded::{Keyed, Sharded};
use super::sources::Source;
use crate::access::SourceIdentity;
use crate::change::PeerState;
use crate::import::Import;
use crate::name::{ClusterName, Label, ServiceKey};
use crate::rules::Rules;
use crate::service::LocalService;
use crate::time::UnixMillis;

/// Everything known at one moment. Never changes; a newer one shares what did not change.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) version: u64,
    pub(super) cluster: ClusterName,
    pub(super) services: Sharded<Arc<Entry>>,
    pub(super) sources: Sharded<Source>,
    pub(super) peers: Arc<BTreeMap<ClusterName, PeerView>>,
    pub(super) rules: Arc<Rules>,
    /// Registries that did not send their contents yet; none: nobody said yet which there are.
    pub(super) unsynced: Option<Arc<[Label]>>,
    /// Changes are known from this version on: of what is decided by rules too, and of services alone.
    pub(super) changes_from: u64,
    pub(super) services_from: u64,
}

/// All about one service. One without local service and import is remembered for a while, so that
/// [`Snapshot::changes_since`] can tell that it went.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: ServiceKey,
    pub(super) local: Option<Arc<LocalService>>,
    pub(super) import: Option<Arc<Import>>,
    pub(super) registry_conflicts: Vec<RegistryConflict>,
    pub(super) changed_at: u64,
}

impl Keyed for Arc<Entry> {
    type Key = ServiceKey;

    fn key(&self) -> &ServiceKey {
        &self.key
    }
}

/// A peer as the store sees it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    /// Its cluster name.
    pub name: ClusterName,
    /// It has rules; without them nothing of it is imported.
    pub configured: bool,
    /// Whether it can be reached.
    #[serde(flatten)]
    pub state: PeerState,
    /// It sent a complete snapshot, now or in what was loaded from disk.
    pub synced: bool,
    /// Services it exports to us, before our import rules.
    pub services: usize,
    /// Endpoint records it sent.
    pub endpoints: usize,
    /// When its services will be withdrawn if it stays away.
    pub withdraw_at: Option<UnixMillis>,
}

/// What tells it from other snapshots; its contents would fill pages.
impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, cluster, .. } = self;
        f.debug_struct("Snapshot").field("version", version).field("cluster", cluster).finish_non_exhaustive()
    }
}

impl Snapshot {
    pub(super) fn empty(cluster: ClusterName) -> Self {
        Self {
            version: 0,
            cluster,
            services: Sharded::default(),
            sources: Sharded::default(),
            peers: Arc::default(),
            rules: Arc::default(),
            unsynced: None,
            changes_from: 0,
            services_from: 0,
        }
    }

    /// Counts publications; starts at 0, empty.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The name of this cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Every registry of this cluster has sent its complete contents at least once. Before that,
    /// what is missing here may exist (invariant I5).
    #[must_use]
    pub fn is_local_synced(&self) -> bool {
        self.unsynced.as_ref().is_some_and(|names| names.is_empty())
    }

    /// The registries that local sync waits for.
    #[must_use]
    pub fn unsynced_registries(&self) -> &[Label] {
        self.unsynced.as_deref().unwrap_or_default()
    }

    /// The import of this name, if any cluster exports it.
    #[must_use]
    pub fn import(&self, key: &ServiceKey) -> Option<&Arc<Import>> {
        self.services.get(key)?.import.as_ref()
    }

    /// All imports, by name.
    pub fn imports(&self) -> impl Iterator<Item = &Arc<Import>> {
        let mut imports: Vec<_> = self.services.iter().filter_map(|entry| entry.import.as_ref()).collect();
        imports.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        imports.into_iter()
    }

    /// The service of this name in this cluster, exported or not.
    #[must_use]
    pub fn local(&self, key: &ServiceKey) -> Option<&Arc<LocalService>> {
        self.services.get(key)?.local.as_ref()
    }

    /// All services of this cluster, by name.
    pub fn locals(&self) -> impl Iterator<Item = &Arc<LocalService>> {
        let mut locals: Vec<_> = self.services.iter().filter_map(|entry| entry.local.as_ref()).collect();
        locals.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        locals.into_iter()
    }

    /// What registries of this cluster disagree about in a service.
    #[must_use]
    pub fn registry_conflicts(&self, key: &ServiceKey) -> &[RegistryConflict] {
        self.services.get(key).map_or(&[], |entry| &entry.registry_conflicts)
    }

    /// A peer that is configured or has sent something.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<&PeerView> {
        self.peers.get(name)
    }

    /// All such peers, by name.
    pub fn peers(&self) -> impl Iterator<Item = &PeerView> {
        self.peers.values()
    }

    /// What is configured.
    #[must_use]
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// The services offered to `peer`, by name: local, exported and allowed by the peer's rules.
    pub fn exports_to(&self, peer: &ClusterName) -> impl Iterator<Item = &Arc<LocalService>> {
        self.locals().filter(move |local| local.exported && self.rules.may_export(peer.as_str(), local.key()))
    }

    /// A service offered to `peer`. What does not exist and what is not for this peer look alike
    /// (invariant I7), and an import is never found here (invariant I3).
    #[must_use]
    pub fn export_to(&self, peer: &ClusterName, key: &ServiceKey) -> Option<&Arc<LocalService>> {
        let local = self.local(key).filter(|local| local.exported)?;
        self.rules.may_export(peer.as_str(), key).then_some(local)
    }

    /// Whether a service of this name is offered to `peer`.
    #[must_use]
    pub fn may_export(&self, peer: &ClusterName, key: &ServiceKey) -> bool {
        self.export_to(peer, key).is_some()
    }

    /// The services whose local part or import may differ from those of snapshot `version`, by
    /// name. `None` if that is not known any more, or rules changed: compare everything.
    #[must_use]
    pub fn changes_since(&self, version: u64) -> Option<Vec<ServiceKey>> {
        if version < self.changes_from { None } else { self.services_changed_since(version) }
    }

    /// As [`Self::changes_since`], for those who decide by local services and imports alone, which hold the rules that
    /// they are subject to: other rules may have changed meanwhile.
    #[must_use]
    pub fn services_changed_since(&self, version: u64) -> Option<Vec<ServiceKey>> {
        if version < self.services_from || version > self.version {
            return None;
        }
        let changed = self.services.iter_changed_after(version).filter(|entry| entry.changed_at > version);
        let mut keys: Vec<ServiceKey> = changed.map(|entry| entry.key.clone()).collect();
        keys.sort_unstable();
        Some(keys)
    }

    /// Who a local address is, if that is known without doubt.
    #[must_use]
    pub fn source_of(&self, address: IpAddr) -> Option<&SourceIdentity> {
        Some(&*self.sources.get(&address.to_canonical())?.identity)
    }
}

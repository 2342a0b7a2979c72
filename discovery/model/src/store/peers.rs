//! What peers export to us, by peer. Nothing in here ever touches local truth.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::snapshot::PeerView;
use crate::change::{PeerChange, PeerState};
use crate::endpoint::{RemoteEndpoints, Shapes};
use crate::import::ImportPart;
use crate::name::{ClusterName, ServiceKey};
use crate::rules::{DEFAULT_WITHDRAW_AFTER, Rules};
use crate::service::ServiceRecord;
use crate::time::UnixMillis;

/// All peers.
#[derive(Debug, Default)]
pub(super) struct PeerTable {
    peers: BTreeMap<ClusterName, Peer>,
    dirty: BTreeSet<ServiceKey>,
}

#[derive(Debug)]
struct Peer {
    state: PeerState,
    /// Since when it has not been up, as far as we know.
    idle_since: UnixMillis,
    synced: bool,
    services: BTreeMap<ServiceKey, PeerService>,
    endpoints: usize,
    shapes: Shapes,
}

#[derive(Debug)]
struct PeerService {
    record: Arc<ServiceRecord>,
    endpoints: RemoteEndpoints,
}

impl PeerTable {
    pub(super) fn take_dirty(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.dirty)
    }

    /// Marks every service of every peer, because rules changed.
    pub(super) fn mark_all(&mut self) {
        self.dirty.extend(self.peers.values().flat_map(|peer| peer.services.keys().cloned()));
    }

    pub(super) fn apply(&mut self, cluster: ClusterName, change: PeerChange, now: UnixMillis) {
        if matches!(change, PeerChange::Removed) {
            if let Some(peer) = self.peers.remove(&cluster) {
                self.dirty.extend(peer.services.into_keys());
            }
            return;
        }
        let peer = self.peers.entry(cluster).or_insert_with(|| Peer::new(now));
        match change {
            PeerChange::Upsert(record) => peer.upsert(record, &mut self.dirty),
            PeerChange::Remove(key) => peer.remove(&key, &mut self.dirty),
            PeerChange::Replace(records) => {
                peer.synced = true;
                peer.replace(records, &mut self.dirty);
            }
            PeerChange::Endpoints { service, upsert, remove } => {
                let Some(known) = peer.services.get_mut(&service) else { return };
                if let Some(endpoints) = known.endpoints.edited(&upsert, &remove, &mut peer.shapes) {
                    peer.endpoints = peer.endpoints + endpoints.len() - known.endpoints.len();
                    known.endpoints = endpoints;
                    self.dirty.insert(service);
                }
            }
            PeerChange::State(state) => peer.set_state(state, now, &mut self.dirty),
            PeerChange::LastHeard(at) => peer.last_heard(at),
            PeerChange::Removed => {}
        }
    }

    /// Drops what peers exported that have been away for too long; names them.
    pub(super) fn expire(&mut self, rules: &Rules, now: UnixMillis) -> Vec<ClusterName> {
        let mut expired = Vec::new();
        for (name, peer) in &mut self.peers {
            if peer.expires_at(name, rules).is_some_and(|at| at <= now) {
                peer.endpoints = 0;
                peer.synced = false;
                self.dirty.extend(std::mem::take(&mut peer.services).into_keys());
                expired.push(name.clone());
            }
        }
        expired
    }

    pub(super) fn next_expiry(&self, rules: &Rules) -> Option<UnixMillis> {
        self.peers.iter().filter_map(|(name, peer)| peer.expires_at(name, rules)).min()
    }

    /// What the peers contribute to a service, as far as their rules let them.
    pub(super) fn parts<'a>(&'a self, key: &'a ServiceKey, rules: &'a Rules) -> impl Iterator<Item = ImportPart> + 'a {
        self.peers.iter().filter_map(move |(name, peer)| {
            let service = peer.services.get(key)?;
            rules.may_import(name.as_str(), key).then(|| ImportPart {
                cluster: Some(name.clone()),
                record: Arc::clone(&service.record),
                stale: peer.state != PeerState::Up,
                endpoints: service.endpoints.clone(),
            })
        })
    }

    /// All peers, those that are only configured included.
    pub(super) fn views(&self, rules: &Rules) -> BTreeMap<ClusterName, PeerView> {
        let names: BTreeSet<&ClusterName> = self.peers.keys().chain(rules.peers.keys()).collect();
        let view = |name: &ClusterName| match self.peers.get(name) {
            Some(peer) => PeerView {
                name: name.clone(),
                configured: rules.peers.contains_key(name),
                state: peer.state,
                synced: peer.synced,
                services: peer.services.len(),
                endpoints: peer.endpoints,
                withdraw_at: peer.expires_at(name, rules),
            },
            None => PeerView {
                name: name.clone(),
                configured: true,
                state: PeerState::Unknown,
                synced: false,
                services: 0,
                endpoints: 0,
                withdraw_at: None,
            },
        };
        names.into_iter().map(|name| (name.clone(), view(name))).collect()
    }
}

impl Peer {
    fn new(now: UnixMillis) -> Self {
        Self {
            state: PeerState::Unknown,
            idle_since: now,
            synced: false,
            services: BTreeMap::new(),
            endpoints: 0,
            shapes: Shapes::default(),
        }
    }

    fn upsert(&mut self, record: Arc<ServiceRecord>, dirty: &mut BTreeSet<ServiceKey>) {
        if let Some(known) = self.services.get_mut(&record.key) {
            if known.record != record {
                dirty.insert(record.key.clone());
                known.record = record;
            }
            return;
        }
        dirty.insert(record.key.clone());
        self.services.insert(record.key.clone(), PeerService { record, endpoints: RemoteEndpoints::default() });
    }

    fn remove(&mut self, key: &ServiceKey, dirty: &mut BTreeSet<ServiceKey>) {
        if let Some(service) = self.services.remove(key) {
            self.endpoints -= service.endpoints.len();
            dirty.insert(key.clone());
        }
    }

    fn replace(&mut self, records: Vec<Arc<ServiceRecord>>, dirty: &mut BTreeSet<ServiceKey>) {
        let new: BTreeSet<ServiceKey> = records.iter().map(|record| record.key.clone()).collect();
        let gone: Vec<ServiceKey> = self.services.keys().filter(|key| !new.contains(key)).cloned().collect();
        for key in gone {
            self.remove(&key, dirty);
        }
        for record in records {
            self.upsert(record, dirty);
        }
    }

    fn set_state(&mut self, state: PeerState, now: UnixMillis, dirty: &mut BTreeSet<ServiceKey>) {
        if self.state == state {
            return;
        }
        if (self.state == PeerState::Up) != (state == PeerState::Up) {
            dirty.extend(self.services.keys().cloned());
        }
        self.idle_since = match state {
            PeerState::Down { since } => since,
            PeerState::Unknown | PeerState::Up => now,
        };
        self.state = state;
    }

    fn last_heard(&mut self, at: UnixMillis) {
        if self.state == PeerState::Unknown {
            self.state = PeerState::Down { since: at };
            self.idle_since = at;
        }
    }

    /// When what it exported is withdrawn, if it stays away.
    fn expires_at(&self, name: &ClusterName, rules: &Rules) -> Option<UnixMillis> {
        let after = rules.peers.get(name).map_or(DEFAULT_WITHDRAW_AFTER, |peer| peer.withdraw_after);
        (self.state != PeerState::Up && !self.services.is_empty()).then(|| self.idle_since.plus(after))
    }
}

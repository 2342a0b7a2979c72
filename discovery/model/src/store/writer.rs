//! The one writer: applies changes to tables of its own and publishes what differs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::local::LocalTable;
use super::peers::PeerTable;
use super::reader::{self, Publisher, Reader};
use super::sharded::Edit;
use super::snapshot::{Entry, Snapshot};
use super::sources::Source;
use crate::change::Change;
use crate::endpoint::RemoteEndpoints;
use crate::import::{self, ImportPart};
use crate::name::{ClusterName, Label, ServiceKey};
use crate::rules::Rules;
use crate::time::UnixMillis;

/// How many removed services are remembered for [`Snapshot::changes_since`]. Readers are behind by
/// a publication or two; who is farther behind compares everything.
const MAX_REMEMBERED: usize = 1024;

/// Holds the tables that snapshots are made from. There is one per process.
#[derive(Debug)]
pub struct Writer {
    local: LocalTable,
    peers: PeerTable,
    /// What was published last.
    snapshot: Arc<Snapshot>,
    publisher: Publisher,
    /// Entries of the snapshot without contents, and when they lost it; oldest first.
    removed: VecDeque<(u64, ServiceKey)>,
}

impl Writer {
    /// An empty store of the cluster of this name. Not locally synced until
    /// [`Writer::await_registries`] said what to wait for.
    #[must_use]
    pub fn new(cluster: ClusterName) -> (Self, Reader) {
        let snapshot = Snapshot::empty(cluster.clone());
        let (publisher, reader) = reader::channel(snapshot.clone());
        let writer = Self {
            local: LocalTable::new(cluster),
            peers: PeerTable::default(),
            snapshot: Arc::new(snapshot),
            publisher,
            removed: VecDeque::new(),
        };
        (writer, reader)
    }

    /// What was published last.
    #[must_use]
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The registries that have to send their contents before the store counts as locally synced;
    /// adds to those of earlier calls. An empty list: nothing to wait for.
    pub fn await_registries(&mut self, names: impl IntoIterator<Item = Label>) {
        self.local.await_registries(names);
        let rules = Arc::clone(&self.snapshot.rules);
        self.publish(rules, BTreeSet::new(), true);
    }

    /// Applies changes in order and publishes the result, once, if it differs. Returns whether it
    /// did. `now` dates peers that were never up: take it from a clock that does not jump.
    pub fn apply(&mut self, batch: impl IntoIterator<Item = Change>, now: UnixMillis) -> bool {
        for change in batch {
            match change {
                Change::Local { registry, change } => self.local.apply(&registry, change),
                // A peer of our own name could only be meant to pass for us (invariant I6).
                Change::Peer { cluster, .. } if cluster == self.snapshot.cluster => {}
                Change::Peer { cluster, change } => self.peers.apply(cluster, change, now),
            }
        }
        self.publish_changes()
    }

    /// Replaces the rules. Returns whether anything differed and was published.
    pub fn set_rules(&mut self, rules: Arc<Rules>) -> bool {
        let old = Arc::clone(&self.snapshot.rules);
        if *old == *rules {
            return false;
        }
        if old.peers != rules.peers {
            self.peers.mark_all();
        }
        let mut dirty = self.peers.take_dirty();
        let policies = old.traffic.keys().chain(rules.traffic.keys());
        dirty.extend(policies.filter(|key| old.traffic.get(key) != rules.traffic.get(key)).cloned());
        dirty.extend(old.routes.differences(&rules.routes));
        self.publish(rules, dirty, false)
    }

    /// Withdraws the services of peers that have been away for longer than their rules allow, and
    /// names these peers: whoever else keeps something of them drops it now. This is the one place
    /// where it is decided (fault F25). A clock that jumps ahead would withdraw too early: `now` is
    /// of the clock that [`Writer::apply`] is given.
    pub fn expire(&mut self, now: UnixMillis) -> Vec<ClusterName> {
        let expired = self.peers.expire(&self.snapshot.rules, now);
        self.publish_changes();
        expired
    }

    /// When [`Writer::expire`] has something to do next, if nothing changes until then.
    #[must_use]
    pub fn next_expiry(&self) -> Option<UnixMillis> {
        self.peers.next_expiry(&self.snapshot.rules)
    }

    fn publish_changes(&mut self) -> bool {
        let mut dirty = self.local.take_dirty();
        dirty.append(&mut self.peers.take_dirty());
        self.publish(Arc::clone(&self.snapshot.rules), dirty, false)
    }

    /// Publishes a snapshot in which `dirty` services are computed anew, unless it would be equal
    /// to the last.
    fn publish(&mut self, rules: Arc<Rules>, dirty: BTreeSet<ServiceKey>, registries_known: bool) -> bool {
        let last = Arc::clone(&self.snapshot);
        let version = last.version + 1;
        let mut edits: BTreeMap<ServiceKey, Edit<Arc<Entry>>> = BTreeMap::new();
        for key in dirty {
            if let Some(entry) = self.changed_entry(key, &rules, version) {
                if entry.is_empty() {
                    self.removed.push_back((version, entry.key.clone()));
                }
                edits.insert(entry.key.clone(), Edit::Put(Arc::new(entry)));
            }
        }
        let sources = self.changed_sources();
        let peers = self.peers.views(&rules);
        let unsynced = (registries_known || last.unsynced.is_some()).then(|| self.local.unsynced().cloned().collect());
        let same = edits.is_empty()
            && sources.is_empty()
            && peers == *last.peers
            && unsynced == last.unsynced
            && Arc::ptr_eq(&rules, &last.rules);
        if same {
            return false;
        }
        let rules_changed = !Arc::ptr_eq(&rules, &last.rules);
        let forgotten = self.forget(&mut edits);
        let services_from = last.services_from.max(forgotten);
        let changes_from = if rules_changed { version } else { last.changes_from.max(forgotten) };
        let snapshot = Arc::new(Snapshot {
            version,
            cluster: last.cluster.clone(),
            services: if edits.is_empty() {
                last.services.clone()
            } else {
                last.services.edited(edits.into_values(), version)
            },
            sources: if sources.is_empty() { last.sources.clone() } else { last.sources.edited(sources, version) },
            peers: if peers == *last.peers { Arc::clone(&last.peers) } else { Arc::new(peers) },
            rules,
            unsynced,
            changes_from,
            services_from,
        });
        self.snapshot = Arc::clone(&snapshot);
        self.publisher.publish(snapshot);
        true
    }

    /// The service computed from the tables, if it differs from what was published.
    fn changed_entry(&self, key: ServiceKey, rules: &Rules, version: u64) -> Option<Entry> {
        let own = self.snapshot.cluster();
        let local = self.local.view(&key).cloned();
        let mut parts = Vec::new();
        if let Some(local) = local.as_ref().filter(|local| local.exported) {
            parts.push(ImportPart {
                cluster: None,
                record: Arc::clone(&local.record),
                stale: false,
                endpoints: RemoteEndpoints::default(),
            });
        }
        parts.extend(self.peers.parts(&key, rules));
        let import = import::merge(own, &key, parts, rules);
        let registry_conflicts = self.local.conflicts(&key).to_vec();
        match self.snapshot.services.get(&key) {
            None if local.is_none() && import.is_none() => return None,
            None => {}
            Some(old) => {
                let same = old.local == local
                    && old.import.as_deref() == import.as_ref()
                    && old.registry_conflicts == registry_conflicts;
                if same {
                    return None;
                }
            }
        }
        Some(Entry { key, local, import: import.map(Arc::new), registry_conflicts, changed_at: version })
    }

    fn changed_sources(&mut self) -> Vec<Edit<Source>> {
        let dirty = self.local.sources.take_dirty();
        let changed = dirty.into_iter().filter_map(|address| {
            let old = self.snapshot.sources.get(&address);
            match (old, self.local.sources.resolve(address)) {
                (None, None) => None,
                (Some(_), None) => Some(Edit::Delete(address)),
                (Some(old), Some(new)) if old.identity == *new => None,
                (_, Some(new)) => Some(Edit::Put(Source { address, identity: Arc::clone(new) })),
            }
        });
        changed.collect()
    }

    /// Deletes the oldest entries without contents while there are too many. Returns the version
    /// up to which removals are forgotten.
    fn forget(&mut self, edits: &mut BTreeMap<ServiceKey, Edit<Arc<Entry>>>) -> u64 {
        let mut forgotten = 0;
        while self.removed.len() > MAX_REMEMBERED {
            let Some((version, key)) = self.removed.pop_front() else { break };
            forgotten = version;
            let last_changed_at = match edits.get(&key) {
                Some(Edit::Put(entry)) => Some(entry.changed_at),
                Some(Edit::Delete(_)) => None,
                None => self.snapshot.services.get(&key).map(|entry| entry.changed_at),
            };
            // Otherwise it came back since, and its own removal may follow in the queue.
            if last_changed_at == Some(version) {
                edits.insert(key.clone(), Edit::Delete(key));
            }
        }
        forgotten
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.local.is_none() && self.import.is_none()
    }
}

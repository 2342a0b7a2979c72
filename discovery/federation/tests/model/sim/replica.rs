//! One gateway replica: its store, its tables of imports, its disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use eastway_federation::{ImportTable, Limits, Now};
use eastway_model::rules::Rules;
use eastway_model::store::{Reader, Writer};
use eastway_model::{Change, ClusterName, Label, LocalChange, LocalService, ServiceKey, UnixMillis};

use super::truth::{LogEntry, Truth};

/// The wall clock at the beginning of time.
pub(super) const WALL: UnixMillis = UnixMillis(1_800_000_000_000);

/// A replica.
pub(super) struct Replica {
    pub(super) epoch: u64,
    pub(super) writer: Writer,
    pub(super) reader: Reader,
    /// What its registry has said: its own view of local truth.
    pub(super) view: BTreeMap<ServiceKey, Arc<LocalService>>,
    /// Entries of the cluster's log that are in the view.
    pub(super) applied: usize,
    /// How far the view is behind the truth.
    pub(super) lag: Duration,
    /// When its registry has loaded; passed: it is synced.
    pub(super) syncs_at: Duration,
    pub(super) synced: bool,
    pub(super) wall_offset: i64,
    /// By index of the peer.
    pub(super) imports: BTreeMap<usize, Importing>,
    /// Images that were saved, oldest first, by peer.
    pub(super) disk: BTreeMap<usize, Vec<Vec<u8>>>,
    /// What this process ever offered, by peer.
    pub(super) offered: BTreeMap<ClusterName, BTreeSet<ServiceKey>>,
}

/// What a replica imports from one peer.
pub(super) struct Importing {
    pub(super) table: ImportTable,
    /// The stream that counts.
    pub(super) conn: Option<u64>,
    pub(super) dial_at: Duration,
    pub(super) wanted: BTreeSet<ServiceKey>,
}

impl Replica {
    pub(super) fn new(cluster: ClusterName, epoch: u64, rules: &Arc<Rules>, lag: Duration, syncs_at: Duration) -> Self {
        let (mut writer, reader) = Writer::new(cluster);
        writer.set_rules(Arc::clone(rules));
        writer.await_registries([registry()]);
        Self {
            epoch,
            writer,
            reader,
            view: BTreeMap::new(),
            applied: 0,
            lag,
            syncs_at,
            synced: false,
            wall_offset: 0,
            imports: BTreeMap::new(),
            disk: BTreeMap::new(),
            offered: BTreeMap::new(),
        }
    }

    pub(super) fn now(&self, mono: Duration) -> Now {
        let wall = WALL.plus(mono).0.saturating_add_signed(self.wall_offset);
        Now { mono, wall: UnixMillis(wall) }
    }

    /// The store is dated by a clock that does not jump.
    pub(super) fn steady(mono: Duration) -> UnixMillis {
        WALL.plus(mono)
    }

    /// Learns of what is due in the cluster's log; says whether the store changed.
    pub(super) fn learn(&mut self, truth: &Truth, now: Duration) -> bool {
        if now < self.syncs_at {
            return false;
        }
        let due = truth.log.iter().skip(self.applied).take_while(|entry| entry.at + self.lag <= now);
        let due: Vec<&LogEntry> = due.collect();
        if due.is_empty() && self.synced {
            return false;
        }
        self.applied += due.len();
        let mut changes = Vec::new();
        for LogEntry { at: _, key, service } in due {
            match service {
                Some(service) => {
                    self.view.insert(key.clone(), Arc::clone(service));
                    changes.push(LocalChange::Upsert(Arc::clone(service)));
                }
                None => {
                    self.view.remove(key);
                    changes.push(LocalChange::Remove(key.clone()));
                }
            }
        }
        if !self.synced {
            self.synced = true;
            changes = vec![LocalChange::Replace(self.view.values().cloned().collect())];
        }
        let changes = changes.into_iter().map(|change| Change::Local { registry: registry(), change });
        self.writer.apply(changes, Self::steady(now))
    }
}

impl Importing {
    pub(super) fn new(cluster: &ClusterName, peer: &ClusterName, limits: &Limits, dial_at: Duration) -> Self {
        let table = ImportTable::new(cluster.clone(), peer.clone(), limits.clone());
        Self { table, conn: None, dial_at, wanted: BTreeSet::new() }
    }
}

pub(super) fn registry() -> Label {
    Label::parse("api").unwrap()
}

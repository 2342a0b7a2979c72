//! A map in shards behind `Arc`s: a copy with some entries changed copies their shards only.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// Number of shards. A publication copies this many pointers and the shards it changes: at 10,000
/// entries both are about 100.
const SHARDS: usize = 128;

/// A value that knows its key.
pub(super) trait Keyed: Clone {
    type Key: Hash + Ord;

    fn key(&self) -> &Self::Key;
}

#[derive(Clone)]
pub(super) struct Sharded<T> {
    shards: Vec<Arc<Shard<T>>>,
    /// Random per writer, so that nobody can choose names that meet in one shard.
    hasher: RandomState,
}

#[derive(Clone)]
struct Shard<T> {
    /// Sorted by (hash, key).
    slots: Vec<(u64, T)>,
    /// Version of the snapshot that last changed it.
    changed_at: u64,
}

/// One edit: what an entry becomes, or the key that goes.
pub(super) enum Edit<T: Keyed> {
    Put(T),
    Delete(T::Key),
}

impl<T: Keyed> Default for Sharded<T> {
    fn default() -> Self {
        let empty = Arc::new(Shard { slots: Vec::new(), changed_at: 0 });
        Self { shards: vec![empty; SHARDS], hasher: RandomState::new() }
    }
}

impl<T: Keyed> Sharded<T> {
    pub(super) fn get(&self, key: &T::Key) -> Option<&T> {
        let hash = self.hasher.hash_one(key);
        let slots = &self.shards.get(shard_of(hash))?.slots;
        let from = slots.partition_point(|(other, _)| *other < hash);
        let same_hash = slots.iter().skip(from).take_while(|(other, _)| *other == hash);
        same_hash.map(|(_, value)| value).find(|value| value.key() == key)
    }

    /// All entries, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.shards.iter().flat_map(|shard| shard.slots.iter().map(|(_, value)| value))
    }

    /// The entries of all shards that changed after `version`, in no order.
    pub(super) fn iter_changed_after(&self, version: u64) -> impl Iterator<Item = &T> {
        let changed = self.shards.iter().filter(move |shard| shard.changed_at > version);
        changed.flat_map(|shard| shard.slots.iter().map(|(_, value)| value))
    }

    /// A copy after `edits`, which shares all shards without an edit.
    pub(super) fn edited(&self, edits: impl IntoIterator<Item = Edit<T>>, version: u64) -> Self {
        let mut copy = self.clone();
        for edit in edits {
            copy.apply(edit, version);
        }
        copy
    }

    fn apply(&mut self, edit: Edit<T>, version: u64) {
        let hash = match &edit {
            Edit::Put(value) => self.hasher.hash_one(value.key()),
            Edit::Delete(key) => self.hasher.hash_one(key),
        };
        let Some(shard) = self.shards.get_mut(shard_of(hash)) else { return };
        // Copies the shard only for its first edit: then it is ours alone.
        let shard = Arc::make_mut(shard);
        shard.changed_at = version;
        match edit {
            Edit::Put(value) => match shard.place(hash, value.key()) {
                Ok(place) => {
                    if let Some(slot) = shard.slots.get_mut(place) {
                        *slot = (hash, value);
                    }
                }
                Err(place) => {
                    if shard.slots.len() == shard.slots.capacity() {
                        // A doubled shard would be half empty for ever: what is copied later starts with this much.
                        shard.slots.reserve_exact(shard.slots.len() / 8 + 1);
                    }
                    shard.slots.insert(place, (hash, value));
                }
            },
            Edit::Delete(key) => {
                if let Ok(place) = shard.place(hash, &key) {
                    shard.slots.remove(place);
                }
            }
        }
    }
}

impl<T: Keyed> Shard<T> {
    fn place(&self, hash: u64, key: &T::Key) -> Result<usize, usize> {
        self.slots.binary_search_by(|(other, value)| other.cmp(&hash).then_with(|| value.key().cmp(key)))
    }
}

/// The low bits choose the shard; the order inside it is that of the whole hash.
fn shard_of(hash: u64) -> usize {
    const _: () = assert!(SHARDS.is_power_of_two() && SHARDS <= 256);
    let [low, ..] = hash.to_le_bytes();
    usize::from(low) % SHARDS
}

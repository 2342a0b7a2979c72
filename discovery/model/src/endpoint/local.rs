//! The endpoints of one local service.

use std::fmt;
use std::sync::Arc;

use super::chunks::{Chunk, ChunkList, Edit};
use super::{Endpoint, EndpointId, LocalEndpoint};
use crate::hash::{FNV_START, fnv};

/// Endpoints of a local service, sorted by id and unique. Cheap to clone, and a copy with one
/// endpoint changed shares all but a chunk of at most 100.
#[derive(Clone, Default)]
pub struct LocalEndpoints(ChunkList<LocalChunk>);

struct LocalChunk {
    items: Box<[Arc<LocalEndpoint>]>,
    /// Of each item, in one place: session affinity looks at all of them.
    keys: Box<[Key]>,
    max_weight: u32,
}

/// What decides who a sticky client is drawn to.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    /// Of the endpoint's id.
    pub(crate) hash: u64,
    pub(crate) weight: u32,
}

impl Chunk for LocalChunk {
    type Item<'a> = &'a Arc<LocalEndpoint>;

    fn id<'a>(item: &Self::Item<'a>) -> &'a str {
        item.endpoint.id.as_str()
    }

    fn len(&self) -> usize {
        self.items.len()
    }

    fn get(&self, index: usize) -> Option<Self::Item<'_>> {
        self.items.get(index)
    }

    fn build(items: &[Self::Item<'_>]) -> Self {
        Self {
            items: items.iter().map(|item| Arc::clone(item)).collect(),
            keys: items.iter().map(|item| Key::of(item)).collect(),
            max_weight: items.iter().map(|item| item.endpoint.weight).max().unwrap_or(0),
        }
    }
}

impl Key {
    fn of(endpoint: &LocalEndpoint) -> Self {
        let Endpoint { id, weight, .. } = &endpoint.endpoint;
        Self { hash: fnv(FNV_START, id.as_str().as_bytes()), weight: *weight }
    }
}

impl LocalEndpoints {
    /// Number of endpoints.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<LocalEndpoint>> {
        self.0.iter()
    }

    /// All, each with its key: whoever needs most of the keys and few of the endpoints reads little
    /// memory.
    pub(crate) fn keyed(&self) -> impl Iterator<Item = (Key, &Arc<LocalEndpoint>)> {
        self.0.chunks().iter().flat_map(|chunk| chunk.keys.iter().copied().zip(&chunk.items))
    }

    /// The endpoint of this id.
    #[must_use]
    pub fn get(&self, id: &EndpointId) -> Option<&Arc<LocalEndpoint>> {
        self.0.find(id.as_str())
    }

    /// The endpoint at `index` in the order of ids.
    #[must_use]
    pub fn nth(&self, index: usize) -> Option<&Arc<LocalEndpoint>> {
        self.0.nth(index)
    }

    /// The largest weight of any endpoint; 0 if there is none.
    #[must_use]
    pub fn max_weight(&self) -> u32 {
        self.0.chunks().iter().map(|chunk| chunk.max_weight).max().unwrap_or(0)
    }

    /// Whether both share all memory, and so are equal at no cost.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.0.same(&other.0)
    }

    /// What turns `older` into `self`, by id: what is there now, or `None` if it is gone. Memory that
    /// both share is not looked at.
    #[must_use]
    pub fn changes_from(&self, older: &Self) -> Vec<(EndpointId, Option<Arc<LocalEndpoint>>)> {
        let (old, new) = older.0.unshared(&self.0);
        let mut changes = Vec::new();
        let mut old = old.iter().flat_map(|chunk| &chunk.items).peekable();
        for endpoint in new.iter().flat_map(|chunk| &chunk.items) {
            let id = &endpoint.endpoint.id;
            while let Some(gone) = old.next_if(|old| old.endpoint.id < *id) {
                changes.push((gone.endpoint.id.clone(), None));
            }
            if old.next_if(|old| old.endpoint.id == *id).is_none_or(|old| !Arc::ptr_eq(old, endpoint)) {
                changes.push((id.clone(), Some(Arc::clone(endpoint))));
            }
        }
        changes.extend(old.map(|gone| (gone.endpoint.id.clone(), None)));
        changes
    }

    /// A copy with these ids replaced (`Some`) or removed (`None`); each endpoint has the id it is
    /// filed under. Of several edits of an id the last counts.
    #[must_use]
    pub fn edited(&self, edits: &[(EndpointId, Option<Arc<LocalEndpoint>>)]) -> Self {
        let sorted;
        let edits = if edits.is_sorted_by(|a, b| a.0 < b.0) {
            edits
        } else {
            sorted = last_of_each(edits.to_vec());
            &sorted
        };
        let edits: Vec<Edit<'_, LocalChunk>> =
            edits.iter().map(|(id, endpoint)| (id.as_str(), endpoint.as_ref())).collect();
        Self(self.0.edited(&edits))
    }
}

/// Sorted by id; of several edits of one id only the last.
fn last_of_each<T>(mut edits: Vec<(EndpointId, T)>) -> Vec<(EndpointId, T)> {
    edits.reverse();
    edits.sort_by(|a, b| a.0.cmp(&b.0));
    edits.dedup_by(|later, earlier| later.0 == earlier.0);
    edits
}

impl From<Vec<LocalEndpoint>> for LocalEndpoints {
    fn from(endpoints: Vec<LocalEndpoint>) -> Self {
        endpoints.into_iter().collect()
    }
}

impl FromIterator<LocalEndpoint> for LocalEndpoints {
    /// Of several endpoints with one id the last stays.
    fn from_iter<I: IntoIterator<Item = LocalEndpoint>>(endpoints: I) -> Self {
        endpoints.into_iter().map(Arc::new).collect()
    }
}

impl FromIterator<Arc<LocalEndpoint>> for LocalEndpoints {
    /// Of several endpoints with one id the last stays.
    fn from_iter<I: IntoIterator<Item = Arc<LocalEndpoint>>>(endpoints: I) -> Self {
        let endpoints = endpoints.into_iter().map(|endpoint| (endpoint.endpoint.id.clone(), endpoint)).collect();
        let endpoints = last_of_each(endpoints);
        let items: Vec<&Arc<LocalEndpoint>> = endpoints.iter().map(|(_, endpoint)| endpoint).collect();
        Self(ChunkList::of_sorted(&items))
    }
}

impl PartialEq for LocalEndpoints {
    fn eq(&self, other: &Self) -> bool {
        self.0.equal(&other.0, |a, b| Arc::ptr_eq(a, b) || a == b)
    }
}

impl Eq for LocalEndpoints {}

impl fmt::Debug for LocalEndpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl serde::Serialize for LocalEndpoints {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

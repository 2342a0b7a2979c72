//! The endpoint records that a peer sent for a service we subscribed to, held compactly: what is
//! alike is shared, ids and hostnames of up to 100 endpoints lie in one text.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::chunks::{Chunk, ChunkList, Edit};
use super::{Endpoint, EndpointCondition, EndpointId, Subset, TlsMode, WorkloadIdentity, Zone};

/// What endpoints of one service have in common with many others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// Labels that routing rules select by.
    pub subset: Subset,
    /// Topology zone.
    pub zone: Option<Zone>,
    /// Who the workload is, if it can prove it.
    pub identity: Option<WorkloadIdentity>,
    /// What it speaks.
    pub tls: TlsMode,
}

impl Shape {
    fn of(endpoint: &Endpoint) -> Self {
        Self {
            subset: endpoint.subset.clone(),
            zone: endpoint.zone.clone(),
            identity: endpoint.identity.clone(),
            tls: endpoint.tls,
        }
    }
}

/// One endpoint record, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointRef<'a> {
    /// Its opaque name.
    pub id: &'a str,
    /// Hostname of a StatefulSet-like endpoint.
    pub hostname: Option<&'a str>,
    /// Readiness.
    pub condition: EndpointCondition,
    /// Relative share of connections.
    pub weight: u32,
    /// Subset, zone, identity and TLS.
    #[serde(flatten)]
    pub shape: &'a Arc<Shape>,
}

/// Endpoint records of one service of one peer, sorted by id. Cheap to clone, and a copy with one
/// endpoint changed shares all but a chunk of at most 100.
#[derive(Clone, Default)]
pub struct RemoteEndpoints(ChunkList<RemoteChunk>);

/// Up to 100 records: one text of all ids and hostnames, 16 bytes of figures for each.
struct RemoteChunk {
    text: Box<str>,
    records: Box<[Record]>,
    shapes: Box<[Arc<Shape>]>,
}

struct Record {
    /// Where its id begins in the text; the hostname follows the id.
    start: u32,
    weight: u32,
    id_len: u8,
    /// 0: none. A label has at most 63 bytes.
    hostname_len: u8,
    shape: u8,
    condition: u8,
}

const READY: u8 = 1;
const SERVING: u8 = 2;
const TERMINATING: u8 = 4;

impl Chunk for RemoteChunk {
    type Item<'a> = EndpointRef<'a>;

    fn id<'a>(item: &Self::Item<'a>) -> &'a str {
        item.id
    }

    fn len(&self) -> usize {
        self.records.len()
    }

    fn get(&self, index: usize) -> Option<EndpointRef<'_>> {
        let record = self.records.get(index)?;
        let id_start = record.start as usize;
        let id_end = id_start + usize::from(record.id_len);
        let hostname = self.text.get(id_end..id_end + usize::from(record.hostname_len))?;
        Some(EndpointRef {
            id: self.text.get(id_start..id_end)?,
            hostname: (!hostname.is_empty()).then_some(hostname),
            condition: EndpointCondition {
                ready: record.condition & READY != 0,
                serving: record.condition & SERVING != 0,
                terminating: record.condition & TERMINATING != 0,
            },
            weight: record.weight,
            shape: self.shapes.get(usize::from(record.shape))?,
        })
    }

    fn build(items: &[EndpointRef<'_>]) -> Self {
        let length = |item: &EndpointRef<'_>| item.id.len() + item.hostname.map_or(0, str::len);
        let mut text = String::with_capacity(items.iter().map(length).sum());
        let mut shapes: Vec<Arc<Shape>> = Vec::new();
        let records = items
            .iter()
            .map(|item| {
                // Equal shapes are one allocation already, see [`Shapes`]; a copy would only cost memory.
                let known = shapes.iter().position(|shape| Arc::ptr_eq(shape, item.shape));
                let shape = known.unwrap_or_else(|| {
                    shapes.push(Arc::clone(item.shape));
                    shapes.len() - 1
                });
                let start = text.len();
                let hostname = item.hostname.unwrap_or_default();
                text.push_str(item.id);
                text.push_str(hostname);
                let flag = |on: bool, bit: u8| if on { bit } else { 0 };
                Record {
                    // At most 100 records of at most 64 + 63 bytes: nothing here saturates.
                    start: u32::try_from(start).unwrap_or(u32::MAX),
                    weight: item.weight,
                    id_len: u8::try_from(item.id.len()).unwrap_or(u8::MAX),
                    hostname_len: u8::try_from(hostname.len()).unwrap_or(u8::MAX),
                    shape: u8::try_from(shape).unwrap_or(u8::MAX),
                    condition: flag(item.condition.ready, READY)
                        | flag(item.condition.serving, SERVING)
                        | flag(item.condition.terminating, TERMINATING),
                }
            })
            .collect();
        Self { text: text.into_boxed_str(), records, shapes: shapes.into_boxed_slice() }
    }
}

impl RemoteEndpoints {
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
    pub fn iter(&self) -> impl Iterator<Item = EndpointRef<'_>> {
        self.0.iter()
    }

    /// The endpoint of this id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<EndpointRef<'_>> {
        self.0.find(id)
    }

    /// Whether both share all memory, and so are equal at no cost.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.0.same(&other.0)
    }

    /// A copy after an update, or `None` if it would be equal. What is in both `upsert` and
    /// `remove` is removed; of several records with one id the last counts.
    #[must_use]
    pub fn edited(&self, upsert: &[Endpoint], remove: &[EndpointId], shapes: &mut Shapes) -> Option<Self> {
        let upserts: Vec<(&Endpoint, Arc<Shape>)> =
            upsert.iter().map(|endpoint| (endpoint, shapes.shared(Shape::of(endpoint)))).collect();
        let mut edits: Vec<Edit<'_, RemoteChunk>> = remove.iter().map(|id| (id.as_str(), None)).collect();
        edits.extend(upserts.iter().rev().map(|(endpoint, shape)| (endpoint.id.as_str(), Some(view(endpoint, shape)))));
        // Stable, so that removals stay in front of upserts and later upserts in front of earlier.
        edits.sort_by(|a, b| a.0.cmp(b.0));
        edits.dedup_by(|later, earlier| later.0 == earlier.0);
        edits.retain(|(id, new)| self.get(id) != *new);
        (!edits.is_empty()).then(|| Self(self.0.edited(&edits)))
    }
}

fn view<'a>(endpoint: &'a Endpoint, shape: &'a Arc<Shape>) -> EndpointRef<'a> {
    EndpointRef {
        id: endpoint.id.as_str(),
        hostname: endpoint.hostname.as_ref().map(crate::Label::as_str),
        condition: endpoint.condition,
        weight: endpoint.weight,
        shape,
    }
}

/// The shapes in use, each once.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    known: HashMap<Shape, Arc<Shape>>,
    /// Size at which unused ones are dropped next.
    sweep_at: usize,
}

impl Shapes {
    fn shared(&mut self, shape: Shape) -> Arc<Shape> {
        if let Some(known) = self.known.get(&shape) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, shared| Arc::strong_count(shared) > 1);
            self.sweep_at = (self.known.len() * 2).max(64);
        }
        let shared = Arc::new(shape.clone());
        self.known.insert(shape, Arc::clone(&shared));
        shared
    }
}

impl PartialEq for RemoteEndpoints {
    fn eq(&self, other: &Self) -> bool {
        self.0.equal(&other.0, |a, b| a == b)
    }
}

impl Eq for RemoteEndpoints {}

impl fmt::Debug for RemoteEndpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl serde::Serialize for RemoteEndpoints {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

//! What one watcher of the feed is told next, out of the store's snapshots.
//!
//! A [`Feed`] holds what its watcher was told. Between two snapshots it names the difference and nothing else, so that
//! a slow watcher costs fewer, larger differences and never a queue (invariant I8).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_federation::convert::{EncodedService, endpoint_to_wire, key_to_wire};
use eastway_model::store::Snapshot;
use eastway_model::{
    ClusterName, Endpoint, EndpointId, EndpointRef, ImportPart, Label, PeerState, RemoteEndpoints, ServiceKey,
    ServiceKind, ServiceRecord, UnixMillis,
};
use eastway_proto::federation::v1::ServiceState;
use eastway_proto::local::v1 as wire;
use eastway_proto::local::v1::update::Body;
use prost::Message as _;

use crate::local::links::LinkFacts;

/// Most bytes of services or endpoints in one message; a single one may be 64 KiB.
const CHUNK: usize = 256 << 10;

/// What one watcher was told.
#[derive(Debug, Default)]
pub struct Feed {
    seen: Option<u64>,
    peers: Option<Vec<PeerLine>>,
    /// Peers whose snapshot was sent, and what the watcher holds of them since.
    sent: BTreeMap<ClusterName, BTreeMap<ServiceKey, Sent>>,
}

#[derive(Debug)]
struct Sent {
    record: Arc<ServiceRecord>,
    endpoints: RemoteEndpoints,
}

#[derive(Debug, PartialEq, Eq)]
struct PeerLine {
    name: ClusterName,
    trust_domain: Arc<str>,
    state: PeerState,
    synced: bool,
    withdraw_after: Duration,
    links: Option<LinkFacts>,
}

impl Feed {
    /// What is new in `snapshot`. `known` are all configured peers; as long as the snapshot's rules are of others
    /// nothing is said, because a peer that is left out counts as removed (invariant I4). `links` is what is known of links. `now` is of the store's clock.
    pub fn updates(
        &mut self,
        snapshot: &Snapshot,
        known: &BTreeSet<ClusterName>,
        links: &BTreeMap<ClusterName, LinkFacts>,
        now: UnixMillis,
    ) -> Vec<wire::Update> {
        if !snapshot.rules().peers.keys().eq(known.iter()) {
            return Vec::new();
        }
        let mut bodies = Vec::new();
        let lines = peer_lines(snapshot, links);
        if self.peers.as_ref() != Some(&lines) {
            bodies.push(Body::Peers(peers_to_wire(snapshot.cluster(), &lines, now)));
        }
        self.sent.retain(|peer, _| known.contains(peer));

        let keys = self.keys(snapshot);
        for (peer, sent) in &mut self.sent {
            for key in &keys {
                changes(peer, key, part(snapshot, key, peer), sent, &mut bodies);
            }
        }
        // After the differences: a peer whose exports were withdrawn is told of one by one.
        self.sent.retain(|peer, _| snapshot.peer(peer.as_str()).is_some_and(|view| view.synced));
        for line in lines.iter().filter(|line| line.synced) {
            if !self.sent.contains_key(&line.name) {
                let sent = whole(&line.name, snapshot, &mut bodies);
                self.sent.insert(line.name.clone(), sent);
            }
        }
        self.peers = Some(lines);
        self.seen = Some(snapshot.version());
        bodies.into_iter().map(|body| wire::Update { body: Some(body) }).collect()
    }

    /// Services in which something may be new.
    fn keys(&self, snapshot: &Snapshot) -> Vec<ServiceKey> {
        self.seen.and_then(|seen| snapshot.changes_since(seen)).unwrap_or_else(|| {
            let mut all: BTreeSet<_> = snapshot.imports().map(|import| import.key.clone()).collect();
            all.extend(self.sent.values().flat_map(|sent| sent.keys().cloned()));
            all.into_iter().collect()
        })
    }
}

fn part<'a>(snapshot: &'a Snapshot, key: &ServiceKey, peer: &ClusterName) -> Option<&'a ImportPart> {
    snapshot.import(key)?.part(Some(peer))
}

fn peer_lines(snapshot: &Snapshot, links: &BTreeMap<ClusterName, LinkFacts>) -> Vec<PeerLine> {
    let line = |(name, rules): (&ClusterName, &Arc<eastway_model::rules::PeerRules>)| {
        let view = snapshot.peer(name.as_str());
        PeerLine {
            name: name.clone(),
            trust_domain: Arc::clone(&rules.trust_domain),
            state: view.map_or(PeerState::Unknown, |view| view.state),
            synced: view.is_some_and(|view| view.synced),
            withdraw_after: rules.withdraw_after,
            links: links.get(name).copied(),
        }
    };
    snapshot.rules().peers.iter().map(line).collect()
}

fn peers_to_wire(cluster: &ClusterName, lines: &[PeerLine], now: UnixMillis) -> wire::Peers {
    let wall = SystemTime::now();
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let peer = |line: &PeerLine| {
        let (reachability, down_ms) = match line.state {
            PeerState::Unknown => (wire::Reachability::Unknown, 0),
            PeerState::Up => (wire::Reachability::Up, 0),
            PeerState::Down { since } => (wire::Reachability::Down, millis(now.since(since))),
        };
        wire::Peer {
            cluster: line.name.to_string(),
            trust_domain: line.trust_domain.to_string(),
            reachability: reachability.into(),
            down_ms,
            synced: line.synced,
            withdraw_after_ms: millis(line.withdraw_after),
            links: line.links.map(|links| links.to_wire(wall)),
        }
    };
    wire::Peers { cluster: cluster.to_string(), peers: lines.iter().map(peer).collect() }
}

/// A snapshot of one peer, and the endpoints of its headless services.
fn whole(peer: &ClusterName, snapshot: &Snapshot, bodies: &mut Vec<Body>) -> BTreeMap<ServiceKey, Sent> {
    let parts: Vec<_> = snapshot.imports().filter_map(|import| import.part(Some(peer))).collect();
    let mut chunk = wire::Snapshot { cluster: peer.to_string(), services: Vec::new(), end: false };
    let mut bytes = 0;
    for part in &parts {
        let state = state(&part.record);
        bytes += state.encoded_len();
        chunk.services.push(state);
        if bytes >= CHUNK {
            let full = wire::Snapshot { services: std::mem::take(&mut chunk.services), ..chunk.clone() };
            bodies.push(Body::Snapshot(full));
            bytes = 0;
        }
    }
    bodies.push(Body::Snapshot(wire::Snapshot { end: true, ..chunk }));
    let mut sent = BTreeMap::new();
    for part in parts {
        if has_endpoints(part) {
            listing(peer, part, bodies);
        }
        sent.insert(part.record.key.clone(), Sent::of(part));
    }
    sent
}

impl Sent {
    fn of(part: &ImportPart) -> Self {
        Self { record: Arc::clone(&part.record), endpoints: part.endpoints.clone() }
    }
}

/// What became of one service of a peer since the watcher was told of it.
fn changes(
    peer: &ClusterName,
    key: &ServiceKey,
    part: Option<&ImportPart>,
    sent: &mut BTreeMap<ServiceKey, Sent>,
    bodies: &mut Vec<Body>,
) {
    let cluster = peer.to_string();
    let Some(part) = part else {
        if sent.remove(key).is_some() {
            bodies.push(Body::Remove(wire::Remove { cluster, service: Some(key_to_wire(key)) }));
        }
        return;
    };
    let before = sent.insert(key.clone(), Sent::of(part));
    if before.as_ref().is_none_or(|before| before.record != part.record) {
        bodies.push(Body::Upsert(wire::Upsert { cluster, service: Some(state(&part.record)) }));
    }
    match before {
        Some(before) if !before.endpoints.same(&part.endpoints) => edits(peer, key, &before.endpoints, part, bodies),
        None if has_endpoints(part) => listing(peer, part, bodies),
        Some(_) | None => {}
    }
}

/// Endpoint records cross for headless services; they may still come.
fn has_endpoints(part: &ImportPart) -> bool {
    part.record.kind == ServiceKind::Headless || !part.endpoints.is_empty()
}

fn state(record: &ServiceRecord) -> ServiceState {
    EncodedService::new(record).into_wire()
}

fn edits(peer: &ClusterName, key: &ServiceKey, before: &RemoteEndpoints, part: &ImportPart, bodies: &mut Vec<Body>) {
    let changed = part.endpoints.iter().filter(|endpoint| before.get(endpoint.id) != Some(*endpoint));
    let mut message = Chunks::new(peer, key);
    for endpoint in changed {
        message.push(endpoint, bodies);
    }
    let removed = before.iter().filter(|endpoint| part.endpoints.get(endpoint.id).is_none());
    message.open.removed = removed.map(|endpoint| endpoint.id.to_owned()).collect();
    if !message.open.upserts.is_empty() || !message.open.removed.is_empty() {
        bodies.push(Body::Endpoints(message.open));
    }
}

fn listing(peer: &ClusterName, part: &ImportPart, bodies: &mut Vec<Body>) {
    let mut message = Chunks::new(peer, &part.record.key);
    message.open.begin = true;
    for endpoint in part.endpoints.iter() {
        message.push(endpoint, bodies);
    }
    message.open.end = true;
    bodies.push(Body::Endpoints(message.open));
}

/// Endpoint messages of bounded size.
struct Chunks {
    open: wire::Endpoints,
    bytes: usize,
}

impl Chunks {
    fn new(peer: &ClusterName, key: &ServiceKey) -> Self {
        let open = wire::Endpoints {
            cluster: peer.to_string(),
            service: Some(key_to_wire(key)),
            ..wire::Endpoints::default()
        };
        Self { open, bytes: 0 }
    }

    fn push(&mut self, endpoint: EndpointRef<'_>, bodies: &mut Vec<Body>) {
        // What is in the store was validated: it always has an id.
        let Some(endpoint) = owned(endpoint) else { return };
        let encoded = endpoint_to_wire(&endpoint).encode_to_vec();
        self.bytes += encoded.len();
        self.open.upserts.push(encoded.into());
        if self.bytes >= CHUNK {
            let next = wire::Endpoints { begin: false, upserts: Vec::new(), ..self.open.clone() };
            bodies.push(Body::Endpoints(std::mem::replace(&mut self.open, next)));
            self.bytes = 0;
        }
    }
}

fn owned(endpoint: EndpointRef<'_>) -> Option<Endpoint> {
    let EndpointRef { id, hostname, condition, weight, shape } = endpoint;
    Some(Endpoint {
        id: EndpointId::parse(id)?,
        hostname: hostname.and_then(|hostname| Label::parse(hostname).ok()),
        subset: shape.subset.clone(),
        zone: shape.zone.clone(),
        condition,
        weight,
        identity: shape.identity.clone(),
        tls: shape.tls,
    })
}

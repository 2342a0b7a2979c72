//! What a watcher of the feed makes of its messages: changes for a store of its own.
//!
//! The gateway has validated every record; they are checked here once more by the same functions, so that whoever
//! writes to the API depends on no other process for it. A record that does not pass is left out and reported, the
//! others are taken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_federation::RejectReason;
use eastway_federation::convert::{Texts, endpoint_from_wire, key_from_wire, record_from_wire, service_from_wire};
use eastway_model::rules::{NameFilter, PeerRules};
use eastway_model::{
    Change, ClusterName, Endpoint, EndpointId, Label, PeerChange, PeerState, ServiceKey, ServiceKind, ServiceRecord,
    UnixMillis,
};
use eastway_proto::federation::v1::{ServiceName, ServiceState};
use eastway_proto::local::v1 as wire;
use eastway_proto::local::v1::update::Body;

use crate::local::links::LinkFacts;

/// Most services of one peer; the gateway's own quota is lower.
const MAX_SERVICES: usize = 1_000_000;
/// Most endpoints in one listing.
const MAX_ENDPOINTS: usize = 1_000_000;

/// Something for the watcher's store.
#[derive(Clone, Debug)]
pub enum FeedUpdate {
    /// All peers of this cluster: rules that let everything in which the feed brings. To be set before the changes
    /// that follow are applied.
    Peers(BTreeMap<ClusterName, Arc<PeerRules>>),
    /// What is known of the links to peers; of none that is not named.
    Links(BTreeMap<ClusterName, LinkFacts>),
    /// Changes of what peers export.
    Changes(Vec<Change>),
}

/// Why a feed cannot be followed: the connection is to be given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// The gateway is of another cluster.
    #[error("the gateway is of cluster \"{0}\", not of ours")]
    OtherCluster(String),
    /// Not a name.
    #[error("\"{0}\" is no cluster name")]
    BadCluster(String),
    /// Before the first list of peers, or of one that is not in it.
    #[error("a message about {0}, which is not among the peers")]
    UnknownPeer(String),
    /// Larger than any gateway's quota allows.
    #[error("more {0} of one peer than can be")]
    TooMany(&'static str),
    /// A message without contents, or of a newer version.
    #[error("a message of an unknown kind")]
    Unknown,
}

/// One record that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The peer.
    pub cluster: ClusterName,
    /// The service, if its name could be read.
    pub service: Option<ServiceKey>,
    /// What is wrong.
    pub reason: RejectReason,
}

/// The state of one watcher.
#[derive(Debug)]
pub struct Intake {
    cluster: ClusterName,
    peers: BTreeMap<ClusterName, Held>,
    texts: Texts,
    rejected: Vec<Rejected>,
}

#[derive(Debug)]
struct Held {
    rules: Arc<PeerRules>,
    /// A snapshot that has begun.
    snapshot: Option<Vec<Arc<ServiceRecord>>>,
    /// A listing that has begun.
    listing: Option<(ServiceKey, Vec<Endpoint>)>,
    /// Endpoints that the store has.
    endpoints: BTreeMap<ServiceKey, BTreeSet<EndpointId>>,
}

impl Intake {
    /// For a watcher of the cluster of this name.
    #[must_use]
    pub fn new(cluster: ClusterName) -> Self {
        Self { cluster, peers: BTreeMap::new(), texts: Texts::default(), rejected: Vec::new() }
    }

    /// A new connection: what had begun on the last one is void. What is held stays.
    pub fn reconnected(&mut self) {
        for held in self.peers.values_mut() {
            (held.snapshot, held.listing) = (None, None);
        }
    }

    /// The records left out since the last call.
    pub fn take_rejected(&mut self) -> Vec<Rejected> {
        std::mem::take(&mut self.rejected)
    }

    /// Takes a message in. `now` is of the store's clock.
    ///
    /// # Errors
    /// [`IntakeError`]: the connection is to be given up.
    pub fn take(&mut self, update: wire::Update, now: UnixMillis) -> Result<Vec<FeedUpdate>, IntakeError> {
        match update.body.ok_or(IntakeError::Unknown)? {
            Body::Peers(peers) => self.peers(&peers, now),
            Body::Snapshot(snapshot) => self.snapshot(snapshot),
            Body::Upsert(wire::Upsert { cluster, service }) => {
                let cluster = self.known(&cluster)?;
                let record = service.and_then(|service| self.record(&cluster, &service));
                Ok(changes(&cluster, record.map(PeerChange::Upsert)))
            }
            Body::Remove(wire::Remove { cluster, service }) => {
                let cluster = self.known(&cluster)?;
                let key = self.key(&cluster, service.as_ref());
                if let (Some(key), Some(held)) = (&key, self.peers.get_mut(&cluster)) {
                    held.endpoints.remove(key);
                }
                Ok(changes(&cluster, key.map(PeerChange::Remove)))
            }
            Body::Endpoints(endpoints) => self.endpoints(endpoints),
        }
    }

    fn known(&self, cluster: &str) -> Result<ClusterName, IntakeError> {
        let name = cluster_name(cluster)?;
        if self.peers.contains_key(&name) { Ok(name) } else { Err(IntakeError::UnknownPeer(name.to_string())) }
    }

    fn peers(&mut self, message: &wire::Peers, now: UnixMillis) -> Result<Vec<FeedUpdate>, IntakeError> {
        if cluster_name(&message.cluster)? != self.cluster {
            return Err(IntakeError::OtherCluster(message.cluster.escape_debug().take(63).collect()));
        }
        let mut states = Vec::new();
        let (mut named, mut links) = (BTreeMap::new(), BTreeMap::new());
        let wall = SystemTime::now();
        for peer in &message.peers {
            let name = cluster_name(&peer.cluster)?;
            let rules = PeerRules {
                import: NameFilter::everything(),
                withdraw_after: Duration::from_millis(peer.withdraw_after_ms),
                // Export times were clamped by the gateway already.
                ..PeerRules::new(name.clone(), &peer.trust_domain, UnixMillis(0))
            };
            named.insert(name.clone(), Arc::new(rules));
            links.extend(peer.links.as_ref().map(|links| (name.clone(), LinkFacts::from_wire(links, wall))));
            states.extend(state(peer, now).map(|state| change(&name, PeerChange::State(state))));
        }
        let gone: Vec<_> = self.peers.keys().filter(|peer| !named.contains_key(*peer)).cloned().collect();
        let mut all: Vec<_> = gone.iter().map(|peer| change(peer, PeerChange::Removed)).collect();
        self.peers.retain(|peer, _| named.contains_key(peer));
        for (name, rules) in &named {
            match self.peers.get_mut(name) {
                Some(held) => held.rules = Arc::clone(rules),
                None => drop(self.peers.insert(name.clone(), Held::new(rules))),
            }
        }
        all.extend(states);
        Ok(vec![FeedUpdate::Links(links), FeedUpdate::Peers(named), FeedUpdate::Changes(all)])
    }

    fn snapshot(&mut self, message: wire::Snapshot) -> Result<Vec<FeedUpdate>, IntakeError> {
        let wire::Snapshot { cluster, services, end } = message;
        let cluster = self.known(&cluster)?;
        let records: Vec<_> = services.iter().filter_map(|service| self.record(&cluster, service)).collect();
        let Some(held) = self.peers.get_mut(&cluster) else { return Ok(Vec::new()) };
        let all = held.snapshot.get_or_insert_default();
        if all.len() + records.len() > MAX_SERVICES {
            return Err(IntakeError::TooMany("services"));
        }
        all.extend(records);
        if !end {
            return Ok(Vec::new());
        }
        let all = held.snapshot.take().unwrap_or_default();
        let kinds: BTreeMap<_, _> = all.iter().map(|record| (record.key.clone(), record.kind)).collect();
        let mut out = vec![change(&cluster, PeerChange::Replace(all))];
        held.endpoints.retain(|key, ids| match kinds.get(key) {
            None => false,
            // A listing follows.
            Some(ServiceKind::Headless) => true,
            // The store keeps what it had; a listing follows only if there is any.
            Some(ServiceKind::ClusterSetIp) => {
                let remove = std::mem::take(ids).into_iter().collect();
                out.push(change(&cluster, PeerChange::Endpoints { service: key.clone(), upsert: Vec::new(), remove }));
                false
            }
        });
        Ok(vec![FeedUpdate::Changes(out)])
    }

    fn endpoints(&mut self, message: wire::Endpoints) -> Result<Vec<FeedUpdate>, IntakeError> {
        let wire::Endpoints { cluster, service, upserts, removed, begin, end } = message;
        let cluster = self.known(&cluster)?;
        let Some(key) = self.key(&cluster, service.as_ref()) else { return Ok(Vec::new()) };
        let Some(held) = self.peers.get_mut(&cluster) else { return Ok(Vec::new()) };
        let mut upsert = Vec::new();
        for encoded in &upserts {
            match endpoint_from_wire(encoded, &held.rules.trust_domain, &mut self.texts) {
                Ok(endpoint) => upsert.push(endpoint),
                Err(reason) => {
                    let (cluster, service) = (cluster.clone(), Some(key.clone()));
                    self.rejected.push(Rejected { cluster, service, reason });
                }
            }
        }
        if begin {
            held.listing = Some((key.clone(), Vec::new()));
        }
        let ids = held.endpoints.entry(key.clone()).or_default();
        let mut remove: Vec<_> = removed.iter().filter_map(|id| EndpointId::parse(id)).collect();
        if let Some((_, all)) = held.listing.as_mut().filter(|(listed, _)| *listed == key) {
            if all.len() + upsert.len() > MAX_ENDPOINTS {
                return Err(IntakeError::TooMany("endpoints"));
            }
            all.append(&mut upsert);
            if !end {
                return Ok(Vec::new());
            }
            upsert = std::mem::take(all);
            held.listing = None;
            let new: BTreeSet<_> = upsert.iter().map(|endpoint| &endpoint.id).collect();
            remove = ids.iter().filter(|id| !new.contains(id)).cloned().collect();
        }
        for id in &remove {
            ids.remove(id);
        }
        ids.extend(upsert.iter().map(|endpoint| endpoint.id.clone()));
        Ok(changes(&cluster, Some(PeerChange::Endpoints { service: key, upsert, remove })))
    }

    fn record(&mut self, cluster: &ClusterName, state: &ServiceState) -> Option<Arc<ServiceRecord>> {
        let trust_domain = Arc::clone(&self.peers.get(cluster)?.rules.trust_domain);
        let (key, service) = match service_from_wire(&state.service) {
            Ok(read) => read,
            Err(reason) => return self.reject(cluster, None, reason),
        };
        let exported_at = UnixMillis(service.exported_at_ms);
        match record_from_wire(key.clone(), service, &state.counts, exported_at, &trust_domain, &mut self.texts) {
            Ok(record) => Some(Arc::new(record)),
            Err(reason) => self.reject(cluster, Some(key), reason),
        }
    }

    fn key(&mut self, cluster: &ClusterName, name: Option<&ServiceName>) -> Option<ServiceKey> {
        match key_from_wire(name?) {
            Ok(key) => Some(key),
            Err(reason) => self.reject(cluster, None, reason),
        }
    }

    fn reject<T>(&mut self, cluster: &ClusterName, service: Option<ServiceKey>, reason: RejectReason) -> Option<T> {
        self.rejected.push(Rejected { cluster: cluster.clone(), service, reason });
        None
    }
}

impl Held {
    fn new(rules: &Arc<PeerRules>) -> Self {
        Self { rules: Arc::clone(rules), snapshot: None, listing: None, endpoints: BTreeMap::new() }
    }
}

fn cluster_name(text: &str) -> Result<ClusterName, IntakeError> {
    Label::parse(text).map_err(|_| IntakeError::BadCluster(text.escape_debug().take(63).collect()))
}

/// `None`: a word of a newer version; what was said before stands.
fn state(peer: &wire::Peer, now: UnixMillis) -> Option<PeerState> {
    match peer.reachability() {
        wire::Reachability::Unspecified => None,
        wire::Reachability::Unknown => Some(PeerState::Unknown),
        wire::Reachability::Up => Some(PeerState::Up),
        wire::Reachability::Down => Some(PeerState::Down { since: now.minus(Duration::from_millis(peer.down_ms)) }),
    }
}

fn change(cluster: &ClusterName, change: PeerChange) -> Change {
    Change::Peer { cluster: cluster.clone(), change }
}

fn changes(cluster: &ClusterName, one: Option<PeerChange>) -> Vec<FeedUpdate> {
    one.into_iter().map(|one| FeedUpdate::Changes(vec![change(cluster, one)])).collect()
}

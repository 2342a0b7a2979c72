//! The endpoints of one port of an import, or of a share of it.
//!
//! Preference is that of `eastway_model::routing`: ready endpoints of clusters that are up, then draining ones, then
//! what clusters that are down last said. Envoy sends to healthy endpoints only, so those of the best level that has
//! any are called healthy, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_model::rules::route::Share;
use eastway_model::rules::{ClusterRef, Locality, MAX_WEIGHT};
use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, EndpointCondition, Import, ImportPart, ServicePort, Subset};
use eastway_proto::xds::v1 as wire;

use super::{HBONE, METADATA, tls};

/// Key of the labels that subsets are chosen by.
const LABELS: &str = "envoy.lb";

/// What names of hosts of a lost cluster end with.
const LOST: &str = ".lost";

/// A priority gets all requests as long as one of a thousand of its endpoints is healthy, as connections are routed;
/// Envoy's own rule sends some of them on when more than two of seven are not.
const OVERPROVISIONING: u32 = 100_000;

/// The assignment named `name`.
pub(super) fn assignment(
    snapshot: &Snapshot,
    import: &Import,
    port: &ServicePort,
    share: &Share,
    name: &str,
) -> wire::ClusterLoadAssignment {
    let candidates = candidates(snapshot, import, port, share);
    let level = Level::of(&candidates).unwrap_or(Level::Stale);
    let ranks: BTreeSet<u32> = candidates.iter().map(|candidate| candidate.rank).collect();
    // Envoy wants priorities without gaps.
    let priority = |rank: u32| u32::try_from(ranks.range(..rank).count()).unwrap_or(u32::MAX);
    let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
    let mut localities: BTreeMap<(u32, Arc<str>, Arc<str>), Vec<wire::LbEndpoint>> = BTreeMap::new();
    for candidate in candidates {
        let key = (priority(candidate.rank), Arc::clone(&candidate.region), Arc::clone(&candidate.zone));
        localities.entry(key).or_default().push(candidate.into_endpoint(level, total));
    }
    let endpoints = localities.into_iter().map(|((priority, region, zone), lb_endpoints)| wire::LocalityEndpoints {
        locality: Some(wire::Locality { region: region.to_string(), zone: zone.to_string() }),
        lb_endpoints,
        load_balancing_weight: None,
        priority,
    });
    let factor = wire::UInt32 { value: OVERPROVISIONING };
    wire::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: endpoints.collect(),
        policy: Some(wire::Policy { overprovisioning_factor: Some(factor) }),
    }
}

/// What the best endpoints of a share are worth; `None`: it has none that could be tried.
pub(super) fn level(snapshot: &Snapshot, import: &Import, port: &ServicePort, share: &Share) -> Option<Level> {
    Level::of(&candidates(snapshot, import, port, share))
}

/// One endpoint, before it is known how it compares with the others.
#[derive(Debug)]
struct Candidate {
    /// 0 is tried first.
    rank: u32,
    /// Its cluster.
    region: Arc<str>,
    zone: Arc<str>,
    state: State,
    /// Its cluster is down.
    stale: bool,
    weight: u32,
    place: wire::address::Address,
    metadata: BTreeMap<String, wire::Struct>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Draining,
    Down,
}

/// What is good enough; the best is the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Ready endpoints of clusters that are up.
    Ready,
    /// Draining ones too.
    Draining,
    /// Clusters that are down too.
    Stale,
}

impl State {
    fn of(condition: EndpointCondition) -> Self {
        if condition.ready {
            Self::Ready
        } else if condition.is_draining() {
            Self::Draining
        } else {
            Self::Down
        }
    }
}

impl Level {
    fn of(candidates: &[Candidate]) -> Option<Self> {
        let of = |candidate: &Candidate| match candidate.state {
            State::Down => None,
            State::Ready | State::Draining if candidate.stale => Some(Self::Stale),
            State::Ready => Some(Self::Ready),
            State::Draining => Some(Self::Draining),
        };
        candidates.iter().filter_map(of).min()
    }
}

impl Candidate {
    fn into_endpoint(self, level: Level, total: u64) -> wire::LbEndpoint {
        let health = match (self.state, level) {
            (State::Down, _) => wire::HealthStatus::Unhealthy,
            (_, Level::Ready | Level::Draining) if self.stale => wire::HealthStatus::Unhealthy,
            (State::Draining, Level::Ready) => wire::HealthStatus::Draining,
            (State::Ready | State::Draining, _) => wire::HealthStatus::Healthy,
        };
        wire::LbEndpoint {
            endpoint: Some(wire::Endpoint { address: Some(wire::Address { address: Some(self.place) }) }),
            health_status: health.into(),
            metadata: Some(wire::Metadata { filter_metadata: self.metadata }),
            load_balancing_weight: Some(wire::UInt32 { value: scaled(self.weight, total) }),
        }
    }
}

/// Envoy refuses weights of 0 and sums above 2^32.
fn scaled(weight: u32, total: u64) -> u32 {
    // Half of the range: what is raised to 1 has room in the other half.
    const MOST: u64 = 1 << 31;
    if total <= MOST {
        return weight.max(1);
    }
    let part = u128::from(weight) * u128::from(MOST) / u128::from(total);
    u32::try_from(part).unwrap_or(u32::MAX).max(1)
}

fn candidates(snapshot: &Snapshot, import: &Import, port: &ServicePort, share: &Share) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for part in import.parts.iter().filter(|part| part.serves(port.protocol, port.number)) {
        let ranks = Ranks::of(import, part, snapshot.cluster(), share);
        match &part.cluster {
            None => local(snapshot, import, port, &ranks, &mut candidates),
            Some(cluster) if part.endpoints.is_empty() => {
                candidates.extend(whole(import, part, cluster, port, &ranks));
            }
            Some(cluster) => remote(import, part, cluster, port, &ranks, &mut candidates),
        }
    }
    candidates
}

/// When endpoints of one cluster are tried; `None`: never. As `eastway_model::routing` gives connections of a share
/// without endpoints to others.
#[derive(Clone, Copy, Debug)]
struct Ranks<'a> {
    subset: &'a Subset,
    /// Those with the labels.
    with: Option<u32>,
    /// Those without: the last resort of a failover order.
    without: Option<u32>,
}

/// Before the last resort stand all clusters of a failover order.
const LAST_RESORT: u32 = 1 << 16;

impl<'a> Ranks<'a> {
    fn of(import: &Import, part: &ImportPart, own: &ClusterName, share: &'a Share) -> Self {
        let (locality, failover) = match import.policy.as_deref() {
            Some(policy) => (policy.locality, policy.failover.as_slice()),
            None => (Locality::PreferLocal, [].as_slice()),
        };
        let is = |cluster: &ClusterRef| match cluster {
            ClusterRef::Local => part.cluster.is_none(),
            ClusterRef::Named(name) => part.cluster.as_ref().unwrap_or(own) == name,
        };
        let place = failover.iter().position(is).and_then(|place| u32::try_from(place + 1).ok());
        let nearness = u32::from(locality == Locality::PreferLocal && part.cluster.is_some());
        let with = match &share.cluster {
            Some(pin) if is(pin) => Some(0),
            None if nearness == 0 => Some(0),
            Some(_) | None if !failover.is_empty() => place,
            Some(_) => Some(1 + nearness),
            None => Some(nearness),
        };
        Self { subset: &share.subset, with, without: place.map(|place| LAST_RESORT + place) }
    }

    fn of_labels(&self, labels: &Subset) -> Option<u32> {
        if self.subset.iter().all(|(key, value)| labels.get(key) == Some(value)) { self.with } else { self.without }
    }
}

/// Endpoints of this cluster, at their addresses.
fn local(snapshot: &Snapshot, import: &Import, port: &ServicePort, ranks: &Ranks<'_>, candidates: &mut Vec<Candidate>) {
    let Some(service) = snapshot.local(&import.key) else { return };
    for local in service.endpoints.iter() {
        let Some(target) = local.target_ports.get(&port.number) else { continue };
        let Some(rank) = ranks.of_labels(&local.endpoint.subset) else { continue };
        let endpoint = &local.endpoint;
        let place = wire::SocketAddress { address: local.address.to_string(), port_value: u32::from(*target) };
        let mut metadata = labels(&endpoint.subset);
        tls::mark(&mut metadata, snapshot.cluster(), endpoint.tls);
        candidates.push(Candidate {
            rank,
            region: Arc::from(snapshot.cluster()),
            zone: endpoint.zone.clone().unwrap_or_default(),
            state: State::of(endpoint.condition),
            stale: false,
            weight: endpoint.weight,
            place: wire::address::Address::SocketAddress(place),
            metadata,
        });
    }
}

/// Endpoints of a peer, each of them by its name.
fn remote(
    import: &Import,
    part: &ImportPart,
    cluster: &ClusterName,
    port: &ServicePort,
    ranks: &Ranks<'_>,
    candidates: &mut Vec<Candidate>,
) {
    let service = service_authority(import, cluster, port);
    for endpoint in part.endpoints.iter() {
        let Some(rank) = ranks.of_labels(&endpoint.shape.subset) else { continue };
        let mut metadata = labels(&endpoint.shape.subset);
        let authority = format!("{}.{service}", endpoint.id);
        metadata.insert(METADATA.to_owned(), named(authority, import));
        tls::mark(&mut metadata, cluster, endpoint.shape.tls);
        candidates.push(Candidate {
            rank,
            region: Arc::from(cluster),
            zone: endpoint.shape.zone.clone().unwrap_or_default(),
            state: State::of(endpoint.condition),
            stale: part.stale,
            weight: endpoint.weight,
            place: internal(format!("{}.{cluster}", endpoint.id), part.stale),
            metadata,
        });
    }
}

/// A peer whose endpoints are not known: the service as a whole, and its gateway chooses, so that all of them have to
/// have the labels. Its weight is that of all its ready endpoints together, so that it gets their share beside single
/// ones.
fn whole(
    import: &Import,
    part: &ImportPart,
    cluster: &ClusterName,
    port: &ServicePort,
    ranks: &Ranks<'_>,
) -> Option<Candidate> {
    let of_all: Option<BTreeSet<u32>> = part.record.groups.iter().map(|group| ranks.of_labels(&group.subset)).collect();
    let rank = of_all?.last().copied()?;
    let (mut ready, mut weight, mut draining) = (0_u64, 0_u64, 0_u64);
    for group in &part.record.groups {
        let most = u64::from(group.ready).saturating_mul(u64::from(MAX_WEIGHT));
        // A peer's sum of weights is a claim: no more than its endpoints could have.
        weight = weight.saturating_add(group.weight.clamp(u64::from(group.ready), most));
        ready = ready.saturating_add(u64::from(group.ready));
        draining = draining.saturating_add(u64::from(group.draining));
    }
    let state = match (ready, draining) {
        (0, 0) => return None,
        (0, _) => State::Draining,
        (_, _) => State::Ready,
    };
    let mut metadata = BTreeMap::from([(METADATA.to_owned(), named(service_authority(import, cluster, port), import))]);
    tls::mark(&mut metadata, cluster, tls::mode_of_all(&part.record.groups));
    Some(Candidate {
        rank,
        region: Arc::from(cluster),
        zone: Arc::default(),
        state,
        stale: part.stale,
        weight: u32::try_from(weight).unwrap_or(u32::MAX),
        place: internal(format!("{}.{}.{cluster}", import.key.name, import.key.namespace), part.stale),
        metadata,
    })
}

/// `<service>.<namespace>.<cluster>:<port>`: what a CONNECT stream asks for; an endpoint's id may stand before it.
fn service_authority(import: &Import, cluster: &ClusterName, port: &ServicePort) -> String {
    format!("{}.{}.{cluster}:{}", import.key.name, import.key.namespace, port.number)
}

/// A host of Envoy's own. It keeps what it thinks of a host for as long as that is there: what failed because the
/// cluster was lost would stay ejected, for half a minute and more, when it is back. So endpoints of a lost cluster are
/// other hosts than those of before and after.
fn internal(mut endpoint_id: String, stale: bool) -> wire::address::Address {
    let server_listener_name = HBONE.to_owned();
    if stale {
        endpoint_id.push_str(LOST);
    }
    wire::address::Address::EnvoyInternalAddress(wire::InternalAddress { server_listener_name, endpoint_id })
}

fn named(authority: String, import: &Import) -> wire::Struct {
    wire::Struct {
        fields: [("endpoint".to_owned(), text(authority)), ("service".to_owned(), text(import.key.to_string()))].into(),
    }
}

fn labels(subset: &Subset) -> BTreeMap<String, wire::Struct> {
    if subset.is_empty() {
        return BTreeMap::new();
    }
    let fields = subset.iter().map(|(key, value)| (key.to_string(), text(value.to_string()))).collect();
    [(LABELS.to_owned(), wire::Struct { fields })].into()
}

fn text(text: String) -> wire::Value {
    wire::Value { string_value: Some(text) }
}

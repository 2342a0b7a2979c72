//! The endpoints of one port of an import, or of a share of it.
//!
//! Preference is that of `eastway_model::routing`: ready endpoints of clusters that are up, then draining ones, then
//! what clusters that are down last said. Envoy sends to healthy endpoints only, so those of the best level that has
//! any are called healthy, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_model::endpoint::labels::to_word;
use eastway_model::rules::route::Share;
use eastway_model::rules::{ClusterRef, Locality, MAX_WEIGHT};
use eastway_model::store::Snapshot;
use eastway_model::{
    ClusterName, EndpointCondition, EndpointGroup, EndpointId, EndpointRef, Import, ImportPart, LocalEndpoint,
    ServicePort, Subset,
};
use eastway_proto::xds::v1 as wire;

use super::{HBONE, METADATA, tls};

/// Key of the labels that subsets are chosen by.
const LABELS: &str = "envoy.lb";

/// What names of hosts of a lost cluster end with.
const LOST: &str = ".lost";

/// A priority gets all requests as long as one of a thousand of its endpoints is healthy, as connections are routed;
/// Envoy's own rule sends some of them on when more than two of seven are not.
const OVERPROVISIONING: u32 = 100_000;

/// How endpoints of other clusters are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// Each by its name.
    #[default]
    Single,
    /// All that a cluster has with the same labels as one.
    Summary,
}

/// The assignment named `name`.
pub(super) fn assignment(
    snapshot: &Snapshot,
    import: &Import,
    port: &ServicePort,
    share: &Share,
    (name, form): (&str, Form),
) -> wire::ClusterLoadAssignment {
    let candidates = candidates(snapshot, import, port, share, form);
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

/// The assignment named `name` of one endpoint and no other, whatever state it is in; `None`: there is no such endpoint.
pub(super) fn assignment_of_one(
    snapshot: &Snapshot,
    import: &Import,
    port: &ServicePort,
    (owner, id): (&ClusterName, &EndpointId),
    name: &str,
) -> Option<wire::ClusterLoadAssignment> {
    let any = Subset::default();
    let ranks = Ranks { subset: &any, with: Some(0), without: None };
    let is_own = owner == snapshot.cluster();
    let part = import.part((!is_own).then_some(owner)).filter(|part| part.serves(port.protocol, port.number))?;
    let candidate = match &part.cluster {
        None => one_local(snapshot, snapshot.local(&import.key)?.endpoints.get(id)?, port, &ranks)?,
        Some(cluster) => one_remote(import, part, (cluster, part.endpoints.get(id.as_str())?), port, &ranks)?,
    };
    let locality = wire::Locality { region: candidate.region.to_string(), zone: candidate.zone.to_string() };
    let endpoint = Candidate { state: State::Ready, stale: false, ..candidate };
    let endpoints = wire::LocalityEndpoints {
        locality: Some(locality),
        lb_endpoints: vec![endpoint.into_endpoint(Level::Ready, 1)],
        load_balancing_weight: None,
        priority: 0,
    };
    Some(wire::ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints: vec![endpoints], policy: None })
}

/// What the best endpoints of a share are worth; `None`: it has none that could be tried.
pub(super) fn level(snapshot: &Snapshot, import: &Import, port: &ServicePort, share: &Share) -> Option<Level> {
    Level::of(&candidates(snapshot, import, port, share, Form::Single))
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

fn candidates(snapshot: &Snapshot, import: &Import, port: &ServicePort, share: &Share, form: Form) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for part in import.parts.iter().filter(|part| part.serves(port.protocol, port.number)) {
        let ranks = Ranks::of(import, part, snapshot.cluster(), share);
        match &part.cluster {
            None => local(snapshot, import, port, &ranks, &mut candidates),
            // Also as long as its records are not known.
            Some(cluster) if form == Form::Summary || part.endpoints.is_empty() => {
                candidates.extend(summary(import, part, cluster, port, &ranks));
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
        if has_labels(labels, self.subset) { self.with } else { self.without }
    }
}

fn has_labels(labels: &Subset, wanted: &Subset) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Endpoints of this cluster, at their addresses.
fn local(snapshot: &Snapshot, import: &Import, port: &ServicePort, ranks: &Ranks<'_>, candidates: &mut Vec<Candidate>) {
    let Some(service) = snapshot.local(&import.key) else { return };
    candidates.extend(service.endpoints.iter().filter_map(|local| one_local(snapshot, local, port, ranks)));
}

fn one_local(snapshot: &Snapshot, local: &LocalEndpoint, port: &ServicePort, ranks: &Ranks<'_>) -> Option<Candidate> {
    let endpoint = &local.endpoint;
    let target = local.target_ports.get(&port.key())?;
    let place = wire::SocketAddress { address: local.address.to_string(), port_value: u32::from(*target) };
    let mut metadata = labels(&endpoint.subset);
    tls::mark(&mut metadata, snapshot.cluster(), endpoint.tls);
    Some(Candidate {
        rank: ranks.of_labels(&endpoint.subset)?,
        region: Arc::from(snapshot.cluster()),
        zone: endpoint.zone.clone().unwrap_or_default(),
        state: State::of(endpoint.condition),
        stale: false,
        weight: endpoint.weight,
        place: wire::address::Address::SocketAddress(place),
        metadata,
    })
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
    let all = part.endpoints.iter();
    candidates.extend(all.filter_map(|endpoint| one_remote(import, part, (cluster, endpoint), port, ranks)));
}

fn one_remote(
    import: &Import,
    part: &ImportPart,
    (cluster, endpoint): (&ClusterName, EndpointRef<'_>),
    port: &ServicePort,
    ranks: &Ranks<'_>,
) -> Option<Candidate> {
    let mut metadata = labels(&endpoint.shape.subset);
    let authority = format!("{}.{}", endpoint.id, service_authority(import, cluster, port));
    metadata.insert(METADATA.to_owned(), named(authority, import, None));
    tls::mark(&mut metadata, cluster, endpoint.shape.tls);
    Some(Candidate {
        rank: ranks.of_labels(&endpoint.shape.subset)?,
        region: Arc::from(cluster),
        zone: endpoint.shape.zone.clone().unwrap_or_default(),
        state: State::of(endpoint.condition),
        stale: part.stale,
        weight: endpoint.weight,
        place: internal(format!("{}.{cluster}", endpoint.id), part.stale),
        metadata,
    })
}

/// All endpoints of a peer with the labels as one, among which its gateway chooses; and if those without the labels are a
/// last resort, they as well, by what leads to any.
fn summary(
    import: &Import,
    part: &ImportPart,
    cluster: &ClusterName,
    port: &ServicePort,
    ranks: &Ranks<'_>,
) -> Vec<Candidate> {
    let any = Subset::default();
    let (with, without): (Vec<_>, Vec<_>) =
        part.record.groups.iter().partition(|group| has_labels(&group.subset, ranks.subset));
    let ways = [(ranks.with, ranks.subset, with), (ranks.without, &any, without)];
    let sums = ways.into_iter().filter_map(|(rank, subset, groups)| {
        let sum = Sum::of(&groups)?;
        let word = to_word(subset);
        let before = if word.is_empty() { word } else { word + "." };
        let authority = format!("{before}{}", service_authority(import, cluster, port));
        let mut metadata = labels(subset);
        metadata.insert(METADATA.to_owned(), named(authority, import, Some(sum.endpoints)));
        tls::mark(&mut metadata, cluster, tls::mode_of_all(&groups));
        Some(Candidate {
            rank: rank?,
            region: Arc::from(cluster),
            zone: Arc::default(),
            state: sum.state,
            stale: part.stale,
            weight: sum.weight,
            place: internal(format!("{before}{}.{}.{cluster}", import.key.name, import.key.namespace), part.stale),
            metadata,
        })
    });
    sums.collect()
}

/// What several endpoints are together.
struct Sum {
    state: State,
    endpoints: u64,
    /// That of the ready ones, so that they get their share beside single endpoints.
    weight: u32,
}

impl Sum {
    /// `None`: none of them could be tried.
    fn of(groups: &[&EndpointGroup]) -> Option<Self> {
        let (mut ready, mut weight, mut draining) = (0_u64, 0_u64, 0_u64);
        for group in groups {
            let most = u64::from(group.ready).saturating_mul(u64::from(MAX_WEIGHT));
            // A peer's sum of weights is a claim: no more than its endpoints could have.
            weight = weight.saturating_add(group.weight.clamp(u64::from(group.ready), most));
            ready = ready.saturating_add(u64::from(group.ready));
            draining = draining.saturating_add(u64::from(group.draining));
        }
        let (state, endpoints) = match (ready, draining) {
            (0, 0) => return None,
            (0, _) => (State::Draining, draining),
            (_, _) => (State::Ready, ready),
        };
        Some(Self { state, endpoints, weight: u32::try_from(weight).unwrap_or(u32::MAX) })
    }
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

/// `summary`: it stands for so many endpoints.
fn named(authority: String, import: &Import, summary: Option<u64>) -> wire::Struct {
    let named = [("endpoint", Some(authority)), ("service", Some(import.key.to_string()))];
    let all = named.into_iter().chain([("summary", summary.map(|endpoints| endpoints.to_string()))]);
    wire::Struct { fields: all.filter_map(|(key, value)| Some((key.to_owned(), text(value?)))).collect() }
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

//! Random changes over a small world, so that they meet each other often, and a plain model of what
//! the store should hold after them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointId, Label, LocalChange, LocalEndpoint, LocalService, PeerChange,
    PeerState, ServiceKey, ServiceKind, ServiceRecord, SessionAffinity, UnixMillis, Workload, WorkloadIdentity,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::support::*;
use super::view::PEERS;

/// Few, and one of them more often than the others.
pub(crate) const SERVICES: [&str; 5] =
    ["bookinfo/reviews", "bookinfo/reviews", "bookinfo/ratings", "private/vault", "kube-system/dns"];
const REGISTRIES: [&str; 2] = ["hosts", "vms"];
const VERSIONS: [&str; 3] = ["v1", "v2", "v3"];

/// Every address that a random endpoint or workload can have.
pub(crate) fn addresses() -> Vec<IpAddr> {
    (0..6).map(|number| IpAddr::V4(Ipv4Addr::new(10, 244, 0, number))).collect()
}

fn any_key() -> impl Strategy<Value = ServiceKey> {
    select(&SERVICES[..]).prop_map(key)
}

fn any_condition() -> impl Strategy<Value = EndpointCondition> {
    select(vec![EndpointCondition::READY, EndpointCondition::DRAINING, EndpointCondition::DOWN])
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let identity = option::weighted(0.3, select(&["a", "b"][..]));
    let zone = option::of(select(&["z1", "z2"][..]));
    (0..6_u32, select(&VERSIONS[..]), any_condition(), 1..300_u32, zone, identity).prop_map(
        |(number, version, condition, weight, zone, account)| Endpoint {
            condition,
            weight,
            zone: zone.map(Arc::from),
            hostname: (number % 2 == 0).then(|| label(&format!("host-{number}"))),
            identity: account.map(|account| WorkloadIdentity {
                trust_domain: Arc::from("onprem.example"),
                namespace: label("bookinfo"),
                service_account: label(account),
            }),
            ..endpoint(&format!("e{number}"), version)
        },
    )
}

fn any_local_endpoint() -> impl Strategy<Value = LocalEndpoint> {
    (any_endpoint(), select(addresses()), option::of(select(&["a", "b"][..]))).prop_map(
        |(endpoint, address, account)| LocalEndpoint {
            endpoint,
            address,
            service_account: account.map(label),
            target_ports: [(port_number(9080).into(), 9080)].into(),
        },
    )
}

pub(crate) fn any_record() -> impl Strategy<Value = ServiceRecord> {
    // Mostly alike: registries merge only services of one shape.
    let ports = select(vec![
        vec![port("http", 9080)],
        vec![port("http", 9080)],
        vec![port("http", 9080)],
        vec![port("http", 9080)],
        vec![port("http", 9080), port("admin", 9090)],
        vec![port("web", 9080)],
        vec![port("http", 8080)],
    ]);
    let affinity = select(vec![
        SessionAffinity::None,
        SessionAffinity::None,
        SessionAffinity::None,
        SessionAffinity::None,
        SessionAffinity::ClientIp { timeout: Duration::from_secs(10) },
        SessionAffinity::ClientIp { timeout: Duration::from_secs(20) },
    ]);
    let kind = select(vec![
        ServiceKind::ClusterSetIp,
        ServiceKind::ClusterSetIp,
        ServiceKind::ClusterSetIp,
        ServiceKind::Headless,
    ]);
    let groups = btree_map(select(&VERSIONS[..]), 0..4_u32, 0..3);
    (any_key(), ports, affinity, kind, 0..3_u64, groups).prop_map(
        |(key, ports, session_affinity, kind, age, groups)| ServiceRecord {
            session_affinity,
            kind,
            exported_at: UnixMillis(NOW.0 - age),
            groups: groups.into_iter().map(|(version, ready)| group(version, ready)).collect(),
            ..ServiceRecord::new(key, ports)
        },
    )
}

fn any_local_service() -> impl Strategy<Value = Arc<LocalService>> {
    (any_record(), prop::bool::weighted(0.8), vec(any_local_endpoint(), 0..5))
        .prop_map(|(record, exported, endpoints)| Arc::new(LocalService::new(record, exported, endpoints)))
}

fn any_id() -> impl Strategy<Value = EndpointId> {
    (0..6_u32).prop_map(|number| id(&format!("e{number}")))
}

fn any_workload() -> impl Strategy<Value = Workload> {
    (select(addresses()), select(&["bookinfo", "shop"][..]), option::of(select(&["a", "b"][..]))).prop_map(
        |(address, namespace, account)| Workload {
            address,
            namespace: label(namespace),
            service_account: account.map(label),
        },
    )
}

pub(crate) fn any_local_change() -> impl Strategy<Value = Change> {
    let change = prop_oneof![
        4 => any_local_service().prop_map(LocalChange::Upsert),
        2 => any_key().prop_map(LocalChange::Remove),
        6 => (any_key(), vec(any_local_endpoint(), 0..4), vec(any_id(), 0..2))
            .prop_map(|(service, upsert, remove)| LocalChange::Endpoints { service, upsert, remove }),
        1 => vec(any_local_service(), 0..3).prop_map(LocalChange::Replace),
        1 => vec(any_workload(), 0..3).prop_map(LocalChange::Workloads),
        2 => (vec(any_workload(), 0..3), vec(select(addresses()), 0..2))
            .prop_map(|(upsert, remove)| LocalChange::WorkloadEdits { upsert, remove }),
        1 => Just(LocalChange::Removed),
    ];
    (select(&REGISTRIES[..]), change).prop_map(|(registry, change)| Change::Local { registry: label(registry), change })
}

pub(crate) fn any_peer_change() -> impl Strategy<Value = Change> {
    let record = || any_record().prop_map(Arc::new);
    let state = select(vec![PeerState::Unknown, PeerState::Up, PeerState::Up, PeerState::Down { since: NOW }]);
    let change = prop_oneof![
        6 => record().prop_map(PeerChange::Upsert),
        2 => any_key().prop_map(PeerChange::Remove),
        4 => (any_key(), vec(any_endpoint(), 0..4), vec(any_id(), 0..2))
            .prop_map(|(service, upsert, remove)| PeerChange::Endpoints { service, upsert, remove }),
        1 => vec(record(), 0..3).prop_map(PeerChange::Replace),
        2 => state.prop_map(PeerChange::State),
        1 => Just(PeerChange::LastHeard(NOW)),
        1 => Just(PeerChange::Removed),
    ];
    (select(&PEERS[..]), change).prop_map(|(cluster, change)| peer(cluster, change))
}

pub(crate) fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![any_local_change(), any_peer_change()]
}

/// What the store should hold, kept in plain maps.
#[derive(Clone, Default)]
pub(crate) struct World {
    registries: BTreeMap<Label, Registry>,
    peers: BTreeMap<Label, Peer>,
}

#[derive(Clone, Default)]
struct Registry {
    services: BTreeMap<ServiceKey, Arc<LocalService>>,
    workloads: Vec<Workload>,
}

#[derive(Clone)]
struct Peer {
    state: PeerState,
    replaced: bool,
    services: BTreeMap<ServiceKey, (Arc<ServiceRecord>, BTreeMap<EndpointId, Endpoint>)>,
}

impl World {
    pub(crate) fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::Local { registry, change: LocalChange::Removed } => {
                self.registries.remove(&registry);
            }
            Change::Local { registry, change } => self.registries.entry(registry).or_default().apply(change),
            Change::Peer { cluster, change: PeerChange::Removed } => {
                self.peers.remove(&cluster);
            }
            Change::Peer { cluster, change } => {
                let new = || Peer { state: PeerState::Unknown, replaced: false, services: BTreeMap::new() };
                self.peers.entry(cluster).or_insert_with(new).apply(change);
            }
        }
    }

    /// A new store to which the whole is told at once, the rest of the tests' [`store`] being equal.
    pub(crate) fn told_at_once(&self) -> (Writer, Reader) {
        let (mut writer, reader) = store();
        writer.apply(self.changes(), NOW);
        (writer, reader)
    }

    /// One complete message for each registry and peer.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, registry) in &self.registries {
            let mut local = |change| changes.push(Change::Local { registry: name.clone(), change });
            local(LocalChange::Replace(registry.services.values().cloned().collect()));
            local(LocalChange::Workloads(registry.workloads.clone()));
        }
        for (name, known) in &self.peers {
            let mut peer = |change| changes.push(Change::Peer { cluster: name.clone(), change });
            peer(PeerChange::State(known.state));
            let records: Vec<_> = known.services.values().map(|(record, _)| Arc::clone(record)).collect();
            if known.replaced {
                peer(PeerChange::Replace(records));
            } else {
                records.into_iter().for_each(|record| peer(PeerChange::Upsert(record)));
            }
            for (service, (_, endpoints)) in &known.services {
                let upsert = endpoints.values().cloned().collect();
                peer(PeerChange::Endpoints { service: service.clone(), upsert, remove: Vec::new() });
            }
        }
        changes
    }
}

impl Registry {
    fn apply(&mut self, change: LocalChange) {
        match change {
            LocalChange::Upsert(service) => {
                self.services.insert(service.key().clone(), service);
            }
            LocalChange::Remove(key) => {
                self.services.remove(&key);
            }
            LocalChange::Endpoints { service, upsert, remove } => {
                let Some(known) = self.services.get_mut(&service) else { return };
                let all = known.endpoints.iter().map(|endpoint| LocalEndpoint::clone(endpoint)).chain(upsert);
                let mut endpoints: BTreeMap<EndpointId, LocalEndpoint> =
                    all.map(|endpoint| (endpoint.endpoint.id.clone(), endpoint)).collect();
                endpoints.retain(|id, _| !remove.contains(id));
                let record = ServiceRecord::clone(&known.record);
                *known = Arc::new(LocalService::new(record, known.exported, endpoints.into_values()));
            }
            LocalChange::Replace(services) => {
                self.services = services.into_iter().map(|service| (service.key().clone(), service)).collect();
            }
            LocalChange::Workloads(workloads) => self.workloads = workloads,
            LocalChange::WorkloadEdits { upsert, remove } => {
                for new in upsert {
                    self.workloads.retain(|known| known.address != new.address);
                    self.workloads.push(new);
                }
                self.workloads.retain(|known| !remove.contains(&known.address));
            }
            LocalChange::Removed => unreachable!("handled by the world"),
        }
    }
}

impl Peer {
    fn apply(&mut self, change: PeerChange) {
        match change {
            PeerChange::Upsert(record) => self.upsert(record),
            PeerChange::Remove(key) => {
                self.services.remove(&key);
            }
            PeerChange::Replace(records) => {
                self.replaced = true;
                let mut old = std::mem::take(&mut self.services);
                for record in records {
                    if let Some(known) = old.remove(&record.key) {
                        self.services.insert(record.key.clone(), known);
                    }
                    self.upsert(record);
                }
            }
            PeerChange::Endpoints { service, upsert, remove } => {
                let Some((_, endpoints)) = self.services.get_mut(&service) else { return };
                endpoints.extend(upsert.into_iter().map(|endpoint| (endpoint.id.clone(), endpoint)));
                endpoints.retain(|id, _| !remove.contains(id));
            }
            PeerChange::State(state) => self.state = state,
            PeerChange::LastHeard(since) if self.state == PeerState::Unknown => self.state = PeerState::Down { since },
            PeerChange::LastHeard(_) => {}
            PeerChange::Removed => unreachable!("handled by the world"),
        }
    }

    fn upsert(&mut self, record: Arc<ServiceRecord>) {
        let known = self.services.entry(record.key.clone()).or_insert_with(|| (Arc::clone(&record), BTreeMap::new()));
        known.0 = record;
    }
}

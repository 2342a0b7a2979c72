//! Short ways to services, endpoints, changes and rules.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use eastway_model::rules::{NameFilter, PeerRules, Rules};
use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, ClusterName, Endpoint, EndpointCondition, EndpointGroup, EndpointId, Label, LocalChange, LocalEndpoint,
    LocalService, PeerChange, PeerState, PortName, PortNumber, Protocol, ServiceKey, ServicePort, ServiceRecord,
    Subset, TlsMode, UnixMillis,
};

pub(crate) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

pub(crate) fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

pub(crate) fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

pub(crate) fn port_number(number: u16) -> PortNumber {
    NonZeroU16::new(number).unwrap()
}

pub(crate) fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: PortName::parse(name).ok(),
        number: port_number(number),
        protocol: Protocol::Tcp,
        app_protocol: None,
    }
}

/// `version: <version>`, or no labels for an empty text.
pub(crate) fn subset(version: &str) -> Subset {
    let pair = (Arc::from("version"), Arc::from(version));
    if version.is_empty() { Subset::new() } else { Subset::from([pair]) }
}

pub(crate) fn id(text: &str) -> EndpointId {
    EndpointId::parse(text).unwrap()
}

pub(crate) fn endpoint(name: &str, version: &str) -> Endpoint {
    Endpoint {
        id: id(name),
        hostname: None,
        subset: subset(version),
        zone: None,
        condition: EndpointCondition::READY,
        weight: 100,
        identity: None,
        tls: TlsMode::None,
    }
}

/// An endpoint with port 9080 and an address made from its number.
pub(crate) fn local_endpoint(number: u32, version: &str) -> LocalEndpoint {
    LocalEndpoint {
        endpoint: endpoint(&format!("e{number:05}"), version),
        address: IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 + number)),
        service_account: None,
        target_ports: [(port_number(9080).into(), 9080)].into(),
    }
}

/// An exported service with port `http` 9080.
pub(crate) fn local_service(name: &str, endpoints: impl IntoIterator<Item = LocalEndpoint>) -> LocalService {
    LocalService::new(record(name), true, endpoints)
}

/// A record with port `http` 9080 and no endpoints.
pub(crate) fn record(name: &str) -> ServiceRecord {
    ServiceRecord { exported_at: NOW, ..ServiceRecord::new(key(name), vec![port("http", 9080)]) }
}

/// A record with a group of ready endpoints for each version.
pub(crate) fn remote(name: &str, versions: &[(&str, u32)]) -> ServiceRecord {
    ServiceRecord { groups: versions.iter().map(|(version, ready)| group(version, *ready)).collect(), ..record(name) }
}

pub(crate) fn group(version: &str, ready: u32) -> EndpointGroup {
    EndpointGroup {
        zone: None,
        subset: subset(version),
        ready,
        draining: 0,
        weight: u64::from(ready) * 100,
        identities: Vec::new(),
        tls: TlsMode::None,
    }
}

pub(crate) fn local(change: LocalChange) -> Change {
    Change::Local { registry: label("hosts"), change }
}

pub(crate) fn upsert(service: LocalService) -> Change {
    local(LocalChange::Upsert(Arc::new(service)))
}

pub(crate) fn peer(cluster: &str, change: PeerChange) -> Change {
    Change::Peer { cluster: label(cluster), change }
}

pub(crate) fn peer_upsert(cluster: &str, record: ServiceRecord) -> Change {
    peer(cluster, PeerChange::Upsert(Arc::new(record)))
}

pub(crate) fn up(cluster: &str) -> Change {
    peer(cluster, PeerChange::State(PeerState::Up))
}

pub(crate) fn down(cluster: &str, since: UnixMillis) -> Change {
    peer(cluster, PeerChange::State(PeerState::Down { since }))
}

pub(crate) fn own() -> ClusterName {
    label("onprem")
}

/// Rules for peers that share namespace `bookinfo` both ways.
pub(crate) fn rules(peers: &[&str]) -> Rules {
    let filter = NameFilter::of_namespace(&label("bookinfo")).unwrap();
    let rules = |name: &&str| {
        let rules = PeerRules::new(label(name), &format!("{name}.example"), NOW);
        (label(name), Arc::new(PeerRules { export: filter.clone(), import: filter.clone(), ..rules }))
    };
    Rules { peers: peers.iter().map(rules).collect(), ..Rules::default() }
}

/// The store of cluster `onprem` with peers `gke` and `edge`, synced, empty.
pub(crate) fn store() -> (Writer, Reader) {
    let (mut writer, reader) = Writer::new(own());
    writer.await_registries([]);
    writer.set_rules(Arc::new(rules(&["edge", "gke"])));
    (writer, reader)
}

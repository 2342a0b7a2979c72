//! What a connection and a change cost: `cargo bench -p eastway-model`.
//!
//! Budget (design §11): one endpoint changed in a service of 10,000, applied and published, costs
//! at most 70 µs.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark that meets the unexpected has to fail")]

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use divan::{Bencher, black_box};
use eastway_model::routing::{PickRequest, RouteRequest, pick_endpoint, route};
use eastway_model::rules::{NameFilter, PeerRules, Rules, Split, TrafficPolicy};
use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointGroup, EndpointId, Label, LocalChange, LocalEndpoint, LocalService,
    PeerChange, PeerState, PortName, PortNumber, Protocol, ServiceKey, ServicePort, ServiceRecord, SessionAffinity,
    Subset, TlsMode, UnixMillis,
};

fn main() {
    divan::main();
}

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const REVIEWS: &str = "bookinfo/reviews";

/// Like the cluster of a real user: other services around the one that is measured.
const OTHER_SERVICES: usize = 1_000;

#[divan::bench(args = [100, 1_000, 10_000])]
fn local_endpoint_changed(bencher: Bencher, endpoints: u32) {
    let (mut writer, _reader) = mesh(endpoints);
    let mut turn = 0;
    bencher.with_inputs(|| next_local(&mut turn, endpoints)).bench_local_values(|change| {
        assert!(writer.apply([black_box(change)], NOW));
    });
}

#[divan::bench(args = [100, 1_000, 10_000])]
fn remote_endpoint_changed(bencher: Bencher, endpoints: u32) {
    let (mut writer, _reader) = mesh(endpoints);
    let mut turn = 0;
    bencher.with_inputs(|| next_remote(&mut turn, endpoints)).bench_local_values(|change| {
        assert!(writer.apply([black_box(change)], NOW));
    });
}

/// Counts of a remote service changed: what a summary update from a peer costs.
#[divan::bench]
fn snapshot_publish(bencher: Bencher) {
    let (mut writer, _reader) = mesh(10);
    let mut ready = 0;
    let next = || {
        ready += 1;
        peer(PeerChange::Upsert(Arc::new(remote(REVIEWS, &[("v2", ready)]))))
    };
    bencher.with_inputs(next).bench_local_values(|change| {
        assert!(writer.apply([black_box(change)], NOW));
    });
}

/// A registry tells a whole service anew, one endpoint of which is different.
#[divan::bench]
fn local_service_told_anew_10000(bencher: Bencher) {
    let (mut writer, _reader) = mesh(10_000);
    let mut weight = 0;
    let next = || {
        weight += 1;
        let endpoints = (0..10_000).map(|number| {
            let changed = Endpoint { weight, ..endpoint(number, true) };
            LocalEndpoint {
                endpoint: if number == 5_000 { changed } else { endpoint(number, true) },
                ..local_endpoint(number)
            }
        });
        let change = LocalChange::Upsert(Arc::new(LocalService::new(record(REVIEWS), true, endpoints)));
        Change::Local { registry: label("hosts"), change }
    };
    bencher.with_inputs(next).bench_local_values(|change| assert!(writer.apply([change], NOW)));
}

/// The last link to a peer with 1,000 services goes and comes.
#[divan::bench]
fn peer_down_or_up(bencher: Bencher) {
    let (mut writer, _reader) = mesh(10);
    let mut down = false;
    let next = || {
        down = !down;
        peer(PeerChange::State(if down { PeerState::Down { since: NOW } } else { PeerState::Up }))
    };
    bencher.with_inputs(next).bench_local_values(|change| assert!(writer.apply([change], NOW)));
}

/// What a reader pays to learn what one publication changed.
#[divan::bench]
fn changes_since(bencher: Bencher) {
    let (mut writer, reader) = mesh(10);
    let before = reader.load().version();
    writer.apply([upsert(remote(REVIEWS, &[("v2", 9)]))], NOW);
    bencher.bench_local(|| reader.load().changes_since(black_box(before)).unwrap());
}

/// A peer repeats all it has: nothing is published.
#[divan::bench]
fn replace_without_a_change(bencher: Bencher) {
    let (mut writer, _reader) = mesh(10);
    let mut records: Vec<_> = (0..OTHER_SERVICES).map(|n| Arc::new(remote(&other(n), &[("v1", 1)]))).collect();
    records.push(Arc::new(remote(REVIEWS, &[("v2", 3), ("v3", 3)])));
    writer.apply([peer(PeerChange::Replace(records.clone()))], NOW);
    bencher.with_inputs(|| records.clone()).bench_local_values(|records| {
        assert!(!writer.apply([peer(PeerChange::Replace(records))], NOW));
    });
}

#[divan::bench]
fn route_without_policy(bencher: Bencher) {
    let (_writer, reader) = mesh(10);
    bench_route(bencher, &reader);
}

#[divan::bench]
fn route_by_weights(bencher: Bencher) {
    let (mut writer, reader) = mesh(10);
    writer.set_rules(Arc::new(Rules { traffic: [(key(REVIEWS), Arc::new(policy()))].into(), ..rules() }));
    bench_route(bencher, &reader);
}

fn bench_route(bencher: Bencher, reader: &Reader) {
    let (service, mut random) = (key(REVIEWS), fastrand::Rng::with_seed(1));
    let request = RouteRequest::tcp(port());
    bencher.bench_local(|| route(&reader.load(), black_box(&service), &request, |below| random.u64(..below)).unwrap());
}

#[divan::bench(args = [3, 100, 10_000])]
fn pick(bencher: Bencher, endpoints: u32) {
    bench_pick(bencher, endpoints, None, "");
}

/// A third of the endpoints has the labels.
#[divan::bench(args = [3, 100, 10_000])]
fn pick_of_subset(bencher: Bencher, endpoints: u32) {
    bench_pick(bencher, endpoints, None, "v1");
}

#[divan::bench(args = [3, 100, 10_000])]
fn pick_sticky(bencher: Bencher, endpoints: u32) {
    bench_pick(bencher, endpoints, Some(42), "");
}

fn bench_pick(bencher: Bencher, endpoints: u32, affinity: Option<u64>, version: &str) {
    let service = local_service(endpoints);
    let (mut random, subset) = (fastrand::Rng::with_seed(1), subset(version));
    let request = PickRequest { affinity, ..PickRequest::tcp(port(), &subset) };
    bencher.bench_local(|| {
        let picked = pick_endpoint(black_box(&service), &request, |_| 0, |below| random.u64(..below));
        picked.unwrap().address
    });
}

/// Cluster `onprem` with `endpoints` of reviews, as many records of it from `gke`, and other
/// services around.
fn mesh(endpoints: u32) -> (Writer, Reader) {
    let (mut writer, reader) = Writer::new(label("onprem"));
    writer.await_registries([]);
    writer.set_rules(Arc::new(rules()));
    writer.apply([peer(PeerChange::State(PeerState::Up))], NOW);
    writer.apply((0..OTHER_SERVICES).map(|n| upsert(remote(&other(n), &[("v1", 1)]))), NOW);
    writer.apply([upsert(remote(REVIEWS, &[("v2", 3), ("v3", 3)]))], NOW);
    let change = LocalChange::Upsert(Arc::new(local_service(endpoints)));
    writer.apply([Change::Local { registry: label("hosts"), change }], NOW);
    let upsert = (0..endpoints).map(|number| endpoint(number, true)).collect();
    writer.apply([peer(PeerChange::Endpoints { service: key(REVIEWS), upsert, remove: Vec::new() })], NOW);
    (writer, reader)
}

fn next_local(turn: &mut u32, endpoints: u32) -> Change {
    let (number, ready) = next(turn, endpoints);
    let upsert = vec![LocalEndpoint { endpoint: endpoint(number, ready), ..local_endpoint(number) }];
    let change = LocalChange::Endpoints { service: key(REVIEWS), upsert, remove: Vec::new() };
    Change::Local { registry: label("hosts"), change }
}

fn next_remote(turn: &mut u32, endpoints: u32) -> Change {
    let (number, ready) = next(turn, endpoints);
    let upsert = vec![endpoint(number, ready)];
    peer(PeerChange::Endpoints { service: key(REVIEWS), upsert, remove: Vec::new() })
}

/// Endpoints far from each other, each not ready and then ready again.
fn next(turn: &mut u32, endpoints: u32) -> (u32, bool) {
    let (number, ready) = ((*turn / 2).wrapping_mul(7_919) % endpoints, *turn % 2 == 1);
    *turn += 1;
    (number, ready)
}

fn rules() -> Rules {
    let filter = NameFilter::of_namespace(&label("bookinfo")).unwrap();
    let gke = PeerRules::new(label("gke"), "gke.example", NOW);
    let gke = PeerRules { import: filter.clone(), export: filter, ..gke };
    Rules { peers: [(label("gke"), Arc::new(gke))].into(), ..Rules::default() }
}

fn policy() -> TrafficPolicy {
    let split = |weight, version| Split { weight, cluster: None, subset: Arc::new(subset(version)) };
    let split = vec![split(50, "v1"), split(30, "v2"), split(20, "v3")];
    TrafficPolicy::new("reviews", key(REVIEWS), split, Vec::new(), None).unwrap()
}

fn upsert(record: ServiceRecord) -> Change {
    peer(PeerChange::Upsert(Arc::new(record)))
}

fn peer(change: PeerChange) -> Change {
    Change::Peer { cluster: label("gke"), change }
}

fn other(number: usize) -> String {
    format!("bookinfo/other-{number}")
}

fn remote(name: &str, versions: &[(&str, u32)]) -> ServiceRecord {
    let group = |(version, ready): &(&str, u32)| EndpointGroup {
        zone: Some(Arc::from("b")),
        subset: subset(version),
        ready: *ready,
        draining: 0,
        weight: u64::from(*ready) * 100,
        identities: Vec::new(),
        tls: TlsMode::None,
    };
    ServiceRecord { groups: versions.iter().map(group).collect(), ..record(name) }
}

fn local_service(endpoints: u32) -> LocalService {
    let record = ServiceRecord { session_affinity: SessionAffinity::None, ..record(REVIEWS) };
    LocalService::new(record, true, (0..endpoints).map(local_endpoint))
}

fn record(name: &str) -> ServiceRecord {
    let port = ServicePort {
        name: PortName::parse("http").ok(),
        number: port(),
        protocol: Protocol::Tcp,
        app_protocol: Some(Arc::from("http")),
    };
    ServiceRecord { exported_at: NOW, ..ServiceRecord::new(key(name), vec![port]) }
}

fn local_endpoint(number: u32) -> LocalEndpoint {
    LocalEndpoint {
        endpoint: endpoint(number, true),
        address: IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0000 + number)),
        service_account: None,
        target_ports: [(port().into(), 9080)].into(),
    }
}

fn endpoint(number: u32, ready: bool) -> Endpoint {
    Endpoint {
        id: EndpointId::parse(&format!("reviews-v1-7f8b6c9d5-{number:05}")).unwrap(),
        hostname: None,
        subset: subset(["v1", "v2", "v3"][number as usize % 3]),
        zone: Some(Arc::from(["a", "b"][number as usize % 2])),
        condition: if ready { EndpointCondition::READY } else { EndpointCondition::DOWN },
        weight: 100,
        identity: None,
        tls: TlsMode::None,
    }
}

fn subset(version: &str) -> Subset {
    let pair = (Arc::from("version"), Arc::from(version));
    if version.is_empty() { Subset::new() } else { Subset::from([pair]) }
}

fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn port() -> PortNumber {
    NonZeroU16::new(9080).unwrap()
}

//! Where connections go. Shares are measured by drawing, so that they are those of `route` itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use eastway_model::routing::{Candidate, Route, RouteError, RouteRequest, route};
use eastway_model::rules::{ClusterRef, Locality, Rules, Split, TrafficPolicy};
use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, ClusterName, EndpointCondition, EndpointGroup, LocalEndpoint, LocalService, PeerChange, ServiceRecord,
    SessionAffinity, TlsMode, UnixMillis,
};
use proptest::prelude::*;

use super::support::*;

const NAME: &str = "bookinfo/reviews";

struct Mesh {
    writer: Writer,
    reader: Reader,
}

impl Mesh {
    /// `onprem` with one v1; `gke` and `edge` are up and export what `peers` says.
    fn new(peers: &[(&str, &[(&str, u32)])]) -> Self {
        let (mut writer, reader) = store();
        writer.apply([up("edge"), up("gke")], NOW);
        writer.apply(peers.iter().map(|(cluster, versions)| peer_upsert(cluster, remote(NAME, versions))), NOW);
        Self { writer, reader }
    }

    fn with_local(mut self, versions: &[&str]) -> Self {
        let endpoints = versions.iter().zip(1..).map(|(version, number)| local_endpoint(number, version));
        self.apply(upsert(local_service(NAME, endpoints)));
        self
    }

    fn with_policy(mut self, split: Vec<Split>, failover: &[&str], locality: Option<Locality>) -> Self {
        let failover = failover.iter().map(|name| cluster_ref(name)).collect();
        let policy = TrafficPolicy::new("reviews", key(NAME), split, failover, locality).unwrap();
        let traffic = [(key(NAME), Arc::new(policy))].into();
        self.writer.set_rules(Arc::new(Rules { traffic, ..rules(&["edge", "gke"]) }));
        self
    }

    fn apply(&mut self, change: Change) {
        self.writer.apply([change], NOW);
    }

    fn route(&self, request: &RouteRequest<'_>, seed: u64) -> Result<Route, RouteError> {
        let mut random = fastrand::Rng::with_seed(seed);
        route(&self.reader.load(), &key(NAME), request, |below| random.u64(..below))
    }

    fn to(&self, request: &RouteRequest<'_>) -> Vec<String> {
        let found = self.route(request, 1).unwrap();
        found.candidates.iter().map(shown).collect()
    }

    /// How many of 10,000 connections go where.
    fn shares(&self) -> BTreeMap<String, u32> {
        let mut random = fastrand::Rng::with_seed(7);
        let (snapshot, mut shares) = (self.reader.load_full(), BTreeMap::new());
        for _ in 0..DRAWS {
            let found = route(&snapshot, &key(NAME), &http(), |below| random.u64(..below)).unwrap();
            *shares.entry(shown(&found.candidates[0])).or_default() += 1;
        }
        shares
    }

    /// Checks the shares, in percent, within 3 σ.
    fn assert_shares(&self, expected: &[(&str, f64)]) {
        let shares = self.shares();
        let names: Vec<&str> = shares.keys().map(String::as_str).collect();
        let mut expected_names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
        expected_names.sort_unstable();
        assert_eq!(names, expected_names);
        for (name, percent) in expected {
            assert_within_3_sigma(shares[*name], percent / 100.0, name);
        }
    }
}

const DRAWS: u32 = 10_000;

fn assert_within_3_sigma(count: u32, share: f64, name: &str) {
    let mean = f64::from(DRAWS) * share;
    let sigma = (mean * (1.0 - share)).sqrt();
    assert!((f64::from(count) - mean).abs() <= 3.0 * sigma + 1e-6, "{name}: {count} of {DRAWS}, expected {mean}");
}

fn http() -> RouteRequest<'static> {
    RouteRequest::tcp(port_number(9080))
}

fn shown(candidate: &Candidate) -> String {
    let cluster = candidate.cluster.as_ref().map_or("local", ClusterName::as_str);
    let version = candidate.subset.values().next().map(|version| format!(" {version}")).unwrap_or_default();
    format!("{cluster}{version}{}", if candidate.stale { " stale" } else { "" })
}

fn cluster_ref(name: &str) -> ClusterRef {
    if name == "local" { ClusterRef::Local } else { ClusterRef::Named(label(name)) }
}

fn split(weight: u32, version: &str, cluster: &str) -> Split {
    let cluster = (!cluster.is_empty()).then(|| cluster_ref(cluster));
    Split { weight, cluster, subset: Arc::new(subset(version)) }
}

/// The bookinfo of the demo: v1 here, v2 and v3 in gke, 50/30/20.
fn bookinfo(failover: &[&str]) -> Mesh {
    let policy = vec![split(50, "v1", ""), split(30, "v2", ""), split(20, "v3", "gke")];
    Mesh::new(&[("gke", &[("v2", 1), ("v3", 1)])]).with_local(&["v1"]).with_policy(policy, failover, None)
}

#[test]
fn without_a_policy_the_own_cluster_comes_first() {
    let mesh = Mesh::new(&[("gke", &[("v2", 5)]), ("edge", &[("v3", 5)])]).with_local(&["v1"]);
    mesh.assert_shares(&[("local", 100.0)]);
    assert_eq!(mesh.to(&http()).len(), 3, "and the others are there for a retry");
}

#[test]
fn without_an_endpoint_here_peers_share_by_the_weight_of_their_ready_endpoints() {
    let mut mesh = Mesh::new(&[("gke", &[("v2", 1), ("v3", 2)]), ("edge", &[("v3", 1)])]);
    mesh.assert_shares(&[("gke", 75.0), ("edge", 25.0)]);
    let down = LocalEndpoint {
        endpoint: eastway_model::Endpoint { condition: EndpointCondition::DOWN, ..endpoint("e1", "v1") },
        ..local_endpoint(1, "v1")
    };
    mesh.apply(upsert(local_service(NAME, [down])));
    mesh.assert_shares(&[("gke", 75.0), ("edge", 25.0)]);
}

#[test]
fn locality_any_shares_over_all_clusters() {
    let mesh = Mesh::new(&[("gke", &[("v1", 3)])]).with_local(&["v1"]);
    mesh.with_policy(Vec::new(), &[], Some(Locality::Any)).assert_shares(&[("local", 25.0), ("gke", 75.0)]);
}

#[test]
fn weights_between_versions_hold_across_clusters() {
    bookinfo(&[]).assert_shares(&[("local v1", 50.0), ("gke v2", 30.0), ("gke v3", 20.0)]);
}

#[test]
fn a_split_without_a_cluster_is_shared_by_all_that_have_the_version() {
    let policy = vec![split(60, "v1", ""), split(40, "v2", "")];
    let mesh = Mesh::new(&[("gke", &[("v1", 3), ("v2", 1)]), ("edge", &[("v2", 3)])]).with_local(&["v1"]);
    let mesh = mesh.with_policy(policy, &[], None);
    mesh.assert_shares(&[("local v1", 15.0), ("gke v1", 45.0), ("gke v2", 10.0), ("edge v2", 30.0)]);
}

#[test]
fn a_split_with_prefer_local_leaves_the_cluster_only_for_what_it_does_not_have() {
    let policy = vec![split(60, "v1", ""), split(40, "v2", "")];
    let mesh = Mesh::new(&[("gke", &[("v1", 3), ("v2", 1)])]).with_local(&["v1"]);
    let mesh = mesh.with_policy(policy, &[], Some(Locality::PreferLocal));
    mesh.assert_shares(&[("local v1", 60.0), ("gke v2", 40.0)]);
}

#[test]
fn failover_and_weights_work_together_and_weights_return() {
    let mut mesh = bookinfo(&["onprem", "gke"]);
    mesh.apply(down("gke", NOW));
    mesh.assert_shares(&[("local v1", 100.0)]);
    mesh.apply(up("gke"));
    mesh.assert_shares(&[("local v1", 50.0), ("gke v2", 30.0), ("gke v3", 20.0)]);
    mesh.apply(upsert(local_service(NAME, [])));
    // The order says gke, and there v2 and v3 take the share of v1 by their own weights.
    mesh.assert_shares(&[("gke v2", 60.0), ("gke v3", 40.0)]);
}

#[test]
fn the_share_of_a_lost_version_goes_to_the_other_splits_by_their_weights() {
    let mut mesh = bookinfo(&[]);
    mesh.apply(peer_upsert("gke", remote(NAME, &[("v2", 0), ("v3", 1)])));
    mesh.assert_shares(&[("local v1", 50.0 + 30.0 * 5.0 / 7.0), ("gke v3", 20.0 + 30.0 * 2.0 / 7.0)]);
}

#[test]
fn the_share_of_a_lost_version_goes_to_the_same_version_elsewhere_first() {
    let mut mesh = bookinfo(&[]);
    mesh.apply(peer_upsert("edge", remote(NAME, &[("v3", 1)])));
    mesh.assert_shares(&[("local v1", 50.0), ("gke v2", 30.0), ("gke v3", 20.0)]);
    mesh.apply(peer_upsert("gke", remote(NAME, &[("v2", 1)])));
    mesh.assert_shares(&[("local v1", 50.0), ("gke v2", 30.0), ("edge v3", 20.0)]);
}

#[test]
fn a_failover_order_decides_who_takes_a_lost_share() {
    let mesh = |order: &[&str]| {
        let policy = vec![split(100, "", "gke")];
        let mut mesh = Mesh::new(&[("gke", &[("v1", 1)]), ("edge", &[("v1", 1)])]).with_local(&["v1"]);
        mesh = mesh.with_policy(policy, order, None);
        mesh.assert_shares(&[("gke", 100.0)]);
        mesh.apply(down("gke", NOW));
        mesh
    };
    mesh(&["edge", "local"]).assert_shares(&[("edge", 100.0)]);
    mesh(&["local", "edge"]).assert_shares(&[("local", 100.0)]);
    mesh(&["onprem", "edge"]).assert_shares(&[("local", 100.0)]);
    let mut last = mesh(&["gke", "edge"]);
    last.assert_shares(&[("edge", 100.0)]);
    last.apply(peer("edge", PeerChange::Removed));
    last.assert_shares(&[("gke stale", 100.0)]);
}

#[test]
fn a_failover_order_without_splits_follows_the_own_cluster() {
    let mut mesh = Mesh::new(&[("gke", &[("v1", 1)]), ("edge", &[("v1", 9)])]).with_local(&["v1"]);
    mesh = mesh.with_policy(Vec::new(), &["gke"], None);
    mesh.assert_shares(&[("local", 100.0)]);
    assert_eq!(mesh.to(&http()), ["local", "gke"], "edge is not in the order");
    mesh.apply(upsert(local_service(NAME, [])));
    mesh.assert_shares(&[("gke", 100.0)]);
}

#[test]
fn a_named_failover_cluster_takes_over_with_whatever_version_it_has() {
    let policy = vec![split(100, "v3", "gke")];
    let mut mesh = Mesh::new(&[("gke", &[("v3", 1)])]).with_local(&["v1"]).with_policy(policy, &["local"], None);
    mesh.apply(down("gke", NOW));
    mesh.assert_shares(&[("local", 100.0)]);
}

#[test]
fn a_version_that_no_split_names_gets_nothing_unless_its_cluster_is_named() {
    let policy = vec![split(100, "v3", "gke")];
    let mut mesh = Mesh::new(&[("gke", &[("v3", 0)])]).with_local(&["v1"]).with_policy(policy, &[], None);
    assert_eq!(mesh.route(&http(), 1), Err(RouteError::NoEndpoints));
    mesh.apply(peer_upsert("gke", remote(NAME, &[("v3", 1)])));
    mesh.assert_shares(&[("gke v3", 100.0)]);
}

#[test]
fn a_split_of_weight_zero_gets_nothing_even_when_all_others_are_gone() {
    let policy = vec![split(100, "v2", ""), split(0, "v1", "")];
    let mut mesh = Mesh::new(&[("gke", &[("v2", 1)])]).with_local(&["v1"]).with_policy(policy, &[], None);
    mesh.assert_shares(&[("gke v2", 100.0)]);
    mesh.apply(peer("gke", PeerChange::Removed));
    assert_eq!(mesh.route(&http(), 1), Err(RouteError::NoEndpoints));
}

#[test]
fn a_cluster_that_is_down_is_used_when_nothing_else_is_left() {
    let mut mesh = Mesh::new(&[("gke", &[("v1", 1)]), ("edge", &[("v1", 1)])]);
    mesh.apply(down("gke", NOW));
    mesh.assert_shares(&[("edge", 100.0)]);
    assert_eq!(mesh.to(&http()), ["edge", "gke stale"]);
    mesh.apply(down("edge", NOW));
    mesh.assert_shares(&[("edge stale", 50.0), ("gke stale", 50.0)]);
}

#[test]
fn draining_endpoints_take_over_before_clusters_that_are_down() {
    let draining = EndpointGroup { ready: 0, draining: 2, weight: 0, ..group("v1", 0) };
    let record = ServiceRecord { groups: vec![draining], ..record(NAME) };
    let mut mesh = Mesh::new(&[("gke", &[("v1", 1)])]);
    mesh.apply(peer_upsert("edge", record));
    mesh.assert_shares(&[("gke", 100.0)]);
    mesh.apply(down("gke", NOW));
    mesh.assert_shares(&[("edge", 100.0)]);
}

#[test]
fn near_clusters_take_precedence_where_locality_counts() {
    let zoned = |zone: &str| {
        let group = EndpointGroup { zone: Some(Arc::from(zone)), ..group("v1", 1) };
        ServiceRecord { groups: vec![group], ..record(NAME) }
    };
    let mut mesh = Mesh::new(&[]);
    mesh.apply(peer_upsert("gke", zoned("a")));
    mesh.apply(peer_upsert("edge", zoned("b")));
    for (zone, expected) in [("a", ["gke", "edge"]), ("b", ["edge", "gke"])] {
        let request = RouteRequest { zone: Some(zone), ..http() };
        assert_eq!(mesh.to(&request), expected);
    }
    mesh.assert_shares(&[("edge", 50.0), ("gke", 50.0)]);
}

#[test]
fn a_port_is_routed_only_to_clusters_that_have_it() {
    let mut mesh = Mesh::new(&[("gke", &[("v1", 1)])]);
    let admin =
        ServiceRecord { groups: vec![group("v1", 1)], ..ServiceRecord::new(key(NAME), vec![port("admin", 81)]) };
    mesh.apply(peer_upsert("edge", admin));
    assert_eq!(mesh.to(&http()), ["gke"]);
    assert_eq!(mesh.to(&RouteRequest::tcp(port_number(81))), ["edge"]);
    assert_eq!(mesh.route(&RouteRequest::tcp(port_number(82)), 1), Err(RouteError::UnknownPort));
    let udp = RouteRequest { protocol: eastway_model::Protocol::Udp, ..http() };
    assert_eq!(mesh.route(&udp, 1), Err(RouteError::UnknownPort));
}

#[test]
fn a_client_without_tls_goes_where_it_is_taken_and_is_told_if_there_is_no_such_place() {
    let speaking =
        |tls: TlsMode| ServiceRecord { groups: vec![EndpointGroup { tls, ..group("v1", 1) }], ..record(NAME) };
    let mut mesh = Mesh::new(&[]);
    mesh.apply(peer_upsert("gke", speaking(TlsMode::MeshStrict)));
    mesh.apply(peer_upsert("edge", speaking(TlsMode::Mesh)));
    let plain = RouteRequest { plain: true, ..http() };
    assert_eq!(mesh.to(&plain), ["edge"]);
    assert_eq!(mesh.to(&http()).len(), 2, "with a sidecar both");
    mesh.apply(peer_upsert("edge", speaking(TlsMode::IstioStrict)));
    assert_eq!(mesh.route(&plain, 1), Err(RouteError::TlsRequired));
    mesh.apply(peer_upsert("edge", speaking(TlsMode::None)));
    assert_eq!(mesh.to(&plain), ["edge"]);
    let nobody = EndpointGroup { ready: 0, tls: TlsMode::MeshStrict, ..group("v1", 0) };
    mesh.apply(peer_upsert("gke", ServiceRecord { groups: vec![nobody], ..record(NAME) }));
    mesh.apply(peer("edge", PeerChange::Removed));
    assert_eq!(mesh.route(&plain, 1), Err(RouteError::NoEndpoints), "TLS would not help");
}

#[test]
fn a_request_for_a_cluster_or_a_subset_stays_there() {
    let mesh = bookinfo(&[]);
    let (gke, own, edge, v3) = (label("gke"), own(), label("edge"), Arc::new(subset("v3")));
    assert_eq!(mesh.to(&http().to_cluster(&own)), ["local v1"]);
    assert!(mesh.to(&http().to_cluster(&gke)).iter().all(|candidate| candidate.starts_with("gke")));
    assert_eq!(mesh.route(&http().to_cluster(&edge), 1), Err(RouteError::UnknownCluster));
    assert_eq!(mesh.to(&RouteRequest { subset: Some(&v3), ..http() }), ["gke v3"]);
    let none = Arc::new(subset("v9"));
    assert_eq!(mesh.route(&RouteRequest { subset: Some(&none), ..http() }, 1), Err(RouteError::NoEndpoints));
}

#[test]
fn a_named_endpoint_is_reached_in_its_cluster_or_not_at_all() {
    let mut mesh = Mesh::new(&[("gke", &[("v1", 1)])]).with_local(&["v1"]);
    let (gke, known, unknown) = (label("gke"), id("e00001"), id("e99999"));
    let named = |cluster, endpoint| RouteRequest { cluster, endpoint: Some(endpoint), ..http() };
    assert_eq!(mesh.route(&named(None, &unknown), 1), Err(RouteError::NoEndpoints));
    let found = mesh.route(&named(None, &known), 1).unwrap();
    assert_eq!((found.candidates.len(), found.candidates[0].endpoint.as_ref()), (1, Some(&known)));
    let found = mesh.route(&named(Some(&gke), &unknown), 1).unwrap();
    assert_eq!(found.candidates[0].cluster, Some(label("gke")), "without records only the owner knows");
    let upsert = vec![endpoint("e00001", "v1")];
    mesh.apply(peer("gke", PeerChange::Endpoints { service: key(NAME), upsert, remove: Vec::new() }));
    assert_eq!(mesh.route(&named(Some(&gke), &unknown), 1), Err(RouteError::NoEndpoints));
    assert!(mesh.route(&named(Some(&gke), &known), 1).is_ok());
}

#[test]
fn a_service_that_is_not_exported_has_no_route() {
    let mut mesh = Mesh::new(&[]);
    assert_eq!(mesh.route(&http(), 1), Err(RouteError::UnknownService));
    mesh.apply(upsert(LocalService { exported: false, ..local_service(NAME, [local_endpoint(1, "v1")]) }));
    assert_eq!(mesh.route(&http(), 1), Err(RouteError::UnknownService));
}

#[test]
fn candidates_are_distinct_and_at_most_four() {
    let versions: &[(&str, u32)] = &[("v1", 1), ("v2", 1), ("v3", 1)];
    let policy = ["v1", "v2", "v3"].map(|version| split(1, version, "")).to_vec();
    let mesh = Mesh::new(&[("gke", versions), ("edge", versions)]).with_policy(policy, &[], None);
    for seed in 0..100 {
        let mut candidates: Vec<_> = mesh.route(&http(), seed).unwrap().candidates.iter().map(shown).collect();
        assert_eq!(candidates.len(), 4);
        candidates.sort_unstable();
        candidates.dedup();
        assert_eq!(candidates.len(), 4);
    }
}

fn client(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number))
}

#[test]
fn a_sticky_service_sends_a_client_where_it_was_and_moves_few_when_clusters_go() {
    let sticky = |versions: &[(&str, u32)]| ServiceRecord {
        session_affinity: SessionAffinity::ClientIp { timeout: Duration::from_secs(10) },
        ..remote(NAME, versions)
    };
    let mut mesh = Mesh::new(&[]);
    mesh.apply(peer_upsert("gke", sticky(&[("v1", 1)])));
    mesh.apply(peer_upsert("edge", sticky(&[("v1", 3)])));
    let of = |mesh: &Mesh, number: u32, seed: u64| {
        let found = mesh.route(&http().from_client(client(number)), seed).unwrap();
        assert!(found.affinity.is_some());
        shown(&found.candidates[0])
    };
    let before: Vec<String> = (0..DRAWS).map(|number| of(&mesh, number, 1)).collect();
    assert!((0..100).all(|number| of(&mesh, number, 99) == before[number as usize]), "chance has no part in it");
    let at_gke = before.iter().filter(|cluster| *cluster == "gke").count();
    assert_within_3_sigma(u32::try_from(at_gke).unwrap(), 0.25, "gke");
    mesh.apply(down("edge", NOW));
    assert!((0..DRAWS).all(|number| of(&mesh, number, 1) == "gke"));
    mesh.apply(up("edge"));
    assert!((0..DRAWS).all(|number| of(&mesh, number, 1) == before[number as usize]), "everyone comes back");
    mesh.apply(peer_upsert("edge", sticky(&[("v1", 4)])));
    let moved = (0..DRAWS).filter(|number| of(&mesh, *number, 1) != before[*number as usize]);
    let moved = u32::try_from(moved.count()).unwrap();
    // From 25 % to 20 %: one in twenty, all of them from gke to edge.
    assert_within_3_sigma(moved, 0.05, "moved");
}

#[test]
fn a_sticky_service_keeps_its_weights_when_splits_fail_over() {
    let mut mesh = bookinfo(&["onprem"]);
    let sticky = SessionAffinity::ClientIp { timeout: Duration::from_secs(10) };
    let record =
        ServiceRecord { session_affinity: sticky, exported_at: UnixMillis(0), ..remote(NAME, &[("v2", 0), ("v3", 1)]) };
    mesh.apply(peer_upsert("gke", record));
    let to = |number: u32| shown(&mesh.route(&http().from_client(client(number)), 1).unwrap().candidates[0]);
    let local = (0..DRAWS).filter(|number| to(*number) == "local v1").count();
    // Its own 50 and the 30 of v2, as two shares of one place.
    assert_within_3_sigma(u32::try_from(local).unwrap(), 0.8, "local");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any weights, with or without lost versions: shares are those of what is left.
    #[test]
    fn shares_are_proportional_to_weights(weights in proptest::collection::vec((0..100_u32, any::<bool>()), 2..6)) {
        let version = |index: usize| format!("v{index}");
        let alive = |index: &usize| weights[*index].1;
        let total: u32 = (0..weights.len()).filter(alive).map(|index| weights[index].0).sum();
        prop_assume!(total > 0);
        let policy = weights.iter().enumerate().map(|(index, (weight, _))| split(*weight, &version(index), "")).collect();
        let names: Vec<String> = (0..weights.len()).filter(alive).map(version).collect();
        let versions: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let mesh = Mesh::new(&[("gke", &versions)]).with_policy(policy, &[], None);
        let shares = mesh.shares();
        for (index, (weight, alive)) in weights.iter().enumerate() {
            let count = shares.get(&format!("gke v{index}")).copied().unwrap_or_default();
            let share = if *alive { f64::from(*weight) / f64::from(total) } else { 0.0 };
            let mean = f64::from(DRAWS) * share;
            // 4.5 σ: hundreds of shares are looked at.
            prop_assert!((f64::from(count) - mean).abs() <= 4.5 * (mean * (1.0 - share)).sqrt() + 1e-6);
        }
    }
}

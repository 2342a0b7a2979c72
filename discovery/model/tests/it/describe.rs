//! Explanations: the same shares as routes, and a reason for everything that gets none.

use std::sync::Arc;

use eastway_model::describe::{Explanation, RejectReason, explain};
use eastway_model::routing::{PickReject, RouteRequest, route};
use eastway_model::rules::{Locality, Rules, Split, TrafficPolicy};
use eastway_model::store::{Reader, Writer};
use eastway_model::{Endpoint, EndpointCondition, LocalEndpoint, LocalService, PeerChange, ServiceRecord};

use super::support::*;

const NAME: &str = "bookinfo/reviews";

fn http() -> RouteRequest<'static> {
    RouteRequest::tcp(port_number(9080))
}

fn explained(reader: &Reader, request: &RouteRequest<'_>) -> Explanation {
    explain(&reader.load(), &key(NAME), request)
}

fn bookinfo(policy: &[(u32, &str)], locality: Option<Locality>) -> (Writer, Reader) {
    let (mut writer, reader) = store();
    writer.apply([up("gke"), up("edge")], NOW);
    writer.apply([upsert(local_service(NAME, [local_endpoint(1, "v1"), local_endpoint(2, "v1")]))], NOW);
    writer.apply([peer_upsert("gke", remote(NAME, &[("v2", 1), ("v3", 1)]))], NOW);
    if !policy.is_empty() {
        let split = |(weight, version): &(u32, &str)| Split {
            weight: *weight,
            cluster: None,
            subset: Arc::new(subset(version)),
        };
        let split = policy.iter().map(split).collect();
        let policy = TrafficPolicy::new("reviews", key(NAME), split, Vec::new(), locality).unwrap();
        let traffic = [(key(NAME), Arc::new(policy))].into();
        writer.set_rules(Arc::new(Rules { traffic, ..rules(&["edge", "gke"]) }));
    }
    (writer, reader)
}

fn reasons(explanation: &Explanation) -> Vec<(String, String, RejectReason)> {
    let version = |rejected: &eastway_model::describe::Rejected| {
        rejected.subset.values().next().map(ToString::to_string).unwrap_or_default()
    };
    explanation.rejected.iter().map(|each| (each.cluster.to_string(), version(each), each.reason)).collect()
}

#[test]
fn an_explanation_reads_well() {
    let (mut writer, reader) = bookinfo(&[(50, "v1"), (30, "v2"), (20, "v3"), (0, "v4")], None);
    let sick = Endpoint { condition: EndpointCondition::DOWN, ..endpoint("e00003", "v1") };
    let sick = LocalEndpoint { endpoint: sick, ..local_endpoint(3, "v1") };
    let v2 = local_endpoint(4, "v2");
    let endpoints = [local_endpoint(1, "v1"), local_endpoint(2, "v1"), sick, v2];
    writer.apply([upsert(local_service(NAME, endpoints))], NOW);
    writer.apply([down("gke", NOW)], NOW);
    let explanation = Explanation { version: 1, ..explained(&reader, &http()) };
    insta::assert_json_snapshot!(explanation);
}

#[test]
fn shares_are_those_of_the_routes() {
    let (_writer, reader) = bookinfo(&[(50, "v1"), (30, "v2"), (20, "v3")], None);
    let explanation = explained(&reader, &http());
    let mut random = fastrand::Rng::with_seed(1);
    let snapshot = reader.load_full();
    let drawn: Vec<_> = (0..10_000)
        .map(|_| route(&snapshot, &key(NAME), &http(), |below| random.u64(..below)).unwrap().candidates.remove(0))
        .collect();
    let total: f64 = explanation.candidates.iter().map(|candidate| candidate.share_percent).sum();
    assert!((total - 100.0).abs() < 1e-9);
    for candidate in explanation.candidates {
        let cluster = (!candidate.local).then_some(candidate.cluster);
        let count = drawn.iter().filter(|drawn| drawn.cluster == cluster && *drawn.subset == candidate.subset).count();
        let (mean, share) = (candidate.share_percent * 100.0, candidate.share_percent / 100.0);
        assert!((count as f64 - mean).abs() <= 3.0 * (mean * (1.0 - share)).sqrt());
        let endpoints: f64 = candidate.endpoints.iter().filter_map(|endpoint| endpoint.share_percent).sum();
        assert!(!candidate.local || (endpoints - candidate.share_percent).abs() < 1e-9);
    }
}

#[test]
fn every_reason_is_given_where_it_applies() {
    let (mut writer, reader) = bookinfo(&[], None);
    let reason = |reader: &Reader, request: &RouteRequest<'_>| reasons(&explained(reader, request));
    let gke = |reason| vec![("gke".to_owned(), String::new(), reason)];
    assert_eq!(reason(&reader, &http()), gke(RejectReason::FartherAway));
    writer.apply([down("gke", NOW)], NOW);
    assert_eq!(reason(&reader, &http()), gke(RejectReason::PeerDown));
    writer.apply([up("gke"), peer_upsert("gke", remote(NAME, &[("v2", 0)]))], NOW);
    assert_eq!(reason(&reader, &http()), gke(RejectReason::NoReadyEndpoint));
    let other_port =
        ServiceRecord { groups: vec![group("v2", 1)], ..ServiceRecord::new(key(NAME), vec![port("x", 1)]) };
    writer.apply([peer_upsert("gke", other_port)], NOW);
    assert_eq!(reason(&reader, &http()), gke(RejectReason::PortNotOffered));
    let own = own();
    assert_eq!(reason(&reader, &http().to_cluster(&own)), gke(RejectReason::NotRequested));

    let (_writer, reader) = bookinfo(&[(1, "v1"), (0, "v2")], None);
    let zero = |cluster: &str| (cluster.to_owned(), "v2".to_owned(), RejectReason::WeightZero);
    let not_found = ("gke".to_owned(), "v1".to_owned(), RejectReason::SubsetNotFound);
    assert_eq!(reason(&reader, &http()), vec![not_found, zero("onprem"), zero("gke")]);
}

#[test]
fn splits_and_failover_that_name_other_clusters_are_told() {
    let (mut writer, reader) = bookinfo(&[], None);
    writer.apply([peer_upsert("edge", remote(NAME, &[("v1", 1)]))], NOW);
    let policy = |split: Vec<Split>, failover: &[&str]| {
        let failover = failover.iter().map(|name| eastway_model::rules::ClusterRef::Named(label(name))).collect();
        let policy = TrafficPolicy::new("reviews", key(NAME), split, failover, None).unwrap();
        let traffic = [(key(NAME), Arc::new(policy))].into();
        Arc::new(Rules { traffic, ..rules(&["edge", "gke"]) })
    };
    let of = |cluster: &str, reason| (cluster.to_owned(), String::new(), reason);
    writer.set_rules(policy(Vec::new(), &["gke"]));
    let expected = [of("edge", RejectReason::NotInFailover), of("gke", RejectReason::FartherAway)];
    assert_eq!(reasons(&explained(&reader, &http())), expected);
    let gke = Some(eastway_model::rules::ClusterRef::Named(label("gke")));
    writer.set_rules(policy(vec![Split { weight: 1, cluster: gke, subset: Arc::default() }], &[]));
    let expected = [of("onprem", RejectReason::OtherCluster), of("edge", RejectReason::OtherCluster)];
    assert_eq!(reasons(&explained(&reader, &http())), expected);
}

#[test]
fn errors_are_part_of_the_explanation() {
    let (mut writer, reader) = bookinfo(&[(1, "v9")], None);
    let error = |reader: &Reader, request: &RouteRequest<'_>| explained(reader, request).error;
    assert_eq!(error(&reader, &http()).as_deref(), Some("no endpoint is left"));
    assert_eq!(explained(&reader, &http()).policy.as_deref(), Some("TrafficPolicy bookinfo/reviews"));
    let odd = RouteRequest::tcp(port_number(1));
    assert_eq!(error(&reader, &odd).as_deref(), Some("the service has no such port"));
    writer.apply([peer("gke", PeerChange::Removed)], NOW);
    writer.apply([upsert(LocalService { exported: false, ..local_service(NAME, []) })], NOW);
    let expected = "no such import: it exists in this cluster, but is not exported";
    assert_eq!(error(&reader, &http()).as_deref(), Some(expected));
    writer.apply([local(eastway_model::LocalChange::Remove(key(NAME)))], NOW);
    assert_eq!(error(&reader, &http()).as_deref(), Some("no such import"));
}

#[test]
fn a_named_endpoint_is_explained_alone() {
    let (_writer, reader) = bookinfo(&[], None);
    let wanted = id("e00002");
    let explanation = explained(&reader, &RouteRequest { endpoint: Some(&wanted), ..http() });
    let [candidate] = explanation.candidates.as_slice() else { panic!("{explanation:?}") };
    assert!(candidate.local);
    let reasons: Vec<_> = candidate.endpoints.iter().map(|endpoint| (endpoint.id.as_str(), endpoint.reason)).collect();
    assert_eq!(reasons, [("e00001", Some(PickReject::NotRequested)), ("e00002", None)]);
}

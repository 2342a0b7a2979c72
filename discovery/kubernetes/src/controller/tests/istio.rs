//! What istiod is told of an import.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eastway_model::{
    EndpointGroup, LocalEndpoint, LocalService, PeerChange, PeerState, ServiceRecord, Subset, TlsMode, WorkloadIdentity,
};
use serde_json::Value;

use super::rig::*;
use crate::controller::desired::Istio;
use crate::controller::object::{Kind, Observed};
use crate::controller::selection::Selection;

/// Endpoints of `gke` with a sidecar of Istio.
fn version(version: &str, zone: Option<&str>, ready: u32) -> EndpointGroup {
    EndpointGroup {
        zone: zone.map(Arc::from),
        subset: Subset::from_iter([(Arc::from("version"), Arc::from(version))]),
        identities: WorkloadIdentity::parse("spiffe://gke.example/ns/shop/sa/cart").into_iter().collect(),
        tls: TlsMode::Istio,
        ..group(ready)
    }
}

fn exported(groups: Vec<EndpointGroup>) -> ServiceRecord {
    ServiceRecord { groups, ..record(5, &[("http", 80)]) }
}

fn selection(labels: &[(&str, &str)]) -> Arc<Selection> {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Arc::new(Selection { labels, target_names: BTreeMap::from([("web".to_owned(), 80)]) })
}

/// Beside Istio, which calls the peers' networks `net-gke` and `net-aks`.
fn rig() -> Rig {
    let network = |name: &str| (label(name), label(&format!("net-{name}")));
    let mut rig = Rig::new();
    rig.istio = Some(Istio { networks: ["gke", "aks"].map(network).into(), ..Istio::default() });
    rig.apply(["gke", "aks"].map(|peer| from_peer(peer, PeerChange::State(PeerState::Up))));
    rig
}

/// With a Service of this cluster that is exported and has an endpoint.
fn stretched(groups: Vec<EndpointGroup>) -> Rig {
    let mut rig = rig();
    rig.export();
    let endpoint = LocalEndpoint {
        endpoint: endpoint("e-1", "", true),
        address: [10, 244, 0, 9].into(),
        service_account: None,
        target_ports: [(number(80).into(), 8080)].into(),
    };
    let own = LocalService::new(record(9, &[("http", 80)]), true, [endpoint]);
    rig.apply([upsert(own), complete("gke", vec![exported(groups)]), complete("aks", vec![])]);
    rig.seen.selection = Some(selection(&[("app", "cart")]));
    rig.seen.neighbours = vec![("cart".to_owned(), selection(&[("app", "cart")]))];
    rig
}

fn entries(rig: &Rig, kind: Kind) -> Vec<&Observed> {
    rig.seen.entries.iter().filter(|((of, _), _)| *of == kind).map(|(_, entry)| entry).collect()
}

/// Version and weight of each WorkloadEntry.
fn weights(rig: &Rig) -> Vec<(String, u64)> {
    let all = entries(rig, Kind::WorkloadEntry);
    let one =
        |entry: &&Observed| (entry.text("/spec/labels/version").to_owned(), entry.at("/spec/weight").as_u64().unwrap());
    let mut weights: Vec<_> = all.iter().map(one).collect();
    weights.sort();
    weights
}

fn has_address(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(key, value)| key == "address" || has_address(value)),
        Value::Array(items) => items.iter().any(has_address),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[test]
fn i1_a_stretched_service_gains_endpoints_without_an_address() {
    let mut rig = stretched(vec![version("v2", Some("west-1"), 3), version("v3", None, 1), version("v4", None, 0)]);
    rig.settle();
    assert_eq!(weights(&rig), [("v2".to_owned(), 3), ("v3".to_owned(), 1)]);
    let all = entries(&rig, Kind::WorkloadEntry);
    assert!(all.iter().all(|entry| !has_address(entry.body())));
    let named = entries(&rig, Kind::ServiceEntry);
    let [named] = named.as_slice() else { panic!("{:?}", rig.done) };
    assert_eq!(named.text("/spec/hosts/0"), "cart.shop.svc.clusterset.local");
    assert_eq!(named.at("/spec/addresses"), rig.import().at("/spec/ips"));
    assert_eq!(named.at("/spec/workloadSelector/labels").to_string(), r#"{"app":"cart"}"#, "pods here and the entries");
    assert_eq!(named.at("/spec/ports/0/targetPort"), 8080, "where pods here listen");
    assert!(named.at("/spec/endpoints").is_null());
    insta::assert_json_snapshot!(all.iter().map(|entry| entry.body()).collect::<Vec<_>>());
}

#[test]
fn weights_follow_the_number_of_endpoints() {
    let mut rig = stretched(vec![version("v2", None, 3)]);
    rig.settle();
    rig.apply([from_peer("gke", PeerChange::Upsert(Arc::new(exported(vec![version("v2", None, 7)]))))]);
    rig.done.clear();
    rig.settle();
    assert_eq!(weights(&rig), [("v2".to_owned(), 7)]);
    assert_eq!(rig.done.len(), 1, "one entry is written, and nothing else: {:?}", rig.done);
    // One that claims more than its endpoints could have gets no more than that.
    let greedy = EndpointGroup { weight: u64::MAX, ..version("v2", None, 1) };
    rig.apply([from_peer("gke", PeerChange::Upsert(Arc::new(exported(vec![greedy]))))]);
    rig.settle();
    assert_eq!(weights(&rig), [("v2".to_owned(), 100_000)]);
}

#[test]
fn what_is_withdrawn_is_told_no_more_and_what_is_not_heard_of_stays() {
    let mut rig = stretched(vec![version("v2", None, 3)]);
    rig.settle();
    let before = rig.seen.entries.clone();
    // A controller that has just begun knows nothing of the peer.
    rig = rig.restart();
    rig.settle();
    assert_eq!(rig.seen.entries, before);
    let mut rig = stretched(vec![version("v2", None, 3)]);
    rig.settle();
    rig.apply([complete("gke", vec![])]);
    rig.settle();
    assert!(rig.seen.entries.is_empty(), "{:?}", rig.done);
}

#[test]
fn a_peer_that_is_down_leaves_the_service_while_others_are_there() {
    let mut rig = stretched(vec![version("v2", None, 3)]);
    rig.settle();
    let down = || from_peer("gke", PeerChange::State(PeerState::Down { since: NOW }));
    rig.apply([down()]);
    rig.settle();
    assert!(weights(&rig).is_empty());
    assert_eq!(entries(&rig, Kind::ServiceEntry).len(), 1, "its name leads to those that are here");
    rig.apply([from_peer("gke", PeerChange::State(PeerState::Up))]);
    rig.settle();
    assert_eq!(weights(&rig), [("v2".to_owned(), 3)]);
    // Where it is the only one, the last that is known of it stays.
    let mut rig = self::rig();
    rig.apply([complete("gke", vec![exported(vec![version("v2", None, 3)])])]);
    rig.settle();
    let before = rig.seen.entries.clone();
    rig.apply([down()]);
    rig.settle();
    assert_eq!(rig.seen.entries, before);
}

#[test]
fn i1_a_service_that_only_peers_have_is_a_service_entry_at_our_address() {
    let mut rig = rig();
    let own = BTreeSet::from(["cart.shop.example".into()]);
    rig.istio.as_mut().unwrap().names.insert(key(), own);
    rig.apply([complete("gke", vec![exported(vec![version("v1", Some("west-1"), 2)])]), complete("aks", vec![])]);
    rig.settle();
    let all = entries(&rig, Kind::ServiceEntry);
    let [entry] = all.as_slice() else { panic!("{:?}", rig.done) };
    assert_eq!(entry.at("/spec/addresses"), rig.import().at("/spec/ips"));
    assert!(!has_address(entry.at("/spec/endpoints")));
    insta::assert_json_snapshot!(entry.body());
    let derived = rig.seen.services.values().next().unwrap();
    assert_eq!(derived.at("/metadata/annotations")["networking.istio.io/exportTo"], "~", "one has the address");
    // A pod without a sidecar, and all of it goes by its address again.
    rig.apply([from_peer("gke", PeerChange::Upsert(Arc::new(exported(vec![version("v1", None, 2), group(1)]))))]);
    rig.settle();
    assert!(rig.seen.entries.is_empty());
    let derived = rig.seen.services.values().next().unwrap();
    assert!(derived.at("/metadata/annotations")["networking.istio.io/exportTo"].is_null());
}

#[test]
fn i6_nothing_joins_a_service_that_did_not_ask_for_it() {
    // A Service whose selector would take them as well.
    let mut rig = stretched(vec![version("v2", None, 3)]);
    rig.seen.neighbours.push(("cart-v2".to_owned(), selection(&[("app", "cart"), ("version", "v2")])));
    rig.settle();
    assert!(rig.seen.entries.is_empty());
    let (_, _, message) = rig.condition(rig.import(), "Ready");
    assert!(message.contains("the Service cart-v2 here would get endpoints of other clusters"), "{message}");
    // One of another version does not.
    rig.seen.neighbours.pop();
    rig.seen.neighbours.push(("cart-v1".to_owned(), selection(&[("app", "cart"), ("version", "v1")])));
    rig.settle();
    assert_eq!(weights(&rig), [("v2".to_owned(), 3)]);
    // A Service of this cluster that selects one version gets no other.
    rig.seen.selection = Some(selection(&[("app", "cart"), ("version", "v1")]));
    rig.settle();
    assert!(rig.seen.entries.is_empty());
    // And one that is not exported keeps to itself: what only peers export has a name of its own.
    let mut rig = stretched(vec![version("v2", None, 3)]);
    rig.apply([remove()]);
    rig.settle();
    assert!(entries(&rig, Kind::WorkloadEntry).is_empty());
    assert_eq!(entries(&rig, Kind::ServiceEntry).len(), 1);
}

#[test]
fn who_proves_nothing_is_not_told_of() {
    let nobody = EndpointGroup { identities: Vec::new(), ..version("v2", None, 1) };
    let elsewhere = WorkloadIdentity::parse("spiffe://gke.example/ns/other/sa/cart");
    let stranger = EndpointGroup { identities: elsewhere.into_iter().collect(), ..version("v3", None, 1) };
    let plain = EndpointGroup { tls: TlsMode::None, ..version("v4", None, 1) };
    let mut rig = stretched(vec![nobody, stranger, plain]);
    rig.settle();
    assert!(rig.seen.entries.is_empty());
}

#[test]
fn i6_labels_that_mean_something_here_are_not_a_peers_to_say() {
    let said = [
        ("version", "v2"),
        ("security.istio.io/tlsMode", "disabled"),
        ("networking.istio.io/tunnel", "http"),
        ("topology.kubernetes.io/region", "here"),
        ("eastway.dev/import", "mail"),
    ];
    let subset = Subset::from_iter(said.map(|(key, value)| (Arc::from(key), Arc::from(value))));
    let mut rig = stretched(vec![EndpointGroup { subset, ..version("v2", None, 1) }]);
    rig.settle();
    let all = entries(&rig, Kind::WorkloadEntry);
    let labels = all[0].at("/spec/labels");
    let expected = serde_json::json!({"app": "cart", "version": "v2", "security.istio.io/tlsMode": "istio"});
    assert_eq!(*labels, expected);
}

#[test]
fn i8_of_too_many_kinds_of_endpoints_some_are_told_and_it_is_said() {
    let many = |peer: &str| {
        let groups = (0..300).map(|number| version(&format!("{peer}-{number}"), None, 1));
        complete(peer, vec![exported(groups.collect())])
    };
    let is_said = |rig: &Rig| {
        let (_, _, message) = rig.condition(rig.import(), "Ready");
        assert!(message.contains("told of 500 kinds of its endpoints elsewhere, and not of 100 more"), "{message}");
    };
    let mut rig = stretched(vec![]);
    rig.apply([many("gke"), many("aks")]);
    rig.settle();
    assert_eq!(entries(&rig, Kind::WorkloadEntry).len(), 500);
    is_said(&rig);
    let mut rig = self::rig();
    rig.apply([many("gke"), many("aks")]);
    rig.settle();
    let all = entries(&rig, Kind::ServiceEntry);
    assert_eq!(all[0].at("/spec/endpoints").as_array().unwrap().len(), 500);
    is_said(&rig);
}

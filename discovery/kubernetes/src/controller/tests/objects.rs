//! The objects of one service, and how they come and go.

use std::sync::Arc;
use std::time::Duration;

use eastway_model::{
    InternalTrafficPolicy, LocalEndpoint, LocalService, PeerChange, Protocol, ServiceKind, ServiceRecord,
    SessionAffinity,
};

use super::rig::*;
use crate::controller::desired::{Names, Verdict};
use crate::controller::names;
use crate::controller::object::Observed;
use crate::controller::ports::PortBook;

fn both(own: ServiceRecord, theirs: ServiceRecord) -> Rig {
    let mut rig = Rig::new();
    rig.export();
    rig.apply([upsert(LocalService::new(own, true, [])), complete("gke", vec![theirs]), complete("aks", vec![])]);
    rig.settle();
    rig
}

fn ports(import: &Observed) -> Vec<(String, u64)> {
    let name = |port: &serde_json::Value| port["name"].as_str().unwrap_or_default().to_owned();
    import.list("/spec/ports").iter().map(|port| (name(port), port["port"].as_u64().unwrap())).collect()
}

#[test]
fn an_import_with_an_address() {
    let mut rig = Rig::new();
    let affinity = SessionAffinity::ClientIp { timeout: Duration::from_secs(10) };
    let mut theirs = record(5, &[("http", 80), ("admin", 8080)]);
    theirs.ports.push(port("dns", 53, Protocol::Udp));
    theirs.session_affinity = affinity;
    theirs.internal_traffic_policy = InternalTrafficPolicy::Local;
    theirs.traffic_distribution = Some(Arc::from("PreferClose"));
    theirs.labels = [("team", "cart"), ("kubernetes.io/service-name", "kube-dns"), ("app.kubernetes.io/name", "cart")]
        .map(|(key, value)| (Arc::from(key), Arc::from(value)))
        .into();
    theirs.annotations = [(Arc::from("multicluster.kubernetes.io/derived-service"), Arc::from("kubernetes"))].into();
    rig.apply([complete("gke", vec![theirs])]);
    rig.settle();
    insta::assert_json_snapshot!(rig.objects());
    insta::assert_json_snapshot!("the_way_to_an_import", rig.done);
}

#[test]
fn a_dual_stack_cluster_has_slices_of_both_families() {
    let mut rig = Rig::new().dual_stack();
    rig.apply([complete("gke", vec![record(5, &[("", 80)])])]);
    rig.settle();
    assert_eq!(rig.import().list("/spec/ips").len(), 2);
    assert_eq!(rig.import().at("/spec/ipFamilies").to_string(), r#"["IPv4","IPv6"]"#);
    let types: Vec<_> = rig.seen.slices.values().map(|slice| slice.text("/addressType").to_owned()).collect();
    assert_eq!(types, ["IPv4", "IPv6"]);
    let port = |slice: &Observed| slice.at("/ports/0/port").clone();
    let ports: Vec<_> = rig.seen.slices.values().map(port).collect();
    assert_eq!(ports[0], ports[1], "one port of the gateways, whatever the family");
}

#[test]
fn the_export_and_the_import_of_two_clusters_that_disagree() {
    let own = ServiceRecord { kind: ServiceKind::ClusterSetIp, ..record(5, &[("http", 80)]) };
    let theirs = record(1, &[("http", 81), ("extra", 90)]);
    let rig = both(own, theirs);
    // By number all are reachable, in the import is who has the name.
    assert_eq!(ports(rig.import()), [("http".to_owned(), 80), ("extra".to_owned(), 90)]);
    let derived = names::derived(&label("cart"));
    let service = &rig.seen.services[&derived];
    let named: Vec<_> = service.list("/spec/ports").iter().map(|port| port["name"].to_string()).collect();
    assert_eq!(named, [r#""http""#, r#""tcp-81""#, r#""extra""#]);
    let slice = &rig.seen.slices[&names::slice(&derived, &label("eks"), false)];
    assert_eq!(slice.list("/ports").len(), 1, "a cluster's slice has that cluster's ports");
    insta::assert_json_snapshot!(rig.seen.export.as_ref().unwrap().at("/status"));
}

#[test]
fn different_ports_are_a_conflict_that_hurts_nobody() {
    let rig = both(record(5, &[("http", 80)]), record(1, &[("http", 80), ("extra", 90)]));
    let export = rig.seen.export.as_ref().unwrap();
    let (status, reason, message) = rig.condition(export, "Conflict");
    assert_eq!((status.as_str(), reason.as_str()), ("True", "PortConflict"));
    assert!(message.contains("90/TCP only in gke"), "{message}");
    let rig = both(record(5, &[("http", 80)]), record(1, &[("http", 80)]));
    let (status, reason, _) = rig.condition(rig.seen.export.as_ref().unwrap(), "Conflict");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NoConflicts"));
}

#[test]
fn an_sctp_port_is_told_and_not_carried() {
    let mut theirs = record(1, &[("http", 80)]);
    theirs.ports.push(port("stcp", 142, Protocol::Sctp));
    let rig = both(record(5, &[("http", 80), ("dns", 53)]), theirs);
    assert_eq!(
        ports(rig.import()),
        [("http".to_owned(), 80), ("dns".to_owned(), 53), ("stcp".to_owned(), 142)],
        "the union of all ports"
    );
    let service = &rig.seen.services[&names::derived(&label("cart"))];
    assert_eq!(service.list("/spec/ports").len(), 2);
    assert_eq!(rig.condition(rig.seen.export.as_ref().unwrap(), "Conflict").0, "True");
    assert_eq!(rig.condition(rig.import(), "Ready").0, "True");
}

#[test]
fn what_no_cluster_exports_any_more_goes() {
    let mut rig = both(record(5, &[("http", 80)]), record(1, &[("http", 80)]));
    assert_eq!(rig.seen.slices.len(), 2);
    rig.apply([from_peer("gke", PeerChange::Remove(key()))]);
    rig.settle();
    assert_eq!(rig.seen.slices.len(), 1, "the slice of the cluster that does not export it any more goes");
    rig.done.clear();
    rig.apply([remove()]);
    rig.settle();
    assert!(rig.seen.import.is_none() && rig.seen.services.is_empty() && rig.seen.slices.is_empty());
    assert!(rig.book.is_empty());
    assert!(rig.done[0].starts_with("delete ServiceImport"), "names before addresses: {:?}", rig.done);
}

#[test]
fn exports_that_are_none() {
    let cases = [(Verdict::NoService, "NoService"), (Verdict::ExternalName, "InvalidServiceType")];
    for (verdict, expected) in cases {
        let mut rig = Rig::new();
        rig.export();
        rig.verdict = verdict;
        rig.settle();
        let export = rig.seen.export.as_ref().unwrap();
        let (status, reason, _) = rig.condition(export, "Valid");
        assert_eq!((status.as_str(), reason.as_str()), ("False", expected));
        assert_eq!(rig.condition(export, "Ready").0, "False");
        assert!(export.condition("Conflict").is_none());
    }
}

#[test]
fn a_condition_keeps_its_time_while_its_status_stays() {
    let mut rig = both(record(5, &[("http", 80)]), record(1, &[("http", 80)]));
    let since = |rig: &Rig, kind: &str| {
        rig.seen.export.as_ref().unwrap().condition(kind).unwrap()["lastTransitionTime"].as_str().unwrap().to_owned()
    };
    rig.now = "2027-01-15T09:00:00Z";
    rig.apply([complete("gke", vec![record(1, &[("http", 81)])])]);
    rig.settle();
    assert_eq!(since(&rig, "Valid"), "2027-01-15T08:00:00Z");
    assert_eq!(since(&rig, "Conflict"), "2027-01-15T09:00:00Z");
}

#[test]
fn somebody_elses_import_is_left_alone() {
    let mut rig = Rig::new();
    rig.export();
    let theirs =
        Observed::new(serde_json::json!({ "metadata": { "name": "cart", "uid": "x" }, "spec": { "ports": [] } }));
    rig.seen.import = Some(theirs.clone());
    rig.apply([upsert(LocalService::new(record(5, &[("http", 80)]), true, []))]);
    rig.settle();
    assert_eq!(rig.import(), &theirs);
    assert!(rig.seen.services.is_empty() && rig.seen.slices.is_empty());
    let (status, _, message) = rig.condition(rig.seen.export.as_ref().unwrap(), "Ready");
    assert!(status == "True" && message.contains("not Eastway's"), "{message}");
    // Nor does it go with the export.
    rig.apply([remove()]);
    rig.settle();
    assert_eq!(rig.import(), &theirs);
}

#[test]
fn somebody_elses_derived_service_is_told_in_a_condition() {
    let mut rig = Rig::new();
    rig.seen.foreign.insert(names::derived(&label("cart")));
    rig.apply([complete("gke", vec![record(5, &[("http", 80)])])]);
    rig.settle();
    assert!(rig.seen.services.is_empty());
    let (status, _, message) = rig.condition(rig.import(), "Ready");
    assert!(status == "False" && message.contains("is not Eastway's"), "{message}");
    rig.seen.foreign.clear();
    rig.settle();
    assert_eq!(rig.condition(rig.import(), "Ready").0, "True");
}

#[test]
fn no_free_port_is_a_condition() {
    let mut rig = Rig::new();
    rig.book = PortBook::new(20_000..=20_000, []);
    rig.apply([complete("gke", vec![record(5, &[("http", 80), ("admin", 81)])])]);
    rig.settle();
    let (status, reason, message) = rig.condition(rig.import(), "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Pending"));
    assert!(message.contains("no free port"), "{message}");
    rig.apply([complete("gke", vec![record(5, &[("admin", 81)])])]);
    rig.settle();
    assert_eq!(rig.condition(rig.import(), "Ready").0, "True");
}

#[test]
fn i1_a_headless_import_has_no_address_of_a_peer() {
    let mut rig = Rig::new();
    let headless = |age| ServiceRecord { kind: ServiceKind::Headless, ..record(age, &[("sql", 5432)]) };
    let own = LocalEndpoint {
        endpoint: endpoint("pod-a", "db-0", true),
        address: "10.244.0.20".parse().unwrap(),
        service_account: None,
        target_ports: [(number(5432).into(), 15432)].into(),
    };
    let theirs = ServiceRecord { groups: vec![group(2)], ..headless(1) };
    rig.apply([upsert(LocalService::new(headless(5), true, [own])), complete("gke", vec![theirs])]);
    let upserted = vec![endpoint("e1", "db-0", true), endpoint("e2", "db-1", true), endpoint("e3", "", false)];
    rig.apply([from_peer("gke", PeerChange::Endpoints { service: key(), upsert: upserted, remove: vec![] })]);
    rig.settle();
    insta::assert_json_snapshot!(rig.objects());

    // A pod of a StatefulSet is replaced: its address stays.
    let derived = names::derived_endpoint(&label("cart"), &label("gke"), "db-0");
    let before = rig.seen.services[&derived].cluster_ips();
    let change = PeerChange::Endpoints {
        service: key(),
        upsert: vec![endpoint("e9", "db-0", true)],
        remove: vec![eastway_model::EndpointId::parse("e1").unwrap()],
    };
    rig.apply([from_peer("gke", change)]);
    rig.settle();
    let service = &rig.seen.services[&derived];
    assert_eq!(service.cluster_ips(), before);
    assert_eq!(service.at("/metadata/annotations")[names::ENDPOINT], "e9");
}

#[test]
fn the_address_of_a_hostname_stays_while_its_pod_is_replaced() {
    let mut rig = Rig::new();
    let theirs = |ready| ServiceRecord {
        kind: ServiceKind::Headless,
        groups: vec![group(ready)],
        ..record(1, &[("sql", 5432)])
    };
    let endpoints = |upsert: Vec<eastway_model::Endpoint>, gone: &[&str]| {
        let remove = gone.iter().map(|id| eastway_model::EndpointId::parse(id).unwrap()).collect();
        from_peer("gke", PeerChange::Endpoints { service: key(), upsert, remove })
    };
    rig.apply([complete("gke", vec![theirs(2)])]);
    rig.apply([endpoints(vec![endpoint("e1", "db-0", true), endpoint("e2", "", true)], &[])]);
    rig.settle();
    let derived = |endpoint: &str| names::derived_endpoint(&label("cart"), &label("gke"), endpoint);
    let before = (rig.seen.services[&derived("db-0")].cluster_ips(), rig.book.len());

    // Both pods are away: no name leads to them, and one address is kept.
    rig.apply([from_peer("gke", PeerChange::Upsert(Arc::new(theirs(0)))), endpoints(vec![], &["e1", "e2"])]);
    rig.settle();
    assert_eq!(rig.seen.services.keys().collect::<Vec<_>>(), [&derived("db-0")]);
    let named = rig.seen.slices.values().filter(|slice| !slice.label(names::SERVICE).is_empty());
    assert!(named.into_iter().all(|slice| slice.list("/endpoints").is_empty()));
    rig.gateways = ["10.244.0.9".parse().unwrap()].into_iter().collect();
    rig.settle();
    let slice = &rig.seen.slices[&names::slice(&derived("db-0"), &label("gke"), false)];
    assert_eq!(slice.at("/endpoints/0/addresses/0"), "10.244.0.9");

    rig.apply([
        from_peer("gke", PeerChange::Upsert(Arc::new(theirs(1)))),
        endpoints(vec![endpoint("e9", "db-0", true)], &[]),
    ]);
    rig.settle();
    let service = &rig.seen.services[&derived("db-0")];
    assert_eq!((service.cluster_ips(), rig.book.len()), (before.0, before.1 - 1));
    assert_eq!(service.at("/metadata/annotations")[names::ENDPOINT], "e9");

    // Endpoints that are there come first.
    let many = (0..100).map(|index| endpoint(&format!("f{index:03}"), "", true)).collect();
    rig.apply([from_peer("gke", PeerChange::Upsert(Arc::new(theirs(100)))), endpoints(many, &["e9"])]);
    rig.settle();
    assert!(rig.seen.services.len() == 100 && !rig.seen.services.contains_key(&derived("db-0")));
    rig.apply([from_peer("gke", PeerChange::Remove(key()))]);
    rig.settle();
    assert!(rig.seen.services.is_empty() && rig.book.is_empty());
}

#[test]
fn a_headless_import_has_at_most_a_hundred_addresses() {
    let mut rig = Rig::new();
    let theirs = ServiceRecord { kind: ServiceKind::Headless, groups: vec![group(130)], ..record(1, &[("sql", 5432)]) };
    rig.apply([complete("gke", vec![theirs])]);
    let upsert = (0..130).map(|index| endpoint(&format!("e{index:03}"), "", true)).collect();
    rig.apply([from_peer("gke", PeerChange::Endpoints { service: key(), upsert, remove: vec![] })]);
    rig.settle();
    assert_eq!(rig.seen.services.len(), 100);
    let (status, _, message) = rig.condition(rig.import(), "Ready");
    assert!(status == "True" && message.starts_with("30 endpoints"), "{message}");
    assert_eq!(rig.book.len(), 100);
}

fn pinned(names: &[(&str, &str)]) -> Names {
    let names = names.iter().map(|(name, cluster)| (Arc::from(*name), label(cluster))).collect();
    [(key(), names)].into()
}

#[test]
fn a_name_of_one_cluster_has_an_address_of_its_own() {
    let mut rig = both(record(5, &[("http", 80)]), record(1, &[("http", 80), ("extra", 90)]));
    let before = rig.book.len();
    rig.done.clear();
    rig.names = pinned(&[("there.shop.example", "gke"), ("here.shop.example", "eks"), ("away.shop.example", "aks")]);
    rig.settle();
    let of = |rig: &Rig, name: &str| rig.seen.services.get(&names::derived_name(&label("cart"), name)).cloned();
    let (there, here) = (of(&rig, "there.shop.example").unwrap(), of(&rig, "here.shop.example").unwrap());
    assert!(of(&rig, "away.shop.example").is_none(), "aks does not offer the service");
    insta::assert_json_snapshot!(there.body());
    assert_eq!((there.list("/spec/ports").len(), here.list("/spec/ports").len()), (2, 1), "what the cluster has");
    let slice = &rig.seen.slices[&names::slice(there.text("/metadata/name"), &label("gke"), false)];
    insta::assert_json_snapshot!("the_slice_of_a_name", slice.body());
    assert_eq!(rig.book.len(), before + 3);
    assert!(rig.done.iter().all(|done| done.starts_with("create")), "nothing else changes: {:?}", rig.done);

    // It leads elsewhere: the address and the ports stay.
    let ports = slice.at("/ports/0").clone();
    rig.names = pinned(&[("there.shop.example", "eks")]);
    rig.settle();
    let moved = of(&rig, "there.shop.example").unwrap();
    assert_eq!(moved.cluster_ips(), there.cluster_ips());
    let slices: Vec<_> =
        rig.seen.slices.iter().filter(|(name, _)| name.starts_with(moved.text("/metadata/name"))).collect();
    assert_eq!(slices.len(), 1);
    assert_eq!((slices[0].1.at("/ports/0"), slices[0].1.label(names::SOURCE_CLUSTER)), (&ports, "eks"));
    rig.names = Names::new();
    rig.settle();
    assert_eq!((rig.seen.services.len(), rig.book.len()), (1, before));
}

#[test]
fn a_name_of_one_cluster_of_a_headless_service_does_not_depend_on_its_endpoints() {
    let mut rig = Rig::new();
    rig.names = pinned(&[("db.shop.example", "gke")]);
    let theirs = ServiceRecord { kind: ServiceKind::Headless, groups: vec![group(1)], ..record(1, &[("sql", 5432)]) };
    rig.apply([complete("gke", vec![theirs])]);
    rig.settle();
    assert_eq!((rig.seen.services.len(), rig.seen.slices.len()), (1, 1), "no endpoint is told yet");
    let upsert = vec![endpoint("e1", "db-0", true)];
    rig.apply([from_peer("gke", PeerChange::Endpoints { service: key(), upsert, remove: vec![] })]);
    rig.settle();
    assert_eq!((rig.seen.services.len(), rig.seen.slices.len()), (2, 3));
    rig.gateways = ["10.244.0.9".parse().unwrap()].into_iter().collect();
    rig.settle();
    rig.names = Names::new();
    rig.settle();
    assert_eq!((rig.seen.services.len(), rig.seen.slices.len()), (1, 2));
}

#[test]
fn nothing_is_made_in_a_namespace_that_is_not_there() {
    let mut rig = Rig::new();
    rig.apply([complete("gke", vec![record(5, &[("http", 80)])])]);
    rig.seen.namespace = false;
    rig.settle();
    assert!(rig.done.is_empty());
}

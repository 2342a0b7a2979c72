//! Several registries of one cluster, and who owns which address.

use std::net::IpAddr;
use std::sync::Arc;

use eastway_model::store::{RegistryConflict, RegistryConflictKind};
use eastway_model::{
    Change, Label, LocalChange, LocalEndpoint, LocalService, ServiceRecord, UnixMillis, Workload, WorkloadIdentity,
};

use super::support::*;

fn from(registry: &str, change: LocalChange) -> Change {
    Change::Local { registry: label(registry), change }
}

fn from_service(registry: &str, service: LocalService) -> Change {
    from(registry, LocalChange::Upsert(Arc::new(service)))
}

#[test]
fn services_of_one_shape_merge_their_endpoints() {
    let (mut writer, reader) = store();
    let older = ServiceRecord { exported_at: UnixMillis(5), ..record("bookinfo/reviews") };
    writer.apply(
        [
            from_service("vms", LocalService::new(older, true, [local_endpoint(2, "v2")])),
            from_service("hosts", local_service("bookinfo/reviews", [local_endpoint(1, "v1")])),
        ],
        NOW,
    );
    let snapshot = reader.load_full();
    let merged = snapshot.local(&key("bookinfo/reviews")).unwrap();
    assert_eq!(merged.endpoints.len(), 2);
    assert_eq!(merged.record.groups.len(), 2);
    assert_eq!(merged.record.exported_at, UnixMillis(5), "exported since the first of them was");
    assert!(snapshot.registry_conflicts(merged.key()).is_empty());
    writer.apply([from("hosts", LocalChange::Removed)], NOW);
    let snapshot = reader.load_full();
    assert_eq!(snapshot.local(&key("bookinfo/reviews")).unwrap().endpoints.len(), 1);
}

#[test]
fn of_services_that_differ_the_first_registry_by_name_wins_and_it_is_reported() {
    let (mut writer, reader) = store();
    let other_port = ServiceRecord::new(key("bookinfo/reviews"), vec![port("http", 8080)]);
    writer.apply(
        [
            from_service("vms", LocalService::new(other_port, true, [local_endpoint(2, "v2")])),
            from_service("hosts", local_service("bookinfo/reviews", [local_endpoint(1, "v1")])),
        ],
        NOW,
    );
    let snapshot = reader.load_full();
    let heard = snapshot.local(&key("bookinfo/reviews")).unwrap();
    assert_eq!(heard.record.ports, vec![port("http", 9080)]);
    assert_eq!(heard.endpoints.len(), 1);
    let kind = RegistryConflictKind::Service { field: "ports" };
    let conflict = RegistryConflict { winner: label("hosts"), loser: label("vms"), kind };
    assert_eq!(snapshot.registry_conflicts(heard.key()), [conflict]);
    writer.apply([from("hosts", LocalChange::Remove(key("bookinfo/reviews")))], NOW);
    let snapshot = reader.load_full();
    assert_eq!(snapshot.local(&key("bookinfo/reviews")).unwrap().record.ports, vec![port("http", 8080)]);
    assert!(snapshot.registry_conflicts(&key("bookinfo/reviews")).is_empty());
}

#[test]
fn an_unexported_service_is_not_exported_by_the_word_of_another_registry() {
    let (mut writer, reader) = store();
    let private = LocalService { exported: false, ..local_service("bookinfo/reviews", [local_endpoint(1, "v1")]) };
    writer.apply([from_service("hosts", private)], NOW);
    writer.apply([from_service("vms", local_service("bookinfo/reviews", [local_endpoint(2, "v1")]))], NOW);
    let snapshot = reader.load();
    assert!(snapshot.import(&key("bookinfo/reviews")).is_none());
    let conflicts = snapshot.registry_conflicts(&key("bookinfo/reviews"));
    assert_eq!(conflicts[0].kind, RegistryConflictKind::Service { field: "export" });
}

#[test]
fn of_endpoints_with_one_id_the_first_registry_s_counts() {
    let (mut writer, reader) = store();
    let service = |version: &str| local_service("bookinfo/reviews", [local_endpoint(1, version)]);
    writer.apply([from_service("vms", service("v2")), from_service("hosts", service("v1"))], NOW);
    let version = || {
        let snapshot = reader.load_full();
        let service = snapshot.local(&key("bookinfo/reviews")).unwrap();
        service.endpoints.nth(0).unwrap().endpoint.subset.clone()
    };
    assert_eq!(version(), subset("v1"));
    let conflicts = reader.load().registry_conflicts(&key("bookinfo/reviews")).to_vec();
    assert_eq!(conflicts[0].kind, RegistryConflictKind::Endpoints { count: 1 });
    let remove = vec![id("e00001")];
    let change = LocalChange::Endpoints { service: key("bookinfo/reviews"), upsert: Vec::new(), remove };
    writer.apply([from("hosts", change)], NOW);
    assert_eq!(version(), subset("v2"), "the other's takes its place");
    assert!(reader.load().registry_conflicts(&key("bookinfo/reviews")).is_empty());
}

#[test]
fn a_place_that_two_registries_know_counts_once() {
    let (mut writer, reader) = store();
    let same = |number| LocalEndpoint { address: "10.0.0.1".parse().unwrap(), ..local_endpoint(number, "v1") };
    let other_port = LocalEndpoint { target_ports: [(port_number(9080).into(), 1)].into(), ..same(3) };
    writer.apply(
        [
            from_service("hub", local_service("bookinfo/reviews", [same(1)])),
            from_service("list-hub", local_service("bookinfo/reviews", [same(2), other_port])),
        ],
        NOW,
    );
    let ids = || {
        let snapshot = reader.load_full();
        let service = snapshot.local(&key("bookinfo/reviews")).unwrap();
        service.endpoints.iter().map(|one| one.endpoint.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids(), ["e00001", "e00003"]);
    let conflicts = reader.load().registry_conflicts(&key("bookinfo/reviews")).to_vec();
    assert_eq!(conflicts[0].kind, RegistryConflictKind::Endpoints { count: 1 });
    writer.apply([from("hub", LocalChange::Removed)], NOW);
    assert_eq!(ids(), ["e00002", "e00003"], "the other's takes its place");
}

#[test]
fn groups_are_counted_by_the_store_whatever_a_registry_wrote() {
    let (mut writer, reader) = store();
    let mut service = local_service("bookinfo/reviews", [local_endpoint(1, "v1")]);
    service.record = Arc::new(remote("bookinfo/reviews", &[("v9", 1_000)]));
    writer.apply([upsert(service)], NOW);
    let snapshot = reader.load();
    assert_eq!(snapshot.local(&key("bookinfo/reviews")).unwrap().record.groups, vec![group("v1", 1)]);
}

fn at(address: &str, account: Option<&str>) -> LocalEndpoint {
    let address: IpAddr = address.parse().unwrap();
    LocalEndpoint { address, service_account: account.map(label), ..local_endpoint(1, "v1") }
}

fn workload(address: &str, namespace: &str, account: Option<&str>) -> Workload {
    let (address, namespace) = (address.parse().unwrap(), label(namespace));
    Workload { address, namespace, service_account: account.map(label) }
}

type Who = Option<(Option<Label>, Option<Label>)>;

#[test]
fn a_source_is_who_all_registries_say_it_is() {
    let (mut writer, reader) = store();
    let who = |address: &str| -> Who {
        let snapshot = reader.load();
        let source = snapshot.source_of(address.parse().unwrap())?;
        assert_eq!(source.cluster, own());
        Some((source.namespace.clone(), source.service_account.clone()))
    };
    let known = |account: &str| -> Who { Some((Some(label("bookinfo")), Some(label(account)))) };
    assert_eq!(who("10.0.0.1"), None);
    writer.apply([upsert(local_service("bookinfo/reviews", [at("10.0.0.1", None)]))], NOW);
    assert_eq!(who("10.0.0.1"), Some((Some(label("bookinfo")), None)));
    // The same pod behind a second service, which knows more about it.
    writer.apply([upsert(local_service("bookinfo/reviews-v1", [at("10.0.0.1", Some("reviews"))]))], NOW);
    assert_eq!(who("10.0.0.1"), known("reviews"));
    assert_eq!(who("::ffff:10.0.0.1"), known("reviews"), "an IPv4 address in IPv6 clothes");
    // Somebody contradicts: then nobody is believed.
    writer.apply([local(LocalChange::Workloads(vec![workload("10.0.0.1", "bookinfo", Some("admin"))]))], NOW);
    assert_eq!(who("10.0.0.1"), None);
    writer.apply([local(LocalChange::Workloads(vec![workload("10.0.0.2", "bookinfo", Some("productpage"))]))], NOW);
    assert_eq!(who("10.0.0.1"), known("reviews"));
    assert_eq!(who("10.0.0.2"), known("productpage"));
    let upsert = vec![workload("10.0.0.3", "bookinfo", Some("ratings"))];
    let remove = vec!["10.0.0.2".parse().unwrap()];
    writer.apply([local(LocalChange::WorkloadEdits { upsert, remove })], NOW);
    assert_eq!((who("10.0.0.2"), who("10.0.0.3")), (None, known("ratings")));
    writer.apply([local(LocalChange::Workloads(vec![workload("10.0.0.2", "bookinfo", Some("productpage"))]))], NOW);
    assert_eq!((who("10.0.0.2"), who("10.0.0.3")), (known("productpage"), None));
    writer.apply([local(LocalChange::Removed)], NOW);
    assert_eq!(who("10.0.0.1"), None);
    assert_eq!(who("10.0.0.2"), None);
}

#[test]
fn a_proven_identity_names_the_service_account() {
    let (mut writer, reader) = store();
    let mut endpoint = at("10.0.0.1", None);
    let identity = WorkloadIdentity::parse("spiffe://onprem.example/ns/bookinfo/sa/reviews").unwrap();
    endpoint.endpoint.identity = Some(identity.clone());
    writer.apply([upsert(local_service("bookinfo/reviews", [endpoint]))], NOW);
    let snapshot = reader.load();
    let source = snapshot.source_of("10.0.0.1".parse().unwrap()).unwrap();
    assert_eq!(source.service_account, Some(label("reviews")));
    assert_eq!(source.identity, Some(identity));
}

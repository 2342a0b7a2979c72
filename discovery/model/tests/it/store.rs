//! The store: publication, registries, peers.

use std::sync::Arc;

use eastway_model::routing::{RouteRequest, route};
use eastway_model::{LocalChange, PeerChange};

use super::support::*;

#[test]
fn a_change_is_published_once_and_a_repetition_never() {
    let (mut writer, reader) = store();
    let before = reader.load().version();
    let service = local_service("bookinfo/reviews", [local_endpoint(1, "v1")]);
    assert!(writer.apply([upsert(service.clone())], NOW));
    assert_eq!(reader.load().version(), before + 1);
    assert!(!writer.apply([upsert(service.clone())], NOW));
    assert!(!writer.apply([local(LocalChange::Replace(vec![Arc::new(service)]))], NOW));
    assert!(!writer.apply([], NOW));
    assert_eq!(reader.load().version(), before + 1);
}

#[test]
fn a_service_of_two_clusters_is_one_import_routed_to_the_local_part_first() {
    let (mut writer, reader) = store();
    writer.apply([up("gke"), peer_upsert("gke", remote("bookinfo/reviews", &[("v2", 2)]))], NOW);
    let request = RouteRequest::tcp(port_number(9080));
    let snapshot = reader.load_full();
    let found = route(&snapshot, &key("bookinfo/reviews"), &request, |_| 0).unwrap();
    assert_eq!(found.candidates[0].cluster, Some(label("gke")));
    writer.apply([upsert(local_service("bookinfo/reviews", [local_endpoint(1, "v1")]))], NOW);
    let snapshot = reader.load_full();
    assert_eq!(snapshot.import(&key("bookinfo/reviews")).unwrap().parts.len(), 2);
    let found = route(&snapshot, &key("bookinfo/reviews"), &request, |_| 0).unwrap();
    assert_eq!(found.candidates[0].cluster, None);
    assert_eq!(found.candidates[1].cluster, Some(label("gke")));
    writer.apply([down("gke", NOW)], NOW);
    assert!(reader.load().import(&key("bookinfo/reviews")).unwrap().parts[1].stale);
    writer.apply([peer("gke", PeerChange::Removed)], NOW);
    assert_eq!(reader.load().import(&key("bookinfo/reviews")).unwrap().parts.len(), 1);
}

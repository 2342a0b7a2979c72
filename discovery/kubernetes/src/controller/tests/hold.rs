//! What is not removed, because not all is known (invariant I4).

use std::time::Duration;

use eastway_model::{LocalService, PeerChange, PeerState, ServiceKind, ServiceRecord};

use super::rig::*;

fn imported() -> Rig {
    let mut rig = Rig::new();
    rig.apply([complete("gke", vec![record(5, &[("http", 80)])]), complete("aks", vec![])]);
    rig.settle();
    assert_eq!(rig.seen.slices.len(), 1);
    rig
}

#[test]
fn i4_a_new_controller_keeps_what_it_has_not_heard_of() {
    let before = imported();
    let ports = before.seen.slices.values().next().unwrap().list("/ports").to_vec();
    let mut rig = before.restart();
    rig.settle();
    assert_eq!(rig.done, Vec::<String>::new(), "the feed said nothing yet");
    rig.peers_known = true;
    rig.settle();
    assert_eq!(rig.done, Vec::<String>::new(), "the peer is configured, and its snapshot is not here");
    rig.apply([upsert(LocalService::new(record(9, &[("http", 80), ("other", 81)]), true, []))]);
    rig.settle();
    assert_eq!(rig.done, Vec::<String>::new(), "a merge without the peer's part would take its ports away");
    rig.apply([complete("gke", vec![record(5, &[("http", 80)])])]);
    rig.settle();
    assert_eq!(rig.seen.slices.len(), 2);
    let slice =
        rig.seen.slices.values().find(|slice| slice.label("multicluster.kubernetes.io/source-cluster") == "gke");
    assert_eq!(slice.unwrap().list("/ports"), ports, "the ports of the gateways are what they were");
}

#[test]
fn i4_a_conflict_is_not_settled_by_silence() {
    let mut rig = Rig::new();
    rig.export();
    let own = || upsert(LocalService::new(record(5, &[("http", 80)]), true, []));
    rig.apply([own(), complete("gke", vec![record(1, &[("http", 81)])])]);
    rig.settle();
    let mut rig = rig.restart();
    rig.peers_known = true;
    rig.apply([own()]);
    rig.settle();
    assert!(rig.done.is_empty(), "{:?}", rig.done);
    assert_eq!(rig.condition(rig.seen.export.as_ref().unwrap(), "Conflict").0, "True");
}

#[test]
fn i4_a_complete_snapshot_without_it_removes_it() {
    let mut rig = imported().restart();
    rig.peers_known = true;
    rig.apply([complete("gke", vec![])]);
    rig.settle();
    assert!(rig.seen.import.is_none() && rig.seen.slices.is_empty() && rig.seen.services.is_empty());
}

#[test]
fn what_a_peer_exported_is_withdrawn_a_day_after_it_was_lost() {
    let mut rig = imported().restart();
    rig.peers_known = true;
    rig.apply([from_peer("gke", PeerChange::State(PeerState::Down { since: NOW }))]);
    rig.steady = NOW.plus(Duration::from_secs(24 * 3600 - 1));
    rig.settle();
    assert!(rig.done.is_empty());
    rig.steady = NOW.plus(Duration::from_secs(24 * 3600));
    rig.settle();
    assert!(rig.seen.import.is_none() && rig.seen.slices.is_empty());
}

#[test]
fn what_a_removed_peer_left_goes() {
    let mut rig = imported().restart();
    rig.configure(&["aks"]);
    rig.settle();
    assert!(rig.done.is_empty());
    rig.peers_known = true;
    rig.settle();
    assert!(rig.seen.import.is_none() && rig.seen.slices.is_empty() && rig.seen.services.is_empty());
}

#[test]
fn i4_slices_follow_the_gateways_even_while_held() {
    let mut rig = imported().restart();
    rig.gateways = ["10.244.0.99".parse().unwrap()].into_iter().collect();
    rig.settle();
    let slice = rig.seen.slices.values().next().unwrap();
    assert_eq!(slice.at("/endpoints/0/addresses/0"), "10.244.0.99");
    assert_eq!(slice.list("/endpoints").len(), 1);
    assert_eq!(rig.done.len(), 1, "{:?}", rig.done);
}

#[test]
fn i4_endpoints_that_are_not_listed_yet_keep_their_addresses() {
    let theirs = ServiceRecord { kind: ServiceKind::Headless, groups: vec![group(1)], ..record(1, &[("sql", 5432)]) };
    let listed = PeerChange::Endpoints { service: key(), upsert: vec![endpoint("e1", "db-0", true)], remove: vec![] };
    let mut rig = Rig::new();
    rig.apply([complete("gke", vec![theirs.clone()]), from_peer("gke", listed.clone())]);
    rig.settle();
    let objects = rig.objects();
    let mut rig = rig.restart();
    rig.peers_known = true;
    rig.apply([complete("gke", vec![theirs])]);
    rig.settle();
    assert_eq!(rig.objects(), objects);
    assert_eq!(rig.book.len(), 1);
    rig.apply([from_peer("gke", listed)]);
    rig.settle();
    assert_eq!(rig.objects(), objects);
    assert!(rig.done.is_empty(), "{:?}", rig.done);
}

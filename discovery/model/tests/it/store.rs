//! The store: publication, sync, peers and their end.

use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::{PeerRules, Rules, TrafficPolicy};
use eastway_model::store::Closed;
use eastway_model::{EndpointCondition, LocalChange, LocalEndpoint, PeerChange, PeerState, UnixMillis};

use super::support::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

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
    assert!(!writer.set_rules(Arc::clone(reader.load().rules())));
    assert_eq!(writer.expire(NOW), []);
    assert_eq!(reader.load().version(), before + 1);
}

#[test]
fn a_flap_inside_a_batch_is_no_change() {
    let (mut writer, reader) = store();
    let service = || local_service("bookinfo/reviews", [local_endpoint(1, "v1")]);
    writer.apply([upsert(service())], NOW);
    let before = reader.load().version();
    let gone = local(LocalChange::Remove(key("bookinfo/reviews")));
    assert!(!writer.apply([gone, upsert(service())], NOW));
    assert_eq!(reader.load().version(), before);
}

#[test]
fn a_change_shares_everything_else_with_the_snapshot_before() {
    let (mut writer, reader) = store();
    writer.apply((0..100).map(|n| upsert(local_service(&format!("bookinfo/s{n}"), [local_endpoint(n, "v1")]))), NOW);
    let before = reader.load_full();
    writer.apply([upsert(local_service("bookinfo/s7", []))], NOW);
    let after = reader.load_full();
    for local in before.locals().filter(|local| *local.key() != key("bookinfo/s7")) {
        assert!(Arc::ptr_eq(local, after.local(local.key()).unwrap()));
        assert!(Arc::ptr_eq(before.import(local.key()).unwrap(), after.import(local.key()).unwrap()));
    }
    assert_eq!(after.changes_since(before.version()), Some(vec![key("bookinfo/s7")]));
}

#[test]
fn listings_are_sorted_by_name() {
    let (mut writer, reader) = store();
    writer.apply((0..50).rev().map(|n| upsert(local_service(&format!("bookinfo/s{n}"), []))), NOW);
    let snapshot = reader.load();
    let locals: Vec<_> = snapshot.locals().map(|local| local.key().clone()).collect();
    assert_eq!(locals.len(), 50);
    assert!(locals.is_sorted());
    assert!(snapshot.imports().map(|import| &import.key).eq(&locals));
    assert!(snapshot.exports_to(&label("gke")).map(|local| local.key()).eq(&locals));
}

#[tokio::test]
async fn i8_a_slow_reader_sees_the_latest_snapshot_and_no_queue() {
    let (mut writer, reader) = store();
    let mut slow = reader.clone();
    slow.changed().await.unwrap();
    for n in 0..100 {
        writer.apply([upsert(local_service(&format!("bookinfo/s{n}"), []))], NOW);
    }
    slow.changed().await.unwrap();
    assert_eq!(slow.load().locals().count(), 100);
    let waiting = tokio::time::timeout(Duration::ZERO, slow.changed()).await;
    assert!(waiting.is_err(), "one wake-up for all of them");
    drop(writer);
    assert_eq!(slow.changed().await, Err(Closed));
    assert_eq!(slow.load().locals().count(), 100, "the last snapshot stays");
}

#[test]
fn i5_local_sync_waits_for_every_awaited_registry() {
    let (mut writer, reader) = eastway_model::store::Writer::new(own());
    assert!(!reader.load().is_local_synced(), "before anybody said what to wait for");
    let replace = |registry: &str| eastway_model::Change::Local {
        registry: label(registry),
        change: LocalChange::Replace(Vec::new()),
    };
    writer.await_registries([label("hosts"), label("vms")]);
    assert_eq!(reader.load().unsynced_registries(), [label("hosts"), label("vms")]);
    writer.apply([upsert(local_service("bookinfo/reviews", []))], NOW);
    assert!(!reader.load().is_local_synced(), "a single service is not the contents");
    assert!(writer.apply([replace("hosts")], NOW));
    assert!(!reader.load().is_local_synced());
    assert!(writer.apply([replace("vms")], NOW));
    assert!(reader.load().is_local_synced());
    writer.await_registries([label("late")]);
    assert!(!reader.load().is_local_synced());
    let removed = eastway_model::Change::Local { registry: label("late"), change: LocalChange::Removed };
    writer.apply([removed], NOW);
    assert!(reader.load().is_local_synced(), "nobody waits for what was taken out of the configuration");
}

#[test]
fn i5_a_store_without_registries_is_synced_once_that_is_known() {
    let (mut writer, reader) = eastway_model::store::Writer::new(own());
    writer.await_registries([]);
    assert!(reader.load().is_local_synced());
}

#[test]
fn i3_imports_are_never_offered_to_peers() {
    let (mut writer, reader) = store();
    writer.apply([up("gke"), peer_upsert("gke", remote("bookinfo/ratings", &[("v1", 1)]))], NOW);
    let snapshot = reader.load();
    assert!(snapshot.import(&key("bookinfo/ratings")).is_some());
    for peer in ["gke", "edge"] {
        assert_eq!(snapshot.exports_to(&label(peer)).count(), 0);
        assert!(!snapshot.may_export(&label(peer), &key("bookinfo/ratings")));
    }
}

#[test]
fn i7_what_is_not_for_a_peer_looks_as_if_it_did_not_exist() {
    let (mut writer, reader) = store();
    let private = eastway_model::LocalService { exported: false, ..local_service("bookinfo/private", []) };
    let other = local_service("shop/cart", []);
    writer.apply([upsert(private), upsert(other), upsert(local_service("bookinfo/reviews", []))], NOW);
    let snapshot = reader.load();
    let offered = |peer: &str, service: &str| snapshot.export_to(&label(peer), &key(service)).is_some();
    assert!(offered("gke", "bookinfo/reviews"));
    assert!(!offered("gke", "bookinfo/private"));
    assert!(!offered("gke", "shop/cart"));
    assert!(!offered("gke", "bookinfo/nothing"));
    assert!(!offered("stranger", "bookinfo/reviews"));
}

#[test]
fn a_service_that_is_only_local_is_no_import() {
    let (mut writer, reader) = store();
    let private = eastway_model::LocalService { exported: false, ..local_service("bookinfo/reviews", []) };
    writer.apply([upsert(private)], NOW);
    assert!(reader.load().import(&key("bookinfo/reviews")).is_none());
    writer.apply([up("gke"), peer_upsert("gke", remote("bookinfo/reviews", &[("v2", 1)]))], NOW);
    let snapshot = reader.load();
    let import = snapshot.import(&key("bookinfo/reviews")).unwrap();
    assert_eq!(import.parts.len(), 1, "what this cluster does not export takes no part");
    assert_eq!(import.parts[0].cluster, Some(label("gke")));
}

#[test]
fn p1_what_the_import_rules_do_not_name_stays_out_and_comes_in_when_they_do() {
    let (mut writer, reader) = store();
    let all = [
        up("gke"),
        peer_upsert("gke", remote("bookinfo/reviews", &[("v1", 1)])),
        peer_upsert("gke", remote("kube-system/dns", &[("v1", 1)])),
        peer_upsert("gke", remote("shop/cart", &[("v1", 1)])),
        peer_upsert("evil", remote("bookinfo/reviews", &[("v1", 1)])),
    ];
    writer.apply(all, NOW);
    let names = || reader.load().imports().map(|import| import.key.to_string()).collect::<Vec<_>>();
    assert_eq!(names(), ["bookinfo/reviews"]);
    assert_eq!(reader.load().import(&key("bookinfo/reviews")).unwrap().parts.len(), 1, "evil has no rules");
    assert!(!reader.load().peer("evil").unwrap().configured);
    assert!(writer.set_rules(Arc::new(Rules::default())));
    assert!(names().is_empty());
    assert!(writer.set_rules(Arc::new(rules(&["gke", "evil"]))));
    assert_eq!(reader.load().import(&key("bookinfo/reviews")).unwrap().parts.len(), 2);
}

#[test]
fn i4_a_peer_that_is_down_keeps_its_services_as_stale() {
    let (mut writer, reader) = store();
    writer.apply([up("gke"), peer_upsert("gke", remote("bookinfo/reviews", &[("v1", 1)]))], NOW);
    let stale = || reader.load().import(&key("bookinfo/reviews")).unwrap().parts[0].stale;
    assert!(!stale());
    assert!(writer.apply([down("gke", NOW)], NOW));
    assert!(stale());
    assert!(writer.apply([up("gke")], NOW));
    assert!(!stale());
}

#[test]
fn i4_a_complete_snapshot_removes_what_it_lacks_and_nothing_else_does() {
    let (mut writer, reader) = store();
    let names = || reader.load().imports().map(|import| import.key.to_string()).collect::<Vec<_>>();
    let [a, b, c] = ["a", "b", "c"].map(|name| remote(&format!("bookinfo/{name}"), &[("v1", 1)]));
    writer.apply([up("gke"), peer_upsert("gke", a.clone()), peer_upsert("gke", b)], NOW);
    writer.apply([down("gke", NOW), peer_upsert("edge", c.clone()), up("gke")], NOW);
    assert_eq!(names(), ["bookinfo/a", "bookinfo/b", "bookinfo/c"]);
    writer.apply([peer("gke", PeerChange::Replace(vec![Arc::new(a), Arc::new(c)]))], NOW);
    assert_eq!(names(), ["bookinfo/a", "bookinfo/c"]);
    assert_eq!(reader.load().import(&key("bookinfo/c")).unwrap().parts.len(), 2);
    writer.apply([peer("gke", PeerChange::Replace(Vec::new()))], NOW);
    assert_eq!(names(), ["bookinfo/c"], "another peer's word is its own");
    writer.apply([peer("edge", PeerChange::Remove(key("bookinfo/c")))], NOW);
    assert!(names().is_empty());
}

#[test]
fn one_endpoint_changes_only_the_count_of_its_group() {
    let (mut writer, reader) = store();
    writer.apply([upsert(local_service("bookinfo/reviews", (1..5).map(|n| local_endpoint(n, "v1"))))], NOW);
    let counts = || {
        let snapshot = reader.load_full();
        let part = &snapshot.import(&key("bookinfo/reviews")).unwrap().parts[0];
        part.record.groups.iter().map(|group| (group.ready, group.draining, group.weight)).collect::<Vec<_>>()
    };
    let mut change = |upsert: Vec<LocalEndpoint>, remove: &[&str]| {
        let remove = remove.iter().map(|name| id(name)).collect();
        let change = LocalChange::Endpoints { service: key("bookinfo/reviews"), upsert, remove };
        assert!(writer.apply([local(change)], NOW));
    };
    assert_eq!(counts(), [(4, 0, 400)]);
    let mut first = local_endpoint(1, "v1");
    first.endpoint.condition = EndpointCondition::DRAINING;
    change(vec![first.clone()], &["e00002"]);
    assert_eq!(counts(), [(2, 1, 200)]);
    first.endpoint.condition = EndpointCondition::READY;
    first.endpoint.weight = 7;
    change(vec![first, local_endpoint(9, "v2")], &["e00003"]);
    assert_eq!(counts(), [(2, 0, 107), (1, 0, 100)]);
    change(Vec::new(), &["e00001", "e00004"]);
    assert_eq!(counts(), [(1, 0, 100)], "a group without endpoints goes");
}

#[test]
fn i4_a_removed_peer_leaves_nothing_behind() {
    let (mut writer, reader) = store();
    let all = ["bookinfo/reviews", "bookinfo/ratings"].map(|name| peer_upsert("gke", remote(name, &[("v1", 1)])));
    writer.apply([up("gke")], NOW);
    writer.apply(all, NOW);
    writer.apply([peer("gke", PeerChange::Removed)], NOW);
    let snapshot = reader.load();
    assert_eq!(snapshot.imports().count(), 0);
    let view = snapshot.peer("gke").unwrap();
    assert_eq!((view.state, view.services, view.synced), (PeerState::Unknown, 0, false));
    writer.set_rules(Arc::new(rules(&["edge"])));
    assert!(reader.load().peer("gke").is_none());
}

#[test]
fn withdraw_after_counts_from_the_loss_of_the_last_link() {
    let (mut writer, reader) = store();
    writer.apply([up("gke"), peer_upsert("gke", remote("bookinfo/reviews", &[("v1", 1)]))], NOW);
    assert_eq!(writer.next_expiry(), None, "not while it is up");
    writer.apply([down("gke", NOW)], NOW.plus(Duration::from_secs(5)));
    assert_eq!(writer.next_expiry(), Some(NOW.plus(DAY)));
    assert_eq!(reader.load().peer("gke").unwrap().withdraw_at, Some(NOW.plus(DAY)));
    assert_eq!(writer.expire(UnixMillis(NOW.plus(DAY).0 - 1)), []);
    assert_eq!(writer.expire(NOW.plus(DAY)), [label("gke")]);
    assert!(reader.load().import(&key("bookinfo/reviews")).is_none());
    assert_eq!(writer.next_expiry(), None);
    assert_eq!(reader.load().peer("gke").unwrap().state, PeerState::Down { since: NOW });
}

#[test]
fn withdraw_after_of_the_peer_counts_and_a_return_stops_it() {
    let (mut writer, reader) = store();
    let mut rules = rules(&["gke"]);
    let gke = PeerRules { withdraw_after: Duration::from_secs(60), ..PeerRules::clone(&rules.peers["gke"]) };
    rules.peers.insert(label("gke"), Arc::new(gke));
    writer.set_rules(Arc::new(rules));
    writer.apply([peer_upsert("gke", remote("bookinfo/reviews", &[("v1", 1)]))], NOW);
    let minute = NOW.plus(Duration::from_secs(60));
    assert_eq!(writer.next_expiry(), Some(minute), "loaded from disk, never heard of since");
    writer.apply([up("gke")], NOW);
    assert_eq!(writer.next_expiry(), None);
    assert_eq!(writer.expire(minute.plus(DAY)), []);
    assert!(reader.load().import(&key("bookinfo/reviews")).is_some());
}

#[test]
fn withdraw_after_counts_over_a_restart_and_a_link_says_more_than_the_disk() {
    let (mut writer, reader) = store();
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let heard = UnixMillis(NOW.0 - u64::try_from(hours(23).as_millis()).unwrap());
    let restored =
        [peer("gke", PeerChange::LastHeard(heard)), peer_upsert("gke", remote("bookinfo/reviews", &[("v1", 1)]))];
    writer.apply(restored.clone(), NOW);
    let view = || reader.load().peer("gke").unwrap().clone();
    assert_eq!(view().state, PeerState::Down { since: heard }, "away since it was heard, not since our start");
    assert_eq!(view().withdraw_at, Some(NOW.plus(hours(1))));
    assert!(reader.load().import(&key("bookinfo/reviews")).unwrap().parts[0].stale);
    // The copy on disk may be read after the first link is there.
    writer.apply([up("gke")], NOW);
    writer.apply(restored, NOW);
    assert_eq!((view().state, view().withdraw_at), (PeerState::Up, None));
    writer.apply([down("gke", NOW)], NOW);
    writer.apply([peer("gke", PeerChange::LastHeard(heard))], NOW);
    assert_eq!(view().withdraw_at, Some(NOW.plus(DAY)));
    assert_eq!(writer.expire(NOW.plus(hours(1))), []);
}

#[test]
fn i6_a_peer_of_our_own_name_is_not_heard() {
    let (mut writer, reader) = store();
    assert!(!writer.apply([peer_upsert("onprem", remote("bookinfo/reviews", &[("v1", 1)]))], NOW));
    assert!(reader.load().peer("onprem").is_none());
}

#[test]
fn configured_peers_are_known_before_they_are_heard_of() {
    let (_writer, reader) = store();
    let snapshot = reader.load();
    let known: Vec<_> = snapshot.peers().map(|peer| (peer.name.to_string(), peer.state)).collect();
    assert_eq!(known, [("edge".to_owned(), PeerState::Unknown), ("gke".to_owned(), PeerState::Unknown)]);
}

#[test]
fn endpoint_records_follow_their_service() {
    let (mut writer, reader) = store();
    let endpoints = |upsert: &[&str], remove: &[&str]| {
        let upsert = upsert.iter().map(|name| endpoint(name, "v1")).collect();
        let remove = remove.iter().map(|name| id(name)).collect();
        peer("gke", PeerChange::Endpoints { service: key("bookinfo/reviews"), upsert, remove })
    };
    assert!(!writer.apply([endpoints(&["a"], &[])], NOW) || reader.load().imports().count() == 0);
    writer.apply([up("gke"), peer_upsert("gke", remote("bookinfo/reviews", &[("v1", 1)]))], NOW);
    assert!(writer.apply([endpoints(&["a", "b", "c"], &["b"])], NOW));
    let ids = || {
        let snapshot = reader.load_full();
        let import = snapshot.import(&key("bookinfo/reviews")).unwrap();
        import.parts[0].endpoints.iter().map(|endpoint| endpoint.id.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids(), ["a", "c"]);
    assert!(!writer.apply([endpoints(&["a", "c"], &["nobody"])], NOW));
    assert_eq!(reader.load().peer("gke").unwrap().endpoints, 2);
    writer.apply([peer_upsert("gke", remote("bookinfo/reviews", &[("v1", 7)]))], NOW);
    assert_eq!(ids(), ["a", "c"], "a new count does not touch them");
    writer.apply([peer("gke", PeerChange::Remove(key("bookinfo/reviews")))], NOW);
    assert_eq!(reader.load().peer("gke").unwrap().endpoints, 0);
}

#[test]
fn a_policy_shows_in_the_import_and_rules_make_readers_compare_everything() {
    let (mut writer, reader) = store();
    writer.apply([upsert(local_service("bookinfo/reviews", []))], NOW);
    let before = reader.load().version();
    let policy = TrafficPolicy::new("reviews", key("bookinfo/reviews"), Vec::new(), Vec::new(), None).unwrap();
    let traffic = [(key("bookinfo/reviews"), Arc::new(policy))].into();
    assert!(writer.set_rules(Arc::new(Rules { traffic, ..rules(&["edge", "gke"]) })));
    assert!(reader.load().import(&key("bookinfo/reviews")).unwrap().policy.is_some());
    assert_eq!(reader.load().changes_since(before), None);
    assert_eq!(reader.load().changes_since(before + 1), Some(Vec::new()));
    assert_eq!(reader.load().changes_since(before + 2), None, "from another life");
}

#[test]
fn removals_are_remembered_within_bounds() {
    let (mut writer, reader) = store();
    let name = |n: usize| format!("bookinfo/s{n}");
    writer.apply((0..3_000).map(|n| upsert(local_service(&name(n), []))), NOW);
    let full = reader.load().version();
    writer.apply((0..3_000).map(|n| local(LocalChange::Remove(key(&name(n))))), NOW);
    assert_eq!(reader.load().changes_since(full), None, "too many to remember: compare everything");
    let empty = reader.load().version();
    assert_eq!(reader.load().locals().count(), 0);
    writer.apply([upsert(local_service(&name(1), []))], NOW);
    assert_eq!(reader.load().changes_since(empty), Some(vec![key(&name(1))]));
    writer.apply([local(LocalChange::Remove(key(&name(1))))], NOW);
    assert_eq!(reader.load().changes_since(empty), Some(vec![key(&name(1))]), "told although it is gone");
}

//! Endpoint records: only of subscribed services, whole listings first, then changes.

use eastway_model::{EndpointCondition, EndpointId};

use super::*;
use crate::convert::endpoint_to_wire;

/// Live and subscribed to shop/a with this many endpoints.
fn subscribed(count: usize) -> Pair {
    let mut pair = Pair::new();
    pair.sync([service("shop/a", (0..count).map(|n| endpoint(n, "v1"))), service("shop/b", [endpoint(1, "v1")])]);
    pair.run(SECOND);
    let actions = pair.import.subscribe(&mut pair.table, [key("shop/a")]);
    pair.import_actions(actions);
    pair.run(SECOND);
    pair
}

fn ids(pair: &Pair) -> Vec<String> {
    let endpoints = pair.table.endpoints(&key("shop/a"));
    endpoints.map(|endpoints| endpoints.iter().map(|endpoint| endpoint.id.to_owned()).collect()).unwrap_or_default()
}

fn part(sequence: u64, part: wire::EndpointsUpdate) -> FromExporter {
    let part = wire::EndpointsUpdate { service: Some(key_to_wire(&key("shop/a"))), ..part };
    FromExporter::Update(wire::Update { sequence, endpoints: vec![part], ..Default::default() })
}

fn encoded(numbers: std::ops::Range<usize>) -> Vec<bytes::Bytes> {
    numbers.map(|n| endpoint_to_wire(&endpoint(n, "v1").endpoint).encode_to_vec().into()).collect()
}

fn digest_of(records: &[bytes::Bytes]) -> bytes::Bytes {
    let sum = records.iter().map(|record| crate::digest::endpoint_hash(record)).fold(0, u128::wrapping_add);
    sum.to_be_bytes().to_vec().into()
}

#[test]
fn endpoints_cross_for_subscribed_services_only() {
    let pair = subscribed(3);
    assert_eq!(ids(&pair), ["pod-00000-x7k2p", "pod-00001-x7k2p", "pod-00002-x7k2p"]);
    assert_eq!(pair.table.endpoint_count(), 3);
    assert!(pair.table.endpoints(&key("shop/b")).is_none());
}

#[test]
fn large_listings_come_in_parts_and_count_at_their_end() {
    let mut pair = subscribed(3_000);
    assert_eq!(ids(&pair).len(), 3_000);
    let told = pair.applied.iter().filter(|change| matches!(change, PeerChange::Endpoints { .. })).count();
    assert_eq!(told, 1, "one listing, one change");
    pair.applied.clear();
    let mut flapped: Vec<_> = (0..3_000).map(|n| endpoint(n, "v1")).collect();
    flapped[7].endpoint.condition = EndpointCondition::DOWN;
    flapped.remove(9);
    pair.upsert(service("shop/a", flapped));
    pair.run(SECOND);
    assert_eq!(ids(&pair).len(), 2_999);
    let Some(PeerChange::Endpoints { upsert, remove, .. }) = pair.applied.last() else { panic!() };
    assert_eq!((upsert.len(), remove.len()), (1, 1));
}

#[test]
fn i4_endpoints_missing_from_a_new_listing_are_gone_at_its_end() {
    let mut pair = subscribed(5);
    pair.to_importer.clear();
    pair.upsert(service("shop/a", (2..7).map(|n| endpoint(n, "v1"))));
    pair.reconnect();
    pair.run(SECOND);
    assert_eq!(ids(&pair), (2..7).map(|n| format!("pod-{n:05}-x7k2p")).collect::<Vec<_>>());
}

#[test]
fn f15_half_a_listing_changes_nothing() {
    let mut pair = subscribed(2);
    let sequence = pair.import.sequence;
    let before = ids(&pair);
    pair.pass(SECOND);
    let upserts = encoded(10..20);
    pair.forge(part(sequence + 1, wire::EndpointsUpdate { upserts, begin: true, ..Default::default() }));
    assert_eq!(ids(&pair), before);
    let wrong = wire::EndpointsUpdate { end: true, digest: digest_of(&encoded(10..21)), ..Default::default() };
    pair.forge(part(sequence + 2, wrong));
    assert_eq!(ids(&pair), before);
    assert_eq!(resyncs(&pair), [OUT_OF_SEQUENCE]);
}

#[test]
fn p7_one_bad_endpoint_rejects_only_itself() {
    let mut pair = subscribed(2);
    pair.pass(SECOND);
    let mut upserts = encoded(10..12);
    let mut foreign = endpoint_to_wire(&endpoint(13, "v1").endpoint);
    foreign.identity = "spiffe://a.example/ns/shop/sa/admin".into();
    upserts.push(foreign.encode_to_vec().into());
    upserts.push(bytes::Bytes::from_static(&[0xff; 5]));
    pair.forge(part(pair.import.sequence + 1, wire::EndpointsUpdate { upserts, ..Default::default() }));
    assert_eq!(ids(&pair).len(), 4);
    let kinds: Vec<_> = pair.rejected.iter().map(|(_, reason, _)| reason.kind()).collect();
    assert_eq!(kinds, ["foreign_identity", "unreadable"]);
    assert!(pair.import.is_live());
}

#[test]
fn p7_beyond_the_quota_the_newest_endpoints_are_refused() {
    let mut pair = Pair::with_limits(Limits { endpoints: 10, ..Limits::default() });
    pair.table.set_subscriptions([key("shop/a"), key("shop/b")]);
    pair.reconnect();
    pair.sync([
        service("shop/a", (10..18).map(|n| endpoint(n, "v1"))),
        service("shop/b", (0..8).map(|n| endpoint(n, "v1"))),
    ]);
    pair.run(SECOND);
    assert_eq!(pair.table.endpoint_count(), 10);
    assert_eq!(ids(&pair).len(), 8, "the first come");
    assert_eq!(pair.rejected.last().unwrap().1.to_string(), "QUOTA endpoints 10");
    pair.upsert(service("shop/a", (8..18).map(|n| endpoint(n, "v1"))));
    pair.run(SECOND);
    assert_eq!(ids(&pair).len(), 8, "existing ones are kept");
    pair.local(LocalChange::Remove(key("shop/b")));
    pair.run(SECOND);
    pair.reconnect();
    pair.run(SECOND);
    assert_eq!(ids(&pair).len(), 10, "after a new listing there is room");
    assert!(pair.closed.is_empty());
}

#[test]
fn p1_endpoints_of_a_refused_service_are_refused() {
    let mut pair = Pair::new();
    pair.table.set_subscriptions([key("ops/x")]);
    pair.reconnect();
    pair.sync([service("ops/x", [endpoint(1, "v1")])]);
    pair.run(SECOND);
    assert_eq!(pair.table.endpoint_count(), 0);
    assert_eq!(pair.rejected.last().unwrap().1, RejectReason::UnknownService);
}

#[test]
fn a_service_that_comes_back_has_the_endpoints_it_has_now() {
    let mut pair = subscribed(3);
    pair.local(LocalChange::Remove(key("shop/a")));
    pair.run(SECOND);
    assert!(ids(&pair).is_empty());
    pair.applied.clear();
    // Gone and back within one interval of the importer: the old ones must not survive in the store.
    pair.upsert(service("shop/a", [endpoint(7, "v1")]));
    pair.deliver();
    pair.local(LocalChange::Remove(key("shop/a")));
    pair.deliver();
    pair.upsert(service("shop/a", [endpoint(8, "v1")]));
    pair.run(SECOND);
    assert_eq!(ids(&pair), ["pod-00008-x7k2p"]);
    let mut store = std::collections::BTreeSet::new();
    for change in &pair.applied {
        match change {
            PeerChange::Endpoints { upsert, remove, .. } => {
                store.extend(upsert.iter().map(|endpoint| endpoint.id.clone()));
                store.retain(|id| !remove.contains(id));
            }
            PeerChange::Remove(_) => store.clear(),
            PeerChange::Upsert(_)
            | PeerChange::Replace(_)
            | PeerChange::State(_)
            | PeerChange::LastHeard(_)
            | PeerChange::Removed => {}
        }
    }
    assert_eq!(store.into_iter().collect::<Vec<_>>(), [EndpointId::parse("pod-00008-x7k2p").unwrap()]);
}

#[test]
fn unsubscribing_drops_the_records() {
    let mut pair = subscribed(3);
    pair.applied.clear();
    let actions = pair.import.subscribe(&mut pair.table, [key("shop/b")]);
    pair.import_actions(actions);
    assert!(matches!(pair.applied.as_slice(), [PeerChange::Endpoints { remove, .. }] if remove.len() == 3));
    pair.run(SECOND);
    assert_eq!(pair.table.endpoint_count(), 1);
    pair.upsert(service("shop/a", [endpoint(50, "v1")]));
    pair.run(SECOND);
    assert!(ids(&pair).is_empty() && pair.closed.is_empty() && pair.rejected.is_empty());
}

#[test]
fn f29_fields_of_a_later_version_stay_in_the_listings_digest() {
    let mut pair = subscribed(1);
    pair.pass(SECOND);
    let mut extended = encoded(5..6)[0].to_vec();
    extended.extend_from_slice(&[0xa2, 0x06, 1, b'x']);
    let upserts: Vec<bytes::Bytes> = vec![encoded(0..1)[0].clone(), extended.into()];
    let digest = digest_of(&upserts);
    let listing =
        wire::EndpointsUpdate { upserts, begin: true, end: true, digest: digest.clone(), ..Default::default() };
    pair.forge(part(pair.import.sequence + 1, listing));
    assert_eq!(ids(&pair).len(), 2);
    let held = |pair: &Pair| pair.table.subscriptions[&key("shop/a")].digest_held().unwrap().to_be_bytes().to_vec();
    assert_eq!(held(&pair), digest);
    // Replaced by a plain one and removed again: the sums still agree with what was sent.
    pair.pass(SECOND);
    pair.forge(part(pair.import.sequence + 1, wire::EndpointsUpdate { upserts: encoded(5..6), ..Default::default() }));
    assert_eq!(held(&pair), digest_of(&[encoded(0..1), encoded(5..6)].concat()));
    let removed = vec!["pod-00005-x7k2p".to_owned(), "pod-00099-x7k2p".to_owned()];
    pair.forge(part(pair.import.sequence + 1, wire::EndpointsUpdate { removed, ..Default::default() }));
    assert_eq!(held(&pair), digest_of(&encoded(0..1)));
}

#[test]
fn one_endpoint_of_10_000_costs_at_most_300_bytes() {
    let mut pair = subscribed(10_000);
    let before = pair.bytes;
    let mut endpoints: Vec<_> = (0..10_000).map(|n| endpoint(n, "v1")).collect();
    endpoints[5_000].endpoint.condition = EndpointCondition::DOWN;
    pair.upsert(service("shop/a", endpoints));
    pair.run(SECOND);
    let bytes = pair.bytes - before;
    println!("one endpoint changed in a service of 10,000: {bytes} bytes in both directions");
    assert!(bytes <= 300, "{bytes} bytes, acknowledgement included");
    let down = pair.table.endpoints(&key("shop/a")).unwrap().get("pod-05000-x7k2p").unwrap();
    assert_eq!(down.condition, EndpointCondition::DOWN);
    let ready: u32 = pair.table.services().next().unwrap().groups.iter().map(|group| group.ready).sum();
    assert_eq!(ready, 9_999);
}

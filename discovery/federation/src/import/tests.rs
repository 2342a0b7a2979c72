//! Rules of the importing side. The exporter is a real one, or the test where it has to misbehave.

mod endpoints;
mod faults;
mod quotas;

use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::{Glob, NameFilter, NameFilterEntry, PeerRules};
use eastway_model::{LocalChange, PeerChange, UnixMillis};
use eastway_proto::federation::v1 as wire;
use eastway_proto::federation::v1::exporter_message::Body as FromExporter;
use eastway_proto::federation::v1::importer_message::Body as ToExporter;
use prost::Message;

use super::*;
use crate::convert::{EncodedService, key_to_wire};
use crate::testing::{Pair, endpoint, filter, key, name, service};

const SECOND: Duration = Duration::from_secs(1);

/// A pair that is live with these services.
fn live(names: &[&str]) -> Pair {
    let mut pair = Pair::new();
    pair.sync(names.iter().map(|name| service(name, [])));
    pair.run(SECOND);
    assert!(pair.import.is_live());
    pair.applied.clear();
    pair
}

/// A pair whose exporter is the test: it has said its name and nothing else.
fn opened() -> Pair {
    let mut pair = Pair::new();
    pair.to_exporter.clear();
    pair.forge(export_open("b"));
    pair
}

fn export_open(cluster: &str) -> FromExporter {
    FromExporter::Open(wire::ExportOpen { version: 1, epoch: 77, cluster: cluster.to_owned() })
}

fn state(text: &str) -> wire::ServiceState {
    EncodedService::new(&service(text, []).record).into_wire()
}

fn begin(sequence: u64) -> FromExporter {
    FromExporter::Begin(wire::SnapshotBegin { sequence, buckets: u64::MAX })
}

fn chunk(sequence: u64, names: &[&str]) -> FromExporter {
    FromExporter::Chunk(wire::SnapshotChunk { sequence, services: names.iter().map(|name| state(name)).collect() })
}

/// The end of a snapshot of exactly these services.
fn complete(sequence: u64, names: &[&str]) -> FromExporter {
    let mut digest = crate::digest::ServicesDigest::default();
    for text in names {
        let wire::ServiceState { service, counts } = state(text);
        let hash = crate::digest::ServiceHash::new(&crate::digest::static_hash(&service), &counts);
        digest.add(&key(text), &hash);
    }
    FromExporter::Complete(wire::Complete { sequence, digest: digest.to_bytes().into() })
}

fn update(sequence: u64, names: &[&str]) -> FromExporter {
    let services = names.iter().map(|name| state(name)).collect();
    FromExporter::Update(wire::Update { sequence, services, ..Default::default() })
}

/// Forged, live and with `names`.
fn forged(names: &[&str]) -> Pair {
    let mut pair = opened();
    pair.forge(begin(1));
    pair.forge(chunk(2, names));
    pair.forge(complete(3, names));
    assert!(pair.import.is_live());
    pair.pass(SECOND);
    pair
}

fn resyncs(pair: &Pair) -> Vec<&str> {
    let reason = |message: &'_ wire::ImporterMessage| matches!(message.body, Some(ToExporter::Resync(_)));
    let text = |message: &'_ wire::ImporterMessage| match &message.body {
        Some(ToExporter::Resync(resync)) => resync.reason.clone().leak() as &str,
        _ => "",
    };
    pair.to_exporter.iter().filter(|message| reason(message)).map(text).collect()
}

const OUT_OF_SEQUENCE: &str = "FAILED_PRECONDITION OUT_OF_SEQUENCE (resync asked)";

#[test]
fn a_snapshot_and_then_changes_arrive() {
    let mut pair = Pair::new();
    pair.sync([service("shop/a", [endpoint(1, "v1")]), service("shop/b", [])]);
    pair.run(SECOND);
    assert_eq!(pair.imported(), ["shop/a", "shop/b"]);
    pair.upsert(service("shop/c", []));
    pair.local(LocalChange::Remove(key("shop/a")));
    pair.run(SECOND);
    assert_eq!(pair.imported(), ["shop/b", "shop/c"]);
    assert!(pair.closed.is_empty() && pair.rejected.is_empty(), "{:?} {:?}", pair.closed, pair.rejected);
}

#[test]
fn i2_p3_a_body_that_names_another_cluster_closes_and_changes_nothing() {
    let mut pair = live(&["shop/a"]);
    pair.reconnect();
    let before = pair.table.to_disk();
    pair.forge(export_open("c"));
    pair.forge(begin(1));
    pair.forge(complete(2, &[]));
    let text = pair.closed[0].to_string();
    assert_eq!(text, "PERMISSION_DENIED CLUSTER_MISMATCH (the stream is of b, the message says \"c\")");
    assert_eq!(pair.closed.len(), 1);
    assert_eq!(pair.imported(), ["shop/a"]);
    // Only the time it was last heard at may differ.
    assert_eq!(pair.table.to_disk().len(), before.len());
}

#[test]
fn the_first_message_is_an_open_message_and_no_other_is() {
    let mut pair = Pair::new();
    pair.forge(update(1, &["shop/a"]));
    assert_eq!(pair.closed[0].to_string(), "FAILED_PRECONDITION PROTOCOL (the first message is not an open message)");
    let mut pair = opened();
    pair.forge(export_open("b"));
    assert_eq!(pair.closed[0].to_string(), "FAILED_PRECONDITION PROTOCOL (a second open message)");
    assert!(pair.imported().is_empty());
}

#[test]
fn versions_we_do_not_speak_are_refused() {
    for version in [0, 2, 999] {
        let mut pair = Pair::new();
        pair.forge(FromExporter::Open(wire::ExportOpen { version, epoch: 7, cluster: "b".into() }));
        let text = pair.closed[0].to_string();
        assert!(text.starts_with("FAILED_PRECONDITION VERSION_UNSUPPORTED (we speak 1-1"), "{text}");
    }
}

#[test]
fn i4_changes_before_a_snapshot_ask_for_one() {
    let mut pair = opened();
    pair.forge(update(1, &["shop/a"]));
    assert_eq!(resyncs(&pair), [OUT_OF_SEQUENCE]);
    assert!(pair.imported().is_empty() && pair.closed.is_empty());
    for body in [chunk(1, &["shop/a"]), complete(1, &[]), FromExporter::Unchanged(wire::Unchanged { sequence: 1 })] {
        let mut pair = opened();
        pair.forge(body);
        assert_eq!(resyncs(&pair), [OUT_OF_SEQUENCE]);
    }
}

#[test]
fn i4_gaps_and_repetitions_change_nothing_and_ask_for_a_snapshot() {
    for sequence in [5, 3, 1, 0, u64::MAX] {
        let mut pair = forged(&["shop/a"]);
        pair.forge(update(sequence, &["shop/x"]));
        assert_eq!(resyncs(&pair), [OUT_OF_SEQUENCE], "sequence {sequence}");
        assert_eq!(pair.imported(), ["shop/a"]);
        // Nothing else counts until a whole snapshot begins.
        pair.forge(update(5, &["shop/x"]));
        pair.forge(complete(6, &[]));
        assert_eq!(pair.imported(), ["shop/a"]);
        assert_eq!(resyncs(&pair).len(), 1);
    }
}

#[test]
fn i8_resyncs_are_asked_once_per_5_s() {
    let mut pair = forged(&["shop/a"]);
    for round in 0..5_u64 {
        // Each answer is broken again.
        let sequence = 100 * (round + 1);
        pair.forge(update(sequence, &[]));
        pair.forge(begin(sequence + 1));
        pair.forge(complete(sequence + 2, &["shop/a", "shop/lost"]));
        pair.pass(Duration::from_millis(100));
        pair.timers();
    }
    assert_eq!(resyncs(&pair).len(), 1, "in half a second");
    let asked_at = pair.import.next_timeout(&pair.table, pair.now).unwrap();
    assert_eq!(asked_at - pair.now.mono, Duration::from_millis(4_500));
    pair.pass(Duration::from_millis(4_500));
    pair.timers();
    assert_eq!(resyncs(&pair), [OUT_OF_SEQUENCE, "FAILED_PRECONDITION DIGEST_MISMATCH (resync asked)"]);
    assert_eq!(pair.imported(), ["shop/a"]);
    // The answer to it is taken, from the beginning of a whole snapshot on.
    pair.forge(begin(900));
    pair.forge(chunk(901, &["shop/a", "shop/b"]));
    pair.forge(complete(902, &["shop/a", "shop/b"]));
    assert_eq!(pair.imported(), ["shop/a", "shop/b"]);
}

#[test]
fn i4_a_part_is_an_answer_to_what_is_held_only() {
    let part = |sequence| FromExporter::Begin(wire::SnapshotBegin { sequence, buckets: 1 });
    let mut pair = opened();
    pair.forge(part(1));
    assert_eq!(resyncs(&pair), [OUT_OF_SEQUENCE], "nothing was held");
    let mut pair = forged(&["shop/a"]);
    pair.forge(part(4));
    assert_eq!(resyncs(&pair), [OUT_OF_SEQUENCE], "it is not the first answer");
}

#[test]
fn f24_a_session_that_was_superseded_changes_nothing() {
    let mut pair = forged(&["shop/a"]);
    let mut old = std::mem::replace(
        &mut pair.import,
        ImportSession::start(&mut pair.table, &pair.rules, pair.limits.clone(), pair.now).0,
    );
    let message = wire::ExporterMessage { body: Some(update(4, &["shop/stale"])) };
    let actions = old.handle(&mut pair.table, message.clone(), pair.now);
    let superseded = matches!(actions.last(), Some(ImportAction::Close { reason: CloseReason::Superseded }));
    assert!(superseded, "{actions:?}");
    assert!(old.handle(&mut pair.table, message, pair.now).is_empty());
    assert!(old.handle_timeout(&mut pair.table, pair.now).is_empty());
    assert_eq!(old.next_timeout(&pair.table, pair.now), None);
    assert_eq!(pair.imported(), ["shop/a"]);
}

#[test]
fn p1_a_service_the_rules_do_not_allow_is_refused_and_the_rest_applied() {
    let mut pair = opened();
    let names = ["kube-system/x", "other/y", "shop/a", "istio-system/z"];
    pair.forge(begin(1));
    pair.forge(chunk(2, &names));
    pair.forge(complete(3, &names));
    assert_eq!(pair.imported(), ["shop/a"]);
    assert_eq!(pair.rejected, [(Some(key("kube-system/x")), RejectReason::NotAllowed, 3)]);
    assert_eq!(RejectReason::NotAllowed.to_string(), "not allowed by the import rules of the Peer");
    pair.pass(SECOND);
    pair.forge(update(4, &["kube-system/x", "shop/b"]));
    assert_eq!(pair.imported(), ["shop/a", "shop/b"]);
    assert_eq!(pair.rejected.len(), 2);
    let told = format!("{:?}", pair.applied);
    assert!(!told.contains("kube-system") && !told.contains("other/y"), "{told}");
}

#[test]
fn p1_not_even_a_filter_lets_kubernetes_in() {
    for namespace in ["kube-system", "kube-*", "*", "istio-system", "eastway-system"] {
        let entry = NameFilterEntry { namespace: Glob::parse(namespace).unwrap(), services: vec![Glob::any()] };
        assert!(NameFilter::new(vec![entry]).is_err(), "{namespace}: no such rule can be made");
    }
}

#[test]
fn p4_unreadable_records_reject_only_themselves() {
    let mut pair = opened();
    pair.forge(begin(1));
    let garbage = |bytes: &'static [u8]| wire::ServiceState { service: bytes.into(), counts: Vec::new() };
    let mut services =
        vec![garbage(&[0xff; 9]), state("shop/a"), garbage(b""), garbage(b"\x0a\x03a\nb"), state("shop/a")];
    services.push(state("shop/b"));
    pair.forge(FromExporter::Chunk(wire::SnapshotChunk { sequence: 2, services }));
    pair.forge(complete(3, &["whatever/the-digest-says"]));
    assert_eq!(pair.imported(), ["shop/a", "shop/b"]);
    let kinds: Vec<_> = pair.rejected.iter().map(|(_, reason, count)| (reason.kind(), *count)).collect();
    assert_eq!(kinds, [("bad_name", 2), ("duplicate", 1), ("unreadable", 1)]);
    // What is held is not what the peer sent, so the next session takes no digest for granted.
    pair.reconnect();
    let Some(ToExporter::Open(open)) = pair.to_exporter.pop_front().and_then(|message| message.body) else { panic!() };
    assert_eq!(open.held, None);
}

#[test]
fn i4_a_bad_version_of_a_service_leaves_the_last_good_one_in_use() {
    let mut pair = forged(&["shop/a"]);
    let mut body = wire::Service::decode(state("shop/a").service).unwrap();
    body.ports[0].number = 65_536;
    let bad = wire::ServiceState { service: body.encode_to_vec().into(), counts: Vec::new() };
    pair.forge(FromExporter::Update(wire::Update { sequence: 4, services: vec![bad], ..Default::default() }));
    assert_eq!(pair.imported(), ["shop/a"]);
    assert_eq!(pair.rejected, [(Some(key("shop/a")), RejectReason::BadPort(65_536), 1)]);
    assert_eq!(pair.table.refused().count(), 1);
    pair.forge(update(5, &["shop/a"]));
    assert_eq!(pair.table.refused().count(), 0);
}

#[test]
fn i4_removal_of_the_unknown_is_no_error() {
    let mut pair = forged(&["shop/a"]);
    let removed = vec![key_to_wire(&key("shop/never-there"))];
    pair.forge(FromExporter::Update(wire::Update { sequence: 4, removed, ..Default::default() }));
    assert_eq!(pair.imported(), ["shop/a"]);
    assert!(pair.rejected.is_empty() && pair.closed.is_empty() && resyncs(&pair).is_empty());
}

#[test]
fn f29_messages_of_a_later_version_are_ignored_and_counted() {
    let mut pair = forged(&["shop/a"]);
    let actions = pair.import.handle(&mut pair.table, wire::ExporterMessage { body: None }, pair.now);
    pair.import_actions(actions);
    assert_eq!(pair.rejected, [(None, RejectReason::UnknownMessage, 1)]);
    assert!(pair.import.is_live());
}

#[test]
fn f29_fields_of_a_later_version_are_ignored_and_in_the_digest() {
    let mut pair = opened();
    let mut bytes = state("shop/a").service.to_vec();
    bytes.extend_from_slice(&[0xa2, 0x06, 3, b'n', b'e', b'w']);
    let extended = wire::ServiceState { service: bytes.into(), counts: Vec::new() };
    let hash = crate::digest::ServiceHash::new(&crate::digest::static_hash(&extended.service), &[]);
    let mut digest = crate::digest::ServicesDigest::default();
    digest.add(&key("shop/a"), &hash);
    pair.forge(begin(1));
    pair.forge(FromExporter::Chunk(wire::SnapshotChunk { sequence: 2, services: vec![extended] }));
    pair.forge(FromExporter::Complete(wire::Complete { sequence: 3, digest: digest.to_bytes().into() }));
    assert_eq!(pair.imported(), ["shop/a"]);
    assert!(pair.import.is_live() && pair.rejected.is_empty());
}

#[test]
fn i6_export_times_are_clamped_and_a_reconnect_does_not_make_them_younger() {
    let mut pair = Pair::new();
    let with_time = |text: &str, at: u64| {
        let mut service = service(text, []);
        Arc::make_mut(&mut service.record).exported_at = UnixMillis(at);
        service
    };
    pair.sync([with_time("shop/future", 1 << 50), with_time("shop/old", 3), with_time("shop/fair", 5_000)]);
    pair.run(SECOND);
    let times = |pair: &Pair| pair.table.services().map(|record| record.exported_at).collect::<Vec<_>>();
    let first = times(&pair);
    assert_eq!(first, [UnixMillis(5_000), UnixMillis(1_000_000), UnixMillis(1_000)], "fair, future, old");
    pair.pass(100 * SECOND);
    // A whole snapshot of the same, and then a version with another port but the same claim.
    pair.table.services.set_untracked();
    pair.reconnect();
    pair.run(SECOND);
    assert!(pair.import.is_live());
    assert_eq!(times(&pair), first);
    pair.pass(100 * SECOND);
    let mut changed = with_time("shop/future", 1 << 50);
    Arc::make_mut(&mut changed.record).ports.push(crate::testing::port("more", 99));
    pair.upsert(changed);
    pair.run(SECOND);
    assert_eq!(times(&pair), first);
    assert_eq!(pair.table.services().nth(1).unwrap().ports.len(), 2);
}

#[test]
fn i6_a_peers_message_can_say_nothing_but_changes_of_that_peer() {
    // By type: a session's only way to the store is a `PeerChange`, and which peer it is of is said
    // by the caller, who has it from the certificate.
    let mut pair = opened();
    pair.forge(begin(1));
    pair.forge(chunk(2, &["shop/a"]));
    pair.forge(complete(3, &["shop/a"]));
    assert!(matches!(pair.applied.as_slice(), [PeerChange::Replace(records)] if records.len() == 1));
}

#[test]
fn rules_that_allow_less_take_effect_at_once() {
    let mut pair = live(&["shop/a", "ops/b"]);
    assert_eq!(pair.imported(), ["shop/a"]);
    let mut rules = PeerRules::new(name("b"), "b.example", UnixMillis(1_000));
    rules.import = filter(&["ops"]);
    pair.rules = Arc::new(rules);
    let actions = pair.import.set_rules(&mut pair.table, &pair.rules.clone(), pair.now);
    pair.import_actions(actions);
    assert!(pair.imported().is_empty(), "gone before the peer says anything");
    assert!(matches!(pair.applied.as_slice(), [PeerChange::Remove(gone)] if *gone == key("shop/a")));
    pair.run(6 * SECOND);
    assert_eq!(pair.imported(), ["ops/b"], "and what is newly allowed was asked for");
}

#[test]
fn rules_that_changed_while_the_peer_was_away_count_at_the_next_session() {
    let mut pair = live(&["shop/a", "ops/b"]);
    let mut rules = PeerRules::new(name("b"), "b.example", UnixMillis(1_000));
    rules.import = filter(&["ops"]);
    pair.rules = Arc::new(rules);
    pair.reconnect();
    assert!(pair.imported().is_empty());
    pair.run(SECOND);
    assert_eq!(pair.imported(), ["ops/b"]);
}

#[test]
fn p3_a_changed_trust_domain_takes_foreign_identities_out_of_use() {
    let mut pair = Pair::new();
    pair.sync([service("shop/a", [endpoint(1, "v1")]), service("shop/plain", [])]);
    pair.run(SECOND);
    let mut rules = (*pair.rules).clone();
    rules.trust_domain = "c.example".into();
    pair.rules = Arc::new(rules);
    let actions = pair.import.set_rules(&mut pair.table, &pair.rules.clone(), pair.now);
    pair.import_actions(actions);
    assert_eq!(pair.imported(), ["shop/plain"]);
    assert_eq!(pair.rejected[0].1.kind(), "foreign_identity");
}

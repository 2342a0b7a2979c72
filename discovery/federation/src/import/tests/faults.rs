//! Faults of peers, links and disks as the importer lives through them.

use super::*;
use crate::table::ImageError;

#[test]
fn f15_a_snapshot_cut_anywhere_changes_nothing() {
    let mut pair = live(&["shop/a", "shop/b"]);
    let old = pair.imported();
    pair.sync((0..150).map(|n| service(&format!("shop/new-{n:03}"), [])));
    pair.limits.chunk_bytes = 1_000;
    let new: Vec<String> = (0..150).map(|n| format!("shop/new-{n:03}")).collect();
    for cut in 0.. {
        pair.reconnect();
        let mut delivered = 0;
        while delivered < cut && pair.deliver_one() {
            delivered += 1;
        }
        let imported = pair.imported();
        assert!(imported == old || imported == new, "cut after {cut}: {} services", imported.len());
        if imported == new {
            assert!(cut > 10, "a snapshot in many chunks");
            return;
        }
        pair.applied.clear();
    }
}

#[test]
fn f15_a_digest_that_does_not_match_changes_nothing() {
    let mut pair = forged(&["shop/a"]);
    pair.reconnect();
    pair.to_exporter.clear();
    pair.forge(export_open("b"));
    pair.forge(begin(1));
    pair.forge(chunk(2, &["shop/b"]));
    pair.forge(complete(3, &["shop/b", "shop/lost"]));
    assert_eq!(pair.imported(), ["shop/a"]);
    assert_eq!(resyncs(&pair), ["FAILED_PRECONDITION DIGEST_MISMATCH (resync asked)"]);
}

#[test]
fn f15_a_snapshot_that_stalls_is_given_up() {
    let mut pair = forged(&["shop/a"]);
    pair.reconnect();
    pair.run(600 * SECOND);
    assert!(pair.closed.is_empty(), "before its open message a peer may take any time to sync");
    pair.forge(export_open("b"));
    pair.forge(begin(1));
    pair.pass(29 * SECOND);
    pair.timers();
    assert!(pair.closed.is_empty());
    pair.pass(SECOND);
    pair.timers();
    assert_eq!(pair.closed, [CloseReason::Stalled]);
    assert_eq!(pair.imported(), ["shop/a"]);
}

#[test]
fn f14_i5_a_peer_that_restarts_unsynced_empties_nothing() {
    let mut pair = live(&["shop/a", "shop/b"]);
    // The peer's new process: a store that knows nothing yet.
    let fresh = Pair::new();
    (pair.writer, pair.reader) = (fresh.writer, fresh.reader);
    pair.writer.await_registries([name("file")]);
    pair.reconnect();
    for _ in 0..100 {
        pair.run(SECOND);
        assert_eq!(pair.imported(), ["shop/a", "shop/b"]);
    }
    pair.sync([service("shop/b", [])]);
    pair.run(SECOND);
    assert_eq!(pair.imported(), ["shop/b"]);
}

#[test]
fn f13_a_peer_with_an_older_state_brings_nothing_back() {
    let mut pair = live(&["shop/a", "shop/b"]);
    pair.sync([service("shop/b", []), service("shop/c", [])]);
    pair.run(SECOND);
    // It restarts from a backup of the first state, and then learns of the second again.
    pair.sync([service("shop/a", []), service("shop/b", [])]);
    pair.reconnect();
    pair.run(SECOND);
    assert_eq!(pair.imported(), ["shop/a", "shop/b"], "what the peer has now");
    pair.sync([service("shop/b", []), service("shop/c", [])]);
    pair.run(SECOND);
    assert_eq!(pair.imported(), ["shop/b", "shop/c"]);
}

#[test]
fn f4_while_the_peer_is_away_everything_stays() {
    let mut pair = live(&["shop/a"]);
    pair.to_exporter.clear();
    pair.import.end(&mut pair.table, CloseReason::Draining).clear();
    pair.pass(6 * 3600 * SECOND);
    assert_eq!(pair.imported(), ["shop/a"]);
}

#[test]
fn f20_only_a_whole_image_is_read() {
    let mut pair = Pair::new();
    pair.table.set_subscriptions([key("shop/a")]);
    pair.reconnect();
    pair.sync([service("shop/a", (0..5).map(|n| endpoint(n, "v1"))), service("ops/not-allowed", [])]);
    pair.run(SECOND);
    let image = pair.table.to_disk();
    let read =
        |image: &[u8]| ImportTable::from_disk(image, name("a"), name("b"), &pair.rules, Limits::default(), pair.now);
    let table = read(&image).unwrap();
    assert_eq!(table.to_disk(), image);
    assert_eq!(table.services().collect::<Vec<_>>(), pair.table.services().collect::<Vec<_>>());
    assert_eq!(table.endpoints(&key("shop/a")), pair.table.endpoints(&key("shop/a")));
    assert_eq!(table.held(), pair.table.held());
    for length in 0..image.len() {
        assert_eq!(read(&image[..length]).unwrap_err(), ImageError::Checksum, "cut to {length}");
    }
    for index in 0..image.len() {
        let mut image = image.clone();
        image[index] ^= 0x10;
        assert_eq!(read(&image).unwrap_err().to_string(), "snapshot rejected: checksum", "byte {index}");
    }
    assert_eq!(read(&[image.clone(), vec![0]].concat()).unwrap_err(), ImageError::Checksum);
    assert_eq!(read(&vec![0; 1 << 16]).unwrap_err(), ImageError::Checksum);
    let other = ImportTable::from_disk(&image, name("a"), name("c"), &pair.rules, Limits::default(), pair.now);
    assert_eq!(other.unwrap_err(), ImageError::OtherPeer);
    let mut late = pair.now;
    late.wall = late.wall.plus(25 * 3600 * SECOND);
    let withdrawn = ImportTable::from_disk(&image, name("a"), name("b"), &pair.rules, Limits::default(), late);
    assert!(matches!(withdrawn, Err(ImageError::Withdrawn(_))));
}

#[test]
fn f17_a_restart_serves_from_disk_and_resumes_for_less_than_1_kb() {
    let mut pair = Pair::new();
    pair.table.set_subscriptions([key("shop/a")]);
    pair.reconnect();
    pair.sync([service("shop/a", (0..50).map(|n| endpoint(n, "v1"))), service("ops/not-allowed", [])]);
    pair.run(SECOND);
    let image = pair.table.to_disk();
    pair.table =
        ImportTable::from_disk(&image, name("a"), name("b"), &pair.rules, Limits::default(), pair.now).unwrap();
    let restored = pair.table.restore(UnixMillis(7));
    assert!(matches!(&restored[0], PeerChange::LastHeard(UnixMillis(7))));
    assert!(matches!(&restored[1], PeerChange::Replace(records) if records.len() == 1));
    assert!(matches!(&restored[2], PeerChange::Endpoints { upsert, .. } if upsert.len() == 50));
    pair.reconnect();
    pair.run(SECOND);
    assert!(pair.import.is_live());
    assert!(pair.bytes < 1_000, "{} bytes", pair.bytes);
}

#[test]
fn f20_an_image_is_checked_by_the_rules_of_today() {
    let mut pair = live(&["shop/a", "ops/b"]);
    let image = pair.table.to_disk();
    let mut rules = PeerRules::new(name("b"), "b.example", UnixMillis(1_000));
    rules.import = filter(&["ops"]);
    pair.rules = Arc::new(rules);
    pair.table =
        ImportTable::from_disk(&image, name("a"), name("b"), &pair.rules, Limits::default(), pair.now).unwrap();
    assert!(pair.imported().is_empty());
    pair.reconnect();
    pair.run(SECOND);
    assert_eq!(pair.imported(), ["ops/b"]);
}

#[test]
fn a_reconnect_after_no_change_costs_less_than_1_kb() {
    let mut pair = Pair::new();
    pair.sync((0..1_000).map(|n| service(&format!("shop/s{n}"), [endpoint(n, "v1")])));
    pair.run(SECOND);
    let whole = pair.bytes;
    pair.reconnect();
    pair.run(SECOND);
    assert!(pair.import.is_live());
    assert!(pair.bytes < 1_000, "{} bytes instead of {whole}", pair.bytes);
    println!("reconnect after no change: {} bytes instead of {whole}", pair.bytes);
}

#[test]
fn a_reconnect_after_one_change_costs_a_bucket() {
    let mut pair = Pair::new();
    pair.sync((0..1_000).map(|n| service(&format!("shop/s{n}"), [endpoint(n, "v1")])));
    pair.run(SECOND);
    let whole = pair.bytes;
    pair.to_importer.clear();
    pair.local(LocalChange::Remove(key("shop/s7")));
    pair.upsert(service("shop/s8", [endpoint(8, "v2")]));
    pair.reconnect();
    pair.run(SECOND);
    assert_eq!(pair.imported().len(), 999);
    assert_eq!(
        pair.table.services().filter(|record| record.groups[0].subset.get("version") == Some(&"v2".into())).count(),
        1
    );
    assert!(pair.bytes < whole / 10, "{} bytes instead of {whole}", pair.bytes);
}

#[test]
fn a_switch_to_a_replica_with_the_same_contents_costs_less_than_1_kb() {
    let mut pair = live(&["shop/a", "shop/b"]);
    let mut other = Pair::new();
    other.sync([service("shop/b", []), service("shop/a", [])]);
    (pair.writer, pair.reader) = (other.writer, other.reader);
    pair.reconnect();
    pair.run(SECOND);
    assert!(pair.import.is_live() && pair.bytes < 1_000);
    assert!(matches!(pair.applied.as_slice(), [PeerChange::Replace(_)]), "the store is told anew what it holds");
}

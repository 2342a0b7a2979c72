//! What a peer may cost (P7, P8, I8).

use super::*;

fn with_services(quota: usize) -> Pair {
    let mut pair = Pair::with_limits(Limits { services: quota, ..Limits::default() });
    pair.to_exporter.clear();
    pair.forge(export_open("b"));
    pair
}

fn named(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("shop/s{n:05}")).collect()
}

fn texts(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

#[test]
fn p7_beyond_the_quota_the_newest_are_refused_and_existing_ones_kept() {
    let mut pair = with_services(10);
    let first = named(5..15);
    pair.forge(begin(1));
    pair.forge(chunk(2, &texts(&first)));
    pair.forge(complete(3, &texts(&first)));
    assert_eq!(pair.imported(), first);
    pair.pass(SECOND);
    pair.forge(update(4, &["shop/s00000", "shop/s00005"]));
    assert_eq!(pair.imported(), first);
    assert_eq!(pair.rejected[0].1.to_string(), "QUOTA services 10");
    // In a snapshot too, whatever its order.
    let all = named(0..25);
    pair.forge(begin(5));
    pair.forge(chunk(6, &texts(&all)));
    pair.forge(complete(7, &texts(&all)));
    assert_eq!(pair.imported(), first);
    // When all old ones are gone there is room for as many new ones.
    let others = named(100..110);
    pair.forge(begin(8));
    pair.forge(chunk(9, &texts(&others)));
    pair.forge(complete(10, &texts(&others)));
    assert_eq!(pair.imported(), others);
    assert!(pair.closed.is_empty());
}

#[test]
fn p7_a_quota_with_room_again_asks_for_what_it_refused() {
    let mut pair = Pair::with_limits(Limits { services: 2, ..Limits::default() });
    pair.sync([service("shop/a", []), service("shop/b", []), service("shop/c", [])]);
    pair.run(SECOND);
    assert_eq!(pair.imported(), ["shop/a", "shop/b"]);
    pair.local(LocalChange::Remove(key("shop/a")));
    pair.run(120 * SECOND);
    assert_eq!(pair.imported(), ["shop/b", "shop/c"]);
}

#[test]
fn p7_a_million_refused_records_leave_nothing_behind() {
    let mut pair = with_services(100);
    pair.forge(begin(1));
    let mut sequence = 1;
    for part in 0..50_usize {
        sequence += 1;
        let names = named(part * 1_000..(part + 1) * 1_000);
        pair.forge(chunk(sequence, &texts(&names)));
        pair.pass(SECOND);
        pair.timers();
    }
    let Phase::Snapshot(staging) = &pair.import.phase else { panic!("{:?}", pair.import.phase) };
    assert!(staging.len() <= 300, "{} services wait for the end", staging.len());
    pair.forge(complete(sequence + 1, &[]));
    assert_eq!(pair.table.services().count(), 100);
    let reported: usize = pair.rejected.iter().map(|(_, _, count)| count).sum();
    assert!(reported >= 49_900, "each is counted");
    assert!(pair.rejected.len() < 200, "but not each is an action");
}

#[test]
fn p8_churn_reaches_the_store_at_most_40_times_a_second() {
    let mut pair = forged(&["shop/a"]);
    pair.applied.clear();
    let from = pair.now.mono;
    let mut sequence = 3;
    // 10,000 updates a second, as far as the window lets a peer send them.
    while pair.now.mono < from + SECOND {
        let unacknowledged = sequence - pair.import.acknowledged;
        if unacknowledged < 32 {
            sequence += 1;
            let mut service = service("shop/a", []);
            Arc::make_mut(&mut service.record).exported_at = UnixMillis(2_000 + sequence);
            let services = vec![EncodedService::new(&service.record).into_wire()];
            pair.forge(FromExporter::Update(wire::Update { sequence, services, ..Default::default() }));
        }
        pair.pass(Duration::from_micros(100));
        pair.timers();
    }
    assert!(pair.closed.is_empty());
    assert!(pair.applied.len() <= 41, "{} changes", pair.applied.len());
    pair.run(SECOND);
    let claimed = pair.table.services().next().unwrap().exported_at;
    assert_eq!(claimed, UnixMillis(2_000 + sequence), "the last one wins");
    assert!(matches!(pair.applied.last(), Some(PeerChange::Upsert(record)) if record.exported_at == claimed));
}

#[test]
fn p8_a_change_after_a_calm_goes_at_once() {
    let mut pair = forged(&["shop/a"]);
    pair.applied.clear();
    pair.forge(update(4, &["shop/b"]));
    assert!(matches!(pair.applied.as_slice(), [PeerChange::Upsert(_)]));
    assert!(matches!(pair.to_exporter.back().unwrap().body, Some(ToExporter::Ack(wire::Ack { sequence: 4 }))));
}

#[test]
fn p8_records_beyond_the_rate_are_acknowledged_later() {
    let limits = Limits { records_per_second: 100, record_burst: 200, ..Limits::default() };
    let mut pair = Pair::with_limits(limits);
    pair.to_exporter.clear();
    pair.forge(export_open("b"));
    pair.forge(begin(1));
    pair.forge(complete(2, &[]));
    pair.pass(SECOND);
    pair.timers();
    let names = named(0..1_200);
    pair.forge(update(3, &texts(&names)));
    let due = pair.import.next_timeout(&pair.table, pair.now).unwrap() - pair.now.mono;
    assert!(due > 9 * SECOND && due < 11 * SECOND, "{due:?}");
    assert!(pair.applied.iter().all(|change| matches!(change, PeerChange::Replace(_))));
    pair.pass(due);
    pair.timers();
    assert!(matches!(pair.to_exporter.back().unwrap().body, Some(ToExporter::Ack(wire::Ack { sequence: 3 }))));
    assert_eq!(pair.imported().len(), 1_200);
}

#[test]
fn i8_a_peer_that_ignores_the_window_is_closed() {
    let limits = Limits { records_per_second: 1, record_burst: 1, ..Limits::default() };
    let mut pair = Pair::with_limits(limits);
    pair.forge(export_open("b"));
    pair.forge(begin(1));
    pair.forge(chunk(2, &texts(&named(0..100))));
    for sequence in 3..100 {
        pair.forge(chunk(sequence, &[]));
    }
    assert_eq!(pair.closed.len(), 1);
    assert!(pair.closed[0].to_string().starts_with("RESOURCE_EXHAUSTED TOO_MUCH (more than 32 messages"));
}

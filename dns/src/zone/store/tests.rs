//! What a change costs readers and shards.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::entry::{PortEntry, Protocol, ServiceKind};
use crate::wire::Question;

fn service(index: usize, last: u8) -> ServiceEntry {
    ServiceEntry {
        namespace: format!("ns-{}", index % 100),
        name: format!("svc-{index}"),
        kind: ServiceKind::ClusterSet { addresses: vec![[242, 0, 0, last].into(), [242, 0, 1, last].into()] },
        ports: vec![PortEntry { name: Some("http".into()), protocol: Protocol::Tcp, port: 80 }],
    }
}

fn qname(index: usize) -> QName {
    let wire = build::service_name(&format!("ns-{}", index % 100), &format!("svc-{index}")).unwrap();
    let message = [&[0; 12][..], &wire, &[0, 1, 0, 1]].concat();
    let mut name = QName::new();
    Question::read(&message, &mut name).unwrap();
    name
}

fn pointers(store: &ZoneStore) -> Vec<usize> {
    store.shards.iter().map(|shard| Arc::as_ptr(&shard.load()) as usize).collect()
}

/// How many shards `change` replaces.
fn replaced(store: &ZoneStore, change: impl FnOnce()) -> usize {
    let before = pointers(store);
    // Held, so that no new shard can take the place of an old one in memory.
    let _held: Vec<_> = store.shards.iter().map(ArcSwap::load_full).collect();
    change();
    before.iter().zip(pointers(store)).filter(|(old, new)| **old != *new).count()
}

#[test]
fn one_changed_service_among_ten_thousand_replaces_one_shard() {
    let store = ZoneStore::new([]).unwrap();
    let services: Vec<_> = (0..10_000).map(|index| service(index, 1)).collect();
    store.replace_all(&services, &[]).unwrap();
    assert_eq!(replaced(&store, || assert!(store.upsert_service(&service(777, 2)).unwrap())), 1);
    assert_eq!(replaced(&store, || assert!(!store.upsert_service(&service(777, 2)).unwrap())), 0, "no change");
    assert_eq!(replaced(&store, || assert!(store.remove_service("ns-77", "svc-777"))), 1);
    assert_eq!(replaced(&store, || assert!(store.upsert_service(&service(777, 2)).unwrap())), 1);
    assert_eq!(replaced(&store, || store.replace_all(&services, &[]).unwrap()), 1, "only what differs");
    assert_eq!(replaced(&store, || store.replace_all(&services, &[]).unwrap()), 0);
    let sizes: Vec<_> = store.shards.iter().map(|shard| shard.load().len()).collect();
    assert!(sizes.iter().all(|size| (10..120).contains(size)), "shards are even: {sizes:?}");
}

#[test]
fn the_serial_follows_changes_only() {
    let store = ZoneStore::new([]).unwrap();
    store.upsert_service(&service(1, 1)).unwrap();
    store.serial.store(7, Ordering::Relaxed);
    store.upsert_service(&service(1, 1)).unwrap();
    assert_eq!(store.serial.load(Ordering::Relaxed), 7);
    store.upsert_service(&service(1, 2)).unwrap();
    assert!(store.serial.load(Ordering::Relaxed) > 1_700_000_000);
}

#[test]
fn readers_see_whole_answers_while_they_change() {
    let store = ZoneStore::new([]).unwrap();
    store.set_readiness(Readiness::complete());
    store.replace_all(&(0..1000).map(|index| service(index, 0)).collect::<Vec<_>>(), &[]).unwrap();
    let seen = AtomicUsize::new(0);
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    for index in (0..1000).step_by(37) {
                        store.resolve(&qname(index), rtype::A, Instant::now(), |resolution| {
                            let Resolution::Answer(answer) = resolution else { panic!("{index}: {resolution:?}") };
                            // Both addresses are of one version.
                            let bytes = answer.cut(usize::MAX).bytes;
                            assert_eq!((bytes.len(), bytes[15]), (32, bytes[31]));
                        });
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for round in 1..6 {
            (0..1000).for_each(|index| assert!(store.upsert_service(&service(index, round)).unwrap()));
        }
        while seen.load(Ordering::Relaxed) < 1000 {
            std::thread::yield_now();
        }
        is_done.store(true, Ordering::Relaxed);
    });
}

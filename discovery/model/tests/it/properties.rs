//! What holds for every sequence of changes.

use std::sync::Arc;

use eastway_model::routing::{RouteRequest, route};
use eastway_model::{Change, LocalChange, PeerChange};
use proptest::collection::vec;
use proptest::prelude::*;

use super::random::*;
use super::support::*;
use super::view::{PEERS, local_view, view};

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// I6, P4: whatever peers send, local truth, local exports and source identities stay.
    #[test]
    fn p4_peers_never_change_local_truth(
        before in vec(any_change(), 0..25),
        attack in vec(any_peer_change(), 1..25),
    ) {
        let (mut writer, reader) = store();
        writer.apply(before, NOW);
        let expected = local_view(&reader.load(), &addresses());
        for change in attack {
            writer.apply([change], NOW);
            prop_assert_eq!(&local_view(&reader.load(), &addresses()), &expected);
        }
    }

    /// A snapshot depends on what is true now, not on how it came to be.
    #[test]
    fn incremental_equals_from_scratch(changes in vec(any_change(), 1..40)) {
        let (mut writer, reader) = store();
        let mut world = World::default();
        for change in changes {
            world.apply(&change);
            writer.apply([change], NOW);
            let (_, scratch) = world.told_at_once();
            prop_assert_eq!(view(&reader.load(), &addresses()), view(&scratch.load(), &addresses()));
        }
    }

    /// One batch or many, with the same end.
    #[test]
    fn a_batch_equals_its_changes_one_by_one(changes in vec(any_change(), 1..40)) {
        let (mut one, one_reader) = store();
        let (mut many, many_reader) = store();
        one.apply(changes.clone(), NOW);
        for change in changes {
            many.apply([change], NOW);
        }
        prop_assert_eq!(view(&one_reader.load(), &addresses()), view(&many_reader.load(), &addresses()));
    }

    /// A complete snapshot is the removals and upserts that lead to it.
    #[test]
    fn i4_replace_equals_removes_and_upserts(
        before in vec(any_change(), 0..20),
        records in vec(any_record().prop_map(Arc::new), 0..4),
    ) {
        let (mut whole, whole_reader) = store();
        let (mut steps, steps_reader) = store();
        for writer in [&mut whole, &mut steps] {
            writer.apply(before.clone(), NOW);
            writer.apply([peer("gke", PeerChange::Upsert(Arc::new(record("bookinfo/old"))))], NOW);
        }
        whole.apply([peer("gke", PeerChange::Replace(records.clone()))], NOW);
        for key in SERVICES.map(key).into_iter().chain([key("bookinfo/old")]) {
            if !records.iter().any(|record| record.key == key) {
                steps.apply([peer("gke", PeerChange::Remove(key))], NOW);
            }
        }
        steps.apply(records.into_iter().map(|record| peer("gke", PeerChange::Upsert(record))), NOW);
        let (whole, steps) = (view(&whole_reader.load(), &addresses()), view(&steps_reader.load(), &addresses()));
        prop_assert_eq!(whole.imports, steps.imports);
        prop_assert_eq!(whole.local, steps.local);
    }

    /// What registries and peers say is merged alike in whatever order they say it.
    #[test]
    fn the_order_of_origins_does_not_matter(
        changes in vec(any_change(), 1..40),
        seed in any::<u64>(),
    ) {
        let mut world = World::default();
        changes.iter().for_each(|change| world.apply(change));
        let (_, reader) = world.told_at_once();
        // Changes of one origin keep their order; those of different origins are interleaved.
        let mut by_origin: Vec<Vec<Change>> = Vec::new();
        for change in world.changes() {
            match by_origin.last_mut() {
                Some(last) if origin(&last[0]) == origin(&change) => last.push(change),
                _ => by_origin.push(vec![change]),
            }
        }
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut shuffled, shuffled_reader) = store();
        while !by_origin.is_empty() {
            let index = random.usize(..by_origin.len());
            let change = by_origin[index].remove(0);
            if by_origin[index].is_empty() {
                by_origin.remove(index);
            }
            shuffled.apply([change], NOW);
        }
        prop_assert_eq!(view(&reader.load(), &addresses()), view(&shuffled_reader.load(), &addresses()));
    }

    /// A snapshot is published exactly if something in it differs, and its version counts it.
    #[test]
    fn a_snapshot_is_published_only_on_change(changes in vec(any_change(), 1..40)) {
        let (mut writer, reader) = store();
        for change in changes {
            let before = reader.load_full();
            let published = writer.apply([change.clone()], NOW);
            let after = reader.load_full();
            let differs = view(&before, &addresses()) != view(&after, &addresses());
            prop_assert_eq!(published, differs, "{:?}", change);
            prop_assert_eq!(after.version(), before.version() + u64::from(published));
            // To say it again changes nothing.
            if !matches!(change, Change::Local { change: LocalChange::Removed, .. }) {
                prop_assert!(!writer.apply([change], NOW));
            }
        }
    }

    /// Who was at any earlier version is told every service that differs.
    #[test]
    fn changes_since_names_all_that_differs(changes in vec(any_change(), 1..30)) {
        let (mut writer, reader) = store();
        let mut history = vec![reader.load_full()];
        for change in changes {
            if writer.apply([change], NOW) {
                history.push(reader.load_full());
            }
        }
        let now = reader.load_full();
        for old in history {
            let Some(told) = now.changes_since(old.version()) else {
                prop_assert!(false, "forgotten after {} versions", now.version() - old.version());
                continue;
            };
            for name in SERVICES {
                let key = key(name);
                let differs = old.local(&key) != now.local(&key) || old.import(&key) != now.import(&key);
                prop_assert!(!differs || told.contains(&key), "{} changed since {}", key, old.version());
            }
            prop_assert!(told.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    /// I3, I7, P1, P13: a route leads only to what its owner exports and our rules let in; what is
    /// offered to a peer is local, exported and allowed, and never an import.
    #[test]
    fn p13_routes_and_exports_stay_within_what_is_exported(
        changes in vec(any_change(), 1..40),
        seed in any::<u64>(),
    ) {
        let (mut writer, reader) = store();
        writer.apply(changes, NOW);
        let snapshot = reader.load_full();
        let mut random = fastrand::Rng::with_seed(seed);
        for name in SERVICES {
            let key = key(name);
            for cluster in PEERS {
                let offered = snapshot.export_to(&label(cluster), &key);
                let expected = snapshot.local(&key).filter(|local| {
                    local.exported && key.namespace == label("bookinfo") && cluster != "evil"
                });
                prop_assert_eq!(offered, expected);
            }
            for number in [8080, 9080, 9090] {
                let request = RouteRequest::tcp(port_number(number));
                let Ok(found) = route(&snapshot, &key, &request, |below| random.u64(..below)) else { continue };
                for candidate in found.candidates {
                    let part = snapshot.import(&key).unwrap().part(candidate.cluster.as_ref()).unwrap();
                    prop_assert!(part.serves(request.protocol, request.port));
                    prop_assert!(candidate.cluster.is_some() || snapshot.local(&key).unwrap().exported);
                    prop_assert!(candidate.cluster.is_none() || key.namespace == label("bookinfo"));
                    prop_assert!(candidate.cluster != Some(label("evil")));
                }
            }
        }
    }

    /// I4: records go only by Remove, Replace, Removed and withdrawal.
    #[test]
    fn i4_only_explicit_words_delete(changes in vec(any_peer_change(), 1..40)) {
        let (mut writer, reader) = store();
        for change in changes {
            let before = reader.load_full();
            writer.apply([change.clone()], NOW);
            let deletes = matches!(
                change,
                Change::Peer { change: PeerChange::Remove(_) | PeerChange::Replace(_) | PeerChange::Removed, .. }
            );
            if !deletes {
                let after = reader.load_full();
                for import in before.imports() {
                    let still = after.import(&import.key).unwrap();
                    prop_assert!(still.parts.len() >= import.parts.len());
                }
            }
        }
    }
}

fn origin(change: &Change) -> (bool, String) {
    match change {
        Change::Local { registry, .. } => (true, registry.to_string()),
        Change::Peer { cluster, .. } => (false, cluster.to_string()),
    }
}

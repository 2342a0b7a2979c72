//! Endpoint lists against a plain map, with enough endpoints for many chunks.

use std::collections::BTreeMap;
use std::sync::Arc;

use eastway_model::endpoint::Shapes;
use eastway_model::{Endpoint, EndpointId, LocalEndpoint, LocalEndpoints, RemoteEndpoints};
use proptest::collection::vec;
use proptest::prelude::*;

use super::support::*;

/// Edits of up to 1,000 ids: removals of whole ranges, so that chunks empty, and additions in runs,
/// so that they split.
fn edits() -> impl Strategy<Value = Vec<(u32, bool, u32)>> {
    let run = (0..1_000_u32, 1..300_u32, any::<bool>(), 1..5_u32);
    vec(run, 1..12).prop_map(|runs| {
        let each = |(start, length, add, weight)| (start..start + length).map(move |n| (n, add, weight));
        runs.into_iter().flat_map(each).collect()
    })
}

fn numbered(number: u32, weight: u32) -> LocalEndpoint {
    let endpoint = Endpoint {
        weight,
        hostname: number.is_multiple_of(3).then(|| label(&format!("host-{number}"))),
        ..endpoint(&format!("e{number:04}"), ["v1", "v2", "v3"][weight as usize % 3])
    };
    LocalEndpoint { endpoint, ..local_endpoint(number, "v1") }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn local_endpoint_lists_equal_a_map(edits in edits(), batch in 1..400_usize) {
        let (mut list, mut map) = (LocalEndpoints::default(), BTreeMap::new());
        for batch in edits.chunks(batch) {
            let mut now: Vec<(EndpointId, Option<Arc<LocalEndpoint>>)> = Vec::new();
            for (number, add, weight) in batch {
                let endpoint = Arc::new(numbered(*number, *weight));
                let id = endpoint.endpoint.id.clone();
                if *add { map.insert(id.clone(), Arc::clone(&endpoint)) } else { map.remove(&id) };
                now.push((id, add.then_some(endpoint)));
            }
            let before = list.clone();
            let kept: Vec<_> = before.iter().cloned().collect();
            list = list.edited(&now);
            prop_assert!(before.iter().eq(&kept), "an edit changed the original");
            prop_assert!(list.iter().eq(map.values()));
            prop_assert_eq!(list.len(), map.len());
            prop_assert_eq!(list.max_weight(), map.values().map(|e| e.endpoint.weight).max().unwrap_or(0));
        }
        for (index, (id, endpoint)) in map.iter().enumerate() {
            prop_assert_eq!(list.nth(index), Some(endpoint));
            prop_assert_eq!(list.get(id), Some(endpoint));
        }
        prop_assert_eq!(list.nth(map.len()), None);
        prop_assert_eq!(list.get(&id("e9999")), None);
        // Equal whatever the chunks are like.
        let again: LocalEndpoints = map.into_values().collect();
        prop_assert_eq!(&list, &again);
        if let Some(first) = list.nth(0) {
            let other = LocalEndpoint { endpoint: Endpoint { weight: 99, ..first.endpoint.clone() }, ..LocalEndpoint::clone(first) };
            prop_assert_ne!(list.edited(&[(first.endpoint.id.clone(), Some(Arc::new(other)))]), again);
        }
    }

    #[test]
    fn remote_endpoint_lists_equal_a_map(edits in edits(), batch in 1..400_usize) {
        let (mut list, mut map, mut shapes) = (RemoteEndpoints::default(), BTreeMap::new(), Shapes::default());
        for batch in edits.chunks(batch) {
            let mut upsert: BTreeMap<EndpointId, Endpoint> = BTreeMap::new();
            let mut remove: Vec<EndpointId> = Vec::new();
            for (number, add, weight) in batch {
                let endpoint = numbered(*number, *weight).endpoint;
                if *add {
                    upsert.insert(endpoint.id.clone(), endpoint);
                } else {
                    remove.push(endpoint.id.clone());
                }
            }
            let before = map.clone();
            map.extend(upsert.clone());
            map.retain(|id, _| !remove.contains(id));
            let upsert: Vec<Endpoint> = upsert.into_values().collect();
            let edited = list.edited(&upsert, &remove, &mut shapes);
            prop_assert_eq!(edited.is_some(), before != map, "a change is told exactly if there is one");
            list = edited.unwrap_or(list);
            prop_assert_eq!(list.len(), map.len());
            for (record, endpoint) in list.iter().zip(map.values()) {
                prop_assert_eq!(record.id, endpoint.id.as_str());
                prop_assert_eq!(record.hostname, endpoint.hostname.as_ref().map(eastway_model::Label::as_str));
                prop_assert_eq!(record.weight, endpoint.weight);
                prop_assert_eq!(record.condition, endpoint.condition);
                prop_assert_eq!(&record.shape.subset, &endpoint.subset);
            }
        }
        for id in map.keys() {
            prop_assert!(list.get(id.as_str()).is_some_and(|record| record.id == id.as_str()));
        }
    }
}

#[test]
fn the_longest_names_fit() {
    let long = Endpoint {
        hostname: Some(label(&"h".repeat(63))),
        ..endpoint(&"i".repeat(eastway_model::endpoint::MAX_ENDPOINT_ID), "v1")
    };
    let list = RemoteEndpoints::default().edited(&[long], &[], &mut Shapes::default()).unwrap();
    let record = list.iter().next().unwrap();
    assert_eq!((record.id.len(), record.hostname.map(str::len)), (64, Some(63)));
}

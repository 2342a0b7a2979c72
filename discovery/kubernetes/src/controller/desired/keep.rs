//! What stays as it is, because not all is known that it was made from (invariant I4).

use std::collections::BTreeSet;

use eastway_model::{ClusterName, PeerState};
use serde_json::{Map, Value, json};

use super::{Draft, Wanted, World, pinned};
use crate::controller::names;
use crate::controller::object::{Kind, Object, Observed, Seen};
use crate::controller::ports::slot_of;

/// The clusters that took part in a service's objects, and that nothing was heard of since this process started.
pub(super) fn unheard(world: &World<'_>, seen: &Seen) -> BTreeSet<String> {
    let listed = seen.own_import().map(|import| import.list("/status/clusters")).unwrap_or_default();
    let listed = listed.iter().filter_map(|cluster| cluster.get("cluster")?.as_str());
    let sources = seen.slices.values().map(|slice| slice.label(names::SOURCE_CLUSTER));
    let entries = seen.entries.values().map(|entry| entry.label(names::SOURCE_CLUSTER));
    listed
        .chain(sources)
        .chain(entries)
        .filter(|cluster| !cluster.is_empty() && !is_heard(world, cluster))
        .map(str::to_owned)
        .collect()
}

/// Whether it is known what a cluster exports: all of it, or nothing, because it was removed or has been away for so
/// long that its services are withdrawn.
fn is_heard(world: &World<'_>, cluster: &str) -> bool {
    let snapshot = world.snapshot;
    if cluster == snapshot.cluster().as_str() {
        return true;
    }
    let Some(peer) = snapshot.peer(cluster).filter(|peer| peer.configured) else { return world.peers_known };
    let withdrawn = || {
        let rules = snapshot.rules().peers.get(cluster);
        let PeerState::Down { since } = peer.state else { return false };
        rules.is_some_and(|rules| world.steady.since(since) >= rules.withdraw_after)
    };
    world.peers_known && (peer.synced || withdrawn())
}

/// All objects and conditions as they are: what they say of the cluster that was not heard of would be wrong. But
/// gateways come and go, and the slices follow them.
pub(super) fn refreshed(world: &World<'_>, seen: &Seen) -> Wanted {
    let led = seen.slices.iter().filter(|(_, slice)| leads_to_gateways(slice));
    let objects = led.map(|(name, slice)| refreshed_slice(world, name, slice)).collect();
    Wanted { objects, ..Wanted::default() }
}

/// Keeps what there is of one cluster's endpoints of a headless import. Names of one's own do not depend on them.
pub(super) fn of_cluster(draft: &mut Draft<'_>, cluster: &ClusterName) {
    let is_of = |object: &Observed| object.label(names::SOURCE_CLUSTER) == cluster.as_str();
    let seen = draft.seen;
    let is_of_name =
        |slice: &Observed| seen.services.get(slice.label(names::SLICE_SERVICE)).is_some_and(pinned::is_of_name);
    for (name, slice) in seen.slices.iter().filter(|(_, slice)| is_of(slice) && !is_of_name(slice)) {
        let object = if leads_to_gateways(slice) {
            refreshed_slice(draft.world, name, slice)
        } else {
            restated(Kind::EndpointSlice, name, slice, slice.at("/endpoints"))
        };
        draft.wanted.objects.push(object);
    }
    for (name, service) in seen.services.iter().filter(|(_, service)| is_of(service) && !pinned::is_of_name(service)) {
        draft.wanted.kept.insert(name.clone());
        for port in service.list("/spec/ports") {
            draft.taken.extend(slot_of(draft.key, name, port));
        }
    }
}

/// Keeps the Services of up to `room` hostnames of the clusters `listed` that no endpoint has at the moment, and their
/// slices; `there` are Services of endpoints.
pub(super) fn hostnames(draft: &mut Draft<'_>, listed: &BTreeSet<&str>, there: &BTreeSet<String>, room: usize) {
    let seen = draft.seen;
    let has_hostname = |service: &Observed| service.at("/metadata/annotations").get(names::HOSTNAME).is_some();
    let is_waiting = |(name, service): &(&String, &Observed)| {
        has_hostname(service) && listed.contains(service.label(names::SOURCE_CLUSTER)) && !there.contains(*name)
    };
    for (name, service) in seen.services.iter().filter(is_waiting).take(room) {
        draft.wanted.kept.insert(name.clone());
        for port in service.list("/spec/ports") {
            draft.taken.extend(slot_of(draft.key, name, port));
        }
        for (slice_name, slice) in seen.slices.iter().filter(|(_, slice)| slice.label(names::SLICE_SERVICE) == *name) {
            draft.wanted.objects.push(refreshed_slice(draft.world, slice_name, slice));
        }
    }
}

/// Whether the slice leads to the gateways, rather than holding what DNS answers.
fn leads_to_gateways(slice: &Observed) -> bool {
    !slice.label(names::SLICE_SERVICE).is_empty()
}

fn refreshed_slice(world: &World<'_>, name: &str, slice: &Observed) -> Object {
    let endpoints = world.gateways.endpoints(slice.text("/addressType") == "IPv6");
    restated(Kind::EndpointSlice, name, slice, &endpoints)
}

/// The slice with all fields that are ours as they are, but for its endpoints.
fn restated(kind: Kind, name: &str, slice: &Observed, endpoints: &Value) -> Object {
    const LABELS: [&str; 6] = [
        names::MANAGED_BY,
        names::SLICE_MANAGED_BY,
        names::SLICE_SERVICE,
        names::SERVICE,
        names::SOURCE_CLUSTER,
        names::IMPORT,
    ];
    let labels: Map<String, Value> = LABELS
        .iter()
        .map(|key| ((*key).to_owned(), slice.label(key)))
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key, json!(value)))
        .collect();
    let metadata = json!({ "labels": labels, "ownerReferences": slice.at("/metadata/ownerReferences") });
    let fields = json!({
        "addressType": slice.at("/addressType"),
        "endpoints": endpoints,
        "ports": slice.at("/ports"),
    });
    Object::new(kind, slice.text("/metadata/namespace"), name, metadata, fields)
}

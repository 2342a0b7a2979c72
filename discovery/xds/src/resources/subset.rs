//! The parts of a service that rules lead to. Each is a cluster of its own, whose endpoints are those of the part, and
//! after them those that take over.

use std::collections::BTreeSet;

use eastway_model::rules::ClusterRef;
use eastway_model::rules::route::{BackendRef, Share, Target};
use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, Import, PortNumber, ServiceKey, ServicePort};

use super::assignment::{Level, level};
use super::{fault, is_served, share_cluster_name, share_name};

/// A cluster that does not exist: what is sent to it is answered with an error.
pub(super) const NOWHERE: &str = "no-such-backend";

/// The parts of a port that have a cluster: all of it, what rules lead to, and the splits of its policy.
pub(super) fn shares(import: &Import, port: &ServicePort) -> BTreeSet<Share> {
    let wanted = import.wanted.iter().flat_map(|wanted| wanted.iter());
    let wanted = wanted.filter(|one| one.port.is_none_or(|number| number == port.number)).map(|one| one.share.clone());
    let splits = import.policy.iter().flat_map(|policy| &policy.split);
    let splits = splits.map(|split| Share { cluster: split.cluster.clone(), subset: split.subset.clone() });
    wanted.chain(splits).chain([Share::whole()]).collect()
}

/// The name of the cluster of a part.
pub(super) fn name(own: &ClusterName, service: &ServiceKey, port: PortNumber, share: &Share) -> String {
    let cluster = share.cluster.as_ref().map(|cluster| match cluster {
        ClusterRef::Local => own,
        ClusterRef::Named(name) => name,
    });
    share_cluster_name(service, port, &share_name(cluster, &share.subset))
}

/// A cluster and its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Weighted {
    /// Which of the backends it is.
    pub(super) index: usize,
    /// The cluster.
    pub(super) name: String,
    /// More than 0.
    pub(super) weight: u32,
}

/// One way to go, before it is known whether it can be gone.
struct Way<'a> {
    index: usize,
    weight: u32,
    /// `None`: it leads nowhere.
    target: Option<(&'a Import, &'a ServicePort, Share)>,
    /// Of a share: what its endpoints are worth. Who names a service as a whole means it, with or without endpoints.
    level: Option<Option<Level>>,
}

/// The clusters that backends lead to. A share without endpoints gives its weight to the other shares of its service, as
/// connections are routed; a service without any keeps it (Gateway API: its requests fail).
pub(super) fn weighted<'a>(
    snapshot: &'a Snapshot,
    port: &ServicePort,
    backends: impl Iterator<Item = (&'a BackendRef, Option<&'a Target>, u32)>,
) -> Vec<Weighted> {
    let ways =
        backends.enumerate().filter(|(_, (_, _, weight))| *weight > 0).map(|(index, (reference, target, weight))| {
            let target = target.and_then(|target| destination(snapshot, port, target));
            let is_share = reference.is_part();
            let level =
                target.as_ref().filter(|_| is_share).map(|(import, port, share)| level(snapshot, import, port, share));
            Way { index, weight, target, level }
        });
    share_out(snapshot, &ways.collect::<Vec<_>>())
}

/// The clusters of the splits of the service's own policy; if it has none, all of it.
pub(super) fn splits(snapshot: &Snapshot, import: &Import, port: &ServicePort) -> Vec<Weighted> {
    let splits = import.policy.as_ref().map(|policy| policy.split.as_slice()).unwrap_or_default();
    if splits.is_empty() {
        let whole = Way { index: 0, weight: 1, target: Some((import, port, Share::whole())), level: None };
        return share_out(snapshot, &[whole]);
    }
    let ways = splits.iter().enumerate().filter(|(_, split)| split.weight > 0).map(|(index, split)| {
        let share = Share { cluster: split.cluster.clone(), subset: split.subset.clone() };
        let level = Some(level(snapshot, import, port, &share));
        Way { index, weight: split.weight, target: Some((import, port, share)), level }
    });
    share_out(snapshot, &ways.collect::<Vec<_>>())
}

fn share_out(snapshot: &Snapshot, ways: &[Way<'_>]) -> Vec<Weighted> {
    let best = ways.iter().filter_map(|way| way.level.flatten()).min();
    // If none has any, what is sent to them fails.
    let is_lost = |way: &Way<'_>| best.is_some() && way.level.is_some_and(|level| level != best);
    let sum = |lost: bool| -> u64 {
        let some = ways.iter().filter(|way| way.level.is_some() && is_lost(way) == lost);
        some.map(|way| u64::from(way.weight)).sum()
    };
    let (lost, kept) = (sum(true), sum(false));
    let weighted = ways.iter().filter(|way| !is_lost(way)).map(|way| {
        let more = if way.level.is_some() && kept > 0 { u64::from(way.weight) * lost / kept } else { 0 };
        let weight = u32::try_from(u64::from(way.weight) + more).unwrap_or(u32::MAX);
        let name = match &way.target {
            Some((import, port, share)) => {
                let name = name(snapshot.cluster(), &import.key, port.number, share);
                if fault::of(import, port).is_some() { fault::name_before(&name) } else { name }
            }
            None => NOWHERE.to_owned(),
        };
        Weighted { index: way.index, name, weight }
    });
    weighted.collect()
}

/// The name of the cluster that a target has; `None`: it is not there.
pub(super) fn cluster_of(snapshot: &Snapshot, port: &ServicePort, target: &Target) -> Option<String> {
    let (import, port, share) = destination(snapshot, port, target)?;
    Some(name(snapshot.cluster(), &import.key, port.number, &share))
}

fn destination<'a>(
    snapshot: &'a Snapshot,
    port: &ServicePort,
    target: &Target,
) -> Option<(&'a Import, &'a ServicePort, Share)> {
    let import = snapshot.import(&target.service).filter(|import| is_served(import))?;
    let port = import.port(port.protocol, target.port.unwrap_or(port.number))?;
    Some((import, port, target.share.clone()))
}

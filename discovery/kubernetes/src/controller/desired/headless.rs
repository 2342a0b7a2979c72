//! A headless import: no address of its own, one per endpoint.
//!
//! Endpoints of this cluster are in its slice with their own addresses. Each endpoint of another cluster has a derived
//! Service, whose address leads to the gateways on a port that stands for that one endpoint; the slice of its cluster
//! carries these addresses, so that DNS servers answer them.
//!
//! A pod of a StatefulSet that is replaced is away for a while, and clients may know its address: the Service of a
//! hostname stays as long as its cluster has the service, unless endpoints that are there need its place.

use std::collections::{BTreeMap, BTreeSet};

use eastway_model::{ClusterName, EndpointCondition, EndpointRef, Import, ImportPart};
use serde_json::{Value, json};

use super::{Draft, address_type, import, keep, pinned, slice_labels, with};
use crate::controller::names;
use crate::controller::object::{Kind, Object, Observed};

/// Endpoints of other clusters that have an address, per import. Each costs a Service here and a port per port.
pub const MAX_ENDPOINTS: usize = 100;
/// Most endpoints of one slice (the API's limit).
const MAX_IN_SLICE: usize = 1_000;

/// One endpoint of another cluster.
struct Remote<'a> {
    /// Hostname, or id if it has none.
    name: &'a str,
    record: EndpointRef<'a>,
    /// The derived Service of its own.
    service: String,
}

/// Everything of a headless import.
pub(super) fn headless(draft: &mut Draft<'_>, import: &Import) {
    let mut room = MAX_ENDPOINTS;
    let mut left_out = 0;
    let (mut there, mut listed) = (BTreeSet::new(), BTreeSet::new());
    for part in &import.parts {
        match &part.cluster {
            None => own_slices(draft, part),
            Some(cluster) if is_unlisted(part) => keep::of_cluster(draft, cluster),
            Some(cluster) => {
                let mut endpoints = remotes(draft, cluster, part);
                left_out += endpoints.len().saturating_sub(room);
                endpoints.truncate(room);
                room -= endpoints.len();
                remote_slices(draft, cluster, part, &endpoints);
                there.extend(endpoints.into_iter().map(|remote| remote.service));
                listed.insert(cluster.as_str());
            }
        }
    }
    keep::hostnames(draft, &listed, &there, room);
    pinned::names(draft, import);
    let ready = if draft.exhausted {
        Err(import::exhausted(draft))
    } else if let Some(refused) = &draft.seen.refused {
        Err(format!("the API server does not take what it needs: {refused}"))
    } else if left_out > 0 {
        Ok(format!(
            "{left_out} endpoints of other clusters have no address: at most {MAX_ENDPOINTS} of one service get one; export a Service with a cluster IP to reach all"
        ))
    } else {
        Ok("its endpoints are reachable at addresses of their own".to_owned())
    };
    import::service_import(draft, import, None, &[], Some(&ready));
}

/// The endpoints of this cluster.
fn own_slices(draft: &mut Draft<'_>, part: &ImportPart) {
    let Some(local) = draft.world.snapshot.local(draft.key) else { return };
    let named = import::named_of(part);
    let ports: Vec<Value> = named
        .iter()
        .map(|(name, port)| {
            let targets = local.endpoints.iter().find_map(|endpoint| endpoint.target_ports.get(&port.key()).copied());
            import::slice_port(name, port, targets.unwrap_or(port.number.get()))
        })
        .collect();
    for ipv6 in [false, true] {
        let of_family = local.endpoints.iter().filter(|endpoint| endpoint.address.is_ipv6() == ipv6);
        let endpoints: Vec<Value> = of_family
            .take(MAX_IN_SLICE)
            .map(|local| {
                let hostname = local.endpoint.hostname.as_ref().map(eastway_model::Label::as_str);
                endpoint(&local.address.to_string(), local.endpoint.condition, hostname)
            })
            .collect();
        let cluster = draft.own().clone();
        address_slice(draft, &cluster, ipv6, &endpoints, &ports);
    }
}

/// The peer's endpoints are counted and not told yet: what there is of them stays (invariant I4).
fn is_unlisted(part: &ImportPart) -> bool {
    let counted: u64 = part.record.groups.iter().map(|group| u64::from(group.ready) + u64::from(group.draining)).sum();
    counted > 0 && part.endpoints.is_empty()
}

/// The endpoints of a peer, those first that have an address already.
fn remotes<'a>(draft: &Draft<'_>, cluster: &ClusterName, part: &'a ImportPart) -> Vec<Remote<'a>> {
    let mut by_name: BTreeMap<&str, EndpointRef<'a>> = BTreeMap::new();
    for record in part.endpoints.iter() {
        let name = record.hostname.unwrap_or(record.id);
        // While an endpoint is replaced two have its hostname.
        let known = by_name.entry(name).or_insert(record);
        if record.condition.ready && !known.condition.ready {
            *known = record;
        }
    }
    let mut remotes: Vec<Remote<'a>> = by_name
        .into_iter()
        .map(|(name, record)| {
            let service = names::derived_endpoint(&draft.key.name, cluster, name);
            Remote { name, record, service }
        })
        .collect();
    let is_new = |remote: &Remote<'_>| !draft.seen.services.contains_key(&remote.service);
    remotes.sort_by_key(|remote| (is_new(remote), remote.record.hostname.is_none(), remote.name));
    remotes
}

/// The derived Services of a peer's endpoints, their slices, and the slice with their addresses.
fn remote_slices(draft: &mut Draft<'_>, cluster: &ClusterName, part: &ImportPart, endpoints: &[Remote<'_>]) {
    let ports = import::carried(import::named_of(part));
    let name = draft.key.name.as_str();
    for remote in endpoints {
        let labels = json!({
            names::MANAGED_BY: names::EASTWAY,
            names::SERVICE: name,
            names::SOURCE_CLUSTER: cluster.as_str(),
        });
        let mut annotations = json!({ names::ENDPOINT: remote.record.id });
        if let Some(hostname) = remote.record.hostname {
            annotations = with(annotations, names::HOSTNAME, hostname);
        }
        import::derived_service(draft, &remote.service, &labels, &annotations, &ports);
        let labels = with(slice_labels(name), names::SOURCE_CLUSTER, cluster.as_str());
        import::gateway_slices(draft, &remote.service, cluster, labels, &ports);
    }
    let slice_ports: Vec<Value> =
        ports.iter().map(|(name, port)| import::slice_port(name, port, port.number.get())).collect();
    for ipv6 in [false, true] {
        let mut with_address: Vec<Value> = Vec::new();
        for remote in endpoints {
            let addresses = draft.seen.services.get(&remote.service).map(Observed::cluster_ips);
            let address = addresses.unwrap_or_default().into_iter().find(|address| address.is_ipv6() == ipv6);
            if let Some(address) = address {
                with_address.push(endpoint(&address.to_string(), remote.record.condition, remote.record.hostname));
            }
        }
        // By address: who got one first depends on chance, and the order says nothing.
        with_address.sort_by_cached_key(|endpoint| endpoint.get("addresses").map(Value::to_string));
        address_slice(draft, cluster, ipv6, &with_address, &slice_ports);
    }
}

/// A slice that DNS servers answer from; no Service has it.
fn address_slice(draft: &mut Draft<'_>, cluster: &ClusterName, ipv6: bool, endpoints: &[Value], ports: &[Value]) {
    let Some(owner) = draft.owner() else { return };
    let slice = names::slice(&names::derived(&draft.key.name), cluster, ipv6);
    // An empty one says something only where there was another before.
    if draft.seen.foreign.contains(&slice) || endpoints.is_empty() && !draft.seen.slices.contains_key(&slice) {
        return;
    }
    let name = draft.key.name.as_str();
    let labels = with(slice_labels(name), names::SERVICE, name);
    let labels = with(labels, names::SOURCE_CLUSTER, cluster.as_str());
    let metadata = json!({ "labels": labels, "ownerReferences": owner });
    let fields = json!({ "addressType": address_type(ipv6), "endpoints": endpoints, "ports": ports });
    let object = Object::new(Kind::EndpointSlice, draft.key.namespace.as_str(), &slice, metadata, fields);
    draft.wanted.objects.push(object);
}

fn endpoint(address: &str, condition: EndpointCondition, hostname: Option<&str>) -> Value {
    let EndpointCondition { ready, serving, terminating } = condition;
    let conditions = json!({ "ready": ready, "serving": serving, "terminating": terminating });
    match hostname {
        Some(hostname) => json!({ "addresses": [address], "conditions": conditions, "hostname": hostname }),
        None => json!({ "addresses": [address], "conditions": conditions }),
    }
}

//! Services and endpoints, local and imported.

use std::collections::{BTreeMap, BTreeSet};

use eastway_model::store::Snapshot;
use eastway_model::{EndpointCondition, Import, ServiceKey, ServiceKind, ServicePort, ServiceRecord, Subset};

use crate::admin::views::{ConflictView, EndpointView, PartView, PortView, ServiceView};
use crate::app::Gateway;

pub(super) fn views(gateway: &Gateway) -> Vec<ServiceView> {
    let snapshot = gateway.reader.load_full();
    let mut keys: BTreeSet<ServiceKey> = snapshot.imports().map(|import| import.key.clone()).collect();
    keys.extend(snapshot.locals().map(|local| local.key().clone()));
    keys.iter().map(|key| view(gateway, &snapshot, key)).collect()
}

fn view(gateway: &Gateway, snapshot: &Snapshot, key: &ServiceKey) -> ServiceView {
    let (import, local) = (snapshot.import(key), snapshot.local(key));
    let record = import.and_then(|import| import.parts.first()).map(|part| &*part.record);
    let record = record.or(local.map(|local| &*local.record));
    let ports = import.map(|import| import.ports.as_slice()).or(record.map(|record| record.ports.as_slice()));
    let kind = import.map(|import| import.kind).or(record.map(|record| record.kind)).unwrap_or_default();
    let offered = snapshot.rules().peers.keys().filter(|peer| snapshot.may_export(peer, key));
    ServiceView {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        kind: match kind {
            ServiceKind::ClusterSetIp => "ClusterSetIP",
            ServiceKind::Headless => "Headless",
        }
        .to_owned(),
        dns_names: if import.is_some() { dns_names(snapshot, key) } else { Vec::new() },
        vips: gateway.frontend.borrow().vips.get(key).cloned().unwrap_or_default(),
        ports: ports.unwrap_or_default().iter().map(port).collect(),
        exported: local.is_some_and(|local| local.exported),
        exported_to: offered.map(ToString::to_string).collect(),
        parts: match import {
            Some(import) => parts(snapshot, import),
            None => {
                local.map(|local| part(snapshot.cluster().as_str(), true, false, &local.record)).into_iter().collect()
            }
        },
        conflicts: import.map(|import| conflicts(import)).unwrap_or_default(),
    }
}

/// The names that lead to a service.
pub(super) fn dns_names(snapshot: &Snapshot, key: &ServiceKey) -> Vec<String> {
    let clusterset = format!("{}.{}.svc.clusterset.local", key.name, key.namespace);
    let own = snapshot.rules().names.iter().filter(|rule| rule.service == *key).map(|rule| rule.fqdn.to_string());
    std::iter::once(clusterset).chain(own).collect()
}

fn port(port: &ServicePort) -> PortView {
    PortView {
        name: port.name.as_ref().map(ToString::to_string),
        port: port.number.get(),
        protocol: format!("{:?}", port.protocol).to_uppercase(),
        app_protocol: port.app_protocol.as_deref().map(str::to_owned),
    }
}

fn parts(snapshot: &Snapshot, import: &Import) -> Vec<PartView> {
    let view = |one: &eastway_model::import::ImportPart| {
        let cluster = one.cluster.as_ref().unwrap_or(snapshot.cluster());
        part(cluster.as_str(), one.cluster.is_none(), one.stale, &one.record)
    };
    import.parts.iter().map(view).collect()
}

fn part(cluster: &str, local: bool, stale: bool, record: &ServiceRecord) -> PartView {
    let mut subsets = BTreeMap::new();
    for group in &record.groups {
        *subsets.entry(labels(&group.subset)).or_insert(0) += group.ready;
    }
    PartView {
        cluster: cluster.to_owned(),
        local,
        stale,
        ready: record.groups.iter().map(|group| group.ready).sum(),
        draining: record.groups.iter().map(|group| group.draining).sum(),
        subsets,
    }
}

/// `version=v2,track=canary`
pub(super) fn labels(subset: &Subset) -> String {
    subset.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The conflicts of an import.
pub(super) fn conflicts(import: &Import) -> Vec<ConflictView> {
    let view = |conflict: &eastway_model::import::Conflict| ConflictView {
        reason: conflict.kind.to_string(),
        winner: conflict.winner.to_string(),
        message: conflict.message.clone(),
    };
    import.conflicts.iter().map(view).collect()
}

pub(super) fn endpoints(gateway: &Gateway) -> Vec<EndpointView> {
    let snapshot = gateway.reader.load_full();
    let mut views = Vec::new();
    for local in snapshot.locals() {
        let key = local.key();
        views.extend(local.endpoints.iter().map(|one| {
            let endpoint = &one.endpoint;
            let mut view = EndpointView {
                address: Some(one.address),
                identity: endpoint.identity.as_ref().map(ToString::to_string),
                in_flight: gateway.router.in_flight.of(&endpoint.id),
                weight: endpoint.weight,
                ..endpoint_view(
                    key,
                    snapshot.cluster().as_str(),
                    endpoint.id.as_str(),
                    &endpoint.subset,
                    endpoint.condition,
                    endpoint.zone.as_deref(),
                )
            };
            if endpoint.condition.ready && gateway.router.failing.contains(&endpoint.id) {
                view.state = "failing".to_owned();
            }
            view
        }));
    }
    for import in snapshot.imports() {
        for part in &import.parts {
            let Some(cluster) = &part.cluster else { continue };
            views.extend(part.endpoints.iter().map(|one| EndpointView {
                weight: one.weight,
                ..endpoint_view(
                    &import.key,
                    cluster.as_str(),
                    one.id,
                    &one.shape.subset,
                    one.condition,
                    one.shape.zone.as_deref(),
                )
            }));
        }
    }
    let order =
        |view: &EndpointView| (view.namespace.clone(), view.service.clone(), view.cluster.clone(), view.id.clone());
    views.sort_by_key(order);
    views
}

fn endpoint_view(
    key: &ServiceKey,
    cluster: &str,
    id: &str,
    subset: &Subset,
    condition: EndpointCondition,
    zone: Option<&str>,
) -> EndpointView {
    let state = match condition {
        EndpointCondition { ready: true, .. } => "ready",
        condition if condition.is_draining() => "draining",
        EndpointCondition { .. } => "notReady",
    };
    EndpointView {
        namespace: key.namespace.to_string(),
        service: key.name.to_string(),
        cluster: cluster.to_owned(),
        id: id.to_owned(),
        labels: subset.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        zone: zone.map(str::to_owned),
        state: state.to_owned(),
        ..EndpointView::default()
    }
}

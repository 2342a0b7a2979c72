//! An import with a virtual address: ServiceImport, derived Service, slices that lead to the gateways.

use std::collections::{BTreeMap, BTreeSet};

use eastway_model::{
    ClusterName, Import, ImportPart, InternalTrafficPolicy, PortName, Protocol, ServiceKind, ServicePort,
    SessionAffinity,
};
use serde_json::{Map, Value, json};

use super::{Draft, address_type, has_family, istio, pinned, slice_labels, with};
use crate::controller::names;
use crate::controller::object::{Condition, Kind, Object, Observed};

/// Everything of an import with a virtual address.
pub(super) fn clusterset_ip(draft: &mut Draft<'_>, import: &Import) {
    let derived = names::derived(&draft.key.name);
    let labels = json!({
        names::MANAGED_BY: names::EASTWAY,
        names::SERVICE: draft.key.name.as_str(),
    });
    let ports = carried(named(&import.ports));
    let told = istio::plan(draft.world, draft.key, draft.seen, import);
    derived_service(draft, &derived, &labels, &told.annotations(), &ports);
    for part in &import.parts {
        let ports: Vec<(String, &ServicePort)> = ports
            .iter()
            .filter(|(_, port)| part.serves(port.protocol, port.number))
            .map(|(name, port)| (name.clone(), *port))
            .collect();
        let cluster = part.cluster.as_ref().unwrap_or(draft.own()).clone();
        let name = draft.key.name.as_str();
        let labels = with(slice_labels(name), names::SERVICE, name);
        let labels = with(labels, names::SOURCE_CLUSTER, cluster.as_str());
        gateway_slices(draft, &derived, &cluster, labels, &ports);
    }
    pinned::names(draft, import);
    let service = draft.seen.services.get(&derived);
    let addresses = service.map(Observed::cluster_ips).unwrap_or_default();
    istio::objects(draft, import, &told, &addresses);
    let reason = if draft.seen.foreign.contains(&derived) {
        Err(format!("the Service {derived} is not Eastway's: delete it, and the import gets its address"))
    } else if draft.exhausted {
        Err(exhausted(draft))
    } else if let Some(refused) = &draft.seen.refused {
        Err(format!("the API server does not take what it needs: {refused}"))
    } else if ports.is_empty() {
        Err("no export of it has a port that gateways carry: TCP or UDP".to_owned())
    } else {
        let reachable = "reachable at its addresses".to_owned();
        Ok(told.note().map_or(reachable.clone(), |note| format!("{reachable}; {note}")))
    };
    // Without an address it is on its way: the next step follows at once, and says how it ends.
    let ready = (reason.is_err() || !addresses.is_empty()).then_some(reason);
    service_import(draft, import, Some(&derived), &addresses, ready.as_ref());
}

/// Why there is no port left.
pub(super) fn exhausted(draft: &Draft<'_>) -> String {
    let (first, last) = (draft.book.range().start(), draft.book.range().end());
    format!("the gateways have no free port for it: all of {first} to {last} stand for other imports")
}

/// A derived Service, once its owner exists.
pub(super) fn derived_service(
    draft: &mut Draft<'_>,
    name: &str,
    labels: &Value,
    annotations: &Value,
    ports: &[(String, &ServicePort)],
) {
    let Some(owner) = draft.owner() else { return };
    if draft.seen.foreign.contains(name) || ports.is_empty() {
        return;
    }
    let metadata = json!({ "labels": labels, "annotations": annotations, "ownerReferences": owner });
    let ports: Vec<Value> = ports.iter().map(|(name, port)| service_port(name, port)).collect();
    let spec = json!({
        "type": "ClusterIP",
        "ipFamilyPolicy": "PreferDualStack",
        "ports": ports,
    });
    let object = Object::new(Kind::Service, draft.namespace(), name, metadata, json!({ "spec": spec }));
    draft.wanted.objects.push(object);
}

/// Slices of the derived Service `service` that lead to the gateways, one per family that the Service has.
pub(super) fn gateway_slices(
    draft: &mut Draft<'_>,
    service: &str,
    cluster: &ClusterName,
    labels: Value,
    ports: &[(String, &ServicePort)],
) {
    // Taken before the Service exists: a controller that takes over must not find others in between.
    let ports: Vec<Value> = ports
        .iter()
        .filter_map(|(name, port)| {
            let number = draft.port(service, port.protocol, port.number)?;
            Some(slice_port(name, port, number))
        })
        .collect();
    let (Some(owner), Some(observed)) = (draft.owner(), draft.seen.services.get(service)) else { return };
    let labels = with(labels, names::SLICE_SERVICE, service);
    for ipv6 in [false, true].into_iter().filter(|ipv6| has_family(observed, *ipv6)) {
        let name = names::slice(service, cluster, ipv6);
        if draft.seen.foreign.contains(&name) {
            continue;
        }
        let metadata = json!({ "labels": labels, "ownerReferences": owner });
        let fields = json!({
            "addressType": address_type(ipv6),
            "endpoints": draft.world.gateways.endpoints(ipv6),
            "ports": ports,
        });
        let object = Object::new(Kind::EndpointSlice, draft.key.namespace.as_str(), &name, metadata, fields);
        draft.wanted.objects.push(object);
    }
}

/// The ServiceImport, and its status if that is known.
pub(super) fn service_import(
    draft: &mut Draft<'_>,
    import: &Import,
    derived: Option<&str>,
    addresses: &[std::net::IpAddr],
    ready: Option<&Result<String, String>>,
) {
    // Somebody else's is never written over.
    if draft.seen.import.as_ref().is_some_and(|import| !import.is_ours()) {
        return;
    }
    let mut labels = exported(&import.labels);
    labels.insert(names::MANAGED_BY.to_owned(), json!(names::EASTWAY));
    let mut annotations = exported(&import.annotations);
    if let Some(derived) = derived {
        annotations.insert(names::DERIVED_SERVICE.to_owned(), json!(derived));
    }
    let metadata = json!({ "labels": labels, "annotations": annotations });
    let (namespace, name) = (draft.key.namespace.as_str(), draft.key.name.as_str());
    let spec = json!({ "spec": spec(import, addresses) });
    draft.wanted.objects.push(Object::new(Kind::ServiceImport, namespace, name, metadata, spec));

    let (Some(observed), Some(ready)) = (draft.seen.own_import(), ready) else { return };
    let clusters: BTreeSet<&str> =
        import.parts.iter().map(|part| part.cluster.as_ref().unwrap_or(draft.own()).as_str()).collect();
    let clusters: Vec<Value> = clusters.into_iter().map(|cluster| json!({ "cluster": cluster })).collect();
    let condition = match ready {
        Ok(message) => Condition::new("Ready", true, "Ready", message),
        Err(message) => Condition::new("Ready", false, "Pending", message),
    };
    let conditions = Condition::list(&[condition], observed, draft.world.now);
    let status = json!({ "status": { "clusters": clusters, "conditions": conditions } });
    let object = Object::new(Kind::ServiceImport, namespace, name, Value::Null, status);
    draft.wanted.statuses.push(object);
}

/// Labels or annotations of the exports, without those that mean something to us or to Kubernetes: a peer must not be
/// able to say them.
fn exported(pairs: &BTreeMap<std::sync::Arc<str>, std::sync::Arc<str>>) -> Map<String, Value> {
    let kept = pairs.iter().filter(|(key, _)| !is_reserved(key));
    kept.map(|(key, value)| (key.to_string(), json!(&**value))).collect()
}

/// Whether a key means something to us or to Kubernetes.
fn is_reserved(key: &str) -> bool {
    let within = |zone| is_within(key, zone);
    let is_common = key.starts_with("app.kubernetes.io/");
    (!is_common && (within("kubernetes.io") || within("k8s.io"))) || within("eastway.dev")
}

/// Whether the domain of a key is this one, or one below it.
fn is_within(key: &str, zone: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    domain.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a peer may say a label of endpoints that Istio is told: none that means something to it, to us or to Kubernetes.
pub(super) fn is_plain_label(key: &str) -> bool {
    !is_reserved(key) && !is_within(key, "istio.io")
}

fn spec(import: &Import, addresses: &[std::net::IpAddr]) -> Value {
    let mut spec = Map::new();
    let headless = import.kind == ServiceKind::Headless;
    spec.insert("type".to_owned(), json!(if headless { "Headless" } else { "ClusterSetIP" }));
    let lost = lost_ports(import);
    let ports = import.ports.iter().filter(|port| !lost.contains(&(port.protocol, port.number)));
    let ports: Vec<Value> =
        ports.map(|port| service_port(port.name.as_ref().map_or("", PortName::as_str), port)).collect();
    spec.insert("ports".to_owned(), json!(ports));
    if !addresses.is_empty() {
        let families: Vec<&str> = addresses.iter().map(|address| address_type(address.is_ipv6())).collect();
        spec.insert("ips".to_owned(), json!(addresses));
        spec.insert("ipFamilies".to_owned(), json!(families));
    } else if headless && !import.ip_families.is_empty() {
        let families = import.ip_families.iter().map(|family| address_type(*family == eastway_model::IpFamily::Ipv6));
        spec.insert("ipFamilies".to_owned(), families.collect());
    }
    match import.session_affinity {
        SessionAffinity::None => _ = spec.insert("sessionAffinity".to_owned(), json!("None")),
        SessionAffinity::ClientIp { timeout } => {
            spec.insert("sessionAffinity".to_owned(), json!("ClientIP"));
            let config = json!({ "clientIP": { "timeoutSeconds": timeout.as_secs() } });
            spec.insert("sessionAffinityConfig".to_owned(), config);
        }
    }
    let policy = match import.internal_traffic_policy {
        InternalTrafficPolicy::Cluster => "Cluster",
        InternalTrafficPolicy::Local => "Local",
    };
    spec.insert("internalTrafficPolicy".to_owned(), json!(policy));
    if let Some(distribution) = &import.traffic_distribution {
        spec.insert("trafficDistribution".to_owned(), json!(&**distribution));
    }
    Value::Object(spec)
}

/// Ports that are reachable by number, but whose name an older export gives to another number: KEP-1645 has the older
/// one alone in the ServiceImport.
fn lost_ports(import: &Import) -> BTreeSet<(Protocol, eastway_model::PortNumber)> {
    let oldest = |port: &ServicePort| {
        let having = import.parts.iter().filter_map(|part| {
            let declared = part.record.port(port.protocol, port.number)?;
            Some(((part.record.exported_at, &part.cluster), declared))
        });
        having.min_by_key(|(age, _)| *age).map(|(_, declared)| declared)
    };
    let mut unnamed = false;
    let mut lost = BTreeSet::new();
    for port in import.ports.iter().filter(|port| port.name.is_none()) {
        // The first port without a name keeps none: no name counts as one name.
        let declared = oldest(port).is_some_and(|declared| declared.name.is_some());
        if declared || unnamed {
            lost.insert((port.protocol, port.number));
        }
        unnamed |= !declared;
    }
    lost
}

/// Ports with the names that they have in derived Services and their slices: unique, and none only for a single port.
pub(super) fn named(ports: &[ServicePort]) -> Vec<(String, &ServicePort)> {
    let taken: BTreeSet<&str> = ports.iter().filter_map(|port| port.name.as_ref().map(PortName::as_str)).collect();
    let name = |port: &ServicePort| match &port.name {
        Some(name) => name.as_str().to_owned(),
        None if ports.len() == 1 => String::new(),
        None => {
            let mut name = names::unnamed_port(port.protocol, port.number);
            while taken.contains(name.as_str()) {
                name.push_str("-x");
            }
            name
        }
    };
    ports.iter().map(|port| (name(port), port)).collect()
}

/// Ports of one cluster's part of an import, under the names of that cluster.
pub(super) fn named_of(part: &ImportPart) -> Vec<(String, &ServicePort)> {
    named(&part.record.ports)
}

/// Those of them that gateways carry between clusters.
pub(super) fn carried(mut ports: Vec<(String, &ServicePort)>) -> Vec<(String, &ServicePort)> {
    ports.retain(|(_, port)| port.protocol != Protocol::Sctp);
    ports
}

fn service_port(name: &str, port: &ServicePort) -> Value {
    slice_port(name, port, port.number.get())
}

/// A port of a slice: `number` is where the endpoints listen.
pub(super) fn slice_port(name: &str, port: &ServicePort, number: u16) -> Value {
    let json = json!({ "port": number, "protocol": port.protocol });
    let json = if name.is_empty() { json } else { with(json, "name", name) };
    match &port.app_protocol {
        Some(protocol) => with(json, "appProtocol", protocol),
        None => json,
    }
}

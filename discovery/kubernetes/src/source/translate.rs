//! From Kubernetes objects to what the model knows. Pure: no state, no clock, no network.
//!
//! What cannot be taken over is left out and told as a [`Problem`] of its service: one wrong field
//! never hides the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::address::{RefusedAddress, dialable};
use eastway_model::name::{check_label_key, check_label_pair};
use eastway_model::rules::never_shared;
use eastway_model::{
    EndpointCondition, InternalTrafficPolicy, IpFamily, Label, PortName, PortNumber, Protocol, ServiceKey, ServiceKind,
    ServicePort, ServiceRecord, SessionAffinity, UnixMillis, Zone,
};

use super::kept::{Interner, PodView, Uid};
use super::objects::{self, EndpointSlice, Pod, Service, ServiceExport, TargetRef};
use super::{ExportMark, Rules, mesh};
use crate::types::mcs;
use crate::watch::ObjectName;

/// Label of objects that a tool made, and the value that we put there.
pub(crate) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "eastway");

/// Label of an EndpointSlice: the Service it belongs to.
pub(crate) const SLICE_SERVICE: &str = "kubernetes.io/service-name";

/// Label of an EndpointSlice: who writes it; and our value.
pub(crate) const SLICE_MANAGED_BY: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "eastway.dev");

/// Most ports, labels and annotations of a record: what peers accept.
const MAX_PORTS: usize = 250;
const MAX_LABELS: usize = 16;

/// Longest annotation, bytes: what peers accept.
const MAX_ANNOTATION: usize = 1024;

/// Kubernetes' own default and bound for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u64 = 10_800;
const MAX_AFFINITY_SECONDS: u64 = 86_400;

/// Why something of a service was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The name or namespace is none that can cross.
    Name(String),
    /// `type: ExternalName` and marked for export.
    ExternalName,
    /// Marked for export in a namespace whose services never leave the cluster.
    NeverShared,
    /// A port, and why.
    Port(String),
    /// The annotation [`PROXY_PROTOCOL`], and why.
    ProxyProtocol(String),
    /// An exported label or annotation, and why.
    Pair(String),
    /// An endpoint, and why.
    Endpoint(Arc<str>, Refused),
}

/// Why an endpoint is never dialled (threat P6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not an IP address, or a slice of names.
    NotAnAddress,
    /// A kind of address that no workload has.
    Address(RefusedAddress),
    /// No pod of the service's namespace has this address, or not the pod that the slice names.
    NotAPod,
    /// Its sidecar takes connections at a port that is told the client's address, and would take the header for their beginning.
    Header,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(why) => write!(f, "its name {why}"),
            Self::ExternalName => f.write_str("services of type ExternalName are not exported"),
            Self::NeverShared => f.write_str("services of its namespace never leave their cluster"),
            Self::Port(why) | Self::Pair(why) => f.write_str(why),
            Self::ProxyProtocol(why) => write!(f, "annotation {PROXY_PROTOCOL}: {why}"),
            Self::Endpoint(address, why) => write!(f, "endpoint {address} refused: {why}"),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnAddress => f.write_str("not an IP address"),
            Self::Address(why) => why.fmt(f),
            Self::NotAPod => f.write_str("not the address of a pod of this namespace"),
            Self::Header => write!(f, "its sidecar takes connections at a port that {PROXY_PROTOCOL} names"),
        }
    }
}

/// A Service as a local service without its endpoints.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Translated {
    pub(crate) record: ServiceRecord,
    pub(crate) exported: bool,
}

/// The local service that a Service is, if it is one: derived Services and names for the outside are
/// none (invariant I3).
pub(crate) fn service(
    name: &ObjectName,
    service: &Service,
    export: Option<&ServiceExport>,
    rules: &Rules,
    problems: &mut Vec<Problem>,
) -> Option<Translated> {
    let (meta, spec) = (&service.metadata, &service.spec);
    if meta.label(MANAGED_BY.0) == Some(MANAGED_BY.1) {
        return None;
    }
    let exported_at = exported_at(meta, export, &rules.marks);
    if spec.kind.as_deref() == Some("ExternalName") {
        problems.extend(exported_at.map(|_| Problem::ExternalName));
        return None;
    }
    let key = match ServiceKey::parse(&name.namespace, &name.name) {
        Ok(key) => key,
        Err(error) => {
            problems.extend(exported_at.map(|_| Problem::Name(error.to_string())));
            return None;
        }
    };
    let kept_home = never_shared(&name.namespace);
    problems.extend(exported_at.filter(|_| kept_home).map(|_| Problem::NeverShared));
    let exported = exported_at.is_some() && !kept_home;
    let mut record = ServiceRecord::new(key, ports(spec.ports.as_deref().unwrap_or_default(), problems));
    if spec.cluster_ip.as_deref() == Some("None") {
        record.kind = ServiceKind::Headless;
    }
    record.ip_families = spec.ip_families.iter().flatten().filter_map(|family| family_of(family)).collect();
    record.ip_families.dedup();
    record.session_affinity = affinity(spec);
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        record.internal_traffic_policy = InternalTrafficPolicy::Local;
    }
    record.traffic_distribution = spec.traffic_distribution.as_deref().filter(|text| is_word(text)).map(Arc::from);
    record.exported_at = exported_at.unwrap_or_default();
    if let Some(text) = meta.annotation(PROXY_PROTOCOL) {
        record.proxy_protocol = told(text, &record.ports, problems);
    }
    if let Some(export) = export.filter(|_| exported) {
        record.labels = labels(export.spec.exported_labels.as_ref(), problems);
        record.annotations = annotations(export.spec.exported_annotations.as_ref(), problems);
    }
    Some(Translated { record, exported })
}

/// Since when the service is marked for export; `None`: it is not.
fn exported_at(meta: &objects::Meta, export: Option<&ServiceExport>, marks: &[ExportMark]) -> Option<UnixMillis> {
    let created = |meta: &objects::Meta| {
        let millis = meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond());
        UnixMillis(u64::try_from(millis).unwrap_or_default())
    };
    match export {
        Some(export) => Some(created(&export.metadata)),
        // The mark has no time of its own.
        None => marks.iter().any(|mark| mark.is_on(meta)).then(|| created(meta)),
    }
}

/// Labels and annotations of a Service that are looked at.
pub(crate) const LOOKED_AT: [&str; 6] = [MANAGED_BY.0, ISTIO, LINKERD, CILIUM.0, CILIUM.1, PROXY_PROTOCOL];

/// Annotation of a Service: its endpoints are told the client's address. `v2`: at all TCP ports; `v2:` and names or
/// numbers of ports, with commas between them: at these.
const PROXY_PROTOCOL: &str = "eastway.dev/proxy-protocol";

const ISTIO: &str = "istio.io/global";
const LINKERD: &str = "mirror.linkerd.io/exported";
const CILIUM: (&str, &str) = ("service.cilium.io/global", "service.cilium.io/shared");

impl ExportMark {
    fn is_on(self, service: &objects::Meta) -> bool {
        let yes = Some("true");
        match self {
            Self::Istio => service.label(ISTIO) == yes,
            Self::Linkerd => service.label(LINKERD) == yes,
            Self::Cilium => {
                service.annotation(CILIUM.0) == yes
                    && service.annotation(CILIUM.1).is_none_or(|shared| shared == "true")
            }
        }
    }
}

fn ports(ports: &[objects::ServicePort], problems: &mut Vec<Problem>) -> Vec<ServicePort> {
    let mut all: Vec<ServicePort> = Vec::new();
    for port in ports {
        let shown = || port.name.as_deref().map_or_else(|| port.port.to_string(), ToOwned::to_owned);
        match one_port(port) {
            Ok(_) if all.len() == MAX_PORTS => {
                problems.push(Problem::Port(format!("port {}: more than {MAX_PORTS} ports", shown())));
            }
            Ok(port) if all.iter().any(|other| (other.number, other.protocol) == (port.number, port.protocol)) => {}
            Ok(port) => all.push(port),
            Err(why) => problems.push(Problem::Port(format!("port {}: {why}", shown()))),
        }
    }
    all
}

fn one_port(port: &objects::ServicePort) -> Result<ServicePort, String> {
    let protocol = protocol(port.protocol.as_deref())
        .ok_or_else(|| format!("{} does not cross", port.protocol.as_deref().unwrap_or_default()))?;
    let number = number(port.port).ok_or("not a port number")?;
    let name = port.name.as_deref().filter(|name| !name.is_empty()).map(PortName::parse);
    let name = name.transpose().map_err(|error| format!("its name {error}"))?;
    let app_protocol = port.app_protocol.as_deref().filter(|text| is_word(text)).map(Arc::from);
    Ok(ServicePort { name, number, protocol, app_protocol })
}

/// Ports whose endpoints are told the client's address, by the annotation's `text`. What cannot be understood is left
/// out: an endpoint that expects a header and gets none says so, and one that gets what it does not expect may not.
fn told(text: &str, ports: &[ServicePort], problems: &mut Vec<Problem>) -> BTreeSet<PortNumber> {
    let tcp = || ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let Some(list) = text.strip_prefix("v2") else {
        problems.push(Problem::ProxyProtocol("must be v2, or v2: and ports with commas between them".to_owned()));
        return BTreeSet::new();
    };
    if list.is_empty() {
        return tcp().map(|port| port.number).collect();
    }
    let mut told = BTreeSet::new();
    for word in list.trim_start_matches(':').split(',').map(str::trim) {
        let is_meant = |port: &&ServicePort| {
            port.name.as_ref().is_some_and(|name| name.as_str() == word) || port.number.to_string() == word
        };
        match tcp().find(is_meant) {
            Some(port) => drop(told.insert(port.number)),
            None => problems.push(Problem::ProxyProtocol(format!("there is no TCP port {}", shortened(word)))),
        }
    }
    told
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("TCP" | "") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

fn number(number: i64) -> Option<PortNumber> {
    u16::try_from(number).ok().and_then(PortNumber::new)
}

fn family_of(text: &str) -> Option<IpFamily> {
    match text {
        "IPv4" => Some(IpFamily::Ipv4),
        "IPv6" => Some(IpFamily::Ipv6),
        _ => None,
    }
}

fn affinity(spec: &objects::ServiceSpec) -> SessionAffinity {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return SessionAffinity::None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    SessionAffinity::ClientIp { timeout: Duration::from_secs(seconds.clamp(1, MAX_AFFINITY_SECONDS)) }
}

/// 1 to 63 printable characters without blanks: what crosses as a word.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= 63 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn labels(labels: Option<&BTreeMap<String, String>>, problems: &mut Vec<Problem>) -> BTreeMap<Arc<str>, Arc<str>> {
    pairs("label", labels, problems, |key, value| check_label_pair(key, value).map_err(|error| error.to_string()))
}

fn annotations(
    annotations: Option<&BTreeMap<String, String>>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<Arc<str>, Arc<str>> {
    pairs("annotation", annotations, problems, |key, value| {
        check_label_key(key).map_err(|error| error.to_string())?;
        let good = value.len() <= MAX_ANNOTATION && !value.chars().any(char::is_control);
        good.then_some(()).ok_or_else(|| format!("must be at most {MAX_ANNOTATION} bytes without control characters"))
    })
}

fn pairs(
    what: &str,
    pairs: Option<&BTreeMap<String, String>>,
    problems: &mut Vec<Problem>,
    check: impl Fn(&str, &str) -> Result<(), String>,
) -> BTreeMap<Arc<str>, Arc<str>> {
    let mut good = BTreeMap::new();
    for (key, value) in pairs.into_iter().flatten() {
        match check(key, value) {
            Ok(()) if good.len() == MAX_LABELS => {
                problems.push(Problem::Pair(format!("exported {what} {key}: more than {MAX_LABELS}")));
            }
            Ok(()) => drop(good.insert(key.as_str().into(), value.as_str().into())),
            Err(why) => problems.push(Problem::Pair(format!("exported {what} {key}: {why}"))),
        }
    }
    good
}

/// What one EndpointSlice says about its service.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Slice {
    pub(crate) ports: Vec<SlicePort>,
    /// Each address once.
    pub(crate) entries: BTreeMap<IpAddr, Entry>,
    /// Endpoints that are none.
    pub(crate) refused: Vec<(Arc<str>, Refused)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlicePort {
    /// Name of the service's port; empty for one without.
    pub(crate) name: Arc<str>,
    pub(crate) protocol: Protocol,
    pub(crate) target: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) condition: EndpointCondition,
    pub(crate) hostname: Option<Label>,
    pub(crate) zone: Option<Zone>,
    pub(crate) target: Option<Target>,
}

/// Whose address an endpoint's is, by its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The pod with this uid.
    Uid(Uid),
    /// The pod of this name: the slice has no uid.
    Name(Arc<str>),
    /// Some pod.
    Unnamed,
    /// Something else, or a pod of another namespace.
    Other,
}

/// The service that a slice belongs to; `None`: none of this cluster's own (invariant I3).
pub(crate) fn slice_service(slice: &EndpointSlice) -> Option<&str> {
    let meta = &slice.metadata;
    let derived = meta.label(SLICE_MANAGED_BY.0) == Some(SLICE_MANAGED_BY.1);
    if derived || meta.label(mcs::SOURCE_CLUSTER).is_some() {
        return None;
    }
    meta.label(SLICE_SERVICE).filter(|service| !service.is_empty())
}

/// Reads a slice of a service in `namespace`.
pub(crate) fn slice(namespace: &str, slice: &EndpointSlice, allow_loopback: bool, interner: &mut Interner) -> Slice {
    let mut read = Slice::default();
    for port in slice.ports.iter().flatten() {
        let target = port.port.and_then(number);
        if let (Some(target), Some(protocol)) = (target, protocol(port.protocol.as_deref())) {
            let name = interner.text(port.name.as_deref().unwrap_or_default());
            read.ports.push(SlicePort { name, protocol, target: target.get() });
        }
    }
    let names = !matches!(slice.address_type.as_deref(), Some("IPv4" | "IPv6"));
    for endpoint in slice.endpoints.iter().flatten() {
        // The addresses of one endpoint lead to the same place; only the first is for use.
        let Some(text) = endpoint.addresses.iter().flatten().next() else { continue };
        let address: Option<IpAddr> = text.parse().ok().filter(|_| !names);
        let checked = address
            .ok_or(Refused::NotAnAddress)
            .and_then(|address| dialable(address, allow_loopback).map(|()| address).map_err(Refused::Address));
        match checked {
            Ok(address) => {
                let new = entry(namespace, endpoint, interner);
                let better = |old: &Entry| rank(&new) > rank(old);
                if read.entries.get(&address).is_none_or(better) {
                    read.entries.insert(address, new);
                }
            }
            Err(why) => read.refused.push((shortened(text), why)),
        }
    }
    // Made anew at once, its parts are full.
    read.entries = std::mem::take(&mut read.entries).into_iter().collect();
    read
}

fn entry(namespace: &str, endpoint: &objects::SliceEndpoint, interner: &mut Interner) -> Entry {
    // What is not said counts as Kubernetes' documentation has it: ready, and serving as ready.
    let conditions = endpoint.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let condition = EndpointCondition {
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
    };
    Entry {
        condition,
        hostname: endpoint.hostname.as_deref().and_then(|text| Label::parse(text).ok()),
        zone: endpoint.zone.as_deref().filter(|text| is_word(text)).map(|zone| interner.text(zone)),
        target: endpoint.target_ref.as_ref().map(|target| target_of(namespace, target)),
    }
}

fn target_of<'a>(namespace: &str, target: &'a TargetRef) -> Target {
    let here = target.namespace.as_deref().is_none_or(|other| other == namespace || other.is_empty());
    if target.kind.as_deref() != Some("Pod") || !here {
        return Target::Other;
    }
    let said = |text: &'a Option<String>| text.as_deref().filter(|text| !text.is_empty());
    match said(&target.uid) {
        Some(uid) => Target::Uid(uid.into()),
        None => said(&target.name).map_or(Target::Unnamed, |name| Target::Name(name.into())),
    }
}

/// Which of several words about one address counts: the one that lets it serve most.
pub(crate) fn rank(entry: &Entry) -> (bool, bool, bool) {
    (entry.condition.ready, entry.condition.serving, !entry.condition.terminating)
}

fn shortened(text: &str) -> Arc<str> {
    text.chars().filter(|character| !character.is_control()).take(64).collect::<String>().into()
}

/// A pod with addresses of its own; `None` if it has none: not yet, no longer, or those of its node,
/// where a connection could be anybody's.
pub(crate) fn pod(name: &ObjectName, pod: &Pod, rules: &Rules, interner: &mut Interner) -> Option<PodView> {
    let ended = matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended || pod.spec.host_network == Some(true) {
        return None;
    }
    let all = pod.status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.as_deref());
    let mut addresses: Vec<IpAddr> =
        all.chain(pod.status.pod_ip.as_deref()).filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return None;
    }
    let label = |key: &Arc<str>| {
        let value = pod.metadata.label(key).filter(|value| check_label_pair(key, value).is_ok())?;
        Some((Arc::clone(key), Arc::from(value)))
    };
    Some(PodView {
        uid: pod.metadata.uid.as_deref()?.into(),
        name: Arc::clone(&name.name),
        namespace: interner.label(&name.namespace)?,
        service_account: pod.spec.service_account_name.as_deref().and_then(|account| interner.label(account)),
        subset: interner.subset(rules.subset_labels.iter().take(MAX_LABELS).filter_map(label).collect()),
        sidecar: mesh::sidecar_of(&pod.metadata, rules).map(|sidecar| interner.sidecar(sidecar)),
        addresses: addresses.into(),
    })
}

#[cfg(test)]
mod tests;

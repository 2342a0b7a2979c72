//! Service records.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use eastway_model::{
    EndpointGroup, InternalTrafficPolicy, IpFamily, PortName, Protocol, ServiceKey, ServiceKind, ServicePort,
    ServiceRecord, SessionAffinity, UnixMillis,
};
use eastway_proto::federation::v1 as wire;
use prost::Message;

use super::text::{PairKind, Texts, pairs_from_wire, pairs_to_wire, token_from_wire};
use super::{
    MAX_COUNT, MAX_GROUPS, MAX_IDENTITIES, MAX_PAIRS, MAX_PORTS, MAX_RECORD, MAX_SUBSET, MAX_WEIGHT,
    identity_from_wire, tls_from_wire, tls_to_wire,
};
use crate::close::excerpt;
use crate::reject::RejectReason;

/// A service as it crosses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedService {
    /// The encoded [`wire::Service`].
    pub service: Bytes,
    /// The counts of its groups.
    pub counts: Vec<wire::GroupCount>,
}

impl EncodedService {
    /// Encodes a record.
    #[must_use]
    pub fn new(record: &ServiceRecord) -> Self {
        Self { service: service_to_wire(record).encode_to_vec().into(), counts: counts_to_wire(record) }
    }

    /// The message.
    #[must_use]
    pub fn into_wire(self) -> wire::ServiceState {
        let Self { service, counts } = self;
        wire::ServiceState { service, counts }
    }
}

/// The name as it crosses.
#[must_use]
pub fn key_to_wire(key: &ServiceKey) -> wire::ServiceName {
    let ServiceKey { namespace, name } = key;
    wire::ServiceName { namespace: namespace.to_string(), name: name.to_string() }
}

/// Checks a name.
///
/// # Errors
/// [`RejectReason::BadName`].
pub fn key_from_wire(name: &wire::ServiceName) -> Result<ServiceKey, RejectReason> {
    let wire::ServiceName { namespace, name } = name;
    parse_key(namespace, name)
}

fn parse_key(namespace: &str, name: &str) -> Result<ServiceKey, RejectReason> {
    ServiceKey::parse(namespace, name).map_err(|source| {
        let namespace_bad = eastway_model::Label::parse(namespace).is_err();
        let (field, text) = if namespace_bad { ("namespace", namespace) } else { ("service", name) };
        RejectReason::BadName { field, text: excerpt(text, 64), source }
    })
}

/// What changes seldom about a record, as it crosses.
#[must_use]
pub fn service_to_wire(record: &ServiceRecord) -> wire::Service {
    let ServiceRecord {
        key,
        kind,
        ports,
        ip_families,
        session_affinity,
        internal_traffic_policy,
        traffic_distribution,
        labels,
        annotations,
        exported_at,
        groups,
        proxy_protocol,
    } = record;
    wire::Service {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        r#type: match kind {
            ServiceKind::ClusterSetIp => wire::ServiceType::ClusterSetIp,
            ServiceKind::Headless => wire::ServiceType::Headless,
        }
        .into(),
        ports: ports.iter().map(port_to_wire).collect(),
        ip_families: ip_families.iter().map(|family| family_to_wire(*family).into()).collect(),
        client_ip_affinity: match session_affinity {
            SessionAffinity::None => None,
            SessionAffinity::ClientIp { timeout } => {
                Some(wire::ClientIpAffinity { timeout_seconds: u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX) })
            }
        },
        internal_traffic_policy: match internal_traffic_policy {
            InternalTrafficPolicy::Cluster => wire::InternalTrafficPolicy::Cluster,
            InternalTrafficPolicy::Local => wire::InternalTrafficPolicy::Local,
        }
        .into(),
        traffic_distribution: traffic_distribution.as_deref().unwrap_or_default().to_owned(),
        labels: pairs_to_wire(labels.iter()),
        annotations: pairs_to_wire(annotations.iter()),
        exported_at_ms: exported_at.0,
        groups: groups.iter().map(group_to_wire).collect(),
        proxy_protocol_ports: proxy_protocol.iter().map(|port| port.get().into()).collect(),
    }
}

/// The counts of a record, as they cross.
#[must_use]
pub fn counts_to_wire(record: &ServiceRecord) -> Vec<wire::GroupCount> {
    record.groups.iter().map(count_to_wire).collect()
}

pub(crate) fn count_to_wire(group: &EndpointGroup) -> wire::GroupCount {
    wire::GroupCount { ready: group.ready.into(), draining: group.draining.into(), weight: group.weight }
}

fn port_to_wire(port: &ServicePort) -> wire::Port {
    let ServicePort { name, number, protocol, app_protocol } = port;
    wire::Port {
        name: name.as_ref().map(PortName::to_string).unwrap_or_default(),
        number: number.get().into(),
        protocol: match protocol {
            Protocol::Tcp => wire::Protocol::Tcp,
            Protocol::Udp => wire::Protocol::Udp,
            Protocol::Sctp => wire::Protocol::Sctp,
        }
        .into(),
        app_protocol: app_protocol.as_deref().unwrap_or_default().to_owned(),
    }
}

fn family_to_wire(family: IpFamily) -> wire::IpFamily {
    match family {
        IpFamily::Ipv4 => wire::IpFamily::Ipv4,
        IpFamily::Ipv6 => wire::IpFamily::Ipv6,
    }
}

fn group_to_wire(group: &EndpointGroup) -> wire::Group {
    // Counts cross beside the service: they change often.
    let EndpointGroup { zone, subset, ready: _, draining: _, weight: _, identities, tls } = group;
    wire::Group {
        zone: zone.as_deref().unwrap_or_default().to_owned(),
        subset: pairs_to_wire(subset.iter()),
        identities: identities.iter().map(ToString::to_string).collect(),
        tls: tls_to_wire(*tls).into(),
        tls_required: tls.refuses_plain(),
    }
}

/// Reads an encoded service and its name; the rest is checked by [`record_from_wire`].
///
/// # Errors
/// [`RejectReason`]; nothing is known of the record then, not even its name.
pub fn service_from_wire(encoded: &Bytes) -> Result<(ServiceKey, wire::Service), RejectReason> {
    if encoded.len() > MAX_RECORD {
        return Err(RejectReason::TooLarge(encoded.len()));
    }
    let service =
        wire::Service::decode(encoded.clone()).map_err(|error| RejectReason::Unreadable(error.to_string()))?;
    Ok((parse_key(&service.namespace, &service.name)?, service))
}

/// Checks a service. `exported_at` is already clamped.
///
/// # Errors
/// [`RejectReason`] says what is wrong with the record.
pub fn record_from_wire(
    key: ServiceKey,
    service: wire::Service,
    counts: &[wire::GroupCount],
    exported_at: UnixMillis,
    trust_domain: &str,
    texts: &mut Texts,
) -> Result<ServiceRecord, RejectReason> {
    let wire::Service {
        namespace: _,
        name: _,
        r#type,
        ports,
        ip_families,
        client_ip_affinity,
        internal_traffic_policy,
        traffic_distribution,
        labels,
        annotations,
        exported_at_ms: _,
        groups,
        proxy_protocol_ports,
    } = service;
    let kind = match wire::ServiceType::try_from(r#type) {
        Ok(wire::ServiceType::ClusterSetIp) => ServiceKind::ClusterSetIp,
        Ok(wire::ServiceType::Headless) => ServiceKind::Headless,
        Ok(wire::ServiceType::Unspecified) | Err(_) => {
            return Err(RejectReason::UnknownValue { field: "type", value: r#type });
        }
    };
    let ports = ports_from_wire(&ports, texts)?;
    Ok(ServiceRecord {
        key,
        kind,
        proxy_protocol: told_from_wire(&proxy_protocol_ports, &ports),
        ports,
        ip_families: families_from_wire(&ip_families)?,
        session_affinity: affinity_from_wire(client_ip_affinity)?,
        internal_traffic_policy: policy_from_wire(internal_traffic_policy)?,
        traffic_distribution: token_from_wire(&traffic_distribution, "trafficDistribution", texts)?,
        labels: pairs_from_wire(&labels, "labels", PairKind::Label, MAX_PAIRS, texts)?,
        annotations: pairs_from_wire(&annotations, "annotations", PairKind::Annotation, MAX_PAIRS, texts)?,
        exported_at,
        groups: groups_from_wire(&groups, counts, trust_domain, texts)?,
    })
}

/// The record with other counts.
///
/// # Errors
/// [`RejectReason`] if a count is out of range or there is not one per group.
pub fn record_with_counts(record: &ServiceRecord, counts: &[wire::GroupCount]) -> Result<ServiceRecord, RejectReason> {
    check_count_number(record.groups.len(), counts)?;
    let mut record = record.clone();
    for (group, count) in record.groups.iter_mut().zip(counts) {
        (group.ready, group.draining, group.weight) = count_from_wire(*count)?;
    }
    Ok(record)
}

fn ports_from_wire(ports: &[wire::Port], texts: &mut Texts) -> Result<Vec<ServicePort>, RejectReason> {
    if ports.len() > MAX_PORTS {
        return Err(RejectReason::TooMany { what: "ports", count: ports.len(), max: MAX_PORTS });
    }
    let ports: Vec<_> = ports.iter().map(|port| port_from_wire(port, texts)).collect::<Result<_, _>>()?;
    let mut names: Vec<_> = ports.iter().map(|port| port.name.as_ref().map(PortName::as_str)).collect();
    let mut numbers: Vec<_> = ports.iter().map(|port| (port.protocol, port.number)).collect();
    names.sort_unstable();
    numbers.sort_unstable();
    // A single port may go without a name; two without are two alike.
    if names.windows(2).any(|pair| matches!(pair, [a, b] if a == b))
        || numbers.windows(2).any(|pair| matches!(pair, [a, b] if a == b))
    {
        return Err(RejectReason::NotInOrder("ports"));
    }
    Ok(ports)
}

/// Ports that are told the client's address: of those that there are. Others mean nothing.
fn told_from_wire(told: &[u32], ports: &[ServicePort]) -> BTreeSet<NonZeroU16> {
    let tcp = ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(|port| port.number);
    tcp.filter(|number| told.contains(&number.get().into())).collect()
}

fn port_from_wire(port: &wire::Port, texts: &mut Texts) -> Result<ServicePort, RejectReason> {
    let wire::Port { name, number, protocol, app_protocol } = port;
    let bad_name = |source| RejectReason::BadName { field: "port name", text: excerpt(name, 64), source };
    Ok(ServicePort {
        name: match name.as_str() {
            "" => None,
            name => Some(PortName::parse(name).map_err(bad_name)?),
        },
        number: u16::try_from(*number).ok().and_then(NonZeroU16::new).ok_or(RejectReason::BadPort(*number))?,
        protocol: match wire::Protocol::try_from(*protocol) {
            Ok(wire::Protocol::Tcp) => Protocol::Tcp,
            Ok(wire::Protocol::Udp) => Protocol::Udp,
            Ok(wire::Protocol::Sctp) => Protocol::Sctp,
            Ok(wire::Protocol::Unspecified) | Err(_) => {
                return Err(RejectReason::UnknownValue { field: "protocol", value: *protocol });
            }
        },
        app_protocol: token_from_wire(app_protocol, "appProtocol", texts)?,
    })
}

fn families_from_wire(families: &[i32]) -> Result<Vec<IpFamily>, RejectReason> {
    if families.len() > 2 {
        return Err(RejectReason::TooMany { what: "ipFamilies", count: families.len(), max: 2 });
    }
    let known = |value: &i32| match wire::IpFamily::try_from(*value) {
        Ok(wire::IpFamily::Ipv4) => Ok(IpFamily::Ipv4),
        Ok(wire::IpFamily::Ipv6) => Ok(IpFamily::Ipv6),
        Ok(wire::IpFamily::Unspecified) | Err(_) => {
            Err(RejectReason::UnknownValue { field: "ipFamilies", value: *value })
        }
    };
    let families: Vec<IpFamily> = families.iter().map(known).collect::<Result<_, _>>()?;
    match families.as_slice() {
        [a, b] if a == b => Err(RejectReason::NotInOrder("ipFamilies")),
        _ => Ok(families),
    }
}

fn affinity_from_wire(affinity: Option<wire::ClientIpAffinity>) -> Result<SessionAffinity, RejectReason> {
    let Some(wire::ClientIpAffinity { timeout_seconds }) = affinity else {
        return Ok(SessionAffinity::None);
    };
    if !(1..=86_400).contains(&timeout_seconds) {
        return Err(RejectReason::OutOfRange { field: "sessionAffinity timeout", value: timeout_seconds.into() });
    }
    Ok(SessionAffinity::ClientIp { timeout: Duration::from_secs(timeout_seconds.into()) })
}

fn policy_from_wire(value: i32) -> Result<InternalTrafficPolicy, RejectReason> {
    match wire::InternalTrafficPolicy::try_from(value) {
        Ok(wire::InternalTrafficPolicy::Cluster) => Ok(InternalTrafficPolicy::Cluster),
        Ok(wire::InternalTrafficPolicy::Local) => Ok(InternalTrafficPolicy::Local),
        Ok(wire::InternalTrafficPolicy::Unspecified) | Err(_) => {
            Err(RejectReason::UnknownValue { field: "internalTrafficPolicy", value })
        }
    }
}

fn groups_from_wire(
    groups: &[wire::Group],
    counts: &[wire::GroupCount],
    trust_domain: &str,
    texts: &mut Texts,
) -> Result<Vec<EndpointGroup>, RejectReason> {
    if groups.len() > MAX_GROUPS {
        return Err(RejectReason::TooMany { what: "groups", count: groups.len(), max: MAX_GROUPS });
    }
    check_count_number(groups.len(), counts)?;
    let mut out = Vec::with_capacity(groups.len());
    for (group, count) in groups.iter().zip(counts) {
        out.push(group_from_wire(group, *count, trust_domain, texts)?);
    }
    // Counts refer to groups by position, so the order is part of the content.
    let ordered = |a: &EndpointGroup, b: &EndpointGroup| (&a.zone, &a.subset, a.tls) < (&b.zone, &b.subset, b.tls);
    if !out.is_sorted_by(ordered) {
        return Err(RejectReason::NotInOrder("groups"));
    }
    Ok(out)
}

fn group_from_wire(
    group: &wire::Group,
    count: wire::GroupCount,
    trust_domain: &str,
    texts: &mut Texts,
) -> Result<EndpointGroup, RejectReason> {
    let wire::Group { zone, subset, identities, tls, tls_required } = group;
    if identities.len() > MAX_IDENTITIES {
        return Err(RejectReason::TooMany { what: "identities", count: identities.len(), max: MAX_IDENTITIES });
    }
    let (ready, draining, weight) = count_from_wire(count)?;
    Ok(EndpointGroup {
        zone: token_from_wire(zone, "zone", texts)?,
        subset: pairs_from_wire(subset, "subset", PairKind::Label, MAX_SUBSET, texts)?.into(),
        ready,
        draining,
        weight,
        identities: identities
            .iter()
            .map(|uri| identity_from_wire(uri, trust_domain, texts))
            .collect::<Result<_, _>>()?,
        tls: tls_from_wire(*tls, *tls_required)?,
    })
}

fn check_count_number(groups: usize, counts: &[wire::GroupCount]) -> Result<(), RejectReason> {
    if counts.len() == groups {
        return Ok(());
    }
    Err(RejectReason::TooMany { what: "counts", count: counts.len(), max: groups })
}

/// Ready, draining, weight.
fn count_from_wire(count: wire::GroupCount) -> Result<(u32, u32, u64), RejectReason> {
    let wire::GroupCount { ready, draining, weight } = count;
    let small = |field, value: u64| {
        let number = u32::try_from(value).ok().filter(|_| value <= MAX_COUNT);
        number.ok_or(RejectReason::OutOfRange { field, value })
    };
    if weight > MAX_COUNT * MAX_WEIGHT {
        return Err(RejectReason::OutOfRange { field: "weight", value: weight });
    }
    Ok((small("ready", ready)?, small("draining", draining)?, weight))
}

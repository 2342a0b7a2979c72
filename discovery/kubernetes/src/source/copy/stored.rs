//! Services and workloads as lines of a copy. What is not read back as it was written is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::{
    Endpoint, EndpointCondition, EndpointId, InternalTrafficPolicy, IpFamily, Label, LocalEndpoint, LocalService,
    PortName, PortNumber, Protocol, ServiceKey, ServiceKind, ServicePort, ServiceRecord, SessionAffinity, Subset,
    TlsMode, UnixMillis, Workload, WorkloadIdentity,
};
use serde::{Deserialize, Serialize};

/// A workload.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredWorkload {
    address: IpAddr,
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account: Option<String>,
}

impl StoredWorkload {
    pub(super) fn of(workload: &Workload) -> Self {
        let account = workload.service_account.as_ref().map(ToString::to_string);
        Self { address: workload.address, namespace: workload.namespace.to_string(), account }
    }

    pub(super) fn restored(self) -> Option<Workload> {
        let Self { address, namespace, account } = self;
        let service_account = account.map(|account| Label::parse(&account)).transpose().ok()?;
        Some(Workload { address, namespace: Label::parse(&namespace).ok()?, service_account })
    }
}

/// A service with its endpoints.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoredService {
    namespace: String,
    name: String,
    exported: bool,
    exported_at: u64,
    headless: bool,
    /// `internalTrafficPolicy: Local`.
    local: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    affinity_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traffic_distribution: Option<String>,
    /// 4 and 6.
    families: Vec<u8>,
    ports: Vec<StoredPort>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<Arc<str>, Arc<str>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// Ports whose endpoints are told the client's address.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    proxy_protocol: BTreeSet<PortNumber>,
    endpoints: Vec<StoredEndpoint>,
}

#[derive(Serialize, Deserialize)]
struct StoredPort {
    number: PortNumber,
    protocol: StoredProtocol,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app: Option<String>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredProtocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Serialize, Deserialize)]
struct StoredEndpoint {
    id: String,
    address: IpAddr,
    ready: bool,
    serving: bool,
    terminating: bool,
    weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    subset: BTreeMap<Arc<str>, Arc<str>>,
    /// What it proves, and by what; a plain one nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mesh: Option<StoredMesh>,
    /// Port of the service to its own.
    ports: BTreeMap<String, u16>,
}

/// What an endpoint of a mesh speaks and who it is.
#[derive(Serialize, Deserialize)]
struct StoredMesh {
    tls: StoredTls,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StoredTls {
    Mesh,
    MeshStrict,
    Istio,
    IstioStrict,
}

impl StoredMesh {
    fn of(Endpoint { tls, identity, .. }: &Endpoint) -> Option<Self> {
        let tls = match tls {
            TlsMode::None => return None,
            TlsMode::Mesh => StoredTls::Mesh,
            TlsMode::MeshStrict => StoredTls::MeshStrict,
            TlsMode::Istio => StoredTls::Istio,
            TlsMode::IstioStrict => StoredTls::IstioStrict,
        };
        Some(Self { tls, identity: identity.as_ref().map(ToString::to_string) })
    }

    fn restored(self) -> Option<(TlsMode, Option<WorkloadIdentity>)> {
        let tls = match self.tls {
            StoredTls::Mesh => TlsMode::Mesh,
            StoredTls::MeshStrict => TlsMode::MeshStrict,
            StoredTls::Istio => TlsMode::Istio,
            StoredTls::IstioStrict => TlsMode::IstioStrict,
        };
        let identity = self.identity.map(|uri| WorkloadIdentity::parse(&uri).ok_or(()));
        Some((tls, identity.transpose().ok()?))
    }
}

impl StoredService {
    pub(super) fn of(service: &LocalService) -> Self {
        let record = &service.record;
        let text = |text: &Arc<str>| text.to_string();
        let port = |port: &ServicePort| StoredPort {
            number: port.number,
            protocol: match port.protocol {
                Protocol::Tcp => StoredProtocol::Tcp,
                Protocol::Udp => StoredProtocol::Udp,
                Protocol::Sctp => StoredProtocol::Sctp,
            },
            name: port.name.as_ref().map(|name| name.as_str().to_owned()),
            app: port.app_protocol.as_ref().map(text),
        };
        let family = |family: &IpFamily| match family {
            IpFamily::Ipv4 => 4,
            IpFamily::Ipv6 => 6,
        };
        Self {
            namespace: record.key.namespace.to_string(),
            name: record.key.name.to_string(),
            exported: service.exported,
            exported_at: record.exported_at.0,
            headless: record.kind == ServiceKind::Headless,
            local: record.internal_traffic_policy == InternalTrafficPolicy::Local,
            affinity_seconds: match record.session_affinity {
                SessionAffinity::None => None,
                SessionAffinity::ClientIp { timeout } => Some(timeout.as_secs()),
            },
            traffic_distribution: record.traffic_distribution.as_ref().map(text),
            families: record.ip_families.iter().map(family).collect(),
            ports: record.ports.iter().map(port).collect(),
            labels: record.labels.clone(),
            annotations: record.annotations.clone(),
            proxy_protocol: record.proxy_protocol.clone(),
            endpoints: service.endpoints.iter().map(|endpoint| StoredEndpoint::of(endpoint)).collect(),
        }
    }

    pub(super) fn restored(self) -> Option<LocalService> {
        let key = ServiceKey::parse(&self.namespace, &self.name).ok()?;
        let ports = self.ports.into_iter().map(StoredPort::restored).collect::<Option<_>>()?;
        let family = |family: u8| match family {
            4 => Some(IpFamily::Ipv4),
            6 => Some(IpFamily::Ipv6),
            _ => None,
        };
        let affinity = |seconds| SessionAffinity::ClientIp { timeout: Duration::from_secs(seconds) };
        let record = ServiceRecord {
            kind: if self.headless { ServiceKind::Headless } else { ServiceKind::ClusterSetIp },
            ip_families: self.families.into_iter().map(family).collect::<Option<_>>()?,
            session_affinity: self.affinity_seconds.map_or(SessionAffinity::None, affinity),
            internal_traffic_policy: match self.local {
                true => InternalTrafficPolicy::Local,
                false => InternalTrafficPolicy::Cluster,
            },
            traffic_distribution: self.traffic_distribution.map(Arc::from),
            labels: self.labels,
            annotations: self.annotations,
            exported_at: UnixMillis(self.exported_at),
            proxy_protocol: self.proxy_protocol,
            ..ServiceRecord::new(key, ports)
        };
        let endpoints: Vec<_> = self.endpoints.into_iter().map(StoredEndpoint::restored).collect::<Option<_>>()?;
        Some(LocalService::new(record, self.exported, endpoints))
    }
}

impl StoredPort {
    fn restored(self) -> Option<ServicePort> {
        Some(ServicePort {
            name: self.name.map(|name| PortName::parse(&name)).transpose().ok()?,
            number: self.number,
            protocol: match self.protocol {
                StoredProtocol::Tcp => Protocol::Tcp,
                StoredProtocol::Udp => Protocol::Udp,
                StoredProtocol::Sctp => Protocol::Sctp,
            },
            app_protocol: self.app.map(Arc::from),
        })
    }
}

impl StoredEndpoint {
    fn of(endpoint: &LocalEndpoint) -> Self {
        let Endpoint { id, hostname, subset, zone, condition, weight, .. } = &endpoint.endpoint;
        Self {
            id: id.to_string(),
            address: endpoint.address,
            ready: condition.ready,
            serving: condition.serving,
            terminating: condition.terminating,
            weight: *weight,
            hostname: hostname.as_ref().map(ToString::to_string),
            zone: zone.clone(),
            account: endpoint.service_account.as_ref().map(ToString::to_string),
            subset: subset.iter().map(|(key, value)| (Arc::clone(key), Arc::clone(value))).collect(),
            mesh: StoredMesh::of(&endpoint.endpoint),
            ports: endpoint.target_ports.iter().map(|(port, target)| (port.to_string(), *target)).collect(),
        }
    }

    fn restored(self) -> Option<LocalEndpoint> {
        let label = |text: Option<String>| text.map(|text| Label::parse(&text)).transpose().ok();
        let (tls, identity) = match self.mesh {
            Some(mesh) => mesh.restored()?,
            None => (TlsMode::None, None),
        };
        let endpoint = Endpoint {
            id: EndpointId::parse(&self.id)?,
            hostname: label(self.hostname)?,
            subset: Subset::from(self.subset),
            zone: self.zone,
            condition: EndpointCondition { ready: self.ready, serving: self.serving, terminating: self.terminating },
            weight: self.weight,
            identity,
            tls,
        };
        let service_account = label(self.account)?;
        let ports = self.ports.into_iter().map(|(port, target)| Some((port.parse().ok()?, target)));
        let target_ports = ports.collect::<Option<_>>()?;
        Some(LocalEndpoint { endpoint, address: self.address, service_account, target_ports })
    }
}

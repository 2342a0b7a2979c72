//! What clusters really have: services and endpoints, made up by the generator.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::rules::{Glob, NameFilter, NameFilterEntry};
use eastway_model::{
    Endpoint, EndpointCondition, EndpointId, Label, LocalEndpoint, LocalService, Pairs, PortName, Protocol, ServiceKey,
    ServiceKind, ServicePort, ServiceRecord, Subset, TlsMode, UnixMillis, WorkloadIdentity,
};
use fastrand::Rng;

/// Namespaces that services are in. Rules choose among them.
pub(super) const NAMESPACES: [&str; 3] = ["shop", "ops", "lab"];

/// Every address of an endpoint has these bytes. A message that has them too leaks an address (I1).
pub(super) const ADDRESS_MARK: [u8; 6] = [0xad, 0xde, 0xad, 0xde, 0xad, 0xde];

/// Annotation that says which cluster a record was made in.
pub(super) const ORIGIN: &str = "origin";

/// What happens in a cluster's API, in order.
#[derive(Clone, Debug)]
pub(super) struct LogEntry {
    pub(super) at: Duration,
    pub(super) key: ServiceKey,
    /// None: removed.
    pub(super) service: Option<Arc<LocalService>>,
}

/// One cluster's truth.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub(super) services: BTreeMap<ServiceKey, Arc<LocalService>>,
    pub(super) log: Vec<LogEntry>,
    next_endpoint: u64,
}

impl Truth {
    pub(super) fn set(&mut self, at: Duration, key: ServiceKey, service: Option<LocalService>) {
        let service = service.map(Arc::new);
        match &service {
            Some(service) => drop(self.services.insert(key.clone(), Arc::clone(service))),
            None => drop(self.services.remove(&key)),
        }
        self.log.push(LogEntry { at, key, service });
    }

    pub(super) fn random_service(
        &mut self,
        cluster: &str,
        key: ServiceKey,
        rng: &mut Rng,
        wall: UnixMillis,
    ) -> LocalService {
        let mut record = ServiceRecord::new(key, vec![port("http", 9080)]);
        if rng.u8(..4) == 0 {
            record.kind = ServiceKind::Headless;
        }
        record.annotations.insert(ORIGIN.into(), cluster.into());
        // Some clusters claim times of their own.
        record.exported_at = match rng.u8(..8) {
            0 => UnixMillis(0),
            1 => wall.plus(Duration::from_secs(1 << 32)),
            _ => wall,
        };
        let endpoints: Vec<_> = (0..rng.usize(..4)).map(|_| self.random_endpoint(cluster, rng)).collect();
        LocalService::new(record, rng.u8(..5) > 0, endpoints)
    }

    pub(super) fn random_endpoint(&mut self, cluster: &str, rng: &mut Rng) -> LocalEndpoint {
        self.next_endpoint += 1;
        let id = format!("{cluster}-e{}", self.next_endpoint);
        let identity = format!("spiffe://{cluster}.example/ns/shop/sa/app");
        LocalEndpoint {
            endpoint: Endpoint {
                id: EndpointId::parse(&id).unwrap(),
                hostname: (rng.u8(..4) == 0).then(|| Label::parse(&id).unwrap()),
                subset: Subset::from([("version".into(), ["v1", "v2"][rng.usize(..2)].into())]),
                zone: rng.bool().then(|| "zone-a".into()),
                condition: random_condition(rng),
                weight: rng.u32(1..=200),
                identity: if rng.bool() { WorkloadIdentity::parse(&identity) } else { None },
                tls: TlsMode::None,
            },
            address: random_address(rng),
            service_account: None,
            target_ports: Pairs::new(),
        }
    }
}

pub(super) fn random_condition(rng: &mut Rng) -> EndpointCondition {
    match rng.u8(..4) {
        0 => EndpointCondition::DOWN,
        1 => EndpointCondition::DRAINING,
        _ => EndpointCondition::READY,
    }
}

pub(super) fn random_address(rng: &mut Rng) -> IpAddr {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[4..10].copy_from_slice(&ADDRESS_MARK);
    octets[12..].copy_from_slice(&rng.u32(..).to_be_bytes());
    IpAddr::V6(Ipv6Addr::from(octets))
}

pub(super) fn random_key(rng: &mut Rng) -> ServiceKey {
    let namespace = NAMESPACES[rng.usize(..NAMESPACES.len())];
    ServiceKey::parse(namespace, &format!("s{}", rng.u8(..5))).unwrap()
}

pub(super) fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: Some(PortName::parse(name).unwrap()),
        number: NonZeroU16::new(number).unwrap(),
        protocol: Protocol::Tcp,
        app_protocol: None,
    }
}

/// A filter for a random choice of namespaces, rarely none, often all.
pub(super) fn random_filter(rng: &mut Rng) -> NameFilter {
    let all = rng.u8(..3) > 0;
    let chosen = NAMESPACES.into_iter().filter(|_| all || rng.bool());
    let entry = |namespace| NameFilterEntry { namespace: Glob::parse(namespace).unwrap(), services: vec![Glob::any()] };
    NameFilter::new(chosen.map(entry).collect()).unwrap()
}

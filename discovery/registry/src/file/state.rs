//! What the file and the health checks together make of each service, and what changed by it. No
//! clock, no file, no network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use eastway_model::{
    Endpoint, EndpointCondition, EndpointId, LocalChange, LocalEndpoint, LocalService, ServiceKey, ServiceRecord,
    TlsMode, UnixMillis, Workload, WorkloadIdentity,
};

use super::contents::{Contents, EndpointSpec, HealthSpec, ServiceSpec};
use super::kept::{EndpointKey, Kept};

/// One endpoint to be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) service: ServiceKey,
    pub(super) address: SocketAddr,
    pub(super) spec: Arc<HealthSpec>,
}

/// The registry's view.
#[derive(Debug, Default)]
pub(super) struct State {
    kept: Kept,
    trust_domain: Arc<str>,
    services: BTreeMap<ServiceKey, Service>,
    workloads: Vec<Workload>,
}

#[derive(Debug)]
struct Service {
    record: ServiceRecord,
    exported: bool,
    endpoints: BTreeMap<EndpointId, Known>,
}

#[derive(Debug)]
struct Known {
    spec: EndpointSpec,
    tls: TlsMode,
    /// Who it will prove to be, if it speaks TLS.
    identity: Option<WorkloadIdentity>,
    target: Option<Target>,
    /// `None` until the first check is done, and without checks.
    healthy: Option<bool>,
}

impl Known {
    fn condition(&self) -> EndpointCondition {
        let able = self.target.is_none() || self.healthy == Some(true);
        EndpointCondition { ready: able && !self.spec.draining, serving: able, terminating: self.spec.draining }
    }

    fn endpoint(&self, id: &EndpointId) -> LocalEndpoint {
        let spec = &self.spec;
        LocalEndpoint {
            endpoint: Endpoint {
                id: id.clone(),
                hostname: spec.hostname.clone(),
                subset: spec.subset.clone(),
                zone: spec.zone.clone(),
                condition: self.condition(),
                weight: spec.weight,
                identity: self.identity.clone(),
                tls: self.tls,
            },
            address: spec.address,
            service_account: spec.service_account.clone(),
            target_ports: spec.target_ports.clone().into(),
        }
    }
}

impl Service {
    fn build(&self) -> Arc<LocalService> {
        let endpoints = self.endpoints.iter().map(|(id, known)| known.endpoint(id));
        Arc::new(LocalService::new(self.record.clone(), self.exported, endpoints))
    }
}

impl State {
    /// Nothing yet. Workloads are of `trust_domain`.
    pub(super) fn new(kept: Kept, trust_domain: Arc<str>) -> Self {
        Self { kept, trust_domain, ..Self::default() }
    }

    /// What is to be kept over restarts.
    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Everything, as the first word to the store.
    pub(super) fn all(&self) -> Vec<LocalChange> {
        let services = self.services.values().map(Service::build).collect();
        // Workloads first: whoever is served from the first moment on is also recognised.
        let workloads = (!self.workloads.is_empty()).then(|| LocalChange::Workloads(self.workloads.clone()));
        workloads.into_iter().chain([LocalChange::Replace(services)]).collect()
    }

    /// Number of services, endpoints, and endpoints that fail their check.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let endpoints = || self.services.values().flat_map(|service| service.endpoints.values());
        let failing = endpoints().filter(|known| known.healthy == Some(false)).count();
        (self.services.len(), endpoints().count(), failing)
    }

    /// All that is to be checked.
    pub(super) fn targets(&self) -> BTreeMap<EndpointId, Target> {
        let known = self.services.values().flat_map(|service| &service.endpoints);
        known.filter_map(|(id, known)| Some((id.clone(), known.target.clone()?))).collect()
    }

    /// Whether every check has had a result.
    pub(super) fn is_settled(&self) -> bool {
        let mut known = self.services.values().flat_map(|service| service.endpoints.values());
        known.all(|known| known.target.is_none() || known.healthy.is_some())
    }

    /// Takes over new contents and returns the differences.
    pub(super) fn set_contents(&mut self, contents: Contents, now: UnixMillis) -> Vec<LocalChange> {
        let mut changes = Vec::new();
        let mut endpoint_keys = BTreeSet::new();
        let mut exported_keys = BTreeSet::new();
        let mut old = std::mem::take(&mut self.services);
        for (key, spec) in contents.services {
            let old = old.remove(&key);
            if spec.exported {
                exported_keys.insert(key.clone());
            }
            let service = self.service(&key, spec, old.as_ref(), now, &mut endpoint_keys);
            changes.extend(difference(&key, old.as_ref(), &service));
            self.services.insert(key, service);
        }
        changes.extend(old.into_keys().map(LocalChange::Remove));
        self.kept.retain(&endpoint_keys, &exported_keys);
        if self.workloads != contents.workloads {
            self.workloads.clone_from(&contents.workloads);
            changes.push(LocalChange::Workloads(contents.workloads));
        }
        changes
    }

    fn service(
        &mut self,
        key: &ServiceKey,
        spec: ServiceSpec,
        old: Option<&Service>,
        now: UnixMillis,
        endpoint_keys: &mut BTreeSet<EndpointKey>,
    ) -> Service {
        let mut record = spec.record;
        if spec.exported {
            record.exported_at = self.kept.exported_at(key, now);
        }
        let health = spec.health.map(Arc::new);
        let mut endpoints = BTreeMap::new();
        for endpoint in spec.endpoints {
            let endpoint_key = EndpointKey {
                service: key.clone(),
                address: endpoint.address,
                target_ports: endpoint.target_ports.clone(),
            };
            let id = self.kept.id(&endpoint_key);
            endpoint_keys.insert(endpoint_key);
            let target = health.as_ref().and_then(|spec| {
                let address = endpoint.health_address(spec.port)?;
                Some(Target { service: key.clone(), address, spec: Arc::clone(spec) })
            });
            // The last result stands until the next one, even if the check itself changed.
            let before = old.and_then(|old| old.endpoints.get(&id));
            let healthy = before.filter(|_| target.is_some()).and_then(|before| before.healthy);
            let identity = self.identity(key, spec.tls, &endpoint);
            endpoints.insert(id, Known { spec: endpoint, tls: spec.tls, identity, target, healthy });
        }
        Service { record, exported: spec.exported, endpoints }
    }

    /// What is in a file proves nothing about who listens there; who speaks TLS has to prove it.
    fn identity(&self, key: &ServiceKey, tls: TlsMode, endpoint: &EndpointSpec) -> Option<WorkloadIdentity> {
        let service_account = endpoint.service_account.clone().filter(|_| tls.is_mutual())?;
        let (trust_domain, namespace) = (Arc::clone(&self.trust_domain), key.namespace.clone());
        Some(WorkloadIdentity { trust_domain, namespace, service_account })
    }

    /// Takes over results of health checks and returns the differences.
    pub(super) fn set_health(
        &mut self,
        results: impl IntoIterator<Item = (ServiceKey, EndpointId, bool)>,
    ) -> Vec<LocalChange> {
        let mut changed: BTreeMap<ServiceKey, Vec<LocalEndpoint>> = BTreeMap::new();
        for (key, id, healthy) in results {
            let Some(service) = self.services.get_mut(&key) else { continue };
            let Some(known) = service.endpoints.get_mut(&id) else { continue };
            let before = known.condition();
            known.healthy = Some(healthy);
            if known.condition() != before {
                changed.entry(key).or_default().push(known.endpoint(&id));
            }
        }
        let change = |(service, upsert)| LocalChange::Endpoints { service, upsert, remove: Vec::new() };
        changed.into_iter().map(change).collect()
    }
}

/// What the store has to hear about one service.
fn difference(key: &ServiceKey, old: Option<&Service>, new: &Service) -> Option<LocalChange> {
    let Some(old) = old else { return Some(LocalChange::Upsert(new.build())) };
    if old.record != new.record || old.exported != new.exported {
        return Some(LocalChange::Upsert(new.build()));
    }
    let differs = |id: &EndpointId, known: &Known| {
        old.endpoints
            .get(id)
            .is_none_or(|old| old.spec != known.spec || old.tls != known.tls || old.condition() != known.condition())
    };
    let upsert: Vec<LocalEndpoint> =
        new.endpoints.iter().filter(|(id, known)| differs(id, known)).map(|(id, known)| known.endpoint(id)).collect();
    let remove: Vec<EndpointId> = old.endpoints.keys().filter(|id| !new.endpoints.contains_key(*id)).cloned().collect();
    (!upsert.is_empty() || !remove.is_empty()).then(|| LocalChange::Endpoints { service: key.clone(), upsert, remove })
}

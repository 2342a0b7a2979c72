//! Local truth: what the registries of this cluster say, merged per service.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::sources::{Claim, Sources};
use crate::change::{LocalChange, Workload};
use crate::endpoint::{EndpointId, LocalEndpoint, LocalEndpoints};
use crate::group::GroupIndex;
use crate::name::{ClusterName, Label, ServiceKey};
use crate::service::{LocalService, ServiceRecord};

/// Two registries of this cluster disagree about a service.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryConflict {
    /// The registry whose word counts: the first by name.
    pub winner: Label,
    /// The registry that is not, or not wholly, heard.
    pub loser: Label,
    /// What about.
    #[serde(flatten)]
    pub kind: RegistryConflictKind,
}

impl fmt::Display for RegistryConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { winner, loser, kind } = self;
        match kind {
            RegistryConflictKind::Service { field } => {
                write!(
                    f,
                    "{loser} differs in {field} from {winner}, which counts: the endpoints of {loser} take no part"
                )
            }
            RegistryConflictKind::Endpoints { count } => {
                write!(f, "{count} endpoints of {loser} are those of {winner} already, which count")
            }
        }
    }
}

/// What registries disagree about.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum RegistryConflictKind {
    /// A field of the service: the loser's endpoints take no part.
    Service {
        /// The first field that differs.
        field: &'static str,
    },
    /// Endpoints of one id, or the same place under two ids: the loser's take no part.
    Endpoints {
        /// How many.
        count: usize,
    },
}

/// All registries.
#[derive(Debug)]
pub(super) struct LocalTable {
    /// Registries that were awaited or sent something.
    registries: BTreeMap<Label, Registry>,
    services: BTreeMap<ServiceKey, Merged>,
    /// Services whose merged view may have changed.
    dirty: BTreeSet<ServiceKey>,
    pub(super) sources: Sources,
}

#[derive(Debug, Default)]
struct Registry {
    awaited: bool,
    /// It sent its complete contents at least once.
    synced: bool,
    workloads: HashMap<IpAddr, Claim>,
}

/// What an endpoint becomes; none: it goes.
type EndpointEdit = (EndpointId, Option<Arc<LocalEndpoint>>);

/// One service in all registries.
#[derive(Debug, Default)]
struct Merged {
    /// By registry.
    inputs: BTreeMap<Label, Arc<LocalService>>,
    /// Those of `inputs` that take part; the first is the one whose record counts.
    heard: Vec<Label>,
    view: Option<Arc<LocalService>>,
    groups: GroupIndex,
    conflicts: Vec<RegistryConflict>,
}

impl LocalTable {
    /// Nothing is known of the cluster of this name yet.
    pub(super) fn new(cluster: ClusterName) -> Self {
        Self {
            registries: BTreeMap::new(),
            services: BTreeMap::new(),
            dirty: BTreeSet::new(),
            sources: Sources::new(cluster),
        }
    }

    pub(super) fn await_registries(&mut self, names: impl IntoIterator<Item = Label>) {
        for name in names {
            self.registries.entry(name).or_default().awaited = true;
        }
    }

    /// Awaited registries that have not sent their complete contents yet.
    pub(super) fn unsynced(&self) -> impl Iterator<Item = &Label> {
        self.registries.iter().filter(|(_, registry)| registry.awaited && !registry.synced).map(|(name, _)| name)
    }

    pub(super) fn take_dirty(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.dirty)
    }

    pub(super) fn view(&self, key: &ServiceKey) -> Option<&Arc<LocalService>> {
        self.services.get(key)?.view.as_ref()
    }

    pub(super) fn conflicts(&self, key: &ServiceKey) -> &[RegistryConflict] {
        self.services.get(key).map_or(&[], |merged| &merged.conflicts)
    }

    pub(super) fn apply(&mut self, registry: &Label, change: LocalChange) {
        match change {
            LocalChange::Upsert(service) => self.set(registry, service.key().clone(), Some(service)),
            LocalChange::Remove(key) => self.set(registry, key, None),
            LocalChange::Endpoints { service, upsert, remove } => self.edit(registry, &service, upsert, &remove),
            LocalChange::Replace(services) => {
                self.registries.entry(registry.clone()).or_default().synced = true;
                self.replace(registry, services);
            }
            LocalChange::Workloads(workloads) => self.set_workloads(registry, workloads),
            LocalChange::WorkloadEdits { upsert, remove } => self.edit_workloads(registry, upsert, &remove),
            LocalChange::Removed => {
                self.replace(registry, Vec::new());
                self.set_workloads(registry, Vec::new());
                self.registries.remove(registry);
            }
        }
    }

    fn replace(&mut self, registry: &Label, services: Vec<Arc<LocalService>>) {
        let new: BTreeMap<ServiceKey, Arc<LocalService>> =
            services.into_iter().map(|service| (service.key().clone(), service)).collect();
        let has = |merged: &Merged| merged.inputs.contains_key(registry);
        let gone = self.services.iter().filter(|(key, merged)| has(merged) && !new.contains_key(key));
        let gone: Vec<ServiceKey> = gone.map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.set(registry, key, None);
        }
        for (key, service) in new {
            self.set(registry, key, Some(service));
        }
    }

    fn set_workloads(&mut self, registry: &Label, workloads: Vec<Workload>) {
        let new: HashMap<IpAddr, Workload> =
            workloads.into_iter().map(|workload| (workload.address, workload)).collect();
        let known = self.registries.get(registry).into_iter().flat_map(|registry| registry.workloads.keys());
        let gone: Vec<IpAddr> = known.filter(|address| !new.contains_key(*address)).copied().collect();
        self.edit_workloads(registry, new.into_values().collect(), &gone);
    }

    fn edit_workloads(&mut self, registry: &Label, upsert: Vec<Workload>, remove: &[IpAddr]) {
        let known = &mut self.registries.entry(registry.clone()).or_default().workloads;
        for workload in upsert {
            let (address, claim) = (workload.address, self.sources.of_workload(&workload));
            if known.get(&address) == Some(&claim) {
                continue;
            }
            // The new claim first: an address that stays is never without one.
            self.sources.add(address, Arc::clone(&claim));
            if let Some(old) = known.insert(address, claim) {
                self.sources.remove(address, &old);
            }
        }
        for address in remove {
            if let Some(old) = known.remove(address) {
                self.sources.remove(*address, &old);
            }
        }
    }

    /// What `registry` says about a service as a whole.
    fn set(&mut self, registry: &Label, key: ServiceKey, service: Option<Arc<LocalService>>) {
        let merged = self.services.entry(key.clone()).or_default();
        let alone = merged.inputs.len() == 1;
        match (service, merged.inputs.get(registry)) {
            (Some(new), Some(old)) if Arc::ptr_eq(&new, old) => return,
            (Some(new), Some(old)) if alone => {
                let edits = differences(&old.endpoints, &new.endpoints);
                if edits.is_empty() && new.exported == old.exported && new.record == old.record {
                    return;
                }
                merged.edit(registry, Arc::clone(&new.record), new.exported, &edits);
                merged.update(&edits, &key.namespace, &mut self.sources);
            }
            (Some(new), Some(old)) if new == *old => return,
            (Some(new), _) => {
                merged.inputs.insert(registry.clone(), new);
                merged.rebuild(&key.namespace, &mut self.sources);
            }
            (None, _) => {
                merged.inputs.remove(registry);
                merged.rebuild(&key.namespace, &mut self.sources);
            }
        }
        if merged.inputs.is_empty() {
            self.services.remove(&key);
        }
        self.dirty.insert(key);
    }

    /// Some endpoints of a service that `registry` told before.
    fn edit(&mut self, registry: &Label, key: &ServiceKey, upsert: Vec<LocalEndpoint>, remove: &[EndpointId]) {
        let Some(merged) = self.services.get_mut(key) else { return };
        let Some(input) = merged.inputs.get(registry) else { return };
        let mut edits: BTreeMap<EndpointId, Option<Arc<LocalEndpoint>>> = BTreeMap::new();
        for endpoint in upsert {
            edits.insert(endpoint.endpoint.id.clone(), Some(Arc::new(endpoint)));
        }
        for id in remove {
            edits.insert(id.clone(), None);
        }
        edits.retain(|id, new| input.endpoints.get(id) != new.as_ref());
        if edits.is_empty() {
            return;
        }
        let edits: Vec<EndpointEdit> = edits.into_iter().collect();
        let (record, exported) = (Arc::clone(&input.record), input.exported);
        merged.edit(registry, record, exported, &edits);
        match merged.inputs.len() {
            1 => merged.update(&edits, &key.namespace, &mut self.sources),
            _ => merged.rebuild(&key.namespace, &mut self.sources),
        }
        self.dirty.insert(key.clone());
    }
}

/// What turns the endpoints of `old` into those of `new`, sorted by id.
fn differences(old: &LocalEndpoints, new: &LocalEndpoints) -> Vec<EndpointEdit> {
    let mut edits = Vec::new();
    if old.same(new) {
        return edits;
    }
    let id = |endpoint: &Arc<LocalEndpoint>| endpoint.endpoint.id.clone();
    let mut old = old.iter().peekable();
    for endpoint in new.iter() {
        while let Some(gone) = old.next_if(|old| old.endpoint.id < endpoint.endpoint.id) {
            edits.push((id(gone), None));
        }
        let known = old.next_if(|old| old.endpoint.id == endpoint.endpoint.id);
        if known != Some(endpoint) {
            edits.push((id(endpoint), Some(Arc::clone(endpoint))));
        }
    }
    edits.extend(old.map(|gone| (id(gone), None)));
    edits
}

impl Merged {
    /// Changes the input of `registry`; what does not change is shared with what it was.
    fn edit(&mut self, registry: &Label, record: Arc<ServiceRecord>, exported: bool, edits: &[EndpointEdit]) {
        if let Some(input) = self.inputs.get_mut(registry) {
            let endpoints = input.endpoints.edited(edits);
            *input = Arc::new(LocalService { record, exported, endpoints });
        }
    }

    /// Computes everything but `inputs` from `inputs`, and tells `sources` what that changes.
    fn rebuild(&mut self, namespace: &Label, sources: &mut Sources) {
        let old = self.view.take();
        self.merge();
        if old == self.view {
            return;
        }
        // The new claims first: an address that stays is never without one.
        for endpoint in self.view.iter().flat_map(|view| view.endpoints.iter()) {
            let claim = sources.of_endpoint(namespace, endpoint);
            sources.add(endpoint.address, claim);
        }
        for endpoint in old.iter().flat_map(|view| view.endpoints.iter()) {
            let claim = sources.of_endpoint(namespace, endpoint);
            sources.remove(endpoint.address, &claim);
        }
    }

    fn merge(&mut self) {
        self.heard.clear();
        self.conflicts.clear();
        self.groups = GroupIndex::default();
        let mut inputs = self.inputs.iter();
        let Some((first, base)) = inputs.next() else { return };
        self.heard.push(first.clone());
        let mut endpoints = base.endpoints.clone();
        for (registry, input) in inputs {
            if let Some(field) = difference(base, input) {
                let kind = RegistryConflictKind::Service { field };
                self.conflicts.push(RegistryConflict { winner: first.clone(), loser: registry.clone(), kind });
                continue;
            }
            self.heard.push(registry.clone());
            // An API server that is listed twice, and an address that two claim, count once.
            let places: HashSet<_> = endpoints.iter().map(|one| (one.address, &one.target_ports)).collect();
            let known = |endpoint: &&Arc<LocalEndpoint>| {
                endpoints.get(&endpoint.endpoint.id).is_some()
                    || places.contains(&(endpoint.address, &endpoint.target_ports))
            };
            let count = input.endpoints.iter().filter(known).count();
            if count > 0 {
                let kind = RegistryConflictKind::Endpoints { count };
                self.conflicts.push(RegistryConflict { winner: first.clone(), loser: registry.clone(), kind });
            }
            let new = input.endpoints.iter().filter(|endpoint| !known(endpoint));
            let new: Vec<_> = new.map(|endpoint| (endpoint.endpoint.id.clone(), Some(Arc::clone(endpoint)))).collect();
            endpoints = endpoints.edited(&new);
        }
        self.groups = GroupIndex::of(&endpoints);
        self.view = Some(Arc::new(self.assemble(base, endpoints)));
    }

    /// Brings the view up to date after `edits` to the one input there is: what [`Self::rebuild`]
    /// would make of it, at the cost of the edits.
    fn update(&mut self, edits: &[EndpointEdit], namespace: &Label, sources: &mut Sources) {
        let (Some(old), Some(input)) = (&self.view, self.inputs.values().next()) else {
            return self.rebuild(namespace, sources);
        };
        for (id, new) in edits {
            if let Some(new) = new {
                self.groups.add(new);
                let claim = sources.of_endpoint(namespace, new);
                sources.add(new.address, claim);
            }
            if let Some(old) = old.endpoints.get(id) {
                self.groups.remove(old);
                let claim = sources.of_endpoint(namespace, old);
                sources.remove(old.address, &claim);
            }
        }
        self.view = Some(Arc::new(self.assemble(input, input.endpoints.clone())));
    }

    /// The view with this base and these endpoints; groups are already counted.
    fn assemble(&self, base: &LocalService, endpoints: LocalEndpoints) -> LocalService {
        let groups = self.groups.groups();
        let mut exported_at = base.record.exported_at;
        let mut ip_families = base.record.ip_families.clone();
        for input in self.heard.iter().skip(1).filter_map(|name| self.inputs.get(name)) {
            exported_at = exported_at.min(input.record.exported_at);
            for family in &input.record.ip_families {
                if !ip_families.contains(family) {
                    ip_families.push(*family);
                }
            }
        }
        let same = groups == base.record.groups
            && exported_at == base.record.exported_at
            && ip_families == base.record.ip_families;
        let record = if same {
            Arc::clone(&base.record)
        } else {
            Arc::new(ServiceRecord { groups, exported_at, ip_families, ..ServiceRecord::clone(&base.record) })
        };
        LocalService { record, exported: base.exported, endpoints }
    }
}

/// The first field in which two registries' ideas of a service cannot be merged. Labels and
/// annotations are not among them: the first registry's are taken.
fn difference(a: &LocalService, b: &LocalService) -> Option<&'static str> {
    let (x, y) = (&a.record, &b.record);
    [
        ("export", a.exported == b.exported),
        ("type", x.kind == y.kind),
        ("ports", x.ports == y.ports),
        ("sessionAffinity", x.session_affinity == y.session_affinity),
        ("internalTrafficPolicy", x.internal_traffic_policy == y.internal_traffic_policy),
        ("proxyProtocol", x.proxy_protocol == y.proxy_protocol),
        ("trafficDistribution", x.traffic_distribution == y.traffic_distribution),
    ]
    .into_iter()
    .find_map(|(field, same)| (!same).then_some(field))
}

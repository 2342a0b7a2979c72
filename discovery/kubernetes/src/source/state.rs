//! What the lists and watches of one API server together say, and what an object changes in it. No
//! clock, no network.
//!
//! Changes of objects are noted first and told by [`State::flush`]: what changed in one service of ten
//! thousand endpoints costs the change. An endpoint needs its slice and its pod; whichever comes last
//! makes it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use eastway_model::{
    Endpoint, EndpointId, LocalChange, LocalEndpoint, LocalService, Pairs, PortKey, ServiceKey, Workload,
};
use sha2::{Digest as _, Sha256};

use super::authentications::Modes;
use super::kept::{Few, Interner, PodView, Uid};
use super::objects::{EndpointSlice, PeerAuthentication, Pod, Service, ServiceExport};
use super::translate::{self, Entry, LOOKED_AT, Problem, Refused, Slice, Target, Translated, rank};
use super::{Rules, mesh};
use crate::watch::{Difference, ObjectName};

/// Weight of every endpoint: Kubernetes has no such thing.
const WEIGHT: u32 = 100;

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    rules: Rules,
    services: HashMap<ObjectName, Known>,
    /// The service of each slice.
    slices: HashMap<ObjectName, ObjectName>,
    pods: HashMap<ObjectName, Arc<PodView>>,
    addresses: HashMap<IpAddr, At>,
    told_workloads: HashSet<IpAddr>,
    interner: Interner,
    modes: Modes,
    /// What may have changed since the last flush: services, and which of their endpoints.
    touched: HashMap<ObjectName, BTreeSet<IpAddr>>,
    touched_workloads: HashSet<IpAddr>,
}

/// All about one namespace and name: the parts come in any order.
#[derive(Debug, Default)]
struct Known {
    service: Option<Arc<Service>>,
    export: Option<Arc<ServiceExport>>,
    /// By name, which they are sorted by.
    slices: Vec<(Arc<str>, Slice)>,
    /// What `service` and `export` make; `None`: no service of ours.
    translated: Option<Arc<Translated>>,
    problems: Vec<Problem>,
    /// Endpoints that are none, and why: no pod stands behind them, or one that cannot be dialled.
    undialled: BTreeMap<IpAddr, Refused>,
    told: Option<Told>,
}

/// What the store heard of a service.
#[derive(Debug)]
struct Told {
    translated: Arc<Translated>,
    endpoints: BTreeMap<IpAddr, EndpointId>,
}

impl Told {
    fn key(&self) -> &ServiceKey {
        &self.translated.record.key
    }
}

/// Who is at an address.
#[derive(Debug, Default)]
struct At {
    pods: Few<Arc<PodView>>,
    /// Services that have an endpoint there.
    services: Few<ObjectName>,
}

/// What endpoints are made with, beside what the service knows.
struct Around<'a> {
    at: &'a HashMap<IpAddr, At>,
    rules: &'a Rules,
    modes: &'a Modes,
    interner: &'a mut Interner,
}

/// Numbers for the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) services: usize,
    pub(super) exported: usize,
    pub(super) endpoints: usize,
    pub(super) workloads: usize,
}

impl State {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            services: HashMap::new(),
            slices: HashMap::new(),
            pods: HashMap::new(),
            addresses: HashMap::new(),
            told_workloads: HashSet::new(),
            interner: Interner::default(),
            modes: Modes::default(),
            touched: HashMap::new(),
            touched_workloads: HashSet::new(),
        }
    }

    pub(super) fn service(&mut self, difference: Difference<Service>) {
        let (name, mut service) = parts(difference);
        if let Some(service) = &mut service {
            service.metadata.keep(&LOOKED_AT);
        }
        let service = service.map(Arc::new);
        self.services.entry(name.clone()).or_default().service = service;
        self.retranslate(&name);
    }

    pub(super) fn export(&mut self, difference: Difference<ServiceExport>) {
        let (name, mut export) = parts(difference);
        if let Some(export) = &mut export {
            export.metadata.keep(&[]);
        }
        let export = export.map(Arc::new);
        self.services.entry(name.clone()).or_default().export = export;
        self.retranslate(&name);
    }

    fn retranslate(&mut self, name: &ObjectName) {
        let Some(known) = self.services.get_mut(name) else { return };
        known.problems.clear();
        let translated = known.service.as_ref().and_then(|service| {
            translate::service(name, service, known.export.as_deref(), &self.rules, &mut known.problems)
        });
        known.translated = translated.map(Arc::new);
        self.touched.entry(name.clone()).or_default();
    }

    pub(super) fn slice(&mut self, difference: Difference<EndpointSlice>) {
        let (name, slice) = parts(difference);
        let service = slice.as_ref().and_then(translate::slice_service);
        let service = service.map(|service| {
            let service = ObjectName { namespace: Arc::clone(&name.namespace), name: service.into() };
            // The name that is there already, not another text like it.
            self.services.get_key_value(&service).map_or(service, |(known, _)| known.clone())
        });
        let before = match &service {
            Some(service) => self.slices.insert(name.clone(), service.clone()),
            None => self.slices.remove(&name),
        };
        if let Some(before) = before.filter(|before| Some(before) != service.as_ref()) {
            self.set_slice(&before, &name.name, None);
        }
        if let (Some(service), Some(slice)) = (service, slice) {
            let slice = translate::slice(&name.namespace, &slice, self.rules.allow_loopback, &mut self.interner);
            self.set_slice(&service, &name.name, Some(slice));
        }
    }

    /// Replaces one slice of a service, and notes the endpoints that differ by it.
    fn set_slice(&mut self, service: &ObjectName, slice: &Arc<str>, new: Option<Slice>) {
        let known = self.services.entry(service.clone()).or_default();
        let place = known.slices.binary_search_by(|(name, _)| name.cmp(slice));
        let old = place.map_or_else(|_| Slice::default(), |place| known.slices.remove(place).1);
        let same_ports = new.as_ref().is_some_and(|new| new.ports == old.ports);
        let entries =
            |of: &Option<Slice>, address: &IpAddr| of.as_ref().and_then(|of| of.entries.get(address)).cloned();
        let mut differ: Vec<IpAddr> = Vec::new();
        for (address, entry) in &old.entries {
            let now = entries(&new, address);
            if !same_ports || now.as_ref() != Some(entry) {
                differ.push(*address);
            }
        }
        let fresh = new.iter().flat_map(|new| new.entries.keys()).filter(|address| !old.entries.contains_key(address));
        differ.extend(fresh);
        if let Some(new) = new {
            let (Ok(place) | Err(place)) = place;
            // Almost always the only one.
            known.slices.reserve_exact(1);
            known.slices.insert(place, (Arc::clone(slice), new));
        }
        for address in differ {
            let listed = known.slices.iter().any(|(_, slice)| slice.entries.contains_key(&address));
            let at = self.addresses.entry(address).or_default();
            if !listed {
                at.services.retain(|other| other != service);
            } else if !at.services.as_slice().contains(service) {
                at.services.push(service.clone());
            }
            if at.is_empty() {
                self.addresses.remove(&address);
            }
            touch(&mut self.touched, service, address);
        }
        // Also when no endpoint differs: it may have been the last part of a service.
        self.touched.entry(service.clone()).or_default();
    }

    pub(super) fn pod(&mut self, difference: Difference<Pod>) {
        let (name, pod) = parts(difference);
        let new = pod.and_then(|pod| translate::pod(&name, &pod, &self.rules, &mut self.interner)).map(Arc::new);
        if self.pods.get(&name) == new.as_ref() {
            return;
        }
        let old = match &new {
            Some(new) => self.pods.insert(name, Arc::clone(new)),
            None => self.pods.remove(&name),
        };
        if let Some(pod) = &old {
            for address in pod.addresses.as_slice() {
                if let Some(at) = self.addresses.get_mut(address) {
                    at.pods.retain(|other| !Arc::ptr_eq(other, pod));
                }
            }
        }
        if let Some(pod) = &new {
            for address in pod.addresses.as_slice() {
                self.addresses.entry(*address).or_default().pods.push(Arc::clone(pod));
            }
        }
        for address in old.iter().chain(&new).flat_map(|pod| pod.addresses.as_slice()) {
            self.touched_workloads.insert(*address);
            let Some(at) = self.addresses.get(address) else { continue };
            for service in at.services.as_slice() {
                touch(&mut self.touched, service, *address);
            }
            if at.is_empty() {
                self.addresses.remove(address);
            }
        }
    }

    /// What sidecars of Istio take changes with it.
    pub(super) fn authentication(&mut self, difference: Difference<PeerAuthentication>) {
        let (name, authentication) = parts(difference);
        let Some(of) = self.modes.set(name, authentication) else { return };
        let concerned = |pod: &&Arc<PodView>| mesh::is_istios(pod) && of.concerns(pod.namespace.as_str());
        for pod in self.pods.values().filter(concerned) {
            for address in pod.addresses.as_slice() {
                for service in self.addresses.get(address).into_iter().flat_map(|at| at.services.as_slice()) {
                    touch(&mut self.touched, service, *address);
                }
            }
        }
    }

    /// Everything, as the first word to the store. Workloads come first: whoever is served from the
    /// first moment on is also recognised.
    pub(super) fn all(&mut self) -> Vec<LocalChange> {
        let changes = self.flush();
        let mut services = Vec::new();
        let mut workloads = Vec::new();
        for change in changes {
            match change {
                LocalChange::Upsert(service) => services.push(service),
                LocalChange::WorkloadEdits { upsert, .. } => workloads.extend(upsert),
                // Nothing was told before, so nothing is removed or edited.
                LocalChange::Remove(_)
                | LocalChange::Endpoints { .. }
                | LocalChange::Replace(_)
                | LocalChange::Workloads(_)
                | LocalChange::Removed => {}
            }
        }
        vec![LocalChange::Workloads(workloads), LocalChange::Replace(services)]
    }

    /// What the store has to hear of what changed since the last call.
    pub(super) fn flush(&mut self) -> Vec<LocalChange> {
        let mut changes = Vec::new();
        changes.extend(self.flush_workloads());
        for (name, touched) in std::mem::take(&mut self.touched) {
            let Self { services, addresses: at, rules, modes, interner, .. } = &mut *self;
            let Some(known) = services.get_mut(&name) else { continue };
            let mut around = Around { at, rules, modes, interner };
            changes.extend(known.flush(&name, &touched, &mut around));
            if known.is_empty() {
                services.remove(&name);
            }
        }
        changes
    }

    fn flush_workloads(&mut self) -> Option<LocalChange> {
        let (mut upsert, mut remove) = (Vec::new(), Vec::new());
        for address in std::mem::take(&mut self.touched_workloads) {
            match self.addresses.get(&address).and_then(|at| at.workload(address)) {
                Some(workload) => {
                    self.told_workloads.insert(address);
                    upsert.push(workload);
                }
                None if self.told_workloads.remove(&address) => remove.push(address),
                None => {}
            }
        }
        (!upsert.is_empty() || !remove.is_empty()).then_some(LocalChange::WorkloadEdits { upsert, remove })
    }

    /// Every service as the store has it, one made after the other.
    pub(super) fn services(&mut self) -> impl Iterator<Item = LocalService> {
        let Self { services, addresses: at, rules, modes, interner, .. } = self;
        let mut around = Around { at, rules, modes, interner };
        services.iter_mut().filter_map(move |(name, known)| {
            let translated = Arc::clone(&known.told.as_ref()?.translated);
            Some(known.whole(name, &translated, &mut around))
        })
    }

    /// Every workload as the store has it.
    pub(super) fn workloads(&self) -> impl Iterator<Item = Workload> {
        self.told_workloads.iter().filter_map(|address| self.addresses.get(address)?.workload(*address))
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts { workloads: self.told_workloads.len(), ..Counts::default() };
        for told in self.services.values().filter_map(|known| known.told.as_ref()) {
            counts.services += 1;
            counts.exported += usize::from(told.translated.exported);
            counts.endpoints += told.endpoints.len();
        }
        counts
    }

    /// What was left out, by service: of services that somebody means to export.
    pub(super) fn problems(&self) -> impl Iterator<Item = (&ObjectName, Vec<Problem>)> {
        let problems = |known: &Known| {
            let exported = known.translated.as_ref().is_some_and(|translated| translated.exported);
            let refused = known.slices.iter().flat_map(|(_, slice)| &slice.refused).cloned();
            let undialled = known.undialled.iter().map(|(address, why)| (address.to_string().into(), *why));
            let endpoints = refused.chain(undialled).map(|(address, why)| Problem::Endpoint(address, why));
            known.problems.iter().cloned().chain(endpoints.filter(|_| exported)).collect::<Vec<_>>()
        };
        self.services.iter().map(move |(name, known)| (name, problems(known))).filter(|(_, all)| !all.is_empty())
    }
}

fn parts<K: Clone>(difference: Difference<K>) -> (ObjectName, Option<K>) {
    match difference {
        Difference::Set(name, object) => (name, Some(Arc::unwrap_or_clone(object))),
        Difference::Gone(name) => (name, None),
    }
}

fn touch(touched: &mut HashMap<ObjectName, BTreeSet<IpAddr>>, service: &ObjectName, address: IpAddr) {
    match touched.get_mut(service) {
        Some(addresses) => drop(addresses.insert(address)),
        None => drop(touched.insert(service.clone(), [address].into())),
    }
}

impl At {
    fn is_empty(&self) -> bool {
        self.pods.as_slice().is_empty() && self.services.as_slice().is_empty()
    }

    /// The pod that an endpoint of `namespace` at this address leads to.
    fn pod(&self, namespace: &str, target: Option<&Target>) -> Option<&Arc<PodView>> {
        let mut here = self.pods.as_slice().iter().filter(|pod| pod.namespace.as_str() == namespace);
        match target {
            Some(Target::Other) => None,
            Some(Target::Uid(uid)) => here.find(|pod| pod.uid == *uid),
            Some(Target::Name(name)) => here.find(|pod| pod.name == *name),
            // The slice does not say whose address it is; it must be only one's.
            Some(Target::Unnamed) | None => {
                let pod = here.next()?;
                here.next().is_none().then_some(pod)
            }
        }
    }

    /// Who connects from this address, if all pods that claim it agree.
    fn workload(&self, address: IpAddr) -> Option<Workload> {
        let pods = self.pods.as_slice();
        let first = pods.first()?;
        let who = |pod: &PodView| (pod.namespace.clone(), pod.service_account.clone());
        let agreed = pods.iter().all(|pod| who(pod) == who(first));
        let (namespace, service_account) = who(first);
        agreed.then_some(Workload { address, namespace, service_account })
    }
}

impl Known {
    fn is_empty(&self) -> bool {
        self.service.is_none() && self.export.is_none() && self.slices.is_empty() && self.told.is_none()
    }

    fn flush(&mut self, name: &ObjectName, touched: &BTreeSet<IpAddr>, around: &mut Around<'_>) -> Option<LocalChange> {
        let Some(translated) = &self.translated else {
            self.undialled.clear();
            return self.told.take().map(|told| LocalChange::Remove(told.key().clone()));
        };
        if self.told.as_ref().is_none_or(|told| told.translated != *translated) {
            let translated = Arc::clone(translated);
            return Some(self.tell(name, translated, around));
        }
        let (mut upsert, mut remove) = (Vec::new(), Vec::new());
        for address in touched {
            let endpoint = self.endpoint(name, *address, around);
            let Some(told) = &mut self.told else { break };
            let id = endpoint.as_ref().map(|endpoint| endpoint.endpoint.id.clone());
            let before = match &id {
                Some(id) => told.endpoints.insert(*address, id.clone()),
                None => told.endpoints.remove(address),
            };
            remove.extend(before.filter(|before| Some(before) != id.as_ref()));
            upsert.extend(endpoint);
        }
        let service = self.told.as_ref()?.key().clone();
        (!upsert.is_empty() || !remove.is_empty()).then_some(LocalChange::Endpoints { service, upsert, remove })
    }

    /// The service as a whole.
    fn tell(&mut self, name: &ObjectName, translated: Arc<Translated>, around: &mut Around<'_>) -> LocalChange {
        let service = self.whole(name, &translated, around);
        let endpoints = service.endpoints.iter();
        let endpoints = endpoints.map(|endpoint| (endpoint.address, endpoint.endpoint.id.clone())).collect();
        self.told = Some(Told { translated, endpoints });
        LocalChange::Upsert(Arc::new(service))
    }

    fn whole(&mut self, name: &ObjectName, translated: &Translated, around: &mut Around<'_>) -> LocalService {
        let entries = self.slices.iter().flat_map(|(_, slice)| slice.entries.keys());
        let addresses: BTreeSet<IpAddr> = entries.copied().collect();
        self.undialled.clear();
        let endpoints: Vec<_> =
            addresses.into_iter().filter_map(|address| self.endpoint(name, address, around)).collect();
        LocalService::new(translated.record.clone(), translated.exported, endpoints)
    }

    /// The endpoint at an address: what those slices say about it that mean a pod of the service's
    /// namespace, and one that is there (threat P6).
    fn endpoint(&mut self, name: &ObjectName, address: IpAddr, around: &mut Around<'_>) -> Option<LocalEndpoint> {
        let mut said: Vec<(&Slice, &Entry, &PodView)> = Vec::new();
        let mut listed = false;
        for (_, slice) in &self.slices {
            let Some(entry) = slice.entries.get(&address) else { continue };
            listed = true;
            let pod = around.at.get(&address).and_then(|at| at.pod(&name.namespace, entry.target.as_ref()));
            said.extend(pod.map(|pod| (slice, entry, &**pod)));
        }
        // The best word first; of equal ones that of the first slice by name.
        said.sort_by_key(|(_, entry, _)| std::cmp::Reverse(rank(entry)));
        let (Some((_, entry, pod)), Some(translated)) = (said.first(), &self.translated) else {
            if listed {
                self.undialled.insert(address, Refused::NotAPod);
            } else {
                self.undialled.remove(&address);
            }
            return None;
        };
        // The first of several ports of one number counts, so it comes last.
        let target_ports = translated.record.ports.iter().rev().filter_map(|port| {
            let port_name = port.name.as_ref().map_or("", |name| name.as_str());
            let ports = said.iter().flat_map(|(slice, _, _)| &slice.ports);
            let target = ports.into_iter().find(|one| one.protocol == port.protocol && *one.name == *port_name)?;
            Some((port.key(), target.target))
        });
        let target_ports: Pairs<PortKey, u16> = target_ports.collect();
        if translated.exported && mesh::is_in_the_way(pod, &target_ports, &translated.record.proxy_protocol) {
            self.undialled.insert(address, Refused::Header);
            return None;
        }
        let (tls, identity) = mesh::speaks(pod, &target_ports, around.rules, around.modes);
        let endpoint = Endpoint {
            id: endpoint_id(&around.rules.salt, &pod.uid, address)?,
            hostname: entry.hostname.clone(),
            subset: pod.subset.clone(),
            zone: entry.zone.clone(),
            condition: entry.condition,
            weight: WEIGHT,
            tls,
            identity,
        };
        let service_account = pod.service_account.clone();
        self.undialled.remove(&address);
        Some(LocalEndpoint { endpoint, address, service_account, target_ports: around.interner.ports(target_ports) })
    }
}

/// The name of what runs in this pod at this address: the same after a restart and in every replica,
/// another one for the pod's successor, and nothing that tells the address. API servers that were restored from one
/// copy have pods of equal uids, hence the salt.
fn endpoint_id(salt: &str, uid: &Uid, address: IpAddr) -> Option<EndpointId> {
    let hash = Sha256::new()
        .chain_update(salt)
        .chain_update(uid.to_string())
        .chain_update([0])
        .chain_update(address.to_string())
        .finalize();
    let id: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    EndpointId::parse(&id)
}

#[cfg(test)]
mod tests;

//! What Services say is spoken at ports of this cluster's workloads, for sidecars that leave it to them.
//!
//! A Service's port says it for the port that it leads to, as it says it to clients of other clusters, so that both ends of a
//! connection are of one mind. Only namespaces with such sidecars are followed, at the cost of what changes in them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eastway_model::store::Snapshot;
use eastway_model::{
    AppProtocol, EndpointId, Label, LocalEndpoint, LocalEndpoints, LocalService, Protocol, ServiceKey,
};
use tokio::sync::watch;
use tracing::warn;

use crate::inbound::Inbound;
use crate::node::Node;

/// Most contradictions that are in the log once and not again.
const LOGGED: usize = 1024;

/// What is said of one port: each protocol with a Service that says it. More than one is a contradiction.
pub type Port = BTreeMap<AppProtocol, ServiceKey>;

/// What is said of a workload's ports of TCP, by their numbers.
pub type Said = BTreeMap<u16, Port>;

/// The newest of it; `None`: nothing is known of this cluster yet.
pub type Saying = watch::Receiver<Option<Arc<Said>>>;

/// What is spoken at a port, by all that is said of it; `None`: Services contradict each other.
#[must_use]
pub fn agreed(port: &Port) -> Option<AppProtocol> {
    let mut all = port.keys();
    all.next().copied().filter(|_| all.next().is_none())
}

/// What is said of a place. Services lead to the application where connections are led on from it, else to the place itself.
pub(crate) fn of_place<'a>(said: &'a Said, inbound: &Inbound) -> Option<&'a Port> {
    said.get(&inbound.app.port()).or_else(|| said.get(&inbound.listen.port()))
}

/// What Services say, for those who ask.
#[derive(Debug, Default)]
pub struct Spoken {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    snapshot: Option<Arc<Snapshot>>,
    /// Those with somebody who asks.
    namespaces: BTreeMap<Label, Namespace>,
    logged: BTreeSet<(u16, Vec<ServiceKey>)>,
}

#[derive(Debug, Default)]
struct Namespace {
    services: BTreeMap<ServiceKey, Arc<LocalService>>,
    /// Their endpoints at each address.
    at: HashMap<IpAddr, BTreeSet<(ServiceKey, EndpointId)>>,
    asking: Vec<Asking>,
}

/// A workload whose sidecar asks.
#[derive(Debug)]
struct Asking {
    addresses: BTreeSet<IpAddr>,
    sender: watch::Sender<Option<Arc<Said>>>,
}

impl Spoken {
    /// What is said of the workload of `namespace` at `addresses`, from now on.
    #[must_use]
    pub fn of(&self, namespace: &Label, addresses: &BTreeSet<IpAddr>) -> Saying {
        let mut state = self.lock();
        let State { snapshot, namespaces, logged } = &mut *state;
        let is_new = !namespaces.contains_key(namespace);
        let known = namespaces.entry(namespace.clone()).or_default();
        let addresses = addresses.iter().map(IpAddr::to_canonical).collect();
        let (sender, receiver) = watch::channel(None);
        let asking = Asking { addresses, sender };
        if let Some(snapshot) = snapshot {
            if is_new {
                let all = known.all(snapshot, namespace);
                known.follow(snapshot, &all, logged);
            }
            asking.tell(known.said(&asking.addresses), logged);
        }
        // Those who went, where the list would grow for them: nothing may change for long.
        if known.asking.len() == known.asking.capacity() {
            known.asking.retain(|asking| asking.sender.receiver_count() > 0);
        }
        known.asking.push(asking);
        receiver
    }

    /// Takes over what is known now.
    pub fn follow(&self, snapshot: &Arc<Snapshot>) {
        let mut state = self.lock();
        let State { snapshot: seen, namespaces, logged } = &mut *state;
        let before = seen.replace(Arc::clone(snapshot));
        for namespace in namespaces.values_mut() {
            namespace.asking.retain(|asking| asking.sender.receiver_count() > 0);
        }
        namespaces.retain(|_, namespace| !namespace.asking.is_empty());
        let changed = before.and_then(|before| snapshot.services_changed_since(before.version()));
        for (name, namespace) in namespaces {
            let keys = match &changed {
                Some(changed) => changed.iter().filter(|key| key.namespace == *name).cloned().collect(),
                None => namespace.all(snapshot, name),
            };
            namespace.follow(snapshot, &keys, logged);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Namespace {
    fn all(&self, snapshot: &Snapshot, name: &Label) -> BTreeSet<ServiceKey> {
        let there = snapshot.locals().map(|local| local.key()).filter(|key| key.namespace == *name);
        there.chain(self.services.keys()).cloned().collect()
    }

    /// Looks at these services again, and tells those whom it concerns.
    fn follow(
        &mut self,
        snapshot: &Snapshot,
        keys: &BTreeSet<ServiceKey>,
        logged: &mut BTreeSet<(u16, Vec<ServiceKey>)>,
    ) {
        let mut touched = BTreeSet::new();
        for key in keys {
            self.take(key, snapshot.local(key), &mut touched);
        }
        let concerned = self.asking.iter().filter(|asking| !asking.addresses.is_disjoint(&touched));
        for asking in concerned {
            asking.tell(self.said(&asking.addresses), logged);
        }
    }

    fn take(&mut self, key: &ServiceKey, new: Option<&Arc<LocalService>>, touched: &mut BTreeSet<IpAddr>) {
        let none = LocalEndpoints::default();
        let old = match new {
            Some(new) => self.services.insert(key.clone(), Arc::clone(new)),
            None => self.services.remove(key),
        };
        let before = old.as_ref().map_or(&none, |old| &old.endpoints);
        let now = new.map_or(&none, |new| &new.endpoints);
        if let (Some(old), Some(new)) = (&old, new)
            && old.record.ports != new.record.ports
        {
            touched.extend(now.iter().map(|endpoint| endpoint.address.to_canonical()));
        }
        for (id, endpoint) in now.changes_from(before) {
            if let Some(address) = before.get(&id).map(|before| before.address.to_canonical()) {
                let left = self.at.get_mut(&address).is_none_or(|at| {
                    at.remove(&(key.clone(), id.clone()));
                    at.is_empty()
                });
                if left {
                    self.at.remove(&address);
                }
                touched.insert(address);
            }
            if let Some(endpoint) = endpoint {
                let address = endpoint.address.to_canonical();
                self.at.entry(address).or_default().insert((key.clone(), id));
                touched.insert(address);
            }
        }
    }

    fn said(&self, addresses: &BTreeSet<IpAddr>) -> Said {
        let mut said = Said::new();
        for (key, id) in addresses.iter().filter_map(|address| self.at.get(address)).flatten() {
            let Some(service) = self.services.get(key) else { continue };
            if let Some(endpoint) = service.endpoints.get(id) {
                add(service, endpoint, &mut said);
            }
        }
        said
    }
}

impl Asking {
    fn tell(&self, said: Said, logged: &mut BTreeSet<(u16, Vec<ServiceKey>)>) {
        for (number, port) in said.iter().filter(|(_, port)| agreed(port).is_none()) {
            if logged.len() >= LOGGED {
                logged.clear();
            }
            if logged.insert((*number, port.values().cloned().collect())) {
                warn!("services contradict each other, sidecars take bytes: {}", contradiction(*number, port));
            }
        }
        self.sender.send_if_modified(|current| {
            let differs = current.as_deref() != Some(&said);
            if differs {
                *current = Some(Arc::new(said));
            }
            differs
        });
    }
}

/// What a service says of the ports of one of its endpoints.
fn add(service: &LocalService, endpoint: &LocalEndpoint, said: &mut Said) {
    for (key, target) in endpoint.target_ports.iter().filter(|(key, _)| key.protocol == Protocol::Tcp) {
        let Some(port) = service.record.port(key.protocol, key.number) else { continue };
        let by = said.entry(*target).or_default().entry(AppProtocol::of(port));
        by.or_insert_with(|| service.key().clone());
    }
}

fn contradiction(number: u16, port: &Port) -> String {
    let each: Vec<String> = port.iter().map(|(protocol, service)| format!("{protocol} by {service}")).collect();
    format!("port {number} is {}", each.join(", "))
}

/// Where sidecars take something else than Services say, or than some of them: which, and what. Looks at everything: for those
/// who ask once.
#[must_use]
pub fn contradictions<'a>(snapshot: &Snapshot, clients: impl Iterator<Item = (&'a Label, &'a Node)>) -> Vec<String> {
    let mut said: HashMap<(&Label, IpAddr), Said> = HashMap::new();
    let clients: Vec<_> = clients.filter(|(_, node)| !node.inbound.is_empty()).collect();
    for (namespace, node) in &clients {
        said.extend(node.by_service.addresses.iter().map(|one| ((*namespace, one.to_canonical()), Said::new())));
    }
    if said.is_empty() {
        return Vec::new();
    }
    for service in snapshot.locals() {
        for endpoint in service.endpoints.iter() {
            if let Some(said) = said.get_mut(&(&service.key().namespace, endpoint.address.to_canonical())) {
                add(service, endpoint, said);
            }
        }
    }
    let mut all = BTreeSet::new();
    for (namespace, node) in clients {
        let mut whole = Said::new();
        let of = node.by_service.addresses.iter().filter_map(|one| said.get(&(namespace, one.to_canonical())));
        of.flatten().for_each(|(number, port)| whole.entry(*number).or_default().extend(port.clone()));
        for inbound in &node.inbound {
            let number = inbound.app.port();
            let Some(port) = of_place(&whole, inbound) else { continue };
            let is_left = node.by_service.ports.contains(&number);
            match agreed(port) {
                None => drop(all.insert(contradiction(number, port))),
                Some(protocol) if !is_left && protocol != inbound.protocol => {
                    all.insert(format!("{}, {} by the pod itself", contradiction(number, port), inbound.protocol));
                }
                Some(_) => {}
            }
        }
    }
    all.into_iter().collect()
}

#[cfg(test)]
mod tests;

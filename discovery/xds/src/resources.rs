//! What a sidecar is told, generated from a snapshot of the store.
//!
//! For each port of each import with a virtual address: a cluster with **one endpoint per remote endpoint**, a listener
//! at the address, and a route if the port speaks HTTP. A remote endpoint has no address here (invariant I1): it is
//! reached by the internal listener [`HBONE`], which opens a CONNECT stream to the local gateway and names the
//! endpoint. Names are those that Istio gives to clusters, so that logs and dashboards are read alike.
//!
//! The fragment and its traps were tried with Envoy 1.36 and 1.40. What the sidecars of a namespace see of it is a
//! selection ([`Scopes`](crate::Scopes)); what they may reach is decided where the connection arrives.

mod affinity;
mod assignment;
mod capture;
mod connections;
mod fault;
mod gateway;
mod headless;
mod import;
mod inbound;
mod matching;
mod parts;
pub mod proxyless;
mod rewriting;
mod routes;
mod secrets;
mod subset;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use eastway_model::rules::RouteBook;
use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, Import, PortNumber, ServiceKey, ServiceKind, Subset};

use crate::kind::Kind;
use crate::resource::Resource;
use crate::view::{Edit, View};
use assignment::Form;

pub(crate) use capture::is_of;
pub use eastway_model::AppProtocol;
pub use gateway::GatewayAddress;
pub use headless::{EndpointAddresses, OneByOne};
pub use import::BUFFER;
pub use inbound::Surroundings;
pub(crate) use inbound::resources as inbound_resources;
pub use secrets::{ALL_ANCHORS, Bundle, Trust, bundle_name};

/// Name of the internal listener that leads to the gateway.
pub const HBONE: &str = "hbone";
/// Name of the cluster of gateways.
pub const GATEWAY_CLUSTER: &str = "eastway-gateway";
/// Name of the cluster that every sidecar has from its start: its agent, which has its certificate.
pub const AGENT_CLUSTER: &str = "agent";
/// Key of the metadata that names an endpoint to the gateway.
pub const METADATA: &str = "eastway";

/// What does not come from the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where sidecars reach the gateway's HBONE port.
    pub gateway: GatewayAddress,
    /// The gateway's SPIFFE id.
    pub gateway_identity: String,
    /// The trust domain of this cluster.
    pub trust_domain: String,
    /// Most endpoints that other clusters may have of one service for them to be told one by one; of more there is one
    /// for each cluster and each set of labels that a rule tells apart.
    pub endpoints_per_service: usize,
}

/// [`Settings::endpoints_per_service`] unless somebody says otherwise: an assignment of so many is some 80 kB, which each
/// sidecar gets when one of them changes.
pub const ENDPOINTS_PER_SERVICE: usize = 500;

/// Virtual addresses of imports.
pub type Addresses = BTreeMap<ServiceKey, Vec<IpAddr>>;

/// Generates views. What did not change between two snapshots is not made again.
#[derive(Debug)]
pub struct Generator {
    view: Arc<View>,
    trust_domain: String,
    endpoints_per_service: usize,
    trust: Trust,
    seen: Option<u64>,
    made: BTreeMap<ServiceKey, Made>,
}

/// What was made of one import.
#[derive(Debug, Default)]
struct Made {
    addresses: Vec<IpAddr>,
    endpoints: OneByOne,
    names: BTreeSet<(Kind, Arc<str>)>,
    form: Form,
    /// It, and those whose rules lead to it.
    users: Arc<[ServiceKey]>,
}

impl Generator {
    /// A generator whose view holds the way to the gateway and nothing else.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let common = gateway::resources(settings).into_iter().map(|(kind, resource)| Edit::Put(kind, resource));
        let view = View::default().edited(common).unwrap_or_default();
        let (trust_domain, trust) = (settings.trust_domain.clone(), Trust::default());
        let endpoints_per_service = settings.endpoints_per_service;
        Self { view: Arc::new(view), trust_domain, endpoints_per_service, trust, seen: None, made: BTreeMap::new() }
    }

    /// Takes over what trust domains are known by, for the next view.
    pub fn set_trust(&mut self, trust: &Trust) {
        if self.trust == *trust {
            return;
        }
        let (before, now) = (secrets::resources(&self.trust), secrets::resources(trust));
        let gone = before.iter().filter(|(_, old)| now.iter().all(|(_, new)| new.name() != old.name()));
        let mut edits: Vec<_> = gone.map(|(kind, old)| Edit::Remove(*kind, Arc::clone(old.name()))).collect();
        edits.extend(now.into_iter().map(|(kind, resource)| Edit::Put(kind, resource)));
        let view = self.view.edited(edits).unwrap_or_else(|| View::clone(&self.view));
        let surroundings =
            Surroundings { trust_domains: trust.bundles.keys().cloned().collect(), cut: Arc::clone(&trust.cut) };
        self.view = Arc::new(view.surrounded(surroundings));
        self.trust = trust.clone();
    }

    /// As [`Self::update_all`], without headless imports.
    pub fn update(&mut self, snapshot: &Snapshot, addresses: &Addresses) -> Arc<View> {
        self.update_all(snapshot, (addresses, &EndpointAddresses::new()))
    }

    /// The view of this snapshot, which is the last one if nothing differs. Headless imports have addresses by endpoint.
    pub fn update_all(&mut self, snapshot: &Snapshot, at: (&Addresses, &EndpointAddresses)) -> Arc<View> {
        let mut edits = Vec::new();
        for key in self.changed(snapshot, at) {
            self.remake(snapshot, &key, at, &mut edits);
        }
        self.seen = Some(snapshot.version());
        if let Some(view) = self.view.edited(edits) {
            self.view = Arc::new(view);
        }
        Arc::clone(&self.view)
    }

    /// The services whose resources may differ.
    fn changed(
        &self,
        snapshot: &Snapshot,
        (addresses, endpoints): (&Addresses, &EndpointAddresses),
    ) -> BTreeSet<ServiceKey> {
        let changes = self.seen.and_then(|seen| snapshot.services_changed_since(seen));
        let mut changed: BTreeSet<ServiceKey> = match changes {
            Some(changes) => changes.into_iter().collect(),
            None => snapshot.imports().map(|import| import.key.clone()).chain(self.made.keys().cloned()).collect(),
        };
        let (none, no_one) = (Vec::new(), OneByOne::new());
        let readdressed = self.made.iter().filter(|(key, made)| {
            made.addresses != *addresses.get(*key).unwrap_or(&none)
                || made.endpoints != *endpoints.get(*key).unwrap_or(&no_one)
        });
        changed.extend(readdressed.map(|(key, _)| key.clone()));
        let book = &snapshot.rules().routes;
        let otherwise_used = self.made.iter().filter(|(key, made)| !users(book, key).eq(made.users.iter()));
        changed.extend(otherwise_used.map(|(key, _)| key.clone()));
        // Rules that lead to a service depend on whether it is there, and has endpoints.
        let referrers: Vec<_> = changed.iter().flat_map(|key| book.referrers(key)).cloned().collect();
        changed.extend(referrers);
        changed
    }

    fn remake(
        &mut self,
        snapshot: &Snapshot,
        key: &ServiceKey,
        (addresses, endpoints): (&Addresses, &EndpointAddresses),
        edits: &mut Vec<Edit>,
    ) {
        let Made { names: before, form, .. } = self.made.remove(key).unwrap_or_default();
        let Some(import) = snapshot.import(key) else {
            edits.extend(before.into_iter().map(|(kind, name)| Edit::Remove(kind, name)));
            return;
        };
        let addresses = addresses.get(key).cloned().unwrap_or_default();
        let endpoints = endpoints.get(key).cloned().unwrap_or_default();
        let (form, resources) = if is_served(import) {
            let form = self.form(import, form);
            (form, import::resources(snapshot, import, &addresses, (&self.trust_domain, form)))
        } else {
            (Form::Single, headless::resources(snapshot, import, &endpoints, &self.trust_domain))
        };
        let names: BTreeSet<_> =
            resources.iter().map(|(kind, resource)| (*kind, Arc::clone(resource.name()))).collect();
        let gone = before.difference(&names).map(|(kind, name)| Edit::Remove(*kind, Arc::clone(name)));
        edits.extend(gone);
        let users: Arc<[ServiceKey]> = users(&snapshot.rules().routes, key).cloned().collect();
        edits.extend(owned(resources, key, &users));
        self.made.insert(key.clone(), Made { addresses, endpoints, names, form, users });
    }

    /// The form of an import that was given in the form `before`. One that is around the limit does not change with every
    /// endpoint: each change means another balancer in every sidecar.
    fn form(&self, import: &Import, before: Form) -> Form {
        let limit = match before {
            Form::Single => self.endpoints_per_service,
            Form::Summary => self.endpoints_per_service - self.endpoints_per_service / 5,
        };
        if import.remote_size() > limit { Form::Summary } else { Form::Single }
    }

    /// The services whose endpoints in other clusters are told as one for each cluster.
    pub fn summaries(&self) -> impl Iterator<Item = &ServiceKey> {
        self.made.iter().filter(|(_, made)| made.form == Form::Summary).map(|(key, _)| key)
    }
}

/// A service, and those whose rules lead to it.
fn users<'a>(book: &'a RouteBook, key: &'a ServiceKey) -> impl Iterator<Item = &'a ServiceKey> {
    std::iter::once(key).chain(book.referrers(key).filter(move |other| *other != key))
}

/// What was made of a service belongs to it, and what rules of others lead to belongs to those as well.
fn owned(resources: Vec<Generated>, key: &ServiceKey, users: &Arc<[ServiceKey]>) -> impl Iterator<Item = Edit> {
    let own: Arc<[ServiceKey]> = [key.clone()].into();
    resources.into_iter().map(move |(kind, resource)| {
        let is_led_to = matches!(kind, Kind::Cluster | Kind::Endpoints);
        Edit::Put(kind, resource.owned_by(if is_led_to { users } else { &own }))
    })
}

/// A resource and its kind.
type Generated = (Kind, Arc<Resource>);

/// `outbound|<port>||<service>.<namespace>.svc.clusterset.local`: the cluster of an import's port, and its endpoints and
/// routes.
#[must_use]
pub fn cluster_name(key: &ServiceKey, port: PortNumber) -> String {
    share_cluster_name(key, port, "")
}

/// How a part of a service is called in the name of its clusters, whose third field it is: `cluster.gke`, `version.v2`,
/// `cluster.gke_version.v2`; empty for the whole service. Labels are in the order of their keys; what is not a letter,
/// a digit, `.` or `-` is percent-encoded, so that parts that differ have names that differ.
#[must_use]
pub fn share_name(cluster: Option<&ClusterName>, subset: &Subset) -> String {
    let mut name = String::new();
    let cluster = cluster.map(|cluster| ("cluster", cluster.as_str()));
    let labels = subset.iter().map(|(key, value)| (&**key, &**value));
    for (key, value) in cluster.into_iter().chain(labels) {
        if !name.is_empty() {
            name.push('_');
        }
        encode(key, &mut name);
        name.push('.');
        encode(value, &mut name);
    }
    name
}

fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' => into.push(char::from(byte)),
            _ => into.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// `outbound|<port>|<share>|<service>.<namespace>.svc.clusterset.local`: the cluster of a part of an import's port, which
/// [`share_name`] names.
#[must_use]
pub fn share_cluster_name(key: &ServiceKey, port: PortNumber, share: &str) -> String {
    format!("outbound|{port}|{share}|{}.{}.svc.clusterset.local", key.name, key.namespace)
}

/// Whether the import has an address of its own: of headless ones each endpoint has.
#[must_use]
pub fn is_served(import: &Import) -> bool {
    import.kind == ServiceKind::ClusterSetIp
}

#[cfg(test)]
mod tests;

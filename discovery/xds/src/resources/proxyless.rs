//! What clients without a proxy are told: programs whose gRPC library reads this protocol itself, by targets such as
//! `xds:///reviews.bookinfo.svc.clusterset.local:9080`.
//!
//! They dial addresses, and there is no sidecar that could name an endpoint of another cloud to the gateway. So each peer
//! and each set of labels that a policy tells apart is **one address**: a virtual one that leads to that share and to
//! nothing else; endpoints of this cluster are dialled where they are. How much goes where is what
//! [`eastway_model::routing`] says of connections, so that they and plain clients are shared out alike: the shares are the
//! localities of one priority, and what takes over when they fail is the next one.
//!
//! Rules that ask for no more than such a library does (gRFC A28: path, headers, weights) it carries out itself, each part that
//! they lead to being a cluster; if one asks for more, none of the port is, and the weights of the rule for everything count.
//!
//! What three libraries (C-core, Go, JavaScript) refuse or need: no address twice, weights of localities, no transport
//! socket, limits of requests that are told (it is 1,024 otherwise). A listener that does not exist is waited for, 15 s by
//! default: [`nobody`] makes one that says at once that there is nothing.

mod parts;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use eastway_model::routing::{self, Candidate, RouteError, RouteRequest, Weighted};
use eastway_model::rules::ClusterRef;
use eastway_model::rules::route::{Entry, Share as Part};
use eastway_model::store::Snapshot;
use eastway_model::{AppProtocol, ClusterName, Import, PortNumber, Protocol, ServiceKey, ServicePort, Subset};

use super::{Addresses, Generated, is_served, owned, share_cluster_name, share_name, subset, users};
use crate::kind::Kind;
use crate::resource::Resource;
use crate::view::{Edit, View};
use parts::{Locality, NOBODY, assignment, cluster, listener, routes};

pub use parts::nobody;

/// A peer, and labels of its endpoints.
pub type Share = (ClusterName, Arc<Subset>);
/// Virtual addresses that lead to one share each, by service.
pub type ShareAddresses = BTreeMap<ServiceKey, BTreeMap<Share, Vec<IpAddr>>>;

/// Generates views. What did not change between two snapshots is not made again.
#[derive(Debug)]
pub struct Generator {
    view: Arc<View>,
    seen: Option<u64>,
    made: BTreeMap<ServiceKey, Made>,
}

/// What was made of one import.
#[derive(Debug, Default)]
struct Made {
    addresses: Vec<IpAddr>,
    shares: BTreeMap<Share, Vec<IpAddr>>,
    names: BTreeSet<(Kind, Arc<str>)>,
}

/// An import, and where it can be reached.
struct Reachable<'a> {
    snapshot: &'a Snapshot,
    import: &'a Import,
    addresses: &'a [IpAddr],
    shares: &'a BTreeMap<Share, Vec<IpAddr>>,
}

impl Default for Generator {
    fn default() -> Self {
        let empty = View::answering(nobody);
        let cluster = Resource::new(Kind::Cluster, NOBODY, &cluster(NOBODY));
        let endpoints = Resource::new(Kind::Endpoints, NOBODY, &assignment(NOBODY, Vec::new()));
        let view = empty.edited([Edit::Put(Kind::Cluster, cluster), Edit::Put(Kind::Endpoints, endpoints)]);
        Self { view: Arc::new(view.unwrap_or(empty)), seen: None, made: BTreeMap::new() }
    }
}

impl Generator {
    /// The view of this snapshot, which is the last one if nothing differs.
    pub fn update(&mut self, snapshot: &Snapshot, addresses: &Addresses, shares: &ShareAddresses) -> Arc<View> {
        let mut edits = Vec::new();
        for key in self.changed(snapshot, addresses, shares) {
            self.remake(snapshot, &key, addresses, shares, &mut edits);
        }
        self.seen = Some(snapshot.version());
        if let Some(view) = self.view.edited(edits) {
            self.view = Arc::new(view);
        }
        Arc::clone(&self.view)
    }

    /// The services whose resources may differ.
    fn changed(&self, snapshot: &Snapshot, addresses: &Addresses, shares: &ShareAddresses) -> BTreeSet<ServiceKey> {
        let changes = self.seen.and_then(|seen| snapshot.changes_since(seen));
        let mut changed: BTreeSet<ServiceKey> = match changes {
            Some(changes) => changes.into_iter().collect(),
            None => snapshot.imports().map(|import| import.key.clone()).chain(self.made.keys().cloned()).collect(),
        };
        let (no_addresses, no_shares) = (Vec::new(), BTreeMap::new());
        let readdressed = self.made.iter().filter(|(key, made)| {
            made.addresses != *addresses.get(*key).unwrap_or(&no_addresses)
                || made.shares != *shares.get(*key).unwrap_or(&no_shares)
        });
        changed.extend(readdressed.map(|(key, _)| key.clone()));
        let book = &snapshot.rules().routes;
        let referrers: Vec<_> = changed.iter().flat_map(|key| book.referrers(key)).cloned().collect();
        changed.extend(referrers);
        changed
    }

    fn remake(
        &mut self,
        snapshot: &Snapshot,
        key: &ServiceKey,
        addresses: &Addresses,
        shares: &ShareAddresses,
        edits: &mut Vec<Edit>,
    ) {
        let before = self.made.remove(key).unwrap_or_default().names;
        let import = snapshot.import(key).filter(|import| is_served(import));
        let Some(import) = import else {
            edits.extend(before.into_iter().map(|(kind, name)| Edit::Remove(kind, name)));
            return;
        };
        let addresses = addresses.get(key).cloned().unwrap_or_default();
        let shares = shares.get(key).cloned().unwrap_or_default();
        let reachable = Reachable { snapshot, import, addresses: &addresses, shares: &shares };
        let resources = reachable.resources();
        let names: BTreeSet<_> =
            resources.iter().map(|(kind, resource)| (*kind, Arc::clone(resource.name()))).collect();
        let gone = before.difference(&names).map(|(kind, name)| Edit::Remove(*kind, Arc::clone(name)));
        edits.extend(gone);
        let users: Arc<[ServiceKey]> = users(&snapshot.rules().routes, key).cloned().collect();
        edits.extend(owned(resources, key, &users));
        self.made.insert(key.clone(), Made { addresses, shares, names });
    }
}

impl Reachable<'_> {
    /// For each port the names by which it is asked for, and the clusters that they lead to.
    fn resources(&self) -> Vec<Generated> {
        let key = &self.import.key;
        let own_name = format!("{}.{}.svc.clusterset.local", key.name, key.namespace);
        let rules = self.snapshot.rules();
        let rules = rules.names.iter().filter(|rule| rule.service == *key);
        let mut names: Vec<(&str, Option<&ClusterName>)> = vec![(&own_name, None)];
        names.extend(rules.map(|rule| (&*rule.fqdn, rule.cluster.as_ref())));
        let mut resources = Vec::new();
        for port in self.import.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
            let rules = self.rules(port);
            let parts = self.import.wanted.iter().flat_map(|wanted| wanted.iter());
            let parts = parts.filter(|one| one.port.is_none_or(|number| number == port.number));
            let parts: BTreeSet<&Part> = parts.map(|one| &one.share).filter(|_| is_http2(port)).collect();
            parts.into_iter().for_each(|part| self.part(port, part, &mut resources));
            let mut made = BTreeSet::new();
            for (name, only) in &names {
                let share = share_name(*only, &Subset::default());
                let target = share_cluster_name(key, port.number, &share);
                let name = format!("{name}:{}", port.number);
                resources.push((Kind::Listener, Resource::new(Kind::Listener, &name, &listener(&name, &target))));
                if made.insert(*only) {
                    self.whole(port, &target, *only, rules.as_deref(), &mut resources);
                }
            }
        }
        resources
    }

    /// The rules that a library goes by, if it can. In the address of a share it sees its part; without one it cannot tell
    /// parts from each other.
    fn rules(&self, port: &ServicePort) -> Option<Vec<&Entry>> {
        let entries = self.import.routes.as_deref()?.for_libraries(port)?;
        let shares = routing::remote_shares(self.snapshot.cluster(), self.import, port.number);
        shares.iter().all(|share| self.shares.contains_key(share)).then_some(entries)
    }

    /// What a target leads to: all of the service, or what one cluster has of it.
    fn whole(
        &self,
        port: &ServicePort,
        name: &str,
        only: Option<&ClusterName>,
        rules: Option<&[&Entry]>,
        resources: &mut Vec<Generated>,
    ) {
        let rules = rules.filter(|_| only.is_none());
        let routes = match rules {
            Some(rules) => rules::routes(self.snapshot, port, name, rules),
            None => routes(name),
        };
        resources.push((Kind::Route, Resource::new(Kind::Route, name, &routes)));
        // Where rules share out, all of the service is all of it.
        let all = Part::whole().subset;
        let request = RouteRequest { cluster: only, subset: rules.map(|_| &all), ..plain(port) };
        let mut used = BTreeSet::new();
        cluster_with(name, self.tiers(&request, &mut used), resources);
    }

    /// A part that rules or a split lead to, and then what takes over.
    fn part(&self, port: &ServicePort, part: &Part, resources: &mut Vec<Generated>) {
        let own = self.snapshot.cluster();
        let cluster = part.cluster.as_ref().map(|cluster| match cluster {
            ClusterRef::Local => own,
            ClusterRef::Named(name) => name,
        });
        let request = RouteRequest { cluster, subset: Some(&part.subset), ..plain(port) };
        let mut used = BTreeSet::new();
        let mut tiers = self.tiers(&request, &mut used);
        if cluster.is_some() {
            tiers.extend(self.tiers(&RouteRequest { cluster: None, ..request }, &mut used));
        }
        cluster_with(&subset::name(own, &self.import.key, port.number, part), tiers, resources);
    }

    /// Where connections go, by priority.
    fn tiers(&self, request: &RouteRequest<'_>, used: &mut BTreeSet<(IpAddr, u16)>) -> Vec<Vec<Locality>> {
        let (port, only) = (request.port, request.cluster);
        let tiers = match routing::tiers(self.snapshot, &self.import.key, request) {
            Ok(tiers) => tiers,
            // The gateway refuses it, and tells its operator so. Parts of a service cannot be told apart there.
            Err(RouteError::TlsRequired) if request.subset.is_none() => return self.at_the_gateway(port, only),
            Err(_) => return Vec::new(),
        };
        let mut found = Vec::new();
        for tier in &tiers {
            let Some(tier) = tier.iter().map(|share| self.locality(share, port, used)).collect::<Option<Vec<_>>>()
            else {
                if request.subset.is_some() {
                    return Vec::new();
                }
                // A share without an address of its own: the gateway chooses, at the address of the whole service.
                return self.at_the_gateway(port, only);
            };
            let tier: Vec<Locality> = tier.into_iter().filter(|locality| !locality.endpoints.is_empty()).collect();
            found.extend((!tier.is_empty()).then_some(tier));
        }
        found
    }

    /// Everything at the address of the service. One cluster alone cannot be told apart there.
    fn at_the_gateway(&self, port: PortNumber, only: Option<&ClusterName>) -> Vec<Vec<Locality>> {
        let Some(address) = self.addresses.first().filter(|_| only.is_none()) else { return Vec::new() };
        let region = self.snapshot.cluster().to_string();
        let endpoints = vec![(*address, port.get())];
        vec![vec![Locality { region, sub_zone: String::new(), weight: 1, endpoints }]]
    }

    /// `None`: the share has no address.
    fn locality(&self, share: &Weighted, port: PortNumber, used: &mut BTreeSet<(IpAddr, u16)>) -> Option<Locality> {
        let Candidate { cluster, subset, .. } = &share.candidate;
        let mut endpoints = match cluster {
            None => self.local(subset, port),
            Some(cluster) => {
                let addresses = self.shares.get(&(cluster.clone(), Arc::clone(subset)))?;
                vec![(*addresses.first()?, port.get())]
            }
        };
        endpoints.retain(|endpoint| used.insert(*endpoint));
        let region = cluster.as_ref().unwrap_or(self.snapshot.cluster()).to_string();
        Some(Locality { region, sub_zone: share_name(None, subset), weight: share.weight, endpoints })
    }

    /// Endpoints of this cluster with these labels: the ready ones, else those that drain.
    fn local(&self, subset: &Subset, port: PortNumber) -> Vec<(IpAddr, u16)> {
        let endpoints = self.snapshot.local(&self.import.key).into_iter().flat_map(|local| local.endpoints.iter());
        let (mut ready, mut draining) = (Vec::new(), Vec::new());
        for local in endpoints {
            let has_labels = subset.iter().all(|(key, value)| local.endpoint.subset.get(key) == Some(value));
            // The library speaks no TLS to it.
            let is_ours = has_labels && !local.endpoint.tls.refuses_plain();
            let Some(target) = local.target_ports.get(&port.into()).filter(|_| is_ours) else { continue };
            let condition = local.endpoint.condition;
            if condition.ready {
                ready.push((local.address, *target));
            } else if condition.is_draining() {
                draining.push((local.address, *target));
            }
        }
        if ready.is_empty() { draining } else { ready }
    }
}

/// Other ports carry no calls of gRPC.
fn is_http2(port: &ServicePort) -> bool {
    AppProtocol::of(port) == AppProtocol::Http2
}

/// A library speaks no TLS.
fn plain(port: &ServicePort) -> RouteRequest<'static> {
    RouteRequest { plain: true, ..RouteRequest::tcp(port.number) }
}

fn cluster_with(name: &str, tiers: Vec<Vec<Locality>>, resources: &mut Vec<Generated>) {
    resources.push((Kind::Cluster, Resource::new(Kind::Cluster, name, &cluster(name))));
    resources.push((Kind::Endpoints, Resource::new(Kind::Endpoints, name, &assignment(name, tiers))));
}

#[cfg(test)]
mod tests;

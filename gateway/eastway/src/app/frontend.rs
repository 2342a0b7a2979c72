//! Keeps what local workloads see in step with the snapshot: virtual addresses, the listeners behind
//! them, and the names that lead to them. A name is answered only once its address is listened on.

mod shares;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eastway_dns::{Fqdn, HeadlessEndpoint, NameEntry, PendingPeer, PortEntry, ServiceEntry, ServiceName, ZoneStore};
use eastway_model::rules::NameRule;
use eastway_model::store::{Reader, Snapshot};
use eastway_model::{ClusterName, EndpointId, Import, Label, Protocol, ServiceKey, ServiceKind};
use eastway_xds::resources::proxyless::ShareAddresses;
use eastway_xds::resources::{EndpointAddresses, OneByOne};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::app::addresses::{Addresses, Grant, Purpose};
use crate::proxy::vip::{Listeners, Spot, Wanted};
use crate::telemetry::{Refusal, Telemetry};

/// Addresses of one headless import; more endpoints than this get none (design: headless).
const MAX_HEADLESS: usize = 100;
/// Services looked at before other tasks of this thread get their turn: a new peer can bring thousands.
const SERVICES_AT_ONCE: usize = 32;
/// How soon addresses that could not be given or listened on are tried again.
const RETRY: Duration = Duration::from_secs(2);

/// What became of the imports, for status and describe.
#[derive(Clone, Debug, Default)]
pub struct FrontendView {
    /// Version of the snapshot that this follows; `None`: of none yet.
    pub follows: Option<u64>,
    /// Addresses of each import.
    pub vips: BTreeMap<ServiceKey, Vec<IpAddr>>,
    /// Addresses of the endpoints of each headless import.
    pub endpoints: EndpointAddresses,
    /// Addresses that lead to one share of an import each; `None`: nobody wants any.
    pub shares: Option<ShareAddresses>,
    /// Imports without an address, or without some port of it, because there is no room.
    pub exhausted: BTreeMap<ServiceKey, Shortage>,
    /// Addresses that could not be listened on, and why.
    pub failed: BTreeMap<SocketAddr, String>,
    /// Listeners.
    pub listeners: usize,
}

/// What there was not enough of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// A range is full.
    #[error("vip.ranges is full: add a range")]
    Addresses,
    /// They are the controller's to give, and it has not yet.
    #[error("the controller has given it no address yet: `kubectl describe serviceimport` says why")]
    Waiting,
    /// Too many addresses and ports are listened on, by all or by that peer.
    #[error(
        "too many ports are listened on: raise the limit on file descriptors, or import less of the peer that exports so much"
    )]
    Listeners,
}

/// The one owner of addresses, listeners and names.
pub struct Frontend {
    addresses: Addresses,
    listeners: Listeners,
    zone: Arc<ZoneStore>,
    telemetry: Telemetry,
    outputs: Outputs,
    current: FrontendView,
    seen: Option<u64>,
    /// What found no address or no room is due to be tried again.
    again: bool,
    known: BTreeSet<ServiceKey>,
    names: BTreeMap<ServiceKey, BTreeSet<Fqdn>>,
    headless: BTreeSet<ServiceKey>,
    /// Addresses of `current.failed` by service.
    failing: BTreeMap<ServiceKey, BTreeSet<SocketAddr>>,
    pending_since: BTreeMap<ClusterName, Instant>,
    /// Whether there are clients that choose between shares themselves.
    wants_shares: watch::Receiver<bool>,
}

/// Where the frontend publishes.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// For status.
    pub view: watch::Sender<Arc<FrontendView>>,
    /// Services whose endpoint records are wanted.
    pub subscriptions: watch::Sender<Arc<BTreeSet<ServiceKey>>>,
}

impl Frontend {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(
        addresses: Addresses,
        listeners: Listeners,
        zone: Arc<ZoneStore>,
        telemetry: Telemetry,
        outputs: Outputs,
        wants_shares: watch::Receiver<bool>,
    ) -> Self {
        Self {
            wants_shares,
            addresses,
            listeners,
            zone,
            telemetry,
            outputs,
            current: FrontendView::default(),
            seen: None,
            again: false,
            known: BTreeSet::new(),
            names: BTreeMap::new(),
            headless: BTreeSet::new(),
            failing: BTreeMap::new(),
            pending_since: BTreeMap::new(),
        }
    }

    /// Follows the store until `stop`.
    pub async fn run(mut self, mut reader: Reader, stop: CancellationToken) {
        loop {
            let snapshot = reader.load_full();
            self.sync(&snapshot).await;
            let lacking = self.current.exhausted.values().any(|shortage| *shortage != Shortage::Waiting);
            let retry = !self.current.failed.is_empty() || lacking;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = reader.changed() => if changed.is_err() { return },
                () = self.addresses.changed() => {}
                Ok(()) = self.wants_shares.changed() => self.seen = None,
                () = tokio::time::sleep(RETRY), if retry => self.again = true,
            }
        }
    }

    async fn sync(&mut self, snapshot: &Snapshot) {
        if *self.wants_shares.borrow_and_update() {
            self.current.shares.get_or_insert_default();
        }
        self.telemetry.metrics.set_snapshot_version(snapshot.version());
        let was_heard = self.addresses.is_heard();
        let mut given = self.addresses.take_changes();
        if self.addresses.is_heard() != was_heard {
            // What waited is known to have no address now.
            given.extend(self.current.exhausted.keys().cloned());
        }
        for (number, key) in self.changed(snapshot, given).iter().enumerate() {
            if number % SERVICES_AT_ONCE == SERVICES_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            self.sync_service(snapshot, key);
        }
        self.seen = Some(snapshot.version());
        self.again = false;
        self.set_readiness(snapshot);
        self.addresses.save();
        self.current.listeners = self.listeners.len();
        self.current.follows = self.seen;
        self.telemetry.metrics.set_vips(self.current.vips.values().filter(|vips| !vips.is_empty()).count());
        self.outputs.view.send_replace(Arc::new(self.current.clone()));
        self.outputs.subscriptions.send_if_modified(|wanted| {
            let changed = **wanted != self.headless;
            if changed {
                *wanted = Arc::new(self.headless.clone());
            }
            changed
        });
    }

    fn changed(&self, snapshot: &Snapshot, given: BTreeSet<ServiceKey>) -> Vec<ServiceKey> {
        let changes = self.seen.and_then(|seen| snapshot.changes_since(seen)).map(|mut changes| {
            changes.extend(given);
            if self.again {
                changes.extend(self.failing.keys().chain(self.current.exhausted.keys()).cloned());
            }
            changes
        });
        changes.unwrap_or_else(|| {
            let mut all: BTreeSet<_> = snapshot.imports().map(|import| import.key.clone()).collect();
            all.extend(self.known.iter().cloned());
            all.extend(snapshot.rules().names.iter().map(|rule| rule.service.clone()));
            all.into_iter().collect()
        })
    }

    fn sync_service(&mut self, snapshot: &Snapshot, key: &ServiceKey) {
        let mut plan = Plan { key: key.clone(), keep: Vec::new(), wanted: BTreeMap::new(), shortage: None };
        let import = snapshot.import(key);
        let mut vips = match import {
            Some(import) if import.kind == ServiceKind::ClusterSetIp => {
                self.allocate(&mut plan, Purpose::Service, import)
            }
            Some(_) | None => Vec::new(),
        };
        let with_address = import.filter(|import| import.kind == ServiceKind::ClusterSetIp);
        self.shares(&mut plan, snapshot, with_address.map(AsRef::as_ref));
        let endpoints = match import {
            Some(import) if import.kind == ServiceKind::Headless => self.headless(&mut plan, snapshot, import),
            Some(_) | None => {
                self.headless.remove(key);
                self.current.endpoints.remove(key);
                Vec::new()
            }
        };
        let rules: Vec<_> = snapshot.rules().names.iter().filter(|rule| rule.service == *key).collect();
        let names: Vec<_> =
            rules.into_iter().filter_map(|rule| self.name(&mut plan, rule, import.map(AsRef::as_ref), &vips)).collect();

        let unbound = self.listeners.set(key, plan.wanted);
        self.remember_failed(key, &unbound.failed);
        self.addresses.keep_only(key, &plan.keep);
        if !unbound.over_limit.is_empty() {
            // The controller's addresses lead to the other replicas too.
            vips.retain(|vip| self.addresses.is_controllers() || self.listeners.listens(key, *vip));
            plan.shortage = Some(Shortage::Listeners);
        }
        self.remember(key, import.is_some(), &vips, plan.shortage);
        let has_rule =
            |name: &Fqdn| snapshot.rules().names.iter().any(|rule| Fqdn::parse(&rule.fqdn).as_ref() == Ok(name));
        let waits = plan.shortage == Some(Shortage::Waiting) && vips.is_empty();
        let named = Named { vips, endpoints, names, waits };
        self.publish(key, import.map(AsRef::as_ref), named, has_rule);
    }

    /// Says what cannot be listened on, once for as long as it stays so.
    fn remember_failed(&mut self, key: &ServiceKey, failed: &[(SocketAddr, io::Error)]) {
        let before = self.failing.remove(key).unwrap_or_default();
        for address in &before {
            self.current.failed.remove(address);
        }
        let now: BTreeSet<_> = failed.iter().map(|(address, _)| *address).collect();
        if let Some((address, error)) = failed.iter().find(|(address, _)| !before.contains(address)) {
            warn!(%error, %address, addresses = now.len(), service = %key, "cannot listen on virtual addresses: is vip.ranges routed to this host (ip route add local RANGE dev lo)?");
        }
        self.current.failed.extend(failed.iter().map(|(address, error)| (*address, error.to_string())));
        if !now.is_empty() {
            self.failing.insert(key.clone(), now);
        }
    }

    fn remember(&mut self, key: &ServiceKey, exists: bool, vips: &[IpAddr], shortage: Option<Shortage>) {
        if exists {
            self.known.insert(key.clone());
            self.current.vips.insert(key.clone(), vips.to_vec());
        } else {
            self.known.remove(key);
            self.current.vips.remove(key);
            self.headless.remove(key);
        }
        match shortage {
            None => {
                self.current.exhausted.remove(key);
            }
            Some(Shortage::Waiting) => {
                self.current.exhausted.insert(key.clone(), Shortage::Waiting);
            }
            Some(shortage) => {
                if self.current.exhausted.insert(key.clone(), shortage).is_none() {
                    self.telemetry.metrics.vip_exhausted();
                    let detail = format_args!("{key} cannot be reached by its address: {shortage}");
                    self.telemetry.refusals.refused(Refusal::Overload, None, detail);
                }
            }
        }
    }

    /// Addresses for one purpose of a service, and the listeners they need.
    fn allocate(&mut self, plan: &mut Plan, purpose: Purpose, import: &Import) -> Vec<IpAddr> {
        let given = match self.addresses.grant(&plan.key, &purpose) {
            Grant::Given(given) => given,
            Grant::Waiting => {
                plan.shortage = Some(Shortage::Waiting);
                return Vec::new();
            }
            Grant::Full => {
                plan.shortage = Some(Shortage::Addresses);
                return Vec::new();
            }
        };
        let of_shares = matches!(purpose, Purpose::Share(..));
        let carried = import.ports.iter().filter(|port| match port.protocol {
            Protocol::Tcp => true,
            // Shares are for clients of gRPC.
            Protocol::Udp => !of_shares,
            Protocol::Sctp => false,
        });
        for port in carried {
            let peer = import.parts.iter().find(|part| part.serves(port.protocol, port.number));
            let peer = peer.and_then(|part| part.cluster.clone());
            for socket in given.sockets(port.protocol, port.number) {
                let target = purpose.target(plan.key.clone(), port.number);
                plan.wanted.insert((port.protocol, socket), Wanted { target, peer: peer.clone() });
            }
        }
        plan.keep.push(purpose);
        given.addresses
    }

    /// One address per ready endpoint, in every cluster that has the service.
    fn headless(&mut self, plan: &mut Plan, snapshot: &Snapshot, import: &Import) -> Vec<HeadlessEndpoint> {
        self.headless.insert(plan.key.clone());
        let mut ready: Vec<(ClusterName, EndpointId, Option<Label>)> = Vec::new();
        let mut endpoints = Vec::new();
        for part in &import.parts {
            match &part.cluster {
                // Pods reach those of their own cluster at their own addresses.
                None if self.addresses.is_controllers() => {
                    let local = snapshot.local(&plan.key).into_iter().flat_map(|local| local.endpoints.iter());
                    endpoints.extend(local.filter(|endpoint| endpoint.endpoint.condition.ready).map(|local| {
                        HeadlessEndpoint {
                            hostname: local.endpoint.hostname.as_ref().map(ToString::to_string),
                            cluster: snapshot.cluster().to_string(),
                            addresses: vec![local.address],
                        }
                    }));
                }
                None => {
                    let local = snapshot.local(&plan.key).into_iter().flat_map(|local| local.endpoints.iter());
                    ready.extend(local.filter(|endpoint| endpoint.endpoint.condition.ready).map(|endpoint| {
                        (snapshot.cluster().clone(), endpoint.endpoint.id.clone(), endpoint.endpoint.hostname.clone())
                    }));
                }
                Some(cluster) => {
                    let records = part.endpoints.iter().filter(|endpoint| endpoint.condition.ready);
                    ready.extend(records.filter_map(|endpoint| {
                        let hostname = endpoint.hostname.and_then(|hostname| Label::parse(hostname).ok());
                        Some((cluster.clone(), EndpointId::parse(endpoint.id)?, hostname))
                    }));
                }
            }
        }
        if ready.len() > MAX_HEADLESS {
            warn!(service = %plan.key, endpoints = ready.len(), "only the first {MAX_HEADLESS} endpoints of a headless import get addresses");
        }
        let mut one_by_one = OneByOne::new();
        for (cluster, id, hostname) in ready.into_iter().take(MAX_HEADLESS) {
            let addresses = self.allocate(plan, Purpose::Endpoint(cluster.clone(), id.clone()), import);
            one_by_one.insert((cluster.clone(), id), addresses.clone());
            endpoints.push(HeadlessEndpoint {
                hostname: hostname.map(|hostname| hostname.to_string()),
                cluster: cluster.to_string(),
                addresses,
            });
        }
        self.current.endpoints.insert(plan.key.clone(), one_by_one);
        endpoints
    }

    /// A name of the user's own; without the import, or the cluster it is pinned to, it has no address.
    fn name(
        &mut self,
        plan: &mut Plan,
        rule: &NameRule,
        import: Option<&Import>,
        vips: &[IpAddr],
    ) -> Option<NameEntry> {
        let fqdn = Fqdn::parse(&rule.fqdn).ok()?;
        let offered = |cluster: &ClusterName, import: &Import| {
            let own = *cluster == *self.listeners.cluster();
            import.part((!own).then_some(cluster)).is_some()
        };
        let addresses = match (import, &rule.cluster) {
            (None, _) => Vec::new(),
            (Some(_), None) => vips.to_vec(),
            (Some(import), Some(cluster)) if offered(cluster, import) => {
                self.allocate(plan, Purpose::Name(rule.fqdn.clone(), cluster.clone()), import)
            }
            (Some(_), Some(_)) => Vec::new(),
        };
        let service = ServiceName { namespace: plan.key.namespace.to_string(), name: plan.key.name.to_string() };
        Some(NameEntry { fqdn, addresses, ports: import.map(ports).unwrap_or_default(), service: Some(service) })
    }

    fn publish(
        &mut self,
        key: &ServiceKey,
        import: Option<&Import>,
        Named { vips, mut endpoints, mut names, waits }: Named,
        has_rule: impl Fn(&Fqdn) -> bool,
    ) {
        let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
        match import {
            None => {
                self.zone.remove_service(&namespace, &name);
            }
            // The controller has not made it yet, so it is not there for anybody. Whoever was too early remembers that
            // for a second; a SERVFAIL is remembered by CoreDNS for five, on behalf of everybody.
            Some(import) if waits && self.addresses.is_heard() && import.kind == ServiceKind::ClusterSetIp => {
                self.zone.remove_service(&namespace, &name);
            }
            Some(import) => {
                endpoints.retain(|endpoint| !endpoint.addresses.is_empty());
                let kind = match import.kind {
                    // It may have an address: nobody is to remember that it does not exist.
                    _ if waits && endpoints.is_empty() && !self.addresses.is_heard() => {
                        eastway_dns::ServiceKind::Pending
                    }
                    ServiceKind::ClusterSetIp => {
                        eastway_dns::ServiceKind::ClusterSet { addresses: self.listening(vips) }
                    }
                    ServiceKind::Headless => eastway_dns::ServiceKind::Headless { endpoints },
                };
                let entry = ServiceEntry { namespace, name, kind, ports: ports(import) };
                if let Err(error) = self.zone.upsert_service(&entry) {
                    error!(%error, service = %key, "a service cannot be named");
                }
            }
        }
        let before = self.names.remove(key).unwrap_or_default();
        let now: BTreeSet<_> = names.iter().map(|name| name.fqdn.clone()).collect();
        // A name that has a rule leads to another service now, whose turn may have come already.
        for gone in before.difference(&now).filter(|name| !has_rule(name)) {
            self.zone.remove_name(gone);
        }
        for entry in &mut names {
            entry.addresses = self.listening(std::mem::take(&mut entry.addresses));
            if let Err(error) = self.zone.upsert_name(entry) {
                error!(%error, service = %key, "a name of our own cannot be served");
            }
        }
        if !now.is_empty() {
            self.names.insert(key.clone(), now);
        }
    }

    /// Without the addresses where nobody would answer.
    fn listening(&self, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        let sockets = |address| SocketAddr::new(address, 0)..=SocketAddr::new(address, u16::MAX);
        addresses.retain(|address| self.current.failed.range(sockets(*address)).next().is_none());
        addresses
    }

    fn set_readiness(&mut self, snapshot: &Snapshot) {
        let now = Instant::now();
        let unknown: BTreeSet<_> =
            snapshot.peers().filter(|peer| peer.configured && !peer.synced).map(|peer| peer.name.clone()).collect();
        self.pending_since.retain(|peer, _| unknown.contains(peer));
        let pending = unknown
            .into_iter()
            .map(|peer| {
                let since = *self.pending_since.entry(peer.clone()).or_insert(now);
                let (rules, name) = (snapshot.rules().clone(), peer.clone());
                let owns = move |namespace: &str, service: &str| {
                    ServiceKey::parse(namespace, service).is_ok_and(|key| rules.may_import(name.as_str(), &key))
                };
                PendingPeer { peer: Arc::from(peer.as_str()), since, owns: Arc::new(owns) }
            })
            .collect();
        let readiness = eastway_dns::Readiness { local_synced: snapshot.is_local_synced(), pending };
        self.zone.set_readiness(readiness);
    }
}

/// What one service needs.
struct Plan {
    key: ServiceKey,
    /// What keeps its addresses.
    keep: Vec<Purpose>,
    wanted: BTreeMap<Spot, Wanted>,
    shortage: Option<Shortage>,
}

/// What a service and the names of one's own that lead to it are answered with.
struct Named {
    vips: Vec<IpAddr>,
    endpoints: Vec<HeadlessEndpoint>,
    names: Vec<NameEntry>,
    /// The controller has given out no address of it.
    waits: bool,
}

fn ports(import: &Import) -> Vec<PortEntry> {
    let protocol = |protocol| match protocol {
        Protocol::Tcp => eastway_dns::Protocol::Tcp,
        Protocol::Udp => eastway_dns::Protocol::Udp,
        Protocol::Sctp => eastway_dns::Protocol::Sctp,
    };
    let entry = |port: &eastway_model::ServicePort| PortEntry {
        name: port.name.as_ref().map(ToString::to_string),
        protocol: protocol(port.protocol),
        port: port.number.get(),
    };
    import.ports.iter().map(entry).collect()
}

#[cfg(test)]
mod tests;

//! The running gateway as the admin port shows it: handles read, views made. Nothing is changed here.

mod bench;
mod check;
mod describe;
mod istio;
mod peers;
mod reach;
mod services;
mod sidecars;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use eastway_identity::SpkiPin;
use eastway_model::store::{RegistryConflictKind, Snapshot};
use eastway_model::{ClusterName, Label, PeerState};

use eastway_registry::diagnostic::Diagnostic;
use eastway_tunnel::SiblingStatus;

use crate::admin::check::CheckFacts;
use crate::admin::sidecars::{ResourceKind, SidecarConfigView, SidecarView};
use crate::admin::views::{
    BenchView, ConfigView, Description, DnsView, EndpointView, IdentityView, Leftovers, PeerCounts, PeerView,
    RegistryView, ReplicaView, ServiceCounts, ServiceView, SnapshotView, StatusView, TunnelsView,
};
use crate::admin::{AdminSource, BenchQuery, BoxFuture, DescribeQuery, SourceError};
use crate::app::Gateway;
use crate::app::imports::copy_of_imports;
use crate::app::registries::RegistryStatus;
use crate::proxy::hbone::held::Holding;
use crate::telemetry::{Certificate, Metrics};

/// Reads the handles of a gateway.
pub struct Source {
    gateway: Arc<Gateway>,
}

impl Source {
    /// Shows `gateway`.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.gateway.reader.load_full()
    }

    fn identity(&self) -> Option<IdentityView> {
        let identity = self.gateway.identity.get()?.current();
        let issuer = identity.chain().get(1);
        let pin = issuer.and_then(|issuer| SpkiPin::of_certificate(issuer).ok());
        Some(IdentityView {
            id: identity.id().to_string(),
            not_after: millis(identity.not_after()),
            pin: pin.map(|pin| pin.to_string()).unwrap_or_default(),
            issuer_not_after: identity.issuer_not_after().map(millis),
        })
    }

    fn config_view(&self) -> ConfigView {
        let status = self.gateway.configuration.status.borrow();
        ConfigView {
            path: self.gateway.settings.file.display().to_string(),
            loaded_at: status.loaded_at.map(millis).unwrap_or_default(),
            errors: status
                .errors
                .iter()
                .chain(self.gateway.configuration.loaded.borrow().refused.values())
                .cloned()
                .collect(),
        }
    }
}

impl AdminSource for Source {
    fn status(&self) -> StatusView {
        let snapshot = self.snapshot();
        let frontend = self.gateway.frontend.borrow();
        let mut listeners = self.gateway.listeners.clone();
        if let Some(tunnel) = self.gateway.tunnel.get() {
            listeners.insert("link".to_owned(), vec![tunnel.local_addr()]);
            listeners.extend(tunnel.replicas_addr().map(|address| ("replicas".to_owned(), vec![address])));
        }
        StatusView {
            cluster: self.gateway.settings.cluster.to_string(),
            trust_domain: self.gateway.settings.trust.domain.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            roles: self.gateway.roles.clone(),
            started_at: self.gateway.clock.started_at().0,
            listeners,
            snapshot: SnapshotView {
                version: snapshot.version(),
                local_synced: snapshot.is_local_synced(),
                restored_age_ms: self
                    .gateway
                    .freshness
                    .restored_age()
                    .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            },
            identity: self.identity(),
            config: self.config_view(),
            registries: registries(&self.gateway),
            peers: peer_counts(&snapshot),
            services: service_counts(&snapshot, frontend.vips.values().map(Vec::len).sum()),
            replicas: replicas(&self.gateway),
            relay: self.gateway.tunnel.get().map(|tunnel| peers::relayed(tunnel)).unwrap_or_default(),
            open_connections: self.gateway.router.in_flight.total(),
            tunnels: self.gateway.settings.listen.hbone.map(|_| tunnels(&self.gateway)),
            resident_bytes: resident_bytes(),
            ..StatusView::default()
        }
    }

    fn peers(&self) -> Vec<PeerView> {
        peers::views(&self.gateway)
    }

    fn services(&self) -> Vec<ServiceView> {
        services::views(&self.gateway)
    }

    fn endpoints(&self) -> Vec<EndpointView> {
        services::endpoints(&self.gateway)
    }

    fn dns(&self) -> DnsView {
        let snapshot = self.snapshot();
        let counters = self.gateway.dns.snapshot();
        let count = |pairs: Vec<(&'static str, u64)>| -> BTreeMap<String, u64> {
            pairs.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count)).collect()
        };
        let zones = self.gateway.settings.dns.zones.iter().map(ToString::to_string);
        DnsView {
            listeners: self.gateway.listeners.get("dns").cloned().unwrap_or_default(),
            zones: std::iter::once("clusterset.local".to_owned()).chain(zones).collect(),
            names: (snapshot.imports().count() + snapshot.rules().names.len()) as u64,
            synced: snapshot.is_local_synced(),
            waiting_for: snapshot
                .peers()
                .filter(|peer| peer.configured && !peer.synced)
                .map(|peer| peer.name.to_string())
                .collect(),
            answers: count(counters.answers),
            dropped: count(counters.drops),
        }
    }

    fn describe(&self, query: &DescribeQuery) -> Result<Description, SourceError> {
        describe::describe(&self.gateway, query)
    }

    fn sidecars(&self, node: Option<&str>) -> Result<Vec<SidecarView>, SourceError> {
        sidecars::views(&self.gateway, node)
    }

    fn sidecar_config(&self, node: &str, kind: ResourceKind) -> Result<SidecarConfigView, SourceError> {
        sidecars::config(&self.gateway, node, kind)
    }

    fn config(&self) -> serde_json::Value {
        let loaded = self.gateway.configuration.loaded.borrow().clone();
        let snapshot = self.snapshot();
        serde_json::json!({
            "settings": &*loaded.settings,
            "rules": &**snapshot.rules(),
            "imports": snapshot.imports().collect::<Vec<_>>(),
            "services": snapshot.locals().collect::<Vec<_>>(),
            "peers": snapshot.peers().collect::<Vec<_>>(),
            "links": self.gateway.tunnel.get().map(|tunnel| tunnel.status()),
            "virtualAddresses": self.gateway.frontend.borrow().vips.iter().map(|(key, vips)| (key.to_string(), vips.clone())).collect::<BTreeMap<_, _>>(),
        })
    }

    fn leftovers(&self, peer: &str) -> Leftovers {
        let snapshot = self.snapshot();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let configured = self.gateway.configuration.loaded.borrow().peers.keys().any(|name| name.as_str() == peer);
        let status = self.gateway.tunnel.get().map(|tunnel| tunnel.status()).unwrap_or_default();
        let links = status.iter().find(|status| &*status.name == peer).map_or(0, |status| status.links.len());
        let of_peer = |import: &&Arc<eastway_model::Import>| {
            import.parts.iter().any(|part| part.cluster.as_ref().is_some_and(|name| name.as_str() == peer))
        };
        let imports: Vec<_> = snapshot.imports().filter(of_peer).collect();
        let frontend = self.gateway.frontend.borrow();
        let alone = imports.iter().filter(|import| import.parts.len() == 1 && frontend.vips.contains_key(&import.key));
        // Taken from clients a moment after their import is gone, whosever it was.
        let gone = frontend.vips.keys().filter(|key| snapshot.import(key).is_none());
        // What is no name of a cluster never had a file, and must not lead to one elsewhere.
        let file = ClusterName::parse(peer).ok().map(|peer| copy_of_imports(&self.gateway.settings.state, &peer));
        Leftovers {
            configured,
            links: count(links),
            sessions: u32::from(snapshot.peer(peer).is_some()),
            imports: count(imports.len()),
            vips: count(alone.count() + gone.count()),
            files: u32::from(file.is_some_and(|file| file.exists())),
        }
    }

    fn check(&self, peer: Option<String>) -> BoxFuture<'_, CheckFacts> {
        Box::pin(check::facts(&self.gateway, peer))
    }

    fn bench(&self, query: BenchQuery) -> BoxFuture<'_, Result<BenchView, SourceError>> {
        let measured = bench::measure(&self.gateway, query);
        Box::pin(async move { measured.await.map_err(SourceError::BadQuery) })
    }

    fn refresh(&self, metrics: &Metrics) {
        peers::refresh(&self.gateway, metrics);
        let counters = self.gateway.dns.snapshot();
        for (rcode, total) in counters.answers {
            metrics.set_dns_answers(rcode, total);
        }
        for (reason, total) in counters.drops {
            metrics.set_dns_dropped(reason, total);
        }
        if let Some(identity) = self.gateway.identity.get() {
            let identity = identity.current();
            metrics.set_certificate(&Certificate::Leaf, identity.not_after());
            if let Some(end) = identity.issuer_not_after() {
                metrics.set_certificate(&Certificate::Issuer, end);
            }
        }
        metrics.set_held(&self.gateway.tunnels.now());
        metrics.set_ready(self.gateway.readiness.is_ready());
    }
}

/// What tunnels of sidecars hold.
fn tunnels(gateway: &Gateway) -> TunnelsView {
    let Holding { tunnels, bytes, limit } = gateway.tunnels.now();
    TunnelsView { open: tunnels as u64, buffered_bytes: bytes, buffer_limit_bytes: limit }
}

/// How the registries are doing.
fn registries(gateway: &Gateway) -> Vec<RegistryView> {
    let serving = gateway.reader.load().is_local_synced();
    let view = |(name, status): (&Label, &RegistryStatus)| match status {
        RegistryStatus::File(status) => {
            let status = status.borrow();
            RegistryView {
                name: name.to_string(),
                kind: "file".to_owned(),
                synced: status.synced,
                read_at: status.last_success.map(|at| at.0),
                services: status.services as u64,
                endpoints: status.endpoints as u64,
                unhealthy: status.unhealthy as u64,
                errors: status.errors.iter().map(Diagnostic::headline).collect(),
                api_servers: 0,
            }
        }
        RegistryStatus::Kubernetes(status) => {
            let status = status.borrow();
            let mut errors = status.errors();
            if serving && !status.synced {
                errors.insert(0, "has never answered: serving without its services".to_owned());
            }
            RegistryView {
                name: name.to_string(),
                kind: "kubernetes".to_owned(),
                synced: status.synced,
                read_at: status.last_success.map(|at| at.0),
                services: status.services as u64,
                endpoints: status.endpoints as u64,
                unhealthy: 0,
                errors,
                api_servers: 0,
            }
        }
        RegistryStatus::Clusters(status) => {
            let status = status.borrow();
            RegistryView {
                name: name.to_string(),
                kind: "clusterRegistry".to_owned(),
                synced: status.synced,
                api_servers: status.servers as u64,
                errors: status.errors.clone(),
                ..RegistryView::default()
            }
        }
    };
    let mut views: Vec<RegistryView> = gateway.registries.borrow().iter().map(view).collect();
    add_conflicts(&gateway.reader.load(), &mut views);
    views
}

/// Conflicts of one registry that are told.
const CONFLICTS: usize = 10;

/// Tells a registry what of it takes no part because another one knows better. Only of services that somebody means to
/// export: every API server has a `kube-dns`.
fn add_conflicts(snapshot: &Snapshot, views: &mut [RegistryView]) {
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    for local in snapshot.locals() {
        for conflict in snapshot.registry_conflicts(local.key()) {
            let export = RegistryConflictKind::Service { field: "export" };
            let view = views.iter_mut().find(|view| view.name == conflict.loser.as_str());
            let (true, Some(view)) = (local.exported || conflict.kind == export, view) else { continue };
            let count = told.entry(conflict.loser.as_str()).or_default();
            *count += 1;
            if *count <= CONFLICTS {
                view.errors.push(format!("{}: {conflict}", local.key()));
            }
        }
    }
    for view in views {
        let more = told.get(view.name.as_str()).map_or(0, |count| count.saturating_sub(CONFLICTS));
        view.errors.extend((more > 0).then(|| format!("{more} more services differ from those of other registries")));
    }
}

/// The other gateways of this cluster.
fn replicas(gateway: &Gateway) -> Vec<ReplicaView> {
    let siblings = gateway.tunnel.get().map(|tunnel| tunnel.siblings()).unwrap_or_default();
    let view = |sibling: SiblingStatus| ReplicaView {
        replica: sibling.replica.to_string(),
        address: sibling.address.to_string(),
        draining: sibling.draining,
    };
    siblings.into_iter().map(view).collect()
}

fn peer_counts(snapshot: &Snapshot) -> PeerCounts {
    let mut counts = PeerCounts::default();
    for peer in snapshot.peers() {
        match peer.state {
            PeerState::Up => counts.up += 1,
            PeerState::Down { .. } => counts.down += 1,
            PeerState::Unknown => counts.unknown += 1,
        }
    }
    counts
}

fn service_counts(snapshot: &Snapshot, vips: usize) -> ServiceCounts {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let peers: Vec<_> = snapshot.rules().peers.keys().collect();
    let offered = |key| peers.iter().any(|peer| snapshot.may_export(peer, key));
    ServiceCounts {
        local: count(snapshot.locals().count()),
        exported: count(snapshot.locals().filter(|local| offered(local.key())).count()),
        imported: count(
            snapshot.imports().filter(|import| import.parts.iter().any(|part| part.cluster.is_some())).count(),
        ),
        vips: count(vips),
    }
}

/// Resident memory of this process, bytes; 0 where the system does not say.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

pub(super) fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

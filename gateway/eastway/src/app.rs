//! The gateway process: build, bind, run, drain.
//!
//! [`build`] binds every socket that needs no certificate, so that a port in use is an error at the
//! start; [`Bound::run`] then enrols, opens the tunnel and serves until it is told to stop. All tasks
//! are owned here, in one tracker, and end with one token.

pub mod addresses;
pub mod anchors;
mod build_error;
pub mod clock;
pub mod clusters;
pub mod crl;
pub mod disk;
pub mod exports;
pub mod frontend;
mod hbone;
mod head_start;
pub mod imports;
pub mod links;
mod local_port;
pub mod objects;
pub mod peers;
mod quic_lb;
pub mod registries;
pub mod reload;
pub mod replica;
pub mod replicas;
pub mod sidecars;
pub mod signals;
mod sni;
pub mod store;
pub mod vips;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eastway_dns::ZoneStore;
use eastway_identity::{IdentityStore, TrustStore};
use eastway_model::store::{Reader, Writer};
use eastway_model::{ClusterName, ServiceKey};
use eastway_tunnel::{ReplicaId, Tunnel, TunnelConfig, World};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

pub use build_error::BuildError;

use crate::adapters;
use crate::admin::{self, AdminContext, AdminPort, HealthPort, MetricsPort, Readiness};
use crate::app::addresses::Addresses;
use crate::app::clock::Clock;
use crate::app::exports::Exports;
use crate::app::frontend::{Frontend, FrontendView, Outputs};
use crate::app::imports::{Freshness, Imports};
use crate::app::links::LinkLog;
use crate::app::peers::Peers;
use crate::app::registries::{Registries, RegistryStatuses, Warm};
use crate::app::store::StoreSender;
use crate::app::vips::VipBook;
use crate::config::{Loaded, ReloadStatus, Settings};
use crate::local::listener::LocalListener;
use crate::proxy::hbone::held::Held;
use crate::proxy::hbone::renewals::Renewals;
use crate::proxy::inbound::Inbound;
use crate::proxy::sni::SniListener;
use crate::proxy::vip::{Listeners, VipLimits};
use crate::roles::enroll::{self, CaClient};
use crate::router::Router;
use crate::telemetry::{LogHandle, Telemetry};

/// How long tasks may take to end once the drain is over.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// In Kubernetes connections are led here until the controller, every kube-proxy and every peer have heard that this
/// replica leaves: for so long at least they are taken as ever, and on until there are none or the drain is over.
const TAKEN_OUT: Duration = Duration::from_secs(5);

/// A configuration that is followed.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The last good one.
    pub loaded: watch::Receiver<Arc<Loaded>>,
    /// How the last attempt to read it went.
    pub status: watch::Receiver<ReloadStatus>,
}

/// The handles of a running gateway: what status, describe and check read.
pub struct Gateway {
    /// Settings of the start; what can change is in `configuration`.
    pub settings: Arc<Settings>,
    /// Roles of the process.
    pub roles: Vec<String>,
    /// What is timed and dated, since the start.
    pub clock: Clock,
    /// How old imports are.
    pub freshness: Freshness,
    /// The store.
    pub reader: Reader,
    /// Routes and connections in flight.
    pub router: Arc<Router>,
    /// Links, once there is a certificate.
    pub tunnel: OnceLock<Arc<Tunnel>>,
    /// Our certificate, once there is one.
    pub identity: OnceLock<Arc<IdentityStore>>,
    /// Whom we accept.
    pub trust: Arc<TrustStore>,
    /// Names.
    pub zone: Arc<ZoneStore>,
    /// What the DNS server did.
    pub dns: eastway_dns::Counters,
    /// How the registries are doing; written by their owner.
    pub registries: watch::Sender<Arc<RegistryStatuses>>,
    /// All peers that are configured; `None` until they have been read.
    pub known_peers: watch::Sender<Option<Arc<BTreeSet<ClusterName>>>>,
    /// Virtual addresses.
    pub frontend: watch::Receiver<Arc<FrontendView>>,
    /// The configuration.
    pub configuration: Configuration,
    /// Bound sockets by name.
    pub listeners: BTreeMap<String, Vec<SocketAddr>>,
    /// Counters and logs.
    pub telemetry: Telemetry,
    /// What the process waits for.
    pub readiness: Readiness,
    /// Whether a client without a proxy has come, which wants addresses of single shares.
    pub wants_shares: watch::Sender<bool>,
    /// What sidecars know trust domains by.
    pub anchors: anchors::Published,
    /// Certificates of this cluster that are revoked.
    pub revoked: watch::Sender<Arc<BTreeSet<String>>>,
    /// Services whose endpoints in other clusters sidecars are told as one for each cluster.
    pub summaries: watch::Sender<Arc<BTreeSet<ServiceKey>>>,
    /// What tunnels of sidecars hold.
    pub tunnels: Arc<Held>,
    /// Sidecars that have renewed their certificates.
    pub renewals: Arc<Renewals>,
    /// Sidecars that are connected, once they are served.
    pub sidecars: OnceLock<Arc<eastway_xds::server::Clients>>,
}

/// A gateway that listens and does not serve yet.
pub struct Bound {
    gateway: Arc<Gateway>,
    writer: Writer,
    outputs: Outputs,
    dns: eastway_dns::Server,
    local: Option<LocalListener>,
    hbone: Option<LocalListener>,
    sni: Vec<SniListener>,
    health: HealthPort,
    metrics: MetricsPort,
    admin: AdminPort,
    log: Option<LogHandle>,
}

/// Binds everything that needs no certificate.
///
/// # Errors
/// [`BuildError`]
pub async fn build(
    configuration: Configuration,
    roles: Vec<String>,
    telemetry: Telemetry,
    log: Option<LogHandle>,
) -> Result<Bound, BuildError> {
    let loaded = configuration.loaded.borrow().clone();
    let settings = loaded.settings.clone();
    if let Err(error) = std::fs::create_dir_all(&settings.state) {
        warn!(%error, folder = %settings.state.display(), "the state folder cannot be made: running from memory, a restart will forget imports and virtual addresses");
    }

    let zone = ZoneStore::new(adapters::zones(&settings)?)?;
    let dns = eastway_dns::Server::bind(&adapters::dns_config(&settings), zone.clone())?;
    let local = match settings.listen.local {
        Some(address) => {
            let listener = LocalListener::bind("listen.local", address).await?;
            Some(listener.with_room_for(local_port::sidecars(&settings)))
        }
        None => None,
    };
    let hbone = hbone::bind(&settings).await?;
    let sni = sni::bind(&settings)?;
    let health = HealthPort::bind(settings.listen.health).await?;
    let metrics = MetricsPort::bind(settings.listen.metrics).await?;
    let admin = AdminPort::bind(settings.listen.admin).await?;
    let mut listeners = BTreeMap::from([
        ("dns".to_owned(), dns.local_addrs()),
        ("health".to_owned(), vec![health.local_addr()]),
        ("metrics".to_owned(), vec![metrics.local_addr()]),
        ("admin".to_owned(), vec![admin.local_addr()]),
        ("link".to_owned(), vec![settings.listen.link]),
    ]);
    listeners.extend(local.iter().map(|local| ("local".to_owned(), vec![local.local_addr()])));
    let names = sni.iter().filter_map(SniListener::local_addr).collect::<Vec<_>>();
    listeners.extend((!names.is_empty()).then(|| ("sni".to_owned(), names)));
    listeners.extend(hbone.iter().map(|hbone| ("hbone".to_owned(), vec![hbone.local_addr()])));

    // Peers that contradict each other are an error of the start. None is trusted before the revocation
    // lists are read.
    let trust = TrustStore::new(adapters::peer_trust(&loaded, &[]))?;
    trust.replace(Vec::new())?;
    let outputs = Outputs { view: watch::Sender::default(), subscriptions: watch::Sender::default() };
    let (writer, reader) = Writer::new(settings.cluster.clone());
    let router =
        Router::new(reader.clone(), adapters::dial_rules(&settings), adapters::limits(&settings), telemetry.clone())
            .with_patience(adapters::patience(&settings))
            .with_udp_idle(settings.limits.udp_idle);
    let clock = Clock::start();
    let gateway = Gateway {
        roles,
        clock,
        freshness: Freshness::new(clock),
        reader,
        router: Arc::new(router),
        tunnel: OnceLock::new(),
        identity: OnceLock::new(),
        trust,
        zone,
        dns: dns.counters(),
        registries: watch::Sender::default(),
        known_peers: watch::Sender::default(),
        frontend: outputs.view.subscribe(),
        configuration,
        listeners,
        telemetry,
        readiness: Readiness::new(),
        wants_shares: watch::Sender::new(false),
        anchors: watch::Sender::default(),
        revoked: watch::Sender::default(),
        summaries: watch::Sender::default(),
        tunnels: Held::new(settings.limits.hbone_buffer_bytes),
        renewals: Arc::default(),
        sidecars: OnceLock::new(),
        settings,
    };
    Ok(Bound { gateway: Arc::new(gateway), writer, outputs, dns, local, hbone, sni, health, metrics, admin, log })
}

impl Bound {
    /// The handles, with the addresses that were bound.
    #[must_use]
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Serves until `stop`, then drains. `client` is asked for certificates.
    ///
    /// # Errors
    /// [`BuildError`] if the tunnel cannot be opened once there is a certificate.
    pub async fn run(self, client: CaClient, stop: CancellationToken) -> Result<(), BuildError> {
        let Self { gateway, writer, outputs, dns, local, hbone, sni, health, metrics, admin, log } = self;
        let end = CancellationToken::new();
        let sessions = end.child_token();
        let accepting = end.child_token();
        let leaving = end.child_token();
        let running = Running { tasks: TaskTracker::new(), end, sessions, accepting, leaving, stop, gateway };
        let synced = running.gateway.readiness.register("registries");
        let certificate = running.gateway.readiness.register("certificate");

        let source = Arc::new(adapters::admin::Source::new(running.gateway.clone()));
        running.spawn("reload", reload::run(running.gateway.clone(), log.clone(), running.end.clone()));
        let context =
            AdminContext::new(source, running.gateway.readiness.clone(), running.gateway.telemetry.clone(), log);
        let (readiness, telemetry) = (running.gateway.readiness.clone(), running.gateway.telemetry.clone());
        running.spawn("health port", health.run(readiness, telemetry, running.end.clone()));
        running.spawn("metrics port", metrics.run(context.clone(), running.end.clone()));
        running.spawn("admin port", admin.run(context, running.end.clone()));

        let (sender, inputs) = store::queue();
        running.spawn("store", store::run(writer, inputs, running.gateway.clock, running.end.clone()));
        running.spawn("dns", dns.run(running.end.clone()));
        let connections = running.serve_locally(&sender, outputs.clone(), synced);

        let peers = running.enrolled(&client, &sender, &outputs, certificate).await?;
        if let Some(peers) = peers {
            running.spawn("peers", peers.run());
            running.serve_local_port(local)?;
            let (router, revoked, end) =
                (running.gateway.router.clone(), running.gateway.revoked.subscribe(), running.end.clone());
            let mut anchors = running.gateway.anchors.subscribe();
            let following = async move {
                // Who was revoked before this process knew anything is no news.
                anchors.wait_for(Option::is_some).await.map(drop).ok();
                router.deliveries.follow(revoked).await;
            };
            running.spawn("revocations", async move {
                let _ended = end.run_until_cancelled(following).await;
            });
            hbone::serve(&running, hbone, &connections);
            sni::serve(&running, sni, &connections);
            info!(cluster = %running.gateway.settings.cluster, "gateway is up");
            running.stop.cancelled().await;
        }
        running.drain(connections).await;
        Ok(())
    }
}

/// A process that serves: its tasks, and the token that ends them.
struct Running {
    gateway: Arc<Gateway>,
    tasks: TaskTracker,
    /// Ends everything.
    end: CancellationToken,
    /// Ends the federation sessions: they never finish by themselves, so a drain does not wait for them.
    sessions: CancellationToken,
    /// Ends the listeners on virtual addresses.
    accepting: CancellationToken,
    /// Ends connections by name, each at a moment of its own, once those that come are led elsewhere.
    leaving: CancellationToken,
    /// Begins the drain.
    stop: CancellationToken,
}

impl Running {
    /// Owns a task that must not end by itself: if it does, the process drains and ends rather than
    /// going on half alive (invariant I12).
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (end, stop) = (self.end.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            task.await;
            if !end.is_cancelled() && !stop.is_cancelled() {
                error!(task = name, "a task ended that must not: stopping");
                stop.cancel();
            }
        });
    }

    /// Registries, virtual addresses and names: all that needs no peer.
    fn serve_locally(&self, store: &StoreSender, outputs: Outputs, synced: admin::Guard) -> TaskTracker {
        let gateway = &self.gateway;
        let settings = &gateway.settings;
        let statuses = gateway.registries.clone();
        let registries =
            Registries::new(settings.clone(), Warm::Yes, store.clone(), self.tasks.clone(), self.end.clone(), statuses);
        self.spawn("registries", registries.run(gateway.configuration.loaded.clone()));
        self.tasks.spawn(until_synced(gateway.reader.clone(), synced, self.end.clone()));

        let limits = VipLimits::within(file_descriptors());
        let listeners = Listeners::new(gateway.router.clone(), limits, self.tasks.clone(), self.accepting.clone());
        let connections = listeners.connections();
        let frontend = Frontend::new(
            self.addresses(),
            listeners,
            gateway.zone.clone(),
            gateway.telemetry.clone(),
            outputs,
            gateway.wants_shares.subscribe(),
        );
        self.spawn("virtual addresses", frontend.run(gateway.reader.clone(), self.end.clone()));
        connections
    }

    /// Where virtual addresses come from.
    fn addresses(&self) -> Addresses {
        let settings = &self.gateway.settings;
        if let Some(kubernetes) = &settings.kubernetes {
            let (sender, latest) = watch::channel(None);
            let access = adapters::kubernetes_access(Some(&kubernetes.access));
            self.spawn("allocations", addresses::follow(access, sender, self.end.clone()));
            return Addresses::of_controller(latest, settings.state.clone());
        }
        let state = settings.vip.owner.then_some(settings.state.as_path());
        Addresses::Book(VipBook::open(settings.vip.ranges.clone(), state))
    }

    /// Waits for a certificate, then opens the tunnel. `None`: told to stop before there was one.
    async fn enrolled(
        &self,
        client: &CaClient,
        store: &StoreSender,
        outputs: &Outputs,
        certificate: admin::Guard,
    ) -> Result<Option<Peers>, BuildError> {
        let gateway = &self.gateway;
        let settings = &gateway.settings;
        let enrolling = enroll::until_enrolled(client, settings.trust.leaf_ttl);
        let Some((identity, keys)) = self.stop.run_until_cancelled(enrolling).await else { return Ok(None) };
        let identity = IdentityStore::new(identity);
        let clock = gateway.clock;
        let limits = adapters::federation_limits(settings);
        let epoch = clock.started_at().0;
        let exports = Exports::new(
            gateway.reader.clone(),
            limits.clone(),
            epoch,
            clock,
            gateway.telemetry.clone(),
            self.sessions.clone(),
        );
        let inbound = Inbound::new(gateway.router.clone(), Arc::new(exports), settings.limits.bench_seconds_per_hour);
        let replica = ReplicaId::random()?;
        let siblings = watch::Sender::new(Arc::from([]));
        let config = TunnelConfig {
            listen: settings.listen.link,
            cluster: Arc::from(settings.cluster.as_str()),
            replica,
            predecessors: replica::predecessors(&settings.state, replica),
            replicas: replicas::network(gateway, &siblings),
            keys,
            quic_lb: quic_lb::of(settings, std::env::var_os(quic_lb::VARIABLE))?,
            limits: adapters::tunnel_limits(settings, file_descriptors()),
            timing: adapters::timing(settings),
            software_version: adapters::software_version(),
        };
        let observer = LinkLog::new(gateway.telemetry.clone(), gateway.configuration.loaded.clone());
        let world = World { observer: Arc::new(observer), ..World::default() };
        let (handler, trust) = (Arc::new(inbound), gateway.trust.clone());
        let tunnel = Arc::new(Tunnel::bind_in(world, config, identity.clone(), trust, handler)?);
        gateway.router.set_tunnel(tunnel.clone());
        // Each is set here and nowhere else.
        let _set = (gateway.tunnel.set(tunnel.clone()), gateway.identity.set(identity.clone()));
        let following = replicas::follow(gateway.configuration.loaded.clone(), siblings, self.end.clone());
        self.spawn("replicas", following);
        let renewal = enroll::keep_fresh(client.clone(), settings.trust.leaf_ttl, identity, self.end.clone());
        self.spawn("certificate renewal", renewal);
        let anchors = anchors::run(gateway.clone(), tunnel.clone(), client.clone(), self.end.clone());
        self.spawn("anchors", anchors);

        let imports = Imports {
            cluster: settings.cluster.clone(),
            limits,
            store: store.clone(),
            tunnel,
            subscriptions: self.subscriptions(outputs),
            state: settings.state.clone(),
            clock,
            freshness: gateway.freshness.clone(),
            telemetry: gateway.telemetry.clone(),
        };
        let mut peers = Peers::new(gateway.clone(), imports, self.tasks.clone(), self.sessions.clone());
        peers.start().await;
        if settings.kubernetes.is_some() {
            let guard = gateway.readiness.register("peers, for a moment");
            self.tasks.spawn(head_start::give(gateway.clone(), guard, self.end.clone()));
        }
        drop(certificate);
        Ok(Some(peers))
    }

    /// Leaves in order, in bounded time: not ready, peers told, no new connections, streams finish.
    async fn drain(self, connections: TaskTracker) {
        let settings = &self.gateway.settings;
        let (within, led_here) = (settings.link.drain, settings.kubernetes.is_some());
        info!(?within, "draining");
        self.gateway.readiness.set_draining();
        self.sessions.cancel();
        let deadline = Instant::now() + within;
        let grace = if led_here { TAKEN_OUT.min(within) } else { Duration::ZERO };
        let local = async {
            if led_here {
                sleep(grace).await;
            } else {
                self.accepting.cancel();
            }
            self.leaving.cancel();
            connections.close();
            let clean = timeout_at(deadline, connections.wait()).await.is_ok();
            self.accepting.cancel();
            clean
        };
        let mut clean = true;
        match self.gateway.tunnel.get() {
            Some(tunnel) => clean &= tunnel.drain_after(within, grace, async { clean = local.await }).await,
            None => clean = local.await,
        }
        self.end.cancel();
        self.tasks.close();
        if timeout(STOP_TIMEOUT, self.tasks.wait()).await.is_err() {
            warn!("some tasks did not stop in time");
        }
        info!(clean, "stopped");
    }
}

/// Most files that this process may have open.
fn file_descriptors() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

async fn until_synced(mut reader: Reader, synced: admin::Guard, end: CancellationToken) {
    while !reader.load().is_local_synced() {
        match end.run_until_cancelled(reader.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return synced.fail(),
        }
    }
    drop(synced);
}

//! The tunnel as the rest of the gateway uses it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use eastway_identity::{AnchorDer, IdentityStore, TrustStore};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::code::CloseCode;
use crate::config::{PeerTarget, ReplicaId, TunnelConfig};
use crate::header::StreamHeader;
use crate::link::driver::{Environment, GoAwayOrder, HeardAnchors};
use crate::link::{Budget, Link, LinkState, LinkTable};
use crate::manager::{Board, Manager, until_idle};
use crate::metrics::{Counters, PacketLoss, TunnelCounters};
use crate::peers::{PeerCounts, Peers};
use crate::relay::{Relay, RelayRule, RelayStatus};
use crate::replicas::{ForwardingCounters, SiblingStatus};
use crate::status::{PeerStates, PeerStatus};
use crate::stream::StreamHandler;
use crate::transport::quic::{QuicError, QuicTransport};
use crate::transport::tcp::relay::RelayTransport;
use crate::transport::tcp::{self, TcpTransport};
use crate::transport::{Transport, TransportKind};
use crate::world::World;

/// After GOAWAY, streams that were on their way are still served for this long, or two round trips.
const GRACE: Duration = Duration::from_millis(250);
/// And never longer than this.
const MAX_GRACE: Duration = Duration::from_secs(1);

/// Ports that are tried when any will do.
const PORTS: u32 = 16;

/// The tunnel could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// What carries links over UDP.
    #[error(transparent)]
    Quic(#[from] QuicError),
    /// The TCP socket.
    #[error("cannot listen on TCP {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// All links of this gateway.
pub struct Tunnel {
    board: Arc<Board>,
    environment: Arc<Environment>,
    /// The preferred one first; never empty.
    transports: Arc<[Arc<dyn Transport>]>,
    relay: Arc<Relay>,
    local_addr: SocketAddr,
    targets: watch::Sender<Vec<PeerTarget>>,
    live: watch::Sender<Arc<[ReplicaId]>>,
    anchors: watch::Sender<Arc<[AnchorDer]>>,
    draining: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Tunnel {
    /// Opens the sockets, UDP and TCP on the same port, and takes links. Nobody is dialled before [`Tunnel::set_peers`]. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// [`BindError`] if a socket or TLS cannot be set up.
    pub fn bind(
        config: TunnelConfig,
        identity: Arc<IdentityStore>,
        trust: Arc<TrustStore>,
        handler: Arc<dyn StreamHandler>,
    ) -> Result<Self, BindError> {
        Self::bind_in(World::default(), config, identity, trust, handler)
    }

    /// [`Tunnel::bind`] with another clock, other addresses for names, or somebody who is told of links.
    ///
    /// # Errors
    /// As [`Tunnel::bind`].
    pub fn bind_in(
        world: World,
        config: TunnelConfig,
        identity: Arc<IdentityStore>,
        trust: Arc<TrustStore>,
        handler: Arc<dyn StreamHandler>,
    ) -> Result<Self, BindError> {
        let live = alone(&config);
        let (config, listener, quic) = Self::listen(config, &world, &identity, &trust, &live)?;
        let address = config.listen;
        let tcp = TcpTransport::start(
            listener,
            Arc::clone(&config),
            Arc::clone(&identity),
            Arc::clone(&trust),
            Arc::clone(&world.clock),
            Arc::clone(&world.observer),
        );
        let tcp = tcp.map_err(|source| BindError::Tcp { address, source })?;
        let transports: Vec<Arc<dyn Transport>> = vec![Arc::new(quic), Arc::new(tcp)];
        Ok(Self::start(world, config, identity, trust, handler, transports, live))
    }

    /// Both sockets on one port. Which ports are free for one says nothing of the other: of any, some are tried.
    fn listen(
        mut config: TunnelConfig,
        world: &World,
        identity: &Arc<IdentityStore>,
        trust: &Arc<TrustStore>,
        live: &watch::Sender<Arc<[ReplicaId]>>,
    ) -> Result<(Arc<TunnelConfig>, std::net::TcpListener, QuicTransport), BindError> {
        let (address, mut left) = (config.listen, PORTS);
        loop {
            let tcp = |source| BindError::Tcp { address, source };
            let listener = tcp::listen(address).map_err(tcp)?;
            config.listen = listener.local_addr().map_err(tcp)?;
            let shared = Arc::new(config.clone());
            let quic = QuicTransport::bind(
                Arc::clone(&shared),
                Arc::clone(identity),
                Arc::clone(trust),
                Arc::clone(&world.clock),
                Arc::clone(&world.observer),
                live.clone(),
            );
            left -= 1;
            match quic {
                Ok(quic) => return Ok((shared, listener, quic)),
                Err(QuicError::Bind { .. }) if address.port() == 0 && left > 0 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A tunnel on another transport.
    #[must_use]
    pub fn with_transport(
        world: World,
        config: TunnelConfig,
        identity: Arc<IdentityStore>,
        trust: Arc<TrustStore>,
        handler: Arc<dyn StreamHandler>,
        transport: Arc<dyn Transport>,
    ) -> Self {
        let live = alone(&config);
        Self::start(world, Arc::new(config), identity, trust, handler, vec![transport], live)
    }

    fn start(
        world: World,
        config: Arc<TunnelConfig>,
        identity: Arc<IdentityStore>,
        trust: Arc<TrustStore>,
        handler: Arc<dyn StreamHandler>,
        transports: Vec<Arc<dyn Transport>>,
        live: watch::Sender<Arc<[ReplicaId]>>,
    ) -> Self {
        let local_addr = transports.first().map_or(config.listen, |transport| transport.local_addr());
        let relayed = RelayTransport::new(
            Arc::clone(&config),
            Arc::clone(&identity),
            Arc::clone(&trust),
            Arc::clone(&world.clock),
            Arc::clone(&world.observer),
        );
        let relay = Relay::new(Arc::clone(&world.observer), Arc::clone(&relayed));
        let handler = relay.beside(handler);
        let transports: Arc<[Arc<dyn Transport>]> =
            transports.into_iter().chain([Arc::clone(&relayed) as Arc<dyn Transport>]).collect();
        let tasks = TaskTracker::new();
        let (targets, target_receiver) = watch::channel(Vec::new());
        let (draining, stop) = (CancellationToken::new(), CancellationToken::new());
        let anchors = watch::Sender::new(Arc::from([]));
        let links_per_peer = usize::from(config.limits.links_per_peer);
        let cluster = Arc::clone(&config.cluster);
        let kinds = transports.iter().map(|transport| transport.kind()).collect();
        let peers = Peers::new(cluster, config.replica, config.timing, links_per_peer, kinds, fastrand::Rng::new());
        let board = Arc::new(Board {
            peers: Mutex::new(peers),
            links: Mutex::default(),
            table: ArcSwap::default(),
            states: watch::Sender::new(Arc::default()),
        });
        relayed.set_board(&board);
        relay.set_board(&board);
        let environment = Arc::new(Environment {
            budget: Budget::new(config.limits.total_window),
            config,
            identity,
            trust,
            clock: world.clock,
            resolver: world.resolver,
            observer: world.observer,
            handler,
            counters: Arc::new(Counters::default()),
            loads: Arc::default(),
            stream_counts: PeerCounts::default(),
            start_counts: PeerCounts::default(),
            live: live.subscribe(),
            anchors: anchors.subscribe(),
            heard: watch::Sender::default(),
            tasks: tasks.clone(),
            next_link: AtomicU64::new(0),
            epoch: Instant::now(),
        });
        let manager = Manager {
            environment: Arc::clone(&environment),
            transports: Arc::clone(&transports),
            board: Arc::clone(&board),
            targets: target_receiver,
            draining: draining.clone(),
            stop: stop.clone(),
        };
        tasks.spawn(manager.run());
        Self { board, environment, transports, relay, local_addr, targets, live, anchors, draining, stop, tasks }
    }

    /// Where links are taken.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Receive buffer of the socket where links are taken, bytes: what the system granted, in the measure of
    /// `net.core.rmem_max`. `None` if the transport has no socket.
    #[must_use]
    pub fn receive_buffer(&self) -> Option<u64> {
        self.transports.iter().find_map(|transport| transport.receive_buffer())
    }

    /// Replaces the peers that links shall exist to; what stays the same is not disturbed, and links to
    /// peers that are gone are closed at once. Latest wins. The trust store decides who is accepted.
    pub fn set_peers(&self, peers: Vec<PeerTarget>) {
        self.targets.send_replace(peers);
    }

    /// Replaces the pairs of peers that pipes are carried between. What stays the same is not disturbed; pipes of others
    /// are cut.
    pub fn set_relay(&self, rules: Vec<RelayRule>) {
        self.relay.set_rules(rules);
    }

    /// For whom pipes are carried, and how much.
    #[must_use]
    pub fn relayed(&self) -> Vec<RelayStatus> {
        self.relay.status()
    }

    /// Sets the live replicas of this cluster's gateway. Peers are told. With [`TunnelConfig::replicas`] the tunnel
    /// finds them itself, and sets them anew whenever they change.
    pub fn set_live_replicas(&self, replicas: &[ReplicaId]) {
        let mut all = replicas.to_vec();
        all.push(self.environment.config.replica);
        all.sort_unstable();
        all.dedup();
        self.live.send_if_modified(|live| {
            let changed = **live != *all;
            if changed {
                *live = all.into();
            }
            changed
        });
    }

    /// Sets what this trust domain is known by. Peers are told.
    pub fn set_anchors(&self, anchors: Arc<[AnchorDer]>) {
        self.anchors.send_if_modified(|told| {
            let changed = *told != anchors;
            *told = anchors;
            changed
        });
    }

    /// What peers said that their trust domains are known by, from now on; not checked.
    #[must_use]
    pub fn heard_anchors(&self) -> watch::Receiver<Arc<HeardAnchors>> {
        self.environment.heard.subscribe()
    }

    /// The runtimes to serve connections in whose streams are still to be opened. None: any will do.
    #[must_use]
    pub fn homes(&self) -> Vec<Handle> {
        self.transports.iter().flat_map(|transport| transport.homes()).collect()
    }

    /// The links that streams may be opened on. One load, no waiting: for the path of every connection.
    #[must_use]
    pub fn links(&self) -> Guard<Arc<LinkTable>> {
        self.board.table.load()
    }

    /// The link for a stream that is expected to move much, if there is one for those beside that for all, and it takes
    /// one at once. What is expected is what streams to the same service did.
    #[must_use]
    pub fn bulk_link(&self, peer: &str, header: &StreamHeader) -> Option<Link> {
        let table = self.board.table.load();
        let links = table.bulk_to(peer);
        if links.is_empty() {
            return None;
        }
        let loads = &self.environment.loads;
        let expected = loads.of(header).is_some_and(|load| loads.expects_much(load));
        let usable = links.iter().filter(|link| expected && link.is_usable() && link.is_fresh() && link.is_ready());
        usable.min_by_key(|link| link.in_flight()).cloned()
    }

    /// Which peers can be reached, from now on: latest wins, nothing is queued.
    #[must_use]
    pub fn events(&self) -> watch::Receiver<Arc<PeerStates>> {
        self.board.states.subscribe()
    }

    /// All peers and their links, by name.
    #[must_use]
    pub fn status(&self) -> Vec<PeerStatus> {
        // In this order: a link that ends meanwhile must not be counted twice.
        let peers = self.board.peers();
        let links = self.board.all_links();
        peers.iter().map(|(name, peer)| PeerStatus::new(name, peer, &links)).collect()
    }

    /// The other replicas of this cluster that answer, draining ones included.
    #[must_use]
    pub fn siblings(&self) -> Vec<SiblingStatus> {
        self.transports.iter().flat_map(|transport| transport.siblings()).collect()
    }

    /// Where other replicas of this cluster should be heard, by configuration, and are not.
    #[must_use]
    pub fn silent_siblings(&self) -> Vec<SocketAddr> {
        self.transports.iter().flat_map(|transport| transport.silent_siblings()).collect()
    }

    /// The replicas of this cluster that peers are told of.
    #[must_use]
    pub fn live_replicas(&self) -> Arc<[ReplicaId]> {
        Arc::clone(&self.live.borrow())
    }

    /// Where the other replicas of this cluster are heard; `None`: nowhere.
    #[must_use]
    pub fn replicas_addr(&self) -> Option<SocketAddr> {
        self.transports.iter().find_map(|transport| transport.replicas_addr())
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counters(&self) -> TunnelCounters {
        let failures = self.transports.iter().flat_map(|transport| transport.handshake_failures());
        let mut counts = BTreeMap::new();
        failures.for_each(|(label, count)| *counts.entry(label).or_default() += count);
        // Packets between replicas are those of one transport.
        let forwarding = self.transports.iter().map(|transport| transport.forwarding());
        let forwarding = forwarding.into_iter().find(|counters| *counters != ForwardingCounters::default());
        let mut counters = self.environment.counters.snapshot(counts, forwarding.unwrap_or_default());
        let live = self.board.all_links().into_iter().filter(|link| link.0.state() != LinkState::Closed);
        let dropped: u64 = live.map(|link| link.0.connection.path().dropped_datagrams).sum();
        if dropped > 0 {
            *counters.flow_packets_lost.entry(PacketLoss::Path.name()).or_default() += dropped;
        }
        counters
    }

    /// Leaves in order: peers are told to open nothing new here, what is open may finish until `within`, late
    /// streams get `DRAINING`, no link is taken or dialled any more. Then everything is closed. Returns
    /// whether every stream had ended.
    pub async fn drain(&self, within: Duration) -> bool {
        self.drain_after(within, Duration::ZERO, std::future::ready(())).await
    }

    /// As [`Tunnel::drain`], but this side goes on opening streams until `last` is over, and takes those of peers for
    /// `grace` if that is longer: a peer that has no link to another replica has time to get one.
    pub async fn drain_after(&self, within: Duration, grace: Duration, last: impl Future<Output = ()>) -> bool {
        self.draining.cancel();
        self.transports.iter().for_each(|transport| transport.set_draining());
        let deadline = Instant::now() + within;
        let rtt = self.board.all_links().iter().map(Link::rtt).max().unwrap_or_default();
        let under_way = (rtt * 2).max(GRACE).min(MAX_GRACE).min(within);
        let close = within + self.environment.config.timing.close;
        let grace = under_way.max(grace.min(within));
        let order = GoAwayOrder { reason: "shutting down", grace, within: Some(close), close_when_idle: false };
        self.board.order_all(order);
        let last = async { drop(tokio::time::timeout_at(deadline, last).await) };
        tokio::join!(tokio::time::sleep(under_way), last);
        let clean = until_idle(&self.board, deadline).await;
        self.close().await;
        clean
    }

    /// Closes everything at once and waits, for a bounded time, until peers were told.
    pub async fn close(&self) {
        self.close_saying("shutting down").await;
    }

    /// As [`Tunnel::close`], of a process that does not wait for its streams: peers read so in their logs.
    pub async fn cut(&self) {
        self.close_saying("stopped at once, its streams are cut").await;
    }

    async fn close_saying(&self, message: &str) {
        self.draining.cancel();
        let mut links = self.board.all_links();
        // Links that others carry first: what they say goes by those.
        links.sort_by_key(|link| link.0.connection.kind() != TransportKind::Relay);
        for link in links {
            link.0.connection.close(CloseCode::Done, message);
        }
        self.stop.cancel();
        self.tasks.close();
        let ended = async {
            let transports = futures_util::future::join_all(self.transports.iter().map(|transport| transport.close()));
            tokio::join!(transports, self.tasks.wait());
        };
        if tokio::time::timeout(self.environment.config.timing.close, ended).await.is_err() {
            tracing::warn!("Links were closed, but not all of their tasks ended in time");
        }
    }
}

/// The live replicas before any other is known.
fn alone(config: &TunnelConfig) -> watch::Sender<Arc<[ReplicaId]>> {
    watch::Sender::new(Arc::from([config.replica]))
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.draining.cancel();
        self.stop.cancel();
    }
}

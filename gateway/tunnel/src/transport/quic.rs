//! Links over QUIC v1: the protocol is quinn-proto's, system calls for trains of packets are quinn-udp's, and what is
//! between them is here. Both are known here and nowhere else. ADR 0019 says why there is no driver of others.
//!
//! - [`workers`]: threads, on each of which some connections live;
//! - [`udp`]: one socket; [`port`]: a port with its connections; [`drive`]: one connection; [`stream`]s of it; [`again`]: what
//!   is sent twice.
//!
//! One port takes links; each dial has one of its own, because a port whose conntrack entry went stale stays a black
//! hole as long as it is used; a link leaves such a port, too, see [`hop`]. Nothing is left at a default that a peer
//! could profit from; see [`config`].

mod again;
mod cid;
mod config;
mod congestion;
mod connection;
mod datagrams;
mod drive;
mod floor;
mod forward;
mod handshake;
mod hop;
mod inlets;
mod lanes;
mod port;
mod socket;
mod stream;
mod udp;
mod workers;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eastway_identity::{Clock, IdentityStore, TrustStore, tls};
use quinn_proto::{Endpoint, EndpointConfig};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::cid::ConnectionIdKey;
pub use self::cid::lb::{QuicLb, QuicLbError};
use self::config::Way;
use self::congestion::Lossy;
use self::forward::Forwarding;
use self::handshake::{Failures, Handshakes};
use self::lanes::Joinable;
use self::port::Port;
use self::udp::Udp;
use self::workers::Workers;
use super::{BoxFuture, DialError, Established, Side, Transport, TransportKind};
use crate::code::CloseCode;
use crate::config::{ReplicaId, TunnelConfig};
use crate::events::Observer;
use crate::replicas::network::Network;
use crate::replicas::paths::is_path;
use crate::replicas::{ForwardingCounters, SiblingStatus};

/// Pause before a listener that ended is opened again.
const REBIND_PAUSE: Duration = Duration::from_millis(200);
/// Established connections that may wait to be taken over.
const ACCEPT_QUEUE: usize = 64;

/// What this transport shares with its connections.
struct Shared {
    config: Arc<TunnelConfig>,
    identity: Arc<IdentityStore>,
    trust: Arc<TrustStore>,
    clock: Clock,
    endpoint: Arc<EndpointConfig>,
    workers: Workers,
    /// The other replicas of this cluster.
    network: Option<Arc<Network>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Links have ended: siblings may be told so.
    ended: CancellationToken,
    failures: Failures,
    observer: Arc<dyn Observer>,
    /// Handshakes of others under way.
    handshakes: Arc<Semaphore>,
    /// Where paths lose packets.
    lossy: Arc<Lossy>,
    /// Links that lanes may join.
    joinable: Joinable,
    /// What the socket that takes links was granted, bytes; 0: not known.
    receive_buffer: AtomicU64,
}

/// Takes and dials links over UDP.
pub(crate) struct QuicTransport {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    accepted: Mutex<mpsc::Receiver<Established>>,
}

/// The transport could not start.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The UDP socket.
    #[error("cannot listen on UDP {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The UDP socket between replicas.
    #[error("cannot listen on UDP {address} for the other replicas")]
    Replicas {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The threads that carry links.
    #[error("cannot start the threads for links")]
    Threads(#[source] io::Error),
    /// The TLS configuration.
    #[error("cannot set up TLS for links")]
    Tls(#[source] rustls::Error),
    /// The provider lacks what QUIC needs for its first packets.
    #[error("the crypto provider lacks TLS_AES_128_GCM_SHA256, which QUIC needs")]
    InitialSuite,
    /// A limit or a time that QUIC cannot express.
    #[error("a limit or a time of the tunnel is out of range")]
    OutOfRange,
}

impl QuicTransport {
    pub(crate) fn bind(
        config: Arc<TunnelConfig>,
        identity: Arc<IdentityStore>,
        trust: Arc<TrustStore>,
        clock: Clock,
        observer: Arc<dyn Observer>,
        live: watch::Sender<Arc<[ReplicaId]>>,
    ) -> Result<Self, QuicError> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let network = config.replicas.as_ref().map(|replicas| {
            let address = replicas.listen;
            let network = Network::bind(address, config.replica, &config.keys);
            network.map(Arc::new).map_err(|source| QuicError::Replicas { address, source })
        });
        let network = network.transpose()?;
        let shared = Arc::new(Shared {
            endpoint: Arc::new(config::endpoint(&config, network.as_ref())?),
            workers: Workers::start(config.limits.workers, &tasks, &stop).map_err(QuicError::Threads)?,
            handshakes: Arc::new(Semaphore::new(usize::from(config.limits.handshakes))),
            network,
            config,
            identity,
            trust,
            clock,
            tasks,
            stop,
            ended: CancellationToken::new(),
            failures: Failures::default(),
            observer,
            lossy: Arc::default(),
            joinable: Joinable::default(),
            receive_buffer: AtomicU64::new(0),
        });
        let listen = shared.config.listen;
        let (sender, accepted) = mpsc::channel(ACCEPT_QUEUE);
        let port = shared.listen(listen, &sender)?;
        let local_addr = port.socket().local_addr();
        shared.tasks.spawn(supervise(Arc::clone(&shared), port, sender));
        if let (Some(network), Some(replicas)) = (&shared.network, &shared.config.replicas) {
            // Packets are handed over until the last link has ended.
            let run = Arc::clone(network).run(replicas.clone(), live, shared.ended.clone());
            shared.tasks.spawn(run);
        }
        Ok(Self { shared, local_addr, accepted: Mutex::new(accepted) })
    }
}

impl Transport for QuicTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Quic
    }

    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    fn dial(&self, peer: Arc<str>, remote: SocketAddr) -> BoxFuture<'static, Result<Established, DialError>> {
        Box::pin(handshake::dial(Arc::clone(&self.shared), peer, remote))
    }

    fn homes(&self) -> Vec<Handle> {
        self.shared.workers.all().cloned().collect()
    }

    fn accept(&self) -> BoxFuture<'_, Option<Established>> {
        Box::pin(async { self.accepted.lock().await.recv().await })
    }

    fn receive_buffer(&self) -> Option<u64> {
        Some(self.shared.receive_buffer.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    fn handshake_failures(&self) -> Vec<(&'static str, u64)> {
        self.shared.failures.counts()
    }

    fn set_draining(&self) {
        if let Some(network) = &self.shared.network {
            network.set_draining();
        }
    }

    fn siblings(&self) -> Vec<SiblingStatus> {
        self.shared.network.as_ref().map(|network| network.siblings()).unwrap_or_default()
    }

    fn silent_siblings(&self) -> Vec<SocketAddr> {
        self.shared.network.as_ref().map(|network| network.silent()).unwrap_or_default()
    }

    fn replicas_addr(&self) -> Option<SocketAddr> {
        self.shared.network.as_ref().map(|network| network.local_addr())
    }

    fn forwarding(&self) -> ForwardingCounters {
        self.shared.network.as_ref().map(|network| network.counters()).unwrap_or_default()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.stop.cancel();
            self.shared.tasks.close();
            self.shared.tasks.wait().await;
        })
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
    }
}

impl Shared {
    fn listen(
        self: &Arc<Self>,
        address: SocketAddr,
        accepted: &mpsc::Sender<Established>,
    ) -> Result<Arc<Port>, QuicError> {
        let server = self.server_config()?;
        let socket = socket::listening(address, self.config.limits.socket_buffer).and_then(|socket| {
            self.receive_buffer.store(socket::receive_buffer(&socket).unwrap_or(0), Ordering::Relaxed);
            Udp::new(socket, self.workers.next())
        });
        let socket = Arc::new(socket.map_err(|source| QuicError::Bind { address, source })?);
        let forwarding = self.network.as_ref().map(|network| {
            let key = ConnectionIdKey::new(&self.config.keys.connection_id, self.config.quic_lb.as_ref());
            Forwarding::new(Arc::clone(&socket), Arc::clone(network), key, self.config.replica.short())
        });
        let server = Arc::new(server);
        let (config, whole) = (Arc::clone(&self.endpoint), !socket.may_fragment());
        let endpoint = Endpoint::new(config, Some(Arc::clone(&server)), whole, None);
        let handshakes = Handshakes::new(Arc::clone(self), server, accepted.clone());
        Ok(Port::listening(endpoint, socket, forwarding, handshakes, self.tasks.clone(), Arc::clone(&self.lossy)))
    }

    fn server_config(&self) -> Result<quinn_proto::ServerConfig, QuicError> {
        let (identity, trust) = (Arc::clone(&self.identity), Arc::clone(&self.trust));
        let tls = tls::server_config(identity, trust, Arc::clone(&self.clock)).map_err(QuicError::Tls)?;
        let mut tls = rustls::ServerConfig::clone(&tls);
        tls.alpn_protocols = [lanes::LANE, lanes::LINK, tls::ALPN].map(<[u8]>::to_vec).to_vec();
        config::server(&self.config, Arc::new(tls))
    }

    /// What is known of the way to `remote`.
    fn way(&self, remote: SocketAddr) -> Way {
        // By way of another replica: what the network between them takes is not known.
        let datagram = if is_path(&remote) { None } else { socket::largest_payload(remote) };
        Way { remote: remote.ip(), datagram, lossy: Arc::clone(&self.lossy) }
    }

    /// How connections behave that `remote` begins.
    fn transport_for(&self, remote: SocketAddr) -> Result<Arc<quinn_proto::TransportConfig>, QuicError> {
        config::transport(&self.config, Side::Acceptor, self.way(remote)).map(Arc::new)
    }

    fn client_config(
        &self,
        peer: Arc<str>,
        remote: SocketAddr,
        protocols: &[&[u8]],
    ) -> Result<quinn_proto::ClientConfig, QuicError> {
        let (identity, trust) = (Arc::clone(&self.identity), Arc::clone(&self.trust));
        let tls = tls::client_config(identity, trust, Arc::clone(&self.clock), peer).map_err(QuicError::Tls)?;
        let mut tls = rustls::ClientConfig::clone(&tls);
        tls.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config::client(&self.config, Arc::new(tls), self.way(remote))
    }
}

/// Keeps the listener alive: should its socket fail, or whoever reads it panic, it is opened again. Its connections are
/// lost then, and the peers learn it by stateless resets.
async fn supervise(shared: Arc<Shared>, port: Arc<Port>, accepted: mpsc::Sender<Established>) {
    let _ended = shared.ended.clone().drop_guard();
    let address = port.socket().local_addr();
    let mut port = Some(port);
    while !shared.stop.is_cancelled() {
        if let Some(port) = port.take() {
            let _dead = port.dead.clone().drop_guard();
            let ended = serve(&shared, &port);
            if shared.stop.run_until_cancelled(ended).await.is_none() {
                for conn in port.connections() {
                    conn.close(CloseCode::Done, "shutting down");
                }
                port.idle().await;
                return;
            }
            tracing::error!(%address, "The listener for links ended; opening it again");
            shared.network.iter().for_each(|network| network.close_outlet());
            // Its port is not free while anybody has its socket.
            port.dead.cancel();
            port.idle().await;
        }
        if shared.stop.run_until_cancelled(tokio::time::sleep(REBIND_PAUSE)).await.is_none() {
            return;
        }
        match shared.listen(address, &accepted) {
            Ok(opened) => port = Some(opened),
            Err(error) => tracing::error!(%address, %error, "The listener for links cannot be opened yet"),
        }
    }
}

/// Reads the port where links are taken, until that fails.
async fn serve(shared: &Shared, port: &Arc<Port>) {
    let home = port.socket().home().clone();
    let reader = Arc::clone(port);
    let reading = shared.tasks.spawn_on(
        async move {
            let socket = reader.socket();
            let error = reader.dead.run_until_cancelled(inlets::read_strangers(&reader, &socket)).await;
            tracing::debug!(?error, "The listener for links is no longer read");
        },
        &home,
    );
    if let Some(taker) = port.forwarding().map(|_| Arc::clone(port)) {
        let until = port.dead.clone();
        let take = async move {
            if let Some(forwarding) = taker.forwarding() {
                until.run_until_cancelled(forwarding.take_all(&taker)).await;
            }
        };
        shared.tasks.spawn_on(take, &home);
    }
    reading.await.ok();
}

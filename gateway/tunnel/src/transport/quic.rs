//! Links over QUIC v1 with quinn's own driver. quinn is known here and nowhere else.
//!
//! One endpoint takes links; each dial has an endpoint and so a UDP port of its own, because a port whose
//! conntrack entry went stale stays a black hole as long as it is used; a link leaves such a port, too, see
//! [`hop`]. Nothing is left at quinn's defaults that a peer could profit from; see [`config`].

mod cid;
mod config;
mod connection;
mod floor;
mod forward;
mod handshake;
mod hop;
mod lanes;
mod runtime;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use eastway_identity::{Clock, IdentityStore, TrustStore, tls};
use quinn::AsyncUdpSocket;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::cid::ConnectionIdKey;
pub use self::cid::lb::{QuicLb, QuicLbError};
use self::forward::ForwardingSocket;
use self::handshake::{Failures, Handshakes};
use self::lanes::Lanes;
use self::runtime::TrackedRuntime;
use super::{BoxFuture, DialError, Established, Transport, TransportKind};
use crate::code::CloseCode;
use crate::config::{ReplicaId, TunnelConfig};
use crate::events::Observer;
use crate::replicas::network::Network;
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
    endpoint: quinn::EndpointConfig,
    runtime: Arc<TrackedRuntime>,
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
    /// The socket that takes links, with those of links.
    lanes: ArcSwapOption<Lanes>,
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
        let tasks = TaskTracker::new();
        let network = config.replicas.as_ref().map(|replicas| {
            let address = replicas.listen;
            let network = Network::bind(address, config.replica, &config.keys);
            network.map(Arc::new).map_err(|source| QuicError::Replicas { address, source })
        });
        let network = network.transpose()?;
        let shared = Arc::new(Shared {
            endpoint: config::endpoint(&config, network.as_ref())?,
            runtime: Arc::new(TrackedRuntime::new(tasks.clone())),
            handshakes: Arc::new(Semaphore::new(usize::from(config.limits.handshakes))),
            network,
            config,
            identity,
            trust,
            clock,
            tasks,
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
            failures: Failures::default(),
            observer,
            lanes: ArcSwapOption::empty(),
            receive_buffer: AtomicU64::new(0),
        });
        let listen = shared.config.listen;
        let endpoint = shared.listen(listen)?;
        let local_addr = endpoint.local_addr().map_err(|source| QuicError::Bind { address: listen, source })?;
        let (sender, accepted) = mpsc::channel(ACCEPT_QUEUE);
        shared.tasks.spawn(supervise(Arc::clone(&shared), endpoint, local_addr, sender));
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
    }
}

impl Shared {
    fn listen(&self, address: SocketAddr) -> Result<quinn::Endpoint, QuicError> {
        let server = self.server_config()?;
        socket::listening(address, self.config.limits.socket_buffer)
            .and_then(|socket| {
                self.receive_buffer.store(socket::receive_buffer(&socket).unwrap_or(0), Ordering::Relaxed);
                let runtime = Arc::clone(&self.runtime) as Arc<dyn quinn::Runtime>;
                let lanes = Lanes::new(runtime.wrap_udp_socket(socket)?)?;
                self.lanes.store(Some(Arc::clone(&lanes)));
                let socket = self.forwarding(lanes);
                quinn::Endpoint::new_with_abstract_socket(self.endpoint.clone(), Some(server), socket, runtime)
            })
            .map_err(|source| QuicError::Bind { address, source })
    }

    /// The socket that takes links, among other replicas.
    fn forwarding(&self, socket: Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket> {
        let Some(network) = &self.network else { return socket };
        let key = ConnectionIdKey::new(&self.config.keys.connection_id, self.config.quic_lb.as_ref());
        Arc::new(ForwardingSocket::new(socket, Arc::clone(network), key, self.config.replica.short()))
    }

    fn server_config(&self) -> Result<quinn::ServerConfig, QuicError> {
        let (identity, trust) = (Arc::clone(&self.identity), Arc::clone(&self.trust));
        let tls = tls::server_config(identity, trust, Arc::clone(&self.clock)).map_err(QuicError::Tls)?;
        config::server(&self.config, tls)
    }

    fn client_config(&self, peer: Arc<str>) -> Result<quinn::ClientConfig, QuicError> {
        let (identity, trust) = (Arc::clone(&self.identity), Arc::clone(&self.trust));
        let tls = tls::client_config(identity, trust, Arc::clone(&self.clock), peer).map_err(QuicError::Tls)?;
        config::client(&self.config, tls)
    }
}

/// Keeps the listener alive: should quinn's driver end, by an I/O error or a panic, it is opened again. Its
/// connections are lost then, and the peers learn it by stateless resets.
async fn supervise(
    shared: Arc<Shared>,
    endpoint: quinn::Endpoint,
    address: SocketAddr,
    accepted: mpsc::Sender<Established>,
) {
    let _ended = shared.ended.clone().drop_guard();
    let mut endpoint = Some(endpoint);
    while !shared.stop.is_cancelled() {
        if let Some(endpoint) = endpoint.take() {
            Handshakes::new(Arc::clone(&shared), accepted.clone()).accept_all(&endpoint).await;
            // Its port is not free while anybody has its socket: neither for another listener nor when all is closed.
            shared.lanes.store(None);
            if shared.stop.is_cancelled() {
                let done = quinn::VarInt::from_u32(CloseCode::Done.to_wire());
                endpoint.close(done, b"shutting down");
                endpoint.wait_idle().await;
                return;
            }
            tracing::error!(%address, "The listener for links ended; opening it again");
            shared.network.iter().for_each(|network| network.close_outlet());
        }
        if shared.stop.run_until_cancelled(tokio::time::sleep(REBIND_PAUSE)).await.is_none() {
            return;
        }
        match shared.listen(address) {
            Ok(opened) => endpoint = Some(opened),
            Err(error) => tracing::error!(%address, %error, "The listener for links cannot be opened yet"),
        }
    }
}

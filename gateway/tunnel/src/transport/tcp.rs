//! Links over TLS 1.3 on TCP, for where UDP does not pass.
//!
//! A link is a control connection and, for each stream, a TLS connection of its own: plain records, so that the end of a
//! stream, its flow control and its losses are TCP's. See [`preface`] for what a connection says first, [`frames`] for
//! what crosses on the control connection, [`flow`] for streams and [`dial`] for the connections that wait to become
//! some. Only the dialler connects; streams of the acceptor take connections that the dialler keeps for them.

mod accept;
mod control;
pub mod decoders;
mod dial;
mod flow;
mod frames;
mod link;
mod losses;
mod pipe;
mod pool;
mod preface;
mod proxy;
pub(crate) mod relay;
mod session;
mod shared;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};

use eastway_identity::{CertificateDer, Clock, IdentityStore, TrustStore, VerifiedPeer, VerifyError};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::link::{LinkCore, lock};
use self::pipe::{Connector, Direct};
use self::preface::LinkId;
use self::proxy::Through;
use self::session::Session;
use self::shared::Sharing;
use super::{BoxFuture, DialError, Established, Transport, TransportKind};
use crate::config::{HostPort, TcpWay, TunnelConfig};
use crate::events::Observer;
use crate::peers::PeerCounts;

/// Established connections that may wait to be taken over.
const ACCEPT_QUEUE: usize = 64;
/// Connections that the system keeps until they are looked at.
const BACKLOG: i32 = 1_024;

/// What this transport shares with its connections.
struct Shared {
    config: Arc<TunnelConfig>,
    identity: Arc<IdentityStore>,
    trust: Arc<TrustStore>,
    clock: Clock,
    observer: Arc<dyn Observer>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Handshakes of others under way.
    handshakes: Arc<Semaphore>,
    /// Links that others dialled, for the connections that belong to them.
    links: Mutex<HashMap<LinkId, Weak<LinkCore>>>,
    failures: Mutex<BTreeMap<&'static str, u64>>,
    /// Connections of each peer.
    flows: PeerCounts,
    /// And those of them that are shared.
    carriers: PeerCounts,
}

/// Takes and dials links over TCP.
pub(crate) struct TcpTransport {
    gate: Gate,
    local_addr: SocketAddr,
}

/// What a transport has of which links are made of pipes. Dropped, it ends everything.
struct Gate {
    shared: Arc<Shared>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Established>>,
}

impl Gate {
    /// And where what is established is put.
    fn new(shared: Arc<Shared>) -> (Self, mpsc::Sender<Established>) {
        let (sender, accepted) = mpsc::channel(ACCEPT_QUEUE);
        (Self { shared, accepted: tokio::sync::Mutex::new(accepted) }, sender)
    }

    async fn accept(&self) -> Option<Established> {
        self.accepted.lock().await.recv().await
    }

    fn handshake_failures(&self) -> Vec<(&'static str, u64)> {
        lock(&self.shared.failures).iter().map(|(label, count)| (*label, *count)).collect()
    }

    /// Ends everything, and waits until it has.
    async fn close(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl TcpTransport {
    /// Takes links on `listener`, as [`listen`] opened it.
    ///
    /// # Errors
    /// The system does not let the runtime watch the listener, or the provider lacks TLS 1.3.
    pub(crate) fn start(
        listener: std::net::TcpListener,
        config: Arc<TunnelConfig>,
        identity: Arc<IdentityStore>,
        trust: Arc<TrustStore>,
        clock: Clock,
        observer: Arc<dyn Observer>,
    ) -> io::Result<Self> {
        let local_addr = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        let shared = Shared::new(config, identity, trust, clock, observer);
        let (gate, sender) = Gate::new(Arc::clone(&shared));
        shared.spawn(accept::run(Arc::clone(&shared), listener, sender));
        Ok(Self { gate, local_addr })
    }
}

/// Opens the listener for links on `address`; an unspecified IPv6 address takes IPv4 too.
///
/// # Errors
/// What the system says.
pub(crate) fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Connections of the last process may still be on their way out.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Transport for TcpTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Tcp
    }

    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    fn dial(&self, peer: Arc<str>, remote: SocketAddr) -> BoxFuture<'static, Result<Established, DialError>> {
        let connector: Arc<dyn Connector> = Arc::new(Direct::new(remote));
        Box::pin(dial::dial(Arc::clone(&self.gate.shared), peer, connector))
    }

    fn dial_by(
        &self,
        peer: Arc<str>,
        remote: SocketAddr,
        host: HostPort,
        way: TcpWay,
    ) -> BoxFuture<'static, Result<Established, DialError>> {
        let mut connector: Arc<dyn Connector> = match way.proxy {
            Some(proxy) => Arc::new(Through::new(proxy, remote, host)),
            None => Arc::new(Direct::new(remote)),
        };
        if let Some(most) = way.max_connections {
            connector = Arc::new(Sharing::new(Arc::clone(&self.gate.shared), Arc::clone(&peer), connector, most));
        }
        Box::pin(dial::dial(Arc::clone(&self.gate.shared), peer, connector))
    }

    fn accept(&self) -> BoxFuture<'_, Option<Established>> {
        Box::pin(self.gate.accept())
    }

    fn handshake_failures(&self) -> Vec<(&'static str, u64)> {
        self.gate.handshake_failures()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.gate.close())
    }
}

impl Shared {
    fn new(
        config: Arc<TunnelConfig>,
        identity: Arc<IdentityStore>,
        trust: Arc<TrustStore>,
        clock: Clock,
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        Arc::new(Self {
            handshakes: Arc::new(Semaphore::new(usize::from(config.limits.handshakes))),
            config,
            identity,
            trust,
            clock,
            observer,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            links: Mutex::default(),
            failures: Mutex::default(),
            flows: PeerCounts::default(),
            carriers: PeerCounts::default(),
        })
    }

    /// Runs `task` until it ends or the transport stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Who is on the other side of a finished handshake. TLS has verified the chain; here it is judged again for the
    /// name, and because the Peers may have changed meanwhile.
    fn identify(
        &self,
        session: &Session,
        protocol: &[u8],
        expected: Option<&str>,
    ) -> Result<(VerifiedPeer, Chain), Failure> {
        if session.tls().alpn_protocol() != Some(protocol) {
            return Err(Failure::Alpn);
        }
        let chain: Chain = session.tls().peer_certificates().unwrap_or_default().to_vec();
        let chain: Chain = chain.into_iter().map(CertificateDer::into_owned).collect();
        let peer = self.trust.verify(&chain, (self.clock)(), expected).map_err(Failure::Untrusted)?;
        Ok((peer, chain))
    }
}

/// A chain of certificates, leaf first.
type Chain = Vec<CertificateDer<'static>>;

/// Why a handshake came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    #[error("too many handshakes are under way")]
    TooMany,
    #[error("the handshake did not finish in time")]
    Timeout,
    #[error("the other side does not speak the protocol of links by TCP")]
    Alpn,
    #[error("our certificate was renewed during the handshake")]
    Renewed,
    #[error("the other side {0}")]
    Untrusted(VerifyError),
    #[error("the other side refuses us: {0}")]
    RefusedUs(String),
    #[error("a connection of a link that is not here")]
    UnknownLink,
    #[error("on a connection that is shared, {0}")]
    Request(String),
    #[error("on a connection that is shared: {0}")]
    Http(String),
    #[error("{0}")]
    Other(String),
}

impl Failure {
    fn label(&self) -> &'static str {
        match self {
            Self::TooMany => "TOO_MANY",
            Self::Timeout => "TIMEOUT",
            Self::Alpn => "ALPN",
            Self::Renewed => "RENEWED",
            Self::Untrusted(error) => error.reason().as_str(),
            Self::RefusedUs(_) => "REFUSED_US",
            Self::UnknownLink => "UNKNOWN_LINK",
            Self::Request(_) => "REQUEST",
            Self::Http(_) => "HTTP2",
            Self::Other(_) => "TRANSPORT",
        }
    }
}

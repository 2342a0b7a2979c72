//! From a first packet to an authenticated connection, in both directions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use eastway_identity::{CertificateDer, TrustStore, VerifiedPeer, VerifyError, tls};
use quinn_proto::crypto::rustls::HandshakeData;
use quinn_proto::{ConnectionError, Endpoint, Incoming, ServerConfig, TransportErrorCode};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::connection::{Held, QuicConnection, canonical, is_alert, words};
use super::drive::Conn;
use super::hop::{self, Readers};
use super::port::Port;
use super::udp::Udp;
use super::{Shared, floor, inlets, lanes, socket};
use crate::code::CloseCode;
use crate::control::printable;
use crate::events::Event;
use crate::transport::{Connection, DialError, Established, Side};

/// TLS alert `no_application_protocol` (RFC 7301 §3.2).
const NO_APPLICATION_PROTOCOL: u8 = 120;
/// TLS alert `access_denied`: what our server says to a client whose protocols do not include ours, before it
/// comes to show a certificate.
const ACCESS_DENIED: u8 = 49;

/// Takes connections of others.
pub(super) struct Handshakes {
    shared: Arc<Shared>,
    server: Arc<ServerConfig>,
    accepted: mpsc::Sender<Established>,
}

impl Handshakes {
    pub(super) fn new(shared: Arc<Shared>, server: Arc<ServerConfig>, accepted: mpsc::Sender<Established>) -> Self {
        Self { shared, server, accepted }
    }

    /// Nothing is kept for an address before it has proved that it receives what is sent there (I9).
    pub(super) fn take(&self, port: &Arc<Port>, incoming: Incoming) {
        let remote = canonical(incoming.remote_address());
        if !incoming.remote_address_validated() {
            if port.retry(incoming).is_err() {
                self.shared.refuse(&Failure::RetryToken, remote);
            }
            return;
        }
        if self.shared.stop.is_cancelled() {
            return port.ignore(incoming);
        }
        let Ok(permit) = Arc::clone(&self.shared.handshakes).try_acquire_owned() else {
            self.shared.refuse(&Failure::TooMany, remote);
            return port.ignore(incoming);
        };
        let leaf = self.shared.identity.current().leaf_sha256();
        let mut server = ServerConfig::clone(&self.server);
        match self.shared.transport_for(incoming.remote_address()) {
            Ok(transport) => server.transport_config(transport),
            Err(error) => {
                self.shared.refuse(&Failure::Other(error.to_string()), remote);
                return port.ignore(incoming);
            }
        };
        match port.accept(self.shared.workers.next(), incoming, Arc::new(server)) {
            Ok(conn) => {
                conn.spawn(Arc::clone(&conn).run());
                let (shared, accepted) = (Arc::clone(&self.shared), self.accepted.clone());
                self.shared.tasks.spawn(async move {
                    let stop = shared.stop.clone();
                    stop.run_until_cancelled(accept(shared, Held(conn), leaf, remote, permit, accepted)).await;
                });
            }
            Err(error) => self.shared.refuse(&Failure::of(&error, &self.shared.trust), remote),
        }
    }
}

async fn accept(
    shared: Arc<Shared>,
    conn: Held,
    leaf: [u8; 32],
    remote: SocketAddr,
    permit: OwnedSemaphorePermit,
    accepted: mpsc::Sender<Established>,
) {
    let deadline = shared.config.timing.handshake;
    let result = match tokio::time::timeout(deadline, conn.0.connected()).await {
        Ok(result) => result.map_err(|error| Failure::of(&error, &shared.trust)),
        Err(_) => Err(Failure::Timeout),
    };
    let known = result.and_then(|()| Known::of(&shared, conn, None, leaf));
    let result = match known {
        Ok(known) if known.speaks == lanes::LANE => {
            let Known { conn, peer, .. } = known;
            let lane = Arc::clone(&conn.0);
            lane.spawn(inlets::keep(Arc::clone(&lane), shared.config.limits.socket_buffer));
            lanes::join(&shared, conn, &peer.peer).await.map(|serve| lane.spawn(serve))
        }
        Ok(known) => {
            known.conn.0.spawn(inlets::keep(Arc::clone(&known.conn.0), shared.config.limits.socket_buffer));
            drop(permit);
            // Only when the transport is closing is nobody left to take it.
            accepted.send(known.establish(&shared, Side::Acceptor, Arc::default())).await.ok();
            return;
        }
        Err(failure) => Err(failure),
    };
    match result {
        // A balancer leads it to another replica than its link: nobody has done anything wrong.
        Err(failure @ Failure::Lane(_)) => {
            shared.failures.count(failure.label());
            tracing::debug!(%remote, %failure, "Refused a lane");
        }
        Err(failure) => shared.refuse(&failure, remote),
        Ok(_serving) => {}
    }
}

/// Dials from a socket, and so a port, of its own. The endpoint around it lives as long as the connection.
pub(super) async fn dial(shared: Arc<Shared>, peer: Arc<str>, remote: SocketAddr) -> Result<Established, DialError> {
    let home = shared.workers.next();
    let Dialled { known, readers } = dial_as(&shared, home, &peer, remote, &[lanes::LINK, tls::ALPN]).await?;
    let (conn, hops) = (Arc::clone(&known.conn.0), Arc::<AtomicU64>::default());
    conn.spawn(hop::watch(Arc::clone(&conn), readers, shared.config.limits.socket_buffer, Arc::clone(&hops)));
    let has_lanes = known.speaks == lanes::LINK;
    let (established, link) = known.establish_link(&shared, Side::Dialler, hops);
    if has_lanes {
        for home in shared.workers.all().filter(|home| home.id() != conn.home.id()) {
            let keep = lanes::keep(Arc::clone(&shared), Arc::downgrade(&link), home.clone(), remote);
            shared.tasks.spawn_on(keep, home);
        }
    }
    Ok(established)
}

/// A connection that was dialled, and who reads the port that it was dialled from.
pub(super) struct Dialled {
    known: Known,
    readers: Readers,
}

impl Dialled {
    /// The protocol that the other side chose.
    pub(super) fn speaks(&self) -> &[u8] {
        &self.known.speaks
    }

    /// As a lane of `link`.
    pub(super) fn into_lane(self, shared: &Shared, link: &QuicConnection) -> Held {
        let (conn, hops) = (self.known.conn, Arc::clone(link.hops()));
        conn.0.spawn(hop::watch(Arc::clone(&conn.0), self.readers, shared.config.limits.socket_buffer, hops));
        conn
    }
}

/// Dials and offers `protocols`, the preferred first.
pub(super) async fn dial_as(
    shared: &Arc<Shared>,
    home: &Handle,
    peer: &Arc<str>,
    remote: SocketAddr,
    protocols: &[&[u8]],
) -> Result<Dialled, DialError> {
    let local = |reason: String| DialError::Local { remote, reason };
    let leaf = shared.identity.current().leaf_sha256();
    let client = shared.client_config(Arc::clone(peer), remote, protocols).map_err(|error| local(error.to_string()))?;
    let socket = socket::for_dial(remote, shared.config.limits.socket_buffer).and_then(|socket| Udp::new(socket, home));
    let socket = socket.map_err(|error| local(error.to_string()))?;
    let endpoint = Endpoint::new(Arc::clone(&shared.endpoint), None, !socket.may_fragment(), None);
    let port = Port::for_dial(endpoint, socket, shared.tasks.clone(), Arc::clone(&shared.lossy));
    let conn = port.connect(home, client, remote, tls::SERVER_NAME).map_err(|error| local(error.to_string()))?;
    let (conn, readers) = (Held(Arc::clone(&conn)), Readers::new(&conn));
    conn.0.spawn(Arc::clone(&conn.0).run());
    let after = shared.config.timing.handshake;
    let refused = |failure: Failure| {
        if let Failure::RefusedUs(reason) = failure {
            return DialError::RefusedUs { remote, reason };
        }
        let reason = failure.to_string();
        let verdict = if let Failure::Untrusted(error) = failure { Some(error) } else { None };
        DialError::Rejected { remote, reason, verdict }
    };
    match tokio::time::timeout(after, conn.0.connected()).await {
        Err(_) | Ok(Err(ConnectionError::TimedOut)) => Err(DialError::NoReply { remote, after }),
        Ok(Err(error)) => Err(refused(Failure::of(&error, &shared.trust))),
        Ok(Ok(())) => {
            let known = Known::of(shared, conn, Some(peer), leaf).map_err(refused)?;
            Ok(Dialled { known, readers })
        }
    }
}

/// A connection whose other side is known.
struct Known {
    conn: Held,
    /// The protocol that was agreed on.
    speaks: Vec<u8>,
    peer: VerifiedPeer,
    chain: Vec<CertificateDer<'static>>,
    local_leaf_sha256: [u8; 32],
}

impl Known {
    /// Learns who is on the other side of a finished handshake. TLS has verified the chain; here it is judged again for
    /// the name, and because the Peers may have changed meanwhile. `expected`: who was dialled, if this side did.
    fn of(shared: &Shared, conn: Held, expected: Option<&str>, local_leaf_sha256: [u8; 32]) -> Result<Self, Failure> {
        let refuse = |code: CloseCode, failure: Failure| {
            conn.0.close(code, &failure.to_string());
            failure
        };
        let (protocol, chain) = shown(&conn.0);
        let speaks = protocol.filter(|protocol| [lanes::LINK, lanes::LANE, tls::ALPN].contains(&protocol.as_slice()));
        let Some(speaks) = speaks else { return Err(refuse(CloseCode::Protocol, Failure::Alpn)) };
        if shared.identity.current().leaf_sha256() != local_leaf_sha256 {
            // Which of both was presented cannot be told, and re-authentication has to name it.
            return Err(refuse(CloseCode::Internal, Failure::Renewed));
        }
        let peer = shared
            .trust
            .verify(&chain, (shared.clock)(), expected)
            .map_err(|error| refuse(CloseCode::Revoked, Failure::Untrusted(error)))?;
        Ok(Self { conn, speaks, peer, chain, local_leaf_sha256 })
    }

    fn establish(self, shared: &Shared, side: Side, hops: Arc<AtomicU64>) -> Established {
        let may_have_lanes = self.speaks == lanes::LINK;
        let (established, link) = self.establish_link(shared, side, hops);
        if may_have_lanes {
            shared.joinable.add(&link);
        }
        established
    }

    fn establish_link(self, shared: &Shared, side: Side, hops: Arc<AtomicU64>) -> (Established, Arc<QuicConnection>) {
        let Self { conn, peer, chain, local_leaf_sha256, .. } = self;
        let (name, network) = (Arc::clone(&peer.peer), shared.network.clone());
        let window = u64::from(shared.config.limits.link_window);
        let link = Arc::new(QuicConnection::new(conn, side, name, window, network, hops));
        let connection = Arc::clone(&link) as Arc<dyn Connection>;
        (Established { connection, peer, chain, local_leaf_sha256 }, link)
    }
}

/// What the other side speaks, and the chain it presented.
fn shown(conn: &Conn) -> (Option<Vec<u8>>, Vec<CertificateDer<'static>>) {
    let state = conn.lock();
    let session = state.inner.crypto_session();
    let data = session.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let chain = session.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    (data.and_then(|data| data.protocol), chain.map(|chain| *chain).unwrap_or_default())
}

/// Why a handshake came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("too many handshakes are under way")]
    TooMany,
    #[error("its Retry token is not ours, or too old")]
    RetryToken,
    #[error("the handshake did not finish in time")]
    Timeout,
    #[error("the other side does not speak eastway/1")]
    Alpn,
    #[error("our certificate was renewed during the handshake")]
    Renewed,
    #[error("the other side {0}")]
    Untrusted(VerifyError),
    #[error("the other side offers a max_idle_timeout below the floor")]
    IdleFloor,
    #[error("a lane of no link: {0}")]
    Lane(&'static str),
    #[error("the other side refuses us: {0}")]
    RefusedUs(String),
    #[error("{0}")]
    Other(String),
}

impl Failure {
    fn of(error: &ConnectionError, trust: &TrustStore) -> Self {
        let text = error.to_string();
        // A refusal of ours stands in the text as a number; one of the other side names its class.
        if let Some(refusal) = trust.refusal_in(&text) {
            return Self::Untrusted(refusal.error);
        }
        let alpn = [NO_APPLICATION_PROTOCOL, ACCESS_DENIED].map(TransportErrorCode::crypto);
        match error {
            ConnectionError::TimedOut => Self::Timeout,
            ConnectionError::TransportError(error) if error.reason == floor::REFUSED => Self::IdleFloor,
            ConnectionError::TransportError(error) if alpn.contains(&error.code) => Self::Alpn,
            ConnectionError::ConnectionClosed(close) if alpn.contains(&close.error_code) => Self::Alpn,
            ConnectionError::ConnectionClosed(close) if is_alert(close) => Self::RefusedUs(words(close)),
            ConnectionError::ApplicationClosed(close) if CloseCode::from_wire(close.error_code.into()).is_refusal() => {
                Self::RefusedUs(printable(&String::from_utf8_lossy(&close.reason)))
            }
            ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::ConnectionClosed(_)
            | ConnectionError::ApplicationClosed(_)
            | ConnectionError::Reset
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => Self::Other(printable(&text)),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::TooMany => "TOO_MANY",
            Self::RetryToken => "RETRY_TOKEN",
            Self::Timeout => "TIMEOUT",
            Self::Alpn => "ALPN",
            Self::Renewed => "RENEWED",
            Self::Untrusted(error) => error.reason().as_str(),
            Self::IdleFloor => "IDLE_TIMEOUT_TOO_SHORT",
            Self::Lane(_) => "LANE",
            Self::RefusedUs(_) => "REFUSED_US",
            Self::Other(_) => "TRANSPORT",
        }
    }
}

impl Shared {
    /// Counts and tells a handshake of somebody else that came to nothing.
    fn refuse(&self, failure: &Failure, remote: SocketAddr) {
        let reason = failure.label();
        self.failures.count(reason);
        self.observer.happened(&Event::Refused { peer: None, remote, reason, text: &failure.to_string() });
    }
}

/// Counts failed handshakes of others.
#[derive(Default)]
pub(super) struct Failures {
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Failures {
    fn count(&self, label: &'static str) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default() += 1;
    }

    pub(super) fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(label, count)| (*label, *count)).collect()
    }
}

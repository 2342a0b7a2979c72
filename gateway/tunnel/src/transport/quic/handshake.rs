//! From a first packet to an authenticated connection, in both directions.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use eastway_identity::{CertificateDer, TrustStore, VerifyError, tls};
use quinn::{ConnectionError, Incoming, TransportErrorCode};
use quinn_proto::crypto::rustls::HandshakeData;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::connection::{QuicConnection, canonical, is_alert, words};
use super::{Shared, floor, hop, socket};
use crate::code::CloseCode;
use crate::control::printable;
use crate::events::Event;
use crate::transport::{DialError, Established, Side};

/// TLS alert `no_application_protocol` (RFC 7301 §3.2).
const NO_APPLICATION_PROTOCOL: u8 = 120;
/// TLS alert `access_denied`: what our server says to a client whose protocols do not include ours, before it
/// comes to show a certificate.
const ACCESS_DENIED: u8 = 49;

/// Takes connections of others.
pub(super) struct Handshakes {
    shared: Arc<Shared>,
    accepted: mpsc::Sender<Established>,
}

impl Handshakes {
    pub(super) fn new(shared: Arc<Shared>, accepted: mpsc::Sender<Established>) -> Self {
        Self { shared, accepted }
    }

    /// Until the endpoint ends or the transport stops.
    pub(super) async fn accept_all(&self, endpoint: &quinn::Endpoint) {
        while let Some(Some(incoming)) = self.shared.stop.run_until_cancelled(endpoint.accept()).await {
            self.take(incoming);
        }
    }

    /// Nothing is kept for an address before it has proved that it receives what is sent there (I9).
    fn take(&self, incoming: Incoming) {
        if !incoming.remote_address_validated() {
            if let Err(error) = incoming.retry() {
                let incoming = error.into_incoming();
                self.shared.refuse(&Failure::RetryToken, canonical(incoming.remote_address()));
                incoming.ignore();
            }
            return;
        }
        let Ok(permit) = Arc::clone(&self.shared.handshakes).try_acquire_owned() else {
            self.shared.refuse(&Failure::TooMany, canonical(incoming.remote_address()));
            incoming.ignore();
            return;
        };
        let (shared, accepted) = (Arc::clone(&self.shared), self.accepted.clone());
        self.shared.tasks.spawn(async move {
            let stop = shared.stop.clone();
            stop.run_until_cancelled(accept(shared, incoming, permit, accepted)).await;
        });
    }
}

async fn accept(
    shared: Arc<Shared>,
    incoming: Incoming,
    permit: OwnedSemaphorePermit,
    accepted: mpsc::Sender<Established>,
) {
    let remote = canonical(incoming.remote_address());
    let leaf = shared.identity.current().leaf_sha256();
    let deadline = shared.config.timing.handshake;
    let connection = match incoming.accept() {
        Ok(connecting) => tokio::time::timeout(deadline, connecting).await.map_err(|_| Failure::Timeout),
        Err(error) => Ok(Err(error)),
    };
    let connection = connection.and_then(|result| result.map_err(|error| Failure::of(&error, &shared.trust)));
    let established = connection.and_then(|connection| finish(&shared, connection, None, leaf));
    drop(permit);
    match established {
        Ok(established) => {
            // Only when the transport is closing is nobody left to take it.
            accepted.send(established).await.ok();
        }
        Err(failure) => shared.refuse(&failure, remote),
    }
}

/// Dials from a socket, and so a port, of its own. The endpoint around it lives as long as the connection.
pub(super) async fn dial(shared: Arc<Shared>, peer: Arc<str>, remote: SocketAddr) -> Result<Established, DialError> {
    let local = |reason: String| DialError::Local { remote, reason };
    let leaf = shared.identity.current().leaf_sha256();
    let client = shared.client_config(Arc::clone(&peer)).map_err(|error| local(error.to_string()))?;
    let endpoint = socket::for_dial(remote, shared.config.limits.socket_buffer).and_then(|socket| {
        let runtime = Arc::clone(&shared.runtime) as Arc<dyn quinn::Runtime>;
        quinn::Endpoint::new(shared.endpoint.clone(), None, socket, runtime)
    });
    let endpoint = endpoint.map_err(|error| local(error.to_string()))?;
    let connecting =
        endpoint.connect_with(client, remote, tls::SERVER_NAME).map_err(|error| local(error.to_string()))?;
    let after = shared.config.timing.handshake;
    let no_reply = || DialError::NoReply { remote, after };
    let refused = |failure: Failure| {
        if let Failure::RefusedUs(reason) = failure {
            return DialError::RefusedUs { remote, reason };
        }
        let reason = failure.to_string();
        let verdict = if let Failure::Untrusted(error) = failure { Some(error) } else { None };
        DialError::Rejected { remote, reason, verdict }
    };
    let connection = match tokio::time::timeout(after, connecting).await {
        Err(_) | Ok(Err(ConnectionError::TimedOut)) => return Err(no_reply()),
        Ok(Err(error)) => return Err(refused(Failure::of(&error, &shared.trust))),
        Ok(Ok(connection)) => connection,
    };
    finish(&shared, connection, Some((&peer, endpoint)), leaf).map_err(refused)
}

/// Learns who is on the other side of a finished handshake. TLS has verified the chain; here it is judged
/// again for the name, and because the Peers may have changed meanwhile. `dialled`: whom, if this side did, and from
/// which endpoint.
fn finish(
    shared: &Arc<Shared>,
    connection: quinn::Connection,
    dialled: Option<(&str, quinn::Endpoint)>,
    local_leaf_sha256: [u8; 32],
) -> Result<Established, Failure> {
    let refuse = |code: CloseCode, failure: Failure| {
        connection.close(quinn::VarInt::from_u32(code.to_wire()), failure.to_string().as_bytes());
        failure
    };
    let protocol = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    if protocol.is_none_or(|data| data.protocol.as_deref() != Some(tls::ALPN)) {
        return Err(refuse(CloseCode::Protocol, Failure::Alpn));
    }
    if shared.identity.current().leaf_sha256() != local_leaf_sha256 {
        // Which of both was presented cannot be told, and re-authentication has to name it.
        return Err(refuse(CloseCode::Internal, Failure::Renewed));
    }
    let chain = connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let chain = chain.map(|chain| *chain).unwrap_or_default();
    let peer = shared
        .trust
        .verify(&chain, (shared.clock)(), dialled.as_ref().map(|(peer, _)| *peer))
        .map_err(|error| refuse(CloseCode::Revoked, Failure::Untrusted(error)))?;
    shared.tasks.spawn(guard(connection.clone()));
    let (buffer, hops) = (shared.config.limits.socket_buffer, Arc::<AtomicU64>::default());
    let side = if let Some((_, endpoint)) = dialled {
        shared.tasks.spawn(hop::watch(endpoint, connection.clone(), buffer, Arc::clone(&hops)));
        Side::Dialler
    } else {
        if let Some(lanes) = shared.lanes.load_full() {
            let runtime = Arc::clone(&shared.runtime) as Arc<dyn quinn::Runtime>;
            shared.tasks.spawn(lanes.keep(connection.clone(), runtime, buffer));
        }
        Side::Acceptor
    };
    let connection = Arc::new(QuicConnection::new(connection, side, shared.network.clone(), hops));
    Ok(Established { connection, peer, chain, local_leaf_sha256 })
}

/// Links have no unidirectional streams: whoever opens one speaks another protocol.
async fn guard(connection: quinn::Connection) {
    if connection.accept_uni().await.is_ok() {
        connection.close(quinn::VarInt::from_u32(CloseCode::Protocol.to_wire()), b"a unidirectional stream");
    }
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

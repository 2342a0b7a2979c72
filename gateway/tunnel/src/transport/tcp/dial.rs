//! The dialling side: it makes the control connection, and keeps connections ready to become streams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eastway_identity::tls;
use rustls::pki_types::ServerName;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::link::{LinkCore, TcpConnection};
use super::pipe::{ConnectError, Connector, Pipe};
use super::preface::{FlowKind, Preface, Status};
use super::session::{Session, SessionError};
use super::{Failure, Shared};
use crate::control::printable;
use crate::transport::{DialError, Established, Side};

/// Connections of one link that are made at the same time.
const AT_ONCE: usize = 16;
/// Connections that may come to another gateway of the peer, one after the other, before a pause is made.
const ELSEWHERE: u32 = 16;
/// Between two looks at what waits.
const TIDY: Duration = Duration::from_secs(1);
/// Pause after a connection that was refused or did not come about; doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Makes a link.
pub(super) async fn dial(
    shared: Arc<Shared>,
    peer: Arc<str>,
    connector: Arc<dyn Connector>,
) -> Result<Established, DialError> {
    let remote = connector.remote();
    let after = shared.config.timing.handshake;
    let leaf = shared.identity.current().leaf_sha256();
    let begin = Instant::now();
    let control = connect(&shared, &peer, &connector, |_| Ok(Preface::Control));
    let control = tokio::time::timeout(after, control).await.unwrap_or(Err(Error::Handshake(Failure::Timeout)));
    let (session, status) = control.map_err(|error| match (error, connector.via()) {
        (Error::Handshake(Failure::Timeout), Some(via)) => DialError::Relay {
            reason: format!("no answer from {peer} by way of {} in {after:?}", via.cluster),
            refused: false,
        },
        (error, _) => error.at(remote, after),
    })?;
    let failed = |failure: Failure| Error::Handshake(failure).at(remote, after);
    if status != Status::Accepted {
        return Err(DialError::RefusedUs { remote, reason: "it takes no link now".to_owned() });
    }
    if shared.identity.current().leaf_sha256() != leaf {
        return Err(failed(Failure::Renewed));
    }
    let (verified, chain) = shared.identify(&session, tls::TCP_ALPN, Some(&peer)).map_err(failed)?;
    let link = shared.link(Side::Dialler, Arc::clone(&peer), remote, connector.via(), session).map_err(failed)?;
    // Connect, handshake and status are three round trips.
    link.measured(begin.elapsed() / 3);
    let warm = Warm { shared: Arc::clone(&shared), connector, link: Arc::clone(&link), next: AtomicU64::new(0) };
    link.spawn(keep_warm(Arc::new(warm)));
    Ok(Established { connection: Arc::new(TcpConnection(link)), peer: verified, chain, local_leaf_sha256: leaf })
}

/// Connects, makes the handshake, says `preface` and reads the answer.
async fn connect(
    shared: &Shared,
    peer: &Arc<str>,
    connector: &Arc<dyn Connector>,
    preface: impl FnOnce(&rustls::Connection) -> Result<Preface, rustls::Error>,
) -> Result<(Session, Status), Error> {
    let tls = |error: rustls::Error| Error::Handshake(Failure::Other(error.to_string()));
    let session = |error: SessionError| Error::Handshake(shared.failure(&error));
    let pipe = connector.connect().await?;
    let (identity, trust) = (Arc::clone(&shared.identity), Arc::clone(&shared.trust));
    let config = tls::tcp_client_config(identity, trust, Arc::clone(&shared.clock), Arc::clone(peer)).map_err(tls)?;
    let mut connection = secure(shared, pipe, config).await.map_err(Error::Handshake)?;
    let preface = preface(connection.tls()).map_err(tls)?;
    connection.write_all(&preface.encode()).await.map_err(session)?;
    let mut status = [0];
    connection.read_exact(&mut status).await.map_err(session)?;
    let [status] = status;
    let status = Status::from_wire(status)
        .ok_or_else(|| Error::Handshake(Failure::Other(format!("it answers with an unknown status, {status}"))))?;
    Ok((connection, status))
}

/// Makes the handshake over `pipe`.
pub(super) async fn secure(
    shared: &Shared,
    pipe: Box<dyn Pipe>,
    config: Arc<rustls::ClientConfig>,
) -> Result<Session, Failure> {
    let other = |text: String| Failure::Other(text);
    let name = ServerName::try_from(tls::SERVER_NAME).map_err(|error| other(error.to_string()))?;
    let client = rustls::ClientConnection::new(config, name).map_err(|error| other(error.to_string()))?;
    let mut session = Session::new(client.into(), pipe);
    session.handshake().await.map_err(|error| shared.failure(&error))?;
    Ok(session)
}

/// Why there is no connection.
#[derive(Debug)]
enum Error {
    Connect(ConnectError),
    Handshake(Failure),
}

impl From<ConnectError> for Error {
    fn from(error: ConnectError) -> Self {
        if let ConnectError::Shared(failure) = error { Self::Handshake(failure) } else { Self::Connect(error) }
    }
}

impl Error {
    fn at(self, remote: SocketAddr, after: Duration) -> DialError {
        match self {
            Self::Connect(ConnectError::Proxy(error)) => DialError::Proxy { proxy: remote, reason: error.to_string() },
            Self::Connect(error @ ConnectError::Tcp(_)) => {
                DialError::NoConnection { remote, reason: printable(&error.to_string()) }
            }
            Self::Connect(ConnectError::Relay(failure)) => failure.into(),
            Self::Connect(ConnectError::Shared(failure)) => Self::Handshake(failure).at(remote, after),
            Self::Handshake(Failure::Timeout) => DialError::NoConnection {
                remote,
                reason: format!("no answer in {after:?}: TCP port {} blocked?", remote.port()),
            },
            Self::Handshake(Failure::RefusedUs(reason)) => DialError::RefusedUs { remote, reason },
            Self::Handshake(Failure::Untrusted(error)) => DialError::Rejected {
                remote,
                reason: Failure::Untrusted(error.clone()).to_string(),
                verdict: Some(error),
            },
            Self::Handshake(
                failure @ (Failure::TooMany
                | Failure::Alpn
                | Failure::Renewed
                | Failure::UnknownLink
                | Failure::Request(_)
                | Failure::Http(_)
                | Failure::Other(_)),
            ) => DialError::Rejected { remote, reason: failure.to_string(), verdict: None },
        }
    }
}

/// What keeps the connections of one link ready.
struct Warm {
    shared: Arc<Shared>,
    connector: Arc<dyn Connector>,
    link: Arc<LinkCore>,
    /// Number of the next connection.
    next: AtomicU64,
}

async fn keep_warm(warm: Arc<Warm>) {
    let (link, epoch) = (Arc::clone(&warm.link), Instant::now());
    let mut under_way = JoinSet::new();
    let (mut flows, mut reverse) = (0, 0);
    let (mut pause, mut elsewhere) = (PAUSE, 0);
    let mut not_before = epoch;
    let mut tidy = tokio::time::interval(TIDY);
    loop {
        while Instant::now() >= not_before && under_way.len() < AT_ONCE {
            // Streams of this side first, but never only those.
            let kind = match (link.missing() > flows, link.missing_reverse() > reverse) {
                (true, true) if reverse * 2 < flows => FlowKind::Reverse,
                (true, _) => FlowKind::Flow,
                (false, true) => FlowKind::Reverse,
                (false, false) => break,
            };
            *if kind == FlowKind::Flow { &mut flows } else { &mut reverse } += 1;
            let warm = Arc::clone(&warm);
            under_way.spawn(async move { (kind, warm.add(kind).await) });
        }
        tokio::select! {
            _ = link.wait_end() => return,
            () = link.short.notified() => {}
            () = tokio::time::sleep_until(not_before), if not_before > Instant::now() => {}
            _ = tidy.tick() => link.tidy(epoch.elapsed()),
            Some(Ok((kind, added))) = under_way.join_next() => {
                *if kind == FlowKind::Flow { &mut flows } else { &mut reverse } -= 1;
                match added {
                    Ok(()) => (pause, elsewhere) = (PAUSE, 0),
                    // A balancer led it to another gateway of the peer: the next one may come to the right one.
                    Err(Error::Handshake(Failure::UnknownLink)) if elsewhere < ELSEWHERE => elsewhere += 1,
                    Err(error) => {
                        tracing::debug!(peer = %link.peer, remote = %warm.connector.remote(), ?error, "A connection of a link did not come about");
                        not_before = Instant::now() + pause;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                }
            }
        }
    }
}

impl Warm {
    async fn add(&self, kind: FlowKind) -> Result<(), Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (shared, link) = (&self.shared, &self.link);
        let preface = |tls: &rustls::Connection| link.secret.preface(tls, kind, number).map(Preface::Flow);
        let connected = connect(shared, &link.peer, &self.connector, preface);
        let connected = tokio::time::timeout(shared.config.timing.handshake, connected).await;
        let (session, status) = connected.unwrap_or(Err(Error::Handshake(Failure::Timeout)))?;
        match status {
            Status::Accepted => {}
            Status::Overloaded => return Err(Error::Handshake(Failure::TooMany)),
            Status::UnknownLink => {
                // What others are to go over leads there too.
                session.carrier().into_iter().for_each(|carrier| carrier.retire());
                return Err(Error::Handshake(Failure::UnknownLink));
            }
        }
        let (peer, _) = shared.identify(&session, tls::TCP_ALPN, Some(&link.peer)).map_err(Error::Handshake)?;
        tracing::trace!(peer = %peer.peer, number, ?kind, "One more connection of a link");
        let flow = link.add(number, session).ok_or(Error::Handshake(Failure::TooMany))?;
        match kind {
            FlowKind::Flow => link.add_active(flow),
            FlowKind::Reverse => {
                link.reverse_idle.fetch_add(1, Ordering::Relaxed);
                link.add_passive(flow, FlowKind::Reverse);
            }
        }
        Ok(())
    }
}

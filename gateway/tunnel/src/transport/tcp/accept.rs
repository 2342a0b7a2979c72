//! Connections of others: from the first byte to a link, or to one more connection of a link.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use eastway_identity::{CertificateDer, tls};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::link::{LinkCore, TcpConnection, lock};
use super::pipe::{Pipe, Via};
use super::preface::{FlowKind, FlowPreface, LinkSecret, Preface, PrefaceError, Status};
use super::session::{Session, SessionError};
use super::{Failure, Shared, control, pipe, shared};
use crate::control::printable;
use crate::events::Event;
use crate::transport::{Established, Side};

/// How rustls says that no certificate was shown.
const NOT_SHOWN: &str = "no server certificate chain resolved";
/// For the byte that answers: a connection that others share admits it when the other side wants it, and nothing counts
/// this one yet.
const ANSWER: Duration = Duration::from_secs(5);
/// Pause after the system gave no connection: it has no descriptors left.
const REST: Duration = Duration::from_millis(50);

/// Until the transport stops.
pub(super) async fn run(shared: Arc<Shared>, listener: TcpListener, accepted: mpsc::Sender<Established>) {
    let mut failing = false;
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "Connections for links cannot be taken now");
                }
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        failing = false;
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let Ok(permit) = Arc::clone(&shared.handshakes).try_acquire_owned() else {
            shared.refuse(&Failure::TooMany, remote);
            continue;
        };
        let (task, accepted) = (Arc::clone(&shared), accepted.clone());
        shared.spawn(async move {
            pipe::tune(&stream);
            match take(&task, Box::new(stream), None, remote, permit, accepted.clone()).await {
                Ok(None) => {}
                // Not cut short by the end of the transport: links say goodbye on it.
                Ok(Some(carried)) => {
                    task.tasks.spawn(shared::serve(Arc::clone(&task), carried, accepted));
                }
                Err(failure) => task.refuse(&failure, remote),
            }
        });
    }
}

/// Who comes by what is no TCP connection of its own.
pub(super) struct Brought {
    /// Nobody else may be at the other end.
    pub(super) from: Arc<str>,
    /// The third cluster that brings it; `None`: it comes on a connection that is shared.
    pub(super) via: Option<Arc<str>>,
}

/// A connection that is to be shared, by whom.
pub(super) struct Carried {
    pub(super) session: Session,
    pub(super) peer: Arc<str>,
    /// What it has shown.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) remote: SocketAddr,
}

/// Finds out what `stream` is. `permit`: held until it is known who it is.
pub(super) async fn take(
    shared: &Arc<Shared>,
    stream: Box<dyn Pipe>,
    brought: Option<Brought>,
    remote: SocketAddr,
    permit: OwnedSemaphorePermit,
    accepted: mpsc::Sender<Established>,
) -> Result<Option<Carried>, Failure> {
    let leaf = shared.identity.current().leaf_sha256();
    let deadline = shared.config.timing.handshake;
    // What is brought brings nothing itself.
    let begun = tokio::time::timeout(deadline, begin(shared, stream, brought.is_none())).await;
    let (mut session, preface) = begun.map_err(|_| Failure::Timeout)??;
    drop(permit);
    let Some(preface) = preface else {
        let (peer, chain) = shared.identify(&session, tls::SHARED_ALPN, None)?;
        return Ok(Some(Carried { session, peer: peer.peer, chain, remote }));
    };
    let expected = brought.as_ref().map(|brought| &*brought.from);
    let (peer, chain) = shared.identify(&session, tls::TCP_ALPN, expected)?;
    let preface = match preface {
        Preface::Control => {
            if shared.identity.current().leaf_sha256() != leaf {
                // Which of both was presented cannot be told, and re-authentication has to name it.
                return Err(Failure::Renewed);
            }
            answer(&mut session, Status::Accepted).await?;
            let connection = shared.link(
                Side::Acceptor,
                Arc::clone(&peer.peer),
                remote,
                brought.and_then(|brought| brought.via).map(|cluster| Via { cluster, carrier: None }),
                session,
            )?;
            let established =
                Established { connection: Arc::new(TcpConnection(connection)), peer, chain, local_leaf_sha256: leaf };
            // Only when the transport is closing is nobody left to take it.
            accepted.send(established).await.ok();
            return Ok(None);
        }
        Preface::Flow(preface) => preface,
    };
    let link = lock(&shared.links).get(&preface.link).and_then(Weak::upgrade);
    let link = link.filter(|link| link.peer == peer.peer && link.secret.proves(session.tls(), &preface));
    let Some(link) = link.filter(|link| !link.has_ended()) else {
        answer(&mut session, Status::UnknownLink).await?;
        return Err(Failure::UnknownLink);
    };
    join(&link, session, &preface).await.map(|()| None)
}

/// Makes the handshake and reads what the connection is; nothing is read of one that is to be shared.
async fn begin(
    shared: &Arc<Shared>,
    stream: Box<dyn Pipe>,
    may_share: bool,
) -> Result<(Session, Option<Preface>), Failure> {
    let (identity, trust) = (Arc::clone(&shared.identity), Arc::clone(&shared.trust));
    let config = if may_share { tls::tcp_server_config_with_shared } else { tls::tcp_server_config };
    let config = config(identity, trust, Arc::clone(&shared.clock));
    let server = config.and_then(rustls::ServerConnection::new).map_err(|error| Failure::Other(error.to_string()))?;
    let mut session = Session::new(server.into(), stream);
    session.handshake().await.map_err(|error| shared.failure(&error))?;
    if session.tls().alpn_protocol() == Some(tls::SHARED_ALPN) {
        return Ok((session, None));
    }
    let preface = Preface::read(&mut session).await.map_err(|error| match error {
        PrefaceError::Session(error) => shared.failure(&error),
        error @ PrefaceError::Kind(_) => Failure::Other(error.to_string()),
    })?;
    Ok((session, Some(preface)))
}

async fn answer(session: &mut Session, status: Status) -> Result<(), Failure> {
    let written = tokio::time::timeout(ANSWER, session.write_all(&[status as u8])).await;
    written.map_err(|_| Failure::Timeout)?.map_err(|error| Failure::Other(printable(&error.to_string())))
}

/// One more connection of `link`.
async fn join(link: &Arc<LinkCore>, mut session: Session, preface: &FlowPreface) -> Result<(), Failure> {
    if !link.has_room() {
        return answer(&mut session, Status::Overloaded).await;
    }
    answer(&mut session, Status::Accepted).await?;
    // Full meanwhile: the other side sees it end.
    let Some(flow) = link.add(preface.number, session) else { return Ok(()) };
    match preface.kind {
        FlowKind::Flow => link.add_passive(flow, FlowKind::Flow),
        FlowKind::Reverse => link.add_active(flow),
    }
    Ok(())
}

impl Shared {
    /// Begins a link over an established control connection.
    pub(super) fn link(
        self: &Arc<Self>,
        side: Side,
        peer: Arc<str>,
        remote: SocketAddr,
        via: Option<Via>,
        session: Session,
    ) -> Result<Arc<LinkCore>, Failure> {
        let secret = LinkSecret::of(session.tls()).map_err(|error| Failure::Other(error.to_string()))?;
        let id = secret.id;
        let limits = &self.config.limits;
        // What waits to become a stream comes on top of those that are.
        let most = limits.streams_per_peer.saturating_add(limits.initial_streams);
        let bounds = (limits.initial_streams, most, self.flows.of(&peer));
        let ends = (self.tasks.clone(), self.stop.clone());
        let link = LinkCore::new((side, peer, remote, via), secret, session, bounds, ends);
        if side == Side::Acceptor {
            lock(&self.links).insert(id, Arc::downgrade(&link));
        }
        let (shared, task, timing) = (Arc::clone(self), Arc::clone(&link), self.config.timing);
        // Not cut short by the end of the transport: the other side is told, within a deadline of its own.
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::join!(control::run(Arc::clone(&task), timing), async {
                tokio::select! {
                    () = stop.cancelled() => task.shut_down(),
                    _ = task.wait_end() => {}
                }
            });
            lock(&shared.links).remove(&id);
        });
        Ok(link)
    }

    /// Why a handshake failed.
    pub(super) fn failure(&self, error: &SessionError) -> Failure {
        let text = error.to_string();
        // A refusal of ours stands in the text as a number; one of the other side names its class.
        if let Some(refusal) = self.trust.refusal_in(&text) {
            return Failure::Untrusted(refusal.error);
        }
        use rustls::AlertDescription as Alert;
        match error {
            SessionError::Alert(Alert::NoApplicationProtocol | Alert::AccessDenied) => Failure::Alpn,
            SessionError::Tls(rustls::Error::NoApplicationProtocol) => Failure::Alpn,
            // No certificate is shown to whom none of our protocols is named by; everybody else is shown one.
            SessionError::Tls(rustls::Error::General(text)) if text == NOT_SHOWN => Failure::Alpn,
            SessionError::Alert(alert) => Failure::RefusedUs(format!("{alert:?}")),
            SessionError::Tls(_) | SessionError::Pipe(_) | SessionError::Truncated => Failure::Other(printable(&text)),
        }
    }

    /// Counts and tells a handshake of somebody else that came to nothing.
    pub(super) fn refuse(&self, failure: &Failure, remote: SocketAddr) {
        let reason = failure.label();
        *lock(&self.failures).entry(reason).or_default() += 1;
        self.observer.happened(&Event::Refused { peer: None, remote, reason, text: &failure.to_string() });
    }
}

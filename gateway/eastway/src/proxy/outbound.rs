//! Takes a local connection to a service, wherever the service is. [`connect`] finds the other end for any kind of
//! [`Client`]; [`serve`] does all of it for a socket.
//!
//! A remote attempt is optimistic: header and payload go at once, and what the client sent is kept
//! until the owner says that it dialled, so that a refusal can be tried elsewhere.

mod client;
mod replay;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::routing::{Candidate, RouteError};
use eastway_model::{ClusterName, EndpointId, PortNumber, ServiceKey, Subset};
use eastway_tunnel::header::{ClientAddress, StreamHeader};
use eastway_tunnel::{Link, OpenError, ResetCode, StreamError, TunnelStream};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::proxy::connection::{Connection, Outcome};
use crate::proxy::copy::{self, ChunkReader, CopyError, Local, Side, TcpSide, Transferred, Watch};
use crate::proxy::dial::InFlightGuard;
use crate::proxy::reach::{ReachError, Reached, reach};
use crate::router::{self, Routed, Router};
use crate::telemetry::{Path, Refusal};
pub use client::Client;
use replay::Replay;

/// Candidates tried for one connection.
pub(super) const MAX_ATTEMPTS: usize = 3;
/// How long all attempts together may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a listener stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The service.
    pub service: ServiceKey,
    /// Its port.
    pub port: PortNumber,
    /// Only this cluster's endpoints: a name of the user's own that is pinned to a cluster.
    pub cluster: Option<ClusterName>,
    /// Only endpoints with these labels, whatever the policy says.
    pub subset: Option<Arc<Subset>>,
    /// Only this endpoint: a headless name.
    pub endpoint: Option<EndpointId>,
}

/// Why a connection was not established.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No candidate: unknown service or port, or nothing ready.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// No endpoint of this cluster takes it.
    #[error(transparent)]
    Reach(#[from] ReachError),
    /// The header would be too long: a subset with very long labels.
    #[error("the request cannot be expressed in a stream header")]
    Header,
    /// The peer has no link now.
    #[error("no link to {0}")]
    NoLink(ClusterName),
    /// No stream could be opened on the link.
    #[error("no stream to {0}: {1}")]
    Open(ClusterName, #[source] OpenError),
    /// The other gateway refused, or the link ended.
    #[error("{0}: {1}")]
    Refused(ClusterName, #[source] StreamError),
    /// An endpoint of this cluster took the connection and broke it before it had what the client sent.
    #[error("{0}: broken while it got what the client had sent: {1}")]
    Broken(SocketAddr, #[source] std::io::Error),
    /// The client went away first.
    #[error("the client went away: {0}")]
    Client(#[source] std::io::Error),
    /// All attempts together took too long.
    #[error("not connected within {CONNECT_TIMEOUT:?}")]
    Timeout,
}

impl ConnectError {
    /// Whether the same may work by another link to the cluster.
    pub(super) fn is_of_link(&self, nothing_sent: bool) -> bool {
        match self {
            Self::Open(_, error) => !matches!(error, OpenError::Header(_)),
            Self::Refused(_, StreamError::Reset(code)) => *code == ResetCode::Draining,
            Self::Refused(..) => nothing_sent,
            Self::NoLink(_) | Self::Reach(_) | Self::Broken(..) | Self::Route(_) => false,
            Self::Header | Self::Client(_) | Self::Timeout => false,
        }
    }

    /// Whether the next candidate may be tried.
    pub(super) fn is_retryable(&self, nothing_sent: bool) -> bool {
        match self {
            Self::NoLink(_) | Self::Open(..) | Self::Reach(_) => true,
            Self::Refused(_, StreamError::Reset(code)) => code.is_retryable_before_delivery(),
            // Whether the bytes arrived is not known: only a connection that sent none is safe.
            Self::Refused(..) => nothing_sent,
            // What it got of the client's bytes must not be said a second time elsewhere.
            Self::Broken(..) | Self::Route(_) | Self::Header | Self::Client(_) | Self::Timeout => false,
        }
    }
}

/// Serves one local connection to `target`, which is reset unless it ends in order, until it ends.
pub fn serve(
    router: Arc<Router>,
    tcp: TcpStream,
    client: SocketAddr,
    target: Arc<Target>,
) -> impl Future<Output = ()> + Send {
    let mut connection = Connection::outbound(router.cluster(), &target.service, target.port.get(), client);
    connection.set_local(tcp.local_addr().ok());
    let (mut local, client) = (Local::resetting(tcp), client.ip());
    let moved = Transferred::default();
    async move {
        let connecting = async {
            let routed = router.route(&target, client).await?;
            connect(&router, &target, &routed, &mut local, &mut connection, &moved).await
        };
        // On the heap: it is far larger than what comes after it, and gone by then.
        let connected = Box::pin(timeout(CONNECT_TIMEOUT, connecting));
        let mut upstream = match connected.await.unwrap_or(Err(ConnectError::Timeout)) {
            Ok(upstream) => upstream,
            Err(error) => {
                if let ConnectError::Route(RouteError::TlsRequired) = error {
                    let detail = format_args!("{client} to {}: {error}", target.service);
                    router.telemetry.refusals.refused(Refusal::TlsRequired, None, detail);
                }
                connection.closed(&router.telemetry, &Outcome::NotConnected(error), &moved);
                return;
            }
        };
        connection.opened(&router.telemetry);
        let watch = &mut Watch { limits: router.limits, count: &mut || connection.count(&moved), cut: upstream.cut() };
        let ended = upstream.carry(&mut local.side(), &moved, watch).await;
        connection.closed(&router.telemetry, &Outcome::Ended(ended), &moved);
    }
}

/// The far end of a connection that is established.
pub enum Upstream {
    /// An endpoint of this cluster.
    Local {
        /// Its socket.
        tcp: TcpStream,
        /// Counts the connection.
        in_flight: InFlightGuard,
        /// Cancelled when the endpoint is trusted no more.
        cut: Option<CancellationToken>,
    },
    /// A stream of a link, whose owner has dialled.
    Remote(TunnelStream),
}

impl Upstream {
    /// What is cancelled when the endpoint is trusted no more. Of one of a peer its owner's gateway ends the stream.
    #[must_use]
    pub fn cut(&self) -> Option<CancellationToken> {
        match self {
            Self::Local { cut, .. } => cut.clone(),
            Self::Remote(_) => None,
        }
    }

    /// The link that carries it, if the endpoint is a peer's.
    #[must_use]
    pub fn link(&self) -> Option<Link> {
        match self {
            Self::Local { .. } => None,
            Self::Remote(stream) => Some(stream.link()),
        }
    }

    /// Copies between it and the client until both directions have ended.
    ///
    /// # Errors
    /// The first thing that went wrong.
    pub async fn carry(
        &mut self,
        client: &mut impl Side,
        moved: &Transferred,
        watch: &mut Watch<'_>,
    ) -> Result<(), CopyError> {
        match self {
            Self::Local { tcp, .. } => {
                let mut reader = ChunkReader::default();
                copy::between(client, &mut TcpSide::new(tcp, &mut reader), moved, watch).await
            }
            Self::Remote(stream) => copy::between(client, stream, moved, watch).await,
        }
    }
}

/// Finds the other end of `client`'s connection: of the candidates of `routed` one after the other.
///
/// # Errors
/// [`ConnectError`] of the last attempt.
pub async fn connect<C: Client>(
    router: &Router,
    target: &Target,
    routed: &Routed,
    client: &mut C,
    connection: &mut Connection,
    moved: &Transferred,
) -> Result<Upstream, ConnectError> {
    connection.set_source(&routed.source);
    Connecting { router, target, routed, client, connection, replay: Replay::default() }.run(moved).await
}

/// A connection that looks for its far end.
struct Connecting<'a, C> {
    router: &'a Router,
    target: &'a Target,
    routed: &'a Routed,
    client: &'a mut C,
    connection: &'a mut Connection,
    replay: Replay,
}

impl<C: Client> Connecting<'_, C> {
    async fn run(mut self, moved: &Transferred) -> Result<Upstream, ConnectError> {
        let mut last = ConnectError::Route(RouteError::NoEndpoints);
        for candidate in self.routed.route.candidates.iter().take(MAX_ATTEMPTS) {
            self.connection.set_candidate(candidate);
            let attempt = match &candidate.cluster {
                None => self.local(candidate).await,
                Some(cluster) => self.remote(cluster, candidate).await,
            };
            match attempt {
                Ok(upstream) => {
                    moved.from_local.passed(self.replay.len() as u64);
                    return Ok(upstream);
                }
                Err(error) if error.is_retryable(self.replay.is_empty()) => {
                    self.router.note_retry(candidate);
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    async fn local(&mut self, candidate: &Candidate) -> Result<Upstream, ConnectError> {
        let Self { router, target, routed, .. } = *self;
        let pick = |tried: &[EndpointId]| router.pick_local(candidate, target, routed, tried);
        let Reached { tcp, picked, in_flight } = reach(router, Path::Local, self.connection, pick).await?;
        self.replay.write_to(&tcp).await.map_err(|error| ConnectError::Broken(picked.address, error))?;
        Ok(Upstream::Local { tcp, in_flight, cut: picked.cut })
    }

    /// By one link after the other, as long as it is the link that fails.
    async fn remote(&mut self, cluster: &ClusterName, candidate: &Candidate) -> Result<Upstream, ConnectError> {
        let client = self.connection.client().filter(|_| self.router.asks_for_client(cluster, self.target));
        let client = client.and_then(ClientAddress::new);
        let header = router::header(self.routed, self.target, candidate, client).ok_or(ConnectError::Header)?;
        let mut tried = Vec::new();
        let mut last = ConnectError::NoLink(cluster.clone());
        if let Some(link) = self.router.bulk_link(cluster, &header) {
            match self.by_link(&link, cluster, &header).await {
                Err(error) if error.is_of_link(self.replay.is_empty()) => self.router.note_retry(candidate),
                result => return result,
            }
        }
        while let Some(link) = self.router.link(cluster, &tried).filter(|_| tried.len() < MAX_ATTEMPTS) {
            match self.by_link(&link, cluster, &header).await {
                Err(error) if error.is_of_link(self.replay.is_empty()) => {
                    tried.push(link);
                    self.router.note_retry(candidate);
                    last = error;
                }
                result => return result,
            }
        }
        Err(last)
    }

    async fn by_link(
        &mut self,
        link: &Link,
        cluster: &ClusterName,
        header: &StreamHeader,
    ) -> Result<Upstream, ConnectError> {
        self.connection.set_upstream(link.transport().into(), link.remote_addr());
        let metrics = &self.router.telemetry.metrics;
        // What the client has said by now shares the header's packet. One that waits for the server is not waited for.
        if self.replay.is_empty()
            && !self.client.has_ended()
            && let Some(chunk) = self.client.read_now().map_err(ConnectError::Client)?
        {
            self.replay.push(chunk);
        }
        let mut stream = link.open_with(header, self.replay.first()).await.map_err(|error| {
            metrics.stream_opened(link.peer(), "not_opened");
            ConnectError::Open(cluster.clone(), error)
        })?;
        let result = until_accepted(self.client, &mut self.replay, &mut stream).await;
        metrics.stream_opened(link.peer(), answer(&result));
        match result {
            Ok(()) => Ok(Upstream::Remote(stream)),
            Err(error) => {
                stream.send.reset(ResetCode::Cancelled);
                stream.recv.stop(ResetCode::Cancelled);
                Err(match error {
                    Attempt::Stream(error) => ConnectError::Refused(cluster.clone(), error),
                    Attempt::Client(error) => ConnectError::Client(error),
                })
            }
        }
    }
}

fn answer(result: &Result<(), Attempt>) -> &'static str {
    match result {
        Ok(()) => "dialled",
        Err(Attempt::Stream(StreamError::Reset(code))) => code.name(),
        Err(Attempt::Stream(_)) => "link_lost",
        Err(Attempt::Client(_)) => "client_gone",
    }
}

enum Attempt {
    Stream(StreamError),
    Client(std::io::Error),
}

/// Sends what the client has to say, and keeps it, until the owner has dialled; the first chunk that is kept went with
/// the header. A client that says nothing, and a server that speaks first, are both served.
async fn until_accepted(
    client: &mut impl Client,
    replay: &mut Replay,
    TunnelStream { send, recv }: &mut TunnelStream,
) -> Result<(), Attempt> {
    for chunk in replay.others() {
        send.write(chunk.clone()).await.map_err(Attempt::Stream)?;
    }
    if client.has_ended() {
        send.finish();
    }
    loop {
        let chunk = tokio::select! {
            biased;
            accepted = recv.accepted() => return accepted.map_err(Attempt::Stream),
            read = poll_fn(|cx| client.poll_next(cx)), if replay.has_room() && !client.has_ended() => {
                read.map_err(Attempt::Client)?
            }
        };
        // Not part of the select: a write that is dropped half-way would lose its place. A refusal
        // ends it, because the other side then stops the stream.
        match chunk {
            Some(chunk) => {
                replay.push(chunk.clone());
                if let Err(error) = send.write(chunk).await {
                    return Err(Attempt::Stream(recv.accepted().await.err().unwrap_or(error)));
                }
            }
            None => send.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use eastway_model::store::Writer;
    use tokio::net::TcpListener;

    use super::*;
    use crate::proxy::dial::{DialError, DialRules};
    use crate::telemetry::{AccessMode, Telemetry};

    /// A connection that does nothing costs its task and little else: what this grows, 10,000 of them pay.
    #[tokio::test]
    async fn a_connection_is_a_small_task() {
        let (_writer, reader) = Writer::new(ClusterName::parse("a").unwrap());
        let never = copy::Limits { idle: Duration::ZERO, half_closed: Duration::ZERO };
        let router = Router::new(reader, DialRules::default(), never, Telemetry::new(AccessMode::Off));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = listener.local_addr().unwrap();
        let tcp = TcpStream::connect(client).await.unwrap();
        let service = ServiceKey::parse("shop", "web").unwrap();
        let target =
            Target { service, port: PortNumber::new(80).unwrap(), cluster: None, subset: None, endpoint: None };
        let size = size_of_val(&serve(Arc::new(router), tcp, client, Arc::new(target)));
        assert!(size <= 1_288, "{size} bytes");
    }

    #[test]
    fn bytes_that_may_have_been_delivered_are_not_said_again_elsewhere() {
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        let refused = ConnectError::Reach(DialError::Failed(address, Error::from(ErrorKind::ConnectionRefused)).into());
        assert!(refused.is_retryable(false), "nothing was connected");
        let broken = ConnectError::Broken(address, Error::from(ErrorKind::BrokenPipe));
        assert!(!broken.is_retryable(false));
        let lost = |nothing_sent| {
            ConnectError::Refused(ClusterName::parse("gke").unwrap(), StreamError::LinkLost).is_retryable(nothing_sent)
        };
        assert!(lost(true));
        assert!(!lost(false), "the owner may have had them");
    }
}

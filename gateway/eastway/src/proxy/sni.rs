//! Istio's sidecars, whose connections to another network go to its gateway by TLS that is not for it: the name of the
//! server says what they want (`name`), and all else, the ClientHello (`hello`) included, goes through as it is.
//!
//! There is a port for each peer. What is refused is reset, whatever the reason: who asks for what does not exist learns
//! as much as who speaks no TLS.

pub mod hello;
pub mod name;
mod retire;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use eastway_model::routing::RouteError;
use eastway_model::rules::route::Subsets;
use eastway_model::store::Snapshot;
use eastway_model::{ClusterName, Protocol, Subset};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::proxy::clients::Clients;
use crate::proxy::connection::{Connection, Outcome};
use crate::proxy::copy::{self, Local, Transferred, Watch};
use crate::proxy::outbound::{self, CONNECT_TIMEOUT, Client, ConnectError, Target};
use crate::proxy::vip;
use crate::router::Router;
use crate::telemetry::Refusal;
use hello::Hello;
pub use retire::Leaving;
use retire::Retiring;

/// Longest wait for a whole ClientHello.
const HELLO: Duration = Duration::from_secs(5);
/// Pause after an accept error that is the machine's, such as EMFILE.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Most connections of all ports together.
const MAX_CONNECTIONS: usize = 8_192;

/// A bound port.
#[derive(Debug)]
pub struct SniListener {
    cluster: ClusterName,
    socket: TcpListener,
}

impl SniListener {
    /// Binds the port for what `cluster` serves.
    ///
    /// # Errors
    /// Those of the system.
    pub fn bind(cluster: ClusterName, address: SocketAddr) -> io::Result<Self> {
        Ok(Self { cluster, socket: vip::bind(address)? })
    }

    /// The address, with the port that was chosen.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }
}

/// What all ports share.
#[derive(Clone)]
pub struct SniPorts {
    router: Arc<Router>,
    connections: TaskTracker,
    budget: Arc<Semaphore>,
    clients: Arc<Clients>,
    /// What Istio's own objects call a subset.
    subsets: watch::Receiver<Arc<Subsets>>,
    leaving: Leaving,
}

impl SniPorts {
    /// Ports that take a share of a limit on file descriptors; one client has a quarter of it and no more. `connections`
    /// are waited for in a drain, and end as `leaving` says.
    #[must_use]
    pub fn new(
        router: Arc<Router>,
        subsets: watch::Receiver<Arc<Subsets>>,
        connections: TaskTracker,
        leaving: Leaving,
        file_descriptors: u64,
    ) -> Self {
        let most = usize::try_from(file_descriptors / 8).unwrap_or(usize::MAX).clamp(64, MAX_CONNECTIONS);
        let (budget, clients) = (Arc::new(Semaphore::new(most)), Clients::new(most / 4));
        Self { router, connections, budget, clients, subsets, leaving }
    }

    /// Accepts until `stop`. No error ends it.
    pub async fn accept(self, listener: SniListener, stop: CancellationToken) {
        let SniListener { cluster, socket } = listener;
        loop {
            let Some(accepted) = stop.run_until_cancelled(socket.accept()).await else { return };
            match accepted {
                Ok((tcp, client)) => {
                    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                    let Some(share) = self.clients.enter(client.ip()) else {
                        self.overload(format_args!("{client} has its share of connections to {cluster} by name"));
                        copy::reset_unless_done(&tcp);
                        continue;
                    };
                    let permit = stop.run_until_cancelled(Arc::clone(&self.budget).acquire_owned()).await;
                    let Some(Ok(permit)) = permit else { return };
                    let (ports, cluster) = (self.clone(), cluster.clone());
                    self.connections.spawn(async move {
                        ports.serve(tcp, client, &cluster).await;
                        drop((permit, share));
                    });
                }
                Err(error) if vip::is_of_one_connection(&error) => {}
                Err(error) => {
                    self.overload(format_args!("cannot accept connections to {cluster} by name: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(&self, tcp: TcpStream, client: SocketAddr, cluster: &ClusterName) {
        let router = &*self.router;
        // A connection that is gone already shows in its first read.
        let _gone = tcp.set_nodelay(true);
        let mut greeted = Greeted { local: Local::new(tcp), hello: None };
        let refused = |error: &SniError| {
            let detail = format_args!("{client}: to {cluster} by name: {error}");
            router.telemetry.refusals.refused(Refusal::Sni, None, detail);
        };
        let (name, target) = match asked(router, &mut greeted, cluster, &self.subsets).await {
            Ok(asked) => asked,
            Err(error) => return refused(&error),
        };
        let mut connection = Connection::outbound(router.cluster(), &target.service, target.port.get(), client);
        connection.set_local(greeted.local.tcp.local_addr().ok());
        let moved = Transferred::default();
        let connecting = connect(router, &target, client.ip(), &mut greeted, &mut connection, &moved);
        let mut upstream = match timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or(Err(ConnectError::Timeout)) {
            Ok(upstream) => upstream,
            Err(ConnectError::Route(
                error @ (RouteError::UnknownService | RouteError::UnknownPort | RouteError::UnknownCluster),
            )) => return refused(&SniError::Unknown(name, error)),
            Err(error) => {
                return connection.closed(&router.telemetry, &Outcome::NotConnected(error), &moved);
            }
        };
        connection.opened(&router.telemetry);
        let watch = &mut Watch { limits: router.limits, count: &mut || connection.count(&moved), cut: upstream.cut() };
        let mut side = Retiring::new(greeted.local.side(), self.leaving.clone(), upstream.link());
        let ended = upstream.carry(&mut side, &moved, watch).await;
        drop(side);
        connection.closed(&router.telemetry, &Outcome::Ended(ended), &moved);
    }

    fn overload(&self, detail: std::fmt::Arguments<'_>) {
        self.router.telemetry.refusals.refused(Refusal::Overload, None, detail);
    }
}

/// Why a connection is not let through. Its client is not told.
#[derive(Debug, thiserror::Error)]
enum SniError {
    #[error(transparent)]
    Hello(#[from] hello::HelloError),
    #[error("no whole ClientHello within {HELLO:?}")]
    Slow,
    #[error("it ended: {0}")]
    Gone(io::Error),
    #[error("{0:?} {1}")]
    Name(String, name::NameError),
    #[error("{0:?}: {1}")]
    Unknown(String, RouteError),
    #[error("{0:?} is of no version that it has")]
    Subset(String),
}

async fn connect(
    router: &Router,
    target: &Target,
    client: IpAddr,
    greeted: &mut Greeted,
    connection: &mut Connection,
    moved: &Transferred,
) -> Result<outbound::Upstream, ConnectError> {
    let routed = router.route_tls(target, client).await?;
    outbound::connect(router, target, &routed, greeted, connection, moved).await
}

/// Waits for the ClientHello and says what it asks for.
async fn asked(
    router: &Router,
    greeted: &mut Greeted,
    cluster: &ClusterName,
    subsets: &watch::Receiver<Arc<Subsets>>,
) -> Result<(String, Target), SniError> {
    let (name, bytes) = timeout(HELLO, read(&mut greeted.local.tcp)).await.unwrap_or(Err(SniError::Slow))?;
    greeted.hello = Some(bytes);
    let (snapshot, subsets) = (router.snapshot(), Arc::clone(&subsets.borrow()));
    match name::target(&name, cluster, snapshot.rules(), &subsets) {
        // A port for one's own cluster leads nowhere.
        Ok(_) if cluster == router.cluster() => Err(SniError::Name(name, name::NameError::Host)),
        Ok(target) => match missing(&snapshot, &target) {
            Some(Missing::Part(error)) => Err(SniError::Unknown(name, error)),
            Some(Missing::Subset) => Err(SniError::Subset(name)),
            None => Ok((name, target)),
        },
        Err(error) => Err(SniError::Name(name, error)),
    }
}

/// What the peer does not have of what is asked for.
enum Missing {
    Part(RouteError),
    Subset,
}

/// Whether the peer exports the service to us, with this port and this version. A version without endpoints that take
/// connections is there.
fn missing(snapshot: &Snapshot, target: &Target) -> Option<Missing> {
    let part = snapshot.import(&target.service).and_then(|import| import.part(target.cluster.as_ref()));
    let Some(part) = part else { return Some(Missing::Part(RouteError::UnknownService)) };
    if !part.serves(Protocol::Tcp, target.port) {
        return Some(Missing::Part(RouteError::UnknownPort));
    }
    let has = |subset: &Subset| part.record.groups.iter().any(|group| group.has(subset));
    target.subset.as_deref().filter(|subset| !has(subset)).map(|_| Missing::Subset)
}

async fn read(tcp: &mut TcpStream) -> Result<(String, Bytes), SniError> {
    let (mut bytes, mut hello) = (BytesMut::with_capacity(2 << 10), Hello::default());
    loop {
        let ended = tcp.read_buf(&mut bytes).await.map_err(SniError::Gone)? == 0;
        if let Some(name) = hello.server_name(&bytes)? {
            return Ok((name, bytes.freeze()));
        }
        if ended {
            return Err(SniError::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// A client whose first words were read already.
struct Greeted {
    local: Local,
    /// They, until they have been sent on.
    hello: Option<Bytes>,
}

impl Client for Greeted {
    fn has_ended(&self) -> bool {
        self.local.has_ended()
    }

    fn read_now(&mut self) -> io::Result<Option<Bytes>> {
        match self.hello.take() {
            Some(hello) => Ok(Some(hello)),
            None => Client::read_now(&mut self.local),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        match self.hello.take() {
            Some(hello) => Poll::Ready(Ok(Some(hello))),
            None => self.local.poll_next(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use eastway_model::rules::{NameFilter, PeerRules, Rules};
    use eastway_model::store::Writer;
    use eastway_model::{
        Change, EndpointGroup, PeerChange, PortNumber, ServiceKey, ServicePort, ServiceRecord, TlsMode, UnixMillis,
    };

    use super::*;

    /// What peer b exports to a: `shop/web` at port 80, of which there is a version v1, and v2 without endpoints just now.
    fn exported() -> Arc<Snapshot> {
        let (own, peer) = (ClusterName::parse("a").unwrap(), ClusterName::parse("b").unwrap());
        let key = ServiceKey::parse("shop", "web").unwrap();
        let port = ServicePort {
            name: None,
            number: PortNumber::new(80).unwrap(),
            protocol: Protocol::Tcp,
            app_protocol: None,
        };
        let group = |version: &str, ready| EndpointGroup {
            zone: None,
            subset: Subset::from_iter([(Arc::from("version"), Arc::from(version))]),
            ready,
            draining: 0,
            weight: u64::from(ready) * 100,
            identities: Vec::new(),
            tls: TlsMode::Istio,
        };
        let groups = vec![group("v1", 1), group("v2", 0)];
        let record = ServiceRecord { groups, ..ServiceRecord::new(key.clone(), vec![port]) };
        let (mut writer, reader) = Writer::new(own);
        writer.await_registries([]);
        let import = NameFilter::of_namespace(&key.namespace).unwrap();
        let rules = PeerRules { import, ..PeerRules::new(peer.clone(), "b.example", UnixMillis(1)) };
        writer.set_rules(Arc::new(Rules { peers: [(peer.clone(), Arc::new(rules))].into(), ..Rules::default() }));
        let change = PeerChange::Replace(vec![Arc::new(record)]);
        writer.apply([Change::Peer { cluster: peer, change }], UnixMillis(1));
        reader.load_full()
    }

    #[test]
    fn what_the_peer_does_not_have_is_refused_before_anybody_is_asked() {
        let (snapshot, cluster) = (exported(), ClusterName::parse("b").unwrap());
        let missing = |name: &str| {
            let target = name::target(name, &cluster, snapshot.rules(), &Subsets::new()).unwrap();
            missing(&snapshot, &target).map(|missing| match missing {
                Missing::Part(error) => error.to_string(),
                Missing::Subset => "subset".to_owned(),
            })
        };
        assert_eq!(missing("outbound_.80_._.web.shop.svc.cluster.local"), None);
        assert_eq!(missing("outbound_.80_.v1_.web.shop.svc.cluster.local"), None);
        assert_eq!(missing("outbound_.80_.v2_.web.shop.svc.cluster.local"), None, "it is there, and may come back");
        assert_eq!(missing("outbound_.80_.v3_.web.shop.svc.cluster.local"), Some("subset".to_owned()));
        let (port, service) = (RouteError::UnknownPort.to_string(), RouteError::UnknownService.to_string());
        assert_eq!(missing("outbound_.81_._.web.shop.svc.cluster.local"), Some(port));
        assert_eq!(missing("outbound_.80_._.mail.shop.svc.cluster.local"), Some(service));
    }
}

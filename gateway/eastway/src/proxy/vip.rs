//! Listeners on virtual addresses: one per address and port of an import, of TCP or UDP.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use eastway_model::{ClusterName, Protocol as PortProtocol, ServiceKey};
use futures_util::FutureExt;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::proxy::anyip;
use crate::proxy::clients::Clients;
use crate::proxy::copy;
use crate::proxy::homes::Homes;
use crate::proxy::outbound::{self, Target};
use crate::proxy::udp::listener::{FlowLimits, Listener as UdpListener};
use crate::router::Router;
use crate::telemetry::Refusal;

/// Connections that wait to be accepted, per listener.
const BACKLOG: i32 = 1024;
/// Pause after an accept error that is the machine's and not the connection's, such as EMFILE.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What listeners and connections may take of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipLimits {
    /// Connections served at once; more wait in the kernel's queue. One client has a quarter of them and no
    /// more, so that others find room. As many UDP flows, and as many of one client; packets of more are dropped.
    pub connections: usize,
    /// Addresses with their ports that are listened on.
    pub listeners: usize,
}

impl VipLimits {
    /// Shares of a limit on file descriptors, each at most 65,536: a connection takes up to three, a listener one,
    /// and links, registries and HTTP need theirs. One peer can have half of the listeners: with 20,000 files the
    /// 5,000 services of a large cluster.
    #[must_use]
    pub fn within(file_descriptors: u64) -> Self {
        let share = |part: u64| usize::try_from(file_descriptors / part).unwrap_or(usize::MAX).clamp(64, 65_536);
        Self { connections: share(4), listeners: share(2) }
    }
}

/// Where to listen, and for what.
pub type Spot = (PortProtocol, SocketAddr);

/// What to listen for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where its connections go.
    pub target: Target,
    /// The peer for whose export it is needed; none: this cluster's.
    pub peer: Option<ClusterName>,
}

/// What could not be done for a service.
#[derive(Debug, Default)]
pub struct Unbound {
    /// Addresses that the machine refused, and why.
    pub failed: Vec<(SocketAddr, io::Error)>,
    /// Addresses above the limit.
    pub over_limit: Vec<SocketAddr>,
}

/// All listeners on virtual addresses.
pub struct Listeners {
    router: Arc<Router>,
    connections: TaskTracker,
    accepting: TaskTracker,
    budget: Arc<Semaphore>,
    clients: Arc<Clients>,
    flows: Arc<FlowLimits>,
    homes: Arc<Homes>,
    stop: CancellationToken,
    open: BTreeMap<ServiceKey, BTreeMap<Spot, Listener>>,
    room: Room,
}

struct Listener {
    target: watch::Sender<Arc<Target>>,
    /// For whom it counts.
    peer: Option<ClusterName>,
    /// Ends the accept loop; connections go on.
    _stop: DropGuard,
}

impl Listeners {
    /// None yet. They listen until `stop`, each in a task of `accepting`.
    #[must_use]
    pub fn new(router: Arc<Router>, limits: VipLimits, accepting: TaskTracker, stop: CancellationToken) -> Self {
        let budget = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
        let room = Room { limit: limits.listeners, taken: 0, by_peer: BTreeMap::new() };
        let clients = Clients::new(limits.connections / 4);
        let connections = TaskTracker::new();
        let flows = FlowLimits::new(router.clone(), limits.connections, connections.clone(), stop.clone());
        let (homes, open) = (Arc::default(), BTreeMap::new());
        Self { router, connections, accepting, budget, clients, flows, homes, stop, open, room }
    }

    /// The connections that are being served, to wait for in a drain.
    #[must_use]
    pub fn connections(&self) -> TaskTracker {
        self.connections.clone()
    }

    /// Number of listeners.
    #[must_use]
    pub fn len(&self) -> usize {
        self.room.taken
    }

    /// Whether there is no listener.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// This cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        self.router.cluster()
    }

    /// Whether a service has a listener on this address.
    #[must_use]
    pub fn listens(&self, service: &ServiceKey, address: IpAddr) -> bool {
        self.open.get(service).is_some_and(|open| open.keys().any(|(_, socket)| socket.ip() == address))
    }

    /// Makes the listeners of a service be those of `wanted`, as far as there is room. Established
    /// connections are never touched.
    pub fn set(&mut self, service: &ServiceKey, wanted: BTreeMap<Spot, Wanted>) -> Unbound {
        let mut current = self.open.remove(service).unwrap_or_default();
        current.retain(|spot, listener| {
            let keep = wanted.contains_key(spot);
            if !keep {
                self.room.leave(listener.peer.as_ref());
            }
            keep
        });
        let mut unbound = Unbound::default();
        for (spot, wanted) in wanted {
            if let Some(listener) = current.get_mut(&spot) {
                // The socket stays, and with it what waits in its queue.
                self.room.leave(listener.peer.as_ref());
                self.room.enter(wanted.peer.as_ref());
                listener.peer = wanted.peer;
                listener.target.send_if_modified(|target| {
                    let changed = **target != wanted.target;
                    if changed {
                        *target = Arc::new(wanted.target);
                    }
                    changed
                });
                continue;
            }
            if !self.room.has_for(wanted.peer.as_ref()) {
                unbound.over_limit.push(spot.1);
                continue;
            }
            match self.listen(spot, wanted) {
                Ok(listener) => {
                    self.room.enter(listener.peer.as_ref());
                    current.insert(spot, listener);
                }
                Err(error) => unbound.failed.push((spot.1, error)),
            }
        }
        if !current.is_empty() {
            self.open.insert(service.clone(), current);
        }
        unbound
    }

    fn listen(&self, (protocol, address): Spot, wanted: Wanted) -> io::Result<Listener> {
        let Wanted { target, peer } = wanted;
        let stop = self.stop.child_token();
        debug!(%address, %protocol, service = %target.service, port = target.port, "listening on a virtual address");
        let (sender, target) = watch::channel(Arc::new(target));
        if protocol == PortProtocol::Udp {
            let listener = UdpListener::bind(address, target, self.flows.clone())?;
            self.accepting.spawn(listener.run(stop.clone()));
            return Ok(Listener { target: sender, peer, _stop: stop.drop_guard() });
        }
        let listener = listening(address)?;
        // Its connections have it from the listener, each without a system call of its own.
        listener.set_tcp_nodelay(true)?;
        copy::reset_unless_done(&listener);
        let accept = Accept {
            router: self.router.clone(),
            connections: self.connections.clone(),
            budget: self.budget.clone(),
            clients: self.clients.clone(),
            homes: self.homes.clone(),
            number: self.room.taken,
            target,
        };
        self.accepting.spawn(accept.start(listener.into(), self.accepting.clone(), stop.clone()));
        Ok(Listener { target: sender, peer, _stop: stop.drop_guard() })
    }
}

/// How many listeners there may be, and for whom there are.
#[derive(Debug)]
struct Room {
    limit: usize,
    taken: usize,
    by_peer: BTreeMap<ClusterName, usize>,
}

impl Room {
    /// A peer gets at most as many as stay free, so that no peer takes them all: the first can have a
    /// half, the next a half of the rest (invariant I8).
    fn has_for(&self, peer: Option<&ClusterName>) -> bool {
        let free = self.limit.saturating_sub(self.taken);
        match peer {
            None => free > 0,
            Some(peer) => self.by_peer.get(peer).copied().unwrap_or(0) < free,
        }
    }

    fn enter(&mut self, peer: Option<&ClusterName>) {
        self.taken += 1;
        if let Some(peer) = peer {
            *self.by_peer.entry(peer.clone()).or_default() += 1;
        }
    }

    fn leave(&mut self, peer: Option<&ClusterName>) {
        self.taken = self.taken.saturating_sub(1);
        let Some(peer) = peer else { return };
        if let Some(count) = self.by_peer.get_mut(peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_peer.remove(peer);
            }
        }
    }
}

/// Listens on an address; `[::]` takes IPv4 too.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(listening(address)?.into())
}

fn listening(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    anyip::bind(&socket, address)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

struct Accept {
    router: Arc<Router>,
    connections: TaskTracker,
    budget: Arc<Semaphore>,
    clients: Arc<Clients>,
    homes: Arc<Homes>,
    /// Its number among listeners, more or less.
    number: usize,
    target: watch::Receiver<Arc<Target>>,
}

impl Accept {
    /// Accepts until `stop`, in a task of `tasks`: where connections are served as soon as that is known, so that most of
    /// them wake no other thread.
    async fn start(self, mut listener: std::net::TcpListener, tasks: TaskTracker, stop: CancellationToken) {
        let home = loop {
            if let Some(home) = self.homes.of_listener(&self.router, self.number) {
                break home;
            }
            match self.accept_here(listener, &stop, 1).await {
                Some(left) => listener = left,
                None => return,
            }
        };
        tasks.spawn_on(async move { drop(self.accept_here(listener, &stop, usize::MAX).await) }, &home);
    }

    /// Accepts `most` times, and gives the listener back; `None`: told to stop. No error ends it (threat U6): those of one
    /// connection are skipped, those of the machine are waited out.
    async fn accept_here(
        &self,
        mut listener: std::net::TcpListener,
        stop: &CancellationToken,
        most: usize,
    ) -> Option<std::net::TcpListener> {
        let listener = loop {
            #[allow(deprecated, reason = "the new name is unsafe, for what does not own its descriptor as sockets do")]
            match AsyncFd::try_with_interest(listener, Interest::READABLE) {
                Ok(listener) => break listener,
                Err(refused) => {
                    let (back, error) = refused.into_parts();
                    listener = back;
                    stop.run_until_cancelled(self.wait_out(&error)).await?;
                }
            }
        };
        let mut accepted = 0;
        while accepted < most {
            match stop.run_until_cancelled(accept(&listener)).await? {
                Ok((tcp, client)) => {
                    self.serve(tcp, client, stop).await?;
                    accepted += 1;
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => self.wait_out(&error).await,
            }
        }
        Some(listener.into_inner())
    }

    /// Has a connection served, or refuses it. `None`: told to stop.
    async fn serve(&self, tcp: std::net::TcpStream, client: SocketAddr, stop: &CancellationToken) -> Option<()> {
        // A socket of both families shows IPv4 clients as IPv6 addresses.
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let Some(share) = self.clients.enter(client.ip()) else {
            // It is reset, as all are that do not end in order.
            self.refused(format_args!("{client} has its share of connections to virtual addresses"));
            return Some(());
        };
        // Taken after the accept: a listener without clients must not use the budget up.
        let permit = match self.budget.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => stop.run_until_cancelled(self.budget.clone().acquire_owned()).await?.ok()?,
        };
        let (home, seat) = self.homes.take(&self.router);
        let Ok(tcp) = at(&home, tcp) else { return Some(()) };
        let serving = outbound::serve(self.router.clone(), tcp, client, self.target.borrow().clone());
        // Not awaited by another future, which would keep it twice.
        self.connections.spawn_on(serving.map(|()| drop((permit, share, seat))), &home);
        Some(())
    }

    async fn wait_out(&self, error: &io::Error) {
        let service = self.target.borrow().service.clone();
        self.refused(format_args!("{service}: cannot accept connections: {error}"));
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    fn refused(&self, detail: std::fmt::Arguments<'_>) {
        self.router.telemetry.refusals.refused(Refusal::Overload, None, detail);
    }
}

/// The next connection. Not by tokio's listener, which would wait for its bytes here.
async fn accept(listener: &AsyncFd<std::net::TcpListener>) -> io::Result<(std::net::TcpStream, SocketAddr)> {
    loop {
        let mut ready = listener.readable().await?;
        let accepted = ready.try_io(|listener| {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let (tcp, client) = acceptfrom_with(listener.get_ref(), flags)?;
            let client = client.and_then(|client| SocketAddr::try_from(client).ok());
            Ok((tcp.into(), client.ok_or(io::ErrorKind::ConnectionAborted)?))
        });
        if let Ok(accepted) = accepted {
            return accepted;
        }
    }
}

/// Has the runtime that the connection is served in wait for its socket.
fn at(home: &Handle, tcp: std::net::TcpStream) -> io::Result<TcpStream> {
    let _entered = home.enter();
    TcpStream::from_std(tcp)
}

pub(crate) fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use eastway_model::PortNumber;
    use eastway_model::store::Writer;

    use super::*;
    use crate::proxy::dial::DialRules;
    use crate::telemetry::{AccessMode, Telemetry};

    fn wanted(service: &ServiceKey, port: u16, peer: Option<&str>) -> Wanted {
        let cluster = peer.map(|peer| ClusterName::parse(peer).unwrap());
        let port = PortNumber::new(port).unwrap();
        let target = Target { service: service.clone(), port, cluster: cluster.clone(), subset: None, endpoint: None };
        Wanted { target, peer: cluster }
    }

    #[tokio::test]
    async fn a_listener_whose_target_changes_keeps_its_socket() {
        let (_writer, reader) = Writer::new(ClusterName::parse("a").unwrap());
        let telemetry = Telemetry::new(AccessMode::Off);
        let never = copy::Limits { idle: Duration::ZERO, half_closed: Duration::ZERO };
        let router = Router::new(reader, DialRules::default(), never, telemetry);
        let limits = VipLimits { connections: 1, listeners: 2 };
        let mut listeners = Listeners::new(Arc::new(router), limits, TaskTracker::new(), CancellationToken::new());
        let service = ServiceKey::parse("shop", "web").unwrap();
        // A port that was free a moment ago.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for peer in [None, Some("b"), Some("c"), None] {
            let unbound = listeners
                .set(&service, [((PortProtocol::Tcp, address), wanted(&service, address.port(), peer))].into());
            assert!(unbound.failed.is_empty() && unbound.over_limit.is_empty(), "{peer:?}: {unbound:?}");
            // There is no such service: it is accepted and reset, which `connect` may see already.
            let refused =
                TcpStream::connect(address).await.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
            assert!(!refused, "{peer:?}");
            assert_eq!(listeners.room.by_peer.len(), usize::from(peer.is_some()));
        }
        assert_eq!(listeners.len(), 1);
        listeners.set(&service, BTreeMap::new());
        assert!(listeners.is_empty());
    }

    #[test]
    fn i8_no_peer_takes_all_listeners() {
        let mut room = Room { limit: 1000, taken: 0, by_peer: BTreeMap::new() };
        let names: Vec<_> = ["greedy", "second"].map(|name| ClusterName::parse(name).unwrap()).into();
        let mut got = names.iter().map(|peer| {
            let mut got = 0;
            while room.has_for(Some(peer)) {
                room.enter(Some(peer));
                got += 1;
            }
            got
        });
        assert_eq!((got.next(), got.next()), (Some(500), Some(250)));
        drop(got);
        assert!(room.has_for(None), "this cluster's own services have room");
        for _ in 0..500 {
            room.leave(Some(&names[0]));
        }
        assert_eq!(room.by_peer.len(), 1);
        assert!(room.has_for(Some(&names[1])), "what a peer gives back is for all");
    }
}

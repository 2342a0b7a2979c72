//! A UDP port with the connections on it: the one where links are taken, or one that a link was dialled from.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, ConnectError, ConnectionEvent, ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint,
    EndpointEvent, Incoming, ServerConfig, Transmit,
};
use quinn_udp::RecvMeta;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::congestion::Lossy;
use super::drive::Conn;
use super::forward::Forwarding;
use super::handshake::Handshakes;
use super::udp::{Batch, Udp};
use crate::replicas::paths::is_path;

/// See the module's documentation.
pub(super) struct Port {
    state: Mutex<State>,
    /// Where packets leave.
    socket: ArcSwap<Udp>,
    /// The other replicas of this cluster, whose packets come here too.
    forwarding: Option<Forwarding>,
    /// Who takes links here; nobody where a link was dialled from.
    handshakes: Option<Handshakes>,
    pub(super) tasks: TaskTracker,
    /// Where paths lose packets.
    pub(super) lossy: Arc<Lossy>,
    /// Its tasks end.
    pub(super) dead: CancellationToken,
    /// A connection has left.
    left: Notify,
}

struct State {
    endpoint: Endpoint,
    /// Each is held by its task.
    connections: HashMap<ConnectionHandle, Weak<Conn>>,
}

impl Port {
    /// A port that a link is dialled from.
    pub(super) fn for_dial(endpoint: Endpoint, socket: Udp, tasks: TaskTracker, lossy: Arc<Lossy>) -> Arc<Self> {
        Arc::new(Self::new(endpoint, Arc::new(socket), None, None, (tasks, lossy)))
    }

    /// The port where links are taken.
    pub(super) fn listening(
        endpoint: Endpoint,
        socket: Arc<Udp>,
        forwarding: Option<Forwarding>,
        handshakes: Handshakes,
        tasks: TaskTracker,
        lossy: Arc<Lossy>,
    ) -> Arc<Self> {
        Arc::new(Self::new(endpoint, socket, forwarding, Some(handshakes), (tasks, lossy)))
    }

    fn new(
        endpoint: Endpoint,
        socket: Arc<Udp>,
        forwarding: Option<Forwarding>,
        handshakes: Option<Handshakes>,
        (tasks, lossy): (TaskTracker, Arc<Lossy>),
    ) -> Self {
        Self {
            state: Mutex::new(State { endpoint, connections: HashMap::new() }),
            socket: ArcSwap::new(socket),
            forwarding,
            handshakes,
            tasks,
            lossy,
            dead: CancellationToken::new(),
            left: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where packets leave now.
    pub(super) fn socket(&self) -> Arc<Udp> {
        self.socket.load_full()
    }

    /// Has packets leave by another socket from now on.
    pub(super) fn set_socket(&self, socket: Arc<Udp>) {
        self.socket.store(socket);
    }

    /// Begins a connection.
    pub(super) fn connect(
        self: &Arc<Self>,
        home: &Handle,
        config: ClientConfig,
        remote: SocketAddr,
        name: &str,
    ) -> Result<Arc<Conn>, ConnectError> {
        let mut state = self.state();
        let (handle, inner) = state.endpoint.connect(Instant::now(), config, remote, name)?;
        Ok(state.admit(self, home, handle, inner))
    }

    /// Sends a train. `false`: the socket takes no more now.
    pub(super) fn send(&self, socket: &Udp, transmit: &Transmit, contents: &[u8]) -> bool {
        let contents = contents.get(..transmit.size).unwrap_or(contents);
        match &self.forwarding {
            Some(forwarding) if is_path(&transmit.destination) => {
                forwarding.answer(transmit, contents);
                true
            }
            _ => socket.send(transmit, contents),
        }
    }

    /// What is not sent is lost, as on any path.
    fn answer(&self, transmit: &Transmit, contents: &[u8]) {
        self.send(&self.socket.load(), transmit, contents);
    }

    /// Takes what a connection has to say to its endpoint. Called with the lock of the connection, and so nobody may ask
    /// for that one while he holds this one.
    pub(super) fn endpoint_event(&self, handle: ConnectionHandle, event: EndpointEvent) -> Option<ConnectionEvent> {
        self.state().endpoint.handle_event(handle, event)
    }

    /// A connection has ended.
    pub(super) fn left(&self, handle: ConnectionHandle) {
        self.state().connections.remove(&handle);
        self.left.notify_waiters();
        if self.handshakes.is_none() {
            // It was for that one only.
            self.dead.cancel();
        }
    }

    /// All connections.
    pub(super) fn connections(&self) -> Vec<Arc<Conn>> {
        self.state().connections.values().filter_map(Weak::upgrade).collect()
    }

    /// Waits until there is no connection.
    pub(super) async fn idle(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if self.state().connections.is_empty() {
                return;
            }
            left.await;
        }
    }

    /// Takes what a socket received.
    pub(super) fn received(self: &Arc<Self>, batch: &mut Batch) {
        let view = self.forwarding.as_ref().map(Forwarding::view);
        let mut arrivals = Arrivals::new(self);
        for (buffer, meta) in batch.trains() {
            if self.handshakes.is_some() {
                meta.addr = outward(meta.addr);
            }
            if let (Some(forwarding), Some(view)) = (&self.forwarding, &view) {
                forwarding.divert(view, buffer, meta);
            }
            if let Some(train) = buffer.get(..meta.len).filter(|train| !train.is_empty()) {
                arrivals.train(train, meta);
            }
        }
        arrivals.deliver();
    }

    /// Takes what another replica handed over.
    pub(super) fn handed_over(self: &Arc<Self>, packet: &[u8], from: SocketAddr, ecn: Option<EcnCodepoint>) {
        let mut arrivals = Arrivals::new(self);
        let ecn = ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8));
        let meta = RecvMeta { addr: from, len: packet.len(), stride: packet.len(), ecn, ..RecvMeta::default() };
        arrivals.train(packet, &RecvMeta { dst_ip: None, ..meta });
        arrivals.deliver();
    }

    pub(super) fn forwarding(&self) -> Option<&Forwarding> {
        self.forwarding.as_ref()
    }

    /// Sends a strangers' packet back with a token that proves his address. `Err`: he had one, and it is not good.
    pub(super) fn retry(&self, incoming: Incoming) -> Result<(), ()> {
        let mut buffer = Vec::new();
        let mut state = self.state();
        match state.endpoint.retry(incoming, &mut buffer) {
            Ok(transmit) => {
                drop(state);
                self.answer(&transmit, &buffer);
                Ok(())
            }
            Err(error) => {
                state.endpoint.ignore(error.into_incoming());
                Err(())
            }
        }
    }

    pub(super) fn ignore(&self, incoming: Incoming) {
        self.state().endpoint.ignore(incoming);
    }

    /// Begins the handshake of somebody whose address is known to be his.
    pub(super) fn accept(
        self: &Arc<Self>,
        home: &Handle,
        incoming: Incoming,
        server: Arc<ServerConfig>,
    ) -> Result<Arc<Conn>, quinn_proto::ConnectionError> {
        let mut buffer = Vec::new();
        let mut state = self.state();
        match state.endpoint.accept(incoming, Instant::now(), &mut buffer, Some(server)) {
            Ok((handle, inner)) => Ok(state.admit(self, home, handle, inner)),
            Err(error) => {
                drop(state);
                if let Some(transmit) = error.response {
                    self.answer(&transmit, &buffer);
                }
                Err(error.cause)
            }
        }
    }
}

impl State {
    fn admit(
        &mut self,
        port: &Arc<Port>,
        home: &Handle,
        handle: ConnectionHandle,
        inner: quinn_proto::Connection,
    ) -> Arc<Conn> {
        let conn = Conn::new(Arc::clone(port), home.clone(), handle, inner);
        self.connections.insert(handle, Arc::downgrade(&conn));
        conn
    }
}

/// Packets of one turn, by whom they are for.
struct Arrivals<'a> {
    port: &'a Arc<Port>,
    now: Instant,
    connections: Vec<(Arc<Conn>, Vec<ConnectionEvent>)>,
    incoming: Vec<Incoming>,
    answers: Vec<(Transmit, Vec<u8>)>,
}

impl<'a> Arrivals<'a> {
    fn new(port: &'a Arc<Port>) -> Self {
        Self { port, now: Instant::now(), connections: Vec::new(), incoming: Vec::new(), answers: Vec::new() }
    }

    fn train(&mut self, train: &[u8], meta: &RecvMeta) {
        let mut train = BytesMut::from(train);
        let stride = meta.stride.max(1);
        let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
        let mut answer = Vec::new();
        let mut state = self.port.state();
        while !train.is_empty() {
            let datagram = train.split_to(stride.min(train.len()));
            match state.endpoint.handle(self.now, meta.addr, meta.dst_ip, ecn, datagram, &mut answer) {
                Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                    if let Some((conn, events)) = self.connections.last_mut()
                        && conn.is(handle)
                    {
                        events.push(event);
                    } else if let Some(conn) = state.connections.get(&handle).and_then(Weak::upgrade) {
                        self.connections.push((conn, vec![event]));
                    }
                }
                Some(DatagramEvent::NewConnection(incoming)) => self.incoming.push(incoming),
                Some(DatagramEvent::Response(transmit)) => {
                    self.answers.push((transmit, std::mem::take(&mut answer)));
                }
                None => {}
            }
        }
    }

    /// Not before all of them are known: a connection answers all of its packets at once.
    fn deliver(self) {
        for (transmit, contents) in self.answers {
            self.port.answer(&transmit, &contents);
        }
        for incoming in self.incoming {
            match &self.port.handshakes {
                Some(handshakes) => handshakes.take(self.port, incoming),
                None => self.port.ignore(incoming),
            }
        }
        for (conn, events) in self.connections {
            conn.handle(events);
        }
    }
}

/// `address` as it is shown: IPv4 addresses that a socket for both families tells as IPv6 ones are what they are. The
/// endpoint keeps what it knows of a path, when a NAT rebinds it, only for those it sees as IPv4: see
/// [`config`](super::config).
fn outward(address: SocketAddr) -> SocketAddr {
    let SocketAddr::V6(v6) = address else { return address };
    v6.ip().to_ipv4_mapped().map_or(address, |ip| SocketAddr::new(ip.into(), v6.port()))
}

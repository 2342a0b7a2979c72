//! Links inside one process, for tests in virtual time: the same identities, verifiers and semantics as over
//! a network, a delay, windows, and partitions; no packets, and no loss but of datagrams.
//!
//! Time is tokio's, so that a test that pauses it runs days of link life in a moment.

mod datagrams;
mod pipe;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use eastway_identity::{Clock, IdentityStore, TrustStore, VerifiedPeer, VerifyError};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::datagrams::{Datagrams, Weather};
use self::pipe::{Credit, Pipe, PipeEnd};
use super::{
    BoxFuture, CloseReason, Connection, DatagramRefused, DialError, Established, ExporterError, Halves, Lost,
    PathStats, Side, Transport, TransportKind,
};
use crate::code::CloseCode;

/// Connections that may wait to be accepted.
const BACKLOG: usize = 64;
/// Streams that may wait to be accepted.
const STREAM_BACKLOG: usize = 1_024;

/// A network that exists in memory.
#[derive(Clone)]
pub struct MemoryNetwork {
    inner: Arc<Network>,
}

struct Network {
    /// One way.
    delay: Duration,
    /// Silence after which an end gives up.
    idle: Duration,
    /// Unread bytes that an end of a connection may hold at first.
    window: u64,
    hosts: Mutex<HashMap<SocketAddr, Arc<Host>>>,
    /// Pairs of hosts that do not reach each other, each pair both ways round.
    cuts: watch::Sender<HashSet<(SocketAddr, SocketAddr)>>,
    connections: Mutex<Vec<Weak<Shared>>>,
    next_port: AtomicU16,
    weather: Mutex<Weather>,
}

/// Who listens at an address.
struct Host {
    identity: Arc<IdentityStore>,
    trust: Arc<TrustStore>,
    clock: Clock,
    incoming: mpsc::Sender<Established>,
}

impl MemoryNetwork {
    /// A network where every packet takes `delay`, and an end that hears nothing for `idle` gives up.
    #[must_use]
    pub fn new(delay: Duration, idle: Duration) -> Self {
        Self::with_window(delay, idle, u64::MAX)
    }

    /// As [`MemoryNetwork::new`], where an end holds at most `window` unread bytes, all streams of a connection together,
    /// until it [says otherwise](Connection::set_receive_window). Have it the `link_window` of the tunnels' limits.
    #[must_use]
    pub fn with_window(delay: Duration, idle: Duration, window: u64) -> Self {
        let inner = Network {
            delay,
            idle,
            window,
            hosts: Mutex::default(),
            cuts: watch::Sender::default(),
            connections: Mutex::default(),
            next_port: AtomicU16::new(0),
            weather: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A transport that takes links at `address`.
    #[must_use]
    pub fn transport(
        &self,
        address: SocketAddr,
        identity: Arc<IdentityStore>,
        trust: Arc<TrustStore>,
        clock: Clock,
    ) -> Arc<dyn Transport> {
        let (incoming, accepted) = mpsc::channel(BACKLOG);
        let host = Arc::new(Host { identity, trust, clock, incoming });
        lock(&self.inner.hosts).insert(address, Arc::clone(&host));
        let network = Arc::clone(&self.inner);
        Arc::new(MemoryTransport { network, address, host, accepted: tokio::sync::Mutex::new(accepted) })
    }

    /// From now on nothing passes between the hosts of `a` and `b`.
    pub fn cut(&self, a: SocketAddr, b: SocketAddr) {
        self.inner.cuts.send_modify(|cuts| cuts.extend([(a, b), (b, a)]));
        self.inner.wake_all();
    }

    /// Undoes [`MemoryNetwork::cut`]. What waited arrives now.
    pub fn heal(&self, a: SocketAddr, b: SocketAddr) {
        self.inner.cuts.send_modify(|cuts| cuts.retain(|pair| *pair != (a, b) && *pair != (b, a)));
        self.inner.wake_all();
    }

    /// From now on `loss` of a hundred datagrams do not arrive, chosen as every run of a test chooses them.
    pub fn lose_datagrams(&self, loss: u32) {
        lock(&self.inner.weather).loss = loss;
    }

    /// From now on datagrams of up to `longest` bytes are taken; `None`: none at all. At first those of 1,200 bytes.
    pub fn set_longest_datagram(&self, longest: Option<usize>) {
        lock(&self.inner.weather).longest = longest;
    }

    /// The process at `address` dies: its connections are gone on both ends as soon as a packet can tell.
    pub fn kill(&self, address: SocketAddr) {
        lock(&self.inner.hosts).remove(&address);
        for connection in self.inner.live() {
            if connection.hosts.contains(&address) {
                connection.end([CloseReason::Reset, CloseReason::Reset]);
            }
        }
    }
}

impl Network {
    fn is_cut(&self, hosts: [SocketAddr; 2]) -> bool {
        self.cuts.borrow().contains(&(hosts[0], hosts[1]))
    }

    fn live(&self) -> Vec<Arc<Shared>> {
        let mut connections = lock(&self.connections);
        connections.retain(|connection| connection.strong_count() > 0);
        connections.iter().filter_map(Weak::upgrade).collect()
    }

    fn wake_all(&self) {
        for connection in self.live() {
            connection.wake_pipes();
        }
    }
}

struct MemoryTransport {
    network: Arc<Network>,
    address: SocketAddr,
    host: Arc<Host>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Established>>,
}

impl Transport for MemoryTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Memory
    }

    fn local_addr(&self) -> SocketAddr {
        self.address
    }

    fn dial(&self, peer: Arc<str>, remote: SocketAddr) -> BoxFuture<'static, Result<Established, DialError>> {
        let (network, host, address) = (Arc::clone(&self.network), Arc::clone(&self.host), self.address);
        Box::pin(async move {
            let after = network.idle;
            let dial = dial(Arc::clone(&network), host, address, peer, remote);
            tokio::time::timeout(after, dial).await.unwrap_or(Err(DialError::NoReply { remote, after }))
        })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Established>> {
        Box::pin(async { self.accepted.lock().await.recv().await })
    }

    fn handshake_failures(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            lock(&self.network.hosts).remove(&self.address);
            self.accepted.lock().await.close();
        })
    }
}

async fn dial(
    network: Arc<Network>,
    host: Arc<Host>,
    address: SocketAddr,
    peer: Arc<str>,
    remote: SocketAddr,
) -> Result<Established, DialError> {
    let hosts = [address, remote];
    let mut cuts = network.cuts.subscribe();
    // A handshake takes a round trip, and waits for the network.
    tokio::time::sleep(network.delay * 2).await;
    cuts.wait_for(|cuts| !cuts.contains(&(address, remote))).await.ok();
    let other = lock(&network.hosts).get(&remote).cloned();
    let Some(other) = other else { return std::future::pending().await };
    let judge = |judge: &Host, judged: &Host, expected: Option<&str>| -> Result<VerifiedPeer, VerifyError> {
        judge.trust.verify(judged.identity.current().chain(), (judge.clock)(), expected)
    };
    let refused = |reason: String| DialError::RefusedUs { remote, reason };
    let theirs = judge(&host, &other, Some(&peer)).map_err(|error| DialError::Rejected {
        remote,
        reason: format!("the other side {error}"),
        verdict: Some(error),
    })?;
    let ours = judge(&other, &host, None).map_err(|error| refused(error.reason().public().to_owned()))?;
    let (our_leaf, their_leaf) = (host.identity.current(), other.identity.current());
    let mut exporter = [0; 32];
    exporter.fill_with(|| fastrand::u8(..));
    let port = network.next_port.fetch_add(1, Ordering::Relaxed);
    let (streams, receivers): (Vec<_>, Vec<_>) = (0..2).map(|_| mpsc::channel(STREAM_BACKLOG)).unzip();
    let shared = Arc::new(Shared {
        network: Arc::clone(&network),
        hosts,
        exporter,
        streams,
        ended: watch::Sender::default(),
        pipes: Mutex::default(),
        datagrams: Default::default(),
        credits: [Credit::new(network.window), Credit::new(network.window)],
    });
    remember(&network.connections, &shared);
    tokio::spawn(watch_silence(Arc::downgrade(&shared), Arc::clone(&network)));
    let dialled_from = SocketAddr::new(address.ip(), port);
    let mut ends = receivers.into_iter().zip([(Side::Dialler, remote), (Side::Acceptor, dialled_from)]).map(
        |(incoming, (side, remote))| {
            let incoming = tokio::sync::Mutex::new(incoming);
            Arc::new(MemoryConnection { shared: Arc::clone(&shared), side, remote, incoming }) as Arc<dyn Connection>
        },
    );
    let (Some(dialler), Some(acceptor)) = (ends.next(), ends.next()) else {
        return Err(refused("two ends were expected".to_owned()));
    };
    let accepted = Established {
        connection: acceptor,
        chain: our_leaf.chain().to_vec(),
        peer: ours,
        local_leaf_sha256: their_leaf.leaf_sha256(),
    };
    other.incoming.send(accepted).await.map_err(|_| refused("nobody listens any more".to_owned()))?;
    let (chain, local_leaf_sha256) = (their_leaf.chain().to_vec(), our_leaf.leaf_sha256());
    Ok(Established { connection: dialler, peer: theirs, chain, local_leaf_sha256 })
}

/// Ends a connection whose ends have not heard of each other for too long.
async fn watch_silence(connection: Weak<Shared>, network: Arc<Network>) {
    let mut cuts = network.cuts.subscribe();
    loop {
        let Some(hosts) = connection.upgrade().map(|connection| connection.hosts) else { return };
        let cut = |cuts: &HashSet<(SocketAddr, SocketAddr)>| cuts.contains(&(hosts[0], hosts[1]));
        if cuts.wait_for(cut).await.is_err() {
            return;
        }
        let healed = tokio::time::timeout(network.idle, cuts.wait_for(|cuts| !cut(cuts))).await.is_ok();
        if !healed && let Some(connection) = connection.upgrade() {
            connection.end([CloseReason::Silent, CloseReason::Silent]);
            return;
        }
    }
}

/// What both ends of a connection share.
struct Shared {
    network: Arc<Network>,
    /// The dialler's and the acceptor's.
    hosts: [SocketAddr; 2],
    exporter: [u8; 32],
    /// New streams, to the dialler and to the acceptor.
    streams: Vec<mpsc::Sender<Halves>>,
    /// When it ended, and how the dialler and the acceptor see it.
    ended: watch::Sender<Option<(Instant, [CloseReason; 2])>>,
    pipes: Mutex<Vec<Weak<Mutex<Pipe>>>>,
    /// From the dialler, and from the acceptor.
    datagrams: [Datagrams; 2],
    /// What the dialler and the acceptor may leave unread.
    credits: [Arc<Credit>; 2],
}

impl Shared {
    fn end(&self, reasons: [CloseReason; 2]) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some((Instant::now(), reasons));
            }
            first
        });
        self.wake_pipes();
    }

    fn is_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    fn is_cut(&self) -> bool {
        self.network.is_cut(self.hosts)
    }

    fn wake_pipes(&self) {
        let mut pipes = lock(&self.pipes);
        pipes.retain(|pipe| pipe.strong_count() > 0);
        let pipes: Vec<_> = pipes.iter().filter_map(Weak::upgrade).collect();
        for pipe in pipes {
            lock(&pipe).wake();
        }
    }

    fn credit(&self, reader: Side) -> &Arc<Credit> {
        let [dialler, acceptor] = &self.credits;
        match reader {
            Side::Dialler => dialler,
            Side::Acceptor => acceptor,
        }
    }

    fn pipe(&self, reader: Side) -> Arc<Mutex<Pipe>> {
        let pipe = Arc::new(Mutex::new(Pipe::new(Arc::clone(self.credit(reader)))));
        remember(&self.pipes, &pipe);
        pipe
    }
}

struct MemoryConnection {
    shared: Arc<Shared>,
    side: Side,
    remote: SocketAddr,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Halves>>,
}

impl MemoryConnection {
    fn is_dialler(&self) -> bool {
        self.side == Side::Dialler
    }

    /// Those from here, and those from the other side.
    fn datagrams(&self) -> (&Datagrams, &Datagrams) {
        let [dialler, acceptor] = &self.shared.datagrams;
        if self.is_dialler() { (dialler, acceptor) } else { (acceptor, dialler) }
    }
}

impl Connection for MemoryConnection {
    fn kind(&self) -> TransportKind {
        TransportKind::Memory
    }

    fn side(&self) -> Side {
        self.side
    }

    fn remote_addr(&self) -> SocketAddr {
        self.remote
    }

    fn open(&self) -> BoxFuture<'_, Result<Halves, Lost>> {
        Box::pin(async {
            let other = if self.is_dialler() { Side::Acceptor } else { Side::Dialler };
            let (there, back) = (self.shared.pipe(other), self.shared.pipe(self.side));
            let end = |pipe: &Arc<Mutex<Pipe>>| PipeEnd::new(Arc::clone(pipe), Arc::clone(&self.shared));
            let ours: Halves = (Box::new(end(&there)), Box::new(end(&back)));
            let theirs: Halves = (Box::new(end(&back)), Box::new(end(&there)));
            let other = if self.is_dialler() { self.shared.streams.last() } else { self.shared.streams.first() };
            if self.shared.is_ended() {
                return Err(Lost);
            }
            other.ok_or(Lost)?.send(theirs).await.map_err(|_| Lost)?;
            Ok(ours)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Halves, Lost>> {
        Box::pin(async {
            let mut ended = self.shared.ended.subscribe();
            let mut incoming = self.incoming.lock().await;
            tokio::select! {
                stream = incoming.recv() => stream.ok_or(Lost),
                _ = ended.wait_for(Option::is_some) => Err(Lost),
            }
        })
    }

    fn export(&self, _label: &[u8]) -> Result<[u8; 32], ExporterError> {
        Ok(self.shared.exporter)
    }

    fn max_datagram(&self) -> Option<usize> {
        lock(&self.shared.network.weather).longest
    }

    fn send_datagram(&self, datagram: Bytes) -> Result<(), DatagramRefused> {
        if self.shared.is_ended() {
            return Err(DatagramRefused::Lost);
        }
        let mut weather = lock(&self.shared.network.weather);
        let longest = weather.longest.ok_or(DatagramRefused::Unsupported)?;
        if datagram.len() > longest {
            return Err(DatagramRefused::TooLong);
        }
        if weather.random.u32(..100) >= weather.loss && !self.shared.is_cut() {
            self.datagrams().0.send(datagram, self.shared.network.delay);
        }
        Ok(())
    }

    fn read_datagrams<'a>(&'a self, datagrams: &'a mut Vec<Bytes>) -> BoxFuture<'a, Result<(), Lost>> {
        Box::pin(async {
            let mut ended = self.shared.ended.subscribe();
            tokio::select! {
                () = self.datagrams().1.read(datagrams) => Ok(()),
                _ = ended.wait_for(Option::is_some) => Err(Lost),
            }
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        let local = CloseReason::Local { code, message: reason.to_owned() };
        let remote = CloseReason::Remote { code, message: reason.to_owned() };
        self.shared.end(if self.is_dialler() { [local, remote] } else { [remote, local] });
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(async {
            let mut ended = self.shared.ended.subscribe();
            let ended = ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
            let Some((at, [dialler, acceptor])) = ended else { return CloseReason::Silent };
            let reason = if self.is_dialler() { dialler } else { acceptor };
            if matches!(reason, CloseReason::Remote { .. } | CloseReason::Reset) {
                tokio::time::sleep_until(at + self.shared.network.delay).await;
            }
            reason
        })
    }

    fn path(&self) -> PathStats {
        let dropped_datagrams = self.datagrams().0.dropped();
        PathStats { rtt: self.shared.network.delay * 2, dropped_datagrams, ..PathStats::default() }
    }

    fn set_receive_window(&self, bytes: u64) {
        self.shared.credit(self.side).set_window(bytes);
    }

    fn set_send_window(&self, _bytes: u64) {}

    fn set_max_streams(&self, _streams: u32) {}
}

/// Adds to a list of what may be gone; before the list grows it is cleared of that.
fn remember<T>(list: &Mutex<Vec<Weak<T>>>, new: &Arc<T>) {
    let mut list = lock(list);
    if list.len() == list.capacity() {
        list.retain(|one| one.strong_count() > 0);
    }
    list.push(Arc::downgrade(new));
}

/// Nothing panics while one of these locks is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

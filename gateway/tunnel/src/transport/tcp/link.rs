//! One link: a control connection, and the connections that are or become its streams.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::control::{self, Inbox, Outbox};
use super::flow::Flow;
use super::frames::Frame;
use super::losses::{Diagnosis, Segments};
use super::pipe::Via;
use super::pool::Wish;
use super::preface::{FlowKind, LinkSecret};
use super::session::Session;
use crate::code::CloseCode;
use crate::transport::{
    BoxFuture, CloseReason, Connection, ExporterError, Halves, Lost, PathStats, Side, TransportKind,
};

/// Streams that one look asks the system about: the others are like them.
const LOOKS: usize = 32;
/// Streams of the other side that may wait to be accepted.
const STREAM_BACKLOG: usize = 1_024;
/// Connections of a link beside those that are streams already.
const SPARE: usize = 512;

/// What both its own tasks and its streams know of a link.
pub(super) struct LinkCore {
    pub(super) side: Side,
    pub(super) peer: Arc<str>,
    pub(super) secret: LinkSecret,
    remote: SocketAddr,
    /// The cluster on the way.
    via: Option<Via>,
    /// The control connection; none when it has ended.
    pub(super) session: Mutex<Option<Session>>,
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    /// Every connection of the link, by number.
    flows: Mutex<HashMap<u64, Weak<Flow>>>,
    /// Those that wait to become streams of this side.
    idle: Mutex<Idle>,
    /// One more waits.
    arrived: Notify,
    /// Fewer wait than should. The dialler looks.
    pub(super) short: Notify,
    /// How many the dialler keeps for streams of the acceptor, and how many there are.
    pub(super) reverse: Mutex<Wish>,
    pub(super) reverse_idle: AtomicU32,
    streams: mpsc::Sender<Halves>,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Halves>>,
    control_taken: AtomicBool,
    ended: watch::Sender<Option<CloseReason>>,
    /// Smoothed, microseconds.
    rtt: AtomicU64,
    /// Streams that the other side may have open.
    admitted: AtomicU32,
    /// Connections of the peer, over all of its links; and how many there may be.
    of_peer: Arc<AtomicU32>,
    most_of_peer: u32,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// What became of the segments of its streams, so far as it was looked at; and where the system is asked.
    segments: Mutex<Segments>,
    system: OnceLock<Option<Diagnosis>>,
}

struct Idle {
    flows: VecDeque<Arc<Flow>>,
    wish: Wish,
}

impl LinkCore {
    pub(super) fn new(
        (side, peer, remote, via): (Side, Arc<str>, SocketAddr, Option<Via>),
        secret: LinkSecret,
        session: Session,
        (admitted, most_of_peer, of_peer): (u32, u32, Arc<AtomicU32>),
        (tasks, stop): (TaskTracker, CancellationToken),
    ) -> Arc<Self> {
        let (streams, incoming) = mpsc::channel(STREAM_BACKLOG);
        Arc::new(Self {
            side,
            peer,
            secret,
            remote,
            via,
            session: Mutex::new(Some(session)),
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            flows: Mutex::default(),
            idle: Mutex::new(Idle { flows: VecDeque::new(), wish: Wish::new() }),
            arrived: Notify::new(),
            short: Notify::new(),
            reverse: Mutex::new(Wish::new()),
            reverse_idle: AtomicU32::new(0),
            streams,
            incoming: tokio::sync::Mutex::new(incoming),
            control_taken: AtomicBool::new(false),
            ended: watch::Sender::new(None),
            rtt: AtomicU64::new(0),
            admitted: AtomicU32::new(admitted),
            of_peer,
            most_of_peer,
            tasks,
            stop,
            segments: Mutex::default(),
            system: OnceLock::new(),
        })
    }

    /// Runs `task` until it ends or the transport stops.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// The link has ended; the first reason stays.
    pub(super) fn end(&self, reason: CloseReason) {
        let first = self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(reason);
            }
            first
        });
        if !first {
            return;
        }
        let idle = std::mem::take(&mut lock(&self.idle).flows);
        drop(idle);
        for flow in self.flows() {
            flow.wake_all();
        }
        self.outbox.wake();
        self.inbox.wake();
        self.arrived.notify_waiters();
        self.short.notify_waiters();
    }

    /// Resolves when the link has ended.
    pub(super) async fn wait_end(&self) -> CloseReason {
        let mut ended = self.ended.subscribe();
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        reason.unwrap_or(CloseReason::Silent)
    }

    /// Sends a frame on the control connection, after those before it.
    pub(super) fn send(&self, frame: &Frame) {
        if self.outbox.push(frame).is_err() {
            let message = "the control connection is not read".to_owned();
            self.end(CloseReason::Local { code: CloseCode::Timeout, message });
        }
    }

    pub(super) fn rtt(&self) -> Duration {
        Duration::from_micros(self.rtt.load(Ordering::Relaxed))
    }

    /// A round trip took so long.
    pub(super) fn measured(&self, rtt: Duration) {
        let sample = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX).max(1);
        let before = self.rtt.load(Ordering::Relaxed);
        // As TCP smoothes it (RFC 6298 §2).
        let smoothed = if before == 0 { sample } else { before - before / 8 + sample / 8 };
        self.rtt.store(smoothed, Ordering::Relaxed);
    }

    /// Asks the system what becomes of what streams send, of those of which much moves. Called once a second.
    pub(super) fn look(&self) {
        let system =
            || Diagnosis::open().inspect_err(|error| tracing::debug!(%error, "The system does not tell of TCP")).ok();
        let mut looked = 0;
        for flow in self.flows() {
            let Some(since) = flow.look(|| self.system.get_or_init(system).as_ref()) else { continue };
            lock(&self.segments).add(&since);
            looked += 1;
            if looked >= LOOKS {
                break;
            }
        }
    }

    fn flows(&self) -> Vec<Arc<Flow>> {
        // Not dropped under the lock: the end of a flow takes it.
        let flows: Vec<_> = lock(&self.flows).values().cloned().collect();
        flows.iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn flow(&self, number: u64) -> Option<Arc<Flow>> {
        let flow = lock(&self.flows).get(&number).cloned();
        flow.and_then(|flow| flow.upgrade())
    }

    pub(super) fn forget(&self, number: u64) {
        self.of_peer.fetch_sub(1, Ordering::Relaxed);
        let mut flows = lock(&self.flows);
        flows.remove(&number);
        if flows.is_empty() {
            flows.shrink_to(64);
        }
    }

    fn most(&self) -> usize {
        usize::try_from(self.admitted.load(Ordering::Relaxed)).unwrap_or(usize::MAX).saturating_add(SPARE)
    }

    /// Whether one more connection fits.
    pub(super) fn has_room(&self) -> bool {
        self.of_peer.load(Ordering::Relaxed) < self.most_of_peer && lock(&self.flows).len() < self.most()
    }

    /// Takes a connection into the link, whose frames may come from now on. `None`: there are too many, or one of this
    /// number.
    pub(super) fn add(self: &Arc<Self>, number: u64, session: Session) -> Option<Arc<Flow>> {
        let flow = Flow::new(number, Arc::clone(self), session);
        let most = self.most();
        let mut flows = lock(&self.flows);
        let fits = flows.len() < most && !flows.contains_key(&number) && !self.has_ended();
        if fits {
            flows.insert(number, Arc::downgrade(&flow));
            self.of_peer.fetch_add(1, Ordering::Relaxed);
            flow.set_listed();
        }
        drop(flows);
        fits.then_some(flow)
    }

    /// Takes a connection whose stream the other side opens: it is watched until then.
    pub(super) fn add_passive(self: &Arc<Self>, flow: Arc<Flow>, kind: FlowKind) {
        let link = Arc::clone(self);
        self.spawn(async move {
            let begun = std::future::poll_fn(|cx| flow.poll_begun(cx)).await;
            if kind == FlowKind::Reverse {
                // Another one has to wait in its place.
                let left = link.reverse_idle.fetch_sub(1, Ordering::Relaxed) - 1;
                lock(&link.reverse).taken(usize::try_from(left).unwrap_or(usize::MAX));
                link.short.notify_one();
            }
            if begun {
                // Only when the link has ended does nobody take it.
                link.streams.send(flow.halves()).await.ok();
            }
        });
    }

    /// Takes a connection that a stream of this side may be opened on.
    pub(super) fn add_active(&self, flow: Arc<Flow>) {
        let mut idle = lock(&self.idle);
        if !self.has_ended() {
            idle.flows.push_back(flow);
            drop(idle);
            self.arrived.notify_one();
        }
    }

    /// How many more connections should wait for streams of this side.
    pub(super) fn missing(&self) -> usize {
        let idle = lock(&self.idle);
        idle.wish.size().saturating_sub(idle.flows.len())
    }

    /// How many more should wait for streams of the other side. The dialler's.
    pub(super) fn missing_reverse(&self) -> usize {
        let there = usize::try_from(self.reverse_idle.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        lock(&self.reverse).size().saturating_sub(there)
    }

    /// Ends with the transport.
    pub(super) fn shut_down(&self) {
        self.close(CloseCode::Done, "shutting down");
    }

    fn close(&self, code: CloseCode, reason: &str) {
        if !self.has_ended() {
            self.send(&Frame::Close { code, reason: reason.to_owned() });
            self.end(CloseReason::Local { code, message: reason.to_owned() });
        }
    }

    /// Lets go of what is not needed any more, or of no use.
    pub(super) fn tidy(&self, now: Duration) {
        let mut idle = lock(&self.idle);
        idle.wish.tick(now);
        let size = idle.wish.size();
        let (fresh, stale): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut idle.flows)
            .into_iter()
            .enumerate()
            .partition(|(index, flow)| *index < size && flow.is_fresh());
        idle.flows = fresh.into_iter().map(|(_, flow)| flow).collect();
        drop(idle);
        drop(stale);
        lock(&self.reverse).tick(now);
    }

    /// A connection for a new stream, if one waits.
    fn take(&self) -> Option<Arc<Flow>> {
        loop {
            let mut idle = lock(&self.idle);
            let flow = idle.flows.pop_front()?;
            let left = idle.flows.len();
            idle.wish.taken(left);
            drop(idle);
            self.short.notify_one();
            if flow.is_fresh() {
                return Some(flow);
            }
        }
    }

    /// None waits: more are made, or asked for.
    fn missed(&self) {
        let mut idle = lock(&self.idle);
        idle.wish.missed();
        let size = idle.wish.size();
        drop(idle);
        match self.side {
            Side::Dialler => self.short.notify_one(),
            Side::Acceptor => self.send(&Frame::Want(u16::try_from(size).unwrap_or(u16::MAX))),
        }
    }

    async fn open(self: &Arc<Self>) -> Result<Halves, Lost> {
        if self.side == Side::Dialler && !self.control_taken.swap(true, Ordering::Relaxed) {
            return Ok(control::halves(self));
        }
        let mut missed = false;
        loop {
            let mut arrived = pin!(self.arrived.notified());
            arrived.as_mut().enable();
            if self.has_ended() {
                return Err(Lost);
            }
            if let Some(flow) = self.take() {
                return Ok(flow.halves());
            }
            if !std::mem::replace(&mut missed, true) {
                self.missed();
            }
            arrived.await;
        }
    }

    async fn accept(self: &Arc<Self>) -> Result<Halves, Lost> {
        if self.side == Side::Acceptor && !self.control_taken.swap(true, Ordering::Relaxed) {
            return Ok(control::halves(self));
        }
        let mut incoming = self.incoming.lock().await;
        tokio::select! {
            stream = incoming.recv() => stream.ok_or(Lost),
            _ = self.wait_end() => Err(Lost),
        }
    }
}

/// A link as its users see it.
pub(super) struct TcpConnection(pub(super) Arc<LinkCore>);

impl Connection for TcpConnection {
    fn kind(&self) -> TransportKind {
        if self.0.via.is_some() { TransportKind::Relay } else { TransportKind::Tcp }
    }

    fn via(&self) -> Option<Arc<str>> {
        self.0.via.as_ref().map(|via| Arc::clone(&via.cluster))
    }

    fn carrier_leaves(&self) -> bool {
        let carrier = self.0.via.as_ref().and_then(|via| via.carrier.as_ref());
        carrier.is_some_and(|carrier| carrier.0.going_away())
    }

    fn side(&self) -> Side {
        self.0.side
    }

    fn remote_addr(&self) -> SocketAddr {
        self.0.remote
    }

    fn open(&self) -> BoxFuture<'_, Result<Halves, Lost>> {
        Box::pin(self.0.open())
    }

    fn is_ready(&self) -> bool {
        let is_ready = !lock(&self.0.idle).flows.is_empty();
        if !is_ready {
            self.0.missed();
        }
        is_ready
    }

    fn accept(&self) -> BoxFuture<'_, Result<Halves, Lost>> {
        Box::pin(self.0.accept())
    }

    fn connections(&self) -> usize {
        let control = lock(&self.0.session).as_ref().and_then(Session::ends);
        let flows = self.0.flows();
        flows.iter().filter_map(|flow| flow.ends()).chain(control).collect::<HashSet<_>>().len()
    }

    fn export(&self, label: &[u8]) -> Result<[u8; 32], ExporterError> {
        let session = lock(&self.0.session);
        let tls = session.as_ref().ok_or(ExporterError)?.tls();
        tls.export_keying_material([0; 32], label, None).map_err(|_| ExporterError)
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.0.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, CloseReason> {
        Box::pin(self.0.wait_end())
    }

    fn path(&self) -> PathStats {
        let segments = *lock(&self.0.segments);
        PathStats {
            rtt: self.0.rtt(),
            sent_packets: segments.sent,
            lost_packets: segments.lost,
            received_packets: segments.received,
            disordered_packets: segments.disordered,
            ..PathStats::default()
        }
    }

    fn rtt(&self) -> Duration {
        self.0.rtt()
    }

    // TCP's own windows bound what a connection may hold.
    fn set_receive_window(&self, _bytes: u64) {}

    fn set_send_window(&self, _bytes: u64) {}

    fn set_max_streams(&self, streams: u32) {
        self.0.admitted.store(streams, Ordering::Relaxed);
    }
}

impl Drop for TcpConnection {
    fn drop(&mut self) {
        self.close(CloseCode::Done, "no longer used");
    }
}

/// Nothing panics while one of these locks is held.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

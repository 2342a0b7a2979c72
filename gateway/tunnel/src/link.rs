//! Links: authenticated, acknowledged connections between two gateways, on which either side opens streams.

mod balance;
mod control;
pub(crate) mod driver;
mod state;
mod table;
mod unacknowledged;

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use eastway_identity::{CertificateDer, SpkiPin};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use state::{LinkRole, LinkState};
pub use table::LinkTable;

pub(crate) use unacknowledged::Awaited;
use unacknowledged::Unacknowledged;

pub(crate) use balance::{Budget, Pace};

use crate::config::{ReplicaId, Timing, TunnelLimits};
use crate::events::{Event, Observer};
use crate::flow::Flows;
use crate::header::{HeaderError, HeaderTooLong, StreamHeader};
use crate::loads::{Load, Loads};
use crate::metrics::Counters;
use crate::stream::{Direction, LinkInfo, RecvHalf, SendHalf, StreamShared, TunnelStream};
use crate::transport::{Connection, PathStats, SendStream, Side, StreamError, TransportKind};

/// A link to one replica of a peer. Cheap to clone.
#[derive(Clone)]
pub struct Link(pub(crate) Arc<LinkShared>);

impl Link {
    /// The peer: the name its certificate was matched to.
    #[must_use]
    pub fn peer(&self) -> &Arc<str> {
        &self.0.identity.peer
    }

    /// The replica at the other end.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.0.identity.replica
    }

    /// Whether both are one link, and not two to the same replica.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Where the other end is now.
    #[must_use]
    pub fn remote_addr(&self) -> SocketAddr {
        self.0.connection.remote_addr()
    }

    /// Where its datagrams are carried: whoever sends many had better do it there. `None`: it is the same everywhere.
    #[must_use]
    pub fn home(&self) -> Option<Handle> {
        self.0.connection.home()
    }

    /// Smoothed round trip time.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.0.connection.rtt()
    }

    /// How its path does.
    #[must_use]
    pub fn path(&self) -> PathStats {
        self.0.connection.path()
    }

    /// What it is carried by.
    #[must_use]
    pub fn transport(&self) -> TransportKind {
        self.0.connection.kind()
    }

    /// For how long the other side has acknowledged nothing; none if it never did.
    #[must_use]
    pub fn silent_for(&self) -> Option<Duration> {
        self.0.live().last_acknowledged.map(|at| at.elapsed())
    }

    /// Streams opened here that have not ended.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.0.opened.load(Ordering::Relaxed)
    }

    /// Whether streams may be opened: acknowledged lately and not draining.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.is_open() && !self.0.going_away()
    }

    /// Whether it is draining and still acknowledged: for who has no other link, since the other side takes streams
    /// for a while yet, and then says [`ResetCode::Draining`](crate::ResetCode::Draining).
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.is_open() && self.0.going_away()
    }

    /// Cancelled when it takes no more streams from here, because the other side drains, or another link is to be used. Those
    /// that there are go on for a while.
    #[must_use]
    pub fn left(&self) -> CancellationToken {
        self.0.left.clone()
    }

    /// Whether the last heartbeats were acknowledged.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.0.state() == LinkState::Fresh
    }

    /// Whether a stream would be opened without waiting for a connection.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.connection.is_ready()
    }

    fn is_open(&self) -> bool {
        matches!(self.0.state(), LinkState::Fresh | LinkState::Stale)
    }

    /// Opens a stream. The header goes at once; the other side is not waited for.
    ///
    /// # Errors
    /// [`OpenError`]; no byte of the stream was delivered then.
    pub async fn open(&self, header: &StreamHeader) -> Result<TunnelStream, OpenError> {
        self.open_with(header, Bytes::new()).await
    }

    /// As [`Link::open`], with the first bytes of the connection if they are there already: they share the
    /// header's packet. Returns when all of them are on their way; should the stream be refused meanwhile, the
    /// stream itself says so.
    ///
    /// # Errors
    /// As [`Link::open`].
    pub async fn open_with(&self, header: &StreamHeader, first: Bytes) -> Result<TunnelStream, OpenError> {
        if !self.is_open() {
            return Err(if self.0.state() == LinkState::Closed { OpenError::LinkLost } else { OpenError::Starting });
        }
        let load = self.0.loads.of(header);
        let header = header.encode()?;
        let mut chunks = [header, first];
        let open = async {
            let (send, recv) = self.0.connection.open().await.map_err(|_| OpenError::LinkLost)?;
            let shared = StreamShared::new(&self.0, Direction::Opened, load, recv);
            let mut send = SendHalf::new(send, Arc::clone(&shared));
            let recv = RecvHalf::new(shared, true);
            while let [header, _] = &chunks
                && !header.is_empty()
            {
                let written = poll_fn(|cx| send.poll_write(cx, &mut chunks)).await;
                written.map_err(|error| match error {
                    StreamError::Reset(code) => OpenError::Refused(code),
                    StreamError::LinkLost | StreamError::Closed => OpenError::LinkLost,
                })?;
            }
            Ok(TunnelStream { send, recv })
        };
        let mut stream = tokio::time::timeout(self.0.timing.open, open).await.unwrap_or(Err(OpenError::Overloaded))?;
        // The header is out: from here on the stream tells what becomes of it, not this call.
        stream.send.write_chunks(&mut chunks).await.ok();
        Ok(stream)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LinkIdentity { peer, replica, .. } = &self.0.identity;
        f.debug_struct("Link").field("peer", peer).field("replica", replica).finish_non_exhaustive()
    }
}

/// Why a stream was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The link is gone.
    #[error("the link was lost")]
    LinkLost,
    /// Nothing was acknowledged on it yet.
    #[error("the link is starting")]
    Starting,
    /// The other side admits no more streams, or no more bytes.
    #[error("the peer admits no more streams")]
    Overloaded,
    /// The other side refused while the header was on its way.
    #[error("the stream was refused: {0}")]
    Refused(crate::code::ResetCode),
    /// The header does not fit.
    #[error(transparent)]
    Header(#[from] HeaderTooLong),
}

/// Which link it is; fixed once Hello was exchanged.
#[derive(Clone, Debug)]
pub(crate) struct LinkIdentity {
    /// Unique in this process, ascending.
    pub(crate) id: u64,
    pub(crate) peer: Arc<str>,
    pub(crate) replica: ReplicaId,
    pub(crate) side: Side,
    pub(crate) since: SystemTime,
}

/// State of a link, shared by its streams, its driver and the manager.
pub(crate) struct LinkShared {
    pub(crate) identity: LinkIdentity,
    pub(crate) connection: Arc<dyn Connection>,
    pub(crate) limits: TunnelLimits,
    timing: Timing,
    counters: Arc<Counters>,
    loads: Arc<Loads>,
    observer: Arc<dyn Observer>,
    /// Streams of this peer over all of its links.
    peer_streams: Arc<AtomicU32>,
    state: AtomicU8,
    /// The other side sent GOAWAY, or the link is superfluous: no new streams from here.
    going_away: AtomicBool,
    /// Who waits for that.
    left: CancellationToken,
    /// The peer no longer counts the replica among its live ones: it was probably replaced.
    outdated: AtomicBool,
    /// How its transport is preferred: the least first.
    rank: AtomicU8,
    role: AtomicU8,
    /// This side drains and its grace is over: no new streams from there.
    refusing: AtomicBool,
    opened: AtomicU32,
    served: AtomicU32,
    /// Streams that the transport admits now.
    admitted: AtomicU32,
    streams: Mutex<HashMap<u64, Weak<StreamShared>>>,
    unacknowledged: Unacknowledged,
    pub(crate) flows: Flows,
    next_stream: AtomicU64,
    pace: Arc<Pace>,
    idle: tokio::sync::Notify,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) live: Mutex<LiveFacts>,
    /// The keys of our CA that the peer accepts, as it says; none if it did not say.
    accepts: ArcSwapOption<Vec<SpkiPin>>,
    /// The last certificate that the other side shows.
    issuer: ArcSwapOption<CertificateDer<'static>>,
}

/// What changes while the link lives, for status.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveFacts {
    /// Life of the other side's certificate.
    pub(crate) certificate: (SystemTime, SystemTime),
    pub(crate) last_acknowledged: Option<Instant>,
    /// The other side's clock minus ours, milliseconds.
    pub(crate) clock_skew_ms: Option<i64>,
    /// Unread bytes that the link may hold now.
    pub(crate) receive_window: u64,
}

/// What a [`LinkShared`] is made from, beside its identity and its connection.
pub(crate) struct LinkSurroundings {
    pub(crate) limits: TunnelLimits,
    pub(crate) timing: Timing,
    pub(crate) counters: Arc<Counters>,
    pub(crate) loads: Arc<Loads>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) peer_streams: Arc<AtomicU32>,
}

impl LinkShared {
    pub(crate) fn new(
        identity: LinkIdentity,
        connection: Arc<dyn Connection>,
        certificate: (SystemTime, SystemTime),
        surroundings: LinkSurroundings,
    ) -> Arc<Self> {
        let LinkSurroundings { limits, timing, counters, loads, observer, peer_streams } = surroundings;
        let live = LiveFacts {
            certificate,
            last_acknowledged: None,
            clock_skew_ms: None,
            receive_window: u64::from(limits.link_window),
        };
        Arc::new(Self {
            identity,
            connection,
            limits,
            timing,
            counters,
            loads,
            observer,
            peer_streams,
            state: AtomicU8::new(LinkState::Starting as u8),
            going_away: AtomicBool::new(false),
            left: CancellationToken::new(),
            outdated: AtomicBool::new(false),
            rank: AtomicU8::new(0),
            role: AtomicU8::new(LinkRole::Whole as u8),
            refusing: AtomicBool::new(false),
            opened: AtomicU32::new(0),
            served: AtomicU32::new(0),
            admitted: AtomicU32::new(limits.initial_streams),
            streams: Mutex::new(HashMap::new()),
            unacknowledged: Unacknowledged::default(),
            flows: Flows::default(),
            next_stream: AtomicU64::new(0),
            pace: Arc::default(),
            idle: tokio::sync::Notify::new(),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            live: Mutex::new(live),
            accepts: ArcSwapOption::empty(),
            issuer: ArcSwapOption::empty(),
        })
    }

    pub(crate) fn peer(&self) -> &Arc<str> {
        &self.identity.peer
    }

    pub(crate) fn info(&self) -> LinkInfo {
        LinkInfo {
            peer: Arc::clone(&self.identity.peer),
            replica: self.identity.replica,
            remote: self.connection.remote_addr(),
            transport: self.connection.kind(),
        }
    }

    pub(crate) fn timing(&self) -> &Timing {
        &self.timing
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A stream of the other side began with a header that cannot be taken.
    pub(crate) fn header_refused(&self, error: &HeaderError) {
        self.counters.header_error();
        self.observer.happened(&Event::Header { peer: self.peer(), error });
    }

    pub(crate) fn state(&self) -> LinkState {
        LinkState::from_u8(self.state.load(Ordering::Relaxed))
    }

    /// Returns whether this changed anything. A closed link stays closed.
    pub(crate) fn set_state(&self, state: LinkState) -> bool {
        self.state() != LinkState::Closed && self.state.swap(state as u8, Ordering::Relaxed) != state as u8
    }

    pub(crate) fn going_away(&self) -> bool {
        self.going_away.load(Ordering::Relaxed)
    }

    /// Returns whether this changed anything.
    pub(crate) fn set_going_away(&self) -> bool {
        self.left.cancel();
        !self.going_away.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }

    pub(crate) fn set_outdated(&self, outdated: bool) {
        self.outdated.store(outdated, Ordering::Relaxed);
    }

    pub(crate) fn rank(&self) -> u8 {
        self.rank.load(Ordering::Relaxed)
    }

    pub(crate) fn set_rank(&self, rank: u8) {
        self.rank.store(rank, Ordering::Relaxed);
    }

    pub(crate) fn role(&self) -> LinkRole {
        LinkRole::from_u8(self.role.load(Ordering::Relaxed))
    }

    /// Returns whether this changed anything.
    pub(crate) fn set_role(&self, role: LinkRole) -> bool {
        self.role.swap(role as u8, Ordering::Relaxed) != role as u8
    }

    pub(crate) fn refuses_streams(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    pub(crate) fn refuse_streams(&self) {
        self.refusing.store(true, Ordering::Relaxed);
    }

    pub(crate) fn served(&self) -> u32 {
        self.served.load(Ordering::Relaxed)
    }

    /// The transport pays for every stream it admits, used or not: so few at first, and more on demand, with
    /// half of the first ones or a quarter of all of them free for a burst. The last raise goes beyond the
    /// limit, so that the excess is told `OVERLOADED` and does not wait in silence.
    pub(crate) fn raise_streams(&self) {
        let most = self.limits.streams_per_peer.saturating_add(64);
        let admitted = self.admitted.load(Ordering::Relaxed);
        let free = (self.limits.initial_streams / 2).max(admitted / 4);
        if self.served().saturating_add(free) > admitted && admitted < most {
            let more = admitted.saturating_mul(2).min(most);
            self.admitted.store(more, Ordering::Relaxed);
            self.connection.set_max_streams(more);
        }
    }

    pub(crate) fn over_stream_limit(&self) -> bool {
        self.peer_streams.load(Ordering::Relaxed) > self.limits.streams_per_peer
    }

    pub(crate) fn pace(&self) -> &Arc<Pace> {
        &self.pace
    }

    pub(crate) fn next_stream_id(&self) -> u64 {
        self.next_stream.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn register(&self, id: u64, direction: Direction, stream: &Arc<StreamShared>) {
        match direction {
            Direction::Opened => {
                self.opened.fetch_add(1, Ordering::Relaxed);
                self.counters.stream_opened(self.connection.kind());
            }
            Direction::Served => {
                self.served.fetch_add(1, Ordering::Relaxed);
                self.peer_streams.fetch_add(1, Ordering::Relaxed);
                self.counters.stream_served();
                self.raise_streams();
            }
        }
        self.streams().insert(id, Arc::downgrade(stream));
    }

    /// A connection of a service moved much, or ended without.
    pub(crate) fn note(&self, load: Load, much: bool) {
        self.loads.note(load, much);
    }

    pub(crate) fn unregister(&self, id: u64, direction: Direction) {
        match direction {
            Direction::Opened => {
                self.opened.fetch_sub(1, Ordering::Relaxed);
            }
            Direction::Served => {
                self.served.fetch_sub(1, Ordering::Relaxed);
                self.peer_streams.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let mut streams = self.streams();
        streams.remove(&id);
        if streams.is_empty() {
            // A burst of streams must not leave its memory behind.
            streams.shrink_to(64);
            drop(streams);
            self.notify_if_idle();
        }
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u64, Weak<StreamShared>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a half that ended in order until the other side has all of it.
    pub(crate) fn finished(&self, half: Box<dyn SendStream>, awaited: Awaited) {
        self.unacknowledged.keep(half, awaited);
        if self.state() == LinkState::Closed {
            self.abandon();
        }
    }

    /// Looks at what the other side has got since the last time. Called every [`TICK`](balance::TICK).
    pub(crate) fn sweep(&self) {
        if self.unacknowledged.sweep() {
            self.notify_if_idle();
        }
    }

    /// The link has ended: nothing is acknowledged any more.
    pub(crate) fn abandon(&self) {
        self.unacknowledged.clear();
        self.notify_if_idle();
    }

    /// Whether no stream is open in either direction, and the other side has got all of those that were and are waited for.
    pub(crate) fn is_idle(&self) -> bool {
        self.streams().is_empty() && !self.unacknowledged.is_awaited()
    }

    fn notify_if_idle(&self) {
        if self.is_idle() {
            self.idle.notify_waiters();
        }
    }

    /// Waits until the link [is idle](Self::is_idle).
    pub(crate) async fn idle(&self) {
        loop {
            let mut notified = std::pin::pin!(self.idle.notified());
            notified.as_mut().enable();
            if self.is_idle() {
                return;
            }
            notified.await;
        }
    }

    pub(crate) fn accepts(&self) -> Option<Arc<Vec<SpkiPin>>> {
        self.accepts.load_full()
    }

    pub(crate) fn issuer(&self) -> Option<Arc<CertificateDer<'static>>> {
        self.issuer.load_full()
    }

    pub(crate) fn set_chain(&self, chain: &[CertificateDer<'static>]) {
        self.issuer.store(chain.last().cloned().map(Arc::new));
    }

    pub(crate) fn set_accepts(&self, pins: Vec<SpkiPin>) {
        self.accepts.store(Some(Arc::new(pins)));
    }

    pub(crate) fn live(&self) -> LiveFacts {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn update_live(&self, update: impl FnOnce(&mut LiveFacts)) {
        update(&mut self.live.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

//! The socket on the pod network: beats go out and come in, packets are handed over and answered.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::envelope::{
    Beat, BeatState, Direction, Envelope, EnvelopeError, Flow, MAX_ENVELOPE, MAX_PACKET, ShortId, decode,
};
use super::inbox::{Handed, Inbox};
use super::keys::{Numbers, OpenError, PairKeys, ReplicaKeys};
use super::paths::{Path, Paths};
use super::siblings::{BEAT_EVERY, DEAD, Heard, Siblings};
use super::{Dropped, ForwardingCounters, ReplicaNetwork, SiblingStatus, Tally, Way};
use crate::config::{LinkKeys, ReplicaId};

/// Between two looks at who has fallen silent.
const LOOK: Duration = Duration::from_millis(250);
/// Packets that are taken between two looks at everything else.
const BURST: usize = 64;
/// Pause after the socket failed: an error that stays must not keep a core busy.
const PAUSE: Duration = Duration::from_millis(100);

/// Where answers to peers leave: the socket that takes links.
pub(crate) trait Outlet: Send + Sync {
    /// Sends `packet` to the client of `flow` with the given ECN bits. Whether the socket took it.
    fn send(&self, flow: &Flow, ecn: u8, packet: &[u8]) -> bool;
}

/// This replica among its siblings.
pub(crate) struct Network {
    own: ReplicaId,
    socket: UdpSocket,
    local_addr: SocketAddr,
    keys: ReplicaKeys,
    numbers: Numbers,
    view: ArcSwap<View>,
    /// Configured addresses at which no sibling answers.
    silent: ArcSwap<Vec<SocketAddr>>,
    inbox: Inbox,
    paths: Mutex<Paths>,
    outlet: ArcSwapOption<Box<dyn Outlet>>,
    tally: Tally,
    draining: CancellationToken,
    epoch: Instant,
}

/// Who is there, as the paths of packets see it: replaced as a whole when it changes.
#[derive(Default)]
pub(crate) struct View {
    routes: Vec<Arc<Route>>,
    gone: Vec<ShortId>,
}

/// A sibling that gets its packets.
pub(crate) struct Route {
    status: SiblingStatus,
    keys: Arc<PairKeys>,
}

impl View {
    /// No packet can be anybody else's.
    pub(crate) fn is_alone(&self) -> bool {
        self.routes.is_empty()
    }

    /// The live or draining sibling whose id begins so.
    pub(crate) fn route(&self, short: ShortId) -> Option<&Arc<Route>> {
        self.routes.iter().find(|route| route.status.replica.short() == short)
    }

    /// Whether the incarnation whose id begins so is known to have ended.
    pub(crate) fn is_gone(&self, short: ShortId) -> bool {
        self.gone.contains(&short) && self.route(short).is_none()
    }
}

impl Network {
    /// Opens the socket. Must be called within a tokio runtime.
    pub(crate) fn bind(listen: SocketAddr, own: ReplicaId, keys: &LinkKeys) -> io::Result<Self> {
        let keys = ReplicaKeys::derive(keys).map_err(|_| io::Error::other("the keys cannot be derived"))?;
        let socket = std::net::UdpSocket::bind(listen)?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        Ok(Self {
            own,
            local_addr: socket.local_addr()?,
            socket,
            keys,
            numbers: Numbers::default(),
            view: ArcSwap::default(),
            silent: ArcSwap::default(),
            inbox: Inbox::default(),
            paths: Mutex::default(),
            outlet: ArcSwapOption::empty(),
            tally: Tally::default(),
            draining: CancellationToken::new(),
            epoch: Instant::now(),
        })
    }

    /// Where this replica hears its siblings.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Who is there. One load.
    pub(crate) fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Siblings that get their packets.
    pub(crate) fn siblings(&self) -> Vec<SiblingStatus> {
        self.view.load().routes.iter().map(|route| route.status.clone()).collect()
    }

    /// Configured addresses at which no sibling answers.
    pub(crate) fn silent(&self) -> Vec<SocketAddr> {
        self.silent.load().to_vec()
    }

    pub(crate) fn counters(&self) -> ForwardingCounters {
        self.tally.snapshot()
    }

    /// From now on, answers for other replicas leave by `outlet`.
    pub(crate) fn set_outlet(&self, outlet: Box<dyn Outlet>) {
        self.outlet.store(Some(Arc::new(outlet)));
    }

    /// No answers for other replicas leave from now on.
    pub(crate) fn close_outlet(&self) {
        self.outlet.store(None);
    }

    /// Tells siblings that this replica takes no new links.
    pub(crate) fn set_draining(&self) {
        self.draining.cancel();
    }

    /// The client that the address of a path stands for.
    pub(crate) fn client(&self, path: SocketAddr) -> Option<SocketAddr> {
        self.paths().client(path)
    }

    /// The next packet that another replica handed over.
    pub(crate) fn take(&self) -> Option<Handed> {
        self.inbox.take()
    }

    /// Has `reader` woken by the next such packet; whether some wait already.
    pub(crate) fn wait(&self, reader: &Waker) -> bool {
        self.inbox.wait(reader)
    }

    /// A packet was dropped elsewhere.
    pub(crate) fn dropped(&self, reason: Dropped) {
        self.tally.dropped(reason);
    }

    /// Hands a packet over to the replica whose link it is. Never waits: what the socket does not take is lost,
    /// as on any path.
    pub(crate) fn hand_over(&self, route: &Route, flow: &Flow, ecn: u8, packet: &[u8]) {
        self.send(route, Direction::ToOwner, (flow, ecn), packet);
    }

    /// Answers a client by way of the replica that its packets arrive at.
    pub(crate) fn answer(&self, path: SocketAddr, ecn: u8, packet: &[u8]) {
        let Some(Path { via, flow }) = self.paths().answer(path) else {
            return self.tally.dropped(Dropped::PathGone);
        };
        match self.view.load().route(via.short()).filter(|route| route.status.replica == via) {
            Some(route) => self.send(route, Direction::ToClient, (&flow, ecn), packet),
            None => self.tally.dropped(Dropped::SiblingGone),
        }
    }

    fn send(&self, route: &Route, direction: Direction, flow: (&Flow, u8), packet: &[u8]) {
        if packet.len() > MAX_PACKET {
            return self.tally.dropped(Dropped::Oversized);
        }
        let Ok(sealed) = route.keys.seal(&self.numbers, direction, flow, packet) else {
            return self.tally.dropped(Dropped::Malformed);
        };
        match self.put(&sealed, route.status.address) {
            Ok(_) => self.tally.went(
                match direction {
                    Direction::ToOwner => Way::ToOwner,
                    Direction::ToClient => Way::ReplyToSibling,
                },
                packet.len(),
            ),
            Err(_) => self.tally.dropped(Dropped::SocketFull),
        }
    }

    /// Sends to `address`; IPv4 by way of an IPv6 socket if that is what there is.
    fn put(&self, bytes: &[u8], address: SocketAddr) -> io::Result<usize> {
        let mapped = |ip: IpAddr| match ip {
            IpAddr::V4(ip) if self.local_addr.is_ipv6() => ip.to_ipv6_mapped().into(),
            IpAddr::V4(_) | IpAddr::V6(_) => ip,
        };
        let target = SocketAddr::new(mapped(address.ip()), address.port());
        self.socket.try_send_to(bytes, target)
    }

    fn paths(&self) -> MutexGuard<'_, Paths> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Beats and listens until `stop`, then says that this replica is gone. `live` always has the replicas that
    /// peers should know of.
    pub(crate) async fn run(
        self: Arc<Self>,
        config: ReplicaNetwork,
        live: watch::Sender<Arc<[ReplicaId]>>,
        stop: CancellationToken,
    ) {
        let mut addresses = config.siblings;
        let mut task = Task { siblings: Siblings::new(self.own), network: Arc::clone(&self), live };
        let (mut beats, mut looks) = (tokio::time::interval(BEAT_EVERY), tokio::time::interval(LOOK));
        for interval in [&mut beats, &mut looks] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut buffer = vec![0; MAX_ENVELOPE + 1];
        task.siblings.configure(&addresses.borrow_and_update());
        // Before it is known to be writable the first beats would be lost.
        self.socket.writable().await.ok();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.draining.cancelled(), if !task.draining() => task.tell(BeatState::Draining),
                _ = beats.tick() => task.beat_all(),
                _ = looks.tick() => task.look(),
                Ok(()) = addresses.changed() => {
                    task.siblings.configure(&addresses.borrow_and_update());
                    task.beat_all();
                }
                result = self.socket.recv_from(&mut buffer) => match result {
                    Ok((length, from)) => task.received(&mut buffer, length, from),
                    Err(error) => {
                        tracing::debug!(%error, "The socket between replicas failed");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
        self.close_outlet();
        task.tell(BeatState::Gone);
    }
}

#[cfg(test)]
impl Network {
    /// Makes these the siblings.
    pub(crate) fn set_siblings(&self, siblings: &[SiblingStatus]) {
        let route = |status: &SiblingStatus| {
            let keys = Arc::new(self.keys.pair(self.own, status.replica).unwrap());
            Arc::new(Route { status: status.clone(), keys })
        };
        self.view.store(Arc::new(View { routes: siblings.iter().map(route).collect(), gone: Vec::new() }));
    }

    /// Waits until the first packet would not be lost.
    pub(crate) async fn writable(&self) {
        self.socket.writable().await.unwrap();
    }

    /// Takes one datagram from the socket, as the task does.
    pub(crate) async fn receive(self: &Arc<Self>) -> Result<(), Dropped> {
        let mut buffer = vec![0; MAX_ENVELOPE + 1];
        let (length, from) = self.socket.recv_from(&mut buffer).await.unwrap();
        let live = watch::Sender::new(Arc::from([self.own]));
        let mut task = Task { siblings: Siblings::new(self.own), network: Arc::clone(self), live };
        task.take(&mut buffer[..length], from)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("own", &self.own).field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

/// What the task alone knows.
struct Task {
    network: Arc<Network>,
    siblings: Siblings,
    live: watch::Sender<Arc<[ReplicaId]>>,
}

impl Task {
    fn draining(&self) -> bool {
        self.siblings.state() == BeatState::Draining
    }

    fn look(&mut self) {
        if self.siblings.expire(self.network.now()) {
            self.publish();
        }
        // Before that nobody can have answered.
        let silent = if self.network.now() < DEAD { Vec::new() } else { self.siblings.silent() };
        if **self.network.silent.load() != silent {
            self.network.silent.store(Arc::new(silent));
        }
    }

    fn beat_all(&mut self) {
        for (address, beat) in self.siblings.beats(self.network.now()) {
            self.beat(address, &beat);
        }
    }

    /// Tells all siblings at once how this replica is.
    fn tell(&mut self, state: BeatState) {
        self.siblings.set_state(state);
        self.beat_all();
    }

    /// A beat that is lost is followed by another.
    fn beat(&self, address: SocketAddr, beat: &Beat) {
        self.network.put(&self.network.keys.sign(beat), address).ok();
    }

    /// Takes the packet in `buffer` and those behind it.
    fn received(&mut self, buffer: &mut [u8], mut length: usize, mut from: SocketAddr) {
        for _ in 0..BURST {
            if let Some(datagram) = buffer.get_mut(..length)
                && let Err(reason) = self.take(datagram, from)
            {
                self.network.tally.dropped(reason);
            }
            match self.network.socket.try_recv_from(buffer) {
                Ok(next) => (length, from) = next,
                Err(_) => return,
            }
        }
    }

    fn take(&mut self, datagram: &mut [u8], from: SocketAddr) -> Result<(), Dropped> {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let envelope = decode(datagram).map_err(|error| match error {
            EnvelopeError::Version(_) => Dropped::Version,
            EnvelopeError::Malformed => Dropped::Malformed,
            EnvelopeError::Oversized => Dropped::Oversized,
        })?;
        match envelope {
            Envelope::Beat(beat) => self.heard(&beat, datagram, from),
            Envelope::Sealed { direction, sender, number } => self.network.opened(direction, sender, number, datagram),
        }
    }

    fn heard(&mut self, beat: &Beat, datagram: &[u8], from: SocketAddr) -> Result<(), Dropped> {
        if !self.network.keys.is_signed(datagram) {
            return Err(Dropped::Forged);
        }
        let now = self.network.now();
        match self.siblings.heard(beat, from, now) {
            Heard::Ignored if beat.sender == self.network.own => Ok(()),
            Heard::Ignored => Err(Dropped::Replayed),
            Heard::Counted { answer, changed } => {
                if changed {
                    self.publish();
                }
                if answer {
                    let answer = self.siblings.beat_to(from, now);
                    self.beat(from, &answer);
                }
                Ok(())
            }
        }
    }

    /// Makes what changed known to packets and to peers.
    fn publish(&self) {
        let network = &self.network;
        let former = network.view.load_full();
        let mut routes = Vec::new();
        for status in self.siblings.alive() {
            let known = former.route(status.replica.short()).filter(|route| route.status.replica == status.replica);
            let keys = match known {
                Some(route) => Ok(Arc::clone(&route.keys)),
                None => network.keys.pair(network.own, status.replica).map(Arc::new),
            };
            match keys {
                Ok(keys) => routes.push(Arc::new(Route { status, keys })),
                Err(error) => tracing::error!(replica = %status.replica, %error, "No keys for a sibling"),
            }
        }
        let gone: Vec<_> = self.siblings.gone().collect();
        let taking_links = routes.iter().filter(|route| !route.status.draining).map(|route| route.status.replica);
        let mut live: Vec<_> = taking_links.chain([network.own]).collect();
        live.sort_unstable();
        tracing::info!(
            siblings = routes.len(),
            live = live.len(),
            gone = gone.len(),
            "The replicas of this cluster changed"
        );
        network.view.store(Arc::new(View { routes, gone: gone.iter().map(ReplicaId::short).collect() }));
        self.live.send_if_modified(|current| {
            let changed = **current != *live;
            if changed {
                *current = live.into();
            }
            changed
        });
    }
}

impl Network {
    /// Takes what a sibling sealed.
    fn opened(&self, direction: Direction, sender: ShortId, number: u64, datagram: &mut [u8]) -> Result<(), Dropped> {
        let view = self.view.load();
        let route = view.route(sender).ok_or(Dropped::UnknownSender)?;
        let (flow, ecn, packet) = route.keys.open(number, datagram).map_err(|error| match error {
            OpenError::Forged => Dropped::Forged,
            OpenError::Replayed => Dropped::Replayed,
            OpenError::Malformed => Dropped::Malformed,
        })?;
        match direction {
            Direction::ToOwner => {
                let path = Path { via: route.status.replica, flow };
                let path = self.paths().enter(path, self.now()).ok_or(Dropped::PathsFull)?;
                self.tally.went(Way::FromSibling, packet.len());
                let handed = Handed { path, ecn, packet: packet.to_vec() };
                if self.inbox.put(handed) { Ok(()) } else { Err(Dropped::InboxFull) }
            }
            Direction::ToClient => {
                let outlet = self.outlet.load();
                let sent = outlet.as_ref().is_some_and(|outlet| outlet.send(&flow, ecn, packet));
                if !sent {
                    return Err(Dropped::SocketFull);
                }
                self.tally.went(Way::ReplyToPeer, packet.len());
                Ok(())
            }
        }
    }
}

//! The WAN between two gateways, in user space: a UDP relay with seeded faults.
//!
//! A relay listens where a gateway's peers think that the gateway is, and passes packets on through one
//! socket per client address, as a NAT does. Each direction has [`Conditions`] of its own. Whether a
//! packet is lost, late, doubled, altered or overtaken is drawn from one generator in the order of arrival, so
//! that a seed and the same traffic give the same faults. Time is real: a late packet waits in a queue
//! that is bounded like a router's.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::lab::place::Place;

/// Packets that wait at most; more are dropped, as by a full router.
const QUEUE: usize = 10_000;

/// What a direction does to packets. The default passes everything on at once.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// Added to every packet.
    pub delay: Duration,
    /// Share of packets lost, 0 to 1.
    pub loss: f64,
    /// Share of packets that come twice, 0 to 1.
    pub duplicate: f64,
    /// Share of packets of which one bit is another, 0 to 1.
    pub corrupt: f64,
    /// Share of packets that are held back, 0 to 1, so that later ones overtake them.
    pub reorder: f64,
    /// For how long those are held back.
    pub hold: Duration,
    /// Bytes per second; `None`: no limit.
    pub rate: Option<u64>,
    /// Longest wait of a packet for its turn at that rate; beyond it packets are lost, as by a full router. `None`: as long as
    /// it takes.
    pub queue: Option<Duration>,
    /// Longest UDP payload that fits; longer ones are lost without a word.
    pub largest: Option<usize>,
    /// Everything is lost.
    pub cut: bool,
    /// Everything is lost after so many more bytes.
    pub cut_after: Option<u64>,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From clients to the target.
    Forth,
    /// From the target to clients.
    Back,
}

/// What went through one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets that came.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that were not passed on.
    pub lost: u64,
    /// Packets that were altered.
    pub altered: u64,
}

/// A running relay. Dropping it stops it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: Owned,
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Owned(AbortHandle);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something new waits in the queue, or the flows changed.
    woken: Notify,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    random: fastrand::Rng,
    forth: Way,
    back: Way,
    flows: HashMap<SocketAddr, Flow>,
    /// Clients whose flows are dropped for ever.
    dead: BTreeSet<SocketAddr>,
    queue: BinaryHeap<Reverse<Waiting>>,
    sequence: u64,
    /// Every client address there ever was.
    clients: BTreeSet<SocketAddr>,
    /// Sockets of before a rebind, kept open: a NAT that forgot a mapping says nothing.
    silent: Vec<Arc<UdpSocket>>,
}

#[derive(Debug, Default)]
struct Way {
    conditions: Conditions,
    traffic: Traffic,
    /// When the packet before has left, at a limited rate.
    free_at: Option<Instant>,
}

#[derive(Debug)]
struct Flow {
    upstream: Arc<UdpSocket>,
    /// Reads what the target answers; ends with the flow.
    _reader: Owned,
}

#[derive(Debug)]
struct Waiting {
    at: Instant,
    sequence: u64,
    direction: Direction,
    client: SocketAddr,
    packet: Bytes,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl Relay {
    /// Starts one at `place` that listens on `listen` and passes on to `target`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(place: &Place, listen: SocketAddr, target: SocketAddr, seed: u64) -> Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                target,
                random: fastrand::Rng::with_seed(seed),
                forth: Way::default(),
                back: Way::default(),
                flows: HashMap::new(),
                dead: BTreeSet::new(),
                queue: BinaryHeap::new(),
                sequence: 0,
                clients: BTreeSet::new(),
                silent: Vec::new(),
            }),
            woken: Notify::new(),
        });
        let bound = place.run(async move { Ok(UdpSocket::bind(listen).await?) }).await;
        let socket = Arc::new(bound.with_context(|| format!("relay on {listen}"))?);
        let address = socket.local_addr()?;
        let task = place.spawn(serve(Arc::clone(&shared), socket));
        Ok(Self { address, shared, _task: Owned(task.abort_handle()) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the conditions of one direction.
    pub fn set(&self, direction: Direction, conditions: Conditions) {
        self.shared.lock().way(direction).conditions = conditions;
    }

    /// Changes the conditions of both directions.
    pub fn set_both(&self, conditions: &Conditions) {
        self.set(Direction::Forth, conditions.clone());
        self.set(Direction::Back, conditions.clone());
    }

    /// New flows and packets go to another target, as a load balancer's may; running flows stay.
    pub fn set_target(&self, target: SocketAddr) {
        self.shared.lock().target = target;
    }

    /// As a NAT that forgets: every flow goes on from a new source port.
    ///
    /// # Errors
    /// No socket can be made.
    pub async fn rebind(&self, place: &Place) -> Result<usize> {
        let clients: Vec<SocketAddr> = self.shared.lock().flows.keys().copied().collect();
        for client in &clients {
            let shared = Arc::clone(&self.shared);
            let client = *client;
            let flow = place.run(async move { Ok(open_flow(&shared, client).await?) }).await?;
            let mut state = self.shared.lock();
            if let Some(old) = state.flows.insert(client, flow) {
                state.silent.push(old.upstream);
            }
        }
        Ok(clients.len())
    }

    /// Drops, for ever, every packet of the address pairs in use now: a stale conntrack entry. Returns how
    /// many there are.
    pub fn blackhole_current_flows(&self) -> usize {
        let mut state = self.shared.lock();
        let clients: Vec<SocketAddr> = state.flows.keys().copied().collect();
        state.dead.extend(clients.iter().copied());
        clients.len()
    }

    /// What went through.
    #[must_use]
    pub fn traffic(&self, direction: Direction) -> Traffic {
        self.shared.lock().way(direction).traffic
    }

    /// Every client address that sent something since the start.
    #[must_use]
    pub fn clients(&self) -> BTreeSet<SocketAddr> {
        self.shared.lock().clients.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn way(&mut self, direction: Direction) -> &mut Way {
        match direction {
            Direction::Forth => &mut self.forth,
            Direction::Back => &mut self.back,
        }
    }

    /// Decides what happens to a packet that came.
    fn accept(&mut self, direction: Direction, client: SocketAddr, packet: &[u8]) {
        let draws = [self.random.f64(), self.random.f64(), self.random.f64(), self.random.f64()];
        let bit = self.random.usize(..packet.len().max(1) * 8);
        let dead = self.dead.contains(&client) || self.queue.len() >= QUEUE;
        let way = self.way(direction);
        let size = u64::try_from(packet.len()).unwrap_or(u64::MAX);
        way.traffic.packets += 1;
        way.traffic.bytes += size;
        if dead || way.loses(packet.len(), draws[0]) {
            way.traffic.lost += 1;
            return;
        }
        let conditions = &way.conditions;
        let mut at = Instant::now() + conditions.delay;
        if draws[1] < conditions.reorder {
            at += conditions.hold;
        }
        let copies = if draws[2] < conditions.duplicate { 2 } else { 1 };
        if let Some(rate) = conditions.rate {
            let start = way.free_at.unwrap_or(at).max(at);
            if conditions.queue.is_some_and(|queue| start - at > queue) {
                way.traffic.lost += 1;
                return;
            }
            at = start + Duration::from_secs_f64(packet.len() as f64 / rate.max(1) as f64);
            way.free_at = Some(at);
        }
        let mut packet = packet.to_vec();
        if draws[3] < conditions.corrupt
            && let Some(byte) = packet.get_mut(bit / 8)
        {
            *byte ^= 1 << (bit % 8);
            way.traffic.altered += 1;
        }
        let packet = Bytes::from(packet);
        for _ in 0..copies {
            self.sequence += 1;
            let waiting = Waiting { at, sequence: self.sequence, direction, client, packet: packet.clone() };
            self.queue.push(Reverse(waiting));
        }
    }

    /// Packets whose time has come, and when the next one's comes.
    fn due(&mut self, now: Instant) -> (Vec<Waiting>, Option<Instant>) {
        let mut due = Vec::new();
        while self.queue.peek().is_some_and(|Reverse(next)| next.at <= now) {
            due.extend(self.queue.pop().map(|Reverse(waiting)| waiting));
        }
        (due, self.queue.peek().map(|Reverse(next)| next.at))
    }
}

impl Way {
    fn loses(&mut self, size: usize, draw: f64) -> bool {
        let conditions = &mut self.conditions;
        if let Some(left) = &mut conditions.cut_after {
            let size = u64::try_from(size).unwrap_or(u64::MAX);
            conditions.cut |= *left < size;
            *left = left.saturating_sub(size);
        }
        conditions.cut || draw < conditions.loss || conditions.largest.is_some_and(|largest| size > largest)
    }
}

/// Until aborted: takes packets of clients in, sends what is due either way.
async fn serve(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut tasks = JoinSet::new();
    tasks.spawn(receive(Arc::clone(&shared), Arc::clone(&socket)));
    loop {
        let (due, next) = shared.lock().due(Instant::now());
        for waiting in due {
            let upstream = shared.lock().flows.get(&waiting.client).map(|flow| Arc::clone(&flow.upstream));
            // A packet that cannot be sent is lost, on this WAN as on any other.
            let _sent = match (waiting.direction, upstream) {
                (Direction::Forth, Some(upstream)) => upstream.send(&waiting.packet).await,
                (Direction::Forth, None) => Ok(0),
                (Direction::Back, _) => socket.send_to(&waiting.packet, waiting.client).await,
            };
        }
        let pause = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            () = tokio::time::sleep_until(pause) => {}
            () = shared.woken.notified() => {}
        }
    }
}

async fn receive(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 65536];
    loop {
        // An ICMP answer to an earlier packet is no reason to stop.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let known = shared.lock().flows.contains_key(&client);
        if !known {
            let Ok(flow) = open_flow(&shared, client).await else { continue };
            let mut state = shared.lock();
            state.flows.insert(client, flow);
            state.clients.insert(client);
        }
        shared.lock().accept(Direction::Forth, client, &buffer[..length]);
        shared.woken.notify_one();
    }
}

/// A socket towards the target for one client, with its reader. Must run at the relay's place.
async fn open_flow(shared: &Arc<Shared>, client: SocketAddr) -> std::io::Result<Flow> {
    let target = shared.lock().target;
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let upstream = Arc::new(UdpSocket::bind((any, 0)).await?);
    upstream.connect(target).await?;
    let reader = tokio::spawn(answers(Arc::clone(shared), Arc::clone(&upstream), client));
    Ok(Flow { upstream, _reader: Owned(reader.abort_handle()) })
}

async fn answers(shared: Arc<Shared>, upstream: Arc<UdpSocket>, client: SocketAddr) {
    let mut buffer = vec![0; 65536];
    loop {
        match upstream.recv(&mut buffer).await {
            Ok(length) => {
                shared.lock().accept(Direction::Back, client, &buffer[..length]);
                shared.woken.notify_one();
            }
            // The target refused an earlier packet; it may be back for the next one.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

#[cfg(test)]
mod tests;

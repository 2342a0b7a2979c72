//! UDP flows: what one client sends to one service, and what comes back, for as long as both go on.
//!
//! A flow begins as any connection does, by a stream with a header, which says where it goes and who asks. Its packets go
//! as datagrams of the link, each after the flow's [`FlowId`]. A packet that fits no datagram goes on the stream, after its
//! length; so do all where the transport has no datagrams, and those of the opener until the flow is accepted. The end of
//! the stream is the end of the flow, and tells why.
//!
//! Nothing here waits for a packet to be taken, by the path or by whoever receives it: queues are bounded and lose the
//! oldest, which is what UDP promises.

#[doc(hidden)]
pub mod decoders;
mod frames;
mod id;
mod table;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::Notify;

pub use id::FlowId;
pub(crate) use table::{Flows, Slot};

use self::frames::Frames;
use crate::header::{ServiceHeader, StreamHeader};
use crate::link::{Link, LinkShared, OpenError};
use crate::metrics::PacketLoss;
use crate::stream::{RecvHalf, SendHalf, StreamError, TunnelStream};

/// Longest packet of UDP: more does not fit its length field over IPv4, nor the one on the stream.
pub const MAX_PACKET: usize = 65_507;
/// Packets that a flow keeps until somebody takes them: while its endpoint is looked up.
const WAITING: usize = 16;
/// Packets that wait for a place on the stream, and their bytes.
const QUEUED: usize = 64;
const QUEUED_BYTES: usize = 256 << 10;
/// Memory that datagrams are made in: one allocation for some fifty of them.
const SLAB: usize = 64 << 10;

/// Takes the packets that the other side sends.
pub trait FlowSink: Send + Sync + 'static {
    /// Takes packets in the order in which they came. The link's other packets wait meanwhile: it must not wait itself,
    /// and drops what cannot go on at once.
    fn deliver(&self, packets: &[Bytes]);
}

/// One end of a flow. Dropped, it ends the flow with `CANCELLED`.
pub struct Flow {
    slot: Slot,
    send: SendHalf,
    recv: RecvHalf,
    /// What of a packet is still to be written to the stream.
    writing: [Bytes; 2],
    frames: Frames,
}

impl Flow {
    pub(crate) fn new(slot: Slot, TunnelStream { send, recv }: TunnelStream) -> Self {
        Self { slot, send, recv, writing: [Bytes::new(), Bytes::new()], frames: Frames::default() }
    }

    /// What sends on it.
    #[must_use]
    pub fn sender(&self) -> FlowSender {
        FlowSender(Arc::clone(self.slot.shared()))
    }

    /// Waits until the other side has an endpoint for it; packets may be sent before. At once on the accepting side.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError::Reset`] with the reason of the other side.
    pub async fn accepted(&mut self) -> Result<(), StreamError> {
        let shared = self.slot.shared();
        let writing = write_packets(shared, &mut self.writing, &mut self.send);
        let accepted = tokio::select! {
            biased;
            accepted = self.recv.accepted() => accepted,
            // That nothing can be written is told better by who refuses to read.
            _ = writing => self.recv.accepted().await,
        };
        shared.accepted.store(accepted.is_ok(), Ordering::Relaxed);
        accepted
    }

    /// Carries what goes on the stream, both ways, until the flow ends; without it only datagrams pass. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError`], unless the other side ended it in order.
    pub async fn run(&mut self) -> Result<(), StreamError> {
        let shared = self.slot.shared();
        let writing = write_packets(shared, &mut self.writing, &mut self.send);
        let reading = read_packets(shared, &mut self.frames, &mut self.recv);
        tokio::select! {
            biased;
            ended = reading => ended,
            error = writing => Err(error),
        }
    }

    /// Ends it: the other side is told why.
    pub fn end(mut self, code: crate::code::ResetCode) {
        self.send.reset(code);
        self.recv.stop(code);
    }
}

/// Sends on a flow. Cheap to clone; sends nothing once the flow has ended.
#[derive(Clone)]
pub struct FlowSender(Arc<FlowShared>);

impl FlowSender {
    /// Sends packets, each of at most [`MAX_PACKET`] bytes, and waits for nothing: what does not go is lost.
    pub fn send<'a>(&self, packets: impl IntoIterator<Item = &'a [u8]>, scratch: &mut Scratch) {
        let FlowShared { id, link, accepted, .. } = &*self.0;
        // Datagrams would overtake the header, which the other side has for most flows of one packet only.
        let longest = link.connection.max_datagram().filter(|_| accepted.load(Ordering::Relaxed));
        let longest = longest.and_then(|longest| longest.checked_sub(id.length()));
        let mut bytes = 0;
        for packet in packets {
            bytes += packet.len();
            match longest {
                Some(longest) if packet.len() <= longest => scratch.push(*id, packet),
                Some(_) | None => self.0.queue(Bytes::copy_from_slice(packet)),
            }
        }
        link.sent(bytes);
        if scratch.datagrams.is_empty() {
            return;
        }
        link.connection.send_datagrams(&mut scratch.datagrams);
        // The path has become narrower in this moment.
        for datagram in scratch.datagrams.drain(..) {
            self.0.queue(datagram.slice(id.length()..));
        }
    }
}

/// Memory for [`FlowSender::send`], to be used again and again.
#[derive(Default)]
pub struct Scratch {
    slab: BytesMut,
    datagrams: Vec<Bytes>,
}

impl Scratch {
    fn push(&mut self, id: FlowId, packet: &[u8]) {
        let length = id.length() + packet.len();
        if self.slab.capacity() < length {
            self.slab.reserve(SLAB.max(length));
        }
        id.encode(&mut self.slab);
        self.slab.put_slice(packet);
        self.datagrams.push(self.slab.split().freeze());
    }
}

/// State of one end of a flow.
pub(crate) struct FlowShared {
    id: FlowId,
    link: Arc<LinkShared>,
    /// The other side has seen the header.
    accepted: AtomicBool,
    sink: OnceLock<Arc<dyn FlowSink>>,
    /// Packets that nobody takes yet.
    waiting: Mutex<Vec<Bytes>>,
    /// Packets for the stream.
    queue: Mutex<Queue>,
    queued: Notify,
}

#[derive(Default)]
struct Queue {
    packets: VecDeque<Bytes>,
    bytes: usize,
}

impl FlowShared {
    fn new(id: FlowId, link: &Arc<LinkShared>, accepted: bool) -> Arc<Self> {
        Arc::new(Self {
            id,
            link: Arc::clone(link),
            accepted: AtomicBool::new(accepted),
            sink: OnceLock::new(),
            waiting: Mutex::default(),
            queue: Mutex::default(),
            queued: Notify::new(),
        })
    }

    /// From now on `sink` takes the packets, first those that waited.
    fn attach(&self, sink: Arc<dyn FlowSink>) {
        let mut waiting = lock(&self.waiting);
        if !waiting.is_empty() {
            sink.deliver(&std::mem::take(&mut *waiting));
        }
        // Set once, by whoever has the flow.
        self.sink.set(sink).ok();
    }

    fn deliver(&self, packets: &[Bytes]) {
        self.link.received(packets.iter().map(Bytes::len).sum());
        if let Some(sink) = self.sink.get() {
            return sink.deliver(packets);
        }
        let mut waiting = lock(&self.waiting);
        match self.sink.get() {
            Some(sink) => sink.deliver(packets),
            None => {
                let room = WAITING.saturating_sub(waiting.len());
                let (kept, lost) = packets.split_at(room.min(packets.len()));
                // Copies: a small one must not keep the whole packet of the link in memory.
                waiting.extend(kept.iter().map(|packet| Bytes::copy_from_slice(packet)));
                self.lost(PacketLoss::Early, lost.len());
            }
        }
    }

    /// Puts a packet into the queue for the stream.
    fn queue(&self, packet: Bytes) {
        let mut queue = lock(&self.queue);
        queue.bytes += packet.len();
        queue.packets.push_back(packet);
        while queue.packets.len() > QUEUED || queue.bytes > QUEUED_BYTES {
            let Some(oldest) = queue.packets.pop_front() else { break };
            queue.bytes -= oldest.len();
            self.lost(PacketLoss::Stream, 1);
        }
        drop(queue);
        self.queued.notify_one();
    }

    fn next(&self) -> Option<Bytes> {
        let mut queue = lock(&self.queue);
        let packet = queue.packets.pop_front()?;
        queue.bytes -= packet.len();
        Some(packet)
    }

    fn lost(&self, why: PacketLoss, packets: usize) {
        if packets > 0 {
            self.link.counters().packets_lost(why, packets);
        }
    }
}

/// Writes what is queued until the stream takes no more. Cancel-safe: `writing` keeps what is left.
async fn write_packets(flow: &FlowShared, writing: &mut [Bytes; 2], send: &mut SendHalf) -> StreamError {
    loop {
        if let Err(error) = send.write_chunks(writing).await {
            return error;
        }
        match flow.next() {
            // Never longer than the length says: no packet is.
            Some(packet) => *writing = [frames::length(&packet), packet],
            None => flow.queued.notified().await,
        }
    }
}

/// Delivers what comes on the stream until it ends. Cancel-safe.
async fn read_packets(flow: &FlowShared, frames: &mut Frames, recv: &mut RecvHalf) -> Result<(), StreamError> {
    let mut packets = Vec::new();
    while let Some(chunk) = recv.read().await? {
        frames.push(chunk, &mut packets);
        flow.deliver(&packets);
        packets.clear();
    }
    Ok(())
}

impl Link {
    /// Opens a flow to what `header` names, with an id of its own; `sink` takes what comes back. The header goes at
    /// once, and the packets `first` with it; more may follow at once.
    ///
    /// # Errors
    /// As [`Link::open`].
    pub async fn open_flow(
        &self,
        header: ServiceHeader,
        first: &[Bytes],
        sink: Arc<dyn FlowSink>,
    ) -> Result<Flow, OpenError> {
        let slot = Slot::open(&self.0).ok_or(OpenError::Overloaded)?;
        slot.attach(sink);
        let header = StreamHeader::Service(ServiceHeader { flow: Some(slot.shared().id), ..header });
        let mut bytes = BytesMut::with_capacity(first.iter().map(|packet| 2 + packet.len()).sum());
        for packet in first {
            bytes.put_slice(&frames::length(packet));
            bytes.put_slice(packet);
        }
        Ok(Flow::new(slot, self.open_with(&header, bytes.freeze()).await?))
    }
}

/// Nothing panics while one of these locks is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

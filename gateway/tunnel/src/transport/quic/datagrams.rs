//! Datagrams that wait to be sent, and how they take turns with streams.
//!
//! QUIC has no say in what goes first, and quinn-proto puts all datagrams that it has into packets before any byte of a
//! stream. A flood of them would leave streams nothing, heartbeats included, and the link would end. So they wait here, and
//! quinn-proto has a batch of them at a time; when it is sent, streams may send a seventh as much before the next.
//!
//! Where streams have nothing to send that costs nothing. That quinn-proto sends nothing may also mean that the path is
//! full; which of the two, one more datagram tells: if that does not go either, streams still have their turn.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{Connection, Transmit};
use tokio::runtime::Handle;

use super::drive::{Conn, State};
use super::udp::MAX_TRAIN;
use crate::transport::DatagramRefused;

/// Bytes of a batch: a quarter of what may be under way, within these.
const BATCH: std::ops::RangeInclusive<usize> = 16 << 10..=192 << 10;
/// For so many bytes of datagrams, streams may send one.
const SHARE: usize = 7;
/// Bytes that wait at most: what may be under way, which is another round trip of delay, within these. The least is 40 ms at
/// 100 Mbit/s: more is only delay for what can be repeated by whoever misses it. The most is what comes in a few
/// milliseconds of several gigabits a second, while the link's thread does something else.
const ROOM: std::ops::RangeInclusive<usize> = 512 << 10..=2 << 20;
/// Places for datagrams that are kept while none waits: a burst of the usual size needs no more.
const KEPT: usize = 2_048;
/// What a waiting datagram takes beside its bytes.
const OVERHEAD: usize = size_of::<Bytes>();

impl Conn {
    /// Sends datagrams, in order; those that are refused stay. What a connection's own thread has much of is sent at once.
    pub(super) fn send_datagrams(&self, datagrams: &mut Vec<Bytes>) {
        let mut state = self.lock();
        if state.error.is_some() {
            return;
        }
        let is_home = Handle::try_current().is_ok_and(|here| here.id() == self.home.id());
        let mut bytes = 0;
        datagrams.retain(|datagram| {
            let State { inner, waiting, .. } = &mut *state;
            let is_refused = waiting.push(inner, datagram).is_err();
            bytes += datagram.len();
            if is_home && bytes >= MAX_TRAIN {
                // Or those of a large batch would make room for each other although the path is free. What is left the task does.
                state.send(&self.port, Instant::now());
                bytes = 0;
            }
            is_refused
        });
        state.wake_driver();
    }

    /// Sends one datagram.
    pub(super) fn send_datagram(&self, datagram: &Bytes) -> Result<(), DatagramRefused> {
        let mut state = self.lock();
        if state.error.is_some() {
            return Err(DatagramRefused::Lost);
        }
        let State { inner, waiting, .. } = &mut *state;
        waiting.push(inner, datagram)?;
        state.wake_driver();
        Ok(())
    }

    /// Datagrams that made room for later ones, or had none.
    pub(super) fn dropped_datagrams(&self) -> u64 {
        self.lock().waiting.dropped()
    }
}

/// See the module's documentation.
pub(super) struct Waiting {
    queue: VecDeque<Bytes>,
    bytes: usize,
    /// Bytes that streams may send before the next batch.
    owed: usize,
    /// quinn-proto's room for datagrams when it has none.
    empty: usize,
    dropped: u64,
}

impl Waiting {
    /// For a connection that has just begun.
    pub(super) fn new(inner: &mut Connection) -> Self {
        let empty = inner.datagrams().send_buffer_space();
        Self { queue: VecDeque::new(), bytes: 0, owed: 0, empty, dropped: 0 }
    }

    /// Those that made room for later ones, or had none.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Adds one; the oldest make room.
    pub(super) fn push(&mut self, inner: &mut Connection, datagram: &Bytes) -> Result<(), DatagramRefused> {
        match inner.datagrams().max_size() {
            None => return Err(DatagramRefused::Unsupported),
            Some(longest) if datagram.len() > longest => return Err(DatagramRefused::TooLong),
            Some(_) => {}
        }
        self.bytes += datagram.len() + OVERHEAD;
        self.queue.push_back(datagram.clone());
        let room = within(&ROOM, window(inner));
        while self.bytes > room && self.pop().is_some() {
            self.dropped += 1;
        }
        Ok(())
    }

    fn pop(&mut self) -> Option<Bytes> {
        let oldest = self.queue.pop_front()?;
        self.bytes -= oldest.len() + OVERHEAD;
        if self.queue.is_empty() && self.queue.capacity() > KEPT {
            // A burst of small ones must not leave its memory behind.
            self.queue.shrink_to(KEPT);
        }
        Some(oldest)
    }

    /// The next train of at most so many packets. `None`: there is nothing to send, or the path takes no more.
    pub(super) fn poll_transmit(
        &mut self,
        inner: &mut Connection,
        now: Instant,
        segments: usize,
        buffer: &mut Vec<u8>,
    ) -> Option<Transmit> {
        if self.queue.is_empty() {
            return inner.poll_transmit(now, segments, buffer);
        }
        if self.owed == 0 && self.is_sent(inner) {
            let batch = within(&BATCH, window(inner) / 4);
            self.owed = self.give(inner, batch) / SHARE;
        }
        let before = inner.datagrams().send_buffer_space();
        let (given, mtu) = (self.empty.saturating_sub(before), usize::from(inner.current_mtu()).max(1));
        let segments = segments.min((given + self.owed).div_ceil(mtu)).max(1);
        if let Some(transmit) = inner.poll_transmit(now, segments, buffer) {
            let datagrams = inner.datagrams().send_buffer_space().saturating_sub(before);
            self.owed = self.owed.saturating_sub(transmit.size.saturating_sub(datagrams));
            return Some(transmit);
        }
        if !self.is_sent(inner) || self.give(inner, 1) == 0 {
            return None;
        }
        let transmit = inner.poll_transmit(now, 1, buffer)?;
        self.owed = 0;
        Some(transmit)
    }

    /// Whether quinn-proto has sent all that it was given.
    fn is_sent(&self, inner: &mut Connection) -> bool {
        inner.datagrams().send_buffer_space() == self.empty
    }

    /// Gives quinn-proto datagrams of `bytes` together, and at least one if there is any. Returns how many bytes.
    fn give(&mut self, inner: &mut Connection, bytes: usize) -> usize {
        let mut given = 0;
        while given < bytes
            && let Some(datagram) = self.pop()
        {
            let length = datagram.len() + OVERHEAD;
            match inner.datagrams().send(datagram, false) {
                Ok(()) => given += length,
                // The path has become narrower since it came.
                Err(_) => self.dropped += 1,
            }
        }
        given
    }
}

fn window(inner: &Connection) -> usize {
    usize::try_from(inner.congestion_state().window()).unwrap_or(usize::MAX)
}

fn within(range: &std::ops::RangeInclusive<usize>, value: usize) -> usize {
    value.clamp(*range.start(), *range.end())
}

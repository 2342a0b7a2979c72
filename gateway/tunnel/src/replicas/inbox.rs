//! Packets that other replicas handed over and the endpoint has not taken yet.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;

/// Packets that may wait: a burst of a fast link, 1.5 MB.
const CAPACITY: usize = 1_024;

/// A packet that reached another replica.
pub(crate) struct Handed {
    /// Stands for the client and the way to it.
    pub(crate) path: SocketAddr,
    /// Its ECN bits.
    pub(crate) ecn: u8,
    /// What the client sent.
    pub(crate) packet: Vec<u8>,
}

/// A bounded queue whose reader pays one load while it is empty.
#[derive(Default)]
pub(super) struct Inbox {
    waiting: AtomicUsize,
    packets: Mutex<VecDeque<Handed>>,
    reader: AtomicWaker,
}

impl Inbox {
    /// Whether there was room.
    pub(super) fn put(&self, packet: Handed) -> bool {
        let mut packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner);
        if packets.len() >= CAPACITY {
            return false;
        }
        packets.push_back(packet);
        self.waiting.store(packets.len(), Ordering::Release);
        drop(packets);
        self.reader.wake();
        true
    }

    pub(super) fn take(&self) -> Option<Handed> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner);
        let packet = packets.pop_front();
        self.waiting.store(packets.len(), Ordering::Release);
        packet
    }

    /// Has `reader` woken by the next packet; whether some wait already.
    pub(super) fn wait(&self, reader: &Waker) -> bool {
        self.reader.register(reader);
        self.waiting.load(Ordering::Acquire) > 0
    }
}

//! What is counted for each peer.

use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use dashmap::DashMap;

use crate::link::Link;

/// One counter for each peer: its streams, its connections under way.
#[derive(Clone, Default)]
pub(crate) struct PeerCounts(Arc<DashMap<Arc<str>, Arc<AtomicU32>>>);

impl PeerCounts {
    pub(crate) fn of(&self, peer: &Arc<str>) -> Arc<AtomicU32> {
        Arc::clone(&self.0.entry(Arc::clone(peer)).or_default())
    }

    /// Forgets peers that are gone; who still counts keeps its counter.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|peer, _| keep(peer));
    }
}

/// What links carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) packets_lost: u64,
    pub(crate) packets_repeated: u64,
    pub(crate) hops: u64,
}

impl Traffic {
    pub(crate) fn of(link: &Link) -> Self {
        let path = link.0.connection.path();
        Self {
            bytes_sent: link.0.bytes_sent.load(Relaxed),
            bytes_received: link.0.bytes_received.load(Relaxed),
            packets_lost: path.lost_packets,
            packets_repeated: path.repeated_packets,
            hops: path.hops,
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, more: Self) {
        self.bytes_sent += more.bytes_sent;
        self.bytes_received += more.bytes_received;
        self.packets_lost += more.packets_lost;
        self.packets_repeated += more.packets_repeated;
        self.hops += more.hops;
    }
}

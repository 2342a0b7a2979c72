//! Counters of a tunnel, for metrics and status. All count since the start of the process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::code::ResetCode;
use crate::replicas::ForwardingCounters;
use crate::transport::{CloseReason, TransportKind};

/// What is counted while the tunnel runs.
#[derive(Default)]
pub(crate) struct Counters {
    /// By transport.
    opened: [AtomicU64; TransportKind::ALL.len()],
    served: AtomicU64,
    header_errors: AtomicU64,
    dials: AtomicU64,
    dial_failures: AtomicU64,
    links: AtomicU64,
    resets_sent: [AtomicU64; ResetCode::ALL.len()],
    resets_received: [AtomicU64; ResetCode::ALL.len()],
    packets_received: AtomicU64,
    packets_lost: [AtomicU64; PacketLoss::ALL.len()],
    closed: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    pub(crate) fn stream_opened(&self, by: TransportKind) {
        self.opened.get(by as usize).into_iter().for_each(add);
    }

    pub(crate) fn stream_served(&self) {
        add(&self.served);
    }

    pub(crate) fn header_error(&self) {
        add(&self.header_errors);
    }

    pub(crate) fn dial(&self) {
        add(&self.dials);
    }

    pub(crate) fn dial_failed(&self) {
        add(&self.dial_failures);
    }

    pub(crate) fn link(&self) {
        add(&self.links);
    }

    pub(crate) fn reset_sent(&self, code: ResetCode) {
        self.resets_sent.get(code.index()).into_iter().for_each(add);
    }

    pub(crate) fn reset_received(&self, code: ResetCode) {
        self.resets_received.get(code.index()).into_iter().for_each(add);
    }

    /// Datagrams of flows came.
    pub(crate) fn packets_received(&self, packets: usize) {
        self.packets_received.fetch_add(packets as u64, Ordering::Relaxed);
    }

    pub(crate) fn packets_lost(&self, why: PacketLoss, packets: usize) {
        if let Some(count) = self.packets_lost.get(why as usize) {
            count.fetch_add(packets as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn link_closed(&self, reason: &CloseReason) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        *closed.entry(reason.label()).or_default() += 1;
    }

    pub(crate) fn snapshot(
        &self,
        handshake_failures: BTreeMap<&'static str, u64>,
        forwarding: ForwardingCounters,
    ) -> TunnelCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let by_code = |counters: &[AtomicU64]| {
            let counts = ResetCode::ALL.into_iter().zip(counters).map(|(code, count)| (code.name(), get(count)));
            counts.filter(|(_, count)| *count > 0).collect()
        };
        TunnelCounters {
            streams_opened: self.opened.iter().map(get).sum(),
            streams_opened_by: TransportKind::ALL
                .into_iter()
                .zip(&self.opened)
                .map(|(by, count)| (by.name(), get(count)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            streams_served: get(&self.served),
            header_errors: get(&self.header_errors),
            dials: get(&self.dials),
            dial_failures: get(&self.dial_failures),
            links: get(&self.links),
            resets_sent: by_code(&self.resets_sent),
            resets_received: by_code(&self.resets_received),
            flow_packets_received: get(&self.packets_received),
            flow_packets_lost: PacketLoss::ALL
                .into_iter()
                .zip(&self.packets_lost)
                .map(|(why, count)| (why.name(), get(count)))
                .filter(|(_, count)| *count > 0)
                .collect(),
            links_closed: self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            handshake_failures,
            forwarding,
        }
    }
}

/// Why a packet of a UDP flow was dropped here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PacketLoss {
    /// It is of no flow, or of one that has ended.
    UnknownFlow,
    /// It came before its flow was ready, with too many others or too long before.
    Early,
    /// The stream of its flow is slower than its packets.
    Stream,
    /// The path is slower than the packets.
    Path,
}

impl PacketLoss {
    const ALL: [Self; 4] = [Self::UnknownFlow, Self::Early, Self::Stream, Self::Path];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::UnknownFlow => "UNKNOWN_FLOW",
            Self::Early => "EARLY",
            Self::Stream => "STREAM_FULL",
            Self::Path => "PATH_FULL",
        }
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What was counted; labels are from small fixed sets, and what never occurred is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelCounters {
    /// Streams opened from here.
    pub streams_opened: u64,
    /// Likewise, by [`TransportKind`] of the link.
    pub streams_opened_by: BTreeMap<&'static str, u64>,
    /// Streams opened by peers.
    pub streams_served: u64,
    /// Of those, with a header that could not be taken.
    pub header_errors: u64,
    /// Dials begun.
    pub dials: u64,
    /// Dials that gave no link.
    pub dial_failures: u64,
    /// Links that came up, in either direction.
    pub links: u64,
    /// Streams cut from here, by [`ResetCode`].
    pub resets_sent: BTreeMap<&'static str, u64>,
    /// Streams cut by peers, by [`ResetCode`].
    pub resets_received: BTreeMap<&'static str, u64>,
    /// Datagrams of UDP flows that came.
    pub flow_packets_received: u64,
    /// Packets of UDP flows that were dropped here, by reason.
    pub flow_packets_lost: BTreeMap<&'static str, u64>,
    /// Links that ended, by reason.
    pub links_closed: BTreeMap<&'static str, u64>,
    /// Connections of others that did not become links, by reason.
    pub handshake_failures: BTreeMap<&'static str, u64>,
    /// Packets between replicas of this cluster.
    pub forwarding: ForwardingCounters,
}

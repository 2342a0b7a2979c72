//! Several gateways of one cluster behind one address: they know each other, and hand over what is another's.
//!
//! A load balancer, or Kubernetes, gives a flow to another replica whenever it sees fit: a replica came or
//! went, a node rebooted, a NAT rebound the flow. The packets then reach a gateway that does not hold the
//! link. Their connection id says who does (`transport::quic::cid`), and that replica gets them over the pod
//! network, in an [`envelope`]. It answers through the replica that the balancer chose, because only from
//! there does the answer look to the peer as if it came from the balancer: see ADR 0009.
//!
//! - `siblings`: who is there; a state machine without I/O.
//! - [`envelope`], `keys`: what is on the wire between replicas.
//! - `paths`: the addresses that stand for "this client, by way of that replica".
//! - `network`: the socket, and the task that owns it.

pub mod envelope;
mod inbox;
mod keys;
pub(crate) mod network;
pub(crate) mod paths;
pub(crate) mod siblings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use tokio::sync::watch;

use crate::config::ReplicaId;

/// Where the replicas of this cluster's gateway find each other.
#[derive(Clone, Debug)]
pub struct ReplicaNetwork {
    /// UDP address on the pod network for beats and forwarded packets; port 0 takes any. Nothing outside the
    /// cluster needs to reach it.
    pub listen: SocketAddr,
    /// Where the replicas listen; this one may be among them. The latest list counts; a replica that has
    /// left it is heard and served as long as it answers.
    pub siblings: watch::Receiver<Arc<[SocketAddr]>>,
}

/// Another replica of this cluster's gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SiblingStatus {
    /// Which.
    pub replica: ReplicaId,
    /// Where it is on the pod network.
    pub address: SocketAddr,
    /// On its way out: it takes no new links and still gets its packets.
    pub draining: bool,
}

/// What was forwarded between replicas since the start; what never occurred is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ForwardingCounters {
    /// Packets by direction: see [`ForwardingCounters::bytes`].
    pub packets: BTreeMap<&'static str, u64>,
    /// Bytes of packets by direction: `to_owner` left here for the replica whose link it is, `from_sibling` came here
    /// that way; `reply_to_sibling` is what this one's links answered to those, `reply_to_peer` what was sent on for others.
    pub bytes: BTreeMap<&'static str, u64>,
    /// Packets that were dropped, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToOwner,
    FromSibling,
    ReplyToSibling,
    ReplyToPeer,
}

impl Way {
    const ALL: [Self; 4] = [Self::ToOwner, Self::FromSibling, Self::ReplyToSibling, Self::ReplyToPeer];

    const fn name(self) -> &'static str {
        match self {
            Self::ToOwner => "to_owner",
            Self::FromSibling => "from_sibling",
            Self::ReplyToSibling => "reply_to_sibling",
            Self::ReplyToPeer => "reply_to_peer",
        }
    }
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// Of another version of the envelope.
    Version,
    /// Not an envelope.
    Malformed,
    /// Larger than any packet of a link in its envelope.
    Oversized,
    /// From a replica that is not known, or not any more.
    UnknownSender,
    /// Its seal is not that of the replica it names.
    Forged,
    /// Its number was used before, or is too old to tell.
    Replayed,
    /// More wait than the endpoint takes.
    InboxFull,
    /// More clients by way of other replicas than are kept.
    PathsFull,
    /// An answer to a client that has not been heard of for long.
    PathGone,
    /// An answer by way of a replica that is gone.
    SiblingGone,
    /// The socket takes no more.
    SocketFull,
    /// From outside, with a source address that stands for a forwarded client.
    SpoofedPath,
}

impl Dropped {
    const ALL: [Self; 12] = [
        Self::Version,
        Self::Malformed,
        Self::Oversized,
        Self::UnknownSender,
        Self::Forged,
        Self::Replayed,
        Self::InboxFull,
        Self::PathsFull,
        Self::PathGone,
        Self::SiblingGone,
        Self::SocketFull,
        Self::SpoofedPath,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Malformed => "malformed",
            Self::Oversized => "oversized",
            Self::UnknownSender => "unknown_sender",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::InboxFull => "inbox_full",
            Self::PathsFull => "paths_full",
            Self::PathGone => "path_gone",
            Self::SiblingGone => "sibling_gone",
            Self::SocketFull => "socket_full",
            Self::SpoofedPath => "spoofed_path",
        }
    }
}

/// Counts what is forwarded and what is not.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    packets: [AtomicU64; Way::ALL.len()],
    bytes: [AtomicU64; Way::ALL.len()],
    dropped: [AtomicU64; Dropped::ALL.len()],
}

impl Tally {
    pub(crate) fn went(&self, way: Way, bytes: usize) {
        let add = |counters: &[AtomicU64], by: u64| {
            if let Some(counter) = counters.get(way as usize) {
                counter.fetch_add(by, Ordering::Relaxed);
            }
        };
        add(&self.packets, 1);
        add(&self.bytes, bytes as u64);
    }

    pub(crate) fn dropped(&self, reason: Dropped) {
        if let Some(counter) = self.dropped.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> ForwardingCounters {
        let named = |counter: &AtomicU64, name| Some((name, counter.load(Ordering::Relaxed))).filter(|(_, n)| *n > 0);
        let ways = |counters: &[AtomicU64]| {
            Way::ALL.iter().zip(counters).filter_map(|(way, counter)| named(counter, way.name())).collect()
        };
        let reasons = Dropped::ALL.iter().zip(&self.dropped);
        ForwardingCounters {
            packets: ways(&self.packets),
            bytes: ways(&self.bytes),
            dropped: reasons.filter_map(|(reason, counter)| named(counter, reason.name())).collect(),
        }
    }
}

//! What the server counts. Each worker has counters of its own, so that counting costs no shared
//! cache line; reading adds them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::{Rcode, rtype};

/// Why a packet or connection got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Shorter than a header.
    Short,
    /// It claims to be a response (QR=1): answering would let two servers talk for ever.
    Response,
    /// From port 0, or from an address that is no host's.
    Source,
    /// Over the response rate of its network.
    RateLimited,
    /// The reply could not be sent.
    Send,
    /// More TCP connections than allowed.
    Connections,
    /// A TCP message longer than any query.
    TooLarge,
    /// A TCP connection that said nothing, or did not read, for too long.
    Idle,
}

impl DropReason {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Self; 8] = [
        Self::Short,
        Self::Response,
        Self::Source,
        Self::RateLimited,
        Self::Send,
        Self::Connections,
        Self::TooLarge,
        Self::Idle,
    ];

    /// As a label of a metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Response => "response",
            Self::Source => "source",
            Self::RateLimited => "rate_limited",
            Self::Send => "send",
            Self::Connections => "connections",
            Self::TooLarge => "too_large",
            Self::Idle => "idle",
        }
    }
}

/// Query types counted by name; all others are `other`.
const TYPES: [(u16, &str); 9] = [
    (rtype::A, "A"),
    (rtype::AAAA, "AAAA"),
    (rtype::SRV, "SRV"),
    (rtype::TXT, "TXT"),
    (rtype::NS, "NS"),
    (rtype::SOA, "SOA"),
    (rtype::PTR, "PTR"),
    (rtype::HTTPS, "HTTPS"),
    (rtype::ANY, "ANY"),
];

/// The counters of one worker. 128-byte alignment keeps two workers off one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct WorkerCounters {
    queries: [AtomicU64; TYPES.len() + 1],
    answers: [AtomicU64; Rcode::ALL.len()],
    drops: [AtomicU64; DropReason::ALL.len()],
    truncated: AtomicU64,
    slow: AtomicU64,
    socket_errors: AtomicU64,
    in_flight: AtomicU64,
    connections: AtomicU64,
}

fn add(counter: Option<&AtomicU64>) {
    if let Some(counter) = counter {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl WorkerCounters {
    pub(crate) fn query(&self, qtype: u16) {
        let index = TYPES.iter().position(|(known, _)| *known == qtype).unwrap_or(TYPES.len());
        add(self.queries.get(index));
    }

    pub(crate) fn answer(&self, rcode: Rcode) {
        add(Rcode::ALL.iter().position(|known| *known == rcode).and_then(|index| self.answers.get(index)));
    }

    pub(crate) fn dropped(&self, reason: DropReason) {
        add(DropReason::ALL.iter().position(|known| *known == reason).and_then(|index| self.drops.get(index)));
    }

    pub(crate) fn truncated(&self) {
        add(Some(&self.truncated));
    }

    pub(crate) fn slow(&self) {
        add(Some(&self.slow));
    }

    pub(crate) fn socket_error(&self) {
        add(Some(&self.socket_errors));
    }

    pub(crate) fn set_in_flight(&self, queries: usize) {
        self.in_flight.store(queries as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_connections(&self, connections: usize) {
        self.connections.store(connections as u64, Ordering::Relaxed);
    }
}

/// All counters of a server.
#[derive(Clone, Debug)]
pub struct Counters(Arc<[Arc<WorkerCounters>]>);

impl Counters {
    /// Counters for `workers` workers.
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Arc::default()).collect())
    }

    /// The counters of worker `index`.
    pub(crate) fn worker(&self, index: usize) -> Arc<WorkerCounters> {
        self.0.get(index).cloned().unwrap_or_default()
    }

    /// The sums, now.
    #[must_use]
    pub fn snapshot(&self) -> CountersSnapshot {
        let names = TYPES.iter().map(|(_, name)| *name).chain(["other"]);
        CountersSnapshot {
            queries: names.enumerate().map(|(i, name)| (name, self.sum(|w| w.queries.get(i)))).collect(),
            answers: Rcode::ALL.iter().enumerate().map(|(i, r)| (r.name(), self.sum(|w| w.answers.get(i)))).collect(),
            drops: DropReason::ALL
                .iter()
                .enumerate()
                .map(|(i, r)| (r.as_str(), self.sum(|w| w.drops.get(i))))
                .collect(),
            truncated: self.sum(|w| Some(&w.truncated)),
            slow: self.sum(|w| Some(&w.slow)),
            socket_errors: self.sum(|w| Some(&w.socket_errors)),
            in_flight: self.sum(|w| Some(&w.in_flight)),
            connections: self.sum(|w| Some(&w.connections)),
        }
    }

    fn sum<'a>(&'a self, counter: impl Fn(&'a WorkerCounters) -> Option<&'a AtomicU64>) -> u64 {
        self.0.iter().filter_map(|worker| counter(worker)).map(|counter| counter.load(Ordering::Relaxed)).sum()
    }
}

/// What was counted up to one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CountersSnapshot {
    /// Questions by type.
    pub queries: Vec<(&'static str, u64)>,
    /// Replies by response code.
    pub answers: Vec<(&'static str, u64)>,
    /// What got no reply, by reason.
    pub drops: Vec<(&'static str, u64)>,
    /// UDP replies cut short (TC), those of the rate limit included.
    pub truncated: u64,
    /// Queries that were not of the plain shape.
    pub slow: u64,
    /// Errors of listening sockets, each survived.
    pub socket_errors: u64,
    /// Queries received and not yet answered, now.
    pub in_flight: u64,
    /// TCP connections, now.
    pub connections: u64,
}

impl CountersSnapshot {
    /// How many replies had this response code, as `dig` names it.
    #[must_use]
    pub fn answered(&self, rcode: &str) -> u64 {
        self.answers.iter().find(|(name, _)| *name == rcode).map_or(0, |(_, count)| *count)
    }

    /// How many packets or connections were dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.iter().find(|(name, _)| *name == reason.as_str()).map_or(0, |(_, count)| *count)
    }
}

//! Refused inputs: each is counted, and logged at most once per kind, peer and interval.
//!
//! A hostile peer can send refused input as fast as its link carries it. The counter shows every one; the log
//! shows the first of its kind, and later one line with how many more there were.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::escape::Escaped;
use super::metrics::Metrics;

/// Shortest time between two log lines of one kind and peer.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Most (kind, peer) pairs that are told apart; kinds are few and peers are configured, so that more means
/// that somebody invents names: those share one line per kind.
const MAX_KEYS: usize = 512;

/// What was refused. The text is the label of the counter and the `kind` of the log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A TLS or QUIC handshake: wrong ALPN, version, certificate, pin or identity.
    Handshake,
    /// A control message: malformed, too large, out of order.
    Control,
    /// A federation message or a whole session.
    Federation,
    /// One record of a federation message; the others were applied.
    Record,
    /// A stream header.
    StreamHeader,
    /// A stream to a service that is not exported to that peer, or does not exist.
    NotExported,
    /// A source that no access rule allows.
    Denied,
    /// An endpoint address that must never be dialled.
    Address,
    /// A DNS packet.
    Dns,
    /// An HTTP request to the admin, metrics or health port.
    Http,
    /// A configuration file on reload; the last good one stays.
    Config,
    /// A state file on disk.
    State,
    /// A certificate signing request.
    Signing,
    /// Work above a limit: connections, streams, bytes, updates.
    Overload,
}

impl Refusal {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Control => "control",
            Self::Federation => "federation",
            Self::Record => "record",
            Self::StreamHeader => "stream_header",
            Self::NotExported => "not_exported",
            Self::Denied => "denied",
            Self::Address => "address",
            Self::Dns => "dns",
            Self::Http => "http",
            Self::Config => "config",
            Self::State => "state",
            Self::Signing => "signing",
            Self::Overload => "overload",
        }
    }
}

/// Kind, and peer where it is known.
type Key = (Refusal, Option<Arc<str>>);

/// Counts and logs refused input.
#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    interval: Duration,
    lines: Mutex<HashMap<Key, Line>>,
}

#[derive(Debug)]
struct Line {
    written: Instant,
    suppressed: u64,
}

/// What [`Refusals::admit`] decided.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    /// Write it, and say how many were not written since the last one.
    Write {
        suppressed: u64,
    },
    Suppress,
}

impl Refusals {
    /// Counts into `metrics`, and logs once per [`INTERVAL`].
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, interval: INTERVAL, lines: Mutex::default() }
    }

    /// One refused input from `peer` (`None`: not known, or local). `detail` says what was wrong and is
    /// formatted only if the line is written; it is escaped here, so it may quote the input.
    pub fn refused(&self, kind: Refusal, peer: Option<&Arc<str>>, detail: impl fmt::Display) {
        self.metrics.refused(kind, peer);
        if let Admission::Write { suppressed } = self.admit(kind, peer, Instant::now()) {
            let detail = detail.to_string();
            tracing::warn!(
                kind = kind.as_str(),
                peer = %Escaped(peer.map_or("-", |peer| peer)),
                suppressed,
                "refused: {}",
                Escaped(&detail)
            );
        }
    }

    fn admit(&self, kind: Refusal, peer: Option<&Arc<str>>, now: Instant) -> Admission {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (kind, peer.cloned());
        if lines.len() >= MAX_KEYS && !lines.contains_key(&key) {
            key.1 = None;
        }
        let Some(line) = lines.get_mut(&key) else {
            lines.insert(key, Line { written: now, suppressed: 0 });
            return Admission::Write { suppressed: 0 };
        };
        if now.saturating_duration_since(line.written) < self.interval {
            line.suppressed += 1;
            return Admission::Suppress;
        }
        line.written = now;
        Admission::Write { suppressed: std::mem::take(&mut line.suppressed) }
    }

    /// Drops what is remembered of a peer that was removed.
    pub fn forget_peer(&self, peer: &str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|(_, owner), _| owner.as_deref() != Some(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    #[test]
    fn i8_one_line_per_kind_peer_and_interval() {
        let refusals = Refusals::new(Arc::new(Metrics::new()));
        let start = Instant::now();
        let (a, b) = (peer("a"), peer("b"));
        assert_eq!(refusals.admit(Refusal::Record, Some(&a), start), Admission::Write { suppressed: 0 });
        for _ in 0..1_000 {
            assert_eq!(refusals.admit(Refusal::Record, Some(&a), start), Admission::Suppress);
        }
        // Others are not silenced by a loud one.
        assert_eq!(refusals.admit(Refusal::Record, Some(&b), start), Admission::Write { suppressed: 0 });
        assert_eq!(refusals.admit(Refusal::Dns, Some(&a), start), Admission::Write { suppressed: 0 });
        assert_eq!(refusals.admit(Refusal::Record, Some(&a), start + INTERVAL), Admission::Write { suppressed: 1_000 });
    }

    #[test]
    fn i8_invented_names_do_not_grow_the_table() {
        let refusals = Refusals::new(Arc::new(Metrics::new()));
        for number in 0..10_000 {
            let name = peer(&format!("peer-{number}"));
            let _: Admission = refusals.admit(Refusal::Handshake, Some(&name), Instant::now());
        }
        assert!(refusals.lines.lock().unwrap().len() <= MAX_KEYS + 1);
    }
}

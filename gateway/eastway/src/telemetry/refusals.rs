//! Refused inputs: each is counted, and logged at most once per kind, peer and interval.
//!
//! A hostile peer can send refused input as fast as its link carries it. The counter shows every one; the log
//! shows the first of its kind, and later one line with how many more there were.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::escape::Escaped;
use super::limit::LogLimit;
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
    /// A client without a sidecar, of a service that takes mutual TLS only.
    TlsRequired,
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
    /// What a peer says that its trust domain is known by.
    Anchor,
    /// A request of a sidecar, or what a sidecar says of its configuration.
    Sidecar,
    /// A request of a sidecar: no CONNECT, malformed, or to what is not imported.
    Hbone,
    /// A connection by the name in TLS: none, malformed, or of what is not imported.
    Sni,
    /// A pipe between two clusters: not allowed, not agreed on, or above a limit.
    Relay,
    /// A question about a pod that is to get a sidecar: malformed, too large, or of a pod that can have none.
    Injection,
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
            Self::TlsRequired => "tls_required",
            Self::Address => "address",
            Self::Dns => "dns",
            Self::Http => "http",
            Self::Config => "config",
            Self::State => "state",
            Self::Signing => "signing",
            Self::Anchor => "anchor",
            Self::Sidecar => "sidecar",
            Self::Hbone => "hbone",
            Self::Sni => "sni",
            Self::Relay => "relay",
            Self::Injection => "injection",
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
    lines: LogLimit<Key>,
    /// Lines about what rules in dry-run mode would refuse: they must not silence what is refused.
    dry: LogLimit<Arc<str>>,
    /// What the last line of each key said, escaped; bounded as the lines are.
    examples: Mutex<HashMap<Key, String>>,
}

impl Refusals {
    /// Counts into `metrics`, and logs once per [`INTERVAL`].
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, lines: LogLimit::new(INTERVAL), dry: LogLimit::new(INTERVAL), examples: Mutex::default() }
    }

    /// One refused input from `peer` (`None`: not known, or local). `detail` says what was wrong and is
    /// formatted only if the line is written; it is escaped here, so it may quote the input.
    pub fn refused(&self, kind: Refusal, peer: Option<&Arc<str>>, detail: impl fmt::Display) {
        self.metrics.refused(kind, peer);
        if let Some(suppressed) = self.admit(kind, peer, Instant::now()) {
            let detail = Escaped(&detail.to_string()).to_string();
            tracing::warn!(
                kind = kind.as_str(),
                peer = %Escaped(peer.map_or("-", |peer| peer)),
                suppressed,
                "refused: {detail}"
            );
            let mut examples = self.examples.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (kind, peer.cloned());
            if examples.len() < MAX_KEYS || examples.contains_key(&key) {
                examples.insert(key, detail);
            }
        }
    }

    /// A connection of `peer` that access rules would refuse if they were enforced (dry-run mode). Its counter is
    /// [`Metrics::access_denied`].
    pub fn would_refuse(&self, peer: &Arc<str>, detail: impl fmt::Display) {
        if let Some(suppressed) = self.dry.admit(Arc::clone(peer), Instant::now()) {
            let (who, detail) = (Escaped(peer), detail.to_string());
            tracing::warn!(peer = %who, suppressed, "dry run, let through: {}", Escaped(&detail));
        }
    }

    /// What the last log line about this kind and peer said.
    #[must_use]
    pub fn example(&self, kind: Refusal, peer: &Arc<str>) -> Option<String> {
        let examples = self.examples.lock().unwrap_or_else(PoisonError::into_inner);
        examples.get(&(kind, Some(Arc::clone(peer)))).cloned()
    }

    /// Counts a refused input that is logged elsewhere.
    pub fn count(&self, kind: Refusal, peer: Option<&Arc<str>>) {
        self.metrics.refused(kind, peer);
    }

    fn admit(&self, kind: Refusal, peer: Option<&Arc<str>>, now: Instant) -> Option<u64> {
        self.lines.admit_bounded((kind, peer.cloned()), MAX_KEYS, |(kind, _)| (kind, None), now)
    }

    /// Drops what is remembered of a peer that was removed.
    pub fn forget_peer(&self, peer: &str) {
        self.lines.retain(|(_, owner)| owner.as_deref() != Some(peer));
        self.dry.retain(|owner| **owner != *peer);
        let mut examples = self.examples.lock().unwrap_or_else(PoisonError::into_inner);
        examples.retain(|(_, owner), _| owner.as_deref() != Some(peer));
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
        assert_eq!(refusals.admit(Refusal::Record, Some(&a), start), Some(0));
        for _ in 0..1_000 {
            assert_eq!(refusals.admit(Refusal::Record, Some(&a), start), None);
        }
        // Others are not silenced by a loud one.
        assert_eq!(refusals.admit(Refusal::Record, Some(&b), start), Some(0));
        assert_eq!(refusals.admit(Refusal::Dns, Some(&a), start), Some(0));
        assert_eq!(refusals.admit(Refusal::Record, Some(&a), start + INTERVAL), Some(1_000));
    }

    #[test]
    fn i8_invented_names_do_not_grow_the_table() {
        let refusals = Refusals::new(Arc::new(Metrics::new()));
        for number in 0..10_000 {
            let name = peer(&format!("peer-{number}"));
            let _: Option<u64> = refusals.admit(Refusal::Handshake, Some(&name), Instant::now());
        }
        assert!(refusals.lines.len() <= MAX_KEYS + 1);
    }
}

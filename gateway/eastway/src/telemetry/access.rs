//! The access log: one line per connection when it ends, with the field names of Envoy's.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use eastway_tunnel::TransportKind;
use serde::{Deserialize, Serialize};

use super::escape::Escaped;
use super::limit::LogLimit;
use super::metrics::ResponseFlag;

/// The `target` of access lines: filters and formats can tell them from the log.
pub const TARGET: &str = "access";
/// Least time between two lines about refused streams of one peer, for each way of refusing.
const REJECTED_INTERVAL: Duration = Duration::from_millis(100);

/// Which connections get a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum AccessMode {
    /// None.
    Off,
    /// Those that did not end as their ends wished.
    #[default]
    Errors,
    /// All.
    All,
}

impl AccessMode {
    /// Its name in configuration files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Errors => "errors",
            Self::All => "all",
        }
    }
}

/// Which way a connection went through this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a local client.
    Outbound,
    /// From a peer to a local endpoint.
    Inbound,
}

/// What carried it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// A QUIC link.
    Quic,
    /// A link over TLS over TCP.
    Tcp,
    /// A link by way of a third cluster.
    Relay,
    /// Both ends are in this cluster.
    Local,
    /// It ended before it was routed.
    None,
}

impl Path {
    fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Relay => "relay",
            Self::Local => "local",
            Self::None => "-",
        }
    }
}

impl From<TransportKind> for Path {
    fn from(carrier: TransportKind) -> Self {
        match carrier {
            TransportKind::Quic => Self::Quic,
            TransportKind::Tcp => Self::Tcp,
            TransportKind::Relay => Self::Relay,
            // Both ends are in this process.
            TransportKind::Memory => Self::Local,
        }
    }
}

/// One finished connection.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// Which way.
    pub direction: Direction,
    /// When it began.
    pub start_time: SystemTime,
    /// How long it lived.
    pub duration: Duration,
    /// Namespace and service it asked for, if that is known.
    pub service: Option<Arc<str>>,
    /// Port of the service.
    pub port: u16,
    /// Peer at the other end of the link.
    pub peer: Option<Arc<str>>,
    /// What carried it.
    pub path: Path,
    /// Who connected, e.g. `onprem/bookinfo/productpage`.
    pub source: Option<Arc<str>>,
    /// The client's address; `None` for connections of a peer.
    pub downstream_remote_address: Option<SocketAddr>,
    /// The address the client connected to.
    pub downstream_local_address: Option<SocketAddr>,
    /// The endpoint (inbound) or the peer's gateway (outbound).
    pub upstream_host: Option<SocketAddr>,
    /// Bytes from the client.
    pub bytes_received: u64,
    /// Bytes to the client.
    pub bytes_sent: u64,
    /// How it ended.
    pub response_flags: ResponseFlag,
    /// More about the end, e.g. the name of a reset code; may quote the peer.
    pub details: Option<Arc<str>>,
    /// W3C `traceparent` that the connection carried.
    pub traceparent: Option<Arc<str>>,
}

/// Writes access lines; clones share the mode.
#[derive(Clone, Debug)]
pub struct AccessLog {
    mode: Arc<AtomicU8>,
    rejected: Arc<LogLimit<(Arc<str>, ResponseFlag)>>,
}

impl AccessLog {
    /// Begins in `mode`.
    #[must_use]
    pub fn new(mode: AccessMode) -> Self {
        let log = Self { mode: Arc::default(), rejected: Arc::new(LogLimit::new(REJECTED_INTERVAL)) };
        log.set_mode(mode);
        log
    }

    /// The mode now.
    #[must_use]
    pub fn mode(&self) -> AccessMode {
        match self.mode.load(Ordering::Relaxed) {
            0 => AccessMode::Off,
            1 => AccessMode::Errors,
            _ => AccessMode::All,
        }
    }

    /// Changes the mode of all clones.
    pub fn set_mode(&self, mode: AccessMode) {
        let value = match mode {
            AccessMode::Off => 0,
            AccessMode::Errors => 1,
            AccessMode::All => 2,
        };
        self.mode.store(value, Ordering::Relaxed);
    }

    /// Whether a connection that ended with `flag` gets a line: ask before making the record.
    #[must_use]
    pub fn wants(&self, flag: ResponseFlag) -> bool {
        match self.mode() {
            AccessMode::Off => false,
            AccessMode::Errors => flag != ResponseFlag::None,
            AccessMode::All => true,
        }
    }

    /// Whether a stream of `peer` that was refused gets a line, and how many like it got none since the last one: a
    /// peer can be refused as fast as its link carries it.
    #[must_use]
    pub fn admits_rejected(&self, peer: &Arc<str>, flag: ResponseFlag) -> Option<u64> {
        self.rejected.admit((Arc::clone(peer), flag), Instant::now())
    }

    /// Writes the line, if the mode asks for it.
    pub fn record(&self, record: &AccessRecord) {
        if !self.wants(record.response_flags) {
            return;
        }
        let direction = match record.direction {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        };
        let text = |value: &Option<Arc<str>>| Shown(value.clone());
        tracing::info!(
            target: TARGET,
            start_time = %rfc3339(record.start_time),
            duration = u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX),
            direction,
            upstream_cluster = %Upstream(record),
            peer = %text(&record.peer),
            path = record.path.as_str(),
            source = %text(&record.source),
            downstream_remote_address = %address(record.downstream_remote_address),
            downstream_local_address = %address(record.downstream_local_address),
            upstream_host = %address(record.upstream_host),
            bytes_received = record.bytes_received,
            bytes_sent = record.bytes_sent,
            response_flags = record.response_flags.as_str(),
            connection_termination_details = %text(&record.details),
            traceparent = %text(&record.traceparent),
            "connection"
        );
    }
}

/// Envoy's `direction|port||host`.
struct Upstream<'a>(&'a AccessRecord);

impl fmt::Display for Upstream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(record) = self;
        let Some((namespace, name)) = record.service.as_deref().and_then(|key| key.split_once('/')) else {
            return f.write_str("-");
        };
        let direction = if record.direction == Direction::Inbound { "inbound" } else { "outbound" };
        let port = record.port;
        write!(f, "{direction}|{port}||{}.{}.svc.clusterset.local", Escaped(name), Escaped(namespace))
    }
}

/// An escaped text, or `-`.
struct Shown(Option<Arc<str>>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(self.0.as_deref().unwrap_or("-")).fmt(f)
    }
}

fn address(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| address.to_string())
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_choose_by_how_the_connection_ended() {
        let log = AccessLog::new(AccessMode::Errors);
        assert!(log.wants(ResponseFlag::Denied) && !log.wants(ResponseFlag::None));
        log.clone().set_mode(AccessMode::All);
        assert!(log.wants(ResponseFlag::None));
        log.set_mode(AccessMode::Off);
        assert!(!log.wants(ResponseFlag::UpstreamFailure));
    }

    #[test]
    fn p11_a_peer_that_is_refused_all_the_time_does_not_fill_the_log() {
        let log = AccessLog::new(AccessMode::Errors);
        let (loud, other): (Arc<str>, Arc<str>) = (Arc::from("loud"), Arc::from("other"));
        let lines = (0..10_000).filter(|_| log.admits_rejected(&loud, ResponseFlag::NoRoute).is_some()).count();
        assert!((1..100).contains(&lines), "{lines}");
        assert_eq!(log.admits_rejected(&other, ResponseFlag::NoRoute), Some(0), "others are not silenced");
    }
}

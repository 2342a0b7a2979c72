//! What a tunnel is told when it starts. Limits and times are passed in; nothing is read from the environment.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

pub use eastway_identity::ca::LinkKeys;

use crate::replicas::ReplicaNetwork;
use crate::transport::TransportKind;
pub use crate::transport::quic::{QuicLb, QuicLbError};

/// One incarnation of one gateway: 16 random bytes, drawn when the process starts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub [u8; 16]);

impl ReplicaId {
    /// Draws a new one.
    ///
    /// # Errors
    /// [`NoRandomness`] if the system's generator fails.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    /// What connection ids and envelopes have room for: enough to tell the replicas of one cluster apart.
    #[must_use]
    pub fn short(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.0;
        [a, b, c, d]
    }

    /// Reads the id of another replica as it stands in a control message.
    pub(crate) fn from_wire(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for ReplicaId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The random generator of the system failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the random generator of the system failed")]
pub struct NoRandomness;

/// All that a tunnel needs beside identities and Peers.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// Address for links, UDP and TCP; port 0 takes any that is free for both.
    pub listen: SocketAddr,
    /// Name of this cluster.
    pub cluster: Arc<str>,
    /// This process.
    pub replica: ReplicaId,
    /// Former incarnations of it, all gone: packets that are meant for them are answered with a stateless reset, so
    /// that a peer learns of a restart within a round trip.
    pub predecessors: Arc<[ReplicaId]>,
    /// Keys that all replicas and restarts share, so that each can answer for packets that were meant for
    /// another: without them a restart costs the peers a full idle timeout.
    pub keys: LinkKeys,
    /// Where the other replicas of this cluster are; `None`: there are none, or they are told of by
    /// [`Tunnel::set_live_replicas`](crate::Tunnel::set_live_replicas) and have addresses of their own.
    pub replicas: Option<ReplicaNetwork>,
    /// How a load balancer in front of this gateway reads connection ids; `None`: it does not.
    pub quic_lb: Option<QuicLb>,
    /// Bounds of everything that others can make grow.
    pub limits: TunnelLimits,
    /// Intervals and deadlines.
    pub timing: Timing,
    /// Shown to peers; nothing is decided by it.
    pub software_version: Arc<str>,
}

/// Bounds of everything that others can make grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelLimits {
    /// Streams that one peer may have open to us, over all of its links; more get `OVERLOADED`.
    pub streams_per_peer: u32,
    /// Streams that a link admits at first; raised when half of them are used. Each costs up to 100 bytes
    /// from the start of the link.
    pub initial_streams: u32,
    /// Unread bytes that one stream may hold.
    pub stream_window: u32,
    /// Unread bytes that a link may hold for streams that move. Streams that do not are added on top, up
    /// to `link_window_max`: a stalled stream never takes from those that move.
    pub link_window: u32,
    /// Unread bytes that a link may hold in all.
    pub link_window_max: u32,
    /// Unread bytes that all links may hold together.
    pub total_window: u64,
    /// Bytes in flight or waiting to be sent on a link with a short path; grows with the round trip time.
    pub send_window: u32,
    /// As `send_window`, on the longest paths.
    pub send_window_max: u32,
    /// Links of one peer, all replicas together.
    pub links_per_peer: u16,
    /// Handshakes of others under way at one time; validated addresses beyond it are ignored.
    pub handshakes: u16,
    /// Connection attempts that wait for a look, whether validated or not.
    pub incoming: u16,
    /// Bytes that those may hold before they are looked at.
    pub incoming_bytes: u64,
    /// Threads that carry links; 0: none of their own, they live in the runtime that the tunnel is started in. `None`: as
    /// many as there are cores, at most 4.
    pub workers: Option<u16>,
    /// Size of the UDP socket's buffers, as far as the system grants it.
    pub socket_buffer: usize,
    /// Largest UDP payload that path MTU discovery tries, 1,200 to 8,952. A link tries no more than the interface takes
    /// that leads to the peer.
    pub max_datagram: u16,
}

impl Default for TunnelLimits {
    fn default() -> Self {
        Self {
            streams_per_peer: 65_536,
            initial_streams: 1_000,
            stream_window: 4 << 20,
            link_window: 32 << 20,
            link_window_max: 128 << 20,
            total_window: 512 << 20,
            send_window: 1 << 20,
            send_window_max: 32 << 20,
            links_per_peer: 64,
            handshakes: 256,
            incoming: 1_024,
            incoming_bytes: 16 << 20,
            workers: None,
            socket_buffer: 8 << 20,
            max_datagram: 8_952,
        }
    }
}

/// Intervals and deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The transport's own probes; they keep NAT mappings.
    pub keep_alive: Duration,
    /// Silence after which the transport gives a link up.
    pub idle: Duration,
    /// Idle timeouts shorter than this are not accepted from the other side (threat P12).
    pub idle_floor: Duration,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Without an acknowledgement for this long a link is closed, well before the 5 s of invariant I13.
    pub acknowledge: Duration,
    /// For a whole handshake, Hello included.
    pub handshake: Duration,
    /// For the header of a stream, and for the one byte that answers it.
    pub header: Duration,
    /// How long opening a stream may wait for the other side to admit one more: a burst of several times what it admits
    /// waits for a round trip for each doubling.
    pub open: Duration,
    /// Pause before the first redial of an address; doubles up to `redial_max`. Jittered by a quarter.
    pub redial: Duration,
    /// Longest pause between dials of an address that does not answer.
    pub redial_max: Duration,
    /// Longest pause between dials of an address that answers and refuses.
    pub refused_max: Duration,
    /// For the last packets when everything closes.
    pub close: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(1),
            idle: Duration::from_secs(4),
            idle_floor: Duration::from_secs(2),
            heartbeat: Duration::from_secs(1),
            acknowledge: Duration::from_secs(4),
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(5),
            open: Duration::from_secs(3),
            redial: Duration::from_millis(100),
            redial_max: Duration::from_secs(1),
            refused_max: Duration::from_secs(10),
            close: Duration::from_secs(1),
        }
    }
}

/// A peer that links shall exist to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerTarget {
    /// Name of the Peer, which is the name of its cluster.
    pub name: Arc<str>,
    /// Where its gateways take links; empty: the peer dials us.
    pub addresses: Vec<HostPort>,
    /// Another peer by way of which links may be made where there is no better way.
    pub via: Option<Arc<str>>,
    /// What carries links that are dialled from here.
    pub transport: TransportPolicy,
    /// In which way those over TCP are.
    pub tcp: TcpWay,
}

/// Most connections that those of a link may share: with more a connection for each does as well.
pub const MAX_SHARED: u8 = 16;

/// How TCP goes to a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TcpWay {
    /// By way of this proxy.
    pub proxy: Option<Arc<Proxy>>,
    /// By so many connections for each link at most, which all of its streams share; `None`: each stream has one of its
    /// own.
    pub max_connections: Option<NonZeroU8>,
}

impl TcpWay {
    /// Nothing is said of it.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// An HTTP proxy that connects on request (`CONNECT`, RFC 9110 §9.3.6). It sees nothing of a link but its TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Where it is.
    pub address: HostPort,
    /// What it wants to see, if anything.
    pub credentials: Option<ProxyCredentials>,
}

/// A name and a password (RFC 7617).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyCredentials {
    /// The name; without a colon.
    pub username: String,
    /// A file with the password, read for each connection; white space at its end does not count.
    pub password_file: PathBuf,
}

/// What carries the links to a peer that are dialled from here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportPolicy {
    /// QUIC, and TLS over TCP where UDP does not pass, or beside it where that is measured to be faster.
    #[default]
    Auto,
    /// QUIC, and TLS over TCP only where UDP does not pass.
    Fallback,
    /// QUIC only.
    Quic,
    /// TLS over TCP only.
    Tcp,
}

impl TransportPolicy {
    /// Whether links may be dialled by `transport`.
    #[must_use]
    pub const fn allows(self, transport: TransportKind) -> bool {
        match (self, transport) {
            (Self::Quic, TransportKind::Tcp) | (Self::Tcp, TransportKind::Quic) => false,
            (Self::Auto | Self::Fallback | Self::Quic | Self::Tcp, _) => true,
        }
    }

    /// How `transport` is preferred: the least first.
    #[must_use]
    pub const fn rank(self, transport: TransportKind) -> u8 {
        match (self, transport) {
            (Self::Tcp, TransportKind::Tcp) | (_, TransportKind::Memory) => 0,
            (_, TransportKind::Quic) => 1,
            (_, TransportKind::Tcp) => 2,
            (_, TransportKind::Relay) => 3,
        }
    }
}

/// A host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// DNS name or IP address, without brackets.
    pub host: Arc<str>,
    /// 1 to 65535. 0: `host` is no host but a cluster, by way of which another one is reached.
    pub port: u16,
}

/// A text is not `host:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be host:port with a port from 1 to 65535; IPv6 addresses stand in brackets")]
pub struct HostPortError;

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(HostPortError)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(HostPortError)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        if host.is_empty() || host.contains(':') != bare.is_some() || host.contains(char::is_whitespace) {
            return Err(HostPortError);
        }
        Ok(Self { host: Arc::from(host), port })
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string().into(), port: address.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if *port == 0 {
            return write!(f, "via {host}");
        }
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl serde::Serialize for HostPort {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_both_needed() {
        for good in ["gw.onprem.example:15443", "198.51.100.12:1", "[2001:db8::1]:65535"] {
            assert_eq!(good.parse::<HostPort>().map(|parsed| parsed.to_string()).as_deref(), Ok(good));
        }
        for bad in ["", "host", "host:", "host:0", "host:70000", ":1", "2001:db8::1:15443", "[host]:1", "a b:1"] {
            assert_eq!(bad.parse::<HostPort>(), Err(HostPortError), "{bad:?}");
        }
    }
}

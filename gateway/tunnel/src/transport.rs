//! What a link needs from whatever carries it. The control session, the manager and the streams know
//! these traits and nothing of QUIC.
//!
//! `quic` carries links, `tcp` where UDP does not pass, and [`memory`] inside one process, in virtual time where a test
//! pauses the clock.

pub mod memory;
pub(crate) mod quic;
pub(crate) mod tcp;

#[doc(hidden)]
pub use self::tcp::decoders as tcp_decoders;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use eastway_identity::{CertificateDer, VerifiedPeer, VerifyError};
use tokio::runtime::Handle;

use crate::code::{CloseCode, ResetCode};
use crate::config::{HostPort, TcpWay};
use crate::replicas::{ForwardingCounters, SiblingStatus};

/// A future that may be sent between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One way of carrying links.
pub trait Transport: Send + Sync + 'static {
    /// What links are carried by.
    fn kind(&self) -> TransportKind;

    /// Where links are taken.
    fn local_addr(&self) -> SocketAddr;

    /// Connects to `remote` from a local port that was not used before, and authenticates it as `peer`. The
    /// transport keeps the handshake's deadline.
    fn dial(&self, peer: Arc<str>, remote: SocketAddr) -> BoxFuture<'static, Result<Established, DialError>>;

    /// The runtimes that carry links, if the transport has some of its own. Streams that are opened there are carried
    /// there, so far as that is as good for them.
    fn homes(&self) -> Vec<Handle> {
        Vec::new()
    }

    /// As [`Transport::dial`], in the `way` that TCP goes to the peer: `remote` is the proxy on it, which is told to
    /// connect to `host`, or the peer if there is none.
    fn dial_by(
        &self,
        peer: Arc<str>,
        remote: SocketAddr,
        _host: HostPort,
        _way: TcpWay,
    ) -> BoxFuture<'static, Result<Established, DialError>> {
        self.dial(peer, remote)
    }

    /// Connects to `peer` by way of another cluster. Likewise.
    fn dial_via(&self, _peer: Arc<str>, _via: Arc<str>) -> BoxFuture<'static, Result<Established, DialError>> {
        let reason = "this transport needs an address".to_owned();
        Box::pin(std::future::ready(Err(DialError::Relay { refused: true, reason })))
    }

    /// The next connection whose other side is authenticated. `None`: the transport is closed.
    fn accept(&self) -> BoxFuture<'_, Option<Established>>;

    /// Bytes that packets may take up while they wait to be read, as the system granted them; `None` without a socket.
    fn receive_buffer(&self) -> Option<u64> {
        None
    }

    /// Tells the other replicas of this cluster that this one takes no new links.
    fn set_draining(&self) {}

    /// Other replicas of this cluster that packets are handed to.
    fn siblings(&self) -> Vec<SiblingStatus> {
        Vec::new()
    }

    /// Where other replicas should be heard, by configuration, and are not.
    fn silent_siblings(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    /// Where other replicas are heard; `None`: nowhere.
    fn replicas_addr(&self) -> Option<SocketAddr> {
        None
    }

    /// What was handed to other replicas and taken from them.
    fn forwarding(&self) -> ForwardingCounters {
        ForwardingCounters::default()
    }

    /// What happened to connections that did not come about.
    fn handshake_failures(&self) -> Vec<(&'static str, u64)>;

    /// Ends everything and waits until the other sides were told.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A connection whose other side is authenticated.
pub struct Established {
    /// The connection.
    pub connection: Arc<dyn Connection>,
    /// Who is on the other side.
    pub peer: VerifiedPeer,
    /// The chain it presented, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// SHA-256 of the leaf that this side presented.
    pub local_leaf_sha256: [u8; 32],
}

/// Why a dial failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nothing came back.
    #[error("no reply from {remote} in {after:?}: is UDP port {} blocked?", .remote.port())]
    NoReply {
        /// What was dialled.
        remote: SocketAddr,
        /// How long.
        after: Duration,
    },
    /// No connection came about, and it was not for the silence of UDP.
    #[error("no connection to {remote}: {reason}")]
    NoConnection {
        /// What was dialled.
        remote: SocketAddr,
        /// Why, in words.
        reason: String,
    },
    /// The proxy on the way does not connect.
    #[error("the proxy {proxy} {reason}")]
    Proxy {
        /// Where it is.
        proxy: SocketAddr,
        /// What it says, in words.
        reason: String,
    },
    /// The other side answered and this side refused it: identity, version, protocol.
    #[error("{remote} is not accepted: {reason}")]
    Rejected {
        /// What was dialled.
        remote: SocketAddr,
        /// Why, in words.
        reason: String,
        /// What is wrong with its certificate, if it is that.
        verdict: Option<VerifyError>,
    },
    /// The other side answered and refused this one.
    #[error("{remote}: the peer refused us: {reason}")]
    RefusedUs {
        /// What was dialled.
        remote: SocketAddr,
        /// Why, in words, as the other side puts it.
        reason: String,
    },
    /// A third cluster made no connection.
    #[error("{reason}")]
    Relay {
        /// Why, in words.
        reason: String,
        /// Somebody has to change a file; else it may work soon.
        refused: bool,
    },
    /// This side could not even try.
    #[error("cannot dial {remote}: {reason}")]
    Local {
        /// What was to be dialled.
        remote: SocketAddr,
        /// Why, in words.
        reason: String,
    },
}

/// What carries a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// QUIC over UDP.
    Quic,
    /// TLS over TCP.
    Tcp,
    /// TLS by way of a third cluster.
    Relay,
    /// Inside one process.
    Memory,
}

impl TransportKind {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Quic, Self::Tcp, Self::Relay, Self::Memory];

    /// As shown in status and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Relay => "relay",
            Self::Memory => "memory",
        }
    }
}

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end that connected.
    Dialler,
    /// The end that was connected to.
    Acceptor,
}

/// Both halves of a new stream.
pub type Halves = (Box<dyn SendStream>, Box<dyn RecvStream>);

/// Takes streams over, and never waits.
pub type Take = Arc<dyn Fn(Halves) + Send + Sync>;

/// One authenticated connection between two gateways.
pub trait Connection: Send + Sync + 'static {
    /// What carries it.
    fn kind(&self) -> TransportKind;

    /// Which end this is.
    fn side(&self) -> Side;

    /// Where the other side is now; changes when a NAT rebinds it.
    fn remote_addr(&self) -> SocketAddr;

    /// The cluster that it goes by way of; `None`: it goes by no other.
    fn via(&self) -> Option<Arc<str>> {
        None
    }

    /// Whether the link that carries it, to the cluster that it goes by way of, takes no new streams.
    fn carrier_leaves(&self) -> bool {
        false
    }

    /// Opens a stream; waits while the other side admits none.
    fn open(&self) -> BoxFuture<'_, Result<Halves, Lost>>;

    /// Whether [`Connection::open`] would not wait for one more connection to be made. If it would, one is made.
    fn is_ready(&self) -> bool {
        true
    }

    /// The next stream of the other side, in the order it opened them.
    fn accept(&self) -> BoxFuture<'_, Result<Halves, Lost>>;

    /// Gives `take` every further stream of the other side until the connection ends, where each is carried. To be polled
    /// in [`Connection::home`].
    fn serve(self: Arc<Self>, take: Take) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while let Ok(halves) = self.accept().await {
                take(halves);
            }
        })
    }

    /// The runtime that carries it, if it has one of its own.
    fn home(&self) -> Option<Handle> {
        None
    }

    /// Keying material of this very session (RFC 5705), the same on both sides.
    ///
    /// # Errors
    /// [`ExporterError`] if the transport has none.
    fn export(&self, label: &[u8]) -> Result<[u8; 32], ExporterError>;

    /// Bytes of the longest datagram that goes whole now. Moves with the path's MTU. `None`: the transport, or the
    /// other side, has no datagrams.
    fn max_datagram(&self) -> Option<usize> {
        None
    }

    /// Sends a datagram: it arrives whole, once or not at all, and in any order. Never waits: what the path has not
    /// taken yet is bounded, and makes room oldest first, counted in [`PathStats::dropped_datagrams`].
    ///
    /// # Errors
    /// [`DatagramRefused`]; nothing was sent then.
    fn send_datagram(&self, _datagram: Bytes) -> Result<(), DatagramRefused> {
        Err(DatagramRefused::Unsupported)
    }

    /// As [`Connection::send_datagram`] for all of `datagrams`, in order. Those that are refused stay in it.
    fn send_datagrams(&self, datagrams: &mut Vec<Bytes>) {
        datagrams.retain(|datagram| self.send_datagram(datagram.clone()).is_err());
    }

    /// Waits for datagrams of the other side and adds all that are there, at most 64, to `datagrams`. Cancel-safe. What
    /// nobody reads is bounded, and makes room oldest first.
    fn read_datagrams<'a>(&'a self, _datagrams: &'a mut Vec<Bytes>) -> BoxFuture<'a, Result<(), Lost>> {
        Box::pin(std::future::pending())
    }

    /// Connections of the system that carry it now; 0: it knows none.
    fn connections(&self) -> usize {
        0
    }

    /// Closes at once; the other side is told.
    fn close(&self, code: CloseCode, reason: &str);

    /// Resolves when the connection has ended, with the reason.
    fn closed(&self) -> BoxFuture<'_, CloseReason>;

    /// How the path does.
    fn path(&self) -> PathStats;

    /// Smoothed round trip time; cheaper than [`Connection::path`].
    fn rtt(&self) -> Duration {
        self.path().rtt
    }

    /// Sets how many unread bytes of all streams together the other side may send.
    fn set_receive_window(&self, bytes: u64);

    /// Sets how many bytes may be in flight or wait to be sent.
    fn set_send_window(&self, bytes: u64);

    /// Sets how many streams of the other side may be open at one time.
    fn set_max_streams(&self, streams: u32);
}

/// The writing half of a stream.
pub trait SendStream: Send + Sync + 'static {
    /// Takes whole or partial chunks off the front of `chunks`; what was taken is left empty. Returns the number of
    /// bytes taken, more than 0.
    fn poll_write(&mut self, cx: &mut Context<'_>, chunks: &mut [Bytes]) -> Poll<Result<usize, StreamError>>;

    /// Resolves when the other side stops reading (`Some`) or has got everything after [`Self::finish`] (`None`).
    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<ResetCode>, StreamError>>;

    /// Ends this direction in order. Further calls do nothing.
    fn finish(&mut self);

    /// Cuts this direction.
    fn reset(&mut self, code: ResetCode);

    /// Bytes of streams with a higher priority go first; 0 at first.
    fn set_priority(&self, priority: i32);

    /// The runtime that carries the stream, if it has one of its own: who works with the stream works best there.
    fn home(&self) -> Option<Handle> {
        None
    }
}

/// The reading half of a stream.
pub trait RecvStream: Send + Sync + 'static {
    /// The next bytes in order, at most `max`. `None`: the other side finished.
    fn poll_read(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Option<Bytes>, StreamError>>;

    /// As [`Self::poll_read`], as many chunks as are there and `chunks` can hold.
    fn poll_read_chunks(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<Option<usize>, StreamError>>;

    /// Resolves when the other side cut the stream, even while nothing is read.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError>;

    /// Drops what is unread and tells the other side to send no more.
    fn stop(&mut self, code: ResetCode);
}

/// Why a stream ended out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The other side cut it, or stopped reading it.
    #[error("the stream was reset: {0}")]
    Reset(ResetCode),
    /// The link under it is gone.
    #[error("the link was lost")]
    LinkLost,
    /// This side had ended it already.
    #[error("the stream was already ended on this side")]
    Closed,
}

impl StreamError {
    /// The code to hand on to whatever is behind the stream.
    #[must_use]
    pub const fn code(self) -> ResetCode {
        match self {
            Self::Reset(code) => code,
            Self::LinkLost | Self::Closed => ResetCode::Cancelled,
        }
    }
}

/// The connection is gone; [`Connection::closed`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link was lost")]
pub struct Lost;

/// Why a datagram was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramRefused {
    /// It is longer than [`Connection::max_datagram`].
    #[error("the datagram does not fit the path")]
    TooLong,
    /// There are no datagrams on this connection.
    #[error("the connection has no datagrams")]
    Unsupported,
    /// The connection is gone.
    #[error("the link was lost")]
    Lost,
}

/// Most datagrams that [`Connection::read_datagrams`] gives at once.
pub(crate) const DATAGRAMS_AT_ONCE: usize = 64;

/// The transport cannot export keying material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the transport exports no keying material")]
pub struct ExporterError;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed here: {code}: {message}")]
    Local {
        /// Why.
        code: CloseCode,
        /// In words.
        message: String,
    },
    /// The other side closed it.
    #[error("closed by the peer: {code}: {message}")]
    Remote {
        /// Why.
        code: CloseCode,
        /// In words, as the other side puts it.
        message: String,
    },
    /// The other side does not know the connection any more: it has restarted.
    #[error("the peer has restarted (stateless reset)")]
    Reset,
    /// Nothing came for longer than the idle timeout.
    #[error("the peer fell silent")]
    Silent,
    /// The connection under it ended, and nobody said why.
    #[error("the connection was cut: {0}")]
    Cut(String),
    /// The other side ended the handshake of TLS: it does not accept our certificate. That shows only after our
    /// own part of the handshake is done.
    #[error("the peer refused us: {0}")]
    RefusedUs(String),
    /// The transport itself found a fault.
    #[error("transport: {0}")]
    Transport(String),
}

impl CloseReason {
    /// The reason as a label of metrics: a small fixed set.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Local { code, .. } | Self::Remote { code, .. } => code.name(),
            Self::Reset => "STATELESS_RESET",
            Self::Silent => "SILENT",
            Self::Cut(_) => "CUT",
            Self::RefusedUs(_) => "REFUSED_US",
            Self::Transport(_) => "TRANSPORT",
        }
    }
}

/// How the path of a connection does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Smoothed round trip time.
    pub rtt: Duration,
    /// Congestion window, bytes; 0 if the transport has none.
    pub congestion_window: u64,
    /// Datagrams sent.
    pub sent_packets: u64,
    /// Datagrams that were lost.
    pub lost_packets: u64,
    /// Datagrams that were sent a second time, because the path loses some.
    pub repeated_packets: u64,
    /// By TCP: segments received, so far as they were looked at, which goes for those that were sent, too.
    pub received_packets: u64,
    /// Of those, out of order: others before them were lost.
    pub disordered_packets: u64,
    /// Bytes sent in datagrams, overhead included.
    pub sent_bytes: u64,
    /// Bytes received in datagrams, overhead included.
    pub received_bytes: u64,
    /// Largest datagram that the path carries.
    pub mtu: u16,
    /// Connections that carry it beside the first.
    pub lanes: u16,
    /// How often this side went on from another port because nothing came back.
    pub hops: u64,
    /// Datagrams of [`Connection::send_datagram`] that made room for later ones.
    pub dropped_datagrams: u64,
}

//! What TLS runs over: a TCP connection, made directly or by way of a proxy.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::Failure;
use super::proxy::ProxyError;
use super::relay::RelayFailure;
use super::shared::Carrier;
use crate::link::Link;
use crate::transport::BoxFuture;

/// Quiet time before the first probe of a connection where nothing moves.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Between two probes, and how many may stay unanswered.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_PROBES: u32 = 3;
/// What was sent and is not acknowledged for so long ends the connection: a path that lost its state on the way does not
/// hold streams for the quarter of an hour that Linux tries on. Longer than what a link survives, so that of a link that
/// comes back no stream was lost.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that the system takes of a shared connection beyond those under way: what is small does not wait behind megabytes.
#[cfg(target_os = "linux")]
const NOT_SENT: u32 = 256 << 10;

/// Bytes both ways, in order. Reading and writing may be waited for by different tasks.
pub(crate) trait Pipe: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// From now on its end is an abort: the other side gets an error and never an end in order.
    fn set_abort(&self);

    /// Its two ends, if it is a connection that the system knows.
    fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        None
    }

    /// What it goes over, if others go over it too.
    fn carrier(&self) -> Option<&Arc<Carrier>> {
        None
    }

    /// From now on little is taken that cannot go yet: who writes decides late what goes first.
    fn take_little(&self) {}
}

/// Joins what fits into `most` bytes.
pub(super) fn join(parts: &[IoSlice<'_>], most: usize) -> Bytes {
    let mut all = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>().min(most));
    for part in parts {
        let room = most - all.len();
        all.extend_from_slice(part.get(..part.len().min(room)).unwrap_or_default());
    }
    all.freeze()
}

impl Pipe for TcpStream {
    fn set_abort(&self) {
        // Linger of zero: the end is a reset (tcp(7)). Should that fail, a missing close_notify tells as much.
        SockRef::from(self).set_linger(Some(Duration::ZERO)).ok();
    }

    fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.local_addr().ok()?, self.peer_addr().ok()?))
    }

    fn take_little(&self) {
        #[cfg(target_os = "linux")]
        if let Err(error) = SockRef::from(self).set_tcp_notsent_lowat(NOT_SENT) {
            tracing::debug!(%error, "A connection keeps the system's settings");
        }
    }
}

/// A cluster on the way.
pub(crate) struct Via {
    /// Its name.
    pub(crate) cluster: Arc<str>,
    /// The link to it that carries all pipes of a link dialled here.
    pub(crate) carrier: Option<Link>,
}

/// Makes pipes to one place.
pub(crate) trait Connector: Send + Sync + 'static {
    /// What is connected to at first: the other side, or the proxy on the way.
    fn remote(&self) -> SocketAddr;

    /// The cluster on the way; `None`: there is none.
    fn via(&self) -> Option<Via> {
        None
    }

    /// Makes a pipe. The caller keeps the deadline.
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Pipe>, ConnectError>>;
}

/// No pipe could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The TCP connection.
    #[error("{0}")]
    Tcp(#[from] io::Error),
    /// The proxy on the way.
    #[error("{0}")]
    Proxy(#[from] ProxyError),
    /// The cluster on the way.
    #[error("{0}")]
    Relay(RelayFailure),
    /// The connection that it should have shared with others.
    #[error("{0}")]
    Shared(Failure),
}

impl From<RelayFailure> for ConnectError {
    fn from(failure: RelayFailure) -> Self {
        Self::Relay(failure)
    }
}

/// Connects directly.
pub(crate) struct Direct {
    remote: SocketAddr,
}

impl Direct {
    pub(crate) fn new(remote: SocketAddr) -> Self {
        Self { remote }
    }
}

impl Connector for Direct {
    fn remote(&self) -> SocketAddr {
        self.remote
    }

    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Pipe>, ConnectError>> {
        Box::pin(async { Ok(Box::new(connect(self.remote).await?) as Box<dyn Pipe>) })
    }
}

/// A TCP connection as links use them.
pub(super) async fn connect(remote: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(remote).await?;
    tune(&stream);
    Ok(stream)
}

/// Sends small records at once, and notices that the other side is gone.
pub(super) fn tune(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE);
    let keep_alive = keep_alive.with_interval(KEEP_ALIVE_INTERVAL).with_retries(KEEP_ALIVE_PROBES);
    let tuned = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keep_alive));
    #[cfg(target_os = "linux")]
    let tuned = tuned.and_then(|()| socket.set_tcp_user_timeout(Some(USER_TIMEOUT)));
    if let Err(error) = tuned {
        tracing::debug!(%error, "A connection keeps the system's settings");
    }
}

//! TLS connections from processes of this cluster, handed to a server of HTTP/2: bounded in number, in handshakes and in
//! time, so that who only connects holds little and not for long.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use eastway_identity::crl;
use eastway_identity::local::{LocalCaller, LocalTrust, verdict};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::proxy::clients::{Clients, Share};
use crate::telemetry::{Refusal, Refusals};

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Pause after `accept` failed, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long who is revoked may still hear what follows from that: a sidecar is told to end what its clients have open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{name}: cannot listen on {address}: {source}")]
pub struct BindError {
    /// The setting.
    name: &'static str,
    /// Its value.
    address: SocketAddr,
    /// What the system says.
    #[source]
    source: io::Error,
}

/// Most connections at once, those in their handshake included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Of all.
    pub all: usize,
    /// Of one address.
    pub each: usize,
}

impl ConnectionLimits {
    /// So many, of which one address has no more than half: whole nodes are behind one address where their pods'
    /// addresses are translated, and none of them is to take the room of all others.
    #[must_use]
    pub const fn shared(all: usize) -> Self {
        Self { all, each: all.div_ceil(2) }
    }
}

/// A cluster has a few gateways and controllers.
impl Default for ConnectionLimits {
    fn default() -> Self {
        Self::shared(512)
    }
}

/// Serial numbers that are revoked, as [`crl::serial`] spells them.
pub type Revoked = watch::Receiver<Arc<BTreeSet<String>>>;

/// A bound port. Dropping it closes it.
#[derive(Debug)]
pub struct LocalListener {
    name: &'static str,
    socket: TcpListener,
    address: SocketAddr,
    limits: ConnectionLimits,
    revoked: Option<Revoked>,
    last_words: Duration,
}

/// Who is at the other end of a connection; an extension of each request on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Where it comes from.
    pub address: SocketAddr,
    /// Who it has proved to be; `None`: it showed no certificate.
    pub identity: Option<LocalCaller>,
}

impl LocalListener {
    /// Binds `address`, the value of the setting `name`; port 0 chooses one.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(name: &'static str, address: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError { name, address, source };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self {
            name,
            socket,
            address,
            limits: ConnectionLimits::default(),
            revoked: None,
            last_words: Duration::ZERO,
        })
    }

    /// With other limits.
    #[must_use]
    pub fn with_limits(self, limits: ConnectionLimits) -> Self {
        Self { limits, ..self }
    }

    /// Refuses certificates that are revoked, and cuts connections whose certificate is.
    #[must_use]
    pub fn with_revoked(self, revoked: Revoked) -> Self {
        Self { revoked: Some(revoked), ..self }
    }

    /// As [`Self::with_revoked`], but a connection that is cut has a second to hear what follows from that.
    #[must_use]
    pub fn with_last_words(self, revoked: Revoked) -> Self {
        Self { last_words: LAST_WORDS, ..self.with_revoked(revoked) }
    }

    /// Takes this many connections more than those of gateways and controllers; one address has half of all.
    #[must_use]
    pub fn with_room_for(self, more: usize) -> Self {
        Self { limits: ConnectionLimits::shared(self.limits.all.saturating_add(more)), ..self }
    }

    /// The address, with the port that was chosen.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The connections whose handshake succeeded, until `stop`. The future accepts them; whoever spawns it owns it.
    pub fn accept(
        self,
        tls: Arc<ServerConfig>,
        trust: LocalTrust,
        refusals: Arc<Refusals>,
        stop: CancellationToken,
    ) -> (ReceiverStream<io::Result<Connection>>, impl Future<Output = ()> + Send + 'static) {
        let (accepted, connections) = mpsc::channel(1);
        let accept = Accept {
            name: self.name,
            tls: TlsAcceptor::from(tls),
            trust,
            refusals,
            accepted,
            limits: self.limits,
            revoked: self.revoked,
            last_words: self.last_words,
            room: Arc::new(Semaphore::new(self.limits.all)),
            clients: Clients::new(self.limits.each),
            stop,
        };
        (ReceiverStream::new(connections), accept.run(self.socket))
    }
}

#[derive(Clone)]
struct Accept {
    /// The setting, for messages.
    name: &'static str,
    tls: TlsAcceptor,
    trust: LocalTrust,
    refusals: Arc<Refusals>,
    accepted: mpsc::Sender<io::Result<Connection>>,
    limits: ConnectionLimits,
    revoked: Option<Revoked>,
    last_words: Duration,
    room: Arc<Semaphore>,
    clients: Arc<Clients>,
    stop: CancellationToken,
}

/// What a connection takes of the limits, until it is dropped.
type Taken = (OwnedSemaphorePermit, Share);

impl Accept {
    /// No error ends it: a listener that ends would leave a process that looks alive.
    async fn run(self, socket: TcpListener) {
        while let Some(accepted) = self.stop.run_until_cancelled(socket.accept()).await {
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(_of_the_machine_or_of_one_connection) => {
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // A socket of both families shows IPv4 clients as IPv6 addresses.
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            let Some(taken) = self.take(address) else { continue };
            let accept = self.clone();
            tokio::spawn(async move { accept.handshake(tcp, address, taken).await });
        }
    }

    fn take(&self, address: SocketAddr) -> Option<Taken> {
        let ConnectionLimits { all, each } = self.limits;
        let refused = |detail: fmt::Arguments<'_>| self.refusals.refused(Refusal::Overload, None, detail);
        let Some(share) = self.clients.enter(address.ip()) else {
            refused(format_args!("{}: {address} has {each} connections open", self.name));
            return None;
        };
        let Ok(permit) = self.room.clone().try_acquire_owned() else {
            refused(format_args!("{}, {address}: {all} connections are open", self.name));
            return None;
        };
        Some((permit, share))
    }

    async fn handshake(self, tcp: TcpStream, address: SocketAddr, taken: Taken) {
        // A connection that is gone already shows in the handshake.
        let _gone = tcp.set_nodelay(true);
        let handshake = async {
            match timeout(HANDSHAKE, self.tls.accept(tcp)).await {
                Err(_) => self.refuse(address, "no handshake within 5 s"),
                Ok(Err(error)) => self.refuse(address, reason(&error)),
                Ok(Ok(stream)) => self.hand_over(stream, address, taken).await,
            }
        };
        // A process that stops waits for no handshake.
        let _stopped: Option<()> = self.stop.run_until_cancelled(handshake).await;
    }

    async fn hand_over(&self, stream: TlsStream<TcpStream>, address: SocketAddr, taken: Taken) {
        let chain = stream.get_ref().1.peer_certificates().filter(|chain| !chain.is_empty());
        let identity = match chain.map(|chain| self.trust.verify(chain, SystemTime::now())).transpose() {
            Ok(identity) => identity,
            Err(error) => return self.refuse(address, error),
        };
        let serial = chain.and_then(|chain| chain.first()).and_then(crl::serial);
        let cut = match (serial, self.revoked.clone()) {
            (Some(serial), Some(revoked)) if revoked.borrow().contains(&serial) => {
                return self.refuse(address, format_args!("its certificate {serial} is revoked"));
            }
            (Some(serial), Some(revoked)) => Some(until_revoked(serial, revoked, self.last_words)),
            (None, _) | (_, None) => None,
        };
        let connection = Connection { stream, caller: Caller { address, identity }, cut, _taken: taken };
        // The server ends with the process.
        let _stopping = self.accepted.send(Ok(connection)).await;
    }

    fn refuse(&self, address: SocketAddr, reason: impl fmt::Display) {
        self.refusals.refused(Refusal::Handshake, None, format_args!("{}, {address}: {reason}", self.name));
    }
}

/// Ends so long after this certificate is revoked.
fn until_revoked(serial: String, mut revoked: Revoked, last_words: Duration) -> Cut {
    Box::pin(async move {
        if revoked.wait_for(|all| all.contains(&serial)).await.is_err() {
            // Nobody will revoke anything any more: the process ends.
            std::future::pending::<()>().await;
        }
        sleep(last_words).await;
    })
}

type Cut = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Our verifier's verdict, if the handshake failed for it.
fn reason(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    tls.and_then(verdict).map_or_else(|| error.to_string(), ToString::to_string)
}

/// A connection after its handshake.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    /// Ends when it is to be cut.
    cut: Option<Cut>,
    _taken: Taken,
}

/// Who is at the other end.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("caller", &self.caller).finish_non_exhaustive()
    }
}

impl Connection {
    /// Who is at the other end.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The address that the other side connected to.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.get_ref().0.local_addr().ok()
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Whoever serves it always reads.
        if self.cut.as_mut().is_some_and(|cut| cut.as_mut().poll(cx).is_ready()) {
            self.cut = None;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "its certificate was revoked")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

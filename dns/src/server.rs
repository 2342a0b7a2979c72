//! Sockets: bound before anything is answered, supervised while it is.

mod tcp;
mod udp;

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use crate::counters::Counters;
use crate::limit::RateLimiter;
use crate::{Responder, ZoneStore};

/// What the server may spend.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Responses per second and client network (/24, /56) over UDP; 0 is no limit. A cluster's DNS
    /// asks for all its pods from a few addresses, so this is a bound on abuse, not a quota.
    pub responses_per_second: u32,
    /// TCP connections at a time and address; for one more the one that said nothing for the longest is closed.
    pub tcp_connections: usize,
    /// How long a TCP connection may say nothing, or leave replies unread.
    pub tcp_idle: Duration,
    /// UDP sockets per address; 0 is one per core.
    pub workers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { responses_per_second: 20_000, tcp_connections: 128, tcp_idle: Duration::from_secs(5), workers: 0 }
    }
}

/// Where to serve.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// Addresses, each for UDP and TCP. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// What the server may spend.
    pub limits: Limits,
}

/// A socket could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve DNS on {address}/{transport}: {source}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// Why.
    pub source: io::Error,
}

/// A bound server.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<Listener>,
    responder: Responder,
    counters: Counters,
    limits: Limits,
}

#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    udp: Vec<Arc<Socket>>,
    tcp: Arc<TcpListener>,
}

/// How often a free port is looked for that is free for both transports.
const PORT_TRIES: usize = 16;
/// Receive buffer of a UDP socket: a burst of a few thousand queries while the worker is elsewhere.
const RECEIVE_BUFFER: usize = 1 << 20;
/// How often a silent UDP worker looks whether it is to stop, where shutting its socket down does
/// not wake it (it does on Linux).
const WAKE: Duration = Duration::from_secs(1);
/// How long a failing socket rests before it is tried again.
const REST: Duration = Duration::from_millis(20);

impl Server {
    /// Binds all sockets. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`BindError`] names the address that is taken or not ours.
    pub fn bind(config: &DnsConfig, store: Arc<ZoneStore>) -> Result<Self, BindError> {
        let workers = match config.limits.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let listeners =
            config.listen.iter().map(|address| Listener::bind(*address, workers)).collect::<Result<Vec<_>, _>>()?;
        // One worker per UDP socket and one per TCP listener.
        let counters = Counters::new(listeners.len() * (workers + 1));
        let limiter = Arc::new(RateLimiter::new(config.limits.responses_per_second, Instant::now()));
        Ok(Self { listeners, responder: Responder::new(store, limiter), counters, limits: config.limits })
    }

    /// The addresses served, with the ports that were taken.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address).collect()
    }

    /// The server's counters; they outlive it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Serves until `cancel` is cancelled. A worker that ends otherwise is started again.
    pub async fn run(self, cancel: CancellationToken) {
        let workers = self.workers();
        let stop = self.stop(&cancel);
        let mut tasks = JoinSet::new();
        let mut names = std::collections::HashMap::new();
        for (index, worker) in workers.iter().enumerate() {
            names.insert(worker.spawn(&mut tasks, &stop.cancel).id(), index);
        }
        info!(addresses = ?self.local_addrs(), workers = workers.len(), "Serving DNS");
        loop {
            let ended = tokio::select! {
                biased;
                // A worker that ends because it is told to has not failed.
                () = cancel.cancelled() => break,
                ended = tasks.join_next_with_id() => ended,
            };
            let (id, failure) = match ended {
                Some(Ok((id, ()))) => (id, None),
                Some(Err(failure)) => (failure.id(), Some(failure)),
                None => return,
            };
            error!(failure = ?failure.map(|failure| failure.to_string()), "DNS worker ended, starting it again");
            let Some(index) = names.remove(&id) else { continue };
            if let Some(worker) = workers.get(index) {
                tokio::time::sleep(REST).await;
                names.insert(worker.spawn(&mut tasks, &stop.cancel).id(), index);
            }
        }
        drop(stop);
        while tasks.join_next().await.is_some() {}
    }

    fn stop(&self, cancel: &CancellationToken) -> Stop {
        let sockets = self.listeners.iter().flat_map(|listener| listener.udp.iter().cloned()).collect();
        Stop { cancel: cancel.child_token(), sockets }
    }

    fn workers(&self) -> Vec<Worker> {
        let mut workers = Vec::new();
        for listener in &self.listeners {
            for socket in &listener.udp {
                let responder = self.responder.for_worker(self.counters.worker(workers.len()));
                workers.push(Worker::Udp { socket: socket.clone(), responder });
            }
            let responder = self.responder.for_worker(self.counters.worker(workers.len()));
            workers.push(Worker::Tcp { listener: listener.tcp.clone(), responder, limits: self.limits });
        }
        workers
    }
}

/// Ends the workers when it is dropped, also where the server is dropped while it runs: threads
/// that block would otherwise outlive it.
struct Stop {
    cancel: CancellationToken,
    sockets: Vec<Arc<Socket>>,
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.cancel.cancel();
        for socket in &self.sockets {
            // Linux says "not connected", and wakes whoever receives all the same.
            if let Err(error) = socket.shutdown(Shutdown::Read) {
                debug!(%error, "Shut a DNS socket down");
            }
        }
    }
}

/// What one task does.
enum Worker {
    Udp { socket: Arc<Socket>, responder: Responder },
    Tcp { listener: Arc<TcpListener>, responder: Responder, limits: Limits },
}

impl Worker {
    fn spawn(&self, tasks: &mut JoinSet<()>, cancel: &CancellationToken) -> tokio::task::AbortHandle {
        let cancel = cancel.clone();
        match self {
            Self::Udp { socket, responder } => {
                let (socket, responder) = (socket.clone(), responder.clone());
                tasks.spawn_blocking(move || udp::serve(&socket, &responder, &cancel))
            }
            Self::Tcp { listener, responder, limits } => {
                tasks.spawn(tcp::serve(listener.clone(), responder.clone(), *limits, cancel))
            }
        }
    }
}

impl Listener {
    fn bind(address: SocketAddr, workers: usize) -> Result<Self, BindError> {
        let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            match Self::try_bind(address, workers) {
                Err(error) if tries > 0 && error.source.kind() == io::ErrorKind::AddrInUse => {}
                done => return done,
            }
        }
    }

    fn try_bind(address: SocketAddr, workers: usize) -> Result<Self, BindError> {
        let udp_error = |source| BindError { address, transport: "udp", source };
        let tcp_error = |source| BindError { address, transport: "tcp", source };
        // TCP first: it refuses a port another server has, which shared UDP sockets would not.
        let tcp = bind_tcp(address).map_err(tcp_error)?;
        let address = tcp.local_addr().map_err(tcp_error)?;
        probe_udp(address).map_err(udp_error)?;
        let udp = (0..workers.max(1))
            .map(|_| bind_udp(address).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(udp_error)?;
        Ok(Self { address, udp, tcp: Arc::new(tcp) })
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(256)?;
    TcpListener::from_std(socket.into())
}

/// Fails if anybody else has the port: once sockets share it, the kernel would hand half of the
/// queries to whoever shares it too.
fn probe_udp(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())
}

fn bind_udp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The kernel may give less (`net.core.rmem_max`); then bursts are shorter.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_read_timeout(Some(WAKE))?;
    udp::prepare(&socket, address)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

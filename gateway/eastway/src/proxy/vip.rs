//! Listeners on virtual addresses: one per address and port of an import.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use eastway_model::ServiceKey;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::proxy::outbound::{self, Target};
use crate::router::Router;

/// Connections that wait to be accepted, per listener.
const BACKLOG: i32 = 1024;
/// Pause after an accept error that is the machine's and not the connection's, such as EMFILE.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// All listeners on virtual addresses.
pub struct Listeners {
    router: Arc<Router>,
    connections: TaskTracker,
    budget: Arc<Semaphore>,
    stop: CancellationToken,
    open: BTreeMap<ServiceKey, BTreeMap<SocketAddr, Listener>>,
}

struct Listener {
    target: Target,
    /// Ends the accept loop; connections go on.
    _stop: DropGuard,
}

impl Listeners {
    /// None yet. At most `max_connections` are served at once; more wait in the kernel's queue.
    #[must_use]
    pub fn new(router: Arc<Router>, max_connections: usize, stop: CancellationToken) -> Self {
        let budget = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
        Self { router, connections: TaskTracker::new(), budget, stop, open: BTreeMap::new() }
    }

    /// The connections that are being served, to wait for in a drain.
    #[must_use]
    pub fn connections(&self) -> TaskTracker {
        self.connections.clone()
    }

    /// Number of listeners.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.values().map(BTreeMap::len).sum()
    }

    /// Whether there is no listener.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// This cluster.
    #[must_use]
    pub fn cluster(&self) -> &eastway_model::ClusterName {
        self.router.cluster()
    }

    /// Makes the listeners of a service be those of `wanted`, and returns the addresses that could
    /// not be bound, with the reason. Established connections are never touched.
    pub fn set(&mut self, service: &ServiceKey, wanted: BTreeMap<SocketAddr, Target>) -> Vec<(SocketAddr, io::Error)> {
        let mut current = self.open.remove(service).unwrap_or_default();
        current.retain(|address, listener| wanted.get(address) == Some(&listener.target));
        let mut failed = Vec::new();
        for (address, target) in wanted {
            if current.contains_key(&address) {
                continue;
            }
            match self.listen(address, &target) {
                Ok(stop) => {
                    current.insert(address, Listener { target, _stop: stop.drop_guard() });
                }
                Err(error) => failed.push((address, error)),
            }
        }
        if !current.is_empty() {
            self.open.insert(service.clone(), current);
        }
        failed
    }

    fn listen(&self, address: SocketAddr, target: &Target) -> io::Result<CancellationToken> {
        let listener = bind(address)?;
        let stop = self.stop.child_token();
        debug!(%address, service = %target.service, port = target.port, "listening on a virtual address");
        let accept = Accept {
            router: self.router.clone(),
            connections: self.connections.clone(),
            budget: self.budget.clone(),
            target: Arc::new(target.clone()),
        };
        self.connections.spawn(accept.run(listener, stop.clone()));
        Ok(stop)
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

struct Accept {
    router: Arc<Router>,
    connections: TaskTracker,
    budget: Arc<Semaphore>,
    target: Arc<Target>,
}

impl Accept {
    /// Accepts until `stop`. No error ends it (threat U6): those of one connection are skipped,
    /// those of the machine are waited out.
    async fn run(self, listener: TcpListener, stop: CancellationToken) {
        loop {
            let Ok(permit) = self.budget.clone().acquire_owned().await else { return };
            let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { return };
            match accepted {
                Ok((tcp, client)) => {
                    let (router, target) = (self.router.clone(), self.target.clone());
                    self.connections.spawn(async move {
                        serve(&router, tcp, client, &target).await;
                        drop(permit);
                    });
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    warn!(%error, service = %self.target.service, "cannot accept connections, retrying");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve(router: &Arc<Router>, tcp: TcpStream, client: SocketAddr, target: &Target) {
    // A connection that is gone already shows in its first read.
    let _gone = tcp.set_nodelay(true);
    outbound::serve(router, tcp, client, target).await;
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

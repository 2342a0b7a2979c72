//! One connection of a sidecar: HTTP/2, with every bound said, and the requests on it.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use eastway_identity::SpiffeId;
use eastway_model::access::SourceIdentity;
use eastway_model::routing::RouteError;
use eastway_model::{ClusterName, WorkloadIdentity};
use h2::server::{self, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Shared;
use super::authority::{Authority, AuthorityError};
use super::body::{Incoming, Outgoing};
use super::held::Held;
use super::renewals::{Certificate, Renewals};
use super::tunnel::Tunnel;
use crate::local::listener;
use crate::proxy::connection::{Connection, Outcome};
use crate::proxy::copy::Transferred;
use crate::proxy::outbound::{ConnectError, Target};
use crate::router::{Routed, Router};
use crate::telemetry::Refusal;

/// Tunnels of one connection. With [`STREAM_WINDOW`] they fill [`CONNECTION_WINDOW`] and no more, so that tunnels whose
/// bytes nobody takes never stop the others.
pub(super) const MAX_STREAMS: u32 = 64;
/// Bytes of a tunnel that may wait here.
pub(super) const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// The smallest maximum that HTTP/2 knows: larger frames came with more updates of windows than Envoy 1.36 bears.
const MAX_FRAME: u32 = 16 << 10;
/// A CONNECT request of Envoy has some hundred bytes of header.
const MAX_HEADER_LIST: u32 = 16 << 10;
/// Bytes of a tunnel that wait to be sent to the sidecar.
pub(super) const SEND_BUFFER: usize = 256 << 10;
/// Overhead of small frames that wait here, as `h2` counts it (up to 256 bytes each): five tunnels that are full of
/// ten-byte frames. More ends the connection. Empty frames are limited by `h2` itself, to 100.
const SMALL_FRAMES: usize = 32 << 20;
/// Streams that a sidecar may reset before they are looked at; more is taken for an attack (CVE-2023-44487) and ends
/// the connection.
const MAX_RESETS_BEFORE_LOOK: usize = 32;
/// Streams that broke the protocol, over the life of the connection.
const MAX_FAULTY_STREAMS: usize = 1024;
/// Streams that are remembered after we have reset them, and for how long: what is still on its way to them is no fault.
const RESET_MEMORY: (usize, Duration) = (MAX_STREAMS as usize, Duration::from_secs(5));
/// Tunnels at work, those included that the sidecar has given up and whose end is not through yet.
const MAX_TUNNELS: usize = 2 * MAX_STREAMS as usize;
/// The client's preface has to come within this time.
const PREFACE: Duration = Duration::from_secs(5);
/// How often a connection has to prove that it lives, and within which time.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));

/// A connection whose handshake succeeded.
pub(super) struct Session {
    io: listener::Connection,
    requests: Requests,
    /// When the sidecar's certificate ends, who it is, and who has renewed since.
    expires: SystemTime,
    identity: Arc<str>,
    renewals: Arc<Renewals>,
    revoked: watch::Receiver<Arc<BTreeSet<String>>>,
    drain: CancellationToken,
}

impl Session {
    /// `None`: it is refused.
    pub(super) fn new(
        io: listener::Connection,
        Shared { router, held, renewals, revoked }: Shared,
        tunnels: TaskTracker,
        drain: CancellationToken,
    ) -> Option<Self> {
        let listener::Caller { address: client, identity } = io.caller().clone();
        // The handshake lets nobody in without.
        let caller = identity?;
        let Some(source) = source(router.cluster(), &caller.id) else {
            let detail = format_args!("{client}: namespace or account of {} is no name", caller.id);
            router.telemetry.refusals.refused(Refusal::Handshake, None, detail);
            return None;
        };
        let (local, room) = (io.local_addr(), Arc::new(Semaphore::new(MAX_TUNNELS)));
        let requests = Requests { router, held, tunnels, source, client, local, room };
        let (identity, expires) = (Arc::from(caller.id.as_str()), caller.not_after);
        let certificate = Certificate { end: expires, serial: caller.serial };
        renewals.show(&identity, client.ip(), certificate, SystemTime::now(), &revoked.borrow());
        Some(Self { io, requests, expires, identity, renewals, revoked, drain })
    }

    /// Serves it until it ends. What it carries ends with it.
    pub(super) async fn run(self) {
        let Self { io, requests, expires, identity, renewals, mut revoked, drain } = self;
        let client = requests.client;
        debug!(%client, source = %requests.source, "a sidecar came");
        let Ok(Ok(mut connection)) = timeout(PREFACE, builder().handshake(io)).await else {
            let refusals = &requests.router.telemetry.refusals;
            refusals.refused(Refusal::Hbone, None, format_args!("{client}: no HTTP/2 preface within 5 s"));
            return;
        };
        let ping = connection.ping_pong();
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        let began = Instant::now();
        // A sidecar that has renewed its certificate shows it with its next connection: it is told early enough.
        let mut retire = Box::pin(sleep_until(began + left / 6 * 5));
        let mut expire = Box::pin(sleep_until(began + left));
        let mut silent = Box::pin(until_silent(ping));
        let mut leaving = false;
        let end = loop {
            tokio::select! {
                request = connection.accept() => match request {
                    None => break "closed".to_owned(),
                    Some(Err(error)) => break error.to_string(),
                    Some(Ok((request, respond))) => requests.answer(request, respond),
                },
                () = drain.cancelled(), if !leaving => {
                    leaving = true;
                    connection.graceful_shutdown();
                }
                () = &mut retire, if !leaving => {
                    leaving = true;
                    connection.graceful_shutdown();
                }
                // Unless it has come with a renewed one (invariant I9).
                () = &mut expire => match renewed(&renewals, &identity, client.ip(), &revoked.borrow()) {
                    Some(left) => expire.as_mut().reset(Instant::now() + left),
                    None => break "its certificate has expired".to_owned(),
                },
                Ok(()) = revoked.changed() => {
                    let newest = renewals.newest(&identity, client.ip());
                    if newest.is_some_and(|newest| revoked.borrow_and_update().contains(&*newest.serial)) {
                        break "its certificate is revoked".to_owned();
                    }
                }
                () = &mut silent => break "no answer to a ping".to_owned(),
            }
        };
        debug!(%client, end, "a sidecar left");
    }
}

/// For how long the newest certificate of a sidecar is still good; `None`: it is not.
fn renewed(renewals: &Renewals, identity: &str, address: IpAddr, revoked: &BTreeSet<String>) -> Option<Duration> {
    let newest = renewals.newest(identity, address).filter(|newest| !revoked.contains(&*newest.serial))?;
    let left = newest.end.duration_since(SystemTime::now()).ok()?;
    (!left.is_zero()).then_some(left)
}

fn builder() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .max_pending_accept_reset_streams(MAX_RESETS_BEFORE_LOOK)
        .max_local_error_reset_streams(Some(MAX_FAULTY_STREAMS))
        .max_concurrent_reset_streams(RESET_MEMORY.0)
        .reset_stream_duration(RESET_MEMORY.1);
    builder
}

/// Resolves when the other side does not answer.
async fn until_silent(ping: Option<PingPong>) {
    // It is taken once, when the connection begins.
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        sleep(KEEP_ALIVE.0).await;
        let answered = async {
            ping.send_ping(Ping::opaque())?;
            poll_fn(|cx| ping.poll_pong(cx)).await
        };
        if !matches!(timeout(KEEP_ALIVE.1, answered).await, Ok(Ok(_))) {
            return;
        }
    }
}

/// The workload that a certificate names.
fn source(cluster: &ClusterName, id: &SpiffeId) -> Option<SourceIdentity> {
    let identity = WorkloadIdentity::parse(id.as_str())?;
    Some(SourceIdentity {
        cluster: cluster.clone(),
        namespace: Some(identity.namespace.clone()),
        service_account: Some(identity.service_account.clone()),
        identity: Some(identity),
    })
}

/// Why a request gets no tunnel. What is told by a status is known at once; the rest is a reset later.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0} is not CONNECT")]
    Method(Method),
    #[error("authority: {0}")]
    Malformed(#[from] AuthorityError),
    /// What exists and is not imported is answered like what does not exist (invariant I7).
    #[error("{1}: {0}")]
    Unknown(RouteError, Authority),
    /// It may exist: this process has just started.
    #[error("{0}: what there is is not known yet")]
    NotYet(Authority),
    #[error("{1}: {0}")]
    NoEndpoints(RouteError, Authority),
    #[error("{0}: no link to its cluster")]
    NoLink(Authority),
    #[error("{MAX_TUNNELS} tunnels of one connection are at work")]
    Overload,
    #[error("all tunnels together hold more than limits.hboneBufferBytes")]
    Memory,
}

impl Refused {
    /// The label of the counter.
    fn reason(&self) -> &'static str {
        match self {
            Self::Method(_) => "method",
            Self::Malformed(_) => "malformed",
            Self::Unknown(..) => "unknown",
            Self::NotYet(_) => "not_synced",
            Self::NoEndpoints(..) => "no_endpoints",
            Self::NoLink(_) => "no_link",
            Self::Overload => "overload",
            Self::Memory => "memory",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Unknown(..) => StatusCode::NOT_FOUND,
            // Another gateway of this cluster may know more, and Envoy asks it.
            Self::NotYet(_) | Self::NoEndpoints(..) | Self::NoLink(_) | Self::Overload | Self::Memory => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// What is counted and logged as refused input: the others are the state of things.
    fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Method(_) | Self::Malformed(_) | Self::Unknown(..) => Some(Refusal::Hbone),
            Self::Overload | Self::Memory => Some(Refusal::Overload),
            Self::NotYet(_) | Self::NoEndpoints(..) | Self::NoLink(_) => None,
        }
    }
}

/// What requests of one connection have in common.
struct Requests {
    router: Arc<Router>,
    held: Arc<Held>,
    tunnels: TaskTracker,
    source: SourceIdentity,
    client: SocketAddr,
    local: Option<SocketAddr>,
    room: Arc<Semaphore>,
}

impl Requests {
    fn answer(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let granted = self.grant(&request).and_then(|granted| {
            let permit = Arc::clone(&self.room).try_acquire_owned().map_err(|_| Refused::Overload)?;
            if self.held.has_room() { Ok((granted, permit)) } else { Err(Refused::Memory) }
        });
        let metrics = &self.router.telemetry.metrics;
        let ((target, routed), permit) = match granted {
            Ok(granted) => granted,
            Err(refused) => {
                metrics.hbone_answered(refused.reason());
                self.tell(&refused);
                // A sidecar that is gone needs no answer.
                let _gone = respond.send_response(response(refused.status()), true);
                return;
            }
        };
        metrics.hbone_answered("tunnel");
        // Before anybody is dialled: Envoy says nothing until it has the answer, and a round trip over the WAN is long.
        let Ok(outgoing) = respond.send_response(response(StatusCode::OK), false) else { return };
        let connection = self.connection(&target);
        let mut incoming = request.into_body();
        let entry = self.held.enter(incoming.flow_control().clone());
        let (incoming, outgoing) = (Incoming::new(incoming, entry.meter()), Outgoing::new(outgoing, entry.meter()));
        let tunnel = Tunnel { target, routed, incoming, outgoing, connection };
        let serving = tunnel.serve(Arc::clone(&self.router));
        self.tunnels.spawn(async move {
            serving.await;
            drop((entry, permit));
        });
    }

    fn grant(&self, request: &Request<RecvStream>) -> Result<(Target, Routed), Refused> {
        if request.method() != Method::CONNECT {
            return Err(Refused::Method(request.method().clone()));
        }
        let authority = request.uri().authority().map_or("", |authority| authority.as_str());
        let authority: Authority = authority.parse()?;
        let target = Target::from(authority.clone());
        let routed = match self.router.route_of(self.source.clone(), &target, self.client.ip()) {
            Ok(routed) => routed,
            Err(error @ RouteError::NoEndpoints) => return Err(Refused::NoEndpoints(error, authority)),
            Err(_) if !self.router.snapshot().is_local_synced() => return Err(Refused::NotYet(authority)),
            Err(error) => return Err(Refused::Unknown(error, authority)),
        };
        if self.router.can_try(&routed) { Ok((target, routed)) } else { Err(Refused::NoLink(authority)) }
    }

    /// Tells the operator.
    fn tell(&self, refused: &Refused) {
        let telemetry = &self.router.telemetry;
        if let Some(kind) = refused.refusal() {
            let (client, source) = (self.client, &self.source);
            telemetry.refusals.refused(kind, None, format_args!("sidecar {client}, {source}: {refused}"));
        }
        let (authority, error) = match refused {
            Refused::Unknown(error, authority) | Refused::NoEndpoints(error, authority) => (authority, (*error).into()),
            Refused::NoLink(authority) => (authority, ConnectError::NoLink(authority.cluster.clone())),
            Refused::Method(_) | Refused::Malformed(_) | Refused::NotYet(_) | Refused::Overload | Refused::Memory => {
                return;
            }
        };
        let target = Target::from(authority.clone());
        self.connection(&target).closed(telemetry, &Outcome::NotConnected(error), &Transferred::default());
    }

    fn connection(&self, target: &Target) -> Connection {
        let cluster = self.router.cluster();
        let mut connection = Connection::outbound(cluster, &target.service, target.port.get(), self.client);
        connection.set_local(self.local);
        connection.set_source(&self.source);
        connection.set_mutual_tls();
        connection
    }
}

fn response(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

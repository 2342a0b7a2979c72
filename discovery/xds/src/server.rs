//! The gRPC service: one task per client, which reads requests, watches the view and writes what follows from both.
//!
//! A client that is slow gets the newest view when it has taken the last response, never a queue; one that takes
//! nothing for [`Limits::stalled`] is cut, and delays nobody meanwhile.

mod clients;
mod own;

pub use clients::{Client, Clients, Report};

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use eastway_model::Label;
use eastway_proto::xds::discovery as wire;
use eastway_proto::xds::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Extensions, Request, Response, Status, Streaming};

use crate::kind::Kind;
use crate::node::{ClientKind, Node, NodeError, Workload};
use crate::scopes::{Scopes, Views};
use crate::session::{DeltaSession, Session, SessionError, Verdict, WorldSession};
use crate::spoken::{Saying, Spoken};
use own::Own;

/// Largest request: 20,000 names with a version each are some 2 MiB.
const MAX_REQUEST: usize = 4 << 20;
/// What a certificate has left so little of that a stream goes on to its end.
const SHORT: Duration = Duration::from_secs(2);
/// How long routes wait for clusters to be acknowledged. They are warm within milliseconds, unless something that they
/// need is missing.
const WARMING: Duration = Duration::from_secs(5);

/// Who opened a stream, as its connection proves.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Where it comes from.
    pub address: String,
    /// Its SPIFFE id.
    pub identity: Arc<str>,
    /// The workload that this names.
    pub workload: Workload,
    /// Serial number of its certificate, for people.
    pub serial: Arc<str>,
    /// When its certificate ends, and the stream with it.
    pub not_after: SystemTime,
}

/// Finds out who opened a stream, and refuses those who may not.
pub type Admit = Arc<dyn Fn(&Extensions) -> Result<Caller, Status> + Send + Sync>;

/// Bounds on clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams at once.
    pub streams: usize,
    /// How long a client may take for one response, and for its first request.
    pub stalled: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { streams: 10_000, stalled: Duration::from_secs(30) }
    }
}

/// Why a client's stream ended before the client ended it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// It did not read.
    #[error("it does not read")]
    Stalled,
    /// There are too many.
    #[error("there are too many streams")]
    TooMany,
    /// What it says is wrong.
    #[error("{0}")]
    Request(String),
}

/// Is told what happens; all of it is counted or logged somewhere else.
pub trait Observer: Send + Sync + 'static {
    /// So many clients are connected now.
    fn connected(&self, clients: usize);
    /// A response of this kind was handed over.
    fn pushed(&self, kind: Kind);
    /// `client` refused what it was sent.
    fn refused(&self, client: &str, kind: Kind, reason: &str);
    /// A client's stream was ended.
    fn cut(&self, client: &str, why: &Cut);
}

/// Where views come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The same for all clients.
    All(Views),
    /// By the namespaces of their workloads.
    Scopes(Arc<Scopes>),
}

impl Source {
    fn of(&self, namespace: &Label) -> Views {
        match self {
            Self::All(views) => views.clone(),
            Self::Scopes(scopes) => scopes.of(namespace),
        }
    }
}

impl From<Views> for Source {
    fn from(views: Views) -> Self {
        Self::All(views)
    }
}

impl From<Arc<Scopes>> for Source {
    fn from(scopes: Arc<Scopes>) -> Self {
        Self::Scopes(scopes)
    }
}

/// Serves the newest views to all clients.
pub struct Server {
    views: Source,
    proxyless: Option<(Source, watch::Sender<bool>)>,
    spoken: Arc<Spoken>,
    admit: Admit,
    observer: Arc<dyn Observer>,
    clients: Arc<Clients>,
    limits: Limits,
    room: Arc<Semaphore>,
    /// Tells streams apart, those of earlier processes too.
    epoch: u64,
    streams: AtomicU64,
    stop: CancellationToken,
}

/// What names things in debugging output: who is connected is in [`Clients`].
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Server {
    /// A server of the newest of `views`; nothing is answered before there is one. `epoch` differs from that of any
    /// earlier process.
    #[must_use]
    pub fn new(
        views: impl Into<Source>,
        admit: Admit,
        observer: Arc<dyn Observer>,
        limits: Limits,
        epoch: u64,
        stop: CancellationToken,
    ) -> Self {
        let room = Arc::new(Semaphore::new(limits.streams));
        let (clients, streams) = (Arc::new(Clients::default()), AtomicU64::new(0));
        let (views, spoken) = (views.into(), Arc::default());
        Self { views, proxyless: None, spoken, admit, observer, clients, limits, room, epoch, streams, stop }
    }

    /// What Services say of ports comes from `spoken`. Without it nothing is said of any.
    #[must_use]
    pub fn with_spoken(self, spoken: Arc<Spoken>) -> Self {
        Self { spoken, ..self }
    }

    /// Clients without a proxy are served `views`, and `wanted` becomes true with the first of them.
    #[must_use]
    pub fn with_proxyless(self, views: impl Into<Source>, wanted: watch::Sender<bool>) -> Self {
        Self { proxyless: Some((views.into(), wanted)), ..self }
    }

    /// Who is connected.
    #[must_use]
    pub fn clients(&self) -> Arc<Clients> {
        Arc::clone(&self.clients)
    }

    /// As a service of a gRPC server.
    #[must_use]
    pub fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    fn open<S>(&self, request: Request<Streaming<S::Request>>) -> Result<Response<Responses<S::Response>>, Status>
    where
        S: Session,
        S::Response: Typed,
    {
        let caller = (self.admit)(request.extensions())?;
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            self.observer.cut(&caller.address, &Cut::TooMany);
            return Err(Status::resource_exhausted("too many proxies are connected"));
        };
        let (sender, receiver) = mpsc::channel(1);
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        let task = Task::<S> {
            session: Arc::new(Mutex::new(S::new(format!("{:x}.{number}", self.epoch)))),
            caller,
            views: self.views.clone(),
            proxyless: self.proxyless.clone(),
            spoken: Arc::clone(&self.spoken),
            requests: request.into_inner(),
            sender,
            observer: Arc::clone(&self.observer),
            clients: Arc::clone(&self.clients),
            stalled: self.limits.stalled,
            _room: permit,
        };
        tokio::spawn(task.run(self.stop.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type StreamAggregatedResourcesStream = Responses<wire::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<wire::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<wire::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.open::<WorldSession>(request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<wire::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.open::<DeltaSession>(request)
    }
}

/// A response that knows its kind.
trait Typed {
    fn url(&self) -> &str;
}

impl Typed for wire::DiscoveryResponse {
    fn url(&self) -> &str {
        &self.type_url
    }
}

impl Typed for wire::DeltaDiscoveryResponse {
    fn url(&self) -> &str {
        &self.type_url
    }
}

/// One client.
struct Task<S: Session> {
    /// Locked for a moment, and by those who ask what the client was told.
    session: Arc<Mutex<S>>,
    caller: Caller,
    views: Source,
    proxyless: Option<(Source, watch::Sender<bool>)>,
    spoken: Arc<Spoken>,
    requests: Streaming<S::Request>,
    sender: mpsc::Sender<Result<S::Response, Status>>,
    observer: Arc<dyn Observer>,
    clients: Arc<Clients>,
    stalled: Duration,
    _room: OwnedSemaphorePermit,
}

/// Why a client's task ends.
enum End {
    /// The client is gone, or the process stops.
    Gone,
    /// The stream has to end with this status.
    Told(Status, Option<Cut>),
    /// It takes nothing: it cannot be told either.
    Stalled,
}

impl From<SessionError> for End {
    fn from(error: SessionError) -> Self {
        let (text, cut) = (error.to_string(), Cut::Request(error.to_string()));
        let status = match error {
            SessionError::Kind(_) | SessionError::Name(_) => Status::invalid_argument(text),
            SessionError::TooManyNames(_) => Status::resource_exhausted(text),
        };
        Self::Told(status, Some(cut))
    }
}

impl From<NodeError> for End {
    fn from(error: NodeError) -> Self {
        let (text, cut) = (error.to_string(), Cut::Request(error.to_string()));
        let status = match error {
            NodeError::Identity { .. } => Status::permission_denied(text),
            NodeError::TooLarge(_) => Status::resource_exhausted(text),
            NodeError::Missing
            | NodeError::Malformed
            | NodeError::Text(_)
            | NodeError::Inbound(_)
            | NodeError::Changed => Status::invalid_argument(text),
        };
        Self::Told(status, Some(cut))
    }
}

impl<S> Task<S>
where
    S: Session,
    S::Response: Typed,
{
    async fn run(mut self, stop: CancellationToken) {
        let left = self.caller.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        // A renewed certificate is shown with the next stream: early enough for all that ends with the old one.
        let (left, status) = if left > SHORT {
            (left / 6 * 5, Status::unavailable("come again with a renewed certificate"))
        } else {
            (left, Status::unauthenticated("the certificate of the client has ended"))
        };
        let (sender, observer, address) =
            (self.sender.clone(), Arc::clone(&self.observer), self.caller.address.clone());
        let end = tokio::select! {
            () = stop.cancelled() => End::Told(Status::unavailable("the gateway stops"), None),
            // It comes again with a renewed certificate (invariant I9).
            () = sleep_until(Instant::now() + left) => End::Told(status, None),
            end = self.serve() => end,
        };
        match end {
            End::Gone => {}
            End::Stalled => observer.cut(&address, &Cut::Stalled),
            End::Told(status, cut) => {
                if let Some(cut) = cut {
                    observer.cut(&address, &cut);
                }
                // Who reads is told why; nobody waits for who does not.
                let _told = timeout(Duration::from_secs(1), sender.send(Err(status))).await;
            }
        }
    }

    async fn serve(&mut self) -> End {
        let first = match timeout(self.stalled, self.requests.message()).await {
            Err(_) => {
                let status = Status::deadline_exceeded("no request came");
                return End::Told(status, Some(Cut::Request("no request came".to_owned())));
            }
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None)) => return End::Gone,
            Ok(Err(status)) => return unreadable(status),
        };
        let node = match Node::parse(S::node(&first), &self.caller.workload) {
            Ok(node) => node,
            Err(error) => return error.into(),
        };
        if let (ClientKind::Proxyless, Some((views, wanted))) = (node.kind, self.proxyless.take()) {
            self.views = views;
            wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
        }
        // Taken out of the list when this ends, however it ends.
        let session = Arc::clone(&self.session) as Arc<dyn clients::Told>;
        let entry = self.clients.enter(&node, &self.caller, session, Arc::clone(&self.observer));
        let mut own = Own::new(&node);
        let namespace = &self.caller.workload.namespace;
        let is_left = !node.by_service.ports.is_empty();
        let mut saying = is_left.then(|| self.spoken.of(namespace, &node.by_service.addresses));
        let mut views = self.views.of(namespace);
        let view = views.borrow_and_update().clone();
        hear(&mut saying, &mut own);
        if let Some(view) = view {
            self.session().update(own.beside(view));
        }
        let mut next = Some(first);
        let (mut held_until, mut release): (Option<Instant>, bool) = (None, false);
        loop {
            let responses = match next.take() {
                None if std::mem::take(&mut release) => self.session().release(),
                Some(request) => match self.take(request, &node) {
                    Ok(responses) => responses,
                    Err(end) => return end,
                },
                None => {
                    hear(&mut saying, &mut own);
                    let view = views.borrow_and_update().clone();
                    view.map(|view| self.session().update(own.beside(view))).unwrap_or_default()
                }
            };
            let status = self.session().status();
            entry.set(status);
            for response in responses {
                if let Err(end) = self.send(response).await {
                    return end;
                }
            }
            let is_holding = self.session().is_holding();
            held_until = held_until.or_else(|| Some(Instant::now() + WARMING)).filter(|_| is_holding);
            tokio::select! {
                () = self.sender.closed() => return End::Gone,
                () = sleep_until(held_until.unwrap_or_else(Instant::now)), if is_holding => release = true,
                changed = views.changed() => if changed.is_err() { return End::Gone },
                () = said(&mut saying) => {}
                request = self.requests.message() => match request {
                    Ok(Some(request)) => next = Some(request),
                    Ok(None) => return End::Gone,
                    Err(status) => return unreadable(status),
                },
            }
        }
    }

    fn take(&mut self, request: S::Request, node: &Node) -> Result<Vec<S::Response>, End> {
        node.check_again(S::node(&request), &self.caller.workload)?;
        let answer = self.session().handle(request)?;
        if let Verdict::Refused(kind, reason) = &answer.verdict {
            self.observer.refused(&node.id, *kind, reason);
        }
        Ok(answer.responses)
    }

    fn session(&self) -> MutexGuard<'_, S> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&mut self, response: S::Response) -> Result<(), End> {
        let kind = Kind::parse(response.url()).ok();
        match timeout(self.stalled, self.sender.send(Ok(response))).await {
            Ok(Ok(())) => {
                if let Some(kind) = kind {
                    self.observer.pushed(kind);
                }
                Ok(())
            }
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => Err(End::Stalled),
        }
    }
}

/// Takes over what is said by now.
fn hear(saying: &mut Option<Saying>, own: &mut Own) {
    if let Some(said) = saying.as_mut().and_then(|saying| saying.borrow_and_update().clone()) {
        own.hear(&said);
    }
}

/// Waits until something else is said.
async fn said(saying: &mut Option<Saying>) {
    let changed = match saying {
        Some(saying) => saying.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// What cannot be read is too large or no request; all else is a client or a connection that went.
fn unreadable(status: Status) -> End {
    if matches!(status.code(), Code::OutOfRange | Code::Internal) {
        let cut = Cut::Request(status.message().to_owned());
        return End::Told(status, Some(cut));
    }
    End::Gone
}

#[cfg(test)]
mod tests;

//! The gateway's local port: its end of the feed, and the configuration of sidecars beside it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use eastway_identity::local::{ClientAuth, LocalTrust, Wanted, anchors_of, server_config};
use eastway_identity::{IdentityStore, SpiffeId, system_clock};
use eastway_model::ClusterName;
use eastway_model::store::Reader;
use eastway_proto::local::v1 as wire;
use eastway_proto::local::v1::imports_server::{Imports, ImportsServer};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::app::clock::Clock;
use crate::local::feed::Feed;
use crate::local::links::AllFacts;
use crate::local::listener::{Caller, LocalListener};
use crate::telemetry::{Refusal, Telemetry};

/// Watchers at once: a controller has a few replicas, and one connection of each may linger.
const MAX_WATCHERS: usize = 16;
/// A watcher that takes no message for so long is cut.
const STALLED: Duration = Duration::from_secs(30);
/// How often a silent connection has to prove that it lives, and within which time.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));
/// Largest message of a watcher; they are empty today.
const MAX_REQUEST: usize = 16 << 10;

/// All configured peers; `None` until every source of peers has been read.
pub type KnownPeers = watch::Receiver<Option<Arc<BTreeSet<ClusterName>>>>;

/// What the feed is made of.
#[derive(Clone, Debug)]
pub struct FeedSource {
    /// The store.
    pub reader: Reader,
    /// Which peers there are.
    pub known: KnownPeers,
    /// What is known of links.
    pub links: watch::Receiver<AllFacts>,
    /// The clock that the store is given.
    pub clock: Clock,
    /// Counters and logs.
    pub telemetry: Telemetry,
}

/// Serves the feed to `controller`, and `sidecars` to whom they admit, until `stop`. Without sidecars nobody but the
/// controller gets through the handshake.
///
/// # Errors
/// TLS cannot be set up, or the gRPC server ended.
pub async fn serve(
    listener: LocalListener,
    source: FeedSource,
    identity: Arc<IdentityStore>,
    controller: SpiffeId,
    sidecars: Option<eastway_xds::server::Server>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    serve_stalling(listener, source, identity, controller, sidecars, STALLED, stop).await
}

/// Why the feed is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The provider lacks TLS 1.3.
    #[error("no TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The gRPC server.
    #[error("the local port ended: {0}")]
    Grpc(#[from] tonic::transport::Error),
}

pub(super) async fn serve_stalling(
    listener: LocalListener,
    source: FeedSource,
    identity: Arc<IdentityStore>,
    controller: SpiffeId,
    sidecars: Option<eastway_xds::server::Server>,
    stalled: Duration,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let wanted = match sidecars {
        Some(_) => Wanted::TrustDomain(Arc::from(controller.trust_domain())),
        None => Wanted::Identity(controller.clone()),
    };
    let trust = LocalTrust::new(anchors_of(Arc::clone(&identity)), wanted);
    let tls = server_config(identity, trust.clone(), ClientAuth::Required, system_clock())?;
    let refusals = Arc::clone(&source.telemetry.refusals);
    let (connections, accept) = listener.accept(tls, trust, refusals, stop.clone());
    let room = Arc::new(Semaphore::new(MAX_WATCHERS));
    let service = Service { source, controller, room, stalled, stop: stop.clone() };
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .max_concurrent_streams(Some(4))
        .http2_max_header_list_size(Some(16 << 10))
        .add_service(ImportsServer::new(service).max_decoding_message_size(MAX_REQUEST))
        .add_optional_service(sidecars.map(eastway_xds::server::Server::into_service))
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned());
    let ((), served) = tokio::join!(accept, server);
    Ok(served?)
}

struct Service {
    source: FeedSource,
    controller: SpiffeId,
    room: Arc<Semaphore>,
    stalled: Duration,
    stop: CancellationToken,
}

type Updates = Pin<Box<dyn Stream<Item = Result<wire::Update, Status>> + Send>>;

#[tonic::async_trait]
impl Imports for Service {
    type WatchStream = Updates;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Updates>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let (address, identity) = caller
            .and_then(|caller| Some((caller.address, caller.identity?)))
            .ok_or_else(|| Status::unauthenticated("no certificate"))?;
        // Sidecars get through the handshake too.
        if identity.id != self.controller {
            let detail = format_args!("{address}: {} is not the controller and asks for the feed", identity.id);
            self.source.telemetry.refusals.refused(Refusal::Handshake, None, detail);
            return Err(Status::permission_denied("the feed is for the controller of this cluster"));
        }
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            let detail = format_args!("{address}: {MAX_WATCHERS} watchers of the feed already");
            self.source.telemetry.refusals.refused(Refusal::Overload, None, detail);
            return Err(Status::resource_exhausted("too many watchers"));
        };
        let (sender, receiver) = mpsc::channel(1);
        let watcher = Watcher { source: self.source.clone(), sender, stalled: self.stalled };
        let left = identity.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let stop = self.stop.clone();
        info!(%address, caller = %identity.id, "feed: a watcher came");
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                // It comes again with a renewed certificate (invariant I9).
                () = sleep_until(Instant::now() + left) => {}
                end = watcher.run() => match end {
                    End::Gone => info!(%address, "feed: a watcher left"),
                    End::Stalled(telemetry) => {
                        let detail = format_args!("{address}: a watcher of the feed does not read, it is cut");
                        telemetry.refusals.refused(Refusal::Overload, None, detail);
                    }
                }
            }
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct Watcher {
    source: FeedSource,
    sender: mpsc::Sender<Result<wire::Update, Status>>,
    stalled: Duration,
}

enum End {
    Gone,
    Stalled(Telemetry),
}

impl Watcher {
    async fn run(self) -> End {
        let Self { source, sender, stalled } = self;
        let FeedSource { mut reader, mut known, mut links, clock, telemetry } = source;
        let mut feed = Feed::default();
        loop {
            let (peers, facts) = (known.borrow_and_update().clone(), links.borrow_and_update().clone());
            let updates = match peers {
                Some(peers) => feed.updates(&reader.load_full(), &peers, &facts, clock.steady()),
                None => Vec::new(),
            };
            for update in updates {
                match timeout(stalled, sender.send(Ok(update))).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return End::Gone,
                    Err(_) => return End::Stalled(telemetry),
                }
            }
            tokio::select! {
                () = sender.closed() => return End::Gone,
                changed = reader.changed() => if changed.is_err() { return End::Gone },
                changed = known.changed() => if changed.is_err() { return End::Gone },
                changed = links.changed() => if changed.is_err() { return End::Gone },
            }
        }
    }
}

//! The configuration of Envoy, or of gRPC libraries, fetched for them: each ADS stream on the agent's socket is one of its own to the gateway, with
//! the workload's certificate. Messages go through as the bytes they are. Nothing is kept here: while Envoy does not
//! read, the gateway is not read either.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes};
use eastway_identity::SpiffeId;
use eastway_identity::local::{LocalTrust, Wanted, client_config};
use eastway_identity::system_clock;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::secrets::Secrets;
use crate::config::value::HostPort;
use crate::local::dial::dial;
use crate::telemetry::{Escaped, LogLimit};

/// The service's methods: state of the world, and differences.
const METHODS: [&str; 2] = [
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
];
/// Longest message of Envoy: at a reconnect the names and versions of all that it has.
const MAX_REQUEST: usize = 16 << 20;
/// Longest message of the gateway.
const MAX_RESPONSE: usize = 64 << 20;
/// Streams at once: an Envoy has one, and for a moment the one of before; gRPC libraries one for each target, in each
/// program.
const MAX_STREAMS: usize = 256;
/// Shortest time between two lines about a gateway that gives no configuration.
const INTERVAL: Duration = Duration::from_secs(10);

/// The proxy.
#[derive(Clone, Debug)]
pub(super) struct AdsProxy {
    upstream: Arc<Upstream>,
}

#[derive(Debug)]
struct Upstream {
    gateway: HostPort,
    identity: SpiffeId,
    secrets: Arc<Secrets>,
    room: Arc<Semaphore>,
    /// Envoy tries several times a second.
    lines: LogLimit<()>,
    /// Ends all streams, for clients to begin new ones.
    again: Arc<Notify>,
    stop: CancellationToken,
}

impl AdsProxy {
    /// Streams go to `gateway`, which must prove to be `identity`, until `stop`. `again` ends those there are: a client
    /// begins a new one with what it has, and is told the rest, also what it had refused.
    pub(super) fn new(
        gateway: HostPort,
        identity: SpiffeId,
        secrets: Arc<Secrets>,
        again: Arc<Notify>,
        stop: CancellationToken,
    ) -> Self {
        let room = Arc::new(Semaphore::new(MAX_STREAMS));
        let lines = LogLimit::new(INTERVAL);
        Self { upstream: Arc::new(Upstream { gateway, identity, secrets, room, lines, again, stop }) }
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl Upstream {
    /// Begins a stream. Envoy comes again by itself, with pauses that grow, when there is none.
    async fn stream(
        self: Arc<Self>,
        method: &'static str,
        requests: Streaming<Bytes>,
    ) -> Result<Response<Messages>, Status> {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            return Err(Status::resource_exhausted("too many streams at once"));
        };
        let responses = self.open(method, requests).await.inspect_err(|status| self.failed(status))?;
        info!(gateway = %self.gateway, "the gateway configures a client");
        let (stop, again) = (self.stop.clone(), Arc::clone(&self.again).notified_owned());
        let end = async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = again => {}
            }
        };
        let responses = responses.take_until(end).map(move |message| {
            // As long as the stream lives.
            let _permit = &permit;
            message.inspect_err(|status| self.failed(status))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    fn failed(&self, status: &Status) {
        if let Some(suppressed) = self.lines.admit((), Instant::now()) {
            let reason = Escaped(status.message()).to_string();
            let gateway = &self.gateway;
            warn!(%gateway, %reason, suppressed, "no configuration from the gateway; clients go on with what they have");
        }
    }

    async fn open(&self, method: &'static str, requests: Streaming<Bytes>) -> Result<Streaming<Bytes>, Status> {
        // A connection for each stream: it is made with the certificate of now, and the name is looked up again.
        let wanted = Wanted::Identity(self.identity.clone());
        let trust = LocalTrust::new(self.secrets.anchors(), wanted);
        let tls = client_config(Some(Arc::clone(self.secrets.identity())), trust, system_clock())
            .map_err(|error| Status::internal(error.to_string()))?;
        let channel = dial(&self.gateway, tls).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_RESPONSE);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        // An error of Envoy's side ends the stream to the gateway as its end does.
        let requests = requests
            .take_while(|request| std::future::ready(request.is_ok()))
            .filter_map(|request| std::future::ready(request.ok()))
            .take_until(self.stop.clone().cancelled_owned());
        let path = http::uri::PathAndQuery::from_static(method);
        let opened = client.streaming(Request::new(requests), path, RawCodec).boxed();
        let response = match self.stop.run_until_cancelled(opened).await {
            Some(response) => response?,
            None => return Err(Status::unavailable("the sidecar stops")),
        };
        debug!(gateway = %self.gateway, method, "a stream of configuration began");
        Ok(response.into_inner())
    }
}

impl NamedService for AdsProxy {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<Body>> for AdsProxy {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let method = METHODS.into_iter().find(|method| *method == path);
        let upstream = Arc::clone(&self.upstream);
        Box::pin(async move {
            let Some(method) = method else {
                return Ok(Status::unimplemented("no such method").into_http());
            };
            let mut grpc = tonic::server::Grpc::new(RawCodec).max_decoding_message_size(MAX_REQUEST);
            Ok(grpc.streaming(Forward { upstream, method }, request).await)
        })
    }
}

struct Forward {
    upstream: Arc<Upstream>,
    method: &'static str,
}

impl StreamingService<Bytes> for Forward {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = BoxFuture<Response<Messages>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (upstream, method) = (Arc::clone(&self.upstream), self.method);
        Box::pin(upstream.stream(method, request.into_inner()))
    }
}

/// Messages as the bytes they are.
#[derive(Clone, Copy, Debug, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

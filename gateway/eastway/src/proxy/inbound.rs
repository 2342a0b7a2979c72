//! Serves the streams that peers open: connections to services of this cluster, federation sessions
//! and probes.
//!
//! A peer is authenticated and not trusted. A header names a service; whether it is exported to that
//! peer, whether the source may use it, and where its endpoints are is decided here, by the owner.

use std::sync::Arc;
use std::time::Duration;

use eastway_model::access::SourceIdentity;
use eastway_model::routing::PickError;
use eastway_model::{ClusterName, EndpointId, Label, ServiceKey, WorkloadIdentity};
use eastway_tunnel::header::{ClientAddress, ServiceHeader, StreamHeader};
use eastway_tunnel::transport::BoxFuture;
use eastway_tunnel::{AcceptedStream, LinkInfo, RecvHalf, ResetCode, SendHalf, StreamHandler, TunnelStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::app::exports::Exports;
use crate::proxy::bench::Bench;
use crate::proxy::connection::{Connection, Outcome};
use crate::proxy::copy::{self, Local, Transferred, Watch};
use crate::proxy::dial::{DialError, InFlightGuard};
use crate::proxy::reach::{ReachError, Reached, connect_udp, reach};
use crate::proxy::udp::served::Served;
use crate::router::{Picked, Router};
use crate::telemetry::{Path, Refusal};

/// Bytes that a probe echoes at most, and how long it may take.
const PROBE_LIMIT: usize = 64 * 1024;
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes the streams of all links.
pub struct Inbound {
    router: Arc<Router>,
    exports: Arc<Exports>,
    bench: Arc<Bench>,
}

impl Inbound {
    /// Serves services by `router`, federation sessions by `exports`, and measurements of the link for so many seconds an
    /// hour and peer.
    #[must_use]
    pub fn new(router: Arc<Router>, exports: Arc<Exports>, bench_seconds: u32) -> Self {
        Self { router, exports, bench: Arc::new(Bench::new(bench_seconds)) }
    }
}

impl StreamHandler for Inbound {
    fn handle(&self, link: LinkInfo, header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()> {
        match header {
            StreamHeader::Service(header) => {
                let router = self.router.clone();
                // On the heap, with the header and all else that is of no use once the stream is answered.
                let opening = Box::pin(open(router.clone(), link, header, stream));
                Box::pin(async move {
                    let Some(mut opened) = opening.await else { return };
                    opened.serve(&router).await;
                })
            }
            StreamHeader::Federation(_) => {
                let exports = self.exports.clone();
                Box::pin(async move { exports.serve(&link, stream).await })
            }
            StreamHeader::Probe => Box::pin(probe(stream)),
            StreamHeader::Bench(header) => {
                let bench = self.bench.clone();
                Box::pin(async move { bench.serve(&link.peer, header, stream).await })
            }
            // Pipes are the tunnel's own.
            StreamHeader::Relay(_) => {
                stream.reject(ResetCode::Unsupported);
                Box::pin(std::future::ready(()))
            }
        }
    }
}

/// Why a stream is refused: what the peer is told, and what we tell ourselves.
struct Rejection {
    code: ResetCode,
    why: String,
}

impl Rejection {
    fn new(code: ResetCode, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

/// A stream whose endpoint was reached.
struct Opened {
    connection: Connection,
    local: Local,
    stream: TunnelStream,
    /// Cancelled when the endpoint is trusted no more.
    cut: Option<CancellationToken>,
    _in_flight: InFlightGuard,
}

impl Opened {
    /// Copies until it ends.
    async fn serve(&mut self, router: &Router) {
        let Self { connection, local, stream, cut, .. } = self;
        let moved = Transferred::default();
        let watch = &mut Watch { limits: router.limits, count: &mut || connection.count(&moved), cut: cut.take() };
        let outcome = Outcome::Ended(copy::with_stream(local, stream, &moved, watch).await);
        connection.closed(&router.telemetry, &outcome, &moved);
    }
}

/// Reaches an endpoint for a stream and answers it. `None`: it was refused, nobody waits for the answer, or it was a flow
/// of UDP and is over.
async fn open(
    router: Arc<Router>,
    link: LinkInfo,
    header: ServiceHeader,
    mut stream: AcceptedStream,
) -> Option<Opened> {
    let Some((peer, service)) = names(&link, &header) else {
        let detail = format_args!("{}/{}: no names of a service", header.namespace, header.service);
        router.telemetry.refusals.refused(Refusal::StreamHeader, Some(&link.peer), detail);
        stream.reject(ResetCode::BadName);
        return None;
    };
    let mut connection = Connection::inbound(router.cluster(), &service, header.port.get(), &link.peer);
    if header.flow.is_some() {
        connection.set_udp();
    }
    connection.set_traceparent(header.traceparent.as_ref().map(|trace| Arc::from(trace.as_str())));
    // Nobody is dialled for a stream that its opener has given up.
    let established = tokio::select! {
        biased;
        error = stream.aborted() => Err(Rejection::new(error.code(), "given up before an endpoint was reached")),
        established = establish(&router, link.transport.into(), (&peer, &service), &header, &mut connection) => established,
    };
    let outcome = match established {
        Err(Rejection { code, why }) => {
            router.telemetry.metrics.stream_answered(&link.peer, code.name());
            stream.reject(code);
            Outcome::Rejected(code, why)
        }
        Ok(Far::Udp(flow)) => {
            router.telemetry.metrics.stream_answered(&link.peer, "dialled");
            flow.serve(&router, stream, &mut connection).await;
            return None;
        }
        Ok(Far::Tcp(Reached { tcp, in_flight, picked })) => {
            router.telemetry.metrics.stream_answered(&link.peer, "dialled");
            connection.opened(&router.telemetry);
            match stream.accept_soon() {
                Ok(stream) => {
                    let (local, cut) = (Local::resetting(tcp), picked.cut);
                    return Some(Opened { connection, local, stream, cut, _in_flight: in_flight });
                }
                Err(error) => Outcome::Ended(Err(error.into())),
            }
        }
    };
    connection.closed(&router.telemetry, &outcome, &Transferred::default());
    None
}

fn names(link: &LinkInfo, header: &ServiceHeader) -> Option<(ClusterName, ServiceKey)> {
    let peer = Label::parse(&link.peer).ok()?;
    let service = ServiceKey::parse(header.namespace.as_str(), header.service.as_str()).ok()?;
    Some((peer, service))
}

async fn establish(
    router: &Arc<Router>,
    path: Path,
    (peer, service): (&ClusterName, &ServiceKey),
    header: &ServiceHeader,
    connection: &mut Connection,
) -> Result<Far, Rejection> {
    let source = source(peer, header);
    connection.set_source(&source);
    connection.set_client(header.client.map(ClientAddress::shown));
    authorize(router, peer, service, header, &source, connection)?;
    let endpoint = match &header.endpoint {
        None => None,
        Some(id) => {
            Some(EndpointId::parse(id.as_str()).ok_or_else(|| Rejection::new(ResetCode::BadName, "endpoint id"))?)
        }
    };
    let only = endpoint.as_ref();
    let pick = |tried: &[EndpointId]| router.pick_exported(service, header, only, tried);
    if header.flow.is_some() {
        return serve_flow(router, path, connection, pick).map(Far::Udp).map_err(|error| unreachable(&error));
    }
    reach(router, path, connection, pick).await.map(Far::Tcp).map_err(|error| unreachable(&error))
}

/// An endpoint, ready for the stream.
enum Far {
    Tcp(Reached),
    Udp(Served),
}

fn serve_flow(
    router: &Router,
    path: Path,
    connection: &mut Connection,
    pick: impl Fn(&[EndpointId]) -> Result<Picked, PickError>,
) -> Result<Served, ReachError> {
    let picked = pick(&[])?;
    connection.set_upstream(path, picked.address);
    connection.set_version(picked.version.clone());
    let socket = connect_udp(router, &picked)?;
    let in_flight = router.in_flight.enter(&picked.endpoint);
    Ok(Served::new(socket, picked.endpoint, in_flight))
}

/// What exists but is not for this peer is answered like what does not exist (invariant I7).
fn authorize(
    router: &Router,
    peer: &ClusterName,
    service: &ServiceKey,
    header: &ServiceHeader,
    source: &SourceIdentity,
    connection: &Connection,
) -> Result<(), Rejection> {
    let refuse = |code, why: &str| {
        let detail = format!("{service}:{} from {source}: {why}", header.port);
        router.telemetry.refusals.refused(refusal(code), Some(&Arc::from(peer)), &detail);
        Err(Rejection::new(code, why))
    };
    let snapshot = router.snapshot();
    if !snapshot.may_export(peer, service) {
        // Another replica may know more than this one, which has just started (invariant I5).
        if !snapshot.is_local_synced() {
            return Err(Rejection::new(ResetCode::Draining, "what this cluster offers is not known here yet"));
        }
        // Only a peer that could be offered a service of this name learns that it is somebody else's.
        let foreign = snapshot.import(service).is_some() && snapshot.rules().may_export(peer.as_str(), service);
        let code = if foreign { ResetCode::NotLocal } else { ResetCode::NotExported };
        return refuse(code, "not exported to this peer");
    }
    let verdict = router.authorize(&snapshot, source, service);
    if !verdict.allowed || verdict.dry_run {
        let (namespace, name) = (Arc::from(&service.namespace), Arc::from(&service.name));
        router.telemetry.metrics.access_denied(&connection.source_workload(), &namespace, &name, verdict.allowed);
    }
    const NOT_ALLOWED: &str = "no access policy allows this source";
    if verdict.allowed && verdict.dry_run {
        let detail = format_args!("{service}:{} from {source}: {NOT_ALLOWED}", header.port);
        router.telemetry.refusals.would_refuse(&Arc::from(peer.as_str()), detail);
    }
    if verdict.allowed { Ok(()) } else { refuse(ResetCode::PermissionDenied, NOT_ALLOWED) }
}

fn refusal(code: ResetCode) -> Refusal {
    if code == ResetCode::PermissionDenied { Refusal::Denied } else { Refusal::NotExported }
}

/// The source as the peer attests it. An identity outside of the names a peer may speak for is
/// dropped by the access rules, which compare the cluster first.
fn source(peer: &ClusterName, header: &ServiceHeader) -> SourceIdentity {
    let label =
        |name: &Option<eastway_tunnel::header::Label>| name.as_ref().and_then(|name| Label::parse(name.as_str()).ok());
    SourceIdentity {
        cluster: peer.clone(),
        namespace: label(&header.source.namespace),
        service_account: label(&header.source.service_account),
        identity: header.source.identity.as_deref().and_then(WorkloadIdentity::parse),
    }
}

fn unreachable(error: &ReachError) -> Rejection {
    let code = match error {
        ReachError::Pick(PickError::UnknownPort) => ResetCode::NotExported,
        ReachError::Pick(PickError::NoEndpoints) => ResetCode::NoEndpoints,
        ReachError::Pick(PickError::TlsRequired) => ResetCode::TlsRequired,
        ReachError::Dial(DialError::Timeout(_)) => ResetCode::UpstreamTimeout,
        ReachError::Dial(DialError::Failed(..) | DialError::Forbidden(..)) => ResetCode::UpstreamRefused,
    };
    Rejection::new(code, error.to_string())
}

/// Sends back what comes, up to [`PROBE_LIMIT`].
async fn probe(stream: AcceptedStream) {
    let Ok(stream) = stream.accept().await else { return };
    let (mut send, mut recv) = stream.split();
    if timeout(PROBE_TIMEOUT, echo(&mut send, &mut recv)).await.is_err() {
        send.reset(ResetCode::IdleTimeout);
        recv.stop(ResetCode::IdleTimeout);
    }
}

async fn echo(send: &mut SendHalf, recv: &mut RecvHalf) {
    let mut left = PROBE_LIMIT;
    while let Ok(Some(chunk)) = recv.read().await {
        let Some(rest) = left.checked_sub(chunk.len()) else {
            send.reset(ResetCode::Overloaded);
            recv.stop(ResetCode::Overloaded);
            return;
        };
        left = rest;
        if send.write(chunk).await.is_err() {
            return;
        }
    }
    send.finish();
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;
    use std::time::Duration;

    use eastway_model::store::Writer;
    use eastway_tunnel::header::{Label as HeaderLabel, Source};

    use super::*;
    use crate::proxy::copy::Limits;
    use crate::proxy::dial::DialRules;
    use crate::telemetry::{AccessMode, Telemetry};

    #[test]
    fn f14_who_knows_nothing_yet_sends_streams_on_to_another_replica() {
        let (mut writer, reader) = Writer::new(ClusterName::parse("a").unwrap());
        let never = Limits { idle: Duration::ZERO, half_closed: Duration::ZERO };
        let router = Router::new(reader, DialRules::default(), never, Telemetry::new(AccessMode::Off));
        let label = |text| HeaderLabel::parse(text).unwrap();
        let header = ServiceHeader {
            namespace: label("shop"),
            service: label("web"),
            port: NonZeroU16::MIN,
            subset: Default::default(),
            endpoint: None,
            source: Source { namespace: None, service_account: None, identity: None },
            traceparent: None,
            affinity: None,
            tls: false,
            client: None,
            flow: None,
        };
        let (peer, service) = (ClusterName::parse("b").unwrap(), ServiceKey::parse("shop", "web").unwrap());
        let connection = Connection::inbound(router.cluster(), &service, 1, &Arc::from("b"));
        let answer = || {
            let verdict = authorize(&router, &peer, &service, &header, &source(&peer, &header), &connection);
            verdict.err().map(|rejection| rejection.code)
        };
        assert_eq!(answer(), Some(ResetCode::Draining));
        writer.await_registries([]);
        assert_eq!(answer(), Some(ResetCode::NotExported), "there is no such service");
    }
}

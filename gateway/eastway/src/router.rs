//! Where connections go: the rules of `eastway_model::routing` over the current snapshot, with what
//! only this process knows (links, connections in flight).

mod newcomers;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use eastway_model::access::{self, SourceIdentity, Verdict};
use eastway_model::routing::{self, Candidate, PickError, PickRequest, Route, RouteError, RouteRequest};
use eastway_model::store::{Reader, Snapshot};
use eastway_model::{ClusterName, EndpointId, LocalEndpoint, PortKey, Protocol, ServiceKey};
use eastway_tunnel::header::{ClientAddress, EndpointRef, Label, ServiceHeader, Source, StreamHeader};
use eastway_tunnel::{Link, Tunnel};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::proxy::copy::Limits;
use crate::proxy::deliveries::Deliveries;
use crate::proxy::dial::{DialRules, InFlight};
use crate::proxy::outbound::Target;
use crate::proxy::reach::FailingEndpoints;
use crate::telemetry::Telemetry;
use newcomers::Newcomers;

/// How long a UDP flow lasts on which nothing passes, unless it is configured.
pub const UDP_IDLE: Duration = Duration::from_secs(60);

/// Read by every connection, written by none.
pub struct Router {
    reader: Reader,
    tunnel: std::sync::OnceLock<Arc<Tunnel>>,
    cluster: ClusterName,
    newcomers: Newcomers,
    /// Connections per endpoint of this cluster.
    pub in_flight: Arc<InFlight>,
    /// Connections to endpoints of this cluster that prove who they are.
    pub deliveries: Deliveries,
    /// Endpoints of this cluster that could not be dialled lately.
    pub failing: FailingEndpoints,
    /// What is never dialled.
    pub dial: DialRules,
    /// How long connections may stand still.
    pub limits: Limits,
    /// How long a UDP flow lasts on which nothing passes.
    pub udp_idle: Duration,
    /// Counters and logs.
    pub telemetry: Telemetry,
}

/// A route, and who asked for it.
#[derive(Debug)]
pub struct Routed {
    /// Where to try, in order.
    pub route: Route,
    /// The client.
    pub source: SourceIdentity,
    /// It speaks TLS to the endpoint, without having proved here who it is.
    pub tls: bool,
    /// Transport of the port.
    pub protocol: Protocol,
}

/// An endpoint of this cluster that was chosen.
#[derive(Clone, Debug)]
pub struct Picked {
    /// Its id.
    pub endpoint: EndpointId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its label `version`.
    pub version: Option<Arc<str>>,
    /// It could not be dialled lately, and there is no other.
    pub is_failing: bool,
    /// Cancelled when it is trusted no more; `None`: it proves nothing.
    pub cut: Option<CancellationToken>,
    /// It is told the client's address before anything else.
    pub proxy_protocol: bool,
}

impl Router {
    /// Routes by `reader`; remote services have no links until [`Self::set_tunnel`].
    #[must_use]
    pub fn new(reader: Reader, dial: DialRules, limits: Limits, telemetry: Telemetry) -> Self {
        let cluster = reader.load().cluster().clone();
        let (in_flight, deliveries, failing) = (Arc::default(), Deliveries::default(), FailingEndpoints::default());
        let (tunnel, newcomers) = (std::sync::OnceLock::new(), Newcomers::new(Duration::ZERO));
        let udp_idle = UDP_IDLE;
        Self { reader, tunnel, cluster, newcomers, in_flight, deliveries, failing, dial, limits, udp_idle, telemetry }
    }

    /// Holds the first connections of an address without a name for as long: its registry may be about to say who it is.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.newcomers = Newcomers::new(patience);
        self
    }

    /// Where connections are served best that may have to go over a link. None: no place is better than another, or
    /// there is no tunnel yet.
    #[must_use]
    pub fn homes(&self) -> Vec<Handle> {
        self.tunnel.get().map(|tunnel| tunnel.homes()).unwrap_or_default()
    }

    /// Lets UDP flows last for as long without a packet.
    #[must_use]
    pub fn with_udp_idle(mut self, idle: Duration) -> Self {
        self.udp_idle = idle;
        self
    }

    /// Where links are. The tunnel serves streams through the router, so it comes second.
    pub fn set_tunnel(&self, tunnel: Arc<Tunnel>) {
        // Set once, by the one who builds both.
        let _already = self.tunnel.set(tunnel);
    }

    /// This cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// What is known now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.reader.load_full()
    }

    /// Where a local connection to `target` goes.
    ///
    /// # Errors
    /// [`RouteError`]
    pub async fn route(&self, target: &Target, client: IpAddr) -> Result<Routed, RouteError> {
        self.route_from(target, client, Protocol::Tcp, false).await
    }

    /// As [`Self::route`], for a sidecar of Istio, which speaks TLS to the endpoint and shows nothing of it here. It has
    /// gone by the rules that are its own: their weights do not count once more. A split is ours, and counts.
    ///
    /// # Errors
    /// [`RouteError`]
    pub async fn route_tls(&self, target: &Target, client: IpAddr) -> Result<Routed, RouteError> {
        let snapshot = self.snapshot();
        let policy = snapshot.import(&target.service).and_then(|import| import.policy.as_ref());
        if target.subset.is_some() || policy.is_some_and(|policy| !policy.split.is_empty()) {
            return self.route_from(target, client, Protocol::Tcp, true).await;
        }
        let any = Target { subset: Some(Arc::default()), ..target.clone() };
        self.route_from(&any, client, Protocol::Tcp, true).await
    }

    /// As [`Self::route`], for a UDP flow.
    ///
    /// # Errors
    /// [`RouteError`]
    pub async fn route_udp(&self, target: &Target, client: IpAddr) -> Result<Routed, RouteError> {
        self.route_from(target, client, Protocol::Udp, false).await
    }

    async fn route_from(
        &self,
        target: &Target,
        client: IpAddr,
        protocol: Protocol,
        tls: bool,
    ) -> Result<Routed, RouteError> {
        let known = self.reader.load().source_of(client).cloned();
        let source = match known {
            Some(source) => source,
            None => self.newcomers.wait(client, &self.reader).await.unwrap_or_else(|| self.unknown()),
        };
        // Mutual TLS is one of sidecars, which have no part in UDP.
        let plain = protocol == Protocol::Tcp && !tls;
        Ok(Routed { route: self.candidates(target, client, protocol, plain)?, source, tls, protocol })
    }

    /// As [`Self::route`], for a client that has proved who it is.
    ///
    /// # Errors
    /// [`RouteError`]
    pub fn route_of(&self, source: SourceIdentity, target: &Target, client: IpAddr) -> Result<Routed, RouteError> {
        let protocol = Protocol::Tcp;
        Ok(Routed { route: self.candidates(target, client, protocol, false)?, source, tls: false, protocol })
    }

    /// `plain`: the client has no sidecar, and what it says is no TLS of one.
    fn candidates(
        &self,
        target: &Target,
        client: IpAddr,
        protocol: Protocol,
        plain: bool,
    ) -> Result<Route, RouteError> {
        let request = RouteRequest {
            protocol,
            cluster: target.cluster.as_ref(),
            subset: target.subset.as_ref(),
            endpoint: target.endpoint.as_ref(),
            plain,
            ..RouteRequest::tcp(target.port).from_client(client)
        };
        routing::route(&self.reader.load(), &target.service, &request, draw)
    }

    /// Whether `cluster` asks for the address of who connects to this. Nobody else is told it.
    #[must_use]
    pub fn asks_for_client(&self, cluster: &ClusterName, target: &Target) -> bool {
        let snapshot = self.reader.load();
        let part = snapshot.import(&target.service).and_then(|import| import.part(Some(cluster)));
        part.is_some_and(|part| part.record.proxy_protocol.contains(&target.port))
    }

    /// Whether any of the candidates can be tried now: peers need a link.
    #[must_use]
    pub fn can_try(&self, routed: &Routed) -> bool {
        let has_link = |cluster| self.link(cluster, &[]).is_some();
        routed.route.candidates.iter().any(|candidate| candidate.cluster.as_ref().is_none_or(has_link))
    }

    fn unknown(&self) -> SourceIdentity {
        SourceIdentity::unknown(self.cluster.clone())
    }

    /// The link that a new stream to `cluster` takes, other than those `tried`: of its usable links, those to other
    /// replicas first, then those acknowledged lately, the one with the fewest streams, so that replicas of a peer share
    /// the work. If there is none, one that drains.
    #[must_use]
    pub fn link(&self, cluster: &ClusterName, tried: &[Link]) -> Option<Link> {
        let links = self.tunnel.get()?.links();
        let untried = |link: &&Link| !tried.iter().any(|other| other.is(link));
        let again = |link: &Link| tried.iter().any(|other| other.replica() == link.replica());
        let usable = links.to(cluster.as_str()).iter().filter(|link| link.is_usable()).filter(untried);
        let leaving = links.leaving_to(cluster.as_str()).iter().filter(|link| link.is_leaving()).filter(untried);
        let best = usable.min_by_key(|link| (again(link), !link.is_fresh(), link.in_flight()));
        best.or_else(|| leaving.min_by_key(|link| (again(link), link.in_flight()))).cloned()
    }

    /// The link for a stream that is expected to move much, if there is one for those.
    #[must_use]
    pub fn bulk_link(&self, cluster: &ClusterName, header: &StreamHeader) -> Option<Link> {
        self.tunnel.get()?.bulk_link(cluster.as_str(), header)
    }

    /// An endpoint of this cluster for a local connection.
    ///
    /// # Errors
    /// [`PickError`]
    pub fn pick_local(
        &self,
        candidate: &Candidate,
        target: &Target,
        routed: &Routed,
        avoid: &[EndpointId],
    ) -> Result<Picked, PickError> {
        let request = PickRequest {
            protocol: routed.protocol,
            endpoint: candidate.endpoint.as_ref(),
            affinity: routed.route.affinity,
            plain: routed.protocol == Protocol::Tcp && routed.source.identity.is_none() && !routed.tls,
            avoid,
            ..PickRequest::tcp(target.port, &candidate.subset)
        };
        self.pick(&target.service, &request)
    }

    /// An endpoint of this cluster for a stream of a peer.
    ///
    /// # Errors
    /// [`PickError`]
    pub fn pick_exported(
        &self,
        service: &ServiceKey,
        header: &ServiceHeader,
        endpoint: Option<&EndpointId>,
        avoid: &[EndpointId],
    ) -> Result<Picked, PickError> {
        let subset = header.subset.iter().map(|(key, value)| (Arc::clone(key), Arc::clone(value))).collect();
        // Who has a sidecar of ours has proved who it is. Others speak the TLS of one only if the sender has seen it.
        let protocol = if header.flow.is_some() { Protocol::Udp } else { Protocol::Tcp };
        let plain = protocol == Protocol::Tcp && header.source.identity.is_none() && !header.tls;
        let affinity = header.affinity;
        let request =
            PickRequest { protocol, endpoint, affinity, avoid, plain, ..PickRequest::tcp(header.port, &subset) };
        self.pick(service, &request)
    }

    pub(crate) fn pick(&self, service: &ServiceKey, request: &PickRequest<'_>) -> Result<Picked, PickError> {
        let snapshot = self.reader.load();
        let local = snapshot.local(service).ok_or(PickError::NoEndpoints)?;
        self.failing.with(|failing| {
            let request = PickRequest { failing, ..*request };
            let endpoint = routing::pick_endpoint(local, &request, |id| self.in_flight.of(id), draw)?;
            let is_failing = failing.is_some_and(|failing| failing.contains(&endpoint.endpoint.id));
            let cut =
                (endpoint.endpoint.tls.is_mutual()).then(|| self.deliveries.to(endpoint.endpoint.identity.as_ref()));
            let port = PortKey { number: request.port, protocol: request.protocol };
            let proxy_protocol = local.record.proxy_protocol.contains(&request.port);
            Ok(picked(endpoint, port, is_failing, cut, proxy_protocol))
        })
    }

    /// Counts that something else is tried instead of `candidate`.
    pub fn note_retry(&self, candidate: &Candidate) {
        if let Some(cluster) = &candidate.cluster {
            self.telemetry.metrics.stream_retried(&Arc::from(cluster));
        }
    }

    /// Whether a stream of a peer may use a service of this cluster.
    #[must_use]
    pub fn authorize(&self, snapshot: &Snapshot, source: &SourceIdentity, service: &ServiceKey) -> Verdict {
        access::authorize(snapshot, source, service)
    }
}

/// The header of the stream that tries `candidate` for a `client` that its service asks for.
#[must_use]
pub fn header(
    routed: &Routed,
    target: &Target,
    candidate: &Candidate,
    client: Option<ClientAddress>,
) -> Option<StreamHeader> {
    service_header(routed, target, candidate, client).map(StreamHeader::Service)
}

/// As [`header`]; the flow, if it is to be one, is the link's to name.
#[must_use]
pub fn service_header(
    routed: &Routed,
    target: &Target,
    candidate: &Candidate,
    client: Option<ClientAddress>,
) -> Option<ServiceHeader> {
    let label = |name: &eastway_model::Label| Label::parse(name.as_str()).ok();
    let SourceIdentity { cluster: _, namespace, service_account, identity } = &routed.source;
    Some(ServiceHeader {
        namespace: label(&target.service.namespace)?,
        service: label(&target.service.name)?,
        port: target.port,
        subset: candidate.subset.iter().map(|(key, value)| (Arc::clone(key), Arc::clone(value))).collect(),
        endpoint: candidate.endpoint.as_ref().and_then(|id| EndpointRef::parse(id.as_str()).ok()),
        source: Source {
            namespace: namespace.as_ref().and_then(label),
            service_account: service_account.as_ref().and_then(label),
            identity: identity.as_ref().map(|identity| Arc::from(identity.to_string())),
        },
        traceparent: None,
        affinity: routed.route.affinity,
        tls: routed.tls,
        client,
        flow: None,
    })
}

fn picked(
    endpoint: &LocalEndpoint,
    port: PortKey,
    is_failing: bool,
    cut: Option<CancellationToken>,
    proxy_protocol: bool,
) -> Picked {
    let target = endpoint.target_ports.get(&port).copied().unwrap_or(port.number.get());
    Picked {
        endpoint: endpoint.endpoint.id.clone(),
        address: SocketAddr::new(endpoint.address, target),
        version: endpoint.endpoint.subset.get("version").cloned(),
        is_failing,
        cut,
        proxy_protocol,
    }
}

/// A number below `below`, all equally likely.
fn draw(below: u64) -> u64 {
    fastrand::u64(..below.max(1))
}

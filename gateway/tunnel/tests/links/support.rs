//! Clouds to test with: a CA each, gateways on loopback, and a handler that does what the service's name says.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::{Clock, IdentityStore, PeerTrust, SpiffeId, TrustStore};
use eastway_tunnel::flow::{FlowSender, FlowSink, Scratch};
use eastway_tunnel::header::{FederationHeader, Label, ServiceHeader, Source, StreamHeader};
use eastway_tunnel::transport::BoxFuture;
use eastway_tunnel::transport::memory::MemoryNetwork;
use eastway_tunnel::{
    AcceptedStream, HostPort, Link, LinkInfo, LinkKeys, PeerTarget, ReplicaId, ResetCode, StreamHandler, TcpWay,
    Timing, TransportKind, TransportPolicy, Tunnel, TunnelConfig, TunnelLimits, TunnelStream, World,
};
use tokio::time::Instant;

/// Longest wait for anything that is to happen; generous, because other work may hold both cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster: its CA, and what its gateways share.
pub(crate) struct Cloud {
    pub(crate) name: Arc<str>,
    pub(crate) ca: Ca,
    pub(crate) trust: Arc<TrustStore>,
    pub(crate) limits: TunnelLimits,
    pub(crate) timing: Timing,
    pub(crate) world: World,
    pub(crate) leaf_ttl: Duration,
    pub(crate) folder: tempfile::TempDir,
}

impl Cloud {
    pub(crate) fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(&folder.path().join("ca"), &InitOptions::new(&format!("{name}.example"))).unwrap();
        Self {
            name: name.into(),
            ca,
            trust: TrustStore::new(Vec::new()).unwrap(),
            // Who wants lanes says so: most tests count what is dialled.
            limits: TunnelLimits { socket_buffer: 1 << 20, workers: Some(1), ..TunnelLimits::default() },
            timing: Timing::default(),
            world: World::default(),
            leaf_ttl: Duration::from_secs(3_600),
            folder,
        }
    }

    pub(crate) fn id(&self) -> SpiffeId {
        SpiffeId::gateway(&format!("{}.example", self.name)).unwrap()
    }

    /// How others know this cloud.
    pub(crate) fn as_peer(&self) -> PeerTrust {
        PeerTrust {
            name: Arc::clone(&self.name),
            gateway: self.id(),
            pins: vec![self.ca.pin()],
            bundle: Vec::new(),
            crls: Vec::new(),
        }
    }

    pub(crate) fn trusts(&self, others: &[&Self]) {
        self.trust.replace(others.iter().map(|other| other.as_peer()).collect()).unwrap();
    }

    pub(crate) fn identity(&self) -> eastway_identity::Identity {
        self.ca.issue_identity(&self.id(), self.leaf_ttl, (self.world.clock)()).unwrap()
    }

    pub(crate) fn config(&self, listen: SocketAddr) -> TunnelConfig {
        TunnelConfig {
            listen,
            cluster: Arc::clone(&self.name),
            replica: ReplicaId::random().unwrap(),
            predecessors: Arc::default(),
            replicas: None,
            quic_lb: None,
            keys: self.ca.link_keys(),
            limits: self.limits,
            timing: self.timing,
            software_version: "test".into(),
        }
    }

    /// A gateway of this cloud on a port of its own.
    pub(crate) fn gateway(&self) -> Gateway {
        self.gateway_with(self.config(any_port()))
    }

    pub(crate) fn gateway_with(&self, config: TunnelConfig) -> Gateway {
        let identity = IdentityStore::new(self.identity());
        let (trust, world) = (Arc::clone(&self.trust), self.world.clone());
        let handler = Arc::new(ByName);
        let replica = config.replica;
        let tunnel = Tunnel::bind_in(world, config, Arc::clone(&identity), trust, handler).unwrap();
        self.around(identity, replica, tunnel)
    }

    /// A gateway of this cloud in memory.
    pub(crate) fn gateway_in(&self, network: &MemoryNetwork, address: SocketAddr) -> Gateway {
        let identity = IdentityStore::new(self.identity());
        let (trust, world) = (Arc::clone(&self.trust), self.world.clone());
        let transport = network.transport(address, Arc::clone(&identity), Arc::clone(&trust), Arc::clone(&world.clock));
        let config = self.config(address);
        let replica = config.replica;
        let handler = Arc::new(ByName);
        let tunnel = Tunnel::with_transport(world, config, Arc::clone(&identity), trust, handler, transport);
        self.around(identity, replica, tunnel)
    }

    fn around(&self, identity: Arc<IdentityStore>, replica: ReplicaId, tunnel: Tunnel) -> Gateway {
        let (policy, way) = (TransportPolicy::Quic, TcpWay::default());
        Gateway { cloud: Arc::clone(&self.name), identity, replica, tunnel, policy, way }
    }
}

/// Keys that no other process has.
pub(crate) fn own_keys() -> LinkKeys {
    let mut keys = LinkKeys { reset: [0; 64], connection_id: [0; 64], token: [0; 64] };
    for key in [&mut keys.reset, &mut keys.connection_id, &mut keys.token] {
        key.fill_with(|| fastrand::u8(..));
    }
    keys
}

pub(crate) fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Two clouds that trust each other, with a gateway each; the first dials the second.
pub(crate) fn pair() -> (Cloud, Cloud) {
    let (a, b) = (Cloud::new("a"), Cloud::new("b"));
    a.trusts(&[&b]);
    b.trusts(&[&a]);
    (a, b)
}

/// What a test runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Memory,
    Quic,
    Tcp,
    /// TCP, where all streams share two connections.
    Shared,
}

impl Over {
    /// Whether streams are connections, or seem to be.
    pub(crate) fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Shared)
    }

    /// A gateway for each of two clouds; nobody knows the other yet.
    pub(crate) fn gateways(self, a: &Cloud, b: &Cloud) -> (Gateway, Gateway) {
        if self == Self::Memory {
            let network = MemoryNetwork::new(Duration::from_millis(1), Duration::from_secs(4));
            let host = |last: u8| SocketAddr::from(([10, 0, 0, last], 15_443));
            return (a.gateway_in(&network, host(1)), b.gateway_in(&network, host(2)));
        }
        let (mut a, mut b) = (a.gateway(), b.gateway());
        let policy = if self.is_tcp() { TransportPolicy::Tcp } else { TransportPolicy::Quic };
        (a.policy, b.policy) = (policy, policy);
        if self == Self::Shared {
            a.share(2);
            b.share(2);
        }
        (a, b)
    }

    /// A gateway for each of two clouds; the first has dialled the second.
    pub(crate) async fn linked(self, a: &Cloud, b: &Cloud) -> (Gateway, Gateway) {
        let (a, b) = self.gateways(a, b);
        b.knows(&[("a", &[])]);
        a.knows(&[("b", &[b.tunnel.local_addr()])]);
        a.link_to("b").await;
        b.link_to("a").await;
        let kind = match self {
            Self::Memory => TransportKind::Memory,
            Self::Quic => TransportKind::Quic,
            Self::Tcp | Self::Shared => TransportKind::Tcp,
        };
        let carried = a.tunnel.status().into_iter().flat_map(|peer| peer.links).all(|link| link.transport == kind);
        assert!(carried, "not over {kind:?}");
        (a, b)
    }

    pub(crate) async fn linked_pair(self) -> (Gateway, Gateway) {
        let (a, b) = pair();
        self.linked(&a, &b).await
    }
}

pub(crate) struct Gateway {
    pub(crate) cloud: Arc<str>,
    pub(crate) identity: Arc<IdentityStore>,
    pub(crate) replica: ReplicaId,
    pub(crate) tunnel: Tunnel,
    /// For whom it gets to know.
    pub(crate) policy: TransportPolicy,
    pub(crate) way: TcpWay,
}

impl Gateway {
    /// Its links by TCP are to share so many connections each.
    pub(crate) fn share(&mut self, most: u8) {
        self.way.max_connections = NonZeroU8::new(most);
    }

    /// TCP connections that carry its links.
    pub(crate) fn connections(&self) -> usize {
        self.tunnel.status().iter().flat_map(|peer| &peer.links).map(|link| link.connections).sum()
    }

    pub(crate) fn knows(&self, peers: &[(&str, &[SocketAddr])]) {
        let target = |(name, addresses): &(&str, &[SocketAddr])| PeerTarget {
            name: Arc::from(*name),
            addresses: addresses.iter().map(|address| HostPort::from(*address)).collect(),
            via: None,
            transport: self.policy,
            tcp: self.way.clone(),
        };
        self.tunnel.set_peers(peers.iter().map(target).collect());
    }

    pub(crate) fn links_to(&self, peer: &str) -> Vec<Link> {
        self.tunnel.links().to(peer).to_vec()
    }

    /// Waits for a link to `peer`.
    pub(crate) async fn link_to(&self, peer: &str) -> Link {
        let what = format!("{} has a link to {peer}", self.cloud);
        until(&what, || self.links_to(peer).first().cloned()).await
    }

    pub(crate) async fn no_link_to(&self, peer: &str) {
        let what = format!("{} has no link to {peer}", self.cloud);
        until(&what, || self.links_to(peer).is_empty().then_some(())).await;
    }

    pub(crate) async fn open(&self, peer: &str, service: &str) -> TunnelStream {
        self.link_to(peer).await.open(&header(service)).await.unwrap()
    }

    pub(crate) fn is_up(&self, peer: &str) -> bool {
        self.tunnel.events().borrow().get(peer).is_some_and(|state| state.up)
    }
}

/// Looks until there is something, at most [`PATIENCE`] long.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Awaits `future`, at most [`PATIENCE`] long.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

pub(crate) fn header(service: &str) -> StreamHeader {
    StreamHeader::Service(ServiceHeader {
        namespace: Label::parse("test").unwrap(),
        service: Label::parse(service).unwrap(),
        port: NonZeroU16::MIN,
        subset: BTreeMap::new(),
        endpoint: None,
        source: Source::default(),
        traceparent: None,
        affinity: None,
        tls: false,
        client: None,
        flow: None,
    })
}

pub(crate) fn federation() -> StreamHeader {
    StreamHeader::Federation(FederationHeader { min_version: 1, max_version: 1 })
}

/// Serves streams as the name of the service says.
pub(crate) struct ByName;

impl StreamHandler for ByName {
    fn handle(&self, _link: LinkInfo, header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let name = match &header {
                StreamHeader::Service(header) => header.service.as_str().to_owned(),
                StreamHeader::Federation(_) | StreamHeader::Probe | StreamHeader::Bench(_) | StreamHeader::Relay(_) => {
                    "echo".to_owned()
                }
            };
            serve(&name, stream).await;
        })
    }
}

async fn serve(name: &str, mut stream: AcceptedStream) {
    match name {
        "refused" => return stream.reject(ResetCode::UpstreamRefused),
        "dropped" => return drop(stream),
        "panics" => panic!("a handler may panic"),
        "never" => {
            stream.aborted().await;
            return;
        }
        // As long as the endpoint is dialled.
        "late" => tokio::time::sleep(Duration::from_millis(1_500)).await,
        // Flows.
        "echo-flow" | "late-flow" => return echo_flow(name, stream).await,
        "three-flow" => {
            let received = Arc::new(Received::default());
            let mut flow = stream.accept_flow(Arc::clone(&received) as Arc<dyn FlowSink>).await.unwrap();
            tokio::select! {
                ended = flow.run() => panic!("{ended:?}"),
                () = until("three packets", || (received.len() == 3).then_some(())) => {}
            }
            return flow.end(ResetCode::UpstreamReset);
        }
        "ends-flow" => {
            let flow = stream.accept_flow(Arc::new(Received::default())).await.unwrap();
            return flow.end(ResetCode::UpstreamRefused);
        }
        // Says that it was reached with what it answers, or a moment later.
        "soon" | "soon-quiet" | "soon-ends" => return answer_soon(name, stream.accept_soon().unwrap()).await,
        _ => {}
    }
    let Ok(TunnelStream { mut send, mut recv }) = stream.accept().await else { return };
    match name {
        // Answers with what it gets.
        "echo" | "late" => {
            while let Ok(Some(chunk)) = recv.read().await {
                if send.write(chunk).await.is_err() {
                    return;
                }
            }
            send.finish();
        }
        // Speaks first.
        "greet" => {
            send.write(Bytes::from_static(b"220 ready\r\n")).await.ok();
            send.finish();
        }
        // Reads to the end, then answers as a small page.
        "page" => {
            while let Ok(Some(_)) = recv.read().await {}
            send.write(Bytes::from_static(&[7; 3_000])).await.ok();
            send.finish();
        }
        // Reads to the end, then says how much it was.
        "count" => {
            let mut bytes = 0;
            while let Ok(Some(chunk)) = recv.read().await {
                bytes += chunk.len();
            }
            send.write(bytes.to_string().into()).await.ok();
            send.finish();
        }
        // Never reads, and holds on until it is cut.
        "stalls" => {
            recv.aborted().await;
        }
        "resets" => send.reset(ResetCode::UpstreamReset),
        // Ends its own direction first, then reads the other to the end.
        "ends-first" => {
            send.finish();
            while let Ok(Some(_)) = recv.read().await {}
        }
        // Writes as long as anybody reads.
        "floods" => while send.write(Bytes::from_static(&[7; 65_536])).await.is_ok() {},
        // Stops reading, yet goes on to write.
        "stops" => {
            recv.stop(ResetCode::UpstreamReset);
            send.write(Bytes::from_static(b"last words")).await.ok();
            send.finish();
        }
        _ => panic!("no test service is called {name}"),
    }
}

async fn answer_soon(name: &str, TunnelStream { mut send, mut recv }: TunnelStream) {
    if name == "soon" {
        let question = recv.read().await.unwrap().unwrap();
        send.write(question).await.unwrap();
    }
    if name == "soon-quiet" {
        let held = std::future::poll_fn(|cx| {
            send.poll_held(cx);
            recv.poll_aborted(cx)
        });
        held.await;
    }
    send.finish();
}

async fn echo_flow(name: &str, stream: AcceptedStream) {
    if name == "late-flow" {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    let echo = Arc::new(Echo::default());
    let Ok(mut flow) = stream.accept_flow(Arc::clone(&echo) as Arc<dyn FlowSink>).await else { return };
    echo.back.set(flow.sender()).ok().unwrap();
    echo.deliver(&std::mem::take(&mut *echo.early.lock().unwrap()));
    flow.run().await.ok();
}

/// Sends every packet back.
#[derive(Default)]
struct Echo {
    back: OnceLock<FlowSender>,
    early: Mutex<Vec<Bytes>>,
}

impl FlowSink for Echo {
    fn deliver(&self, packets: &[Bytes]) {
        match self.back.get() {
            Some(back) => back.send(packets.iter().map(|packet| &packet[..]), &mut Scratch::default()),
            None => self.early.lock().unwrap().extend_from_slice(packets),
        }
    }
}

/// Keeps what comes.
#[derive(Default)]
pub(crate) struct Received(Mutex<Vec<Bytes>>);

impl Received {
    /// What came since the last time.
    pub(crate) fn take(&self) -> Vec<Bytes> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl FlowSink for Received {
    fn deliver(&self, packets: &[Bytes]) {
        self.0.lock().unwrap().extend_from_slice(packets);
    }
}

/// All that comes until the end.
pub(crate) async fn read_all(stream: &mut eastway_tunnel::RecvHalf) -> Result<Vec<u8>, eastway_tunnel::StreamError> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.read().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

/// A wall clock that goes with tokio's time, also when that is paused.
pub(crate) fn virtual_clock() -> Clock {
    let (start, epoch) = (SystemTime::now(), Instant::now());
    Arc::new(move || start + epoch.elapsed())
}

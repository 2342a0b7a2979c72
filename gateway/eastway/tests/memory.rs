//! What an idle connection costs each of the two gateways that carry it (design §11: at most 4 kB). A process of
//! its own: its allocator counts, thread by thread, and each gateway is a thread.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says what it measured")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use eastway::app::clock::Clock;
use eastway::app::exports::Exports;
use eastway::proxy::copy;
use eastway::proxy::dial::DialRules;
use eastway::proxy::inbound::Inbound;
use eastway::proxy::outbound::Target;
use eastway::proxy::vip::{Listeners, VipLimits, Wanted};
use eastway::router::Router;
use eastway::telemetry::{AccessMode, Telemetry};
use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::{Identity, IdentityStore, PeerTrust, SpiffeId, TrustStore};
use eastway_model::rules::{AccessPolicy, AccessRule, Match, NameFilter, PeerRules, Rules};
use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointGroup, EndpointId, Label, LocalChange, LocalEndpoint, LocalService,
    PeerChange, PeerState, PortNumber, Protocol, ServiceKey, ServicePort, ServiceRecord, Subset, TlsMode, UnixMillis,
};
use eastway_tunnel::{HostPort, PeerTarget, ReplicaId, Timing, Tunnel, TunnelConfig, TunnelLimits};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections before the first that is counted: they pay for the link and for first hash tables.
const WARM: usize = 250;
/// Connections that are counted. With the others they leave hash tables as empty as 10,000 do.
const COUNTED: usize = 1_000;
/// Bytes that each may cost the gateway where it comes in, and its owner. What the allocator adds is measured under
/// `bench/`: some 400 more.
const MOST: (i64, i64) = (3_000, 3_000);

#[test]
fn an_idle_connection_costs_each_gateway_little() {
    // Each connection has four ends in this process.
    let files = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: files, maximum: files }).unwrap();
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (a, b) = (Cloud::new("a"), Cloud::new("b"));
    let (trust_a, trust_b) = (a.as_peer(), b.as_peer());
    let mut b = Gateway::start(b, trust_a, Part::Owner { endpoint: server.local_addr().unwrap() });
    let mut a = Gateway::start(a, trust_b, Part::Entrance { owner: b.address });
    let entrance = a.address;
    let connect = || {
        let mut client = TcpStream::connect(entrance).unwrap();
        client.write_all(b"x").unwrap();
        let (mut served, _) = server.accept().unwrap();
        served.read_exact(&mut [0]).unwrap();
        served.write_all(b"y").unwrap();
        client.read_exact(&mut [0]).unwrap();
        (client, served)
    };
    a.next();
    b.next();
    let warm: Vec<_> = (0..WARM).map(|_| connect()).collect();
    a.next();
    b.next();
    let counted: Vec<_> = (0..COUNTED).map(|_| connect()).collect();
    let (a, b) = (a.counted(), b.counted());
    println!("{a} bytes where it comes in, {b} at the owner");
    assert!(a <= MOST.0 && b <= MOST.1, "{a} bytes where it comes in, {b} at the owner");
    drop((warm, counted));
}

/// A gateway on a thread of its own.
struct Gateway {
    /// Where the other side is to connect to: links at the owner, clients at the entrance.
    address: SocketAddr,
    steps: mpsc::Receiver<oneshot::Sender<()>>,
    step: Option<oneshot::Sender<()>>,
    thread: JoinHandle<i64>,
}

impl Gateway {
    fn start(cloud: Cloud, peer: PeerTrust, part: Part) -> Self {
        let (started, start) = mpsc::channel();
        let (sender, steps) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut running = runtime.block_on(async { Running::new(&cloud, peer, &part) });
            started.send(running.address).unwrap();
            let until_next = || {
                let (next, step) = oneshot::channel();
                sender.send(next).unwrap();
                runtime.block_on(step).unwrap();
            };
            runtime.block_on(running.linked());
            until_next();
            let counted = allocation_counter::measure(until_next);
            drop(running);
            counted.bytes_current
        });
        let address = start.recv().unwrap();
        Self { address, steps, step: None, thread }
    }

    /// Returns when it is linked; the second time, when it counts.
    fn next(&mut self) {
        if let Some(step) = self.step.take() {
            step.send(()).unwrap();
        }
        self.step = Some(self.steps.recv().unwrap());
    }

    /// Bytes per connection since it counts.
    fn counted(mut self) -> i64 {
        self.step.take().unwrap().send(()).unwrap();
        self.thread.join().unwrap() / i64::try_from(COUNTED).unwrap()
    }
}

/// Which of the two gateways.
enum Part {
    Entrance { owner: SocketAddr },
    Owner { endpoint: SocketAddr },
}

struct Running {
    address: SocketAddr,
    tunnel: Arc<Tunnel>,
    peer: Arc<str>,
    _writer: Writer,
    _listeners: Listeners,
    stop: CancellationToken,
}

impl Running {
    fn new(cloud: &Cloud, peer: PeerTrust, part: &Part) -> Self {
        let (writer, reader) = store(&cloud.name, &peer.name, part);
        let stop = CancellationToken::new();
        let telemetry = Telemetry::new(AccessMode::default());
        let long = Duration::from_secs(3_600);
        let idle = copy::Limits { idle: long, half_closed: long };
        let rules = DialRules { allow_loopback: true, ..DialRules::default() };
        let router = Arc::new(Router::new(reader.clone(), rules, idle, telemetry.clone()));
        let limits = eastway_federation::Limits::default();
        let exports = Exports::new(reader, limits, 0, Clock::start(), telemetry, stop.clone());
        let inbound = Arc::new(Inbound::new(router.clone(), Arc::new(exports), 0));
        let (name, target) = (peer.name.clone(), peer.name.clone());
        let trust = TrustStore::new(vec![peer]).unwrap();
        let tunnel =
            Arc::new(Tunnel::bind(cloud.tunnel(), IdentityStore::new(cloud.identity()), trust, inbound).unwrap());
        router.set_tunnel(tunnel.clone());
        let mut listeners = Listeners::new(router, VipLimits::within(u64::MAX), TaskTracker::new(), stop.clone());
        let (address, addresses) = match part {
            Part::Owner { .. } => (tunnel.local_addr(), Vec::new()),
            Part::Entrance { owner } => (listen(&mut listeners), vec![HostPort::from(*owner)]),
        };
        tunnel.set_peers(vec![PeerTarget { name: target, addresses, ..PeerTarget::default() }]);
        Self { address, tunnel, peer: name, _writer: writer, _listeners: listeners, stop }
    }

    async fn linked(&mut self) {
        let mut events = self.tunnel.events();
        events.wait_for(|peers| peers.get(&*self.peer).is_some_and(|peer| peer.up)).await.unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A listener on a port that was free a moment ago.
fn listen(listeners: &mut Listeners) -> SocketAddr {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let target = Target { service: echo(), port: port(), cluster: None, subset: None, endpoint: None };
    let unbound = listeners.set(&echo(), [((Protocol::Tcp, address), Wanted { target, peer: None })].into());
    assert!(unbound.failed.is_empty() && unbound.over_limit.is_empty(), "{unbound:?}");
    address
}

/// What the gateway knows: its own service, or that of its peer.
fn store(cluster: &str, peer: &str, part: &Part) -> (Writer, Reader) {
    let (cluster, peer) = (label(cluster), label(peer));
    let (mut writer, reader) = Writer::new(cluster);
    writer.await_registries([]);
    let all = NameFilter::of_namespace(&echo().namespace).unwrap();
    let trust_domain = format!("{peer}.example");
    let rules =
        PeerRules { import: all.clone(), export: all, ..PeerRules::new(peer.clone(), &trust_domain, UnixMillis(0)) };
    let allow = AccessRule { cluster: Match::Any, namespace: Match::Any, service_accounts: vec![Match::Any] };
    let access = AccessPolicy {
        name: Arc::from("all"),
        namespace: echo().namespace,
        namespaces: Vec::new(),
        services: vec![Match::Any],
        dry_run: false,
        allow: vec![allow],
    };
    let peers = [(peer.clone(), Arc::new(rules))].into();
    writer.set_rules(Arc::new(Rules { peers, access: vec![Arc::new(access)], ..Rules::default() }));
    let tcp = ServicePort { name: None, number: port(), protocol: Protocol::Tcp, app_protocol: None };
    let mut record = ServiceRecord::new(echo(), vec![tcp]);
    let changes = match part {
        Part::Owner { endpoint } => {
            let service = LocalService::new(record, true, [local_endpoint(*endpoint)]);
            vec![Change::Local { registry: label("hosts"), change: LocalChange::Upsert(Arc::new(service)) }]
        }
        Part::Entrance { .. } => {
            record.groups = vec![EndpointGroup {
                zone: None,
                subset: subset(),
                ready: 1,
                draining: 0,
                weight: 100,
                identities: Vec::new(),
                tls: TlsMode::None,
            }];
            let changes = [PeerChange::State(PeerState::Up), PeerChange::Upsert(Arc::new(record))];
            changes.into_iter().map(|change| Change::Peer { cluster: peer.clone(), change }).collect()
        }
    };
    assert!(writer.apply(changes, UnixMillis(0)));
    (writer, reader)
}

fn local_endpoint(address: SocketAddr) -> LocalEndpoint {
    let endpoint = Endpoint {
        id: EndpointId::parse("echo-7d9c5b8f64-00001").unwrap(),
        hostname: None,
        subset: subset(),
        zone: None,
        condition: EndpointCondition::READY,
        weight: 100,
        identity: None,
        tls: TlsMode::None,
    };
    LocalEndpoint {
        endpoint,
        address: address.ip(),
        service_account: None,
        target_ports: [(port().into(), address.port())].into(),
    }
}

fn subset() -> Subset {
    [(Arc::from("version"), Arc::from("v1"))].into()
}

fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

fn echo() -> ServiceKey {
    ServiceKey::parse("shop", "echo").unwrap()
}

fn port() -> PortNumber {
    PortNumber::new(80).unwrap()
}

/// A cluster: its name and its CA.
struct Cloud {
    name: String,
    ca: Ca,
    _folder: tempfile::TempDir,
}

impl Cloud {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::init(&folder.path().join("ca"), &InitOptions::new(&format!("{name}.example"))).unwrap();
        Self { name: name.to_owned(), ca, _folder: folder }
    }

    fn id(&self) -> SpiffeId {
        SpiffeId::gateway(&format!("{}.example", self.name)).unwrap()
    }

    fn as_peer(&self) -> PeerTrust {
        PeerTrust {
            name: Arc::from(self.name.as_str()),
            gateway: self.id(),
            pins: vec![self.ca.pin()],
            bundle: Vec::new(),
            crls: Vec::new(),
        }
    }

    fn identity(&self) -> Identity {
        self.ca.issue_identity(&self.id(), Duration::from_secs(3_600), SystemTime::now()).unwrap()
    }

    fn tunnel(&self) -> TunnelConfig {
        TunnelConfig {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            cluster: Arc::from(self.name.as_str()),
            replica: ReplicaId::random().unwrap(),
            predecessors: Arc::default(),
            keys: self.ca.link_keys(),
            replicas: None,
            quic_lb: None,
            limits: TunnelLimits::default(),
            timing: Timing::default(),
            software_version: Arc::from("test"),
        }
    }
}

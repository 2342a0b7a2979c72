//! Connections that stand still, are cut, or last: real sockets on one side, streams of a link in memory on the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::Bytes;
use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::{IdentityStore, PeerTrust, SpiffeId, TrustStore, system_clock};
use eastway_model::{Label, ServiceKey};
use eastway_tunnel::header::{self, ServiceHeader, Source, StreamHeader};
use eastway_tunnel::transport::BoxFuture;
use eastway_tunnel::transport::memory::MemoryNetwork;
use eastway_tunnel::{
    AcceptedStream, HostPort, LinkInfo, PeerTarget, ReplicaId, ResetCode, SendHalf, StreamHandler, Timing, Tunnel,
    TunnelConfig, TunnelLimits, TunnelStream, World,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::read::{LargeReads, MIN_READ};
use super::*;
use crate::proxy::connection::{Connection, Outcome};
use crate::telemetry::{AccessMode, Telemetry};

/// Longest wait for anything that is to happen.
const PATIENCE: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_secs(3_600);
/// Short enough to wait for, long enough for a busy machine to move a byte in.
const SHORT: Duration = Duration::from_millis(600);

/// A connection that is copied: its client, and the other end of its stream.
struct Rig {
    client: TcpStream,
    far: TunnelStream,
    moved: Arc<Transferred>,
    telemetry: Telemetry,
    copying: tokio::task::JoinHandle<Result<(), CopyError>>,
    _tunnels: [Tunnel; 2],
}

impl Rig {
    async fn new(idle: Duration, half_closed: Duration) -> Self {
        let (tunnels, mut near, far) = streams().await;
        let (client, socket) = sockets().await;
        let (moved, telemetry) = (Arc::new(Transferred::default()), Telemetry::new(AccessMode::Off));
        let (carried, counted) = (Arc::clone(&moved), telemetry.clone());
        let copying = tokio::spawn(async move {
            let service = ServiceKey::parse("shop", "web").unwrap();
            let mut connection = Connection::outbound(&Label::parse("a").unwrap(), &service, 80, any_port());
            connection.opened(&counted);
            let watch = &mut Watch {
                limits: Limits { idle, half_closed },
                count: &mut || connection.count(&carried),
                cut: None,
            };
            let result = with_stream(&mut Local::new(socket), &mut near, &carried, watch).await;
            let (outcome, result) = match result {
                Err(CopyError::Idle(kind, limit)) => {
                    (Outcome::Ended(Err(CopyError::Idle(kind, limit))), Err(CopyError::Idle(kind, limit)))
                }
                result => (Outcome::Ended(Ok(())), result),
            };
            connection.closed(&counted, &outcome, &carried);
            result
        });
        Self { client, far, moved, telemetry, copying, _tunnels: tunnels }
    }

    async fn end(self) -> Result<(), CopyError> {
        timeout(PATIENCE, self.copying).await.expect("the copying ends").unwrap()
    }

    /// Waits until bytes wait in `lane` that nobody takes.
    async fn blocked(lane: impl Fn(&Transferred) -> &Lane, moved: &Transferred) {
        let start = Instant::now();
        loop {
            let given = lane(moved).given();
            sleep(Duration::from_millis(100)).await;
            if lane(moved).given() == given && lane(moved).taken() != given {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "it never blocks");
        }
    }
}

fn any_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(any_port()).await.unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

struct HandOver(mpsc::UnboundedSender<AcceptedStream>);

impl StreamHandler for HandOver {
    fn handle(&self, _link: LinkInfo, _header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()> {
        self.0.send(stream).ok();
        Box::pin(async {})
    }
}

/// Two gateways, and both ends of a stream between them.
async fn streams() -> ([Tunnel; 2], TunnelStream, TunnelStream) {
    let folder = tempfile::tempdir().unwrap();
    let cas = ["a", "b"]
        .map(|name| Ca::init(&folder.path().join(name), &InitOptions::new(&format!("{name}.example"))).unwrap());
    let id = |name: &str| SpiffeId::gateway(&format!("{name}.example")).unwrap();
    let network = MemoryNetwork::new(Duration::ZERO, Duration::from_secs(4));
    let (sender, mut accepted) = mpsc::unbounded_channel();
    let tunnel = |own: usize, other: usize| {
        let names = ["a", "b"];
        let identity = cas[own].issue_identity(&id(names[own]), NEVER, std::time::SystemTime::now()).unwrap();
        let identity = IdentityStore::new(identity);
        let trust = TrustStore::new(vec![PeerTrust {
            name: names[other].into(),
            gateway: id(names[other]),
            pins: vec![cas[other].pin()],
            bundle: Vec::new(),
            crls: Vec::new(),
        }]);
        let (trust, listen) = (trust.unwrap(), SocketAddr::from(([10, 0, 0, if own == 0 { 1 } else { 2 }], 15_443)));
        let transport = network.transport(listen, Arc::clone(&identity), Arc::clone(&trust), system_clock());
        let config = TunnelConfig {
            listen,
            cluster: names[own].into(),
            replica: ReplicaId::random().unwrap(),
            predecessors: Arc::default(),
            replicas: None,
            quic_lb: None,
            keys: cas[own].link_keys(),
            limits: TunnelLimits::default(),
            timing: Timing::default(),
            software_version: "test".into(),
        };
        let handler = Arc::new(HandOver(sender.clone()));
        Tunnel::with_transport(World::default(), config, identity, trust, handler, transport)
    };
    let (a, b) = (tunnel(0, 1), tunnel(1, 0));
    b.set_peers(vec![PeerTarget { name: "a".into(), addresses: Vec::new(), ..PeerTarget::default() }]);
    a.set_peers(vec![PeerTarget {
        name: "b".into(),
        addresses: vec![HostPort::from(b.local_addr())],
        ..PeerTarget::default()
    }]);
    let start = Instant::now();
    let link = loop {
        if let Some(link) = a.links().to("b").first().cloned() {
            break link;
        }
        assert!(start.elapsed() < PATIENCE, "no link");
        sleep(Duration::from_millis(2)).await;
    };
    let mut near = link.open(&service()).await.unwrap();
    let far = timeout(PATIENCE, accepted.recv()).await.unwrap().unwrap().accept().await.unwrap();
    near.accepted().await.unwrap();
    ([a, b], near, far)
}

fn service() -> StreamHeader {
    StreamHeader::Service(ServiceHeader {
        namespace: header::Label::parse("shop").unwrap(),
        service: header::Label::parse("web").unwrap(),
        port: NonZeroU16::MIN,
        subset: std::collections::BTreeMap::new(),
        endpoint: None,
        source: Source::default(),
        traceparent: None,
        affinity: None,
        tls: false,
        client: None,
        flow: None,
    })
}

/// Sends for as long as anybody takes it.
fn flood(mut send: SendHalf) -> tokio::task::JoinHandle<SendHalf> {
    tokio::spawn(async move {
        while let Ok(written) = timeout(SHORT, send.write(Bytes::from_static(&[7; 65_536]))).await {
            written.unwrap();
        }
        send
    })
}

#[tokio::test]
async fn a_reset_of_the_peer_ends_a_connection_whose_client_does_not_read() {
    let mut rig = Rig::new(NEVER, NEVER).await;
    let (send, _recv) = rig.far.split();
    let flooding = flood(send);
    Rig::blocked(|moved| &moved.to_local, &rig.moved).await;
    flooding.await.unwrap().reset(ResetCode::UpstreamReset);
    let ended = timeout(PATIENCE, &mut rig.copying).await.expect("the reset is seen beside the write").unwrap();
    assert!(matches!(ended, Err(CopyError::Stream(StreamError::Reset(ResetCode::UpstreamReset)))), "{ended:?}");
    let mut all = Vec::new();
    let error = timeout(PATIENCE, rig.client.read_to_end(&mut all)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "a part is not taken for the whole");
}

#[tokio::test]
async fn a_client_that_resets_while_the_peer_takes_nothing_ends_the_stream() {
    let mut rig = Rig::new(NEVER, NEVER).await;
    let block = [7; 65_536];
    while let Ok(written) = timeout(Duration::from_millis(300), rig.client.write(&block)).await {
        written.unwrap();
    }
    Rig::blocked(|moved| &moved.from_local, &rig.moved).await;
    reset_unless_done(&rig.client);
    drop(rig.client);
    let ended = timeout(PATIENCE, &mut rig.copying).await.expect("the reset is seen beside the write").unwrap();
    assert!(matches!(ended, Err(CopyError::Local(_))), "{ended:?}");
    assert_eq!(rig.far.recv.aborted().await, StreamError::Reset(ResetCode::UpstreamReset));
}

/// What an application sees when this process ends or one of its tasks does: never the end of the data.
#[tokio::test]
async fn a_copy_that_is_dropped_resets_the_connection() {
    let mut rig = Rig::new(NEVER, NEVER).await;
    rig.far.send.write(Bytes::from_static(b"a part")).await.unwrap();
    let mut part = [0; 6];
    timeout(PATIENCE, rig.client.read_exact(&mut part)).await.unwrap().unwrap();
    rig.copying.abort();
    let error = timeout(PATIENCE, rig.client.read(&mut part)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(rig.far.recv.read().await, Err(StreamError::Reset(ResetCode::Cancelled)));
}

#[tokio::test]
async fn a_connection_that_ends_in_order_is_not_reset() {
    let mut rig = Rig::new(NEVER, NEVER).await;
    rig.far.send.write(Bytes::from_static(b"all of it")).await.unwrap();
    rig.far.send.finish();
    let mut all = Vec::new();
    timeout(PATIENCE, rig.client.read_to_end(&mut all)).await.unwrap().unwrap();
    assert_eq!(all, b"all of it");
    rig.client.shutdown().await.unwrap();
    timeout(PATIENCE, &mut rig.copying).await.unwrap().unwrap().unwrap();
    let late = timeout(PATIENCE, rig.client.read(&mut [0])).await.unwrap();
    assert!(matches!(late, Ok(0)), "{late:?}");
}

#[tokio::test]
async fn p10_a_connection_without_a_byte_ends_by_its_limit_and_is_told_as_idle() {
    let mut rig = Rig::new(SHORT, NEVER).await;
    let ended = timeout(PATIENCE, &mut rig.copying).await.unwrap().unwrap();
    assert!(matches!(ended, Err(CopyError::Idle(Idle::Quiet, SHORT))), "{ended:?}");
    assert_eq!(rig.far.recv.read().await, Err(StreamError::Reset(ResetCode::IdleTimeout)), "the peer is told");
    let page = rig.telemetry.metrics.encode().unwrap();
    let closed = page.lines().find(|line| line.starts_with("istio_tcp_connections_closed_total")).unwrap();
    assert!(closed.contains("response_flags=\"SI\""), "{closed}");
}

#[tokio::test]
async fn p10_a_peer_cannot_keep_half_of_a_connection_for_ever() {
    let mut rig = Rig::new(NEVER, SHORT).await;
    rig.client.shutdown().await.unwrap();
    assert_eq!(rig.far.recv.read().await, Ok(None), "the end is handed on");
    // As long as bytes come it lives: twice the limit.
    let start = Instant::now();
    while start.elapsed() < 2 * SHORT {
        rig.far.send.write(Bytes::from_static(b"x")).await.unwrap();
        sleep(SHORT / 6).await;
    }
    assert!(!rig.copying.is_finished(), "{:?}", rig.end().await);
    let ended = rig.end().await;
    assert!(matches!(ended, Err(CopyError::Idle(Idle::HalfClosed, SHORT))), "{ended:?}");
}

#[tokio::test]
async fn p10_bytes_that_a_peer_never_takes_end_the_connection_though_others_move() {
    let mut rig = Rig::new(SHORT, NEVER).await;
    let (mut send, _recv) = rig.far.split();
    let (mut from_client, mut to_client) = rig.client.split();
    let upload = async {
        let block = [7; 65_536];
        while to_client.write(&block).await.is_ok() {}
    };
    let trickle = async {
        while send.write(Bytes::from_static(b"x")).await.is_ok() {
            sleep(SHORT / 10).await;
        }
    };
    let read = async { while from_client.read(&mut [0; 16]).await.is_ok_and(|read| read > 0) {} };
    let ended = tokio::select! {
        ended = timeout(PATIENCE, &mut rig.copying) => ended.expect("it ends").unwrap(),
        ((), (), ()) = async { tokio::join!(upload, trickle, read) } => rig.copying.await.unwrap(),
    };
    assert!(matches!(ended, Err(CopyError::Idle(Idle::Blocked, SHORT))), "{ended:?}");
}

#[tokio::test]
async fn bytes_are_counted_while_the_connection_lasts() {
    let mut rig = Rig::new(8 * SHORT, NEVER).await;
    rig.client.write_all(&[7; 1_000]).await.unwrap();
    rig.far.send.write(Bytes::from_static(&[7; 300])).await.unwrap();
    let counted = |name: &str| {
        let page = rig.telemetry.metrics.encode().unwrap();
        let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok())
    };
    let start = Instant::now();
    while counted("istio_tcp_received_bytes_total") != Some(1_000) || counted("istio_tcp_sent_bytes_total") != Some(300)
    {
        assert!(!rig.copying.is_finished(), "{:?}", rig.end().await);
        assert!(start.elapsed() < 8 * SHORT, "not counted while it lasts");
        sleep(Duration::from_millis(20)).await;
    }
    // The end counts nothing twice.
    rig.client.shutdown().await.unwrap();
    rig.far.send.finish();
    let telemetry = rig.telemetry.clone();
    rig.end().await.unwrap();
    let page = telemetry.metrics.encode().unwrap();
    let line = page.lines().find(|line| line.starts_with("istio_tcp_received_bytes_total")).unwrap();
    assert!(line.ends_with(" 1000"), "{line}");
}

#[tokio::test]
async fn what_has_come_is_read_without_waiting_and_what_has_not_is_not_waited_for() {
    let (mut client, socket) = sockets().await;
    let local = Local::new(socket);
    assert_eq!(local.read_now().unwrap(), None, "a client that waits for the server");
    client.write_all(&[b'x'; 5_000]).await.unwrap();
    client.shutdown().await.unwrap();
    // Loopback hands over within the system call of the writer.
    assert_eq!(local.read_now().unwrap().map(|chunk| chunk.len()), Some(MIN_READ));
    assert_eq!(local.read_now().unwrap().map(|chunk| chunk.len()), Some(5_000 - MIN_READ));
    assert_eq!(local.read_now().unwrap(), None, "the end is not taken");
    let Local { tcp, mut reader, .. } = local;
    assert_eq!(reader.read(&tcp).await.unwrap(), None, "it is still there");
}

#[tokio::test]
async fn p9_read_buffers_of_all_connections_together_are_bounded() {
    let large = LargeReads { held: AtomicU64::new(0), most: 100_000 };
    let (mut client, socket) = sockets().await;
    let writer = tokio::spawn(async move { while client.write_all(&[7; 65_536]).await.is_ok() {} });
    let mut reader = ChunkReader::default();
    let (mut chunks, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        sleep(Duration::from_millis(5)).await;
        let read = poll_fn(|cx| reader.poll_read_large(cx, &socket, &large)).await.unwrap().unwrap();
        bytes.push(read.chunks.len());
        chunks.push(read);
    }
    assert!(bytes.iter().any(|bytes| *bytes > MIN_READ), "{bytes:?}");
    assert!(bytes.iter().sum::<usize>() <= 100_000 + 20 * MIN_READ, "{bytes:?}");
    drop(chunks);
    assert_eq!(large.held.load(Ordering::Relaxed), 0, "all is given back");
    drop(socket);
    writer.await.unwrap();
}

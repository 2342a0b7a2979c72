//! Links over TLS on TCP: hostile and broken connections, and a balancer before several gateways.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use eastway_identity::{IdentityStore, tls};
use eastway_tunnel::{ResetCode, StreamError, TransportPolicy};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::support::{Cloud, Gateway, Over, header, pair, read_all, soon, until};

type Raw = StreamOwned<ClientConnection, std::net::TcpStream>;

/// How often `b` has counted a handshake that came to nothing by `reason`.
pub(crate) fn failures(b: &Gateway, reason: &str) -> u64 {
    b.tunnel.counters().handshake_failures.get(reason).copied().unwrap_or(0)
}

/// A gateway that takes links by TCP.
pub(crate) fn acceptor(cloud: &Cloud) -> Gateway {
    let gateway = cloud.gateway();
    gateway.knows(&[("a", &[])]);
    gateway
}

fn tcp_client(a: &Cloud) -> Arc<ClientConfig> {
    let identity = IdentityStore::new(a.identity());
    tls::tcp_client_config(identity, Arc::clone(&a.trust), Arc::clone(&a.world.clock), "b".into()).unwrap()
}

/// Says `bytes` over TLS and gives what is answered at first.
pub(crate) async fn say(config: Arc<ClientConfig>, to: SocketAddr, bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let said = tokio::task::spawn_blocking(move || {
        let stream = std::net::TcpStream::connect(to)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let name = ServerName::try_from(tls::SERVER_NAME).unwrap();
        let mut raw: Raw = StreamOwned::new(ClientConnection::new(config, name).unwrap(), stream);
        raw.write_all(&bytes)?;
        let mut answer = vec![0; 16];
        let read = raw.read(&mut answer)?;
        answer.truncate(read);
        Ok(answer)
    });
    said.await.unwrap()
}

#[tokio::test]
async fn u4_a_connection_that_says_nothing_is_closed_in_time() {
    let (_a, mut b) = pair();
    b.timing.handshake = Duration::from_millis(300);
    let b = acceptor(&b);
    let stream = TcpStream::connect(b.tunnel.local_addr()).await.unwrap();
    let begun = Instant::now();
    stream.readable().await.unwrap();
    assert!(matches!(stream.try_read(&mut [0]), Ok(0) | Err(_)), "it says something");
    println!("closed after {:?}", begun.elapsed());
    until("it is counted", || (failures(&b, "TIMEOUT") == 1).then_some(())).await;
}

#[tokio::test]
async fn u1_handshakes_beyond_the_cap_are_closed_at_once() {
    let (_a, mut b) = pair();
    b.limits.handshakes = 2;
    let b = acceptor(&b);
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(TcpStream::connect(b.tunnel.local_addr()).await.unwrap());
    }
    until("three are counted", || (failures(&b, "TOO_MANY") == 3).then_some(())).await;
}

#[tokio::test]
async fn u9_only_the_protocol_of_links_by_tcp_is_spoken() {
    let (a, b) = pair();
    let b = acceptor(&b);
    let identity = IdentityStore::new(a.identity());
    let other = tls::client_config(identity, Arc::clone(&a.trust), Arc::clone(&a.world.clock), "b".into()).unwrap();
    assert!(say(other, b.tunnel.local_addr(), vec![1]).await.is_err());
    until("it is counted", || (failures(&b, "ALPN") == 1).then_some(())).await;
    // Without TLS at all.
    let mut stream = TcpStream::connect(b.tunnel.local_addr()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    until("it is counted", || (failures(&b, "TRANSPORT") == 1).then_some(())).await;
}

#[tokio::test]
async fn i2_a_stranger_opens_no_link_by_tcp() {
    let (_a, cloud) = pair();
    let b = acceptor(&cloud);
    // Of the same name, with another CA.
    let stranger = Cloud::new("a");
    stranger.trusts(&[&cloud]);
    assert!(say(tcp_client(&stranger), b.tunnel.local_addr(), vec![1]).await.is_err());
    until("it is counted", || (failures(&b, "PEER_IDENTITY_CONFLICT") == 1).then_some(())).await;
    assert!(b.tunnel.links().to("a").is_empty());
}

#[tokio::test]
async fn a_connection_that_belongs_to_no_link_is_told_so() {
    let (a, b) = pair();
    let b = acceptor(&b);
    for kind in [2, 3] {
        let mut preface = vec![0; 57];
        preface[0] = kind;
        let answer = say(tcp_client(&a), b.tunnel.local_addr(), preface).await.unwrap();
        assert_eq!(answer, [3]);
    }
    until("they are counted", || (failures(&b, "UNKNOWN_LINK") == 2).then_some(())).await;
    assert!(say(tcp_client(&a), b.tunnel.local_addr(), vec![9]).await.is_err(), "no such kind");
}

/// A balancer that gives each connection to the next backend, and can cut what goes through it.
pub(crate) struct Balancer {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Balancer {
    pub(crate) async fn before(backends: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<Mutex<Vec<AbortHandle>>>::default();
        let list = Arc::clone(&connections);
        tokio::spawn(async move {
            for backend in backends.into_iter().cycle() {
                let (mut outside, _) = listener.accept().await.unwrap();
                let copying = tokio::spawn(async move {
                    let mut inside = TcpStream::connect(backend).await.unwrap();
                    // Cut by an abort, it ends with resets.
                    for stream in [&outside, &inside] {
                        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
                    }
                    tokio::io::copy_bidirectional(&mut outside, &mut inside).await.ok();
                });
                list.lock().unwrap().push(copying.abort_handle());
            }
        });
        Self { address, connections }
    }
}

#[tokio::test]
async fn connections_that_are_cut_on_the_way_cost_their_streams_and_no_others() {
    let (a, b) = pair();
    let (mut a, b) = (a.gateway(), acceptor(&b));
    a.policy = TransportPolicy::Tcp;
    let balancer = Balancer::before(vec![b.tunnel.local_addr()]).await;
    a.knows(&[("b", &[balancer.address])]);
    let link = a.link_to("b").await;
    let mut stream = link.open(&header("echo")).await.unwrap();
    stream.send.write(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(soon("echo", stream.recv.read()).await.unwrap().as_deref(), Some(&b"hello"[..]));
    // All but the first, which is the link.
    balancer.connections.lock().unwrap().drain(1..).for_each(|connection| connection.abort());
    assert_eq!(soon("cut", stream.recv.read()).await, Err(StreamError::Reset(ResetCode::Cancelled)));
    for _ in 0..50 {
        let mut stream = soon("another", link.open(&header("greet"))).await.unwrap();
        assert_eq!(soon("greeting", read_all(&mut stream.recv)).await.unwrap(), b"220 ready\r\n");
    }
    assert_eq!(a.tunnel.counters().links, 1);
    // The link itself.
    balancer.connections.lock().unwrap().drain(..1).for_each(|connection| connection.abort());
    until("it is another", || (a.tunnel.counters().links == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_behind_a_balancer_is_linked_and_used_by_tcp() {
    let (a, b) = pair();
    let mut a = a.gateway();
    a.policy = TransportPolicy::Tcp;
    let replicas = [acceptor(&b), acceptor(&b)];
    let live: Vec<_> = replicas.iter().map(|gateway| gateway.replica).collect();
    replicas.iter().for_each(|gateway| gateway.tunnel.set_live_replicas(&live));
    let balancer = Balancer::before(replicas.iter().map(|gateway| gateway.tunnel.local_addr()).collect()).await;
    a.knows(&[("b", &[balancer.address])]);
    until("a link to each", || (a.links_to("b").len() == 2).then_some(())).await;
    for link in a.links_to("b") {
        for _ in 0..40 {
            let mut stream = soon("a stream", link.open(&header("greet"))).await.unwrap();
            assert_eq!(soon("greeting", read_all(&mut stream.recv)).await.unwrap(), b"220 ready\r\n");
        }
    }
    // And back.
    for gateway in &replicas {
        let mut stream = gateway.open("a", "greet").await;
        assert_eq!(soon("greeting", read_all(&mut stream.recv)).await.unwrap(), b"220 ready\r\n");
    }
}

/// A few thousand streams, each on a connection of its own: none is lost, nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_one_after_the_other_leave_nothing_behind() {
    let (a, b) = Over::Tcp.linked_pair().await;
    let link = a.link_to("b").await;
    for round in 0..200 {
        let mut stream =
            soon("a stream", link.open(&header("page"))).await.unwrap_or_else(|error| panic!("{round}: {error}"));
        stream.send.write(Bytes::from_static(b"GET /")).await.unwrap();
        stream.send.finish();
        assert_eq!(soon("a page", read_all(&mut stream.recv)).await.unwrap().len(), 3_000);
    }
    let idle = || {
        let counts = |gateway: &Gateway| {
            gateway.tunnel.status()[0].links.iter().map(|link| link.streams_opened + link.streams_served).sum::<u32>()
        };
        counts(&a) + counts(&b)
    };
    until("all have ended", || (idle() == 0).then_some(())).await;
}

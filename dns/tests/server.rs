//! Sockets: what a client over a network sees, and what the server survives.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{clusterset, headless, headless_endpoint, query, store};
use eastway_dns::client::{self, QueryType, RecordData};
use eastway_dns::{Counters, DnsConfig, DropReason, Limits, Server, Transport, ZoneStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    address: SocketAddr,
    counters: Counters,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(store: Arc<ZoneStore>, limits: Limits) -> Self {
        Self::start_on("127.0.0.1:0", store, limits)
    }

    fn start_on(listen: &str, store: Arc<ZoneStore>, limits: Limits) -> Self {
        let config = DnsConfig { listen: vec![listen.parse().unwrap()], limits };
        let server = Server::bind(&config, store).unwrap();
        let (address, counters, cancel) = (server.local_addrs()[0], server.counters(), CancellationToken::new());
        let task = tokio::spawn(server.run(cancel.clone()));
        Self { address, counters, cancel, task }
    }

    async fn ask(&self, name: &str, qtype: QueryType) -> client::Answer {
        client::query(self.address, name, qtype, PATIENCE).await.unwrap()
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the server did not stop").unwrap();
    }
}

fn web() -> Arc<ZoneStore> {
    let store = store(&[]);
    store.upsert_service(&clusterset("demo", "web", &["242.0.0.1"], &[])).unwrap();
    let endpoints = (0..200).map(|i| headless_endpoint(Some(&format!("p-{i}")), "c-a", &[&format!("10.0.0.{i}")]));
    store.upsert_service(&headless("demo", "big", endpoints.collect(), &[])).unwrap();
    store
}

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_are_answered_over_udp_and_over_tcp_when_they_are_large() {
    for listen in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
        let mut server = Running::start_on(listen, web(), Limits { workers: 2, ..Limits::default() });
        if server.address.ip().is_unspecified() {
            server.address.set_ip("127.0.0.3".parse().unwrap());
        }
        let small = server.ask("web.demo.svc.clusterset.local", QueryType::A).await;
        assert_eq!((small.transport, small.records.len()), (Transport::Udp, 1));
        assert_eq!(small.records[0].data, RecordData::Address("242.0.0.1".parse().unwrap()));
        let large = server.ask("big.demo.svc.clusterset.local", QueryType::A).await;
        assert_eq!((large.transport, large.addresses().count(), large.is_truncated), (Transport::Tcp, 200, false));
        let none = server.ask("none.demo.svc.clusterset.local", QueryType::Aaaa).await;
        assert_eq!((none.rcode.as_str(), none.is_authoritative, none.authority[0].ttl), ("NXDOMAIN", true, 1));
        let counted = server.counters.snapshot();
        assert_eq!((counted.answered("NOERROR"), counted.answered("NXDOMAIN"), counted.truncated), (3, 1, 1));
        assert_eq!(counted.queries[..2], [("A", 3), ("AAAA", 1)]);
        server.stop().await;
    }
}

/// One query behind its length.
fn framed(name: &str) -> Vec<u8> {
    let query = query(name, "A");
    [&u16::try_from(query.len()).unwrap().to_be_bytes()[..], &query].concat()
}

async fn read_reply(stream: &mut TcpStream) -> Vec<u8> {
    let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut reply).await.unwrap();
    reply
}

/// Whether the other side closes the connection, rather than keep it.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 64])).await.expect("the connection stays open");
    matches!(read, Ok(0) | Err(_))
}

fn impatient() -> Limits {
    Limits { tcp_idle: Duration::from_millis(200), ..Limits::default() }
}

#[test]
fn the_limits_are_those_written_down() {
    let limits = Limits::default();
    assert_eq!((limits.tcp_connections, limits.tcp_idle), (128, Duration::from_secs(5)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_queries_on_one_connection_are_answered_in_their_order() {
    let server = Running::start(web(), Limits::default());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let names: Vec<_> = (0..100).map(|i| format!("p-{i}.c-a.big.demo.svc.clusterset.local")).collect();
    let all: Vec<u8> = names.iter().flat_map(|name| framed(name)).collect();
    stream.write_all(&all).await.unwrap();
    for i in 0..100_u8 {
        let reply = read_reply(&mut stream).await;
        // The address is the last of the data before the OPT record.
        assert_eq!(reply[reply.len() - 15..reply.len() - 11], [10, 0, 0, i]);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_whole_are_closed() {
    let server = Running::start(web(), impatient());
    for (what, bytes) in [
        ("silence", &b""[..]),
        ("length 0", b"\x00\x00"),
        ("a length and silence", b"\x00\x20"),
        ("half a query", b"\x00\x20\x12\x34\x01\x00"),
        ("a length no query has", b"\xff\xff"),
        ("a response", b"\x00\x0c\x12\x34\x81\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        assert!(is_closed(&mut stream).await, "{what}");
    }
    let counted = server.counters.snapshot();
    assert_eq!(counted.dropped(DropReason::Idle), 3);
    assert_eq!(counted.dropped(DropReason::TooLarge), 2);
    assert_eq!((counted.dropped(DropReason::Short), counted.dropped(DropReason::Response)), (1, 1));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_now_and_then_does_not_keep_a_connection() {
    let server = Running::start(web(), impatient());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let begin = Instant::now();
    for byte in framed("web.demo.svc.clusterset.local") {
        if stream.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert!(begin.elapsed() < PATIENCE);
    assert!(is_closed(&mut stream).await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_given_up() {
    let server = Running::start(web(), impatient());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let many = framed("big.demo.svc.clusterset.local").repeat(1000);
    let deadline = Instant::now() + PATIENCE;
    while let Ok(Ok(())) = tokio::time::timeout(PATIENCE, stream.write_all(&many)).await {
        assert!(Instant::now() < deadline, "the server keeps taking queries it cannot answer");
    }
    let counters = server.counters.clone();
    eventually("given up for being idle", || counters.snapshot().dropped(DropReason::Idle) == 1).await;
    assert_eq!(server.ask("web.demo.svc.clusterset.local", QueryType::A).await.records.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_ask_nothing_do_not_keep_out_those_that_ask() {
    let limits = Limits { tcp_connections: 8, tcp_idle: PATIENCE * 3, ..Limits::default() };
    let server = Running::start(web(), limits);
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&framed("web.demo.svc.clusterset.local")).await.unwrap();
        read_reply(&mut stream).await;
        open.push(stream);
    }
    assert_eq!(server.counters.snapshot().connections, 8);
    // The second asks again, so that the first is the one that said nothing for the longest, then the third.
    open[1].write_all(&framed("web.demo.svc.clusterset.local")).await.unwrap();
    read_reply(&mut open[1]).await;
    for closed in [0, 2] {
        let answer = client::query_tcp(server.address, "web.demo.svc.clusterset.local", QueryType::A, PATIENCE).await;
        assert_eq!(answer.unwrap().records.len(), 1, "a full server answers who asks");
        assert!(is_closed(&mut open[closed]).await);
        let mut more = TcpStream::connect(server.address).await.unwrap();
        more.write_all(&framed("web.demo.svc.clusterset.local")).await.unwrap();
        read_reply(&mut more).await;
        open.push(more);
    }
    assert!(server.counters.snapshot().connections <= 8, "{:?}", server.counters.snapshot());
    assert!(server.counters.snapshot().dropped(DropReason::Connections) >= 2);
    open[1].write_all(&framed("web.demo.svc.clusterset.local")).await.unwrap();
    read_reply(&mut open[1]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_a_flood_is_bounded_and_over_when_it_is_over() {
    let server = Running::start(web(), Limits { workers: 2, ..Limits::default() });
    let flood = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let packet = query("web.demo.svc.clusterset.local", "A");
    for _ in 0..20_000 {
        // The client does not read: its own buffer overflows, as a victim's would.
        if flood.send_to(&packet, server.address).await.is_err() {
            continue;
        }
    }
    let begin = Instant::now();
    assert_eq!(server.ask("web.demo.svc.clusterset.local", QueryType::A).await.records.len(), 1);
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert!(server.counters.snapshot().in_flight <= 64, "two workers of 32");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u5_a_worker_that_panics_is_started_again() {
    let store = web();
    store.set_readiness(eastway_dns::Readiness {
        local_synced: true,
        pending: vec![eastway_dns::PendingPeer {
            peer: Arc::from("gke"),
            since: Instant::now(),
            owns: Arc::new(|_, name| if name == "poison" { panic!("poisoned") } else { false }),
        }],
    });
    let server = Running::start(store, Limits { workers: 1, ..Limits::default() });
    let poison = query("poison.demo.svc.clusterset.local", "A");
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..3 {
        socket.send_to(&poison, server.address).await.unwrap();
        assert_eq!(server.ask("web.demo.svc.clusterset.local", QueryType::A).await.records.len(), 1);
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&framed("poison.demo.svc.clusterset.local")).await.unwrap();
        assert!(is_closed(&mut stream).await);
    }
    server.stop().await;
}

#[tokio::test]
async fn an_address_in_use_is_an_error_and_names_itself() {
    let config = |address| DnsConfig { listen: vec![address], limits: Limits::default() };
    // An address of its own: on 127.0.0.1 another test's connection may have the port of the other protocol.
    let own = "127.83.53.1:0";
    let udp = std::net::UdpSocket::bind(own).unwrap();
    let error = Server::bind(&config(udp.local_addr().unwrap()), store(&[])).unwrap_err();
    assert_eq!((error.transport, error.address), ("udp", udp.local_addr().unwrap()));
    let tcp = std::net::TcpListener::bind(own).unwrap();
    let error = Server::bind(&config(tcp.local_addr().unwrap()), store(&[])).unwrap_err();
    assert_eq!((error.transport, error.address), ("tcp", tcp.local_addr().unwrap()));
    let first = Server::bind(&config(own.parse().unwrap()), store(&[])).unwrap();
    let second = Server::bind(&config(first.local_addrs()[0]), store(&[])).unwrap_err();
    assert!(second.to_string().starts_with(&format!("cannot serve DNS on {}", first.local_addrs()[0])), "{second}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_asks_again_and_believes_only_its_own_answer() {
    let fake = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = fake.local_addr().unwrap();
    let serve = tokio::spawn(async move {
        let mut buffer = [0; 512];
        fake.recv_from(&mut buffer).await.unwrap();
        // The first is lost; to the second come a forged reply, garbage, and the answer.
        let (length, client) = fake.recv_from(&mut buffer).await.unwrap();
        let common::Ask { responder, now, source } = common::Ask::new(web());
        let mut reply = Vec::new();
        responder.respond(&buffer[..length], source, Transport::Udp, now, &mut reply);
        let mut forged = reply.clone();
        forged[0] ^= 0xff;
        for packet in [&forged[..], b"garbage", &reply[..20], &reply] {
            fake.send_to(packet, client).await.unwrap();
        }
    });
    let answer = client::query(address, "web.demo.svc.clusterset.local", QueryType::A, PATIENCE).await.unwrap();
    assert_eq!(answer.addresses().collect::<Vec<_>>(), ["242.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    serve.await.unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let patience = Duration::from_millis(50);
    let error = client::query(silent.local_addr().unwrap(), "a.b", QueryType::A, patience).await.unwrap_err();
    assert!(matches!(error, client::QueryError::Timeout { .. }), "{error}");
    assert!(matches!("NOTYPE".parse::<QueryType>(), Err(client::QueryError::UnknownType(_))));
    assert_eq!("type28".parse::<QueryType>().unwrap(), QueryType::Aaaa);
    assert_eq!("mx".parse::<QueryType>().unwrap(), QueryType::Other(15));
}

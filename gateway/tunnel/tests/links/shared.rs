//! Links by TCP whose streams share few connections: that they are few, and what a hostile or older peer makes of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use eastway_identity::{IdentityStore, tls};
use eastway_tunnel::{Event, Observer, TransportPolicy, World};
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderValue, Method, Request, StatusCode};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::support::{Cloud, Gateway, Over, header, pair, read_all, soon, until};
use crate::tcp::{Balancer, acceptor, failures};

const HERE: &str = "gateway.eastway.invalid:15443";

/// A gateway whose streams share at most `most` connections.
fn sharing(cloud: &Cloud, most: u8) -> Gateway {
    let mut gateway = cloud.gateway();
    gateway.policy = TransportPolicy::Tcp;
    gateway.share(most);
    gateway
}

/// A page by a new stream.
async fn ask(link: &eastway_tunnel::Link) {
    let mut stream = soon("a stream", link.open(&header("page"))).await.unwrap();
    stream.send.write(Bytes::from_static(b"GET /")).await.unwrap();
    stream.send.finish();
    assert_eq!(soon("a page", read_all(&mut stream.recv)).await.unwrap().len(), 3_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_streams_share_two_connections() {
    let (a, b) = pair();
    let (a, b) = (sharing(&a, 2), acceptor(&b));
    let balancer = Balancer::before(vec![b.tunnel.local_addr()]).await;
    a.knows(&[("b", &[balancer.address])]);
    let link = a.link_to("b").await;
    let mut open = Vec::new();
    for number in 0..300_u32 {
        let mut stream = soon("a stream", link.open(&header("echo"))).await.unwrap();
        stream.send.write(Bytes::copy_from_slice(&number.to_be_bytes())).await.unwrap();
        assert_eq!(soon("echo", stream.recv.read()).await.unwrap().unwrap(), number.to_be_bytes()[..]);
        open.push(stream);
    }
    // And back, by the same.
    for _ in 0..40 {
        ask(&b.link_to("a").await).await;
    }
    assert_eq!(balancer.connections.lock().unwrap().len(), 2);
    assert_eq!((a.connections(), b.connections()), (2, 2), "as status says");
    for stream in &mut open {
        stream.send.finish();
        assert_eq!(soon("the end", stream.recv.read()).await, Ok(None));
    }
    // Its connection is the link.
    balancer.connections.lock().unwrap().drain(..).for_each(|connection| connection.abort());
    until("it is another link", || (a.tunnel.counters().links == 2).then_some(())).await;
    ask(&a.link_to("b").await).await;
}

/// Takes so many connections at a time and closes what is more.
async fn few(to: SocketAddr, most: usize) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let open = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        loop {
            let (mut outside, _) = listener.accept().await.unwrap();
            if open.fetch_add(1, Ordering::Relaxed) >= most {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let open = Arc::clone(&open);
            tokio::spawn(async move {
                let mut inside = TcpStream::connect(to).await.unwrap();
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await.ok();
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f38_fewer_connections_than_may_be_are_enough() {
    let (a, b) = pair();
    let (a, b) = (sharing(&a, 8), acceptor(&b));
    a.knows(&[("b", &[few(b.tunnel.local_addr(), 1).await])]);
    let link = a.link_to("b").await;
    for _ in 0..50 {
        ask(&link).await;
    }
    assert_eq!(a.connections(), 1);
    assert_eq!(a.tunnel.counters().links, 1);
}

/// Streams that nobody reads hold what they hold, and never the others up.
async fn p9_streams_that_nobody_reads_do_not_stop_the_others(one_by_us: bool) {
    let (a, b) = Over::Shared.linked_pair().await;
    let (from, to) = if one_by_us { (&a, "b") } else { (&b, "a") };
    let link = from.link_to(to).await;
    let mut unread = Vec::new();
    let mut writing = JoinSet::new();
    for _ in 0..10 {
        let stream = soon("a stream", link.open(&header("floods"))).await.unwrap();
        unread.push(stream);
        let mut stream = soon("a stream", link.open(&header("stalls"))).await.unwrap();
        writing.spawn(async move { while stream.send.write(Bytes::from_static(&[7; 65_536])).await.is_ok() {} });
    }
    let moved = || {
        let links = from.tunnel.status().into_iter().flat_map(|peer| peer.links);
        links.map(|link| link.bytes_sent + link.bytes_received).sum::<u64>()
    };
    // Until all of them stand still.
    let mut last = (moved(), Instant::now());
    until("they stand still", || {
        let now = moved();
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_millis(400)).then_some(())
    })
    .await;
    let begun = Instant::now();
    let mut stream = soon("a stream", link.open(&header("count"))).await.unwrap();
    for _ in 0..32 {
        soon("room", stream.send.write(Bytes::from(vec![7; 1 << 20]))).await.unwrap();
    }
    stream.send.finish();
    assert_eq!(soon("a count", read_all(&mut stream.recv)).await.unwrap(), (32 << 20).to_string().into_bytes());
    for _ in 0..20 {
        ask(&link).await;
    }
    println!("32 MiB and twenty pages in {:?}", begun.elapsed());
    assert_eq!(from.tunnel.counters().links, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_streams_that_nobody_reads_do_not_stop_those_of_the_dialler() {
    p9_streams_that_nobody_reads_do_not_stop_the_others(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_streams_that_nobody_reads_do_not_stop_those_of_the_acceptor() {
    p9_streams_that_nobody_reads_do_not_stop_the_others(false).await;
}

/// Counts what it is told.
#[derive(Default)]
struct Unshared(AtomicUsize);

impl Observer for Unshared {
    fn happened(&self, event: &Event<'_>) {
        if let Event::Unshared { peer, .. } = event {
            assert_eq!(&***peer, "b");
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// In front of a gateway: does to who asks for shared connections what a version without them does.
async fn older(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut outside, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut hello = vec![0; 16 << 10];
                let read = outside.read(&mut hello).await.unwrap();
                hello.truncate(read);
                if hello.windows(tls::SHARED_ALPN.len()).any(|bytes| bytes == tls::SHARED_ALPN) {
                    // A fatal alert: no_application_protocol (RFC 8446 §6).
                    outside.write_all(&[21, 3, 3, 0, 2, 2, 120]).await.unwrap();
                    return;
                }
                let mut inside = TcpStream::connect(to).await.unwrap();
                inside.write_all(&hello).await.unwrap();
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await.ok();
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f29_a_peer_that_cannot_share_connections_is_given_one_for_each_stream() {
    let (mut a, b) = pair();
    let told = Arc::new(Unshared::default());
    a.world = World { observer: Arc::clone(&told) as Arc<dyn Observer>, ..a.world };
    let (a, b) = (sharing(&a, 2), acceptor(&b));
    a.knows(&[("b", &[older(b.tunnel.local_addr()).await])]);
    let link = a.link_to("b").await;
    for _ in 0..20 {
        ask(&link).await;
    }
    assert_eq!(told.0.load(Ordering::Relaxed), 1, "it is said once for the link");
    until("a connection for each", || (a.connections() > 16).then_some(())).await;
    assert!(a.tunnel.status()[0].last_error.is_none());
}

/// A peer with a good certificate that speaks HTTP/2 by hand.
struct Raw {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Raw {
    async fn connect(cloud: &Cloud, to: SocketAddr) -> std::io::Result<Self> {
        let identity = IdentityStore::new(cloud.identity());
        let (trust, clock) = (Arc::clone(&cloud.trust), Arc::clone(&cloud.world.clock));
        let config = tls::shared_client_config(identity, trust, clock, "b".into()).unwrap();
        let stream = TcpStream::connect(to).await?;
        let name = ServerName::try_from(tls::SERVER_NAME).unwrap();
        let stream = TlsConnector::from(config).connect(name, stream).await?;
        let builder = h2::client::Builder::new();
        let (requests, connection) = builder.handshake(stream).await.map_err(std::io::Error::other)?;
        Ok(Self { requests, connection: tokio::spawn(connection) })
    }

    async fn ask(
        &mut self,
        request: Request<()>,
    ) -> Result<(http::Response<RecvStream>, SendStream<Bytes>), h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        let (answer, send) = requests.send_request(request, false)?;
        Ok((soon("an answer", answer).await?, send))
    }
}

fn request(method: Method, uri: &str) -> Request<()> {
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

#[tokio::test]
async fn i1_requests_for_anything_but_a_pipe_are_refused_and_counted() {
    let (a, b) = pair();
    let b = acceptor(&b);
    let mut raw = Raw::connect(&a, b.tunnel.local_addr()).await.unwrap();
    for (method, uri, status) in [
        (Method::GET, "https://gateway.eastway.invalid:15443/", StatusCode::METHOD_NOT_ALLOWED),
        (Method::POST, "https://10.0.0.1/", StatusCode::METHOD_NOT_ALLOWED),
        (Method::CONNECT, "10.0.0.1:22", StatusCode::FORBIDDEN),
        (Method::CONNECT, "gateway.eastway.invalid:1", StatusCode::FORBIDDEN),
    ] {
        let (answer, _send) = raw.ask(request(method, uri)).await.unwrap();
        assert_eq!(answer.status(), status, "{uri}");
    }
    assert_eq!(failures(&b, "REQUEST"), 4);
    // A pipe is one, and what it says is TLS or nothing.
    let (answer, mut send) = raw.ask(request(Method::CONNECT, HERE)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    send.send_data(Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"), true).unwrap();
    until("it is counted", || (failures(&b, "TRANSPORT") == 1).then_some(())).await;
    assert!(b.tunnel.links().to("a").is_empty());
}

#[tokio::test]
async fn i2_a_stranger_reaches_no_http() {
    let (a, cloud) = pair();
    let b = acceptor(&cloud);
    let stranger = Cloud::new("a");
    stranger.trusts(&[&cloud]);
    let mut raw = Raw::connect(&stranger, b.tunnel.local_addr()).await;
    // With TLS 1.3 the client hears of it with the first answer.
    if let Ok(raw) = &mut raw {
        assert!(raw.ask(request(Method::CONNECT, HERE)).await.is_err());
    }
    until("it is counted", || (failures(&b, "PEER_IDENTITY_CONFLICT") == 1).then_some(())).await;
    drop(a);
}

#[tokio::test]
async fn p9_giant_headers_are_refused() {
    let (a, b) = pair();
    let b = acceptor(&b);
    let mut raw = Raw::connect(&a, b.tunnel.local_addr()).await.unwrap();
    let mut giant = request(Method::CONNECT, HERE);
    giant.headers_mut().insert("x-giant", HeaderValue::from_bytes(&[b'x'; 8 << 10]).unwrap());
    let refused = match raw.ask(giant).await {
        Ok((answer, _)) => answer.status() == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Err(_) => true,
    };
    assert!(refused);
    // Headers without end (CVE-2024-27316).
    let mut endless = request(Method::CONNECT, HERE);
    for number in 0..400_u32 {
        let name = http::HeaderName::try_from(format!("x-{number}")).unwrap();
        endless.headers_mut().insert(name, HeaderValue::from_bytes(&[b'x'; 1 << 10]).unwrap());
    }
    assert!(raw.ask(endless).await.is_err());
    assert!(b.tunnel.links().to("a").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_flood_of_pipes_is_bounded_and_harms_nobody() {
    let (a, mut b) = pair();
    b.limits.handshakes = 32;
    let b = acceptor(&b);
    let good = sharing(&a, 1);
    good.knows(&[("b", &[b.tunnel.local_addr()])]);
    let link = good.link_to("b").await;
    let raw = Raw::connect(&a, b.tunnel.local_addr()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..500 {
        let mut requests = raw.requests.clone().ready().await.unwrap();
        held.push(requests.send_request(request(Method::CONNECT, HERE), false).unwrap());
    }
    until("most are refused", || (failures(&b, "TOO_MANY") >= 468).then_some(())).await;
    // What was there stays there.
    for _ in 0..4 {
        ask(&link).await;
    }
    drop(held);
    assert_eq!(good.tunnel.counters().links, 1);
}

/// CVE-2023-44487.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_pipes_that_are_asked_for_and_reset_at_once_are_an_attack() {
    let (a, b) = pair();
    let b = acceptor(&b);
    let raw = Raw::connect(&a, b.tunnel.local_addr()).await.unwrap();
    let connection = b.tunnel.local_addr();
    let flood = async {
        while let Ok(mut requests) = raw.requests.clone().ready().await {
            let Ok((_answer, mut send)) = requests.send_request(request(Method::CONNECT, HERE), false) else { break };
            // With the request itself under way.
            tokio::task::yield_now().await;
            send.send_reset(Reason::CANCEL);
            if raw.connection.is_finished() || failures(&b, "HTTP2") + failures(&b, "TOO_MANY") > 0 {
                break;
            }
        }
    };
    soon("it is stopped", flood).await;
    // Another one is taken all the same.
    let mut raw = Raw::connect(&a, connection).await.unwrap();
    let answered = async {
        loop {
            match raw.ask(request(Method::CONNECT, HERE)).await {
                Ok((answer, _)) if answer.status() == StatusCode::OK => return,
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    soon("a pipe", answered).await;
}

/// One that says nothing on its pipes cannot be judged by them.
#[tokio::test]
async fn i9_who_is_trusted_no_more_keeps_no_connection() {
    let (a, cloud) = pair();
    let b = acceptor(&cloud);
    let raw = Raw::connect(&a, b.tunnel.local_addr()).await.unwrap();
    let mut held = Vec::new();
    let mut hold = async || {
        let mut requests = raw.requests.clone().ready().await?;
        held.push(requests.send_request(request(Method::CONNECT, HERE), false)?);
        Ok::<_, h2::Error>(())
    };
    hold().await.unwrap();
    let begun = std::time::Instant::now();
    cloud.trusts(&[]);
    // Longer than what is done without pipes would take.
    while hold().await.is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(8), "it goes on");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    soon("it is ended", raw.connection).await.unwrap().ok();
}

#[tokio::test]
async fn a_connection_without_pipes_is_not_kept() {
    let (a, b) = pair();
    let b = acceptor(&b);
    let raw = Raw::connect(&a, b.tunnel.local_addr()).await.unwrap();
    let requests = raw.requests.clone();
    tokio::time::timeout(Duration::from_secs(20), raw.connection).await.expect("it is ended").unwrap().ok();
    drop(requests);
}

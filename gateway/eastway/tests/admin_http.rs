//! The HTTP ports against clients that do not behave: raw sockets, because no HTTP library would send this.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "support/fake_gateway.rs"]
mod fake_gateway;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fake_gateway::{FakeGateway, FakeSource};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(5);

/// Sends `bytes` and reads until the server closes. A reset after the answer counts as the end: the server does not
/// read what it has refused.
async fn exchange(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // The server may have closed before everything is sent.
    stream.write_all(bytes).await.ok();
    read_answer(&mut stream).await
}

async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match timeout(PATIENCE, stream.read(&mut chunk)).await.expect("the server neither answered nor closed") {
            Ok(0) | Err(_) => return String::from_utf8_lossy(&answer).into_owned(),
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
        }
    }
}

async fn get(to: SocketAddr, path: &str) -> String {
    exchange(to, format!("GET {path} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await
}

fn status(answer: &str) -> &str {
    answer.strip_prefix("HTTP/1.1 ").or_else(|| answer.strip_prefix("HTTP/1.0 ")).map_or("none", |rest| &rest[..3])
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn a1_bad_requests_get_the_status_they_deserve() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    let to = gateway.admin;
    let host = format!("Host: {to}\r\n");
    let big_header = format!("GET /status HTTP/1.1\r\n{host}X: {}\r\n\r\n", "a".repeat(64 * 1024));
    let many_headers = format!("GET /status HTTP/1.1\r\n{host}{}\r\n", "X: y\r\n".repeat(1_000));
    let table: &[(&str, String, &str)] = &[
        ("good", format!("GET /status HTTP/1.1\r\n{host}\r\n"), "200"),
        ("good, absolute form", format!("GET http://{to}/status HTTP/1.1\r\n{host}\r\n"), "200"),
        ("POST", format!("POST /status HTTP/1.1\r\n{host}Content-Length: 0\r\n\r\n"), "405"),
        ("PUT", format!("PUT /logging HTTP/1.1\r\n{host}Content-Length: 3\r\n\r\nabc"), "405"),
        ("DELETE", format!("DELETE /peers HTTP/1.1\r\n{host}\r\n"), "405"),
        ("HEAD", format!("HEAD /status HTTP/1.1\r\n{host}\r\n"), "405"),
        ("OPTIONS", format!("OPTIONS * HTTP/1.1\r\n{host}\r\n"), "405"),
        ("CONNECT", format!("CONNECT example.com:443 HTTP/1.1\r\n{host}\r\n"), "405"),
        ("foreign Host", "GET /status HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(), "403"),
        ("rebinding Host", "GET /status HTTP/1.1\r\nHost: 127.0.0.1.evil.example:15000\r\n\r\n".to_owned(), "403"),
        ("address of this machine", "GET /status HTTP/1.1\r\nHost: 10.0.0.1:15000\r\n\r\n".to_owned(), "403"),
        ("no Host", "GET /status HTTP/1.1\r\n\r\n".to_owned(), "403"),
        ("two Hosts", format!("GET /status HTTP/1.1\r\n{host}Host: evil.example\r\n\r\n"), "403"),
        ("foreign authority", format!("GET http://evil.example/status HTTP/1.1\r\n{host}\r\n"), "403"),
        ("Origin", format!("GET /status HTTP/1.1\r\n{host}Origin: http://evil.example\r\n\r\n"), "403"),
        ("Origin null", format!("GET /status HTTP/1.1\r\n{host}Origin: null\r\n\r\n"), "403"),
        ("own Origin", format!("GET /status HTTP/1.1\r\n{host}Origin: http://{to}\r\n\r\n"), "403"),
        ("unknown path", format!("GET /quitquitquit HTTP/1.1\r\n{host}\r\n"), "404"),
        ("dots", format!("GET /../ HTTP/1.1\r\n{host}\r\n"), "404"),
        ("encoded dots", format!("GET /%2e%2e/status HTTP/1.1\r\n{host}\r\n"), "404"),
        ("metrics are elsewhere", format!("GET /metrics HTTP/1.1\r\n{host}\r\n"), "404"),
        ("header of 64 KiB", big_header, "431"),
        ("1,000 headers", many_headers, "431"),
        ("no HTTP", "hello\r\n\r\n".to_owned(), "400"),
        ("HTTP/0.9", "GET /status\r\n\r\n".to_owned(), "400"),
        ("HTTP/3.0", format!("GET /status HTTP/3.0\r\n{host}\r\n"), "400"),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n".to_owned(), "400"),
        ("NUL in a header", format!("GET /status HTTP/1.1\r\n{host}X: a\0b\r\n\r\n"), "400"),
        ("space before colon", format!("GET /status HTTP/1.1\r\n{host}X : a\r\n\r\n"), "400"),
        ("two lengths", format!("GET /status HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n\r\n"), "400"),
        ("bad length", format!("GET /status HTTP/1.1\r\n{host}Content-Length: -1\r\n\r\n"), "400"),
        ("bad query", format!("GET /describe?what=x HTTP/1.1\r\n{host}\r\n"), "400"),
        ("bad filter", format!("GET /services?name=x HTTP/1.1\r\n{host}\r\n"), "400"),
        ("query twice", format!("GET /describe?service=a/b&service=c/d HTTP/1.1\r\n{host}\r\n"), "400"),
        ("port 0x50", format!("GET /describe?service=a/b&port=0x50 HTTP/1.1\r\n{host}\r\n"), "400"),
        ("port 70000", format!("GET /describe?service=a/b&port=70000 HTTP/1.1\r\n{host}\r\n"), "400"),
        ("long name", format!("GET /describe?service={} HTTP/1.1\r\n{host}\r\n", "a".repeat(300)), "400"),
        ("unknown service", format!("GET /describe?service=a/b HTTP/1.1\r\n{host}\r\n"), "404"),
        ("unknown peer", format!("GET /check?peer=nobody HTTP/1.1\r\n{host}\r\n"), "404"),
    ];
    for (name, request, expected) in table {
        let answer = exchange(to, request.as_bytes()).await;
        assert_eq!(status(&answer), *expected, "{name}: {answer}");
    }
    // Still alive and well.
    assert_eq!(status(&get(to, "/status").await), "200");
}

#[tokio::test]
async fn a1_chunked_garbage_and_pipelining_get_at_most_one_answer() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    let to = gateway.admin;
    let chunked = format!("GET /status HTTP/1.1\r\nHost: {to}\r\nTransfer-Encoding: chunked\r\n\r\nzzzz\r\n");
    let answer = exchange(to, chunked.as_bytes()).await;
    assert!(answer.matches("HTTP/1.1").count() <= 1, "{answer}");
    let pipelined = format!("GET /dns HTTP/1.1\r\nHost: {to}\r\n\r\n").repeat(100);
    let answer = exchange(to, pipelined.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a1_idle_connections_are_capped_and_closed() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    let to = gateway.health;
    let start = Instant::now();
    let mut idle = Vec::new();
    for _ in 0..64 {
        idle.push(TcpStream::connect(to).await.unwrap());
    }
    // Who asks is answered while all places are taken: the oldest that asked for nothing makes room.
    for _ in 0..3 {
        assert_eq!(status(&get(to, "/healthz/live").await), "200");
    }
    let mut oldest = idle.remove(0);
    let closed = timeout(Duration::from_secs(5), oldest.read(&mut [0; 1])).await.expect("the oldest made room");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    assert!(start.elapsed() < Duration::from_secs(9), "it was not its own deadline");
    idle.drain(..2);
    // Slow headers: one byte now and then does not move the deadline.
    let mut first = idle.remove(0);
    first.write_all(b"GET /heal").await.unwrap();
    let mut chunk = [0; 512];
    let end = timeout(Duration::from_secs(20), first.read(&mut chunk)).await.expect("idle connection was kept");
    let waited = start.elapsed();
    assert!(waited > Duration::from_secs(9) && waited < Duration::from_secs(13), "{waited:?}");
    drop(end);
}

#[tokio::test]
async fn i12_health_names_what_is_pending_and_fails_while_draining() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    let (certificate, registry) =
        (gateway.readiness.register("certificate"), gateway.readiness.register("registry hosts"));
    let answer = get(gateway.health, "/healthz/ready").await;
    assert_eq!(status(&answer), "503");
    assert_eq!(body(&answer), "not ready, waiting for:\n- certificate\n- registry hosts\n");
    assert_eq!(status(&get(gateway.health, "/healthz/live").await), "200");
    drop((certificate, registry));
    assert_eq!(status(&get(gateway.health, "/healthz/ready").await), "200");
    gateway.readiness.set_draining();
    let answer = get(gateway.health, "/healthz/ready").await;
    assert_eq!((status(&answer), body(&answer)), ("503", "draining\n"));
    assert_eq!(status(&get(gateway.health, "/healthz/live").await), "200");
    // The health port faces a load balancer: it has nothing else.
    for path in ["/", "/metrics", "/config_dump", "/status", "/healthz/"] {
        assert_eq!(status(&get(gateway.health, path).await), "404", "{path}");
    }
}

/// Who may ask learns whether to send traffic here, and nothing of what runs here.
#[tokio::test]
async fn u8_the_health_port_tells_a_stranger_nothing() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    let to = gateway.health;
    let ask = |method: &str, path: &str| {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: stranger.example\r\nContent-Length: 0\r\n\r\n");
        async move { exchange(to, request.as_bytes()).await }
    };
    let mut answers = Vec::new();
    let known =
        [("/healthz", "ok\n"), ("/healthz/live", "ok\n"), ("/healthz/ready", "ready\n"), ("/readyz", "ready\n")];
    for (path, said) in known {
        let answer = ask("GET", path).await;
        assert_eq!((status(&answer), body(&answer)), ("200", said), "{path}");
        answers.push(answer);
    }
    for path in ["/", "/version", "/healthz/", "/healthz/livez", "/metrics", "/status", "/config_dump", "/debug/pprof"]
    {
        let answer = ask("GET", path).await;
        assert_eq!((status(&answer), body(&answer)), ("404", "not found\n"), "{path}");
        answers.push(answer);
    }
    for method in ["POST", "HEAD", "TRACE"] {
        let answer = ask(method, "/healthz").await;
        assert_eq!(status(&answer), "405", "{method}");
        answers.push(answer);
    }
    answers.push(exchange(to, b"hello\r\n\r\n").await);
    for answer in answers {
        let said = answer.to_ascii_lowercase();
        for word in ["server:", "via:", "x-powered-by", "hyper", "eastway", env!("CARGO_PKG_VERSION")] {
            assert!(!said.contains(word), "{word} is in {answer}");
        }
    }
}

#[tokio::test]
async fn metrics_are_on_their_own_port() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    let answer = get(gateway.metrics, "/metrics").await;
    assert_eq!(status(&answer), "200");
    assert!(answer.contains("content-type: application/openmetrics-text"), "{answer}");
    assert!(answer.contains("eastway_peer_up{peer=\"gke\"} 1"), "the source was not asked: {answer}");
    assert!(answer.contains("eastway_ready 1"), "{answer}");
    for path in ["/", "/config_dump", "/status", "/healthz/ready"] {
        assert_eq!(status(&get(gateway.metrics, path).await), "404", "{path}");
    }
}

#[tokio::test]
async fn i10_no_view_shows_a_secret() {
    let config = serde_json::json!({
        "trust": {"cacerts": "./cacerts", "caKeyPem": "-----BEGIN EC PRIVATE KEY-----\nMHcC", "token": "s3cr3t"},
        "cluster": "onprem",
    });
    let gateway = FakeGateway::start(FakeSource { config, ..FakeSource::default() }).await;
    let paths = [
        "/",
        "/status",
        "/peers",
        "/services",
        "/endpoints",
        "/dns",
        "/logging",
        "/config_dump",
        "/check",
        "/bench?peer=gke&part=up&seconds=1",
        "/leftovers?peer=gke",
        "/describe?service=bookinfo/reviews",
    ];
    for path in paths {
        let answer = get(gateway.admin, path).await;
        assert_eq!(status(&answer), "200", "{path}: {answer}");
        for secret in ["PRIVATE KEY", "s3cr3t", "MHcC"] {
            assert!(!answer.contains(secret), "{path} shows {secret}");
        }
    }
    let dump = get(gateway.admin, "/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(body(&dump)).unwrap();
    assert_eq!(dump["apiVersion"], "eastway.dev/v1alpha1");
    assert_eq!(dump["config"]["cluster"], "onprem");
}

#[tokio::test]
async fn i10_no_admin_port_beyond_loopback() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let bound = eastway::admin::AdminPort::bind(address.parse().unwrap()).await;
        assert!(matches!(bound, Err(eastway::admin::BindError::NotLoopback(_))), "{address}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let gateway = FakeGateway::start(FakeSource::default()).await;
    let error = eastway::admin::MetricsPort::bind(gateway.admin).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {} for metrics", gateway.admin));
}

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::file::HealthPort;

fn spec(probe: Probe) -> HealthSpec {
    HealthSpec {
        probe,
        port: HealthPort::Number(std::num::NonZeroU16::MIN),
        proxy_protocol: false,
        interval: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        unhealthy_after: 2,
        healthy_after: 3,
    }
}

#[test]
fn streaks_decide_and_the_first_result_counts_at_once() {
    let mut streak = Streak::default();
    let mut add = |good| streak.add(good, 2, 3);
    assert_eq!(add(true), Some(true));
    assert_eq!([add(true), add(false), add(true), add(false)], [None; 4], "two failures, but not in a row");
    assert_eq!(add(false), Some(false));
    assert_eq!([add(true), add(true), add(false), add(true), add(true)], [None; 5]);
    assert_eq!(add(true), Some(true));
    assert_eq!(Streak::default().add(false, 2, 3), Some(false));
}

#[test]
fn intervals_differ_by_a_tenth_at_most() {
    let interval = Duration::from_secs(10);
    for _ in 0..1000 {
        let jittered = jittered(interval);
        assert!((Duration::from_secs(9)..=Duration::from_secs(11)).contains(&jittered), "{jittered:?}");
    }
}

/// Answers every connection with `answer` once it has sent a request.
async fn server(answer: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        stream.write_all(answer).await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    (address, task)
}

#[tokio::test]
async fn http_answers_from_200_to_399_are_good() {
    let cases: [(&[u8], bool); 6] = [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
        (b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 1000000\r\n\r\n", true),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false),
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", false),
        (b"220 mail.example ESMTP\r\n", false),
        (b"", false),
    ];
    for (answer, expected) in cases {
        let (address, task) = server(answer).await;
        let good = probe(&spec(Probe::Http { path: "/health?deep=1".into() }), address).await;
        assert_eq!(good, expected, "{:?}", String::from_utf8_lossy(answer));
        let request = task.await.unwrap();
        assert!(request.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("host: {address}")), "{request}");
    }
}

#[tokio::test]
async fn who_expects_a_header_of_the_proxy_protocol_gets_one() {
    let (address, task) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let told = HealthSpec { proxy_protocol: true, ..spec(Probe::Http { path: "/".into() }) };
    assert!(probe(&told, address).await);
    assert_eq!(task.await.unwrap().as_bytes()[..16], *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
}

#[tokio::test]
async fn tcp_needs_a_listener() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert!(probe(&spec(Probe::Tcp), address).await);
    drop(listener);
    assert!(!probe(&spec(Probe::Tcp), address).await);
}

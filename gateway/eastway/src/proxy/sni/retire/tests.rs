//! A client and a server on real sockets, between which a gateway leaves.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::proxy::copy::{ChunkReader, Limits, Local, Transferred, Watch, between, reset_unless_done};

/// Longest wait for anything that is to happen.
const PATIENCE: Duration = Duration::from_secs(20);
const DRAIN: Duration = Duration::from_secs(10);
/// Far more than [`HOLD`], far less than an unused connection has.
const AFTER: Duration = Duration::from_millis(400);

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (one, other) = (client.unwrap(), accepted.unwrap().0);
    one.set_nodelay(true).unwrap();
    other.set_nodelay(true).unwrap();
    (one, other)
}

struct Rig {
    client: TcpStream,
    server: TcpStream,
    leave: CancellationToken,
    copying: JoinHandle<Result<(), CopyError>>,
}

impl Rig {
    async fn new() -> Self {
        let ((client, near), (server, far)) = (sockets().await, sockets().await);
        reset_unless_done(&far);
        let leave = CancellationToken::new();
        let leaving = Leaving { told: leave.clone(), drain: DRAIN };
        let copying = tokio::spawn(async move {
            let (mut local, mut reader) = (Local::new(near), ChunkReader::default());
            let limits = Limits { idle: PATIENCE * 2, half_closed: PATIENCE * 2 };
            let (moved, watch) = (Transferred::default(), &mut Watch { limits, count: &mut || (), cut: None });
            let mut client = Retiring::new(local.side(), leaving, None);
            between(&mut client, &mut TcpSide::new(&far, &mut reader), &moved, watch).await
        });
        Self { client, server, leave, copying }
    }

    /// A connection that has been used a few times.
    async fn in_use() -> Self {
        let mut rig = Self::new().await;
        for _ in 0..=EXCHANGES {
            exchange(&mut rig.client, &mut rig.server).await;
        }
        rig
    }

    /// The end of the connection, at both ends: what each still hears.
    async fn ends(mut self) -> [Vec<u8>; 2] {
        let (mut client, mut server) = (Vec::new(), Vec::new());
        let ended = async {
            self.client.read_to_end(&mut client).await.unwrap();
            self.client.shutdown().await.unwrap();
            self.server.read_to_end(&mut server).await.unwrap();
            self.server.shutdown().await.unwrap();
            self.copying.await.unwrap().unwrap();
        };
        timeout(PATIENCE, ended).await.expect("it ends in order");
        [client, server]
    }
}

/// A record of TLS with so many bytes.
fn record(length: u8) -> Vec<u8> {
    [&[23, 3, 3, 0, length][..], &vec![7; usize::from(length)]].concat()
}

async fn hears(stream: &mut TcpStream, expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("it comes").unwrap();
    assert_eq!(heard, expected);
}

async fn is_open(stream: &TcpStream) -> bool {
    timeout(AFTER, stream.peek(&mut [0])).await.is_err()
}

async fn says(from: &mut TcpStream, to: &mut TcpStream, length: u8) {
    from.write_all(&record(length)).await.unwrap();
    hears(to, &record(length)).await;
}

async fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    says(client, server, 10).await;
    says(server, client, 90).await;
}

#[tokio::test]
async fn the_end_comes_with_the_answer_and_not_before_it() {
    let mut rig = Rig::in_use().await;
    says(&mut rig.client, &mut rig.server, 5).await;
    rig.leave.cancel();
    assert!(is_open(&rig.client).await, "somebody waits for an answer");
    for part in record(200).chunks(150) {
        rig.server.write_all(part).await.unwrap();
        sleep(HOLD / 4).await;
    }
    assert_eq!(rig.ends().await, [record(200), Vec::new()]);
}

#[tokio::test]
async fn an_answer_that_stands_still_in_a_record_goes_on() {
    let mut rig = Rig::in_use().await;
    rig.leave.cancel();
    says(&mut rig.client, &mut rig.server, 5).await;
    let answer = record(200);
    let (first, second) = answer.split_at(100);
    rig.server.write_all(first).await.unwrap();
    hears(&mut rig.client, first).await;
    assert!(is_open(&rig.client).await);
    rig.server.write_all(second).await.unwrap();
    assert_eq!(rig.ends().await[0], second);
}

#[tokio::test]
async fn a_client_that_speaks_at_once_gets_what_was_kept_back_and_its_answer() {
    let mut rig = Rig::in_use().await;
    rig.leave.cancel();
    for _ in 0..5 {
        says(&mut rig.client, &mut rig.server, 5).await;
        rig.server.write_all(&record(9)).await.unwrap();
        sleep(HOLD / 4).await;
        rig.client.write_all(&record(6)).await.unwrap();
        hears(&mut rig.server, &record(6)).await;
        hears(&mut rig.client, &record(9)).await;
    }
    rig.server.write_all(&record(1)).await.unwrap();
    assert_eq!(rig.ends().await, [record(1), Vec::new()]);
}

#[tokio::test]
async fn a_handshake_is_no_answer() {
    let mut rig = Rig::new().await;
    rig.leave.cancel();
    exchange(&mut rig.client, &mut rig.server).await;
    assert!(is_open(&rig.client).await);
    exchange(&mut rig.client, &mut rig.server).await;
    assert!(is_open(&rig.client).await, "it may have been a ticket");
    let begun = Instant::now();
    assert!(rig.ends().await.concat().is_empty());
    assert!(begun.elapsed() < DRAIN / 2, "nobody uses it");
}

#[tokio::test]
async fn what_is_asked_after_the_end_is_not_done() {
    let mut rig = Rig::in_use().await;
    rig.leave.cancel();
    assert_eq!(timeout(PATIENCE, rig.client.peek(&mut [0])).await.expect("its end").unwrap(), 0);
    rig.client.write_all(&record(5)).await.unwrap();
    let mut heard = Vec::new();
    let ended = timeout(PATIENCE, rig.server.read_to_end(&mut heard)).await.expect("it ends");
    assert!(ended.is_err() && heard.is_empty(), "{ended:?} {heard:?}");
}

#[test]
fn records_are_whole_however_they_come() {
    let bytes = [record(0), record(3), record(255)].concat();
    let ends = [5, 13, 273];
    for size in [1, 2, 7, 300] {
        let mut records = Records::default();
        let mut seen = 0;
        for part in bytes.chunks(size) {
            records.see(part);
            seen += part.len();
            assert_eq!(records.are_whole(), ends.contains(&seen), "{seen} in pieces of {size}");
        }
    }
}

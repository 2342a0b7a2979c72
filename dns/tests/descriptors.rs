//! Alone in its process, for it takes all file descriptors away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{clusterset, query, store};
use eastway_dns::{DnsConfig, Limits, Server};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u6_accepting_survives_the_want_of_descriptors() {
    let store = store(&[]);
    store.upsert_service(&clusterset("demo", "web", &["242.0.0.1"], &[])).unwrap();
    let config = DnsConfig { listen: vec!["127.0.0.1:0".parse().unwrap()], limits: Limits::default() };
    let server = Server::bind(&config, store).unwrap();
    let (address, counters, cancel) = (server.local_addrs()[0], server.counters(), CancellationToken::new());
    let task = tokio::spawn(server.run(cancel.clone()));

    // The client's socket is made before there are no more; the server cannot accept it.
    let client = tokio::net::TcpSocket::new_v4().unwrap();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), maximum: before.maximum }).unwrap();
    let mut stream = client.connect(address).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while counters.snapshot().socket_errors < 3 {
        assert!(Instant::now() < deadline, "accept did not fail");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    setrlimit(Resource::Nofile, before).unwrap();

    let query = query("web.demo.svc.clusterset.local", "A");
    stream.write_u16(u16::try_from(query.len()).unwrap()).await.unwrap();
    stream.write_all(&query).await.unwrap();
    let length = tokio::time::timeout(Duration::from_secs(1), stream.read_u16()).await;
    assert!(length.expect("serving again within a second").unwrap() > 12);
    cancel.cancel();
    task.await.unwrap();
}

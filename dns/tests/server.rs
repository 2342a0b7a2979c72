//! Sockets: what a client over a network sees, and what the server survives.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

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

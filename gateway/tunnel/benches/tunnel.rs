//! What a stream costs: its header, and from opening to the peer's answer over loopback UDP.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark that cannot be set up must fail")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use eastway_identity::ca::{Ca, InitOptions};
use eastway_identity::{IdentityStore, PeerTrust, SpiffeId, TrustStore};
use eastway_tunnel::header::{self, Label, ServiceHeader, Source, StreamHeader, Traceparent};
use eastway_tunnel::transport::BoxFuture;
use eastway_tunnel::{
    AcceptedStream, HostPort, Link, LinkInfo, PeerTarget, ReplicaId, ReplicaNetwork, StreamHandler, Timing, Tunnel,
    TunnelConfig, TunnelLimits, TunnelStream,
};
use tokio::runtime::Runtime;
use tokio::sync::watch;

fn main() {
    divan::main();
}

fn full_header() -> StreamHeader {
    let label = |text| Label::parse(text).unwrap();
    StreamHeader::Service(ServiceHeader {
        namespace: label("bookinfo"),
        service: label("reviews"),
        port: NonZeroU16::new(9080).unwrap(),
        subset: BTreeMap::from([("version".into(), "v2".into())]),
        endpoint: None,
        affinity: None,
        tls: false,
        client: None,
        flow: None,
        source: Source {
            namespace: Some(label("bookinfo")),
            service_account: Some(label("productpage")),
            identity: Some("spiffe://onprem.example/ns/bookinfo/sa/productpage".into()),
        },
        traceparent: Traceparent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    })
}

#[divan::bench]
fn header_decode(bencher: Bencher) {
    let bytes = full_header().encode().unwrap();
    bencher.bench(|| header::decode(black_box(&bytes)));
}

#[divan::bench]
fn header_encode(bencher: Bencher) {
    let header = full_header();
    bencher.bench(|| black_box(&header).encode());
}

/// Header out, status byte back, both directions ended.
#[divan::bench]
fn stream_open_to_answer(bencher: Bencher) {
    let pair = Pair::new();
    bencher.bench_local(|| pair.runtime.block_on(one_stream(&pair.link, &pair.header)));
}

/// As above, 64 at a time.
#[divan::bench]
fn stream_open_to_answer_64_at_once(bencher: Bencher) {
    let pair = Pair::new();
    bencher.bench_local(|| {
        let streams = (0..64).map(|_| one_stream(&pair.link, &pair.header));
        pair.runtime.block_on(futures_util::future::join_all(streams))
    });
}

/// Bytes one way over loopback UDP, in the chunks that a proxy reads.
#[divan::bench]
fn stream_16_mib(bencher: Bencher) {
    transfer(bencher, &Pair::new());
}

/// As above, to a gateway that looks whether each packet is another replica's.
#[divan::bench]
fn stream_16_mib_among_replicas(bencher: Bencher) {
    transfer(bencher, &Pair::among_replicas());
}

fn transfer(bencher: Bencher, pair: &Pair) {
    const CHUNK: usize = 256 << 10;
    let chunk = Bytes::from(vec![7; CHUNK]);
    bencher.counter(BytesCount::new(16_u32 << 20)).bench_local(|| {
        pair.runtime.block_on(async {
            let mut stream = pair.link.open(&pair.header).await.unwrap();
            for _ in 0..(16 << 20) / CHUNK {
                stream.send.write(chunk.clone()).await.unwrap();
            }
            stream.send.finish();
            stream.send.stopped().await.unwrap();
        });
    });
}

async fn one_stream(link: &Link, header: &StreamHeader) {
    let mut stream = link.open(header).await.unwrap();
    stream.accepted().await.unwrap();
    stream.send.finish();
    while stream.recv.read().await.unwrap().is_some() {}
}

struct Pair {
    runtime: Runtime,
    link: Link,
    header: StreamHeader,
    _tunnels: Vec<Tunnel>,
}

impl Pair {
    /// A gateway of `a` with a link to the one of `b`.
    fn new() -> Self {
        Self::of(&["a", "b"])
    }

    /// Likewise, and `b` has one more that answers the first one's beats.
    fn among_replicas() -> Self {
        Self::of(&["a", "b", "b"])
    }

    fn of(gateways: &[&str]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let clouds = ["a", "b"].map(|name| {
            let ca = Ca::init(&folder.path().join(name), &InitOptions::new(&format!("{name}.example"))).unwrap();
            (name, SpiffeId::gateway(&format!("{name}.example")).unwrap(), ca)
        });
        let trust = clouds.each_ref().map(|(name, id, ca)| PeerTrust {
            name: (*name).into(),
            gateway: id.clone(),
            pins: vec![ca.pin()],
            bundle: Vec::new(),
            crls: Vec::new(),
        });
        let siblings = watch::Sender::new(Arc::from([]));
        let guard = runtime.enter();
        let mut tunnels = Vec::new();
        for gateway in gateways {
            let (name, id, ca) = clouds.iter().find(|(name, ..)| name == gateway).unwrap();
            let identity = ca.issue_identity(id, Duration::from_secs(3_600), SystemTime::now()).unwrap();
            let others = trust.iter().filter(|peer| &*peer.name != *name).cloned().collect();
            let any_port = (Ipv4Addr::LOCALHOST, 0).into();
            let network = ReplicaNetwork { listen: any_port, siblings: siblings.subscribe() };
            let config = TunnelConfig {
                listen: any_port,
                cluster: (*name).into(),
                replica: ReplicaId::random().unwrap(),
                predecessors: Arc::default(),
                quic_lb: None,
                replicas: (gateways.len() > 2 && *name == "b").then_some(network),
                keys: ca.link_keys(),
                limits: TunnelLimits::default(),
                timing: Timing::default(),
                software_version: "bench".into(),
            };
            let trust = TrustStore::new(others).unwrap();
            tunnels.push(Tunnel::bind(config, IdentityStore::new(identity), trust, Arc::new(AtOnce)).unwrap());
        }
        drop(guard);
        let (a, b) = (&tunnels[0], &tunnels[1]);
        siblings.send_replace(b.replicas_addr().into_iter().collect());
        let known = async {
            while gateways.len() > 2 && b.siblings().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        runtime.block_on(known);
        let target =
            PeerTarget { name: "b".into(), addresses: vec![HostPort::from(b.local_addr())], ..PeerTarget::default() };
        a.set_peers(vec![target]);
        let mut events = a.events();
        runtime.block_on(events.wait_for(|peers| peers.values().any(|peer| peer.up))).unwrap();
        let link = a.links().to("b").first().unwrap().clone();
        Self { runtime, link, header: full_header(), _tunnels: tunnels }
    }
}

/// Accepts, and ends its direction.
struct AtOnce;

impl StreamHandler for AtOnce {
    fn handle(&self, _link: LinkInfo, _header: StreamHeader, stream: AcceptedStream) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Ok(TunnelStream { mut send, mut recv }) = stream.accept().await else { return };
            send.finish();
            let mut chunks = vec![Bytes::new(); 64];
            while let Ok(Some(_)) = recv.read_chunks(&mut chunks).await {}
        })
    }
}

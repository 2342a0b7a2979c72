//! What one answer and one change cost, without sockets, among 10,000 services.
#![allow(clippy::unwrap_used, reason = "a benchmark ends by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use divan::{Bencher, black_box};
use eastway_dns::{
    PortEntry, Protocol, RateLimiter, Readiness, Responder, ServiceEntry, ServiceKind, Transport, ZoneStore,
};

fn main() {
    divan::main();
}

fn service(index: u32, version: u8) -> ServiceEntry {
    let [_, _, c, d] = index.to_be_bytes();
    ServiceEntry {
        namespace: format!("ns-{}", index % 100),
        name: format!("svc-{index}"),
        kind: ServiceKind::ClusterSet { addresses: vec![[242, version, c, d].into()] },
        ports: vec![PortEntry { name: Some("http".into()), protocol: Protocol::Tcp, port: 80 }],
    }
}

fn store() -> Arc<ZoneStore> {
    let store = ZoneStore::new([]).unwrap();
    store.replace_all(&(0..10_000).map(|index| service(index, 0)).collect::<Vec<_>>(), &[]).unwrap();
    store.set_readiness(Readiness::complete());
    store
}

fn query(name: &str, qtype: u8) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend([0, 0, qtype, 0, 1]);
    query.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    query
}

/// Answers to many names in turn, as a server sees them.
fn answers(bencher: Bencher<'_, '_>, name: impl Fn(u32) -> String, qtype: u8) {
    let now = Instant::now();
    let responder = Responder::new(store(), Arc::new(RateLimiter::new(0, now)));
    let queries: Vec<_> = (0..1024_u32).map(|i| query(&name(i * 7919 % 10_000), qtype)).collect();
    let source = SocketAddr::from(([192, 0, 2, 1], 5353));
    let mut reply = Vec::with_capacity(1232);
    let mut next = queries.iter().cycle();
    bencher.bench_local(|| {
        let query = next.next().unwrap();
        black_box(responder.respond(black_box(query), source, Transport::Udp, now, &mut reply))
    });
}

#[divan::bench(sample_count = 200, sample_size = 256)]
fn address(bencher: Bencher<'_, '_>) {
    answers(bencher, |i| format!("svc-{i}.ns-{}.svc.clusterset.local", i % 100), 1);
}

#[divan::bench(sample_count = 200, sample_size = 256)]
fn srv(bencher: Bencher<'_, '_>) {
    answers(bencher, |i| format!("_http._tcp.svc-{i}.ns-{}.svc.clusterset.local", i % 100), 33);
}

#[divan::bench(sample_count = 200, sample_size = 256)]
fn no_such_name(bencher: Bencher<'_, '_>) {
    answers(bencher, |i| format!("none-{i}.ns-{}.svc.clusterset.local", i % 100), 1);
}

#[divan::bench(sample_count = 200, sample_size = 256)]
fn through_a_search_path(bencher: Bencher<'_, '_>) {
    answers(bencher, |i| format!("www-{i}.example.com.svc.clusterset.local"), 1);
}

#[divan::bench(sample_count = 200, sample_size = 256)]
fn one_service_changes(bencher: Bencher<'_, '_>) {
    let store = store();
    let mut version = 0_u8;
    bencher.bench_local(|| {
        version = version.wrapping_add(1);
        store.upsert_service(black_box(&service(777, version))).unwrap()
    });
}

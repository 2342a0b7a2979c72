//! Any bytes at all as a DNS query, over both transports.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use eastway_dns::{Outcome, RateLimiter, Readiness, Responder, ServiceEntry, ServiceKind, Transport, ZoneStore};
use libfuzzer_sys::fuzz_target;

static RESPONDER: LazyLock<Responder> = LazyLock::new(|| {
    let store = ZoneStore::new([]).expect("no zones of its own");
    store.set_readiness(Readiness::complete());
    let kind = ServiceKind::ClusterSet { addresses: vec![[242, 0, 0, 1].into()] };
    let web = ServiceEntry { namespace: "demo".into(), name: "web".into(), kind, ports: Vec::new() };
    store.upsert_service(&web).expect("its names are labels");
    Responder::new(store, Arc::new(RateLimiter::new(0, Instant::now())))
});

fuzz_target!(|packet: &[u8]| {
    let mut reply = Vec::new();
    for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65535)] {
        let outcome = RESPONDER.respond(packet, ([192, 0, 2, 1], 53).into(), transport, Instant::now(), &mut reply);
        if outcome == Outcome::Reply {
            assert!((12..=limit).contains(&reply.len()));
            assert_eq!(reply[..2], packet[..2]);
        }
    }
});

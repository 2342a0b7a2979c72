//! Memory per remote endpoint (design §11: at most 400 B, goal 150 B). A process of its own, so that
//! nothing else moves the figures.

#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected has to fail")]

use std::sync::Arc;

use eastway_model::rules::{NameFilter, PeerRules, Rules};
use eastway_model::store::Writer;
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointId, Label, PeerChange, ServiceKey, ServiceRecord, TlsMode, UnixMillis,
    WorkloadIdentity,
};

const SERVICES: usize = 100;
const ENDPOINTS: usize = 2_000;

#[test]
fn a_remote_endpoint_costs_at_most_400_bytes() {
    let label = |text: &str| Label::parse(text).unwrap();
    let (mut writer, reader) = Writer::new(label("onprem"));
    let import = NameFilter::of_namespace(&label("bookinfo")).unwrap();
    let gke = PeerRules { import, ..PeerRules::new(label("gke"), "gke.example", UnixMillis(0)) };
    writer.set_rules(Arc::new(Rules { peers: [(label("gke"), Arc::new(gke))].into(), ..Rules::default() }));
    let key = |service: usize| ServiceKey::parse("bookinfo", &format!("service-{service}")).unwrap();
    let peer = |change| Change::Peer { cluster: label("gke"), change };
    for service in 0..SERVICES {
        let record = ServiceRecord::new(key(service), Vec::new());
        writer.apply([peer(PeerChange::Upsert(Arc::new(record)))], UnixMillis(0));
    }
    let before = resident_bytes();
    for service in 0..SERVICES {
        for batch in 0..ENDPOINTS / 100 {
            let upsert = (0..100).map(|number| endpoint(service, batch * 100 + number)).collect();
            let change = PeerChange::Endpoints { service: key(service), upsert, remove: Vec::new() };
            writer.apply([peer(change)], UnixMillis(0));
        }
    }
    let each = resident_bytes().saturating_sub(before) / (SERVICES * ENDPOINTS);
    println!("{each} bytes per remote endpoint");
    assert_eq!(reader.load().peer("gke").unwrap().endpoints, SERVICES * ENDPOINTS);
    assert!(each <= 400, "{each} bytes per remote endpoint");
}

/// As a Deployment's pods look: long ids, a few versions and zones, one identity for all.
fn endpoint(service: usize, number: usize) -> Endpoint {
    let version = if number.is_multiple_of(2) { "v1" } else { "v2" };
    Endpoint {
        id: EndpointId::parse(&format!("service-{service}-7d9c5b8f64-{number:05}")).unwrap(),
        hostname: None,
        subset: [(Arc::from("version"), Arc::from(version))].into(),
        zone: Some(Arc::from(format!("europe-west1-{}", number % 3))),
        condition: EndpointCondition::READY,
        weight: 100,
        identity: WorkloadIdentity::parse(&format!("spiffe://gke.example/ns/bookinfo/sa/service-{service}")),
        tls: TlsMode::Mesh,
    }
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kilobytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes * 1024
}

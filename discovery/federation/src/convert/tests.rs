//! Conversions: what crosses comes back as it was, and each bad record gets its own answer.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use eastway_model::{
    Endpoint, InternalTrafficPolicy, IpFamily, ServiceKind, ServiceRecord, SessionAffinity, UnixMillis,
};
use eastway_proto::federation::v1 as wire;
use prost::Message;

use super::*;
use crate::testing::{endpoint, port, service};

const DOMAIN: &str = "b.example";

fn record() -> ServiceRecord {
    let mut record =
        (*service("shop/reviews", (0..7).map(|n| endpoint(n, if n < 4 { "v1" } else { "v2" }))).record).clone();
    record.kind = ServiceKind::Headless;
    record.ports.push(port("admin", 9081));
    record.ip_families = vec![IpFamily::Ipv6, IpFamily::Ipv4];
    record.session_affinity = SessionAffinity::ClientIp { timeout: Duration::from_secs(10_800) };
    record.internal_traffic_policy = InternalTrafficPolicy::Local;
    record.traffic_distribution = Some("PreferClose".into());
    record.labels = BTreeMap::from([("app.kubernetes.io/name".into(), "reviews".into()), ("tier".into(), "".into())]);
    record.annotations = BTreeMap::from([("note".into(), "two\nlines, é".into())]);
    record.exported_at = UnixMillis(77);
    record.proxy_protocol = [NonZeroU16::new(9081).unwrap()].into();
    record
}

fn read(service: &wire::Service, counts: &[wire::GroupCount]) -> Result<ServiceRecord, RejectReason> {
    let (key, service) = service_from_wire(&service.encode_to_vec().into())?;
    record_from_wire(key, service, counts, UnixMillis(77), DOMAIN, &mut Texts::default())
}

fn read_endpoint(endpoint: &wire::Endpoint) -> Result<Endpoint, RejectReason> {
    endpoint_from_wire(&endpoint.encode_to_vec(), DOMAIN, &mut Texts::default())
}

#[test]
fn a_record_comes_back_as_it_was() {
    let record = record();
    assert_eq!(read(&service_to_wire(&record), &counts_to_wire(&record)), Ok(record));
}

#[test]
fn only_tcp_ports_that_there_are_are_told_clients() {
    let mut service = service_to_wire(&record());
    service.proxy_protocol_ports = vec![0, 9081, 9082, 70_000, 9081];
    let read = read(&service, &counts_to_wire(&record())).unwrap();
    assert_eq!(read.proxy_protocol, [NonZeroU16::new(9081).unwrap()].into());
}

#[test]
fn an_endpoint_comes_back_as_it_was() {
    let mut endpoint = endpoint(3, "v2").endpoint;
    assert_eq!(read_endpoint(&endpoint_to_wire(&endpoint)), Ok(endpoint.clone()));
    endpoint.hostname = Some("reviews-0".parse().unwrap());
    endpoint.zone = None;
    endpoint.identity = None;
    endpoint.subset = eastway_model::Subset::new();
    assert_eq!(read_endpoint(&endpoint_to_wire(&endpoint)), Ok(endpoint));
}

#[test]
fn i1_p2_nothing_that_looks_like_an_address_is_read_or_sent() {
    // A sender that adds fields of its own: unknown to us, so it is as if they were not there.
    let mut encoded = service_to_wire(&record()).encode_to_vec();
    encoded.extend_from_slice(&[0xa2, 0x06, 8]); // field 100, eight bytes
    encoded.extend_from_slice(b"10.0.0.1");
    let (key, body) = service_from_wire(&Bytes::from(encoded)).unwrap();
    let read = record_from_wire(key, body, &counts_to_wire(&record()), UnixMillis(77), DOMAIN, &mut Texts::default());
    assert_eq!(read, Ok(record()));
    // And outwards: the address of an endpoint is in none of its bytes.
    let local = endpoint(5, "v1");
    let bytes = endpoint_to_wire(&local.endpoint).encode_to_vec();
    assert!(!bytes.windows(8).any(|window| window == local.address.to_string().as_bytes()));
    assert!(!bytes.windows(4).any(|window| window == [10, 0, 0, 5]));
    // Nor can a name be one: of a service, of an endpoint, of a host.
    for address in ["10.0.0.1", "169.254.169.254", "::1", "fd00::1", "[::1]", "0x7f.1", "10.0.0.1:80"] {
        let with_id = wire::Endpoint { id: address.into(), ..endpoint_to_wire(&local.endpoint) };
        assert!(read_endpoint(&with_id).is_err(), "endpoint id {address}");
        let with_host = wire::Endpoint { hostname: address.into(), ..endpoint_to_wire(&local.endpoint) };
        assert!(read_endpoint(&with_host).is_err(), "hostname {address}");
    }
    for address in ["10.0.0.1", "::1", "2130706433", "0x7f000001", "017700000001"] {
        assert!(refused(|service, _| service.name = address.into()).starts_with("service \""), "service {address}");
    }
}

/// Changes a good record and tells what it is refused for.
fn refused(change: impl FnOnce(&mut wire::Service, &mut Vec<wire::GroupCount>)) -> String {
    let record = record();
    let (mut service, mut counts) = (service_to_wire(&record), counts_to_wire(&record));
    change(&mut service, &mut counts);
    read(&service, &counts).unwrap_err().to_string()
}

#[test]
fn p7_bad_ports_are_refused() {
    let port = |number| refused(|service, _| service.ports[0].number = number);
    assert_eq!(port(0), "port 0: must be 1-65535");
    assert_eq!(port(65_536), "port 65536: must be 1-65535");
    assert_eq!(refused(|service, _| service.ports[0].protocol = 0), "protocol 0 is not known");
    assert_eq!(refused(|service, _| service.ports[0].protocol = 132), "protocol 132 is not known");
    let many = refused(|service, _| {
        service.ports = (1..=251)
            .map(|n| wire::Port { number: n, name: format!("p{n}"), protocol: 1, ..Default::default() })
            .collect();
    });
    assert_eq!(many, "251 ports; at most 250 are allowed");
    assert_eq!(refused(|service, _| service.ports[1].number = 9080), "ports are not unique and in order");
    assert_eq!(refused(|service, _| service.ports[1].name = "http".into()), "ports are not unique and in order");
    assert_eq!(
        refused(|service, _| service.ports[0].name = "sixteen-bytes-xy".into()),
        "port name \"sixteen-bytes-xy\" is 16 bytes long; at most 15 are allowed"
    );
    assert!(refused(|service, _| service.ports[0].app_protocol = "h t".into()).starts_with("appProtocol"));
}

#[test]
fn p7_bad_counts_are_refused() {
    assert_eq!(refused(|_, counts| counts[0].ready = 1 << 63), "ready 9223372036854775808 is out of range");
    assert_eq!(refused(|_, counts| counts[0].draining = 1_000_001), "draining 1000001 is out of range");
    assert_eq!(refused(|_, counts| counts[0].weight = u64::MAX), "weight 18446744073709551615 is out of range");
    assert_eq!(refused(|_, counts| counts.truncate(5)), "5 counts; at most 6 are allowed");
    assert_eq!(refused(|_, counts| counts.push(wire::GroupCount::default())), "7 counts; at most 6 are allowed");
    let many = refused(|service, counts| {
        service.groups =
            (0..257).map(|n| wire::Group { zone: format!("z{n:03}"), tls: 1, ..Default::default() }).collect();
        counts.resize(257, wire::GroupCount::default());
    });
    assert_eq!(many, "257 groups; at most 256 are allowed");
}

#[test]
fn p7_bad_values_are_refused() {
    assert_eq!(refused(|service, _| service.r#type = 0), "type 0 is not known");
    assert_eq!(refused(|service, _| service.r#type = 9), "type 9 is not known");
    assert_eq!(refused(|service, _| service.ip_families = vec![1, 1]), "ipFamilies are not unique and in order");
    assert_eq!(refused(|service, _| service.ip_families = vec![1, 2, 1]), "3 ipFamilies; at most 2 are allowed");
    assert_eq!(refused(|service, _| service.ip_families = vec![3]), "ipFamilies 3 is not known");
    assert_eq!(refused(|service, _| service.internal_traffic_policy = 3), "internalTrafficPolicy 3 is not known");
    let affinity = |timeout_seconds| {
        refused(|service, _| service.client_ip_affinity = Some(wire::ClientIpAffinity { timeout_seconds }))
    };
    assert_eq!(affinity(0), "sessionAffinity timeout 0 is out of range");
    assert_eq!(affinity(86_401), "sessionAffinity timeout 86401 is out of range");
    assert_eq!(refused(|service, _| service.groups[0].tls = 0), "tls 0 is not known");
    assert_eq!(refused(|service, _| service.groups.swap(0, 1)), "groups are not unique and in order");
    let twice = refused(|service, _| service.groups[1] = service.groups[0].clone());
    assert_eq!(twice, "groups are not unique and in order");
}

#[test]
fn p11_names_and_texts_that_could_do_harm_are_refused() {
    let long = "n".repeat(64 << 10);
    for bad in ["", "a\nb", "\u{1b}[31m", "a\0", "\u{202e}abc", "Reviews", "a.b", "../a", "10.0.0.1 ", &long] {
        let name = refused(|service, _| service.name = bad.to_owned());
        assert!(name.len() < 300 && !name.contains(['\n', '\u{1b}', '\0', '\u{202e}']), "{name:?}");
        assert!(name.starts_with("service ") || name.starts_with("record of"), "{name}");
        let namespace = refused(|service, _| service.namespace = bad.to_owned());
        assert!(namespace.starts_with("namespace ") || namespace.starts_with("record of"), "{namespace}");
    }
    let label = |value: &str| refused(|service, _| service.labels[0].value = value.to_owned());
    assert!(label(&"v".repeat(300)).starts_with("labels \"vvv"), "a 300-byte label");
    assert!(label("new\nline").starts_with("labels"));
    assert!(refused(|service, _| service.labels[0].key = "a b".into()).starts_with("labels"));
    assert!(refused(|service, _| service.labels[0].key = "x/".into()).starts_with("labels"));
    assert!(refused(|service, _| service.labels[0].key = "/x".into()).starts_with("labels"));
    assert!(refused(|service, _| service.labels[0].key = "a/b/c".into()).starts_with("labels"));
    assert_eq!(refused(|service, _| service.labels.reverse()), "labels are not unique and in order");
    let annotation = |value: &str| refused(|service, _| service.annotations[0].value = value.to_owned());
    assert!(annotation("\u{1b}[2J").starts_with("annotations"));
    assert!(annotation("\u{2066}abc").starts_with("annotations"));
    assert!(annotation(&"v".repeat(4097)).starts_with("annotations"));
    let many = refused(|service, _| {
        service.labels = (0..65).map(|n| wire::Pair { key: format!("k{n:02}"), value: String::new() }).collect();
    });
    assert_eq!(many, "65 labels; at most 64 are allowed");
    assert!(refused(|service, _| service.groups[0].zone = "zone a".into()).starts_with("zone"));
    assert!(refused(|service, _| service.traffic_distribution = "é".into()).starts_with("trafficDistribution"));
}

#[test]
fn p3_identities_outside_the_peers_trust_domain_are_refused() {
    let identity = |uri: &str| refused(|service, _| service.groups[0].identities = vec![uri.to_owned()]);
    assert_eq!(
        identity("spiffe://a.example/ns/shop/sa/admin"),
        "identity \"spiffe://a.example/ns/shop/sa/admin\" is not in the peer's trust domain b.example"
    );
    for bad in ["", "spiffe://b.example/ns/shop", "https://b.example/ns/shop/sa/x", "spiffe://b.example/ns/shop/sa/x/y"]
    {
        assert!(identity(bad).ends_with("is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>"), "{bad}");
    }
    let many = refused(|service, _| {
        service.groups[0].identities = (0..65).map(|n| format!("spiffe://b.example/ns/shop/sa/a{n}")).collect();
    });
    assert_eq!(many, "65 identities; at most 64 are allowed");
    let mut endpoint = endpoint_to_wire(&endpoint(1, "v1").endpoint);
    endpoint.identity = "spiffe://a.example/ns/shop/sa/admin".into();
    assert!(matches!(read_endpoint(&endpoint), Err(RejectReason::ForeignIdentity { .. })));
}

#[test]
fn p7_bad_endpoints_are_refused() {
    let bad = |change: fn(&mut wire::Endpoint)| {
        let mut endpoint = endpoint_to_wire(&endpoint(1, "v1").endpoint);
        change(&mut endpoint);
        read_endpoint(&endpoint).unwrap_err().to_string()
    };
    assert!(bad(|endpoint| endpoint.id = "10.0.0.1".into()).starts_with("endpoint id \"10.0.0.1\""));
    assert!(bad(|endpoint| endpoint.id = "x".repeat(65)).starts_with("endpoint id"));
    assert!(bad(|endpoint| endpoint.id.clear()).starts_with("endpoint id"));
    assert!(bad(|endpoint| endpoint.hostname = "A".into()).starts_with("hostname \"A\""));
    assert_eq!(bad(|endpoint| endpoint.weight = 0), "weight 0 is out of range");
    assert_eq!(bad(|endpoint| endpoint.weight = 1_000_001), "weight 1000001 is out of range");
    assert_eq!(bad(|endpoint| endpoint.tls = 77), "tls 77 is not known");
    let many = bad(|endpoint| {
        endpoint.subset = (0..17).map(|n| wire::Pair { key: format!("k{n:02}"), value: "v".into() }).collect();
    });
    assert_eq!(many, "17 subset; at most 16 are allowed");
    let garbage = endpoint_from_wire(&[0xff; 40], DOMAIN, &mut Texts::default()).unwrap_err();
    assert_eq!(garbage.kind(), "unreadable");
    let large = endpoint_from_wire(&vec![0; MAX_RECORD + 1], DOMAIN, &mut Texts::default()).unwrap_err();
    assert_eq!(large, RejectReason::TooLarge(MAX_RECORD + 1));
}

proptest::proptest! {
    #[test]
    fn u5_no_bytes_can_panic_the_reader(bytes in proptest::collection::vec(0_u8.., 0..300)) {
        let mut texts = Texts::default();
        drop(endpoint_from_wire(&bytes, DOMAIN, &mut texts));
        if let Ok((key, service)) = service_from_wire(&bytes.into()) {
            drop(record_from_wire(key, service, &[], UnixMillis(0), DOMAIN, &mut texts));
        }
    }
}

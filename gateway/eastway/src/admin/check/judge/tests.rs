//! One healthy gateway, and everything that can be wrong with it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::{AddressFacts, NextCaFault};
use super::*;

const NOW: u64 = 1_795_000_000_000;

fn healthy() -> CheckFacts {
    let peer = PeerFacts {
        name: "gke".to_owned(),
        up: true,
        addresses: vec![AddressFacts {
            address: "gw.gke.example:15443".to_owned(),
            reach: Reach::Answered(Duration::from_millis(20)),
        }],
        mtu: Some(1_452),
        echo: Some(Ok(Duration::from_micros(21_500))),
        transport: None,
        clock_skew_ms: Some(-12),
        certificate: Some((NOW - 4 * HOUR, NOW + 20 * HOUR)),
        packets: (100_000, 10),
        pins: 1,
        import_rules: 1,
        export_rules: 1,
        imported_services: 2,
        exported_services: 3,
        synced: true,
        ..PeerFacts::default()
    };
    CheckFacts {
        now: NOW,
        gateway: GatewayFacts {
            leaf: Some((NOW - HOUR, NOW + 23 * HOUR)),
            issuer_not_after: Some(NOW + 3_650 * DAY),
            exported_services: 3,
            fd_limit: Some(65_536),
            udp_receive_buffer: Some(4 << 20),
            ..GatewayFacts::default()
        },
        dns: DnsFacts { enabled: true, answers: true, synced: true, ..DnsFacts::default() },
        peers: vec![peer],
    }
}

fn complaints(facts: &CheckFacts) -> Vec<String> {
    let report = judge(facts);
    report.findings.into_iter().filter(|f| f.severity > Severity::Ok).map(|f| f.code).collect()
}

type Break = fn(&mut CheckFacts);

fn peer(facts: &mut CheckFacts) -> &mut PeerFacts {
    facts.peers.first_mut().unwrap()
}

fn istio(facts: &mut CheckFacts) -> &mut IstioFacts {
    facts.gateway.istio.get_or_insert_default()
}

/// A further mesh configuration, of a revision.
fn mesh(facts: &mut CheckFacts) -> &mut MeshFacts {
    let meshes = &mut istio(facts).meshes;
    meshes.push(MeshFacts { revision: "canary".to_owned(), ..MeshFacts::default() });
    meshes.last_mut().unwrap()
}

fn down(facts: &mut CheckFacts, reach: Reach, handshake: Option<HandshakeFault>) {
    let peer = peer(facts);
    peer.up = false;
    peer.addresses[0].reach = reach;
    peer.handshake = handshake;
}

fn handshake(facts: &mut CheckFacts, fault: HandshakeFault) {
    down(facts, Reach::Answered(Duration::from_millis(20)), Some(fault));
}

/// Every code that complains, and the one fault that must lead to it and to nothing else.
const FAULTS: &[(&str, Break)] = &[
    ("EW101", |f| f.gateway.pending = vec!["registry hosts".to_owned()]),
    ("EW102", |f| f.gateway.config_errors = vec!["eastway.yaml:3:1: unknown field".to_owned()]),
    ("EW103", |f| f.gateway.leaf = None),
    ("EW104", |f| f.gateway.leaf = Some((NOW - 2 * HOUR, NOW - HOUR))),
    ("EW105", |f| f.gateway.leaf = Some((NOW - 23 * HOUR, NOW + HOUR))),
    ("EW106", |f| f.gateway.issuer_not_after = Some(NOW + 7 * DAY)),
    ("EW107", |f| f.gateway.issuer_not_after = Some(NOW - 1)),
    ("EW108", |f| f.gateway.crl_next_update = Some(NOW - HOUR)),
    ("EW117", |f| f.gateway.crl_next_update = Some(NOW + HOUR)),
    ("EW118", |f| f.gateway.registry_errors = vec!["hosts: services.yaml:3:1: unknown field".to_owned()]),
    ("EW119", |f| f.gateway.ca_silent = Some("cannot reach it".to_owned())),
    ("EW120", |f| f.gateway.siblings_silent = vec!["10.244.0.2:15442".to_owned()]),
    ("EW122", |f| f.gateway.sidecars_missing = vec!["shop/web-1".to_owned()]),
    ("EW123", |f| f.gateway.sidecars_differ = vec!["port 80 is http by shop/a, tcp by shop/b".to_owned()]),
    ("EW124", |f| f.gateway.sidecars_in_the_way = vec!["shop/web".to_owned()]),
    ("EW121", |f| f.gateway.sidecars_refusing = vec!["web-1.shop: rds: no such domain".to_owned()]),
    ("EW125", |f| istio(f).nobody = vec!["gek".to_owned()]),
    ("EW126", |f| istio(f).unreadable = Some("pods: forbidden".to_owned())),
    ("EW127", |f| istio(f).network = Some("istiod knows no network of this cluster".to_owned())),
    ("EW128", |f| istio(f).strangers = vec!["shop/web-0".to_owned()]),
    ("EW129", |f| istio(f).untold = vec!["gke".to_owned()]),
    ("EW130", |f| istio(f).plain = vec!["shop/web".to_owned()]),
    ("EW131", |f| mesh(f).domains = Some(("cluster.local".to_owned(), "a.example".to_owned()))),
    ("EW132", |f| istio(f).other_root = true),
    ("EW133", |f| {
        let change = "trustDomainAliases: []".to_owned();
        mesh(f).change = Some(MeshChange { peers: vec!["gke".to_owned()], change });
    }),
    ("EW109", |f| f.gateway.leaf = Some((NOW + HOUR, NOW + 25 * HOUR))),
    ("EW110", |f| f.gateway.dropped_log_lines = 7),
    ("EW111", |f| f.gateway.fd_limit = Some(1_024)),
    ("EW112", |f| f.gateway.udp_receive_buffer = Some(212_992)),
    ("EW113", |f| f.gateway.vips_missing = 4),
    ("EW114", |f| f.gateway.exported_without_endpoints = vec!["bookinfo/ratings".to_owned()]),
    ("EW115", |f| f.peers.clear()),
    ("EW116", |f| f.gateway.vips_unbound = vec!["242.0.23.102:80".to_owned()]),
    ("EW201", |f| f.dns.answers = false),
    ("EW202", |f| f.dns.synced = false),
    ("EW203", |f| f.dns.dangling_names = vec![("a.shop.example".to_owned(), "bookinfo/revews".to_owned())]),
    ("EW204", |f| f.dns.unresolved = vec![("a.b.svc.clusterset.local".to_owned(), "SERVFAIL".to_owned())]),
    ("EW301", |f| down(f, Reach::Unresolved("no such name".to_owned()), None)),
    ("EW302", |f| down(f, Reach::Silent, None)),
    ("EW303", |f| down(f, Reach::Refused, None)),
    ("EW304", |f| down(f, Reach::Unroutable("network is unreachable".to_owned()), None)),
    ("EW305", |f| {
        down(f, Reach::Silent, None);
        peer(f).addresses.clear();
    }),
    ("EW306", |f| peer(f).addresses[0].reach = Reach::Silent),
    ("EW307", |f| peer(f).transport = Some("tcp".to_owned())),
    ("EW308", |f| peer(f).mtu = Some(1_200)),
    ("EW309", |f| peer(f).echo = Some(Err("no answer in 2 s".to_owned()))),
    ("EW310", |f| peer(f).packets = (10_000, 500)),
    ("EW311", |f| peer(f).recent_link_losses = 5),
    ("EW312", |f| down(f, Reach::Answered(Duration::from_millis(20)), None)),
    ("EW313", |f| peer(f).via = Some("hub".to_owned())),
    ("EW314", |f| {
        down(f, Reach::Silent, None);
        peer(f).addresses.clear();
        peer(f).relay_error = Some("hub does not relay to gke".to_owned());
    }),
    ("EW401", |f| handshake(f, HandshakeFault::Unpinned("sha256:00".to_owned()))),
    ("EW402", |f| handshake(f, HandshakeFault::WrongIdentity("spiffe://gke.example/ns/a/sa/b".to_owned()))),
    ("EW403", |f| handshake(f, HandshakeFault::Expired(NOW - DAY))),
    ("EW404", |f| handshake(f, HandshakeFault::NotYetValid(NOW + DAY))),
    ("EW405", |f| handshake(f, HandshakeFault::Revoked)),
    ("EW406", |f| handshake(f, HandshakeFault::WrongCluster("gke-2".to_owned()))),
    ("EW407", |f| handshake(f, HandshakeFault::RefusedUs("unknown certificate".to_owned()))),
    ("EW408", |f| handshake(f, HandshakeFault::Protocol("no application protocol".to_owned()))),
    ("EW409", |f| handshake(f, HandshakeFault::Other("timed out".to_owned()))),
    ("EW410", |f| peer(f).certificate = Some((NOW - 23 * HOUR, NOW + HOUR / 2))),
    ("EW411", |f| peer(f).next_ca = Some(NextCaFault::Missing("sha256:00".to_owned()))),
    ("EW415", |f| peer(f).next_ca = Some(NextCaFault::Unknown("sha256:00".to_owned()))),
    ("EW412", |f| peer(f).shared_trust_domain = true),
    ("EW413", |f| peer(f).clock_skew_ms = Some(-31_000)),
    ("EW414", |f| peer(f).clock_skew_ms = Some(3_600_000)),
    ("EW501", |f| peer(f).synced = false),
    ("EW502", |f| peer(f).imported_services = 0),
    ("EW503", |f| peer(f).import_rules = 0),
    ("EW504", |f| peer(f).export_rules = 0),
    ("EW505", |f| peer(f).exported_services = 0),
    ("EW506", |f| peer(f).rejected = vec![("namespace".to_owned(), 3)]),
    ("EW507", |f| peer(f).stale_ms = Some(2 * HOUR)),
    ("EW508", |f| peer(f).conflicts = vec!["bookinfo/reviews: port http differs".to_owned()]),
    ("EW509", |f| peer(f).version_mismatch = Some("they speak 3-4, we 1-2".to_owned())),
    ("EW510", |f| peer(f).istio_plain = vec!["bookinfo/ratings".to_owned()]),
    ("EW601", |f| peer(f).denied = Some((12, "gke/bookinfo/default to bookinfo/ratings".to_owned()))),
    ("EW602", |f| peer(f).denied_by_it = 3),
];

#[test]
fn a_healthy_gateway_has_no_complaint() {
    let report = judge(&healthy());
    assert!(report.findings.iter().all(|f| f.severity == Severity::Ok), "{report:#?}");
    let codes: Vec<_> = report.findings.iter().map(|f| f.code.as_str()).collect();
    assert_eq!(codes, ["EW100", "EW200", "EW300", "EW400", "EW500", "EW600"]);
}

#[test]
fn each_fault_is_named_by_its_code_and_no_other() {
    for (code, break_it) in FAULTS {
        let mut facts = healthy();
        break_it(&mut facts);
        assert_eq!(complaints(&facts), [*code]);
    }
}

#[test]
fn every_code_that_complains_has_a_fault() {
    let tested: BTreeSet<_> = FAULTS.iter().map(|(code, _)| *code).collect();
    let complaining = codes::ALL.iter().filter(|code| code.severity > Severity::Ok).map(|code| code.id);
    assert_eq!(complaining.collect::<BTreeSet<_>>(), tested);
}

#[test]
fn a_finding_says_which_revision_of_istio_it_is_about() {
    let mut facts = healthy();
    mesh(&mut facts).domains = Some(("old.example".to_owned(), "a.example".to_owned()));
    let other = mesh(&mut facts);
    (other.revision, other.domains) = (String::new(), Some(("cluster.local".to_owned(), "a.example".to_owned())));
    let found = judge(&facts).findings.into_iter().filter(|finding| finding.severity > Severity::Ok);
    let shown: Vec<_> = found.map(|finding| format!("{}: {}", finding.subject, finding.message)).collect();
    let says = |subject: &str, its: &str| format!("{subject}: the trust domain of Istio is {its}, and ours a.example");
    assert_eq!(shown, [says("istio revision canary", "old.example"), says("istio", "cluster.local")]);
}

#[test]
fn texts_are_complete() {
    for (code, break_it) in FAULTS {
        let mut facts = healthy();
        break_it(&mut facts);
        for finding in judge(&facts).findings {
            for text in [&finding.message, &finding.cause, &finding.fix] {
                assert!(!text.contains('{') && !text.contains('\n'), "{code}: {text}");
            }
        }
    }
}

#[test]
fn errors_come_first() {
    let mut facts = healthy();
    facts.gateway.fd_limit = Some(1_024);
    down(&mut facts, Reach::Silent, None);
    let severities: Vec<_> = judge(&facts).findings.iter().map(|f| f.severity).collect();
    assert!(severities.is_sorted_by(|a, b| a >= b), "{severities:?}");
}

#[test]
fn a_short_certificate_that_is_renewed_in_time_is_well() {
    let mut facts = healthy();
    peer(&mut facts).certificate = Some((NOW - 40_000, NOW + 20_000));
    assert_eq!(complaints(&facts), [] as [&str; 0], "a third of a minute is left when it is renewed");
}

//! The names a client sees: the DNS schema of the Multi-Cluster Services API next to what CoreDNS
//! 1.15 answers for the same services, names of one's own, and what is said before all is known.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Ask, clusterset, headless, headless_endpoint, own_name, store};
use eastway_dns::{Fqdn, NameError, PendingPeer, Protocol, Readiness, ServiceEntry, ZoneStore};

/// Services as hand-made for CoreDNS in its reference run, and one name of our own.
fn reference() -> Arc<ZoneStore> {
    let store = store(&["shop.example", "eu.shop.example"]);
    for service in reference_services() {
        store.upsert_service(&service).unwrap();
    }
    store
        .upsert_name(&own_name("reviews.shop.example", &["242.0.0.9"], &[(Some("http"), Protocol::Tcp, 9080)]))
        .unwrap();
    store.upsert_name(&own_name("a.b.shop.example", &["242.0.0.10", "fd65:6173:7477::10"], &[])).unwrap();
    store.upsert_name(&own_name("x.eu.shop.example", &["242.0.0.11"], &[])).unwrap();
    store
}

fn reference_services() -> Vec<ServiceEntry> {
    let web = [(Some("http"), Protocol::Tcp, 80), (Some("http3"), Protocol::Udp, 80)];
    vec![
        clusterset("demo", "web", &["242.0.0.1"], &web),
        clusterset("demo", "dual", &["242.0.0.2", "fd65:6173:7477::2"], &[(Some("http"), Protocol::Tcp, 80)]),
        clusterset("demo", "unnamed", &["242.0.0.3"], &[(None, Protocol::Tcp, 80)]),
        clusterset("demo", "two", &["242.0.0.4"], &[(Some("a"), Protocol::Tcp, 80), (Some("b"), Protocol::Tcp, 81)]),
        clusterset("demo", "pending", &[], &web),
        headless(
            "demo",
            "db",
            vec![
                headless_endpoint(Some("web-0"), "c-a", &["10.0.0.1"]),
                headless_endpoint(Some("web-0"), "c-b", &["10.0.0.2"]),
                headless_endpoint(None, "c-b", &["10.0.0.3"]),
            ],
            &[(Some("sql"), Protocol::Tcp, 5432)],
        ),
        headless("demo", "nobody", vec![], &[(Some("sql"), Protocol::Tcp, 5432)]),
    ]
}

#[test]
fn the_reference_battery() {
    let ask = Ask::new(reference());
    let cases: &[(&str, &str, &str)] = &[
        // ClusterSetIP.
        ("web.demo.svc.clusterset.local", "A", "NOERROR A 242.0.0.1"),
        ("web.demo.svc.clusterset.local", "AAAA", "NOERROR SOA"),
        ("web.demo.svc.clusterset.local", "MX", "NOERROR SOA"),
        ("dual.demo.svc.clusterset.local", "AAAA", "NOERROR AAAA fd65:6173:7477::2"),
        ("pending.demo.svc.clusterset.local", "A", "NOERROR SOA"),
        ("pending.demo.svc.clusterset.local", "SRV", "NOERROR SOA"),
        ("_http._tcp.pending.demo.svc.clusterset.local", "SRV", "NOERROR SOA"),
        ("_none._tcp.pending.demo.svc.clusterset.local", "SRV", "NXDOMAIN SOA"),
        // SRV: one record per port number, the share over ports times addresses.
        ("web.demo.svc.clusterset.local", "SRV", "NOERROR SRV 0 50 80 web.demo.svc.clusterset.local. + A 242.0.0.1"),
        (
            "_http._tcp.web.demo.svc.clusterset.local",
            "SRV",
            "NOERROR SRV 0 100 80 web.demo.svc.clusterset.local. + A 242.0.0.1",
        ),
        (
            "_http3._udp.web.demo.svc.clusterset.local",
            "SRV",
            "NOERROR SRV 0 100 80 web.demo.svc.clusterset.local. + A 242.0.0.1",
        ),
        ("_http._tcp.web.demo.svc.clusterset.local", "A", "NOERROR SOA"),
        ("_http._udp.web.demo.svc.clusterset.local", "SRV", "NXDOMAIN SOA"),
        ("_https._tcp.web.demo.svc.clusterset.local", "SRV", "NXDOMAIN SOA"),
        ("_tcp.web.demo.svc.clusterset.local", "SRV", "NOERROR SOA"),
        ("_sctp.web.demo.svc.clusterset.local", "SRV", "NXDOMAIN SOA"),
        (
            "dual.demo.svc.clusterset.local",
            "SRV",
            "NOERROR SRV 0 50 80 dual.demo.svc.clusterset.local. + A 242.0.0.2 AAAA fd65:6173:7477::2",
        ),
        (
            "two.demo.svc.clusterset.local",
            "SRV",
            "NOERROR SRV 0 50 80 two.demo.svc.clusterset.local. SRV 0 50 81 two.demo.svc.clusterset.local. + A 242.0.0.4",
        ),
        ("unnamed.demo.svc.clusterset.local", "SRV", "NOERROR SOA"),
        ("unnamed.demo.svc.clusterset.local", "A", "NOERROR A 242.0.0.3"),
        // No cluster has a name of its own.
        ("c-a.web.demo.svc.clusterset.local", "A", "NXDOMAIN SOA"),
        ("c-b.db.demo.svc.clusterset.local", "A", "NXDOMAIN SOA"),
        // Headless.
        ("db.demo.svc.clusterset.local", "A", "NOERROR A 10.0.0.1 A 10.0.0.2 A 10.0.0.3"),
        ("db.demo.svc.clusterset.local", "AAAA", "NOERROR SOA"),
        ("web-0.c-b.db.demo.svc.clusterset.local", "A", "NOERROR A 10.0.0.2"),
        ("10-0-0-3.c-b.db.demo.svc.clusterset.local", "A", "NOERROR A 10.0.0.3"),
        ("web-0.c-c.db.demo.svc.clusterset.local", "A", "NXDOMAIN SOA"),
        ("web-1.c-b.db.demo.svc.clusterset.local", "A", "NXDOMAIN SOA"),
        (
            "_sql._tcp.db.demo.svc.clusterset.local",
            "SRV",
            "NOERROR SRV 0 33 5432 10-0-0-3.c-b.db.demo.svc.clusterset.local. \
             SRV 0 33 5432 web-0.c-a.db.demo.svc.clusterset.local. \
             SRV 0 33 5432 web-0.c-b.db.demo.svc.clusterset.local. + A 10.0.0.1 A 10.0.0.2 A 10.0.0.3",
        ),
        ("nobody.demo.svc.clusterset.local", "A", "NXDOMAIN SOA"),
        // Above the services.
        ("clusterset.local", "SOA", "NOERROR SOA"),
        ("clusterset.local", "NS", "NOERROR NS ns.dns.clusterset.local."),
        ("clusterset.local", "A", "NOERROR SOA"),
        ("svc.clusterset.local", "A", "NOERROR SOA"),
        ("demo.svc.clusterset.local", "A", "NOERROR SOA"),
        ("other.svc.clusterset.local", "A", "NXDOMAIN SOA"),
        ("dns-version.clusterset.local", "TXT", "NOERROR TXT 1.1.0"),
        ("dns-version.clusterset.local", "A", "NOERROR SOA"),
        ("ns.dns.clusterset.local", "A", "NOERROR SOA"),
        ("dns.clusterset.local", "A", "NOERROR SOA"),
        // What is not there, and what never could be.
        ("other.demo.svc.clusterset.local", "A", "NXDOMAIN SOA"),
        ("www.example.com.clusterset.local", "A", "NXDOMAIN SOA"),
        ("a.b.c.web.demo.svc.clusterset.local", "A", "NXDOMAIN SOA"),
        ("web.demo.pod.clusterset.local", "A", "NXDOMAIN SOA"),
        ("x.dns-version.clusterset.local", "TXT", "NXDOMAIN SOA"),
        // Names of our own.
        ("reviews.shop.example", "A", "NOERROR A 242.0.0.9"),
        ("reviews.shop.example", "AAAA", "NOERROR SOA"),
        ("_http._tcp.reviews.shop.example", "SRV", "NOERROR SRV 0 100 9080 reviews.shop.example. + A 242.0.0.9"),
        ("_tcp.reviews.shop.example", "A", "NOERROR SOA"),
        ("_grpc._tcp.reviews.shop.example", "SRV", "NXDOMAIN SOA"),
        ("shop.example", "SOA", "NOERROR SOA"),
        ("shop.example", "NS", "NOERROR NS ns.dns.shop.example."),
        ("a.b.shop.example", "AAAA", "NOERROR AAAA fd65:6173:7477::10"),
        ("b.shop.example", "A", "NOERROR SOA"),
        ("c.shop.example", "A", "NXDOMAIN SOA"),
        ("x.eu.shop.example", "A", "NOERROR A 242.0.0.11"),
        ("y.eu.shop.example", "A", "NXDOMAIN SOA"),
        // Nobody else's.
        ("example", "A", "REFUSED"),
        ("hop.example", "A", "REFUSED"),
        ("www.example.com", "A", "REFUSED"),
        ("web.demo.svc.cluster.local", "A", "REFUSED"),
        ("local", "A", "REFUSED"),
        ("", "NS", "REFUSED"),
    ];
    let mut wrong = String::new();
    for (name, qtype, expected) in cases {
        let seen = ask.line(name, qtype);
        if seen != *expected {
            wrong += &format!("{name} {qtype}\n  expected {expected}\n  seen     {seen}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn answers_live_five_seconds_and_denials_one() {
    let ask = Ask::new(reference());
    let answer = ask.message("web.demo.svc.clusterset.local", "SRV");
    assert!(answer.metadata.authoritative && !answer.metadata.recursion_available);
    assert!(answer.answers.iter().chain(&answer.additionals).all(|record| record.ttl == 5));
    for (name, zone) in [
        ("none.demo.svc.clusterset.local", "clusterset.local."),
        ("none.shop.example", "shop.example."),
        ("none.eu.shop.example", "eu.shop.example."),
    ] {
        let denial = ask.message(name, "A");
        assert_eq!(denial.authorities.len(), 1);
        let soa = &denial.authorities[0];
        assert_eq!((soa.name.to_ascii().as_str(), soa.ttl), (zone, 1));
        let hickory_proto::rr::RData::SOA(soa) = &soa.data else { panic!("no SOA") };
        assert_eq!((soa.minimum, soa.mname.to_ascii()), (1, format!("ns.dns.{zone}")));
        assert_eq!(soa.rname.to_ascii(), format!("hostmaster.{zone}"));
    }
}

#[test]
fn the_letters_of_the_question_come_back() {
    let ask = Ask::new(reference());
    let answer = ask.message("wEb.DEMO.svc.ClusterSet.LOCAL", "A");
    assert_eq!(answer.queries[0].name().to_ascii(), "wEb.DEMO.svc.ClusterSet.LOCAL.");
    assert_eq!(answer.answers[0].name.to_ascii(), "wEb.DEMO.svc.ClusterSet.LOCAL.");
    let denial = ask.message("nOne.DEMO.svc.ClusterSet.LOCAL", "A");
    assert_eq!(denial.authorities[0].name.to_ascii(), "ClusterSet.LOCAL.");
}

#[test]
fn names_come_and_go_with_what_lies_below_them() {
    let store = reference();
    let ask = Ask::new(store.clone());
    for service in reference_services() {
        assert_eq!(ask.rcode("demo.svc.clusterset.local"), "NOERROR", "before {} goes", service.name);
        assert!(store.remove_service("demo", &service.name));
        assert!(!store.remove_service("demo", &service.name));
    }
    assert_eq!(ask.rcode("demo.svc.clusterset.local"), "NXDOMAIN");
    assert_eq!(ask.rcode("svc.clusterset.local"), "NOERROR");

    store.upsert_name(&own_name("b.shop.example", &["242.0.0.12"], &[])).unwrap();
    assert_eq!(ask.line("b.shop.example", "A"), "NOERROR A 242.0.0.12");
    assert!(store.remove_name(&fqdn("b.shop.example")));
    assert_eq!(ask.rcode("b.shop.example"), "NOERROR", "a.b is still there");
    assert!(store.remove_name(&fqdn("a.b.shop.example")));
    assert_eq!(ask.rcode("b.shop.example"), "NXDOMAIN");
    assert_eq!(ask.rcode("a.b.shop.example"), "NXDOMAIN");
}

#[test]
fn a_zone_can_have_addresses_itself_and_can_go() {
    let store = reference();
    let ask = Ask::new(store.clone());
    store.upsert_name(&own_name("shop.example", &["242.0.0.20"], &[])).unwrap();
    assert_eq!(ask.line("shop.example", "A"), "NOERROR A 242.0.0.20");
    assert_eq!(ask.line("shop.example", "NS"), "NOERROR NS ns.dns.shop.example.");
    store.set_zones([fqdn("shop.example")], &["198.51.100.1".parse().unwrap()]).unwrap();
    assert_eq!(ask.line("shop.example", "A"), "NOERROR A 242.0.0.20");
    assert_eq!(ask.line("ns.dns.shop.example", "A"), "NOERROR A 198.51.100.1");
    assert_eq!(ask.line("x.eu.shop.example", "A"), "NOERROR A 242.0.0.11", "now of the zone above");
    assert!(store.remove_name(&fqdn("shop.example")));
    assert_eq!(ask.line("shop.example", "A"), "NOERROR SOA");
    store.set_zones([], &[]).unwrap();
    assert_eq!(ask.line("reviews.shop.example", "A"), "REFUSED");
    store.set_zones([fqdn("shop.example")], &[]).unwrap();
    assert_eq!(ask.line("reviews.shop.example", "A"), "NXDOMAIN SOA", "names went with their zone");
}

#[test]
fn replacing_everything_is_what_it_says() {
    let store = reference();
    let ask = Ask::new(store.clone());
    let kept = own_name("reviews.shop.example", &["242.0.0.9"], &[]);
    store.replace_all(&[clusterset("new", "web", &["242.0.1.1"], &[])], &[kept]).unwrap();
    assert_eq!(ask.line("web.new.svc.clusterset.local", "A"), "NOERROR A 242.0.1.1");
    assert_eq!(ask.line("web.demo.svc.clusterset.local", "A"), "NXDOMAIN SOA");
    assert_eq!(ask.line("demo.svc.clusterset.local", "A"), "NXDOMAIN SOA");
    assert_eq!(ask.line("reviews.shop.example", "A"), "NOERROR A 242.0.0.9");
    assert_eq!(ask.line("_http._tcp.reviews.shop.example", "SRV"), "NXDOMAIN SOA");
    assert_eq!(ask.line("a.b.shop.example", "A"), "NXDOMAIN SOA");
    assert_eq!(ask.line("b.shop.example", "A"), "NXDOMAIN SOA");
}

#[test]
fn what_is_not_ours_to_serve_is_refused_when_it_is_configured() {
    let store = reference();
    for zone in ["clusterset.local", "svc.clusterset.local", "local"] {
        assert_eq!(ZoneStore::new([fqdn(zone)]).err(), Some(NameError::Reserved(fqdn(zone))));
    }
    let refused = |name| store.upsert_name(&own_name(name, &["242.0.0.1"], &[])).unwrap_err();
    assert!(matches!(refused("reviews.example"), NameError::NotInZone(_)));
    assert!(matches!(refused("web.demo.svc.clusterset.local"), NameError::Reserved(_)));
    assert!(matches!(refused("ns.dns.shop.example"), NameError::Reserved(_)));
    for (namespace, name) in [("de.mo", "web"), ("demo", ""), ("demo", "-web"), ("demo", &*"a".repeat(64))] {
        let error = store.upsert_service(&clusterset(namespace, name, &["242.0.0.1"], &[])).unwrap_err();
        assert!(matches!(error, NameError::NotALabel(_)), "{error}");
    }
}

#[test]
fn i5_before_local_sync_no_service_is_confirmed_or_denied() {
    let store = reference();
    store.set_readiness(Readiness::default());
    let ask = Ask::new(store.clone());
    for name in [
        "web.demo.svc.clusterset.local",
        "none.demo.svc.clusterset.local",
        "demo.svc.clusterset.local",
        "reviews.shop.example",
        "none.shop.example",
    ] {
        let answer = ask.message(name, "A");
        assert_eq!(common::line(&answer), "SERVFAIL EDE 14", "{name}");
        assert!(!answer.metadata.authoritative);
    }
    // These do not depend on any registry.
    for (name, expected) in [
        ("www.example.com.clusterset.local", "NXDOMAIN SOA"),
        ("c-a.web.demo.svc.clusterset.local", "NXDOMAIN SOA"),
        ("clusterset.local", "NOERROR SOA"),
        ("svc.clusterset.local", "NOERROR SOA"),
        ("www.example.com", "REFUSED"),
    ] {
        assert_eq!(ask.line(name, "A"), expected, "{name}");
    }
    store.set_readiness(Readiness::complete());
    assert_eq!(ask.line("web.demo.svc.clusterset.local", "A"), "NOERROR A 242.0.0.1");
}

#[test]
fn i5_a_peer_without_state_keeps_only_its_own_names_undecided_and_only_for_30_seconds() {
    let store = reference();
    let start = Instant::now();
    store.set_readiness(Readiness {
        local_synced: true,
        pending: vec![PendingPeer {
            peer: Arc::from("gke"),
            since: start,
            owns: Arc::new(|namespace, name| namespace == "books" || namespace == "demo" && name.starts_with("r")),
        }],
    });
    let mut own = own_name("books.shop.example", &[], &[]);
    own.service = Some(eastway_dns::ServiceName { namespace: "books".into(), name: "any".into() });
    store.upsert_name(&own).unwrap();
    let mut ask = Ask::new(store.clone());
    ask.now = start + Duration::from_secs(29);
    let undecided = [
        "any.books.svc.clusterset.local",
        "aNy.BOOKS.svc.clusterset.local",
        "_http._tcp.any.books.svc.clusterset.local",
        "web-0.gke.any.books.svc.clusterset.local",
        "reviews.demo.svc.clusterset.local",
        "books.shop.example",
    ];
    for name in undecided {
        assert_eq!(ask.line(name, "A"), "SERVFAIL EDE 14", "{name}");
    }
    for (name, expected) in [
        ("web.demo.svc.clusterset.local", "NOERROR A 242.0.0.1"),
        ("none.demo.svc.clusterset.local", "NXDOMAIN SOA"),
        ("any.other.svc.clusterset.local", "NXDOMAIN SOA"),
        ("books.svc.clusterset.local", "NXDOMAIN SOA"),
        ("gke.any.books.svc.clusterset.local", "NXDOMAIN SOA"),
        // An outside name behind a search path: no endpoint of the peer has such a name.
        ("www.example.any.books.svc.clusterset.local", "NXDOMAIN SOA"),
        ("a.b.c.any.books.svc.clusterset.local", "NXDOMAIN SOA"),
        ("w_b.books.svc.clusterset.local", "NXDOMAIN SOA"),
        ("none.shop.example", "NXDOMAIN SOA"),
        ("reviews.shop.example", "NOERROR A 242.0.0.9"),
    ] {
        assert_eq!(ask.line(name, "A"), expected, "{name}");
    }
    ask.now = start + Duration::from_secs(30);
    for name in undecided {
        assert_eq!(ask.line(name, "A"), "NXDOMAIN SOA", "{name}");
    }
}

#[test]
fn a_large_headless_service_answers_with_a_subset_and_all_its_names() {
    let store = store(&[]);
    let endpoints = (0..2000_u32).map(|i| {
        let [_, _, a, b] = i.to_be_bytes();
        headless_endpoint(Some(&format!("pod-{i}")), "c-a", &[&format!("10.0.{a}.{b}"), &format!("fd00::{i:x}")])
    });
    store.upsert_service(&headless("demo", "big", endpoints.collect(), &[(Some("sql"), Protocol::Tcp, 1)])).unwrap();
    let ask = Ask::new(store);
    let (v4, v6) = (ask.tcp("big.demo.svc.clusterset.local", "A"), ask.tcp("big.demo.svc.clusterset.local", "AAAA"));
    assert_eq!((v4.answers.len(), v6.answers.len()), (512, 512));
    assert!(ask.tcp("_sql._tcp.big.demo.svc.clusterset.local", "SRV").answers.len() >= 500);
    assert_eq!(ask.line("pod-1999.c-a.big.demo.svc.clusterset.local", "A"), "NOERROR A 10.0.7.207");
    let cut = ask.message("big.demo.svc.clusterset.local", "A");
    assert!(cut.metadata.truncation && cut.answers.len() > 60, "{}", cut.answers.len());
}

fn fqdn(text: &str) -> Fqdn {
    Fqdn::parse(text).unwrap()
}

#[test]
fn i5_a_service_that_waits_for_its_addresses_is_not_denied() {
    let store = store(&["shop.example"]);
    let mut web = clusterset("demo", "web", &[], &[(Some("http"), Protocol::Tcp, 80)]);
    web.kind = eastway_dns::ServiceKind::Pending;
    store.upsert_service(&web).unwrap();
    let mut name = own_name("web.shop.example", &[], &[]);
    name.service = Some(eastway_dns::ServiceName { namespace: "demo".into(), name: "web".into() });
    store.upsert_name(&name).unwrap();
    let ask = Ask::new(store.clone());
    for name in ["web.demo.svc.clusterset.local", "_http._tcp.web.demo.svc.clusterset.local", "web.shop.example"] {
        assert_eq!(ask.line(name, "A"), "SERVFAIL EDE 14", "{name}");
    }
    assert_eq!(ask.line("c.web.demo.svc.clusterset.local", "A"), "NXDOMAIN SOA", "nothing ever has that shape");
    assert_eq!(ask.line("api.demo.svc.clusterset.local", "A"), "NXDOMAIN SOA", "others are denied");
    store.upsert_service(&clusterset("demo", "web", &["10.96.0.7"], &[])).unwrap();
    assert_eq!(ask.line("web.demo.svc.clusterset.local", "A"), "NOERROR A 10.96.0.7");
    store.remove_service("demo", "web");
    assert_eq!(ask.line("web.shop.example", "A"), "NXDOMAIN SOA");
}

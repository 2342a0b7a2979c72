//! Imports of several clusters by the rules of the MCS API, with the winner's power limited.

use std::sync::Arc;
use std::time::Duration;

use eastway_model::{
    Conflict, ConflictKind, Import, InternalTrafficPolicy, IpFamily, LocalService, ServiceKind, ServicePort,
    ServiceRecord, SessionAffinity, UnixMillis,
};

use super::support::*;

const NAME: &str = "bookinfo/reviews";

fn at(age: u64, record: ServiceRecord) -> ServiceRecord {
    ServiceRecord { exported_at: UnixMillis(NOW.0 - age), ..record }
}

/// The import of records of `onprem`, `edge` and `gke`, each with the milliseconds it is old.
fn import(onprem: Option<ServiceRecord>, edge: Option<ServiceRecord>, gke: Option<ServiceRecord>) -> Import {
    let (mut writer, reader) = store();
    writer.apply([up("edge"), up("gke")], NOW);
    writer.apply(onprem.map(|record| upsert(LocalService::new(record, true, []))), NOW);
    writer.apply(edge.map(|record| peer_upsert("edge", record)), NOW);
    writer.apply(gke.map(|record| peer_upsert("gke", record)), NOW);
    Import::clone(reader.load().import(&key(NAME)).unwrap())
}

fn with_ports(ports: &[(&str, u16)]) -> ServiceRecord {
    ServiceRecord::new(key(NAME), ports.iter().map(|(name, number)| port(name, *number)).collect())
}

fn shown(ports: &[ServicePort]) -> Vec<(String, u16)> {
    let name = |port: &ServicePort| port.name.as_ref().map(ToString::to_string).unwrap_or_default();
    ports.iter().map(|port| (name(port), port.number.get())).collect()
}

fn kinds(import: &Import) -> Vec<ConflictKind> {
    import.conflicts.iter().map(|conflict| conflict.kind).collect()
}

fn named(pairs: &[(&str, u16)]) -> Vec<(String, u16)> {
    pairs.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
}

#[test]
fn ports_are_the_union_and_each_cluster_serves_its_own() {
    let import = import(
        Some(at(2, with_ports(&[("http", 9080)]))),
        None,
        Some(at(1, with_ports(&[("http", 9080), ("admin", 9090)]))),
    );
    assert_eq!(shown(&import.ports), named(&[("http", 9080), ("admin", 9090)]));
    assert!(import.conflicts.is_empty());
    let serves = |part: usize, number| import.parts[part].serves(eastway_model::Protocol::Tcp, port_number(number));
    assert!(serves(0, 9080) && !serves(0, 9090));
    assert!(serves(1, 9080) && serves(1, 9090));
}

#[test]
fn of_ports_with_one_name_the_oldest_has_it_and_the_other_keeps_its_number() {
    let import = import(Some(at(1, with_ports(&[("http", 80)]))), None, Some(at(2, with_ports(&[("http", 8080)]))));
    assert_eq!(shown(&import.ports), named(&[("http", 8080), ("", 80)]));
    let [conflict] = import.conflicts.as_slice() else { panic!("{:?}", import.conflicts) };
    assert_eq!(conflict.kind, ConflictKind::PortConflict);
    assert_eq!((&conflict.winner, &conflict.losers), (&label("gke"), &vec![own()]));
    assert!(conflict.message.contains("http 8080/TCP in gke is http 80/TCP in onprem"), "{}", conflict.message);
}

#[test]
fn of_names_for_one_port_the_oldest_s_counts_and_all_serve_it() {
    let import = import(None, Some(at(1, with_ports(&[("http", 80)]))), Some(at(2, with_ports(&[("web", 80)]))));
    assert_eq!(shown(&import.ports), named(&[("web", 80)]));
    assert_eq!(kinds(&import), [ConflictKind::PortConflict]);
    assert!(import.parts.iter().all(|part| part.serves(eastway_model::Protocol::Tcp, port_number(80))));
}

/// A peer that claims to be old and swaps the names must not draw a port of others to itself.
#[test]
fn an_old_claim_takes_no_port_from_anybody() {
    let import = import(
        Some(at(1, with_ports(&[("http", 80), ("admin", 81)]))),
        None,
        Some(at(2, with_ports(&[("admin", 80), ("http", 81)]))),
    );
    assert_eq!(shown(&import.ports), named(&[("admin", 80), ("http", 81)]));
    for number in [80, 81] {
        assert!(import.parts.iter().all(|part| part.serves(eastway_model::Protocol::Tcp, port_number(number))));
    }
}

#[test]
fn an_unnamed_port_is_a_name_like_any_other() {
    let same = import(Some(with_ports(&[("", 80)])), None, Some(with_ports(&[("", 80)])));
    assert!(same.conflicts.is_empty());
    let other = import(Some(at(2, with_ports(&[("", 80)]))), None, Some(at(1, with_ports(&[("", 81)]))));
    assert_eq!(shown(&other.ports), named(&[("", 80), ("", 81)]));
    assert_eq!(kinds(&other), [ConflictKind::PortConflict]);
}

#[test]
fn app_protocol_is_the_oldest_s() {
    let with = |protocol: &str| {
        let port = ServicePort { app_protocol: Some(Arc::from(protocol)), ..port("http", 80) };
        ServiceRecord::new(key(NAME), vec![port])
    };
    let import = import(Some(at(1, with("http"))), None, Some(at(2, with("kubernetes.io/h2c"))));
    assert_eq!(import.ports[0].app_protocol.as_deref(), Some("kubernetes.io/h2c"));
    assert_eq!(kinds(&import), [ConflictKind::PortConflict]);
}

/// A peer that exported before us must not turn our service headless: its address is in use.
#[test]
fn i6_an_old_claim_takes_no_virtual_address_from_a_service_of_ours() {
    let of_kind = |kind| ServiceRecord { kind, ..with_ports(&[("http", 80)]) };
    let (single, headless) = (of_kind(ServiceKind::ClusterSetIp), of_kind(ServiceKind::Headless));
    let ours = import(Some(at(1, single.clone())), Some(at(3, headless.clone())), Some(at(2, single.clone())));
    assert_eq!(ours.kind, ServiceKind::ClusterSetIp);
    let [Conflict { kind: ConflictKind::TypeConflict, winner, losers, message }] = ours.conflicts.as_slice() else {
        panic!("{:?}", ours.conflicts)
    };
    assert_eq!((winner, losers), (&own(), &vec![label("edge")]));
    assert_eq!(
        message,
        "type: ClusterSetIP in onprem, Headless in edge; onprem is this cluster, where the address is in use"
    );
    // A headless service of ours has none: there the oldest decides, as KEP-1645 has it.
    let older = import(Some(at(2, headless.clone())), None, Some(at(1, single.clone())));
    assert_eq!(older.kind, ServiceKind::Headless);
    let younger = import(Some(at(1, headless.clone())), None, Some(at(2, single.clone())));
    assert_eq!(younger.kind, ServiceKind::ClusterSetIp);
    assert!(younger.conflicts[0].message.ends_with("gke exported first and wins"), "{:?}", younger.conflicts);
    // Between peers the oldest decides, as in all that is not ours.
    let theirs = import(None, Some(at(1, single)), Some(at(2, headless)));
    assert_eq!(theirs.kind, ServiceKind::Headless);
    assert!(theirs.conflicts[0].message.ends_with("gke exported first and wins"), "{:?}", theirs.conflicts);
}

#[test]
fn every_setting_that_differs_is_a_conflict_of_its_own_kind_and_the_oldest_wins() {
    let base = || with_ports(&[("http", 80)]);
    let pairs = |value: &str| [(Arc::from("team"), Arc::from(value))].into();
    let sticky = |seconds| SessionAffinity::ClientIp { timeout: Duration::from_secs(seconds) };
    let affinity = |session_affinity| ServiceRecord { session_affinity, ..base() };
    let cases = [
        (ConflictKind::TypeConflict, base(), ServiceRecord { kind: ServiceKind::Headless, ..base() }),
        (ConflictKind::SessionAffinityConflict, affinity(SessionAffinity::None), affinity(sticky(10))),
        (ConflictKind::SessionAffinityConflict, affinity(sticky(10)), affinity(SessionAffinity::None)),
        (ConflictKind::SessionAffinityConfigConflict, affinity(sticky(10)), affinity(sticky(20))),
        (ConflictKind::LabelsConflict, base(), ServiceRecord { labels: pairs("a"), ..base() }),
        (ConflictKind::AnnotationsConflict, base(), ServiceRecord { annotations: pairs("a"), ..base() }),
        (
            ConflictKind::InternalTrafficPolicyConflict,
            base(),
            ServiceRecord { internal_traffic_policy: InternalTrafficPolicy::Local, ..base() },
        ),
        (
            ConflictKind::TrafficDistributionConflict,
            base(),
            ServiceRecord { traffic_distribution: Some(Arc::from("PreferClose")), ..base() },
        ),
        (
            ConflictKind::IPFamilyConflict,
            ServiceRecord { ip_families: vec![IpFamily::Ipv4], ..base() },
            ServiceRecord { ip_families: vec![IpFamily::Ipv6, IpFamily::Ipv4], ..base() },
        ),
    ];
    for (kind, a, b) in cases {
        for (older, younger) in [(&a, &b), (&b, &a)] {
            let import = import(None, Some(at(2, older.clone())), Some(at(1, younger.clone())));
            let [conflict] = import.conflicts.as_slice() else { panic!("{kind}: {:?}", import.conflicts) };
            assert_eq!((conflict.kind, &conflict.winner), (kind, &label("edge")));
            assert_eq!(conflict.losers, [label("gke")]);
            assert!(conflict.message.ends_with("edge exported first and wins"), "{}", conflict.message);
            let settings = (
                import.kind,
                import.session_affinity,
                import.internal_traffic_policy,
                &import.traffic_distribution,
                &import.labels,
                &import.annotations,
                &import.ip_families,
            );
            let expected = (
                older.kind,
                older.session_affinity,
                older.internal_traffic_policy,
                &older.traffic_distribution,
                &older.labels,
                &older.annotations,
                &older.ip_families,
            );
            assert_eq!(settings, expected, "{kind}");
            assert_eq!(import.parts.len(), 2, "a loser's endpoints stay");
        }
    }
}

#[test]
fn ties_go_to_the_smaller_cluster_name_the_own_one_included() {
    let local = InternalTrafficPolicy::Local;
    let with_local = || ServiceRecord { internal_traffic_policy: local, ..with_ports(&[("http", 80)]) };
    let plain = || with_ports(&[("http", 80)]);
    let of = |import: &Import| (import.internal_traffic_policy, import.conflicts[0].winner.to_string());
    assert_eq!(of(&import(Some(plain()), None, Some(with_local()))), (local, "gke".into()));
    let edge_wins = import(None, Some(plain()), Some(with_local()));
    assert_eq!(of(&edge_wins), (InternalTrafficPolicy::Cluster, "edge".into()));
}

#[test]
fn all_losers_stand_in_one_conflict() {
    let local = InternalTrafficPolicy::Local;
    let other = || ServiceRecord { internal_traffic_policy: local, ..with_ports(&[("http", 80)]) };
    let import = import(Some(at(1, other())), Some(at(3, with_ports(&[("http", 80)]))), Some(at(2, other())));
    let [Conflict { losers, .. }] = import.conflicts.as_slice() else { panic!("{:?}", import.conflicts) };
    assert_eq!(losers, &[label("gke"), own()]);
}

#[test]
fn a_cluster_that_does_not_say_its_families_contradicts_nobody() {
    let v6 = ServiceRecord { ip_families: vec![IpFamily::Ipv6], ..with_ports(&[("http", 80)]) };
    let import = import(Some(at(2, with_ports(&[("http", 80)]))), None, Some(at(1, v6)));
    assert!(import.conflicts.is_empty());
    assert_eq!(import.ip_families, [IpFamily::Ipv6]);
}

#[test]
fn the_import_lives_as_long_as_one_cluster_exports() {
    let (mut writer, reader) = store();
    let there = || reader.load().import(&key(NAME)).map(|import| import.parts.len());
    let remove = || eastway_model::PeerChange::Remove(key(NAME));
    writer.apply([peer_upsert("gke", record(NAME)), peer_upsert("edge", record(NAME))], NOW);
    assert_eq!(there(), Some(2));
    writer.apply([peer("gke", remove())], NOW);
    assert_eq!(there(), Some(1));
    writer.apply([peer("edge", remove())], NOW);
    assert_eq!(there(), None);
}

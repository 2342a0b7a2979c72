//! Services with more endpoints in other clusters than sidecars are told one by one.

use eastway_model::rules::Split;

use super::*;

fn group(version: &str, ready: u32, draining: u32) -> EndpointGroup {
    EndpointGroup {
        zone: None,
        subset: [(Arc::from("version"), Arc::from(version))].into(),
        ready,
        draining,
        weight: u64::from(ready) * 100,
        identities: Vec::new(),
        tls: TlsMode::None,
    }
}

impl World {
    /// `peer` has so many endpoints of `shop/web` of versions 1 and 2, and their records are known.
    fn web(&mut self, peer: &str, [v1, v2]: [u32; 2]) {
        let mut record = ServiceRecord::new(key("shop/web"), vec![port(80, Some("http"))]);
        record.groups = vec![group("v1", v1, 0), group("v2", v2, 0)];
        self.peer(peer, PeerChange::Upsert(Arc::new(record)));
        let known = self.writer.snapshot().import(&key("shop/web")).unwrap().part(Some(&name(peer))).unwrap();
        let remove = known.endpoints.iter().map(|one| EndpointId::parse(one.id).unwrap()).collect();
        self.peer(peer, PeerChange::Endpoints { service: key("shop/web"), upsert: Vec::new(), remove });
        let all = (0..v1).map(|one| (one, "v1")).chain((0..v2).map(|one| (one, "v2")));
        let of = |(one, version): (u32, &str)| {
            endpoint(&format!("{version}-{one}"), None, EndpointCondition::READY, Some(version))
        };
        self.endpoints(peer, "shop/web", all.map(of).collect());
    }
}

fn by_version() -> TrafficPolicy {
    let split = |weight: u32, version: &str| Split {
        weight,
        cluster: None,
        subset: Arc::new([(Arc::from("version"), Arc::from(version))].into()),
    };
    let split = vec![split(80, "v1"), split(20, "v2")];
    TrafficPolicy::new("p", key("shop/web"), split, vec![ClusterRef::Named(name("c"))], None).unwrap()
}

fn part(version: &str) -> String {
    format!("outbound|80|version.{version}|web.shop.svc.clusterset.local")
}

#[test]
fn many_endpoints_are_one_for_each_cluster_and_each_version_that_a_rule_leads_to() {
    let mut world = World { endpoints_per_service: 10, ..World::new() };
    world.set_policy(Some(by_version()));
    world.web("b", [8, 2]);
    assert_eq!(world.places("shop/web", 80).len(), 10, "as many as the limit");
    world.web("c", [3, 0]);
    assert_eq!(
        world.places("shop/web", 80),
        ["b/ p0: web.shop.b as web.shop.b:80 HEALTHY 1000", "c/ p0: web.shop.c as web.shop.c:80 HEALTHY 300"]
    );
    assert_eq!(
        world.places_of(&part("v1")),
        [
            "b/ p0: version=v1.web.shop.b as version=v1.web.shop.b:80 HEALTHY 800",
            "c/ p0: version=v1.web.shop.c as version=v1.web.shop.c:80 HEALTHY 300",
        ]
    );
    assert_eq!(
        world.places_of(&part("v2")),
        [
            "b/ p0: version=v2.web.shop.b as version=v2.web.shop.b:80 HEALTHY 200",
            "c/ p1: web.shop.c as web.shop.c:80 HEALTHY 300",
        ],
        "the last resort of the failover order is any version"
    );
    let view = world.view();
    let assignment: endpoint::v3::ClusterLoadAssignment = decode(view.get(Kind::Endpoints, &part("v2")).unwrap());
    let text = format!("{assignment:?}");
    assert!(text.contains(r#""summary": Value { kind: Some(StringValue("2"))"#), "{text}");
    let cluster: cluster::v3::Cluster = decode(view.get(Kind::Cluster, &part("v2")).unwrap());
    assert_eq!(cluster.lb_policy(), cluster::v3::cluster::LbPolicy::RoundRobin, "by weight alone");
}

#[test]
fn a_service_around_the_limit_does_not_flap() {
    let mut world = World { endpoints_per_service: 10, ..World::new() };
    let mut generator = world.generator();
    let mut is_summary = |world: &World| {
        world.update(&mut generator);
        generator.summaries().count() == 1
    };
    let looks = [(10, false), (11, true), (10, true), (9, true), (8, false), (9, false), (10, false), (11, true)];
    for (count, expected) in looks {
        world.web("b", [count, 0]);
        assert_eq!(is_summary(&world), expected, "{count}");
    }
    world.web("b", [0, 0]);
    assert!(!is_summary(&world));
    // One that is only counted is large as well; and what is here does not count.
    world.export("c", "shop/web", &[port(80, None)], 11);
    assert!(is_summary(&world));
}

#[test]
fn an_endpoint_more_or_less_changes_a_weight_and_nothing_else() {
    let mut world = World { endpoints_per_service: 10, ..World::new() };
    let mut generator = world.generator();
    world.web("b", [12, 0]);
    let before = world.update(&mut generator);
    world.web("b", [13, 0]);
    let after = world.update(&mut generator);
    let name: Arc<str> = cluster_name(&key("shop/web"), NonZeroU16::new(80).unwrap()).into();
    assert_eq!(after.changes_since(&before).unwrap(), BTreeSet::from([(Kind::Endpoints, name)]));
    // Which ones they are is not told.
    world.endpoints("b", "shop/web", vec![endpoint("v1-99", None, EndpointCondition::DOWN, Some("v1"))]);
    let later = world.update(&mut generator);
    assert_eq!(later.generation(), after.generation());
}

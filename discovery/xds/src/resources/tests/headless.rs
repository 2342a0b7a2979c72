//! Headless imports.

use super::*;

#[test]
fn behind_each_address_there_is_exactly_one_endpoint() {
    let mut world = World::new();
    let mut record = ServiceRecord::new(key("shop/db"), vec![port(5432, Some("http"))]);
    record.kind = ServiceKind::Headless;
    world.peer("b", PeerChange::Upsert(Arc::new(record)));
    let of = |id: &str, condition| endpoint(id, Some("z1"), condition, None);
    world.endpoints("b", "shop/db", vec![of("d-1", EndpointCondition::READY), of("d-2", EndpointCondition::DOWN)]);
    let at = |text: &str| vec![text.parse().unwrap()];
    let id = |text: &str| (name("b"), EndpointId::parse(text).unwrap());
    let mut endpoints: OneByOne =
        [(id("d-1"), at("242.0.0.1")), (id("d-2"), at("242.0.0.2")), (id("gone"), at("242.0.0.3"))].into();
    let mut generator = world.generator();
    let mut update = |endpoints: &OneByOne| {
        let all = [(key("shop/db"), endpoints.clone())].into();
        generator.update_all(world.writer.snapshot(), (&world.addresses, &all))
    };
    let view = update(&endpoints);
    let listeners: Vec<&str> = view.all(Kind::Listener).map(|listener| &**listener.name()).collect();
    assert_eq!(listeners, ["242.0.0.1:5432", "242.0.0.2:5432", "hbone"], "one that is not there has none");
    assert!(view.names().any(|(_, name)| &*name == "captured|242.0.0.2:5432"), "also for who captures connections");
    let cluster = "outbound|5432|endpoint.d-2_cluster.b|db.shop.svc.clusterset.local";
    assert!(shown(view.get(Kind::Listener, "242.0.0.2:5432").unwrap(), Kind::Listener).contains(cluster));
    let made: cluster::v3::Cluster = decode(view.get(Kind::Cluster, cluster).unwrap());
    assert_eq!(made.outlier_detection, None, "there is no other to take over");
    let assignment: endpoint::v3::ClusterLoadAssignment = decode(view.get(Kind::Endpoints, cluster).unwrap());
    let [locality] = &assignment.endpoints[..] else { panic!("{assignment:?}") };
    let [one] = &locality.lb_endpoints[..] else { panic!("{locality:?}") };
    assert_eq!(place(one), "d-2.b as d-2.db.shop.b:5432");
    assert_eq!(one.health_status().as_str_name(), "HEALTHY", "who names it means it");
    endpoints.remove(&id("d-1"));
    let view = update(&endpoints);
    assert_eq!(view.len(Kind::Listener), 2);
    assert_eq!(view.len(Kind::Cluster), 2);
}

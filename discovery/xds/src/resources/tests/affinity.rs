//! Services whose clients stay with one endpoint.

use std::time::Duration;

use eastway_model::SessionAffinity;

use super::*;

#[test]
fn clients_are_hashed_for_requests_and_connections() {
    let mut world = World::new();
    let mut record = ServiceRecord::new(key("shop/web"), vec![port(80, Some("http")), port(90, None)]);
    record.session_affinity = SessionAffinity::ClientIp { timeout: Duration::from_secs(60) };
    world.peer("b", PeerChange::Upsert(Arc::new(record)));
    let of = |id: &str| endpoint(id, None, EndpointCondition::READY, None);
    world.endpoints("b", "shop/web", vec![of("w-1"), of("w-2")]);
    world.address("shop/web", &["127.64.0.7"]);
    let view = world.view();
    let name = |number| cluster_name(&key("shop/web"), NonZeroU16::new(number).unwrap());
    for number in [80, 90] {
        let cluster: cluster::v3::Cluster = decode(view.get(Kind::Cluster, &name(number)).unwrap());
        assert_eq!(cluster.lb_policy(), cluster::v3::cluster::LbPolicy::RingHash);
    }
    assert!(shown(view.get(Kind::Route, &name(80)).unwrap(), Kind::Route).contains("source_ip: true"));
    assert!(shown(view.get(Kind::Listener, "127.64.0.7:90").unwrap(), Kind::Listener).contains("SourceIp"));
    let schema = crate::explain::Schema::load();
    for kind in Kind::ALL {
        view.all(kind).for_each(|resource| assert!(is_read(&schema.resource(kind, resource)), "{resource:?}"));
    }
}

#[test]
fn others_are_not() {
    let mut world = World::new();
    world.export("b", "shop/web", &[port(80, Some("http")), port(90, None)], 2);
    world.address("shop/web", &["127.64.0.7"]);
    let view = world.view();
    let name = cluster_name(&key("shop/web"), NonZeroU16::new(80).unwrap());
    assert!(!shown(view.get(Kind::Route, &name).unwrap(), Kind::Route).contains("hash_policy"));
    assert!(!shown(view.get(Kind::Listener, "127.64.0.7:90").unwrap(), Kind::Listener).contains("hash_policy"));
}

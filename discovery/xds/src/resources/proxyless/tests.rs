//! What a gRPC library is told, in a form that people can compare.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use eastway_model::rules::{ClusterRef, NameFilter, NameRule, PeerRules, Rules, Split, TrafficPolicy};
use eastway_model::store::Writer;
use eastway_model::{
    Change, Endpoint, EndpointCondition, EndpointGroup, EndpointId, Label, LocalChange, LocalEndpoint, LocalService,
    PeerChange, PeerState, PortName, ServiceRecord, TlsMode, UnixMillis,
};
use serde_json::Value;

use super::*;
use crate::explain::Schema;
use crate::session::{Session as _, WorldSession};

fn name(text: &str) -> ClusterName {
    Label::parse(text).unwrap()
}

fn version(version: &str) -> Arc<Subset> {
    let labels = (!version.is_empty()).then(|| (Arc::from("version"), Arc::from(version)));
    Arc::new(labels.into_iter().collect())
}

/// Cluster a with the peers b and c, and the service shop/web at port 80.
struct World {
    writer: Writer,
    addresses: Addresses,
    shares: ShareAddresses,
    generator: Generator,
}

impl World {
    fn new(split: &[(u32, &str, &str)]) -> Self {
        let service: ServiceKey = "shop/web".parse().unwrap();
        let mut writer = Writer::new(name("a")).0;
        let peers = ["b", "c"].map(|peer| {
            let rules = PeerRules::new(name(peer), &format!("{peer}.example"), UnixMillis(1));
            (name(peer), Arc::new(PeerRules { import: NameFilter::everything(), ..rules }))
        });
        let split = split.iter().map(|(weight, cluster, labels)| Split {
            weight: *weight,
            cluster: (!cluster.is_empty()).then(|| ClusterRef::Named(name(cluster))),
            subset: version(labels),
        });
        let policy = TrafficPolicy::new("web", service.clone(), split.collect(), Vec::new(), None).unwrap();
        let names = vec![NameRule { fqdn: "web.shop.test".into(), service: service.clone(), cluster: Some(name("b")) }];
        let traffic = [(service.clone(), Arc::new(policy))].into();
        writer.set_rules(Arc::new(Rules { peers: peers.into(), traffic, names, ..Rules::default() }));
        let addresses = [(service, vec![Ipv4Addr::new(242, 0, 0, 1).into()])].into();
        let mut world = Self { writer, addresses, shares: BTreeMap::new(), generator: Generator::default() };
        for peer in ["b", "c"] {
            world.peer(peer, PeerChange::State(PeerState::Up));
        }
        world
    }

    fn peer(&mut self, peer: &str, change: PeerChange) {
        self.writer.apply([Change::Peer { cluster: name(peer), change }], UnixMillis(1_000));
    }

    fn record(groups: Vec<EndpointGroup>) -> ServiceRecord {
        let port = ServicePort {
            name: Some(PortName::parse("grpc").unwrap()),
            number: NonZeroU16::new(80).unwrap(),
            protocol: Protocol::Tcp,
            app_protocol: None,
        };
        ServiceRecord { groups, ..ServiceRecord::new("shop/web".parse().unwrap(), vec![port]) }
    }

    /// `peer` has so many ready endpoints of each version.
    fn export(&mut self, peer: &str, versions: &[(&str, u32)]) {
        let groups = versions.iter().map(|(labels, ready)| EndpointGroup {
            zone: None,
            subset: Subset::clone(&version(labels)),
            ready: *ready,
            draining: 0,
            weight: u64::from(*ready) * 100,
            identities: Vec::new(),
            tls: TlsMode::None,
        });
        let record = Self::record(groups.collect());
        self.peer(peer, PeerChange::Upsert(Arc::new(record)));
    }

    fn local(&mut self, ids: &[(&str, u8, EndpointCondition)]) {
        let endpoints: Vec<_> = ids
            .iter()
            .map(|(id, last, condition)| LocalEndpoint {
                endpoint: Endpoint {
                    id: EndpointId::parse(id).unwrap(),
                    hostname: None,
                    subset: Subset::clone(&version("v1")),
                    zone: None,
                    condition: *condition,
                    weight: 100,
                    identity: None,
                    tls: TlsMode::None,
                },
                address: Ipv4Addr::new(10, 0, 0, *last).into(),
                target_ports: [(NonZeroU16::new(80).unwrap().into(), 8080)].into(),
                service_account: None,
            })
            .collect();
        let service = LocalService::new(Self::record(Vec::new()), true, endpoints);
        let change = LocalChange::Upsert(Arc::new(service));
        self.writer.apply([Change::Local { registry: name("file"), change }], UnixMillis(1_000));
    }

    /// Every share of a peer gets an address, in the order of their names: 242.0.1.1 and on.
    fn give_addresses(&mut self) {
        let snapshot = self.writer.snapshot();
        let import = snapshot.import(&"shop/web".parse().unwrap()).unwrap();
        let shares = routing::remote_shares(snapshot.cluster(), import, NonZeroU16::new(80).unwrap());
        let given = (1..).zip(shares).map(|(last, share)| (share, vec![Ipv4Addr::new(242, 0, 1, last).into()]));
        self.shares.insert(import.key.clone(), given.collect());
    }

    fn view(&mut self) -> Arc<View> {
        self.generator.update(self.writer.snapshot(), &self.addresses, &self.shares)
    }

    fn shown(&mut self, kind: Kind, name: &str) -> Value {
        let view = self.view();
        Schema::load().resource(kind, view.get(kind, name).unwrap_or_else(|| panic!("{kind} {name}")))
    }

    /// The endpoints of a cluster as `p<priority> <region>/<sub zone> <share of the priority, %>: addresses`.
    fn places(&mut self, cluster: &str) -> Vec<String> {
        let shown = self.shown(Kind::Endpoints, cluster);
        let localities: Vec<Value> = shown["endpoints"].as_array().cloned().unwrap_or_default();
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let total = |priority: u64| -> u64 {
            let of = localities.iter().filter(|one| number(&one["priority"]) == priority);
            of.map(|one| number(&one["load_balancing_weight"])).sum()
        };
        let place = |one: &Value| {
            let (priority, text) = (number(&one["priority"]), |value: &Value| value.as_str().unwrap_or("").to_owned());
            let percent = number(&one["load_balancing_weight"]) * 100 / total(priority);
            let endpoints = one["lb_endpoints"].as_array().into_iter().flatten().map(|endpoint| {
                let socket = &endpoint["endpoint"]["address"]["socket_address"];
                format!(" {}:{}", text(&socket["address"]), socket["port_value"])
            });
            let (region, sub_zone) = (text(&one["locality"]["region"]), text(&one["locality"]["sub_zone"]));
            format!("p{priority} {region}/{sub_zone} {percent} %:{}", endpoints.collect::<String>())
        };
        localities.iter().map(place).collect()
    }
}

const WHOLE: &str = "outbound|80||web.shop.svc.clusterset.local";

#[test]
fn a_target_leads_to_listener_routes_cluster_and_endpoints() {
    let mut world = World::new(&[]);
    world.export("b", &[("v1", 1)]);
    world.give_addresses();
    let listener = world.shown(Kind::Listener, "web.shop.svc.clusterset.local:80");
    let manager = &listener["api_listener"]["api_listener"];
    assert_eq!(manager["rds"]["route_config_name"], WHOLE);
    assert_eq!(manager["http_filters"][0]["name"], "envoy.filters.http.router");
    let routes = world.shown(Kind::Route, WHOLE);
    assert_eq!(routes["virtual_hosts"][0]["domains"][0], "*");
    assert_eq!(routes["virtual_hosts"][0]["routes"][0]["route"]["cluster"], WHOLE);
    let cluster = world.shown(Kind::Cluster, WHOLE);
    assert_eq!(cluster["type"], "EDS");
    assert_eq!(cluster["circuit_breakers"]["thresholds"][0]["max_requests"], 100_000);
    assert!(cluster.get("transport_socket").is_none() && cluster.get("outlier_detection").is_none(), "{cluster}");
    // A name of one's own that is pinned to a cluster.
    let listener = world.shown(Kind::Listener, "web.shop.test:80");
    let pinned = "outbound|80|cluster.b|web.shop.svc.clusterset.local";
    assert_eq!(listener["api_listener"]["api_listener"]["rds"]["route_config_name"], pinned);
    assert_eq!(world.places(pinned), ["p0 b/ 100 %: 242.0.1.1:80"]);
}

#[test]
fn local_endpoints_come_first_and_a_peer_is_one_address() {
    let mut world = World::new(&[]);
    world.local(&[
        ("w1", 1, EndpointCondition::READY),
        ("w2", 2, EndpointCondition::READY),
        ("w3", 3, EndpointCondition { ready: false, serving: true, terminating: true }),
    ]);
    world.export("b", &[("v1", 3)]);
    world.export("c", &[("v1", 1)]);
    world.give_addresses();
    let expected = ["p0 a/ 100 %: 10.0.0.1:8080 10.0.0.2:8080", "p1 b/ 75 %: 242.0.1.1:80", "p1 c/ 25 %: 242.0.1.2:80"];
    assert_eq!(world.places(WHOLE), expected);
    // One that cannot be reached is the last resort.
    world.peer("b", PeerChange::State(PeerState::Down { since: UnixMillis(5) }));
    let places = world.places(WHOLE);
    assert_eq!(places[1], "p1 c/ 100 %: 242.0.1.2:80", "{places:?}");
    assert_eq!(places[2], "p2 b/ 100 %: 242.0.1.1:80", "{places:?}");
}

#[test]
fn weights_are_those_of_the_policy_and_follow_what_can_serve_them() {
    let mut world = World::new(&[(80, "b", "v1"), (20, "c", "v2")]);
    world.export("b", &[("v1", 1)]);
    world.export("c", &[("v1", 1), ("v2", 1)]);
    world.give_addresses();
    let shares: Vec<_> = world.shares.values().flat_map(BTreeMap::keys).map(|(c, s)| share_name(Some(c), s)).collect();
    assert_eq!(
        shares,
        ["cluster.b_version.v1", "cluster.b_version.v2", "cluster.c_version.v1", "cluster.c_version.v2"]
    );
    let places = world.places(WHOLE);
    assert_eq!(places[..2], ["p0 b/version.v1 80 %: 242.0.1.1:80", "p0 c/version.v2 20 %: 242.0.1.4:80"]);
    world.peer("b", PeerChange::State(PeerState::Down { since: UnixMillis(5) }));
    let places = world.places(WHOLE);
    assert_eq!(places[..2], ["p0 c/version.v2 20 %: 242.0.1.4:80", "p0 c/version.v1 80 %: 242.0.1.3:80"], "{places:?}");
}

#[test]
fn without_addresses_of_shares_the_gateway_chooses() {
    let mut world = World::new(&[]);
    world.local(&[("w1", 1, EndpointCondition::READY)]);
    assert_eq!(world.places(WHOLE), ["p0 a/ 100 %: 10.0.0.1:8080"]);
    world.export("b", &[("v1", 3)]);
    assert_eq!(world.places(WHOLE), ["p0 a/ 100 %: 242.0.0.1:80"]);
    world.give_addresses();
    assert_eq!(world.places(WHOLE).len(), 2);
}

/// A library waits 15 s for a listener that does not come: what does not exist is a listener without routes, until it
/// does, and again when it is gone.
#[test]
fn what_does_not_exist_is_answered_at_once() {
    use eastway_proto::xds::discovery::DiscoveryRequest;
    let mut world = World::new(&[]);
    let request = |nonce: &str| DiscoveryRequest {
        type_url: Kind::Listener.url().to_owned(),
        resource_names: vec!["web.shop.svc.clusterset.local:80".to_owned()],
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    };
    let mut session = WorldSession::new("s".to_owned());
    session.update(world.view());
    let responses = session.handle(request("")).unwrap().responses;
    let listener = |response: &eastway_proto::xds::discovery::DiscoveryResponse| {
        assert_eq!(response.resources.len(), 1);
        let told = session_told(&response.resources[0]);
        let manager = &told["api_listener"]["api_listener"];
        manager["rds"]["route_config_name"].as_str().map(str::to_owned)
    };
    assert_eq!(responses.len(), 1);
    assert_eq!(listener(&responses[0]), None, "nobody");
    world.export("b", &[("v1", 1)]);
    let responses = session.update(world.view());
    assert_eq!(listener(&responses[0]).as_deref(), Some(WHOLE));
    world.peer("b", PeerChange::Remove("shop/web".parse().unwrap()));
    let responses = session.update(world.view());
    assert_eq!(listener(&responses[0]), None, "nobody again");
    assert!(nobody(Kind::Cluster, "x").is_none());
}

fn session_told(any: &bytes::Bytes) -> Value {
    use prost::Message as _;
    let any = eastway_proto::xds::discovery::Any::decode(any.clone()).unwrap();
    let listener = eastway_proto::envoy::config::listener::v3::Listener::decode(any.value).unwrap();
    Schema::load().resource(Kind::Listener, &Resource::new(Kind::Listener, &listener.name, &listener))
}

/// A GRPCRoute of shop/web: calls of jason to v2, all others to v1 in b and c; with more of `rule` in its first.
fn by_rules(world: &mut World, more: eastway_model::rules::route::Rule) {
    use eastway_model::rules::route::{
        Backend, BackendRef, HeaderEdits, NamedMatch, ObjectName, Origin, Parent, PathMatch, RequestMatch, Route,
        RouteBook, RouteKind, Rule, ServiceShare, Subsets, TextMatch,
    };
    let object = |text: &str| ObjectName { namespace: name("shop"), name: text.into() };
    let shares =
        [("v1-b", Some("b"), "v1"), ("v1-c", Some("c"), "v1"), ("v2", None, "v2")].map(|(text, cluster, labels)| {
            let share =
                Part { cluster: cluster.map(|cluster| ClusterRef::Named(name(cluster))), subset: version(labels) };
            (object(text), Arc::new(ServiceShare { name: object(text), service: "shop/web".parse().unwrap(), share }))
        });
    let to = |text: &str, weight| Backend {
        reference: BackendRef::Share { object: object(text), port: None },
        weight,
        request: HeaderEdits::default(),
        response: HeaderEdits::default(),
    };
    let jason = RequestMatch {
        path: Some(PathMatch::Prefix("/shop.Cart".into())),
        method: Some("POST".into()),
        headers: vec![NamedMatch { name: "end-user".into(), value: TextMatch::Exact("jason".into()) }],
        ..RequestMatch::default()
    };
    let get = RequestMatch { method: Some("GET".into()), ..RequestMatch::default() };
    let rules = vec![
        Rule { matches: vec![jason, get], backends: vec![to("v2", 1)], ..more },
        Rule { backends: vec![to("v1-b", 80), to("v1-c", 20), to("lost", 5)], ..Rule::default() },
    ];
    let route = Route {
        kind: RouteKind::Http,
        origin: Origin::GatewayApi,
        name: object("web"),
        created: UnixMillis(0),
        parents: vec![Parent { service: "shop/web".parse().unwrap(), port: None }],
        server_names: Vec::new(),
        rules,
    };
    let book = RouteBook::new(vec![Arc::new(route)], shares.into(), Subsets::new());
    let rules = Rules::clone(world.writer.snapshot().rules());
    world.writer.set_rules(Arc::new(Rules { routes: Arc::new(book), ..rules }));
    world.give_addresses();
}

#[test]
fn rules_that_a_library_can_carry_out_are_its_own() {
    use eastway_model::rules::route::{Rule, Timeouts};
    let mut world = World::new(&[]);
    world.export("b", &[("v1", 1)]);
    world.export("c", &[("v1", 1), ("v2", 1)]);
    by_rules(&mut world, Rule::default());
    let routes = world.shown(Kind::Route, WHOLE)["virtual_hosts"][0]["routes"].clone();
    let of = |share: &str| format!("outbound|80|{share}|web.shop.svc.clusterset.local");
    assert_eq!(routes.as_array().unwrap().len(), 2, "no call is a GET: {routes}");
    assert_eq!(routes[0]["match"]["prefix"], "/shop.Cart/");
    assert_eq!(routes[0]["match"]["headers"].as_array().unwrap().len(), 1, "all calls are POSTs");
    assert_eq!(routes[0]["route"]["cluster"], of("version.v2"));
    let clusters = &routes[1]["route"]["weighted_clusters"]["clusters"];
    let weights: Vec<_> = clusters.as_array().unwrap().iter().map(|one| (&one["name"], &one["weight"])).collect();
    assert_eq!(
        format!("{weights:?}"),
        format!(
            "{:?}",
            [
                (&Value::from(of("cluster.b_version.v1")), &Value::from(80)),
                (&Value::from(of("cluster.c_version.v1")), &Value::from(20)),
                (&Value::from(NOBODY), &Value::from(5)),
            ]
        )
    );
    // Each part is a cluster, and what takes over comes after it; all of the service is all of it.
    assert_eq!(world.places(&of("version.v2")), ["p0 c/version.v2 100 %: 242.0.1.6:80"]);
    let places = world.places(&of("cluster.b_version.v1"));
    assert_eq!(places, ["p0 b/version.v1 100 %: 242.0.1.2:80", "p1 c/version.v1 100 %: 242.0.1.5:80"]);
    // What only a sidecar can do is done by none: then weights are all.
    let timeouts = Timeouts { request: Some(std::time::Duration::from_secs(1)), ..Timeouts::default() };
    by_rules(&mut world, Rule { timeouts, ..Rule::default() });
    let routes = world.shown(Kind::Route, WHOLE)["virtual_hosts"][0]["routes"].clone();
    assert_eq!(routes[0]["route"]["cluster"], WHOLE);
    // Without addresses that tell parts from each other no rule could be kept.
    by_rules(&mut world, Rule::default());
    world.shares.clear();
    let routes = world.shown(Kind::Route, WHOLE)["virtual_hosts"][0]["routes"].clone();
    assert_eq!(routes[0]["route"]["cluster"], WHOLE);
}

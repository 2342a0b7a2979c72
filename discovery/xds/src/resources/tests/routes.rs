//! Rules, and what is made of them.

use std::time::Duration;

use eastway_model::rules::route::{
    Backend, BackendRef, Filters, HeaderEdit, HeaderEdits, Lifetime, Mirror, NamedMatch, ObjectName, Origin, Parent,
    PathEdit, PathMatch, Persistence, Redirect, RequestMatch, Retry, RetryOn, Rewrite, Route, RouteBook, RouteKind,
    Rule, ServiceShare, Share, Subsets, TextMatch, Timeouts,
};
use eastway_model::rules::{Abort, Delay, Fault, SidecarPolicy};

use super::*;

fn object(text: &str) -> ObjectName {
    ObjectName { namespace: name("shop"), name: text.into() }
}

fn labels(version: &str) -> Arc<Subset> {
    Arc::new([(Arc::from("version"), Arc::from(version))].into())
}

fn shares() -> BTreeMap<ObjectName, Arc<ServiceShare>> {
    let in_b = Some(ClusterRef::Named(name("b")));
    let all = [
        ("v1", Share { cluster: None, subset: labels("v1") }),
        ("v2-in-b", Share { cluster: in_b, subset: labels("v2") }),
        ("here", Share { cluster: Some(ClusterRef::Local), ..Share::whole() }),
    ];
    let share = |(name, share)| {
        let name = object(name);
        (name.clone(), Arc::new(ServiceShare { name, service: key("shop/web"), share }))
    };
    all.map(share).into()
}

fn reference(name: &str) -> BackendRef {
    BackendRef::Share { object: object(name), port: None }
}

fn share(name: &str, weight: u32) -> Backend {
    let (request, response) = (HeaderEdits::default(), HeaderEdits::default());
    Backend { reference: reference(name), weight, request, response }
}

fn route(kind: RouteKind, name: &str, server_names: &[&str], rules: Vec<Rule>) -> Route {
    Route {
        kind,
        origin: Origin::GatewayApi,
        name: object(name),
        created: UnixMillis(0),
        parents: vec![Parent { service: key("shop/web"), port: None }],
        server_names: server_names.iter().map(|name| (*name).into()).collect(),
        rules,
    }
}

fn world(routes: Vec<Route>, ports: &[ServicePort]) -> World {
    let mut world = World::new();
    world.set_routes(routes);
    for peer in ["b", "c"] {
        world.export(peer, "shop/web", ports, 2);
        let of = |version: &str| endpoint(&format!("{peer}-{version}"), None, EndpointCondition::READY, Some(version));
        world.endpoints(peer, "shop/web", vec![of("v1"), of("v2")]);
    }
    world.address("shop/web", &["127.64.0.7"]);
    world
}

impl World {
    fn set_routes(&mut self, routes: Vec<Route>) {
        let book = RouteBook::new(routes.into_iter().map(Arc::new).collect(), shares(), Subsets::new());
        let rules = Rules::clone(self.writer.snapshot().rules());
        self.writer.set_rules(Arc::new(Rules { routes: Arc::new(book), ..rules }));
    }
}

#[test]
fn a_rule_of_each_kind() {
    let header = |name: &str, value: &str| HeaderEdit { name: name.into(), value: value.into() };
    let jason = RequestMatch {
        path: Some(PathMatch::Prefix("/shop".into())),
        headers: vec![NamedMatch { name: "end-user".into(), value: TextMatch::Exact("jason".into()) }],
        ..RequestMatch::default()
    };
    let edits = HeaderEdits { set: vec![header("x-by", "50%")], add: Vec::new(), remove: vec!["x-gone".into()] };
    let rewrite = Rewrite { hostname: Some("web.example".into()), path: Some(PathEdit::Prefix("/".into())) };
    let first = Rule {
        matches: vec![jason],
        filters: Filters { request: edits.clone(), rewrite: Some(rewrite), ..Filters::default() },
        backends: vec![share("v2-in-b", 1)],
        persistence: Some(Persistence { name: "cart".into(), carrier: Lifetime::SessionCookie }),
        ..Rule::default()
    };
    let moved = Redirect { scheme: None, hostname: Some("old.example".into()), port: None, path: None, status: 308 };
    let second = Rule {
        matches: vec![RequestMatch { path: Some(PathMatch::Exact("/old".into())), ..RequestMatch::default() }],
        filters: Filters { redirect: Some(moved), ..Filters::default() },
        ..Rule::default()
    };
    let mirror = Mirror { backend: reference("v1"), denominator: 100, numerator: 25 };
    let third = Rule {
        filters: Filters { mirrors: vec![mirror], ..Filters::default() },
        backends: vec![Backend { request: edits, ..share("v1", 80) }, share("v2-in-b", 20), share("nowhere", 5)],
        timeouts: Timeouts { request: Some(Duration::from_secs(2)), backend_request: Some(Duration::from_millis(500)) },
        retry: Some(Retry {
            on: RetryOn::BROKEN.to_vec(),
            codes: vec![503],
            attempts: Some(4),
            backoff: Some(Duration::from_millis(10)),
        }),
        ..Rule::default()
    };
    let rules = vec![first, second, third];
    let view = world(vec![route(RouteKind::Http, "web", &[], rules)], &[port(80, Some("http"))]).view();
    let names: Vec<_> = view.all(Kind::Cluster).map(|cluster| cluster.name().to_string()).collect();
    assert_eq!(
        names,
        [
            "eastway-gateway",
            "outbound|80|cluster.b_version.v2|web.shop.svc.clusterset.local",
            "outbound|80|version.v1|web.shop.svc.clusterset.local",
            "outbound|80||web.shop.svc.clusterset.local",
        ]
    );
    let routes = view.get(Kind::Route, "outbound|80||web.shop.svc.clusterset.local").unwrap();
    insta::assert_snapshot!(shown(routes, Kind::Route));
}

#[test]
fn connections_by_weight_and_by_name() {
    let by_weight = Rule { backends: vec![share("v1", 3), share("v2-in-b", 1)], ..Rule::default() };
    let to = |name: &str| Rule { backends: vec![share(name, 1)], ..Rule::default() };
    let tcp = route(RouteKind::Tcp, "web", &[], vec![by_weight]);
    let listener = |routes| {
        let view = world(routes, &[port(90, None)]).view();
        shown(view.get(Kind::Listener, "127.64.0.7:90").unwrap(), Kind::Listener)
    };
    insta::assert_snapshot!(listener(vec![tcp.clone()]));
    let first = route(RouteKind::Tls, "a", &["a.example", "*.example"], vec![to("v1")]);
    let second = route(RouteKind::Tls, "b", &["b.example", "a.example"], vec![to("v2-in-b")]);
    insta::assert_snapshot!(listener(vec![tcp, second, first]));
}

#[test]
fn a_share_has_its_endpoints_first_and_then_those_that_take_over() {
    let both = || Rule { backends: vec![share("v2-in-b", 1), share("v1", 3)], ..Rule::default() };
    let ports = [port(80, Some("http"))];
    let mut world = world(vec![route(RouteKind::Http, "web", &[], vec![both()])], &ports);
    let places = |world: &World, share: &str| {
        let name = share_cluster_name(&key("shop/web"), NonZeroU16::new(80).unwrap(), share);
        world.places_of(&name)
    };
    assert_eq!(
        places(&world, "cluster.b_version.v2"),
        ["b/ p0: b-v2.b as b-v2.web.shop.b:80 HEALTHY 100", "c/ p1: c-v2.c as c-v2.web.shop.c:80 HEALTHY 100",]
    );
    world.peer("b", PeerChange::State(PeerState::Down { since: UnixMillis(1_000) }));
    let told = places(&world, "cluster.b_version.v2");
    assert!(told[0].contains("p0: b-v2") && told[0].contains("UNHEALTHY") && told[1].contains(" HEALTHY"), "{told:?}");
    assert!(told[0].contains("b-v2.b.lost as b-v2.web.shop.b:80"), "ejections end with the loss: {told:?}");
    // A version that nobody has any more: what it would get goes to the others.
    let weights = |world: &World| {
        let view = world.view();
        let routes = view.get(Kind::Route, "outbound|80||web.shop.svc.clusterset.local").unwrap();
        let text = shown(routes, Kind::Route);
        ["cluster.b_version.v2", "|version.v1|"].map(|name| text.contains(name))
    };
    assert_eq!(weights(&world), [true, true]);
    for peer in ["b", "c"] {
        let remove = vec![EndpointId::parse(&format!("{peer}-v2")).unwrap()];
        let (service, upsert) = (key("shop/web"), Vec::new());
        world.peer(peer, PeerChange::Endpoints { service, upsert, remove });
    }
    assert_eq!(weights(&world), [false, true]);
}

#[test]
fn a_change_of_rules_remakes_their_services_alone() {
    let rule = |name: &str| vec![Rule { backends: vec![share(name, 1)], ..Rule::default() }];
    let mut world = world(vec![route(RouteKind::Http, "web", &[], rule("v1"))], &[port(80, Some("http"))]);
    world.export("b", "shop/api", &[port(80, Some("http"))], 1);
    world.address("shop/api", &["127.64.0.8"]);
    let mut generator = Generator::new(&settings("10.0.0.5"));
    let first = world.update(&mut generator);
    world.set_routes(vec![route(RouteKind::Http, "web", &[], rule("v2-in-b"))]);
    let second = world.update(&mut generator);
    let changed = second.changes_since(&first).unwrap();
    let changed: Vec<String> = changed.into_iter().map(|(kind, name)| format!("{kind} {name}")).collect();
    let of = |share: &str| format!("outbound|80|{share}|web.shop.svc.clusterset.local");
    assert_eq!(
        changed,
        [
            format!("cds {}", of("cluster.b_version.v2")),
            format!("cds {}", of("version.v1")),
            format!("eds {}", of("cluster.b_version.v2")),
            format!("eds {}", of("version.v1")),
            format!("rds {}", of("")),
        ],
        "and no listener: its connections go on"
    );
}

#[test]
fn faults_stand_between_the_router_and_the_endpoint() {
    let mut world = world(Vec::new(), &[port(80, Some("http"))]);
    let delay = Some(Delay { duration: Duration::from_secs(2), per_million: 100_000 });
    let fault = Some(Fault { delay, abort: Some(Abort { status: 503, per_million: 500_000 }) });
    let policy = TrafficPolicy::new("p", key("shop/web"), Vec::new(), Vec::new(), None).unwrap();
    world.set_policy(Some(policy.with_sidecars(SidecarPolicy { fault, ..SidecarPolicy::default() })));
    let view = world.view();
    let name = "fault|80||web.shop.svc.clusterset.local";
    let routes = view.get(Kind::Route, "outbound|80||web.shop.svc.clusterset.local").unwrap();
    assert!(shown(routes, Kind::Route).contains(name));
    let listener = view.get(Kind::Listener, name).unwrap();
    insta::assert_snapshot!(shown(listener, Kind::Listener));
    assert!(view.get(Kind::Cluster, name).is_some());
}

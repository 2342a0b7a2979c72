//! Precedence, conflicts and statuses.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::change::{Change, PeerChange, PeerState};
use crate::describe::explain;
use crate::name::PortName;
use crate::routing::RouteRequest;
use crate::rules::{NameFilter, PeerRules, Rules, Split, TrafficPolicy};
use crate::service::{EndpointGroup, Protocol, ServicePort, ServiceRecord};
use crate::store::Writer;

fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn object(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName { namespace: label(namespace), name: name.into() }
}

fn number(port: u16) -> PortNumber {
    PortNumber::new(port).unwrap()
}

fn port(port: u16, name: &str) -> ServicePort {
    let name = Some(PortName::parse(name).unwrap());
    ServicePort { name, number: number(port), protocol: Protocol::Tcp, app_protocol: None }
}

fn route(kind: RouteKind, name: &str, service: &str, rules: Vec<Rule>) -> Route {
    Route {
        kind,
        origin: Origin::GatewayApi,
        name: object(name),
        created: UnixMillis(0),
        parents: vec![Parent { service: key(service), port: None }],
        server_names: Vec::new(),
        rules,
    }
}

fn backend(reference: BackendRef, weight: u32) -> Backend {
    Backend { reference, weight, request: HeaderEdits::default(), response: HeaderEdits::default() }
}

fn share(name: &str, weight: u32) -> Backend {
    backend(BackendRef::Share { object: object(name), port: None }, weight)
}

fn service(name: &str, weight: u32) -> Backend {
    backend(BackendRef::Service { service: key(name), port: None }, weight)
}

fn to(backends: Vec<Backend>) -> Rule {
    Rule { backends, ..Rule::default() }
}

fn matching(wanted: Vec<RequestMatch>, backends: Vec<Backend>) -> Rule {
    Rule { matches: wanted, backends, ..Rule::default() }
}

fn path(path: PathMatch) -> RequestMatch {
    RequestMatch { path: Some(path), ..RequestMatch::default() }
}

fn header(name: &str, value: &str) -> NamedMatch {
    NamedMatch { name: name.into(), value: TextMatch::Exact(value.into()) }
}

fn version(name: &str) -> (ObjectName, Arc<ServiceShare>) {
    let subset: Subset = [(Arc::from("version"), Arc::from(name))].into();
    let share = Share { cluster: None, subset: Arc::new(subset) };
    let name = object(&format!("shop/{name}"));
    (name.clone(), Arc::new(ServiceShare { name, service: key("shop/web"), share }))
}

fn shares() -> BTreeMap<ObjectName, Arc<ServiceShare>> {
    let in_b = Share { cluster: Some(ClusterRef::Named(label("b"))), ..Share::whole() };
    let name = object("shop/b");
    let b = ServiceShare { name: name.clone(), service: key("shop/web"), share: in_b };
    [version("v1"), version("v2"), (name, Arc::new(b))].into()
}

fn book(routes: Vec<Route>) -> RouteBook {
    RouteBook::new(routes.into_iter().map(Arc::new).collect(), shares(), Subsets::new())
}

/// Cluster a with the peers b and c, which export `shop/web` with HTTP at 80, gRPC at 81 and bytes at 90, in two versions.
fn world(routes: Vec<Route>, policy: Option<TrafficPolicy>) -> Writer {
    let mut writer = Writer::new(label("a")).0;
    let peers = ["b", "c"].map(|peer| {
        let rules = PeerRules::new(label(peer), &format!("{peer}.example"), UnixMillis(1));
        (label(peer), Arc::new(PeerRules { import: NameFilter::everything(), ..rules }))
    });
    let traffic = policy.into_iter().map(|policy| (policy.service.clone(), Arc::new(policy))).collect();
    let routes = Arc::new(book(routes));
    writer.set_rules(Arc::new(Rules { peers: peers.into(), traffic, routes, ..Rules::default() }));
    for peer in ["b", "c"] {
        let ports = vec![port(80, "http"), port(81, "grpc"), port(90, "db")];
        let mut record = ServiceRecord::new(key("shop/web"), ports);
        record.groups = ["v1", "v2"].map(group).into();
        for change in [PeerChange::State(PeerState::Up), PeerChange::Upsert(Arc::new(record))] {
            writer.apply([Change::Peer { cluster: label(peer), change }], UnixMillis(1_000));
        }
    }
    writer
}

fn group(version: &str) -> EndpointGroup {
    EndpointGroup {
        zone: None,
        subset: [(Arc::from("version"), Arc::from(version))].into(),
        ready: 1,
        draining: 0,
        weight: 100,
        identities: Vec::new(),
        tls: crate::endpoint::TlsMode::None,
    }
}

/// The rules of a port in their order, as `route#rule`.
fn order(book: &RouteBook, at: &ServicePort) -> Vec<String> {
    let table = book.table(&key("shop/web")).unwrap();
    let routes = table.at(at).unwrap();
    routes.entries.iter().map(|entry| format!("{}#{}", entry.route.name.name, entry.rule)).collect()
}

#[test]
fn the_most_specific_match_is_tried_first() {
    let prefix = |text: &str| path(PathMatch::Prefix(text.into()));
    let rules = vec![
        matching(vec![prefix("/")], Vec::new()),
        matching(vec![prefix("/a")], Vec::new()),
        matching(vec![prefix("/a/b")], Vec::new()),
        matching(vec![path(PathMatch::Exact("/".into()))], Vec::new()),
        matching(vec![path(PathMatch::Regex(Pattern::parse("/[ab]").unwrap()))], Vec::new()),
        matching(vec![RequestMatch { method: Some("GET".into()), ..prefix("/a") }], Vec::new()),
        matching(vec![RequestMatch { headers: vec![header("x", "1")], ..prefix("/a") }], Vec::new()),
        matching(vec![RequestMatch { headers: vec![header("x", "1"), header("y", "1")], ..prefix("/a") }], Vec::new()),
        matching(vec![RequestMatch { query: vec![header("q", "1")], ..prefix("/a") }], Vec::new()),
        to(Vec::new()),
    ];
    let book = book(vec![route(RouteKind::Http, "shop/r", "shop/web", rules)]);
    let order: Vec<String> = order(&book, &port(80, "http")).iter().map(|name| name.replace("r#", "")).collect();
    assert_eq!(order, ["3", "4", "2", "5", "7", "6", "8", "1", "0", "9"]);
}

#[test]
fn of_equals_the_oldest_then_the_first_name_then_the_first_rule() {
    let two = || vec![to(Vec::new()), to(Vec::new())];
    let older = Route { created: UnixMillis(1), ..route(RouteKind::Http, "shop/z", "shop/web", two()) };
    let newer = |name| Route { created: UnixMillis(2), ..route(RouteKind::Http, name, "shop/web", two()) };
    let book = book(vec![newer("shop/b"), newer("shop/a"), older]);
    assert_eq!(order(&book, &port(80, "http")), ["z#0", "z#1", "a#0", "a#1", "b#0", "b#1"]);
}

#[test]
fn methods_of_grpc_by_the_length_of_their_names() {
    let text = |text: &str| Some(TextMatch::Exact(text.into()));
    let call = |service, method| vec![path(PathMatch::Grpc(GrpcMethod { service, method }))];
    let rules = vec![
        to(Vec::new()),
        matching(call(None, text("Get")), Vec::new()),
        matching(call(text("shop.Cart"), None), Vec::new()),
        matching(call(text("shop.Cart"), text("Get")), Vec::new()),
    ];
    let book = book(vec![route(RouteKind::Grpc, "shop/r", "shop/web", rules)]);
    assert_eq!(order(&book, &port(81, "grpc")), ["r#3", "r#2", "r#1", "r#0"]);
    assert!(book.table(&key("shop/web")).unwrap().at(&port(80, "http")).is_none(), "HTTP/1 carries no calls");
}

#[test]
fn the_most_specific_kind_has_the_port() {
    let routes = RouteKind::ALL.map(|kind| route(kind, "shop/r", "shop/web", vec![to(vec![service("shop/web", 1)])]));
    let book = book(routes.into());
    let table = book.table(&key("shop/web")).unwrap();
    let at = |number, name| table.at(&port(number, name)).unwrap().kind;
    assert_eq!([at(80, "http"), at(81, "grpc"), at(90, "db")], [RouteKind::Http, RouteKind::Grpc, RouteKind::Tls]);
}

/// Conditions of the first parent, as `Type reason`.
fn conditions(writer: &Writer, kind: RouteKind, name: &str) -> Vec<String> {
    let snapshot = writer.snapshot();
    let found = snapshot.rules().routes.routes().iter().find(|one| one.kind == kind && one.name == object(name));
    let status = found.unwrap().status(snapshot);
    status[0].conditions.iter().map(ToString::to_string).collect()
}

#[test]
fn a_status_says_what_became_of_a_route() {
    let jason = RequestMatch { headers: vec![header("end-user", "jason")], ..RequestMatch::default() };
    let mut other = route(RouteKind::Http, "clients/theirs", "shop/web", vec![to(Vec::new())]);
    other.parents[0].service = key("shop/web");
    let mut at_9 = route(RouteKind::Tcp, "shop/at-9", "shop/web", vec![to(vec![share("shop/v1", 1)])]);
    at_9.parents[0].port = Some(number(9));
    let writer = world(
        vec![
            route(
                RouteKind::Http,
                "shop/jason",
                "shop/web",
                vec![matching(vec![jason], vec![share("shop/v2", 1)]), to(vec![share("shop/v1", 1)])],
            ),
            route(RouteKind::Http, "shop/lost", "shop/web", vec![to(vec![share("shop/v9", 1), service("shop/no", 1)])]),
            route(RouteKind::Http, "shop/gone", "shop/gone", vec![to(Vec::new())]),
            route(RouteKind::Tcp, "shop/bytes", "shop/web", vec![to(vec![share("shop/v1", 1)])]),
            route(RouteKind::Tcp, "shop/too-late", "shop/web", vec![to(vec![share("shop/v2", 1)])]),
            other,
            at_9,
        ],
        None,
    );
    let mut text = String::new();
    for route in writer.snapshot().rules().routes.routes() {
        text.push_str(&format!("{} {}\n", route.kind, route.name));
        for condition in conditions(&writer, route.kind, &route.name.to_string()) {
            text.push_str(&format!("  {condition}\n"));
        }
    }
    insta::assert_snapshot!(text);
}

/// A VirtualService gives way to a route of the Gateway API and to an older one, and says so; a subset without a
/// DestinationRule is a backend that is not there.
#[test]
fn istios_routes_have_a_status_too() {
    let subset =
        |name: &str| backend(BackendRef::Subset { service: key("shop/web"), subset: name.into(), port: None }, 1);
    let istio = |name: &str, kind| Route {
        origin: Origin::Istio,
        ..route(kind, name, "shop/web", vec![to(vec![subset("v2")])])
    };
    let told = |routes: Vec<Route>, subsets: &[&str], kind, name: &str| {
        let mut writer = world(Vec::new(), None);
        let named = subsets.iter().map(|name| (Arc::from(*name), Arc::new(Subset::new())));
        let subsets = [(key("shop/web"), named.collect())].into();
        let book = RouteBook::new(routes.into_iter().map(Arc::new).collect(), shares(), subsets);
        let rules = Rules::clone(writer.snapshot().rules());
        writer.set_rules(Arc::new(Rules { routes: Arc::new(book), ..rules }));
        conditions(&writer, kind, name).join("; ")
    };
    let http = RouteKind::Http;
    let alone = told(vec![istio("shop/a", http)], &["v2"], http, "shop/a");
    assert!(alone.contains("Accepted: True") && alone.contains("ResolvedRefs: True"), "{alone}");
    let lost = told(vec![istio("shop/a", http)], &["v1"], http, "shop/a");
    assert!(
        lost.contains("BackendNotFound (subset v2 of shop/web: no DestinationRule of the service has it)"),
        "{lost}"
    );
    let older = Route { created: UnixMillis(1), ..istio("shop/z", http) };
    let newer = Route { created: UnixMillis(2), ..istio("shop/a", http) };
    let second = told(vec![newer, older], &["v2"], http, "shop/a");
    assert!(second.contains("Conflicted (VirtualService shop/z has the port)"), "{second}");
    let ours = route(RouteKind::Grpc, "shop/ours", "shop/web", vec![to(vec![share("shop/v1", 1)])]);
    let beside = told(vec![istio("shop/a", http), ours], &["v2"], http, "shop/a");
    // At the port of gRPC; the other one is its own.
    assert!(beside.contains("Accepted: True Accepted (port 80)"), "{beside}");
    let ours = route(RouteKind::Http, "shop/ours", "shop/web", vec![to(vec![share("shop/v1", 1)])]);
    let beside = told(vec![istio("shop/a", http), ours], &["v2"], http, "shop/a");
    assert!(beside.contains("Conflicted (HTTPRoute shop/ours has the port)"), "{beside}");
}

#[test]
fn weights_for_everything_are_for_addresses_too() {
    let jason = RequestMatch { headers: vec![header("end-user", "jason")], ..RequestMatch::default() };
    let rules =
        vec![matching(vec![jason], vec![share("shop/v2", 1)]), to(vec![share("shop/v1", 80), share("shop/b", 20)])];
    let http = route(RouteKind::Http, "shop/r", "shop/web", rules);
    let shown = |writer: &Writer, at: u16| {
        let explained = explain(writer.snapshot(), &key("shop/web"), &RouteRequest::tcp(number(at)));
        let shares = explained.candidates.iter().map(|one| {
            let labels: Vec<_> = one.subset.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{:.0} {} {}", one.share_percent, one.cluster, labels.join(","))
        });
        let shares: Vec<String> = shares.collect();
        (explained.policy.unwrap_or_default(), shares)
    };
    let writer = world(vec![http.clone()], None);
    let expected = ["40 b version=v1", "40 c version=v1", "20 b "].map(str::to_owned).to_vec();
    assert_eq!(shown(&writer, 80), ("HTTPRoute shop/r rules[1]".to_owned(), expected));
    assert_eq!(shown(&writer, 90), (String::new(), vec!["50 b ".to_owned(), "50 c ".to_owned()]), "not a port of HTTP");
    // Somebody who said it for connections is heard first.
    let split = vec![Split { weight: 1, cluster: Some(ClusterRef::Named(label("c"))), subset: Arc::default() }];
    let policy = TrafficPolicy::new("p", key("shop/web"), split, Vec::new(), None).unwrap();
    let writer = world(vec![http], Some(policy));
    assert_eq!(shown(&writer, 80), ("TrafficPolicy shop/p".to_owned(), vec!["100 c ".to_owned()]));
    let told = conditions(&writer, RouteKind::Http, "shop/r");
    assert!(told[2].contains("sidecars-only") && told[2].contains("TrafficPolicy shop/p has a split"), "{told:?}");
    // What leads elsewhere, or nowhere, has no weights for connections to this service.
    for rules in [vec![to(vec![service("shop/other", 1)])], vec![to(vec![share("shop/v9", 1)])], vec![to(Vec::new())]] {
        let writer = world(vec![route(RouteKind::Http, "shop/r", "shop/web", rules)], None);
        assert_eq!(shown(&writer, 80).0, "");
    }
}

#[test]
fn a_change_of_rules_marks_the_services_that_it_is_about() {
    let mut writer =
        world(vec![route(RouteKind::Http, "shop/r", "shop/web", vec![to(vec![share("shop/v1", 1)])])], None);
    let before = writer.snapshot().version();
    let rules = |routes: Vec<Route>, writer: &Writer| {
        Arc::new(Rules { routes: Arc::new(book(routes)), ..Rules::clone(writer.snapshot().rules()) })
    };
    let next = rules(vec![route(RouteKind::Http, "shop/r", "shop/web", vec![to(vec![share("shop/v2", 1)])])], &writer);
    assert!(writer.set_rules(Arc::clone(&next)));
    assert_eq!(writer.snapshot().services_changed_since(before), Some(vec![key("shop/web")]));
    assert_eq!(writer.snapshot().changes_since(before), None, "other rules may have changed");
    let import = writer.snapshot().import(&key("shop/web")).unwrap();
    assert_eq!(import.wanted.as_ref().unwrap().len(), 1);
    let before = writer.snapshot().version();
    let other = route(RouteKind::Http, "shop/s", "shop/other", vec![to(vec![share("shop/v2", 1)])]);
    let same = vec![route(RouteKind::Http, "shop/r", "shop/web", vec![to(vec![share("shop/v2", 1)])]), other];
    assert!(writer.set_rules(rules(same, &writer)));
    assert_eq!(writer.snapshot().services_changed_since(before), Some(Vec::new()), "another service's rules");
    let referrers: Vec<_> = writer.snapshot().rules().routes.referrers(&key("shop/web")).cloned().collect();
    assert_eq!(referrers, [key("shop/other"), key("shop/web")]);
}

#[test]
fn patterns_are_those_that_all_proxies_read_alike() {
    for (pattern, yes, no) in [
        ("/v[0-9]+/.*", "/v12/x", "/x/v12/x"),
        ("a|b", "b", "ab"),
        ("(?i)jason", "JASON", "jasons"),
        (r"a\.b\d{2}", "a.b12", "a-b12"),
        ("[^/]+", "x-y", "x/y"),
        ("(?:a*)*b", "aab", "a"),
        ("[]&]{2}", "]&", "]"),
    ] {
        let pattern = Pattern::parse(pattern).unwrap();
        assert!(pattern.matches(yes) && !pattern.matches(no), "{pattern:?}");
    }
    for bad in [
        "",
        "(",
        "a{2000}",
        "(?P<x>a)",
        "(?x) a",
        r"\p{Greek}",
        "[a&&b]",
        "[]&&b]",
        "[[:alpha:]]",
        r"\<a",
        "ä",
        r"\b{start}",
        r"\x41",
        r"\Aa",
        "(?i:a)",
        "(?-i)a",
        "[--a]",
        "[a--b]",
        "[[a]]",
        "a{2",
        "a{,2}",
        "a{2,1}",
    ] {
        assert!(Pattern::parse(bad).is_err(), "{bad}");
    }
    assert!(Pattern::parse(&"a".repeat(1_025)).is_err());
}

/// Each with what to write instead. A test of the workspace shows that proxies refuse them, or read them otherwise.
#[test]
fn patterns_that_proxies_refuse_are_told_with_what_to_write() {
    let told: Vec<String> = [
        "a**",
        "a+*",
        "a*?*",
        "a{2}*",
        "a{1}{2}",
        "a{2}??",
        "(a{60}){60}",
        "((a{10}){10}){11}",
        "(?:a{2}b|c){501}",
        "/x)|(/y",
        ".)$*+(",
        "a{02}",
        "a{ 2}",
        ".{1000}.{1000}",
        "[b-a]",
    ]
    .into_iter()
    .map(|bad| format!("{bad}  {}", Pattern::parse(bad).unwrap_err()))
    .collect();
    insta::assert_snapshot!(told.join("\n"));
}

/// What the counts of repetitions make of a pattern is known without making it, and is bounded.
#[test]
fn patterns_have_a_price() {
    let steps = |text: &str| Pattern::parse(text).unwrap().steps();
    assert!(steps("/v[0-9]+/.*") < 50);
    assert!(steps("a{1000}") > 1_000 && steps("a{500}b{500}") > 1_000);
    assert!(steps("[^/]{1,1000}") <= MAX_STEPS, "a long element of a path");
    assert_eq!(Pattern::parse(".{1000}.{1000}"), Err(PatternError::TooLarge(22_008)));
    let largest = Pattern::parse("(?:[a-z]|(?i)[k-s]|x){450}").unwrap();
    assert!(largest.steps() > MAX_STEPS / 2 && largest.matches(&"k".repeat(450)) && !largest.matches(&"k".repeat(449)));
    let path = Some(PathMatch::Regex(Pattern::parse("a{10}").unwrap()));
    let value = TextMatch::Regex(Pattern::parse("b{20}").unwrap());
    let one = RequestMatch { path, headers: vec![NamedMatch { name: "x".into(), value }], ..RequestMatch::default() };
    let all = route(RouteKind::Http, "shop/r", "shop/web", vec![matching(vec![one.clone(), one], Vec::new())]);
    assert_eq!(all.steps(), 2 * (steps("a{10}") + steps("b{20}")));
}

#[test]
fn prefixes_end_at_slashes() {
    let prefix = PathMatch::Prefix("/a/b".into());
    assert!(["/a/b", "/a/b/", "/a/b/c"].iter().all(|path| prefix.matches(path)));
    assert!(["/a/bc", "/a", "/", "/x/a/b"].iter().all(|path| !prefix.matches(path)));
    assert!(PathMatch::Prefix("/".into()).matches("/anything"));
}

fn any_match() -> impl Strategy<Value = RequestMatch> {
    let path = prop_oneof![
        Just(None),
        prop_oneof![Just("/"), Just("/a"), Just("/a/b")].prop_map(|text| Some(PathMatch::Prefix(text.into()))),
        prop_oneof![Just("/a"), Just("/a/b")].prop_map(|text| Some(PathMatch::Exact(text.into()))),
    ];
    let some = |names: &'static [&'static str]| {
        proptest::sample::subsequence(names, 0..=2)
            .prop_map(|names| names.into_iter().map(|name| header(name, "1")).collect::<Vec<_>>())
    };
    (path, proptest::option::of(Just(Arc::from("GET"))), some(&["x", "y"]), some(&["p", "q"])).prop_map(
        |(path, method, headers, query)| RequestMatch { path, method, headers, query, ..RequestMatch::default() },
    )
}

proptest! {
    /// The order of routes in a file, and of files in a folder, decides nothing; and of two rules that match a request
    /// the one that asks for more is tried first.
    #[test]
    fn the_order_of_routes_decides_nothing(
        matches in proptest::collection::vec(any_match(), 1..12),
        seed in any::<u64>(),
    ) {
        let routes: Vec<Route> = matches
            .iter()
            .enumerate()
            .map(|(index, one)| {
                let rules = vec![matching(vec![one.clone()], Vec::new())];
                route(RouteKind::Http, &format!("shop/r{index:02}"), "shop/web", rules)
            })
            .collect();
        let mut shuffled = routes.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
        let ordered = order(&book(routes), &port(80, "http"));
        prop_assert_eq!(&ordered, &order(&book(shuffled), &port(80, "http")));
        let of = |name: &str| &matches[name[1..3].parse::<usize>().unwrap()];
        let path = |one: &RequestMatch| one.path.clone().unwrap_or(PathMatch::Prefix("/".into()));
        for (place, earlier) in ordered.iter().enumerate() {
            for later in &ordered[place + 1..] {
                let (earlier, later) = (of(earlier), of(later));
                if path(earlier) == path(later) && earlier.method == later.method {
                    prop_assert!(earlier.headers.len() >= later.headers.len());
                }
                let is_exact = |one: &RequestMatch| matches!(one.path, Some(PathMatch::Exact(_)));
                prop_assert!(is_exact(earlier) || !is_exact(later));
            }
        }
    }
}

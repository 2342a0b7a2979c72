//! What sidecars are told, in a form that people can compare.

use std::num::NonZeroU16;

use eastway_model::rules::{ClusterRef, Locality, NameFilter, PeerRules, Rules, TrafficPolicy};
use eastway_model::store::Writer;
use eastway_model::{
    Change, ClusterName, Endpoint, EndpointCondition, EndpointGroup, EndpointId, Label, LocalChange, LocalEndpoint,
    LocalService, PeerChange, PeerState, PortName, Protocol, ServicePort, ServiceRecord, TlsMode, UnixMillis,
    WorkloadIdentity,
};
use eastway_proto::envoy::config::rbac::v3::Action;
use eastway_proto::envoy::config::{cluster, endpoint, listener, route};
use eastway_proto::envoy::extensions::filters::http::fault::v3::HttpFault;
use eastway_proto::envoy::extensions::filters::http::router::v3::Router;
use eastway_proto::envoy::extensions::filters::http::stateful_session::v3::{StatefulSession, StatefulSessionPerRoute};
use eastway_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use eastway_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use eastway_proto::envoy::extensions::filters::network::rbac::v3::Rbac;
use eastway_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use eastway_proto::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use eastway_proto::envoy::extensions::matching::common_inputs::ssl::v3::UriSanInput;
use eastway_proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use eastway_proto::envoy::extensions::transport_sockets::internal_upstream::v3::InternalUpstreamTransport;
use eastway_proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use eastway_proto::envoy::extensions::transport_sockets::tls::v3::{DownstreamTlsContext, Secret, UpstreamTlsContext};
use eastway_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use eastway_proto::xds::discovery as wire;
use prost::{Message, Name};

use super::*;

mod affinity;
mod headless;
mod routes;
mod summary;

fn settings(host: &str) -> Settings {
    Settings {
        gateway: GatewayAddress { host: host.to_owned(), port: 15008 },
        gateway_identity: "spiffe://a.example/ns/eastway-system/sa/eastway-gateway".to_owned(),
        trust_domain: "a.example".to_owned(),
        endpoints_per_service: ENDPOINTS_PER_SERVICE,
    }
}

fn name(text: &str) -> ClusterName {
    Label::parse(text).unwrap()
}

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn port(number: u16, name: Option<&str>) -> ServicePort {
    ServicePort {
        name: name.map(|name| PortName::parse(name).unwrap()),
        number: NonZeroU16::new(number).unwrap(),
        protocol: Protocol::Tcp,
        app_protocol: None,
    }
}

fn endpoint(id: &str, zone: Option<&str>, condition: EndpointCondition, version: Option<&str>) -> Endpoint {
    Endpoint {
        id: EndpointId::parse(id).unwrap(),
        hostname: None,
        subset: version.map(|version| ("version".into(), version.into())).into_iter().collect(),
        zone: zone.map(Into::into),
        condition,
        weight: 100,
        identity: None,
        tls: TlsMode::None,
    }
}

/// The store of cluster a with the peers b and c.
struct World {
    writer: Writer,
    addresses: Addresses,
    endpoints_per_service: usize,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            writer: Writer::new(name("a")).0,
            addresses: Addresses::new(),
            endpoints_per_service: ENDPOINTS_PER_SERVICE,
        };
        world.set_policy(None);
        for peer in ["b", "c"] {
            world.peer(peer, PeerChange::State(PeerState::Up));
        }
        world
    }

    fn set_policy(&mut self, policy: Option<TrafficPolicy>) {
        let peers = ["b", "c"].map(|peer| {
            let rules = PeerRules::new(name(peer), &format!("{peer}.example"), UnixMillis(1));
            (name(peer), Arc::new(PeerRules { import: NameFilter::everything(), ..rules }))
        });
        let traffic = policy.into_iter().map(|policy| (policy.service.clone(), Arc::new(policy))).collect();
        self.writer.set_rules(Arc::new(Rules { peers: peers.into(), traffic, ..Rules::default() }));
    }

    fn peer(&mut self, peer: &str, change: PeerChange) {
        self.writer.apply([Change::Peer { cluster: name(peer), change }], UnixMillis(1_000));
    }

    /// `peer` exports a service with so many ready endpoints, of which no records are known.
    fn export(&mut self, peer: &str, service: &str, ports: &[ServicePort], ready: u32) {
        let mut record = ServiceRecord::new(key(service), ports.to_vec());
        record.groups = vec![EndpointGroup {
            zone: None,
            subset: Subset::new(),
            ready,
            draining: 0,
            weight: u64::from(ready) * 100,
            identities: Vec::new(),
            tls: TlsMode::None,
        }];
        self.peer(peer, PeerChange::Upsert(Arc::new(record)));
    }

    fn endpoints(&mut self, peer: &str, service: &str, upsert: Vec<Endpoint>) {
        self.peer(peer, PeerChange::Endpoints { service: key(service), upsert, remove: Vec::new() });
    }

    fn local(&mut self, service: &str, ports: &[ServicePort], endpoints: Vec<LocalEndpoint>) {
        let service = LocalService::new(ServiceRecord::new(key(service), ports.to_vec()), true, endpoints);
        let change = LocalChange::Upsert(Arc::new(service));
        self.writer.apply([Change::Local { registry: name("file"), change }], UnixMillis(1_000));
    }

    fn address(&mut self, service: &str, addresses: &[&str]) {
        self.addresses.insert(key(service), addresses.iter().map(|address| address.parse().unwrap()).collect());
    }

    fn update(&self, generator: &mut Generator) -> Arc<View> {
        generator.update(self.writer.snapshot(), &self.addresses)
    }

    fn view(&self) -> Arc<View> {
        self.update(&mut self.generator())
    }

    fn generator(&self) -> Generator {
        let endpoints_per_service = self.endpoints_per_service;
        Generator::new(&Settings { endpoints_per_service, ..settings("10.0.0.5") })
    }

    /// The endpoints of one import as `region/zone p<priority>: place health weight`.
    fn places(&self, service: &str, port: u16) -> Vec<String> {
        self.places_of(&cluster_name(&key(service), NonZeroU16::new(port).unwrap()))
    }

    fn places_of(&self, cluster: &str) -> Vec<String> {
        let view = self.view();
        let resource = view.get(Kind::Endpoints, cluster).unwrap();
        let assignment: endpoint::v3::ClusterLoadAssignment = decode(resource);
        let mut places = Vec::new();
        for locality in &assignment.endpoints {
            let of = locality.locality.as_ref().unwrap();
            for endpoint in &locality.lb_endpoints {
                let health = endpoint.health_status().as_str_name();
                let weight = endpoint.load_balancing_weight.unwrap().value;
                let priority = locality.priority;
                let place = place(endpoint);
                places.push(format!("{}/{} p{priority}: {place} {health} {weight}", of.region, of.zone));
            }
        }
        places
    }
}

/// The address, or what the gateway is asked for.
fn place(endpoint: &endpoint::v3::LbEndpoint) -> String {
    use eastway_proto::envoy::config::core::v3::address::Address;
    use eastway_proto::envoy::config::core::v3::socket_address::PortSpecifier;
    use eastway_proto::envoy::google::protobuf::value::Kind;
    use endpoint::v3::lb_endpoint::HostIdentifier;
    let Some(HostIdentifier::Endpoint(inner)) = &endpoint.host_identifier else { panic!("{endpoint:?}") };
    match inner.address.as_ref().unwrap().address.as_ref().unwrap() {
        Address::SocketAddress(socket) => {
            let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!("{socket:?}") };
            format!("{}:{port}", socket.address)
        }
        Address::EnvoyInternalAddress(internal) => {
            let named = &endpoint.metadata.as_ref().unwrap().filter_metadata[METADATA].fields["endpoint"];
            let Some(Kind::StringValue(authority)) = &named.kind else { panic!("{named:?}") };
            format!("{} as {authority}", internal.endpoint_id)
        }
        Address::Pipe(pipe) => panic!("{pipe:?}"),
    }
}

fn decode<M: Message + Default>(resource: &Resource) -> M {
    let any = wire::Any::decode(resource.world().clone()).unwrap();
    M::decode(any.value).unwrap()
}

/// A message without what is not set, and with what is packed in it.
fn shown(resource: &Resource, kind: Kind) -> String {
    let text = match kind {
        Kind::Cluster => format!("{:#?}", decode::<cluster::v3::Cluster>(resource)),
        Kind::Endpoints => format!("{:#?}", decode::<eastway_proto::xds::v1::ClusterLoadAssignment>(resource)),
        Kind::Listener => format!("{:#?}", decode::<listener::v3::Listener>(resource)),
        Kind::Route => format!("{:#?}", decode::<route::v3::RouteConfiguration>(resource)),
        Kind::Secret | Kind::VirtualHost | Kind::ScopedRoute | Kind::Extension | Kind::Runtime => panic!("{kind}"),
    };
    unpacked(&text)
}

/// Debugging output without empty fields; packed messages are shown in place of their bytes.
fn unpacked(text: &str) -> String {
    const EMPTY: [&str; 8] = [": None,", ": [],", ": {},", ": \"\",", ": false,", ": 0,", ": Unspecified,", ": Auto,"];
    let mut lines = Vec::new();
    let mut url = String::new();
    let mut input = text.lines();
    while let Some(line) = input.next() {
        let trimmed = line.trim();
        if let Some(found) = trimmed.strip_prefix("type_url: ") {
            url = found.trim_matches([',', '"']).to_owned();
        } else if trimmed == "value: [" {
            let indent = line.len() - trimmed.len();
            let bytes = input.by_ref().map(str::trim).take_while(|line| *line != "],");
            let bytes: Vec<u8> = bytes.map(|byte| byte.trim_end_matches(',').parse().unwrap()).collect();
            lines.extend(nested(&url, &bytes).lines().map(|line| format!("{:indent$}{line}", "")));
            continue;
        } else if EMPTY.iter().any(|empty| trimmed.ends_with(empty)) {
            if trimmed != "value: []," {
                continue;
            }
            let indent = line.len() - trimmed.len();
            lines.push(format!("{:indent$}{}", "", nested(&url, &[])));
            continue;
        }
        lines.push(line.to_owned());
    }
    lines.join("\n")
}

fn nested(url: &str, bytes: &[u8]) -> String {
    fn of<M: Message + Name + Default + std::fmt::Debug>(url: &str, bytes: &[u8]) -> Option<String> {
        (M::type_url() == url).then(|| unpacked(&format!("{:#?}", M::decode(bytes).unwrap())))
    }
    let known = [
        of::<Router>,
        of::<HttpConnectionManager>,
        of::<TcpProxy>,
        of::<PreviousHostsPredicate>,
        of::<InternalUpstreamTransport>,
        of::<RawBuffer>,
        of::<UpstreamTlsContext>,
        of::<DownstreamTlsContext>,
        of::<Rbac>,
        of::<Action>,
        of::<UriSanInput>,
        of::<TlsInspector>,
        of::<HttpProtocolOptions>,
        of::<StatefulSession>,
        of::<StatefulSessionPerRoute>,
        of::<CookieBasedSessionState>,
        of::<HttpFault>,
    ];
    known.iter().find_map(|show| show(url, bytes)).unwrap_or_else(|| panic!("{url}"))
}

fn all_shown(view: &View, keep: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    for kind in Kind::ALL {
        for resource in view.all(kind).filter(|resource| keep(resource.name())) {
            text.push_str(&format!("# {kind} {}\n{}\n\n", resource.name(), shown(resource, kind)));
        }
    }
    text
}

#[test]
fn the_way_to_the_gateway() {
    let view = World::new().view();
    insta::assert_snapshot!(all_shown(&view, |_| true));
    let by_name = World::new().update(&mut Generator::new(&settings("gateway.internal")));
    let cluster: cluster::v3::Cluster = decode(by_name.get(Kind::Cluster, GATEWAY_CLUSTER).unwrap());
    let discovery =
        cluster::v3::cluster::ClusterDiscoveryType::Type(cluster::v3::cluster::DiscoveryType::StrictDns.into());
    assert_eq!(cluster.cluster_discovery_type, Some(discovery));
}

#[test]
fn an_http_port_and_a_port_of_bytes() {
    let mut world = World::new();
    let ports = [port(80, Some("http")), port(9000, None)];
    world.export("b", "shop/web", &ports, 2);
    world.endpoints(
        "b",
        "shop/web",
        vec![
            endpoint("web-1", Some("z1"), EndpointCondition::READY, Some("v1")),
            endpoint("web-2", Some("z2"), EndpointCondition::DRAINING, None),
        ],
    );
    world.address("shop/web", &["127.64.0.7", "fd65:6173:7477::7"]);
    let view = world.view();
    let bytes_cluster = cluster_name(&key("shop/web"), NonZeroU16::new(9000).unwrap());
    let names: Vec<_> = Kind::ALL
        .iter()
        .flat_map(|kind| view.all(*kind).map(move |resource| format!("{kind} {}", resource.name())))
        .collect();
    insta::assert_snapshot!(names.join("\n"));
    insta::assert_snapshot!(
        all_shown(&view, |name| name == "outbound|80||web.shop.svc.clusterset.local" || name == "127.64.0.7:80")
    );
    insta::assert_snapshot!(all_shown(&view, |name| name == bytes_cluster || name == "[fd65:6173:7477::7]:9000"));
}

#[test]
fn i1_remote_endpoints_are_names_one_by_one_and_local_ones_are_preferred() {
    let mut world = World::new();
    let ports = [port(80, None)];
    world.export("b", "shop/web", &ports, 2);
    world.export("c", "shop/web", &ports, 3);
    assert_eq!(
        world.places("shop/web", 80),
        ["b/ p0: web.shop.b as web.shop.b:80 HEALTHY 200", "c/ p0: web.shop.c as web.shop.c:80 HEALTHY 300",],
        "as long as no records are known, the service as a whole"
    );
    let records = |prefix: &str| {
        vec![
            endpoint(&format!("{prefix}-1"), Some("z1"), EndpointCondition::READY, None),
            endpoint(&format!("{prefix}-2"), None, EndpointCondition::DOWN, None),
        ]
    };
    world.endpoints("b", "shop/web", records("x"));
    let local = |id: &str, address: &str, target: &[(u16, u16)]| LocalEndpoint {
        endpoint: endpoint(id, Some("here"), EndpointCondition::READY, None),
        address: address.parse().unwrap(),
        service_account: None,
        target_ports: target.iter().map(|(port, target)| (NonZeroU16::new(*port).unwrap().into(), *target)).collect(),
    };
    world.local("shop/web", &ports, vec![local("l-1", "10.1.0.9", &[(80, 8080)]), local("l-2", "10.1.0.8", &[])]);
    assert_eq!(
        world.places("shop/web", 80),
        [
            "a/here p0: 10.1.0.9:8080 HEALTHY 100",
            "b/ p1: x-2.b as x-2.web.shop.b:80 UNHEALTHY 100",
            "b/z1 p1: x-1.b as x-1.web.shop.b:80 HEALTHY 100",
            "c/ p1: web.shop.c as web.shop.c:80 HEALTHY 300",
        ]
    );
    let policy =
        |failover, locality| TrafficPolicy::new("p", key("shop/web"), Vec::new(), failover, Some(locality)).unwrap();
    world.set_policy(Some(policy(vec![ClusterRef::Named(name("c"))], Locality::PreferLocal)));
    assert_eq!(
        world.places("shop/web", 80),
        ["a/here p0: 10.1.0.9:8080 HEALTHY 100", "c/ p1: web.shop.c as web.shop.c:80 HEALTHY 300"],
        "a failover order names all that count"
    );
    world.set_policy(Some(policy(Vec::new(), Locality::Any)));
    assert!(world.places("shop/web", 80).iter().all(|place| place.contains(" p0: ")));
}

#[test]
fn a_peer_that_is_down_is_used_only_if_nothing_else_is_left() {
    let mut world = World::new();
    let ports = [port(80, None)];
    for peer in ["b", "c"] {
        world.export(peer, "shop/web", &ports, 1);
        world.endpoints("b", "shop/web", vec![endpoint("b-1", None, EndpointCondition::READY, None)]);
    }
    world.endpoints("c", "shop/web", vec![endpoint("c-1", None, EndpointCondition::DRAINING, None)]);
    let health = |world: &World| -> Vec<String> {
        let words = |place: String| place.split(' ').nth_back(1).unwrap().to_owned();
        world.places("shop/web", 80).into_iter().map(words).collect()
    };
    assert_eq!(health(&world), ["HEALTHY", "DRAINING"]);
    let down = || PeerChange::State(PeerState::Down { since: UnixMillis(1_000) });
    world.peer("b", down());
    assert_eq!(health(&world), ["UNHEALTHY", "HEALTHY"], "what drains serves if nothing else does");
    world.peer("c", down());
    assert_eq!(health(&world), ["HEALTHY", "HEALTHY"], "what was last heard may be wrong, but nothing else is left");
}

/// An endpoint of a peer that speaks TLS, as the service account `account` if its owner says one.
fn speaking(id: &str, tls: TlsMode, account: Option<&str>) -> Endpoint {
    let identity = account.map(|account| format!("spiffe://b.example/ns/shop/sa/{account}"));
    let identity = identity.and_then(|identity| WorkloadIdentity::parse(&identity));
    Endpoint { tls, identity, ..endpoint(id, None, EndpointCondition::READY, None) }
}

/// Socket, server name and names accepted of each transport socket match, and the label of each endpoint.
fn sockets(world: &World, service: &str) -> (Vec<String>, Vec<Option<String>>) {
    use eastway_proto::envoy::config::core::v3::transport_socket::ConfigType;
    use eastway_proto::envoy::google::protobuf::value::Kind as Value;
    let (view, name) = (world.view(), cluster_name(&key(service), NonZeroU16::new(80).unwrap()));
    let cluster: cluster::v3::Cluster = decode(view.get(Kind::Cluster, &name).unwrap());
    let matches = cluster.transport_socket_matches.iter().map(|one| {
        let Some(ConfigType::TypedConfig(outer)) = &one.transport_socket.as_ref().unwrap().config_type else {
            panic!()
        };
        let outer = InternalUpstreamTransport::decode(outer.value.as_slice()).unwrap();
        let Some(ConfigType::TypedConfig(inner)) = outer.transport_socket.unwrap().config_type else { panic!() };
        let context = UpstreamTlsContext::decode(inner.value.as_slice()).unwrap();
        let text = format!("{context:?}");
        let names: Vec<_> =
            text.split('"').filter(|part| part.starts_with("spiffe:") || part.starts_with("bundle:")).collect();
        let alpn = context.common_tls_context.unwrap().alpn_protocols.join("+");
        format!("{}: {} {alpn} {}", one.name, context.sni, names.join(" "))
    });
    let assignment: endpoint::v3::ClusterLoadAssignment = decode(view.get(Kind::Endpoints, &name).unwrap());
    let endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    let labels = endpoints.map(|endpoint| {
        let metadata = &endpoint.metadata.as_ref()?.filter_metadata;
        let label = metadata.get("envoy.transport_socket_match")?.fields.get("eastway")?;
        let Some(Value::StringValue(label)) = &label.kind else { panic!("{label:?}") };
        Some(label.clone())
    });
    (matches.collect(), labels.collect())
}

#[test]
fn an_endpoint_that_speaks_tls_is_known_by_whom_its_owner_names_and_by_that_domain_alone() {
    let mut world = World::new();
    let ports = [port(80, Some("http"))];
    world.export("b", "shop/web", &ports, 2);
    assert_eq!(sockets(&world, "shop/web"), (Vec::new(), vec![None]), "in plain text, unless its owner says else");
    let strict = TlsMode::MeshStrict;
    world.endpoints("b", "shop/web", vec![speaking("w-1", strict, Some("web")), speaking("w-2", TlsMode::None, None)]);
    let (matches, labels) = sockets(&world, "shop/web");
    let sni = "outbound_.80_._.web.shop.svc.clusterset.local";
    assert_eq!(matches, [format!("mtls.b: {sni} http/1.1 spiffe://b.example/ns/shop/sa/web bundle:b.example")]);
    assert_eq!(labels, [Some("mtls.b".to_owned()), None], "each endpoint by itself");
    // Of one it is not known who it is: anybody of the service's namespace there.
    world.endpoints("b", "shop/web", vec![speaking("w-2", strict, None)]);
    let (matches, _) = sockets(&world, "shop/web");
    assert_eq!(matches, [format!("mtls.b: {sni} http/1.1 spiffe://b.example/ns/shop/sa/ bundle:b.example")]);
    world.endpoints("b", "shop/web", vec![speaking("w-2", TlsMode::Istio, Some("web"))]);
    assert!(sockets(&world, "shop/web").0[0].contains("istio-http/1.1+istio+http/1.1"));
}

#[test]
fn a_strict_place_and_a_permissive_one() {
    let inbound = crate::inbound::parse(Some(
        r#"[{"listen": "10.0.0.7:9443", "app": "127.0.0.1:8080", "protocol": "http", "mode": "permissive"},
            {"listen": "10.0.0.7:9444", "app": "127.0.0.1:9000", "protocol": "tcp", "mode": "strict",
             "allow": ["spiffe://b.example/ns/shop/sa/web", "spiffe://c.example/ns/shop/*"]}]"#,
    ));
    let domains = ["a.example", "b.example"].map(Into::into).into();
    let surroundings = Surroundings { trust_domains: domains, cut: "1f".into() };
    let shown: Vec<_> = inbound_resources(&inbound.unwrap(), &surroundings)
        .iter()
        .map(|(kind, resource)| format!("# {kind} {}\n{}\n\n", resource.name(), shown(resource, *kind)))
        .collect();
    insta::assert_snapshot!(shown.concat());
}

#[test]
fn a_place_of_which_services_say_different_things_takes_all_mutual_tls_as_bytes() {
    let text = r#"[{"listen": "10.0.0.7:9443", "app": "127.0.0.1:8080", "protocol": "tcp", "mode": "permissive"}]"#;
    let surroundings = Surroundings { trust_domains: vec!["a.example".into()], cut: "1f".into() };
    let alpn = |mixed: bool| {
        let mut inbound = crate::inbound::parse(Some(text)).unwrap();
        inbound[0].mixed = mixed;
        let made = inbound_resources(&inbound, &surroundings);
        let (_, listener) = made.iter().find(|(kind, _)| *kind == Kind::Listener).unwrap();
        let listener: listener::v3::Listener = decode(listener);
        listener.filter_chains[0].filter_chain_match.clone().unwrap().application_protocols
    };
    assert_eq!(alpn(false), ["eastway", "istio"], "all other TLS is the application's own");
    assert!(alpn(true).is_empty(), "clients of HTTP come with other names");
}

#[test]
fn trust_domains_are_known_apart_and_together_and_what_is_gone_goes() {
    let bundle = |text: &str| Bundle { anchors: format!("{text} anchor\n"), crls: format!("{text} list\n") };
    let trust = |domains: &[&str], cut: &str| Trust {
        bundles: domains.iter().map(|domain| (Arc::from(*domain), bundle(domain))).collect(),
        cut: cut.into(),
    };
    let mut generator = Generator::new(&settings("10.0.0.5"));
    let world = World::new();
    let secrets = |view: &View| -> Vec<String> {
        let text = |resource: &Arc<Resource>| {
            let secret: Secret = decode(resource);
            let bytes = format!("{secret:?}").matches("97, 110, 99, 104, 111, 114").count();
            format!("{} {bytes}", resource.name())
        };
        view.all(Kind::Secret).map(text).collect()
    };
    assert!(secrets(&world.update(&mut generator)).is_empty());
    generator.set_trust(&trust(&["a.example", "b.example"], "1"));
    let both = world.update(&mut generator);
    assert_eq!(secrets(&both), ["anchors 2", "bundle:a.example 1", "bundle:b.example 1"]);
    assert_eq!(&*both.surroundings().cut, "1");
    generator.set_trust(&trust(&["a.example"], "2"));
    let one = world.update(&mut generator);
    assert_eq!(secrets(&one), ["anchors 1", "bundle:a.example 1"]);
    let changed = one.changes_since(&both).unwrap();
    assert_eq!(changed.len(), 2, "{changed:?}");
}

#[test]
fn weights_are_never_0_and_their_sum_fits() {
    let mut world = World { endpoints_per_service: usize::MAX, ..World::new() };
    world.export("b", "shop/web", &[port(80, None)], 1);
    let heavy = |number: u32| Endpoint {
        weight: if number == 0 { 1 } else { 1_000_000 },
        ..endpoint(&format!("e{number}"), None, EndpointCondition::READY, None)
    };
    world.endpoints("b", "shop/web", (0..5_000).map(heavy).collect());
    let weights: Vec<u64> =
        world.places("shop/web", 80).iter().map(|place| place.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(weights.iter().sum::<u64>() < 1 << 32);
    assert_eq!(weights.iter().min(), Some(&1));
    assert_eq!(weights.len(), 5_000);
}

#[test]
fn only_what_changed_is_made_again_and_what_is_gone_goes() {
    let mut world = World::new();
    let ports = [port(80, Some("http"))];
    for service in ["shop/web", "shop/api"] {
        world.export("b", service, &ports, 1);
        world.address(service, &[if service == "shop/web" { "127.64.0.1" } else { "127.64.0.2" }]);
    }
    let mut generator = Generator::new(&settings("10.0.0.5"));
    let first = world.update(&mut generator);
    assert!(Arc::ptr_eq(&first, &world.update(&mut generator)), "nothing changed");
    world.endpoints("b", "shop/web", vec![endpoint("w-1", None, EndpointCondition::READY, None)]);
    let second = world.update(&mut generator);
    let web = cluster_name(&key("shop/web"), NonZeroU16::new(80).unwrap());
    let changed = second.changes_since(&first).unwrap();
    assert_eq!(changed.into_iter().collect::<Vec<_>>(), [(Kind::Endpoints, Arc::from(web.as_str()))]);
    // Another address: another listener.
    world.address("shop/web", &["127.64.0.3"]);
    let third = world.update(&mut generator);
    let changed: Vec<_> = third.changes_since(&second).unwrap().into_iter().collect();
    let listeners = ["127.64.0.1:80", "127.64.0.3:80", "captured|127.64.0.1:80", "captured|127.64.0.3:80"];
    assert_eq!(changed, listeners.map(|name| (Kind::Listener, name.into())));
    world.peer("b", PeerChange::Remove(key("shop/web")));
    let last = world.update(&mut generator);
    let gone = last.changes_since(&third).unwrap();
    assert_eq!(gone.len(), 5);
    assert!(gone.iter().all(|(kind, name)| last.get(*kind, name).is_none()));
    assert_eq!(world.view().all(Kind::Cluster).count(), last.all(Kind::Cluster).count());
}

#[test]
fn equal_content_is_equal_bytes() {
    let world = || {
        let mut world = World::new();
        world.export("b", "shop/web", &[port(80, Some("http"))], 1);
        let mut labelled = endpoint("w-1", None, EndpointCondition::READY, None);
        labelled.subset = (0..16).map(|number| (format!("k{number}").into(), "v".into())).collect();
        world.endpoints("b", "shop/web", vec![labelled]);
        world.address("shop/web", &["127.64.0.1"]);
        world.view()
    };
    let (one, other) = (world(), world());
    for kind in Kind::ALL {
        let same: Vec<_> = one.all(kind).zip(other.all(kind)).collect();
        assert!(same.iter().all(|(a, b)| a == b), "{kind}");
    }
}

/// `eastway proxy-config` shows all of it by name: nothing is a mere number, nothing is a type that it does not know.
#[test]
fn everything_that_is_sent_can_be_shown() {
    let mut world = World::new();
    world.export("b", "shop/web", &[port(80, Some("http")), port(81, Some("grpc")), port(82, None)], 2);
    world.address("shop/web", &["242.0.0.1"]);
    world.local("shop/web", &[port(80, Some("http"))], Vec::new());
    world.endpoints("b", "shop/web", vec![endpoint("w1", Some("z"), EndpointCondition::READY, Some("v1"))]);
    let schema = crate::explain::Schema::load();
    let view = world.view();
    for kind in Kind::ALL {
        for resource in view.all(kind) {
            let shown = schema.resource(kind, resource);
            let name = if kind == Kind::Endpoints { "/cluster_name" } else { "/name" };
            assert_eq!(shown.pointer(name).and_then(serde_json::Value::as_str), Some(&**resource.name()));
            assert!(is_read(&shown), "{shown}");
        }
    }
}

/// Whether every field has a name, and every type was known.
fn is_read(value: &serde_json::Value) -> bool {
    let fields = value.as_object().into_iter().flatten();
    let is_named = fields.clone().all(|(name, value)| !name.starts_with('#') && is_read(value));
    let is_unknown = fields.count() == 2
        && value.get("@type").is_some()
        && value.get("value").is_some_and(serde_json::Value::is_string);
    is_named && !is_unknown && value.as_array().into_iter().flatten().all(is_read)
}

#[test]
fn shares_have_names_of_their_own() {
    let subset = |labels: &[(&str, &str)]| -> Subset {
        labels.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect()
    };
    let gke = name("gke");
    assert_eq!(share_name(None, &subset(&[])), "");
    assert_eq!(share_name(Some(&gke), &subset(&[])), "cluster.gke");
    assert_eq!(share_name(None, &subset(&[("version", "v2"), ("track", "a_b")])), "track.a%5Fb_version.v2");
    assert_eq!(share_name(Some(&gke), &subset(&[("x.example/y", "")])), "cluster.gke_x.example%2Fy.");
    assert_eq!(
        share_cluster_name(&key("shop/web"), NonZeroU16::new(80).unwrap(), "version.v2"),
        "outbound|80|version.v2|web.shop.svc.clusterset.local"
    );
}

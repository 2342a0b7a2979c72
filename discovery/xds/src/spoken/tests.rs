use std::num::NonZeroU16;

use eastway_model::store::{Reader, Writer};
use eastway_model::{
    Change, ClusterName, Endpoint, EndpointCondition, LocalChange, PortKey, PortName, ServicePort, ServiceRecord,
    Subset, TlsMode, UnixMillis,
};

use super::*;
use crate::inbound::ByService;
use crate::node::{ClientKind, Outbound};

/// The store of a cluster.
struct World {
    writer: Writer,
    reader: Reader,
    spoken: Spoken,
}

impl World {
    fn new() -> Self {
        let (writer, reader) = Writer::new(ClusterName::parse("a").unwrap());
        Self { writer, reader, spoken: Spoken::default() }
    }

    /// A Service `name` with these ports (name, `appProtocol`, target) and these addresses.
    fn serve(&mut self, name: &str, ports: &[(&str, Option<&str>, u16)], addresses: &[&str]) {
        let number = |at: usize| NonZeroU16::new(80 + u16::try_from(at).unwrap()).unwrap();
        let listed = ports.iter().enumerate().map(|(at, (name, app_protocol, _))| ServicePort {
            name: Some(PortName::parse(name).unwrap()),
            number: number(at),
            protocol: Protocol::Tcp,
            app_protocol: app_protocol.map(Into::into),
        });
        let targets = ports.iter().enumerate().map(|(at, (_, _, target))| (PortKey::from(number(at)), *target));
        let endpoints = addresses.iter().map(|address| LocalEndpoint {
            endpoint: Endpoint {
                id: EndpointId::parse(&format!("{name}-{address}").replace(['.', ':', '/'], "-")).unwrap(),
                hostname: None,
                subset: Subset::new(),
                zone: None,
                // One that starts counts too: it is to be ready for those who come once it takes them.
                condition: EndpointCondition::DOWN,
                weight: 100,
                identity: None,
                tls: TlsMode::None,
            },
            address: address.parse().unwrap(),
            service_account: None,
            target_ports: targets.clone().collect(),
        });
        let record = ServiceRecord::new(name.parse().unwrap(), listed.collect());
        self.tell(LocalChange::Upsert(Arc::new(LocalService::new(record, false, endpoints.collect::<Vec<_>>()))));
    }

    fn tell(&mut self, change: LocalChange) {
        let change = Change::Local { registry: Label::parse("file").unwrap(), change };
        self.writer.apply([change], UnixMillis(1_000));
        self.spoken.follow(&self.reader.load_full());
    }

    fn ask(&self, address: &str) -> Saying {
        self.spoken.of(&Label::parse("shop").unwrap(), &[address.parse().unwrap()].into())
    }
}

/// What is said, as text: ports with their protocols, `8080 http`.
fn text(saying: &mut Saying) -> String {
    let said = saying.borrow_and_update().clone();
    let Some(said) = said else { return "unknown".to_owned() };
    let port = |(number, port): (&u16, &Port)| {
        let all: Vec<String> = port.keys().map(ToString::to_string).collect();
        format!("{number} {}", all.join("+"))
    };
    said.iter().map(port).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_port_speaks_what_the_service_says_that_leads_to_it() {
    let mut world = World::new();
    let mut early = world.ask("10.0.0.7");
    assert_eq!(text(&mut early), "unknown", "and not nothing");
    world.serve("shop/web", &[("http-web", None, 8080), ("db", Some("tcp"), 5432)], &["10.0.0.7", "10.0.0.8"]);
    assert_eq!(text(&mut early), "5432 tcp, 8080 http");
    let mut late = world.ask("::ffff:10.0.0.8");
    assert_eq!(text(&mut late), "5432 tcp, 8080 http");
    assert_eq!(text(&mut world.ask("10.0.0.9")), "");
    // Changed while it runs; and a Service of another namespace says nothing.
    world.serve("shop/web", &[("grpc", None, 8080), ("db", Some("tcp"), 5432)], &["10.0.0.7"]);
    world.serve("bank/web", &[("http", None, 8080)], &["10.0.0.7"]);
    assert_eq!(text(&mut early), "5432 tcp, 8080 http2");
    assert_eq!(text(&mut late), "", "it does not lead there any more");
    world.serve("shop/api", &[("http", None, 8080)], &["10.0.0.7"]);
    assert_eq!(text(&mut early), "5432 tcp, 8080 http+http2");
    assert_eq!(agreed(&early.borrow().clone().unwrap()[&8080]), None);
    world.tell(LocalChange::Remove("shop/web".parse().unwrap()));
    assert_eq!(text(&mut early), "8080 http");
}

#[test]
fn who_is_not_concerned_is_not_woken_and_who_is_gone_is_forgotten() {
    let mut world = World::new();
    world.serve("shop/web", &[("http", None, 8080)], &["10.0.0.7"]);
    let mut asking = world.ask("10.0.0.7");
    asking.borrow_and_update();
    world.serve("shop/web", &[("http", None, 8080)], &["10.0.0.7", "10.0.0.8"]);
    world.serve("shop/api", &[("http", None, 8080)], &["10.0.0.8"]);
    assert!(!asking.has_changed().unwrap());
    drop(asking);
    world.serve("shop/api", &[("tcp", None, 8080)], &["10.0.0.8"]);
    assert!(world.spoken.lock().namespaces.is_empty(), "nobody asks");
    assert_eq!(text(&mut world.ask("10.0.0.8")), "8080 http+tcp");
}

/// Sidecars may come and go for long while no Service changes.
#[test]
fn i8_who_is_gone_is_forgotten_also_while_nothing_changes() {
    let mut world = World::new();
    world.serve("shop/web", &[("http", Some("http"), 8080)], &["10.0.0.1"]);
    let mut kept = world.ask("10.0.0.1");
    for _ in 0..10_000 {
        drop(world.ask("10.0.0.1"));
    }
    assert!(world.spoken.lock().namespaces.values().all(|namespace| namespace.asking.len() < 64));
    kept.mark_unchanged();
    world.serve("shop/web", &[("tcp", None, 8080)], &["10.0.0.1"]);
    assert!(kept.has_changed().unwrap());
}

#[test]
fn what_a_pod_takes_and_its_services_do_not_say_is_named() {
    let mut world = World::new();
    world.serve("shop/web", &[("http", None, 8080), ("db", None, 5432), ("ops", Some("http"), 9000)], &["10.0.0.7"]);
    world.serve("shop/api", &[("grpc", None, 8080)], &["10.0.0.7"]);
    let place = |port: u16| {
        format!(r#"{{"listen": "0.0.0.0:{port}", "app": "127.0.0.1:{port}", "protocol": "tcp", "mode": "permissive"}}"#)
    };
    let places = [8080, 5432, 9000, 7000].map(place).join(",");
    let node = |addresses: &[&str]| Node {
        kind: ClientKind::Envoy,
        id: String::new(),
        cluster: String::new(),
        agent: String::new(),
        inbound: crate::inbound::parse(Some(&format!("[{places}]"))).unwrap(),
        by_service: ByService {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ports: [8080, 5432].into(),
        },
        outbound: Outbound::Captured,
    };
    let (shop, bank) = (Label::parse("shop").unwrap(), Label::parse("bank").unwrap());
    let (web, other) = (node(&["10.0.0.7"]), node(&["10.0.0.7", "10.0.0.8"]));
    let clients = [(&shop, &web), (&shop, &other), (&bank, &web)];
    let found = contradictions(&world.reader.load_full(), clients.into_iter());
    let expected =
        ["port 8080 is http by shop/web, http2 by shop/api", "port 9000 is http by shop/web, tcp by the pod itself"];
    assert_eq!(found, expected);
    assert!(contradictions(&world.reader.load_full(), [(&bank, &web)].into_iter()).is_empty());
}
